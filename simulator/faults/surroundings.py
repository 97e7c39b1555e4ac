"""What goes wrong around a node: its clocks, its workers, its users."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from crdtsync.commands import Drain, Requeue
from crdtsync.task_view import TaskState
from simulator.faults.active import BEGIN, ActiveFault, number_of, regions_of, us_of
from simulator.node import Node

if TYPE_CHECKING:
    from simulator.workers import Worker
    from simulator.world import World


# Clocks ------------------------------------------------------------------------------------------


def _offset(world: World, active: ActiveFault) -> None:
    by_us = us_of(active, "off_ms")
    for node in regions_of(world, active):
        active.hit(node.region, "off")
        node.clock.step(by_us)
        active.part((node.region,), partial(node.clock.step, -by_us))


def _step(world: World, active: ActiveFault) -> None:
    for node in regions_of(world, active):
        active.hit(node.region, "stepped")
        node.clock.step(us_of(active, "by_ms"))


def _drift(world: World, active: ActiveFault) -> None:
    ppm = round(number_of(active, "rate_ppm"))
    for node in regions_of(world, active):
        active.hit(node.region, "drifts")
        before = node.clock.drift_ppm

        def run_at(rate: int, node: Node = node) -> None:
            node.clock.drift(rate, world.kernel.now_us)
            node.rearm()

        run_at(ppm)
        active.part((node.region,), partial(run_at, before))


def _strobe(world: World, active: ActiveFault) -> None:
    for node in regions_of(world, active):
        active.hit(node.region, "strobes")
        node.clock.strobe(us_of(active, "by_ms"), max(1, us_of(active, "period_ms")))
        active.part((node.region,), node.clock.mend)


def _frozen(world: World, active: ActiveFault) -> None:
    for node in regions_of(world, active):
        active.hit(node.region, "frozen")
        node.clock.freeze(world.kernel.now_us)
        active.part((node.region,), node.clock.mend)


# Workers -----------------------------------------------------------------------------------------


def _workers(world: World, active: ActiveFault) -> Iterator[Worker]:
    for worker in world.workers:
        region, _, number = worker.name.rpartition("/")
        for target in active.fault.targets:
            named, _, which = target.partition("/")
            if target == "*" or (named == region and which in ("", number)):
                yield worker
                break


def _worker_crash(world: World, active: ActiveFault) -> None:
    for worker in _workers(world, active):
        if worker.alive:
            active.hit(worker.node.region, "crashed")
        worker.crash("a fault killed it", active.seq)
        active.part((worker.node.region,), partial(worker.start, active.seq))


def _worker_flag(name: str, frees: bool) -> Callable[[World, ActiveFault], None]:
    def begin(world: World, active: ActiveFault) -> None:
        for worker in _workers(world, active):
            setattr(worker, name, True)
            worker.hits.append(hit := partial(active.hit, worker.node.region))

            def mend(worker: Worker = worker, hit: Callable[[str], None] = hit) -> None:
                setattr(worker, name, False)
                worker.hits.remove(hit)
                if frees:
                    worker.free()

            active.part((worker.node.region,), mend)

    return begin


def _worker_slow(world: World, active: ActiveFault) -> None:
    for worker in _workers(world, active):
        worker.slowness = number_of(active, "factor")
        worker.hits.append(hit := partial(active.hit, worker.node.region))

        def mend(worker: Worker = worker, hit: Callable[[str], None] = hit) -> None:
            worker.slowness = 1.0
            worker.hits.remove(hit)

        active.part((worker.node.region,), mend)


# Workload ----------------------------------------------------------------------------------------


def _workload(world: World, active: ActiveFault) -> None:
    for node in regions_of(world, active):
        world.mischief.setdefault((node.region, active.fault.kind), []).append(active)
        active.part((node.region,), partial(world.mischief[node.region, active.fault.kind].remove, active))


def _drain(world: World, active: ActiveFault) -> None:
    for node in regions_of(world, active):
        if node.replica is not None:
            active.hit(node.region, "drained")
        node.input("submit", (Drain(), 0), active.seq)
        active.part((node.region,), partial(node.input, "submit", (Drain(off=True), 0), active.seq))


def _redrive(world: World, active: ActiveFault) -> None:
    for node in regions_of(world, active):
        for task, (view, _) in node.tasks().items():
            if view.state is TaskState.DEAD:
                active.hit(node.region, "requeued")
                world.clients.call("requeue", node.region, Requeue(task), task.hex())


BEGIN.update(
    {
        "clock_offset": _offset,
        "clock_drift": _drift,
        "clock_step": _step,
        "clock_strobe": _strobe,
        "clock_frozen": _frozen,
        "worker_crash": _worker_crash,
        "worker_hang": _worker_flag("hung", frees=True),
        "worker_deaf": _worker_flag("deaf", frees=False),
        "worker_silent": _worker_flag("silent", frees=True),
        "worker_slow": _worker_slow,
        "burst": _workload,
        "duplicate_submits": _workload,
        "cancel_storm": _workload,
        "failing": _workload,
        "poison": _workload,
        "drain": _drain,
        "redrive": _redrive,
    }
)
