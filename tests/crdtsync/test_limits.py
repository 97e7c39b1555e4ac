"""Limits in a cluster: what runs at once and how often, region by region and everywhere, whatever the network does."""

from __future__ import annotations

from typing import Any

import pytest

from crdtsync import commands as c
from crdtsync.identifiers import RegionId
from tests.cluster import AskError, Cluster, Outcome

WORK_MS = 400


def work(_assignment: Any) -> Outcome:
    return Outcome(after_ms=WORK_MS)


def limited(*regions: str, limit: c.LimitDeclaration | None = None, after_ms: int = WORK_MS, **options: Any) -> Cluster:
    cluster = Cluster(
        *regions,
        tasks={"work": lambda _: Outcome(after_ms=after_ms)},
        declare={"work": {"queue": "billing"}},
        **options,
    )
    if limit is not None:
        cluster.nodes[RegionId(regions[0])].ask(c.SetLimit(limit))
        cluster.run_for(1_000)
    return cluster


def globally(amount: int, **more: Any) -> c.LimitDeclaration:
    return c.LimitDeclaration("queue:billing", concurrency=amount, **more)


class Watch:
    """How many attempts run at each moment, by the workers' own doings."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.most = 0
        self.most_in: dict[str, int] = {}
        self.area = 0.0  # running x time

    def running(self, region: str) -> int:
        return sum(len(worker.running) for worker in self.cluster.nodes[RegionId(region)].workers.values())

    def run_for(self, duration_ms: int, step_ms: int = 10) -> None:
        for _ in range(duration_ms // step_ms):
            self.cluster.run_for(step_ms)
            now = {region: self.running(region) for region in self.cluster.nodes}
            self.most = max(self.most, sum(now.values()))
            for region, count in now.items():
                self.most_in[region] = max(count, self.most_in.get(region, 0))
            self.area += sum(now.values()) * step_ms


def flood(cluster: Cluster, region: str, count: int) -> list[bytes]:
    return [cluster.submit(region, "work", n) for n in range(count)]


def show(cluster: Cluster, region: str) -> dict[str, Any]:
    return cluster.nodes[RegionId(region)].ask(c.ListLimits("queue:billing"))[0]  # type: ignore[no-any-return]


def rights(cluster: Cluster, region: str) -> dict[str, int]:
    return {entry["region"]: entry["rights"] for entry in show(cluster, region)["regions"]}


# One region ----------------------------------------------------------------------------------------


def test_a_limit_of_the_region_lets_so_many_run_and_the_others_say_why_they_wait() -> None:
    cluster = limited("eu", limit=globally(3, scope="region"))
    watch = Watch(cluster)
    tasks = flood(cluster, "eu", 9)
    watch.run_for(100)
    waiting = cluster.show("eu", tasks[-1])
    assert waiting["waiting_for"] == "limit queue:billing: 3 of 3 running here"
    watch.run_for(3_000)
    assert watch.most == 3
    assert {cluster.state("eu", task) for task in tasks} == {"succeeded"}


def test_a_slot_returns_when_its_worker_is_lost() -> None:
    cluster = limited("eu", limit=globally(2, scope="region"), after_ms=10**9, workers=False)
    first = cluster.worker("eu")
    flood(cluster, "eu", 4)
    cluster.run_for(200)
    assert len(first.running) == 2
    first.kill()
    second = cluster.worker("eu")
    cluster.run_for(100)
    assert len(second.running) == 0, "until the attempts are lost their slots are bound"
    cluster.run_for(8_000)
    assert len(second.running) == 2


def test_another_lane_goes_on_while_one_is_limited() -> None:
    cluster = Cluster(
        "eu",
        tasks={"slow": lambda _: Outcome(after_ms=10**9), "quick": work},
        declare={"slow": {"queue": "billing"}},
    )
    cluster.nodes[RegionId("eu")].ask(c.SetLimit(globally(1, scope="region")))
    for n in range(50):
        cluster.submit("eu", "slow", n)
    tasks = [cluster.submit("eu", "quick", n) for n in range(8)]
    cluster.run_for(2_000)
    assert {cluster.state("eu", task) for task in tasks} == {"succeeded"}


def test_tasks_of_one_limit_take_turns_in_their_lanes() -> None:
    names = ("a", "b", "c")
    cluster = Cluster("eu", tasks=dict.fromkeys(names, work), declare={name: {"queue": "billing"} for name in names})
    cluster.nodes[RegionId("eu")].ask(c.SetLimit(globally(1, scope="region")))
    for name in names:
        for n in range(10):
            cluster.submit("eu", name, n)
    cluster.run_for(WORK_MS * 10)
    started = [assignment.name for _, _, assignment in cluster.started]
    started = started[started.index("c") :]  # all have work from here on
    assert all(abs(started.count(name) - len(started) / 3) <= 1 for name in names), started


def test_a_task_under_several_limits_needs_a_slot_of_each() -> None:
    cluster = Cluster("eu", tasks={"x": work, "y": work}, declare={name: {"queue": "billing"} for name in "xy"})
    node = cluster.nodes[RegionId("eu")]
    node.ask(c.SetLimit(globally(3, scope="region")))
    node.ask(c.SetLimit(c.LimitDeclaration("task:x", concurrency=1, scope="region")))
    for n in range(6):
        cluster.submit("eu", "x", n)
        cluster.submit("eu", "y", n)
    most = {"x": 0, "y": 0, "both": 0}
    for _ in range(400):
        cluster.run_for(10)
        running = [a.name for worker in node.workers.values() for a in worker.running.values()]
        for name in "xy":
            most[name] = max(most[name], running.count(name))
        most["both"] = max(most["both"], len(running))
    assert most == {"x": 1, "y": 2, "both": 3}
    assert len(cluster.started) == 12


def test_a_limit_on_a_key_holds_for_that_key_alone() -> None:
    cluster = Cluster("eu", tasks={"x": work, "y": work})
    node = cluster.nodes[RegionId("eu")]
    node.ask(c.SetLimit(c.LimitDeclaration("key:acme", concurrency=1, scope="region")))
    for name in "xy":
        cluster.submit("eu", name, key="acme")
        cluster.submit("eu", name, key="other")
    cluster.run_for(50)
    assert len(cluster.started) == 3
    cluster.run_for(2 * WORK_MS)
    assert len(cluster.started) == 4


def test_a_limit_on_a_key_that_comes_while_its_tasks_wait_holds_for_them() -> None:
    cluster = Cluster("eu", tasks=dict.fromkeys("xyz", work))
    for worker in list(cluster.nodes[RegionId("eu")].workers.values()):
        worker.kill()
    for name in "xyz":
        cluster.submit("eu", name, key="acme")
    cluster.nodes[RegionId("eu")].ask(c.SetLimit(c.LimitDeclaration("key:acme", concurrency=1, scope="region")))
    cluster.worker("eu")
    watch = Watch(cluster)
    watch.run_for(4 * WORK_MS)
    assert watch.most == 1
    assert len(cluster.started) == 3


def test_no_span_of_a_period_has_more_starts_than_the_rate() -> None:
    limit = c.LimitDeclaration("queue:billing", rate=5, per_ms=1_000, scope="region")
    cluster = limited("eu", limit=limit, after_ms=5)
    flood(cluster, "eu", 30)
    cluster.run_for(6_500)
    times = [at_ms for at_ms, _, _ in cluster.started]
    assert len(times) == 30
    assert all(later - earlier >= 1_000 for earlier, later in zip(times, times[5:], strict=False)), times


def test_a_restart_forgets_no_start_of_a_rate() -> None:
    limit = c.LimitDeclaration("queue:billing", rate=5, per_ms=60_000, scope="region")
    cluster = limited("eu", limit=limit, after_ms=5)
    flood(cluster, "eu", 12)
    cluster.run_for(2_000)
    assert len(cluster.started) == 5
    cluster.restart("eu")
    cluster.run_for(20_000)
    assert len(cluster.started) == 5
    cluster.run_for(45_000)
    assert len(cluster.started) == 10


def test_a_limit_of_none_stops_all_and_one_that_is_removed_stops_nothing() -> None:
    cluster = limited("eu", limit=globally(0, scope="region"))
    tasks = flood(cluster, "eu", 3)
    cluster.run_for(1_000)
    assert cluster.started == []
    assert cluster.nodes[RegionId("eu")].ask(c.RemoveLimit("queue:billing")) == {
        "target": "queue:billing",
        "removed": 1,
    }
    cluster.run_for(1_000)
    assert {cluster.state("eu", task) for task in tasks} == {"succeeded"}
    with pytest.raises(AskError, match="no limit"):
        cluster.nodes[RegionId("eu")].ask(c.RemoveLimit("queue:billing"))


@pytest.mark.parametrize(
    "limit",
    [
        c.LimitDeclaration("billing", concurrency=1),
        c.LimitDeclaration("queue:", concurrency=1),
        c.LimitDeclaration("queue:billing"),
        c.LimitDeclaration("queue:billing", concurrency=-1),
        c.LimitDeclaration("queue:billing", rate=1, per_ms=0),
        c.LimitDeclaration("queue:billing", concurrency=1, scope="planet"),
    ],
)
def test_what_makes_no_sense_is_refused(limit: c.LimitDeclaration) -> None:
    cluster = Cluster("eu")
    with pytest.raises(AskError) as caught:
        cluster.nodes[RegionId("eu")].ask(c.SetLimit(limit))
    assert caught.value.code == "invalid"


# Several regions -----------------------------------------------------------------------------------


def test_a_global_limit_is_never_exceeded_and_used_where_the_work_is() -> None:
    cluster = limited("eu", "us", "ap", limit=globally(10))
    watch = Watch(cluster)
    for region in cluster.nodes:
        flood(cluster, region, 150)
    watch.run_for(5_000)
    assert watch.most <= 10
    watch.area = 0
    watch.run_for(8_000)
    assert watch.most <= 10
    assert watch.area / 8_000 >= 8, watch.area / 8_000
    assert all(count >= 2 for count in watch.most_in.values()), watch.most_in


def test_one_region_with_all_the_work_gets_all_the_rights() -> None:
    cluster = limited("eu", "us", "ap", limit=globally(10))
    watch = Watch(cluster)
    flood(cluster, "ap", 400)
    watch.run_for(3_000)
    watch.area = 0
    watch.run_for(8_000)
    assert watch.most <= 10
    assert watch.area / 8_000 >= 8, watch.area / 8_000


def test_a_region_that_is_cut_off_uses_the_rights_that_it_holds_and_no_more() -> None:
    cluster = limited("eu", "us", "ap", limit=globally(9))
    watch = Watch(cluster)
    for region in cluster.nodes:
        flood(cluster, region, 300)
    watch.run_for(4_000)
    held = rights(cluster, "ap")["ap"]
    assert held >= 2
    cluster.isolate("ap")
    watch.most, watch.most_in = 0, {}
    watch.run_for(6_000)
    assert watch.most <= 9
    assert watch.most_in["ap"] == held
    task = cluster.submit("ap", "work", 1_000)
    waiting = cluster.show("ap", task)["waiting_for"]
    assert waiting == (
        f"limit queue:billing: {held} of {held} running here; global 9, this region holds {held} rights; "
        "no region is linked that could give more"
    )
    cluster.heal()
    watch.run_for(4_000)
    assert watch.most <= 9
    assert len({str(rights(cluster, region)) for region in cluster.nodes}) == 1


def test_a_global_rate_holds_over_all_regions_while_rights_move() -> None:
    limit = c.LimitDeclaration("queue:billing", rate=10, per_ms=1_000)
    cluster = limited("eu", "us", "ap", limit=limit, after_ms=5)
    for region in ("eu", "us", "ap"):
        flood(cluster, region, 40)
    cluster.run_for(20_000)
    times = [at_ms for at_ms, _, _ in cluster.started]
    assert all(later - earlier >= 1_000 for earlier, later in zip(times, times[10:], strict=False)), times
    assert len(times) == 120, "the rate is used"


def test_two_sides_of_a_cut_set_a_limit_and_the_larger_is_never_exceeded() -> None:
    cluster = limited("eu", "us", "ap", limit=globally(4))
    cluster.run_for(12_000)
    cluster.isolate("ap")
    cluster.nodes[RegionId("eu")].ask(c.SetLimit(globally(8)))
    cluster.run_for(100)
    cluster.nodes[RegionId("ap")].ask(c.SetLimit(globally(6)))
    watch = Watch(cluster)
    for region in cluster.nodes:
        flood(cluster, region, 300)
    watch.run_for(6_000)
    assert watch.most <= 8
    cluster.heal()
    watch.run_for(12_000)
    assert watch.most <= 8
    watch.most = 0
    watch.run_for(4_000)
    assert watch.most == 6, "the later one counts"


def test_a_lowered_limit_burns_rights_as_they_come_free_and_a_raised_one_is_filled() -> None:
    cluster = limited("eu", "us", "ap", limit=globally(12))
    watch = Watch(cluster)
    for region in cluster.nodes:
        flood(cluster, region, 400)
    watch.run_for(4_000)
    cluster.nodes[RegionId("us")].ask(c.SetLimit(globally(5)))
    watch.run_for(6_000)
    watch.most = 0
    watch.area = 0
    watch.run_for(4_000)
    assert watch.most <= 5
    assert watch.area / 4_000 >= 4
    cluster.nodes[RegionId("ap")].ask(c.SetLimit(globally(12)))
    watch.run_for(4_000)
    assert watch.most <= 12
    watch.area = 0
    watch.run_for(4_000)
    assert watch.area / 4_000 >= 10


def test_a_limit_of_one_passes_from_region_to_region_while_all_want_it() -> None:
    cluster = limited("eu", "us", "ap", limit=globally(1))
    watch = Watch(cluster)
    for region in cluster.nodes:
        flood(cluster, region, 60)
    watch.run_for(20_000)
    assert watch.most == 1
    assert set(watch.most_in.values()) == {1}, "nobody is passed over"


def test_idle_rights_rest_in_even_shares() -> None:
    cluster = limited("eu", "us", "ap", limit=globally(10))
    cluster.run_for(15_000)
    assert sorted(rights(cluster, "eu").values()) == [3, 3, 4]
    sent = dict(cluster.sent)
    before = rights(cluster, "us")
    cluster.run_for(30_000)
    assert rights(cluster, "us") == before, "and stay there"
    assert all(cluster.sent[pair] - sent[pair] < 30_000 for pair in sent)


def test_after_a_restart_rights_are_not_used_before_every_member_has_answered() -> None:
    cluster = limited("eu", "us", "ap", limit=globally(9))
    cluster.run_for(15_000)
    cluster.isolate("ap")
    cluster.restart("ap")
    cluster.run_for(5_000)
    task = cluster.submit("ap", "work", 1)
    cluster.run_for(3_000)
    assert cluster.state("ap", task) == "waiting"
    assert "once every member has answered" in cluster.show("ap", task)["waiting_for"]
    cluster.heal()
    cluster.run_for(5_000)
    assert cluster.state("ap", task) == "succeeded"


def test_an_operator_who_vouches_for_the_disk_has_them_used_at_once() -> None:
    cluster = limited("eu", "us", "ap", limit=globally(9), rights_at_once=True)
    cluster.run_for(15_000)
    cluster.isolate("ap")
    cluster.restart("ap")
    cluster.run_for(1_000)
    task = cluster.submit("ap", "work", 1)
    cluster.run_for(2_000)
    assert cluster.state("ap", task) == "succeeded"


def test_rights_given_to_a_restarted_region_are_used_though_a_member_has_not_answered() -> None:
    cluster = limited("eu", "us", "ap", limit=globally(9))
    cluster.run_for(15_000)
    cluster.crash("us")
    cluster.restart("ap")
    task = cluster.submit("ap", "work", 1)
    cluster.run_for(6_000)
    assert cluster.state("ap", task) == "succeeded", "eu has given it some since"


def test_a_declared_limit_is_in_force_before_all_members_were_met() -> None:
    cluster = Cluster(
        "eu", "us", tasks={"work": work}, workers=False, limits=(c.LimitDeclaration("task:work", concurrency=2),)
    )
    for pair in (("eu", "us"),):
        cluster.cut(*pair)
    cluster.restart("eu")
    cluster.restart("us")
    cluster.worker("eu")
    cluster.run_for(500)
    tasks = flood(cluster, "eu", 6)
    cluster.run_for(2_000)
    assert cluster.started == []
    cluster.heal()
    watch = Watch(cluster)
    watch.run_for(10_000)
    assert watch.most == 2
    assert {cluster.state("eu", task) for task in tasks} == {"succeeded"}


def test_an_operators_setting_stays_when_a_worker_says_again_what_its_app_declares() -> None:
    cluster = limited("eu", "us", limits=(globally(2),))
    cluster.run_for(1_000)
    assert show(cluster, "eu")["amount"] == 2
    cluster.nodes[RegionId("us")].ask(c.SetLimit(globally(5)))
    cluster.run_for(500)
    cluster.restart("eu")
    cluster.run_for(3_000)
    assert show(cluster, "eu")["amount"] == 5
    cluster.limits = (globally(3),)
    cluster.worker("eu")
    cluster.run_for(1_000)
    assert show(cluster, "us")["amount"] == 3


def test_a_region_that_leaves_gives_its_rights_away_and_starts_nothing_more() -> None:
    cluster = limited("eu", "us", "ap", limit=globally(9))
    for region in cluster.nodes:
        flood(cluster, region, 60)
    cluster.run_for(4_000)
    replica = cluster.nodes[RegionId("ap")].replica
    assert replica is not None
    assert replica._limits.rights_left > 0
    replica._limits.leave()
    cluster.run_for(3_000)
    assert replica._limits.rights_left == 0
    assert rights(cluster, "eu")["ap"] == 0
    assert sum(rights(cluster, "eu").values()) == 9
    before = sum(1 for _, region, _ in cluster.started if region == "ap")
    cluster.run_for(3_000)
    assert sum(1 for _, region, _ in cluster.started if region == "ap") == before


def test_the_rights_of_a_region_that_was_stopped_for_good_are_inherited_once_and_its_heir_mints() -> None:
    cluster = limited("eu", "us", "ap", limit=globally(9))
    cluster.run_for(15_000)
    gone = show(cluster, "eu")["minter"]
    heir = next(region for region in ("eu", "us", "ap") if region != gone)
    cluster.crash(gone)
    replica = cluster.nodes[RegionId(heir)].replica
    assert replica is not None
    cluster.nodes[RegionId(heir)].feed(lambda replica: replica._limits.inherit(RegionId(gone)))
    cluster.run_for(2_000)
    cluster.nodes[RegionId(heir)].feed(lambda replica: replica._limits.inherit(RegionId(gone)))
    watch = Watch(cluster)
    flood(cluster, heir, 200)
    watch.run_for(6_000)
    assert watch.most == 9
    assert show(cluster, heir)["minter"] == heir
    cluster.nodes[RegionId(heir)].ask(c.SetLimit(globally(10)))
    watch.run_for(4_000)
    assert watch.most == 10


@pytest.mark.parametrize("stopped", [True, False])
def test_rights_come_back_from_who_is_forgotten_only_by_the_word_that_it_runs_no_more(stopped: bool) -> None:
    cluster = limited("eu", "us", "ap", limit=globally(9))
    cluster.run_for(15_000)
    cluster.crash("ap")
    cluster.run_for(1_000)
    cluster.nodes[RegionId("eu")].ask(c.ForgetRegion(("ap",), stopped, False))
    cluster.run_for(5_000)
    assert "ap" in cluster.membership("eu").forgotten
    watch = Watch(cluster)
    flood(cluster, "eu", 200)
    watch.run_for(6_000)
    assert (watch.most == 9) is stopped
    assert watch.most <= 9


def test_limits_survive_a_restart_a_snapshot_and_a_rebuild_with_equal_digests() -> None:
    cluster = limited("eu", "us", "ap", limit=globally(9), retention_ms=1_000)
    for region in cluster.nodes:
        flood(cluster, region, 20)
    cluster.isolate("ap")
    cluster.run_for(8_000)
    for region in ("eu", "us"):
        cluster.restart(region)
        cluster.run_for(2_000)
    cluster.heal()
    cluster.run_for(15_000)
    assert cluster.converge()
    assert cluster.alarms() == []
    assert sum(rights(cluster, "ap").values()) == 9
    assert len({str(rights(cluster, region)) for region in cluster.nodes}) == 1


# Several limits over one task ----------------------------------------------------------------------


def test_rights_of_two_limits_meet_though_there_are_more_regions_than_rights() -> None:
    """Swarm seed 638: regions passed on the right of the one limit while they waited for the other one's, for ever."""
    regions = ("ap", "eu", "sa", "uk", "us")
    cluster = limited(*regions, limit=globally(1))
    cluster.nodes[RegionId("eu")].ask(c.SetLimit(c.LimitDeclaration("task:work", concurrency=1)))
    cluster.run_for(1_000)
    tasks = [task for region in regions for task in flood(cluster, region, 3)]
    watch = Watch(cluster)
    watch.run_for(60_000)
    assert {cluster.state("eu", task) for task in tasks} == {"succeeded"}
    assert watch.most == 1


def test_a_scarcer_limit_keeps_no_rights_of_another_one_idle() -> None:
    cluster = Cluster(
        "eu",
        "us",
        tasks={name: lambda _: Outcome(after_ms=WORK_MS) for name in ("work", "rare")},
        declare={name: {"queue": "billing"} for name in ("work", "rare")},
        credits=20,
    )
    eu = cluster.nodes[RegionId("eu")]
    eu.ask(c.SetLimit(globally(10)))
    eu.ask(c.SetLimit(c.LimitDeclaration("task:rare", concurrency=1)))
    cluster.run_for(1_000)
    for _ in range(30):
        cluster.submit("us", "rare")
    flood(cluster, "eu", 300)
    cluster.run_for(2_000)
    watch = Watch(cluster)
    watch.run_for(4_000)
    assert watch.most <= 10
    assert watch.area / 4_000 >= 9
