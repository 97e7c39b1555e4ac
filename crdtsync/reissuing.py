"""Close and re-issue: repairing what this node wrote while its clock was far ahead (rules.md, "Held back").

An operator asks once the clock is right. What was asked for is made durable, and the node starts anew: only another
incarnation can write smaller stamps. Before that one does anything else it closes the old writers, in their order:

    waits until its clock agrees with a majority (or is alone)  ->  opens its writer  ->  reads the old commits  ->
    writes a `Reissued` event for each run of them  ->  goes on as ever

These commits rest on nothing (`DomainLog.apart`): what this node had applied may be held back by all others until they
have seen just these. Whatever is written afterwards rests on everything again. A crash on the way goes on at the next start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from crdtsync.clock import stamp_ms
from crdtsync.clock_watch import Judgement, Verdict
from crdtsync.commands import ReissueLog
from crdtsync.effects import Reply, Restart
from crdtsync.errors import ClockOffError, CrdtSyncError, InvalidRequestError
from crdtsync.events import Ended, Reissued
from crdtsync.identifiers import EventId, TaskId, WriterId, compensation_id, incarnation_of, node_of, region_of
from crdtsync.log.commit import Commit, decode_commit
from crdtsync.protocol import codec
from crdtsync.region import RegionState
from crdtsync.tasks import tasks_of
from crdtsync.views import utc

TASKS_PER_EVENT_MAX: Final = 1_000  # that one event touches: they are in memory together, at every replica
INTENT_BYTES_MAX: Final = 1_024
INTENT: Final = "reissue"  # the entry in the node's meta
RIGHT: Final = frozenset((Verdict.AGREES, Verdict.ALONE))  # a clock by which commits may be written anew
# One that is right though its stamps are not yet; or one of a majority that is wrong, where some have been set right.
ASKED: Final = RIGHT | {Verdict.AHEAD, Verdict.SPLIT}


class Intent(NamedTuple):
    """What an operator asked for: commits of `writer` from number `first` on, and all of later starts of the node."""

    writer: WriterId
    first: int

    @classmethod
    def of(cls, meta: Mapping[str, bytes]) -> Intent | None:
        packed = meta.get(INTENT)
        if not packed:
            return None
        plain: Any = codec.decode(packed, bytes_max=INTENT_BYTES_MAX)
        return cls(WriterId(plain[0]), plain[1])


class Reissuing:
    """The repair of this node's own log.

    Args:
        require: Brings tasks into memory, then goes on (`Loader.require`).
        judgement: What is known of the clocks.
        open_writer: Writes the first commit of this incarnation.
    """

    def __init__(
        self,
        here: RegionState,
        require: Callable[[Iterable[TaskId], Callable[[], None]], None],
        *,
        judgement: Callable[[], Judgement],
        open_writer: Callable[[], None],
        intent: Intent | None,
    ) -> None:
        self._here = here
        self._require = require
        self._judgement = judgement
        self._open_writer = open_writer
        self._intent = intent
        self._opened = False
        self._reading: tuple[int, Callable[[Sequence[Commit]], None]] | None = None
        self._busy = False  # a run of commits is being read, or its tasks are

    @property
    def pending(self) -> bool:
        """Whether this node does nothing else before what it wrote is repaired."""
        return self._intent is not None

    def record(self) -> dict[str, Any] | None:
        """What is under way, for `clock show`."""
        if self._intent is None:
            return None
        verdict = self._judgement().verdict
        return {
            "writer": self._intent.writer,
            "from": self._intent.first,
            "waits_for": self._waits_for() if verdict in RIGHT else f"the clock, which is {verdict}",
        }

    # Being asked -------------------------------------------------------------------------------

    def ask(self, command: ReissueLog, ticket: Any) -> None:
        """Check what is asked for; if it makes sense, have it on disk and start anew.

        Raises:
            InvalidRequestError, ClockOffError: Nothing was done.
        """
        here = self._here
        intent = Intent(WriterId(command.writer), command.first)
        self._check_writer(intent)
        self._check_clock()

        def judge(commits: Sequence[Commit]) -> None:
            try:
                self._check_commits(intent, commits)
            except CrdtSyncError as error:
                here.emit(Reply(ticket, None, error.record()))
                return
            here.outbox.next.meta[INTENT] = codec.encode((intent.writer, intent.first))
            spans = self._spans(intent)
            record = {
                "writer": intent.writer,
                "from": intent.first,
                "writers": [list(span) for span in spans],
                "commits": sum(last - first + 1 for _, first, last in spans),
            }
            here.emit(Reply(ticket, record))
            here.emit(Restart(f"commits of {intent.writer} from {intent.first} on are re-issued"))

        if self._reading is not None:
            raise InvalidRequestError("another re-issue is being looked at: ask again in a moment")
        self._read(intent.writer, max(1, intent.first - 1), judge)

    def _check_writer(self, intent: Intent) -> None:
        here = self._here
        if node_of(intent.writer) != node_of(here.writer):
            raise InvalidRequestError(
                f"{intent.writer} is no start of {node_of(here.writer)}: only the node that wrote them re-issues commits"
            )
        have = here.log.durable_have[intent.writer]
        if not 0 < intent.first <= have:
            raise InvalidRequestError(f"{intent.writer} has commits 1 to {have} here, {intent.first} is not among them")
        if here.log.released(intent.writer) >= intent.first:
            raise InvalidRequestError(f"commit {intent.first} of {intent.writer} was re-issued before")
        for earlier in self._starts():
            if _order(earlier) < _order(intent.writer) and self._is_ahead(earlier):
                raise InvalidRequestError(f"{earlier}, an earlier start, is ahead as well: begin with its commits")

    def _check_clock(self) -> None:
        verdict = self._judgement().verdict
        if verdict not in ASKED:
            raise ClockOffError(
                f"the clock of {self._here.me} is not known to be right ({verdict}): set it, see that a majority of the "
                "regions is linked, and ask again"
            )

    def _check_commits(self, intent: Intent, commits: Sequence[Commit]) -> None:
        """That the first is the first that is not good. By the wall clock: a node alone may still count from the future."""
        here = self._here
        wall_ms = here.now.wall_ms
        by_number = {commit.number: commit for commit in commits}
        first, before = by_number.get(intent.first), by_number.get(intent.first - 1)
        if first is None:
            raise InvalidRequestError(f"commit {intent.first} of {intent.writer} cannot be read")
        if before is not None and stamp_ms(before.stamp) > wall_ms + here.log.max_skew_ms:
            raise InvalidRequestError(f"commit {before.number} is ahead as well, until {utc(stamp_ms(before.stamp))}")
        if stamp_ms(first.stamp) <= wall_ms + here.log.limits.max_hold_ms:
            raise InvalidRequestError(
                f"commit {intent.first} of {intent.writer} is stamped {utc(stamp_ms(first.stamp))}: what is no more than "
                f"{here.log.limits.max_hold_ms / 3_600_000:g} h ahead is applied by itself when its time comes"
            )

    # Doing it ----------------------------------------------------------------------------------

    def advance(self) -> bool:
        """Go on where it can be. True once nothing is left to do."""
        here = self._here
        if self._intent is None:
            return True
        if self._busy or self._judgement().verdict not in RIGHT:
            return False
        if not self._opened:
            self._opened = True
            self._apart(self._open_writer)
        spans = self._spans(self._intent)
        if spans:
            writer, first, last = spans[0]
            self._busy = True
            self._read(writer, first, lambda commits: self._gather([c for c in commits if c.number <= last]))
            return False
        if self._waits_for():
            return False
        here.notify("info", "log.reissued", writer=self._intent.writer, first=self._intent.first)
        self._intent = None
        here.outbox.next.meta[INTENT] = b""
        return True

    def _waits_for(self) -> str:
        """Why this node may not go on although all of its own is re-issued.

        What it had applied of others that are ahead as well would sort behind whatever it wrote in answer to it: an
        answer that comes before its question is given again and again. So it waits until they have re-issued it.
        """
        here = self._here
        ahead = here.log.ahead(here.time_ms)
        if ahead:
            return f"{', '.join(ahead)}: to be re-issued in {region_of(ahead[0])}"
        for writer in self._starts():  # released now, and folded next; or resting on what others re-issue first
            if here.log.released(writer) and here.log.have[writer] > here.log.applied[writer]:
                return f"commit {here.log.applied[writer] + 1} of {writer}, which rests on others that are held back"
        return ""

    def _gather(self, commits: Sequence[Commit]) -> None:
        """Take as many of these commits as one event may touch tasks, and have those in memory."""
        taken: list[Commit] = []
        tasks: set[TaskId] = set()
        for commit in commits:
            touched = tasks.union(tasks_of(commit.events))
            if taken and len(touched) > TASKS_PER_EVENT_MAX:
                break
            taken.append(commit)
            tasks = touched
        if not taken:
            self._busy = False
            self._here.alarm("log.corrupt", reason="what is to be re-issued cannot be read from disk")
            return
        undoing = {undone for _, _, undone in _successes(taken)}
        self._require(tasks | undoing, lambda: self._write(taken, tuple(sorted(tasks))))

    def _write(self, commits: Sequence[Commit], tasks: tuple[TaskId, ...]) -> None:
        here = self._here
        late = {place for place, _, undone in _successes(commits) if here.table.get(undone) is not None}
        event = Reissued(commits[0].writer, commits[0].number, commits[-1].number, tuple(sorted(late)), tasks)
        self._apart(lambda: here.write(event))
        self._busy = False

    def _apart(self, write: Callable[[], Any]) -> None:
        """Write a commit that rests on nothing, so that none waits for what it releases."""
        here = self._here
        here.seal()
        here.log.apart = here.stamps = True
        write()
        here.seal()
        here.log.apart = here.stamps = False

    # What there is -----------------------------------------------------------------------------

    def _starts(self) -> list[WriterId]:
        """The starts of this node, in their order."""
        here = self._here
        return sorted((w for w in here.log.have if node_of(w) == node_of(here.writer)), key=_order)

    def _is_ahead(self, writer: WriterId) -> bool:
        here = self._here
        ahead_ms = stamp_ms(here.log.head_stamp(writer)) - here.now.wall_ms
        return ahead_ms > here.log.max_skew_ms and here.log.released(writer) < here.log.have[writer]

    def _spans(self, intent: Intent) -> list[tuple[WriterId, int, int]]:
        """What is left: (writer, first, last), in the order in which it was written."""
        here = self._here
        spans = []
        for writer in self._starts():
            if _order(writer) < _order(intent.writer) or not self._is_ahead(writer):
                continue
            first = max(intent.first if writer == intent.writer else 1, here.log.released(writer) + 1)
            spans.append((writer, first, here.log.durable_have[writer]))
        return spans

    def _read(self, writer: WriterId, first: int, then: Callable[[Sequence[Commit]], None]) -> None:
        token = self._here.token()
        self._reading = (token, then)
        self._here.read_commits(token, writer, first)

    def commits_read(self, token: int, blobs: Iterable[bytes]) -> bool:
        """The answer to a read of ours. False if the token is somebody else's."""
        if self._reading is None or self._reading[0] != token:
            return False
        _, then = self._reading
        self._reading = None
        then([decode_commit(blob) for blob in blobs])
        return True


def _order(writer: WriterId) -> tuple[int, str]:
    return incarnation_of(writer), writer


def _successes(commits: Iterable[Commit]) -> Iterable[tuple[tuple[int, int], EventId, TaskId]]:
    """Where these commits say that an attempt succeeded, which, and the id of what would undo it."""
    for commit in commits:
        for index, event in enumerate(commit.events):
            if type(event) is Ended and event.outcome == "ok" and not event.late:
                attempt = EventId(*event.attempt)
                yield (commit.number, index), attempt, compensation_id(event.task, attempt)
