"""What the checker of limits says of hand-made histories."""

from __future__ import annotations

from crdtsync import events as ev
from simulator.checkers.limits import Limits
from tests.simulator.stage import Stage

LIMIT = b"l" * 16
FOUNDERS = ("eu", "us")


def capped(scope: str = "global", amount: int = 2, *, kind: str = "concurrency", period_ms: int = 0) -> Stage:
    """Two regions that know a limit; eu, which mints, holds all rights."""
    stage = Stage(Limits, "eu", "us")
    setting = ev.LimitSet(LIMIT, "queue:default", kind, scope, amount, period_ms, "operator", FOUNDERS)
    (id,) = stage.commit("eu", setting)
    if scope == "global":
        stage.commit("eu", ev.RightsMinted(LIMIT, amount, id))
    stage.deliver("eu")
    return stage


def start(stage: Stage, region: str) -> tuple[bytes, object]:
    task = stage.submit(region)
    return task, stage.claim(region, task)


def test_as_many_as_there_are_rights_may_run() -> None:
    stage = capped()
    task, attempt = start(stage, "eu")
    start(stage, "eu")
    stage.end("eu", task, attempt)
    start(stage, "eu")
    assert stage.found() == []


def test_one_more_than_there_are_rights_is_reported() -> None:
    stage = capped()
    for _ in range(3):
        start(stage, "eu")
    assert stage.found() == ["CAP-1"]


def test_a_start_without_a_right_is_reported_though_the_limit_as_a_whole_is_kept() -> None:
    stage = capped()
    start(stage, "us")
    assert stage.found() == ["CAP-1"]


def test_a_right_is_its_receivers_once_that_has_heard_of_it() -> None:
    stage = capped()
    stage.commit("eu", ev.RightsMoved(LIMIT, stage.node("us").writer, 1))
    stage.deliver("eu")
    start(stage, "us")
    start(stage, "eu")
    assert stage.found() == []
    start(stage, "eu")
    assert stage.found() == ["CAP-1"], "eu has given it away"


def test_rights_minted_twice_are_reported() -> None:
    stage = capped()
    (seen,) = stage.commit("us", ev.RightsBurned(LIMIT, 0))
    stage.commit("us", ev.RightsMinted(LIMIT, 2, seen))
    start(stage, "us")
    assert stage.found() == ["CAP-1"]


def test_a_limit_of_a_region_counts_in_each() -> None:
    stage = capped("region", 1)
    start(stage, "eu")
    start(stage, "us")
    assert stage.found() == []
    start(stage, "us")
    assert stage.found() == ["CAP-1"]


def test_more_starts_in_a_period_than_the_rate_are_reported_and_later_ones_are_not() -> None:
    stage = capped(amount=2, kind="rate", period_ms=1_000)
    for _ in range(2):
        task, attempt = start(stage, "eu")
        stage.end("eu", task, attempt)
    stage.wait(1_000)
    start(stage, "eu")
    start(stage, "us")
    assert stage.found() == []
    start(stage, "us")
    assert stage.found() == ["CAP-1"]
