from __future__ import annotations

import random

import pytest

from regions.transport import peers
from simulator import Fault, dialling
from simulator.kernel import HeapKernel
from simulator.network import Packet, Verdict, Wire
from simulator.rules import Bandwidth, Delay, Drop, Duplicate, Garbage, Hold, Reorder
from tests.simulator.worlds import played


class Line:
    """A wire, and what arrives at its end."""

    def __init__(self, *, jitter=0.0, tail=0.0, per_s_bytes=0):
        self.kernel = HeapKernel()
        self.arrived = []
        self.hits = []
        self.wire = Wire(self.kernel, random.Random(1), 40_000, jitter=jitter, tail=tail, per_s_bytes=per_s_bytes)

    def send(self, message=b"frame", size=None):
        def arrive(what):
            self.arrived.append((self.kernel.now_us, what))

        return self.wire.send(Packet(len(message) if size is None else size, 0, message, arrive))

    def play(self, until_us=10**9):
        self.kernel.run(until_us)
        return self.arrived


def test_a_frame_takes_half_the_round_trip():
    line = Line()
    line.send()
    assert line.play() == [(40_000, b"frame")]


def test_order_is_kept_whatever_the_jitter():
    line = Line(jitter=2.0, tail=0.1)
    for number in range(200):
        line.send(bytes([number]))
    times = [at_us for at_us, _ in line.play()]
    assert [message[0] for _, message in line.arrived] == list(range(200))
    assert times == sorted(times)
    assert max(times) > 400_000


def test_bandwidth_queues():
    line = Line(per_s_bytes=1_000)
    for _ in range(3):
        line.send(size=100)
    assert [at_us for at_us, _ in line.play()] == [140_000, 240_000, 340_000]


def test_rules_compose_and_the_first_that_drops_has_spoken():
    line = Line()
    line.wire.rules += [Delay(line.hits.append, 5_000, 0), Drop(line.hits.append), Delay(line.hits.append, 9, 0)]
    assert line.send() is Verdict.DROP
    line.wire.remove(line.wire.rules[1])
    assert line.send() is None
    assert [at_us for at_us, _ in line.play()] == [45_009]
    assert line.hits == ["delayed", "dropped", "delayed", "delayed"]


def test_what_is_held_arrives_when_the_rule_is_taken_back():
    line = Line()
    rule = Hold(line.hits.append)
    line.wire.rules.append(rule)
    for number in range(3):
        assert line.send(bytes([number])) is Verdict.HOLD
    line.play(1_000_000)
    assert line.arrived == []
    line.wire.remove(rule)
    assert [message for _, message in line.play()] == [b"\0", b"\1", b"\2"]
    assert line.arrived[0][0] == 1_040_000


def test_what_is_held_may_be_released_in_another_order():
    line = Line()
    rule = Hold(line.hits.append, random.Random(1))
    line.wire.rules.append(rule)
    for number in range(9):
        line.send(bytes([number]))
    line.wire.remove(rule)
    order = [message[0] for _, message in line.play()]
    assert order != sorted(order)
    assert sorted(order) == list(range(9))


@pytest.mark.parametrize("make", [lambda hit: Drop(hit, 0.5), lambda hit: Garbage(hit, 0.5)])
def test_a_rate_hits_a_share_of_the_frames_and_no_handshake(make):
    line = Line()
    line.wire.rules.append(make(line.hits.append))
    for _ in range(200):
        line.send()
        line.wire.send(Packet(60, 0, None, lambda _: None))
    whole = sum(message == b"frame" for _, message in line.play())
    assert 60 < whole < 140
    assert len(line.hits) == 200 - whole


def test_frames_are_duplicated_and_overtake_one_another():
    line = Line()
    line.wire.rules += [Duplicate(line.hits.append, 0.3), Reorder(line.hits.append, 0.3, 200_000)]
    for number in range(100):
        line.send(bytes([number]))
    order = [message[0] for _, message in line.play()]
    assert len(order) > 110
    assert order != sorted(order)
    assert set(order) == set(range(100))


def test_a_narrow_link_delays_what_comes_behind():
    line = Line()
    line.wire.rules.append(Bandwidth(line.hits.append, 1_000, lambda: line.kernel.now_us))
    line.send(size=500)
    line.send(size=500)
    assert [at_us for at_us, _ in line.play()] == [540_000, 1_040_000]


# Connections -----------------------------------------------------------------------------------------


def test_times_of_dialling_are_those_of_the_node():
    assert dialling.REDIAL_US_MIN == peers.REDIAL_S_MIN * 1e6
    assert dialling.REDIAL_US_MAX == peers.REDIAL_S_MAX * 1e6
    assert dialling.REDIAL_FACTOR == peers.REDIAL_FACTOR
    assert dialling.SECOND_DIALLER_US == peers.SECOND_DIALLER_DELAY_S * 1e6
    assert dialling.LOOK_AGAIN_US == peers.LOOK_AGAIN_S * 1e6
    assert dialling.OPEN_TIMEOUT_US == peers.OPEN_TIMEOUT_S * 1e6


def linked(world):
    return {(node.name, peer) for node in world.regions.values() for peer in node.links}


ALL = {(a, b) for a in ("eu", "us", "ap") for b in ("eu", "us", "ap") if a != b}


def test_every_pair_has_one_link_that_both_ends_agree_on():
    world = played(loads=())
    assert linked(world) == ALL
    for node in world.regions.values():
        for peer, connection in node.links.items():
            assert world.regions[peer].links[node.region] is connection


def test_a_reset_link_is_dialled_again_soon():
    world = played(Fault("link_reset", 2_000, 0, ("eu<>us",)), loads=())
    ups = [r.at_s for r in world.trace.of("net.up") if "eu" in r.id and "us" in r.id and r.at_s > 2]
    assert ups
    assert ups[0] < 2.6
    assert linked(world) == ALL


def test_refused_links_stay_down_until_the_fault_ends():
    world = played(Fault("link_refuse", 1_000, 2_000, ("eu<>us",)), loads=())
    pair = [r for r in world.trace.of("net.up", "net.refused") if {r.node, r["peer"]} == {"eu", "us"} and r.at_s > 1]
    assert {r.kind for r in pair if r.at_s < 3} == {"net.refused"}
    assert linked(world) == ALL


def test_a_silent_link_is_given_up_by_the_replicas_themselves():
    world = played(Fault("link_black_hole", 1_000, 14_000, ("eu<>us",)), loads=(), heal_ms=15_000)
    downs = [r for r in world.trace.of("net.down") if {r.node, r["peer"]} == {"eu", "us"}]
    assert downs
    assert downs[0].at_s > 1
    assert linked(world) == ALL


def test_one_direction_is_lost_and_the_other_is_not():
    world = played(Fault("link_one_way", 1_000, 3_000, ("eu<>us",)), loads=())
    dropped = [r for r in world.trace.of("net.drop") if r["reason"] == "black hole"]
    assert {(r.node, r["peer"]) for r in dropped} == {("eu", "us")}


def cut_pairs(world, from_s, to_s):
    found = set()
    for record in world.trace.of("net.drop"):
        if from_s < record.at_s < to_s and record["reason"] == "black hole":
            found.add(frozenset((record.node, record["peer"])))
    return found


FIVE = ("a", "b", "c", "d", "e")


def pairs(text):
    return {frozenset(pair) for pair in text.split()}


@pytest.mark.parametrize(
    "kind, targets, expected",
    [
        ("isolate", ("a",), "ab ac ad ae"),
        ("halves", ("a", "b"), "ac ad ae bc bd be"),
        ("bridge", ("c",), "ad ae bd be"),
        ("majorities_ring", ("*",), "ac ad bd be ce"),
    ],
)
def test_topologies_cut_the_pairs_that_they_name(kind, targets, expected):
    world = played(Fault(kind, 1_500, 3_000, targets), loads=(), regions=FIVE, heal_ms=4_500, duration_ms=4_600)
    assert cut_pairs(world, 1.5, 4.5) == pairs(expected)


def test_a_flapping_link_goes_and_comes():
    world = played(Fault("flapping", 1_000, 3_500, ("eu<>us",), {"period_ms": 1_000, "how": "reset"}), loads=())
    ups = [r for r in world.trace.of("net.up") if {r.node, r["peer"]} == {"eu", "us"} and r.at_s > 1]
    assert len(ups) >= 4
    assert linked(world) == ALL
