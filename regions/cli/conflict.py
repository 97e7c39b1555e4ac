"""`crdtsync conflict`: what several regions did at once, and how it was resolved."""

from __future__ import annotations

from typing import Final

import click

from crdtsync import commands
from regions.cli.options import node_options
from regions.cli.output import print_record

COLUMNS: Final = ("id", "task", "kind", "rule", "winner", "losers", "compensations")


@click.group()
def conflict() -> None:
    """What several regions did at once, and how it was resolved."""


@conflict.command("list")
@click.option("--limit", type=click.IntRange(min=0), default=0, help="At most so many; 0: all.")
@node_options
def list_(*, limit: int, node: str, output: str) -> None:
    """List conflicts: the rule that decided each, who won, and what was undone."""
    from regions.cli.session import print_listing

    print_listing(node, commands.ListConflicts(limit=limit), COLUMNS, output, empty="no conflicts")


@conflict.command()
@click.argument("id")
@node_options
def show(*, id: str, node: str, output: str) -> None:
    """Show one conflict with both sides and what its rule decided by."""
    from regions.cli.session import ask

    print_record(ask(node, commands.ShowConflict(id=id)), output)
