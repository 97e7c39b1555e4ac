"""The header, and the doorkeeper that reads it."""

import sqlite3
import threading
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtsync.errors import FencedError, InvalidRequestError, OverloadedError
from regions.fencing import http as fencing
from regions.fencing.http import HEADER, Doorkeeper, RefusedError
from regions.fencing.tokens import TOKEN_MAX

MEET_S = 10


@pytest.fixture
def doorkeeper(tmp_path):
    with Doorkeeper(tmp_path / "fences.db") as keeper:
        yield keeper


def admitted(keeper, resource, token):
    with keeper.admit(resource, fencing.headers(token)) as passed:
        return passed


def refusal(keeper, resource, given):
    with pytest.raises(RefusedError) as refused, keeper.admit(resource, given):
        raise AssertionError("it was admitted")
    return refused.value


@given(st.integers(1, TOKEN_MAX))
def test_a_token_survives_the_wire(token):
    assert fencing.token_of(fencing.headers(token)) == token
    assert fencing.token_of({HEADER.lower(): f" {token} "}) == token


@given(st.text(max_size=30) | st.integers().map(str))
def test_any_header_is_a_token_or_a_bad_request(text):
    status = HTTPStatus.OK
    try:
        token = fencing.token_of({HEADER: text})
    except RefusedError as error:
        token, status = 1, error.status
    assert 0 < token <= TOKEN_MAX
    assert status in (HTTPStatus.OK, HTTPStatus.BAD_REQUEST)


def test_a_request_without_a_token_is_told_that_one_is_required(doorkeeper):
    assert refusal(doorkeeper, "A-1", {}).status == HTTPStatus.PRECONDITION_REQUIRED
    for text in ("", "0", "-1", "+1", "1.0", "٧", "9" * 19, "1" * 10_000, "seven"):
        assert refusal(doorkeeper, "A-1", {HEADER: text}).status == HTTPStatus.BAD_REQUEST


def test_a_task_that_has_no_token_cannot_send_one():
    with pytest.raises(InvalidRequestError, match="quorum"):
        fencing.headers(0)


def test_older_tokens_are_refused_with_the_one_that_was_seen(doorkeeper):
    assert [admitted(doorkeeper, "A-1", token) for token in (5, 5, 9)] == [5, 5, 9]
    refused = refusal(doorkeeper, "A-1", fencing.headers(8))
    assert (refused.status, refused.headers) == (HTTPStatus.PRECONDITION_FAILED, {HEADER: "9"})
    assert admitted(doorkeeper, "A-2", 1) == 1
    with pytest.raises(FencedError) as fenced:
        fencing.raise_if_refused(refused.status, refused.headers, 8)
    assert fenced.value.facts == {"token": 8, "seen": 9}


def test_other_answers_are_no_refusal_of_the_token():
    fencing.raise_if_refused(200, {HEADER: "9"}, 8)
    fencing.raise_if_refused(412, {}, 8)  # another precondition
    fencing.raise_if_refused(412, {HEADER: "nonsense"}, 8)


def test_what_was_seen_outlives_the_service(tmp_path):
    with Doorkeeper(tmp_path / "fences.db") as keeper:
        admitted(keeper, "A-1", 9)
    with Doorkeeper(tmp_path / "fences.db") as keeper:
        assert refusal(keeper, "A-1", fencing.headers(8)).status == HTTPStatus.PRECONDITION_FAILED


def test_an_effect_that_failed_leaves_its_token_behind(doorkeeper):
    """It may have done something before it failed: nobody older may come after."""
    with pytest.raises(ValueError, match="half way"), doorkeeper.admit("A-1", fencing.headers(9)):
        raise ValueError("half way")
    assert refusal(doorkeeper, "A-1", fencing.headers(8)).status == HTTPStatus.PRECONDITION_FAILED


def test_nobody_newer_is_admitted_while_an_older_ones_effect_is_under_way(doorkeeper):
    inside, leave, order = threading.Event(), threading.Event(), []

    def older():
        with doorkeeper.admit("A-1", fencing.headers(7)):
            inside.set()
            assert leave.wait(MEET_S)
            order.append(7)

    def newer():
        assert inside.wait(MEET_S)
        with doorkeeper.admit("A-1", fencing.headers(8)):
            order.append(8)

    threads = [threading.Thread(target=function) for function in (older, newer)]
    for thread in threads:
        thread.start()
    assert inside.wait(MEET_S)
    assert order == []
    leave.set()
    for thread in threads:
        thread.join(MEET_S)
    assert order == [7, 8]


def test_a_second_process_on_one_file_is_refused(doorkeeper, tmp_path):
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        Doorkeeper(tmp_path / "fences.db")
    assert admitted(doorkeeper, "A-1", 1) == 1


def test_new_resources_are_refused_at_the_limit_and_known_ones_are_not(tmp_path):
    with Doorkeeper(tmp_path / "fences.db", resources_max=2) as keeper:
        admitted(keeper, "A-1", 1)
        admitted(keeper, "A-2", 1)
    with Doorkeeper(tmp_path / "fences.db", resources_max=2) as keeper:
        with pytest.raises(OverloadedError):
            admitted(keeper, "A-3", 1)
        assert admitted(keeper, "A-2", 2) == 2
    for name in ("", "x" * 1_001):
        with Doorkeeper(":memory:") as keeper:
            assert refusal(keeper, name, fencing.headers(1)).status == HTTPStatus.BAD_REQUEST
