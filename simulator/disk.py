"""A node's disk: what is on it for good, what is on its way, and what can be wrong with it.

`Store` keeps the promises of `regions.storage.Store` without waiting; a test drives it beside the shipped stores.
`Disk` puts time and faults around it. An append is one transaction: after a crash it is there or it is not (SQLite in
WAL mode with synchronous=FULL lost nothing and tore nothing in 597 simulated power cuts), so a torn tail is one that
recovery discards. What can be wrong beyond that: appends that fail, disks that are full or slow, fsyncs that lie,
copies.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from crdtsync.effects import (
    CommitRow,
    Cursor,
    DocumentRow,
    Effect,
    Load,
    Page,
    Persist,
    Query,
    ReadCommits,
    ReadRows,
    TaskRow,
)
from crdtsync.errors import CorruptLogError, StorageError
from crdtsync.identifiers import Domain, TaskId, WriterId

READ_US: Final = 400  # a read of a few rows: much less than an fsync
KEPT_AT_KILL: Final = 0.5  # kill -9 in the middle of a write: the operating system may have all of it


class Store:
    """What is durable. Every method is one that `regions.storage.Store` has, with the same meaning."""

    def __init__(self) -> None:
        self.incarnation = 0
        self.commits: dict[tuple[Domain, WriterId, int], CommitRow] = {}  # in the order in which they came
        self.floors: dict[tuple[Domain, WriterId], int] = {}
        self.rows: dict[tuple[Domain, TaskId], TaskRow] = {}
        self.documents: dict[tuple[Domain, bytes, str], DocumentRow] = {}
        self.meta: dict[str, bytes] = {}

    def copy(self) -> Store:
        """A backup of this moment."""
        twin = Store()
        twin.incarnation = self.incarnation
        twin.commits, twin.floors = dict(self.commits), dict(self.floors)
        twin.rows, twin.documents, twin.meta = dict(self.rows), dict(self.documents), dict(self.meta)
        return twin

    def append(self, batch: Persist) -> None:
        """Make all of it durable. Raises CorruptLogError, before anything is changed, when a number is taken."""
        for row in batch.commits:
            stored = self.commits.get((row.domain, row.writer, row.number))
            if stored is not None and stored.blob != row.blob:
                raise CorruptLogError(
                    f"another commit {row.number} of {row.writer} is stored already: two histories under one number",
                    domain=row.domain,
                    writer=row.writer,
                    number=row.number,
                )
        for row in batch.commits:
            if row.number > self.floors.get((row.domain, row.writer), 0):
                self.commits.setdefault((row.domain, row.writer, row.number), row)
        for task_row in batch.rows:
            self.rows[task_row.domain, task_row.task] = task_row
        for document in batch.documents:
            self.documents[document.domain, document.task, document.name] = document
        self.meta.update(batch.meta)
        for domain, writer, number in batch.drop:
            floor = self.floors.get((domain, writer), 0)
            for gone in range(floor + 1, number + 1):
                self.commits.pop((domain, writer, gone), None)
            self.floors[domain, writer] = max(floor, number)

    def heads(self) -> dict[WriterId, int]:
        heads: dict[WriterId, int] = {}
        for _, writer, number in self.commits:
            heads[writer] = max(heads.get(writer, 0), number)
        return heads

    def load_rows(self, domain: Domain, tasks: Iterable[bytes]) -> list[TaskRow]:
        found = (self.rows.get((domain, TaskId(task))) for task in tasks)
        return [row for row in found if row is not None]

    def read_commits(self, domain: Domain, writer: WriterId, first: int, bytes_max: int) -> list[bytes]:
        blobs: list[bytes] = []
        number = max(first, 1)
        while (row := self.commits.get((domain, writer, number))) is not None:
            bytes_max -= len(row.blob)
            if blobs and bytes_max < 0:
                break
            blobs.append(row.blob)
            number += 1
        return blobs

    def read_rows(self, domain: Domain, after: bytes, limit: int) -> list[TaskRow]:
        found = sorted((row for key, row in self.rows.items() if key[0] == domain and row.task > after), key=_by_task)
        return found[:limit]

    def query(self, query: Query) -> Page:
        where = dict(query.where)
        rows = [
            row
            for key, row in self.rows.items()
            if key[0] == query.domain
            and where.get("state", row.state) == row.state
            and where.get("queue", row.queue) == row.queue
            and ("label" not in where or tuple(where["label"]) in row.labels)
            and (query.what != "conflicts" or row.conflicts > 0)
            and (query.after is None or _by_age(row) < query.after)
        ]
        rows.sort(key=_by_age, reverse=True)
        page: list[TaskRow] = []
        size = 0
        for row in rows:
            size += len(row.facts)
            if page and (len(page) == query.limit or 0 < query.bytes_max < size):
                return Page(tuple(page), _by_age(page[-1]))
            page.append(row)
        return Page(tuple(page))

    def known_ids(self, domain: Domain) -> list[TaskId]:
        return [row.task for row in self.read_rows(domain, b"", len(self.rows))]

    def live_rows(self, domain: Domain) -> list[TaskRow]:
        return [row for row in self.read_rows(domain, b"", len(self.rows)) if row.live]

    def documents_of(self, domain: Domain) -> list[DocumentRow]:
        return [row for key, row in sorted(self.documents.items()) if key[0] == domain]

    def commits_beyond(self, domain: Domain, heads: Mapping[WriterId, int]) -> list[bytes]:
        return [
            row.blob for row in self.commits.values() if row.domain == domain and row.number > heads.get(row.writer, 0)
        ]

    def read(self, effect: Effect) -> Any:
        """What a reading effect asks for."""
        match effect:
            case Load(_, domain, tasks):
                return self.load_rows(domain, tasks)
            case ReadCommits(_, domain, writer, first, bytes_max):
                return self.read_commits(domain, writer, first, bytes_max)
            case ReadRows(_, domain, after, limit):
                return self.read_rows(domain, after, limit)
            case Query():
                return self.query(effect)
        raise AssertionError(effect)


def _by_age(row: TaskRow) -> Cursor:
    return row.created_ms, row.task


def _by_task(row: TaskRow) -> bytes:
    return row.task


@dataclass(slots=True)
class Tail:
    """What a crash did to the batch that was being written, and to what a lying disk had promised."""

    batch: Persist | None = None
    kept: bool = False
    commits: tuple[CommitRow, ...] = ()  # that had been called durable and are gone


class Disk:
    """The disk of one machine.

    Args:
        rng: Of this disk alone.
        fsync_ms: What an fsync takes: uniform between the two.
    """

    def __init__(self, rng: random.Random, fsync_ms: tuple[float, float]) -> None:
        self.store = Store()
        self.full = False
        self.failing = 0.0  # share of appends that fail
        self.slow_us = 0  # what an fsync takes at least
        self.keeps_torn = False  # what a power cut does to the write under way
        self.hit: Callable[[str], None] | None = None  # told when one of these changed something
        self._rng = rng
        self._fsync_ms = fsync_ms
        self._writing: Persist | None = None
        self._truth: Store | None = None  # what a lying disk really has

    def write_us(self) -> int:
        """How long the append that begins now will take."""
        low, high = self._fsync_ms
        took_us = round(self._rng.uniform(low, high) * 1_000)
        if self.slow_us > took_us:
            self._tell("slowed")
            return self.slow_us
        return took_us

    def _tell(self, what: str) -> None:
        if self.hit is not None:
            self.hit(what)

    def begin(self, batch: Persist) -> None:
        assert self._writing is None, "one batch is under way at a time"
        self._writing = batch

    def finish(self) -> None:
        """The append that began is over. Raises StorageError, and nothing is written."""
        batch, self._writing = self._writing, None
        assert batch is not None
        if self.full:
            self._tell("refused")
            raise StorageError("the disk is full")
        if self.failing and self._rng.random() < self.failing:
            self._tell("failed")
            raise StorageError("input/output error")
        self.store.append(batch)

    def crash(self, *, power: bool) -> Tail:
        """The process dies, or the machine with it. Whatever was being written is there, or it is not."""
        batch, self._writing = self._writing, None
        kept = batch is not None and not self.full and (self.keeps_torn if power else self._rng.random() < KEPT_AT_KILL)
        if batch is not None and kept:
            self.store.append(batch)
        gone: tuple[CommitRow, ...] = ()
        if power and self._truth is not None:
            gone = self._replace(self._truth)
            self._truth = None
        return Tail(batch, kept, gone)

    def clone(self, rng: random.Random) -> Disk:
        """Another disk with the same content."""
        twin = Disk(rng, self._fsync_ms)
        twin.store = self.store.copy()
        return twin

    def begin_lying(self) -> None:
        self._truth = self.store.copy()

    def end_lying(self) -> None:
        self._truth = None

    def restore(self, copy: Store) -> tuple[CommitRow, ...]:
        """Go back to a copy. Returns the commits that are gone."""
        return self._replace(copy.copy())

    def wipe(self) -> tuple[CommitRow, ...]:
        return self._replace(Store())

    def _replace(self, store: Store) -> tuple[CommitRow, ...]:
        gone = tuple(row for key, row in self.store.commits.items() if key not in store.commits)
        self.store = store
        return gone


__all__ = ["READ_US", "Disk", "DocumentRow", "Store", "Tail"]
