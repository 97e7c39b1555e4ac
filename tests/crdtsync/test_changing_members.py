"""Regions come and go: what holds for those that remain, for the joiner, and for who was forgotten."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crdtsync import commands as c
from crdtsync import effects as e
from crdtsync.coordination.membership import MemberState
from crdtsync.identifiers import RegionId, TaskId, keyed_task_id
from crdtsync.protocol import features
from crdtsync.scheduling.placement import rendezvous_order
from tests.cluster import AskError, Cluster, Outcome

EU, US, AP, SA = map(RegionId, ("eu", "us", "ap", "sa"))


def forget(cluster: Cluster, at: str, *regions: str, stopped: bool = False, force: bool = False) -> dict[str, object]:
    return cluster.nodes[RegionId(at)].ask(c.ForgetRegion(regions, stopped, force))  # type: ignore[no-any-return]


def long_in_ap(assignment: e.Assignment) -> Outcome:
    return Outcome(after_ms=10**9 if assignment.region == "ap" else 50, value=assignment.region)


def gone(cluster: Cluster, region: str, *remaining: str) -> bool:
    """Whether all of them know that it has left for good."""
    return all(region in cluster.membership(each).forgotten for each in remaining)


# Forgetting --------------------------------------------------------------------------------------


def test_a_region_is_forgotten_by_a_majority_and_the_rest_settles_again() -> None:
    cluster = Cluster("eu", "us", "ap")
    cluster.crash("ap")
    task = cluster.submit("eu")
    cluster.run_for(3_000)
    assert not cluster.show("eu", task)["settled"]
    answer = forget(cluster, "eu", "ap")
    assert (answer["version"], answer["epoch"]) == (2, 0)
    cluster.run_for(3_000)
    assert gone(cluster, "ap", "eu", "us")
    assert cluster.membership("eu") == cluster.membership("us")
    assert cluster.membership("eu").voters == (EU, US)
    assert cluster.show("eu", task)["settled"]
    assert cluster.converge()
    assert not cluster.alarms()


def test_without_a_majority_nothing_is_proposed_and_the_error_says_what_is_missing() -> None:
    cluster = Cluster("eu", "us", "ap")
    cluster.crash("ap")
    cluster.crash("us")
    with pytest.raises(AskError, match=r"needs 2 of 3 regions, sees 1.*--force") as refused:
        forget(cluster, "eu", "ap")
    assert refused.value.code == "membership"
    assert cluster.membership("eu").version == 1


def test_a_region_that_is_linked_is_not_forgotten() -> None:
    cluster = Cluster("eu", "us", "ap")
    with pytest.raises(AskError, match="stop its node first"):
        forget(cluster, "eu", "ap")


def test_all_pull_up_to_what_one_of_them_had_applied_of_the_forgotten() -> None:
    cluster = Cluster("eu", "us", "ap")
    cluster.cut("ap", "us")
    cluster.cut("eu", "us")
    task = cluster.submit("ap")  # reaches eu only
    cluster.run_for(1_000)
    cluster.crash("ap")
    cluster.heal()
    cluster.run_for(500)
    forget(cluster, "us", "ap")
    cluster.run_for(3_000)
    assert gone(cluster, "ap", "eu", "us")
    assert cluster.state("us", task) == "succeeded"
    assert cluster.converge()


def test_what_nobody_had_is_no_part_of_the_history_even_if_it_comes_back() -> None:
    cluster = Cluster("eu", "us", "ap")
    cluster.isolate("ap")
    cluster.submit("ap")
    cluster.run_for(4_000)
    forget(cluster, "eu", "ap")
    cluster.run_for(3_000)
    cluster.heal()
    cluster.run_for(5_000)
    assert cluster.nodes[EU].replica is not None
    assert cluster.digests() != set()
    assert cluster.membership("eu") == cluster.membership("us")
    told = [notice for notice in cluster.nodes[AP].notices if notice.what == "region.forgotten"]
    assert len(told) == 2  # once by each
    assert "add the region anew under another name" in str(told[0].facts["advice"])
    with pytest.raises(AskError, match="has no part in the cluster") as refused:
        cluster.submit("ap")
    assert refused.value.code == "not_a_member"


def test_the_next_change_waits_for_one_maximal_lease() -> None:
    cluster = Cluster("eu", "us", "ap", "sa", "na", lease_ms=4_000)
    cluster.crash("ap")
    cluster.crash("sa")
    forget(cluster, "eu", "ap")
    cluster.run_for(500)
    with pytest.raises(AskError, match=r"may be decided in \d s"):
        forget(cluster, "eu", "sa")
    cluster.run_for(5_000)
    forget(cluster, "eu", "sa")
    cluster.run_for(3_000)
    assert gone(cluster, "sa", "eu", "us", "na")
    assert gone(cluster, "ap", "eu", "us", "na")


def test_two_proposals_of_one_version_have_one_outcome() -> None:
    cluster = Cluster("eu", "us", "ap", "sa", "na")
    cluster.crash("ap")
    cluster.crash("sa")
    tickets = []
    for at, region in (("eu", "ap"), ("us", "sa")):
        node = cluster.nodes[RegionId(at)]
        ticket = cluster.ticket()
        tickets.append((node, ticket))
        node.feed(lambda replica, n=node, t=ticket, r=region: replica.submit(c.ForgetRegion((r,)), n.now, t))  # type: ignore[misc]
    cluster.run_for(10_000)
    members = {str(cluster.membership(each)) for each in ("eu", "us", "na")}
    assert len(members) == 1
    assert cluster.membership("eu").version == 2
    answers = [node.answers[ticket][0] for node, ticket in tickets]
    assert sorted(answer.error is None for answer in answers) == [False, True]


def test_a_decision_whose_proposer_died_is_told_by_the_voters() -> None:
    cluster = Cluster("eu", "us", "ap", "na", "sa")
    cluster.crash("sa")
    node = cluster.nodes[EU]
    ticket = cluster.ticket()
    node.feed(lambda replica: replica.submit(c.ForgetRegion(("sa",)), node.now, ticket))
    replica = cluster.nodes[US].replica
    assert replica is not None
    assembly = replica._neighbours.assembly
    assert cluster.run_until(lambda: assembly._acceptor is not None and bool(assembly._acceptor.value), 2_000)
    cluster.run_for(1)
    cluster.crash("eu")
    cluster.run_for(30_000)
    assert cluster.membership("us").version == cluster.membership("ap").version == 2
    cluster.restart("eu")
    cluster.run_for(20_000)
    assert gone(cluster, "sa", "eu", "us", "ap", "na")


def test_a_forgotten_region_is_still_forgotten_after_a_restart() -> None:
    cluster = Cluster("eu", "us", "ap")
    cluster.crash("ap")
    forget(cluster, "eu", "ap")
    cluster.run_for(3_000)
    before = cluster.membership("eu")
    for region in ("eu", "us"):
        cluster.restart(region)
    cluster.run_for(3_000)
    assert cluster.membership("eu") == cluster.membership("us") == before
    task = cluster.submit("us")
    cluster.run_for(3_000)
    assert cluster.show("eu", task)["settled"]


def test_a_voter_that_dies_before_it_answers_is_forgotten_too_and_the_rest_agrees() -> None:
    cluster = Cluster("eu", "us", "ap", "sa", "na", lease_ms=1_000)
    cluster.crash("ap")
    forget(cluster, "eu", "ap")
    cluster.crash("sa")
    cluster.run_for(4_000)
    if not gone(cluster, "ap", "eu", "us", "na"):
        assert cluster.membership("eu").unanswered == {SA}
    forget(cluster, "eu", "sa")
    cluster.run_for(5_000)
    assert gone(cluster, "ap", "eu", "us", "na")
    assert gone(cluster, "sa", "eu", "us", "na")
    assert cluster.converge()


# What it leaves behind ---------------------------------------------------------------------------


def forget_for_good(cluster: Cluster, region: str) -> list[str]:
    """Have a crashed region forgotten, until it has left."""
    remaining = [each for each, node in cluster.nodes.items() if node.replica is not None]
    forget(cluster, remaining[0], region)
    assert cluster.run_until(lambda: gone(cluster, region, *remaining), 20_000)
    cluster.run_for(4_000)
    return [str(each) for each in remaining]


@pytest.mark.parametrize("policy", ["wait", "takeover"])
def test_what_a_forgotten_region_ran_is_lost_and_goes_to_the_next_member(policy: str) -> None:
    cluster = Cluster("eu", "us", "ap", tasks={"long": long_in_ap}, lost_after_ms=60_000)
    task = cluster.submit("eu", "long", region="ap", partition=policy)
    cluster.run_for(1_000)
    assert cluster.state("eu", task) == "running"
    cluster.crash("ap")
    remaining = forget_for_good(cluster, "ap")
    record = cluster.show("us", task)
    assert (record["state"], record["settled"]) == ("succeeded", True)
    heir = rendezvous_order(TaskId(task), (EU, US))[0]
    assert [region for _, region, a in cluster.started if a.task == task] == ["ap", heir]
    text = cluster.explain("eu", task)
    assert f"owner forgotten: ap left the cluster in version 2, and {heir} is next" in text
    assert len({cluster.explain(each, task) for each in remaining}) == 1
    assert cluster.converge()


def test_a_waiting_task_of_a_forgotten_region_is_taken_on_by_one_region() -> None:
    cluster = Cluster("eu", "us", "ap", lost_after_ms=60_000)
    tasks = [cluster.submit("eu", region="ap", partition="wait", delay_ms=5_000) for _ in range(12)]
    cluster.run_for(1_000)
    cluster.crash("ap")
    forget_for_good(cluster, "ap")
    cluster.run_for(8_000)
    assert {cluster.state("us", task) for task in tasks} == {"succeeded"}
    ran = [a.task for _, _, a in cluster.started]
    assert sorted(ran) == sorted(tasks)
    assert {region for _, region, _ in cluster.started} == {"eu", "us"}


def test_an_offer_to_a_region_that_is_forgotten_is_taken_back() -> None:
    cluster = Cluster("eu", "us", "ap", lost_after_ms=60_000, workers=False)
    cluster.worker("ap")
    eu = cluster.worker("eu")
    cluster.run_for(500)
    eu.kill()
    cluster.run_for(100)
    task = cluster.submit("eu", partition="wait")
    cluster.nodes[EU].ask(c.Drain())
    cluster.run_for(25)  # the offer is made; ap has not accepted
    cluster.crash("ap")
    cluster.nodes[EU].ask(c.Drain(off=True))
    cluster.worker("eu")
    forget_for_good(cluster, "ap")
    cluster.run_for(10_000)
    assert cluster.state("eu", task) == "succeeded"


def test_what_a_forgotten_region_had_to_undo_is_undone_by_the_next() -> None:
    stuck: list[str] = []  # the first region that begins to refund never ends it

    def refund(assignment: e.Assignment) -> Outcome:
        if not stuck:
            stuck.append(assignment.region)
        return Outcome(after_ms=10**9) if assignment.region in stuck else Outcome(value="refunded")

    tasks = {
        "charge": lambda a: Outcome(after_ms=6_000, value=a.region, effects={"charge": a.region}),
        "refund": refund,
    }
    cluster = Cluster("eu", "us", "ap", tasks=tasks, declare={"charge": {"compensate": "refund"}}, lost_after_ms=1_500)
    task = cluster.submit("us", "charge", region="eu", delay_ms=600)
    cluster.run_for(500)
    cluster.isolate("eu")
    cluster.run_for(9_000)  # both sides run it, eu's claim is the earlier
    cluster.heal()
    assert cluster.run_until(lambda: bool(stuck), 20_000)
    loser = stuck[0]
    assert loser != "eu"
    cluster.run_for(500)
    cluster.crash(loser)
    remaining = forget_for_good(cluster, loser)
    cluster.run_for(5_000)
    ran = [(region, a.task) for _, region, a in cluster.started if a.name == "refund"]
    assert len(ran) == 2
    assert ran[0][1] == ran[1][1]
    assert ran[1][0] in remaining
    assert cluster.state("eu", ran[0][1]) == "succeeded"
    assert cluster.state("eu", task) == "succeeded"
    assert cluster.converge()


def test_an_undo_that_a_forgotten_region_never_came_to_submit_is_found_among_the_ended_tasks() -> None:
    """It left memory long ago: nobody but the forgotten region had anything to do for it."""
    tasks = {
        "charge": lambda a: Outcome(after_ms=6_000, value=a.region, effects={"charge": a.region}),
        "refund": lambda a: Outcome(value="refunded"),
    }
    cluster = Cluster("eu", "us", "ap", tasks=tasks, declare={"charge": {"compensate": "refund"}}, lost_after_ms=1_500)
    task = TaskId(cluster.submit("us", "charge", region="eu", delay_ms=600))
    cluster.run_for(500)
    cluster.isolate("eu")
    cluster.run_for(9_000)
    loser = next(region for _, region, a in cluster.started if region != "eu")
    replica = cluster.nodes[loser].replica
    assert replica is not None
    replica._duties._submit_undo = lambda *_: None  # type: ignore[method-assign]  # it never comes to it
    cluster.heal()
    cluster.run_for(8_000)
    other = next(r for r in (US, AP) if r != loser)
    holder = cluster.nodes[other].replica
    assert holder is not None
    assert holder._here.table.get(task) is None
    assert not [a for _, _, a in cluster.started if a.name == "refund"]
    cluster.crash(loser)
    forget_for_good(cluster, loser)
    cluster.run_for(5_000)
    assert len([a for _, _, a in cluster.started if a.name == "refund"]) == 1
    assert cluster.converge()


def test_the_log_can_be_dropped_again_once_the_absent_region_has_left() -> None:
    cluster = Cluster("eu", "us", "ap", retention_ms=1_000)
    cluster.crash("ap")
    for _ in range(5):
        cluster.submit("eu")
        cluster.run_for(500)
    cluster.run_for(10_000)
    replica = cluster.nodes[EU].replica
    assert replica is not None
    assert not replica._rows.floor_heads.covers(replica._here.log.applied)
    before = replica._rows.floor_heads.count()
    forget_for_good(cluster, "ap")
    cluster.run_for(10_000)
    assert replica._rows.floor_heads.count() > before + 5


# A majority that is gone ---------------------------------------------------------------------------


def test_when_a_majority_is_gone_an_operator_begins_a_new_epoch() -> None:
    cluster = Cluster("eu", "us", "ap")
    task = cluster.submit("us")
    cluster.run_for(1_000)
    cluster.isolate("eu")
    cluster.run_for(4_000)
    answer = forget(cluster, "eu", "us", "ap", force=True)
    assert (answer["version"], answer["epoch"]) == (2, 1)
    cluster.run_for(2_000)
    assert cluster.membership("eu").voters == (EU,)
    assert gone(cluster, "us", "eu")
    assert cluster.state("eu", task) == "succeeded"
    cluster.heal()
    cluster.run_for(4_000)
    assert {notice.what for notice in cluster.nodes[US].notices if notice.level == "alarm"} == {"region.forgotten"}
    fresh = cluster.submit("eu")
    cluster.run_for(2_000)
    assert cluster.show("eu", fresh)["settled"]


def test_force_is_refused_while_a_majority_remains() -> None:
    cluster = Cluster("eu", "us", "ap")
    cluster.crash("ap")
    with pytest.raises(AskError, match="leave --force out"):
        forget(cluster, "eu", "ap", force=True)


# Keys ----------------------------------------------------------------------------------------------


def test_a_keyed_wait_task_has_one_owner_whatever_members_the_two_sides_of_a_cut_know() -> None:
    """Rendezvous over different members named two owners, and both ran it."""
    old, new = (AP, EU, US), (AP, EU, SA, US)
    key = next(
        key
        for key in map(str, range(1_000))
        if rendezvous_order(id_ := keyed_task_id("default", "noop", key, 0), list(old))[0] == US
        and rendezvous_order(id_, list(new))[0] == SA
    )
    cluster = Cluster("eu", "us", "ap", lease_ms=400)
    cluster.join("sa")
    cluster.nodes[EU].ask(c.AddRegion("sa", ""))
    assert cluster.run_until(lambda: cluster.membership("eu").is_member("sa"), 60_000)
    cluster.isolate("us")
    assert not cluster.membership("us").is_member("sa")
    cluster.worker("sa")
    cluster.run_for(1_000)
    task = cluster.submit("us", key=key, partition="wait")
    with pytest.raises(AskError, match=r"us has not acknowledged that yet.*another owner") as refused:
        cluster.submit("eu", key=key, partition="wait")
    assert refused.value.code == "overloaded"
    assert cluster.submit("eu", partition="wait")  # without a key it is eu's own
    cluster.run_for(3_000)
    cluster.heal()
    cluster.run_for(5_000)
    assert cluster.submit("eu", key=key, partition="wait") == task
    cluster.run_for(3_000)
    assert [region for _, region, a in cluster.started if a.task == task] == ["us"]
    other = cluster.submit("us", key=f"{key}-next", partition="wait")
    cluster.run_for(3_000)
    assert cluster.state("sa", other) == "succeeded"
    assert cluster.converge()


def test_keyed_wait_tasks_are_taken_while_a_joiner_only_catches_up() -> None:
    cluster = Cluster("eu", "us", "ap", lease_ms=400)
    cluster.nodes[EU].ask(c.AddRegion("sa", ""))  # whose node is not there yet
    cluster.run_for(3_000)
    assert cluster.membership("us").states[SA] is MemberState.JOINING
    assert cluster.submit("us", key="k", partition="wait")


def test_keyed_wait_tasks_are_taken_again_once_a_region_has_been_forgotten() -> None:
    cluster = Cluster("eu", "us", "ap", lease_ms=400)
    cluster.crash("ap")
    cluster.run_for(1_000)
    forget(cluster, "eu", "ap")
    cluster.run_for(4_000)
    task = cluster.submit("us", key="k", partition="wait")
    cluster.isolate("us")
    cluster.restart("us")
    cluster.run_for(1_000)
    assert cluster.submit("us", key="another", partition="wait"), "cut off, and started anew"
    cluster.heal()
    cluster.run_for(4_000)
    assert cluster.state("eu", task) == "succeeded"


# Older versions ----------------------------------------------------------------------------------


def make_older(cluster: Cluster, region: str) -> None:
    """From here on the node says of itself, in every Hello, that it does not read changes of the membership."""
    replica = cluster.nodes[RegionId(region)].replica
    assert replica is not None
    wire = replica._neighbours.gossip._wire
    wire.identity = replace(wire.identity, features=features.OURS & ~features.MEMBERSHIP)


def test_no_change_is_proposed_while_a_member_would_not_read_it() -> None:
    cluster = Cluster("eu", "us", "na", "ap", "sa", lease_ms=400)
    cluster.isolate("sa")
    make_older(cluster, "sa")
    cluster.heal()
    cluster.crash("ap")
    cluster.run_for(3_000)
    with pytest.raises(AskError, match=r"sa runs a version.*update it first") as refused:
        forget(cluster, "eu", "ap")
    assert refused.value.code == "membership"
    with pytest.raises(AskError, match="sa runs a version"):
        cluster.nodes[US].ask(c.AddRegion("za", ""))
    assert cluster.membership("eu").version == 1
    cluster.isolate("sa")
    cluster.run_for(3_000)
    forget(cluster, "eu", "sa")  # that one itself may be forgotten
    cluster.run_for(1_000)
    assert all(cluster.membership(region).has_lost("sa") for region in ("eu", "us", "na"))


def test_a_member_that_cannot_follow_a_change_is_told_to_be_updated_and_then_follows() -> None:
    cluster = Cluster("eu", "us", "na", "ap", "sa", lease_ms=400)
    cluster.isolate("sa")
    make_older(cluster, "sa")
    cluster.crash("ap")
    cluster.run_for(500)
    cluster.restart("eu")  # so that it has not met sa since
    cluster.run_for(3_000)
    assert forget(cluster, "eu", "ap")["version"] == 2
    cluster.run_for(1_000)
    cluster.heal()
    cluster.run_for(3_000)
    told = [notice for notice in cluster.nodes[SA].notices if notice.what == "gossip.refused_by"]
    assert {notice.facts["reason"] for notice in told} == {"version"}
    assert "update it" in str(told[0].facts["detail"])
    assert cluster.membership("sa").version == 1, "it was sent nothing that it does not read"
    cluster.restart("sa")  # updated
    cluster.run_for(8_000)
    assert cluster.membership("sa") == cluster.membership("eu")
    assert gone(cluster, "ap", "eu", "us", "na", "sa")
    assert cluster.converge()


def test_a_linked_member_that_cannot_follow_is_let_go_when_a_change_comes() -> None:
    cluster = Cluster("eu", "us", "na", "ap", "sa", lease_ms=400)
    cluster.isolate("sa")
    make_older(cluster, "sa")
    cluster.heal()
    for region in ("eu", "na"):
        cluster.cut("sa", region)  # us alone is linked to it
    cluster.crash("ap")
    cluster.run_for(500)
    cluster.restart("eu")
    cluster.run_for(3_000)
    assert SA in linked(cluster, "us")
    assert forget(cluster, "eu", "ap")["version"] == 2
    cluster.run_for(1_000)
    assert SA not in linked(cluster, "us")
    assert cluster.membership("sa").version == 1


def linked(cluster: Cluster, region: str) -> tuple[RegionId, ...]:
    replica = cluster.nodes[RegionId(region)].replica
    assert replica is not None
    return replica._neighbours.gossip.open_peers()


# Joining -----------------------------------------------------------------------------------------


def test_a_joiner_catches_up_and_then_takes_part() -> None:
    cluster = Cluster("eu", "us", "ap")
    old = [cluster.submit("eu") for _ in range(5)]
    cluster.run_for(2_000)
    cluster.join("sa", "eu")
    cluster.run_for(1_000)
    assert cluster.membership("sa").version == 0
    with pytest.raises(AskError, match="has not joined the cluster yet"):
        cluster.submit("sa")
    answer = cluster.nodes[EU].ask(c.AddRegion("sa", "ws://127.0.0.1:1"))
    assert answer["state"] == "joining"
    assert cluster.run_until(lambda: cluster.membership("sa").is_member("sa"), 60_000)
    cluster.run_for(5_000)
    assert {str(cluster.membership(each)) for each in cluster.nodes} == {str(cluster.membership("eu"))}
    assert cluster.membership("eu").voters == (AP, EU, SA, US)
    cluster.worker("sa")
    task = cluster.submit("sa")
    cluster.run_for(4_000)
    assert [region for _, region, a in cluster.started if a.task == task] == ["sa"]
    assert all(cluster.show(each, task)["settled"] for each in cluster.nodes)
    assert [cluster.state("sa", each) for each in old] == ["succeeded"] * 5
    assert cluster.converge()
    assert not cluster.alarms()


def test_a_joiner_waits_for_every_members_acknowledgement() -> None:
    cluster = Cluster("eu", "us", "ap", lease_ms=500)
    cluster.join("sa", "eu", "us")
    cluster.cut("ap", "eu")
    cluster.cut("ap", "us")
    cluster.nodes[EU].ask(c.AddRegion("sa", ""))
    cluster.isolate("ap")
    cluster.run_for(10_000)
    assert cluster.membership("sa").states[SA] is MemberState.JOINING
    replica = cluster.nodes[SA].replica
    assert replica is not None
    assert "ap to acknowledge" in replica._neighbours.assembly.waits_for()
    cluster.heal()
    assert cluster.run_until(lambda: cluster.membership("sa").is_member("sa"), 30_000)


def test_a_node_that_was_not_told_that_it_joins_is_refused_with_the_next_step() -> None:
    cluster = Cluster("eu", "us")
    node = cluster.join("sa")
    node.crash()
    node.settings["joining"] = False
    node.store = type(node.store)()
    node.start()
    cluster.nodes[EU].ask(c.AddRegion("sa", ""))
    cluster.run_for(4_000)
    alarms = [notice for notice in node.notices if notice.what == "region.not_joining"]
    assert alarms
    assert "--join" in str(alarms[0].facts["advice"])


def test_a_name_is_used_once() -> None:
    cluster = Cluster("eu", "us", "ap", lease_ms=100)
    cluster.crash("ap")
    forget(cluster, "eu", "ap")
    cluster.run_for(3_000)
    with pytest.raises(AskError, match="a name is used once"):
        cluster.nodes[EU].ask(c.AddRegion("ap", ""))


def test_a_joiner_that_never_comes_can_be_forgotten() -> None:
    cluster = Cluster("eu", "us", "ap", lease_ms=100)
    cluster.nodes[EU].ask(c.AddRegion("sa", ""))
    cluster.run_for(1_000)
    with pytest.raises(AskError, match="one change at a time"):
        cluster.nodes[US].ask(c.AddRegion("za", ""))
    forget(cluster, "us", "sa")
    cluster.run_for(3_000)
    assert gone(cluster, "sa", "eu", "us", "ap")
    task = cluster.submit("eu")
    cluster.run_for(3_000)
    assert cluster.show("eu", task)["settled"]


def test_whoever_needs_a_snapshot_learns_from_it_who_belongs() -> None:
    """The records of it may have left the log for good (swarm seed 50: a disk that had lied)."""
    cluster = Cluster("eu", "us", "ap", "sa", retention_ms=500)
    cluster.crash("sa")
    forget_for_good(cluster, "sa")
    for _ in range(8):
        cluster.submit("eu")
        cluster.run_for(1_000)
    replica = cluster.nodes[EU].replica
    assert replica is not None
    change = replica._here.roster.last_change
    assert change is not None
    assert replica._rows.floor_heads.has(change.writer, change.number)
    node = cluster.nodes[AP]
    node.crash()
    node.store = type(node.store)()
    node.start()
    cluster.run_for(6_000)
    assert cluster.membership("ap") == cluster.membership("eu")
    assert gone(cluster, "sa", "eu", "us", "ap")
    cluster.restart("ap")
    cluster.run_for(3_000)
    assert cluster.membership("ap") == cluster.membership("eu")
    assert cluster.converge()


def test_a_joiner_that_still_reads_its_disk_does_not_ask_to_be_called_again_at_once() -> None:
    """It did, for as long as that took, and could do nothing when it was called (swarm seed 12)."""
    cluster = Cluster("eu", "us", "ap", lease_ms=500)
    node = cluster.join("sa", "eu", "us")
    cluster.isolate("ap")  # whose word a joiner has to wait for
    cluster.nodes[EU].ask(c.AddRegion("sa", ""))
    cluster.run_for(2_000)
    assert cluster.membership("sa").states[SA] is MemberState.JOINING
    cluster.restart("sa")
    replica = node.replica
    assert replica is not None
    replica._folded = False  # a row that it needs is being loaded
    replica._neighbours.assembly._admit_ms = 0
    due_ms = replica.next_deadline_ms()
    assert due_ms is None or due_ms > node.now.mono_ms
