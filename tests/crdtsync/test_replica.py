"""One region alone: what a replica promises to its clients and workers."""

from __future__ import annotations

from typing import Any

import pytest

from crdtsync import commands as c
from crdtsync import effects as e
from crdtsync import requests
from crdtsync.identifiers import RegionId, WorkerId
from crdtsync.protocol.codec import encode_value
from crdtsync.replica import FOLLOW_MS
from tests.cluster import EPOCH_MS, AskError, Cluster, Outcome, never, succeed


def failing(times: int):
    seen: dict[bytes, int] = {}

    def handler(assignment: e.Assignment) -> Outcome:
        seen[assignment.task] = seen.get(assignment.task, 0) + 1
        return Outcome("failed") if seen[assignment.task] <= times else Outcome(value=seen[assignment.task])

    return handler


def test_a_task_runs_and_its_result_is_told() -> None:
    cluster = Cluster("eu", tasks={"noop": succeed})
    task = cluster.submit("eu", "noop", 1, 2)
    record = cluster.nodes["eu"].ask(c.Await(task))
    assert record["state"] == "succeeded"
    assert record["result"] == "done by eu"
    assert record["args"] == [1, 2]


def test_a_submission_is_acknowledged_only_once_it_is_on_disk() -> None:
    cluster = Cluster("eu", workers=False, tasks={"noop": succeed})
    cluster.worker("eu")
    cluster.run_for(100)
    node = cluster.nodes["eu"]
    node.store.fail_appends(None)
    spec = c.TaskSpec(name="noop", payload=encode_value([[], {}]), id=b"t" * 16)
    replica = node.replica
    assert replica is not None
    replica.submit(c.Submit((spec,)), node.now, "ticket")
    effects = replica.take_effects()
    persists = [effect for effect in effects if isinstance(effect, e.Persist)]
    assert len(persists) == 1
    assert not [effect for effect in effects if isinstance(effect, e.Reply | e.Run)]
    replica.persisted(persists[0].batch, node.now)
    effects = replica.take_effects()
    assert [effect.ticket for effect in effects if isinstance(effect, e.Reply)] == ["ticket"]
    assert len([effect for effect in effects if isinstance(effect, e.Run)]) == 1


def test_whoever_waited_for_the_disk_does_not_wait_for_what_follows_as_well() -> None:
    """An input that comes between the two changes nothing but the order in which it is looked at."""
    cluster = Cluster("eu", tasks={"noop": never})
    node = cluster.nodes["eu"]
    replica = node.replica
    assert replica is not None
    first, second = (c.TaskSpec(name="noop", payload=encode_value([[], {}]), id=id * 16) for id in (b"t", b"u"))
    replica.submit(c.Submit((first,)), node.now, "first")
    [persist] = [effect for effect in replica.take_effects() if isinstance(effect, e.Persist)]
    replica.persisted(persist.batch, node.now)
    released = replica.take_released()
    assert [type(effect) for effect in released] == [e.Reply, e.Run]
    assert replica.take_released() == []
    assert replica.next_deadline_ms() == node.now.mono_ms + FOLLOW_MS
    replica.submit(c.Submit((second,)), node.now, "second")
    [persist] = [effect for effect in replica.take_effects() if isinstance(effect, e.Persist)]
    assert len(persist.commits) == 1
    replica.persisted(persist.batch, node.now)
    replica.tick(node.now)
    assert {type(effect) for effect in replica.take_effects()} == {e.Reply, e.Run}
    due_ms = replica.next_deadline_ms()
    assert due_ms is not None
    assert due_ms > node.now.mono_ms


def test_the_heads_and_the_digest_of_a_status_are_of_one_moment_while_a_batch_is_being_written() -> None:
    """Two regions with equal heads and unequal digests would be a divergence, and whoever compares them says so."""
    cluster = Cluster("eu", tasks={"noop": never})
    node = cluster.nodes["eu"]
    replica = node.replica
    assert replica is not None
    specs = [c.TaskSpec(name="noop", payload=encode_value([[], {}]), id=id * 16) for id in (b"t", b"u")]
    replica.submit(c.Submit((specs[0],)), node.now, "first")
    [batch] = [effect for effect in replica.take_effects() if isinstance(effect, e.Persist)]
    replica.submit(c.Status(), node.now, "before")
    replica.submit(c.Submit((specs[1],)), node.now, "second")  # into a commit that stays open until the disk is free
    replica.submit(c.Status(), node.now, "after")
    answers: dict[Any, Any] = {}
    for _ in range(3):
        replica.persisted(batch.batch, node.now)
        batches = []
        for effect in replica.take_effects():
            if isinstance(effect, e.Reply):
                answers[effect.ticket] = effect.value
            elif isinstance(effect, e.Persist):
                batches.append(effect)
        if not batches:
            break
        [batch] = batches
    before, after = answers["before"], answers["after"]
    assert before["digest"] != after["digest"]
    assert before["heads"] != after["heads"]


def test_what_arrives_during_one_fsync_shares_the_next() -> None:
    cluster = Cluster("eu", tasks={"noop": succeed}, credits=50)
    node = cluster.nodes["eu"]
    before = len(node.store._commits)
    for number in range(50):
        spec = c.TaskSpec(name="noop", payload=b"\x82\x80\xa0", id=bytes([number]) * 16)
        node.feed(lambda replica, spec=spec, number=number: replica.submit(c.Submit((spec,)), node.now, number))
    cluster.run_for(200)
    assert all(number in node.answers for number in range(50))
    assert len(node.store._commits) - before <= 6  # submissions, claims and ends of fifty tasks


def test_failures_are_retried_with_backoff_and_then_succeed() -> None:
    cluster = Cluster("eu", tasks={"flaky": failing(2)})
    task = cluster.submit("eu", "flaky")
    cluster.run_for(200)
    assert cluster.state("eu", task) == "waiting"
    assert "backoff after 1 failures" in cluster.show("eu", task)["waiting_for"]
    cluster.run_for(10_000)
    record = cluster.show("eu", task)
    assert record["state"] == "succeeded"
    assert [attempt["state"] for attempt in record["attempts"]] == ["failed", "failed", "ok"]
    starts = [at for at, _, assignment in cluster.started if assignment.task == task]
    assert 500 <= starts[1] - starts[0] - 10 <= 1_100
    assert 1_000 <= starts[2] - starts[1] - 10 <= 2_100


def test_the_last_failure_makes_a_dead_letter_and_a_requeue_grants_again() -> None:
    cluster = Cluster("eu", tasks={"flaky": failing(2)}, declare={"flaky": {"attempts": 2}})
    task = cluster.submit("eu", "flaky")
    cluster.run_for(10_000)
    record = cluster.show("eu", task)
    assert record["state"] == "dead"
    assert "TestError" in record["attempts"][-1]["error"]
    cluster.nodes["eu"].ask(c.Requeue(task))
    cluster.run_for(10_000)
    assert cluster.state("eu", task) == "succeeded"


def test_requeue_is_refused_unless_dead() -> None:
    cluster = Cluster("eu", tasks={"noop": succeed})
    task = cluster.submit("eu", "noop")
    cluster.run_for(1_000)
    with pytest.raises(AskError) as refused:
        cluster.nodes["eu"].ask(c.Requeue(task))
    assert refused.value.code == "conflict"


def test_a_non_retryable_failure_is_not_retried() -> None:
    cluster = Cluster(
        "eu", tasks={"bad": lambda a: Outcome("failed")}, declare={"bad": {"non_retryable": ("TestError",)}}
    )
    task = cluster.submit("eu", "bad")
    cluster.run_for(5_000)
    record = cluster.show("eu", task)
    assert (record["state"], len(record["attempts"])) == ("dead", 1)


def test_a_cancel_before_the_start_prevents_it() -> None:
    cluster = Cluster("eu", tasks={"noop": succeed})
    task = cluster.submit("eu", "noop", delay_ms=5_000)
    assert cluster.nodes["eu"].ask(c.Cancel(task))["state"] == "cancelled"
    cluster.run_for(10_000)
    assert not [a for _, _, a in cluster.started if a.task == task]


def test_a_losing_cancel_asks_the_handler_to_stop() -> None:
    cluster = Cluster("eu", tasks={"long": never})
    task = cluster.submit("eu", "long")
    cluster.run_for(200)
    assert cluster.nodes["eu"].ask(c.Cancel(task))["state"] == "cancelling"
    cluster.run_for(200)
    assert [reason for _, _, reason in cluster.stopped] == ["cancelled"]
    assert cluster.state("eu", task) == "cancelled"


def test_a_success_beats_a_losing_cancel() -> None:
    cluster = Cluster("eu", tasks={"long": lambda a: Outcome(after_ms=1_000)})
    cluster.obedient = False
    task = cluster.submit("eu", "long")
    cluster.run_for(200)
    cluster.nodes["eu"].ask(c.Cancel(task))
    cluster.run_for(2_000)
    record = cluster.show("eu", task)
    assert record["state"] == "succeeded"


def test_a_late_cancel_is_answered_already_succeeded() -> None:
    cluster = Cluster("eu", tasks={"noop": succeed})
    task = cluster.submit("eu", "noop")
    cluster.run_for(1_000)
    answer = cluster.nodes["eu"].ask(c.Cancel(task))
    assert (answer["cancelled"], answer["answer"]) == (False, "already succeeded")


def test_a_winning_cancel_undoes_what_the_attempt_did() -> None:
    tasks = {"charge": lambda a: Outcome(after_ms=1_000, value="ok", effects={"charge": "ch-1"}), "refund": succeed}
    cluster = Cluster("eu", tasks=tasks, declare={"charge": {"compensate": "refund"}})
    cluster.obedient = False
    task = cluster.submit("eu", "charge")
    cluster.run_for(200)
    assert cluster.nodes["eu"].ask(c.Cancel(task))["state"] == "cancelled"
    cluster.run_for(5_000)
    undone = [a for _, _, a in cluster.started if a.name == "refund"]
    assert len(undone) == 1
    assert undone[0].undoes is not None


def test_a_delay_a_start_time_and_a_deadline_are_kept() -> None:
    cluster = Cluster("eu", tasks={"noop": succeed, "long": never})
    submitted_ms = cluster.time_ms
    delayed = cluster.submit("eu", "noop", delay_ms=3_000)
    expiring = cluster.submit("eu", "long", delay_ms=60_000, deadline_ms=cluster.nodes["eu"].now.wall_ms + 2_000)
    cluster.run_for(10_000)
    starts = [at for at, _, assignment in cluster.started if assignment.task == delayed]
    assert 3_000 <= starts[0] - submitted_ms <= 3_100
    assert cluster.state("eu", expiring) == "expired"


@pytest.mark.parametrize("step_ms", [3_600_000, -600_000])
def test_a_wall_clock_that_steps_moves_no_delay_backoff_or_deadline(step_ms: int) -> None:
    """Simulator, clock_jump: what was delayed under a clock an hour ahead waited for that hour once it was right."""
    failures = iter((Outcome("failed", after_ms=1),))
    cluster = Cluster(
        "eu",
        tasks={"noop": succeed, "long": never, "flaky": lambda _: next(failures, Outcome(after_ms=1))},
        declare={"flaky": {"backoff_ms_base": 4_000}},
    )
    eu = cluster.nodes["eu"]
    cluster.run_for(1_000)
    submitted_ms = cluster.time_ms
    before = cluster.submit("eu", "noop", delay_ms=3_000)
    expiring = cluster.submit("eu", "long", delay_ms=60_000, deadline_ms=eu.now.wall_ms + 3_000)
    again = cluster.submit("eu", "flaky")
    cluster.run_for(1_000)
    eu.wall_offset_ms = step_ms
    during = cluster.submit("eu", "noop", delay_ms=3_000)
    cluster.run_for(1_000)
    assert not [at for at, _, assignment in cluster.started if assignment.task in (before, during)]
    assert cluster.state("eu", expiring) == "waiting"
    eu.wall_offset_ms = 0
    cluster.run_for(6_000)
    starts = [
        [at - submitted_ms for at, _, assignment in cluster.started if assignment.task == task]
        for task in (before, during, again)
    ]
    assert 3_000 <= starts[0][0] <= 3_100
    assert 4_000 <= starts[1][0] <= 4_100
    assert 2_000 <= starts[2][1] <= 4_100  # half of its backoff, or up to all of it
    assert cluster.state("eu", expiring) == "expired"


def test_a_timeout_fails_the_attempt_and_stops_the_handler() -> None:
    cluster = Cluster("eu", tasks={"long": never}, declare={"long": {"timeout_ms": 500, "attempts": 1}})
    task = cluster.submit("eu", "long")
    cluster.run_for(2_000)
    assert cluster.state("eu", task) == "dead"
    assert [reason for _, _, reason in cluster.stopped] == ["timeout"]


def test_priority_decides_who_goes_first_and_fifo_within() -> None:
    cluster = Cluster("eu", tasks={"noop": lambda a: Outcome(after_ms=100)}, workers=False)
    cluster.worker("eu").kill()  # its declaration stays
    cluster.run_for(100)
    tasks = [cluster.submit("eu", "noop", priority=p) for p in (1, 9, 5, 9)]
    cluster.credits = 1
    cluster.worker("eu")
    cluster.run_for(5_000)
    order = [tasks.index(a.task) for _, _, a in cluster.started]
    assert order == [1, 3, 2, 0]


def test_dependents_wait_for_their_parents_and_get_cancelled_with_them() -> None:
    cluster = Cluster(
        "eu", tasks={"noop": succeed, "bad": lambda a: Outcome("failed")}, declare={"bad": {"attempts": 1}}
    )
    good = cluster.submit("eu", "noop", delay_ms=1_000)
    bad = cluster.submit("eu", "bad", delay_ms=1_000)
    child = cluster.submit("eu", "noop", after=(good,))
    orphan = cluster.submit("eu", "noop", after=(good, bad))
    cluster.run_for(500)
    assert "0 of 1" in cluster.show("eu", child)["waiting_for"]
    cluster.run_for(5_000)
    assert cluster.state("eu", child) == "succeeded"
    assert cluster.state("eu", orphan) == "cancelled"
    order = [a.task for _, _, a in cluster.started]
    assert order.index(good) < order.index(child)
    assert orphan not in order


def test_a_fan_in_of_a_thousand_runs_once() -> None:
    cluster = Cluster("eu", tasks={"noop": succeed}, credits=200)
    specs = tuple(
        c.TaskSpec(name="noop", payload=b"\x82\x80\xa0", id=number.to_bytes(16, "big")) for number in range(1_100)
    )
    cluster.nodes["eu"].ask(c.Submit(specs))
    sink = cluster.submit("eu", "noop", after=tuple(number.to_bytes(16, "big") for number in range(1_100)))
    cluster.run_for(20_000)
    assert cluster.state("eu", sink) == "succeeded"
    assert len([a for _, _, a in cluster.started if a.task == sink]) == 1


def test_an_unknown_parent_is_refused() -> None:
    cluster = Cluster("eu", tasks={"noop": succeed})
    with pytest.raises(AskError) as refused:
        cluster.submit("eu", "noop", after=(b"x" * 16,))
    assert refused.value.code == "dependency"


@pytest.mark.parametrize(
    "wrong", [{"partition": "majority"}, {"cancel": "perhaps"}, {"priority": 99}, {"attempts": -1}]
)
def test_a_worker_that_declares_what_nobody_could_read_is_refused_and_not_employed(wrong: dict[str, Any]) -> None:
    """Written all the same, it would have been a commit that peers take for malformed."""
    cluster = Cluster("eu", tasks={"noop": succeed})
    node = cluster.nodes[RegionId("eu")]
    declared = c.TaskDeclaration("pay", **wrong)
    with pytest.raises(AskError) as refused:
        node.ask(c.WorkerHello("w", "app", (c.TaskDeclaration("fine"), declared), 5))
    assert refused.value.code == "invalid"
    assert node.replica is not None
    assert not {"pay", "fine"} & node.replica._here.declared.keys()
    assert node.replica._workers.get(WorkerId("w")) is None


def test_a_name_that_nobody_declared_is_refused() -> None:
    cluster = Cluster("eu", tasks={"noop": succeed})
    with pytest.raises(AskError) as refused:
        cluster.submit("eu", "nope")
    assert refused.value.code == "undeclared"


def test_the_same_id_again_returns_the_task_also_after_a_restart_and_after_it_left_memory() -> None:
    cluster = Cluster("eu", tasks={"noop": succeed})
    spec = c.TaskSpec(name="noop", payload=b"\x82\x80\xa0", id=b"a" * 16)
    assert cluster.nodes["eu"].ask(c.Submit((spec,)))[0]["created"]
    assert not cluster.nodes["eu"].ask(c.Submit((spec,)))[0]["created"]
    cluster.run_for(10_000)
    assert cluster.status("eu")["tasks_in_memory"] == 0
    assert not cluster.nodes["eu"].ask(c.Submit((spec,)))[0]["created"]
    cluster.restart("eu")
    cluster.run_for(100)
    assert not cluster.nodes["eu"].ask(c.Submit((spec,)))[0]["created"]
    other = c.TaskSpec(name="noop", payload=b"\x82\x81\x01\xa0", id=b"a" * 16)
    assert cluster.nodes["eu"].ask(c.Submit((other,)))[0]["error"]["code"] == "duplicate"


def test_one_key_is_one_task_within_its_window_and_another_after_it() -> None:
    cluster = Cluster("eu", tasks={"noop": succeed}, declare={"noop": {"window_ms": 60_000}})
    first = cluster.submit("eu", "noop", 1, key="k")
    cluster.run_for(10_000)
    assert cluster.submit("eu", "noop", 1, key="k") == first
    cluster.run_for(60_000)
    assert cluster.submit("eu", "noop", 1, key="k") != first


def test_edits_of_priority_and_labels_show_and_count() -> None:
    cluster = Cluster("eu", tasks={"noop": succeed})
    task = cluster.submit("eu", "noop", delay_ms=5_000, labels={"a": "1", "b": "2"})
    answer = cluster.nodes["eu"].ask(c.Edit(task, 8, {"a": "9", "b": "", "c": "3"}))
    assert answer["priority"] == 8
    assert answer["labels"] == {"a": "9", "c": "3"}


def test_a_crashed_workers_attempts_run_again_elsewhere() -> None:
    cluster = Cluster("eu", tasks={"long": lambda a: Outcome(after_ms=3_000)}, workers=False)
    first = cluster.worker("eu")
    cluster.run_for(100)
    task = cluster.submit("eu", "long")
    cluster.run_for(500)
    first.kill()
    cluster.worker("eu")
    cluster.run_for(10_000)
    record = cluster.show("eu", task)
    assert [attempt["state"] for attempt in record["attempts"]] == ["lost", "ok"]


def test_a_restarted_node_adopts_what_its_workers_still_run() -> None:
    cluster = Cluster("eu", tasks={"long": lambda a: Outcome(after_ms=8_000)})
    task = cluster.submit("eu", "long")
    cluster.run_for(500)
    cluster.restart("eu")
    cluster.run_for(20_000)
    record = cluster.show("eu", task)
    assert record["state"] == "succeeded"
    assert [attempt["state"] for attempt in record["attempts"]] == ["ok"]


def test_a_restarted_node_loses_what_nobody_runs_and_runs_it_again() -> None:
    cluster = Cluster("eu", tasks={"long": lambda a: Outcome(after_ms=1_000)})
    task = cluster.submit("eu", "long")
    cluster.run_for(500)
    for worker in list(cluster.nodes["eu"].workers.values()):
        worker.alive = False
    cluster.nodes["eu"].workers.clear()
    cluster.restart("eu")
    cluster.worker("eu")
    cluster.run_for(10_000)
    record = cluster.show("eu", task)
    assert [(a["state"], a["reason"]) for a in record["attempts"]] == [("lost", "restart"), ("ok", "")]


def test_an_effect_is_inherited_by_the_next_attempt_and_done_once() -> None:
    tries: list[e.Assignment] = []

    def charge(assignment: e.Assignment) -> Outcome:
        tries.append(assignment)
        return Outcome("failed" if len(tries) == 1 else "ok", effects={"charge": "ch-1"})

    cluster = Cluster("eu", tasks={"charge": charge})
    cluster.submit("eu", "charge")
    cluster.run_for(5_000)
    assert len(cluster.sink) == 1
    assert tries[0].effects == ()
    assert [name for name, _ in tries[1].effects] == ["charge"]
    assert tries[0].root == tries[1].root == tries[0].attempt


def test_an_assignment_that_its_worker_never_got_is_sent_again_when_the_worker_is_back() -> None:
    """Found in swarm seed 53: a node that had been paused assigned over a connection that was gone. The worker came
    back in time, under its old name, and the attempt stayed open for ever."""
    cluster = Cluster("eu", tasks={"noop": succeed}, workers=False)
    worker = cluster.worker("eu")
    cluster.run_for(100)
    del cluster.nodes["eu"].workers[worker.name]  # frames to it get lost
    task = cluster.submit("eu", "noop")
    cluster.run_for(500)
    assert cluster.show("eu", task)["state"] == "running"
    cluster.nodes["eu"].workers[worker.name] = worker
    worker.hello()
    cluster.run_for(500)
    record = cluster.show("eu", task)
    assert record["state"] == "succeeded"
    assert len(record["attempts"]) == 1


def test_a_task_that_outlives_its_deadline_costs_no_turns_meanwhile() -> None:
    """Found by the simulator: the timer of a deadline that had passed was set again with each review, so that the node
    spun for as long as the attempt ran."""
    cluster = Cluster("eu", tasks={"long": lambda a: Outcome(after_ms=20_000)})
    task = cluster.submit("eu", "long", deadline_ms=EPOCH_MS + 1_000)
    node, tick, ticks = cluster.nodes["eu"], cluster.nodes["eu"].tick, 0

    def counting(life: int) -> None:
        nonlocal ticks
        ticks += 1
        assert ticks < 1_000, "the node spins"
        tick(life)

    node.tick = counting  # type: ignore[method-assign]
    cluster.run_for(5_000)
    assert cluster.show("eu", task)["state"] == "expired"


def test_a_restart_shows_the_same_state() -> None:
    cluster = Cluster("eu", tasks={"noop": succeed, "flaky": failing(1)}, credits=3)
    for _ in range(20):
        cluster.submit("eu", "noop")
        cluster.submit("eu", "flaky", delay_ms=2_000)
    cluster.run_for(2_200)
    before = cluster.status("eu")["digest"]
    cluster.crash("eu")
    cluster.nodes["eu"].workers.clear()
    cluster.nodes["eu"].start()
    assert cluster.status("eu")["digest"] == before
    cluster.worker("eu")
    cluster.run_for(20_000)
    states = {record["state"] for record in cluster.nodes["eu"].listing(c.ListTasks(limit=0))}
    assert states == {"succeeded"}


def test_listing_filters_by_state_queue_and_label() -> None:
    cluster = Cluster("eu", tasks={"noop": succeed})
    cluster.submit("eu", "noop", queue="a", labels={"team": "x"})
    cluster.submit("eu", "noop", queue="b", delay_ms=10_000)
    cluster.run_for(500)
    ask, listing = cluster.nodes["eu"].ask, cluster.nodes["eu"].listing
    assert [r["queue"] for r in listing(c.ListTasks(state="waiting"))] == ["b"]
    assert [r["queue"] for r in listing(c.ListTasks(queue="a"))] == ["a"]
    assert [r["queue"] for r in listing(c.ListTasks(label=("team", "x")))] == ["a"]
    assert len(ask(c.ListTasks(limit=1))["records"]) == 1
    with pytest.raises(AskError) as refused:
        ask(c.ListTasks(state="nonsense"))
    assert refused.value.code == "invalid"


def test_a_listing_comes_in_bounded_pages_and_brings_nothing_into_memory(monkeypatch) -> None:
    monkeypatch.setattr(requests, "PAGE_TASKS_MAX", 7)
    cluster = Cluster("eu", tasks={"noop": lambda _: Outcome(after_ms=1)}, credits=100)
    node = cluster.nodes["eu"]
    ids = {cluster.submit("eu", "noop") for _ in range(30)}
    cluster.run_for(5_000)
    assert cluster.status("eu")["tasks_in_memory"] == 0
    page = node.ask(c.ListTasks(limit=0))
    assert len(page["records"]) == 7
    late = cluster.submit("eu", "noop", delay_ms=60_000)
    rest = node.listing(c.ListTasks(limit=0, after=page["next"]))
    assert [record["id"] for record in (*page["records"], *rest)] == [
        record["id"] for record in node.listing(c.ListTasks(limit=0)) if record["id"] != late.hex()
    ], "newest first, each once, and none that came after the first page"
    assert {record["id"] for record in (*page["records"], *rest)} == {id.hex() for id in ids}
    assert cluster.status("eu")["tasks_in_memory"] == 1
    assert len(node.ask(c.ListTasks(limit=3, after=page["next"]))["records"]) == 3


def test_only_the_first_page_of_a_listing_waits_for_rows_to_be_written(monkeypatch) -> None:
    monkeypatch.setattr(requests, "PAGE_TASKS_MAX", 2)
    cluster = Cluster("eu", tasks={"noop": never}, credits=1)
    for _ in range(5):
        cluster.submit("eu", "noop")
    node = cluster.nodes["eu"]
    flushes = []
    flush = node.replica._requests._flush
    monkeypatch.setattr(node.replica._requests, "_flush", lambda: flushes.append(flush()))
    assert len(node.listing(c.ListTasks(limit=0))) == 5
    assert len(flushes) == 1


@pytest.mark.parametrize("after", [(-1, bytes(16)), (2**63, bytes(16)), (1, b""), (1, bytes(17))])
def test_a_cursor_that_no_page_gave_is_refused(after) -> None:
    cluster = Cluster("eu")
    for command in (c.ListTasks(after=after), c.ListConflicts(after=after)):
        with pytest.raises(AskError) as refused:
            cluster.nodes["eu"].ask(command)
        assert refused.value.code == "invalid"


def test_ended_tasks_leave_memory_and_the_log_is_dropped_after_retention() -> None:
    cluster = Cluster("eu", tasks={"noop": lambda a: Outcome(after_ms=1)}, credits=100, retention_ms=5_000)
    for _ in range(30):
        specs = tuple(c.TaskSpec(name="noop", payload=b"\x82\x80\xa0") for _ in range(20))
        cluster.nodes["eu"].ask(c.Submit(specs))
    cluster.run_for(3_000)
    assert cluster.status("eu")["tasks_in_memory"] == 0
    cluster.run_for(20_000)
    assert cluster.status("eu")["commit_bytes"] < 2_000
    assert len(cluster.nodes["eu"].listing(c.ListTasks(limit=0))) == 600
    cluster.restart("eu")
    cluster.run_for(1_000)
    assert len(cluster.nodes["eu"].listing(c.ListTasks(limit=0))) == 600


def test_a_watch_tells_each_change_once() -> None:
    cluster = Cluster("eu", tasks={"noop": succeed})
    node = cluster.nodes["eu"]
    ticket = cluster.ticket()
    node.feed(lambda replica: replica.submit(c.Watch(), node.now, ticket))
    task = cluster.submit("eu", "noop")
    cluster.run_for(1_000)
    told = [(reply.value["state"], reply.value["settled"]) for reply in node.answers[ticket]]
    assert told[-1] == ("succeeded", True)
    assert len(told) == len(set(told))
    assert {reply.value["id"] for reply in node.answers[ticket]} == {task.hex()}
    assert not any(reply.final for reply in node.answers[ticket])


def test_a_draining_region_starts_nothing_more() -> None:
    cluster = Cluster("eu", tasks={"noop": succeed})
    cluster.nodes["eu"].ask(c.Drain())
    task = cluster.submit("eu", "noop")
    cluster.run_for(5_000)
    assert "draining" in cluster.show("eu", task)["waiting_for"]
    cluster.nodes["eu"].ask(c.Drain(off=True))
    cluster.run_for(1_000)
    assert cluster.state("eu", task) == "succeeded"


def test_a_command_that_nobody_handles_is_answered_with_an_error() -> None:
    cluster = Cluster("eu")
    with pytest.raises(AskError) as refused:
        cluster.nodes["eu"].ask(c.LogHeads())
    assert refused.value.code == "not_implemented"
    assert cluster.submit("eu"), "and costs nobody else anything"
