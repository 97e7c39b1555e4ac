"""Programs that hold locks in the simulator, and the checker of leases that judges them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from simulator.checkers import all_checkers, vacuity_of
from simulator.checkers.exclusivity import Exclusivity
from simulator.hunting import GROUNDS
from simulator.locks import Register
from simulator.plan import Plan
from simulator.scenario import Arrivals, Load, Region, Scenario
from simulator.world import World


def play(scenario: Scenario, seed: int = 1) -> tuple[World, Counter[str], Counter[str]]:
    """The world, how often each kind of thing happened to programs, and what was judged how often."""
    checkers = all_checkers()
    world = World(scenario, seed, checkers=checkers, keep=False)
    seen: Counter[str] = Counter()
    world.trace.listen(("lock.held", "lock.renewed", "register.write", "lock.over"), lambda r: seen.update([r.kind]))
    world.run()
    return world, seen, vacuity_of(checkers).judged


def test_in_good_weather_programs_take_turns_and_every_invariant_is_judged() -> None:
    regions = tuple(Region(name) for name in ("ap", "eu", "us"))
    loads = (Load("locks", Arrivals(per_s=2.0)),)
    calm = Scenario("calm", regions, loads=loads, plan=Plan((), 8_000), settings={"lease_ms": 1_000})
    world, seen, judged = play(calm)
    assert not world.violations, world.violations
    assert seen["lock.held"] > 3
    assert seen["lock.renewed"] > 0
    assert seen["register.write"] > 10
    for invariant in Exclusivity.invariants:
        assert judged[invariant] > 0, invariant


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(1, 13))
def test_cuts_crashes_pauses_and_set_clocks_never_make_two_holders(seed: int) -> None:
    world, seen, _ = play(GROUNDS["locks"](seed), seed)
    assert not world.violations, world.violations
    assert seen["lock.held"] > 0


def test_the_register_refuses_the_past() -> None:
    register = Register()
    told: list[Any] = [register.write(2, "a"), register.write(1, "b"), register.write(2, "a"), register.write(3, "c")]
    assert told == [True, False, True, True]
