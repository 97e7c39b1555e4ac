"""A node in this process: its start, its answers, its end."""

import asyncio
import contextlib
import logging
import socket
import time

import pytest

from crdtsync import App, Limit, commands
from crdtsync.errors import ConfigError, CrdtSyncError
from crdtsync.replica import Replica
from regions.client import Client
from regions.config import Config
from regions.execution.worker import Worker
from regions.node import Node
from regions.storage.memory import MemoryStore
from tests.regions.polling import until

app = App("node-tests")


@app.task
async def add(ctx, a: int, b: int) -> int:
    return a + b


@app.task
async def nap(ctx, seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "rested"


def run(scenario):
    async def bounded():
        async with asyncio.timeout(30):
            await scenario()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others, f"left behind: {others}"

    asyncio.run(bounded())


class Running:
    def __init__(self, tmp_path, store=None, **values):
        self.node = Node(Config(region="eu", data_dir=tmp_path, **values), store or MemoryStore())
        self.ended = None

    async def start(self):
        started = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self.node.run(lambda *urls: started.set_result(urls)))
        await asyncio.wait((self.task, started), return_when=asyncio.FIRST_COMPLETED)
        if self.task.done():
            self.task.result()
        return self

    async def stop(self):
        self.node.stop()
        return await self.task


@contextlib.asynccontextmanager
async def serving(tmp_path, *, worker=True, **values):
    running = await Running(tmp_path, **values).start()
    handlers = Worker(app, running.node.url, concurrency=4, drain_grace=0.1) if worker else None
    working = asyncio.create_task(handlers.run()) if handlers else None
    try:
        if handlers:
            await handlers.ready.wait()
        async with Client(running.node.url) as client:
            yield running, client
    finally:
        if handlers:
            handlers.force()
            await working
        if not running.task.done():
            running.node.stop()
            running.node.stop()
            await running.task


def test_it_runs_tasks_and_verifies_its_log(tmp_path):
    async def scenario():
        async with serving(tmp_path) as (_, client):
            handle = await client.submit("add", 1, 2)
            assert await handle.result(timeout=10) == 3
            report = await client.request(commands.VerifyLog())
            assert report["ok"]
            assert report["digest_compared"]
            assert report["tasks"] == 1
            (head,) = await client.request(commands.LogHeads())
            blobs = await client.request(commands.ReadLog(writer=head["writer"], first=1))
            assert len(blobs) == head["head"]

    run(scenario)


def test_the_shares_of_limits_are_counted_when_the_log_is_verified(tmp_path):
    async def scenario():
        async with serving(tmp_path) as (_, client):
            await client.limit_set(Limit(queue="default", concurrency=4))
            await client.limit_set(Limit(queue="default", concurrency=2))
            assert await (await client.submit("add", 1, 2)).result(timeout=10) == 3
            report = await client.request(commands.VerifyLog())
            assert report["findings"] == []
            assert report["digest_compared"]

    run(scenario)


@pytest.mark.slow
def test_stopping_lets_a_handler_finish_and_takes_nothing_new(tmp_path):
    async def scenario():
        async with serving(tmp_path) as (running, client):
            handle = await client.submit("nap", 0.5)
            await until_running(client, handle)
            stopping = asyncio.create_task(running.stop())
            assert await handle.result(timeout=10) == "rested"
            assert await stopping is True

    run(scenario)


@pytest.mark.slow
def test_a_drain_has_a_limit_and_a_second_stop_does_not_wait_for_it(tmp_path):
    async def scenario():
        async with serving(tmp_path, drain_timeout_s=0.2) as (running, client):
            await until_running(client, await client.submit("nap", 20))
            assert await running.stop() is True
        async with serving(tmp_path, drain_timeout_s=20) as (running, client):
            await until_running(client, await client.submit("nap", 20))
            started = time.monotonic()
            running.node.stop()
            await asyncio.sleep(0.1)
            assert await running.stop() is False
            assert time.monotonic() - started < 5

    run(scenario)


async def until_running(client, handle):
    while (await handle.status())["state"] != "running":  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def test_what_was_accepted_is_there_after_a_restart(tmp_path):
    async def scenario():
        store = MemoryStore()
        async with serving(tmp_path, store=store) as (_, client):
            handle = await client.submit("nap", 0)
            await handle.result(timeout=10)
        async with serving(tmp_path, store=store, worker=False) as (_, client):
            assert (await client.status(handle.id))["result"] == "rested"

    run(scenario)


def test_a_port_in_use_is_a_configuration_error(tmp_path):
    async def scenario():
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            for which in ("listen", "peer"):
                with pytest.raises(ConfigError, match="cannot be bound"):
                    await Running(tmp_path, **{which: {"port": port}}).start()

    run(scenario)


def test_a_failing_disk_answers_retry_and_recovers(tmp_path):
    async def scenario():
        store = MemoryStore()
        async with serving(tmp_path, store=store) as (running, client):
            first = await client.submit("add", 1, 1)
            await first.result(timeout=10)
            store.fail_appends("disk full")
            with pytest.raises(CrdtSyncError) as caught:
                await client.submit("add", 2, 2)
            assert caught.value.exit_code in (69, 75)
            store.fail_appends(None)
            await until(lambda: running.node._driver.ready)
            assert await (await client.submit("add", 3, 3)).result(timeout=20) == 6
            assert (await client.status(first.id))["result"] == 2

    run(scenario)


def test_it_says_when_it_is_up(tmp_path, caplog):
    caplog.set_level(logging.INFO)

    async def scenario():
        async with serving(tmp_path, worker=False) as (running, client):
            assert running.node.url.startswith("ws://127.0.0.1:")
            assert client.region == "eu"

    run(scenario)


def test_a_state_that_fails_again_and_again_is_reloaded_ever_more_seldom(tmp_path, monkeypatch):
    """Each reload is a start with an identity of its own: a bug must not use them up by the thousand."""

    async def scenario():
        store = MemoryStore()
        running = await Running(tmp_path, store).start()
        monkeypatch.setattr(Replica, "tick", lambda _self, _now: 1 / 0)
        node_driver = running.node._driver
        before = store._incarnation
        await until(lambda: node_driver._rebuild_delay >= 0.4)
        starts = store._incarnation - before
        monkeypatch.undo()
        await running.stop()
        assert starts <= 4

    run(scenario)
