"""What stands in a file of histories is understood, or refused by the number of its line."""

import gzip
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtsync.errors import InvalidRequestError
from simulator import history_file
from simulator.history_file import read
from simulator.linearizability import judge

GOOD = {
    "id": "h",
    "model": "cas-register",
    "init": None,
    "ops": [[0, "invoke", "write", 3], [0, "ok", "write", 3], [1, "invoke", "read", None], [1, "ok", "read", 3]],
}


def file_of(*records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def verdict(**changes):
    (history,) = read(io.BytesIO(file_of(GOOD | changes)))
    return judge(history.operations, history.initial).linearizable


def test_a_file_is_read_packed_or_not_and_by_its_bytes_alone():
    plain = file_of(GOOD, GOOD | {"id": "other"})
    packed = gzip.compress(plain[:50]) + gzip.compress(plain[50:])  # as `cat a.gz b.gz` makes them
    for stored in (plain, packed, plain.rstrip(), b"\n" + plain.replace(b"\n", b"\r\n\r\n")):
        assert [history.id for history in read(io.BytesIO(stored))] == ["h", "other"]
    assert read(io.BytesIO(b"")) == []


def test_a_register_begins_with_its_first_value():
    ops = [[0, "invoke", "read", None], [0, "ok", "read", 7]]
    assert verdict(init=7, ops=ops) is True
    assert verdict(init=None, ops=ops) is False


def test_numbers_are_equal_as_json_has_them_and_not_as_python_does():
    ops = [[0, "invoke", "write", 1], [0, "ok", "write", 1], [0, "invoke", "read", None]]
    assert verdict(ops=[*ops, [0, "ok", "read", 1.0]]) is True
    assert verdict(ops=[*ops, [0, "ok", "read", True]]) is False


def test_values_may_be_any_json():
    for value in ({"b": [1], "a": None}, [], "é", 2**80, 0.5):
        ops = [[0, "invoke", "write", value], [0, "ok", "write", value], [0, "invoke", "read", None]]
        assert verdict(ops=[*ops, [0, "ok", "read", value]]) is True
        assert verdict(ops=[*ops, [0, "ok", "read", "other"]]) is False


def test_a_compare_and_set_that_failed_says_that_the_value_was_another_unless_it_had_an_error():
    ops = [[0, "invoke", "write", 3], [0, "ok", "write", 3], [0, "invoke", "cas", [3, 4]]]
    columns = {"cols": ["process", "type", "f", "value", "error?"]}
    assert verdict(ops=[*ops, [0, "fail", "cas", [3, 4]]]) is False
    assert verdict(ops=[*ops, [0, "fail", "cas", [3, 4]]], **columns) is False
    assert verdict(ops=[*ops, [0, "fail", "cas", [3, 4], "timed-out"]], **columns) is True
    assert verdict(ops=[*ops, [0, "fail", "cas", [3, 4]]], read_null_is_wildcard=True) is True


def test_a_read_of_null_read_null_unless_the_history_says_that_it_learned_nothing():
    ops = [[0, "invoke", "write", 3], [0, "ok", "write", 3], [0, "invoke", "read", None], [0, "ok", "read", None]]
    assert verdict(ops=ops) is False
    assert verdict(ops=ops, read_null_is_wildcard=True) is True


def test_a_request_without_an_answer_takes_effect_at_any_later_time_or_never():
    write, read_ = [[0, "invoke", "write", 5]], [[1, "invoke", "read", None]]
    for info in ([], [[0, "info", "write", None]]):
        assert verdict(ops=[*write, *info, *read_, [1, "ok", "read", 5]]) is True
        assert verdict(ops=[*write, *info, *read_, [1, "ok", "read", None]]) is True
        assert verdict(ops=[*write, *info, *read_, [1, "ok", "read", 6]]) is False
    failed = [*write, [0, "fail", "write", 5]]
    assert verdict(ops=[*failed, *read_, [1, "ok", "read", 5]]) is False


def test_what_a_nemesis_did_is_a_remark():
    assert (
        verdict(ops=[["nemesis", "info", "start", None], *GOOD["ops"], ["nemesis", "info", "stop", "healed"]]) is True
    )


def test_a_mutex_has_one_holder():
    acquire, acquired = [0, "invoke", "acquire", None], [0, "ok", "acquire", None]
    release, released = [0, "invoke", "release", None], [0, "ok", "release", None]
    twice = [acquire, acquired, acquire, acquired]
    assert verdict(model="mutex", init="unlocked", ops=twice) is False
    assert verdict(model="mutex", init="unlocked", ops=[acquire, acquired, release, released, acquire, acquired])
    assert verdict(model="mutex", init="locked", ops=[acquire, acquired]) is False
    assert verdict(model="mutex", init="locked", ops=[release, released, acquire, acquired]) is True


def test_columns_may_stand_in_another_order():
    ops = [[0, "r1", "invoke", None, "read"], [1, "r1", "ok", 7, "read"]]
    assert verdict(init=7, cols=["index", "process", "type", "value", "f"], ops=ops) is True


def test_histories_of_other_models_are_kept_and_not_looked_into():
    (history,) = read(io.BytesIO(file_of({"id": "q", "model": "queue", "ops": ["anything"]})))
    assert (history.id, history.operations) == ("q", None)


@pytest.mark.parametrize(
    "line, text",
    [
        (b"[1, 2]", "not an object"),
        (b'{"id": "h"', "not JSON"),
        (b"\xff", "cannot be read"),
        (b'{"id": ' + b"7" * 5_000 + b"}", "cannot be read"),
        (b"[" * 100_000, "nested too deeply"),
        (file_of(GOOD | {"id": 7}), '"id"'),
        (file_of(GOOD | {"id": "\ud800"}), "cannot be printed"),
        (file_of(GOOD | {"model": None}), '"model"'),
        (file_of(GOOD | {"ops": {}}), '"ops"'),
        (file_of(GOOD | {"ops": [[0, "invoke", "read"]]}), "operation 0"),
        (file_of(GOOD | {"ops": [[0, "began", "read", None]]}), "cannot be"),
        (file_of(GOOD | {"ops": [[None, "invoke", "read", None]]}), "cannot be"),
        (file_of(GOOD | {"ops": [[0, [], "read", None]]}), "cannot be"),
        (file_of(GOOD | {"ops": [[0, "ok", "read", 3]]}), "asked nothing"),
        (file_of(GOOD | {"ops": [[0, "invoke", "read", None]] * 2}), "still waits"),
        (file_of(GOOD | {"ops": [[0, "invoke", "read", None], [0, "ok", "write", 3]]}), "answer 1"),
        (file_of(GOOD | {"ops": [[0, "invoke", "add", 1]]}), "'add'"),
        (file_of(GOOD | {"model": "register", "ops": [[0, "invoke", "cas", [1, 2]]]}), "'cas'"),
        (file_of(GOOD | {"ops": [[0, "invoke", "cas", 1]]}), "[from, to]"),
        (file_of(GOOD | {"model": "mutex"}), "'write'"),
        (file_of(GOOD | {"model": "mutex", "init": "open", "ops": []}), '"init"'),
        (file_of(GOOD | {"cols": ["process", "type", "f"]}), "'value'"),
        (file_of(GOOD | {"cols": "process"}), '"cols"'),
    ],
)
def test_what_is_not_a_history_is_refused_by_the_number_of_its_line(line, text):
    with pytest.raises(InvalidRequestError) as refused:
        read(io.BytesIO(file_of(GOOD) + b"\n" + line))
    assert text in str(refused.value)
    assert "line 3" in str(refused.value)
    assert refused.value.facts["line"] == 3


def test_damaged_gzip_is_an_error_and_not_a_shorter_file():
    packed = gzip.compress(file_of(*[GOOD | {"id": str(i)} for i in range(500)]))
    for damaged in (packed[:-9], packed[:200], packed[:100] + bytes(50) + packed[150:]):
        with pytest.raises(InvalidRequestError, match="gzip"):
            read(io.BytesIO(damaged))


def test_lines_and_files_have_limits(monkeypatch):
    monkeypatch.setattr(history_file, "LINE_BYTES_MAX", 50)
    monkeypatch.setattr(history_file, "_CHUNK_BYTES", 40)
    with pytest.raises(InvalidRequestError, match="line 1 is longer than 50 bytes"):
        read(io.BytesIO(file_of(GOOD)))
    monkeypatch.setattr(history_file, "FILE_BYTES_MAX", 30)
    with pytest.raises(InvalidRequestError, match="more than 30 bytes"):
        read(io.BytesIO(gzip.compress(bytes(10_000_000))))


ENTRIES = st.lists(
    st.tuples(
        st.integers(0, 2) | st.just("nemesis"),
        st.sampled_from(["invoke", "ok", "fail", "info"]),
        st.sampled_from(["read", "write", "cas", "acquire", "release"]),
        st.none() | st.integers(0, 3) | st.tuples(st.integers(0, 3), st.integers(0, 3)),
    ),
    max_size=8,
)


@given(st.sampled_from(["register", "cas-register", "mutex"]), ENTRIES)
def test_any_entries_are_judged_or_refused(model, entries):
    try:
        (history,) = read(io.BytesIO(file_of({"id": "h", "model": model, "ops": entries})))
    except InvalidRequestError:
        return
    assert judge(history.operations, history.initial).linearizable in (True, False)
