"""The checks of the workflow example must be able to fail: histories that break the order are found."""

from types import SimpleNamespace

import pytest

from crdtsync.events import Claimed, Ended
from crdtsync.identifiers import EventId

EU, US = "eu/a#1-0123456789abcdef", "us/a#1-fedcba9876543210"
PARENT, CHILD = bytes(15) + b"\1", bytes(15) + b"\2"


def claim(task, inputs=()):
    return Claimed(task, 0, None, None, False, (), inputs, 0)


def ended(task, attempt, outcome="ok"):
    return Ended(task, attempt, outcome, False, True, "", b"")


@pytest.fixture
def run(example):
    steps = [example.Step("parent", 1, ()), example.Step("child", 1, (0,))]
    workflow = example.Workflow("two", steps)
    return SimpleNamespace(workflow=workflow, ids=[PARENT, CHILD], index_of={PARENT.hex(): 0, CHILD.hex(): 1})


def history(example, *, seen, outcome="ok", named=True):
    """Region eu runs the parent in its commits 1 and 2, us the child in its commit 1, having seen eu up to `seen`."""
    log = example.Log()
    log._seen = {(EU, 1): {}, (EU, 2): {}, (US, 1): {EU: seen}}
    parent = EventId(10, EU, 1, 0)
    child = EventId(30, US, 1, 0)
    log._add(parent, claim(PARENT), {PARENT, CHILD})
    log._add(EventId(20, EU, 2, 0), ended(PARENT, parent, outcome), {PARENT, CHILD})
    log._add(child, claim(CHILD, ((PARENT, parent),) if named else ()), {PARENT, CHILD})
    return log


def test_a_child_that_had_seen_its_parent_end_is_in_order(example, run):
    assert example.misordered(run, history(example, seen=2), "us") == []


@pytest.mark.parametrize(
    "broken",
    [{"seen": 1}, {"seen": 2, "outcome": "failed"}, {"seen": 2, "named": False}],
    ids=["its end was not known", "it had failed", "the claim does not name it"],
)
def test_a_child_that_started_too_early_is_found(example, run, broken):
    assert example.misordered(run, history(example, **broken), "us") == ["child before parent"]
    assert example.misordered(run, history(example, **broken), "eu") == []  # eu did not run it


@pytest.mark.parametrize("text", ["us", "us@30%", "us@60%..30%", "us@30%..101%", "us@30..60"])
def test_a_cut_that_makes_no_sense_is_refused(example, text):
    import argparse

    with pytest.raises(argparse.ArgumentTypeError, match="REGION@FROM"):
        example.Cut.parse(text)


def test_a_cut_is_read_in_percent(example):
    assert example.Cut.parse("us@30%..60%") == example.Cut("us", 30, 60)
