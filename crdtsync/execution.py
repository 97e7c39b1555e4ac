"""What runs around a handler, without any I/O: the same for workers and the simulator.

An `AttemptRun` turns an assignment into the call of its handler, keeps the effect ledger, and turns
how the handler ended into a `Complete`. It says which command makes a thing durable; whoever drives
it sends the command and waits for the answer (`context.Port`).

Effects: what `effect_result` knows, inherited or own, is returned and not done again. An effect is
done first and recorded then, so a crash in between repeats it: sinks should know `effect_key`.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from crdtsync.app import Handler, PermanentError, Task
from crdtsync.commands import AttemptRef, CheckFence, Complete, RecordEffect, SaveCheckpoint
from crdtsync.conflicts import effect_key
from crdtsync.effects import Assignment
from crdtsync.errors import (
    CrdtSyncError,
    InvalidRequestError,
    OverloadedError,
    PayloadTooLargeError,
    RemoteProtocolError,
)
from crdtsync.protocol.values import decode_arguments, decode_value, encode_value

EFFECT_NAME_CHARS_MAX: Final = 200
EFFECTS_MAX: Final = 10_000  # per attempt, inherited ones included; a longer job is several tasks
LOST_ATTEMPT_BYTES_MAX: Final = 8 << 20  # all of its results together; what a frame can carry
ERROR_TYPE_CHARS_MAX: Final = 200
ERROR_MESSAGE_CHARS_MAX: Final = 2_000
ERROR_TRACEBACK_CHARS_MAX: Final = 8_000  # its end, where the raise is

# Reasons after which an attempt can no longer win: it starts no new effect. After "cancelled" it may still succeed,
# where cancels lose; after "drain" it runs on until the worker's patience ends.
FINAL_STOPS: Final = frozenset(
    {"lost ownership", "lost lease", "superseded", "timeout", "expired", "fenced", "unknown attempt"}
)


class AttemptStoppedError(CrdtSyncError):
    """This attempt no longer counts; `facts["reason"]` says why. Let it pass through the handler."""

    code = "stopped"


class NothingToUndoError(CrdtSyncError):
    """The losing attempt inherited this effect, and the outcome rests on it: it must stand.

    A compensation that ends with this has done its work: there was nothing of the attempt's own.
    """

    code = "nothing_to_undo"


class OwnEffects(dict[str, Any]):
    """An attempt's own effects. Asking for one that it merely inherited says that it must not be undone."""

    def __init__(self, own: dict[str, Any], inherited: Iterable[str]) -> None:
        super().__init__(own)
        self.inherited = frozenset(inherited)

    def __missing__(self, name: str) -> Any:
        if name in self.inherited:
            raise NothingToUndoError(f"effect {name!r} was done by an earlier attempt, and the outcome rests on it")
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class LostAttempt:
    """The second argument of a compensation handler: what is to be undone.

    Attributes:
        task_id: The task whose attempt lost, 32 hex digits.
        attempt: The attempt's number, as `task show` prints it.
        region: Where it ran.
        result: What it returned, None unless it succeeded.
        effects: Its own effects by name, with their recorded results. What it inherited is not among them: asking
            for that raises `NothingToUndoError`, and a handler that lets it pass has rightly undone nothing.
        key: The same for every attempt at this compensation: give it to a sink that knows idempotency keys.
    """

    task_id: str
    attempt: int
    region: str
    result: Any
    effects: dict[str, Any]
    key: str = ""


class EffectLedger:
    """Recorded effects by name. A name stands for one effect, however often it is asked for."""

    __slots__ = ("_pending", "_results")

    def __init__(self, inherited: Iterable[tuple[str, bytes]]) -> None:
        self._results = dict(inherited)
        self._pending: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._results

    def result(self, name: str) -> Any:
        return decode_value(self._results[name])

    def begin(self, name: Any) -> None:
        """Raises InvalidRequestError if that effect is being done, or its name is none."""
        if not isinstance(name, str) or not 0 < len(name) <= EFFECT_NAME_CHARS_MAX:
            raise InvalidRequestError(
                f"effect name {name!r:.100}: expected text of 1 to {EFFECT_NAME_CHARS_MAX} characters"
            )
        if name in self._pending:
            raise InvalidRequestError(f"effect {name!r} is already under way in this attempt; give each its own name")
        if len(self._results) + len(self._pending) >= EFFECTS_MAX:
            raise OverloadedError(f"an attempt has at most {EFFECTS_MAX} effects; split the task", limit=EFFECTS_MAX)
        self._pending.add(name)

    def abandon(self, name: str) -> None:
        self._pending.discard(name)

    def recorded(self, name: str, result: bytes) -> None:
        self._pending.discard(name)
        self._results[name] = result


class AttemptRun:
    """One attempt under way. Call `invocation`, run what it gives, then one of `succeeded`, `raised`, `lost`."""

    __slots__ = (
        "_checkpoint",
        "_checkpoint_index",
        "assignment",
        "covered_until_ms",
        "draining",
        "ledger",
        "progress",
        "ref",
        "reported",
        "stop_reason",
        "stopped_hard",
        "task",
    )

    def __init__(self, assignment: Assignment, task: Task) -> None:
        self.assignment = assignment
        self.task = task
        self.ref: AttemptRef = assignment.attempt  # as it travels; equal to the plain tuple
        self.ledger = EffectLedger(assignment.effects)
        self.stop_reason: str | None = None  # the first reason given stays
        self.stopped_hard = False  # the driver cancelled the handler: whatever it raises now is our doing
        self.covered_until_ms = 0  # on the driver's clock, for an attempt under a lease
        self.draining = False
        self.progress = ""
        self.reported = ""  # the progress that the node was told
        self._checkpoint = assignment.checkpoint
        self._checkpoint_index = assignment.checkpoint_index

    # What to call ----------------------------------------------------------------------------------

    def invocation(self) -> tuple[Handler, list[Any], dict[str, Any]]:
        """The handler, and its arguments after the context.

        Raises:
            RemoteProtocolError: If the payload is not one. Report it with `raised`.
        """
        undoes = self.assignment.undoes
        if undoes is not None:
            return self.task.handler, [decode_lost_attempt(undoes)], {}
        args, kwargs = decode_arguments(self.assignment.payload)
        return self.task.handler, args, kwargs

    # What the handler does -------------------------------------------------------------------------

    def check_fence(self) -> CheckFence | None:
        """What to ask the node before a step to the outside, None where no lease is needed.

        A process that was paused past its lease finds out by this: whatever it was told while it slept
        still waits to be read.
        """
        return CheckFence(self.ref) if self.assignment.fence else None

    def covered(self, asked_ms: int, answer: Any) -> None:
        """Take note of an answer to `check_fence`, or of what a heartbeat's said about this attempt.

        The node may be gone, or stand still, when the lease ends, so nobody says so: the driver stops the attempt
        itself once `covered_until_ms` has passed.

        Args:
            asked_ms: When the question was sent, on a clock that counts while the machine sleeps.
            answer: How long the lease holds from then on, in milliseconds.
        """
        if type(answer) is not int:
            raise RemoteProtocolError(f"a lease is said to hold for {answer!r:.50}")
        self.covered_until_ms = max(self.covered_until_ms, asked_ms + answer)

    def effect_key(self, name: str) -> bytes:
        """What a sink should know the effect by: the same when this attempt is repeated, another across a cut."""
        return effect_key(self.assignment.task, self.assignment.root, name)

    def begin_effect(self, name: str) -> None:
        """Call before an effect that the ledger lacks; then `record_effect`, or `ledger.abandon` if it raised.

        Raises:
            AttemptStoppedError: If this attempt no longer counts. The effect must not be done.
            InvalidRequestError: If the same effect is under way, or the name is none.
            OverloadedError: If there are too many.
        """
        if self.stop_reason in FINAL_STOPS:
            raise AttemptStoppedError(
                f"effect {name!r} is not begun: this attempt was stopped ({self.stop_reason})", reason=self.stop_reason
            )
        self.ledger.begin(name)

    def record_effect(self, name: str, value: Any) -> RecordEffect:
        """What makes the effect durable. Once acknowledged, call `ledger.recorded(name, command.result)`.

        Raises:
            PermanentError: If the result cannot be recorded. Trying again would only repeat the effect.
        """
        try:
            result = encode_value(value, f"result of effect {name!r}")
        except (InvalidRequestError, PayloadTooLargeError) as error:
            raise PermanentError(f"effect {name!r} was done, but its result cannot be recorded: {error}") from error
        return RecordEffect(self.ref, name, self.effect_key(name), result)

    @property
    def last_checkpoint(self) -> Any:
        return None if self._checkpoint is None else decode_value(self._checkpoint)

    def save_checkpoint(self, data: Any) -> SaveCheckpoint:
        """What makes a checkpoint durable. Errors as in `encode_value`."""
        encoded = encode_value(data, "checkpoint")
        self._checkpoint_index += 1
        self._checkpoint = encoded
        return SaveCheckpoint(self.ref, self._checkpoint_index, encoded)

    def stop(self, reason: str) -> bool:
        """Take note that the attempt is to stop. False if it knew; a reason that is final replaces one that is not."""
        if self.stop_reason is not None and (self.stop_reason in FINAL_STOPS or reason not in FINAL_STOPS):
            return False
        self.stop_reason = reason
        return True

    # How it ended ----------------------------------------------------------------------------------

    def succeeded(self, value: Any) -> Complete:
        """The handler returned `value`; one that cannot travel is a failure that is not retried."""
        try:
            return Complete(self.ref, "ok", encode_value(value, f"result of {self.task.name!r}"))
        except (InvalidRequestError, PayloadTooLargeError) as error:
            return self._failed(error, retryable=False)

    def raised(self, error: BaseException) -> Complete:
        """The handler raised. What it raises because the attempt was stopped is no failure of the task."""
        if isinstance(error, NothingToUndoError) and self.assignment.undoes is not None:
            return self.succeeded(None)
        if isinstance(error, AttemptStoppedError) or self.stopped_hard:
            return self.lost(self.stop_reason or "stopped")
        return self._failed(error, retryable=not self._is_permanent(error))

    def lost(self, reason: str) -> Complete:
        """The attempt ended without success or failure, for one of the reasons of `effects.Stop`, or "drain"."""
        kept = reason if reason in ("crash", "drain", "timeout", "restart", "lost lease") else "stopped"
        return Complete(self.ref, "lost", reason=kept)

    def _failed(self, error: BaseException, *, retryable: bool) -> Complete:
        kind = type(error).__name__[:ERROR_TYPE_CHARS_MAX]
        return Complete(self.ref, "failed", encode_error(error), retryable, kind)

    def _is_permanent(self, error: BaseException) -> bool:
        if isinstance(error, PermanentError):
            return True
        if isinstance(error, TypeError) and not self._fits():
            return True  # wrong arguments stay wrong
        names = self.task.declaration.non_retryable
        return bool(names) and any(name_of in names for cls in type(error).__mro__ for name_of in _names_of(cls))

    def _fits(self) -> bool:
        try:
            handler, args, kwargs = self.invocation()
            inspect.signature(handler).bind(None, *args, **kwargs)
        except (TypeError, RemoteProtocolError):
            return False
        except ValueError:
            return True  # no signature to compare with
        return True


def encode_error(error: BaseException) -> bytes:
    """`[type, message, traceback]` as stored with a failed attempt, each cut to its limit."""
    try:
        message = str(error)
    except Exception as second:  # noqa: BLE001 - a handler's exception may fail at anything
        message = f"<its str() raised {type(second).__name__}>"
    try:
        trace = "".join(traceback.format_exception(error, limit=-20))
    except Exception:  # noqa: BLE001
        trace = ""
    texts = (
        type(error).__name__[:ERROR_TYPE_CHARS_MAX],
        _cut(message, ERROR_MESSAGE_CHARS_MAX),
        trace if len(trace) <= ERROR_TRACEBACK_CHARS_MAX else "..." + trace[-ERROR_TRACEBACK_CHARS_MAX:],
    )
    return encode_value([text.encode("utf-8", "replace").decode() for text in texts])


def decode_lost_attempt(data: bytes) -> LostAttempt:
    """The attempt that a compensation's assignment describes in `undoes`. Raises RemoteProtocolError."""
    match decode_value(data, bytes_max=LOST_ATTEMPT_BYTES_MAX):
        case {
            "task_id": str() as task_id,
            "attempt": int() as number,
            "region": str() as region,
            "result": result,
            "effects": dict() as effects,
            **others,
        }:
            inherited = others.get("inherited")
            own = OwnEffects(effects, inherited if isinstance(inherited, list) else ())
            return LostAttempt(task_id, number, region, result, own, str(others.get("key", "")))
    raise RemoteProtocolError("not a lost attempt: expected task_id, attempt, region, result and effects")


def _names_of(kind: type[Any]) -> tuple[str, str]:
    return kind.__name__, f"{kind.__module__}.{kind.__qualname__}"


def _cut(text: str, chars_max: int) -> str:
    return text if len(text) <= chars_max else text[: chars_max - 3] + "..."
