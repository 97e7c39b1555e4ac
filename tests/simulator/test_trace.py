from __future__ import annotations

import io
import json
import re
from collections import defaultdict
from pathlib import Path

from simulator import Fault, World
from simulator.trace import SCHEMA
from tests.simulator.worlds import scenario, stormy

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "trace.md"


def written(plan, seed=1):
    out = io.StringIO()
    world = World(plan, seed, keep=False, trace_to=out)
    world.run()
    return world, [json.loads(line) for line in out.getvalue().splitlines()]


def test_every_kind_and_field_stands_in_the_reference():
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    for kind, names in SCHEMA.items():
        row = next(line for line in rows if f"`{kind}`" in line.split("|")[1])
        for name in names:
            assert f"`{name}`" in row, (kind, name)
    named = {kind for row in rows for kind in re.findall(r"`([a-z]+\.?[a-z]*)`", row.split("|")[1])}
    assert named - {"seq", "at_us", "node", "kind", "id", "causes"} == set(SCHEMA)


def test_lines_are_whole_and_causes_lie_before():
    world, lines = written(stormy())
    assert [line["seq"] for line in lines] == list(range(world.trace.count))
    for line in lines:
        assert set(SCHEMA[line["kind"]]) <= line.keys()
        assert all(0 <= cause < line["seq"] for cause in line["causes"]), line
    times = [line["at_us"] for line in lines]
    assert times == sorted(times)


def test_a_program_without_our_code_can_judge_durability_and_one_outcome():
    """What docs/reference/trace.md says, done with nothing but the lines."""
    faults = (
        Fault("kill", 1_800, 600, ("eu",)),
        Fault("disk_drop_tail", 2_500, 700, ("us",)),
        Fault("isolate", 1_500, 2_500, ("ap",)),
    )
    _, lines = written(scenario(*faults, per_s=0.6), seed=4)
    submitted = {}  # (writer, number) -> tasks
    on_disk = defaultdict(set)  # node -> commits
    handed = {}
    promised = set()
    views = defaultdict(dict)
    heads = {}
    for line in lines:
        node = line["node"]
        match line["kind"]:
            case "commit":
                writer, _, number = line["id"].rpartition(":")
                submitted[writer, int(number)] = {
                    event["task"] for event in line["events"] if event["event"] == "Submitted"
                }
            case "disk.write":
                handed[line["seq"]] = [tuple(commit) for commit in line["commits"]]
            case "disk.durable":
                on_disk[node].update(handed[line["causes"][0]])
            case "client.answer" if line["outcome"] == "ok" and isinstance(line["value"], list):
                promised |= {answer["id"] for answer in line["value"] if "created" in answer}
            case "view":
                views[line["id"]][node] = (line["state"], line["winner"], line["result"])
            case "heads":
                heads[node] = (str(line["applied"]), line["digest"])
    assert len(promised) > 5
    for node in ("eu", "us", "ap"):
        stands = set().union(*(submitted.get(commit, set()) for commit in on_disk[node]))
        assert promised <= stands
    assert len(set(heads.values())) == 1
    for task, seen in views.items():
        assert len(set(map(str, seen.values()))) == 1, task


def test_listeners_hear_what_they_asked_for_and_no_more():
    world = World(scenario(loads=()), 1, keep=False)
    heard = []
    world.trace.listen(("node.start",), heard.append)
    world.run()
    assert [record.kind for record in heard] == ["node.start"] * 3
    assert world.trace.records == []
    assert heard[0]["rows"] == 0
    assert heard[0][3] == "node.start"
