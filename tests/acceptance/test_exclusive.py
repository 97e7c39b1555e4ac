"""What must not happen twice: `quorum` tasks while regions are cut, stopped and killed.

`make acceptance ARGS='--seed 7 -k exclusive'` plays the plan of one seed again, on whatever schedule the machine gives.
"""

import asyncio
import contextlib
import json
import os
import pathlib
import signal
import time
from collections import defaultdict

import pytest

from regions.submission import Options, new_task_id, task_spec
from tests.acceptance import exclusive_app
from tests.acceptance.ground import REGIONS, ground
from tests.acceptance.history import read_log, stories
from tests.acceptance.test_chaos import Chaos
from tests.acceptance.world import Harmed, World, overlaps

APP = f"{pathlib.Path(__file__).with_name('exclusive_app.py')}:app"
LEASE_S = 3.0  # of a dev cluster
QUEUES = ("north", "south")


class ExclusiveChaos(Chaos):
    """Cuts, kills, and processes that stand still for longer than a lease."""

    ended_s = 90  # leases have to be got again after the last heal, one after another
    never_raises = ("strike",)

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.harmed = Harmed({}, [])
        self.standing = {}  # pid -> the task that will continue it

    # Work ----------------------------------------------------------------------------------------

    def spec(self, number, earlier):
        draw = self.draw
        times = [draw.uniform(0, 0.3), draw.uniform(0, 0.05), draw.uniform(0, 0.2)]
        if draw.random() < 0.2:  # long enough that a cut, a stop or a kill finds it under way
            times[draw.randrange(3)] = draw.uniform(1, 2 * LEASE_S)
        task = new_task_id()
        options = {"region": draw.choice(["here", "spread", *REGIONS]), "queue": draw.choice(QUEUES), "id": task}
        scope = f"queue {options['queue']}"
        kind = draw.choices(["queue", "task", "key"], weights=[8, 1, 1])[0]
        if kind == "task":
            options |= {"scope": "task"}
            scope = f"task {number}"
        elif kind == "key":
            options |= {"key": f"key {number}", "id": None}
            scope = f"key {number}"
        return "strike", task_spec("strike", (scope, *(round(seconds, 3) for seconds in times)), {}, Options(**options))

    # Harm ----------------------------------------------------------------------------------------

    def acts(self):
        return {
            self.isolate: 3,
            self.part: 3,
            self.heal: 5,
            self.kill_node: 1,
            self.kill_worker: 2,
            self.stand_still: 3,
        }

    def kill(self, what):
        pid = self.ground.cluster.pids[what]
        if pid in self.standing:
            return False
        if killed := self.ground.kill(what):
            self.harmed.killed[pid] = time.monotonic()
        return killed

    async def kill_node(self):
        region = self.draw.choice(REGIONS)
        self.did(f"kill node {region}: {self.kill(f'{region} node')}")

    async def kill_worker(self):
        region = self.draw.choice(REGIONS)
        self.did(f"kill worker {region}: {self.kill(f'{region} worker')}")

    async def stand_still(self):
        """SIGSTOP, for longer than a lease: a node, a worker, or both of a region."""
        region = self.draw.choice(REGIONS)
        parts = self.draw.choice([("node",), ("worker",), ("node", "worker")])
        seconds = LEASE_S + self.draw.uniform(0.5, 3)
        for part in parts:
            pid = self.ground.cluster.pids[f"{region} {part}"]
            if pid in self.standing:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                self.did(f"stop {part} {region} for {seconds:.1f} s")
                self.standing[pid] = asyncio.create_task(self.go_on(pid, seconds))

    async def go_on(self, pid, seconds):
        at = time.monotonic()
        try:
            await asyncio.sleep(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            self.harmed.stopped.append((pid, at, time.monotonic()))
            self.standing.pop(pid, None)

    async def harm(self):
        try:
            await super().harm()
        finally:
            waiting = list(self.standing.values())
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    # Afterwards ----------------------------------------------------------------------------------

    async def judge(self):
        result = await super().judge()
        problems = self.problems()
        problems += token_problems(stories(await read_log(self.ground.clients["eu"])))
        assert not problems, "\n".join(problems[:10])
        return result | self.facts | {"harm": {"killed": len(self.harmed.killed), "stopped": len(self.harmed.stopped)}}

    def problems(self):
        world = self.ground.world
        runs = world.ran(self.harmed, time.monotonic())
        self.facts = {
            "tokens": len({run.token for run in runs}),
            "refused by the sink": len(world.refused()),
            "repeats that the keys caught": world.repeats(),
        }
        return [
            *world_problems(world, self.acknowledged),
            *(f"at once: {self.told(one)} and {self.told(other)}" for one, other in overlaps(runs)),
        ]

    def told(self, run):
        began, ended = run.began - self.ground.started, run.ended - self.ground.started
        return f"{run.scope} token {run.token} in {run.region} (pid {run.pid}) from {began:.1f} to {ended:.1f}"


def world_problems(world, acknowledged):
    """What the sinks took that they should not, or never got."""
    problems = []
    for scope, tokens in world.accepted().items():
        if tokens != sorted(tokens):
            problems.append(f"{scope}: the sink accepted decreasing tokens: {tokens}")
        if 0 in tokens:
            problems.append(f"{scope}: an effect came without a token")
    taken = world.taken()
    problems += [
        f"task {task}: {len(keys)} effects were taken: {keys}" for task, keys in taken.items() if len(keys) != 1
    ]
    strikes = {task for task, (name, _) in acknowledged.items() if name == "strike"}
    if missing := strikes - taken.keys():
        problems.append(f"{len(missing)} tasks succeeded without an effect: {sorted(missing)[:3]}")
    if missing := strikes - world.landed():
        problems.append(f"{len(missing)} tasks whose effect the fence kept out for ever: {sorted(missing)[:3]}")
    return problems


def token_problems(told):
    """What the log says about tokens: in each scope, each belongs to one holder."""
    problems, holders = [], defaultdict(set)
    for task, story in told.items():
        if not story.submissions or not story.submitted.options.partition.startswith("quorum"):
            continue
        tokens = [attempt.claim.token for attempt in story.attempts.values()]
        if 0 in tokens:
            problems.append(f"task {task}: an attempt without a token")
        for attempt in story.attempts.values():
            holders[scope_of(story.submitted), attempt.claim.token].add(attempt.id.writer)
    problems += [
        f"token {token} of {scope} was that of {who}" for (scope, token), who in holders.items() if len(who) > 1
    ]
    return problems


def scope_of(submitted):
    """What the lease of a task is about."""
    if submitted.key:
        return f"key {submitted.key}"
    return (
        f"task {submitted.task.hex()}" if submitted.options.partition.endswith(":task") else f"queue {submitted.queue}"
    )


@contextlib.asynccontextmanager
async def exclusive_ground(folder, **options):
    path = folder / "world.db"
    exclusive_app.create(path)
    environment = {"ACCEPTANCE_WORLD": str(path)}
    async with ground(folder, app=APP, environment=environment, **options) as cluster:
        cluster.world = World(path)
        yield cluster


async def stop_past_a_lease(folder):
    """Stop the holder while its call is on the way, until another region has run the task; then let it go on."""
    async with exclusive_ground(folder) as cluster:
        world = cluster.world
        # Its first handler takes so long; the second is the only one that gets through meanwhile.
        handle = await cluster.clients["eu"].submit("strike", "late", 0.0, 1.0, 0.0)
        task = handle.id

        async def begun():
            return bool(world.begun(task))

        async def landed():
            return bool(world.arrived(task))

        async def landed_late():
            return len(world.arrived(task)) > 1

        await cluster.until(begun, "a handler began", 30)
        await asyncio.sleep(0.3)
        ((old, holder),) = world.begun(task)
        pids = [cluster.cluster.pids[f"{holder} {part}"] for part in ("node", "worker")]
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            await cluster.until(landed, "another region ran it", 8 * LEASE_S)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        await cluster.until(landed_late, "the call of the old holder arrived", 20)
        first, second = world.arrived(task)
        other = next(region for region in REGIONS if region != holder)
        result = await asyncio.wait_for(cluster.clients[other].handle(task).result(), 30)
        await cluster.until(cluster.agreed, "equal heads and digests", 20)
        return (old, holder), first, second, result, world.taken()[task], world.repeats()


@pytest.mark.timeout(120)
def test_a_call_from_before_a_long_stop_is_refused_where_it_lands(tmp_path):
    (old, holder), first, second, result, keys, repeats = asyncio.run(stop_past_a_lease(tmp_path))
    new, region, accepted = first
    assert accepted
    assert new > old
    assert region != holder
    assert second == (old, holder, False)
    assert result == region
    assert (len(keys), repeats) == (1, 1)


async def run_chaos(folder, seed, tasks, seconds):
    async with exclusive_ground(folder) as cluster:
        chaos = ExclusiveChaos(cluster, seed, tasks, seconds)
        return await chaos.run()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_hundred_exclusive_tasks_survive_a_minute_of_chaos(tmp_path, seed):
    told = asyncio.run(run_chaos(tmp_path, seed, tasks=200, seconds=60))
    print(f"seed {seed}:", json.dumps(told, indent=1))


@pytest.mark.timeout(200)
def test_exclusive_tasks_survive_some_seconds_of_chaos(tmp_path, seed):
    told = asyncio.run(run_chaos(tmp_path, seed, tasks=30, seconds=12))
    print(f"seed {seed}:", json.dumps(told, indent=1))
