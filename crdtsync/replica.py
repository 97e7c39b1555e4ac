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
from collections.abc import Iterable, Mapping
from typing import Any, Final

from crdtsync import undoing
from crdtsync.clock import Now, stamp_ms
from crdtsync.clock_watch import ClockWatch, Verdict
from crdtsync.commands import ShowClock, Status
from crdtsync.coordination.decisions import Decisions
from crdtsync.coordination.exclusive import Exclusive
from crdtsync.coordination.sessions import Sessions
from crdtsync.desk import Desk
from crdtsync.document_requests import DocumentRequests
from crdtsync.duties import Duties
from crdtsync.effects import DocumentRow, Effect, Page, Reply, TaskRow
from crdtsync.errors import CorruptLogError, OverloadedError
from crdtsync.events import WriterOpened
from crdtsync.identifiers import EventId, RegionId, TaskId, WriterId, incarnation_of, node_of
from crdtsync.inheritance import Inheritance
from crdtsync.intake import Intake
from crdtsync.limit_requests import LimitRequests
from crdtsync.loader import Loader
from crdtsync.neighbours import Neighbours
from crdtsync.records import Records
from crdtsync.region import RegionState
from crdtsync.reissuing import Intent, Reissuing
from crdtsync.requests import Requests
from crdtsync.rows import Rows
from crdtsync.scheduling.dispatch import Dispatcher
from crdtsync.scheduling.handover import Handover
from crdtsync.scheduling.limits import Limits
from crdtsync.scheduling.limits import Link as LimitLink
from crdtsync.scheduling.ready import ReadyQueue
from crdtsync.scheduling.workers import Workers
from crdtsync.settings import Settings
from crdtsync.settlement import Settlement
from crdtsync.tasks import Task
from crdtsync.watchers import Watchers
from crdtsync.worker_requests import WorkerRequests
from crdtsync.workflow.dependencies import Dependencies

LOOKING: Final = frozenset((ShowClock, Status))  # answered also while the node repairs its log
QUEUED_MAX: Final = 10_000  # commands that may wait until the log is folded after a start
TIMERS_PER_TURN: Final = 1_000
PAUSE_MS: Final = 2_000  # inputs further apart: the process was stopped, or the machine slept
DOUBT_MS: Final = 600_000  # since the last stamp on disk: after so long, or before it, the wall clock may be wrong
TURN_MS: Final = 1  # when there is more to do than one turn allows: the next one follows at once
FOLLOW_MS: Final = 2  # what follows from a commit waits so long for an input whose turn serves it as well
COMPACT_MS: Final = 2_000  # how often commits past retention are looked for
ORPHAN_RETRY_MS: Final = 500  # while older attempts may not be ended yet
LANES_MS: Final = 500  # how often it is judged whether work waits here that no worker can run
TAKEOVER_MS: Final = 250  # how often silence is judged
DAMAGED_ADVICE: Final = "stop this node, move its data away, start it: it fetches what its peers hold"


class Replica:
    """One region's copy of the state, and what it does about it.

    Args:
        writer: This incarnation's identity, never used before.
        meta: The store's meta entries, empty on a fresh disk.
        derive: Believe no task row on disk and make all of them again from the log, which must be whole.
    """

    _neighbours: Neighbours

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
        intent = Intent.of(meta)
        if intent is not None and stamp_ms(bound) > now.wall_ms + settings.max_skew_ms:
            bound = 0  # stamps of a clock that was far ahead: they are about to be replaced
        here = self._here = RegionState(settings, writer, now, clock_bound=bound)
        self.settings = settings
        self.writer = writer
        self._loader = Loader(here.table, here.outbox, here.token)
        self._workers = Workers()
        self._ready = ReadyQueue()
        self._dependencies = Dependencies(here.table, self._loader.require, self._is_decided)
        self._settlement = Settlement(here, self._loader.require, full=lambda: self._rows.full)
        self._rows = Rows(here, self._settlement)
        self._intake = Intake(
            here,
            self._rows,
            self._loader.require,
            folded=lambda commit: self._neighbours.folded(commit),  # noqa: PLW0108 - made below
            announce=lambda: self._neighbours.gossip.announce(here.now),
        )
        here.restore_members(meta)
        self._neighbours = Neighbours(
            here, self._intake, restored=not settings.trust_disk, open_writer=self._open_writer
        )
        self._limits = Limits(
            here,
            self._workers,
            self._ready,
            trusted=self._neighbours.may_use_rights,
            may_touch_old=self._neighbours.may_touch_old,
            all_know=self._neighbours.all_know_limits,
            links=lambda: [LimitLink(*link) for link in self._neighbours.readers()],
            tell=self._neighbours.demand,
        )
        self._neighbours.limits = self._limits
        self._rows.limits = self._limits
        self._neighbours.restore(meta)
        self.leases = self._neighbours.leases
        self._handover = Handover(
            here,
            last_heard=self._neighbours.last_heard,
            serves=self._workers.serves,
            reachable=self._neighbours.reachable,
        )
        self._exclusive = Exclusive(
            self._neighbours.leases,
            settings.namespace,
            touch=self._touch,
            serves=self._workers.serves,
            starts=lambda: here.stamps,
        )
        self._neighbours.leases.listen(self._exclusive.changed)
        self._neighbours.leases.in_use = self._exclusive.in_use
        self._decisions = Decisions(here, self._exclusive.valid)
        self._dispatcher = Dispatcher(
            here,
            self._workers,
            self._ready,
            self._dependencies,
            self._handover.present,
            self._neighbours.catching_up_since_ms,
            self._exclusive,
            self._decisions,
            self._limits,
        )
        self._records = Records(here, self._workers, self._dependencies, self._handover, self._exclusive, self._limits)
        self._watchers = Watchers(here, self._records)
        self._inheritance = Inheritance(here, self._loader.require, may_touch_old=self._neighbours.may_touch_old)
        self._inheritance.restore(meta.get("swept"))
        self._duties = Duties(
            here,
            workers=self._workers,
            ready=self._ready,
            dependencies=self._dependencies,
            dispatcher=self._dispatcher,
            exclusive=self._exclusive,
            handover=self._handover,
            limits=self._limits,
            watchers=self._watchers,
            require=self._loader.require,
            ended=self._rows.ended,
            may_touch_old=self._neighbours.may_touch_old,
            runs_ahead=self._neighbours.runs_ahead,
            inheritance=self._inheritance,
        )
        self._requests = Requests(here, self._watchers, self._records, self._loader.require, flush=self._rows.write_all)
        limit_requests = LimitRequests(here, self._limits, all_know=self._neighbours.all_know_limits)
        self._worker_requests = WorkerRequests(
            here,
            self._workers,
            self._dispatcher,
            self._loader.require,
            lanes_changed=self._lanes_changed,
            declare_limits=limit_requests.declare,
        )
        self._clock_watch = ClockWatch(
            here.me,
            here.clock,
            offsets=lambda now: self._neighbours.offsets(here.others, now),
            samples=lambda: self._neighbours.gossip.counters["clock_samples"],
            alarm=here.alarm,
            calm=here.calm,
            notify=here.notify,
        )
        self._reissuing = Reissuing(
            here,
            self._loader.require,
            judgement=lambda: self._clock_watch.judgement,
            open_writer=self._write_opening,
            intent=intent,
        )
        self._sessions = Sessions(here, self.leases, self._requests.reply, self._requests.refuse)
        self._desk = Desk(
            here,
            requests=self._requests,
            worker_requests=self._worker_requests,
            documents=DocumentRequests(here, self._loader.require),
            limits=limit_requests,
            neighbours=self._neighbours,
            handover=self._handover,
            workers=self._workers,
            ready=self._ready,
            clock_watch=self._clock_watch,
            sessions=self._sessions,
            reissuing=self._reissuing,
        )
        self._started = False
        self._folded = False  # everything that the disk held at start is folded
        self._opened = False  # our first commit is written
        # Time seems to have jumped since the last start: no stamp before a majority has been asked, if there is one.
        since_ms = here.time_ms - stamp_ms(bound)
        self._doubtful = bool(bound and here.others and not 0 <= since_ms <= DOUBT_MS)
        self._more = False
        self._turn_due = False  # commands were carried out since the last turn, or a batch became durable
        self._turn_by_ms = 0  # then: when it must have been made
        self._stable, self._was_full = here.stability.stable(), False  # as of the last turn
        self._queue: deque[tuple[Any, Any]] = deque()
        self._was_trusted = False
        self._was_ahead = False
        self._rows.restore(meta, derive=derive)

    # Start -------------------------------------------------------------------------------------

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
        here.heard_from_ms = now.mono_ms
        self._started = True
        here.timers.at_mono(now.mono_ms + self.settings.flush_ms, ("flush", ""))
        here.timers.at_mono(now.mono_ms + COMPACT_MS, ("compact", ""))
        here.timers.at_mono(now.mono_ms + TAKEOVER_MS, ("takeover", ""))
        here.timers.at_mono(now.mono_ms + self.settings.start_grace_ms, ("trust", ""))
        here.timers.at_mono(now.mono_ms + LANES_MS, ("lanes", ""))
        self._run()

    def _may_open(self) -> bool:
        """Whether the first stamp of this incarnation may be taken: it must not come from a clock that is wrong."""
        verdict = self._clock_watch.verdict
        if self._doubtful and verdict in (Verdict.UNMEASURED, Verdict.SPLIT):  # with one more answer it may be told
            return self._here.now.mono_ms >= self._here.started.mono_ms + self.settings.start_grace_ms
        return not self._clock_watch.stopped

    def _open_writer(self) -> None:
        self._opened = self._here.stamps = True
        self._write_opening()

    def _write_opening(self) -> None:
        """The first commit of this incarnation: which of ours it follows (rules.md, Incarnation)."""
        here = self._here
        known = here.log.have if self._reissuing.pending else here.log.applied
        own = [w for w in known if node_of(w) == node_of(self.writer)]
        last = max(own, key=lambda w: (incarnation_of(w), w), default=None)
        opened = here.write(WriterOpened(last or "", known[last] if last else 0, 0))
        self._neighbours.opened(frozenset(own), opened.stamp)
        self._duties.first_own_stamp = opened.stamp
        here.seal()

    # Inputs ------------------------------------------------------------------------------------

    def connected(self, peer: str, now: Now) -> None:
        """A link to `peer` is up. At most one link per peer region at a time."""
        self._at(now)
        self._neighbours.connected(RegionId(peer), now)
        self._run()

    def disconnected(self, peer: str, now: Now) -> None:
        self._at(now)
        self._neighbours.disconnected(RegionId(peer), now)
        self._run()

    def allowed(self, peer: str) -> bool:
        """Whether a link to `peer` may be dialled or accepted at all: a member, and not cut off."""
        return self._neighbours.gossip.allowed(RegionId(peer))

    def knows(self, peer: str) -> bool:
        """Whether `peer` is, or was, a region of this cluster. Who was forgotten is told so when it dials."""
        return RegionId(peer) in self._here.membership.known

    def peers(self) -> dict[RegionId, str]:
        """To whom links are to be kept, each with its URL where the membership names one; "" is the configuration's."""
        membership = self._here.membership
        return {region: membership.urls.get(region, "") for region in membership.linked if region != self._here.me}

    def receive(self, peer: str, message: bytes, now: Now) -> None:
        """One frame from a connected peer. Malformed ones cost that link, and nothing else."""
        self._at(now)
        if self._neighbours.receive(RegionId(peer), message, now) or self._is_turn_due():
            self._run()  # else it was a ping, or an acknowledgement that settles nothing: most frames are

    def submit(self, command: Any, now: Now, ticket: Any = None) -> None:
        """One command; its answers are `Reply` effects with `ticket`.

        What follows from it (reviews, claims) is done when effects are taken, once for all commands
        that came together: a turn costs as much as what most commands do.
        """
        self._at(now)
        if not self._answers and not (self._folded and type(command) in LOOKING):
            if len(self._queue) >= QUEUED_MAX:
                error = OverloadedError("the node is still reading its log: ask again in a moment")
                self._here.urgent(Reply(ticket, None, error.record()))
            else:
                self._queue.append((command, ticket))
        else:
            self._desk.do(command, ticket)
        self._turn_due, self._turn_by_ms = True, 0

    def forget(self, ticket: Any) -> None:
        """Whoever held `ticket` is gone: nothing more is sent to it."""
        self._watchers.forget(ticket)
        self._sessions.forget(ticket)

    def leave(self, now: Now) -> None:
        """This node is about to stop: give back every lease under which nothing goes on."""
        self._here.now = now
        self.leases.release_all(lambda scope: self.leases.in_use(scope) or self._sessions.holds(scope))

    def persisted(self, batch: int, now: Now) -> None:
        """The batch is durable: what waited for it leaves, peers hear of it.

        What follows from that is done when effects are taken, or a moment later: see `take_released`.
        """
        self._at(now)
        outbox = self._here.outbox
        outbox.persisted(batch)
        self._turn_due = True
        idle = outbox.next.empty and not outbox.next.after and not self._here.unsaved
        self._turn_by_ms = now.mono_ms + (FOLLOW_MS if idle else 0)

    def loaded(self, token: int, rows: Iterable[TaskRow], now: Now, *, damaged: Iterable[TaskId] = ()) -> None:
        """The rows of one `Load`; `damaged` names those that are there and unreadable.

        Raises:
            CorruptLogError: See duty 5.
        """
        self._at(now)
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
        self._at(now)
        if damaged is not None:
            self._intake.damaged(*damaged)
        found = list(blobs)
        parts = (self._intake, self._settlement, self._reissuing)
        if not any(part.commits_read(token, found) for part in parts):
            self._neighbours.gossip.commits_read(token, found, now)
        self._run()

    def rows_read(self, token: int, rows: Iterable[TaskRow], now: Now, *, damaged: Iterable[TaskId] = ()) -> None:
        """The rows of one `ReadRows`, or `damaged`: then the next one is unreadable, and no snapshot can be sent.

        Raises:
            CorruptLogError: See duty 5.
        """
        self._at(now)
        damaged = tuple(damaged)
        self._rows_damaged(damaged)
        found = list(rows)
        if damaged:
            if not self._inheritance.rows_damaged(token):
                self._neighbours.gossip.rows_damaged(token)
        elif not self._inheritance.rows_read(token, found):
            self._neighbours.gossip.rows_read(token, found, now)
        self._run()

    def queried(self, token: int, page: Page, now: Now) -> None:
        """The answer to one `Query`.

        Raises:
            CorruptLogError: See duty 5.
        """
        self._at(now)
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

    def tick(self, now: Now) -> None:
        self._at(now)
        due = self._fire()
        self._neighbours.gossip.tick(now)
        if due or self._is_turn_due():
            self._run()  # else only gossip had something to do

    # Outputs -----------------------------------------------------------------------------------

    def next_deadline_ms(self) -> int | None:
        """When `tick` is next worth calling, on the monotonic clock."""
        here = self._here
        mono_ms = here.now.mono_ms
        if self._turn_due:
            return max(mono_ms, self._turn_by_ms)
        if self._more:
            return mono_ms + TURN_MS
        first_ms = here.timers.next_mono_ms(here.time_ms, mono_ms)
        dues = [self._neighbours.gossip.next_deadline_ms()]
        if self._folded:  # before that nothing is done for these, however due
            dues += (self._neighbours.assembly.next_deadline_ms(), self.leases.next_deadline_ms())
        for due_ms in dues:
            if due_ms is not None and (first_ms is None or due_ms < first_ms):
                first_ms = due_ms
        release_ms = here.log.next_deadline_ms()
        if release_ms is not None:
            held_ms = mono_ms + max(1, release_ms - here.time_ms)
            first_ms = held_ms if first_ms is None else min(first_ms, held_ms)
        return first_ms

    def take_released(self) -> list[Effect]:
        """What waited for the disk alone. Whoever waited for that need not wait for what follows from it as well: take
        the other effects when the next input comes, or `next_deadline_ms`: mostly the same turn serves both."""
        self.leases.flush()
        for effect in self._neighbours.take_effects():
            self._here.outbox.urgent(effect)
        return self._here.outbox.take()

    def take_effects(self) -> list[Effect]:
        """What is to be done, in order. A second call returns nothing new."""
        if self._turn_due:
            self._run()
        outbox = self._here.outbox
        if outbox.under_way is None and self._started:
            if self._here.unsaved or not outbox.next.empty or self._rows.flushing or self._rows.crowded:
                self._close_batch()
            elif self._intake.taken:
                taken, self._intake.taken = self._intake.taken, {}
                for peer, size in taken.items():
                    self._neighbours.gossip.taken(peer, size, self._here.now)
        self.leases.flush()
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
        have, applied = here.log.have, here.log.applied
        digest = bytes(here.table.digest) if here.others else b""  # nobody to compare it with
        fresh, self._intake.fresh = self._intake.fresh, []
        taken, self._intake.taken = self._intake.taken, {}

        def durable() -> None:
            if bound is not None:
                here.clock.bound_persisted(bound)
            here.log.mark_durable(have, applied)
            self._neighbours.durable(applied, digest, fresh, taken)

        batch.after.insert(0, durable)
        here.outbox.close()

    # One turn ----------------------------------------------------------------------------------

    @property
    def _answers(self) -> bool:
        """Whether commands are dealt with by now: also where they will be refused, and where reading is all there is."""
        if self._reissuing.pending:
            return False  # what is here is not yet what it will be
        return self._opened or (self._folded and (self._clock_watch.stopped or not self._here.is_member))

    def _is_turn_due(self) -> bool:
        """Whether a turn is worth its price although no input asks for one. Whatever else time alone brings about has
        a timer."""
        here = self._here
        lease_ms, assembly_ms = self.leases.next_deadline_ms(), self._neighbours.assembly.next_deadline_ms()
        return (
            self._turn_due
            or self._more
            or (lease_ms is not None and lease_ms <= here.now.mono_ms)
            or (assembly_ms is not None and assembly_ms <= here.now.mono_ms)
            or bool(self._decisions)  # a majority may have acknowledged what is not stable yet
            or self._was_full  # memory may have room again
            or not self._opened
            or here.stability.stable() is not self._stable
            or here.log.next_deadline_ms() is not None
        )

    def _run(self) -> None:
        """After each input: apply, settle, review, dispatch, until there is nothing left or the turn is over."""
        if not self._started:
            return
        self._turn_due = False
        self._stable, self._was_full = self._here.stability.stable(), self._rows.full
        self._more = self._intake.apply()
        if not self._folded and self._nothing_to_fold():
            self._folded = True
            self._here.deriving = self._here.restoring = False
            self._here.reform()
            self._neighbours.start()
        if self._folded and self._may_go_on():
            if not self._opened and self._here.is_member and self._may_open():
                self._open_writer()
            while self._queue and self._answers:
                self._desk.do(*self._queue.popleft())
            self._neighbours.recover()
            self._neighbours.assembly.advance()
            self.leases.advance()
            # A snapshot that comes in takes both back for a while.
            trusted, ahead = self._neighbours.may_touch_old(), self._neighbours.runs_ahead()
            if (trusted and not self._was_trusted) or (self._was_ahead and not ahead):
                self._here.table.touch_all()
            self._was_trusted, self._was_ahead = trusted, ahead
            self._more |= self._settlement.advance()
            if self._neighbours.takes_part:
                self._decisions.advance()
                self._inheritance.advance()
                self._dispatcher.release()
            if not self._neighbours.lost:
                self._duties.review_touched()
            if self._neighbours.takes_part:
                self._limits.act()
                if self._here.table.has_touched:  # a limit came or went: tasks change their lanes before any starts
                    self._duties.review_touched()
                self._dispatcher.dispatch()
                self._limits.tell_peers()
                self._duties.review_touched()
                self._more |= self._here.table.has_touched
            self._more |= self._dispatcher.could_go_on
        self._drain_notes()

    def _may_go_on(self) -> bool:
        """Whether nothing has to be repaired first. Its end is the start of this incarnation's ordinary life."""
        if not self._reissuing.pending:
            return True
        if not self._here.is_member or not self._reissuing.advance():
            return False
        self._opened = self._here.stamps = not self._clock_watch.stopped
        self._duties.first_own_stamp = self._here.clock.tick(self._here.now)
        self._here.table.touch_all()
        self._duties.review_touched()  # before workers are heard: what they run is known by its new place
        return True

    def _drain_notes(self) -> None:
        here = self._here
        for commit in here.sealed:
            self._intake.sealed(commit)
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
        return self._intake.idle and not self._more

    # Time ------------------------------------------------------------------------

    def _at(self, now: Now) -> None:
        """An input came at `now`. After a pause of our own, whatever became due meanwhile comes before it (TIME-2)."""
        here = self._here
        pause_ms = now.mono_ms - here.now.mono_ms
        here.now = now
        if self._started and pause_ms > PAUSE_MS:
            here.heard_from_ms = now.mono_ms  # what others said meanwhile is still to be read: they were not silent
            self._workers.forgive(pause_ms)
            here.notify("info", "node.woke", pause_ms=pause_ms)
            self._turn_due |= self._fire()
        if self._started and self._clock_watch.due(now):
            self._look_at_clocks()

    def _look_at_clocks(self) -> None:
        """Judge our own clock, and stop or begin to stamp."""
        here = self._here
        self._clock_watch.look(here.now)
        before, here.stamps = here.stamps, self._opened and not self._clock_watch.stopped
        if here.stamps and not before:
            self._worker_requests.resume()
            here.table.touch_all()
        self._turn_due |= here.stamps != before

    def _fire(self) -> bool:
        """Do what is due. False if nothing is."""
        due = self._here.timers.due(self._here.time_ms, self._here.now.mono_ms, TIMERS_PER_TURN)
        for what, which in due:
            self._timer(what, which)
        return bool(due)

    # Timers -----------------------------------------------------------------------

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
            if self._neighbours.takes_part:
                self._duties.check_lanes()
                self._exclusive.review(mono_ms)
            self._limits.inherit_stopped()
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
                if self._neighbours.may_touch_old():
                    self._dispatcher.lose(EventId(*which), "restart")
                else:  # its end may stand in commits of ours that only peers have
                    here.timers.at_mono(mono_ms + ORPHAN_RETRY_MS, (what, which))
        elif what == "session":
            self._sessions.check(which)
        elif what.startswith("limit."):
            self._limits.due(which)
        elif what == "worker":
            self._worker_requests.check(which)

    # Helpers -----------------------------------------------------------------------------------

    def _is_decided(self, task: Task) -> bool:
        return task.settled or undoing.is_decided(task.facts, self._here.table.view(task), self._here.stable)

    def _touch(self, task_id: TaskId) -> None:
        task = self._here.table.get(task_id)
        if task is not None:
            self._here.table.touch(task)

    def _lanes_changed(self) -> None:
        """Workers came or went: offers, ours or to us, are looked at again. What is ready stays so."""
        for task_id in self._handover.offers:
            task = self._here.table.get(task_id)
            if task is not None:
                self._here.table.touch(task)
