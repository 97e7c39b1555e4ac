"""`crdtsync node run`: one node in the foreground, until SIGTERM or Ctrl-C."""

from __future__ import annotations

from pathlib import Path

import click

from regions.cli.options import config_option, examples, output_option


@click.group()
def node() -> None:
    """Run a node: one per region."""


@node.command(
    epilog=examples(
        "crdtsync node run --config eu.toml",
        "CRDTSYNC_REGION=eu CRDTSYNC_DATA_DIR=/var/lib/crdtsync crdtsync node run",
    ),
)
@config_option
@output_option
@click.option("--join", is_flag=True, help="On an empty data_dir: wait to be added by `crdtsync region add`.")
@click.option("--restored", is_flag=True, help="The data is a copy or a backup: ask the peers before trusting it.")
@click.option(
    "--trust-disk",
    is_flag=True,
    help="The data is as this node left it: use its shares of global limits before every other region has answered.",
)
@click.option("--quiet", is_flag=True, help="Do not print the URLs.")
@click.option("--supervisor", type=int, hidden=True, help="End with this process.")
def run(
    *,
    config_file: Path | None,
    output: str,
    join: bool,
    restored: bool,
    trust_disk: bool,
    quiet: bool,
    supervisor: int | None,
) -> int:
    """Run a node until SIGTERM or Ctrl-C; a second signal does not wait for handlers."""
    from regions import config
    from regions.cli.output import print_json_line, print_message
    from regions.lifeline import end_with
    from regions.memory import settle
    from regions.node import run_node

    if restored and trust_disk:
        raise click.UsageError("--restored and --trust-disk say opposite things about the data: give one of them")
    if supervisor is not None:
        end_with(supervisor)
    loaded = config.load(config_file, {"join": True} if join else None)

    def announce(url: str, peer_url: str) -> None:
        if quiet:
            return
        if output == "json":
            print_json_line({"region": loaded.config.region, "url": url, "peer_url": peer_url})
        else:
            print_message(f"{loaded.config.region}: clients and workers {url}, peers {peer_url}")

    settle()
    return run_node(loaded.config, announce, restored=restored, vouched=trust_disk)
