from __future__ import annotations

import tracemalloc

import cbor2
import msgspec
import pytest

from crdtsync.errors import CorruptLogError
from crdtsync.events import KIND_OF, Claimed, Submitted, TaskEvent, WriterOpened
from crdtsync.history import Facts, to_travel
from crdtsync.identifiers import EventId, TaskId
from crdtsync.log.shapes import plain_event
from crdtsync.resolve import resolve
from tests.properties.story import TASK, Story


def test_a_fact_is_news_once() -> None:
    story = Story()
    submission = story.submit()
    claim = story.claim()
    effect = story.effect(claim, "charge")
    for event_id, event in list(story.facts.events()):
        assert not story.facts.add(event_id, event)
    assert {submission, claim, effect} == {event_id for event_id, _ in story.facts.events()}
    assert len(story.facts) == 3


def test_only_the_newest_checkpoint_of_an_attempt_is_kept() -> None:
    story = Story()
    story.submit()
    claim = story.claim()
    story.checkpoint(claim, 1, b"one")
    story.checkpoint(claim, 3, b"three")
    before = story.facts.copy()
    old = EventId(claim.stamp + 1, claim.writer, 99, 0)
    attempt = story.facts.attempt(claim)
    assert attempt is not None
    assert attempt.checkpoint is not None
    assert not story.facts.add(old, attempt.checkpoint[1]._replace(index=2, data=b"two"))
    assert story.facts == before
    assert attempt.checkpoint[1].data == b"three"


def test_an_end_that_comes_before_its_claim_counts_when_the_claim_is_there() -> None:
    story = Story()
    story.submit()
    story.end(story.claim())
    events = sorted(story.facts.events(), key=lambda pair: type(pair[1]) is Claimed)
    facts = Facts()
    for event_id, event in events[:-1]:
        facts.add(event_id, event)
    assert resolve(facts).attempts == ()
    facts.add(*events[-1])
    assert resolve(facts) == story.view
    assert facts == story.facts


def test_references_may_be_plain_tuples() -> None:
    story = Story()
    story.submit()
    claim = story.claim()
    ended = story.end(claim)
    plain = Facts()
    for event_id, event in story.facts.events():
        plain.add(event_id, event._replace(attempt=tuple(event.attempt)) if event_id == ended else event)
    assert plain == story.facts
    assert plain.to_row() == story.facts.to_row()


def test_join_says_whether_there_was_news() -> None:
    story, twin = Story(), Story()
    story.submit()
    twin.facts = story.facts.copy()
    assert not story.facts.join(twin.facts)
    twin.second = 5
    twin.claim()
    assert story.facts != twin.facts
    assert story.facts.join(twin.facts)
    assert story.facts == twin.facts


def test_kinds_and_task_are_known() -> None:
    story = Story()
    assert story.facts.task is None
    story.submit()
    story.claim()
    assert story.facts.task == TASK
    assert story.facts.kinds == {KIND_OF[Submitted], KIND_OF[Claimed]}


def test_a_row_comes_back_as_it_was() -> None:
    story = Story()
    story.submit(labels=(("team", "a"),), after=((TaskId(b"p" * 16), True),))
    claim = story.claim(inputs=((TaskId(b"p" * 16), EventId(1, story.view.submission.writer, 1, 0)),))
    story.effect(claim, "charge")
    story.checkpoint(claim, 1, b"x")
    story.fail(claim)
    story.end(story.claim(continues=claim))
    story.offer("eu", "us")
    story.priority(7)
    row = story.facts.to_row()
    assert Facts.from_row(row) == story.facts
    assert Facts.from_row(row).to_row() == row
    packed = story.facts.pack()
    assert Facts.unpack(packed) == story.facts
    assert Facts.unpack(packed).pack() == packed
    assert to_travel(packed) == to_travel(row) == row
    assert Facts.unpack(row) == story.facts, "what an earlier version has on its disk is read"


def row_of(*events: object, version: int = 1) -> bytes:
    submission = EventId(1, "eu/a#1-0000000000000000", 1, 0)
    return cbor2.dumps([version, [[submission, plain_event(event)] for event in events]])


def a_submission() -> Submitted:
    story = Story()
    story.submit()
    return story.facts.submissions[0][1]


SUBMITTED = a_submission()


@pytest.mark.parametrize(
    "row",
    [
        b"",
        b"\xff",
        cbor2.dumps([1]),
        cbor2.dumps([1, 2]),
        cbor2.dumps([1, [[1, 2]]]),
        cbor2.dumps([1, [[[1, "eu/a#1-0000000000000000", 1, -1], list(plain_event(SUBMITTED))]]]),
        cbor2.dumps([1, [[[1, "nobody", 1, 0], list(plain_event(SUBMITTED))]]]),
        row_of(SUBMITTED)[:-1],
        row_of(SUBMITTED) + b"\x00",
        row_of(SUBMITTED, version=2),
        row_of(WriterOpened("", 0, 0)),
        row_of(SUBMITTED, SUBMITTED._replace(task=TaskId(b"x" * 16))),
    ],
)
def test_a_row_that_is_none_is_refused(row: bytes) -> None:
    with pytest.raises(CorruptLogError):
        Facts.from_row(row)


def packed_of(*events: TaskEvent, version: int = 2, number: int = 1) -> bytes:
    event_id = (1, "eu/a#1-0000000000000000", number, 0)
    return msgspec.msgpack.encode((version, [(event_id, KIND_OF[type(event)], event) for event in events]))


@pytest.mark.parametrize(
    "row",
    [
        b"\x92",
        b"\x92\x02\xdd\xff\xff\xff\xff",
        packed_of(SUBMITTED)[:-1],
        packed_of(SUBMITTED) + b"\x00",
        packed_of(SUBMITTED, version=3),
        packed_of(SUBMITTED, number=-1),
        packed_of(SUBMITTED._replace(priority="high")),  # type: ignore[arg-type]
        packed_of(SUBMITTED, SUBMITTED._replace(task=TaskId(b"x" * 16))),
        msgspec.msgpack.encode((2, [((1, "nobody", 1, 0), KIND_OF[Submitted], SUBMITTED)])),
    ],
)
def test_a_packed_row_that_is_none_is_refused(row: bytes) -> None:
    with pytest.raises(CorruptLogError):
        Facts.unpack(row)


def test_a_packed_row_is_not_taken_from_a_peer() -> None:
    with pytest.raises(CorruptLogError):
        Facts.from_row(packed_of(SUBMITTED))


def test_a_waiting_task_is_small() -> None:
    """A node holds every task that can still move: 300,000 of them must fit beside everything else."""
    submitted = SUBMITTED

    def one(number: int) -> tuple[Facts, object]:
        facts = Facts()
        task = TaskId(number.to_bytes(16, "big"))
        facts.add(
            EventId((1 << 56) + number, "eu/a#1-0000000000000000", 1_000 + number, 300),
            submitted._replace(task=task, payload=number.to_bytes(40, "big")),
        )
        return facts, resolve(facts)

    one(0)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        kept = [one(number) for number in range(2_000)]
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / len(kept) < 1_400
