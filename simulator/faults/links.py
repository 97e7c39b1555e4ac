"""What goes wrong with links, one by one and many at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from simulator import rules
from simulator.faults.active import BEGIN, ActiveFault, Borrowed, links_of, number_of, pairs_of, regions_of, us_of
from simulator.network import Rule
from simulator.plan import split_link

if TYPE_CHECKING:
    from simulator.world import World


def _rule(make: Callable[[World, ActiveFault, rules.Hit], Rule]) -> Callable[[World, ActiveFault], None]:
    def begin(world: World, active: ActiveFault) -> None:
        for a, b in links_of(world, active):
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


def _black_hole(_world: World, _active: ActiveFault, hit: rules.Hit) -> Rule:
    return rules.Drop(hit)


def _one_way(world: World, active: ActiveFault) -> None:
    """Only the direction that a link's name begins with, also of "eu<>us"; of a region, what it sends."""
    for a, b in links_of(world, active):
        named = [split_link(target) for target in active.fault.targets]
        if any(link is not None and link[:2] == (a, b) for link in named) or a in active.fault.targets:
            _add_rule(world, active, (a, b), _black_hole)


def _reset(world: World, active: ActiveFault) -> None:
    for a, b in pairs_of(links_of(world, active)):
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
    for a, b in pairs_of(links_of(world, active)):
        _refuse_pair(world, active, a, b)


# Topologies --------------------------------------------------------------------------------------


def _cut(world: World, active: ActiveFault, apart: Callable[[str, str], bool]) -> None:
    """Cut every pair that is to be apart, in the way that the fault says."""
    for a, b in pairs_of((a, b) for a in world.regions for b in world.regions if a != b):
        if apart(a, b):
            _cut_pair(world, active, a, b)


def _cut_pair(world: World, active: ActiveFault, a: str, b: str) -> None:
    if active.fault["how"] == "reset":
        _refuse_pair(world, active, a, b)
    else:
        _add_rule(world, active, (a, b), _black_hole)
        _add_rule(world, active, (b, a), _black_hole)


def _isolate(world: World, active: ActiveFault) -> None:
    alone = {node.name for node in regions_of(world, active)}
    _cut(world, active, lambda a, b: a in alone or b in alone)


def _halves(world: World, active: ActiveFault) -> None:
    side = {node.name for node in regions_of(world, active)}
    _cut(world, active, lambda a, b: (a in side) != (b in side))


def _bridge(world: World, active: ActiveFault) -> None:
    middle = {node.name for node in regions_of(world, active)}
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
    period_us = us_of(active, "period_ms")
    down_us = round(period_us * number_of(active, "down"))
    for a, b in pairs_of(links_of(world, active)):
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


BEGIN.update(
    {
        "link_delay": _rule(lambda _, a, hit: rules.Delay(hit, us_of(a, "extra_ms"), 0)),
        "link_jitter": _rule(lambda _, a, hit: rules.Delay(hit, 0, us_of(a, "up_to_ms"))),
        "link_loss": _rule(lambda _, a, hit: rules.Drop(hit, number_of(a, "rate"))),
        "link_duplicate": _rule(lambda _, a, hit: rules.Duplicate(hit, number_of(a, "rate"))),
        "link_reorder": _rule(lambda _, a, hit: rules.Reorder(hit, number_of(a, "rate"), us_of(a, "up_to_ms"))),
        "link_garbage": _rule(lambda _, a, hit: rules.Garbage(hit, number_of(a, "rate"))),
        "link_bandwidth": _rule(
            lambda w, a, hit: rules.Bandwidth(hit, number_of(a, "per_s_bytes"), lambda: w.kernel.now_us)
        ),
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
    }
)
