"""What a node and its clients and workers say to each other over one websocket.

A frame is one CBOR array of messages, and a message an array that begins with its tag: many small
messages then share one frame, one system call and one decoder run. The first frame of a connection
is one `Open`, answered by `Opened` or `Refused`. After it:

    client -> node      Request*                        each answered by a Response; Watch by several
    worker -> node      Request*                        likewise
    node -> client      Response*
    node -> worker      Response* Assigned* StopAttempt*

Requests of one connection take effect in the order sent; their answers come in any order. Peers of
other regions speak `protocol.session` instead.

Bytes from outside never cause more than a `RemoteProtocolError`: size before decoding, then depth,
definite lengths, plain types, then the exact shape.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from enum import Enum
from typing import Annotated, Any, Final, Literal, TypeAlias

import cbor2
import msgspec

from crdtsync.commands import AttemptRef, ClientCommand, WorkerCommand
from crdtsync.effects import Assignment
from crdtsync.errors import (
    CrdtSyncError,
    InvalidRequestError,
    LocalProtocolError,
    PayloadTooLargeError,
    RemoteProtocolError,
)
from crdtsync.log.encoding import ARRAY, BOOL, NULL, byte_string, encode_id, head, text, uint
from crdtsync.protocol.codec import decode_value_unchecked

PROTOCOL_VERSION: Final = 1

# A node answers with lists that can be long; what it accepts is smaller, since one byte of CBOR can become 64 bytes of
# Python objects. An opening frame is read before anything is known about its sender.
FRAME_BYTES_MAX: Final = 16 << 20
REQUEST_FRAME_BYTES_MAX: Final = 4 << 20
OPENING_BYTES_MAX: Final = 4_096
FRAME_BYTES_AIM: Final = 1 << 20  # batches are split near this, so that one frame does not hold up the next for long
FRAME_MESSAGES_MAX: Final = 4_096
FRAME_DEPTH_MAX: Final = 96  # a value at its own limit, inside a record, inside an answer

RequestId: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class Open(msgspec.Struct, frozen=True, array_like=True, tag="open"):
    """The first message of a client or worker. `token` is kept for authentication; loopback needs none."""

    version: int
    role: Literal["client", "worker"]
    token: Annotated[str, msgspec.Meta(max_length=2_048)] = ""


class Opened(msgspec.Struct, frozen=True, array_like=True, tag="opened"):
    """The node's answer: who it is. `version` is the lower of both; `features` are bits as in design 7."""

    version: int
    region: str
    writer: str
    features: int = 0


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="refused"):
    """The node's answer when it will not serve this connection, which it then closes. An error record."""

    error: dict[str, Any]


class ClientRequest(msgspec.Struct, frozen=True, array_like=True, tag="q"):
    """A command. `id` is chosen by the sender and not reused on this connection while an answer is due."""

    id: RequestId
    command: ClientCommand


class WorkerRequest(msgspec.Struct, frozen=True, array_like=True, tag="q"):
    """As `ClientRequest`, on a worker's connection."""

    id: RequestId
    command: WorkerCommand


class Response(msgspec.Struct, frozen=True, array_like=True, tag="r"):
    """An answer: `error` is None or a record as in `CrdtSyncError.record`; more follow unless `final`."""

    id: RequestId
    value: Any = None
    error: dict[str, Any] | None = None
    final: bool = True


class Assigned(msgspec.Struct, frozen=True, array_like=True, tag="run"):
    """Attempts that this worker is to run; each takes one of its credits until it is completed."""

    assignments: tuple[Assignment, ...]


class StopAttempt(msgspec.Struct, frozen=True, array_like=True, tag="stop"):
    """Ask a handler to stop; `reason` as in `effects.Stop`. Its end is still reported."""

    attempt: AttemptRef
    reason: str


ToNode: TypeAlias = Open | ClientRequest | WorkerRequest
FromNode: TypeAlias = Opened | Refused | Response | Assigned | StopAttempt
Message: TypeAlias = ToNode | FromNode

# Assignments travel as arrays of their fields, in order: a third of the size of maps, and half the time.
_FIELDS: Final = Assignment._fields
_HINTS: Final = typing.get_type_hints(Assignment)
_AssignmentRow: Any = msgspec.defstruct(
    "_AssignmentRow", [(name, _HINTS[name]) for name in _FIELDS], array_like=True, frozen=True
)
_AssignedRows: Any = msgspec.defstruct(
    "_AssignedRows", [("rows", tuple[_AssignmentRow, ...])], array_like=True, frozen=True, tag="run"
)


class Expect(Enum):
    """What a frame may contain, by who sent it and when."""

    OPENING = "opening"
    CLIENT = "client"
    WORKER = "worker"
    NODE = "node"


_SHAPES: Final[dict[Expect, tuple[Any, int]]] = {
    Expect.OPENING: (list[Open], OPENING_BYTES_MAX),
    Expect.CLIENT: (list[ClientRequest], REQUEST_FRAME_BYTES_MAX),
    Expect.WORKER: (list[WorkerRequest], REQUEST_FRAME_BYTES_MAX),
    Expect.NODE: (list[Opened | Refused | Response | _AssignedRows | StopAttempt], FRAME_BYTES_MAX),
}


def encode_frame(messages: Sequence[Message]) -> bytes:
    """One frame that carries all of `messages`, whatever its size: see `encode_frames` for limits."""
    try:
        return cbor2.dumps([_plain(message) for message in messages])
    except UnicodeEncodeError:
        raise InvalidRequestError("text with a lone surrogate is not valid Unicode and cannot be sent") from None


def encode_frames(messages: Sequence[Message], bytes_max: int = REQUEST_FRAME_BYTES_MAX) -> list[bytes]:
    """As few frames as carry `messages` in order, none larger than `bytes_max`, most below FRAME_BYTES_AIM.

    Raises:
        PayloadTooLargeError: If one message alone exceeds `bytes_max`. Nothing was sent.
    """
    if len(messages) > FRAME_MESSAGES_MAX:
        return _halves(messages, bytes_max)
    frame = encode_frame(messages)
    if len(frame) <= min(FRAME_BYTES_AIM, bytes_max) or (len(messages) == 1 and len(frame) <= bytes_max):
        return [frame]
    if len(messages) == 1:
        raise PayloadTooLargeError(
            f"a message of {len(frame)} bytes exceeds the limit of {bytes_max} for one frame",
            size=len(frame),
            limit=bytes_max,
        )
    return _halves(messages, bytes_max)


def decode_frame(data: bytes, expect: Expect) -> list[Any]:
    """The messages of a frame, of the types that `expect` allows.

    Raises:
        RemoteProtocolError: For anything else, with the reason. Close the connection.
    """
    shape, bytes_max = _SHAPES[expect]
    if not isinstance(data, bytes):
        raise RemoteProtocolError("a text frame stands where a binary one must")
    plain = decode_value_unchecked(data, bytes_max=bytes_max, depth_max=FRAME_DEPTH_MAX)
    if not isinstance(plain, list) or not 1 <= len(plain) <= FRAME_MESSAGES_MAX:
        raise RemoteProtocolError(f"a frame is an array of 1 to {FRAME_MESSAGES_MAX} messages")
    try:
        messages: list[Any] = msgspec.convert(plain, shape, builtin_types=(bytes,))
    except (msgspec.ValidationError, ValueError, TypeError, RecursionError) as error:
        raise RemoteProtocolError(f"frame from a {expect.value}: {error}") from None
    if expect is Expect.OPENING and len(messages) != 1:
        raise RemoteProtocolError("the first frame is one Open message")
    if expect is Expect.NODE:
        return [_assigned(m) if type(m) is _AssignedRows else m for m in messages]
    return messages


def check_opening(opening: Open) -> None:
    """Raises RemoteProtocolError if this version cannot serve whoever opens so."""
    if opening.version < 1:
        raise RemoteProtocolError(f"protocol version {opening.version} is not spoken here; 1 to {PROTOCOL_VERSION} are")


def refusal(error: CrdtSyncError) -> Refused:
    return Refused(error.record())


def _plain(message: Message) -> Any:
    kind = type(message)
    if kind is Response:
        return ("r", message.id, message.value, message.error, message.final)  # type: ignore[union-attr]
    if kind is Assigned:
        return ("run", message.assignments)  # type: ignore[union-attr]
    return msgspec.to_builtins(message, builtin_types=(bytes,))


def encode_message(message: FromNode) -> bytes:
    """One message as it stands in a frame. An answer and an assignment, of which each task has one, are put together
    by hand: cbor2 takes 0.4 to 0.9 us for each array (see `log.encoding`)."""
    try:
        if type(message) is Response:
            value, error = message.value, message.error
            parts = (NULL if value is None else cbor2.dumps(value), NULL if error is None else cbor2.dumps(error))
            return b"".join((_RESPONSE, uint(message.id), *parts, BOOL[message.final]))
        if type(message) is Assigned:
            rows = message.assignments
            return b"".join((_ASSIGNED, head(ARRAY, len(rows)), *map(_assignment, rows)))
    except (TypeError, ValueError, KeyError, LocalProtocolError):
        pass  # not what its type promises: what is wrong is said below
    return encode_frame([message])[1:]


_RESPONSE: Final = head(ARRAY, 5) + cbor2.dumps("r")
_ASSIGNED: Final = head(ARRAY, 2) + cbor2.dumps("run")
_ROW: Final = head(ARRAY, len(_FIELDS))
_NOTHING_INHERITED: Final = b"".join(map(cbor2.dumps, ((), None, 0, None, b"")))


def _assignment(assignment: Assignment) -> bytes:
    task, attempt, number, name, payload, term, region, fence, deadline_ms, timeout_ms, root, *rest = assignment
    inherited = _NOTHING_INHERITED if rest == _NO_REST else b"".join(map(cbor2.dumps, rest))
    limits = (uint(fence), uint(deadline_ms), uint(timeout_ms))
    return b"".join(
        (_ROW, byte_string(task), encode_id(attempt), uint(number), text(name), byte_string(payload), uint(term),
         text(region), *limits, encode_id(root), inherited)
    )  # fmt: skip


_NO_REST: Final = [(), None, 0, None, b""]


def _assigned(message: Any) -> Assigned:
    return Assigned(tuple(Assignment(*msgspec.structs.astuple(row)) for row in message.rows))


def _halves(messages: Sequence[Message], bytes_max: int) -> list[bytes]:
    middle = len(messages) // 2
    return encode_frames(messages[:middle], bytes_max) + encode_frames(messages[middle:], bytes_max)
