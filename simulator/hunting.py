"""Hunting grounds: small scenarios in which planted bugs have a chance to show, one function of the seed each."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from crdtsync.limit import Limit
from simulator.plan import Fault, Plan
from simulator.scenario import Arrivals, Load, Region, Scenario
from simulator.workload import LIMITED

REGIONS: Final = ("ap", "eu", "us")


def _rng(seed: int, ground: str) -> random.Random:
    return random.Random(f"{seed}/{ground}")  # noqa: S311 - chance, no secret


def _load(model: str, per_s: float, **options: Any) -> Load:
    return Load(model, Arrivals(per_s=per_s), options=options)


MIXED: Final = (
    _load("charge", 1.5),
    _load("cancel_race", 0.6),
    _load("keyed", 0.6),
    _load("flaky", 0.8, attempts=2),
    _load("dag", 0.3),
    _load("long", 0.3),
)


def _scenario(name: str, faults: tuple[Fault, ...], loads: tuple[Load, ...] = MIXED, **rest: Any) -> Scenario:
    heal_ms = rest.pop("heal_ms", 34_000)
    regions = tuple(Region(region) for region in REGIONS)
    return Scenario(name, regions, loads=loads, plan=Plan((), heal_ms).with_faults(faults), **rest)


def storm(seed: int) -> Scenario:
    """A cut, a crash and dying workers under every kind of load."""
    rng = _rng(seed, "storm")
    alone, dies, other = rng.sample(REGIONS, 3)
    return _scenario(
        "storm",
        (
            Fault("isolate", 8_000, rng.randint(8_000, 14_000), (alone,), {"how": rng.choice(("reset", "black_hole"))}),
            Fault("kill", rng.randint(5_000, 7_000), 2_000, (dies,)),
            Fault("kill", rng.randint(26_000, 28_000), 1_500, (other,)),
            Fault("worker_crash", rng.randint(10_000, 12_000), 1_000, (alone,)),
            Fault("worker_silent", rng.randint(18_000, 20_000), 5_000, ("*",)),
            Fault("worker_hang", rng.randint(13_000, 15_000), 5_000, (other,)),
            Fault("failing", 5_000, 25_000, ("*",), {"rate": 0.25}),
            Fault("duplicate_submits", 2_000, 30_000, ("*",), {"rate": 0.2}),
        ),
    )


def calm(seed: int) -> Scenario:
    """Nothing goes wrong: what still breaks is broken always."""
    _rng(seed, "calm")
    return _scenario("calm", (), heal_ms=12_000)


def crashes(seed: int) -> Scenario:
    """Processes die at the worst moment, on slow disks."""
    rng = _rng(seed, "crashes")
    moments = ("now", "persist", "reply", "run", "send")
    kills = [
        Fault(
            "kill",
            rng.randint(4_000, 25_000),
            rng.randint(300, 2_000),
            (rng.choice(REGIONS),),
            {"when": rng.choice(moments), "nth": rng.randint(1, 4)},
        )
        for _ in range(5)
    ]
    slow = Fault("disk_slow", 3_000, 25_000, ("*",), {"fsync_ms": 120})
    return _scenario("crashes", (*kills, slow, Fault("duplicate_submits", 2_000, 28_000, ("*",), {"rate": 0.4})))


def loss(seed: int) -> Scenario:
    """Frames vanish, overtake one another and come twice."""
    del seed
    return _scenario(
        "loss",
        (
            Fault("link_loss", 3_000, 22_000, ("*",), {"rate": 0.15}),
            Fault("link_reorder", 3_000, 22_000, ("*",), {"rate": 0.3, "up_to_ms": 400}),
            Fault("link_duplicate", 3_000, 22_000, ("*",), {"rate": 0.2}),
            Fault("isolate", 12_000, 5_000, ("eu",)),
        ),
    )


def skew(seed: int) -> Scenario:
    """Clocks are set by hand and nodes restart under them."""
    rng = _rng(seed, "skew")
    one, other, _ = rng.sample(REGIONS, 3)
    return _scenario(
        "skew",
        (
            Fault("clock_step", 5_000, 0, (one,), {"by_ms": -4_000}),
            Fault("kill", 9_000, 500, (one,)),
            Fault("clock_offset", 11_000, 20_000, (other,), {"off_ms": 3_000}),
            Fault("kill", 13_000, 500, (other,)),
            Fault("clock_step", 18_000, 0, (one,), {"by_ms": 600_000}),
        ),
        (*MIXED, _load("noop", 1.0, delay_ms=3_000)),
    )


def off(seed: int) -> Scenario:
    """Nodes come up with clocks that are wrong by a minute, and are set right later."""
    rng = _rng(seed, "off")
    one, other, _ = rng.sample(REGIONS, 3)
    return _scenario(
        "off",
        (
            Fault("clock_offset", 5_000, 22_000, (one,), {"off_ms": rng.randint(5_000, 20_000)}),
            Fault("kill", 6_000, 500, (one,)),
            Fault("clock_offset", 29_000, 4_000, (other,), {"off_ms": -rng.randint(5_000, 60_000)}),
            Fault("kill", 29_500, 500, (other,)),
        ),
    )


def future(seed: int) -> Scenario:
    """A region that is cut off restarts decades ahead, works, is set right, and re-issues what it wrote."""
    rng = _rng(seed, "future")
    (one,) = rng.sample(REGIONS, 1)
    return _scenario(
        "future",
        (
            Fault("isolate", 6_000, 14_000, (one,)),
            Fault("clock_future", 8_000, rng.randint(10_000, 18_000), (one,)),
            Fault("failing", 5_000, 20_000, ("*",), {"rate": 0.2}),
            Fault("reissue", 30_000, 0, (one,)),
            Fault("kill", 30_000 + rng.randint(0, 1_500), 500, (one,)),
        ),
        heal_ms=40_000,
    )


def forgetful(seed: int) -> Scenario:
    """Commits are dropped soon, and a disk is lost: a snapshot has to make up for it."""
    rng = _rng(seed, "forgetful")
    return _scenario(
        "forgetful",
        (
            Fault("isolate", 6_000, 6_000, (rng.choice(REGIONS),)),
            Fault("disk_lost", 20_000, 1_000, (rng.choice(REGIONS),)),
            Fault("kill", 28_000, 500, (rng.choice(REGIONS),)),
        ),
        settings={"retention_ms": 1_000, "flush_ms": 100, "ended_kept_max": 10},
    )


def deadlines(seed: int) -> Scenario:
    """Few workers, many tasks, and a deadline for all of them."""
    rng = _rng(seed, "deadlines")
    regions = tuple(Region(region, credits=1) for region in REGIONS)
    loads = (_load("long", 2.0, deadline_in_ms=8_000), _load("flaky", 1.0))
    return Scenario(
        "deadlines",
        regions,
        loads=loads,
        plan=Plan((Fault("isolate", 8_000, 9_000, (rng.choice(REGIONS),)),), 20_000),
    )


def torn(seed: int) -> Scenario:
    """Cut after cut, while most attempts charge, and then fail or die."""
    rng = _rng(seed, "torn")
    cuts = [Fault("isolate", at, 6_000, (rng.choice(REGIONS),), {"how": "reset"}) for at in (5_000, 14_000, 23_000)]
    crashes = [Fault("worker_crash", at, 300, ("*",)) for at in (4_900, 8_000, 13_900, 17_000, 22_900, 26_000)]
    return _scenario(
        "torn",
        (*cuts, *crashes, Fault("failing", 2_000, 29_000, ("*",), {"rate": 0.4})),
        (_load("charge", 6.0),),
    )


def parted(seed: int) -> Scenario:
    """A slow region is cut off amid its charges, and its workers die before it is back: what they did is known late."""
    rng = _rng(seed, "parted")
    faults: list[Fault] = []
    for at, alone in zip((5_000, 19_000), rng.sample(REGIONS, 2), strict=True):
        faults += (
            Fault("worker_slow", at - 3_000, 13_000, (alone,), {"factor": 20}),
            Fault("isolate", at, 9_000, (alone,), {"how": rng.choice(("reset", "black_hole"))}),
            Fault("worker_crash", at + rng.randint(4_000, 7_000), 500, (alone,)),
        )
    return _scenario("parted", tuple(faults), (_load("charge", 6.0),))


def worn(seed: int) -> Scenario:
    """Tasks fail, and rest for seconds; meanwhile their region is cut off, and another goes on with what it had seen."""
    rng = _rng(seed, "worn")
    cuts = [Fault("isolate", at, 7_000, (rng.choice(REGIONS),)) for at in (5_000, 14_000, 23_000)]
    return _scenario(
        "worn",
        (*cuts, Fault("failing", 2_000, 30_000, ("*",), {"rate": 0.8})),
        (_load("flaky", 4.0, attempts=2, backoff_ms_base=5_000, backoff_ms_max=5_000),),
    )


def drained(seed: int) -> Scenario:
    """Operators drain one region after another, also while it is cut off, and requeue what died."""
    rng = _rng(seed, "drained")
    first, second, third = rng.sample(REGIONS, 3)
    return _scenario(
        "drained",
        (
            Fault("drain", 6_000, 5_000, (first,)),
            Fault("drain", 14_000, 8_000, (second,)),
            Fault("isolate", 15_000, 4_000, (second,)),
            Fault("drain", 20_000, 4_000, (third,)),
            Fault("failing", 3_000, 20_000, ("*",), {"rate": 0.5}),
            Fault("redrive", 18_000, 0, ("*",)),
            Fault("redrive", 26_000, 0, (first,)),
        ),
        (
            _load("flaky", 2.0, attempts=2),
            _load("charge", 1.0, partition="wait"),
            _load("long", 0.5),
            _load("dag", 0.3),
        ),
    )


def keyed(seed: int) -> Scenario:
    """The same few keys from everywhere, and restarts between."""
    rng = _rng(seed, "keyed")
    return _scenario(
        "keyed",
        tuple(Fault("kill", at, 800, (rng.choice(REGIONS),)) for at in (10_000, 16_000, 22_000)),
        (_load("keyed", 3.0, partition="wait"), _load("noop", 0.5)),
        settings={"ended_kept_max": 0, "flush_ms": 100},
    )


def locks(seed: int) -> Scenario:
    """Programs fight for a few names while regions are cut off, die, wait for their disks, and lose track of time."""
    rng = _rng(seed, "locks")
    alone, dies, other = rng.sample(REGIONS, 3)
    moments = ("now", "persist", "send")
    cuts_ms = (rng.randint(6_000, 9_000), rng.randint(18_000, 22_000))
    kills = [
        Fault(
            "kill",
            rng.randint(4_000, 30_000),
            rng.randint(300, 1_500),
            (region,),
            {"when": rng.choice(moments), "nth": rng.randint(1, 4)},
        )
        for region in (alone, dies, other, dies, other)
    ]
    return _scenario(
        "locks",
        (
            *kills,
            Fault("isolate", cuts_ms[0], rng.randint(5_000, 8_000), (alone,), {"how": "black_hole"}),
            Fault("isolate", cuts_ms[1], rng.randint(5_000, 6_000), (other,), {"how": "reset"}),
            Fault("pause", rng.randint(15_000, 17_000), 3_000, (dies,)),
            Fault("disk_slow", 24_000, 8_000, ("*",), {"fsync_ms": 300}),
            Fault("clock_step", cuts_ms[0] + 300, 0, (alone,), {"by_ms": -4_000}),
            Fault("clock_step", cuts_ms[1] + 300, 0, (other,), {"by_ms": rng.choice((-4_000, 3_600_000))}),
        ),
        (_load("locks", 2.5), _load("noop", 0.5)),
        settings={"lease_ms": 2_500},
    )


def capped(seed: int) -> Scenario:
    """A limit over all regions and more work than it lets through, while they are cut, killed, and put back to old disks."""
    rng = _rng(seed, "capped")
    alone, old, dies = rng.sample(REGIONS, 3)
    return _scenario(
        "capped",
        (
            Fault("disk_old_copy", 7_000, rng.randint(4_000, 6_000), (old,)),
            Fault("isolate", 12_000, rng.randint(5_000, 8_000), (alone,)),
            Fault("kill", 15_000, 1_000, (dies,)),
            Fault("isolate", 22_000, 5_000, (old,)),
            Fault("worker_crash", 9_000, 1_000, (dies,)),
        ),
        (_load(LIMITED, 6.0),),
        limits=(Limit(queue=LIMITED, concurrency=3),),
    )


def paced(seed: int) -> Scenario:
    """A rate over all regions, and restarts between."""
    rng = _rng(seed, "paced")
    kills = tuple(Fault("kill", at, 500, (rng.choice(REGIONS),)) for at in (8_000, 13_000, 18_000, 23_000))
    return _scenario("paced", kills, (_load(LIMITED, 2.5),), limits=(Limit(task=LIMITED, rate=6, per=2),))


def shunned(seed: int) -> Scenario:
    """A region comes up with a clock ahead, is cut off and forgotten, and comes back: others hold what its time has not come for."""
    rng = _rng(seed, "shunned")
    gone = rng.choice(REGIONS)
    return _scenario(
        "shunned",
        (
            Fault("clock_offset", 5_000, 40_000, (gone,), {"off_ms": rng.randint(9_000, 20_000)}),
            Fault("kill", 6_000, 500, (gone,)),
            Fault("isolate", 6_900 + rng.randint(0, 500), 12_000, (gone,), {"how": "reset"}),
            Fault("forget", 7_500, 9_000, (gone,), {"stopped": "no"}),
        ),
        heal_ms=36_000,
        settings={"lease_ms": 1_500},
    )


def dwindling(seed: int) -> Scenario:
    """Two of five regions burn down at about the same time, and are forgotten one after the other."""
    rng = _rng(seed, "dwindling")
    names = ("ap", "eu", "na", "sa", "us")
    one, other, slow = rng.sample(names, 3)
    scenario = _scenario(
        "dwindling",
        (
            Fault("worker_slow", 3_000, 9_000, (one, other), {"factor": 10}),
            Fault("disk_lost", 10_000, 3_600_000, (one,)),
            Fault("forget", 15_000, 15_000, (one,)),
            Fault("disk_lost", rng.randint(9_000, 11_000), 3_600_000, (other,)),
            Fault("forget", 15_600, 20_000, (other,)),
            Fault("kill", 17_000, 1_000, (slow,)),
        ),
        (_load("long", 1.0, partition="wait"), _load("charge", 1.0), _load("locks", 0.5)),
        settings={"lease_ms": 2_500},
        heal_ms=34_000,
    )
    healed = tuple(name for name in names if name not in (one, other))
    return replace(
        scenario, regions=tuple(map(Region, names)), plan=replace(scenario.plan, healed=healed), duration_ms=150_000
    )


def growing(seed: int) -> Scenario:
    """A region joins while another one is cut off, and dies amid it."""
    rng = _rng(seed, "growing")
    alone, dies, _ = rng.sample(REGIONS, 3)
    scenario = _scenario(
        "growing",
        (
            Fault("add", 7_000, 20_000, ("sa",)),
            Fault("isolate", 7_200 + rng.randint(0, 600), 9_000, (alone,), {"how": "reset"}),
            Fault("kill", 9_000, 1_500, (dies,)),
            Fault("kill", rng.randint(11_000, 14_000), 1_000, ("sa",)),
        ),
        (_load("noop", 2.0, region="spread"), _load("charge", 1.0), _load("locks", 1.0)),
        settings={"lease_ms": 1_500},
    )
    return replace(scenario, regions=(*scenario.regions, Region("sa", joins=True)))


def fenced(seed: int) -> Scenario:
    """Tasks under leases, whose holders are cut off and stopped, and whose workers heed no request to stop."""
    rng = _rng(seed, "fenced")
    one, other, third = rng.sample(REGIONS, 3)
    return _scenario(
        "fenced",
        (
            Fault("worker_deaf", 2_000, 30_000, ("*",)),
            Fault("worker_slow", 4_000, 26_000, ("*",), {"factor": 6}),
            Fault("isolate", 8_000, 6_000, (one,), {"how": rng.choice(("reset", "black_hole"))}),
            Fault("pause", 17_000, 4_000, (other,)),
            Fault("isolate", 24_000, 6_000, (third,), {"how": rng.choice(("reset", "black_hole"))}),
        ),
        tuple(
            _load(model, per_s, partition="quorum", scope="task") for model, per_s in (("charge", 2.0), ("long", 0.5))
        ),
        settings={"lease_ms": 1_500},
    )


_ALL: Final = (
    storm,
    calm,
    crashes,
    loss,
    skew,
    off,
    future,
    forgetful,
    deadlines,
    torn,
    parted,
    worn,
    drained,
    keyed,
    locks,
    capped,
    paced,
    shunned,
    dwindling,
    growing,
    fenced,
)

#: Name -> the scenario of a seed.
GROUNDS: Final[dict[str, Callable[[int], Scenario]]] = {ground.__name__: ground for ground in _ALL}
