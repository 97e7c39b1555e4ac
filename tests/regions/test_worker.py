from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from crdtsync import App, PermanentError, Retry
from crdtsync import commands as c
from crdtsync.errors import ConfigError, InvalidRequestError, LostLeaseError, OverloadedError, UnknownAttemptError
from crdtsync.protocol.codec import decode_value, encode_value
from regions.duplex import QueueDuplex
from regions.execution.registry import load_app
from regions.execution.threads import HandlerThreads
from regions.execution.worker import Worker
from tests.regions.fake_node import SILENCE, WITHIN_S, FakeNode, assignment, attempt_id


@asynccontextmanager
async def at_work(node: FakeNode, app: App, **options: Any) -> AsyncIterator[Worker]:
    worker = Worker(app, node.url, **{"drain_grace": 0.2, "cancel_grace": 0.05, **options})
    running = asyncio.create_task(worker.run())
    try:
        async with asyncio.timeout(WITHIN_S):
            await worker.ready.wait()
        yield worker
    finally:
        worker.force()
        with suppress(asyncio.CancelledError):
            async with asyncio.timeout(WITHIN_S):
                await running


def run(scenario: Any) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(3 * WITHIN_S):
            return await scenario()

    return asyncio.run(bounded())


def test_a_worker_declares_its_app_and_completes_what_it_is_assigned() -> None:
    app = App("shop")

    @app.task(queue="payments", retry=Retry(attempts=5))
    async def charge(ctx, order: str, cents: int) -> str:
        return f"{order}:{cents}:{ctx.region}:{ctx.task_id[-1]}"

    async def scenario() -> None:
        async with FakeNode() as node, at_work(node, app, concurrency=4):
            [hello] = node.of(c.WorkerHello)
            assert hello.app == "shop"
            assert hello.credits == 4
            assert hello.tasks[0].queue == "payments"
            await node.assign(assignment(1, "charge", "A-1", 5))
            [done] = await node.completed()
            assert done.attempt == attempt_id(1)
            assert (done.outcome, decode_value(done.value)) == ("ok", "A-1:5:eu:1")

    run(scenario)


def test_a_failing_handler_is_reported_and_hurts_nobody() -> None:
    app = App("a")

    class OutOfStockError(LookupError):
        pass

    @app.task(retry=Retry(non_retryable=("LookupError",)))
    async def fail(_ctx, what: str) -> None:
        raise {"stock": OutOfStockError, "value": ValueError, "exit": SystemExit, "never": PermanentError}[what](what)

    @app.task
    async def fine(_ctx) -> int:
        return 7

    async def scenario() -> None:
        async with FakeNode() as node, at_work(node, app):
            kinds = ("stock", "value", "exit", "never")
            await node.assign(*(assignment(number, "fail", what) for number, what in enumerate(kinds, 1)))
            await node.completed(4)
            await node.assign(assignment(5, "fine"), assignment(6, "fine", "too", "many"))
            ends = {end.attempt[2]: end for end in await node.completed(6)}
            assert [ends[n].retryable for n in range(1, 7)] == [False, True, True, False, True, False]
            assert [ends[n].outcome for n in range(1, 7)] == ["failed"] * 4 + ["ok", "failed"]
            kind, message, trace = decode_value(ends[1].value)
            assert (kind, message) == ("OutOfStockError", "stock")
            assert "in fail" in trace

    run(scenario)


def test_a_sync_handler_runs_in_a_thread_with_its_context_and_can_do_effects() -> None:
    app = App("a")
    flavour: contextvars.ContextVar[str] = contextvars.ContextVar("flavour", default="none")
    seen: dict[str, Any] = {}

    @app.task
    def slow(ctx, fruit: str) -> list[Any]:
        seen["thread"] = threading.current_thread()
        flavour.set(fruit)

        async def later(x: int) -> int:
            await asyncio.sleep(0)
            return x + 1

        ctx.progress(0.5)
        ctx.checkpoint({"half": True})
        ctx.document.set("k", [1])
        return [ctx.effect("one", lambda: 41), ctx.effect("two", later, 1), flavour.get(), ctx.last_checkpoint]

    async def scenario() -> None:
        async with FakeNode() as node, at_work(node, app):
            await node.assign(assignment(1, "slow", "plum"), assignment(2, "slow", "fig"))
            ends = await node.completed(2)
            values = sorted(decode_value(end.value) for end in ends)
            assert values == [[41, 2, "fig", {"half": True}], [41, 2, "plum", {"half": True}]]
            assert seen["thread"] is not threading.main_thread()
            assert [effect.name for effect in node.of(c.RecordEffect)].count("one") == 2
            assert node.of(c.EditDocument)[0].entries == {"k": encode_value([1])}

    run(scenario)


def test_an_effect_returns_only_once_it_is_durable_and_is_not_repeated_when_inherited() -> None:
    app = App("a")
    calls: list[str] = []
    recorded = asyncio.Event()

    @app.task
    async def pay(ctx) -> list[Any]:
        async def charge(name: str) -> tuple[str, int]:
            calls.append(name)
            return (name, 1)

        first = await ctx.effect("old", charge, "old")
        second = await ctx.effect("new", charge, "new")
        recorded.set()
        return [first, second, await ctx.effect("new", charge, "again")]

    async def scenario() -> None:
        async with FakeNode() as node, at_work(node, app):
            node.script[c.RecordEffect] = SILENCE
            await node.assign(assignment(1, "pay", effects=(("old", encode_value("from before")),)))
            await node.until(lambda: node.of(c.RecordEffect))
            assert not recorded.is_set()
            await node.answer(c.RecordEffect, {})
            [done] = await node.completed()
            assert decode_value(done.value) == ["from before", ["new", 1], ["new", 1]]
            assert calls == ["new"]

    run(scenario)


def test_an_effect_survives_the_loss_of_the_connection_and_is_recorded_again() -> None:
    app = App("a")

    @app.task
    async def pay(ctx) -> str:
        return await ctx.effect("charge", lambda: "ch-1")

    async def scenario() -> None:
        async with FakeNode() as node, at_work(node, app):
            node.script[c.RecordEffect] = SILENCE
            await node.assign(assignment(1, "pay"))
            await node.until(lambda: node.of(c.RecordEffect))
            node.script[c.RecordEffect] = {}
            node.cut()
            [done] = await node.completed()
            assert decode_value(done.value) == "ch-1"
            first, second = node.of(c.RecordEffect)
            assert first == second
            assert node.of(c.WorkerHello)[1].running == (attempt_id(1),)

    run(scenario)


def test_a_refused_record_tells_the_handler_that_its_attempt_is_over() -> None:
    app = App("a")
    seen: list[Any] = []

    @app.task
    async def pay(ctx) -> None:
        try:
            await ctx.effect("charge", lambda: 1)
        finally:
            seen.append((bool(ctx.cancelled), ctx.cancelled.reason, ctx.lost))

    async def scenario() -> None:
        async with FakeNode() as node, at_work(node, app):
            node.script[c.RecordEffect] = UnknownAttemptError("not one of ours")
            await node.assign(assignment(1, "pay"))
            [done] = await node.completed()
            assert (done.outcome, done.reason) == ("lost", "stopped")
            assert seen == [(True, "unknown attempt", True)]

    run(scenario)


def test_a_record_that_meets_a_full_node_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regions.execution.worker.RETRY_S", 0.01)
    app = App("a")

    @app.task
    async def pay(ctx) -> int:
        return await ctx.effect("charge", lambda: 1)

    async def scenario() -> None:
        answers: list[Any] = [OverloadedError("full"), OverloadedError("full"), {}]
        ends: list[Any] = [OverloadedError("full"), {"state": "succeeded"}]
        async with FakeNode() as node, at_work(node, app) as worker:
            node.script[c.RecordEffect] = lambda _: answers.pop(0)
            node.script[c.Complete] = lambda _: ends.pop(0)
            await node.assign(assignment(1, "pay"))
            first, second = await node.completed(2)
            assert first == second
            assert len(node.of(c.RecordEffect)) == 3
            await until(lambda: worker.unacknowledged == 0)

    run(scenario)


def test_a_completion_is_sent_again_after_a_reconnect_until_it_is_acknowledged() -> None:
    app = App("a")

    @app.task
    async def quick(_ctx) -> int:
        return 3

    async def scenario() -> None:
        async with FakeNode() as node, at_work(node, app) as worker:
            node.script[c.Complete] = SILENCE
            await node.assign(assignment(1, "quick"))
            await node.completed()
            assert worker.unacknowledged == 1
            await node.stop()
            node.script[c.Complete] = {"state": "succeeded"}
            await node.start()
            first, second = await node.completed(2)
            assert first == second
            assert node.of(c.WorkerHello)[-1].running == (attempt_id(1),)
            await until(lambda: worker.unacknowledged == 0)

    run(scenario)


def test_the_node_may_say_on_reconnect_that_an_attempt_is_not_wanted() -> None:
    app = App("a")
    reasons: list[str] = []

    @app.task
    async def long(ctx) -> None:
        reasons.append(await ctx.cancelled.wait())

    async def scenario() -> None:
        async with FakeNode() as node, at_work(node, app, cancel_grace=5):
            await node.assign(assignment(1, "long"))
            await node.until(lambda: node.of(c.Heartbeat))
            node.script[c.WorkerHello] = {"heartbeat_ms": 50, "stop": [list(attempt_id(1))]}
            node.cut()
            await node.completed()
            assert reasons == ["superseded"]

    run(scenario)


def test_a_cancel_is_told_first_and_carried_out_after_the_grace() -> None:
    app = App("a")
    told: list[Any] = []
    started = asyncio.Event()

    @app.task
    async def deaf(ctx) -> None:
        started.set()
        try:
            await asyncio.sleep(3_600)
        finally:
            told.append((ctx.cancelled.reason, ctx.lost))

    async def scenario() -> None:
        async with FakeNode() as node, at_work(node, app):
            await node.assign(assignment(1, "deaf"))
            await started.wait()
            await node.stop_attempt(attempt_id(1), "cancelled")
            [done] = await node.completed()
            assert (done.outcome, done.reason) == ("lost", "stopped")
            assert told == [("cancelled", False)]

    run(scenario)


def test_a_handler_that_heeds_a_cancel_may_still_succeed() -> None:
    app = App("a")

    @app.task
    def polite(ctx) -> str:
        return ctx.cancelled.wait(WITHIN_S)

    async def scenario() -> None:
        async with FakeNode() as node, at_work(node, app) as worker:
            await node.assign(assignment(1, "polite"))
            await until(lambda: worker.running == 1)
            await node.stop_attempt(attempt_id(1), "cancelled")
            [done] = await node.completed()
            assert (done.outcome, decode_value(done.value)) == ("ok", "cancelled")

    run(scenario)


def test_an_attempt_that_takes_too_long_is_lost_by_timeout() -> None:
    app = App("a")

    @app.task
    async def long(_ctx) -> None:
        await asyncio.sleep(3_600)

    async def scenario() -> None:
        async with FakeNode() as node, at_work(node, app):
            await node.assign(assignment(1, "long", timeout_ms=20))
            [done] = await node.completed()
            assert (done.outcome, done.reason) == ("lost", "timeout")

    run(scenario)


def leased(app: App, told: list[Any]) -> None:
    """`patient` runs until it is asked to stop, `in_thread` likewise."""

    @app.task
    async def patient(ctx) -> None:
        told.append("began")
        told.append(await ctx.cancelled.wait())

    @app.task
    def in_thread(ctx) -> None:
        told.append("began")
        told.append(ctx.cancelled.wait(WITHIN_S))


@pytest.mark.parametrize("name", ["patient", "in_thread"])
def test_a_handler_whose_node_stands_still_is_asked_to_stop_when_its_lease_is_over(name: str) -> None:
    """Another region may run the task by then, and nobody is there to say so."""
    app, told = App("a"), []
    leased(app, told)

    async def scenario() -> None:
        async with FakeNode() as node, at_work(node, app):
            node.script[c.CheckFence] = {"left_ms": 300}
            node.script[c.Heartbeat] = SILENCE
            node.script[c.Complete] = SILENCE
            await node.assign(assignment(1, name, fence=7))
            [done] = await node.completed()
            assert told == ["began", "lost lease"]
            assert done.outcome in ("ok", "lost")

    run(scenario)


def test_a_handler_runs_on_while_heartbeats_tell_that_its_lease_is_renewed() -> None:
    app, told = App("a"), []
    leased(app, told)

    async def scenario() -> None:
        async with FakeNode() as node, at_work(node, app):
            node.script[c.CheckFence] = {"left_ms": 200}
            node.script[c.Heartbeat] = {"leases": [[list(attempt_id(1)), 200]]}
            await node.assign(assignment(1, "patient", fence=7))
            await node.until(lambda: len(node.of(c.Heartbeat)) >= 12)  # of 50 ms each
            assert told == ["began"]
            node.script[c.Heartbeat] = {}
            await node.completed()
            assert told == ["began", "lost lease"]

    run(scenario)


@pytest.mark.parametrize("name", ["patient", "in_thread"])
def test_a_handler_does_not_begin_under_a_lease_that_ended_on_the_way(name: str) -> None:
    app, told = App("a"), []
    leased(app, told)

    async def scenario() -> None:
        async with FakeNode() as node, at_work(node, app):
            node.script[c.CheckFence] = LostLeaseError("it is over")
            await node.assign(assignment(1, name, fence=7))
            [done] = await node.completed()
            assert (done.outcome, done.reason) == ("lost", "lost lease")
            assert told == []

    run(scenario)


def test_concurrency_bounds_what_runs_and_a_stop_reaches_what_waits() -> None:
    app = App("a")
    gate = asyncio.Event()
    most = 0
    inside = 0

    @app.task
    async def held(_ctx) -> None:
        nonlocal most, inside
        inside += 1
        most = max(most, inside)
        await gate.wait()
        inside -= 1

    async def scenario() -> None:
        async with FakeNode() as node, at_work(node, app, concurrency=2, credits=5) as worker:
            await node.assign(*(assignment(number, "held") for number in range(1, 6)))
            await until(lambda: inside == 2)
            assert worker.waiting == 3
            await node.stop_attempt(attempt_id(5), "cancelled")
            [done] = await node.completed()
            assert (done.attempt, done.outcome) == (attempt_id(5), "lost")
            gate.set()
            assert len(await node.completed(5)) == 5
            assert most == 2

    run(scenario)


def test_a_second_assignment_of_a_running_attempt_is_ignored() -> None:
    app = App("a")
    gate = asyncio.Event()
    runs: list[int] = []

    @app.task
    async def held(_ctx) -> None:
        runs.append(1)
        await gate.wait()

    async def scenario() -> None:
        async with FakeNode() as node, at_work(node, app):
            await node.assign(assignment(1, "held"))
            await until(lambda: runs)
            await node.assign(assignment(1, "held"), assignment(2, "held"))
            await until(lambda: len(runs) == 2)
            gate.set()
            await node.completed(2)
            assert len(runs) == 2

    run(scenario)


def test_draining_finishes_what_runs_and_hands_back_what_does_not_end() -> None:
    app = App("a")
    gate = asyncio.Event()
    drained: list[bool] = []

    @app.task
    async def ends(ctx) -> str:
        await gate.wait()
        drained.append(ctx.draining)
        return "in time"

    @app.task
    async def never(ctx) -> None:
        try:
            await asyncio.sleep(3_600)
        except asyncio.CancelledError:
            raise ValueError(ctx.cancelled.reason) from None

    async def scenario() -> None:
        async with FakeNode() as node:
            worker = Worker(app, node.url, concurrency=2, credits=3, drain_grace=0.2)
            running = asyncio.create_task(worker.run())
            await node.assign(assignment(1, "ends"), assignment(2, "never"), assignment(3, "never"))
            await until(lambda: worker.running == 2)
            worker.drain()
            await node.until(lambda: node.of(c.WorkerDraining))
            gate.set()
            await running
            ends = {end.attempt[2]: (end.outcome, end.reason) for end in node.of(c.Complete)}
            assert ends == {1: ("ok", ""), 2: ("lost", "drain"), 3: ("lost", "drain")}
            assert drained == [True]
            assert worker.unacknowledged == 0

    run(scenario)


def test_a_thread_that_never_ends_does_not_hold_up_the_end() -> None:
    app = App("a")
    release = threading.Event()

    @app.task
    def stuck(_ctx) -> None:
        release.wait(WITHIN_S)

    async def scenario() -> None:
        async with FakeNode() as node:
            worker = Worker(app, node.url, drain_grace=0.05)
            running = asyncio.create_task(worker.run())
            await node.assign(assignment(1, "stuck"))
            await until(lambda: worker.running == 1)
            worker.force()
            await running
            [done] = node.of(c.Complete)
            assert (done.outcome, done.reason) == ("lost", "drain")

    try:
        run(scenario)
    finally:
        release.set()


def test_sigterm_drains_and_a_second_one_forces() -> None:
    app = App("a")

    @app.task
    async def never(_ctx) -> None:
        await asyncio.sleep(3_600)

    async def scenario() -> None:
        async with FakeNode() as node:
            worker = Worker(app, node.url, drain_grace=3_600)
            running = asyncio.create_task(worker.run(signals=True))
            await node.assign(assignment(1, "never"))
            await until(lambda: worker.running == 1)
            os.kill(os.getpid(), signal.SIGTERM)
            await node.until(lambda: node.of(c.WorkerDraining))
            assert not running.done()
            os.kill(os.getpid(), signal.SIGTERM)
            await running
            [done] = node.of(c.Complete)
            assert (done.outcome, done.reason) == ("lost", "drain")

    run(scenario)


def test_what_a_draining_worker_is_assigned_and_what_it_cannot_run_is_handed_back() -> None:
    app = App("a")
    gate = asyncio.Event()

    @app.task
    async def held(_ctx) -> None:
        await gate.wait()

    async def scenario() -> None:
        async with FakeNode() as node, at_work(node, app, drain_grace=WITHIN_S) as worker:
            await node.assign(assignment(1, "held"), assignment(2, "unheard of"))
            [stranger] = await node.completed()
            assert (stranger.attempt, stranger.outcome, stranger.reason) == (attempt_id(2), "lost", "stopped")
            worker.drain()
            await node.until(lambda: node.of(c.WorkerDraining))
            await node.assign(assignment(3, "held"))
            late = (await node.completed(2))[1]
            assert (late.attempt, late.outcome, late.reason) == (attempt_id(3), "lost", "drain")
            gate.set()
            assert (await node.completed(3))[2].outcome == "ok"

    run(scenario)


def test_a_wrapped_async_handler_and_a_failing_effect_work_in_threads_too() -> None:
    app = App("a")

    async def inner(ctx) -> str:
        return ctx.region

    @app.task
    def wrapped(ctx):
        return inner(ctx)

    def stop() -> None:
        raise StopIteration

    @app.task
    async def failing(ctx) -> list[str]:
        told = []
        for effect in (lambda: 1 / 0, stop):
            try:
                await ctx.effect("e", effect)
            except Exception as error:  # noqa: BLE001
                told.append(type(error).__name__)
        return told

    async def scenario() -> None:
        async with FakeNode() as node, at_work(node, app):
            await node.assign(assignment(1, "wrapped"), assignment(2, "failing"))
            values = {end.attempt[2]: decode_value(end.value) for end in await node.completed(2)}
            assert values == {1: "eu", 2: ["ZeroDivisionError", "RuntimeError"]}

    run(scenario)


def test_an_answer_to_the_hello_that_makes_no_sense_is_asked_for_again() -> None:
    async def scenario() -> None:
        async with FakeNode() as node:
            answers: list[Any] = [7, {"heartbeat_ms": "often"}, OverloadedError("not now"), {}]
            node.script[c.WorkerHello] = lambda _: answers.pop(0)
            async with at_work(node, App("a")):
                assert len(node.of(c.WorkerHello)) == 4

    run(scenario)


def test_heartbeats_carry_progress_once() -> None:
    app = App("a")
    gate = asyncio.Event()

    @app.task
    async def far(ctx) -> None:
        ctx.progress(0.25)
        await gate.wait()

    async def scenario() -> None:
        async with FakeNode() as node, at_work(node, app):
            await node.assign(assignment(1, "far"))
            told = await node.until(lambda: [beat for beat in node.of(c.Heartbeat) if beat.progress])
            assert told[0].progress == ((attempt_id(1), "25%"),)
            count = len(node.of(c.Heartbeat))
            await node.until(lambda: len(node.of(c.Heartbeat)) >= count + 2)
            assert len([beat for beat in node.of(c.Heartbeat) if beat.progress]) == 1
            gate.set()
            await node.completed()

    run(scenario)


def test_unanswered_heartbeats_and_a_node_that_forgot_the_worker_lead_to_a_new_hello() -> None:
    app = App("a")

    async def scenario() -> None:
        async with FakeNode() as node, at_work(node, app):
            node.script[c.Heartbeat] = SILENCE
            await node.until(lambda: len(node.of(c.WorkerHello)) == 2)
            answers: list[Any] = [UnknownAttemptError("say hello again")]
            node.script[c.Heartbeat] = lambda _: answers.pop(0) if answers else {}
            await node.until(lambda: len(node.of(c.WorkerHello)) == 3)

    run(scenario)


def test_a_compensation_handler_gets_the_attempt_that_lost() -> None:
    app = App("a")

    @app.task(compensate="undo")
    async def do(_ctx) -> None: ...

    @app.task
    async def undo(ctx, lost) -> list[Any]:
        return [lost.task_id, lost.attempt, lost.region, lost.result, lost.effects["charge"], lost.key, ctx.attempt]

    record = encode_value(
        {"task_id": "ab", "attempt": 2, "region": "us", "result": None, "effects": {"charge": "ch"}, "key": "cd"}
    )

    async def scenario() -> None:
        async with FakeNode() as node, at_work(node, app):
            await node.assign(assignment(1, "undo", payload=record, undoes=record))
            [done] = await node.completed()
            assert decode_value(done.value) == ["ab", 2, "us", None, "ch", "cd", 1]

    run(scenario)


def test_a_node_that_will_never_take_the_app_ends_the_worker() -> None:
    app = App("a")

    async def scenario() -> None:
        async with FakeNode() as node:
            node.script[c.WorkerHello] = InvalidRequestError("too many tasks")
            with pytest.raises(InvalidRequestError, match="too many"):
                await Worker(app, node.url).run()

    run(scenario)


def test_a_worker_serves_a_node_in_its_own_process_without_a_socket() -> None:
    from crdtsync.protocol.messages import Assigned, Expect, Opened, Response, decode_frame, encode_frame

    app = App("a")

    @app.task
    async def quick(_ctx) -> int:
        return 3

    async def scenario() -> None:
        ours, theirs = QueueDuplex.pair()

        async def dial() -> QueueDuplex:
            return ours

        worker = Worker(app, dial)
        running = asyncio.create_task(worker.run())
        assert decode_frame(await theirs.recv(), Expect.OPENING)[0].role == "worker"
        await theirs.send(encode_frame([Opened(1, "eu", "w")]))
        [hello] = decode_frame(await theirs.recv(), Expect.WORKER)
        await theirs.send(
            encode_frame([Response(hello.id, {"heartbeat_ms": 60_000}), Assigned((assignment(1, "quick"),))])
        )
        [done] = decode_frame(await theirs.recv(), Expect.WORKER)
        assert done.command.outcome == "ok"
        await theirs.send(encode_frame([Response(done.id, {})]))
        worker.drain()
        await running

    run(scenario)


def test_many_completions_share_frames() -> None:
    app = App("a")

    @app.task
    async def noop(_ctx) -> None: ...

    async def scenario() -> None:
        async with FakeNode() as node, at_work(node, app, concurrency=200, credits=1_000):
            await node.assign(*(assignment(number, "noop") for number in range(1, 1_001)))
            await node.completed(1_000)
            assert node.worker.frames < 100

    run(scenario)


def test_handler_threads_are_bounded_and_reused() -> None:
    threads = HandlerThreads("t", 2)
    names: set[str] = set()
    done = threading.Semaphore(0)

    def call() -> None:
        names.add(threading.current_thread().name)
        done.release()

    for _ in range(50):
        threads.run(call)
    assert all(done.acquire(timeout=WITHIN_S) for _ in range(50))
    assert len(names) <= 2
    threads.close()


@pytest.mark.parametrize(
    "place, message",
    [
        ("nowhere.py:app", "there is no such file"),
        ("no.such.module:app", "No module named"),
        ("{folder}/shop_for_test.py:ap", "did you mean .*shop_for_test.py:app"),
        ("{folder}/shop_for_test.py:x", "it is a int, not an App"),
        ("{folder}/broken_for_test.py", r"ZeroDivisionError: .*broken_for_test.py:1"),
        ("{folder}/unfit_for_test.py", "compensate='gone' is not a task"),
    ],
)
def test_an_app_that_cannot_be_loaded_says_why(tmp_path: Any, place: str, message: str) -> None:
    (tmp_path / "shop_for_test.py").write_text("from crdtsync import App\napp = App('shop')\nx = 1\n")
    (tmp_path / "broken_for_test.py").write_text("1 / 0\n")
    (tmp_path / "unfit_for_test.py").write_text(
        "from crdtsync import App\napp = App('shop')\n@app.task(compensate='gone')\ndef charge(ctx): ...\n"
    )
    with pytest.raises(ConfigError, match=message):
        load_app(place.format(folder=tmp_path))


def test_an_app_is_loaded_from_a_file_whose_folder_joins_the_path(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
    (tmp_path / "gateway_for_test.py").write_text("price = 5\n")
    (tmp_path / "store_for_test.py").write_text(
        "import gateway_for_test\nfrom crdtsync import App\napp = App('store')\n"
    )
    assert load_app(f"{tmp_path}/store_for_test.py:app").name == "store"


async def until(holds: Any) -> None:
    """Wait for something inside this process that tells nobody."""
    limit = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < limit
        await asyncio.sleep(0.001)
