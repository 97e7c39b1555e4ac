"""The loop around a replica: what happens when the disk, or the replica itself, fails."""

import asyncio
import contextlib

import pytest

from crdtsync import commands
from crdtsync.commands import TaskDeclaration, TaskSpec
from crdtsync.errors import OverloadedError, StorageError
from crdtsync.protocol.values import encode_arguments
from crdtsync.settings import Settings
from regions import driver as driver_module
from regions.driver import Driver
from regions.inspection import verify
from regions.storage.memory import MemoryStore
from tests.regions.polling import until

SETTINGS = Settings(cluster="c", region="eu", node="a", members=("eu",), start_grace_ms=0)
HELLO = commands.WorkerHello(worker="w", app="app", tasks=(TaskDeclaration("add"),), credits=1)


class FailingStore(MemoryStore):
    """Fails as often as it is told to, before anything is written."""

    failures = 0
    appends = 0

    async def append(self, batch):
        self.appends += 1
        if self.failures:
            self.failures -= 1
            raise StorageError("disk full")
        await asyncio.sleep(0.01)  # as long as an fsync: what comes meanwhile goes into the next batch
        await super().append(batch)


class QuickStore(FailingStore):
    """Writes at once, as a quick disk does."""

    def append_at_once(self, batch):
        self.appends += 1
        if self.failures:
            self.failures -= 1
            raise StorageError("disk full")
        with contextlib.suppress(StopIteration):
            MemoryStore.append(self, batch).send(None)
        return True


class Outlets:
    def __init__(self):
        self.answers = {}
        self.runs = []
        self.resets = []

    def send(self, peer, frame): ...

    def disconnect(self, peer, reason): ...

    def reply(self, ticket, value, error, *, final):
        self.answers[ticket] = error or value

    def run_attempts(self, worker, assignments):
        self.runs += assignments

    def stop_attempt(self, worker, attempt, reason): ...

    def reset(self, error):
        self.resets.append(error)


class Running:
    def __init__(self, store):
        self.store = store
        self.outlets = Outlets()
        self.driver = Driver(SETTINGS, store, self.outlets)
        self._ticket = 0

    async def ask(self, command):
        self._ticket += 1
        ticket = self._ticket
        self.driver.submit(command, ticket)
        await until(lambda: ticket in self.outlets.answers)
        return self.outlets.answers[ticket]

    async def declare(self):
        return await self.ask(HELLO)

    async def submit(self, number=1):
        spec = TaskSpec("add", encode_arguments("add", (1, 2), {}), number.to_bytes(16, "big"))
        return (await self.ask(commands.Submit(specs=(spec,))))[0]


@contextlib.asynccontextmanager
async def driving(store=None):
    running = Running(store or FailingStore())
    await running.driver.start()
    loop = asyncio.create_task(running.driver.run())
    try:
        yield running
    finally:
        running.driver.stop()
        await loop
        await running.driver.close()


def run(scenario):
    async def bounded():
        async with asyncio.timeout(20):
            await scenario()

    asyncio.run(bounded())


def test_an_acknowledged_task_is_on_disk_and_survives_a_start():
    async def scenario():
        store = FailingStore()
        async with driving(store) as running:
            await running.declare()
            assert (await running.submit())["created"] is True
            first = running.driver.replica.writer
        async with driving(store) as running:
            assert running.driver.replica.writer != first
            await running.declare()
            assert (await running.submit())["created"] is False

    run(scenario)


def test_what_comes_while_a_batch_is_written_shares_the_next_one():
    async def scenario():
        async with driving() as running:
            await running.declare()
            before = running.store.appends
            await asyncio.gather(*(running.submit(number) for number in range(1, 101)))
            assert running.store.appends - before < 20

    run(scenario)


def test_a_failed_append_discards_the_replica_and_acknowledges_nothing():
    async def scenario():
        async with driving() as running:
            await running.declare()
            await running.submit(1)
            first = running.driver.replica.writer
            running.store.failures = 1
            spec = TaskSpec("add", encode_arguments("add", (), {}), bytes(15) + b"\x02")
            running.driver.submit(commands.Submit(specs=(spec,)), 999)
            await until(lambda: running.outlets.resets)
            with contextlib.suppress(OverloadedError):
                running.driver.submit(commands.Status(), 998)
            await until(lambda: running.driver.ready)
            assert running.driver.replica.writer != first
            assert running.outlets.resets[0].exit_code == 75
            assert 999 not in running.outlets.answers
            await running.declare()
            assert (await running.submit(1))["created"] is False, "acknowledged before the failure"
            assert (await running.submit(2))["created"] is True, "never acknowledged, so not there"

    run(scenario)


def test_a_disk_that_stays_broken_is_tried_again_until_it_works():
    async def scenario():
        async with driving() as running:
            await running.declare()
            running.store.failures = 4
            for number in range(1, 5):
                with contextlib.suppress(OverloadedError):
                    spec = TaskSpec("add", encode_arguments("add", (), {}), number.to_bytes(16, "big"))
                    running.driver.submit(commands.Submit(specs=(spec,)), 1_000 + number)
                await until(lambda number=number: len(running.outlets.resets) >= number)
                await until(lambda: running.driver.ready)
            await running.declare()
            assert (await running.submit(9))["created"] is True

    run(scenario)


def test_a_replica_that_raises_is_replaced(monkeypatch):
    async def scenario():
        async with driving() as running:
            await running.declare()
            first = running.driver.replica

            def broken(*_):
                raise RuntimeError("a bug")

            monkeypatch.setattr(first, "receive", broken)
            running.driver.receive("us", b"x")
            with pytest.raises(OverloadedError):
                running.driver.submit(commands.Status(), 1)
            await until(lambda: running.driver.ready)
            assert running.driver.replica is not first
            assert (await running.ask(commands.Status()))["writer"] != first.writer

    run(scenario)


def test_attempts_leave_once_their_claim_is_durable():
    async def scenario():
        async with driving() as running:
            await running.declare()
            await running.submit()
            await until(lambda: running.outlets.runs)
            (assignment,) = running.outlets.runs
            assert assignment.name == "add"
            heads = await running.store.heads("default")
            assert heads[assignment.attempt.writer] >= assignment.attempt.number

    run(scenario)


def test_a_disk_that_is_written_at_once_and_fails_costs_no_more_than_one_that_is_waited_for():
    async def scenario():
        store = QuickStore()
        async with driving(store) as node:
            await node.declare()
            assert (await node.submit(1))["created"]
            writer = node.driver.replica.writer
            store.failures = 1
            node.driver.submit(
                commands.Submit((TaskSpec("add", encode_arguments("add", (1, 2), {}), (2).to_bytes(16, "big")),)),
                "lost",
            )
            await until(lambda: node.outlets.resets and node.driver.ready and node.driver.replica.writer != writer)
            assert "lost" not in node.outlets.answers
            await node.declare()
            assert not (await node.submit(1))["created"]
            assert (await node.submit(2))["created"]

    run(scenario)


def test_everything_that_was_decided_is_written_when_it_is_flushed_at_once():
    async def scenario():
        async with driving(QuickStore()) as node:
            await node.declare()
            for ticket in range(100, 120):
                spec = TaskSpec("add", encode_arguments("add", (1, 2), {}), ticket.to_bytes(16, "big"))
                node.driver.submit(commands.Submit((spec,)), ticket)
            await node.driver.flushed()
            assert all(ticket in node.outlets.answers for ticket in range(100, 120))
            assert not node.driver.replica.take_released()

    run(scenario)


def test_an_outlet_that_fails_ends_the_node_instead_of_leaving_it_deaf():
    async def scenario():
        node = Running(MemoryStore())

        def broken(*_args, **_kwargs):
            raise RuntimeError("no outlet")

        await node.driver.start()
        loop = asyncio.create_task(node.driver.run())
        await node.declare()
        node.outlets.reply = broken
        node.driver.submit(commands.Status(), 99)
        with pytest.raises(RuntimeError, match="no outlet"):
            await loop
        await node.driver.close()

    run(scenario)


def test_a_node_that_wrote_in_2099_re_issues_it_and_goes_on_as_another_incarnation(monkeypatch):
    ahead = [2_300_000_000_000]
    right = driver_module.clock
    monkeypatch.setattr(driver_module, "clock", lambda: right()._replace(wall_ms=right().wall_ms + ahead[0]))

    async def scenario():
        store = FailingStore()
        async with driving(store) as running:
            await running.declare()
            task = (await running.submit())["id"]
            await running.ask(commands.SetLimit(commands.LimitDeclaration("task:add", concurrency=3)))
            writer = running.driver.replica.writer
        ahead[0] = 0
        async with driving(store) as running:  # still counts from the future: it is alone, nobody tells it otherwise
            answer = await running.ask(commands.ReissueLog(writer, 1))
            assert answer["writers"][0][:2] == [writer, 1]
            await until(lambda: running.driver.ready and running.driver.replica.writer not in (writer, ""))
            await until(lambda: running.driver.counters["log.reissued"] == 1)
            assert [str(error) for error in running.outlets.resets] == [
                f"the node starts anew (commits of {writer} from 1 on are re-issued): ask again in a moment"
            ]
            shown = await running.ask(commands.ShowClock())
            assert (shown["reissuing"], shown["lead_ms"] < 1_000, shown["verdict"]) == (None, True, "alone")
            assert abs(shown["time_ms"] - right().wall_ms) < 60_000
            assert (await running.ask(commands.Describe(bytes.fromhex(task))))["id"] == task
            assert (await running.submit(2))["created"] is True
            await running.ask(commands.SetLimit(commands.LimitDeclaration("task:add", concurrency=4)))
            await running.ask(commands.ListTasks())  # which has all rows written
            report = await verify(store)
            status = await running.ask(commands.Status())
            assert (report.findings, report.digest) == ([], status["digest"])
        async with driving(store) as running:  # and whoever reads it from disk finds it so
            shown = await running.ask(commands.ShowClock())
            assert (shown["lead_ms"] < 1_000, shown["held_back"]) == (True, [])
            assert (await running.ask(commands.Describe(bytes.fromhex(task))))["id"] == task

    run(scenario)
