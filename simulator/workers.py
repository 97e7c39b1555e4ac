"""Worker processes: what runs a handler in a simulated region.

The rules around a handler are `crdtsync.execution`'s and its contexts are `crdtsync.context`'s, as in production; like
`regions.execution.worker` this moves commands and waits, in virtual time. A lost connection stops nothing: what a
handler did is sent again until the node says that it is durable.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from crdtsync import commands as c
from crdtsync.app import App
from crdtsync.context import Context, HandlerCommand, SyncContext, confirm, is_async
from crdtsync.effects import Assignment
from crdtsync.errors import CrdtSyncError, error_from_record
from crdtsync.execution import AttemptRun
from crdtsync.identifiers import AttemptId
from simulator.forbidden import RealWorldError
from simulator.kernel import US, Cancelled, Fiber, ForeignAwaitError, Gate
from simulator.puppets import in_puppet

if TYPE_CHECKING:
    from simulator.node import Node
    from simulator.world import World

# As in regions.execution.worker and regions.connection.
CANCEL_GRACE_US: Final = 2_000_000
RETRY_US: Final = 1_000_000
RECONNECT_US_MIN: Final = 50_000
RECONNECT_US_MAX: Final = 2_000_000
HEARTBEATS_MISSED_MAX: Final = 5
RETRY_CODES: Final = frozenset({"overloaded", "storage", "draining", "internal", "unreachable"})

OnAnswer = Callable[[Any, dict[str, Any] | None, int], None]


class Attempt:
    """One assignment here, from its arrival until its end is durable. Also what its handler waits by (`context.Port`)."""

    __slots__ = ("completed", "fiber", "hung", "own", "run", "seq", "started", "stop_gates", "watched", "worker")

    def __init__(self, worker: Worker, run: AttemptRun, seq: int, *, own: bool) -> None:
        self.worker = worker
        self.run = run
        self.own = own  # its handler is the user's, and none of a built-in model
        self.seq = seq  # of the newest record about it: the cause of what it does next
        self.fiber: Fiber | None = None
        self.started = False
        self.completed = False
        self.watched = False  # whether a timer runs for its lease
        self.stop_gates: list[Gate] = []

    @property
    def id(self) -> AttemptId:
        return self.run.assignment.attempt

    # context.Port --------------------------------------------------------------------------------

    async def ask(self, command: HandlerCommand) -> Any:
        worker = self.worker
        if self.own and type(command) is c.RecordEffect:
            worker.world.sink.note(self, command.name, command.key, command.result)
        while True:
            gate = worker.kernel.gate()
            asked_ms = worker.kernel.now_us // 1_000
            worker.post(command, partial(self._answered, gate), self.seq)
            try:
                answer = await gate
                if isinstance(command, c.CheckFence):
                    worker.covered(self.id, asked_ms, answer["left_ms"])
                return answer
            except CrdtSyncError as error:
                if error.code not in RETRY_CODES:
                    raise
            await worker.kernel.sleep(RETRY_US / US)

    def _answered(self, gate: Gate, value: Any, error: dict[str, Any] | None, cause: int) -> None:
        self.seq = cause
        self.worker.go_on(partial(gate.open, value) if error is None else partial(gate.fail, error_from_record(error)))

    async def aside(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return await in_puppet(self.worker.kernel, lambda _block: function(*args, **kwargs))

    async def stopped(self, run: AttemptRun) -> None:
        if run.stop_reason is None:
            gate = self.worker.kernel.gate()
            self.stop_gates.append(gate)
            await gate

    # What sleeps become --------------------------------------------------------------------------

    async def sleep(self, seconds: float) -> None:
        """Wait in virtual time, as long as this worker takes for it."""
        worker = self.worker
        gate = worker.kernel.gate()
        delay_us = max(0, round(seconds * worker.slowness * US))
        if worker.slowness != 1.0:
            worker.tell("slowed")
        worker.kernel.after(delay_us, worker.go_on, gate.open)
        await gate

    async def call(self) -> Any:
        """The handler, from its first to its last line. What faults do to the user's own strikes before or after."""
        world = self.worker.world
        rng = world.stream("fate", str(self.id)) if self.own and world.mischief else None
        early = rng is not None and rng.random() < 0.5
        if rng is not None and early:
            world.fate(self.worker.node.region, rng)
        value = await self._handled()
        if rng is not None and not early:
            world.fate(self.worker.node.region, rng)
        return value

    async def _handled(self) -> Any:
        handler, args, kwargs = self.run.invocation()
        context = Context(self.run, self)
        await confirm(context)
        if is_async(handler):
            return await handler(context, *args, **kwargs)
        return await in_puppet(
            self.worker.kernel,
            lambda block: handler(SyncContext(self.run, self, block), *args, **kwargs),
        )


class Worker:
    """One process that runs handlers of `app` for one node."""

    def __init__(self, world: World, node: Node, name: str, app: App, credits: int) -> None:
        self.name = name
        self.node = node
        self.app = app
        self.credits = credits
        self.kernel = world.kernel
        self.alive = False
        self.life = 0
        # What faults do to it.
        self.hung = False
        self.silent = False
        self.deaf = False
        self.slowness = 1.0
        self.hits: list[Callable[[str], None]] = []  # told when one of these changed something
        self.world = world
        self._trace = world.trace
        self._rng: random.Random = world.stream("worker", name)
        self._connected = False
        self._attempts: dict[AttemptId, Attempt] = {}
        self._waiting: deque[Attempt] = deque()
        self._unanswered: dict[int, tuple[Any, OnAnswer, int]] = {}
        self._held: list[Callable[[], None]] = []  # what a hang or silence keeps back
        self._numbers = 0
        self._missed = 0
        self._reconnect_us = RECONNECT_US_MIN
        self._process = 0

    def __repr__(self) -> str:
        return f"<Worker {self.name} {'up' if self.alive else 'down'}>"

    # Life ----------------------------------------------------------------------------------------

    def start(self, cause: int = -1) -> None:
        """A new process, which knows nothing of an earlier one's attempts."""
        if self.alive:
            return
        self.life += 1
        self._process += 1
        self.alive = True
        self._trace.add("worker.up", self.node.name, self.id, (), (cause,) if cause >= 0 else ())
        self._connect(self.life)

    @property
    def id(self) -> str:
        """Unique per process start."""
        return f"{self.name}#{self._process}"

    @property
    def running(self) -> tuple[AttemptId, ...]:
        """What is assigned to it and not durably over."""
        return tuple(self._attempts)

    def crash(self, reason: str, cause: int = -1) -> None:
        """The process dies: nobody hears of its attempts again."""
        if not self.alive:
            return
        self._trace.add("worker.down", self.node.name, self.id, (reason,), (cause,) if cause >= 0 else ())
        self.alive = False
        self.life += 1
        if self._connected:
            self._connected = False
            self.node.goodbye(self, self.id, self._trace.count - 1)
        attempts, self._attempts = list(self._attempts.values()), {}
        self._waiting.clear()
        self._unanswered.clear()
        self._held.clear()
        for attempt in attempts:
            attempt.completed = True
            if attempt.fiber is not None:
                attempt.fiber.kill()

    def _connect(self, life: int) -> None:
        if life != self.life or self._connected or not self.alive:
            return
        if self.silent or not self.node.employ(self.id, self):
            self._reconnect_later()
            return
        self._connected = True
        self._missed = 0
        self._reconnect_us = RECONNECT_US_MIN
        hello = c.WorkerHello(
            worker=self.id,
            app=self.app.name,
            tasks=self.app.declarations(),
            credits=self.credits,
            running=tuple(self._attempts),
            limits=self.app.limit_declarations(),
        )
        self.node.ask(self, hello, partial(self._greeted, life), -1)

    def _reconnect_later(self) -> None:
        self.kernel.after(round(self._reconnect_us * (0.5 + self._rng.random() / 2)), self._connect, self.life)
        self._reconnect_us = min(RECONNECT_US_MAX, self._reconnect_us * 2)

    def _greeted(self, life: int, value: Any, error: dict[str, Any] | None, final: bool, cause: int) -> None:  # noqa: ARG002
        if life != self.life:
            return
        if error is not None:
            self._drop(f"the hello was refused: {error['message']}", cause)
            return
        for attempt in value["stop"]:
            self.asked_to_stop(AttemptId(*attempt), "superseded", cause)
        for number in list(self._unanswered):
            self._send(number)
        self.kernel.after(value["heartbeat_ms"] * 1_000, self._beat, self.life, self.node.life, value["heartbeat_ms"])

    def hung_up(self, reason: str) -> None:  # noqa: ARG002 - whoever hung up recorded why
        """The node is gone: handlers run on, and the worker dials again."""
        if self._connected and self.alive:
            self._connected = False
            self._reconnect_later()

    def _drop(self, reason: str, cause: int) -> None:  # noqa: ARG002
        if self._connected:
            self._connected = False
            self.node.goodbye(self, self.id, cause)
            self._reconnect_later()

    def _beat(self, life: int, node_life: int, every_ms: int) -> None:
        if life != self.life or not self._connected or node_life != self.node.life:
            return
        if self._missed >= HEARTBEATS_MISSED_MAX:
            self._drop("heartbeats were not answered", -1)
            return
        progress = []
        for ref, attempt in self._attempts.items():
            run = attempt.run
            if run.progress != run.reported:
                run.reported = run.progress
                progress.append((ref, run.progress))
        self._missed += 1
        if not self.silent:
            answered = partial(self._beat_answered, self.kernel.now_us // 1_000)
            self.node.ask(self, c.Heartbeat(self.id, tuple(progress)), answered, -1)
        self.kernel.after(every_ms * 1_000, self._beat, life, node_life, every_ms)

    def _beat_answered(self, asked_ms: int, value: Any, error: dict[str, Any] | None, _final: bool, cause: int) -> None:
        if error is None:
            self._missed = 0
            for ref, left_ms in value.get("leases", ()):
                self.covered(AttemptId(*ref), asked_ms, left_ms)
        elif error["code"] == "unknown_attempt":
            self._drop("the node does not know this worker any more", cause)

    # Faults --------------------------------------------------------------------------------------

    def tell(self, what: str) -> None:
        """A fault changed something here."""
        for hit in self.hits:
            hit(what)

    def go_on(self, call: Callable[[], None]) -> None:
        """Let a handler have what it waited for, unless the worker hangs."""
        if self.hung:
            self.tell("hung")
            self._held.append(call)
        else:
            call()

    def free(self) -> None:
        """A hang or silence is over."""
        held, self._held = self._held, []
        for call in held:
            call()
        if self._connected:
            for number in list(self._unanswered):
                self._send(number)

    # Commands ------------------------------------------------------------------------------------

    def post(self, command: Any, on_answer: OnAnswer, cause: int) -> None:
        """Send a command until it is answered, over as many connections as that takes."""
        if not self.alive:
            return  # a killed handler's last words
        self._numbers += 1
        self._unanswered[self._numbers] = (command, on_answer, cause)
        self._send(self._numbers)

    def _send(self, number: int) -> None:
        if self.silent:
            self.tell("was silent")
        elif self._connected:
            command, _, cause = self._unanswered[number]
            self.node.ask(self, command, partial(self._answered, number), cause)

    def _answered(self, number: int, value: Any, error: dict[str, Any] | None, _final: bool, cause: int) -> None:
        waiting = self._unanswered.pop(number, None)
        if waiting is not None:
            waiting[1](value, error, cause)

    # Attempts ------------------------------------------------------------------------------------

    def assigned(self, assignment: Assignment, cause: int) -> None:
        if not self.alive or not self._connected or assignment.attempt in self._attempts:
            return
        if assignment.name not in self.app:
            missing = c.Complete(assignment.attempt, "lost", reason="stopped")
            self.post(missing, lambda _value, _error, _cause: None, cause)
            return
        own = self.world.scenario.app
        run = AttemptRun(assignment, self.app[assignment.name])
        attempt = Attempt(self, run, cause, own=own is not None and assignment.name in own)
        self._attempts[assignment.attempt] = attempt
        self._start(attempt)

    def _start(self, attempt: Attempt) -> None:
        assignment = attempt.run.assignment
        data = (assignment.task.hex(), self.id)
        attempt.seq = self._trace.add("task.begin", self.node.name, str(attempt.id), data, (attempt.seq,))
        attempt.started = True
        if assignment.timeout_ms:
            self.kernel.after(assignment.timeout_ms * 1_000, self._timed_out, self.life, attempt)
        attempt.fiber = self.kernel.spawn(attempt.call(), partial(self._ended, self.life, attempt), attempt)

    def _timed_out(self, life: int, attempt: Attempt) -> None:
        if life == self.life and not attempt.completed:
            self._stop(attempt, "timeout")

    def _ended(self, life: int, attempt: Attempt, value: Any, error: BaseException | None) -> None:
        if life != self.life or attempt.completed:
            return
        run = attempt.run
        if isinstance(error, Poisoned):
            self.crash("its handler killed it", attempt.seq)
            self.world.revive(self)
            return
        if isinstance(error, Cancelled):
            self._complete(attempt, run.lost(run.stop_reason or "stopped"))
        else:
            why = None if error is None else unplayable(error, self.kernel.name)
            if why is not None:
                self.world.complaints[run.assignment.name, why] += 1
            self._complete(attempt, run.succeeded(value) if error is None else run.raised(without_traces(error)))

    def _complete(self, attempt: Attempt, complete: c.Complete) -> None:
        """Report how an attempt ended; it is held until that is durable."""
        attempt.completed = True
        said = complete.reason if complete.outcome != "ok" else complete.value.hex()
        data = (complete.outcome, said)
        attempt.seq = self._trace.add(
            "task.end", self.node.name, str(attempt.id), data, (attempt.seq,), subject=complete
        )
        self.go_on(partial(self._report, attempt, complete))

    def _report(self, attempt: Attempt, complete: c.Complete) -> None:
        self.post(complete, partial(self._reported, attempt, complete), attempt.seq)

    def _reported(
        self, attempt: Attempt, complete: c.Complete, _value: Any, error: dict[str, Any] | None, _cause: int
    ) -> None:
        if error is not None and error["code"] in RETRY_CODES:
            self.kernel.after(RETRY_US, self._report_again, self.life, attempt, complete)
        else:
            self._attempts.pop(attempt.id, None)

    def _report_again(self, life: int, attempt: Attempt, complete: c.Complete) -> None:
        if life == self.life:
            self._report(attempt, complete)

    def asked_to_stop(self, attempt: AttemptId, reason: str, cause: int) -> None:
        held = self._attempts.get(attempt)
        if held is None or held.completed:
            return
        if self.deaf:
            self.tell("was deaf")
            return
        held.seq = cause
        self._stop(held, reason)

    def covered(self, ref: AttemptId, asked_ms: int, left_ms: Any) -> None:
        """The node said how long the lease holds under which an attempt runs."""
        attempt = self._attempts.get(ref)
        if attempt is None or attempt.completed:
            return
        attempt.run.covered(asked_ms, left_ms)
        if not attempt.watched:
            attempt.watched = True
            self._watch_lease(self.life, attempt)

    def _watch_lease(self, life: int, attempt: Attempt) -> None:
        """Stop the attempt when its lease is over; the node may not be there to say so."""
        if life != self.life or attempt.completed:
            return
        left_us = attempt.run.covered_until_ms * 1_000 - self.kernel.now_us
        if left_us > 0:
            self.kernel.after(left_us, self._watch_lease, life, attempt)
        elif self.deaf:
            self.tell("was deaf")
        else:
            self._stop(attempt, "lost lease")

    def _stop(self, attempt: Attempt, reason: str) -> None:
        if not attempt.run.stop(reason):
            return
        for gate in attempt.stop_gates:
            self.go_on(gate.open)
        attempt.stop_gates.clear()
        self.kernel.after(CANCEL_GRACE_US, self._cancel, self.life, attempt)

    def _cancel(self, life: int, attempt: Attempt) -> None:
        if life != self.life or attempt.completed or attempt.fiber is None:
            return
        attempt.run.stopped_hard = True
        self.go_on(attempt.fiber.cancel)


class Poisoned(BaseException):
    """Raised in a handler whose process dies of it."""


def unplayable(error: BaseException, kernel: str) -> str | None:
    """Why a handler cannot be played, if it is not its own fault that it failed: it asks for what a simulation lacks."""
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, (unplayable(part, kernel) for part in error.exceptions)), None)
    if isinstance(error, RealWorldError):
        return str(error)
    raised_by = _raised_by(error)
    if isinstance(error, ForeignAwaitError) or (raised_by == "trio" and kernel != "trio"):
        return "it uses more of trio than its sleep: --kernel trio has all of it"
    if isinstance(error, RuntimeError) and (raised_by == "asyncio" or str(error) == "no running event loop"):
        return "it uses more of asyncio than its sleep, which a simulation does not have"
    return None


def _raised_by(error: BaseException) -> str:
    """The package in whose code an error was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]


def without_traces(error: BaseException) -> BaseException:
    """The same error, without where it was raised: files lie elsewhere on other machines, and runs must not differ."""
    seen: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo:
        found = todo.pop()
        if found is not None and found not in seen:
            seen.append(found)
            found.__traceback__ = None
            todo += [found.__cause__, found.__context__]
    return error
