"""What the workflow example reads, and what it computes from it before anything runs."""

import gzip
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GIVEN = ROOT.parent / "shared" / "data" / "workflows"


def write(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


OLD = {  # up to 1.4: everything in one list, references by name
    "schemaVersion": "1.3",
    "workflow": {
        "tasks": [
            {"name": "split", "runtime": 2, "parents": [], "children": ["left", "right"]},
            {"name": "left", "runtime": 5.5, "parents": ["split"]},
            {"name": "right", "runtime": 1, "parents": []},
            {"name": "join", "runtime": 0.5, "parents": ["left", "right"]},
        ]
    },
}
NEW = {  # from 1.5 on: the graph here, the times there, references by id
    "schemaVersion": "1.5",
    "workflow": {
        "specification": {
            "tasks": [
                {"name": "split", "id": "s", "parents": [], "children": ["l", "r"]},
                {"name": "work", "id": "l", "parents": ["s"], "children": ["j"]},
                {"name": "work", "id": "r", "parents": ["s"], "children": ["j"]},
                {"name": "join", "id": "j", "parents": ["l", "r"], "children": []},
            ]
        },
        "execution": {
            "tasks": [
                {"id": "j", "runtimeInSeconds": 0.5},
                {"id": "r", "runtimeInSeconds": 1},
                {"id": "l", "runtimeInSeconds": 5.5},
                {"id": "s", "runtimeInSeconds": 2},
            ]
        },
    },
}
COMPACT = {
    "meta": {"name": "diamond"},
    "tasks": [
        ["s", "split", 2, [], 0, None],
        ["l", "work", 5.5, [0], 0, None],
        ["r", "work", 1, [0], 0, None],
        ["j", "join", 0.5, [1, 2], 0, None],
    ],
}


@pytest.mark.parametrize("content", [OLD, NEW, COMPACT], ids=["wfformat-1.3", "wfformat-1.5", "compact"])
def test_all_forms_of_one_workflow_read_alike(example, tmp_path, content):
    workflow = example.read_workflow(write(tmp_path / "diamond.json", content))
    assert workflow.name == "diamond"
    assert [step.parents for step in workflow.steps] == [(), (0,), (0,), (1, 2)]
    assert [step.runtime_s for step in workflow.steps] == [2, 5.5, 1, 0.5]
    assert (workflow.edges, workflow.levels, workflow.total_s, workflow.critical_path_s) == (4, 3, 9, 8)


def test_a_gzipped_file_is_recognised_by_its_content(example, tmp_path):
    path = tmp_path / "diamond.json"
    path.write_bytes(gzip.compress(json.dumps(COMPACT).encode()))
    assert len(example.read_workflow(path).steps) == 4


def test_in_version_1_4_ids_go_before_names_that_several_tasks_share(example, tmp_path):
    tasks = [
        {"name": "work", "id": "w1", "runtimeInSeconds": 1, "parents": []},
        {"name": "work", "id": "w2", "runtimeInSeconds": 1, "parents": ["w1"]},
    ]
    workflow = example.read_workflow(write(tmp_path / "w.json", {"workflow": {"tasks": tasks}}))
    assert [step.parents for step in workflow.steps] == [(), (0,)]


@pytest.mark.parametrize(
    "content, reason",
    [
        ({"workflow": {"tasks": [{"name": "a", "runtime": 1, "parents": ["b"]}]}}, "'b'"),
        ({"workflow": {"tasks": [{"name": "a", "parents": []}]}}, "no run time"),
        ({"workflow": {"specification": {"tasks": []}}}, "never run"),
        ({"tasks": [["a", "a", 1, [1]], ["b", "b", 1, [0]]]}, "circle"),
        ({"tasks": [["a", "a", 1, [7]]]}, "parent number 7"),
        ({"tasks": [["a"]]}, "cannot be read"),
        ({"steps": []}, "neither"),
        ([], "neither"),
    ],
)
def test_what_is_no_workflow_is_refused_with_the_reason(example, tmp_path, content, reason):
    with pytest.raises(example.NotAWorkflowError, match=reason):
        example.read_workflow(write(tmp_path / "bad.json", content))


def test_what_is_no_json_is_refused(example, tmp_path):
    (tmp_path / "bad.json").write_bytes(b"\x1f\x8bnot gzip")
    with pytest.raises(example.NotAWorkflowError, match="not JSON"):
        example.read_workflow(tmp_path / "bad.json")


# The figures were computed independently of this code: tasks, edges, levels, total and critical path in seconds.
@pytest.mark.skipif(not GIVEN.is_dir(), reason="the recorded workflows are not part of the repository")
@pytest.mark.parametrize(
    "file, figures",
    [
        ("srasearch-chameleon-10a-001", (22, 30, 3, 6996.779, 1005.858)),
        ("sarek-dirt02-001", (26, 50, 10, 393.226, 309.657)),
        ("atacseq-dirt02-001", (265, 593, 17, 7799.574, 936.159)),
        ("epigenomics-chameleon-ilmn-2seq-50k-001", (515, 639, 9, 8790.647, 164.37)),
        ("1000genome-chameleon-22ch-250k-001", (902, 1166, 3, 53409.625, 313.98)),
        ("seismology-chameleon-1100p-001", (1101, 1100, 2, 584.776, 5.445)),
        ("montage-chameleon-2mass-05d-001", (1738, 4698, 8, 8694.654, 102.43)),
    ],
)
def test_recorded_workflows_have_the_known_figures(example, file, figures):
    tasks, edges, levels, total_s, critical_path_s = figures
    workflow = example.read_workflow(GIVEN / f"{file}.json.gz")
    assert (len(workflow.steps), workflow.edges, workflow.levels) == (tasks, edges, levels)
    assert workflow.total_s == pytest.approx(total_s, abs=0.001)
    assert workflow.critical_path_s == pytest.approx(critical_path_s, abs=0.001)
    seen = set()
    for index in workflow.order:
        assert seen.issuperset(workflow.steps[index].parents)
        seen.add(index)
    assert len(seen) == tasks
