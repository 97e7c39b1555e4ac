from __future__ import annotations

from contextlib import suppress

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtsync import commands as c
from crdtsync.effects import Assignment
from crdtsync.errors import InvalidRequestError, LocalProtocolError, PayloadTooLargeError, RemoteProtocolError
from crdtsync.identifiers import EventId, TaskId, WriterId
from crdtsync.protocol.messages import (
    FRAME_BYTES_AIM,
    FRAME_MESSAGES_MAX,
    OPENING_BYTES_MAX,
    REQUEST_FRAME_BYTES_MAX,
    Assigned,
    ClientRequest,
    Expect,
    Open,
    Opened,
    Refused,
    Response,
    StopAttempt,
    WorkerRequest,
    check_opening,
    decode_frame,
    encode_frame,
    encode_frames,
    encode_message,
    refusal,
)

ATTEMPT = EventId(123_456_789, WriterId("eu/a#7-0123456789abcdef"), 12, 3)
ASSIGNMENT = Assignment(
    task=TaskId(b"t" * 16),
    attempt=ATTEMPT,
    number=2,
    name="charge",
    payload=b"\x82\x80\xa0",
    term=1,
    region="eu",
    fence=0,
    deadline_ms=0,
    timeout_ms=0,
    root=ATTEMPT,
    effects=(("charge", b"\x61x"),),
    checkpoint=None,
    checkpoint_index=0,
    undoes=b"\xf6",
    document=b"",
)
FRAMES = {
    Expect.OPENING: [[Open(1, "client")], [Open(1, "worker", "token")]],
    Expect.CLIENT: [
        [
            ClientRequest(
                1, c.Submit((c.TaskSpec("charge", b"\x80", b"i" * 16, labels={"a": "b"}, after=(b"p" * 16,)),))
            )
        ],
        [ClientRequest(2, c.Await(b"t" * 16, settled=True)), ClientRequest(3, c.ListTasks(label=("a", "b")))],
        [ClientRequest(4, c.EditDocument(entries={"k": None, "l": b"\xf6"}))],
    ],
    Expect.WORKER: [
        [WorkerRequest(1, c.WorkerHello("w", "shop", (c.TaskDeclaration("charge"),), 8, running=(ATTEMPT,)))],
        [WorkerRequest(2, c.Complete(ATTEMPT, "ok", b"\xf6")), WorkerRequest(3, c.Heartbeat("w", ((ATTEMPT, "5%"),)))],
        [WorkerRequest(4, c.RecordEffect(ATTEMPT, "charge", b"k" * 16, b"\xf6"))],
    ],
    Expect.NODE: [
        [Opened(1, "eu", "eu/a#7-0123456789abcdef", 0)],
        [refusal(LocalProtocolError("x"))],
        [Response(1, {"a": [1.5, None, b"x"]}), Response(2, None, {"code": "x"}, final=False)],
        [Assigned((ASSIGNMENT, ASSIGNMENT)), StopAttempt(ATTEMPT, "cancelled")],
    ],
}
CASES = [(expect, messages) for expect, frames in FRAMES.items() for messages in frames]


@pytest.mark.parametrize("expect, messages", CASES)
def test_decoding_inverts_encoding(expect: Expect, messages: list) -> None:
    assert decode_frame(encode_frame(messages), expect) == messages


def test_ids_of_attempts_come_back_as_event_ids() -> None:
    [assigned] = decode_frame(encode_frame([Assigned((ASSIGNMENT,))]), Expect.NODE)
    assert type(assigned.assignments[0].attempt) is EventId
    assert assigned.assignments[0].attempt.region == "eu"


@pytest.mark.parametrize("expect, messages", CASES)
def test_a_frame_is_refused_where_another_kind_is_expected(expect: Expect, messages: list) -> None:
    frame = encode_frame(messages)
    for other in Expect:
        if other is not expect and {expect, other} != {Expect.CLIENT, Expect.WORKER}:
            with pytest.raises(RemoteProtocolError):
                decode_frame(frame, other)


def test_a_client_cannot_speak_as_a_worker() -> None:
    frame = encode_frame([WorkerRequest(1, c.Complete(ATTEMPT, "ok"))])
    with pytest.raises(RemoteProtocolError, match="frame from a client"):
        decode_frame(frame, Expect.CLIENT)


@pytest.mark.parametrize(
    "frame, reason",
    [
        (b"", "premature"),
        (b"\x80", "1 to 4096"),
        (b"\xa0", "1 to 4096"),
        (b"\x00", "1 to 4096"),
        (b"\x81\x80", "frame from"),
        (b"\x9f\xff", "indefinite"),
        (b"\x81\x82\x61q\x01" * 1 + b"\x00", "frame|follow"),
        (b"\x81" * 200 + b"\x00", "depth"),
        (cbor2.dumps([["q", -1, {"op": "Status"}]]), r"\$\[0\]"),
        (cbor2.dumps([["q", 1, {"op": "Status", "extra": 1}]]), "unknown field"),
        (cbor2.dumps([["q", 1, {"op": "Reboot"}]]), "Invalid value 'Reboot'"),
        (cbor2.dumps([["q", 1, {"op": "Cancel", "task": "text"}]]), "Expected `bytes`"),
        (cbor2.dumps([["q", 1, {"op": "Cancel"}]]), "missing required field `task`"),
        (cbor2.dumps([["q", "1", {"op": "Status"}]]), "Expected `int`"),
        (bytes.fromhex("8183617101c10a"), "tag"),
        (bytes.fromhex("81836171 01 a2 626f70 66537461747573 626f70 66537461747573".replace(" ", "")), "uplicate"),
        (b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff", "CBOR"),
        (b"\x5b\x00\x00\x00\xff\xff\xff\xff\xff" + b"x" * 100, "CBOR"),
        (b"\x00" * (REQUEST_FRAME_BYTES_MAX + 1), "limit"),
        (cbor2.dumps([0] * (FRAME_MESSAGES_MAX + 1)), "1 to 4096"),
    ],
)
def test_malformed_frames_are_refused_with_the_reason(frame: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError, match=reason):
        decode_frame(frame, Expect.CLIENT)


def test_the_opening_is_one_small_message() -> None:
    with pytest.raises(RemoteProtocolError, match="one Open"):
        decode_frame(encode_frame([Open(1, "client"), Open(1, "client")]), Expect.OPENING)
    with pytest.raises(RemoteProtocolError, match="limit"):
        decode_frame(encode_frame([Open(1, "client", "x" * OPENING_BYTES_MAX)]), Expect.OPENING)
    with pytest.raises(RemoteProtocolError, match=r"role|enum"):
        decode_frame(cbor2.dumps([["open", 1, "admin", ""]]), Expect.OPENING)
    with pytest.raises(RemoteProtocolError, match="version 0"):
        check_opening(Open(0, "client"))
    check_opening(Open(7, "client"))
    assert isinstance(refusal(PayloadTooLargeError("x")), Refused)


@given(st.binary(max_size=200), st.sampled_from(Expect))
def test_no_bytes_do_more_than_break_the_protocol(data: bytes, expect: Expect) -> None:
    with suppress(RemoteProtocolError):
        decode_frame(data, expect)


@given(st.data())
def test_no_damage_to_a_frame_does_more_than_break_the_protocol(data: st.DataObject) -> None:
    expect, messages = data.draw(st.sampled_from(CASES))
    frame = bytearray(encode_frame(messages))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(frame) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "repeat"])):
            case "flip":
                frame[place] ^= data.draw(st.integers(1, 255))
            case "cut":
                del frame[max(1, place) :]
            case "insert":
                frame[place:place] = data.draw(st.binary(max_size=9))
            case "repeat":
                frame += frame[place:]
    with suppress(RemoteProtocolError):
        decode_frame(bytes(frame), expect)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=9), inner, max_size=5),
)


@given(PLAIN, st.sampled_from(Expect))
def test_no_value_in_place_of_a_frame_does_more_than_break_the_protocol(value: object, expect: Expect) -> None:
    for frame in (
        value,
        [value],
        [["q", 1, value]],
        [["run", value]],
        [["r", 1, value, value, value]],
        [["stop", value, ""]],
    ):
        with suppress(RemoteProtocolError):
            decode_frame(cbor2.dumps(frame), expect)


def test_batches_are_split_at_the_aim_and_keep_their_order() -> None:
    messages = [Response(number, b"x" * 1_000) for number in range(5_000)]
    frames = encode_frames(messages, bytes_max=2 * FRAME_BYTES_AIM)
    assert len(frames) > 4
    assert all(len(frame) <= FRAME_BYTES_AIM for frame in frames)
    assert [m for frame in frames for m in decode_frame(frame, Expect.NODE)] == messages


def test_one_message_beyond_the_limit_is_refused() -> None:
    message = Response(1, b"x" * 2_000)
    assert len(encode_frames([message], bytes_max=3_000)) == 1
    with pytest.raises(PayloadTooLargeError, match="2010 bytes exceeds the limit of 1000"):
        encode_frames([message, message], bytes_max=1_000)
    with pytest.raises(InvalidRequestError, match="surrogate"):
        encode_frame([Response(1, "\ud800")])


answers = st.none() | st.dictionaries(st.text(), st.text() | st.booleans() | st.integers(0, 2**64 - 1) | st.none())
assignments = st.builds(
    ASSIGNMENT._replace,
    task=st.binary(min_size=16, max_size=16),
    number=st.integers(1, 2**20),
    name=st.text(),
    payload=st.binary(max_size=2_000),
    fence=st.integers(0, 2**63),
    timeout_ms=st.integers(0, 2**40),
    effects=st.just(()) | st.just(ASSIGNMENT.effects),
    checkpoint=st.none() | st.binary(),
    undoes=st.none() | st.binary(),
)


@given(
    st.builds(Response, st.integers(0, 2**53), answers | st.lists(answers), answers, st.booleans())
    | st.builds(lambda rows: Assigned(tuple(rows)), st.lists(assignments, max_size=3))
)
def test_a_message_encoded_alone_has_the_bytes_that_it_has_in_a_frame(message):
    assert b"\x81" + encode_message(message) == encode_frame([message])
