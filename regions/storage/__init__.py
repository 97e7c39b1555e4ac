"""What a node keeps on disk: the `Store` protocol, SQLite, and a twin in memory for tests."""

from __future__ import annotations

from regions.storage.memory import MemoryStore
from regions.storage.sqlite import SqliteStore
from regions.storage.store import CorruptRow, CorruptRowError, Recovered, Store, StoreStats, WriterMarks

__all__ = [
    "CorruptRow",
    "CorruptRowError",
    "MemoryStore",
    "Recovered",
    "SqliteStore",
    "Store",
    "StoreStats",
    "WriterMarks",
]
