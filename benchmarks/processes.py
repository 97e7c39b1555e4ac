"""Real nodes and workers as processes of their own, ending with us however we end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from benchmarks.marks import VARIABLE
from benchmarks.measure import cpu_s, pss_mb

ROOT: Final = Path(__file__).resolve().parent.parent
HOST: Final = "127.0.0.1"
START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 15.0
LOST_AFTER_MS: Final = 30_000


class Process:
    """One child: a node or a worker."""

    def __init__(self, name: str, arguments: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        self.name = name
        self._log = log
        command = [sys.executable, "-m", "regions.cli", *arguments, "--supervisor", str(os.getpid())]
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, process_group=0
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def cpu_s(self) -> float:
        return cpu_s(self.pid)

    @property
    def pss_mb(self) -> float:
        return pss_mb(self.pid)

    def check(self) -> None:
        """Raises RuntimeError, with the end of its log, if it has ended."""
        if self._process.poll() is not None:
            tail = "\n".join(self._log.read_text("utf-8", errors="replace").splitlines()[-20:])
            raise RuntimeError(f"{self.name} ended with {self._process.returncode}:\n{tail}")

    def stop(self) -> None:
        """SIGTERM, patience, SIGKILL."""
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()


class Region:
    """Where one region's node listens and keeps its data."""

    def __init__(self, name: str, folder: Path, port: int, peer_port: int) -> None:
        self.name = name
        self.folder = folder
        self.url = f"ws://{HOST}:{port}"
        self.peer_url = f"ws://{HOST}:{peer_port}"
        self.port = port
        self.peer_port = peer_port

    @property
    def data(self) -> Path:
        return self.folder / self.name

    def configure(self, members: Sequence[Region]) -> Path:
        lines = [
            'cluster = "benchmarks"',
            f'region = "{self.name}"',
            f"data_dir = {json.dumps(str(self.data))}",
            f"lost_after_ms = {LOST_AFTER_MS}",
            'log_level = "error"',
            f"[listen]\nport = {self.port}",
            f"[peer]\nport = {self.peer_port}",
            "[members]",
            *(f'{member.name} = "{member.peer_url}"' for member in members),
        ]
        path = self.folder / f"{self.name}.toml"
        path.write_text("\n".join(lines) + "\n", "utf-8")
        return path


class Cluster:
    """The processes of one measurement, in `folder`."""

    def __init__(self, folder: Path, regions: Sequence[str] = ("eu",)) -> None:
        self.folder = folder
        ports = iter(free_ports(2 * len(regions)))
        self.regions = [Region(name, folder, next(ports), next(ports)) for name in regions]
        self.processes: dict[str, Process] = {}

    def __getitem__(self, name: str) -> Process:
        return self.processes[name]

    def region(self, name: str) -> Region:
        return next(region for region in self.regions if region.name == name)

    def start_node(self, region: str) -> Process:
        """Start a region's node and wait until its port is open."""
        place = self.region(region)
        node = self._start(f"{region} node", ["node", "run", "--config", str(place.configure(self.regions)), "--quiet"])
        wait_for_port(place.port, node)
        return node

    def start_worker(self, region: str, *, concurrency: int, url: str | None = None) -> Process:
        arguments = ["worker", "run", "--app", "benchmarks.app:app", "--node", url or self.region(region).url]
        arguments += ["--concurrency", str(concurrency), "--drain-timeout", "3", "--log-level", "error"]
        return self._start(f"{region} worker", arguments)

    def stop(self, name: str) -> None:
        self.processes.pop(name).stop()

    def kill(self, name: str) -> None:
        self.processes.pop(name).kill()

    def stop_all(self) -> None:
        for name in sorted(self.processes, key=lambda name: not name.endswith("worker")):  # workers first
            self.processes.pop(name).stop()

    def check(self) -> None:
        for process in self.processes.values():
            process.check()

    def _start(self, name: str, arguments: Sequence[str]) -> Process:
        process = Process(name, arguments, self.folder / f"{name.replace(' ', '-')}.log", environment())
        self.processes[name] = process
        return process


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many other processes compute meanwhile, as on most machines. They end with us, however we end."""
    text = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(10_000))"
    running = [subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.DEVNULL) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


@contextmanager
def cluster(folder: Path, regions: Sequence[str] = ("eu",)) -> Iterator[Cluster]:
    """A cluster whose nodes are up; whatever it started is ended on the way out."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Cluster(folder, regions)
    try:
        for region in regions:
            made.start_node(region)
        yield made
    finally:
        made.stop_all()


def environment() -> dict[str, str]:
    """Ours, without what would configure a node, and able to import what we import."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("CRDTSYNC_") or key == VARIABLE}
    kept["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return kept


def free_ports(count: int) -> list[int]:
    """Ports of loopback that were free a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def wait_for_port(port: int, process: Process) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while True:
        process.check()
        try:
            socket.create_connection((HOST, port), 1).close()
        except OSError:
            if time.monotonic() > until:
                raise TimeoutError(f"{process.name} did not listen within {START_TIMEOUT_S:g} s") from None
            time.sleep(0.05)
        else:
            return
