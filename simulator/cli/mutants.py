"""`crdtsync sim mutants`: plant bugs, and see that each is noticed."""

from __future__ import annotations

import click

from regions.cli.options import output_option
from regions.cli.output import print_json, print_message
from simulator.cli.bar import bar


@click.command()
@click.argument("names", nargs=-1)
@output_option
def mutants(*, names: tuple[str, ...], output: str) -> int:
    """Plant each bug in the core (or only NAMES), and play seeds until an invariant that it must break is reported.

    Exit 1 if one survives: then the checkers or the scenarios are blind to it. Ctrl-C ends with 130 and tells what was
    found so far.
    """
    from simulator.bugs import BUGS
    from simulator.mutants import Hunt, hunt

    known = {bug.name: bug for bug in BUGS}
    for name in names:
        if name not in known:
            raise click.UsageError(f"no mutant is called {name!r}; there are {', '.join(known)}")
    chosen = [known[name] for name in names] or list(BUGS)
    hunts: list[Hunt] = []
    interrupted = False
    try:
        with bar(len(chosen), "mutants", counts=True) as show:
            for bug in chosen:
                if show is not None:
                    show(len(hunts), text=bug.name)
                found = hunt(bug)
                hunts.append(found)
                if output != "json":
                    end = f"found by {found.invariant} in seed {found.seeds}" if found.found else "SURVIVED"
                    print_message(f"{bug.name:<34} {end}: {bug.text}")
    except KeyboardInterrupt:
        interrupted = True
    survivors = [found.mutant for found in hunts if not found.found]
    if output == "json":
        print_json([found.to_plain() for found in hunts])
    else:
        print_message(f"{len(hunts) - len(survivors)} of {len(hunts)} found")
    if survivors:
        print_message(f"SURVIVED: {', '.join(survivors)}")
    if interrupted:
        print_message(f"interrupted after {len(hunts)} of {len(chosen)} mutants")
        return 130
    return 1 if survivors else 0
