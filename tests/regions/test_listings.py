"""A list larger than a frame arrives whole."""

import asyncio

from crdtsync import commands
from regions.client import Client
from tests.regions.fake_desk import AnsweringNode


def test_a_list_larger_than_a_frame_arrives_whole(tmp_path):
    rows = [{"id": number, "pad": "x" * 1_000} for number in range(30_000)]

    async def ask(url):
        async with Client(url) as client:
            return await client.request(commands.History(bytes(16)))

    with AnsweringNode(tmp_path, {commands.History: rows}) as node:
        assert asyncio.run(ask(node.url)) == rows
