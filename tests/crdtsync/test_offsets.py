"""A peer's clocks against ours, from pings."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtsync.clock import Now
from crdtsync.gossip.offsets import DISPERSION_PPM, DRIFT_MS_MIN, RESOLUTION_MS, SAMPLES_MAX, STALE_MS, PeerClock
from crdtsync.identifiers import RegionId, writer_id
from crdtsync.protocol.peer_messages import Pong

START = 1_700_000_000_000
ONE = writer_id(RegionId("us"), "a", 1, bytes(8))
OTHER = writer_id(RegionId("us"), "a", 2, bytes(8))


def exchange(clock: PeerClock, *, at_ms: int, offset_ms: int, out_ms: int, back_ms: int, busy_ms: int = 0) -> int:
    """One ping sent at monotonic `at_ms`, over a link with these latencies, to a clock that is `offset_ms` ahead."""
    received_ms = START + at_ms + out_ms + offset_ms
    done_ms = at_ms + out_ms + busy_ms + back_ms
    clock.heard(Pong(at_ms, START + at_ms, received_ms, received_ms + busy_ms), Now(START + done_ms, done_ms))
    return done_ms


def best(clock: PeerClock, mono_ms: int):
    return clock.best(START + mono_ms, mono_ms)


def test_a_symmetric_link_shows_the_exact_offset():
    clock = PeerClock()
    done_ms = exchange(clock, at_ms=0, offset_ms=-250, out_ms=40, back_ms=40, busy_ms=7)
    assert best(clock, done_ms) == (-250, 80, 40 + RESOLUTION_MS, 0)


@given(
    st.lists(
        st.tuples(st.integers(0, 500), st.integers(0, 500), st.integers(0, 50)), min_size=1, max_size=3 * SAMPLES_MAX
    ),
    st.integers(-100_000, 100_000),
)
def test_the_truth_is_always_within_the_uncertainty(latencies, offset_ms):
    clock = PeerClock()
    for number, (out_ms, back_ms, busy_ms) in enumerate(latencies):
        done_ms = exchange(
            clock, at_ms=number * 2_000, offset_ms=offset_ms, out_ms=out_ms, back_ms=back_ms, busy_ms=busy_ms
        )
        found = best(clock, done_ms)
        assert found is not None
        assert abs(found.offset_ms - offset_ms) <= found.uncertainty_ms


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300), st.integers(500, 20_000)), min_size=1, max_size=30),
    st.integers(-DISPERSION_PPM, DISPERSION_PPM),
    st.integers(0, STALE_MS - 700_000),
)
def test_the_truth_stays_within_it_while_clocks_part_no_faster_than_stated(latencies, rate_ppm, later_ms):
    """The peer's clock runs fast or slow throughout; what was measured goes stale, and says so."""

    def peer_ms(mono_ms: int) -> int:
        return START + 40 + mono_ms + mono_ms * rate_ppm // 1_000_000

    clock, at_ms = PeerClock(), 0
    for out_ms, back_ms, wait_ms in latencies:
        arrives_ms, done_ms = at_ms + out_ms, at_ms + out_ms + back_ms
        clock.heard(Pong(at_ms, 0, peer_ms(arrives_ms), peer_ms(arrives_ms)), Now(0, done_ms))
        at_ms = done_ms + wait_ms
    at_ms += later_ms
    found = best(clock, at_ms)
    assert found is not None
    assert abs(found.offset_ms - (peer_ms(at_ms) - START - at_ms)) <= found.uncertainty_ms + RESOLUTION_MS


def test_the_least_uncertain_of_the_last_measurements_is_believed():
    clock = PeerClock()
    exchange(clock, at_ms=0, offset_ms=10, out_ms=2, back_ms=2)
    done_ms = exchange(clock, at_ms=1_000, offset_ms=10, out_ms=300, back_ms=2)
    assert best(clock, done_ms)[:2] == (10, 4)
    for number in range(SAMPLES_MAX):
        done_ms = exchange(clock, at_ms=(number + 2) * 1_000, offset_ms=90, out_ms=9, back_ms=9)
    assert best(clock, done_ms)[:2] == (90, 18)


def test_a_step_of_our_own_clock_moves_the_offset_at_once():
    clock = PeerClock()
    done_ms = exchange(clock, at_ms=0, offset_ms=0, out_ms=5, back_ms=5)
    assert clock.best(START + done_ms + 4_000, done_ms).offset_ms == -4_000


def test_answers_that_cannot_be_are_ignored():
    clock = PeerClock()
    assert not clock.heard(Pong(500, 1_000_500, 0, 0), Now(1_000_000, 0))  # to a ping not sent yet
    assert not clock.heard(Pong(0, 1_000_000, 1_000_000, 1_000_900), Now(1_000_010, 10))  # held longer than under way
    assert not clock.heard(Pong(0, 1_000_000, 1_000_000, 999_000), Now(1_000_010, 10))  # sent before it was received
    assert best(clock, 10) is None


def test_a_measurement_outlives_the_link_and_not_the_incarnation():
    clock = PeerClock()
    clock.met(ONE)
    exchange(clock, at_ms=0, offset_ms=70, out_ms=5, back_ms=5)
    clock.met(ONE)
    later = best(clock, 60_000)
    assert (later.offset_ms, later.age_ms) == (70, 59_990)
    assert later.uncertainty_ms == 5 + RESOLUTION_MS + 59_990 * DISPERSION_PPM // 1_000_000
    clock.met(OTHER)
    assert best(clock, 60_000) is None


def test_a_measurement_says_nothing_after_an_hour():
    clock = PeerClock()
    exchange(clock, at_ms=0, offset_ms=70, out_ms=5, back_ms=5)
    assert best(clock, STALE_MS) is not None
    assert best(clock, STALE_MS + 11) is None


@pytest.mark.parametrize("rate_ppm", [-500, -40, 0, 40, 500])
@pytest.mark.parametrize("rtt_ms", [2, 60])
def test_drift_is_found_within_its_uncertainty(rate_ppm, rtt_ms):
    """Pings cross a link with jitter; both monotonic clocks start anywhere."""
    rng, clock = random.Random(7), PeerClock()
    for second in range(601):
        sent_ms = second * 1_000 + rng.randrange(0, 40)
        peer_ms = 77_000 + sent_ms + sent_ms * rate_ppm // 1_000_000
        arrives_ms = sent_ms + rtt_ms // 2 + (rng.randrange(0, 100) if rng.random() < 0.5 else 0)
        clock.pinged(peer_ms, Now(0, arrives_ms))
        exchange(clock, at_ms=sent_ms, offset_ms=0, out_ms=rtt_ms // 2, back_ms=rtt_ms // 2)
        drift = clock.drift()
        assert (drift is None) == (drift is None or drift.window_ms < DRIFT_MS_MIN)
    assert abs(drift.ppm - rate_ppm) <= drift.uncertainty_ppm + 1
    assert drift.window_ms >= 580_000
