"""`Scenario`: everything about a run but its seed; plain data, so that it can be written, kept and shrunk.

scenario = Scenario(
    name="split brain",
    regions=(Region("eu"), Region("us"), Region("ap")),
    loads=(Load("charge", Arrivals(per_s=2)),),
    plan=Plan((Fault("isolate", 10_000, 30_000, ("eu",)),)),
)
result = World(scenario, seed=7).run()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from crdtsync.app import App
from crdtsync.errors import ConfigError
from crdtsync.identifiers import is_region
from crdtsync.limit import Limit
from crdtsync.settings import Settings
from simulator.catalogue import Family
from simulator.plan import Plan

REGIONS_MAX: Final = 64  # a full mesh of more takes longer than anybody waits
DURATION_MS: Final = 120_000
ARRIVAL_SHAPES: Final = ("constant", "poisson", "bursty", "trace", "once")
SETTABLE: Final = frozenset(f.name for f in fields(Settings)) - {
    "cluster", "region", "node", "members", "namespace", "joining"
}  # fmt: skip

#: What a simulated cluster runs with unless told otherwise: `crdtsync dev`'s times, so that a takeover fits a run.
FAST_SETTINGS: Final[dict[str, Any]] = {"lost_after_ms": 3_000, "worker_lost_after_ms": 3_000, "heartbeat_ms": 1_000}


@dataclass(frozen=True, slots=True)
class Region:
    """One region: one node, its clocks, and its workers.

    Attributes:
        place: Latitude and longitude in degrees, for links whose RTT is counted from the distance.
        wall_off_ms: How far its wall clock is off true time, all the time.
        drift_ppm: How fast both of its clocks run too fast.
        workers: Worker processes; each runs at most `credits` attempts.
        joins: It is no founder of the cluster: its node is not there before a fault of the kind `add` names it.
    """

    name: str
    place: tuple[float, float] | None = None
    wall_off_ms: int = 0
    drift_ppm: int = 0
    workers: int = 1
    credits: int = 10
    joins: bool = False


@dataclass(frozen=True, slots=True)
class Links:
    """How long frames travel. The RTT of a pair is the first of these that names it: `rtt`, `matrix`, the distance of
    the regions' places (4 ms + km/75), `rtt_ms`. One way takes half of it.

    Attributes:
        rtt: "eu<>us" (or "eu>us", for one direction's double) -> milliseconds.
        matrix: A CSV file with the columns src, dst, avg_ms, as ping surveys of clouds have them; read when the world is built.
        rtt_ms: For every other pair.
        jitter: Mean of an exponential extra, as a share of the one-way time.
        tail: Probability of a frame that takes ten times as long.
        per_s_bytes: Bandwidth of each direction; 0 for no limit.
    """

    rtt: Mapping[str, float] = field(default_factory=dict)
    matrix: str = ""
    rtt_ms: float = 80.0
    jitter: float = 0.05
    tail: float = 0.001
    per_s_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When tasks are submitted.

    Attributes:
        shape: "constant" gaps, "poisson", "bursty" (Poisson bursts of `burst` at once), "trace" (the seconds in the
            first column of a CSV `path`, from the first row on, `per_s` ignored), "once" (`burst` tasks at the start).
        per_s: Mean rate of the whole load, all its regions together.
        until_ms: When the last one may come; 0: until the faults are healed.
        count: At most so many; 0 for no limit.
    """

    shape: str = "poisson"
    per_s: float = 1.0
    start_ms: int = 1_000
    until_ms: int = 0
    burst: int = 10
    count: int = 0
    path: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """What users do: one stream of requests.

    Attributes:
        model: A built-in model (see `workload.MODELS`: noop, flaky, doomed, charge, dag, keyed, long,
            cancel_race, locks), or
            "task:NAME" to submit the task NAME of the scenario's own app.
        regions: Where they are submitted, at random; everywhere if empty.
        args, kwargs: Of "task:NAME". The text "{n}" in a value becomes the number of the arrival.
        options: Fields of `commands.TaskSpec` for every submission (region, partition, priority, delay_ms, ...), and
            what the model itself can be told.
    """

    model: str = "noop"
    arrivals: Arrivals = field(default_factory=Arrivals)
    regions: tuple[str, ...] = ()
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One story.

    Attributes:
        settings: Overrides of `crdtsync.settings.Settings` for every region, e.g. {"lost_after_ms": 30_000}.
        disk_ms: What an fsync takes: uniform between the two.
        duration_ms: When the run ends at the latest, counted in virtual time; a run that has healed, has nothing left to
            do and has converged ends sooner.
        expectations: What must hold at the end beyond the invariants, as `expect` reads them.
        app: The user's own app; its handlers run in virtual time.
        limits: What may run at once, or start in a while; declared by every worker beside what its app declares.
        drawn: What the seed drew for this scenario, for the report; empty where it was written by hand.
    """

    name: str
    regions: tuple[Region, ...]
    text: str = ""
    links: Links = field(default_factory=Links)
    loads: tuple[Load, ...] = (Load(),)
    plan: Plan = field(default_factory=Plan)
    expectations: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    disk_ms: tuple[float, float] = (1.0, 4.0)
    duration_ms: int = DURATION_MS
    app: App | None = None
    drawn: Mapping[str, Any] = field(default_factory=dict)
    limits: tuple[Limit, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The regions' names, in order."""
        return tuple(region.name for region in self.regions)

    @property
    def founders(self) -> tuple[str, ...]:
        """The names of those that are members from the start, in order."""
        return tuple(region.name for region in self.regions if not region.joins)

    @property
    def changes_members(self) -> bool:
        """Whether anybody ever comes or goes."""
        return any(fault.spec.family is Family.MEMBERSHIP for fault in self.plan.faults)

    def check(self) -> None:
        """See that it makes sense. Raises ConfigError, which says what to write instead."""
        names = self.names
        if not 1 <= len(names) <= REGIONS_MAX:
            raise ConfigError(f"scenario {self.name!r} has {len(names)} regions: expected 1 to {REGIONS_MAX}")
        for name in names:
            if not is_region(name):
                raise ConfigError(f"region {name!r}: expected lower-case letters, digits and dashes, at most 32")
        if len(set(names)) != len(names):
            raise ConfigError(f"scenario {self.name!r} names a region twice: {', '.join(names)}")
        for key in self.settings:
            if key not in SETTABLE:
                raise ConfigError(f"settings has no {key!r}; there are {', '.join(sorted(SETTABLE))}")
        for load in self.loads:
            if load.arrivals.shape not in ARRIVAL_SHAPES:
                raise ConfigError(f"arrivals {load.arrivals.shape!r}: expected one of {', '.join(ARRIVAL_SHAPES)}")
            for region in load.regions:
                if region not in names:
                    raise ConfigError(f"load {load.model!r} names {region!r}, which is no region")
        self.plan.check(names)
        founders = self.founders
        if not founders:
            raise ConfigError(f"scenario {self.name!r}: every region joins, and nobody is there to add them")
        for fault in self.plan.faults:
            for target in fault.targets:
                if fault.kind == "add" and target in founders:
                    raise ConfigError(f"fault 'add' names {target!r}, a founder: write joins = true in its region")
