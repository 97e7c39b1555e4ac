"""What a replica's driver keeps on disk, as a protocol, with the records that cross it.

`MemoryStore` and `SqliteStore` implement it, and one conformance suite runs on both
(tests/conformance/test_stores.py). A store decides nothing: it makes one `Persist` batch durable
at a time and answers reads. Commits are the truth; task rows and documents are what is left of
commits that were dropped, so they are guarded alike: every stored blob carries a checksum, and a
row that fails it is *reported* with its name, never guessed and never passed off as absent.

A store belongs to one process (and one event loop). Reads never delay an append.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from crdtsync.effects import DocumentRow, Page, Persist, Query, TaskRow
from crdtsync.errors import CorruptLogError
from crdtsync.identifiers import Domain, WriterId

BATCH_ROWS_MAX: Final = 1_000  # rows in one list of an iterating read: about 1 MB at usual sizes
BATCH_BYTES_MAX: Final = 1 << 20  # ... and bytes of commits, whichever is reached first
IDS_MAX: Final = 20_000  # ids in one list of `known_ids`: 16 bytes each


class CorruptRow(NamedTuple):
    """What a damaged row held, so that it can be fetched again from peers. Unused fields are empty."""

    kind: str  # "commit" | "task" | "document" | "meta"
    domain: Domain
    writer: str = ""  # commit
    number: int = 0  # commit
    task: bytes = b""  # task, document
    name: str = ""  # document, meta


class CorruptRowError(CorruptLogError):
    """A row that was asked for by name fails its checksum. Everything else can still be read.

    `rows` names what is damaged. Store the same commit, row or document again to repair it.
    `sound` are the task rows of the same read that are whole.
    """

    def __init__(self, rows: Sequence[CorruptRow], sound: Sequence[TaskRow] = ()) -> None:
        self.rows = tuple(rows)
        self.sound = tuple(sound)
        names = ", ".join(_describe(row) for row in self.rows[:3])
        more = f" and {len(self.rows) - 3} more" if len(self.rows) > 3 else ""
        super().__init__(f"damaged on disk: {names}{more}; fetch it again from a peer", damaged=len(self.rows))


class WriterMarks(NamedTuple):
    """How far a writer's commits reach here: numbers above `floor` up to `head` are on disk."""

    head: int
    floor: int  # the highest number that was dropped, 0 for none


@dataclass(frozen=True, slots=True)
class Recovered:
    """All that a replica needs before it reads its first row. `commits_beyond` and `live_rows`
    bring the rest, in batches."""

    meta: dict[str, bytes]
    domains: dict[Domain, dict[WriterId, WriterMarks]]


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Sizes and counts. Bytes of commits are those of their blobs; disk bytes are those of files."""

    commits: int
    commit_bytes: int
    dropped: int  # commits that were dropped, but whose disk is not yet released
    tasks: int
    live: int
    documents: int
    disk_bytes: int  # database and write-ahead log
    free_bytes: int  # inside the database file: `compact` gives them back
    corrupt: int  # damaged rows found since the store was opened


class Store(Protocol):
    """Durable memory of one node. Every method but `open` needs an open store.

    All methods raise StorageError when the disk fails; none leaves anything half done.
    """

    async def open(self) -> None:
        """Take the data for this process, bring its schema up to date and check it.

        Raises:
            StoreLockedError: Another process has it; the message names its pid.
            SchemaVersionError: It was written by a newer version of this program.
            CorruptLogError: It cannot be read at all.
        """

    async def close(self) -> None:
        """Release everything. Harmless when not open, also after a failed `open`."""

    async def next_incarnation(self, at_least: int = 1) -> int:
        """Count one more start of this node: above all before it, and `at_least` so much; durable when it returns."""

    async def append(self, batch: Persist) -> None:
        """Make all of `batch` durable, or nothing of it.

        A commit that is there already is left alone, and replaced when its stored form is
        damaged; rows, documents and meta replace what had their key. What `drop` names is gone
        from every read when this returns; `compact` releases its disk.

        Cancelling the caller does not cancel the write.

        Raises:
            StorageError: Disk full, I/O error, or another commit under a number that is taken.
                Nothing of the batch is there, and the store can be used further.
        """

    def append_at_once(self, batch: Persist) -> bool:
        """As `append`, done when it returns True. False, and nothing happened, where the caller would have to wait for
        longer than a hop to another thread and back takes: then `append` is the better way.

        Raises:
            StorageError: As `append`.
        """

    async def recover(self) -> Recovered:
        """Meta, heads and floors. Damaged meta is left out, and listed by `corrupt_rows`."""

    async def meta(self) -> dict[str, bytes]: ...

    async def heads(self, domain: Domain) -> dict[WriterId, int]:
        """The last number stored per writer, dropped commits included."""

    async def load_rows(self, domain: Domain, tasks: Sequence[bytes]) -> list[TaskRow]:
        """The rows of `tasks`, in the order asked for; absent ones are missing.

        Raises:
            CorruptRowError: Some are there, and damaged. It holds the others.
        """

    async def read_rows(self, domain: Domain, after: bytes, limit: int) -> list[TaskRow]:
        """Up to `limit` rows with an id greater than `after`, in id order.

        Raises:
            CorruptRowError: The first of them is damaged. (A later one ends the list before it.)
        """

    async def read_commits(self, domain: Domain, writer: WriterId, first: int, bytes_max: int) -> list[bytes]:
        """Blobs of `writer` from number `first` on, without a gap: one if there is any, then as
        many as fit into `bytes_max` together. Empty when `first` was dropped or is not there.

        Raises:
            CorruptRowError: Number `first` is damaged. (A later one ends the list before it.)
        """

    async def query(self, query: Query) -> Page:
        """A page of the rows that match all filters, newest first (`created_ms`, then id), and
        where the next one begins. From an index, however far into the listing the page is: under
        100 ms among a million rows. Damaged rows are left out, and named beside them.

        Raises:
            ValueError: An unknown filter or kind of query.
        """

    async def documents(self, domain: Domain) -> list[DocumentRow]:
        """All documents, by (task, name). Damaged ones are left out, and listed by `corrupt_rows`."""

    def live_rows(self, domain: Domain) -> AsyncIterator[list[TaskRow]]:
        """All rows marked live, in batches. Damaged ones are left out, and listed by `corrupt_rows`."""

    def commits_beyond(self, domain: Domain, heads: Mapping[WriterId, int]) -> AsyncIterator[list[bytes]]:
        """The commits above `heads` (a writer that is missing there counts as 0), in the order in
        which they were stored. Damaged ones are left out, and listed by `corrupt_rows`."""

    def known_ids(self, domain: Domain) -> AsyncIterator[list[bytes]]:
        """The ids of all stored tasks, in id order."""

    def corrupt_rows(self) -> tuple[CorruptRow, ...]:
        """What was found damaged since `open` and not stored again since, up to `CORRUPT_MAX`."""

    async def compact(self) -> int:
        """Give disk that is no longer needed back, in slices that never hold up an append for
        long. Returns the bytes by which the files shrank."""

    async def check(self) -> list[str]:
        """Read everything and describe what is wrong, one line each; empty when all is well."""

    async def stats(self) -> StoreStats: ...


CORRUPT_MAX: Final = 10_000  # damaged rows remembered; a disk that has more is to be replaced, not repaired


class CorruptRows:
    """The damaged rows that reads came across. Bounded by `CORRUPT_MAX`; forgets what was repaired."""

    def __init__(self) -> None:
        self._rows: dict[CorruptRow, None] = {}

    def add(self, row: CorruptRow) -> None:
        if len(self._rows) < CORRUPT_MAX:
            self._rows[row] = None

    def repaired_by(self, batch: Persist) -> None:
        if not self._rows:
            return
        for commit in batch.commits:
            self._rows.pop(CorruptRow("commit", commit.domain, commit.writer, commit.number), None)
        for row in batch.rows:
            self._rows.pop(CorruptRow("task", row.domain, task=row.task), None)
        for document in batch.documents:
            self._rows.pop(CorruptRow("document", document.domain, task=document.task, name=document.name), None)
        for name, _ in batch.meta:
            self._rows.pop(CorruptRow("meta", Domain(""), name=name), None)

    def __contains__(self, row: CorruptRow) -> bool:
        return row in self._rows

    def listed(self) -> tuple[CorruptRow, ...]:
        return tuple(self._rows)


def _describe(row: CorruptRow) -> str:
    if row.kind == "commit":
        return f"commit {row.number} of {row.writer} in {row.domain}"
    if row.kind == "task":
        return f"task {row.task.hex()} in {row.domain}"
    if row.kind == "document":
        return f"document {row.name!r} of {row.task.hex() or 'all'} in {row.domain}"
    return f"meta {row.name!r}"


class Filters(NamedTuple):
    """The `where` of a `Query`, by name. None filters nothing."""

    conflicts_only: bool
    state: str | None
    queue: str | None
    label: tuple[str, str] | None


def filters_of(query: Query) -> Filters:
    """Raises ValueError for what no store knows how to answer."""
    if query.what not in ("tasks", "conflicts"):
        raise ValueError(f"cannot query {query.what!r}: it is 'tasks' or 'conflicts'")
    where = dict(query.where)
    if unknown := sorted(where.keys() - {"state", "queue", "label"}):
        raise ValueError(f"cannot filter by {unknown[0]!r}: it is 'state', 'queue' or 'label'")
    label = where.get("label")
    return Filters(
        conflicts_only=query.what == "conflicts",
        state=where.get("state"),
        queue=where.get("queue"),
        label=None if label is None else (label[0], label[1]),
    )
