"""What the writing connection does, each function one transaction in its thread."""

from __future__ import annotations

import itertools
import sqlite3
from collections import Counter
from collections.abc import Sequence
from typing import Final

import msgspec

from crdtsync.effects import CommitRow, Persist, TaskRow
from crdtsync.errors import CorruptLogError
from crdtsync.identifiers import Domain, WriterId
from regions.storage import checksum, statements
from regions.storage.connection import BUSY_MS
from regions.storage.store import WriterMarks

# One slice of `compact` holds the write lock and, at its end, costs one fsync. Measured on the
# build machine: 512 pages 5 to 12 ms, 1,000 commits 4 to 10 ms.
SLICE_PAGES: Final = 512
SLICE_COMMITS: Final = 1_000

# Python's sqlite3 gives the interpreter's lock back for each statement that it steps, and has to get it again: while the
# loop computes, that is a wait for each row. With one statement for many rows there is one for all of them.
ROWS_PER_STATEMENT: Final = 32
_PUT_ONE: Final = statements.put_tasks(1)
_PUT_MANY: Final = statements.put_tasks(ROWS_PER_STATEMENT)

_LABELS = msgspec.json.Encoder()


class Writer:
    """The writing side of one database. Belongs to its connection's thread."""

    def __init__(self) -> None:
        self._domains: dict[Domain, int] = {}
        self._writers: dict[tuple[Domain, WriterId], int] = {}
        self._marks: dict[int, WriterMarks] = {}

    def load(self, connection: sqlite3.Connection) -> None:
        """Read the names and marks; again after a transaction that may have changed them was undone."""
        names = dict(connection.execute(statements.DOMAINS).fetchall())
        self._domains = {Domain(name): key for key, name in names.items()}
        self._writers.clear()
        self._marks.clear()
        for key, domain, name, head, floor in connection.execute(statements.WRITERS).fetchall():
            self._writers[Domain(names[domain]), WriterId(name)] = key
            self._marks[key] = WriterMarks(head, floor)

    def append(self, connection: sqlite3.Connection, batch: Persist) -> None:
        """The whole batch in one transaction; the fsync is in its COMMIT."""
        connection.execute(statements.BEGIN)
        try:
            self._commits(connection, batch.commits)
            self._rows(connection, batch.rows)
            if batch.documents:
                connection.executemany(
                    statements.PUT_DOCUMENT,
                    [
                        (
                            self._domain(connection, row.domain),
                            row.task,
                            row.name,
                            checksum.of_named(row.task, row.name, row.state),
                            row.state,
                        )
                        for row in batch.documents
                    ],
                )
            if batch.meta:
                connection.executemany(
                    statements.PUT_META,
                    [(name, checksum.of_named(b"", name, value), value) for name, value in batch.meta],
                )
            for domain, writer, number in batch.drop:
                self._drop(connection, domain, writer, number)
            connection.execute(statements.COMMIT)
        except BaseException:
            # SQLite has undone it itself after most disk errors; asking it twice would be an error.
            if connection.in_transaction:
                connection.execute(statements.ROLLBACK)
            self.load(connection)
            raise

    def next_incarnation(self, connection: sqlite3.Connection, at_least: int) -> int:
        number: int = connection.execute(statements.NEXT_INCARNATION, (at_least, at_least)).fetchall()[0][0]
        return number

    def delete_dropped(self, connection: sqlite3.Connection) -> int:
        """Delete up to `SLICE_COMMITS` commits at or below their writer's floor; returns how many."""
        connection.execute(statements.BEGIN)
        try:
            gone = connection.execute(statements.DROPPABLE, (SLICE_COMMITS,)).fetchall()
            connection.executemany(statements.DELETE_COMMIT, [(position,) for position, _, _ in gone])
            _count(connection, [(writer, 0, -1, -size) for _, writer, size in gone])
            connection.execute(statements.COMMIT)
        except BaseException:
            if connection.in_transaction:
                connection.execute(statements.ROLLBACK)
            raise
        return len(gone)

    def vacuum(self, connection: sqlite3.Connection) -> int:
        """Return up to `SLICE_PAGES` free pages to the file system; returns how many are left."""
        # `execute` ends the statement at its first row, and this one makes a row without columns per
        # page: one page a call. `executescript` steps it to its end.
        connection.executescript(f"PRAGMA incremental_vacuum({SLICE_PAGES})")
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()  # this is what shortens the file
        left: int = connection.execute("PRAGMA freelist_count").fetchone()[0]
        return left

    def truncate_log(self, connection: sqlite3.Connection) -> None:
        """Move the write-ahead log into the database and empty its file, unless a reader is in the way."""
        connection.execute("PRAGMA busy_timeout = 0")
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")

    def _commits(self, connection: sqlite3.Connection, commits: Sequence[CommitRow]) -> None:
        fresh: list[tuple[int, int, int, bytes]] = []
        changes: list[tuple[int, int, int, int]] = []
        for row in commits:
            key = self._writer(connection, row.domain, row.writer)
            marks = self._marks[key]
            crc = checksum.of_commit(row.number, row.blob)
            if row.number > marks.head:
                self._marks[key] = WriterMarks(row.number, marks.floor)
                fresh.append((key, row.number, crc, row.blob))
                changes.append((key, row.number, 1, len(row.blob)))
            elif row.number > marks.floor:
                connection.executemany(statements.INSERT_COMMIT, fresh)  # it may be one of these
                fresh.clear()
                changes.append(_stored_again(connection, key, row, crc))
        connection.executemany(statements.INSERT_COMMIT, fresh)
        _count(connection, changes)

    def _drop(self, connection: sqlite3.Connection, domain: Domain, writer: WriterId, number: int) -> None:
        key = self._writer(connection, domain, writer)
        marks = self._marks[key]
        self._marks[key] = WriterMarks(max(marks.head, number), max(marks.floor, number))
        connection.execute(statements.RAISE_FLOOR, (number, number, key))

    def _rows(self, connection: sqlite3.Connection, rows: Sequence[TaskRow]) -> None:
        if not rows:
            return
        values = []
        labels = []
        # The last of each: labels are written after all rows, so those of an earlier one would stay.
        for row in {(row.domain, row.task): row for row in rows}.values():
            domain = self._domain(connection, row.domain)
            text = _LABELS.encode(row.labels).decode() if row.labels else ""
            crc = checksum.of_task(row, text)
            values.append((domain, *row[1:10], text, row.digest, crc, row.facts))
            for label, value in row.labels:
                labels.append((domain, label, value, row.state, row.created_ms, row.task))
        whole = len(values) - len(values) % ROWS_PER_STATEMENT
        for start in range(0, whole, ROWS_PER_STATEMENT):
            rows_of_one = values[start : start + ROWS_PER_STATEMENT]
            connection.execute(_PUT_MANY, list(itertools.chain.from_iterable(rows_of_one)))
        connection.executemany(_PUT_ONE, values[whole:])
        if labels:
            connection.executemany(statements.PUT_LABEL, labels)

    def _domain(self, connection: sqlite3.Connection, domain: Domain) -> int:
        key = self._domains.get(domain)
        if key is None:
            key = self._domains[domain] = _inserted(connection.execute(statements.INTERN_DOMAIN, (domain,)))
        return key

    def _writer(self, connection: sqlite3.Connection, domain: Domain, writer: WriterId) -> int:
        key = self._writers.get((domain, writer))
        if key is None:
            cursor = connection.execute(statements.INTERN_WRITER, (self._domain(connection, domain), writer))
            key = self._writers[domain, writer] = _inserted(cursor)
            self._marks[key] = WriterMarks(0, 0)
        return key


def _inserted(cursor: sqlite3.Cursor) -> int:
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def _stored_again(connection: sqlite3.Connection, key: int, row: CommitRow, crc: int) -> tuple[int, int, int, int]:
    """Store a commit whose number may be taken; returns what to count.

    The same commit is fine, a damaged one is repaired in its place (its position is still the one
    that its order asks for), and another one is refused: the log must have told us before.
    """
    stored = connection.execute(statements.STORED_COMMIT, (key, row.number)).fetchone()
    if stored is None:
        connection.execute(statements.INSERT_COMMIT, (key, row.number, crc, row.blob))
        return key, row.number, 1, len(row.blob)
    if stored == (crc, row.blob):
        return key, row.number, 0, 0
    if stored[0] == checksum.of_commit(row.number, stored[1]):
        raise CorruptLogError(
            f"another commit {row.number} of {row.writer} is stored already: two histories under one number",
            domain=row.domain,
            writer=row.writer,
            number=row.number,
        )
    connection.execute(statements.REPAIR_COMMIT, (crc, row.blob, key, row.number))
    return key, row.number, 0, len(row.blob) - len(stored[1])


def _count(connection: sqlite3.Connection, changes: Sequence[tuple[int, int, int, int]]) -> None:
    """Add up (writer, number, commits, bytes) per writer, so that totals never need a scan."""
    heads: dict[int, int] = {}
    commits: Counter[int] = Counter()
    size: Counter[int] = Counter()
    for writer, number, more, length in changes:
        heads[writer] = max(number, heads.get(writer, 0))
        commits[writer] += more
        size[writer] += length
    connection.executemany(statements.COUNT_COMMITS, [(heads[key], commits[key], size[key], key) for key in heads])
