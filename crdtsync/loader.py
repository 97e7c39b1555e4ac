"""Facts that are not in memory: who waits for them, in order, bounded.

`require(tasks, then)` runs `then` once every named task is in memory (or known to be absent), and
keeps those tasks in memory while it runs. What waits for the same task runs in the order in which
it asked; what needs nothing runs at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from crdtsync.effects import Load, TaskRow
from crdtsync.errors import OverloadedError
from crdtsync.identifiers import TaskId
from crdtsync.outbox import Outbox
from crdtsync.tasks import Task, TaskTable

WAITING_MAX = 20_000  # requests that may wait for rows; more are refused, to be asked again later
LOAD_IDS_MAX: Final = 500  # ids in one Load: what SQLite takes as bound variables without a new plan


class Waiting:
    __slots__ = ("missing", "pinned", "then")

    def __init__(self, missing: set[TaskId], then: Callable[[], None]) -> None:
        self.missing = missing
        self.then = then
        self.pinned: list[Task] = []  # what it needs and has: it must still be there when the rest has come

    def pin(self, task: Task | None) -> None:
        if task is not None:
            task.pins += 1
            self.pinned.append(task)


class Loader:
    def __init__(self, table: TaskTable, outbox: Outbox, token: Callable[[], int]) -> None:
        self._table = table
        self._outbox = outbox
        self._token = token
        self._asked: dict[TaskId, int] = {}  # id -> token of the Load that will answer
        self._loads: dict[int, tuple[TaskId, ...]] = {}
        self._waiting: dict[TaskId, list[Waiting]] = {}
        self._count = 0

    @property
    def waiting(self) -> int:
        return self._count

    def require(self, tasks: Iterable[TaskId], then: Callable[[], None], *, refuse: bool = False) -> None:
        """Run `then` when all of `tasks` are in memory or known not to exist.

        Args:
            refuse: Whether this may be refused when too much waits already. What the log asks
                for never is: it is bounded by the log's own buffer.

        Raises:
            OverloadedError: Refused; nothing was asked for.
        """
        wanted = frozenset(tasks)
        missing = self._table.missing(wanted)
        # A request behind an earlier one for the same task waits its turn.
        behind = {task for task in wanted if task in self._waiting} if self._waiting else set[TaskId]()
        if not missing and not behind:
            then()
            return
        if refuse and self._count >= WAITING_MAX:
            raise OverloadedError(
                f"{self._count} requests wait for facts on disk, more than {WAITING_MAX} are not queued: "
                "ask again in a moment"
            )
        request = Waiting(missing | behind, then)
        self._count += 1
        for task in sorted(wanted - request.missing):  # they are touched in this order again
            request.pin(self._table.get(task))
        for task in request.missing:
            self._waiting.setdefault(task, []).append(request)
        fresh = [task for task in sorted(missing) if task not in self._asked]
        for start in range(0, len(fresh), LOAD_IDS_MAX):
            ids = tuple(fresh[start : start + LOAD_IDS_MAX])
            token = self._token()
            self._loads[token] = ids
            for task in ids:
                self._asked[task] = token
            self._outbox.urgent(Load(token, self._table.domain, ids))

    def loaded(self, token: int, rows: Iterable[TaskRow]) -> None:
        """The rows of one `Load`. Runs whatever now has all that it needs, or cannot have it (`table.damaged`)."""
        ids = self._loads.pop(token, ())
        found: list[Task] = []
        for row in rows:
            task = self._table.restore(row, counted=True)
            task.pins += 1
            found.append(task)
        for task_id in ids:
            self._asked.pop(task_id, None)
            self._table.is_absent(task_id)
        for task_id in ids:
            self._arrived(task_id)
        for task in found:
            task.pins -= 1
            # Reviewed so that it leaves memory again if nobody needs it.
            self._table.touch(task)

    def _arrived(self, task_id: TaskId) -> None:
        for request in self._waiting.pop(task_id, ()):
            request.missing.discard(task_id)
            request.pin(self._table.get(task_id))
            if not request.missing:
                self._run(request)

    def _run(self, request: Waiting) -> None:
        self._count -= 1
        try:
            request.then()
        finally:
            for task in request.pinned:
                task.pins -= 1
                self._table.touch(task)
