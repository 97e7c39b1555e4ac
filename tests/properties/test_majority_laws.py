"""Marzullo's rule against brute force, and what it promises about clocks (design 4, HLC-3)."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from crdtsync.clock import MAX_SKEW_MS
from crdtsync.clock_watch import STOPPED, Verdict, judge
from crdtsync.gossip.offsets import Offset
from crdtsync.identifiers import RegionId
from crdtsync.majority import Interval, majority_of, shared

REACH_MS = MAX_SKEW_MS // 2

intervals = st.lists(
    st.builds(lambda low, wide: Interval(low, low + wide), st.integers(-30, 30), st.integers(0, 20)),
    min_size=1,
    max_size=9,
)


@given(intervals, st.integers(1, 9))
def test_the_shared_stretches_are_those_of_brute_force(intervals, at_least):
    deep = {
        point: sum(i.low <= point <= i.high for i in intervals)
        for point in range(-31, 52)  # whole numbers are enough: that is where intervals begin and end
    }
    found = shared(intervals, at_least)
    inside = {point for part in found for point in range(part.stretch.low, part.stretch.high + 1)}
    assert {point for point, depth in deep.items() if depth >= at_least} <= inside
    for part in found:
        assert deep[part.stretch.low] >= at_least
        assert deep[part.stretch.high] >= at_least
        assert part.most == max(deep[p] for p in range(part.stretch.low, part.stretch.high + 1))
        # Between whole numbers depth may fall: a stretch may join two that touch there, and nothing else.
        assert all(deep[p] >= at_least for p in range(part.stretch.low, part.stretch.high + 1))
    assert all(a.stretch.high < b.stretch.low for a, b in pairwise(found))


def measured(error_ms: int, own_error_ms: int, noise: float, uncertainty_ms: int) -> Offset:
    """What one clock reads of another: off the truth by no more than it says."""
    return Offset(error_ms - own_error_ms + round(noise * uncertainty_ms), 2 * uncertainty_ms, uncertainty_ms, 0)


@st.composite
def clusters(draw, *, least: int = 2):
    """The errors of all clocks, a majority of them within half of max_skew, and one clock's measurements of others."""
    n = draw(st.integers(least, 7))
    bad = draw(st.integers(0, n - majority_of(n)))
    good_errors = [draw(st.integers(-REACH_MS, REACH_MS)) for _ in range(n - bad)]
    bad_errors = [draw(st.integers(-4_000_000_000, 4_000_000_000)) for _ in range(bad)]
    return good_errors, bad_errors, draw(st.lists(st.floats(-1, 1), min_size=n, max_size=n)), draw(st.integers(0, 400))


def seen_by(own_ms: int, others: list[int], noise: list[float], uncertainty_ms: int) -> dict[RegionId, Offset | None]:
    return {
        RegionId(f"r{place}"): measured(error_ms, own_ms, noise[place], uncertainty_ms)
        for place, error_ms in enumerate(others)
    }


@given(clusters(), st.data())
def test_a_good_clock_is_never_stopped_by_a_minority_of_bad_ones(cluster, data):
    """Nor by links that are down: what is not measured judges nobody."""
    good, bad, noise, uncertainty_ms = cluster
    own_ms, others = good[0], [*good[1:], *bad]
    offsets = seen_by(own_ms, others, noise, uncertainty_ms)
    assert judge(offsets, max_skew_ms=MAX_SKEW_MS).verdict is Verdict.AGREES
    for region in offsets:
        if data.draw(st.booleans()):
            offsets[region] = None
    unmeasured_good = sum(offsets[region] is None for region in list(offsets)[: len(good) - 1])
    if len(good) - unmeasured_good >= majority_of(len(others) + 1):
        assert judge(offsets, max_skew_ms=MAX_SKEW_MS).verdict is Verdict.AGREES


@given(clusters(least=3), st.integers(1, 4_000_000_000), st.booleans())
def test_a_bad_clock_notices_by_one_measurement_of_each_of_a_majority(cluster, beyond_ms, fast):
    good, bad, noise, uncertainty_ms = cluster
    if not bad or len(good) < majority_of(len(good) + len(bad)):
        return
    far_ms = 3 * REACH_MS + 2 * uncertainty_ms + beyond_ms
    own_ms = far_ms if fast else -far_ms
    others = [*good, *bad[1:]]
    assert judge(seen_by(own_ms, others, noise, uncertainty_ms), max_skew_ms=MAX_SKEW_MS).verdict is Verdict.OFF


@given(st.integers(-4_000_000_000, 4_000_000_000), st.integers(0, 1_000))
def test_two_members_that_differ_both_alarm_and_neither_stops(offset_ms, uncertainty_ms):
    for way in (1, -1):
        offset = Offset(way * offset_ms, 0, uncertainty_ms, 0)
        verdict = judge({RegionId("us"): offset}, max_skew_ms=MAX_SKEW_MS).verdict
        assert verdict not in STOPPED
        assert (verdict is Verdict.SPLIT) == (abs(offset_ms) > MAX_SKEW_MS + uncertainty_ms)


@given(st.integers(1, 6), st.integers(-(10**9), 10**9), st.integers(0, 6))
def test_a_minority_does_not_judge_itself(others, offset_ms, known):
    offsets: dict[RegionId, Offset | None] = {
        RegionId(f"r{place}"): Offset(offset_ms, 0, 1, 0) if place < known else None for place in range(others)
    }
    if 1 + min(known, others) < majority_of(1 + others):
        assert judge(offsets, max_skew_ms=MAX_SKEW_MS).verdict is Verdict.UNMEASURED


def test_a_region_alone_is_its_own_majority():
    assert judge({}, max_skew_ms=MAX_SKEW_MS).verdict is Verdict.ALONE


def test_the_majority_s_time_is_told_with_its_uncertainty():
    offsets: dict[RegionId, Offset | None] = {
        RegionId("us"): Offset(3_600_000, 40, 21, 0),
        RegionId("ap"): Offset(3_600_010, 80, 41, 0),
    }
    judged = judge(offsets, max_skew_ms=MAX_SKEW_MS, skew_ms=3_600_100)
    assert (judged.verdict, judged.wall, judged.agree) == (Verdict.OFF, Verdict.AGREES, 2)
    assert abs(judged.offset_ms - 3_600_005) <= judged.uncertainty_ms <= 41


def test_stamps_that_are_ahead_of_a_right_clock_stop_it_until_their_time():
    offsets: dict[RegionId, Offset | None] = {RegionId("us"): Offset(0, 2, 2, 0)}
    assert judge(offsets, max_skew_ms=MAX_SKEW_MS, lead_ms=MAX_SKEW_MS).verdict is Verdict.AGREES
    assert judge(offsets, max_skew_ms=MAX_SKEW_MS, lead_ms=MAX_SKEW_MS + 1).verdict is Verdict.AHEAD
