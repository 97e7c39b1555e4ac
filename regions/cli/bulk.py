"""`task submit --from`: many tasks from JSON lines, with references between them.

A line may name others of the same file, before or after it, as "@ref". The node accepts a task
only when it holds the tasks that it comes after, so lines are sent parents first, in batches; what
is printed stays in the order of the lines. Ids are minted here, so a reference needs no round trip;
a line with an idempotency key is the exception (its id may be an earlier task's), and what names
it waits for the node's answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from heapq import heapify, heappop, heappush
from typing import Any, Final

import msgspec

from crdtsync.commands import Submit, TaskSpec
from crdtsync.errors import CrdtSyncError
from crdtsync.identifiers import parse_task_id
from crdtsync.protocol.values import encode_arguments
from regions.cli.output import print_json_line
from regions.cli.session import talk
from regions.client import Client
from regions.submission import new_task_id

BATCH_TASKS_MAX: Final = 500  # per request: one commit holds twice as many events
BATCH_BYTES_MAX: Final = 1 << 20  # of payloads per request, well below the frame limit
LINE_KEYS: Final = (
    "name",
    "args",
    "key",
    "queue",
    "priority",
    "delay",
    "after",
    "after_settled",
    "region",
    "partition",
    "scope",
    "label",
    "labels",
    "ref",
    "attempts",
    "timeout",
)


class LineError(Exception):
    """What is wrong with one line; the others go on."""

    def __init__(self, message: str, code: str = "invalid") -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class Line:
    """One line of the file, on its way to an answer."""

    number: int
    fields: dict[str, Any] = field(default_factory=dict)
    payload: bytes = b""
    id: bytes | None = None  # known before the answer unless there is a key
    answer: dict[str, Any] | None = None
    parents: set[int] = field(default_factory=set)  # indices of the lines that it refers to

    def fail(self, error: LineError) -> None:
        self.answer = {"line": self.number, "error": str(error), "code": error.code}

    @property
    def failed(self) -> bool:
        return self.answer is not None and "error" in self.answer


def submit_lines(node: str, source: Iterable[bytes]) -> int:
    """Submit every line, print an answer for each, and return the exit code."""
    lines = [parse_line(number, text) for number, text in enumerate(source, 1) if text.strip()]
    refs = link(lines)

    async def conversation(client: Client) -> None:
        shown = 0
        for batch in batches(lines):
            await _submit(client, lines, batch, refs)
            while shown < len(lines) and (answer := lines[shown].answer) is not None:
                print_json_line(answer)
                shown += 1
        for line in lines[shown:]:  # behind a circle of references
            if line.answer is None:
                line.fail(LineError("its references lead back to itself"))
            print_json_line(line.answer)

    talk(node, conversation)
    return 1 if any(line.failed for line in lines) else 0


def parse_line(number: int, text: bytes) -> Line:
    """One line, checked as far as it can be without the others; what is wrong becomes its answer."""
    line = Line(number)
    try:
        fields = _fields(text)
        args = fields.get("args") or {}
        positional, named = (tuple(args), {}) if isinstance(args, list) else ((), args)
        line.payload = encode_arguments(fields["name"], positional, named)
    except CrdtSyncError as error:  # arguments that cannot travel
        line.fail(LineError(str(error), error.code))
    except LineError as error:
        line.fail(error)
    else:
        line.fields = fields
        if not fields.get("key"):
            line.id = new_task_id()
    return line


def _fields(text: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise LineError(f"not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise LineError("an object is needed")
    for key in fields:
        if key not in LINE_KEYS:
            close = get_close_matches(key, LINE_KEYS, n=1)
            raise LineError(f"unknown key {key!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    if not isinstance(fields.get("name"), str) or not fields["name"]:
        raise LineError('"name" says which task; it is missing')
    if not isinstance(fields.get("args") or {}, dict | list):
        raise LineError('"args" is an object of keyword arguments or a list')
    for key in ("after", "after_settled"):
        ids = fields.get(key) or []
        fields[key] = [ids] if isinstance(ids, str) else ids
        if not isinstance(fields[key], list) or not all(isinstance(item, str) for item in fields[key]):
            raise LineError(f'"{key}" is a list of task ids and "@ref"s')
    return fields


def link(lines: list[Line]) -> dict[str, int]:
    """Resolve which line each "@ref" names; returns their indices. Unknown and repeated ones fail."""
    refs: dict[str, int] = {}
    for index, line in enumerate(lines):
        ref = line.fields.get("ref")
        if ref is None or line.failed:
            continue
        if not isinstance(ref, str) or ref in refs:
            line.fail(LineError(f'"ref" {ref!r} is taken by an earlier line' if ref in refs else '"ref" is a text'))
        else:
            refs[ref] = index
    for line in lines:
        for name in _references(line):
            if name in refs:
                line.parents.add(refs[name])
            elif not line.failed:
                line.fail(LineError(f'no line of this file has the ref "{name}"', "dependency"))
    return refs


def batches(lines: list[Line]) -> Iterable[list[Line]]:
    """Lines in the order in which to send them: parents first, else as in the file, in bounded groups.

    A line that names one with a key begins a new batch, since that one's id comes with its answer.
    """
    waiting = [len(line.parents) for line in lines]
    children: dict[int, list[int]] = {}
    for index, line in enumerate(lines):
        for parent in line.parents:
            children.setdefault(parent, []).append(index)
    ready = [index for index, count in enumerate(waiting) if not count]
    heapify(ready)
    batch: list[Line] = []
    gathered: set[int] = set()
    size = 0
    while ready:
        index = heappop(ready)
        line = lines[index]
        unknown = any(parent in gathered and lines[parent].id is None for parent in line.parents)
        full = len(batch) >= BATCH_TASKS_MAX or size + len(line.payload) > BATCH_BYTES_MAX
        if batch and (unknown or full):
            yield batch
            batch, gathered, size = [], set(), 0
        batch.append(line)
        gathered.add(index)
        size += len(line.payload)
        for child in children.get(index, ()):
            waiting[child] -= 1
            if not waiting[child]:
                heappush(ready, child)
    if batch:
        yield batch


async def _submit(client: Client, lines: list[Line], batch: list[Line], refs: dict[str, int]) -> None:
    sent: list[Line] = []
    specs: list[TaskSpec] = []
    for line in batch:
        if line.failed:
            continue
        try:
            specs.append(_spec(line, lines, refs))
            sent.append(line)
        except LineError as error:
            line.fail(error)
    if not specs:
        return
    try:
        answers = await client.request(Submit(specs=tuple(specs)))
    except CrdtSyncError as error:
        if not error.definite or error.exit_code == 69:
            raise
        for line in sent:
            line.fail(LineError(str(error), error.code))
        return
    for line, answer in zip(sent, answers, strict=True):
        if "error" in answer:
            line.fail(LineError(answer["error"].get("message", ""), answer["error"].get("code", "internal")))
        else:
            line.answer = answer
            line.id = parse_task_id(answer["id"])


def _spec(line: Line, lines: list[Line], refs: dict[str, int]) -> TaskSpec:
    fields = line.fields
    for parent in line.parents:
        if lines[parent].failed:
            raise LineError(f"line {lines[parent].number}, which it comes after, failed", "dependency")

    def ids(key: str) -> list[bytes]:
        found = []
        for item in fields[key]:
            if item.startswith("@"):
                id_ = lines[refs[item[1:]]].id
                assert id_ is not None, "a line is sent after those that it names"
                found.append(id_)
            else:
                try:
                    found.append(parse_task_id(item))
                except ValueError as error:
                    raise LineError(str(error)) from None
        return found

    values = {
        "name": fields["name"],
        "payload": line.payload,
        "id": line.id,
        "queue": fields.get("queue"),
        "priority": fields.get("priority"),
        "delay_ms": _milliseconds(fields, "delay"),
        "key": fields.get("key") or "",
        "labels": fields.get("label") or fields.get("labels") or {},
        "after": ids("after"),
        "after_settled": ids("after_settled"),
        "region": fields.get("region") or "here",
        "partition": fields.get("partition"),
        "scope": fields.get("scope"),
        "attempts": fields.get("attempts"),
        "timeout_ms": _milliseconds(fields, "timeout") or None,
    }
    try:
        return msgspec.convert(values, TaskSpec, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise LineError(str(error)) from None


def _milliseconds(fields: dict[str, Any], key: str) -> int:
    value = fields.get(key) or 0
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise LineError(f'"{key}" is a number of seconds')
    return round(value * 1_000)


def _references(line: Line) -> list[str]:
    named = [*line.fields.get("after", ()), *line.fields.get("after_settled", ())]
    return [item[1:] for item in named if item.startswith("@")]
