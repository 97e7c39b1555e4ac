"""Limits in force in this region: what may start now, who holds the slots, and how rights find those who need them.

The facts are `coordination.limits`'; here is what one region does about them. A slot is bound by an open attempt of this
region and comes free when that attempt ends, however it ends: a dead worker's slot returns when its attempt is lost. A start
under a rate binds its right for one period from the moment that it was durable, so that in no span of a period, anywhere,
more is started than the rate allows, also when the right has moved meanwhile.

Rights move by demand. Regions tell those they are linked to what they hold, use and lack; whoever has more than its share
of what all of them want passes it on, freed slots first. Nobody takes: rights are given, by an event of the giver.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from crdtsync.coordination.limits import Limit
from crdtsync.coordination.shares import dealt, evenly, passed_on
from crdtsync.events import LimitSet, RightsBurned, RightsInherited, RightsMinted, RightsMoved
from crdtsync.identifiers import AttemptId, EventId, RegionId, TaskId, WriterId
from crdtsync.protocol.peer_messages import DEMANDS_MAX, Demand
from crdtsync.region import RegionState
from crdtsync.scheduling.ready import Lane, ReadyQueue
from crdtsync.scheduling.workers import Workers
from crdtsync.task_view import TaskView
from crdtsync.tasks import Task
from crdtsync.views import utc

TELL_MS: Final = 100  # how often at most peers are told what changed: a few frames a second and link
REPEAT_MS: Final = 1_000  # how often what is lacking is said again
DEMAND_KEPT_MS: Final = 5_000  # a peer's word that was not repeated for so long is old
GIVE_MS: Final = 500  # between gifts of what is needed here too: rights must not ping-pong
BURN_AGAIN_MS: Final = 2_000  # others burn their part of a lowered limit meanwhile
IDLE_MS: Final = 10_000  # nobody lacks anything for so long: rights go back to even shares, for the next cut
FLOOR_DIVISOR: Final = 5  # an idle region keeps a fifth of an even share, rounded down, while others lack
SLICES: Final = 64  # of a period: how finely it is remembered when rights of a rate come free


class Scope(NamedTuple):
    """What of a task limits look at."""

    queue: str
    name: str
    key: str

    @property
    def targets(self) -> tuple[str, ...]:
        found = (f"queue:{self.queue}", f"task:{self.name}")
        return (*found, f"key:{self.key}") if self.key else found


class Link(NamedTuple):
    """A peer that can be told of demand and given rights: linked now, and of a version that knows limits."""

    peer: RegionId
    writer: WriterId


class Heard(NamedTuple):
    demand: Demand
    mono_ms: int


@dataclass(slots=True)
class Rule:
    """One limit in force, as this region enforces it."""

    limit: Limit
    setting: LimitSet
    used: int = 0  # rights bound here
    young: int = 0  # of them, by this incarnation
    cooling: deque[list[int]] = field(default_factory=deque)  # of a rate: [until_ms (mono), rights, of them young]
    parked: dict[Lane, None] = field(default_factory=dict)  # lanes that wait for this one
    elsewhere: dict[Lane, None] = field(default_factory=dict)  # lanes under it too that wait for a later one
    lacking_since_ms: int | None = None  # nothing has started under it since, though something waits
    gave_ms: int | None = None
    burn_until_ms: int | None = None  # the limit was lowered: until then this region keeps its part of it
    keep: int = 0
    quiet_since_ms: int | None = None

    @property
    def is_global(self) -> bool:
        return self.setting.scope == "global"

    @property
    def is_rate(self) -> bool:
        return self.setting.kind == "rate"


class Limits:
    """What this region does about limits.

    Args:
        trusted: Whether rights older than this incarnation may be used (`Neighbours.may_use_rights`).
        may_touch_old: As for tasks: whether what a restarted node remembers is good enough for limits of the region alone.
        all_know: Whether every member reads the events of limits.
        links: To whom rights may be given now.
        tell: Sends demands to a peer.
    """

    def __init__(
        self,
        here: RegionState,
        workers: Workers,
        ready: ReadyQueue,
        *,
        trusted: Callable[[], bool],
        may_touch_old: Callable[[], bool],
        all_know: Callable[[], bool],
        links: Callable[[], Sequence[Link]],
        tell: Callable[[RegionId, tuple[Demand, ...]], None],
    ) -> None:
        self._here = here
        self._workers = workers
        self._ready = ready
        self._trusted = trusted
        self._may_touch_old = may_touch_old
        self._all_know = all_know
        self._links = links
        self._tell = tell
        self._rules: dict[bytes, Rule] = {}
        self._by_target: dict[str, list[Rule]] = {}
        self._later: dict[bytes, LimitSet] = {}  # declared here, and not written yet
        self._seen_settings = -1
        self._bound: dict[AttemptId, Scope] = {}  # open attempts of all regions
        self._of_task: dict[TaskId, tuple[AttemptId, ...]] = {}
        self._dirty: dict[bytes, None] = {}
        self._heard: dict[RegionId, dict[bytes, Heard]] = {}
        self._told: dict[RegionId, dict[bytes, Demand]] = {}
        self._told_ms = -REPEAT_MS
        self._was_trusted = (False, False, False)
        self._unsure: dict[bytes, None] = {}  # limits whose first setting may not be the first: see `_is_first`
        self.leaving = False  # this region gives all its rights away, and starts nothing under a global limit

    # What is in force --------------------------------------------------------------------------

    def declare_later(self, setting: LimitSet) -> None:
        """Keep a setting in force here, and write it as soon as all members read it."""
        self._later[setting.limit] = setting
        self._seen_settings = -1

    def _write_later(self) -> None:
        if self._later and self._here.stamps and (len(self._here.limits) or self._all_know()):
            later, self._later = self._later, {}
            for setting in later.values():
                self._here.write(setting)

    def _refresh(self) -> None:
        """Bring the rules up to the facts. Where any came, changed or went, tasks are reviewed: lanes are cut anew."""
        table = self._here.limits
        for id in table.changed:
            self._dirty[id] = None
        table.changed.clear()
        if table.settings == self._seen_settings:
            return
        self._seen_settings = table.settings
        changed = False
        in_force = {limit.id: (limit, limit.latest[1]) for limit in table if limit.latest is not None}
        for id, setting in self._later.items():
            in_force.setdefault(id, (Limit(id), setting))
        for limit, said in in_force.values():
            rule = self._rules.get(limit.id)
            if said.scope == "none":
                if rule is not None:
                    del self._rules[limit.id]
                    self._wake(rule, len(rule.parked))
                    changed = True
            elif rule is None:
                self._rules[limit.id] = Rule(limit, said)
                changed = True
            elif rule.setting != said or rule.limit is not limit:
                rule.limit, rule.setting, rule.burn_until_ms = limit, said, None
                changed = True
        if changed:
            self._by_target = {}
            for _, rule in sorted(self._rules.items()):
                self._by_target.setdefault(rule.setting.target, []).append(rule)
            for rule in self._rules.values():
                rule.elsewhere.clear()
            for rule in self._rules.values():
                self._recount(rule)
                for lane in rule.parked:
                    self._lack(lane, rule)
            self._here.table.touch_all()

    def _recount(self, rule: Rule) -> None:
        if rule.is_rate:
            return
        mine = [id for id, scope in self._bound.items() if rule in self._over(scope) and id.region == self._here.me]
        rule.used = len(mine)
        rule.young = sum(1 for id in mine if id.writer == self._here.writer)
        self._dirty[rule.limit.id] = None

    def _over(self, scope: Scope) -> list[Rule]:
        """The rules that a task of this scope is under, in the one order in which every region gets rights of them."""
        if not self._by_target:
            return []
        return [rule for target in scope.targets for rule in self._by_target.get(target, ())]

    def lane_of(self, view: TaskView) -> Lane:
        """The lane of a task: tasks under a limit on their key have one of their own."""
        submitted = view.submitted
        assert submitted is not None
        if submitted.key and f"key:{submitted.key}" in self._by_target:
            return submitted.queue, submitted.name, submitted.key
        return submitted.queue, submitted.name

    @staticmethod
    def _scope(lane: Lane) -> Scope:
        return Scope(lane[0], lane[1], lane[2] if len(lane) == 3 else "")

    # Slots -------------------------------------------------------------------------------------

    def cap(self, rule: Rule) -> int:
        """How many rights this region may bind now."""
        if not rule.is_global:
            return rule.setting.amount if self._may_touch_old() else 0
        if self.leaving:
            return 0
        if self._trusted():
            return rule.limit.rights(self._here.me) - self._warm(rule)
        return rule.limit.fresh(self._here.writer)

    def _warm(self, rule: Rule) -> int:
        """Inherited rights of a rate under which their old holder may have started something within the last period."""
        if not rule.is_rate or not rule.limit.inherited:
            return 0
        warm = 0
        for id, amount in rule.limit.inherited_by(self._here.me):
            left_ms = rule.setting.period_ms - (self._here.time_ms - (id.stamp >> 16))
            if left_ms > 0 and amount > 0:
                warm += amount
                self._here.timers.at_mono(self._here.now.mono_ms + left_ms, ("limit.free", rule.limit.id))
        return warm

    def free(self, rule: Rule) -> int:
        self._cool(rule)
        if rule.is_global and not self._trusted():
            return max(0, self.cap(rule) - rule.young)
        return max(0, self.cap(rule) - rule.used)

    def _cool(self, rule: Rule) -> None:
        """Let go of what was bound by starts of more than a period ago."""
        now_ms = self._here.now.mono_ms
        while rule.cooling and rule.cooling[0][0] <= now_ms:
            _, rights, young = rule.cooling.popleft()
            rule.used -= rights
            rule.young -= young
            self._dirty[rule.limit.id] = None
        if rule.cooling:
            self._here.timers.at_mono(rule.cooling[0][0], ("limit.free", rule.limit.id))

    def blocking(self, lane: Lane) -> Rule | None:
        """The limit that lets nothing more of this lane start now, or None."""
        if not self._by_target:
            return None
        return next((rule for rule in self._over(self._scope(lane)) if self.free(rule) <= 0), None)

    def park(self, lane: Lane, rule: Rule) -> None:
        """Take the lane out of turn until the limit has room: it costs nobody else's dispatch anything meanwhile."""
        self._ready.park(lane)
        rule.parked[lane] = None
        self._lack(lane, rule)

    def _lack(self, lane: Lane, blocking: Rule) -> None:
        """Rights of the limits before the blocking one are kept, or they would be passed on and never meet with its own;
        those behind it are not, or two regions would keep what each other waits for (Havender, "Avoiding deadlock in
        multitasking systems", IBM Systems Journal 1968)."""
        for rule in self._over(self._scope(lane)):
            if rule.lacking_since_ms is None:
                rule.lacking_since_ms = self._here.now.mono_ms
            self._dirty[rule.limit.id] = None
            if rule is blocking:
                break
            rule.elsewhere[lane] = None

    def _wake(self, rule: Rule, count: int) -> None:
        """Put so many lanes back in turn, those first that have waited longest."""
        for lane in list(rule.parked)[:count]:
            del rule.parked[lane]
            for other in self._over(self._scope(lane)):
                other.elsewhere.pop(lane, None)
            self._ready.unpark(lane)

    @staticmethod
    def scope_of(view: TaskView) -> Scope:
        """What limits look at, of a task that was submitted."""
        submitted = view.submitted
        assert submitted is not None
        return Scope(submitted.queue, submitted.name, submitted.key)

    def claimed(self, task: TaskId, scope: Scope, attempt: AttemptId) -> None:
        """An attempt of this region begins: it binds a right of each limit that it is under."""
        self._of_task[task] = (*self._of_task.get(task, ()), attempt)
        self._bind(attempt, scope)
        for rule in self._over(scope):
            rule.lacking_since_ms = self._here.now.mono_ms if rule.parked or rule.elsewhere else None
            if rule.is_rate:
                rule.used += 1
                rule.young += 1
                # Counted from when the start can leave: a worker hears of it once its claim is durable.
                self._here.outbox.next.after.append(lambda rule=rule: self._started(rule))  # type: ignore[misc]

    def _started(self, rule: Rule) -> None:
        self._bind_for(rule, rule.setting.period_ms, 1, 1)

    def _bind_for(self, rule: Rule, left_ms: int, rights: int, young: int) -> None:
        """Rights of a rate, counted in `used` already, are bound for so long."""
        slice_ms = max(1, rule.setting.period_ms // SLICES)
        until_ms = -(-(self._here.now.mono_ms + left_ms) // slice_ms) * slice_ms
        if rule.cooling and rule.cooling[-1][0] >= until_ms:
            rule.cooling[-1][1] += rights
            rule.cooling[-1][2] += young
        else:
            rule.cooling.append([until_ms, rights, young])
        self._here.timers.at_mono(rule.cooling[0][0], ("limit.free", rule.limit.id))

    def recall(self) -> None:
        """Starts of earlier incarnations of this region were folded again, or came back from peers: they count."""
        here = self._here
        recalled, here.recalled = here.recalled, []
        if recalled:
            self._refresh()
        for id, event in recalled:
            task = here.table.get(event.task)
            if task is not None and here.table.view(task).submitted is not None:
                self._recall(id, self.scope_of(here.table.view(task)))

    def _recall(self, id: EventId, scope: Scope) -> None:
        here = self._here
        for rule in self._over(scope):
            if rule.is_rate:
                since_ms = here.time_ms - (id.stamp >> 16)
                left_ms = min(rule.setting.period_ms, rule.setting.period_ms - since_ms)
                if left_ms > 0:
                    rule.used += 1
                    self._bind_for(rule, left_ms, 1, 0)

    def note(self, task: Task, view: TaskView, open_attempts: tuple[AttemptId, ...]) -> None:
        """The task is reviewed: slots follow its open attempts."""
        known = self._of_task.get(task.id, ())
        if known == open_attempts:
            return  # so every one of them is bound
        for attempt in known:
            if attempt not in open_attempts:
                self._release(attempt)
        for attempt in open_attempts:
            if attempt not in self._bound:
                self._bind(attempt, self.scope_of(view))
        if open_attempts:
            self._of_task[task.id] = open_attempts
        else:
            self._of_task.pop(task.id, None)

    def _bind(self, attempt: AttemptId, scope: Scope) -> None:
        self._bound[attempt] = scope
        if attempt.region == self._here.me:
            self._count(attempt, scope, 1)

    def _release(self, attempt: AttemptId) -> None:
        scope = self._bound.pop(attempt, None)
        if scope is not None and attempt.region == self._here.me:
            self._count(attempt, scope, -1)

    def _count(self, attempt: AttemptId, scope: Scope, change: int) -> None:
        for rule in self._over(scope):
            if not rule.is_rate:
                rule.used += change
                rule.young += change * (attempt.writer == self._here.writer)
                self._dirty[rule.limit.id] = None

    # Rights ------------------------------------------------------------------------------------

    def act(self) -> None:
        """Mint, burn, pass on, and wake who may start: once per turn, before anything is started."""
        self.recall()
        self._write_later()
        self._refresh()
        if not self._rules:
            return  # most regions, most of the time
        trust = (self._trusted(), self._may_touch_old(), self._here.stamps)
        if trust != self._was_trusted:
            self._was_trusted = trust
            self._dirty.update(dict.fromkeys(self._rules))
        for id in self._unsure:
            rule = self._rules.get(id)
            if rule is None or self._is_first(rule.limit):
                self._dirty[id] = None
        for _ in range(len(self._rules) + 1):
            dirty, self._dirty = self._dirty, {}
            if not dirty:
                break
            for id in dirty:
                rule = self._rules.get(id)
                if rule is not None:
                    self._look_at(rule)

    def _look_at(self, rule: Rule) -> None:
        if rule.is_global and self._trusted() and self._here.stamps:
            self._mint(rule)
            self._burn(rule)
            self._give(rule)
        if rule.parked:
            self._wake(rule, self.free(rule))

    def _mint(self, rule: Rule) -> None:
        self._unsure.pop(rule.limit.id, None)
        missing = rule.setting.amount - rule.limit.outstanding
        if missing > 0 and rule.limit.minter() == self._here.me and not self.leaving:
            assert rule.limit.latest is not None
            if self._is_first(rule.limit):
                self._here.write(RightsMinted(rule.limit.id, missing, rule.limit.latest[0]))
            else:
                self._unsure[rule.limit.id] = None

    def _is_first(self, limit: Limit) -> bool:
        """Whether no earlier setting can turn up that makes another region the minter.

        The founders of the cluster name the same minter in whatever setting. Others are founders of a limit since the
        membership changed, and whoever had not heard of that may have created the limit with the founders before. All
        such settings are known once the first one is stable: who acknowledges it has told what it wrote before.
        """
        assert limit.first is not None
        id, setting = limit.first
        if setting.founders == self._here.roster.founders:
            return True
        return not self._here.stability.missing(id.writer, id.number)

    def _burn(self, rule: Rule) -> None:
        """Burn this region's part of what is too much, as it comes free; and all of it, if others do not burn theirs in time."""
        excess, now_ms = rule.limit.outstanding - rule.setting.amount, self._here.now.mono_ms
        if excess <= 0:
            rule.burn_until_ms = None
            return
        rights = rule.limit.rights(self._here.me)
        if rule.burn_until_ms is None:
            held = {region: amount for region, amount in rule.limit.held().items() if amount > 0}
            rule.keep = dealt(rule.setting.amount, held, sorted(held)).get(self._here.me, 0)
            rule.burn_until_ms = now_ms + BURN_AGAIN_MS
            self._here.timers.at_mono(rule.burn_until_ms, ("limit.burn", rule.limit.id))
        keep = rule.keep if now_ms < rule.burn_until_ms else rights - excess
        burned = min(self.free(rule), rights - keep, excess)
        if burned > 0:
            self._here.write(RightsBurned(rule.limit.id, burned))

    def _give(self, rule: Rule) -> None:
        voters = self._here.membership.voters
        links = [link for link in self._links() if link.peer in voters]  # whoever leaves is given nothing
        spare = self.free(rule) if not self.leaving else max(0, rule.limit.rights(self._here.me) - rule.used)
        if not links or spare <= 0:
            return
        if self.leaving:
            first = min(link.peer for link in links)
            self._pass(rule, {first: spare}, spare, links)
            return
        gifts = self._gifts(rule, links)
        if gifts:
            self._pass(rule, gifts, spare, links)

    def _gifts(self, rule: Rule, links: Sequence[Link]) -> dict[RegionId, int]:
        """What this region passes to whom, by what all that are linked hold and want."""
        me, now_ms = self._here.me, self._here.now.mono_ms
        peers = [link.peer for link in links]
        regions = (me, *peers)
        held = rule.limit.held()
        have = {region: max(0, held.get(region, 0)) for region in regions}
        mine = self._demand(rule)
        demands = {region: self._demand_of(region, rule) for region in peers}
        wants = {me: mine.used + mine.waiting}
        waited = {me: mine.waited_ms}
        for region, writer in links:
            demand = demands[region]
            if demand is not None and demand.fresh_only:
                have[region] = max(0, rule.limit.fresh(writer))
        for region, demand in demands.items():  # of whom nothing is known, it is thought to need what it has
            wants[region] = have[region] if demand is None else demand.used + demand.waiting
            waited[region] = 0 if demand is None else demand.waited_ms
        wants = {region: min(want, rule.setting.amount) for region, want in wants.items()}
        total = sum(have.values())
        lacking = mine.waiting or any(demand is not None and demand.waiting for demand in demands.values())
        if not lacking:
            return self._even_out(rule, have, wants, total)
        rule.quiet_since_ms = None
        deal = dealt(total, wants, sorted(regions, key=lambda region: (-waited[region], region)))
        contended = deal[me] < wants[me]
        if not contended:
            floor = rule.setting.amount // (FLOOR_DIVISOR * len(regions))
            deal[me] = max(deal[me], min(have[me], floor))
            return passed_on(have, deal, me)
        gifts = {
            region: amount
            for region, amount in passed_on(have, deal, me).items()
            if deal[region] - have[region] >= 1 + deal[region] // 8
        }
        if gifts and rule.gave_ms is not None and now_ms < rule.gave_ms + GIVE_MS:
            self._here.timers.at_mono(rule.gave_ms + GIVE_MS, ("limit.give", rule.limit.id))
            return {}
        return gifts

    def _even_out(
        self, rule: Rule, have: Mapping[RegionId, int], wants: Mapping[RegionId, int], total: int
    ) -> dict[RegionId, int]:
        """Nobody lacks anything: after a while rights rest in even shares, so that after a cut each side has some."""
        now_ms = self._here.now.mono_ms
        if rule.quiet_since_ms is None:
            rule.quiet_since_ms = now_ms
        due_ms = rule.quiet_since_ms + IDLE_MS
        deal = evenly(total, have)
        if any(wants[region] > deal[region] for region in deal) or deal == dict(have):
            return {}
        if now_ms < due_ms:
            self._here.timers.at_mono(due_ms, ("limit.rest", rule.limit.id))
            return {}
        return passed_on(have, deal, self._here.me)

    def _pass(self, rule: Rule, gifts: Mapping[RegionId, int], spare: int, links: Sequence[Link]) -> None:
        writers = {link.peer: link.writer for link in links}
        for region, amount in sorted(gifts.items()):
            given = min(amount, spare)
            if given > 0:
                spare -= given
                rule.gave_ms = self._here.now.mono_ms
                self._here.write(RightsMoved(rule.limit.id, writers[region], given))

    # Membership --------------------------------------------------------------------------------

    def leave(self) -> None:
        """This region leaves the cluster: it starts nothing more under global limits, and gives its rights away as they
        come free. It has left with nothing once `rights_left` is 0."""
        self.leaving = True
        self._dirty.update(dict.fromkeys(self._rules))

    @property
    def rights_left(self) -> int:
        """Rights that this region still holds, bound ones included."""
        return sum(max(0, rule.limit.rights(self._here.me)) for rule in self._rules.values() if rule.is_global)

    def inherit_stopped(self) -> None:
        """Take over what regions held that have left for good and run nothing any more, where that falls to us.

        Level-triggered, so call it now and then: whoever should have done it may be forgotten next.
        """
        here = self._here
        if not here.stamps or not here.is_member:
            return
        for region, forgotten in here.membership.forgotten.items():
            if forgotten.stopped and here.roster.heir(region, here.membership) == here.me:
                self.inherit(region)

    def inherit(self, region: RegionId) -> None:
        """Take over whatever rights `region` held, and its minting.

        Only where an operator says that it runs nothing any more (`--stopped`), and once its final heads are applied
        here: what it had given away by then is not its own. By one region, whoever knows what: `Roster.heir`.
        """
        for limit in self._here.limits:
            if limit.heir(region) == region:
                self._here.write(RightsInherited(limit.id, region))

    # Demand ------------------------------------------------------------------------------------

    def _demand(self, rule: Rule) -> Demand:
        parked = () if self.leaving else rule.parked
        waiting = sum(map(self._startable, parked))
        if not self.leaving and any(map(self._startable, rule.elsewhere)):
            waiting += 1  # no more, or limits that are scarcer would keep rights of this one idle
        since_ms = rule.lacking_since_ms
        waited_ms = self._here.now.mono_ms - since_ms if waiting and since_ms is not None else 0
        waiting = min(waiting, rule.setting.amount)
        return Demand(rule.limit.id, max(0, self.cap(rule)), max(0, rule.used), waiting, waited_ms, not self._trusted())

    def _startable(self, lane: Lane) -> int:
        """How many of a lane would start if no limit were in the way."""
        return min(self._ready.waiting(lane), self._workers.credits_for(lane))

    def _demand_of(self, peer: RegionId, rule: Rule) -> Demand | None:
        heard = self._heard.get(peer, {}).get(rule.limit.id)
        if heard is None or self._here.now.mono_ms - heard.mono_ms > DEMAND_KEPT_MS:
            return None
        return heard.demand

    def heard(self, peer: RegionId, demands: Iterable[Demand]) -> None:
        """A peer says what it holds, uses and lacks."""
        known = self._heard.setdefault(peer, {})
        for demand in demands:
            if demand.limit in self._rules:
                known[demand.limit] = Heard(demand, self._here.now.mono_ms)
                self._dirty[demand.limit] = None

    def closed(self, peer: RegionId) -> None:
        self._heard.pop(peer, None)
        self._told.pop(peer, None)

    def tell_peers(self) -> None:
        """Say what changed, now and then, and again what is lacking."""
        rules = [rule for rule in self._rules.values() if rule.is_global]
        links = self._links() if rules else ()
        if not links:
            return
        now_ms = self._here.now.mono_ms
        if now_ms < self._told_ms + TELL_MS:
            self._here.timers.at_mono(self._told_ms + TELL_MS, ("limit.tell", b""))
            return
        demands = [self._demand(rule) for rule in rules]
        lacks = any(demand.waiting for demand in demands)
        again = now_ms >= self._told_ms + REPEAT_MS
        for peer, _ in links:
            told = self._told.setdefault(peer, {})
            news = [
                demand
                for demand in demands
                if (told.get(demand.limit, Demand(demand.limit, 0, 0, 0, 0, False))[:4] != demand[:4])
                or (again and (demand.waiting or demand.used))
            ]
            for start in range(0, len(news), DEMANDS_MAX):
                self._tell(peer, tuple(news[start : start + DEMANDS_MAX]))
            if news:
                self._told_ms = now_ms
                told.update((demand.limit, demand) for demand in news)
        if lacks or any(demand.used for demand in demands):
            self._here.timers.at_mono(now_ms + REPEAT_MS, ("limit.again", b""))

    def due(self, id: bytes) -> None:
        """A timer of a limit has gone off; b"" for those of all."""
        if id:
            self._dirty[id] = None

    # Telling -----------------------------------------------------------------------------------

    def why(self, view: TaskView) -> str | None:
        """What a waiting task of this region waits for, if it is a limit."""
        if view.submitted is None or not self._by_target:
            return None
        rules = self._over(self.scope_of(view))
        rule = next((rule for rule in rules if self.free(rule) <= 0), None)
        return None if rule is None else self._why(rule)

    def _why(self, rule: Rule) -> str:
        me, setting, cap = self._here.me, rule.setting, self.cap(rule)
        period = "" if not rule.is_rate else f" in {seconds(setting.period_ms)}"
        what = "started" if rule.is_rate else "running"
        text = f"limit {setting.target}: {rule.used} of {cap} {what} here{period}"
        if not rule.is_global:
            return text if self._may_touch_old() else f"{text}, until {me} knows what ran before it was started"
        rights = rule.limit.rights(me)
        if rule.limit.latest is None:
            return f"{text}; not in force before every member was met once and knows of limits"
        text += f"; global {setting.amount}, this region holds {rights} {'right' if rights == 1 else 'rights'}"
        if self.leaving:
            return f"{text} and gives them away: it leaves"
        if not self._trusted():
            return f"{text}, to be used once every member has answered since its start"
        asked = [link.peer for link in self._links()]
        if asked and rule.parked:
            return f"{text}; asked {', '.join(asked)} for more"
        return text if asked else f"{text}; no region is linked that could give more"

    def records(self) -> list[dict[str, Any]]:
        """Every limit in force, as `limit list` shows it."""
        self._refresh()
        return [
            self._record(rule)
            for _, rule in sorted((r.setting.target + r.setting.kind, r) for r in self._rules.values())
        ]

    def _record(self, rule: Rule) -> dict[str, Any]:
        limit, setting, me = rule.limit, rule.setting, self._here.me
        self._cool(rule)
        set_at = self._here.now.wall_ms if limit.latest is None else limit.latest[0].stamp >> 16
        open_ = [id.region for id, scope in self._bound.items() if rule in self._over(scope)]
        held = limit.held() if rule.is_global else {}
        linked = {link.peer for link in self._links()}
        regions = []
        for region in self._here.membership.linked:
            mine = self._demand(rule) if region == me else self._demand_of(region, rule)
            regions.append(
                {
                    "region": region,
                    "rights": held.get(region, 0) if rule.is_global else setting.amount,
                    "running": open_.count(region),
                    "used": None if mine is None else mine.used,
                    "waiting": self._waiting(rule) if region == me else None if mine is None else mine.waiting,
                    "linked": region == me or region in linked,
                }
            )
        return {
            "target": setting.target,
            "kind": setting.kind,
            "scope": setting.scope,
            "amount": setting.amount,
            "period_ms": setting.period_ms or None,
            "origin": setting.origin,
            "set_by": me if limit.latest is None else limit.latest[0].region,
            "set_at": utc(set_at),
            "minter": limit.minter() if rule.is_global else None,
            "rights": limit.outstanding if rule.is_global else None,
            "usable": self.cap(rule),
            "running": sum(entry["running"] for entry in regions),
            "waiting": self._waiting(rule),
            "regions": regions,
        }

    def _waiting(self, rule: Rule) -> int:
        return sum(self._ready.waiting(lane) for lane in self._ready.lanes() if rule in self._over(self._scope(lane)))

    # Restart -----------------------------------------------------------------------------------

    def export_used(self) -> list[tuple[bytes, int, int]]:
        """Rights of rates that starts have bound: limit, until when by this region's own time, how many."""
        here = self._here
        ahead_ms = here.time_ms - here.now.mono_ms
        found: list[tuple[bytes, int, int]] = []
        for id, rule in sorted(self._rules.items()):
            found += [(id, until_ms + ahead_ms, rights) for until_ms, rights, _ in rule.cooling]
            starting = rule.used - sum(entry[1] for entry in rule.cooling)
            if rule.is_rate and starting:
                found.append((id, here.now.mono_ms + ahead_ms + rule.setting.period_ms, starting))
        return found

    def restore_used(self, used: Iterable[tuple[bytes, int, int]]) -> None:
        """Inverse of `export_used`, before anything is folded."""
        self._refresh()
        here = self._here
        for id, until_ms, rights in used:
            rule = self._rules.get(id)
            if rule is not None and rule.is_rate:
                left_ms = min(rule.setting.period_ms, until_ms - here.time_ms)
                if left_ms > 0:
                    rule.used += rights
                    self._bind_for(rule, left_ms, rights, 0)


def seconds(period_ms: int) -> str:
    """A period as people say it."""
    for unit_ms, unit in ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s")):
        if period_ms % unit_ms == 0:
            count = period_ms // unit_ms
            return f"{count} {unit}"
    return f"{period_ms} ms"
