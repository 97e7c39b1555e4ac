"""What checkers read of a live replica beside its views: its clock and the lengths of its queues. Nothing here writes.

All accesses to private fields are gathered in this file, so that a change of the core meets them in one place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from simulator.clock import EPOCH_US

if TYPE_CHECKING:
    from simulator.node import Node

_NS_PER_MS: Final = 1_000_000
TURN_MAX: Final = 10_000  # tasks that one turn may bring into memory beyond the limit


def true_ms(now_us: int) -> int:
    """What a right wall clock shows."""
    return (EPOCH_US + now_us) // 1_000


def floor(node: Node) -> dict[str, int]:
    """Up to where commits were dropped from a node's log, or are stood for by a snapshot's rows."""
    if node.replica is None:
        return {}
    return dict(node.replica._rows.floor_heads.items())  # noqa: SLF001


def physical_ms(node: Node) -> int:
    """The time by which a node waits, without moving its clock on; its wall clock while it is down."""
    now = node.now
    if node.replica is None:
        return now.wall_ms
    clock = node.replica._here.clock  # noqa: SLF001
    if clock._mono_ms is None:  # noqa: SLF001
        return now.wall_ms
    return now.mono_ms + int(clock._offset_ns) // _NS_PER_MS  # noqa: SLF001


def own_time_ms(node: Node) -> int:
    """The time by which a node judges others' stamps; its wall clock while it is down."""
    return physical_ms(node)


def stamps(node: Node) -> bool:
    """Whether a node writes: one whose clock is off, or was, does not."""
    return node.replica is None or bool(node.replica._here.stamps)  # noqa: SLF001


def repairs(node: Node, writer: str, number: int) -> bool:
    """Whether the node re-issues what it stamped far ahead, this commit among it: the one time at which stamps go back."""
    if node.replica is None:
        return False
    return node.replica._reissuing.pending or node.replica._here.log.released(writer) >= number  # type: ignore[arg-type]  # noqa: SLF001


def refuses(node: Node) -> bool:
    """Whether a node that has begun to write has stopped to, for its clock's sake."""
    return node.replica is not None and node.replica._opened and not node.replica._here.stamps  # noqa: SLF001


def commits_sent(node: Node) -> int:
    """How many commits a node has sent to peers since its start, repetitions included."""
    if node.replica is None:
        return 0
    return node.replica._neighbours.gossip._wire.counters["commits_sent"]  # noqa: SLF001


def queues(node: Node) -> dict[str, tuple[int, int]]:
    """Name -> (length, limit) of whatever may grow in a replica."""
    from crdtsync import replica as core  # noqa: PLC0415 - limits are asked for, not kept
    from crdtsync import settlement  # noqa: PLC0415
    from crdtsync.scheduling import dispatch  # noqa: PLC0415

    replica = node.replica
    if replica is None:
        return {}
    here, settings = replica._here, replica.settings  # noqa: SLF001
    gaps = here.log._gaps  # noqa: SLF001
    limits = here.log.limits
    return {
        "commits that wait for a gap": (gaps.commits, limits.gap_commits_max),
        "bytes that wait for a gap": (gaps.bytes, limits.gap_bytes_max),
        "commands that wait for the log": (len(replica._queue), core.QUEUED_MAX),  # noqa: SLF001
        "tasks in memory": (
            len(here.table),
            settings.live_tasks_max + 4 * settings.ended_kept_max + TURN_MAX,
        ),
        "ids remembered for settlement": (replica._settlement._count, settlement.REMEMBERED_MAX + 1),  # noqa: SLF001
        "ended attempts remembered": (len(replica._dispatcher._ended), dispatch.ENDED_KEPT),  # noqa: SLF001
    }
