"""What is ready to run, and in which order.

Tasks wait in *lanes*, one per (queue, task name). Lanes that have work and a worker with credit
take turns, so a flooded lane can't starve another. Inside a lane the order is the time of
submission minus a head start per priority level: a task of priority p runs before one of
priority q < p unless that one has already waited `(p - q) * AGING_MS` longer. So the starvation
bound is `9 * AGING_MS` of queueing behind later tasks, whatever floods in. Deadlines count as an
upper bound on the virtual time, then the submission's place in the total order decides.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, TypeAlias

from crdtsync.identifiers import EventId, TaskId

AGING_MS: Final = 30_000  # one level of priority is worth half a minute of waiting

Lane: TypeAlias = tuple[str, str]  # queue, name
_Key: TypeAlias = tuple[int, EventId, TaskId]


def order_key(submission: EventId, priority: int, deadline_ms: int) -> tuple[int, EventId]:
    """Smaller runs earlier. `submission` carries its stamp; `deadline_ms` is wall time, 0 for none."""
    due = (submission.stamp >> 16) - priority * AGING_MS
    if deadline_ms:
        due = min(due, deadline_ms - 10 * AGING_MS)
    return due, submission


class ReadyQueue:
    """Ready tasks in lanes; every operation costs at most the logarithm of one lane's length."""

    def __init__(self) -> None:
        self._heaps: dict[Lane, list[_Key]] = {}
        self._member: dict[TaskId, tuple[Lane, tuple[int, EventId]]] = {}
        self._turns: dict[Lane, None] = {}  # ordered: the next lane in turn comes first

    def __len__(self) -> int:
        return len(self._member)

    def __contains__(self, task: TaskId) -> bool:
        return task in self._member

    def add(self, task: TaskId, lane: Lane, key: tuple[int, EventId]) -> None:
        """Add or move `task`. What it left behind in a heap is skipped when it comes up."""
        if self._member.get(task) == (lane, key):
            return
        self._member[task] = (lane, key)
        heapq.heappush(self._heaps.setdefault(lane, []), (*key, task))
        self._turns.setdefault(lane)

    def remove(self, task: TaskId) -> None:
        self._member.pop(task, None)

    def lanes(self) -> Iterator[Lane]:
        return iter(self._turns)

    def depth(self) -> dict[Lane, int]:
        counts: dict[Lane, int] = {}
        for lane, _ in self._member.values():
            counts[lane] = counts.get(lane, 0) + 1
        return counts

    def peek(self, lane: Lane) -> TaskId | None:
        heap = self._heaps.get(lane)
        while heap:
            due, submission, task = heap[0]
            if self._member.get(task) == (lane, (due, submission)):
                return task
            heapq.heappop(heap)
        self._heaps.pop(lane, None)
        self._turns.pop(lane, None)
        return None

    def pop(self, lane: Lane) -> TaskId | None:
        task = self.peek(lane)
        if task is not None:
            heapq.heappop(self._heaps[lane])
            del self._member[task]
        return task

    def next_lane(self, serves: Callable[[Lane], bool]) -> Lane | None:
        """The next lane in turn that has work and is served; it goes to the end of the turns."""
        for lane in list(self._turns):
            if not serves(lane) or self.peek(lane) is None:
                continue
            del self._turns[lane]
            self._turns[lane] = None
            return lane
        return None

    def first(self, lane: Lane, limit: int) -> list[TaskId]:
        """Up to `limit` tasks of a lane, roughly the first in its order."""
        found = (key[2] for key in self._heaps.get(lane, ()) if self._member.get(key[2]) == (lane, key[:2]))
        return list(islice(found, limit))
