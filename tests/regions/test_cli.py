import json
import subprocess
import sys

import pytest

from crdtsync import commands, errors
from crdtsync.protocol.values import decode_arguments
from regions import cli
from tests.regions.fake_desk import AnsweringNode

ID = "0198c0d2000070008000000000000001"
RECORD = {"id": ID, "name": "charge", "state": "succeeded", "settled": True, "attempts": [], "result": 7}


def accept(command):
    return [{"id": (spec.id or bytes(16)).hex(), "created": True} for spec in command.specs]


@pytest.fixture
def node(tmp_path):
    answers = {
        commands.Submit: accept,
        commands.Describe: RECORD,
        commands.Await: RECORD,
        commands.ListTasks: {"records": [RECORD], "next": None},
        commands.ListRegions: [{"region": "eu", "self": True, "status": "self", "behind": 0}],
        commands.CutLinks: [{"region": "us", "status": "cut"}],
    }
    with AnsweringNode(tmp_path, answers) as running:
        yield running


@pytest.fixture
def ask(node, capsys, monkeypatch):
    monkeypatch.setenv("CRDTSYNC_NODE", node.url)

    def run(*arguments):
        code = cli.run(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_help_of_every_command_prints(capsys):
    for noun in cli.NOUNS:
        if noun == "demo":
            continue
        assert cli.run([noun, "--help"]) == 0
        verbs = [line.split()[0] for line in capsys.readouterr().out.partition("Commands:")[2].splitlines() if line]
        for verb in verbs:
            assert cli.run([noun, verb, "--help"]) == 0
            out = capsys.readouterr().out
            assert "-o, --output" in out, f"{noun} {verb} has no -o"


def test_a_mistyped_command_is_a_usage_error_with_a_suggestion(capsys):
    assert cli.run(["taks"]) == 2
    assert "Did you mean 'task'?" in capsys.readouterr().err
    assert cli.run(["task", "lst"]) == 2
    assert "Did you mean 'list'?" in capsys.readouterr().err


def test_submit_sends_arguments_and_options(ask, node):
    submit = ["task", "submit", "charge", "--arg", "order=A17", "--arg", "cents=1250", "--arg", 'deep={"a":[1]}']
    how = ["--key", "K", "--queue", "q", "--priority", "9", "--delay", "1.5", "--label", "a=b"]
    code, out, _ = ask(*submit, *how, "--region", "spread", "--partition", "wait", "-o", "json")
    assert code == 0
    assert json.loads(out) == {"id": "0" * 32, "created": True}
    (spec,) = node.desk.commands[0].specs
    assert decode_arguments(spec.payload) == ([], {"order": "A17", "cents": 1250, "deep": {"a": [1]}})
    assert (spec.id, spec.key, spec.queue, spec.priority, spec.delay_ms) == (None, "K", "q", 9, 1500)
    assert (spec.region, spec.partition, spec.labels) == ("spread", "wait", {"a": "b"})


def test_args_json_is_an_object_that_args_add_to(ask, node):
    code, out, _ = ask("task", "submit", "charge", "--args-json", '{"a": 1, "b": null}', "--arg", "b=text")
    assert code == 0
    assert out.endswith("  created\n")
    assert decode_arguments(node.desk.commands[0].specs[0].payload) == ([], {"a": 1, "b": "text"})
    assert ask("task", "submit", "charge", "--args-json", "[1]")[0] == 2


def test_a_quorum_task_says_what_shares_its_lease(ask, node):
    assert ask("task", "submit", "charge", "--partition", "quorum", "--scope", "task")[0] == 0
    (spec,) = node.desk.commands[0].specs
    assert (spec.partition, spec.scope) == ("quorum", "task")
    assert ask("task", "submit", "charge", "--partition", "quorum", "--scope", "world")[0] == 2


def test_submit_and_wait_print_what_show_prints(ask):
    shown = ask("task", "show", ID, "-o", "json")
    assert shown[0] == 0
    assert json.loads(shown[1]) == RECORD
    assert ask("task", "wait", ID, "-o", "json") == shown
    assert ask("task", "submit", "charge", "--wait", "-o", "json") == shown


def test_waiting_for_a_task_that_failed_exits_1(ask, node):
    node.desk.answers[commands.Await] = RECORD | {"state": "dead"}
    code, out, err = ask("task", "wait", ID, "-o", "json")
    assert code == 1
    assert json.loads(out)["state"] == "dead"
    assert "ended dead" in err


def test_waiting_too_long_exits_124(ask, node):
    del node.desk.answers[commands.Await]
    code, out, err = ask("task", "wait", ID, "--timeout", "0.05")
    assert (code, out) == (124, "")
    assert "0.05 s" in err


@pytest.mark.parametrize(
    "error, code",
    [
        (errors.UnknownTaskError("x"), 3),
        (errors.UndeclaredTaskError("x"), 3),
        (errors.IllegalTransitionError("x"), 4),
        (errors.OverloadedError("x"), 75),
        (errors.InvalidRequestError("x"), 2),
        (errors.StorageError("x"), 75),
    ],
)
def test_errors_become_exit_codes(ask, node, error, code):
    node.desk.answers[commands.Describe] = error
    assert ask("task", "show", ID) == (code, "", "error: x\n")
    got = ask("task", "show", ID, "-o", "json")
    assert got[:2] == (code, "")
    assert json.loads(got[2])["error"]["code"] == error.code


def test_a_node_that_is_not_there_is_unreachable(capsys, monkeypatch):
    monkeypatch.setattr("regions.client.CONNECT_TIMEOUT_S", 0.1)
    monkeypatch.setattr(
        "regions.client.Client.__init__.__kwdefaults__", {"connect_timeout": 0.1, "patience": 1.0, "dial": None}
    )
    assert cli.run(["task", "list", "--node", "ws://127.0.0.1:9"]) == 69
    assert "127.0.0.1:9" in capsys.readouterr().err


def test_no_node_is_a_usage_error(capsys, monkeypatch):
    monkeypatch.delenv("CRDTSYNC_NODE", raising=False)
    assert cli.run(["task", "list"]) == 2
    assert "--node" in capsys.readouterr().err


def test_listings_are_one_array_or_a_table(ask, node):
    code, out, _ = ask("task", "list", "-o", "json", "--limit", "0", "--label", "a=b", "--state", "waiting")
    assert code == 0
    assert json.loads(out) == [RECORD]
    assert node.desk.commands[0] == commands.ListTasks(state="waiting", label=("a", "b"), limit=0)
    code, out, _ = ask("region", "list")
    assert out.splitlines()[0].split() == [
        "REGION",
        "SELF",
        "STATE",
        "STATUS",
        "BEHIND",
        "RTT",
        "MS",
        "OFFSET",
        "MS",
        "DIGEST",
        "WAITS",
        "FOR",
    ]
    assert out.splitlines()[1].split()[:4] == ["eu", "yes", "-", "self"]


@pytest.mark.parametrize("on_terminal", [True, False])
def test_a_listing_in_pages_is_printed_like_a_whole_one(ask, node, monkeypatch, on_terminal):
    monkeypatch.setattr("regions.cli.output.on_terminal", lambda: on_terminal)
    rows = [{**RECORD, "labels": {"n": str(n)}} for n in range(5)]
    pages = {None: (rows[:2], [2, b"a"]), (2, b"a"): ([], [1, b"b"]), (1, b"b"): (rows[2:], None)}
    node.desk.answers[commands.ListTasks] = lambda command: dict(
        zip(("records", "next"), pages[command.after], strict=True)
    )
    out = ask("task", "list", "-o", "json", "--limit", "0")[1]
    assert out == json.dumps(rows, ensure_ascii=False, indent=2 if on_terminal else None) + "\n"
    assert len(ask("task", "list", "--limit", "0")[1].splitlines()) == 1 + len(rows)


def test_empty_listings_say_so_on_stderr(ask, node):
    node.desk.answers[commands.ListTasks] = {"records": [], "next": None}
    assert ask("task", "list", "-o", "json")[:2] == (0, "[]\n")
    code, out, err = ask("task", "list")
    assert (code, out) == (0, "")
    assert "no tasks match" in err


def test_cut_names_regions(ask, node):
    assert ask("region", "cut", "us", "ap")[0] == 0
    assert node.desk.commands == [commands.CutLinks(regions=("us", "ap"))]
    assert ask("region", "cut", "US")[0] == 2


def test_regions_are_added_and_forgotten_by_name(ask, node):
    answer = {"region": "sa", "state": "joining", "version": 2, "epoch": 0, "waits_for": "everybody"}
    node.desk.answers[commands.AddRegion] = answer
    node.desk.answers[commands.ForgetRegion] = answer | {"state": "leaving"}
    code, out, _ = ask("region", "add", "sa", "--url", "ws://127.0.0.1:7504", "-o", "json")
    assert (code, json.loads(out)["state"]) == (0, "joining")
    assert ask("region", "forget", "us", "ap", "--force")[0] == 0
    assert ask("region", "forget", "us", "--stopped")[0] == 0
    assert node.desk.commands == [
        commands.AddRegion("sa", "ws://127.0.0.1:7504"),
        commands.ForgetRegion(("us", "ap"), stopped=False, force=True),
        commands.ForgetRegion(("us",), stopped=True),
    ]
    assert ask("region", "forget")[0] == 2
    assert ask("region", "add", "SA")[0] == 2


def test_an_id_that_is_none_is_a_usage_error(ask):
    code, _, err = ask("task", "show", "12")
    assert code == 2
    assert "not a task id" in err


# --from ------------------------------------------------------------------------------------------


@pytest.fixture
def bulk(ask, tmp_path):
    def run(*lines):
        path = tmp_path / "lines.jsonl"
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
        code, out, _ = ask("task", "submit", "--from", str(path))
        return code, [json.loads(line) for line in out.splitlines()]

    return run


def test_lines_are_answered_in_order_and_refs_resolved_both_ways(bulk, node):
    code, answers = bulk(
        {"name": "ship", "after": ["@charge", ID], "args": {"n": 1}},
        {"name": "charge", "ref": "charge", "args": [1, 2]},
        {"name": "notify", "after": "@charge"},
    )
    assert code == 0
    assert len(answers) == 3
    sent = {spec.name: spec for command in node.desk.commands for spec in command.specs}
    order = [spec.name for command in node.desk.commands for spec in command.specs]
    assert order.index("charge") < order.index("ship")
    assert sent["ship"].after == (sent["charge"].id, bytes.fromhex(ID))
    assert sent["notify"].after == (sent["charge"].id,)
    assert [answer["id"] for answer in answers] == [sent[name].id.hex() for name in ("ship", "charge", "notify")]
    assert decode_arguments(sent["charge"].payload) == ([1, 2], {})


def test_a_ref_to_a_keyed_line_waits_for_its_id(bulk, node):
    code, answers = bulk({"name": "a", "key": "K", "ref": "a"}, {"name": "b", "after": ["@a"]})
    assert code == 0
    first, second = node.desk.commands
    assert first.specs[0].id is None
    assert second.specs[0].after == (bytes(16),)
    assert answers[0]["id"] == "0" * 32


def test_bad_lines_fail_alone_with_their_number_and_exit_1(bulk):
    code, answers = bulk(
        {"name": "ok"},
        "not json",
        "",
        {"args": {}},
        {"name": "x", "quee": "q"},
        {"name": "x", "partition": 3},
        {"name": "x", "after": ["@nobody"]},
        {"name": "x", "after": ["xyz"]},
        {"name": "x", "priority": "high"},
        {"name": "x", "ref": "loop", "after": ["@loop"]},
        {"name": "x", "args": 3},
        {"name": "last"},
    )
    assert code == 1
    assert [answer.get("line") for answer in answers] == [None, 2, 4, 5, 6, 7, 8, 9, 10, 11, None]
    assert "did you mean 'queue'" in answers[3]["error"]
    assert "@nobody" in answers[5]["error"] or "nobody" in answers[5]["error"]
    assert answers[0]["created"] is True
    assert answers[-1]["created"] is True


def test_what_depends_on_a_refused_line_is_refused(bulk, node):
    node.desk.answers[commands.Submit] = lambda command: [
        {"error": errors.UndeclaredTaskError("no such task").record()} if spec.name == "bad" else accept(command)[i]
        for i, spec in enumerate(command.specs)
    ]
    # With a key, the child is sent after the parent's answer; without one, the node itself refuses the child.
    code, answers = bulk({"name": "bad", "ref": "p", "key": "K"}, {"name": "child", "after": ["@p"]})
    assert code == 1
    assert answers[0] == {"line": 1, "error": "no such task", "code": "undeclared"}
    assert answers[1]["line"] == 2
    assert "line 1" in answers[1]["error"]


# Cost --------------------------------------------------------------------------------------------


def test_help_imports_nothing_that_is_slow():
    code = "import sys; from regions.cli import run; run(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(eval(ran.stderr))
    assert not modules & {"asyncio", "websockets", "pydantic", "structlog", "rich", "msgspec", "cbor2", "aiosqlite"}


def test_submitting_does_not_import_the_node():
    code = (
        "import sys; from regions.cli import run; run(['task', 'submit', 'x', '--node', 'ftp://nowhere']);"
        "print(sorted(sys.modules), file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(eval(ran.stderr.splitlines()[-1]))
    assert "regions.client" in modules
    assert not modules & {"pydantic", "structlog", "rich", "aiosqlite", "pycrdt", "crdtsync.replica", "regions.node"}
