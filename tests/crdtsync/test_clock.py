from __future__ import annotations

import pytest

from crdtsync.clock import (
    COUNTER_MAX,
    MAX_SKEW_MS,
    SLEW_PPM_MAX,
    HybridClock,
    Now,
    make_stamp,
    stamp_counter,
    stamp_ms,
)
from crdtsync.errors import ClockSkewError

START = 1_700_000_000_000


def test_a_stamp_is_48_bits_of_milliseconds_and_16_of_counter():
    stamp = make_stamp(START, 7)
    assert (stamp_ms(stamp), stamp_counter(stamp)) == (START, 7)
    assert stamp == START * 65_536 + 7


def test_the_first_stamp_shows_the_wall_clock():
    assert HybridClock().tick(Now(START, 5)) == make_stamp(START)


def test_stamps_within_a_millisecond_count_up():
    clock = HybridClock()
    assert [stamp_counter(clock.tick(Now(START, 5))) for _ in range(3)] == [0, 1, 2]


def test_stamps_increase_when_the_wall_clock_steps_back():
    clock = HybridClock()
    before = clock.tick(Now(START, 0))
    assert clock.tick(Now(START - 3_600_000, 10)) > before


def test_a_step_of_the_wall_clock_shows_as_skew_and_not_as_time():
    clock = HybridClock()
    clock.physical_ms(Now(START, 0))
    stepped = Now(START + 10_000 + 3_600_000, 10_000)
    assert clock.physical_ms(stepped) == START + 10_000 + 10_000 * SLEW_PPM_MAX // 1_000_000
    assert clock.skew_ms(stepped) == 3_600_000 - 5


@pytest.mark.parametrize("step_ms", [10, -10])
def test_physical_time_slews_until_it_has_made_up_for_a_step(step_ms):
    clock = HybridClock()
    clock.physical_ms(Now(START, 0))
    for elapsed_ms in range(100, 20_001, 100):
        clock.physical_ms(Now(START + elapsed_ms + step_ms, elapsed_ms))
    assert clock.skew_ms(Now(START + 20_000 + step_ms, 20_000)) == 0


def test_physical_time_stands_still_when_the_monotonic_clock_does():
    clock = HybridClock()
    clock.physical_ms(Now(START, 100))
    assert clock.physical_ms(Now(START + 50, 100)) == START
    assert clock.physical_ms(Now(START + 50, 90)) == START  # a broken monotonic clock does no harm


def test_a_full_counter_carries_into_the_milliseconds():
    clock = HybridClock(make_stamp(START, COUNTER_MAX))
    assert clock.tick(Now(START, 0)) == make_stamp(START + 1, 0)


def test_stamps_after_a_restart_lie_above_those_before():
    """Even if the machine comes up an hour slow."""
    first = HybridClock()
    stamps = [first.tick(Now(START, n)) for n in range(5)]
    bound = first.bound_to_persist()
    assert bound == stamps[-1]
    assert HybridClock(bound).tick(Now(START - 3_600_000, 0)) > stamps[-1]


def test_there_is_nothing_to_persist_once_the_bound_is_durable():
    clock = HybridClock()
    assert clock.bound_to_persist() is None
    stamp = clock.tick(Now(START, 0))
    later = clock.tick(Now(START, 0))
    clock.bound_persisted(stamp)
    assert clock.bound_to_persist() == later
    clock.bound_persisted(later)
    clock.bound_persisted(stamp)
    assert clock.bound_to_persist() is None
    assert HybridClock(later).bound_to_persist() is None


def test_what_is_stamped_after_an_observation_sorts_after_it():
    clock = HybridClock()
    clock.observe(make_stamp(START + 300, 9), Now(START, 0))
    assert clock.tick(Now(START, 0)) == make_stamp(START + 300, 10)


def test_an_old_stamp_changes_nothing():
    clock = HybridClock()
    stamp = clock.tick(Now(START, 0))
    clock.observe(make_stamp(START - 86_400_000), Now(START, 0))
    assert clock.last == stamp


def test_a_stamp_from_the_future_is_refused_and_leaves_the_clock_as_it_was():
    clock = HybridClock()
    stamp = clock.tick(Now(START, 0))
    clock.observe(make_stamp(START + MAX_SKEW_MS), Now(START, 0))
    with pytest.raises(ClockSkewError) as caught:
        clock.observe(make_stamp(START + MAX_SKEW_MS + 1), Now(START, 0))
    assert caught.value.facts["ahead_ms"] == MAX_SKEW_MS + 1
    assert caught.value.facts["limit_ms"] == MAX_SKEW_MS
    assert clock.last == make_stamp(START + MAX_SKEW_MS) > stamp


def test_what_was_observed_before_a_restart_is_not_from_the_future_after_it():
    """The machine comes up an hour slow; what the disk holds must be folded all the same."""
    clock = HybridClock(make_stamp(START))
    slow = Now(START - 3_600_000, 0)
    assert clock.physical_ms(slow) == START - MAX_SKEW_MS
    clock.observe(make_stamp(START), slow)
    with pytest.raises(ClockSkewError):
        clock.observe(make_stamp(START + 1), slow)


def test_own_time_is_physical_time_otherwise():
    clock = HybridClock(make_stamp(START))
    assert clock.physical_ms(Now(START + 10, 0)) == START + 10
    clock.tick(Now(START + 10, 0))
    clock.observe(make_stamp(START + 400), Now(START + 10, 0))
    assert clock.physical_ms(Now(START + 10, 0)) == START + 10  # following others never moves what is followed
