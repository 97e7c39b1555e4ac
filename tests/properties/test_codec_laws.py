"""Decoding inverts encoding, and no bytes do anything but decode or raise RemoteProtocolError."""

from __future__ import annotations

import contextlib

import cbor2
from hypothesis import given, settings
from hypothesis import strategies as st

from crdtsync.errors import RemoteProtocolError
from crdtsync.events import Claimed, Submitted
from crdtsync.log.commit import commit_hash, decode_commit, seal
from crdtsync.log.encoding import encode_event, encode_events
from crdtsync.log.shapes import plain_event
from crdtsync.protocol.codec import decode, decode_message, decode_value, encode, encode_value
from tests.log_strategies import EU, events, plain, stamp

scalars = st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.floats(allow_nan=False) | st.text()
user_values = st.recursive(
    scalars | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.binary(), inner),
    max_leaves=20,
)
# Well-formed CBOR of every sort, which random bytes seldom are.
anything = st.recursive(
    scalars | st.binary() | st.just(cbor2.undefined) | st.integers(-(2**80), 2**80),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.integers() | st.text(), inner)
        | st.builds(cbor2.CBORTag, st.integers(6, 2**64 - 1) | st.integers(24, 300), inner)
    ),
    max_leaves=10,
).map(cbor2.dumps)


@given(plain)
def test_decode_inverts_encode(value):
    assert decode(encode(value), bytes_max=1 << 20) == value


@given(plain)
def test_the_encoding_is_canonical(value):
    assert encode(value) == cbor2.dumps(value, canonical=True)
    assert encode(decode(encode(value), bytes_max=1 << 20)) == encode(value)


@given(plain, st.binary(min_size=1))
def test_whatever_follows_the_value_is_refused(value, more):
    with contextlib.suppress(RemoteProtocolError):
        raise AssertionError(decode(encode(value) + more, bytes_max=1 << 20))


@given(plain, st.data())
def test_no_proper_prefix_is_a_value(value, data):
    encoded = encode(value)
    with contextlib.suppress(RemoteProtocolError):
        raise AssertionError(decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))], bytes_max=1 << 20))


@given(user_values)
def test_user_values_survive(value):
    assert decode_value(encode_value(value)) == value


@settings(max_examples=150)
@given(st.binary(max_size=64) | anything)
def test_no_bytes_raise_anything_else(data):
    for decoder in (decode, decode_value):
        with contextlib.suppress(RemoteProtocolError):
            decoder(data, bytes_max=1 << 20)
    with contextlib.suppress(RemoteProtocolError):
        decode_message(data, bytes_max=1 << 20, depth_max=64)
    with contextlib.suppress(RemoteProtocolError):
        decode_commit(data)


@given(events)
def test_events_that_are_encoded_quickly_have_the_bytes_that_cbor2_gives_them(event):
    assert encode_event(event) == cbor2.dumps(plain_event(event))
    if isinstance(event, Submitted):  # as most tasks are submitted; at random this hardly occurs
        usual = event._replace(not_before_ms=0, deadline_ms=0, key="", generation=0, labels=(), after=())
        usual = usual._replace(undoes=None, linked=None)
        assert encode_event(usual) == cbor2.dumps(plain_event(usual))
    if isinstance(event, Claimed):
        usual = event._replace(continues=None, relies=(), inputs=())
        assert encode_event(usual) == cbor2.dumps(plain_event(usual))


@given(st.lists(events, max_size=40))
def test_an_array_of_events_has_the_bytes_that_cbor2_gives_it(written):
    assert encode_events(written) == cbor2.dumps(tuple(map(plain_event, written)))


@settings(max_examples=100)
@given(st.lists(events, min_size=1, max_size=4), st.data())
def test_a_damaged_commit_raises_nothing_else(written, data):
    commit = seal("default", EU, 1, stamp=stamp(), deps=(), previous=bytes(32), events=written)
    assert decode_commit(commit.blob) == commit
    assert commit.events == tuple(written)
    blob = bytearray(commit.blob)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(blob) - 1))
        blob[position : position + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    with contextlib.suppress(RemoteProtocolError):
        damaged = decode_commit(bytes(blob))
        assert damaged.blob == bytes(blob)
        assert damaged.hash == commit_hash(bytes(blob))
