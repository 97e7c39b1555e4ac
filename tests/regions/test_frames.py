"""Websockets whose frames are handed over as they come: nothing lost, nothing twice, nobody starved."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from regions.transport.frames import (
    EARLY_FRAMES_MAX,
    FRAMES_PER_TURN,
    ListenedClientConnection,
    ListenedServerConnection,
    write_at_once,
)
from tests.regions.polling import until


def run(scenario):
    async def bounded():
        async with asyncio.timeout(20):
            await scenario()

    asyncio.run(bounded())


@asynccontextmanager
async def pair():
    """The listened end of a server, and an ordinary client of it."""
    arrived = asyncio.get_running_loop().create_future()

    async def handler(connection):
        arrived.set_result(connection)
        await connection.wait_closed()

    server = await serve(handler, "127.0.0.1", 0, create_connection=ListenedServerConnection, compression=None)
    port = server.sockets[0].getsockname()[1]
    async with server, connect(f"ws://127.0.0.1:{port}", compression=None) as client:
        yield await arrived, client


def test_what_came_before_anybody_listened_comes_first_and_in_order():
    async def scenario():
        async with pair() as (server, client):
            for number in range(100):
                await client.send(bytes((number,)))
            await until(lambda: len(server._early) >= EARLY_FRAMES_MAX)
            heard = []
            server.listen(heard.append)
            await until(lambda: len(heard) >= 100)
            await client.send(b"last")
            await until(lambda: len(heard) >= 101)
            assert heard == [*(bytes((number,)) for number in range(100)), b"last"]

    run(scenario)


def test_a_message_in_fragments_is_heard_once_and_whole_and_text_is_not_taken_for_bytes():
    async def scenario():
        async with pair() as (server, client):
            heard = []
            server.listen(heard.append)
            await client.send([b"a", b"", b"bc"])
            await client.send("text")
            await client.send(["t", "wo"])
            await client.send(b"")
            await until(lambda: len(heard) >= 4)
            assert heard == [b"abc", "text", "two", b""]

    run(scenario)


def test_a_frame_is_waited_for_until_the_connection_ends():
    async def scenario():
        async with pair() as (server, client):
            waiting = asyncio.create_task(server.next_frame())
            await client.send(b"x")
            assert await waiting == b"x"
            waiting = asyncio.create_task(server.next_frame())
            await asyncio.sleep(0)
            await client.close(1001, "bye")
            with pytest.raises(ConnectionClosed, match="bye"):
                await waiting

    run(scenario)


def test_writing_at_once_stops_where_the_reader_does_not_keep_up_and_nothing_is_lost():
    async def scenario():
        async with pair() as (server, client):
            sent = 0
            while write_at_once(server, sent.to_bytes(4, "big") * 4_096):
                sent += 1
                assert sent < 10_000
            heard = 0
            while heard < sent:
                assert await client.recv() == heard.to_bytes(4, "big") * 4_096
                heard += 1
            await server.drain()
            assert write_at_once(server, b"again")
            assert await client.recv() == b"again"
        assert not write_at_once(server, b"closed by now")

    run(scenario)


def test_websockets_still_has_what_the_listened_connections_build_on():
    for kind in (ListenedServerConnection, ListenedClientConnection):
        for name in ("process_event", "data_received", "connection_lost", "send_data", "pause_writing"):
            assert callable(getattr(kind.__mro__[2], name)), name
    assert FRAMES_PER_TURN > 0
