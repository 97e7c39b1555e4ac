"""A node on SQLite whose disk rots: what `tests/crdtsync/test_damage.py` shows in virtual time, on real files."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from dataclasses import replace

import pytest

from crdtsync import commands
from crdtsync.errors import OverloadedError
from crdtsync.identifiers import DEFAULT_DOMAIN
from regions.driver import Driver
from regions.storage import SqliteStore
from tests.regions.polling import until
from tests.regions.test_driver import HELLO, SETTINGS, Running

SOON = replace(SETTINGS, flush_ms=20)


@contextlib.asynccontextmanager
async def driving(folder, settings=SOON):
    running = Running(SqliteStore(folder))
    running.driver = Driver(settings, running.store, running.outlets)
    await running.driver.start()
    loop = asyncio.create_task(running.driver.run())
    try:
        yield running
    finally:
        running.driver.stop()
        await loop
        await running.driver.close()


async def declare(running) -> None:
    """Make the task known, and leave: nothing is to run here."""
    await running.declare()
    await running.ask(commands.WorkerDraining(HELLO.worker))


async def ended(running, number) -> None:
    """A task that came, was cancelled, and has left memory."""
    await running.submit(number)
    await running.ask(commands.Cancel(number.to_bytes(16, "big")))


def spoil(folder, statement) -> None:
    with contextlib.closing(sqlite3.connect(folder / "crdtsync.db")) as connection, connection:
        assert connection.execute(statement).rowcount == 1


def run(scenario):
    async def bounded():
        async with asyncio.timeout(30):
            await scenario()

    asyncio.run(bounded())


def test_a_damaged_row_is_made_again_while_the_node_runs(tmp_path):
    async def scenario():
        async with driving(tmp_path) as running:
            await declare(running)
            for number in range(1, 6):
                await ended(running, number)
            digest = (await running.ask(commands.Status()))["digest"]
            await until(lambda: len(running.driver.replica._here.table) == 0)
            spoil(tmp_path, "UPDATE tasks SET facts = zeroblob(20) WHERE task = x'" + "00" * 15 + "03'")

            damaged = (3).to_bytes(16, "big")
            running.driver.submit(commands.Describe(damaged), 999)
            await until(lambda: running.outlets.resets)
            with contextlib.suppress(OverloadedError):
                running.driver.submit(commands.Status(), 998)
            await until(lambda: running.driver.ready)
            assert (await running.ask(commands.Describe(damaged)))["state"] == "cancelled"
            await declare(running)
            assert (await running.submit(3))["created"] is False
            assert (await running.ask(commands.Status()))["digest"] == digest
            await until(lambda: running.store.corrupt_rows() == ())
            assert len(running.outlets.resets) == 1
        async with driving(tmp_path) as running:
            assert (await running.ask(commands.Status()))["digest"] == digest
            assert len((await running.ask(commands.ListTasks()))["records"]) == 5

    run(scenario)


def test_a_row_that_cannot_be_made_again_is_refused(tmp_path):
    settings = replace(SOON, retention_ms=100)

    async def scenario():
        async with driving(tmp_path, settings) as running:
            await declare(running)
            for number in range(1, 6):
                await ended(running, number)
            await until(lambda: not running.driver.replica.may_derive)
            await until(lambda: len(running.driver.replica._here.table) == 0)
        spoil(tmp_path, "UPDATE tasks SET facts = zeroblob(20) WHERE task = x'" + "00" * 15 + "03'")
        async with driving(tmp_path, settings) as running:
            damaged, sound = (3).to_bytes(16, "big"), (4).to_bytes(16, "big")
            answer = await running.ask(commands.Describe(damaged))
            assert (answer["code"], answer["definite"]) == ("damaged", True)
            assert (await running.ask(commands.Describe(sound)))["state"] == "cancelled"
            assert (await running.submit(3))["error"]["code"] == "damaged"
            status = await running.ask(commands.Status())
            assert status["damaged"] == [damaged.hex()]
            assert [alarm["what"] for alarm in status["alarms"]] == ["store.task"]
            assert running.outlets.resets == []
            assert running.driver.counters["storage.damaged"] == 1

    run(scenario)


@pytest.mark.parametrize("kind", ["tasks", "commits"])
def test_whatever_is_damaged_the_node_starts_and_says_so(tmp_path, kind):
    async def scenario():
        async with driving(tmp_path) as running:
            await declare(running)
            for number in range(1, 4):
                await running.submit(number)
            heads = await running.store.heads(DEFAULT_DOMAIN)
        damage = {
            "tasks": "UPDATE tasks SET facts = zeroblob(20) WHERE task = x'" + "00" * 15 + "02'",
            # The last one: those before it are folded, and nobody reads them again.
            "commits": "UPDATE commits SET blob = zeroblob(20) WHERE position = (SELECT max(position) FROM commits)",
        }
        spoil(tmp_path, damage[kind])
        if kind == "commits":
            spoil(tmp_path, "DELETE FROM meta WHERE name LIKE 'fold/%'")  # as if it had not been folded yet
        async with driving(tmp_path) as running:
            status = await running.ask(commands.Status())
            assert {alarm["what"] for alarm in status["alarms"]} == {f"store.{kind[:-1]}"}
            if kind == "tasks":
                assert {r["state"] for r in (await running.ask(commands.ListTasks()))["records"]} == {"waiting"}
            assert (await running.store.heads(DEFAULT_DOMAIN)).items() >= heads.items()

    run(scenario)
