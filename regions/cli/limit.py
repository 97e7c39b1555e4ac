"""`crdtsync limit`: how much may run at once, or start in a while, in a region or over all of them."""

from __future__ import annotations

from typing import Any, Final

import click

from crdtsync import commands
from regions.cli.options import examples, node_options
from regions.cli.output import print_json, print_record, print_rows

LIST_COLUMNS: Final = ("target", "kind", "scope", "amount", "period_ms", "running", "waiting", "origin")
REGION_COLUMNS: Final = ("region", "rights", "running", "waiting", "linked")


class TargetType(click.ParamType[str]):
    """`queue:NAME`, `task:NAME` or `key:KEY`."""

    name = "target"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        kind, colon, name = str(value).partition(":")
        if kind not in ("queue", "task", "key") or not colon or not name:
            self.fail(f"{value!r} is not a target: queue:NAME, task:NAME or key:KEY", param, ctx)
        return str(value)


TARGET: Final = TargetType()


@click.group()
def limit() -> None:
    """How much may run at once, or start in a while, over all regions."""


@limit.command(
    "set",
    epilog=examples(
        "crdtsync limit set queue:billing --concurrency 10",
        "crdtsync limit set task:charge --rate 100/min",
        "crdtsync limit set key:acme --concurrency 1 --scope region",
    ),
)
@click.argument("target", type=TARGET)
@click.option("--concurrency", type=click.IntRange(min=0), metavar="N", help="How many attempts may run at once.")
@click.option("--rate", metavar="N/PERIOD", help="How many may be started in a period: 5/s, 100/min, 1000/15min.")
@click.option(
    "--scope",
    type=click.Choice(["global", "region"]),
    default="global",
    help="Count all regions together, also through a partition; or each by itself.",
)
@node_options
def set_(*, target: str, concurrency: int | None, rate: str | None, scope: str, node: str, output: str) -> None:
    """Set a limit on TARGET for all regions: queue:NAME, task:NAME or key:KEY.

    What apps declare gives way to it until they declare something new. A limit of 0 stops all. Raising one takes
    effect once the region that mints its rights has heard of it, lowering one as attempts end.
    """
    from crdtsync.limit import parse_rate
    from regions.cli.session import ask

    if concurrency is None and rate is None:
        raise click.UsageError("give --concurrency, --rate, or both")
    starts, per_ms = parse_rate(rate) if rate is not None else (None, 1_000)
    declared = commands.LimitDeclaration(target, concurrency, starts, per_ms, scope)
    print_rows(ask(node, commands.SetLimit(declared)), LIST_COLUMNS, output)


@limit.command("list")
@node_options
def list_(*, node: str, output: str) -> None:
    """List the limits in force, with what runs and what waits under each as this region sees it."""
    from regions.cli.session import ask

    print_rows(ask(node, commands.ListLimits()), LIST_COLUMNS, output)


@limit.command(epilog=examples("crdtsync limit show queue:billing"))
@click.argument("target", type=TARGET)
@node_options
def show(target: str, node: str, output: str) -> None:
    """Show the limits on TARGET: which region holds how many rights, what runs there, what waits.

    What other regions run and want is as last heard from them. Exit 3 if there is none.
    """
    from regions.cli.session import ask

    records = ask(node, commands.ListLimits(target))
    if output == "json":
        print_json(records)
        return
    for record in records:
        regions = record.pop("regions")
        print_record({key: value for key, value in record.items() if value is not None}, output)
        print_rows(regions, REGION_COLUMNS, output)


@limit.command()
@click.argument("target", type=TARGET)
@node_options
def remove(target: str, node: str, output: str) -> None:
    """Take the limits on TARGET away, in all regions. Exit 3 if there is none."""
    from regions.cli.session import ask

    print_record(ask(node, commands.RemoveLimit(target)), output)
