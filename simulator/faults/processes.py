"""What befalls a process: kills at any boundary, pauses, slowness, crash loops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from crdtsync import effects as e
from simulator.faults.active import BEGIN, ActiveFault, number_of, regions_of, us_of
from simulator.node import Node, Trap

if TYPE_CHECKING:
    from simulator.world import World

CRASH_LOOP_UP: Final = 0.3  # share of a crash loop's period in which the node is up
BOUNDARIES: Final[dict[str, type[Any] | None]] = {
    "persist": e.Persist,
    "send": e.Send,
    "reply": e.Reply,
    "run": e.Run,
    "any": None,
}


def take_down(active: ActiveFault, node: Node, *, power: bool = False) -> None:
    """Kill the process and keep it down until the fault ends."""
    if node.replica is not None:
        active.hit(node.region, "killed")
    node.held_down[active] = None
    node.crash(active.fault.kind, power=power, cause=active.seq)

    def restart() -> None:
        node.held_down.pop(active, None)
        node.start(active.seq)

    if active.over:
        restart()
    else:
        active.part((node.region,), restart)


def _kill(world: World, active: ActiveFault) -> None:
    fault = active.fault
    for node in regions_of(world, active):
        if fault["when"] == "now":
            take_down(active, node)
            continue

        def spring(node: Node = node) -> None:
            # The process is in the middle of carrying effects out: none after this one is.
            take_down(active, node)

        trap = Trap(
            BOUNDARIES[str(fault["when"])],
            round(number_of(active, "nth")),
            after=fault["side"] == "after",
            spring=spring,
        )
        node.trap = trap

        def disarm(node: Node = node, trap: Trap = trap) -> None:
            if node.trap is trap and fault.duration_ms:  # without a duration it waits until the healing
                node.trap = None

        active.part((node.region,), disarm)


def _pause(world: World, active: ActiveFault) -> None:
    for node in regions_of(world, active):
        if node.replica is not None:
            active.hit(node.region, "paused")
        node.pause()
        active.part((node.region,), node.resume)


def _slow(world: World, active: ActiveFault) -> None:
    for node in regions_of(world, active):
        active.hit(node.region, "slowed")  # every input from now on
        node.slow_us += us_of(active, "input_ms")

        def hurry(node: Node = node) -> None:
            node.slow_us -= us_of(active, "input_ms")

        active.part((node.region,), hurry)


def _crash_loop(world: World, active: ActiveFault) -> None:
    period_us = us_of(active, "period_ms")
    for node in regions_of(world, active):
        loop = _CrashLoop(world, active, node, period_us)
        active.part((node.region,), loop.end)
        loop.kill()


class _CrashLoop:
    def __init__(self, world: World, active: ActiveFault, node: Node, period_us: int) -> None:
        self._world = world
        self._active = active
        self._node = node
        self._period_us = period_us
        self._over = False

    def kill(self) -> None:
        if self._over:
            return
        self._active.hit(self._node.region, "killed")
        self._node.held_down[self] = None
        self._node.crash("crash loop", cause=self._active.seq)
        self._world.kernel.after(round(self._period_us * (1 - CRASH_LOOP_UP)), self._start)

    def _start(self) -> None:
        self._node.held_down.pop(self, None)
        self._node.start(self._active.seq)
        if not self._over:
            self._world.kernel.after(round(self._period_us * CRASH_LOOP_UP), self.kill)

    def end(self) -> None:
        self._over = True
        self._node.held_down.pop(self, None)
        self._node.start(self._active.seq)


BEGIN.update(
    {
        "kill": _kill,
        "pause": _pause,
        "slow": _slow,
        "crash_loop": _crash_loop,
    }
)
