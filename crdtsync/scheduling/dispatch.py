"""From ready to running to ended: claims, assignments, and the ends that this region writes.

A claim is decided here and in no other place; it precedes the assignment in the same commit, and
the worker hears of it once that commit is durable.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Final

from crdtsync import lifecycle
from crdtsync.coordination.decisions import Decisions
from crdtsync.coordination.exclusive import Exclusive
from crdtsync.effects import Assignment, Run, Stop
from crdtsync.events import Claimed, Ended
from crdtsync.identifiers import AttemptId, TaskId, WorkerId
from crdtsync.protocol.codec import encode_value
from crdtsync.region import RegionState
from crdtsync.scheduling.limits import Limits
from crdtsync.scheduling.ready import Lane, ReadyQueue
from crdtsync.scheduling.workers import Worker, Workers
from crdtsync.task_view import AttemptView, TaskView
from crdtsync.tasks import Task
from crdtsync.undoing import Effect, continuation, effect_root, inherited_effects, newest_checkpoint, shared_root
from crdtsync.workflow.dependencies import Dependencies

CLAIMS_PER_TURN: Final = 500  # so that one input never holds the loop for long
STAMPS_RETRY_MS: Final = 500  # while nothing may be stamped
ENDED_KEPT: Final = 2_000  # ended attempts whose task is remembered, for repeated completions


class Dispatcher:
    def __init__(
        self,
        here: RegionState,
        workers: Workers,
        ready: ReadyQueue,
        dependencies: Dependencies,
        present: Callable[[], Collection[str]],
        catching_up_since_ms: Callable[[], int],
        exclusive: Exclusive,
        decisions: Decisions,
        limits: Limits,
    ) -> None:
        self._here = here
        self._workers = workers
        self._ready = ready
        self._dependencies = dependencies
        self._present = present
        self._catching_up_since_ms = catching_up_since_ms
        self._exclusive = exclusive
        self._decisions = decisions
        self._limits = limits
        self._held: list[TaskId] = []  # ready, but a peer that has just come back may have run it already
        self._ended: OrderedDict[AttemptId, TaskId] = OrderedDict()  # a dict is slow to say which key is its oldest
        self.could_go_on = False  # the last turn ended at its bound, with work and credit left

    # Starting ----------------------------------------------------------------------------------

    def dispatch(self) -> None:
        """Claim what is ready for every worker that has credit."""
        self.could_go_on = False
        if not self._ready or not self._workers.any_free or not self._here.stamps:
            return
        assigned: dict[WorkerId, list[Assignment]] = {}
        present, since_ms = self._present(), self._catching_up_since_ms()
        worker: Worker | None = None

        def is_served(lane: Lane) -> bool:
            nonlocal worker
            worker = self._workers.pick(lane)
            return worker is not None

        for _ in range(CLAIMS_PER_TURN):
            lane = self._ready.next_lane(is_served)
            if lane is None:
                break
            limit = self._limits.blocking(lane)
            if limit is not None:
                self._limits.park(lane, limit)
                continue
            task_id = self._ready.pop(lane)
            task = self._here.table.get(task_id) if task_id is not None else None
            if worker is None or task is None:
                continue
            view = self._here.table.view(task)
            token = self._token(view, lane)
            if since_ms and self._may_be_done_elsewhere(view, since_ms):
                self._held.append(task.id)
            elif lifecycle.may_claim(view, self._here.me, present, token):
                assigned.setdefault(worker.id, []).append(self._claim(task, view, worker, token))
        else:
            self.could_go_on = True
        for worker_id, assignments in assigned.items():
            self._here.emit(Run(worker_id, tuple(assignments)))

    def _token(self, view: TaskView, lane: Lane) -> int:
        """The fencing token for an attempt that begins now; 0 where none is needed, or none is to be had."""
        if view.submitted is None or not view.submitted.options.exclusive:
            return 0
        token = self._exclusive.token(view.submitted, self._here.now.mono_ms)
        if not token and lifecycle.may_start_under_lease(view, self._here.me):
            self._exclusive.wait(view.submitted, lane)  # it was lost, or is about to be
        return token

    @staticmethod
    def _may_be_done_elsewhere(view: TaskView, since_ms: int) -> bool:
        """Whether a peer whose history is still coming in may have taken this task over meanwhile.

        Starting it now would be allowed, and often be a double run that need not happen.
        """
        submitted, submission = view.submitted, view.submission
        if submitted is None or submission is None:
            return False
        return submitted.options.partition == "takeover" and submission.stamp >> 16 < since_ms

    def release(self) -> None:
        """Look again at what was held back, once all histories are in."""
        if self._held and not self._catching_up_since_ms():
            held, self._held = self._held, []
            for task_id in held:
                task = self._here.table.get(task_id)
                if task is not None:
                    self._here.table.touch(task)

    def _claim(self, task: Task, view: TaskView, worker: Worker, token: int) -> Assignment:
        here = self._here
        submitted, submission = view.submitted, view.submission
        assert submitted is not None
        assert submission is not None
        needs = self._dependencies.needs(task)
        inputs = tuple(sorted(needs.used.items())) if needs is not None else ()
        continued = continuation(view, inputs)
        inherited = () if continued is None else inherited_effects(task.facts, continued.id)
        attempt = here.write(
            Claimed(
                task=task.id,
                term=view.term,
                submission=submission,
                continues=None if continued is None else continued.id,
                continues_ended=continued is not None and continued.state is not lifecycle.AttemptState.OPEN,
                relies=tuple(sorted(id for effect in inherited for id in effect.ids)),
                inputs=inputs,
                token=token,
            )
        )
        if token:
            self._exclusive.began(submitted, attempt, token)
        self._workers.assign(worker, attempt, task.id)
        self._limits.claimed(task.id, self._limits.scope_of(view), attempt)
        if submitted.options.timeout_ms:
            here.timers.at_mono(here.now.mono_ms + submitted.options.timeout_ms, ("timeout", attempt))
        return self._assignment(task, attempt)

    def _assignment(self, task: Task, attempt: AttemptId) -> Assignment:
        """What a worker is told of an attempt of ours, as its claim has it."""
        here = self._here
        view = here.table.view(task)
        submitted, known, shown = view.submitted, task.facts.attempt(attempt), view.attempt(attempt)
        assert submitted is not None
        assert known is not None
        assert known.claim is not None
        assert shown is not None
        claim = known.claim
        inherited: list[Effect] = []
        if claim.continues is None:  # as at nearly every claim: then all that follows is its own
            root = shared_root(claim.inputs) if claim.token else attempt
            checkpoint = None if known.checkpoint is None else known.checkpoint[1]
        else:
            relies = frozenset(claim.relies)
            continued = inherited_effects(task.facts, claim.continues)
            inherited = [effect for effect in continued if not relies.isdisjoint(effect.ids)]
            root = effect_root(task.facts, attempt)
            checkpoint = newest_checkpoint(task.facts, attempt)
        return Assignment(
            task=task.id,
            attempt=attempt,
            number=shown.number,
            name=submitted.name,
            payload=submitted.payload,
            term=claim.term,
            region=here.me,
            fence=claim.token,
            deadline_ms=submitted.deadline_ms,
            timeout_ms=submitted.options.timeout_ms,
            root=root,
            effects=tuple((effect.name, effect.result) for effect in inherited),
            checkpoint=None if checkpoint is None else checkpoint.data,
            checkpoint_index=0 if checkpoint is None else checkpoint.index,
            undoes=submitted.payload if submitted.undoes is not None else None,
            document=here.documents.state((here.domain, task.id, "")),
        )

    def assign_again(self, worker: Worker, reported: Collection[AttemptId]) -> None:
        """A worker came back and does not report attempts that it was given: it never heard of them.

        The connection broke under the assignment. Unless it is told again, the attempt stays open for
        as long as the worker lives. Told twice, it runs once: workers know attempts by their id.
        """
        assignments: list[Assignment] = []
        for attempt, task_id in list(worker.running.items()):
            running, task = self._workers.running.get(attempt), self._here.table.get(task_id)
            if attempt in reported or running is None:
                continue
            if task is None or running.stop or attempt not in self._here.table.view(task).open_attempts:
                self.lose(attempt, "stopped")
            else:
                assignments.append(self._assignment(task, attempt))
        if assignments:
            self._here.emit(Run(worker.id, tuple(assignments)))

    # Ending ------------------------------------------------------------------------------------

    def task_of(self, attempt: AttemptId) -> TaskId | None:
        """The task of an attempt of this region that is open, or ended not long ago."""
        running = self._workers.running.get(attempt)
        return running.task if running is not None else self._ended.get(attempt)

    def end(
        self, task: Task, attempt: AttemptId, outcome: str, value: bytes, *, retryable: bool = True, reason: str = ""
    ) -> bool:
        """Write the end of an attempt of this region, telling truthfully whether it is late.

        Returns False, and writes nothing, when the attempt has ended already.
        """
        here = self._here
        view = here.table.view(task)
        self._workers.ended(attempt)
        self._exclusive.ended(attempt)
        self._remember(attempt, task.id)
        here.timers.cancel(("timeout", attempt))
        here.timers.cancel(("orphan", attempt))
        known = view.attempt(attempt)
        if known is None or known.state is not lifecycle.AttemptState.OPEN:
            return False
        ended = here.write(Ended(task.id, attempt, outcome, lifecycle.outcome_known(view), retryable, reason, value))
        if known.token and outcome == "ok":
            self._decisions.ended(task, here.table.view(task), attempt, ended)
        return True

    def lose(self, attempt: AttemptId, reason: str) -> None:
        """An attempt of this region will not be heard of again."""
        running = self._workers.running.get(attempt)
        task = None if running is None else self._here.table.get(running.task)
        if task is None:
            self._workers.ended(attempt)
            return
        if self.end(task, attempt, "lost", b"", reason=reason):
            self._here.notify("warning", "attempt.lost", task=task.id.hex(), attempt=str(attempt), reason=reason)

    def time_out(self, attempt: AttemptId) -> None:
        """An attempt ran longer than its task allows: it failed, and its handler is told."""
        running = self._workers.running.get(attempt)
        task = None if running is None else self._here.table.get(running.task)
        if running is None or task is None:
            return
        if not self._here.stamps:
            self._here.timers.at_mono(self._here.now.mono_ms + STAMPS_RETRY_MS, ("timeout", attempt))
            return
        submitted = self._here.table.view(task).submitted
        limit = submitted.options.timeout_ms if submitted is not None else 0
        if running.worker is not None:
            self._here.emit(Stop(running.worker, self._workers.told(attempt), "timeout"))
        error = encode_value(["TimeoutError", f"the attempt ran longer than its timeout of {limit} ms", ""])
        self.end(task, attempt, "failed", error, reason="TimeoutError")

    def stop(self, attempt: AttemptId, reason: str) -> None:
        """Ask a handler to stop, once. One that doesn't goes on: its outcome is still recorded."""
        running = self._workers.running.get(attempt)
        if running is None or running.stop:
            return
        running.stop = reason
        if running.worker is not None:
            self._here.emit(Stop(running.worker, self._workers.told(attempt), reason))

    def stop_unwanted(self, view: TaskView) -> None:
        """Ask for a stop of what runs here and is no longer wanted."""
        reason = lifecycle.stop_reason(view, self._here.me)
        for attempt in view.attempts:
            if attempt.state is lifecycle.AttemptState.OPEN and attempt.region == self._here.me:
                why = reason or self._uncovered(view, attempt)
                if why and attempt.id in self._workers.running:
                    self.stop(attempt.id, why)

    def _uncovered(self, view: TaskView, attempt: AttemptView) -> str:
        """Why an attempt under a lease must stop: the lease is over, so another region may begin."""
        if not attempt.token or view.submitted is None:
            return ""
        if attempt.fenced:
            return "fenced"
        return "" if self._exclusive.valid(view.submitted, attempt.token) else "lost lease"

    def is_covered(self, attempt: AttemptId, task: Task) -> bool:
        """Whether a lease still covers an attempt of ours, or it needs none."""
        view = self._here.table.view(task)
        known = view.attempt(attempt)
        return known is not None and not self._uncovered(view, known)

    def lease_left_ms(self, attempt: AttemptId) -> int:
        """For how long the lease still covers an attempt of ours unless it is renewed; 0 if it does not."""
        return self._exclusive.left_ms(attempt, self._here.now.mono_ms)

    def watch_open(self, task: Task, view: TaskView) -> None:
        """Keep an eye on attempts of this region that no worker has reported (after a restart)."""
        for attempt in view.open_attempts:
            if attempt.region == self._here.me and attempt not in self._workers.running:
                self._workers.expect(attempt, task.id)
                known = view.attempt(attempt)
                if known is not None and known.token and view.submitted is not None:
                    self._exclusive.began(view.submitted, attempt, known.token)
                grace = max(self._here.settings.start_grace_ms, self._here.settings.worker_lost_after_ms)
                self._here.timers.at_mono(self._here.now.mono_ms + grace, ("orphan", attempt))

    def _remember(self, attempt: AttemptId, task: TaskId) -> None:
        self._ended[attempt] = task
        if len(self._ended) > ENDED_KEPT:
            self._ended.popitem(last=False)
