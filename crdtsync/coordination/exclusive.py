"""`quorum` tasks: which lease each needs, which tasks wait for one, and which attempts run under one.

An attempt of such a task is claimed by whoever holds the lease of its *scope*, be that the owner or not. A scope is the
task's queue, so that a busy queue costs a renewal now and then and not a round trip a task; its idempotency key, where
it has one; or the task alone, on request. Concurrency inside a scope is not limited by it: one region at a time runs
the scope's tasks, as many at once as its workers take.

Nothing is decided here about leases (`leases`) or about claims (`lifecycle`): this only brings the two together, and
gives a lease back when nothing needs it any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from crdtsync.commands import PARTITIONS
from crdtsync.coordination.lease import DRIFT_PPM
from crdtsync.coordination.leases import Held
from crdtsync.errors import InvalidRequestError, OverloadedError
from crdtsync.events import Submitted
from crdtsync.identifiers import AttemptId, TaskId
from crdtsync.scheduling.ready import Lane

SCOPES: Final = ("queue", "key", "task")
TASK_SCOPE: Final = "quorum:task"  # the partition policy of tasks that ask for a lease of their own
IDLE_MS: Final = 1_000  # how long a lease is kept with nothing to do under it: the next task finds it there


class Lessor(Protocol):
    """What is asked of `leases.Leases` here."""

    def want(self, scope: str) -> None: ...

    def unwant(self, scope: str) -> None: ...

    def held(self, scope: str) -> Held | None: ...

    def valid(self, scope: str, token: int) -> bool: ...

    def why_not(self, scope: str) -> str: ...


class Open(NamedTuple):
    """An attempt of this region that is under way under a lease."""

    task: TaskId
    token: int


@dataclass(slots=True)
class _Scope:
    waiting: dict[TaskId, Lane] = field(default_factory=dict)  # a valid lease is all that they lack
    lanes: Counter[Lane] = field(default_factory=Counter)  # of those: many tasks wait in few lanes
    ready: dict[TaskId, None] = field(default_factory=dict)  # in the ready queue
    open: dict[AttemptId, Open] = field(default_factory=dict)
    wanted: bool = False
    idle_since_ms: int | None = None


def policy_of(partition: str, scope: str | None, *, keyed: bool) -> str:
    """The partition policy as a submission carries it, from what a user asks for.

    Raises:
        InvalidRequestError: If the policy or the scope is none, or the two don't fit.
    """
    if partition not in (*PARTITIONS, TASK_SCOPE):
        raise InvalidRequestError(f"partition is one of {', '.join(PARTITIONS)}, not {partition!r}")
    if not partition.startswith("quorum"):
        if scope:
            raise InvalidRequestError(f"scope={scope!r} is for partition='quorum', not {partition!r}")
        return partition
    if scope is None or scope == "":
        return partition
    if scope not in SCOPES:
        raise InvalidRequestError(f"scope is one of {', '.join(SCOPES)}, not {scope!r}")
    if keyed != (scope == "key"):
        why = "a quorum task with a key has the scope 'key'" if keyed else "scope='key' needs a key"
        raise InvalidRequestError(why)
    return TASK_SCOPE if scope == "task" else "quorum"


def scope_of(submitted: Submitted, namespace: str) -> str:
    """What the attempts of a `quorum` task exclude each other by. It never changes: a submission says it."""
    if submitted.key:
        return f"key:{namespace}/{submitted.name}/{submitted.key}"
    if submitted.options.partition == TASK_SCOPE:
        return f"task:{submitted.task.hex()}"
    return f"queue:{submitted.queue}"


class Exclusive:
    """The `quorum` tasks that this region could run, by scope.

    Args:
        touch: Have a task reviewed again.
        serves: Whether a worker here runs such tasks at all.
        starts: Whether this region starts anything at present: not while its clock is off.
    """

    def __init__(
        self,
        leases: Lessor,
        namespace: str,
        *,
        touch: Callable[[TaskId], None],
        serves: Callable[[Lane], bool],
        starts: Callable[[], bool],
    ) -> None:
        self._leases = leases
        self._namespace = namespace
        self._touch = touch
        self._serves = serves
        self._starts = starts
        self._scopes: dict[str, _Scope] = {}
        self._scope_of: dict[TaskId, str] = {}
        self._ran_in: dict[AttemptId, str] = {}

    def scope(self, submitted: Submitted) -> str:
        return scope_of(submitted, self._namespace)

    # Tasks -------------------------------------------------------------------------------------

    def token(self, submitted: Submitted, mono_ms: int) -> int:
        """The token under which an attempt may begin now, 0 if none may."""
        return self._usable(self.scope(submitted), mono_ms)

    def _usable(self, scope: str, mono_ms: int) -> int:
        lease = self._leases.held(scope)
        return lease.token if lease is not None and lease.ready and mono_ms < lease.starts_until_mono_ms else 0

    def wait(self, submitted: Submitted, lane: Lane) -> None:
        """A valid lease is all that the task lacks: try to get it."""
        scope, known = self._of(submitted)
        self._leave(known, submitted.task)
        known.waiting[submitted.task] = lane
        known.lanes[lane] += 1
        self._want(scope, known)

    def ready(self, submitted: Submitted) -> None:
        """The task is in the ready queue, under a lease that is held."""
        _, known = self._of(submitted)
        self._leave(known, submitted.task)
        known.ready[submitted.task] = None

    def forget(self, task: TaskId) -> None:
        """The task needs no lease now: it runs, has ended, or something else is missing first."""
        scope = self._scope_of.pop(task, None)
        if scope is not None:
            self._leave(self._scopes[scope], task)

    @staticmethod
    def _leave(known: _Scope, task: TaskId) -> None:
        known.ready.pop(task, None)
        lane = known.waiting.pop(task, None)
        if lane is not None:
            known.lanes[lane] -= 1
            if not known.lanes[lane]:
                del known.lanes[lane]

    def _of(self, submitted: Submitted) -> tuple[str, _Scope]:
        scope = self.scope(submitted)
        before = self._scope_of.get(submitted.task)
        if before is not None and before != scope:  # an earlier submission has turned up
            self.forget(submitted.task)
        self._scope_of[submitted.task] = scope
        known = self._scopes.get(scope)
        if known is None:
            known = self._scopes[scope] = _Scope()
        return scope, known

    def _want(self, scope: str, known: _Scope) -> None:
        if known.wanted or not self._is_served(known):
            return
        try:
            self._leases.want(scope)
        except OverloadedError:
            return  # the next review tries again, and `why_not` says so meanwhile
        known.wanted = True
        known.idle_since_ms = None

    # Attempts ----------------------------------------------------------------------------------

    def began(self, submitted: Submitted, attempt: AttemptId, token: int) -> None:
        """An attempt of this region is open under a lease."""
        scope = self.scope(submitted)
        self._scopes.setdefault(scope, _Scope()).open[attempt] = Open(submitted.task, token)
        self._ran_in[attempt] = scope

    def ended(self, attempt: AttemptId) -> None:
        scope = self._ran_in.pop(attempt, None)
        if scope is not None and scope in self._scopes:
            self._scopes[scope].open.pop(attempt, None)

    def left_ms(self, attempt: AttemptId, mono_ms: int) -> int:
        """For how long an attempt is still covered unless the lease is renewed, by the clock of another process."""
        scope = self._ran_in.get(attempt)
        lease = None if scope is None else self._leases.held(scope)
        if scope is None or lease is None or lease.token != self._scopes[scope].open[attempt].token:
            return 0
        left_ms = lease.until_mono_ms - mono_ms
        return max(0, left_ms - left_ms * DRIFT_PPM // 1_000_000 - 1)

    def valid(self, submitted: Submitted, token: int) -> bool:
        """Whether an attempt under `token` is still covered."""
        return self._leases.valid(self.scope(submitted), token)

    # Leases ------------------------------------------------------------------------------------

    def changed(self, scope: str) -> None:
        """The lease of a scope was granted, lost, or became ready."""
        known = self._scopes.get(scope)
        if known is None:
            return
        for task in (*known.waiting, *known.ready):
            self._touch(task)
        for attempt in known.open.values():
            self._touch(attempt.task)

    def in_use(self, scope: str) -> bool:
        """Whether an attempt here runs under the lease: until it has ended the lease is not handed on."""
        known = self._scopes.get(scope)
        return known is not None and bool(known.open)

    def review(self, mono_ms: int) -> None:
        """Want what workers here can use, and give back what nothing has needed for a while. Call now and then."""
        for scope, known in list(self._scopes.items()):
            if known.waiting:
                self._want(scope, known)
                if self._usable(scope, mono_ms):  # renewed in the last moment
                    for task in known.waiting:
                        self._touch(task)
            if self._is_needed(known):
                known.idle_since_ms = None
            elif known.wanted and self._leases.held(scope) is None:
                self._give_back(scope, known)  # not got yet, and no longer needed
            elif known.idle_since_ms is None:
                known.idle_since_ms = mono_ms
            elif mono_ms - known.idle_since_ms >= IDLE_MS:
                self._give_back(scope, known)

    def _is_needed(self, known: _Scope) -> bool:
        return bool(known.open) or self._is_served(known) or (bool(known.ready) and self._starts())

    def _is_served(self, known: _Scope) -> bool:
        return self._starts() and any(self._serves(lane) for lane in known.lanes)

    def _give_back(self, scope: str, known: _Scope) -> None:
        if known.wanted:
            known.wanted = False
            self._leases.unwant(scope)
        if not known.waiting and not known.ready:
            del self._scopes[scope]

    # Telling -----------------------------------------------------------------------------------

    def why_not(self, submitted: Submitted) -> str:
        """Why no attempt of the task may begin here, as far as its lease goes."""
        return self._leases.why_not(self.scope(submitted))
