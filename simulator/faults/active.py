"""A fault from its start to its end: its parts, whom it meant, and what it really changed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from simulator.node import Node
from simulator.plan import Fault, split_link

if TYPE_CHECKING:
    from simulator.world import World

Undo = Callable[[], None]

#: Kind -> what breaks when a fault of it begins. Filled by the modules beside this one.
BEGIN: Final[dict[str, Callable[[World, ActiveFault], None]]] = {}


class ActiveFault:
    """One fault of the plan, from its start on.

    Attributes:
        id: "f<place in the plan>".
        hits: Region -> how often the fault changed something there.
        seq: Of its `fault.start` record.
    """

    def __init__(self, world: World, place: int, fault: Fault) -> None:
        self.id = f"f{place}"
        self.fault = fault
        self.hits: Counter[str] = Counter()
        self.seq = -1
        self.over = False
        self.rng: random.Random = world.stream("fault", self.id)
        self._world = world
        self._parts: list[tuple[tuple[str, ...], Undo]] = []

    def begin(self) -> None:
        fault, world = self.fault, self._world
        params = tuple(sorted(fault.params.items()))
        self.seq = world.trace.add("fault.start", "", self.id, (fault.kind, fault.targets, params), subject=fault)
        BEGIN[fault.kind](world, self)
        if not fault.spec.instant:
            world.kernel.at(fault.end_ms * 1_000, self.end)
        elif not self._parts:
            self.over = True

    def part(self, regions: tuple[str, ...], undo: Undo) -> None:
        """Something was broken: how to mend it."""
        self._parts.append((regions, undo))

    def end(self, healed: frozenset[str] | None = None) -> None:
        """Mend everything, or what concerns only the regions named."""
        if self.over:
            return
        mine = [part for part in self._parts if healed is None or healed.issuperset(part[0])]
        self._parts = [part for part in self._parts if part not in mine]
        if not self._parts:
            self.over = True
            self._world.trace.add("fault.end", "", self.id, (self.fault.kind,), (self.seq,))
        for _, undo in mine:
            undo()

    def hit(self, region: str, what: str) -> None:
        """The fault changed something in `region`."""
        self.hits[region] += 1
        if self.hits[region] == 1:
            self._world.trace.add("fault.hit", region, self.id, (self.fault.kind, what), (self.seq,))


class Borrowed(ActiveFault):
    """A piece of a fault that comes and goes within it."""

    def __init__(self, world: World, whole: ActiveFault) -> None:
        self._whole = whole
        self.id = whole.id
        self.fault = whole.fault
        self.hits = whole.hits
        self.seq = whole.seq
        self.rng = whole.rng
        self.over = False
        self._world = world
        self._parts = []

    def end(self, healed: frozenset[str] | None = None) -> None:  # noqa: ARG002 - the whole judges
        parts, self._parts = self._parts, []
        for _, undo in parts:
            undo()


# Who is meant --------------------------------------------------------------------------------------


def regions_of(world: World, active: ActiveFault) -> Iterator[Node]:
    targets = active.fault.targets
    for name, node in world.regions.items():
        if "*" in targets or name in targets:
            yield node


def links_of(world: World, active: ActiveFault) -> Iterator[tuple[str, str]]:
    """Directed links, each once, in a fixed order."""
    names = tuple(world.regions)
    meant: dict[tuple[str, str], None] = {}
    for target in active.fault.targets:
        link = split_link(target)
        for a in names:
            for b in names:
                if a == b:
                    continue
                whole = target == "*" or target in (a, b)
                if whole or (link is not None and ((a, b) == link[:2] or (link[2] and (b, a) == link[:2]))):
                    meant[a, b] = None
    yield from meant


def pairs_of(links: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    seen: dict[frozenset[str], None] = {}
    for a, b in links:
        if frozenset((a, b)) not in seen:
            seen[frozenset((a, b))] = None
            yield a, b


def number_of(active: ActiveFault, name: str) -> float:
    return active.fault.number(name)


def us_of(active: ActiveFault, name: str) -> int:
    return round(active.fault.number(name) * 1_000)
