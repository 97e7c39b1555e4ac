"""Whatever is thrown at the ports of a node, it refuses with a reason, and everybody else goes on as before."""

import asyncio
import contextlib
import random
import statistics
import sys
import time
import urllib.parse

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from crdtsync.commands import CutLinks, HealLinks, ListRegions, Submit
from crdtsync.protocol.messages import PROTOCOL_VERSION, ClientRequest, Open, encode_frame
from regions.submission import Options, new_task_id, task_spec
from tests.acceptance.ground import ground, resident_bytes

TARGET = "eu"
RSS_GROWTH_BYTES_MAX = 64 << 20
QUEUE_BYTES_MAX = 5 * (32 << 20)  # what five clients that read nothing may leave unsent before they are hung up on
PROBE_S_MAX = 2.0  # from submission to result, while it rains frames; alone it takes some 10 ms
GONE = (WebSocketException, OSError, EOFError, TimeoutError, AttributeError)


def frames(seed):
    """Malformed, deeply nested and huge frames, the same for each seed."""
    draw = random.Random(seed)
    good = encode_frame([ClientRequest(1, Submit((task_spec("sure", (0,), {}),)))])
    yield from (b"", b"\x00", b"\xff" * 64, b"\x81" * 200_000, b"\xa1\x00" * 100_000, b"\xd8\x20" * 100_000)
    yield from (
        b"\x9b" + b"\xff" * 8,
        b"\xbb" + b"\xff" * 8,
        b"\x5b" + b"\x7f" * 8 + bytes(100),
        b"\x9f" + b"\x80" * 1_000,
    )
    yield from ("text", bytes(5 << 20), bytes(20 << 20))
    yield b"\x9a\x00\x10\x00\x00" + b"\x80" * (1 << 20)  # a million empty arrays
    for _ in range(60):
        flipped = bytearray(good)
        for _ in range(draw.randint(1, 8)):
            flipped[draw.randrange(len(flipped))] = draw.randrange(256)
        yield bytes(flipped)
        yield good[: draw.randrange(len(good))]
        yield draw.randbytes(draw.randrange(1, 3_000))


async def throw(url, frame, *openings):
    """One frame on a connection of its own, after what makes the node listen. Waits for the node's goodbye."""
    with contextlib.suppress(*GONE):
        async with (
            asyncio.timeout(8),
            connect(url, proxy=None, max_size=None, compression=None, close_timeout=0.2) as link,
        ):
            for opening in openings:
                await link.send(opening)
                await link.recv()
            await link.send(frame)
            while True:
                await asyncio.wait_for(link.recv(), 2)


async def loris(url, seconds):
    """A connection that is opened byte by byte and never finished. Returns after how long the node hung up."""
    parts = urllib.parse.urlsplit(url)
    began = time.monotonic()
    with contextlib.suppress(OSError):
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            for byte in b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: " + b"a" * 100_000:
                writer.write(bytes((byte,)))
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.1):
                        if not await reader.read(1):
                            break
                if time.monotonic() - began > seconds:
                    break
        finally:
            writer.close()
    return time.monotonic() - began


async def silent(url, *openings):
    """A finished handshake, and then nothing; or a frame that never ends."""
    began = time.monotonic()
    with contextlib.suppress(*GONE):
        async with asyncio.timeout(12), connect(url, proxy=None, compression=None, close_timeout=0.2) as link:
            for opening in openings:
                await link.send(opening)
            while True:
                await link.recv()
    return time.monotonic() - began


async def deaf(url, seconds):
    """Asks without a pause and reads nothing: from a process of its own, so that it is the node that suffers."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", DEAF, url, str(seconds))
    assert await process.wait() == 0


DEAF = """
import asyncio, contextlib, sys
from websockets.asyncio.client import connect
from crdtsync.commands import Status
from crdtsync.protocol.messages import PROTOCOL_VERSION, ClientRequest, Open, encode_frame

async def deaf():
    with contextlib.suppress(Exception):
        async with asyncio.timeout(float(sys.argv[2])), connect(sys.argv[1], proxy=None, max_queue=1) as link:
            await link.send(encode_frame([Open(PROTOCOL_VERSION, "client")]))
            link.transport.pause_reading()
            for number in range(1, 1_000_000):
                await link.send(encode_frame([ClientRequest(number, Status())]))

async def several():
    await asyncio.gather(*(deaf() for _ in range(5)))

asyncio.run(several())
"""


class Probes:
    """Tasks submitted all along, at every region: how long each took until its result was there."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.took = {region: [] for region in cluster.clients}
        self.tasks = []

    async def __aenter__(self):
        self.tasks = [asyncio.create_task(self.probe(region)) for region in self.cluster.clients]
        return self

    async def probe(self, region):
        client = self.cluster.clients[region]
        while True:
            began = time.monotonic()
            handle = await client.submit("sure", 0)
            await handle.result(timeout=20)
            self.took[region].append(time.monotonic() - began)
            await asyncio.sleep(0.1)

    async def __aexit__(self, *_):
        for task in self.tasks:
            task.cancel()
        for result in await asyncio.gather(*self.tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    def summary(self):
        return {
            region: f"{len(took)} tasks, median {statistics.median(took) * 1e3:.0f} ms, worst {max(took) * 1e3:.0f} ms"
            for region, took in self.took.items()
        }


class Siege:
    """A cluster with one node under attack: its memory, its log, and the others' work are watched."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.pids = dict(cluster.cluster.pids)
        self.url = cluster.cluster.urls[TARGET]
        self.peer_url = cluster.cluster.ready()["nodes"][TARGET]["peer_url"]

    def memory(self):
        return {name: resident_bytes(pid) for name, pid in self.pids.items() if name.endswith("node")}

    async def endure(self, attack, *, log, growth_max=RSS_GROWTH_BYTES_MAX):
        before = self.memory()
        async with Probes(self.cluster) as probes:
            await attack
            await asyncio.sleep(0.5)
        grown = {name: (now - before[name]) >> 20 for name, now in self.memory().items()}
        print(probes.summary(), "MiB grown:", grown)
        assert max(grown.values()) << 20 < growth_max
        assert max(max(took) for took in probes.took.values()) < PROBE_S_MAX, probes.summary()
        assert self.cluster.cluster.pids == self.pids  # nobody died
        assert log in self.cluster.log(), self.cluster.log()[-3_000:]
        await self.cluster.until(self.cluster.linked, "links up", 10)
        await self.cluster.until(self.cluster.agreed, "equal digests", 10)
        await self.cluster.verified()
        assert not self.cluster.bugs()


def besieged(tmp_path, scenario):
    async def run():
        async with ground(tmp_path) as cluster:
            siege = Siege(cluster)
            for region in cluster.clients:  # warm: every code path has its memory
                handle = await cluster.clients[region].submit("sure", 0)
                await handle.result(timeout=20)
            await scenario(siege)

    asyncio.run(run())


@pytest.mark.timeout(120)
def test_bad_frames_at_the_port_for_clients_and_workers(tmp_path, seed):
    async def scenario(siege):
        async def attack():
            for role in ("client", "worker"):
                opening = encode_frame([Open(PROTOCOL_VERSION, role)])
                for frame in frames(seed):
                    if frame != b"":
                        await throw(siege.url, frame, opening)
            for frame in list(frames(seed))[:14]:
                await throw(siege.url, frame)

        await siege.endure(attack(), log="frame refused")

    besieged(tmp_path, scenario)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_slow_silent_and_deaf_connections(tmp_path):
    async def scenario(siege):
        async def attack():
            slow = [loris(url, 12) for url in (siege.url, siege.peer_url) for _ in range(40)]
            mute = [silent(siege.url) for _ in range(40)]
            took = await asyncio.gather(*slow, *mute, deaf(siege.url, 6))
            assert max(took[:-1]) < 11, took

        await siege.endure(attack(), log="no opening frame", growth_max=RSS_GROWTH_BYTES_MAX + QUEUE_BYTES_MAX)

    besieged(tmp_path, scenario)


@pytest.mark.timeout(120)
def test_replayed_requests_are_one_task(tmp_path):
    async def scenario(siege):
        ids = [new_task_id() for _ in range(5)]
        specs = [task_spec("book", (0,), {}, Options(id=task)) for task in ids]
        frame = encode_frame([ClientRequest(1, Submit(tuple(specs)))])
        opening = encode_frame([Open(PROTOCOL_VERSION, "client")])

        async def attack():
            for _ in range(30):
                async with connect(siege.url, proxy=None, compression=None) as link:
                    await link.send(opening)
                    await link.recv()
                    await link.send(frame)
                    await link.recv()
                    await link.send(frame)  # and on the same connection: the id of an answered request again
                    await link.recv()

        await siege.endure(attack(), log="")
        for task in ids:
            shown = await siege.cluster.clients["us"].status(task)
            assert [attempt["state"] for attempt in shown["attempts"]] == ["ok"]

    besieged(tmp_path, scenario)


@pytest.mark.timeout(120)
def test_bad_and_replayed_frames_at_the_port_for_peers(tmp_path, seed):
    """As a peer that has no link: any stranger may call itself one until there are identities."""

    async def scenario(siege):
        stranger = siege.peer_url + "/peer?" + urllib.parse.urlencode({"cluster": "dev", "region": "us"})

        async def reflect():
            """Send back whatever the node says, twice."""
            with contextlib.suppress(*GONE):
                async with asyncio.timeout(3), connect(stranger, proxy=None, compression=None) as link:
                    while True:
                        frame = await link.recv()
                        await link.send(frame)
                        await link.send(frame)

        async def attack():
            for path in ("/", "/peer", "/peer?cluster=dev&region=zz", "/peer?cluster=no&region=us"):
                with contextlib.suppress(*GONE):
                    await connect(siege.peer_url + path, proxy=None)
            for frame in frames(seed):
                await throw(stranger, frame)
            for _ in range(5):
                await reflect()

        await siege.endure(attack(), log="link refused")  # the real peer is linked: nobody takes its place
        await siege.cluster.ask("us", CutLinks((TARGET,)))

        async def parted():
            rows = await siege.cluster.ask(TARGET, ListRegions())
            return {row["region"]: row["status"] for row in rows}["us"] != "up"

        await siege.cluster.until(parted, "parted", 10)

        async def attack_then_heal():
            await attack()
            await siege.cluster.ask("us", HealLinks())

        await siege.endure(attack_then_heal(), log="frame refused")

    besieged(tmp_path, scenario)
