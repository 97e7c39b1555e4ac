"""Write docs/reference/mutants.md: the planted bugs, and what finds each.

    python docs/generate_mutants.py             hunt them all, and write the page
    python docs/generate_mutants.py HUNTS.json  the same from what `crdtsync sim mutants -o json` printed
    python docs/generate_mutants.py --check     exit 1 if the page does not fit the bugs; nothing is hunted

A hunt takes its time and may find a bug by another invariant once the core has changed. So the check compares what is
said of each bug, and that what found it was one of those that it must break, within its seeds.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from simulator.bugs import BUGS
from simulator.hunting import GROUNDS
from simulator.mutants import Bug, hunt

PAGE = Path(__file__).resolve().parent / "reference" / "mutants.md"

HEAD = """\
# Planted bugs

<!-- Written by docs/generate_mutants.py from simulator/bugs.py: change it there. -->

Does anybody notice? `crdtsync sim mutants` (`make mutants`) plants each of these bugs in the core and plays seeds of a scenario
that gives it a chance, until an invariant that it must break is reported. One that survives is a hole in the checkers or the
scenarios, and the command exits with 1. A bug replaces a function of the core from outside and for one run; what ships has no
switch for it. CI hunts five of them, `make slow` and `make mutants` all.

| mutant | what is wrong | hunted in | must break | within | found by |
|---|---|---|---|---|---|
"""

GROUNDS_HEAD = """
## Hunting grounds

Three to five regions for half a minute to two minutes; without a bug, none of them breaks anything in any seed of a hunt.

| ground | what goes wrong there |
|---|---|
"""


def said(bug: Bug) -> str:
    """What the page says of a bug before what found it."""
    alone = " Judged by digests alone." if bug.digest_only else ""
    return f"| `{bug.name}` | {bug.text}.{alone} | {bug.ground} | {', '.join(bug.invariants)} | {bug.seeds} seeds |"


def page(hunts: Mapping[str, Mapping[str, object]]) -> str:
    rows = []
    for bug in BUGS:
        found = hunts[bug.name]
        by = f"{found['invariant']}, seed {found['seeds']}" if found["found"] else "**survived**"
        rows.append(f"{said(bug)} {by} |")
    grounds = [f"| {name} | {(ground.__doc__ or '').strip()} |" for name, ground in GROUNDS.items()]
    return HEAD + "\n".join(rows) + "\n" + GROUNDS_HEAD + "\n".join(grounds) + "\n"


def wrong(text: str) -> list[str]:
    """What of the page does not fit the bugs."""
    found = []
    lines = text.splitlines()
    for bug in BUGS:
        (line,) = [line for line in lines if line.startswith(f"| `{bug.name}` |")] or [""]
        by, comma, seed = line.removeprefix(said(bug)).strip(" |").partition(", seed ")
        if not line.startswith(said(bug)) or not comma or by not in bug.invariants or not 1 <= int(seed) <= bug.seeds:
            found.append(f"{bug.name}: {line or 'is not there'}")
    known = {f"`{bug.name}`" for bug in BUGS}
    rows = [line for line in lines if line.startswith("| `")]
    found += [f"no such bug: {row}" for row in rows if row.split(" | ")[0].removeprefix("| ") not in known]
    return found


def main(arguments: list[str]) -> int:
    if "--check" in arguments:
        stale = wrong(PAGE.read_text("utf-8"))
        for line in stale:
            print(f"{PAGE.name}: {line}", file=sys.stderr)
        return 1 if stale else 0
    if arguments:
        hunts = json.loads(Path(arguments[0]).read_text("utf-8"))
    else:
        hunts = [hunt(bug).to_plain() for bug in BUGS]
    PAGE.write_text(page({found["mutant"]: found for found in hunts}), "utf-8")
    return 0 if all(found["found"] for found in hunts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
