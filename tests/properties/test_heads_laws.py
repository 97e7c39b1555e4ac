"""Heads are a lattice: join, meet, covers; and `lacking` is exactly what join adds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from crdtsync.log.heads import Heads, RunningHeads
from tests.log_strategies import writer

heads = st.dictionaries(st.sampled_from([writer(f"r{n}") for n in range(4)]), st.integers(0, 5)).map(Heads)


@given(heads, heads, heads)
def test_join_commutes_associates_and_is_idempotent(a, b, c):
    assert a.join(b) == b.join(a)
    assert a.join(b).join(c) == a.join(b.join(c))
    assert a.join(a) == a == a.join(Heads())


@given(heads, heads, heads)
def test_meet_is_the_dual_of_join(a, b, c):
    assert a.meet(b) == b.meet(a)
    assert a.meet(b).meet(c) == a.meet(b.meet(c))
    assert a.meet(a.join(b)) == a == a.join(a.meet(b))


@given(heads, heads)
def test_covers_is_the_order_of_the_lattice(a, b):
    assert a.covers(b) == (a.join(b) == a) == (a.meet(b) == b)
    assert a.join(b).covers(a)
    assert a.covers(a.meet(b))
    assert (a.covers(b) and b.covers(a)) == (a == b)
    if a == b:
        assert hash(a) == hash(b)


@given(heads, heads)
def test_filling_what_is_lacking_gives_the_join(a, b):
    spans = a.lacking(b)
    filled = a
    for span in spans:
        assert a[span.writer] + 1 == span.first <= span.last == b[span.writer]
        filled = filled.advanced(span.writer, span.last)
    assert filled == a.join(b)
    assert a.join(b).count() - a.count() == sum(span.last - span.first + 1 for span in spans)
    assert (spans == ()) == a.covers(b)


@given(heads)
def test_heads_survive_the_wire(a):
    assert Heads.from_wire(a.to_wire()) == a


@given(heads, heads)
def test_changes_lead_from_one_to_the_other(before, after):
    changed = after.changes(before)
    assert changed == sorted(changed)
    moved = {**dict(before.items()), **dict(changed)}
    assert Heads(moved) == after
    assert all(before[writer] != number for writer, number in changed)


@given(heads, heads)
def test_joining_in_place_is_joining(a, b):
    running = RunningHeads()
    running.join(a)
    moved = running.join(b)
    assert running.frozen() == a.join(b)
    assert sorted(moved) == [span.writer for span in a.lacking(b)]
