"""Any connected graph converges, whatever is dropped, cut or restarted; and nothing is sent to who has it."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crdtsync.gossip.settings import GossipSettings
from crdtsync.identifiers import region_of
from tests.gossip_network import Edge, Network, line, mesh, ring

HEADS_MS = 3_000  # within which an exchange comes
NAMES = "abcde"


def tree(names: str) -> list[Edge]:
    return [(names[(index - 1) // 2], name) for index, name in enumerate(names) if index]


def star(names: str) -> list[Edge]:
    return [(names[0], name) for name in names[1:]]


TOPOLOGIES = {"line": line, "ring": ring, "mesh": mesh, "tree": tree, "star": star}


@st.composite
def connected_graphs(draw) -> tuple[str, list[Edge]]:
    """A random tree and some more edges."""
    names = "abcdefg"[: draw(st.integers(2, 7))]
    edges = {(names[draw(st.integers(0, index - 1))], names[index]) for index in range(1, len(names))}
    edges |= set(draw(st.lists(st.sampled_from(mesh(names)), max_size=6)))
    return names, sorted(edges)


def no_alarms(network: Network) -> bool:
    return not [note for node in network.nodes.values() for note in node.notes if note.level == "alarm"]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_every_commit_reaches_everybody_at_once_where_nothing_is_lost(topology):
    """Live pushes do it alone: no topology waits for an exchange of heads."""
    network = Network(NAMES, TOPOLOGIES[topology](NAMES))
    network.run(4_000)
    for _ in range(20):
        for node in network.nodes.values():
            node.write(2)
        took_ms = network.run_until_converged(HEADS_MS)
        assert took_ms <= 4 * (network.latency_ms + 2 * network.disk_ms) + 50  # diameter 4, and the grain of the wait
        network.run(137)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("jitter_ms", [0, 30])
def test_a_commit_is_never_sent_back_nor_to_its_writer(topology, jitter_ms):
    network = Network(NAMES, TOPOLOGIES[topology](NAMES), jitter_ms=jitter_ms)
    network.run(4_000)
    for _ in range(30):
        for node in network.nodes.values():
            node.write()
        network.run(200)
    network.run(5_000)
    assert network.converged()
    for source, peer, writer, number in network.commits_sent:
        assert peer != region_of(writer)
        assert network.came_from.get((source, writer, number)) != peer
    assert max(Counter(network.commits_sent).values()) == 1  # nor twice over one link


def test_far_apart_too_each_region_is_sent_each_commit_hardly_more_than_once():
    """Swarm seed 625: heads that crossed commits were taken for commits that nobody had brought."""
    network = Network(NAMES, mesh(NAMES), latency_ms=150, jitter_ms=100, settings=GossipSettings(heads_interval_ms=500))
    network.run(4_000)
    for _ in range(150):
        for node in network.nodes.values():
            node.write()
        network.run(97)
    network.run(5_000)
    assert network.converged()
    assert len(network.commits_sent) <= 1.05 * 150 * len(NAMES) * (len(NAMES) - 1)


def test_in_a_full_mesh_each_region_is_sent_each_commit_once():
    network = Network(NAMES, mesh(NAMES))
    network.run(4_000)
    for _ in range(50):
        for node in network.nodes.values():
            node.write()
        network.run(97)
    network.run(5_000)
    commits = 50 * len(NAMES)
    assert commits * 4 <= network.sent["commits"] <= commits * 4 * 1.05  # what was under way at an exchange


def live_through_chaos(names: str, edges: list[Edge], seed: int, loss: float) -> None:
    """Cuts, restarts, lost links and frames, and writing all the while; then a heal, and everybody must agree."""
    old = names[: seed % 3]  # versions that read no bundles speak with those that do
    network = Network(names, edges, seed=seed, loss=loss, jitter_ms=20, old=old)
    chance = random.Random(seed)
    for _ in range(12):
        name = chance.choice(names)
        match chance.randrange(5):
            case 0:
                network.cut_off(name)
            case 1:
                network.heal()
            case 2:
                network.restart(name)
            case 3:
                network.hang_up(chance.choice(edges))
            case _:
                network.nodes[name].write(chance.randint(1, 20), size=chance.choice([20, 2_000]))
        network.run(chance.choice([10, 300, 2_500]))
    network.heal()
    network.loss = 0.0
    network.run(GossipSettings().idle_timeout_ms + network.redial_ms + 1_000)  # until dead links are given up
    for node in network.nodes.values():
        node.write()
    network.run_until_converged(len(names) * HEADS_MS)
    assert no_alarms(network)
    network.run(2 * HEADS_MS)
    for node in network.nodes.values():
        assert node.stability.latest().keys() == set(names)
        assert {r["behind"] for r in node.gossip.regions(network.now) if r["status"] in ("self", "up")} == {0}
        assert not node.gossip.unanswered
        assert all(node.gossip._peers[name].credit_in.untaken == 0 for name in names)
    assert {node.stability.stable() for node in network.nodes.values()} == {network.nodes[names[0]].log.applied}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(connected_graphs(), st.integers(0, 2**32), st.sampled_from([0.0, 0.05, 0.3]))
def test_any_connected_graph_converges_whatever_is_lost_cut_and_restarted(graph, seed, loss):
    live_through_chaos(*graph, seed, loss)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(connected_graphs(), st.integers(0, 2**32), st.sampled_from([0.0, 0.05, 0.3]))
def test_any_connected_graph_converges_over_many_seeds(graph, seed, loss):
    live_through_chaos(*graph, seed, loss)


@pytest.mark.parametrize("loss", [0.1, 0.3])
def test_what_is_lost_is_repaired_while_frames_go_on_being_lost(loss):
    network = Network("abc", mesh("abc"), loss=loss, seed=7)
    network.run(4_000)
    for _ in range(10):
        for node in network.nodes.values():
            node.write(3)
        network.run(500)
    network.run_until_converged(60_000)
    assert network.sent["dropped"] > 30
    assert no_alarms(network)


def test_a_dropped_push_is_noticed_by_the_gap_it_leaves():
    """Also one that all others had left to the link on which it was lost: the next frame shows it."""
    for seed in range(10):
        network = Network("abc", mesh("abc"), seed=seed)
        network.run(3_000 + 100 * seed)
        network.lose_next_commits = {("a", "c")}
        network.nodes["a"].write()
        assert network.run_until_converged(1_500) > 30
        assert not network.lose_next_commits


def test_what_a_link_swallows_is_repaired_within_one_exchange_of_heads():
    """While b leaves to a what a's dead link to c swallows, c's own heads tell b."""
    for start_ms in range(3_000, 5_000, 100):
        network = Network("abc", mesh("abc"))
        network.run(start_ms)
        network.black_holes = {("a", "c")}
        network.nodes["a"].write()
        network.run_until_converged(HEADS_MS + 100)


def test_a_region_that_was_cut_off_catches_up_from_disk_and_each_commit_comes_about_once():
    """NET-2: bytes after a heal are in proportion to what was missing, not to the number of peers."""
    network = Network("abcd", mesh("abcd"), settings=GossipSettings(cache_bytes=20_000))
    network.run(3_000)
    network.cut_off("d")
    network.run(6_000)
    for _ in range(100):
        for name in "abc":
            network.nodes[name].write(10, size=300)
        network.run(50)
    network.run(2_000)
    missing = sum(len(blob) for blobs in network.nodes["a"].disk.commits.values() for blob in blobs)
    before = dict(network.sent)
    network.heal()
    network.run_until_converged(30_000)
    sent = network.sent["bytes"] - before["bytes"]
    commits = network.sent["commits"] - before["commits"]
    assert missing > 500_000
    assert commits <= 3_000 * 1.3
    assert sent <= missing * 1.3 + 200_000
    assert max(node.gossip._peers[name].credit_in.untaken for node in network.nodes.values() for name in "abcd") == 0


def test_catching_up_delays_nobody_else():
    network = Network("abc", mesh("abc"), settings=GossipSettings(cache_bytes=20_000))
    network.run(3_000)
    network.cut_off("c")
    network.run(6_000)
    network.nodes["a"].write(3_000, size=300)
    network.run(2_000)
    network.heal()
    network.run(700)
    network.nodes["a"].write()
    writer = network.nodes["a"].writer
    network.run(60)
    assert network.nodes["b"].log.applied[writer] == 3_001
    network.run_until_converged(10_000)


def test_links_that_flap_make_no_storm():
    """NET-4: heads are spaced, however often links come and go."""
    network = Network(NAMES, mesh(NAMES), redial_ms=10)
    network.run(3_000)
    before = network.sent["frames"]
    for index in range(100):
        network.hang_up(sorted(network.edges)[index % 10])
        network.run(50)
    per_second = (network.sent["frames"] - before) / 5 / 20
    assert per_second < 20  # frames in one direction of one link
