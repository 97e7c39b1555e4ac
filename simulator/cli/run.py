"""`crdtsync sim run`: one scenario, one seed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from regions.cli.options import output_option
from regions.cli.output import on_terminal, print_record


@click.command()
@click.argument("scenario")
@click.option("--seed", type=int, default=0, show_default=True, help="What chance does.")
@click.option("--kernel", type=click.Choice(["heap", "trio"]), default="heap", show_default=True)
@click.option("--app", "app_spec", metavar="FILE:app", help="Your own tasks, for loads of the model task:NAME.")
@click.option("--trace", "trace_file", type=click.Path(dir_okay=False, path_type=Path), help="Write JSON lines here.")
@output_option
def run(
    *,
    scenario: str,
    seed: int,
    kernel: str,
    app_spec: str | None,
    trace_file: Path | None,
    output: str,
) -> int:
    """Play SCENARIO (a TOML file, or the name of one that comes with crdtsync) and judge it.

    Exit 1 if an invariant was violated or an expectation not met.
    """
    from regions.execution.registry import load_app
    from simulator.checkers import all_checkers
    from simulator.scenario_toml import read
    from simulator.world import World

    app = None if app_spec is None else load_app(app_spec)
    played = read(scenario, app=app)
    with contextlib.ExitStack() as stack:
        out = None if trace_file is None else stack.enter_context(trace_file.open("w", encoding="utf-8"))
        progress = stack.enter_context(progress_bar(played.name, played.duration_ms / 1_000))
        world = World(
            played,
            seed,
            kernel=kernel,
            checkers=all_checkers(),
            keep=False,
            trace_to=out,
            progress=progress,
        )
        result = world.run()
    print_record(result.to_plain(), output)
    return 0 if result.ok else 1


@contextlib.contextmanager
def progress_bar(text: str, total_s: float) -> Iterator[Callable[[float], None] | None]:
    """A bar on a terminal's stderr, moved from within the simulation; nothing where nobody looks."""
    if not on_terminal():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    # No thread of its own: real time is out of bounds while the simulation runs.
    with Progress(console=Console(stderr=True), auto_refresh=False, transient=True) as bar:
        task = bar.add_task(text, total=total_s)

        def show(virtual_s: float) -> None:
            bar.update(task, completed=virtual_s, refresh=True)

        yield show
