"""Task rows on their way to disk: a derived index, written lazily, that a restart can trust.

Commits are the truth; rows save folding them again. Changed rows are written in slices, and when
every row that was dirty at one moment is on disk, the heads of that moment are recorded as
*folded*: a restart loads rows and folds only the commits beyond. Rows may be newer than that,
which is harmless because facts join. The digest of what is on disk is kept beside them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from crdtsync.identifiers import TaskId, WriterId, node_of
from crdtsync.log.digest import Digest
from crdtsync.log.heads import Heads
from crdtsync.protocol import codec
from crdtsync.region import RegionState
from crdtsync.settlement import Settlement
from crdtsync.tasks import Task

ROWS_PER_BATCH: Final = 500  # a slice of lazily written rows: about 5 ms of work beside a commit
FOLD_VERSION: Final = 1
FOLD_BYTES_MAX: Final = 64 << 20
MARKS_KEPT: Final = 64  # per writer: how finely the log's age is known when it is dropped


class Mark:
    """How old, and how big, a writer's log is at one of its commits."""

    __slots__ = ("bytes", "number", "stamp_ms")

    def __init__(self, number: int, stamp_ms: int, size: int) -> None:
        self.number = number
        self.stamp_ms = stamp_ms
        self.bytes = size


class Rows:
    def __init__(self, here: RegionState, settlement: Settlement) -> None:
        self._here = here
        self._settlement = settlement
        self.digest = Digest()  # of the rows on disk
        self.folded = Heads()
        self.floor: dict[WriterId, int] = {}
        self._pending: deque[TaskId] | None = None
        self._fold: Any = None  # what to record when `_pending` is written
        self._fold_heads = Heads()
        self._leaving: dict[TaskId, None] = {}  # ended tasks, oldest first, to leave memory
        self._marks: dict[WriterId, deque[Mark]] = {}
        self._sizes: dict[WriterId, int] = {}

    # Writing -----------------------------------------------------------------------------------

    @property
    def flushing(self) -> bool:
        return self._pending is not None

    def start_flush(self) -> None:
        """Begin to write all rows that are dirty now, in slices, one with each batch."""
        here = self._here
        if self._pending is not None:
            return
        here.seal()
        heads = here.log.applied
        if not here.table.dirty and not here.documents.dirty and heads == self.folded:
            return
        self._pending = deque(here.table.dirty_ids())
        self._fold_heads = heads
        self._fold = (
            FOLD_VERSION,
            here.log.export_state(),
            tuple(sorted(self._settlement.done.items())),
            self._declared(),
            tuple((w, o.predecessor, o.number, o.features) for w, o in sorted(here.writers.items())),
        )

    def _declared(self) -> Any:
        return tuple(
            (tuple(event_id), tuple(declared))
            for _, regions in sorted(self._here.declared.items())
            for _, (event_id, declared) in sorted(regions.items())
        )

    def write_slice(self) -> None:
        """Put a slice of rows into the batch that is being closed."""
        left = ROWS_PER_BATCH
        table = self._here.table
        pending = self._pending
        while pending and left:
            task = table.get(pending.popleft())
            if task is not None and task.dirty:
                self._write(task)
                left -= 1
        batch = self._here.outbox.next
        if pending is not None and not pending:
            for row in self._here.documents.take_dirty(self._here.domain):
                batch.documents[row.domain, row.task, row.name] = row
            batch.meta[f"fold/{self._here.domain}"] = codec.encode((*self._fold, self._log_shape()))
            heads = self._fold_heads
            batch.after.append(lambda: self._folded(heads))
            self._pending = None
        self._write_leaving(left)
        if batch.rows:
            batch.meta[f"digest/{self._here.domain}"] = bytes(self.digest)

    def _folded(self, heads: Heads) -> None:
        self.folded = heads

    def write_all(self) -> None:
        """Have every dirty row in the next batch: a query is about to read them."""
        for task_id in self._here.table.dirty_ids():
            task = self._here.table.get(task_id)
            if task is not None:
                self._write(task)
        if self._here.outbox.next.rows:
            self._here.outbox.next.meta[f"digest/{self._here.domain}"] = bytes(self.digest)

    def _write(self, task: Task) -> None:
        row = self._here.table.clean(task)
        self._here.outbox.next.rows[row.domain, row.task] = row
        self.digest.replace(task.row_share, row.digest)
        task.row_share = row.digest

    # Leaving memory ----------------------------------------------------------------------------

    def ended(self, task: Task) -> None:
        """The task has ended: it leaves memory once it is settled, or others need the room."""
        self._leaving[task.id] = None

    @property
    def crowded(self) -> bool:
        return len(self._leaving) > 2 * self._here.settings.ended_kept_max

    def _write_leaving(self, left: int) -> None:
        """Write rows of ended tasks and let them go once those are durable."""
        table, kept = self._here.table, self._here.settings.ended_kept_max
        gone: list[Task] = []
        spare = len(self._leaving) - kept
        for task_id in list(self._leaving)[: max(left, 0) * 2]:
            if left <= 0:
                break
            task = table.get(task_id)
            if task is None or not task.ended:
                del self._leaving[task_id]
                continue
            if task.duties or task.pins or (not task.settled and spare <= 0):
                continue
            spare -= 1
            if task.dirty:
                self._write(task)
                left -= 1
            gone.append(task)
        if gone:
            self._here.outbox.next.after.append(lambda: self._let_go(gone))

    def _let_go(self, tasks: list[Task]) -> None:
        for task in tasks:
            if task.ended and not (task.dirty or task.pins or task.duties):
                self._leaving.pop(task.id, None)
                self._here.table.evict(task)

    # The log's age -----------------------------------------------------------------------------

    def mark(self, writer: WriterId, number: int, stamp_ms: int, size: int) -> None:
        """A commit was stored."""
        total = self._sizes[writer] = self._sizes.get(writer, 0) + size
        marks = self._marks.setdefault(writer, deque())
        spacing = max(1_000, self._here.settings.retention_ms // MARKS_KEPT)
        if marks and stamp_ms - marks[-1].stamp_ms < spacing and len(marks) > 1:
            marks[-1] = Mark(number, marks[-1].stamp_ms, total)
            return
        marks.append(Mark(number, stamp_ms, total))
        if len(marks) > 4 * MARKS_KEPT:
            marks.popleft()

    def drop_old(self) -> None:
        """Drop commits that every member has, that are folded and visited, and are past retention."""
        here = self._here
        stable, done = here.stability.stable(), self._settlement.done
        latest = here.now.wall_ms - here.settings.retention_ms
        for writer, marks in sorted(self._marks.items()):
            upto = min(stable[writer], done.get(writer, 0), self.folded[writer], here.log.durable_applied[writer])
            floor, freed = self.floor.get(writer, 0), 0
            # A mark's time is that of its first commit, so the next mark's time bounds all of it.
            while len(marks) > 1 and marks[0].number <= upto and marks[1].stamp_ms < latest:
                floor, freed = marks[0].number, marks[0].bytes
                marks.popleft()
            if len(marks) == 1 and marks[0].number <= upto and self._quiet_ms(marks[0]) > here.settings.retention_ms:
                floor, freed = marks[0].number, marks[0].bytes
                marks.popleft()
            if floor > self.floor.get(writer, 0):
                self.floor[writer] = floor
                here.outbox.next.drop.append((here.domain, writer, floor))
                here.outbox.next.meta[f"floor/{here.domain}"] = codec.encode(tuple(sorted(self.floor.items())))
                here.commit_bytes -= freed
                self._sizes[writer] -= freed
                for mark in marks:
                    mark.bytes -= freed
                here.notify("info", "log.dropped", writer=writer, upto=floor, bytes=freed)

    def _quiet_ms(self, mark: Mark) -> int:
        return self._here.now.wall_ms - mark.stamp_ms

    def _log_shape(self) -> Any:
        return tuple(
            (writer, self._sizes.get(writer, 0), tuple((m.number, m.stamp_ms, m.bytes) for m in marks))
            for writer, marks in sorted(self._marks.items())
        )

    # Restart -----------------------------------------------------------------------------------

    def restore(self, meta: Mapping[str, bytes]) -> None:
        """Take up where the last durable fold left off. Call once, before any row or commit."""
        from crdtsync.events import Declared, WriterOpened
        from crdtsync.identifiers import EventId
        from crdtsync.log.shapes import options_from_plain

        here = self._here
        if f"digest/{here.domain}" in meta:
            self.digest = Digest(meta[f"digest/{here.domain}"])
            here.table.digest = Digest(meta[f"digest/{here.domain}"])
        if f"floor/{here.domain}" in meta:
            self.floor = dict(codec.decode(meta[f"floor/{here.domain}"], bytes_max=FOLD_BYTES_MAX))  # type: ignore[arg-type]
        packed = meta.get(f"fold/{here.domain}")
        evidence: Any = ()
        if f"evidence/{here.domain}" in meta:
            evidence = codec.decode(meta[f"evidence/{here.domain}"], bytes_max=FOLD_BYTES_MAX)
        if packed is None:
            if evidence:
                here.log.restore((1, here.domain, ()), evidence)
            return
        fold: Any = codec.decode(packed, bytes_max=FOLD_BYTES_MAX)
        _, state, visited, declared, writers, shape = fold
        here.log.restore(state, evidence)
        self.folded = here.log.applied
        self._settlement.restore(dict(visited))
        for plain_id, (name, app, queue, priority, options) in declared:
            here.fold(EventId(*plain_id), Declared(name, app, queue, priority, options_from_plain(options)))
        for writer, predecessor, number, features in writers:
            if node_of(writer) == node_of(here.writer):
                here.writers[writer] = WriterOpened(predecessor, number, features)
        for writer, size, marks in shape:
            self._sizes[writer] = size
            self._marks[writer] = deque(Mark(*mark) for mark in marks)
            here.commit_bytes += size
