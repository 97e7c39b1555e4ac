"""Swarm: from one seed, a scenario of its own: how many regions, how far apart, what they run, and what goes wrong.

Drawing every option for every seed finds more than drawing from all options every time (Groce et al., "Swarm testing",
ISSTA 2012): a run in which nothing but two kinds of fault happen, often, goes where a run with a little of everything
never does. So each seed first draws *which* kinds of fault and load it has, and then uses those alone.

Each thing is drawn from a stream of its own, and a seed's kinds are those of the smallest hashes of (seed, kind): a new
kind of fault changes the seeds that get it, and leaves the scenarios of all others as they were.

What is drawn can be done: load and bursts stay within what the weakest region's workers get done, so that a task that
lies still after the healing is stuck, and not just behind a thousand others.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from hashlib import blake2b
from typing import Any, Final

from crdtsync.limit import Limit
from simulator.catalogue import CATALOGUE, Aim, FaultKind, Param
from simulator.plan import Fault, ParamValue, Plan
from simulator.scenario import Arrivals, Links, Load, Region, Scenario
from simulator.vacuity import AFTER_US
from simulator.workload import LIMITED

DURATION_MS: Final = 120_000
FAULTY_SHARE: Final = 0.55  # of the time: the rest is for healing, convergence and quiet
SETTLE_MS: Final = 3_000  # nothing goes wrong before everybody knows everybody
KINDS_MAX: Final = 6
FAULTS_MAX: Final = 12
DRAINED_SHARE: Final = 0.6  # of the seeds: an operator drains a region or some
CUT_SHARE: Final = 0.3  # of the seeds: a region is cut off, for long enough to be taken over from
CUT_MS: Final = (5_000, 20_000)
REDRIVEN_SHARE: Final = 0.6  # of the seeds that have tasks which die: an operator requeues them
LIMITED_SHARE: Final = 0.25
MEMBERS_SHARE: Final = 0.1  # of the seeds: a region joins, one is forgotten, or both
POISONED_SHARE: Final = 0.25  # of such seeds: a handler that kills its worker meets the change itself
POISON_MS: Final = 12_000
MEMBERS_FAULTS: Final = 4  # that such a seed has beside the others, of any kind: what meets them is seldom else
COMPANY_SHARE: Final = 0.8  # of the seeds with a fault that meets an invariant by chance too rarely
STORM: Final = {"rate": 0.6, "within_ms": 300}  # of what a worker that is deaf runs, soon enough to find it running
DEAF_PER_S: Final = 0.5  # tasks for it to run, in each region
RATE_PER_S_MAX: Final = 3.0  # of all loads together
UTILISATION_MAX: Final = 0.5  # of the weakest region's workers, bursts apart
BURST_TASKS_MAX: Final = 300  # that one burst adds
BURST_WORK_S_MAX: Final = 15.0  # for which one burst may keep a region's workers busy
BURST_MS_MIN: Final = 200  # a shorter one meets nobody

#: Where regions are: latitude and longitude. Seven of these are drawn at most.
PLACES: Final[dict[str, tuple[float, float]]] = {
    "eu": (50.1, 8.7),
    "us": (39.0, -77.5),
    "ap": (1.3, 103.8),
    "sa": (-23.5, -46.6),
    "uk": (51.5, -0.1),
    "jp": (35.7, 139.7),
    "au": (-33.9, 151.2),
    "in": (19.1, 72.9),
    "za": (-33.9, 18.4),
}
TWINS: Final = frozenset({"disk_clone"})  # two processes of one region judge by two votes: an honest limit
REGION_COUNTS: Final = (2, 3, 3, 4, 5, 5, 5, 6, 7)  # drawn from; most users have three or five
LOCKS_SHARE: Final = 0.4  # of the seeds whose users hold locks too
QUORUM_SHARE: Final = 0.2  # of the seeds that have quorum tasks
MODEL_WEIGHTS: Final = {
    "noop": 2,
    "flaky": 2,
    "doomed": 3,
    "charge": 4,
    "dag": 2,
    "keyed": 2,
    "long": 2,
    "cancel_race": 3,
}
#: Seconds that a worker's slot is taken by one arrival of a model, retries included.
WORK_S: Final = {
    "noop": 0.02,
    "flaky": 0.1,
    "doomed": 0.1,
    "charge": 0.35,
    "dag": 0.4,
    "keyed": 0.15,
    "long": 5.0,
    "cancel_race": 0.3,
}
assert WORK_S.keys() == MODEL_WEIGHTS.keys()


def draw(seed: int, *, duration_ms: int = DURATION_MS) -> Scenario:
    """The scenario of this seed; `Scenario.drawn` says what was drawn."""
    rng = _stream(seed, "world")
    names = rng.sample(sorted(PLACES), rng.choice(REGION_COUNTS))
    alike = rng.random() < 0.3
    regions = tuple(Region(name) if alike else _region(rng, name) for name in names)
    heal_ms = round(duration_ms * FAULTY_SHARE)
    healed: tuple[str, ...] = ()
    if len(names) > 2 and rng.random() < 0.15:  # a core alone: whoever is left out stays as it is
        healed = tuple(sorted(rng.sample(names, len(names) // 2 + 1)))
    loads = _under_leases(_stream(seed, "quorum"), _loads(_stream(seed, "loads"), regions))
    kinds = _kinds(seed)
    settings = _settings(_stream(seed, "settings"))
    links = _links(_stream(seed, "links"))
    faults = [
        _fault(seed, place, kinds, names, heal_ms) for place in range(_stream(seed, "faults").randint(1, FAULTS_MAX))
    ]
    faults += _besides(seed, names, loads, heal_ms)
    locks = _stream(seed, "locks")
    settings["lease_ms"] = locks.choice((1_500, 3_000, 5_000))
    if locks.random() < LOCKS_SHARE:  # they take no worker's slot
        loads = (*loads, Load("locks", Arrivals("poisson", round(locks.uniform(0.2, 1.0), 2))))
    company, kept = _company(seed, faults, loads, regions, heal_ms)
    faults += company
    loads = (*loads, *kept)
    limits, limited = _limits(seed, {fault.kind for fault in faults})
    loads = (*loads, *limited)
    joiner, coming_and_going = _members(seed, names, heal_ms, alike=alike)
    regions = (*regions, *joiner)
    faults = [fault for fault in (*faults, *coming_and_going) if not _hides_who_left(fault, coming_and_going)]
    faults = [_bearable(fault, loads, regions) if fault.kind == "burst" else fault for fault in faults]
    drawn: dict[str, Any] = {
        "regions": len(names),
        "distances": f"{links.rtt_ms:g} ms" if alike else "places",
        "kinds": ", ".join(kinds),
        "faults": len(faults),
        "loads": ", ".join(f"{load.model} {load.arrivals.per_s:g}/s {load.arrivals.shape}" for load in loads),
        "healed": ", ".join(healed) or "all",
        **({"members": ", ".join(map(str, coming_and_going[:3]))} if coming_and_going else {}),
        **(
            {"limits": ", ".join(f"{limit.target} {limit.concurrency or limit.rate}" for limit in limits)}
            if limits
            else {}
        ),
        **settings,
    }
    return Scenario(
        name=f"swarm {seed}",
        regions=regions,
        links=links,
        loads=loads,
        plan=Plan((), heal_ms, healed).with_faults(faults),
        settings=settings,
        disk_ms=rng.choice(((1.0, 1.0), (1.0, 4.0), (1.0, 4.0), (5.0, 40.0))),
        duration_ms=duration_ms,
        drawn=drawn,
        limits=limits,
    )


def _stream(seed: int, purpose: str) -> random.Random:
    return random.Random(f"{seed}/swarm/{purpose}")  # noqa: S311 - chance, no secret


def _kinds(seed: int) -> list[str]:
    """The kinds of fault that this seed has."""
    drawn = (name for name, kind in CATALOGUE.items() if kind.drawn)
    return sorted(_ranked(f"{seed}", drawn)[: _stream(seed, "kinds").randint(1, KINDS_MAX)])


def _ranked(purpose: str, kinds: Iterable[str]) -> list[str]:
    """In an order of chance in which a new kind moves no other: seeds that do not draw it stay as they were."""
    return sorted(kinds, key=lambda kind: blake2b(f"{purpose}/{kind}".encode(), digest_size=8).digest())


def _besides(seed: int, names: list[str], loads: tuple[Load, ...], heal_ms: int) -> list[Fault]:
    """What happens beside the kinds that were drawn, so that these meet it: operators drain and requeue, a region is cut
    off. Without these hardly any fault ever meets an offer, a dead letter, a takeover or a double run."""
    rng = _stream(seed, "operators")
    done = []
    if rng.random() < DRAINED_SHARE:
        done.append(_fault(seed, "drain", ["drain"], names, heal_ms))
    if any(load.model == "doomed" for load in loads) and rng.random() < REDRIVEN_SHARE:
        done.append(Fault("redrive", rng.randint(heal_ms // 2, max(heal_ms // 2, heal_ms - 1_000)), targets=("*",)))
    rng = _stream(seed, "cut")
    if rng.random() < CUT_SHARE:
        duration_ms = min(rng.randint(*CUT_MS), heal_ms // 2)
        start_ms = rng.randint(min(SETTLE_MS, heal_ms // 2), heal_ms - duration_ms)
        done.append(Fault("isolate", start_ms, duration_ms, (rng.choice(names),)))
    return done


def _company(
    seed: int, faults: list[Fault], loads: tuple[Load, ...], regions: tuple[Region, ...], heal_ms: int
) -> tuple[list[Fault], tuple[Load, ...]]:
    """A worker that ignores requests to stop changes something only where somebody asks: what it runs is cancelled. And
    that an offer is taken up while it does needs others that make some: an operator drains half of them."""
    deaf = next((fault for fault in faults if fault.kind == "worker_deaf"), None)
    rng = _stream(seed, "company of the deaf")
    if deaf is None or rng.random() >= COMPANY_SHARE:
        return [], ()
    names = [region.name for region in regions]
    others = [name for name in names if name not in deaf.targets] or names
    drained = tuple(sorted(rng.sample(others, -(-len(others) // 2))))
    lasts_ms = min(heal_ms - deaf.start_ms, max(deaf.duration_ms, 2_000))
    offers_ms = min(heal_ms - deaf.start_ms, lasts_ms + AFTER_US // 1_000)
    company = [
        Fault("cancel_storm", deaf.start_ms, lasts_ms, deaf.targets, dict(STORM)),
        Fault("drain", deaf.start_ms, offers_ms, drained),
    ]
    taken = sum(load.arrivals.per_s * WORK_S.get(load.model, 0.0) for load in loads)
    left_per_s = (UTILISATION_MAX * len(regions) * _slots(regions) - taken) / WORK_S["charge"]
    per_s = round(min(left_per_s, len(regions) * DEAF_PER_S), 2)
    return company, (Load("charge", Arrivals("poisson", per_s)),) if per_s > 0 else ()


def _settings(rng: random.Random) -> dict[str, Any]:
    return {
        "lost_after_ms": rng.choice((1_500, 3_000, 3_000, 8_000)),
        "heads_interval_ms": rng.choice((500, 2_000, 2_000, 5_000)),
        "flush_ms": rng.choice((100, 1_000, 1_000, 5_000)),
        "ended_kept_max": rng.choice((0, 10, 2_000)),
        "retention_ms": rng.choice((1_000, 30_000, 86_400_000)),
    }


def _links(rng: random.Random) -> Links:
    return Links(
        rtt_ms=round(rng.uniform(5, 300)), jitter=rng.choice((0.0, 0.05, 0.5)), tail=rng.choice((0.0, 0.001, 0.02))
    )


def _region(rng: random.Random, name: str) -> Region:
    return Region(
        name,
        PLACES[name],
        rng.choice((0, 0, rng.randint(-400, 400))),
        rng.choice((0, rng.randint(-100, 100))),
        rng.choice((1, 1, 2)),
        rng.choice((1, 3, 10, 10)),
    )


def _loads(rng: random.Random, regions: tuple[Region, ...]) -> tuple[Load, ...]:
    """What users do. Arrivals are spread over the regions: each must get its share done."""
    models = rng.choices(sorted(MODEL_WEIGHTS), [MODEL_WEIGHTS[m] for m in sorted(MODEL_WEIGHTS)], k=rng.randint(1, 3))
    loads = []
    for model in sorted(set(models)):
        shape = rng.choice(("constant", "poisson", "poisson", "bursty"))
        able_per_s = UTILISATION_MAX * len(regions) * _slots(regions) / WORK_S[model] / len(models)
        per_s = round(min(able_per_s, rng.uniform(0.2, RATE_PER_S_MAX / len(models))), 2)
        options: dict[str, Any] = {}
        if rng.random() < 0.3:
            options["partition"] = rng.choice(("wait", "takeover"))
        if rng.random() < 0.2:
            options["region"] = "spread"
        if rng.random() < 0.2:
            options["delay_ms"] = rng.randint(1, 5_000)
        loads.append(Load(model, Arrivals(shape, per_s, burst=rng.choice((3, 10))), options=options))
    return tuple(loads)


def _under_leases(rng: random.Random, loads: tuple[Load, ...]) -> tuple[Load, ...]:
    """Some of the loads as `quorum` tasks, of their queue's lease or each of its own; keyed ones have their key's."""
    if rng.random() >= QUORUM_SHARE:
        return loads
    under = []
    for load in loads:
        options = dict(load.options)
        if rng.random() < 0.7:
            options["partition"] = "quorum"
            if load.model != "keyed" and rng.random() < 0.2:
                options["scope"] = "task"
        under.append(replace(load, options=options))
    return tuple(under)


def _slots(regions: tuple[Region, ...]) -> int:
    """How many attempts the weakest region runs at a time."""
    return min(region.workers * region.credits for region in regions)


def _bearable(burst: Fault, loads: tuple[Load, ...], regions: tuple[Region, ...]) -> Fault:
    """The burst, tamed and cut short where it would bring more than its regions get done: see `BURST_TASKS_MAX`."""
    per_s = sum(load.arrivals.per_s for load in loads) / len(regions)  # in one region
    work_per_s = sum(load.arrivals.per_s * WORK_S.get(load.model, 0.0) for load in loads) / len(regions)
    able_work_s = BURST_WORK_S_MAX * _slots(regions)
    # One arrival may be all that it multiplies.
    extra = min(burst.number("factor") - 1, able_work_s / max(WORK_S.get(load.model, 0.0) for load in loads))
    targets = len(regions) if "*" in burst.targets else len(burst.targets)
    able_s = min(BURST_TASKS_MAX / (per_s * targets), able_work_s / work_per_s) / max(extra, 0.1)
    duration_ms = max(BURST_MS_MIN, min(burst.duration_ms, round(able_s * 1_000)))
    return replace(burst, duration_ms=duration_ms, params={**burst.params, "factor": round(1 + extra, 3)})


def _limits(seed: int, kinds: set[str]) -> tuple[tuple[Limit, ...], tuple[Load, ...]]:
    """Every fourth seed has limits, and work under them; so have most in which a storm of cancels meets nothing else."""
    rng = _stream(seed, "limits")
    kept = "cancel_storm" in kinds and _stream(seed, "limits in a storm").random() < COMPANY_SHARE
    if rng.random() >= LIMITED_SHARE and not kept:
        return (), ()
    per_s = round(rng.uniform(0.3, 1.2), 2)
    limits = [Limit(queue=LIMITED, concurrency=rng.randint(2, 6), scope=rng.choice(("global", "global", "region")))]
    # Wide enough that what comes gets through in time: waiting for ever is what LIVE-TASK judges.
    if rng.random() < 0.4:
        per = rng.choice((1, 2, 5))
        rate = round(3 * per_s * per) + rng.randint(1, 4)
        limits.append(Limit(task=LIMITED, rate=rate, per=per, scope=rng.choice(("global", "region"))))
    load = Load(LIMITED, Arrivals(rng.choice(("poisson", "bursty")), per_s, burst=10))
    return tuple(limits), (load,)


def _members(seed: int, names: list[str], heal_ms: int, *, alike: bool) -> tuple[tuple[Region, ...], list[Fault]]:
    """Who joins, if anybody does, and what operators and fate do about it: every tenth seed has something of the kind.

    Who is forgotten was cut off, and comes back, or has burned down, and comes back with an empty disk or never.
    """
    rng = _stream(seed, "members")
    if rng.random() >= MEMBERS_SHARE:
        return (), []
    what = rng.choice(("add", "forget", "both")) if len(names) > 2 else "add"
    joiner: tuple[Region, ...] = ()
    done = []
    if what != "add":
        lost = rng.choice(names)
        start_ms = rng.randint(min(SETTLE_MS, heal_ms // 4), heal_ms // 3)
        away_ms = rng.randint(heal_ms // 4, heal_ms - start_ms)
        fate = rng.choice(("isolate", "isolate", "disk_lost", "kill"))
        params: dict[str, ParamValue] = {"how": rng.choice(("black_hole", "reset"))} if fate == "isolate" else {}
        asked_ms = start_ms + rng.randint(200, away_ms // 2)
        done.append(Fault(fate, start_ms, away_ms, (lost,), params))
        stopped = "no"
        if fate == "disk_lost" and rng.random() < 0.5:  # an operator who says so is right
            stopped = "yes"
            done.append(Fault("worker_crash", start_ms, heal_ms - start_ms, (lost,)))
        done.append(Fault("forget", asked_ms, heal_ms - asked_ms, (lost,), {"stopped": stopped}))
    if what != "forget":
        name = rng.choice([place for place in sorted(PLACES) if place not in names])
        joiner = (replace(Region(name) if alike else _region(rng, name), joins=True),)
        start_ms = rng.randint(min(SETTLE_MS, heal_ms // 2), heal_ms // 2)
        done.append(Fault("add", start_ms, heal_ms - start_ms, (name,)))
    rng = _stream(seed, "members and poison")
    if rng.random() < POISONED_SHARE:  # by chance it never struck while a change was under way
        start_ms = max(fault.start_ms for fault in done)
        done.append(Fault("poison", start_ms, min(POISON_MS, heal_ms - start_ms), ("*",), {"rate": 0.1}))
    kinds = _ranked(f"{seed} members", (name for name, kind in CATALOGUE.items() if kind.drawn and name not in TWINS))
    everybody = [*names, *(region.name for region in joiner)]
    done += [_fault(seed, f"among members {kind}", [kind], everybody, heal_ms) for kind in kinds[:MEMBERS_FAULTS]]
    return joiner, done


def _hides_who_left(fault: Fault, coming_and_going: list[Fault]) -> bool:
    """Whether a member may forget with its disk who was forgotten: if it then meets that one first, both take the other for
    a founder, which is an honest limit (docs/decisions/0017, swarm seed 885)."""
    return fault.kind == "disk_lost" and any(
        change.kind == "forget" and change.start_ms < fault.start_ms and fault.targets != change.targets
        for change in coming_and_going
    )


def _fault(seed: int, place: int | str, kinds: list[str], names: list[str], heal_ms: int) -> Fault:
    rng = _stream(seed, f"fault {place}")
    kind = CATALOGUE[rng.choice(kinds)]
    start_ms = rng.randint(min(SETTLE_MS, heal_ms // 2), max(SETTLE_MS, heal_ms - 2_000))
    duration_ms = 0
    if not kind.instant:
        mean_ms = 4_000 if kind.restarts else 10_000
        duration_ms = max(200, min(heal_ms - start_ms, round(rng.expovariate(1 / mean_ms))))
        if kind.restarts and rng.random() < 0.2:
            duration_ms = 0
    params = {name: _param(rng, param) for name, param in sorted(kind.params.items()) if rng.random() < 0.7}
    return Fault(kind.name, start_ms, duration_ms, _targets(rng, kind, names), params)


def _param(rng: random.Random, param: Param) -> ParamValue:
    """Mostly near what is usual, now and then anything that makes sense."""
    if param.choices:
        return rng.choice(param.choices)
    assert not isinstance(param.default, str)
    if rng.random() < 0.7:
        value = min(param.high, max(param.low, param.default * rng.choice((-1, 1) if param.low < 0 else (1,))
                                    * rng.uniform(0.3, 2)))  # fmt: skip
    else:
        value = rng.uniform(param.low, param.high)
    if isinstance(param.default, int):
        return round(value)
    return round(value, 3)


def _targets(rng: random.Random, kind: FaultKind, names: list[str]) -> tuple[str, ...]:
    one, other = rng.sample(names, 2)
    if kind.name == "majorities_ring":
        return ("*",)
    if kind.name in ("bridge", "disk_lost", "disk_clone", "disk_old_copy", "disk_lying"):
        return (one,)
    if kind.name == "halves":
        return tuple(sorted(rng.sample(names, max(1, len(names) // 2))))
    if kind.aim is Aim.LINKS:
        return (rng.choice((f"{one}>{other}", f"{one}<>{other}", one, "*")),)
    if rng.random() < 0.1:
        return ("*",)
    return tuple(sorted(rng.sample(names, rng.randint(1, max(1, len(names) // 2)))))
