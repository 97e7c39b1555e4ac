"""Documents, as clients and workers ask for them: a task's own, or a shared one that is known by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from crdtsync import commands as c
from crdtsync.documents import DocumentKey
from crdtsync.effects import Reply
from crdtsync.errors import CrdtSyncError, InvalidRequestError, UnknownTaskError
from crdtsync.events import DocumentUpdated
from crdtsync.identifiers import TASK_ID_BYTES, TaskId
from crdtsync.region import RegionState


class DocumentRequests:
    def __init__(self, here: RegionState, require: Callable[..., None]) -> None:
        self._here = here
        self._require = require

    def show(self, command: c.ShowDocument, ticket: Any) -> None:
        def record(key: DocumentKey) -> dict[str, Any]:
            return {
                "name": command.name,
                "task": command.task.hex() or None,
                "value": self._here.documents.value(key),
                "quarantined": self._here.documents.quarantined.get(key),
            }

        self._with(command.name, command.task, ticket, record)

    def edit(self, command: c.EditDocument, ticket: Any) -> None:
        def write(key: DocumentKey) -> dict[str, Any]:
            update = self._here.documents.edit(key, command.entries)
            if update:
                self._here.write(DocumentUpdated(TaskId(command.task), command.name, update))
            return {"name": command.name, "task": command.task.hex() or None}

        self._with(command.name, command.task, ticket, write)

    def _with(self, name: str, task: bytes, ticket: Any, then: Callable[[DocumentKey], Any]) -> None:
        """Answer with what `then` makes of the document, once its task is known to exist."""

        def run() -> None:
            try:
                if task:
                    if self._here.task(TaskId(task)) is None:
                        raise UnknownTaskError(f"no task {task.hex()} is known in {self._here.me}", task=task.hex())
                self._here.emit(Reply(ticket, then((self._here.domain, task, name))))
            except CrdtSyncError as error:
                self._here.emit(Reply(ticket, None, error.record()))

        try:
            if not task and not name:
                raise InvalidRequestError("name a shared document, or the task whose document is meant")
            if task and len(task) != TASK_ID_BYTES:
                raise InvalidRequestError(f"a task id has {TASK_ID_BYTES} bytes, not {len(task)}")
            self._require((TaskId(task),) if task else (), run, refuse=True)
        except CrdtSyncError as error:
            self._here.emit(Reply(ticket, None, error.record()))
