"""Processes that are kept running: real ones, with a stub for nodes and workers."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from regions import supervisor

pytestmark = pytest.mark.slow

LIMIT_S = 30
ROOT = pathlib.Path(supervisor.__file__).parent.parent

MAIN = """
    import pathlib, sys
    from regions.supervisor import Plan, supervise
    data = sys.argv[1]
    plan = Plan(
        app="app.py:app",
        regions=("eu", "us"),
        data=pathlib.Path(data) if data else None,
        ready_file=pathlib.Path(sys.argv[2]),
        command=(sys.executable, "-m", "tests.regions.stub_process"),
    )
    sys.exit(supervise(plan, announce=lambda *line: print(*line, flush=True), tell=print))
"""


def until(condition, limit_s=LIMIT_S):
    deadline = time.monotonic() + limit_s
    while True:
        with contextlib.suppress(OSError, ValueError, KeyError):
            if value := condition():
                return value
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def alive(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


class Running:
    def __init__(self, tmp_path, *, data=True):
        self.ready_file = tmp_path / "ready.json"
        self.data = tmp_path / "data"
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(MAIN), str(self.data) if data else "", str(self.ready_file)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )

    def ready(self):
        return json.loads(self.ready_file.read_text())

    def pid(self, kind, region):
        return self.ready()[kind][region]["pid"]

    def pids(self):
        return [place["pid"] for kind in ("nodes", "workers") for place in self.ready()[kind].values()]


@pytest.fixture
def running(tmp_path):
    run = Running(tmp_path)
    yield run
    run.process.kill()
    run.process.communicate()


def test_the_ready_file_names_processes_that_answer(running):
    ready = until(running.ready)
    assert set(ready["nodes"]) == set(ready["workers"]) == {"eu", "us"}
    for region, node in ready["nodes"].items():
        command = pathlib.Path(f"/proc/{node['pid']}/cmdline").read_text()
        assert "tests.regions.stub_process\0node\0run" in command
        assert node["data"] == str(running.data / region)
        with socket.create_connection(("127.0.0.1", int(node["url"].rpartition(":")[2]))):
            pass
    lines = [running.process.stdout.readline() for _ in range(2)]
    assert [line.split()[0] for line in lines] == ["eu", "us"]
    assert ready["nodes"]["eu"]["url"] in lines[0]


@pytest.mark.parametrize("kind", ["nodes", "workers"])
def test_what_is_killed_is_back_within_a_second_or_so_on_the_same_port(running, kind):
    before = until(running.ready)
    os.kill(before[kind]["eu"]["pid"], signal.SIGKILL)
    killed = time.monotonic()
    until(lambda: running.pid(kind, "eu") != before[kind]["eu"]["pid"])
    assert time.monotonic() - killed < 5  # one, with room for a busy machine
    after = running.ready()
    assert after["nodes"]["eu"]["url"] == before["nodes"]["eu"]["url"]
    assert after["nodes"]["us"] == before["nodes"]["us"]


def test_a_region_is_not_restarted_while_it_is_held(running):
    before = until(running.ready)["nodes"]["us"]
    hold = running.data / "us.hold"
    hold.touch()
    os.kill(before["pid"], signal.SIGKILL)
    until(lambda: not alive(before["pid"]))
    port = int(before["url"].rpartition(":")[2])
    for _ in range(10):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        time.sleep(0.05)
    assert running.pid("nodes", "us") == before["pid"]
    hold.unlink()
    until(lambda: running.pid("nodes", "us") != before["pid"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_and_leaves_nothing_behind(running, number):
    until(running.ready)
    pids = running.pids()
    running.process.send_signal(number)
    assert running.process.wait(LIMIT_S) == 0
    assert not any(alive(pid) for pid in pids)


def test_nothing_outlives_a_supervisor_that_is_killed(running):
    until(running.ready)
    pids = running.pids()
    running.process.kill()
    until(lambda: not any(alive(pid) for pid in pids), 5)


def test_a_node_that_cannot_be_configured_ends_the_start_with_78(tmp_path):
    (tmp_path / "data" / "us").mkdir(parents=True)
    (tmp_path / "data" / "us" / "fail").write_text("78")
    run = Running(tmp_path)
    assert run.process.wait(LIMIT_S) == 78
    assert "us node cannot start" in run.process.communicate()[0]
    assert not run.ready_file.exists()


def test_temporary_data_is_removed_at_the_end(tmp_path):
    run = Running(tmp_path, data=False)
    data = pathlib.Path(until(run.ready)["nodes"]["eu"]["data"])
    assert data.is_dir()
    run.process.terminate()
    assert run.process.wait(LIMIT_S) == 0
    run.process.communicate()
    assert not data.exists()
    assert not data.parent.exists()


def test_backoff_is_nothing_after_a_steady_life_and_bounded_else():
    child = supervisor.Child("x", [])
    child.started = time.monotonic() - supervisor.STEADY_S - 1
    assert child.backoff_s() == 0
    child.started = time.monotonic()
    delays = [child.backoff_s() for _ in range(8)]
    assert delays == sorted(delays)
    assert delays[0] <= 0.1
    assert delays[-1] == max(supervisor.BACKOFF_S)


def test_a_reserved_port_refuses_connections_and_can_be_shared():
    with contextlib.ExitStack() as stack:
        port = supervisor._reserve_port(stack)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen()
            with socket.create_connection(("127.0.0.1", port)):
                pass
