"""Many `Gossip` instances over fake links, disks and clocks, in one thread and virtual time.

The logs are real ones; the tasks are not there: every commit holds one event that nobody folds. A node's "state" is its
applied heads, and its digest a hash of them, so replicas that agree on heads agree on digests by construction.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from heapq import heappop, heappush
from itertools import count, pairwise

from crdtsync.clock import HybridClock, Now
from crdtsync.coordination.membership import Membership
from crdtsync.effects import CommitRow, Disconnect, Notify, ReadCommits, ReadRows, Send, TaskRow
from crdtsync.events import Expired
from crdtsync.gossip.arrived import Arrived, CommitsArrived, SnapshotRows
from crdtsync.gossip.gossip import Gossip
from crdtsync.gossip.settings import GossipSettings
from crdtsync.identifiers import DEFAULT_DOMAIN, RegionId, TaskId, WriterId, writer_id
from crdtsync.log.domain_log import DomainLog
from crdtsync.log.heads import Heads
from crdtsync.log.stability import Ack, Stability
from crdtsync.protocol import features
from crdtsync.protocol.peer_messages import Commits, decode_frame, parts_of
from crdtsync.protocol.session import SessionState

START_WALL_MS = 1_700_000_000_000
DOMAIN = DEFAULT_DOMAIN

Edge = tuple[str, str]


def plain_deadline_ms(gossip: Gossip) -> int | None:
    """What `next_deadline_ms` is to say, from all that may be due, without what the links keep of it."""
    settings, due_ms = gossip._settings, [gossip._exchange.acks_due_ms]
    for peer in gossip._peers.values():
        link = peer.link
        if link is None or link.session.state is SessionState.CLOSING:
            continue
        if not link.is_open:
            due_ms.append(link.opened.mono_ms + settings.hello_timeout_ms)
            continue
        due_ms += [link.ping_due_ms, link.heads_due_ms, link.detector.last_ms + settings.idle_timeout_ms]
        due_ms += [ours.feed.next_deadline_ms(gossip._mono_ms or 0) for ours in link.domains.values()]
    return min((at_ms for at_ms in due_ms if at_ms is not None), default=None)


def mesh(names: Iterable[str]) -> list[Edge]:
    names = sorted(names)
    return [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]


def line(names: Iterable[str]) -> list[Edge]:
    names = list(names)
    return list(pairwise(names))


def ring(names: Iterable[str]) -> list[Edge]:
    names = list(names)
    return [*line(names), (names[0], names[-1])]


@dataclass
class Disk:
    """What survives a restart."""

    commits: dict[WriterId, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    dropped: dict[WriterId, int] = field(default_factory=dict)
    rows: list[TaskRow] = field(default_factory=list)

    def read(self, writer: WriterId, first: int, bytes_max: int) -> list[bytes]:
        dropped = self.dropped.get(writer, 0)
        if first <= dropped:
            return []
        found: list[bytes] = []
        for blob in self.commits[writer][first - dropped - 1 :]:
            if found and bytes_max < len(blob):
                break
            found.append(blob)
            bytes_max -= len(blob)
        return found


class Node:
    """One region: a log, a disk, gossip. It is its gossip's host."""

    def __init__(self, network: Network, region: str, incarnation: int = 1, disk: Disk | None = None) -> None:
        self.network = network
        self.region = RegionId(region)
        self.incarnation = incarnation
        self.writer = writer_id(region, "a", incarnation, incarnation.to_bytes(8, "big"))
        self.disk = disk or Disk()
        self.clock = HybridClock()
        self.log = DomainLog(DOMAIN, self.writer)
        members = [RegionId(name) for name in network.names]
        self.stability = Stability(members)
        self.tokens = count(1)
        self.floor_heads = Heads()
        self.arrived: list[Arrived] = []
        self.notes: list[Notify] = []
        self.pending: list[tuple[CommitRow, RegionId | None]] = []
        self.untaken: list[tuple[RegionId, int]] = []
        self.writing = False
        self.wedged = False  # the disk never returns
        self.digest_salt = b""
        self.alarm_ms = 0  # when the next tick is scheduled for
        for blobs in self.disk.commits.values():
            for blob in blobs:
                self.log.restore_commit(blob)
        self.gossip = Gossip(
            self.region,
            self.writer,
            cluster="test",
            membership=Membership.founding(members),
            logs={DOMAIN: self.log},
            stability={DOMAIN: self.stability},
            settings=network.settings,
            host=self,
            features=0 if self.region in network.old else features.OURS,
        )
        self.apply()
        if incarnation > 1:
            self.acknowledge()

    # GossipHost

    def next_token(self) -> int:
        return next(self.tokens)

    def time_ms(self, now) -> int:
        return self.clock.physical_ms(now)

    def digest(self, _domain) -> tuple[Heads, bytes]:
        heads = self.log.durable_applied
        return heads, blake2b(repr(heads.items()).encode() + self.digest_salt, digest_size=16).digest()

    def reach(self, domain) -> Heads:
        return self.digest(domain)[0]

    def floor(self, _domain) -> Heads:
        return self.floor_heads

    def snapshot_state(self, _domain) -> bytes:
        return repr(self.log.durable_applied.items()).encode()

    # What a replica does

    def write(self, number: int = 1, size: int = 0) -> None:
        """Make `number` commits of our own."""
        for _ in range(number):
            stamp = self.clock.tick(self.network.now)
            name = TaskId(self.log.have[self.writer].to_bytes(16, "big"))
            events = [Expired(name, late=False)] * max(1, size // 20)
            commit = self.log.append(events, stamp)
            self.pending.append((commit.row(), None))
        self.flush()

    def apply(self) -> None:
        wall_ms = self.network.now.wall_ms
        while (commit := self.log.next_applicable(wall_ms)) is not None:
            self.clock.observe(commit.stamp, self.network.now)
            self.log.mark_applied(commit)

    def take(self, arrived: list[Arrived]) -> None:
        self.arrived += [item for item in arrived if not isinstance(item, CommitsArrived)]
        for item in arrived:
            if isinstance(item, CommitsArrived):
                for blob in item.blobs:
                    received = self.log.receive(blob, self.network.now.wall_ms)
                    for commit in received.commits:
                        self.pending.append((commit.row(), item.peer))
                        self.network.came_from[self.region, commit.writer, commit.number] = item.peer
                self.untaken.append((item.peer, item.size))
            elif isinstance(item, SnapshotRows):
                self.untaken.append((item.peer, item.size))
        self.apply()
        self.flush()

    def flush(self) -> None:
        """Start a batch, if none is under way: group commit."""
        if self.writing or self.wedged or not (self.pending or self.untaken):
            return
        self.writing = True
        batch, self.pending = self.pending, []
        taken, self.untaken = self.untaken, []
        have, applied = self.log.have, self.log.applied
        self.network.after(self.network.disk_ms, lambda: self.persisted(batch, taken, have, applied), self)

    def persisted(self, batch, taken, have: Heads, applied: Heads) -> None:
        self.writing = False
        for row, _source in batch:
            self.disk.commits[row.writer].append(row.blob)
        self.log.mark_durable(have, applied)
        now = self.network.now
        self.gossip.durable_advanced(DOMAIN, batch, now)
        for peer, size in taken:
            self.gossip.taken(peer, size, now)
        self.stability.advance(self.log.applied)
        self.acknowledge()
        self.flush()

    def acknowledge(self) -> None:
        own = self.log.durable_have[self.writer]
        ack = Ack(self.region, self.writer, own, self.log.durable_applied)
        self.gossip.acknowledge(DOMAIN, ack, self.network.now)


class Network:
    """Regions, the links between them, and virtual time.

    Args:
        edges: Who is linked with whom while nothing is cut.
        loss: Share of frames that vanish.
        old: Regions whose version knows no features.
        jitter_ms: Added to the latency of each frame at random, without changing their order.
    """

    def __init__(
        self,
        names: Iterable[str],
        edges: Iterable[Edge],
        *,
        seed: int = 0,
        latency_ms: int = 10,
        disk_ms: int = 2,
        redial_ms: int = 500,
        loss: float = 0.0,
        jitter_ms: int = 0,
        settings: GossipSettings | None = None,
        old: Iterable[str] = (),
    ) -> None:
        self.old = frozenset(old)
        self.names = sorted(names)
        self.edges = {tuple(sorted(edge)) for edge in edges}
        self.settings = settings or GossipSettings()
        self.latency_ms, self.disk_ms, self.redial_ms = latency_ms, disk_ms, redial_ms
        self.loss, self.jitter_ms = loss, jitter_ms
        self.lose_next_commits: set[Edge] = set()  # directions in which the next frame of commits vanishes
        self.black_holes: set[Edge] = set()  # directions in which every frame does
        self.arrives_ms: dict[Edge, int] = {}  # of the last frame, per direction: frames do not overtake each other
        self.random = random.Random(f"network {seed}")
        self.mono_ms = 1_000
        self.queue: list[tuple[int, int, Node | None, Callable[[], None]]] = []
        self.order = count()
        self.up: dict[Edge, int] = {}  # generation of the link that is up
        self.generations = count(1)
        self.cut: set[Edge] = set()  # links that are refused; those that are up are black holes
        self.sent: dict[str, int] = defaultdict(int)
        self.commits_sent: list[tuple[str, str, WriterId, int]] = []
        self.came_from: dict[tuple[str, WriterId, int], str] = {}
        self.frames: list[tuple[str, str, bytes]] = []
        self.recording = False
        self.nodes = {name: Node(self, name) for name in self.names}
        for edge in sorted(self.edges):
            self.after(0, lambda edge=edge: self.dial(edge))

    @property
    def now(self) -> Now:
        return Now(START_WALL_MS + self.mono_ms, self.mono_ms)

    def after(self, delay_ms: int, action: Callable[[], None], node: Node | None = None) -> None:
        heappush(self.queue, (self.mono_ms + delay_ms, next(self.order), node, action))

    # Links

    def dial(self, edge: Edge) -> None:
        if edge in self.up or edge not in self.edges:
            return
        a, b = (self.nodes[name] for name in edge)
        if edge in self.cut or not a.gossip.allowed(b.region) or not b.gossip.allowed(a.region):
            self.after(self.redial_ms, lambda: self.dial(edge))
            return
        self.up[edge] = next(self.generations)
        a.take(a.gossip.connected(b.region, self.now))
        b.take(b.gossip.connected(a.region, self.now))
        self.carry(a)
        self.carry(b)

    def hang_up(self, edge: Edge) -> None:
        """Both ends learn that the link is gone, and dial again after a while."""
        if self.up.pop(edge, None) is None:
            return
        for name, other in (edge, edge[::-1]):
            self.nodes[name].take(self.nodes[name].gossip.disconnected(RegionId(other), self.now))
        for name in edge:
            self.carry(self.nodes[name])
        self.after(self.redial_ms, lambda: self.dial(edge))

    def cut_off(self, name: str) -> None:
        self.cut |= {edge for edge in self.edges if name in edge}

    def heal(self) -> None:
        self.cut.clear()

    def restart(self, name: str) -> Node:
        """Kill -9, and start again on what the disk holds."""
        for edge in [edge for edge in self.up if name in edge]:
            self.hang_up(edge)
        old = self.nodes[name]
        node = self.nodes[name] = Node(self, name, old.incarnation + 1, old.disk)
        return node

    # Effects

    def carry(self, node: Node) -> None:
        for effect in node.gossip.take_effects():
            match effect:
                case Send(peer, message):
                    self.deliver(node, str(peer), message)
                case Disconnect(peer, _):
                    edge = tuple(sorted((str(node.region), str(peer))))
                    generation = self.up.get(edge)
                    self.after(self.latency_ms, lambda e=edge, g=generation: self.up.get(e) == g and self.hang_up(e))
                case ReadCommits(token, _, writer, first, bytes_max):
                    blobs = node.disk.read(writer, first, bytes_max)
                    self.after(1, lambda t=token, b=blobs: node.gossip.commits_read(t, b, self.now), node)
                case ReadRows(token, _, after, limit):
                    rows = [row for row in node.disk.rows if row.task > after][:limit]
                    self.after(1, lambda t=token, r=rows: node.gossip.rows_read(t, r, self.now), node)
                case Notify():
                    node.notes.append(effect)
        deadline_ms = node.gossip.next_deadline_ms()
        plain_ms = plain_deadline_ms(node.gossip)
        assert deadline_ms == plain_ms or (deadline_ms or 0) <= self.mono_ms, (deadline_ms, plain_ms, self.mono_ms)
        if deadline_ms is not None and not self.mono_ms < node.alarm_ms <= deadline_ms:
            node.alarm_ms = max(self.mono_ms + 1, deadline_ms)
            self.after(node.alarm_ms - self.mono_ms, lambda: self.tick(node), node)

    def tick(self, node: Node) -> None:
        deadline_ms = node.gossip.next_deadline_ms()
        if deadline_ms is not None and deadline_ms <= self.mono_ms:
            node.gossip.tick(self.now)

    def deliver(self, node: Node, peer: str, message: bytes) -> None:
        edge = tuple(sorted((str(node.region), peer)))
        generation = self.up.get(edge)
        self.sent["frames"] += 1
        self.sent["bytes"] += len(message)
        self.note(str(node.region), peer, message)
        source = str(node.region)
        lost = self.random.random() < self.loss or (source, peer) in self.black_holes
        if (source, peer) in self.lose_next_commits and any(
            isinstance(part, Commits) for part in parts_of(decode_frame(message).message)
        ):
            self.lose_next_commits.discard((source, peer))
            lost = True
        if generation is None or edge in self.cut or lost:
            self.sent["dropped"] += 1
            return

        def arrive() -> None:
            if self.up.get(edge) != generation or edge in self.cut:
                return
            receiver = self.nodes[peer]
            receiver.take(receiver.gossip.receive(RegionId(source), message, self.now))
            self.carry(receiver)

        delay_ms = self.latency_ms + (self.random.randrange(self.jitter_ms) if self.jitter_ms else 0)
        at_ms = max(self.mono_ms + delay_ms, self.arrives_ms.get((source, peer), 0))
        self.arrives_ms[source, peer] = at_ms
        self.after(at_ms - self.mono_ms, arrive)

    def note(self, source: str, peer: str, message: bytes) -> None:
        """Keep account of every commit that is sent, and of where each node had it from."""
        if self.recording:
            self.frames.append((source, peer, message))
        for part in parts_of(decode_frame(message).message):
            for run in part.runs if isinstance(part, Commits) else ():
                for number in range(run.first, run.first + len(run.blobs)):
                    self.commits_sent.append((source, peer, run.writer, number))
                    self.sent["commits"] += 1

    # Time

    def run(self, for_ms: int) -> None:
        until_ms = self.mono_ms + for_ms
        for node in self.nodes.values():
            self.carry(node)
        while self.queue and self.queue[0][0] <= until_ms:
            at_ms, _, node, action = heappop(self.queue)
            self.mono_ms = max(self.mono_ms, at_ms)
            if node is not None and self.nodes[node.region] is not node:
                continue  # it was killed
            action()
            if node is not None:
                self.carry(node)
        self.mono_ms = until_ms

    def converged(self) -> bool:
        """Whether everybody has applied, durably, all that anybody has."""
        everything = Heads()
        for node in self.nodes.values():
            everything = everything.join(node.log.have)
        return all(node.log.durable_applied == everything for node in self.nodes.values())

    def run_until_converged(self, within_ms: int) -> int:
        """How long it took."""
        start_ms = self.mono_ms
        while not self.converged():
            assert self.mono_ms - start_ms < within_ms, {n: node.log.durable_applied for n, node in self.nodes.items()}
            self.run(50)
        return self.mono_ms - start_ms
