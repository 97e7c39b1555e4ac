from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.clock import EPOCH_US, LocalClock

S = 1_000_000


def test_a_right_clock_shows_the_time():
    clock = LocalClock(booted_us=5 * S)
    assert clock.now(0) == (EPOCH_US // 1_000, 5_000)
    assert clock.now(2 * S) == (EPOCH_US // 1_000 + 2_000, 7_000)
    assert clock.error_us(2 * S) == 0


def test_a_step_moves_the_wall_clock_and_not_the_monotonic_one():
    clock = LocalClock()
    clock.step(-3_600 * S)
    assert clock.now(S) == ((EPOCH_US - 3_599 * S) // 1_000, 1_000)


def test_a_drifting_clock_is_off_by_its_rate_on_both_faces():
    clock = LocalClock()
    clock.drift(500, 10 * S)
    assert clock.mono_us(20 * S) == 20 * S + 5_000
    assert clock.error_us(20 * S) == 5_000
    clock.drift(0, 20 * S)
    assert clock.mono_us(30 * S) == 30 * S + 5_000


def test_a_strobe_jumps_to_and_fro():
    clock = LocalClock()
    clock.strobe(300_000, 500_000)
    assert [clock.error_us(t * S // 4) for t in range(6)] == [0, 0, 300_000, 300_000, 0, 0]
    clock.mend()
    assert clock.error_us(S // 2) == 0


def test_a_frozen_wall_clock_stands_still_and_the_monotonic_one_goes_on():
    clock = LocalClock()
    clock.freeze(S)
    assert clock.now(3 * S) == ((EPOCH_US + S) // 1_000, 3_000)
    clock.mend()
    assert clock.error_us(3 * S) == 0


def test_a_boot_starts_the_monotonic_clock_anew():
    clock = LocalClock(booted_us=100 * S)
    clock.boot(7 * S)
    assert clock.mono_us(7 * S) == 0
    assert clock.error_us(8 * S) == 0


@given(
    ppm=st.integers(-500, 500),
    booted_us=st.integers(0, 10**12),
    now_us=st.integers(0, 10**9),
    wait=st.integers(0, 10**6),
)
def test_a_timer_is_due_when_the_monotonic_clock_says_so(ppm, booted_us, now_us, wait):
    """Never early, and less than a millisecond late."""
    clock = LocalClock(booted_us=booted_us, drift_ppm=ppm)
    due_ms = clock.now(now_us).mono_ms + wait
    at_us = clock.true_us(due_ms, now_us)
    assert at_us >= now_us
    assert clock.now(at_us).mono_ms >= due_ms
    assert wait == 0 or clock.now(max(now_us, at_us - 1_000)).mono_ms <= due_ms


@pytest.mark.parametrize("ppm", [-500, 0, 500])
def test_a_timer_that_is_past_is_due_now(ppm):
    assert LocalClock(drift_ppm=ppm).true_us(5, 10 * S) == 10 * S


def test_a_clock_is_set_right_to_what_its_region_has():
    clock = LocalClock(wall_off_us=300, drift_ppm=100)
    clock.step(5 * S)
    clock.drift(-500, S)
    clock.strobe(1, 2)
    clock.set_right(2 * S)
    assert clock.offset_us == 300
    assert clock.drift_ppm == 100
    assert clock.wall_us(2 * S) == EPOCH_US + 300 + S + 100 + S - 500
