"""Puts a plan into effect on a world: when each fault begins, what it does, and how it is undone.

A fault has *parts*, one per link, region or worker that it hits, each with its own undoing: healing a core of the
regions takes back the parts that concern the core alone. Whatever a fault really changes is counted as a *hit* on a
region, so that the vacuity table counts faults that mattered.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from crdtsync import effects as e
from simulator import rules
from simulator.disk import Store
from simulator.network import Rule
from simulator.node import Node, Trap
from simulator.plan import Fault, split_link

if TYPE_CHECKING:
    from simulator.workers import Worker
    from simulator.world import World

Undo = Callable[[], None]
CRASH_LOOP_UP: Final = 0.3  # share of a crash loop's period in which the node is up
BOUNDARIES: Final[dict[str, type[Any] | None]] = {
    "persist": e.Persist,
    "send": e.Send,
    "reply": e.Reply,
    "run": e.Run,
    "any": None,
}


class ActiveFault:
    """One fault of the plan, from its start on.

    Attributes:
        id: "f<place in the plan>".
        hits: Region -> how often the fault changed something there.
        seq: Of its `fault.start` record.
    """

    def __init__(self, world: World, place: int, fault: Fault) -> None:
        self.id = f"f{place}"
        self.fault = fault
        self.hits: Counter[str] = Counter()
        self.seq = -1
        self.over = False
        self.rng: random.Random = world.stream("fault", self.id)
        self._world = world
        self._parts: list[tuple[tuple[str, ...], Undo]] = []

    def begin(self) -> None:
        fault, world = self.fault, self._world
        params = tuple(sorted(fault.params.items()))
        self.seq = world.trace.add("fault.start", "", self.id, (fault.kind, fault.targets, params), subject=fault)
        BEGIN[fault.kind](world, self)
        if not fault.spec.instant:
            world.kernel.at(fault.end_ms * 1_000, self.end)
        elif not self._parts:
            self.over = True

    def part(self, regions: tuple[str, ...], undo: Undo) -> None:
        """Something was broken: how to mend it."""
        self._parts.append((regions, undo))

    def end(self, healed: frozenset[str] | None = None) -> None:
        """Mend everything, or what concerns only the regions named."""
        if self.over:
            return
        mine = [part for part in self._parts if healed is None or healed.issuperset(part[0])]
        self._parts = [part for part in self._parts if part not in mine]
        if not self._parts:
            self.over = True
            self._world.trace.add("fault.end", "", self.id, (self.fault.kind,), (self.seq,))
        for _, undo in mine:
            undo()

    def hit(self, region: str, what: str) -> None:
        """The fault changed something in `region`."""
        self.hits[region] += 1
        if self.hits[region] == 1:
            self._world.trace.add("fault.hit", region, self.id, (self.fault.kind, what), (self.seq,))


# Who is meant --------------------------------------------------------------------------------------


def _regions(world: World, active: ActiveFault) -> Iterator[Node]:
    targets = active.fault.targets
    for name, node in world.regions.items():
        if "*" in targets or name in targets:
            yield node


def _links(world: World, active: ActiveFault) -> Iterator[tuple[str, str]]:
    """Directed links, each once, in a fixed order."""
    names = tuple(world.regions)
    meant: dict[tuple[str, str], None] = {}
    for target in active.fault.targets:
        link = split_link(target)
        for a in names:
            for b in names:
                if a == b:
                    continue
                whole = target == "*" or target in (a, b)
                if whole or (link is not None and ((a, b) == link[:2] or (link[2] and (b, a) == link[:2]))):
                    meant[a, b] = None
    yield from meant


def _pairs(links: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    seen: dict[frozenset[str], None] = {}
    for a, b in links:
        if frozenset((a, b)) not in seen:
            seen[frozenset((a, b))] = None
            yield a, b


# Links -------------------------------------------------------------------------------------------


def _rule(make: Callable[[World, ActiveFault, rules.Hit], Rule]) -> Callable[[World, ActiveFault], None]:
    def begin(world: World, active: ActiveFault) -> None:
        for a, b in _links(world, active):
            _add_rule(world, active, (a, b), make)

    return begin


def _add_rule(
    world: World,
    active: ActiveFault,
    link: tuple[str, str],
    make: Callable[[World, ActiveFault, rules.Hit], Rule],
) -> None:
    a, b = link
    wire = world.network.wire(world.regions[a], world.regions[b])

    def hit(what: str) -> None:
        active.hit(a, what)
        active.hit(b, what)

    rule = make(world, active, hit)
    wire.rules.append(rule)
    active.part((a, b), partial(wire.remove, rule))


def _number(active: ActiveFault, name: str) -> float:
    return active.fault.number(name)


def _us(active: ActiveFault, name: str) -> int:
    return round(active.fault.number(name) * 1_000)


def _black_hole(_world: World, _active: ActiveFault, hit: rules.Hit) -> Rule:
    return rules.Drop(hit)


def _one_way(world: World, active: ActiveFault) -> None:
    """Only the direction that a link's name begins with, also of "eu<>us"; of a region, what it sends."""
    for a, b in _links(world, active):
        named = [split_link(target) for target in active.fault.targets]
        if any(link is not None and link[:2] == (a, b) for link in named) or a in active.fault.targets:
            _add_rule(world, active, (a, b), _black_hole)


def _reset(world: World, active: ActiveFault) -> None:
    for a, b in _pairs(_links(world, active)):
        _reset_pair(world, active, a, b)


def _reset_pair(world: World, active: ActiveFault, a: str, b: str) -> None:
    for one, other in ((a, b), (b, a)):
        for peer, connection in list(world.regions[one].links.items()):
            if peer == other:
                active.hit(a, "reset")
                active.hit(b, "reset")
                world.network.reset(connection, "connection reset")


def _refuse_pair(world: World, active: ActiveFault, a: str, b: str) -> None:
    refusing = world.network.refusing
    for pair in ((a, b), (b, a)):
        refusing[pair] = refusing.get(pair, 0) + 1
    _reset_pair(world, active, a, b)

    def allow() -> None:
        for pair in ((a, b), (b, a)):
            refusing[pair] -= 1

    active.part((a, b), allow)


def _refuse(world: World, active: ActiveFault) -> None:
    for a, b in _pairs(_links(world, active)):
        _refuse_pair(world, active, a, b)


# Topologies --------------------------------------------------------------------------------------


def _cut(world: World, active: ActiveFault, apart: Callable[[str, str], bool]) -> None:
    """Cut every pair that is to be apart, in the way that the fault says."""
    for a, b in _pairs((a, b) for a in world.regions for b in world.regions if a != b):
        if apart(a, b):
            _cut_pair(world, active, a, b)


def _cut_pair(world: World, active: ActiveFault, a: str, b: str) -> None:
    if active.fault["how"] == "reset":
        _refuse_pair(world, active, a, b)
    else:
        _add_rule(world, active, (a, b), _black_hole)
        _add_rule(world, active, (b, a), _black_hole)


def _isolate(world: World, active: ActiveFault) -> None:
    alone = {node.name for node in _regions(world, active)}
    _cut(world, active, lambda a, b: a in alone or b in alone)


def _halves(world: World, active: ActiveFault) -> None:
    side = {node.name for node in _regions(world, active)}
    _cut(world, active, lambda a, b: (a in side) != (b in side))


def _bridge(world: World, active: ActiveFault) -> None:
    middle = {node.name for node in _regions(world, active)}
    rest = [name for name in world.regions if name not in middle]
    left = set(rest[: len(rest) // 2])
    _cut(world, active, lambda a, b: a not in middle and b not in middle and (a in left) != (b in left))


def _majorities_ring(world: World, active: ActiveFault) -> None:
    """Each sees its neighbours on a ring, as many as make a majority with it, and nobody else."""
    names = tuple(world.regions)
    reach = (len(names) // 2 + 1) // 2  # neighbours on either side

    def apart(a: str, b: str) -> bool:
        gap = abs(names.index(a) - names.index(b))
        return min(gap, len(names) - gap) > reach

    _cut(world, active, apart)


def _flapping(world: World, active: ActiveFault) -> None:
    period_us = _us(active, "period_ms")
    down_us = round(period_us * _number(active, "down"))
    for a, b in _pairs(_links(world, active)):
        _Flapping(world, active, (a, b), period_us, down_us).down()


class _Flapping:
    """One link that goes down and comes up again and again."""

    def __init__(self, world: World, active: ActiveFault, pair: tuple[str, str], period_us: int, down_us: int) -> None:
        self._world = world
        self._active = active
        self._pair = pair
        self._period_us = period_us
        self._down_us = down_us
        self._inner: ActiveFault | None = None
        self._over = False
        active.part(pair, self._end)

    def down(self) -> None:
        if self._over:
            return
        self._inner = Borrowed(self._world, self._active)
        _cut_pair(self._world, self._inner, *self._pair)
        self._world.kernel.after(self._down_us, self._up)

    def _up(self) -> None:
        if not self._over:
            self._mend()
            self._world.kernel.after(self._period_us - self._down_us, self.down)

    def _mend(self) -> None:
        if self._inner is not None:
            self._inner.end()
            self._inner = None

    def _end(self) -> None:
        self._over = True
        self._mend()


class Borrowed(ActiveFault):
    """A piece of a fault that comes and goes within it."""

    def __init__(self, world: World, whole: ActiveFault) -> None:
        self._whole = whole
        self.id = whole.id
        self.fault = whole.fault
        self.hits = whole.hits
        self.seq = whole.seq
        self.rng = whole.rng
        self.over = False
        self._world = world
        self._parts = []

    def end(self, healed: frozenset[str] | None = None) -> None:  # noqa: ARG002 - the whole judges
        parts, self._parts = self._parts, []
        for _, undo in parts:
            undo()


# Processes ---------------------------------------------------------------------------------------


def _down(active: ActiveFault, node: Node, *, power: bool = False) -> None:
    """Kill the process and keep it down until the fault ends."""
    if node.replica is not None:
        active.hit(node.region, "killed")
    node.held_down[active] = None
    node.crash(active.fault.kind, power=power, cause=active.seq)

    def restart() -> None:
        node.held_down.pop(active, None)
        node.start(active.seq)

    if active.over:
        restart()
    else:
        active.part((node.region,), restart)


def _kill(world: World, active: ActiveFault) -> None:
    fault = active.fault
    for node in _regions(world, active):
        if fault["when"] == "now":
            _down(active, node)
            continue

        def spring(node: Node = node) -> None:
            # The process is in the middle of carrying effects out: none after this one is.
            _down(active, node)

        trap = Trap(
            BOUNDARIES[str(fault["when"])], round(_number(active, "nth")), after=fault["side"] == "after", spring=spring
        )
        node.trap = trap

        def disarm(node: Node = node, trap: Trap = trap) -> None:
            if node.trap is trap and fault.duration_ms:  # without a duration it waits until the healing
                node.trap = None

        active.part((node.region,), disarm)


def _pause(world: World, active: ActiveFault) -> None:
    for node in _regions(world, active):
        if node.replica is not None:
            active.hit(node.region, "paused")
        node.pause()
        active.part((node.region,), node.resume)


def _slow(world: World, active: ActiveFault) -> None:
    for node in _regions(world, active):
        active.hit(node.region, "slowed")  # every input from now on
        node.slow_us += _us(active, "input_ms")

        def hurry(node: Node = node) -> None:
            node.slow_us -= _us(active, "input_ms")

        active.part((node.region,), hurry)


def _crash_loop(world: World, active: ActiveFault) -> None:
    period_us = _us(active, "period_ms")
    for node in _regions(world, active):
        loop = _CrashLoop(world, active, node, period_us)
        active.part((node.region,), loop.end)
        loop.kill()


class _CrashLoop:
    def __init__(self, world: World, active: ActiveFault, node: Node, period_us: int) -> None:
        self._world = world
        self._active = active
        self._node = node
        self._period_us = period_us
        self._over = False

    def kill(self) -> None:
        if self._over:
            return
        self._active.hit(self._node.region, "killed")
        self._node.held_down[self] = None
        self._node.crash("crash loop", cause=self._active.seq)
        self._world.kernel.after(round(self._period_us * (1 - CRASH_LOOP_UP)), self._start)

    def _start(self) -> None:
        self._node.held_down.pop(self, None)
        self._node.start(self._active.seq)
        if not self._over:
            self._world.kernel.after(round(self._period_us * CRASH_LOOP_UP), self.kill)

    def end(self) -> None:
        self._over = True
        self._node.held_down.pop(self, None)
        self._node.start(self._active.seq)


# Disks -------------------------------------------------------------------------------------------


def _power_cut(world: World, active: ActiveFault) -> None:
    for node in _regions(world, active):
        _down(active, node, power=True)


def _power_cut_torn(world: World, active: ActiveFault) -> None:
    """The write under way reached the platter, whole, or in part, which recovery takes back."""
    for node in _regions(world, active):
        node.disk.keeps_torn = active.rng.random() < 0.5
        _down(active, node, power=True)
        node.disk.keeps_torn = False


def _disk(set_up: Callable[[Node, ActiveFault], Undo]) -> Callable[[World, ActiveFault], None]:
    def begin(world: World, active: ActiveFault) -> None:
        for node in _regions(world, active):
            node.disk.hit = partial(active.hit, node.region)
            undo = set_up(node, active)

            def mend(undo: Undo = undo, node: Node = node) -> None:
                undo()
                node.disk.hit = None

            active.part((node.region,), mend)

    return begin


def _full(node: Node, _active: ActiveFault) -> Undo:
    node.disk.full = True

    def mend() -> None:
        node.disk.full = False

    return mend


def _slow_disk(node: Node, active: ActiveFault) -> Undo:
    node.disk.slow_us = _us(active, "fsync_ms")

    def mend() -> None:
        node.disk.slow_us = 0

    return mend


def _failing(node: Node, active: ActiveFault) -> Undo:
    node.disk.failing = _number(active, "rate")

    def mend() -> None:
        node.disk.failing = 0.0

    return mend


def _bounce(world: World, active: ActiveFault, node: Node, *, power: bool, between: Callable[[], None]) -> None:
    """Down, something done to the disk, up again."""
    active.hit(node.region, "restarted")
    node.held_down[active] = None
    node.crash(active.fault.kind, power=power, cause=active.seq)
    between()
    node.held_down.pop(active, None)
    world.kernel.after(0, node.start, active.seq)


def _nothing() -> None:
    pass


def _lying(world: World, active: ActiveFault) -> None:
    for node in _regions(world, active):
        node.disk.begin_lying()

        def cut(node: Node = node) -> None:
            _bounce(world, active, node, power=True, between=node.disk.end_lying)

        active.part((node.region,), cut)


def _old_copy(world: World, active: ActiveFault) -> None:
    for node in _regions(world, active):
        copy = node.disk.store.copy()

        def restore(node: Node = node, copy: Store = copy) -> None:
            def put_back() -> None:
                node.lost(node.disk.restore(copy), "restored from an old copy", active.seq)
                node.restored = active.fault["told"] == "yes"

            _bounce(world, active, node, power=False, between=put_back)

        active.part((node.region,), restore)


def _lost_disk(world: World, active: ActiveFault) -> None:
    for node in _regions(world, active):
        _down(active, node, power=True)
        node.lost(node.disk.wipe(), "the disk is lost", active.seq)


def _clone(world: World, active: ActiveFault) -> None:
    for node in list(_regions(world, active)):
        twin = world.add_node(node.region, disk=node.disk.clone(active.rng))
        active.hit(node.region, "cloned")
        twin.start(active.seq)

        def remove(node: Node = node, twin: Node = twin) -> None:
            """The operator does what the alarm says: one of the two stays, and is restarted."""
            twin.held_down[active] = None
            twin.crash("the clone is switched off", cause=active.seq)
            _bounce(world, active, node, power=False, between=_nothing)

        active.part((node.region,), remove)


# Clocks ------------------------------------------------------------------------------------------


def _offset(world: World, active: ActiveFault) -> None:
    by_us = _us(active, "off_ms")
    for node in _regions(world, active):
        active.hit(node.region, "off")
        node.clock.step(by_us)
        active.part((node.region,), partial(node.clock.step, -by_us))


def _step(world: World, active: ActiveFault) -> None:
    for node in _regions(world, active):
        active.hit(node.region, "stepped")
        node.clock.step(_us(active, "by_ms"))


def _drift(world: World, active: ActiveFault) -> None:
    ppm = round(_number(active, "rate_ppm"))
    for node in _regions(world, active):
        active.hit(node.region, "drifts")
        before = node.clock.drift_ppm

        def run_at(rate: int, node: Node = node) -> None:
            node.clock.drift(rate, world.kernel.now_us)
            node.rearm()

        run_at(ppm)
        active.part((node.region,), partial(run_at, before))


def _strobe(world: World, active: ActiveFault) -> None:
    for node in _regions(world, active):
        active.hit(node.region, "strobes")
        node.clock.strobe(_us(active, "by_ms"), max(1, _us(active, "period_ms")))
        active.part((node.region,), node.clock.mend)


def _frozen(world: World, active: ActiveFault) -> None:
    for node in _regions(world, active):
        active.hit(node.region, "frozen")
        node.clock.freeze(world.kernel.now_us)
        active.part((node.region,), node.clock.mend)


# Workers -----------------------------------------------------------------------------------------


def _workers(world: World, active: ActiveFault) -> Iterator[Worker]:
    for worker in world.workers:
        region, _, number = worker.name.rpartition("/")
        for target in active.fault.targets:
            named, _, which = target.partition("/")
            if target == "*" or (named == region and which in ("", number)):
                yield worker
                break


def _worker_crash(world: World, active: ActiveFault) -> None:
    for worker in _workers(world, active):
        if worker.alive:
            active.hit(worker.node.region, "crashed")
        worker.crash("a fault killed it", active.seq)
        active.part((worker.node.region,), partial(worker.start, active.seq))


def _worker_flag(name: str, frees: bool) -> Callable[[World, ActiveFault], None]:
    def begin(world: World, active: ActiveFault) -> None:
        for worker in _workers(world, active):
            setattr(worker, name, True)
            worker.hits.append(hit := partial(active.hit, worker.node.region))

            def mend(worker: Worker = worker, hit: Callable[[str], None] = hit) -> None:
                setattr(worker, name, False)
                worker.hits.remove(hit)
                if frees:
                    worker.free()

            active.part((worker.node.region,), mend)

    return begin


def _worker_slow(world: World, active: ActiveFault) -> None:
    for worker in _workers(world, active):
        worker.slowness = _number(active, "factor")
        worker.hits.append(hit := partial(active.hit, worker.node.region))

        def mend(worker: Worker = worker, hit: Callable[[str], None] = hit) -> None:
            worker.slowness = 1.0
            worker.hits.remove(hit)

        active.part((worker.node.region,), mend)


# Workload ----------------------------------------------------------------------------------------


def _workload(world: World, active: ActiveFault) -> None:
    for node in _regions(world, active):
        world.mischief.setdefault((node.region, active.fault.kind), []).append(active)
        active.part((node.region,), partial(world.mischief[node.region, active.fault.kind].remove, active))


BEGIN: Final[dict[str, Callable[[World, ActiveFault], None]]] = {
    "link_delay": _rule(lambda _, a, hit: rules.Delay(hit, _us(a, "extra_ms"), 0)),
    "link_jitter": _rule(lambda _, a, hit: rules.Delay(hit, 0, _us(a, "up_to_ms"))),
    "link_loss": _rule(lambda _, a, hit: rules.Drop(hit, _number(a, "rate"))),
    "link_duplicate": _rule(lambda _, a, hit: rules.Duplicate(hit, _number(a, "rate"))),
    "link_reorder": _rule(lambda _, a, hit: rules.Reorder(hit, _number(a, "rate"), _us(a, "up_to_ms"))),
    "link_garbage": _rule(lambda _, a, hit: rules.Garbage(hit, _number(a, "rate"))),
    "link_bandwidth": _rule(lambda w, a, hit: rules.Bandwidth(hit, _number(a, "per_s_bytes"), lambda: w.kernel.now_us)),
    "link_clog": _rule(lambda _, __, hit: rules.Hold(hit)),
    "link_hold": _rule(lambda _, a, hit: rules.Hold(hit, a.rng)),
    "link_one_way": _one_way,
    "link_black_hole": _rule(_black_hole),
    "link_reset": _reset,
    "link_refuse": _refuse,
    "isolate": _isolate,
    "halves": _halves,
    "bridge": _bridge,
    "majorities_ring": _majorities_ring,
    "flapping": _flapping,
    "kill": _kill,
    "pause": _pause,
    "slow": _slow,
    "crash_loop": _crash_loop,
    "disk_drop_tail": _power_cut,
    "disk_torn_tail": _power_cut_torn,
    "disk_full": _disk(_full),
    "disk_slow": _disk(_slow_disk),
    "disk_failing": _disk(_failing),
    "disk_lying": _lying,
    "disk_old_copy": _old_copy,
    "disk_lost": _lost_disk,
    "disk_clone": _clone,
    "clock_offset": _offset,
    "clock_drift": _drift,
    "clock_step": _step,
    "clock_strobe": _strobe,
    "clock_frozen": _frozen,
    "worker_crash": _worker_crash,
    "worker_hang": _worker_flag("hung", frees=True),
    "worker_deaf": _worker_flag("deaf", frees=False),
    "worker_silent": _worker_flag("silent", frees=True),
    "worker_slow": _worker_slow,
    "burst": _workload,
    "duplicate_submits": _workload,
    "cancel_storm": _workload,
    "failing": _workload,
    "poison": _workload,
}
