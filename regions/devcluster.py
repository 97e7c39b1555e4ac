"""A `crdtsync dev` cluster of one's own for the length of a `with`: for the demo, the examples and tests.

The cluster is a process group of its own, so Ctrl-C reaches us alone and we stop it in order; and it ends with
us however we end (see `lifeline`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from crdtsync.errors import ConfigError, UnreachableError

POLL_S: Final = 0.1
START_TIMEOUT_S: Final = 45.0  # three nodes and three workers on a loaded laptop take a tenth of it
STOP_TIMEOUT_S: Final = 25.0  # more than the supervisor takes for workers, nodes and its own kill together
LOG_TAIL_LINES: Final = 20

# The supervisor as a child that cannot outlive us: `crdtsync dev` itself, after one call.
_CHILD: Final = (
    "import sys; from regions.lifeline import end_with; from regions.cli import main; "
    "end_with(int(sys.argv[1])); main(sys.argv[2:])"
)


@dataclass(frozen=True, slots=True)
class DevCluster:
    """A running cluster. What it says is read anew each time: pids change with restarts."""

    data: Path
    ready_file: Path
    log_file: Path

    def ready(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.ready_file.read_text("utf-8"))
        return content

    @property
    def urls(self) -> dict[str, str]:
        return {region: node["url"] for region, node in self.ready()["nodes"].items()}

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by "eu node", "eu worker", ..."""
        ready = self.ready()
        nodes = {f"{region} node": node["pid"] for region, node in ready["nodes"].items()}
        return nodes | {f"{region} worker": worker["pid"] for region, worker in ready["workers"].items()}


@contextlib.asynccontextmanager
async def dev_cluster(
    app: str,
    data: Path,
    *,
    regions: Sequence[str] = ("eu", "us", "ap"),
    concurrency: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[DevCluster]:
    """Start `crdtsync dev` on `data`, wait until all its parts are up, and stop it at the end.

    Raises:
        ConfigError: If it ends before it is up. The message has the last lines of its log.
        UnreachableError: If it is not up in time.
    """
    cluster = DevCluster(data, data / "ready.json", data / "dev.log")
    arguments = ["dev", "--app", app, "--regions", ",".join(regions), "--data", str(data)]
    arguments += ["--ready-file", str(cluster.ready_file)]
    if concurrency is not None:
        arguments += ["--concurrency", str(concurrency)]
    with cluster.log_file.open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _CHILD,
            str(os.getpid()),
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **(environment or {})},
            process_group=0,
        )
    try:
        await _until_ready(process, cluster)
        yield cluster
    finally:
        await _stop(process)


async def _until_ready(process: asyncio.subprocess.Process, cluster: DevCluster) -> None:
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not cluster.ready_file.exists():
                if process.returncode is not None:
                    raise ConfigError(f"crdtsync dev ended with {process.returncode}:\n{_tail(cluster.log_file)}")
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise UnreachableError(
            f"the cluster was not up within {START_TIMEOUT_S:g} s:\n{_tail(cluster.log_file)}"
        ) from None


async def _stop(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, patience, SIGKILL. Its children end with it in each case."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _tail(path: Path) -> str:
    lines = path.read_text("utf-8", errors="replace").splitlines()
    return "\n".join(lines[-LOG_TAIL_LINES:])
