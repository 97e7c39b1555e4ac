"""What only a store on disk can get wrong: crashes, damage, locks, migrations, disk."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from crdtsync.effects import CommitRow, DocumentRow, Persist, Query, TaskRow
from crdtsync.errors import CorruptLogError, SchemaVersionError, StorageError
from crdtsync.identifiers import Domain, TaskId, WriterId
from regions.storage import CorruptRow, CorruptRowError, SqliteStore, schema
from regions.storage.sqlite import FILE
from regions.storage.writing import SLICE_COMMITS

D = Domain("default")
W = WriterId("eu/a#1-0123456789abcdef")
ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def opened(directory: Path):
    store = SqliteStore(directory)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def commits(first: int, last: int, size: int = 100) -> tuple[CommitRow, ...]:
    return tuple(CommitRow(D, W, n, n, n.to_bytes(4) * (size // 4)) for n in range(first, last + 1))


def task(number: int, state: str = "waiting") -> TaskRow:
    return TaskRow(D, TaskId(number.to_bytes(16)), "n", "q", state, False, True, "eu", number, 0, (), b"d" * 16, b"f")


async def flat(batches) -> list:
    return [item async for batch in batches for item in batch]


def edit(directory: Path, *statements: str) -> None:
    """Change a database behind the store's back."""
    with closing(sqlite3.connect(directory / FILE)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def child(script: str, *args: object, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)], cwd=ROOT, stdout=subprocess.PIPE, text=True, **options
    )


# Crashes -----------------------------------------------------------------------------------------

# Appends batches of one commit, one row and one meta value each, and prints a batch's number once
# `append` has returned: that is its acknowledgement.
APPENDER = """
import asyncio, sys
from pathlib import Path
from crdtsync.effects import CommitRow, Persist, TaskRow
from regions.storage import SqliteStore

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    await store.open()
    heads = await store.heads("default")
    number = max(heads.values(), default=0)
    while True:
        number += 1
        row = TaskRow("default", number.to_bytes(16), "n", "q", "waiting", False, True, "eu", number, 0, (), b"d" * 16, b"f")
        await store.append(Persist(
            number,
            commits=(CommitRow("default", "eu/a#1-0123456789abcdef", number, number, b"x" * (number * 997 % 9000)),),
            rows=(row,),
            meta=(("last", str(number).encode()),),
        ))
        print(number, flush=True)

asyncio.run(main())
"""


def test_what_was_acknowledged_survives_kill_9_and_nothing_is_half_there(tmp_path):
    for crash in range(4):
        acknowledged = run_and_kill(tmp_path, after=20 + 7 * crash)
        asyncio.run(expect_whole_batches(tmp_path, acknowledged))


def run_and_kill(directory: Path, after: int) -> int:
    """Start an appender, kill it after so many acknowledgements, and return the last."""
    with child(APPENDER, directory) as process:
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(process.stdout))
        reader.start()
        deadline = time.monotonic() + 20
        while len(lines) < after and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        reader.join()
    return int(lines[-1])


async def expect_whole_batches(directory: Path, acknowledged: int) -> None:
    async with opened(directory) as store:  # the lock went with the process
        head = (await store.heads(D))[W]
        assert head in (acknowledged, acknowledged + 1)
        blobs = await flat(store.commits_beyond(D, {}))
        assert [len(blob) for blob in blobs] == [n * 997 % 9000 for n in range(1, head + 1)]
        assert await flat(store.known_ids(D)) == [n.to_bytes(16) for n in range(1, head + 1)]
        assert await store.meta() == {"last": str(head).encode()}
        assert await store.check() == []


def test_a_process_that_forgets_to_close_its_store_still_ends(tmp_path):
    script = """
import asyncio, sys
from pathlib import Path
from regions.storage import SqliteStore
keep = []
async def main():
    keep.append(SqliteStore(Path(sys.argv[1])))
    await keep[0].open()
    raise SystemExit(7)
asyncio.run(main())
"""
    with child(script, tmp_path) as process:
        assert process.wait(20) == 7


# Locks -------------------------------------------------------------------------------------------


def test_a_second_process_is_refused_and_told_the_first_ones_pid(tmp_path):
    script = """
import asyncio, sys
from pathlib import Path
from crdtsync.errors import StoreLockedError
from regions.storage import SqliteStore
try:
    asyncio.run(SqliteStore(Path(sys.argv[1])).open())
except StoreLockedError as error:
    print(error.facts["pid"], error)
"""

    async def story() -> str:
        async with opened(tmp_path):
            with child(script, tmp_path) as process:
                return process.communicate(timeout=20)[0]

    answer = asyncio.run(story())
    assert answer.startswith(f"{os.getpid()} {tmp_path} is in use by process {os.getpid()}")


def test_a_failed_open_lets_go_of_the_lock(tmp_path):
    (tmp_path / FILE).write_bytes(b"this is no database" * 100)

    async def story() -> None:
        with pytest.raises(CorruptLogError, match="cannot be read"):
            await SqliteStore(tmp_path).open()
        (tmp_path / FILE).unlink()
        async with opened(tmp_path):
            pass

    asyncio.run(story())


def test_a_directory_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot use"):
        asyncio.run(SqliteStore(tmp_path / "file" / "data").open())


# Damage ------------------------------------------------------------------------------------------


def test_a_damaged_commit_is_named_and_can_be_stored_again(tmp_path):
    async def story() -> None:
        async with opened(tmp_path) as store:
            await store.append(Persist(1, commits=commits(1, 5)))
        edit(tmp_path, "UPDATE commits SET blob = zeroblob(100) WHERE number = 3")
        missing = CorruptRow("commit", D, W, 3)
        async with opened(tmp_path) as store:
            good = [row.blob for row in commits(1, 5) if row.number != 3]
            assert await flat(store.commits_beyond(D, {})) == good
            assert store.corrupt_rows() == (missing,)
            assert await store.read_commits(D, W, 1, 10_000) == good[:2]
            with pytest.raises(CorruptRowError, match="commit 3 of eu/a") as caught:
                await store.read_commits(D, W, 3, 10_000)
            assert caught.value.rows == (missing,)
            assert (await store.stats()).corrupt == 1

            await store.append(Persist(2, commits=commits(3, 3)))  # from a peer
            assert store.corrupt_rows() == ()
            assert await flat(store.commits_beyond(D, {})) == [row.blob for row in commits(1, 5)]
            assert (await store.stats()).commit_bytes == 500

    asyncio.run(story())


@pytest.mark.parametrize(
    "column, value",
    [
        ("facts", "x'00'"),
        ("state", "'dead'"),
        ("labels", "'[1'"),
        ("digest", "NULL || 'text'"),
        ("created_ms", "5"),
        ("live", "2"),
        ("facts", "7"),
    ],
)
def test_a_damaged_task_is_never_passed_off_as_absent(tmp_path, column, value):
    async def story() -> None:
        async with opened(tmp_path) as store:
            await store.append(Persist(1, rows=(task(1), task(2), task(3))))
        value_sql = "'text'" if "NULL" in value else value
        edit(tmp_path, f"UPDATE tasks SET {column} = {value_sql} WHERE task = x'{task(2).task.hex()}'")
        damaged = CorruptRow("task", D, task=task(2).task)
        async with opened(tmp_path) as store:
            with pytest.raises(CorruptRowError) as caught:
                await store.load_rows(D, [task(1).task, task(2).task])
            assert caught.value.rows == (damaged,)
            assert await store.load_rows(D, [task(1).task]) == [task(1)]
            assert await store.read_rows(D, b"", 10) == [task(1)]
            with pytest.raises(CorruptRowError):
                await store.read_rows(D, task(1).task, 10)
            assert await flat(store.live_rows(D)) == [task(1), task(3)]
            assert damaged.task not in {row.task for row in (await store.query(Query(1, D, "tasks", (), 0))).rows}
            assert store.corrupt_rows() == (damaged,)
            assert await flat(store.known_ids(D)) == [task(n).task for n in (1, 2, 3)]
            await store.append(Persist(2, rows=(task(2),)))
            assert await store.load_rows(D, [task(2).task]) == [task(2)]
            assert store.corrupt_rows() == ()

    asyncio.run(story())


def test_damaged_documents_and_meta_are_left_out_and_named(tmp_path):
    async def story() -> None:
        async with opened(tmp_path) as store:
            await store.append(
                Persist(
                    1,
                    documents=(DocumentRow(D, b"", "a", b"1"), DocumentRow(D, b"", "b", b"2")),
                    meta=(("fold", b"1"), ("clock", b"2")),
                )
            )
        edit(
            tmp_path,
            "UPDATE documents SET state = x'00' WHERE name = 'a'",
            "UPDATE meta SET value = x'00' WHERE name = 'fold'",
        )
        async with opened(tmp_path) as store:
            assert (await store.recover()).meta == {"clock": b"2"}
            assert await store.documents(D) == [DocumentRow(D, b"", "b", b"2")]
            assert set(store.corrupt_rows()) == {
                CorruptRow("meta", Domain(""), name="fold"),
                CorruptRow("document", D, name="a"),
            }

    asyncio.run(story())


def test_a_broken_database_is_refused_at_start_with_advice(tmp_path):
    async def story() -> None:
        async with opened(tmp_path) as store:
            await store.append(Persist(1, commits=commits(1, 500), rows=tuple(task(n) for n in range(500))))
        with (tmp_path / FILE).open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            for page in range(3, size // 4096, 2):
                file.seek(page * 4096)
                file.write(b"\xa5" * 4096)
        with pytest.raises(CorruptLogError, match="move the directory away"):
            await SqliteStore(tmp_path).open()

    asyncio.run(story())


# A disk that refuses -----------------------------------------------------------------------------


def test_a_full_disk_refuses_the_whole_batch_and_later_ones_fit(tmp_path):
    async def story() -> None:
        async with opened(tmp_path) as store:
            await store.append(Persist(1, commits=commits(1, 2)))
            pages = await store._write.run(lambda connection: connection.execute("PRAGMA page_count").fetchone()[0])
            await store._write.run(
                lambda connection: connection.execute(f"PRAGMA max_page_count = {pages + 4}").fetchall()
            )
            with pytest.raises(StorageError, match="no space left"):
                await store.append(Persist(2, rows=(task(1),), commits=commits(3, 3, 100_000), meta=(("a", b"1"),)))
            assert await store.heads(D) == {W: 2}
            assert await store.meta() == {}
            assert await store.load_rows(D, [task(1).task]) == []
            await store.append(Persist(3, commits=commits(3, 3)))
            assert await flat(store.commits_beyond(D, {})) == [row.blob for row in commits(1, 3)]

    asyncio.run(story())


def test_a_write_that_the_system_refuses_leaves_nothing_half_done(tmp_path):
    """A limit on file sizes makes writes fail inside SQLite's own I/O, as a failing disk does."""
    script = """
import asyncio, resource, signal, sys
from pathlib import Path
from crdtsync.effects import CommitRow, Persist
from crdtsync.errors import StorageError
from regions.storage import SqliteStore

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    await store.open()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
    number = 0
    try:
        while number < 100:
            batch = tuple(CommitRow("default", "eu/a#1-0123456789abcdef", n, n, b"x" * 9_000) for n in (number + 1, number + 2))
            await store.append(Persist(1, commits=batch, meta=(("last", str(number + 2).encode()),)))
            number += 2
    except StorageError as error:
        assert (await store.heads("default")).get("eu/a#1-0123456789abcdef", 0) == number
        print(number)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await store.append(Persist(1, meta=(("after", b""),)))
    await store.close()

asyncio.run(main())
"""
    assert resource.RLIMIT_FSIZE
    with child(script, tmp_path) as process:
        number = int(process.communicate(timeout=20)[0])
    assert number > 0

    async def story() -> None:
        async with opened(tmp_path) as store:
            assert await store.heads(D) == {W: number}
            assert await store.meta() == {"last": str(number).encode(), "after": b""}
            assert await store.check() == []

    asyncio.run(story())


def test_values_that_sqlite_cannot_hold_refuse_the_batch(tmp_path):
    async def story() -> None:
        async with opened(tmp_path) as store:
            for batch in (
                Persist(1, commits=commits(1, 1), rows=(task(1)._replace(created_ms=2**63),)),
                Persist(2, commits=commits(1, 1), rows=(task(1)._replace(name="\ud800"),)),
            ):
                with pytest.raises(StorageError):
                    await store.append(batch)
            assert await store.heads(D) == {}
            await store.append(Persist(3, commits=commits(1, 1)))

    asyncio.run(story())


# Schema ------------------------------------------------------------------------------------------


def test_data_of_a_newer_version_is_refused_and_left_alone(tmp_path):
    async def story() -> None:
        async with opened(tmp_path):
            pass
        edit(tmp_path, f"PRAGMA user_version = {schema.SCHEMA_VERSION + 1}")
        before = (tmp_path / FILE).read_bytes()
        with pytest.raises(SchemaVersionError, match="newer version"):
            await SqliteStore(tmp_path).open()
        assert (tmp_path / FILE).read_bytes() == before

    asyncio.run(story())


def shape(connection: sqlite3.Connection) -> list:
    return connection.execute(
        "SELECT type, name, sql FROM sqlite_master WHERE sql NOT NULL ORDER BY type, name"
    ).fetchall()


def test_migrations_run_in_order_each_in_one_transaction(tmp_path):
    (tmp_path / "migrations").mkdir()
    (tmp_path / "schema.sql").write_text("CREATE TABLE a (x);")
    (tmp_path / "migrations" / "0002_second.sql").write_text("CREATE TABLE b (y); INSERT INTO a VALUES (2);")
    (tmp_path / "migrations" / "0003_third.sql").write_text("INSERT INTO b SELECT x + 1 FROM a;")
    (tmp_path / "migrations" / "0004_broken.sql").write_text("CREATE TABLE c (z); INSERT INTO nowhere VALUES (1);")
    with closing(sqlite3.connect(tmp_path / "db", isolation_level=None)) as connection:
        assert schema.prepare(connection, 1, tmp_path) == ["schema.sql"]
        assert schema.prepare(connection, 3, tmp_path) == ["0002_second.sql", "0003_third.sql"]
        assert schema.prepare(connection, 3, tmp_path) == []
        assert connection.execute("SELECT y FROM b").fetchall() == [(3,)]
        with pytest.raises(sqlite3.OperationalError, match="nowhere"):
            schema.prepare(connection, 4, tmp_path)
        assert connection.execute("PRAGMA user_version").fetchone() == (3,)
        assert [name for _, name, _ in shape(connection)] == ["a", "b"]


def test_migrated_databases_have_the_schema_of_new_ones(tmp_path):
    """Every released schema is kept in tests/histories/storage, and upgraded here."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as new:
        schema.prepare(new)
        for old in sorted((ROOT / "tests" / "histories" / "storage").glob("*.sql")):
            with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
                connection.executescript(old.read_text() + f"PRAGMA user_version = {int(old.stem[:4])};")
                schema.prepare(connection)
                assert shape(connection) == shape(new), old.name


# Disk --------------------------------------------------------------------------------------------


def test_dropping_commits_gives_their_disk_back_in_slices(tmp_path):
    async def story() -> None:
        async with opened(tmp_path) as store:
            last = 3 * SLICE_COMMITS
            for first in range(1, last, 500):
                await store.append(Persist(1, commits=commits(first, first + 499, 1_000)))
            full = (await store.stats()).disk_bytes
            assert full > 1_000 * last
            await store.append(Persist(2, drop=((D, W, last - 10),)))
            assert (await store.stats()).dropped == last - 10

            compacting = asyncio.create_task(store.compact())
            appends = 0
            while not compacting.done():  # appends go on meanwhile
                await store.append(Persist(3, meta=(("n", str(appends).encode()),)))
                appends += 1
            assert appends >= 3
            assert await compacting > 0.9 * full
            assert (await store.stats()).disk_bytes < 0.1 * full
            assert await flat(store.commits_beyond(D, {})) == [row.blob for row in commits(last - 9, last, 1_000)]
            assert await store.check() == []

    asyncio.run(story())


def test_a_long_query_does_not_delay_an_append(tmp_path):
    async def story() -> None:
        async with opened(tmp_path) as store:
            release = threading.Event()
            slow = asyncio.create_task(store._scan.run(lambda _: release.wait(10)))
            await asyncio.wait_for(store.append(Persist(1, commits=commits(1, 1), rows=(task(1),))), 5)
            assert await asyncio.wait_for(store.load_rows(D, [task(1).task]), 5) == [task(1)]
            assert not slow.done()
            release.set()
            await slow

    asyncio.run(story())


def test_a_cancelled_caller_does_not_tear_its_append(tmp_path):
    async def story() -> None:
        async with opened(tmp_path) as store:
            for number in range(1, 30):
                append = asyncio.create_task(
                    store.append(Persist(1, commits=commits(number, number), rows=(task(number),)))
                )
                for _ in range(number % 3):
                    await asyncio.sleep(0)
                append.cancel()
                await asyncio.wait([append])
            await store.append(Persist(2, meta=(("last", b""),)))
            ids = await flat(store.known_ids(D))
            assert len(await flat(store.commits_beyond(D, {}))) == len(ids)

    asyncio.run(story())


def test_settings_that_durability_rests_on_are_in_force(tmp_path):
    """Also the guard of `Connection.run`, which builds on a method that aiosqlite does not promise."""

    async def story() -> None:
        async with opened(tmp_path) as store:
            for name, value in (("journal_mode", "wal"), ("synchronous", 2), ("auto_vacuum", 2)):
                ask = f"PRAGMA {name}"
                assert (
                    await store._write.run(lambda connection, ask=ask: connection.execute(ask).fetchone()[0]) == value
                )
            with pytest.raises(StorageError, match="readonly"):
                await store._point.run(lambda connection: connection.execute("DELETE FROM meta"))
            names = {thread.name for thread in threading.enumerate()}
            assert await store._write.run(lambda _: threading.current_thread().name) in names - {
                threading.current_thread().name
            }

    asyncio.run(story())
