"""`crdtsync region`: the regions as one of them sees them, and game days."""

from __future__ import annotations

from typing import Any, Final

import click

from crdtsync import commands
from regions.cli.options import REGION, examples, node_options
from regions.cli.output import print_record, print_rows

REGION_COLUMNS: Final = ("region", "self", "status", "behind", "rtt_ms", "offset_ms", "digest")


@click.group()
def region() -> None:
    """The regions as this one sees them; cut, heal, drain."""


@region.command("list")
@node_options
def list_(*, node: str, output: str) -> None:
    """List the regions: whom this one reaches, how far behind each is, whether digests agree.

    A peer's row is as last heard from it.
    """
    from regions.cli.session import ask

    print_rows(ask(node, commands.ListRegions()), REGION_COLUMNS, output)


@region.command()
@node_options
def links(node: str, output: str) -> None:
    """List this node's links to the other regions."""
    from regions.cli.session import ask

    _print_links(ask(node, commands.ListLinks()), output)


@region.command(
    epilog=examples(
        "crdtsync region cut us ap",
    ),
)
@click.argument("regions", type=REGION, nargs=-1)
@node_options
def cut(regions: tuple[str, ...], node: str, output: str) -> None:
    """Drop and refuse links to REGIONS (none: all others) until healed. For game days.

    Kept across a restart of the node; links between other pairs stay as they are.
    """
    from regions.cli.session import ask

    _print_links(ask(node, commands.CutLinks(regions=regions)), output)


@region.command()
@click.argument("regions", type=REGION, nargs=-1)
@node_options
def heal(regions: tuple[str, ...], node: str, output: str) -> None:
    """Allow links to REGIONS again (none: to all)."""
    from regions.cli.session import ask

    _print_links(ask(node, commands.HealLinks(regions=regions)), output)


@region.command()
@click.option("--off", is_flag=True, help="End the drain.")
@node_options
def drain(off: bool, node: str, output: str) -> None:
    """Start nothing more here and offer what waits to other regions; what runs is finished."""
    from regions.cli.session import ask

    print_record(ask(node, commands.Drain(off=off)), output)


def _print_links(rows: list[dict[str, Any]], output: str) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print_rows(rows, columns, output, empty="this region is alone: its configuration names no other member")
