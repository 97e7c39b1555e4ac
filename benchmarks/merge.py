"""`merge`: five writers wrote apart for a long time; a replica that has none of it takes all of it in.

100 events a commit, five a task (submitted, claimed, an effect, a checkpoint, ended), the chain of hashes verified. In
steps, so that one sees what each costs: decoding alone; the log (chain, order, dependencies); the fold into facts;
resolving all tasks, with the digest; and a whole replica, which also packs rows, settles and answers for it.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from benchmarks.core import Core, in_fresh_process, memory_mb, settings_of
from benchmarks.measure import DATA, Figure, calibrate, figure, machine_facts
from benchmarks.report import Report, Table
from crdtsync.clock import make_stamp
from crdtsync.events import Checkpointed, Claimed, EffectRecorded, Ended, LabelEdited, Options, Submitted, TaskEvent
from crdtsync.identifiers import DEFAULT_DOMAIN, EventId, RegionId, TaskId, WriterId, derived_id, writer_id
from crdtsync.log.commit import decode_commit
from crdtsync.log.domain_log import DomainLog
from crdtsync.log.verdicts import LogLimits, Verdict
from crdtsync.tasks import TaskTable
from regions.driver import clock
from regions.storage.memory import MemoryStore

WRITERS: Final = 5
EVENTS_PER_COMMIT: Final = 100
EVENTS_PER_TASK: Final = 5
COMMITS_PER_FRAME: Final = 10
BEGUN_MS: Final = 1_735_689_600_000  # long ago, and always the same: so are the bytes and the digest
LATE_TASKS: Final = (1, 10_000)
GAP_LIMITS: Final = LogLimits(
    gap_commits_max=1_000_000, gap_bytes_max=1 << 40, waiting_bytes_max=1 << 40
)  # nothing is dropped when shuffled
OPTIONS: Final = Options("takeover", 10, 5, 1_000, 60_000, 2_000, "loses", "", 0, 60_000, 86_400_000, ())


class History(NamedTuple):
    """What the writers wrote, commit by commit."""

    blobs: dict[RegionId, list[bytes]]
    events: int
    tasks: list[TaskId]

    @property
    def bytes(self) -> int:
        return sum(len(blob) for blobs in self.blobs.values() for blob in blobs)


def regions() -> list[RegionId]:
    return [RegionId(f"r{number}") for number in range(WRITERS)]


def history(events_per_writer: int, *, seed: int = 1) -> History:
    """The same history for the same arguments. Each writer works on tasks of its own region."""
    chance = random.Random(seed)
    blobs: dict[RegionId, list[bytes]] = {}
    tasks: list[TaskId] = []
    for region in regions():
        writer = writer_id(region, "a", 1, chance.randbytes(8))
        log = DomainLog(DEFAULT_DOMAIN, writer)
        blobs[region] = written = []
        for number in range(1, max(1, events_per_writer // EVENTS_PER_COMMIT) + 1):
            stamp = make_stamp(BEGUN_MS + number)
            events: list[TaskEvent] = []
            for _ in range(EVENTS_PER_COMMIT // EVENTS_PER_TASK):
                task = TaskId(chance.randbytes(16))
                tasks.append(task)
                events += task_events(task, region, writer, stamp, number, len(events))
            written.append(log.append(events, stamp).blob)
    return History(blobs, sum(map(len, blobs.values())) * EVENTS_PER_COMMIT, tasks)


def task_events(
    task: TaskId, region: RegionId, writer: WriterId, stamp: int, number: int, index: int
) -> tuple[TaskEvent, ...]:
    """One task's whole life in one commit, its first event at `index`."""
    submission, attempt = (EventId(stamp, writer, number, index + i) for i in (0, 1))
    return (
        Submitted(task, "charge", b"\x82\x81\x19\x07\xcf\xa0", region, "default", 5, 0, 0, "", 0, (), (), None, None,
                  OPTIONS),
        Claimed(task, 0, submission, None, False, (), (), 0),
        EffectRecorded(task, attempt, "charge", derived_id(b"effect", task), b"\x64paid"),
        Checkpointed(task, attempt, 1, b"\x01"),
        Ended(task, attempt, "ok", False, True, "", b"\x64done"),
    )  # fmt: skip


# Orders of arrival ---------------------------------------------------------------------------------


def in_turn(written: History) -> list[bytes]:
    """As a peer with all of it would send it: writers side by side."""
    streams = list(written.blobs.values())
    return [blob for together in zip(*streams, strict=True) for blob in together]


def shuffled(written: History) -> list[bytes]:
    blobs = in_turn(written)
    random.Random(2).shuffle(blobs)
    return blobs


def twice(written: History) -> list[bytes]:
    return [blob for blob in in_turn(written) for _ in range(2)]


# Steps ---------------------------------------------------------------------------------------------


def cpu_of(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def decode_all(blobs: Iterable[bytes]) -> None:
    for blob in blobs:
        decode_commit(blob)


class Merging:
    """A log and a table that take commits in, without a replica around them."""

    def __init__(self) -> None:
        own = writer_id("here", "a", 1, bytes(8))
        self.log = DomainLog(DEFAULT_DOMAIN, own, limits=GAP_LIMITS, members=[RegionId("here"), *regions()])
        self.table = TaskTable(DEFAULT_DOMAIN)

    def receive(self, blobs: Iterable[bytes], *, fold: bool) -> None:
        """Check, keep and apply; a blob that is refused is a fault of ours."""
        wall_ms = clock().wall_ms
        for blob in blobs:
            assert self.log.receive(blob, wall_ms).verdict is not Verdict.REFUSED
            while (commit := self.log.next_applicable(wall_ms)) is not None:
                if fold:
                    for index, event in enumerate(commit.events):
                        self.table.add(commit.event_id(index), event)  # type: ignore[arg-type]
                self.log.mark_applied(commit)

    def resolve(self) -> bytes:
        """Every task anew, and the digest of all."""
        self.table.take_touched()
        return bytes(self.table.digest)


class Taken(NamedTuple):
    """CPU seconds of one run, and what it left."""

    decode_s: float
    log_s: float
    fold_s: float
    resolve_s: float
    memory_mb: float
    digest: bytes


def take_in(blobs: Sequence[bytes]) -> Taken:
    """Steps added up one by one: each includes those before it, but for resolving, which comes after the fold."""
    decode_s = cpu_of(lambda: decode_all(blobs))
    log_s = cpu_of(lambda: Merging().receive(blobs, fold=False))
    before_mb = memory_mb()
    merging = Merging()
    fold_s = cpu_of(lambda: merging.receive(blobs, fold=True))
    resolve_s = cpu_of(merging.resolve)
    return Taken(decode_s, log_s, fold_s, resolve_s, memory_mb() - before_mb, merging.resolve())


def steps(events_per_writer: int, order: str) -> tuple[int, int, Taken]:
    """In a process of its own: events, bytes, and what they cost in this order of arrival."""
    written = history(events_per_writer)
    blobs = {"in turn": in_turn, "shuffled": shuffled, "twice": twice}[order](written)
    return written.events, written.bytes, take_in(blobs)


def late_commit(events_per_writer: int, tasks: int) -> float:
    """Milliseconds for one commit that comes late and touches so many tasks, resolving and digest included."""
    written = history(events_per_writer)
    merging = Merging()
    merging.receive(in_turn(written), fold=True)
    merging.resolve()
    log = DomainLog(DEFAULT_DOMAIN, writer_id("r0", "b", 1, b"a later "))
    touched = written.tasks[: min(tasks, len(written.tasks))]
    stamp = make_stamp(BEGUN_MS + events_per_writer)
    blob = log.append([LabelEdited(task, "seen", "yes", None) for task in touched], stamp).blob

    def late() -> None:
        merging.receive([blob], fold=True)
        merging.resolve()

    return cpu_of(late) * 1_000


def whole_replica(events_per_writer: int) -> tuple[int, float, int]:
    """A replica takes it all from one peer: events, CPU seconds in the core, tasks left in memory."""
    written = history(events_per_writer)

    async def play() -> tuple[float, int]:
        core = Core(MemoryStore(), settings_of("here", ["here", *regions()]))
        await core.start()
        core.core_s = 0.0
        blobs = in_turn(written)
        for begin in range(0, len(blobs), COMMITS_PER_FRAME):
            frame = blobs[begin : begin + COMMITS_PER_FRAME]
            core._in_core(lambda frame=frame: core.replica._intake.arrived(RegionId("r0"), frame, 0))  # type: ignore[misc]
            await core.feed(lambda replica, now: replica.tick(now))
        while core.replica._here.log.applied.count() < len(blobs) + 1:  # with our own first commit
            await core.feed(lambda replica, now: replica.tick(now))
        return core.core_s, len(core.replica._here.table)

    return written.events, *asyncio.run(play())


# The report ----------------------------------------------------------------------------------------


async def run(args: argparse.Namespace) -> Report:
    report = Report("merge", {"writers": WRITERS, "events": args.events, "runs": args.runs}, machine_facts(args.data))
    report.calibrations.append(calibrate(args.data))
    rates = Table(
        "Events a second of CPU",
        ("events a writer, order", "decode", "+ log", "+ fold", "+ resolve, digest", "whole replica",
         "replica / decode", "memory MB"),
    )  # fmt: skip
    for events_per_writer in args.events:
        for order in ("in turn", "shuffled", "twice"):
            runs = [in_fresh_process(steps, events_per_writer, order) for _ in range(args.runs)]
            assert len({taken.digest for _, _, taken in runs}) == 1
            events = runs[0][0]
            whole = None
            share = None
            if order == "in turn":
                replicas = [in_fresh_process(whole_replica, events_per_writer) for _ in range(args.runs)]
                whole = rate(events, [cpu_s for _, cpu_s, _ in replicas])
                share = figure(
                    cpu_s / taken.decode_s for (_, cpu_s, _), (_, _, taken) in zip(replicas, runs, strict=True)
                )
            rates.add(
                f"{events_per_writer:,}, {order}",
                rate(events, [taken.decode_s for _, _, taken in runs]),
                rate(events, [taken.log_s for _, _, taken in runs]),
                rate(events, [taken.fold_s for _, _, taken in runs]),
                rate(events, [taken.fold_s + taken.resolve_s for _, _, taken in runs]),
                whole,
                share,
                figure(taken.memory_mb for _, _, taken in runs),
            )
        report.calibrations.append(calibrate(args.data))
    late = Table(
        "One late commit, ms of CPU until the digest is right again", ("events a writer", *map(str, LATE_TASKS))
    )
    for events_per_writer in args.events:
        late.add(
            f"{events_per_writer:,}",
            *(
                figure(in_fresh_process(late_commit, events_per_writer, tasks) for _ in range(args.runs))
                for tasks in LATE_TASKS
            ),
        )
    rates.notes.append("twice: every commit comes two times; rates count each event once")
    report.tables += [rates, late]
    return report


def rate(events: int, seconds: Sequence[float]) -> Figure | None:
    return figure(events / taken for taken in seconds)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--events", type=int, nargs="+", default=[4_000], help="a writer (4000; --full: 20000 200000)")
    parser.add_argument("--runs", type=int, default=3)
    parser.set_defaults(data=DATA)


def published(args: argparse.Namespace) -> None:
    args.events, args.runs = [20_000], 3


def full(args: argparse.Namespace) -> None:
    args.events = [20_000, 200_000]
