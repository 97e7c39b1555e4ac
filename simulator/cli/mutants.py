"""`crdtsync sim mutants`: plant bugs, and see that each is noticed."""

from __future__ import annotations

import click

from regions.cli.options import output_option
from regions.cli.output import print_json, print_message


@click.command()
@click.argument("names", nargs=-1)
@output_option
def mutants(*, names: tuple[str, ...], output: str) -> int:
    """Plant each bug in the core (or only NAMES), and play seeds until an invariant that it must break is reported.

    Exit 1 if one survives: then the checkers or the scenarios are blind to it.
    """
    from simulator.bugs import BUGS
    from simulator.mutants import Hunt, hunt

    known = {bug.name: bug for bug in BUGS}
    for name in names:
        if name not in known:
            raise click.UsageError(f"no mutant is called {name!r}; there are {', '.join(known)}")
    hunts: list[Hunt] = []
    for bug in [known[name] for name in names] or BUGS:
        found = hunt(bug)
        hunts.append(found)
        if output != "json":
            end = f"found by {found.invariant} in seed {found.seeds}" if found.found else "SURVIVED"
            print_message(f"{bug.name:<34} {end}: {bug.text}")
    survivors = [found.mutant for found in hunts if not found.found]
    if output == "json":
        print_json([found.to_plain() for found in hunts])
    else:
        print_message(f"{len(hunts) - len(survivors)} of {len(hunts)} found")
    return 1 if survivors else 0
