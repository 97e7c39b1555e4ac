"""`App`: which tasks exist, and how each wants to be run. Declarations only: nothing here does I/O.

    app = App("shop")

    @app.task(queue="payments", retry=Retry(attempts=5), compensate="refund")
    async def charge(ctx, order: str, cents: int) -> str:
        return await ctx.effect("charge", gateway.charge, order, cents)

A decorated function stays the function it was, so it can be called and tested directly.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeAlias, TypeVar, overload

from crdtsync.commands import PARTITIONS, LimitDeclaration, TaskDeclaration
from crdtsync.errors import ConfigError
from crdtsync.limit import Limit

LEASE_SCOPES: Final = ("queue", "task")
CANCEL_POLICIES: Final = ("wins", "loses")
NAME_CHARS_MAX: Final = 200
ATTEMPTS_MAX: Final = 1_000_000
DURATION_S_MAX: Final = 366 * 86_400  # longer ones are schedules
TASK_NAME: Final = "__crdtsync_task__"  # the attribute that carries a handler's task name

Handler: TypeAlias = Callable[..., Any]
Seconds: TypeAlias = float | timedelta
F = TypeVar("F", bound=Handler)


class PermanentError(Exception):
    """Raise this (or a subclass) in a handler when trying again cannot help: the attempt fails and is not retried."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a failed task is tried, and how long it rests in between: base, base * factor, ... up to cap.

    Attributes:
        attempts: How many failures end the task, the first included. An operator's requeue grants as many again.
        base: Seconds before the second attempt.
        factor: Growth of the delay with each failure, at least 1.
        cap: Seconds that no delay exceeds. A jitter, the same on every replica, is taken off each delay.
        lost: How often an attempt may be lost (crash, lost worker) before the task is dead. Counted apart.
        non_retryable: Exceptions, as classes or names, that end the task at once. Subclasses count.
    """

    attempts: int = 10
    base: Seconds = 1.0
    factor: float = 2.0
    cap: Seconds = 60.0
    lost: int = 5
    non_retryable: tuple[str | type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        _check_range("attempts", self.attempts, 1, ATTEMPTS_MAX)
        _check_range("lost", self.lost, 0, ATTEMPTS_MAX)
        _check_range("factor", self.factor, 1, 1_000)
        base_ms, cap_ms = milliseconds("base", self.base), milliseconds("cap", self.cap)
        if cap_ms < base_ms:
            raise ConfigError(f"Retry(cap={self.cap}) is below base={self.base}: no delay may exceed the cap")
        _check_exceptions(self.non_retryable)

    @property
    def non_retryable_names(self) -> tuple[str, ...]:
        """Class names: bare for a name that was given bare, with the module for a class."""
        return tuple(k if isinstance(k, str) else f"{k.__module__}.{k.__qualname__}" for k in self.non_retryable)


@dataclass(frozen=True, slots=True)
class Task:
    """One task of an app: the handler, and what the cluster is told about it."""

    handler: Handler
    is_async: bool
    declaration: TaskDeclaration

    @property
    def name(self) -> str:
        return self.declaration.name


class App:
    """A named collection of tasks.

    Args:
        name: How workers of this app present themselves.
        limits: How much of it may run at once, or start in a while. In force once a worker of the app has connected,
            and until the app declares something else; an operator's setting (`crdtsync limit set`) goes first.
    """

    def __init__(self, name: str, *, limits: Iterable[Limit] = ()) -> None:
        _check_name("App", name)
        self.name = name
        self.limits = tuple(limits)
        for limit in self.limits:
            if not isinstance(limit, Limit):
                raise ConfigError(
                    f"App(limits=...): {limit!r} is not a Limit, as in Limit(queue='billing', concurrency=10)"
                )
        targets = [limit.target for limit in self.limits]
        if len(set(targets)) < len(targets):
            raise ConfigError(
                f"app {name!r} declares two limits on one target; give one Limit both a concurrency and a rate"
            )
        self._tasks: dict[str, Task] = {}

    @property
    def tasks(self) -> dict[str, Task]:
        """The tasks by name, in the order of declaration. A copy."""
        return dict(self._tasks)

    def __getitem__(self, name: str) -> Task:
        return self._tasks[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks.values())

    def __repr__(self) -> str:
        return f"App({self.name!r}, tasks={sorted(self._tasks)})"

    @overload
    def task(self, handler: F, /) -> F: ...

    @overload
    def task(
        self,
        /,
        *,
        name: str | None = None,
        queue: str = "default",
        priority: int = 5,
        retry: Retry | None = None,
        partition: str = "takeover",
        scope: str = "queue",
        cancel: str | None = None,
        compensate: str | Handler | None = None,
        timeout: Seconds | None = None,
        unserved_after: Seconds = 60.0,
        window: Seconds = 86_400.0,
    ) -> Callable[[F], F]: ...

    def task(
        self,
        handler: Handler | None = None,
        /,
        *,
        name: str | None = None,
        queue: str = "default",
        priority: int = 5,
        retry: Retry | None = None,
        partition: str = "takeover",
        scope: str = "queue",
        cancel: str | None = None,
        compensate: str | Handler | None = None,
        timeout: Seconds | None = None,
        unserved_after: Seconds = 60.0,
        window: Seconds = 86_400.0,
    ) -> Any:
        """Declare a task. The handler's first parameter is the context; it may be sync or async.

        Args:
            handler: The function, where the decorator is used without parentheses.
            name: The function's own name unless given. Stored with every task: renaming needs both names for a while.
            queue: Which queue its tasks join unless the submission says otherwise.
            priority: 0 to 9, higher first.
            retry: What happens after a failure. `Retry()` unless given.
            partition: "takeover" lets another region run it when its owner is silent, "wait" never does,
                "quorum" runs it only under a lease from a majority.
            scope: With "quorum", what shares one lease: the "queue" costs a renewal now and then, each "task" one of
                its own. Tasks that are submitted under a key always share the key's.
            cancel: Whether a cancel "wins" against a success, or "loses". Wins where there is a compensation.
            compensate: The task (or its name) that undoes an attempt's effects when the attempt loses.
            timeout: Seconds that one attempt may take; it is then lost. No limit unless given.
            unserved_after: Seconds without a worker for this task here until it is offered to another region.
            window: Seconds that an idempotency key is remembered after the settled end.

        Raises:
            ConfigError: If an option makes no sense, or the name is taken.
        """

        def declare(function: F) -> F:
            task_name = name if name is not None else getattr(function, "__name__", "")
            _check_name("task", task_name)
            where = f"task {task_name!r}"
            if task_name in self._tasks:
                raise ConfigError(
                    f"{where} is declared twice in app {self.name!r}; give one of the two another name with name=..."
                )
            _check_handler(where, function)
            declaration = TaskDeclaration(
                name=task_name,
                queue=_checked_queue(where, queue),
                priority=priority,
                partition=partition,
                scope=scope if partition == "quorum" else "",
                attempts=policy.attempts,
                lost_max=policy.lost,
                backoff_ms_base=milliseconds("base", policy.base),
                backoff_ms_max=milliseconds("cap", policy.cap),
                backoff_factor_permille=round(policy.factor * 1_000),
                cancel=cancel or "",
                compensate=task_name_of(compensate) if compensate is not None else "",
                timeout_ms=0 if timeout is None else max(1, milliseconds(f"{where}: timeout", timeout)),
                unserved_after_ms=milliseconds(f"{where}: unserved_after", unserved_after),
                window_ms=milliseconds(f"{where}: window", window),
                non_retryable=policy.non_retryable_names,
            )
            self._tasks[task_name] = Task(function, _is_async(function), declaration)
            # A callable object with slots cannot be marked: it is then submitted by name alone.
            if hasattr(function, "__dict__"):
                setattr(function, TASK_NAME, task_name)
            return function

        policy = Retry() if retry is None else retry
        if not isinstance(policy, Retry):
            raise ConfigError(f"retry={retry!r}: expected Retry(...), as in retry=Retry(attempts=5)")
        _check_range("priority", priority, 0, 9)
        _check_choice("partition", partition, PARTITIONS)
        _check_choice("scope", scope, LEASE_SCOPES)
        if cancel is not None:
            _check_choice("cancel", cancel, CANCEL_POLICIES)
        if handler is None:
            return declare
        if not callable(handler):
            raise ConfigError(f"@app.task({handler!r}): options are given by name, as in @app.task(queue=...)")
        return declare(handler)

    def check(self) -> None:
        """See that the tasks fit together. Called when a worker loads the app, since only then is it complete.

        Raises:
            ConfigError: If a compensation is not a task of this app, or cannot take (ctx, attempt).
        """
        for task in self._tasks.values():
            undo = task.declaration.compensate
            if not undo:
                continue
            where = f"task {task.name!r}: compensate={undo!r}"
            if undo not in self._tasks:
                known = ", ".join(sorted(self._tasks))
                raise ConfigError(f"{where} is not a task of app {self.name!r}; it has {known}")
            if not _takes(self._tasks[undo].handler, None, None):
                raise ConfigError(f"{where} must take two arguments: the context, and the attempt that it undoes")

    def declarations(self) -> tuple[TaskDeclaration, ...]:
        """What a worker tells its node."""
        return tuple(task.declaration for task in self._tasks.values())

    def limit_declarations(self) -> tuple[LimitDeclaration, ...]:
        """What it tells of limits."""
        return tuple(limit.declaration for limit in self.limits)


def task_name_of(task: str | Handler) -> str:
    """The name of a task that is given by name or by its decorated function. Raises ConfigError."""
    if isinstance(task, str):
        return task
    name = getattr(task, TASK_NAME, None)
    if not isinstance(name, str):
        raise ConfigError(f"{task!r} is not a task: decorate it with @app.task, or give the task's name")
    return name


def milliseconds(what: str, duration: Seconds) -> int:
    """Seconds or a timedelta as whole milliseconds. Raises ConfigError outside of 0 to one year."""
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    _check_range(f"{what} (seconds)", seconds, 0, DURATION_S_MAX)
    return round(seconds * 1_000)


def _check_range(what: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ConfigError(f"{what}={value!r}: expected a number from {low} to {high}")


def _check_exceptions(kinds: Any) -> None:
    if not isinstance(kinds, tuple):
        raise ConfigError(f"Retry(non_retryable={kinds!r}): write a tuple, as in (ValueError, 'shop.OutOfStock')")
    for kind in kinds:
        if not isinstance(kind, str) and not (isinstance(kind, type) and issubclass(kind, BaseException)):
            raise ConfigError(f"Retry(non_retryable=...): {kind!r} is neither an exception class nor a name")


def _check_choice(what: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{what}={value!r}: expected one of {', '.join(map(repr, choices))}")


def _check_name(what: str, name: Any) -> None:
    if not isinstance(name, str) or not name or len(name) > NAME_CHARS_MAX or not name.isprintable():
        raise ConfigError(f"{what} name {name!r}: expected printable text of 1 to {NAME_CHARS_MAX} characters")
    if name != name.strip() or name.startswith("<"):
        raise ConfigError(f"{what} name {name!r}: give a name with name=..., without blanks around it")


def _checked_queue(where: str, queue: str) -> str:
    _check_name(f"{where}: queue", queue)
    return queue


def _check_handler(where: str, function: Handler) -> None:
    if not callable(function):
        raise ConfigError(f"{where}: {function!r} is not a function")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(f"{where} is a generator; a handler returns its result, and reports by ctx.progress()")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return  # a builtin that hides its signature: the call will tell
    takes_context = parameters and parameters[0].kind not in (
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    )
    if not takes_context:
        raise ConfigError(
            f"{where} takes no positional parameter; the first one of a handler is its context: (ctx, ...)"
        )


def _takes(function: Handler, *args: Any) -> bool:
    try:
        inspect.signature(function).bind(*args)
    except (TypeError, ValueError):
        return False
    return True


def _is_async(function: Handler) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
