"""The demo as its user runs it: real processes, real sockets, real files. Slow for that reason."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from regions.demo import alive, example

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

ROOT = Path(__file__).resolve().parents[2]
DEMO = [sys.executable, "-m", "regions.cli", "demo"]
UP = re.compile(r"(?P<region>\w+) is up: .*node (?P<node>\d+), worker (?P<worker>\d+)")


def environment(tmp_path):
    """Where the demo's data goes, so that a test sees what is left of it."""
    return {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}


def test_the_demo_checks_every_claim_and_cleans_up(tmp_path):
    began = time.monotonic()
    done = subprocess.run(
        [*DEMO, "-o", "json"], capture_output=True, text=True, timeout=140, env=environment(tmp_path), check=False
    )
    took_s = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["ok"]
    assert len(told["checks"]) >= 15
    assert all(check["held"] and check["evidence"] for check in told["checks"])
    assert took_s < 60
    pids = [int(match[which]) for match in UP.finditer(done.stderr) for which in ("node", "worker")]
    assert len(pids) == 6
    assert not any(map(alive, pids))
    assert not list(tmp_path.iterdir())
    assert "\x1b[" not in done.stderr  # piped: plain lines


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_demo_that_is_interrupted_leaves_nothing_behind(tmp_path, number, code):
    process = subprocess.Popen(DEMO, stdout=subprocess.PIPE, text=True, env=environment(tmp_path))
    try:
        pids = []
        for line in process.stdout:
            if match := UP.search(line):
                pids += [int(match["node"]), int(match["worker"])]
            if len(pids) == 6:
                break
        process.send_signal(number)
        assert process.wait(timeout=60) == code
    finally:
        process.kill()
        process.communicate()
    assert not any(map(alive, pids))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGKILL])
def test_a_demo_that_is_killed_takes_its_processes_along(tmp_path, number):
    process = subprocess.Popen(DEMO, stdout=subprocess.PIPE, text=True, env=environment(tmp_path))
    try:
        pids = []
        for line in process.stdout:
            if match := UP.search(line):
                pids += [int(match["node"]), int(match["worker"])]
            if len(pids) == 6:
                break
    finally:
        process.kill()
        process.communicate()
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)  # real processes, real time
    assert not any(map(alive, pids))


def test_the_example_of_the_demo_is_found():
    assert example("shop.py").read_text("utf-8").startswith('"""A shop')
