"""`GapBuffer`: commits that arrived before their predecessors, bounded and visible.

What overflows is dropped newest first, and only of the writer whose commit overflows: the newest is needed last, and one
writer far ahead must not cost the others theirs. Dropped commits are pulled again once the gap is filled.
"""

from __future__ import annotations

from collections.abc import Mapping

from crdtsync.identifiers import WriterId
from crdtsync.log.commit import Commit
from crdtsync.log.heads import Span


class GapBuffer:
    """Args: `commits_max` and `bytes_max` count the commits of all writers, as encoded."""

    def __init__(self, commits_max: int, bytes_max: int) -> None:
        self.commits_max = commits_max
        self.bytes_max = bytes_max
        self.commits = 0
        self.bytes = 0
        self._of: dict[WriterId, dict[int, Commit]] = {}

    def find(self, writer: WriterId, number: int) -> Commit | None:
        return self._of.get(writer, {}).get(number)

    def add(self, commit: Commit) -> tuple[int, ...]:
        """Keep `commit`; returns the numbers of its writer that were dropped for it, maybe its own, which is then last."""
        mine = self._of.setdefault(commit.writer, {})
        assert commit.number not in mine, (commit.writer, commit.number)
        mine[commit.number] = commit
        self.commits += 1
        self.bytes += len(commit.blob)
        dropped: list[int] = []
        while self.commits > self.commits_max or self.bytes > self.bytes_max:
            newest = max(mine)
            self.take(commit.writer, newest)
            dropped.append(newest)
            if newest == commit.number:
                break
        return tuple(dropped)

    def take(self, writer: WriterId, number: int) -> Commit | None:
        """Remove and return a commit, None if it is not here."""
        mine = self._of.get(writer)
        commit = mine.pop(number, None) if mine else None
        if commit is not None:
            self.commits -= 1
            self.bytes -= len(commit.blob)
        if mine is not None and not mine:
            del self._of[writer]
        return commit

    def discard(self, writer: WriterId) -> None:
        """Remove all of one writer."""
        for number in tuple(self._of.get(writer, ())):
            self.take(writer, number)

    def holds(self, writer: WriterId) -> bool:
        return writer in self._of

    def gaps(self, have: Mapping[WriterId, int]) -> tuple[Span, ...]:
        """What is missing between `have` and what is buffered here, sorted."""
        spans: list[Span] = []
        for writer in sorted(self._of):
            last = have.get(writer, 0)
            for number in sorted(self._of[writer]):
                if number > last + 1:
                    spans.append(Span(writer, last + 1, number - 1))
                last = number
        return tuple(spans)
