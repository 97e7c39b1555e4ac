"""What a store answers to a replica that asks for what is on disk, what is damaged included."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from crdtsync.clock import Now
from crdtsync.effects import Load, Query, ReadCommits, ReadRows, TaskRow
from crdtsync.identifiers import TaskId
from crdtsync.replica import Replica
from regions.storage.store import CorruptRow, CorruptRowError, Store


class Answer(NamedTuple):
    """An answer that waits to be given to the replica, and which damage it met."""

    give: Callable[[Replica, Now], None]
    damaged: tuple[CorruptRow, ...] = ()


async def read(store: Store, effect: Load | ReadCommits | ReadRows | Query) -> Answer:
    """Carry out a reading effect. Raises StorageError when the disk fails."""
    token = effect.token
    match effect:
        case Load(_, domain, tasks):
            rows, damaged = await _rows(store.load_rows(domain, tasks))
            ids = _ids(damaged)
            return Answer(lambda replica, now: replica.loaded(token, rows, now, damaged=ids), damaged)
        case ReadRows(_, domain, after, limit):
            rows, damaged = await _rows(store.read_rows(domain, after, limit))
            ids = _ids(damaged)
            return Answer(lambda replica, now: replica.rows_read(token, rows, now, damaged=ids), damaged)
        case ReadCommits(_, domain, writer, first, bytes_max):
            try:
                blobs = await store.read_commits(domain, writer, first, bytes_max)
            except CorruptRowError as error:
                return Answer(
                    lambda replica, now: replica.commits_read(token, (), now, damaged=(writer, first)), error.rows
                )
            return Answer(lambda replica, now: replica.commits_read(token, blobs, now))
        case Query(_, domain):
            page = await store.query(effect)
            damaged = tuple(CorruptRow("task", domain, task=task) for task in page.damaged)
            return Answer(lambda replica, now: replica.queried(token, page, now), damaged)


async def _rows(reading: Awaitable[list[TaskRow]]) -> tuple[Sequence[TaskRow], tuple[CorruptRow, ...]]:
    try:
        return await reading, ()
    except CorruptRowError as error:
        return error.sound, error.rows


def _ids(damaged: tuple[CorruptRow, ...]) -> list[TaskId]:
    return [TaskId(row.task) for row in damaged]
