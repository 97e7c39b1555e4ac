from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtsync import App, AttemptStoppedError, Context, PermanentError, Retry, SyncContext
from crdtsync.commands import EditDocument, RecordEffect, SaveCheckpoint
from crdtsync.conflicts import effect_key
from crdtsync.context import Port
from crdtsync.effects import Assignment
from crdtsync.errors import (
    InvalidRequestError,
    OverloadedError,
    PayloadTooLargeError,
    RemoteProtocolError,
    StorageError,
    UnknownAttemptError,
)
from crdtsync.execution import (
    EFFECTS_MAX,
    ERROR_MESSAGE_CHARS_MAX,
    ERROR_TRACEBACK_CHARS_MAX,
    FINAL_STOPS,
    AttemptRun,
    LostAttempt,
    NothingToUndoError,
    decode_lost_attempt,
    encode_error,
)
from crdtsync.identifiers import EventId, TaskId, WriterId
from crdtsync.protocol.codec import decode_value
from crdtsync.protocol.values import VALUE_BYTES_MAX, decode_arguments, encode_arguments, encode_value

ATTEMPT = EventId(1_000, WriterId("eu/a#1-0123456789abcdef"), 3, 0)
ROOT = EventId(900, WriterId("eu/a#1-0123456789abcdef"), 2, 0)


def attempt(handler: Any, *args: Any, retry: Retry | None = None, **fields: Any) -> AttemptRun:
    app = App("a")
    app.task(name="t", retry=retry)(handler)
    values: dict[str, Any] = {
        "task": TaskId(b"t" * 16),
        "attempt": ATTEMPT,
        "number": 2,
        "name": "t",
        "payload": encode_arguments("t", args, {}),
        "term": 4,
        "region": "eu",
        "fence": 0,
        "deadline_ms": 0,
        "timeout_ms": 0,
        "root": ROOT,
        "effects": (),
        "checkpoint": None,
        "checkpoint_index": 0,
        "undoes": None,
        "document": b"",
    }
    return AttemptRun(Assignment(**{**values, **fields}), app["t"])


class MemoryPort(Port):
    """Acknowledges everything at once, or raises what it was given."""

    def __init__(self, *errors: Exception) -> None:
        self.asked: list[Any] = []
        self.errors = list(errors)

    async def ask(self, command: Any) -> Any:
        self.asked.append(command)
        if self.errors:
            raise self.errors.pop(0)
        return {}

    async def aside(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    async def stopped(self, run: AttemptRun) -> None:
        assert run.stop_reason is not None, "nobody stops it later in these tests"


def drive(run: AttemptRun, port: Port) -> Any:
    """What a driver does around an async handler."""

    async def handle() -> Any:
        try:
            handler, args, kwargs = run.invocation()
            return run.succeeded(await handler(Context(run, port), *args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - as drivers do
            return run.raised(error)

    return asyncio.run(handle())


# Effects -------------------------------------------------------------------------------------------


def test_an_inherited_effect_is_returned_and_not_done() -> None:
    async def handler(ctx: Context) -> Any:
        return await ctx.effect("charge", lambda: 1 / 0)

    port = MemoryPort()
    end = drive(attempt(handler, effects=(("charge", encode_value("ch-1")),)), port)
    assert decode_value(end.value) == "ch-1"
    assert port.asked == []


def test_an_own_effect_is_recorded_under_the_key_of_the_root() -> None:
    async def handler(ctx: Context) -> Any:
        assert ctx.effect_key("charge") == effect_key(TaskId(b"t" * 16), ROOT, "charge")
        return [await ctx.effect("charge", lambda x: (x,), 5), await ctx.effect("charge", lambda: None)]

    port = MemoryPort()
    end = drive(attempt(handler), port)
    assert decode_value(end.value) == [[5], [5]]
    key = effect_key(TaskId(b"t" * 16), ROOT, "charge")
    assert port.asked == [RecordEffect(ATTEMPT, "charge", key, encode_value([5]))]


def test_an_effect_that_raised_is_not_recorded_and_may_be_tried_again() -> None:
    calls: list[int] = []

    async def flaky() -> str:
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError
        return "ok"

    async def handler(ctx: Context) -> Any:
        with pytest.raises(ConnectionError):
            await ctx.effect("charge", flaky)
        return await ctx.effect("charge", flaky)

    port = MemoryPort()
    assert drive(attempt(handler), port).outcome == "ok"
    assert len(port.asked) == 1


def test_one_effect_is_not_begun_twice_at_once() -> None:
    async def handler(ctx: Context) -> Any:
        return await asyncio.gather(ctx.effect("a", asyncio.sleep, 0), ctx.effect("a", asyncio.sleep, 0))

    end = drive(attempt(handler), MemoryPort())
    assert "already under way" in decode_value(end.value)[1]


@pytest.mark.parametrize("name", ["", "x" * 201, 7])
def test_an_effect_needs_a_name(name: Any) -> None:
    with pytest.raises(InvalidRequestError, match="effect name"):
        attempt(lambda _ctx: None).begin_effect(name)


def test_effects_are_bounded() -> None:
    run = attempt(lambda _ctx: None, effects=tuple((str(n), b"\xf6") for n in range(EFFECTS_MAX)))
    with pytest.raises(OverloadedError, match="split the task"):
        run.begin_effect("one more")


def test_an_effect_whose_result_cannot_be_recorded_is_not_repeated() -> None:
    async def handler(ctx: Context) -> Any:
        await ctx.effect("charge", object)

    end = drive(attempt(handler), MemoryPort())
    assert (end.outcome, end.retryable) == ("failed", False)
    assert "was done, but its result cannot be recorded" in decode_value(end.value)[1]


@pytest.mark.parametrize("reason", sorted(FINAL_STOPS))
def test_an_attempt_that_lost_its_right_begins_no_effect(reason: str) -> None:
    async def handler(ctx: Context) -> Any:
        run.stop(reason)
        assert ctx.lost
        await ctx.effect("charge", lambda: pytest.fail("must not be done"))

    run = attempt(handler)
    end = drive(run, MemoryPort())
    assert (end.outcome, end.reason) == ("lost", reason if reason in ("timeout", "lost lease") else "stopped")


def test_a_cancelled_attempt_may_still_do_its_effects_and_succeed() -> None:
    async def handler(ctx: Context) -> Any:
        run.stop("cancelled")
        assert ctx.cancelled
        assert ctx.cancelled.is_set()
        assert await ctx.cancelled.wait() == "cancelled"
        assert not ctx.lost
        return await ctx.effect("charge", lambda: 1)

    run = attempt(handler)
    assert drive(run, MemoryPort()).outcome == "ok"


def test_a_refused_record_ends_the_attempt_and_another_error_does_not() -> None:
    async def handler(ctx: Context) -> Any:
        await ctx.effect("charge", lambda: 1)

    refused = drive(attempt(handler), MemoryPort(UnknownAttemptError("gone")))
    assert (refused.outcome, refused.reason) == ("lost", "stopped")
    broken = drive(attempt(handler), MemoryPort(StorageError("disk full")))
    assert (broken.outcome, broken.retryable, broken.reason) == ("failed", True, "StorageError")


# Checkpoints, documents, progress -------------------------------------------------------------------


def test_checkpoints_go_on_from_the_last_one() -> None:
    async def handler(ctx: Context) -> Any:
        first = ctx.last_checkpoint
        await ctx.checkpoint({"at": 2})
        return [first, ctx.last_checkpoint]

    port = MemoryPort()
    end = drive(attempt(handler, checkpoint=encode_value({"at": 1}), checkpoint_index=7), port)
    assert decode_value(end.value) == [{"at": 1}, {"at": 2}]
    assert port.asked == [SaveCheckpoint(ATTEMPT, 8, encode_value({"at": 2}))]


def test_a_document_reads_what_it_has_written() -> None:
    async def handler(ctx: Context) -> Any:
        await ctx.document.set("a", [1])
        await ctx.document.set("b", 2)
        await ctx.document.delete("b")
        return [dict(ctx.document), len(ctx.document), ctx.document.get("b", "none")]

    port = MemoryPort()
    end = drive(attempt(handler), port)
    assert decode_value(end.value) == [{"a": [1]}, 1, "none"]
    assert port.asked[-1] == EditDocument(task=b"t" * 16, entries={"b": None})


def test_a_context_tells_where_it_is() -> None:
    async def handler(ctx: Context) -> Any:
        ctx.progress(1 / 3)
        assert run.progress == "33%"
        ctx.progress("x" * 500)
        assert len(run.progress) == 200
        assert ctx.deadline == datetime(2026, 11, 22, tzinfo=UTC)
        assert (ctx.task_id, ctx.attempt, ctx.attempt_id) == ("74" * 16, 2, str(ATTEMPT))
        assert (ctx.term, ctx.region, ctx.fence, ctx.draining) == (4, "eu", 9, False)
        assert not ctx.cancelled
        assert ctx.cancelled.reason is None
        assert "attempt" in repr(ctx)

    run = attempt(handler, fence=9, deadline_ms=1_795_305_600_000)
    assert drive(run, MemoryPort()).outcome == "ok"


def test_both_contexts_have_the_same_names() -> None:
    public = [{name for name in dir(kind) if not name.startswith("_")} for kind in (Context, SyncContext)]
    assert public[0] == public[1]


# Outcomes ------------------------------------------------------------------------------------------


class OutOfStockError(LookupError):
    pass


@pytest.mark.parametrize(
    "error, non_retryable, retryable",
    [
        (ValueError("x"), (), True),
        (PermanentError("x"), (), False),
        (OutOfStockError(), (), True),
        (OutOfStockError(), (LookupError,), False),
        (OutOfStockError(), ("LookupError",), False),
        (OutOfStockError(), ("builtins.LookupError",), False),
        (OutOfStockError(), (f"{__name__}.OutOfStockError",), False),
        (OutOfStockError(), ("KeyError", "other.OutOfStockError"), True),
        (SystemExit(1), (), True),
    ],
)
def test_failures_are_classified_by_the_names_of_their_types(
    error: BaseException, non_retryable: tuple, retryable: bool
) -> None:
    run = attempt(lambda _ctx: None, retry=Retry(non_retryable=non_retryable))
    end = run.raised(error)
    assert (end.outcome, end.retryable, end.reason) == ("failed", retryable, type(error).__name__)


def test_wrong_arguments_stay_wrong_but_a_type_error_inside_does_not() -> None:
    async def handler(_ctx, n: int) -> int:
        return n + "1"  # type: ignore[operator]

    assert drive(attempt(handler), MemoryPort()).retryable is False
    assert drive(attempt(handler, 1), MemoryPort()).retryable is True


def test_what_is_raised_because_of_a_stop_is_no_failure() -> None:
    run = attempt(lambda _ctx: None)
    run.stop("drain")
    assert run.raised(ValueError()).outcome == "failed"
    run.stopped_hard = True
    assert (run.raised(ValueError()).outcome, run.raised(ValueError()).reason) == ("lost", "drain")
    assert attempt(lambda _ctx: None).raised(AttemptStoppedError("x")).outcome == "lost"


def test_a_final_reason_replaces_one_that_is_not_and_stays() -> None:
    run = attempt(lambda _ctx: None)
    assert run.stop("cancelled")
    assert not run.stop("drain")
    assert run.stop("superseded")
    assert not run.stop("timeout")
    assert run.stop_reason == "superseded"


def test_a_result_that_cannot_travel_is_a_failure_that_is_not_retried() -> None:
    run = attempt(lambda _ctx: None)
    for value in (object(), b"x" * (VALUE_BYTES_MAX + 1)):
        end = run.succeeded(value)
        assert (end.outcome, end.retryable) == ("failed", False)


def test_error_records_are_bounded_whatever_the_exception_does() -> None:
    class NastyError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    def deep(n: int) -> None:
        if n == 0:
            raise ValueError("x" * 10_000 + "\ud800")
        deep(n - 1)

    with pytest.raises(ValueError) as caught:
        deep(300)
    kind, message, trace = decode_value(encode_error(caught.value))
    assert kind == "ValueError"
    assert len(message) == ERROR_MESSAGE_CHARS_MAX
    assert len(trace) <= ERROR_TRACEBACK_CHARS_MAX + 3
    assert decode_value(encode_error(NastyError()))[1] == "<its str() raised RuntimeError>"


# The attempt that lost -----------------------------------------------------------------------------


def test_a_lost_attempt_is_read_from_its_record() -> None:
    record = {
        "task_id": "ab",
        "attempt": 1,
        "region": "us",
        "result": 5,
        "effects": {"charge": [1]},
        "key": "k",
        "more": 1,
    }
    assert decode_lost_attempt(encode_value(record)) == LostAttempt("ab", 1, "us", 5, {"charge": [1]}, "k")
    for wrong in ({**record, "attempt": "1"}, [], {"task_id": "ab"}):
        with pytest.raises(RemoteProtocolError, match="not a lost attempt"):
            decode_lost_attempt(encode_value(wrong))


# Values --------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
    | st.binary(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_values_come_back_as_they_were(value: Any) -> None:
    assert decode_value(encode_value(value)) == value


@given(st.lists(VALUES, max_size=3), st.dictionaries(st.text("abc", min_size=1, max_size=3), VALUES, max_size=3))
def test_arguments_come_back_as_they_were(args: list, kwargs: dict) -> None:
    assert decode_arguments(encode_arguments("t", tuple(args), kwargs)) == (args, kwargs)


class Colour(StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    "value, message",
    [
        ({"when": datetime(2026, 1, 1, tzinfo=UTC)}, r"order: value\['when'\] is a datetime"),
        ([1, {2: 3}], r"order: value\[1\] has the key 2"),
        ({1, 2}, "order: value is a set"),
        (2**70, "64 bits"),
        (Colour.RED, "Colour"),
        ("\ud800", "order: .*surrogate"),
    ],
)
def test_what_cannot_travel_is_named_with_its_place(value: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        encode_value(value, "order")


def test_values_are_bounded() -> None:
    with pytest.raises(PayloadTooLargeError, match=r"arguments of 't': .* the limit is 1048576"):
        encode_arguments("t", ("x" * VALUE_BYTES_MAX,), {})
    nested: list = []
    nested.append(nested)
    with pytest.raises(InvalidRequestError, match="deep"):
        encode_value(nested)


@pytest.mark.parametrize("payload", [b"\x01", b"\x82\x80\x80", b"\x81\x80", b"\x82\x80\xa1\x41a\x01", b"\xff"])
def test_a_payload_that_is_none_is_refused(payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_arguments(payload)
    assert decode_arguments(b"") == ([], {})


def test_asking_for_an_inherited_effect_undoes_nothing_and_is_no_failure() -> None:
    """The refund of an attempt that had not charged itself must not refund the charge that stands."""
    losing = {
        "task_id": "00" * 16,
        "attempt": 2,
        "region": "eu",
        "result": "ch-1",
        "effects": {"own": 1},
        "inherited": ["charge"],
    }
    run = attempt(lambda _ctx, _charged: None, undoes=encode_value(losing))
    _, (charged,), _ = run.invocation()
    assert charged.effects["own"] == 1
    with pytest.raises(NothingToUndoError) as raised:
        charged.effects["charge"]
    assert run.raised(raised.value).outcome == "ok"
    with pytest.raises(KeyError):
        charged.effects["typo"]
