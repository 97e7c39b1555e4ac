from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from crdtsync import lifecycle
from crdtsync.errors import IllegalTransitionError
from crdtsync.events import (
    CancelRequested,
    Claimed,
    EffectRecorded,
    Ended,
    Expired,
    Offered,
    Requeued,
    TermOpened,
    Withdrawn,
)
from crdtsync.lifecycle import TRANSITIONS, Action, TaskState
from crdtsync.task_view import TaskView
from tests.properties.story import Story
from tests.properties.task_model import Explorer, World, explore

WORLDS = [
    World("all", frozenset({"cancel", "requeue", "reject", "lose", "late-effect", "expire"}), attempts=1, events=4),
    World("offers", frozenset({"offer", "cancel", "expire"}), partition="wait", cancel="wins", events=4),
    World("two payloads", frozenset({"cancel"}), payloads=(b"p", b"q"), events=4),
]
ENDS = {"ok": Action.SUCCEED, "failed": Action.FAIL, "lost": Action.LOSE}
ACTIONS: dict[type[Any], Action] = {
    Claimed: Action.CLAIM,
    EffectRecorded: Action.EFFECT,
    CancelRequested: Action.CANCEL,
    Expired: Action.EXPIRE,
    Requeued: Action.REQUEUE,
    Offered: Action.OFFER,
    Withdrawn: Action.WITHDRAW,
}


def action_of(event: Any, view: TaskView, region: str) -> Action:
    if type(event) is Ended:
        return ENDS[event.outcome]
    if type(event) is TermOpened:
        if event.offer is None:
            return Action.OPEN_TERM
        return Action.RESUME if view.owner == region else Action.ACCEPT
    return ACTIONS[type(event)]


def steps_of(world: World) -> list[tuple[TaskState, Action, TaskState]]:
    """Every act of every small history: state before, act, state after, in the view of the actor."""
    seen: set[tuple[TaskState, Action, TaskState]] = set()
    steps = Explorer.steps

    def noted(self: Explorer, state: Any) -> Any:
        for told, after in steps(self, state):
            for region in range(world.regions):
                if len(after.logs[region]) > len(state.logs[region]):
                    _, view = self.facts(self.seen(state, region))
                    _, then = self.facts(self.seen(after, region))
                    event = self.ids[after.logs[region][-1]][1]
                    action = action_of(event, view, task_model_name(region))
                    seen.add((view.state, action, then.state))
            yield told, after

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Explorer, "steps", noted)
        explore(world)
    return sorted(seen)


def task_model_name(region: int) -> str:
    return ("eu", "us", "ap")[region]


def test_no_state_is_forgotten_and_every_act_is_legal_somewhere() -> None:
    assert set(TRANSITIONS) == set(TaskState)
    assert {action for acts in TRANSITIONS.values() for action in acts} == set(Action)


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_every_legal_act_leads_where_the_table_says(world: World) -> None:
    steps = steps_of(world)
    assert len(steps) > 10
    for before, action, after in steps:
        assert after in TRANSITIONS[before][action], f"{action} led from {before} to {after}"


def examples() -> dict[TaskState, Story]:
    """A task in each state, with an attempt of `eu` that is open where one can be."""
    stories = {state: Story() for state in TaskState}
    for state, story in stories.items():
        story.submit(attempts=1, deadline_ms=1)
        claim = None if state in (TaskState.WAITING, TaskState.EXPIRED) else story.claim()
        match state:
            case TaskState.CANCELLING | TaskState.CANCELLED:
                story.cancel()
            case TaskState.SUCCEEDED:
                story.term("us", 1)
                story.end(story.claim("us"))
            case TaskState.EXPIRED:
                story.expire()
        if claim is not None and state is TaskState.DEAD:
            story.fail(claim)
        if claim is not None and state is TaskState.CANCELLED:
            story.end(claim, "lost", reason="stopped")
    return stories


@pytest.mark.parametrize("state, action", list(product(TaskState, Action)))
def test_every_act_in_every_state_is_legal_or_refused(state: TaskState, action: Action) -> None:
    view = examples()[state].view
    assert view.state is state
    attempt = view.attempts[0].id if view.attempts else None
    for region in ("eu", "us"):
        reason = lifecycle.refusal(view, action, region, attempt=attempt)
        assert lifecycle.allowed(view, action, region, attempt=attempt) == (reason is None)
        if reason is None:
            assert action in TRANSITIONS[state]
            lifecycle.check(view, action, region, attempt=attempt)
        else:
            with pytest.raises(IllegalTransitionError) as refused:
                lifecycle.check(view, action, region, attempt=attempt)
            assert reason in str(refused.value)
            assert refused.value.facts["state"] == state
    if action not in TRANSITIONS[state]:
        assert not lifecycle.allowed(view, action, "eu", attempt=attempt)


def test_nothing_is_legal_without_a_submission() -> None:
    view = Story().view
    assert not any(lifecycle.allowed(view, action, "eu") for action in Action)


def test_only_the_owner_claims() -> None:
    story = Story()
    story.submit("eu")
    assert lifecycle.may_claim(story.view, "eu")
    assert not lifecycle.may_claim(story.view, "us")


def test_a_region_runs_one_attempt_of_a_task_at_a_time() -> None:
    story = Story()
    story.submit("eu")
    story.claim("eu")
    assert not lifecycle.may_claim(story.view, "eu")


def test_after_a_takeover_the_attempt_of_the_cut_off_owner_does_not_hinder() -> None:
    story = Story()
    story.submit("eu")
    story.claim("eu")
    story.term("us", 1)
    assert story.view.state is TaskState.RUNNING
    assert lifecycle.may_claim(story.view, "us")
    assert not lifecycle.may_claim(story.view, "us", present={"eu"})
    assert lifecycle.stop_reason(story.view, "eu") == "lost ownership"


def test_nothing_new_is_claimed_after_a_cancel_an_expiry_or_a_death() -> None:
    for end in (Story.cancel, Story.expire):
        story = Story()
        story.submit("eu", deadline_ms=1)
        story.claim("eu")
        end(story, "us")
        story.term("us", 1)
        assert story.view.state in (TaskState.RUNNING, TaskState.CANCELLING)
        assert not lifecycle.may_claim(story.view, "us")
    story = Story()
    story.submit("eu", attempts=1)
    story.claim("eu")
    story.term("us", 1)
    story.fail(story.claim("us"))
    assert story.view.state is TaskState.RUNNING
    assert not lifecycle.may_claim(story.view, "us")
    assert not lifecycle.may_open_term(story.view, "eu")


def test_an_attempt_is_ended_once_and_by_its_own_region() -> None:
    story = Story()
    story.submit("eu")
    claim = story.claim("eu")
    assert lifecycle.allowed(story.view, Action.SUCCEED, "eu", attempt=claim)
    assert not lifecycle.allowed(story.view, Action.SUCCEED, "us", attempt=claim)
    story.term("us", 1)
    story.claim("us")
    story.end(claim, "lost", reason="crash")
    assert not lifecycle.allowed(story.view, Action.SUCCEED, "eu", attempt=claim)
    assert lifecycle.allowed(story.view, Action.EFFECT, "eu", attempt=claim)
    assert not lifecycle.allowed(story.view, Action.CHECKPOINT, "eu", attempt=claim)


def test_a_task_without_a_deadline_does_not_expire() -> None:
    story = Story()
    story.submit("eu")
    assert not lifecycle.may_expire(story.view, "eu")
    story = Story()
    story.submit("eu", deadline_ms=1)
    assert lifecycle.may_expire(story.view, "eu")
    assert not lifecycle.may_expire(story.view, "us")


def test_wait_is_never_taken_over() -> None:
    story = Story()
    story.submit("eu", partition="wait")
    assert not lifecycle.may_open_term(story.view, "us")
    story = Story()
    story.submit("eu")
    assert lifecycle.may_open_term(story.view, "us")
    assert not lifecycle.may_open_term(story.view, "eu")


def test_what_is_offered_is_started_by_nobody_until_its_receiver_answers() -> None:
    story = Story()
    story.submit("eu")
    offer = story.offer("eu", "us")
    assert not lifecycle.may_claim(story.view, "eu")
    assert lifecycle.may_accept(story.view, "us")
    assert not lifecycle.may_accept(story.view, "ap")
    story.term("us", 1, offer)
    assert lifecycle.may_claim(story.view, "us")
    assert not lifecycle.may_claim(story.view, "eu")


def test_an_offer_taken_back_frees_a_takeover_task_at_once_and_a_wait_task_by_a_new_term() -> None:
    story = Story()
    story.submit("eu")
    story.withdraw(story.offer("eu", "us"))
    assert lifecycle.may_claim(story.view, "eu")
    assert not lifecycle.may_resume(story.view, "eu")

    story = Story()
    story.submit("eu", partition="wait")
    offer = story.offer("eu", "us")
    story.withdraw(offer)
    assert not lifecycle.may_claim(story.view, "eu")
    assert not lifecycle.allowed(story.view, Action.OFFER, "eu")
    assert not lifecycle.may_accept(story.view)
    assert lifecycle.may_resume(story.view, "eu")
    assert not lifecycle.may_resume(story.view, "us")
    assert story.view.returning is not None
    story.term("eu", 1, story.view.returning.offer)
    assert lifecycle.may_claim(story.view, "eu")
    assert not lifecycle.may_resume(story.view, "eu")


def test_under_wait_the_owner_answers_a_cancel_from_elsewhere() -> None:
    story = Story()
    story.submit("eu", partition="wait")
    story.cancel("us")
    assert story.view.state is TaskState.WAITING
    assert lifecycle.must_answer_cancel(story.view, "eu")
    assert not lifecycle.must_answer_cancel(story.view, "us")
    assert not lifecycle.may_claim(story.view, "eu")
    story.cancel("eu")
    assert story.view.state is TaskState.CANCELLED
    assert not lifecycle.must_answer_cancel(story.view, "eu")


def test_late_means_that_an_outcome_was_seen() -> None:
    story = Story()
    story.submit("eu")
    claim = story.claim("eu")
    assert not lifecycle.outcome_known(story.view)
    story.cancel("eu")
    assert not lifecycle.outcome_known(story.view), "a losing cancel is no outcome"
    story.end(claim)
    assert lifecycle.outcome_known(story.view)
    story = Story()
    story.submit("eu", cancel="wins")
    story.cancel("eu")
    assert lifecycle.outcome_known(story.view)


def test_handlers_are_told_why_they_should_stop() -> None:
    story = Story()
    story.submit("eu", deadline_ms=1)
    story.claim("eu")
    assert lifecycle.stop_reason(story.view, "eu") == ""
    story.expire("eu")
    assert lifecycle.stop_reason(story.view, "eu") == "expired"
    story.cancel("us")
    assert lifecycle.stop_reason(story.view, "eu") == "cancelled"
    story.term("us", 1)
    story.end(story.claim("us"))
    assert lifecycle.stop_reason(story.view, "eu") == "superseded"
