"""What checkers of tasks say of hand-made histories: each invariant broken once, and kept where nothing is broken."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from crdtsync import events as ev
from crdtsync.commands import TaskSpec
from crdtsync.effects import Assignment
from crdtsync.identifiers import TaskId, compensation_id
from crdtsync.protocol.codec import encode_value
from simulator.checkers.checkpoints import Checkpoints
from simulator.checkers.conflicts import Conflicts
from simulator.checkers.dependencies import Dependencies
from simulator.checkers.idempotency import Idempotency
from simulator.checkers.lifecycle import Lifecycle
from simulator.checkers.placement import Placement, order_of
from simulator.checkers.retries import Retries
from tests.simulator.stage import OPTIONS, Stage, submitted

UNDONE = OPTIONS._replace(compensate="refund")
T = TaskId(b"t" * 16)


def undo(stage, name, task, attempt, effects=("charge",), *, key=b"", id=b""):
    losing = {"effects": dict.fromkeys(effects, 1)}
    event = submitted(
        id or compensation_id(TaskId(task), attempt, key or None),
        name,
        OPTIONS._replace(partition="wait"),
        payload=encode_value(losing),
        undoes=(TaskId(task), attempt, key),
    )
    stage.commit(name, event)


class TestLifecycle:
    def test_a_plain_life_is_fine(self):
        stage = Stage(Lifecycle, "eu", "us")
        task = stage.submit("eu")
        attempt = stage.claim("eu", task)
        stage.effect("eu", task, attempt)
        stage.end("eu", task, attempt, "failed")
        won = stage.claim("eu", task)
        stage.end("eu", task, won)
        stage.deliver("eu")
        stage.row("eu", task)
        stage.view("eu", task, winner=won)
        assert stage.found(end=True) == []

    def test_starting_what_was_cancelled_is_reported(self):
        stage = Stage(Lifecycle, "eu", "us")
        task = stage.submit("eu")
        stage.commit("eu", ev.CancelRequested(TaskId(task), False, ""))
        stage.claim("eu", task)
        assert stage.found() == ["TASK-3"]

    def test_starting_what_was_cancelled_elsewhere_and_not_yet_heard_of_is_fine(self):
        stage = Stage(Lifecycle, "eu", "us")
        task = stage.submit("eu")
        stage.deliver("eu")
        stage.commit("us", ev.CancelRequested(TaskId(task), False, ""))
        stage.claim("eu", task)
        assert stage.found() == []

    def test_starting_what_has_expired_is_reported(self):
        stage = Stage(Lifecycle, "eu", "us")
        task = stage.submit("eu", deadline_ms=1)
        stage.commit("eu", ev.Expired(TaskId(task), False))
        stage.claim("eu", task)
        assert stage.found() == ["TASK-3"]

    def test_a_second_end_by_who_knew_the_first_is_reported(self):
        stage = Stage(Lifecycle, "eu", "us")
        task = stage.submit("eu")
        attempt = stage.claim("eu", task)
        stage.end("eu", task, attempt, "lost")
        stage.end("eu", task, attempt)
        assert stage.found() == ["TASK-1"]

    def test_an_end_by_another_region_is_reported(self):
        stage = Stage(Lifecycle, "eu", "us")
        task = stage.submit("eu")
        attempt = stage.claim("eu", task)
        stage.deliver("eu")
        stage.end("us", task, attempt)
        assert stage.found() == ["TASK-1"]

    def test_a_requeue_of_what_is_not_dead_is_reported(self):
        stage = Stage(Lifecycle, "eu", "us")
        task = stage.submit("eu")
        stage.commit("eu", ev.Requeued(TaskId(task), 1))
        assert stage.found() == ["TASK-1"]

    def test_a_success_settled_before_every_member_has_it_is_reported(self):
        stage = Stage(Lifecycle, "eu", "us")
        task = stage.submit("eu")
        stage.end("eu", task, stage.claim("eu", task))
        stage.row("eu", task)
        assert stage.found() == ["TASK-4"]

    def test_a_settled_outcome_that_changes_is_reported(self):
        stage = Stage(Lifecycle, "eu", "us")
        task = stage.submit("eu")
        one = stage.claim("eu", task)
        stage.view("eu", task, winner=one)
        stage.view("us", task, winner="another")
        assert stage.found() == ["TASK-4"]

    def test_two_successes_without_a_conflict_are_reported(self):
        stage = Stage(Lifecycle, "eu", "us")
        task = stage.submit("eu")
        both = (SimpleNamespace(state="ok", token=0), SimpleNamespace(state="ok", token=0))
        stage.trace.add("view", "eu", task.hex(), ("succeeded", False, "w", None, ()),
                        subject=SimpleNamespace(attempts=both, conflicts=(), winner="w", expired=None, cancel=None))  # fmt: skip
        assert stage.found() == ["TASK-2"]


class TestConflicts:
    def cut(self, *, late=False):
        """Two regions run one task; eu's claim is the earlier one."""
        stage = Stage(Conflicts, "eu", "us")
        task = stage.submit("eu", options=UNDONE)
        stage.deliver("eu")
        mine = stage.claim("eu", task)
        stage.commit("us", ev.TermOpened(TaskId(task), 1, None))
        theirs = stage.claim("us", task, term=1)
        stage.effect("us", task, theirs, key=b"u" * 16)
        stage.end("us", task, theirs)
        stage.effect("eu", task, mine, key=b"e" * 16)
        stage.end("eu", task, mine, late=late)
        stage.deliver("eu")
        stage.deliver("us")
        return stage, task, mine, theirs

    def shown(self, stage, task, mine, theirs, winner):
        for name in ("eu", "us"):
            attempts = ((str(mine), "ok", False), (str(theirs), "ok", False))
            stage.view(name, task, winner=winner, attempts=attempts)

    def test_a_loser_that_is_undone_once_is_fine(self):
        stage, task, mine, theirs = self.cut()
        undo(stage, "us", task, theirs)
        stage.deliver("us")
        self.shown(stage, task, mine, theirs, mine)
        assert stage.found(end=True) == []

    def test_a_loser_that_nobody_undoes_is_reported(self):
        stage, task, mine, theirs = self.cut()
        self.shown(stage, task, mine, theirs, mine)
        assert stage.found(end=True) == ["CONF-1"]

    def test_another_winner_than_the_earliest_claim_is_reported(self):
        stage, task, mine, theirs = self.cut()
        undo(stage, "us", task, theirs)
        stage.deliver("us")
        self.shown(stage, task, mine, theirs, theirs)
        assert stage.found(end=True) == ["CONF-1"]

    def test_two_compensations_of_one_attempt_are_reported(self):
        stage, task, mine, theirs = self.cut()
        undo(stage, "us", task, theirs)
        undo(stage, "us", task, theirs, id=b"2" * 16)
        self.shown(stage, task, mine, theirs, mine)
        assert "CONF-2" in stage.found(end=True)

    def test_undoing_the_winner_is_reported(self):
        stage, task, mine, _ = self.cut()
        undo(stage, "eu", task, mine)
        assert stage.found() == ["CONF-4"]

    def test_undoing_an_effect_that_it_does_not_own_is_reported(self):
        stage, task, _, theirs = self.cut()
        undo(stage, "us", task, theirs, effects=("charge", "ship"))
        assert stage.found() == ["CONF-4"]

    def test_undoing_before_the_end_is_reported(self):
        stage = Stage(Conflicts, "eu", "us")
        task = stage.submit("eu", options=UNDONE)
        attempt = stage.claim("eu", task)
        stage.effect("eu", task, attempt)
        undo(stage, "eu", task, attempt)
        assert stage.found() == ["CONF-4"]

    def test_undoing_a_failed_attempt_before_the_success_is_settled_is_reported(self):
        stage = Stage(Conflicts, "eu", "us")
        task = stage.submit("eu", options=UNDONE)
        first = stage.claim("eu", task)
        stage.effect("eu", task, first)
        stage.end("eu", task, first, "failed")
        stage.end("eu", task, stage.claim("eu", task))
        undo(stage, "eu", task, first)
        assert stage.found() == ["CONF-4"]
        stage.deliver("eu")
        stage.store("us")
        stage.world.violations.clear()
        stage.checker._told.clear()
        undo(stage, "eu", task, first)
        assert stage.found() == []

    def test_a_lie_about_lateness_is_reported(self):
        stage = Stage(Conflicts, "eu", "us")
        task = stage.submit("eu")
        one = stage.claim("eu", task)
        other = stage.claim("eu", task)
        stage.end("eu", task, one)
        stage.end("eu", task, other)
        assert stage.found() == ["CONF-3"]

    def test_lateness_that_the_writer_could_not_know_of_is_a_lie_too(self):
        stage, *_ = self.cut(late=True)
        assert stage.found() == ["CONF-3"]

    def test_an_attempt_that_stays_open_and_runs_nowhere_is_reported(self):
        stage, task, mine, theirs = self.cut()
        undo(stage, "us", task, theirs)
        stage.deliver("us")
        for name in ("eu", "us"):
            attempts = ((str(mine), "ok", False), (str(theirs), "open", False))
            stage.view(name, task, winner=mine, attempts=attempts)
        assert stage.found(end=True) == ["CONF-7"]


class TestIdempotency:
    def effect(self, stage, task, attempt, key=b"k", *, name="charge", node="eu"):
        stage.trace.add("effect.done", node, key.hex(), (task.hex(), str(attempt), name, 0))

    def spec(self, **fields):
        return SimpleNamespace(specs=[TaskSpec(name="t", payload=b"\x01", **fields)])

    def test_one_key_that_stands_for_two_tasks_is_reported(self):
        stage = Stage(Idempotency, "eu", "us")
        for _ in range(2):
            task = stage.submit("eu", key="k")
            stage.answer("eu", "submit", task, [{"id": task.hex()}], command=self.spec(key="k"))
        assert stage.found() == ["IDEM-1"]

    def test_one_key_that_stands_for_one_task_is_fine(self):
        stage = Stage(Idempotency, "eu", "us")
        task = stage.submit("eu", key="k")
        for _ in range(2):
            stage.answer("eu", "submit", task, [{"id": task.hex()}], command=self.spec(key="k"))
        assert stage.found() == []

    def test_another_payload_that_is_accepted_is_reported(self):
        stage = Stage(Idempotency, "eu", "us")
        task = stage.submit("eu", payload=b"\x02")
        stage.answer("eu", "submit", task, [{"id": task.hex()}], command=self.spec())
        assert stage.found() == ["IDEM-1"]

    def test_a_submission_that_is_written_twice_is_reported(self):
        stage = Stage(Idempotency, "eu", "us")
        task = stage.submit("eu")
        stage.deliver("eu")
        stage.submit("us", task=task)
        assert stage.found() == ["IDEM-3"]

    def test_a_submission_made_on_two_sides_of_a_cut_is_fine(self):
        stage = Stage(Idempotency, "eu", "us")
        task = stage.submit("eu")
        stage.submit("us", task=task)
        assert stage.found() == []

    def retried(self, **claim):
        stage = Stage(Idempotency, "eu", "us")
        task = stage.submit("eu")
        first = stage.claim("eu", task)
        self.effect(stage, task, first)
        record = stage.effect("eu", task, first) if claim.pop("recorded", True) else None
        stage.end("eu", task, first, "failed")
        second = stage.claim("eu", task, continues=first, continues_ended=True, relies=(record,) if record else ())
        return stage, task, second

    def test_an_effect_that_is_done_again_though_it_was_recorded_is_reported(self):
        stage, task, second = self.retried()
        self.effect(stage, task, second)
        assert stage.found() == ["IDEM-2"]

    def test_an_effect_that_was_not_recorded_meets_the_sink_under_its_old_key(self):
        stage, task, second = self.retried(recorded=False)
        self.effect(stage, task, second)
        assert stage.found() == []
        self.effect(stage, task, second, key=b"other")
        assert stage.found() == ["IDEM-2"]

    def test_a_key_shared_across_a_cut_is_reported(self):
        stage = Stage(Idempotency, "eu", "us")
        task = stage.submit("eu")
        stage.deliver("eu")
        one, other = stage.claim("eu", task), stage.claim("us", task)
        self.effect(stage, task, one)
        self.effect(stage, task, other, node="us")
        assert stage.found() == ["IDEM-2"]


class TestPlacement:
    def names(self, last):
        """A task in whose rendezvous order `last` comes last."""
        regions = ("eu", "us", "ap")
        return next(bytes([n]) * 16 for n in range(256) if order_of(bytes([n]) * 16, regions)[-1] == last)

    def test_whoever_does_not_own_must_not_claim(self):
        stage = Stage(Placement, "eu", "us")
        task = stage.submit("eu")
        stage.claim("eu", task)
        assert stage.found() == []
        stage.deliver("eu")
        stage.claim("us", task)
        assert stage.found() == ["OWN-1"]

    def test_a_takeover_of_a_silent_owner_is_fine(self):
        stage = Stage(Placement, "eu", "us")
        task = stage.submit("eu")
        stage.deliver("eu")
        stage.wait(4_000)
        stage.commit("us", ev.TermOpened(TaskId(task), 1, None))
        stage.claim("us", task, term=1)
        assert stage.found() == []

    def test_a_takeover_of_an_owner_that_was_heard_is_reported(self):
        stage = Stage(Placement, "eu", "us")
        stage.wait(4_000)
        task = stage.submit("eu")
        stage.deliver("eu")
        stage.wait(1_000)
        stage.commit("us", ev.TermOpened(TaskId(task), 1, None))
        assert stage.found() == ["OWN-2"]

    def test_a_takeover_out_of_turn_is_reported(self):
        task = self.names("us")
        stage = Stage(Placement, "eu", "us", "ap")
        stage.submit("eu", task=task)
        stage.deliver("eu")
        stage.wait(3_500)
        stage.submit("ap")
        stage.deliver("ap", "us")
        stage.wait(500)
        stage.commit("us", ev.TermOpened(TaskId(task), 1, None))
        assert stage.found() == ["OWN-2"]

    def test_a_takeover_of_what_only_its_owner_may_run_is_reported(self):
        stage = Stage(Placement, "eu", "us")
        task = stage.submit("eu", options=OPTIONS._replace(partition="wait"))
        stage.deliver("eu")
        stage.wait(10_000)
        stage.commit("us", ev.TermOpened(TaskId(task), 1, None))
        assert stage.found() == ["OWN-2"]

    def test_offers_are_taken_up_by_whom_they_name(self):
        for taker, expected in (("us", []), ("ap", ["OWN-3"])):
            stage = Stage(Placement, "eu", "us", "ap")
            task = stage.submit("eu")
            (offer,) = stage.commit("eu", ev.Offered(TaskId(task), 0, "us", "drain"))
            stage.deliver("eu")
            stage.commit(taker, ev.TermOpened(TaskId(task), 1, offer))
            assert stage.found() == expected

    def test_the_giver_starts_nothing_that_it_has_offered(self):
        stage = Stage(Placement, "eu", "us")
        task = stage.submit("eu")
        stage.commit("eu", ev.Offered(TaskId(task), 0, "us", "drain"))
        stage.claim("eu", task)
        assert stage.found() == ["OWN-3"]

    def test_owners_are_members(self):
        stage = Stage(Placement, "eu", "us")
        stage.submit("eu", owner="mars")
        assert stage.found() == ["LOC-1"]

    def test_a_keyed_task_that_must_not_run_twice_belongs_to_one_region_for_all(self):
        regions = ("eu", "us")
        task = next(bytes([n]) * 16 for n in range(256) if order_of(bytes([n]) * 16, regions)[0] == "us")
        stage = Stage(Placement, *regions)
        stage.submit("eu", task=task, key="k", options=OPTIONS._replace(partition="wait"))
        assert stage.found() == ["LOC-1"]


class TestDependencies:
    def pair(self, *, settled=False):
        stage = Stage(Dependencies, "eu", "us")
        parent = stage.submit("eu")
        child = stage.submit("eu", after=((TaskId(parent), settled),))
        return stage, parent, child

    def test_a_child_that_rests_on_its_parents_winner_is_fine(self):
        stage, parent, child = self.pair()
        won = stage.claim("eu", parent)
        stage.end("eu", parent, won)
        stage.claim("eu", child, inputs=((TaskId(parent), won),))
        assert stage.found(end=True) == []

    def test_a_child_that_starts_before_its_parent_has_succeeded_is_reported(self):
        stage, parent, child = self.pair()
        won = stage.claim("eu", parent)
        stage.claim("eu", child, inputs=((TaskId(parent), won),))
        assert stage.found() == ["DAG-1"]

    def test_a_child_that_names_another_attempt_is_reported(self):
        stage, parent, child = self.pair()
        stage.end("eu", parent, stage.claim("eu", parent))
        stage.claim("eu", child)
        assert stage.found() == ["DAG-1"]

    def test_a_child_that_waits_for_settlement_and_does_not_get_it_is_reported(self):
        stage, parent, child = self.pair(settled=True)
        won = stage.claim("eu", parent)
        stage.end("eu", parent, won)
        stage.claim("eu", child, inputs=((TaskId(parent), won),))
        assert stage.found() == ["DAG-1"]

    def test_a_parent_that_its_region_does_not_hold_is_reported(self):
        stage = Stage(Dependencies, "eu", "us")
        parent = stage.submit("us")
        stage.submit("eu", after=((TaskId(parent), False),))
        assert stage.found() == ["DAG-2"]

    def test_a_circle_is_reported(self):
        stage = Stage(Dependencies, "eu")
        a, b = b"a" * 16, b"b" * 16
        stage.submit("eu", task=a, after=((TaskId(b), False),))
        stage.submit("eu", task=b, after=((TaskId(a), False),))
        assert stage.found(end=True) == ["DAG-2"]

    def test_a_child_that_waits_for_ever_is_reported(self):
        stage, parent, child = self.pair()
        stage.wait(60_000)
        stage.view("eu", parent, "dead")
        stage.view("eu", child, "waiting", settled=False)
        assert stage.found(end=True) == ["DAG-4"]


class TestCheckpoints:
    def assignment(self, task, attempt, **fields):
        values = {"number": 1, "name": "t", "payload": b"", "term": 0, "region": "eu", "fence": 0, "deadline_ms": 0,
                  "timeout_ms": 0, "root": attempt, "effects": (), "checkpoint": None, "checkpoint_index": 0,
                  "undoes": None, "document": b"", **fields}  # fmt: skip
        return Assignment(task=task, attempt=attempt, **values)

    def begin(self, stage, task, attempt, **fields):
        data = (task.hex(), "t", 1, 0, 0, "w")
        subject = self.assignment(task, attempt, **fields)
        stage.trace.add("task.assigned", "eu", str(attempt), data, subject=subject)

    def retry(self, *, effects=()):
        stage = Stage(Checkpoints, "eu", "us")
        task = stage.submit("eu")
        first = stage.claim("eu", task)
        self.begin(stage, task, first)
        stage.commit("eu", ev.Checkpointed(TaskId(task), first, 1, b"one"))
        stage.commit("eu", ev.Checkpointed(TaskId(task), first, 2, b"two"))
        recorded = [stage.effect("eu", task, first, what) for what in effects]
        stage.end("eu", task, first, "lost")
        second = stage.claim("eu", task, continues=first, continues_ended=True, relies=tuple(recorded))
        return stage, task, first, second

    def test_going_on_from_the_newest_is_fine(self):
        stage, task, _, second = self.retry(effects=("charge",))
        self.begin(stage, task, second, checkpoint=b"two", checkpoint_index=2, effects=(("charge", b"\x01"),))
        stage.commit("eu", ev.Checkpointed(TaskId(task), second, 3, b"three"))
        assert stage.found() == []

    def test_going_on_from_an_older_one_is_reported(self):
        stage, task, _, second = self.retry()
        self.begin(stage, task, second, checkpoint=b"one", checkpoint_index=1)
        assert stage.found() == ["CKPT-1"]

    def test_an_index_that_goes_back_is_reported(self):
        stage, task, first, _ = self.retry()
        stage.commit("eu", ev.Checkpointed(TaskId(task), first, 2, b"other"))
        assert stage.found() == ["CKPT-2"]

    def test_a_ledger_that_is_not_inherited_is_reported(self):
        stage, task, _, second = self.retry(effects=("charge",))
        self.begin(stage, task, second, checkpoint=b"two", checkpoint_index=2)
        assert stage.found() == ["CKPT-3"]

    def test_an_attempt_that_continues_nothing_though_it_could_is_reported(self):
        stage, task, _, _ = self.retry()
        third = stage.claim("eu", task)
        self.begin(stage, task, third)
        assert stage.found() == ["CKPT-3"]


class TestRetries:
    def failing(self, times, *, retryable=True, rest_ms=60_000):
        stage = Stage(Retries, "eu", "us")
        task = stage.submit("eu")
        for _ in range(times):
            stage.end("eu", task, stage.claim("eu", task), "failed", retryable=retryable)
            stage.wait(rest_ms)
        return stage, task

    def test_retries_within_what_is_granted_are_fine(self):
        stage, task = self.failing(2)
        stage.claim("eu", task)
        assert stage.found() == []

    def test_an_attempt_too_many_is_reported(self):
        stage, task = self.failing(3)
        stage.claim("eu", task)
        assert stage.found() == ["RETRY-1"]

    def test_a_requeue_grants_as_many_again(self):
        stage, task = self.failing(3)
        stage.commit("eu", ev.Requeued(TaskId(task), 1))
        stage.claim("eu", task)
        assert stage.found() == []

    def test_two_requeues_of_one_death_grant_once(self):
        stage, task = self.failing(3)
        for _ in range(2):
            stage.commit("eu", ev.Requeued(TaskId(task), 1))
        for _ in range(3):
            stage.end("eu", task, stage.claim("eu", task), "failed")
            stage.wait(60_000)
        assert stage.found() == []
        stage.claim("eu", task)
        assert stage.found() == ["RETRY-1"]

    def test_a_retry_without_rest_is_reported(self):
        stage, task = self.failing(1, rest_ms=100)
        stage.claim("eu", task)
        assert stage.found() == ["RETRY-2"]

    def test_a_retry_of_what_must_not_be_retried_is_reported(self):
        stage, task = self.failing(1, retryable=False)
        stage.claim("eu", task)
        assert stage.found() == ["RETRY-4"]

    @pytest.mark.parametrize("times, expected", [(3, []), (1, ["DLQ-1"])])
    def test_a_dead_letter_has_used_up_what_it_was_granted(self, times, expected):
        stage, task = self.failing(times)
        stage.row("eu", task, "dead", settled=False)
        assert stage.found() == expected
