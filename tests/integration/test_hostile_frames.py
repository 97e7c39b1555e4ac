"""Whatever is thrown at the two ports of a real node: refused with a reason in its log, memory flat, others unaffected."""

import asyncio
import json
import os
import pathlib
import random
import urllib.parse

import cbor2
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from crdtsync import commands
from crdtsync.protocol.messages import PROTOCOL_VERSION, ClientRequest, Open, encode_frame
from regions.client import Client
from tests.integration.cluster import DevCluster, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

RSS_GROWTH_BYTES_MAX = 64 << 20


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    running = DevCluster(tmp_path_factory.mktemp("hostile"), "eu", "us")
    yield running
    running.stop()


def rss(pid):
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def hostile(seed):
    draw = random.Random(seed)
    yield b""
    yield b"\x81" * 100_000
    yield b"\xa1\x00" * 50_000
    yield b"\x9b" + b"\xff" * 8
    yield b"\x5b\x00\x00\x7f" + b"\xff" * 5
    yield b"\xbb" + b"\xff" * 8
    yield b"\xc2\x5a\x00\x10\x00\x00" + bytes(1 << 20)
    yield b"\x9f" + b"\x80" * 1_000
    yield "text"
    yield bytes(3 << 20)
    yield bytes(20 << 20)
    yield cbor2.dumps([["q", -1, {"op": "Status"}]])
    yield cbor2.dumps([["hello", "eu", 2**70]])
    for _ in range(40):
        yield draw.randbytes(draw.randrange(1, 2_000))


async def throw(url, frame, opening=None):
    """Send one frame on a connection of its own, and wait until the node has ended it."""
    try:
        async with asyncio.timeout(15):
            async with connect(url, proxy=None, max_size=None, compression=None, close_timeout=0.5) as socket:
                if opening is not None:
                    await socket.send(opening)
                    await socket.recv()
                await socket.send(frame)
                while True:
                    await socket.recv()
    except TimeoutError:
        return False
    except (WebSocketException, OSError, AttributeError):  # AttributeError: asyncio, on a transport that was reset
        return True


async def answers(url):
    async with Client(url) as client:
        return await client.request(commands.Status())


def test_frames_at_the_port_for_clients_and_workers(cluster):
    url, pid = cluster.url("eu"), cluster.pid("eu")

    async def scenario():
        await answers(url)
        before = rss(pid)
        for role in ("client", "worker"):
            for frame in hostile(role):
                assert await throw(url, frame, encode_frame([Open(PROTOCOL_VERSION, role)])), frame[:40]
        for frame in hostile("stranger"):
            assert await throw(url, frame), frame[:40]
        assert rss(pid) - before < RSS_GROWTH_BYTES_MAX

    asyncio.run(scenario())
    assert cluster.pid("eu") == pid
    assert "frame refused" in cluster.log.read_text()
    assert cluster.linked()


def test_a_replayed_request_is_one_task(cluster):
    url = cluster.url("eu")
    spec = commands.TaskSpec("add", cbor2.dumps([[1, 2], {}], canonical=True), os.urandom(16))
    frame = encode_frame([ClientRequest(1, commands.Submit(specs=(spec,)))])

    async def scenario():
        for _ in range(3):
            async with connect(url, proxy=None, compression=None) as socket:
                await socket.send(encode_frame([Open(PROTOCOL_VERSION, "client")]))
                await socket.recv()
                await socket.send(frame)
                await socket.recv()

    asyncio.run(scenario())
    shown = cluster.wait("eu", spec.id.hex())
    assert [attempt["state"] for attempt in shown["attempts"]] == ["ok"]


def test_frames_at_the_peer_port(cluster):
    pid = cluster.pid("eu")
    peer_url = cluster.ready()["nodes"]["eu"]["peer_url"]
    url = peer_url + "/peer?" + urllib.parse.urlencode({"cluster": "dev", "region": "us"})

    async def scenario():
        before = rss(pid)
        for frame in hostile("peer"):
            assert await throw(url, frame), frame[:40]
        for path in ("/", "/peer", "/peer?cluster=dev&region=zz", "/peer?cluster=no&region=us"):
            with pytest.raises(WebSocketException):
                await connect(peer_url + path, proxy=None)
        assert rss(pid) - before < RSS_GROWTH_BYTES_MAX

    # The real peer is cut off meanwhile, so that the port takes us for it.
    cluster.ask("us", "region", "cut", "eu")
    try:
        asyncio.run(scenario())
    finally:
        cluster.ask("us", "region", "heal")
    assert cluster.pid("eu") == pid
    until(cluster.linked, "the real peer is back")
    until(cluster.converged, "equal digests")
    report = cluster.ask("eu", "log", "verify")
    assert report["ok"], json.dumps(report)
