"""Who waits to hear about a task: one answer when it has ended or settled, or a stream of changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from crdtsync.effects import Reply
from crdtsync.errors import OverloadedError
from crdtsync.identifiers import TaskId
from crdtsync.records import Records
from crdtsync.region import RegionState
from crdtsync.tasks import Task

WATCHERS_MAX: Final = 200_000  # waiting tickets of all clients of one node


@dataclass(slots=True)
class Stream:
    ticket: Any
    task: TaskId | None
    queue: str | None


class Watchers:
    def __init__(self, here: RegionState, records: Records) -> None:
        self._here = here
        self._records = records
        self._awaiting: dict[TaskId, dict[Any, bool]] = {}
        self._task_of: dict[Any, TaskId] = {}
        self._streams: dict[Any, Stream] = {}

    def __len__(self) -> int:
        return len(self._task_of) + len(self._streams)

    def wait(self, ticket: Any, task: TaskId, *, settled: bool) -> None:
        """Answer `ticket` once the task has ended, or is settled.

        Raises:
            OverloadedError: Too many wait already.
        """
        self._room()
        self._awaiting.setdefault(task, {})[ticket] = settled
        self._task_of[ticket] = task

    def stream(self, ticket: Any, task: TaskId | None, queue: str | None) -> None:
        self._room()
        self._streams[ticket] = Stream(ticket, task, queue)

    def _room(self) -> None:
        if len(self) >= WATCHERS_MAX:
            raise OverloadedError(f"{WATCHERS_MAX} clients wait for tasks already: ask again later")

    def forget(self, ticket: Any) -> None:
        self._streams.pop(ticket, None)
        task = self._task_of.pop(ticket, None)
        if task is not None:
            waiting = self._awaiting[task]
            waiting.pop(ticket, None)
            if not waiting:
                del self._awaiting[task]

    def changed(self, task: Task) -> None:
        """The task's view, or whether it is settled, may have changed."""
        waiting = self._awaiting.get(task.id)
        if waiting and task.ended:
            told = not self._records.is_pending(task)
            for ticket, settled in list(waiting.items()):
                if task.settled or (told and not settled):
                    self.forget(ticket)
                    self._here.emit(Reply(ticket, self._records.task(task)))
        if self._streams and task.told != (task.state, task.settled):
            task.told = (task.state, task.settled)
            submitted = task.view.submitted if task.view is not None else None
            for stream in self._streams.values():
                if stream.task not in (None, task.id):
                    continue
                if stream.queue is not None and (submitted is None or submitted.queue != stream.queue):
                    continue
                self._here.emit(Reply(stream.ticket, self._change(task), final=False))

    def _change(self, task: Task) -> dict[str, Any]:
        submitted = self._here.table.view(task).submitted
        return {
            "id": task.id.hex(),
            "state": str(task.state),
            "name": submitted.name if submitted is not None else "",
            "settled": task.settled,
            "at_ms": self._here.time_ms,
        }
