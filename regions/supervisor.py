"""`crdtsync dev`: a node and a worker process per region on loopback, restarted when they die.

Each process is ours directly (no shell, no wrapper), ends with us however we end (see
`lifeline`), and keeps its ports across restarts: the supervisor holds every port bound, without
listening, and nodes share it with SO_REUSEPORT. So a dead node's port refuses connections, nobody
else can take it, and a client that keeps dialling it can never be handed its own address (which
the kernel does to sockets that dial a free ephemeral port of loopback).

A region is not started while `DATA/<region>.hold` exists: a test may exchange its data meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from crdtsync.commands import ListRegions, Status
from crdtsync.errors import ConfigError, CrdtSyncError
from regions.client import Client

HOST: Final = "127.0.0.1"
POLL_S: Final = 0.1  # how often holds and readiness are looked at: a tenth of the promised second
ASK_TIMEOUT_S: Final = 2.0
STEADY_S: Final = 3.0  # a process that lived so long is restarted at once
BACKOFF_S: Final = (0.1, 0.2, 0.5, 1.0)  # one that dies at once, again and again; the last repeats
STOP_TIMEOUT_S: Final = 10.0  # then SIGKILL: handlers of a dev cluster are not worth more
DRAIN_TIMEOUT_S: Final = 3.0
LEASE_MS: Final = 3_000  # nodes of a dev cluster come and go
MAX_HOLD_LEASE_MS: Final = 10_000
CONFIG_EXIT: Final = 78  # a process that says so cannot be helped by another start


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. `data` None: a temporary directory, removed at the end."""

    app: str
    regions: tuple[str, ...]
    data: Path | None = None
    ready_file: Path | None = None
    retention_s: int | None = None
    lost_after_ms: int = 3_000
    concurrency: int | None = None
    log_level: str = "warning"
    command: tuple[str, ...] = (sys.executable, "-m", "regions.cli")  # no shell, no wrapper: a pid is the process


Announce = Callable[[str, str, str, Path], None]  # region, url, peer url, data


@dataclass(slots=True)
class Place:
    """One region's ports, files and processes."""

    region: str
    data: Path
    port: int
    peer_port: int
    node: Child | None = None
    worker: Child | None = None

    @property
    def url(self) -> str:
        return f"ws://{HOST}:{self.port}"

    @property
    def peer_url(self) -> str:
        return f"ws://{HOST}:{self.peer_port}"

    @property
    def hold(self) -> Path:
        return self.data.with_name(f"{self.region}.hold")

    @property
    def config_file(self) -> Path:
        return self.data.with_name(f"{self.region}.toml")


@dataclass(slots=True)
class Child:
    """One process that is to run, again and again."""

    name: str
    arguments: list[str]
    process: asyncio.subprocess.Process | None = None
    started: float = 0.0
    quick_deaths: int = 0

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process else None

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.returncode is None

    async def start(self, environment: dict[str, str]) -> None:
        self.started = time.monotonic()
        self.process = await asyncio.create_subprocess_exec(
            *self.arguments,
            stdin=asyncio.subprocess.DEVNULL,
            env=environment,
            # A group of its own: Ctrl-C goes to us alone, and we stop workers before nodes.
            process_group=0,
        )

    def backoff_s(self) -> float:
        """How long to wait before the next start, after a death."""
        if time.monotonic() - self.started >= STEADY_S:
            self.quick_deaths = 0
            return 0.0
        delay = BACKOFF_S[min(self.quick_deaths, len(BACKOFF_S) - 1)]
        self.quick_deaths += 1
        return delay

    def signal(self, number: int) -> None:
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                assert self.process is not None
                self.process.send_signal(number)


@dataclass(slots=True)
class Supervisor:
    """Keeps the processes of a plan running until it is told to stop."""

    plan: Plan
    places: list[Place]
    tell: Callable[[str], None]
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    ready: bool = False
    failure: str = ""

    async def run(self) -> int:
        """Until `stopping` is set, or nothing can be run. Returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        try:
            async with asyncio.TaskGroup() as group:
                keepers = [
                    group.create_task(self._keep(place, child)) for place in self.places for child in _children(place)
                ]
                watcher = group.create_task(self._watch())
                await self.stopping.wait()
                for task in (*keepers, watcher):
                    task.cancel()
        finally:
            await self._end_all()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
        if self.failure:
            self.tell(self.failure)
            return CONFIG_EXIT
        return 0

    def _stop(self) -> None:
        if self.stopping.is_set():  # the second signal does not wait
            for child in self._all():
                child.signal(signal.SIGKILL)
        self.stopping.set()

    async def _keep(self, place: Place, child: Child) -> None:
        """Start `child`, wait for its end, start it again."""
        environment = _environment()
        while not self.stopping.is_set():
            while place.hold.exists():  # noqa: ASYNC110 - a file, not an event of ours
                await asyncio.sleep(POLL_S)
            await child.start(environment)
            self._write_ready()
            assert child.process is not None
            code = await child.process.wait()
            if code == CONFIG_EXIT and child.quick_deaths == 0 and not self.ready:
                self.failure = f"{child.name} cannot start: see its message above"
                self.stopping.set()
                return
            delay = child.backoff_s()
            self.tell(f"{child.name} ended ({_ending(code)}); starting it again")
            await asyncio.sleep(delay)

    async def _watch(self) -> None:
        """Write the ready-file once everything is up; `_keep` replaces it after each restart."""
        while not await self._all_up():  # noqa: ASYNC110 - the state of other processes
            await asyncio.sleep(POLL_S)
        self.ready = True
        self._write_ready()

    async def _all_up(self) -> bool:
        places = [place for place in self.places if not place.hold.exists()]
        expected = {place.region for place in places}
        answers = await asyncio.gather(*(self._is_up(place, expected) for place in places))
        return all(answers)

    async def _is_up(self, place: Place, expected: set[str]) -> bool:
        """Whether a region's worker has declared its app and its links are up (or cut on purpose)."""
        if not all(child.running for child in _children(place)):
            return False
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S), Client(place.url) as client:
                status = await client.request(Status())
                seen = await client.request(ListRegions())
        except (CrdtSyncError, TimeoutError, OSError):
            return False
        linked = {row["region"] for row in seen if row["status"] in ("up", "cut")}
        return bool(status.get("workers")) and expected - {place.region} <= linked

    def _write_ready(self) -> None:
        """Replace the ready-file at once, so that a reader sees the old or the new one, whole."""
        if not self.ready or self.plan.ready_file is None:
            return
        content: dict[str, Any] = {
            "nodes": {
                place.region: {
                    "url": place.url,
                    "peer_url": place.peer_url,
                    "pid": place.node.pid if place.node else None,
                    "data": str(place.data),
                }
                for place in self.places
            },
            "workers": {place.region: {"pid": place.worker.pid if place.worker else None} for place in self.places},
        }
        write_atomically(self.plan.ready_file, json.dumps(content, indent=2) + "\n")

    async def _end_all(self) -> None:
        """Workers first, so that what runs can still be recorded; then nodes; nobody is left behind."""
        workers = [child for place in self.places for child in _children(place) if child is place.worker]
        nodes = [child for place in self.places for child in _children(place) if child is place.node]
        for children in (workers, nodes):
            for child in children:
                child.signal(signal.SIGTERM)
            await _all_ended(children, STOP_TIMEOUT_S)
        for child in self._all():
            child.signal(signal.SIGKILL)
        await _all_ended(list(self._all()), STOP_TIMEOUT_S)

    def _all(self) -> Iterator[Child]:
        for place in self.places:
            yield from _children(place)


def supervise(plan: Plan, *, announce: Announce, tell: Callable[[str], None]) -> int:
    """Run the plan until SIGINT or SIGTERM. Returns the exit code.

    Raises:
        ConfigError: The data directory cannot be used.
    """
    temporary = plan.data is None
    data = Path(tempfile.mkdtemp(prefix="crdtsync-dev-")) if plan.data is None else plan.data.resolve()
    try:
        data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{data}: {error.strerror}; name another directory with --data") from None
    if plan.ready_file is not None:
        # What is there is about processes of another day.
        plan.ready_file.unlink(missing_ok=True)
    try:
        with contextlib.ExitStack() as ports:
            places = [
                Place(region, data / region, _reserve_port(ports), _reserve_port(ports)) for region in plan.regions
            ]
            for place in places:
                place.data.mkdir(exist_ok=True)
                _configure(plan, place, places)
                announce(place.region, place.url, place.peer_url, place.data)
            return asyncio.run(_supervise(Supervisor(plan, places, tell)))
    finally:
        if temporary:
            shutil.rmtree(data, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Replace a file so that nobody ever reads half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)


async def _supervise(supervisor: Supervisor) -> int:
    return await supervisor.run()


def _reserve_port(stack: contextlib.ExitStack) -> int:
    """A free port of loopback, held bound (not listening) until the stack is unwound."""
    holder = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holder.bind((HOST, 0))
    port: int = holder.getsockname()[1]
    return port


def _configure(plan: Plan, place: Place, places: list[Place]) -> None:
    """Write the region's configuration and say how its processes are started."""
    lines = [
        "# Written by crdtsync dev at each start.",
        'cluster = "dev"',
        f'region = "{place.region}"',
        f"data_dir = {json.dumps(str(place.data))}",
        f"lost_after_ms = {plan.lost_after_ms}",
        f"lease_ms = {LEASE_MS}",
        f"max_hold_lease_ms = {MAX_HOLD_LEASE_MS}",
        f"drain_timeout_s = {DRAIN_TIMEOUT_S}",
        f'log_level = "{plan.log_level}"',
        *([] if plan.retention_s is None else [f"retention_s = {plan.retention_s}"]),
        *(["heads_interval_ms = 1000"]),
        "[listen]",
        f"port = {place.port}",
        "reuse_port = true",
        "[peer]",
        f"port = {place.peer_port}",
        "reuse_port = true",
        "[members]",
        *(f'{other.region} = "{other.peer_url}"' for other in places),
    ]
    write_atomically(place.config_file, "\n".join(lines) + "\n")
    supervisor = ["--supervisor", str(os.getpid())]
    node = [*plan.command, "node", "run", "--config", str(place.config_file), "--quiet", *supervisor]
    worker = [
        *plan.command,
        "worker",
        "run",
        "--app",
        plan.app,
        "--node",
        place.url,
        "--log-level",
        plan.log_level,
        *supervisor,
    ]
    worker += ["--drain-timeout", str(DRAIN_TIMEOUT_S)]
    if plan.concurrency is not None:
        worker += ["--concurrency", str(plan.concurrency)]
    place.node = Child(f"{place.region} node", node)
    place.worker = Child(f"{place.region} worker", worker)


def _environment() -> dict[str, str]:
    """Ours, without what would change the children's configuration, and able to import what we import."""
    environment = {key: value for key, value in os.environ.items() if not _is_setting(key)}
    environment["PYTHONPATH"] = os.pathsep.join([*_import_path(), *filter(None, [os.environ.get("PYTHONPATH")])])
    return environment


def _is_setting(key: str) -> bool:
    return key.startswith("CRDTSYNC_") and not key.startswith(("CRDTSYNC_CI_", "CRDTSYNC_TEST_"))


def _import_path() -> list[str]:
    """Where this very package was found, so that children run the same code wherever we were started."""
    import regions  # noqa: PLC0415 - itself

    return [str(Path(next(iter(regions.__path__))).parent)]


def _children(place: Place) -> list[Child]:
    return [child for child in (place.node, place.worker) if child is not None]


async def _all_ended(children: list[Child], timeout_s: float) -> None:
    waits = [asyncio.ensure_future(child.process.wait()) for child in children if child.process is not None]
    if waits:
        await asyncio.wait(waits, timeout=timeout_s)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
