"""What a handler sees: `Context` in async handlers, `SyncContext` in those that run in a thread.

Both are thin: the rules are in `execution.AttemptRun`, the waiting is the driver's (`Port`), so the
same context serves a worker on asyncio and the simulator on trio. Nothing here knows an event loop.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol, TypeAlias, TypeVar, overload

from crdtsync.commands import CheckFence, EditDocument, RecordEffect, SaveCheckpoint
from crdtsync.errors import CrdtSyncError
from crdtsync.execution import FINAL_STOPS, AttemptRun, AttemptStoppedError
from crdtsync.protocol.values import decode_value, encode_value

PROGRESS_CHARS_MAX = 200

T = TypeVar("T")
HandlerCommand: TypeAlias = CheckFence | RecordEffect | SaveCheckpoint | EditDocument


class Port(Protocol):
    """What a driver lends to the contexts of its handlers."""

    async def ask(self, command: HandlerCommand) -> Any:
        """Send a command and return its answer once it is durable, over as many connections as that takes.

        Raises:
            CrdtSyncError: If the node refused it for good.
        """

    async def aside(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call what may block, without holding up other handlers."""

    async def stopped(self, run: AttemptRun) -> None:
        """Return once `run.stop_reason` is set."""


class _Base:
    """What both contexts can tell."""

    __slots__ = ("_port", "_run", "attempt", "attempt_id", "fence", "region", "task_id", "term")

    def __init__(self, run: AttemptRun, port: Port) -> None:
        assignment = run.assignment
        self._run = run
        self._port = port
        #: The task's id, 32 hex digits. Of a compensation, it is the same on every replica.
        self.task_id = assignment.task.hex()
        #: 1 for the first attempt of the task, as far as this region knew.
        self.attempt = assignment.number
        #: The attempt's id, unique in the cluster.
        self.attempt_id = str(assignment.attempt)
        #: Grows with each takeover and handover.
        self.term = assignment.term
        #: Where this handler runs.
        self.region = assignment.region
        #: Fencing token of the lease, 0 without one: pass it to stores that refuse smaller ones than they have seen.
        self.fence = assignment.fence

    @property
    def deadline(self) -> datetime | None:
        """When the task must have ended, in UTC."""
        at_ms = self._run.assignment.deadline_ms
        return datetime.fromtimestamp(at_ms / 1_000, UTC) if at_ms else None

    @property
    def lost(self) -> bool:
        """Whether this attempt can no longer win: ownership or lease lost, timed out, superseded. Then it can begin
        no effect, and had best return."""
        return self._run.stop_reason in FINAL_STOPS

    @property
    def draining(self) -> bool:
        """Whether the worker is shutting down: a good moment for a checkpoint. The handler may still finish."""
        return self._run.draining

    @property
    def last_checkpoint(self) -> Any:
        """What was last saved, by this attempt or by the one that it continues; None if nothing was."""
        return self._run.last_checkpoint

    def effect_key(self, name: str) -> bytes:
        """An idempotency key for a sink: the same when this attempt is repeated, another on the far side of a cut."""
        return self._run.effect_key(name)

    def progress(self, value: str | float) -> None:
        """Say how far the handler is, as text or as a fraction of 1. Costs nothing: the next heartbeat carries it."""
        text = value if isinstance(value, str) else f"{value:.0%}"
        self._run.progress = text[:PROGRESS_CHARS_MAX]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._run.assignment.name!r} {self.task_id} attempt {self.attempt_id}>"

    def _begin(self, name: str) -> bool:
        """Whether the effect is to be done: False if its result is known. Errors as `AttemptRun.begin_effect`."""
        if name in self._run.ledger:
            return False
        self._run.begin_effect(name)
        return True

    async def _still_covered(self) -> None:
        """Under a lease, ask whether it is still valid. Raises AttemptStoppedError if it is not."""
        command = self._run.check_fence()
        if command is not None:
            await self._ask(command)

    async def _record(self, name: str, value: Any) -> None:
        """Record what an effect gave; on return it is durable, and in the ledger."""
        run = self._run
        try:
            command = run.record_effect(name, value)
            await self._ask(command)
        except BaseException:
            run.ledger.abandon(name)
            raise
        run.ledger.recorded(name, command.result)

    async def _ask(self, command: HandlerCommand) -> None:
        try:
            await self._port.ask(command)
        except CrdtSyncError as error:
            if self._run.stop_reason not in FINAL_STOPS and error.code in GONE:
                self._run.stop(GONE[error.code])
            if self._run.stop_reason in FINAL_STOPS:
                raise AttemptStoppedError(
                    f"the node refuses this attempt: {error}", reason=self._run.stop_reason
                ) from error
            raise


async def confirm(context: _Base) -> None:
    """Call before the handler, so that none begins under a lease that ended on the way. Raises AttemptStoppedError."""
    await context._still_covered()  # noqa: SLF001


#: Answers that mean: this attempt is over, whatever it does.
GONE = {
    "lost_lease": "lost lease",
    "fenced": "fenced",
    "unknown_attempt": "unknown attempt",
    "not_found": "unknown attempt",
    "conflict": "unknown attempt",
}


class Stop:
    """Whether the handler was asked to stop, and why. True in a condition once it was.

    The reason is "cancelled", "lost ownership", "timeout", "superseded", "expired", "fenced" or "drain".
    """

    __slots__ = ("_port", "_run")

    def __init__(self, run: AttemptRun, port: Port) -> None:
        self._run = run
        self._port = port

    def __bool__(self) -> bool:
        return self._run.stop_reason is not None

    def is_set(self) -> bool:
        return bool(self)

    @property
    def reason(self) -> str | None:
        return self._run.stop_reason

    async def wait(self) -> str:
        """Wait until the handler is asked to stop, and return the reason."""
        await self._port.stopped(self._run)
        return self._run.stop_reason or ""


class Document(Mapping[str, Any]):
    """The task's document: entries as they were when the attempt began, and as it has set them since.

    Other regions may write at the same time; what they wrote merges at the node, entry by entry.
    """

    __slots__ = ("_context", "_entries")

    def __init__(self, context: _Base) -> None:
        self._context = context
        self._entries = _entries_of(context._run.assignment.document)  # noqa: SLF001

    def __getitem__(self, key: str) -> Any:
        return decode_value(self._entries[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    async def set(self, key: str, value: Any) -> None:
        """Set an entry. On return it is durable. Errors as in `encode_value`, and AttemptStoppedError."""
        await self._edit(key, encode_value(value, f"document entry {key!r}"))

    async def delete(self, key: str) -> None:
        """Remove an entry, whether it was there or not."""
        await self._edit(key, None)

    async def _edit(self, key: str, data: bytes | None) -> None:
        task = self._context._run.assignment.task  # noqa: SLF001
        await self._context._ask(EditDocument(task=task, entries={key: data}))  # noqa: SLF001
        if data is None:
            self._entries.pop(key, None)
        else:
            self._entries[key] = data


class Context(_Base):
    """The first argument of an async handler."""

    __slots__ = ("_document", "cancelled")

    def __init__(self, run: AttemptRun, port: Port) -> None:
        super().__init__(run, port)
        self._document: Document | None = None
        #: True once the handler was asked to stop; `await ctx.cancelled.wait()` waits for it.
        self.cancelled = Stop(run, port)

    @property
    def document(self) -> Document:
        """A mapping that regions share: `ctx.document["k"]`, `await ctx.document.set("k", value)`."""
        if self._document is None:
            self._document = Document(self)
        return self._document

    @overload
    async def effect(self, name: str, function: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> T: ...

    @overload
    async def effect(self, name: str, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T: ...

    async def effect(self, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Do something to the world once: call `function` and record its result, or return what is recorded.

        On return the result is durable. A crash between the call and its record repeats the call: give `effect_key`
        to sinks that can use it. A function that is not async runs in a thread. Tuples come back as lists.

        Raises:
            AttemptStoppedError: If this attempt no longer counts; unless the record was refused, nothing was done.
            InvalidRequestError: If the same effect is under way.
            PermanentError: If the result is nothing that can be recorded. It was done.
            Exception: Whatever `function` raises; nothing is recorded then.
        """
        if self._begin(name):
            try:
                await self._still_covered()
                if is_async(function):
                    value = await function(*args, **kwargs)
                else:
                    value = await self._port.aside(function, *args, **kwargs)
                    if inspect.isawaitable(value):
                        value = await value
            except BaseException:
                self._run.ledger.abandon(name)
                raise
            await self._record(name, value)
        return self._run.ledger.result(name)

    async def checkpoint(self, data: Any) -> None:
        """Save where the handler is. On return it is durable, and an attempt that continues this one begins with it.

        Raises:
            AttemptStoppedError: If this attempt no longer counts.
            InvalidRequestError, PayloadTooLargeError: If `data` cannot be saved.
        """
        await self._ask(self._run.save_checkpoint(data))


class SyncStop(Stop):
    """As `Stop`, for a thread."""

    __slots__ = ("_context",)

    def __init__(self, context: SyncContext, run: AttemptRun, port: Port) -> None:
        super().__init__(run, port)
        self._context = context

    def wait(self, timeout: float | None = None) -> str:  # type: ignore[override]
        """Block until the handler is asked to stop or `timeout` seconds have passed. "" if it was not asked."""
        self._context._block(self._port.stopped(self._run), timeout)  # noqa: SLF001
        return self._run.stop_reason or ""


class SyncDocument(Document):
    """As `Document`, for a thread."""

    __slots__ = ()

    def set(self, key: str, value: Any) -> None:  # type: ignore[override]
        """Set an entry. On return it is durable. Errors as in `encode_value`, and AttemptStoppedError."""
        self._context._block(super().set(key, value), None)  # type: ignore[attr-defined]  # noqa: SLF001

    def delete(self, key: str) -> None:  # type: ignore[override]
        """Remove an entry, whether it was there or not."""
        self._context._block(super().delete(key), None)  # type: ignore[attr-defined]  # noqa: SLF001


class SyncContext(_Base):
    """The first argument of a handler that is not async: the same names, and each call blocks its thread.

    Args:
        block: Runs an awaitable where the driver's loop is and waits for it, at most so many seconds (None: any).
    """

    __slots__ = ("_block", "_document", "cancelled")

    def __init__(self, run: AttemptRun, port: Port, block: Callable[[Awaitable[Any], float | None], Any]) -> None:
        super().__init__(run, port)
        self._block = block
        self._document: SyncDocument | None = None
        #: True once the handler was asked to stop; look at it now and then: a thread cannot be stopped from outside.
        self.cancelled = SyncStop(self, run, port)

    @property
    def document(self) -> SyncDocument:
        """A mapping that regions share: `ctx.document["k"]`, `ctx.document.set("k", value)`."""
        if self._document is None:
            self._document = SyncDocument(self)
        return self._document

    def effect(self, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """As `Context.effect`. The function runs in this thread, an async one on the worker's loop."""
        if self._begin(name):
            try:
                self._block(self._still_covered(), None)
                value = function(*args, **kwargs)
                if inspect.isawaitable(value):
                    value = self._block(value, None)
            except BaseException:
                self._run.ledger.abandon(name)
                raise
            self._block(self._record(name, value), None)
        return self._run.ledger.result(name)

    def checkpoint(self, data: Any) -> None:
        """As `Context.checkpoint`."""
        self._block(self._ask(self._run.save_checkpoint(data)), None)


def _entries_of(state: bytes) -> dict[str, bytes]:
    if not state:
        return {}
    from crdtsync.documents import read_entries  # noqa: PLC0415 - pycrdt costs 30 ms, and few handlers look

    return read_entries(state)


def is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
