"""What is known of one peer region: across links (`Peer`), and of the link that is up now (`Link`)."""

from __future__ import annotations

from typing import Final

from crdtsync.clock import Now
from crdtsync.errors import RemoteProtocolError
from crdtsync.gossip.anti_entropy import Feed
from crdtsync.gossip.credit import CreditIn, CreditOut
from crdtsync.gossip.failure_detector import PhiAccrual
from crdtsync.gossip.offsets import PeerClock
from crdtsync.gossip.settings import GossipSettings
from crdtsync.gossip.snapshots import SnapshotReceiver, SnapshotSender
from crdtsync.gossip.vectors import VectorFeed, VectorMirror
from crdtsync.identifiers import Domain, RegionId
from crdtsync.log.heads import Heads
from crdtsync.log.stability import Ack
from crdtsync.protocol.peer_messages import Hello, PeerMessage
from crdtsync.protocol.session import Session, SessionState

NEVER_MS: Final = 1 << 62  # a time that does not come


class DomainLink:
    """One domain on one link: our vectors on their way out, theirs as last heard, and what they lack."""

    def __init__(self, domain: Domain, feed: Feed) -> None:
        self.domain = domain
        self.feed = feed
        self.out_have, self.out_applied, self.out_floor = VectorFeed(), VectorFeed(), VectorFeed()
        self.have, self.applied, self.floor = VectorMirror(), VectorMirror(), VectorMirror()
        self.out_acks: dict[RegionId, VectorFeed] = {}
        self.acks: dict[RegionId, VectorMirror] = {}
        self.acks_sent: dict[RegionId, Ack] = {}

    def distrust(self) -> None:
        """A frame of theirs was lost."""
        for mirror in (self.have, self.applied, self.floor, *self.acks.values()):
            mirror.distrust()

    def repeat(self) -> None:
        """A frame of ours was lost: say everything again, whole."""
        for feed in (self.out_have, self.out_applied, self.out_floor, *self.out_acks.values()):
            feed.reset()
        self.acks_sent.clear()


class Link:
    """A link that is up, from `connected` to `disconnected`. Everything here ends with it."""

    def __init__(self, peer: RegionId, settings: GossipSettings, now: Now) -> None:
        self.peer = peer
        self._settings = settings
        self.session = Session(peer)
        self.detector = PhiAccrual(now.mono_ms, interval_ms=settings.ping_interval_ms)
        self.suspected = False
        self.credit = CreditOut(0)
        self.domains: dict[Domain, DomainLink] = {}  # in order of name
        self.links: frozenset[RegionId] = frozenset()  # to whom the peer is linked
        self.reading: int | None = None  # token of the read of commits under way
        self.sending: SnapshotSender | None = None
        self.receiving: SnapshotReceiver | None = None
        self.offered_ms: dict[Domain, int] = {}  # when we last said must_snapshot
        self.asked_ms: int | None = None  # when we last asked for our own heads
        self.their_missed = 0  # frames of ours that they say never came
        self.repeat_lost = False  # whether that grew since their last heads
        self.opened = now
        self.heads_sent_ms: int | None = None
        self.heads_due_ms = 0
        self.ping_due_ms = 0
        self.due_ms = 0  # when anything of this is due; kept by `reckon`
        self.round = 0  # of heads exchanges, for the jitter
        self.close_reason = ""
        self.told: list[PeerMessage] = []  # messages that leave in one frame at the end of the turn
        self.takes_bundles = False
        self.takes_packed = False

    @property
    def is_open(self) -> bool:
        return self.session.is_open

    @property
    def hello(self) -> Hello:
        assert self.session.hello is not None, f"no Hello of {self.peer} yet"
        return self.session.hello

    def reckon(self, mono_ms: int) -> None:
        """Work out when something is due on this link. To be called after whatever may have moved it.

        Kept, because the driver asks after every input: to ask all parts of all links anew was a tenth of a
        simulated run.
        """
        state = self.session.state
        if state is SessionState.CLOSING:
            self.due_ms = NEVER_MS
            return
        if state is not SessionState.OPEN:
            self.due_ms = self.opened.mono_ms + self._settings.hello_timeout_ms
            return
        due_ms = min(self.ping_due_ms, self.heads_due_ms, self.detector.last_ms + self._settings.idle_timeout_ms)
        for ours in self.domains.values():
            if ours.feed.waits:
                freed_ms = ours.feed.next_deadline_ms(mono_ms)
                if freed_ms is not None and freed_ms < due_ms:
                    due_ms = freed_ms
        self.due_ms = due_ms

    def domain(self, domain: Domain) -> DomainLink:
        """Raises RemoteProtocolError if it is not one that both sides have."""
        found = self.domains.get(domain)
        if found is None:
            raise RemoteProtocolError(f"domain {domain!r} is not shared with {self.peer}", domain=domain)
        return found

    def reported(self, seen: int, missed: int) -> bool:
        """The peer says how far it has read. Returns whether it lost frames since it last said so.

        Raises:
            RemoteProtocolError: If it has read what was never sent, or forgets what it had missed.
        """
        if seen > self.session.sent or not self.their_missed <= missed <= seen:
            raise RemoteProtocolError(f"{seen} frames seen and {missed} missed of {self.session.sent}")
        lost = missed > self.their_missed
        self.their_missed = missed
        if lost:
            self.repeat_lost = True
            for link in self.domains.values():
                link.repeat()
        return lost


class Peer:
    """A region, linked or not."""

    def __init__(self, region: RegionId, settings: GossipSettings) -> None:
        self.region = region
        self.credit_in = CreditIn(settings.credit_bytes)
        self.link: Link | None = None
        self.clock = PeerClock()
        self.features: int | None = None  # as of its last Hello
        self.refused = ""  # why either side refused the last link
        self.last_have: dict[Domain, Heads] = {}
        self.last_applied: dict[Domain, Heads] = {}
        self.last_digest: dict[Domain, bytes] = {}
        self.diverged: dict[Domain, Heads] = {}  # heads at which its digest was not ours

    @property
    def open_link(self) -> Link | None:
        link = self.link
        return link if link is not None and link.session.state is SessionState.OPEN else None
