"""The lease rules hold in every order of events of a small cluster, and weakening any of them is found.

The real code runs in the model. The second half is what gives the first half its worth: one weakened copy of the code,
or of how it is used, per rule, and the claim that breaks then.
"""

from __future__ import annotations

import pytest

from crdtsync.coordination.lease import Acceptor, Ballot, Bid, Proposer, Refusal, Vote
from tests.model.lease_model import Budget, Model, Rules, Violation

EXACT = Rules(margin=0)  # for worlds without drift: what margins would hide shows at once


def test_two_proposers_never_hold_the_lease_at_once() -> None:
    Model(Budget(), EXACT).explore(100_000)


@pytest.mark.slow
@pytest.mark.parametrize(
    "budget",
    [
        Budget(work=True),
        Budget(rounds=(2, 1)),
        Budget(voter_restarts=1),
        Budget(rounds=(2, 1), proposer_restarts=1),
        Budget(rounds=(2, 1), releases=1),
        Budget(behind=1, ahead=1, work=True),
    ],
    ids=["work", "renewal", "voter restarts", "proposer restarts", "release", "drift"],
)
@pytest.mark.timeout(900)
def test_nor_do_they_whatever_else_befalls_them(budget: Budget) -> None:
    Model(budget).explore(3_000_000)


class LateTimer(Proposer):
    """Counts its lease from when the votes were in, not from before it asked."""

    def _granted(self, bid: Bid, scope: str, now_ms: int) -> Bid:
        return super()._granted(bid._replace(started_ms=now_ms), scope, now_ms)


class RenewsInAMinority(Proposer):
    def _won(self, bid: Bid, members: int) -> bool:
        return len(bid.yes) >= 1 if bid.token else super()._won(bid, members)


class GrantsInAMinority(Proposer):
    def _won(self, bid: Bid, members: int) -> bool:
        return len(bid.yes) >= 1


class GoesOnWhenOver(Proposer):
    """A renewal that comes too late revives the tenure, under its old token."""

    def _granted(self, bid: Bid, scope: str, now_ms: int) -> Bid:
        return super()._granted(bid._replace(renews=False), scope, now_ms)


class PromisesAnything(Acceptor):
    """Promises a ballot that is no higher than those before."""

    def _prepare(self, vote: Vote, ballot: Ballot) -> tuple[Vote, Refusal]:
        if vote.accepted is not None and vote.accepted.writer != ballot.writer:
            return vote, Refusal.HELD
        return vote._replace(promised=ballot), Refusal.NONE


class AcceptsAnything(Acceptor):
    """Accepts a lease under a ballot that it has not promised, or promised no longer."""

    def _propose(self, vote: Vote, ballot: Ballot, ask: object, now_ms: int) -> tuple[Vote, Refusal]:
        return super()._propose(vote._replace(promised=ballot), ballot, ask, now_ms)  # type: ignore[arg-type]


class ForgetsWhoHolds(Acceptor):
    """Promises although somebody else's lease is not over."""

    def _prepare(self, vote: Vote, ballot: Ballot) -> tuple[Vote, Refusal]:
        return super()._prepare(vote._replace(accepted=None), ballot)


TWO_HOLDERS = "two valid holders"
TOKENS = r"token \d+ after token \d+"


@pytest.mark.parametrize(
    "budget, rules, claim",
    [
        pytest.param(Budget(voter_restarts=1), EXACT._replace(silent=False), TWO_HOLDERS, id="no silence"),
        pytest.param(Budget(), EXACT._replace(proposer=LateTimer), TWO_HOLDERS, id="timer after sending"),
        pytest.param(Budget(), EXACT._replace(acceptor=ForgetsWhoHolds), TWO_HOLDERS, id="disturbs a holder"),
        pytest.param(Budget(), EXACT._replace(acceptor=AcceptsAnything), TWO_HOLDERS, id="accepts anything"),
        pytest.param(Budget(), EXACT._replace(acceptor=PromisesAnything), TOKENS, id="promises anything"),
        pytest.param(Budget(), EXACT._replace(proposer=GrantsInAMinority), "by a minority", id="grants in a minority"),
        pytest.param(
            Budget(rounds=(2, 1)),
            EXACT._replace(proposer=RenewsInAMinority),
            "by a minority",
            id="renews in a minority",
        ),
        pytest.param(Budget(work=True), EXACT._replace(stasis=0), "runs at once", id="no stasis"),
        pytest.param(
            Budget(rounds=(2, 1), proposer_restarts=1), EXACT._replace(own_writer=False), TOKENS, id="token reused"
        ),
        pytest.param(Budget(behind=1), EXACT, TWO_HOLDERS, id="no margin"),
    ],
)
@pytest.mark.slow
def test_weakening_a_rule_is_found(budget: Budget, rules: Rules, claim: str) -> None:
    with pytest.raises(Violation, match=claim):
        Model(budget, rules).explore(1_000_000)


@pytest.mark.slow
def test_a_ballot_that_is_not_durable_is_found() -> None:
    """Silence alone keeps leases apart, as in the paper; it is the tokens that need a disk."""
    with pytest.raises(Violation, match=TOKENS):
        Model(Budget(voter_restarts=1), EXACT._replace(durable=False)).explore(1_000_000)


@pytest.mark.slow
def test_a_tenure_that_is_revived_is_found() -> None:
    with pytest.raises(Violation, match=f"goes on|{TOKENS}"):
        Model(Budget(rounds=(2, 1)), Rules(proposer=GoesOnWhenOver)).explore(1_000_000)


@pytest.mark.slow
def test_renewals_in_a_minority_end_in_two_holders() -> None:
    """Even if nobody counted the votes: this is what they are counted for."""
    rules = EXACT._replace(proposer=RenewsInAMinority, judge_rounds=False)
    with pytest.raises(Violation, match=TWO_HOLDERS):
        Model(Budget(rounds=(2, 1)), rules).explore(1_000_000)


def test_the_model_finds_a_missing_majority_at_once() -> None:
    with pytest.raises(Violation, match="by a minority"):
        Model(Budget(), EXACT._replace(proposer=GrantsInAMinority)).explore(10_000)
