"""Task rows on their way to disk: a derived index, written lazily, that a restart can trust.

Commits are the truth; rows save folding them again. Changed rows are written in slices, and when
every row that was dirty at one moment is on disk, the heads of that moment are recorded as
*folded*: a restart loads rows and folds only the commits beyond. Rows may be newer than that,
which is harmless because facts join. The digest of what is on disk is kept beside them.

A row that is damaged on disk is derived again, and all others with it, as long as nothing was
dropped from the log: it is folded from its first commit on, whatever the disk says meanwhile, and
what it says is written over (docs/decisions/0006).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, Final, NamedTuple, Protocol

from crdtsync.errors import CorruptLogError, RemoteProtocolError
from crdtsync.events import KIND_OF, Declared, Event, WriterOpened
from crdtsync.identifiers import EventId, TaskId, WriterId, node_of
from crdtsync.log.commit import Commit
from crdtsync.log.digest import Digest
from crdtsync.log.heads import Heads
from crdtsync.log.shapes import check_events
from crdtsync.log.stability import Ack
from crdtsync.protocol import codec
from crdtsync.region import RegionState
from crdtsync.settlement import Settlement
from crdtsync.tasks import Task

ROWS_PER_BATCH: Final = 500  # a slice of lazily written rows: about 5 ms of work beside a commit
ROWS_CROWDED: Final = 2_000  # more of them when ended tasks pile up in memory, as in a heal
LOOKED_AT_MAX: Final = 5_000  # ended tasks looked at per batch
FOLD_VERSION: Final = 1
DERIVING: Final = b""  # instead of a fold: rows on disk are being derived again
FOLD_BYTES_MAX: Final = 64 << 20
MARKS_KEPT: Final = 64  # per writer and retention: how finely the log's age is known when it is dropped
SPACING_MS_MIN: Final = 250  # of marks, however short the retention


def limit_facts(state: bytes) -> bytes:
    """What `LimitTable.join` takes, of the limits as they are stored. Raises RemoteProtocolError."""
    plain: Any = codec.decode(state, bytes_max=FOLD_BYTES_MAX)
    if type(plain) is not tuple or len(plain) != 2 or type(plain[0]) is not bytes:
        raise RemoteProtocolError("the limits are stored in another form than this version's")
    return plain[0]


class Mark(NamedTuple):
    """A stretch of one writer's log: since when, and where it ends."""

    since_ms: int  # wall part of its first commit's stamp
    number: int  # of its last commit, as are the next two
    stamp: int
    hash: bytes
    bytes: int  # stored up to and including this stretch


class Floor(NamedTuple):
    """The last commit of a writer that was dropped: what continuing the chain behind it needs."""

    number: int
    hash: bytes
    stamp: int


class LimitsKept(Protocol):
    """What is kept of limits beside their facts."""

    def export_used(self) -> list[tuple[bytes, int, int]]: ...
    def restore_used(self, used: Iterable[tuple[bytes, int, int]]) -> None: ...


class Rows:
    limits: LimitsKept  # set by the replica, before anything is restored

    def __init__(self, here: RegionState, settlement: Settlement) -> None:
        self._here = here
        self._settlement = settlement
        self.digest = Digest()  # of the rows on disk
        self.folded = Heads()
        self.floor: dict[WriterId, Floor] = {}
        self._floor_heads: Heads | None = None  # of `floor`, asked for with each frame; None after it moved
        self._pending: deque[TaskId] | None = None
        self._fold: Any = None  # what to record when `_pending` is written
        self._fold_heads = Heads()
        self._fold_limits: bytes | None = None  # as of those heads; None while there are none
        self._fold_visited: dict[WriterId, int] = {}
        self._visited: dict[WriterId, int] = {}  # as the disk has it: a restart visits again what lies beyond
        self._leaving: dict[TaskId, None] = {}  # ended tasks, oldest first, to leave memory
        self._marks: dict[WriterId, deque[Mark]] = {}
        self._sizes: dict[WriterId, int] = {}

    # Writing -----------------------------------------------------------------------------------

    @property
    def flushing(self) -> bool:
        return self._pending is not None

    def start_flush(self, *, anew: bool = False) -> None:
        """Begin to write all rows that are dirty now, in slices, one with each batch.

        Args:
            anew: Begin again even if a flush is under way.
        """
        here = self._here
        if here.deriving or (self._pending is not None and not anew):
            return
        here.seal()
        heads, visited = here.log.applied, dict(self._settlement.done)
        if not here.table.dirty and not here.documents.dirty and heads == self.folded and visited == self._visited:
            return
        self._pending = deque(here.table.dirty_ids())
        self._fold_heads, self._fold_visited = heads, visited
        self._fold_limits = self._limits_state() if len(here.limits) else None
        self._fold = (
            FOLD_VERSION,
            here.log.export_state(),
            tuple(sorted(visited.items())),
            self._declared(),
            tuple((w, o.predecessor, o.number, o.features) for w, o in sorted(here.writers.items())),
            tuple(heard.ack.to_wire() for _, heard in sorted(here.stability.latest().items())),
        )

    def _limits_state(self) -> bytes:
        return codec.encode((self._here.limits.export(), tuple(self.limits.export_used())))

    def _restore_limits(self, state: bytes) -> None:
        plain: Any = codec.decode(state, bytes_max=FOLD_BYTES_MAX)
        _, used = plain
        self._join_limits(limit_facts(state))
        self.limits.restore_used(used)

    def _join_limits(self, facts: bytes) -> None:
        for old, new in self._here.limits.join(facts, bytes_max=FOLD_BYTES_MAX):
            self._here.table.digest.replace(old, new)

    @staticmethod
    def _declarations(plain: Any) -> list[tuple[EventId, Event]]:
        """Inverse of `_declared`, every field checked. Raises RemoteProtocolError."""
        events = check_events(tuple((KIND_OF[Declared], *fields) for _, fields in plain))
        return [(EventId(*event_id), event) for (event_id, _), event in zip(plain, events, strict=True)]

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
            if self._fold_limits is not None:
                batch.meta[f"limits/{self._here.domain}"] = self._fold_limits
            heads, visited = self._fold_heads, self._fold_visited
            batch.after.append(lambda: self._folded(heads, visited))
            self._pending = None
        self._write_leaving(left)
        if batch.rows:
            batch.meta[f"digest/{self._here.domain}"] = bytes(self.digest)

    def _folded(self, heads: Heads, visited: dict[WriterId, int]) -> None:
        self.folded, self._visited = heads, visited

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
        """Whether more ended tasks are in memory than are meant to: a batch is worth closing for them."""
        return len(self._leaving) > 2 * self._here.settings.ended_kept_max

    @property
    def full(self) -> bool:
        """Whether so many are that nothing more may be brought into memory before some have left."""
        return len(self._leaving) > 4 * self._here.settings.ended_kept_max

    def _write_leaving(self, left: int) -> None:
        """Write rows of ended tasks and let them go once those are durable."""
        table, kept = self._here.table, self._here.settings.ended_kept_max
        gone: list[Task] = []
        spare = len(self._leaving) - kept
        if self.crowded:
            left += ROWS_CROWDED
        for task_id in list(islice(self._leaving, LOOKED_AT_MAX)):
            task = table.get(task_id)
            if task is None or not task.ended:
                del self._leaving[task_id]
                continue
            if task.duties or task.pins or (not task.settled and spare <= 0) or (task.dirty and left <= 0):
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

    def mark(self, commit: Commit) -> None:
        """A commit is being stored, or was found on disk."""
        writer, stamp_ms = commit.writer, commit.stamp >> 16
        total = self._sizes[writer] = self._sizes.get(writer, 0) + len(commit.blob)
        marks = self._marks.setdefault(writer, deque())
        spacing_ms = max(SPACING_MS_MIN, self._here.settings.retention_ms // MARKS_KEPT)
        since_ms = stamp_ms
        if marks and stamp_ms - marks[-1].since_ms < spacing_ms:
            since_ms = marks.pop().since_ms
        marks.append(Mark(since_ms, commit.number, commit.stamp, commit.hash, total))

    def drop_old(self) -> None:
        """Drop commits that every member has, that are past retention, and that the disk knows to be folded and visited:
        after a restart nothing else would say which tasks they touched."""
        here = self._here
        if here.table.damaged and not self.floor:
            return  # the log is whole: what is damaged can be derived from it, at a next start
        stable = here.stability.stable()
        latest = here.time_ms - here.settings.retention_ms
        for writer, marks in sorted(self._marks.items()):
            upto = min(
                stable[writer], self._visited.get(writer, 0), self.folded[writer], here.log.durable_applied[writer]
            )
            old: Mark | None = None
            while marks and marks[0].number <= upto and marks[0].stamp >> 16 < latest:
                old = marks.popleft()
            if old is None:
                continue
            self._raise_floor(writer, Floor(old.number, old.hash, old.stamp))
            here.log.dropped(writer, old.number)
            here.outbox.next.drop.append((here.domain, writer, old.number))
            here.outbox.next.meta[f"floor/{here.domain}"] = codec.encode(self._floor_state())
            here.commit_bytes -= old.bytes
            self._sizes[writer] -= old.bytes
            self._marks[writer] = deque(mark._replace(bytes=mark.bytes - old.bytes) for mark in marks)
            here.notify("info", "log.dropped", writer=writer, upto=old.number, bytes=old.bytes)

    def _raise_floor(self, writer: WriterId, floor: Floor) -> None:
        """The floor never goes back: below a snapshot's lie commits that our own disk still has, dropped only later."""
        if writer not in self.floor or floor.number > self.floor[writer].number:
            self.floor[writer] = floor
            self._floor_heads = None

    def _floor_state(self) -> Any:
        """The floor in the form of `DomainLog.export_state`."""
        return (1, self._here.domain, tuple((w, *floor) for w, floor in sorted(self.floor.items())))

    @property
    def floor_heads(self) -> Heads:
        """What was dropped here: a peer that lacks any of it must take a snapshot."""
        if self._floor_heads is None:
            self._floor_heads = Heads({writer: floor.number for writer, floor in self.floor.items()})
        return self._floor_heads

    # Snapshots ---------------------------------------------------------------------------------

    def snapshot_state(self) -> bytes:
        """What a peer needs beside all task rows to go on from our floor.

        From the floor and not from the heads: what lies between is still in the log, so the peer
        pulls and visits it as usual, and joining facts that its rows hold already is harmless.
        """
        here = self._here
        documents = tuple((row.task, row.name, row.state) for row in here.documents.rows(here.domain))
        state: tuple[Any, ...] = (FOLD_VERSION, self._floor_state(), self._declared(), documents)
        if len(here.limits) or here.roster or here.reissues:  # then every member knows of all three
            state = (*state, here.limits.export())
        if here.roster or here.reissues:
            state = (*state, here.roster.to_wire())
        if here.reissues:
            state = (*state, here.reissues.export())
        return codec.encode(state)

    def adopt(self, state: bytes) -> None:
        """Go on from the floor of the peer whose rows were joined.

        Raises:
            RemoteProtocolError, CorruptLogError: It is not such a state; nothing was adopted.
        """
        here = self._here
        plain: Any = codec.decode(state, bytes_max=FOLD_BYTES_MAX)
        if type(plain) is not tuple or len(plain) not in (4, 5, 6, 7) or plain[0] != FOLD_VERSION:
            raise CorruptLogError("a peer's snapshot has another form than this version's")
        _, floor, declared, documents, *more = plain
        if more:
            self._join_limits(more[0])
        if more[1:]:
            here.join_roster(more[1])
        if more[2:]:
            here.join_reissues(more[2])
        for event_id, event in self._declarations(declared):
            here.fold(event_id, event)
        for task, name, content in documents:
            here.documents.join((here.domain, task, name), content)
        here.log.adopt(floor)
        for writer, number, last_hash, stamp in floor[2]:
            self._raise_floor(writer, Floor(number, last_hash, stamp))
            self._settlement.skip(writer, number)
            here.log.dropped(writer, number)
        here.outbox.next.meta[f"floor/{here.domain}"] = codec.encode(self._floor_state())

    def _log_shape(self) -> Any:
        return tuple(
            (writer, self._sizes.get(writer, 0), tuple(tuple(mark) for mark in marks))
            for writer, marks in sorted(self._marks.items())
        )

    # Restart -----------------------------------------------------------------------------------

    def restore(self, meta: Mapping[str, bytes], *, derive: bool = False) -> None:
        """Take up where the last durable fold left off, or at the beginning. Call once, before any row or commit."""
        here = self._here
        evidence: Any = ()
        if f"evidence/{here.domain}" in meta:
            evidence = codec.decode(meta[f"evidence/{here.domain}"], bytes_max=FOLD_BYTES_MAX)
        if derive or meta.get(f"fold/{here.domain}") == DERIVING:
            # Told by the first batch, before any row is written: a crash on the way begins again.
            assert not meta.get(f"floor/{here.domain}"), "what was dropped cannot be derived"
            here.deriving = True
            here.outbox.next.meta[f"fold/{here.domain}"] = DERIVING
            here.log.restore((1, here.domain, ()), evidence)
            return  # what was re-issued is found again in the log, which is whole
        if f"digest/{here.domain}" in meta:
            self.digest = Digest(meta[f"digest/{here.domain}"])
            here.table.digest = Digest(meta[f"digest/{here.domain}"])
        if f"floor/{here.domain}" in meta:
            floor: Any = codec.decode(meta[f"floor/{here.domain}"], bytes_max=FOLD_BYTES_MAX)
            self.floor = {writer: Floor(*rest) for writer, *rest in floor[2]}
            self._floor_heads = None
        packed = meta.get(f"fold/{here.domain}")
        if packed is None:
            if evidence:
                here.log.restore((1, here.domain, ()), evidence)
            here.restore_reissues(meta)
            return
        fold: Any = codec.decode(packed, bytes_max=FOLD_BYTES_MAX)
        _, state, visited, declared, writers, acks, shape = fold
        here.log.restore(state, evidence)
        here.restore_reissues(meta)
        self.folded = here.log.applied
        self._visited = dict(visited)
        self._settlement.restore(dict(visited))
        if f"limits/{here.domain}" in meta:
            self._restore_limits(meta[f"limits/{here.domain}"])
        for event_id, event in self._declarations(declared):
            here.fold(event_id, event)
        for writer, predecessor, number, features in writers:
            if node_of(writer) == node_of(here.writer):
                here.writers[writer] = WriterOpened(predecessor, number, features)
        for ack in acks:  # of members that may ask us one day what they last acknowledged; how old they are is lost
            here.stability.offer(Ack.from_wire(ack), 0)
        for writer, size, marks in shape:
            self._sizes[writer] = size
            self._marks[writer] = deque(Mark(*mark) for mark in marks)
            here.commit_bytes += size
