"""All SQL but the schema, by what it is for. Parameters are positional, in the order of the text."""

# ruff: noqa: S608  # what is pasted into texts here are other texts of this module; values are always parameters
from __future__ import annotations

from typing import Final

from regions.storage.store import Filters

# --- writing: one transaction per Persist ----------------------------------------------------------

BEGIN: Final = "BEGIN IMMEDIATE"  # takes the write lock now, so that no statement after it can meet a busy database
COMMIT: Final = "COMMIT"
ROLLBACK: Final = "ROLLBACK"

INTERN_DOMAIN: Final = "INSERT INTO domains (name) VALUES (?)"
INTERN_WRITER: Final = "INSERT INTO writers (domain, name) VALUES (?, ?)"
DOMAINS: Final = "SELECT id, name FROM domains"
WRITERS: Final = "SELECT id, domain, name, head, floor FROM writers"

INSERT_COMMIT: Final = "INSERT INTO commits (writer, number, crc, blob) VALUES (?, ?, ?, ?)"
STORED_COMMIT: Final = "SELECT crc, blob FROM commits WHERE writer = ? AND number = ?"
REPAIR_COMMIT: Final = "UPDATE commits SET crc = ?, blob = ? WHERE writer = ? AND number = ?"
COUNT_COMMITS: Final = "UPDATE writers SET head = max(head, ?), commits = commits + ?, bytes = bytes + ? WHERE id = ?"
RAISE_FLOOR: Final = "UPDATE writers SET floor = max(floor, ?), head = max(head, ?) WHERE id = ?"

TASK_COLUMNS: Final = 14


def put_tasks(count: int) -> str:
    """Insert or replace so many rows, with one statement."""
    row = f"({', '.join('?' * TASK_COLUMNS)})"
    return _PUT_TASKS.format(rows=", ".join([row] * count))


_PUT_TASKS: Final = """
    INSERT INTO tasks (domain, task, name, queue, state, settled, live, owner, created_ms, conflicts,
                       labels, digest, crc, facts)
    VALUES {rows}
    ON CONFLICT (domain, task) DO UPDATE SET
        name = excluded.name, queue = excluded.queue, state = excluded.state, settled = excluded.settled,
        live = excluded.live, owner = excluded.owner, created_ms = excluded.created_ms,
        conflicts = excluded.conflicts, labels = excluded.labels, digest = excluded.digest,
        crc = excluded.crc, facts = excluded.facts
"""
PUT_LABEL: Final = """
    INSERT OR IGNORE INTO labels (domain, label, value, state, created_ms, task) VALUES (?, ?, ?, ?, ?, ?)
"""
PUT_DOCUMENT: Final = """
    INSERT INTO documents (domain, task, name, crc, state) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (domain, task, name) DO UPDATE SET crc = excluded.crc, state = excluded.state
"""
PUT_META: Final = """
    INSERT INTO meta (name, crc, value) VALUES (?, ?, ?)
    ON CONFLICT (name) DO UPDATE SET crc = excluded.crc, value = excluded.value
"""
NEXT_INCARNATION: Final = """
    INSERT INTO node (name, value) VALUES ('incarnation', ?)
    ON CONFLICT (name) DO UPDATE SET value = max(value + 1, ?)
    RETURNING value
"""

# --- releasing disk, a slice at a time -------------------------------------------------------------

DROPPABLE: Final = """
    SELECT c.position, c.writer, length(c.blob)
    FROM writers w JOIN commits c ON c.writer = w.id AND c.number <= w.floor
    WHERE w.floor > 0
    LIMIT ?
"""
DELETE_COMMIT: Final = "DELETE FROM commits WHERE position = ?"

# --- reading ---------------------------------------------------------------------------------------

META: Final = "SELECT name, crc, value FROM meta"
HEADS: Final = """
    SELECT w.name, w.head FROM writers w JOIN domains d ON d.id = w.domain WHERE d.name = ? AND w.head > 0
"""
DOMAIN: Final = "SELECT id FROM domains WHERE name = ?"
_WRITER = "(SELECT w.id FROM writers w JOIN domains d ON d.id = w.domain WHERE d.name = ? AND w.name = ?)"
COMMITS_FROM: Final = """
    SELECT c.number, c.crc, c.blob
    FROM writers w JOIN domains d ON d.id = w.domain JOIN commits c ON c.writer = w.id
    WHERE d.name = ? AND w.name = ? AND c.number >= ? AND c.number > w.floor
    ORDER BY c.number
"""
# Not the position of the smallest number: a number that was missing once may have come after larger ones.
FIRST_BEYOND: Final = f"SELECT min(position) FROM commits WHERE writer = {_WRITER} AND number > ?"
COMMITS_AFTER: Final = """
    SELECT position, writer, number, crc, blob FROM commits WHERE position >= ? ORDER BY position LIMIT ?
"""

_TASK = "task, name, queue, state, settled, live, owner, created_ms, conflicts, labels, digest, crc, facts"
TASK: Final = f"SELECT {_TASK} FROM tasks WHERE domain = ? AND task = ?"
TASKS_AFTER: Final = f"SELECT {_TASK} FROM tasks WHERE domain = ? AND task > ? ORDER BY task LIMIT ?"
LIVE_AFTER: Final = f"SELECT {_TASK} FROM tasks WHERE live AND domain = ? AND task > ? ORDER BY task LIMIT ?"
IDS_AFTER: Final = "SELECT task FROM tasks WHERE domain = ? AND task > ? ORDER BY task LIMIT ?"
DOCUMENTS: Final = "SELECT task, name, crc, state FROM documents WHERE domain = ? ORDER BY task, name"

COUNTS: Final = """
    SELECT (SELECT coalesce(sum(commits), 0) FROM writers),
           (SELECT coalesce(sum(bytes), 0) FROM writers),
           (SELECT count(*) FROM writers w JOIN commits c ON c.writer = w.id AND c.number <= w.floor WHERE w.floor > 0),
           (SELECT count(*) FROM tasks),
           (SELECT count(*) FROM tasks WHERE live),
           (SELECT count(*) FROM documents)
"""

# --- queries: keys from indexes alone, newest first; the rows are then read by key ------------------

_NEWEST = " ORDER BY created_ms DESC, task DESC LIMIT ?"
_HAS_LABEL = """ AND EXISTS (SELECT 1 FROM labels l
    WHERE l.domain = t.domain AND l.label = ? AND l.value = ? AND l.state = t.state
      AND l.created_ms = t.created_ms AND l.task = t.task)"""
_IN_QUEUE = """ AND EXISTS (SELECT 1 FROM tasks t INDEXED BY tasks_by_queue
    WHERE t.domain = l.domain AND t.queue = ? AND t.state = l.state
      AND t.created_ms = l.created_ms AND t.task = l.task)"""

NEXT_STATE: Final = "SELECT min(state) FROM tasks WHERE domain = ? AND state > ?"
NEXT_STATE_OF_QUEUE: Final = "SELECT min(state) FROM tasks WHERE domain = ? AND queue = ? AND state > ?"
NEXT_STATE_OF_LABEL: Final = "SELECT min(state) FROM labels WHERE domain = ? AND label = ? AND value = ? AND state > ?"
MANY_IN_QUEUE: Final = """
    SELECT count(*) FROM (SELECT 1 FROM tasks WHERE domain = ? AND queue = ? AND state = ? LIMIT ?)
"""
MANY_WITH_LABEL: Final = """
    SELECT count(*) FROM (SELECT 1 FROM labels WHERE domain = ? AND label = ? AND value = ? AND state = ? LIMIT ?)
"""


def keys(filters: Filters, *, by_label: bool, paged: bool) -> str:
    """Text that selects (created_ms, task) of the tasks that match; `parameters` gives its values,
    then come those of the cursor if `paged`, and the limit.

    But for conflicts the state must be given (the caller asks once per state), because only then
    does an index hold the answer in its order. `by_label` walks the label's entries and looks each
    up in the queue, and the other way round.
    """
    if by_label:
        where = " WHERE l.domain = ? AND l.label = ? AND l.value = ? AND l.state = ?"
        in_queue = _IN_QUEUE if filters.queue is not None else ""
        older = " AND (l.created_ms, l.task) < (?, ?)" if paged else ""
        return f"SELECT created_ms, task FROM labels l{where}{in_queue}{older}{_NEWEST}"
    where = " WHERE t.domain = ?"
    if filters.conflicts_only:
        where += " AND t.conflicts > 0"
        index = "tasks_in_conflict"
    elif filters.queue is not None:
        index = "tasks_by_queue"
    else:
        index = "tasks_by_state"
    where += " AND t.queue = ?" if filters.queue is not None else ""
    where += " AND t.state = ?" if filters.state is not None else ""
    where += _HAS_LABEL if filters.label is not None else ""
    where += " AND (t.created_ms, t.task) < (?, ?)" if paged else ""
    return f"SELECT created_ms, task FROM tasks t INDEXED BY {index}{where}{_NEWEST}"


def parameters(filters: Filters, *, by_label: bool) -> tuple[str, ...]:
    """The values that stand between the domain and the cursor or limit in `keys`."""
    label = filters.label or ()
    queue = () if filters.queue is None else (filters.queue,)
    state = () if filters.state is None else (filters.state,)
    return (*label, *state, *queue) if by_label else (*queue, *state, *label)
