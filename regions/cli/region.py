"""`crdtsync region`: the regions as one of them sees them, and game days."""

from __future__ import annotations

from typing import Any, Final

import click

from crdtsync import commands
from regions.cli.options import REGION, examples, node_options
from regions.cli.output import print_message, print_record, print_rows

REGION_COLUMNS: Final = ("region", "self", "state", "status", "behind", "rtt_ms", "offset_ms", "digest", "waits_for")
ANSWER_S: Final = 30.0  # a change is decided within seconds, or somebody is missing


@click.group()
def region() -> None:
    """The regions as this one sees them; add and forget; cut, heal, drain."""


@region.command("list")
@node_options
def list_(*, node: str, output: str) -> None:
    """List the regions: whom this one reaches, how far behind each is, whether digests agree.

    A peer's row is as last heard from it. STATE is member, joining, leaving or forgotten;
    WAITS_FOR is what a change of the membership waits for.
    """
    from regions.cli.session import ask

    rows = ask(node, commands.ListRegions())
    print_rows(rows, REGION_COLUMNS, output)
    if output != "json" and rows and "version" in rows[0]:
        print_message(f"membership: version {rows[0]['version']}, epoch {rows[0]['epoch']}")


@region.command(
    epilog=examples(
        "crdtsync region add sa --url ws://127.0.0.1:7504",
    ),
)
@click.argument("region", type=REGION)
@click.option("--url", default="", help="Where its peers dial it: ws://HOST:PORT. Without it, it dials them.")
@node_options
def add(*, region: str, url: str, node: str, output: str) -> None:
    """Have REGION join the cluster, by a majority of the members.

    Start its node with --join before or after. It reads everything, and takes part once every
    member has acknowledged that it was added: see region list.
    """
    from regions.cli.session import ask

    print_record(ask(node, commands.AddRegion(region, url), timeout_s=ANSWER_S), output)


@region.command(
    epilog=examples(
        "crdtsync region forget ap",
        "crdtsync region forget ap --stopped",
        "crdtsync region forget us ap --force   # a majority is gone for good",
    ),
)
@click.argument("regions", type=REGION, nargs=-1, required=True)
@click.option("--stopped", is_flag=True, help="Your word that it runs no longer: its share of limits returns as well.")
@click.option("--force", is_flag=True, help="A majority is gone for good: decide here alone, in a new epoch.")
@node_options
def forget(*, regions: tuple[str, ...], stopped: bool, force: bool, node: str, output: str) -> None:
    """Have a region leave the cluster for good, by a majority of the members.

    What it had told others stays. What it told nobody is no part of the history any more, and it
    is refused when it comes back. Its running attempts are lost, its tasks go to other regions.
    Whether it has stopped can be said later too: ask again, with --stopped.
    """
    from regions.cli.session import ask

    print_record(ask(node, commands.ForgetRegion(regions, stopped, force), timeout_s=ANSWER_S), output)


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
