"""Credits in bytes: a peer sends commits and rows only as fast as they become durable here.

As QUIC's MAX_DATA (RFC 9000, section 4.1), grants are totals since the link opened, not increments: repeated or lost
ones do no harm. Data frames say at which offset they stand, and heads and pings how far the sender is, so bytes in lost
frames are noticed and granted again. A sender may overdraw by the one frame with which it reaches its limit: otherwise
a commit larger than the window could never be sent.
"""

from __future__ import annotations

from crdtsync.errors import RemoteProtocolError
from crdtsync.protocol.peer_messages import FRAME_BYTES_MAX


class CreditOut:
    """What we may send on one link."""

    def __init__(self, granted: int) -> None:
        self.granted = granted
        self.sent = 0

    @property
    def available(self) -> int:
        """Bytes until the limit; negative when overdrawn."""
        return self.granted - self.sent

    def grant(self, total: int) -> None:
        self.granted = max(self.granted, total)

    def spend(self, frame_bytes: int) -> None:
        self.sent += frame_bytes


class CreditIn:
    """What we let a peer send. What it sent and is not yet durable here outlives the link, and counts on."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.untaken = 0
        self._reached = 0  # how far the sender is
        self._granted = 0

    def opened(self) -> int:
        """A new link: the first grant, for the Hello."""
        self._reached = 0
        self._granted = max(0, self.window - self.untaken)
        return self._granted

    def arrived(self, offset: int, frame_bytes: int) -> None:
        """A data frame has come.

        Raises:
            RemoteProtocolError: If the peer sends beyond what it was granted, and the one frame that it may overdraw.
        """
        self._reached = max(self._reached, offset) + frame_bytes
        if self._reached > self._granted + FRAME_BYTES_MAX:
            raise RemoteProtocolError(f"{self._reached} bytes sent, {self._granted} granted", granted=self._granted)
        self.untaken += frame_bytes

    def reached(self, offset: int) -> None:
        """The peer says how much it has sent so far: data frames before that will not come any more."""
        self._reached = max(self._reached, min(offset, self._granted + FRAME_BYTES_MAX))

    def taken(self, frame_bytes: int) -> None:
        """So much of what came is durable."""
        self.untaken = max(0, self.untaken - frame_bytes)

    def regrant(self) -> int | None:
        """A new total to tell the peer, if it is worth a frame: a quarter of the window, or anything if it has none."""
        total = self._reached + self.window - self.untaken
        gain = total - self._granted
        if gain <= 0 or (gain < self.window // 4 and self._reached < self._granted):
            return None
        self._granted = total
        return total
