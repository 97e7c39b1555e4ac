"""The tasks of one domain as this replica holds them: facts in memory, views on demand.

Tasks that can still move live here; ended ones leave for the disk once their row is durable and
come back by `Load` when something needs them. `known` says which ids were certainly never seen,
so that a fresh submission costs no read.

The digest is exact whenever somebody asks for it: what changed since is hashed then, each task once
however often it changed. A region alone asks for none, so it hashes a task when its row is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from crdtsync.effects import TaskRow
from crdtsync.events import TASK_EVENTS, Reissued, TaskEvent
from crdtsync.history import Facts
from crdtsync.identifiers import Domain, EventId, TaskId
from crdtsync.log.bloom import KnownIds
from crdtsync.log.digest import Digest
from crdtsync.log.reissues import Reissues
from crdtsync.resolve import grown, resolve
from crdtsync.task_view import ENDED, TaskState, TaskView, view_hash

_NOTHING = bytes(16)
ABSENT_MAX: Final = 100_000  # false positives of the filter that are remembered; forgetting costs a read


class Task:
    """One task: its facts, and what this replica knows of it beyond them."""

    __slots__ = (
        "digest",
        "dirty",
        "duties",
        "facts",
        "id",
        "pins",
        "rests",
        "row_share",
        "settled",
        "state",
        "told",
        "view",
    )

    def __init__(self, id: TaskId, facts: Facts, digest: bytes = _NOTHING, settled: bool = False) -> None:
        self.id = id
        self.facts = facts
        self.view: TaskView | None = None  # None: stale, resolved again when asked for
        self.state: TaskState | None = None  # as of the last view; None before the first
        self.digest = digest  # this task's share of the state digest
        self.row_share = digest  # the share that the row on disk has, counted in the digest of the rows
        self.settled = settled
        self.dirty = False  # the row on disk lacks something
        self.duties = False  # this region still owes it something: stays live
        self.rests = False  # reviewed as ended, with nothing left to do whatever is learned beyond its facts
        self.pins = 0  # readers that need it in memory for now
        self.told: tuple[TaskState | None, bool] = (None, False)  # what watchers last heard: state, settled

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @classmethod
    def from_row(cls, row: TaskRow) -> Task:
        """A copy for reading, which no table holds."""
        task = cls(row.task, Facts.unpack(row.facts), row.digest, row.settled)
        task.view = resolve(task.facts)
        task.state = task.view.state
        return task


class TaskTable:
    def __init__(self, domain: Domain, reissues: Reissues | None = None) -> None:
        self.domain = domain
        self._digest = Digest()
        self._unhashed: dict[TaskId, Task] = {}  # whose share of the digest is out of date; all of them are dirty
        self.reissues = Reissues() if reissues is None else reissues  # an empty one is false
        self.known = KnownIds()
        self._tasks: dict[TaskId, Task] = {}
        self._dirty: dict[TaskId, None] = {}
        self._touched: dict[TaskId, None] = {}
        self._absent: dict[TaskId, None] = {}  # asked for and not on disk, though the filter said maybe
        self.damaged: set[TaskId] = set()  # on disk, unreadable: neither here nor absent

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks.values())

    def get(self, task: TaskId) -> Task | None:
        """The task if it is in memory. Absent does not mean unknown: see `missing`."""
        return self._tasks.get(task)

    def missing(self, tasks: Iterable[TaskId]) -> set[TaskId]:
        """Which of these may be read from disk and are not in memory."""
        return {
            t
            for t in tasks
            if t not in self._tasks and t not in self._absent and t not in self.damaged and self.known.may_contain(t)
        }

    def is_absent(self, task: TaskId) -> None:
        """The disk has no row for `task`, so nobody needs to ask again."""
        if task not in self._tasks and task not in self.damaged:
            self._absent[task] = None
            if len(self._absent) > ABSENT_MAX:
                del self._absent[next(iter(self._absent))]

    def add(self, id: EventId, event: TaskEvent) -> Task:
        """Fold one fact in. The task must not be on disk only (`missing` is empty for it)."""
        task = self._tasks.get(event.task)
        if task is None:
            task = self._tasks[event.task] = Task(event.task, Facts())
            self.known.add(event.task)
            self._absent.pop(event.task, None)
        view = task.view
        if task.facts.add(id, event):
            self._changed(task)
            view = None if view is None else grown(view, task.facts, id, event)
            if view is not None:
                task.view, task.state = view, view.state
        return task

    def read_again(self, tasks: Iterable[TaskId]) -> None:
        """Commits of these tasks were re-issued: what was folded under their old stamps takes its new place."""
        for id in tasks:
            task = self._tasks.get(id)
            if task is not None and task.facts.read_through(self.reissues.fact):
                self._changed(task)

    def _changed(self, task: Task) -> None:
        task.view = None
        task.rests = False
        self._unhashed[task.id] = task
        if task.settled and task.state is TaskState.DEAD:
            task.settled = False  # a requeue moves on from a settled death; nothing else that settled ever changes
        self._touched[task.id] = None
        self.mark_dirty(task)

    def mark_dirty(self, task: Task) -> None:
        if not task.dirty:
            task.dirty = True
            self._dirty[task.id] = None

    def touch(self, task: Task) -> None:
        """Have the task reviewed though its facts did not change."""
        self._touched[task.id] = None

    def touch_all(self) -> None:
        """Have everything that has not ended reviewed: what may be started at all has changed."""
        for task in self._tasks.values():
            if not task.ended:
                self._touched[task.id] = None

    def take_touched(self) -> list[Task]:
        touched, self._touched = self._touched, {}
        return [self._tasks[id] for id in touched if id in self._tasks]

    @property
    def has_touched(self) -> bool:
        return bool(self._touched)

    def view(self, task: Task) -> TaskView:
        """What the task's facts resolve to."""
        view = task.view
        if view is None:
            view = task.view = resolve(task.facts)
            task.state = view.state
        return view

    @property
    def digest(self) -> Digest:
        """The fingerprint of all tasks and limits, as their facts are now."""
        unhashed, self._unhashed = self._unhashed, {}
        for task in unhashed.values():
            self._hash(task)
        return self._digest

    @digest.setter
    def digest(self, digest: Digest) -> None:
        self._digest = digest

    def _hash(self, task: Task) -> None:
        share = view_hash(task.id, self.view(task))
        if share != task.digest:
            self._digest.replace(task.digest, share)
            task.digest = share
        self.let_go_of_view(task)

    def let_go_of_view(self, task: Task) -> None:
        """Resolve a task that only waits again when something happens: a backlog of views is a fifth of its memory."""
        if task.state is TaskState.WAITING and task.id not in self._unhashed:
            task.view = None

    # Rows --------------------------------------------------------------------------------------

    def row(self, task: Task) -> TaskRow:
        view = self.view(task)
        if self._unhashed.pop(task.id, None) is not None:
            self._hash(task)  # the view that it may let go of is ours
        submitted = view.submitted
        return TaskRow(
            domain=self.domain,
            task=task.id,
            name=submitted.name if submitted else "",
            queue=submitted.queue if submitted else "",
            state=str(view.state),
            settled=task.settled,
            live=not task.ended or task.duties,
            owner=view.owner,
            created_ms=view.submission.stamp >> 16 if view.submission else 0,
            conflicts=len(view.conflicts),
            labels=view.labels,
            digest=task.digest,
            facts=task.facts.pack(),
        )

    @property
    def dirty(self) -> int:
        return len(self._dirty)

    def dirty_ids(self) -> list[TaskId]:
        return list(self._dirty)

    def clean(self, task: Task) -> TaskRow:
        """The row to write; the task counts as clean from here on."""
        row = self.row(task)
        task.dirty = False
        self._dirty.pop(task.id, None)
        return row

    def restore(self, row: TaskRow, *, counted: bool) -> Task:
        """Bring a row into memory, joining what is there already.

        Args:
            counted: Whether the row's share is in the digest (it was ours and had only left
                memory). A row that comes from a peer's snapshot is not.
        """
        facts = Facts.unpack(row.facts) if counted else Facts.from_row(row.facts)
        task = self._tasks.get(row.task)
        if task is None:
            task = Task(row.task, facts, row.digest if counted else _NOTHING, row.settled)
            task.state = TaskState(row.state)
            self._tasks[row.task] = task
            self.known.add(row.task)
            self._absent.pop(row.task, None)
            if not counted:
                self._changed(task)
        elif task.facts.join(facts):
            self._changed(task)
        if self.reissues and task.facts.read_through(self.reissues.fact):  # its row is from before
            self._changed(task)
        return task

    def evict(self, task: Task) -> None:
        """Forget a clean task; its row on disk has everything."""
        assert not task.dirty, task.id.hex()
        assert not task.pins, task.id.hex()
        self._tasks.pop(task.id, None)
        self._touched.pop(task.id, None)


def tasks_of(events: Sequence[object]) -> tuple[TaskId, ...]:
    """The tasks that these events are about, each once, in the order of the events: so they are visited."""
    found: dict[TaskId, None] = {}
    for event in events:
        if type(event) in TASK_EVENTS:
            found[event.task] = None  # type: ignore[attr-defined]
        elif type(event) is Reissued:
            found.update(dict.fromkeys(event.tasks))
    return tuple(found)


def ids_needed(events: Sequence[object]) -> set[TaskId]:
    """The tasks whose facts must be in memory before these events are folded."""
    return set(tasks_of(events))
