"""What this replica and its peers tell each other, and what it takes from that.

Wires `gossip` to the parts: arriving commits go to the log, acknowledgements to stability,
answers about our own history to recovery. A start is *trusted* once every member has answered
for what it knows of our earlier writers (rules.md, Log, heads, restart): before that this replica
acknowledges nothing, and touches nothing older than itself while a peer may know more of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol

from crdtsync.ahead import Ahead
from crdtsync.clock import Now
from crdtsync.coordination.assembly import Assembly
from crdtsync.coordination.leases import Leases
from crdtsync.effects import Effect, TaskRow
from crdtsync.errors import CrdtSyncError, InvalidRequestError
from crdtsync.gossip.arrived import (
    AckArrived,
    Arrived,
    CommitsArrived,
    DemandsHeard,
    LeaseHeard,
    OwnHeadsArrived,
    PeerClosed,
    PeerOpened,
    SnapshotAborted,
    SnapshotDone,
    SnapshotOffered,
    SnapshotRows,
    SynodHeard,
    TwinMet,
    WeAreForgotten,
)
from crdtsync.gossip.gossip import Gossip
from crdtsync.gossip.offsets import Offset
from crdtsync.gossip.settings import GossipSettings
from crdtsync.identifiers import Domain, RegionId, WriterId, node_of
from crdtsync.log.commit import Commit
from crdtsync.log.heads import Heads
from crdtsync.log.stability import Ack
from crdtsync.protocol import codec, features
from crdtsync.protocol.peer_messages import Demand, LimitDemands
from crdtsync.protocol.session import Refusal
from crdtsync.region import RegionState

CUT_BYTES_MAX: Final = 1 << 16
GONE_MS: Final = 10_000  # how long nobody must have a commit that was acknowledged, before it is given up
CATCH_UP_MS: Final = 10_000  # after a heal, how long older work waits at most for the peer's side of the story


class Keeper(Protocol):
    """Where what arrives goes, and what a snapshot of ours holds."""

    def arrived(self, peer: RegionId, blobs: Sequence[bytes], size: int) -> None: ...
    def join_rows(self, peer: RegionId, rows: Sequence[TaskRow], size: int) -> None: ...
    def when_joined(self, then: Callable[[], None]) -> None: ...
    def adopt(self, state: bytes) -> None: ...
    def snapshot_state(self) -> bytes: ...
    def floor(self) -> Heads: ...


class LimitsHost(Protocol):
    """Who is told what peers say about global limits."""

    def heard(self, peer: RegionId, demands: Iterable[Demand]) -> None: ...
    def closed(self, peer: RegionId) -> None: ...


class Neighbours:
    """Everything between this replica and its peers.

    Args:
        restored: The disk is said to be a copy: trust it only after every member has answered.
    """

    def __init__(
        self, here: RegionState, keeper: Keeper, *, restored: bool, open_writer: Callable[[], None] = lambda: None
    ) -> None:
        self._here = here
        self._keeper = keeper
        self._restored = restored
        self._caught: Heads | None = None  # what of `_wanted` is applied
        self._wanted = Heads()  # of our own node's writers, as far as anybody knows them
        self._gone_since_ms: int | None = None  # since when no member has some of that
        self._known_more = False  # a peer knew commits of ours that our disk lacked: it is old, or a copy
        self._ancestors: frozenset[WriterId] = frozenset()
        self._opened_stamp = 0
        self._durable = (Heads(), b"")
        self._catching: dict[RegionId, tuple[int, int, Heads | None]] = {}  # linked since, at most until, its heads
        self._ahead = Ahead(here, lambda peer: self.gossip.peer_have(peer, here.domain))
        self.limits: LimitsHost  # set by the replica, before anything arrives
        self.twin: WriterId | None = None  # another living incarnation of this node: claim and acknowledge nothing
        settings = here.settings
        self.gossip = Gossip(
            here.me,
            here.writer,
            cluster=settings.cluster,
            membership=here.membership,
            logs={here.domain: here.log},
            stability={here.domain: here.stability},
            settings=GossipSettings(
                heads_interval_ms=settings.heads_interval_ms, silent_after_ms=settings.lost_after_ms
            ),
            host=self,
            features=features.OURS,
        )
        self.leases = Leases(
            here,
            tell=self.gossip.tell,
            linked=lambda: self.gossip.readers(features.LEASES),
            distrusted=self._distrusted,
        )
        self.assembly = Assembly(
            here,
            tell=self.gossip.tell,
            linked=lambda: self.gossip.readers(features.MEMBERSHIP),
            older=lambda: self.gossip.without(features.MEMBERSHIP),
            heard_ms=self.last_heard,
            open_writer=open_writer,
        )
        self.forgotten = ""  # what a peer said to us, if it was that we have no part in the cluster
        here.reformed.append(lambda _: self.take(self.gossip.set_membership(here.membership, here.now)))
        self.gossip.recovering = bool(here.others) and here.is_member  # a joiner has told nobody anything yet

    def restore(self, meta: Mapping[str, bytes]) -> None:
        """Take up what the disk remembers. Call once, before anything else.

        Raises:
            RemoteProtocolError: If it is not what we wrote.
        """
        self.assembly.restore(meta)
        self.leases.restore(meta)
        if "cut" in meta:
            names: Any = codec.decode(meta["cut"], bytes_max=CUT_BYTES_MAX)
            self.gossip.set_cut(frozenset(RegionId(name) for name in names))
        self._ahead.restore(meta)

    # What gossip asks (GossipHost) ---------------------------------------------------------------

    def digest(self, domain: Domain) -> tuple[Heads, bytes]:  # noqa: ARG002 - there is one so far
        """Heads that are applied and durable, and the digest of the state there; b"" while it may not be told."""
        heads, digest = self._durable
        if self._here.table.damaged:
            return heads, b""  # what lacks here is no divergence
        return heads, digest if self._ahead.covered(heads) else b""

    def reach(self, domain: Domain) -> Heads | None:  # noqa: ARG002 - there is one so far
        return self._ahead.reach(self._durable[0])

    def floor(self, domain: Domain) -> Heads:  # noqa: ARG002 - there is one so far
        return self._keeper.floor()

    def snapshot_state(self, domain: Domain) -> bytes:  # noqa: ARG002 - there is one so far
        return self._keeper.snapshot_state()

    def next_token(self) -> int:
        return self._here.token()

    def time_ms(self, now: Now) -> int:
        return self._here.clock.physical_ms(now)

    # What the replica says -----------------------------------------------------------------------

    def start(self) -> None:
        """What the disk held is folded: it is durable, and so is its digest."""
        self._durable = (self._here.log.durable_applied, bytes(self._here.table.digest))
        self._acknowledge()
        self.assembly.start()
        self.leases.start()

    def opened(self, ancestors: frozenset[WriterId], stamp: int) -> None:
        """This incarnation's first commit is written; `ancestors` are the earlier ones that the disk knew."""
        self._ancestors = ancestors
        self._opened_stamp = stamp

    def durable(
        self, applied: Heads, digest: bytes, fresh: Sequence[tuple[Commit, RegionId | None]], taken: dict[RegionId, int]
    ) -> None:
        """A batch is on disk: tell peers, acknowledge, let them send on."""
        here = self._here
        self._durable = (applied, digest)
        commits = [(commit.row(), source) for commit, source in fresh]
        self._acknowledge()  # first, so that it rides with the commits
        self.gossip.durable_advanced(here.domain, commits, here.now)
        for peer, size in taken.items():
            self.gossip.taken(peer, size, here.now)

    def _acknowledge(self) -> None:
        here = self._here
        applied, _ = self._durable
        if self.twin is None:  # the other process of this region may be writing what it has not seen
            ack = Ack(here.me, here.writer, here.log.durable_have[here.writer], applied)
            self.gossip.acknowledge(here.domain, ack, here.now)
        here.stability.advance(here.log.applied)

    def folded(self, commit: Commit) -> None:
        """A foreign commit took effect. Another incarnation of this node that writes now is a twin."""
        here = self._here
        here.stability.advance(here.log.applied)
        if node_of(commit.writer) != node_of(here.writer) or commit.writer in self._ancestors:
            return
        if self._opened_stamp and commit.stamp > self._opened_stamp:
            self._met_twin(commit.writer)

    def _met_twin(self, writer: WriterId) -> None:
        if self.twin is None:
            self.twin = writer
            self._here.alarm(
                "incarnation.twin", writer=writer, me=self._here.writer, advice="stop one of the two nodes"
            )

    def take(self, arrived: Iterable[Arrived]) -> None:
        """Hand what came from peers to whoever deals with it."""
        here = self._here
        for item in arrived:
            match item:
                case CommitsArrived(peer, _, blobs, size):
                    self._keeper.arrived(peer, blobs, size)
                case OwnHeadsArrived(peer, _, heads, last_ack):
                    self._answered(peer, heads, last_ack)
                case SnapshotOffered(peer, domain, _):
                    # Facts without commits must not come before those of the log are in their rows again.
                    if not here.deriving and self.gossip.request_snapshot(peer, domain):
                        here.notify("info", "snapshot.requested", peer=peer)
                case SnapshotRows(peer, _, rows, size):
                    self._ahead.rows_came(peer)
                    self._keeper.join_rows(peer, rows, size)
                case SnapshotDone(peer, _, state, until, _, _):
                    self._ahead.complete(peer)
                    self._keeper.when_joined(partial(self._adopt, peer, state, until))
                case SnapshotAborted(peer, _, reason):
                    self._ahead.aborted(peer)
                    here.notify("warning", "snapshot.aborted", peer=peer, reason=reason)
                case PeerOpened(peer):
                    self._catching[peer] = (here.time_ms, here.now.mono_ms + CATCH_UP_MS, None)
                    self._ahead.opened(peer)
                    self.leases.linked(peer)
                case PeerClosed(peer):
                    self._ahead.aborted(peer)  # as a rule it was told before
                    self._catching.pop(peer, None)
                    self.limits.closed(peer)
                case LeaseHeard(peer, writer, message):
                    self.leases.heard(peer, writer, message)
                case DemandsHeard(peer, _, demands):
                    self.limits.heard(peer, demands)
                case TwinMet(writer):
                    self._met_twin(writer)
                case SynodHeard(peer, message):
                    self.assembly.heard(peer, message)
                case WeAreForgotten(peer, reason, detail):
                    self.forgotten = detail
                    here.alarm(
                        "region.forgotten" if reason == Refusal.FORGOTTEN else "region.not_joining",
                        by=peer,
                        advice=detail,
                    )
                case _:  # links opened and closed, acknowledgements: gossip and stability have noted them
                    pass
        here.stability.advance(here.log.applied)

    def _adopt(self, peer: RegionId, state: bytes, until: Heads) -> None:
        try:
            self._keeper.adopt(state)
        except CrdtSyncError as error:
            self._ahead.refused(peer)
            self._here.alarm("snapshot.refused", peer=peer, reason=str(error))
            return
        self._ahead.adopted(peer, until)
        self._here.notify("info", "snapshot.adopted", peer=peer)
        self.gossip.announce(self._here.now)

    # Catching up ---------------------------------------------------------------------------------

    def catching_up_since_ms(self) -> int:
        """Our time of the newest link whose peer's history is still coming in; 0 if there is none."""
        if not self._catching:
            return 0
        here, since_ms = self._here, 0
        for peer, (opened_ms, until_ms, known) in list(self._catching.items()):
            goal = known if known is not None else self.gossip.peer_have(peer, here.domain)
            self._catching[peer] = (opened_ms, until_ms, goal)
            if here.now.mono_ms >= until_ms or (goal is not None and here.log.applied.covers(goal)):
                del self._catching[peer]
            else:
                since_ms = max(since_ms, opened_ms)
        return since_ms

    # Recovery ------------------------------------------------------------------------------------

    def _answered(self, peer: RegionId, heads: Heads, last_ack: Ack | None) -> None:
        """A peer says what it has of our region's writers, and what we last acknowledged to it."""
        here = self._here
        own = Heads({w: n for w, n in heads.items() if node_of(w) == node_of(here.writer) and w != here.writer})
        asked = (
            own if last_ack is None else own.join(Heads({w: n for w, n in last_ack.heads.items() if w != here.writer}))
        )
        self._ancestors |= frozenset(own)
        if not here.log.have.covers(own) and not self._known_more:
            self._known_more = True
            here.alarm("disk.behind", peer=peer, lacking=[list(span) for span in here.log.have.lacking(own)])
        self._wanted = self._wanted.join(asked)

    @property
    def unanswered(self) -> frozenset[RegionId]:
        return self.gossip.unanswered

    @property
    def _caught_up(self) -> bool:
        if self._caught is not self._wanted and self._here.log.applied.covers(self._wanted):
            self._caught = self._wanted  # what is applied never goes back: no need to ask again in each turn
        return self._caught is self._wanted

    def recover(self) -> None:
        """Acknowledge again once every member has answered and all that they know of us is here."""
        if not self.gossip.recovering or self.unanswered:
            return
        if not self._caught_up:
            self._give_up_what_is_gone()
        if self._caught_up:
            self.gossip.recovering = False
            self._here.notify("info", "start.recovered")
            self._acknowledge()

    def _give_up_what_is_gone(self) -> None:
        """What we had acknowledged may have stood on lost disks alone (a clone's that was switched off, and others'):
        it is waited for while any member may have it, and no longer (docs/decisions/0011)."""
        here = self._here
        held = here.log.have
        for region in here.membership.linked:
            theirs = here.log.have if region == here.me else self.gossip.peer_have(region, here.domain)
            if theirs is None:
                self._gone_since_ms = None
                return
            held = held.join(theirs)
        if held.covers(self._wanted):
            self._gone_since_ms = None
        elif self._gone_since_ms is None:
            self._gone_since_ms = here.now.mono_ms
        elif here.now.mono_ms - self._gone_since_ms >= GONE_MS:
            here.alarm("commits.lost", lacking=[list(span) for span in held.lacking(self._wanted)])
            self._wanted = self._wanted.meet(held)

    def runs_ahead(self) -> bool:
        """Whether facts are here, by a snapshot's rows, that the heads do not tell of."""
        return self._ahead.runs_ahead()

    @property
    def lost(self) -> bool:
        """Whether this region was forgotten, as it knows from the log or was told: it leaves all as it is."""
        return bool(self.forgotten) or self._here.membership.has_lost(self._here.me)

    @property
    def takes_part(self) -> bool:
        """Whether this region starts anything: it is a member, and nobody has said that it was forgotten."""
        return self._here.is_member and not self.forgotten

    def _distrusted(self) -> str:
        """Why this node may neither vote for leases nor hold any; "" if it may."""
        if self.forgotten:
            return f"this region has no part in the cluster: {self.forgotten}"
        if self.twin is not None:
            return f"another incarnation of this node is alive: {self.twin}; stop one of the two"
        if (self._restored or self._known_more) and (self.unanswered or not self._caught_up):
            return "the disk may be a copy: first every member must tell what it knows of this region"
        return ""

    def may_touch_old(self) -> bool:
        """Whether tasks older than this incarnation may be claimed, ended and edited here.

        At once when every member has answered; after a short grace otherwise, unless there is reason
        to think that the disk is a copy.
        """
        if not self.takes_part or self.twin is not None or self.runs_ahead() or not self._here.stamps:
            return False
        if not self.unanswered:
            return self._caught_up
        if self._restored or self._known_more:
            return False
        here = self._here
        return here.now.mono_ms >= here.started.mono_ms + here.settings.start_grace_ms

    def may_use_rights(self) -> bool:
        """Whether rights that are older than this incarnation may be used, minted, burned and passed on here.

        Stricter than for tasks, which at worst run twice: what this disk has forgotten may have been given away. So no
        grace will do; every member must have answered, unless an operator has vouched for the disk (`--trust-disk`).
        """
        if self.twin is not None or self.runs_ahead():
            return False
        if not self.unanswered:
            return self._caught_up
        return self._here.settings.rights_at_once and not self._restored and not self._known_more

    # Links ---------------------------------------------------------------------------------------

    def offsets(self, regions: Iterable[RegionId], now: Now) -> dict[RegionId, Offset | None]:
        """Their clocks against ours, linked or not; None where nothing is known."""
        time_ms = self._here.time_ms
        return {region: self.gossip.clock_of(region).best(time_ms, now.mono_ms) for region in regions}

    def readers(self) -> list[tuple[RegionId, WriterId]]:
        """The linked peers that know of limits, and which incarnation each is."""
        found = [(peer, self.gossip.writer_at(peer)) for peer in self.gossip.readers(features.LIMITS)]
        return [(peer, writer) for peer, writer in found if writer is not None]

    def all_know_limits(self) -> bool:
        """Whether every member reads the events of limits, as far as it was met since this start."""
        return bool(self.gossip.common_features() & features.LIMITS)

    def demand(self, peer: RegionId, demands: tuple[Demand, ...]) -> None:
        self.gossip.tell(peer, LimitDemands(self._here.domain, demands))

    def last_heard(self, region: RegionId) -> int | None:
        return self.gossip.last_heard(region)

    def reachable(self, region: RegionId) -> bool:
        return region in self.gossip.open_peers()

    def cut(self, regions: Sequence[str]) -> None:
        """Drop and refuse links to `regions` (all others if empty), also after a restart.

        Raises:
            InvalidRequestError: One of them is not another member. Nothing was cut.
        """
        self._set_cut(self.gossip.cut | self._named(regions))

    def heal(self, regions: Sequence[str]) -> None:
        """Allow links to `regions` (all others if empty) again. Raises InvalidRequestError."""
        self._set_cut(self.gossip.cut - self._named(regions))

    def _named(self, regions: Sequence[str]) -> frozenset[RegionId]:
        others = [region for region in self._here.membership.linked if region != self._here.me]
        for region in regions:
            if region not in others:
                raise InvalidRequestError(
                    f"{region!r} is not another region of this cluster; from {self._here.me} there are "
                    + (", ".join(others) or "none")
                )
        return frozenset(RegionId(region) for region in regions) or frozenset(others)

    def _set_cut(self, regions: frozenset[RegionId]) -> None:
        self.gossip.set_cut(regions)
        self._here.outbox.next.meta["cut"] = codec.encode(tuple(sorted(regions)))
        self._here.notify("warning" if regions else "info", "links.cut", regions=sorted(regions))

    def regions(self) -> list[dict[str, Any]]:
        return self.gossip.regions(self._here.now)

    def links(self) -> list[dict[str, Any]]:
        return self.gossip.links(self._here.now)

    def connected(self, peer: RegionId, now: Now) -> None:
        self.take(self.gossip.connected(peer, now))

    def disconnected(self, peer: RegionId, now: Now) -> None:
        self.take(self.gossip.disconnected(peer, now))

    def receive(self, peer: RegionId, message: bytes, now: Now) -> bool:
        """One frame. Whether anything may follow from it, other than from what became stable by it."""
        heads = self.gossip.counters["heads_received"]
        arrived = self.gossip.receive(peer, message, now)
        if arrived:
            self.take(arrived)
        return self.gossip.counters["heads_received"] != heads or any(type(item) is not AckArrived for item in arrived)

    def take_effects(self) -> list[Effect]:
        return self.gossip.take_effects()
