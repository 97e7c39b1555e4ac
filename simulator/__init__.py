"""Many regions in one thread, in virtual time, under faults, from one seed.

    from simulator import Arrivals, Fault, Load, Plan, Region, Scenario, World

    scenario = Scenario(
        name="an island",
        regions=(Region("eu"), Region("us"), Region("ap")),
        plan=Plan((Fault("isolate", start_ms=10_000, duration_ms=20_000, targets=("eu",)),)),
    )
    print(World(scenario, seed=1).run().to_plain())

It drives the same core that production drives and adds no rule of its own: what runs here is what ships.
"""

from __future__ import annotations

from simulator.plan import Fault, Plan
from simulator.result import Checker, Mutant, Operation, Result, Violation
from simulator.scenario import Arrivals, Links, Load, Region, Scenario
from simulator.trace import Record, Trace
from simulator.world import World

__all__ = [
    "Arrivals",
    "Checker",
    "Fault",
    "Links",
    "Load",
    "Mutant",
    "Operation",
    "Plan",
    "Record",
    "Region",
    "Result",
    "Scenario",
    "Trace",
    "Violation",
    "World",
]
