"""The session's table, its numbers, and who is let in."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtsync.coordination.membership import Membership
from crdtsync.errors import RemoteProtocolError
from crdtsync.identifiers import DEFAULT_DOMAIN, RegionId, writer_id
from crdtsync.protocol.peer_messages import PEER_PROTOCOL_VERSION, Bye, Credit, Hello, HelloRefused
from crdtsync.protocol.session import (
    TRANSITIONS,
    Identity,
    Refusal,
    Session,
    SessionEvent,
    SessionState,
)

EU, US, AP = RegionId("eu"), RegionId("us"), RegionId("ap")
EU_1, EU_2, US_1, US_2, AP_1 = (
    writer_id(region, "n", number, bytes(8))
    for region, number in (("eu", 1), ("eu", 2), ("us", 1), ("us", 2), ("ap", 1))
)
OURS = Identity("prod", EU, EU_1, Membership.founding((AP, EU, US)), (DEFAULT_DOMAIN,))
THEIRS = Identity("prod", US, US_1, Membership.founding((AP, EU, US)), (DEFAULT_DOMAIN,))


@pytest.mark.parametrize("state, event", list(itertools.product(SessionState, SessionEvent)))
def test_every_event_in_every_state_is_legal_or_refused(state, event):
    session = Session(US)
    session.state = state
    after = TRANSITIONS[state].get(event)
    if after is None:
        with pytest.raises(RemoteProtocolError, match=f"{event} is not allowed while {state}"):
            session.step(event)
        assert session.state is state
    else:
        session.step(event)
        assert session.state is after


def test_the_table_is_what_the_documentation_says():
    legal = {(state, event) for state, row in TRANSITIONS.items() for event in row}
    refused = set(itertools.product(SessionState, SessionEvent)) - legal
    s, e = SessionState, SessionEvent
    assert refused == {
        (s.CLOSED, e.HELLO),
        (s.CLOSED, e.REFUSED),
        (s.CLOSED, e.TRAFFIC),
        (s.CLOSED, e.BYE),
        (s.CLOSED, e.CLOSE),
        (s.GREETING, e.TRAFFIC),  # nothing before the Hello
        (s.OPEN, e.HELLO),  # one Hello per link
    }


def test_an_open_session_can_always_be_left_and_never_reopens_by_itself():
    for event, after in TRANSITIONS[SessionState.OPEN].items():
        assert after is not SessionState.OPEN or event is SessionEvent.TRAFFIC
    for state, row in TRANSITIONS.items():
        opening = [event for event, after in row.items() if after is SessionState.OPEN and state is not after]
        assert opening == ([SessionEvent.HELLO] if state is SessionState.GREETING else [])


# Frame numbers


def pair() -> tuple[Session, Session]:
    return Session(US), Session(EU)


def test_frames_are_numbered_from_one_and_say_what_they_are_to_the_session():
    ours, theirs = pair()
    frames = [ours.encode(each) for each in (THEIRS.hello(5), Credit(1), Bye("x"), HelloRefused("a", "b"))]
    events = [theirs.decode(frame)[0] for frame in frames]
    assert events == [SessionEvent.HELLO, SessionEvent.TRAFFIC, SessionEvent.BYE, SessionEvent.REFUSED]
    assert (ours.sent, theirs.seen, theirs.missed) == (4, 4, 0)


def test_a_replayed_frame_is_dropped():
    ours, theirs = pair()
    first, second = ours.encode(Credit(1)), ours.encode(Credit(2))
    assert theirs.decode(first) is not None
    assert theirs.decode(second) is not None
    assert theirs.decode(first) is None
    assert theirs.decode(second) is None
    assert (theirs.seen, theirs.missed) == (2, 0)


@given(st.lists(st.booleans(), max_size=40))
def test_lost_frames_are_counted(kept):
    ours, theirs = pair()
    for keep in kept:
        frame = ours.encode(Credit(1))
        if keep:
            theirs.decode(frame)
    last = max((number for number, keep in enumerate(kept, 1) if keep), default=0)
    assert theirs.seen == last
    assert theirs.missed == kept[:last].count(False)


def test_a_frame_that_is_none_changes_nothing():
    ours, theirs = pair()
    theirs.decode(ours.encode(Credit(1)))
    with pytest.raises(RemoteProtocolError):
        theirs.decode(b"\xff")
    assert (theirs.seen, theirs.missed) == (1, 0)


# Who is let in


def hello(**changes) -> Hello:
    return THEIRS.hello(1_000)._replace(**changes)


def test_a_member_of_the_same_cluster_is_welcome():
    assert OURS.refusal(hello(), US) is None


@pytest.mark.parametrize(
    "changes, linked_to, refusal",
    [
        ({"version": PEER_PROTOCOL_VERSION + 1}, US, Refusal.VERSION),
        ({"cluster": "staging"}, US, Refusal.CLUSTER),
        ({"region": RegionId("xx"), "writer": writer_id("xx", "n", 1, bytes(8))}, RegionId("xx"), Refusal.NOT_MEMBER),
        ({"region": EU, "writer": EU_2}, EU, Refusal.SAME_REGION),
        ({"region": EU, "writer": EU_2}, US, Refusal.SAME_REGION),
        ({"region": EU, "writer": EU_1}, US, Refusal.SELF),
        ({}, AP, Refusal.IDENTITY),
        ({"writer": AP_1}, US, Refusal.IDENTITY),
    ],
)
def test_others_are_refused_with_the_reason(changes, linked_to, refusal):
    assert OURS.refusal(hello(**changes), linked_to) is refusal
