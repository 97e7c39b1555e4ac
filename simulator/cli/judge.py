"""`crdtsync sim judge`: recorded histories, from the simulator or anywhere else."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final

import click

from regions.cli.options import examples, output_option
from regions.cli.output import print_json, print_message, print_rows
from simulator import linearizability
from simulator.history_file import History, read

TIME_S: Final = 60.0
COLUMNS: Final = ("id", "model", "verdict", "states", "why")


@click.command(epilog=examples("crdtsync sim judge histories.jsonl.gz", "zcat etcd.jsonl.gz | crdtsync sim judge -"))
@click.argument("file", type=click.File("rb"))
@click.option(
    "--states-max",
    type=click.IntRange(min=1),
    default=linearizability.STATES_MAX,
    show_default=True,
    help="Give up on a history after so many configurations.",
)
@click.option(
    "--time",
    "time_s",
    type=click.FloatRange(min=0, min_open=True),
    default=TIME_S,
    show_default=True,
    metavar="S",
    help="Give up on a history after S seconds.",
)
@click.option("--check", is_flag=True, help="Exit 1 unless every verdict is true.")
@output_option
def judge(*, file: BinaryIO, states_max: int, time_s: float, check: bool, output: str) -> int:
    """Say of each history in FILE whether it is linearizable: true, false, or unknown.

    FILE has one JSON object a line, gzipped or not; - is standard input. Histories of the models register, cas-register
    and mutex are judged. Those of other models are unknown, and so are those whose search was cut short.

    Exit 0 once all are judged, whatever the verdicts; with --check, 1 unless all are true. Exit 2 if a line is not a
    history: nothing is judged then.
    """
    histories = read(file)
    began = time.monotonic()
    rows = []
    with _bar(len(histories)) as show:
        for history in histories:
            rows.append(_row(history, states_max, time_s))
            show(len(rows))
    if output == "json":
        print_json([{"id": row["id"], "verdict": row["verdict"]} for row in rows])
    else:
        print_rows(rows, COLUMNS, output, empty="no histories")
        counts = {verdict: sum(row["verdict"] is verdict for row in rows) for verdict in (True, False)}
        unknown = len(rows) - sum(counts.values())
        print_message(
            f"{len(rows)} histories: {counts[True]} linearizable, {counts[False]} not, {unknown} unknown; "
            f"{time.monotonic() - began:.1f} s"
        )
    return 1 if check and any(row["verdict"] is not True for row in rows) else 0


def _row(history: History, states_max: int, time_s: float) -> dict[str, Any]:
    row: dict[str, Any] = {"id": history.id, "model": history.model}
    if history.operations is None:
        return {**row, "verdict": "unknown", "states": 0, "why": "no model that is judged"}
    until = time.monotonic() + time_s
    judgement = linearizability.judge(
        history.operations, history.initial, states_max=states_max, give_up=lambda: time.monotonic() >= until
    )
    verdict = judgement.linearizable
    if verdict is None:
        limit = f"--states-max {states_max}" if judgement.states > states_max else f"--time {time_s:g}"
        row |= {"verdict": "unknown", "why": f"cut short by {limit}"}
    else:
        row |= {"verdict": verdict, "why": ""}
    if judgement.refuted_by is not None:
        at = judgement.refuted_by.returned
        assert at is not None  # only what returned refutes
        row["why"] = f"nothing explains the answer at {at}: {json.dumps(history.entries[at])}"
    return {**row, "states": judgement.states}


@contextlib.contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("histories"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)
