"""Where a task belongs: rendezvous hashing over all members (Thaler and Ravishankar, 1998).

Each member scores each task; the order of the scores is the task's *rendezvous order*, alike on
every replica. Who is up plays no part: reachability is judged by whoever asks, so two sides of a
cut agree on the order though not on who is silent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from crdtsync.errors import InvalidRequestError
from crdtsync.identifiers import RegionId, TaskId


def score(task: bytes, region: str) -> int:
    return int.from_bytes(hashlib.blake2b(task + region.encode(), digest_size=8).digest(), "big")


def rendezvous_order(task: bytes, members: Iterable[RegionId]) -> list[RegionId]:
    """All members, best first. Ties cannot be told from luck: names break them."""
    return sorted(members, key=lambda region: (-score(task, region), region))


def owner_of(
    region: str, task: TaskId, *, here: RegionId, members: Sequence[RegionId], keyed: bool, partition: str
) -> RegionId:
    """The owner that the accepting region writes into a submission (rules.md, Owner and Keys).

    Raises:
        InvalidRequestError: `region` is neither "here", "spread" nor a member.
    """
    if region == "spread":
        return rendezvous_order(task, members)[0]
    if region == "here":
        # Two sides of a cut must not both own a keyed task that only its owner may run.
        if keyed and partition == "wait":
            return rendezvous_order(task, members)[0]
        return here
    for member in members:
        if member == region:
            return member
    known = ", ".join(sorted(members))
    raise InvalidRequestError(f"no region is called {region!r}: it is one of {known}, here, or spread")


def may_take_over(
    task: TaskId, owner: RegionId, me: RegionId, members: Sequence[RegionId], silent: frozenset[RegionId]
) -> bool:
    """Whether the owner and every region before me in the task's order are silent to me."""
    if owner == me or owner not in silent:
        return False
    for region in rendezvous_order(task, members):
        if region == me:
            return True
        if region != owner and region not in silent:
            return False
    return False


def next_taker(task: TaskId, me: RegionId, members: Iterable[RegionId], willing: Iterable[RegionId]) -> RegionId | None:
    """The first region in the task's order, other than me, among those willing to take it."""
    ready = set(willing)
    return next((r for r in rendezvous_order(task, members) if r != me and r in ready), None)
