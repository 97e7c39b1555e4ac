"""A domain's state instead of its history, for a peer that lacks commits which were dropped here.

The rows are read while the domain moves on, so together they are no cut: some hold facts that the state's heads do not
cover yet. Facts join, so that is harmless, but the receiver's digest means nothing before it has applied what they may
hold (`until`). The opaque state is taken *before* the first row is read: its heads then cover no more than the rows do.
What arrives is checked for completeness, since frames can be lost; an incomplete one is told to begin again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from crdtsync.effects import TaskRow
from crdtsync.errors import RemoteProtocolError
from crdtsync.history import to_travel
from crdtsync.identifiers import Domain
from crdtsync.protocol.peer_messages import (
    ROWS_MAX,
    STATE_PIECE_BYTES_MAX,
    SnapshotChunk,
    SnapshotEnd,
    SnapshotState,
)

ROW_OVERHEAD_BYTES: Final = 256  # a row without its facts, roughly


class SnapshotSender:
    """One snapshot on its way to one peer."""

    def __init__(self, domain: Domain, state: bytes) -> None:
        self.domain = domain
        self.state = state
        self.rows_sent = 0
        self.reading: int | None = None  # token of the read under way
        self.after = b""  # id of the last row read
        self._rows: deque[TaskRow] = deque()
        self._rows_read = False  # all of them
        self._state_sent = 0

    def wants_rows(self) -> bool:
        return self.reading is None and not self._rows and not self._rows_read

    def rows_read(self, rows: Iterable[TaskRow]) -> None:
        """The read under way is done; no rows means that there are no more."""
        self.reading = None
        self._rows.extend(row._replace(facts=to_travel(row.facts)) for row in rows)
        if self._rows:
            self.after = self._rows[-1].task
        else:
            self._rows_read = True

    def next_piece(self, offset: int, bytes_max: int) -> SnapshotChunk | SnapshotState | None:
        """What to send next, of about `bytes_max`; None while rows are read, and when only the end is left."""
        if self._rows:
            rows = [self._rows.popleft()]
            size = _size_of(rows[0])
            while self._rows and len(rows) < ROWS_MAX:
                size += _size_of(self._rows[0])
                if size > bytes_max:
                    break
                rows.append(self._rows.popleft())
            self.rows_sent += len(rows)
            return SnapshotChunk(self.domain, offset, tuple(rows))
        if self._rows_read and self._state_sent < len(self.state):
            piece = self.state[self._state_sent : self._state_sent + min(STATE_PIECE_BYTES_MAX, max(1, bytes_max))]
            self._state_sent += len(piece)
            return SnapshotState(self.domain, offset, piece)
        return None

    @property
    def complete(self) -> bool:
        """Whether only the end is left to send."""
        return self._rows_read and self._state_sent == len(self.state)


class SnapshotReceiver:
    """One snapshot coming in from one peer.

    Args:
        state_bytes_max: The largest opaque state that is taken.
    """

    def __init__(self, domain: Domain, state_bytes_max: int) -> None:
        self.domain = domain
        self._rows = 0
        self._state = bytearray()
        self._state_bytes_max = state_bytes_max

    def rows(self, chunk: SnapshotChunk) -> None:
        self._rows += len(chunk.rows)

    def piece(self, piece: SnapshotState) -> None:
        """Raises RemoteProtocolError if the state is too large."""
        if len(self._state) + len(piece.data) > self._state_bytes_max:
            raise RemoteProtocolError(f"a snapshot's state of more than {self._state_bytes_max} bytes")
        self._state += piece.data

    def end(self, end: SnapshotEnd) -> bytes | None:
        """The opaque state; None if something was lost on the way."""
        complete = end.rows == self._rows and end.state_bytes == len(self._state)
        return bytes(self._state) if complete else None


def _size_of(row: TaskRow) -> int:
    return ROW_OVERHEAD_BYTES + len(row.facts)
