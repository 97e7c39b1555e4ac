"""What this replica answers about tasks: shared records, plus what only it knows.

`views` and `explain` derive from facts alone and are alike everywhere; here the local part is
added: settled or not, why it waits as seen from here, whose acknowledgement is missing.
"""

from __future__ import annotations

from typing import Any

from crdtsync import explain, lifecycle, undoing, views
from crdtsync.coordination.exclusive import Exclusive
from crdtsync.identifiers import RegionId, TaskId
from crdtsync.region import RegionState
from crdtsync.reliability import next_attempt_at_ms
from crdtsync.scheduling.handover import Handover
from crdtsync.scheduling.limits import Limits
from crdtsync.scheduling.workers import Workers
from crdtsync.task_view import TaskView
from crdtsync.tasks import Task
from crdtsync.workflow.dependencies import Dependencies


class Records:
    def __init__(
        self,
        here: RegionState,
        workers: Workers,
        dependencies: Dependencies,
        handover: Handover,
        exclusive: Exclusive,
        limits: Limits,
    ) -> None:
        self._here = here
        self._workers = workers
        self._dependencies = dependencies
        self._handover = handover
        self._exclusive = exclusive
        self._limits = limits

    def task(self, task: Task) -> dict[str, Any]:
        view = self._view(task)
        progress = {
            str(attempt): running.progress
            for attempt in view.open_attempts
            if (running := self._workers.running.get(attempt)) is not None and running.progress
        }
        return views.task_record(
            task.id,
            view,
            settled=task.settled,
            decided=task.settled or undoing.is_decided(task.facts, view, self._here.stable),
            waiting_for=self.waiting_for(task),
            progress=progress or None,
        )

    def is_pending(self, task: Task) -> bool:
        """Whether a success under a lease may still be shut out by a newer claim that this region has not heard of.

        Whoever waits for the task is told once that is over: decided, or settled.
        """
        view = self._view(task)
        if view.winner is None or view.submitted is None or not view.submitted.options.exclusive:
            return False
        return not (view.decided or task.settled)

    def _view(self, task: Task) -> TaskView:
        """The view of a task that is in the table, or of a copy made for reading."""
        if self._here.table.get(task.id) is task:
            return self._here.table.view(task)
        assert task.view is not None
        return task.view

    def history(self, task: Task) -> list[dict[str, Any]]:
        return views.history_records(task.facts)

    # Related tasks -----------------------------------------------------------------------------

    def compensations_of(self, task: Task) -> list[TaskId]:
        """The ids under which this task's attempts are, or would be, undone."""
        view = self._view(task)
        return [undo.id for undo in undoing.undo(task.facts, view, settled=True, decided=True)]

    def related(self, task: Task) -> list[TaskId]:
        """Tasks whose facts an explanation of `task` needs: parents and compensations."""
        view = self._view(task)
        parents = [parent for parent, _ in view.submitted.after] if view.submitted is not None else []
        return [*parents, *self.compensations_of(task)]

    def _states(self, tasks: list[TaskId]) -> dict[TaskId, str]:
        held = {id: self._here.table.get(id) for id in tasks}
        return {
            id: str(self._here.table.view(task).state)
            for id, task in held.items()
            if task is not None and self._here.table.view(task).submission is not None
        }

    def conflicts(self, task: Task) -> list[dict[str, Any]]:
        view = self._view(task)
        undos = undoing.undo(task.facts, view, settled=True, decided=True)
        states = self._states([undo.id for undo in undos])
        return [views.conflict_record(conflict, states, undos) for conflict in view.conflicts]

    def explain(self, task: Task) -> dict[str, Any]:
        view = self._view(task)
        parents = {}
        if view.submitted is not None:
            for parent, _ in view.submitted.after:
                held = self._here.table.get(parent)
                if held is not None:
                    parents[parent] = self._here.table.view(held)
        text = explain.explain(
            task.id, task.facts, view, parents=parents, compensations=self._states(self.compensations_of(task))
        )
        local = explain.explain_local(
            self._here.me,
            view,
            settled=task.settled,
            waiting_for=self.waiting_for(task),
            missing=self._missing(task),
        )
        # A settled task has no local side: its explanation is the same everywhere, to the letter.
        local = "" if task.settled and task.ended else local
        return {"id": task.id.hex(), "state": str(view.state), "text": text, "local": local}

    # What only this replica knows ---------------------------------------------------------------

    def _missing(self, task: Task) -> list[str]:
        """Members whose acknowledgement stands between an ended task and its settlement."""
        if task.settled or not task.ended:
            return []
        absent: set[str] = set()
        for event_id, _ in task.facts.events():
            absent.update(self._here.stability.missing(event_id.writer, event_id.number))
        return sorted(absent)

    def waiting_for(self, task: Task) -> str | None:
        """Why a task that has not ended is not running, as seen from here; None when nothing is missing."""
        view = self._view(task)
        here, submitted = self._here, view.submitted
        if task.ended or submitted is None:
            return None
        if view.open_attempts:
            regions = sorted({attempt.region for attempt in view.open_attempts})
            return None if here.me in regions else f"{', '.join(regions)} runs it"
        exclusive = submitted.options.exclusive
        if view.owner != here.me and not exclusive:
            return self._waiting_elsewhere(view)
        if not here.stamps:
            return f"the clock of {here.me}, which is off: nothing is started there until it is right (crdtsync clock show)"
        if self._handover.draining:
            return f"{here.me} is draining, and no other region has taken it yet"
        needs = self._dependencies.needs(task)
        if needs is not None and needs.unmet:
            done, total = len(needs.used), len(needs.used) + len(needs.unmet)
            first = min(needs.unmet)
            return f"dependencies: {done} of {total} are done, {first.hex()} is not"
        if submitted.not_before_ms > here.time_ms:
            return f"its start time, {views.utc(submitted.not_before_ms)}"
        backoff = next_attempt_at_ms(view)
        if backoff > here.time_ms:
            return f"its next attempt at {views.utc(backoff)} (backoff after {view.failures} failures)"
        lane = (submitted.queue, submitted.name)
        if not self._workers.serves(lane):
            return f"a worker in {here.me} that runs {submitted.name!r} on queue {submitted.queue!r}"
        if exclusive:
            if not self._exclusive.token(submitted, here.now.mono_ms):
                return f"the lease of {self._exclusive.scope(submitted)}: {self._exclusive.why_not(submitted)}"
        elif not lifecycle.may_claim(view, here.me):
            return "its open attempts"
        return self._limits.why(view) or f"a free worker in {here.me}"

    def _waiting_elsewhere(self, view: TaskView) -> str:
        here = self._here
        if not here.membership.is_member(view.owner):
            if here.membership.has_lost(view.owner):
                return f"its owner {view.owner}, which was forgotten; the next member goes on once all agree on its end"
            return f"its owner {view.owner}, which is not a member"
        silent_ms = self._handover.silent_for_ms(RegionId(view.owner))
        partition = view.submitted.options.partition if view.submitted is not None else ""
        if silent_ms < here.settings.lost_after_ms // 2:
            return f"its owner {view.owner}"
        if partition == "wait":
            return f"its owner {view.owner}, silent for {silent_ms // 1000} s; partition=wait lets nobody else run it"
        return (
            f"its owner {view.owner}, silent for {silent_ms // 1000} s; "
            f"taken over after {here.settings.lost_after_ms // 1000} s"
        )

    def default_priority(self, name: str) -> int:
        declared = self._here.declaration(name)
        return 5 if declared is None else declared.priority
