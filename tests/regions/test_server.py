"""The port for clients and workers: what it lets in, and what it shuts out."""

import asyncio
import contextlib
from collections import Counter

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from crdtsync import commands
from crdtsync.effects import Assignment
from crdtsync.errors import OverloadedError
from crdtsync.protocol.messages import (
    PROTOCOL_VERSION,
    Assigned,
    ClientRequest,
    Expect,
    Open,
    Opened,
    Refused,
    Response,
    WorkerRequest,
    decode_frame,
    encode_frame,
)
from regions.config import Limits
from regions.transport.frames import FRAMES_PER_TURN
from regions.transport.server import GuestServer
from tests.regions.fake_desk import FakeDesk, config
from tests.regions.polling import until

HELLO = commands.WorkerHello(worker="w1", app="shop", tasks=(), credits=4)


def run(scenario):
    """Run an async test with a limit of its own."""

    async def bounded():
        async with asyncio.timeout(20):
            await scenario()

    asyncio.run(bounded())


@contextlib.asynccontextmanager
async def serving(tmp_path, answers=None, **limits):
    desk = FakeDesk(answers)
    server = desk.server = GuestServer(config(tmp_path, limits=Limits(**limits)), desk)
    url = await server.start()
    try:
        yield desk, url
    finally:
        await server.close()


@contextlib.asynccontextmanager
async def opened(url, role="client"):
    async with connect(url, compression=None, max_size=None, proxy=None, close_timeout=0.2) as socket:
        await socket.send(encode_frame([Open(PROTOCOL_VERSION, role)]))
        (greeting,) = decode_frame(await socket.recv(), Expect.NODE)
        assert isinstance(greeting, Opened)
        yield socket


async def answers_of(socket, count):
    got = []
    while len(got) < count:
        got += decode_frame(await socket.recv(), Expect.NODE)
    return got


async def closing(socket):
    """How the other side ends the connection: code and reason."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            await socket.recv()
    return socket.close_code, socket.close_reason


def test_requests_are_answered_in_any_order_on_their_connection(tmp_path):
    async def scenario():
        async with serving(tmp_path, {commands.Status: {"ok": 1}}) as (desk, url), opened(url) as socket:
            await socket.send(encode_frame([ClientRequest(7, commands.Status()), ClientRequest(8, commands.Status())]))
            assert await answers_of(socket, 2) == [Response(7, {"ok": 1}), Response(8, {"ok": 1})]
            assert len(desk.commands) == 2

    run(scenario)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xff" * 100,
        b"\x81" * 5_000,  # nested arrays
        b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",  # an array of 2**64 - 1 items
        b"\x5b\x00\x00\x7f\xff\xff\xff\xff\xff",  # a byte string of 128 TiB
        b"\x80",
        encode_frame([Open(PROTOCOL_VERSION, "client")]),  # a second opening
        b"\x81\x83\x61q\x01\xa1bopfNoSuch",
        b"\xc1\x1a\x51\x4b\x67\xb0",
        "text",
    ],
    ids=lambda frame: repr(frame[:12]),
)
def test_a_frame_that_breaks_the_protocol_ends_its_connection_and_no_other(tmp_path, frame):
    async def scenario():
        async with serving(tmp_path, {commands.Status: {}}) as (desk, url):
            async with opened(url) as good, opened(url) as bad:
                await bad.send(frame)
                code, reason = await closing(bad)
                assert code == 1002
                assert reason
                await good.send(encode_frame([ClientRequest(1, commands.Status())]))
                assert await answers_of(good, 1) == [Response(1, {})]
            assert desk.server.refused_frames == 1

    run(scenario)


def test_a_frame_above_the_limit_is_not_read(tmp_path):
    async def scenario():
        async with serving(tmp_path, client_frame_bytes=64 << 10) as (_, url), opened(url) as socket:
            await socket.send(bytes(1 << 20))
            assert (await closing(socket))[0] == 1009

    run(scenario)


def test_strangers_get_no_further_than_the_first_frame(tmp_path):
    async def scenario():
        async with serving(tmp_path) as (desk, url):
            async with connect(url, proxy=None) as socket:
                await socket.send(encode_frame([ClientRequest(1, commands.Status())]))
                assert (await closing(socket))[0] == 1002
            async with connect(url, proxy=None) as socket:
                await socket.send(encode_frame([Open(0, "client")]))
                (refusal,) = decode_frame(await socket.recv(), Expect.NODE)
                assert isinstance(refusal, Refused)
                assert "version 0" in refusal.error["message"]
            assert not desk.commands

    run(scenario)


def test_a_silent_stranger_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr("regions.transport.server.OPEN_TIMEOUT_S", 0.05)

    async def scenario():
        async with serving(tmp_path) as (_, url), connect(url, proxy=None) as socket:
            assert (await closing(socket))[0] == 1002

    run(scenario)


def test_a_request_id_in_use_is_refused(tmp_path):
    async def scenario():
        async with serving(tmp_path) as (_, url), opened(url) as socket:
            await socket.send(encode_frame([ClientRequest(1, commands.Status()), ClientRequest(1, commands.Status())]))
            assert "used again" in (await closing(socket))[1]

    run(scenario)


def test_too_many_connections_and_requests_are_turned_away(tmp_path):
    async def scenario():
        async with serving(tmp_path, connections=2, requests_per_connection=1) as (_, url):  # noqa: SIM117
            async with opened(url) as socket, opened(url):
                with pytest.raises(InvalidStatus):
                    await connect(url, proxy=None)
                await socket.send(encode_frame([ClientRequest(1, commands.Status())]))
                await socket.send(encode_frame([ClientRequest(2, commands.Status())]))
                (answer,) = await answers_of(socket, 1)
                assert answer.id == 2
                assert answer.error["code"] == "overloaded"

    run(scenario)


def test_an_unready_node_says_so(tmp_path):
    async def scenario():
        async with serving(tmp_path) as (desk, url), connect(url, proxy=None) as socket:

            def unready():
                raise OverloadedError("loading")

            desk.greeting = unready
            await socket.send(encode_frame([Open(PROTOCOL_VERSION, "client")]))
            (refusal,) = decode_frame(await socket.recv(), Expect.NODE)
            assert refusal.error["code"] == "overloaded"

    run(scenario)


def test_what_a_client_still_waited_for_is_forgotten_with_it(tmp_path):
    async def scenario():
        async with serving(tmp_path) as (desk, url):
            async with opened(url) as socket:
                await socket.send(encode_frame([ClientRequest(1, commands.Await(task=bytes(16)))]))
                await socket.send(encode_frame([ClientRequest(2, commands.Await(task=bytes(16)))]))
                await socket.send(encode_frame([ClientRequest(3, commands.Forget(ticket=1))]))
                (answer,) = await answers_of(socket, 1)
                assert answer.id == 3
                assert len(desk.forgotten) == 1
            await until(lambda: not (len(desk.forgotten) < 2))

    run(scenario)


def test_a_long_listing_comes_in_parts(tmp_path):
    rows = [{"id": i, "pad": "x" * 1_000} for i in range(5_000)]

    async def scenario():
        async with serving(tmp_path, {commands.History: rows}) as (_, url), opened(url) as socket:
            await socket.send(encode_frame([ClientRequest(1, commands.History(bytes(16)))]))
            got = []
            while not got or not got[-1].final:
                got += await answers_of(socket, 1)
            assert len(got) > 1
            assert [row for part in got for row in part.value] == rows

    run(scenario)


@pytest.mark.slow
def test_a_slow_reader_is_closed_and_costs_a_bounded_queue(tmp_path):
    async def scenario():
        async with serving(tmp_path, client_queue_bytes=1 << 20) as (desk, url), opened(url) as socket:
            await socket.send(encode_frame([ClientRequest(1, commands.Watch())]))
            await until(lambda: desk.commands)
            socket.transport.pause_reading()
            (guest,) = desk.server._guests
            for _ in range(20_000):
                desk.server.reply(1, {"pad": "x" * 1_000}, None, final=False)
                assert guest.outgoing.waiting_bytes <= 1 << 20
            await until(lambda: not (desk.server.connected))

    run(scenario)


def assignment():
    attempt = (1, "eu/a#1-0123456789abcdef", 1, 0)
    values = {
        "task": bytes(16), "attempt": attempt, "number": 1, "name": "charge", "payload": b"", "term": 1,
        "region": "eu", "fence": 0, "deadline_ms": 0, "timeout_ms": 0, "root": attempt, "effects": (),
        "checkpoint": None, "checkpoint_index": 0, "undoes": None, "document": b"",
    }  # fmt: skip
    return Assignment(**values)


def test_workers_hear_of_attempts_after_their_hello_and_their_end_is_told(tmp_path):
    async def scenario():
        async with serving(tmp_path, {commands.WorkerHello: {"region": "eu"}}) as (desk, url):
            async with opened(url, "worker") as socket:
                await socket.send(encode_frame([WorkerRequest(1, HELLO)]))
                await answers_of(socket, 1)
                desk.server.run("w1", (assignment(),))
                desk.server.run("nobody", (assignment(),))
                (pushed,) = await answers_of(socket, 1)
                assert isinstance(pushed, Assigned)
                assert pushed.assignments[0].name == "charge"
            await until(lambda: desk.commands[-1] == commands.WorkerGone(worker="w1"))

    run(scenario)


def test_a_worker_that_connects_again_takes_its_place_without_being_lost(tmp_path):
    async def scenario():
        async with serving(tmp_path, {commands.WorkerHello: {}}) as (desk, url), opened(url, "worker") as old:
            await old.send(encode_frame([WorkerRequest(1, HELLO)]))
            await answers_of(old, 1)
            async with opened(url, "worker") as new:
                await new.send(encode_frame([WorkerRequest(1, HELLO)]))
                await answers_of(new, 1)
                assert "again" in (await closing(old))[1]
                assert not any(isinstance(command, commands.WorkerGone) for command in desk.commands)
                desk.server.run("w1", (assignment(),))
                await answers_of(new, 1)

    run(scenario)


def test_a_worker_speaks_after_its_hello_and_clients_not_as_workers(tmp_path):
    async def scenario():
        async with serving(tmp_path) as (_, url):
            async with opened(url, "worker") as socket:
                await socket.send(encode_frame([WorkerRequest(1, commands.Heartbeat(worker="w1"))]))
                assert "before WorkerHello" in (await closing(socket))[1]
            async with opened(url, "client") as socket:
                await socket.send(encode_frame([WorkerRequest(1, HELLO)]))
                assert (await closing(socket))[0] == 1002

    run(scenario)


def test_closing_says_goodbye(tmp_path):
    async def scenario():
        async with serving(tmp_path) as (desk, url), opened(url) as socket:
            await asyncio.gather(desk.server.close(), closing(socket))
            assert socket.close_code == 1001

    run(scenario)


def test_frames_that_come_together_do_not_hold_up_other_connections(tmp_path):
    """One read of the socket brings thousands of small frames: everybody else has a turn between some and the next."""

    async def scenario():
        turn, taken_at = 0, []

        def status(_command):
            taken_at.append(turn)
            return {}

        async with serving(tmp_path, {commands.Status: status}) as (_, url), opened(url) as socket:
            for number in range(300):
                await socket.send(encode_frame([ClientRequest(number, commands.Status())]))
            while len(taken_at) < 300:
                turn += 1
                await asyncio.sleep(0)
        assert len(taken_at) == 300
        assert max(Counter(taken_at).values()) <= FRAMES_PER_TURN

    run(scenario)
