"""Sites that write, hear of each other in any order, and change who belongs: what rules.md argues, driven to its ends.

Each site is the real log, the real stability and the real fold of the membership, without a network, a clock or tasks.
That one change is decided per version is taken for granted here (`test_synod_laws` shows it): the model has one ledger.
What must hold is said in `check_*`; `weak` names a rule that is left out, to show that it is missed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from crdtsync.coordination.membership import Membership, MemberState
from crdtsync.coordination.roster import Roster
from crdtsync.events import FinalHeads, MembersChanged, WriterOpened
from crdtsync.identifiers import DEFAULT_DOMAIN, EventId, RegionId, WriterId, region_of, writer_id
from crdtsync.log.domain_log import DomainLog
from crdtsync.log.heads import Heads
from crdtsync.log.stability import Ack, Stability

#: Rules that can be left out, and what happens then. Two more of rules.md follow from the rest, and are kept all the same:
#: that a joiner waits for everybody's acknowledgement (who wrote the record that adds it is a member itself, and what it
#: acknowledged before is in the record's past), and that a forgotten region's last commits are applied before it has left
#: (each answer rests on what it names).
WEAKENINGS = {
    "no cap": "a region that has answered goes on applying what it gets of the leaving one",
    "no lift": "what a remaining member rests on is not applied beyond one's own answer",
    "first answer": "the first answer is final",
    "any version": "answers of different versions are put together",
    "drop at once": "a leaving region does not count for stability",
}


STEPS = ("write", "write", "sync", "sync", "sync", "sync", "sync", "ack", "ack", "change", "finish", "admit")


class BrokenError(AssertionError):
    """An invariant of the model."""


@dataclass
class Site:
    world: World
    region: RegionId
    joining: bool = False
    acks: dict[RegionId, Ack] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.writer = writer_id(self.region, "a", 1, bytes(8))
        self.log = DomainLog(DEFAULT_DOMAIN, self.writer)
        self.roster = WeakRoster(self.region, self.world.founders, joining=self.joining, weak=self.world.weak)
        if self.world.weak == "no lift":
            self.log.caps.lift = lambda writer, number: False  # type: ignore[method-assign]
        self.membership: Membership = self.roster.fold(Heads())
        self.stability = Stability(self.membership.counted)
        self.blobs: dict[tuple[WriterId, int], bytes] = {}
        self.record: EventId | None = None  # that added this region

    # What it writes ----------------------------------------------------------------------------

    @property
    def is_member(self) -> bool:
        return self.membership.is_member(self.region)

    def write(self, event: WriterOpened | MembersChanged | FinalHeads) -> None:
        self.world.stamp += 1
        stamp = self.world.stamp << 16
        commit = self.log.append([event], stamp)
        key = (commit.writer, commit.number)
        self.blobs[key] = commit.blob
        self.world.past[key] = self.log.applied
        if isinstance(event, MembersChanged | FinalHeads):
            self.roster.add(EventId(stamp, self.writer, commit.number, 0), event)
        self.log.mark_durable(self.log.have, self.log.applied)
        self.reform()

    # What it hears -----------------------------------------------------------------------------

    def hear(self, blobs: list[bytes]) -> None:
        for blob in blobs:
            for commit in self.log.receive(blob, self.world.wall_ms).commits:
                self.blobs[commit.writer, commit.number] = commit.blob
        self.apply()

    def apply(self) -> None:
        while (commit := self.log.next_applicable(self.world.wall_ms)) is not None:
            self.world.check_not_concurrent_to_stable(self, commit.writer, commit.number)
            for index, event in enumerate(commit.events):
                if isinstance(event, MembersChanged | FinalHeads):
                    event_id = EventId(commit.stamp, commit.writer, commit.number, index)
                    self.roster.add(event_id, event)
                    if isinstance(event, MembersChanged) and event.change == "add" and self.region in event.regions:
                        self.record = event_id if self.record is None else min(self.record, event_id)
            self.log.mark_applied(commit)
            self.log.mark_durable(self.log.have, self.log.applied)
            self.reform()
        self.log.mark_durable(self.log.have, self.log.applied)

    def reform(self) -> None:
        """What follows from what is applied by now: as `coordination.assembly` does it."""
        before, weak = self.membership, self.world.weak
        applied = self.log.applied
        self.membership = now = self.roster.fold(applied)
        for region, state in now.states.items():
            if state is not MemberState.LEAVING:
                continue
            if region in now.finals:
                self.log.restrain(region, now.finals[region], final=True)
            elif weak != "no cap" and (before.stamp < now.stamp or not self.log.caps.holds(region)):
                self.log.restrain(region, applied, final=False)
        for region, forgotten in now.forgotten.items():
            self.log.restrain(region, forgotten.final, final=True)
        counted = set(now.counted) - (set(now.leaving) if weak == "drop at once" else set())
        if set(before.counted) != counted:
            self.stability.set_members(counted)
        self.stability.advance(applied)
        if self.region in now.unanswered and not self.roster.has_answered(self.region, now):
            heads = tuple((w, n) for w, n in applied.items() if region_of(w) in now.leaving)
            self.write(FinalHeads(now.epoch, now.version, heads))

    def ack(self) -> Ack:
        return Ack(self.region, self.writer, self.log.durable_have[self.writer], self.log.durable_applied)

    def offer(self, ack: Ack) -> None:
        known = self.acks.get(ack.member)
        if known is None or ack.is_later_than(known):
            self.acks[ack.member] = ack
        self.stability.offer(ack, 0)
        self.stability.advance(self.log.applied)

    def may_be_admitted(self) -> bool:
        """rules.md, Join."""
        if self.membership.states.get(self.region) is not MemberState.JOINING or self.record is None:
            return False
        told = [self.acks.get(member) for member in self.membership.voters]
        given = [ack for ack in told if ack is not None and ack.heads.has(self.record.writer, self.record.number)]
        return len(given) == len(told) and all(self.log.applied.covers(ack.heads) for ack in given)


class WeakRoster(Roster):
    """The fold without one of its rules."""

    def __init__(self, me: RegionId, seeds: tuple[RegionId, ...], *, joining: bool, weak: str) -> None:
        super().__init__(me, seeds, joining=joining)
        self.weak = weak

    def _finish(
        self, change: MembersChanged, states: dict[RegionId, MemberState], finals: dict[RegionId, Heads]
    ) -> None:
        known = self._answers
        at = (change.epoch, change.version)
        told = dict(known.get(at, {}))
        if self.weak == "first answer" and told:
            first = min(told)
            told = dict.fromkeys(self._voters(states), told[first])
        elif self.weak == "any version":
            for version in sorted(known):
                told = {**known[version], **told} if version <= at else told
        self._answers = {**known, at: told}
        super()._finish(change, states, finals)
        self._answers = known


class World:
    """All sites, and the ledger of what was decided."""

    def __init__(self, rng: random.Random, founders: tuple[str, ...], joiners: tuple[str, ...], weak: str = "") -> None:
        self.rng = rng
        self.weak = weak
        self.stamp = 0
        self.wall_ms = 1 << 40
        self.founders = tuple(map(RegionId, founders))
        self.past: dict[tuple[WriterId, int], Heads] = {}
        self.decided: dict[tuple[int, int], tuple[str, tuple[RegionId, ...]]] = {}
        self.sites = {RegionId(name): Site(self, RegionId(name), name in joiners) for name in (*founders, *joiners)}
        self.writers = [site.writer for site in self.sites.values()]
        self.dead: set[RegionId] = set()
        self.joiners = set(joiners)

    # Steps -------------------------------------------------------------------------------------

    def step(self) -> None:
        rng = self.rng
        site = rng.choice([site for name, site in self.sites.items() if name not in self.dead])
        match rng.choice(STEPS):
            case "write":
                if site.is_member:
                    site.write(WriterOpened("", 0, 0))
            case "sync":
                self.sync(site, self.sites[rng.choice(sorted(self.sites))], rng.choice([None, *self.writers]))
            case "ack":
                self.pass_acks(site, self.sites[rng.choice(sorted(self.sites))])
            case "change":
                self.propose(site)
            case "finish":
                self.finish(site)
            case "admit":
                if site.may_be_admitted():
                    self.decide(site, "admit", (site.region,))

    def linked(self, one: Site, other: Site) -> bool:
        """Whether either refuses the other. The dead still have a disk, and what they sent may arrive late."""
        if one is other or one.membership.has_lost(other.region) or other.membership.has_lost(one.region):
            return False
        return other.region in one.membership.states and one.region in other.membership.states

    def sync(self, to: Site, source: Site, writer: WriterId | None) -> None:
        """`to` gets what `source` has stored: everything, or one writer's, in any order."""
        if not self.linked(to, source):
            return
        blobs = [blob for (w, _), blob in sorted(source.blobs.items()) if writer in (None, w)]
        held = source.log.durable_have
        kept = [blob for (w, n), blob in source.blobs.items() if held.has(w, n)]
        to.hear([blob for blob in blobs if blob in kept])

    def pass_acks(self, to: Site, source: Site) -> None:
        if self.linked(to, source):
            for ack in [source.ack(), *source.acks.values()]:
                if ack.member != to.region:
                    to.offer(ack)
            to.offer(to.ack())

    def propose(self, site: Site) -> None:
        now = site.membership
        if not site.is_member:
            return
        others = [r for r in now.voters if r != site.region]
        strangers = sorted(r for r in self.joiners if r not in now.known)
        if strangers and not now.joining and not now.leaving:
            if self.rng.random() < 0.6:
                self.decide(site, "add", (RegionId(strangers[0]),))
                return
        if not now.joining and len(others) > 1 - bool(now.leaving):
            gone = self.rng.choice(others)
            if self.decide(site, "forget", (gone,)) and self.rng.random() < 0.7:
                self.dead.add(gone)

    def decide(self, site: Site, change: str, regions: tuple[RegionId, ...]) -> bool:
        now = site.membership
        if (now.epoch, now.version + 1) in self.decided:
            return False
        self.decided[now.epoch, now.version + 1] = (change, regions)
        self.record(site)
        return True

    def finish(self, site: Site) -> None:
        """Somebody else tells of a decision too: equal records merge."""
        now = site.membership
        made = self.decided.get((now.epoch, now.version + 1))
        if made is None or not site.is_member or (made[0] == "add" and now.leaving):
            return
        self.record(site)

    def record(self, site: Site) -> None:
        now = site.membership
        change, regions = self.decided[now.epoch, now.version + 1]
        founders = site.roster.founders
        site.write(MembersChanged(now.epoch, now.version + 1, founders, change, regions, "", False))

    # What must hold ----------------------------------------------------------------------------

    def check_not_concurrent_to_stable(self, site: Site, writer: WriterId, number: int) -> None:
        stable = site.stability.stable()
        if not self.past[writer, number].covers(stable):
            raise BrokenError(
                f"{site.region} applies {writer}:{number}, which had not seen all that was stable: {stable}"
            )

    def rest(self) -> None:
        """Everybody who was not forgotten meets everybody, until nothing changes."""
        newest = max(self.sites.values(), key=lambda site: site.membership.stamp).membership
        left = [site for name, site in self.sites.items() if name in newest.states and not newest.has_lost(name)]
        for _ in range(12):
            for one in left:
                for other in left:
                    self.sync(one, other, None)
                    self.pass_acks(one, other)
                one.offer(one.ack())
                self.finish(one)
                if one.may_be_admitted():
                    self.decide(one, "admit", (one.region,))
        self.check_at_rest(left)

    def check_at_rest(self, left: list[Site]) -> None:
        first = left[0]
        for site in left:
            if site.membership != first.membership:
                raise BrokenError(f"{site.region} holds {site.membership}, {first.region} {first.membership}")
            if site.log.applied != first.log.applied:
                raise BrokenError(f"{site.region} applied {site.log.applied}, {first.region} {first.log.applied}")
            if site.membership.leaving or site.membership.joining:
                raise BrokenError(f"nothing ends: {site.membership}")
            for region, forgotten in site.membership.forgotten.items():
                beyond = [(w, n) for w, n in site.log.applied.items() if region_of(w) == region]
                if Heads(dict(beyond)) != forgotten.final:
                    raise BrokenError(f"{site.region} applied {beyond} of {region}, whose end is {forgotten.final}")
            if site.stability.stable() != site.log.applied:
                raise BrokenError(f"{site.region}: {site.stability.stable()} is stable of {site.log.applied}")


def play(seed: int, weak: str = "", steps: int = 90) -> World:
    """One random history, and the rest after it. Raises BrokenError."""
    rng = random.Random(seed)
    founders = rng.choice((("eu", "us", "ap"), ("eu", "us", "ap"), ("eu", "us", "ap", "sa"), ("eu", "us")))
    world = World(rng, founders, rng.choice(((), ("za",), ("na", "za"))), weak)
    for _ in range(rng.randint(10, steps)):
        world.step()
    world.rest()
    return world
