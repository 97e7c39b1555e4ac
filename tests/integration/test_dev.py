"""Three real nodes and workers on 127.0.0.1, through the command line, as a user would."""

import json
import os
import pathlib
import shutil
import signal
import socket
import time

import pytest

from tests.integration.cluster import ENVIRONMENT, DevCluster, alive, command, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    running = DevCluster(tmp_path_factory.mktemp("dev"), "eu", "us", "ap")
    yield running
    running.stop()


def test_a_task_runs_where_it_was_submitted_and_every_region_knows_its_result(cluster):
    shown = cluster.ask("eu", "task", "submit", "add", "--arg", "a=1", "--arg", "b=2", "--wait", "--timeout", "20")
    assert (shown["state"], shown["result"], shown["owner"]) == ("succeeded", 3, "eu")
    for region in ("us", "ap"):
        until(lambda region=region: command("task", "show", shown["id"], "--node", cluster.url(region))[0] == 0, region)
        assert cluster.ask(region, "task", "show", shown["id"])["result"] == 3
    texts = {cluster.ask(region, "task", "explain", shown["id"])["text"] for region in cluster.regions}
    assert len(texts) == 1


def test_exit_codes_are_those_of_the_contract(cluster):
    url = cluster.url("eu")
    code, out, _ = command("task", "submit", "fail", "--wait", "--node", url, "-o", "json")
    assert (code, json.loads(out)["state"]) == (1, "dead")
    assert command("task", "submit", "never_declared", "--node", url)[0] == 3
    assert command("task", "show", "0" * 32, "--node", url)[0] == 3
    assert command("task", "submit", "add", "--partition", "majority", "--node", url)[0] == 2
    assert command("task", "submit", "add", "--partition", "quorum", "--scope", "key", "--node", url)[0] == 2
    assert (
        command("task", "submit", "nap", "--arg", "seconds=60", "--wait", "--timeout", "0.3", "--node", url)[0] == 124
    )
    task = json.loads(command("task", "submit", "add", "--args-json", '{"a":1,"b":1}', "--node", url, "-o", "json")[1])
    assert command("task", "requeue", task["id"], "--node", url)[0] == 4
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        assert command("task", "list", "--node", f"ws://127.0.0.1:{nobody.getsockname()[1]}")[0] == 69
    assert command("config", "check", "--config", "/nowhere")[0] == 78


def test_a_file_is_submitted_in_bulk_with_references(cluster, tmp_path):
    lines = [{"name": "add", "args": {"a": i, "b": i}, "ref": f"r{i}", "label": {"batch": "b"}} for i in range(50)]
    lines += [{"name": "add", "args": [1, 1], "after": [f"@r{i}" for i in range(50)], "region": "spread"}]
    lines += [{"name": "never_declared"}]
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    code, out, _ = command("task", "submit", "--from", str(path), "--node", cluster.url("us"))
    answers = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert [answer.get("created") for answer in answers] == [True] * 51 + [None]
    assert answers[-1]["line"] == 52
    assert cluster.wait("us", answers[50]["id"])["result"] == 2
    listed = cluster.ask("us", "task", "list", "--label", "batch=b", "--state", "succeeded", "--limit", "0")
    assert len(listed) == 50


def test_a_killed_worker_costs_an_attempt_and_not_the_task(cluster):
    task = cluster.submit("eu", "nap", "--arg", "seconds=0.5")
    until(lambda: cluster.ask("eu", "task", "show", task)["state"] == "running", "running")
    cluster.kill("eu", "workers")
    shown = cluster.wait("eu", task)
    assert shown["state"] == "succeeded"
    assert [attempt["state"] for attempt in shown["attempts"]] == ["lost", "ok"]


def test_a_killed_node_loses_nothing_that_it_acknowledged(cluster):
    tasks = [cluster.submit("us", "add", "--arg", f"a={i}", "--arg", "b=0") for i in range(5)]
    before = cluster.ask("us", "log", "verify")
    took = cluster.kill("us")
    assert took < 5  # one second, with room for a busy machine
    for number, task in enumerate(tasks):
        assert cluster.wait("us", task)["result"] == number
    until(cluster.linked, "links up again")
    report = cluster.ask("us", "log", "verify")
    assert report["ok"]
    assert report["commits"] >= before["commits"]


def test_an_attempt_goes_on_while_its_node_restarts(cluster):
    task = cluster.submit("ap", "nap", "--arg", "seconds=2")
    until(lambda: cluster.ask("ap", "task", "show", task)["state"] == "running", "running")
    cluster.kill("ap")
    shown = cluster.wait("ap", task)
    assert [attempt["state"] for attempt in shown["attempts"]] == ["ok"]
    until(cluster.linked, "links up again")


def test_a_cut_diverges_and_a_heal_leaves_one_outcome_and_no_double_effect(cluster, tmp_path):
    ledger = tmp_path / "ledger"
    task = cluster.submit("eu", "write", "--arg", f"path={ledger}", "--arg", "seconds=4")
    until(lambda: command("task", "show", task, "--node", cluster.url("us"))[0] == 0, "us knows it")
    cluster.ask("eu", "region", "cut")
    assert set(cluster.status("eu").values()) == {"self", "cut"}
    until(lambda: ledger.exists() and len(ledger.read_text().splitlines()) >= 2, "both sides ran it")
    here, there = (
        cluster.submit("eu", "add", "--args-json", '{"a":1,"b":1}'),
        cluster.submit("us", "nap", "--arg", "seconds=0"),
    )
    assert cluster.wait("eu", here)["result"] == 2
    assert cluster.wait("us", there)["result"] == "us"
    cluster.ask("eu", "region", "heal")
    shown = cluster.wait("us", task, "--settled")
    assert shown["state"] == "succeeded"
    until(cluster.converged, "equal digests")
    until(lambda: len(ledger.read_text().splitlines()) == 3, "the loser's line is undone")
    lines = ledger.read_text().splitlines()
    standing = [line[1:] for line in lines if line[0] == "+" and f"-{line[1:]}" not in lines]
    assert standing == [shown["result"]]
    (conflict,) = [c for c in cluster.ask("ap", "conflict", "list") if c["task"] == task]
    assert {"id", "kind", "rule", "winner", "losers", "compensations"} <= conflict.keys()
    assert cluster.ask("ap", "conflict", "show", conflict["id"])["id"] == conflict["id"]
    for region in cluster.regions:
        assert cluster.ask(region, "log", "verify")["ok"]


def test_a_cut_survives_a_restart_and_leaves_other_pairs_alone(cluster):
    cluster.ask("eu", "region", "cut", "us")
    cluster.kill("eu")
    until(lambda: cluster.status("eu") == {"eu": "self", "us": "cut", "ap": "up"}, "still cut from us alone")
    assert cluster.status("ap") == {"eu": "up", "us": "up", "ap": "self"}
    cluster.ask("eu", "region", "heal", "us")
    until(cluster.linked, "healed")


def test_a_held_region_stays_down_and_a_restored_copy_recovers_its_tail(cluster, tmp_path):
    hold = cluster.data / "us.hold"
    pid = cluster.pid("us")

    def held(change):
        pid = cluster.pid("us")
        hold.touch()
        os.kill(pid, signal.SIGKILL)
        until(lambda: not alive(pid), "node gone")
        change()
        hold.unlink()
        until(lambda: cluster.pid("us") != pid, "restarted after the hold")

    held(lambda: shutil.copytree(cluster.data / "us", tmp_path / "copy"))
    assert cluster.pid("us") != pid
    tasks = [cluster.submit("us", "add", "--arg", f"a={i}", "--arg", "b=0") for i in range(3)]
    until(cluster.converged, "others have them")

    def restore():
        shutil.rmtree(cluster.data / "us")
        shutil.copytree(tmp_path / "copy", cluster.data / "us")

    held(restore)
    for number, task in enumerate(tasks):
        until(lambda task=task: command("task", "show", task, "--node", cluster.url("us"))[0] == 0, "recovered")
        assert cluster.wait("us", task)["result"] == number
    until(cluster.linked, "linked")
    until(cluster.converged, "equal digests")
    assert cluster.ask("us", "log", "verify")["ok"]


def test_a_second_process_on_one_data_directory_is_refused(cluster):
    code, _, err = command("node", "run", "--config", str(cluster.data / "eu.toml"))
    assert code == 78
    assert "in use" in err
    assert command("log", "verify", "--data", str(cluster.data / "eu"))[0] == 78


@pytest.mark.parametrize("port", ["LISTEN", "PEER"])
def test_a_bind_off_loopback_is_refused_with_78(tmp_path, port):
    environment = ENVIRONMENT | {
        "CRDTSYNC_REGION": "eu",
        "CRDTSYNC_DATA_DIR": str(tmp_path),
        f"CRDTSYNC_{port}__HOST": "0.0.0.0",
    }
    code, _, err = command("node", "run", environment=environment)
    assert code == 78
    assert "loopback" in err


def test_log_tail_export_and_links_print(cluster):
    assert cluster.ask("eu", "log", "tail", "--limit", "3")[-1]["events"]
    code, out, _ = command("log", "export", "--writer", "eu/a", "--node", cluster.url("ap"))
    assert code == 0
    exported = [json.loads(line) for line in out.splitlines()]
    assert {commit["writer"].partition("#")[0] for commit in exported} == {"eu/a"}
    assert {row["region"] for row in cluster.ask("eu", "region", "links")} == {"us", "ap"}


def test_drained_work_is_done_elsewhere(cluster):
    cluster.ask("ap", "region", "drain")
    task = cluster.submit("ap", "nap", "--arg", "seconds=0")
    assert cluster.wait("ap", task)["result"] in {"eu", "us"}
    cluster.ask("ap", "region", "drain", "--off")


def test_stopping_leaves_no_process_behind(tmp_path):
    running = DevCluster(tmp_path, "eu", "us")
    pids = [running.pid(region, kind) for region in ("eu", "us") for kind in ("nodes", "workers")]
    assert all(alive(pid) for pid in pids)
    started = time.monotonic()
    assert running.stop() == 0
    assert time.monotonic() - started < 20
    assert not any(alive(pid) for pid in pids)
    report = json.loads(command("log", "verify", "--data", str(running.data / "eu"), "-o", "json")[1])
    assert report["ok"]
    assert pathlib.Path(running.ready_file).exists()
