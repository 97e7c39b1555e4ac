"""A model of close and re-issue (rules.md, "Held back"): small, exhaustive, one task, no code of the core.

Some regions' clocks are far in the future. What they stamp is held back where clocks are right, and applied at once where
they are wrong too. Then clocks are corrected and each region that had been wrong repairs itself: it closes its old writer
and re-issues its own events that are ahead. A re-issued event is the same fact as the void one (same identity), the
smaller stamp counting. What it had applied of others stays applied, though those whose clocks are right hold it back: it
is re-issued by whoever wrote it. (rules.md has it go back to what a right clock lets through; nothing below needs that.)

Late was fixed when an event was written, and stays as it was but for one case: a success that its own region has undone is
re-issued as late, since its effects are gone. (To judge it again, "late if an outcome is known by now", breaks a promise:
others may have undone their own work on the ground of that very success.)

Promises, in every history: replicas that know the same commits show the same outcome, whether they had applied the void
ones or not; no outcome that was settled changes; at rest every event that was written is still known, the winner's
effects stand, and those of every other ended attempt are undone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

FUTURE: Final = 1_000  # what a wrong clock adds to a stamp


class Fact(NamedTuple):
    """One event in one commit. `attempt` is the identity of the attempt that it is about."""

    kind: str  # claim, ok, undo
    attempt: int  # of its claim: the number that the claim was first written under
    region: int
    stamp: int
    late: bool = False
    void: bool = False  # beyond the close of its writer
    again: bool = False  # re-issued


@dataclass(frozen=True)
class Rules:
    """What is weakened to see that it is missed."""

    same_fact: bool = True  # a re-issued event keeps the identity of what it establishes
    undone_is_late: bool = True  # a success whose own region has undone it meanwhile is re-issued as late
    late_judged_again: bool = False  # rules.md's first version: late, if by now an outcome is known
    void_counts_for_stability: bool = False


@dataclass(frozen=True)
class World:
    """Everything that is so at one moment. Regions are numbers."""

    facts: tuple[Fact, ...]
    knows: tuple[frozenset[int], ...]  # per region: places in `facts` that it holds
    wrong: tuple[bool, ...]
    repaired: tuple[bool, ...]
    acks: tuple[frozenset[tuple[int, frozenset[int]]], ...] = ()  # per region: a place, at which point of its own log
    kept: tuple[frozenset[int], ...] = ()  # per region: places that it had applied when it was repaired
    settled: int | None = None  # the attempt that some replica settled on
    events: int = 0

    def applied(self, region: int) -> list[Fact]:
        """What it has folded: all it holds, but for what is held back there and what it knows to be void."""
        found = []
        closed = {f.region for place, f in self._held(region) if f.again}
        for place, fact in self._held(region):
            if fact.void and fact.region in closed:
                continue  # the re-issued one stands for it
            if fact.stamp >= FUTURE and not self.wrong[region] and place not in self.kept[region]:
                continue
            found.append(fact)
        return found

    def _held(self, region: int) -> list[tuple[int, Fact]]:
        return [(place, self.facts[place]) for place in sorted(self.knows[region])]


class BrokenPromiseError(AssertionError):
    """A promise was broken."""


class View(NamedTuple):
    claims: dict[int, tuple[int, int]]  # attempt -> effective stamp with its region
    ended: dict[int, bool]  # attempt -> late
    undone: frozenset[int]

    @property
    def winner(self) -> int | None:
        good = [(self.claims[a], a) for a, late in self.ended.items() if not late and a in self.claims]
        return min(good)[1] if good else None


def resolve(facts: list[Fact]) -> View:
    claims: dict[int, tuple[int, int]] = {}
    ended: dict[int, tuple[int, bool]] = {}
    undone = set()
    for fact in facts:
        at = (fact.stamp, fact.region)
        if fact.kind == "claim":
            claims[fact.attempt] = min(at, claims.get(fact.attempt, at))
        elif fact.kind == "ok":
            ended[fact.attempt] = min((fact.stamp, fact.late), ended.get(fact.attempt, (fact.stamp, fact.late)))
        else:
            undone.add(fact.attempt)
    return View(claims, {a: late for a, (_, late) in ended.items()}, frozenset(undone))


def _with(flags: tuple[bool, ...], place: int, flag: bool) -> tuple[bool, ...]:
    return (*flags[:place], flag, *flags[place + 1 :])


@dataclass
class Explorer:
    rules: Rules
    breaks: tuple[bool, ...]  # whose clock goes wrong at some moment
    events_max: int
    states: int = 0

    def run(self) -> int:
        """Walk every history; returns how many states there are. Raises BrokenPromiseError."""
        regions = len(self.breaks)
        none = (frozenset[int](),) * regions
        right = tuple(not breaks for breaks in self.breaks)
        first = World((), none, (False,) * regions, right, (frozenset(),) * regions, none)
        seen, stack = {first}, [first]
        while stack:
            world = stack.pop()
            self.states += 1
            moves = list(self._moves(world))
            for after in moves:
                if after not in seen:
                    seen.add(after)
                    stack.append(after)
            self._check_rest(world)
        return self.states

    # What may happen -------------------------------------------------------------------------------

    def _moves(self, world: World) -> Iterator[World]:
        for region in range(len(self.breaks)):
            if world.events < self.events_max:
                yield from self._acts(world, region)
            if not world.repaired[region]:
                if world.wrong[region]:
                    yield self._repair(world, region)
                else:
                    yield self._settle(replace(world, wrong=_with(world.wrong, region, True)))
            for other in range(len(self.breaks)):
                if other != region and not world.knows[region] <= world.knows[other]:
                    yield self._settle(self._sync(world, region, other))

    def _acts(self, world: World, region: int) -> Iterator[World]:
        view = resolve(world.applied(region))
        mine = [a for a, (_, by) in view.claims.items() if by == region]
        open_here = [a for a in mine if a not in view.ended]
        if not open_here and view.winner is None:
            yield self._write(world, region, "claim", len(world.facts))
        for attempt in open_here:
            yield self._write(world, region, "ok", attempt, late=view.winner is not None)
        for attempt in self._owed_early(view, mine):
            yield self._write(world, region, "undo", attempt)

    @staticmethod
    def _owed_early(view: View, mine: list[int]) -> list[int]:
        """Own effects of an ended attempt, where a candidate has a smaller claim stamp: permanent, and while tentative."""
        winner = view.winner
        if winner is None:
            return []
        return [a for a in mine if a in view.ended and a not in view.undone and view.claims[winner] < view.claims[a]]

    def _write(self, world: World, region: int, kind: str, attempt: int, *, late: bool = False) -> World:
        stamp = self._stamp(world, region)
        place = len(world.facts)
        facts = (*world.facts, Fact(kind, attempt, region, stamp, late, void=stamp >= FUTURE))
        knows = tuple(k | {place} if r == region else k for r, k in enumerate(world.knows))
        return self._settle(replace(world, facts=facts, knows=knows, events=world.events + 1))

    def _stamp(self, world: World, region: int) -> int:
        """Larger than all it applied. A wrong clock of a lower region is further ahead: order tells nothing.

        A clock that was repaired takes no note of what is still ahead: it would be wrong again.
        """
        seen = max((f.stamp for f in world.applied(region) if world.wrong[region] or f.stamp < FUTURE), default=0)
        least = FUTURE * (len(self.breaks) - region) if world.wrong[region] else 0
        return max(seen, least) + 1

    @staticmethod
    def _sync(world: World, source: int, target: int) -> World:
        knows = list(world.knows)
        knows[target] |= knows[source]
        return replace(world, knows=tuple(knows))

    def _repair(self, world: World, region: int) -> World:
        """The clock is right again: close, and re-issue all of our own, in their order."""
        rules = self.rules
        before = resolve(world.applied(region))
        kept_places = frozenset(self._places(world, region))
        kept_all = tuple(kept_places if r == region else known for r, known in enumerate(world.kept))
        wrong, repaired = _with(world.wrong, region, False), _with(world.repaired, region, True)
        own = [f for _, f in world._held(region) if f.region == region and f.void]
        # Acknowledgements of the old writer stay where they were given before its first void commit; others are void.
        kept = frozenset((p, log) for p, log in world.acks[region] if not any(world.facts[q].void for q in log))
        acks = tuple(kept if r == region else known for r, known in enumerate(world.acks))
        world = replace(world, wrong=wrong, repaired=repaired, acks=acks, kept=kept_all)
        for fact in own:
            now = resolve(world.applied(region))
            late = fact.late
            if fact.kind == "ok":
                if rules.late_judged_again:
                    late = late or now.winner is not None
                if rules.undone_is_late:
                    late = late or fact.attempt in before.undone
            place = len(world.facts)
            attempt = fact.attempt if rules.same_fact or fact.kind != "claim" else place
            stamp = self._stamp(world, region)
            facts = (*world.facts, Fact(fact.kind, attempt, region, stamp, late, again=True))
            knows = tuple(k | {place} if r == region else k for r, k in enumerate(world.knows))
            world = replace(world, facts=facts, knows=knows)
        return self._settle(world)

    # What must hold --------------------------------------------------------------------------------

    def _settle(self, world: World) -> World:
        """Note what each region acknowledges, and which success some region takes for settled.

        A fact is stable to a region when every member has acknowledged it at a point of its own log up to which that
        region has applied the member's commits. Acknowledgements are taken to arrive with those commits: none arrives
        earlier, and one that arrives later settles later.
        """
        applied = [frozenset(place for place in self._places(world, r)) for r in range(len(self.breaks))]
        acks = tuple(
            known | {(place, self._own(world, r)) for place in applied[r] - {place for place, _ in known}}
            for r, known in enumerate(world.acks)
        )
        world = replace(world, acks=acks)
        for region in range(len(self.breaks)):
            winner = resolve(world.applied(region)).winner
            if winner is None or not self._stable(world, winner, applied, region):
                continue
            if world.settled is None:
                world = replace(world, settled=winner)
            elif world.settled != winner:
                raise BrokenPromiseError(f"attempt {world.settled} was settled, and now {winner} is: {world.facts}")
        return world

    @staticmethod
    def _places(world: World, region: int) -> Iterator[int]:
        shown = set(world.applied(region))
        return (place for place in world.knows[region] if world.facts[place] in shown)

    @staticmethod
    def _own(world: World, region: int) -> frozenset[int]:
        """The own log up to now, as the set of its places. That of the new writer rests on the old one up to its close."""
        return frozenset(
            p for p, f in enumerate(world.facts) if f.region == region and not (f.void and world.repaired[region])
        )

    def _stable(self, world: World, winner: int, applied: list[frozenset[int]], region: int) -> bool:
        ends = [p for p in applied[region] if world.facts[p].kind == "ok" and world.facts[p].attempt == winner]
        if not self.rules.void_counts_for_stability:
            ends = [p for p in ends if not world.facts[p].void]

        def acknowledged(member: int, place: int) -> bool:
            own = dict(world.acks[member]).get(place)
            if own is None:
                return False
            if self.rules.void_counts_for_stability:
                own = frozenset(p for p in own if not world.facts[p].void)
            return own <= applied[region]

        return any(all(acknowledged(member, place) for member in range(len(self.breaks))) for place in ends)

    def _check_rest(self, world: World) -> None:
        if not all(world.repaired) or any(k != world.knows[0] for k in world.knows):
            return
        views = [resolve(world.applied(region)) for region in range(len(self.breaks))]
        if any(view != views[0] for view in views):
            raise BrokenPromiseError(f"replicas differ: {views} of {world.facts}")
        view = views[0]
        written = {(f.kind, f.attempt) for f in world.facts if not f.again}
        kept = (
            {("claim", a) for a in view.claims} | {("ok", a) for a in view.ended} | {("undo", a) for a in view.undone}
        )
        if not written <= kept:
            raise BrokenPromiseError(f"lost: {written - kept} of {world.facts}")
        if view.winner is not None and view.winner in view.undone:
            raise BrokenPromiseError(f"the winner {view.winner} was undone: {world.facts}")
        if world.settled is not None and world.settled != view.winner:
            raise BrokenPromiseError(f"settled on {world.settled}, ended on {view.winner}: {world.facts}")
