"""One link to one peer region: its states as a table, its frame numbers, and who may speak at all.

The session decides whether a frame may come now; what the frame means is gossip's. All transitions are in the table:
the code below looks them up, and whatever the table does not name is a `RemoteProtocolError`, which closes the link.

    CLOSED --connected--> GREETING --hello--> OPEN --close, bye, refused--> CLOSING --disconnected--> CLOSED

Both sides send Hello at once and open when the other's has come; neither waits for an answer to its own.

**Who is there.** The session knows a peer by the region that the driver names, so the driver must know it before the
first frame: the dialler says in its request who it is, and both ends keep one link per pair (`regions.transport.peers`).
The Hello then repeats the region inside the protocol, where a certificate can be held against it.

**Numbers.** Frames count from 1 on each link. A number at or below one already seen is a replay and is dropped; a
number further ahead than the next means that frames were lost, which is counted and told to the peer. A websocket does
neither, but proxies, simulators and half-written drivers do, and every delta-coded vector rests on knowing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from crdtsync.coordination.membership import FOUNDING_VERSION, Membership, MemberState
from crdtsync.errors import RemoteProtocolError
from crdtsync.identifiers import Domain, RegionId, WriterId, region_of
from crdtsync.protocol import features
from crdtsync.protocol.peer_messages import (
    PEER_PROTOCOL_VERSION,
    Bye,
    Hello,
    HelloRefused,
    PeerMessage,
    decode_frame,
    encode_frame,
)


class SessionState(StrEnum):
    CLOSED = "closed"  #: No link.
    GREETING = "greeting"  #: Our Hello is out, theirs has not come.
    OPEN = "open"  #: Both Hellos were accepted.
    CLOSING = "closing"  #: One side has ended it; what is still in flight is ignored until the driver says it is gone.


class SessionEvent(StrEnum):
    CONNECTED = "connected"  #: The driver has a link. If there was one, it has replaced it.
    HELLO = "hello"  #: A Hello that we accept.
    REFUSED = "refused"  #: The peer will not speak with us.
    TRAFFIC = "traffic"  #: Any other frame of the protocol, of unknown kind too.
    BYE = "bye"  #: The peer leaves.
    CLOSE = "close"  #: We end it: a refusal, an error of theirs, a timeout, a cut.
    DISCONNECTED = "disconnected"  #: The driver has no link any more.


_S, _E = SessionState, SessionEvent
TRANSITIONS: Final[dict[SessionState, dict[SessionEvent, SessionState]]] = {
    _S.CLOSED: {
        _E.CONNECTED: _S.GREETING,
        _E.DISCONNECTED: _S.CLOSED,
    },
    _S.GREETING: {
        _E.CONNECTED: _S.GREETING,
        _E.HELLO: _S.OPEN,
        _E.REFUSED: _S.CLOSING,
        _E.BYE: _S.CLOSING,
        _E.CLOSE: _S.CLOSING,
        _E.DISCONNECTED: _S.CLOSED,
    },
    _S.OPEN: {
        _E.CONNECTED: _S.GREETING,
        _E.REFUSED: _S.CLOSING,  # our Hello can be refused after theirs was accepted here
        _E.TRAFFIC: _S.OPEN,
        _E.BYE: _S.CLOSING,
        _E.CLOSE: _S.CLOSING,
        _E.DISCONNECTED: _S.CLOSED,
    },
    _S.CLOSING: {
        _E.CONNECTED: _S.GREETING,
        _E.HELLO: _S.CLOSING,
        _E.REFUSED: _S.CLOSING,
        _E.TRAFFIC: _S.CLOSING,
        _E.BYE: _S.CLOSING,
        _E.CLOSE: _S.CLOSING,
        _E.DISCONNECTED: _S.CLOSED,
    },
}
assert TRANSITIONS.keys() == set(SessionState)


class Refusal(StrEnum):
    """Why a Hello is not accepted. The value travels."""

    VERSION = "version"  #: Another protocol version; or one that cannot follow a membership that has changed.
    CLUSTER = "cluster"  #: Another cluster's name: two clusters must never mix.
    NOT_MEMBER = "not_member"  #: A region that is not in the member list.
    IDENTITY = "identity"  #: Not the region that the link is to, or a writer of another region.
    FORGOTTEN = "forgotten"  #: A region that was forgotten, or is being: it has no part in the cluster any more.
    NOT_JOINING = "not_joining"  #: A region that was added, whose node was not told that it joins.
    SAME_REGION = "same_region"  #: Another incarnation of this region is alive: an operator must say which stays.
    SELF = "self"  #: A node that has dialled itself.
    CUT = "cut"  #: An operator has cut the link (`region cut`).


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a replica is towards its peers."""

    cluster: str
    region: RegionId
    writer: WriterId
    membership: Membership
    domains: tuple[Domain, ...]
    features: int = 0

    def hello(self, granted: int) -> Hello:
        return Hello(
            PEER_PROTOCOL_VERSION,
            self.cluster,
            self.region,
            self.writer,
            self.features,
            self.membership.stamp,
            self.domains,
            granted,
        )

    def refusal(self, hello: Hello, linked_to: RegionId) -> Refusal | None:
        """Why not to speak with the sender of `hello`, who came over the link to `linked_to`; None if all is well.

        The order matters: the first reason is the one that helps whoever reads it most.
        """
        if hello.version != PEER_PROTOCOL_VERSION:
            return Refusal.VERSION
        if hello.cluster != self.cluster:
            return Refusal.CLUSTER
        if hello.writer == self.writer:
            return Refusal.SELF
        if hello.region != region_of(hello.writer):
            return Refusal.IDENTITY
        if hello.region == self.region:
            return Refusal.SAME_REGION
        if self.membership.has_lost(hello.region):
            return Refusal.FORGOTTEN
        if hello.region not in self.membership.states:
            return Refusal.NOT_MEMBER
        if not self.can_follow(hello):
            return Refusal.VERSION
        if self._is_no_joiner(hello):
            return Refusal.NOT_JOINING
        if hello.region != linked_to:
            return Refusal.IDENTITY
        return None

    def can_follow(self, hello: Hello) -> bool:
        """Whether its sender reads what this cluster's log says of its members: one that does not would go on counting by
        the founders, and settle, own and vote by them."""
        changed = self.membership.stamp > FOUNDING_VERSION and self.features & features.MEMBERSHIP
        return not changed or bool(hello.features & features.MEMBERSHIP)

    def _is_no_joiner(self, hello: Hello) -> bool:
        """Whether it takes itself for a founder, of a cluster that it has never heard of: what it writes rests on nothing."""
        if self.membership.states.get(hello.region) is not MemberState.JOINING:
            return False
        return FOUNDING_VERSION <= hello.members_version < self.membership.since[hello.region]


class Session:
    """State and frame numbers of the link to one peer. One object per link: a new link starts a new one."""

    def __init__(self, peer: RegionId) -> None:
        self.peer = peer
        self.state = SessionState.CLOSED
        self.hello: Hello | None = None  # theirs, once accepted
        self.sent = 0  # number of our last frame
        self.seen = 0  # number of their last frame processed
        self.missed = 0  # frames of theirs that never came

    def step(self, event: SessionEvent) -> None:
        """Take `event` as the table says.

        Raises:
            RemoteProtocolError: If it is not legal now. The state is unchanged.
        """
        after = TRANSITIONS[self.state].get(event)
        if after is None:
            raise RemoteProtocolError(f"{event} is not allowed while {self.state}", state=self.state, event=event)
        self.state = after

    @property
    def is_open(self) -> bool:
        return self.state is SessionState.OPEN

    def encode(self, message: PeerMessage) -> bytes:
        """The next frame of this link. Raises LocalProtocolError if it is too large, and there was none."""
        frame = encode_frame(self.sent + 1, message)
        self.sent += 1
        return frame

    def decode(self, data: bytes) -> tuple[SessionEvent, PeerMessage | None, int] | None:
        """What a frame is to this session, its message, its unpacked size; None for a replay, which changes nothing.

        The message is None if its kind is unknown to this version.

        Raises:
            RemoteProtocolError: If `data` is no frame. Nothing has changed.
        """
        frame = decode_frame(data)
        if frame.number <= self.seen:
            return None
        self.missed += frame.number - self.seen - 1
        self.seen = frame.number
        return _EVENT_OF.get(type(frame.message), SessionEvent.TRAFFIC), frame.message, frame.size


_EVENT_OF: Final[dict[type, SessionEvent]] = {
    Hello: SessionEvent.HELLO,
    HelloRefused: SessionEvent.REFUSED,
    Bye: SessionEvent.BYE,
}
