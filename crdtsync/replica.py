"""`Replica`: one region's decisions. Inputs are method calls with `now`; outputs are effects.

The driver's duties:

1. Build it with a new writer identity (a counter and 64 random bits that no earlier start used)
   and what the disk holds: `restore_*` in the order of their definition, then `start`.
2. Feed inputs one at a time; after each, call `take_effects()` and carry them out in order.
3. Make a `Persist` durable before calling `persisted` with its number. If that fails, discard the
   replica and build a new one from disk: memory is never ahead of disk for anyone.
4. Call `tick` when `next_deadline_ms()` (monotonic) has come.
5. Name what is unreadable where a read is answered, and at the start: it is not absent. When an
   answer raises CorruptLogError, memory cannot go on beside that disk: discard the replica and
   build a new one; if `may_derive` of it, with `derive` (docs/decisions/0006).

Never raises for anything that comes from elsewhere. Delegates to the parts: `log` (what is known),
`tasks` (what it means), `duties` (what this region does about it), `gossip` (what others hear).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from crdtsync import commands as c
from crdtsync import undoing
from crdtsync.clock import Now
from crdtsync.document_requests import DocumentRequests
from crdtsync.duties import Duties
from crdtsync.effects import DocumentRow, Effect, Page, Reply, TaskRow
from crdtsync.errors import CorruptLogError, CrdtSyncError, NotImplementedYetError, OverloadedError
from crdtsync.events import WriterOpened
from crdtsync.identifiers import EventId, RegionId, TaskId, WriterId, incarnation_of, node_of, region_of
from crdtsync.loader import Loader
from crdtsync.log.commit import Commit
from crdtsync.log.heads import Heads
from crdtsync.log.verdicts import Verdict
from crdtsync.neighbours import Neighbours
from crdtsync.protocol import codec
from crdtsync.records import Records
from crdtsync.region import RegionState
from crdtsync.requests import Requests
from crdtsync.rows import Rows
from crdtsync.scheduling.dispatch import Dispatcher
from crdtsync.scheduling.handover import Handover
from crdtsync.scheduling.ready import ReadyQueue
from crdtsync.scheduling.workers import Workers
from crdtsync.settings import Settings
from crdtsync.settlement import Settlement
from crdtsync.tasks import Task, ids_needed
from crdtsync.watchers import Watchers
from crdtsync.worker_requests import WorkerRequests
from crdtsync.workflow.dependencies import Dependencies

COMMITS_PER_TURN: Final = 200  # applied by one input, so that healing never holds the loop for long
QUEUED_MAX: Final = 10_000  # commands that may wait until the log is folded after a start
TIMERS_PER_TURN: Final = 1_000
TURN_MS: Final = 1  # when there is more to do than one turn allows: the next one follows at once
COMPACT_MS: Final = 2_000  # how often commits past retention are looked for
LANES_MS: Final = 500  # how often it is judged whether work waits here that no worker can run
TAKEOVER_MS: Final = 250  # how often silence is judged
DAMAGED_SHOWN_MAX: Final = 100  # in the status
DAMAGED_ADVICE: Final = "stop this node, move its data away, start it: it fetches what its peers hold"
READ_RETRY_MS: Final = 5_000  # after an unreadable commit: peers may have sent it by then


class Replica:
    """One region's copy of the state, and what it does about it.

    Args:
        writer: This incarnation's identity, never used before.
        meta: The store's meta entries, empty on a fresh disk.
        derive: Believe no task row on disk and make all of them again from the log, which must be whole.
    """

    def __init__(
        self,
        settings: Settings,
        writer: WriterId,
        now: Now,
        meta: Mapping[str, bytes] | None = None,
        *,
        derive: bool = False,
    ) -> None:
        meta = meta or {}
        bound = int.from_bytes(meta.get("clock", b""), "big")
        here = self._here = RegionState(settings, writer, now, clock_bound=bound)
        self.settings = settings
        self.writer = writer
        self._loader = Loader(here.table, here.outbox, here.token)
        self._workers = Workers()
        self._ready = ReadyQueue()
        self._dependencies = Dependencies(here.table, self._loader.require, self._is_decided)
        self._neighbours = Neighbours(here, self, cut=self._restored_cut(meta), restored=not settings.trust_disk)
        self._handover = Handover(
            here,
            last_heard=self._neighbours.last_heard,
            serves=self._workers.serves,
            reachable=self._neighbours.reachable,
        )
        self._dispatcher = Dispatcher(
            here,
            self._workers,
            self._ready,
            self._dependencies,
            self._handover.present,
            self._neighbours.catching_up_since_ms,
        )
        self._watchers = Watchers(self._answer_watcher, self._tell_watcher)
        self._records = Records(here, self._workers, self._dependencies, self._handover)
        self._settlement = Settlement(here, self._loader.require, full=lambda: self._rows.full)
        self._rows = Rows(here, self._settlement)
        self._duties = Duties(
            here,
            workers=self._workers,
            ready=self._ready,
            dependencies=self._dependencies,
            dispatcher=self._dispatcher,
            handover=self._handover,
            watchers=self._watchers,
            require=self._loader.require,
            ended=self._rows.ended,
            may_touch_old=self._neighbours.may_touch_old,
        )
        self._requests = Requests(here, self._watchers, self._records, self._loader.require, flush=self._rows.write_all)
        self._documents = DocumentRequests(here, self._loader.require)
        self._worker_requests = WorkerRequests(
            here, self._workers, self._dispatcher, self._loader.require, lanes_changed=self._lanes_changed
        )
        self._started = False
        self._folded = False  # everything that the disk held at start is folded
        self._blocked = False  # the next commit to apply waits for facts on disk
        self._reading: set[int] = set()
        self._read_retry_ms = 0  # a commit on disk was unreadable: not asked for again before
        self._more = False
        self._queue: deque[tuple[Any, Any]] = deque()
        self._fresh: list[tuple[Commit, RegionId | None]] = []  # in the batch being gathered
        self._taken: dict[RegionId, int] = {}  # bytes of peers' commits in it, to be credited again
        self._was_trusted = False
        self._rows.restore(meta, derive=derive)

    # Start -------------------------------------------------------------------------------------

    @staticmethod
    def _restored_cut(meta: Mapping[str, bytes]) -> frozenset[RegionId]:
        packed = meta.get("cut")
        if packed is None:
            return frozenset()
        names: Any = codec.decode(packed, bytes_max=1 << 16)
        return frozenset(RegionId(name) for name in names)

    @property
    def may_derive(self) -> bool:
        """Whether the log still holds everything, so that damaged task rows can be made again from it."""
        return not self._rows.floor

    @property
    def deriving(self) -> bool:
        """Whether that is being done: no row on disk matters until it is."""
        return self._here.deriving

    def restore_known(self, ids: Iterable[TaskId]) -> None:
        """The ids of all task rows on disk."""
        for task in () if self.deriving else ids:
            self._here.table.known.add(task)

    def restore_rows(self, rows: Iterable[TaskRow]) -> None:
        """The rows marked `live`, in any order."""
        for row in () if self.deriving else rows:
            task = self._here.table.restore(row, counted=True)
            self._here.table.touch(task)

    def restore_documents(self, rows: Iterable[DocumentRow]) -> None:
        for row in rows:
            self._here.documents.restore((row.domain, row.task, row.name), row.state)

    @property
    def folded_heads(self) -> Mapping[WriterId, int]:
        """The heads beyond which commits are to be restored, per writer."""
        return dict(self._rows.folded.items())

    def restore_commits(self, blobs: Iterable[bytes]) -> None:
        """Commits beyond `folded_heads`, in the order in which they were stored."""
        for blob in blobs:
            try:
                received = self._here.log.restore_commit(blob)
            except CorruptLogError as error:
                self._here.alarm("log.corrupt", reason=str(error))
                continue
            for commit in received.commits:
                self._rows.mark(commit)
                self._here.commit_bytes += len(commit.blob)

    def restore_damaged(self, tasks: Iterable[TaskId]) -> None:
        """Tasks whose rows are unreadable: they are refused until that has changed. Call before `start`."""
        for task in tasks:
            self._here.table.damaged.add(task)

    def corrupt(self, what: str, **facts: Any) -> None:
        """Something on disk was unreadable and was left out. Peers are asked for commits that lack."""
        self._here.alarm(f"store.{what}", **facts)

    def start(self, now: Now) -> None:
        """Everything on disk was handed over: begin."""
        here = self._here
        here.now = here.started = now
        self._started = True
        here.timers.at_mono(now.mono_ms + self.settings.flush_ms, ("flush", ""))
        here.timers.at_mono(now.mono_ms + COMPACT_MS, ("compact", ""))
        here.timers.at_mono(now.mono_ms + TAKEOVER_MS, ("takeover", ""))
        here.timers.at_mono(now.mono_ms + self.settings.start_grace_ms, ("trust", ""))
        here.timers.at_mono(now.mono_ms + LANES_MS, ("lanes", ""))
        self._run()

    def _open_writer(self) -> None:
        """The first commit of this incarnation: which of ours it follows (rules.md, Incarnation)."""
        here = self._here
        own = [w for w in here.log.applied if node_of(w) == node_of(self.writer)]
        last = max(own, key=lambda w: (incarnation_of(w), w), default=None)
        here.table.refresh()
        self._neighbours.start()
        opened = here.write(WriterOpened(last or "", here.log.applied[last] if last else 0, 0))
        self._neighbours.opened(frozenset(own), opened.stamp)
        self._duties.first_own_stamp = opened.stamp
        here.seal()

    # Inputs ------------------------------------------------------------------------------------

    def connected(self, peer: str, now: Now) -> None:
        """A link to `peer` is up. At most one link per peer region at a time."""
        self._here.now = now
        self._neighbours.connected(RegionId(peer), now)
        self._run()

    def disconnected(self, peer: str, now: Now) -> None:
        self._here.now = now
        self._neighbours.disconnected(RegionId(peer), now)
        self._run()

    def allowed(self, peer: str) -> bool:
        """Whether a link to `peer` may be dialled or accepted at all: a member, and not cut off."""
        return self._neighbours.gossip.allowed(RegionId(peer))

    def receive(self, peer: str, message: bytes, now: Now) -> None:
        """One frame from a connected peer. Malformed ones cost that link, and nothing else."""
        self._here.now = now
        self._neighbours.receive(RegionId(peer), message, now)
        self._run()

    def submit(self, command: Any, now: Now, ticket: Any = None) -> None:
        """One command; its answers are `Reply` effects with `ticket`."""
        self._here.now = now
        if not self._folded:
            if len(self._queue) >= QUEUED_MAX:
                error = OverloadedError("the node is still reading its log: ask again in a moment")
                self._here.urgent(Reply(ticket, None, error.record()))
            else:
                self._queue.append((command, ticket))
        else:
            self._do(command, ticket)
        self._run()

    def forget(self, ticket: Any) -> None:
        """Whoever held `ticket` is gone: nothing more is sent to it."""
        self._watchers.forget(ticket)

    def persisted(self, batch: int, now: Now) -> None:
        """The batch is durable: what waited for it leaves, peers hear of it."""
        self._here.now = now
        self._here.outbox.persisted(batch)
        self._run()

    def loaded(self, token: int, rows: Iterable[TaskRow], now: Now, *, damaged: Iterable[TaskId] = ()) -> None:
        """The rows of one `Load`; `damaged` names those that are there and unreadable.

        Raises:
            CorruptLogError: See duty 5.
        """
        self._here.now = now
        self._rows_damaged(damaged)
        self._loader.loaded(token, rows)
        self._run()

    def commits_read(
        self, token: int, blobs: Iterable[bytes], now: Now, *, damaged: tuple[WriterId, int] | None = None
    ) -> None:
        """The commits of one `ReadCommits`; `damaged` names the first one where that is unreadable.

        Raises:
            CorruptLogError: See duty 5.
        """
        self._here.now = now
        if damaged is not None:
            self._commit_damaged(*damaged)
        if token in self._reading:
            self._reading.discard(token)
            self._read_retry_ms = 0
            found = bool(blobs := list(blobs))
            try:
                self._here.log.provide(blobs)
            except CorruptLogError as error:
                found = False
                self._here.alarm("log.corrupt", reason=str(error))
            if not found:
                # Asked for again only after a while: a damaged disk must not become a hot loop.
                self._read_retry_ms = now.mono_ms + READ_RETRY_MS
                self._here.timers.at_mono(self._read_retry_ms, ("retry", ""))
        elif not self._settlement.commits_read(token, list(blobs := list(blobs))):
            self._neighbours.gossip.commits_read(token, blobs, now)
        self._run()

    def rows_read(self, token: int, rows: Iterable[TaskRow], now: Now, *, damaged: Iterable[TaskId] = ()) -> None:
        """The rows of one `ReadRows`, or `damaged`: then the next one is unreadable, and no snapshot can be sent.

        Raises:
            CorruptLogError: See duty 5.
        """
        self._here.now = now
        damaged = tuple(damaged)
        self._rows_damaged(damaged)
        if damaged:
            self._neighbours.gossip.rows_damaged(token)
        else:
            self._neighbours.gossip.rows_read(token, list(rows), now)
        self._run()

    def queried(self, token: int, page: Page, now: Now) -> None:
        """The answer to one `Query`.

        Raises:
            CorruptLogError: See duty 5.
        """
        self._here.now = now
        self._rows_damaged(page.damaged)
        self._requests.queried(token, page)
        self._run()

    def _rows_damaged(self, tasks: Iterable[TaskId]) -> None:
        """Rows are unreadable: written over if their tasks are in memory, else derived again, or refused from now on."""
        table = self._here.table
        lost = []
        for task_id in tasks:
            task = table.get(task_id)
            if task is not None:
                table.mark_dirty(task)
            elif task_id not in table.damaged:
                lost.append(task_id)
        if lost and self.may_derive and not self.deriving:
            raise CorruptLogError(f"{len(lost)} task rows are damaged: all are made again from the log")
        for task_id in lost:
            table.damaged.add(task_id)
            self._here.alarm("store.task", task=task_id.hex(), advice=DAMAGED_ADVICE)

    def _commit_damaged(self, writer: WriterId, number: int) -> None:
        """A commit is unreadable. If it is folded, peers send it again; else it must not count as had."""
        here = self._here
        here.alarm("store.commit", writer=writer, number=number)
        if not here.log.is_applied(writer, number):
            raise CorruptLogError(f"commit {number} of {writer} is damaged: it is left out, and peers are asked for it")
        here.log.lose(writer, number)
        self._neighbours.gossip.announce(here.now)

    def tick(self, now: Now) -> None:
        self._here.now = now
        for what, which in self._here.timers.due(now, TIMERS_PER_TURN):
            self._timer(what, which)
        self._neighbours.gossip.tick(now)
        self._run()

    # Outputs -----------------------------------------------------------------------------------

    def next_deadline_ms(self) -> int | None:
        """When `tick` is next worth calling, on the monotonic clock."""
        now = self._here.now
        if self._more:
            return now.mono_ms + TURN_MS
        times = [self._here.timers.next_mono_ms(now), self._neighbours.gossip.next_deadline_ms()]
        held = self._here.log.next_deadline_ms()
        if held is not None:
            times.append(now.mono_ms + max(1, held - self._here.clock.own_time_ms(now)))
        return min((time for time in times if time is not None), default=None)

    def take_effects(self) -> list[Effect]:
        """What is to be done, in order. A second call returns nothing new."""
        outbox = self._here.outbox
        if outbox.under_way is None and self._started:
            if self._here.unsaved or not outbox.next.empty or self._rows.flushing or self._rows.crowded:
                self._close_batch()
            elif self._taken:
                taken, self._taken = self._taken, {}
                for peer, size in taken.items():
                    self._neighbours.gossip.taken(peer, size, self._here.now)
        for effect in self._neighbours.take_effects():
            outbox.urgent(effect)
        return outbox.take()

    def _close_batch(self) -> None:
        here = self._here
        here.seal()
        self._drain_notes()
        self._rows.write_slice()
        batch = here.outbox.next
        if batch.empty:  # nothing to write, and all that was written is durable
            waiting, batch.after = batch.after, []
            for callback in waiting:
                callback()
            return
        bound = here.clock.bound_to_persist()
        if bound is not None:
            batch.meta["clock"] = bound.to_bytes(8, "big")
        here.table.refresh()
        have, applied, digest = here.log.have, here.log.applied, bytes(here.table.digest)
        fresh, self._fresh = self._fresh, []
        taken, self._taken = self._taken, {}

        def durable() -> None:
            if bound is not None:
                here.clock.bound_persisted(bound)
            here.log.mark_durable(have, applied)
            self._neighbours.durable(applied, digest, fresh, taken)

        batch.after.insert(0, durable)
        here.outbox.close()

    # One turn ----------------------------------------------------------------------------------

    def _run(self) -> None:
        """After each input: apply, settle, review, dispatch, until there is nothing left or the turn is over."""
        if not self._started:
            return
        self._more = False
        self._apply()
        if not self._folded and self._nothing_to_fold():
            self._folded = True
            self._here.deriving = False
            self._open_writer()
        if self._folded:
            while self._queue:
                self._do(*self._queue.popleft())
            self._neighbours.recover()
            trusted = self._neighbours.may_touch_old()
            if trusted and not self._was_trusted:
                self._was_trusted = True
                self._review_all()
            self._more |= self._settlement.advance()
            self._duties.review_touched()
            self._dispatcher.release()
            self._dispatcher.dispatch()
            self._duties.review_touched()
            self._more |= self._here.table.has_touched
            self._more |= self._dispatcher.could_go_on
        self._drain_notes()

    def _drain_notes(self) -> None:
        here = self._here
        for commit in here.sealed:
            self._fresh.append((commit, None))
            self._rows.mark(commit)
        here.sealed.clear()
        for writer, number, tasks in here.touched_by:
            self._settlement.note(writer, number, tasks)
        here.touched_by.clear()
        for alarm in here.log.take_alarms():
            here.alarm(alarm.what, writer=alarm.writer, number=alarm.number, reason=alarm.reason)

    def _nothing_to_fold(self) -> bool:
        log = self._here.log
        if self._here.deriving and log.gaps():
            return False  # tasks of what is missing would look absent
        return not self._blocked and not self._reading and log.needed() is None and not self._more

    # Applying ----------------------------------------------------------------------------------

    def arrived(self, peer: RegionId, blobs: Sequence[bytes], size: int) -> None:
        """Commits came from a peer: check them, keep them, apply what can be."""
        here = self._here
        wall_ms = here.clock.own_time_ms(here.now)
        self._credit(peer, size)
        for blob in blobs:
            received = here.log.receive(blob, wall_ms)
            if received.verdict is Verdict.MENDED:
                self._mend(received.commits[0])
                continue
            for commit in received.commits:
                here.keep(commit)
                self._fresh.append((commit, peer))
                self._rows.mark(commit)
            if received.verdict is Verdict.QUARANTINED:
                here.outbox.next.meta[f"evidence/{here.domain}"] = codec.encode(here.log.export_evidence())
            elif received.verdict is Verdict.REFUSED:
                here.notify("warning", "log.refused", peer=peer, refusal=str(received.refusal), reason=received.reason)

    def _mend(self, commit: Commit) -> None:
        """Store a commit again in the place of a damaged one."""
        batch = self._here.outbox.next
        batch.commits.append(commit.row())

        def mended() -> None:
            self._here.log.mended(commit.writer, commit.number)
            self._neighbours.gossip.announce(self._here.now)

        batch.after.append(mended)

    def _apply(self) -> None:
        here = self._here
        wall_ms = here.clock.own_time_ms(here.now)
        for _ in range(COMMITS_PER_TURN):
            if self._blocked or self._rows.full:
                return  # goes on when those facts are here, or when ended tasks have left
            commit = here.log.next_applicable(wall_ms)
            if commit is None:
                self._read_back()
                return
            needed = ids_needed(commit.events)
            if here.table.missing(needed):
                self._blocked = True
                self._loader.require(needed, lambda commit=commit: self._unblocked(commit))  # type: ignore[misc]
                return
            self._fold(commit)
        self._more = True

    def _unblocked(self, commit: Commit) -> None:
        self._blocked = False
        if self._here.log.next_applicable(self._here.clock.own_time_ms(self._here.now)) is commit:
            self._fold(commit)

    def _fold(self, commit: Commit) -> None:
        here = self._here
        here.seal()
        for index, event in enumerate(commit.events):
            here.fold(EventId(commit.stamp, commit.writer, commit.number, index), event)
        here.log.mark_applied(commit)
        here.clock.observe(commit.stamp, here.now)
        here.note(commit)
        self._neighbours.folded(commit)

    def _read_back(self) -> None:
        """Commits that are on disk and no longer in memory come next."""
        needed = self._here.log.needed()
        if needed is not None and not self._reading and self._here.now.mono_ms >= self._read_retry_ms:
            token = self._here.token()
            self._reading.add(token)
            self._here.read_commits(token, *needed)

    def _credit(self, peer: RegionId, size: int) -> None:
        """Let `peer` send as much again once what it sent is durable, or at once if nothing is to be stored."""
        self._taken[peer] = self._taken.get(peer, 0) + size

    def join_rows(self, peer: RegionId, rows: Sequence[TaskRow], size: int) -> None:
        """Rows of a peer's snapshot: joined with what is here, once that is in memory."""

        def join() -> None:
            for row in rows:
                if row.task in self._here.table.damaged:
                    continue  # with what is lost here, these facts would not be all
                try:
                    task = self._here.table.restore(row, counted=False)
                except CrdtSyncError as error:
                    self._here.alarm("snapshot.row_refused", task=row.task.hex(), reason=str(error))
                    continue
                if row.settled and not task.settled and str(self._here.table.view(task).state) == row.state:
                    task.settled = True
                    self._here.table.mark_dirty(task)
                self._here.table.touch(task)
            self._credit(peer, size)

        self._loader.require([row.task for row in rows], join)

    def floor(self) -> Heads:
        """What was dropped from the log here."""
        return self._rows.floor_heads

    def snapshot_state(self) -> bytes:
        """What a snapshot ends with: log state, declarations, documents."""
        return self._rows.snapshot_state()

    def adopt(self, state: bytes) -> None:
        """A peer's snapshot is complete: go on from its heads."""
        self._rows.adopt(state)
        # One batch makes the rows, the fold and the adopted heads durable: an acknowledgement of
        # those heads must not run ahead of the rows that they stand for.
        self._rows.write_all()
        self._rows.start_flush(anew=True)

    # Timers and commands -----------------------------------------------------------------------

    def _timer(self, what: str, which: Any) -> None:
        here = self._here
        mono_ms = here.now.mono_ms
        if what == "flush":
            self._rows.start_flush()
            here.timers.at_mono(mono_ms + self.settings.flush_ms, (what, which))
        elif what == "compact":
            self._rows.drop_old()
            here.timers.at_mono(mono_ms + COMPACT_MS, (what, which))
        elif what == "takeover":
            if self._folded and self._neighbours.may_touch_old():
                self._more |= self._handover.take_over()
            here.timers.at_mono(mono_ms + TAKEOVER_MS, (what, which))
        elif what == "lanes":
            self._duties.check_lanes()
            here.timers.at_mono(mono_ms + LANES_MS, (what, which))
        elif what in ("ready", "deadline"):
            task = here.table.get(which)
            if task is None:
                return
            if what == "deadline":
                self._duties.expire(task)
            here.table.touch(task)
        elif what == "timeout":
            self._dispatcher.time_out(EventId(*which))
        elif what == "orphan":
            running = self._workers.running.get(EventId(*which))
            if running is not None and running.worker is None:
                self._dispatcher.lose(EventId(*which), "restart")
        elif what == "worker":
            self._worker_requests.check(which)

    def _do(self, command: Any, ticket: Any) -> None:
        try:
            handler = self._handlers.get(type(command))
            if handler is None:
                raise NotImplementedYetError(f"{self.settings.region} does not know {type(command).__name__}")
            handler(self, command, ticket)
        except CrdtSyncError as error:
            self._here.emit(Reply(ticket, None, error.record()))

    def _drain(self, command: c.Drain, ticket: Any) -> None:
        self._handover.draining = not command.off
        self._review_all()
        waiting = sum(1 for t in self._here.table if not t.ended and self._here.table.view(t).owner == self._here.me)
        self._requests.reply(
            ticket,
            {
                "region": self._here.me,
                "draining": self._handover.draining,
                "running": len(self._workers.running),
                "waiting": waiting,
            },
        )

    def _status(self, _command: c.Status, ticket: Any) -> None:
        here = self._here
        self._requests.reply(
            ticket,
            {
                "region": here.me,
                "writer": here.writer,
                "cluster": self.settings.cluster,
                "members": list(self.settings.members),
                "digest": here.table.digest.hex(),
                "heads": dict(here.log.applied.items()),
                "tasks_in_memory": len(here.table),
                "ready": len(self._ready),
                "running": len(self._workers.running),
                "draining": self._handover.draining,
                "workers": [
                    {"id": w.id, "app": w.app, "tasks": sorted(w.names), "running": len(w.running), "free": w.free}
                    for w in self._workers.all()
                ],
                "gaps": [list(gap) for gap in here.log.gaps()],
                "held_back": [
                    {"writer": w.writer, "number": w.number, "wait": str(w.wait), "until_ms": w.until_ms}
                    for w in here.log.waiting()
                ],
                "quarantined": sorted(here.log.quarantined),
                "commit_bytes": here.commit_bytes,
                "skew_ms": here.clock.skew_ms(here.now),
                "recovering": sorted(self._neighbours.unanswered),
                "alarms": list(here.alarms.values()),
                "damaged": [task.hex() for task in sorted(here.table.damaged)[:DAMAGED_SHOWN_MAX]],
            },
        )

    def _regions(self, _command: c.ListRegions, ticket: Any) -> None:
        self._requests.reply(ticket, self._neighbours.regions())

    def _links(self, _command: c.ListLinks, ticket: Any) -> None:
        self._requests.reply(ticket, self._neighbours.links())

    def _cut(self, command: c.CutLinks, ticket: Any) -> None:
        self._neighbours.cut(command.regions)
        self._requests.reply(ticket, self._neighbours.links())

    def _heal(self, command: c.HealLinks, ticket: Any) -> None:
        self._neighbours.heal(command.regions)
        self._requests.reply(ticket, self._neighbours.links())

    _handlers: Final[dict[type, Callable[[Replica, Any, Any], None]]] = {
        c.Submit: lambda self, command, ticket: self._requests.submit(command, ticket),
        c.Cancel: lambda self, command, ticket: self._requests.cancel(command, ticket),
        c.Requeue: lambda self, command, ticket: self._requests.requeue(command, ticket),
        c.Edit: lambda self, command, ticket: self._requests.edit(command, ticket),
        c.Describe: lambda self, command, ticket: self._requests.describe(command, ticket),
        c.History: lambda self, command, ticket: self._requests.history(command, ticket),
        c.Explain: lambda self, command, ticket: self._requests.explain(command, ticket),
        c.Await: lambda self, command, ticket: self._requests.wait(command, ticket),
        c.Watch: lambda self, command, ticket: self._requests.watch(command, ticket),
        c.ListTasks: lambda self, command, ticket: self._requests.list_tasks(command, ticket),
        c.ListConflicts: lambda self, command, ticket: self._requests.list_conflicts(command, ticket),
        c.ShowConflict: lambda self, command, ticket: self._requests.show_conflict(command, ticket),
        c.ListRegions: _regions,
        c.ListLinks: _links,
        c.CutLinks: _cut,
        c.HealLinks: _heal,
        c.Drain: _drain,
        c.Status: _status,
        c.ShowDocument: lambda self, command, ticket: self._documents.show(command, ticket),
        c.EditDocument: lambda self, command, ticket: self._documents.edit(command, ticket),
        c.WorkerHello: lambda self, command, ticket: self._worker_requests.hello(command, ticket),
        c.Heartbeat: lambda self, command, ticket: self._worker_requests.heartbeat(command, ticket),
        c.RecordEffect: lambda self, command, ticket: self._worker_requests.record_effect(command, ticket),
        c.SaveCheckpoint: lambda self, command, ticket: self._worker_requests.save_checkpoint(command, ticket),
        c.Complete: lambda self, command, ticket: self._worker_requests.complete(command, ticket),
        c.WorkerDraining: lambda self, command, ticket: self._worker_requests.draining(command, ticket),
        c.WorkerGone: lambda self, command, _ticket: self._worker_requests.gone(command),
    }

    # Helpers -----------------------------------------------------------------------------------

    def _is_decided(self, task: Task) -> bool:
        return task.settled or undoing.is_decided(task.facts, self._here.table.view(task), self._here.stable)

    def _lanes_changed(self) -> None:
        """Workers came or went: offers, ours or to us, are looked at again. What is ready stays so."""
        for task_id in self._handover.offers:
            task = self._here.table.get(task_id)
            if task is not None:
                self._here.table.touch(task)

    def _review_all(self) -> None:
        """Older work may be touched now, or nothing may be started any more: look at everything."""
        for task in self._here.table:
            if not task.ended:
                self._here.table.touch(task)

    def _answer_watcher(self, ticket: Any, task: Task) -> None:
        self._requests.reply(ticket, self._records.task(task))

    def _tell_watcher(self, ticket: Any, task: Task) -> None:
        record = {
            "id": task.id.hex(),
            "state": str(task.state),
            "name": view.submitted.name if (view := self._here.table.view(task)).submitted is not None else "",
            "settled": task.settled,
            "at_ms": self._here.now.wall_ms,
        }
        self._requests.reply(ticket, record, final=False)


__all__ = ["Replica", "region_of"]
