"""`World`: builds the regions of a scenario, runs it under one seed, and stops when it is over.

    world = World(scenario, seed=7, kernel="heap", checkers=all_checkers())
    result = world.run()

For those who judge: `world.trace` (every event), `world.history` (what each client saw), `world.sink` (what happened to
the world outside), `world.regions["eu"]` (the node: its replica's public state, disk, clocks), `world.faults` (with what
each really changed), `world.divergence` (over time: how many different states there were). `world.violation(...)`
reports.
"""

from __future__ import annotations

import random
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from inspect import unwrap
from types import FunctionType
from typing import Any, Final, NamedTuple, TextIO

from crdtsync.coordination.membership import Membership
from crdtsync.identifiers import RegionId, TaskId
from crdtsync.settings import Settings
from crdtsync.task_view import ENDED, TaskView
from simulator.arrivals import moments
from simulator.clients import Clients, told_of
from simulator.clock import LocalClock
from simulator.determinism import Guard
from simulator.disk import Disk
from simulator.expect import Expectations
from simulator.faults import ActiveFault
from simulator.kernel import US, Kernel, make_kernel
from simulator.latency import Latencies
from simulator.locks import PROBE_AFTER_US, Locks
from simulator.network import Network
from simulator.node import Node, commit_details
from simulator.plan import Fault
from simulator.puppets import block_for
from simulator.result import Checker, Mutant, Operation, Result, Violation
from simulator.scenario import FAST_SETTINGS, Load, Scenario
from simulator.trace import DETAILS, Trace
from simulator.workers import Poisoned, Worker
from simulator.workload import Sink, Submitter, build_app

LOOK_US: Final = 250_000  # how often divergence is looked at
QUIET_US: Final = 3_000_000  # nothing differs and nothing is left to do for so long: the run is over
BOOT_US_MAX: Final = 10_000_000_000  # machines have been up for different times
ABSENT: Final = "absent"  # what holds a node down that is not there yet
STAGGER_US: Final = 100_000  # nodes start within so long
REVIVE_US: Final = 1_000_000  # a worker that died of its handler is started again
VIOLATIONS_MAX: Final = 100  # of one run; more say nothing new

DETAILS["commit"] = commit_details
DETAILS["client.answer"] = lambda operation: {"value": operation.value}
DETAILS["fault.start"] = lambda fault: {"params": dict(fault.params)}
DETAILS["notify"] = lambda effect: {"facts": effect.facts}


class Sample(NamedTuple):
    """How far the regions were apart at one moment."""

    at_us: int
    states: int  # different (heads, digest) among the nodes that are up
    missing: int  # commits that some node had applied and another had not, summed up over nodes
    up: int


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
        progress: Called now and then with virtual seconds, outside of the guards against real time.

    Attributes:
        regions: Region name -> `Node`. `nodes` has second processes ("eu~2") too.
        history: What clients did and saw, in order of their calls.
        sink: What handlers did to the world outside: `sink.done[key]`.
        faults: Those that have begun, each with its hits.
        complaints: (task name, why) -> how many attempts failed since a simulation cannot play their handler.
    """

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
        progress: Callable[[float], None] | None = None,
    ) -> None:
        scenario.check()
        self.scenario = scenario
        self.seed = seed
        self.checkers = tuple(checkers)
        self.mutants = tuple(mutants)
        self.kernel: Kernel = make_kernel(kernel, seed)
        self.trace = Trace(self.kernel, keep=keep, out=trace_to)
        self.over = False
        self.healed = False
        self.converged_us: int | None = None
        self.violations: list[Violation] = []
        self.divergence: list[Sample] = []
        self.faults: list[ActiveFault] = []
        self.mischief: dict[tuple[str, str], list[ActiveFault]] = {}  # (region, kind) -> workload faults under way
        self.complaints: Counter[tuple[str, str]] = Counter()
        self.sink = Sink(self)
        self.locks = Locks(self)
        self.clients = Clients(self)
        self.network = Network(
            self.kernel,
            self.trace,
            Latencies(scenario).one_way_us,
            self.stream,
            jitter=scenario.links.jitter,
            tail=scenario.links.tail,
            per_s_bytes=scenario.links.per_s_bytes,
        )
        self.regions: dict[str, Node] = {}
        self.nodes: dict[str, Node] = {}
        self.absent: dict[str, None] = {}  # regions that are to join and are not there yet
        self.workers: list[Worker] = []
        self.app = build_app(self)
        self._progress = progress
        self._quiet_us = 0  # since when
        self._arrivals_left = 0  # loads that have more to come
        self._ran = False
        self._expectations = Expectations(scenario.expectations)
        for region in scenario.regions:
            node = self.add_node(region.name)
            if region.joins:
                self.absent[region.name] = node.held_down[ABSENT] = None
        self._guard = Guard(self._wall_s, self._sleep, partial(block_for, self._sleep), _namespaces(scenario))

    # Building ------------------------------------------------------------------------------------

    def stream(self, purpose: str, a: str = "", b: str = "") -> random.Random:
        """The random stream of one purpose and one thing or pair of things: nobody else draws from it."""
        return random.Random(f"{self.seed}/{purpose}/{a}>{b}")  # noqa: S311 - chance, no secret

    def add_node(self, name: str, *, disk: Disk | None = None) -> Node:
        """A node of that region: its own, or a second one on a copy of the disk."""
        scenario = self.scenario
        region = next(region for region in scenario.regions if region.name == name)
        twins = sum(1 for node in self.nodes.values() if node.region == name)
        key = name if not twins else f"{name}~{twins + 1}"
        if disk is None:
            disk = Disk(self.stream("disk", key), scenario.disk_ms)
        clock = LocalClock(
            booted_us=self.stream("boot", key).randrange(BOOT_US_MAX),
            wall_off_us=region.wall_off_ms * 1_000,
            drift_ppm=region.drift_ppm,
        )
        settings = Settings(
            cluster="simulated",
            region=RegionId(name),
            node="a",
            members=tuple(map(RegionId, (*scenario.founders, name) if region.joins else scenario.founders)),
            joining=region.joins,
            **{**FAST_SETTINGS, **scenario.settings},
        )
        node = self.nodes[key] = Node(self, key, settings, disk, clock)
        if not twins:
            self.regions[name] = node
            for number in range(region.workers):
                self.workers.append(Worker(self, node, f"{name}/{number}", self.app, region.credits))
        return node

    def arrive(self, node: Node, cause: int) -> bool:
        """A region that is to join is set up: its node starts, and its workers. Whether it was not there yet."""
        if node.region not in self.absent:
            return False
        del self.absent[node.region], node.held_down[ABSENT]
        node.start(cause)
        for worker in self.workers:
            if worker.node is node:
                worker.start(cause)
        return True

    def settings_of(self, node: Node) -> Settings:
        """What the core is told at a start of this node."""
        return replace(node.settings, trust_disk=False) if node.restored else node.settings

    # Running -------------------------------------------------------------------------------------

    def run(self) -> Result:
        """Play the scenario to its end. Once per world."""
        assert not self._ran, "a world is run once; build another one"
        self._ran = True
        installed: list[Mutant] = []
        try:
            for mutant in self.mutants:
                installed.append(mutant)
                mutant.install(self)
            with self._guard:
                self._begin()
                self.kernel.run(self.scenario.duration_ms * 1_000)
                self._finish()
        finally:
            self.kernel.close()
            for mutant in installed:
                mutant.remove()
        return self.result()

    def _begin(self) -> None:
        for checker in self.checkers:
            checker.begin(self)
            self.trace.listen(checker.kinds, checker.on_event)
        if self._expectations.wants:
            self.trace.listen(self._expectations.kinds, self._expectations.on_event)
        scenario, kernel = self.scenario, self.kernel
        self.trace.add("run.start", "", scenario.name, (self.seed, scenario.names, told_of(scenario.drawn)))
        start = self.stream("start")
        for name, node in self.regions.items():
            if name not in self.absent:
                kernel.at(start.randrange(STAGGER_US), node.start)
        for worker in self.workers:
            if worker.node.region not in self.absent:
                kernel.at(STAGGER_US + start.randrange(STAGGER_US), worker.start)
        for place, fault in enumerate(scenario.plan.faults):
            kernel.at(fault.start_ms * 1_000, self._begin_fault, place, fault)
        kernel.at(scenario.plan.healed_ms * 1_000, self._heal)
        for number, load in enumerate(scenario.loads):
            self._arrivals_left += 1
            rng = self.stream("load", str(number))
            until_us = scenario.plan.healed_ms * 1_000 or scenario.duration_ms * 500
            comings = moments(load.arrivals, rng, until_us)
            self._next_arrival(comings, Submitter(self, load, rng), load)
        kernel.at(LOOK_US, self._look)

    def _begin_fault(self, place: int, fault: Fault) -> None:
        active = ActiveFault(self, place, fault)
        self.faults.append(active)
        active.begin()

    def _next_arrival(self, comings: Any, submitter: Submitter, load: Load) -> None:
        coming = next(comings, None)
        if coming is None:
            self._arrivals_left -= 1
            return
        at_us, size = coming
        self.kernel.at(at_us, self._arrive, size, comings, submitter, load)

    def _arrive(self, size: int, comings: Any, submitter: Submitter, load: Load) -> None:
        for _ in range(size):
            region = submitter.arrive()
            for active in self.mischief.get((region, "burst"), ()):
                active.hit(region, "more came")
                for _ in range(round(active.fault.number("factor") - 1)):
                    submitter.arrive(region)
        self._next_arrival(comings, submitter, load)

    def _heal(self) -> None:
        """Faults are over for whom the plan names; from now on progress is demanded of them."""
        healed = self.scenario.plan.healed
        self.trace.add("run.heal", "", self.scenario.name, (healed or self.scenario.names,))
        whole = None if not healed else frozenset(healed)
        for active in self.faults:
            active.end(whole)
        for node in self.healed_nodes():
            node.trap = None
            node.clock.set_right(self.kernel.now_us)
            node.rearm()
        self.healed = True
        self._quiet_us = self.kernel.now_us
        for checker in self.checkers:
            checker.at_heal(self)
        if any(load.model == "locks" for load in self.scenario.loads):
            self.kernel.after(PROBE_AFTER_US, self.locks.probe)

    def healed_nodes(self) -> list[Node]:
        """The nodes of which liveness is demanded: those that the plan heals, and that have a part in the cluster."""
        healed = self.scenario.plan.healed
        outside = self.outsiders()
        return [node for name, node in self.regions.items() if (not healed or name in healed) and name not in outside]

    def membership(self) -> Membership | None:
        """The newest that any region knows; None while all are down."""
        known = [node.membership for node in self.regions.values() if node.replica is not None]
        return max(known, key=lambda membership: membership.stamp, default=None)

    def outsiders(self) -> frozenset[str]:
        """The regions that have no part in the cluster: not added yet, or forgotten, as far as anybody knows."""
        if not self.scenario.changes_members:
            return frozenset(self.absent)
        newest = self.membership()
        return frozenset(self.absent if newest is None else set(self.regions) - set(newest.linked))

    def is_changing(self) -> bool:
        """Whether some region is joining or leaving."""
        newest = self.membership() if self.scenario.changes_members else None
        return newest is not None and bool(newest.joining or newest.leaving)

    def _look(self) -> None:
        """Sample the divergence; stop once all is done and has been for a while."""
        now_us = self.kernel.now_us
        self.kernel.after(LOOK_US, self._look)
        sample = self.sample()
        self.divergence.append(sample)
        if self._progress is not None and now_us % US < LOOK_US:
            with self._guard.lifted():
                self._progress(now_us / US)
        if not self.healed:
            return
        if not self.have_converged():
            self.converged_us = None
            self._quiet_us = now_us
        elif self.converged_us is None:
            self.converged_us = now_us
            self.trace.add("run.converged", "", self.scenario.name, (self.scenario.plan.healed or self.scenario.names,))
        if self._arrivals_left or not self._is_quiet():
            self._quiet_us = now_us
        elif now_us - self._quiet_us >= QUIET_US:
            self.kernel.stop()

    def sample(self) -> Sample:
        """How far the nodes that are up are apart now."""
        outside = self.outsiders()
        up = [node for node in self.nodes.values() if node.replica is not None and node.region not in outside]
        states = [(node.applied, node.digest) for node in up]
        if all(state == states[0] for state in states):
            return Sample(self.kernel.now_us, min(1, len(up)), 0, len(up))
        union: dict[Any, int] = {}
        for heads, _ in states:
            for writer, number in heads.items():
                union[writer] = max(union.get(writer, 0), number)
        whole = sum(union.values())
        different = {(tuple(sorted(heads.items())), digest) for heads, digest in states}
        missing = sum(whole - sum(heads.values()) for heads, _ in states)
        return Sample(self.kernel.now_us, len(different), missing, len(up))

    def have_converged(self) -> bool:
        """Whether all healed regions are up, hold the same commits and show the same state."""
        nodes = self.healed_nodes()
        if any(node.replica is None for node in nodes):
            return False
        first = (nodes[0].applied, nodes[0].digest)
        return all((node.applied, node.digest) == first for node in nodes)

    def _is_quiet(self) -> bool:
        """Whether no healed region has anything left to do, and no client waits."""
        if self.locks.open or self.is_changing():
            return False
        if any(operation.outcome == "open" for operation in self.clients.history[-100:]):
            return False
        for node in self.healed_nodes():
            if node.replica is None or any(not task.ended for task in node.replica._here.table):  # noqa: SLF001
                return False
        return True

    def _finish(self) -> None:
        self.over = True
        for name, node in self.nodes.items():
            heads = tuple(sorted(node.applied.items()))
            self.trace.add("heads", name, name, (heads, node.digest))
            if node.replica is None:
                continue
            for task, (view, settled) in node.tasks().items():
                self.trace.add("view", name, task.hex(), view_data(view, settled), subject=view)
        for checker in self.checkers:
            checker.at_end(self)
        self.trace.add("run.end", "", self.scenario.name)

    # What others ask of it -----------------------------------------------------------------------

    @property
    def history(self) -> list[Operation]:
        return self.clients.history

    @property
    def plan_regions(self) -> tuple[str, ...]:
        return self.scenario.names

    def violation(self, invariant: str, text: str, *, causes: tuple[int, ...] = (), task: str = "") -> Violation:
        """Report that an invariant does not hold now. `task` is its id in hex, where it is about one."""
        found = Violation(invariant, self.kernel.now_us / US, text, causes, task)
        self.violations.append(found)
        if len(self.violations) >= VIOLATIONS_MAX:
            self.kernel.stop()
        return found

    def core_raised(self, node: Node, error: BaseException) -> None:
        """The core raised what it must not: never for anything that comes from outside."""
        trace = traceback.extract_tb(error.__traceback__)
        where = (
            f"{trace[-1].filename.rpartition('/')[2]}:{trace[-1].lineno} in {trace[-1].name}" if trace else "nowhere"
        )
        self.violation("CORE-1", f"the replica of {node.name} raised {type(error).__name__}: {error} ({where})")

    def chance(self, region: str, kind: str, rng: random.Random) -> Fault | None:
        """The workload fault of that kind under way in that region, if it strikes now."""
        for active in self.mischief.get((region, kind), ()):
            if rng.random() < active.fault.number("rate"):
                active.hit(region, "struck")
                return active.fault
        return None

    def fate(self, region: str, rng: random.Random) -> None:
        """What workload faults do to a handler. Raises."""
        if self.mischief:
            if self.chance(region, "poison", rng) is not None:
                raise Poisoned
            if self.chance(region, "failing", rng) is not None:
                raise RuntimeError("a fault made it fail")

    def revive(self, worker: Worker) -> None:
        """A worker died of its handler: its supervisor starts another."""
        self.kernel.after(REVIVE_US, worker.start)

    async def _sleep(self, seconds: float) -> None:
        """What every sleep of a handler is."""
        owner = self.kernel.owner()
        await (self.kernel.sleep(seconds) if owner is None else owner.sleep(seconds))

    def _wall_s(self) -> float:
        owner = self.kernel.owner()
        node = next(iter(self.regions.values())) if owner is None else owner.worker.node
        return node.clock.wall_us(self.kernel.now_us) / US

    # The outcome ---------------------------------------------------------------------------------

    def views(self) -> Mapping[TaskId, tuple[TaskView, bool]]:
        """The tasks as the healed region that knows most shows them."""
        nodes = [node for node in self.healed_nodes() if node.replica is not None]
        if not nodes:
            return {}
        return max(nodes, key=lambda node: sum(node.applied.values())).tasks()

    def result(self) -> Result:
        """The run in numbers. Call after `run`."""
        views = self.views()
        states: Counter[str] = Counter()
        conflicts: set[str] = set()
        compensations = double_runs = 0
        for view, _ in views.values():
            if view.submitted is not None and view.submitted.undoes is not None:
                compensations += 1
                continue
            states[str(view.state) if view.state in ENDED else "open"] += 1
            conflicts.update(conflict.id for conflict in view.conflicts)
            double_runs += sum(attempt.state == "ok" for attempt in view.attempts) > 1
        tasks = {"submitted": sum(states.values())}
        tasks.update((state, states[state]) for state in ("succeeded", "dead", "cancelled", "expired", "open"))
        result = Result(
            seed=self.seed,
            scenario=self.scenario.name,
            kernel=self.kernel.name,
            virtual_s=self.kernel.now_us / US,
            events=self.trace.count,
            messages=self.network.messages,
            bytes=self.network.bytes,
            trace_hash=self.trace.hash,
            violations=tuple(self.violations),
            converged_at_s=None if self.converged_us is None else self.converged_us / US,
            healed_at_s=self.scenario.plan.healed_ms / 1_000,
            tasks=tasks,
            conflicts=len(conflicts),
            compensations=compensations,
            double_runs=double_runs,
        )
        return replace(result, unmet=self._expectations.unmet(self, result))


def _namespaces(scenario: Scenario) -> list[dict[str, Any]]:
    """Where the user's handlers look their names up."""
    handlers = [] if scenario.app is None else [unwrap(task.handler) for task in scenario.app.tasks.values()]
    return [handler.__globals__ for handler in handlers if isinstance(handler, FunctionType)]


def view_data(view: TaskView, settled: bool) -> tuple[Any, ...]:
    """What a `view` record says: see `trace.SCHEMA`."""
    attempts = tuple((str(a.id), str(a.state), a.late) for a in view.attempts)
    winner = None if view.winner is None else str(view.winner)
    return str(view.state), settled, winner, view.result, attempts
