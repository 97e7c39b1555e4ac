"""The guide to judging histories works as written, and shows what is printed."""

import json
import re
import subprocess
import sys
from pathlib import Path

from regions.cli import run
from simulator.history_file import MODELS, parse

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs/guides/judge-a-history.md").read_text("utf-8")
REFERENCE = (ROOT / "docs/reference/histories.md").read_text("utf-8")


def block(page, language):
    return re.search(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[1]


def test_the_guides_recorder_makes_one_history_that_is_linearizable_and_one_that_is_not(tmp_path, capsys):
    done = subprocess.run(
        [sys.executable, "-c", block(GUIDE, "python")], capture_output=True, text=True, timeout=60, check=True
    )
    histories = tmp_path / "histories.jsonl"
    histories.write_text(done.stdout)
    assert run(["sim", "judge", str(histories), "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"id": "one copy", "verdict": True},
        {"id": "a copy that lags", "verdict": False},
    ]
    assert run(["sim", "judge", str(histories), "--check"]) == 1
    shown, real = block(GUIDE, "text").splitlines(), capsys.readouterr().out.splitlines()
    # Which read of the copy comes first is chance.
    assert [line.split()[:2] for line in shown] == [line.split()[:2] for line in real]


def test_the_references_example_is_a_history():
    history = parse(json.loads(block(REFERENCE, "json")))
    assert len(history.operations) == 2


def test_the_reference_names_every_model_that_is_judged():
    for model in MODELS:
        assert f"`{model}`" in REFERENCE
