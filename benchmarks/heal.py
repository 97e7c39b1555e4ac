"""`heal`: two nodes, a long cut during which one of them did all the work, and their meeting.

Measured are the time until both show the same digest, what went over the wire for it, and what users of both nodes
noticed meanwhile: a probe task every few milliseconds, from its call to its handler's start.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.end_to_end import CONCURRENCY, linked, until
from benchmarks.marks import VARIABLE, Marks
from benchmarks.measure import DATA, calibrate, figure, machine_facts, percentile
from benchmarks.processes import Cluster, cluster
from benchmarks.producers import ClientProducer
from benchmarks.report import Report, Table
from regions.client import Client
from regions.storage.sqlite import FILE

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

REGIONS: Final = ("eu", "us")
PROBES_MAX: Final = 100_000
PROBE_GAP_S: Final = 0.02
IDLE_PROBES: Final = 200
TIMEOUT_S: Final = 900.0
FRAME_BYTES: Final = 256 << 10  # what is compressed together


class Probe:
    """Submits one task after the other to one node, and remembers how long each took to start."""

    def __init__(self, region: str, client: Client, marks: Marks) -> None:
        self.region = region
        self.latencies_ms: list[float] = []
        self._producer = ClientProducer(client)
        self._marks = marks

    async def once(self) -> None:
        slots = self._marks.take(1)
        begun = time.monotonic()
        await self._producer.submit(slots.start)
        await self._marks.wait(slots, TIMEOUT_S, poll_s=0.001)
        self.latencies_ms.append((self._marks.time(slots.start) - begun) * 1_000)
        await asyncio.sleep(PROBE_GAP_S)

    async def until(self, done: asyncio.Event) -> list[float]:
        """The latencies from now until it is done."""
        begun = len(self.latencies_ms)
        while not done.is_set():
            await self.once()
        return self.latencies_ms[begun:]


def loopback_bytes() -> int:
    """Bytes that have gone over the loopback interface, headers included."""
    for line in Path("/proc/net/dev").read_text("ascii").splitlines():
        name, _, fields = line.partition(":")
        if name.strip() == "lo":
            return int(fields.split()[0])
    return 0


def log_end(data: Path) -> int:
    """The position of the newest commit on a node's disk."""
    with closing(_opened(data)) as connection:
        position: int | None = connection.execute("SELECT max(position) FROM commits").fetchone()[0]
    return position or 0


def log_bytes(data: Path, after: int = 0) -> tuple[int, int, int]:
    """Commits beyond a position, their bytes, and these compressed by zstd's level 1, a frame at a time."""
    count = size = packed = 0
    frame = b""
    for blob in _blobs(data, after):
        count += 1
        size += len(blob)
        frame += blob
        if len(frame) >= FRAME_BYTES:
            packed += len(zstd.compress(frame, 1))
            frame = b""
    return count, size, packed + (len(zstd.compress(frame, 1)) if frame else 0)


def _blobs(data: Path, after: int) -> Iterator[bytes]:
    with closing(_opened(data)) as connection:
        for (blob,) in connection.execute("SELECT blob FROM commits WHERE position > ? ORDER BY position", (after,)):
            yield blob


def _opened(data: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{data / FILE}?mode=ro", uri=True)


async def has(client: Client, what: str, *, wanted: bool) -> bool:
    """Whether the node's status has some of it, or none."""
    return bool((await client.node_status())[what]) is wanted


async def equal(eu: Client, us: Client) -> bool:
    one, other = await eu.node_status(), await us.node_status()
    return bool(one["digest"] == other["digest"] and one["heads"] == other["heads"])


async def play(made: Cluster, marks: Marks, tasks: int) -> dict[str, Any]:
    """One cut and one heal; the figures of it."""
    async with Client(made.region("eu").url) as eu, Client(made.region("us").url) as us:
        for region in REGIONS:
            made.start_worker(region, concurrency=CONCURRENCY)
        await linked(made, REGIONS)
        for client in (eu, us):
            await until(partial(has, client, "workers", wanted=True))
        probes = [Probe("eu", eu, marks), Probe("us", us, marks)]
        for _ in range(IDLE_PROBES):
            for probe in probes:
                await probe.once()
        idle = {probe.region: list(probe.latencies_ms) for probe in probes}

        await us.cut()
        before = log_end(made.region("eu").data)
        slots = marks.take(tasks)
        await ClientProducer(eu).submit_bulk(slots)
        await marks.wait(slots, TIMEOUT_S)
        await until(partial(has, eu, "running", wanted=False))
        commits, size, packed = log_bytes(made.region("eu").data, before)

        healed = asyncio.Event()
        probing = [asyncio.create_task(probe.until(healed)) for probe in probes]
        sent, begun = loopback_bytes(), time.monotonic()
        cpu = {name: process.cpu_s for name, process in made.processes.items()}
        await us.heal()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                # Both work on: their digests are compared while no probe is under way, which is most of the time.
                await until(partial(equal, eu, us))
        finally:
            healed.set()
        seconds = time.monotonic() - begun
        during = {probe.region: await task for probe, task in zip(probes, probing, strict=True)}
        wire = loopback_bytes() - sent
    return {
        "seconds": seconds,
        "commits": commits,
        "log_mb": size / 1e6,
        "packed_mb": packed / 1e6,
        "wire_mb": wire / 1e6,
        "cpu_s": {name: made[name].cpu_s - then for name, then in cpu.items()},
        "idle": idle,
        "during": during,
    }


async def measure(tasks: int, data: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="crdtsync-bench-", dir=data) as name:
        path = Path(name) / "marks"
        marks = Marks.create(path, tasks + PROBES_MAX)
        os.environ[VARIABLE] = str(path)
        with cluster(Path(name), REGIONS) as made:
            return await play(made, marks, tasks)


async def run(args: argparse.Namespace) -> Report:
    report = Report("heal", {"tasks": args.tasks, "runs": args.runs}, machine_facts(args.data))
    report.calibrations.append(calibrate(args.data))
    runs = []
    for _ in range(args.runs):
        runs.append(await measure(args.tasks, args.data))
        report.calibrations.append(calibrate(args.data))
    meeting = Table(
        "From heal to equal digests",
        ("tasks", "seconds", "tasks/s", "CPU s, eu", "CPU s, us", "log MB", "packed MB", "wire MB", "wire / packed"),
    )
    meeting.add(
        f"{args.tasks:,}",
        figure(run["seconds"] for run in runs),
        figure(args.tasks / run["seconds"] for run in runs),
        figure(run["cpu_s"]["eu node"] for run in runs),
        figure(run["cpu_s"]["us node"] for run in runs),
        figure(run["log_mb"] for run in runs),
        figure(run["packed_mb"] for run in runs),
        figure(run["wire_mb"] for run in runs),
        figure(run["wire_mb"] / run["packed_mb"] for run in runs),
    )
    meeting.notes.append("packed: the log by zstd 1; wire: all loopback traffic meanwhile, probes and headers included")
    probes = Table(
        "Probe tasks, ms from call to start", ("node", "idle p50", "idle p99", "p50", "p99", "worst", "p99 / idle")
    )
    for region in REGIONS:
        idle = [value for run in runs for value in run["idle"][region]]
        during = [value for run in runs for value in run["during"][region]]
        if during:
            idle99, during99 = percentile(idle, 0.99), percentile(during, 0.99)
            probes.add(region, percentile(idle, 0.5), idle99, percentile(during, 0.5), during99, max(during),
                       during99 / idle99)  # fmt: skip
    report.tables += [meeting, probes]
    return report


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", type=int, default=5_000, help="done on one side of the cut (5,000; --full: 200,000)")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--data", type=Path, default=DATA, metavar="DIR", help="where data is kept: a real disk")


def published(args: argparse.Namespace) -> None:
    args.tasks, args.runs = 20_000, 1


def full(args: argparse.Namespace) -> None:
    args.tasks, args.runs = 200_000, 3
