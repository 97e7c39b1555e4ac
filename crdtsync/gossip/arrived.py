"""What gossip hands to the replica: what came from peers, checked in shape and for who may say it."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from crdtsync.effects import TaskRow
from crdtsync.identifiers import Domain, RegionId, WriterId
from crdtsync.log.heads import Heads
from crdtsync.log.stability import Ack
from crdtsync.protocol.peer_messages import (
    Demand,
    LeaseAnswers,
    LeaseAsks,
    LeasesFreed,
    SynodAccept,
    SynodAccepted,
    SynodNotNow,
    SynodPrepare,
    SynodPromise,
    SynodRefused,
)

SynodMessage: TypeAlias = SynodPrepare | SynodPromise | SynodAccept | SynodAccepted | SynodRefused | SynodNotNow


class PeerOpened(NamedTuple):
    """Both Hellos were accepted."""

    peer: RegionId
    writer: WriterId
    features: int


class PeerClosed(NamedTuple):
    peer: RegionId
    reason: str


class CommitsArrived(NamedTuple):
    """Commits for `DomainLog.receive`, in order. Call `Gossip.taken(peer, size)` once all of them are durable, dropped or
    known before: the peer sends on only then."""

    peer: RegionId
    domain: Domain
    blobs: tuple[bytes, ...]
    size: int


class AckArrived(NamedTuple):
    """An acknowledgement that was news. It has been offered to the domain's `Stability` already."""

    peer: RegionId  # who told; the member itself or a relay
    domain: Domain
    ack: Ack


class OwnHeadsArrived(NamedTuple):
    """What the member `peer` has of our region's writers, and what we acknowledged last, as it remembers.

    It need not have come over a link to that member. The member is no longer in `Gossip.unanswered`.
    """

    peer: RegionId
    domain: Domain
    heads: Heads
    last_ack: Ack | None


class SnapshotOffered(NamedTuple):
    """We lack commits that `peer` has dropped. `Gossip.request_snapshot(peer, domain)` when willing."""

    peer: RegionId
    domain: Domain
    floor: Heads


class SnapshotRows(NamedTuple):
    """Facts to join into ours, some of them ahead of the snapshot's heads. `Gossip.taken(peer, size)` once durable."""

    peer: RegionId
    domain: Domain
    rows: tuple[TaskRow, ...]
    size: int


class SnapshotDone(NamedTuple):
    """All rows have come. `state` is what the peer's host returned as `snapshot_state`."""

    peer: RegionId
    domain: Domain
    state: bytes
    until: Heads  # report no digest before this is applied: rows may hold facts up to here
    floor: Heads
    digest: bytes  # of the peer's state at `until`


class SnapshotAborted(NamedTuple):
    """What has come of it is incomplete; the peer offers it again."""

    peer: RegionId
    domain: Domain
    reason: str


class LeaseHeard(NamedTuple):
    """About leases, from the incarnation `writer` of `peer`."""

    peer: RegionId
    writer: WriterId
    message: LeaseAsks | LeaseAnswers | LeasesFreed


class DemandsHeard(NamedTuple):
    """What `peer` holds, uses and lacks of global limits."""

    peer: RegionId
    domain: Domain
    demands: tuple[Demand, ...]


class TwinMet(NamedTuple):
    """Another incarnation of this very region is alive and not our ancestor: stop claiming (rules.md, Incarnation)."""

    writer: WriterId


class SynodHeard(NamedTuple):
    """About the next version of the membership."""

    peer: RegionId
    message: SynodMessage


class WeAreForgotten(NamedTuple):
    """A peer says that this region has no part in the cluster any more, or never had."""

    peer: RegionId
    reason: str  # a `session.Refusal`
    detail: str


Arrived: TypeAlias = (
    PeerOpened
    | PeerClosed
    | CommitsArrived
    | AckArrived
    | OwnHeadsArrived
    | SnapshotOffered
    | SnapshotRows
    | SnapshotDone
    | SnapshotAborted
    | SynodHeard
    | WeAreForgotten
    | LeaseHeard
    | DemandsHeard
    | TwinMet
)
