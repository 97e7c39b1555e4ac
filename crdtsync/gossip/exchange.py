"""The exchange of heads and acknowledgements, and what it proves: who has what, and that equal means equal.

Heads name what is *have* here, not only what is durable: a peer that waits for the fsync before it says so would be sent
the same commits again. That is safe because a link does not outlive the replica that spoke on it, and nobody counts on
heads for anything but what to send; what counts as replicated are acknowledgements, and those are durable.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from hashlib import blake2b
from typing import Final

from crdtsync.clock import Now
from crdtsync.errors import RemoteProtocolError
from crdtsync.gossip.arrived import AckArrived, Arrived
from crdtsync.gossip.liveness import Liveness
from crdtsync.gossip.peer import DomainLink, Link, Peer
from crdtsync.gossip.vectors import VectorFeed, VectorMirror
from crdtsync.gossip.wire import Wire
from crdtsync.identifiers import Domain, RegionId, WriterId, region_of
from crdtsync.log.heads import Heads
from crdtsync.log.stability import Ack
from crdtsync.protocol.peer_messages import AckHeard, HeadsHeard

DIGESTS_KEPT: Final = 32  # recent heads with their digests: in a busy cluster a peer's heads are never quite ours


class Exchange:
    """What is said beside the commits themselves."""

    def __init__(self, wire: Wire, liveness: Liveness, peers: dict[RegionId, Peer]) -> None:
        self.recovering = False
        self._wire = wire
        self._liveness = liveness
        self._peers = peers
        self._digests: dict[Domain, deque[tuple[Heads, bytes]]] = {d: deque(maxlen=DIGESTS_KEPT) for d in wire.logs}
        self._own_acks: dict[Domain, Ack] = {}
        self._dirty: dict[tuple[Domain, RegionId], RegionId | None] = {}  # news, and who told us
        self._urgent: set[RegionId] = set()  # whose commits our own news are for
        self._urgent_due_ms: int | None = None
        self._spread_due_ms: int | None = None

    # Heads out -------------------------------------------------------------------------------------------------------

    def send_heads(self, link: Link, now: Now) -> None:
        """Our side of an exchange, for every common domain, and all acknowledgements that the peer may lack."""
        linked = tuple(sorted(r for r, peer in self._peers.items() if peer.open_link and r != link.peer))
        session = link.session
        for domain, ours in link.domains.items():
            applied, digest = self._wire.host.digest(domain)
            self._remember_digest(domain, applied, digest)
            message = HeadsHeard(
                domain,
                session.seen,
                session.missed,
                link.credit.sent,
                linked,
                ours.out_have.delta(self._wire.logs[domain].announced),
                ours.out_applied.delta(applied),
                ours.out_floor.delta(self._wire.host.floor(domain)),
                digest,
            )
            self._wire.tell(link, message)
            for member in self._wire.identity.membership.counted:
                self._send_ack(link, ours, member, now.mono_ms)
        link.round += 1
        link.heads_sent_ms = now.mono_ms
        link.heads_due_ms = now.mono_ms + self._jittered_ms(link)

    def may_send_heads(self, link: Link, mono_ms: int) -> bool:
        """Whether the least time since the last exchange has passed."""
        return link.heads_sent_ms is None or mono_ms - link.heads_sent_ms >= self._wire.settings.heads_spacing_ms

    def hasten(self, link: Link, now: Now) -> None:
        """Something happened that the peer should hear of before the next regular exchange."""
        soonest = now.mono_ms
        if link.heads_sent_ms is not None:
            soonest = max(soonest, link.heads_sent_ms + self._wire.settings.heads_spacing_ms)
        link.heads_due_ms = min(link.heads_due_ms, soonest)
        link.due_ms = min(link.due_ms, soonest)

    def _jittered_ms(self, link: Link) -> int:
        """A quarter more or less, the same on every run: regions that started together must not stay in step."""
        interval_ms = self._wire.settings.heads_interval_ms
        seed = f"{self._wire.identity.writer}|{link.peer}|{link.round}"
        share = int.from_bytes(blake2b(seed.encode(), digest_size=4).digest())
        return interval_ms * 3 // 4 + share % (interval_ms // 2 + 1)

    # Heads in --------------------------------------------------------------------------------------------------------

    def heads(self, peer: Peer, link: Link, message: HeadsHeard, now: Now) -> None:
        """The peer's side of an exchange.

        Raises:
            RemoteProtocolError: If it names a domain that we do not share, or frames that were never sent.
        """
        theirs = link.domain(message.domain)
        if link.reported(message.seen, message.missed):
            self.hasten(link, now)
        lost, link.repeat_lost = link.repeat_lost, False
        link.links = frozenset(message.links)
        peer.credit_in.reached(message.offset)
        theirs.have.apply(message.have)
        theirs.applied.apply(message.applied)
        theirs.floor.apply(message.floor)
        domain = message.domain
        if theirs.applied.trusted:
            peer.last_applied[domain] = theirs.applied.heads
            peer.last_digest[domain] = message.digest
            self._check_digest(peer, domain, theirs.applied.heads, message.digest)
        if theirs.have.trusted:
            peer.last_have[domain] = theirs.have.heads
            mine = self._wire.logs[domain].durable_have
            theirs.feed.heads(
                theirs.have.heads,
                mine,
                seen=message.seen,
                lost=lost,
                links=link.links,
                is_relay=lambda writer: self._has_own(domain, writer, mine[writer]),
                now_ms=now.mono_ms,
            )

    def _has_own(self, domain: Domain, writer: WriterId, number: int) -> bool:
        """Whether a writer's own region, as far as we know, still has its commits. It may have lost its disk."""
        origin = self._peers.get(region_of(writer))
        if origin is None:
            return False
        link = origin.open_link
        if link is None or domain not in link.domains or not link.domains[domain].have.trusted:
            return True
        return link.domains[domain].feed.position(writer) >= number  # told, or sent by it since it last told

    # Digests ---------------------------------------------------------------------------------------------------------

    def note_digest(self, domain: Domain) -> None:
        """The durable state moved on."""
        self._remember_digest(domain, *self._wire.host.digest(domain))

    def _remember_digest(self, domain: Domain, heads: Heads, digest: bytes) -> None:
        kept = self._digests[domain]
        if digest and not (kept and kept[-1][0] is heads):
            kept.append((heads, digest))

    def _check_digest(self, peer: Peer, domain: Domain, heads: Heads, digest: bytes) -> None:
        """Equal applied heads mean equal states. The alarm that must never ring (design 4)."""
        self.note_digest(domain)
        ours = next((own for at, own in reversed(self._digests[domain]) if at == heads), b"")
        if not ours or not digest:
            return
        if ours == digest:
            peer.diverged.pop(domain, None)
        elif peer.diverged.get(domain) != heads:
            peer.diverged[domain] = heads
            facts = {"ours": ours.hex(), "theirs": digest.hex(), "heads": dict(heads.items())}
            self._wire.notify("alarm", "gossip.divergence", peer=peer.region, domain=domain, **facts)

    # Acknowledgements ------------------------------------------------------------------------------------------------

    def acknowledge(self, domain: Domain, ack: Ack, now: Now) -> None:
        """Our own durable acknowledgement. It leaves with others, a moment later, if it says anything new."""
        if self.recovering:
            return
        before = self._own_acks.get(domain)
        self._own_acks[domain] = ack
        if self._wire.stability[domain].offer(ack, now.mono_ms):
            self._mark(domain, ack.member, None, now)
            news = ack.heads.changes(before.heads if before is not None else Heads())
            self._hurry({region_of(writer) for writer, _ in news} - {ack.member}, now)

    def ack(self, link: Link, message: AckHeard, now: Now) -> list[Arrived]:
        """An acknowledgement of a member, its own or relayed.

        Raises:
            RemoteProtocolError: If no such member can have given it.
        """
        theirs = link.domain(message.domain)
        member = message.member
        if region_of(message.writer) != member:
            raise RemoteProtocolError(f"{message.writer} cannot acknowledge for {member}", member=member)
        if member not in self._wire.identity.membership.states:
            self._wire.counters["acks_of_strangers"] += 1
            return []
        mirror = theirs.acks.setdefault(member, VectorMirror())
        mirror.apply(message.heads)
        if not mirror.trusted or member == self._wire.me:
            return []
        ack = Ack(member, message.writer, message.number, mirror.heads)
        theirs.acks_sent[member] = ack  # they know it: it need not go back
        given_ms = now.mono_ms - message.age_ms
        if not self._wire.stability[message.domain].offer(ack, given_ms):
            return []
        self._liveness.acknowledged(member, given_ms)
        needs = [
            region
            for region, peer in self._peers.items()
            if region not in (link.peer, member) and (other := peer.open_link) and member not in other.links
        ]
        if needs:  # in a full mesh nobody does: each heard it of the member itself
            self._mark(message.domain, member, link.peer, now)
            self._hurry(needs, now)
        return [AckArrived(link.peer, message.domain, ack)]

    @property
    def acks_due_ms(self) -> int | None:
        """When `flush_acks` is next worth calling."""
        if self._urgent_due_ms is None or self._spread_due_ms is None:
            return self._spread_due_ms
        return min(self._urgent_due_ms, self._spread_due_ms)

    def flush_acks(self, links: Iterable[Link], now: Now) -> None:
        """Tell the news that was gathered: our own to everybody, others' where the giver has no link itself."""
        spread = self._spread_due_ms is not None and self._spread_due_ms <= now.mono_ms
        for link in links:
            if spread or link.peer in self._urgent:
                self.ride(link, now.mono_ms)
        self._urgent.clear()
        self._urgent_due_ms = None
        if spread:
            self._dirty.clear()
            self._spread_due_ms = None

    def _mark(self, domain: Domain, member: RegionId, source: RegionId | None, now: Now) -> None:
        self._dirty[domain, member] = source
        if self._spread_due_ms is None:
            self._spread_due_ms = now.mono_ms + self._wire.settings.ack_spread_ms

    def ride(self, link: Link, mono_ms: int) -> None:
        """Tell the peer what acknowledgements are news: they are due, or something goes there anyway."""
        for (domain, member), source in self._dirty.items():
            if domain in link.domains and source != link.peer:
                self._send_ack(link, link.domains[domain], member, mono_ms)

    def _hurry(self, regions: Collection[RegionId], now: Now) -> None:
        """Our news are for these regions. One that we have no link to has to be reached over others: over any."""
        if not regions:
            return
        self._urgent.update(regions)
        if any((peer := self._peers.get(region)) is not None and peer.open_link is None for region in regions):
            self._urgent.update(self._peers)
        if self._urgent_due_ms is None:
            self._urgent_due_ms = now.mono_ms + self._wire.settings.ack_delay_ms

    def _send_ack(self, link: Link, ours: DomainLink, member: RegionId, mono_ms: int) -> None:
        """Tell the peer the newest acknowledgement of `member`, if it may not know it."""
        if member == link.peer or member in link.links:
            return
        if member == self._wire.me:
            ack, given_ms = self._own_acks.get(ours.domain), mono_ms
            if self.recovering or ack is None:
                return
        else:
            heard = self._wire.stability[ours.domain].latest().get(member)
            if heard is None:
                return
            ack, given_ms = heard.ack, heard.mono_ms
        if ours.acks_sent.get(member) == ack:
            return
        ours.acks_sent[member] = ack
        feed = ours.out_acks.setdefault(member, VectorFeed())
        age_ms = max(0, mono_ms - given_ms)
        self._wire.tell(link, AckHeard(ours.domain, member, ack.writer, ack.own_number, feed.delta(ack.heads), age_ms))
