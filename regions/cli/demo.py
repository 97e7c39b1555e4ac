"""`crdtsync demo`: the story of a cut and its healing, told on the terminal while it happens."""

from __future__ import annotations

import click

from regions.cli.options import output_option


@click.command()
@click.option("--keep", is_flag=True, help="Keep the data, and say how to start a cluster on it.")
@output_option
def demo(keep: bool, output: str) -> int:
    """Three regions on this machine: cut one off, let both sides work, heal, and check that they agree.

    Exit 0 only if everything that it claims was checked against the nodes and against the ledger of
    the payment gateway. Takes under a minute and leaves no process behind, also after Ctrl-C. With
    -o json, the story goes to stderr and the checks to stdout.
    """
    from regions.demo import run_demo

    return run_demo(keep=keep, as_json=output == "json")
