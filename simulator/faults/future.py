"""A machine that comes up in another century, and the operator who repairs what it wrote."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from crdtsync.clock import MAX_SKEW_MS, stamp_ms
from crdtsync.commands import ReissueLog
from crdtsync.identifiers import incarnation_of, node_of
from simulator.checkers.peek import true_ms
from simulator.faults.active import BEGIN, ActiveFault, regions_of, us_of
from simulator.node import Node

if TYPE_CHECKING:
    from simulator.result import Operation
    from simulator.world import World

ASK_AGAIN_US: Final = 1_500_000  # after a refusal: the clock is not right yet, or the answer was lost
ASKED_MAX: Final = 40


def _far_ahead(world: World, active: ActiveFault) -> None:
    """The machine restarts with its wall clock in the future; at the end somebody sets it right, and nothing else."""
    by_us = us_of(active, "by_ms")
    for node in regions_of(world, active):
        active.hit(node.region, "came up in the future")
        node.clock.step(by_us)
        node.crash("the machine restarts", cause=active.seq)
        node.start(active.seq)
        active.part((node.region,), partial(node.clock.step, -by_us))


def _reissue(world: World, active: ActiveFault) -> None:
    for node in regions_of(world, active):
        active.hit(node.region, "re-issues")
        _ask(world, active, node, ASKED_MAX)


def _ask(world: World, active: ActiveFault, node: Node, left: int) -> None:
    """Ask for all that is ahead on the node's disk, until it was done."""
    limit_ms = true_ms(world.kernel.now_us) + MAX_SKEW_MS
    log = None if node.replica is None else node.replica._here.log  # noqa: SLF001 - as `clock show` tells
    ahead = [
        (incarnation_of(writer), number, writer)
        for (_, writer, number), row in node.disk.store.commits.items()
        if node_of(writer) == node_of(f"{node.region}/{node.settings.node}#")
        and stamp_ms(row.stamp) > limit_ms
        and (log is None or log.released(writer) < number)
    ]
    if not ahead or not left:
        return

    def answered(_: Operation) -> None:
        world.kernel.after(ASK_AGAIN_US, _ask, world, active, node, left - 1)  # until nothing is left to ask for

    _, first, writer = min(ahead)
    world.clients.call("reissue", node.region, ReissueLog(writer, first), writer, then=answered)


BEGIN.update({"clock_future": _far_ahead, "reissue": _reissue})
