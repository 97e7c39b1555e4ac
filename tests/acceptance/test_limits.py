"""A global limit of 10 over three regions: never exceeded through cuts, kills and pauses, and used while connected.

What ran when is told by the handlers themselves, in a ledger on the clock that all processes share.
"""

import asyncio
import contextlib
import json
import os
import pathlib
import random
import signal
import time

import pytest

from crdtsync.commands import CutLinks, HealLinks
from crdtsync.errors import CrdtSyncError
from regions.submission import task_spec
from tests.acceptance.ground import REGIONS, ground

APP = f"{pathlib.Path(__file__).with_name('limited_app.py')}:app"
LIMIT = 10
USED = 8  # on average, while connected
TASK_S = 1.5  # long beside what a start costs on a busy machine: what is measured is where rights are
SETTLE_S = 6  # after which rights have found the work
BACKLOG = 25  # tasks that wait in a region that is to be busy


class Ledger:
    """What ran when: intervals from the handlers' own notes; those of a killed process end with it."""

    def __init__(self, file: pathlib.Path, killed: dict[int, float]) -> None:
        self.changes: list[tuple[float, int]] = []
        open_: dict[str, tuple[int, float]] = {}
        for line in file.read_text().splitlines():
            note = json.loads(line)
            if note["what"] == "start":
                open_[note["attempt"]] = (note["pid"], note["at"])
            else:
                self._ran(open_.pop(note["attempt"])[1], note["at"])
        for pid, started in open_.values():
            self._ran(started, killed.get(pid, time.monotonic()))
        self.changes.sort()

    def _ran(self, started: float, stopped: float) -> None:
        self.changes += [(started, 1), (max(started, stopped), -1)]

    def most(self) -> int:
        running = most = 0
        for _, change in self.changes:
            running += change
            most = max(most, running)
        return most

    def average(self, since: float, until: float) -> float:
        area, running, last = 0.0, 0, since
        for at, change in self.changes:
            if since < at < until:
                area += running * (at - last)
                last = at
            running += change if at < until else 0
        return (area + running * (until - last)) / (until - since)


class Run:
    def __init__(self, ground, seed):
        self.ground = ground
        self.draw = random.Random(seed)
        self.busy = set()
        self.killed = {}
        self.deeds = []

    async def keep_busy(self, region):
        """While `region` is to be busy a backlog waits there."""
        while True:
            if region in self.busy:
                with contextlib.suppress(CrdtSyncError, TimeoutError):
                    async with asyncio.timeout(5):
                        (limit,) = await self.ground.clients[region].limits("queue:billing")
                        mine = next(row for row in limit["regions"] if row["region"] == region)
                        if mine["waiting"] < BACKLOG:
                            specs = [task_spec("busy", (TASK_S,), {}) for _ in range(BACKLOG)]
                            await self.ground.clients[region].submit_many(specs)
            await asyncio.sleep(0.5)

    async def phase(self, name, busy, seconds):
        """So long with work in these regions, all connected. The average of what ran, once rights had time to move."""
        self.busy = set(busy)
        await asyncio.sleep(SETTLE_S)
        since = time.monotonic()
        await asyncio.sleep(seconds)
        average = Ledger(self.ground.sink, self.killed).average(since, time.monotonic())
        self.deeds.append(f"{self.ground.seconds:6.1f} {name}: {average:.2f} ran on average")
        return average

    async def tell(self, region, command):
        with contextlib.suppress(CrdtSyncError, TimeoutError):
            await self.ground.ask(region, command, 3)

    async def harm(self, seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            region = self.draw.choice(REGIONS)
            deed = self.draw.choice(("cut", "cut", "heal", "kill node", "kill worker", "pause"))
            self.deeds.append(f"{self.ground.seconds:6.1f} {deed} {region}")
            if deed == "cut":
                await self.tell(region, CutLinks())
            elif deed == "heal":
                for each in REGIONS:
                    await self.tell(each, HealLinks())
            elif deed == "pause":
                await self.pause(region, self.draw.uniform(1, 6))
            else:
                pid = self.ground.cluster.pids[deed.replace("kill", region)]
                if self.ground.kill(deed.replace("kill", region)):
                    self.killed[pid] = time.monotonic()
            await asyncio.sleep(self.draw.uniform(0.3, 2.5))
        for region in REGIONS:
            await self.ground.until(lambda region=region: self.healed(region), f"heal {region}", 30)

    async def healed(self, region):
        await self.ground.ask(region, HealLinks(), 3)
        return True

    async def pause(self, region, seconds):
        """SIGSTOP of a node. Its worker goes on."""
        pid = self.ground.cluster.pids[f"{region} node"]
        with contextlib.suppress(ProcessLookupError, TypeError):
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(seconds)
            os.kill(pid, signal.SIGCONT)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_global_limit_is_never_exceeded_and_used_while_connected(tmp_path, seed):
    asyncio.run(check(tmp_path, seed))


async def check(tmp_path, seed):
    async with ground(tmp_path, concurrency=12, app=APP) as cluster:
        run = Run(cluster, seed)
        await cluster.until(cluster.linked, "all regions are linked", 30)
        feeders = [asyncio.create_task(run.keep_busy(region)) for region in REGIONS]
        try:
            everywhere = await run.phase("work everywhere", REGIONS, 10)
            alone = await run.phase("work in ap alone", ("ap",), 10)
            run.busy = set(REGIONS)
            await run.harm(40)
            await cluster.until(cluster.linked, "all regions are linked again", 30)
            await asyncio.sleep(5)
            again = await run.phase("work everywhere, after the harm", REGIONS, 10)
        finally:
            for feeder in feeders:
                feeder.cancel()
        ledger = Ledger(cluster.sink, run.killed)
        story = "\n".join([*run.deeds, f"at most {ledger.most()} ran at once"])
        print(story)
        assert ledger.most() <= LIMIT, story
        assert min(everywhere, alone, again) >= USED, story
        for region in REGIONS:
            (limit,) = await cluster.clients[region].limits("queue:billing")
            assert limit["rights"] == LIMIT, limit
        assert cluster.bugs() == []
