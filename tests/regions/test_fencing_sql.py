"""Conditional writes on SQLite; tests/integration/test_fencing_postgres.py has the same on PostgreSQL."""

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtsync.errors import FencedError, InvalidRequestError
from regions.fencing import sql
from regions.fencing.tokens import TOKEN_MAX

ACCOUNTS = "CREATE TABLE accounts (id TEXT PRIMARY KEY, balance INTEGER, fence BIGINT NOT NULL DEFAULT 0)"


@pytest.fixture
def cursor():
    connection = sqlite3.connect(":memory:")
    connection.execute(ACCOUNTS)
    connection.execute("INSERT INTO accounts (id, balance) VALUES ('A-1', 100), ('A-2', 100)")
    connection.execute(sql.create_gates())
    connection.commit()
    yield connection.cursor()
    connection.close()


def stored(cursor, account="A-1"):
    return cursor.execute("SELECT balance, fence FROM accounts WHERE id = ?", (account,)).fetchone()


def test_a_write_with_an_older_token_is_refused_and_writes_nothing(cursor):
    sql.apply(cursor, sql.update("accounts", {"balance": 70}, {"id": "A-1"}, 7))
    with pytest.raises(FencedError) as refused:
        sql.apply(cursor, sql.update("accounts", {"balance": 10}, {"id": "A-1"}, 6))
    assert refused.value.facts == {"token": 6, "seen": 7}
    assert stored(cursor) == (70, 7)
    assert stored(cursor, "A-2") == (100, 0)


def test_one_holder_writes_many_times_under_one_token(cursor):
    for balance in (70, 40, 40):
        sql.apply(cursor, sql.update("accounts", {"balance": balance}, {"id": "A-1"}, 7))
    assert stored(cursor) == (40, 7)


def test_a_row_that_is_not_there_is_told_from_one_that_is_fenced(cursor):
    with pytest.raises(sql.MissingRowError):
        sql.apply(cursor, sql.update("accounts", {"balance": 1}, {"id": "nobody"}, 7))


def test_a_write_of_several_rows_is_refused_because_it_could_pass_for_some(cursor):
    with pytest.raises(InvalidRequestError, match="gate"):
        sql.apply(cursor, sql.update("accounts", {"balance": 0}, {"balance": 100}, 7))


def test_a_row_whose_token_is_null_is_an_error_and_not_a_refusal(cursor):
    cursor.execute("CREATE TABLE loose (id INTEGER, fence INTEGER, x)")
    cursor.execute("INSERT INTO loose VALUES (1, NULL, 0)")
    with pytest.raises(InvalidRequestError, match="NOT NULL DEFAULT 0"):
        sql.apply(cursor, sql.update("loose", {"x": 1}, {"id": 1}, 7))


def test_an_upsert_inserts_then_updates_and_then_refuses_the_past(cursor):
    for token, balance in ((5, 1), (5, 2), (9, 3)):
        sql.apply(cursor, sql.upsert("accounts", {"id": "A-9", "balance": balance}, ["id"], token))
        assert stored(cursor, "A-9") == (balance, token)
    with pytest.raises(FencedError):
        sql.apply(cursor, sql.upsert("accounts", {"id": "A-9", "balance": 4}, ["id"], 8))
    assert stored(cursor, "A-9") == (3, 9)


def test_what_follows_a_gate_in_its_transaction_is_fenced(cursor):
    def transfer(token):
        with cursor.connection:
            sql.apply(cursor, sql.gate("ledger", token))
            cursor.execute("UPDATE accounts SET balance = balance - 10 WHERE id = 'A-1'")
            cursor.execute("UPDATE accounts SET balance = balance + 10 WHERE id = 'A-2'")

    transfer(7)
    transfer(7)
    with pytest.raises(FencedError):
        transfer(6)
    assert (stored(cursor)[0], stored(cursor, "A-2")[0]) == (80, 120)
    sql.apply(cursor, sql.gate("another", 1))


@pytest.mark.parametrize("token", [0, -1, TOKEN_MAX + 1, True, "7", 7.0, None])
def test_what_is_no_token_is_refused_before_it_reaches_the_database(token):
    for build in (
        lambda: sql.update("accounts", {"balance": 1}, {"id": 1}, token),
        lambda: sql.upsert("accounts", {"id": 1}, ["id"], token),
        lambda: sql.gate("ledger", token),
    ):
        with pytest.raises(InvalidRequestError, match="no fencing token"):
            build()


def test_statements_that_could_not_be_conditional_are_refused():
    with pytest.raises(InvalidRequestError, match="identifies"):
        sql.update("accounts", {"balance": 1}, {}, 7)
    with pytest.raises(InvalidRequestError, match="to change"):
        sql.update("accounts", {}, {"id": 1}, 7)
    with pytest.raises(InvalidRequestError, match="leave it out"):
        sql.update("accounts", {"fence": 1}, {"id": 1}, 7)
    with pytest.raises(InvalidRequestError, match="leave it out"):
        sql.upsert("accounts", {"id": 1, "fence": 1}, ["id"], 7)
    with pytest.raises(InvalidRequestError, match="of its key"):
        sql.upsert("accounts", {"balance": 1}, ["id"], 7)
    with pytest.raises(InvalidRequestError, match="a key"):
        sql.upsert("accounts", {"balance": 1}, [], 7)


def test_names_mean_themselves_whatever_is_in_them(cursor):
    cursor.execute(
        'CREATE TABLE "od""d; --" ("select" INTEGER PRIMARY KEY, "x y" TEXT, fence INTEGER NOT NULL DEFAULT 0)'
    )
    sql.apply(cursor, sql.upsert('od"d; --', {"select": 1, "x y": "a"}, ["select"], 3))
    sql.apply(cursor, sql.update('main.od"d; --', {"x y": "b"}, {"select": 1}, 3))
    assert cursor.execute('SELECT "x y", fence FROM "od""d; --"').fetchone() == ("b", 3)
    for name in ("", "a\0b", "100%"):
        with pytest.raises(InvalidRequestError, match="no name"):
            sql.update(name, {"x": 1}, {"id": 1}, 7)


def test_parameters_are_written_as_the_driver_wants_them():
    texts = {
        style: sql.update("t", {"a": 1}, {"id": 2}, 7, placeholder=style).text.partition("SET ")[2]
        for style in ("?", "%s", "$1")
    }
    assert texts == {
        "?": '"a" = ?, "fence" = ? WHERE "id" = ? AND "fence" <= ?',
        "%s": '"a" = %s, "fence" = %s WHERE "id" = %s AND "fence" <= %s',
        "$1": '"a" = $1, "fence" = $2 WHERE "id" = $3 AND "fence" <= $4',
    }


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 6)), max_size=20))
def test_tokens_accepted_for_one_resource_never_decrease_and_others_are_not_touched(writes):
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute(sql.create_gates())
        accepted = {"a": [0], "b": [0]}
        for resource, token in writes:
            try:
                sql.apply(connection.cursor(), sql.gate(resource, token))
            except FencedError:
                assert token < accepted[resource][-1]
            else:
                accepted[resource].append(token)
        assert all(tokens == sorted(tokens) for tokens in accepted.values())
        # What was refused was refused for cause: the largest token of all got through.
        for resource, tokens in accepted.items():
            assert tokens[-1] == max([0, *(token for name, token in writes if name == resource)])
    finally:
        connection.close()
