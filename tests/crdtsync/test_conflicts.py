from __future__ import annotations

import string

import pytest

from crdtsync.conflicts import (
    RESOLUTIONS,
    ConflictKind,
    continuation,
    effect_key,
    effect_root,
    inherited_effects,
    is_decided,
    is_settled,
    log_conflict,
    lost_inputs,
    newest_checkpoint,
    own_effects,
    relied_on,
    undo,
)
from crdtsync.identifiers import EventId, TaskId, compensation_id
from crdtsync.task_view import Conflict, TaskState
from crdtsync.undoing import Undo, first_records, standing_keys
from tests.properties.story import TASK, Story

PARENT = TaskId(b"p" * 16)


def everything(_: EventId) -> bool:
    return True


def nothing(_: EventId) -> bool:
    return False


def found(story: Story, kind: ConflictKind) -> Conflict:
    [conflict] = [conflict for conflict in story.view.conflicts if conflict.kind == kind]
    return conflict


def kinds(story: Story) -> set[str]:
    return {conflict.kind for conflict in story.view.conflicts}


def twice(**changes: object) -> tuple[Story, EventId, EventId]:
    """A task of `eu` that `us` took over while eu's attempt was open."""
    story = Story()
    story.submit("eu", **changes)
    first = story.claim("eu")
    story.term("us", 1)
    return story, first, story.claim("us", continues=first)


# The table -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ConflictKind)
def test_every_kind_has_a_rule_and_an_explanation_that_can_be_filled_in(kind: ConflictKind) -> None:
    resolution = RESOLUTIONS[kind]
    assert resolution.rule
    assert resolution.winner
    names = {name for _, name, _, _ in string.Formatter().parse(resolution.explanation) if name}
    assert names <= {"winner", "losers"}
    conflict = log_conflict(TASK, kind, "one", ["other"], by="x")
    assert len(conflict.id) == 16
    assert conflict.rule == resolution.rule
    assert "{" not in conflict.detail


def test_rules_have_one_name_each() -> None:
    assert len({resolution.rule for resolution in RESOLUTIONS.values()}) == len(RESOLUTIONS)


def test_the_id_tells_task_kind_and_occasion_apart() -> None:
    some = {
        log_conflict(task, kind, "", [], by).id
        for task in (TASK, PARENT)
        for kind in (ConflictKind.DOUBLE_RUN, ConflictKind.TWO_TAKEOVERS)
        for by in ("1", "2")
    }
    assert len(some) == 8


# One test for each kind that facts show --------------------------------------------------------------


def test_a_task_that_ran_once_has_no_conflict() -> None:
    story = Story()
    story.submit()
    failed = story.claim()
    story.fail(failed)
    story.end(story.claim(continues=failed))
    assert story.view.conflicts == ()


def test_double_success() -> None:
    story, first, second = twice()
    story.end(second)
    before = kinds(story)
    story.end(first)
    conflict = found(story, ConflictKind.DOUBLE_SUCCESS)
    assert before == set()
    assert conflict.winner == "attempt 1 in eu"
    assert conflict.losers == ("attempt 2 in us",)
    assert conflict.attempts == (second,)
    assert conflict.rule == "earliest-claim"


@pytest.mark.parametrize("policy", ["wins", "loses"])
def test_success_against_cancel(policy: str) -> None:
    story = Story()
    story.submit(cancel=policy)
    claim = story.claim()
    story.cancel("us")
    story.end(claim)
    conflict = found(story, ConflictKind.SUCCESS_AGAINST_CANCEL)
    sides = ("the cancel by us", "attempt 1 in eu")
    assert (conflict.winner, *conflict.losers) == (sides if policy == "wins" else sides[::-1])
    assert conflict.attempts == ((claim,) if policy == "wins" else ())


def test_success_against_expiry() -> None:
    story = Story()
    story.submit(deadline_ms=1)
    claim = story.claim()
    story.expire()
    assert not story.view.conflicts
    story.end(claim)
    assert found(story, ConflictKind.SUCCESS_AGAINST_EXPIRY).losers == ("the expiry by eu",)


def test_success_against_death() -> None:
    story, first, second = twice(attempts=1)
    story.fail(second)
    story.end(first)
    assert story.view.state is TaskState.SUCCEEDED
    assert found(story, ConflictKind.SUCCESS_AGAINST_DEATH).winner == "attempt 1 in eu"


def test_two_takeovers_of_one_term() -> None:
    story = Story()
    story.submit("eu")
    story.term("us", 1)
    assert not story.view.conflicts
    story.term("ap", 1)
    conflict = found(story, ConflictKind.TWO_TAKEOVERS)
    assert (conflict.winner, conflict.losers) == ("us", ("ap",))


def test_duplicate_submission_with_another_payload() -> None:
    story = Story()
    story.submit("eu", payload=[[1], {}])
    story.submit("us", payload=[[1], {}])
    assert not story.view.conflicts, "the same payload merges"
    other = story.submit("ap", payload=[[2], {}])
    claim = story.claim("ap", submission=other)
    conflict = found(story, ConflictKind.DUPLICATE_SUBMISSION)
    assert conflict.attempts == (claim,)
    assert str(other) in conflict.losers[0]


def test_concurrent_edits_are_told_by_what_they_saw_and_not_by_clocks() -> None:
    story = Story()
    story.submit("eu")
    first = story.priority(7, "eu")
    second = story.priority(2, "us", saw=first)
    assert not story.view.conflicts
    story.priority(9, "ap", saw=first)
    conflict = found(story, ConflictKind.CONCURRENT_EDITS)
    assert conflict.winner == "'9' by ap"
    assert conflict.losers == ("'2' by us",)
    later = story.priority(1, "us", saw=second)
    again = found(story, ConflictKind.CONCURRENT_EDITS)
    assert again.id == conflict.id
    assert again.winner == "'2' by us", "the branch that went on last"
    assert later > second


def test_concurrent_edits_of_two_labels_are_none_nor_are_equal_ones() -> None:
    story = Story()
    story.submit("eu")
    story.label("team", "a", "eu")
    story.label("env", "b", "us")
    story.label("team", "a", "us")
    assert not story.view.conflicts
    story.label("env", "", "eu")
    assert found(story, ConflictKind.CONCURRENT_EDITS).winner == "'' by eu"


def test_retries_counted_on_both_sides_past_the_limit() -> None:
    story, first, second = twice(attempts=1)
    story.fail(first)
    assert ConflictKind.RETRIES_EXCEEDED not in kinds(story)
    story.fail(second)
    conflict = found(story, ConflictKind.RETRIES_EXCEEDED)
    assert "2 failed of 1 granted" in conflict.detail


def test_a_requeue_against_a_success_under_way() -> None:
    story, first, second = twice(attempts=1)
    story.fail(second)
    story.requeue(1, "us")
    assert not story.view.conflicts
    story.end(first)
    assert found(story, ConflictKind.REQUEUE_AGAINST_SUCCESS).losers == ("the requeue of death 1 by us",)


def test_a_requeue_that_led_to_the_success_is_no_conflict() -> None:
    story = Story()
    story.submit(attempts=1)
    story.fail(story.claim())
    story.requeue()
    story.end(story.claim())
    assert not story.view.conflicts


def test_a_dependent_that_ran_on_a_result_that_lost() -> None:
    parent = Story(PARENT)
    parent.submit("eu")
    first = parent.claim("eu")
    parent.term("us", 1)
    second = parent.claim("us")
    parent.end(second)
    child = Story()
    child.submit("us", after=((PARENT, False),))
    child.end(child.claim("us", inputs=((PARENT, second),)))
    assert lost_inputs(child.view, {PARENT: parent.view}) == ()
    assert lost_inputs(child.view, {}) == ()
    parent.end(first)
    [conflict] = lost_inputs(child.view, {PARENT: parent.view})
    assert conflict.kind == ConflictKind.LOST_INPUT
    assert conflict.losers == (f"task {PARENT.hex()}",)
    assert "attempt 1 in eu" in conflict.detail


def test_several_ends_of_one_attempt() -> None:
    story = Story()
    story.submit()
    claim = story.claim()
    story.end(claim, "lost", reason="restart")
    story.end(claim)
    conflict = found(story, ConflictKind.SEVERAL_ENDS)
    assert (conflict.winner, conflict.losers) == ("ok", ("lost",))


def test_a_run_on_two_sides_without_a_second_success() -> None:
    story, first, second = twice()
    story.end(second)
    assert not story.view.conflicts, "while one is open it may yet succeed"
    story.fail(first)
    conflict = found(story, ConflictKind.DOUBLE_RUN)
    assert conflict.attempts == (first,)
    assert "attempt 2 in us" in conflict.detail


# Settled and decided -------------------------------------------------------------------------------


def test_a_success_is_settled_when_its_end_is_stable() -> None:
    story, first, second = twice()
    end = story.end(first)
    assert not is_settled(story.facts, story.view, nothing)
    assert is_settled(story.facts, story.view, lambda event_id: event_id == end)
    assert story.view.open_attempts == (second,)


def test_a_winning_cancel_is_settled_and_decided_at_once() -> None:
    story, _, _ = twice(cancel="wins")
    story.cancel("us")
    assert is_settled(story.facts, story.view, nothing)
    assert is_decided(story.facts, story.view, nothing)


@pytest.mark.parametrize("end", [Story.cancel, Story.expire])
def test_other_ends_wait_for_all_facts_and_for_open_attempts(end: object) -> None:
    story = Story()
    story.submit(deadline_ms=1)
    claim = story.claim()
    end(story)  # type: ignore[operator]
    assert not is_settled(story.facts, story.view, everything)
    last = story.fail(claim)
    assert is_settled(story.facts, story.view, everything)
    assert not is_settled(story.facts, story.view, lambda event_id: event_id != last)
    assert not is_decided(story.facts, story.view, nothing)


def test_a_requeue_moves_on_from_a_settled_death() -> None:
    story = Story()
    story.submit(attempts=1)
    story.fail(story.claim())
    assert is_settled(story.facts, story.view, everything)
    story.requeue()
    assert not is_settled(story.facts, story.view, everything)


def test_under_wait_the_owners_event_decides() -> None:
    story = Story()
    story.submit(partition="wait")
    claim = story.claim()
    assert not is_decided(story.facts, story.view, everything)
    story.end(claim)
    assert is_decided(story.facts, story.view, nothing)
    assert not is_settled(story.facts, story.view, nothing)


def test_what_has_not_ended_is_neither_settled_nor_decided() -> None:
    story = Story()
    story.submit()
    assert not is_settled(story.facts, story.view, everything)
    assert not is_decided(story.facts, story.view, everything)


# Inheritance ---------------------------------------------------------------------------------------


def test_an_effect_key_is_the_same_for_a_retry_and_another_one_beside() -> None:
    story = Story()
    story.submit("eu")
    first = story.claim("eu")
    story.term("us", 1)
    beside = story.claim("us", continues=first)
    story.fail(first)
    retry = story.claim("eu", continues=first)
    assert effect_root(story.facts, retry) == first
    assert effect_root(story.facts, beside) == beside
    keys = {effect_key(TASK, effect_root(story.facts, attempt), "charge") for attempt in (first, beside, retry)}
    assert len(keys) == 2
    assert effect_key(TASK, first, "charge") == effect_key(TASK, EventId(*tuple(first)), "charge")


def test_a_claim_continues_the_newest_attempt_with_the_same_inputs() -> None:
    story = Story()
    story.submit("eu")
    assert continuation(story.view, ()) is None
    first = story.claim("eu")
    story.fail(first)
    inputs = ((PARENT, first),)
    other = story.claim("eu", inputs=inputs)
    story.fail(other)
    continued = continuation(story.view, ())
    assert continued is not None
    assert continued.id == first
    continued = continuation(story.view, inputs)
    assert continued is not None
    assert continued.id == other


def test_a_ledger_holds_what_the_whole_chain_recorded() -> None:
    story = Story()
    story.submit("eu")
    first = story.claim("eu")
    hold = story.effect(first, "hold")
    story.fail(first)
    second = story.claim("eu", continues=first)
    charge = story.effect(second, "charge")
    late = story.effect(first, "late")
    story.fail(second)
    assert [effect.id for effect in inherited_effects(story.facts, second)] == [hold, charge]
    third = story.claim("eu", continues=second)
    story.end(third)
    assert relied_on(story.view) == {hold, charge}
    assert late not in relied_on(story.view)
    assert inherited_effects(story.facts, EventId(1, first.writer, 1, 0)) == ()


def test_an_effect_recorded_twice_is_one() -> None:
    story = Story()
    story.submit()
    claim = story.claim()
    one, two = story.effect(claim, "hold"), story.effect(claim, "hold")
    attempt = story.facts.attempt(claim)
    assert attempt is not None
    [effect] = own_effects(attempt)
    assert (effect.id, effect.ids) == (one, (one, two))


def test_the_newest_checkpoint_of_the_chain_counts() -> None:
    story = Story()
    story.submit()
    assert newest_checkpoint(story.facts, EventId(1, "eu/a#1-0000000000000000", 1, 0)) is None
    first = story.claim()
    story.checkpoint(first, 4, b"four")
    story.fail(first)
    second = story.claim(continues=first)
    checkpoint = newest_checkpoint(story.facts, second)
    assert checkpoint is not None
    assert (checkpoint.index, checkpoint.data) == (4, b"four")
    story.checkpoint(second, 5, b"five")
    checkpoint = newest_checkpoint(story.facts, second)
    assert checkpoint is not None
    assert checkpoint.data == b"five"


def test_no_attempt_continues_a_later_one() -> None:
    """A forged circle of continuations ends."""
    story = Story()
    story.submit()
    ahead = EventId((1 << 62), "us/a#1-0000000000000000", 9, 0)
    first = story.claim(continues=None)
    forged = story.claim(continues=ahead, relies=())
    story.facts.add(ahead, story.facts.attempt(first).claim._replace(continues=forged, continues_ended=True))  # type: ignore[union-attr]
    assert effect_root(story.facts, ahead) in (ahead, forged)
    assert newest_checkpoint(story.facts, ahead) is None


# Undoing -------------------------------------------------------------------------------------------


def undone(story: Story, *, settled: bool = False, decided: bool = False) -> dict[int, Undo]:
    due = undo(story.facts, story.view, settled=settled, decided=decided)
    assert len({u.id for u in due}) == len(due)
    return {u.number: u for u in due if u.effect_key is None}


def test_the_later_success_is_undone_early_and_whole() -> None:
    story, first, second = twice()
    story.effect(second, "charge", "ch-2")
    story.end(first, value="ch-1")
    assert undone(story) == {}, "it has not ended"
    story.end(second, value="ch-2")
    [due] = undone(story).values()
    assert (due.attempt, due.region, due.number, due.compensate) == (second, "us", 2, "refund")
    assert [name for name, _ in due.effects] == ["charge"]
    assert due.result == b"\x64ch-2"
    assert due.id == compensation_id(TASK, second)


def test_an_earlier_failure_is_undone_once_settled_without_what_the_winner_relies_on() -> None:
    story = Story()
    story.submit("eu")
    first = story.claim("eu")
    story.effect(first, "hold")
    story.term("us", 1)
    second = story.claim("us", continues=first)
    story.effect(first, "charge")
    story.fail(first)
    story.end(second)
    assert undone(story) == {}
    [due] = undone(story, settled=True).values()
    assert due.attempt == first
    assert [name for name, _ in due.effects] == ["charge"]
    assert due.result is None


def test_an_attempt_that_did_nothing_is_not_undone() -> None:
    story = Story()
    story.submit("eu")
    story.fail(story.claim("eu"))
    story.end(story.claim("eu"))
    assert undone(story, settled=True) == {}


def test_a_result_alone_is_something_to_undo() -> None:
    story, first, second = twice()
    story.end(first)
    story.end(second, value="ch-2")
    assert undone(story)[2].effects == ()


def test_a_winning_cancel_undoes_all_that_has_ended_at_once() -> None:
    story, first, second = twice(cancel="wins")
    story.effect(first, "hold")
    story.effect(second, "charge")
    story.fail(first)
    story.cancel("us")
    assert set(undone(story)) == {1}
    story.end(second)
    assert set(undone(story)) == {1, 2}


@pytest.mark.parametrize("end", [Story.cancel, Story.expire])
def test_a_losing_cancel_and_an_expiry_undo_all_once_settled(end: object) -> None:
    story = Story()
    story.submit(deadline_ms=1)
    claim = story.claim()
    story.effect(claim, "hold")
    story.fail(claim)
    end(story)  # type: ignore[operator]
    assert undone(story) == {}
    assert set(undone(story, settled=True)) == {1}


def test_a_dead_task_keeps_its_ledger_until_its_letter_is_cancelled() -> None:
    story = Story()
    story.submit(attempts=1)
    claim = story.claim()
    story.effect(claim, "hold")
    story.fail(claim)
    assert undone(story, settled=True, decided=True) == {}
    story.cancel()
    assert set(undone(story, settled=True)) == {1}


def test_an_effect_recorded_after_its_attempts_end_has_a_compensation_of_its_own() -> None:
    story, first, second = twice()
    story.end(first)
    story.effect(second, "hold")
    story.end(second)
    story.effect(second, "charge", "ch-2")
    whole, late = undo(story.facts, story.view, settled=False, decided=False)
    assert [name for name, _ in whole.effects] == ["hold"]
    assert whole.effect_key is None
    assert late.effects == (("charge", b"\x64ch-2"),)
    assert late.result is None
    assert late.effect_key == effect_key(TASK, second, "charge")
    assert late.id == compensation_id(TASK, second, late.effect_key)


def test_under_wait_a_decided_outcome_is_enough() -> None:
    for partition, expected in (("wait", {1}), ("takeover", set())):
        story = Story()
        story.submit(partition=partition)
        claim = story.claim()
        story.effect(claim, "hold")
        story.fail(claim)
        story.end(story.claim(continues=None))
        assert set(undone(story, decided=True)) == expected


def test_a_quorum_task_is_never_undone_early() -> None:
    story, first, second = twice(partition="quorum")
    story.end(first)
    story.end(second)
    assert undone(story) == {}
    assert set(undone(story, settled=True)) == {2}


def test_without_a_compensating_task_nothing_is_undone_and_a_compensation_has_none() -> None:
    for changes in ({"compensate": ""}, {"undoes": (PARENT, EventId(1, "eu/a#1-0000000000000000", 1, 0), b"")}):
        story, first, second = twice(**changes)
        story.end(first)
        story.end(second)
        assert undone(story, settled=True) == {}


def test_an_attempt_of_a_displaced_submission_is_undone_by_its_own_options() -> None:
    story = Story()
    story.submit("eu", payload=[[1], {}], compensate="refund")
    other = story.submit("us", payload=[[2], {}], compensate="give_back")
    displaced = story.claim("us", submission=other)
    story.end(displaced)
    story.end(story.claim("eu"))
    assert undone(story) == {}
    [due] = undone(story, settled=True).values()
    assert (due.attempt, due.compensate) == (displaced, "give_back")


def test_a_lost_worker_that_comes_back_does_not_undo_what_the_retry_did_as_well() -> None:
    """Both met the sink under one key, so there is one charge, and the winner rests on it."""
    story = Story()
    story.submit("eu")
    lost = story.claim("eu")
    story.end(lost, "lost", reason="crash")
    retry = story.claim("eu", continues=lost)
    story.effect(lost, "charge")
    story.effect(lost, "hold")
    story.effect(retry, "charge")
    story.end(retry)
    [due] = undo(story.facts, story.view, settled=True, decided=True)
    assert [name for name, _ in due.effects] == ["hold"]
    assert standing_keys(story.view) == {effect_key(TASK, lost, "charge")}


def test_what_two_losers_recorded_under_one_key_is_undone_once_with_the_first_record() -> None:
    story = Story()
    story.submit("eu", cancel="wins")
    lost = story.claim("eu")
    story.end(lost, "lost", reason="crash")
    retry = story.claim("eu", continues=lost)
    story.effect(retry, "charge")
    story.effect(lost, "charge")
    story.fail(retry)
    story.cancel("eu")
    [due] = undo(story.facts, story.view, settled=True, decided=True)
    assert due.attempt == retry
    assert first_records(story.view) == {effect_key(TASK, lost, "charge"): retry}
