"""When a success under a lease can no longer be shut out: a majority holds it while the lease is still valid.

Whoever gets a newer token asks a majority for its votes, and takes over what those voters have applied; one of them has
this success, so the new holder sees it and claims nothing (rules.md, Quorum leases). The region that ran the attempt
watches for that moment and makes it a fact (`events.Decided`), by which every region may act on it before it is settled.

Where a cancel could still win nothing is decided this way: somebody outside the majority may have written one. Neither is
a failure, which a requeue elsewhere may have answered (decision 0012).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from crdtsync import resolve
from crdtsync.events import Decided, Submitted
from crdtsync.identifiers import AttemptId, EventId, TaskId
from crdtsync.region import RegionState
from crdtsync.task_view import TaskView
from crdtsync.tasks import Task

PENDING_MAX: Final = 100_000  # beyond it successes are decided when they are settled


class Pending(NamedTuple):
    number: int  # of our commit that holds the success
    task: TaskId
    attempt: AttemptId
    token: int


class Decisions:
    """Successes of this incarnation under leases, in the order in which they were written."""

    def __init__(self, here: RegionState, valid: Callable[[Submitted, int], bool]) -> None:
        self._here = here
        self._valid = valid
        self._pending: deque[Pending] = deque()

    def __len__(self) -> int:
        return len(self._pending)

    def ended(self, task: Task, view: TaskView, attempt: AttemptId, end: EventId) -> None:
        """An attempt of ours has ended: if it was a success under a lease, watch what becomes of it."""
        known = view.attempt(attempt)
        if known is None or not known.token or view.winner != attempt or len(self._pending) >= PENDING_MAX:
            return
        if not resolve.cancel_wins(task.facts):
            self._pending.append(Pending(end.number, task.id, attempt, known.token))

    def advance(self) -> None:
        """Acknowledgements may have come: decide what a majority holds by now."""
        if not self._pending or not self._here.stamps:
            return
        upto = self._held_by_majority()
        while self._pending and self._pending[0].number <= upto:
            self._decide(self._pending.popleft())

    def _held_by_majority(self) -> int:
        """Up to which of our commits a majority has applied durably, this region included."""
        here = self._here
        latest = here.stability.latest()
        numbers = []
        for member in here.membership.voters:
            heard = latest.get(member)
            numbers.append(0 if heard is None else heard.ack.heads[here.writer])
        return sorted(numbers, reverse=True)[here.membership.majority - 1] if numbers else 0

    def _decide(self, pending: Pending) -> None:
        task = self._here.table.get(pending.task)
        if task is None:
            return
        view = self._here.table.view(task)
        if view.winner != pending.attempt or view.submitted is None or view.decided:
            return
        if self._valid(view.submitted, pending.token):
            self._here.write(Decided(pending.task, pending.attempt))
            self._here.table.touch(task)
