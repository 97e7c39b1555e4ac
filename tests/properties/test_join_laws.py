"""Facts are a join-semilattice: any order, repetition or grouping of the same events gives the same bytes.

The events here need not make sense together: an end may name an attempt that nobody claimed, an
edit one that nobody wrote. What holds for these holds for every real history.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from crdtsync.events import (
    CancelRequested,
    Checkpointed,
    Claimed,
    Decided,
    EffectRecorded,
    Ended,
    Expired,
    LabelEdited,
    Offered,
    Options,
    PriorityEdited,
    Requeued,
    Submitted,
    TaskEvent,
    TermOpened,
    Withdrawn,
)
from crdtsync.explain import explain
from crdtsync.history import Facts
from crdtsync.identifiers import EventId, TaskId, writer_id
from crdtsync.resolve import resolve, view_hash
from crdtsync.settlement import is_undisturbed
from crdtsync.task_view import ENDED
from crdtsync.undoing import is_decided, is_settled, undo
from crdtsync.views import conflict_record, history_records, task_record

TASK = TaskId(b"t" * 16)
PARENT = TaskId(b"p" * 16)
WRITERS = tuple(writer_id(region, "a", 1, bytes(8)) for region in ("eu", "us", "ap"))

stamps = st.integers(1, 12)
ids = st.builds(EventId, stamps, st.sampled_from(WRITERS), st.integers(1, 2), st.just(0))
maybe_ids = st.none() | ids
small = st.binary(max_size=3)
options = st.builds(
    Options,
    partition=st.sampled_from(("wait", "takeover", "quorum")),
    attempts=st.integers(1, 2),
    lost_max=st.integers(0, 1),
    backoff_ms_base=st.just(1_000),
    backoff_ms_max=st.just(60_000),
    backoff_factor_permille=st.just(2_000),
    cancel=st.sampled_from(("wins", "loses")),
    compensate=st.sampled_from(("", "refund")),
    timeout_ms=st.just(0),
    unserved_after_ms=st.just(0),
    window_ms=st.just(0),
    non_retryable=st.just(()),
)
flags = st.booleans()
events = st.one_of(
    st.builds(
        Submitted,
        task=st.just(TASK),
        name=st.just("pay"),
        payload=st.sampled_from((b"\x82\x80\xa0", b"\x82\x81\x01\xa0")),
        owner=st.sampled_from(("eu", "us")),
        queue=st.just("q"),
        priority=st.integers(0, 9),
        not_before_ms=st.just(0),
        deadline_ms=st.just(0),
        key=st.just(""),
        generation=st.just(0),
        labels=st.sampled_from(((), (("team", "a"),))),
        after=st.just(()),
        undoes=st.none(),
        linked=st.none(),
        options=options,
    ),
    st.builds(TermOpened, st.just(TASK), st.integers(1, 2), maybe_ids),
    st.builds(Offered, st.just(TASK), st.integers(0, 2), st.sampled_from(("us", "ap")), st.just("drain")),
    st.builds(Withdrawn, st.just(TASK), ids),
    st.builds(
        Claimed,
        st.just(TASK),
        st.integers(0, 2),
        ids,
        maybe_ids,
        flags,
        st.lists(ids, max_size=2).map(tuple),
        st.sampled_from(((), ((PARENT, EventId(1, WRITERS[0], 1, 0)),))),
        st.integers(0, 2),
    ),
    st.builds(EffectRecorded, st.just(TASK), ids, st.sampled_from(("a", "b")), st.just(b"k"), small),
    st.builds(Checkpointed, st.just(TASK), ids, st.integers(0, 3), small),
    st.builds(Ended, st.just(TASK), ids, st.sampled_from(("ok", "failed", "lost")), flags, flags, st.just("x"), small),
    st.builds(CancelRequested, st.just(TASK), flags, st.just("")),
    st.builds(Expired, st.just(TASK), flags),
    st.builds(Requeued, st.just(TASK), st.integers(1, 2)),
    st.builds(PriorityEdited, st.just(TASK), st.integers(0, 9), maybe_ids),
    st.builds(LabelEdited, st.just(TASK), st.sampled_from(("team", "env")), st.sampled_from(("", "x")), maybe_ids),
    st.builds(Decided, st.just(TASK), ids),
)
# An id names one event for ever; that much the log sees to.
histories = st.dictionaries(ids, events, max_size=25).map(lambda known: list(known.items()))


def facts_of(pairs: list[tuple[EventId, TaskEvent]]) -> Facts:
    facts = Facts()
    for event_id, event in pairs:
        facts.add(event_id, event)
    return facts


def fingerprint(facts: Facts) -> tuple[bytes, bytes, bytes]:
    view = resolve(facts)
    return facts.to_row(), view.canonical(), view_hash(TASK, view)


@given(histories, st.randoms(use_true_random=False))
def test_order_and_repetition_do_not_matter(pairs: list[tuple[EventId, TaskEvent]], rng) -> None:
    expected = facts_of(pairs)
    again = pairs + [pair for pair in pairs if rng.random() < 0.5]
    rng.shuffle(again)
    other = facts_of(again)
    assert other == expected
    assert fingerprint(other) == fingerprint(expected)
    assert explain(TASK, other, resolve(other)) == explain(TASK, expected, resolve(expected))


@given(histories, st.data())
def test_grouping_does_not_matter(pairs: list[tuple[EventId, TaskEvent]], data: st.DataObject) -> None:
    sides = data.draw(st.lists(st.integers(1, 7), min_size=len(pairs), max_size=len(pairs)))
    parts = [facts_of([p for p, side in zip(pairs, sides, strict=True) if side >> bit & 1]) for bit in range(3)]
    left = parts[0].copy()
    left.join(parts[1])
    left.join(parts[2])
    right = parts[1].copy()
    right.join(parts[2])
    right.join(parts[0])
    right.join(right.copy())
    assert left == right == facts_of(pairs)
    assert fingerprint(left) == fingerprint(right)


@given(histories, histories)
def test_a_row_loses_nothing(old: list[tuple[EventId, TaskEvent]], new: list[tuple[EventId, TaskEvent]]) -> None:
    known = dict(old)
    new = [(event_id, known.get(event_id, event)) for event_id, event in new]
    from_row = Facts.from_row(facts_of(old).to_row())
    assert from_row == facts_of(old)
    assert Facts.unpack(facts_of(old).pack()) == facts_of(old)
    for event_id, event in new:
        from_row.add(event_id, event)
    assert fingerprint(from_row) == fingerprint(facts_of(old + new))


@given(histories, histories)
def test_add_says_whether_anything_changed(old, new) -> None:
    facts, known = facts_of(old), dict(old)
    for event_id, event in new:
        before = facts.copy()
        assert facts.add(event_id, known.get(event_id, event)) == (facts != before)
        known.setdefault(event_id, event)


@given(histories)
def test_equal_views_have_equal_bytes_and_others_do_not(pairs: list[tuple[EventId, TaskEvent]]) -> None:
    views = [resolve(facts_of(pairs[:count])) for count in range(len(pairs) + 1)]
    for one in views:
        for other in views:
            assert (one == other) == (one.canonical() == other.canonical())


@given(histories)
def test_what_is_undisturbed_can_neither_settle_nor_be_undone(pairs: list[tuple[EventId, TaskEvent]]) -> None:
    """Its visits are skipped: they would find this."""
    facts = facts_of(pairs)
    if not is_undisturbed(facts):
        facts.rest, facts.attempts = (), tuple(attempt._replace(ends=()) for attempt in facts.attempts)
    assert is_undisturbed(facts)
    view = resolve(facts)
    assert view.state not in ENDED
    assert not is_settled(facts, view, lambda _: True)
    assert not is_decided(facts, view, lambda _: True)
    assert undo(facts, view, settled=True, decided=True) == ()


@settings(max_examples=50)
@given(histories)
def test_whatever_the_facts_nothing_raises(pairs: list[tuple[EventId, TaskEvent]]) -> None:
    facts = facts_of(pairs)
    view = resolve(facts)
    due = undo(facts, view, settled=True, decided=True)
    assert len({undo.id for undo in due}) == len(due)
    assert explain(TASK, facts, view)
    assert task_record(TASK, view)["state"] == view.state
    assert len(history_records(facts)) == len(facts)
    for conflict in view.conflicts:
        assert conflict_record(conflict, {})["id"] == conflict.id
    assert len({conflict.id for conflict in view.conflicts}) == len(view.conflicts)
