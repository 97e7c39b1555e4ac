"""Regions that come and go: what operators do with `crdtsync region add` and `forget`, and with nothing else."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING, Any, Final

from crdtsync.commands import AddRegion, ForgetRegion
from simulator.faults.active import BEGIN, ActiveFault, regions_of

if TYPE_CHECKING:
    from simulator.result import Operation
    from simulator.world import World

ASK_AGAIN_US: Final = 1_500_000  # after a refusal
LOOK_US: Final = 250_000  # how often it is looked who knows of the change by now
LOOKS_MAX: Final = 240


class _Operator:
    """Asks one region after the other for a change, until one has said that it is decided, or the fault is over."""

    def __init__(self, world: World, active: ActiveFault, op: str, regions: tuple[str, ...], command: Any) -> None:
        self._world = world
        self._active = active
        self._op = op
        self._regions = regions
        self._command = command
        self._over = False
        self._told: set[str] = set()
        core = [name for name in world.scenario.plan.healed or world.scenario.names if name not in regions]
        self._next = cycle(core)
        self._core = len(core)
        for region in regions:
            active.part((region,), self._give_up)

    def _give_up(self) -> None:
        self._over = True

    def ask(self) -> None:
        """Ask whoever is up and counts itself among the members."""
        asked = self._whom()
        if asked is not None:
            self._world.clients.call(self._op, asked, self._command, ",".join(self._regions), then=self._answered)
        elif not self._over:
            self._world.kernel.after(ASK_AGAIN_US, self.ask)

    def _whom(self) -> str | None:
        for _ in range(self._core):
            name = next(self._next)
            node = self._world.regions[name]
            if node.replica is not None and node.membership.is_member(name):
                return name
        return None

    def _answered(self, operation: Operation) -> None:
        node = self._world.regions[operation.region]
        if operation.outcome == "ok":
            self._look(operation.value["epoch"], operation.value["version"], LOOKS_MAX)
        elif node.replica is not None and all(self._is_done(node.membership, region) for region in self._regions):
            self._look(node.membership.epoch, node.membership.version, LOOKS_MAX)
        elif not self._over:
            self._world.kernel.after(ASK_AGAIN_US, self.ask)

    def _is_done(self, membership: Any, region: str) -> bool:
        """Whether an answer that got lost, or somebody else, has brought about what is asked for."""
        return region in membership.linked if self._op == "add" else bool(membership.has_lost(region))

    def _look(self, epoch: int, version: int, left: int) -> None:
        """It is decided: whose membership it has changed by now."""
        names = [name for name in self._world.regions if name not in self._told]
        for name in names:
            node = self._world.regions[name]
            if node.replica is not None and (node.membership.epoch, node.membership.version) >= (epoch, version):
                self._told.add(name)
                self._active.hit(name, "its membership changed")
        if left and len(self._told) < len(self._world.regions):
            self._world.kernel.after(LOOK_US, self._look, epoch, version, left - 1)


def _add(world: World, active: ActiveFault) -> None:
    for node in regions_of(world, active):
        if node.region in world.scenario.founders:
            continue
        if world.arrive(node, active.seq):
            active.hit(node.region, "started")
        _Operator(world, active, "add", (node.region,), AddRegion(node.region, f"ws://{node.region}")).ask()


def _forget(world: World, active: ActiveFault) -> None:
    stopped, force = active.fault["stopped"] == "yes", active.fault["force"] == "yes"
    names = tuple(node.region for node in regions_of(world, active))
    for regions in (names,) if force else tuple((name,) for name in names):
        _Operator(world, active, "forget", regions, ForgetRegion(regions, stopped, force)).ask()


BEGIN.update({"add": _add, "forget": _forget})
