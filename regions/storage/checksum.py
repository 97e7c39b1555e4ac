"""Checksums of stored rows. CRC-32 finds any burst of up to 32 flipped bits; it is no defence
against whoever can write the file, who could change both. Commits are chained and hashed for that.

Each covers the row's key as well: a row that wears another's name is as wrong as one with a
flipped bit.
"""

from __future__ import annotations

from zlib import crc32

from crdtsync.effects import TaskRow


def of_commit(number: int, blob: bytes) -> int:
    return crc32(blob, number & 0xFFFFFFFF)


def of_task(row: TaskRow, labels: str) -> int:
    columns = (
        f"{row.name}\0{row.queue}\0{row.state}\0{row.settled:d}{row.live:d}\0{row.owner}\0"
        f"{row.created_ms}\0{row.conflicts}\0{labels}"
    )
    return crc32(row.facts, crc32(row.digest, crc32(columns.encode(), crc32(row.task))))


def of_named(task: bytes, name: str, content: bytes) -> int:
    """Of a document's state, or (with `task` empty) of a meta value."""
    return crc32(content, crc32(name.encode(), crc32(task)))
