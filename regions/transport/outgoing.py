"""What waits to be sent over one connection: bounded in bytes.

All that was put in one turn of the loop is written at its end. What does not fit into the socket any more is sent by a
task, which waits for room.

A reader that is too slow costs only itself: its connection is closed with the reason in the log,
and whoever it is resumes from the log (peers), or asks again (clients, workers).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from websockets.asyncio.connection import Connection
from websockets.exceptions import ConnectionClosed

from crdtsync.errors import RemoteProtocolError
from regions.transport.frames import write_at_once

CLOSE_GOING_AWAY: Final = 1001
CLOSE_PROTOCOL: Final = 1002
CLOSE_OVERLOADED: Final = 1013  # "try again later": a slow reader
CLOSE_REASON_BYTES_MAX: Final = 123  # RFC 6455: a close frame's reason
CLOSE_TIMEOUT_S: Final = 1.0
FLUSH_TIMEOUT_S: Final = 5.0  # for what is to be sent before a close
ITEMS_MAX: Final = 4_096  # per frame: `messages.FRAME_MESSAGES_MAX`

Pack = Callable[[Sequence[bytes]], bytes]  # several queued items as one frame


class Outgoing:
    """The queue of one connection.

    Args:
        bytes_max: What may wait; one more item breaks the connection.
        pack: Joins queued items into one frame, or None to send each as it is.
        bytes_aim: How much `pack` is given at once.
    """

    def __init__(
        self, connection: Connection, bytes_max: int, *, pack: Pack | None = None, bytes_aim: int = 1 << 18
    ) -> None:
        self.connection = connection
        self.waiting_bytes = 0
        self._items: deque[bytes] = deque()
        self._bytes_max = bytes_max
        self._bytes_aim = bytes_aim
        self._pack = pack
        self._wake = asyncio.Event()
        self._flushed = asyncio.Event()
        self._flushed.set()
        self._due: asyncio.Handle | None = None  # what waits is written at the end of this turn
        self._unsent: bytes | None = None  # did not fit
        self._sending = False  # the task is at it: whatever is put now comes after that
        self._closing: tuple[int, str] | None = None
        self._abort: asyncio.TimerHandle | None = None

    def put(self, item: bytes) -> bool:
        """Queue one item. False when it does not fit any more: the connection is then being closed."""
        if self._closing is not None:
            return False
        if self.waiting_bytes + len(item) > self._bytes_max:
            self.close(CLOSE_OVERLOADED, f"reads too slowly: {self.waiting_bytes} bytes wait")
            return False
        self._items.append(item)
        self.waiting_bytes += len(item)
        self._flushed.clear()
        if self._due is None and not self._sending:
            self._due = asyncio.get_running_loop().call_soon(self._write)
        return True

    def close(self, code: int, reason: str, *, flush: bool = False) -> None:
        """End the connection from here; `flush` sends what waits first."""
        if self._closing is None:
            self._closing = (code, clipped(reason))
            if not flush:
                self._items.clear()
            self._wake.set()
            # One that does not read can't be told: what is being sent to it would never end.
            limit = FLUSH_TIMEOUT_S if flush else CLOSE_TIMEOUT_S
            self._abort = asyncio.get_running_loop().call_later(limit, self._give_up)

    def _give_up(self) -> None:
        with contextlib.suppress(AttributeError):  # asyncio's, see `run`
            self.connection.transport.abort()

    async def flushed(self) -> None:
        """Wait until nothing waits. Also returns when the connection has ended."""
        await self._flushed.wait()

    def _write(self) -> None:
        """Write what waits, as far as that is possible without waiting."""
        self._due = None
        if self._sending or self._unsent is not None:
            return
        while self._items:
            frame = self._next()
            if not write_at_once(self.connection, frame):
                self._unsent = frame
                self._wake.set()
                return
        self._flushed.set()

    async def run(self) -> None:
        """Send what could not be written at once, until `close` or the connection's end."""
        try:
            while True:
                self._sending = True
                if self._unsent is not None:
                    frame, self._unsent = self._unsent, None
                    await self.connection.send(frame)
                while self._items:
                    await self.connection.send(self._next())
                self._sending = False
                if self._closing is not None:
                    await self.connection.close(*self._closing)
                    return
                self._flushed.set()
                self._wake.clear()
                await self._wake.wait()
        except (ConnectionClosed, OSError):
            pass
        except AttributeError:
            # asyncio: a transport that was closed with bytes to send, and has sent them, fails on abort().
            if not self.connection.transport.is_closing():
                raise
        finally:
            for handle in (self._abort, self._due):
                if handle is not None:
                    handle.cancel()
            self._sending = True  # nothing is written any more
            self._items.clear()
            self.waiting_bytes = 0
            self._flushed.set()

    def _next(self) -> bytes:
        item = self._items.popleft()
        if self._pack is None:
            self.waiting_bytes -= len(item)
            return item
        items, size = [item], len(item)
        while self._items and len(items) < ITEMS_MAX and size + len(self._items[0]) <= self._bytes_aim:
            items.append(self._items.popleft())
            size += len(items[-1])
        self.waiting_bytes -= size
        return self._pack(items)


def clipped(reason: str) -> str:
    """A close reason as the protocol allows it."""
    return reason.encode()[:CLOSE_REASON_BYTES_MAX].decode(errors="ignore")


def binary(frame: str | bytes) -> bytes:
    """A frame's bytes. Raises RemoteProtocolError for a text frame, which nobody here speaks."""
    if isinstance(frame, str):
        raise RemoteProtocolError("a text frame stands where a binary one must")
    return frame
