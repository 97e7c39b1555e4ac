from __future__ import annotations

import asyncio
import time

import pytest
import trio

from crdtsync import App, Retry
from crdtsync.errors import ConfigError
from crdtsync.execution import LostAttempt
from simulator import Arrivals, Fault, Links, Load, Plan, Region, Scenario, World
from simulator.catalogue import CATALOGUE, Aim
from simulator.latency import Latencies, distance_km, rtt_of_places
from tests.simulator.worlds import MODELS, played, scenario

BOTH = pytest.mark.parametrize("kernel", ["heap", "trio"])


def once(model, burst=1, **options):
    return (Load(model, Arrivals(shape="once", burst=burst), **options),)


def promised(world):
    """The ids of the tasks that some client was told are accepted."""
    return {
        answer["id"]
        for operation in world.history
        if operation.op == "submit" and operation.outcome == "ok"
        for answer in operation.value
        if "id" in answer
    }


def check(world):
    """What every run ends in, whatever went wrong on the way."""
    result = world.result()
    assert result.violations == ()
    assert result.converged_at_s is not None
    known = {task.hex() for task in world.views()}
    assert promised(world) <= known
    return result


# A quiet world ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_every_model_runs_to_its_end(model):
    result = check(played(loads=once(model, 5)))
    assert result.tasks["open"] == 0
    assert result.tasks["submitted"] >= 1


def test_a_charge_is_made_once_and_recorded():
    world = played(loads=once("charge", 4))
    assert check(world).tasks["succeeded"] == 4
    assert sorted(effect.name for effect in world.sink.done.values()) == ["charge"] * 4


def test_a_world_is_run_once():
    world = played(loads=())
    with pytest.raises(AssertionError, match="once"):
        world.run()


def test_nothing_is_sent_twice_where_nothing_goes_wrong():
    world = played(loads=once("noop", 10))
    assert {operation.sent for operation in world.history} == {1}
    assert not world.trace.of("net.drop", "node.crash", "node.failed", "effect.repeated")


# Every fault -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", CATALOGUE)
def test_the_cluster_outlives_every_fault(kind):
    spec = CATALOGUE[kind]
    targets = ("eu<>us", "ap") if spec.aim is Aim.LINKS else ("eu",)
    duration = 0 if spec.instant else 1_500
    rate = 0.1 if kind == "burst" else 0.3
    world = played(Fault(kind, 1_500, duration, targets), Fault(kind, 3_200, duration, targets), seed=3, per_s=rate)
    result = check(world)
    assert result.tasks["open"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("when", ["persist", "send", "reply", "run", "any"])
@pytest.mark.parametrize("side", ["before", "after"])
def test_what_was_acknowledged_survives_a_kill_at_every_boundary(when, side):
    params = {"when": when, "side": side, "nth": 2}
    kills = [Fault("kill", at_ms, 400, ("*",), params) for at_ms in (1_200, 2_200, 3_200)]
    world = played(*kills, seed=5)
    assert world.trace.of("node.crash")
    check(world)


def test_a_kill_that_waits_without_an_end_strikes_when_its_moment_comes():
    world = played(Fault("kill", 1_000, 0, ("eu",), {"when": "run"}), loads=once("noop", 3, regions=("eu",)))
    assert len(world.trace.of("node.crash")) == 1
    assert check(world).tasks["succeeded"] == 3


def test_only_the_named_core_is_healed():
    plan = Plan((Fault("isolate", 1_000, 60_000, ("ap",)),), heal_ms=3_000, healed=("eu", "us"))
    world = World(Scenario("core", tuple(map(Region, ("eu", "us", "ap"))), plan=plan, duration_ms=12_000), 1)
    world.run()
    assert world.converged_us is not None
    assert not world.faults[0].over
    assert world.regions["ap"].applied != world.regions["eu"].applied


def test_a_fault_that_changed_nothing_has_no_hits():
    world = played(Fault("worker_deaf", 1_000, 1_000, ("eu",)), Fault("pause", 1_000, 500, ("us",)), loads=())
    deaf, pause = world.faults
    assert not deaf.hits
    assert pause.hits["us"] == 1


def test_a_lost_disk_is_written_into_the_trace():
    world = played(Fault("disk_lost", 2_000, 1_000, ("eu",)))
    (lost,) = [r for r in world.trace.of("disk.lost") if r["reason"] == "the disk is lost"]
    assert lost["commits"]
    check(world)


def test_a_clone_is_a_node_of_its_own_until_it_is_switched_off():
    world = played(Fault("disk_clone", 2_000, 4_000, ("eu",)), heal_ms=6_000, per_s=1)
    assert set(world.nodes) == {"eu", "us", "ap", "eu~2"}
    assert world.nodes["eu~2"].replica is None
    assert any(notice.what == "incarnation.twin" for notice in world.nodes["eu"].notices)


# Workers and handlers --------------------------------------------------------------------------------


def own(handler, *, kernel="heap", faults=(), heal_ms=3_000, args=(), **options):
    app = App("own")
    app.task(name="own", **options)(handler)
    loads = (Load("task:own", Arrivals(shape="once", burst=1), regions=("eu",), args=args),)
    plan = scenario(*faults, loads=loads, app=app, heal_ms=heal_ms)
    world = World(plan, 1, kernel=kernel)
    world.run()
    return world


def only(world):
    (view, _settled), *_ = world.views().values()
    return view


@BOTH
@pytest.mark.parametrize("sleep", ["asyncio", "trio"])
def test_a_handlers_sleep_is_one_in_virtual_time(kernel, sleep):
    async def handler(ctx, text):
        if sleep == "asyncio":
            await asyncio.sleep(1.5)
        else:
            await trio.sleep(1.5)
        return text

    world = own(handler, kernel=kernel, args=("order {n}",))
    (begin,), (end,) = world.trace.of("task.begin"), world.trace.of("task.end")
    assert end.at_us - begin.at_us == 1_500_000
    assert b"order 1" in only(world).result


def test_a_handler_on_trio_may_use_all_of_trio():
    async def handler(ctx):
        results = []

        async def child(number):
            await trio.sleep(number)
            results.append(number)

        async with trio.open_nursery() as nursery:
            for number in (2, 1):
                nursery.start_soon(child, number)
        with trio.move_on_after(0.5):
            await trio.sleep_forever()
        return results

    world = own(handler, kernel="trio")
    assert only(world).result == bytes.fromhex("820102")


def test_a_handler_that_needs_trio_is_told_so_by_the_heap_kernel():
    async def handler(ctx):
        await trio.lowlevel.checkpoint()

    view = only(own(handler))
    assert view.attempts[0].state == "failed"


@BOTH
def test_a_handler_that_is_not_async_blocks_in_virtual_time(kernel):
    def handler(ctx):
        time.sleep(0.7)
        ctx.checkpoint(1)
        return ctx.effect("post", lambda: "posted")

    world = own(handler, kernel=kernel)
    (begin,), (end,) = world.trace.of("task.begin"), world.trace.of("task.end")
    assert end.at_us - begin.at_us >= 700_000
    assert b"posted" in only(world).result


@BOTH
def test_an_attempt_that_takes_too_long_is_stopped(kernel):
    async def handler(ctx):
        await asyncio.sleep(1_000)

    world = own(handler, kernel=kernel, timeout=0.5, heal_ms=6_000)
    (begin, *_), (end, *_) = world.trace.of("task.begin"), world.trace.of("task.end")
    assert end["outcome"] == "lost"
    assert 2.4 < end.at_s - begin.at_s < 2.6, "asked at once, cancelled after the grace"


@BOTH
def test_a_handler_may_wait_for_the_request_to_stop(kernel):
    async def handler(ctx):
        return await ctx.cancelled.wait()

    world = own(handler, kernel=kernel, timeout=0.5, heal_ms=6_000)
    (begin, *_), (end, *_) = world.trace.of("task.begin"), world.trace.of("task.end")
    assert end["outcome"] == "ok"
    assert end.at_s - begin.at_s < 0.6


def test_a_worker_that_dies_loses_its_attempts_and_another_goes_on():
    async def handler(ctx):
        done = ctx.last_checkpoint or 0
        while done < 4:
            await asyncio.sleep(0.5)
            done += 1
            await ctx.checkpoint(done)
        return done

    world = own(handler, faults=(Fault("worker_crash", 2_200, 500, ("eu",)),), heal_ms=8_000)
    view = only(world)
    assert [attempt.state for attempt in view.attempts] == ["lost", "ok"]
    begins = world.trace.of("task.begin")
    assert world.trace.of("task.end")[-1].at_us - begins[-1].at_us < 2_000_000, "it went on from its checkpoint"


def test_a_worker_outlives_its_node_and_reports_to_the_next():
    async def handler(ctx):
        await asyncio.sleep(1.0)
        return "done"

    world = own(handler, faults=(Fault("kill", 1_500, 300, ("eu",)),), heal_ms=5_000)
    assert [attempt.state for attempt in only(world).attempts] == ["ok"]


def test_what_a_silent_worker_did_is_told_when_it_speaks_again():
    async def handler(ctx):
        await asyncio.sleep(0.3)
        return "done"

    world = own(handler, faults=(Fault("worker_silent", 1_100, 1_000, ("eu",)),), heal_ms=5_000)
    assert world.faults[0].hits["eu"]
    assert only(world).state == "succeeded"


def test_a_hung_worker_gets_on_when_it_is_freed():
    async def handler(ctx):
        await asyncio.sleep(0.3)
        return "done"

    world = own(handler, faults=(Fault("worker_hang", 1_100, 2_000, ("eu",)),), heal_ms=5_000)
    (end,) = world.trace.of("task.end")
    assert end.at_s >= 3.1


def test_a_compensation_of_an_own_app_gets_what_is_to_be_undone():
    app = App("own")
    undone = []

    @app.task(compensate="undo")
    async def work(ctx, n):
        await ctx.effect("post", post)
        await asyncio.sleep(2)

    async def post():
        return "posted"

    @app.task
    async def undo(ctx, lost: LostAttempt):
        undone.append(lost.effects)

    loads = (Load("task:work", Arrivals(shape="once", burst=1), args=(1,)),)
    storm = Fault("cancel_storm", 500, 2_000, ("*",), {"rate": 1.0, "within_ms": 1_000})
    world = World(scenario(storm, loads=loads, app=app), 2)
    world.run()
    assert undone == [{"post": "posted"}]
    assert check(world).compensations == 1


@BOTH
def test_effects_of_own_handlers_are_seen_and_counted(kernel):
    """They used to be counted for built-in models alone: `effects` was 0 under a user's app."""
    app = App("own")

    @app.task
    async def pay(ctx):
        return await ctx.effect("pay", dict)

    @app.task
    def pay_in_a_thread(ctx):
        return ctx.effect("pay", dict)

    loads = tuple(Load(f"task:{name}", Arrivals(shape="once", burst=3)) for name in app.tasks)
    wants = ("effects == 6", "effects named pay == 6", "effects of pay == 3", "repeats == 0")
    world = World(scenario(loads=loads, app=app, heal_ms=3_000, expectations=wants), 1, kernel=kernel)
    assert world.run().unmet == ()
    assert {record["name"] for record in world.trace.of("effect.done")} == {"pay"}


def test_an_effect_of_an_own_handler_that_a_crash_kept_from_its_record_is_repeated_under_its_key():
    app, calls = App("own"), []

    @app.task(retry=Retry(base=0.1))
    async def pay(ctx):
        return await ctx.effect("pay", calls.append, 1)

    loads = (Load("task:pay", Arrivals("constant", per_s=10), regions=("eu",)),)
    slow = Fault("disk_slow", 500, 8_000, ("eu",), {"fsync_ms": 200})
    kinds = ("kill", "worker_crash")  # both at once: what the worker did is in nobody's memory
    crashes = [Fault(kind, at_ms, 100, ("eu",)) for at_ms in (2_050, 3_050, 4_050) for kind in kinds]
    world = World(scenario(slow, *crashes, loads=loads, app=app, expectations=("repeats >= 1",)), 1)
    world.run()
    assert check(world).unmet == ()
    assert len(calls) == len(world.trace.of("effect.done", "effect.repeated"))


@pytest.mark.parametrize("kind", ["failing", "poison"])
def test_own_handlers_meet_what_faults_have_in_store_for_handlers(kind):
    app, done = App("own"), []

    @app.task(retry=Retry(attempts=5, base=0.1))
    async def work(ctx):
        await ctx.effect("work", done.append, ctx.task_id)

    loads = (Load("task:work", Arrivals("constant", per_s=10), regions=("eu",)),)
    world = World(scenario(Fault(kind, 500, 2_500, ("eu",), {"rate": 0.3}), loads=loads, app=app, heal_ms=4_000), 1)
    world.run()
    (fault,) = world.faults
    assert fault.hits["eu"] >= 2
    assert check(world).tasks["succeeded"] == len(done), "what was recorded before the end failed is not done again"


# Latencies -------------------------------------------------------------------------------------------


def test_round_trips_come_from_pairs_then_matrix_then_places(tmp_path):
    matrix = tmp_path / "rtt.csv"
    matrix.write_text("src,dst,avg_ms\neu,us,90\nus,eu,91\neu,ap,200\nap,ap,0.1\n")
    regions = (Region("eu", (50.1, 8.7)), Region("us", (39.0, -77.5)), Region("ap", (1.35, 103.8)))
    links = Links(rtt={"us>ap": 7}, matrix=str(matrix))
    found = Latencies(Scenario("t", regions, links=links))
    assert found.rtt_ms("eu", "us") == 90
    assert found.rtt_ms("us", "eu") == 91
    assert found.rtt_ms("ap", "eu") == 200
    assert found.rtt_ms("us", "ap") == 7
    assert found.rtt_ms("ap", "us") == pytest.approx(rtt_of_places(regions[2].place, regions[1].place))
    assert found.one_way_us("eu", "us") == 45_000


def test_distance_is_along_the_great_circle():
    assert distance_km((50.1, 8.7), (39.0, -77.5)) == pytest.approx(6_550, rel=0.01)
    assert rtt_of_places((0, 0), (0, 0)) == 4


def test_a_matrix_that_lacks_a_region_is_refused(tmp_path):
    matrix = tmp_path / "rtt.csv"
    matrix.write_text("src,dst,avg_ms\neu,us,90\n")
    with pytest.raises(ConfigError, match="mars"):
        Latencies(Scenario("t", (Region("eu"), Region("mars")), links=Links(matrix=str(matrix))))
