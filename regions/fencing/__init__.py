"""Fencing, where effects land: what lets a database, a service or an object store refuse whoever is no longer the holder.

A lease keeps two handlers from running at once only as far as clocks and schedulers do. A process that was paused in
the middle of a call does not know that its lease ended, another holds the next, and its call arrives all the same. The
place where it arrives can know: each lease has a token that is larger than all before it (`ctx.fence`), and whoever
remembers the largest one seen can refuse a smaller (Gray and Cheriton 1989 have the leases, Burrows 2006 calls the
tokens sequencers).

    regions.fencing.sql        conditional writes: SQLite, PostgreSQL, and what speaks like them
    regions.fencing.http       a header, and a doorkeeper for those who serve it
    regions.fencing.objects    conditional writes of objects that have tags

One rule stands behind all three: **a token is accepted if it is not smaller than the largest one accepted so far**. An
equal one is accepted because one holder does many things under one token: all tasks of a queue while it holds the
lease, and each again after a lost answer. Two holders never have equal tokens. So `<=`, not `<`.

Fencing says *who* may write, and not how often: an effect that must happen once also needs its key (`ctx.effect_key`).
"""
