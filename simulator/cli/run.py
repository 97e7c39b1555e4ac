"""`crdtsync sim run`: one scenario, one seed."""

from __future__ import annotations

import contextlib
import gzip
import json
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import click

from regions.cli.options import output_option
from regions.cli.output import print_message, print_record
from simulator.cli.bar import bar


@click.command()
@click.argument("scenario")
@click.option("--seed", type=int, default=0, show_default=True, help="What chance does.")
@click.option("--kernel", type=click.Choice(["heap", "trio"]), default="heap", show_default=True)
@click.option(
    "--app", "app_spec", metavar="FILE:app", default="", help="Your own tasks, for loads of the model task:NAME."
)
@click.option("--time", "duration", metavar="DURATION", default="", help="End after so much virtual time, e.g. 90s.")
@click.option("--trace", "trace_file", type=click.Path(dir_okay=False, path_type=Path), help="Write JSON lines here.")
@click.option(
    "--report", "report_file", type=click.Path(dir_okay=False, path_type=Path), help="Write one HTML page here."
)
@click.option(
    "--histories",
    "histories_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write what the holders of leases believed here, for `crdtsync sim judge`; gzipped if it ends in .gz.",
)
@click.option("--quick", is_flag=True, help="Only play it: no invariant is checked.")
@output_option
def run(
    *,
    scenario: str,
    seed: int,
    kernel: str,
    app_spec: str,
    duration: str,
    trace_file: Path | None,
    report_file: Path | None,
    histories_file: Path | None,
    quick: bool,
    output: str,
) -> int:
    """Play SCENARIO (a TOML file, the name of one that comes with crdtsync, or `swarm`) and judge it.

    Exit 1 if an invariant was violated or an expectation not met; what happened is then told on stderr.
    """
    from regions.execution.registry import load_app
    from simulator import report
    from simulator.checkers import all_checkers, lease_histories
    from simulator.plan import ms_of
    from simulator.source import Source
    from simulator.world import World

    source = Source(scenario, app_spec, load_app, ms_of(duration, "--time") if duration else 0, kernel)
    played = source.scenario(seed)
    with contextlib.ExitStack() as stack:
        out = None if trace_file is None else stack.enter_context(trace_file.open("w", encoding="utf-8"))
        show = stack.enter_context(bar(played.duration_ms / 1_000, played.name))
        progress = None if show is None else partial(show, text=played.name)

        def world(*, keep: bool, out: TextIO | None = None) -> World:
            checkers = (*(() if quick else all_checkers()), *((report.Watch(),) if keep else ()))
            return World(played, seed, kernel=kernel, checkers=checkers, keep=keep, trace_to=out, progress=progress)

        first = world(keep=report_file is not None, out=out)
        result = first.run()
        if not result.ok and not first.trace.keep:
            first = world(keep=True)  # the same run, remembered
            first.run()
    print_record(result.to_plain(), output)
    for (name, why), count in first.complaints.items():
        print_message(f"warning: {count} attempts of {name!r} could not be played: {why}")
    if histories_file is not None:
        write_histories(histories_file, lease_histories(first.checkers))
    if report_file is not None:
        report_file.write_text(report.html(first, result, command=source.command(seed)), encoding="utf-8")
        print_message(f"report: {report_file}")
    if not result.ok:
        print_message(report.text(first, result, command=source.command(seed)))
    return 0 if result.ok else 1


def write_histories(path: Path, histories: list[dict[str, Any]]) -> None:
    """One a line. A run without leases makes an empty file."""
    text = "".join(json.dumps(history) + "\n" for history in histories).encode()
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)
