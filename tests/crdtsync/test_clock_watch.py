"""A region whose clock is wrong: what it refuses, what waits, when it is over (design 4, HLC-3, HLC-4, TIME-1, TIME-2)."""

from __future__ import annotations

import pytest

from crdtsync import commands as c
from crdtsync import effects as e
from crdtsync.clock import MAX_SKEW_MS
from crdtsync.clock_watch import CALM_MS
from crdtsync.identifiers import RegionId
from crdtsync.protocol.codec import encode_value
from tests.cluster import EPOCH_MS, AskError, Cluster, Outcome, succeed

HOUR_MS = 3_600_000
YEAR_2099_MS = 2_335_219_200_000 + 86_400_000 * 365 * 55


def clock(cluster: Cluster, region: str) -> dict:
    return cluster.nodes[RegionId(region)].ask(c.ShowClock())


def verdicts(cluster: Cluster) -> dict[str, str]:
    return {region: clock(cluster, region)["verdict"] for region in cluster.nodes}


def rung(cluster: Cluster, region: str) -> list[str]:
    return sorted(n.what for n in cluster.nodes[RegionId(region)].notices if n.level == "alarm")


def restart_with_clock(cluster: Cluster, region: str, wall_offset_ms: int, *, run_ms: int = 3_000) -> None:
    cluster.crash(region)
    cluster.nodes[RegionId(region)].wall_offset_ms = wall_offset_ms
    cluster.restart(region)
    cluster.run_for(run_ms)


def stamped_ahead_ms(cluster: Cluster) -> int:
    """How far the furthest stamp on any disk is ahead of what a right clock shows."""
    return max(
        (row.stamp >> 16) - EPOCH_MS - cluster.time_ms
        for node in cluster.nodes.values()
        for row in node.store._commits.values()
    )


def outvoted(cluster: Cluster, region: str, off_ms: int) -> None:
    """The clock of `region`, which goes on running, comes to be that far off the two others'."""
    cluster.isolate(region)
    for other in cluster.nodes:
        if other != region:
            cluster.isolate(other)
    for other in cluster.nodes:
        if other != region:
            restart_with_clock(cluster, other, -off_ms)
    cluster.heal()
    cluster.run_for(3_000)


# One bad clock of three ----------------------------------------------------------------------------


def test_three_right_clocks_agree() -> None:
    cluster = Cluster("eu", "us", "ap")
    cluster.run_for(2_000)
    shown = clock(cluster, "eu")
    assert set(verdicts(cluster).values()) == {"agrees"}
    assert shown["majority"] == {"needed": 2, "measured": 3, "agree": 3, "offset_ms": 0, "uncertainty_ms": 21}
    assert shown["peers"][0]["region"] == "ap"
    assert (shown["peers"][0]["offset_ms"], shown["peers"][0]["rtt_ms"]) == (0, 40)
    assert (shown["stamps"], shown["advice"], shown["alarms"]) == (True, "", [])


@pytest.mark.parametrize("off_ms", [-HOUR_MS, -2_000, HOUR_MS, YEAR_2099_MS - EPOCH_MS])
def test_a_region_that_comes_up_with_a_wrong_clock_stamps_nothing_and_drags_nobody_along(off_ms) -> None:
    cluster = Cluster("eu", "us", "ap", tasks={"noop": succeed})
    before = cluster.submit("us")
    cluster.run_for(3_000)
    restart_with_clock(cluster, "us", off_ms)
    assert verdicts(cluster) == {"eu": "agrees", "us": "off", "ap": "agrees"}
    with pytest.raises(AskError) as refused:
        cluster.submit("us")
    assert refused.value.code == "clock_off"
    assert "s ahead of" in str(refused.value) if off_ms > 0 else "s behind" in str(refused.value)
    assert "crdtsync clock show" in str(refused.value)
    assert cluster.state("us", before) == "succeeded"  # reads are answered
    task = cluster.submit("eu")
    cluster.run_for(2_000)
    assert cluster.state("eu", task) == cluster.state("ap", task) == "succeeded"
    assert stamped_ahead_ms(cluster) <= 0
    assert rung(cluster, "us").count("clock.off") == 1
    assert [what for what in rung(cluster, "eu") if what != "clock.peer"] == []


def test_it_goes_on_by_itself_once_its_clock_is_set_right() -> None:
    cluster = Cluster("eu", "us", "ap", tasks={"noop": succeed})
    cluster.run_for(3_000)
    restart_with_clock(cluster, "us", HOUR_MS)
    assert clock(cluster, "us")["verdict"] == "off"
    task = cluster.submit("eu", "noop", region="us")
    cluster.run_for(5_000)
    assert cluster.state("eu", task) == "waiting"
    cluster.nodes[RegionId("us")].wall_offset_ms = 0
    cluster.run_for(3_000)
    assert set(verdicts(cluster).values()) == {"agrees"}
    assert cluster.state("eu", task) == "succeeded"
    assert cluster.submit("us")
    assert cluster.converge()
    cluster.run_for(CALM_MS + 2_000)
    assert [clock(cluster, region)["alarms"] for region in cluster.nodes] == [[], [], []]


def test_a_fresh_region_whose_clock_was_ahead_waits_for_its_own_stamps() -> None:
    """Its very first commit was stamped before anybody could tell it the time."""
    cluster = Cluster("eu", "us", "ap", walls={"us": 30_000})
    cluster.run_for(2_000)
    assert clock(cluster, "us")["verdict"] == "off"
    (held,) = clock(cluster, "eu")["held_back"]
    assert held["writer"].startswith("us/")
    assert held["wait"] == "stamp"
    assert 0 < held["until_ms"] - clock(cluster, "eu")["time_ms"] <= 30_000
    cluster.nodes[RegionId("us")].wall_offset_ms = 0
    cluster.run_for(2_000)
    shown = clock(cluster, "us")
    assert (shown["verdict"], shown["stamps"]) == ("ahead", False)
    with pytest.raises(AskError) as refused:
        cluster.submit("us")
    assert refused.value.code == "clock_off"
    cluster.run_for(shown["stamps_from_ms"] - shown["time_ms"] + 1_000)
    assert clock(cluster, "us")["verdict"] == "agrees"
    task = cluster.submit("us")
    assert cluster.converge()
    assert cluster.state("eu", task) == "succeeded"
    assert rung(cluster, "eu") == ["clock.peer", "log.held_back"]


@pytest.mark.parametrize(
    "step_ms, for_ms",
    [
        (-HOUR_MS, 20_000),
        (700, 20_000),
        (10**12, 20_000),
        *(pytest.param(s, HOUR_MS, marks=pytest.mark.slow) for s in (-700, HOUR_MS)),
    ],
)
def test_a_wall_clock_that_is_set_on_a_running_region_stops_nothing(step_ms, for_ms) -> None:
    """One alarm; delays, backoff and deadlines keep their length; an hour later it still agrees."""
    cluster = Cluster("eu", "us", "ap", tasks={"noop": succeed})
    cluster.run_for(2_000)
    cluster.nodes[RegionId("us")].wall_offset_ms = step_ms
    task = cluster.submit("us", "noop", delay_ms=5_000)
    cluster.run_for(4_500)
    assert cluster.state("us", task) == "waiting"
    cluster.run_for(1_000)
    assert cluster.state("us", task) == "succeeded"
    assert cluster.state("eu", task) == "succeeded"
    cluster.run_for(for_ms)
    shown = clock(cluster, "us")
    assert (shown["verdict"], shown["wall_verdict"], shown["slew_ppm"]) == ("agrees", "off", 0)
    assert rung(cluster, "us") == ["clock.wall"]
    assert stamped_ahead_ms(cluster) <= 0


def test_a_strobing_wall_clock_rings_once() -> None:
    cluster = Cluster("eu", "us", "ap", tasks={"noop": succeed})
    for number in range(60):
        cluster.nodes[RegionId("us")].wall_offset_ms = (number % 2) * 10_000
        cluster.run_for(700)
        if number % 10 == 0:
            cluster.submit("us")
    assert rung(cluster, "us") == ["clock.wall"]
    assert set(verdicts(cluster).values()) == {"agrees"}
    assert cluster.converge()


def test_two_members_off_from_each_other_both_alarm_and_neither_stops() -> None:
    cluster = Cluster("eu", "us", walls={"us": 2_000})
    cluster.run_for(2_000)
    assert verdicts(cluster) == {"eu": "split", "us": "split"}
    assert "clock.split" in rung(cluster, "eu")
    assert "clock.split" in rung(cluster, "us")
    first, second = cluster.submit("eu"), cluster.submit("us")
    cluster.run_for(8_000)
    assert cluster.converge()
    assert [cluster.state(region, task) for region in ("eu", "us") for task in (first, second)] == ["succeeded"] * 4


def test_a_region_that_is_alone_does_not_judge_itself() -> None:
    cluster = Cluster("eu", "us", "ap", tasks={"noop": succeed})
    cluster.run_for(2_000)
    cluster.isolate("us")
    restart_with_clock(cluster, "us", HOUR_MS, run_ms=5_000)
    assert clock(cluster, "us")["verdict"] == "unmeasured"
    task = cluster.submit("us")
    cluster.run_for(1_000)
    assert cluster.state("us", task) == "succeeded"


# What handlers report meanwhile --------------------------------------------------------------------


def test_the_end_of_a_running_attempt_waits_and_is_not_lost() -> None:
    slow = {"slow": lambda a: Outcome(value="done", after_ms=30_000, effects={"charge": 1})}
    cluster = Cluster("eu", "us", "ap", tasks=slow, declare={"slow": {"timeout_ms": 45_000, "partition": "wait"}})
    task = cluster.submit("eu", "slow")
    cluster.run_for(1_000)
    outvoted(cluster, "eu", -5_000)
    assert clock(cluster, "eu")["verdict"] == "off"
    cluster.run_for(60_000)  # past its end and its timeout
    shown = clock(cluster, "eu")
    assert shown["waiting_reports"] == 1
    assert cluster.state("eu", task) == "running"
    cluster.nodes[RegionId("eu")].wall_offset_ms = 5_000
    cluster.run_for(2_000)
    record = cluster.show("eu", task)
    assert (record["state"], record["result"]) == ("succeeded", "done")
    assert clock(cluster, "eu")["waiting_reports"] == 0
    assert len([a for _, _, a in cluster.started if a.task == task]) == 1
    assert cluster.converge()


def test_nothing_is_started_taken_over_or_expired_by_a_region_that_is_off() -> None:
    cluster = Cluster("eu", "us", "ap", tasks={"noop": succeed})
    mine = cluster.submit("eu", "noop", delay_ms=60_000, partition="wait")
    soon_ms = EPOCH_MS + cluster.time_ms + 50_000
    doomed = cluster.submit("eu", "noop", delay_ms=90_000, deadline_ms=soon_ms, partition="wait")
    theirs = cluster.submit("us", "noop", delay_ms=60_000)
    cluster.run_for(1_000)
    outvoted(cluster, "eu", -5_000)
    heads = cluster.status("eu")["heads"]
    own = max(number for writer, number in heads.items() if writer.startswith("eu/"))
    cluster.crash("us")
    cluster.run_for(100_000)
    assert clock(cluster, "eu")["verdict"] == "off"
    assert max(n for w, n in cluster.status("eu")["heads"].items() if w.startswith("eu/")) == own
    assert not [notice for notice in cluster.nodes[RegionId("eu")].notices if notice.what == "clock.stamped_while_off"]
    assert cluster.state("eu", mine) == "waiting"
    assert "clock of eu" in cluster.show("eu", mine)["waiting_for"]
    assert cluster.state("ap", theirs) == "succeeded"
    cluster.nodes[RegionId("eu")].wall_offset_ms = 5_000
    cluster.run_for(2_000)
    assert cluster.state("eu", mine) == "succeeded"
    assert cluster.state("eu", doomed) == "expired"


def test_a_worker_that_comes_while_the_clock_is_off_gets_its_work_when_it_is_right() -> None:
    cluster = Cluster("eu", "us", "ap", tasks={"noop": succeed})
    cluster.run_for(3_000)
    task = cluster.submit("us", "noop", delay_ms=20_000)
    cluster.nodes[RegionId("us")].workers.clear()
    restart_with_clock(cluster, "us", HOUR_MS)
    cluster.worker("us")
    cluster.run_for(30_000)
    assert cluster.state("us", task) in ("waiting", "running")
    cluster.nodes[RegionId("us")].wall_offset_ms = 0
    cluster.run_for(3_000)
    assert cluster.state("us", task) == "succeeded"


# Suspend and resume (TIME-2) -----------------------------------------------------------------------


def sleep_through(cluster: Cluster, ms: int) -> None:
    """The machines sleep: monotonic time has passed when the next input comes."""
    cluster.time_ms += ms


def test_after_a_pause_a_timeout_that_passed_comes_before_the_end_that_is_reported() -> None:
    cluster = Cluster("eu", tasks={"slow": lambda a: Outcome(value="late", after_ms=10**9)})
    task = cluster.submit("eu", "slow", timeout_ms=20_000, attempts=1)
    cluster.run_for(1_000)
    node = cluster.nodes[RegionId("eu")]
    (assignment,) = [a for _, _, a in cluster.started if a.task == task]
    sleep_through(cluster, 60_000)
    node.feed(
        lambda replica: replica.submit(
            c.Complete(tuple(assignment.attempt), "ok", encode_value("late")),  # type: ignore[arg-type]
            node.now,
            "late",
        )
    )
    cluster.run_for(1_000)
    record = cluster.show("eu", task)
    assert record["state"] == "dead"
    assert "TimeoutError" in record["attempts"][0]["error"]


def test_after_a_pause_workers_and_regions_are_not_taken_for_silent() -> None:
    cluster = Cluster("eu", "us", "ap", tasks={"long": lambda a: Outcome(value=1, after_ms=70_000)})
    task = cluster.submit("eu", "long")
    cluster.run_for(1_000)
    sleep_through(cluster, 60_000)
    cluster.run_for(20_000)
    assert cluster.state("eu", task) == "succeeded"
    assert len([a for _, _, a in cluster.started if a.task == task]) == 1
    assert not [
        n for node in cluster.nodes.values() for n in node.notices if n.what in ("task.taken_over", "worker.lost")
    ]


def test_after_a_pause_a_deadline_that_passed_is_seen_before_work_is_started() -> None:
    cluster = Cluster("eu", tasks={"noop": succeed}, workers=False)
    cluster.worker("eu")
    cluster.run_for(100)
    deadline_ms = EPOCH_MS + cluster.time_ms + 30_000
    task = cluster.submit("eu", "noop", delay_ms=20_000, deadline_ms=deadline_ms)
    sleep_through(cluster, 60_000)
    cluster.run_for(5_000)
    assert cluster.state("eu", task) == "expired"
    assert not [a for _, _, a in cluster.started if a.task == task]


def test_the_bound_holds_at_the_limit() -> None:
    cluster = Cluster("eu", "us", "ap", walls={"us": MAX_SKEW_MS // 2})
    cluster.run_for(5_000)
    assert set(verdicts(cluster).values()) == {"agrees"}
    assert not [n for n in cluster.alarms() if isinstance(n, e.Notify)]
