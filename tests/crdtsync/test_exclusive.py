"""Which tasks wait for a lease, and when one is wanted and given back."""

from __future__ import annotations

from typing import Any

import pytest

from crdtsync.coordination.exclusive import IDLE_MS, Exclusive
from crdtsync.coordination.leases import Held
from crdtsync.errors import OverloadedError
from crdtsync.events import Submitted
from crdtsync.identifiers import EventId, TaskId
from tests.properties.story import OPTIONS, Story, writer

LANE = ("payments", "charge")
SCOPE = "queue:payments"


class Lessor:
    """Grants by hand."""

    def __init__(self) -> None:
        self.wanted: list[str] = []
        self.leases: dict[str, Held] = {}
        self.full = False

    def want(self, scope: str) -> None:
        if self.full:
            raise OverloadedError("full")
        self.wanted.append(scope)

    def unwant(self, scope: str) -> None:
        self.wanted.remove(scope)
        self.leases.pop(scope, None)

    def held(self, scope: str) -> Held | None:
        return self.leases.get(scope)

    def valid(self, scope: str, token: int) -> bool:
        return scope in self.leases and self.leases[scope].token == token

    def why_not(self, scope: str) -> str:
        return "" if scope in self.leases else f"{scope} is not held"


class World:
    def __init__(self) -> None:
        self.lessor = Lessor()
        self.touched: list[TaskId] = []
        self.served = True
        self.starts = True
        self.exclusive = Exclusive(
            self.lessor, "default", touch=self.touched.append, serves=lambda _: self.served, starts=lambda: self.starts
        )

    def grant(self, scope: str = SCOPE, token: int = 7, starts_until_ms: int = 1_000) -> None:
        self.lessor.leases[scope] = Held(token, 2_000, starts_until_ms, True)
        self.exclusive.changed(scope)


@pytest.fixture
def world() -> World:
    return World()


def task(number: int = 1, **changes: Any) -> Submitted:
    story = Story(TaskId(bytes([number]) * 16))
    story.submit("eu", options=OPTIONS._replace(partition="quorum"), **changes)
    submitted = story.view.submitted
    assert submitted is not None
    return submitted


def test_many_tasks_of_a_queue_want_one_lease(world: World) -> None:
    world.exclusive.wait(task(1), LANE)
    world.exclusive.wait(task(2), LANE)
    assert world.lessor.wanted == [SCOPE]
    assert world.exclusive.token(task(1), 0) == 0
    world.grant()
    assert world.exclusive.token(task(1), 0) == 7
    assert world.touched == [task(1).task, task(2).task]


def test_nothing_starts_in_the_last_part_of_a_lease(world: World) -> None:
    world.exclusive.wait(task(), LANE)
    world.grant(starts_until_ms=500)
    assert world.exclusive.token(task(), 499) == 7
    assert world.exclusive.token(task(), 500) == 0
    assert world.exclusive.valid(task(), 7), "what runs goes on"


def test_a_region_without_a_worker_for_it_wants_no_lease_until_one_comes(world: World) -> None:
    world.served = False
    world.exclusive.wait(task(), LANE)
    assert world.lessor.wanted == []
    world.served = True
    world.exclusive.review(100)
    assert world.lessor.wanted == [SCOPE]


def test_a_lease_that_nothing_needs_is_given_back_after_a_while(world: World) -> None:
    world.exclusive.wait(task(), LANE)
    world.grant()
    attempt = EventId(1, writer("eu"), 1, 0)
    world.exclusive.began(task(), attempt, 7)
    world.exclusive.forget(task().task)
    world.exclusive.review(0)
    assert world.exclusive.in_use(SCOPE)
    world.exclusive.review(5 * IDLE_MS)
    assert world.lessor.wanted == [SCOPE], "an attempt runs under it"
    world.exclusive.ended(attempt)
    assert not world.exclusive.in_use(SCOPE)
    world.exclusive.review(6 * IDLE_MS)
    world.exclusive.review(7 * IDLE_MS - 1)
    assert world.lessor.wanted == [SCOPE]
    world.exclusive.review(7 * IDLE_MS)
    assert world.lessor.wanted == []
    assert world.exclusive.token(task(), 0) == 0


def test_attempts_are_looked_at_again_when_their_lease_is_lost(world: World) -> None:
    world.exclusive.wait(task(), LANE)
    world.grant()
    world.exclusive.began(task(), EventId(1, writer("eu"), 1, 0), 7)
    world.exclusive.forget(task().task)
    world.touched.clear()
    del world.lessor.leases[SCOPE]
    world.exclusive.changed(SCOPE)
    assert world.touched == [task().task]
    assert not world.exclusive.valid(task(), 7)


def test_a_lease_renewed_in_the_last_moment_starts_again_what_was_put_back(world: World) -> None:
    world.exclusive.wait(task(), LANE)
    world.grant(starts_until_ms=100)
    world.exclusive.ready(task())
    world.exclusive.wait(task(), LANE)  # as a dispatch in stasis does
    world.touched.clear()
    world.exclusive.review(200)
    assert world.touched == []
    world.lessor.leases[SCOPE] = Held(7, 3_000, 2_000, True)
    world.exclusive.review(300)
    assert world.touched == [task().task]


def test_when_too_many_leases_are_wanted_the_next_review_tries_again(world: World) -> None:
    world.lessor.full = True
    world.exclusive.wait(task(), LANE)
    world.lessor.full = False
    world.exclusive.review(0)
    assert world.lessor.wanted == [SCOPE]


def test_an_earlier_submission_with_a_key_moves_a_task_to_another_scope(world: World) -> None:
    world.exclusive.wait(task(), LANE)
    world.exclusive.wait(task(key="A17"), LANE)
    assert world.lessor.wanted == [SCOPE, "key:default/charge/A17"]
    world.exclusive.review(0)
    world.exclusive.review(IDLE_MS)
    assert world.lessor.wanted == ["key:default/charge/A17"]


def test_a_region_that_starts_nothing_gives_its_leases_back_once_nothing_runs(world: World) -> None:
    world.exclusive.wait(task(1), LANE)
    world.exclusive.wait(task(2), LANE)
    world.grant()
    world.exclusive.ready(task(2))
    attempt = EventId(1, writer("eu"), 1, 0)
    world.exclusive.began(task(1), attempt, 7)
    world.exclusive.forget(task(1).task)
    world.starts = False
    world.exclusive.review(0)
    world.exclusive.review(5 * IDLE_MS)
    assert world.lessor.wanted == [SCOPE], "what runs under it goes on"
    world.exclusive.ended(attempt)
    world.exclusive.review(6 * IDLE_MS)
    world.exclusive.review(7 * IDLE_MS)
    assert world.lessor.wanted == []
    world.exclusive.wait(task(2), LANE)
    assert world.lessor.wanted == []
    world.starts = True
    world.exclusive.review(8 * IDLE_MS)
    assert world.lessor.wanted == [SCOPE]


def test_a_lease_that_was_not_got_is_given_up_at_once_when_nothing_needs_it(world: World) -> None:
    """Found in swarm seed 203: leases of single tasks were bid for long after those had run elsewhere."""
    world.exclusive.wait(task(), LANE)
    world.exclusive.forget(task().task)
    world.exclusive.review(0)
    assert world.lessor.wanted == []


def test_how_many_wait_costs_nothing_to_whoever_asks_which_lanes_they_are_in(world: World) -> None:
    asked: list[Any] = []
    world.exclusive._serves = lambda lane: bool(asked.append(lane))  # None: no worker serves it
    for number in range(1, 101):
        world.exclusive.wait(task(number), LANE)
    world.exclusive.review(0)
    assert len(asked) <= 3 * 100, "each lane once for each that comes, not once for each that waits"
    for number in range(1, 101):
        world.exclusive.forget(task(number).task)
    assert not world.exclusive._scopes[SCOPE].lanes
