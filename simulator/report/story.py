"""A run as a picture has it: who was up, what was broken, what ran, what was said, and how far all were apart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from simulator.catalogue import CATALOGUE, Aim
from simulator.plan import Fault, split_link, text_of_ms
from simulator.report.tenures import Holding, Tenure, Tenures
from simulator.trace import DETAILS, SCHEMA, Record

if TYPE_CHECKING:
    from simulator.world import Sample, World

CLOCK_EVERY_US: Final = 100_000  # clocks are looked at so often at most
STAMP_LOGICAL_BITS: Final = 16  # of a stamp, beside its milliseconds


class Bar(NamedTuple):
    """One attempt, from its first line to its last."""

    region: str
    start_us: int
    end_us: int
    name: str
    task: str
    attempt: str
    outcome: str  # "ok" | "failed" | "lost" | "open"
    undoes: bool  # a compensation
    wins: bool  # the task's outcome rests on it


class Band(NamedTuple):
    """One fault, over the regions that it names."""

    id: str
    fault: Fault
    start_us: int
    end_us: int
    regions: tuple[str, ...]
    hits: int

    @property
    def text(self) -> str:
        told = "".join(f" {_param_text(name, value)}" for name, value in sorted(self.fault.params.items()))
        last = f" for {_rough(self.fault.duration_ms)}" if self.fault.duration_ms else ""
        return f"{self.fault.kind} {', '.join(self.fault.targets)}{last}{told}"


def _param_text(name: str, value: object) -> str:
    if name.endswith("_ms") and isinstance(value, int | float):
        return f"{name.removesuffix('_ms')}={_rough(round(value))}"
    return f"{name}={value}"


def _rough(duration_ms: int) -> str:
    """A duration for reading, not for reading back."""
    return text_of_ms(duration_ms if abs(duration_ms) < 10_000 else round(duration_ms, -2))


class Message(NamedTuple):
    """One frame on one link."""

    source: str
    target: str
    sent_us: int
    arrived_us: int | None  # None: dropped
    bytes: int


class Tick(NamedTuple):
    """A moment in a region: something was done to the world outside, or a commit was stamped."""

    region: str
    at_us: int
    text: str


class Down(NamedTuple):
    """A time in which a node's process was gone, or stood still."""

    region: str
    start_us: int
    end_us: int
    reason: str


class Watch:
    """A checker that judges nothing: it looks at clocks, leases and locks while the run goes on."""

    clock_kinds: Final = ("net.deliver", "disk.durable", "net.drop", "fault.start", "fault.end")
    kinds = (*clock_kinds, *Tenures.kinds)

    def __init__(self) -> None:
        self.clocks: dict[str, list[tuple[int, int]]] = {}  # node -> (true time, error of its wall clock)
        self.tenures = Tenures()
        self._world: World | None = None
        self._next_us = 0

    def begin(self, world: World) -> None:
        self._world = world

    def on_event(self, record: Record) -> None:
        if self._world is None:
            return
        if record.kind not in self.clock_kinds:
            self.tenures.on_event(self._world, record)
        elif record.at_us >= self._next_us or record.kind.startswith("fault"):
            self._next_us = record.at_us + CLOCK_EVERY_US
            for name, node in self._world.nodes.items():
                self.clocks.setdefault(name, []).append((record.at_us, node.clock.error_us(record.at_us)))

    def at_heal(self, world: World) -> None: ...

    def at_end(self, world: World) -> None: ...


@dataclass(slots=True)
class Story:
    """Everything that is drawn. Build it with `Story.of(world)` after a run whose records were kept."""

    regions: tuple[str, ...]
    end_us: int
    healed_us: int
    converged_us: int | None
    bars: list[Bar] = field(default_factory=list)
    bands: list[Band] = field(default_factory=list)
    downs: list[Down] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    effects: list[Tick] = field(default_factory=list)
    divergence: list[Sample] = field(default_factory=list)
    clocks: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    stamps: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # region -> (true time, stamp's error in us)
    conflicts: list[dict[str, Any]] = field(default_factory=list)
    leases: list[Tenure] = field(default_factory=list)
    locks: list[Holding] = field(default_factory=list)
    members: list[Tick] = field(default_factory=list)  # changes of the membership, where each was first written down

    @classmethod
    def of(cls, world: World) -> Story:
        """Read the world's records."""
        assert world.trace.keep, "build the world with keep=True: a story is told from its records"
        story = cls(
            regions=world.scenario.names,
            end_us=max(1, world.kernel.now_us),
            healed_us=world.scenario.plan.healed_ms * 1_000,
            converged_us=world.converged_us,
            divergence=world.divergence,
        )
        for checker in world.checkers:
            watch: object = checker
            if isinstance(watch, Watch):
                story.clocks = watch.clocks
                story.leases, story.locks = watch.tenures.leases, watch.tenures.locks
        story._read(world)
        return story

    def _read(self, world: World) -> None:
        undoes, winners = self._read_views(world)
        names: dict[str, str] = {}
        begun: dict[str, Record] = {}
        ended: dict[str, tuple[int, str]] = {}
        sent: dict[str, Record] = {}
        down: dict[str, tuple[int, str]] = {}
        fault_ends: dict[str, int] = {}
        hits: dict[str, int] = {active.id: sum(active.hits.values()) for active in world.faults}
        touched: dict[str, dict[str, None]] = {}
        changes: set[tuple[int, int]] = set()
        for record in world.trace.records:
            region = record.node.partition("~")[0]
            said = dict(zip(SCHEMA[record.kind], record.data, strict=True))
            match record.kind:
                case "task.assigned":
                    names[record.id] = said["name"]
                case "task.begin":
                    begun[record.id] = record
                case "task.end":
                    ended[record.id] = (record.at_us, said["outcome"])
                case "worker.down":
                    for attempt, beginning in begun.items():
                        if beginning.data[1] == record.id:
                            ended.setdefault(attempt, (record.at_us, "lost"))
                case "effect.done":
                    self.effects.append(Tick(region, record.at_us, f"{said['name']} of task {said['task'][:8]}"))
                case "net.send":
                    sent[record.id] = record
                case "net.deliver" | "net.drop":
                    self._arrived(record, sent)
                case "node.crash" | "node.pause":
                    down[record.node] = (record.at_us, said.get("reason", "paused"))
                case "node.start" | "node.resume":
                    if record.node in down:
                        start_us, reason = down.pop(record.node)
                        self.downs.append(Down(region, start_us, record.at_us, reason))
                case "fault.end":
                    fault_ends[record.id] = record.at_us
                case "fault.hit":
                    touched.setdefault(record.id, {})[region] = None
                case "commit":
                    true_ms = record.at_us / 1_000
                    ahead_us = round(((said["stamp"] >> STAMP_LOGICAL_BITS) - EPOCH_MS - true_ms) * 1_000)
                    self.stamps.setdefault(region, []).append((record.at_us, ahead_us))
                    self._changes(region, record, changes)
        self.downs += [Down(node.partition("~")[0], at, self.end_us, why) for node, (at, why) in down.items()]
        for attempt, beginning in begun.items():
            end_us, outcome = ended.get(attempt, (self.end_us, "open"))
            task = str(beginning.data[0])
            region = beginning.node.partition("~")[0]
            name = names.get(attempt, "?")
            wins = winners.get(task) == attempt
            self.bars.append(Bar(region, beginning.at_us, end_us, name, task, attempt, outcome, task in undoes, wins))
        for active in world.faults:
            end_us = fault_ends.get(
                active.id, active.fault.start_ms * 1_000 if active.fault.spec.instant else self.end_us
            )
            regions = tuple(r for r in self.regions if r in touched.get(active.id, {}) or r in _named(active.fault))
            start_us = active.fault.start_ms * 1_000
            self.bands.append(Band(active.id, active.fault, start_us, end_us, regions or self.regions, hits[active.id]))

    def _changes(self, region: str, record: Record, known: set[tuple[int, int]]) -> None:
        """Who joined and who was forgotten. Whoever learns of it writes it down; the first one is drawn."""
        if record.subject is None:
            return
        for event in DETAILS["commit"](record.subject)["events"]:
            if event["event"] == "MembersChanged" and (event["epoch"], event["version"]) not in known:
                known.add((event["epoch"], event["version"]))
                text = f"{event['change']} {', '.join(event['regions'])}"
                self.members.append(Tick(region, record.at_us, f"{text} (membership {event['version']})"))

    def _arrived(self, record: Record, sent: dict[str, Record]) -> None:
        sending = sent.pop(record.id, None)
        if sending is not None:
            source = sending.node.partition("~")[0]
            arrived_us = record.at_us if record.kind == "net.deliver" else None
            peer, size = str(sending.data[0]).partition("~")[0], int(sending.data[1])
            self.messages.append(Message(source, peer, sending.at_us, arrived_us, size))

    def _read_views(self, world: World) -> tuple[set[str], dict[str, str]]:
        undoes: set[str] = set()
        winners: dict[str, str] = {}
        for task, (view, settled) in world.views().items():
            if view.submitted is not None and view.submitted.undoes is not None:
                undoes.add(task.hex())
            if view.winner is not None:
                winners[task.hex()] = str(view.winner)
            for conflict in view.conflicts:
                self.conflicts.append(
                    {
                        "task": task.hex()[:8],
                        "name": view.submitted.name if view.submitted is not None else "?",
                        "kind": str(conflict.kind),
                        "rule": conflict.rule,
                        "state": str(view.state),
                        "detail": conflict.detail,
                        "settled": settled,
                    }
                )
        return undoes, winners

    def most_telling(self, count_max: int, places: int) -> list[Message]:
        """A readable share of the messages: of each direction and span of time the largest, and one that was dropped."""
        chosen: dict[tuple[str, str, int, bool], Message] = {}
        for message in self.messages:
            place = message.sent_us * places // self.end_us
            key = (message.source, message.target, place, message.arrived_us is None)
            known = chosen.get(key)
            if known is None or message.bytes > known.bytes:
                chosen[key] = message
        kept = sorted(chosen.values(), key=lambda message: (-message.bytes, message.sent_us))[:count_max]
        return sorted(kept, key=lambda message: message.sent_us)


EPOCH_MS: Final = 1_750_000_000_000  # simulator.clock.EPOCH_US


def _named(fault: Fault) -> Iterable[str]:
    """The regions that a fault names."""
    found: list[str] = []
    for target in fault.targets:
        link = split_link(target) if CATALOGUE[fault.kind].aim is Aim.LINKS else None
        found += link[:2] if link is not None else [target.partition("/")[0]]
    return found
