"""`simulator`: how many seeds an hour the simulator plays and judges, and events a second, by kernel."""

from __future__ import annotations

import argparse
from typing import Final

from benchmarks.measure import DATA, calibrate, figure, machine_facts
from benchmarks.report import Report, Table
from simulator.source import Source
from simulator.sweep import sweep

KERNELS: Final = ("heap", "trio")


async def run(args: argparse.Namespace) -> Report:
    report = Report("simulator", {"seeds": args.seeds, "runs": args.runs}, machine_facts(DATA))
    report.calibrations.append(calibrate(DATA))
    table = Table(
        "The swarm, judged by all checkers, one process", ("kernel", "seeds an hour", "events/s", "virtual / real")
    )
    for kernel in KERNELS:
        runs = [sweep(Source(kernel=kernel), range(args.seeds)) for _ in range(args.runs)]
        table.add(
            kernel,
            figure(found.seeds * 3_600 / found.real_s for found in runs),
            figure(found.events / found.real_s for found in runs),
            figure(found.virtual_s / found.real_s for found in runs),
        )
        report.calibrations.append(calibrate(DATA))
    table.notes.append("one seed in twenty is played again in a fresh process, as in any sweep")
    report.tables.append(table)
    return report


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=4, help="per kernel (4; --full: 60)")
    parser.add_argument("--runs", type=int, default=1)


def published(args: argparse.Namespace) -> None:
    args.seeds, args.runs = 20, 1


def full(args: argparse.Namespace) -> None:
    args.seeds, args.runs = 60, 3
