"""A program that has the trace and its documentation, and nothing of ours, can judge a run."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from simulator import Arrivals, Fault, Load, World
from simulator.bugs import BUGS
from simulator.hunting import GROUNDS
from simulator.source import Source
from tests.simulator.worlds import scenario

JUDGE = Path(__file__).with_name("trace_judge.py")
BY_NAME = {bug.name: bug for bug in BUGS}


def judged(what, seed, folder, *mutants):
    """What the judge says of a run. It runs where it could not import anything of ours if it tried."""
    with (folder / "trace.jsonl").open("w") as out:
        World(what, seed, mutants=mutants, keep=False, trace_to=out).run()
    return findings_of(folder)


def findings_of(folder):
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(JUDGE), "trace.jsonl"],
        cwd=folder,
        env={},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stderr == ""
    findings = done.stdout.splitlines() if done.returncode else []
    assert bool(findings) == bool(done.returncode)
    return findings


def test_the_judge_shares_no_code_with_us():
    imports = [node for node in ast.walk(ast.parse(JUDGE.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in imports if isinstance(node, ast.ImportFrom)}
    assert names == {"json", "sys", "collections", "pathlib"}


SLOW = pytest.mark.slow
RIGHT = [("split_brain", 3), ("cloned_disk", 1), ("rolling_restart", 2)]
RIGHT += [pytest.param(name, seed, marks=SLOW) for name, seed in (("swarm", 3), ("swarm", 7), ("restored_backup", 1))]


@pytest.mark.parametrize("name, seed", RIGHT)
def test_a_run_that_is_right_is_found_right(name, seed, tmp_path):
    assert judged(Source(name).scenario(seed), seed, tmp_path) == []


@pytest.mark.parametrize("ground", ["storm", "drained", "crashes", "forgetful"])
def test_grounds_on_which_bugs_are_hunted_are_found_right_without_them(ground, tmp_path):
    assert judged(GROUNDS[ground](1), 1, tmp_path) == []


@pytest.mark.parametrize(
    "name, family",
    [
        ("acknowledge_before_fsync", "durability"),
        ("gossip_before_fsync", "durability"),
        ("winner_by_end", "one outcome"),
        ("winner_by_arrival", "one outcome"),
        ("digest_not_updated", "one outcome"),
        ("giver_starts_what_it_offered", "exclusivity"),
        ("start_before_parents", "order"),
        ("stamps_go_back_at_a_restart", "order"),
    ],
)
def test_a_planted_bug_is_seen_in_the_trace_alone(name, family, tmp_path):
    bug = BY_NAME[name]
    findings = []
    for seed in range(1, bug.seeds + 1):  # as a hunt does
        findings = findings or judged(GROUNDS[bug.ground](seed), seed, tmp_path, bug)
    assert {finding.partition(":")[0] for finding in findings} >= {family}


def test_tasks_under_a_quorum_are_found_exclusive(tmp_path):
    cuts = [Fault("isolate", at, 12_000, (region,)) for at, region in ((4_000, "ap"), (20_000, "eu"), (36_000, "us"))]
    load = Load("charge", Arrivals(per_s=3), options={"partition": "quorum"})
    what = scenario(*cuts, loads=(load,), heal_ms=50_000, duration_ms=90_000)
    assert judged(what, 1, tmp_path) == []
    records = [json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines()]
    fences = {record["fence"] for record in records if record["kind"] == "effect.done"}
    assert len(fences) > 1
    assert 0 not in fences
    last = next(record for record in reversed(records) if record["kind"] == "effect.done")
    last["fence"] = 1
    with (tmp_path / "trace.jsonl").open("w") as out:
        again = next(record for record in records if record["kind"] == "effect.done")
        last["task"] = again["task"]
        out.writelines(json.dumps(record) + "\n" for record in records)
    assert any("exclusivity" in finding for finding in findings_of(tmp_path))


def test_what_was_lost_with_every_disk_that_had_it_is_no_broken_promise(tmp_path):
    lost = Fault("disk_lost", 2_000, 1_000, ("eu",))
    alone = Fault("isolate", 500, 4_000, ("eu",))
    load = Load("noop", Arrivals("constant", per_s=4), regions=("eu",))
    assert judged(scenario(alone, lost, loads=(load,), heal_ms=6_000), 1, tmp_path) == []
