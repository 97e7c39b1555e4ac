"""Rows and commits that a disk cannot give back: never absent, never guessed (docs/decisions/0006)."""

from __future__ import annotations

from typing import Any

import pytest

from crdtsync import commands as c
from crdtsync import settlement
from crdtsync.identifiers import DEFAULT_DOMAIN, RegionId, WriterId
from crdtsync.log.commit import decode_commit
from crdtsync.protocol.codec import encode_value
from regions.storage import CorruptRow
from tests.cluster import AskError, Cluster, Node, Outcome, never, now_or_never, succeed

PAYLOAD = encode_value([[], {}])


def quick(_assignment: Any) -> Outcome:
    return Outcome(after_ms=1)


def task_row(task: bytes) -> CorruptRow:
    return CorruptRow("task", DEFAULT_DOMAIN, task=task)


def commit_row(writer: str, number: int) -> CorruptRow:
    return CorruptRow("commit", DEFAULT_DOMAIN, writer, number)


def again(node: Node, command: Any) -> Any:
    """Ask, and once more if the node said to ask again."""
    try:
        return node.ask(command)
    except AskError as error:
        if error.code != "storage":
            raise
        return node.ask(command)


def submit_again(node: Node, task: bytes) -> Any:
    return again(node, c.Submit((c.TaskSpec("noop", PAYLOAD, task),)))[0]


def is_sound(node: Node) -> bool:
    return node.store.corrupt_rows() == ()


def events_of(node: Node, task: bytes) -> int:
    """How many events about a task were ever stored here."""
    events = [event for row in node.store._commits.values() for event in decode_commit(row.blob).events]
    return sum(getattr(event, "task", None) == task for event in events)


def empty_memory(cluster: Cluster, region: str) -> None:
    """Let ended tasks leave memory: they go with a batch, so something must be written."""
    cluster.submit(region, "noop")
    cluster.run_for(10_000)
    assert cluster.status(region)["tasks_in_memory"] == 0


def asked_for(alarm: Any) -> bool:
    """Alarms that tell of the damage that a test made; any other is a failure."""
    return alarm.what in ("store.task", "store.commit")


# Task rows, while the log is whole ---------------------------------------------------------------


@pytest.mark.parametrize(
    "ask",
    [
        c.Describe,
        lambda task: c.Submit((c.TaskSpec("noop", PAYLOAD, task),)),
        lambda _: c.ListTasks(),
    ],
    ids=["describe", "submit", "list"],
)
def test_a_damaged_row_is_made_again_from_the_log(ask) -> None:
    cluster = Cluster("eu", "us", tasks={"noop": quick})
    tasks = [cluster.submit("eu", "noop") for _ in range(19)]
    cluster.run_for(5_000)
    node = cluster.nodes[RegionId("eu")]
    before = cluster.show("eu", tasks[7])
    empty_memory(cluster, "eu")
    digest = cluster.status("eu")["digest"]

    node.store.damage(task_row(tasks[7]))
    again(node, ask(tasks[7]))
    assert len(node.reloads) == 1
    assert cluster.show("eu", tasks[7])["attempts"] == before["attempts"]
    assert submit_again(node, tasks[7]) == {"id": tasks[7].hex(), "created": False}
    assert len(node.listing(c.ListTasks(limit=0))) == 20
    cluster.run_for(10_000)
    assert is_sound(node)
    assert cluster.show("eu", tasks[7]) == before
    assert cluster.status("eu")["digest"] == digest
    assert cluster.converge()
    cluster.restart("eu")
    cluster.run_for(5_000)
    assert cluster.status("eu")["digest"] == digest
    assert len(node.reloads) == 1
    assert [x for x in cluster.alarms() if not asked_for(x)] == []


@pytest.mark.parametrize("after_ms", [0, 3, 10, 300, 1_500])
def test_a_crash_while_rows_are_made_again_begins_again(after_ms) -> None:
    cluster = Cluster("eu", tasks={"noop": quick}, ended_kept_max=5)
    tasks = [cluster.submit("eu", "noop") for _ in range(40)]
    cluster.run_for(5_000)
    digest = cluster.status("eu")["digest"]
    node = cluster.nodes[RegionId("eu")]
    node.store.damage(task_row(tasks[3]))
    with pytest.raises(AskError):
        cluster.show("eu", tasks[3])
    cluster.run_for(after_ms)
    cluster.restart("eu")
    assert again(node, c.Describe(tasks[3]))["state"] == "succeeded"
    cluster.run_for(5_000)
    assert cluster.status("eu")["digest"] == digest
    assert is_sound(node)
    cluster.restart("eu")
    assert cluster.status("eu")["digest"] == digest
    assert {record["state"] for record in node.listing(c.ListTasks(limit=0))} == {"succeeded"}


def test_a_task_that_can_still_move_is_made_again_at_the_start() -> None:
    cluster = Cluster("eu", tasks={"noop": succeed})
    task = cluster.submit("eu", "noop", delay_ms=20_000)
    cluster.run_for(5_000)
    cluster.crash("eu")
    node = cluster.nodes[RegionId("eu")]
    node.store.damage(task_row(task))
    cluster.restart("eu")
    assert cluster.state("eu", task) == "waiting"
    cluster.run_for(30_000)
    assert cluster.state("eu", task) == "succeeded"
    assert is_sound(node)
    assert node.reloads == []


def test_a_damaged_row_of_a_task_in_memory_is_written_over() -> None:
    cluster = Cluster("eu", tasks={"noop": never})
    task = cluster.submit("eu", "noop")
    cluster.run_for(5_000)
    node = cluster.nodes[RegionId("eu")]
    node.store.damage(task_row(task))
    node.listing(c.ListTasks())
    cluster.run_for(5_000)
    assert is_sound(node)
    assert node.reloads == []
    assert [record["id"] for record in node.listing(c.ListTasks())] == [task.hex()]


# Task rows, when the log begins later ------------------------------------------------------------


def dropped(*regions: str, **options: Any) -> tuple[Cluster, list[bytes]]:
    """A cluster whose tasks have ended, and whose log no longer holds them."""
    cluster = Cluster(*regions, tasks={"noop": quick}, credits=100, retention_ms=5_000, **options)
    tasks = [cluster.submit(regions[0], "noop") for _ in range(20)]
    cluster.run_for(30_000)
    for region in regions:
        assert cluster.nodes[RegionId(region)].replica is not None
        assert not cluster.nodes[RegionId(region)].replica.may_derive  # type: ignore[union-attr]
    return cluster, tasks


def test_what_cannot_be_made_again_is_refused_and_not_absent() -> None:
    cluster, tasks = dropped("eu", "us")
    node, lost = cluster.nodes[RegionId("eu")], tasks[4]
    node.store.damage(task_row(lost))
    for _ in range(2):
        for command in (c.Describe(lost), c.Cancel(lost), c.Await(lost), c.Explain(lost), c.ShowDocument(task=lost)):
            with pytest.raises(AskError) as refused:
                node.ask(command)
            assert refused.value.code == "damaged"
        one, other = node.ask(c.Submit((c.TaskSpec("noop", PAYLOAD, lost), c.TaskSpec("noop", PAYLOAD))))
        assert one["error"]["code"] == "damaged"
        assert other["created"] is True
        [child] = node.ask(c.Submit((c.TaskSpec("noop", PAYLOAD, after=(lost,)),)))
        assert child["error"]["code"] == "damaged"
        assert cluster.status("eu")["damaged"] == [lost.hex()]
        assert lost.hex() not in {record["id"] for record in node.listing(c.ListTasks(limit=0))}
        assert cluster.state("us", lost) == "succeeded", "other regions have it"
        cluster.run_for(10_000)
        cluster.restart("eu")
        cluster.run_for(5_000)
    assert node.reloads == []
    assert {alarm.what for alarm in cluster.alarms()} == {"store.task"}, "no divergence, above all"


def test_a_fact_about_a_damaged_task_passes_by_and_does_not_stop_the_log() -> None:
    cluster, tasks = dropped("eu", "us")
    eu = cluster.nodes[RegionId("eu")]
    eu.store.damage(task_row(tasks[4]))
    cluster.nodes[RegionId("us")].ask(c.Edit(tasks[4], labels={"a": "b"}))
    later = cluster.submit("us", "noop")
    assert cluster.run_until(lambda: cluster.status("eu")["damaged"] != [], 5_000)
    cluster.run_for(5_000)
    assert cluster.state("eu", later) == "succeeded"
    assert cluster.status("eu")["heads"] == cluster.status("us")["heads"]
    assert eu.reloads == []


def test_a_snapshot_with_a_damaged_row_is_never_taken_for_whole() -> None:
    cluster, tasks = dropped("eu", "us")
    cluster.crash("us")
    us = cluster.nodes[RegionId("us")]
    us.store = type(us.store)()
    eu = cluster.nodes[RegionId("eu")]
    eu.store.damage(task_row(sorted(tasks)[10]))
    us.start()
    cluster.run_for(20_000)
    assert "gossip.snapshot_failed" in {alarm.what for alarm in cluster.alarms()}
    assert not any(notice.what == "snapshot.adopted" for notice in us.notices)


def test_a_damaged_compensation_is_not_submitted_anew() -> None:
    cluster = Cluster(
        "eu", "us",
        tasks={"noop": quick, "charge": lambda _: Outcome(after_ms=1_000, effects={"charge": 1}), "refund": quick},
        declare={"charge": {"compensate": "refund"}},
        retention_ms=5_000,
    )  # fmt: skip
    task = cluster.submit("eu", "charge", delay_ms=2_000)
    cluster.run_for(500)
    cluster.cut("eu", "us")
    cluster.run_for(20_000)
    cluster.heal()
    cluster.run_for(40_000)
    [conflict] = [x for x in cluster.nodes[RegionId("us")].listing(c.ListConflicts()) if x["compensations"]]
    undo = bytes.fromhex(conflict["compensations"][0]["task"])
    region = cluster.show("us", undo)["owner"]
    node = cluster.nodes[RegionId(region)]
    empty_memory(cluster, region)
    node.store.damage(task_row(undo))
    with pytest.raises(AskError) as refused:
        node.ask(c.Describe(undo))
    assert refused.value.code == "damaged"
    before = events_of(node, undo), events_of(node, task)
    node.ask(c.Edit(task, labels={"look": "again"}))
    assert (events_of(node, undo), events_of(node, task)) == (before[0], before[1] + 1)


# Commits -----------------------------------------------------------------------------------------


def writer_of(cluster: Cluster, region: str) -> WriterId:
    replica = cluster.nodes[RegionId(region)].replica
    assert replica is not None
    return replica.writer


@pytest.mark.parametrize("whose", ["eu", "us"])
def test_a_damaged_commit_that_was_not_folded_comes_from_a_peer(whose) -> None:
    cluster = Cluster("eu", "us", tasks={"noop": quick})
    us = cluster.nodes[RegionId("us")]
    tasks = [cluster.submit(whose, "noop") for _ in range(10)]
    cluster.run_for(200)  # on disk, and not yet in rows
    writer = writer_of(cluster, whose)
    assert us.replica is not None
    number = us.replica.folded_heads.get(writer, 0) + 2
    cluster.crash("us")
    us.store.damage(commit_row(writer, number))
    cluster.restart("us")
    assert commit_row(writer, number) in us.store.corrupt_rows()
    cluster.run_for(20_000)
    assert is_sound(us)
    assert cluster.converge()
    assert {cluster.state("us", task) for task in tasks} == {"succeeded"}
    assert [alarm.what for alarm in cluster.alarms() if not asked_for(alarm)] in ([], ["disk.behind"])
    before = cluster.status("us")["digest"]
    cluster.restart("us")
    assert cluster.status("us")["digest"] == before


@pytest.mark.parametrize("whose", ["eu", "us"])
def test_a_damaged_commit_that_settlement_needs_comes_from_a_peer(whose, monkeypatch) -> None:
    monkeypatch.setattr(settlement, "REMEMBERED_MAX", 0)  # every commit is read back to be visited
    cluster = Cluster("eu", "us", "ap", tasks={"noop": quick}, credits=100)
    cluster.isolate("ap")
    for region in ("eu", "us"):
        for _ in range(10):
            cluster.submit(region, "noop")
    cluster.run_for(10_000)
    us = cluster.nodes[RegionId("us")]
    writer = writer_of(cluster, whose)
    us.store.damage(commit_row(writer, 5))
    cluster.heal()
    cluster.run_for(30_000)
    assert is_sound(us)
    assert us.reloads == []
    assert cluster.converge()
    for region in ("eu", "us", "ap"):
        assert all(record["settled"] for record in cluster.nodes[RegionId(region)].listing(c.ListTasks(limit=0)))
    assert {alarm.what for alarm in cluster.alarms()} <= {"store.commit", "gossip.commits_missing"}


def test_a_damaged_commit_that_nobody_else_has_stays_lacking_and_alarms() -> None:
    cluster = Cluster("eu", tasks={"noop": succeed})
    tasks = [cluster.submit("eu", "noop", delay_ms=60_000) for _ in range(5)]
    eu = cluster.nodes[RegionId("eu")]
    assert eu.replica is not None
    writer, number = writer_of(cluster, "eu"), eu.replica.folded_heads.get(writer_of(cluster, "eu"), 0) + 2
    cluster.crash("eu")
    eu.store.damage(commit_row(writer, number))
    cluster.restart("eu")
    cluster.run_for(5_000)
    assert cluster.status("eu")["gaps"] == [[writer, number, number]]
    assert "store.commit" in {alarm.what for alarm in cluster.alarms()}
    assert now_or_never(eu.store.heads(DEFAULT_DOMAIN))[writer] > number, "nothing was cut off"
    assert tasks
