"""`python -m benchmarks NAME`: run one benchmark, or all of them."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from benchmarks import readme
from benchmarks.report import Report

BENCHMARKS: Final = {
    "end_to_end": "tasks from a producer's call to their handler, between real processes",
    "merge": "the core takes in what five writers wrote apart",
    "heal": "two nodes meet after a cut; what it costs, and who notices",
    "recovery": "a node starts on a disk full of tasks",
    "crash": "kill -9 of a worker and of a node: what runs again, and how soon",
    "growth": "what each operation costs among many tasks",
    "simulator": "seeds an hour",
}
MODULES: Final = {"simulator": "simulation"}  # a module `simulator` here would hide the package


def module_of(name: str) -> Any:
    return importlib.import_module(f"benchmarks.{MODULES.get(name, name)}")


def parser_of() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    nouns = parser.add_subparsers(dest="name", metavar="NAME", required=True)
    for name, text in BENCHMARKS.items():
        one = nouns.add_parser(name, help=text, description=text)
        module_of(name).arguments(one)
        _common(one)
    _common(nouns.add_parser("all", help="each of them in its default size"))
    text = "write the tables of the README from JSON results"
    report = nouns.add_parser("report", help=text, description=text)
    report.add_argument(
        "results", nargs="+", type=Path, metavar="FILE", help="what --json wrote, in the order of the page"
    )
    report.add_argument(
        "--into", type=Path, default=readme.README, metavar="FILE", help="the page (benchmarks/README.md)"
    )
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help="write the figures here as well; - prints them instead")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", help="the sizes of the targets; takes hours")
    size.add_argument("--published", action="store_true", help="the sizes of the README: large, in bearable time")


def run(name: str, args: argparse.Namespace) -> Report:
    module = module_of(name)
    if args.full:
        module.full(args)
    elif args.published:
        module.published(args)
    begun = time.monotonic()
    report: Report = asyncio.run(module.run(args))
    report.seconds = time.monotonic() - begun
    report.command = f"python -m benchmarks {name}" + (
        " --full" if args.full else " --published" if args.published else ""
    )
    return report


def main(argv: Sequence[str]) -> int:
    parser = parser_of()
    args = parser.parse_args(argv)
    if args.name == "report":
        figures = readme.markdown(readme.read(args.results))
        args.into.write_text(readme.put(args.into.read_text("utf-8"), figures), "utf-8")
        return 0
    sizes = [option for option, chosen in (("--full", args.full), ("--published", args.published)) if chosen]
    names = list(BENCHMARKS) if args.name == "all" else [args.name]
    reports = []
    for name in names:
        options = args if args.name == name else parser.parse_args([name, *sizes])
        report = run(name, options)
        if args.json != "-":
            report.show(Console(width=None if sys.stdout.isatty() else 160))
        reports.append(report)
    if args.json is not None:
        texts = ",\n".join(report.to_json() for report in reports)
        text = texts if len(reports) == 1 else f"[\n{texts}\n]"
        if args.json == "-":
            print(text)
        else:
            Path(args.json).write_text(text + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
