"""`crdtsync lease`: who holds what, under which token, until when, who voted, and why it can't be had."""

from __future__ import annotations

from typing import Final

import click

from crdtsync import commands
from regions.cli.options import examples, node_options
from regions.cli.output import print_record, print_rows

COLUMNS: Final = ("scope", "holder", "token", "left_ms", "voters", "owner", "waiting", "why_not")


@click.group()
def lease() -> None:
    """Who holds which lock, queue or key, and why it can't be had."""


@lease.command("list")
@node_options
def list_(*, node: str, output: str) -> None:
    """List the leases that this region wants, holds, or voted for.

    Scopes are `user:NAME` (locks and leaders of programs), `queue:NAME`, `key:NAMESPACE/NAME/KEY` and `task:ID` (of
    quorum tasks). A region that neither wants a lease nor voted for it does not know of it.
    """
    from regions.cli.session import ask

    print_rows(ask(node, commands.LeaseList()), COLUMNS, output)


@lease.command(epilog=examples("crdtsync lease show billing", "crdtsync lease show queue:payments"))
@click.argument("name")
@node_options
def show(name: str, *, node: str, output: str) -> None:
    """Show one lease: of a program's NAME, or of a scope as `lease list` prints it. Exit code 3 if none is known."""
    from crdtsync.errors import UnknownLeaseError
    from regions.cli.session import ask

    scope = name if ":" in name else f"user:{name}"
    records = ask(node, commands.LeaseList(scope=scope))
    if not records:
        raise UnknownLeaseError(f"this region neither wants {scope!r} nor voted for anybody who holds it", scope=scope)
    print_record(records[0], output)


@lease.command(epilog=examples("crdtsync lease release billing --node ws://127.0.0.1:7701"))
@click.argument("name")
@node_options
def release(name: str, *, node: str, output: str) -> None:
    """Take NAME away from the client of this region that holds it.

    Its program finds out at its next renewal. Nobody else gets the lease before the time that the program was told of
    is over (`free_in_ms`), so that two never hold it. Exit code 75 if no client of this region holds it: ask the region
    that `lease show` names.
    """
    from regions.cli.session import ask

    print_record(ask(node, commands.LeaseRelease(name=name.removeprefix("user:"))), output)
