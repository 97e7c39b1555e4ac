"""What gossip's parts share: who we are, what the host can be asked, and the way out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from crdtsync.clock import Now
from crdtsync.effects import Disconnect, Effect, Notify, Send
from crdtsync.errors import LocalProtocolError
from crdtsync.gossip.peer import Link
from crdtsync.gossip.settings import GossipSettings
from crdtsync.identifiers import Domain, RegionId
from crdtsync.log.domain_log import DomainLog
from crdtsync.log.heads import Heads
from crdtsync.log.stability import Stability
from crdtsync.protocol.peer_messages import (
    BUNDLE_MESSAGES_MAX,
    KIND_OF,
    PACK_BYTES_MIN,
    PACKED,
    Bundle,
    Commits,
    PeerMessage,
    pack_frame,
)
from crdtsync.protocol.session import Identity


class GossipHost(Protocol):
    """What gossip asks of the replica it belongs to. All of it is answered at once, from memory."""

    def next_token(self) -> int:
        """A token for a read, different from all others that the driver will answer."""
        ...

    def time_ms(self, now: Now) -> int:
        """What this region takes for real time: `HybridClock.physical_ms`."""
        ...

    def digest(self, domain: Domain) -> tuple[Heads, bytes]:
        """The durable applied heads, and the digest of the state at exactly these; b"" when it is not known (a batch
        is under way) or not to be compared (a snapshot is being taken in)."""
        ...

    def reach(self, domain: Domain) -> Heads | None:
        """Heads that cover every fact here, also those of snapshots that run ahead of the durable heads. None while
        nobody knows: one is coming in, or broke off."""
        ...

    def floor(self, domain: Domain) -> Heads:
        """Up to where commits are dropped here."""
        ...

    def snapshot_state(self, domain: Domain) -> bytes:
        """The log's state, declarations and documents, for `SnapshotDone.state` at a peer.

        Called before rows are read. Its heads cover no more than the rows that are on disk now: flush first, or take
        the heads that the rows are known to contain.
        """
        ...


@dataclass(slots=True)
class Wire:
    """The way out: effects in order, and counts of what passed."""

    identity: Identity
    settings: GossipSettings
    logs: Mapping[Domain, DomainLog]
    stability: Mapping[Domain, Stability]
    host: GossipHost
    effects: list[Effect] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)
    _telling: dict[Link, None] = field(default_factory=dict)  # links with messages that wait for the end of the turn

    @property
    def me(self) -> RegionId:
        return self.identity.region

    def tell(self, link: Link, message: PeerMessage) -> None:
        """A message of a kind that comes in bundles. It leaves with whatever else the peer is told in this turn."""
        link.told.append(message)
        self._telling[link] = None
        if len(link.told) == BUNDLE_MESSAGES_MAX:
            self.flush(link)

    def flush(self, link: Link) -> None:
        """What the peer was told leaves now, before anything else does."""
        self._telling.pop(link, None)
        told, link.told = link.told, []
        if len(told) > 1 and link.takes_bundles:
            try:
                self._frame(link, Bundle(tuple(told)))
                return
            except LocalProtocolError:  # vectors of very many writers: each may be as large as a frame
                pass
        for message in told:
            self._frame(link, message)

    def told(self) -> list[Link]:
        """The links with messages that have not left yet."""
        return list(self._telling)

    def flush_all(self) -> None:
        """The turn is over."""
        for link in list(self._telling):
            self.flush(link)

    def forget(self, link: Link) -> None:
        """The link is gone: nothing leaves on it any more."""
        link.told.clear()
        self._telling.pop(link, None)

    def send(self, link: Link, message: PeerMessage) -> int:
        """One frame to the peer, behind what it was told. Returns its size in bytes before it was packed."""
        if link.told:
            self.flush(link)
        return self._frame(link, message)

    def _frame(self, link: Link, message: PeerMessage) -> int:
        """One frame, packed where that is worth while. Returns its size before that: memory is what credits bound."""
        frame = link.session.encode(message)
        size = len(frame)
        if size >= PACK_BYTES_MIN and link.takes_packed and KIND_OF[type(message)] in PACKED:
            frame = pack_frame(link.session.sent, frame)
        self.effects.append(Send(link.peer, frame))
        self.counters["frames_sent"] += 1
        self.counters["bytes_sent"] += len(frame)
        return size

    def send_data(self, link: Link, message: PeerMessage) -> None:
        """One frame that costs credit."""
        link.credit.spend(self.send(link, message))

    def send_commits(self, link: Link, message: Commits) -> None:
        """Commits, with what the peer was told before them in the same frame. All of it costs credit."""
        size = sum(map(len, (blob for run in message.runs for blob in run.blobs)))
        if link.told and link.takes_bundles and size <= self.settings.batch_bytes:
            told, link.told = link.told, []
            self._telling.pop(link, None)
            link.credit.spend(self._frame(link, Bundle((*told, message))))
        else:
            self.send_data(link, message)

    def disconnect(self, link: Link, reason: str) -> None:
        self.flush(link)
        link.close_reason = reason
        self.effects.append(Disconnect(link.peer, reason))

    def notify(self, level: str, what: str, **facts: Any) -> None:
        self.effects.append(Notify(level, what, facts))
