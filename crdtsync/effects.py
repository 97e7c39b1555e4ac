"""What a `Replica` asks its driver to do.

The driver carries effects out in the order in which `take_effects()` returned them and decides
nothing. Whatever rests on commits that are not yet on disk is held back inside the replica until
`persisted(batch)` says that they are (durable first, design 3): an effect that the driver sees
may be carried out at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from crdtsync.identifiers import AttemptId, Domain, RegionId, TaskId, WorkerId, WriterId


class CommitRow(NamedTuple):
    """One commit as it is stored and travels. Numbers are gap-free per (domain, writer)."""

    domain: Domain
    writer: WriterId
    number: int
    stamp: int
    blob: bytes


class TaskRow(NamedTuple):
    """One task as stored: the columns that queries filter by, and its facts, lossless for `resolve`."""

    domain: Domain
    task: TaskId
    name: str
    queue: str
    state: str  # TaskState value
    settled: bool
    live: bool  # loaded into memory at start: it can still move without a new commit touching it
    owner: str
    created_ms: int  # wall part of the submission's stamp
    conflicts: int  # how many conflicts `resolve` finds in the facts
    labels: tuple[tuple[str, str], ...]
    digest: bytes  # 16 bytes: this task's share of the state digest
    facts: bytes  # `Facts.pack`; from a peer `Facts.to_row`


class DocumentRow(NamedTuple):
    """A document's state at the folded heads, so that commits below the floor can go."""

    domain: Domain
    task: bytes  # b"" for a shared document
    name: str
    state: bytes


@dataclass(frozen=True, slots=True)
class Persist:
    """Make all of this durable in one transaction, then call `persisted(batch)`.

    `commits` are in causal order; `drop` names commits up to and including a number per writer
    that are behind the floor and may be deleted. At most one `Persist` is under way at a time.
    """

    batch: int
    commits: tuple[CommitRow, ...] = ()
    rows: tuple[TaskRow, ...] = ()
    documents: tuple[DocumentRow, ...] = ()
    meta: tuple[tuple[str, bytes], ...] = ()
    drop: tuple[tuple[Domain, WriterId, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Load:
    """Read the rows of `tasks` (absent ones are simply missing) and call `loaded(token, rows, damaged=ids)`."""

    token: int
    domain: Domain
    tasks: tuple[TaskId, ...]


@dataclass(frozen=True, slots=True)
class ReadCommits:
    """Read commits of `writer` from number `first` on, at least one if it exists and then while
    their sizes fit into `bytes_max`, and call `commits_read(token, blobs)`, with
    `damaged=(writer, first)` if that one is unreadable."""

    token: int
    domain: Domain
    writer: WriterId
    first: int
    bytes_max: int


@dataclass(frozen=True, slots=True)
class ReadRows:
    """Read up to `limit` task rows with id > `after` in id order and call `rows_read(token, rows)`,
    with `damaged=ids` if the first is unreadable: how a snapshot is sent, in chunks."""

    token: int
    domain: Domain
    after: bytes
    limit: int


@dataclass(frozen=True, slots=True)
class Send:
    """One frame to a connected peer region."""

    peer: RegionId
    message: bytes


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close the link to a peer; it may dial again unless the reason is a refusal."""

    peer: RegionId
    reason: str


class Reply(NamedTuple):
    """Answer the command submitted with `ticket`. `error` is None or an error record
    {"code", "message", "definite", ...}; `final` is False for all but a stream's last answer.

    A tuple, as `Assignment` is: there is one per attempt, and making a frozen dataclass takes four times as long.
    """

    ticket: Any
    value: Any = None
    error: dict[str, Any] | None = None
    final: bool = True


Cursor: TypeAlias = tuple[int, bytes]  # `created_ms` and id of a row: where the rows after it begin, newest first


@dataclass(frozen=True, slots=True)
class Query:
    """Read a page of task rows by their columns and call `queried(token, page)`, newest first.

    The store is as fresh as the replica's memory when the effect for a first page is seen. `what`
    is "tasks" or "conflicts" (rows with conflicts > 0); `where` holds equality filters:
    ("state", s), ("queue", q), ("label", (key, value)). The page begins behind the row that
    `after` names, and holds up to `limit` rows (0: any number) while their facts fit into
    `bytes_max` together (0: any size), but at least one.
    """

    token: int
    domain: Domain
    what: str
    where: tuple[tuple[str, Any], ...]
    limit: int
    after: Cursor | None = None
    bytes_max: int = 0


class Page(NamedTuple):
    """A page of rows. `after` is the cursor of the next one, None if this was the last."""

    rows: tuple[TaskRow, ...] = ()
    after: Cursor | None = None
    damaged: tuple[TaskId, ...] = ()  # belong to the page, and cannot be read


class Assignment(NamedTuple):
    """Everything a worker needs to run one attempt."""

    task: TaskId
    attempt: AttemptId
    number: int  # for display: 1 is the first attempt of the task
    name: str
    payload: bytes
    term: int
    region: str
    fence: int
    deadline_ms: int  # wall time, 0 for none
    timeout_ms: int  # start to close, 0 for none
    root: AttemptId  # effect keys derive from it
    effects: tuple[tuple[str, bytes], ...]  # inherited ledger: name -> recorded result
    checkpoint: bytes | None  # the newest one that counts
    checkpoint_index: int
    undoes: bytes | None  # for a compensation: canonical CBOR of the attempt that is undone
    document: bytes  # state of the task's document, b"" when it has none


@dataclass(frozen=True, slots=True)
class Run:
    worker: WorkerId
    assignments: tuple[Assignment, ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask a worker to stop an attempt: `reason` is told to the handler
    ("cancelled", "lost ownership", "timeout", "superseded", "expired")."""

    worker: WorkerId
    attempt: AttemptId
    reason: str


@dataclass(frozen=True, slots=True)
class Restart:
    """Discard this replica and build another incarnation from disk: it asks for that itself (`reissuing`)."""

    reason: str


@dataclass(frozen=True, slots=True)
class Notify:
    """Something worth a log line, a metric or an alarm. The core knows no listener.

    `level` is "debug" | "info" | "warning" | "alarm"; `what` is a stable dotted name.
    """

    level: str
    what: str
    facts: dict[str, Any] = field(default_factory=dict)


Effect: TypeAlias = (
    Persist | Load | ReadCommits | ReadRows | Send | Disconnect | Reply | Query | Run | Stop | Restart | Notify
)
