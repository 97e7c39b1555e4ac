"""A `crdtsync dev` cluster of real processes on loopback, for tests that poll with deadlines and never just sleep."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

LIMIT_S = 30  # for one condition; a healthy cluster needs a tenth of it
POLL_S = 0.05
APP = pathlib.Path(__file__).with_name("app.py")
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "CRDTSYNC_NODE"}


def until(condition, what, limit_s=LIMIT_S):
    """The first true answer of `condition`."""
    deadline = time.monotonic() + limit_s
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what}"
        time.sleep(POLL_S)
    return answer


def alive(pid):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def command(*arguments, environment=None, limit_s=LIMIT_S):
    """Run the command line; returns (exit code, stdout, stderr)."""
    ran = subprocess.run(  # noqa: PLW1510 - the code is part of what is tested
        [sys.executable, "-m", "regions.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=limit_s,
        env=environment or ENVIRONMENT,
    )
    return ran.returncode, ran.stdout, ran.stderr


class DevCluster:
    def __init__(self, folder, *regions, options=()):
        self.regions = regions
        self.folder = folder
        self.data = folder / "data"
        self.log = folder / "log"
        self.ready_file = folder / "ready.json"
        arguments = ["dev", "--app", f"{APP}:app", "--regions", ",".join(regions), "--data", str(self.data)]
        arguments += ["--ready-file", str(self.ready_file), "--log-level", "info", "--lost-after", "1.5", *options]
        self._log = self.log.open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "regions.cli", *arguments], stdout=self._log, stderr=self._log, env=ENVIRONMENT
        )
        try:
            until(lambda: self.ready_file.exists() or self._died(), "all regions up")
        except AssertionError:
            self.stop()
            raise AssertionError(self.log.read_text()[-4_000:]) from None

    def _died(self):
        assert self.process.poll() is None, self.log.read_text()[-4_000:]

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(LIMIT_S)
        finally:
            self.process.kill()
            self._log.close()

    def ready(self):
        return json.loads(self.ready_file.read_text())

    def url(self, region):
        return self.ready()["nodes"][region]["url"]

    def pid(self, region, kind="nodes"):
        return self.ready()[kind][region]["pid"]

    def kill(self, region, kind="nodes"):
        """SIGKILL one process and wait until another runs in its place. Returns the seconds that took."""
        pid = self.pid(region, kind)
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        until(lambda: self.pid(region, kind) != pid, f"{kind} of {region} restarted")
        return time.monotonic() - killed

    def ask(self, region, *arguments, code=0):
        """Run a command against a region and return its JSON."""
        got = command(*arguments, "--node", self.url(region), "-o", "json")
        assert got[0] == code, got
        return json.loads(got[1]) if got[1] else json.loads(got[2])

    def submit(self, region, name, *arguments):
        return self.ask(region, "task", "submit", name, *arguments)["id"]

    def wait(self, region, task, *arguments, code=0):
        return self.ask(region, "task", "wait", task, "--timeout", str(LIMIT_S), *arguments, code=code)

    def status(self, region):
        return {row["region"]: row["status"] for row in self.ask(region, "region", "list")}

    def linked(self):
        return all(set(self.status(region).values()) <= {"self", "up"} for region in self.regions)

    def digest(self, region):
        return next(row["digest"] for row in self.ask(region, "region", "list") if row["self"])

    def converged(self):
        return len({self.digest(region) for region in self.regions}) == 1
