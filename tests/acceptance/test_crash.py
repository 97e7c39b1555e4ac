"""What was acknowledged and told nobody, when its node is killed, or killed and given an old disk."""

import asyncio
import contextlib
import json
import os
import shutil

import pytest

from crdtsync.commands import CutLinks, HealLinks, ListRegions, Status
from regions.submission import Options
from tests.acceptance.ground import ground

pytestmark = [pytest.mark.timeout(120)]
HELD = "us"
REACHABLE = pytest.mark.parametrize(
    "reachable",
    [pytest.param(True, id="others reachable"), pytest.param(False, id="others cut off", marks=pytest.mark.slow)],
)


async def cut(cluster):
    """The region is cut off from everybody, and everybody knows."""
    await cluster.ask(HELD, CutLinks())

    async def dark():
        return all(row["status"] != "up" for row in await cluster.ask(HELD, ListRegions()) if not row["self"])

    await cluster.until(dark, "cut off", 10)


async def heal(cluster):
    await cluster.until(lambda: cluster.ask(HELD, HealLinks()), "heal", 20)
    await cluster.until(cluster.linked, "links up", 20)


@contextlib.asynccontextmanager
async def held(cluster):
    """The node is dead, and stays so until the end of the `with`; its worker lives on."""
    hold = cluster.cluster.data / f"{HELD}.hold"
    pid = cluster.cluster.pids[f"{HELD} node"]
    hold.touch()
    cluster.kill(f"{HELD} node")
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break
        await asyncio.sleep(0.05)
    yield cluster.cluster.data / HELD
    hold.unlink()


async def writer(cluster):
    return (await cluster.ask(HELD, Status()))["writer"]


async def restarted(cluster, before):
    async def other():
        return await writer(cluster) != before

    await cluster.until(other, f"{HELD} restarted", 20)


async def submit(cluster, number, **options):
    handles = [
        await cluster.clients[HELD].submit("sure", 0, options=Options(labels={"n": str(n)}, **options))
        for n in range(number)
    ]
    assert all(handle.created for handle in handles)
    return [handle.id for handle in handles]


async def all_succeeded(cluster, tasks, regions):
    for region in regions:
        states = {record["id"]: record["state"] for record in await cluster.clients[region].list(limit=0)}
        if not all(states.get(task) == "succeeded" for task in tasks):
            return False
    return True


@REACHABLE
def test_nothing_acknowledged_is_missing_after_a_kill_before_any_gossip(tmp_path, reachable):
    async def scenario():
        async with ground(tmp_path) as cluster:
            before = await submit(cluster, 3)
            await cluster.until(lambda: all_succeeded(cluster, before, cluster.clients), "told everybody", 20)
            await cut(cluster)
            tasks = await submit(cluster, 20)
            async with held(cluster):
                pass
            if reachable:
                await heal(cluster)
            else:
                await cluster.until(lambda: all_succeeded(cluster, tasks, [HELD]), "they ran here, cut off", 20)
                await heal(cluster)
            await cluster.until(lambda: all_succeeded(cluster, tasks, cluster.clients), "everybody has them", 20)
            await cluster.until(cluster.agreed, "equal digests", 20)
            await cluster.verified()
            assert not cluster.bugs()

    asyncio.run(scenario())


@REACHABLE
@pytest.mark.parametrize("told", [True, False], ids=["tail told", "tail untold"])
def test_an_old_disk_recovers_its_tail_or_is_told_that_it_has_two_histories(tmp_path, reachable, told):
    """`told`: whether the peers had what the copy lacks."""

    async def scenario():
        copy = tmp_path / "copy"
        async with ground(tmp_path) as cluster:
            early = await submit(cluster, 5)
            await cluster.until(lambda: all_succeeded(cluster, early, cluster.clients), "told everybody", 20)
            before = await writer(cluster)
            async with held(cluster) as data:
                shutil.copytree(data, copy)
            await restarted(cluster, before)
            await cluster.until(cluster.linked, "links up", 20)
            await cluster.until(cluster.agreed, "equal digests", 20)
            if not told:
                await cut(cluster)
            tail = await submit(cluster, 10)
            regions = cluster.clients if told else [HELD]
            await cluster.until(lambda: all_succeeded(cluster, tail, regions), "the tail ran", 20)
            if told:
                await cluster.until(cluster.agreed, "everybody has the tail", 20)
                if not reachable:
                    await cut(cluster)
            before = await writer(cluster)
            async with held(cluster) as data:
                shutil.rmtree(data)
                shutil.copytree(copy, data)
                if not reachable:  # the copy is older than the cut: others refuse the link instead
                    for region in cluster.clients.keys() - {HELD}:
                        await cluster.ask(region, CutLinks((HELD,)))
            await restarted(cluster, before)
            fresh = await submit(cluster, 3)
            await cluster.until(lambda: all_succeeded(cluster, fresh, [HELD]), "new work runs at once", 20)
            for region in cluster.clients:
                await cluster.until(lambda region=region: cluster.ask(region, HealLinks()), "heal", 10)
            await cluster.until(cluster.linked, "links up", 20)
            kept = [*early, *fresh, *(tail if told else ())]
            await cluster.until(lambda: all_succeeded(cluster, kept, cluster.clients), "nothing is lost", 20)
            await cluster.until(cluster.agreed, "equal digests", 20)
            await cluster.verified()

            async def recovered():
                return not (await cluster.ask(HELD, Status()))["recovering"]

            await cluster.until(recovered, "every member has answered", 10)
            status = await cluster.ask(HELD, Status())
            assert not status["quarantined"]
            print(json.dumps(status["alarms"], indent=1))
            if told:
                assert any(alarm["what"] == "disk.behind" for alarm in status["alarms"])
            settled = await cluster.clients[HELD].wait(fresh[0], settled=True, timeout=20)
            assert settled["settled"]
            assert not cluster.bugs()

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_copy_taken_while_the_node_was_writing_is_no_worse(tmp_path):
    """Its files are of different moments: whatever of it cannot be read is left out, and fetched from the peers."""

    async def scenario():
        copy = tmp_path / "copy"
        async with ground(tmp_path) as cluster:
            acknowledged = []

            async def work():
                while True:
                    acknowledged.extend(await submit(cluster, 5))

            for _ in range(3):
                working = asyncio.create_task(work())
                await asyncio.sleep(1)
                shutil.rmtree(copy, ignore_errors=True)
                await asyncio.to_thread(shutil.copytree, cluster.cluster.data / HELD, copy)
                await asyncio.sleep(1)
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)
                tasks = list(acknowledged)
                await cluster.until(lambda t=tasks: all_succeeded(cluster, t, cluster.clients), "everybody knows", 20)
                before = await writer(cluster)
                async with held(cluster) as data:
                    shutil.rmtree(data)
                    shutil.copytree(copy, data)
                await restarted(cluster, before)
                await cluster.until(lambda t=tasks: all_succeeded(cluster, t, [HELD]), "nothing is lost", 20)
                await cluster.until(cluster.linked, "links up", 20)
                await cluster.until(cluster.agreed, "equal digests", 20)
                await cluster.verified()
            assert not cluster.bugs()

    asyncio.run(scenario())
