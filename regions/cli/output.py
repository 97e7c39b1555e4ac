"""How commands print: aligned columns for people, JSON for programs, errors on stderr.

Nothing is cut when stdout is not a terminal, so `crdtsync ... | grep` sees whole values; colour
appears only on a terminal and never where NO_COLOR is set.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import click

from crdtsync.errors import CrdtSyncError

_COLOURS: Final = {
    "succeeded": "green",
    "ok": "green",
    "up": "green",
    "self": "green",
    "running": "cyan",
    "waiting": "yellow",
    "cancelling": "yellow",
    "expired": "red",
    "dead": "red",
    "failed": "red",
    "lost": "red",
    "down": "red",
    "cut": "magenta",
    "cancelled": "magenta",
}
_MIN_COLUMN = 8  # a column on a narrow terminal keeps at least this much of a value


def on_terminal() -> bool:
    return sys.stdout.isatty()


def colourful() -> bool:
    return on_terminal() and not os.environ.get("NO_COLOR")


def print_json(value: Any) -> None:
    """One JSON value: indented for a reader, on one line for a pipe."""
    _write(json.dumps(value, ensure_ascii=False, indent=2 if on_terminal() else None, default=_plain))


def print_json_line(value: Any) -> None:
    """One JSON value of a stream, on one line and flushed, whoever reads."""
    _write(json.dumps(value, ensure_ascii=False, default=_plain))
    sys.stdout.flush()


class JsonArray:
    """A listing that arrives in parts, printed as `print_json` prints the whole and never held."""

    def __init__(self) -> None:
        self._indent = 2 if on_terminal() else None
        self._opened = False

    def add(self, rows: Iterable[Any]) -> None:
        for row in rows:
            text = json.dumps([row], ensure_ascii=False, indent=self._indent, default=_plain)
            # Without its brackets; indented, each stands on a line of its own.
            item = text[1:-1] if self._indent is None else text[1:-2]
            if self._opened:
                sys.stdout.write(", " if self._indent is None else ",")
            else:
                sys.stdout.write("[")
                self._opened = True
            sys.stdout.write(item)

    def end(self) -> None:
        if not self._opened:
            _write("[]")
        else:
            _write("]" if self._indent is None else "\n]")


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], output: str, *, empty: str = "") -> None:
    """A listing: one JSON array, or a table of `columns`; `empty` is the message when there is nothing."""
    if output == "json":
        print_json(list(rows))
    elif not rows:
        if empty:
            print_message(empty)
    else:
        for line in table([[cell(row.get(column)) for column in columns] for row in rows], columns):
            _write(line)


def print_record(record: Mapping[str, Any], output: str) -> None:
    """One record: JSON, or a line per key with nested lists as indented tables."""
    if output == "json":
        print_json(record)
        return
    width = max((len(key) for key in record), default=0)
    for key, value in record.items():
        if _is_listing(value):
            _write(f"{key}:")
            columns = list(dict.fromkeys(column for item in value for column in item))
            for line in table([[cell(item.get(column)) for column in columns] for item in value], columns):
                _write(f"  {line}")
        else:
            _write(f"{(key + ':').ljust(width + 2)}{_painted(cell(value))}")


def print_message(text: str) -> None:
    """Something for a person, beside the data."""
    click.echo(text, err=True)


def report_error(error: CrdtSyncError, *, as_json: bool) -> None:
    """An error on stderr: the sentence, or its record for programs that asked for JSON."""
    if as_json:
        click.echo(json.dumps({"error": error.record()}, ensure_ascii=False, default=_plain), err=True)
        return
    lines = str(error).splitlines() or [error.code]
    click.echo(f"error: {lines[0]}", err=True)
    for line in lines[1:]:
        click.echo(f"       {line}", err=True)
    if not error.definite:
        click.echo("       it may have happened: look before you repeat it, or repeat it with the same --key", err=True)


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether `-o json` is among the arguments; errors are reported before and after they are parsed."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=True)
    return any(
        (name in ("-o", "--output") and value == "json") or name in ("-ojson", "--output=json") for name, value in pairs
    )


def table(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> Iterable[str]:
    """Aligned lines with a header; long values are cut only to fit a terminal."""
    head = [column.replace("_", " ").upper() for column in columns]
    widths = [max(len(head[i]), *(len(row[i]) for row in rows)) for i in range(len(head))]
    if on_terminal():
        space = shutil.get_terminal_size().columns - 2 * (len(widths) - 1)
        while sum(widths) > space and max(widths) > _MIN_COLUMN:
            widths[widths.index(max(widths))] -= 1
    yield "  ".join(text.ljust(width) for text, width in zip(head, widths, strict=True)).rstrip()
    for row in rows:
        cut = [text if len(text) <= width else text[: width - 1] + "…" for text, width in zip(row, widths, strict=True)]
        padded = [_painted(text, width) for text, width in zip(cut, widths, strict=True)]
        yield "  ".join(padded).rstrip()


def cell(value: Any) -> str:
    """One value as people read it in a table."""
    match value:
        case None | "" | []:
            return "-"
        case dict() if not value:  # the pattern {} would match every mapping
            return "-"
        case True:
            return "yes"
        case False:
            return "no"
        case bytes():
            return value.hex()
        case float():
            return f"{value:g}"
        case str():
            return value if "\n" not in value else json.dumps(value, ensure_ascii=False)
        case list() | tuple() if all(isinstance(item, str | int) for item in value):
            return " ".join(str(item) for item in value)
        case dict() if all(isinstance(item, str | int) for item in value.values()):
            return " ".join(f"{key}={item}" for key, item in value.items())
        case list() | tuple() | dict():
            return json.dumps(value, ensure_ascii=False, default=_plain)
        case _:
            return str(value)


def _painted(text: str, width: int = 0) -> str:
    padded = text.ljust(width)
    return click.style(padded, fg=_COLOURS[text]) if text in _COLOURS and colourful() else padded


def _is_listing(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _plain(value: Any) -> Any:
    return bytes(value).hex() if isinstance(value, bytes | bytearray | memoryview) else str(value)


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
