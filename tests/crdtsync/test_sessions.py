"""Locks for clients: one holder, a token per session, renewals, silence, waiting in turn, what is in the way."""

from __future__ import annotations

from typing import Any

import pytest

from crdtsync import commands as c
from crdtsync.identifiers import RegionId
from tests.cluster import AskError, Cluster

LEASE_MS = 1_000


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster("ap", "eu", "us", lease_ms=LEASE_MS, workers=False)
    cluster.run_for(LEASE_MS)
    return cluster


def acquire(cluster: Cluster, region: str, owner: str, **options: Any) -> dict[str, Any]:
    command = c.LeaseAcquire(name="billing", owner=owner, **{"ttl_ms": 600, "wait_ms": 400, **options})
    answer: dict[str, Any] = cluster.nodes[RegionId(region)].ask(command)
    return answer


def post(cluster: Cluster, region: str, command: Any) -> Any:
    """Send a command without waiting. Returns its ticket."""
    node, ticket = cluster.nodes[RegionId(region)], cluster.ticket()
    node.feed(lambda replica: replica.submit(command, node.now, ticket))
    return ticket


def answer_to(cluster: Cluster, region: str, ticket: Any) -> Any:
    replies = cluster.nodes[RegionId(region)].answers.get(ticket)
    return replies[0].value or replies[0].error if replies else None


def renew(cluster: Cluster, region: str, owner: str, token: int) -> Any:
    return cluster.nodes[RegionId(region)].ask(c.LeaseRenew(name="billing", owner=owner, token=token))


def release(cluster: Cluster, region: str, owner: str = "", token: int = 0) -> Any:
    return cluster.nodes[RegionId(region)].ask(c.LeaseRelease(name="billing", owner=owner, token=token))


def test_one_client_holds_it_and_the_next_gets_a_larger_token(cluster: Cluster) -> None:
    first = acquire(cluster, "eu", "a")
    assert first["region"] == "eu"
    assert 0 < first["valid_ms"] <= 600
    assert acquire(cluster, "eu", "a")["token"] == first["token"], "asking again is the same session"
    assert release(cluster, "eu", "a", first["token"]) == {"name": "billing", "released": True}
    second = acquire(cluster, "us", "b")
    assert second["token"] > first["token"]


def test_sessions_of_one_region_have_different_tokens(cluster: Cluster) -> None:
    first = acquire(cluster, "eu", "a")
    waits = post(cluster, "eu", c.LeaseAcquire(name="billing", owner="b", ttl_ms=600))
    cluster.run_for(100)
    assert answer_to(cluster, "eu", waits) is None
    release(cluster, "eu", "a", first["token"])
    cluster.run_for(200)
    assert answer_to(cluster, "eu", waits)["token"] > first["token"]


def test_who_does_not_want_to_wait_is_told_who_holds_it(cluster: Cluster) -> None:
    acquire(cluster, "eu", "a")
    for region, text in (("eu", "is held by a at eu"), ("us", "is held at eu, token")):
        with pytest.raises(AskError, match=text) as refused:
            acquire(cluster, region, "b", wait_ms=200)
        assert refused.value.code == "lease_held"


def test_a_minority_says_what_it_lacks(cluster: Cluster) -> None:
    cluster.isolate("eu")
    with pytest.raises(AskError, match="needs 2 of 3 regions, sees 1") as refused:
        acquire(cluster, "eu", "a")
    assert refused.value.code == "quorum_unavailable"


def test_a_client_that_falls_silent_loses_it_after_its_ttl(cluster: Cluster) -> None:
    first = acquire(cluster, "eu", "a")
    waits = post(cluster, "us", c.LeaseAcquire(name="billing", owner="b", ttl_ms=600))
    cluster.run_for(500)
    assert answer_to(cluster, "us", waits) is None
    cluster.run_for(500)
    assert answer_to(cluster, "us", waits)["token"] > first["token"]
    with pytest.raises(AskError, match="no longer held under token") as lost:
        renew(cluster, "eu", "a", first["token"])
    assert lost.value.code == "lease_lost"


def test_renewals_keep_it_for_as_long_as_the_region_keeps_its_lease(cluster: Cluster) -> None:
    lease = acquire(cluster, "eu", "a")
    for _ in range(20):
        cluster.run_for(200)
        assert renew(cluster, "eu", "a", lease["token"])["token"] == lease["token"]
    cluster.isolate("eu")
    valid_until = cluster.time_ms

    def renew_for(duration_ms: int) -> None:
        nonlocal valid_until
        for _ in range(duration_ms // 100):
            valid_until = cluster.time_ms + renew(cluster, "eu", "a", lease["token"])["valid_ms"]
            cluster.run_for(100)

    with pytest.raises(AskError, match="no longer held"):
        renew_for(3_000)
    assert cluster.time_ms <= valid_until + 100
    other = acquire(cluster, "us", "b", wait_ms=3_000)
    assert other["token"] > lease["token"]
    assert cluster.time_ms >= valid_until


def test_who_hangs_up_no_longer_waits(cluster: Cluster) -> None:
    acquire(cluster, "eu", "a", ttl_ms=500)
    waits = post(cluster, "us", c.LeaseAcquire(name="billing", owner="b"))
    cluster.run_for(100)
    node = cluster.nodes[RegionId("us")]
    node.feed(lambda replica: replica.forget(waits))
    cluster.run_for(2_000)
    assert answer_to(cluster, "us", waits) is None
    assert node.replica is not None
    assert node.replica.leases.wanted() == ()


def test_an_operator_takes_it_away_without_breaking_what_the_client_was_told(cluster: Cluster) -> None:
    lease = acquire(cluster, "eu", "a")
    told_until = cluster.time_ms + lease["valid_ms"]
    waits = post(cluster, "us", c.LeaseAcquire(name="billing", owner="b"))
    answer = release(cluster, "eu")
    assert answer["released"]
    assert answer["free_in_ms"] <= lease["valid_ms"]
    with pytest.raises(AskError, match="no longer held"):
        renew(cluster, "eu", "a", lease["token"])
    assert cluster.run_until(lambda: answer_to(cluster, "us", waits) is not None, 3_000)
    assert cluster.time_ms >= told_until - 10
    with pytest.raises(AskError, match="no client of eu holds 'billing': us holds it, ask there"):
        release(cluster, "eu")


def test_a_node_that_stops_gives_back_only_what_no_client_relies_on(cluster: Cluster) -> None:
    acquire(cluster, "eu", "a")
    node = cluster.nodes[RegionId("eu")]
    node.feed(lambda replica: replica.leases.want("queue:q"))
    node.feed(lambda replica: replica.tick(node.now))
    cluster.run_for(100)
    node.feed(lambda replica: replica.leave(node.now))
    assert node.replica is not None
    assert node.replica.leases.held("queue:q") is None
    assert node.replica.leases.held("user:billing") is not None
    cluster.run_for(50)
    assert [r["scope"] for r in cluster.nodes[RegionId("us")].ask(c.LeaseList())] == ["user:billing"]


def test_a_stale_release_changes_nothing(cluster: Cluster) -> None:
    lease = acquire(cluster, "eu", "a")
    assert not release(cluster, "eu", "a", lease["token"] - 1)["released"]
    assert not release(cluster, "eu", "b")["released"]
    assert not release(cluster, "us", "a")["released"]
    assert renew(cluster, "eu", "a", lease["token"])["token"] == lease["token"]


def test_the_list_tells_who_holds_what_and_who_voted(cluster: Cluster) -> None:
    lease = acquire(cluster, "eu", "a")
    [mine] = cluster.nodes[RegionId("eu")].ask(c.LeaseList())
    assert (mine["scope"], mine["holder"], mine["token"], mine["owner"]) == ("user:billing", "eu", lease["token"], "a")
    assert mine["here"]
    assert len(mine["voters"]) >= 2
    assert mine["why_not"] == ""
    for region in mine["voters"]:
        [seen] = cluster.nodes[RegionId(region)].ask(c.LeaseList(scope="user:billing"))
        assert (seen["holder"], seen["token"]) == ("eu", lease["token"])


@pytest.mark.parametrize(
    "command",
    [
        c.LeaseAcquire(name="", owner="a"),
        c.LeaseAcquire(name="x" * 201, owner="a"),
        c.LeaseAcquire(name="x", owner=""),
        c.LeaseAcquire(name="x", owner="a", ttl_ms=10),
    ],
)
def test_requests_that_make_no_sense_are_refused(cluster: Cluster, command: Any) -> None:
    with pytest.raises(AskError) as refused:
        cluster.nodes[RegionId("eu")].ask(command)
    assert refused.value.code == "invalid"


def test_a_lock_does_not_wait_for_commits_that_are_held_back(cluster: Cluster) -> None:
    """A voter whose clock was far ahead has applied its own commits; nobody else may for an hour."""
    eu = cluster.nodes[RegionId("eu")]
    cluster.crash("us")
    us = cluster.nodes[RegionId("us")]
    us.wall_offset_ms = 1_800_000
    cluster.restart("us")
    cluster.isolate("ap")
    cluster.run_for(2 * LEASE_MS)
    assert acquire(cluster, "eu", "a", wait_ms=1_000)["region"] == "eu"
    assert eu.replica is not None
    held = eu.replica.leases.held("user:billing")
    assert held is not None
    assert not held.ready, "else this test shows nothing"
