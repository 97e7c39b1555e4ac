"""What happened in a run: one record per event, a running hash over all of them, and JSON lines.

The trace is meant to be judged by programs that share no code with us. One line is one JSON object

    {"seq": 17, "at_us": 2500125, "node": "eu", "kind": "net.deliver", "id": "m12", "causes": [11], ...}

`seq` counts from 0 without a gap; `at_us` is true virtual time; `node` is where it happened ("" for the world itself,
"eu~2" for a second process of region eu); `id` names the thing concerned; `causes` are the seqs of the events without
which this one would not have happened. The other fields depend on the kind and are listed in `SCHEMA`. Bytes are hex.

How to judge without our code:

- *Durability*: a `client.answer` with outcome "ok" is a promise. What stands on a node's disk is the sum of the
  commits of its `disk.durable` records; `disk.lost` takes commits away again, `node.start` says what was found. The
  facts that a commit holds are in its `commit` record, written when its writer first hands it to its disk.
- *One outcome*: `view` records, one per region and task at the end, must agree in state, winner and result among
  regions whose `heads` records agree; and with what `client.answer` told before.
- *Exclusivity*: `task.begin` to `task.end` (or the `worker.down` of its process) is the time in which a handler ran;
  `effect.done` is a moment at which the world outside changed, with the fencing token that it was done under.
- *Order*: commits carry writer, number, stamp and `deps`; `causes` gives the true happened-before.

The hash is SHA-256 over the `repr` of each record without its details, a line each; it is equal for equal runs in any
process, under either kernel, with or without the records being kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from typing import Any, Final, NamedTuple, Protocol, TextIO

BUFFERED_MAX: Final = 256  # records whose text waits to be hashed: one update for many is cheaper

#: Kind -> names of the fields in `Record.data`, which count for the hash; all are plain values.
SCHEMA: Final[dict[str, tuple[str, ...]]] = {
    # The run. `id` of run.start is the scenario's name.
    "run.start": ("seed", "regions", "options"),
    "run.heal": ("regions",),
    "run.converged": ("regions",),
    "run.end": (),
    # Faults. `id` is "f0", "f1", ...: the place in the plan, which may grow by what the world itself derives.
    "fault.start": ("fault", "targets", "params"),
    "fault.end": ("fault",),
    "fault.hit": ("fault", "what"),  # the fault changed something: what it did, to the cause
    # Nodes. `id` is the writer (this start's identity).
    "node.start": ("incarnation", "heads", "rows"),  # heads: [[writer, number], ...] found on disk, by writer
    "node.crash": ("reason",),
    "node.failed": ("reason",),  # the driver discarded the replica: the disk failed, or the core raised
    "node.pause": (),
    "node.resume": (),
    # Disks. `id` is "b<batch>" of the writer under way; commits: [[writer, number], ...].
    "disk.write": ("commits", "rows", "bytes"),
    "disk.durable": (),  # of the disk.write that is its cause
    "disk.refused": ("reason",),
    "disk.lost": ("commits", "reason"),  # were durable or on their way, and are gone
    # Commits. `id` is "<writer>:<number>".
    "commit": ("stamp", "hash"),  # details: deps, events
    # Links. `id` of a link is "eu>us#3" (the third connection between them, dialled by eu), of a message "m<number>".
    "net.dial": ("peer",),
    "net.refused": ("peer", "reason"),
    "net.up": ("peer",),  # one record at either end
    "net.down": ("peer", "reason"),
    "net.send": ("peer", "bytes", "crc"),
    "net.deliver": ("peer",),
    "net.drop": ("peer", "reason"),
    # Clients. `id` is "c<number>"; a request that is sent again keeps it.
    "client.call": ("op", "task", "attempt"),  # attempt: 1 for the first time it is sent
    "client.answer": ("outcome", "value"),  # ok | refused (definite) | unknown (indefinite: no answer came)
    # Workers and attempts. `id` is the worker's name, or the attempt's id.
    "worker.up": (),
    "worker.down": ("reason",),
    "task.assigned": ("task", "name", "number", "term", "fence", "worker"),
    "task.begin": ("task", "worker"),
    "task.stop": ("reason",),
    "task.end": ("outcome", "value"),  # as the handler ended; not yet durable
    # The world outside. `id` is the effect's key.
    "effect.done": ("task", "attempt", "name", "fence"),
    "effect.repeated": ("task", "attempt", "name", "fence"),  # again: a sink that knows keys does nothing
    # Programs that hold locks. `id` is the program; `until_us` is the true time until which it believes that it holds it.
    "lock.call": ("op", "name", "token"),
    "lock.held": ("name", "token", "until_us"),
    "lock.renewed": ("name", "token", "until_us"),
    "lock.over": ("name", "token", "reason"),
    "register.write": ("name", "token", "outcome", "looked"),  # outcome: ok | refused; looked: it believed so just now
    # What replicas tell their operators. Of leases: lease.promised, lease.accepted and lease.released by voters,
    # lease.granted, lease.renewed and lease.lost by holders.
    "notify": ("level", "facts"),  # `id` is the stable dotted name
    # Public state, recorded at the end of the run. `id` is the region, or the task.
    "heads": ("applied", "digest"),
    "view": ("state", "settled", "winner", "result", "attempts"),
}


class Record(NamedTuple):
    """One event. `data` has the fields that `SCHEMA` names for the kind, in that order."""

    seq: int
    at_us: int
    node: str
    kind: str
    id: str
    causes: tuple[int, ...]
    data: tuple[Any, ...]
    #: The live object behind it (an effect, a command, a commit row), for checkers; not part of the trace.
    subject: Any = None

    @property
    def at_s(self) -> float:
        return self.at_us / 1_000_000

    def __getitem__(self, field: Any) -> Any:
        """A field of `data` by name; by number, as of any tuple."""
        if isinstance(field, str):
            return self.data[SCHEMA[self.kind].index(field)]
        return tuple.__getitem__(self, field)

    def to_plain(self) -> dict[str, Any]:
        """As it stands in the JSON lines."""
        plain: dict[str, Any] = {
            "seq": self.seq,
            "at_us": self.at_us,
            "node": self.node,
            "kind": self.kind,
            "id": self.id,
            "causes": list(self.causes),
        }
        plain.update(zip(SCHEMA[self.kind], map(_plain, self.data), strict=True))
        details = DETAILS.get(self.kind)
        if details is not None and self.subject is not None:
            plain.update(_plain(details(self.subject)))
        return plain


#: Kind -> what else, or better, the JSON line says, made from the record's subject when it is written.
DETAILS: Final[dict[str, Callable[[Any], Mapping[str, Any]]]] = {}

Listener = Callable[[Record], None]


class Clock(Protocol):
    """Where a trace takes its time from: the kernel."""

    now_us: int


class Trace:
    """The records of one run.

    Args:
        clock: The kernel.
        keep: Whether `records` holds all of them; sweeps go without.
        out: Where JSON lines are written while the run goes on.
    """

    def __init__(self, clock: Clock, *, keep: bool = True, out: TextIO | None = None) -> None:
        self.records: list[Record] = []
        self.keep = keep
        self.count = 0
        self._clock = clock
        self._out = out
        self._hash = sha256()
        self._buffer: list[str] = []
        self._listeners: dict[str, list[Listener]] = {}

    def add(
        self,
        kind: str,
        node: str,
        id: str,
        data: tuple[Any, ...] = (),
        causes: tuple[int, ...] = (),
        *,
        subject: Any = None,
    ) -> int:
        """Record an event now. Returns its seq, for use as a cause."""
        seq = self.count
        self.count = seq + 1
        at_us = self._clock.now_us
        buffer = self._buffer
        buffer.append(f"{seq} {at_us} {node} {kind} {id} {causes!r} {data!r}\n")
        if len(buffer) >= BUFFERED_MAX:
            self._flush()
        listeners = self._listeners.get(kind)
        if self.keep or listeners is not None or self._out is not None:
            record = Record(seq, at_us, node, kind, id, causes, data, subject)
            if self.keep:
                self.records.append(record)
            if self._out is not None:
                self._out.write(line_of(record))
            if listeners is not None:
                for listener in listeners:
                    listener(record)
        return seq

    def listen(self, kinds: Iterable[str], listener: Listener) -> None:
        """Have every later record of these kinds handed to `listener`, in order; of all kinds if it is "*"."""
        for kind in SCHEMA if "*" in (chosen := tuple(kinds)) else chosen:
            assert kind in SCHEMA, f"no record is of kind {kind!r}"
            self._listeners.setdefault(kind, []).append(listener)

    @property
    def hash(self) -> str:
        """Of everything recorded so far, 64 hex digits."""
        self._flush()
        return self._hash.hexdigest()

    def _flush(self) -> None:
        self._hash.update("".join(self._buffer).encode())
        self._buffer.clear()

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def of(self, *kinds: str) -> list[Record]:
        """The kept records of these kinds, in order."""
        return [record for record in self.records if record.kind in kinds]


def line_of(record: Record) -> str:
    """One JSON line, with its line break."""
    return json.dumps(record.to_plain(), ensure_ascii=False, separators=(",", ":")) + "\n"


def first_difference(one: Iterable[Record], other: Iterable[Record]) -> tuple[Record | None, Record | None] | None:
    """The first two records that differ; None for a trace that is over; None in all if the traces are equal."""
    mine, others = iter(one), iter(other)
    while True:
        left, right = next(mine, None), next(others, None)
        if left is None and right is None:
            return None
        if left is None or right is None or left[:7] != right[:7]:
            return left, right


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if isinstance(value, str | int | float) or value is None else str(value)
