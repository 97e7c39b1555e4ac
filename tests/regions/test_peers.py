"""Links between regions: who dials, which link stays, and who is refused."""

import asyncio
import contextlib
import socket as sockets

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from crdtsync.errors import RemoteProtocolError
from regions.config import Config
from regions.transport import peers
from regions.transport.peers import PeerLinks
from tests.regions.polling import until


class Hearer:
    def __init__(self, urls):
        self.urls = urls
        self.refused = set()
        self.log = []
        self.frames = []

    def peers(self):
        return self.urls

    def knows(self, peer):
        return peer in self.urls

    def allows(self, peer):
        return peer not in self.refused

    def connected(self, peer):
        self.log.append(("+", peer))

    def disconnected(self, peer):
        self.log.append(("-", peer))

    def receive(self, peer, frame):
        if frame == b"bad":
            raise RemoteProtocolError("bad frame")
        self.frames.append((peer, frame))


def run(scenario):
    async def bounded():
        async with asyncio.timeout(20):
            await scenario()

    asyncio.run(bounded())


def free_port():
    with sockets.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.asynccontextmanager
async def linked(tmp_path, *regions, cluster="crdtsync"):
    ports = {region: free_port() for region in regions}
    members = {region: f"ws://127.0.0.1:{port}" for region, port in ports.items()}
    sides = {}
    for region in regions:
        config = Config(
            region=region, cluster=cluster, data_dir=tmp_path, members=members, peer={"port": ports[region]}
        )
        hearer = Hearer({other: url for other, url in members.items() if other != region})
        sides[region] = (PeerLinks(config, hearer), hearer)
    for links, _ in sides.values():
        await links.listen()
    try:
        yield sides, members
    finally:
        await asyncio.gather(*(links.close() for links, _ in sides.values()))


@pytest.mark.slow
def test_both_sides_dial_and_one_link_stays(tmp_path):
    async def scenario():
        async with linked(tmp_path, "eu", "us") as (sides, _):
            (eu, eu_hears), (us, us_hears) = sides["eu"], sides["us"]
            us.dial()  # the less preferred side first
            await until(lambda: eu.linked and us.linked)
            eu.dial()
            await asyncio.sleep(0.3)
            eu.send("us", b"1")
            us.send("eu", b"2")
            await until(lambda: us_hears.frames and eu_hears.frames)
            assert (us_hears.frames, eu_hears.frames) == ([("eu", b"1")], [("us", b"2")])
            assert len(eu_hears.log) == len(us_hears.log) == 1

    run(scenario)


@pytest.mark.slow
def test_who_is_added_later_is_dialled_and_who_has_left_is_not(tmp_path):
    async def scenario():
        async with linked(tmp_path, "eu", "us") as (sides, members):
            (eu, eu_hears), (us, _) = sides["eu"], sides["us"]
            eu_hears.urls = {}
            eu.dial()
            await asyncio.sleep(0.3)
            assert not us.linked
            eu_hears.urls = {"us": members["us"]}
            await until(lambda: eu.linked and us.linked)
            eu_hears.urls = {}
            await until(lambda: not eu.linked and not us.linked)

    run(scenario)


@pytest.mark.slow
def test_simultaneous_links_leave_the_same_one_on_both_sides(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "SECOND_DIALLER_DELAY_S", 0.0)

    async def scenario():
        for _ in range(10):
            async with linked(tmp_path, "eu", "us") as (sides, _):
                for links, _ in sides.values():
                    links.dial()
                await until(lambda: all(links.linked for links, _ in sides.values()))
                await asyncio.sleep(0.05)
                dialled = {links._links[peer].dialler for links, _ in sides.values() for peer in links.linked}
                assert len(dialled) == 1
                for links, hearer in sides.values():
                    ups = [kind for kind, _ in hearer.log]
                    assert ups == ["+", "-"] * (len(ups) // 2) + ["+"], "links of one peer overlap"
                    assert links.linked

    run(scenario)


def test_a_dropped_link_is_dialled_again(tmp_path):
    async def scenario():
        async with linked(tmp_path, "eu", "us") as (sides, _):
            for links, _ in sides.values():
                links.dial()
            (eu, hears), (us, _) = sides["eu"], sides["us"]
            await until(lambda: eu.linked and us.linked)
            us.disconnect("eu", "test")
            await until(lambda: len(hears.log) >= 3 and eu.linked and us.linked)
            assert [kind for kind, _ in hears.log][:3] == ["+", "-", "+"]

    run(scenario)


@pytest.mark.slow
def test_a_cut_pair_is_neither_dialled_nor_accepted_until_it_is_healed(tmp_path):
    async def scenario():
        async with linked(tmp_path, "ap", "eu", "us") as (sides, _):
            eu, hears = sides["eu"]
            hears.refused.add("us")
            for links, _ in sides.values():
                links.dial()
            await until(lambda: eu.linked == {"ap"} and sides["us"][0].linked == {"ap"})
            await asyncio.sleep(0.3)
            assert eu.linked == {"ap"}
            hears.refused.clear()
            await until(lambda: eu.linked == {"ap", "us"})

    run(scenario)


def test_a_bad_frame_costs_its_link_alone(tmp_path):
    async def scenario():
        async with linked(tmp_path, "ap", "eu", "us") as (sides, _):
            eu, hears = sides["eu"]
            for links, _ in sides.values():
                links.dial()
            await until(lambda: all(len(links.linked) == 2 for links, _ in sides.values()))
            before = len(hears.log)
            sides["us"][0].send("eu", b"bad")
            sides["ap"][0].send("eu", b"good")
            await until(lambda: ("-", "us") in hears.log and hears.frames == [("ap", b"good")])
            assert ("-", "ap") not in hears.log
            await until(lambda: len(eu.linked) == 2 and len(hears.log) >= before + 2)

    run(scenario)


@pytest.mark.parametrize(
    "path, status",
    [
        ("/", 404),
        ("/peer?cluster=crdtsync&region=zz", 403),
        ("/peer?cluster=crdtsync&region=eu", 403),
        ("/peer?cluster=other&region=us", 403),
        ("/peer", 403),
        ("/peer?cluster=crdtsync&region=" + "x" * 2_000, 403),
    ],
)
def test_strangers_are_refused_at_the_handshake(tmp_path, path, status):
    async def scenario():
        async with linked(tmp_path, "eu", "us") as (sides, members):
            with pytest.raises(InvalidStatus) as caught:
                await connect(members["eu"] + path, proxy=None)
            assert caught.value.response.status_code == status
            assert not sides["eu"][1].log

    run(scenario)


def test_a_frame_above_the_limit_costs_the_link(tmp_path):
    async def scenario():
        async with linked(tmp_path, "eu", "us") as (sides, members):
            socket = await connect(members["eu"] + "/peer?cluster=crdtsync&region=us", proxy=None)
            await until(lambda: sides["eu"][0].linked)
            with contextlib.suppress(ConnectionClosed, AttributeError):  # asyncio's, see Outgoing.run
                await socket.send(bytes(17 << 20))
                await socket.recv()
            await until(lambda: not sides["eu"][0].linked)
            assert not sides["eu"][1].frames

    run(scenario)
