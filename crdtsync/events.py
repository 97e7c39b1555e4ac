"""The event kinds: immutable facts, one frozen record each, as they stand in a commit.

On the wire and on disk an event is one CBOR array `[kind, field, ...]` of plain values: no maps,
no floats, no tags, so that its canonical encoding is its only encoding. In memory it is the
named tuple of its kind. A kind's number and the order of its fields are stored for ever: they
are never reused, and new fields mean a new kind (gated by a feature bit, design 7). A kind that
this version does not know stays an `Unknown`: kept and relayed, not folded.

`late` is fixed when the event is written: its writer had already seen an outcome (rules.md).
"""

from __future__ import annotations

import itertools
from typing import Any, Final, NamedTuple, TypeAlias

from crdtsync.identifiers import AttemptId, EventId, TaskId

Plain: TypeAlias = bool | int | str | bytes | tuple["Plain", ...] | None


class Options(NamedTuple):
    """What a task may do, resolved when it was accepted; travels with its submission."""

    partition: str  # "wait" | "takeover" | "quorum" | "quorum:task" (a lease of its own)
    attempts: int  # granted per death
    lost_max: int
    backoff_ms_base: int
    backoff_ms_max: int
    backoff_factor_permille: int  # 2000 doubles the delay with each failure
    cancel: str  # "wins" | "loses"
    compensate: str  # name of the task that undoes an attempt, "" for none
    timeout_ms: int  # start to close of one attempt, 0 for none
    unserved_after_ms: int  # offered elsewhere when no worker here can run it for so long
    window_ms: int  # how long an idempotency key is remembered after the settled end
    non_retryable: tuple[str, ...]  # names of exception types that end the grant at once

    @property
    def exclusive(self) -> bool:
        """Whether an attempt needs a lease from a majority of the members."""
        return self.partition.startswith("quorum")


class Submitted(NamedTuple):
    task: TaskId
    name: str
    payload: bytes  # canonical CBOR, opaque to the core
    owner: str  # region, computed once by the accepting region
    queue: str
    priority: int  # 0..9, higher first
    not_before_ms: int  # wall time, 0 for at once
    deadline_ms: int  # wall time, 0 for none
    key: str  # idempotency key, "" for none
    generation: int
    labels: tuple[tuple[str, str], ...]  # sorted by label
    after: tuple[tuple[TaskId, bool], ...]  # parents; True waits for settlement
    undoes: tuple[TaskId, AttemptId, bytes] | None  # set on a compensation: what it undoes; b"" or an effect key
    linked: TaskId | None  # the old task that this one is submitted anew for
    options: Options


class TermOpened(NamedTuple):
    task: TaskId
    term: int
    offer: EventId | None  # the offer that a handover accepts; None for a takeover


class Offered(NamedTuple):
    """The owner offers the task to `region`. Withdrawn by a later `Offered` or by `Withdrawn`."""

    task: TaskId
    term: int
    region: str
    reason: str  # "drain" | "unserved"


class Withdrawn(NamedTuple):
    task: TaskId
    offer: EventId


class Claimed(NamedTuple):
    """One attempt begins. Its id is this event's id."""

    task: TaskId
    term: int
    submission: EventId
    continues: AttemptId | None
    continues_ended: bool  # whether that attempt had ended, as seen here
    relies: tuple[EventId, ...]  # the effects inherited over `continues`, as seen here
    inputs: tuple[tuple[TaskId, AttemptId], ...]  # which attempt of each parent
    token: int  # fencing token, 0 without a lease


class EffectRecorded(NamedTuple):
    task: TaskId
    attempt: AttemptId
    name: str
    key: bytes
    result: bytes


class Checkpointed(NamedTuple):
    task: TaskId
    attempt: AttemptId
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls on an event
    data: bytes


class Ended(NamedTuple):
    task: TaskId
    attempt: AttemptId
    outcome: str  # "ok" | "failed" | "lost"
    late: bool
    retryable: bool
    reason: str  # lost: "crash" "drain" "stopped" "timeout" "restart"; failed: the error's type
    value: bytes  # ok: the result; failed: canonical CBOR [type, message, traceback]


class CancelRequested(NamedTuple):
    task: TaskId
    late: bool
    reason: str


class Expired(NamedTuple):
    task: TaskId
    late: bool


class Requeued(NamedTuple):
    task: TaskId
    death: int  # which exhaustion this answers, from 1


class PriorityEdited(NamedTuple):
    task: TaskId
    priority: int
    saw: EventId | None  # the edit of this field that the writer had seen as current


class LabelEdited(NamedTuple):
    task: TaskId
    label: str
    value: str  # "" removes the label
    saw: EventId | None


class DocumentUpdated(NamedTuple):
    """One pycrdt update of a document. `task` is the task it belongs to, or b"" for a shared one."""

    task: TaskId
    name: str
    update: bytes


class Declared(NamedTuple):
    """A task that some app can run, with its default options."""

    name: str
    app: str
    queue: str
    priority: int
    options: Options


class WriterOpened(NamedTuple):
    """First event of every incarnation: which writer it follows, and up to which commit."""

    predecessor: str  # "" for the first
    number: int
    features: int


class MembersChanged(NamedTuple):
    """The membership of `version`, as a change of the one before it, decided by a majority of that (coordination/synod).

    Whoever learns of the decision writes it down, so there may be several, all equal.
    """

    epoch: int  # counts the times at which an operator spoke for a majority that was gone
    version: int  # counts changes, from 2: the founders are version 1
    founders: tuple[str, ...]  # sorted: with them and all changes a joiner knows everything
    change: str  # "add" | "admit" | "forget"
    regions: tuple[str, ...]  # sorted; more than one only where an epoch begins
    url: str  # of a region that is added: where its peers dial it
    stopped: bool  # of regions that are forgotten: the operator's word that they run no longer


class FinalHeads(NamedTuple):
    """What the writer's region has applied of all regions that are leaving, at this version of the membership.

    It applies no more of them than some remaining member's answer names.
    """

    epoch: int
    version: int
    heads: tuple[tuple[str, int], ...]  # sorted by writer


class Inherited(NamedTuple):
    """A task whose owner was forgotten goes to the writer's region, whatever its policy: a term of its own."""

    task: TaskId
    term: int
    region: str  # that was forgotten
    version: int  # of the membership that did

    @property
    def offer(self) -> None:
        """Nobody offered it."""
        return


class LimitSet(NamedTuple):
    """A limit is created, changed or taken away: of several the latest counts, and the first says who mints its rights.

    Limits are not facts of a task: they and the next four are folded by `coordination.limits`.
    """

    limit: bytes  # hash of target and kind
    target: str  # "queue:NAME" | "task:NAME" | "key:KEY"
    kind: str  # "concurrency" | "rate"
    scope: str  # "region" | "global" | "none": taken away
    amount: int  # running at once, or starts per period
    period_ms: int  # of a rate, else 0
    origin: str  # "operator", or the name of the app that declares it as "app:NAME"
    founders: tuple[str, ...]  # sorted: the members when it was written


class RightsMinted(NamedTuple):
    """So many rights come into being, in the hands of the writer's region."""

    limit: bytes
    amount: int
    saw: EventId  # the `LimitSet` that it fills up to


class RightsMoved(NamedTuple):
    """The writer's region gives rights away. Nobody's, until the receiver has applied this."""

    limit: bytes
    to: str  # the receiver: its writer, as its giver knew it
    amount: int


class RightsBurned(NamedTuple):
    """So many rights of the writer's region cease to be: the limit was lowered."""

    limit: bytes
    amount: int


class RightsInherited(NamedTuple):
    """All rights of a region that has left for good, and runs nothing any more, are those of the writer's region."""

    limit: bytes
    region: str


class Reissued(NamedTuple):
    """Commits `first` to `last` of a writer of the author's own region count as stamped when this event was.

    That writer's clock was far ahead; its own stamps say nothing. Its commits are applied behind this event, each event
    of them under its own name, in the place of this one (`log.reissues`, docs/decisions/0018).
    """

    closed: str  # the writer: it writes no more
    first: int
    last: int
    late: tuple[tuple[int, int], ...]  # sorted (number, index): successes in there that their region has undone
    tasks: tuple[TaskId, ...]  # sorted: those that these commits touch


class Decided(NamedTuple):
    """A majority had this success while the lease of its attempt was valid: no newer claim can shut it out."""

    task: TaskId
    attempt: AttemptId


class Unknown(NamedTuple):
    kind: int
    fields: tuple[Plain, ...]


TaskEvent: TypeAlias = (
    Submitted
    | TermOpened
    | Offered
    | Withdrawn
    | Claimed
    | EffectRecorded
    | Checkpointed
    | Ended
    | CancelRequested
    | Expired
    | Requeued
    | PriorityEdited
    | LabelEdited
    | Inherited
    | Decided
)
MemberEvent: TypeAlias = MembersChanged | FinalHeads
LimitEvent: TypeAlias = LimitSet | RightsMinted | RightsMoved | RightsBurned | RightsInherited
Event: TypeAlias = TaskEvent | DocumentUpdated | Declared | WriterOpened | MemberEvent | LimitEvent | Reissued | Unknown

KINDS: Final[dict[int, type[Any]]] = {
    1: Submitted,
    2: TermOpened,
    3: Offered,
    4: Withdrawn,
    5: Claimed,
    6: EffectRecorded,
    7: Checkpointed,
    8: Ended,
    9: CancelRequested,
    10: Expired,
    11: Requeued,
    12: PriorityEdited,
    13: LabelEdited,
    14: DocumentUpdated,
    15: Declared,
    16: WriterOpened,
    17: MembersChanged,
    18: FinalHeads,
    19: Inherited,
    22: LimitSet,
    23: RightsMinted,
    24: RightsMoved,
    25: RightsBurned,
    26: RightsInherited,
    27: Reissued,
    30: Decided,
}
KIND_OF: Final = {record: kind for kind, record in KINDS.items()}
TASK_KINDS: Final = frozenset((*range(1, 14), 19, 30))
TASK_EVENTS: Final = frozenset(KINDS[kind] for kind in TASK_KINDS)
LIMIT_EVENTS: Final = frozenset(KINDS[kind] for kind in range(22, 27))

_ID = (tuple, type(None))
_SHAPES: Final[dict[int, tuple[tuple[type, ...], ...]]] = {
    1: (
        (bytes,),
        (str,),
        (bytes,),
        (str,),
        (str,),
        (int,),
        (int,),
        (int,),
        (str,),
        (int,),
        (tuple,),
        (tuple,),
        _ID,
        (bytes, type(None)),
        (tuple,),
    ),
    2: ((bytes,), (int,), _ID),
    3: ((bytes,), (int,), (str,), (str,)),
    4: ((bytes,), (tuple,)),
    5: ((bytes,), (int,), (tuple,), _ID, (bool,), (tuple,), (tuple,), (int,)),
    6: ((bytes,), (tuple,), (str,), (bytes,), (bytes,)),
    7: ((bytes,), (tuple,), (int,), (bytes,)),
    8: ((bytes,), (tuple,), (str,), (bool,), (bool,), (str,), (bytes,)),
    9: ((bytes,), (bool,), (str,)),
    10: ((bytes,), (bool,)),
    11: ((bytes,), (int,)),
    12: ((bytes,), (int,), _ID),
    13: ((bytes,), (str,), (str,), _ID),
    14: ((bytes,), (str,), (bytes,)),
    15: ((str,), (str,), (str,), (int,), (tuple,)),
    16: ((str,), (int,), (int,)),
    17: ((int,), (int,), (tuple,), (str,), (tuple,), (str,), (bool,)),
    18: ((int,), (int,), (tuple,)),
    19: ((bytes,), (int,), (str,), (int,)),
    22: ((bytes,), (str,), (str,), (str,), (int,), (int,), (str,), (tuple,)),
    23: ((bytes,), (int,), (tuple,)),
    24: ((bytes,), (str,), (int,)),
    25: ((bytes,), (int,)),
    26: ((bytes,), (str,)),
    27: ((str,), (int,), (int,), (tuple,), (tuple,)),
    30: ((bytes,), (tuple,)),
}
# Every allowed sequence of exact types, spelled out: one set look-up checks a whole event.
SIGNATURES: Final = {kind: frozenset(itertools.product(*shape)) for kind, shape in _SHAPES.items()}
