"""`crdtsync sim sweep`: many seeds."""

from __future__ import annotations

import os

import click

from regions.cli.options import output_option
from regions.cli.output import print_json, print_message
from simulator.cli.bar import bar
from simulator.sweep import Outcome, Summary

SHOWN_MAX = 20  # violations told to a person; `-o json` has all that were kept


@click.command()
@click.option("--seeds", metavar="A..B", default="0..99", show_default=True, help="From A to B, both included.")
@click.option("--scenario", metavar="SCENARIO", help="A TOML file, or the name of one that comes with crdtsync.")
@click.option("--swarm", is_flag=True, help="Each seed draws a scenario of its own (the default).")
@click.option("--jobs", type=click.IntRange(1, 256), default=None, help="Worker processes; one per core unless given.")
@click.option("--time", "time_s", type=float, default=0, metavar="S", help="Begin no seed after S seconds.")
@click.option("--kernel", type=click.Choice(["heap", "trio"]), default="heap", show_default=True)
@click.option("--app", "app_spec", metavar="FILE:app", default="", help="Your own tasks.")
@output_option
def sweep(
    *,
    seeds: str,
    scenario: str | None,
    swarm: bool,
    jobs: int | None,
    time_s: float,
    kernel: str,
    app_spec: str,
    output: str,
) -> int:
    """Play many seeds and judge them all; play a share of them again elsewhere and compare.

    Exit 1 on a violation, on a seed that came out differently when it was played again in a fresh process, and (from
    500 seeds of the swarm on) on a fault that never met an invariant that it can meet. Ctrl-C ends it at once, with
    what was found so far, and exit 130.
    """
    from regions.execution.registry import load_app
    from simulator.source import SWARM, Source
    from simulator.sweep import sweep as play_all

    if swarm and scenario:
        raise click.UsageError("--swarm draws its own scenarios: leave --scenario out")
    source = Source(scenario or SWARM, app_spec, load_app, kernel=kernel)
    chosen = seeds_of(seeds)
    source.scenario(chosen[0])  # a mistake in it is told once, and not by every worker
    with bar(len(chosen), "seeds", counts=True) as show:

        def on_outcome(_outcome: Outcome, summary: Summary) -> None:
            if show is not None:
                failed = f"{len(summary.failed)} failed" if summary.failed else "clean"
                speed = summary.virtual_s / max(summary.real_s, 1e-9)
                show(summary.seeds, text=f"seeds, {failed}, {speed:.0f}x real time")

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        summary = play_all(source, chosen, jobs=jobs or cores, time_s=time_s, on_outcome=on_outcome)
    if output == "json":
        print_json(summary.to_plain())
    else:
        _tell(summary)
    if summary.interrupted:
        print_message(f"interrupted after {summary.seeds} of {len(chosen)} seeds")
        return 130
    return 0 if summary.ok else 1


def seeds_of(text: str) -> range:
    """The seeds of "3..7", which are 3 to 7, or of "5", which is that alone."""
    first, dots, last = text.partition("..")
    try:
        found = range(int(first), int(last if dots else first) + 1)
    except ValueError:
        raise click.BadParameter(f"{text!r}: write A..B, as in 0..999", param_hint="--seeds") from None
    if not found:
        raise click.BadParameter(f"{text!r}: holds no seed", param_hint="--seeds")
    return found


def _tell(summary: Summary) -> None:
    plain = summary.to_plain()
    click.echo(
        f"{summary.seeds} seeds, {plain['virtual_h']:.2f} virtual hours, {summary.events:,} events in "
        f"{summary.real_s:.1f} s: {plain['events_per_s']:,} events/s, {plain['seeds_per_h']:,} seeds/h, "
        f"{summary.virtual_s / max(summary.real_s, 1e-9):.0f} times real time"
    )
    for violation in summary.violations[:SHOWN_MAX]:
        click.echo(
            f"VIOLATION {violation['invariant']} seed {violation['seed']} at {violation['at_s']:.3f} s: {violation['text']}"
        )
        click.echo(f"    {violation['reproduce']}")
    if len(summary.violations) > SHOWN_MAX:
        click.echo(f"and {len(summary.violations) - SHOWN_MAX} more; -o json has them")
    click.echo(f"{summary.again} seeds played again elsewhere: {'equal' if not summary.unequal else 'NOT EQUAL'}")
    for seed, difference in summary.unequal:
        click.echo(f"    seed {seed}: {difference}")
    _tell_vacuity(summary)
    if summary.slowest:
        click.echo("slowest: " + ", ".join(f"seed {seed} {real_s} s" for real_s, seed in summary.slowest))
    if not summary.ok:
        click.echo("FAILED" + (f"; first failing seed: {summary.failed[0]}" if summary.failed else ""))


def _tell_vacuity(summary: Summary) -> None:
    """How often each fault met the invariants: in all, and where least."""
    if summary.vacuity:
        click.echo("fault               met     invariants  rarest")
    for kind, cells in sorted(summary.vacuity.items()):
        rarest = sorted((count, name) for name, count in cells.items() if count)[:3]
        told = ", ".join(f"{name} {count}" for count, name in rarest)
        click.echo(f"{kind:<18}{sum(cells.values()):>8,}  {sum(map(bool, cells.values())):>10}  {told}")
    for kind, invariant in summary.missing[:SHOWN_MAX]:
        click.echo(f"NEVER MET: {kind} and {invariant}")
    if len(summary.missing) > SHOWN_MAX:
        click.echo(f"and {len(summary.missing) - SHOWN_MAX} more that never met; -o json has them")
