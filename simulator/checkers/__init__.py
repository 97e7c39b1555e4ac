"""Who judges a run: one family of invariants per file, each invariant under the id by which it is known.

    result = World(scenario, seed=7, checkers=all_checkers()).run()
    assert result.ok, result.violations

The checkers judge from the trace and from what replicas show, by their own reckoning (`chronicle`, `reckoning`); they
never call the rule that they check. A run needs a fresh set of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from simulator.checkers.boundedness import Boundedness
from simulator.checkers.checkpoints import Checkpoints
from simulator.checkers.chronicle import Chronicle, Family
from simulator.checkers.conflicts import Conflicts
from simulator.checkers.convergence import Convergence
from simulator.checkers.dependencies import Dependencies
from simulator.checkers.durability import Durability
from simulator.checkers.exclusivity import Exclusivity
from simulator.checkers.fencing import Fencing
from simulator.checkers.idempotency import Idempotency
from simulator.checkers.lease_histories import LeaseHistories
from simulator.checkers.lifecycle import Lifecycle
from simulator.checkers.limits import Limits
from simulator.checkers.liveness import Liveness
from simulator.checkers.members import Members
from simulator.checkers.placement import Placement
from simulator.checkers.retries import Retries
from simulator.checkers.time import Time
from simulator.result import Checker
from simulator.vacuity import Vacuity

FAMILIES: Final[tuple[type[Family], ...]] = (
    Durability,
    Convergence,
    Lifecycle,
    Idempotency,
    Conflicts,
    Placement,
    LeaseHistories,
    Dependencies,
    Checkpoints,
    Retries,
    Time,
    Boundedness,
    Exclusivity,
    Fencing,
    Members,
    Limits,
    Liveness,
)

#: The ids of all invariants that are judged.
INVARIANTS: Final = tuple(name for family in FAMILIES for name in family.invariants)
assert len(set(INVARIANTS)) == len(INVARIANTS)


def all_checkers() -> tuple[Checker, ...]:
    """A fresh set for one run: the chronicle first, then every family."""
    chronicle = Chronicle()
    return (chronicle, *(family(chronicle) for family in FAMILIES))


def vacuity_of(checkers: tuple[Checker, ...]) -> Vacuity:
    """The vacuity table of the run that these checkers judged."""
    for checker in checkers:
        if isinstance(checker, Chronicle):
            return checker.vacuity
    raise ValueError("these checkers hold no chronicle")


def lease_histories(checkers: Iterable[object]) -> list[dict[str, Any]]:
    """What the holders of leases believed in the run that these checkers judged, as `crdtsync sim judge` reads it."""
    return [history for checker in checkers if isinstance(checker, LeaseHistories) for history in checker.histories()]


__all__ = ["FAMILIES", "INVARIANTS", "Chronicle", "Family", "all_checkers", "lease_histories", "vacuity_of"]
