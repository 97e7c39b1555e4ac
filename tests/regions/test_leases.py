"""Locks and leaders as programs use them, over a real node and a real connection."""

import asyncio
import contextlib

import pytest

from crdtsync import commands
from crdtsync.errors import LeaseHeldError, LeaseLostError, QuorumUnavailableError
from regions import cli, leases
from regions.client import Client
from regions.config import Config
from regions.node import Node
from regions.storage.memory import MemoryStore
from regions.sync_client import SyncClient
from tests.regions.fake_desk import AnsweringNode

LEASE_MS = 500


@contextlib.asynccontextmanager
async def serving(tmp_path, **values):
    node = Node(Config(region="eu", data_dir=tmp_path, lease_ms=LEASE_MS, **values), MemoryStore())
    started = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(node.run(lambda *urls: started.set_result(urls)))
    await asyncio.wait((running, started), return_when=asyncio.FIRST_COMPLETED)
    try:
        yield node
    finally:
        node.stop()
        node.stop()
        await running


def run(scenario):
    async def bounded():
        async with asyncio.timeout(30):
            await scenario()

    asyncio.run(bounded())


def test_one_program_leads_and_the_next_one_follows_with_a_larger_token(tmp_path):
    async def scenario():
        async with serving(tmp_path) as node, Client(node.url) as one, Client(node.url) as other:
            async with one.leader("billing") as lease:
                assert lease.valid()
                assert lease.region == "eu"
                with pytest.raises(LeaseHeldError):
                    async with other.lock("billing", wait=0.05):
                        raise AssertionError("two hold it")
                await asyncio.sleep(3 * LEASE_MS / 1_000)  # longer than it lasts unless renewed
                assert lease.valid()
                assert not lease.lost.is_set()
                [record] = await other.leases()
                assert (record["scope"], record["token"]) == ("user:billing", lease.token)
            assert not lease.valid()
            assert lease.lost.is_set()
            async with other.leader("billing") as following:
                assert following.token > lease.token

    run(scenario)


def test_a_program_finds_out_that_it_was_paused_for_too_long(tmp_path, monkeypatch):
    async def scenario():
        async with serving(tmp_path) as node, Client(node.url) as client, client.leader("billing") as lease:
            lease.check()
            slept_ms = leases.now_ms() + 60_000
            monkeypatch.setattr(leases, "now_ms", lambda: slept_ms)
            assert not lease.valid()
            with pytest.raises(LeaseLostError, match="stop what needs it"):
                lease.check()
            await lease.lost.wait()

    run(scenario)


def test_a_lease_is_lost_when_its_node_is_gone(tmp_path):
    async def scenario():
        async with contextlib.AsyncExitStack() as stack:
            async with serving(tmp_path) as node:
                client = await stack.enter_async_context(Client(node.url))
                lease = client.leader("billing", ttl=1)
                await lease.acquire()
            await asyncio.wait_for(lease.lost.wait(), 5)
            assert not lease.valid()
            await lease.release()

    run(scenario)


def test_a_lease_without_a_majority_says_what_is_missing(tmp_path):
    async def scenario():
        members = {"eu": "ws://127.0.0.1:1", "us": "ws://127.0.0.1:2", "ap": "ws://127.0.0.1:3"}
        async with serving(tmp_path, members=members) as node, Client(node.url) as client:
            with pytest.raises(QuorumUnavailableError, match="needs 2 of 3 regions, sees 1"):
                await client.lock("billing", wait=0.05).acquire()

    run(scenario)


def test_programs_without_a_loop_lead_too(tmp_path):
    async def scenario():
        async with serving(tmp_path) as node:

            def use():
                with SyncClient(node.url) as client:
                    with client.leader("billing") as lease:
                        assert lease.valid()
                    assert not lease.valid()
                    with client.lock("billing", wait=5) as again:
                        assert again.token > lease.token

            await asyncio.to_thread(use)

    run(scenario)


def test_the_command_line_lists_shows_and_releases(tmp_path, capsys, monkeypatch):
    record = {"scope": "user:billing", "holder": "eu", "token": 7, "left_ms": 900, "voters": ["eu"], "why_not": ""}
    answers = {
        commands.LeaseList: lambda command: [record] if command.scope in ("", "user:billing") else [],
        commands.LeaseRelease: {"name": "billing", "released": True, "free_in_ms": 900},
    }
    with AnsweringNode(tmp_path, answers) as node:
        monkeypatch.setenv("CRDTSYNC_NODE", node.url)
        assert cli.run(["lease", "list"]) == 0
        assert "user:billing" in capsys.readouterr().out
        assert cli.run(["lease", "show", "billing", "-o", "json"]) == 0
        assert '"token": 7' in capsys.readouterr().out
        assert cli.run(["lease", "release", "billing", "-o", "json"]) == 0
        assert '"free_in_ms": 900' in capsys.readouterr().out
        assert cli.run(["lease", "show", "queue:payments"]) == 3
