"""`crdtsync sim`: the simulator on the command line; one module per command, imported when it is used."""

from __future__ import annotations

from typing import Final

import click

from regions.cli.lazy import LazyGroup

COMMANDS: Final = {
    "run": ("simulator.cli.run:run", "Play a scenario under one seed, and judge it."),
    "sweep": ("simulator.cli.sweep:sweep", "Play many seeds, and judge them all."),
    "shrink": ("simulator.cli.shrink:shrink", "Make the smallest scenario that still fails."),
    "mutants": ("simulator.cli.mutants:mutants", "Plant bugs, and see that each is noticed."),
    "judge": ("simulator.cli.judge:judge", "Was a recorded history linearizable?"),
    "list": ("simulator.cli.list:list_", "Which scenarios, faults and expectations there are."),
}


@click.group(cls=LazyGroup, nouns=COMMANDS)
def sim() -> None:
    """Run a cluster in virtual time, under faults, from one seed; the same seed gives the same run, bit for bit."""
