"""`Worker`: runs an app's handlers for a node, until it is told to stop.

    worker = Worker(app, "ws://127.0.0.1:7700")
    await worker.run(signals=True)

The node pushes attempts, at most `credits` of them; `concurrency` run at once, and what was assigned
beyond that waits here, so that a finished handler is followed by the next without a round trip. Async handlers run on the loop,
others in threads. A lost connection stops nothing: handlers run on, and what they did (effects,
checkpoints, results) is sent again until the node says that it is durable.

The rules around a handler are `crdtsync.execution`'s; this module moves bytes and waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import secrets
import signal
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final, TypeVar

from crdtsync.app import App
from crdtsync.commands import (
    AttemptRef,
    CheckFence,
    Complete,
    Heartbeat,
    WorkerDraining,
    WorkerHello,
)
from crdtsync.context import Context, HandlerCommand, SyncContext, confirm
from crdtsync.effects import Assignment
from crdtsync.errors import ConfigError, CrdtSyncError, RemoteProtocolError
from crdtsync.execution import AttemptRun
from crdtsync.protocol.messages import Assigned, Opened, StopAttempt
from regions.connection import NodeConnection, Push, Repeat
from regions.duplex import Dial, dial_websocket
from regions.execution.threads import HandlerThreads

log = logging.getLogger("crdtsync.worker")

CONCURRENCY: Final = 64
CONCURRENCY_MAX: Final = 10_000
CANCEL_GRACE_S: Final = 2.0  # what a handler gets to see `ctx.cancelled` before it is cancelled
DRAIN_GRACE_S: Final = 20.0
LAST_WORDS_S: Final = 1.0  # for a handler that was cancelled at the end of a drain
FLUSH_S: Final = 3.0  # for the node to acknowledge what was completed, when leaving
RETRY_S: Final = 1.0  # between tries, where the node is there but cannot take it now
HEARTBEAT_S: Final = 1.0  # until the node says otherwise
HEARTBEATS_MISSED_MAX: Final = 5  # unanswered ones, after which the connection is given up
REQUESTS_MAX: Final = 1_000  # unanswered ones on the connection; a node takes 1,024
UNACKNOWLEDGED_MAX: Final = 5_000  # completions; beyond it nothing new is started

#: The node is there, but cannot take it now: the disk is full, a limit is reached, it is about to stop.
RETRY_CODES: Final = frozenset({"overloaded", "storage", "draining", "internal", "unreachable"})
#: What would be refused again: the worker ends.
FATAL_CODES: Final = frozenset({"invalid", "config", "not_implemented", "too_large"})

T = TypeVar("T")


def boot_ms() -> int:
    """A clock for leases: it counts on while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class _Attempt:
    """One assignment here, from its arrival until its end is durable."""

    __slots__ = ("completed", "lease_timer", "run", "started", "stopped", "task", "timers")

    def __init__(self, run: AttemptRun) -> None:
        self.run = run
        self.started = False
        self.completed = False
        self.task: asyncio.Task[None] | None = None  # of an async handler
        self.stopped: asyncio.Event | None = None  # made when somebody waits for it
        self.timers: list[asyncio.TimerHandle] = []
        self.lease_timer: asyncio.TimerHandle | None = None


class Worker:
    """Runs the handlers of one app for one node.

    Args:
        app: What can be run here. Checked now.
        node: The node's `ws://` URL, or how to open a transport to it.
        concurrency: Attempts that run at once.
        credits: Attempts that may be assigned and not completed; the concurrency unless given. More keeps a drained
            queue busier when handlers take microseconds; each attempt held here unstarted counts as running, could
            have been started by another worker, and runs twice if a cut comes.
        queues: Serve only these; all of them if empty.
        cancel_grace: Seconds between telling an async handler to stop, and cancelling it.
        drain_grace: Seconds that handlers get to finish after `drain` or SIGTERM.
        name: Unique per start. Made up unless given.
    """

    def __init__(
        self,
        app: App,
        node: str | Dial,
        *,
        concurrency: int = CONCURRENCY,
        credits: int | None = None,
        queues: Iterable[str] = (),
        cancel_grace: float = CANCEL_GRACE_S,
        drain_grace: float = DRAIN_GRACE_S,
        name: str | None = None,
    ) -> None:
        app.check()
        if not 1 <= concurrency <= CONCURRENCY_MAX:
            raise ConfigError(f"concurrency={concurrency}: expected 1 to {CONCURRENCY_MAX}")
        if credits is not None and credits < concurrency:
            raise ConfigError(f"credits={credits} is below concurrency={concurrency}: handlers would never fill it")
        self.app = app
        self.id = name or f"{app.name}@{socket.gethostname()}:{os.getpid()}-{secrets.token_hex(4)}"[-200:]
        self.concurrency = concurrency
        self.credits = concurrency if credits is None else credits
        self._queues = tuple(queues)
        self._cancel_grace = cancel_grace
        self._drain_grace = drain_grace
        self._tasks = app.tasks
        dial, where = (dial_websocket(node), node) if isinstance(node, str) else (node, "embedded node")
        self._connection = NodeConnection(
            dial,
            "worker",
            where,
            patience_s=None,
            requests_max=REQUESTS_MAX,
            on_open=self._hello,
            on_push=self._pushed,
        )
        self._attempts: dict[AttemptRef, _Attempt] = {}
        self._waiting: deque[_Attempt] = deque()
        self._running = 0
        self._unacknowledged = 0
        self._heartbeat_s = HEARTBEAT_S
        self._missed = 0
        self._handler_threads = HandlerThreads("handler", concurrency)
        self._effect_threads = HandlerThreads("effect", concurrency)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begun = False
        self._changed = asyncio.Event()
        self._draining = asyncio.Event()
        self._forced = asyncio.Event()
        self._failure: CrdtSyncError | None = None
        #: Set once the node has answered the first hello: the app's tasks are declared.
        self.ready = asyncio.Event()
        self.region = ""

    # Life ------------------------------------------------------------------------------------------

    async def run(self, *, signals: bool = False) -> None:
        """Work until `drain` (or, with `signals`, SIGTERM or SIGINT; a second one forces the end).

        Raises:
            CrdtSyncError: If the node will never serve this worker, because its app makes no sense to it.
        """
        if self._begun:
            raise ConfigError("a Worker is run once; make another one")
        self._begun = True
        self._loop = asyncio.get_running_loop()
        handled = self._handle_signals(self._loop) if signals else ()
        self._connection.start()
        heart = asyncio.create_task(self._beat(), name="heartbeats")
        try:
            await self._draining.wait()
            if self._failure is not None:
                raise self._failure
            await self._drain()
        finally:
            heart.cancel()
            for attempt in self._attempts.values():
                if attempt.task is not None:
                    attempt.task.cancel()
            await self._connection.close()
            await asyncio.gather(heart, return_exceptions=True)
            self._handler_threads.close()
            self._effect_threads.close()
            for number in handled:
                self._loop.remove_signal_handler(number)

    def drain(self) -> None:
        """Take nothing new, finish what runs within the grace, hand back the rest, and end. A second call forces."""
        if self._draining.is_set():
            self._forced.set()
        self._draining.set()

    def force(self) -> None:
        """End now: what runs is cancelled and handed back."""
        self._forced.set()
        self._draining.set()

    @property
    def running(self) -> int:
        """Handlers that are under way."""
        return self._running

    @property
    def waiting(self) -> int:
        """Attempts that were assigned and are not started."""
        return len(self._waiting)

    @property
    def unacknowledged(self) -> int:
        """Completions that the node has not made durable yet."""
        return self._unacknowledged

    def _handle_signals(self, loop: asyncio.AbstractEventLoop) -> tuple[signal.Signals, ...]:
        handled = (signal.SIGTERM, signal.SIGINT)
        for number in handled:
            loop.add_signal_handler(number, self.drain)
        return handled

    # The node --------------------------------------------------------------------------------------

    async def _hello(self, opened: Opened) -> None:
        """Say who we are and what we still hold; learn what is no longer wanted."""
        hello = WorkerHello(
            worker=self.id,
            app=self.app.name,
            tasks=self.app.declarations(),
            credits=self.credits,
            queues=self._queues,
            running=tuple(self._attempts),
            limits=self.app.limit_declarations(),
        )
        try:
            answer = await self._connection.ask_first(hello)
            heartbeat_s = float(answer.get("heartbeat_ms") or HEARTBEAT_S * 1_000) / 1_000
            unwanted = [tuple(ref) for ref in answer.get("stop") or ()]
        except CrdtSyncError as error:
            if error.code in FATAL_CODES:
                self._failure = error
                self._connection.fail(error)
                self._draining.set()
            raise
        except (TypeError, ValueError, AttributeError) as error:
            raise RemoteProtocolError(f"the node's answer to the hello makes no sense: {error}") from error
        self.region = opened.region
        self._heartbeat_s = max(0.05, heartbeat_s)
        self._missed = 0
        log.info("worker %s serves %s as %s", self.id, opened.writer, self.app.name)
        if self._draining.is_set():
            self._connection.post(WorkerDraining(self.id), _ignore, repeat=Repeat.NEVER)
        for ref in unwanted:
            self._stop(ref, "superseded")
        self.ready.set()

    def _pushed(self, message: Push) -> None:
        if isinstance(message, Assigned):
            for assignment in message.assignments:
                self._assigned(assignment)
            self._fill()
        else:
            assert isinstance(message, StopAttempt)
            self._stop(message.attempt, message.reason)

    async def _beat(self) -> None:
        await self.ready.wait()
        while True:
            await asyncio.sleep(self._heartbeat_s)
            if not self._connection.connected:
                continue
            if self._missed >= HEARTBEATS_MISSED_MAX:
                self._missed = 0
                self._connection.drop(f"{HEARTBEATS_MISSED_MAX} heartbeats were not answered")
                continue
            progress = []
            for ref, attempt in self._attempts.items():
                run = attempt.run
                if run.progress != run.reported:
                    run.reported = run.progress
                    progress.append((ref, run.progress))
            self._missed += 1
            with contextlib.suppress(CrdtSyncError):
                answered = partial(self._beat_answered, boot_ms())
                self._connection.post(Heartbeat(self.id, tuple(progress)), answered, repeat=Repeat.NEVER)

    def _beat_answered(self, asked_ms: int, value: Any, error: CrdtSyncError | None, _final: bool) -> None:
        if error is None:
            self._missed = 0
            for ref, left_ms in value.get("leases", ()):
                self._covered(tuple(ref), asked_ms, left_ms)
        elif error.code == "unknown_attempt":
            self._connection.drop("the node does not know this worker any more")

    # Attempts --------------------------------------------------------------------------------------

    def _assigned(self, assignment: Assignment) -> None:
        ref: AttemptRef = assignment.attempt
        if ref in self._attempts:
            return  # told twice, over two connections
        task = self._tasks.get(assignment.name)
        if task is None:
            log.error("task %r was assigned, which app %r does not have", assignment.name, self.app.name)
            missing = Complete(ref, "lost", reason="stopped")
            self._post(missing, lambda _value, _error, _final: None)
            return
        attempt = _Attempt(AttemptRun(assignment, task))
        self._attempts[ref] = attempt
        if self._draining.is_set():
            self._complete(attempt, attempt.run.lost("drain"))
        else:
            self._waiting.append(attempt)

    def _fill(self) -> None:
        """Start what waits, as far as there is room."""
        while (
            self._waiting
            and self._running < self.concurrency
            and self._unacknowledged < UNACKNOWLEDGED_MAX
            and not self._draining.is_set()
        ):
            self._start(self._waiting.popleft())

    def _start(self, attempt: _Attempt) -> None:
        assert self._loop is not None
        run = attempt.run
        attempt.started = True
        self._running += 1
        if run.assignment.timeout_ms:
            timer = self._loop.call_later(run.assignment.timeout_ms / 1_000, self._stop, run.ref, "timeout")
            attempt.timers.append(timer)
        if run.task.is_async:
            attempt.task = self._loop.create_task(self._run_async(attempt))
        else:
            self._handler_threads.run(lambda: self._run_in_thread(attempt))

    async def _run_async(self, attempt: _Attempt) -> None:
        run = attempt.run
        try:
            handler, args, kwargs = run.invocation()
            context = Context(run, self)
            await confirm(context)
            value = await handler(context, *args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - SystemExit in a handler is its failure, not the worker's end
            complete = run.raised(error)
        else:
            complete = run.succeeded(value)
        self._ended(attempt, complete)

    def _run_in_thread(self, attempt: _Attempt) -> None:
        run = attempt.run
        try:
            handler, args, kwargs = run.invocation()
            context = SyncContext(run, self, self._block)
            if run.assignment.fence:
                self._block(confirm(context), None)
            value = handler(context, *args, **kwargs)
            if inspect.isawaitable(value):  # a wrapper hid that the handler is async
                value = self._block(value, None)
        except BaseException as error:  # noqa: BLE001 - as above
            complete = run.raised(error)
        else:
            complete = run.succeeded(value)
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: the worker has ended without us
            self._loop.call_soon_threadsafe(self._ended, attempt, complete)

    def _ended(self, attempt: _Attempt, complete: Complete) -> None:
        """The handler came to its end, whether or not anybody still asks."""
        self._running -= 1
        self._complete(attempt, complete)
        self._fill()

    def _complete(self, attempt: _Attempt, complete: Complete) -> None:
        """Report the end of an attempt, once, until it is durable."""
        if attempt.completed:
            return
        attempt.completed = True
        attempt.task = None
        for timer in (*attempt.timers, attempt.lease_timer):
            if timer is not None:
                timer.cancel()
        self._unacknowledged += 1
        if complete.outcome == "failed":
            log.info("attempt %s of %r failed: %s", attempt.run.ref, attempt.run.task.name, complete.reason)

        def settle(_value: Any, error: CrdtSyncError | None, final: bool) -> None:
            if not final:
                return
            if error is not None and error.code in RETRY_CODES and not self._forced.is_set():
                assert self._loop is not None
                self._loop.call_later(RETRY_S, self._post, complete, settle)
                return
            if error is not None:
                log.warning("the end of attempt %s was refused: %s", attempt.run.ref, error)
            self._attempts.pop(attempt.run.ref, None)
            self._unacknowledged -= 1
            self._changed.set()
            if self._waiting:
                self._fill()

        self._changed.set()
        self._post(complete, settle)

    def _post(self, complete: Complete, settle: Callable[[Any, CrdtSyncError | None, bool], None]) -> None:
        try:
            self._connection.post(complete, settle, repeat=Repeat.SAME)
        except CrdtSyncError as error:
            log.warning("the end of attempt %s cannot be reported: %s", complete.attempt, error)

    def _stop(self, ref: AttemptRef, reason: str) -> None:
        """Tell the handler that it is to stop; cancel it later if it can be."""
        assert self._loop is not None
        attempt = self._attempts.get(ref)
        if attempt is None or attempt.completed or not attempt.run.stop(reason):
            return
        if attempt.stopped is not None:
            attempt.stopped.set()
        if not attempt.started:
            self._waiting.remove(attempt)
            self._complete(attempt, attempt.run.lost(reason))
        elif attempt.task is not None:
            attempt.timers.append(self._loop.call_later(self._cancel_grace, self._cancel, attempt))

    def _covered(self, ref: AttemptRef, asked_ms: int, left_ms: Any) -> None:
        """The node said how long the lease holds under which an attempt runs."""
        attempt = self._attempts.get(ref)
        if attempt is None or attempt.completed:
            return
        attempt.run.covered(asked_ms, left_ms)
        if attempt.lease_timer is None:
            self._watch_lease(attempt)

    def _watch_lease(self, attempt: _Attempt) -> None:
        """Stop the attempt when its lease is over; the node may not be there to say so."""
        assert self._loop is not None
        left_ms = attempt.run.covered_until_ms - boot_ms()
        if left_ms > 0:
            attempt.lease_timer = self._loop.call_later(left_ms / 1_000, self._watch_lease, attempt)
        else:
            self._stop(attempt.run.ref, "lost lease")

    def _cancel(self, attempt: _Attempt) -> None:
        if attempt.task is not None and not attempt.completed:
            attempt.run.stopped_hard = True
            attempt.task.cancel()

    # What contexts use (context.Port) ----------------------------------------------------------------

    async def ask(self, command: HandlerCommand) -> Any:
        while True:
            asked_ms = boot_ms()
            try:
                answer = await self._connection.request(command, repeat=Repeat.SAME)
                if isinstance(command, CheckFence):
                    self._covered(command.attempt, asked_ms, answer.get("left_ms"))
                return answer
            except CrdtSyncError as error:
                if error.code not in RETRY_CODES or self._connection.closed:
                    raise
                await asyncio.sleep(RETRY_S)

    async def aside(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def call() -> None:
            try:
                value = function(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - it is the caller's
                told = _carried(error)
                settle: Callable[[], None] = lambda: future.done() or future.set_exception(told)  # type: ignore[assignment,func-returns-value] # noqa: E731
            else:
                settle = lambda: future.done() or future.set_result(value)  # type: ignore[assignment,func-returns-value] # noqa: E731
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(settle)

        self._effect_threads.run(call)
        return await future

    async def stopped(self, run: AttemptRun) -> None:
        if run.stop_reason is not None:
            return
        attempt = self._attempts[run.ref]
        if attempt.stopped is None:
            attempt.stopped = asyncio.Event()
        await attempt.stopped.wait()

    def _block(self, awaitable: Awaitable[T], timeout_s: float | None) -> T | None:
        """From a handler's thread: run it on the loop and wait. None if the time is over."""
        assert self._loop is not None
        future = asyncio.run_coroutine_threadsafe(_awaited(awaitable), self._loop)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            if future.done():
                raise
            future.cancel()
            return None

    # The end ---------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        log.info("worker %s drains: %d run, %d wait", self.id, self._running, len(self._waiting))
        with contextlib.suppress(CrdtSyncError):
            self._connection.post(WorkerDraining(self.id), _ignore, repeat=Repeat.NEVER)
        while self._waiting:
            attempt = self._waiting.popleft()
            self._complete(attempt, attempt.run.lost("drain"))
        for attempt in self._attempts.values():
            attempt.run.draining = True
        if not self._forced.is_set():
            await self._until(lambda: not self._held(), self._drain_grace, unless=self._forced)
        for attempt in self._held():
            if attempt.run.stop("drain") and attempt.stopped is not None:
                attempt.stopped.set()
            self._cancel(attempt)
        await self._until(lambda: not any(attempt.task for attempt in self._held()), LAST_WORDS_S)
        for attempt in self._held():
            log.warning("attempt %s of %r did not end in time", attempt.run.ref, attempt.run.task.name)
            self._complete(attempt, attempt.run.lost("drain"))
        await self._until(lambda: not self._unacknowledged, FLUSH_S)
        if self._unacknowledged:
            log.warning("%d completions were not acknowledged; their attempts will be lost", self._unacknowledged)

    def _held(self) -> list[_Attempt]:
        """What is assigned and not completed."""
        return [attempt for attempt in self._attempts.values() if not attempt.completed]

    async def _until(self, done: Callable[[], bool], seconds: float, unless: asyncio.Event | None = None) -> None:
        """Wait until it is so, for so long at most."""
        interrupted = asyncio.ensure_future(unless.wait()) if unless is not None else None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not done() and not (interrupted is not None and interrupted.done()):
                    self._changed.clear()
                    changed = asyncio.ensure_future(self._changed.wait())
                    waited = {changed} if interrupted is None else {changed, interrupted}
                    try:
                        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        changed.cancel()
        if interrupted is not None:
            interrupted.cancel()


def _ignore(_value: Any, _error: CrdtSyncError | None, _final: bool) -> None:
    return


def _carried(error: BaseException) -> BaseException:
    """What a future can carry: it refuses StopIteration, and would let SystemExit through to the loop."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    return RuntimeError(f"the effect raised {type(error).__name__}: {error}")


async def _awaited(awaitable: Awaitable[T]) -> T:
    return await awaitable
