from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtsync.events import Ended
from crdtsync.history import Facts
from crdtsync.identifiers import EventId
from crdtsync.resolve import resolve, view_hash
from crdtsync.task_view import AttemptState, TaskState
from tests.properties.story import TASK, Story


def test_facts_without_a_submission_wait_for_one() -> None:
    view = resolve(Facts())
    assert view.state is TaskState.WAITING
    assert view.submitted is None
    assert view.owner == ""


def test_the_common_task() -> None:
    story = Story()
    submission = story.submit("eu")
    assert story.view.state is TaskState.WAITING
    claim = story.claim("eu")
    assert story.view.state is TaskState.RUNNING
    assert story.view.open_attempts == (claim,)
    end = story.end(claim, value="ch-1")
    view = story.view
    assert (view.state, view.winner, view.submission) == (TaskState.SUCCEEDED, claim, submission)
    assert view.result == b"\x64ch-1"
    assert view.attempts[0].end == end
    assert view.attempts[0].number == 1
    assert view.conflicts == ()


def test_the_earliest_claim_wins_though_it_ends_last() -> None:
    story = Story()
    story.submit("eu")
    first = story.claim("eu")
    story.term("us", 1)
    second = story.claim("us")
    story.end(second)
    assert story.view.winner == second
    story.end(first)
    assert story.view.winner == first


def test_a_late_success_never_wins() -> None:
    story = Story()
    story.submit("eu")
    first = story.claim("eu")
    story.term("us", 1)
    second = story.claim("us")
    story.end(second)
    story.end(first, late=True)
    assert story.view.winner == second


def test_a_winning_cancel_beats_every_success_and_a_losing_one_none() -> None:
    for policy, state in (("wins", TaskState.CANCELLED), ("loses", TaskState.SUCCEEDED)):
        story = Story()
        story.submit("eu", cancel=policy)
        claim = story.claim("eu")
        story.cancel("us")
        assert story.view.state is (TaskState.CANCELLED if policy == "wins" else TaskState.CANCELLING)
        story.end(claim)
        assert story.view.state is state


def test_a_late_cancel_changes_nothing() -> None:
    story = Story()
    story.submit("eu", cancel="wins")
    story.end(story.claim("eu"))
    story.cancel("eu", late=True)
    assert story.view.state is TaskState.SUCCEEDED
    assert story.view.cancel is None


def test_a_losing_cancel_is_kept_back_by_an_open_attempt_and_beats_death_and_expiry() -> None:
    story = Story()
    story.submit("eu", attempts=1)
    claim = story.claim("eu")
    story.cancel("eu")
    story.expire("eu")
    assert story.view.state is TaskState.CANCELLING
    story.fail(claim)
    assert story.view.state is TaskState.CANCELLED


def test_a_success_beats_an_expiry() -> None:
    story = Story()
    story.submit("eu", deadline_ms=1)
    claim = story.claim("eu")
    story.expire("eu")
    assert story.view.state is TaskState.RUNNING
    story.end(claim)
    assert story.view.state is TaskState.SUCCEEDED


def test_an_expiry_counts_once_nothing_runs() -> None:
    story = Story()
    story.submit("eu", deadline_ms=1)
    claim = story.claim("eu")
    story.expire("eu")
    story.fail(claim)
    assert story.view.state is TaskState.EXPIRED


def test_failures_of_both_sides_add_up() -> None:
    story = Story()
    story.submit("eu", attempts=3)
    story.fail(story.claim("eu"))
    story.fail(story.claim("eu"))
    assert story.view.state is TaskState.WAITING
    story.term("us", 1)
    story.fail(story.claim("us"))
    view = story.view
    assert (view.state, view.failures, view.granted, view.deaths) == (TaskState.DEAD, 3, 3, 1)
    assert view.exhausted


def test_an_error_that_is_not_tried_again_uses_up_the_grant() -> None:
    story = Story()
    story.submit("eu", attempts=3)
    story.fail(story.claim("eu"), retryable=False)
    assert story.view.state is TaskState.DEAD
    assert story.view.failures == 1
    story.requeue(1)
    assert story.view.state is TaskState.WAITING
    story.fail(story.claim("eu"))
    assert story.view.state is TaskState.WAITING, "the whole grant is there again"


def test_losses_count_apart_from_failures_and_drains_not_at_all() -> None:
    story = Story()
    story.submit("eu", attempts=1, lost_max=2)
    for reason in ("drain", "stopped", "drain", "crash", "restart"):
        story.end(story.claim("eu"), "lost", reason=reason)
    assert story.view.state is TaskState.WAITING
    assert (story.view.failures, story.view.lost) == (0, 2)
    story.end(story.claim("eu"), "lost", reason="crash")
    assert story.view.state is TaskState.DEAD
    story.requeue(1)
    assert story.view.state is TaskState.WAITING


def test_an_open_attempt_keeps_a_task_from_being_dead() -> None:
    story = Story()
    story.submit("eu", attempts=1)
    story.claim("eu")
    story.term("us", 1)
    story.fail(story.claim("us"))
    assert story.view.state is TaskState.RUNNING
    assert story.view.exhausted


def test_two_requeues_of_one_death_are_one() -> None:
    story = Story()
    story.submit("eu", attempts=1)
    story.fail(story.claim("eu"))
    assert story.view.unanswered == (1,)
    story.requeue(1, "eu")
    story.requeue(1, "us")
    assert story.view.granted == 2
    story.fail(story.claim("eu"))
    assert story.view.state is TaskState.DEAD
    assert story.view.unanswered == (2,)


def test_deaths_on_both_sides_are_answered_one_by_one() -> None:
    story = Story()
    story.submit("eu", attempts=1)
    story.fail(story.claim("eu"))
    story.term("us", 1)
    story.fail(story.claim("us"))
    assert story.view.unanswered == (1, 2)
    story.requeue(1)
    assert story.view.state is TaskState.DEAD
    story.requeue(2)
    assert story.view.state is TaskState.WAITING


def test_the_highest_term_owns_and_within_a_term_the_smallest_stamp() -> None:
    story = Story()
    story.submit("eu")
    assert (story.view.owner, story.view.term) == ("eu", 0)
    first = story.term("us", 1)
    story.term("ap", 1)
    assert (story.view.owner, story.view.term, story.view.term_id) == ("us", 1, first)
    story.term("eu", 2)
    assert (story.view.owner, story.view.term) == ("eu", 2)


def test_the_earliest_submission_counts() -> None:
    story = Story()
    first = story.submit("eu", payload=[[1], {}])
    story.submit("us", payload=[[2], {}])
    assert story.view.submission == first
    assert story.view.owner == "eu"


def test_attempts_of_another_payload_never_count() -> None:
    story = Story()
    story.submit("eu", payload=[[1], {}])
    other = story.submit("us", payload=[[2], {}])
    story.end(story.claim("us", submission=other))
    assert story.view.state is TaskState.WAITING
    assert not story.view.attempts[0].counts


def test_the_same_payload_submitted_twice_is_one_task() -> None:
    """A client that repeats its submission to another region gets one outcome, whichever region ran it."""
    story = Story()
    story.submit("eu")
    again = story.submit("us")
    claim = story.claim("us", submission=again)
    story.end(claim)
    assert story.view.winner == claim


def test_a_cancel_that_won_once_wins_whatever_submission_arrives_later() -> None:
    story = Story()
    story.second = 10
    story.submit("us", cancel="wins")
    story.cancel("us")
    assert story.view.is_cancelled_for_good
    story.second = 0
    story.submit("eu", cancel="loses")
    assert story.view.is_cancelled_for_good


def test_of_several_ends_a_success_counts_then_the_smaller_stamp() -> None:
    story = Story()
    story.submit("eu")
    claim = story.claim("eu")
    lost = story.end(claim, "lost", reason="restart")
    assert story.view.attempts[0].end == lost
    story.fail(claim)
    assert story.view.attempts[0].state is AttemptState.LOST
    ok = story.end(claim, value="ch-1")
    assert story.view.attempts[0].end == ok
    story.facts.add(EventId(claim.stamp + 1, claim.writer, 99, 0), Ended(TASK, claim, "ok", True, True, "", b""))
    assert story.view.attempts[0].end == ok, "a late success does not displace one that is not"


def test_edits_are_ordered_by_stamp() -> None:
    story = Story()
    story.submit("eu", labels=(("team", "a"), ("zone", "z")))
    first = story.priority(7, "eu")
    story.priority(2, "us", saw=first)
    story.label("team", "b")
    story.label("env", "prod")
    story.label("zone", "")
    assert story.view.priority == 2
    assert story.view.labels == (("env", "prod"), ("team", "b"))


def test_the_newest_offer_of_the_current_term_stands() -> None:
    story = Story()
    story.submit("eu")
    story.offer("eu", "us")
    second = story.offer("eu", "ap")
    assert story.view.offer is not None
    assert (story.view.offer.id, story.view.offer.region) == (second, "ap")
    story.withdraw(second)
    assert story.view.offer is None
    third = story.offer("eu", "us")
    story.term("us", 1, third)
    assert story.view.offer is None
    story.offer("eu", "ap", term=1)
    assert story.view.offer is None, "only the owner offers"


def test_a_retry_shares_its_roots_effect_keys_and_a_run_beside_it_does_not() -> None:
    story = Story()
    story.submit("eu")
    first = story.claim("eu")
    story.term("us", 1)
    beside = story.claim("us", continues=first)
    story.fail(first)
    retry = story.claim("eu", continues=first)
    again = story.claim("eu", continues=retry, continues_ended=True)
    roots = {attempt.id: attempt.root for attempt in story.view.attempts}
    assert roots == {first: first, beside: beside, retry: first, again: first}


@pytest.mark.parametrize("region", ["eu", "us"])
def test_under_wait_only_the_owners_cancel_is_final(region: str) -> None:
    story = Story()
    story.submit("eu", partition="wait", cancel="wins")
    request = story.cancel(region)
    assert (story.view.state is TaskState.CANCELLED) == (region == "eu")
    assert story.view.asked == (None if region == "eu" else request)


def test_under_wait_a_cancel_during_a_handover_is_a_request() -> None:
    story = Story()
    story.submit("eu", partition="wait", cancel="wins")
    offer = story.offer("eu", "us")
    story.cancel("eu")
    assert story.view.state is TaskState.WAITING
    story.term("us", 1, offer)
    assert story.view.asked is not None
    story.cancel("us")
    assert story.view.state is TaskState.CANCELLED


def test_the_hash_is_the_views_and_the_tasks() -> None:
    story = Story()
    story.submit("eu")
    one = view_hash(TASK, story.view)
    assert len(one) == 16
    assert one == view_hash(TASK, resolve(Facts.from_row(story.facts.to_row())))
    assert one != view_hash(type(TASK)(bytes(16)), story.view)
    story.claim("eu")
    assert one != view_hash(TASK, story.view)


@given(st.lists(st.sampled_from("RNL"), max_size=12), st.integers(0, 12), st.sampled_from("RNL"))
def test_deaths_never_become_fewer_by_another_fact(ends: list[str], at: int, more: str) -> None:
    """Else a requeue that answered death 2 would lose its meaning when an older failure arrives."""

    def deaths(ends: list[str]) -> int:
        story = Story()
        story.submit(attempts=3, lost_max=1)
        for end in ends:
            claim = story.claim()
            if end == "L":
                story.end(claim, "lost", reason="crash")
            else:
                story.fail(claim, retryable=end == "R")
        return story.view.deaths

    assert deaths(ends) <= deaths([*ends[:at], more, *ends[at:]]) <= deaths(ends) + 1
