"""Which parents a waiting task still needs, and who waits for a parent.

Kept in memory for the waiting tasks that this region owns; rebuilt from the submissions at start.
No cycle can be made: a submission names only tasks that exist (rules.md, Dependencies).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from crdtsync.identifiers import AttemptId, TaskId
from crdtsync.tasks import Task, TaskTable


@dataclass(slots=True)
class Needs:
    """What one waiting task needs. `used` is what its claim will record."""

    unmet: dict[TaskId, bool]  # parent -> whether settlement is waited for
    used: dict[TaskId, AttemptId] = field(default_factory=dict)
    doomed: TaskId | None = None
    loading: bool = True


class Dependencies:
    def __init__(
        self,
        table: TaskTable,
        require: Callable[[Iterable[TaskId], Callable[[], None]], None],
        is_decided: Callable[[Task], bool],
    ) -> None:
        self._table = table
        self._require = require
        self._is_decided = is_decided
        self._needs: dict[TaskId, Needs] = {}
        self._children: dict[TaskId, dict[TaskId, bool]] = {}

    def __len__(self) -> int:
        return len(self._needs)

    def needs(self, task: Task) -> Needs | None:
        """What `task` still needs; None when its submission names no parents.

        The first call for a task looks its parents up, from disk where necessary; when that is
        done the task is touched, so that it is reviewed again.
        """
        known = self._needs.get(task.id)
        if known is not None:
            return known
        submitted = self._table.view(task).submitted
        if submitted is None or not submitted.after:
            return None
        needs = self._needs[task.id] = Needs(dict(submitted.after))
        for parent, settled in submitted.after:
            self._children.setdefault(parent, {})[task.id] = settled

        def look() -> None:
            if self._needs.get(task.id) is needs:
                needs.loading = False
                for parent in list(needs.unmet):
                    held = self._table.get(parent)
                    if held is not None:
                        self._look(held, task.id, needs)
                self._table.touch(task)

        self._require(list(needs.unmet), look)
        return needs

    def parent_changed(self, parent: Task) -> None:
        """Tell whoever waits for `parent` how it stands now."""
        for child in self._children.get(parent.id, ()):
            needs = self._needs[child]
            if not needs.loading and self._look(parent, child, needs):
                waiting = self._table.get(child)
                if waiting is not None:
                    self._table.touch(waiting)

    def _look(self, parent: Task, child: TaskId, needs: Needs) -> bool:
        """Bring one parent's entry up to date. True if the child should be reviewed."""
        view = self._table.view(parent)
        wants_settled = self._children[parent.id][child]
        if view.winner is not None and (parent.settled or not wants_settled):
            news = parent.id in needs.unmet
            needs.unmet.pop(parent.id, None)
            needs.used[parent.id] = view.winner
            return news and not needs.unmet
        if view.winner is None:
            if needs.used.pop(parent.id, None) is not None:
                needs.unmet[parent.id] = wants_settled
            if parent.ended and self._is_decided(parent):
                needs.doomed = parent.id
                return True
        return False

    def has_children(self, parent: TaskId) -> bool:
        return parent in self._children

    def drop(self, child: TaskId) -> None:
        """`child` has ended or is no longer ours: nobody waits for it to start."""
        needs = self._needs.pop(child, None)
        if needs is None:
            return
        for parent in (*needs.unmet, *needs.used):
            waiting = self._children.get(parent)
            if waiting is not None:
                waiting.pop(child, None)
                if not waiting:
                    del self._children[parent]
