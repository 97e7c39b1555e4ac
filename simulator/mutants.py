"""Planted bugs: does anybody notice? Each is found by a named invariant within a stated number of seeds.

A mutant replaces one function or attribute of the core, from outside and for one run; production code has no switch for
it. `hunt(mutant)` plays seeds of the scenario that gives it a chance, until one of the invariants that it must break is
reported. One that survives is a hole in the checkers or the plans, and a failing test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from crdtsync.errors import CrdtSyncError
from simulator.checkers import Chronicle, all_checkers
from simulator.checkers.convergence import Convergence
from simulator.hunting import GROUNDS
from simulator.result import Violation
from simulator.world import World

if TYPE_CHECKING:
    from simulator.node import Node
    from simulator.result import Checker

SEEDS_MAX: Final = 5  # unless a mutant says otherwise

Plant = Callable[["Patches"], None]
PlantOne = Callable[["Patches", "Node"], None]


class Patches:
    """What was replaced, so that it can be put back."""

    def __init__(self) -> None:
        self._old: list[tuple[Any, str, Any]] = []

    def replace(self, owner: Any, name: str, new: Any) -> Any:
        """Put `new` in the place of an attribute; returns what was there."""
        old = owner.__dict__[name] if isinstance(owner, type) else getattr(owner, name)
        self._old.append((owner, name, old))
        setattr(owner, name, new)
        return old

    def restore(self) -> None:
        while self._old:
            owner, name, old = self._old.pop()
            setattr(owner, name, old)


@dataclass(slots=True)
class Bug:
    """One planted bug; a `Mutant` for the world.

    Attributes:
        text: What is wrong with it.
        invariants: Which violations count as finding it.
        ground: The scenario in which it is hunted (`hunting.GROUNDS`).
        plant: Replaces something for the whole run.
        plant_one: Replaces something of one replica alone: the first region's.
        seeds: Within how many seeds it must be found.
        digest_only: Only state digests are compared: nothing else may be needed to find it.
    """

    name: str
    text: str
    invariants: tuple[str, ...]
    ground: str = "storm"
    plant: Plant | None = None
    plant_one: PlantOne | None = None
    seeds: int = SEEDS_MAX
    digest_only: bool = False
    _patches: Patches = field(default_factory=Patches)

    def install(self, world: World) -> None:  # noqa: ARG002
        if self.plant is not None:
            self.plant(self._patches)

    def on_replica(self, node: Node) -> None:
        if self.plant_one is not None and node.region == self.one(node):
            self.plant_one(self._patches, node)

    @staticmethod
    def one(node: Node) -> str:
        """The region whose replica is altered."""
        return min(node.settings.members)

    def remove(self) -> None:
        self._patches.restore()


class Hunt(NamedTuple):
    """How the search for one mutant went."""

    mutant: str
    found: bool
    seeds: int  # played, the one that found it included
    invariant: str  # that found it, "" if none did
    text: str = ""  # of the violation

    def to_plain(self) -> dict[str, Any]:
        return {"mutant": self.mutant, "found": self.found, "seeds": self.seeds, "invariant": self.invariant}


def hunt(bug: Bug, seeds: Iterable[int] | None = None) -> Hunt:
    """Play seeds until one of the invariants that the bug must break is reported."""
    played = 0
    for seed in range(1, bug.seeds + 1) if seeds is None else seeds:
        played += 1
        world = World(GROUNDS[bug.ground](seed), seed, checkers=_judges(bug), mutants=(bug,), keep=False)
        found = [(violation.invariant, violation.text) for violation in _violations(world)]
        for invariant, text in found:
            if invariant in bug.invariants:
                return Hunt(bug.name, found=True, seeds=played, invariant=invariant, text=text)
    return Hunt(bug.name, found=False, seeds=played, invariant="")


def _violations(world: World) -> list[Violation]:
    """What a run violates; a core that gives up on itself has been found as well."""
    try:
        world.run()
    except (CrdtSyncError, AssertionError) as error:
        return [*world.violations, Violation("CORE-1", 0.0, f"{type(error).__name__}: {error}")]
    return world.violations


def _judges(bug: Bug) -> tuple[Checker, ...]:
    if bug.digest_only:
        chronicle = Chronicle()
        judges: list[Checker] = [chronicle, Convergence(chronicle)]
        return tuple(judges)
    return all_checkers()


@contextmanager
def planted(bug: Bug) -> Iterator[None]:
    """The bug without a world, for tests of the mutants themselves."""
    bug.install(None)  # type: ignore[arg-type]
    try:
        yield
    finally:
        bug.remove()


def hunt_all(on_hunt: Callable[[Hunt], None] | None = None) -> list[Hunt]:
    """Hunt every mutant."""
    from simulator.bugs import BUGS  # noqa: PLC0415 - they import what they break

    hunts = []
    for bug in BUGS:
        found = hunt(bug)
        hunts.append(found)
        if on_hunt is not None:
            on_hunt(found)
    return hunts
