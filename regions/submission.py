"""What a client may say about a task when it submits it, as people write it and as it travels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, TypeAlias

from uuid_utils import uuid7

from crdtsync.app import Handler, Seconds, milliseconds, task_name_of
from crdtsync.commands import TaskSpec
from crdtsync.errors import InvalidRequestError
from crdtsync.identifiers import TASK_ID_BYTES, parse_task_id
from crdtsync.protocol.values import encode_arguments


class HasId(Protocol):
    @property
    def id(self) -> str: ...


TaskRef: TypeAlias = str | bytes | HasId


@dataclass(frozen=True, slots=True)
class Options:
    """How one task is to be run. What is left out comes from the task's declaration.

    Attributes:
        key: Idempotency key: a second submission of the same task under it returns the first one.
        queue: Which queue it joins.
        priority: 0 to 9, higher first.
        delay: Seconds from its acceptance until it may start.
        not_before: Wall time before which it does not start. Aware: a naive time means another in each region.
        deadline: Wall time by which it must have ended; it expires otherwise.
        labels: For filters and people.
        after: Tasks that must have succeeded first.
        after_settled: Tasks whose success must be settled first.
        region: Who owns it: "here", "spread" or a region's name.
        partition: "takeover", "wait" or "quorum".
        scope: Of a quorum task's lease: "queue" (default), "task", or "key", which a task with a key has.
        attempts: How many failures end it.
        backoff: Seconds before the second attempt.
        backoff_cap: Seconds that no delay between attempts exceeds.
        cancel: Whether a cancel "wins" or "loses" against a success.
        timeout: Seconds that one attempt may take.
        id: The task's id, for those who mint their own.
        linked: The old task that this one is submitted anew for.
    """

    key: str = ""
    queue: str | None = None
    priority: int | None = None
    delay: Seconds = 0
    not_before: datetime | None = None
    deadline: datetime | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    after: Sequence[TaskRef] = ()
    after_settled: Sequence[TaskRef] = ()
    region: str = "here"
    partition: str | None = None
    scope: str | None = None
    attempts: int | None = None
    backoff: Seconds | None = None
    backoff_cap: Seconds | None = None
    cancel: str | None = None
    timeout: Seconds | None = None
    id: TaskRef | None = None
    linked: TaskRef | None = None


DEFAULT_OPTIONS = Options()


def new_task_id() -> bytes:
    """A fresh id: a uuid7, so that ids sort by the time of their submission."""
    return uuid7().bytes


def task_id_of(task: TaskRef) -> bytes:
    """The 16 bytes of a task given by handle, id in hex or id in bytes. Raises InvalidRequestError."""
    if isinstance(task, bytes):
        if len(task) != TASK_ID_BYTES:
            raise InvalidRequestError(f"a task id has {TASK_ID_BYTES} bytes, not {len(task)}")
        return task
    text = task if isinstance(task, str) else task.id
    try:
        return parse_task_id(text)
    except ValueError as error:
        raise InvalidRequestError(f"not a task id: {error}") from None


def task_spec(
    task: str | Handler, args: tuple[Any, ...], kwargs: dict[str, Any], options: Options = DEFAULT_OPTIONS
) -> TaskSpec:
    """One task to submit, with an id of its own unless it has a key, which gives it one.

    Raises:
        InvalidRequestError: If an argument cannot travel, or an option is no option.
        PayloadTooLargeError: If the arguments are.
    """
    name = task_name_of(task)
    if options is DEFAULT_OPTIONS:  # the way of bulk submits
        return TaskSpec(name, encode_arguments(name, args, kwargs), new_task_id())
    given = None if options.id is None else task_id_of(options.id)
    return TaskSpec(
        name=name,
        payload=encode_arguments(name, args, kwargs),
        id=given if given is not None or options.key else new_task_id(),
        queue=options.queue,
        priority=options.priority,
        delay_ms=milliseconds("delay", options.delay),
        not_before_ms=_wall_ms("not_before", options.not_before),
        deadline_ms=_wall_ms("deadline", options.deadline),
        key=options.key,
        labels=dict(options.labels),
        after=tuple(map(task_id_of, options.after)),
        after_settled=tuple(map(task_id_of, options.after_settled)),
        region=options.region,
        partition=options.partition,
        scope=options.scope,
        attempts=options.attempts,
        backoff_ms_base=None if options.backoff is None else milliseconds("backoff", options.backoff),
        backoff_ms_max=None if options.backoff_cap is None else milliseconds("backoff_cap", options.backoff_cap),
        cancel=options.cancel,
        timeout_ms=None if options.timeout is None else milliseconds("timeout", options.timeout),
        linked=None if options.linked is None else task_id_of(options.linked),
    )


def _wall_ms(what: str, at: datetime | None) -> int:
    if at is None:
        return 0
    if at.tzinfo is None:
        raise InvalidRequestError(f"{what}={at.isoformat()} has no time zone: write datetime(..., tzinfo=UTC)")
    return round(at.timestamp() * 1_000)
