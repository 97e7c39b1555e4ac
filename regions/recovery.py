"""From disk to a running replica: a new incarnation, what was known, and what came after it.

Every start takes a new identity (incarnation and 64 random bits), so a restored or cloned disk
never writes under an old one. Peers take the higher of two incarnations for the later one, and a
restored disk has forgotten the last: so the number counts starts, and is at least the wall time's
(decision 0007). Then the replica is built from the store's meta, the rows that can
still move, and the commits beyond those that the rows are known to contain; folding one again is
harmless, since facts join.

A damaged task row that is met on the way is made again from the log, with all others, where the log
is whole; else its task is named to the replica, which refuses it (docs/decisions/0006).
"""

from __future__ import annotations

from collections.abc import Callable

from crdtsync.clock import Now
from crdtsync.identifiers import DEFAULT_DOMAIN, RegionId, TaskId, WriterId, incarnation_floor, writer_id
from crdtsync.replica import Replica
from crdtsync.settings import Settings
from regions.config import Config
from regions.storage.store import Store


def settings_of(config: Config, *, restored: bool = False, vouched: bool = False) -> Settings:
    """What the core is told of a node's configuration."""
    return Settings(
        cluster=config.cluster,
        region=RegionId(config.region),
        node=config.node_name,
        members=tuple(RegionId(region) for region in config.regions),
        lost_after_ms=config.lost_after_ms,
        lease_ms=config.lease_ms,
        max_hold_lease_ms=config.max_hold_lease_ms,
        worker_lost_after_ms=config.worker_lost_after_ms,
        # Workers also learn by it that the lease under which they run was renewed, every third of it.
        heartbeat_ms=max(1, min(config.worker_lost_after_ms // 3, config.lease_ms // 5)),
        heads_interval_ms=config.heads_interval_ms,
        retention_ms=config.retention_s * 1_000,
        history_bytes_max=config.history_limit_bytes,
        joining=config.join,
        trust_disk=not restored,
        rights_at_once=vouched,
    )


async def recover(settings: Settings, store: Store, entropy: bytes, clock: Callable[[], Now]) -> Replica:
    """Build this start's replica from an open store.

    Args:
        settings: Who this node is.
        store: An open store.
        entropy: 8 random bytes, drawn for this start alone.
        clock: The time, asked again at the end: reading a long log takes a while.

    Raises:
        StorageError: The disk fails; try again, with new entropy.
    """
    known = [writer for domain in (await store.recover()).domains.values() for writer in domain]
    incarnation = await store.next_incarnation(incarnation_floor(clock().wall_ms, settings.region, known))
    return await rebuild(settings, writer_id(settings.region, settings.node, incarnation, entropy), store, clock)


async def rebuild(settings: Settings, writer: WriterId, store: Store, clock: Callable[[], Now]) -> Replica:
    """The replica of the incarnation `writer`, started. Raises StorageError."""
    replica = await _restored(settings, writer, store, clock)
    damaged = [TaskId(row.task) for row in store.corrupt_rows() if row.kind == "task"]
    if damaged and not replica.deriving and replica.may_derive:
        derived = await _restored(settings, writer, store, clock, derive=True)
        if not any(row.kind == "commit" for row in store.corrupt_rows()):  # found just now: all were read
            replica = derived
    if not replica.deriving:
        replica.restore_damaged(damaged)
    for row in store.corrupt_rows():
        facts = {"writer": row.writer, "number": row.number, "task": row.task.hex(), "name": row.name}
        replica.corrupt(row.kind, **{key: value for key, value in facts.items() if value})
    replica.start(clock())
    return replica


async def _restored(
    settings: Settings, writer: WriterId, store: Store, clock: Callable[[], Now], *, derive: bool = False
) -> Replica:
    """A replica that has been given all that is on disk, and not been started."""
    replica = Replica(settings, writer, clock(), (await store.recover()).meta, derive=derive)
    async for ids in store.known_ids(DEFAULT_DOMAIN):
        replica.restore_known(TaskId(id_) for id_ in ids)
    async for rows in store.live_rows(DEFAULT_DOMAIN):
        replica.restore_rows(rows)
    replica.restore_documents(await store.documents(DEFAULT_DOMAIN))
    async for blobs in store.commits_beyond(DEFAULT_DOMAIN, replica.folded_heads):
        replica.restore_commits(blobs)
    return replica
