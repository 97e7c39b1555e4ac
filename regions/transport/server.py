"""The port for clients and workers: `protocol.messages` over websockets.

Connections are strangers until their first frame is an `Open`; a frame that breaks the protocol
ends its connection, with the reason in the log, and nobody else's. Requests get tickets, which the
replica answers in its own time; a connection's end forgets what it still waited for.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any, Final, Protocol

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response

from crdtsync.commands import AttemptRef, Command, Forget, WorkerGone, WorkerHello
from crdtsync.effects import Assignment
from crdtsync.errors import CrdtSyncError, OverloadedError, PayloadTooLargeError, RemoteProtocolError
from crdtsync.protocol import messages
from crdtsync.protocol.messages import Expect
from regions.config import Config
from regions.observability.logs import get_logger
from regions.transport.frames import ListenedServerConnection
from regions.transport.outgoing import CLOSE_GOING_AWAY, CLOSE_PROTOCOL, Outgoing, binary

OPEN_TIMEOUT_S: Final = 5.0  # for the handshake, and again for the first frame
CLOSE_TIMEOUT_S: Final = 1.0  # the default of 10 delays the detection of a dead link (verification.md 1.5)
PING_INTERVAL_S: Final = 10.0
PART_BYTES_AIM: Final = 1 << 20  # a long listing travels in parts of about this size


class Desk(Protocol):
    """Whom requests are handed to: the node."""

    def greeting(self) -> messages.Opened:
        """Who answers here. Raises OverloadedError while the node is not ready."""

    def submit(self, command: Command, ticket: int) -> None:
        """Take a command; its answers come through `GuestServer.reply`. Raises CrdtSyncError to refuse it."""

    def forget(self, ticket: int) -> None:
        """Whoever asked under `ticket` is gone."""


@dataclass(slots=True, eq=False)
class Guest:
    """One connection of a client or worker."""

    name: str
    outgoing: Outgoing
    expect: Expect
    tickets: dict[int, int] = field(default_factory=dict)  # request id -> ticket
    requests: dict[int, int] = field(default_factory=dict)  # ticket -> request id
    worker: str = ""
    patience: asyncio.TimerHandle | None = None  # until it has opened
    refused: bool = False  # nothing that it says is listened to any more


class GuestServer:
    """Accepts clients and workers, and carries answers and assignments to them."""

    def __init__(self, config: Config, desk: Desk) -> None:
        self._config = config
        self._desk = desk
        self._log = get_logger(region=config.region, port="clients")
        self._guests: set[Guest] = set()
        self._asked_by: dict[int, Guest] = {}
        self._workers: dict[str, Guest] = {}
        self._tickets = itertools.count(1)
        self._server: Server | None = None
        self.refused_frames = 0

    async def start(self) -> str:
        """Listen. Returns the URL."""
        listen = self._config.listen
        self._server = await serve(
            self._serve,
            listen.host,
            listen.port,
            process_request=self._admit,
            compression=None,
            open_timeout=OPEN_TIMEOUT_S,
            close_timeout=CLOSE_TIMEOUT_S,
            ping_interval=PING_INTERVAL_S,
            ping_timeout=PING_INTERVAL_S,
            max_size=self._frame_bytes_max,
            create_connection=ListenedServerConnection,
            server_header=None,
            reuse_port=True if listen.reuse_port else None,
        )
        port = next(iter(self._server.sockets)).getsockname()[1]
        return f"ws://{listen.host}:{port}"

    async def close(self) -> None:
        """Send what waits, say goodbye, stop listening."""
        if self._server is None:
            return
        self._server.close(close_connections=False)
        for guest in list(self._guests):
            guest.outgoing.close(CLOSE_GOING_AWAY, "the node is shutting down", flush=True)
        await self._server.wait_closed()

    def reset(self, error: CrdtSyncError) -> None:
        """Answer every open request with `error` and end all connections: the replica was discarded."""
        for ticket in list(self._asked_by):
            self.reply(ticket, None, error.record(), final=True)
        for guest in list(self._guests):
            guest.worker = ""
            guest.outgoing.close(CLOSE_GOING_AWAY, "the node reloads its state from disk", flush=True)
        self._workers.clear()

    @property
    def connected(self) -> int:
        return len(self._guests)

    # What the replica says ---------------------------------------------------------------------

    def reply(self, ticket: int, value: Any, error: dict[str, Any] | None, *, final: bool) -> None:
        """Carry one answer to whoever asked, if they are still there."""
        guest = self._asked_by.get(ticket)
        if guest is None:
            return
        request = guest.requests[ticket]
        if final:
            self._forget(guest, ticket)
        self._answer(guest, request, value, error, final=final)

    def run(self, worker: str, assignments: tuple[Assignment, ...]) -> None:
        """Hand attempts to a worker. One that has gone meanwhile has its attempts recovered by the core."""
        guest = self._workers.get(worker)
        if guest is not None:
            for assignment in assignments:
                guest.outgoing.put(messages.encode_message(messages.Assigned((assignment,))))

    def stop(self, worker: str, attempt: AttemptRef, reason: str) -> None:
        guest = self._workers.get(worker)
        if guest is not None:
            guest.outgoing.put(messages.encode_message(messages.StopAttempt(attempt, reason)))

    # One connection ----------------------------------------------------------------------------

    @property
    def _frame_bytes_max(self) -> int:
        return min(self._config.limits.client_frame_bytes, messages.REQUEST_FRAME_BYTES_MAX)

    def _admit(self, connection: ServerConnection, _request: Request) -> Response | None:
        limit = self._config.limits.connections
        if len(self._guests) < limit:
            return None
        self._log.warning("connection refused", reason=f"{limit} clients and workers are connected already")
        return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, f"the limit of {limit} connections is reached\n")

    async def _serve(self, connection: ServerConnection) -> None:
        assert isinstance(connection, ListenedServerConnection)
        name = "{}:{}".format(*connection.remote_address[:2]) if connection.remote_address else "?"
        outgoing = Outgoing(
            connection,
            self._config.limits.client_queue_bytes,
            pack=_frame,
            bytes_aim=messages.FRAME_BYTES_AIM,
        )
        guest = Guest(name, outgoing, Expect.OPENING)
        self._guests.add(guest)
        sender = asyncio.create_task(outgoing.run(), name=f"send to {name}")
        too_late = f"no opening frame within {OPEN_TIMEOUT_S:g} s"
        guest.patience = asyncio.get_running_loop().call_later(OPEN_TIMEOUT_S, self._refuse, guest, too_late)
        try:
            connection.listen(partial(self._heard, guest))
            await connection.wait_closed()
        finally:
            guest.patience.cancel()
            self._leave(guest)
            if connection.protocol.close_sent is not None and connection.protocol.close_sent.code >= CLOSE_PROTOCOL:
                self._log.info("connection closed", guest=name, reason=connection.protocol.close_sent.reason)
            outgoing.close(CLOSE_GOING_AWAY, "", flush=True)
            await sender

    def _heard(self, guest: Guest, frame: bytes | str) -> None:
        """One frame. All that came in one read is taken before others get their turn; a read is bounded."""
        if guest.refused:
            return
        try:
            if guest.expect is Expect.OPENING:
                self._greet(guest, binary(frame))
                return
            for request in messages.decode_frame(binary(frame), guest.expect):
                self._take(guest, request.id, request.command)
        except RemoteProtocolError as error:
            self._refuse(guest, str(error))

    def _greet(self, guest: Guest, first: bytes) -> None:
        assert guest.patience is not None
        guest.patience.cancel()
        (opening,) = messages.decode_frame(first, Expect.OPENING)
        try:
            messages.check_opening(opening)
            greeting = self._desk.greeting()
        except CrdtSyncError as error:
            guest.refused = True
            guest.outgoing.put(messages.encode_message(messages.refusal(error)))
            guest.outgoing.close(CLOSE_GOING_AWAY, "", flush=True)
            self._log.info("connection refused", guest=guest.name, reason=str(error))
            return
        guest.expect = Expect(opening.role)
        guest.outgoing.put(messages.encode_message(greeting))

    def _take(self, guest: Guest, request: int, command: Command) -> None:
        if isinstance(command, Forget):
            ticket = guest.tickets.get(command.ticket)
            if ticket is not None:
                self._forget(guest, ticket)
                self._desk.forget(ticket)
            self._answer(guest, request, {}, None, final=True)
            return
        if request in guest.tickets:
            raise RemoteProtocolError(f"request id {request} is used again while its answer is due")
        if len(guest.tickets) >= self._config.limits.requests_per_connection:
            limit = self._config.limits.requests_per_connection
            error = OverloadedError(f"{limit} requests of this connection wait for answers: let some come back first")
            self._answer(guest, request, None, error.record(), final=True)
            return
        if isinstance(command, WorkerHello):
            self._seat(guest, command.worker)
        elif guest.expect is Expect.WORKER and not guest.worker:
            raise RemoteProtocolError(f"{type(command).__name__} before WorkerHello")
        ticket = next(self._tickets)
        guest.tickets[request] = ticket
        guest.requests[ticket] = request
        self._asked_by[ticket] = guest
        try:
            self._desk.submit(command, ticket)
        except CrdtSyncError as error:
            self._forget(guest, ticket)
            self._answer(guest, request, None, error.record(), final=True)

    def _seat(self, guest: Guest, worker: str) -> None:
        """This connection speaks for `worker` from now on; an older one of the same worker is dead."""
        older = self._workers.get(worker)
        if older is not None and older is not guest:
            older.worker = ""
            older.outgoing.close(CLOSE_GOING_AWAY, "this worker has connected again")
        if guest.worker and guest.worker != worker:
            raise RemoteProtocolError("a connection speaks for one worker")
        guest.worker = worker
        self._workers[worker] = guest

    def _leave(self, guest: Guest) -> None:
        self._guests.discard(guest)
        guest.refused = True
        for ticket in list(guest.requests):
            self._forget(guest, ticket)
            self._desk.forget(ticket)
        if guest.worker and self._workers.get(guest.worker) is guest:
            del self._workers[guest.worker]
            try:
                self._desk.submit(WorkerGone(guest.worker), 0)
            except CrdtSyncError as error:  # the node reloads: whoever runs then is asked for again
                self._log.debug("loss of a worker not told", worker=guest.worker, reason=str(error))

    def _forget(self, guest: Guest, ticket: int) -> None:
        request = guest.requests.pop(ticket, None)
        if request is not None:
            guest.tickets.pop(request, None)
        self._asked_by.pop(ticket, None)

    def _answer(self, guest: Guest, request: int, value: Any, error: dict[str, Any] | None, *, final: bool) -> None:
        try:
            items = _items(request, value, error, final=final)
        except CrdtSyncError as problem:
            items = [messages.encode_message(messages.Response(request, None, problem.record()))]
        if sum(map(len, items)) > self._config.limits.client_queue_bytes:
            limit = self._config.limits.client_queue_bytes
            too_large = PayloadTooLargeError(f"the answer is larger than {limit} bytes: use a filter or a limit")
            items = [messages.encode_message(messages.Response(request, None, too_large.record()))]
        for item in items:
            guest.outgoing.put(item)

    def _refuse(self, guest: Guest, reason: str) -> None:
        guest.refused = True
        self.refused_frames += 1
        self._log.warning("frame refused", guest=guest.name, worker=guest.worker or None, reason=reason)
        guest.outgoing.close(CLOSE_PROTOCOL, reason)


# Frames ------------------------------------------------------------------------------------------


def _items(request: int, value: Any, error: dict[str, Any] | None, *, final: bool) -> list[bytes]:
    """An answer as messages; a list too long for one frame comes in parts that are lists as well."""
    item = messages.encode_message(messages.Response(request, value, error, final))
    if len(item) <= PART_BYTES_AIM or not isinstance(value, list | tuple) or len(value) < 2:
        if len(item) > messages.FRAME_BYTES_MAX:
            raise PayloadTooLargeError(f"the answer is larger than {messages.FRAME_BYTES_MAX} bytes")
        return [item]
    middle = len(value) // 2
    return [
        *_items(request, value[:middle], error, final=False),
        *_items(request, value[middle:], error, final=final),
    ]


def _frame(items: Sequence[bytes]) -> bytes:
    """Items joined into one CBOR array."""
    count = len(items)
    if count < 24:  # RFC 8949, 3: the shortest head
        head = bytes((0x80 | count,))
    elif count < 256:
        head = bytes((0x98, count))
    else:
        head = b"\x99" + count.to_bytes(2, "big")
    return head + b"".join(items)
