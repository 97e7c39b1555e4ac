"""Websockets whose frames are handed over as they come, and written where they are made.

`recv` and `send` of websockets suit a task that does one thing after the other. A frame that comes then wakes a task,
which wakes another one to send the answer: each a turn of the loop, and as much work as the frame itself. Here a
connection has one listener, called from the transport; and `write_at_once` writes unless the other side reads too
slowly. What overflows goes by `send`, which waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.connection import Connection
from websockets.asyncio.server import ServerConnection
from websockets.frames import DATA_OPCODES, Frame, Opcode
from websockets.protocol import State

OnFrame = Callable[[bytes | str], None]
EARLY_FRAMES_MAX: Final = 2  # before anybody listens; then nothing more is read
FRAMES_PER_TURN: Final = 16  # of one connection; one read can bring thousands, and others want their turn

if TYPE_CHECKING:
    _Base = Connection
else:
    _Base = object


class Listened(_Base):
    """A connection with a listener. To be mixed into one of websockets' own; a test stands guard over what it uses."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._listener: OnFrame | None = None
        self._early: deque[bytes | str] = deque()  # came, and nobody was told
        self._told = 0  # in this turn
        self._expecting: asyncio.Future[None] | None = None
        self._parts: list[bytes] = []
        self._text = False

    def listen(self, listener: OnFrame) -> None:
        """Have `listener` called with each message from now on, and at once with those that have come. It may not raise."""
        self._listener = listener
        self._go_on()

    async def next_frame(self) -> bytes | str:
        """The next message, for as long as nobody listens. Raises ConnectionClosed."""
        while not self._early:
            if self.protocol.state is State.CLOSED:
                raise self.close_exc
            self._expecting = self.loop.create_future()
            await self._expecting
        frame = self._early.popleft()
        self._read_on()
        return frame

    def data_received(self, data: bytes) -> None:
        self._told = 0
        super().data_received(data)

    def process_event(self, event: Any) -> None:
        if type(event) is not Frame or event.opcode not in DATA_OPCODES:
            super().process_event(event)
            return
        data = event.data if type(event.data) is bytes else bytes(event.data)
        if event.opcode is not Opcode.CONT:
            self._text = event.opcode is Opcode.TEXT
        if not event.fin or self._parts:  # the protocol bounds the size of all parts together
            self._parts.append(data)
            if not event.fin:
                return
            data = b"".join(self._parts)
            self._parts.clear()
        self._arrived(data.decode("utf-8", "replace") if self._text else data)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._expected()

    def _arrived(self, message: bytes | str) -> None:
        if self._listener is not None and not self._early and self._told < FRAMES_PER_TURN:
            self._told += 1
            self._listener(message)
            return
        self._early.append(message)
        if self._listener is None:
            if len(self._early) == EARLY_FRAMES_MAX:
                self.transport.pause_reading()
            self._expected()
        elif len(self._early) == 1:
            self.transport.pause_reading()
            self.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        assert self._listener is not None
        for _ in range(min(FRAMES_PER_TURN, len(self._early))):
            self._listener(self._early.popleft())
        if self._early:
            self.loop.call_soon(self._go_on)
        else:
            self._read_on()

    def _expected(self) -> None:
        if self._expecting is not None and not self._expecting.done():
            self._expecting.set_result(None)

    def _read_on(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()


class ListenedServerConnection(Listened, ServerConnection):
    """What `serve(create_connection=...)` is given."""


class ListenedClientConnection(Listened, ClientConnection):
    """What `connect(create_connection=...)` is given."""


def write_at_once(connection: Connection, frame: bytes) -> bool:
    """Send a message without waiting. False, and nothing was sent, where `send` would wait, or raise."""
    if connection.paused or connection.protocol.state is not State.OPEN:
        return False
    connection.protocol.send_binary(frame)
    connection.send_data()
    return True
