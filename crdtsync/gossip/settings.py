"""The limits and rhythms of gossip, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GossipSettings:
    """Times in milliseconds, sizes in bytes. The defaults suit links between continents."""

    heads_interval_ms: int = 2_000
    """How often heads are exchanged with each peer, jittered by a quarter: what was dropped is repaired within one.
    At most 2,400, so that a jittered exchange comes every 3 s."""
    heads_spacing_ms: int = 200
    """The least time between two exchanges with one peer, however much happens: a flapping link must not flood others."""
    ping_interval_ms: int = 1_000
    """Carries round-trip time, clock offset and signs of life. Below a third of `lost_after`, or links of a broken mesh
    would look like silence."""
    ack_delay_ms: int = 50
    """How long an acknowledgement waits for the next on its way to a region whose commits it is for, so that a busy
    second costs 20 frames and not a thousand. That region owns the work, and settles it by this."""
    ack_spread_ms: int = 250
    """The same on its way to all others, unless something else goes there anyway: they only learn by it that what they
    hold is settled. In a quiet mesh of five, sent at once, acknowledgements were half of all frames."""
    slack_ms: int = 120
    """What is due within so long is done with whatever else is due now: links share a turn, messages a frame."""
    hello_timeout_ms: int = 5_000
    """How long a new link may take to say Hello."""
    idle_timeout_ms: int = 5_000
    """A link on which nothing arrives for so long, pings unanswered, is closed. Five lost pings."""
    pause_ms: int = 2_000
    """When we ourselves were not run for longer than this, the silence was ours: nobody is suspected for it."""
    suspect_phi: float = 8.0
    """Suspicion at which a peer shows as `suspect` (failure_detector.py): one false alarm in 10^8 arrivals."""
    silent_after_ms: int = 30_000
    """After so long without a sign of life by any path a region shows as `silent`: the replica's `lost_after`."""

    credit_bytes: int = 1 << 20
    """What one peer may send before the first of it is durable here: bounds memory per peer. Bandwidth x delay of
    100 Mbit/s at 80 ms."""
    batch_bytes: int = 256 << 10
    """Commits are gathered into frames of about this size: a ping behind one waits 20 ms at 100 Mbit/s."""
    cache_bytes: int = 8 << 20
    """Recent durable commits kept in memory, for all peers together, so that live pushes read no disk."""
    snapshot_rows: int = 256
    """Task rows read at a time."""
    snapshot_state_bytes: int = 256 << 20
    """The largest opaque state taken in with a snapshot: documents, declarations, hashes of heads."""
    snapshot_offer_ms: int = 10_000
    """How often a peer is told that it must take a snapshot."""
    stall_ms_max: int = 60_000
    """A peer that does not take a writer's commits (quarantined there) is offered them ever less often, up to this."""
    bulk_commits: int = 64
    """A peer that lacks more commits of a writer than this, and is catching up on them from elsewhere, is left to it."""
