"""What two regions say to each other over their link.

A frame is one CBOR array `[kind, number, field, ...]` of plain values. Frames are numbered from 1 in each direction of a
link, so that a replayed frame is dropped and a lost one is noticed (`Session`). A kind's number and the order of its
fields never change: new fields mean a new kind. A kind that this version does not know is counted and ignored, so that
versions N and N+1 can talk; a known kind of another shape is an error of the peer.

Bytes from outside never cause more than a `RemoteProtocolError`: size before decoding, then depth and plain types
(`codec`), then the exact shape, then ranges. What a commit's bytes hold is not looked at here; that is `DomainLog`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

from crdtsync.coordination.lease import Answer, Ask, Refusal, Step
from crdtsync.effects import TaskRow
from crdtsync.errors import LocalProtocolError, RemoteProtocolError
from crdtsync.events import Plain
from crdtsync.identifiers import TASK_ID_BYTES, Domain, RegionId, TaskId, WriterId, is_region, is_writer
from crdtsync.log.commit import COMMIT_BYTES_MAX, DOMAIN_CHARS_MAX
from crdtsync.log.heads import NUMBER_MAX, Heads
from crdtsync.protocol.codec import check_plain, decode_unchecked, encode, encode_uint
from crdtsync.protocol.compression import pack, unpack

PEER_PROTOCOL_VERSION: Final = 1
FRAME_BYTES_MAX: Final = COMMIT_BYTES_MAX + (64 << 10)  # the largest commit must fit into a frame of its own
FRAME_DEPTH_MAX: Final = 8  # a writer's pair in a delta in an acknowledgement in an answer in a frame has 6
TEXT_CHARS_MAX: Final = 4_096  # names, labels and reasons; what a task's may be long is checked where it is accepted
MEMBERS_MAX: Final = 64  # regions of one cluster; the design has a full mesh of up to 16 in mind
DOMAINS_MAX: Final = 256
VECTOR_ENTRIES_MAX: Final = 50_000  # of one vector in one frame: at 40 bytes each, three of them still fit
RUN_COMMITS_MAX: Final = 65_536
RUNS_MAX: Final = 4_096
ROWS_MAX: Final = 4_096
ROW_LABELS_MAX: Final = 1_024
DEMANDS_MAX: Final = 1_024  # limits in one frame
DIGEST_BYTES_MAX: Final = 64
STATE_PIECE_BYTES_MAX: Final = 1 << 20
BUNDLE_MESSAGES_MAX: Final = 128
SYNOD_VALUE_BYTES_MAX: Final = 1 << 16  # one change of the membership
LEASES_PER_FRAME_MAX: Final = 1_024  # requests or answers about leases in one frame
SCOPE_CHARS_MAX: Final = 512
LEASE_MS_MAX: Final = 3_600_000  # of a lease, or of what is left of one


class VectorDelta(NamedTuple):
    """What changed in a vector since the last frame that carried it; number 0 removes an entry.

    `full` says that the entries are the whole vector: the first time, and after frames were lost.
    """

    full: bool
    entries: tuple[tuple[WriterId, int], ...]


class Hello(NamedTuple):
    """First frame in both directions."""

    version: int
    cluster: str
    region: RegionId
    writer: WriterId
    features: int  # bits, design 7
    members_version: int  # `Membership.stamp`: epoch and version
    domains: tuple[Domain, ...]
    granted: int  # bytes of commits and rows that the receiver of this may send before the first `Credit`


class HelloRefused(NamedTuple):
    """Instead of a Hello, or in answer to one. The sender closes the link."""

    reason: str  # a `Refusal` value
    detail: str


class HeadsHeard(NamedTuple):
    """One domain's vectors at the sender, and how far it has read what the receiver sent it."""

    domain: Domain
    seen: int  # number of your last frame that I processed
    missed: int  # how many of your frames before that never reached me
    offset: int  # bytes of commits and rows that I sent you on this link, lost ones included
    links: tuple[RegionId, ...]  # to whom else I have a link now
    have: VectorDelta
    applied: VectorDelta  # durable; `digest` is of the state here
    floor: VectorDelta  # commits up to here are dropped: I cannot send them
    digest: bytes  # b"" where it cannot be compared, as while a snapshot is being taken in


class Run(NamedTuple):
    """Commits of one writer without a gap, from number `first` on."""

    writer: WriterId
    first: int
    blobs: tuple[bytes, ...]


class Commits(NamedTuple):
    domain: Domain
    offset: int  # bytes of commits and rows sent on this link before this frame
    runs: tuple[Run, ...]


class Credit(NamedTuple):
    granted: int  # in all, since the link opened: so a lost or repeated one does no harm


class AckHeard(NamedTuple):
    """A member's durable acknowledgement: at its own commit `number` of `writer` it had applied `heads`."""

    domain: Domain
    member: RegionId
    writer: WriterId
    number: int
    heads: VectorDelta
    age_ms: int  # since it was given, as far as the sender knows


class Beat(NamedTuple):
    """A sign of life: at its own monotonic time `beat` that incarnation of `region` was alive, `age_ms` ago."""

    region: RegionId
    incarnation: int
    beat: int
    age_ms: int


class Ping(NamedTuple):
    mono_ms: int  # the sender's clocks; the monotonic one is also its beat
    wall_ms: int  # its real time, as its stamps count it; earlier versions sent the wall clock's
    seen: int  # as in HeadsHeard
    missed: int
    beats: tuple[Beat, ...]  # of others


class Pong(NamedTuple):
    """NTP's four times, but for the last, which is the reader's own."""

    mono_ms: int  # echoed
    wall_ms: int  # echoed
    received_ms: int  # real time at the answering side, as its stamps count it
    sent_ms: int


class MustSnapshot(NamedTuple):
    """You lack commits of this domain that I have dropped: ask for a snapshot."""

    domain: Domain
    floor: tuple[tuple[WriterId, int], ...]


class SnapshotRequest(NamedTuple):
    domain: Domain


class SnapshotChunk(NamedTuple):
    domain: Domain
    offset: int  # as in Commits
    rows: tuple[TaskRow, ...]


class SnapshotState(NamedTuple):
    """A piece of the opaque state (log, declarations, documents) that goes with the rows."""

    domain: Domain
    offset: int
    data: bytes


class SnapshotEnd(NamedTuple):
    domain: Domain
    rows: int  # how many were sent, to notice a lost frame
    state_bytes: int
    until: tuple[tuple[WriterId, int], ...]  # rows may hold facts up to here: compare no digest before it is applied
    floor: tuple[tuple[WriterId, int], ...]
    digest: bytes  # of the sender's state at `until`


class OwnHeadsQuestion(NamedTuple):
    """What do these members have of the asking region's writers, and what did it acknowledge to them last?

    Passed on by peers, so that it reaches members to which the asker has no link.
    """

    writer: WriterId  # the incarnation that asks
    round: int  # grows with each time that it asks
    wanted: tuple[RegionId, ...]  # who has not answered it yet


class OwnHeads(NamedTuple):
    domain: Domain
    heads: tuple[tuple[WriterId, int], ...]  # of the asker's writers, durable at the member
    ack: tuple[WriterId, int, tuple[tuple[WriterId, int], ...]] | None


class OwnHeadsAnswer(NamedTuple):
    writer: WriterId  # of the question
    member: RegionId  # who says this
    domains: tuple[OwnHeads, ...]


class Demand(NamedTuple):
    """What the sender does with one global limit."""

    limit: bytes
    holds: int  # rights that it may use now
    used: int  # of them, bound
    waiting: int  # how many more it could use at once
    waited_ms: int  # for how long nothing has started under it there though something waits
    fresh_only: bool  # it has just started: rights from before are not used before every member has answered


class LimitDemands(NamedTuple):
    """Whoever has more rights than its share gives of them, by an event. This asks, it takes nothing."""

    domain: Domain
    demands: tuple[Demand, ...]


class Bye(NamedTuple):
    reason: str


class Bundle(NamedTuple):
    """Several messages in one frame, in the order in which they are to be taken; of data at most one, and last.

    A frame costs both sides more than most of what is in one. Only to peers that read it (`features.BUNDLES`).
    """

    messages: tuple[PeerMessage, ...]


class SynodPrepare(NamedTuple):
    """Promise me this ballot for the membership of this version (coordination/synod)."""

    epoch: int
    version: int
    round: int  # of the ballot, as is `writer`
    writer: str


class SynodPromise(NamedTuple):
    epoch: int
    version: int
    round: int
    writer: str
    accepted_round: int  # of the ballot under which `value` was accepted, 0 if nothing was
    accepted_writer: str
    value: bytes


class SynodAccept(NamedTuple):
    epoch: int
    version: int
    round: int
    writer: str
    value: bytes


class SynodAccepted(NamedTuple):
    epoch: int
    version: int
    round: int
    writer: str


class SynodRefused(NamedTuple):
    """To prepare or accept: a larger ballot was promised."""

    epoch: int
    version: int
    round: int
    writer: str
    promised_round: int
    promised_writer: str


class SynodNotNow(NamedTuple):
    """To prepare or accept: I am at another version, or the last change was too short a time ago."""

    epoch: int  # asked for
    version: int
    at_epoch: int  # where the voter is
    at_version: int
    wait_ms: int


class LeaseAsks(NamedTuple):
    """What a proposer asks this voter about some scopes, under the membership that it knows."""

    epoch: int
    version: int
    asks: tuple[Ask, ...]


class LeaseAnswers(NamedTuple):
    """What a voter says to earlier requests, in any order."""

    epoch: int
    version: int
    answers: tuple[Answer, ...]
    heads: tuple[tuple[WriterId, int], ...]  # applied and durable at the voter, if it accepts a new tenure in here


class LeasesFreed(NamedTuple):
    """To those that were refused: the holder has given these back."""

    scopes: tuple[str, ...]


PeerMessage: TypeAlias = (
    Hello
    | HelloRefused
    | HeadsHeard
    | Commits
    | Credit
    | AckHeard
    | Ping
    | Pong
    | MustSnapshot
    | SnapshotRequest
    | SnapshotChunk
    | SnapshotState
    | SnapshotEnd
    | OwnHeadsQuestion
    | OwnHeadsAnswer
    | Bye
    | Bundle
    | SynodPrepare
    | SynodPromise
    | SynodAccept
    | SynodAccepted
    | SynodRefused
    | SynodNotNow
    | LeaseAsks
    | LeaseAnswers
    | LeasesFreed
    | LimitDemands
)

# Shapes ----------------------------------------------------------------------------------------------------------------
# A check takes a decoded value and returns it as the message holds it, or raises RemoteProtocolError.

Check: TypeAlias = Callable[[Any], Any]


def _wrong(value: Any, wanted: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"expected {wanted}, got {type(value).__name__} {repr(value)[:64]}")


def _uint(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= NUMBER_MAX:
        raise _wrong(value, "a number from 0")
    return value


def _wall(value: Any) -> int:
    """A clock may stand before 1970; nothing else here is ever negative."""
    if type(value) is not int or not -NUMBER_MAX <= value <= NUMBER_MAX:
        raise _wrong(value, "a wall time")
    return value


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise _wrong(value, "a boolean")
    return value


def _text(value: Any) -> str:
    if type(value) is not str or len(value) > TEXT_CHARS_MAX:
        raise _wrong(value, f"text of at most {TEXT_CHARS_MAX} characters")
    return value


def _region(value: Any) -> RegionId:
    if type(value) is not str or not _is_region(value):
        raise _wrong(value, "a region")
    return RegionId(value)


_is_writer = lru_cache(maxsize=4_096)(is_writer)  # the same few come with every frame
_is_region = lru_cache(maxsize=1_024)(is_region)


def _writer(value: Any) -> WriterId:
    if type(value) is not str or not _is_writer(value):
        raise _wrong(value, "a writer")
    return WriterId(value)


def _optional_region(value: Any) -> str:
    return "" if value == "" else _region(value)


def _domain(value: Any) -> Domain:
    if type(value) is not str or not 0 < len(value) <= DOMAIN_CHARS_MAX:
        raise _wrong(value, "a domain")
    return Domain(value)


def _task(value: Any) -> TaskId:
    if type(value) is not bytes or len(value) != TASK_ID_BYTES:
        raise _wrong(value, f"an id of {TASK_ID_BYTES} bytes")
    return TaskId(value)


def _blob(bytes_max: int) -> Check:
    def check(value: Any) -> bytes:
        if type(value) is not bytes or len(value) > bytes_max:
            raise _wrong(value, f"at most {bytes_max} bytes")
        return value

    return check


def _many(item: Check, count_max: int) -> Check:
    def check(value: Any) -> tuple[Any, ...]:
        if type(value) is not tuple or len(value) > count_max:
            raise _wrong(value, f"an array of at most {count_max}")
        return tuple([item(each) for each in value])

    return check


def _fields(*checks: Check, into: Callable[..., Any] | None = None) -> Check:
    def check(value: Any) -> Any:
        if type(value) is not tuple or len(value) != len(checks):
            raise _wrong(value, f"an array of {len(checks)}")
        checked = [one(each) for one, each in zip(checks, value, strict=True)]
        return into(*checked) if into else tuple(checked)

    return check


def _optional(item: Check) -> Check:
    return lambda value: None if value is None else item(value)


_payload = _blob(FRAME_BYTES_MAX)
_digest = _blob(DIGEST_BYTES_MAX)
_plain_delta = _fields(_bool, _many(_fields(_writer, _uint), VECTOR_ENTRIES_MAX), into=VectorDelta)
_run = _fields(_writer, _uint, _many(_payload, RUN_COMMITS_MAX), into=Run)
_beat = _fields(_region, _uint, _uint, _uint, into=Beat)

_DELTA: Final = (bool, tuple)
_ENTRY: Final = (str, int)
_ACK: Final = (str, str, str, int, tuple, int)
NOTHING_NEW: Final = VectorDelta(full=False, entries=())


def _delta(value: Any) -> VectorDelta:
    """As `_plain_delta`, which says what is wrong. Vectors are most of what is checked: a third of the time."""
    if type(value) is tuple and tuple(map(type, value)) == _DELTA:
        full, entries = value
        if not entries:
            return VectorDelta(full, ()) if full else NOTHING_NEW
        if len(entries) <= VECTOR_ENTRIES_MAX:
            for entry in entries:
                if (
                    type(entry) is not tuple
                    or tuple(map(type, entry)) != _ENTRY
                    or not 0 <= entry[1] <= NUMBER_MAX
                    or not _is_writer(entry[0])
                ):
                    break
            else:
                return VectorDelta(full, entries)
    delta: VectorDelta = _plain_delta(value)
    return delta


_UNNAMED: Final = Domain("")  # a row's domain stands once in its frame


def _vector(value: Any) -> tuple[tuple[WriterId, int], ...]:
    return Heads.from_wire(value).to_wire()  # type: ignore[return-value]  # same writers, checked


_row = _fields(
    _task,
    _text,  # name
    _text,  # queue
    _text,  # state
    _bool,  # settled
    _bool,  # live
    _text,  # owner
    _wall,  # created_ms
    _uint,  # conflicts
    _many(_fields(_text, _text), ROW_LABELS_MAX),
    _digest,
    _payload,  # facts
    into=lambda *fields: TaskRow(_UNNAMED, *fields),
)
_value = _blob(SYNOD_VALUE_BYTES_MAX)


def _ballot_writer(value: Any) -> str:
    return "" if value == "" else _writer(value)


def _scope(value: Any) -> str:
    if type(value) is not str or not 0 < len(value) <= SCOPE_CHARS_MAX:
        raise _wrong(value, "a scope")
    return value


def _one_of(values: Collection[Any], what: str) -> Check:
    allowed = frozenset(values)

    def check(value: Any) -> Any:
        if type(value) not in (int, str) or value not in allowed:
            raise _wrong(value, what)
        return value

    return check


def _lease_ms(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= LEASE_MS_MAX:
        raise _wrong(value, "the length of a lease")
    return value


_step = _one_of([int(step) for step in Step], "a step")
_refusal = _one_of([str(refusal) for refusal in Refusal], "a refusal")
_ask = _fields(_scope, _step, _uint, _uint, _uint, _lease_ms, into=Ask)
_answer = _fields(_scope, _step, _uint, _uint, _refusal, _uint, _optional_region, _uint, _lease_ms, _bool, into=Answer)
_packed = _fields(_uint, _payload)
_demand = _fields(_task, _uint, _uint, _uint, _uint, _bool, into=Demand)  # a limit's id has as many bytes as a task's
_own_heads = _fields(_domain, _vector, _optional(_fields(_writer, _uint, _vector)), into=OwnHeads)

KINDS: Final[dict[int, type[Any]]] = {
    1: Hello,
    2: HelloRefused,
    3: HeadsHeard,
    4: Commits,
    5: Credit,
    6: AckHeard,
    7: Ping,
    8: Pong,
    9: MustSnapshot,
    10: SnapshotRequest,
    11: SnapshotChunk,
    12: SnapshotState,
    13: SnapshotEnd,
    14: OwnHeadsQuestion,
    15: OwnHeadsAnswer,
    16: Bye,
    30: SynodPrepare,
    31: SynodPromise,
    32: SynodAccept,
    33: SynodAccepted,
    34: SynodRefused,
    35: SynodNotNow,
    20: LeaseAsks,
    21: LeaseAnswers,
    22: LeasesFreed,
    50: Bundle,
    40: LimitDemands,
}
KIND_OF: Final = {message: kind for kind, message in KINDS.items()}

_plain_ack = _fields(_domain, _region, _writer, _uint, _delta, _uint, into=AckHeard)


def _ack(value: Any) -> AckHeard:
    """As `_plain_ack`, which says what is wrong: half of all frames of a quiet mesh are acknowledgements."""
    if type(value) is tuple and tuple(map(type, value)) == _ACK:
        domain, member, writer, number, heads, age_ms = value
        if (
            0 < len(domain) <= DOMAIN_CHARS_MAX
            and _is_region(member)
            and _is_writer(writer)
            and 0 <= number <= NUMBER_MAX
            and 0 <= age_ms <= NUMBER_MAX
        ):
            return AckHeard(domain, member, writer, number, _delta(heads), age_ms)
    ack: AckHeard = _plain_ack(value)
    return ack


_domains = _many(_domain, DOMAINS_MAX)
_regions = _many(_region, MEMBERS_MAX)
_SHAPES: Final[dict[int, Check]] = {
    1: _fields(_uint, _text, _region, _writer, _uint, _uint, _domains, _uint, into=Hello),
    2: _fields(_text, _text, into=HelloRefused),
    3: _fields(_domain, _uint, _uint, _uint, _regions, _delta, _delta, _delta, _digest, into=HeadsHeard),
    4: _fields(_domain, _uint, _many(_run, RUNS_MAX), into=Commits),
    5: _fields(_uint, into=Credit),
    6: _ack,
    7: _fields(_uint, _wall, _uint, _uint, _many(_beat, MEMBERS_MAX), into=Ping),
    8: _fields(_uint, _wall, _wall, _wall, into=Pong),
    9: _fields(_domain, _vector, into=MustSnapshot),
    10: _fields(_domain, into=SnapshotRequest),
    11: _fields(_domain, _uint, _many(_row, ROWS_MAX), into=SnapshotChunk),
    12: _fields(_domain, _uint, _blob(STATE_PIECE_BYTES_MAX), into=SnapshotState),
    13: _fields(_domain, _uint, _uint, _vector, _vector, _digest, into=SnapshotEnd),
    14: _fields(_writer, _uint, _regions, into=OwnHeadsQuestion),
    15: _fields(_writer, _region, _many(_own_heads, DOMAINS_MAX), into=OwnHeadsAnswer),
    16: _fields(_text, into=Bye),
    30: _fields(_uint, _uint, _uint, _writer, into=SynodPrepare),
    31: _fields(_uint, _uint, _uint, _writer, _uint, _ballot_writer, _value, into=SynodPromise),
    32: _fields(_uint, _uint, _uint, _writer, _value, into=SynodAccept),
    33: _fields(_uint, _uint, _uint, _writer, into=SynodAccepted),
    34: _fields(_uint, _uint, _uint, _writer, _uint, _writer, into=SynodRefused),
    35: _fields(_uint, _uint, _uint, _uint, _uint, into=SynodNotNow),
    20: _fields(_uint, _uint, _many(_ask, LEASES_PER_FRAME_MAX), into=LeaseAsks),
    21: _fields(_uint, _uint, _many(_answer, LEASES_PER_FRAME_MAX), _vector, into=LeaseAnswers),
    22: _fields(_many(_scope, LEASES_PER_FRAME_MAX), into=LeasesFreed),
    50: lambda value: _bundle(value),  # noqa: PLW0108 - made of the shapes above
    40: _fields(_domain, _many(_demand, DEMANDS_MAX), into=LimitDemands),
}
assert _SHAPES.keys() == KINDS.keys()
BUNDLED: Final = frozenset(KIND_OF[message] for message in (HeadsHeard, Commits, Credit, AckHeard, Ping, Pong))


def _bundle(value: Any) -> Bundle:
    if type(value) is not tuple or len(value) != 1 or type(value[0]) is not tuple:
        raise _wrong(value, "an array of messages")
    if not 0 < len(value[0]) <= BUNDLE_MESSAGES_MAX:
        raise _wrong(value, f"1 to {BUNDLE_MESSAGES_MAX} messages")
    messages: list[PeerMessage] = []
    for part in value[0]:
        if type(part) is not tuple or not part or type(part[0]) is not int or part[0] not in BUNDLED:
            raise _wrong(part, "a message that comes in bundles")
        if messages and type(messages[-1]) is Commits:
            raise _wrong(part, "nothing behind commits")
        messages.append(_SHAPES[part[0]](part[1:]))
    return Bundle(tuple(messages))


def parts_of(message: PeerMessage | None) -> tuple[PeerMessage, ...]:
    """What a frame says, one message after another; nothing if its kind is unknown."""
    if message is None:
        return ()
    return message.messages if isinstance(message, Bundle) else (message,)


PACKED_KIND: Final = 51  # [51, number, size, zstd of the frame of `size` bytes that this one stands for]
PACKED: Final = frozenset(KIND_OF[message] for message in (Commits, SnapshotChunk, SnapshotState, Bundle))
PACK_BYTES_MIN: Final = 1_024  # below, a header and a call cost more than is saved


class Frame(NamedTuple):
    """A decoded frame. `message` is None when its kind is unknown to this version."""

    kind: int
    number: int
    message: PeerMessage | None
    size: int  # in bytes, before it was packed: what credits count


def pack_frame(number: int, frame: bytes) -> bytes:
    """A frame of one of the kinds in `PACKED`, packed if that makes it smaller. Only for peers with `features.ZSTD`."""
    packed = encode((PACKED_KIND, number, len(frame), pack(frame)))
    return packed if len(packed) < len(frame) else frame


def encode_frame(number: int, message: PeerMessage) -> bytes:
    """One frame.

    Raises:
        LocalProtocolError: If it is too large: what is gathered into one message must be bounded before.
    """
    fields: tuple[Plain, ...] = message
    if type(message) is SnapshotChunk:
        fields = (message.domain, message.offset, tuple(tuple(row)[1:] for row in message.rows))
    elif type(message) is Bundle:
        fields = (tuple([(KIND_OF[type(part)], *part) for part in message.messages]),)
    frame = encode((KIND_OF[type(message)], number, *fields))
    if len(frame) > FRAME_BYTES_MAX:
        name = type(message).__name__
        raise LocalProtocolError(f"a {name} of {len(frame)} bytes is over the limit of {FRAME_BYTES_MAX}")
    return frame


def decode_frame(data: bytes) -> Frame:
    """Inverse of `encode_frame`.

    Raises:
        RemoteProtocolError: If `data` is not a frame, or one of a known kind with another shape.
    """
    plain = decode_unchecked(data, bytes_max=FRAME_BYTES_MAX, depth_max=FRAME_DEPTH_MAX)  # shapes check every element
    if type(plain) is not tuple or len(plain) < 2:
        raise RemoteProtocolError("a frame is an array [kind, number, ...]")
    kind, number = _uint(plain[0]), _uint(plain[1])
    if kind == PACKED_KIND:
        return _unpacked(number, plain[2:])
    shape = _SHAPES.get(kind)
    if shape is None:
        check_plain(plain)
        return Frame(kind, number, None, len(data))
    message: PeerMessage = shape(plain[2:])
    if type(message) is SnapshotChunk:
        message = message._replace(rows=tuple(row._replace(domain=message.domain) for row in message.rows))
    return Frame(kind, number, message, len(data))


def _unpacked(number: int, fields: tuple[Any, ...]) -> Frame:
    """The frame that a packed one stands for."""
    size, packed = _packed(fields)
    data = unpack(packed, size, size_max=FRAME_BYTES_MAX)
    # Looked at before it is decoded, or frames could be packed in frames in frames.
    if not any(data.startswith(encode_uint(kind), 1) for kind in PACKED):
        raise RemoteProtocolError("a packed frame stands for one of another kind")
    frame = decode_frame(data)
    if frame.kind not in PACKED or frame.number != number:
        raise RemoteProtocolError(f"a packed frame {number} stands for frame {frame.number} of kind {frame.kind}")
    return frame
