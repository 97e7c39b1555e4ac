"""What is due when: one heap on the wall clock, one on the monotonic clock.

Schedules, delays and deadlines count wall time; leases, silence and timeouts count monotonic
time (design 3). Setting a timer again moves it: the older entry is skipped when it comes up.
"""

from __future__ import annotations

import heapq
from typing import TypeAlias

from crdtsync.clock import Now

Timer: TypeAlias = tuple[str, bytes | tuple[int, str, int, int] | str]  # what, about which


class Timers:
    def __init__(self) -> None:
        self._wall: list[tuple[int, Timer]] = []
        self._mono: list[tuple[int, Timer]] = []
        self._due: dict[Timer, int] = {}

    def __len__(self) -> int:
        return len(self._due)

    def at_wall(self, wall_ms: int, timer: Timer) -> None:
        self._set(self._wall, wall_ms, timer)

    def at_mono(self, mono_ms: int, timer: Timer) -> None:
        self._set(self._mono, mono_ms, timer)

    def cancel(self, timer: Timer) -> None:
        self._due.pop(timer, None)

    def is_set(self, timer: Timer) -> bool:
        return timer in self._due

    def _set(self, heap: list[tuple[int, Timer]], when: int, timer: Timer) -> None:
        if self._due.get(timer) != when:
            self._due[timer] = when
            heapq.heappush(heap, (when, timer))

    def due(self, now: Now, limit: int) -> list[Timer]:
        """Take up to `limit` timers that are due, wall ones first."""
        taken: list[Timer] = []
        for heap, time_ms in ((self._wall, now.wall_ms), (self._mono, now.mono_ms)):
            while heap and heap[0][0] <= time_ms and len(taken) < limit:
                when, timer = heapq.heappop(heap)
                if self._due.get(timer) == when:
                    del self._due[timer]
                    taken.append(timer)
        return taken

    def next_mono_ms(self, now: Now) -> int | None:
        """When the earliest timer is due, on the monotonic clock, if the wall clock stays steady."""
        times = []
        if (top := self._top(self._wall)) is not None:
            times.append(now.mono_ms + max(0, top - now.wall_ms))
        if (top := self._top(self._mono)) is not None:
            times.append(top)
        return min(times, default=None)

    def _top(self, heap: list[tuple[int, Timer]]) -> int | None:
        while heap and self._due.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None
