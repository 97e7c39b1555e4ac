"""Histories as files: one JSON object a line, gzipped or not, as test suites for databases keep them.

    {"id": "h1", "model": "cas-register", "init": null, "ops": [[0, "invoke", "write", 3], [0, "ok", "write", 3]]}

`docs/reference/histories.md` has every key. Whatever is not of this form is answered with the number of its line.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, TypeAlias, cast

from crdtsync.errors import InvalidRequestError
from simulator.linearizability import ACQUIRE, FREE, HELD, RELEASE, Action, Kind, Operation

LINE_BYTES_MAX: Final = 64 * 2**20
FILE_BYTES_MAX: Final = 2**30  # once unpacked: a small file may hold gigabytes of nothing
_CHUNK_BYTES: Final = 2**20
_GZIP: Final = b"\x1f\x8b"
_COLUMNS: Final = ("process", "type", "f", "value")
_TYPES: Final = ("invoke", "ok", "fail", "info")
_Process: TypeAlias = int | str


@dataclass(frozen=True, slots=True)
class History:
    id: str
    model: str
    #: What a judge needs; None if this model is not one that is judged.
    operations: tuple[Operation, ...] | None
    initial: int
    #: The entries as they stand in the file, by place: what a place of an `Operation` is an index into.
    entries: Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line of a client's diary."""

    process: _Process
    type: str
    function: str
    value: Any
    error: Any


class _MalformedError(Exception):
    """Becomes an InvalidRequestError, with the line."""


def read(file: BinaryIO) -> list[History]:
    """All histories of a file. Empty lines are skipped.

    Raises:
        InvalidRequestError: Names the line and what is wrong with it.
    """
    buffered = io.BufferedReader(cast("io.RawIOBase", file))  # to look ahead: standard input cannot seek
    try:
        return [_parsed(number, line) for number, line in _lines(buffered)]
    finally:
        buffered.detach()  # the file is the caller's to close


def _parsed(number: int, line: bytes) -> History:
    try:
        return parse(json.loads(line))
    except json.JSONDecodeError as error:
        raise _refusal(number, f"is not JSON: {error.msg} at column {error.colno}") from None
    except ValueError as error:  # not UTF-8, or a number of thousands of digits
        raise _refusal(number, f"cannot be read: {error}") from None
    except RecursionError:
        raise _refusal(number, "is nested too deeply") from None
    except _MalformedError as error:
        raise _refusal(number, str(error)) from None


def _refusal(number: int, text: str) -> InvalidRequestError:
    return InvalidRequestError(f"line {number} {text}", line=number)


def _lines(file: io.BufferedReader[Any]) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank, unpacked if need be, whatever the file's name."""
    stream = gzip.GzipFile(fileobj=file) if file.peek(len(_GZIP)).startswith(_GZIP) else file
    number = total = 0
    pending = b""
    while True:
        try:
            chunk = stream.read(_CHUNK_BYTES)
        except (OSError, EOFError, zlib.error) as error:
            raise InvalidRequestError(f"the gzip data after line {number} is damaged: {error}", line=number) from None
        total += len(chunk)
        if total > FILE_BYTES_MAX:
            raise InvalidRequestError(f"more than {FILE_BYTES_MAX} bytes of histories: split the file", line=number)
        *lines, pending = (pending + chunk).split(b"\n") if chunk else (pending, b"")
        for line in lines:
            number += 1
            if line.strip():
                yield number, line
        if len(pending) > LINE_BYTES_MAX:
            raise _refusal(number + 1, f"is longer than {LINE_BYTES_MAX} bytes")
        if not chunk:
            return


def parse(record: Any) -> History:
    """One decoded line."""
    if not isinstance(record, dict):
        raise _MalformedError("is not an object")
    for key in ("id", "model"):
        if not isinstance(record.get(key), str):
            raise _MalformedError(f'has no text under "{key}"')
        if not record[key].isprintable():  # half a surrogate pair would break what is printed
            raise _MalformedError(f'has something under "{key}" that cannot be printed')
    entries = record.get("ops")
    if not isinstance(entries, list):
        raise _MalformedError('has no list under "ops"')
    reader = MODELS.get(record["model"])
    if reader is None:
        return History(record["id"], record["model"], None, 0, entries)
    initial, operations = reader(record, _diary(record, entries))
    return History(record["id"], record["model"], tuple(operations), initial, entries)


def _diary(record: dict[str, Any], entries: list[Any]) -> list[_Entry]:
    names = record.get("cols", list(_COLUMNS))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _MalformedError('has no list of names under "cols"')
    columns = {name.removesuffix("?"): i for i, name in enumerate(names)}
    if missing := [name for name in _COLUMNS if name not in columns]:
        raise _MalformedError(f'names no column {missing[0]!r} under "cols"')
    places = [columns[name] for name in _COLUMNS]
    error_at = columns.get("error", -1)
    diary = []
    for i, entry in enumerate(entries):
        if not isinstance(entry, list) or len(entry) <= max(places):
            raise _MalformedError(f"has an operation {i} that is not a list of {', '.join(_COLUMNS)}")
        process, type_, function, value = (entry[place] for place in places)
        if not isinstance(process, int | str) or not isinstance(function, str) or type_ not in _TYPES:
            raise _MalformedError(f"has an operation {i} that cannot be: {json.dumps(entry)[:200]}")
        diary.append(_Entry(process, type_, function, value, entry[error_at] if 0 <= error_at < len(entry) else None))
    return diary


def _calls(diary: Sequence[_Entry]) -> Iterator[tuple[_Entry, int, _Entry | None, int]]:
    """Each invocation and its place, with the answer and its place: None where none came, or it says "unknown"."""
    open_: dict[_Process, int] = {}
    for i, entry in enumerate(diary):
        if entry.type == "invoke":
            if entry.process in open_:
                raise _MalformedError(
                    f"has an operation {i} of process {entry.process!r}, which still waits for another"
                )
            open_[entry.process] = i
        elif entry.process in open_:
            at = open_.pop(entry.process)
            if entry.function != diary[at].function:
                raise _MalformedError(
                    f"has an answer {i} to a {entry.function!r}, where {diary[at].function!r} was asked"
                )
            yield diary[at], at, (None if entry.type == "info" else entry), i
        elif entry.type != "info":  # by itself it is what a nemesis did
            raise _MalformedError(f"has an answer {i} to process {entry.process!r}, which had asked nothing")
    for at in open_.values():
        yield diary[at], at, None, -1


class _Numbers:
    """Numbers for the values of one history, equal for equal ones."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __call__(self, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # JSON has one kind of number
        text = json.dumps(value, sort_keys=True)
        return self._numbers.setdefault(text, len(self._numbers))


def _register(record: dict[str, Any], diary: Sequence[_Entry], *, cas: bool) -> tuple[int, list[Operation]]:
    number = _Numbers()
    initial = number(record.get("init"))
    # Knossos writes a read that learned nothing as null, and a failure is what did not happen. Without that mark a null
    # is what was read, and a compare-and-set that failed tells that the value was another.
    knossos = record.get("read_null_is_wildcard", False) is True
    operations = []

    def action_of(asked: _Entry, answer: _Entry | None, at: int) -> Action | None:
        failed = answer is not None and answer.type == "fail"
        match asked.function:
            case "read":
                if answer is None or failed or (knossos and answer.value is None):
                    return None
                return Action(Kind.READ, number(answer.value))
            case "write":
                return None if failed else Action(Kind.WRITE, number(asked.value))
            case "cas" if cas:
                if not isinstance(asked.value, list) or len(asked.value) != 2:
                    raise _MalformedError(f"has a cas {at} whose value is not [from, to]")
                before, after = map(number, asked.value)
                if not failed:
                    return Action(Kind.CAS, before, after)
                # With an error it failed for another reason than the value.
                return None if knossos or (answer and answer.error is not None) else Action(Kind.DIFFERS, before)
            case unknown:
                raise _MalformedError(f"has an operation {at}, {unknown!r}, that a {record['model']} does not know")

    for asked, invoked, answer, returned in _calls(diary):
        action = action_of(asked, answer, invoked)
        if action is not None:
            operations.append(Operation(action, invoked, None if answer is None else returned))
    return initial, operations


def _mutex(record: dict[str, Any], diary: Sequence[_Entry]) -> tuple[int, list[Operation]]:
    states = {None: FREE, "unlocked": FREE, "locked": HELD}
    init = record.get("init")
    if not isinstance(init, str | None) or init not in states:
        raise _MalformedError('has an "init" that is neither "unlocked" nor "locked"')
    actions = {"acquire": ACQUIRE, "release": RELEASE}
    operations = []
    for asked, invoked, answer, returned in _calls(diary):
        if asked.function not in actions:
            raise _MalformedError(f"has an operation {invoked}, {asked.function!r}, that a mutex does not know")
        if answer is None or answer.type == "ok":
            operations.append(Operation(actions[asked.function], invoked, None if answer is None else returned))
    return states[init], operations


#: How the entries of each model that is judged become operations on a register.
MODELS: Final[dict[str, Callable[[dict[str, Any], Sequence[_Entry]], tuple[int, list[Operation]]]]] = {
    "cas-register": lambda record, diary: _register(record, diary, cas=True),
    "register": lambda record, diary: _register(record, diary, cas=False),
    "mutex": _mutex,
}
