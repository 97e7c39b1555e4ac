from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from crdtsync.identifiers import TaskId
from crdtsync.reliability import backoff_ms, jittered_ms, next_attempt_at_ms
from tests.properties.story import OPTIONS, START_MS, TASK, Story


def test_the_delay_doubles_up_to_its_cap() -> None:
    delays = [backoff_ms(OPTIONS, streak) for streak in range(9)]
    assert delays == [0, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000]


def test_no_base_means_no_delay() -> None:
    assert backoff_ms(OPTIONS._replace(backoff_ms_base=0), 5) == 0


def test_a_factor_below_one_keeps_the_delay() -> None:
    assert backoff_ms(OPTIONS._replace(backoff_factor_permille=500), 7) == 1_000


@given(st.integers(0, 10_000), st.integers(0, 10**7), st.integers(0, 10**7), st.integers(0, 10_000))
def test_the_delay_never_exceeds_its_cap_and_never_falls(streak: int, base: int, cap: int, factor: int) -> None:
    options = OPTIONS._replace(backoff_ms_base=base, backoff_ms_max=cap, backoff_factor_permille=factor)
    delay = backoff_ms(options, streak)
    assert 0 <= delay <= (cap or delay)
    assert delay <= backoff_ms(options, streak + 1)


@given(st.binary(min_size=16, max_size=16), st.integers(1, 100), st.integers(0, 10**6))
def test_jitter_takes_away_at_most_half(task: bytes, attempts: int, delay: int) -> None:
    assert delay // 2 <= jittered_ms(TaskId(task), attempts, delay) <= delay


def test_jitter_spreads_tasks_that_failed_together() -> None:
    delays = {jittered_ms(TaskId(number.to_bytes(16, "big")), 1, 60_000) for number in range(500)}
    assert len(delays) > 450
    assert max(delays) - min(delays) > 29_000


def test_the_next_attempt_counts_from_the_last_failure() -> None:
    story = Story()
    story.submit()
    assert next_attempt_at_ms(story.view) == 0
    failed = story.fail(story.claim())
    ended_ms = failed.stamp >> 16
    assert ended_ms == START_MS + 3_000
    assert next_attempt_at_ms(story.view) == ended_ms + jittered_ms(TASK, 1, 1_000)


def test_a_start_time_still_holds_after_a_failure() -> None:
    story = Story()
    story.submit(not_before_ms=START_MS + 10**9)
    story.fail(story.claim())
    assert next_attempt_at_ms(story.view) == START_MS + 10**9


def test_a_drained_attempt_is_tried_again_at_once_and_a_crashed_one_is_not() -> None:
    story = Story()
    story.submit()
    story.end(story.claim(), "lost", reason="drain")
    assert next_attempt_at_ms(story.view) == 0
    story.end(story.claim(), "lost", reason="crash")
    assert next_attempt_at_ms(story.view) > START_MS


def test_a_requeue_starts_anew() -> None:
    story = Story()
    story.submit(attempts=1)
    story.fail(story.claim())
    story.requeue()
    assert next_attempt_at_ms(story.view) == 0


def test_facts_without_a_submission_have_no_delay() -> None:
    assert next_attempt_at_ms(Story().view) == 0
