"""`World`: builds the regions of a scenario, runs it under one seed, and stops when it is over.

    world = World(scenario, seed=7, kernel="heap", checkers=all_checkers())
    result = world.run()

For those who judge: `world.trace` (every event), `world.history` (what each client saw), `world.sink` (what happened to
the world outside), `world.regions["eu"]` (the node: its replica's public state, disk, clocks), `world.divergence` (over
time: how many different states there were). `world.violation(...)` reports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from simulator.result import Checker, Mutant, Operation, Result, Violation
from simulator.scenario import Scenario
from simulator.trace import Trace


class World:
    """One run.

    Args:
        scenario: What to play. Checked now.
        seed: What chance does.
        kernel: "heap", or "trio" for handlers that use trio. The trace hash is the same.
        checkers: Who judges.
        mutants: Planted bugs.
        keep: Whether `trace.records` holds every record; without, only the hash and what checkers asked for.
        trace_to: Where the trace is written as JSON lines.

    Attributes:
        regions: Region name -> `Node`. `nodes` has second processes ("eu~2") too.
        history: What clients did and saw, in order of their calls.
        sink: What handlers did to the world outside: `sink.done[key]`.
        plan: The plan in effect.
    """

    trace: Trace
    history: list[Operation]
    regions: Mapping[str, Any]

    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        *,
        kernel: str = "heap",
        checkers: Sequence[Checker] = (),
        mutants: Sequence[Mutant] = (),
        keep: bool = True,
        trace_to: TextIO | None = None,
    ) -> None:
        scenario.check()
        self.scenario = scenario
        self.seed = seed
        self.kernel_name = kernel
        self.checkers = tuple(checkers)
        self.mutants = tuple(mutants)
        self.keep = keep
        self.trace_to = trace_to

    def run(self) -> Result:
        """Play the scenario to its end. Once per world."""
        raise NotImplementedError

    def violation(self, invariant: str, text: str, *, causes: tuple[int, ...] = ()) -> Violation:
        """Report that an invariant does not hold now."""
        raise NotImplementedError
