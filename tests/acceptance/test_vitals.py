"""Does an idle cluster rest, and how soon does work go on after a death?"""

import asyncio
import time

import pytest

from regions.submission import task_spec
from tests.acceptance.ground import cpu_seconds, ground

IDLE_S = 10
IDLE_CPU_MAX = 0.02  # of one core, per node
RUNS_AGAIN_S = 5


def nodes(cluster):
    return {name: pid for name, pid in cluster.cluster.pids.items() if name.endswith("node")}


async def bulk(cluster, region, number):
    handles = await cluster.clients[region].submit_many([task_spec("sure", (0,), {}) for _ in range(number)])
    await asyncio.gather(*(handle.wait(timeout=60) for handle in handles[-10:]))

    async def ended():
        return not await cluster.clients[region].list(state="waiting", limit=1)

    await cluster.until(ended, "all ended", 60)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_an_idle_node_rests(tmp_path):
    async def scenario():
        async with ground(tmp_path) as cluster:
            await bulk(cluster, "eu", 500)  # nothing of it may keep anybody busy
            await asyncio.sleep(5)
            before = {name: cpu_seconds(pid) for name, pid in nodes(cluster).items()}
            await asyncio.sleep(IDLE_S)
            used = {name: (cpu_seconds(pid) - before[name]) / IDLE_S for name, pid in nodes(cluster).items()}
            print("idle:", {name: f"{share:.1%}" for name, share in used.items()})
            assert max(used.values()) < IDLE_CPU_MAX, used

    asyncio.run(scenario())


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_node_with_thousands_of_tasks_is_back_within_seconds(tmp_path):
    async def scenario():
        async with ground(tmp_path) as cluster:
            await bulk(cluster, "us", 5_000)
            handle = await cluster.clients["us"].submit("sure", 3)
            await asyncio.sleep(0.5)
            cluster.kill("us node")
            began = time.monotonic()
            again = await cluster.clients["us"].submit("sure", 0)
            await again.wait(timeout=RUNS_AGAIN_S * 2)
            took = time.monotonic() - began
            print(f"a new task ran {took:.1f} s after the kill of a node with 5,000 tasks")
            assert took < RUNS_AGAIN_S
            await handle.wait(timeout=20)
            await cluster.until(cluster.linked, "links up", 10)
            await cluster.until(cluster.agreed, "equal digests", 10)

    asyncio.run(scenario())


@pytest.mark.timeout(90)
@pytest.mark.parametrize("what", ["eu worker", "eu node"])
def test_what_ran_on_the_killed_runs_again_within_seconds(tmp_path, what):
    async def scenario():
        async with ground(tmp_path) as cluster:
            client = cluster.clients["eu"]
            handle = await client.submit("book", 0.2)
            await handle.wait(timeout=10)
            long = await client.submit("book", 4)

            async def lines():
                return [line for line in cluster.sink.read_text().splitlines() if long.id in line]

            await cluster.until(lines, "it runs", 10)
            pids = cluster.cluster.pids
            cluster.kill("eu worker")
            if what == "eu node":  # both at once: nobody is there to say that it still runs
                cluster.kill("eu node")

            async def replaced():
                return all(cluster.cluster.pids[name] != pids[name] for name in {"eu worker", what})

            await cluster.until(replaced, "restarted", 10)
            began = time.monotonic()

            async def second():
                return len((await long.status())["attempts"]) == 2

            await cluster.until(second, "it runs again", 20)
            took = time.monotonic() - began
            print(f"{what}: its work ran again after {took:.1f} s")
            assert took < RUNS_AGAIN_S
            shown = await long.wait(timeout=20)
            assert shown["state"] == "succeeded"

    asyncio.run(scenario())
