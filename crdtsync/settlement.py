"""What follows once every member has a commit: its tasks are visited, once, and settled if they can be.

A task's facts stand in several commits; each visit judges all of them, so the visit of the last
one to become stable finds the task settled. Which tasks a commit touched is remembered in memory
for recent commits, up to a bound, and read back from the log for older ones: a member that is away
for a day costs disk, not memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from crdtsync import undoing
from crdtsync.history import Facts
from crdtsync.identifiers import TASK_ID_BYTES, TaskId, WriterId
from crdtsync.log.commit import decode_commit
from crdtsync.log.heads import Heads
from crdtsync.region import RegionState
from crdtsync.tasks import Task, tasks_of

REMEMBERED_MAX: Final = 50_000  # task ids of recent commits kept in memory, all writers together
VISITS_PER_TURN: Final = 1_000  # tasks visited per turn, so that a heal never holds the loop


class Settlement:
    def __init__(
        self,
        here: RegionState,
        require: Callable[[Iterable[TaskId], Callable[[], None]], None],
        *,
        full: Callable[[], bool],
    ) -> None:
        self._full = full
        self._here = here
        self._require = require
        self._remembered: dict[WriterId, deque[tuple[int, bytes]]] = {}  # number, ids joined: small, and in one piece
        self._count = 0
        self._reading: dict[int, WriterId] = {}
        self._loading = 0
        self.visited: dict[WriterId, int] = {}
        self._safe: dict[WriterId, int] = {}
        self._done: tuple[Heads, Heads] | None = None  # stable and applied heads at which nothing was left to visit

    # Remembering -------------------------------------------------------------------------------

    def note(self, writer: WriterId, number: int, tasks: tuple[TaskId, ...]) -> None:
        """A commit was folded. What doesn't fit is read back from the log later."""
        recent = self._remembered.setdefault(writer, deque())
        if self._count + len(tasks) > REMEMBERED_MAX:
            return
        if recent and recent[-1][0] != number - 1:
            return  # a gap was forgotten: only a gap-free run can be used
        recent.append((number, b"".join(tasks)))
        self._count += len(tasks)

    # Visiting ----------------------------------------------------------------------------------

    @property
    def done(self) -> dict[WriterId, int]:
        """Up to where visits are complete: what a restart may skip."""
        if not self._loading:
            self._safe = dict(self.visited)
        return self._safe

    def restore(self, visited: dict[WriterId, int]) -> None:
        self.visited = dict(visited)
        self._safe = dict(visited)

    def skip(self, writer: WriterId, number: int) -> None:
        """Commits up to `number` were visited by the peer whose snapshot we took."""
        if number > self.visited.get(writer, 0):
            self.visited[writer] = number

    def advance(self) -> bool:
        """Visit what has become stable. True if there is more to do in the next turn."""
        left = VISITS_PER_TURN
        if self._loading or self._full():
            return False  # goes on when those rows are here, or when ended tasks have left memory
        stable, applied = self._here.stability.stable(), self._here.log.applied
        if (stable, applied) == self._done:
            return False
        whole = True
        for writer in sorted(stable.beyond(self.visited)):
            upto = min(stable[writer], applied[writer])
            while self.visited.get(writer, 0) < upto:
                if left <= 0:
                    return True
                number = self.visited.get(writer, 0) + 1
                tasks = self._recall(writer, number)
                if tasks is None:
                    if not self._here.log.is_lost(writer, number):  # else it comes from a peer first
                        self._read(writer, number)
                    whole = False
                    break
                self.visited[writer] = number
                left -= 1 + len(tasks)
                if tasks:
                    self._visit(tasks)
        if whole:
            self._done = (stable, applied)
        return False

    def _recall(self, writer: WriterId, number: int) -> tuple[TaskId, ...] | None:
        recent = self._remembered.get(writer)
        while recent and recent[0][0] < number:
            self._count -= len(recent.popleft()[1]) // TASK_ID_BYTES
        if recent and recent[0][0] == number:
            _, packed = recent.popleft()
            self._count -= len(packed) // TASK_ID_BYTES
            return tuple(
                TaskId(packed[start : start + TASK_ID_BYTES]) for start in range(0, len(packed), TASK_ID_BYTES)
            )
        return None

    def _read(self, writer: WriterId, first: int) -> None:
        if writer not in self._reading.values():
            token = self._here.token()
            self._reading[token] = writer
            self._here.read_commits(token, writer, first)

    def commits_read(self, token: int, blobs: Iterable[bytes]) -> bool:
        """The answer to a read of ours. False if the token is somebody else's."""
        writer = self._reading.pop(token, None)
        if writer is None:
            return False
        run: list[tuple[int, bytes]] = []
        for blob in blobs:
            commit = decode_commit(blob)
            run.append((commit.number, b"".join(sorted(tasks_of(commit.events)))))
        recent = self._remembered.setdefault(writer, deque())
        if recent and run and recent[0][0] <= run[-1][0]:
            run = [entry for entry in run if entry[0] < recent[0][0]]
        if recent and run and recent[0][0] != run[-1][0] + 1:
            self._count -= sum(len(packed) // TASK_ID_BYTES for _, packed in recent)
            recent.clear()
        recent.extendleft(reversed(run))
        self._count += sum(len(packed) // TASK_ID_BYTES for _, packed in run)
        return True

    def _visit(self, tasks: tuple[TaskId, ...]) -> None:
        self._loading += 1

        def settle() -> None:
            self._loading -= 1
            for task_id in tasks:
                task = self._here.table.get(task_id)
                if task is not None:
                    self.settle(task)

        self._require(tasks, settle)

    def settle(self, task: Task) -> None:
        """Mark the task settled if its outcome can no longer change."""
        facts = task.facts
        if task.settled or is_undisturbed(facts):
            return
        view = self._here.table.view(task)
        if view.submission is not None and undoing.is_settled(facts, view, self._here.stable):
            task.settled = True
            self._here.table.mark_dirty(task)
        # Even unsettled, what waits for stability (a decided death, say) is looked at again.
        self._here.table.touch(task)


def is_undisturbed(facts: Facts) -> bool:
    """Whether a task merely waits or runs, as at two visits of three: then nothing hangs on stability yet.

    Asked before the task is resolved, which costs 20 times as much.
    """
    return not facts.rest and not any(attempt.ends for attempt in facts.attempts)
