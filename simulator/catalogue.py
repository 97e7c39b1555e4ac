"""Every kind of fault that a plan can name: what it hits, what it can be told, and what it does.

The list of `verification.md` 5, as far as the core can meet it today. A kind says nothing about how it is done: that
is `faults`, which puts a plan into effect on a world.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Family(StrEnum):
    LINK = "link"
    TOPOLOGY = "topology"
    PROCESS = "process"
    DISK = "disk"
    CLOCK = "clock"
    WORKER = "worker"
    WORKLOAD = "workload"
    MEMBERSHIP = "membership"


class Aim(StrEnum):
    """What the targets of a fault are."""

    #: Links: "eu>us" is one direction, "eu<>us" both, "eu" every link of that region, "*" all.
    LINKS = "links"
    #: Regions by name, or "*" for all.
    REGIONS = "regions"
    #: Workers: a region stands for all of its workers, "eu/1" for the second; "*" for all.
    WORKERS = "workers"


@dataclass(frozen=True, slots=True)
class Param:
    """One setting of a fault: what it is unless given, and between which bounds it makes sense.

    A param whose name ends in `_ms`, `_bytes` or `_ppm` is in that unit; `rate` is a probability.
    `low` and `high` are also what swarm plans are drawn from. `choices` replaces the bounds of a text.
    """

    default: float | str
    low: float = 0
    high: float = 0
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FaultKind:
    """One entry of the catalogue. An `instant` kind happens at its start; its duration must be 0."""

    name: str
    family: Family
    aim: Aim
    text: str
    params: dict[str, Param]
    instant: bool = False
    drawn: bool = True  # among a seed's kinds; else by hand, and in swarms only where a whole seed is about it
    restarts: bool = False  # the node goes down at the start (or at its trigger) and comes back at the end


_RATE: Final = Param(0.1, 0.0, 1.0)
_HOW: Final = Param("black_hole", choices=("black_hole", "reset"))


def _kind(
    name: str,
    aim: Aim,
    text: str,
    *,
    instant: bool = False,
    restarts: bool = False,
    drawn: bool = True,
    **params: Param,
) -> FaultKind:
    family = Family(_FAMILIES.get(name) or name.partition("_")[0])
    return FaultKind(name, family, aim, text, params, instant, drawn, restarts)


_FAMILIES: Final = {
    "isolate": Family.TOPOLOGY,
    "halves": Family.TOPOLOGY,
    "bridge": Family.TOPOLOGY,
    "majorities_ring": Family.TOPOLOGY,
    "flapping": Family.TOPOLOGY,
    "kill": Family.PROCESS,
    "pause": Family.PROCESS,
    "slow": Family.PROCESS,
    "crash_loop": Family.PROCESS,
    "burst": Family.WORKLOAD,
    "duplicate_submits": Family.WORKLOAD,
    "cancel_storm": Family.WORKLOAD,
    "failing": Family.WORKLOAD,
    "poison": Family.WORKLOAD,
    "drain": Family.WORKLOAD,
    "redrive": Family.WORKLOAD,
    "clock_future": Family.CLOCK,
    "reissue": Family.CLOCK,
    "add": Family.MEMBERSHIP,
    "forget": Family.MEMBERSHIP,
}

_KINDS: Final = (
    # Links. Without one of these a link is an ordered stream, as a websocket is.
    _kind("link_delay", Aim.LINKS, "Every frame takes so much longer.", extra_ms=Param(200, 0, 5_000)),
    _kind(
        "link_jitter",
        Aim.LINKS,
        "Every frame takes up to so much longer; order is kept.",
        up_to_ms=Param(200, 0, 5_000),
    ),
    _kind("link_loss", Aim.LINKS, "Frames vanish out of the stream: a broken transport.", rate=_RATE),
    _kind("link_duplicate", Aim.LINKS, "Frames arrive twice: a broken transport.", rate=_RATE),
    _kind(
        "link_reorder",
        Aim.LINKS,
        "Frames overtake one another: a broken transport.",
        rate=_RATE,
        up_to_ms=Param(200, 1, 5_000),
    ),
    _kind("link_garbage", Aim.LINKS, "Frames arrive cut short, as from a broken peer.", rate=Param(0.02, 0.0, 1.0)),
    _kind(
        "link_bandwidth",
        Aim.LINKS,
        "Frames queue for so many bytes a second.",
        per_s_bytes=Param(20_000, 1_000, 10_000_000),
    ),
    _kind("link_clog", Aim.LINKS, "Nothing arrives; at the end everything does, in order (TCP retransmits)."),
    _kind("link_hold", Aim.LINKS, "Nothing arrives; at the end everything does, at once and in random order."),
    _kind("link_one_way", Aim.LINKS, "The first direction named loses everything, the other works."),
    _kind("link_black_hole", Aim.LINKS, "Frames and handshakes vanish in silence; the connection stays open."),
    _kind("link_reset", Aim.LINKS, "The connection is reset; a new one may be dialled at once.", instant=True),
    _kind("link_refuse", Aim.LINKS, "The connection is reset, and new ones are refused."),
    # Topologies: many links at once, `how` they are cut.
    _kind("isolate", Aim.REGIONS, "Each region named is cut off from all others.", how=_HOW),
    _kind("halves", Aim.REGIONS, "The regions named on one side, the rest on the other.", how=_HOW),
    _kind("bridge", Aim.REGIONS, "Two halves that both see the region named, and not each other.", how=_HOW),
    _kind("majorities_ring", Aim.REGIONS, "Each region sees a majority, and no two the same one.", how=_HOW),
    _kind(
        "flapping",
        Aim.LINKS,
        "Links go down and come up again and again.",
        period_ms=Param(2_000, 200, 20_000),
        down=Param(0.5, 0.05, 0.95),
        how=_HOW,
    ),
    # Processes.
    _kind(
        "kill",
        Aim.REGIONS,
        "kill -9, and a restart at the end; what was not yet on disk is lost. `when` waits for an effect of that kind, "
        "the `nth` from the start, and kills before it is carried out (with `side = after`: right after).",
        restarts=True,
        when=Param("now", choices=("now", "persist", "send", "reply", "run", "any")),
        nth=Param(1, 1, 50),
        side=Param("before", choices=("before", "after")),
    ),
    _kind("pause", Aim.REGIONS, "SIGSTOP: nothing is done until the end, then everything at once."),
    _kind(
        "slow", Aim.REGIONS, "Every input takes so much longer, and the next ones queue.", input_ms=Param(20, 1, 500)
    ),
    _kind(
        "crash_loop", Aim.REGIONS, "Killed again and again, up for a moment each.", period_ms=Param(3_000, 500, 20_000)
    ),
    # Disks.
    _kind("disk_drop_tail", Aim.REGIONS, "Power is cut: the batch being written is gone.", restarts=True),
    _kind(
        "disk_torn_tail",
        Aim.REGIONS,
        "Power is cut: the batch being written is torn, and gone or whole.",
        restarts=True,
    ),
    _kind("disk_full", Aim.REGIONS, "Every append is refused."),
    _kind("disk_slow", Aim.REGIONS, "An fsync takes so long.", fsync_ms=Param(300, 1, 5_000)),
    _kind("disk_failing", Aim.REGIONS, "Appends fail at this rate, with nothing written.", rate=Param(0.2, 0.0, 1.0)),
    _kind(
        "disk_lying",
        Aim.REGIONS,
        "Fsyncs return and write nothing; at the end power is cut, and what came since is gone.",
    ),
    _kind(
        "disk_old_copy",
        Aim.REGIONS,
        "A copy is taken at the start; at the end the node is restored from it.",
        told=Param("no", choices=("no", "yes")),
    ),
    _kind("disk_lost", Aim.REGIONS, "The node dies with its disk, and starts empty at the end.", restarts=True),
    _kind(
        "disk_clone",
        Aim.REGIONS,
        "A copy of the disk is started as a second node; at the end it is switched off, and the first restarted.",
    ),
    # Clocks. At the end of a fault the clock is right again, except after a step.
    _kind("clock_offset", Aim.REGIONS, "The wall clock is off by so much.", off_ms=Param(400, -60_000, 60_000)),
    _kind("clock_drift", Aim.REGIONS, "Both clocks run fast or slow.", rate_ppm=Param(200, -500, 500)),
    _kind(
        "clock_future",
        Aim.REGIONS,
        "The machine restarts with its wall clock far in the future, and believes it if nobody is there to tell it.",
        drawn=False,
        by_ms=Param(73 * 365 * 86_400_000, 0, 100 * 365 * 86_400_000),
    ),
    _kind(
        "reissue",
        Aim.REGIONS,
        "An operator has the region re-issue what it stamped far ahead, as soon as its clock is right.",
        instant=True,
        drawn=False,
    ),
    _kind(
        "clock_step",
        Aim.REGIONS,
        "The wall clock jumps, and stays there until the healing.",
        instant=True,
        by_ms=Param(1_000, -3_600_000, 3_600_000),
    ),
    _kind(
        "clock_strobe",
        Aim.REGIONS,
        "The wall clock jumps to and fro.",
        by_ms=Param(300, -10_000, 10_000),
        period_ms=Param(500, 20, 10_000),
    ),
    _kind("clock_frozen", Aim.REGIONS, "The wall clock stands still."),
    # Workers.
    _kind("worker_crash", Aim.WORKERS, "The process dies with its attempts; another starts at the end."),
    _kind("worker_hang", Aim.WORKERS, "Handlers stop getting on, though the worker beats; they go on at the end."),
    _kind("worker_deaf", Aim.WORKERS, "Requests to stop are ignored."),
    _kind("worker_silent", Aim.WORKERS, "Handlers get on, but nothing of it reaches the node until the end."),
    _kind(
        "worker_slow", Aim.WORKERS, "Whatever a handler waits for takes so many times longer.", factor=Param(10, 1, 100)
    ),
    # Workload.
    _kind("burst", Aim.REGIONS, "Arrivals come so many times faster.", factor=Param(20, 1, 100)),
    _kind(
        "duplicate_submits",
        Aim.REGIONS,
        "A share of the submissions is sent again, some of them to another region.",
        rate=_RATE,
        elsewhere=Param(0.5, 0.0, 1.0),
    ),
    _kind(
        "cancel_storm",
        Aim.REGIONS,
        "A share of the tasks is cancelled soon after, at any region.",
        rate=_RATE,
        within_ms=Param(2_000, 0, 30_000),
    ),
    _kind("failing", Aim.REGIONS, "A share of the attempts raises.", rate=Param(0.3, 0.0, 1.0)),
    _kind("poison", Aim.REGIONS, "A share of the attempts kills its worker.", rate=Param(0.02, 0.0, 1.0)),
    _kind("drain", Aim.REGIONS, "An operator drains the region: what waits is offered to others; ended at the end."),
    _kind("redrive", Aim.REGIONS, "An operator requeues all dead tasks that the region knows.", instant=True),
    # Membership: what an operator does with `crdtsync region`. One who is refused asks again, elsewhere, until the end.
    _kind(
        "add",
        Aim.REGIONS,
        "A region that `joins` is started on an empty disk, and another one is asked to add it.",
        drawn=False,
    ),
    _kind(
        "forget",
        Aim.REGIONS,
        "Another region is asked to forget this one, for good. Refused while the two are linked, and without a majority "
        "unless `force` is said, which names all targets at once and asks one region alone.",
        drawn=False,
        stopped=Param("yes", choices=("yes", "no")),
        force=Param("no", choices=("no", "yes")),
    ),
)

CATALOGUE: Final[dict[str, FaultKind]] = {kind.name: kind for kind in _KINDS}
