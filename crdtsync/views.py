"""Tasks as plain records: what JSON shows and programs rely on.

Every value here goes through `json.dumps`. Payloads, results and errors are decoded where that is
possible; bytes become `{"base64": ...}`, and so does whatever cannot be decoded: a record never
fails because of what a handler wrote.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from crdtsync.errors import CrdtSyncError
from crdtsync.events import (
    CancelRequested,
    Checkpointed,
    Claimed,
    Decided,
    EffectRecorded,
    Ended,
    Expired,
    Inherited,
    LabelEdited,
    Offered,
    PriorityEdited,
    Requeued,
    Submitted,
    TaskEvent,
    TermOpened,
    Withdrawn,
)
from crdtsync.history import Facts
from crdtsync.identifiers import AttemptId, EventId, TaskId, compensation_id, region_of
from crdtsync.protocol.codec import decode_value
from crdtsync.reliability import STAMP_COUNTER_BITS
from crdtsync.task_view import AttemptState, AttemptView, Conflict, TaskView
from crdtsync.undoing import Undo, own_effects

VALUE_BYTES_MAX: Final = 64 << 20  # what is stored was accepted under the limit of its day; show it all the same
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


# Values --------------------------------------------------------------------------------------------


def utc(wall_ms: int) -> str:
    """Milliseconds since the Unix epoch as people read them: 2026-11-22T07:06:00.123Z."""
    try:
        moment = _EPOCH + timedelta(milliseconds=wall_ms)
    except OverflowError:  # a deadline that somebody computed wrongly
        return f"{wall_ms} ms"
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def at(event: EventId) -> str:
    """When an event was written, by its stamp."""
    return utc(event.stamp >> STAMP_COUNTER_BITS)


def plain_bytes(data: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(data).decode("ascii")}


def plain_value(value: Any) -> Any:
    """A decoded value with nothing in it that JSON lacks."""
    if isinstance(value, bytes):
        return plain_bytes(value)
    if isinstance(value, dict):
        return {key if isinstance(key, str) else plain_bytes(key)["base64"]: plain_value(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    return value


def decoded(data: bytes) -> Any:
    """The value that some canonical CBOR holds, JSON-able; the bytes themselves if it holds none."""
    try:
        return plain_value(decode_value(data, bytes_max=VALUE_BYTES_MAX))
    except (CrdtSyncError, RecursionError):
        return plain_bytes(data)


def arguments(payload: bytes) -> tuple[Any, dict[str, Any]]:
    """Positional and keyword arguments of a payload. One that is not `[args, kwargs]` is shown as it is."""
    if not payload:
        return [], {}
    value = decoded(payload)
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], list) and isinstance(value[1], dict):
        return value[0], value[1]
    return value, {}


def error_of(attempt: AttemptView) -> tuple[str | None, str | None]:
    """What went wrong in an attempt, in a line, and the traceback if there is one."""
    if attempt.state is AttemptState.LOST:
        return f"lost: {attempt.reason or 'unknown'}", None
    if attempt.state is not AttemptState.FAILED:
        return None, None
    value = decoded(attempt.value) if attempt.value else None
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        kind, message, trace = (*value, "", "", "")[:3]
        return f"{kind}: {message}" if message else kind, trace or None
    return attempt.reason or "failed", None


# Records -------------------------------------------------------------------------------------------


def attempt_record(attempt: AttemptView, numbers: Mapping[AttemptId, int] | None = None) -> dict[str, Any]:
    """One attempt. `numbers` names the others of its task, for `continues`."""
    error, trace = error_of(attempt)
    continues = attempt.continues
    return {
        "number": attempt.number,
        "id": str(attempt.id),
        "region": attempt.region,
        "term": attempt.term,
        "token": attempt.token,
        "fenced": attempt.fenced,
        "state": str(attempt.state),
        "error": error,
        "traceback": trace,
        "reason": attempt.reason,
        "retryable": attempt.retryable,
        "late": attempt.late,
        "started_at": at(attempt.id),
        "ended_at": None if attempt.end is None else at(attempt.end),
        "continues": None if continues is None else (numbers or {}).get(continues),
        "effects": [effect.name for effect in own_effects(attempt)],
    }


def task_record(
    task: TaskId,
    view: TaskView,
    *,
    settled: bool = False,
    decided: bool = False,
    waiting_for: str | None = None,
    progress: Any = None,
    conflicts: Iterable[Conflict] = (),
) -> dict[str, Any]:
    """One task, as `task show -o json` prints it.

    `settled`, `decided`, `waiting_for` and `progress` are what this replica knows beyond the facts; `conflicts`
    are those that the task's own facts don't show (inputs that lost).
    """
    submitted = view.submitted
    numbers = {attempt.id: attempt.number for attempt in view.attempts}
    args, kwargs = arguments(submitted.payload) if submitted is not None else ([], {})
    return {
        "id": task.hex(),
        "name": submitted.name if submitted is not None else "",
        "state": str(view.state),
        "settled": settled,
        "decided": decided,
        "owner": view.owner,
        "term": view.term,
        "attempts": [attempt_record(attempt, numbers) for attempt in view.attempts],
        "winner": None if view.winner is None else numbers[view.winner],
        "result": None if view.result is None else decoded(view.result),
        "conflicts": [conflict.id for conflict in (*view.conflicts, *conflicts)],
        "waiting_for": waiting_for,
        "progress": progress,
        "priority": view.priority,
        "labels": dict(view.labels),
        "failures": view.failures,
        "lost": view.lost,
        "granted": view.granted,
        "cancel_requested": view.cancel is not None or view.asked is not None,
        "args": args,
        "kwargs": kwargs,
        **_submission_record(view),
    }


def _submission_record(view: TaskView) -> dict[str, Any]:
    submitted, submission = view.submitted, view.submission
    if submitted is None or submission is None:
        return {}
    undoes = None
    if submitted.undoes is not None:
        undone, attempt, key = submitted.undoes
        undoes = {"task": undone.hex(), "attempt": str(EventId(*attempt)), "effect_key": key.hex() or None}
    return {
        "queue": submitted.queue,
        "key": submitted.key or None,
        "created_at": at(submission),
        "accepted_by": region_of(submission.writer),
        "not_before": utc(submitted.not_before_ms) if submitted.not_before_ms else None,
        "deadline": utc(submitted.deadline_ms) if submitted.deadline_ms else None,
        "after": [parent.hex() for parent, _ in submitted.after],
        "after_settled": [parent.hex() for parent, settled in submitted.after if settled],
        "partition": submitted.options.partition,
        "cancel": submitted.options.cancel,
        "compensate": submitted.options.compensate or None,
        "undoes": undoes,
        "linked": None if submitted.linked is None else submitted.linked.hex(),
    }


def conflict_record(
    conflict: Conflict, compensations: Mapping[TaskId, str], undos: Iterable[Undo] = ()
) -> dict[str, Any]:
    """One conflict, as `conflict list -o json` prints it.

    `compensations` maps those that exist to their states; `undos` may name the ones of single effects,
    which are not found by their attempt alone.
    """
    due = dict.fromkeys(compensation_id(conflict.task, attempt) for attempt in conflict.attempts)
    due.update(dict.fromkeys(undo.id for undo in undos if undo.attempt in conflict.attempts))
    return {
        "id": conflict.id,
        "task": conflict.task.hex(),
        "kind": conflict.kind,
        "rule": conflict.rule,
        "winner": conflict.winner,
        "losers": list(conflict.losers),
        "detail": conflict.detail,
        "compensations": [{"task": undo.hex(), "state": compensations[undo]} for undo in due if undo in compensations],
    }


# History -------------------------------------------------------------------------------------------


def history_records(facts: Facts) -> list[dict[str, Any]]:
    """A task's events in stamp order, each {"at", "kind", "region", "id", ...}.

    Of an attempt's checkpoints only the newest is kept, so only that one is told.
    """
    numbers = {a.id: number for number, a in enumerate((a for a in facts.attempts if a.claim is not None), 1)}
    return [
        {
            "at": at(event_id),
            "kind": HISTORY_NAMES[type(event)],
            "region": region_of(event_id.writer),
            "id": str(event_id),
            **_DETAILS[type(event)](event_id, event, numbers),
        }
        for event_id, event in sorted(facts.events(), key=lambda pair: pair[0])
    ]


HISTORY_NAMES: Final[dict[type[Any], str]] = {
    Submitted: "submitted",
    TermOpened: "term_opened",
    Offered: "offered",
    Withdrawn: "withdrawn",
    Claimed: "claimed",
    EffectRecorded: "effect_recorded",
    Checkpointed: "checkpointed",
    Ended: "ended",
    CancelRequested: "cancel_requested",
    Expired: "expired",
    Requeued: "requeued",
    PriorityEdited: "priority_edited",
    LabelEdited: "label_edited",
    Decided: "decided",
    Inherited: "inherited",
}

_Numbers = Mapping[AttemptId, int]


def _submitted(_: EventId, event: Submitted, __: _Numbers) -> dict[str, Any]:
    args, kwargs = arguments(event.payload)
    return {"name": event.name, "owner": event.owner, "queue": event.queue, "args": args, "kwargs": kwargs}


def _claimed(event_id: EventId, event: Claimed, numbers: _Numbers) -> dict[str, Any]:
    record: dict[str, Any] = {"attempt": numbers.get(event_id), "term": event.term}
    if event.token:
        record["token"] = event.token
    if event.continues is not None:
        record["continues"] = numbers.get(event.continues)
    return record


def _ended(_: EventId, event: Ended, numbers: _Numbers) -> dict[str, Any]:
    record: dict[str, Any] = {"attempt": numbers.get(event.attempt), "outcome": event.outcome}
    if event.late:
        record["late"] = True
    if event.reason:
        record["reason"] = event.reason
    if event.outcome == "failed":
        record["retryable"] = event.retryable
    return record


_DETAILS: Final[dict[type[Any], Callable[[EventId, Any, _Numbers], dict[str, Any]]]] = {
    Submitted: _submitted,
    TermOpened: lambda _, event, __: {
        "term": event.term,
        "by": "takeover" if event.offer is None else "handover",
    },
    Offered: lambda _, event, __: {"term": event.term, "to": event.region, "reason": event.reason},
    Withdrawn: lambda _, event, __: {"offer": str(EventId(*event.offer))},
    Claimed: _claimed,
    EffectRecorded: lambda _, event, numbers: {"attempt": numbers.get(event.attempt), "name": event.name},
    Checkpointed: lambda _, event, numbers: {"attempt": numbers.get(event.attempt), "index": event.index},
    Ended: _ended,
    CancelRequested: lambda _, event, __: {"late": event.late, "reason": event.reason},
    Expired: lambda _, event, __: {"late": event.late},
    Requeued: lambda _, event, __: {"death": event.death},
    PriorityEdited: lambda _, event, __: {"priority": event.priority},
    LabelEdited: lambda _, event, __: {"label": event.label, "value": event.value},
    Decided: lambda _, event, numbers: {"attempt": numbers.get(event.attempt)},
    Inherited: lambda _, event, __: {
        "term": event.term,
        "by": "owner forgotten",
        "from": event.region,
        "version": event.version,
    },
}
assert _DETAILS.keys() == HISTORY_NAMES.keys() == set(TaskEvent.__args__)
