"""One logical connection to a node, for clients and workers: it dials again, and knows what was sent.

What a lost connection means for a request depends on whether it was sent and whether sending it
again is harmless:

    not sent                        it waits for the next connection
    sent, repeating is harmless     sent again, in the old order
    sent, anything else             IndefiniteError: it may have happened

`Repeat` says which is which. A node that stays away longer than `patience_s` ends the waiting:
UnreachableError for what certainly did not happen, IndefiniteError for the rest. Requests are gathered while a frame is being written,
so load makes frames larger rather than more.

The transport is anything that moves frames (`Duplex`): a websocket, or a pair of queues in a process
that embeds both sides.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Any, Final, Literal, TypeAlias

from crdtsync.commands import ClientCommand, Forget, WorkerCommand
from crdtsync.errors import (
    CrdtSyncError,
    IndefiniteError,
    OverloadedError,
    RemoteProtocolError,
    UnreachableError,
    error_from_record,
)
from crdtsync.protocol.messages import (
    FRAME_MESSAGES_MAX,
    PROTOCOL_VERSION,
    Assigned,
    ClientRequest,
    Expect,
    Open,
    Opened,
    Refused,
    Response,
    StopAttempt,
    WorkerRequest,
    decode_frame,
    encode_frames,
)
from regions.duplex import CLOSE_TIMEOUT_S, GONE, OPEN_TIMEOUT_S, Dial, Duplex

log = logging.getLogger("crdtsync.connection")

BACKOFF_S_BASE: Final = 0.05
BACKOFF_S_MAX: Final = 2.0
UNSENT_MAX: Final = 100_000  # requests that wait for their turn or for a connection; beyond it OverloadedError
# A node refuses more than 1,024 open requests per connection. Answers to waits may be days away, so that these must
# not keep others from being asked.
REQUESTS_OPEN_MAX: Final = 200
WAITS_OPEN_MAX: Final = 800

Command: TypeAlias = ClientCommand | WorkerCommand
Settle: TypeAlias = Callable[[Any, CrdtSyncError | None, bool], None]
Push: TypeAlias = Assigned | StopAttempt


LOST: Final = object()  # told as a value, not final, when the connection is lost and the request will be sent again


class Repeat(Enum):
    """What it means to send a request again whose answer was lost."""

    READ = "read"  # it changes nothing: ask again
    SAME = "same"  # it changes something once, however often it is sent
    NEVER = "never"  # a second time could do more than the first


class Pending:
    """A request without its (last) answer."""

    __slots__ = ("command", "id", "repeat", "sent", "settle", "since", "tried", "waits")

    def __init__(
        self, number: int, command: Command, settle: Settle, *, since: float, repeat: Repeat, waits: bool
    ) -> None:
        self.id = number
        self.command = command
        self.settle = settle
        self.since = since  # loop time from which patience counts
        self.repeat = repeat
        self.waits = waits  # for something to happen, rather than for an answer
        self.sent = False  # on the present connection
        self.tried = False  # on any connection


class NodeConnection:
    """See the module. Start it with `start`, end it with `close`; both once.

    Args:
        dial: Opens a transport.
        role: How to open: as "client" or "worker".
        where: How messages name the node.
        patience_s: How long a request outlives the node's absence; None for ever.
        requests_max: Unanswered requests on the connection; more wait their turn.
        on_open: Called with each new connection before any request is sent on it; it may use `ask_first`, or `fail`.
        on_push: Called with what the node sends unasked.
    """

    def __init__(
        self,
        dial: Dial,
        role: Literal["client", "worker"],
        where: str,
        *,
        patience_s: float | None,
        requests_max: int = REQUESTS_OPEN_MAX,
        waits_max: int = WAITS_OPEN_MAX,
        on_open: Callable[[Opened], Awaitable[None]] | None = None,
        on_push: Callable[[Push], None] | None = None,
    ) -> None:
        self._dial = dial
        self._role: Literal["client", "worker"] = role
        self._where = where
        self._patience_s = patience_s
        self._on_open = on_open
        self._on_push = on_push
        self._ids = 0
        self._pending: dict[int, Pending] = {}
        # Requests and waits queue apart: index 1 holds waits.
        self._unsent: tuple[deque[Pending], deque[Pending]] = (deque(), deque())
        self._room = [requests_max, waits_max]
        self._notes: deque[Command] = deque()  # sent without an answer
        self._due: asyncio.Handle | None = None
        self._frames: deque[bytes] = deque()  # did not fit into the transport
        self._wake = asyncio.Event()  # there are some
        self._duplex: Duplex | None = None
        self._ready = asyncio.Event()
        self._down_since: float | None = None
        self._last_error: CrdtSyncError = UnreachableError(f"no connection to {where} yet")
        self._fatal: CrdtSyncError | None = None
        self._closed = False
        self._runner: asyncio.Task[None] | None = None
        self.opened: Opened | None = None
        self.connections = 0

    # Life ------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._down_since = self._now()
        self._runner = asyncio.get_running_loop().create_task(self._run(), name=f"connection to {self._where}")

    async def wait_open(self, timeout_s: float | None) -> Opened:
        """Wait for the first connection. Raises what kept it away, UnreachableError as a rule."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self._ready.is_set():
                    if self._fatal is not None:
                        raise self._fatal
                    await self._ready.wait()
        except TimeoutError:
            raise self._last_error from None
        if self._fatal is not None:
            raise self._fatal
        assert self.opened is not None
        return self.opened

    async def close(self) -> None:
        """Hang up. What still waits for an answer fails as if the node had gone for good."""
        self._closed = True
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)
        self._give_up(UnreachableError("this connection was closed"), all_of_them=True)

    @property
    def connected(self) -> bool:
        return self._duplex is not None

    @property
    def closed(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._closed or self._fatal is not None

    @property
    def unanswered(self) -> int:
        return len(self._pending)

    def drop(self, reason: str) -> None:
        """Give up the present transport, which answers no more, and dial again."""
        duplex = self._duplex
        if duplex is not None:
            log.warning("connection to %s dropped: %s", self._where, reason)
            self._duplex = None
            self._dropped.set()

    # Asking ----------------------------------------------------------------------------------------

    def post(self, command: Command, settle: Settle, *, repeat: Repeat, waits: bool = False) -> Pending:
        """Have `command` sent; `settle(value, error, final)` is called with each answer.

        Raises:
            OverloadedError: If too much waits to be sent already.
        """
        if self._closed or self._fatal is not None:
            raise self._fatal or UnreachableError("this connection was closed")
        queue = self._unsent[waits]
        if len(queue) >= UNSENT_MAX:
            raise OverloadedError(f"{len(queue)} requests wait to be sent to {self._where}", limit=UNSENT_MAX)
        self._ids += 1
        pending = Pending(self._ids, command, settle, since=self._now(), repeat=repeat, waits=waits)
        self._pending[pending.id] = pending
        queue.append(pending)
        self._nudge()
        return pending

    async def request(self, command: Command, *, repeat: Repeat, waits: bool = False) -> Any:
        """The answer to `command`. Cancelling this stops the waiting, and tells the node if it waits too."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        parts: list[Any] = []

        def settle(value: Any, error: CrdtSyncError | None, final: bool) -> None:
            if future.done():
                return
            if value is LOST:  # asked again: what came before is said anew
                parts.clear()
            elif error is not None:
                future.set_exception(error)
            elif not final:  # a list too long for one frame comes in parts, each a list
                parts.extend(value)
            else:
                future.set_result([*parts, *value] if parts else value)

        pending = self.post(command, settle, repeat=repeat, waits=waits)
        try:
            return await future
        except asyncio.CancelledError:
            self.forget(pending)
            raise

    def note(self, command: Command) -> None:
        """Send `command`, expecting no answer. Lost with the connection."""
        if self._duplex is not None:
            self._notes.append(command)
            self._nudge()

    def forget(self, pending: Pending) -> None:
        """Whoever asked does not want the answer any more."""
        if self._pending.pop(pending.id, None) is None:
            return
        if not pending.sent:
            self._unsent[pending.waits].remove(pending)
            return
        self._room[pending.waits] += 1
        if pending.waits:
            self.note(Forget(ticket=pending.id))
        self._nudge()

    async def ask_first(self, command: Command) -> Any:
        """For `on_open` only: ask before everything that waits."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._ids += 1

        def settle(value: Any, error: CrdtSyncError | None, final: bool) -> None:  # noqa: ARG001
            if not future.done():
                future.set_result((value, error))

        pending = Pending(self._ids, command, settle, since=self._now(), repeat=Repeat.NEVER, waits=False)
        pending.sent = pending.tried = True
        self._room[0] -= 1
        self._pending[pending.id] = pending
        duplex = self._duplex
        if duplex is None:
            raise EOFError("the connection was dropped")
        await duplex.send(encode_frames([self._message(pending.id, command)])[0])
        value, error = await future
        if error is not None:
            raise error
        return value

    # The loop --------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._keep_dialling()
        except Exception as error:  # a bug here must not leave everybody waiting in silence
            log.exception("connection to %s failed", self._where)
            self._fail(CrdtSyncError(f"the connection to {self._where} failed: {error!r}"))

    async def _keep_dialling(self) -> None:
        failures = 0
        # A cancellation that meets another error on its way out is replaced by it: so closing is looked at as well.
        while not self.closed:
            began = self.connections
            try:
                await self._serve_one()
            except CrdtSyncError as error:
                self._last_error = error
                log.warning("%s: %s", self._where, error)
            except GONE as error:
                reason = str(error) or type(error).__name__
                self._last_error = UnreachableError(f"no node answers at {self._where}: {reason}", node=self._where)
                log.debug("%s: %s", self._where, reason)
            failures = 1 if self.connections > began else failures + 1
            self._lost()
            if not self.closed:
                ceiling = min(BACKOFF_S_MAX, BACKOFF_S_BASE * 2 ** min(failures, 10))
                await self._rest(random.uniform(ceiling / 2, ceiling))  # noqa: S311 - spreads load, guards nothing

    async def _serve_one(self) -> None:
        """One connection, from dialling to its end, which is always an exception."""
        duplex = await self._dial()
        try:
            self.opened = await self._open(duplex)
            self._duplex = duplex
            self._dropped = asyncio.Event()
            await self._attend(duplex, self.opened)
        finally:
            self._duplex = None
            self._notes.clear()
            self._frames.clear()
            with contextlib.suppress(*GONE):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await duplex.close()

    async def _attend(self, duplex: Duplex, opened: Opened) -> None:
        """Read and write until one of them fails, and raise what it raised."""
        tasks: list[asyncio.Future[None]] = [
            asyncio.ensure_future(self._read(duplex)),
            asyncio.ensure_future(self._wait_dropped()),
        ]
        try:
            if self._on_open is not None:
                greeting = asyncio.ensure_future(self._on_open(opened))
                tasks.append(greeting)
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if not greeting.done() or greeting.exception() is not None:
                    return
                tasks.remove(greeting)
            self.connections += 1
            self._down_since = None
            self._ready.set()
            tasks.append(asyncio.ensure_future(self._write_on(duplex)))
            self._nudge()
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended = [task for task in tasks if task.done()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for task in ended:
                task.result()

    async def _open(self, duplex: Duplex) -> Opened:
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            await duplex.send(encode_frames([Open(PROTOCOL_VERSION, self._role)])[0])
            answer = decode_frame(_binary(await duplex.recv()), Expect.NODE)[0]
        if isinstance(answer, Refused):
            raise error_from_record(answer.error)
        if not isinstance(answer, Opened):
            raise RemoteProtocolError(f"{self._where} answered the opening with {type(answer).__name__}")
        return answer

    async def _read(self, duplex: Duplex) -> None:
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def heard(frame: bytes | str) -> None:
            if failed.done():
                return
            try:
                self._heard(frame)
            except Exception as error:  # noqa: BLE001 - raised where the connection is attended
                failed.set_exception(error)

        listening = asyncio.ensure_future(duplex.listen(heard))
        try:
            await asyncio.wait((listening, failed), return_when=asyncio.FIRST_COMPLETED)
            for ended in (failed, listening):
                if ended.done():
                    ended.result()
        finally:
            listening.cancel()
            failed.cancel()
            await asyncio.gather(listening, failed, return_exceptions=True)

    def _heard(self, frame: bytes | str) -> None:
        for message in decode_frame(_binary(frame), Expect.NODE):
            if type(message) is Response:
                self._answered(message)
            elif isinstance(message, Assigned | StopAttempt) and self._on_push is not None:
                self._on_push(message)
            else:
                raise RemoteProtocolError(f"{self._where} sent {type(message).__name__} out of turn")

    def _answered(self, response: Response) -> None:
        pending = self._pending.get(response.id)
        if pending is None:
            return  # forgotten meanwhile
        if response.final:
            del self._pending[response.id]
            self._room[pending.waits] += 1
            if self._unsent[pending.waits]:
                self._nudge()
        error = error_from_record(response.error) if response.error is not None else None
        pending.settle(response.value, error, response.final)

    def _nudge(self) -> None:
        """Have what waits sent: at the end of this turn of the loop, with what else is asked for in it."""
        if self._due is None and self._ready.is_set():
            self._due = asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        """Send what waits, as far as that is possible without waiting; `_write_on` goes on from there."""
        self._due = None
        duplex = self._duplex
        if duplex is None or self._frames or not duplex.open:
            return  # what is not tried on a connection that has ended is certain not to have been done
        while batch := self._take():
            self._frames.extend(self._encode(batch))
            while self._frames:
                if not duplex.write(self._frames[0]):
                    self._wake.set()
                    return
                self._frames.popleft()

    async def _write_on(self, duplex: Duplex) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._frames:
                await duplex.send(self._frames[0])
                self._frames.popleft()
            self._write()

    async def _wait_dropped(self) -> None:
        await self._dropped.wait()
        raise EOFError("dropped")

    def _take(self) -> list[ClientRequest | WorkerRequest]:
        """What may be sent now, marked as sent."""
        batch: list[ClientRequest | WorkerRequest] = []
        while self._notes:
            self._ids += 1
            batch.append(self._message(self._ids, self._notes.popleft()))
        for waits, queue in enumerate(self._unsent):
            while queue and self._room[waits] > 0 and len(batch) < FRAME_MESSAGES_MAX:
                pending = queue.popleft()
                pending.sent = pending.tried = True
                self._room[waits] -= 1
                batch.append(self._message(pending.id, pending.command))
        return batch

    def _encode(self, batch: list[ClientRequest | WorkerRequest]) -> list[bytes]:
        """The frames of a batch; a request that fits into none fails alone."""
        try:
            return encode_frames(batch)
        except CrdtSyncError as error:
            if len(batch) > 1:
                return [frame for message in batch for frame in self._encode([message])]
            pending = self._pending.pop(batch[0].id, None)
            if pending is not None:
                self._room[pending.waits] += 1
                pending.settle(None, error, True)
            return []

    def _message(self, number: int, command: Any) -> ClientRequest | WorkerRequest:
        return ClientRequest(number, command) if self._role == "client" else WorkerRequest(number, command)

    # Loss ------------------------------------------------------------------------------------------

    def _lost(self) -> None:
        """The connection ended: sort what was under way."""
        if self._down_since is None:
            self._down_since = self._now()
        again: tuple[list[Pending], list[Pending]] = ([], [])
        for pending in list(self._pending.values()):
            if not pending.sent:
                continue
            self._room[pending.waits] += 1
            if pending.repeat is not Repeat.NEVER:
                pending.sent = False
                pending.since = self._down_since
                again[pending.waits].append(pending)
                pending.settle(LOST, None, False)
            else:
                del self._pending[pending.id]
                pending.settle(None, self._indefinite(), True)
        for queue, resent in zip(self._unsent, again, strict=True):
            queue.extendleft(reversed(resent))
        self._ready.clear()

    async def _rest(self, seconds: float) -> None:
        """Wait before dialling again, and let go what has waited too long."""
        until = self._now() + seconds
        while (now := self._now()) < until:
            self._give_up(self._last_error)
            await asyncio.sleep(min(0.25, until - now))
        self._give_up(self._last_error)

    def _give_up(self, error: CrdtSyncError, *, all_of_them: bool = False) -> None:
        if self._patience_s is None and not all_of_them:
            return
        now, down_since = self._now(), self._down_since or 0.0
        patience = self._patience_s or 0.0
        for pending in list(self._pending.values()):
            if all_of_them or now - max(pending.since, down_since) >= patience:
                del self._pending[pending.id]
                with contextlib.suppress(ValueError):
                    self._unsent[pending.waits].remove(pending)
                maybe = pending.tried and pending.repeat is not Repeat.READ
                pending.settle(None, self._indefinite() if maybe else error, True)

    def _fail(self, error: CrdtSyncError) -> None:
        """End for good: nobody waits any longer, and nothing new is taken."""
        self._fatal = error
        self._ready.set()
        self._give_up(error, all_of_them=True)

    def fail(self, error: CrdtSyncError) -> None:
        """From `on_open`: this node will never serve us."""
        self._fail(error)

    def _indefinite(self) -> IndefiniteError:
        return IndefiniteError(
            f"the connection to {self._where} ended before the answer came: the request may have been carried out",
            node=self._where,
        )

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _binary(frame: str | bytes) -> bytes:
    if isinstance(frame, str):
        raise RemoteProtocolError("a text frame stands where a binary one must")
    return frame
