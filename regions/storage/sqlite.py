"""`SqliteStore`: the data of one node in `DIRECTORY/crdtsync.db`.

Three connections, each with its own thread. One writes; one answers what the replica waits for
(`Load`, `ReadCommits`, `ReadRows`); one does what takes long (queries, snapshots, start-up scans).
With the write-ahead log none of them waits for another.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from crdtsync.effects import DocumentRow, Page, Persist, Query, TaskRow
from crdtsync.errors import CorruptLogError, StorageError
from crdtsync.identifiers import Domain, WriterId
from regions.storage import schema
from regions.storage.connection import Connection, storage_error
from regions.storage.lock import DirectoryLock
from regions.storage.reading import Reader
from regions.storage.store import IDS_MAX, CorruptRow, CorruptRows, Recovered, StoreStats, filters_of
from regions.storage.swiftness import Swiftness
from regions.storage.writing import Writer

FILE: Final = "crdtsync.db"
# `open` checks the structure of a database up to this size (0.6 s per GB from the page cache, the
# speed of the disk otherwise), because a node that starts on a broken one would fail later and
# worse. `integrity_check` also compares each index with its table and takes 3 times as long: that is
# `check`, for when there is time. Damage inside a row is found by its checksum whenever it is read.
QUICK_CHECK_BYTES_MAX: Final = 1 << 30


class SqliteStore:
    """See `Store`. `directory` is made if it does not exist, and belongs to this process while open."""

    def __init__(self, directory: Path) -> None:
        self._path = Path(directory) / FILE
        self._lock = DirectoryLock(Path(directory))
        self._corrupt = CorruptRows()
        self._writer = Writer()
        self._swiftness = Swiftness()
        self._reader = Reader(self._corrupt)
        self._write: Connection | None = None
        self._point: Connection | None = None
        self._scan: Connection | None = None

    async def open(self) -> None:
        assert self._write is None, "open already"
        self._lock.take()
        try:
            self._write = await self._connected(writes=True)
            await self._write.run(schema.prepare)
            if self._path.stat().st_size <= QUICK_CHECK_BYTES_MAX:
                await self._refuse_if_broken(self._write)
            await self._write.run(self._writer.load)
            self._point = await self._connected(writes=False)
            self._scan = await self._connected(writes=False)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        connections = (self._scan, self._point, self._write)
        self._scan = self._point = self._write = None
        for connection in connections:
            if connection is not None:
                # The last to close moves the log into the database; failing that loses nothing.
                with suppress(Exception):
                    await connection.close()
        self._lock.release()

    async def next_incarnation(self, at_least: int = 1) -> int:
        return await self._writing.run(self._writer.next_incarnation, at_least)

    async def append(self, batch: Persist) -> None:
        await self._writing.run(self._append, batch)
        self._corrupt.repaired_by(batch)

    def append_at_once(self, batch: Persist) -> bool:
        writing = self._writing
        if not writing.idle or not self._swiftness.suits(batch):
            return False
        writing.run_at_once(self._append, batch)
        self._corrupt.repaired_by(batch)
        return True

    def _append(self, connection: sqlite3.Connection, batch: Persist) -> None:
        begun = time.monotonic()
        self._writer.append(connection, batch)
        self._swiftness.took(batch, time.monotonic() - begun)

    async def recover(self) -> Recovered:
        return Recovered(await self.meta(), await self._pointing.run(self._reader.marks))

    async def meta(self) -> dict[str, bytes]:
        return await self._pointing.run(self._reader.meta)

    async def heads(self, domain: Domain) -> dict[WriterId, int]:
        marks = await self._pointing.run(self._reader.marks)
        return {writer: mark.head for writer, mark in marks.get(domain, {}).items()}

    async def load_rows(self, domain: Domain, tasks: Sequence[bytes]) -> list[TaskRow]:
        return await self._pointing.run(self._reader.load_rows, domain, tasks)

    async def read_rows(self, domain: Domain, after: bytes, limit: int) -> list[TaskRow]:
        return await self._pointing.run(self._reader.read_rows, domain, after, limit)

    async def read_commits(self, domain: Domain, writer: WriterId, first: int, bytes_max: int) -> list[bytes]:
        return await self._pointing.run(self._reader.read_commits, domain, writer, first, bytes_max)

    async def query(self, query: Query) -> Page:
        return await self._scanning.run(self._reader.query, query, filters_of(query))

    async def documents(self, domain: Domain) -> list[DocumentRow]:
        return await self._scanning.run(self._reader.documents, domain)

    async def live_rows(self, domain: Domain) -> AsyncIterator[list[TaskRow]]:
        after: bytes | None = b""
        while after is not None:
            rows, after = await self._scanning.run(self._reader.live_rows, domain, after)
            if rows:
                yield rows

    async def commits_beyond(self, domain: Domain, heads: Mapping[WriterId, int]) -> AsyncIterator[list[bytes]]:
        position = await self._scanning.run(self._reader.first_beyond, domain, heads)
        while position is not None:
            blobs, position = await self._scanning.run(self._reader.commits_beyond, domain, heads, position)
            if blobs:
                yield blobs

    async def known_ids(self, domain: Domain) -> AsyncIterator[list[bytes]]:
        after = b""
        while ids := await self._scanning.run(self._reader.known_ids, domain, after, IDS_MAX):
            yield ids
            after = ids[-1]

    def corrupt_rows(self) -> tuple[CorruptRow, ...]:
        return self._corrupt.listed()

    async def compact(self) -> int:
        before = self._disk_bytes()
        # Each slice is a hop of its own: appends that come meanwhile stand before the next one.
        while await self._writing.run(self._writer.delete_dropped):
            pass
        while await self._writing.run(self._writer.vacuum):
            pass
        await self._writing.run(self._writer.truncate_log)
        return max(0, before - self._disk_bytes())

    async def check(self) -> list[str]:
        return await self._scanning.run(self._reader.check)

    async def stats(self) -> StoreStats:
        commits, commit_bytes, dropped, tasks, live, documents, free_bytes = await self._scanning.run(
            self._reader.counts
        )
        return StoreStats(
            commits=commits,
            commit_bytes=commit_bytes,
            dropped=dropped,
            tasks=tasks,
            live=live,
            documents=documents,
            disk_bytes=self._disk_bytes(),
            free_bytes=free_bytes,
            corrupt=len(self._corrupt.listed()),
        )

    @property
    def _writing(self) -> Connection:
        return _opened(self._write)

    @property
    def _pointing(self) -> Connection:
        return _opened(self._point)

    @property
    def _scanning(self) -> Connection:
        return _opened(self._scan)

    async def _connected(self, *, writes: bool) -> Connection:
        connection = Connection(self._path, writes=writes)
        try:
            await connection
        except sqlite3.Error as error:
            raise storage_error(error, self._path) from error
        return connection

    async def _refuse_if_broken(self, connection: Connection) -> None:
        problems = await connection.run(quick_check)
        if problems:
            raise CorruptLogError(
                f"{self._path} is damaged ({problems[0]}): move the directory away and start the node again; "
                "it fetches what its peers hold",
                path=str(self._path),
                problems=problems[:10],
            )

    def _disk_bytes(self) -> int:
        files = (self._path, self._path.with_name(FILE + "-wal"))
        return sum(file.stat().st_size for file in files if file.exists())


def quick_check(connection: sqlite3.Connection) -> list[str]:
    return [line for (line,) in connection.execute("PRAGMA quick_check(10)") if line != "ok"]


def _opened(connection: Connection | None) -> Connection:
    if connection is None:
        raise StorageError("the store is closed")
    return connection
