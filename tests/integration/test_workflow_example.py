"""The workflow example as its user runs it, on a cluster that it starts itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

ROOT = Path(__file__).resolve().parents[2]
FAN = 40


@pytest.fixture
def fan(tmp_path):
    """One step, many beside each other, and one that waits for all of them."""
    tasks = [["split", "split", 2, [], 0, None]]
    tasks += [[f"work{n}", "work", 20, [0], 0, None] for n in range(FAN)]
    tasks += [["join", "join", 0, list(range(1, FAN + 1)), 0, None]]
    path = tmp_path / "fan.json"
    path.write_text(json.dumps({"meta": {}, "tasks": tasks}))
    return path


@pytest.mark.parametrize("cut", ["us@20%..60%", "us@0%..100%"])
def test_a_workflow_survives_a_cut_in_order(fan, cut):
    done = subprocess.run(
        [
            sys.executable,
            "examples/scientific_workflow.py",
            fan,
            "--speedup",
            "20",
            "--slots",
            "4",
            "--cut",
            cut,
            "-o",
            "json",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["steps"] == FAN + 2
    assert report["makespan_s"] >= report["bound_s"] > 0
    assert sum(report["tasks_per_region"].values()) == FAN + 2
    assert any("cut us off" in note for note in report["notes"])
    assert all(check["held"] for check in report["checks"])
