from __future__ import annotations

import pytest

from crdtsync.explain import explain, explain_local
from crdtsync.history import Facts
from crdtsync.identifiers import TaskId, compensation_id
from crdtsync.resolve import resolve
from crdtsync.task_view import TaskState
from tests.properties.story import TASK, Story

PARENT = TaskId(b"p" * 16)


def told(story: Story, **related: object) -> str:
    return explain(story.task, story.facts, story.view, **related)  # type: ignore[arg-type]


def charged_twice() -> Story:
    story = Story()
    story.submit("eu")
    first = story.claim("eu")
    story.effect(first, "hold")
    story.term("us", 1)
    second = story.claim("us", continues=first)
    story.effect(first, "charge")
    story.effect(second, "charge")
    story.end(second, value="ch-2")
    story.end(first, value="ch-1")
    return story


def test_a_double_success_is_told_from_submission_to_refund() -> None:
    story = charged_twice()
    undo = compensation_id(TASK, story.view.attempts[1].id)
    expected = f"""\
Task {TASK.hex()} (charge) succeeded. It was submitted in eu at 2023-11-14T22:13:21.000Z.
Its owner was eu at first, the region that accepted it. If its owner falls silent, another region takes it over (partition=takeover).
Term 1: us took it over, because its owner was silent to us, at 2023-11-14T22:13:24.000Z.
Its owner is us, by term 1.
Attempt 1 began in eu at 2023-11-14T22:13:22.000Z. It recorded hold and charge. It succeeded at 2023-11-14T22:13:29.000Z.
Attempt 2 began in us at 2023-11-14T22:13:25.000Z, by term 1 while attempt 1 in eu had not ended. It continued attempt 1 and relies on its hold. It recorded charge. It succeeded at 2023-11-14T22:13:28.000Z.
The outcome is that of attempt 1 in eu: the earliest claim among the successes not late.
Conflict {story.view.conflicts[0].id} (double_success, rule earliest-claim): The task succeeded more than once. The earliest claim wins: attempt 1 in eu, over attempt 2 in us. What the losing side did and the winner does not rely on is undone.
Undone of attempt 2 in us: charge and the result, by task {undo.hex()} (refund, succeeded)."""
    assert told(story, compensations={undo: "succeeded"}) == expected


def test_what_is_still_to_be_undone_says_by_whom() -> None:
    story = charged_twice()
    undo = compensation_id(TASK, story.view.attempts[1].id)
    assert f"To be undone of attempt 2 in us: charge and the result, by us as task {undo.hex()} (refund)." in told(
        story
    )


def test_without_a_compensation_it_says_what_stands() -> None:
    story = Story()
    story.submit("eu", compensate="")
    first = story.claim("eu")
    story.term("us", 1)
    second = story.claim("us")
    story.effect(second, "charge")
    story.end(first)
    story.end(second)
    assert "Nothing of attempt 2 in us is undone, since no compensation is declared; it had recorded charge." in told(
        story
    )


def test_the_text_depends_on_the_facts_alone() -> None:
    story = charged_twice()
    other = Facts()
    for event_id, event in sorted(story.facts.events(), key=lambda pair: pair[0].index, reverse=True):
        other.add(event_id, event)
    assert explain(TASK, other, resolve(other)) == told(story)


def test_facts_without_a_submission_are_told_as_such() -> None:
    assert "no submission is known" in explain(TASK, Facts(), resolve(Facts()))


def test_a_waiting_task_says_what_it_comes_after() -> None:
    parent = Story(PARENT)
    parent.submit()
    story = Story()
    story.submit(after=((PARENT, False),))
    assert f"these are missing: {PARENT.hex()} (not looked up)" in told(story)
    assert f"these are missing: {PARENT.hex()} (waiting)" in told(story, parents={PARENT: parent.view})
    parent.end(parent.claim())
    assert "comes after 1 task, and none is missing" in told(story, parents={PARENT: parent.view})
    story = Story()
    story.submit(after=((PARENT, True),))
    assert "succeeded; it has to be settled" in told(story, parents={PARENT: parent.view})


def test_a_retry_says_when_and_why() -> None:
    story = Story()
    story.submit()
    story.fail(story.claim())
    assert "After 1 attempt failed or lost in a row the next one starts at 2023-11-14T22:13:2" in told(story)
    story.claim()
    assert ", after attempt 1 was failed" in told(story)


def test_a_death_says_what_was_used_up() -> None:
    story = Story()
    story.submit(attempts=2)
    for _ in range(2):
        story.fail(story.claim())
    assert "2 attempts failed, of 2 granted. A requeue grants 2 attempts more." in told(story)
    story.requeue()
    assert "eu requeued it after death 1" in told(story)
    story = Story()
    story.submit()
    story.fail(story.claim(), retryable=False)
    assert "Attempt 1 failed with an error that is not tried again." in told(story)
    story = Story()
    story.submit(lost_max=0)
    story.end(story.claim(), "lost", reason="crash")
    assert "1 attempt lost: that is more than it may lose." in told(story)


def test_an_open_attempt_that_death_waits_for() -> None:
    story = Story()
    story.submit(attempts=1)
    story.claim()
    story.term("us", 1)
    story.fail(story.claim("us"))
    assert "Unless an attempt that is still open succeeds, it will be dead." in told(story)


def test_handovers_are_told() -> None:
    story = Story()
    story.submit(partition="wait")
    offer = story.offer("eu", "us")
    assert "It is offered to us (drain); until that answers, nobody starts it." in told(story)
    story.withdraw(offer)
    assert "Its offer to us was taken back; eu starts it once it knows that us has not taken it up." in told(story)
    story.term("eu", 1, offer)
    assert "Term 1: eu went on with it after an offer that nobody took up" in told(story)
    again = story.offer("eu", "ap", term=1)
    story.term("ap", 2, again)
    assert "Term 2: ap accepted it, offered by eu (drain)" in told(story)
    assert "Its owner is ap, by term 2." in told(story)


@pytest.mark.parametrize(
    "policy, words",
    [
        ("wins", "it is cancelled for good, and whatever succeeds is undone"),
        ("loses", "nothing new is started, but a success that is not late beats it"),
    ],
)
def test_a_cancel_says_what_it_does(policy: str, words: str) -> None:
    story = Story()
    story.submit(cancel=policy)
    story.claim()
    story.cancel("us")
    assert f"us asked for its cancel at 2023-11-14T22:13:23.000Z (changed my mind): {words}." in told(story)


def test_a_late_cancel_and_a_request_are_told_as_such() -> None:
    story = Story()
    story.submit()
    story.end(story.claim())
    story.cancel("us", late=True)
    assert "too late, it had succeeded already" in told(story)
    story = Story()
    story.submit(partition="wait")
    story.cancel("us")
    assert "a request, which its owner answers" in told(story)
    assert "its owner eu has yet to answer" in told(story)


def test_a_result_on_which_it_ran_is_told_to_stand_or_to_have_lost() -> None:
    parent = Story(PARENT)
    parent.submit("eu")
    first = parent.claim("eu")
    parent.term("us", 1)
    second = parent.claim("us")
    parent.end(second)
    story = Story()
    story.submit("us", after=((PARENT, False),))
    story.end(story.claim("us", inputs=((PARENT, second),)))
    assert f"The result of {PARENT.hex()} on which it ran still stands." in told(story, parents={PARENT: parent.view})
    parent.end(first)
    assert "(lost_input, rule outcome-stays)" in told(story, parents={PARENT: parent.view})


def test_a_compensation_says_what_it_undoes() -> None:
    lost = Story()
    lost.submit()
    attempt = lost.claim("us")
    story = Story(PARENT)
    story.submit(undoes=(TASK, attempt, b""))
    assert f"It undoes what was done by an attempt of task {TASK.hex()}, which us had claimed." in told(story)


def test_many_attempts_are_cut_short() -> None:
    story = Story()
    story.submit(attempts=100)
    for _ in range(50):
        story.fail(story.claim())
    text = told(story)
    assert "(30 more attempts.)" in text
    assert "Attempt 10 began" in text
    assert "Attempt 11 began" not in text
    assert "Attempt 41 began" in text


def test_every_line_of_the_local_part_says_whose_view_it_is() -> None:
    story = Story()
    story.submit()
    story.end(story.claim())
    text = explain_local(
        "eu", story.view, settled=False, missing=["us", "ap"], silent={"us": 3_400}, waiting_for="a worker"
    )
    assert text.splitlines() == [
        "As eu sees it: it waits for a worker.",
        "As eu sees it: the outcome is tentative: ap and us have not acknowledged all of it yet.",
        "As eu sees it: nothing was heard of us for 3.4 s.",
    ]
    assert "is settled" in explain_local("eu", story.view, settled=True)
    assert explain_local("eu", Story().view, settled=False) == ""
    assert explain_local("eu", story.view, settled=False, missing=["us"]).endswith(
        "us has not acknowledged all of it yet."
    )
    since = explain_local("eu", story.view, settled=True, waiting_for="us", waiting_since_ms=0)
    assert "since 1970-01-01T00:00:00.000Z for us." in since
    assert story.view.state is TaskState.SUCCEEDED
