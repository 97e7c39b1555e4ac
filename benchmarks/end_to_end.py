"""`end_to_end`: tasks from a producer's call to the start of their handler, durably, between real processes.

One node, one worker process, one producer, real websockets, `synchronous=FULL`. As a script it speaks the interface of
the peer kit: `python benchmarks/end_to_end.py --tasks 10000 --runs 3` prints one JSON line with the figures that the
kit's README defines. What each means:

    enq         calls a second, one after the other, the queue filling up and nobody working
    boot        seconds from the worker's start to the first handler
    drain       tasks a second from the first handler of a full queue to the last
    conc        tasks a second, worker idle, one call after the other, from the first call to the last handler
    in flight   the same with 16 and 64 calls at a time
    bulk        the same by `submit_many`
    latency     milliseconds from the call to the handler's start, one task at a time on an idle system
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks import peers
from benchmarks.marks import VARIABLE, Marks
from benchmarks.measure import DATA, Figure, calibrate, figure, file_system, flushes, machine_facts, percentile
from benchmarks.processes import Cluster, busy, cluster
from benchmarks.producers import (
    ClientProducer,
    EmbeddedProducer,
    Producer,
    embedded_node,
    submit_each,
    submit_in_flight,
)
from benchmarks.report import Report, Table
from regions.client import Client

IN_FLIGHT: Final = (16, 64)
CONCURRENCY: Final = 200  # attempts at once in the worker, as the prototype's credits: handlers here take no time
WARM_UP_TASKS: Final = 20
SETTLE_S: Final = 0.3  # after a phase, for completions to be recorded: their CPU belongs to it
GAP_S: Final = (0.002, 0.02)  # between two tasks of the latency phase, at random
TIMEOUT_S: Final = 600.0
OTHERS: Final = ("us", "ap")
LINK_TIMEOUT_S: Final = 30.0
POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Setting:
    """What is measured."""

    name: str
    regions: tuple[str, ...] = ("eu",)
    cut: str = ""  # a region that nobody reaches
    embedded: bool = False


SETTINGS: Final = (
    Setting("one region"),
    Setting("one region, embedded node", embedded=True),
    Setting("three regions, connected", ("eu", *OTHERS)),
    Setting("three regions, one cut", ("eu", *OTHERS), cut=OTHERS[-1]),
)


@dataclass(slots=True)
class Result:
    """Every run's figures of one setting."""

    setting: Setting
    tasks: int
    rates: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # "conc" -> tasks/s
    cpu: dict[str, list[dict[str, float]]] = field(default_factory=lambda: defaultdict(list))  # "conc" -> by process
    flushes: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # per 1,000 tasks
    boot_s: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    pss_mb: dict[str, float] = field(default_factory=dict)
    repeated: int = 0

    def rate(self, phase: str) -> Figure | None:
        return figure(self.rates[phase])

    def cpu_s(self, phase: str, process: str = "") -> Figure | None:
        """CPU seconds per 1,000 tasks, of all processes or of one."""
        return figure(sum(v for name, v in run.items() if process in ("", name)) for run in self.cpu[phase])

    def latency(self, share: float) -> float | None:
        return percentile(self.latencies_ms, share) if self.latencies_ms else None


class Bench:
    """One set-up, up and linked, and the phases that are played on it."""

    def __init__(self, setting: Setting, made: Cluster, marks: Marks, producer: Producer, url: str) -> None:
        self.setting = setting
        self.made = made
        self.marks = marks
        self.producer = producer
        self.url = url

    async def run(self, result: Result, tasks: int, drain: int, latencies: int, *, last: bool) -> None:
        """All phases once."""
        phase, producer = self.phase, self.producer
        first = self.marks.take(tasks)
        begun = time.monotonic()
        await submit_each(producer, first)
        result.rates["enq"].append(tasks / (time.monotonic() - begun))
        rest = self.marks.take(max(0, drain - tasks))
        if rest:
            await producer.submit_bulk(rest)
        queue = range(first.start, rest.stop if rest else first.stop)
        begun = time.monotonic()
        self.made.start_worker("eu", concurrency=CONCURRENCY, url=self.url)
        await self.wait(queue)
        started = self.marks.times(queue)
        result.boot_s.append(min(started) - begun)
        result.rates["drain"].append((len(queue) - 1) / (max(started) - min(started)))
        warm = self.marks.take(WARM_UP_TASKS)
        await submit_each(producer, warm)
        await self.wait(warm)
        await asyncio.sleep(1)
        await phase(result, "conc", tasks, partial(submit_each, producer))
        for calls in IN_FLIGHT:
            await phase(result, f"conc{calls}", tasks, partial(submit_in_flight, producer, calls=calls))
        await phase(result, "bulk", tasks, producer.submit_bulk)
        if last:
            await asyncio.sleep(1)
            result.pss_mb = {name: round(process.pss_mb, 1) for name, process in self.made.processes.items()}
            await self.latency(result, latencies)
            result.repeated = self.marks.repeated
        await asyncio.to_thread(self.made.stop, "eu worker")  # an embedded node goes on meanwhile

    async def phase(self, result: Result, name: str, tasks: int, submit: Callable[[range], Awaitable[None]]) -> None:
        """Submit while the worker works; the rates of both, CPU and flushes."""
        slots = self.marks.take(tasks)
        cpu, flushed = self.cpu(), flushes(self.made.folder)
        begun = time.monotonic()
        await submit(slots)
        result.rates[f"{name}_enq"].append(tasks / (time.monotonic() - begun))
        await self.wait(slots)
        result.rates[name].append(tasks / (max(self.marks.times(slots)) - begun))
        await asyncio.sleep(SETTLE_S)
        result.cpu[name].append({key: (now - cpu[key]) * 1_000 / tasks for key, now in self.cpu().items()})
        flushed_now = flushes(self.made.folder)
        if flushed is not None and flushed_now is not None:
            result.flushes[name].append((flushed_now - flushed) * 1_000 / tasks)

    async def latency(self, result: Result, count: int) -> None:
        gaps = random.Random(1)
        for _ in range(count):
            await asyncio.sleep(gaps.uniform(*GAP_S))
            slots = self.marks.take(1)
            begun = time.monotonic()
            await self.producer.submit(slots.start)
            await self.marks.wait(slots, TIMEOUT_S, poll_s=0.0005)
            result.latencies_ms.append((self.marks.time(slots.start) - begun) * 1_000)

    async def wait(self, slots: range) -> None:
        try:
            await self.marks.wait(slots, TIMEOUT_S)
        except TimeoutError:
            self.made.check()
            raise

    def cpu(self) -> dict[str, float]:
        own = sum(os.times()[:2])
        return {"producer": own} | {name: process.cpu_s for name, process in self.made.processes.items()}


@asynccontextmanager
async def bench(setting: Setting, folder: Path, marks: Marks) -> AsyncIterator[Bench]:
    """Start what the setting asks for, without its worker."""
    async with AsyncExitStack() as stack:
        made = stack.enter_context(cluster(folder, () if setting.embedded else setting.regions))
        if setting.embedded:
            node = await stack.enter_async_context(embedded_node(folder))
            url = node.url
            producer: Producer = EmbeddedProducer(node)
            made.regions = []
        else:
            url = made.region("eu").url
            client = await stack.enter_async_context(Client(url))
            producer = ClientProducer(client)
            await linked(made, setting.regions)
            if setting.cut:
                async with Client(made.region(setting.cut).url) as operator:
                    await operator.cut()
        await declare(url)
        yield Bench(setting, made, marks, producer, url)
        await asyncio.to_thread(made.stop_all)  # before an embedded node, which waits for what its worker runs


async def linked(made: Cluster, regions: Sequence[str]) -> None:
    """Until every node sees every other one."""
    for region in regions:
        async with asyncio.timeout(LINK_TIMEOUT_S), Client(made.region(region).url) as client:

            async def sees_all(client: Client = client, region: str = region) -> bool:
                return all(row["status"] == "up" for row in await client.regions() if row["region"] != region)

            await until(sees_all)


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Ask again and again; the state is another process's."""
    while not await is_so():  # noqa: ASYNC110
        await asyncio.sleep(POLL_S)


def shared_file(folder: Path) -> Path:
    """A file for marks: in memory where the system has such a place, so that they never meet the disk."""
    memory = Path("/dev/shm")
    return (memory if memory.is_dir() else folder) / f"crdtsync-bench-{os.getpid()}-{folder.name[-8:]}.marks"


async def declare(url: str) -> None:
    """Have the tasks declared, as an earlier worker of the app would have: before that, nothing can be submitted."""
    from benchmarks.app import app
    from regions.execution.worker import Worker

    worker = Worker(app, url)
    running = asyncio.create_task(worker.run())
    await asyncio.wait((running, asyncio.create_task(worker.ready.wait())), return_when=asyncio.FIRST_COMPLETED)
    worker.drain()
    await running


async def measure(
    setting: Setting, tasks: int, runs: int, *, drain: int = 0, latencies: int = 200, data: Path = DATA
) -> Result:
    """All phases of a setting, `runs` times on one set-up, as the peer kit does.

    Args:
        tasks: In each phase.
        drain: Tasks in the queue that is drained, if more than `tasks`.
        data: Where data directories are made.
    """
    result = Result(setting, tasks)
    with tempfile.TemporaryDirectory(prefix="crdtsync-bench-", dir=data) as name:
        folder = Path(name)
        path = shared_file(folder)
        slots = runs * (max(tasks, drain) + tasks * (2 + len(IN_FLIGHT)) + WARM_UP_TASKS) + latencies
        os.environ[VARIABLE] = str(path)
        try:
            async with bench(setting, folder, Marks.create(path, slots)) as ready:
                for run in range(runs):
                    await ready.run(result, tasks, drain, latencies, last=run == runs - 1)
        finally:
            path.unlink(missing_ok=True)
    return result


# As tables and as a line ----------------------------------------------------------------------------


def to_line(result: Result) -> dict[str, Any]:
    """The figures under the names of the peer kit, and those that it has not after them."""

    def median(of: Figure | None, digits: int = 0) -> float | None:
        return None if of is None else round(of.median, digits)

    rates = {f"{name}_s": median(result.rate(name)) for name in ("enq", "drain", "conc")}
    p50, p99 = result.latency(0.5), result.latency(0.99)
    return {
        "peer": "crdtsync",
        "variant": f"sqlite FULL asyncio, {result.setting.name}, concurrency={CONCURRENCY}",
        "n": result.tasks,
        "runs": len(result.boot_s),
        **rates,
        "boot_s": median(figure(result.boot_s), 2),
        "bulk_enq_s": median(result.rate("bulk_enq")),
        "bulk_conc_s": median(result.rate("bulk")),
        "lat_n": len(result.latencies_ms),
        "lat_p50_ms": None if p50 is None else round(p50, 2),
        "lat_p99_ms": None if p99 is None else round(p99, 2),
        "cpu_s_per_1k": median(result.cpu_s("conc"), 3),
        "cpu_bulk_per_1k": median(result.cpu_s("bulk"), 3),
        "flush_per_1k": median(figure(result.flushes["conc"]), 1),
        "pss_mb": result.pss_mb,
        "dups": result.repeated,
        **{f"{name}_s": median(result.rate(name)) for name in ("conc16", "conc64", "conc16_enq", "conc64_enq")},
        "cpu_node_per_1k": median(result.cpu_s("conc", "eu node"), 3),
        "cpu_node_bulk_per_1k": median(result.cpu_s("bulk", "eu node"), 3),
        "flush_bulk_per_1k": median(figure(result.flushes["bulk"]), 1),
        "spread": {name: [round(rate) for rate in result.rates[name]] for name in ("drain", "conc", "bulk")},
    }


def tables_of(results: Sequence[Result]) -> list[Table]:
    rates = Table(
        "Tasks a second",
        ("setting", "one call", "16 calls", "64 calls", "bulk", "drain", "call + work", "16 + work", "64 + work",
         "bulk + work"),
    )  # fmt: skip
    rest = Table(
        "Latency, CPU seconds and disk flushes per 1,000 tasks, memory",
        ("setting", "p50 ms", "p99 ms", "CPU, call", "CPU, bulk", "of it eu's node, call", "eu's node, bulk",
         "flushes, call", "flushes, bulk", "boot s", "memory MB"),
    )  # fmt: skip
    for result in results:
        name, rate = result.setting.name, result.rate
        rates.add(name, rate("enq"), rate("conc16_enq"), rate("conc64_enq"), rate("bulk_enq"), rate("drain"),
                  rate("conc"), rate("conc16"), rate("conc64"), rate("bulk"))  # fmt: skip
        memory = " + ".join(f"{name} {size:.0f}" for name, size in result.pss_mb.items())
        rest.add(name, result.latency(0.5), result.latency(0.99), result.cpu_s("conc"), result.cpu_s("bulk"),
                 result.cpu_s("conc", "eu node"), result.cpu_s("bulk", "eu node"), figure(result.flushes["conc"]),
                 figure(result.flushes["bulk"]), figure(result.boot_s), memory)  # fmt: skip
    rates.notes.append("calls and bulk: accepted, durably; with 16, 64 and bulk the worker is working meanwhile")
    return [rates, rest]


async def run(args: argparse.Namespace) -> Report:
    with busy(args.busy):
        return await run_beside(args)


async def run_beside(args: argparse.Namespace) -> Report:
    """All that the options ask for, whatever else computes."""
    data = args.data
    sizes = {"tasks": args.tasks, "runs": args.runs, "drain": args.drain, "busy": args.busy}
    report = Report("end_to_end", sizes, machine_facts(data))
    report.calibrations.append(calibrate(data))
    if args.against:
        report.tables += await against(args, data, report)
        return report
    results = []
    for setting in chosen(args):
        results.append(
            await measure(setting, args.tasks, args.runs, drain=args.drain, latencies=args.lat, data=args.data)
        )
        report.calibrations.append(calibrate(data))
    report.tables += tables_of(results)
    if file_system(data) in ("tmpfs", "ramfs"):
        report.tables[0].notes.append("the data is on a memory file system: nothing was made durable (see --data)")
    return report


def chosen(args: argparse.Namespace) -> list[Setting]:
    """The settings that the options name; all of them if they name none."""
    if args.embedded:
        return [setting for setting in SETTINGS if setting.embedded]
    if args.regions == 1:
        return [SETTINGS[0]]
    if args.regions == len(OTHERS) + 1:
        return [setting for setting in SETTINGS if setting.regions == ("eu", *OTHERS) and bool(setting.cut) == args.cut]
    return list(SETTINGS)


async def against(args: argparse.Namespace, data: Path, report: Report) -> list[Table]:
    """Ours and the peers' in turn, calibrated between rounds."""
    names = [name.strip() for name in args.against.split(",") if name.strip()]
    lines: dict[str, list[dict[str, Any]]] = {"crdtsync": []}
    absent: dict[str, str] = {}
    (setting,) = chosen(args) if args.embedded or args.regions else [SETTINGS[0]]
    for _ in range(args.runs):
        result = await measure(setting, args.tasks, 1, latencies=args.lat, data=args.data)
        lines["crdtsync"].append(to_line(result))
        for name in names:
            if name in absent:
                continue
            try:
                line = peers.measure(name, Path(args.kit), args.tasks, args.lat, data)
            except peers.AbsentError as error:
                absent[name] = str(error)
            else:
                lines.setdefault(name, []).append(line)
        report.calibrations.append(calibrate(data))
    return peers.tables_of(lines, absent)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", type=int, default=2_000, help="in each phase (2,000; --full: 20,000)")
    parser.add_argument("--runs", type=int, default=3, help="how often the phases are played (3)")
    parser.add_argument("--drain", type=int, default=0, help="tasks in the drained queue (as --tasks; --full: 100,000)")
    parser.add_argument("--lat", type=int, default=200, help="tasks of the latency phase (200)")
    parser.add_argument("--embedded", action="store_true", help="only with the node in the producer's process")
    parser.add_argument("--regions", type=int, choices=(1, 3), help="only with so many regions")
    parser.add_argument("--cut", action="store_true", help="with --regions 3: one of them cut off")
    parser.add_argument(
        "--busy", type=int, default=0, metavar="N", help="so many other processes compute meanwhile (0)"
    )
    parser.add_argument("--against", default="", metavar="PEERS", help=f"compare: any of {','.join(peers.PEERS)}")
    parser.add_argument("--kit", default=".", metavar="DIR", help="where the peer kit is, and may write")
    parser.add_argument("--data", type=Path, default=DATA, metavar="DIR", help="where data is kept: a real disk")


def published(args: argparse.Namespace) -> None:
    args.tasks, args.drain, args.lat, args.runs = 5_000, 20_000, 300, 3


def full(args: argparse.Namespace) -> None:
    args.tasks, args.drain, args.lat = 20_000, 100_000, 500


def main(argv: Sequence[str] | None = None) -> None:
    """The peer kit's interface: one JSON line."""
    parser = argparse.ArgumentParser(description="crdtsync through the peer kit's interface: prints one JSON line")
    arguments(parser)
    args = parser.parse_args(argv)
    if args.against:
        print(asyncio.run(run(args)).to_json())
        return
    setting = chosen(args)[0]
    with busy(args.busy):
        result = asyncio.run(
            measure(setting, args.tasks, args.runs, drain=args.drain, latencies=args.lat, data=args.data)
        )
    print(json.dumps(to_line(result)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
