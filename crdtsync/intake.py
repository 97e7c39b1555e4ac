"""Commits on their way in: checked, kept, folded in causal order; and snapshots, joined row by row.

What arrives is *have* once it is checked, and folded once its predecessor and its `deps` are. A
commit whose tasks are on disk waits for them, and the log behind it; so does everything while too
many ended tasks are in memory, which is how a heal of any size stays within bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from crdtsync.effects import TaskRow
from crdtsync.errors import CorruptLogError, CrdtSyncError
from crdtsync.identifiers import EventId, RegionId, TaskId, WriterId
from crdtsync.log.commit import Commit
from crdtsync.log.heads import Heads
from crdtsync.log.verdicts import Verdict
from crdtsync.protocol import codec
from crdtsync.region import RegionState
from crdtsync.rows import Rows
from crdtsync.tasks import ids_needed

COMMITS_PER_TURN: Final = 200  # applied by one input, so that healing never holds the loop for long
READ_RETRY_MS: Final = 5_000  # after an unreadable commit: peers may have sent it by then


class Intake:
    """Where commits and snapshots of peers go.

    Args:
        require: Brings tasks into memory, then goes on (`Loader.require`).
        folded: Told of each foreign commit that took effect.
        announce: Tells peers soon what is had here, which changed by other ways than commits.
    """

    def __init__(
        self,
        here: RegionState,
        rows: Rows,
        require: Callable[[Iterable[TaskId], Callable[[], None]], None],
        *,
        folded: Callable[[Commit], None],
        announce: Callable[[], None],
    ) -> None:
        self._here = here
        self._rows = rows
        self._require = require
        self._folded = folded
        self._announce = announce
        self._blocked = False  # the next commit to apply waits for facts on disk
        self._reading: set[int] = set()
        self._read_retry_ms = 0  # a commit on disk was unreadable: not asked for again before
        self._joining = 0  # frames of a snapshot whose rows wait for what the disk holds of the same tasks
        self._when_joined: list[Callable[[], None]] = []
        self.fresh: list[tuple[Commit, RegionId | None]] = []  # in the batch being gathered
        self.taken: dict[RegionId, int] = {}  # bytes of peers' commits in it, to be credited again

    @property
    def idle(self) -> bool:
        """Whether nothing more can be folded for now."""
        return not self._blocked and not self._reading and self._here.log.needed() is None

    def sealed(self, commit: Commit) -> None:
        """One of our own commits goes into the batch."""
        self.fresh.append((commit, None))
        self._rows.mark(commit)

    def commits_read(self, token: int, blobs: Sequence[bytes]) -> bool:
        """The answer to a read of ours. False if the token is somebody else's."""
        if token not in self._reading:
            return False
        self._reading.discard(token)
        self._read_retry_ms = 0
        found = bool(blobs)
        try:
            self._here.log.provide(blobs)
        except CorruptLogError as error:
            found = False
            self._here.alarm("log.corrupt", reason=str(error))
        if not found:
            # Asked for again only after a while: a damaged disk must not become a hot loop.
            self._read_retry_ms = self._here.now.mono_ms + READ_RETRY_MS
            self._here.timers.at_mono(self._read_retry_ms, ("retry", ""))
        return True

    def damaged(self, writer: WriterId, number: int) -> None:
        """A commit is unreadable. If it is folded, peers send it again; else it must not count as had."""
        here = self._here
        here.alarm("store.commit", writer=writer, number=number)
        if not here.log.is_applied(writer, number):
            raise CorruptLogError(f"commit {number} of {writer} is damaged: it is left out, and peers are asked for it")
        here.log.lose(writer, number)
        self._announce()

    def arrived(self, peer: RegionId, blobs: Sequence[bytes], size: int) -> None:
        """Commits came from a peer: check them, keep them, apply what can be."""
        here = self._here
        wall_ms = here.time_ms
        self.credit(peer, size)
        for blob in blobs:
            received = here.log.receive(blob, wall_ms)
            if received.verdict is Verdict.MENDED:
                self._mend(received.commits[0])
                continue
            for commit in received.commits:
                here.keep(commit)
                self.fresh.append((commit, peer))
                self._rows.mark(commit)
            if received.verdict is Verdict.QUARANTINED:
                here.outbox.next.meta[f"evidence/{here.domain}"] = codec.encode(here.log.export_evidence())
            elif received.verdict is Verdict.REFUSED:
                here.notify("warning", "log.refused", peer=peer, refusal=str(received.refusal), reason=received.reason)

    def _mend(self, commit: Commit) -> None:
        """Store a commit again in the place of a damaged one."""
        batch = self._here.outbox.next
        batch.commits.append(commit.row())

        def mended() -> None:
            self._here.log.mended(commit.writer, commit.number)
            self._announce()

        batch.after.append(mended)

    def apply(self) -> bool:
        """Fold what may be applied now. True if there is more for the next turn."""
        here = self._here
        wall_ms = here.time_ms
        for _ in range(COMMITS_PER_TURN):
            if self._blocked or self._rows.full:
                return False  # goes on when those facts are here, or when ended tasks have left
            commit = here.log.next_applicable(wall_ms)
            if commit is None:
                self._read_back()
                return False
            needed = ids_needed(commit.events)
            if here.table.missing(needed):
                self._blocked = True
                self._require(needed, lambda commit=commit: self._unblocked(commit))  # type: ignore[misc]
                return False
            self._fold(commit)
        return True

    def _unblocked(self, commit: Commit) -> None:
        self._blocked = False
        if self._here.log.next_applicable(self._here.time_ms) is commit:
            self._fold(commit)

    def _fold(self, commit: Commit) -> None:
        here = self._here
        here.seal()
        for index, event in enumerate(commit.events):
            here.fold(EventId(commit.stamp, commit.writer, commit.number, index), event)
        here.log.mark_applied(commit)
        here.reform()
        stamp = commit.stamp
        if here.reissues:
            stamp = here.reissues.stamp(commit.writer, commit.number, stamp)
        here.clock.observe(stamp, here.now)
        here.note(commit)
        self._folded(commit)

    def _read_back(self) -> None:
        """Commits that are on disk and no longer in memory come next."""
        needed = self._here.log.needed()
        if needed is not None and not self._reading and self._here.now.mono_ms >= self._read_retry_ms:
            token = self._here.token()
            self._reading.add(token)
            self._here.read_commits(token, *needed)

    def credit(self, peer: RegionId, size: int) -> None:
        """Let `peer` send as much again once what it sent is durable, or at once if nothing is to be stored."""
        self.taken[peer] = self.taken.get(peer, 0) + size

    def join_rows(self, peer: RegionId, rows: Sequence[TaskRow], size: int) -> None:
        """Rows of a peer's snapshot: joined with what is here, once that is in memory."""

        def join() -> None:
            for row in rows:
                if row.task in self._here.table.damaged:
                    continue  # with what is lost here, these facts would not be all
                try:
                    task = self._here.table.restore(row, counted=False)
                except CrdtSyncError as error:
                    self._here.alarm("snapshot.row_refused", task=row.task.hex(), reason=str(error))
                    continue
                if row.settled and not task.settled and str(self._here.table.view(task).state) == row.state:
                    task.settled = True
                    self._here.table.mark_dirty(task)
                self._here.table.touch(task)
            self.credit(peer, size)
            self._joining -= 1
            if not self._joining:
                waiting, self._when_joined = self._when_joined, []
                for then in waiting:
                    then()

        self._joining += 1
        self._require([row.task for row in rows], join)

    def when_joined(self, then: Callable[[], None]) -> None:
        """Run `then` once all rows that have come are joined. Before that a snapshot is not adopted: its floor would be
        believed here, and told to others, without the facts that it stands for."""
        if self._joining:
            self._when_joined.append(then)
        else:
            then()

    def floor(self) -> Heads:
        """What was dropped from the log here."""
        return self._rows.floor_heads

    def snapshot_state(self) -> bytes:
        """What a snapshot ends with: log state, declarations, documents."""
        return self._rows.snapshot_state()

    def adopt(self, state: bytes) -> None:
        """A peer's snapshot is complete: go on from its heads."""
        self._rows.adopt(state)
        self._here.reform()
        # One batch makes the rows, the fold and the adopted heads durable: an acknowledgement of
        # those heads must not run ahead of the rows that they stand for.
        self._rows.write_all()
        self._rows.start_flush(anew=True)
