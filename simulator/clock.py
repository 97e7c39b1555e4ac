"""One region's clocks: what its machine believes the time to be, as a function of true time.

The monotonic clock never steps; it may run fast or slow, and a boot of the machine starts it anew. The wall clock runs
with it (they share a crystal) and adds what can be wrong with a wall clock: an offset, steps, a strobe, standing still.
"""

from __future__ import annotations

from typing import Final

from crdtsync.clock import Now

EPOCH_US: Final = 1_750_000_000_000_000  # what a right wall clock shows when true time is 0: June 2025
PPM: Final = 1_000_000


class LocalClock:
    """Clocks of one machine. All of `now_us` is true time.

    Args:
        booted_us: How long the machine had been up at true time 0.
    """

    def __init__(self, *, booted_us: int = 0, wall_off_us: int = 0, drift_ppm: int = 0) -> None:
        self.offset_us = self._own_off_us = wall_off_us  # steps add up in the first
        self._own_ppm = drift_ppm
        self._base_us = 0  # true time of the last change of rate
        self._mono_us = booted_us  # at that time
        self._wall_us = EPOCH_US  # at that time, without what is wrong with it
        self._ppm = drift_ppm
        self._strobe: tuple[int, int] | None = None  # by, period
        self._frozen_us: int | None = None

    def _passed_us(self, now_us: int) -> int:
        passed = now_us - self._base_us
        return passed + passed * self._ppm // PPM if self._ppm else passed

    def mono_us(self, now_us: int) -> int:
        return self._mono_us + self._passed_us(now_us)

    def wall_us(self, now_us: int) -> int:
        if self._frozen_us is not None:
            return self._frozen_us
        wall = self._wall_us + self._passed_us(now_us) + self.offset_us
        if self._strobe is not None:
            by, period = self._strobe
            wall += by if now_us // period % 2 else 0
        return wall

    def now(self, now_us: int) -> Now:
        """What the driver hands to the replica."""
        passed = self._passed_us(now_us)
        if self._frozen_us is None and self._strobe is None:
            wall = self._wall_us + passed + self.offset_us
        else:
            wall = self.wall_us(now_us)
        return Now(wall // 1_000, (self._mono_us + passed) // 1_000)

    def true_us(self, mono_ms: int, now_us: int) -> int:
        """The true time at which the monotonic clock will show so much, if its rate stays; at least `now_us`."""
        wait = mono_ms * 1_000 - self.mono_us(now_us)
        if wait <= 0:
            return now_us
        return now_us + (wait * PPM // (PPM + self._ppm) + 1 if self._ppm else wait)

    @property
    def drift_ppm(self) -> int:
        return self._ppm

    def error_us(self, now_us: int) -> int:
        """How far the wall clock is ahead of true time."""
        return self.wall_us(now_us) - EPOCH_US - now_us

    # What goes wrong ---------------------------------------------------------------------------

    def drift(self, ppm: int, now_us: int) -> None:
        """Run so much faster from now on."""
        passed = self._passed_us(now_us)
        self._mono_us += passed
        self._wall_us += passed
        self._base_us = now_us
        self._ppm = ppm

    def step(self, by_us: int) -> None:
        """The wall clock is set by hand."""
        self.offset_us += by_us

    def strobe(self, by_us: int, period_us: int) -> None:
        self._strobe = (by_us, period_us)

    def freeze(self, now_us: int) -> None:
        self._frozen_us = self.wall_us(now_us)

    def mend(self) -> None:
        """End strobe and standstill."""
        self._strobe = None
        self._frozen_us = None

    def set_right(self, now_us: int) -> None:
        """Somebody looks after this machine's clock: all that faults did to it is undone."""
        self.mend()
        self.offset_us = self._own_off_us
        self.drift(self._own_ppm, now_us)

    def boot(self, now_us: int) -> None:
        """The machine lost power and starts again: its monotonic clock counts from 0."""
        self.drift(self._ppm, now_us)
        self._mono_us = 0
