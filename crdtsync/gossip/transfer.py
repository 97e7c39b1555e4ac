"""Commits and snapshots on their way, within the credits of each link."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Final

from crdtsync.clock import Now
from crdtsync.effects import CommitRow, ReadCommits, ReadRows, TaskRow
from crdtsync.errors import LocalProtocolError, RemoteProtocolError
from crdtsync.gossip.anti_entropy import CommitCache, Gathered
from crdtsync.gossip.arrived import (
    Arrived,
    CommitsArrived,
    SnapshotAborted,
    SnapshotDone,
    SnapshotOffered,
    SnapshotRows,
)
from crdtsync.gossip.peer import Link, Peer
from crdtsync.gossip.snapshots import SnapshotReceiver, SnapshotSender
from crdtsync.gossip.wire import Wire
from crdtsync.identifiers import Domain, RegionId, WriterId, region_of
from crdtsync.log.heads import Heads
from crdtsync.protocol.codec import encode, encode_uint
from crdtsync.protocol.peer_messages import (
    Commits,
    Credit,
    MustSnapshot,
    SnapshotChunk,
    SnapshotEnd,
    SnapshotRequest,
    SnapshotState,
)

COMMIT_PREAMBLE_BYTES: Final = 2  # a commit's array head and version; domain, writer and number follow


@lru_cache(maxsize=1_024)
def _named(domain: Domain, writer: WriterId) -> bytes:
    """How a commit of this writer goes on behind its preamble."""
    return encode(domain) + encode(writer)


class Transfer:
    """Everything that costs credit, in both directions."""

    def __init__(self, wire: Wire, riders: Callable[[Link], None]) -> None:
        self._wire = wire
        self._riders = riders  # tells the peer what is due anyway, so that it rides along
        self._cache = CommitCache(wire.settings.cache_bytes)
        self._reads: dict[int, tuple[Link, Domain]] = {}

    # Out -------------------------------------------------------------------------------------------------------------

    def durable(
        self, domain: Domain, commits: Iterable[tuple[CommitRow, RegionId | None]], links: Sequence[Link], now: Now
    ) -> None:
        """Commits became durable here, each with the peer that it came from first."""
        for row, source in commits:
            self._cache.add(row)
            for link in links:
                if domain in link.domains:
                    link.domains[domain].feed.durable(row, source, link.links, now.mono_ms)

    def pump(self, link: Link, now: Now) -> None:
        """Send what the peer lacks, as far as its credit and what is in memory reach."""
        if not link.is_open:
            return
        for domain in link.domains:
            while link.credit.available > 0 and self._pump_commits(link, domain, now):
                pass
        if link.sending is not None:
            self._pump_snapshot(link, link.sending)

    def _pump_commits(self, link: Link, domain: Domain, now: Now) -> bool:
        """Take one step; returns whether another may follow."""
        wire = self._wire
        feed = link.domains[domain].feed
        bytes_max = min(wire.settings.batch_bytes, link.credit.available)
        mine = wire.logs[domain].durable_have
        gathered = feed.gather(self._cache, mine, wire.host.floor(domain), bytes_max, now.mono_ms)
        if gathered.runs:
            self._send_commits(link, domain, gathered)
            return True
        if gathered.below_floor:
            self._offer_snapshot(link, domain, now)
        elif gathered.read is not None and link.reading is None:
            link.reading = wire.host.next_token()
            self._reads[link.reading] = (link, domain)
            feed.start_read(gathered.read)
            writer, first = gathered.read
            wire.effects.append(ReadCommits(link.reading, domain, writer, first, bytes_max))
        return False

    def _send_commits(self, link: Link, domain: Domain, gathered: Gathered) -> None:
        wire = self._wire
        self._riders(link)
        wire.send_commits(link, Commits(domain, link.credit.sent, gathered.runs))
        wire.counters["commits_sent"] += sum(len(run.blobs) for run in gathered.runs)
        link.domains[domain].feed.sent(gathered, link.session.sent, wire.logs[domain].durable_have)

    def commits_read(self, token: int, blobs: Sequence[bytes], now: Now) -> Link | None:
        """The answer to `ReadCommits`, and whom it is for. One that nobody waits for any more is ignored."""
        waiting = self._reads.pop(token, None)
        if waiting is None:
            return None
        link, domain = waiting
        link.reading = None
        feed = link.domains[domain].feed
        read = feed.reading
        frames = feed.commits_read(blobs, self._wire.settings.batch_bytes, now.mono_ms)
        if not blobs and read is not None:
            facts = {"domain": domain, "writer": read.writer, "number": read.first}
            self._wire.notify("alarm", "gossip.commits_missing", peer=link.peer, **facts)
        for gathered in frames:
            self._send_commits(link, domain, gathered)
        self.pump(link, now)
        return link

    # Snapshots out ---------------------------------------------------------------------------------------------------

    def _offer_snapshot(self, link: Link, domain: Domain, now: Now) -> None:
        last = link.offered_ms.get(domain)
        if last is None or now.mono_ms - last >= self._wire.settings.snapshot_offer_ms:
            link.offered_ms[domain] = now.mono_ms
            floor = self._wire.host.floor(domain)
            self._wire.send(link, MustSnapshot(domain, tuple(floor.items())))
            self._wire.notify("warning", "gossip.must_snapshot", peer=link.peer, domain=domain)

    def requested(self, link: Link, request: SnapshotRequest, now: Now) -> None:
        """The peer asks for a snapshot. Asking again begins again; only one domain at a time."""
        feed = link.domain(request.domain).feed
        if link.sending is not None and link.sending.domain != request.domain:
            return  # it is offered again later
        feed.paused = True
        link.sending = SnapshotSender(request.domain, self._wire.host.snapshot_state(request.domain))
        self._wire.notify("info", "gossip.snapshot_started", peer=link.peer, domain=request.domain)
        self.pump(link, now)

    def _pump_snapshot(self, link: Link, sender: SnapshotSender) -> None:
        wire = self._wire
        while link.credit.available > 0:
            if sender.wants_rows():
                token = wire.host.next_token()
                self._reads[token] = (link, sender.domain)
                sender.reading = token
                limit = wire.settings.snapshot_rows
                wire.effects.append(ReadRows(token, sender.domain, sender.after, limit))
                return
            if sender.complete:
                self._end_snapshot(link, sender)
                return
            piece = sender.next_piece(link.credit.sent, min(wire.settings.batch_bytes, link.credit.available))
            if piece is None:
                return
            try:
                wire.send_data(link, piece)
            except LocalProtocolError as error:  # one row is larger than a frame may be
                wire.notify("alarm", "gossip.snapshot_failed", peer=link.peer, domain=sender.domain, error=str(error))
                link.sending = None
                link.domains[sender.domain].feed.paused = False  # so that it is offered again, and fails again, seldom
                return

    def _end_snapshot(self, link: Link, sender: SnapshotSender) -> None:
        domain = sender.domain
        until = self._wire.host.reach(domain)
        if until is None:  # so nobody could say how far its rows go: it is offered again
            self._wire.notify("info", "gossip.snapshot_postponed", peer=link.peer, domain=domain)
            link.sending = None
            link.domains[domain].feed.paused = False
            return
        _, digest = self._wire.host.digest(domain)
        floor = self._wire.host.floor(domain)
        end = SnapshotEnd(
            domain, sender.rows_sent, len(sender.state), tuple(until.items()), tuple(floor.items()), digest
        )
        self._wire.send(link, end)
        self._wire.notify("info", "gossip.snapshot_sent", peer=link.peer, domain=domain, rows=sender.rows_sent)
        link.sending = None
        link.domains[domain].feed.paused = False  # goes on from what the peer's next heads say

    def rows_read(self, token: int, rows: Sequence[TaskRow], now: Now) -> None:
        """The answer to `ReadRows`. One that nobody waits for any more is ignored."""
        waiting = self._reads.pop(token, None)
        if waiting is None:
            return
        link, _ = waiting
        if link.sending is not None and link.sending.reading == token:
            link.sending.rows_read(rows)
            self.pump(link, now)

    def rows_damaged(self, token: int) -> None:
        """The answer to `ReadRows` cannot be read. The snapshot ends, never to be taken for whole; it is offered again."""
        link, domain = self._reads.pop(token, (None, None))
        if link is None or domain is None or link.sending is None or link.sending.reading != token:
            return
        self._wire.notify(
            "alarm", "gossip.snapshot_failed", peer=link.peer, domain=domain, error="a task row is damaged here"
        )
        link.sending = None
        link.domains[domain].feed.paused = False

    # In --------------------------------------------------------------------------------------------------------------

    def commits(self, peer: Peer, link: Link, message: Commits, size: int) -> list[Arrived]:
        """Commits came.

        Raises:
            RemoteProtocolError: If one is not what its frame says, or the peer sends beyond its credit.
        """
        feed = link.domain(message.domain).feed
        membership = self._wire.identity.membership
        blobs: list[bytes] = []
        for run in message.runs:
            named = _named(message.domain, run.writer)
            for number, blob in enumerate(run.blobs, run.first):
                if not blob.startswith(named + encode_uint(number), COMMIT_PREAMBLE_BYTES):
                    raise RemoteProtocolError(f"not commit {number} of {run.writer}", writer=run.writer, number=number)
            if not membership.believes(region_of(run.writer)):
                self._wire.counters["commits_of_strangers"] += len(run.blobs)
                continue
            feed.they_sent(run.writer, run.first + len(run.blobs) - 1)
            blobs += run.blobs
        peer.credit_in.arrived(message.offset, size)
        self._wire.counters["commits_received"] += len(blobs)
        if not blobs:
            peer.credit_in.taken(size)
            return []
        return [CommitsArrived(link.peer, message.domain, tuple(blobs), size)]

    def regrant(self, peer: Peer) -> None:
        """Tell the peer of new credit, where that is worth a frame."""
        link = peer.open_link
        granted = peer.credit_in.regrant() if link is not None else None
        if link is not None and granted is not None:
            self._wire.tell(link, Credit(granted))

    def request_snapshot(self, link: Link, domain: Domain) -> None:
        link.domain(domain)
        link.receiving = SnapshotReceiver(domain, self._wire.settings.snapshot_state_bytes)
        self._wire.send(link, SnapshotRequest(domain))

    def offered(self, link: Link, message: MustSnapshot) -> list[Arrived]:
        link.domain(message.domain)
        if link.receiving is not None and link.receiving.domain == message.domain:
            link.receiving = None  # it is not being sent, or it would not be offered
        return [SnapshotOffered(link.peer, message.domain, Heads(message.floor))]

    def rows(self, peer: Peer, link: Link, message: SnapshotChunk, size: int) -> list[Arrived]:
        peer.credit_in.arrived(message.offset, size)
        receiver = link.receiving
        if receiver is None or receiver.domain != message.domain:
            peer.credit_in.taken(size)
            return []
        receiver.rows(message)
        return [SnapshotRows(link.peer, message.domain, message.rows, size)]

    def state_piece(self, peer: Peer, link: Link, message: SnapshotState, size: int) -> list[Arrived]:
        peer.credit_in.arrived(message.offset, size)
        peer.credit_in.taken(size)  # bounded by `snapshot_state_bytes` instead
        if link.receiving is not None and link.receiving.domain == message.domain:
            link.receiving.piece(message)
        return []

    def end(self, link: Link, message: SnapshotEnd) -> list[Arrived]:
        receiver, link.receiving = link.receiving, None
        if receiver is None or receiver.domain != message.domain:
            return []
        state = receiver.end(message)
        if state is None:
            return [self.aborted(link, message.domain, "frames were lost")]
        until, floor = Heads(message.until), Heads(message.floor)
        return [SnapshotDone(link.peer, message.domain, state, until, floor, message.digest)]

    def aborted(self, link: Link, domain: Domain, reason: str) -> Arrived:
        self._wire.notify("warning", "gossip.snapshot_aborted", peer=link.peer, domain=domain, reason=reason)
        return SnapshotAborted(link.peer, domain, reason)

    def closed(self, link: Link) -> list[Arrived]:
        """The link is gone: forget what was under way on it."""
        for token in [token for token, (waiting, _) in self._reads.items() if waiting is link]:
            del self._reads[token]
        if link.receiving is None:
            return []
        return [self.aborted(link, link.receiving.domain, "the link closed")]
