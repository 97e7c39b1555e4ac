"""`recovery`: a node starts on a disk that holds many tasks: how long until it answers, and in how much memory.

Live tasks are loaded; ended and settled ones stay on disk. *With snapshot*: task rows and the heads that they contain
were written before the end, as a node does every second. *Without*: there is the log alone, and all is made of it.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks.core import in_fresh_process, memory_mb, sqlite_core
from benchmarks.growth import FILLER, PER_FRAME
from benchmarks.measure import DATA, calibrate, figure, machine_facts
from benchmarks.report import Report, Table
from crdtsync import commands as c
from regions.storage.sqlite import FILE
from regions.submission import task_spec

KINDS: Final = ("live", "terminal", "mixed")  # mixed: one in ten is live
LIVE_EVERY: Final = 10
FLUSHES: Final = 3  # of `flush_ms`, after which the rows on disk stand for the whole log


def write(folder: str, kind: str, count: int) -> None:
    """In a process of its own: a node's disk with so many tasks."""

    async def play() -> None:
        core = sqlite_core(Path(folder))
        await core.start()
        await core.hello([FILLER], 1)
        await core.leave()
        live = {"live": count, "terminal": 0, "mixed": count // LIVE_EVERY}[kind]
        left = count - live
        while left > 0:
            some = min(left, PER_FRAME)
            await core.submit([task_spec(FILLER, (number,), {}) for number in range(some)])
            await core.hello([FILLER], PER_FRAME)
            await core.work_off()
            await core.leave()
            left -= some
        await core.submit([task_spec(FILLER, (number,), {}) for number in range(live)])
        until = time.monotonic() + FLUSHES * core.settings.flush_ms / 1_000
        while time.monotonic() < until:
            await asyncio.sleep(0.05)
            await core.pump()
        await core.close()

    asyncio.run(play())


def forget_rows(folder: Path) -> None:
    """Leave the log alone."""
    with sqlite3.connect(folder / FILE) as connection:
        for table in ("labels", "tasks"):
            connection.execute(f"DELETE FROM {table}")
        connection.execute("DELETE FROM meta WHERE name LIKE 'fold/%' OR name LIKE 'digest/%'")
    connection.close()


def start(folder: str) -> tuple[float, float, float]:
    """In a process of its own: seconds until it answers, CPU seconds, and megabytes that it then has more."""

    async def play() -> tuple[float, float, float]:
        before = memory_mb()
        cpu_s, begun = time.process_time(), time.monotonic()
        core = sqlite_core(Path(folder))
        await core.start()
        taken = time.monotonic() - begun, time.process_time() - cpu_s
        status = await core.ask(c.Status())
        assert not status["alarms"], status["alarms"]
        more = memory_mb() - before
        await core.close()
        return *taken, more

    return asyncio.run(play())


async def run(args: argparse.Namespace) -> Report:
    report = Report("recovery", {"tasks": args.tasks, "runs": args.runs}, machine_facts(args.data))
    report.calibrations.append(calibrate(args.data))
    table = Table("From a start to the first answer", ("tasks", "seconds", "CPU seconds", "memory MB", "disk MB"))
    for count in args.tasks:
        for kind in KINDS:
            with tempfile.TemporaryDirectory(prefix="crdtsync-bench-", dir=args.data) as name:
                written = Path(name) / "written"
                in_fresh_process(write, str(written), kind, count)
                for snapshot in (True, False):
                    if not snapshot:
                        forget_rows(written)
                    runs = []
                    for _ in range(args.runs):
                        copy = Path(name) / "copy"
                        shutil.copytree(written, copy)
                        runs.append(in_fresh_process(start, str(copy)))
                        shutil.rmtree(copy)
                    size = sum(file.stat().st_size for file in written.iterdir()) / 1e6
                    table.add(
                        f"{count:,} {kind}, {'with' if snapshot else 'without'} snapshot",
                        figure(wall for wall, _, _ in runs),
                        figure(cpu for _, cpu, _ in runs),
                        figure(more for _, _, more in runs),
                        size,
                    )
        report.calibrations.append(calibrate(args.data))
    table.notes.append(
        "files are in the page cache; interpreter and imports (about 0.3 s of a real start) are not counted"
    )
    report.tables.append(table)
    return report


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", type=int, nargs="+", default=[10_000], help="(10000; --full: 10000 100000 1000000)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--data", type=Path, default=DATA, metavar="DIR", help="where data is kept: a real disk")


def published(args: argparse.Namespace) -> None:
    args.tasks, args.runs = [10_000, 100_000], 3


def full(args: argparse.Namespace) -> None:
    args.tasks = [10_000, 100_000, 1_000_000]
