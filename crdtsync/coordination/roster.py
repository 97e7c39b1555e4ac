"""From the log to the membership: all facts about who belongs, and what they come to.

A pure function of the founders and of what is applied, so replicas that have applied the same commits agree on every
state, also on the moment at which a forgotten region has left for good:

- Changes are numbered, each decided once (`synod`). They take effect in the order of their versions. Where an operator
  began a new epoch, its changes take the place of whatever else was decided from its first version on.
- A *forgotten* region is `leaving` until every voter of one and the same version, at or after the one that forgot it, has
  answered with what it applied of it. The join of these answers is final. It has left once all up to there is applied.

Why answers of one version: a voter that answered may still have to apply more of the leaving region, because a member
that has not answered yet did, and went on from it. All answers of a version cover what any of its voters went on from.
If one of these voters is forgotten as well before it answered, the rest answers again, under the new version.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from crdtsync.coordination.membership import FOUNDING_VERSION, Forgotten, Membership, MemberState
from crdtsync.events import KIND_OF, FinalHeads, MembersChanged
from crdtsync.identifiers import EventId, RegionId, WriterId, region_of
from crdtsync.log.heads import Heads
from crdtsync.log.shapes import check_events, checked_writer
from crdtsync.scheduling.placement import rendezvous_order

CHANGES_MAX: Final = 4_096  # of one cluster, ever: each is kept, so that a joiner can be told

_Version = tuple[int, int]  # epoch, version


class Roster:
    """The facts, and their fold.

    Args:
        me: This region.
        seeds: The founders; for a joiner the members that it may ask, which count as such until it knows better.
        joining: Whether this region is to be added by the others, rather than a founder.
    """

    def __init__(self, me: RegionId, seeds: Iterable[RegionId], *, joining: bool = False) -> None:
        self._me = me
        self._seeds = tuple(sorted(seeds))
        self._joining = joining
        self._changes: dict[_Version, tuple[EventId, MembersChanged]] = {}
        self._answers: dict[_Version, dict[RegionId, Heads]] = {}

    def __bool__(self) -> bool:
        """Whether there is anything that the founders alone don't tell."""
        return bool(self._changes)

    def add(self, event_id: EventId, event: MembersChanged | FinalHeads) -> bool:
        """Take note of one applied fact. Whether it was news."""
        at = (event.epoch, event.version)
        if isinstance(event, MembersChanged):
            known = self._changes.get(at)
            if known is not None and known[0] <= event_id:
                return False
            if known is None and len(self._changes) >= CHANGES_MAX:
                return False
            self._changes[at] = (event_id, event)
            return known is None or known[1] != event
        given = self._answers.setdefault(at, {})
        region = region_of(event_id.writer)
        heads = given.get(region, Heads()).join(Heads({WriterId(writer): number for writer, number in event.heads}))
        if given.get(region) == heads:
            return False
        given[region] = heads
        return True

    @property
    def founders(self) -> tuple[RegionId, ...]:
        """As the first change tells them; before there is one, as configured."""
        if not self._changes:
            return self._seeds
        return tuple(RegionId(name) for name in min(self._changes.items())[1][1].founders)

    def has_answered(self, region: RegionId, membership: Membership) -> bool:
        """Whether `region` has said what it applied of the leaving, under this version."""
        return region in self._answers.get((membership.epoch, membership.version), {})

    def change(self, epoch: int, version: int) -> MembersChanged | None:
        """The change that made this version, if it is known."""
        known = self._changes.get((epoch, version))
        return known[1] if known is not None else None

    @property
    def last_change(self) -> EventId | None:
        """The record of the newest version; None while the founders are all there is."""
        return max(self._changes.items())[1][0] if self._changes else None

    @property
    def last_of_owners(self) -> EventId | None:
        """The record of the newest change of who owns and votes; None while those are the founders."""
        changed = (change for change in reversed(self.chain()) if change.change != "add")
        newest = next(changed, None)
        return None if newest is None else self._changes[newest.epoch, newest.version][0]

    def added(self, region: RegionId) -> EventId | None:
        """The record that added this region."""
        found = [at for at, event in self._changes.values() if event.change == "add" and region in event.regions]
        return max(found, default=None)

    def voters_after(self, version: int) -> tuple[RegionId, ...]:
        """Who were members in full at this version, sorted."""
        members = set(self.founders)
        for change in self.chain():
            if change.version <= version and change.change != "add":
                names = set(map(RegionId, change.regions))
                members = members | names if change.change == "admit" else members - names
        return tuple(sorted(members))

    def heir(self, region: RegionId, membership: Membership) -> RegionId | None:
        """To whom falls what one region alone may have, of a region that has left for good: the first in its order of
        those who were members when it was forgotten, whoever asks, and however many have come and gone since.

        One that has left as well, and runs no more, is passed over: what it wrote is known. One that may still run
        keeps what has fallen to it, used or not. None if nobody remains.
        """
        version = membership.forgotten[region].version
        while members := self.voters_after(version):
            left = {m: known for m in members if (known := membership.forgotten.get(m)) is not None and known.stopped}
            for candidate in rendezvous_order(region.encode(), members):
                if candidate not in left:
                    return candidate
            version = max(known.version for known in left.values())
        return None

    def chain(self) -> list[MembersChanged]:
        """The changes that took effect, in order."""
        effective: list[MembersChanged] = []
        below: int | None = None
        for epoch in sorted({epoch for epoch, _ in self._changes}, reverse=True):
            versions = sorted(v for e, v in self._changes if e == epoch and (below is None or v < below))
            if versions:
                below = versions[0]
                effective = [self._changes[epoch, version][1] for version in versions] + effective
        return effective

    def fold(self, applied: Heads) -> Membership:
        """The membership at these applied heads."""
        chain = self.chain()
        if not chain:
            if self._joining:
                return Membership.joiner(self._me, self._seeds)
            return Membership.founding(self._seeds)
        states: dict[RegionId, MemberState] = dict.fromkeys(self.founders, MemberState.MEMBER)
        since: dict[RegionId, int] = dict.fromkeys(self.founders, FOUNDING_VERSION)
        urls: dict[RegionId, str] = {}
        stopped: set[RegionId] = set()
        finals: dict[RegionId, Heads] = {}
        for change in chain:
            for name in change.regions:
                region = RegionId(name)
                since[region] = change.version
                match change.change:
                    case "add":
                        states[region] = MemberState.JOINING
                        urls[region] = change.url
                    case "admit":
                        states[region] = MemberState.MEMBER
                    case "forget":
                        states[region] = MemberState.LEAVING
                        if change.stopped:
                            stopped.add(region)
            self._finish(change, states, finals)
        last = chain[-1]
        forgotten: dict[RegionId, Forgotten] = {}
        for region, final in list(finals.items()):
            if applied.covers(final):
                del states[region], finals[region]
                forgotten[region] = Forgotten(since.pop(region), final, region in stopped)
                urls.pop(region, None)
        unfinished = [r for r, state in states.items() if state is MemberState.LEAVING and r not in finals]
        unanswered = self._voters(states) - set(self._answers.get((last.epoch, last.version), ())) if unfinished else ()
        return Membership(
            version=last.version,
            epoch=last.epoch,
            states=dict(sorted(states.items())),
            forgotten=dict(sorted(forgotten.items())),
            since=since,
            urls=urls,
            finals=finals,
            unanswered=frozenset(unanswered),
        )

    def _finish(
        self, change: MembersChanged, states: dict[RegionId, MemberState], finals: dict[RegionId, Heads]
    ) -> None:
        """At this version: whether all voters have answered, and what is final then."""
        leaving = [r for r, state in states.items() if state is MemberState.LEAVING and r not in finals]
        answers = self._answers.get((change.epoch, change.version), {})
        voters = self._voters(states)
        if not leaving or not voters <= answers.keys():
            return
        joined = Heads()
        for voter in sorted(voters):
            joined = joined.join(answers[voter])
        for region in leaving:
            finals[region] = Heads({w: n for w, n in joined.items() if region_of(w) == region})

    @staticmethod
    def _voters(states: dict[RegionId, MemberState]) -> set[RegionId]:
        return {region for region, state in states.items() if state is MemberState.MEMBER}

    # Disk and snapshots ------------------------------------------------------------------------

    def to_wire(self) -> tuple[Any, ...]:
        """Everything, for a row of meta and for snapshots."""
        changes = tuple((tuple(event_id), tuple(event)) for _, (event_id, event) in sorted(self._changes.items()))
        answers = tuple(
            (*at, tuple((region, heads.to_wire()) for region, heads in sorted(given.items())))
            for at, given in sorted(self._answers.items())
        )
        return changes, answers

    def join(self, plain: Any) -> None:
        """Add what `to_wire` of this or another replica holds. Raises RemoteProtocolError, or ValueError."""
        changes, answers = plain
        events = check_events(tuple((KIND_OF[MembersChanged], *fields) for _, fields in changes))
        for (event_id, _), event in zip(changes, events, strict=True):
            assert isinstance(event, MembersChanged)
            self.add(EventId(*event_id), event)
        for epoch, version, given in answers:
            for region, heads in given:
                known = self._answers.setdefault((int(epoch), int(version)), {})
                told = Heads({checked_writer(w): n for w, n in Heads.from_wire(heads).items()})
                known[RegionId(region)] = known.get(RegionId(region), Heads()).join(told)
