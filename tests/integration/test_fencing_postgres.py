"""Conditional writes on a real PostgreSQL, where transactions meet. Skipped where none is installed."""

import threading

import pytest

from crdtsync.errors import FencedError
from regions.fencing import sql
from tests.integration import postgres

psycopg = pytest.importorskip("psycopg", reason="the driver psycopg is not installed")
pytestmark = pytest.mark.skipif(postgres.binaries() is None, reason="PostgreSQL is not installed")

MEET_S = 20


@pytest.fixture(scope="module")
def server():
    with postgres.server() as conninfo:
        yield conninfo


@pytest.fixture
def connect(server):
    """Opens connections to tables that are as new."""
    opened = []

    def make():
        opened.append(psycopg.connect(server))
        return opened[-1]

    with psycopg.connect(server) as connection:
        connection.execute("DROP TABLE IF EXISTS accounts")
        connection.execute(f"DROP TABLE IF EXISTS {sql.GATES}")
        connection.execute("CREATE TABLE accounts (id TEXT PRIMARY KEY, balance INT, fence BIGINT NOT NULL DEFAULT 0)")
        connection.execute("INSERT INTO accounts VALUES ('A-1', 100)")
        connection.execute(sql.create_gates())
    yield make
    for connection in opened:
        connection.close()


def write(connection, token, balance):
    sql.apply(connection.cursor(), sql.update("accounts", {"balance": balance}, {"id": "A-1"}, token, placeholder="%s"))


def stored(connection):
    return connection.execute("SELECT balance, fence FROM accounts WHERE id = 'A-1'").fetchone()


def waits_for_a_lock(connection, other):
    """Whether `other` waits for somebody's transaction to end."""
    query = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s"
    return connection.execute(query, (other.info.backend_pid,)).fetchone()[0]


def in_thread(function):
    """Start it; returns what joins it and gives what it raised, if anything."""
    raised = []

    def call():
        try:
            function()
        except (FencedError, psycopg.Error) as error:
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()

    def join():
        thread.join(MEET_S)
        assert not thread.is_alive()
        return raised[0] if raised else None

    return join


def until_waiting(connect, other):
    with connect() as watcher:
        watcher.autocommit = True
        for _ in range(10_000):
            if waits_for_a_lock(watcher, other):
                return
        raise AssertionError("nobody waits")


def test_older_tokens_are_refused_and_equal_ones_are_not(connect):
    connection = connect()
    write(connection, 7, 70)
    write(connection, 7, 60)
    connection.commit()
    with pytest.raises(FencedError) as refused:
        write(connection, 6, 10)
    assert refused.value.facts == {"token": 6, "seen": 7}
    with pytest.raises(sql.MissingRowError):
        sql.apply(connection.cursor(), sql.update("accounts", {"balance": 1}, {"id": "none"}, 7, placeholder="%s"))
    assert stored(connection) == (60, 7)


def test_a_write_that_waited_for_a_newer_holders_transaction_is_refused_once_that_commits(connect):
    newer, older = connect(), connect()
    write(newer, 8, 80)  # holds the row's lock
    join = in_thread(lambda: write(older, 7, 70))
    until_waiting(connect, older)
    newer.commit()
    assert isinstance(join(), FencedError)
    older.rollback()
    assert stored(older) == (80, 8)


def test_a_write_that_waited_for_a_newer_holder_passes_if_that_one_gives_up(connect):
    newer, older = connect(), connect()
    write(newer, 8, 80)
    join = in_thread(lambda: write(older, 7, 70))
    until_waiting(connect, older)
    newer.rollback()
    assert join() is None
    assert stored(older) == (70, 7)


def test_nobody_newer_passes_a_gate_while_the_older_ones_transaction_lasts(connect):
    older, newer = connect(), connect()
    sql.apply(older.cursor(), sql.gate("ledger", 7, placeholder="%s"))
    join = in_thread(lambda: sql.apply(newer.cursor(), sql.gate("ledger", 8, placeholder="%s")))
    until_waiting(connect, newer)
    older.execute("UPDATE accounts SET balance = balance - 10")
    older.commit()
    assert join() is None
    newer.execute("UPDATE accounts SET balance = balance - 1")
    newer.commit()
    with pytest.raises(FencedError):
        sql.apply(older.cursor(), sql.gate("ledger", 7, placeholder="%s"))
    older.rollback()
    assert stored(older) == (89, 0)


def test_two_holders_who_both_insert_the_row_end_with_the_newer_ones(connect):
    newer, older = connect(), connect()
    row = {"id": "A-2", "balance": 8}
    sql.apply(newer.cursor(), sql.upsert("accounts", row, ["id"], 8, placeholder="%s"))
    join = in_thread(
        lambda: sql.apply(older.cursor(), sql.upsert("accounts", row | {"balance": 7}, ["id"], 7, placeholder="%s"))
    )
    until_waiting(connect, older)
    newer.commit()
    assert isinstance(join(), FencedError)


def test_the_strictest_isolation_refuses_too_in_its_own_words(connect):
    newer, older = connect(), connect()
    older.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    assert stored(older) == (100, 0)  # its snapshot
    write(newer, 8, 80)
    newer.commit()
    with pytest.raises(psycopg.errors.SerializationFailure):
        write(older, 7, 70)
    older.rollback()
    with pytest.raises(FencedError):
        write(older, 7, 70)


def test_a_crowd_of_holders_leaves_tokens_that_never_decreased(server, connect):
    connect().execute("CREATE TABLE IF NOT EXISTS landed (place BIGSERIAL, token BIGINT)").connection.commit()

    def act(token):
        with psycopg.connect(server) as connection:
            sql.apply(connection.cursor(), sql.gate("crowd", token, placeholder="%s"))
            connection.execute("INSERT INTO landed (token) VALUES (%s)", (token,))

    joins = [in_thread(lambda token=token: act(token)) for token in range(1, 9)]
    refused = [join() for join in joins]
    assert {type(error) for error in refused} <= {FencedError, type(None)}
    landed = [token for (token,) in connect().execute("SELECT token FROM landed ORDER BY place").fetchall()]
    assert landed == sorted(landed)
    assert landed[-1] == 8
