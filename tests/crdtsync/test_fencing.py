"""What a fencing token does to facts: the newest one decides, older ones are evidence."""

from __future__ import annotations

from typing import Any

import pytest

from crdtsync import lifecycle
from crdtsync.coordination.exclusive import policy_of, scope_of
from crdtsync.errors import InvalidRequestError
from crdtsync.explain import explain
from crdtsync.identifiers import EventId
from crdtsync.lifecycle import Action
from crdtsync.task_view import AttemptState, TaskState
from crdtsync.undoing import effect_key, effect_root, is_decided, is_settled, newest_checkpoint, undo
from tests.properties.story import OPTIONS, TASK, Story

QUORUM = OPTIONS._replace(partition="quorum")


def story() -> Story:
    told = Story()
    told.submit("eu", options=QUORUM)
    return told


def everywhere(_: EventId) -> bool:
    return True


def test_a_claim_under_a_newer_token_fences_a_success_it_had_not_seen() -> None:
    told = story()
    old = told.claim("eu", token=5)
    new = told.claim("us", token=6)
    told.end(old)
    assert told.view.state is TaskState.RUNNING, "what was fenced decides nothing"
    told.end(new)
    assert told.view.winner == new
    first = told.view.attempt(old)
    assert first is not None
    assert (first.state, first.fenced) == (AttemptState.OK, True)
    assert [conflict.kind for conflict in told.view.conflicts] == ["fenced_completion"]
    assert "fenced" in explain(TASK, told.facts, told.view)


def test_a_success_under_the_newest_token_counts_though_others_claimed_before() -> None:
    told = story()
    old = told.claim("us", token=4)
    told.end(old, outcome="lost", reason="lost lease")
    new = told.claim("eu", token=5, continues=old)
    told.end(new)
    assert told.view.winner == new
    assert told.view.lost == 1, "a lost lease counts as a loss"
    assert not told.view.conflicts


def test_whoever_holds_a_lease_claims_be_it_the_owner_or_not() -> None:
    told = story()
    view = told.view
    assert lifecycle.refusal(view, Action.CLAIM, "eu") == "it needs a lease from a majority of the regions"
    assert lifecycle.may_claim(view, "us", token=3)
    told.claim("us", token=3)
    assert lifecycle.refusal(told.view, Action.CLAIM, "us", token=3) == "attempt 1 is still running here"
    assert not lifecycle.may_claim(told.view, "eu", token=2), "an older token than one already used"
    assert lifecycle.may_claim(told.view, "eu", token=4), "what runs under an older token hinders nobody"


def test_a_quorum_task_is_neither_offered_nor_taken_over() -> None:
    view = story().view
    assert lifecycle.refusal(view, Action.OFFER, "eu") == "whoever holds its lease runs it"
    assert lifecycle.refusal(view, Action.OPEN_TERM, "us") == "its policy is quorum"


def test_all_attempts_of_a_quorum_task_meet_a_sink_under_one_key() -> None:
    told = story()
    eu = told.claim("eu", token=5)
    us = told.claim("us", token=6)  # it had not even heard of the other
    assert effect_root(told.facts, eu) == effect_root(told.facts, us)
    roots = {attempt.root for attempt in told.view.attempts}
    assert roots == {effect_root(told.facts, eu)}
    assert effect_key(TASK, next(iter(roots)), "charge") != effect_key(TASK, next(iter(roots)), "mail")


def test_attempts_on_other_inputs_have_other_keys() -> None:
    told = story()
    parent = EventId(1, told.facts.submissions[0][0].writer, 1, 0)
    one = told.claim("eu", token=5, inputs=((TASK, parent),))
    two = told.claim("us", token=6, inputs=((TASK, parent._replace(number=2)),))
    assert effect_root(told.facts, one) != effect_root(told.facts, two)


def test_a_fenced_effect_that_the_winner_did_as_well_stands() -> None:
    told = story()
    old = told.claim("eu", token=5)
    told.effect(old, "charge")
    new = told.claim("us", token=6)
    told.effect(new, "charge")
    told.effect(old, "mail")
    told.end(old, outcome="lost")
    told.end(new)
    due = undo(told.facts, told.view, settled=True, decided=True)
    assert [(one.attempt, one.effects[0][0]) for one in due] == [(old, "mail")]


def test_nothing_is_undone_before_every_record_is_known() -> None:
    """Two regions that share keys would each undo one effect that the sink did once (found by the model)."""
    told = Story()
    told.submit("eu", options=QUORUM._replace(cancel="wins"))
    attempt = told.claim("eu", token=5)
    told.effect(attempt, "charge")
    told.end(attempt, outcome="failed")
    told.cancel("us")
    assert told.view.state is TaskState.CANCELLED
    assert not is_settled(told.facts, told.view, lambda id: id.region == "eu")
    assert is_decided(told.facts, told.view, lambda _: False), "that it is cancelled is final all the same"
    assert not undo(told.facts, told.view, settled=False, decided=True)
    assert is_settled(told.facts, told.view, everywhere)
    assert undo(told.facts, told.view, settled=True, decided=True)


def test_a_checkpoint_saved_behind_the_fence_does_not_count() -> None:
    told = story()
    old = told.claim("eu", token=5)
    told.checkpoint(old, 1, b"seen")
    new = told.claim("us", token=6, continues=old)
    found = newest_checkpoint(told.facts, new)
    assert found is not None
    assert found.data == b"seen"
    told.checkpoint(old, 2, b"behind the fence")
    newest = newest_checkpoint(told.facts, new)
    assert newest is None or newest.data == b"seen"


@pytest.mark.parametrize(
    "changes, scope",
    [
        ({}, "queue:mail"),
        ({"key": "A17"}, "key:default/pay/A17"),
        ({"options": QUORUM._replace(partition="quorum:task")}, f"task:{TASK.hex()}"),
        ({"options": QUORUM._replace(partition="quorum:task"), "key": "A17"}, "key:default/pay/A17"),
    ],
)
def test_what_shares_a_lease(changes: dict[str, Any], scope: str) -> None:
    told = Story()
    told.submit("eu", **{"options": QUORUM, "queue": "mail", "name": "pay", **changes})
    submitted = told.view.submitted
    assert submitted is not None
    assert scope_of(submitted, "default") == scope


@pytest.mark.parametrize(
    "partition, scope, keyed, policy",
    [
        ("takeover", None, False, "takeover"),
        ("quorum", None, False, "quorum"),
        ("quorum", "queue", False, "quorum"),
        ("quorum", "key", True, "quorum"),
        ("quorum", None, True, "quorum"),
        ("quorum", "task", False, "quorum:task"),
        ("quorum:task", "queue", False, "quorum"),
        ("quorum:task", None, False, "quorum:task"),
        ("wait", "task", False, None),
        ("quorum", "key", False, None),
        ("quorum", "task", True, None),
        ("quorum", "world", False, None),
    ],
)
def test_a_scope_that_does_not_fit_is_refused(
    partition: str, scope: str | None, keyed: bool, policy: str | None
) -> None:
    if policy is None:
        with pytest.raises(InvalidRequestError, match="scope"):
            policy_of(partition, scope, keyed=keyed)
    else:
        assert policy_of(partition, scope, keyed=keyed) == policy
