"""Planted bugs are found; those that are quick to find on every run, the rest with the slow tests."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner

from regions.cli import cli
from simulator import mutants
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
    "renew_in_a_minority",
    "sessions_share_a_token",
    "slot_returned_twice",
    "one_vote_changes_the_members",
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


def no_bug(ground, seeds):
    return Bug("none", "no bug", (*INVARIANTS, "CORE-1"), ground, plant=lambda patches: None, seeds=seeds)


@pytest.mark.parametrize("ground", ["calm", "storm", "capped", "paced", "growing", "dwindling"])
def test_a_hunting_ground_without_a_bug_breaks_nothing(ground):
    """Else any bug would count as found there."""
    found = hunt(no_bug(ground, 1))
    assert not found.found, (found.invariant, found.text)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("ground", GROUNDS)
def test_no_hunting_ground_breaks_anything_in_any_seed_of_a_hunt(ground):
    found = hunt(no_bug(ground, max(bug.seeds for bug in BUGS)))
    assert not found.found, (found.invariant, found.text)


def test_the_bug_in_one_replicas_resolve_is_found_by_digests_alone():
    bug = BY_NAME["resolve_differs_in_one_region"]
    assert bug.digest_only
    assert bug.plant_one is not None
    found = hunt(bug)
    assert found.found
    assert found.invariant in ("CONV-1", "CONV-2")


def sim(*arguments):
    return CliRunner().invoke(cli, ["sim", "mutants", *arguments], standalone_mode=False)


def test_the_command_tells_who_was_found_and_by_what():
    done = sim("acknowledge_before_fsync", "hash_input_not_canonical", "-o", "json")
    assert done.return_value == 0
    assert json.loads(done.stdout) == [
        {"mutant": "acknowledge_before_fsync", "found": True, "seeds": 1, "invariant": "DUR-1"},
        {"mutant": "hash_input_not_canonical", "found": True, "seeds": 1, "invariant": "CONV-1"},
    ]


def test_a_mutant_that_survives_fails_the_command(monkeypatch):
    survives = Bug("harmless", "a bug that is none", ("DUR-1",), "calm", plant=lambda patches: None, seeds=1)
    monkeypatch.setattr("simulator.bugs.BUGS", (survives,))
    done = sim()
    assert done.return_value == 1
    assert "SURVIVED: harmless" in done.stderr
    assert json.loads(sim("-o", "json").stdout) == [{"mutant": "harmless", "found": False, "seeds": 1, "invariant": ""}]


def test_ctrl_c_ends_a_hunt_with_what_was_found(monkeypatch):
    hunts = iter([mutants.Hunt("one", found=True, seeds=1, invariant="DUR-1")])

    def impatient(_bug):
        for found in hunts:
            return found
        raise KeyboardInterrupt

    monkeypatch.setattr("simulator.mutants.hunt", impatient)
    done = sim("-o", "json")
    assert done.return_value == 130
    assert [found["mutant"] for found in json.loads(done.stdout)] == ["one"]
    assert f"interrupted after 1 of {len(BUGS)}" in done.stderr


@pytest.mark.timeout(120)
def test_on_a_terminal_a_bar_says_how_far_a_hunt_is_and_ctrl_c_ends_it():
    """On stderr, which stays a terminal when the table goes to a file."""
    ours, theirs = pty.openpty()
    names = [bug.name for bug in BUGS[:3]]
    hunting = subprocess.Popen(
        [sys.executable, "-m", "regions.cli", "sim", "mutants", *names],
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    seen, told = b"", False
    try:
        while True:
            try:
                seen += os.read(ours, 65_536)
            except OSError:  # the other side is closed
                break
            if not told and b"found by" in seen:
                told = True
                hunting.send_signal(signal.SIGINT)
        assert hunting.wait(60) == 130
    finally:
        hunting.kill()
        hunting.wait()
        os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode())
    assert "0/3" in text
    assert names[0] in text
    assert "interrupted after" in text
