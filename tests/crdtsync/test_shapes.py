"""Every field of every kind is checked: one wrong value at a time, refused with a word about it."""

from __future__ import annotations

import pytest
from hypothesis import given

from crdtsync.errors import RemoteProtocolError
from crdtsync.events import (
    KIND_OF,
    KINDS,
    SIGNATURES,
    Claimed,
    Declared,
    DocumentUpdated,
    EffectRecorded,
    Ended,
    FinalHeads,
    Inherited,
    LabelEdited,
    LimitSet,
    MembersChanged,
    Offered,
    Options,
    PriorityEdited,
    Reissued,
    Requeued,
    RightsBurned,
    RightsInherited,
    RightsMinted,
    RightsMoved,
    Submitted,
    TermOpened,
    Unknown,
    Withdrawn,
    WriterOpened,
)
from crdtsync.identifiers import EventId
from crdtsync.log.shapes import check_events, plain_event
from crdtsync.protocol.codec import decode, encode
from tests.log_strategies import EU, OPTIONS, events, task

ID = EventId(1, EU, 1, 0)
SUBMITTED = Submitted(task(1), "charge", b"", "eu", "default", 5, 0, 0, "", 0, (), (), None, None, OPTIONS)
CLAIMED = Claimed(task(1), 0, ID, None, False, (), (), 0)
ENDED = Ended(task(1), ID, "ok", False, False, "", b"")
LIMIT = LimitSet(task(1), "queue:mail", "concurrency", "global", 10, 0, "operator", ("ap", "eu"))
DECLARED = Declared("charge", "shop", "default", 5, OPTIONS)


def checked(event):
    return check_events((decode(encode(plain_event(event)), bytes_max=1 << 20),))[0]


@given(events)
def test_checking_inverts_encoding(event):
    assert checked(event) == event
    assert type(checked(event)) is type(event)


@given(events)
def test_what_is_nested_comes_back_in_its_own_type(event):
    for before, after in zip(event, checked(event), strict=True):
        assert type(before) is type(after)
        if type(before) is tuple:
            assert list(map(type, before)) == list(map(type, after))


def test_every_kind_has_a_signature_for_each_of_its_fields():
    for kind, record in KINDS.items():
        assert {len(signature) for signature in SIGNATURES[kind]} == {len(record._fields)}
        assert KIND_OF[record] == kind


def test_equal_options_share_one_object():
    first, second = checked(SUBMITTED), checked(SUBMITTED._replace(task=task(2)))
    assert first.options is second.options
    assert type(first.options) is Options


def test_a_cached_value_lets_no_other_type_pass_for_it():
    """True == 1, so a cache of options alone would accept booleans once it had seen the numbers."""
    checked(SUBMITTED._replace(options=OPTIONS._replace(attempts=1)))
    with pytest.raises(RemoteProtocolError, match="options"):
        checked(SUBMITTED._replace(options=OPTIONS._replace(attempts=True)))


REISSUED = Reissued(EU, 2, 5, ((3, 0), (3, 1)), (task(1), task(2)))


@pytest.mark.parametrize(
    "event",
    [
        SUBMITTED._replace(task=b"short"),
        SUBMITTED._replace(name=""),
        SUBMITTED._replace(name=b"charge"),
        SUBMITTED._replace(owner="Not a region"),
        SUBMITTED._replace(priority=10),
        SUBMITTED._replace(priority=-1),
        SUBMITTED._replace(not_before_ms=-1),
        SUBMITTED._replace(deadline_ms=2**53),
        SUBMITTED._replace(generation=-1),
        SUBMITTED._replace(labels=(("b", ""), ("a", ""))),
        SUBMITTED._replace(labels=(("a", ""), ("a", ""))),
        SUBMITTED._replace(labels=("ab",)),
        SUBMITTED._replace(labels=(("a", 1),)),
        SUBMITTED._replace(after=((b"short", True),)),
        SUBMITTED._replace(after=((task(1), 1),)),
        SUBMITTED._replace(after=(task(1),)),
        SUBMITTED._replace(undoes=(task(1), ID)),
        SUBMITTED._replace(undoes=(b"short", ID, b"")),
        SUBMITTED._replace(undoes=(task(1), (1, 2), b"")),
        SUBMITTED._replace(linked=b"short"),
        SUBMITTED._replace(options=()),
        SUBMITTED._replace(options=OPTIONS._replace(partition="maybe")),
        SUBMITTED._replace(options=OPTIONS._replace(cancel="maybe")),
        SUBMITTED._replace(options=OPTIONS._replace(timeout_ms=-1)),
        SUBMITTED._replace(options=OPTIONS._replace(window_ms=2**53)),
        SUBMITTED._replace(options=OPTIONS._replace(non_retryable=(1,))),
        SUBMITTED._replace(options=OPTIONS._replace(non_retryable="ab")),
        TermOpened(task(1), -1, None),
        TermOpened(task(1), 0, ()),
        Offered(task(1), 0, "eu", "boredom"),
        LIMIT._replace(limit=b"short"),
        LIMIT._replace(target="mail"),
        LIMIT._replace(kind="size"),
        LIMIT._replace(scope="planet"),
        LIMIT._replace(amount=-1),
        LIMIT._replace(amount=2**53),
        LIMIT._replace(period_ms=1_000),
        LIMIT._replace(kind="rate"),
        LIMIT._replace(founders=()),
        LIMIT._replace(founders=("us", "eu")),
        LIMIT._replace(founders=("eu", "eu")),
        LIMIT._replace(founders=("Not a region",)),
        LIMIT._replace(founders=(1,)),
        RightsMinted(task(1), -1, ID),
        RightsMinted(b"short", 1, ID),
        RightsMinted(task(1), 1, (1, 2)),
        RightsMoved(task(1), "eu", 1),
        RightsMoved(task(1), EU, -1),
        RightsMoved(b"short", EU, 1),
        RightsBurned(task(1), -1),
        RightsBurned(b"short", 1),
        RightsInherited(task(1), "Not a region"),
        RightsInherited(b"short", "eu"),
        Offered(task(1), 0, "", "drain"),
        Offered(task(1), -1, "eu", "drain"),
        Withdrawn(task(1), None),
        CLAIMED._replace(term=-1),
        CLAIMED._replace(token=-1),
        CLAIMED._replace(submission=(1, EU, 1)),
        CLAIMED._replace(submission=("1", EU, 1, 0)),
        CLAIMED._replace(continues=(1, EU, 0, 0)),
        CLAIMED._replace(continues=(1, "nobody", 1, 0)),
        CLAIMED._replace(continues=(2**63, EU, 1, 0)),
        CLAIMED._replace(continues=(1, EU, 1, 2**20)),
        CLAIMED._replace(relies=("abcd",)),
        CLAIMED._replace(relies=(7,)),
        CLAIMED._replace(inputs=((task(1), None),)),
        CLAIMED._replace(inputs=((b"short", ID),)),
        EffectRecorded(task(1), ID, "charge", "key", b""),
        ENDED._replace(outcome="perhaps"),
        ENDED._replace(late=0),
        Requeued(task(1), 0),
        Requeued(task(1), -1),
        PriorityEdited(task(1), 10, None),
        PriorityEdited(task(1), 1, (1,)),
        LabelEdited(task(1), "a", "b", b""),
        DocumentUpdated(b"short", "notes", b""),
        DECLARED._replace(name=""),
        DECLARED._replace(priority=10),
        DECLARED._replace(options=(1,)),
        WriterOpened("nobody", 1, 0),
        WriterOpened("", -1, 0),
        WriterOpened("", 0, -1),
        MembersChanged(0, 1, ("eu",), "add", ("us",), "", False),
        MembersChanged(0, 2, ("us", "eu"), "add", ("us",), "", False),
        MembersChanged(0, 2, ("eu",), "marry", ("us",), "", False),
        MembersChanged(0, 2, ("eu",), "add", (), "", False),
        MembersChanged(-1, 2, ("eu",), "add", ("us",), "", False),
        FinalHeads(0, -1, ()),
        FinalHeads(0, 2, (("eu", 3),)),
        FinalHeads(0, 2, ((EU, 0),)),
        FinalHeads(0, 2, ((EU, 1), (EU, 1))),
        Inherited(task(1), -1, "eu", 2),
        Inherited(task(1), 1, "EU", 2),
        REISSUED._replace(closed="eu"),
        REISSUED._replace(first=0),
        REISSUED._replace(first=6),
        REISSUED._replace(last=2**53),
        REISSUED._replace(late=((6, 0),)),
        REISSUED._replace(late=((3, 2**20),)),
        REISSUED._replace(late=((3, 1), (3, 0))),
        REISSUED._replace(late=(3,)),
        REISSUED._replace(tasks=(task(2), task(1))),
        REISSUED._replace(tasks=(b"short",)),
        REISSUED._replace(tasks=(1,)),
        Unknown(65_536, ()),
        Unknown(-1, ()),
    ],
    ids=lambda event: type(event).__name__,
)
def test_an_event_with_one_wrong_field_is_refused(event):
    with pytest.raises(RemoteProtocolError):
        checked(event)


@pytest.mark.parametrize("plain", [None, 1, "ab", ((),), (1,), ("ab",), ((b"\x01",),), ((True,),), (("a",),), ((1,),)])
def test_what_is_no_event_is_refused(plain):
    with pytest.raises(RemoteProtocolError):
        check_events(plain)
