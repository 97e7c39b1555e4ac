-- The store of one node, at the version in PRAGMA user_version (schema.py, SCHEMA_VERSION).
-- A new database is made from this file; migrations/ bring older ones here. A test compares both.
--
-- Domains and writers are interned: their names would be most of a commit's key otherwise.

CREATE TABLE node (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    crc   INTEGER NOT NULL,
    value BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE domains (
    id   INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);

-- head and floor outlive the commits themselves: numbers above floor up to head are stored, those
-- up to floor were dropped (or never came, because a snapshot stood for them). The counts are of
-- rows in `commits`, and so include dropped ones until their disk is released.
CREATE TABLE writers (
    id      INTEGER PRIMARY KEY,
    domain  INTEGER NOT NULL REFERENCES domains (id),
    name    TEXT NOT NULL,
    head    INTEGER NOT NULL DEFAULT 0,
    floor   INTEGER NOT NULL DEFAULT 0,
    commits INTEGER NOT NULL DEFAULT 0,
    bytes   INTEGER NOT NULL DEFAULT 0,
    UNIQUE (domain, name)
);

-- position is the order in which commits were stored, which is a causal order.
CREATE TABLE commits (
    position INTEGER PRIMARY KEY,
    writer   INTEGER NOT NULL REFERENCES writers (id),
    number   INTEGER NOT NULL,
    crc      INTEGER NOT NULL,
    blob     BLOB NOT NULL
);
CREATE UNIQUE INDEX commits_by_number ON commits (writer, number);

-- The facts come last: reading any other column then never visits their overflow pages.
CREATE TABLE tasks (
    id         INTEGER PRIMARY KEY,
    domain     INTEGER NOT NULL REFERENCES domains (id),
    task       BLOB NOT NULL,
    name       TEXT NOT NULL,
    queue      TEXT NOT NULL,
    state      TEXT NOT NULL,
    settled    INTEGER NOT NULL,
    live       INTEGER NOT NULL,
    owner      TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    conflicts  INTEGER NOT NULL,
    labels     TEXT NOT NULL, -- JSON [[label, value], ...], or '' for none
    digest     BLOB NOT NULL,
    crc        INTEGER NOT NULL,
    facts      BLOB NOT NULL
);
CREATE UNIQUE INDEX tasks_by_id ON tasks (domain, task);
-- The task's id is in each so that rows of one millisecond have one order, too. There is none by age
-- alone: the newest are merged from each state's newest, which spares every row an index entry.
CREATE INDEX tasks_by_state ON tasks (domain, state, created_ms, task);
CREATE INDEX tasks_by_queue ON tasks (domain, queue, state, created_ms, task);
CREATE INDEX tasks_in_conflict ON tasks (domain, created_ms, task) WHERE conflicts > 0;
CREATE INDEX tasks_live ON tasks (domain, task) WHERE live;

-- Filled by the store, emptied by the trigger: an insert trigger would cost every row 3 us. The state
-- is part of the key because "the dead ones of this tenant" is what people ask for.
CREATE TABLE labels (
    domain     INTEGER NOT NULL,
    label      TEXT NOT NULL,
    value      TEXT NOT NULL,
    state      TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    task       BLOB NOT NULL,
    PRIMARY KEY (domain, label, value, state, created_ms, task)
) WITHOUT ROWID;
CREATE TRIGGER labels_replaced AFTER UPDATE OF state, labels, created_ms ON tasks
WHEN old.labels <> '' AND json_valid(old.labels) -- damaged ones must not stand in the way of a repair
    AND (old.state <> new.state OR old.labels <> new.labels OR old.created_ms <> new.created_ms)
BEGIN
    -- Conditions on single columns, since SQLite scans the table for `(a, b) IN (SELECT ...)`.
    DELETE FROM labels
    WHERE domain = old.domain
        AND label IN (SELECT json_extract(value, '$[0]') FROM json_each(old.labels))
        AND value IN (SELECT json_extract(value, '$[1]') FROM json_each(old.labels))
        AND state = old.state AND created_ms = old.created_ms AND task = old.task;
END;

CREATE TABLE documents (
    domain INTEGER NOT NULL REFERENCES domains (id),
    task   BLOB NOT NULL,
    name   TEXT NOT NULL,
    crc    INTEGER NOT NULL,
    state  BLOB NOT NULL,
    PRIMARY KEY (domain, task, name)
);
