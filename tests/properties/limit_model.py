"""Small worlds in which regions share one global limit: every rule about rights, and a way to weaken each.

Written before the code and apart from it: a region's view is reckoned here from the logs that it knows, prefix by prefix.
`world.fold` hands the same logs to `coordination.limits`, which has to come to the same sums.

What may happen: operators set the limit anywhere, the minter mints, holders burn, pass on, start and end; anything durable
is synced one way, whole or in part; nodes crash and lose what was not durable; disks go back to an old copy; members answer
what they know of a node's past. What must hold, after every step:

- the rights that regions may use now and those in use, summed up over all regions, never exceed the largest amount that
  anybody has set: nobody needs to know who is connected to whom;
- at rest, once everybody has told everything, the rights are exactly the limit that was set last: none leaked.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from crdtsync.coordination.limits import Limit
from crdtsync.events import LimitSet, RightsBurned, RightsMinted, RightsMoved
from crdtsync.identifiers import EventId, RegionId, WriterId, writer_id
from crdtsync.scheduling.placement import rendezvous_order

NAMES = ("eu", "us", "ap")
MINTER = 0

Writer: TypeAlias = tuple[int, int]  # region, incarnation
Heads: TypeAlias = dict[Writer, int]


def _limit_that(first: str, names: tuple[str, ...]) -> bytes:
    """An id for whose rights `first` is the minter."""
    ids = (number.to_bytes(16, "big") for number in range(1_000))
    return next(id for id in ids if rendezvous_order(id, [RegionId(n) for n in names])[0] == first)


class BrokenLimitError(AssertionError):
    pass


class Fact(NamedTuple):
    what: str  # set, mint, move, burn, start, end
    amount: int = 0
    to: Writer = (0, 0)
    stamp: int = 0


class Sums(NamedTuple):
    """What a region reckons from the logs it knows."""

    target: int
    minted: int
    burned: int
    held: tuple[int, ...]
    fresh: int  # given to this very incarnation
    running: int  # of this region
    young: int  # of them, started by this incarnation

    @property
    def outstanding(self) -> int:
        return self.minted - self.burned


@dataclass
class Node:
    incarnation: int = 0
    known: Heads = field(default_factory=dict)
    disk: Heads = field(default_factory=dict)
    copy: Heads | None = None
    answered: frozenset[int] = frozenset()
    wanted: Heads = field(default_factory=dict)
    real: int = 0  # handlers that run, whatever is known of them


@dataclass
class World:
    """Three regions unless told otherwise. `weak` names rules that are left out."""

    regions: int = 3
    amounts: tuple[int, ...] = (2, 3)
    weak: str = ""
    restores: bool = True

    def __post_init__(self) -> None:
        self.logs: dict[Writer, list[Fact]] = {(r, 0): [] for r in range(self.regions)}
        others = frozenset(range(self.regions))
        self.nodes = [Node(known={}, answered=others - {r}) for r in range(self.regions)]
        self.stamp = 0
        self.ceiling = 0
        self.limit_id = _limit_that(NAMES[MINTER], NAMES[: self.regions])

    # What a region knows -------------------------------------------------------------------------

    def events(self, heads: Heads) -> Iterator[tuple[Writer, Fact]]:
        for writer, count in heads.items():
            for fact in self.logs[writer][:count]:
                yield writer, fact

    def sums(self, region: int) -> Sums:
        node = self.nodes[region]
        return self._summed(region, node.known)

    def _summed(self, region: int, heads: Heads) -> Sums:
        me = (region, self.nodes[region].incarnation)
        held, fresh, minted, burned, running, young = [0] * self.regions, 0, 0, 0, 0, 0
        sets = []
        for writer, fact in self.events(heads):
            if fact.what == "set":
                sets.append((fact.stamp, fact.amount))
            elif fact.what == "mint":
                minted += fact.amount
                held[writer[0]] += fact.amount
                fresh += fact.amount * (writer == me)
            elif fact.what == "burn":
                burned += fact.amount
                held[writer[0]] -= fact.amount
                fresh -= fact.amount * (writer == me)
            elif fact.what == "move":
                held[writer[0]] -= fact.amount
                held[fact.to[0]] += fact.amount
                to_me = fact.to[0] == region if self.weak == "any move is fresh" else fact.to == me
                fresh += fact.amount * to_me - fact.amount * (writer == me)
            elif writer[0] == region:
                change = 1 if fact.what == "start" else -1
                running += change
                young += change * (writer == me)
        if self.weak == "rights by creation":  # no minting: whoever is first in order holds what the first setting says
            minted = held_first = min(sets)[1] if sets else 0
            held[MINTER] += held_first
        target = max(sets)[1] if sets else 0
        return Sums(target, minted, burned, tuple(held), fresh, running, max(0, young))

    def trusted(self, region: int) -> bool:
        node = self.nodes[region]
        needed = 1 if self.weak == "one answer is enough" else self.regions - 1
        if self.weak == "answers are not waited for":
            return True
        caught_up = all(node.known.get(w, 0) >= n for w, n in node.wanted.items())
        return len(node.answered) >= needed and (caught_up or self.weak == "answers are not caught up with")

    def free(self, region: int) -> int:
        """How many more rights the region may bind now."""
        sums = self.sums(region)
        if self.trusted(region):
            return sums.held[region] - sums.running
        return sums.fresh - sums.young

    # What may happen -----------------------------------------------------------------------------

    def _write(self, region: int, fact: Fact, *, durable: bool = False) -> None:
        node = self.nodes[region]
        writer = (region, node.incarnation)
        log = self.logs[writer]
        log.append(fact)
        node.known[writer] = len(log)
        if durable:
            self.persist(region)

    def persist(self, region: int) -> None:
        self.nodes[region].disk = dict(self.nodes[region].known)

    def set(self, region: int, amount: int) -> None:
        self.stamp += 1
        self.ceiling = max(self.ceiling, amount)
        self._write(region, Fact("set", amount, stamp=self.stamp * 4 + region))

    def may_mint(self, region: int) -> int:
        if self.weak == "rights by creation":
            return 0
        if region != MINTER and self.weak != "anybody mints":
            return 0
        if not self.trusted(region) and self.weak != "mint before the answers":
            return 0
        sums = self.sums(region)
        return max(0, sums.target - sums.outstanding)

    def may_burn(self, region: int) -> int:
        if not self.trusted(region) and self.weak != "burn before the answers":
            return 0
        sums = self.sums(region)
        spare = sums.held[region] - (0 if self.weak == "burn what is used" else sums.running)
        return max(0, min(spare, sums.outstanding - sums.target))

    def may_move(self, region: int) -> int:
        if not self.trusted(region) and self.weak != "give before the answers":
            return 0
        sums = self.sums(region)
        if self.weak == "give what is used":
            return max(0, sums.held[region])
        return max(0, sums.held[region] - sums.running)

    def move(self, giver: int, receiver: int, amount: int) -> None:
        to = (receiver, self.nodes[receiver].incarnation)
        self._write(giver, Fact("move", amount, to))
        if self.weak == "count what is promised":  # the receiver is told, and does not wait for the event
            self._learn(receiver, {(giver, self.nodes[giver].incarnation): len(self.logs[to_writer(self, giver)])})

    def start(self, region: int) -> None:
        self._write(region, Fact("start"), durable=True)
        self.nodes[region].real += 1

    def may_end(self, region: int) -> bool:
        """An attempt ends once: whoever may have forgotten an end touches no older attempt."""
        sums = self.sums(region)
        return (sums.running if self.trusted(region) else sums.young) > 0

    def end(self, region: int) -> None:
        self._write(region, Fact("end"))
        self.nodes[region].real = max(0, self.nodes[region].real - 1)

    def sync(self, source: int, sink: int, share: Callable[[int], int] = lambda n: n) -> None:
        """`sink` learns what is durable at `source`, or a prefix of it."""
        node = self.nodes[source]
        told = node.known if self.weak == "gossip before it is durable" else node.disk
        known = self.nodes[sink].known
        self._learn(sink, {w: max(known.get(w, 0), share(n)) for w, n in told.items()})

    def _learn(self, region: int, heads: Heads) -> None:
        known = self.nodes[region].known
        for writer, count in heads.items():
            known[writer] = max(known.get(writer, 0), count)

    def crash(self, region: int) -> None:
        """Lose what is not durable, and start anew: handlers go on, being elsewhere."""
        node = self.nodes[region]
        own = (region, node.incarnation)
        if self.weak != "gossip before it is durable":
            del self.logs[own][node.disk.get(own, 0) :]  # nobody else has it
        self._restart(region, dict(node.disk))

    def restore(self, region: int) -> None:
        """The disk goes back to an old copy; what ran there is gone with the machine."""
        node = self.nodes[region]
        assert node.copy is not None
        node.real = 0
        self._restart(region, dict(node.copy))

    def _restart(self, region: int, disk: Heads) -> None:
        node = self.nodes[region]
        node.incarnation += 1
        self.logs[region, node.incarnation] = []
        node.known, node.disk = dict(disk), disk
        node.answered, node.wanted = frozenset(), {}

    def answer(self, region: int, member: int) -> None:
        """`member` says what it has of the region's earlier writers, once all of that is on its disk."""
        node, peer = self.nodes[region], self.nodes[member]
        theirs = {w: n for w, n in peer.known.items() if w[0] == region and w[1] != node.incarnation}
        durable = {w: peer.disk.get(w, 0) for w in theirs}
        if theirs != durable and self.weak != "answers before it is durable":
            return
        node.answered |= {member}
        for writer, count in durable.items():
            node.wanted[writer] = max(node.wanted.get(writer, 0), count)

    # What must hold ------------------------------------------------------------------------------

    def check(self) -> None:
        bound = 0
        for region, node in enumerate(self.nodes):
            sums = self.sums(region)
            running = sums.running if self.trusted(region) else sums.young
            bound += max(node.real, running + max(0, self.free(region)))
        if bound > self.ceiling:
            raise BrokenLimitError(f"{bound} rights may be used, {self.ceiling} is the most that was ever set")

    def fold(self, region: int, rng: random.Random) -> Limit:
        """What the real fold makes of the logs that this region knows, in any order that keeps each log's, some twice."""
        queues = {w: self.real_events(w, n) for w, n in self.nodes[region].known.items() if n}
        limit, other = Limit(self.limit_id), Limit(self.limit_id)
        places = dict.fromkeys(queues, 0)
        while places:
            writer = rng.choice(sorted(places))
            id, event = queues[writer][places[writer]]
            limit.fold(id, event)
            if rng.random() < 0.5:
                other.fold(id, event) if rng.random() < 0.7 else limit.join(Limit.from_plain(other.to_plain()))
            if rng.random() < 0.2:
                again = rng.randrange(places[writer] + 1)
                limit.fold(*queues[writer][again])
            places[writer] += 1
            if places[writer] == len(queues[writer]):
                del places[writer]
        return limit

    def real_events(self, writer: Writer, count: int) -> list[tuple[EventId, Any]]:
        found: list[tuple[EventId, Any]] = []
        for number, fact in enumerate(self.logs[writer][:count], 1):
            id = EventId(fact.stamp, real(writer), number, 0)
            if fact.what == "set":
                founders = tuple(sorted(NAMES[: self.regions]))
                event: Any = LimitSet(
                    self.limit_id, "queue:q", "concurrency", "global", fact.amount, 0, "operator", founders
                )
            elif fact.what == "mint":
                event = RightsMinted(self.limit_id, fact.amount, EventId(1, real((0, 0)), 1, 0))
            elif fact.what == "move":
                event = RightsMoved(self.limit_id, real(fact.to), fact.amount)
            elif fact.what == "burn":
                event = RightsBurned(self.limit_id, fact.amount)
            else:
                continue
            found.append((id, event))
        return found or [(EventId(0, real(writer), 1, 0), RightsBurned(self.limit_id, 0))]

    def check_fold(self, region: int, rng: random.Random) -> None:
        sums, limit = self.sums(region), self.fold(region, rng)
        held = tuple(limit.rights(RegionId(name)) for name in NAMES[: self.regions])
        assert held == sums.held
        assert limit.outstanding == sums.outstanding
        assert limit.fresh(real((region, self.nodes[region].incarnation))) == sums.fresh
        assert (limit.latest[1].amount if limit.latest is not None else 0) == sums.target
        if limit.first is not None:
            assert limit.minter() == NAMES[MINTER]

    # At rest -------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Everybody tells everything, whatever ran ends, and nothing more happens."""
        for _ in range(6):
            for region in range(self.regions):
                self.persist(region)
            for source in range(self.regions):
                for sink in range(self.regions):
                    if source != sink:
                        self.answer(sink, source)
                        self.sync(source, sink)
            for region in range(self.regions):
                while self.may_end(region):
                    self.end(region)
                if burned := self.may_burn(region):
                    self._write(region, Fact("burn", burned))
                elif minted := self.may_mint(region):
                    self._write(region, Fact("mint", minted))
            self.check()
        wanted = [item for node in self.nodes for item in node.wanted.items()]
        if any(all(node.known.get(writer, 0) < count for node in self.nodes) for writer, count in wanted):
            return  # two disks went back, and what one waits for was on no other
        sums = self.sums(0)
        if sum(sums.held) != sums.target or min(sums.held) < 0:
            raise BrokenLimitError(f"at rest {sums.held} rights are held, the limit is {sums.target}")


def to_writer(world: World, region: int) -> Writer:
    return (region, world.nodes[region].incarnation)


def real(writer: Writer) -> WriterId:
    region, incarnation = writer
    return writer_id(NAMES[region], "a", incarnation + 1, bytes(8))


def steps(world: World, rng: random.Random) -> list[tuple[float, Callable[[], None]]]:
    """What may happen next, with weights."""
    region = rng.randrange(world.regions)
    other = rng.choice([r for r in range(world.regions) if r != region])
    found: list[tuple[float, Callable[[], None]]] = [
        (3, lambda: world.sync(region, other)),
        (1, lambda: world.sync(region, other, lambda n: rng.randint(0, n))),
        (3, lambda: world.persist(region)),
        (1, lambda: world.answer(region, other)),
        (1, lambda: world.set(region, rng.choice(world.amounts))),
        (0.5, lambda: world.crash(region)),
    ]
    if world.restores:
        node = world.nodes[region]
        found.append((0.5, lambda: setattr(node, "copy", dict(node.disk))))
        if node.copy is not None:
            found.append((1, lambda: world.restore(region)))
    if minted := world.may_mint(region):
        found.append((3, lambda: world._write(region, Fact("mint", minted))))
    if burned := world.may_burn(region):
        found.append((1, lambda: world._write(region, Fact("burn", rng.randint(1, burned)))))
    if movable := world.may_move(region):
        found.append((2, lambda: world.move(region, other, rng.randint(1, movable))))
    if world.free(region) > 0:
        found.append((2, lambda: world.start(region)))
    if world.may_end(region):
        found.append((1, lambda: world.end(region)))
    return found


def wander(world: World, seed: int, length: int = 60) -> None:
    """One history at random; the fold is compared with the model now and then."""
    rng = random.Random(seed)
    world.set(rng.randrange(world.regions), rng.choice(world.amounts))
    for step in range(length):
        choices = steps(world, rng)
        rng.choices([act for _, act in choices], [weight for weight, _ in choices])[0]()
        world.check()
        if not world.weak and step % 10 == 0:
            world.check_fold(rng.randrange(world.regions), rng)
    world.settle()
