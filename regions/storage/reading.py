"""What the reading connections do, each function in its connection's thread.

An iterating read is a series of short ones, each starting where the last ended: a read
transaction that stays open would keep the write-ahead log from being emptied.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from crdtsync.effects import Cursor, DocumentRow, Page, Query, TaskRow
from crdtsync.identifiers import Domain, TaskId, WriterId
from regions.storage import checksum, statements
from regions.storage.store import (
    BATCH_BYTES_MAX,
    BATCH_ROWS_MAX,
    CorruptRow,
    CorruptRowError,
    CorruptRows,
    Filters,
    WriterMarks,
)

INTEGER_MAX: Final = 2**63 - 1  # SQLite's; also "no limit"
MANY: Final = 20_000  # matches up to which a filter is worth counting, 2 ms

_LABELS = msgspec.json.Decoder(tuple[tuple[str, str], ...])


class Reader:
    """Reads of one database. Stateless but for the damaged rows that it came across."""

    def __init__(self, corrupt: CorruptRows) -> None:
        self.corrupt = corrupt

    def meta(self, connection: sqlite3.Connection) -> dict[str, bytes]:
        values: dict[str, bytes] = {}
        for name, crc, value in connection.execute(statements.META):
            if checksum.of_named(b"", name, value) == crc:
                values[name] = value
            else:
                self.corrupt.add(CorruptRow("meta", Domain(""), name=name))
        return values

    def marks(self, connection: sqlite3.Connection) -> dict[Domain, dict[WriterId, WriterMarks]]:
        names = dict(connection.execute(statements.DOMAINS).fetchall())
        marks: dict[Domain, dict[WriterId, WriterMarks]] = {Domain(name): {} for name in names.values()}
        for _, domain, name, head, floor in connection.execute(statements.WRITERS):
            if head:
                marks[Domain(names[domain])][WriterId(name)] = WriterMarks(head, floor)
        return marks

    def load_rows(self, connection: sqlite3.Connection, domain: Domain, tasks: Sequence[bytes]) -> list[TaskRow]:
        key = _domain(connection, domain)
        rows: list[TaskRow] = []
        damaged: list[CorruptRow] = []
        for task in tasks:
            for record in connection.execute(statements.TASK, (key, task)):
                row = self._row(domain, record)
                if isinstance(row, CorruptRow):
                    damaged.append(row)
                else:
                    rows.append(row)
        if damaged:
            raise CorruptRowError(damaged, rows)
        return rows

    def read_rows(self, connection: sqlite3.Connection, domain: Domain, after: bytes, limit: int) -> list[TaskRow]:
        rows: list[TaskRow] = []
        for record in connection.execute(statements.TASKS_AFTER, (_domain(connection, domain), after, limit)):
            row = self._row(domain, record)
            if isinstance(row, CorruptRow):
                if not rows:
                    raise CorruptRowError([row])
                break
            rows.append(row)
        return rows

    def live_rows(
        self, connection: sqlite3.Connection, domain: Domain, after: bytes
    ) -> tuple[list[TaskRow], bytes | None]:
        """A batch of live rows with ids greater than `after`, and where the next begins."""
        records = connection.execute(
            statements.LIVE_AFTER, (_domain(connection, domain), after, BATCH_ROWS_MAX)
        ).fetchall()
        return self._sound(domain, records), records[-1][0] if records else None

    def known_ids(self, connection: sqlite3.Connection, domain: Domain, after: bytes, limit: int) -> list[bytes]:
        return [
            task for (task,) in connection.execute(statements.IDS_AFTER, (_domain(connection, domain), after, limit))
        ]

    def read_commits(
        self, connection: sqlite3.Connection, domain: Domain, writer: WriterId, first: int, bytes_max: int
    ) -> list[bytes]:
        blobs: list[bytes] = []
        expected = min(max(first, 1), INTEGER_MAX)
        cursor = connection.execute(statements.COMMITS_FROM, (domain, writer, expected))
        for number, crc, blob in cursor:
            bytes_max -= len(blob)
            if number != expected or (blobs and bytes_max < 0):
                break
            if checksum.of_commit(number, blob) != crc:
                damaged = CorruptRow("commit", domain, writer, number)
                self.corrupt.add(damaged)
                if not blobs:
                    raise CorruptRowError([damaged])
                break
            blobs.append(blob)
            expected += 1
        cursor.close()
        return blobs

    def first_beyond(self, connection: sqlite3.Connection, domain: Domain, heads: Mapping[WriterId, int]) -> int | None:
        """The position of the first commit above `heads`, None when there is none."""
        positions = []
        for writer, marks in self.marks(connection).get(domain, {}).items():
            beyond = max(heads.get(writer, 0), marks.floor)
            positions.append(connection.execute(statements.FIRST_BEYOND, (domain, writer, beyond)).fetchone()[0])
        return min((position for position in positions if position is not None), default=None)

    def commits_beyond(
        self, connection: sqlite3.Connection, domain: Domain, heads: Mapping[WriterId, int], position: int
    ) -> tuple[list[bytes], int | None]:
        """A batch of commits above `heads` from `position` on, and where the next begins."""
        wanted: dict[int, tuple[WriterId, int]] = {}
        key = _domain(connection, domain)
        for writer_key, writer_domain, name, _, floor in connection.execute(statements.WRITERS):
            if writer_domain == key:
                wanted[writer_key] = (WriterId(name), max(heads.get(WriterId(name), 0), floor))
        blobs: list[bytes] = []
        size = 0
        end: int | None = None
        cursor = connection.execute(statements.COMMITS_AFTER, (position, BATCH_ROWS_MAX))
        for place, writer_key, number, crc, blob in cursor:
            end = place + 1
            writer, beyond = wanted.get(writer_key, ("", INTEGER_MAX))
            if number <= beyond:
                continue
            if checksum.of_commit(number, blob) != crc:
                self.corrupt.add(CorruptRow("commit", domain, writer, number))
                continue
            blobs.append(blob)
            size += len(blob)
            if size >= BATCH_BYTES_MAX:
                break
        cursor.close()
        return blobs, end

    def documents(self, connection: sqlite3.Connection, domain: Domain) -> list[DocumentRow]:
        rows: list[DocumentRow] = []
        for task, name, crc, state in connection.execute(statements.DOCUMENTS, (_domain(connection, domain),)):
            if checksum.of_named(task, name, state) == crc:
                rows.append(DocumentRow(domain, task, name, state))
            else:
                self.corrupt.add(CorruptRow("document", domain, task=task, name=name))
        return rows

    def query(self, connection: sqlite3.Connection, query: Query, filters: Filters) -> Page:
        key = _domain(connection, query.domain)
        limit = query.limit or INTEGER_MAX - 1
        connection.execute("BEGIN")  # one view of the data for all the statements of this query
        try:
            found = _keys(connection, key, filters, query.after, limit + 1)  # one more, to see whether this is the end
            records: list[Any] = []
            size = 0
            after: Cursor | None = None
            for place in found:
                (record,) = connection.execute(statements.TASK, (key, place[1]))
                size += len(record[-1]) if isinstance(record[-1], bytes) else 0  # damaged
                if records and (len(records) == limit or 0 < query.bytes_max < size):
                    break
                records.append(record)
                after = place
            else:
                after = None
        finally:
            connection.execute(statements.COMMIT)
        rows = [self._row(query.domain, record) for record in records]
        return Page(
            tuple(row for row in rows if not isinstance(row, CorruptRow)),
            after,
            tuple(TaskId(row.task) for row in rows if isinstance(row, CorruptRow)),
        )

    def check(self, connection: sqlite3.Connection) -> list[str]:
        return [line for (line,) in connection.execute("PRAGMA integrity_check") if line != "ok"]

    def counts(self, connection: sqlite3.Connection) -> tuple[int, ...]:
        pages, free = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "freelist_count"))
        return (*connection.execute(statements.COUNTS).fetchone(), pages * free)

    def _sound(self, domain: Domain, records: Iterable[Any]) -> list[TaskRow]:
        rows = (self._row(domain, record) for record in records)
        return [row for row in rows if not isinstance(row, CorruptRow)]

    def _row(self, domain: Domain, record: Any) -> TaskRow | CorruptRow:
        task, name, queue, state, settled, live, owner, created_ms, conflicts, labels, digest, crc, facts = record
        try:
            pairs = _LABELS.decode(labels) if labels else ()
            row = TaskRow(
                domain, TaskId(task), name, queue, state, settled == 1, live == 1, owner, created_ms, conflicts,
                pairs, digest, facts,
            )  # fmt: skip
            if checksum.of_task(row, labels) == crc:
                return row
        except (msgspec.DecodeError, AttributeError, TypeError, ValueError):
            pass  # damaged so that a column is not even of its type
        damaged = CorruptRow("task", domain, task=task)
        self.corrupt.add(damaged)
        return damaged


def _domain(connection: sqlite3.Connection, domain: Domain) -> int:
    """The key of a domain; 0, which no row has, for one that nothing was stored in."""
    found = connection.execute(statements.DOMAIN, (domain,)).fetchone()
    return found[0] if found else 0


def _keys(
    connection: sqlite3.Connection, domain: int, filters: Filters, after: Cursor | None, limit: int
) -> list[Cursor]:
    """(created_ms, task) of the newest `limit` tasks that match and are older than `after`, from indexes alone."""
    paged = after is not None
    tail = (*(after or ()), limit)
    if filters.conflicts_only:
        sql = statements.keys(filters, by_label=False, paged=paged)
        return connection.execute(sql, (domain, *statements.parameters(filters, by_label=False), *tail)).fetchall()
    # The other indexes are in order within one state: ask for each, and merge.
    found: list[Cursor] = []
    for state in [filters.state] if filters.state is not None else _states(connection, domain, filters):
        one = filters._replace(state=state)
        by_label = _label_is_rarer(connection, domain, one)
        values = (domain, *statements.parameters(one, by_label=by_label), *tail)
        found += connection.execute(statements.keys(one, by_label=by_label, paged=paged), values).fetchall()
    found.sort(reverse=True)
    return found[:limit]


def _states(connection: sqlite3.Connection, domain: int, filters: Filters) -> list[str]:
    """The states that tasks of this label (else queue, else all) are in: an index look-up each."""
    sql: str = statements.NEXT_STATE
    values: tuple[str, ...] = ()
    if filters.label is not None:
        sql, values = statements.NEXT_STATE_OF_LABEL, filters.label
    elif filters.queue is not None:
        sql, values = statements.NEXT_STATE_OF_QUEUE, (filters.queue,)
    states: list[str] = []
    state = ""
    while (state := connection.execute(sql, (domain, *values, state)).fetchone()[0]) is not None:
        states.append(state)
    return states


def _label_is_rarer(connection: sqlite3.Connection, domain: int, filters: Filters) -> bool:
    """Whether to walk the label's entries rather than the queue's: the fewer, counted up to `MANY`."""
    if filters.label is None or filters.queue is None:
        return filters.label is not None
    labelled, queued = (
        connection.execute(statements.MANY_WITH_LABEL, (domain, *filters.label, filters.state, MANY)).fetchone()[0],
        connection.execute(statements.MANY_IN_QUEUE, (domain, filters.queue, filters.state, MANY)).fetchone()[0],
    )
    return bool(labelled <= queued)
