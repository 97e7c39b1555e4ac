"""What befalls a disk: power cuts, refusals, lies, copies."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from simulator.disk import Store
from simulator.faults.active import BEGIN, ActiveFault, Undo, number_of, regions_of, us_of
from simulator.faults.processes import take_down
from simulator.node import Node

if TYPE_CHECKING:
    from simulator.world import World


def _power_cut(world: World, active: ActiveFault) -> None:
    for node in regions_of(world, active):
        take_down(active, node, power=True)


def _power_cut_torn(world: World, active: ActiveFault) -> None:
    """The write under way reached the platter, whole, or in part, which recovery takes back."""
    for node in regions_of(world, active):
        node.disk.keeps_torn = active.rng.random() < 0.5
        take_down(active, node, power=True)
        node.disk.keeps_torn = False


def _disk(set_up: Callable[[Node, ActiveFault], Undo]) -> Callable[[World, ActiveFault], None]:
    def begin(world: World, active: ActiveFault) -> None:
        for node in regions_of(world, active):
            node.disk.hit = partial(active.hit, node.region)
            undo = set_up(node, active)

            def mend(undo: Undo = undo, node: Node = node) -> None:
                undo()
                node.disk.hit = None

            active.part((node.region,), mend)

    return begin


def _full(node: Node, _active: ActiveFault) -> Undo:
    node.disk.full = True

    def mend() -> None:
        node.disk.full = False

    return mend


def _slow_disk(node: Node, active: ActiveFault) -> Undo:
    node.disk.slow_us = us_of(active, "fsync_ms")

    def mend() -> None:
        node.disk.slow_us = 0

    return mend


def _failing(node: Node, active: ActiveFault) -> Undo:
    node.disk.failing = number_of(active, "rate")

    def mend() -> None:
        node.disk.failing = 0.0

    return mend


def _bounce(world: World, active: ActiveFault, node: Node, *, power: bool, between: Callable[[], None]) -> None:
    """Down, something done to the disk, up again."""
    active.hit(node.region, "restarted")
    node.held_down[active] = None
    node.crash(active.fault.kind, power=power, cause=active.seq)
    between()
    node.held_down.pop(active, None)
    world.kernel.after(0, node.start, active.seq)


def _nothing() -> None:
    pass


def _lying(world: World, active: ActiveFault) -> None:
    for node in regions_of(world, active):
        node.disk.begin_lying()

        def cut(node: Node = node) -> None:
            _bounce(world, active, node, power=True, between=node.disk.end_lying)

        active.part((node.region,), cut)


def _old_copy(world: World, active: ActiveFault) -> None:
    for node in regions_of(world, active):
        copy = node.disk.store.copy()

        def restore(node: Node = node, copy: Store = copy) -> None:
            def put_back() -> None:
                node.lost(node.disk.restore(copy), "restored from an old copy", active.seq)
                node.restored = active.fault["told"] == "yes"

            _bounce(world, active, node, power=False, between=put_back)

        active.part((node.region,), restore)


def _lost_disk(world: World, active: ActiveFault) -> None:
    for node in regions_of(world, active):
        take_down(active, node, power=True)
        node.lost(node.disk.wipe(), "the disk is lost", active.seq)


def _clone(world: World, active: ActiveFault) -> None:
    for node in list(regions_of(world, active)):
        twin = world.add_node(node.region, disk=node.disk.clone(active.rng))
        active.hit(node.region, "cloned")
        twin.start(active.seq)

        def remove(node: Node = node, twin: Node = twin) -> None:
            """The operator does what the alarm says: one of the two stays, and is restarted."""
            twin.held_down[active] = None
            twin.crash("the clone is switched off", cause=active.seq)
            _bounce(world, active, node, power=False, between=_nothing)

        active.part((node.region,), remove)


BEGIN.update(
    {
        "disk_drop_tail": _power_cut,
        "disk_torn_tail": _power_cut_torn,
        "disk_full": _disk(_full),
        "disk_slow": _disk(_slow_disk),
        "disk_failing": _disk(_failing),
        "disk_lying": _lying,
        "disk_old_copy": _old_copy,
        "disk_lost": _lost_disk,
        "disk_clone": _clone,
    }
)
