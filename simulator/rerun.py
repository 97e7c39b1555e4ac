"""Runs a seed again in a fresh process under another `PYTHONHASHSEED`, and says where the two runs part.

    difference = rerun(partial(read, "split_brain"), seed=7)
    assert difference is None, difference

What depends on the order of a set, on an address in memory or on what an earlier run left behind shows here.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Final, NamedTuple

from simulator.scenario import Scenario
from simulator.world import World

HASH_SEEDS: Final = 4_294_967_295  # what PYTHONHASHSEED takes
TIMEOUT_S: Final = 600

Make = Callable[[], Scenario]


class Difference(NamedTuple):
    """The first event of each run that the other has not."""

    seq: int
    here: str  # the event's JSON line; "" where this run was over
    there: str

    def __str__(self) -> str:
        return (
            f"the runs part at event {self.seq}:\n  here:  {self.here or '(over)'}\n  there: {self.there or '(over)'}"
        )


def fresh_hash(make: Make, seed: int, *, kernel: str = "heap", hash_seed: int = 1, trace: Path | None = None) -> str:
    """The trace hash of that run in a new process.

    Args:
        make: Makes the scenario there; picklable, so a function of a module or a `partial` of one.
        trace: Where to write its JSON lines.

    Raises:
        RuntimeError: If the process failed; the message is what it said.
    """
    order = pickle.dumps((make, seed, kernel, None if trace is None else str(trace), sys.path))
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed % HASH_SEEDS)}
    done = subprocess.run(
        [sys.executable, "-m", "simulator.rerun"],
        input=order,
        capture_output=True,
        env=environment,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the second run failed: {done.stderr.decode(errors='replace')[-2_000:]}")
    return done.stdout.decode().strip()


def rerun(make: Make, seed: int, *, kernel: str = "heap", hash_seed: int = 1) -> Difference | None:
    """Run it here and in a fresh process; None if the two are equal, else where they part."""
    here = World(make(), seed, kernel=kernel, keep=False)
    here.run()
    if fresh_hash(make, seed, kernel=kernel, hash_seed=hash_seed) == here.trace.hash:
        return None
    with tempfile.TemporaryDirectory() as folder:
        mine, others = Path(folder, "here.jsonl"), Path(folder, "there.jsonl")
        with mine.open("w", encoding="utf-8") as out:
            World(make(), seed, kernel=kernel, keep=False, trace_to=out).run()
        fresh_hash(make, seed, kernel=kernel, hash_seed=hash_seed, trace=others)
        return first_difference(mine, others)


def first_difference(one: Path, other: Path) -> Difference | None:
    """Where two traces part; None if they are equal."""
    with one.open(encoding="utf-8") as left, other.open(encoding="utf-8") as right:
        for mine, others in zip_longest(left, right, fillvalue=""):
            if mine != others:
                return Difference(json.loads(mine or others)["seq"], mine.strip(), others.strip())
    return None


def main() -> None:
    """The other process: a run as ordered on stdin, its hash on stdout."""
    make, seed, kernel, trace, path = pickle.loads(sys.stdin.buffer.read())  # noqa: S301 - from our own parent
    sys.path[:] = path
    if trace is None:
        world = World(make(), seed, kernel=kernel, keep=False)
        world.run()
    else:
        with Path(trace).open("w", encoding="utf-8") as out:
            world = World(make(), seed, kernel=kernel, keep=False, trace_to=out)
            world.run()
    print(world.trace.hash)  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
