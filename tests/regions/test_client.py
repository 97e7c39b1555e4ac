from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import pytest

from crdtsync import App
from crdtsync import commands as c
from crdtsync.errors import (
    ConfigError,
    CrdtSyncError,
    DuplicateTaskError,
    IllegalTransitionError,
    IndefiniteError,
    InvalidRequestError,
    OverloadedError,
    PayloadTooLargeError,
    RemoteProtocolError,
    TaskFailedError,
    UndeclaredTaskError,
    UnknownTaskError,
    UnreachableError,
    WaitTimeoutError,
)
from crdtsync.protocol.codec import decode_value
from crdtsync.protocol.messages import Response, StopAttempt
from regions.client import Client, Handle
from regions.connection import NodeConnection, Repeat
from regions.submission import Options, task_spec
from tests.regions.fake_node import SILENCE, WITHIN_S, FakeNode, attempt_id

TASK = "00" * 15 + "01"


def run(scenario: Any) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(2 * WITHIN_S):
            return await scenario()

    return asyncio.run(bounded())


def test_a_submission_is_minted_sent_and_awaited() -> None:
    async def scenario() -> None:
        async with FakeNode() as node, Client(node.url) as client:
            node.script[c.Await] = lambda command: {
                "id": command.task.hex(),
                "state": "succeeded",
                "result": {"n": [1, {"base64": "AAE="}]},
            }
            handle = await client.submit("charge", "A-1", cents=5, options=Options(region="us", labels={"a": "b"}))
            assert handle.created
            assert client.region == "eu"
            [spec] = node.of(c.Submit)[0].specs
            assert spec.id is not None
            assert handle.id == spec.id.hex()
            assert (spec.region, spec.labels) == ("us", {"a": "b"})
            assert decode_value(spec.payload) == [["A-1"], {"cents": 5}]
            assert await handle.result(timeout=5, settled=True) == {"n": [1, b"\x00\x01"]}
            assert node.of(c.Await)[0].settled

    run(scenario)


def test_a_decorated_function_names_its_task() -> None:
    app = App("shop")

    @app.task(name="charge.card")
    async def charge(_ctx) -> None: ...

    assert task_spec(charge, (), {}).name == "charge.card"
    with pytest.raises(ConfigError, match=r"decorate it with @app\.task"):
        task_spec(run, (), {})


def test_a_submission_whose_answer_was_lost_is_sent_again_under_the_same_id() -> None:
    async def scenario() -> None:
        async with FakeNode() as node, Client(node.url) as client:
            node.script[c.Submit] = SILENCE
            submitting = asyncio.create_task(client.submit("charge"))
            await node.until(lambda: node.of(c.Submit))
            await node.stop()
            node.script[c.Submit] = lambda command: [{"id": command.specs[0].id.hex(), "created": False}]
            await node.start()
            handle = await submitting
            first, second = node.of(c.Submit)
            assert first == second
            assert not handle.created
            assert client.writer.startswith("eu/a#1")

    run(scenario)


def test_what_cannot_be_repeated_is_indefinite_once_its_answer_is_lost() -> None:
    async def scenario() -> None:
        async with FakeNode() as node, Client(node.url) as client:
            node.script[c.Requeue] = SILENCE
            requeueing = asyncio.create_task(client.requeue(TASK))
            await node.until(lambda: node.of(c.Requeue))
            node.cut()
            with pytest.raises(IndefiniteError) as caught:
                await requeueing
            assert not caught.value.definite
            assert await client.node_status() == {"region": "eu"}
            assert len(node.of(c.Requeue)) == 1

    run(scenario)


def test_what_was_never_sent_is_unreachable_and_what_was_is_indefinite_when_patience_ends() -> None:
    async def scenario() -> None:
        async with FakeNode() as node, Client(node.url, patience=0.2) as client:
            node.script[c.Submit] = node.script[c.Describe] = SILENCE
            sent = asyncio.create_task(client.submit("charge"))
            read = asyncio.create_task(client.status(TASK))
            await node.until(lambda: node.of(c.Submit) and node.of(c.Describe))
            await node.stop()
            unsent = asyncio.create_task(client.submit("charge"))
            with pytest.raises(IndefiniteError):
                await sent
            with pytest.raises(UnreachableError):
                await unsent
            with pytest.raises(UnreachableError) as caught:
                await read
            assert caught.value.definite

    run(scenario)


def test_closing_ends_the_waiting() -> None:
    async def scenario() -> None:
        async with FakeNode() as node:
            client = Client(node.url)
            await client.connect()
            node.script[c.Await] = SILENCE
            waiting = asyncio.create_task(client.wait(TASK))
            await node.until(lambda: node.of(c.Await))
            await client.close()
            with pytest.raises(UnreachableError, match="closed"):
                await waiting
            with pytest.raises(UnreachableError, match="closed"):
                await client.status(TASK)

    run(scenario)


def test_no_node_is_unreachable_and_no_url_is_a_matter_of_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        node = FakeNode()
        await node.start()
        await node.stop()
        with pytest.raises(UnreachableError, match="no node answers at ws://127"):
            async with Client(node.url, connect_timeout=0.2):
                pass

    run(scenario)
    monkeypatch.delenv("CRDTSYNC_NODE", raising=False)
    with pytest.raises(ConfigError, match="CRDTSYNC_NODE"):
        Client()
    monkeypatch.setenv("CRDTSYNC_NODE", "http://127.0.0.1:1")
    with pytest.raises(ConfigError, match="ws://HOST:PORT"):
        Client()


def test_a_refusal_at_the_opening_is_what_the_caller_sees() -> None:
    async def scenario() -> None:
        async with FakeNode() as node:
            node.refusal = OverloadedError("512 connections are open")
            with pytest.raises(OverloadedError, match="512"):
                async with Client(node.url, connect_timeout=0.2):
                    pass

    run(scenario)


def test_errors_are_typed() -> None:
    async def scenario() -> None:
        async with FakeNode() as node, Client(node.url) as client:
            node.script[c.Describe] = UnknownTaskError("no such task", task=TASK)
            node.script[c.Requeue] = IllegalTransitionError("it runs")
            node.script[c.Submit] = lambda _: [{"error": UndeclaredTaskError("never heard of").record()}]
            with pytest.raises(UnknownTaskError) as caught:
                await client.status(TASK)
            assert caught.value.facts == {"task": TASK}
            with pytest.raises(IllegalTransitionError):
                await client.requeue(TASK)
            with pytest.raises(UndeclaredTaskError):
                await client.submit("x")
            with pytest.raises(InvalidRequestError, match="not a task id"):
                await client.status("7")
            with pytest.raises(PayloadTooLargeError):
                await client.submit("x", b"x" * (1 << 20))
            with pytest.raises(InvalidRequestError, match="datetime"):
                await client.submit("x", datetime.now(UTC))

    run(scenario)


def test_a_task_that_failed_raises_with_its_record() -> None:
    record = {
        "id": TASK,
        "name": "charge",
        "state": "dead",
        "result": None,
        "attempts": [{"error": "Boom: no"}, {"error": None}],
    }

    async def scenario() -> None:
        async with FakeNode() as node, Client(node.url) as client:
            node.script[c.Await] = record
            with pytest.raises(TaskFailedError, match=r"\(charge\) ended dead; last error: Boom: no") as caught:
                await client.result(TASK)
            assert caught.value.facts["task"] == record

    run(scenario)


def test_waiting_ends_with_its_time_and_the_node_is_told() -> None:
    async def scenario() -> None:
        async with FakeNode() as node, Client(node.url) as client:
            node.script[c.Await] = SILENCE
            with pytest.raises(WaitTimeoutError, match="it goes on"):
                await client.result(TASK, timeout=0.05)
            [forget] = await node.until(lambda: node.of(c.Forget))
            assert forget.ticket == node.connections[0].requests[0][0]

    run(scenario)


def test_waiting_goes_on_over_a_restart_of_the_node() -> None:
    async def scenario() -> None:
        async with FakeNode() as node, Client(node.url) as client:
            node.script[c.Await] = SILENCE
            waiting = [asyncio.create_task(client.wait(TASK)) for _ in range(3)]
            await node.until(lambda: len(node.of(c.Await)) == 3)
            node.cut()
            await node.until(lambda: len(node.of(c.Await)) == 6)
            await node.answer(c.Await, {"state": "succeeded"})
            assert await asyncio.gather(*waiting) == [{"state": "succeeded"}] * 3

    run(scenario)


def test_a_list_in_parts_is_joined_and_begun_anew_on_another_connection() -> None:
    async def scenario() -> None:
        async with FakeNode() as node, Client(node.url) as client:
            node.script[c.History] = SILENCE
            listing = asyncio.create_task(client.history(TASK))
            await node.until(lambda: node.of(c.History))
            number = node.connections[0].requests[-1][0]
            await node.connections[0].send(Response(number, [{"n": 1}], final=False))
            await client.node_status()
            node.cut()
            await node.until(lambda: len(node.of(c.History)) == 2)
            await node.connections[0].send(Response(number, [{"n": 1}, {"n": 2}], final=False))
            await node.connections[0].send(Response(number, [{"n": 3}]))
            assert await listing == [{"n": 1}, {"n": 2}, {"n": 3}]

    run(scenario)


def test_a_bug_in_a_callback_ends_the_connection_loudly(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with FakeNode() as node:
            client = Client(node.url)
            await client.connect()
            node.script[c.Await] = SILENCE
            waiting = asyncio.create_task(client.wait(TASK))
            await node.until(lambda: node.of(c.Await))
            client._connection.post(c.Status(), lambda *_: 1 / 0, repeat=Repeat.READ)
            with pytest.raises(CrdtSyncError, match="division by zero"):
                await waiting
            with pytest.raises(CrdtSyncError, match="division by zero"):
                await client.node_status()
            await client.close()

    run(scenario)
    assert "division by zero" in caplog.text


def test_many_submissions_share_frames_and_answers_keep_their_order() -> None:
    def answer(command: c.Submit) -> list[Any]:
        wrong = DuplicateTaskError("taken").record()
        return [
            {"error": wrong} if spec.name == "bad" else {"id": spec.id.hex(), "created": True} for spec in command.specs
        ]

    async def scenario() -> None:
        async with FakeNode() as node, Client(node.url) as client:
            node.script[c.Submit] = answer
            specs = [task_spec("bad" if n == 700 else "ok", (n,), {}) for n in range(2_000)]
            answers = await client.submit_many(iter(specs))
            assert [x.id for x in answers if isinstance(x, Handle)] == [
                s.id.hex() for s in specs if s.name == "ok" and s.id
            ]
            assert [n for n, x in enumerate(answers) if isinstance(x, CrdtSyncError)] == [700]
            assert len(node.of(c.Submit)) == 4
            assert node.connections[0].frames <= 4

    run(scenario)


def test_a_batch_that_names_an_earlier_one_waits_for_its_answer() -> None:
    async def scenario() -> None:
        async with FakeNode() as node, Client(node.url) as client:
            accept = node.script[c.Submit]
            node.script[c.Submit] = SILENCE
            parents = [task_spec("p", (), {}) for _ in range(500)]
            children = [task_spec("c", (), {}, Options(after=[parents[n].id])) for n in range(500)]
            submitting = asyncio.create_task(client.submit_many([*parents, *children]))
            [first] = await node.until(lambda: node.of(c.Submit))
            await client.node_status()
            assert node.of(c.Submit) == [first]
            node.script[c.Submit] = accept
            await node.answer(c.Submit, accept(first))
            assert len(await submitting) == 1_000
            assert [len(x.specs) for x in node.of(c.Submit)] == [500, 500]

    run(scenario)


def test_waits_do_not_keep_requests_from_being_asked() -> None:
    async def scenario() -> None:
        async with FakeNode() as node, Client(node.url) as client:
            node.script[c.Await] = SILENCE
            waiting = [asyncio.create_task(client.wait(TASK)) for _ in range(1_000)]
            await node.until(lambda: len(node.of(c.Await)) == 800)
            assert await client.node_status() == {"region": "eu"}
            node.script[c.Await] = {"state": "succeeded"}
            await node.answer(c.Await, {"state": "succeeded"})
            assert len(await asyncio.gather(*waiting)) == 1_000

    run(scenario)


def test_a_watch_streams_until_it_is_left_and_tells_of_gaps() -> None:
    async def scenario() -> None:
        async with FakeNode() as node, Client(node.url) as client:
            node.script[c.Watch] = SILENCE
            seen = []
            async with aclosing(client.watch(queue="payments")) as changes:
                reading = asyncio.create_task(anext(changes))
                await node.until(lambda: node.of(c.Watch))
                number = node.connections[0].requests[-1][0]
                await node.connections[0].send(
                    Response(number, {"id": "1", "state": "running"}, final=False),
                    Response(number, {"id": "1", "state": "succeeded"}, final=False),
                )
                seen += [await reading, await anext(changes)]
                node.cut()
                seen.append(await anext(changes))
                await node.until(lambda: len(node.of(c.Watch)) == 2)
                await node.connections[0].send(Response(number, {"id": "2", "state": "dead"}, final=False))
                seen.append(await anext(changes))
            assert [record["state"] for record in seen] == ["running", "succeeded", None, "dead"]
            assert seen[2]["gap"]
            await node.until(lambda: node.of(c.Forget))

    run(scenario)


def test_a_slow_reader_of_a_watch_loses_records_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regions.client.STREAM_RECORDS_MAX", 3)

    async def scenario() -> None:
        async with FakeNode() as node, Client(node.url) as client:
            node.script[c.Watch] = SILENCE
            async with aclosing(client.watch()) as changes:
                reading = asyncio.create_task(anext(changes))
                await node.until(lambda: node.of(c.Watch))
                number = node.connections[0].requests[-1][0]
                await node.connections[0].send(*(Response(number, {"n": n}, final=False) for n in range(9)))
                first = await reading
                await client.node_status()  # answered behind the records: all of them have arrived
                await node.connections[0].send(Response(number, {"n": 9}, final=False))
                rest = [await anext(changes) for _ in range(2)]
                await client.node_status()
                await node.connections[0].send(Response(number, {"n": 10}, final=False))
                rest += [await anext(changes) for _ in range(3)]
            assert first == {"n": 0}
            assert [record.get("n", "gap") for record in rest] == [1, 2, "gap", 9, 10]

    run(scenario)


def test_a_watch_that_the_node_refuses_raises() -> None:
    async def scenario() -> None:
        async with FakeNode() as node, Client(node.url) as client:
            node.script[c.Watch] = OverloadedError("too many")
            with pytest.raises(OverloadedError):
                await anext(client.watch(TASK))

    run(scenario)


def test_a_node_that_talks_nonsense_is_left_and_dialled_again() -> None:
    async def scenario() -> None:
        async with FakeNode() as node, Client(node.url) as client:
            for nonsense in (b"\xff", b"\x80", b"\x81\x82\x61\x72"):
                node.script[c.Describe] = SILENCE
                asking = asyncio.create_task(client.status(TASK))
                await node.until(lambda: node.of(c.Describe))
                node.commands.clear()
                node.script[c.Describe] = {"state": "running"}
                await node.connections[0].socket.send(nonsense)
                assert await asking == {"state": "running"}
                node.commands.clear()
            await node.connections[0].send(StopAttempt(attempt_id(1), "a client runs nothing"))
            await node.until(lambda: node.opened == 5)

    run(scenario)


def test_unsent_requests_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regions.connection.UNSENT_MAX", 2)

    async def scenario() -> None:
        async def dial() -> Any:
            raise ConnectionRefusedError("nobody there")

        connection = NodeConnection(dial, "client", "nowhere", patience_s=None)
        connection.start()
        for _ in range(2):
            connection.post(c.Status(), lambda *_: None, repeat=Repeat.READ)
        with pytest.raises(OverloadedError):
            connection.post(c.Status(), lambda *_: None, repeat=Repeat.READ)
        await connection.close()

    run(scenario)


def test_a_request_too_large_for_a_frame_fails_alone() -> None:
    async def scenario() -> None:
        async with FakeNode() as node, Client(node.url) as client:
            huge = c.Submit((c.TaskSpec("x", b"x" * (5 << 20), b"i" * 16),))
            big, small = await asyncio.gather(client.request(huge), client.node_status(), return_exceptions=True)
            assert isinstance(big, PayloadTooLargeError)
            assert small == {"region": "eu"}

    run(scenario)


def test_listings_are_asked_for_page_by_page_and_come_as_one_list() -> None:
    pages = {
        None: {"records": [{"n": 1}, {"n": 2}], "next": [5, b"a"]},
        (5, b"a"): {"records": [], "next": [4, b"b"]},  # all that it held had changed, or was damaged
        (4, b"b"): {"records": [{"n": 3}], "next": None},
    }

    async def scenario() -> None:
        async with FakeNode() as node, Client(node.url) as client:
            node.script[c.ListTasks] = node.script[c.ListConflicts] = lambda command: pages[command.after]
            assert await client.list(queue="q", limit=0) == [{"n": 1}, {"n": 2}, {"n": 3}]
            assert [(x.queue, x.limit, x.after) for x in node.of(c.ListTasks)] == [("q", 0, at) for at in pages]
            assert await client.list(limit=1) == [{"n": 1}]
            assert await client.list(limit=2) == [{"n": 1}, {"n": 2}]
            assert len(node.of(c.ListTasks)) == 5, "nothing is asked for beyond the limit"
            assert await client.list(limit=3) == [{"n": 1}, {"n": 2}, {"n": 3}]
            assert [x.limit for x in node.of(c.ListTasks)[5:]] == [3, 1, 1]
            assert await client.conflicts() == [{"n": 1}, {"n": 2}, {"n": 3}]

    run(scenario)


def test_every_command_has_its_method() -> None:
    async def scenario() -> None:
        async with FakeNode() as node, Client(node.url) as client:
            handle = client.handle(TASK)
            await handle.status()
            await handle.history()
            await handle.explain()
            await handle.cancel("because")
            await handle.requeue()
            await handle.edit(priority=3, labels={"a": ""})
            await client.list(state="dead", label=("a", "b"), limit=0)
            await client.conflicts()
            await client.regions()
            await client.links()
            await client.cut("us")
            await client.heal()
            await client.drain(off=True)
            await client.call(c.Status())
            assert [type(command) for command in node.commands] == [
                c.Describe,
                c.History,
                c.Explain,
                c.Cancel,
                c.Requeue,
                c.Edit,
                c.ListTasks,
                c.ListConflicts,
                c.ListRegions,
                c.ListLinks,
                c.CutLinks,
                c.HealLinks,
                c.Drain,
                c.Status,
            ]

    run(scenario)


def test_options_travel_as_milliseconds_and_bytes() -> None:
    spec = task_spec(
        "x",
        (),
        {},
        Options(
            key="k",
            delay=1.5,
            deadline=datetime(2026, 11, 22, tzinfo=UTC),
            after=[TASK, b"\x02" * 16],
            backoff=0.1,
            timeout=2,
        ),
    )
    assert spec.id is None
    assert (spec.delay_ms, spec.backoff_ms_base, spec.timeout_ms) == (1_500, 100, 2_000)
    assert spec.deadline_ms == 1_795_305_600_000
    assert spec.after == (bytes.fromhex(TASK), b"\x02" * 16)
    with pytest.raises(InvalidRequestError, match="time zone"):
        task_spec("x", (), {}, Options(not_before=datetime(2026, 11, 22)))  # noqa: DTZ001


def test_remote_protocol_errors_are_definite() -> None:
    assert RemoteProtocolError("x").definite
