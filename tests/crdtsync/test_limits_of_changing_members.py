"""Global limits while regions come and go: never more than the limit, and whoever joins gets its share."""

from __future__ import annotations

import itertools

import pytest

from crdtsync import commands as c
from crdtsync.coordination.limits import limit_id
from crdtsync.identifiers import RegionId
from crdtsync.scheduling.placement import rendezvous_order
from tests.cluster import AskError, Cluster, Outcome
from tests.crdtsync.test_limits import Watch, rights

EU, US, AP, SA = map(RegionId, ("eu", "us", "ap", "sa"))
WORK_MS = 300


def cluster_of(*regions: str, queue: str = "billing", **options: object) -> Cluster:
    return Cluster(
        *regions,
        tasks={"work": lambda _: Outcome(after_ms=WORK_MS)},
        declare={"work": {"queue": queue}},
        lease_ms=400,
        **options,  # type: ignore[arg-type]
    )


def set_limit(cluster: Cluster, region: str, queue: str, **limit: int) -> None:
    cluster.nodes[RegionId(region)].ask(c.SetLimit(c.LimitDeclaration(f"queue:{queue}", **limit)))


def flood(cluster: Cluster, region: str, count: int = 60) -> None:
    for n in range(count):
        cluster.submit(region, "work", n)


def join(cluster: Cluster, region: str, by: str) -> None:
    cluster.join(region)
    cluster.nodes[RegionId(by)].ask(c.AddRegion(region, ""))


def forget(cluster: Cluster, by: str, region: str, *, stopped: bool) -> None:
    cluster.nodes[RegionId(by)].ask(c.ForgetRegion((region,), stopped, False))


def queue_whose_minters_are(*minters: tuple[tuple[RegionId, ...], RegionId], kind: str = "concurrency") -> str:
    """The name of a queue for whose limit these members would have these minters."""
    for number in itertools.count():
        id = limit_id("default", f"queue:q{number}", kind)
        if all(rendezvous_order(id, list(members))[0] == minter for members, minter in minters):
            return f"q{number}"
    raise AssertionError


def test_a_joiner_gets_rights_under_a_limit_that_was_there_before_it() -> None:
    cluster = cluster_of("eu", "us", "ap")
    set_limit(cluster, "eu", "billing", concurrency=8)
    cluster.run_for(1_000)
    join(cluster, "sa", "eu")
    assert cluster.run_until(lambda: all(cluster.membership(r).is_member("sa") for r in cluster.nodes), 60_000)
    cluster.worker("sa")
    watch = Watch(cluster)
    flood(cluster, "sa", 100)
    watch.run_for(4_000)
    assert watch.most_in["sa"] >= 5, "the others need none of theirs"
    assert watch.most <= 8
    assert sum(rights(cluster, "sa").values()) == 8


def test_a_limit_that_is_created_on_two_sides_of_a_cut_while_a_region_joins_is_minted_once() -> None:
    """One side counts the joiner as a founder and the other does not: each had a minter of its own."""
    old, new = (AP, EU, US), (AP, EU, SA, US)
    queue = queue_whose_minters_are((old, US), (new, SA))
    cluster = cluster_of("eu", "us", "ap", queue=queue)
    join(cluster, "sa", "eu")
    assert cluster.run_until(lambda: any(cluster.membership(r).is_member("sa") for r in ("eu", "ap", "sa")), 60_000)
    cluster.isolate("us")
    assert not cluster.membership("us").is_member("sa")
    cluster.worker("sa")
    cluster.run_for(2_000)
    watch = Watch(cluster)
    set_limit(cluster, "us", queue, concurrency=3)
    set_limit(cluster, "eu", queue, concurrency=3)
    cluster.run_for(500)
    for region in ("us", "sa"):
        flood(cluster, region)
    watch.run_for(3_000)
    assert watch.most <= 3
    cluster.heal()
    watch.run_for(8_000)
    assert watch.most == 3, "and it is used once all know of it"
    assert cluster.converge()


def order_over(*members: RegionId, of: RegionId) -> list[RegionId]:
    return rendezvous_order(of.encode(), list(members))


def test_what_fell_to_a_region_that_may_still_run_falls_to_nobody_else() -> None:
    """The heir of a stopped region was cut off, took the rights over, and went on with them; forgotten itself, without
    anybody's word that it had stopped, it had an heir that took the same rights over once more."""
    names = [EU, US, SA, RegionId("na"), AP]
    heir = order_over(*[n for n in names if n != AP], of=AP)[0]
    rest = [n for n in names if n not in (AP, heir)]
    cluster = cluster_of(*names)
    set_limit(cluster, rest[0], "billing", concurrency=10)
    cluster.run_for(15_000)
    assert set(rights(cluster, rest[0]).values()) == {2}
    cluster.crash(AP)
    cluster.run_for(1_000)
    watch = Watch(cluster)
    forget(cluster, rest[0], AP, stopped=True)
    for _ in range(2_000):
        cluster.run_for(5)
        if AP in cluster.membership(heir).forgotten:
            break
    cluster.isolate(heir)
    cluster.run_for(4_000)
    forget(cluster, rest[0], heir, stopped=False)
    cluster.run_for(4_000)
    assert all(heir in cluster.membership(region).forgotten for region in rest)
    for region in (heir, rest[0]):
        flood(cluster, region, 100)
    watch.run_for(5_000)
    assert watch.most_in[heir] >= 2
    assert watch.most <= 10


def test_the_rights_of_an_heir_that_was_stopped_as_well_are_inherited_in_turn() -> None:
    names = [EU, US, SA, RegionId("na"), AP]
    heir = order_over(*[n for n in names if n != AP], of=AP)[0]
    rest = [n for n in names if n not in (AP, heir)]
    cluster = cluster_of(*names)
    set_limit(cluster, rest[0], "billing", concurrency=10)
    cluster.run_for(15_000)
    for region in (AP, heir):
        cluster.crash(region)
        cluster.run_for(3_000)
        forget(cluster, rest[0], region, stopped=True)
        cluster.run_for(4_000)
    watch = Watch(cluster)
    flood(cluster, rest[0], 100)
    watch.run_for(5_000)
    assert watch.most == 10


def test_that_a_forgotten_region_has_stopped_may_be_said_later() -> None:
    cluster = cluster_of("eu", "us", "ap")
    set_limit(cluster, "eu", "billing", concurrency=9)
    cluster.run_for(15_000)
    cluster.crash("ap")
    cluster.run_for(1_000)
    forget(cluster, "eu", "ap", stopped=False)
    cluster.run_for(5_000)
    assert sum(rights(cluster, "eu").get(region, 0) for region in ("eu", "us")) == 6
    with pytest.raises(AskError, match="forgotten already"):
        forget(cluster, "eu", "ap", stopped=False)
    forget(cluster, "us", "ap", stopped=True)
    cluster.run_for(5_000)
    assert cluster.membership("eu") == cluster.membership("us")
    assert cluster.membership("eu").forgotten[AP].stopped
    assert sum(rights(cluster, "eu").get(region, 0) for region in ("eu", "us")) == 9
    assert cluster.converge()
    with pytest.raises(AskError, match="forgotten already"):
        forget(cluster, "eu", "ap", stopped=True)


def test_inherited_rights_of_a_rate_are_used_a_period_later() -> None:
    """What their old holder started just before it died counts for the period all the same."""
    cluster = cluster_of("eu", "us")
    set_limit(cluster, "eu", "billing", rate=6, per_ms=60_000)
    cluster.run_for(15_000)
    flood(cluster, "us", 20)
    cluster.run_for(3_000)
    assert [region for _, region, _ in cluster.started] == ["us"] * 6
    cluster.crash("us")
    cluster.run_for(1_000)
    cluster.nodes[EU].ask(c.ForgetRegion(("us",), True, True))  # one of two is no majority
    cluster.run_for(5_000)
    assert rights(cluster, "eu")["eu"] == 6
    cluster.restart("eu")
    flood(cluster, "eu", 20)
    cluster.run_for(140_000)
    starts = [at_ms for at_ms, _, _ in cluster.started]
    assert len(starts) >= 12
    assert all(later - earlier >= 60_000 for earlier, later in zip(starts, starts[6:], strict=False))
