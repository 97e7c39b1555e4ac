"""A peer's clock against ours, with how far off that may be.

Mills, RFC 5905 (NTPv4), sections 8 and 10: of four times, t0 and t3 on our clock and t1 and t2 on the peer's,
offset = ((t1 - t0) + (t2 - t3)) / 2 and rtt = (t3 - t0) - (t2 - t1). The truth is within rtt/2 of the offset whatever
the two directions took, so of the last samples the one with the shortest round trip is believed. Where we differ: the
round trip is measured on the monotonic clock, and a sample during which our wall clock stepped is thrown away.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from crdtsync.clock import Now
from crdtsync.protocol.peer_messages import Pong

SAMPLES_MAX: Final = 8  # as NTP's clock filter; at a ping a second a step of the peer's clock shows within 8 s
STEP_MS_MIN: Final = 20  # wall and monotonic time that differ by more over one round trip: the clock was set


class Offset(NamedTuple):
    offset_ms: int  # positive where the peer's clock is ahead of ours
    rtt_ms: int

    @property
    def uncertainty_ms(self) -> int:
        return (self.rtt_ms + 1) // 2


class OffsetFilter:
    """The last few measurements of one peer's clock."""

    def __init__(self) -> None:
        self._samples: deque[Offset] = deque(maxlen=SAMPLES_MAX)
        self.rtt_ms: int | None = None  # of the last round trip

    def heard(self, pong: Pong, now: Now) -> None:
        """Take in the answer to a ping. What cannot be (from the future, or a clock that was set) is ignored."""
        elapsed_ms = now.mono_ms - pong.mono_ms
        if elapsed_ms < 0 or abs((now.wall_ms - pong.wall_ms) - elapsed_ms) > STEP_MS_MIN:
            return
        rtt_ms = elapsed_ms - (pong.sent_ms - pong.received_ms)
        if not 0 <= rtt_ms <= elapsed_ms:
            return
        self.rtt_ms = rtt_ms
        offset_ms = ((pong.received_ms - pong.wall_ms) + (pong.sent_ms - now.wall_ms)) // 2
        self._samples.append(Offset(offset_ms, rtt_ms))

    def best(self) -> Offset | None:
        """The measurement with the shortest round trip, the newest of equals; None before the first."""
        return min(reversed(self._samples), key=lambda sample: sample.rtt_ms, default=None)
