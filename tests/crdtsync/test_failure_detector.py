"""Suspicion grows with silence, and only with silence."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtsync.gossip.failure_detector import PHI_MAX, SAMPLES_MAX, STD_MS_MIN, PhiAccrual


def steady(interval_ms: int, arrivals: int = 100) -> PhiAccrual:
    detector = PhiAccrual(0)
    for number in range(1, arrivals + 1):
        detector.heard(number * interval_ms)
    return detector


def test_phi_is_the_logarithm_of_the_chance_that_a_frame_still_comes():
    """Hayashibara et al. 2004, equations 4 and 5: at the mean, half of all frames are still to come."""
    detector = steady(1_000)
    assert detector.phi(detector.last_ms + 1_000) == pytest.approx(-math.log10(0.5))
    one_sigma = detector.phi(detector.last_ms + 1_000 + STD_MS_MIN)
    assert one_sigma == pytest.approx(-math.log10(0.158655), abs=1e-4)


def test_suspicion_never_falls_while_nothing_comes():
    detector = steady(1_000)
    levels = [detector.phi(detector.last_ms + silence) for silence in range(0, 60_000, 250)]
    assert levels == sorted(levels)
    assert levels[-1] == PHI_MAX


def test_one_lost_ping_is_no_suspicion_and_four_are():
    detector = steady(1_000)
    assert detector.phi(detector.last_ms + 2_000) < 2
    assert detector.phi(detector.last_ms + 4_000) > 8


def test_a_pause_after_a_burst_is_no_suspicion():
    """Frames every millisecond must not make half a second of quiet a failure: the deviation has a floor."""
    detector = steady(1, arrivals=1_000)
    assert detector.phi(detector.last_ms + 500) < 1


def test_a_jittery_link_is_given_more_time_than_a_steady_one():
    jittery = PhiAccrual(0)
    at_ms = 0
    for number in range(100):
        at_ms += 200 if number % 2 else 4_000
        jittery.heard(at_ms)
    calm = steady(2_100)
    assert jittery.phi(jittery.last_ms + 6_000) < calm.phi(calm.last_ms + 6_000)


def test_a_new_link_is_not_suspected_before_its_first_ping():
    assert PhiAccrual(0, interval_ms=1_000).phi(1_500) < 2


def test_our_own_pause_is_not_held_against_the_peer():
    detector = steady(1_000)
    now_ms = detector.last_ms + 20_000
    assert detector.phi(now_ms) == PHI_MAX
    detector.forgive(19_000, now_ms)
    assert detector.phi(now_ms) < 1
    detector.forgive(1_000_000, now_ms)
    assert detector.last_ms == now_ms


def test_time_that_goes_back_counts_as_none():
    detector = steady(1_000)
    detector.heard(detector.last_ms - 5_000)
    assert detector.last_ms == 100_000


def test_old_arrivals_are_forgotten():
    detector = steady(10_000)
    for number in range(1, SAMPLES_MAX + 1):
        detector.heard(1_000_000 + number * 1_000)
    assert detector.phi(detector.last_ms + 1_000) == pytest.approx(-math.log10(0.5))


@given(
    st.lists(st.integers(0, 5_000), max_size=80),
    st.integers(0, 60_000),
    st.floats(-1.0, 30.0),
)
def test_a_calm_silence_is_below_the_suspicion_whatever_came_before(intervals: list[int], silence_ms: int, phi: float):
    """`calm_ms` spares most calls of `phi`: it must never hide a suspicion."""
    detector = PhiAccrual(0)
    at_ms = 0
    for interval_ms in intervals:
        at_ms += interval_ms
        detector.heard(at_ms)
    if silence_ms <= PhiAccrual.calm_ms(phi):
        assert detector.phi(at_ms + silence_ms) < phi
