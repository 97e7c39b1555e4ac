"""DUR-* and LOG-*: each is broken once by hand, and holds where nothing is broken."""

from __future__ import annotations

from types import SimpleNamespace

from crdtsync.log.commit import seal
from simulator.checkers.durability import Durability
from tests.simulator.stage import Stage


def accepted(stage, task):
    stage.answer("eu", "submit", task, [{"id": task.hex(), "created": True}], command=SimpleNamespace(specs=()))


def test_what_is_written_stored_and_passed_on_in_order_is_fine():
    stage = Stage(Durability, "eu", "us")
    task = stage.submit("eu")
    accepted(stage, task)
    stage.deliver("eu")
    attempt = stage.claim("us", task)
    stage.deliver("us")
    stage.trace.add(
        "task.assigned", "us", str(attempt), ("", "", 1, 0, 0, "w"), subject=SimpleNamespace(attempt=attempt, task=task)
    )
    stage.view("eu", task)
    stage.view("us", task)
    assert stage.found(end=True) == []


def test_an_acknowledged_task_that_is_not_on_disk_is_reported():
    stage = Stage(Durability, "eu", "us")
    task = stage.submit("eu", durable=False)
    accepted(stage, task)
    assert stage.found() == ["DUR-1"]


def test_an_acknowledged_cancel_that_nobody_wrote_is_reported():
    stage = Stage(Durability, "eu", "us")
    task = stage.submit("eu")
    stage.answer("eu", "cancel", task, {"answer": "the task is cancelled", "cancelled": True})
    assert stage.found() == ["DUR-1"]


def test_a_cancel_that_came_too_late_need_not_be_written():
    stage = Stage(Durability, "eu", "us")
    task = stage.submit("eu")
    stage.answer("eu", "cancel", task, {"answer": "already succeeded", "cancelled": False})
    assert stage.found() == []


def test_an_acknowledged_task_that_a_region_does_not_know_after_the_heal_is_reported():
    stage = Stage(Durability, "eu", "us")
    task = stage.submit("eu")
    accepted(stage, task)
    stage.deliver("eu")
    stage.view("eu", task)
    assert stage.found(end=True) == ["DUR-2"]


def test_two_contents_under_one_number_are_reported():
    stage = Stage(Durability, "eu", "us")
    stage.submit("eu")
    (commit,) = stage.node("eu").log
    twin = seal(
        commit.domain, commit.writer, 1, stamp=commit.stamp + 1, deps=(), previous=commit.previous, events=commit.events
    )
    stage.store("us", twin)
    assert "LOG-1" in stage.found()


def test_a_reused_identity_is_reported():
    stage = Stage(Durability, "eu", "us")
    stage.submit("eu")
    stage.start("eu", writer=stage.node("eu").writer)
    assert "LOG-1" in stage.found()


def test_a_gap_is_reported():
    stage = Stage(Durability, "eu", "us")
    stage.submit("eu")
    stage.submit("eu")
    stage.deliver("eu", skip=1)
    assert "LOG-2" in stage.found()


def test_deps_that_leave_out_what_was_applied_are_reported():
    stage = Stage(Durability, "eu", "us")
    stage.submit("eu")
    stage.deliver("eu")
    stage.submit("us")
    stage.store("us")
    assert stage.found() == []
    stage.commit("us", *stage.node("us").log[0].events, sees={})
    assert stage.found() == []  # what it said once stays said
    stage = Stage(Durability, "eu", "us")
    stage.submit("eu")
    stage.deliver("eu")
    stage.store("us")
    stage.commit("us", *stage.node("us").log[0].events, sees={})
    assert stage.found() == ["LOG-2"]


def test_an_applied_set_that_is_not_closed_is_reported():
    stage = Stage(Durability, "eu", "us", "ap")
    stage.submit("eu")
    stage.deliver("eu", "us")
    stage.submit("us")
    commit = stage.node("us").log[-1]
    stage.node("ap").applied[commit.writer] = 1
    stage.store("ap", commit)
    assert stage.found() == ["LOG-2"]


def test_a_commit_that_left_before_its_fsync_is_reported():
    stage = Stage(Durability, "eu", "us")
    stage.submit("eu", durable=False)
    stage.deliver("eu")
    assert stage.found() == ["LOG-3"]


def test_a_handler_that_starts_before_its_claim_is_durable_is_reported():
    stage = Stage(Durability, "eu", "us")
    task = stage.submit("eu")
    (attempt,) = stage.commit("eu", stage.node("eu").log[0].events[0], durable=False)
    stage.trace.add(
        "task.assigned", "eu", str(attempt), ("", "", 1, 0, 0, "w"), subject=SimpleNamespace(attempt=attempt, task=task)
    )
    assert stage.found() == ["LOG-3"]


def test_a_commit_that_nobody_wrote_is_reported():
    stage = Stage(Durability, "eu", "us")
    stage.submit("eu")
    (commit,) = stage.node("eu").log
    forged = seal(
        commit.domain, commit.writer, 2, stamp=commit.stamp + 1, deps=(), previous=commit.hash, events=commit.events
    )
    stage.deliver("eu")
    stage.store("us", forged)
    assert stage.found() == ["LOG-4"]


def test_a_disk_that_forgot_is_reported_unless_it_was_lost():
    stage = Stage(Durability, "eu", "us")
    stage.submit("eu")
    stage.start("eu", heads={})
    assert stage.found() == ["LOG-5"]
    stage = Stage(Durability, "eu", "us")
    stage.submit("eu")
    stage.trace.add("disk.lost", "eu", "eu", (((stage.node("eu").writer, 1),), "the disk is lost"))
    stage.start("eu", heads={})
    assert stage.found() == []


def test_dropping_what_a_member_lacks_is_reported():
    stage = Stage(Durability, "eu", "us", "ap")
    stage.submit("eu")
    stage.deliver("eu", "us")
    drop = (("default", stage.node("eu").writer, 1),)
    stage.store("eu", drop=drop)
    assert stage.found() == ["LOG-7"]
