"""Causal stability: which commits every member has applied durably.

Each member acknowledges the heads that it has applied and has on disk. An acknowledgement counts here once we have
applied the giver's own commits up to the point at which it was given, those of its earlier incarnations included: only
then have we seen everything that the giver could have written in ignorance of what it acknowledges. What every member's counting acknowledgement covers is stable:
nothing concurrent to it can still appear.
Wuu and Bernstein, "Efficient solutions to the replicated log and dictionary problems", PODC 1984; we keep one row of
their matrix per member, and count rows late rather than shipping the matrix.

Memory is bounded: per member the heads that count, and the first and latest acknowledgement that do not count yet. The
first is kept because its point is the nearest: a member that writes without pause would otherwise move the goal with
each acknowledgement. The latest is kept because it says most once it counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from crdtsync.errors import RemoteProtocolError
from crdtsync.identifiers import RegionId, WriterId, incarnation_of, is_region, is_writer, region_of
from crdtsync.log.heads import NUMBER_MAX, Heads, RunningHeads


class Ack(NamedTuple):
    """`member` says, when its writer's last commit was `own_number`: all of `heads` is applied and on my disk."""

    member: RegionId
    writer: WriterId  # its incarnation
    own_number: int  # of that writer's last durable commit, 0 before the first
    heads: Heads

    def to_wire(self) -> tuple[Any, ...]:
        return (self.member, self.writer, self.own_number, self.heads.to_wire())

    @classmethod
    def from_wire(cls, plain: Any) -> Ack:
        """Inverse of `to_wire`. Raises RemoteProtocolError."""
        if type(plain) is not tuple or tuple(map(type, plain)) != (str, str, int, tuple):
            raise RemoteProtocolError("an acknowledgement is (member, writer, number, heads)")
        member, writer, own_number, heads = plain
        if not is_region(member) or not is_writer(writer) or region_of(writer) != member:
            raise RemoteProtocolError(f"{writer[:80]!r} cannot acknowledge for {member[:80]!r}")
        if not 0 <= own_number <= NUMBER_MAX:
            raise RemoteProtocolError(f"an acknowledgement cannot be given at {own_number}")
        return cls(RegionId(member), WriterId(writer), own_number, Heads.from_wire(heads))

    def is_later_than(self, other: Ack) -> bool:
        """Whether it was given after `other`, an acknowledgement of the same member."""
        if self.writer != other.writer:
            mine, theirs = incarnation_of(self.writer), incarnation_of(other.writer)
            return (mine, self.writer) > (theirs, other.writer)
        if self.own_number != other.own_number:
            return self.own_number > other.own_number
        return self.heads != other.heads and self.heads.covers(other.heads)


class Heard(NamedTuple):
    ack: Ack
    mono_ms: int  # when it was given, on this node's monotonic clock, as far as its reported age tells


class _Pending(NamedTuple):
    ack: Ack
    own: tuple[tuple[WriterId, int], ...]  # the giver's commits, of every incarnation, that had been written by then

    def counts(self, applied: Heads) -> bool:
        return all(applied.has(writer, number) for writer, number in self.own)


@dataclass(slots=True)
class _Member:
    counting: RunningHeads | None = None  # the join of all acknowledgements that counted; None before the first
    first: _Pending | None = None
    last: _Pending | None = None
    latest: Heard | None = None

    def take_counting(self, applied: Heads) -> Heads | None:
        """The heads of a pending acknowledgement that counts now, which is then no longer pending."""
        if self.last is not None and self.last.counts(applied):
            heads = self.last.ack.heads
            self.first = self.last = None
            return heads
        if self.first is not None and self.first.counts(applied):
            heads = self.first.ack.heads
            self.first = self.last
            return heads
        return None


class Stability:
    """The stable cut among `members`, this region included: its own acknowledgements are offered like any other.

    A cluster of one is therefore stable up to its own durably applied heads at once.
    """

    def __init__(self, members: Iterable[RegionId], applied: Heads | None = None) -> None:
        self._members = {member: _Member() for member in sorted(members)}
        self._applied = applied or Heads()
        self._stable = RunningHeads()

    def set_members(self, members: Iterable[RegionId]) -> None:
        """Membership changed. The stable cut never goes back, whoever joins."""
        self._members = {member: self._members.get(member) or _Member() for member in sorted(members)}
        self._raise(sorted({writer for member in self._members.values() for writer in member.counting or ()}))

    def offer(self, ack: Ack, mono_ms: int) -> bool:
        """Take note of an acknowledgement, heard directly or relayed. Returns whether it was news, worth relaying.

        Args:
            ack: Of a member; anybody else's is ignored.
            mono_ms: When it was given: now, less the age that the relay reported.
        """
        member = self._members.get(ack.member)
        if member is None:
            return False
        if member.latest is not None and not ack.is_later_than(member.latest.ack):
            if ack == member.latest.ack and mono_ms > member.latest.mono_ms:
                member.latest = Heard(ack, mono_ms)
            return False
        member.latest = Heard(ack, mono_ms)
        own = ack.heads.of_region(ack.member)
        own[ack.writer] = max(ack.own_number, own.get(ack.writer, 0))
        member.last = _Pending(ack, tuple(own.items()))
        if member.first is None or member.first.ack.writer != ack.writer:
            member.first = member.last  # what an earlier incarnation waited for may be lost with its disk
        self._settle(member)
        return True

    def advance(self, applied: Heads) -> bool:
        """The applied heads moved. Returns whether the stable cut did."""
        if applied is self._applied:
            return False
        self._applied = applied
        before = self.stable()
        for member in self._members.values():
            if member.last is not None or member.first is not None:
                self._settle(member)
        return self.stable() is not before

    def stable(self) -> Heads:
        """What every member has applied durably, as far as we can know. It never goes back."""
        return self._stable.frozen()

    def missing(self, writer: WriterId, number: int) -> list[RegionId]:
        """The members whose acknowledgement of this commit is missing, or does not count yet."""
        if self._stable.get(writer, 0) >= number:
            return []
        return [
            name
            for name, member in self._members.items()
            if member.counting is None or member.counting.get(writer, 0) < number
        ]

    def latest(self) -> dict[RegionId, Heard]:
        """Each member's newest acknowledgement, counting or not, and when it was given: what is relayed, with its age,
        and what tells a silent member from a dead link."""
        return {name: member.latest for name, member in self._members.items() if member.latest is not None}

    def _settle(self, member: _Member) -> None:
        """Count what counts now. Only writers of whom that tells more can move the cut: to meet all heads of all
        members anew with each acknowledgement took a tenth of a simulated run."""
        heads = member.take_counting(self._applied)
        if heads is None:
            return
        if member.counting is None:
            member.counting = RunningHeads()
        self._raise(member.counting.join(heads))

    def _raise(self, writers: Iterable[WriterId]) -> None:
        """Move the cut up for these writers to the least that every member has."""
        counting: list[RunningHeads] = []
        for member in self._members.values():
            if member.counting is None:
                return
            counting.append(member.counting)
        for writer in writers:
            least = min([heads.get(writer, 0) for heads in counting], default=0)
            if least > self._stable.get(writer, 0):
                self._stable.advance(writer, least)
