"""What led to a violation: the records that a person needs, in order, one line each.

The whole causal past of an event is most of a run, since every heartbeat is a cause of the next. So where a violation is
about a task, its slice is the task's story: who asked for it, which commits say something of it and when they came to
which disk, what its attempts did, and what was broken meanwhile. Else it is the causal past, the nearest first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from crdtsync.errors import CrdtSyncError
from crdtsync.protocol.values import decode_value
from simulator.trace import DETAILS, SCHEMA, Record

if TYPE_CHECKING:
    from simulator.result import Result, Violation
    from simulator.world import World

SLICE_LINES_MAX: Final = 100
VALUE_CHARS_MAX: Final = 60
STORY_LINES_MIN: Final = 8  # a shorter one is no story: the causal past says more
FAULTS_SHOWN: Final = 20
TASKS_MAX: Final = 4  # of one slice

#: What goes wrong with the world, whatever it is that is judged.
TROUBLE: Final = frozenset(
    ("fault.start", "fault.end", "node.crash", "node.start", "node.failed", "disk.lost", "disk.refused", "run.heal")
)
_WRITER: Final = re.compile(r"(#\d+)-[0-9a-f]{16}")  # an incarnation's chance
_STAMP: Final = re.compile(r"@\d{12,}")
_ID: Final = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{24}\b")


def causal_slice(world: World, result: Result) -> list[str]:
    """The records that led to the first violation; the newest are kept if there are many."""
    records = world.trace.records
    violation = result.violations[0] if result.violations else None
    at_us = world.kernel.now_us if violation is None else round(violation.at_s * 1_000_000)
    past = [record for record in records if record.at_us <= at_us]
    if violation is None:
        return _lines(_telling(past), ())
    roots = [cause for cause in violation.causes if 0 <= cause < len(records)]
    tasks = _tasks(violation, [records[root] for root in roots])
    story = _story(past, tasks)
    if len(story) < STORY_LINES_MIN and roots:
        story = _behind(records, roots)
    if not story:
        return _lines(_telling(past), ())
    first_us = story[0].at_us
    trouble = [record for record in past if record.kind in TROUBLE and record.at_us >= first_us]
    faults = [record for record in past if record.kind in ("fault.start", "fault.end")][-FAULTS_SHOWN:]
    chosen = {record.seq: record for record in (*story, *trouble, *faults)}
    return _lines([chosen[seq] for seq in sorted(chosen)][-SLICE_LINES_MAX:], tasks)


def line_of(record: Record, tasks: Iterable[str] = ()) -> str:
    """One record on one line. Of a commit, what it says of these tasks."""
    said: Mapping[str, Any] = dict(zip(SCHEMA[record.kind], record.data, strict=True))
    if record.kind == "commit":
        told = _stated(record, frozenset(tasks))
    else:
        shown = {name: _told(name, value) for name, value in said.items() if value not in ("", (), None)}
        told = " ".join(f"{name}={value}" for name, value in shown.items() if value)
    causes = f" <- {','.join(map(str, record.causes[:4]))}" if record.causes else ""
    line = (
        f"{record.at_s:>10.3f} s  #{record.seq:<6} {record.node or '-':<6} {record.kind:<14} {record.id} {told}{causes}"
    )
    return _ID.sub(r"\1", _STAMP.sub("", _WRITER.sub(r"\1", line)))


def _lines(records: Iterable[Record], tasks: Iterable[str]) -> list[str]:
    return [line_of(record, tasks) for record in records]


def _tasks(violation: Violation, roots: Iterable[Record]) -> tuple[str, ...]:
    """Which tasks it is about: the one that it names, else those of what it names."""
    if violation.task:
        return (violation.task,)
    found = (str(record["task"]) for record in roots if "task" in SCHEMA[record.kind])
    return tuple(dict.fromkeys(task for task in found if task))[:TASKS_MAX]


def _story(past: Iterable[Record], tasks: Sequence[str]) -> list[Record]:
    """What happened to these tasks, and how the commits about them spread."""
    if not tasks:
        return []
    wanted = frozenset(tasks)
    commits: set[tuple[str, int]] = set()  # that say something of them
    things: set[str] = set()  # ids of their attempts and requests
    chosen = []
    for record in past:
        if record.kind == "commit":
            if _events(record, wanted):
                writer, _, number = record.id.rpartition(":")
                commits.add((writer, int(number)))
                chosen.append(record)
        elif record.kind == "disk.write":
            stored: Any = record["commits"]
            if not commits.isdisjoint(stored):
                chosen.append(record)
        elif record.id in wanted or record.id in things or _names(record, wanted):
            if record.kind != "notify":  # its id is what it is called
                things.add(record.id)
            chosen.append(record)
    return chosen


def _names(record: Record, tasks: frozenset[str]) -> bool:
    fields = SCHEMA[record.kind]
    if "task" in fields:
        return not tasks.isdisjoint(str(record["task"]).split(","))
    facts: Any = record["facts"] if record.kind == "notify" else ()
    return not tasks.isdisjoint(str(value) for _, value in facts)


def _behind(records: Sequence[Record], roots: Iterable[int]) -> list[Record]:
    """The causal past of some records, the nearest of it."""
    seen: set[int] = set()
    waiting = sorted(roots)
    while waiting and len(seen) < SLICE_LINES_MAX:
        seq = waiting.pop()  # the newest first: what is nearest to the failure says most
        if seq not in seen:
            seen.add(seq)
            waiting = sorted({*waiting, *(cause for cause in records[seq].causes if cause not in seen)})
    return [records[seq] for seq in sorted(seen)]


def _telling(past: Iterable[Record]) -> list[Record]:
    """Where nothing was named: what went wrong with the world, and the last things before the end."""
    kinds = TROUBLE | {"task.end", "client.answer", "notify"}
    return [record for record in past if record.kind in kinds][-SLICE_LINES_MAX // 2 :]


def _events(record: Record, tasks: frozenset[str]) -> list[Mapping[str, Any]]:
    """The facts about these tasks that a commit states."""
    if record.subject is None:
        return []
    events: list[Mapping[str, Any]] = DETAILS["commit"](record.subject)["events"]
    return [event for event in events if isinstance(task := event.get("task"), bytes) and task.hex() in tasks]


def _stated(record: Record, tasks: frozenset[str]) -> str:
    """The facts of a commit in a few words: `Claimed term=1, Ended outcome=ok late=True`."""
    words = []
    for event in _events(record, tasks):
        kept = (f"{name}={event[name]}" for name in _WORDS if event.get(name) not in (None, "", 0, False))
        words.append(" ".join((event["event"], *kept)))
    return ", ".join(words)


_WORDS: Final = (
    "owner",
    "region",
    "term",
    "token",
    "attempt",
    "name",
    "index",
    "outcome",
    "late",
    "death",
    "continues",
)


def _told(name: str, value: Any) -> str:
    """A field in a few words."""
    if name == "commits":
        plain = " ".join(f"{writer}:{number}" for writer, number in value)
    elif name == "value" and isinstance(value, str):
        plain = _decoded(value)
    elif isinstance(value, tuple):
        plain = _flat(value)
    else:
        plain = value.hex() if isinstance(value, bytes) else str(value)
    return plain if len(plain) <= VALUE_CHARS_MAX or name == "commits" else plain[: VALUE_CHARS_MAX - 1] + "…"


def _flat(value: Any) -> str:
    """`(("a", 1), ("b", (2, 3)))` as `a:1 b:2,3`."""
    if not isinstance(value, tuple):
        return str(value)
    if value and all(isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) for item in value):
        return " ".join(f"{name}:{_flat(item)}" for name, item in value)
    return ",".join(map(_flat, value))


def _decoded(text: str) -> str:
    """A result, which stands in the trace as the hex of its CBOR."""
    try:
        return repr(decode_value(bytes.fromhex(text)))
    except (ValueError, CrdtSyncError):
        return text
