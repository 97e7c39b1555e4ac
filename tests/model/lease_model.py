"""An exhaustive model of one lease: every order of events of a small cluster, driving `coordination.lease` itself.

Three voters and two proposers. Messages are facts that stay: whatever was sent may be delivered now, later, twice, in
any order, or never. Timers fire whenever they like. Voters and proposers may crash at any moment and come back with
what they had made durable. Time is counted in ticks, on clocks of their own: over the whole run one clock of a proposer
may fall a tick behind and one of a voter may run a tick ahead, which is what `MARGIN` is for.

What is judged, by its own reckoning, in every state:

- two proposers never hold the lease at once, and nothing that one of them started (and that takes `STASIS` at most)
  still runs when the other one has started something;
- each new tenure's token is larger than all before it, and a tenure that was over does not go on;
- a tenure begins, and goes on, only by a majority that says so in that very round.

To keep it small: all times are relative, so states that differ in when they came about are one, and so are states that
differ in the names of voters. Of a voter's answers only yes is modelled: what a refusal leads to (the round is given
up, and the next ballot is higher) may happen at any moment here. That a majority said yes is heard in one event: what
is heard before changes nothing. Each part of a state is kept once (`Parts`), and what one part does worked out once.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Generic, NamedTuple, TypeVar

from crdtsync.coordination.lease import Acceptor, Ask, Bid, BidState, Proposer, Refusal, Step, Terms, Vote

LEASE, MARGIN, STASIS = 4, 1, 2
SCOPE = "s"
VOTERS = 3
NOW = 0  # on every clock, always


class Budget(NamedTuple):
    """How far the search goes."""

    rounds: tuple[int, int] = (1, 1)  # of two steps each, or one for a renewal, that either proposer may begin
    voter_restarts: int = 0
    proposer_restarts: int = 0
    releases: int = 0
    behind: int = 0  # ticks that a proposer's clock may miss
    ahead: int = 0  # extra ticks of a voter's clock
    work: bool = False  # whether holders start work that takes `STASIS`


class Rules(NamedTuple):
    """The code under test; weakened copies take its place to show that the model would notice."""

    acceptor: type[Acceptor] = Acceptor
    proposer: type[Proposer] = Proposer
    margin: int = MARGIN
    stasis: int = STASIS
    silent: bool = True
    durable: bool = True
    own_writer: bool = True  # whether each incarnation has a name of its own
    judge_rounds: bool = True  # off where a weakening is to be caught by its consequences


class Voter(NamedTuple):
    vote: Vote
    durable: int
    silent: int  # for so many ticks more
    said: tuple[bool, bool]  # whether it has said yes to each proposer's present round


class Bidder(NamedTuple):
    bid: Bid
    life: int
    rounds: int  # that it may still begin
    busy: int  # for so many ticks more, of true time


class State(NamedTuple):
    """`bidders`, `voters` and `asks` are numbers in `Parts`."""

    bidders: tuple[int, int]
    voters: tuple[int, ...]  # sorted
    asks: int
    highest: int  # of the tokens so far
    voter_restarts: int
    proposer_restarts: int
    releases: int
    behind: int
    ahead: int


class Violation(Exception):  # noqa: N818 - a finding, not an error of the model
    """The claim that does not hold."""


T = TypeVar("T")


class Parts(Generic[T]):
    """Every different value once, under a number."""

    def __init__(self) -> None:
        self._numbers: dict[T, int] = {}
        self._values: list[T] = []

    def number(self, value: T) -> int:
        found = self._numbers.setdefault(value, len(self._values))
        if found == len(self._values):
            self._values.append(value)
        return found

    def __getitem__(self, number: int) -> T:
        return self._values[number]


class Model:
    def __init__(self, budget: Budget, rules: Rules = Rules()) -> None:  # noqa: B008 - immutable
        self.budget = budget
        self.rules = rules
        self.terms = Terms(LEASE, rules.margin, rules.stasis, renew_ms=1, round_ms=1, backoff_ms=1)
        self.acceptor = rules.acceptor(self.terms)
        self.proposers = {
            (p, life): rules.proposer(self.terms, self._writer(p, life)) for p in (0, 1) for life in range(3)
        }
        self.bidders: Parts[Bidder] = Parts()
        self.voters: Parts[Voter] = Parts()
        self.asks: Parts[frozenset[tuple[int, int, Ask]]] = Parts()
        self._asked = cache(self._ask_voter)
        self._cleared = cache(self._clear)
        self._aged_voter = cache(self._age_voter)
        self._aged_bidder = cache(self._age_bidder)
        self._pruned = cache(self._prune)

    def _writer(self, p: int, life: int) -> str:
        return f"p{p}/a#{life + 1 if self.rules.own_writer else 1}-0000000000000000"

    def first(self) -> State:
        voter = self.voters.number(Voter(Vote.after(0), 0, 0, (False, False)))
        one, other = (
            self.bidders.number(Bidder(self.proposers[p, 0].want(Bid(), NOW), 0, self.budget.rounds[p], 0))
            for p in (0, 1)
        )
        budget = self.budget
        return State(
            (one, other),
            (voter,) * VOTERS,
            self.asks.number(frozenset()),
            0,
            budget.voter_restarts,
            budget.proposer_restarts,
            budget.releases,
            budget.behind,
            budget.ahead,
        )

    def explore(self, states_max: int) -> int:
        """Visit every reachable state, nearest first. Returns how many there are.

        Raises:
            Violation: With the events that lead to it.
        """
        start = self.first()
        came: dict[State, tuple[State, str] | None] = {start: None}
        frontier = [start]
        while frontier:
            following: list[State] = []
            for state in frontier:
                try:
                    for what, after in self.moves(state):
                        if after not in came:
                            came[after] = (state, what)
                            following.append(after)
                            self.judge(after)
                except Violation as violation:
                    raise Violation(f"{violation}, after\n{self._path(came, state)}") from None
            assert len(came) <= states_max, f"more than {states_max} states: the model has grown"
            frontier = following
        return len(came)

    @staticmethod
    def _path(came: dict[State, tuple[State, str] | None], state: State) -> str:
        steps = []
        while (step := came[state]) is not None:
            state, what = step
            steps.append(what)
        return "\n".join(reversed(steps))

    # Judging -----------------------------------------------------------------------------------

    def judge(self, state: State) -> None:
        one, other = (self.bidders[b] for b in state.bidders)
        if one.bid.held(NOW) and other.bid.held(NOW):
            raise Violation("two valid holders")
        if one.busy and other.busy:
            raise Violation("what two holders started runs at once")

    def _judge_grant(self, state: State, was: Bid, bid: Bid, said: int) -> None:
        if bid.token != was.token and bid.token <= state.highest:
            raise Violation(f"token {bid.token} after token {state.highest}")
        if bid.token == was.token and not was.held(NOW):
            raise Violation("a tenure that was over goes on")
        if self.rules.judge_rounds and 2 * said <= VOTERS:
            raise Violation("a grant by a minority")

    # Moves -------------------------------------------------------------------------------------

    def moves(self, state: State) -> Iterator[tuple[str, State]]:
        for p in (0, 1):
            yield from self._bidder_moves(state, p)
        for place, number in enumerate(state.voters):
            if place == 0 or number != state.voters[place - 1]:  # those that look the same do the same
                yield from self._voter_moves(state, place)
        yield from self._ticks(state)

    def _ticks(self, state: State) -> Iterator[tuple[str, State]]:
        bidders = [self._aged_bidder(b, p, 1) for p, b in enumerate(state.bidders)]
        voters = [self._aged_voter(v, 1) for v in state.voters]
        yield "tick", self._with(state, bidders, voters)
        if state.behind:
            for p in (0, 1):
                late = list(bidders)
                late[p] = self._aged_bidder(state.bidders[p], p, 0)
                yield f"tick, missed by p{p}", self._with(state._replace(behind=state.behind - 1), late, voters)
        if state.ahead:
            for place, number in enumerate(state.voters):
                early = list(voters)
                early[place] = self._aged_voter(number, 2)
                yield "tick, two for a voter", self._with(state._replace(ahead=state.ahead - 1), bidders, early)

    def _age_voter(self, number: int, ticks: int) -> int:
        voter = self.voters[number]
        vote = voter.vote._replace(until_ms=voter.vote.until_ms - ticks).at(NOW)
        if vote.accepted is None:
            vote = Vote(vote.promised)
        return self.voters.number(voter._replace(vote=vote, silent=max(0, voter.silent - ticks)))

    def _age_bidder(self, number: int, p: int, ticks: int) -> int:
        bidder = self.bidders[number]
        bid = bidder.bid
        aged = bid._replace(
            started_ms=max(bid.started_ms - ticks, -LEASE) if bid.state is BidState.PROPOSING else 0,
            until_ms=bid.until_ms - ticks if bid.token else 0,
        )
        aged = _bare(self.proposers[p, bidder.life].ended(aged, NOW))
        return self.bidders.number(bidder._replace(bid=aged, busy=max(0, bidder.busy - 1)))

    def _bidder_moves(self, state: State, p: int) -> Iterator[tuple[str, State]]:
        bidder = self.bidders[state.bidders[p]]
        bid, proposer = bidder.bid, self.proposers[p, bidder.life]
        if bid.state is BidState.WAITING and bidder.rounds:
            seen = max(self.voters[v].vote.promised.number for v in state.voters)
            for number in {1, seen + 1}:
                after, ask = proposer.due(bid, SCOPE, NOW, number)
                less = bidder._replace(rounds=bidder.rounds - 1)
                yield f"p{p} begins: {ask}", self._moved_on(state, p, less, after, ask)
        if bid.state in (BidState.PREPARING, BidState.PROPOSING):
            if bidder.rounds:
                after, _ = proposer.due(bid, SCOPE, NOW, 1)
                yield f"p{p} gives up its round", self._moved_on(state, p, bidder, after, None)
            if (heard := self._hears(state, p)) is not None:
                yield f"p{p} hears yes", heard
        if bid.held(NOW):
            if self.budget.work and not bidder.busy and bid.until_ms - self.terms.stasis_ms > NOW:
                yield f"p{p} starts work", self._with_bidder(state, p, bidder._replace(busy=STASIS))
            if state.releases:
                after, ask = proposer.drop(bid, SCOPE)
                left = state._replace(releases=state.releases - 1)
                idle = bidder._replace(busy=0)
                yield f"p{p} releases", self._moved_on(left, p, idle, proposer.want(after, NOW), ask)
        if state.proposer_restarts and bid.number:
            fresh = Bidder(proposer.want(Bid(), NOW), bidder.life + 1, bidder.rounds, 0)
            left = state._replace(proposer_restarts=state.proposer_restarts - 1)
            yield f"p{p} restarts", self._moved_on(left, p, fresh, fresh.bid, None)

    def _hears(self, state: State, p: int) -> State | None:
        """The proposer hears all who said yes; None if that changes nothing."""
        bidder = self.bidders[state.bidders[p]]
        proposer = self.proposers[p, bidder.life]
        bid, following = bidder.bid, None
        ask = Ask(SCOPE, _step(bid), bid.number, bid.round, 0, 0)
        said = 0
        for place, number in enumerate(state.voters):
            if self.voters[number].said[p]:
                said += 1
                answer = self.acceptor.answer(ask, self.voters[number].vote, Refusal.NONE, NOW)._replace(highest=0)
                bid, following = proposer.answered(bid, str(place), answer, VOTERS, NOW)
                if (bid.state, bid.round) != (bidder.bid.state, bidder.bid.round):
                    break
        else:
            return None
        if bid.token and (bid.until_ms, bid.token) != (bidder.bid.until_ms, bidder.bid.token):
            self._judge_grant(state, bidder.bid, bid, said)
            state = state._replace(highest=max(state.highest, bid.token))
        return self._moved_on(state, p, bidder, bid, following)

    def _moved_on(self, state: State, p: int, bidder: Bidder, bid: Bid, ask: Ask | None) -> State:
        """A new round, or none: what voters said before does not count for it."""
        voters = tuple(sorted(self._cleared(v, p) for v in state.voters))
        asks = state.asks
        if ask is not None:
            asks = self.asks.number(self.asks[asks] | {(p, bidder.life, ask)})
        return self._with_bidder(state._replace(voters=voters, asks=asks), p, bidder._replace(bid=_bare(bid)))

    def _clear(self, number: int, p: int) -> int:
        voter = self.voters[number]
        return self.voters.number(voter._replace(said=_set(voter.said, p, False)))

    def _voter_moves(self, state: State, place: int) -> Iterator[tuple[str, State]]:
        number = state.voters[place]
        voter = self.voters[number]
        for p, life, ask in self.asks[state.asks]:
            after = self._asked(number, p, life, ask, self._waits(state, p, life, ask))
            if after != number:
                yield f"p{p} reaches {voter.vote}: {ask}", self._with_voter(state, place, after)
        if state.voter_restarts:
            silent = self.acceptor.silent_until(NOW) if self.rules.silent else 0
            fresh = self.voters.number(voter._replace(vote=Vote.after(voter.durable), silent=silent))
            left = state._replace(voter_restarts=state.voter_restarts - 1)
            yield f"{voter.vote} restarts", self._with_voter(left, place, fresh)

    def _waits(self, state: State, p: int, life: int, ask: Ask) -> bool:
        """Whether the proposer waits for answers to just this."""
        bidder = self.bidders[state.bidders[p]]
        under_way = bidder.bid.state in (BidState.PREPARING, BidState.PROPOSING)
        return under_way and life == bidder.life and (ask.round, ask.step) == (bidder.bid.round, _step(bidder.bid))

    def _ask_voter(self, number: int, p: int, life: int, ask: Ask, waits: bool) -> int:
        voter = self.voters[number]
        if voter.silent:
            return number
        vote, refusal = self.acceptor.asked(voter.vote, self._writer(p, life), ask, NOW)
        durable = max(voter.durable, vote.promised.number) if self.rules.durable else voter.durable
        said = _set(voter.said, p, True) if waits and not refusal else voter.said
        return self.voters.number(voter._replace(vote=vote, durable=durable, said=said))

    def _with_bidder(self, state: State, p: int, bidder: Bidder) -> State:
        bidders = list(state.bidders)
        bidders[p] = self.bidders.number(bidder)
        return self._with(state, bidders, list(state.voters))

    def _with_voter(self, state: State, place: int, number: int) -> State:
        voters = list(state.voters)
        voters[place] = number
        return self._with(state, list(state.bidders), voters)

    def _with(self, state: State, bidders: list[int], voters: list[int]) -> State:
        """Voters have no names: any order of them is the same state."""
        state = state._replace(bidders=(bidders[0], bidders[1]), voters=tuple(sorted(voters)))
        return state._replace(asks=self._pruned(state.asks, state.voters, state.bidders))

    def _prune(self, asks: int, voters: tuple[int, ...], bidders: tuple[int, int]) -> int:
        """Without what no voter would ever do anything for again."""
        known = [self.voters[v] for v in voters]
        spent = min(min(v.durable, v.vote.promised.number) for v in known)
        kept = set()
        for p, life, ask in self.asks[asks]:
            bidder = self.bidders[bidders[p]]
            current = life == bidder.life and ask.round == bidder.bid.round
            if current or ask.number > spent or (ask.step != Step.PREPARE and ask.number == spent):
                kept.add((p, life, ask))
        return self.asks.number(frozenset(kept))


def _step(bid: Bid) -> Step:
    return Step.PREPARE if bid.state is BidState.PREPARING else Step.PROPOSE


def _bare(bid: Bid) -> Bid:
    """Without what makes no difference to what may happen."""
    bid = bid._replace(yes=frozenset(), no=frozenset(), due_ms=0, free_ms=0, tries=0)
    if bid.state is not BidState.PROPOSING:
        bid = bid._replace(started_ms=0, renews=False)
    if bid.state is BidState.WAITING and not bid.held(NOW):
        bid = bid._replace(promised=False)
    return bid


def _set(flags: tuple[bool, bool], place: int, value: bool) -> tuple[bool, bool]:
    return (value, flags[1]) if place == 0 else (flags[0], value)
