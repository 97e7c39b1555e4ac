"""Three regions that are cut from each other and heal: what holds, during and after."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest

from crdtsync import commands as c
from crdtsync import effects as e
from crdtsync.gossip.arrived import SnapshotRows
from crdtsync.history import to_travel
from crdtsync.identifiers import DEFAULT_DOMAIN, RegionId, TaskId, WriterId
from crdtsync.log.heads import Heads
from crdtsync.log.stability import Ack
from crdtsync.protocol.codec import decode, decode_value
from crdtsync.scheduling.placement import rendezvous_order
from regions.storage.memory import MemoryStore
from tests.cluster import AskError, Cluster, Outcome, now_or_never, succeed

REGIONS = ("eu", "us", "ap")


def slow(assignment: e.Assignment) -> Outcome:
    return Outcome(after_ms=6_000, value=f"by {assignment.region}")


def settled_everywhere(cluster: Cluster, task: bytes) -> bool:
    return all(cluster.show(region, task)["settled"] for region in cluster.nodes)


def test_every_region_learns_of_a_task_and_of_its_end() -> None:
    cluster = Cluster(*REGIONS)
    task = cluster.submit("eu")
    cluster.run_for(2_000)
    assert {cluster.state(region, task) for region in REGIONS} == {"succeeded"}
    assert len(cluster.started) == 1
    assert settled_everywhere(cluster, task)


def test_a_named_owner_runs_it_wherever_it_was_submitted() -> None:
    cluster = Cluster(*REGIONS)
    task = cluster.submit("eu", region="ap")
    cluster.run_for(2_000)
    assert [region for _, region, a in cluster.started if a.task == task] == ["ap"]


def test_spread_follows_the_rendezvous_order() -> None:
    cluster = Cluster(*REGIONS)
    tasks = [cluster.submit("eu", region="spread") for _ in range(30)]
    cluster.run_for(3_000)
    ran = {a.task: region for _, region, a in cluster.started}
    members = tuple(RegionId(region) for region in REGIONS)
    assert all(ran[task] == rendezvous_order(task, members)[0] for task in tasks)
    assert len(set(ran.values())) == 3


def test_a_region_cut_off_from_all_still_accepts_and_finishes_work() -> None:
    cluster = Cluster(*REGIONS)
    cluster.isolate("us")
    cluster.run_for(500)
    task = cluster.submit("us")
    cluster.run_for(1_000)
    record = cluster.show("us", task)
    assert (record["state"], record["settled"]) == ("succeeded", False)
    cluster.heal()
    assert cluster.converge()
    cluster.run_for(3_000)
    assert settled_everywhere(cluster, task)


def test_wait_tasks_stay_with_a_silent_owner_and_say_why() -> None:
    cluster = Cluster(*REGIONS)
    cluster.isolate("us")
    task = cluster.submit("eu", region="us", partition="wait")
    cluster.run_for(20_000)
    record = cluster.show("eu", task)
    assert record["state"] == "waiting"
    assert "partition=wait" in record["waiting_for"]
    cluster.heal()
    cluster.run_for(5_000)
    assert cluster.state("eu", task) == "succeeded"


def test_a_takeover_runs_on_both_sides_with_one_outcome_and_one_refund() -> None:
    tasks = {
        "charge": lambda a: Outcome(after_ms=8_000, value=a.region, effects={f"charge-{a.region}": a.region}),
        "refund": succeed,
    }
    cluster = Cluster(*REGIONS, tasks=tasks, declare={"charge": {"compensate": "refund"}})
    cluster.isolate("us")
    task = cluster.submit("us", "charge")
    other = cluster.submit("eu", "charge", region="us")
    cluster.run_for(12_000)
    cluster.heal()
    assert cluster.converge()
    cluster.run_for(10_000)
    assert cluster.converge()
    assert {cluster.state(region, task) for region in REGIONS} == {"succeeded"}
    assert {cluster.state(region, other) for region in REGIONS} == {"succeeded"}
    assert len({str(cluster.show(region, other)) for region in REGIONS}) == 1
    assert not cluster.alarms()


def test_both_sides_of_a_cut_run_the_task_that_had_reached_both_and_the_loser_is_undone_once() -> None:
    tasks = {
        "charge": lambda a: Outcome(after_ms=8_000, value=a.region, effects={f"charge-{a.region}": a.region}),
        "refund": succeed,
    }
    cluster = Cluster(*REGIONS, tasks=tasks, declare={"charge": {"compensate": "refund"}})
    task = cluster.submit("eu", "charge", region="us", delay_ms=1_000)
    cluster.run_for(900)
    cluster.isolate("us")
    cluster.run_for(20_000)
    assert max(region for _, region, a in cluster.started if a.task == task) == "us"
    assert len([a for _, _, a in cluster.started if a.task == task]) == 2
    cluster.heal()
    assert cluster.converge()
    cluster.run_for(10_000)
    undone = [a for _, _, a in cluster.started if a.name == "refund"]
    assert len(undone) == 1
    conflicts = cluster.nodes[RegionId("ap")].listing(c.ListConflicts())
    assert [(r["kind"], r["compensations"][0]["state"]) for r in conflicts] == [("double_success", "succeeded")]
    texts = {cluster.explain(region, task) for region in REGIONS}
    assert len(texts) == 1
    record = cluster.show("eu", task)
    winner = next(a for a in record["attempts"] if a["number"] == record["winner"])
    assert winner["region"] == "us"  # it claimed first


def test_a_relayed_sign_of_life_is_no_silence() -> None:
    """One dead link of a mesh must not let a region be taken over."""
    cluster = Cluster(*REGIONS, tasks={"slow": slow})
    task = cluster.submit("eu", "slow", region="us", delay_ms=20_000)
    cluster.cut("eu", "us")
    cluster.run_for(15_000)
    assert cluster.show("eu", task)["term"] == 0
    cluster.run_for(20_000)
    assert cluster.state("eu", task) == "succeeded"
    assert [region for _, region, a in cluster.started if a.task == task] == ["us"]


def test_a_cancel_on_one_side_and_a_success_on_the_other_end_alike_everywhere() -> None:
    cluster = Cluster(*REGIONS, tasks={"slow": slow})
    task = cluster.submit("eu", "slow")
    cluster.run_for(300)
    cluster.isolate("eu")
    cluster.run_for(300)
    cluster.nodes[RegionId("us")].ask(c.Cancel(task))
    cluster.run_for(10_000)
    cluster.heal()
    assert cluster.converge()
    assert {cluster.state(region, task) for region in REGIONS} == {"succeeded"}
    assert {r["kind"] for r in cluster.nodes[RegionId("eu")].listing(c.ListConflicts())} >= {"success_against_cancel"}


def test_one_key_on_both_sides_is_one_task_after_the_heal() -> None:
    cluster = Cluster(*REGIONS)
    cluster.isolate("us")
    one = cluster.submit("eu", "noop", 1, key="order-7")
    two = cluster.submit("us", "noop", 1, key="order-7")
    assert one == two
    cluster.run_for(2_000)
    cluster.heal()
    assert cluster.converge()
    assert {cluster.state(region, one) for region in REGIONS} == {"succeeded"}
    assert len(cluster.nodes[RegionId("ap")].listing(c.ListTasks(limit=0))) == 1


def test_another_payload_under_one_key_loses_and_is_shown() -> None:
    cluster = Cluster(*REGIONS)
    cluster.isolate("us")
    task = cluster.submit("eu", "noop", 1, key="k", delay_ms=60_000)
    cluster.submit("us", "noop", 2, key="k", delay_ms=60_000)
    with pytest.raises(AskError) as refused:
        cluster.submit("us", "noop", 3, key="k")
    assert refused.value.code == "duplicate"
    cluster.heal()
    assert cluster.converge()
    assert {tuple(cluster.show(region, task)["args"]) for region in REGIONS} == {(1,)}
    kinds = [r["kind"] for r in cluster.nodes[RegionId("us")].listing(c.ListConflicts())]
    assert kinds == ["duplicate_submission"]


def test_a_drained_region_hands_its_work_over() -> None:
    cluster = Cluster(*REGIONS, tasks={"noop": succeed})
    tasks = [cluster.submit("eu", delay_ms=4_000, partition="wait") for _ in range(10)]
    cluster.nodes[RegionId("eu")].ask(c.Drain())
    cluster.run_for(10_000)
    assert {cluster.state("eu", task) for task in tasks} == {"succeeded"}
    assert "eu" not in {region for _, region, _ in cluster.started}


def test_a_task_that_nobody_here_can_run_is_offered_to_a_region_that_can() -> None:
    cluster = Cluster(*REGIONS, workers=False, declare={"noop": {"unserved_after_ms": 2_000}})
    cluster.worker("us")
    cluster.run_for(1_000)
    task = cluster.submit("eu")
    cluster.run_for(1_000)
    assert "a worker in eu" in cluster.show("eu", task)["waiting_for"]
    cluster.run_for(5_000)
    assert cluster.state("eu", task) == "succeeded"
    assert [region for _, region, _ in cluster.started] == ["us"]


def test_nothing_acknowledged_is_lost_when_a_node_dies_before_it_could_tell_anybody() -> None:
    cluster = Cluster(*REGIONS)
    cluster.isolate("eu")
    tasks = [cluster.submit("eu", delay_ms=1_000) for _ in range(20)]
    cluster.crash("eu")
    cluster.run_for(5_000)
    cluster.heal()
    cluster.restart("eu")
    cluster.run_for(10_000)
    assert cluster.converge()
    assert {cluster.state(region, task) for task in tasks for region in REGIONS} == {"succeeded"}


def test_a_disk_from_an_old_copy_recovers_its_own_tail_from_its_peers() -> None:
    cluster = Cluster(*REGIONS)
    node = cluster.nodes[RegionId("eu")]
    cluster.submit("eu")
    cluster.run_for(3_000)
    old = copy.deepcopy(node.store)
    tasks = [cluster.submit("eu") for _ in range(10)]
    cluster.run_for(3_000)
    cluster.crash("eu")
    node.store = old
    node.store._open = False  # the copy was taken from a running node
    cluster.restart("eu")
    late = cluster.submit("eu")
    cluster.run_for(10_000)
    assert cluster.converge()
    assert {cluster.state(region, task) for task in [*tasks, late] for region in REGIONS} == {"succeeded"}
    assert len([a for _, _, a in cluster.started if a.task in tasks]) == len(tasks)  # nothing ran again
    assert {alarm.what for alarm in cluster.alarms()} == {"disk.behind"}


def test_an_old_copy_ends_no_attempt_whose_end_a_peer_may_know() -> None:
    """Found in swarm seed 46: a node that knew its disk to be behind gave up an attempt of its earlier incarnation
    while a member that may have known its end had not answered."""
    cluster = Cluster(*REGIONS, tasks={"noop": succeed, "long": lambda _: Outcome(after_ms=3_000)})
    node = cluster.nodes[RegionId("eu")]
    task = cluster.submit("eu", "long", partition="wait")
    cluster.run_for(1_000)
    old = copy.deepcopy(node.store)
    cluster.submit("eu")  # us hears of this, so that it knows the copy to be old
    cluster.run_for(500)
    cluster.cut("eu", "us")
    cluster.cut("us", "ap")
    cluster.run_for(3_000)  # ap alone hears how the attempt ended
    assert cluster.state("ap", task) == "succeeded"
    cluster.crash("eu")
    node.workers.clear()
    node.store = old
    node.store._open = False
    cluster.heal()
    cluster.isolate("ap")
    cluster.restart("eu")
    cluster.run_for(8_000)
    assert [attempt["state"] for attempt in cluster.show("eu", task)["attempts"]] == ["open"]
    cluster.heal()
    cluster.run_for(5_000)
    assert cluster.converge()
    record = cluster.show("eu", task)
    assert record["state"] == "succeeded"
    assert not record["conflicts"]


def test_nothing_settles_on_the_word_of_a_region_that_runs_twice() -> None:
    """Found in swarm seed 34: a clone acknowledged what its region's other process had not seen, and peers settled on
    it (decision 0013)."""
    cluster = Cluster(*REGIONS, tasks={"noop": succeed})
    cluster.run_for(1_000)
    eu = cluster.nodes[RegionId("eu")]
    assert eu.replica is not None
    eu.replica._neighbours._met_twin(WriterId("eu/a#7-00000000000000ff"))
    task = cluster.submit("us")
    cluster.run_for(10_000)
    assert {cluster.state(region, task) for region in REGIONS} == {"succeeded"}
    assert not any(cluster.show(region, task)["settled"] for region in REGIONS)
    cluster.restart("eu")  # the operator's choice: this one stays
    cluster.run_for(5_000)
    assert settled_everywhere(cluster, task)


def test_what_was_acknowledged_and_nobody_has_any_more_is_not_waited_for_for_ever() -> None:
    """Found in swarm seed 34: clones of two regions had heard each other, and were switched off. Whoever they had
    acknowledged in the name of waited for their commits, acknowledged nothing and started nothing older, for good."""
    cluster = Cluster(*REGIONS, tasks={"noop": succeed})
    task = cluster.submit("eu", delay_ms=20_000, partition="wait")
    cluster.run_for(1_000)
    eu, us = cluster.nodes[RegionId("eu")].replica, cluster.nodes[RegionId("us")].replica
    assert eu is not None
    assert us is not None
    ghost = Heads({WriterId("ap/a#7-00000000000000ff"): 3})
    heard = us._here.stability.latest()[RegionId("eu")]
    ack = Ack(RegionId("eu"), eu.writer, heard.ack.own_number + 1, heard.ack.heads.join(ghost))
    us._here.stability.offer(ack, heard.mono_ms)  # as from a clone of eu
    cluster.crash("eu")
    cluster.isolate("ap")
    cluster.restart("eu")
    cluster.run_for(15_000)  # ap may have it
    cluster.heal()
    cluster.run_for(8_000)
    assert cluster.alarms() == []
    assert cluster.state("eu", task) == "waiting"
    cluster.run_for(20_000)
    assert [alarm.what for alarm in cluster.alarms()] == ["commits.lost"]
    assert {cluster.state(region, task) for region in REGIONS} == {"succeeded"}
    assert cluster.status("eu")["recovering"] == []
    assert all(cluster.show(region, task)["settled"] for region in REGIONS)


def test_a_snapshot_is_adopted_once_all_its_rows_are_joined() -> None:
    """Found in swarm seed 17: its last rows waited for what the disk held of the same tasks, its floor did not. For a
    moment, and for ever after a crash then, or where the snapshot was passed on, the facts of those rows were nowhere."""
    cluster = Cluster(*REGIONS, tasks={"noop": succeed}, ended_kept_max=0)
    node = cluster.nodes[RegionId("eu")]
    ended = TaskId(cluster.submit("eu"))
    cluster.run_for(5_000)
    replica = node.replica
    assert replica is not None
    table = replica._here.table
    assert table.get(ended) is None, "it has left memory, so its row must be read to be joined with another"
    cluster.isolate("eu")
    young = TaskId(cluster.submit("us", delay_ms=60_000))
    cluster.run_for(3_000)
    rows = now_or_never(cluster.nodes[RegionId("us")].store.load_rows(DEFAULT_DOMAIN, [ended, young]))
    assert len(rows) == 2
    rows = [row._replace(facts=to_travel(row.facts)) for row in rows]
    joined: list[bool] = []
    replica._intake.join_rows(RegionId("us"), rows, 0)
    replica._intake.when_joined(lambda: joined.append(table.get(young) is not None))
    assert joined == []
    node.pump()
    cluster.run_for(10)
    assert joined == [True]


def test_facts_of_a_snapshot_that_run_ahead_of_the_heads_start_nothing_even_after_a_restart() -> None:
    """Found in swarm seed 246: rows of a snapshot tell of commits that are still to come. Cut off and started again
    before they came, a node ran tasks whose submission it could not name in its `deps`."""
    cluster = Cluster(*REGIONS, tasks={"noop": succeed}, retention_ms=2_000)
    node = cluster.nodes[RegionId("eu")]
    for _ in range(4):
        cluster.submit("eu")
        cluster.run_for(1_500)
    task = cluster.submit("eu", delay_ms=15_000)  # young: not dropped from the log yet
    cluster.run_for(500)
    cluster.crash("eu")
    node.store = MemoryStore()
    cluster.restart("eu")
    for _ in range(20_000):
        cluster.run_for(1)
        if any(notice.what == "snapshot.adopted" for notice in node.notices):
            break
    cluster.isolate("eu")
    cluster.run_for(100)
    cluster.restart("eu")
    cluster.run_for(30_000)
    assert node.replica is not None
    held = node.replica._here.table.get(TaskId(task))
    assert held is not None, "the snapshot's row told of it"
    assert not [attempt for attempt in cluster.show("eu", task)["attempts"] if attempt["region"] == "eu"]
    cluster.heal()
    cluster.run_for(20_000)
    assert cluster.converge()
    assert cluster.state("eu", task) == "succeeded"


def test_a_snapshot_that_broke_off_is_remembered_over_a_restart() -> None:
    """Its first rows were on disk, its heads were not, and that it had broken off stood in memory alone: started again
    while cut off, the node ran a task whose submission it could not name in its `deps`."""
    cluster = Cluster(*REGIONS, tasks={"noop": succeed}, flush_ms=100)
    node = cluster.nodes[RegionId("eu")]
    cluster.run_for(3_000)
    cluster.isolate("eu")
    task = TaskId(cluster.submit("us", region="eu", delay_ms=8_000))
    cluster.run_for(3_000)
    rows = now_or_never(cluster.nodes[RegionId("us")].store.load_rows(DEFAULT_DOMAIN, [task]))
    assert node.replica is not None
    assert len(rows) == 1
    travelled = tuple(row._replace(facts=to_travel(row.facts)) for row in rows)
    came = SnapshotRows(RegionId("us"), DEFAULT_DOMAIN, travelled, 0)
    node.feed(lambda replica: replica._neighbours.take([came]))
    node.pump()
    cluster.run_for(1_000)
    assert now_or_never(node.store.load_rows(DEFAULT_DOMAIN, [task])), "the rows that came are on disk"
    cluster.restart("eu")
    cluster.run_for(30_000)
    assert node.replica is not None
    assert node.replica._here.table.get(task) is not None
    assert not cluster.show("eu", task)["attempts"]
    assert node.replica._neighbours.digest(DEFAULT_DOMAIN)[1] == b"", "a digest would be of more than the heads tell"
    own = cluster.submit("eu")
    cluster.run_for(1_000)
    assert cluster.state("eu", own) == "succeeded"  # new work of its own users goes on
    cluster.heal()
    cluster.run_for(20_000)
    assert cluster.converge()
    assert cluster.state("eu", task) == "succeeded"
    assert node.replica._neighbours.digest(DEFAULT_DOMAIN)[1] != b""
    cluster.restart("eu")
    assert not node.replica._neighbours.runs_ahead(), "and it is struck out on disk"


def test_a_snapshot_that_runs_ahead_of_the_heads_starts_nothing_new_either() -> None:
    """Found in swarm seed 144: a task submitted elsewhere after our start came with a snapshot's rows, before its commit.
    Work that old waited; this was young, and ran."""
    cluster = Cluster(*REGIONS, tasks={"noop": succeed}, retention_ms=2_000)
    node = cluster.nodes[RegionId("eu")]
    for _ in range(4):
        cluster.submit("us")
        cluster.run_for(1_500)
    cluster.crash("eu")
    node.store = MemoryStore()
    cluster.isolate("eu")
    cluster.restart("eu")
    cluster.run_for(500)
    task = cluster.submit("us", region="eu", delay_ms=2_500)
    cluster.run_for(2_000)  # its row is on the disk of us
    cluster.heal()
    for _ in range(20_000):
        cluster.run_for(1)
        if any(notice.what == "snapshot.adopted" for notice in node.notices):
            break
    cluster.isolate("eu")
    cluster.run_for(5_000)
    assert node.replica is not None
    held = node.replica._here.table.get(TaskId(task))
    assert held is not None, "the snapshot's row told of it"
    assert not [attempt for attempt in cluster.show("eu", task)["attempts"] if attempt["region"] == "eu"]
    own = cluster.submit("eu")
    cluster.run_for(1_000)
    assert cluster.state("eu", own) == "succeeded"  # new work of its own users goes on
    cluster.heal()
    cluster.run_for(20_000)
    assert cluster.converge()
    assert cluster.state("eu", task) == "succeeded"


def test_the_floor_of_a_log_does_not_go_back_when_older_commits_are_dropped_after_a_snapshot() -> None:
    """Found in swarm seed 17: an old copy of a disk took a snapshot, then dropped the commits that it still had from
    below the snapshot's floor, and took *their* end for its floor. What lies between it could send to nobody."""
    cluster = Cluster(*REGIONS, tasks={"noop": succeed}, retention_ms=6_000)
    node = cluster.nodes[RegionId("eu")]
    tasks = [cluster.submit("us") for _ in range(3)]
    cluster.run_for(2_000)
    old = copy.deepcopy(node.store)  # with the first commits of us, too young to be dropped
    tasks += [cluster.submit("us") for _ in range(3)]
    cluster.run_for(15_000)
    tasks.append(cluster.submit("us"))  # stays above every floor for a while
    cluster.run_for(100)
    cluster.crash("eu")
    node.store = old
    node.store._open = False
    cluster.restart("eu")
    for _ in range(20_000):
        cluster.run_for(1)
        if any(notice.what == "snapshot.adopted" for notice in node.notices):
            break
    assert node.replica is not None
    adopted = node.replica._rows.floor_heads
    for _ in range(200):
        cluster.run_for(100)
        assert node.replica._rows.floor_heads.covers(adopted)
    assert not node.replica._here.log.gaps()
    assert cluster.converge()
    assert {cluster.state("eu", task) for task in tasks} == {"succeeded"}


@pytest.mark.parametrize("restarts", [1, 4])
@pytest.mark.parametrize("clock_back_ms", [0, 10**6])
def test_a_disk_that_forgot_its_last_starts_is_heard_all_the_same(restarts: int, clock_back_ms: int) -> None:
    """Peers take the higher incarnation for the later one, and the restored disk counts from an old one (decision 0007)."""
    cluster = Cluster(*REGIONS, tasks={"noop": lambda _: Outcome(after_ms=1_000)})
    node = cluster.nodes[RegionId("eu")]
    cluster.submit("eu")
    cluster.run_for(5_000)
    node.crash()
    old = copy.deepcopy(node.store)
    for _ in range(restarts):
        cluster.restart("eu")
        cluster.submit("eu")
        cluster.run_for(5_000)
    cluster.crash("eu")
    node.store = old
    node.start_offset_ms = -clock_back_ms
    cluster.restart("eu")
    cluster.run_for(1_000)
    fresh = [cluster.submit("eu") for _ in range(5)]
    cluster.run_for(15_000)
    assert cluster.converge()
    assert cluster.status("eu")["recovering"] == []
    if not clock_back_ms:
        for region in REGIONS:
            assert all(cluster.show(region, task)["settled"] for task in fresh)
    assert {cluster.show("us", task)["term"] for task in fresh} == {0}  # nobody took it for silent


def test_a_region_with_an_empty_disk_catches_up_from_a_snapshot() -> None:
    cluster = Cluster(*REGIONS, retention_ms=2_000)
    tasks = [cluster.submit(region) for region in REGIONS for _ in range(20)]
    cluster.run_for(15_000)
    assert cluster.status("us")["commit_bytes"] < 3_000
    cluster.crash("eu")
    cluster.nodes[RegionId("eu")].store = MemoryStore()
    cluster.restart("eu")
    waiting = cluster.submit("us", delay_ms=500)
    cluster.run_for(20_000)
    assert cluster.converge()
    assert {cluster.state("eu", task) for task in [*tasks, waiting]} == {"succeeded"}
    assert len(cluster.nodes[RegionId("eu")].listing(c.ListTasks(limit=0))) == len(tasks) + 1
    digests = {cluster.status(region)["digest"] for region in REGIONS}
    assert len(digests) == 1


def test_an_absent_member_delays_settling_but_memory_stays_small() -> None:
    cluster = Cluster(*REGIONS, tasks={"noop": lambda a: Outcome(after_ms=1)}, credits=100, ended_kept_max=100)
    cluster.isolate("ap")
    for _ in range(50):
        specs = tuple(c.TaskSpec(name="noop", payload=b"\x82\x80\xa0") for _ in range(40))
        cluster.nodes[RegionId("eu")].ask(c.Submit(specs))
    cluster.run_for(10_000)
    assert cluster.status("eu")["tasks_in_memory"] <= 400
    assert cluster.status("us")["tasks_in_memory"] <= 400
    cluster.heal()
    assert cluster.converge()
    cluster.run_for(20_000)
    for region in REGIONS:
        assert cluster.status(region)["tasks_in_memory"] == 0
        assert all(record["settled"] for record in cluster.nodes[RegionId(region)].listing(c.ListTasks(limit=0)))


def test_a_cut_survives_a_restart_of_the_node_and_leaves_other_pairs_alone() -> None:
    cluster = Cluster(*REGIONS)
    cluster.nodes[RegionId("eu")].ask(c.CutLinks(("us",)))
    cluster.run_for(1_000)
    cluster.restart("eu")
    cluster.run_for(3_000)
    status = {r["region"]: r["status"] for r in cluster.nodes[RegionId("eu")].ask(c.ListRegions())}
    assert status["us"] == "cut"
    assert status["ap"] == "up"
    cluster.nodes[RegionId("eu")].ask(c.HealLinks())
    cluster.run_for(3_000)
    status = {r["region"]: r["status"] for r in cluster.nodes[RegionId("eu")].ask(c.ListRegions())}
    assert status["us"] == "up"


@pytest.mark.parametrize("seed", range(6))
def test_random_cuts_crashes_and_work_end_in_one_state_with_nothing_lost(seed: int) -> None:
    draw = random.Random(seed)
    calls: dict[bytes, int] = {}

    def work(assignment: e.Assignment) -> Outcome:
        calls[assignment.task] = calls.get(assignment.task, 0) + 1
        after_ms = draw.choice((1, 20, 300, 2_000))
        return Outcome(after_ms=after_ms, value=assignment.region, effects={f"e-{calls[assignment.task]}": 1})

    cluster = Cluster(
        *REGIONS, tasks={"work": work, "undo": succeed}, declare={"work": {"compensate": "undo", "lost_max": 100}}
    )
    accepted: list[bytes] = []
    down: set[str] = set()
    for _ in range(60):
        roll = draw.random()
        if roll < 0.6:
            alive = [region for region in REGIONS if region not in down]
            if alive:
                at = draw.choice(alive)
                parents = tuple(task for task in accepted[-2:] if draw.random() < 0.2)
                options = {
                    "region": draw.choice(("here", "spread", *REGIONS)),
                    "partition": draw.choice(("wait", "takeover")),
                }
                try:
                    accepted.append(cluster.submit(at, "work", after=parents, **options))
                except AskError as refused:
                    if refused.code not in ("dependency", "undeclared"):
                        raise
        elif roll < 0.75:
            cluster.cut(*draw.sample(REGIONS, 2))
        elif roll < 0.85:
            cluster.heal()
        elif roll < 0.93 and len(down) < 2:
            region = draw.choice(REGIONS)
            if region not in down:
                cluster.crash(region)
                down.add(region)
        elif down:
            region = down.pop()
            cluster.restart(region)
        cluster.run_for(draw.choice((50, 400, 2_000)))
    cluster.heal()
    for region in sorted(down):
        cluster.restart(region)
    cluster.run_for(30_000)
    assert cluster.converge()
    cluster.run_for(30_000)
    assert cluster.converge()
    for task in accepted:
        records = {str(cluster.show(region, task)) for region in REGIONS}
        assert len(records) == 1, records
        record = cluster.show("eu", task)
        assert record["state"] == "succeeded", record
        assert record["settled"], record
    assert len({cluster.status(region)["digest"] for region in REGIONS}) == 1
    for conflict in cluster.nodes[RegionId("eu")].listing(c.ListConflicts()):
        assert all(undo["state"] == "succeeded" for undo in conflict["compensations"]), conflict
    assert not [alarm for alarm in cluster.alarms() if alarm.what != "disk.behind"]


def test_a_loser_that_only_inherited_is_told_what_it_must_not_undo() -> None:
    """Its compensation gets the names of what it inherited, on which the winner relies."""
    told: list[Any] = []

    def refund(assignment: e.Assignment) -> Outcome:
        told.append(decode_value(assignment.undoes or b""))
        return Outcome()

    tasks = {"charge": lambda a: Outcome(after_ms=8_000, value=a.region, effects={"charge": "ch-1"}), "refund": refund}
    cluster = Cluster(*REGIONS, tasks=tasks, declare={"charge": {"compensate": "refund"}})
    cluster.submit("us", "charge")
    cluster.run_for(500)
    cluster.isolate("us")
    cluster.run_for(20_000)
    cluster.heal()
    assert cluster.converge()
    cluster.run_for(10_000)
    assert len(cluster.sink) == 1
    assert [(t["effects"], t["inherited"]) for t in told] == [({}, ["charge"])]


def test_two_sides_that_go_on_from_one_failure_meet_the_sink_under_two_keys() -> None:
    """Or the refund of one would refund the charge of the other, which stands (decision 0005)."""

    def pay(assignment: e.Assignment) -> Outcome:
        if assignment.number == 1:
            return Outcome("failed")
        return Outcome(value=assignment.region, after_ms=2_000, effects={"charge": assignment.region})

    declare = {"pay": {"compensate": "undo", "backoff_ms_base": 8_000}}
    cluster = Cluster(*REGIONS, tasks={"pay": pay, "undo": succeed}, declare=declare)
    cluster.submit("us", "pay")
    cluster.run_for(500)
    cluster.isolate("us")
    cluster.run_for(20_000)
    assert len(cluster.sink) == 2
    assert len({key for _, key, _ in cluster.sink}) == 2


@pytest.mark.parametrize("partition", ["wait", "takeover"])
def test_a_retry_in_the_same_region_meets_the_sink_under_the_same_key(partition: str) -> None:
    def pay(assignment: e.Assignment) -> Outcome:
        return Outcome("failed" if assignment.number == 1 else "ok")

    cluster = Cluster(*REGIONS, tasks={"pay": pay})
    cluster.submit("us", "pay", partition=partition)
    cluster.run_for(10_000)
    roots = [assignment.root for _, _, assignment in cluster.started]
    assert len(roots) == 2
    assert len(set(roots)) == 1


def test_a_healed_region_does_not_start_what_the_others_finished_meanwhile() -> None:
    """It hears of the submissions before it hears of the successes; starting them would double each."""
    cluster = Cluster(*REGIONS, tasks={"noop": lambda a: Outcome(after_ms=5)}, credits=50)
    cluster.isolate("us")
    tasks = [cluster.submit("eu", region="us") for _ in range(300)]
    cluster.run_for(15_000)
    assert {cluster.state("eu", task) for task in tasks} == {"succeeded"}
    cluster.heal()
    cluster.run_for(5_000)
    assert cluster.converge()
    assert len(cluster.started) == len(tasks)
    assert cluster.nodes[RegionId("eu")].listing(c.ListConflicts()) == []


def test_a_region_goes_on_when_a_returning_peer_never_says_what_it_has() -> None:
    cluster = Cluster(*REGIONS)
    node = cluster.nodes[RegionId("eu")]
    cluster.isolate("eu")
    task = cluster.submit("eu", delay_ms=1_500)
    cluster.run_for(1_000)
    node.feed(lambda replica: replica.connected("us", node.now))  # a link on which nothing ever comes
    cluster.run_for(20_000)
    assert cluster.state("eu", task) == "succeeded"


def test_a_restart_in_the_middle_of_unfolded_commits_rings_no_alarm() -> None:
    """The digest told to peers was once taken before the facts of the last second were resolved."""
    cluster = Cluster(*REGIONS)
    for _ in range(10):
        cluster.submit("eu")
        cluster.submit("us")
    cluster.run_for(200)
    cluster.restart("eu")
    cluster.run_for(5_000)
    assert cluster.converge()
    assert not cluster.alarms()


def test_a_requeue_of_a_settled_death_is_tentative_again() -> None:
    tasks = {"bad": lambda a: Outcome("failed", effects={f"e{a.number}": 1}), "undo": succeed}
    cluster = Cluster(*REGIONS, tasks=tasks, declare={"bad": {"attempts": 1, "compensate": "undo"}})
    task = cluster.submit("eu", "bad")
    cluster.run_for(4_000)
    assert settled_everywhere(cluster, task)
    cluster.isolate("eu")
    cluster.nodes[RegionId("eu")].ask(c.Requeue(task))
    cluster.run_for(2_000)
    record = cluster.show("eu", task)
    assert (record["state"], record["settled"]) == ("dead", False)
    cluster.heal()
    cluster.run_for(5_000)
    assert settled_everywhere(cluster, task)


def test_a_wait_task_whose_offer_was_withdrawn_runs_again_at_home() -> None:
    """The giver owns again only by a new term, once the receiver is known to have seen the withdrawal."""
    cluster = Cluster(*REGIONS, workers=False, declare={"noop": {"unserved_after_ms": 1_000}})
    worker = cluster.worker("us")
    cluster.run_for(500)
    worker.kill()  # us declared the task, and has nobody to run it now
    task = cluster.submit("eu", partition="wait")
    cluster.run_for(3_000)
    assert cluster.show("eu", task)["state"] == "waiting"
    cluster.worker("eu")
    cluster.run_for(15_000)
    record = cluster.show("eu", task)
    assert (record["state"], record["attempts"][0]["region"]) == ("succeeded", "eu")


def test_what_members_acknowledged_is_known_after_a_restart() -> None:
    cluster = Cluster(*REGIONS)
    cluster.submit("us")
    cluster.run_for(5_000)
    cluster.isolate("eu")
    cluster.restart("eu")
    replica = cluster.nodes[RegionId("eu")].replica
    assert replica is not None
    assert set(replica._here.stability.latest()) >= {"us", "ap"}


def test_a_commit_leaves_the_disk_only_once_the_disk_knows_that_it_was_visited(monkeypatch) -> None:
    """Or a restart wants to visit again what it can read nowhere, and asks its disk without end (found by a sweep)."""
    dropped: list[tuple[str, int]] = []
    append = MemoryStore.append

    async def watched(store: MemoryStore, batch: e.Persist) -> None:
        await append(store, batch)
        fold = (await store.meta()).get("fold/default")
        visited = dict(decode(fold, bytes_max=1 << 20)[2]) if fold else {}
        for _, writer, number in batch.drop:
            dropped.append((writer, number))
            assert visited.get(writer, 0) >= number

    monkeypatch.setattr(MemoryStore, "append", watched)
    cluster = Cluster(*REGIONS, tasks={"noop": slow}, retention_ms=500)
    for round_ in range(30):
        cluster.submit(REGIONS[round_ % 3])
        cluster.run_for(2_035)  # so that one falls between two flushes, and is visited after the later of them
    assert len(dropped) > 10
    reads: list[e.Effect] = []
    cluster.restart("eu")
    node = cluster.nodes[RegionId("eu")]
    carry_out = node.carry_out
    monkeypatch.setattr(node, "carry_out", lambda effect: (reads.append(effect), carry_out(effect)))
    cluster.run_for(3_000)
    assert sum(isinstance(effect, e.ReadCommits) for effect in reads) < 30
