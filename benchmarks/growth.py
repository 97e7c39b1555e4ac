"""`growth`: what each operation costs in a node that holds ever more tasks, and what a task costs in memory.

One replica with SQLite and no sockets. It is filled, then a few tasks go all the way; the cost of an operation is its CPU
in the core and its time until all that follows from it is durable. Flat or logarithmic is right, linear is a fault.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.core import Core, in_fresh_process, memory_mb, sqlite_core
from benchmarks.measure import DATA, calibrate, figure, machine_facts
from benchmarks.report import Report, Table
from crdtsync import commands as c
from regions.submission import Options, task_spec

FILLER: Final = "parked"  # no worker runs it
PROBE: Final = "probe"
OPERATIONS: Final = ("submit", "claim", "complete", "list", "list filtered", "explain")
PROBES: Final = 50  # of each operation
LISTED: Final = 100
KINDS: Final = ("live", "settled", "waiting on one parent", "delayed", "with a key")
PER_FRAME: Final = 500
LABEL: Final = ("colour", "red")


async def fill(core: Core, count: int, kind: str) -> None:
    """Put `count` tasks of a kind into it."""
    names = [FILLER, PROBE]
    await core.hello(names, 1)  # declares both
    await core.leave()
    parent: bytes | None = None
    if kind == "waiting on one parent":
        [parent] = await core.submit([task_spec(FILLER, ("parent",), {})])
    options = Options()
    if kind == "delayed":
        options = Options(delay=3_600)
    elif parent is not None:
        options = Options(after=[parent])
    for begin in range(0, count, PER_FRAME):
        numbers = range(begin, min(count, begin + PER_FRAME))
        if kind == "with a key":
            await core.submit([task_spec(FILLER, (n,), {}, Options(key=f"order-{n}")) for n in numbers])
        else:
            await core.submit([task_spec(FILLER, (n,), {}, options) for n in numbers])
        if kind == "settled":
            await core.hello([FILLER], PER_FRAME)
            await core.work_off()
            await core.leave()


async def probe(core: Core) -> dict[str, list[tuple[float, float]]]:
    """Each operation by itself: CPU microseconds in the core, and microseconds until all that follows from it is durable."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in OPERATIONS}

    async def timed(operation: str, work: Callable[[], Awaitable[Any]], times: int = 1) -> Any:
        cpu_s, begun = core.core_s, time.perf_counter()
        value = await work()
        taken[operation].append(((core.core_s - cpu_s) * 1e6 / times, (time.perf_counter() - begun) * 1e6 / times))
        return value

    ids = []
    for number in range(PROBES):
        label = {LABEL[0]: LABEL[1]}
        spec = task_spec(PROBE, (number,), {}, Options(labels=label))
        ids += await timed("submit", lambda spec=spec: core.submit([spec]))  # type: ignore[misc]
    for task in ids:
        await timed("explain", lambda task=task: core.ask(c.Explain(task)))  # type: ignore[misc]
    for _ in range(5):
        await timed("list", lambda: core.ask(c.ListTasks(limit=LISTED)))
        await timed("list filtered", lambda: core.ask(c.ListTasks(label=LABEL, limit=LISTED)))
    await core.ask(c.Status())
    await timed("claim", lambda: core.hello([PROBE], PROBES), PROBES)
    for assignment in list(core.assigned):
        await timed("complete", lambda assignment=assignment: core.complete([assignment]))  # type: ignore[misc]
    core.assigned.clear()
    return taken


def measure(kind: str, count: int, data: str) -> tuple[dict[str, list[tuple[float, float]]], float, float]:
    """In a process of its own: the probes, bytes of memory per task, and tasks a second while it was filled."""

    async def play() -> tuple[dict[str, list[tuple[float, float]]], float, float]:
        with tempfile.TemporaryDirectory(prefix="crdtsync-bench-", dir=data) as folder:
            core = sqlite_core(Path(folder))
            await core.start()
            before = memory_mb()
            begun = time.monotonic()
            await fill(core, count, kind)
            rate = count / (time.monotonic() - begun)
            await core.ask(c.ListTasks(limit=1))  # brings all rows to disk, as they are after a second
            per_task = (memory_mb() - before) * 1e6 / count
            taken = await probe(core)
            await core.close()
            return taken, per_task, rate

    return asyncio.run(play())


async def run(args: argparse.Namespace) -> Report:
    report = Report("growth", {"live": args.live, "others": args.others, "runs": args.runs}, machine_facts(args.data))
    report.calibrations.append(calibrate(args.data))
    columns = ("tasks", *OPERATIONS)
    cpu = Table("CPU in the core, us an operation (medians of the probes)", columns)
    wall = Table("Until all that follows is durable, ms an operation", columns)
    rest = Table("Filling and holding", ("tasks", "bytes of memory a task", "tasks a second"))
    for kind in KINDS:
        for count in args.live if kind == "live" else args.others:
            runs = [in_fresh_process(measure, kind, count, str(args.data)) for _ in range(args.runs)]
            name = f"{count:,} {kind}"
            cpu.add(name, *(figure(median(taken[op], 0) for taken, _, _ in runs) for op in OPERATIONS))
            wall.add(name, *(figure(median(taken[op], 1) / 1_000 for taken, _, _ in runs) for op in OPERATIONS))
            rest.add(name, figure(size for _, size, _ in runs), figure(rate for _, _, rate in runs))
            report.calibrations.append(calibrate(args.data))
    cpu.notes.append(f"list: {LISTED} tasks; claim: {PROBES} in one turn, a fiftieth each; listing writes rows first")
    rest.notes.append("memory is that of the whole process, so small counts show what is there in any case")
    report.tables += [cpu, wall, rest]
    return report


def median(pairs: Sequence[tuple[float, float]], which: int) -> float:
    ordered = sorted(pair[which] for pair in pairs)
    return ordered[len(ordered) // 2]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--live", type=int, nargs="+", default=[2_000, 20_000], help="live tasks (2000 20000; --full: "
                        "10000 100000 1000000)")  # fmt: skip
    parser.add_argument("--others", type=int, nargs="+", default=[10_000], help="of each other kind (10000; --full: "
                        "100000)")  # fmt: skip
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--data", type=Path, default=DATA, metavar="DIR", help="where data is kept: a real disk")


def published(args: argparse.Namespace) -> None:
    args.live, args.others = [10_000, 100_000], [20_000]


def full(args: argparse.Namespace) -> None:
    args.live, args.others = [10_000, 100_000, 1_000_000], [100_000]
