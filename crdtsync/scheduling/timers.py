"""What is due when: one heap on real time, one on the monotonic clock.

Delays, backoff and deadlines are instants that regions tell one another, so they count real time,
as the hybrid clock has it (`RegionState.time_ms`): a wall clock that steps moves none of them.
Leases, silence and timeouts count monotonic time (design 3). Setting a timer again moves it: the
older entry is skipped when it comes up.
"""

from __future__ import annotations

import heapq
from typing import TypeAlias

Timer: TypeAlias = tuple[str, bytes | tuple[int, str, int, int] | str]  # what, about which


class Timers:
    def __init__(self) -> None:
        self._real: list[tuple[int, Timer]] = []
        self._mono: list[tuple[int, Timer]] = []
        self._due: dict[Timer, int] = {}

    def __len__(self) -> int:
        return len(self._due)

    def at_time(self, time_ms: int, timer: Timer) -> None:
        self._set(self._real, time_ms, timer)

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

    def due(self, time_ms: int, mono_ms: int, limit: int) -> list[Timer]:
        """Take up to `limit` timers that are due, those of real time first."""
        taken: list[Timer] = []
        for heap, now_ms in ((self._real, time_ms), (self._mono, mono_ms)):
            while heap and heap[0][0] <= now_ms and len(taken) < limit:
                when, timer = heapq.heappop(heap)
                if self._due.get(timer) == when:
                    del self._due[timer]
                    taken.append(timer)
        return taken

    def next_mono_ms(self, time_ms: int, mono_ms: int) -> int | None:
        """When the earliest timer is due, on the monotonic clock, if real time goes on at its pace."""
        times = []
        if (top := self._top(self._real)) is not None:
            times.append(mono_ms + max(0, top - time_ms))
        if (top := self._top(self._mono)) is not None:
            times.append(top)
        return min(times, default=None)

    def _top(self, heap: list[tuple[int, Timer]]) -> int | None:
        while heap and self._due.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None
