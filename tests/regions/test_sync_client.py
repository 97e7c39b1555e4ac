from __future__ import annotations

import asyncio
from typing import Any

import pytest

from crdtsync import commands as c
from crdtsync.errors import UnknownTaskError, UnreachableError
from crdtsync.protocol.messages import Response
from regions.submission import task_spec
from regions.sync_client import SyncClient, SyncHandle
from tests.regions.fake_node import SILENCE, WITHIN_S, FakeNode


def with_node(use: Any, **script: Any) -> None:
    """Run the blocking `use(url)` in a thread while a fake node answers."""

    async def scenario() -> None:
        async with asyncio.timeout(WITHIN_S), FakeNode() as node:
            node.script |= {getattr(c, name): answer for name, answer in script.items()}
            await asyncio.to_thread(use, node)

    asyncio.run(scenario())


def test_calls_block_and_errors_are_the_same() -> None:
    def use(node: FakeNode) -> None:
        with SyncClient(node.url) as client:
            handle = client.submit("charge", 1)
            assert handle.created
            assert handle.result(timeout=5) == 7
            assert handle.wait()["state"] == "succeeded"
            answers = client.submit_many([task_spec("x", (), {})])
            assert isinstance(answers[0], SyncHandle)
            with pytest.raises(UnknownTaskError):
                client.handle(handle.id).status()
            assert client.request(c.Status()) == {"region": "eu"}
            handle.explain()
            handle.cancel("why")
            handle.requeue()
        with pytest.raises(UnreachableError, match="not open"):
            client.request(c.Status())

    with_node(use, Await={"state": "succeeded", "result": 7}, Describe=UnknownTaskError("no"))


def test_a_watch_is_an_ordinary_iterator() -> None:
    def use(node: FakeNode) -> None:
        with SyncClient(node.url) as client:
            changes = client.watch()
            assert next(changes) == {"state": "running"}
            changes.close()

    async def scenario() -> None:
        async with asyncio.timeout(WITHIN_S), FakeNode() as node:
            node.script[c.Watch] = SILENCE
            using = asyncio.create_task(asyncio.to_thread(use, node))
            await node.until(lambda: node.of(c.Watch))
            number = node.connections[0].requests[-1][0]
            await node.connections[0].send(Response(number, {"state": "running"}, final=False))
            await node.until(lambda: node.of(c.Forget))
            await using

    asyncio.run(scenario())


def test_a_client_that_cannot_connect_leaves_no_thread() -> None:
    client = SyncClient("ws://127.0.0.1:9", connect_timeout=0.1)
    with pytest.raises(UnreachableError):
        client.__enter__()
    assert not client._thread.is_alive()
