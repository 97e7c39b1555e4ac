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
    """Immutable: a change makes another one. Replicas that have applied the same commits hold equal ones."""

    version: int
    epoch: int
    states: Mapping[RegionId, MemberState]
    forgotten: Mapping[RegionId, Forgotten] = field(default_factory=dict)

    @classmethod
    def founding(cls, members: Iterable[RegionId]) -> Membership:
        return cls(FOUNDING_VERSION, 0, dict.fromkeys(sorted(members), MemberState.MEMBER))

    @cached_property
    def voters(self) -> tuple[RegionId, ...]:
        """Whose majority decides, sorted."""
        return self._in(MemberState.MEMBER)

    @property
    def majority(self) -> int:
        """How many of `voters` it takes: any two such sets share a member."""
        return len(self.voters) // 2 + 1

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

    def is_member(self, region: str) -> bool:
        """Whether it is a member in full: it writes, votes and owns."""
        return self.states.get(RegionId(region)) is MemberState.MEMBER

    def others(self, me: RegionId) -> tuple[RegionId, ...]:
        """The owners but for `me`: whose silence is judged, and who may be offered work."""
        return tuple(region for region in self.owners if region != me)

    def _in(self, *states: MemberState) -> tuple[RegionId, ...]:
        return tuple(sorted(region for region, state in self.states.items() if state in states))
