"""A cell of the vacuity table counts only what was judged where, and while, a fault had changed something."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from crdtsync.limit import Limit
from simulator import Arrivals, Fault, Load, Plan, Region, Scenario, World
from simulator.catalogue import CATALOGUE
from simulator.checkers import INVARIANTS, all_checkers, vacuity_of
from simulator.hunting import GROUNDS
from simulator.trace import Trace
from simulator.vacuity import AFTER_US, IMPOSSIBLE, Vacuity, merge, missing, reason


@pytest.fixture
def played():
    kernel = SimpleNamespace(now_us=0)
    trace, vacuity = Trace(kernel), Vacuity()
    trace.listen(vacuity.kinds, vacuity.on_event)
    return kernel, trace, vacuity


def test_a_fault_that_changed_nothing_counts_for_nothing(played):
    _, trace, vacuity = played
    trace.add("fault.start", "", "f0", ("isolate", ("eu",), ()))
    vacuity.count("DUR-1", "eu", 1)
    assert vacuity.table == {}
    assert vacuity.judged["DUR-1"] == 1


def test_what_is_judged_in_the_region_it_struck_counts_until_a_while_after_its_end(played):
    kernel, trace, vacuity = played
    trace.add("fault.hit", "eu", "f0", ("isolate", "dropped"))
    vacuity.count("DUR-1", "eu", 1)
    vacuity.count("DUR-1", "us", 1)  # elsewhere
    kernel.now_us = 5_000_000
    trace.add("fault.end", "", "f0", ("isolate",))
    vacuity.count("DUR-1", "eu", kernel.now_us + AFTER_US)
    vacuity.count("DUR-1", "eu", kernel.now_us + AFTER_US + 1)
    assert vacuity.table == {"isolate": {"DUR-1": 2}}


def test_what_happens_at_once_has_consequences_for_a_while(played):
    _, trace, vacuity = played
    trace.add("fault.hit", "eu", "f0", ("link_reset", "reset"))
    vacuity.count("DUR-1", "eu", AFTER_US)
    vacuity.count("DUR-1", "eu", AFTER_US + 1)
    assert vacuity.table == {"link_reset": {"DUR-1": 1}}


def test_a_task_remembers_the_faults_that_it_met(played):
    _, trace, vacuity = played
    trace.add("fault.hit", "eu", "f0", ("kill", "killed"))
    vacuity.touch(b"met", "eu", 1)
    vacuity.touch(b"not", "us", 1)
    vacuity.count_task("CONF-1", b"met")
    vacuity.count_task("CONF-1", b"not")
    assert vacuity.table == {"kill": {"CONF-1": 1}}


def test_what_is_judged_over_a_whole_run_has_met_whatever_struck(played):
    _, trace, vacuity = played
    trace.add("fault.hit", "eu", "f0", ("kill", "killed"))
    trace.add("fault.end", "", "f0", ("kill",))
    vacuity.count_ever("CONV-5", "eu")
    vacuity.count_ever("CONV-5", "us")
    assert vacuity.table == {"kill": {"CONV-5": 1}}


def test_an_empty_cell_is_missing_unless_the_pair_cannot_meet(monkeypatch):
    monkeypatch.setitem(IMPOSSIBLE, ("pause", "NET-4"), "nobody dials who stands still")
    full = {kind: dict.fromkeys(INVARIANTS, 1) for kind in CATALOGUE}
    assert missing(full, INVARIANTS) == []
    del full["kill"]["DUR-1"]
    assert missing(full, INVARIANTS) == [("kill", "DUR-1")]
    full["kill"]["DUR-1"] = 1
    full["pause"].pop("NET-4")
    assert missing(full, INVARIANTS) == []
    assert reason("pause", "NET-4")


def test_what_cannot_meet_is_named_right():
    for kind, invariant in IMPOSSIBLE:
        assert kind in (*CATALOGUE, "*")
        assert invariant in INVARIANTS


def test_tables_of_runs_add_up():
    assert merge([{"kill": {"DUR-1": 1}}, {"kill": {"DUR-1": 2}, "pause": {"DUR-1": 1}}]) == {
        "kill": {"DUR-1": 3},
        "pause": {"DUR-1": 1},
    }


def test_a_run_fills_the_table_of_the_faults_that_it_had():
    checkers = all_checkers()
    world = World(GROUNDS["storm"](1), 1, checkers=checkers, keep=False)
    assert world.run().ok
    table = vacuity_of(checkers).table
    assert {fault.fault.kind for fault in world.faults if fault.hits} == set(table)
    for invariant in ("DUR-1", "LOG-2", "CONV-1", "TASK-1", "OWN-1", "HLC-2"):
        assert table["isolate"][invariant], invariant


@pytest.mark.parametrize(
    "kind, invariant, scenario",
    [
        pytest.param(
            "worker_deaf",
            "OWN-3",
            Scenario(
                name="deaf",
                regions=(Region("eu"), Region("us"), Region("ap")),
                loads=(Load("charge", Arrivals(per_s=3)),),
                plan=Plan(
                    (
                        Fault("worker_deaf", 3_000, 8_000, ("eu",)),
                        Fault("cancel_storm", 3_000, 8_000, ("eu",), {"rate": 0.6, "within_ms": 300}),
                        Fault("drain", 3_000, 10_000, ("us",)),
                    ),
                    14_000,
                ),
                duration_ms=20_000,
            ),
            id="a worker is deaf while its region takes up offers",
        ),
        pytest.param(
            "cancel_storm",
            "CAP-1",
            Scenario(
                name="storm",
                regions=(Region("eu"), Region("us"), Region("ap")),
                loads=(Load("limited", Arrivals(per_s=3)),),
                plan=Plan((Fault("cancel_storm", 3_000, 8_000, ("eu",), {"rate": 0.5}),), 12_000),
                limits=(Limit(queue="limited", concurrency=3, scope="global"),),
                duration_ms=20_000,
            ),
            id="tasks are cancelled while a limit holds",
        ),
    ],
)
def test_pairs_that_the_swarm_missed_can_meet(kind, invariant, scenario):
    checkers = all_checkers()
    world = World(scenario, 1, checkers=checkers, keep=False)
    assert world.run().ok
    assert vacuity_of(checkers).table[kind][invariant] > 0
