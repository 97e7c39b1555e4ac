"""The checkers of leases notice what must not be, and let pass what may."""

import io
import json

import pytest

from simulator.checkers.lease_histories import LeaseHistories
from simulator.history_file import read
from simulator.linearizability import judge
from tests.simulator.stage import Stage

SCOPE = "queue:default"
LEASE_MS = 10_000


@pytest.fixture
def stage():
    return Stage(LeaseHistories, "eu", "us", "ap")


def grant(stage, name, token, *, lease_ms=LEASE_MS, what="lease.granted", scope=SCOPE):
    until = stage.node(name).now.mono_ms + lease_ms
    stage.notify(name, what, scope=scope, token=token, ballot=token, voters=["eu", "us"], until_mono_ms=until)


def lose(stage, name, token):
    stage.notify(name, "lease.lost", scope=SCOPE, token=token, reason="released", was_ready=True)


def verdicts(stage):
    lines = "".join(json.dumps(history) + "\n" for history in stage.checker.histories())
    return [judge(history.operations, history.initial).linearizable for history in read(io.BytesIO(lines.encode()))]


def test_leases_that_follow_one_another_are_fine(stage):
    grant(stage, "eu", 5)
    stage.wait(LEASE_MS - 1)
    grant(stage, "eu", 5, what="lease.renewed")
    stage.wait(2_000)
    lose(stage, "eu", 5)
    grant(stage, "us", 6)
    stage.wait(LEASE_MS)
    grant(stage, "ap", 7)
    assert stage.found(end=True) == []
    assert verdicts(stage) == [True]


def test_a_lease_that_is_granted_while_another_believes_in_it_is_told(stage):
    grant(stage, "eu", 5)
    stage.wait(LEASE_MS - 1)
    grant(stage, "us", 6)
    stage.wait(LEASE_MS)
    lose(stage, "eu", 5)
    assert stage.found(end=True) == ["EXCL-8"]
    assert verdicts(stage) == [False]


def test_a_renewal_prolongs_the_belief(stage):
    grant(stage, "eu", 5)
    stage.wait(6_000)
    grant(stage, "eu", 5, what="lease.renewed")
    stage.wait(6_000)
    grant(stage, "us", 6)
    assert stage.found(end=True) == ["EXCL-8"]


def test_a_holder_believes_by_its_own_clock(stage):
    grant(stage, "eu", 5)
    stage.node("eu").clock.drift(-100_000, stage.world.kernel.now_us)  # a tenth too slow
    stage.wait(LEASE_MS + 500)
    grant(stage, "us", 6)
    assert stage.found(end=True) == ["EXCL-8"]


@pytest.mark.parametrize("wait_ms, found", [(LEASE_MS - 1, ["EXCL-8"]), (LEASE_MS + 1, [])])
def test_a_holder_that_crashed_holds_on_until_the_end_because_its_workers_do(stage, wait_ms, found):
    grant(stage, "eu", 5)
    stage.trace.add("node.crash", "eu", "eu", ("killed",))
    stage.wait(wait_ms)
    grant(stage, "us", 6)
    assert stage.found(end=True) == found


def test_scopes_have_nothing_to_do_with_one_another(stage):
    grant(stage, "eu", 5)
    grant(stage, "us", 5, scope="queue:other")
    assert stage.found(end=True) == []
    assert verdicts(stage) == [True, True]
