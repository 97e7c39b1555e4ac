"""`crdtsync config`: what a node would run with, and where each value comes from."""

from __future__ import annotations

from pathlib import Path

import click

from regions.cli.options import config_option, examples, output_option


@click.group()
def config() -> None:
    """Show and check a node's configuration."""


@config.command(
    epilog=examples(
        "crdtsync config show --config eu.toml --origin",
        "CRDTSYNC_LOST_AFTER_MS=5000 crdtsync config show --config eu.toml -o json",
    ),
)
@config_option
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
@output_option
def show(*, config_file: Path | None, origin: bool, output: str) -> None:
    """Print the configuration that a node would run with."""
    from regions.cli.output import print_record, print_rows
    from regions.config import flat, load

    loaded = load(config_file)
    values = flat(loaded.config)
    if not origin:
        print_record(values, output)
        return
    rows = [{"key": key, "value": value, "origin": loaded.origins.get(key, "default")} for key, value in values.items()]
    print_rows(rows, ["key", "value", "origin"], output)


@config.command(
    epilog=examples(
        "crdtsync config check --config eu.toml",
    ),
)
@config_option
@output_option
def check(config_file: Path | None, output: str) -> None:
    """Exit 0 if the configuration is sound, 78 with every problem if not."""
    from regions.cli.output import print_json, print_message
    from regions.config import load

    loaded = load(config_file)
    if output == "json":
        print_json({"ok": True, "region": loaded.config.region, "problems": []})
    else:
        print_message(f"{config_file or 'environment'}: ok, region {loaded.config.region}")
