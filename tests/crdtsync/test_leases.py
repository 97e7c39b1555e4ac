"""`Leases` inside real replicas: granted by a majority, kept, lost, handed on, and told why not."""

from __future__ import annotations

import pytest

from crdtsync.coordination.leases import META, Held, Leases
from crdtsync.errors import OverloadedError
from crdtsync.identifiers import RegionId
from crdtsync.protocol import codec
from tests.cluster import Cluster

LEASE_MS = 1_000
REGIONS = ("ap", "eu", "us")
SCOPE = "queue:q"


def leases(cluster: Cluster, region: str) -> Leases:
    replica = cluster.nodes[RegionId(region)].replica
    assert replica is not None
    return replica.leases


def act(cluster: Cluster, region: str, what: str, scope: str = SCOPE) -> None:
    node = cluster.nodes[RegionId(region)]
    node.feed(lambda replica: getattr(replica.leases, what)(scope))
    node.feed(lambda replica: replica.tick(node.now))


def want(cluster: Cluster, region: str, scope: str = SCOPE) -> None:
    act(cluster, region, "want", scope)


def held(cluster: Cluster, region: str, scope: str = SCOPE) -> Held | None:
    node = cluster.nodes[RegionId(region)]
    if node.replica is None:
        return None
    node.feed(lambda replica: replica.tick(node.now))
    return node.replica.leases.held(scope)


def holders(cluster: Cluster, scope: str = SCOPE) -> list[str]:
    return [region for region in REGIONS if held(cluster, region, scope) is not None]


def frames_sent(cluster: Cluster, region: str) -> int:
    replica = cluster.nodes[RegionId(region)].replica
    assert replica is not None
    return replica._neighbours.gossip.counters["frames_sent"]


def run_watched(cluster: Cluster, duration_ms: int, scope: str = SCOPE) -> list[tuple[str, int]]:
    """Let time pass; never two holders. Returns the tenures in order."""
    tenures: list[tuple[str, int]] = []
    for _ in range(duration_ms // 20):
        cluster.run_for(20)
        now = holders(cluster, scope)
        assert len(now) <= 1, now
        for region in now:
            lease = held(cluster, region, scope)
            assert lease is not None
            if (region, lease.token) not in tenures:
                tenures.append((region, lease.token))
    tokens = [token for _, token in tenures]
    assert tokens == sorted(set(tokens)), tenures
    return tenures


@pytest.fixture
def cluster() -> Cluster:
    cluster = Cluster(*REGIONS, lease_ms=LEASE_MS, workers=False)
    cluster.run_for(LEASE_MS)  # voters are silent for one lease after their start
    return cluster


def test_a_free_lease_is_granted_within_two_round_trips_and_renewed(cluster: Cluster) -> None:
    want(cluster, "eu")
    cluster.run_for(100)
    first = held(cluster, "eu")
    assert first is not None
    assert first.ready
    assert first.starts_until_mono_ms < first.until_mono_ms
    assert leases(cluster, "eu").why_not(SCOPE) == ""
    cluster.run_for(5_000)
    later = held(cluster, "eu")
    assert later is not None
    assert later.token == first.token
    assert later.until_mono_ms > first.until_mono_ms
    assert leases(cluster, "eu").valid(SCOPE, first.token)
    assert not leases(cluster, "eu").valid(SCOPE, first.token - 1)


def test_one_region_alone_is_its_own_majority() -> None:
    cluster = Cluster("eu", lease_ms=LEASE_MS, workers=False)
    cluster.run_for(LEASE_MS)
    want(cluster, "eu")
    cluster.run_for(20)
    assert held(cluster, "eu") is not None


def test_a_lease_that_is_short_for_its_network_is_had_and_kept_all_the_same(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Swarm seeds 4, 312, 523: answers that took longer than a first round were never waited for."""
    monkeypatch.setattr("tests.cluster.LINK_MS", 125)
    want(cluster, "eu")
    cluster.run_for(2 * LEASE_MS)
    first = held(cluster, "eu")
    assert first is not None
    cluster.run_for(5 * LEASE_MS)
    later = held(cluster, "eu")
    assert later is not None
    assert later.token == first.token


def test_voters_are_silent_for_one_lease_after_their_start() -> None:
    cluster = Cluster(*REGIONS, lease_ms=LEASE_MS, workers=False)
    want(cluster, "eu")
    cluster.run_for(200)
    assert held(cluster, "eu") is None
    assert "may not vote for another" in leases(cluster, "eu").why_not(SCOPE)
    cluster.run_for(LEASE_MS)
    assert held(cluster, "eu") is not None


def test_who_waits_learns_who_holds_and_gets_it_soon_after_it_is_given_back(cluster: Cluster) -> None:
    want(cluster, "eu")
    cluster.run_for(100)
    want(cluster, "us")
    cluster.run_for(300)
    mine = held(cluster, "eu")
    assert mine is not None
    assert leases(cluster, "us").why_not(SCOPE).startswith(f"eu holds it with token {mine.token} for at most ")
    known = leases(cluster, "us").held_by(SCOPE)
    assert known is not None
    assert (known.region, known.token) == ("eu", mine.token)
    act(cluster, "eu", "unwant")
    assert held(cluster, "eu") is None
    cluster.run_for(150)
    theirs = held(cluster, "us")
    assert theirs is not None
    assert theirs.token > mine.token


def test_a_holder_that_is_cut_off_stops_before_the_majority_grants_anew(cluster: Cluster) -> None:
    want(cluster, "eu")
    cluster.run_for(100)
    want(cluster, "us")
    cluster.isolate("eu")
    tenures = run_watched(cluster, 3 * LEASE_MS)
    assert [region for region, _ in tenures] == ["eu", "us"]
    assert leases(cluster, "eu").why_not(SCOPE) == "needs 2 of 3 regions, sees 1"
    cluster.heal()
    tenures = run_watched(cluster, 2 * LEASE_MS)
    assert [region for region, _ in tenures] == ["us"]


def test_contenders_do_not_keep_each_other_out(cluster: Cluster) -> None:
    for region in REGIONS:
        want(cluster, region)
    cluster.run_for(LEASE_MS)
    assert len(holders(cluster)) == 1


@pytest.mark.parametrize("crashes", [("us",), ("us", "ap"), ("eu", "us", "ap")])
def test_crashes_and_restarts_never_make_two_holders(cluster: Cluster, crashes: tuple[str, ...]) -> None:
    want(cluster, "eu")
    cluster.run_for(100)
    before = held(cluster, "eu")
    assert before is not None
    for region in crashes:
        cluster.crash(region)
    for region in crashes:
        cluster.restart(region)
    for region in REGIONS:
        want(cluster, region)
    tenures = run_watched(cluster, 4 * LEASE_MS)
    assert tenures[-1][1] >= before.token
    assert len(holders(cluster)) == 1


def test_ballots_outlive_a_crash_right_after_the_answer(cluster: Cluster) -> None:
    want(cluster, "eu")
    cluster.run_for(100)
    lease = held(cluster, "eu")
    assert lease is not None
    for region in leases(cluster, "eu").granted_by(SCOPE):
        bound, longest_ms = codec.decode(cluster.nodes[region].store._meta[META], bytes_max=64)  # type: ignore[misc]
        assert bound >= lease.token
        assert longest_ms == LEASE_MS


def test_renewals_write_nothing_to_disk(cluster: Cluster) -> None:
    for n in range(50):
        want(cluster, "eu", f"key:{n}")
    cluster.run_for(200)
    before = [node.replica._here.outbox.next.number for node in cluster.nodes.values() if node.replica]
    frames = frames_sent(cluster, "eu")
    cluster.run_for(3_000)
    after = [node.replica._here.outbox.next.number for node in cluster.nodes.values() if node.replica]
    assert all(held(cluster, "eu", f"key:{n}") for n in range(50))
    assert after == before
    assert frames_sent(cluster, "eu") - frames < 50  # to two peers: pings, heads, and some ten frames of renewals


def test_a_busy_scope_is_handed_on_when_others_wait_and_nothing_runs() -> None:
    cluster = Cluster(*REGIONS, lease_ms=LEASE_MS, workers=False, max_hold_lease_ms=2_000)
    cluster.run_for(LEASE_MS)
    want(cluster, "eu")
    cluster.run_for(100)
    running = True
    leases(cluster, "eu").in_use = lambda _scope: running
    want(cluster, "us")
    cluster.run_for(4_000)
    lease = held(cluster, "eu")
    assert lease is not None
    assert lease.starts_until_mono_ms == 0
    assert leases(cluster, "eu").why_not(SCOPE).endswith("handed on")
    running = False
    tenures = run_watched(cluster, 1_500)
    assert [region for region, _ in tenures] == ["eu", "us"]


def test_nobody_who_waits_is_shut_out_for_ever() -> None:
    cluster = Cluster(*REGIONS, lease_ms=LEASE_MS, workers=False, max_hold_lease_ms=1_500)
    cluster.run_for(LEASE_MS)
    for region in REGIONS:
        want(cluster, region)
    tenures = run_watched(cluster, 12_000)
    assert {region for region, _ in tenures} == set(REGIONS)


def test_forgotten_scopes_keep_their_tokens_growing(cluster: Cluster) -> None:
    want(cluster, "eu", "task:1")
    cluster.run_for(100)
    first = held(cluster, "eu", "task:1")
    assert first is not None
    act(cluster, "eu", "unwant", "task:1")
    cluster.run_for(3 * LEASE_MS)
    want(cluster, "ap", "other")  # a turn in which votes are swept
    cluster.run_for(100)
    for region in REGIONS:
        assert "task:1" not in leases(cluster, region)._votes
    want(cluster, "us", "task:1")
    cluster.run_for(200)
    second = held(cluster, "us", "task:1")
    assert second is not None
    assert second.token > first.token


def test_a_holder_is_ready_once_it_has_applied_what_its_voters_had(cluster: Cluster) -> None:
    changed: list[str] = []
    leases(cluster, "eu").listen(changed.append)
    cluster.worker("us")
    cluster.run_for(100)
    cluster.isolate("ap")
    task = cluster.submit("us")  # us has it, and eu has not yet
    node = cluster.nodes[RegionId("eu")]
    assert node.replica is not None
    log = node.replica._here.log
    want(cluster, "eu")
    cluster.run_for(200)
    lease = held(cluster, "eu")
    assert lease is not None
    assert lease.ready
    assert log.applied.covers(leases(cluster, "eu")._wanted[SCOPE].need)
    assert cluster.state("eu", task) in ("waiting", "running", "succeeded")
    assert changed.count(SCOPE) >= 1


def test_too_many_scopes_are_refused(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crdtsync.coordination.leases.SCOPES_MAX", 1)
    leases(cluster, "eu").want("a")
    with pytest.raises(OverloadedError, match="wants 1 leases already"):
        leases(cluster, "eu").want("b")


def test_regions_that_allow_shorter_leases_say_so(cluster: Cluster) -> None:
    leases(cluster, "us").terms = leases(cluster, "us")._acceptor.terms = leases(cluster, "us").terms._replace(
        lease_ms=500
    )
    cluster.isolate("ap")
    want(cluster, "eu")
    cluster.run_for(500)
    assert held(cluster, "eu") is None
    assert "us allows only shorter leases" in leases(cluster, "eu").why_not(SCOPE)
