"""Planted bugs are found; those that are quick to find on every run, the rest with the slow tests."""

from __future__ import annotations

import pytest

from simulator.bugs import BUGS
from simulator.checkers import INVARIANTS
from simulator.hunting import GROUNDS
from simulator.mutants import Bug, hunt, planted

QUICK = (
    "acknowledge_before_fsync",
    "reuse_of_an_incarnation",
    "hash_input_not_canonical",
    "relay_back",
    "forget_dedup_after_restart",
)
BY_NAME = {bug.name: bug for bug in BUGS}


@pytest.mark.parametrize("name", QUICK)
def test_a_planted_bug_is_found_by_the_invariant_that_it_breaks(name):
    found = hunt(BY_NAME[name])
    assert found.found, BY_NAME[name].text


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(BY_NAME.keys() - set(QUICK)))
def test_every_planted_bug_is_found_within_its_seeds(name):
    found = hunt(BY_NAME[name])
    assert found.found, f"{name} survived {found.seeds} seeds: {BY_NAME[name].text}"


def test_there_are_at_least_25_of_them_and_each_names_what_finds_it():
    assert len(BUGS) >= 25
    for bug in BUGS:
        assert bug.invariants, bug.name
        assert set(bug.invariants) <= {*INVARIANTS, "CORE-1"}, bug.name
        assert bug.ground in GROUNDS, bug.name
        assert (bug.plant is None) != (bug.plant_one is None), bug.name


def test_nothing_of_a_bug_is_left_after_its_run():
    from crdtsync import lifecycle

    truth = lifecycle.outcome_known
    with planted(BY_NAME["late_flag_lies"]):
        assert lifecycle.outcome_known is not truth
    assert lifecycle.outcome_known is truth


@pytest.mark.parametrize("ground", ["calm", "storm"])
def test_a_hunting_ground_without_a_bug_breaks_nothing(ground):
    """Else any bug would count as found there."""
    everything = Bug("none", "no bug", INVARIANTS, ground, plant=lambda patches: None, seeds=1)
    found = hunt(everything)
    assert not found.found, (found.invariant, found.text)
