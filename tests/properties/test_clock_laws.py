"""What hybrid clocks promise: Kulkarni et al., OPODIS 2014, and what we add."""

from __future__ import annotations

import csv
from heapq import heappop, heappush
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtsync.clock import MAX_SKEW_MS, SLEW_PPM_MAX, HybridClock, Now, make_stamp, stamp_counter, stamp_ms

START = 1_700_000_000_000

# (what happens, milliseconds that pass, how far the wall clock steps)
steps = st.lists(
    st.tuples(
        st.sampled_from(["tick", "tick", "observe", "restart"]),
        st.integers(0, 5_000),
        st.sampled_from([0, 0, 0, 1, -1, 700, -700, 3_600_000, -3_600_000]),
    ),
    max_size=40,
)


@given(steps, st.data())
def test_stamps_strictly_increase_over_wall_steps_observations_and_restarts(steps, data):
    clock, mono_ms, wall_ms, last = HybridClock(), 0, START, 0
    for action, elapsed_ms, step_ms in steps:
        mono_ms += elapsed_ms
        wall_ms += elapsed_ms + step_ms
        now = Now(wall_ms, mono_ms)
        if action == "observe":
            ahead_ms = data.draw(st.integers(-1_000, MAX_SKEW_MS))
            seen = make_stamp(clock.physical_ms(now) + ahead_ms, data.draw(st.integers(0, 65_535)))
            clock.observe(seen, now)
            last = max(last, seen)
        elif action == "restart":  # with what the last batch made durable, which covers every stamp that left
            bound = clock.bound_to_persist()
            if bound is not None:
                clock.bound_persisted(bound)
            clock = HybridClock(clock.last)
            mono_ms = data.draw(st.integers(0, 10))  # another boot
        else:
            stamp = clock.tick(now)
            assert stamp > last
            last = stamp
        assert clock.bound_to_persist() in (None, clock.last)


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(-(10**7), 10**7)), max_size=40))
def test_physical_time_runs_at_the_monotonic_rate_within_the_slew(readings):
    clock = HybridClock()
    clock.physical_ms(Now(START, 0))
    mono_ms = 0
    for elapsed_ms, step_ms in readings:
        before = clock.physical_ms(Now(START, mono_ms))
        mono_ms += elapsed_ms
        passed_ms = clock.physical_ms(Now(START + mono_ms + step_ms, mono_ms)) - before
        slack_ms = elapsed_ms * SLEW_PPM_MAX // 1_000_000 + 1
        assert max(0, elapsed_ms - slack_ms) <= passed_ms <= elapsed_ms + slack_ms


PAPERS = Path(__file__).resolve().parents[2] / "notebooks" / "data" / "papers.csv"
SETUPS = [(8, 50, 5), (5, 200, 50), (10, 1_000, 10)]


@pytest.mark.parametrize("nodes, epsilon_ms, spacing_ms", SETUPS)
def test_the_bounds_of_the_paper_hold(nodes, epsilon_ms, spacing_ms):
    """In its words: l - pt <= epsilon always; c <= epsilon / d + 1 when events and messages are at least d apart."""
    ahead_ms, counter = largest(nodes, epsilon_ms, spacing_ms)
    assert 0 < ahead_ms <= epsilon_ms
    assert 0 < counter <= epsilon_ms // spacing_ms + 1


def test_the_notebooks_data_says_what_the_clocks_do():
    with PAPERS.open(newline="") as file:
        told = {(row["setup"], row["quantity"]): row["measured"] for row in csv.DictReader(file)}
    for nodes, epsilon_ms, spacing_ms in SETUPS:
        setup = f"{nodes} nodes, epsilon {epsilon_ms} ms, spacing {spacing_ms} ms"
        ahead_ms, counter = largest(nodes, epsilon_ms, spacing_ms)
        assert told[setup, "largest l - pt in ms"] == str(ahead_ms)
        assert told[setup, "largest counter"] == str(counter)


def largest(nodes, epsilon_ms, spacing_ms):
    """How far a stamp ever is ahead of its node's time, and the largest counter.

    Clocks differ by up to epsilon, every event sends to the next node, messages take d or more.
    """
    clocks = [HybridClock(max_skew_ms=epsilon_ms) for _ in range(nodes)]
    offsets = [epsilon_ms * n // (nodes - 1) for n in range(nodes)]
    queue: list[tuple[int, int, int, int]] = []
    for node in range(nodes):
        heappush(queue, (spacing_ms * (1 + node % 3), 0, node, 0))
    causes: dict[int, int] = {}
    highest_c = highest_ahead_ms = 0
    sequence = 0
    while sequence < 4_000:
        true_ms, _, node, seen = heappop(queue)
        now = Now(START + true_ms + offsets[node], true_ms)
        clock = clocks[node]
        if seen:
            clock.observe(seen, now)  # never refused: all clocks are within epsilon
        stamp = clock.tick(now)
        assert stamp > max(seen, causes.get(node, 0))
        causes[node] = stamp
        highest_c = max(highest_c, stamp_counter(stamp))
        highest_ahead_ms = max(highest_ahead_ms, stamp_ms(stamp) - clock.physical_ms(now))
        sequence += 1
        if seen == 0:
            heappush(queue, (true_ms + spacing_ms * nodes, sequence, node, 0))
            target = (node + 1 + sequence % (nodes - 1)) % nodes
            heappush(queue, (true_ms + spacing_ms * (1 + sequence % 3), sequence, target, stamp))
    return highest_ahead_ms, highest_c


def test_one_fast_clock_cannot_drag_the_others():
    """A stamp is followed by at most the limit, however often; so the cluster stays within it of its own time."""
    clock = HybridClock()
    for n in range(1_000):
        now = Now(START + n, n)
        ahead = make_stamp(clock.physical_ms(now) + MAX_SKEW_MS)
        clock.observe(ahead, now)
        assert stamp_ms(clock.tick(now)) <= START + n + MAX_SKEW_MS
