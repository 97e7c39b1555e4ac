"""What clients, workers and operators ask of a replica; also the messages that carry it.

Each command is a frozen msgspec struct with a tag, so the same definition is the wire form
between client or worker and node (see `protocol.messages`) and the input of `Replica.submit`.
Ids travel as bytes, payloads and results as opaque canonical CBOR.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

AttemptRef: TypeAlias = tuple[int, str, int, int]  # an EventId, field by field


PARTITIONS: Final = ("wait", "takeover", "quorum")  # what may be asked for of a task


class Command(msgspec.Struct, frozen=True, tag=True, tag_field="op", omit_defaults=True, forbid_unknown_fields=True):
    """Base of all commands; the tag is the class name."""


class TaskSpec(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One task to submit. What is None comes from the task's declaration."""

    name: str
    payload: bytes  # canonical CBOR [args, kwargs]
    id: bytes | None = None  # 16 bytes, minted by the client so that a lost answer can be asked again
    queue: str | None = None
    priority: int | None = None  # 0..9, higher first; 5 unless declared
    delay_ms: int = 0  # counted from acceptance
    not_before_ms: int = 0  # wall time
    deadline_ms: int = 0  # wall time by which the task must have ended, 0 for none
    key: str = ""
    labels: dict[str, str] = {}
    after: tuple[bytes, ...] = ()
    after_settled: tuple[bytes, ...] = ()
    region: str = "here"  # "here" | "spread" | a region's name
    partition: str | None = None
    attempts: int | None = None
    backoff_ms_base: int | None = None
    backoff_ms_max: int | None = None
    cancel: str | None = None
    timeout_ms: int | None = None
    linked: bytes | None = None
    scope: str | None = None  # of a quorum task's lease: "queue" | "key" | "task"


class TaskDeclaration(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A task that a worker's app can run, with its default options (see events.Options)."""

    name: str
    queue: str = "default"
    priority: int = 5
    partition: str = "takeover"
    attempts: int = 10
    lost_max: int = 5
    backoff_ms_base: int = 1_000
    backoff_ms_max: int = 60_000
    backoff_factor_permille: int = 2_000
    cancel: str = ""  # "" derives it: wins where there is a compensation, else loses
    compensate: str = ""
    timeout_ms: int = 0
    unserved_after_ms: int = 60_000
    window_ms: int = 86_400_000
    non_retryable: tuple[str, ...] = ()
    scope: str = ""  # "" or "queue", or "task"


class LimitDeclaration(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A limit as an app or an operator gives it: a concurrency, a rate, or both."""

    target: str  # "queue:NAME" | "task:NAME" | "key:KEY"
    concurrency: int | None = None  # running at once
    rate: int | None = None  # starts per period
    per_ms: int = 1_000
    scope: str = "global"  # "global" | "region"


# From clients ------------------------------------------------------------------------------------


class Submit(Command, frozen=True):
    """Reply: a list, in order, of {"id": hex, "created": bool} or {"error": {...}}."""

    specs: tuple[TaskSpec, ...]


class Cancel(Command, frozen=True):
    """Reply: {"id", "state", "cancelled": bool, "answer": text}."""

    task: bytes
    reason: str = ""


class Requeue(Command, frozen=True):
    """Reply: {"id", "state"}. Refused (conflict) unless the task is dead."""

    task: bytes


class Edit(Command, frozen=True):
    """Reply: {"id", "priority", "labels"}. A label set to "" is removed."""

    task: bytes
    priority: int | None = None
    labels: dict[str, str] = {}


class Describe(Command, frozen=True):
    """Reply: the task's record, as `task show -o json` prints it."""

    task: bytes


class History(Command, frozen=True):
    """Reply: the task's events in stamp order, each {"at", "kind", "region", ...}."""

    task: bytes


class Explain(Command, frozen=True):
    """Reply: {"id", "state", "text": shared prose, "local": prose that only this replica knows, "" once settled}."""

    task: bytes


class Await(Command, frozen=True):
    """Reply: the task's record once it has ended (or is settled). Pending until then."""

    task: bytes
    settled: bool = False


class Watch(Command, frozen=True):
    """Replies: a stream of records {"id", "state", "name", "settled", "at_ms"}, one per change."""

    task: bytes | None = None  # None: all tasks
    queue: str | None = None


class Forget(Command, frozen=True):
    """The asker of `ticket` is gone: drop its Await or Watch. No reply."""

    ticket: int


class ListTasks(Command, frozen=True):
    """Reply: a page, {"records": [task's record...], "next": cursor or None}, newest first.

    A page is bounded in tasks and bytes, whatever the limit: ask again with `after` set to `next`
    until that is None. Pages are read one after the other, so a task that changes meanwhile may be
    listed as it was or as it is, and one that is submitted meanwhile is not listed.
    """

    state: str | None = None
    queue: str | None = None
    label: tuple[str, str] | None = None
    limit: int = 100  # 0 for as many as a page holds
    after: tuple[int, bytes] | None = None


class ListConflicts(Command, frozen=True):
    """Reply: a page, as of `ListTasks`. Conflicts of one task come together, also beyond `limit`."""

    limit: int = 0
    after: tuple[int, bytes] | None = None


class ShowConflict(Command, frozen=True):
    id: str


class ListRegions(Command, frozen=True):
    pass


class ListLinks(Command, frozen=True):
    pass


class CutLinks(Command, frozen=True):
    """Refuse links to these regions (all others if empty) until healed. Kept across a restart."""

    regions: tuple[str, ...] = ()


class HealLinks(Command, frozen=True):
    regions: tuple[str, ...] = ()


class AddRegion(Command, frozen=True):
    """Have a region join, by a majority of the members. `url`: where its peers dial it.

    Reply, once decided and on disk: {"version", "epoch", "region", "state", "waits_for"}.
    """

    region: str
    url: str = ""


class ForgetRegion(Command, frozen=True):
    """Have a region leave for good. Reply as of `AddRegion`.

    `stopped`: the operator's word that it no longer runs. `force`: a majority is gone for good; decide here alone that
    these regions have left, and begin a new epoch of the cluster.
    """

    regions: tuple[str, ...]
    stopped: bool = False
    force: bool = False


class Drain(Command, frozen=True):
    """Start nothing more here and offer what waits to other regions. `off` ends the drain."""

    off: bool = False


class SetLimit(Command, frozen=True):
    """Create a limit, or change it; what is None stays as it is. Reply: its records, as of `ListLimits`."""

    limit: LimitDeclaration


class RemoveLimit(Command, frozen=True):
    """Take all limits of a target away. Reply: {"target", "removed": how many}. Refused (not found) if there is none."""

    target: str


class ListLimits(Command, frozen=True):
    """Reply: a list of records, one per limit in force; of one target if that is named."""

    target: str | None = None


class ShowDocument(Command, frozen=True):
    """A shared document by name, or a task's document. Reply: {"name", "value": plain record}."""

    name: str = ""
    task: bytes = b""


class EditDocument(Command, frozen=True):
    """Set entries of a document's top-level map; a None value removes. Values: canonical CBOR."""

    name: str = ""
    task: bytes = b""
    entries: dict[str, bytes | None] = {}


class LeaseAcquire(Command, frozen=True):
    """Hold `name` in the whole cluster, for `owner`, a text that the client minted for this claim.

    Reply, once it is held: {"name", "region", "token", "valid_ms"}: until `valid_ms` after the client *asked*, by its
    own CLOCK_BOOTTIME, nobody else holds it. Asking again does no harm. Errors, when `wait_ms` is over: `lease_held`,
    `quorum_unavailable`.
    """

    name: str
    owner: str
    ttl_ms: int = 10_000  # silence of the client after which it loses the lease
    wait_ms: int | None = None  # None: until it is held


class LeaseRenew(Command, frozen=True):
    """Reply: as of `LeaseAcquire`. Error `lease_lost` when it is not held under this token any more."""

    name: str
    owner: str
    token: int


class LeaseRelease(Command, frozen=True):
    """Give `name` back, or stop waiting for it. Reply: {"name", "released": bool}; a stale one is no error.

    Without an owner it is taken from whichever client of this region holds it, once the time that this client was told
    of is over. Reply: with {"free_in_ms"}. Error `lease_held`: no client here holds it.
    """

    name: str
    owner: str = ""
    token: int = 0  # 0: whatever it is


class LeaseList(Command, frozen=True):
    """Reply: a list of {"scope", "holder", "token", "left_ms", "here", "ready", "voters", "owner", "waiting",
    "why_not"}: the leases that this region wants, holds, or voted for."""

    scope: str = ""  # just this one; an absent one has no record


class Status(Command, frozen=True):
    """Reply: this node's own record: writer, region, members, digest, queues, workers, buffers, alarms."""


class ShowClock(Command, frozen=True):
    """Reply: this node's clocks, what a majority says of them, each peer's offset and drift, what is held back."""


class ReissueLog(Command, frozen=True):
    """Re-issue commits of an earlier start of this node, from number `first` on, whose stamps are far ahead.

    Reply, once it is durable that it will be done: {"writer", "from", "writers": [[writer, first, last]], "commits"}. The
    node then starts anew, and does it before anything else; `ShowClock` says "reissuing" meanwhile.
    """

    writer: str
    first: int


# Answered by the node from its store; the replica never sees them ---------------------------------


class LogHeads(Command, frozen=True):
    """Reply: a list of {"domain", "writer", "head", "floor"}; commits above `floor` are on disk."""


class ReadLog(Command, frozen=True):
    """Reply: blobs of one writer's commits from number `first` on; empty when it is not there."""

    writer: str
    first: int
    domain: str = "default"


class VerifyLog(Command, frozen=True):
    """Walk every commit and row. Reply: {"ok", "commits", "writers", "tasks", "digest", "findings": [text]}."""


# From workers ------------------------------------------------------------------------------------


class WorkerHello(Command, frozen=True):
    """A worker (new, or reconnecting) says what it can run and what it is running.

    `worker` is unique per worker process start. `credits` bounds how many attempts may be
    assigned and not completed. Reply: {"region", "writer", "heartbeat_ms", "stop": [attempt...]}
    where `stop` lists reported attempts that are no longer wanted.
    """

    worker: str
    app: str
    tasks: tuple[TaskDeclaration, ...]
    credits: int
    queues: tuple[str, ...] = ()  # empty: all
    running: tuple[AttemptRef, ...] = ()
    limits: tuple[LimitDeclaration, ...] = ()  # that its app declares


class Heartbeat(Command, frozen=True):
    """Silence for `worker_lost_after_ms` loses the worker's attempts.

    Reply: {"leases": [(attempt, left_ms)]}, of attempts under a lease, where there are any: how long it still holds, counted
    from when this was sent, unless the worker hears of its renewal.
    """

    worker: str
    progress: tuple[tuple[AttemptRef, str], ...] = ()


class RecordEffect(Command, frozen=True):
    """Reply, once durable: {}. Error `fenced` or `unknown_attempt` when it no longer counts."""

    attempt: AttemptRef
    name: str
    key: bytes
    result: bytes


class SaveCheckpoint(Command, frozen=True):
    attempt: AttemptRef
    index: int
    data: bytes


class CheckFence(Command, frozen=True):
    """Whether a lease still covers the attempt, asked before each step of a `quorum` task.

    Reply: {"left_ms"}, for how long unless it is renewed, if so; else the error `lost_lease` or `unknown_attempt`: the step must not be done.
    """

    attempt: AttemptRef


class Complete(Command, frozen=True):
    """The end of one attempt. Reply, once durable: {"state"}; repeating it is harmless."""

    attempt: AttemptRef
    outcome: str  # "ok" | "failed" | "lost"
    value: bytes = b""  # ok: canonical CBOR result; failed: canonical CBOR [type, message, traceback]
    retryable: bool = True
    reason: str = ""


class WorkerDraining(Command, frozen=True):
    """No new work for this worker, please; what runs is being finished. Reply: {}."""

    worker: str


class WorkerGone(Command, frozen=True):
    """The worker's connection ended (told by the driver, not by the worker)."""

    worker: str


ClientCommand: TypeAlias = (
    Submit
    | Cancel
    | Requeue
    | Edit
    | Describe
    | History
    | Explain
    | Await
    | Watch
    | Forget
    | ListTasks
    | ListConflicts
    | ShowConflict
    | ListRegions
    | ListLinks
    | CutLinks
    | HealLinks
    | AddRegion
    | ForgetRegion
    | Drain
    | LeaseAcquire
    | LeaseRenew
    | LeaseRelease
    | LeaseList
    | SetLimit
    | RemoveLimit
    | ListLimits
    | ShowDocument
    | EditDocument
    | Status
    | ShowClock
    | ReissueLog
    | LogHeads
    | ReadLog
    | VerifyLog
)
WorkerCommand: TypeAlias = (
    WorkerHello | Heartbeat | CheckFence | RecordEffect | SaveCheckpoint | Complete | WorkerDraining | EditDocument
)
AnyCommand: TypeAlias = (
    ClientCommand
    | WorkerHello
    | Heartbeat
    | CheckFence
    | RecordEffect
    | SaveCheckpoint
    | Complete
    | WorkerDraining
    | WorkerGone
)
