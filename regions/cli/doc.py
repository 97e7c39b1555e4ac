"""`crdtsync doc`: shared documents and those of tasks."""

from __future__ import annotations

import click

from crdtsync import commands
from regions.cli.options import TASK_ID, examples, node_options
from regions.cli.output import print_record


@click.group()
def doc() -> None:
    """Shared documents and those of tasks."""


@doc.command(
    epilog=examples(
        "crdtsync doc show runbook",
        "crdtsync doc show --task 0198c0d2... -o json",
    ),
)
@click.argument("name", required=False)
@click.option("--task", type=TASK_ID, metavar="ID", help="The document of this task.")
@node_options
def show(*, name: str | None, task: bytes | None, node: str, output: str) -> None:
    """Show a shared document by NAME, or a task's with --task."""
    if (name is None) == (task is None):
        raise click.UsageError("name one document: NAME for a shared one, --task ID for a task's")
    from regions.cli.session import ask

    print_record(ask(node, commands.ShowDocument(name=name or "", task=task or b"")), output)
