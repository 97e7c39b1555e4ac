from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import secrets
import threading
import time
import uuid
from datetime import UTC, datetime

import pytest
import trio
from click.testing import CliRunner

from crdtsync import App
from crdtsync.errors import ConfigError
from crdtsync.protocol.values import decode_value
from regions.cli import cli
from regions.execution.registry import load_app
from simulator import Arrivals, Load, World
from simulator.determinism import Guard, RealWorldError, seeded_trio
from simulator.rerun import first_difference, fresh_hash, rerun
from tests.simulator.worlds import played, scenario, stormy


def test_both_kernels_give_one_trace():
    heap = World(stormy(), 3)
    on_trio = World(stormy(), 3, kernel="trio")
    assert heap.run().trace_hash == on_trio.run().trace_hash
    assert [r[:7] for r in heap.trace] == [r[:7] for r in on_trio.trace]


def test_another_seed_gives_another_trace():
    assert World(stormy(), 3).run().trace_hash != World(stormy(), 4).run().trace_hash


def test_the_hash_is_the_same_without_the_records():
    kept = World(stormy(), 5, keep=True).run()
    assert World(stormy(), 5, keep=False).run().trace_hash == kept.trace_hash


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["heap", "trio"])
def test_a_fresh_process_under_another_hash_seed_gives_the_same_trace(kernel):
    assert rerun(stormy, 6, kernel=kernel, hash_seed=12_345) is None


@pytest.mark.slow
def test_what_a_fresh_process_says_is_the_hash():
    assert fresh_hash(stormy, 7, hash_seed=99) == World(stormy(), 7).run().trace_hash


def test_the_first_difference_of_two_traces_is_named(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text('{"seq":0}\n{"seq":1,"a":1}\n{"seq":2}\n')
    other.write_text('{"seq":0}\n{"seq":1,"a":2}\n')
    difference = first_difference(one, other)
    assert difference is not None
    assert difference.seq == 1
    assert '"a":1' in str(difference)
    assert first_difference(one, one) is None


def handled(handler):
    """What the client was told of one task with this handler, and its record's state."""
    app = App("own")
    app.task(name="own")(handler)
    load = Load("task:own", Arrivals(shape="once", burst=1))
    world = World(scenario(loads=(load,), app=app, regions=("eu",)), 1, kernel="trio")
    world.run()
    return world


@pytest.mark.parametrize(
    "module, name",
    [
        (time, "time"),
        (time, "time_ns"),
        (time, "monotonic"),
        (time, "perf_counter"),
        (uuid, "uuid4"),
        (os, "urandom"),
        (secrets, "token_hex"),
        (random, "random"),
        (random, "randint"),
        (random, "choice"),
        (time, "localtime"),
        (time, "strftime"),
        (random, "Random"),
    ],
)
def test_the_real_world_raises_within_the_guard(module, name):
    async def nowhere(_seconds):
        raise AssertionError

    real = getattr(module, name)
    with Guard(lambda: 0.0, nowhere, lambda _: None), pytest.raises(RealWorldError, match="simulation"):
        getattr(module, name)(*(["%H"] if name == "strftime" else []))
    assert getattr(module, name) is real


#: One line each that a user's module may say, and an expression that reads the real world by it.
ASKS = (
    ("from time import time", "time()"),
    ("from time import perf_counter as clock", "clock()"),
    ("from datetime import datetime", "datetime.now().isoformat()"),
    ("from datetime import datetime, UTC", "str(datetime.now(UTC))"),
    ("from datetime import date as day", "day.today().isoformat()"),
    ("import datetime as dt", "dt.datetime.utcnow().isoformat()"),
    ("from random import randint", "randint(1, 6)"),
    ("from random import SystemRandom", "SystemRandom().random()"),
    ("import random", "random.Random().random()"),
    ("from uuid import uuid4", "str(uuid4())"),
    ("from os import urandom", "urandom(4).hex()"),
    ("from secrets import token_hex", "token_hex()"),
    ("import secrets", "secrets.SystemRandom().random()"),
)


@pytest.mark.parametrize("line, asks", ASKS)
def test_a_module_that_imported_the_real_world_by_name_is_refused_too(line, asks, tmp_path):
    file = tmp_path / "own_tasks.py"
    file.write_text(
        f"from crdtsync import App, Retry\n{line}\napp = App('own')\n"
        f"@app.task(retry=Retry(attempts=1))\nasync def own(ctx):\n    return {asks}\n"
    )
    app = load_app(f"{file}:app")
    world = World(scenario(loads=(Load("task:own", Arrivals(shape="once", burst=1)),), app=app, regions=("eu",)), 1)
    world.run()
    (view, _), *_ = world.views().values()
    assert b"in a simulation" in view.attempts[0].value
    assert eval(asks, dict(app["own"].handler.__globals__)), "and it works again after the run"


def test_times_that_were_given_can_be_reckoned_with_in_a_handler(tmp_path):
    file = tmp_path / "own_tasks.py"
    file.write_text(
        "import time\nfrom datetime import UTC, date, datetime, timedelta\nfrom time import sleep\n"
        "from crdtsync import App\napp = App('own')\n@app.task\ndef own(ctx, at: str):\n"
        "    sleep(1.5)\n    moment = datetime.fromisoformat(at) + timedelta(days=1)\n"
        "    assert isinstance(moment, datetime) and isinstance(moment, date)\n"
        "    assert datetime(2026, 1, 2, tzinfo=UTC) < moment\n"
        "    return [moment.isoformat(), datetime.fromtimestamp(0, UTC).year, time.gmtime(0).tm_year]\n"
    )
    app = load_app(f"{file}:app")
    load = Load("task:own", Arrivals(shape="once", burst=1), args=("2026-11-22T10:00:00+00:00",))
    world = World(scenario(loads=(load,), app=app, regions=("eu",)), 1)
    world.run()
    (view, _), *_ = world.views().values()
    assert decode_value(view.result) == ["2026-11-23T10:00:00+00:00", 1970, 1970]
    begin, end = world.trace.of("task.begin", "task.end")
    assert 1_500_000 <= end.at_us - begin.at_us < 1_600_000


def test_a_handler_that_asks_for_the_time_fails_and_says_why():
    async def own(ctx):
        return time.time()

    world = handled(own)
    (view, _), *_ = world.views().values()
    assert view.failed_at is not None
    assert b"time.time() in a simulation" in view.attempts[0].value


@pytest.mark.parametrize("kernel, hint", [("heap", "--kernel trio has all of it"), ("trio", None)])
def test_a_handler_that_needs_another_kernel_is_named_with_the_reason(kernel, hint, tmp_path):
    """It failed like any other handler, and nothing said that it was for the kernel."""
    (tmp_path / "nursery.py").write_text(
        "import trio\nfrom crdtsync import App\napp = App('own')\n@app.task\nasync def own(ctx):\n"
        "    async with trio.open_nursery() as nursery:\n        nursery.start_soon(trio.sleep, 1)\n"
    )
    (tmp_path / "own.toml").write_text(
        'regions = ["eu"]\napp = "nursery.py:app"\nduration = "20s"\n[[load]]\ntask = "own"\narrivals = { count = 2 }\n'
    )
    arguments = ["sim", "run", str(tmp_path / "own.toml"), "--kernel", kernel, "--quick", "-o", "json"]
    done = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert done.exception is None
    if hint is None:
        assert json.loads(done.stdout)["tasks"]["succeeded"] == 2
        assert "warning" not in done.stderr
    else:
        assert "attempts of 'own' could not be played" in done.stderr
        assert hint in done.stderr


def test_a_handler_that_needs_asyncio_is_named_with_the_reason():
    async def own(ctx):
        asyncio.get_running_loop()

    assert "more of asyncio than its sleep" in str(handled(own).complaints)


def test_a_handler_may_log():
    async def own(ctx):
        logging.getLogger("own").warning("at %s", ctx.task_id)
        return 1

    assert handled(own).result().tasks["succeeded"] == 1


def test_threads_that_were_there_before_a_run_keep_the_real_world():
    """Those of a notebook's kernel died of the guard, and their traceback stood among the cell's output."""
    seen, over, errors = [], threading.Event(), []

    def watch():
        try:
            while not over.is_set():
                seen.append((time.time(), time.monotonic(), datetime.now(UTC), random.random(), uuid.uuid4()))
                time.sleep(0.001)
        except RealWorldError as error:
            errors.append(error)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        hash_ = World(stormy(), 3).run().trace_hash
        during = len(seen)
    finally:
        over.set()
        thread.join()
    assert errors == []
    assert during > 1
    assert World(stormy(), 3).run().trace_hash == hash_


def test_the_guard_gives_the_real_world_back_when_a_run_fails():
    world = World(stormy(), 1)
    world.kernel.run = None  # type: ignore[assignment]
    with pytest.raises(TypeError):
        world.run()
    assert time.time() > 0
    assert random.random() < 1


def test_trio_schedules_alike_under_both_switches():
    """The two private names that `seeded_trio` sets must go on meaning what they mean (trio 0.35)."""

    def order():
        seen = []

        async def child(number):
            for _ in range(5):
                await trio.lowlevel.checkpoint()
                seen.append(number)

        async def main():
            async with trio.open_nursery() as nursery:
                for number in range(10):
                    nursery.start_soon(child, number)

        with seeded_trio(7):
            trio.run(main)
        return seen

    assert all(order() == order() for _ in range(5))


def test_an_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="neither"):
        World(stormy(), 1, kernel="asyncio")


def test_a_load_of_no_model_is_refused():
    with pytest.raises(ConfigError, match="noop"):
        played(loads=(Load("nope"),))
