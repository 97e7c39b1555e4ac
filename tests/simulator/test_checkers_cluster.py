"""What checkers of replicas, clocks, links and progress say of hand-made histories."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

import simulator.checkers
from crdtsync import events as ev
from crdtsync.clock import make_stamp
from crdtsync.identifiers import TaskId
from simulator.checkers import FAMILIES, INVARIANTS, Chronicle, all_checkers, boundedness, time
from simulator.checkers.boundedness import Boundedness
from simulator.checkers.convergence import Convergence
from simulator.checkers.liveness import Liveness
from simulator.checkers.time import Time
from simulator.clock import EPOCH_US
from simulator.trace import SCHEMA
from tests.simulator.stage import OPTIONS, Stage

FORBIDDEN = {"resolve", "undoing", "lifecycle", "conflicts", "scheduling", "workflow", "tasks", "duties", "settlement"}


def test_no_checker_calls_the_rule_that_it_checks():
    """`peek` may read limits; nobody imports what decides."""
    for path in Path(simulator.checkers.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = []
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            for module in modules:
                part = module.removeprefix("crdtsync.").partition(".")[0]
                if module.startswith("crdtsync.") and path.name != "peek.py":
                    assert part not in FORBIDDEN, f"{path.name} imports {module}"


def test_every_invariant_has_one_family_and_every_family_listens_to_records_that_exist():
    assert len(set(INVARIANTS)) == len(INVARIANTS)
    for family in (Chronicle, *FAMILIES):
        assert set(family.kinds) <= SCHEMA.keys()
    assert len(all_checkers()) == 1 + len(FAMILIES)


class TestConvergence:
    def test_equal_commits_and_equal_states_are_fine(self):
        stage = Stage(Convergence, "eu", "us")
        task = stage.submit("eu")
        stage.deliver("eu")
        stage.heads()
        stage.view("eu", task, "waiting", settled=False)
        stage.view("us", task, "waiting", settled=False)
        assert stage.found(end=True) == []

    def test_equal_commits_and_different_states_are_reported_at_once(self):
        stage = Stage(Convergence, "eu", "us")
        stage.submit("eu")
        stage.node("us").digest = b"other"
        stage.deliver("eu")
        assert stage.found() == ["CONV-1"]

    def test_equal_heads_and_different_digests_at_the_end_are_reported(self):
        stage = Stage(Convergence, "eu", "us")
        stage.submit("eu")
        stage.deliver("eu")
        stage.node("us").digest = b"other"
        stage.heads()
        assert stage.found(end=True) == ["CONV-2"]

    def test_a_vector_that_goes_back_is_reported(self):
        stage = Stage(Convergence, "eu", "us")
        stage.submit("eu")
        stage.submit("eu")
        stage.node("eu").applied[stage.node("eu").writer] = 1
        stage.store("eu")
        assert "CONV-4" in stage.found()

    def test_what_is_not_handed_round_after_the_heal_is_reported(self):
        stage = Stage(Convergence, "eu", "us")
        stage.submit("eu")
        stage.checker.at_heal(stage.world)
        stage.wait(600_000)
        assert stage.found(end=True) == ["CONV-5"]

    def test_what_is_handed_round_in_time_is_fine(self):
        stage = Stage(Convergence, "eu", "us")
        stage.submit("eu")
        stage.checker.at_heal(stage.world)
        stage.wait(2_000)
        stage.deliver("eu")
        stage.wait(600_000)
        assert stage.found(end=True) == []

    @pytest.mark.parametrize("state, winner", [("waiting", None), ("succeeded", "someone")])
    def test_a_state_that_the_commits_do_not_make_is_reported(self, state, winner):
        stage = Stage(Convergence, "eu", "us")
        task = stage.submit("eu")
        stage.end("eu", task, stage.claim("eu", task))
        stage.heads()
        stage.view("eu", task, state, winner=winner)
        assert "CONV-6" in stage.found(end=True)

    def test_an_attempt_that_is_missing_from_a_view_is_reported(self):
        stage = Stage(Convergence, "eu", "us")
        task = stage.submit("eu")
        stage.claim("eu", task)
        stage.heads()
        stage.view("eu", task, "running", settled=False)
        assert stage.found(end=True) == ["CONV-8"]

    def test_an_edit_that_is_missing_from_a_view_is_reported(self):
        stage = Stage(Convergence, "eu", "us")
        task = stage.submit("eu")
        stage.commit("eu", ev.PriorityEdited(TaskId(task), 7, None))
        stage.heads()
        stage.view("eu", task, "waiting", settled=False)
        assert stage.found(end=True) == ["CONV-8"]

    def test_converged_regions_that_show_different_results_are_reported(self):
        stage = Stage(Convergence, "eu", "us")
        task = stage.submit("eu")
        stage.deliver("eu")
        stage.heads()
        stage.view("eu", task, "waiting", settled=False, result=b"\x01")
        stage.view("us", task, "waiting", settled=False, result=b"\x02")
        assert stage.found(end=True) == ["CONV-2"]


class TestTime:
    def stamp(self, stage, ahead_ms=0):
        return make_stamp((EPOCH_US + stage.world.kernel.now_us) // 1_000 + ahead_ms)

    def test_stamps_that_grow_and_stay_near_true_time_are_fine(self):
        stage = Stage(Time, "eu", "us")
        stage.submit("eu")
        stage.deliver("eu")
        stage.submit("us")
        stage.start("us")
        stage.submit("us")
        assert stage.found() == []

    def test_a_stamp_that_goes_back_over_a_restart_is_reported(self):
        stage = Stage(Time, "eu", "us")
        stage.submit("eu")
        stage.start("eu")
        stage.commit("eu", ev.Requeued(TaskId(b"t" * 16), 1), stamp=self.stamp(stage, -500))
        assert "HLC-1" in stage.found()

    def test_a_stamp_before_what_its_writer_had_seen_is_reported(self):
        stage = Stage(Time, "eu", "us")
        stage.submit("eu")
        stage.deliver("eu")
        stage.commit("us", ev.Requeued(TaskId(b"t" * 16), 1), stamp=self.stamp(stage, -500))
        assert stage.found() == ["HLC-2"]

    def test_a_stamp_ahead_of_every_clock_is_reported(self):
        stage = Stage(Time, "eu", "us")
        stage.commit("eu", ev.Requeued(TaskId(b"t" * 16), 1), stamp=self.stamp(stage, 5_000))
        assert stage.found() == ["HLC-3"]

    def test_a_commit_from_the_future_that_is_applied_is_reported(self):
        stage = Stage(Time, "eu", "us")
        self.be_ahead(stage, 2_000)
        stage.commit("eu", ev.Requeued(TaskId(b"t" * 16), 1), stamp=self.stamp(stage, 2_000))
        stage.deliver("eu")
        assert stage.found() == ["HLC-4"]

    @staticmethod
    def be_ahead(stage, ms, region="eu"):
        """Its wall clock, and the time that it stamps with."""
        stage.node(region).clock.step(ms * 1_000)
        stage.node(region).replica._here.clock._offset_ns += ms * 1_000_000

    def test_a_stamp_ahead_of_its_region_s_own_time_is_reported(self):
        stage = Stage(Time, "eu", "us")
        stage.node("us").clock.step(2_000_000)  # so that it is ahead of no wall clock
        stage.commit("eu", ev.Requeued(TaskId(b"t" * 16), 1), stamp=self.stamp(stage, 2_000))
        assert stage.found() == ["HLC-3"]

    @pytest.mark.parametrize("linked, expected", [(("us", "ap"), ["HLC-3"]), (("us",), [])])
    def test_who_stamps_though_a_majority_tells_it_that_it_is_off_is_reported(self, linked, expected):
        stage = Stage(Time, "eu", "us", "ap")
        self.be_ahead(stage, 5_000)
        stage.node("eu").links = {region: object() for region in linked}
        for _ in range(2):
            stage.submit("us")
            stage.wait(6_000)
        stage.commit("eu", ev.Requeued(TaskId(b"t" * 16), 1), stamp=self.stamp(stage, 5_000))
        assert stage.found() == expected

    @pytest.mark.parametrize("ahead_ms, expected", [(0, ["HLC-4"]), (5_000, [])])
    def test_who_is_stopped_by_others_clocks_alone_is_reported(self, ahead_ms, expected):
        stage = Stage(Time, "eu", "us", "ap")
        self.be_ahead(stage, ahead_ms)
        stage.node("eu").replica._here.stamps = False
        stage.submit("us")
        stage.deliver("us")
        assert stage.found() == expected

    @pytest.mark.parametrize("past_ms, expected", [(-1_000, []), (3_000, ["TIME-2"])])
    def test_who_wakes_and_starts_what_is_past_its_deadline_is_reported(self, past_ms, expected):
        stage = Stage(Time, "eu", "us")
        task = stage.submit("eu", deadline_ms=(EPOCH_US + stage.world.kernel.now_us) // 1_000 + 10_000 - past_ms)
        stage.wait(10_000)
        stage.trace.add("node.resume", "eu", "eu")
        stage.claim("eu", task)
        assert stage.found() == expected

    def test_a_counter_that_runs_away_is_reported(self):
        stage = Stage(Time, "eu", "us")
        stage.commit("eu", ev.Requeued(TaskId(b"t" * 16), 1), stamp=self.stamp(stage) + time.COUNTER_ODD)
        assert stage.found() == ["HLC-5"]

    def test_two_commits_of_one_writer_with_one_stamp_are_reported(self):
        stage = Stage(Time, "eu", "us")
        stamp = self.stamp(stage, 10)
        for death in (1, 2):
            stage.commit("eu", ev.Requeued(TaskId(b"t" * 16), death), stamp=stamp)
        assert "HLC-6" in stage.found()

    @pytest.mark.parametrize("early_ms, expected", [(0, []), (1_000, ["TIME-1"])])
    def test_a_task_that_starts_before_its_time_is_reported(self, early_ms, expected):
        stage = Stage(Time, "eu", "us")
        due = (EPOCH_US + stage.world.kernel.now_us) // 1_000 + early_ms
        task = stage.submit("eu", not_before_ms=due)
        stage.claim("eu", task)
        assert stage.found() == expected

    def test_a_task_that_expires_before_its_deadline_is_reported(self):
        stage = Stage(Time, "eu", "us")
        task = stage.submit("eu", deadline_ms=(EPOCH_US + stage.world.kernel.now_us) // 1_000 + 9_000)
        stage.commit("eu", ev.Expired(TaskId(task), False))
        assert stage.found() == ["TIME-1"]


class TestBoundedness:
    @pytest.fixture(autouse=True)
    def _nothing_inside(self, monkeypatch):
        monkeypatch.setattr(boundedness, "queues", lambda node: {})
        monkeypatch.setattr(boundedness, "commits_sent", lambda node: 0)

    def test_a_queue_beyond_its_limit_is_reported(self, monkeypatch):
        for length, expected in ((5, []), (6, ["BP-1"])):
            monkeypatch.setattr(boundedness, "queues", lambda node, length=length: {"things": (length, 5)})
            stage = Stage(Boundedness, "eu", "us")
            stage.submit("eu")
            assert stage.found() == expected

    def test_commits_that_are_sent_too_often_are_reported(self, monkeypatch):
        for sent, expected in ((10, []), (10_000, ["NET-2"])):
            monkeypatch.setattr(boundedness, "commits_sent", lambda node, sent=sent: sent)
            stage = Stage(Boundedness, "eu", "us")
            stage.submit("eu")
            assert stage.found(end=True) == expected

    @pytest.mark.parametrize("per_s, expected", [(2, []), (40, ["NET-3"])])
    def test_chatter_at_rest_is_reported(self, per_s, expected):
        stage = Stage(Boundedness, "eu", "us")
        stage.submit("eu")
        for _ in range(5):
            stage.wait(1_000)
            for _ in range(per_s):
                stage.trace.add("net.send", "eu", "m", ("us", 10, 0))
        assert stage.found(end=True) == expected

    @pytest.mark.parametrize("dials, expected", [(5, []), (30, ["NET-4"])])
    def test_a_reconnect_storm_is_reported(self, dials, expected):
        stage = Stage(Boundedness, "eu", "us")
        for _ in range(dials):
            stage.trace.add("net.dial", "eu", "l", ("us",))
        assert stage.found() == expected


class TestLiveness:
    def stuck(self, after_ms, **shown):
        stage = Stage(Liveness, "eu", "us")
        task = stage.submit("eu")
        stage.wait(after_ms)
        stage.view("eu", task, "waiting", settled=False, **shown)
        return stage.found(end=True)

    def test_a_task_that_lies_still_is_reported(self):
        assert self.stuck(120_000) == ["LIVE-TASK"]

    def test_a_task_that_may_still_move_is_not(self):
        assert self.stuck(5_000) == []
        later = SimpleNamespace(
            not_before_ms=(EPOCH_US // 1_000) * 2, after=(), options=OPTIONS, queue="q", name="t", key=""
        )
        assert self.stuck(120_000, submitted=later) == []

    @pytest.mark.parametrize("gap_ms, expected", [(500, []), (3_500, ["AVAIL-1"])])
    def test_a_region_that_is_well_and_does_not_answer_is_reported(self, gap_ms, expected):
        stage = Stage(Liveness, "eu", "us")
        stage.wait(10_000)
        stage.trace.add("client.call", "eu", "c0", ("submit", "", 1))
        stage.wait(gap_ms)
        stage.trace.add("client.call", "us", "c0", ("submit", "", 2))
        assert stage.found() == expected

    def test_a_region_whose_disk_ails_need_not_answer(self):
        stage = Stage(Liveness, "eu", "us")
        fault = SimpleNamespace(over=False, hits=Counter(eu=1), fault=SimpleNamespace(kind="disk_full"))
        stage.world.faults.append(fault)
        stage.wait(10_000)
        stage.trace.add("client.call", "eu", "c0", ("submit", "", 1))
        stage.wait(3_500)
        stage.trace.add("client.call", "us", "c0", ("submit", "", 2))
        assert stage.found() == []
