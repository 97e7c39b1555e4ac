"""What a replica is told at its start: who it is, who else there is, and its limits.

The core reads no environment and no file; `regions.config` fills this in.
"""

from __future__ import annotations

from dataclasses import dataclass

from crdtsync.identifiers import RegionId


@dataclass(frozen=True, slots=True)
class Settings:
    """All times in milliseconds."""

    cluster: str
    region: RegionId
    node: str
    members: tuple[RegionId, ...]
    namespace: str = "default"

    lost_after_ms: int = 30_000
    """How long a region may be silent before others take over its work. Lower recovers sooner and
    runs more twice."""
    worker_lost_after_ms: int = 3_000
    """How long a worker may be silent, or gone, before its attempts count as lost."""
    heartbeat_ms: int = 1_000
    """How often workers say that they live: a third of `worker_lost_after_ms`."""
    start_grace_ms: int = 1_500
    """After a start, how long to wait for peers and workers before older work is claimed or given up."""
    heads_interval_ms: int = 2_000
    lease_ms: int = 10_000
    """How long a lease lasts unless renewed, and how long a node does not vote after a start. Lower hands over sooner
    when a holder dies; each link must carry a round trip, and each disk a write, well within a third of it."""
    max_hold_lease_ms: int = 60_000
    """How long a region keeps the lease of a busy queue while others wait for it."""
    max_skew_ms: int = 500
    max_hold_ms: int = 3_600_000
    flush_ms: int = 1_000
    """How often changed task rows are written in slices; more often costs disk, less often restart time."""
    retention_ms: int = 86_400_000
    """How long commits stay on disk after every member has them."""
    history_bytes_max: int = 10 * 2**30
    """Commits on disk beyond this refuse new submissions (never completions)."""

    payload_bytes_max: int = 1_048_576
    result_bytes_max: int = 1_048_576
    checkpoint_bytes_max: int = 1_048_576
    labels_max: int = 32
    parents_max: int = 10_000
    live_tasks_max: int = 2_000_000
    ended_kept_max: int = 2_000
    """Ended tasks kept in memory until they settle, so that a connected cluster need not read them back."""
    joining: bool = False
    """True (`--join`): on an empty disk this is no founder. It waits to be added, and learns from `members` who they are."""
    trust_disk: bool = True
    """False (`--restored`): treat the disk as a copy until every member has answered."""
    rights_at_once: bool = False
    """True (`--trust-disk`): use rights of global limits from before this start though not every member has answered."""

    @property
    def others(self) -> tuple[RegionId, ...]:
        return tuple(member for member in self.members if member != self.region)

    @property
    def seeds(self) -> tuple[RegionId, ...]:
        """Who founds the cluster; for a joiner, whom it may ask."""
        return self.others if self.joining else self.members
