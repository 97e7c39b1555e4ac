"""Small worlds for tests."""

from __future__ import annotations

from simulator import Arrivals, Fault, Load, Plan, Region, Scenario, World

MODELS = ("charge", "flaky", "dag", "keyed", "long", "cancel_race")


def scenario(*faults: Fault, regions=("eu", "us", "ap"), per_s=0.3, heal_ms=5_000, duration_ms=30_000, **others):
    loads = tuple(Load(model, Arrivals(per_s=per_s)) for model in MODELS)
    others.setdefault("loads", loads)
    return Scenario(
        name="a test",
        regions=tuple(map(Region, regions)),
        plan=Plan(faults, heal_ms=heal_ms),
        duration_ms=duration_ms,
        **others,
    )


def played(*faults: Fault, seed=1, kernel="heap", **others):
    world = World(scenario(*faults, **others), seed, kernel=kernel)
    world.run()
    return world


def stormy():
    """A bit of everything, for runs that are compared with one another."""
    return scenario(
        Fault("isolate", 1_500, 1_000, ("eu",)),
        Fault("kill", 2_000, 500, ("us",), {"when": "send", "nth": 3}),
        Fault("link_loss", 1_000, 2_000),
        Fault("link_reorder", 1_000, 2_000, ("us<>ap",)),
        Fault("clock_step", 2_000, 0, ("ap",)),
        Fault("worker_crash", 1_500, 500, ("ap",)),
        Fault("disk_failing", 2_000, 1_000, ("ap",)),
        heal_ms=3_000,
    )
