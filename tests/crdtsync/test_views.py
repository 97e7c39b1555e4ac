from __future__ import annotations

import json

import cbor2
import pytest

from crdtsync.events import Ended
from crdtsync.history import Facts
from crdtsync.identifiers import EventId, TaskId, compensation_id
from crdtsync.resolve import resolve
from crdtsync.undoing import undo
from crdtsync.views import (
    arguments,
    conflict_record,
    decoded,
    history_records,
    plain_value,
    task_record,
    utc,
)
from tests.properties.story import TASK, Story

PARENT = TaskId(b"p" * 16)


def test_show_prints_what_programs_rely_on() -> None:
    story = Story()
    story.submit("eu", after=((PARENT, True),), labels=(("team", "a"),), key="A17", deadline_ms=1)
    failed = story.claim("eu")
    story.fail(failed)
    claim = story.claim("eu", continues=failed)
    story.effect(claim, "charge")
    story.end(claim, value={"id": "ch-1", "raw": b"\x00"})
    record = task_record(TASK, story.view, settled=True, waiting_for=None)
    json.dumps(record)
    first, second = record["attempts"]
    assert (first["number"], first["region"], first["term"], first["state"]) == (1, "eu", 0, "failed")
    assert first["error"] == "ValueError: no such card"
    assert first["traceback"] == "trace"
    assert (second["state"], second["error"], second["continues"], second["effects"]) == ("ok", None, 1, ["charge"])
    assert record["id"] == TASK.hex()
    assert record["name"] == "charge"
    assert record["state"] == "succeeded"
    assert record["settled"] is True
    assert (record["owner"], record["term"]) == ("eu", 0)
    assert record["result"] == {"id": "ch-1", "raw": {"base64": "AA=="}}
    assert record["winner"] == 2
    assert record["conflicts"] == []
    assert record["waiting_for"] is None
    assert (record["args"], record["kwargs"]) == (["A17"], {"cents": 1250})
    assert record["labels"] == {"team": "a"}
    assert record["after"] == record["after_settled"] == [PARENT.hex()]
    assert (record["queue"], record["priority"], record["key"]) == ("payments", 5, "A17")
    assert record["created_at"] == "2023-11-14T22:13:21.000Z"
    assert record["deadline"] == "1970-01-01T00:00:00.001Z"
    assert record["partition"] == "takeover"


def test_facts_without_a_submission_can_be_shown() -> None:
    record = task_record(TASK, resolve(Facts()))
    json.dumps(record)
    assert record["state"] == "waiting"
    assert record["attempts"] == []


def test_a_compensation_shows_what_it_undoes() -> None:
    attempt = EventId(1, "us/a#1-0000000000000000", 1, 0)
    story = Story()
    story.submit(undoes=(PARENT, attempt, b""), payload={"task_id": "x"}, linked=PARENT)
    record = task_record(TASK, story.view)
    assert record["undoes"] == {"task": PARENT.hex(), "attempt": str(attempt), "effect_key": None}
    assert (record["args"], record["kwargs"]) == ({"task_id": "x"}, {})
    assert record["linked"] == PARENT.hex()


@pytest.mark.parametrize(
    "data", [b"\xff", b"", b"\x01\x02", cbor2.dumps(cbor2.CBORTag(1, 2)), b"\x81" * 500, b"\x5b" + b"\xff" * 8]
)
def test_what_cannot_be_decoded_is_shown_as_bytes(data: bytes) -> None:
    shown = decoded(data)
    assert set(shown) == {"base64"}
    story = Story()
    story.submit()
    claim = story.claim()
    story.write("eu", Ended(TASK, claim, "ok", False, True, "", data))
    assert json.dumps(task_record(TASK, story.view))
    story.facts.submissions = ((story.facts.submissions[0][0], story.view.submitted._replace(payload=data)),)  # type: ignore[union-attr]
    assert json.dumps(task_record(TASK, story.view))
    assert json.dumps(history_records(story.facts))


@pytest.mark.parametrize("value", [b"", b"\xff", cbor2.dumps(5), cbor2.dumps([]), cbor2.dumps([1, 2])])
def test_an_error_that_is_none_falls_back_to_its_reason(value: bytes) -> None:
    story = Story()
    story.submit()
    claim = story.claim()
    story.write("eu", Ended(TASK, claim, "failed", False, True, "E", value))
    assert task_record(TASK, story.view)["attempts"][0]["error"] == "E"


def test_a_lost_attempt_says_why() -> None:
    story = Story()
    story.submit()
    story.end(story.claim(), "lost", reason="crash")
    assert task_record(TASK, story.view)["attempts"][0]["error"] == "lost: crash"


def test_keys_of_bytes_become_text() -> None:
    assert plain_value({b"k": (1, b"v"), "t": {"n": None}}) == {"aw==": [1, {"base64": "dg=="}], "t": {"n": None}}


def test_an_empty_payload_has_no_arguments() -> None:
    assert arguments(b"") == ([], {})


@pytest.mark.parametrize("wall_ms, text", [(0, "1970-01-01T00:00:00.000Z"), (2**62, f"{2**62} ms")])
def test_a_time_that_no_calendar_holds_is_still_shown(wall_ms: int, text: str) -> None:
    assert utc(wall_ms) == text


def test_a_conflict_lists_the_compensations_that_exist() -> None:
    story = Story()
    story.submit("eu")
    first = story.claim("eu")
    story.term("us", 1)
    second = story.claim("us")
    story.end(first)
    story.end(second)
    story.effect(second, "charge")
    [conflict] = story.view.conflicts
    due = undo(story.facts, story.view, settled=True, decided=True)
    states = {u.id: "waiting" for u in due}
    record = conflict_record(conflict, {})
    assert record["compensations"] == []
    assert record["id"] == conflict.id
    assert record["task"] == TASK.hex()
    assert record["rule"] == "earliest-claim"
    assert (record["winner"], record["losers"]) == ("attempt 1 in eu", ["attempt 2 in us"])
    whole = {"task": compensation_id(TASK, second).hex(), "state": "waiting"}
    assert conflict_record(conflict, states)["compensations"] == [whole]
    assert len(conflict_record(conflict, states, due)["compensations"]) == 2
    assert task_record(TASK, story.view)["conflicts"] == [conflict.id]
    json.dumps(record)


def test_the_history_names_every_event_in_stamp_order() -> None:
    story = Story()
    story.submit("eu", deadline_ms=1)
    offer = story.offer("eu", "us")
    story.withdraw(offer)
    claim = story.claim("eu")
    story.effect(claim, "charge")
    story.checkpoint(claim, 1)
    story.fail(claim, retryable=False)
    story.requeue()
    story.priority(7)
    story.label("team", "a")
    story.term("us", 1)
    second = story.claim("us", continues=claim)
    story.expire("us")
    story.cancel("ap")
    story.end(second, late=True)
    records = history_records(story.facts)
    json.dumps(records)
    assert [record["kind"] for record in records] == [
        "submitted",
        "offered",
        "withdrawn",
        "claimed",
        "effect_recorded",
        "checkpointed",
        "ended",
        "requeued",
        "priority_edited",
        "label_edited",
        "term_opened",
        "claimed",
        "expired",
        "cancel_requested",
        "ended",
    ]
    assert [record["at"] for record in records] == sorted(record["at"] for record in records)
    assert records[11] == {
        "at": "2023-11-14T22:13:32.000Z",
        "kind": "claimed",
        "region": "us",
        "id": str(second),
        "attempt": 2,
        "term": 1,
        "continues": 1,
    }
    assert records[6]["retryable"] is False
    assert records[-1]["late"] is True
    assert records[10]["by"] == "takeover"
