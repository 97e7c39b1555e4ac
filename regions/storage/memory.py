"""`MemoryStore`: the same promises as `SqliteStore` but the disk's. For tests, yours too.

What was appended survives `close` and a second `open` of the same object, which is how a test
restarts a node on its data.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from itertools import islice, takewhile

from crdtsync.effects import CommitRow, Cursor, DocumentRow, Page, Persist, Query, TaskRow
from crdtsync.errors import CorruptLogError, StorageError, StoreLockedError
from crdtsync.identifiers import Domain, TaskId, WriterId
from regions.storage.store import (
    BATCH_BYTES_MAX,
    BATCH_ROWS_MAX,
    IDS_MAX,
    CorruptRow,
    CorruptRowError,
    CorruptRows,
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
        self._damaged = CorruptRows()  # for good, until stored again
        self._corrupt = CorruptRows()  # as far as reads have met it

    def damage(self, row: CorruptRow) -> None:
        """Make a stored commit or task row unreadable, as a bad disk does, until it is stored again."""
        self._damaged.add(row)

    def fail_appends(self, reason: str | None) -> None:
        """Refuse every append with a StorageError, as a full disk does, until called with None."""
        self._failing = reason

    async def open(self) -> None:
        if self._open:
            raise StoreLockedError("this store is open already", pid=0)
        self._open = True
        self._corrupt = CorruptRows()

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
        self._damaged.repaired_by(batch)
        self._corrupt.repaired_by(batch)
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

    def append_at_once(self, batch: Persist) -> bool:  # noqa: ARG002
        return False  # nothing to gain, and tests fail `append`

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
        found = [row for task in tasks if (row := self._rows.get((domain, TaskId(task)))) is not None]
        sound = [row for row in found if self._task_is_sound(row)]
        if len(sound) < len(found):
            raise CorruptRowError([_of_task(row) for row in found if row not in sound], sound)
        return sound

    async def read_rows(self, domain: Domain, after: bytes, limit: int) -> list[TaskRow]:
        self._check_open()
        rows = [row for row in self._sorted_rows(domain) if row.task > after][:limit]
        sound = list(takewhile(self._task_is_sound, rows))
        if rows and not sound:
            raise CorruptRowError([_of_task(rows[0])])
        return sound

    async def read_commits(self, domain: Domain, writer: WriterId, first: int, bytes_max: int) -> list[bytes]:
        self._check_open()
        blobs: list[bytes] = []
        number = max(first, 1)
        floor = self._marks.get((domain, writer), WriterMarks(0, 0)).floor
        while number > floor and (row := self._commits.get((domain, writer, number))) is not None:
            bytes_max -= len(row.blob)
            if blobs and bytes_max < 0:
                break
            if not self._commit_is_sound(row):
                if not blobs:
                    raise CorruptRowError([_of_commit(row)])
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
                return self._page(page, _place(page[-1]))
            page.append(row)
        return self._page(page, None)

    async def documents(self, domain: Domain) -> list[DocumentRow]:
        self._check_open()
        return [row for key, row in sorted(self._documents.items()) if key[0] == domain]

    async def live_rows(self, domain: Domain) -> AsyncIterator[list[TaskRow]]:
        self._check_open()
        rows = iter([row for row in self._sorted_rows(domain) if row.live and self._task_is_sound(row)])
        while batch := list(islice(rows, BATCH_ROWS_MAX)):
            yield batch

    async def commits_beyond(self, domain: Domain, heads: Mapping[WriterId, int]) -> AsyncIterator[list[bytes]]:
        self._check_open()
        batch: list[bytes] = []
        size = 0
        for row in list(self._commits.values()):
            beyond = max(heads.get(row.writer, 0), self._marks[row.domain, row.writer].floor)
            if row.domain != domain or row.number <= beyond or not self._commit_is_sound(row):
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
        return self._corrupt.listed()

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
            corrupt=len(self._corrupt.listed()),
        )

    def _check_open(self) -> None:
        if not self._open:
            raise StorageError("the store is closed")

    def _task_is_sound(self, row: TaskRow) -> bool:
        return self._is_sound(_of_task(row))

    def _commit_is_sound(self, row: CommitRow) -> bool:
        return self._is_sound(_of_commit(row))

    def _is_sound(self, row: CorruptRow) -> bool:
        if row not in self._damaged:
            return True
        self._corrupt.add(row)
        return False

    def _page(self, rows: Sequence[TaskRow], after: Cursor | None) -> Page:
        sound = tuple(row for row in rows if self._task_is_sound(row))
        return Page(sound, after, tuple(row.task for row in rows if row not in sound))

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


def _of_task(row: TaskRow) -> CorruptRow:
    return CorruptRow("task", row.domain, task=row.task)


def _of_commit(row: CommitRow) -> CorruptRow:
    return CorruptRow("commit", row.domain, row.writer, row.number)


def _place(row: TaskRow) -> Cursor:
    return row.created_ms, row.task
