"""The keys that programs rely on are described, and what is described exists."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from crdtsync import views
from crdtsync.events import Claimed, Ended, Options, Submitted
from crdtsync.history import Facts
from crdtsync.identifiers import EventId, TaskId, WriterId
from crdtsync.resolve import resolve
from regions.cli import cli
from simulator import Region, Scenario, Violation, World
from simulator.mutants import Hunt
from simulator.sweep import Summary

PAGE = (Path(__file__).resolve().parents[2] / "docs/reference/json.md").read_text("utf-8")
TASK = TaskId(bytes(16))
WRITER = WriterId("eu/a#1-0123456789abcdef")


def described(heading):
    """Words in backticks in the section that begins with `heading`."""
    section = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]
    return set(re.findall(r"[a-z_]+", " ".join(re.findall(r"`([^`]+)`", section))))


@pytest.fixture
def facts():
    options = Options("takeover", 10, 5, 1_000, 60_000, 2_000, "loses", "", 0, 60_000, 86_400_000, ())
    submission, claim, end = (EventId(number, WRITER, number, 0) for number in (1, 2, 3))
    facts = Facts()
    facts.add(submission, Submitted(TASK, "charge", b"", "eu", "default", 5, 0, 0, "", 0, (), (), None, None, options))
    facts.add(claim, Claimed(TASK, 0, submission, None, False, (), (), 0))
    facts.add(end, Ended(TASK, claim, "ok", False, True, "", b"\xf6"))
    return facts


def test_every_key_of_a_task_and_of_its_attempts_is_described(facts):
    record = views.task_record(TASK, resolve(facts))
    words = described("task show, task wait, task list")
    assert set(record) <= words
    assert set(record["attempts"][0]) <= words


def test_every_kind_of_history_is_described(facts):
    assert set(views.HISTORY_NAMES.values()) <= described("task history")
    assert {"at", "kind", "region", "id"} <= set(views.history_records(facts)[0])


def test_every_key_that_the_simulator_prints_is_described():
    result = World(Scenario("a test", (Region("eu"),), duration_ms=1_000), 1).run().to_plain()
    example = json.loads(re.search(r"## sim run\n\n```json\n(.*?)```", PAGE, re.DOTALL)[1])
    assert list(example) == list(result)
    assert list(example["tasks"]) == list(result["tasks"])
    assert set(example["violations"][0]) == set(Violation("TASK-1", 0.0, "text", task="1f").to_plain())
    assert set(Summary().to_plain()) <= described("sim sweep")
    assert set(Hunt("one", found=True, seeds=1, invariant="").to_plain()) <= described("sim mutants")


@pytest.mark.parametrize("option", [[], ["--faults"], ["--wants"]])
def test_every_key_of_the_simulators_lists_is_described(option):
    listed = CliRunner().invoke(cli, ["sim", "list", *option, "-o", "json"], standalone_mode=False)
    assert set(json.loads(listed.stdout)[0]) <= described("sim list")
