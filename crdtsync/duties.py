"""What this region must do next about one task: looked at again whenever the task changed.

Level-triggered: each review starts from the task's facts and does whatever is still owed, so a
crash between two steps, a late fact or a repeated review can neither lose nor double anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from crdtsync import lifecycle, undoing
from crdtsync.coordination.exclusive import Exclusive
from crdtsync.events import CancelRequested, Expired, Options, Submitted, TermOpened
from crdtsync.identifiers import EventId, TaskId
from crdtsync.inheritance import Inheritance
from crdtsync.protocol.codec import decode_value, encode_value
from crdtsync.region import RegionState
from crdtsync.reliability import next_attempt_at_ms
from crdtsync.scheduling.dispatch import Dispatcher
from crdtsync.scheduling.handover import OFFER_RETRY_MS, Handover
from crdtsync.scheduling.limits import Limits
from crdtsync.scheduling.ready import Lane, ReadyQueue, order_key
from crdtsync.scheduling.workers import Workers
from crdtsync.task_view import TaskState, TaskView
from crdtsync.tasks import Task
from crdtsync.watchers import Watchers
from crdtsync.workflow.dependencies import Dependencies

OFFERS_PER_TURN: Final = 200  # of one lane, to other regions
REVIEWS_PER_TURN: Final = 5_000  # bound on what one input may set off; the rest goes on in the next tick

# A compensation whose task nobody declared runs under these.
COMPENSATION: Final = Options(
    partition="wait",
    attempts=10,
    lost_max=5,
    backoff_ms_base=1_000,
    backoff_ms_max=60_000,
    backoff_factor_permille=2_000,
    cancel="loses",
    compensate="",
    timeout_ms=0,
    unserved_after_ms=60_000,
    window_ms=86_400_000,
    non_retryable=(),
)


class Duties:
    def __init__(
        self,
        here: RegionState,
        *,
        workers: Workers,
        ready: ReadyQueue,
        dependencies: Dependencies,
        dispatcher: Dispatcher,
        exclusive: Exclusive,
        handover: Handover,
        limits: Limits,
        watchers: Watchers,
        require: Callable[[Iterable[TaskId], Callable[[], None]], None],
        ended: Callable[[Task], None],
        may_touch_old: Callable[[], bool],
        runs_ahead: Callable[[], bool],
        inheritance: Inheritance,
    ) -> None:
        self._here = here
        self._workers = workers
        self._ready = ready
        self._dependencies = dependencies
        self._dispatcher = dispatcher
        self._exclusive = exclusive
        self._handover = handover
        self._limits = limits
        self._watchers = watchers
        self._require = require
        self._ended = ended
        self._may_touch_old = may_touch_old
        self._runs_ahead = runs_ahead
        self._inheritance = inheritance
        self._unserved: dict[Lane, int] = {}  # lanes with work that no worker here can run, since when
        self._undoing: set[TaskId] = set()  # compensations whose existence is being looked up

    # Review ------------------------------------------------------------------------------------

    def review_touched(self) -> None:
        """Review every touched task, and what those reviews touch, until nothing is left."""
        for _ in range(REVIEWS_PER_TURN):
            touched = self._here.table.take_touched()
            if not touched:
                return
            for task in touched:
                self.review(task)

    def review(self, task: Task) -> None:
        if task.rests and not self._dependencies.has_children(task.id):
            self._watchers.changed(task)  # it has settled: whoever waits for that is told, and that is all
            return
        view = self._here.table.view(task)
        if view.submission is None:
            return
        open_attempts = view.open_attempts
        if self._here.stamps and self._simply_runs(task, view):
            self._limits.note(task, view, open_attempts)
            task.duties = True
            if self._dependencies.has_children(task.id):
                self._dependencies.parent_changed(task)
            self._watchers.changed(task)
            self._leave_queue(task)
            return
        self._limits.note(task, view, open_attempts)
        if self._inheritance.settle(task, view):
            return  # reviewed again at once, as its facts have changed
        if open_attempts:
            self._dispatcher.watch_open(task, view)
            self._dispatcher.stop_unwanted(view)
        if not self._here.stamps:
            self._look_on(task, view)
            return
        # An attempt of ours that still runs will end, and then be undone: until then the task stays.
        runs_here = any(attempt.region == self._here.me for attempt in open_attempts)
        task.duties = self._undo(task, view) or runs_here
        if self._dependencies.has_children(task.id):
            self._dependencies.parent_changed(task)
        self._watchers.changed(task)
        self._handover.note_offer(task, view)
        if task.ended:
            self._leave(task)
            if not task.duties:
                self._ended(task)
                task.rests = not open_attempts and not undoing.is_compensated(task.facts)
        elif view.submitted is not None and view.submitted.options.exclusive:
            self._toward_lease(task, view)
        elif view.owner == self._here.me:
            self._handover.forget(task.id)
            self._own(task, view, runs_here=runs_here)
        else:
            self._leave_queue(task)
            self._handover.watch(task, view)
            if not self._runs_ahead():
                self._handover.accept(task, view)
        self._here.table.let_go_of_view(task)

    def _simply_runs(self, task: Task, view: TaskView) -> bool:
        """Whether all there is to a task of ours is one attempt that a worker here runs, as after nearly every claim.

        Nobody has offered, cancelled or edited it, so most of what a review asks is answered: 1.5 us instead of 4.
        """
        if view.state is not TaskState.RUNNING or task.facts.rest or len(view.attempts) != 1 or view.submitted is None:
            return False
        (attempt,), submitted = view.attempts, view.submitted
        if submitted.deadline_ms or submitted.options.exclusive or view.owner != self._here.me:
            return False
        return attempt.region == self._here.me and attempt.id in self._workers.running

    def _look_on(self, task: Task, view: TaskView) -> None:
        """As `review`, but for all that is written: our clock is off. Everything is reviewed when it is right again."""
        task.duties = True  # whatever is owed is not known yet, so the task stays in memory
        if self._dependencies.has_children(task.id):
            self._dependencies.parent_changed(task)
        self._watchers.changed(task)
        self._handover.note_offer(task, view)
        if task.ended:
            self._leave(task)
        else:
            self._leave_queue(task)

    def _leave(self, task: Task) -> None:
        self._leave_queue(task)
        self._handover.forget(task.id)
        self._dependencies.drop(task.id)
        self._here.timers.cancel(("deadline", task.id))

    def _leave_queue(self, task: Task) -> None:
        self._ready.remove(task.id)
        self._exclusive.forget(task.id)
        self._here.timers.cancel(("ready", task.id))

    def _own(self, task: Task, view: TaskView, *, runs_here: bool) -> None:
        """Bring a task of ours that has not ended nearer to its next attempt."""
        here = self._here
        if self._expires(task, view):
            return
        if lifecycle.must_answer_cancel(view, here.me):
            here.write(CancelRequested(task.id, lifecycle.outcome_known(view), "asked for elsewhere"))
            return
        if view.returning is not None:
            self._take_back(task, view)
            return
        if view.offer is not None and (self._can_serve(view) or self._here.membership.has_lost(view.offer.region)):
            self._handover.withdraw(task, view)
            return
        if view.offer is None and (runs_here or not lifecycle.may_claim(view, here.me, self._handover.present())):
            self._leave_queue(task)
            return
        if self._handover.draining:
            self._leave_queue(task)
            if not self._handover.offer(task, view, "drain"):
                here.timers.at_mono(here.now.mono_ms + OFFER_RETRY_MS, ("ready", task.id))
            return
        if self._is_due(task, view):
            self._enqueue(task, view)

    def _toward_lease(self, task: Task, view: TaskView) -> None:
        """Bring a task that whoever holds its lease runs nearer to that, be it ours or not."""
        here, submitted = self._here, view.submitted
        assert submitted is not None
        if view.owner == here.me and self._expires(task, view):
            return
        if self._handover.draining or not lifecycle.may_start_under_lease(view, here.me):
            self._leave_queue(task)
            return
        if not self._is_due(task, view):
            return
        if self._exclusive.token(submitted, here.now.mono_ms):
            self._enqueue(task, view)
            self._exclusive.ready(submitted)
        else:
            self._leave_queue(task)
            self._exclusive.wait(submitted, self._limits.lane_of(view))

    def _expires(self, task: Task, view: TaskView) -> bool:
        """Keep an eye on the deadline of a task of ours. True if it has passed, and that was written."""
        here, submitted = self._here, view.submitted
        assert submitted is not None
        if not submitted.deadline_ms:
            return False
        if submitted.deadline_ms > here.time_ms:
            here.timers.at_time(submitted.deadline_ms, ("deadline", task.id))
        elif lifecycle.may_expire(view, here.me):
            self.expire(task)  # reviewed again at once, for what follows
            return True
        return False

    def _is_due(self, task: Task, view: TaskView) -> bool:
        """Whether an attempt may begin by now: parents, trust in the disk, delay and backoff. Else it leaves the queue."""
        here, submitted, submission = self._here, view.submitted, view.submission
        assert submitted is not None
        assert submission is not None
        needs = self._dependencies.needs(task)
        if needs is not None and needs.doomed is not None:
            if view.offer is not None:
                self._handover.withdraw(task, view)  # whoever owns it in the end says that it cannot run
            elif view.owner == here.me:
                reason = f"parent {needs.doomed.hex()} failed"
                here.write(CancelRequested(task.id, lifecycle.outcome_known(view), reason))
            return False
        if needs is not None and (needs.loading or needs.unmet):
            self._leave_queue(task)
            return False
        if self._must_wait(submission, submitted):
            self._leave_queue(task)
            return False
        when = max(submitted.not_before_ms, next_attempt_at_ms(view))
        if when and when > here.time_ms:
            self._leave_queue(task)
            here.timers.at_time(when, ("ready", task.id))
            return False
        return True

    def _enqueue(self, task: Task, view: TaskView) -> None:
        assert view.submitted is not None
        assert view.submission is not None
        lane = self._limits.lane_of(view)
        self._ready.add(task.id, lane, order_key(view.submission, view.priority, view.submitted.deadline_ms))

    def _take_back(self, task: Task, view: TaskView) -> None:
        """Own again, by a new term, what was offered under `wait` and withdrawn.

        Only once the region that it was offered to is known to have seen the withdrawal: until then
        its acceptance may be under way, and both would own the task (decision 0004).
        """
        returning, here = view.returning, self._here
        assert returning is not None
        missing = here.stability.missing(returning.withdrawal.writer, returning.withdrawal.number)
        if lifecycle.may_resume(view, here.me) and returning.region not in missing:
            here.write(TermOpened(task.id, view.term + 1, returning.offer))
        else:
            here.timers.at_mono(here.now.mono_ms + OFFER_RETRY_MS, ("ready", task.id))

    def _can_serve(self, view: TaskView) -> bool:
        return not self._handover.draining and self._workers.serves(self._limits.lane_of(view))

    first_own_stamp = 0  # of this incarnation; older work waits until the disk is trusted

    def _must_wait(self, submission: EventId, submitted: Submitted) -> bool:
        """Whether it is too early to start this task: it is older than our start and the disk not yet trusted, or a
        snapshot's rows tell of it and what we write could not name its submission in the `deps`."""
        old = submission.stamp < self.first_own_stamp
        foreign = submission.writer != self._here.writer
        return (old and not self._may_touch_old()) or ((foreign or bool(submitted.after)) and self._runs_ahead())

    # Timers ------------------------------------------------------------------------------------

    def expire(self, task: Task) -> None:
        """A task's deadline has passed: the owner says so, unless an attempt of its own ended ok."""
        view = self._here.table.view(task)
        if self._here.stamps and lifecycle.may_expire(view, self._here.me):
            self._here.write(Expired(task.id, lifecycle.outcome_known(view)))

    def check_lanes(self) -> None:
        """Offer what waits in lanes that nobody here has served for too long to regions that can."""
        if not self._here.stamps:
            return
        now_ms = self._here.now.mono_ms
        unserved = [lane for lane in self._ready.lanes() if not self._workers.serves(lane)]
        self._unserved = {lane: self._unserved.get(lane, now_ms) for lane in unserved}
        for lane, since_ms in self._unserved.items():
            for task_id in self._ready.first(lane, OFFERS_PER_TURN):
                task = self._here.table.get(task_id)
                if task is None:
                    continue
                view = self._here.table.view(task)
                if view.submitted is not None and now_ms - since_ms >= view.submitted.options.unserved_after_ms:
                    self._handover.offer(task, view, "unserved")

    # Compensation ------------------------------------------------------------------------------

    def _undo(self, task: Task, view: TaskView) -> bool:
        """Submit the compensations that this region owes for the task. True while one is pending."""
        here = self._here
        submitted = view.submitted
        assert submitted is not None
        if submitted.undoes is not None or not view.attempts or not undoing.is_compensated(task.facts):
            return False
        decided = undoing.is_decided(task.facts, view, here.stable)
        owed = [
            undo
            for undo in undoing.undo(task.facts, view, settled=task.settled, decided=decided)
            if undo.region == here.me or self._inheritance.is_heir(undo.region, undo.id)
        ]
        pending = False
        for undo in owed:
            undo_id = undo.id
            if here.table.get(undo_id) is not None or undo_id in here.table.damaged:
                continue
            if here.table.missing((undo_id,)):
                pending = True
                if undo_id not in self._undoing:
                    self._undoing.add(undo_id)
                    self._require((undo_id,), lambda id=undo_id, task=task: self._looked_up(id, task))  # type: ignore[misc]
                continue
            self._submit_undo(task, submitted, undo)
        return pending

    def _looked_up(self, undo_id: TaskId, task: Task) -> None:
        self._undoing.discard(undo_id)
        if self._here.table.get(undo_id) is None:
            self._here.table.is_absent(undo_id)
        self._here.table.touch(task)

    def _submit_undo(self, task: Task, submitted: Submitted, undo: undoing.Undo) -> None:
        here = self._here
        undo_id = undo.id
        declared = here.declaration(undo.compensate)
        options = COMPENSATION
        if declared is not None:
            options = declared.options._replace(partition="wait", compensate="", cancel="loses")
        losing = {
            "task_id": task.id.hex(),
            "attempt": undo.number,
            "region": undo.region,
            "result": None if undo.result is None else decode_value(undo.result),
            "effects": {name: decode_value(result) for name, result in undo.effects},
            "inherited": sorted(undoing.inherited_names(task.facts, undo.attempt)),
            "key": undo_id.hex(),
        }
        here.write(
            Submitted(
                task=undo_id,
                name=undo.compensate,
                payload=encode_value(losing),
                owner=here.me,
                queue=declared.queue if declared is not None else submitted.queue,
                priority=submitted.priority,
                not_before_ms=0,
                deadline_ms=0,
                key="",
                generation=0,
                labels=(),
                after=(),
                undoes=(task.id, undo.attempt, undo.effect_key or b""),
                linked=None,
                options=options,
            )
        )
        here.notify("info", "compensation.submitted", task=task.id.hex(), undo=undo_id.hex(), attempt=undo.number)
