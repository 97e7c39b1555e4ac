"""Who belongs to the cluster: a versioned value, and which question to ask it for which purpose.

Membership is no property of the configuration: that only names the founders, for an empty disk. It changes by records in
the log, one region at a time, each decided by a majority of the members before it (rules.md, Membership). Being reachable
plays no part here: a region that is silent for a year is a member until an operator forgets it.

"The members" means different things to different askers, and the differences are where such systems break:

    voters    whose majority decides: leases, changes of membership            member
    owners    over whom rendezvous is computed: who may own and run tasks      member
    counted   whose acknowledgement a commit needs to be stable                member, joining, leaving
    linked    to whom a link is kept                                           member, joining
    known     whose commits are believed at all                                all of these, and the forgotten
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Final

from crdtsync.identifiers import RegionId
from crdtsync.log.heads import Heads
from crdtsync.majority import majority_of

VERSION_BITS: Final = 31  # both halves of `Membership.stamp` stay below
FOUNDING_VERSION: Final = 1  # of the configured founders; 0 is a joiner that has heard of no membership yet


class MemberState(StrEnum):
    MEMBER = "member"  #: Writes, votes, owns and counts.
    JOINING = "joining"  #: Added, not caught up: it reads and acknowledges, and does nothing else yet.
    LEAVING = "leaving"  #: Being forgotten: it counts for stability until all agree on what is left of it.


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A region that left for good."""

    version: int  # of the membership that began to forget it
    final: Heads  # of its writers: up to here its commits are part of the history, whatever else turns up
    stopped: bool = False  # the operator's word that it no longer runs


@dataclass(frozen=True)
class Membership:
    """Immutable: a change makes another one. Replicas that have applied the same commits hold equal ones.

    Attributes:
        states: Of everybody who has one; who left for good is in `forgotten` instead.
        since: The version with which each of these states began.
        urls: Where the regions that were added later are dialled; the founders' stand in the configuration.
        finals: Of leaving regions, once all have answered: the heads to pull up to before they have left for good.
        unanswered: While some are leaving: the voters whose answer is missing.
    """

    version: int
    epoch: int
    states: Mapping[RegionId, MemberState]
    forgotten: Mapping[RegionId, Forgotten] = field(default_factory=dict)
    since: Mapping[RegionId, int] = field(default_factory=dict)
    urls: Mapping[RegionId, str] = field(default_factory=dict)
    finals: Mapping[RegionId, Heads] = field(default_factory=dict)
    unanswered: frozenset[RegionId] = frozenset()

    @classmethod
    def founding(cls, members: Iterable[RegionId]) -> Membership:
        founders = tuple(sorted(members))
        since = dict.fromkeys(founders, FOUNDING_VERSION)
        return cls(FOUNDING_VERSION, 0, dict.fromkeys(founders, MemberState.MEMBER), since=since)

    @classmethod
    def joiner(cls, me: RegionId, seeds: Iterable[RegionId]) -> Membership:
        """What a region that is to be added knows before it has heard from anybody: whom to ask."""
        states = {**dict.fromkeys(sorted(seeds), MemberState.MEMBER), me: MemberState.JOINING}
        return cls(0, 0, states, since=dict.fromkeys(states, 0))

    @property
    def stamp(self) -> int:
        """Epoch and version as one number that grows with every change: what a Hello carries."""
        return self.epoch << VERSION_BITS | self.version

    @cached_property
    def voters(self) -> tuple[RegionId, ...]:
        """Whose majority decides, sorted."""
        return self._in(MemberState.MEMBER)

    @property
    def majority(self) -> int:
        """How many of `voters` it takes: any two such sets share a member."""
        return majority_of(len(self.voters))

    @property
    def owners(self) -> tuple[RegionId, ...]:
        """Who may own and run tasks, sorted: the regions of every rendezvous order."""
        return self.voters

    @cached_property
    def counted(self) -> tuple[RegionId, ...]:
        """Without whose acknowledgement nothing is stable, sorted."""
        return self._in(*MemberState)

    @cached_property
    def linked(self) -> tuple[RegionId, ...]:
        """To whom links are kept, sorted; whoever asks is among them."""
        return self._in(MemberState.MEMBER, MemberState.JOINING)

    @cached_property
    def known(self) -> frozenset[RegionId]:
        """Whose commits are believed: of the forgotten up to their final heads."""
        return frozenset(self.states) | frozenset(self.forgotten)

    @property
    def believed(self) -> frozenset[RegionId]:
        """Whose commits are taken; empty if anybody's: a joiner cannot know yet."""
        return self.known if self.version else frozenset()

    def believes(self, region: RegionId) -> bool:
        return not self.version or region in self.known

    def is_member(self, region: str) -> bool:
        """Whether it is a member in full: it writes, votes and owns."""
        return self.states.get(RegionId(region)) is MemberState.MEMBER

    @cached_property
    def leaving(self) -> tuple[RegionId, ...]:
        return self._in(MemberState.LEAVING)

    @cached_property
    def joining(self) -> tuple[RegionId, ...]:
        return self._in(MemberState.JOINING)

    def has_lost(self, region: str) -> bool:
        """Whether it is being forgotten, or was: nobody keeps a link to it."""
        return self.states.get(RegionId(region)) is MemberState.LEAVING or region in self.forgotten

    def others(self, me: RegionId) -> tuple[RegionId, ...]:
        """The owners but for `me`: whose silence is judged, and who may be offered work."""
        return tuple(region for region in self.owners if region != me)

    def _in(self, *states: MemberState) -> tuple[RegionId, ...]:
        return tuple(sorted(region for region, state in self.states.items() if state in states))
