"""`quorum` tasks in a cluster: one region at a time, the side with a majority, and what was fenced is evidence."""

from __future__ import annotations

from typing import Any

import pytest

from crdtsync import commands as c
from crdtsync import effects as e
from crdtsync.identifiers import RegionId
from tests.cluster import AskError, Cluster, Outcome, never, succeed

REGIONS = ("eu", "us", "ap")
LEASE_MS = 3_000
QUORUM: dict[str, Any] = {"partition": "quorum"}


def cluster(handler: Any = succeed, **changes: Any) -> Cluster:
    made = Cluster(
        *REGIONS,
        tasks={"noop": handler},
        declare={"noop": {**QUORUM, **changes.pop("declare", {})}},
        lease_ms=LEASE_MS,
        **changes,
    )
    made.run_for(2 * LEASE_MS)  # voters are silent for one lease after their start
    return made


def tokens(made: Cluster, region: str, task: bytes) -> list[int]:
    return [attempt["token"] for attempt in made.show(region, task)["attempts"]]


def test_a_quorum_task_runs_once_under_a_token_and_is_decided_before_it_is_settled() -> None:
    made = cluster()
    task = made.submit("eu")
    assert made.run_until(lambda: made.state("eu", task) == "succeeded")
    (token,) = tokens(made, "eu", task)
    assert token > 0
    assert [assignment.fence for _, _, assignment in made.started] == [token]
    made.isolate("ap")  # so that it cannot be settled
    task = made.submit("eu")
    assert made.run_until(lambda: made.show("eu", task)["decided"] is True)
    record = made.show("eu", task)
    assert (record["state"], record["settled"]) == ("succeeded", False)
    assert "majority of the regions had it" in made.explain("eu", task)
    assert len(made.show("us", task)["attempts"]) == 1


def test_one_lease_serves_a_whole_queue() -> None:
    made = cluster()
    tasks = [made.submit("eu") for _ in range(30)]
    assert made.run_until(lambda: all(made.state("eu", task) == "succeeded" for task in tasks))
    assert len({token for task in tasks for token in tokens(made, "eu", task)}) == 1
    granted = [n for node in made.nodes.values() for n in node.notices if n.what == "lease.granted"]
    assert len(granted) == 1


def test_the_minority_waits_and_says_why_and_the_majority_runs_what_it_knows() -> None:
    made = cluster()
    made.submit("eu")
    made.run_for(2_000)
    known = made.submit("eu", delay_ms=3_000)
    made.run_for(1_000)
    made.isolate("eu")
    made.run_for(4 * LEASE_MS)
    assert made.state("us", known) == "succeeded", "whoever holds the lease runs it, though eu owns it"
    unknown = made.submit("eu")
    made.run_for(4 * LEASE_MS)
    record = made.show("eu", unknown)
    assert record["state"] == "waiting"
    assert "needs 2 of 3 regions, sees 1" in record["waiting_for"]
    assert "needs 2 of 3 regions, sees 1" in made.nodes[RegionId("eu")].ask(c.Explain(unknown))["local"]
    made.heal()
    assert made.run_until(lambda: made.state("eu", unknown) == "succeeded")
    assert made.converge()
    assert not made.show("eu", known)["conflicts"]


def test_a_holder_that_is_cut_off_stops_its_handlers_before_another_region_begins() -> None:
    made = cluster(never, lost_after_ms=60_000)
    task = made.submit("eu")
    assert made.run_until(lambda: bool(made.started))
    (_, first, _) = made.started[0]
    made.run_for(500)
    made.isolate(first)
    assert made.run_until(lambda: len(made.started) == 2, limit_ms=20_000)
    stopped = [(region, reason) for region, _, reason in made.stopped]
    assert (first, "lost lease") in stopped
    later = made.started[1][1]
    assert later != first
    old, new = tokens(made, later, task)
    assert old < new


def test_what_completes_under_an_older_token_is_fenced_and_undone() -> None:
    def slow(assignment: e.Assignment) -> Outcome:
        return Outcome(value=assignment.region, after_ms=12_000, effects={f"mail from {assignment.region}": "sent"})

    made = Cluster(
        *REGIONS,
        tasks={"noop": slow, "unmail": succeed},
        declare={"noop": {**QUORUM, "compensate": "unmail", "cancel": "loses"}},
        lease_ms=LEASE_MS,
    )
    made.obedient = False  # handlers that ignore a stop
    made.run_for(2 * LEASE_MS)
    task = made.submit("eu")
    assert made.run_until(lambda: bool(made.started))
    first = made.started[0][1]
    made.run_for(500)
    made.isolate(first)
    made.run_for(8_000)
    assert len(made.started) == 2
    second = made.started[1][1]
    made.run_for(5_000)
    assert made.state(first, task) == "succeeded", "as the side that is cut off sees it"
    assert made.show(first, task)["decided"] is False
    made.heal()
    assert made.run_until(lambda: made.show(first, task)["settled"] is True)
    assert made.converge()
    record = made.show(second, task)
    assert record["result"] == second
    assert [attempt["fenced"] for attempt in record["attempts"]] == [True, False]
    conflicts = made.nodes[RegionId(second)].listing(c.ListConflicts())
    assert "fenced_completion" in {conflict["kind"] for conflict in conflicts}
    assert made.run_until(lambda: any(a.name == "unmail" for _, _, a in made.started))
    made.run_for(5_000)
    assert len([a for _, _, a in made.started if a.name == "unmail"]) == 1


def test_a_retry_in_another_region_meets_the_sink_under_the_same_key() -> None:
    def charging(assignment: e.Assignment) -> Outcome:
        after = 10**9 if len(made.started) == 1 else 10
        return Outcome(after_ms=after, effects={"charge": "done"})

    made = cluster(charging)
    task = made.submit("eu")
    assert made.run_until(lambda: bool(made.started))
    made.crash(made.started[0][1])
    other = next(region for region in REGIONS if region != made.started[0][1])
    assert made.run_until(lambda: made.state(other, task) == "succeeded")
    assert len({key for _, key, _ in made.sink}) == 1


def test_a_node_that_restarts_holds_no_lease_and_stops_what_ran_under_it() -> None:
    made = cluster(never)
    made.submit("eu")
    assert made.run_until(lambda: bool(made.started))
    first = made.started[0][1]
    made.crash(first)
    made.restart(first)
    assert made.run_until(lambda: (first, "lost lease") in [(r, why) for r, _, why in made.stopped])
    assert made.run_until(lambda: len(made.started) == 2)
    assert made.started[1][2].fence > made.started[0][2].fence


@pytest.mark.parametrize(
    "options, scope",
    [({}, "queue:default"), ({"key": "A17"}, "key:default/noop/A17"), ({"scope": "task"}, "task:")],
)
def test_a_task_waits_for_the_lease_of_its_scope(options: dict[str, Any], scope: str) -> None:
    made = cluster()
    made.isolate("eu")
    made.run_for(2 * LEASE_MS)
    task = made.submit("eu", **options)
    made.run_for(100)
    assert f"the lease of {scope}" in made.show("eu", task)["waiting_for"]


def test_takeover_tasks_of_the_same_queue_never_wait_for_a_lease() -> None:
    made = cluster()
    made.isolate("eu")
    made.run_for(2 * LEASE_MS)
    waiting = made.submit("eu")
    free = made.submit("eu", partition="takeover")
    assert made.run_until(lambda: made.state("eu", free) == "succeeded", limit_ms=1_000)
    assert made.state("eu", waiting) == "waiting"


def test_a_scope_that_does_not_fit_is_refused() -> None:
    made = cluster()
    with pytest.raises(AskError, match="needs a key"):
        made.submit("eu", scope="key")
    with pytest.raises(AskError, match="is for partition='quorum'"):
        made.submit("eu", partition="wait", scope="task")


def test_a_handler_asks_before_each_step_whether_its_lease_still_holds() -> None:
    made = cluster(never, lost_after_ms=60_000)
    made.obedient = False
    made.submit("eu")
    assert made.run_until(lambda: bool(made.started))
    _, region, assignment = made.started[0]
    ask = made.nodes[RegionId(region)].ask
    left_ms = ask(c.CheckFence(tuple(assignment.attempt)))["left_ms"]  # type: ignore[arg-type]
    assert LEASE_MS / 2 < left_ms < LEASE_MS
    made.isolate(region)
    made.run_for(2 * LEASE_MS)
    with pytest.raises(AskError, match="lease under which attempt"):
        ask(c.CheckFence(tuple(assignment.attempt)))  # type: ignore[arg-type]


def test_others_that_wait_get_the_lease_after_a_while_and_no_task_is_run_twice() -> None:
    made = cluster(max_hold_lease_ms=5_000)
    tasks = [made.submit(region) for _ in range(40) for region in REGIONS]
    for _ in range(30):
        made.run_for(500)
        tasks += [made.submit(region) for region in REGIONS]
    assert made.run_until(lambda: all(made.state("eu", task) == "succeeded" for task in tasks))
    assert len(made.started) == len(tasks)
    assert made.converge()


def test_a_client_that_waits_is_told_when_the_success_is_decided() -> None:
    made = cluster()
    task = made.submit("eu")
    made.run_for(60)
    record = made.nodes[RegionId("us")].ask(c.Await(task))
    assert (record["state"], record["decided"]) == ("succeeded", True)


def test_a_cancel_that_wins_counts_though_a_majority_had_the_success() -> None:
    made = cluster(declare={"cancel": "wins", "compensate": ""})
    made.run_for(500)
    made.isolate("ap")
    task = made.submit("eu")
    made.run_for(3_000)
    assert made.state("eu", task) == "succeeded"
    assert made.show("eu", task)["decided"] is False, "somebody cut off may have cancelled it"
    made.heal()
    assert made.run_until(lambda: made.show("eu", task)["settled"] is True)


def test_a_submission_cannot_choose_another_cancel_policy_than_its_quorum_task_declares() -> None:
    """Submitted twice under one id, with `wins` in the minority, a task could be cancelled after a majority had decided on
    its success: who decided did not know that a cancel may win (docs/decisions/0012)."""
    made = cluster(declare={"cancel": "loses"})
    with pytest.raises(AskError, match="declares cancel='loses'") as refused:
        made.submit("eu", cancel="wins")
    assert refused.value.code == "invalid"
    assert made.submit("eu", cancel="loses")
    assert made.submit("eu", cancel="wins", partition="wait"), "whose owner decides alone"
