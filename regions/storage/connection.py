"""One SQLite connection in a thread of its own.

aiosqlite runs each call as one hop into its thread (14 us here), so a commit of a batch through its
public methods is nine hops, and a cancelled caller can leave a transaction open between two of
them. It has no public way to run a whole function there, so `Connection.run` goes through
`_execute`, the method on which all its own are built; a test in test_sqlite_store.py stands
guard over it. (A `ThreadPoolExecutor` with plain sqlite3 would do too, at 25 us a hop.)

A hop is two switches of threads, and a fight for the interpreter's lock at its end. What takes less
than that is done where it is asked for (`run_at_once`), while the thread has nothing to do.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import aiosqlite

from crdtsync.errors import CorruptLogError, StorageError

P = ParamSpec("P")
T = TypeVar("T")

CACHE_KIB_WRITE: Final = 16_384  # the inner pages of all indexes at 1 M rows, so that an append reads nothing
CACHE_KIB_READ: Final = 4_096
BUSY_MS: Final = 5_000  # two connections of ours meet only around a checkpoint, for milliseconds
FAILURES: Final = (sqlite3.Error, OverflowError, UnicodeEncodeError, ValueError)
ITER_ROWS: Final = 64  # required by aiosqlite; only its own iterators, which we don't use, read it


class Connection(aiosqlite.Connection):
    """A connection whose thread runs whole functions: `await connection.run(append, batch)`."""

    def __init__(self, path: Path, *, writes: bool) -> None:
        super().__init__(lambda: _connect(path, writes=writes), ITER_ROWS)
        # A node that fails before it closes its store must end, not hang in the interpreter's exit
        # waiting for this thread. Nothing is lost: what is not committed was not acknowledged.
        self._thread.daemon = True
        self._path = path
        # Each is written by one thread alone; while they are equal the other one is idle.
        self._asked = 0
        self._answered = 0

    async def run(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call `function(connection, ...)` in the thread. Errors of SQLite arrive as StorageError."""
        connection = self._opened()

        def work() -> T:
            try:
                return function(connection, *args, **kwargs)
            finally:
                self._answered += 1

        self._asked += 1
        try:
            result: T = await self._execute(work)  # type: ignore[no-untyped-call]
        except FAILURES as error:
            raise storage_error(error, self._path) from error
        return result

    @property
    def idle(self) -> bool:
        """Whether nothing is under way or waits in the thread."""
        return self._asked == self._answered

    def run_at_once(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """As `run`, on the caller's thread. Only while `idle`."""
        assert self.idle, "the connection is in use by its thread"
        try:
            return function(self._opened(), *args, **kwargs)
        except FAILURES as error:
            raise storage_error(error, self._path) from error

    def _opened(self) -> sqlite3.Connection:
        try:
            return self._conn
        except ValueError as error:
            raise storage_error(error, self._path) from error

    def __del__(self) -> None:
        """Nothing: aiosqlite's own warns and queues a stop; the thread is a daemon and needs neither."""


def storage_error(error: Exception, path: Path) -> StorageError:
    """What an error of SQLite means for whoever runs the node."""
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    facts: dict[str, Any] = {"path": str(path), "sqlite": name}
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        message = (
            f"{path} cannot be read ({error}): move the directory away and start the node again; "
            "it fetches what its peers hold"
        )
        return CorruptLogError(message, **facts)
    if name.startswith("SQLITE_FULL"):
        return StorageError(f"no space left for {path}: nothing of the batch was stored", **facts)
    return StorageError(f"{path}: {error} ({name}); nothing of the batch was stored", **facts)


def _connect(path: Path, *, writes: bool) -> sqlite3.Connection:
    # Transactions are ours to begin (isolation_level); each connection is used by its own thread
    # alone, but made by a lambda that aiosqlite may call from there (check_same_thread).
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, cached_statements=64, timeout=BUSY_MS / 1000
    )
    try:
        if writes:
            # Before the first table and before WAL: both write the header that fixes it. (On a
            # database that has one, it would be a write at every start.)
            if connection.execute("PRAGMA page_count").fetchone()[0] == 0:
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            # NORMAL lost acknowledged rows in 349 of 417 simulated power cuts, FULL in none of 597.
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_KEPT}")
        else:
            connection.execute("PRAGMA query_only = ON")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB_WRITE if writes else CACHE_KIB_READ}")
    except BaseException:
        connection.close()
        raise
    return connection


WAL_BYTES_KEPT: Final = 16 << 20  # a log file that one large batch blew up shrinks to this at the next checkpoint
