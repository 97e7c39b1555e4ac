"""CAP-1: nothing runs without a right, and rights never add up to more than the limit, whatever the network does.

Judged at every start, twice. By what its writer had seen: its region's open attempts against the rights that the events in
its past give that region. And by the truth of all disks: what is open everywhere, together, against the rights that exist
and against the largest amount that anybody has set. A rate is judged over spans of its period in true time.

The reckoning is our own: lists of events added up, nothing of `coordination.limits`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from crdtsync import events as ev
from crdtsync.identifiers import EventId, region_of
from simulator.checkers.chronicle import Chronicle, Family, Written, named
from simulator.trace import Record
from simulator.vacuity import region_of_node

SLACK: Final = 0.99  # of a period: clocks drift, and rights of a rate are remembered by slices of it
_ABOUT: Final = (ev.LimitSet, ev.RightsMinted, ev.RightsMoved, ev.RightsBurned, ev.RightsInherited)


class _Said(NamedTuple):
    id: EventId
    event: Any
    seq: int


@dataclass(slots=True)
class _Limit:
    """All that was ever said about one limit, and what is open under it."""

    target: str
    kind: str
    said: list[_Said] = field(default_factory=list)
    peak: int = 0  # the largest amount that was set
    claimed: dict[EventId, str] = field(default_factory=dict)  # attempts and their regions, until their end is durable
    ended: dict[EventId, EventId] = field(default_factory=dict)
    open: dict[EventId, str] = field(default_factory=dict)  # of them, those with durable claims and no durable end
    starts: deque[tuple[int, str]] = field(default_factory=deque)  # of a rate: when, where


class Limits(Family):
    kinds = ("commit", "disk.durable", "disk.lost")
    invariants = ("CAP-1",)

    def __init__(self, chronicle: Chronicle) -> None:
        super().__init__(chronicle)
        self._limits: dict[bytes, _Limit] = {}
        self._by_target: dict[str, list[_Limit]] = {}
        self._durable: dict[tuple[str, int], None] = {}  # commits that their writers have on disk

    def on_event(self, record: Record) -> None:
        if record.kind == "commit":
            self._commit(self.chronicle.commits[record.subject.writer, record.subject.number], record)
        elif record.kind == "disk.durable":
            for row in record.subject.commits:
                written = self.chronicle.commits.get((row.writer, row.number))
                if written is not None and region_of(row.writer) == region_of_node(record.node):
                    self._on_disk(written, record)
        else:
            for limit in self._limits.values():
                gone = [id for id in limit.open if not self.chronicle.survives(id)]
                for id in gone:  # nobody will ever tell how it went: it ended with its machine
                    del limit.open[id]

    # By what a writer had seen -------------------------------------------------------------------

    def _commit(self, written: Written, record: Record) -> None:
        commit = written.commit
        for place, event in enumerate(commit.events):
            id = EventId(commit.stamp, commit.writer, commit.number, place)
            if isinstance(event, _ABOUT):
                self._say(id, event, record.seq)
            elif type(event) is ev.Ended:
                for limit in self._over(event.task):
                    limit.ended[event.attempt] = id
            elif type(event) is ev.Claimed:
                for limit in self._over(event.task):
                    if not written.ahead:
                        self._judge_start(limit, id, event, record)
                    limit.claimed[id] = region_of(id.writer)

    def _say(self, id: EventId, event: Any, seq: int) -> None:
        limit = self._limits.get(event.limit)
        if limit is None:
            if not isinstance(event, ev.LimitSet):
                return
            limit = self._limits[event.limit] = _Limit(event.target, event.kind)
            self._by_target.setdefault(event.target, []).append(limit)
        limit.said.append(_Said(id, event, seq))
        if isinstance(event, ev.LimitSet):
            limit.peak = max(limit.peak, event.amount)

    def _over(self, task: bytes) -> list[_Limit]:
        fact = next((f for f in self.chronicle.tasks.get(task, ()) if type(f.event) is ev.Submitted), None)
        if fact is None:
            return []
        submitted = fact.event
        targets = (f"queue:{submitted.queue}", f"task:{submitted.name}", f"key:{submitted.key}")
        return [limit for target in targets for limit in self._by_target.get(target, ())]

    def _judge_start(self, limit: _Limit, id: EventId, event: ev.Claimed, record: Record) -> None:
        past = [said for said in limit.said if self.chronicle.saw(id, said.id)]
        settings = [said for said in past if isinstance(said.event, ev.LimitSet)]
        if not settings:
            return
        setting = max(settings, key=lambda said: said.id).event
        if setting.scope == "none" or limit.kind == "rate":
            return
        region = region_of(id.writer)
        cap = setting.amount if setting.scope == "region" else _rights(past, region)
        running = 1 + sum(
            1
            for attempt, where in limit.claimed.items()
            if where == region
            and self.chronicle.saw(id, attempt)
            and not (attempt in limit.ended and self.chronicle.saw(id, limit.ended[attempt]))
        )
        if setting.scope == "global" and any(name.startswith(f"{region}~") for name in self.chronicle.nodes):
            return  # its two processes used the same rights, and neither knew before they met (decision 0013)
        self.judged("CAP-1", record.node, record)
        if running > cap:
            self.fail(
                "CAP-1",
                f"{record.node} starts {named(event.task)} as number {running} under the limit on {limit.target}, of "
                f"which it holds {cap} {'rights' if setting.scope == 'global' else 'slots'}",
                task=event.task,
                events=(record.seq, *(said.seq for said in past[-8:])),
            )

    # By the truth of the disks -------------------------------------------------------------------

    def _on_disk(self, written: Written, record: Record) -> None:
        commit = written.commit
        self._durable[commit.writer, commit.number] = None
        for place, event in enumerate(commit.events):
            if type(event) is ev.Ended:
                for limit in self._over(event.task):
                    for of in (limit.open, limit.claimed, limit.ended):
                        of.pop(event.attempt, None)
            elif type(event) is ev.Claimed:
                id = EventId(commit.stamp, commit.writer, commit.number, place)
                for limit in self._over(event.task):
                    limit.open[id] = region_of(commit.writer)
                    self._judge_all(limit, event, record)

    def _judge_all(self, limit: _Limit, event: ev.Claimed, record: Record) -> None:
        scopes = {said.event.scope for said in limit.said if isinstance(said.event, ev.LimitSet)}
        if scopes != {"global"} or any("~" in name for name in self.chronicle.nodes):
            return  # of a clone's two processes neither knows the other before they meet
        self.judged("CAP-1", record.node, record)
        if limit.kind == "rate":
            self._judge_rate(limit, event, record)
            return
        rights = sum(_change(said.event) for said in limit.said if self._stands(said.id))
        stopped = {name for _, change in self.chronicle.rolls.changes if change.stopped for name in change.regions}
        running = sum(where not in stopped for where in limit.open.values())  # who was stopped runs nothing any more
        if running > limit.peak or rights > limit.peak or running > max(rights, 0):
            self.fail(
                "CAP-1",
                f"{running} attempts run everywhere under the limit on {limit.target}: {rights} rights exist, and "
                f"{limit.peak} is the most that was ever set ({dict(_counted(limit.open))})",
                task=event.task,
                events=(record.seq,),
                about=(limit.target, limit.kind),
            )

    def _judge_rate(self, limit: _Limit, event: ev.Claimed, record: Record) -> None:
        periods = [said.event.period_ms for said in limit.said if isinstance(said.event, ev.LimitSet)]
        struck = self.chronicle.vacuity.struck(region_of_node(record.node))
        if any(kind.startswith(("clock_", "disk_")) for kind in struck):
            limit.starts.clear()  # what a wrong clock or a lost disk remembers of its starts is not judged
            return
        limit.starts.append((record.at_us, record.node))
        since_us = record.at_us - round(min(periods) * 1_000 * SLACK)
        while limit.starts and limit.starts[0][0] <= since_us:
            limit.starts.popleft()
        if len(limit.starts) > limit.peak:
            self.fail(
                "CAP-1",
                f"{len(limit.starts)} starts within {min(periods)} ms under the limit on {limit.target} of {limit.peak}",
                task=event.task,
                events=(record.seq,),
                about=(limit.target, limit.kind),
            )

    def _stands(self, id: EventId) -> bool:
        return (id.writer, id.number) in self._durable


def _change(event: Any) -> int:
    """By how much an event changes the rights that exist."""
    return {ev.RightsMinted: 1, ev.RightsBurned: -1}.get(type(event), 0) * getattr(event, "amount", 0)


def _rights(said: list[_Said], region: str) -> int:
    """What these events leave a region."""
    heirs = {event.region: region_of(id.writer) for id, event, _ in said if isinstance(event, ev.RightsInherited)}

    def holder(name: str) -> str:
        """Whoever has by now what a region had."""
        for _ in heirs:
            name = heirs.get(name, name)
        return name

    held = 0
    for id, event, _ in said:
        mine = holder(region_of(id.writer)) == region
        held += _change(event) * mine
        if isinstance(event, ev.RightsMoved):
            held += event.amount * (holder(region_of(event.to)) == region) - event.amount * mine
    return held


def _counted(open_: dict[EventId, str]) -> list[tuple[str, int]]:
    regions = sorted(set(open_.values()))
    return [(region, list(open_.values()).count(region)) for region in regions]
