"""What a task's facts resolve to: plain records, equal wherever the facts are equal.

Nothing here is local knowledge: time, settlement and reachability are not part of a view
(rules.md, Facts and resolution), so views of equal facts are equal and their hashes can be compared.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Final, NamedTuple

import msgspec

from crdtsync.events import EffectRecorded, Submitted
from crdtsync.identifiers import AttemptId, EventId, RegionId, TaskId


class TaskState(StrEnum):
    #: Accepted; nobody runs it. Its owner may claim it.
    WAITING = "waiting"
    #: An attempt is open, here or elsewhere.
    RUNNING = "running"
    #: An attempt is open and a losing cancel was seen: only a success can still beat it.
    CANCELLING = "cancelling"
    #: There is a winner.
    SUCCEEDED = "succeeded"
    #: What was granted is used up. A requeue grants it again.
    DEAD = "dead"
    #: Its owner said that its deadline had passed.
    EXPIRED = "expired"
    #: A cancel won, or lost to no success.
    CANCELLED = "cancelled"


class AttemptState(StrEnum):
    #: Claimed, and its region has not said how it ended.
    OPEN = "open"
    #: Its handler returned.
    OK = "ok"
    #: Its handler raised, or ran out of time.
    FAILED = "failed"
    #: Nobody will hear of it again: a crash, a lost worker, a drain.
    LOST = "lost"


ENDED: Final = frozenset((TaskState.SUCCEEDED, TaskState.DEAD, TaskState.EXPIRED, TaskState.CANCELLED))


class AttemptView(NamedTuple):
    number: int  # by claim order from 1; for display, since a late fact may shift it
    id: AttemptId
    region: RegionId
    term: int
    state: AttemptState
    late: bool  # its end was written by who had seen an outcome: it never decides
    retryable: bool
    reason: str  # failed: the error's type; lost: why
    value: bytes  # ok: the result; failed: canonical CBOR [type, message, traceback]
    end: EventId | None
    effects: tuple[tuple[EventId, EffectRecorded], ...]  # as recorded; `undoing.own_effects` merges repeated ones
    continues: AttemptId | None
    root: AttemptId  # effect keys derive from it
    relies: tuple[EventId, ...]
    inputs: tuple[tuple[TaskId, AttemptId], ...]
    submission: EventId
    counts: bool  # runs what THE submission asks for: only such an attempt can win, or use up what is granted
    token: int  # the fencing token of the lease under which it was claimed, 0 without one
    fenced: bool  # the task was claimed under a newer token: this attempt never decides


class CancelView(NamedTuple):
    id: EventId
    wins: bool
    reason: str


class OfferView(NamedTuple):
    id: EventId
    region: RegionId  # to whom
    reason: str


class ReturnView(NamedTuple):
    """Under `wait`: an offer that was taken back and may have been taken up all the same.

    Its giver starts nothing before it knows that the receiver has seen the withdrawal without
    having accepted; then it opens the next term itself, naming the offer (decision 0004).
    """

    offer: EventId
    withdrawal: EventId
    region: RegionId  # whose word is waited for


class Conflict(NamedTuple):
    """Facts of several regions that do not go together, and what became of them."""

    id: str  # 16 hex digits, alike on every replica
    task: TaskId
    kind: str  # see conflicts.ConflictKind
    rule: str
    winner: str
    losers: tuple[str, ...]
    detail: str  # a sentence or two
    attempts: tuple[AttemptId, ...]  # those that lost by it: their compensations belong to this conflict


class TaskView(NamedTuple):
    state: TaskState
    submission: EventId | None  # THE submission: the smallest; None while the facts lack one
    submitted: Submitted | None
    owner: str  # region, "" while the facts lack a submission
    term: int
    term_id: EventId | None  # the event that opened the term, None for term 0
    attempts: tuple[AttemptView, ...]
    winner: AttemptId | None
    failures: int
    lost: int  # drained and stopped ones do not count
    granted: int
    deaths: int  # exhaustions of what was granted, answered ones included
    answered: tuple[int, ...]  # which deaths were answered by a requeue
    streak: int  # failures and losses that count, since the last exhaustion
    failed_at: EventId | None  # the end of the last of those
    priority: int
    labels: tuple[tuple[str, str], ...]
    cancel: CancelView | None  # the first one that counts; late ones never do
    asked: EventId | None  # policy wait: a cancel from elsewhere that the owner has yet to answer
    expired: EventId | None
    offer: OfferView | None
    returning: ReturnView | None
    decided: bool  # policy quorum: a majority held the winner's success while its lease was valid
    conflicts: tuple[Conflict, ...]

    @property
    def open_attempts(self) -> tuple[AttemptId, ...]:
        return tuple(attempt.id for attempt in self.attempts if attempt.state is AttemptState.OPEN)

    @property
    def exhausted(self) -> bool:
        """Whether what was granted is used up, be an attempt still open or not."""
        return self.deaths > len(self.answered)

    @property
    def unanswered(self) -> tuple[int, ...]:
        """The deaths that a requeue has to answer, one event each."""
        return tuple(k for k in range(1, self.deaths + 1) if k not in self.answered)

    @property
    def result(self) -> bytes | None:
        """The winner's result, canonical CBOR."""
        winner = self.attempt(self.winner) if self.winner is not None else None
        return None if winner is None else winner.value

    @property
    def is_cancelled_for_good(self) -> bool:
        return self.cancel is not None and self.cancel.wins

    def attempt(self, event_id: AttemptId) -> AttemptView | None:
        for attempt in reversed(self.attempts):  # mostly the newest is meant
            if attempt.id == event_id:
                return attempt
        return None

    def canonical(self) -> bytes:
        """One byte string for all equal views. Not stored: its form may change with the program."""
        return _encode(self)


def is_same_work(one: Submitted, other: Submitted) -> bool:
    """Whether two submissions of one id ask for the same, so that either's attempts may answer both."""
    return (one.name, one.payload, one.after) == (other.name, other.payload, other.after)


_encode: Final = msgspec.msgpack.Encoder().encode


def view_hash(task: TaskId, view: TaskView) -> bytes:
    """A task's share of the state digest: 16 bytes."""
    return hashlib.blake2b(_encode(view), digest_size=16, key=task).digest()
