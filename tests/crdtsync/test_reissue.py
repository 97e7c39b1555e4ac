"""What a region wrote while its clock was in the year 2099 is re-issued: on real replicas, in virtual time."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from crdtsync import commands as c
from crdtsync.clock import stamp_ms
from crdtsync.events import Reissued
from crdtsync.identifiers import (
    EventId,
    RegionId,
    TaskId,
    WriterId,
    incarnation_floor,
    is_writer,
    node_of,
    writer_id,
)
from crdtsync.log.reissues import Reissues
from regions.storage.memory import MemoryStore
from tests.cluster import EPOCH_MS, AskError, Cluster, Outcome, succeed

YEAR_2099_MS = 4_070_908_800_000 - EPOCH_MS
WEEK_MS = 7 * 86_400_000


def clock(cluster: Cluster, region: str) -> dict[str, Any]:
    return cluster.nodes[RegionId(region)].ask(c.ShowClock())  # type: ignore[no-any-return]


def goes_wrong(cluster: Cluster, region: str, by_ms: int = YEAR_2099_MS) -> None:
    """The machine comes up with a wrong clock, and nobody is there to tell it."""
    cluster.run_for(100)  # what has come is on disk
    cluster.isolate(region)
    cluster.nodes[RegionId(region)].wall_offset_ms = by_ms
    cluster.restart(region)
    cluster.run_for(2_500)


def is_set_right(cluster: Cluster, *regions: str) -> None:
    cluster.heal()
    cluster.run_for(3_000)
    for region in regions:
        cluster.nodes[RegionId(region)].wall_offset_ms = 0
    cluster.run_for(3_000)


def held(cluster: Cluster, region: str, at: str = "eu") -> tuple[str, int]:
    """The first commit of this region's that is far ahead, as another region shows it."""
    rows = [row for row in clock(cluster, at)["held_back"] if row["writer"].startswith(f"{region}/")]
    first = min(rows, key=lambda row: row["writer"])
    assert first["wait"] == "far_ahead"
    return first["writer"], first["number"]


def reissue(cluster: Cluster, region: str, writer: str, first: int) -> dict[str, Any]:
    return cluster.nodes[RegionId(region)].ask(c.ReissueLog(writer, first))  # type: ignore[no-any-return]


def stamps_of(cluster: Cluster, region: str, task: bytes) -> list[int]:
    """Under which times a region's facts about a task stand, in ms of the run."""
    replica = cluster.nodes[RegionId(region)].replica
    assert replica is not None
    held = replica._here.table.get(task)  # type: ignore[arg-type]
    assert held is not None
    return sorted(stamp_ms(event_id.stamp) - EPOCH_MS for event_id, _ in held.facts.events())


def test_what_was_written_in_2099_is_applied_everywhere_and_nothing_is_lost() -> None:
    cluster = Cluster("eu", "us", "ap", tasks={"noop": succeed})
    before = cluster.submit("ap")
    assert cluster.converge()
    goes_wrong(cluster, "ap")
    tasks = [cluster.submit("ap") for _ in range(5)]
    elsewhere = cluster.submit("ap", region="eu")
    cluster.run_for(1_000)
    assert cluster.state("ap", tasks[0]) == "succeeded"
    is_set_right(cluster, "ap")
    assert clock(cluster, "ap")["verdict"] == "ahead"
    writer, first = held(cluster, "ap")
    answer = reissue(cluster, "ap", writer, first)
    assert (answer["writer"], answer["from"]) == (writer, first)
    assert cluster.converge()
    cluster.run_for(2_000)
    assert cluster.converge()
    for region in cluster.nodes:
        assert [cluster.state(region, task) for task in (before, *tasks, elsewhere)] == ["succeeded"] * 7
        shown = clock(cluster, region)
        assert (shown["verdict"], shown["held_back"], shown["reissuing"]) == ("agrees", [], None)
        assert all(stamp <= cluster.time_ms for stamp in stamps_of(cluster, region, tasks[0]))
    fresh = cluster.submit("ap")
    assert cluster.converge()
    assert cluster.state("eu", fresh) == "succeeded"
    assert [assignment.task for _, _, assignment in cluster.started].count(tasks[0]) == 1


def test_what_is_reissued_settles_and_outlives_restarts_of_all() -> None:
    cluster = Cluster("eu", "us", "ap", tasks={"noop": succeed})
    goes_wrong(cluster, "ap")
    task = cluster.submit("ap")
    cluster.run_for(500)
    is_set_right(cluster, "ap")
    reissue(cluster, "ap", *held(cluster, "ap"))
    assert cluster.converge()
    assert cluster.run_until(lambda: all(cluster.show(region, task)["settled"] for region in cluster.nodes))
    for region in cluster.nodes:
        cluster.restart(region)
    cluster.run_for(5_000)
    assert cluster.converge()
    assert [cluster.state(region, task) for region in cluster.nodes] == ["succeeded"] * 3
    assert [clock(cluster, region)["verdict"] for region in cluster.nodes] == ["agrees"] * 3


def test_a_handler_that_was_running_reports_under_the_id_that_it_was_given() -> None:
    cluster = Cluster(
        "eu", "us", "ap", tasks={"long": lambda _: Outcome(value="done", after_ms=20_000, effects={"a": 1})}
    )
    goes_wrong(cluster, "ap")
    task = cluster.submit("ap", "long")
    cluster.run_for(1_000)
    assert cluster.state("ap", task) == "running"
    is_set_right(cluster, "ap")
    reissue(cluster, "ap", *held(cluster, "ap"))
    cluster.run_for(30_000)
    assert cluster.converge()
    assert [cluster.state(region, task) for region in cluster.nodes] == ["succeeded"] * 3
    assert len(cluster.show("eu", task)["attempts"]) == 1
    assert len(cluster.sink) == 1


def test_a_cancelled_task_tells_its_handler_by_the_id_that_it_knows() -> None:
    cluster = Cluster("eu", "us", "ap", tasks={"long": lambda _: Outcome(after_ms=60_000)})
    goes_wrong(cluster, "ap")
    task = cluster.submit("ap", "long")
    cluster.run_for(1_000)
    is_set_right(cluster, "ap")
    reissue(cluster, "ap", *held(cluster, "ap"))
    cluster.run_for(5_000)
    assert cluster.converge()
    cluster.nodes[RegionId("eu")].ask(c.Cancel(task, "enough"))
    cluster.run_for(5_000)
    given = next(assignment.attempt for _, _, assignment in cluster.started if assignment.task == task)
    assert [attempt for _, attempt, _ in cluster.stopped] == [given]
    assert [cluster.state(region, task) for region in cluster.nodes] == ["cancelled"] * 3


def test_a_crash_at_any_moment_of_it_is_made_up_for_at_the_next_start() -> None:
    for after_ms in (0, 1, 2, 3, 4, 6, 8, 10, 20, 60, 200, 500, 1_000, 1_300):
        cluster = Cluster("eu", "us", "ap", tasks={"noop": succeed})
        goes_wrong(cluster, "ap")
        tasks = [cluster.submit("ap") for _ in range(3)]
        cluster.run_for(500)
        is_set_right(cluster, "ap")
        reissue(cluster, "ap", *held(cluster, "ap"))
        cluster.run_for(after_ms)
        cluster.restart("ap")
        cluster.run_for(5_000)
        assert cluster.converge(), after_ms
        assert [cluster.state("eu", task) for task in tasks] == ["succeeded"] * 3, after_ms
        assert clock(cluster, "ap")["verdict"] == "agrees"


def test_all_starts_under_the_wrong_clock_are_repaired_at_once() -> None:
    cluster = Cluster("eu", "us", "ap", tasks={"noop": succeed})
    goes_wrong(cluster, "ap")
    tasks = [cluster.submit("ap")]
    for _ in range(3):
        cluster.restart("ap")
        cluster.run_for(2_500)
        tasks.append(cluster.submit("ap"))
    cluster.run_for(500)
    is_set_right(cluster, "ap")
    writer, first = held(cluster, "ap")
    later = max(row["writer"] for row in clock(cluster, "eu")["held_back"])
    with pytest.raises(AskError, match="an earlier start"):
        reissue(cluster, "ap", later, 1)
    assert len(reissue(cluster, "ap", writer, first)["writers"]) == 4
    assert cluster.converge()
    cluster.run_for(1_000)
    assert cluster.converge()
    assert [cluster.state("us", task) for task in tasks] == ["succeeded"] * 4


def test_two_regions_in_2099_that_saw_each_other_are_both_repaired() -> None:
    """Each had applied what the other wrote; each re-issues its own, in either order, and those behind wait for the other."""
    for order in (("us", "ap"), ("ap", "us")):
        cluster = Cluster("eu", "us", "ap", tasks={"noop": succeed})
        cluster.cut("eu", "us")
        cluster.cut("eu", "ap")
        for region in order:
            cluster.nodes[RegionId(region)].wall_offset_ms = YEAR_2099_MS
            cluster.restart(region)
        cluster.run_for(5_000)
        tasks = [cluster.submit(at, region=to) for at in ("us", "ap") for to in ("us", "ap")]
        cluster.run_for(2_000)
        assert [cluster.state("us", task) for task in tasks] == ["succeeded"] * 4
        is_set_right(cluster, "us", "ap")
        for region in order:
            reissue(cluster, region, *held(cluster, region))
            cluster.run_for(5_000)
        assert cluster.converge(), order
        for region in cluster.nodes:
            assert [cluster.state(region, task) for task in tasks] == ["succeeded"] * 4
            assert clock(cluster, region)["held_back"] == []


def test_whoever_applied_it_in_its_time_shows_the_same_once_it_is_reissued() -> None:
    """Two hours ahead: `us` applies it when its time has come, while `ap`, cut off, re-issues it."""
    cluster = Cluster("eu", "us", "ap", tasks={"noop": succeed}, retention_ms=WEEK_MS)
    goes_wrong(cluster, "ap", by_ms=2 * 3_600_000)
    task = cluster.submit("ap")
    cluster.run_for(500)
    is_set_right(cluster, "ap")
    writer, first = held(cluster, "ap")
    for other in ("eu", "ap"):
        cluster.cut("us", other)
    us = cluster.nodes[RegionId("us")]
    us.wall_offset_ms = 2 * 3_600_000 + 60_000  # its time has come, by this clock
    cluster.restart("us")
    cluster.run_for(3_000)
    assert cluster.state("us", task) == "succeeded"
    reissue(cluster, "ap", writer, first)
    cluster.run_for(3_000)
    assert cluster.state("eu", task) == "succeeded"
    us.wall_offset_ms = 0
    cluster.heal()
    cluster.run_for(5_000)
    assert cluster.state("us", task) == "succeeded"
    assert stamps_of(cluster, "us", task) == stamps_of(cluster, "eu", task)
    older = min(w for w in cluster.status("us")["heads"] if w.startswith("us/"))
    with pytest.raises(AskError, match="is applied by itself"):
        reissue(cluster, "us", older, 1)


def test_edits_made_under_the_wrong_clock_do_not_win_for_seventy_years() -> None:
    cluster = Cluster("eu", "us", "ap", tasks={"noop": lambda _: Outcome(after_ms=10**9)}, retention_ms=WEEK_MS)
    task = cluster.submit("eu", delay_ms=3_600_000)
    assert cluster.converge()
    goes_wrong(cluster, "ap")
    cluster.nodes[RegionId("ap")].ask(c.Edit(task, priority=1))
    cluster.run_for(500)
    is_set_right(cluster, "ap")
    reissue(cluster, "ap", *held(cluster, "ap"))
    assert cluster.converge()
    cluster.run_for(1_000)
    assert cluster.show("us", task)["priority"] == 1
    cluster.nodes[RegionId("us")].ask(c.Edit(task, priority=7))
    assert cluster.converge()
    assert [cluster.show(region, task)["priority"] for region in cluster.nodes] == [7, 7, 7]


@pytest.mark.parametrize(
    "what, said",
    [
        ("another's", "only the node that wrote them"),
        ("unknown", "is not among them"),
        ("too early", "is applied by itself"),
        ("too late", "is ahead as well"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_changes(what, said) -> None:
    cluster = Cluster("eu", "us", "ap", tasks={"noop": succeed}, retention_ms=2 * YEAR_2099_MS)
    cluster.submit("ap")
    goes_wrong(cluster, "ap")
    cluster.submit("ap")
    cluster.run_for(500)
    is_set_right(cluster, "ap")
    writer, first = held(cluster, "ap")
    node = cluster.nodes[RegionId("ap")]
    assert node.replica is not None
    older = min(w for w in node.replica._here.log.have if node_of(w) == "ap/a")
    region, name, number = {
        "another's": ("eu", writer, first),
        "unknown": ("ap", writer, 10_000),
        "too early": ("ap", older, 1),
        "too late": ("ap", writer, first + 1),
    }[what]
    with pytest.raises(AskError, match=said):
        reissue(cluster, region, name, number)
    assert node.reloads == []
    assert clock(cluster, "ap")["reissuing"] is None


def test_nothing_is_reissued_by_a_clock_that_is_still_wrong() -> None:
    cluster = Cluster("eu", "us", "ap", tasks={"noop": succeed})
    goes_wrong(cluster, "ap")
    cluster.submit("ap")
    cluster.run_for(500)
    cluster.heal()
    cluster.run_for(3_000)
    with pytest.raises(AskError) as refused:
        reissue(cluster, "ap", *held(cluster, "ap"))
    assert refused.value.code == "clock_off"


def test_a_clock_that_goes_wrong_again_before_it_is_done_keeps_it_waiting() -> None:
    cluster = Cluster("eu", "us", "ap", tasks={"noop": succeed})
    goes_wrong(cluster, "ap")
    task = cluster.submit("ap")
    cluster.run_for(500)
    is_set_right(cluster, "ap")
    writer, first = held(cluster, "ap")
    reissue(cluster, "ap", writer, first)
    cluster.nodes[RegionId("ap")].wall_offset_ms = 10**9
    cluster.restart("ap")
    cluster.run_for(10_000)
    assert clock(cluster, "ap")["reissuing"] == {
        "writer": writer,
        "from": first,
        "waits_for": "the clock, which is off",
    }
    cluster.nodes[RegionId("ap")].wall_offset_ms = 0
    cluster.run_for(5_000)
    assert cluster.converge()
    assert cluster.state("eu", task) == "succeeded"


def both_succeed_and_the_later_one_is_undone() -> tuple[Cluster, bytes]:
    """`us` and `ap`, both in 2099 and cut off from each other, run one task; they meet, and `ap`, which claimed later, undoes
    its own. Then `ap` re-issues first: by stamps alone it would win now."""
    tasks = {"pay": lambda a: Outcome(value=a.region, after_ms=6_000, effects={"pay": 1}), "undo": succeed}
    cluster = Cluster("eu", "us", "ap", tasks=tasks, declare={"pay": {"compensate": "undo"}})
    cluster.cut("eu", "us")
    cluster.cut("eu", "ap")
    for region in ("us", "ap"):
        cluster.nodes[RegionId(region)].wall_offset_ms = YEAR_2099_MS
        cluster.restart(region)
    cluster.run_for(6_000)
    task = cluster.submit("us", "pay", region="us")
    cluster.run_for(200)
    cluster.cut("us", "ap")
    cluster.run_for(15_000)
    assert cluster.state("us", task) == cluster.state("ap", task) == "succeeded"
    cluster._cut.discard(frozenset(("us", "ap")))
    cluster.run_for(3_000)
    assert {assignment.region for _, _, assignment in cluster.started if assignment.name == "undo"} == {"ap"}
    is_set_right(cluster, "us", "ap")
    for region in ("ap", "us"):
        reissue(cluster, region, *held(cluster, region))
        cluster.run_for(5_000)
    assert cluster.converge()
    return cluster, task


def test_a_success_that_its_region_has_undone_does_not_win_when_stamps_turn_the_order_round() -> None:
    cluster, task = both_succeed_and_the_later_one_is_undone()
    attempts = cluster.show("eu", task)["attempts"]
    assert [(a["region"], a["late"]) for a in attempts] == [("ap", True), ("us", False)]
    winner = cluster.show("eu", task)["winner"]
    assert winner == next(a["number"] for a in attempts if a["region"] == "us")
    cluster.run_for(10_000)
    undone = [assignment for _, _, assignment in cluster.started if assignment.name == "undo"]
    assert [assignment.region for assignment in undone] == ["ap"], "undone once, though its attempt has another id now"


def test_that_it_is_marked_late_is_needed(monkeypatch) -> None:
    monkeypatch.setattr("crdtsync.reissuing._successes", lambda commits: ())
    cluster, task = both_succeed_and_the_later_one_is_undone()
    attempts = cluster.show("eu", task)["attempts"]
    assert cluster.show("eu", task)["winner"] == next(a["number"] for a in attempts if a["region"] == "ap"), (
        "which is undone"
    )


def test_that_reissuing_rests_on_nothing_is_needed(monkeypatch) -> None:
    from crdtsync.log.domain_log import DomainLog

    monkeypatch.setattr(DomainLog, "apart", property(lambda self: False, lambda self, value: None), raising=False)
    cluster = Cluster("eu", "us", "ap", tasks={"noop": succeed})
    goes_wrong(cluster, "ap")
    task = cluster.submit("ap")
    cluster.run_for(500)
    is_set_right(cluster, "ap")
    reissue(cluster, "ap", *held(cluster, "ap"))
    cluster.run_for(5_000)
    with pytest.raises(AskError):
        cluster.state("eu", task)


def test_a_region_that_takes_a_snapshot_learns_from_it_where_re_issued_facts_stand() -> None:
    cluster = Cluster("eu", "us", "ap", tasks={"noop": succeed}, retention_ms=5_000)
    goes_wrong(cluster, "ap")
    task = cluster.submit("ap")
    cluster.run_for(500)
    is_set_right(cluster, "ap")
    reissue(cluster, "ap", *held(cluster, "ap"))
    assert cluster.converge()
    for _ in range(20):
        cluster.submit("ap")
        cluster.submit("eu")
        cluster.run_for(2_000)
    cluster.crash("us")
    us = cluster.nodes[RegionId("us")]
    us.store = MemoryStore()
    cluster.restart("us")
    cluster.run_for(10_000)
    assert "snapshot.adopted" in [notice.what for notice in us.notices]
    assert cluster.converge()
    assert cluster.state("us", task) == "succeeded"
    assert not [notice for notice in cluster.alarms() if notice.what == "gossip.divergence"]
    cluster.restart("us")
    cluster.run_for(3_000)
    assert cluster.converge()


def test_nobody_re_issues_what_another_node_wrote() -> None:
    """Whatever a region says, the places of others' commits do not change by it; nor by what an older start says."""
    reissues = Reissues()
    writer, other = WriterId("ap/a#7-0000000000000001"), WriterId("us/a#9-0000000000000002")
    event = Reissued(writer, 1, 5, (), ())
    assert not reissues.add(EventId(10, other, 1, 0), event)
    assert not reissues.add(EventId(10, WriterId("ap/a#6-0000000000000003"), 1, 0), event)
    assert not reissues
    assert reissues.add(EventId(10, WriterId("ap/a#8-0000000000000003"), 1, 0), event)
    assert reissues.stamp(writer, 5, 99) == 10
    assert reissues.stamp(writer, 6, 99) == 99


def test_what_is_re_issued_twice_counts_under_the_smaller_stamp_and_survives_as_bytes() -> None:
    first, second = WriterId("ap/a#8-0000000000000003"), WriterId("ap/a#9-0000000000000004")
    writer = WriterId("ap/a#7-0000000000000001")
    events = [
        (EventId(900, first, 1, 0), Reissued(writer, 1, 5, ((2, 0),), (TaskId(b"t" * 16),))),
        (EventId(50, second, 1, 0), Reissued(writer, 4, 5, (), ())),
        (EventId(40, second, 2, 0), Reissued(first, 1, 1, (), ())),  # the first one came from a wrong clock itself
    ]
    for order in permutations(events):
        reissues = Reissues()
        for event_id, event in order:
            assert reissues.add(event_id, event)
            assert not reissues.add(event_id, event)
        assert [reissues.stamp(writer, number, 999) for number in (1, 4, 6)] == [40, 40, 999]
        assert reissues.rests_on(writer, 1) == [(writer, 1), (first, 1), (second, 2)]
        again = Reissues()
        assert len(again.join(reissues.export())) == len(events)
        assert again.export() == reissues.export()
        assert again.join(reissues.export()) == []


def test_a_start_under_a_clock_in_2099_leaves_numbers_for_those_that_follow() -> None:
    number = incarnation_floor(EPOCH_MS + YEAR_2099_MS, "eu")
    assert is_writer(writer_id("eu", "a", number + 1_000_000, bytes(8)))
