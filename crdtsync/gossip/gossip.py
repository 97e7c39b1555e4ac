"""`Gossip`: everything one replica says to its peers, and what it makes of their answers.

One link per peer: `Hello`, heads both ways, missing commits both ways in bounded batches under credits, then each commit
once it is durable. Acknowledgements follow within `ack_delay_ms`; a jittered exchange of heads every few seconds repairs
whatever was dropped; pings carry round-trip time, clock offset and signs of life. Any connected graph converges.

The host is told of what came by `Arrived` items and decides; gossip only ever sends what the host says is durable, and
knows nothing about tasks. The driver carries the effects out, and has these duties:

1. It knows the peer's region before the first frame, and keeps one link per peer (`protocol.session`, Who is there).
2. Before it dials or accepts it asks `allowed(peer)`. Then `connected`, `receive` for each frame in the order sent, and
   `disconnected` once.
3. After `Disconnect` it sends what was to be sent before, closes the link and calls `disconnected`. A frame that was
   under way on a closed link is never delivered on the next one.
4. When the replica is reloaded after a failed append, all links are closed: heads may have named what was not durable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from crdtsync.clock import Now
from crdtsync.coordination.membership import Membership
from crdtsync.effects import CommitRow, Disconnect, Effect, TaskRow
from crdtsync.errors import RemoteProtocolError
from crdtsync.gossip import status
from crdtsync.gossip.anti_entropy import Feed
from crdtsync.gossip.arrived import (
    Arrived,
    DemandsHeard,
    LeaseHeard,
    PeerClosed,
    PeerOpened,
    SynodHeard,
    SynodMessage,
    TwinMet,
    WeAreForgotten,
)
from crdtsync.gossip.credit import CreditOut
from crdtsync.gossip.exchange import Exchange
from crdtsync.gossip.failure_detector import PhiAccrual
from crdtsync.gossip.liveness import Liveness
from crdtsync.gossip.offsets import Offset, PeerClock
from crdtsync.gossip.peer import NEVER_MS, DomainLink, Link, Peer
from crdtsync.gossip.recovery import Recovery
from crdtsync.gossip.settings import GossipSettings
from crdtsync.gossip.transfer import Transfer
from crdtsync.gossip.wire import GossipHost, Wire
from crdtsync.identifiers import Domain, RegionId, WriterId
from crdtsync.log.domain_log import DomainLog
from crdtsync.log.heads import Heads
from crdtsync.log.stability import Ack, Stability
from crdtsync.protocol import features
from crdtsync.protocol.peer_messages import (
    PEER_PROTOCOL_VERSION,
    AckHeard,
    Bundle,
    Bye,
    Commits,
    Credit,
    HeadsHeard,
    Hello,
    HelloRefused,
    LeaseAnswers,
    LeaseAsks,
    LeasesFreed,
    LimitDemands,
    MustSnapshot,
    OwnHeadsAnswer,
    OwnHeadsQuestion,
    PeerMessage,
    Ping,
    Pong,
    SnapshotChunk,
    SnapshotEnd,
    SnapshotRequest,
    SnapshotState,
)
from crdtsync.protocol.session import Identity, Refusal, SessionEvent, SessionState

__all__ = ["Gossip", "GossipHost", "GossipSettings"]

SYNOD_MESSAGES = get_args(SynodMessage)
Handler = Callable[[Peer, Link, Any, int, Now], list[Arrived]]  # the int is the size of the frame


class Gossip:
    """The gossip of one replica.

    Args:
        me: This region.
        writer: This incarnation.
        cluster: Its name; links to other clusters are refused.
        membership: Who belongs to the cluster, this region included, until `set_membership` says otherwise.
        logs: The log of every domain that is replicated here.
        stability: The stability of each; acknowledgements that arrive are offered to it.
        host: Who is asked for digests, floors and snapshots.
        features: What this version reads (design 7).
    """

    def __init__(
        self,
        me: RegionId,
        writer: WriterId,
        *,
        cluster: str,
        membership: Membership,
        logs: Mapping[Domain, DomainLog],
        stability: Mapping[Domain, Stability],
        settings: GossipSettings,
        host: GossipHost,
        features: int = 0,
    ) -> None:
        everybody = membership.linked
        identity = Identity(cluster, me, writer, membership, tuple(sorted(logs)), features)
        self.cut: frozenset[RegionId] = frozenset()
        self._settings = settings
        self._wire = Wire(identity, settings, logs, stability, host)
        self._peers = {region: Peer(region, settings) for region in everybody}
        self._liveness = Liveness(me, everybody)
        self._exchange = Exchange(self._wire, self._liveness, self._peers)
        self._transfer = Transfer(self._wire, self._ride)
        self._recovery = Recovery(self._wire, self._peers)
        self._calm_ms = PhiAccrual.calm_ms(settings.suspect_phi)
        self._started: Now | None = None
        self._mono_ms: int | None = None
        self._handlers: dict[type[Any], Handler] = {
            HeadsHeard: self._on_heads,
            Commits: self._on_data,
            SnapshotChunk: self._on_data,
            SnapshotState: self._on_data,
            Credit: self._on_credit,
            AckHeard: lambda _known, link, message, _size, now: self._exchange.ack(link, message, now),
            Ping: self._on_ping,
            Pong: self._on_pong,
            Bundle: self._on_bundle,
            MustSnapshot: lambda _known, link, message, _size, _now: self._transfer.offered(link, message),
            SnapshotRequest: self._on_request,
            SnapshotEnd: lambda _known, link, message, _size, _now: self._transfer.end(link, message),
            OwnHeadsQuestion: self._on_question,
            **dict.fromkeys(SYNOD_MESSAGES, self._on_synod),
            OwnHeadsAnswer: lambda _known, link, message, _size, _now: self._recovery.answered(link, message),
            LeaseAsks: self._on_lease,
            LeaseAnswers: self._on_lease,
            LeasesFreed: self._on_lease,
            LimitDemands: lambda _known, link, message, _size, _now: [DemandsHeard(link.peer, *message)],
        }

    # What the driver and the replica ask -----------------------------------------------------------------------------

    @property
    def counters(self) -> Counter[str]:
        """How much of what has passed since the start."""
        return self._wire.counters

    @property
    def unanswered(self) -> frozenset[RegionId]:
        """The members that have not told this incarnation yet what they know of its region's writers."""
        return frozenset(self._recovery.unanswered)

    @property
    def recovering(self) -> bool:
        """Whether own acknowledgements are kept back, because not every member has told what it knows of us."""
        return self._exchange.recovering

    @recovering.setter
    def recovering(self, value: bool) -> None:
        self._exchange.recovering = value

    def allowed(self, peer: RegionId) -> bool:
        """Whether a link to `peer` may be dialled or accepted at all."""
        if peer == self._wire.me or peer in self.cut or self._wire.identity.membership.has_lost(self._wire.me):
            return False
        return peer in self._peers or self._wire.identity.membership.has_lost(peer)  # it is told so

    def peer_have(self, peer: RegionId, domain: Domain) -> Heads | None:
        """What a linked peer said that it has, on this link; None before it did."""
        link = self._link(peer)
        ours = link.domains.get(domain) if link is not None else None
        return ours.have.heads if ours is not None and ours.have.trusted else None

    def open_peers(self) -> tuple[RegionId, ...]:
        return tuple(link.peer for link in self._open_links())

    def readers(self, feature: int) -> tuple[RegionId, ...]:
        """The linked peers that read messages of this feature."""
        return tuple(link.peer for link in self._open_links() if link.hello.features & feature)

    def writer_at(self, peer: RegionId) -> WriterId | None:
        """The incarnation that a linked peer is; None without a link."""
        link = self._link(peer)
        return link.hello.writer if link is not None and link.is_open else None

    def tell(self, peer: RegionId, message: PeerMessage, writer: str = "") -> bool:
        """Send a message of another part of the replica over the link to `peer`, to that incarnation if one is named.

        It rests on nothing that is not durable. False if there is no such link: nothing was sent.
        """
        link = self._link(peer)
        if link is None or not link.is_open or (writer and link.hello.writer != writer):
            return False
        self._wire.send(link, message)
        return True

    def last_heard(self, region: RegionId) -> int | None:
        """Monotonic time of the freshest sign of life of a region by any path; None if none since the start."""
        return self._liveness.last_heard(region)

    def clock_of(self, peer: RegionId) -> PeerClock:
        """What was measured of a peer's clocks, linked or not."""
        known = self._peers.get(peer)
        return known.clock if known is not None else PeerClock()

    def offset(self, peer: RegionId, now: Now) -> Offset | None:
        """The clock of a linked peer against ours, with its uncertainty."""
        known = self._peers.get(peer)
        if known is None or known.open_link is None:
            return None
        return known.clock.best(self._wire.host.time_ms(now), now.mono_ms)

    def without(self, feature: int) -> tuple[RegionId, ...]:
        """The members that have been met, and do not read this."""
        return tuple(
            region
            for region, peer in self._peers.items()
            if region != self._wire.me and peer.features is not None and not peer.features & feature
        )

    def common_features(self) -> int:
        """The bits that every member has, as of its last Hello: 0 while one was never met."""
        bits = self._wire.identity.features
        for region, peer in self._peers.items():
            if region != self._wire.me:
                bits &= peer.features or 0
        return bits

    def regions(self, now: Now) -> list[dict[str, Any]]:
        """One plain record per region, this one first: what `region list` shows."""
        return status.region_records(
            self._wire, self._peers, self._liveness, cut=self.cut, now=now, started=self._started or now
        )

    def links(self, now: Now) -> list[dict[str, Any]]:
        """One plain record per other region: what `region links` shows."""
        return status.link_records(self._wire, self._peers, now)

    # What the driver says --------------------------------------------------------------------------------------------

    def connected(self, peer: RegionId, now: Now) -> list[Arrived]:
        """There is a link to `peer`. One that was up before has been replaced by it."""
        self._observe(now)
        known = self._peers.get(peer)
        if known is None:
            return self._turn_away(peer, now)
        arrived = self._drop(known, "replaced", now) if known.link is not None else []
        link = known.link = Link(peer, self._settings, now)
        link.session.step(SessionEvent.CONNECTED)
        link.reckon(now.mono_ms)
        if peer in self.cut:
            self._refuse(known, link, Refusal.CUT, "cut by an operator")
            return arrived
        self._wire.send(link, self._wire.identity.hello(known.credit_in.opened()))
        return arrived

    def disconnected(self, peer: RegionId, now: Now) -> list[Arrived]:
        """There is no link to `peer` any more."""
        self._observe(now)
        known = self._peers.get(peer)
        return self._drop(known, "disconnected", now) if known is not None and known.link is not None else []

    def receive(self, peer: RegionId, message: bytes, now: Now) -> list[Arrived]:
        """A frame came from `peer`. Never raises, whatever the bytes: who sends nonsense is disconnected."""
        self._observe(now)
        known = self._peers.get(peer)
        link = known.link if known is not None else None
        if known is None or link is None:
            self._wire.counters["frames_without_link"] += 1
            self._wire.effects.append(Disconnect(peer, "no session"))
            return []
        self._wire.counters["frames_received"] += 1
        self._wire.counters["bytes_received"] += len(message)
        try:
            return self._take(known, link, message, now)
        except RemoteProtocolError as error:
            self._went_wrong(link, error)
            return []
        finally:
            link.reckon(now.mono_ms)

    def tick(self, now: Now) -> None:
        """Do what is due."""
        self._observe(now)
        mono_ms = now.mono_ms
        soon_ms = mono_ms + self._settings.slack_ms
        for known in self._peers.values():
            link = known.link
            if link is not None and (link.due_ms <= soon_ms or link.suspected or self._is_late(link, mono_ms)):
                self._tick_link(link, now)
        due_ms = self._exchange.acks_due_ms
        if due_ms is not None and due_ms <= now.mono_ms:
            self._exchange.flush_acks(self._open_links(), now)

    def next_deadline_ms(self) -> int | None:
        """Monotonic time at which `tick` is next worth calling; None while there is no link."""
        first_ms = NEVER_MS if self._exchange.acks_due_ms is None else self._exchange.acks_due_ms
        for known in self._peers.values():  # asked after every input: each link keeps its own, we look for the first
            link = known.link
            if link is not None and link.due_ms < first_ms:
                first_ms = link.due_ms
        return first_ms if first_ms < NEVER_MS else None

    def take_effects(self) -> list[Effect]:
        """What the driver is to do, in order. A second call returns nothing."""
        for link in self._wire.told():
            self._ride(link)
        self._wire.flush_all()
        effects, self._wire.effects = self._wire.effects, []
        return effects

    # What the replica says -------------------------------------------------------------------------------------------

    def durable_advanced(self, domain: Domain, commits: Sequence[tuple[CommitRow, RegionId | None]], now: Now) -> None:
        """These commits are on disk now, each told once, with the peer that it came from first; None for our own.

        The domain's log knows it already (`mark_durable`). Commits of one writer come in the order of their numbers.
        """
        self._observe(now)
        for row, source in commits:
            if source is not None:
                self._liveness.commit(row, self._wire.host.time_ms(now), now)
        self._exchange.note_digest(domain)
        links = self._open_links()
        self._transfer.durable(domain, commits, links, now)
        gapped = bool(self._wire.logs[domain].gaps())
        for link in links:
            self._transfer.pump(link, now)
            if gapped:  # somebody's commits got lost on the way: say soon what we have
                self._exchange.hasten(link, now)
            link.reckon(now.mono_ms)

    def acknowledge(self, domain: Domain, ack: Ack, now: Now) -> None:
        """Our durable acknowledgement of a domain. Ignored while `recovering`, so say it again after that."""
        self._exchange.acknowledge(domain, ack, now)

    def taken(self, peer: RegionId, size: int, now: Now) -> None:
        """So many bytes of what arrived from `peer` are durable, or needed no disk."""
        self._observe(now)
        known = self._peers.get(peer)
        if known is not None:
            known.credit_in.taken(size)
            self._transfer.regrant(known)

    def commits_read(self, token: int, blobs: Sequence[bytes], now: Now) -> None:
        """The answer to a `ReadCommits` effect."""
        link = self._transfer.commits_read(token, blobs, now)
        if link is not None:
            link.reckon(now.mono_ms - 1)  # what the peer is to be offered again at once is due now

    def rows_read(self, token: int, rows: Sequence[TaskRow], now: Now) -> None:
        """The answer to a `ReadRows` effect."""
        self._transfer.rows_read(token, rows, now)

    def rows_damaged(self, token: int) -> None:
        """The answer to a `ReadRows` effect, when the rows are unreadable."""
        self._transfer.rows_damaged(token)

    def request_snapshot(self, peer: RegionId, domain: Domain) -> bool:
        """Take the snapshot that `peer` offered. False if it cannot be now: no link, or one is coming in already."""
        link = self._link(peer)
        taking = any(k.link is not None and k.link.receiving is not None for k in self._peers.values())
        if link is None or not link.is_open or domain not in link.domains or taking:
            return False
        self._transfer.request_snapshot(link, domain)
        return True

    def announce(self, now: Now) -> None:
        """What we have has changed by other ways than commits, as by a snapshot: tell all peers soon."""
        for link in self._open_links():
            self._exchange.hasten(link, now)

    def set_cut(self, regions: Iterable[RegionId]) -> None:
        """Drop and refuse links to exactly these regions from now on."""
        self.cut = frozenset(regions)
        for region in sorted(self.cut):
            known = self._peers.get(region)
            if known is not None and known.link is not None and known.link.session.state is not SessionState.CLOSING:
                self._refuse(known, known.link, Refusal.CUT, "cut by an operator")

    def set_membership(self, membership: Membership, now: Now) -> list[Arrived]:
        """Keep links to whom it names, tell the others why not, and begin new sessions if somebody is new.

        What peers said of somebody whom we did not know was ignored; in a new session they say it again.
        """
        before = self._wire.identity.membership
        self._wire.identity = replace(self._wire.identity, membership=membership)
        arrived: list[Arrived] = []
        for region in [r for r in self._peers if r not in membership.linked and r != self._wire.me]:
            known = self._peers[region]
            if known.link is not None:
                if known.link.session.state is not SessionState.CLOSING:
                    self._refuse(known, known.link, Refusal.FORGOTTEN, self._farewell(region))
                arrived += self._drop(known, "forgotten", now)
            del self._peers[region]
        for region in membership.linked:
            if region not in self._peers:
                self._peers[region] = Peer(region, self._settings)
        for region in sorted(self._peers):  # in order of name, as ever
            self._peers[region] = self._peers.pop(region)
        self._liveness.set_members(self._peers)
        self._recovery.unanswered &= set(membership.linked)
        for known in self._peers.values():  # of a version that takes no part in this
            hello = known.link.session.hello if known.link is not None and known.link.session.is_open else None
            if known.link is not None and hello is not None and not self._wire.identity.can_follow(hello):
                self._refuse_hello(known, known.link, Refusal.VERSION, hello)
        if not membership.known <= before.known:
            for known in self._peers.values():
                if known.link is not None and known.link.session.state is not SessionState.CLOSING:
                    self._close(known.link, "the membership has changed")
        return arrived

    def _farewell(self, region: RegionId) -> str:
        membership = self._wire.identity.membership
        forgotten = membership.forgotten.get(region)
        version = forgotten.version if forgotten is not None else membership.since.get(region, membership.version)
        return (
            f"{region} was forgotten in version {version} of the membership (epoch {membership.epoch}): stop its node, keep "
            f"its data as evidence, and add the region anew under another name"
        )

    def _turn_away(self, peer: RegionId, now: Now) -> list[Arrived]:
        """Somebody dials who is no member: one that was forgotten is told so."""
        reason = Refusal.NOT_MEMBER
        if self._wire.identity.membership.has_lost(peer):
            reason = Refusal.FORGOTTEN
            link = Link(peer, self._settings, now)
            self._wire.send(link, HelloRefused(str(reason), self._farewell(peer)))
        self._wire.counters["refused"] += 1
        self._wire.notify("warning", "gossip.refused", peer=peer, reason=str(reason))
        self._wire.effects.append(Disconnect(peer, str(reason)))
        return []

    def close(self, reason: str) -> None:
        """Take leave of everybody: this node stops."""
        for known in self._peers.values():
            if known.link is not None and known.link.session.state is not SessionState.CLOSING:
                self._wire.send(known.link, Bye(reason))
                self._close(known.link, reason)

    def _ride(self, link: Link) -> None:
        """A frame goes to the peer anyway: let what acknowledgements are due for it ride along."""
        if link.takes_bundles:
            self._exchange.ride(link, self._mono_ms or 0)

    # Links -----------------------------------------------------------------------------------------------------------

    def _link(self, peer: RegionId) -> Link | None:
        known = self._peers.get(peer)
        return known.link if known is not None else None

    def _open_links(self) -> list[Link]:
        return [link for known in self._peers.values() if (link := known.open_link) is not None]

    def _observe(self, now: Now) -> None:
        """Take note of the time, and of pauses of our own."""
        if self._mono_ms is not None:
            pause_ms = now.mono_ms - self._mono_ms
            if pause_ms > self._settings.pause_ms:
                forgiven_ms = pause_ms - self._settings.ping_interval_ms  # all of it, and a dead link would never count
                for link in self._open_links():
                    link.detector.forgive(forgiven_ms, now.mono_ms)
        self._started = self._started or now
        self._mono_ms = now.mono_ms

    def _take(self, known: Peer, link: Link, data: bytes, now: Now) -> list[Arrived]:
        missed = link.session.missed
        decoded = link.session.decode(data)
        if decoded is None:
            self._wire.counters["replays"] += 1
            return []
        event, message, size = decoded
        greeting = link.session.state is SessionState.GREETING
        if greeting and isinstance(message, Hello):
            refusal = Refusal.CUT if link.peer in self.cut else self._wire.identity.refusal(message, link.peer)
            if refusal is not None:
                return self._refuse_hello(known, link, refusal, message)
        link.session.step(event)
        if link.session.state is SessionState.CLOSING:
            if event in (SessionEvent.REFUSED, SessionEvent.BYE) and not link.close_reason:
                return self._left(known, link, message)
            return []
        if greeting:
            assert isinstance(message, Hello)
            return self._opened(known, link, message, now)
        link.detector.heard(now.mono_ms)
        self._liveness.frame(link.peer, now)
        if link.session.missed > missed:
            self._wire.counters["frames_lost"] += link.session.missed - missed
            for theirs in link.domains.values():
                theirs.distrust()
            self._exchange.hasten(link, now)
        if message is None:
            self._wire.counters["unknown_kinds"] += 1
            return []
        return self._handlers[type(message)](known, link, message, size, now)

    def _opened(self, known: Peer, link: Link, hello: Hello, now: Now) -> list[Arrived]:
        link.session.hello = hello
        common = hello.features & self._wire.identity.features
        link.takes_bundles, link.takes_packed = bool(common & features.BUNDLES), bool(common & features.ZSTD)
        link.credit = CreditOut(hello.granted)
        for domain in sorted(set(hello.domains) & self._wire.logs.keys()):
            link.domains[domain] = DomainLink(domain, Feed(domain, self._wire.me, link.peer, self._settings))
        link.detector.heard(now.mono_ms)
        link.ping_due_ms = link.heads_due_ms = now.mono_ms
        known.features, known.refused = hello.features, ""
        known.clock.met(hello.writer)
        self._liveness.frame(link.peer, now)
        self._wire.notify("info", "gossip.opened", peer=link.peer, writer=hello.writer)
        self._tick_link(link, now)
        self._tell_others(link, now)
        return [PeerOpened(link.peer, hello.writer, hello.features)]

    def _tell_others(self, changed: Link, now: Now) -> None:
        """Our links have changed: what peers leave to others depends on it."""
        for link in self._open_links():
            if link is not changed:
                self._exchange.hasten(link, now)

    def _refuse_hello(self, known: Peer, link: Link, refusal: Refusal, hello: Hello) -> list[Arrived]:
        detail = f"{hello.writer[:128]} of cluster {hello.cluster[:64]!r}, protocol {hello.version}"
        if refusal is Refusal.NOT_JOINING:
            detail = f"{link.peer} was added to this cluster: start its node with --join, on an empty data_dir"
        elif refusal is Refusal.VERSION and hello.version == PEER_PROTOCOL_VERSION:
            version = self._wire.identity.membership.version
            detail = (
                f"the members of this cluster have changed (version {version} of the membership), and {link.peer} runs a "
                "version of crdtsync that does not know of that: update it, on the same data_dir"
            )
        self._refuse(known, link, refusal, detail)
        if refusal is not Refusal.SAME_REGION:
            return []
        self._wire.notify("alarm", "gossip.twin", writer=hello.writer)
        return [TwinMet(hello.writer)]

    def _refuse(self, known: Peer, link: Link, refusal: Refusal, detail: str) -> None:
        self._wire.counters["refused"] += 1
        self._wire.notify("warning", "gossip.refused", peer=link.peer, reason=str(refusal), detail=detail)
        known.refused = str(refusal)
        self._wire.send(link, HelloRefused(str(refusal), detail))
        self._close(link, f"refused: {refusal}")

    def _left(self, known: Peer, link: Link, message: PeerMessage | None) -> list[Arrived]:
        """The peer has ended it."""
        if isinstance(message, HelloRefused):
            known.refused = message.reason
            self._wire.notify(
                "warning", "gossip.refused_by", peer=link.peer, reason=message.reason, detail=message.detail
            )
            self._wire.disconnect(link, f"refused by the peer: {message.reason}")
            if message.reason in (Refusal.FORGOTTEN, Refusal.NOT_JOINING):
                return [WeAreForgotten(link.peer, message.reason, message.detail)]
        elif isinstance(message, Bye):
            self._wire.disconnect(link, f"the peer left: {message.reason}")
        return []

    def _close(self, link: Link, reason: str) -> None:
        if link.session.state is not SessionState.CLOSING:
            link.session.step(SessionEvent.CLOSE)
            link.due_ms = NEVER_MS
            self._wire.disconnect(link, reason)

    def _drop(self, known: Peer, reason: str, now: Now) -> list[Arrived]:
        link, known.link = known.link, None
        assert link is not None
        self._wire.forget(link)
        link.session.step(SessionEvent.DISCONNECTED)
        arrived = self._transfer.closed(link)
        if link.session.hello is not None:
            self._wire.notify("info", "gossip.closed", peer=link.peer, reason=link.close_reason or reason)
            arrived.append(PeerClosed(link.peer, link.close_reason or reason))
            self._tell_others(link, now)
        return arrived

    def _is_late(self, link: Link, mono_ms: int) -> bool:
        """Whether the peer's silence is long enough to be judged. What phi costs is too much for every tick of every
        link, nearly all of which heard something a moment ago."""
        return mono_ms - link.detector.last_ms > self._calm_ms

    def _tick_link(self, link: Link, now: Now) -> None:
        if link.session.state is SessionState.CLOSING:
            return
        if not link.is_open:
            if now.mono_ms - link.opened.mono_ms >= self._settings.hello_timeout_ms:
                self._close(link, "no Hello")
            return
        if now.mono_ms - link.detector.last_ms >= self._settings.idle_timeout_ms:
            self._wire.counters["idle_timeouts"] += 1
            self._close(link, "nothing heard")
            return
        if link.suspected or self._is_late(link, now.mono_ms):
            self._suspect(link, now)
        soon_ms = now.mono_ms + self._settings.slack_ms
        due_ms = link.heads_due_ms
        if due_ms <= now.mono_ms or (due_ms <= soon_ms and self._exchange.may_send_heads(link, now.mono_ms)):
            self._recovery.ask(link, now)
            self._exchange.send_heads(link, now)
        if link.ping_due_ms <= soon_ms:
            session = link.session
            beats = self._liveness.to_relay(link.peer, now)
            time_ms = self._wire.host.time_ms(now)
            self._wire.tell(link, Ping(now.mono_ms, time_ms, session.seen, session.missed, beats))
            link.ping_due_ms = now.mono_ms + self._settings.ping_interval_ms
        due = [ours for ours in link.domains.values() if ours.feed.tick(now.mono_ms)]
        if due:
            self._transfer.pump(link, now)
        link.reckon(now.mono_ms)

    def _suspect(self, link: Link, now: Now) -> None:
        phi = link.detector.phi(now.mono_ms)
        if (phi >= self._settings.suspect_phi) != link.suspected:
            link.suspected = not link.suspected
            level, what = ("warning", "gossip.suspect") if link.suspected else ("info", "gossip.unsuspect")
            self._wire.notify(level, what, peer=link.peer, phi=round(phi, 1))

    def _went_wrong(self, link: Link, error: RemoteProtocolError) -> None:
        self._wire.counters["protocol_errors"] += 1
        self._wire.notify("warning", "gossip.protocol_error", peer=link.peer, error=str(error), **error.facts)
        self._close(link, f"protocol error: {error}")

    # Messages --------------------------------------------------------------------------------------------------------

    def _on_bundle(self, known: Peer, link: Link, bundle: Bundle, size: int, now: Now) -> list[Arrived]:
        """One message after another. What came before one that is wrong has been taken."""
        arrived: list[Arrived] = []
        for message in bundle.messages:
            try:
                arrived += self._handlers[type(message)](known, link, message, size, now)
            except RemoteProtocolError as error:
                self._went_wrong(link, error)
                break
        return arrived

    def _on_heads(self, known: Peer, link: Link, message: HeadsHeard, _size: int, now: Now) -> list[Arrived]:
        self._wire.counters["heads_received"] += 1
        self._exchange.heads(known, link, message, now)
        self._transfer.regrant(known)
        self._transfer.pump(link, now)
        return []

    def _on_data(
        self, known: Peer, link: Link, message: Commits | SnapshotChunk | SnapshotState, size: int, _now: Now
    ) -> list[Arrived]:
        if isinstance(message, Commits):
            arrived = self._transfer.commits(known, link, message, size)
        elif isinstance(message, SnapshotChunk):
            arrived = self._transfer.rows(known, link, message, size)
        else:
            arrived = self._transfer.state_piece(known, link, message, size)
        self._transfer.regrant(known)
        return arrived

    def _on_credit(self, _known: Peer, link: Link, message: Credit, _size: int, now: Now) -> list[Arrived]:
        link.credit.grant(message.granted)
        self._transfer.pump(link, now)
        return []

    def _on_ping(self, known: Peer, link: Link, message: Ping, _size: int, now: Now) -> list[Arrived]:
        time_ms = self._wire.host.time_ms(now)
        self._wire.tell(link, Pong(message.mono_ms, message.wall_ms, time_ms, time_ms))
        known.clock.pinged(message.mono_ms, now)
        self._liveness.beat(link.hello.writer, message.mono_ms, now)
        self._liveness.relayed(message.beats, now)
        if link.reported(message.seen, message.missed):
            self._exchange.hasten(link, now)
        return []

    def _on_pong(self, known: Peer, _link: Link, message: Pong, _size: int, now: Now) -> list[Arrived]:
        if known.clock.heard(message, now):
            self._wire.counters["clock_samples"] += 1
        return []

    def _on_request(self, _known: Peer, link: Link, message: SnapshotRequest, _size: int, now: Now) -> list[Arrived]:
        self._transfer.requested(link, message, now)
        return []

    def _on_synod(self, _known: Peer, link: Link, message: SynodMessage, _size: int, _now: Now) -> list[Arrived]:
        return [SynodHeard(link.peer, message)]

    def _on_lease(
        self, _known: Peer, link: Link, message: LeaseAsks | LeaseAnswers | LeasesFreed, _size: int, _now: Now
    ) -> list[Arrived]:
        return [LeaseHeard(link.peer, link.hello.writer, message)]

    def _on_question(self, _known: Peer, link: Link, message: OwnHeadsQuestion, _size: int, _now: Now) -> list[Arrived]:
        self._recovery.asked(link, message)
        return []
