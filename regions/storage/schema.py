"""The schema's version: a new database is made at the current one, an older one is brought there."""

from __future__ import annotations

import sqlite3
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final

from crdtsync.errors import SchemaVersionError

SCHEMA_VERSION: Final = 1
SQLITE_MIN: Final = (3, 37, 0)  # RETURNING, upserts, and JSON functions that are built in


def prepare(
    connection: sqlite3.Connection, version: int = SCHEMA_VERSION, source: Traversable | None = None
) -> list[str]:
    """Create or upgrade the schema; returns the names of the migrations that ran.

    Each migration is one transaction with its new version in it, so a crash between two leaves a
    database that is simply older. `version` and `source` are this package's own, except in tests.

    Raises:
        SchemaVersionError: The database is newer than this program, or SQLite too old.
            Nothing was changed.
    """
    if sqlite3.sqlite_version_info < SQLITE_MIN:
        wanted = ".".join(str(part) for part in SQLITE_MIN)
        raise SchemaVersionError(f"SQLite {sqlite3.sqlite_version} is too old: {wanted} or later is needed")
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found > version:
        raise SchemaVersionError(
            f"the data was written by a newer version (schema {found}, this program knows {version}): upgrade crdtsync",
            found=found,
            known=version,
        )
    source = source or resources.files(__package__)
    if found == 0:
        _run(connection, source.joinpath("schema.sql").read_text(encoding="utf-8"), version)
        return ["schema.sql"]
    names = sorted(item.name for item in source.joinpath("migrations").iterdir() if item.name.endswith(".sql"))
    pending = {int(name[:4]): name for name in names if found < int(name[:4]) <= version}
    for number in range(found + 1, version + 1):
        _run(connection, source.joinpath("migrations", pending[number]).read_text(encoding="utf-8"), number)
    return [pending[number] for number in sorted(pending)]


def _run(connection: sqlite3.Connection, text: str, version: int) -> None:
    try:
        connection.executescript(f"BEGIN IMMEDIATE;\n{text}\nPRAGMA user_version = {version};\nCOMMIT;")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
