"""What workers tell a replica: that they are there, what their attempts recorded, how they ended."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias

from crdtsync import commands as c
from crdtsync import lifecycle
from crdtsync.coordination.exclusive import policy_of
from crdtsync.effects import Reply, Stop
from crdtsync.errors import (
    CrdtSyncError,
    InvalidRequestError,
    LostLeaseError,
    OverloadedError,
    PayloadTooLargeError,
    RemoteProtocolError,
    UnknownAttemptError,
)
from crdtsync.events import KIND_OF, Checkpointed, Declared, EffectRecorded, Options
from crdtsync.identifiers import AttemptId, EventId, WorkerId
from crdtsync.log.shapes import check_events
from crdtsync.protocol.codec import encode_value
from crdtsync.region import RegionState
from crdtsync.scheduling.dispatch import STAMPS_RETRY_MS, Dispatcher
from crdtsync.scheduling.workers import Workers
from crdtsync.tasks import Task

DECLARATIONS_MAX: Final = 10_000  # task names in the cluster
CREDITS_MAX: Final = 10_000
NAME_CHARS_SHOWN: Final = 100  # of a name in an error
HandlerCommand: TypeAlias = c.Complete | c.RecordEffect | c.SaveCheckpoint
EFFECTS_PER_ATTEMPT_MAX: Final = 10_000


class WorkerRequests:
    def __init__(
        self,
        here: RegionState,
        workers: Workers,
        dispatcher: Dispatcher,
        require: Callable[..., None],
        *,
        lanes_changed: Callable[[], None],
        declare_limits: Callable[[str, Iterable[c.LimitDeclaration]], None],
    ) -> None:
        self._here = here
        self._workers = workers
        self._dispatcher = dispatcher
        self._require = require
        self._lanes_changed = lanes_changed
        self._declare_limits = declare_limits
        # While nothing may be stamped: what handlers report, in order, and whose declarations are to be written.
        self._held: dict[tuple[Any, ...], tuple[HandlerCommand, Any]] = {}
        self._greetings: dict[WorkerId, c.WorkerHello] = {}

    @property
    def held(self) -> int:
        """How many reports of handlers wait until this region's clock is right."""
        return len(self._held)

    def hold(self, command: HandlerCommand, ticket: Any) -> None:
        """Keep what a handler reports until it may be written: its worker waits for the answer.

        An end is always kept, there is at most one of each running attempt. Sent again, a report takes the place of
        the first. A node that dies meanwhile has acknowledged none: workers send them again (docs/decisions/0010).
        """
        key: tuple[Any, ...] = (command.attempt,)
        if isinstance(command, c.RecordEffect):
            key = (command.attempt, "effect", command.name)
        elif isinstance(command, c.SaveCheckpoint):
            key = (command.attempt, "checkpoint", command.index)
        if key not in self._held and len(self._held) >= HELD_MAX and not isinstance(command, c.Complete):
            self._refuse(
                ticket, OverloadedError(f"{HELD_MAX} reports wait until the clock of {self._here.me} is right")
            )
            return
        self._held[key] = (command, ticket)

    def resume(self) -> None:
        """The clock is right: write what was held, before anything that would give up on those attempts."""
        held, self._held = self._held, {}
        for command, ticket in held.values():
            match command:
                case c.Complete():
                    self.complete(command, ticket)
                case c.RecordEffect():
                    self.record_effect(command, ticket)
                case c.SaveCheckpoint():
                    self.save_checkpoint(command, ticket)
        greetings, self._greetings = self._greetings, {}
        for hello in greetings.values():
            self._declare_all(hello)
            self._assign_again(hello)

    def _reply(self, ticket: Any, value: Any) -> None:
        self._here.emit(Reply(ticket, value))

    def _refuse(self, ticket: Any, error: CrdtSyncError) -> None:
        self._here.emit(Reply(ticket, None, error.record()))

    # Presence ----------------------------------------------------------------------------------

    def hello(self, command: c.WorkerHello, ticket: Any) -> None:
        here = self._here
        if not 1 <= command.credits <= CREDITS_MAX:
            self._refuse(ticket, InvalidRequestError(f"credits are between 1 and {CREDITS_MAX}"))
            return
        if len(here.declared) + len(command.tasks) > DECLARATIONS_MAX:
            self._refuse(ticket, InvalidRequestError(f"a cluster declares at most {DECLARATIONS_MAX} tasks"))
            return
        try:
            for task in command.tasks:
                self._declared(command.app, task)
            self._declare_limits(command.app, command.limits)
        except CrdtSyncError as error:
            self._refuse(ticket, error)
            return
        worker = self._workers.hello(command, here.now.mono_ms)
        if here.stamps:
            self._declare_all(command)
        stop: list[AttemptId] = []
        for ref in command.running:
            attempt = self._named(ref)
            task_id = self._dispatcher.task_of(attempt)
            held = None if task_id is None else here.table.get(task_id)
            if held is not None and attempt in here.table.view(held).open_attempts:
                self._workers.adopt(worker, attempt, held.id, EventId(*ref))  # type: ignore[arg-type]
                here.timers.cancel(("orphan", attempt))
            else:
                stop.append(EventId(*ref))  # type: ignore[arg-type]
        here.timers.cancel(("worker", worker.id))
        self._expect(worker.id)
        reply = {
            "region": here.me,
            "writer": here.writer,
            "heartbeat_ms": here.settings.heartbeat_ms,
            "stop": [tuple(attempt) for attempt in stop],
        }
        self._reply(ticket, reply)
        for attempt in worker.running:
            reason = self._workers.running[attempt].stop
            if reason:  # it was asked to stop while nobody was there to be told
                here.emit(Stop(worker.id, self._workers.told(attempt), reason))
        if here.stamps:
            self._assign_again(command)
        else:
            self._greetings[worker.id] = command
        here.notify("info", "worker.connected", worker=worker.id, app=worker.app, tasks=sorted(worker.names))
        self._lanes_changed()

    def _declare_all(self, command: c.WorkerHello) -> None:
        for task in command.tasks:
            self._declare(command.app, task)

    def _assign_again(self, command: c.WorkerHello) -> None:
        worker = self._workers.get(WorkerId(command.worker))
        if worker is not None:
            self._dispatcher.assign_again(worker, frozenset(map(self._named, command.running)))

    def _declared(self, app: str, task: c.TaskDeclaration) -> Declared:
        """The fact that declares a task. Raises InvalidRequestError if others could not read it."""
        options = Options(
            partition=policy_of(task.partition, task.scope, keyed=False),
            attempts=task.attempts,
            lost_max=task.lost_max,
            backoff_ms_base=task.backoff_ms_base,
            backoff_ms_max=task.backoff_ms_max,
            backoff_factor_permille=task.backoff_factor_permille,
            cancel=task.cancel or ("wins" if task.compensate else "loses"),
            compensate=task.compensate,
            timeout_ms=task.timeout_ms,
            unserved_after_ms=task.unserved_after_ms,
            window_ms=min(task.window_ms, self._here.settings.retention_ms),
            non_retryable=task.non_retryable,
        )
        declared = Declared(task.name, app, task.queue, task.priority, options)
        try:
            check_events(((KIND_OF[Declared], *declared[:-1], tuple(options)),))
        except RemoteProtocolError as error:
            raise InvalidRequestError(f"task {task.name[:NAME_CHARS_SHOWN]!r} cannot be declared: {error}") from error
        return declared

    def _declare(self, app: str, task: c.TaskDeclaration) -> None:
        declared = self._declared(app, task)
        known = self._here.declared.get(task.name, {}).get(self._here.me)
        if known is None or known[1] != declared:
            self._here.write(declared)

    def heartbeat(self, command: c.Heartbeat, ticket: Any) -> None:
        worker = self._workers.get(WorkerId(command.worker))
        if worker is None:
            self._refuse(ticket, UnknownAttemptError("this worker is not known here: say hello again"))
            return
        worker.heard_ms = self._here.now.mono_ms
        for ref, progress in command.progress:
            running = self._workers.running.get(self._named(ref))
            if running is not None:
                running.progress = progress[:PROGRESS_CHARS_MAX]
        self._expect(worker.id)
        left_ms = {attempt: self._dispatcher.lease_left_ms(attempt) for attempt in worker.running}
        leases = [(tuple(self._workers.told(attempt)), left) for attempt, left in left_ms.items() if left]
        self._reply(ticket, {"leases": leases} if leases else {})

    def _expect(self, worker: WorkerId) -> None:
        """Look again when the worker has been silent for too long."""
        after = self._here.settings.worker_lost_after_ms
        self._here.timers.at_mono(self._here.now.mono_ms + after, ("worker", worker))

    def check(self, worker_id: WorkerId) -> None:
        """A worker's time is up: what it ran is lost, unless it has been heard of since."""
        here = self._here
        worker = self._workers.get(worker_id)
        if worker is None:
            return
        if not here.stamps:
            here.timers.at_mono(here.now.mono_ms + STAMPS_RETRY_MS, ("worker", worker_id))
            return
        silent_ms = here.now.mono_ms - worker.heard_ms
        if worker.connected and silent_ms < here.settings.worker_lost_after_ms:
            here.timers.at_mono(worker.heard_ms + here.settings.worker_lost_after_ms, ("worker", worker_id))
            return
        lost = list(worker.running)
        self._workers.remove(worker_id)
        here.notify("warning", "worker.lost", worker=worker_id, attempts=len(lost), silent_ms=silent_ms)
        for attempt in lost:
            self._dispatcher.lose(attempt, "crash")
        self._lanes_changed()

    def draining(self, command: c.WorkerDraining, ticket: Any) -> None:
        worker = self._workers.get(WorkerId(command.worker))
        if worker is not None:
            worker.draining = True
            self._lanes_changed()
        self._reply(ticket, {})

    def gone(self, command: c.WorkerGone) -> None:
        """Its connection ended. It has a moment to come back before its attempts count as lost."""
        worker = self._workers.get(WorkerId(command.worker))
        if worker is None:
            return
        worker.connected = False
        if worker.running:
            grace = min(GONE_GRACE_MS, self._here.settings.worker_lost_after_ms)
            self._here.timers.at_mono(self._here.now.mono_ms + grace, ("worker", worker.id))
        else:
            self._workers.remove(worker.id)
            self._here.timers.cancel(("worker", worker.id))
        self._lanes_changed()

    # Attempts ----------------------------------------------------------------------------------

    def _named(self, ref: c.AttemptRef) -> AttemptId:
        """The attempt that a worker means, which may have been re-issued since it was assigned."""
        attempt = EventId(*ref)  # type: ignore[arg-type]
        return self._here.reissues.id(attempt) if self._here.reissues else attempt

    def _with(self, ref: c.AttemptRef, ticket: Any, then: Callable[[Task, AttemptId], Any]) -> None:
        """Answer `ticket` with what `then` makes of the attempt and its task, loaded if it left memory."""
        attempt = self._named(ref)

        def run() -> None:
            task = None if task_id is None else self._here.table.get(task_id)
            try:
                if task is None:
                    raise UnknownAttemptError(f"attempt {attempt} is not one that {self._here.me} is running")
                self._reply(ticket, then(task, attempt))
            except CrdtSyncError as error:
                self._refuse(ticket, error)

        task_id = self._dispatcher.task_of(attempt)
        try:
            self._require(() if task_id is None else (task_id,), run, refuse=True)
        except CrdtSyncError as error:
            self._refuse(ticket, error)

    def _fits(self, what: str, size: int, limit: int) -> None:
        if size > limit:
            raise PayloadTooLargeError(f"the {what} takes {size} bytes, the limit is {limit}")

    def check_fence(self, command: c.CheckFence, ticket: Any) -> None:
        def check(task: Task, attempt: AttemptId) -> dict[str, Any]:
            view = self._here.table.view(task)
            lifecycle.check(view, lifecycle.Action.CHECKPOINT, self._here.me, attempt=attempt)
            if not self._dispatcher.is_covered(attempt, task):
                raise LostLeaseError(
                    f"the lease under which attempt {attempt} began is over: another region may run the task",
                    task=task.id.hex(),
                )
            return {"left_ms": self._dispatcher.lease_left_ms(attempt)}

        self._with(command.attempt, ticket, check)

    def record_effect(self, command: c.RecordEffect, ticket: Any) -> None:
        def record(task: Task, attempt: AttemptId) -> dict[str, Any]:
            self._fits("effect's result", len(command.result), self._here.settings.result_bytes_max)
            known = self._here.table.view(task).attempt(attempt)
            recorded = () if known is None else known.effects
            if len(recorded) >= EFFECTS_PER_ATTEMPT_MAX:
                raise InvalidRequestError(f"an attempt records at most {EFFECTS_PER_ATTEMPT_MAX} effects")
            if all(effect.key != command.key for _, effect in recorded):
                self._here.write(EffectRecorded(task.id, attempt, command.name, command.key, command.result))
            return {}

        self._with(command.attempt, ticket, record)

    def save_checkpoint(self, command: c.SaveCheckpoint, ticket: Any) -> None:
        def save(task: Task, attempt: AttemptId) -> dict[str, Any]:
            self._fits("checkpoint", len(command.data), self._here.settings.checkpoint_bytes_max)
            lifecycle.check(self._here.table.view(task), lifecycle.Action.CHECKPOINT, self._here.me, attempt=attempt)
            self._here.write(Checkpointed(task.id, attempt, command.index, command.data))
            return {}

        self._with(command.attempt, ticket, save)

    def complete(self, command: c.Complete, ticket: Any) -> None:
        def end(task: Task, attempt: AttemptId) -> dict[str, Any]:
            outcome, value, reason, retryable = command.outcome, command.value, command.reason, command.retryable
            if outcome not in ("ok", "failed", "lost"):
                raise InvalidRequestError(f"an attempt ends ok, failed or lost, not {outcome!r}")
            limit = self._here.settings.result_bytes_max
            if len(value) > limit:
                # The handler ran; what it returned can't be kept. Trying again would not shrink it.
                text = f"the result takes {len(value)} bytes, the limit is {limit}: store it elsewhere"
                outcome, value, retryable = "failed", encode_value(["ResultTooLarge", text, ""]), False
                reason = "ResultTooLarge"
            submitted = self._here.table.view(task).submitted
            if outcome == "failed" and submitted is not None:
                retryable = retryable and reason not in submitted.options.non_retryable
            self._dispatcher.end(task, attempt, outcome, value, retryable=retryable, reason=reason)
            return {"state": str(self._here.table.view(task).state)}

        self._with(command.attempt, ticket, end)


HELD_MAX: Final = 10_000  # effects and checkpoints that wait until the clock is right; ends are always kept
PROGRESS_CHARS_MAX: Final = 1_000
GONE_GRACE_MS: Final = 1_500  # a dropped connection of a living worker is back within its reconnect backoff
