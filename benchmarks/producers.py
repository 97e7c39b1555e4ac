"""Who submits: a client over a websocket, or the node itself inside the producer's process.

Both offer the ways in which people submit: one call after the other, some calls in flight, and in bulk.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Protocol

from benchmarks.processes import LOST_AFTER_MS
from crdtsync.commands import Submit, TaskSpec
from crdtsync.errors import CrdtSyncError
from regions.client import Client
from regions.config import Config
from regions.node import Node
from regions.observability.logs import configure_logs
from regions.submission import task_spec

TASK: Final = "mark"
SPECS_PER_SUBMIT: Final = 500  # what `Client.submit_many` puts into a frame


class Producer(Protocol):
    """Submits tasks that mark their slots. On return a task is durable."""

    async def submit(self, slot: int) -> None: ...

    async def submit_bulk(self, slots: Iterable[int]) -> None: ...


async def submit_each(producer: Producer, slots: Iterable[int]) -> None:
    """One call after the other."""
    for slot in slots:
        await producer.submit(slot)


async def submit_in_flight(producer: Producer, slots: Iterable[int], calls: int) -> None:
    """`calls` at a time, each followed by the next as soon as it is answered."""
    left = iter(slots)

    async def go_on() -> None:
        for slot in left:
            await producer.submit(slot)

    async with asyncio.TaskGroup() as group:
        for _ in range(calls):
            group.create_task(go_on())


class ClientProducer:
    """A program with a `Client`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def submit(self, slot: int) -> None:
        await self._client.submit(TASK, slot)

    async def submit_bulk(self, slots: Iterable[int]) -> None:
        for answer in await self._client.submit_many(spec_of(slot) for slot in slots):
            if isinstance(answer, CrdtSyncError):
                raise answer


class EmbeddedProducer:
    """A program that runs its region's node on its own loop, and hands it tasks without a socket."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def submit(self, slot: int) -> None:
        await self._ask([slot])

    async def submit_bulk(self, slots: Iterable[int]) -> None:
        left = list(slots)
        for begin in range(0, len(left), SPECS_PER_SUBMIT):
            await self._ask(left[begin : begin + SPECS_PER_SUBMIT])

    async def _ask(self, slots: list[int]) -> None:
        for record in await self._node.ask(Submit(tuple(map(spec_of, slots)))):
            if "error" in record:
                raise RuntimeError(record["error"]["message"])


def spec_of(slot: int) -> TaskSpec:
    return task_spec(TASK, (slot,), {})


@asynccontextmanager
async def embedded_node(data: Path) -> AsyncIterator[Node]:
    """A node of one region on this loop, its data in a directory that exists; workers find it at its `url`."""
    config = Config(region="eu", cluster="benchmarks", data_dir=data, lost_after_ms=LOST_AFTER_MS, log_level="error")
    configure_logs(config.log_level)
    node = Node(config)
    up = asyncio.Event()
    running = asyncio.create_task(node.run(lambda _url, _peer_url: up.set()))
    try:
        waiting = asyncio.create_task(up.wait())
        await asyncio.wait((running, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if running.done():
            running.result()
        yield node
    finally:
        node.stop()
        await running
