"""A peer's clocks against ours, with how far off that may be.

Mills, RFC 5905 (NTPv4), sections 8 and 10: of four times, t0 and t3 on our clock and t1 and t2 on the peer's,
offset = ((t1 - t0) + (t2 - t3)) / 2 and rtt = (t3 - t0) - (t2 - t1). The truth is within rtt/2 of the offset whatever
the two directions took; it goes stale at the rate at which two clocks may part (NTP's dispersion). Of the last samples
the one is believed that is the least uncertain now. Where we differ:

- Our side is read on the monotonic clock, which nobody sets; the peer's on the clock that its stamps follow
  (`HybridClock.physical_ms`). So what is compared is what matters, and a step of either wall clock is no noise.
- Measurements outlive the link: a region that is cut off still knows for a while how its clock stood.

The drift of the peer's monotonic clock against ours comes from its pings, which carry it: one-way times, of which the
smallest delay in each slice of time is kept (Moon, Skelly and Towsley, "Estimation and removal of clock skew from
network delay measurements", INFOCOM 1999). A one-way delay lies between 0 and the round trip, so over a window the
estimate is off by at most that much.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final, NamedTuple

from crdtsync.clock import SLEW_PPM_MAX, Now
from crdtsync.identifiers import WriterId
from crdtsync.protocol.peer_messages import Pong

SAMPLES_MAX: Final = 8  # as NTP's clock filter; at a ping a second a change of the peer's clock shows within 8 s
CRYSTAL_PPM_MAX: Final = 250  # of one monotonic clock off true time; quartz stays within 100
DISPERSION_PPM: Final = 2 * (SLEW_PPM_MAX + CRYSTAL_PPM_MAX)  # how fast two regions' clocks may part
STALE_MS: Final = 3_600_000  # a measurement that is older says nothing
RESOLUTION_MS: Final = 1  # clocks are read in whole milliseconds
SLICE_MS: Final = 10_000  # of the window over which drift is measured
SLICES_MAX: Final = 60  # ten minutes
DRIFT_MS_MIN: Final = 30_000  # a shorter window says nothing about a crystal

_PPM: Final = 1_000_000


class Offset(NamedTuple):
    """The peer's clock against ours: the truth is within the uncertainty, if clocks part no faster than stated."""

    offset_ms: int  # positive where the peer's clock is ahead of ours
    rtt_ms: int
    uncertainty_ms: int
    age_ms: int


class Drift(NamedTuple):
    ppm: int  # positive where the peer's monotonic clock runs faster than ours
    uncertainty_ppm: int
    window_ms: int


class _Sample(NamedTuple):
    mono_ms: int  # when it was taken, on our monotonic clock
    ahead_ms: int  # the peer's clock minus our monotonic one
    rtt_ms: int

    def uncertainty_ms(self, mono_ms: int) -> int:
        return (self.rtt_ms + 1) // 2 + RESOLUTION_MS + max(0, mono_ms - self.mono_ms) * DISPERSION_PPM // _PPM


@dataclass(slots=True)
class _Slice:
    """The ping of the least delay within some seconds. Only differences of delays mean anything."""

    began_ms: int
    mono_ms: int
    delay_ms: int


class PeerClock:
    """The last few measurements of one peer's clocks."""

    def __init__(self) -> None:
        self.writer: WriterId | None = None
        self._samples: deque[_Sample] = deque(maxlen=SAMPLES_MAX)
        self._slices: deque[_Slice] = deque(maxlen=SLICES_MAX)

    def met(self, writer: WriterId) -> None:
        """A link to that incarnation is open. What was measured of an earlier one says nothing about it."""
        if self.writer != writer:
            self.writer = writer
            self._samples.clear()
            self._slices.clear()

    def heard(self, pong: Pong, now: Now) -> bool:
        """Take in the answer to a ping. False if it cannot be: to a ping not sent yet, or held longer than it took."""
        elapsed_ms = now.mono_ms - pong.mono_ms
        rtt_ms = elapsed_ms - (pong.sent_ms - pong.received_ms)
        if not 0 <= rtt_ms <= elapsed_ms:
            return False
        ahead_ms = (pong.received_ms + pong.sent_ms - pong.mono_ms - now.mono_ms) // 2
        self._samples.append(_Sample(now.mono_ms, ahead_ms, rtt_ms))
        return True

    def pinged(self, mono_ms: int, now: Now) -> None:
        """A ping came that was sent when the peer's monotonic clock showed `mono_ms`."""
        delay_ms = now.mono_ms - mono_ms
        last = self._slices[-1] if self._slices else None
        if last is None or now.mono_ms - last.began_ms >= SLICE_MS:
            self._slices.append(_Slice(now.mono_ms, now.mono_ms, delay_ms))
        elif delay_ms <= last.delay_ms:
            last.mono_ms, last.delay_ms = now.mono_ms, delay_ms

    def best(self, own_ms: int, mono_ms: int) -> Offset | None:
        """The least uncertain measurement, the newest of equals; None before the first, and when all are stale.

        Args:
            own_ms: What our own clock shows at monotonic time `mono_ms`.
        """
        best = min(reversed(self._samples), key=lambda sample: sample.uncertainty_ms(mono_ms), default=None)
        if best is None or mono_ms - best.mono_ms > STALE_MS:
            return None
        offset_ms = best.ahead_ms - (own_ms - mono_ms)
        return Offset(offset_ms, best.rtt_ms, best.uncertainty_ms(mono_ms), max(0, mono_ms - best.mono_ms))

    def drift(self) -> Drift | None:
        """How much faster the peer's monotonic clock runs than ours; None until the window is long enough."""
        if not self._slices or not self._samples:
            return None
        first, last = self._slices[0], self._slices[-1]
        window_ms = last.mono_ms - first.mono_ms
        if window_ms < DRIFT_MS_MIN:
            return None
        slack_ms = min(sample.rtt_ms for sample in self._samples) + RESOLUTION_MS
        ppm = round((first.delay_ms - last.delay_ms) * _PPM / window_ms)
        return Drift(ppm, slack_ms * _PPM // window_ms, window_ms)
