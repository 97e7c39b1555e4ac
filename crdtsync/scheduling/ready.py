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
from collections.abc import Callable
from itertools import islice
from typing import Final, TypeAlias

from crdtsync.identifiers import EventId, TaskId

AGING_MS: Final = 30_000  # one level of priority is worth half a minute of waiting

Lane: TypeAlias = tuple[str, str] | tuple[str, str, str]  # queue, name; and the key, where a limit is on that key
_Entry: TypeAlias = tuple[int, EventId, TaskId, Lane]  # ids are unique: comparing never reaches the task


def order_key(submission: EventId, priority: int, deadline_ms: int) -> tuple[int, EventId]:
    """Smaller runs earlier. `submission` carries its stamp; `deadline_ms` is wall time, 0 for none."""
    due = (submission.stamp >> 16) - priority * AGING_MS
    if deadline_ms:
        due = min(due, deadline_ms - 10 * AGING_MS)
    return due, submission


class ReadyQueue:
    """Ready tasks in lanes; every operation costs at most the logarithm of one lane's length."""

    def __init__(self) -> None:
        self._heaps: dict[Lane, list[_Entry]] = {}
        self._member: dict[TaskId, _Entry] = {}  # the entry that counts; others of the task in a heap are stale
        self._turns: dict[Lane, None] = {}  # ordered: the next lane in turn comes first; parked ones are not in it
        self._counts: dict[Lane, int] = {}

    def __len__(self) -> int:
        return len(self._member)

    def __contains__(self, task: TaskId) -> bool:
        return task in self._member

    def add(self, task: TaskId, lane: Lane, key: tuple[int, EventId]) -> None:
        """Add or move `task`. What it left behind in a heap is skipped when it comes up."""
        present = self._member.get(task)
        if present is not None and present[:2] == key and present[3] == lane:
            return
        # One lane object for all its entries: a million waiting tasks are a million entries.
        heap = self._heaps.get(lane)
        if heap is None:
            heap = self._heaps[lane] = []
            self._turns[lane] = None
        elif heap:
            lane = heap[0][3]
        entry = (*key, task, lane)
        self._left(present)
        self._member[task] = entry
        self._counts[lane] = self._counts.get(lane, 0) + 1
        heapq.heappush(heap, entry)

    def remove(self, task: TaskId) -> None:
        self._left(self._member.pop(task, None))

    def _left(self, entry: _Entry | None) -> None:
        """`entry` counts no more."""
        if entry is not None:
            lane = entry[3]
            self._counts[lane] -= 1
            if not self._counts[lane]:
                del self._counts[lane]

    def lanes(self) -> list[Lane]:
        """Lanes with work, the next in turn first, then those that are parked."""
        parked = [lane for lane in self._heaps if lane not in self._turns]
        return [lane for lane in (*self._turns, *parked) if lane in self._counts]

    def waiting(self, lane: Lane) -> int:
        """How many tasks a lane holds."""
        return self._counts.get(lane, 0)

    def park(self, lane: Lane) -> None:
        """Take a lane out of turn, with its work, until `unpark`."""
        self._turns.pop(lane, None)

    def unpark(self, lane: Lane) -> None:
        """Put a lane back, at the end of the turns."""
        if lane in self._heaps:
            self._turns.setdefault(lane)

    def peek(self, lane: Lane) -> TaskId | None:
        heap = self._heaps.get(lane)
        while heap:
            entry = heap[0]
            if self._member.get(entry[2]) is entry:
                return entry[2]
            heapq.heappop(heap)
        self._heaps.pop(lane, None)
        self._turns.pop(lane, None)
        return None

    def pop(self, lane: Lane) -> TaskId | None:
        heap = self._heaps.get(lane)
        while heap:
            entry = heapq.heappop(heap)
            if self._member.get(entry[2]) is entry:
                self.remove(entry[2])
                return entry[2]
        return self.peek(lane)  # there is none: the lane goes

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
        found = (entry[2] for entry in self._heaps.get(lane, ()) if self._member.get(entry[2]) is entry)
        return list(islice(found, limit))
