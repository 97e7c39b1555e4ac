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
from collections.abc import Awaitable, Callable, Coroutine
from enum import Enum
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar

from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from crdtsync.commands import ClientCommand, Forget, WorkerCommand
from crdtsync.errors import (
    ConfigError,
    CrdtSyncError,
    IndefiniteError,
    OverloadedError,
    RemoteProtocolError,
    UnreachableError,
    error_from_record,
)
from crdtsync.protocol.messages import (
    FRAME_BYTES_MAX,
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

log = logging.getLogger("crdtsync.connection")

OPEN_TIMEOUT_S: Final = 5.0
CLOSE_TIMEOUT_S: Final = 1.0
PING_INTERVAL_S: Final = 5.0
PING_TIMEOUT_S: Final = 10.0  # a handler that holds the loop for less does not cost the connection
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


class Duplex(Protocol):
    """Moves frames. Raises OSError, EOFError or WebSocketException once the other side is gone."""

    async def send(self, frame: bytes, /) -> None: ...

    async def recv(self) -> str | bytes: ...

    async def close(self) -> None: ...


T = TypeVar("T")
Dial: TypeAlias = Callable[[], Awaitable[Duplex]]
LOST: Final = object()  # told as a value, not final, when the connection is lost and the request will be sent again
GONE: Final = (OSError, EOFError, WebSocketException, TimeoutError)


def dial_websocket(url: str) -> Dial:
    """How to reach a node by its URL, `ws://HOST:PORT`. Raises ConfigError for another kind."""
    if not url.startswith(("ws://", "wss://")):
        raise ConfigError(f"node URL {url!r}: expected ws://HOST:PORT")

    async def dial() -> Duplex:
        return await connect(
            url,
            compression=None,
            proxy=None,
            open_timeout=OPEN_TIMEOUT_S,
            close_timeout=CLOSE_TIMEOUT_S,
            ping_interval=PING_INTERVAL_S,
            ping_timeout=PING_TIMEOUT_S,
            max_size=FRAME_BYTES_MAX,
        )

    return dial


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
        self._wake = asyncio.Event()
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
        self._wake.set()
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
            self._wake.set()

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
        self._wake.set()

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
        while self._fatal is None:
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
            if self._fatal is None:
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
            self._wake.set()
            tasks.append(asyncio.ensure_future(self._write(duplex)))
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
        while True:
            for message in decode_frame(_binary(await duplex.recv()), Expect.NODE):
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
                self._wake.set()
        error = error_from_record(response.error) if response.error is not None else None
        pending.settle(response.value, error, response.final)

    async def _write(self, duplex: Duplex) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while batch := self._take():
                for frame in self._encode(batch):
                    await duplex.send(frame)

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


class QueueDuplex:
    """One end of a transport inside a process: what one end sends, the other receives."""

    def __init__(self, inbox: asyncio.Queue[bytes], outbox: asyncio.Queue[bytes]) -> None:
        self._inbox = inbox
        self._outbox = outbox
        self._closed = asyncio.Event()

    @classmethod
    def pair(cls, frames_max: int = 64) -> tuple[QueueDuplex, QueueDuplex]:
        """Two ends; a sender waits while `frames_max` frames are unread."""
        one: asyncio.Queue[bytes] = asyncio.Queue(frames_max)
        other: asyncio.Queue[bytes] = asyncio.Queue(frames_max)
        left, right = cls(one, other), cls(other, one)
        left._closed = right._closed
        return left, right

    async def send(self, frame: bytes, /) -> None:
        await self._until_closed(self._outbox.put(frame))

    async def recv(self) -> bytes:
        return await self._until_closed(self._inbox.get())

    async def close(self) -> None:
        self._closed.set()

    async def _until_closed(self, action: Coroutine[Any, Any, T]) -> T:
        acting, closed = asyncio.ensure_future(action), asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wait((acting, closed), return_when=asyncio.FIRST_COMPLETED)
            if acting.done():
                return acting.result()
            raise EOFError("the other end was closed")
        finally:
            acting.cancel()
            closed.cancel()
