"""A node that answers from a table: the real port and protocol, no replica behind them."""

import asyncio
import threading

from crdtsync.errors import CrdtSyncError
from crdtsync.protocol.messages import PROTOCOL_VERSION, Opened
from regions.config import Config
from regions.transport.server import GuestServer


class FakeDesk:
    """`answers` maps a command's class to a value, an exception, or a function of the command."""

    def __init__(self, answers=None):
        self.answers = answers or {}
        self.commands = []
        self.forgotten = []
        self.server = None

    def greeting(self):
        return Opened(PROTOCOL_VERSION, "eu", "eu/a#1-0123456789abcdef")

    def forget(self, ticket):
        self.forgotten.append(ticket)

    def submit(self, command, ticket):
        self.commands.append(command)
        answer = self.answers.get(type(command))
        if callable(answer):
            answer = answer(command)
        if isinstance(answer, CrdtSyncError):
            raise answer
        if answer is not None and ticket > 0:
            self.server.reply(ticket, answer, None, final=True)


def config(tmp_path, **values):
    return Config(region="eu", data_dir=tmp_path, **values)


class AnsweringNode:
    """Runs a `GuestServer` over a `FakeDesk` in a thread, for commands that bring their own loop."""

    def __init__(self, tmp_path, answers=None):
        self.desk = FakeDesk(answers)
        self._config = config(tmp_path)
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self):
        self.desk.server = GuestServer(self._config, self.desk)
        self.url = await self.desk.server.start()
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._started.set()
        await self._stop.wait()
        await self.desk.server.close()

    def __enter__(self):
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
