"""One decision, taken once: the synod by which the members agree on the next version of who they are.

Lamport, "Paxos Made Simple", 2001 (the single-decree synod). Each version of the membership is one instance: its voters
are those of the version before, and whatever value a majority of them has accepted under one ballot is the next
membership, for ever. Why not "a majority said yes" (one round)? Two proposals of one version could then split the votes,
and nobody could tell whether the dead voter's vote had decided it.

    prepare(ballot)         a voter promises to take no smaller ballot, and tells what it has accepted so far
    accept(ballot, value)   value: of the largest ballot that the majority told of, else the proposer's own
    decided                 when a majority has accepted one ballot

Differences from the paper: the proposer is its own learner and tells by a record in the log, which everybody learns from;
equal records merge, so it does no harm when two tell it. A voter that has accepted a value and hears of no decision within
a while proposes that value itself (`Ballots` are unique, so the result is the same): a proposer that died leaves nothing
half decided. Proposers that collide wait for a time that is a hash of who they are (no randomness in the core), doubled
with each try.

Sans-IO. Duty of the caller: after `prepare` and `accept` the acceptor's `to_wire()` is on disk before the answer leaves;
a voter that forgot a promise could help to decide twice.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from crdtsync.errors import CorruptLogError
from crdtsync.majority import majority_of

RETRY_MS_MIN: Final = 300  # of a round that met a larger ballot or too few answers
RETRY_MS_MAX: Final = 10_000


class Instance(NamedTuple):
    """What is being decided: the membership of this epoch and version."""

    epoch: int
    version: int


class Ballot(NamedTuple):
    """Ordered, and used by one proposer in one life: its incarnation is in it."""

    round: int
    writer: str


NO_BALLOT: Final = Ballot(0, "")  # smaller than all that are used


class Promise(NamedTuple):
    """A voter's yes to prepare, with the value that it has accepted under the largest ballot so far."""

    ballot: Ballot
    accepted: Ballot  # NO_BALLOT if nothing was
    value: bytes


class Accepted(NamedTuple):
    """A voter's yes to accept."""

    ballot: Ballot


class Refused(NamedTuple):
    """A voter's no to either: it has promised a larger ballot."""

    ballot: Ballot
    promised: Ballot


class Acceptor:
    """One voter's part in one instance."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.promised = NO_BALLOT
        self.accepted = NO_BALLOT
        self.value = b""

    def prepare(self, ballot: Ballot) -> Promise | Refused:
        """Asking again for a ballot that was promised repeats the promise: the answer may have been lost."""
        if ballot < self.promised:
            return Refused(ballot, self.promised)
        self.promised = ballot
        return Promise(ballot, self.accepted, self.value)

    def accept(self, ballot: Ballot, value: bytes) -> Accepted | Refused:
        if ballot < self.promised:
            return Refused(ballot, self.promised)
        self.promised = self.accepted = ballot
        self.value = value
        return Accepted(ballot)

    def to_wire(self) -> tuple[Any, ...]:
        return (*self.instance, *self.promised, *self.accepted, self.value)

    @classmethod
    def from_wire(cls, plain: Any) -> Acceptor:
        """Inverse of `to_wire`. Raises CorruptLogError."""
        shape = (int, int, int, str, int, str, bytes)
        if type(plain) is not tuple or tuple(map(type, plain)) != shape:
            raise CorruptLogError("what this voter promised is not readable on its disk")
        acceptor = cls(Instance(plain[0], plain[1]))
        acceptor.promised, acceptor.accepted = Ballot(plain[2], plain[3]), Ballot(plain[4], plain[5])
        acceptor.value = plain[6]
        return acceptor


class Phase(StrEnum):
    IDLE = "idle"  #: Between two rounds.
    PREPARING = "preparing"  #: Promises are being gathered.
    ACCEPTING = "accepting"  #: Votes are.
    DECIDED = "decided"  #: `value` is the decision.


@dataclass(slots=True)
class Proposer:
    """One proposer's part in one instance, through all its rounds.

    Args:
        writer: This incarnation: what makes its ballots its own.
        voters: Of the membership before; the proposer need not be among them.
        own: What to propose where the voters tell of nothing accepted.
    """

    instance: Instance
    writer: str
    voters: tuple[str, ...]
    own: bytes
    phase: Phase = Phase.IDLE
    ballot: Ballot = NO_BALLOT
    value: bytes = b""
    tries: int = 0
    said: set[str] = field(default_factory=set)  # voters that said yes in this phase
    _seen: int = 0  # the largest round met
    _accepted: Ballot = NO_BALLOT

    @property
    def majority(self) -> int:
        return majority_of(len(self.voters))

    def begin(self) -> Ballot:
        """Start a round with a ballot above all that were met. Ask every voter to prepare it."""
        assert self.phase is not Phase.DECIDED, "it is decided"
        self.ballot = Ballot(self._seen + 1, self.writer)
        self._seen += 1
        self.phase = Phase.PREPARING
        self.tries += 1
        self.said.clear()
        self._accepted, self.value = NO_BALLOT, self.own
        return self.ballot

    def promised(self, voter: str, promise: Promise) -> bool:
        """A promise came. True when the majority has just promised: ask every voter to accept `value`."""
        if self.phase is not Phase.PREPARING or promise.ballot != self.ballot or voter not in self.voters:
            return False
        self.said.add(voter)
        if promise.accepted > self._accepted:
            self._accepted, self.value = promise.accepted, promise.value
        if len(self.said) < self.majority:
            return False
        self.phase = Phase.ACCEPTING
        self.said.clear()
        return True

    def accepted(self, voter: str, accepted: Accepted) -> bool:
        """A vote came. True when it decided: `value` is the next membership."""
        if self.phase is not Phase.ACCEPTING or accepted.ballot != self.ballot or voter not in self.voters:
            return False
        self.said.add(voter)
        if len(self.said) < self.majority:
            return False
        self.phase = Phase.DECIDED
        return True

    def refused(self, refused: Refused) -> None:
        """A voter has promised a larger ballot: this round is over, the next begins above it."""
        self._seen = max(self._seen, refused.promised.round)
        if refused.ballot == self.ballot and self.phase in (Phase.PREPARING, Phase.ACCEPTING):
            self.phase = Phase.IDLE

    def retry_after_ms(self) -> int:
        """How long a round may take, or how long to wait after one that was refused."""
        limit = min(RETRY_MS_MAX, RETRY_MS_MIN << min(self.tries, 16))
        share = int.from_bytes(blake2b(f"{self.writer}|{self.tries}".encode(), digest_size=4).digest(), "big")
        return RETRY_MS_MIN + share % limit

    def missing(self, reachable: Collection[str]) -> int:
        """How many more voters would have to be reachable for a majority."""
        return max(0, self.majority - sum(1 for voter in self.voters if voter in reachable))
