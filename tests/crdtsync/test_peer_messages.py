"""Frames between regions: one encoding, strict shapes, limits first."""

from __future__ import annotations

import contextlib
import os
import tracemalloc

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtsync.errors import LocalProtocolError, RemoteProtocolError
from crdtsync.identifiers import DEFAULT_DOMAIN, RegionId, writer_id
from crdtsync.log.commit import COMMIT_BYTES_MAX
from crdtsync.protocol import peer_messages as m
from crdtsync.protocol.compression import pack
from tests.peer_strategies import messages

EU_1 = writer_id("eu", "n", 1, bytes(8))
BIG = 2**53


@given(st.integers(0, BIG - 1), messages)
def test_decode_inverts_encode(number, message):
    frame = m.decode_frame(m.encode_frame(number, message))
    assert frame[:3] == (m.KIND_OF[type(message)], number, message)
    assert type(frame.message) is type(message)


@given(messages)
def test_a_message_has_one_encoding(message):
    once = m.encode_frame(1, message)
    assert m.encode_frame(1, m.decode_frame(once).message) == once


def test_the_largest_commit_fits_into_a_frame():
    run = m.Run(EU_1, 2**53 - 1, (bytes(COMMIT_BYTES_MAX),))
    assert m.encode_frame(2**53 - 1, m.Commits(DEFAULT_DOMAIN, 2**53 - 1, (run,)))


def test_a_message_over_the_limit_is_our_own_error():
    run = m.Run(EU_1, 1, (bytes(COMMIT_BYTES_MAX), bytes(COMMIT_BYTES_MAX)))
    with pytest.raises(LocalProtocolError, match="over the limit"):
        m.encode_frame(1, m.Commits(DEFAULT_DOMAIN, 0, (run,)))


def test_an_oversized_frame_is_refused_before_it_is_decoded():
    with pytest.raises(RemoteProtocolError, match="limit"):
        m.decode_frame(b"\x81" * (m.FRAME_BYTES_MAX + 1))


def test_a_kind_of_a_later_version_is_no_error():
    assert m.decode_frame(cbor2.dumps([99, 4, "whatever", [1, 2]]))[:3] == (99, 4, None)


@pytest.mark.parametrize(
    "plain",
    [
        None,
        7,
        "hello",
        [],
        [5],
        ["5", 1, 1],
        [5, -1, 1],
        [5, BIG, 1],
        [5, True, 1],
        [True, 1, 1],
        [5, 1],
        [5, 1, 1, 1],
        [5, 1, None],
        [5, 1, "1"],
        [5, 1, True],
        [5, 1, -1],
        [5, 1, 1.0],
        [5, 1, BIG],
        [1, 1, 1, "c", "EU", str(EU_1), 0, 0, [], 0],
        [1, 1, 1, "c", "eu", "eu/n", 0, 0, [], 0],
        [1, 1, 1, "c", "eu", str(EU_1), 0, 0, [""], 0],
        [1, 1, 1, "c", "eu", str(EU_1), 0, 0, ["d"] * (m.DOMAINS_MAX + 1), 0],
        [1, 1, 1, "c" * (m.TEXT_CHARS_MAX + 1), "eu", str(EU_1), 0, 0, [], 0],
        [3, 1, "default", 0, 0, 0, ["eu"] * (m.MEMBERS_MAX + 1), [True, []], [True, []], [True, []], b""],
        [3, 1, "default", 0, 0, 0, [], [1, []], [True, []], [True, []], b""],
        [3, 1, "default", 0, 0, 0, [], [True, [["x", 1]]], [True, []], [True, []], b""],
        [3, 1, "default", 0, 0, 0, [], [True, []], [True, []], [True, []], bytes(m.DIGEST_BYTES_MAX + 1)],
        [4, 1, "default", 0, [[str(EU_1), 1, ["text"]]]],
        [4, 1, "default", 0, [[str(EU_1), 1]]],
        [9, 1, "default", [[str(EU_1), 0]]],
        [9, 1, "default", [[str(EU_1), 2], [str(EU_1), 3]]],
        [11, 1, "default", 0, [[b"short", "n", "q", "s", True, True, "o", 0, 0, [], b"", b""]]],
        [12, 1, "default", 0, bytes(m.STATE_PIECE_BYTES_MAX + 1)],
        [14, 1, 1],
        [15, 1, str(EU_1), "eu", [["default", [], [str(EU_1), 1]]]],
        [7, 1, 0, 0, 0, 0, [["eu", 1, 1]]],
        [7, 1, 0, 0, 0, 0, {"eu": 1}],
        [20, 1, 0, 1, [["", 0, 1, 1, 0, 0]]],
        [20, 1, 0, 1, [["s", 3, 1, 1, 0, 0]]],
        [20, 1, 0, 1, [["s", True, 1, 1, 0, 0]]],
        [20, 1, 0, 1, [["s", 0, BIG, 1, 0, 0]]],
        [20, 1, 0, 1, [["s", 1, 1, 1, 0, m.LEASE_MS_MAX + 1]]],
        [20, 1, 0, 1, [["s" * (m.SCOPE_CHARS_MAX + 1), 0, 1, 1, 0, 0]]],
        [21, 1, 0, 1, [["s", 0, 1, 1, "maybe", 1, "", 0, 0, False]], []],
        [21, 1, 0, 1, [["s", 0, 1, 1, "", 1, "EU", 0, 0, False]], []],
        [22, 1, [7]],
        [50, 1],
        [50, 1, []],
        [50, 1, [[]]],
        [50, 1, [[99, 1]]],
        [50, 1, [[16, "bye"]]],
        [50, 1, [[50, [[5, 1]]]]],
        [50, 1, [[5, -1]]],
        [50, 1, [[4, "default", 0, []], [5, 1]]],
        [50, 1, [[5, 1]] * (m.BUNDLE_MESSAGES_MAX + 1)],
        [16, 1, cbor2.CBORTag(0, "2020-01-01T00:00:00Z")],
    ],
)
def test_other_shapes_are_refused(plain):
    with pytest.raises(RemoteProtocolError):
        m.decode_frame(cbor2.dumps(plain))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_frame_or_refused(data):
    with contextlib.suppress(RemoteProtocolError):
        m.decode_frame(data)


@given(messages, st.data())
def test_damaged_frames_are_a_frame_or_refused(message, data):
    frame = bytearray(m.encode_frame(3, message))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(frame)))
    for damaged in (bytes(frame), bytes(frame[:cut])):
        with contextlib.suppress(RemoteProtocolError):
            m.decode_frame(damaged)


def test_errors_name_what_was_expected_and_stay_short():
    with pytest.raises(RemoteProtocolError, match="expected a region, got str") as caught:
        m.decode_frame(cbor2.dumps([1, 1, 1, "c", "x" * 4_000_000, str(EU_1), 0, 0, [], 0]))
    assert len(str(caught.value)) < 200


def test_every_kind_has_a_number_for_ever():
    """Numbers and fields are on the wire between versions: adding a kind is fine, changing one is not."""
    assert {kind: (cls.__name__, len(cls._fields)) for kind, cls in m.KINDS.items()} == {
        1: ("Hello", 8),
        2: ("HelloRefused", 2),
        3: ("HeadsHeard", 9),
        4: ("Commits", 3),
        5: ("Credit", 1),
        6: ("AckHeard", 6),
        7: ("Ping", 5),
        8: ("Pong", 4),
        9: ("MustSnapshot", 2),
        10: ("SnapshotRequest", 1),
        11: ("SnapshotChunk", 3),
        12: ("SnapshotState", 3),
        13: ("SnapshotEnd", 6),
        14: ("OwnHeadsQuestion", 3),
        15: ("OwnHeadsAnswer", 3),
        16: ("Bye", 1),
        30: ("SynodPrepare", 4),
        31: ("SynodPromise", 7),
        32: ("SynodAccept", 5),
        33: ("SynodAccepted", 4),
        34: ("SynodRefused", 6),
        35: ("SynodNotNow", 5),
        20: ("LeaseAsks", 3),
        21: ("LeaseAnswers", 4),
        22: ("LeasesFreed", 1),
        50: ("Bundle", 1),
        40: ("LimitDemands", 2),
    }


def test_a_ping_of_the_first_version_is_read_for_ever():
    frame = bytes.fromhex("8707011903e81b0000018bcfe5680000008184626170071903e705")
    beat = m.Beat(RegionId("ap"), 7, 999, 5)
    assert m.decode_frame(frame)[:3] == (7, 1, m.Ping(1_000, 1_700_000_000_000, 0, 0, (beat,)))


_like_entries = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([str(EU_1), "eu/n", "", 5]), st.sampled_from([0, 1, BIG, -1, True, "1"])),
        st.sampled_from([(), (str(EU_1),), (str(EU_1), 1, 1), [str(EU_1), 1], None]),
    ),
    max_size=3,
).map(tuple)
_like_deltas = st.one_of(st.tuples(st.sampled_from([True, False, 0, None]), _like_entries), st.sampled_from([(), 7]))


def outcome(check, value):
    try:
        return check(value)
    except RemoteProtocolError as error:
        return str(error)


@given(_like_deltas)
def test_the_short_way_for_vectors_is_the_plain_one(value):
    assert outcome(m._delta, value) == outcome(m._plain_delta, value)


@given(
    st.tuples(
        st.sampled_from(["default", "", 1]),
        st.sampled_from(["eu", "EU", 1]),
        st.sampled_from([str(EU_1), "eu/n", None]),
        st.sampled_from([0, 7, -1, BIG, True]),
        _like_deltas,
        st.sampled_from([0, BIG, "1"]),
    )
)
def test_the_short_way_for_acknowledgements_is_the_plain_one(value):
    assert outcome(m._ack, value) == outcome(m._plain_ack, value)


# Packed frames


def packed(number: int, size: int, data: bytes, *more: object) -> bytes:
    return cbor2.dumps([m.PACKED_KIND, number, size, data, *more])


def bulk(number: int = 7) -> bytes:
    return m.encode_frame(number, m.Commits(DEFAULT_DOMAIN, 0, (m.Run(EU_1, 1, (bytes(50_000),)),)))


@given(st.integers(0, BIG - 1), messages)
def test_a_packed_frame_is_the_frame_that_it_stands_for(number, message):
    if m.KIND_OF[type(message)] in m.PACKED:
        frame = m.encode_frame(number, message)
        assert m.decode_frame(m.pack_frame(number, frame)) == m.decode_frame(frame)


def test_what_packing_does_not_make_smaller_stays_as_it_is():
    frame = m.encode_frame(1, m.Commits(DEFAULT_DOMAIN, 0, (m.Run(EU_1, 1, (os.urandom(5_000),)),)))
    assert m.pack_frame(1, frame) is frame


def test_a_packed_frame_counts_with_what_it_holds():
    """Credits bound memory, and what is packed small is not small in memory."""
    frame = bulk()
    small = m.pack_frame(7, frame)
    assert len(small) < 1_000
    assert m.decode_frame(small).size == len(frame)


@pytest.mark.parametrize(
    "frame",
    [
        packed(7, m.FRAME_BYTES_MAX + 1, pack(bulk())),  # more than any frame, whatever it really holds
        packed(7, 10, pack(bytes(1 << 30))),  # a gigabyte that calls itself ten bytes
        packed(7, 1_000_000, pack(bulk())),  # less than it says
        packed(7, len(bulk()), pack(bulk())[:-5]),
        packed(7, len(bulk()), pack(bulk()) + b"and more"),
        packed(7, len(bulk()), pack(bulk()) + pack(b"")),
        packed(7, len(bulk()), b"no zstd at all"),
        packed(7, 0, b""),
        packed(8, len(bulk()), pack(bulk())),  # another number
        packed(7, len(bulk()), pack(bulk()), 1),
        packed(7, len(m.encode_frame(7, m.Credit(1))), pack(m.encode_frame(7, m.Credit(1)))),
        packed(7, len(packed(7, len(bulk()), pack(bulk()))), pack(packed(7, len(bulk()), pack(bulk())))),
        packed(7, 3, pack(bytes(3))),
        packed(-7, 3, pack(bytes(3))),
    ],
)
def test_hostile_packed_frames_are_refused(frame):
    """NET-5."""
    with pytest.raises(RemoteProtocolError):
        m.decode_frame(frame)


def test_a_bomb_costs_no_more_memory_than_a_frame():
    bomb = packed(7, 10, pack(bytes(1 << 28)))
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError):
            m.decode_frame(bomb)
        assert tracemalloc.get_traced_memory()[1] < m.FRAME_BYTES_MAX
    finally:
        tracemalloc.stop()


@given(st.data())
def test_damaged_packed_frames_are_a_frame_or_refused(data):
    frame = bytearray(m.pack_frame(7, bulk()))
    frame[data.draw(st.integers(0, len(frame) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(RemoteProtocolError):
        m.decode_frame(bytes(frame))
