"""One replica's gossip, against real peers over a fake wire, and against hand-made frames."""

from __future__ import annotations

import itertools

import cbor2
import pytest

from crdtsync.clock import Now, make_stamp
from crdtsync.coordination.membership import Membership
from crdtsync.effects import Disconnect, Effect, Notify, ReadCommits, ReadRows, Send, TaskRow
from crdtsync.events import Expired
from crdtsync.gossip.arrived import (
    AckArrived,
    CommitsArrived,
    OwnHeadsArrived,
    PeerClosed,
    PeerOpened,
    SnapshotAborted,
    SnapshotDone,
    SnapshotOffered,
    SnapshotRows,
    TwinMet,
)
from crdtsync.gossip.settings import GossipSettings
from crdtsync.identifiers import DEFAULT_DOMAIN, Domain, RegionId, TaskId, writer_id
from crdtsync.log.domain_log import DomainLog
from crdtsync.log.heads import Heads
from crdtsync.log.stability import Ack
from crdtsync.protocol import features
from crdtsync.protocol import peer_messages as m
from crdtsync.protocol.session import Identity, Refusal, SessionState
from tests.gossip_network import DOMAIN, Network, Node, line, mesh

EU, US, AP = RegionId("eu"), RegionId("us"), RegionId("ap")
SETTINGS = GossipSettings()


class Fake:
    """The other end of a link to one gossip, speaking by hand."""

    def __init__(self, node: Node, region: str = "us", incarnation: int = 1) -> None:
        self.node = node
        self.gossip = node.gossip
        self.region = RegionId(region)
        self.writer = writer_id(region, "f", incarnation, bytes(8))
        self.number = 0
        self.messages: list[m.PeerMessage] = []
        self.others: list[Effect] = []

    @property
    def now(self) -> Now:
        return self.node.network.now

    def connect(self) -> None:
        self.number = 0
        self.gossip.connected(self.region, self.now)

    def hello(self, **changes) -> list:
        members = tuple(RegionId(name) for name in self.node.network.names)
        identity = Identity("test", self.region, self.writer, Membership.founding(members), (DOMAIN,), features.OURS)
        return self.say(identity.hello(1 << 20)._replace(**changes))

    def open(self) -> list:
        self.connect()
        arrived = self.hello()
        self.drain()
        return arrived

    def say(self, message: m.PeerMessage, *, skip: int = 0) -> list:
        self.number += 1 + skip
        return self.gossip.receive(self.region, m.encode_frame(self.number, message), self.now)

    def drain(self) -> list[m.PeerMessage]:
        """What it says to us since the last time; other effects stay in `others`, those for other fakes with the node."""
        pending = self.node.__dict__.setdefault("effects", [])
        pending += self.gossip.take_effects()
        ours = [effect for effect in pending if isinstance(effect, Send) and effect.peer == self.region]
        self.others += [effect for effect in pending if not isinstance(effect, Send)]
        pending[:] = [effect for effect in pending if isinstance(effect, Send) and effect.peer != self.region]
        said = [part for effect in ours for part in m.parts_of(m.decode_frame(effect.message).message)]
        self.messages += said
        return said

    def heads(self, have: Heads | None = None, **changes) -> m.HeadsHeard:
        whole = m.VectorDelta(full=True, entries=tuple((have or Heads()).items()))
        nothing = m.VectorDelta(full=True, entries=())
        message = m.HeadsHeard(DOMAIN, 0, 0, 0, (), whole, whole, nothing, b"")
        return message._replace(**changes) if changes else message

    def disconnects(self) -> list[str]:
        self.drain()
        return [effect.reason for effect in self.others if isinstance(effect, Disconnect)]

    def notes(self, what: str) -> list[Notify]:
        self.drain()
        return [effect for effect in self.others if isinstance(effect, Notify) and effect.what == what]


def lone(region: str = "eu", members: str = "ap eu us", settings: GossipSettings | None = None) -> Node:
    """A node that nobody is linked to."""
    return Network(members.split(), [], settings=settings).nodes[region]


def said_in(frame: bytes) -> tuple[m.PeerMessage, ...]:
    return m.parts_of(m.decode_frame(frame).message)


def of_kind(items: list, kind: type) -> list:
    return [item for item in items if isinstance(item, kind)]


# Links -----------------------------------------------------------------------------------------------------------------


def test_a_link_opens_with_a_hello_each_and_heads():
    fake = Fake(lone())
    fake.connect()
    (hello,) = fake.drain()
    assert hello == m.Hello(1, "test", EU, fake.node.writer, features.OURS, 1, (DOMAIN,), SETTINGS.credit_bytes)
    assert fake.hello() == [PeerOpened(US, fake.writer, features.OURS)]
    kinds = [type(message) for message in fake.drain()]
    assert kinds == [m.OwnHeadsQuestion, m.HeadsHeard, m.Ping]
    assert fake.gossip.open_peers() == (US,)


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"version": 2}, Refusal.VERSION),
        ({"cluster": "other"}, Refusal.CLUSTER),
        ({"region": AP, "writer": writer_id("ap", "f", 1, bytes(8))}, Refusal.IDENTITY),
        ({"writer": writer_id("ap", "f", 1, bytes(8))}, Refusal.IDENTITY),
    ],
)
def test_a_wrong_hello_is_refused_with_its_reason(changes, reason):
    fake = Fake(lone())
    fake.connect()
    fake.drain()
    assert fake.hello(**changes) == []
    (refused,) = fake.drain()
    assert refused.reason == reason
    assert fake.disconnects() == [f"refused: {reason}"]
    assert fake.gossip.open_peers() == ()
    assert fake.gossip.counters["refused"] == 1
    assert fake.gossip.receive(US, b"\xff", fake.now) == []  # what is still under way is ignored
    assert fake.disconnects() == [f"refused: {reason}"]


def test_a_stranger_gets_no_session():
    fake = Fake(lone(), "xx")
    fake.connect()
    assert fake.disconnects() == ["not_member"]
    assert not fake.gossip.allowed(RegionId("xx"))
    fake.hello()
    assert fake.disconnects() == ["not_member", "no session"]


def test_another_incarnation_of_this_region_raises_an_alarm():
    fake = Fake(lone(), "eu", incarnation=2)
    assert not fake.gossip.allowed(EU)
    fake.connect()
    assert fake.hello() == [TwinMet(fake.writer)]
    assert fake.notes("gossip.twin")[0].level == "alarm"
    assert fake.disconnects() == ["refused: same_region"]


def test_a_node_that_dialled_itself_is_refused_without_an_alarm():
    fake = Fake(lone(), "eu")
    fake.writer = fake.node.writer
    fake.connect()
    assert fake.hello() == []
    assert fake.disconnects() == ["refused: self"]
    assert not fake.notes("gossip.twin")


def test_nothing_is_heard_before_the_hello_and_only_one_of_them():
    fake = Fake(lone())
    fake.connect()
    fake.say(m.Credit(5))
    assert "not allowed while greeting" in fake.disconnects()[0]
    fake = Fake(lone())
    fake.open()
    fake.hello()
    assert "not allowed while open" in fake.disconnects()[0]


def test_a_link_that_does_not_say_hello_is_closed():
    fake = Fake(lone())
    fake.connect()
    assert fake.gossip.next_deadline_ms() == fake.now.mono_ms + SETTINGS.hello_timeout_ms
    fake.node.network.mono_ms += SETTINGS.hello_timeout_ms
    fake.gossip.tick(fake.now)
    assert fake.disconnects() == ["no Hello"]
    assert fake.gossip.next_deadline_ms() is None


def test_a_new_link_replaces_the_old_one():
    fake = Fake(lone())
    fake.open()
    fake.number = 0
    assert fake.gossip.connected(US, fake.now) == [PeerClosed(US, "replaced")]
    assert fake.hello() == [PeerOpened(US, fake.writer, features.OURS)]


def test_frames_without_a_link_are_answered_by_closing_it():
    fake = Fake(lone())
    assert fake.hello() == []
    assert fake.disconnects() == ["no session"]
    assert fake.gossip.disconnected(US, fake.now) == []


def test_a_peer_that_refuses_us_is_remembered():
    fake = Fake(lone())
    fake.connect()
    fake.say(m.HelloRefused("cut", "game day"))
    assert fake.disconnects() == ["refused by the peer: cut"]
    fake.gossip.disconnected(US, fake.now)
    record = next(r for r in fake.gossip.regions(fake.now) if r["region"] == US)
    assert (record["status"], record["refused"]) == ("unreachable", "cut")


def test_leaving_says_bye():
    fake = Fake(lone())
    fake.open()
    fake.gossip.close("draining")
    assert fake.drain() == [m.Bye("draining")]
    assert fake.disconnects() == ["draining"]
    fake = Fake(lone())
    fake.open()
    fake.say(m.Bye("draining"))
    assert fake.disconnects() == ["the peer left: draining"]
    assert fake.gossip.disconnected(US, fake.now) == [PeerClosed(US, "the peer left: draining")]


def test_a_cut_drops_the_link_and_refuses_new_ones_until_it_is_healed():
    fake = Fake(lone())
    fake.open()
    fake.gossip.set_cut([US])
    assert fake.drain() == [m.HelloRefused("cut", "cut by an operator")]
    assert fake.disconnects() == ["refused: cut"]
    fake.gossip.disconnected(US, fake.now)
    assert not fake.gossip.allowed(US)
    assert fake.gossip.allowed(AP)
    fake.connect()
    assert fake.disconnects() == ["refused: cut"] * 2
    assert next(r for r in fake.gossip.regions(fake.now) if r["region"] == US)["status"] == "cut"
    fake.gossip.disconnected(US, fake.now)
    fake.gossip.set_cut([])
    assert of_kind(fake.open(), PeerOpened)


def test_an_unknown_kind_is_counted_and_ignored():
    fake = Fake(lone())
    fake.open()
    fake.gossip.receive(US, cbor2.dumps([77, 2, "of a later version"]), fake.now)
    assert fake.gossip.counters["unknown_kinds"] == 1
    assert fake.disconnects() == []


@pytest.mark.parametrize(
    "message",
    [
        m.Commits(Domain("elsewhere"), 0, ()),
        m.SnapshotRequest(Domain("elsewhere")),
        m.Ping(0, 0, 999, 0, ()),  # has seen frames that were never sent
        m.Ping(0, 0, 1, 2, ()),  # missed more than there were
        m.AckHeard(DOMAIN, US, writer_id("ap", "n", 1, bytes(8)), 1, m.VectorDelta(full=True, entries=()), 0),
        m.OwnHeadsAnswer(
            writer_id("eu", "n", 1, bytes(8)),
            US,
            (m.OwnHeads(DOMAIN, ((writer_id("us", "n", 1, bytes(8)), 1),), None),),
        ),
        m.Commits(DOMAIN, 0, (m.Run(writer_id("us", "n", 1, bytes(8)), 1, (b"not a commit",)),)),
    ],
)
def test_who_breaks_the_rules_is_disconnected_and_nobody_else(message):
    node = lone()
    fake, other = Fake(node), Fake(node, "ap")
    fake.open()
    other.open()
    assert fake.say(message) == []
    assert len(fake.disconnects()) == 1
    assert fake.gossip.counters["protocol_errors"] == 1
    assert other.gossip.open_peers() == (AP,)
    assert fake.notes("gossip.protocol_error")[0].facts["peer"] == US


# Time ------------------------------------------------------------------------------------------------------------------


def test_pings_measure_the_peers_clock():
    fake = Fake(lone())
    fake.connect()
    fake.hello()
    (ping,) = of_kind(fake.drain(), m.Ping)
    fake.node.network.mono_ms += 80
    fake.say(m.Pong(ping.mono_ms, ping.wall_ms, ping.wall_ms + 340, ping.wall_ms + 340))
    offset = fake.gossip.offset(US, fake.now)
    assert (offset.offset_ms, offset.rtt_ms, offset.uncertainty_ms) == (300, 80, 41)
    assert fake.gossip.offset(AP, fake.now) is None


def test_a_ping_is_answered_at_once():
    fake = Fake(lone())
    fake.open()
    fake.say(m.Ping(5, 6, 0, 0, ()))
    wall_ms = fake.now.wall_ms
    assert of_kind(fake.drain(), m.Pong) == [m.Pong(5, 6, wall_ms, wall_ms)]


def test_a_silent_link_is_suspected_and_then_closed():
    fake = Fake(lone())
    fake.open()
    for _ in range(4):
        fake.node.network.mono_ms += 1_000
        fake.gossip.tick(fake.now)
    assert [r["status"] for r in fake.gossip.regions(fake.now) if r["region"] == US] == ["suspect"]
    assert fake.notes("gossip.suspect")
    assert fake.disconnects() == []
    fake.node.network.mono_ms += 1_000
    fake.gossip.tick(fake.now)
    assert fake.disconnects() == ["nothing heard"]
    assert fake.gossip.open_peers() == ()


def test_a_suspected_peer_that_speaks_again_is_up():
    fake = Fake(lone())
    fake.open()
    for _ in range(4):
        fake.node.network.mono_ms += 1_000
        fake.gossip.tick(fake.now)
    fake.say(m.Credit(1))
    fake.gossip.tick(fake.now)
    assert fake.notes("gossip.unsuspect")
    assert [r["status"] for r in fake.gossip.regions(fake.now) if r["region"] == US] == ["up"]


def test_our_own_pause_disconnects_nobody():
    """A suspended machine wakes up with its peers' frames still unread."""
    fake = Fake(lone())
    fake.open()
    fake.node.network.mono_ms += 60_000
    fake.gossip.tick(fake.now)
    assert fake.disconnects() == []
    for _ in range(5):
        fake.node.network.mono_ms += 1_000
        fake.gossip.tick(fake.now)
    assert fake.disconnects() == ["nothing heard"]


def test_a_dead_link_is_given_up_also_by_a_node_that_hardly_gets_to_run():
    fake = Fake(lone())
    fake.open()
    for _ in range(12):
        fake.node.network.mono_ms += SETTINGS.pause_ms + 500
        fake.gossip.tick(fake.now)
    assert fake.disconnects() == ["nothing heard"]


def test_without_any_sign_a_region_becomes_silent():
    node = lone()
    node.gossip.tick(node.network.now)
    status = {r["region"]: r["status"] for r in node.gossip.regions(node.network.now)}
    assert status == {EU: "self", US: "unreachable", AP: "unreachable"}
    node.network.mono_ms += SETTINGS.silent_after_ms
    status = {r["region"]: r["status"] for r in node.gossip.regions(node.network.now)}
    assert status == {EU: "self", US: "silent", AP: "silent"}


def test_a_region_behind_another_is_no_silence():
    network = Network(["ap", "eu", "us"], line(["ap", "eu", "us"]))
    network.run(60_000)
    ap, us = network.nodes["ap"], network.nodes["us"]
    heard_ms = ap.gossip.last_heard(us.region)
    assert network.mono_ms - heard_ms < 3_000  # lost_after of `crdtsync dev`
    assert {r["region"]: r["status"] for r in ap.gossip.regions(network.now)} == {
        AP: "self",
        EU: "up",
        US: "unreachable",
    }
    network.cut_off("us")
    network.run(10_000)
    assert network.mono_ms - ap.gossip.last_heard(us.region) > 8_500


def test_heads_are_exchanged_at_least_every_three_seconds_and_not_in_step():
    network = Network(["ap", "eu", "us"], mesh(["ap", "eu", "us"]))
    network.run(5_000)
    network.recording = True
    times: dict[tuple[str, str], list[int]] = {}
    for _ in range(600):
        network.frames.clear()
        network.run(50)
        for source, peer, frame in network.frames:
            if of_kind(said_in(frame), m.HeadsHeard):
                times.setdefault((source, peer), []).append(network.mono_ms)
    gaps = {pair: [b - a for a, b in itertools.pairwise(at)] for pair, at in times.items()}
    assert len(gaps) == 6
    assert all(1_500 - SETTINGS.slack_ms - 50 <= gap <= 3_000 for each in gaps.values() for gap in each)
    assert len({tuple(each) for each in gaps.values()}) == 6


def test_a_peer_hears_soon_that_we_missed_a_frame():
    fake = Fake(lone())
    fake.open()
    fake.say(m.Credit(1), skip=2)
    fake.node.network.mono_ms += SETTINGS.heads_spacing_ms
    fake.gossip.tick(fake.now)
    (heads,) = of_kind(fake.drain(), m.HeadsHeard)
    assert (heads.seen, heads.missed) == (4, 2)
    assert fake.gossip.counters["frames_lost"] == 2


def test_who_missed_a_frame_of_ours_hears_everything_again_whole():
    fake = Fake(lone())
    fake.node.write(2)
    fake.node.network.run(100)
    fake.open()
    fake.drain()
    fake.say(m.Ping(0, 0, 3, 1, ()))
    fake.node.network.mono_ms += SETTINGS.heads_spacing_ms
    fake.gossip.tick(fake.now)
    said = fake.drain()
    (heads,) = of_kind(said, m.HeadsHeard)
    whole = m.VectorDelta(full=True, entries=((fake.node.writer, 2),))
    assert (heads.have, heads.applied) == (whole, whole)
    assert [ack.heads for ack in of_kind(said, m.AckHeard)] == [whole]


def test_peers_hear_soon_to_whom_we_are_linked():
    node = lone()
    us, ap = Fake(node), Fake(node, "ap")

    def links() -> list[tuple[RegionId, ...]]:
        node.network.mono_ms += SETTINGS.heads_spacing_ms
        node.gossip.tick(node.network.now)
        return [heads.links for heads in of_kind(us.drain(), m.HeadsHeard)]

    us.open()
    assert links() == []
    ap.open()
    assert links() == [(AP,)]
    node.gossip.disconnected(AP, node.network.now)
    assert links() == [()]


def test_a_quiet_cluster_says_only_heads_and_pings():
    """NET-3."""
    network = Network(["ap", "eu", "us"], mesh(["ap", "eu", "us"]))
    for node in network.nodes.values():
        node.write(20)
    network.run(10_000)
    network.recording = True
    network.run(60_000)
    kinds = {type(message) for _, _, frame in network.frames for message in said_in(frame)}
    assert kinds == {m.HeadsHeard, m.Ping, m.Pong}
    per_second = sum(len(frame) for _, _, frame in network.frames) / 60 / 6
    assert per_second < 150  # bytes, in one direction of one link


# Credits ---------------------------------------------------------------------------------------------------------------


def test_a_peer_is_sent_no_more_than_it_granted():
    node = lone()
    node.write(100, size=1_000)
    node.network.run(100)
    fake = Fake(node)
    fake.connect()
    fake.hello(granted=5_000)
    fake.say(fake.heads())
    sent = sum(len(run.blobs) for each in of_kind(fake.drain(), m.Commits) for run in each.runs)
    assert 1 <= sent <= 6
    fake.say(m.Credit(15_000))
    more = sum(len(run.blobs) for each in of_kind(fake.drain(), m.Commits) for run in each.runs)
    assert 1 <= more <= 12


def test_credit_comes_back_only_once_what_came_is_taken():
    source = lone("us")
    source.write(300, size=2_000)
    source.network.run(100)
    node = lone(settings=GossipSettings(credit_bytes=100_000))
    fake = Fake(node)
    fake.open()
    offset, sizes = 0, []
    for number in range(1, 41):
        blob = source.disk.commits[source.writer][number - 1]
        message = m.Commits(DOMAIN, offset, (m.Run(source.writer, number, (blob,)),))
        (item,) = fake.say(message)
        assert isinstance(item, CommitsArrived)
        offset += item.size
        sizes.append(item.size)
    assert not of_kind(fake.drain(), m.Credit)
    for size in sizes:
        node.gossip.taken(US, size, node.network.now)
    granted = of_kind(fake.drain(), m.Credit)[-1].granted
    assert offset + 75_000 < granted <= offset + 100_000


def test_a_peer_that_sends_beyond_its_credit_is_disconnected():
    source = lone("us")
    source.write(1)
    source.network.run(100)
    blob = source.disk.commits[source.writer][0]
    fake = Fake(lone())
    fake.open()
    fake.say(m.Commits(DOMAIN, 50 << 20, (m.Run(source.writer, 1, (blob,)),)))
    assert "granted" in fake.disconnects()[0]


def test_commits_of_a_region_that_is_no_member_are_dropped():
    stranger = Network(["xx"], []).nodes["xx"]
    stranger.write(1)
    stranger.network.run(100)
    fake = Fake(lone())
    fake.open()
    blob = stranger.disk.commits[stranger.writer][0]
    assert fake.say(m.Commits(DOMAIN, 0, (m.Run(stranger.writer, 1, (blob,)),))) == []
    assert fake.gossip.counters["commits_of_strangers"] == 1
    assert fake.disconnects() == []


def test_a_backlog_is_left_to_its_origin_unless_that_has_lost_its_disk():
    source = lone("ap")
    source.write(5)
    source.network.run(100)
    node = lone()
    for blob in source.disk.commits[source.writer]:
        node.log.restore_commit(blob)
    for held, sent in ((Heads({source.writer: 5}), []), (Heads({source.writer: 2}), [3, 4, 5])):
        us, ap = Fake(node), Fake(node, "ap", incarnation=2)
        ap.open()
        ap.say(ap.heads(held))
        ap.drain()
        us.open()
        us.say(us.heads(Heads({source.writer: 2}), links=(AP,)))
        us.drain()
        reads = of_kind(us.others, ReadCommits)
        assert [read.first for read in reads] == sent[:1]
        for region in (US, AP):
            node.gossip.disconnected(region, us.now)


def test_what_is_read_for_a_link_that_closed_goes_nowhere():
    node = lone()
    node.write(2)
    node.network.run(100)
    node.gossip._transfer._cache = type(node.gossip._transfer._cache)(0)
    fake = Fake(node)
    fake.open()
    fake.say(fake.heads())
    fake.drain()
    (read,) = of_kind(fake.others, ReadCommits)
    assert (read.writer, read.first) == (node.writer, 1)
    fake.open()  # another link
    blobs = node.disk.read(node.writer, 1, 10_000)
    node.gossip.commits_read(read.token, blobs, fake.now)
    assert fake.drain() == []
    fake.say(fake.heads())
    fake.drain()
    again = of_kind(fake.others, ReadCommits)[-1]
    assert again.token != read.token
    node.gossip.commits_read(again.token, blobs, fake.now)
    assert of_kind(fake.drain(), m.Commits) == [m.Commits(DOMAIN, 0, (m.Run(node.writer, 1, tuple(blobs)),))]


# Acknowledgements, own heads, digests ----------------------------------------------------------------------------------


def test_acknowledgements_are_gathered_for_a_moment():
    fake = Fake(lone())
    fake.open()
    node = fake.node
    for number in range(1, 20):
        ack = Ack(EU, node.writer, number, Heads({node.writer: number}))
        node.gossip.acknowledge(DOMAIN, ack, fake.now)
    assert fake.drain() == []
    assert node.gossip.next_deadline_ms() == fake.now.mono_ms + SETTINGS.ack_spread_ms
    node.network.mono_ms += SETTINGS.ack_spread_ms
    node.gossip.tick(fake.now)
    (said,) = of_kind(fake.drain(), m.AckHeard)
    assert (said.member, said.number) == (EU, 19)
    node.gossip.acknowledge(DOMAIN, ack, fake.now)  # nothing new
    node.network.mono_ms += SETTINGS.ack_spread_ms
    node.gossip.tick(fake.now)
    assert not of_kind(fake.drain(), m.AckHeard)


def test_who_wrote_what_is_acknowledged_hears_of_it_before_the_others():
    """It owns the work and settles it by that; the others only learn that what they hold is settled."""
    node = lone()
    us, ap = Fake(node), Fake(node, "ap")
    us.open()
    ap.open()
    theirs = us.writer
    node.gossip.acknowledge(DOMAIN, Ack(EU, node.writer, 0, Heads({theirs: 1})), us.now)
    assert node.gossip.next_deadline_ms() == us.now.mono_ms + SETTINGS.ack_delay_ms
    node.network.mono_ms += SETTINGS.ack_delay_ms
    node.gossip.tick(us.now)
    assert len(of_kind(us.drain(), m.AckHeard)) == 1
    assert not of_kind(ap.drain(), m.AckHeard)
    node.network.mono_ms += SETTINGS.ack_spread_ms - SETTINGS.ack_delay_ms
    node.gossip.tick(us.now)
    assert not of_kind(us.drain(), m.AckHeard)
    assert len(of_kind(ap.drain(), m.AckHeard)) == 1


def test_an_acknowledgement_rides_with_whatever_leaves_before_it_is_due():
    fake = Fake(lone())
    fake.open()
    node = fake.node
    node.gossip.acknowledge(DOMAIN, Ack(EU, node.writer, 1, Heads({node.writer: 1})), fake.now)
    fake.say(m.Ping(5, 6, 0, 0, ()))
    (frame,) = [effect.message for effect in node.gossip.take_effects() if isinstance(effect, Send)]
    pong, ack = m.decode_frame(frame).message.messages
    assert (pong, ack.member) == (m.Pong(5, 6, fake.now.wall_ms, fake.now.wall_ms), EU)


def test_a_peer_that_reads_no_bundles_is_sent_none():
    fake = Fake(lone())
    fake.connect()
    fake.hello(features=0)
    node = fake.node
    node.gossip.acknowledge(DOMAIN, Ack(EU, node.writer, 1, Heads({node.writer: 1})), fake.now)
    node.network.mono_ms += 5_000
    node.gossip.tick(fake.now)
    frames = [m.decode_frame(e.message).message for e in node.gossip.take_effects() if isinstance(e, Send)]
    assert {m.Ping, m.HeadsHeard, m.AckHeard} <= set(map(type, frames))


def test_what_came_in_a_bundle_before_something_wrong_is_taken():
    """Commits that were counted against their credit must not be lost with the link."""
    fake = Fake(lone())
    fake.open()
    writer = writer_id("ap", "n", 1, bytes(8))
    heads = m.VectorDelta(full=True, entries=((writer, 3),))
    good, bad = m.AckHeard(DOMAIN, AP, writer, 3, heads, 7), m.AckHeard(DOMAIN, EU, writer, 3, heads, 7)
    (item,) = fake.say(m.Bundle((good, bad)))
    assert item.ack.member == AP
    assert fake.disconnects() == [f"protocol error: {writer} cannot acknowledge for eu"]


def test_while_recovering_nothing_is_acknowledged():
    fake = Fake(lone())
    node = fake.node
    node.gossip.recovering = True
    ack = Ack(EU, node.writer, 1, Heads({node.writer: 1}))
    node.gossip.acknowledge(DOMAIN, ack, fake.now)
    fake.open()
    node.network.mono_ms += 3_000
    node.gossip.tick(fake.now)
    assert of_kind(fake.messages, m.AckHeard) == []
    assert of_kind(fake.drain(), m.AckHeard) == []
    node.gossip.recovering = False
    node.gossip.acknowledge(DOMAIN, ack, fake.now)
    node.network.mono_ms += SETTINGS.ack_spread_ms
    node.gossip.tick(fake.now)
    assert len(of_kind(fake.drain(), m.AckHeard)) == 1


def test_who_begins_to_recover_stops_repeating_what_it_acknowledged():
    fake = Fake(lone())
    node = fake.node
    node.write()
    node.network.run(100)
    node.gossip.recovering = True
    fake.connect()
    fake.hello()
    assert of_kind(fake.drain(), m.AckHeard) == []


def test_a_relayed_acknowledgement_is_offered_with_its_age():
    fake = Fake(lone())
    fake.open()
    ap_writer = writer_id("ap", "n", 1, bytes(8))
    heads = m.VectorDelta(full=True, entries=((ap_writer, 3),))
    (item,) = fake.say(m.AckHeard(DOMAIN, AP, ap_writer, 3, heads, 700))
    assert item == AckArrived(US, DOMAIN, Ack(AP, ap_writer, 3, Heads({ap_writer: 3})))
    heard = fake.node.stability.latest()[AP]
    assert heard.mono_ms == fake.now.mono_ms - 700
    assert fake.gossip.last_heard(AP) == fake.now.mono_ms - 700
    assert fake.say(m.AckHeard(DOMAIN, AP, ap_writer, 3, heads, 0)) == []  # known already
    assert fake.gossip.last_heard(AP) == fake.now.mono_ms - 700


def test_acknowledgements_travel_along_a_line():
    network = Network("abcd", line("abcd"))
    network.run(1_000)
    network.nodes["a"].write(3)
    network.run(1_000)
    for node in network.nodes.values():
        assert node.stability.latest().keys() == set("abcd")
        assert node.stability.stable()[network.nodes["a"].writer] == 3


def test_in_a_full_mesh_nobody_relays_acknowledgements():
    network = Network("abcd", mesh("abcd"))
    network.run(3_000)
    network.recording = True
    network.nodes["a"].write(3)
    network.run(5_000)
    relayed = [
        message.member
        for source, _, frame in network.frames
        if isinstance(message := m.decode_frame(frame).message, m.AckHeard) and message.member != source
    ]
    assert relayed == []


def test_own_heads_are_asked_for_on_every_link_until_they_are_answered():
    fake = Fake(lone())
    fake.connect()
    fake.hello()
    assert of_kind(fake.drain(), m.OwnHeadsQuestion)
    fake.node.network.mono_ms += 3_000
    fake.gossip.tick(fake.now)
    assert of_kind(fake.drain(), m.OwnHeadsQuestion)
    before = writer_id("eu", "a", 0, bytes(8))
    last = (before, 4, ((before, 4),))
    answer = m.OwnHeadsAnswer(fake.node.writer, US, (m.OwnHeads(DOMAIN, ((before, 5),), last),))
    assert fake.say(answer._replace(writer=before)) == []  # to an earlier incarnation
    (item,) = fake.say(answer)
    assert item == OwnHeadsArrived(US, DOMAIN, Heads({before: 5}), Ack(EU, before, 4, Heads({before: 4})))
    assert fake.gossip.unanswered == {AP}
    fake.node.network.mono_ms += 3_000
    fake.gossip.tick(fake.now)
    (question,) = of_kind(fake.drain(), m.OwnHeadsQuestion)
    assert question.wanted == (AP,)
    assert fake.say(answer) == []
    fake.say(answer._replace(member=AP))  # that it came over a relay does not matter
    assert fake.gossip.unanswered == set()
    fake.node.network.mono_ms += 3_000
    fake.gossip.tick(fake.now)
    assert not of_kind(fake.drain(), m.OwnHeadsQuestion)


def test_a_region_without_a_link_to_a_member_gets_its_answer_over_others():
    """Or one dead link of a mesh would keep a restarted region from acknowledging for good."""
    network = Network("abcd", line("abcd"))
    network.run(1_000)
    old = network.nodes["a"]
    old.write(3)
    network.run(8_000)
    assert [sorted(node.gossip.unanswered) for node in network.nodes.values()] == [[], [], [], []]
    network.restart("a")
    network.run(3_000)
    assert network.nodes["a"].gossip.unanswered == set()
    answers = {item.peer: item for item in of_kind(network.nodes["a"].arrived, OwnHeadsArrived)}
    assert answers.keys() == set("bcd")
    assert {item.heads[old.writer] for item in answers.values()} == {3}
    network.recording = True
    network.run(10_000)
    kinds = {type(message) for _, _, frame in network.frames for message in said_in(frame)}
    assert kinds == {m.HeadsHeard, m.Ping, m.Pong}


def test_nobody_answers_for_an_asker_while_it_knows_more_of_it_than_is_on_its_disk():
    """It may act on that soon, and the asker, on an older disk, would not know (found by the model of limits)."""
    fake = Fake(lone())
    fake.connect()
    before = writer_id("us", "f", 0, bytes(8))
    old = DomainLog(DOMAIN, before)
    fake.hello()
    fake.drain()
    commit = old.append([Expired(TaskId(bytes(16)), False)], make_stamp(1_000, 0))
    fake.node.log.receive(commit.blob, 1 << 60)
    question = m.OwnHeadsQuestion(fake.writer, 1, (EU,))
    fake.say(question)
    assert of_kind(fake.drain(), m.OwnHeadsAnswer) == []
    fake.node.log.mark_durable(fake.node.log.have, fake.node.log.applied)
    fake.say(question._replace(round=2))
    (answer,) = of_kind(fake.drain(), m.OwnHeadsAnswer)
    assert answer.domains[0].heads == ((before, 1),)


def test_a_question_is_flooded_once_per_round_and_not_back():
    node = lone(members="ap eu sa us")
    us, ap, sa = Fake(node), Fake(node, "ap"), Fake(node, "sa")
    for fake in (us, ap, sa):
        fake.open()
    for fake in (us, ap, sa):
        fake.drain()
    wanted = (AP, RegionId("br"), EU)  # br is no member
    for asker, number in ((us, 5), (ap, 5), (us, 5), (us, 4)):
        asker.say(m.OwnHeadsQuestion(us.writer, number, wanted))
    said = {fake.region: of_kind(fake.drain(), m.OwnHeadsQuestion) for fake in (us, ap, sa)}
    question = m.OwnHeadsQuestion(us.writer, 5, (AP,))
    assert said == {US: [], AP: [question], "sa": [question]}
    us.say(m.OwnHeadsQuestion(us.writer, 6, wanted))
    assert of_kind(sa.drain(), m.OwnHeadsQuestion) == [question._replace(round=6)]
    sa.say(m.OwnHeadsQuestion(us.writer, 7, wanted))
    assert of_kind(us.drain(), m.OwnHeadsQuestion) == []  # it is its own


def test_who_has_a_link_is_asked_over_it_alone():
    node = lone()
    us, ap = Fake(node), Fake(node, "ap")
    for fake, wanted in ((us, (AP, US)), (ap, (AP,))):
        fake.connect()
        fake.hello()
        (question,) = of_kind(fake.drain(), m.OwnHeadsQuestion)
        assert question.wanted == wanted


def test_an_answer_to_an_older_incarnation_is_not_passed_on():
    node = lone()
    us, ap = Fake(node), Fake(node, "ap")
    us.open()
    ap.open()
    us.say(m.OwnHeadsQuestion(us.writer, 1, (EU, AP)))
    answer = m.OwnHeadsAnswer(us.writer, AP, ())
    ap.say(answer)
    us.drain()
    us.say(m.OwnHeadsQuestion(us.writer, 2, (AP,)))
    assert of_kind(us.drain(), m.OwnHeadsAnswer) == [answer]
    newer = writer_id("us", "f", 2, bytes(8))
    us.say(m.OwnHeadsQuestion(newer, 1, (AP,)))
    ap.say(answer)
    us.say(m.OwnHeadsQuestion(newer, 1, (AP,)))
    us.say(m.OwnHeadsQuestion(us.writer, 2, (AP,)))
    assert of_kind(us.drain(), m.OwnHeadsAnswer) == []


def test_a_restarted_region_learns_what_the_others_have_of_it():
    network = Network(["ap", "eu", "us"], mesh(["ap", "eu", "us"]))
    network.run(1_000)
    old = network.nodes["eu"]
    old.write(7)
    network.run(2_000)
    old.disk.commits[old.writer] = old.disk.commits[old.writer][:2]  # the disk lost its tail
    network.restart("eu")
    network.run(3_000)
    answers = of_kind(network.nodes["eu"].arrived, OwnHeadsArrived)
    assert {item.peer for item in answers} == {AP, US}
    for item in answers:
        assert item.heads == Heads({old.writer: 7})
        assert item.last_ack.heads[old.writer] == 7
    assert network.nodes["eu"].gossip.unanswered == set()
    assert network.nodes["eu"].log.durable_have[old.writer] == 7


def test_equal_heads_with_unequal_digests_raise_the_alarm_once():
    network = Network(["eu", "us"], mesh(["eu", "us"]))
    network.nodes["us"].digest_salt = b"a bug"
    network.nodes["eu"].write(1)
    network.run(20_000)
    for node in network.nodes.values():
        alarms = [note for note in node.notes if note.what == "gossip.divergence"]
        at = [str(alarm.facts["heads"]) for alarm in alarms]
        assert len(at) == len(set(at)) >= 1
        assert alarms[0].level == "alarm"
        assert [r["diverged"] for r in node.gossip.regions(network.now) if not r["self"]] == [True]
    network.nodes["us"].digest_salt = b""
    network.nodes["eu"].write(1)
    network.run(5_000)
    assert [r["diverged"] for r in network.nodes["eu"].gossip.regions(network.now) if not r["self"]] == [False]


# Status ----------------------------------------------------------------------------------------------------------------


def test_region_records_say_who_is_behind():
    network = Network(["ap", "eu", "us"], mesh(["ap", "eu", "us"]))
    network.run(3_000)
    network.cut_off("ap")
    network.run(6_000)
    network.nodes["eu"].write(5)
    network.nodes["ap"].write(2)
    network.run(3_000)
    records = {r["region"]: r for r in network.nodes["eu"].gossip.regions(network.now)}
    wanted = {"region", "self", "status", "digest", "heads", "behind", "rtt_ms", "offset_ms"}
    assert all(wanted <= record.keys() for record in records.values())
    assert (records[EU]["self"], records[EU]["status"], records[EU]["behind"]) == (True, "self", 0)
    assert (records[AP]["status"], records[AP]["behind"]) == ("unreachable", 5)
    assert (records[US]["status"], records[US]["behind"], records[US]["rtt_ms"]) == ("up", 0, 20)
    assert records[US]["digest"] == records[EU]["digest"] != records[AP]["digest"]
    network.heal()
    network.run(3_000)
    assert network.converged()
    records = {r["region"]: r for r in network.nodes["eu"].gossip.regions(network.now)}
    assert len({r["digest"] for r in records.values()}) == 1
    assert {r["behind"] for r in records.values()} == {0}


def test_what_a_peer_says_it_has_and_we_lack_shows_in_our_own_record():
    fake = Fake(lone())
    fake.open()
    fake.say(fake.heads(Heads({fake.writer: 12})))
    assert fake.gossip.regions(fake.now)[0]["behind"] == 12


def test_link_records_hold_plain_values():
    network = Network(["ap", "eu", "us"], line(["ap", "eu", "us"]))
    network.nodes["eu"].write(3)
    network.run(3_000)
    for node in network.nodes.values():
        for record in [*node.gossip.links(network.now), *node.gossip.regions(network.now)]:
            cbor2.dumps(record, canonical=True)
    states = {r["region"]: r["state"] for r in network.nodes["ap"].gossip.links(network.now)}
    assert states == {EU: SessionState.OPEN, US: SessionState.CLOSED}


def test_features_count_once_every_member_has_been_met():
    node = lone()
    assert node.gossip.common_features() == 0
    node.gossip._wire.identity = Identity(
        "test", EU, node.writer, Membership.founding((AP, EU, US)), (DOMAIN,), features=0b111
    )
    us, ap = Fake(node), Fake(node, "ap")
    us.connect()
    us.hello(features=0b011)
    assert node.gossip.common_features() == 0
    ap.connect()
    ap.hello(features=0b110)
    assert node.gossip.common_features() == 0b010


# Snapshots -------------------------------------------------------------------------------------------------------------


def task_row(number: int, size: int = 100) -> TaskRow:
    task = TaskId(number.to_bytes(16, "big"))
    return TaskRow(DOMAIN, task, "t", "q", "dead", True, False, "eu", 0, 0, (("k", "v"),), bytes(16), bytes(size))


def compacted(rows: int, size: int = 100, settings: GossipSettings | None = None) -> Network:
    """Two regions; `eu` has dropped the first five of its ten commits and keeps their facts in rows."""
    network = Network(["eu", "us"], mesh(["eu", "us"]), settings=settings)
    network.cut_off("us")
    eu = network.nodes["eu"]
    eu.write(10)
    network.run(100)
    eu.disk.commits[eu.writer] = eu.disk.commits[eu.writer][5:]
    eu.disk.dropped[eu.writer] = 5
    eu.floor_heads = Heads({eu.writer: 5})
    eu.gossip._transfer._cache = type(eu.gossip._transfer._cache)(0)
    eu.disk.rows = [task_row(number, size) for number in range(rows)]
    network.heal()
    return network


def take_snapshot(network: Network, within_ms: int = 10_000) -> tuple[list[TaskRow], SnapshotDone]:
    us = network.nodes["us"]
    for _ in range(within_ms // 100):
        network.run(100)
        done = of_kind(us.arrived, SnapshotDone)
        if of_kind(us.arrived, SnapshotOffered) and not us.gossip._peers[EU].link.receiving and not done:
            assert us.gossip.request_snapshot(EU, DOMAIN)
        if done:
            return [row for item in of_kind(us.arrived, SnapshotRows) for row in item.rows], done[0]
    raise AssertionError("no snapshot came")


def test_a_peer_below_the_floor_gets_a_snapshot_and_no_commits():
    network = compacted(rows=1_000)
    eu, us = network.nodes["eu"], network.nodes["us"]
    network.run(1_000)
    assert of_kind(us.arrived, SnapshotOffered)[0] == SnapshotOffered(EU, DOMAIN, Heads({eu.writer: 5}))
    assert not of_kind(us.arrived, SnapshotRows)  # it comes when asked for
    rows, done = take_snapshot(network)
    assert rows == eu.disk.rows
    assert done.state == eu.snapshot_state(DOMAIN)
    assert (done.until, done.floor) == (eu.log.durable_applied, eu.floor_heads)
    assert network.sent["commits"] == 0


def test_a_snapshot_is_offered_seldom_and_commits_wait_for_its_end():
    node = lone()
    node.write(3)
    node.network.run(100)
    node.floor_heads = Heads({node.writer: 2})
    fake = Fake(node)
    fake.open()
    for _ in range(20):
        fake.say(fake.heads())
        node.network.mono_ms += 1_000
    assert len(of_kind(fake.drain(), m.MustSnapshot)) == 2
    fake.say(m.SnapshotRequest(DOMAIN))
    fake.drain()
    node.write()
    node.network.run(100)
    node.network.mono_ms += 2 * SETTINGS.snapshot_offer_ms  # a large one takes its time
    fake.say(fake.heads())
    assert {type(each) for each in fake.drain()} <= {m.Pong, m.HeadsHeard, m.AckHeard, m.Ping, m.OwnHeadsQuestion}
    (read,) = of_kind(fake.others, ReadRows)
    node.gossip.rows_read(read.token, [], fake.now)
    said = fake.drain()
    assert [type(each) for each in said if isinstance(each, m.SnapshotState | m.SnapshotEnd)] == [
        m.SnapshotState,
        m.SnapshotEnd,
    ]
    fake.say(fake.heads(Heads({node.writer: 2})))  # it has taken the snapshot
    (commits,) = of_kind(fake.drain(), m.Commits)
    assert [(run.first, len(run.blobs)) for run in commits.runs] == [(3, 2)]


def test_a_snapshot_keeps_to_the_credits():
    network = compacted(rows=400, size=5_000, settings=GossipSettings(credit_bytes=50_000, batch_bytes=20_000))
    us = network.nodes["us"]
    network.run(1_000)
    us.wedged = True  # nothing becomes durable, so nothing is granted again
    us.gossip.request_snapshot(EU, DOMAIN)
    network.run(5_000)
    assert us.gossip._peers[EU].credit_in.untaken < 90_000
    us.wedged = False
    us.flush()
    rows, _ = take_snapshot(network)
    assert len(rows) == 400


def test_a_snapshot_that_a_broken_link_interrupts_is_aborted_and_begins_again():
    network = compacted(rows=2_000, size=2_000)
    eu, us = network.nodes["eu"], network.nodes["us"]
    network.run(1_000)
    us.gossip.request_snapshot(EU, DOMAIN)
    network.run(30)
    network.hang_up(("eu", "us"))
    assert of_kind(us.arrived, SnapshotAborted)
    us.arrived.clear()
    rows, _ = take_snapshot(network)
    assert rows == eu.disk.rows


def test_a_snapshot_of_which_a_frame_was_lost_is_aborted():
    fake = Fake(lone())
    fake.open()
    fake.say(m.MustSnapshot(DOMAIN, ()))
    assert fake.gossip.request_snapshot(US, DOMAIN)
    assert not fake.gossip.request_snapshot(US, DOMAIN)  # one at a time
    (item,) = fake.say(m.SnapshotChunk(DOMAIN, 0, (task_row(1),)))
    assert item.rows == (task_row(1),)
    (item,) = fake.say(m.SnapshotEnd(DOMAIN, 2, 0, (), (), b""))
    assert isinstance(item, SnapshotAborted)


def test_an_overlong_state_is_refused():
    fake = Fake(lone(settings=GossipSettings(snapshot_state_bytes=1_000)))
    fake.open()
    fake.gossip.request_snapshot(US, DOMAIN)
    fake.say(m.SnapshotState(DOMAIN, 0, bytes(1_001)))
    assert "1000 bytes" in fake.disconnects()[0]


def test_pieces_of_a_snapshot_that_nobody_asked_for_are_dropped():
    fake = Fake(lone())
    fake.open()
    assert fake.say(m.SnapshotChunk(DOMAIN, 0, (task_row(1),))) == []
    assert fake.say(m.SnapshotState(DOMAIN, 300, b"x")) == []
    assert fake.say(m.SnapshotEnd(DOMAIN, 1, 1, (), (), b"")) == []
    assert fake.gossip._peers[US].credit_in.untaken == 0
    assert fake.disconnects() == []


def test_a_row_too_large_for_a_frame_fails_loudly():
    fake = Fake(lone())
    fake.open()
    fake.say(m.SnapshotRequest(DOMAIN))
    fake.drain()
    (read,) = of_kind(fake.others, ReadRows)
    fake.gossip.rows_read(read.token, [task_row(1, size=m.FRAME_BYTES_MAX)], fake.now)
    assert fake.notes("gossip.snapshot_failed")[0].level == "alarm"


def test_answers_that_nobody_waits_for_are_ignored():
    gossip = lone().gossip
    gossip.commits_read(5, [b"x"], Now(0, 0))
    gossip.rows_read(5, [], Now(0, 0))
    assert gossip.take_effects() == []


# Replicas --------------------------------------------------------------------------------------------------------------


def test_the_same_inputs_give_the_same_frames():
    def run() -> list[tuple[str, str, bytes]]:
        network = Network("abcd", mesh("abcd"), seed=3, loss=0.1)
        network.recording = True
        for round_number in range(20):
            for node in network.nodes.values():
                node.write(round_number % 3)
            network.run(300)
        return network.frames

    assert run() == run()


def test_a_commit_is_a_sign_of_life_of_its_writer():
    node = lone()
    row = Network(["ap"], []).nodes["ap"].log.append
    event = Expired(TaskId(bytes(16)), late=False)
    commit = row([event], make_stamp(node.network.now.wall_ms - 400))
    node.log.receive(commit.blob, node.network.now.wall_ms)
    node.log.mark_durable(node.log.have, node.log.applied)
    node.gossip.durable_advanced(DOMAIN, [(commit.row(), US)], node.network.now)
    assert node.gossip.last_heard(AP) == node.network.mono_ms - 400


def test_missing_commits_on_disk_are_an_alarm_and_no_loop():
    network = Network(["eu", "us"], mesh(["eu", "us"]))
    network.cut_off("us")
    eu = network.nodes["eu"]
    eu.write(5)
    network.run(100)
    eu.gossip._transfer._cache = type(eu.gossip._transfer._cache)(0)
    eu.disk.commits.clear()
    network.heal()
    network.run(120_000)
    alarms = [note for note in eu.notes if note.what == "gossip.commits_missing"]
    assert 3 <= len(alarms) <= 12
    assert alarms[0].facts == {"peer": US, "domain": DEFAULT_DOMAIN, "writer": eu.writer, "number": 1}


def test_a_jittered_exchange_of_heads_keeps_its_promise_of_three_seconds():
    assert SETTINGS.heads_interval_ms * 5 // 4 <= 3_000


# Packed frames ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reads", [features.OURS, features.BUNDLES, 0])
def test_bulk_is_packed_for_peers_that_read_it_and_costs_the_same_credit(reads):
    node = lone()
    node.write(100, size=1_000)
    node.network.run(100)
    fake = Fake(node)
    fake.connect()
    fake.hello(features=reads)
    fake.say(fake.heads())
    frames = [effect.message for effect in node.gossip.take_effects() if isinstance(effect, Send)]
    runs = [part for frame in frames for part in of_kind(said_in(frame), m.Commits)]
    assert sum(len(run.blobs) for part in runs for run in part.runs) == 100
    packed = [frame for frame in frames if cbor2.loads(frame)[0] == m.PACKED_KIND]
    assert bool(packed) == bool(reads & features.ZSTD)
    spent = sum(m.decode_frame(frame).size for frame in frames if of_kind(said_in(frame), m.Commits))
    assert fake.gossip._link(US).credit.sent == spent > 100_000
