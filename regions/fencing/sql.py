"""Conditional writes for databases: a row, or a gate that many rows share, takes no token older than it has seen.

    statement = sql.update("accounts", {"balance": 70}, {"id": "A-1"}, ctx.fence)
    sql.apply(connection.cursor(), statement)       # FencedError if a newer token was there

The statements are one `UPDATE` or `INSERT ... ON CONFLICT` each, so that comparing and writing are one step: the
database locks the row, and compares with what it then holds. They are plain text and values, for any driver: `apply` is
for those of PEP 249 (sqlite3, psycopg); with others execute `statement.text` and look at how many rows it changed.

A token of 0 is no token (a task that is not `quorum`), and refused here: it would lose against everybody, or worse,
pass where nobody had a token yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeAlias

from crdtsync.errors import FencedError, InvalidRequestError
from regions.fencing.tokens import checked

#: How a driver writes its parameters: sqlite3 and aiosqlite; psycopg; asyncpg.
Placeholder: TypeAlias = Literal["?", "%s", "$1"]

COLUMN: Final = "fence"
GATES: Final = "crdtsync_gates"


@dataclass(frozen=True, slots=True)
class Statement:
    """A conditional write. It took effect if it changed one row."""

    text: str
    values: tuple[Any, ...]
    token: int
    #: Reads the token that is stored where it would have written: no row, and there was nothing to write to.
    seen_text: str
    seen_values: tuple[Any, ...]


class Cursor(Protocol):
    """What `apply` needs of PEP 249."""

    @property
    def rowcount(self) -> int: ...
    def execute(self, operation: str, parameters: Sequence[Any], /) -> Any: ...
    def fetchone(self) -> Any: ...


class MissingRowError(LookupError):
    """An update met no row at all. Nothing was written."""


def update(
    table: str,
    changes: Mapping[str, Any],
    where: Mapping[str, Any],
    token: int,
    *,
    column: str = COLUMN,
    placeholder: Placeholder = "?",
) -> Statement:
    """`UPDATE table SET changes, fence = token WHERE where AND fence <= token`.

    Args:
        where: Columns that identify one row. A write of several rows could pass for some of them: give them a gate.
        column: Holds the largest token so far, `BIGINT NOT NULL DEFAULT 0`.
    """
    _needed(changes, "a column to change")
    _needed(where, "a column that identifies the row")
    if column in changes:
        raise InvalidRequestError(f"{column!r} is set to the token: leave it out of the changes")
    parameters = _Parameters(placeholder)
    sets = [f"{_quoted(name)} = {parameters.add(value)}" for name, value in changes.items()]
    sets.append(f"{_quoted(column)} = {parameters.add(checked(token))}")
    conditions = [f"{_quoted(name)} = {parameters.add(value)}" for name, value in where.items()]
    conditions.append(f"{_quoted(column)} <= {parameters.add(token)}")
    text = f"UPDATE {_quoted(table)} SET {', '.join(sets)} WHERE {' AND '.join(conditions)}"  # noqa: S608
    return Statement(text, parameters.values, token, *_seen(table, where, column, placeholder))


def upsert(
    table: str,
    row: Mapping[str, Any],
    key: Sequence[str],
    token: int,
    *,
    column: str = COLUMN,
    placeholder: Placeholder = "?",
) -> Statement:
    """Insert `row`, or update the one that has its key, if that has seen no newer token.

    Args:
        key: The columns of `row` on which the table has its primary key or a unique index.
        column: As for `update`.
    """
    _needed(key, "a key")
    if column in row:
        raise InvalidRequestError(f"{column!r} is set to the token: leave it out of the row")
    if missing := set(key) - row.keys():
        raise InvalidRequestError(f"the row has no {sorted(missing)}, which is of its key")
    parameters = _Parameters(placeholder)
    stored = _quoted(table)
    names = [*row, column]
    columns = ", ".join(map(_quoted, names))
    marks = ", ".join(parameters.add(value) for value in (*row.values(), checked(token)))
    keys = ", ".join(map(_quoted, key))
    sets = ", ".join(f"{_quoted(name)} = excluded.{_quoted(name)}" for name in names if name not in key)
    unless = f"{stored}.{_quoted(column)} <= excluded.{_quoted(column)}"
    text = f"INSERT INTO {stored} ({columns}) VALUES ({marks}) ON CONFLICT ({keys}) DO UPDATE SET {sets} WHERE {unless}"  # noqa: S608
    where = {name: row[name] for name in key}
    return Statement(text, parameters.values, token, *_seen(table, where, column, placeholder))


def create_gates(table: str = GATES) -> str:
    """The table that `gate` needs: one row per resource."""
    return (
        f"CREATE TABLE IF NOT EXISTS {_quoted(table)} "
        f"({_quoted('resource')} TEXT PRIMARY KEY, {_quoted(COLUMN)} BIGINT NOT NULL DEFAULT 0)"
    )


def gate(resource: str, token: int, *, table: str = GATES, placeholder: Placeholder = "?") -> Statement:
    """Pass the gate of a resource: run it first in a transaction, and whatever follows in it is fenced.

    The gate's row stays locked until the transaction ends, so that nobody with a newer token passes in between.
    """
    return upsert(table, {"resource": resource}, ("resource",), token, placeholder=placeholder)


def apply(cursor: Cursor, statement: Statement) -> None:
    """Execute a statement, and see that it took effect. Committing is the caller's.

    Raises:
        FencedError: A newer token was there. Nothing was written; roll back what came before.
        MissingRowError: There is no such row.
    """
    cursor.execute(statement.text, statement.values)
    changed = cursor.rowcount
    if changed == 1:
        return
    if changed != 0:
        raise InvalidRequestError(f"changed {changed} rows, and a token is compared in one: roll back, and use a gate")
    cursor.execute(statement.seen_text, statement.seen_values)
    found = cursor.fetchone()
    if found is None:
        raise MissingRowError(f"no row to write to: {statement.text}")
    seen = found[0]
    if seen is None:
        raise InvalidRequestError("the row's token is NULL, which compares with nothing: make it NOT NULL DEFAULT 0")
    raise FencedError(
        f"refused: the token is {statement.token}, and {seen} was there", token=statement.token, seen=int(seen)
    )


def _seen(table: str, where: Mapping[str, Any], column: str, placeholder: Placeholder) -> tuple[str, tuple[Any, ...]]:
    parameters = _Parameters(placeholder)
    conditions = " AND ".join(f"{_quoted(name)} = {parameters.add(value)}" for name, value in where.items())
    return f"SELECT {_quoted(column)} FROM {_quoted(table)} WHERE {conditions}", parameters.values  # noqa: S608


class _Parameters:
    def __init__(self, placeholder: Placeholder) -> None:
        self._placeholder = placeholder
        self._values: list[Any] = []

    @property
    def values(self) -> tuple[Any, ...]:
        return tuple(self._values)

    def add(self, value: Any) -> str:
        self._values.append(value)
        return f"${len(self._values)}" if self._placeholder == "$1" else self._placeholder


def _quoted(name: str) -> str:
    """An identifier, or several with dots between (`schema.table`), that means itself whatever is in it."""
    if not name or "\0" in name or "%" in name:  # % begins a parameter for some drivers
        raise InvalidRequestError(f"{name!r} is no name of a table or column")
    return ".".join('"' + part.replace('"', '""') + '"' for part in name.split("."))


def _needed(given: Mapping[str, Any] | Sequence[str], what: str) -> None:
    if not given:
        raise InvalidRequestError(f"{what} is needed")
