"""`crdtsync sim shrink`: from a failing seed to a scenario that a person can read."""

from __future__ import annotations

from pathlib import Path

import click

from regions.cli.options import output_option
from regions.cli.output import print_json, print_message
from simulator.cli.bar import bar


@click.command()
@click.option("--seed", type=int, required=True, help="A seed that fails.")
@click.option(
    "--scenario", metavar="SCENARIO", default="swarm", show_default=True, help="A TOML file, a name, or swarm."
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Where the scenario goes.")
@click.option("--kernel", type=click.Choice(["heap", "trio"]), default="heap", show_default=True)
@click.option("--app", "app_spec", metavar="FILE:app", default="", help="Your own tasks.")
@click.option("--time", "time_s", type=float, default=60, show_default=True, metavar="S", help="Stop after S seconds.")
@output_option
def shrink(*, seed: int, scenario: str, out: Path, kernel: str, app_spec: str, time_s: float, output: str) -> int:
    """Make the smallest scenario that still breaks the invariant which this seed breaks, and write it as TOML.

    Exit 1 if the seed passes. Ctrl-C writes the smallest that was found by then, and ends with 130.
    """
    from regions.execution.registry import load_app
    from simulator.checkers import all_checkers
    from simulator.scenario_text import to_toml
    from simulator.shrink import NothingFailsError, Shrunk
    from simulator.shrink import shrink as make_smaller
    from simulator.source import Source

    source = Source(scenario, app_spec, load_app, kernel=kernel)
    try:
        with bar(time_s, "the first run") as show:

            def on_run(found: Shrunk) -> None:
                if show is not None:
                    left = found.scenario
                    parts = f"{len(left.plan.faults)} faults, {len(left.loads)} loads, {len(left.regions)} regions"
                    show(found.real_s, text=f"run {found.runs}: {parts} are left")

            found = make_smaller(
                source.scenario(seed),
                seed,
                judges=all_checkers,
                kernel=kernel,
                time_s=time_s,
                progress=print_message,
                on_run=on_run,
            )
    except NothingFailsError as error:
        print_message(str(error))
        return 1
    told = f"""{found.invariant}: {found.text}

Shrunk from: {source.command(seed)}
Play it:     {Source(str(out), kernel=kernel).command(seed)}"""
    out.write_text(to_toml(found.scenario, app=source.app_place, comment=told), encoding="utf-8")
    small = found.scenario
    if output == "json":
        print_json(
            {
                "seed": seed,
                "invariant": found.invariant,
                "text": found.text,
                "out": str(out),
                "faults": len(small.plan.faults),
                "loads": len(small.loads),
                "regions": len(small.regions),
                "runs": found.runs,
                "real_s": round(found.real_s, 1),
                "over": found.over,
            }
        )
        return 130 if found.interrupted else 0
    click.echo(f"{found.invariant}: {found.text}")
    why = "interrupted" if found.interrupted else "time is up"
    click.echo(
        f"{len(small.plan.faults)} faults, {len(small.loads)} loads, {len(small.regions)} regions are left after "
        f"{found.runs} runs in {found.real_s:.1f} s{'' if found.over else f' ({why}: it may get smaller yet)'}"
    )
    click.echo(Source(str(out), kernel=kernel).command(seed))
    return 130 if found.interrupted else 0
