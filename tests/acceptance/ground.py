"""A cluster of real processes to be harmed, and what is asked of it afterwards."""

import asyncio
import contextlib
import os
import pathlib
import signal
import time

from crdtsync.commands import ListConflicts, ListRegions, Status, VerifyLog
from crdtsync.errors import CrdtSyncError
from regions.client import Client
from regions.devcluster import DevCluster, dev_cluster

APP = f"{pathlib.Path(__file__).with_name('app.py')}:app"
REGIONS = ("eu", "us", "ap")
POLL_S = 0.1
ASK_S = 10.0
#: What no log of a cluster may hold, whatever was done to it: errors that nobody foresaw.
BUGS = ("Traceback (most recent call last)", "never retrieved", "divergence", "incarnation.twin", "digest.differ")


class Ground:
    """One client per region over a running cluster."""

    def __init__(self, cluster: DevCluster, sink: pathlib.Path, clients: dict[str, Client]) -> None:
        self.cluster = cluster
        self.sink = sink
        self.clients = clients
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def kill(self, what: str) -> bool:
        """SIGKILL "eu node" or the like. The supervisor starts another."""
        try:
            os.kill(self.cluster.pids[what], signal.SIGKILL)
        except (ProcessLookupError, TypeError):  # it is between two lives
            return False
        return True

    async def ask(self, region: str, command, limit_s: float = ASK_S):
        async with asyncio.timeout(limit_s):
            return await self.clients[region].request(command)

    async def ask_all(self, command, limit_s: float = ASK_S) -> list:
        return list(await asyncio.gather(*(self.ask(region, command, limit_s) for region in self.clients)))

    async def until(self, condition, what: str, limit_s: float) -> float:
        """Poll an async condition. Returns the seconds that it took."""
        began = time.monotonic()
        while True:
            with contextlib.suppress(CrdtSyncError, TimeoutError):
                if await condition():
                    return time.monotonic() - began
            assert time.monotonic() - began < limit_s, f"not within {limit_s} s: {what}\n{await self.report()}"
            await asyncio.sleep(POLL_S)

    async def linked(self) -> bool:
        rows = await self.ask_all(ListRegions())
        return all(row["status"] in ("self", "up") for region in rows for row in region)

    async def agreed(self) -> bool:
        """Whether all nodes have applied the same commits and show the same state."""
        states = [(status["heads"], status["digest"]) for status in await self.ask_all(Status())]
        for heads, digest in states:
            for other_heads, other in states:
                assert heads != other_heads or digest == other, f"the same commits, two states: {states}"
        return all(state == states[0] for state in states)

    async def verified(self) -> None:
        for region in self.clients:
            report = await self.ask(region, VerifyLog(), 60)
            assert report["ok"], (region, report)

    async def conflicts(self, region: str) -> list:
        return await self.ask(region, ListConflicts(), 60)

    async def report(self) -> str:
        """What a failed check is understood by."""
        lines = []
        for region, client in self.clients.items():
            try:
                async with asyncio.timeout(2):
                    status = await client.request(Status())
                    seen = {row["region"]: row["status"] for row in await client.request(ListRegions())}
                keys = ("ready", "running", "gaps", "held_back", "quarantined", "recovering", "alarms", "workers")
                lines.append(f"{region}: sees {seen}; " + str({key: status[key] for key in keys}))
            except (CrdtSyncError, TimeoutError) as error:
                lines.append(f"{region}: {error!r}")
        return "\n".join(lines) + "\n" + self.log()[-3_000:]

    def log(self) -> str:
        return self.cluster.log_file.read_text(errors="replace")

    def bugs(self) -> list[str]:
        """Lines of the log that nothing done to a cluster excuses."""
        return [line for line in self.log().splitlines() if any(bug in line for bug in BUGS)]


@contextlib.asynccontextmanager
async def ground(folder: pathlib.Path, *, regions=REGIONS, concurrency=None, app=APP, environment=None):
    sink = folder / "sink.jsonl"
    sink.touch()
    (folder / "data").mkdir()
    async with contextlib.AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(
            dev_cluster(
                app,
                folder / "data",
                regions=regions,
                concurrency=concurrency,
                environment={"ACCEPTANCE_SINK": str(sink), "CRDTSYNC_NODE": "", **(environment or {})},
            )
        )
        clients = {}
        for region, url in cluster.urls.items():
            clients[region] = await stack.enter_async_context(Client(url, patience=30))
        yield Ground(cluster, sink, clients)


def resident_bytes(pid: int) -> int:
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    """What a process has used so far, in user and kernel mode."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
