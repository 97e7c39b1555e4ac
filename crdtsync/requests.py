"""What clients and operators ask for: each command checked, carried out, answered.

A command whose facts are on disk waits for them; then it is decided in one go. Errors are answers:
nothing is written when one is given, except that the good specs of a bulk submit are accepted
while the bad ones are refused one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from crdtsync import commands as c
from crdtsync import lifecycle
from crdtsync.coordination.exclusive import policy_of
from crdtsync.effects import Cursor, Page, Query, Reply, TaskRow
from crdtsync.errors import (
    CrdtSyncError,
    DependencyError,
    DuplicateTaskError,
    IllegalTransitionError,
    InvalidRequestError,
    OverloadedError,
    PayloadTooLargeError,
    UndeclaredTaskError,
    UnknownTaskError,
)
from crdtsync.events import (
    CancelRequested,
    Declared,
    LabelEdited,
    Options,
    PriorityEdited,
    Requeued,
    Submitted,
)
from crdtsync.identifiers import TASK_ID_BYTES, EventId, TaskId, derived_id, keyed_task_id
from crdtsync.records import Records
from crdtsync.region import RegionState
from crdtsync.scheduling.placement import owner_of
from crdtsync.task_view import TaskView
from crdtsync.tasks import Task
from crdtsync.watchers import Watchers

NAME_CHARS_MAX: Final = 200
LABEL_CHARS_MAX: Final = 500
SPECS_MAX: Final = 10_000  # tasks in one bulk submit
DELAY_MS_MAX: Final = 10 * 366 * 86_400_000
GENERATIONS_MAX: Final = 1_000_000
PAGE_TASKS_MAX: Final = 500  # of a listing: turning them into records holds the loop for some 50 ms
PAGE_CONFLICTS_MAX: Final = 100  # tasks with conflicts in a page: their compensations are brought into memory
PAGE_BYTES_MAX: Final = 1 << 20  # of facts in a page, beyond its first task
CURSOR_MS_MAX: Final = 2**63 - 1


class Requests:
    def __init__(
        self,
        here: RegionState,
        watchers: Watchers,
        records: Records,
        require: Callable[..., None],
        *,
        flush: Callable[[], None],
    ) -> None:
        self._here = here
        self._watchers = watchers
        self._records = records
        self._require = require
        self._flush = flush
        self._queries: dict[int, Callable[[Page], None]] = {}

    # Answers -----------------------------------------------------------------------------------

    def reply(self, ticket: Any, value: Any, *, final: bool = True) -> None:
        self._here.emit(Reply(ticket, value, None, final))

    def refuse(self, ticket: Any, error: CrdtSyncError) -> None:
        self._here.emit(Reply(ticket, None, error.record()))

    def _with(self, tasks: Iterable[bytes], ticket: Any, then: Callable[[], None]) -> None:
        """Run `then` with the facts of `tasks` in memory; its errors become the answer."""

        def run() -> None:
            try:
                then()
            except CrdtSyncError as error:
                self.refuse(ticket, error)

        try:
            self._require((TaskId(task) for task in tasks), run, refuse=True)
        except CrdtSyncError as error:
            self.refuse(ticket, error)

    def _task(self, task: bytes) -> Task:
        held = self._here.task(TaskId(task))
        if held is None:
            raise UnknownTaskError(f"no task {task.hex()} is known in {self._here.me}", task=task.hex())
        return held

    # Submitting --------------------------------------------------------------------------------

    def submit(self, command: c.Submit, ticket: Any) -> None:
        if len(command.specs) > SPECS_MAX:
            self.refuse(
                ticket,
                InvalidRequestError(
                    f"{len(command.specs)} tasks in one submit, the limit is {SPECS_MAX}: send them in parts"
                ),
            )
            return
        here = self._here
        here_ids = {spec.id for spec in command.specs}
        needed: set[TaskId] = set()
        for spec in command.specs:
            if spec.id is not None:
                needed.add(TaskId(spec.id))
            elif spec.key:
                needed.add(keyed_task_id(here.settings.namespace, spec.name, spec.key, 0))
            needed.update(TaskId(parent) for parent in (*spec.after, *spec.after_settled) if parent not in here_ids)

        def accept() -> None:
            answers: list[Any] = [None] * len(command.specs)
            left = len(answers)

            def answer(place: int, value: Any) -> None:
                nonlocal left
                answers[place] = value
                left -= 1
                if left == 0:
                    self.reply(ticket, answers)

            if not command.specs:
                self.reply(ticket, [])
            for place, spec in enumerate(command.specs):
                self._accept(spec, lambda value, place=place: answer(place, value))  # type: ignore[misc]

        self._with(needed, ticket, accept)

    def _accept(self, spec: c.TaskSpec, answer: Callable[[Any], None], generation: int = 0) -> None:
        """Accept one task, or answer why not. Walks an idempotency key's generations if it must."""
        here = self._here
        try:
            declared = self._checked(spec)
            if spec.key:
                task_id = keyed_task_id(here.settings.namespace, spec.name, spec.key, generation)
            elif spec.id is not None:
                task_id = TaskId(spec.id)
            else:
                task_id = derived_id(b"minted", here.writer.encode(), here.token().to_bytes(8, "big"))
            held = here.task(task_id)
            if held is None:
                self._write(spec, declared, task_id, generation)
                answer({"id": task_id.hex(), "created": True})
                return
            if spec.key and self._window_over(held):
                if generation >= GENERATIONS_MAX:
                    raise OverloadedError(f"key {spec.key!r} was used {generation} times: choose another")
                following = keyed_task_id(here.settings.namespace, spec.name, spec.key, generation + 1)
                self._require((following,), lambda: self._accept(spec, answer, generation + 1))
                return
            self._same(spec, held)
            answer({"id": task_id.hex(), "created": False})
        except CrdtSyncError as error:
            answer({"error": error.record()})

    def _checked(self, spec: c.TaskSpec) -> Declared:
        settings = self._here.settings
        declared = self._here.declaration(spec.name)
        if declared is None:
            known = ", ".join(sorted(self._here.declared)[:10]) or "none yet: is a worker connected?"
            raise UndeclaredTaskError(
                f"no app in the cluster declares a task {spec.name[:NAME_CHARS_MAX]!r}; declared: {known}",
                name=spec.name[:NAME_CHARS_MAX],
            )
        if len(spec.payload) > settings.payload_bytes_max:
            raise PayloadTooLargeError(
                f"the arguments take {len(spec.payload)} bytes, the limit is {settings.payload_bytes_max}: "
                "store them elsewhere and pass a reference"
            )
        if spec.id is not None and len(spec.id) != TASK_ID_BYTES:
            raise InvalidRequestError(f"a task id has {TASK_ID_BYTES} bytes, not {len(spec.id)}")
        if spec.priority is not None and not 0 <= spec.priority <= 9:
            raise InvalidRequestError(f"priority goes from 0 to 9 (first), not {spec.priority}")
        if not 0 <= spec.delay_ms <= DELAY_MS_MAX:
            raise InvalidRequestError(f"a delay is between 0 and {DELAY_MS_MAX} ms, not {spec.delay_ms}")
        if spec.not_before_ms < 0 or spec.deadline_ms < 0:
            raise InvalidRequestError("not_before_ms and deadline_ms are wall times in milliseconds, never negative")
        if spec.attempts is not None and not 1 <= spec.attempts <= 1_000_000:
            raise InvalidRequestError(f"attempts is at least 1, not {spec.attempts}")
        _policy_of(spec, declared)
        if spec.cancel is not None and spec.cancel not in ("wins", "loses"):
            raise InvalidRequestError(f"cancel is 'wins' or 'loses', not {spec.cancel!r}")
        if any(
            value is not None and value < 0 for value in (spec.backoff_ms_base, spec.backoff_ms_max, spec.timeout_ms)
        ):
            raise InvalidRequestError("backoff and timeout are milliseconds, never negative")
        if len(spec.labels) > settings.labels_max:
            raise InvalidRequestError(f"{len(spec.labels)} labels, the limit is {settings.labels_max}")
        texts = (spec.key, spec.queue or "", *spec.labels, *spec.labels.values())
        if any(len(text) > LABEL_CHARS_MAX for text in texts):
            raise InvalidRequestError(f"keys, queues and labels have at most {LABEL_CHARS_MAX} characters")
        parents = (*spec.after, *spec.after_settled)
        if len(parents) > settings.parents_max:
            raise InvalidRequestError(f"{len(parents)} tasks in `after`, the limit is {settings.parents_max}")
        for parent in parents:
            if self._here.task(TaskId(parent)) is None:
                raise DependencyError(
                    f"after names task {parent.hex()}, which {self._here.me} does not hold: "
                    "submit it first, here, or in the same call",
                    parent=parent.hex(),
                )
        return declared

    def _write(self, spec: c.TaskSpec, declared: Declared, task_id: TaskId, generation: int) -> None:
        here = self._here
        settings = here.settings
        if here.commit_bytes >= settings.history_bytes_max:
            raise OverloadedError(
                f"the history has reached history_limit ({settings.history_bytes_max} bytes): "
                "an absent region must return, or be forgotten, before new tasks are taken"
            )
        if len(here.table) >= settings.live_tasks_max:
            raise OverloadedError(f"{len(here.table)} tasks are live, the limit is {settings.live_tasks_max}")
        options = _options_of(spec, declared)
        if spec.key and options.partition == "wait" and spec.region in ("here", "spread"):
            self._check_owners_agreed(spec.key)
        owner = owner_of(
            spec.region,
            task_id,
            here=here.me,
            members=here.membership.owners,
            keyed=bool(spec.key),
            partition=options.partition,
        )
        after: dict[bytes, bool] = dict.fromkeys(spec.after, False) | dict.fromkeys(spec.after_settled, True)
        here.write(
            Submitted(
                task=task_id,
                name=spec.name,
                payload=spec.payload,
                owner=owner,
                queue=spec.queue or declared.queue,
                priority=self._records.default_priority(spec.name) if spec.priority is None else spec.priority,
                not_before_ms=max(spec.not_before_ms, here.time_ms + spec.delay_ms if spec.delay_ms else 0),
                deadline_ms=spec.deadline_ms,
                key=spec.key,
                generation=generation,
                labels=tuple(sorted(spec.labels.items())),
                after=tuple((TaskId(parent), settled) for parent, settled in sorted(after.items())),
                undoes=None,
                linked=None if spec.linked is None else TaskId(spec.linked),
                options=options,
            )
        )

    def _check_owners_agreed(self, key: str) -> None:
        """The owner of a keyed `wait` task follows from the members, so that two sides of a cut name the same one.

        So nobody names one before all have acknowledged the newest change of the members: whoever has will not name one by
        the members before, and what it submitted earlier came here before its acknowledgement.
        """
        here = self._here
        change = here.roster.last_of_owners
        missing = [] if change is None else here.stability.missing(change.writer, change.number)
        if missing:
            raise OverloadedError(
                f"the members have changed (version {here.membership.version}), and {', '.join(missing)} has not acknowledged "
                f"that yet: until then the other side of a cut could give key {key!r} another owner; ask again, name a "
                "region, or forget who does not come back"
            )

    def _same(self, spec: c.TaskSpec, held: Task) -> None:
        submitted = self._here.table.view(held).submitted
        assert submitted is not None
        if submitted.name != spec.name or submitted.payload != spec.payload:
            what = f"key {spec.key!r}" if spec.key else f"id {held.id.hex()}"
            raise DuplicateTaskError(
                f"{what} is taken by task {held.id.hex()} ({submitted.name}) with another payload",
                task=held.id.hex(),
            )

    def _window_over(self, held: Task) -> bool:
        view = self._here.table.view(held)
        if not held.settled or not held.ended or view.submitted is None:
            return False
        end = _ended_at(view)
        return end is not None and (end.stamp >> 16) + view.submitted.options.window_ms < self._here.time_ms

    # Changing ----------------------------------------------------------------------------------

    def cancel(self, command: c.Cancel, ticket: Any) -> None:
        def run() -> None:
            task = self._task(command.task)
            view = self._here.table.view(task)
            known = lifecycle.outcome_known(view)
            if not known and not task.ended:
                self._here.write(CancelRequested(task.id, False, command.reason[:LABEL_CHARS_MAX]))
                view = self._here.table.view(task)
                answer = f"the task is {view.state}"
            elif known and view.winner is not None:
                self._here.write(CancelRequested(task.id, True, command.reason[:LABEL_CHARS_MAX]))
                answer = "already succeeded"
            else:
                answer = f"already {view.state}"
            cancelled = str(view.state) in ("cancelled", "cancelling")
            self.reply(
                ticket, {"id": task.id.hex(), "state": str(view.state), "cancelled": cancelled, "answer": answer}
            )

        self._with((command.task,), ticket, run)

    def requeue(self, command: c.Requeue, ticket: Any) -> None:
        def run() -> None:
            task = self._task(command.task)
            view = self._here.table.view(task)
            if not lifecycle.allowed(view, lifecycle.Action.REQUEUE, self._here.me):
                raise IllegalTransitionError(
                    f"task {task.id.hex()} is {view.state}; only dead tasks are requeued, submit it anew instead",
                    state=str(view.state),
                )
            for death in view.unanswered:
                self._here.write(Requeued(task.id, death))
            state = self._here.table.view(task).state
            self.reply(ticket, {"id": task.id.hex(), "state": str(state)})

        self._with((command.task,), ticket, run)

    def edit(self, command: c.Edit, ticket: Any) -> None:
        def run() -> None:
            task = self._task(command.task)
            view = self._here.table.view(task)
            if command.priority is not None and not 0 <= command.priority <= 9:
                raise InvalidRequestError(f"priority goes from 0 to 9 (first), not {command.priority}")
            if len(command.labels) + len(view.labels) > self._here.settings.labels_max:
                raise InvalidRequestError(f"a task has at most {self._here.settings.labels_max} labels")
            if any(len(text) > LABEL_CHARS_MAX for pair in command.labels.items() for text in pair):
                raise InvalidRequestError(f"labels have at most {LABEL_CHARS_MAX} characters")
            if task.ended and command.priority is not None:
                raise IllegalTransitionError(f"task {task.id.hex()} is {view.state}: its priority decides nothing")
            if command.priority is not None:
                self._here.write(PriorityEdited(task.id, command.priority, _current_edit(task, "")))
            for label, value in sorted(command.labels.items()):
                self._here.write(LabelEdited(task.id, label, value, _current_edit(task, label)))
            view = self._here.table.view(task)
            self.reply(ticket, {"id": task.id.hex(), "priority": view.priority, "labels": dict(view.labels)})

        self._with((command.task,), ticket, run)

    # Asking ------------------------------------------------------------------------------------

    def describe(self, command: c.Describe, ticket: Any) -> None:
        self._with((command.task,), ticket, lambda: self.reply(ticket, self._records.task(self._task(command.task))))

    def history(self, command: c.History, ticket: Any) -> None:
        self._with((command.task,), ticket, lambda: self.reply(ticket, self._records.history(self._task(command.task))))

    def explain(self, command: c.Explain, ticket: Any) -> None:
        def run() -> None:
            task = self._task(command.task)
            related = self._records.related(task)
            self._with(related, ticket, lambda: self.reply(ticket, self._records.explain(task)))

        self._with((command.task,), ticket, run)

    def wait(self, command: c.Await, ticket: Any) -> None:
        def run() -> None:
            task = self._task(command.task)
            if task.ended and (task.settled or not (command.settled or self._records.is_pending(task))):
                self.reply(ticket, self._records.task(task))
            else:
                self._watchers.wait(ticket, task.id, settled=command.settled)

        self._with((command.task,), ticket, run)

    def watch(self, command: c.Watch, ticket: Any) -> None:
        try:
            self._watchers.stream(ticket, None if command.task is None else TaskId(command.task), command.queue)
        except CrdtSyncError as error:
            self.refuse(ticket, error)

    # Listing -----------------------------------------------------------------------------------

    def list_tasks(self, command: c.ListTasks, ticket: Any) -> None:
        where: list[tuple[str, Any]] = []
        if command.state is not None:
            if command.state not in set(lifecycle.TaskState):
                names = ", ".join(lifecycle.TaskState)
                self.refuse(ticket, InvalidRequestError(f"state is one of {names}, not {command.state!r}"))
                return
            where.append(("state", command.state))
        if command.queue is not None:
            where.append(("queue", command.queue))
        if command.label is not None:
            where.append(("label", command.label))
        limit = min(command.limit or PAGE_TASKS_MAX, PAGE_TASKS_MAX)

        def answer(page: Page) -> None:
            records = [self._records.task(self._from_row(row)) for row in page.rows]
            self.reply(ticket, {"records": records, "next": page.after})

        self._query(ticket, "tasks", tuple(where), limit, after=command.after, then=answer)

    def _from_row(self, row: TaskRow) -> Task:
        """The task in memory if it is there, else a copy from its row, for reading only."""
        held = self._here.table.get(row.task)
        if held is not None:
            return held
        return Task.from_row(row)

    def list_conflicts(self, command: c.ListConflicts, ticket: Any) -> None:
        limit = min(command.limit or PAGE_CONFLICTS_MAX, PAGE_CONFLICTS_MAX)  # each task has a conflict at least
        self._conflicts(
            ticket,
            limit,
            command.after,
            lambda found, after: self.reply(ticket, {"records": found, "next": after}),
        )

    def show_conflict(self, command: c.ShowConflict, ticket: Any) -> None:
        def search(found: list[dict[str, Any]], after: Cursor | None) -> None:
            for record in found:
                if record["id"] == command.id:
                    self.reply(ticket, record)
                    return
            if after is None:
                raise UnknownTaskError(f"no conflict {command.id} is known in {self._here.me}")
            self._conflicts(ticket, PAGE_CONFLICTS_MAX, after, search)

        self._conflicts(ticket, PAGE_CONFLICTS_MAX, None, search)

    def _conflicts(
        self,
        ticket: Any,
        limit: int,
        after: Cursor | None,
        then: Callable[[list[dict[str, Any]], Cursor | None], None],
    ) -> None:
        def with_rows(page: Page) -> None:
            tasks = [self._from_row(row) for row in page.rows]
            related = [id for task in tasks for id in self._records.compensations_of(task)]
            self._with(
                related,
                ticket,
                lambda: then([record for task in tasks for record in self._records.conflicts(task)], page.after),
            )

        self._query(ticket, "conflicts", (), limit, after=after, then=with_rows)

    def _query(
        self,
        ticket: Any,
        what: str,
        where: tuple[tuple[str, Any], ...],
        limit: int,
        *,
        after: Cursor | None,
        then: Callable[[Page], None],
    ) -> None:
        """Ask the store for a page. Before the first one the rows there are made as fresh as memory."""
        if after is not None and not (0 <= after[0] <= CURSOR_MS_MAX and len(after[1]) == TASK_ID_BYTES):
            self.refuse(ticket, InvalidRequestError("`after` is the `next` of an earlier page"))
            return
        token = self._here.token()
        self._queries[token] = then
        query = Query(token, self._here.domain, what, where, limit, after, PAGE_BYTES_MAX)
        if after is None:
            self._flush()
            self._here.emit(query)
        else:
            self._here.urgent(query)  # what its first page waited for was durable then

    def queried(self, token: int, page: Page) -> None:
        then = self._queries.pop(token, None)
        if then is not None:
            then(page)


def _ended_at(view: TaskView) -> EventId | None:
    """The event that ended a task, for judging an idempotency key's window."""
    if view.winner is not None:
        winner = view.attempt(view.winner)
        return None if winner is None else winner.end
    if view.cancel is not None:
        return view.cancel.id
    return view.expired or view.failed_at


def _current_edit(task: Task, label: str) -> EventId | None:
    """The edit of a label (of the priority, if "") that is current here: what the next one supersedes."""
    kind = LabelEdited if label else PriorityEdited
    return max(
        (id for id, e in task.facts.rest if type(e) is kind and (not label or e.label == label)),  # type: ignore[union-attr]
        default=None,
    )


def _options_of(spec: c.TaskSpec, declared: Declared) -> Options:
    """What was declared, but for what the submission says itself. Raises InvalidRequestError."""
    base, partition = declared.options, _policy_of(spec, declared)
    said = (spec.attempts, spec.backoff_ms_base, spec.backoff_ms_max, spec.cancel, spec.timeout_ms)
    if said == _NOTHING_SAID and partition == base.partition:
        return base  # one object for a million tasks
    if partition.startswith("quorum") and spec.cancel not in (None, base.cancel):
        # What a majority has is decided by the policy that its regions know: docs/decisions/0012.
        raise InvalidRequestError(
            f"{spec.name} declares cancel={base.cancel!r}, and a quorum task keeps to what is declared: "
            f"cancel={spec.cancel!r} belongs in its declaration"
        )
    options: Options = base._replace(
        partition=partition,
        attempts=spec.attempts or base.attempts,
        backoff_ms_base=base.backoff_ms_base if spec.backoff_ms_base is None else spec.backoff_ms_base,
        backoff_ms_max=base.backoff_ms_max if spec.backoff_ms_max is None else spec.backoff_ms_max,
        cancel=spec.cancel or base.cancel,
        timeout_ms=base.timeout_ms if spec.timeout_ms is None else spec.timeout_ms,
    )
    return options


_NOTHING_SAID: Final = (None, None, None, None, None)


def _policy_of(spec: c.TaskSpec, declared: Declared) -> str:
    """The partition policy of a submission. Raises InvalidRequestError."""
    partition = spec.partition or declared.options.partition
    if partition == "quorum" and declared.options.exclusive:
        partition = declared.options.partition  # with the scope that was declared
    return policy_of(partition, spec.scope, keyed=bool(spec.key))
