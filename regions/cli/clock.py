"""`crdtsync clock`: is this node's clock right, and what waits because somebody's is not."""

from __future__ import annotations

from typing import Any, Final

import click

from crdtsync import commands
from regions.cli.options import examples, node_options
from regions.cli.output import cell, on_terminal, print_json, print_json_line, print_message, table

EXIT_OFF: Final = 1
STOPPED: Final = ("off", "ahead")
PEER_COLUMNS: Final = (
    "region", "verdict", "offset_ms", "uncertainty_ms", "rtt_ms", "age_ms", "drift_ppm", "drift_uncertainty_ppm"
)  # fmt: skip
HELD_COLUMNS: Final = ("writer", "number", "commits", "wait", "until", "all_until")


@click.group()
def clock() -> None:
    """Clocks: offset and drift of every region, what a majority says, what is held back."""


@clock.command(epilog=examples("crdtsync clock show", "crdtsync clock show --watch", "crdtsync clock show -o json"))
@click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C; with -o json one object a line.")
@click.option("--every", type=click.FloatRange(min=0.1), default=2.0, show_default=True, help="Seconds between looks.")
@node_options
def show(*, watch: bool, every: float, node: str, output: str) -> int:
    """Show this node's clocks, what a majority says of them, and each region's offset and drift.

    Offsets are against this node's own time, by which it stamps; positive is ahead. Exit 1 where the clock is off, or
    was, and nothing new is stamped for now.
    """
    from regions.cli.session import ask, talk

    if not watch:
        record = ask(node, commands.ShowClock())
        _print(record, output)
        return _code(record)

    async def conversation(client: Any) -> int:
        import asyncio

        while True:
            record = await client.request(commands.ShowClock())
            if output == "json":
                print_json_line(record)
            else:
                if on_terminal():
                    click.clear()
                _print(record, output)
            await asyncio.sleep(every)

    return talk(node, conversation)


def _code(record: dict[str, Any]) -> int:
    return EXIT_OFF if record["verdict"] in STOPPED else 0


def _print(record: dict[str, Any], output: str) -> None:
    if output == "json":
        print_json(record)
        return
    majority = record["majority"]
    lines = {
        "region": record["region"],
        "verdict": record["verdict"] + ("" if record["stamps"] else ": nothing new is stamped"),
        "time": _utc(record["time_ms"]),
        "wall clock": f"{_utc(record['wall_ms'])} ({_signed(record['skew_ms'])}, {record['wall_verdict']})",
        "slews": f"{record['slew_ppm']:+d} ppm toward the wall clock" if record["slew_ppm"] else "no",
        "stamps ahead": f"{record['lead_ms']} ms",
        "majority": f"{majority['agree']} agree, {majority['measured']} measured, {majority['needed']} needed",
    }
    if majority["offset_ms"] is not None:
        lines["its time"] = f"{_signed(majority['offset_ms'])} ± {majority['uncertainty_ms']} ms against ours"
    if record["stamps_from_ms"] is not None:
        lines["stamps from"] = _utc(record["stamps_from_ms"])
    if record["waiting_reports"]:
        lines["reports of handlers that wait"] = str(record["waiting_reports"])
    if record.get("reissuing"):  # a node of an earlier version does not tell
        doing = record["reissuing"]
        waits = f", waits for {doing['waits_for']}" if doing["waits_for"] else ""
        lines["re-issues"] = f"{doing['writer']} from {doing['from']}{waits}"
    width = max(map(len, lines)) + 2
    for name, text in lines.items():
        click.echo(f"{name + ':':{width}}{text}")
    _print_table("peers", record["peers"], PEER_COLUMNS)
    held = [
        row | {"until": _utc(row["until_ms"]), "all_until": _utc(row["all_until_ms"])} for row in record["held_back"]
    ]
    _print_table("held back until its time comes", held, HELD_COLUMNS)
    for alarm in record["alarms"]:
        said = " ".join(f"{name}={cell(value)}" for name, value in alarm.items() if name not in ("what", "at_ms"))
        print_message(f"alarm since {_utc(alarm['at_ms'])}: {alarm['what']} {said}")
    if record["advice"]:
        print_message(record["advice"])


def _print_table(title: str, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    if rows:
        click.echo(f"{title}:")
        for line in table([[cell(row.get(column)) for column in columns] for row in rows], columns):
            click.echo(f"  {line}")


def _signed(ms: int) -> str:
    return f"{ms:+d} ms" if abs(ms) < 10_000 else f"{ms / 1_000:+.1f} s"


def _utc(ms: int | None) -> str:
    from crdtsync.views import utc

    return "-" if ms is None else utc(ms)
