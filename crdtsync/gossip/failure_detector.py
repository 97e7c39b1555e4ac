"""How suspicious a silence is: the phi accrual failure detector.

Hayashibara, Défago, Yared, Katayama, "The phi accrual failure detector", SRDS 2004. Instead of up or down it gives
phi = -log10(P), P being the probability that a peer whose frames came at such intervals would still come after this
silence: at 1 one false alarm in ten, at 8 one in a hundred million. Where we differ, as Akka and Cassandra do:

- The standard deviation has a floor. On a steady link it would shrink to a millisecond, and one collection of garbage
  at the peer would be a failure.
- The first samples are made up around the expected interval, so that a new link is not suspected at its first pause.
- A pause of our own (`forgive`) is not held against the peer.

It drives what people see and alarms. Nothing that must be right rests on it: takeover counts from the last sign of life
by any path (`Liveness`), and membership never changes by itself.
"""

from __future__ import annotations

import math
from collections import deque
from functools import cache
from typing import Final

SAMPLES_MAX: Final = 64  # a minute of pings
STD_MS_MIN: Final = 500  # half the interval of pings: one lost ping is no suspicion
PHI_MAX: Final = 300.0  # where erfc underflows; more means nothing


class PhiAccrual:
    """The arrivals of one peer's frames.

    Args:
        mono_ms: When the link came up.
        interval_ms: How often frames are expected at the least.
    """

    def __init__(self, mono_ms: int, *, interval_ms: int = 1_000, std_ms_min: int = STD_MS_MIN) -> None:
        self._last_ms = mono_ms
        self._std_ms_min = std_ms_min
        self._samples: deque[int] = deque((interval_ms * 3 // 4, interval_ms * 5 // 4), maxlen=SAMPLES_MAX)
        self._sum = sum(self._samples)
        self._squares = sum(sample * sample for sample in self._samples)

    @property
    def last_ms(self) -> int:
        """When the last frame came, on the monotonic clock."""
        return self._last_ms

    def heard(self, mono_ms: int) -> None:
        """A frame came. Going back in time counts as no time at all."""
        interval = max(0, mono_ms - self._last_ms)
        self._last_ms = max(self._last_ms, mono_ms)
        if len(self._samples) == SAMPLES_MAX:
            oldest = self._samples[0]
            self._sum -= oldest
            self._squares -= oldest * oldest
        self._samples.append(interval)
        self._sum += interval
        self._squares += interval * interval

    def forgive(self, pause_ms: int, mono_ms: int) -> None:
        """We ourselves did not run for `pause_ms` until now: frames may be waiting unread."""
        self._last_ms = min(mono_ms, self._last_ms + pause_ms)

    @staticmethod
    @cache
    def calm_ms(phi: float, *, std_ms_min: int = STD_MS_MIN) -> int:
        """A silence that is no longer than this is below `phi` whatever the intervals were before it."""
        low, high = -PHI_MAX, PHI_MAX  # in standard deviations beyond the mean, which is at least 0
        while high - low > 1e-6:
            middle = (low + high) / 2
            if 0.5 * math.erfc(middle / math.sqrt(2)) > 10**-phi:
                low = middle
            else:
                high = middle
        return math.floor(low * std_ms_min)

    def phi(self, mono_ms: int) -> float:
        """Suspicion now, from 0 to `PHI_MAX`."""
        count = len(self._samples)
        mean = self._sum / count
        variance = max(0.0, self._squares / count - mean * mean)
        std = max(float(self._std_ms_min), math.sqrt(variance))
        later = 0.5 * math.erfc((mono_ms - self._last_ms - mean) / (std * math.sqrt(2)))
        return min(PHI_MAX, -math.log10(later)) if later > 0 else PHI_MAX
