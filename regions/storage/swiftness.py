"""Where a commit is made: in the thread of its connection, or on the loop.

A commit of some rows takes SQLite 40 us, and a disk that is fast, or has a cache that outlives a power cut, 30 to 100
more to make durable. The way into the writing thread and back takes 100 us and two switches, as much as the commit. So
what is quick is done at once.

On a slow disk the loop had better go on: what arrives meanwhile is decided on, and makes a large batch. The same holds
while other processes compute, when a flush takes one of the scheduler's slices, 3 to 4 ms, on a disk however fast. Made
by the thread a commit is back sooner then even if the loop has nothing else to do (measured beside three busy processes,
modes taking turns: 3.7 ms against 4.9 from one commit to the next): who slept for long gets a processor at once, who has
just used one does not. So a node looks at what its commits take, again and again.
"""

from __future__ import annotations

from typing import Final

from crdtsync.effects import Persist

QUICK_S: Final = 0.0005  # for the sake of less hand-over the loop may be held up so long
SLOW_S: Final = 20 * QUICK_S  # what takes longer tells no more: some thirty quick ones outweigh it
BYTES_MAX: Final = 32 << 10  # in a batch that is small
FORGET: Final = (
    8  # the last one counts for an eighth: a checkpoint of the write-ahead log, one commit in 300, for little
)


class Swiftness:
    """How long the next small commit will take, by what the last ones took."""

    def __init__(self) -> None:
        self.expected_s = 10 * QUICK_S

    def suits(self, batch: Persist) -> bool:
        """Whether `batch` had better be written at once, by whoever has it."""
        return self.expected_s <= QUICK_S and not batch.documents and not batch.drop and size_of(batch) <= BYTES_MAX

    def took(self, batch: Persist, seconds: float) -> None:
        """`batch` was written in so much time, the hop not counted."""
        if size_of(batch) <= BYTES_MAX:
            self.expected_s += (min(seconds, SLOW_S) - self.expected_s) / FORGET


def size_of(batch: Persist) -> int:
    return sum(len(commit.blob) for commit in batch.commits) + sum(len(row.facts) for row in batch.rows)
