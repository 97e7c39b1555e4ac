"""Stamps, and the hybrid clock that hands them out.

A stamp is one integer: 48 bits of milliseconds since the Unix epoch, then 16 bits of counter. Stamps of one writer only
grow, a stamp is larger than that of anything its writer had seen, and it stays close to real time.
Kulkarni et al., "Logical physical clocks", OPODIS 2014. Where we differ:

- The physical part is not the wall clock, which steps. It follows the monotonic clock and slews toward the wall clock
  at `SLEW_PPM_MAX`; so a step shows as `skew_ms`, which somebody can look at, and not as time. While a majority of the
  regions contradicts the wall clock it is not followed; when it contradicts physical time and agrees with the wall
  clock, that is taken over at once (`clock_watch`).
- Stamps too far ahead are refused (`ClockSkewError`); the commit that carries one is held back until its time comes.
  With every accepted stamp at most `max_skew_ms` ahead, the paper's bound l - pt <= epsilon holds by construction.
- Only what is stamped is an event: receiving advances the clock without taking a stamp of its own.
- An overflowing counter carries into the milliseconds. That needs 65,536 commits within one of them.

Across restarts. A stamp means nothing until its commit is durable, because nothing leaves a node before. So the bound
that survives a crash needs no reserve: whenever the replica writes a batch, `bound_to_persist()` says what goes into
its meta beside the commits, and after the fsync `bound_persisted(bound)` is called. The next incarnation starts with
that bound. Reserving some seconds ahead, as is usual, would make the first stamps after a quick restart come from the
future, and the peers would hold them back.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from crdtsync.errors import ClockSkewError

COUNTER_BITS: Final = 16
COUNTER_MAX: Final = (1 << COUNTER_BITS) - 1
STAMP_MAX: Final = (1 << 63) - 1  # 47 bits of milliseconds reach the year 6429, and SQLite's integers have a sign
MAX_SKEW_MS: Final = 500  # design 4: beyond it a clock is broken; NTP over the internet stays within 100
SLEW_PPM_MAX: Final = 500  # what ntpd slews with; quartz drifts by less than 100

_NS_PER_MS: Final = 1_000_000


class Now(NamedTuple):
    """The time of an input. `mono_ms` is CLOCK_BOOTTIME: it counts on while the machine sleeps and never steps."""

    wall_ms: int  # milliseconds since the Unix epoch; may step in both directions
    mono_ms: int


def make_stamp(ms: int, counter: int = 0) -> int:
    assert 0 <= counter <= COUNTER_MAX, counter
    return ms << COUNTER_BITS | counter


def stamp_ms(stamp: int) -> int:
    """Milliseconds since the Unix epoch."""
    return stamp >> COUNTER_BITS


def stamp_counter(stamp: int) -> int:
    return stamp & COUNTER_MAX


class HybridClock:
    """The source of stamps of one incarnation.

    Args:
        bound: The highest stamp that the durable state may hold, from the node's meta; 0 on an empty disk.
        max_skew_ms: How far ahead of its own time this clock follows others.

    Attributes:
        follows_wall: False while the wall clock is known to be wrong: then the monotonic clock alone counts on.
    """

    def __init__(self, bound: int = 0, *, max_skew_ms: int = MAX_SKEW_MS) -> None:
        self.max_skew_ms = max_skew_ms
        self.follows_wall = True
        self._last = bound
        self._floor_ms = stamp_ms(bound) - max_skew_ms
        self._durable = bound
        self._mono_ms: int | None = None  # of the latest reading
        self._offset_ns = 0  # physical minus monotonic time

    @property
    def last(self) -> int:
        """The highest stamp handed out or observed."""
        return self._last

    def physical_ms(self, now: Now) -> int:
        """This node's idea of real time: never goes back, and passes at most `SLEW_PPM_MAX` off the monotonic rate.

        By it others' stamps are judged (`DomainLog`), and delays and deadlines counted. The first reading takes the
        wall clock as it is, there is nothing yet to doubt it with; but never so early that what the durable state
        holds would be from the future: a machine that comes up an hour slow must still fold what it had folded
        before, and time must pass on it. Only `set_to_wall` makes it jump.
        """
        if self._mono_ms is None:
            self._mono_ms = now.mono_ms
            self._offset_ns = (max(now.wall_ms, self._floor_ms) - now.mono_ms) * _NS_PER_MS
        elapsed_ms = now.mono_ms - self._mono_ms
        if elapsed_ms > 0:
            self._mono_ms = now.mono_ms
            if self.follows_wall:
                budget_ns = elapsed_ms * SLEW_PPM_MAX  # a millisecond has a million nanoseconds: ppm are ns per ms
                wanted_ns = (now.wall_ms - now.mono_ms) * _NS_PER_MS - self._offset_ns
                self._offset_ns += max(-budget_ns, min(budget_ns, wanted_ns))
        return self._mono_ms + self._offset_ns // _NS_PER_MS

    def skew_ms(self, now: Now) -> int:
        """How far the wall clock is ahead of physical time: a step that the slew has not yet made up for."""
        return now.wall_ms - self.physical_ms(now)

    def lead_ms(self, now: Now) -> int:
        """How far the next stamp is ahead of physical time: 0 unless stamps came from a clock that was fast."""
        return max(0, stamp_ms(self._last + 1) - self.physical_ms(now))

    def set_to_wall(self, now: Now) -> None:
        """Take the wall clock's time as physical time at once: a majority agrees with it, and not with ours.

        Stamps still grow: where time goes back they stay where they were until it has caught up (`lead_ms`).
        """
        self.physical_ms(now)
        self._offset_ns = (now.wall_ms - now.mono_ms) * _NS_PER_MS

    def tick(self, now: Now) -> int:
        """A new stamp, larger than every one handed out or observed here or by earlier incarnations.

        It may leave this node only after a bound that covers it is durable (see `bound_to_persist`).
        """
        self._last = max(make_stamp(self.physical_ms(now)), self._last + 1)
        return self._last

    def observe(self, stamp: int, now: Now) -> None:
        """Take note of another's stamp, so that everything stamped later sorts after it.

        Raises:
            ClockSkewError: If it is ahead of own time by more than `max_skew_ms`. The clock is left unchanged.
        """
        if stamp <= self._last:
            return
        ahead_ms = stamp_ms(stamp) - self.physical_ms(now)
        if ahead_ms > self.max_skew_ms:
            raise ClockSkewError(
                f"a stamp is {ahead_ms} ms ahead of own time, the limit is {self.max_skew_ms}: compare the clocks",
                stamp=stamp,
                ahead_ms=ahead_ms,
                limit_ms=self.max_skew_ms,
            )
        self._last = stamp

    def bound_to_persist(self) -> int | None:
        """What the next batch must make durable beside its commits; None when the disk already has it."""
        return self._last if self._last > self._durable else None

    def bound_persisted(self, bound: int) -> None:
        """The batch that carried `bound` is durable."""
        self._durable = max(self._durable, bound)
