"""Whatever a peer sends, nothing is raised, memory stays bounded, and only that peer is dropped."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from crdtsync.coordination.membership import Membership
from crdtsync.effects import Disconnect, Notify
from crdtsync.gossip.arrived import CommitsArrived, SnapshotRows
from crdtsync.gossip.settings import GossipSettings
from crdtsync.identifiers import RegionId, writer_id
from crdtsync.log.heads import Heads
from crdtsync.protocol import peer_messages as m
from crdtsync.protocol.session import Identity, SessionState
from tests.gossip_network import DOMAIN, Network
from tests.peer_strategies import messages

EU, US, AP = RegionId("eu"), RegionId("us"), RegionId("ap")
SETTINGS = GossipSettings(credit_bytes=10_000, snapshot_state_bytes=1_000)
LIVE = (SessionState.GREETING, SessionState.OPEN)


class HostilePeer(RuleBasedStateMachine):
    """`us` says anything at all to `eu`, while `ap` and `eu` work."""

    @initialize()
    def start(self) -> None:
        self.network = Network(["ap", "eu", "us"], [("ap", "eu")], settings=SETTINGS)
        self.network.run(2_000)
        self.eu, self.ap = self.network.nodes["eu"], self.network.nodes["ap"]
        self.number = 0
        self.closed = True

    def tell(self, data: bytes) -> None:
        arrived = self.eu.gossip.receive(US, data, self.network.now)
        for item in arrived:
            if isinstance(item, CommitsArrived | SnapshotRows):
                self.eu.untaken.append((item.peer, item.size))
        self.eu.flush()
        for effect in self.eu.gossip.take_effects():
            if isinstance(effect, Disconnect) and effect.peer == US:
                self.closed = True
            elif isinstance(effect, Notify):
                self.eu.notes.append(effect)
            elif isinstance(effect, Disconnect):
                raise AssertionError(effect)

    def say(self, message: m.PeerMessage) -> None:
        self.number += 1
        self.tell(m.encode_frame(self.number, message))

    @precondition(lambda self: self.closed)
    @rule(honest=st.booleans())
    def connect(self, honest) -> None:
        self.eu.gossip.disconnected(US, self.network.now)
        self.eu.gossip.connected(US, self.network.now)
        self.number, self.closed = 0, False
        if honest:
            identity = Identity(
                "test", US, writer_id("us", "f", 1, bytes(8)), Membership.founding((AP, EU, US)), (DOMAIN,)
            )
            self.say(identity.hello(1_000))

    @rule(message=messages)
    def say_anything(self, message) -> None:
        self.say(message)

    @rule(message=messages, skip=st.integers(-3, 1_000))
    def say_anything_out_of_turn(self, message, skip) -> None:
        self.number = max(0, self.number + skip)
        self.say(message)

    @rule(message=messages, at=st.integers(0, 10_000), byte=st.integers(0, 255))
    def say_something_damaged(self, message, at, byte) -> None:
        self.number += 1
        frame = bytearray(m.encode_frame(self.number, message))
        frame[at % len(frame)] = byte
        self.tell(bytes(frame))

    @rule(data=st.binary(max_size=100))
    def say_nonsense(self, data) -> None:
        self.tell(data)

    @rule(milliseconds=st.sampled_from([1, 60, 1_000]))
    def let_time_pass(self, milliseconds) -> None:
        self.network.run(milliseconds)
        for effect in self.eu.gossip.take_effects():
            self.closed |= isinstance(effect, Disconnect) and effect.peer == US

    @rule()
    def work(self) -> None:
        self.ap.write()
        self.eu.write()

    @invariant()
    def memory_is_bounded(self) -> None:
        if not hasattr(self, "eu"):
            return
        peer = self.eu.gossip._peers[US]
        assert peer.credit_in.untaken <= SETTINGS.credit_bytes + m.FRAME_BYTES_MAX
        if peer.link is not None and peer.link.receiving is not None:
            assert len(peer.link.receiving._state) <= SETTINGS.snapshot_state_bytes

    @invariant()
    def others_are_not_disturbed(self) -> None:
        if hasattr(self, "eu"):
            assert AP in self.eu.gossip.open_peers()

    def teardown(self) -> None:
        if hasattr(self, "eu"):
            self.network.run(3_000)
            writers = [self.ap.writer, self.eu.writer]
            assert [self.eu.log.applied[w] for w in writers] == [self.ap.log.applied[w] for w in writers]


HostilePeer.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestHostilePeer = HostilePeer.TestCase


@settings(max_examples=300, deadline=None)
@given(st.lists(messages, min_size=1, max_size=6))
def test_who_breaks_the_protocol_is_disconnected_once_with_a_reason(said):
    network = Network(["ap", "eu", "us"], [])
    gossip = network.nodes["eu"].gossip
    gossip.connected(US, network.now)
    identity = Identity("test", US, writer_id("us", "f", 1, bytes(8)), Membership.founding((AP, EU, US)), (DOMAIN,))
    for number, message in enumerate([identity.hello(1_000), *said], 1):
        gossip.receive(US, m.encode_frame(number, message), network.now)
    effects = gossip.take_effects()
    disconnects = [effect for effect in effects if isinstance(effect, Disconnect)]
    state = gossip._peers[US].link.session.state
    assert len(disconnects) == (state is SessionState.CLOSING)
    assert state in (SessionState.OPEN, SessionState.CLOSING)
    assert all(effect.reason for effect in disconnects)
    assert gossip.counters["protocol_errors"] <= 1


@given(st.dictionaries(st.integers(0, 50), st.integers(1, 9), max_size=20), messages)
def test_lies_about_heads_are_harmless_to_the_log(last, message):
    """A peer may claim to have anything; what we have is only what came."""
    network = Network(["ap", "eu", "us"], [])
    node = network.nodes["eu"]
    node.write(3)
    network.run(100)
    claimed = Heads({writer_id("us", "n", number, bytes(8)): count for number, count in last.items()})
    whole = m.VectorDelta(full=True, entries=tuple(claimed.items()))
    node.gossip.connected(US, network.now)
    identity = Identity("test", US, writer_id("us", "f", 1, bytes(8)), Membership.founding((AP, EU, US)), (DOMAIN,))
    heads = m.HeadsHeard(DOMAIN, 0, 0, 0, (), whole, whole, whole, bytes(16))
    for number, said in enumerate([identity.hello(1_000), heads, message], 1):
        node.gossip.receive(US, m.encode_frame(number, said), network.now)
    assert node.log.have == Heads({node.writer: 3})
    assert node.gossip.regions(network.now)[0]["behind"] >= 0
