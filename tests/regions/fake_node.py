"""A node as clients and workers see it, scripted by the test: real loopback sockets, no replica behind them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any, Self

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from crdtsync import commands as c
from crdtsync.effects import Assignment
from crdtsync.errors import CrdtSyncError
from crdtsync.identifiers import EventId, WriterId
from crdtsync.protocol.messages import (
    Assigned,
    Expect,
    Opened,
    Refused,
    Response,
    StopAttempt,
    decode_frame,
    encode_frame,
)
from crdtsync.protocol.values import encode_arguments

WRITER = WriterId("eu/a#1-0123456789abcdef")
SILENCE = object()  # what a script returns for a request that gets no answer (yet)
WITHIN_S = 10.0  # for anything to happen; only a broken test waits so long


class Connection:
    def __init__(self, socket: ServerConnection, role: str) -> None:
        self.socket = socket
        self.role = role
        self.requests: list[tuple[int, Any]] = []
        self.frames = 0
        self.worker = ""

    async def send(self, *messages: Any) -> None:
        await self.socket.send(encode_frame(messages))


class FakeNode:
    """Answers what `script` has for a command's type: a value, an error, SILENCE, or a function of the command."""

    def __init__(self) -> None:
        self.script: dict[type[Any], Any] = {
            c.WorkerHello: {"region": "eu", "writer": WRITER, "heartbeat_ms": 50, "stop": []},
            c.Heartbeat: {},
            c.WorkerDraining: {},
            c.RecordEffect: {},
            c.SaveCheckpoint: {},
            c.EditDocument: {},
            c.Complete: {"state": "succeeded"},
            c.Submit: lambda command: [{"id": spec.id.hex(), "created": True} for spec in command.specs],
            c.Status: {"region": "eu"},
            c.ListTasks: {"records": [], "next": None},
            c.ListConflicts: {"records": [], "next": None},
        }
        self.connections: list[Connection] = []
        self.commands: list[Any] = []
        self.opened = 0
        self.refusal: CrdtSyncError | None = None
        self._changed = asyncio.Condition()
        self._server: Server | None = None
        self._port = 0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Listen; after `stop`, on the same port again."""
        self._server = await serve(
            self._serve, "127.0.0.1", self._port, compression=None, close_timeout=1, max_size=64 << 20
        )
        self._port = next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    def cut(self) -> None:
        """Drop every connection, as a crash would: no closing handshake."""
        for connection in self.connections:
            connection.socket.transport.abort()

    async def until(self, holds: Callable[[], Any], within_s: float = WITHIN_S) -> Any:
        """Wait until something that the clients did makes it so."""
        async with asyncio.timeout(within_s), self._changed:
            await self._changed.wait_for(holds)
            return holds()

    def of(self, kind: type[Any]) -> list[Any]:
        return [command for command in self.commands if isinstance(command, kind)]

    @property
    def worker(self) -> Connection:
        return next(x for x in reversed(self.connections) if x.role == "worker")

    async def assign(self, *assignments: Assignment) -> None:
        await self.until(lambda: any(x.worker for x in self.connections))
        await self.worker.send(Assigned(assignments))

    async def stop_attempt(self, attempt: EventId, reason: str) -> None:
        await self.worker.send(StopAttempt(attempt, reason))

    async def completed(self, count: int = 1) -> list[c.Complete]:
        await self.until(lambda: len(self.of(c.Complete)) >= count)
        return self.of(c.Complete)

    async def answer(self, kind: type[Any], value: Any = None, error: CrdtSyncError | None = None) -> None:
        """Answer the requests of a kind that were met with silence, on the newest connection that has some."""
        for connection in reversed(self.connections):
            asked = [number for number, command in connection.requests if isinstance(command, kind)]
            if asked:
                record = None if error is None else error.record()
                await connection.send(*(Response(number, value, record) for number in asked))
                return
        raise AssertionError(f"no {kind.__name__} was asked")

    async def _serve(self, socket: ServerConnection) -> None:
        try:
            [opening] = decode_frame(await socket.recv(), Expect.OPENING)
            if self.refusal is not None:
                await socket.send(encode_frame([Refused(self.refusal.record())]))
                return
            await socket.send(encode_frame([Opened(1, "eu", WRITER)]))
            connection = Connection(socket, opening.role)
            async with self._changed:
                self.connections.append(connection)
                self.opened += 1
                self._changed.notify_all()
            try:
                async for frame in socket:
                    await self._received(connection, frame)
            finally:
                self.connections.remove(connection)
                async with self._changed:
                    self._changed.notify_all()
        except ConnectionClosed:
            pass

    async def _received(self, connection: Connection, frame: Any) -> None:
        expect = Expect.WORKER if connection.role == "worker" else Expect.CLIENT
        responses = []
        connection.frames += 1
        for request in decode_frame(frame, expect):
            connection.requests.append((request.id, request.command))
            self.commands.append(request.command)
            if isinstance(request.command, c.WorkerHello):
                connection.worker = request.command.worker
            answer = self.script.get(type(request.command), {})
            if callable(answer):
                answer = answer(request.command)
                if inspect.isawaitable(answer):
                    answer = await answer
            if answer is SILENCE or isinstance(request.command, c.Forget):
                continue
            if isinstance(answer, CrdtSyncError):
                responses.append(Response(request.id, None, answer.record()))
            else:
                responses.append(Response(request.id, answer))
        if responses:
            await connection.send(*responses)
        async with self._changed:
            self._changed.notify_all()


def attempt_id(number: int) -> EventId:
    return EventId(1_000 + number, WRITER, number, 0)


def assignment(number: int, name: str, *args: Any, **fields: Any) -> Assignment:
    """One attempt to run; the attempt's number is also its task's."""
    values: dict[str, Any] = {
        "task": number.to_bytes(16, "big"),
        "attempt": attempt_id(number),
        "number": 1,
        "name": name,
        "payload": encode_arguments(name, args, {}),
        "term": 1,
        "region": "eu",
        "fence": 0,
        "deadline_ms": 0,
        "timeout_ms": 0,
        "root": attempt_id(number),
        "effects": (),
        "checkpoint": None,
        "checkpoint_index": 0,
        "undoes": None,
        "document": b"",
    }
    return Assignment(**{**values, **fields})
