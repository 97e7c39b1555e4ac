"""Stands for `crdtsync node run` and `worker run` under a supervisor: starts in no time, answers what it is asked."""

import asyncio
import pathlib
import signal
import sys
import tomllib

from crdtsync import commands
from regions.config import Config
from regions.lifeline import end_with
from regions.transport.server import GuestServer
from tests.regions.fake_desk import FakeDesk


def option(name):
    return sys.argv[sys.argv.index(name) + 1]


CONFIG = pathlib.Path(option("--config")).read_text() if sys.argv[1:2] == ["node"] else ""


async def node(stop, text):
    config = Config(**tomllib.loads(text))
    marker = config.data_dir / "fail"
    if marker.exists():
        sys.exit(int(marker.read_text()))
    others = [region for region in config.regions if region != config.region]
    desk = FakeDesk(
        {
            commands.Status: {"workers": [{"id": "w"}]},
            commands.ListRegions: lambda _: [{"region": region, "status": "up"} for region in others],
        }
    )
    desk.server = GuestServer(config, desk)
    await desk.server.start()
    await stop.wait()
    await desk.server.close()


async def main():
    end_with(int(option("--supervisor")))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await (node(stop, CONFIG) if CONFIG else stop.wait())


if __name__ == "__main__":
    asyncio.run(main())
