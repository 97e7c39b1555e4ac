"""The half of EXCL-4 that is about changing members: quorums of one membership and of the next have a region in common.

That rests on four things, judged of each change as it is first written down: a majority of the members before it had
accepted it, on disk and under one ballot; no version is decided twice; whoever is added is added while nobody leaves, so
that two memberships that follow one another differ by one region; and the one before has been there for a maximal lease,
so that no lease outlives two changes. An operator's word that a majority is gone (a new epoch) is not judged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from crdtsync import events as ev
from crdtsync.identifiers import EventId
from crdtsync.protocol import codec
from simulator.checkers.chronicle import Chronicle
from simulator.checkers.rolls import Roll
from simulator.trace import Record
from simulator.vacuity import region_of_node

VOTE_BYTES_MAX: Final = 1 << 20
DRIFT: Final = 0.99  # no clock here goes wrong by so much

Ballot = tuple[int, str]


class Configurations:
    """Part of `exclusivity.Exclusivity`.

    Args:
        fail: Reports a violation of EXCL-4.
        judged: Notes that one change was judged, which concerns a region.
    """

    def __init__(
        self,
        chronicle: Chronicle,
        *,
        fail: Callable[[str, Record, object], None],
        judged: Callable[[str, Record], None],
    ) -> None:
        self._chronicle = chronicle
        self._fail = fail
        self._judged = judged
        #: (epoch, version) -> (ballot, value) -> the regions that ever had this on disk as accepted
        self._votes: dict[tuple[int, int], dict[tuple[Ballot, bytes], set[str]]] = {}
        self._first: dict[tuple[int, int], tuple[ev.MembersChanged, int, int]] = {}  # change, when, seq

    def durable(self, record: Record) -> None:
        """What a voter has accepted is on its disk."""
        for key, value in record.subject.meta:
            if key == "synod":
                told: Any = codec.decode(value, bytes_max=VOTE_BYTES_MAX)
                epoch, version, _, _, accepted, by, change = told
                if change:
                    votes = self._votes.setdefault((epoch, version), {})
                    votes.setdefault(((accepted, by), change), set()).add(region_of_node(record.node))

    def commit(self, record: Record) -> None:
        """A commit that may tell of changes."""
        commit = self._chronicle.commits[record.subject.writer, record.subject.number].commit
        for place, event in enumerate(commit.events):
            if type(event) is ev.MembersChanged:
                self._changed(record, EventId(commit.stamp, commit.writer, commit.number, place), event)

    def _changed(self, record: Record, id: EventId, change: ev.MembersChanged) -> None:
        at = (change.epoch, change.version)
        known = self._first.get(at)
        if known is not None:
            if known[0] != change:
                self._fail(
                    f"version {change.version} is decided twice: {_said(known[0])}, and {_said(change)}", record, at
                )
            return
        self._first[at] = (change, record.at_us, record.seq)
        if change.epoch and (change.epoch, change.version - 1) not in self._first:
            return  # an operator's word
        before = self._chronicle.rolls.before(change)
        for region in {record.node: None, **dict.fromkeys(before.voters)}:
            self._judged(region, record)
        self._by_a_majority(record, change, before)
        self._one_at_a_time(record, change, before, self._chronicle.roll_before(id))
        self._in_time(record, change)

    def _by_a_majority(self, record: Record, change: ev.MembersChanged, before: Roll) -> None:
        value = codec.encode(tuple(change))
        votes = self._votes.get((change.epoch, change.version), {})
        said = [regions & set(before.voters) for (_, told), regions in votes.items() if told == value]
        most = max(said, key=len, default=set[str]())
        if len(most) < before.majority:
            self._fail(
                f"{record.node} writes that {_said(change)} by the votes of {', '.join(sorted(most)) or 'nobody'} on "
                f"disk; {', '.join(before.voters)} were to decide",
                record,
                (change.epoch, change.version),
            )

    def _one_at_a_time(self, record: Record, change: ev.MembersChanged, before: Roll, seen: Roll) -> None:
        after = set(before.voters)
        if change.change == "admit":
            after |= set(change.regions)
        elif change.change == "forget":
            after -= set(change.regions)
        union = after | set(before.voters)
        if before.majority + len(after) // 2 + 1 <= len(union):
            self._fail(
                f"{_said(change)}: a majority of {', '.join(before.voters)} and one of {', '.join(sorted(after))} need "
                "not meet",
                record,
                (change.epoch, change.version),
            )
        if change.change == "add" and (seen.leaving or before.joining):
            under_way = ", ".join((*seen.leaving, *before.joining))
            self._fail(
                f"{_said(change)} while {under_way} was changing", record, (change.epoch, change.version, "at a time")
            )

    def _in_time(self, record: Record, change: ev.MembersChanged) -> None:
        earlier = self._first.get((change.epoch, change.version - 1))
        if earlier is None:
            return
        waited_us = record.at_us - earlier[1]
        lease_us = self._chronicle.world.nodes[record.node].settings.lease_ms * 1_000
        if waited_us < lease_us * DRIFT:
            self._fail(
                f"{_said(change)} {waited_us / 1e6:.2f} s after {_said(earlier[0])}: leases of the members before that "
                f"last {lease_us / 1e6:.1f} s",
                record,
                (change.epoch, change.version, "in time"),
            )


def _said(change: ev.MembersChanged) -> str:
    what = {"add": "is added", "admit": "is admitted", "forget": "is forgotten"}[change.change]
    return f"{', '.join(change.regions)} {what} in version {change.version}"


__all__ = ["Configurations"]
