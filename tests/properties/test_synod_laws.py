"""The synod decides at most one value per instance, whatever is lost, repeated, reordered, and whoever crashes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crdtsync.coordination.synod import (
    NO_BALLOT,
    Accepted,
    Acceptor,
    Ballot,
    Instance,
    Phase,
    Promise,
    Proposer,
    Refused,
)
from crdtsync.errors import CorruptLogError

SLOT = Instance(0, 2)


@dataclass
class Synod:
    """Voters with disks, proposers without, and a network that does what it likes."""

    voters: tuple[str, ...]
    proposers: int
    durable: bool = True  # False: a voter forgets what it promised when it crashes
    disks: dict[str, Acceptor] = field(default_factory=dict)
    wire: list[tuple[Any, ...]] = field(default_factory=list)
    decided: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.disks = {voter: Acceptor(SLOT) for voter in self.voters}
        self.at = [Proposer(SLOT, f"p{i}#1", self.voters, b"value %d" % i) for i in range(self.proposers)]
        self.lives = [1] * self.proposers

    def begin(self, who: int) -> None:
        proposer = self.at[who]
        if proposer.phase is not Phase.DECIDED:
            ballot = proposer.begin()
            self.wire += [("prepare", who, voter, ballot) for voter in self.voters]

    def crash_proposer(self, who: int) -> None:
        self.lives[who] += 1
        self.at[who] = Proposer(SLOT, f"p{who}#{self.lives[who]}", self.voters, b"value %d" % who)

    def crash_voter(self, voter: str) -> None:
        if self.durable:
            self.disks[voter] = Acceptor.from_wire(self.disks[voter].to_wire())
        else:
            self.disks[voter] = Acceptor(SLOT)

    def deliver(self, at: int, *, keep: bool) -> None:
        if not self.wire:
            return
        index = at % len(self.wire)
        message = self.wire[index] if keep else self.wire.pop(index)
        kind, who, voter, *rest = message
        proposer, acceptor = self.at[who], self.disks[voter]
        match kind:
            case "prepare":
                self.wire.append(("answer", who, voter, acceptor.prepare(rest[0])))
            case "accept":
                self.wire.append(("answer", who, voter, acceptor.accept(*rest)))
            case "answer":
                self.take(proposer, who, voter, rest[0])

    def take(self, proposer: Proposer, who: int, voter: str, answer: Promise | Accepted | Refused) -> None:
        match answer:
            case Promise():
                if proposer.promised(voter, answer):
                    self.wire += [("accept", who, each, proposer.ballot, proposer.value) for each in self.voters]
            case Accepted():
                if proposer.accepted(voter, answer):
                    self.decided.add(proposer.value)
            case Refused():
                proposer.refused(answer)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.integers(0, 2)),
        st.tuples(st.just("deliver"), st.integers(0, 40)),
        st.tuples(st.just("deliver"), st.integers(0, 40)),
        st.tuples(st.just("deliver"), st.integers(0, 40)),
        st.tuples(st.just("repeat"), st.integers(0, 40)),
        st.tuples(st.just("lose"), st.integers(0, 40)),
        st.tuples(st.just("crash_proposer"), st.integers(0, 2)),
        st.tuples(st.just("crash_voter"), st.integers(0, 4)),
    ),
    max_size=120,
)


def play(synod: Synod, story: list[tuple[str, int]]) -> None:
    for what, which in story:
        match what:
            case "begin":
                synod.begin(which % synod.proposers)
            case "deliver":
                synod.deliver(which, keep=False)
            case "repeat":
                synod.deliver(which, keep=True)
            case "lose" if synod.wire:
                synod.wire.pop(which % len(synod.wire))
            case "crash_proposer":
                synod.crash_proposer(which % synod.proposers)
            case "crash_voter":
                synod.crash_voter(synod.voters[which % len(synod.voters)])


@given(st.integers(1, 5), st.integers(1, 3), steps)
@settings(max_examples=300)
def test_at_most_one_value_is_ever_decided(voters: int, proposers: int, story: list[tuple[str, int]]) -> None:
    synod = Synod(tuple(f"v{i}" for i in range(voters)), proposers)
    play(synod, story)
    assert len(synod.decided) <= 1
    # And whoever goes on finds just that value: with all voters there and nobody else about, a round decides.
    synod.wire.clear()
    synod.crash_proposer(0)
    for _ in range(50):
        if synod.at[0].phase is Phase.DECIDED:
            break
        if not synod.wire:
            synod.begin(0)
        synod.deliver(0, keep=False)
    synod.decided.add(synod.at[0].value)
    assert synod.at[0].phase is Phase.DECIDED
    assert len(synod.decided) == 1


def test_a_voter_that_forgets_its_promise_lets_two_values_be_decided() -> None:
    """Why the acceptor is on disk before it answers: the story that goes wrong if it is not."""
    decided = []
    for durable in (True, False):
        synod = Synod(("v0", "v1", "v2"), 2, durable=durable)
        first, second = synod.at
        ballot = first.begin()
        assert not first.promised("v0", synod.disks["v0"].prepare(ballot))  # type: ignore[arg-type]
        assert first.promised("v1", synod.disks["v1"].prepare(ballot))  # type: ignore[arg-type]
        for voter in ("v0", "v1"):
            first.accepted(voter, synod.disks[voter].accept(ballot, first.value))  # type: ignore[arg-type]
        synod.crash_voter("v1")
        other = second.begin()
        other = second.begin()  # above the first's
        for voter in ("v1", "v2"):
            second.promised(voter, synod.disks[voter].prepare(other))  # type: ignore[arg-type]
        decided.append((first.value, second.value))
    assert decided[0][0] == decided[0][1]
    assert decided[1][0] != decided[1][1]


def test_a_ballot_that_comes_too_late_is_refused_with_what_was_promised() -> None:
    acceptor = Acceptor(SLOT)
    high, low = Ballot(3, "b#1"), Ballot(2, "a#1")
    assert acceptor.prepare(high) == Promise(high, NO_BALLOT, b"")
    assert acceptor.prepare(low) == Refused(low, high)
    assert acceptor.accept(low, b"x") == Refused(low, high)
    assert acceptor.prepare(high) == Promise(high, NO_BALLOT, b"")  # the answer may have been lost
    assert acceptor.accept(high, b"y") == Accepted(high)
    assert acceptor.accepted == high


def test_answers_of_who_is_no_voter_do_not_count() -> None:
    proposer = Proposer(SLOT, "p#1", ("v0",), b"value")
    ballot = proposer.begin()
    assert not proposer.promised("stranger", Promise(ballot, NO_BALLOT, b""))
    assert proposer.promised("v0", Promise(ballot, NO_BALLOT, b""))
    assert not proposer.accepted("stranger", Accepted(ballot))
    assert proposer.accepted("v0", Accepted(ballot))


def test_proposers_that_collide_wait_for_different_times() -> None:
    waits = set()
    for name in ("a#1", "b#1", "c#1"):
        proposer = Proposer(SLOT, name, ("v0",), b"value")
        proposer.begin()
        waits.add(proposer.retry_after_ms())
    assert len(waits) == 3


@pytest.mark.parametrize("plain", [None, (), (0, 1, 2), ("0", 1, 0, "", 0, "", b"")])
def test_a_damaged_promise_on_disk_is_never_taken_for_none(plain: Any) -> None:
    with pytest.raises(CorruptLogError):
        Acceptor.from_wire(plain)
