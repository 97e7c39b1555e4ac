"""One lease of one scope: what a voter answers (`Acceptor`), and how a region gets and keeps it (`Proposer`).

Trencseni, Gazso, Reinhardt, "PaxosLease: Diskless Paxos for Leases", arXiv:1209.4187, 2012: two rounds, as in Paxos.
A proposer asks all voters to *promise* its ballot; when a majority has, and none of it has accepted somebody else, it
asks them to *accept* the lease. Voters forget an accepted lease by their own timers, so nobody has to be told of its
end, and no two clocks have to agree on the time, only on how fast it goes. What the lease says is who holds it.

Where we differ from the paper:

- **Majority** of the current membership. Messages carry its epoch and version; voters refuse those of an older one, and
  answers under another one don't count. Membership changes by one region at a time, so majorities of neighbours meet.
- **Ballots are on disk before an answer leaves.** The paper needs no disk, since leases end by themselves. But tokens
  must grow for ever, and that takes a memory: a voter that forgot its ballots could let an old one win. One number per
  voter is enough for all scopes: the highest ballot answered in any of them. After a restart, and when a scope is
  forgotten to save memory, every scope counts as promised up to it (`Vote.after`).
- **A ballot is a number, and belongs to one incarnation.** An equal number of somebody else is refused. So a number
  wins at most once, and it serves as the fencing token of the tenure that it begins: it is larger than every ballot
  that its majority had answered, and any two majorities meet. Numbers start from the milliseconds of the proposer's
  stamp, so that a voter that lost its disk does not let old ones win, and stay below 2**53, as readers of JSON need it.
- **Silence after a restart** for one maximal lease, as in the paper. It makes up for the forgotten lease only.
- **The timer starts before the request is sent**, on both sides of the margin: the proposer counts its lease from then,
  a voter from when it accepts. All of it on CLOCK_BOOTTIME (`Now.mono_ms`), which counts while the machine sleeps.
  *Drift bound*: no clock may go wrong by more than `DRIFT_PPM` of elapsed time. A proposer stops `margin_ms` before
  the lease is over, a voter goes on for `margin_ms` longer. Beyond the bound fencing is what still holds.
- **Renewal** asks to accept the same ballot again, with a new round number: one round trip, no disk, and the token
  stays. Only answers to that round count; a majority of them moves the end, fewer don't. Where voters have promised a
  higher ballot meanwhile, both steps are taken again with a still higher one; the tenure, and its token, go on.
- **A voter that has accepted a lease refuses promises to others** until that is over, so nobody disturbs a holder. It
  says who holds it and for how long, and tells those that it refused when the holder gives it back.
- **Stasis**: in the last `stasis_ms` the holder starts nothing new, so that what it started is over in time.
- **Release** spends the ballot: a request to accept it that comes late is refused.
- **No livelock**: a proposer that lost a race waits for a time drawn from a hash of who it is and how often it has
  tried, from a range that doubles each time (Boichat et al.; Ethernet). Deterministic, and different for each.

What a grant rests on is checked by an exhaustive model that drives this very code (tests/model).

Pure: states are values, time is an argument. `crdtsync.coordination.leases` keeps them, for many scopes at once.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum, StrEnum
from typing import Final, NamedTuple

from crdtsync.identifiers import region_of
from crdtsync.majority import majority_of

DRIFT_PPM: Final = 5_000  # ten times what NTP slews with, a hundred times what quartz drifts by
NUMBER_MAX: Final = (1 << 53) - 1  # of ballots: milliseconds reach it in the year 287396
BACKOFF_DOUBLINGS_MAX: Final = 4


class Terms(NamedTuple):
    """The times of a lease, in milliseconds. All voters and proposers of a cluster should have the same."""

    lease_ms: int  # what a proposer asks for; voters accept no longer one, and are silent for so long after a start
    margin_ms: int  # by which either side errs on the safe one
    stasis_ms: int
    renew_ms: int  # age at which a lease is renewed
    round_ms: int  # after which a first round without enough answers is given up; later ones wait for longer
    backoff_ms: int  # the first range of waiting times after a lost race

    @classmethod
    def of(cls, lease_ms: int) -> Terms:
        """A third of the lease until it is renewed, two more tries before stasis."""
        return cls(
            lease_ms=lease_ms,
            margin_ms=-(-lease_ms * DRIFT_PPM // 1_000_000) + 1,  # the clock's own rounding is the one
            stasis_ms=lease_ms // 5,
            renew_ms=lease_ms // 3,
            round_ms=lease_ms // 5,
            backoff_ms=max(10, lease_ms // 50),
        )


class Ballot(NamedTuple):
    number: int
    writer: str  # the incarnation whose it is; "" when nobody can use it any more


class Step(IntEnum):
    """What a proposer asks. The value travels."""

    PREPARE = 0  #: Promise me this ballot.
    PROPOSE = 1  #: Accept my lease under it, from now on.
    RELEASE = 2  #: I hold nothing under it any more. Not answered.


class Refusal(StrEnum):
    """Why a voter says no. The value travels."""

    NONE = ""  #: It says yes.
    HELD = "held"  #: Somebody else's lease is not over.
    BALLOT = "ballot"  #: It has answered a ballot that is at least as high.
    SILENT = "silent"  #: It has restarted, or joined, less than a maximal lease ago, or distrusts its disk.
    MEMBERS = "members"  #: The membership is another one there.
    LENGTH = "length"  #: The lease is longer than it allows.
    CROWDED = "crowded"  #: It keeps as many leases as it can.


class Ask(NamedTuple):
    """One request about one scope, to every voter."""

    scope: str
    step: int  # a `Step`
    number: int  # of the ballot
    round: int  # answers repeat it
    token: int  # of the tenure, for display at the voters; 0 before there is one
    lease_ms: int  # of PROPOSE


class Answer(NamedTuple):
    """What one voter says to one `Ask`."""

    scope: str
    step: int
    number: int
    round: int
    refusal: str  # a `Refusal`; "" for yes
    highest: int  # ballot that it has answered in this scope
    holder: str  # region whose lease it has accepted, "" for none
    token: int  # of that lease
    left_ms: int  # for how long it goes on there, or until this voter is no longer silent
    contended: bool  # somebody else was refused here lately because of this lease


# Voters ----------------------------------------------------------------------------------------------------------------


class Vote(NamedTuple):
    """What one voter remembers of one scope."""

    promised: Ballot
    accepted: Ballot | None = None
    token: int = 0  # of the accepted lease
    until_ms: int = 0  # when that is over, on the voter's clock

    @classmethod
    def after(cls, number: int) -> Vote:
        """Of a scope of which nothing is known but that no ballot above `number` was answered."""
        return cls(Ballot(number, ""))

    def at(self, now_ms: int) -> Vote:
        """As it stands now: a lease that is over is forgotten."""
        if self.accepted is not None and now_ms >= self.until_ms:
            return Vote(self.promised)
        return self


class Acceptor:
    """The voter's rules, for any scope. Whoever calls makes `Vote.promised.number` durable before an answer leaves."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms

    def silent_until(self, started_ms: int) -> int:
        """When a voter that restarted may answer again: whatever it had accepted is over."""
        return started_ms + self.terms.lease_ms + self.terms.margin_ms

    def asked(self, vote: Vote, writer: str, ask: Ask, now_ms: int) -> tuple[Vote, Refusal]:
        """What becomes of the vote, and the answer. `writer` is the incarnation that asks."""
        vote = vote.at(now_ms)
        ballot = Ballot(ask.number, writer)
        if ask.step == Step.PREPARE:
            return self._prepare(vote, ballot)
        if ask.step == Step.PROPOSE:
            return self._propose(vote, ballot, ask, now_ms)
        return self._release(vote, ballot), Refusal.NONE

    @staticmethod
    def answer(ask: Ask, vote: Vote, refusal: Refusal, now_ms: int, *, contended: bool = False) -> Answer:
        """What the voter says, with what it knows of the scope beside it."""
        holder, left_ms = "", 0
        if vote.accepted is not None:
            holder, left_ms = region_of(vote.accepted.writer), max(0, vote.until_ms - now_ms)
        return Answer(
            ask.scope,
            ask.step,
            ask.number,
            ask.round,
            refusal,
            vote.promised.number,
            holder,
            vote.token if vote.accepted is not None else 0,
            left_ms,
            contended,
        )

    def _prepare(self, vote: Vote, ballot: Ballot) -> tuple[Vote, Refusal]:
        if vote.accepted is not None and vote.accepted.writer != ballot.writer:
            return vote, Refusal.HELD
        if ballot != vote.promised and ballot.number <= vote.promised.number:
            return vote, Refusal.BALLOT
        return vote._replace(promised=ballot), Refusal.NONE

    def _propose(self, vote: Vote, ballot: Ballot, ask: Ask, now_ms: int) -> tuple[Vote, Refusal]:
        if ask.lease_ms > self.terms.lease_ms:
            return vote, Refusal.LENGTH
        if ballot != vote.promised:
            other = vote.accepted is not None and vote.accepted.writer != ballot.writer
            return vote, Refusal.HELD if other else Refusal.BALLOT
        until_ms = now_ms + ask.lease_ms + self.terms.margin_ms
        return Vote(vote.promised, ballot, ask.token or ask.number, until_ms), Refusal.NONE

    def _release(self, vote: Vote, ballot: Ballot) -> Vote:
        promised, accepted = vote.promised, vote.accepted
        if promised.writer == ballot.writer and promised.number <= ballot.number:
            promised = Ballot(ballot.number, "")
        if accepted is not None and accepted.writer == ballot.writer and accepted.number <= ballot.number:
            return Vote(promised)
        return vote._replace(promised=promised)


# Proposers -------------------------------------------------------------------------------------------------------------


class BidState(StrEnum):
    """Where a region stands with one scope. Whether it holds the lease is another matter: `Bid.held`."""

    IDLE = "idle"  #: Not wanted.
    WAITING = "waiting"  #: Nothing under way until `due_ms`: to try again, or to renew.
    PREPARING = "preparing"  #: Every voter was asked to promise.
    PROPOSING = "proposing"  #: Every voter was asked to accept; the lease counts from that moment.


class BidEvent(StrEnum):
    WANT = "want"
    PREPARE = "prepare"  #: Due, without a ballot that a majority has promised.
    RENEW = "renew"  #: Due, and holding under such a ballot.
    MAJORITY = "majority"  #: Enough voters said yes.
    FAIL = "fail"  #: They cannot any more, or the time for it is over.
    DROP = "drop"  #: Given back, or no longer wanted.


_S, _E = BidState, BidEvent
TRANSITIONS: Final[dict[BidState, dict[BidEvent, BidState]]] = {
    _S.IDLE: {_E.WANT: _S.WAITING, _E.DROP: _S.IDLE},
    _S.WAITING: {_E.WANT: _S.WAITING, _E.PREPARE: _S.PREPARING, _E.RENEW: _S.PROPOSING, _E.DROP: _S.IDLE},
    _S.PREPARING: {_E.WANT: _S.PREPARING, _E.MAJORITY: _S.PROPOSING, _E.FAIL: _S.WAITING, _E.DROP: _S.IDLE},
    _S.PROPOSING: {_E.WANT: _S.PROPOSING, _E.MAJORITY: _S.WAITING, _E.FAIL: _S.WAITING, _E.DROP: _S.IDLE},
}
assert TRANSITIONS.keys() == set(BidState)


class Bid(NamedTuple):
    """What one proposer remembers of one scope. Times are on its own clock."""

    state: BidState = BidState.IDLE
    number: int = 0  # of its ballot
    promised: bool = False  # a majority has promised it
    renews: bool = False  # the round under way asks to accept once more what began or prolonged a tenure
    round: int = 0
    started_ms: int = 0  # before the round's requests were sent
    due_ms: int = 0  # when to do the next thing
    yes: frozenset[str] = frozenset()
    no: frozenset[str] = frozenset()
    tries: int = 0  # rounds lost in a row
    highest: int = 0  # ballot that any voter told of
    free_ms: int = 0  # when somebody else's lease is over, as far as voters told in this round
    token: int = 0  # of the tenure, 0 for none
    until_ms: int = 0  # when that ends, unless renewed

    def held(self, now_ms: int) -> bool:
        return self.token > 0 and now_ms < self.until_ms


class Proposer:
    """The rules by which one incarnation gets and keeps the lease of a scope. Each call answers with the new bid, and
    the request to send to every voter, if any: send it after the call, and count its answers after that."""

    def __init__(self, terms: Terms, writer: str) -> None:
        self.terms = terms
        self.writer = writer

    def want(self, bid: Bid, now_ms: int) -> Bid:
        """Try for it as soon as `due` is called."""
        if bid.state is not BidState.IDLE:
            return bid
        return bid._replace(state=_next(bid, BidEvent.WANT), due_ms=now_ms, tries=0)

    def due(self, bid: Bid, scope: str, now_ms: int, number: int) -> tuple[Bid, Ask | None]:
        """Do what is due: call at `due_ms` or later.

        Args:
            number: Of a ballot above all that this voter knows of and its own stamp, to be used if one is needed.
        """
        if bid.state is BidState.IDLE:
            return bid, None
        if bid.state is not BidState.WAITING:
            return self._fail(bid, scope, now_ms), None
        if bid.promised and bid.held(now_ms):
            return self._propose(bid, BidEvent.RENEW, scope, now_ms)
        bid = bid._replace(
            state=_next(bid, BidEvent.PREPARE),
            number=max(number, bid.number + 1, bid.highest + 1),
            promised=False,
            round=bid.round + 1,
            started_ms=now_ms,
            due_ms=now_ms + self._round_ms(bid),
            yes=frozenset(),
            no=frozenset(),
            free_ms=0,
        )
        return bid, Ask(scope, Step.PREPARE, bid.number, bid.round, bid.token, 0)

    def _propose(self, bid: Bid, event: BidEvent, scope: str, now_ms: int) -> tuple[Bid, Ask]:
        bid = bid._replace(
            state=_next(bid, event),
            promised=True,
            renews=event is BidEvent.RENEW,
            round=bid.round + 1,
            started_ms=now_ms,
            due_ms=now_ms + self._round_ms(bid),
            yes=frozenset(),
            no=frozenset(),
            free_ms=0,
        )
        return bid, Ask(scope, Step.PROPOSE, bid.number, bid.round, bid.token, self.terms.lease_ms)

    def answered(self, bid: Bid, voter: str, answer: Answer, members: int, now_ms: int) -> tuple[Bid, Ask | None]:
        """A voter of the current membership, of `members` regions, has answered. Old and repeated answers do no harm."""
        bid = bid._replace(highest=max(bid.highest, min(answer.highest, NUMBER_MAX)))
        asked = Step.PREPARE if bid.state is BidState.PREPARING else Step.PROPOSE
        under_way = bid.state in (BidState.PREPARING, BidState.PROPOSING)
        if not under_way or (answer.step, answer.number, answer.round) != (asked, bid.number, bid.round):
            return bid, None
        if answer.refusal:
            free_ms = now_ms + answer.left_ms if answer.refusal == Refusal.HELD else 0
            bid = bid._replace(no=bid.no | {voter}, free_ms=max(bid.free_ms, free_ms))
            if members - len(bid.no) < majority_of(members):
                bid = self._fail(bid, answer.scope, now_ms)
            return bid, None
        bid = bid._replace(yes=bid.yes | {voter})
        if not self._won(bid, members):
            return bid, None
        if bid.state is BidState.PREPARING:
            return self._propose(bid, BidEvent.MAJORITY, answer.scope, now_ms)
        return self._granted(bid, answer.scope, now_ms), None

    def _won(self, bid: Bid, members: int) -> bool:
        return len(bid.yes) >= majority_of(members)

    def _granted(self, bid: Bid, scope: str, now_ms: int) -> Bid:
        until_ms = bid.started_ms + self.terms.lease_ms - self.terms.margin_ms
        late = bid.renews and not bid.held(now_ms)  # the tenure is over, and its number begins no second one
        if late or now_ms >= until_ms:  # or the new one would be over already
            return self._fail(bid, scope, now_ms)
        return bid._replace(
            state=_next(bid, BidEvent.MAJORITY),
            token=bid.token if bid.held(now_ms) else bid.number,
            until_ms=until_ms,
            due_ms=bid.started_ms + self.terms.renew_ms,
            tries=0,
        )

    def _fail(self, bid: Bid, scope: str, now_ms: int) -> Bid:
        """The round is lost: wait, for longer each time, unless it was a renewal, which has no time to lose."""
        held = bid.held(now_ms)
        overtaken = bid.highest > bid.number  # voters have promised a higher ballot: this one is of no more use
        wait_ms = 0 if held and overtaken and bid.promised else self.backoff_ms(scope, bid.tries)
        if held:
            wait_ms = min(wait_ms, self.terms.backoff_ms)
        due_ms = max(now_ms + wait_ms, min(bid.free_ms + wait_ms, now_ms + self.terms.lease_ms))
        return bid._replace(
            state=_next(bid, BidEvent.FAIL),
            promised=bid.promised and held and not overtaken,
            due_ms=due_ms,
            tries=bid.tries + 1,
        )

    def freed(self, bid: Bid, scope: str, now_ms: int) -> Bid:
        """A voter says that the holder has given the lease back: try soon, though not all at once."""
        if bid.state is not BidState.WAITING or bid.held(now_ms):
            return bid
        return bid._replace(due_ms=min(bid.due_ms, now_ms + self.backoff_ms(scope, 0)))

    def ended(self, bid: Bid, now_ms: int) -> Bid:
        """The tenure is over unless it still holds; what is under way goes on."""
        return bid if bid.token == 0 or bid.held(now_ms) else bid._replace(token=0, until_ms=0)

    def drop(self, bid: Bid, scope: str) -> tuple[Bid, Ask | None]:
        """Give it back. From this call on it is not held here, whatever becomes of the message."""
        if bid.state is BidState.IDLE:
            return bid, None
        idle = Bid(state=_next(bid, BidEvent.DROP), number=bid.number, round=bid.round, highest=bid.highest)
        return idle, Ask(scope, Step.RELEASE, bid.number, bid.round, bid.token, 0) if bid.number else None

    def _round_ms(self, bid: Bid) -> int:
        """How long to wait for answers: twice as long after each lost round, or a lease that is short for a wide network
        would never be had, since every round would be given up just before its answers come."""
        return min(self.terms.round_ms << min(bid.tries, BACKOFF_DOUBLINGS_MAX), self.terms.lease_ms)

    def backoff_ms(self, scope: str, tries: int) -> int:
        """How long to wait after so many lost rounds: less than `backoff_ms` at first, doubled each time."""
        span_ms = self.terms.backoff_ms << min(tries, BACKOFF_DOUBLINGS_MAX)
        digest = hashlib.blake2b(f"{self.writer}|{scope}|{tries}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % max(1, span_ms)


def _next(bid: Bid, event: BidEvent) -> BidState:
    return TRANSITIONS[bid.state][event]
