from __future__ import annotations

import json
import math
from base64 import b64decode
from pathlib import Path

import pytest

from crdtsync.errors import InvalidRequestError, LocalProtocolError, RemoteProtocolError
from crdtsync.identifiers import EventId
from crdtsync.protocol.codec import DEPTH_MAX, decode, decode_message, decode_value, encode, encode_uint, encode_value
from tests.log_strategies import EU

VECTORS = Path(__file__).parents[3] / "shared" / "data" / "cbor"


def plain(data: bytes):
    return decode(data, bytes_max=1 << 20)


def test_plain_values_survive():
    value = (1, -1, b"\0", "ü", True, False, None, ((), (2**64 - 1, -(2**64))))
    assert plain(encode(value)) == value


def test_a_named_tuple_is_written_as_an_array():
    assert plain(encode((EventId(1, EU, 2, 3),))) == ((1, EU, 2, 3),)


@pytest.mark.parametrize(
    "data, why",
    [
        ("", "end of stream"),
        ("0102", "1 bytes follow"),
        ("8201", "end of stream"),
        ("a0", "maps"),
        ("a10102", "maps|key"),
        ("81a16161a0", "maps"),
        ("f93c00", "float"),
        ("81fb3ff0000000000000", "float"),
        ("f7", "Undefined"),
        ("f0", "SimpleValue"),
        ("c249010000000000000000", "tags"),
        ("c101", "tags"),
        ("d81c80", "tags"),
        ("d9010081d81900", "tags"),
        ("d9d9f701", "tags"),
        ("da0001000001", "tags"),
        ("9f01ff", "indefinite"),
        ("5f4101ff", "indefinite"),
        ("61ff", "utf-8"),
        ("5b7fffffffffffffff", "end of stream"),
        ("9b00ffffffffffffff", "end of stream"),
        ("1c", "not the CBOR"),
        ("ff", "not the CBOR"),
    ],
)
def test_what_is_not_plain_is_refused_with_its_reason(data, why):
    with pytest.raises(RemoteProtocolError, match=why):
        plain(bytes.fromhex(data))


def test_bytes_beyond_the_limit_are_not_looked_at():
    with pytest.raises(RemoteProtocolError, match="limit of 4"):
        decode(b"\x80" * 5, bytes_max=4)


def test_nesting_beyond_the_limit_is_refused():
    assert plain(b"\x81" * DEPTH_MAX + b"\x01")
    with pytest.raises(RemoteProtocolError, match="nesting"):
        plain(b"\x81" * (DEPTH_MAX + 1) + b"\x01")
    with pytest.raises(RemoteProtocolError, match="nesting"):
        plain(b"\x81" * 100_000)


def test_text_that_utf_8_cannot_carry_is_our_bug():
    with pytest.raises(LocalProtocolError):
        encode("\ud800")


def test_equal_user_values_are_equal_bytes():
    assert encode_value({"b": 1, "a": [1.5, 2]}) == encode_value({"a": (1.5, 2), "b": 1})


def test_user_values_survive_and_tuples_become_lists():
    value = {"n": 2**53 + 1, "f": 1.5, "t": (1, None), b"k": {"deep": [True, b"", ""]}}
    assert decode_value(encode_value(value)) == {**value, "t": [1, None]}
    assert math.isnan(decode_value(encode_value(math.nan)))


@pytest.mark.parametrize(
    "value, why",
    [
        ({1: 2}, "only text and bytes"),
        ({"a": [{2.5: 0}]}, r"value\['a'\]\[0\] has the key 2.5"),
        ([{1, 2}], r"value\[0\] is a set"),
        (2**64, "64 bits"),
        ("\ud800", "surrogates"),
        (object(), "is a object"),
    ],
)
def test_a_user_value_that_cannot_travel_is_refused_by_its_place(value, why):
    with pytest.raises(InvalidRequestError, match=why):
        encode_value(value)


def test_a_user_value_that_contains_itself_is_refused():
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(InvalidRequestError, match="too deep"):
        encode_value(loop)


@pytest.mark.parametrize("data", ["a10102", "a2616101616102", "c101", "f7", "0102"])
def test_a_user_value_from_outside_is_checked_like_our_own(data):
    with pytest.raises(RemoteProtocolError):
        decode_value(bytes.fromhex(data))


def test_a_message_is_lists_and_dicts():
    assert decode_message(encode_value({"a": [1]}), bytes_max=99, depth_max=4) == {"a": [1]}
    with pytest.raises(RemoteProtocolError, match="tags"):
        decode_message(bytes.fromhex("81c101"), bytes_max=99, depth_max=4)


needs_vectors = pytest.mark.skipif(not VECTORS.exists(), reason="../shared is absent")


@needs_vectors
def test_the_vectors_of_appendix_a_that_are_user_values_decode_as_stated():
    checked = 0
    for vector in json.loads((VECTORS / "appendix_a.json").read_text()):
        data = b64decode(vector["cbor"])
        try:
            value = decode_value(data)
        except RemoteProtocolError:
            continue
        if "decoded" in vector:
            assert value == vector["decoded"], vector
            assert decode_value(encode_value(value)) == value
            checked += 1
    assert checked > 35


@needs_vectors
def test_plain_integers_text_and_arrays_of_appendix_a_have_one_encoding():
    checked = 0
    for vector in json.loads((VECTORS / "appendix_a.json").read_text()):
        data = b64decode(vector["cbor"])
        try:
            value = plain(data)
        except RemoteProtocolError:
            continue
        if vector["roundtrip"]:
            assert encode(value) == data
            checked += 1
    assert checked > 30


@needs_vectors
@pytest.mark.parametrize("path", sorted(VECTORS.glob("*.cbor")), ids=lambda path: path.stem)
def test_no_vector_file_is_one_plain_value_or_a_crash(path):
    with pytest.raises(RemoteProtocolError):
        decode(path.read_bytes(), bytes_max=1 << 16)


def test_the_short_way_for_a_number_is_the_plain_one():
    edges = [1 << bits for bits in range(64)] + [23, 24]
    for number in {0, *edges, *(edge - 1 for edge in edges), (1 << 64) - 1}:
        assert encode_uint(number) == encode(number)
    with pytest.raises(LocalProtocolError):
        encode_uint(1 << 64)
