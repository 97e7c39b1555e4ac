"""A peer's clock against ours, from pings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtsync.clock import Now
from crdtsync.gossip.offsets import SAMPLES_MAX, STEP_MS_MIN, OffsetFilter
from crdtsync.protocol.peer_messages import Pong


def exchange(clock: OffsetFilter, *, at_ms: int, offset_ms: int, out_ms: int, back_ms: int, busy_ms: int = 0) -> None:
    """One ping sent at monotonic `at_ms`, over a link with these latencies, to a clock that is `offset_ms` ahead."""
    wall_ms = 1_700_000_000_000 + at_ms
    received_ms = wall_ms + out_ms + offset_ms
    sent_ms = received_ms + busy_ms
    total_ms = out_ms + busy_ms + back_ms
    clock.heard(Pong(at_ms, wall_ms, received_ms, sent_ms), Now(wall_ms + total_ms, at_ms + total_ms))


def test_a_symmetric_link_shows_the_exact_offset():
    clock = OffsetFilter()
    exchange(clock, at_ms=0, offset_ms=-250, out_ms=40, back_ms=40, busy_ms=7)
    best = clock.best()
    assert best is not None
    assert (best.offset_ms, best.rtt_ms, best.uncertainty_ms) == (-250, 80, 40)


@given(
    st.lists(
        st.tuples(st.integers(0, 500), st.integers(0, 500), st.integers(0, 50)), min_size=1, max_size=3 * SAMPLES_MAX
    ),
    st.integers(-100_000, 100_000),
)
def test_the_truth_is_always_within_the_uncertainty(latencies, offset_ms):
    clock = OffsetFilter()
    for number, (out_ms, back_ms, busy_ms) in enumerate(latencies):
        exchange(clock, at_ms=number * 2_000, offset_ms=offset_ms, out_ms=out_ms, back_ms=back_ms, busy_ms=busy_ms)
        best = clock.best()
        assert best is not None
        assert abs(best.offset_ms - offset_ms) <= best.uncertainty_ms


def test_the_shortest_of_the_last_round_trips_is_believed():
    clock = OffsetFilter()
    exchange(clock, at_ms=0, offset_ms=10, out_ms=2, back_ms=2)
    exchange(clock, at_ms=1_000, offset_ms=10, out_ms=300, back_ms=2)
    assert clock.best() == (10, 4)
    for number in range(SAMPLES_MAX):
        exchange(clock, at_ms=(number + 2) * 1_000, offset_ms=90, out_ms=9, back_ms=9)
    assert clock.best() == (90, 18)


@pytest.mark.parametrize("step_ms", [-3_600_000, -STEP_MS_MIN - 1, STEP_MS_MIN + 1, 3_600_000])
def test_a_sample_during_which_our_clock_was_set_is_thrown_away(step_ms):
    clock = OffsetFilter()
    clock.heard(Pong(0, 1_000_000, 1_000_005, 1_000_005), Now(1_000_010 + step_ms, 10))
    assert clock.best() is None


def test_answers_that_cannot_be_are_ignored():
    clock = OffsetFilter()
    clock.heard(Pong(500, 1_000_500, 0, 0), Now(1_000_000, 0))  # to a ping not sent yet
    clock.heard(Pong(0, 1_000_000, 1_000_000, 1_000_900), Now(1_000_010, 10))  # held longer than it was under way
    clock.heard(Pong(0, 1_000_000, 1_000_000, 999_000), Now(1_000_010, 10))  # sent before it was received
    assert clock.best() is None
