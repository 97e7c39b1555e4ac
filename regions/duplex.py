"""Transports of frames between a program and a node: a websocket, or two queues inside one process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException
from websockets.protocol import State

from crdtsync.errors import ConfigError
from crdtsync.protocol.messages import FRAME_BYTES_MAX
from regions.transport.frames import ListenedClientConnection, OnFrame, write_at_once

OPEN_TIMEOUT_S: Final = 5.0
CLOSE_TIMEOUT_S: Final = 1.0
PING_INTERVAL_S: Final = 5.0
PING_TIMEOUT_S: Final = 10.0  # a handler that holds the loop for less does not cost the connection
GONE: Final = (OSError, EOFError, WebSocketException, TimeoutError)
T = TypeVar("T")


class Duplex(Protocol):
    """Moves frames. Raises OSError, EOFError or WebSocketException once the other side is gone."""

    async def send(self, frame: bytes, /) -> None: ...

    async def recv(self) -> str | bytes: ...

    @property
    def open(self) -> bool:
        """Whether the other side may still be there."""

    def write(self, frame: bytes, /) -> bool:
        """Send without waiting; False, and nothing was sent, if that cannot be."""

    async def listen(self, listener: OnFrame, /) -> None:
        """Call `listener`, which raises nothing, with each frame as it comes. Ends by an exception, as `recv`."""

    async def close(self) -> None: ...


Dial: TypeAlias = Callable[[], Awaitable[Duplex]]


def dial_websocket(url: str) -> Dial:
    """How to reach a node by its URL, `ws://HOST:PORT`. Raises ConfigError for another kind."""
    if not url.startswith(("ws://", "wss://")):
        raise ConfigError(f"node URL {url!r}: expected ws://HOST:PORT")

    async def dial() -> Duplex:
        connection = await connect(
            url,
            create_connection=ListenedClientConnection,
            compression=None,
            proxy=None,
            open_timeout=OPEN_TIMEOUT_S,
            close_timeout=CLOSE_TIMEOUT_S,
            ping_interval=PING_INTERVAL_S,
            ping_timeout=PING_TIMEOUT_S,
            max_size=FRAME_BYTES_MAX,
        )
        assert isinstance(connection, ListenedClientConnection)
        return WebsocketDuplex(connection)

    return dial


class WebsocketDuplex:
    """A websocket as a transport of frames."""

    def __init__(self, connection: ListenedClientConnection) -> None:
        self._connection = connection

    async def send(self, frame: bytes, /) -> None:
        await self._connection.send(frame)

    async def recv(self) -> str | bytes:
        return await self._connection.next_frame()

    @property
    def open(self) -> bool:
        return self._connection.protocol.state is State.OPEN

    def write(self, frame: bytes, /) -> bool:
        return write_at_once(self._connection, frame)

    async def listen(self, listener: OnFrame, /) -> None:
        self._connection.listen(listener)
        await self._connection.wait_closed()
        raise self._connection.close_exc

    async def close(self) -> None:
        await self._connection.close()


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

    @property
    def open(self) -> bool:
        return not self._closed.is_set()

    def write(self, frame: bytes, /) -> bool:
        if self._closed.is_set() or self._outbox.full():
            return False
        self._outbox.put_nowait(frame)
        return True

    async def listen(self, listener: OnFrame, /) -> None:
        while True:
            listener(await self.recv())

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
