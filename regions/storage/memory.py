"""`MemoryStore`: the same promises as `SqliteStore` but the disk's. For tests, yours too.

What was appended survives `close` and a second `open` of the same object, which is how a test
restarts a node on its data.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from itertools import islice

from crdtsync.effects import CommitRow, Cursor, DocumentRow, Page, Persist, Query, TaskRow
from crdtsync.errors import CorruptLogError, StorageError, StoreLockedError
from crdtsync.identifiers import Domain, TaskId, WriterId
from regions.storage.store import (
    BATCH_BYTES_MAX,
    BATCH_ROWS_MAX,
    IDS_MAX,
    CorruptRow,
    Recovered,
    StoreStats,
    WriterMarks,
    filters_of,
)


class MemoryStore:
    """See `Store`."""

    def __init__(self) -> None:
        self._open = False
        self._incarnation = 0
        self._commits: dict[tuple[Domain, WriterId, int], CommitRow] = {}  # in the order in which they came
        self._marks: dict[tuple[Domain, WriterId], WriterMarks] = {}
        self._rows: dict[tuple[Domain, TaskId], TaskRow] = {}
        self._documents: dict[tuple[Domain, bytes, str], DocumentRow] = {}
        self._meta: dict[str, bytes] = {}
        self._failing: str | None = None

    def fail_appends(self, reason: str | None) -> None:
        """Refuse every append with a StorageError, as a full disk does, until called with None."""
        self._failing = reason

    async def open(self) -> None:
        if self._open:
            raise StoreLockedError("this store is open already", pid=0)
        self._open = True

    async def close(self) -> None:
        self._open = False

    async def next_incarnation(self, at_least: int = 1) -> int:
        self._check_open()
        self._incarnation = max(self._incarnation + 1, at_least)
        return self._incarnation

    async def append(self, batch: Persist) -> None:
        self._check_open()
        if self._failing is not None:
            raise StorageError(self._failing)
        fresh = self._fresh(batch.commits)  # the one step that may refuse, before anything is changed
        for commit in fresh:
            self._commits[commit.domain, commit.writer, commit.number] = commit
            self._raise(commit.domain, commit.writer, WriterMarks(commit.number, 0))
        for row in batch.rows:
            self._rows[row.domain, row.task] = row
        for document in batch.documents:
            self._documents[document.domain, document.task, document.name] = document
        self._meta.update(batch.meta)
        for domain, writer, number in batch.drop:
            self._raise(domain, writer, WriterMarks(number, number))

    async def recover(self) -> Recovered:
        domains: dict[Domain, dict[WriterId, WriterMarks]] = {}
        for domain in [key[0] for keys in (self._marks, self._rows, self._documents) for key in keys]:
            domains.setdefault(domain, {})
        for (domain, writer), marks in self._marks.items():
            if marks.head:
                domains[domain][writer] = marks
        return Recovered(await self.meta(), domains)

    async def meta(self) -> dict[str, bytes]:
        self._check_open()
        return dict(self._meta)

    async def heads(self, domain: Domain) -> dict[WriterId, int]:
        self._check_open()
        return {writer: marks.head for (where, writer), marks in self._marks.items() if where == domain and marks.head}

    async def load_rows(self, domain: Domain, tasks: Sequence[bytes]) -> list[TaskRow]:
        self._check_open()
        found = (self._rows.get((domain, TaskId(task))) for task in tasks)
        return [row for row in found if row is not None]

    async def read_rows(self, domain: Domain, after: bytes, limit: int) -> list[TaskRow]:
        self._check_open()
        return [row for row in self._sorted_rows(domain) if row.task > after][:limit]

    async def read_commits(self, domain: Domain, writer: WriterId, first: int, bytes_max: int) -> list[bytes]:
        self._check_open()
        blobs: list[bytes] = []
        number = max(first, 1)
        floor = self._marks.get((domain, writer), WriterMarks(0, 0)).floor
        while number > floor and (row := self._commits.get((domain, writer, number))) is not None:
            bytes_max -= len(row.blob)
            if blobs and bytes_max < 0:
                break
            blobs.append(row.blob)
            number += 1
        return blobs

    async def query(self, query: Query) -> Page:
        self._check_open()
        filters = filters_of(query)
        rows = [
            row
            for row in self._sorted_rows(query.domain)
            if (filters.state is None or row.state == filters.state)
            and (filters.queue is None or row.queue == filters.queue)
            and (filters.label is None or filters.label in row.labels)
            and (row.conflicts > 0 or not filters.conflicts_only)
            and (query.after is None or _place(row) < query.after)
        ]
        rows.sort(key=_place, reverse=True)
        page: list[TaskRow] = []
        size = 0
        for row in rows:
            size += len(row.facts)
            if page and (len(page) == query.limit or 0 < query.bytes_max < size):
                return Page(tuple(page), _place(page[-1]))
            page.append(row)
        return Page(tuple(page))

    async def documents(self, domain: Domain) -> list[DocumentRow]:
        self._check_open()
        return [row for key, row in sorted(self._documents.items()) if key[0] == domain]

    async def live_rows(self, domain: Domain) -> AsyncIterator[list[TaskRow]]:
        self._check_open()
        rows = iter([row for row in self._sorted_rows(domain) if row.live])
        while batch := list(islice(rows, BATCH_ROWS_MAX)):
            yield batch

    async def commits_beyond(self, domain: Domain, heads: Mapping[WriterId, int]) -> AsyncIterator[list[bytes]]:
        self._check_open()
        batch: list[bytes] = []
        size = 0
        for row in list(self._commits.values()):
            beyond = max(heads.get(row.writer, 0), self._marks[row.domain, row.writer].floor)
            if row.domain != domain or row.number <= beyond:
                continue
            batch.append(row.blob)
            size += len(row.blob)
            if size >= BATCH_BYTES_MAX or len(batch) == BATCH_ROWS_MAX:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    async def known_ids(self, domain: Domain) -> AsyncIterator[list[bytes]]:
        self._check_open()
        ids = iter([bytes(row.task) for row in self._sorted_rows(domain)])
        while batch := list(islice(ids, IDS_MAX)):
            yield batch

    def corrupt_rows(self) -> tuple[CorruptRow, ...]:
        return ()

    async def compact(self) -> int:
        self._check_open()
        before = self._commit_bytes()
        for key in self._dropped():
            del self._commits[key]
        return before - self._commit_bytes()

    async def check(self) -> list[str]:
        self._check_open()
        return []

    async def stats(self) -> StoreStats:
        self._check_open()
        size = self._commit_bytes()
        return StoreStats(
            commits=len(self._commits),
            commit_bytes=size,
            dropped=len(self._dropped()),
            tasks=len(self._rows),
            live=sum(row.live for row in self._rows.values()),
            documents=len(self._documents),
            disk_bytes=size,
            free_bytes=0,
            corrupt=0,
        )

    def _check_open(self) -> None:
        if not self._open:
            raise StorageError("the store is closed")

    def _fresh(self, commits: Sequence[CommitRow]) -> list[CommitRow]:
        """The commits that are not there yet. Raises CorruptLogError when a number is taken."""
        fresh: dict[tuple[Domain, WriterId, int], CommitRow] = {}
        for row in commits:
            key = (row.domain, row.writer, row.number)
            marks = self._marks.get(key[:2], WriterMarks(0, 0))
            stored = fresh.get(key) or self._commits.get(key)
            if row.number <= marks.floor:
                continue
            if stored is None:
                fresh[key] = row
            elif stored.blob != row.blob:
                raise CorruptLogError(
                    f"another commit {row.number} of {row.writer} is stored already: two histories under one number",
                    domain=row.domain,
                    writer=row.writer,
                    number=row.number,
                )
        return list(fresh.values())

    def _raise(self, domain: Domain, writer: WriterId, marks: WriterMarks) -> None:
        old = self._marks.get((domain, writer), WriterMarks(0, 0))
        self._marks[domain, writer] = WriterMarks(max(old.head, marks.head), max(old.floor, marks.floor))

    def _sorted_rows(self, domain: Domain) -> list[TaskRow]:
        return sorted((row for key, row in self._rows.items() if key[0] == domain), key=lambda row: row.task)

    def _dropped(self) -> list[tuple[Domain, WriterId, int]]:
        return [key for key in self._commits if key[2] <= self._marks[key[0], key[1]].floor]

    def _commit_bytes(self) -> int:
        return sum(len(row.blob) for row in self._commits.values())


def _place(row: TaskRow) -> Cursor:
    return row.created_ms, row.task
