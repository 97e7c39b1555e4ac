"""Where a commit is made: in the thread of its connection, or on the loop.

A commit of some rows takes SQLite 40 us, and a disk that is fast, or has a cache that outlives a power cut, 30 more to
make durable. The way into the writing thread and back takes 100 us and two switches, more than the commit; and while
other processes compute, each switch waits for its turn. So what is quick is done at once.

On a slow disk the loop had better go on, if it has anything to do: what arrives meanwhile is decided on, and makes a
large batch. One task's worth is different: whoever works one call at a time waits for this very commit. It is made at
once unless the disk is so slow that others would notice, those who only ask, and peers' pings.
"""

from __future__ import annotations

from typing import Final

from crdtsync.effects import Persist

QUICK_S: Final = 0.0005  # for the sake of less hand-over the loop may be held up so long
BEARABLE_S: Final = 0.01  # for the sake of who waits for this commit
BYTES_MAX: Final = 32 << 10  # in a batch that is small
ONE_TASK_BYTES: Final = 4 << 10  # its commit, and the row of one that leaves memory
FORGET: Final = (
    8  # the last one counts for an eighth: a checkpoint of the write-ahead log, one commit in 300, for little
)


class Swiftness:
    """How long the next small commit will take, by what the last ones took."""

    def __init__(self) -> None:
        self.expected_s = 2 * BEARABLE_S

    def suits(self, batch: Persist) -> bool:
        """Whether `batch` had better be written at once, by whoever has it."""
        if self.expected_s > BEARABLE_S or batch.documents or batch.drop:
            return False
        return size_of(batch) <= (BYTES_MAX if self.expected_s <= QUICK_S else ONE_TASK_BYTES)

    def took(self, batch: Persist, seconds: float) -> None:
        """`batch` was written in so much time, the hop not counted."""
        if size_of(batch) <= BYTES_MAX:
            self.expected_s += (seconds - self.expected_s) / FORGET


def size_of(batch: Persist) -> int:
    return sum(len(commit.blob) for commit in batch.commits) + sum(len(row.facts) for row in batch.rows)
