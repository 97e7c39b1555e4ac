"""`crash`: `kill -9` of a worker, and of a node, in the middle of the work: what runs again, and how soon.

The task takes 5 ms and marks its slot at its end, as in the peer kit's kill test, so that one killed half-way counts as
not done. Seconds are counted from the moment at which the killed process is started again to the end of the last task.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks.end_to_end import TIMEOUT_S, declare, shared_file
from benchmarks.marks import VARIABLE, Marks
from benchmarks.measure import DATA, calibrate, figure, machine_facts
from benchmarks.processes import Cluster, cluster
from benchmarks.report import Report, Table
from regions.client import Client
from regions.submission import task_spec

TASK: Final = "mark_at_end"
CONCURRENCY: Final = 8
KILLED_AT: Final = 4  # once a fourth of the tasks has been done
VICTIMS: Final = ("worker", "node")
POLL_S: Final = 0.005


async def crash(made: Cluster, marks: Marks, victim: str, tasks: int) -> tuple[float, int, int]:
    """Kill the victim once: seconds until all was done, tasks done before, tasks that ran to their end twice."""
    region = made.region("eu")
    slots = marks.take(tasks)
    repeated = marks.repeated
    async with Client(region.url) as client:
        await client.submit_many(task_spec(TASK, (slot,), {}) for slot in slots)
    made.start_worker("eu", concurrency=CONCURRENCY)
    while marks.done(slots) < tasks // KILLED_AT:
        made.check()
        await asyncio.sleep(POLL_S)
    made.kill(f"eu {victim}")
    done = marks.done(slots)
    begun = time.monotonic()
    if victim == "node":
        await asyncio.to_thread(made.start_node, "eu")
    else:
        made.start_worker("eu", concurrency=CONCURRENCY)
    await marks.wait(slots, TIMEOUT_S, poll_s=POLL_S)
    taken_s = max(marks.times(slots)) - begun
    await asyncio.to_thread(made.stop, "eu worker")
    return taken_s, done, marks.repeated - repeated


async def run(args: argparse.Namespace) -> Report:
    report = Report("crash", {"tasks": args.tasks, "runs": args.runs}, machine_facts(args.data))
    report.calibrations.append(calibrate(args.data))
    table = Table(
        "kill -9 in the middle of the work, and a start at once",
        ("killed", "seconds until all was done", "done before", "of", "done twice"),
    )
    with tempfile.TemporaryDirectory(prefix="crdtsync-bench-", dir=args.data) as name:
        path = shared_file(Path(name))
        os.environ[VARIABLE] = str(path)
        try:
            marks = Marks.create(path, len(VICTIMS) * args.runs * args.tasks)
            with cluster(Path(name)) as made:
                await declare(made.region("eu").url)
                for victim in VICTIMS:
                    runs = [await crash(made, marks, victim, args.tasks) for _ in range(args.runs)]
                    table.add(
                        victim,
                        figure(taken for taken, _, _ in runs),
                        figure(done for _, done, _ in runs),
                        args.tasks,
                        sum(twice for _, _, twice in runs),
                    )
        finally:
            path.unlink(missing_ok=True)
    table.notes.append(
        "the last column counts all runs; every task ran to its end, or the benchmark would not have ended"
    )
    report.tables.append(table)
    report.calibrations.append(calibrate(args.data))
    return report


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", type=int, default=600, help="(600)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--data", type=Path, default=DATA, metavar="DIR", help="where data is kept: a real disk")


def published(args: argparse.Namespace) -> None:
    args.tasks, args.runs = 2_000, 3


def full(args: argparse.Namespace) -> None:
    args.tasks, args.runs = 2_000, 5
