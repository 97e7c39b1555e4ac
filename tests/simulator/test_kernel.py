from __future__ import annotations

import asyncio

import pytest
import trio

from simulator.kernel import US, Cancelled, ForeignAwaitError, StuckError, make_kernel

BOTH = pytest.mark.parametrize("name", ["heap", "trio"])


@BOTH
def test_events_come_in_order_of_time_and_ties_in_order_of_making(name):
    kernel = make_kernel(name, 1)
    seen = []
    for at_us, what in ((5, "c"), (3, "a"), (3, "b"), (9, "d")):
        kernel.at(at_us, seen.append, what)
    kernel.run(8)
    assert seen == ["a", "b", "c"]
    assert kernel.now_us == 8


@BOTH
def test_what_is_put_into_the_past_happens_now(name):
    kernel = make_kernel(name, 1)
    seen = []
    kernel.at(10, lambda: kernel.at(2, lambda: seen.append(kernel.now_us)))
    kernel.run(20)
    assert seen == [10]


@BOTH
def test_stop_ends_the_run_after_the_event_under_way(name):
    kernel = make_kernel(name, 1)
    seen = []
    kernel.at(1, kernel.stop)
    kernel.at(2, seen.append, 1)
    kernel.run(10)
    assert seen == []
    assert kernel.now_us == 1


@BOTH
def test_fibers_wait_for_gates_and_sleep_in_virtual_time(name):
    kernel = make_kernel(name, 1)
    ends = []

    async def handler(gate):
        await kernel.sleep(1.5)
        value = await gate
        assert await gate == value, "late waiters do not wait"
        return value

    gate = kernel.gate()
    kernel.at(0, lambda: kernel.spawn(handler(gate), lambda value, error: ends.append((kernel.now_us, value, error))))
    kernel.at(4 * US, gate.open, "opened")
    kernel.run(10 * US)
    assert ends == [(4 * US, "opened", None)]


@BOTH
def test_a_failed_gate_raises_where_it_is_awaited(name):
    kernel = make_kernel(name, 1)
    ends = []

    async def handler(gate):
        with pytest.raises(KeyError):
            await gate
        return "caught"

    gate = kernel.gate()
    kernel.at(0, lambda: kernel.spawn(handler(gate), lambda value, error: ends.append((value, error))))
    kernel.at(1, gate.fail, KeyError("no"))
    kernel.run(10)
    assert ends == [("caught", None)]


@BOTH
def test_a_cancelled_fiber_ends_as_cancelled(name):
    kernel = make_kernel(name, 1)
    ends, fibers, steps = [], [], []

    async def handler():
        try:
            await kernel.gate()
        finally:
            steps.append("cleaned up")

    kernel.at(0, lambda: fibers.append(kernel.spawn(handler(), lambda value, error: ends.append(error))))
    kernel.at(5, lambda: [fiber.cancel() for fiber in fibers])
    kernel.run(10)
    assert [type(error) for error in ends] == [Cancelled]
    assert steps == ["cleaned up"]


@BOTH
def test_what_a_fiber_got_before_its_cancel_it_has(name):
    """Found in swarm seed 0: when a hang ended, the kernels disagreed on handlers that were both done and stopped."""
    kernel = make_kernel(name, 1)
    told = []
    gates = [kernel.gate(), kernel.gate()]
    fibers = []

    async def handler(gate):
        await gate
        return "done"

    def ended(value, error):
        told.append(value or type(error).__name__)

    def begin():
        fibers.extend(kernel.spawn(handler(gate), ended) for gate in gates)

    def free():
        gates[0].open()
        fibers[0].cancel()
        fibers[1].cancel()
        gates[1].open()

    kernel.at(0, begin)
    kernel.at(5, free)
    kernel.run(10)
    assert told == ["done", "Cancelled"]


@BOTH
def test_nobody_hears_of_a_killed_fiber(name):
    kernel = make_kernel(name, 1)
    ends, fibers = [], []

    async def handler():
        await kernel.sleep(5)

    kernel.at(0, lambda: fibers.append(kernel.spawn(handler(), lambda value, error: ends.append(error))))
    kernel.at(5, lambda: [fiber.kill() for fiber in fibers])
    kernel.run(10 * US)
    kernel.close()
    assert ends == []


@BOTH
def test_an_owner_is_known_while_its_fiber_runs(name):
    kernel = make_kernel(name, 1)
    seen = []

    async def handler():
        seen.append(kernel.owner())
        await kernel.sleep(1)
        seen.append(kernel.owner())

    for owner in ("a", "b"):
        kernel.at(0, lambda owner=owner: kernel.spawn(handler(), lambda *_: None, owner))
    kernel.at(1, lambda: seen.append(kernel.owner()))
    kernel.run(10 * US)
    assert seen == ["a", "b", None, "a", "b"]


@BOTH
def test_time_that_does_not_pass_is_noticed(name, monkeypatch):
    monkeypatch.setattr("simulator.kernel.STEPS_AT_ONCE_MAX", 100)
    monkeypatch.setattr("simulator.trio_kernel.STEPS_AT_ONCE_MAX", 100)
    kernel = make_kernel(name, 1)

    def again():
        kernel.after(0, again)

    kernel.at(5, again)
    with pytest.raises((StuckError, ExceptionGroup)) as raised:
        kernel.run(10)
    assert raised.group_contains(StuckError) if isinstance(raised.value, ExceptionGroup) else True


def test_the_heap_kernel_tells_a_handler_that_awaits_something_real():
    kernel = make_kernel("heap", 1)
    ends = []

    async def handler():
        await asyncio.sleep(0)

    kernel.at(0, lambda: kernel.spawn(handler(), lambda value, error: ends.append(error)))
    kernel.run(10)
    assert isinstance(ends[0], ForeignAwaitError)
    assert "--kernel trio" in str(ends[0])


def test_trio_handlers_use_what_trio_has():
    kernel = make_kernel("trio", 1)
    log = []

    async def handler():
        with trio.move_on_after(0.3):
            await kernel.gate()
        log.append(kernel.now_us)
        async with trio.open_nursery() as nursery:
            for extra in (1, 2):
                nursery.start_soon(trio.sleep, extra)
        log.append(kernel.now_us)
        await kernel.sleep(1)
        log.append(kernel.now_us)

    kernel.at(100, lambda: kernel.spawn(handler(), lambda value, error: log.append(error)))
    for at_us in range(0, 5 * US, US // 10):
        kernel.at(at_us, lambda: None)
    kernel.run(20 * US)
    assert log == [300_100, 2_300_100, 3_300_100, None]
    assert kernel.now_us == 20 * US
