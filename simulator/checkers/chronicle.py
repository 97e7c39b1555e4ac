"""`Chronicle`: what truly happened, put together from the trace; the ground on which all checkers stand.

It knows every commit that a node ever handed to its disk, what it says, whom its writer had seen (summed up from the
commits' own `deps`, which `durability` compares with the truth), and on which disks it stands now or ever stood. It
reads no replica and decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from crdtsync import events as ev
from crdtsync.effects import CommitRow, Persist
from crdtsync.identifiers import EventId, RegionId, TaskId, node_of, region_of
from crdtsync.log.commit import Commit, decode_commit
from crdtsync.log.reissues import Reissues
from simulator.checkers import peek
from simulator.checkers.reckoning import Fact, Verdict, reckon
from simulator.checkers.rolls import Roll, Rolls
from simulator.trace import SCHEMA, Record
from simulator.vacuity import Vacuity, region_of_node

if TYPE_CHECKING:
    from simulator.node import Node
    from simulator.world import World

Heads: TypeAlias = dict[Any, int]  # writer -> number
_region: Final = lru_cache(maxsize=4_096)(region_of)


class Written(NamedTuple):
    """One commit, when its writer handed it to its disk."""

    commit: Commit
    seen: Heads  # of other writers, by its own word; shared between commits that had seen the same
    node: str
    at_us: int
    seq: int
    ahead: bool  # its node knew facts from a snapshot's rows that its heads do not tell of


@dataclass(slots=True)
class NodeLife:
    """What is on one node's disk, by the trace."""

    on_disk: Heads = field(default_factory=dict)  # highest number per writer
    ever: Heads = field(default_factory=dict)  # the same, without what was lost again
    floor: Heads = field(default_factory=dict)  # dropped, or stood for by a snapshot's rows
    acked: Heads = field(default_factory=dict)  # applied and durable, ever: what a member may have acknowledged
    writing: Heads | None = None  # what was applied when the write under way began
    writer: str = ""
    started_us: int = 0
    applied: Heads = field(default_factory=dict)  # as last looked at in this life
    applied_before: Heads = field(default_factory=dict)  # at the write before this one
    donor: str = ""  # of a snapshot that is coming in
    ahead: Heads | None = None  # a snapshot's facts run ahead until this is applied
    restored: bool = False  # its disk lost commits that had been durable
    rebased: bool = False  # and what it has now is not known before its next start

    @property
    def runs_ahead(self) -> bool:
        """Whether it may know facts that its heads do not tell of."""
        return bool(self.donor) or self.ahead is not None


class Chronicle:
    """Ears for the trace, shared by all checkers of one run; it must be the first to listen."""

    kinds: tuple[str, ...] = (
        "commit",
        "disk.write",
        "disk.durable",
        "disk.lost",
        "node.start",
        "node.crash",
        "node.failed",
        "notify",
        *Vacuity.kinds,
    )

    def __init__(self) -> None:
        self.vacuity = Vacuity()
        self.commits: dict[tuple[str, int], Written] = {}
        self.tasks: dict[bytes, list[Fact]] = {}
        self.attempts: dict[EventId, Fact] = {}  # claims by their id
        self.reissues = Reissues()  # of all that anybody wrote
        self.nodes: dict[str, NodeLife] = {}
        self.rolls = Rolls(())
        self.lost: dict[tuple[str, int], None] = {}  # were durable once, and a disk lost them
        self.moved_us = 0  # when a commit was last written, anywhere
        self.copied_us: dict[str, int] = {}  # region -> when a second process of it was first started
        self.claimed_us: dict[str, int] = {}  # region -> when it last started anything
        self.world: World = None  # type: ignore[assignment]  # set by `begin`
        self._own: dict[str, Written] = {}  # writer -> its newest commit
        self._dispatch: Final[dict[str, Callable[[Record], None]]] = {
            "commit": self._commit,
            "disk.write": self._write,
            "disk.durable": self._durable,
            "disk.lost": self._lost,
            "node.start": self._start,
            "node.crash": self._down,
            "node.failed": self._down,
            "notify": self._notify,
        }

    # Checker ---------------------------------------------------------------------------------------

    def begin(self, world: World) -> None:
        self.world = world
        self.rolls = Rolls(world.scenario.founders)

    def on_event(self, record: Record) -> None:
        handler = self._dispatch.get(record.kind)
        if handler is None:
            self.vacuity.on_event(record)
        else:
            handler(record)

    def at_heal(self, world: World) -> None:
        pass

    def at_end(self, world: World) -> None:
        pass

    # What the trace says ---------------------------------------------------------------------------

    def node(self, name: str) -> NodeLife:
        life = self.nodes.get(name)
        if life is None:
            life = self.nodes[name] = NodeLife()
        return life

    def _start(self, record: Record) -> None:
        life = self.node(record.node)
        if not life.writer and "~" in record.node:  # a clone begins with what the disk had
            self.copied_us.setdefault(region_of_node(record.node), record.at_us)
            life.on_disk = dict(told(record, "heads"))
            node = self.world.nodes.get(record.node)
            life.floor = {} if node is None else peek.floor(node)
            life.on_disk = _join(life.on_disk, life.floor)
            life.ever = dict(life.on_disk)
        if life.rebased:  # an older copy, or nothing: what it holds is what it finds
            life.on_disk = dict(told(record, "heads"))
            node = self.world.nodes.get(record.node)
            if node is not None:
                life.floor = peek.floor(node)
                life.on_disk.update(_join(life.on_disk, life.floor))
        life.writer = record.id
        life.started_us = record.at_us
        life.applied, life.applied_before, life.writing = {}, {}, None
        if life.donor:
            self._end_snapshot(life)

    def _down(self, record: Record) -> None:
        self.node(record.node).applied = {}

    def _commit(self, record: Record) -> None:
        row: CommitRow = record.subject
        commit = decode_commit(row.blob)
        before = self._own.get(commit.writer)
        seen: Heads = {} if before is None else before.seen
        if commit.deps:
            seen = {**seen, **{dep.writer: dep.number for dep in commit.deps}}
        written = Written(commit, seen, record.node, record.at_us, record.seq, self.node(record.node).runs_ahead)
        self._own[commit.writer] = written
        self.commits.setdefault((commit.writer, commit.number), written)
        self.moved_us = record.at_us
        region = region_of_node(record.node)
        for place, event in enumerate(commit.events):
            if isinstance(event, ev.Reissued):
                self._reissued(EventId(commit.stamp, commit.writer, commit.number, place), event)
            if isinstance(event, ev.MembersChanged | ev.FinalHeads):
                self.rolls.note(EventId(commit.stamp, commit.writer, commit.number, place), event)
            if type(event) not in ev.TASK_EVENTS:
                continue
            id, read = self.reissues.fact(EventId(commit.stamp, commit.writer, commit.number, place), event)
            fact = Fact(id, read, record.node, record.at_us, record.seq)
            self.tasks.setdefault(event.task, []).append(fact)  # type: ignore[union-attr]
            self.vacuity.touch(event.task, region, record.at_us)  # type: ignore[union-attr]
            if type(event) is ev.Claimed:
                self.attempts[id] = fact
                self.claimed_us[region] = record.at_us

    def _reissued(self, id: EventId, event: ev.Reissued) -> None:
        """Facts known before take the place in which the replicas now see them; names stay."""
        if not self.reissues.add(id, event):
            return
        for task in event.tasks:
            moved = [
                fact._replace(**dict(zip(("id", "event"), self.reissues.fact(fact.id, fact.event), strict=True)))
                for fact in self.tasks.get(task, ())
            ]
            self.tasks[task] = moved
            self.attempts.update({fact.id: fact for fact in moved if type(fact.event) is ev.Claimed})

    def stamp_of(self, commit: Commit) -> int:
        """The stamp that a commit counts under, as far as anybody has said."""
        return self.reissues.stamp(commit.writer, commit.number, commit.stamp)

    def _write(self, record: Record) -> None:
        node = self.world.nodes.get(record.node)
        if node is not None and node.replica is not None:
            self.node(record.node).writing = node.applied

    def _durable(self, record: Record) -> None:
        batch: Persist = record.subject
        life = self.node(record.node)
        for row in batch.commits:
            life.on_disk[row.writer] = max(row.number, life.on_disk.get(row.writer, 0))
            life.ever[row.writer] = max(row.number, life.ever.get(row.writer, 0))
        for _, writer, number in batch.drop:
            life.floor[writer] = max(number, life.floor.get(writer, 0))
        if life.writing is not None:
            life.acked = _join(life.acked, life.writing)
            life.writing = None

    def _lost(self, record: Record) -> None:
        life = self.node(record.node)
        if told(record, "reason") == "not yet on disk":
            return
        life.restored = life.rebased = True
        life.floor.clear()
        for writer, number in told(record, "commits"):
            self.lost[writer, number] = None
            if life.on_disk.get(writer, 0) >= number:
                life.on_disk[writer] = number - 1

    def _notify(self, record: Record) -> None:
        """Rows of a snapshot arrive before the heads that they stand for: until these are reached, facts run ahead."""
        life = self.node(record.node)
        if record.id == "snapshot.requested":
            life.donor = dict(told(record, "facts")).get("peer", "")
        elif record.id in ("snapshot.adopted", "snapshot.aborted"):
            self._end_snapshot(life)
            node = self.world.nodes.get(record.node)
            if node is not None and record.id == "snapshot.adopted":
                floor = peek.floor(node)
                for heads in (life.floor, life.ever, life.on_disk, life.acked):
                    heads.update(_join(heads, floor))

    def _end_snapshot(self, life: NodeLife) -> None:
        donor = self.nodes.get(life.donor)
        if donor is not None:  # it may run ahead itself, by what it took or is taking from somebody else
            behind = self.nodes.get(donor.donor)
            others = () if behind is None or behind is life else (behind.on_disk, behind.applied)
            life.ahead = _join(life.ahead or {}, donor.on_disk, donor.applied, donor.ahead or {}, *others)
        life.donor = ""

    def is_doubtful(self, task: bytes) -> bool:
        """Whether a region that had a hand in this task ran on a disk that had gone back, or twice at one time.

        The honest limits of settlement (rules.md; decision 0013): what one process of a region acknowledged, the other
        had not seen, and may have written against it.
        """
        back = {region_of_node(name) for name, life in self.nodes.items() if life.restored}
        for fact in self.tasks.get(task, ()):
            region = _region(fact.id.writer)
            if region in back or fact.at_us >= self.copied_us.get(region, fact.at_us + 1):
                return True
        return False

    # Causality -------------------------------------------------------------------------------------

    def saw(self, later: EventId, earlier: EventId) -> bool:
        """Whether the writer of `later` had seen `earlier` when it wrote: happened-before, exactly."""
        if later.writer == earlier.writer:
            return (earlier.number, earlier.index) < (later.number, later.index)
        written = self.commits.get((later.writer, later.number))
        return written is not None and written.seen.get(earlier.writer, 0) >= earlier.number

    def past(self, task: bytes, of: EventId) -> list[Fact]:
        """The facts of a task that the writer of the event `of` had seen."""
        facts = self.tasks.get(task)
        if not facts:
            return []
        written = self.commits.get((of.writer, of.number))
        seen = {} if written is None else written.seen
        place = (of.number, of.index)
        return [
            fact
            for fact in facts
            if (
                (fact.id.number, fact.id.index) < place
                if fact.id.writer == of.writer
                else seen.get(fact.id.writer, 0) >= fact.id.number
            )
        ]

    def verdict_before(self, task: bytes, of: EventId) -> Verdict | None:
        """What was true of a task for the writer of the event `of`, just before."""
        return reckon(self.past(task, of))

    def within(self, task: bytes, heads: Mapping[Any, int]) -> list[Fact]:
        """The facts of a task that a replica with these applied heads knows."""
        return [fact for fact in self.tasks.get(task, ()) if heads.get(fact.id.writer, 0) >= fact.id.number]

    # Disks -----------------------------------------------------------------------------------------

    def holds(self, node: str, id: EventId) -> bool:
        """Whether the commit of this event is durable on that node's disk now."""
        return self.on_disk(node, id.writer, id.number)

    def on_disk(self, node: str, writer: str, number: int) -> bool:
        """Whether this commit is durable on that node's disk now."""
        life = self.nodes.get(node)
        return life is not None and life.on_disk.get(writer, 0) >= number

    def held_ever(self, node: str, writer: str, number: int) -> bool:
        """Whether the commit was ever durable on that node's disk."""
        life = self.nodes.get(node)
        return life is not None and life.ever.get(writer, 0) >= number

    def lacking(self, id: EventId) -> list[str]:
        """The members that have never had this event applied and on disk: it cannot be stable yet."""
        had = {
            region_of_node(name) for name, life in self.nodes.items() if life.acked.get(id.writer, 0) >= id.number
        }  # a clone acknowledges in the name of its region
        return [name for name in self.members_left if name not in had]

    @property
    def members_left(self) -> list[str]:
        """Who counts for stability wherever it is judged: the members, and who is being forgotten.

        A joiner counts from the record that adds it. That not all have seen at once; it is admitted when they have.
        """
        whole = self.rolls.whole
        return sorted({*whole.voters, *whole.leaving})

    def running(self) -> set[str]:
        """The attempts that workers run, but for those whose region has left: nothing of these counts any more."""
        gone = self.rolls.whole.gone
        return {str(id) for worker in self.world.workers if worker.node.region not in gone for id in worker.running}

    def roll_before(self, id: EventId) -> Roll:
        """Who belonged as far as the writer of an event had seen, just before."""
        written = self.commits.get((id.writer, id.number))
        if not self.rolls or written is None or written.ahead:
            return self.rolls.whole
        seen, place = written.seen, (id.number, id.index)
        return self.rolls.seen_by(
            lambda other: (
                (other.number, other.index) < place
                if other.writer == id.writer
                else seen.get(other.writer, 0) >= other.number
            )
        )

    def roll_of(self, node: Node) -> Roll:
        """Who belongs by what a node has applied."""
        if not self.rolls or self.node(node.name).runs_ahead:
            return self.rolls.whole
        applied = node.applied
        return self.rolls.seen_by(lambda id: applied.get(id.writer, 0) >= id.number)

    def dropped_too_early(self, writer: str, number: int) -> list[str]:
        """The members on none of whose disks this commit ever was."""
        had = {region_of_node(name) for name in self.nodes if self.held_ever(name, writer, number)}
        return [name for name in self.members_left if name not in had]

    def survives(self, id: EventId) -> bool:
        """Whether some main node's disk still has it, and it does not lie beyond the end of a region that has left."""
        if self.rolls.whole.is_void(id.writer, id.number):
            return False
        return any(self.holds(name, id) for name in self.world.scenario.names)

    def names_of_compensations(self, task: bytes) -> dict[EventId, str]:
        """Submission -> the task that its options name for undoing."""
        facts = self.tasks.get(task, ())
        return {fact.id: fact.event.options.compensate for fact in facts if type(fact.event) is ev.Submitted}


class Family:
    """A family of invariants: what its checkers share."""

    kinds: tuple[str, ...] = ()
    #: The ids that this family judges.
    invariants: tuple[str, ...] = ()

    def __init__(self, chronicle: Chronicle) -> None:
        self.chronicle = chronicle
        self._told: dict[tuple[str, object], None] = {}

    @property
    def world(self) -> World:
        return self.chronicle.world

    def begin(self, world: World) -> None:
        """Nothing to build."""

    def on_event(self, record: Record) -> None:
        """Nothing to see."""

    def at_heal(self, world: World) -> None:
        """Nothing to do."""

    def at_end(self, world: World) -> None:
        """Nothing to judge."""

    def judged(self, invariant: str, region: str, record: Record) -> None:
        """An instance was judged in a region."""
        self.chronicle.vacuity.count(invariant, region_of_node(region), record.at_us)

    def judged_task(self, invariant: str, task: bytes) -> None:
        """An instance was judged about a task."""
        self.chronicle.vacuity.count_task(invariant, task)

    def fail(
        self, invariant: str, text: str, *, task: bytes = b"", events: Iterable[int] = (), about: object = None
    ) -> None:
        """Report a violation, once for whatever it is about (the task, unless told otherwise)."""
        assert invariant in self.invariants, invariant
        key = (invariant, about if about is not None else task or text)
        if key not in self._told:
            self._told[key] = None
            causes = tuple(dict.fromkeys(seq for seq in events if seq >= 0))
            self.world.violation(invariant, text, causes=causes, task=task.hex())

    def live_nodes(self) -> Iterator[Node]:
        """The main nodes that are up."""
        for node in self.world.regions.values():
            if node.replica is not None:
                yield node


def _join(*vectors: Mapping[Any, int]) -> Heads:
    joined: Heads = {}
    for vector in vectors:
        for writer, number in vector.items():
            joined[writer] = max(number, joined.get(writer, 0))
    return joined


def told(record: Record, field: str) -> Any:
    """A field of a record's data."""
    return record.data[SCHEMA[record.kind].index(field)]


def named(task: bytes) -> str:
    """A task as people find it in a report."""
    return f"task {task.hex()[:8]}"


def seqs(facts: Iterable[Fact]) -> list[int]:
    return [fact.seq for fact in facts]


__all__ = [
    "Chronicle",
    "Family",
    "NodeLife",
    "RegionId",
    "TaskId",
    "Written",
    "named",
    "node_of",
    "seqs",
    "told",
]
