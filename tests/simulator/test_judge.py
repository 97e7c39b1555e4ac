"""`crdtsync sim judge`, as programs and people use it."""

import gzip
import json

import pytest

from regions.cli import run

WRITE = [[0, "invoke", "write", 3], [0, "ok", "write", 3]]
READ = [[1, "invoke", "read", None], [1, "ok", "read", 3]]
STALE = [[1, "invoke", "read", None], [1, "ok", "read", None]]


def record(name, *ops, model="register"):
    return {"id": name, "model": model, "ops": [entry for part in ops for entry in part]}


def hard(size=14):
    """Writes that are all open at once, and a read of what none of them wrote."""
    invoked = [[process, "invoke", "write", process] for process in range(size)]
    answered = [[process, "ok", "write", process] for process in range(size)]
    return record("hard", invoked, [["r", "invoke", "read", None], ["r", "ok", "read", "?"]], answered)


@pytest.fixture
def file(tmp_path):
    def make(*records):
        path = tmp_path / "histories.jsonl.gz"
        path.write_bytes(gzip.compress("".join(json.dumps(record) + "\n" for record in records).encode()))
        return str(path)

    return make


def test_programs_get_an_array_of_ids_and_verdicts(file, capsys):
    path = file(record("good", WRITE, READ), record("bad", WRITE, STALE), record("queue", model="queue"))
    assert run(["sim", "judge", path, "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"id": "good", "verdict": True},
        {"id": "bad", "verdict": False},
        {"id": "queue", "verdict": "unknown"},
    ]


def test_people_are_told_which_answer_nothing_explains(file, capsys):
    assert run(["sim", "judge", file(record("good", WRITE, READ), record("bad", WRITE, STALE))]) == 0
    out, err = capsys.readouterr()
    assert 'nothing explains the answer at 3: [1, "ok", "read", null]' in out
    assert "2 histories: 1 linearizable, 1 not, 0 unknown" in err


@pytest.mark.parametrize("option", [("--states-max", "500"), ("--time", "0.001")])
def test_a_search_that_is_cut_short_is_unknown_and_says_by_what(file, capsys, option):
    path = file(hard(), record("good", WRITE, READ))
    assert run(["sim", "judge", path, *option]) == 0
    assert f"cut short by {' '.join(option)}" in capsys.readouterr().out
    assert run(["sim", "judge", path, *option, "-o", "json"]) == 0
    assert [row["verdict"] for row in json.loads(capsys.readouterr().out)] == ["unknown", True]


def test_check_makes_a_verdict_other_than_true_a_failure_and_still_prints_all(file, capsys):
    assert run(["sim", "judge", "--check", file(record("good", WRITE, READ))]) == 0
    for other in (record("bad", WRITE, STALE), record("queue", model="queue")):
        capsys.readouterr()
        assert run(["sim", "judge", "--check", "-o", "json", file(other, record("good", WRITE, READ))]) == 1
        assert [row["id"] for row in json.loads(capsys.readouterr().out)] == [other["id"], "good"]


def test_a_malformed_line_is_a_usage_error_that_names_it(tmp_path, capsys):
    path = tmp_path / "histories.jsonl"
    path.write_text(json.dumps(record("good", WRITE, READ)) + "\nhere\n")
    assert run(["sim", "judge", str(path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: line 2 is not JSON: Expecting value at column 1\n")
    assert run(["sim", "judge", str(path), "-o", "json"]) == 2
    assert json.loads(capsys.readouterr().err)["error"]["line"] == 2


def test_a_file_that_is_not_there_is_a_usage_error(capsys):
    assert run(["sim", "judge", "no such file"]) == 2
    assert "no such file" in capsys.readouterr().err


def test_an_empty_file_has_no_histories(tmp_path, capsys):
    path = tmp_path / "empty"
    path.touch()
    assert run(["sim", "judge", str(path), "-o", "json"]) == 0
    assert capsys.readouterr().out == "[]\n"


def test_the_leases_of_a_simulated_run_are_written_and_judged(tmp_path, monkeypatch, capsys):
    (tmp_path / "q.py").write_text(
        "from crdtsync import App\n\napp = App('q')\n\n\n@app.task(partition='quorum')\nasync def strike(ctx) -> int:\n"
        "    return ctx.fence\n"
    )
    (tmp_path / "q.toml").write_text(
        'name = "q"\napp = "q.py:app"\nduration = "30s"\nregions = ["eu", "us", "ap"]\n\n[[load]]\ntask = "strike"\n'
        'arrivals = { shape = "constant", per_s = 1, until = "15s" }\n'
    )
    monkeypatch.chdir(tmp_path)
    assert run(["sim", "run", "q.toml", "--histories", "leases.jsonl.gz"]) == 0
    capsys.readouterr()
    assert run(["sim", "judge", "--check", "leases.jsonl.gz", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"id": "q seed 0: queue:default", "verdict": True}]
