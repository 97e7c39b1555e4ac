"""Credits in bytes, as totals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtsync.errors import RemoteProtocolError
from crdtsync.gossip.credit import CreditIn, CreditOut
from crdtsync.protocol.peer_messages import FRAME_BYTES_MAX

WINDOW = 1_000


def test_repeated_and_old_grants_do_no_harm():
    credit = CreditOut(WINDOW)
    credit.spend(400)
    for total in (1_500, 1_500, 1_200, 0):
        credit.grant(total)
    assert credit.available == 1_100


def test_a_sender_may_overdraw_by_the_frame_that_reaches_the_limit():
    inbound = CreditIn(WINDOW)
    inbound.opened()
    inbound.arrived(0, 999)
    inbound.arrived(999, FRAME_BYTES_MAX)
    with pytest.raises(RemoteProtocolError, match="granted"):
        inbound.arrived(999 + FRAME_BYTES_MAX, 2)


def test_nothing_more_is_granted_before_something_is_taken():
    inbound = CreditIn(WINDOW)
    assert inbound.opened() == WINDOW
    inbound.arrived(0, WINDOW)
    assert inbound.regrant() is None
    inbound.taken(600)
    assert inbound.regrant() == WINDOW + 600
    assert inbound.regrant() is None


def test_small_gains_wait_until_they_are_worth_a_frame():
    inbound = CreditIn(WINDOW)
    inbound.opened()
    inbound.arrived(0, 300)
    inbound.taken(100)
    assert inbound.regrant() is None
    inbound.taken(200)
    assert inbound.regrant() == WINDOW + 300


def test_bytes_in_lost_frames_are_granted_again():
    inbound = CreditIn(WINDOW)
    inbound.opened()
    inbound.reached(WINDOW)  # the sender says it has sent so much; none of it came
    assert inbound.regrant() == 2 * WINDOW


def test_what_is_not_taken_yet_counts_on_the_next_link_too():
    """Or a peer could fill our memory by reconnecting."""
    inbound = CreditIn(WINDOW)
    inbound.opened()
    inbound.arrived(0, 800)
    assert inbound.opened() == 200
    inbound.taken(800)
    assert inbound.regrant() == WINDOW


def test_a_peer_cannot_gain_credit_by_lying_about_its_offset():
    inbound = CreditIn(WINDOW)
    inbound.opened()
    inbound.arrived(0, FRAME_BYTES_MAX)
    with pytest.raises(RemoteProtocolError):
        inbound.arrived(0, FRAME_BYTES_MAX)


@given(st.lists(st.tuples(st.sampled_from(("send", "lose", "take", "heads", "lose grant")), st.integers(1, 400))))
def test_what_waits_here_is_bounded_and_the_sender_never_starves(steps):
    """Whatever is lost: at most a window and one frame waits, and once all is taken and said there is credit again."""
    inbound, waiting = CreditIn(WINDOW), 0
    outbound = CreditOut(inbound.opened())
    for step, size in steps:
        if step in ("send", "lose") and outbound.available > 0:
            if step == "send":
                inbound.arrived(outbound.sent, size)
                waiting += size
            outbound.spend(size)
        elif step == "take":
            inbound.taken(min(size, waiting))
            waiting -= min(size, waiting)
        elif step == "heads":
            inbound.reached(outbound.sent)
        granted = inbound.regrant()
        if granted is not None and step != "lose grant":
            outbound.grant(granted)
        assert waiting <= WINDOW + 400
    inbound.taken(waiting)
    inbound.reached(outbound.sent)
    outbound.grant(inbound.regrant() or 0)
    assert outbound.available > 0
