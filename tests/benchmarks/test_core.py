"""The benchmarks of the core measure the work that they name: tiny sizes, and no clock is judged."""

import argparse
import asyncio
import inspect

import pytest

from benchmarks import growth, heal, merge, recovery, simulation
from benchmarks.__main__ import BENCHMARKS, module_of, parser_of
from benchmarks.core import Core, settings_of, sqlite_core
from crdtsync import commands as c
from crdtsync.identifiers import RegionId
from regions.storage.memory import MemoryStore
from regions.submission import task_spec


def test_every_benchmark_has_options_sizes_and_a_run() -> None:
    parser = parser_of()
    for name in BENCHMARKS:
        args = parser.parse_args([name, "--full", "--json", "-"])
        module_of(name).full(args)
        module_of(name).published(parser.parse_args([name, "--published"]))
        assert inspect.iscoroutinefunction(module_of(name).run)


def test_a_core_submits_runs_and_remembers_what_it_cost() -> None:
    async def play():
        core = Core(MemoryStore())
        await core.start()
        await core.hello(["t"], 5)
        ids = await core.submit([task_spec("t", (n,), {}) for n in range(12)])
        await core.work_off(per_frame=3)
        states = {(await core.ask(c.Describe(task)))["state"] for task in ids}
        return states, core.core_s

    states, core_s = asyncio.run(play())
    assert states == {"succeeded"}
    assert core_s > 0


# merge -----------------------------------------------------------------------------------------------


def test_a_history_has_the_shape_that_the_figures_name() -> None:
    written = merge.history(200)
    assert written.events == 200 * merge.WRITERS
    assert len(written.tasks) == len(set(written.tasks)) == written.events // merge.EVENTS_PER_TASK
    assert {len(blobs) for blobs in written.blobs.values()} == {200 // merge.EVENTS_PER_COMMIT}
    assert merge.history(200).blobs == written.blobs
    assert written.bytes == sum(len(blob) for blobs in written.blobs.values() for blob in blobs)


def test_every_order_of_arrival_ends_in_the_same_digest() -> None:
    written = merge.history(300)
    digests = set()
    for order in (merge.in_turn, merge.shuffled, merge.twice):
        merging = merge.Merging()
        merging.receive(order(written), fold=True)
        digests.add(merging.resolve())
        assert merging.log.applied.count() == sum(map(len, written.blobs.values()))
        assert len(merging.table) == len(written.tasks)
    assert len(digests) == 1


def test_a_whole_replica_ends_with_the_state_of_its_parts() -> None:
    written = merge.history(200)
    merging = merge.Merging()
    merging.receive(merge.in_turn(written), fold=True)

    async def play():
        core = Core(MemoryStore(), settings_of("here", ["here", *merge.regions()]))
        await core.start()
        core.replica._intake.arrived(RegionId("r0"), merge.in_turn(written), 0)
        await core.feed(lambda replica, now: replica.tick(now))
        return (await core.ask(c.Status()))["digest"]

    assert asyncio.run(play()) == merging.resolve().hex()


def test_steps_and_a_late_commit_are_taken_in() -> None:
    taken = merge.take_in(merge.in_turn(merge.history(100)))
    assert taken.decode_s > 0
    assert taken.fold_s > 0
    assert merge.late_commit(100, 7) > 0
    events, cpu_s, _ = merge.whole_replica(100)
    assert events == 500
    assert cpu_s > 0


# growth ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", growth.KINDS)
def test_tasks_of_every_kind_are_there_while_operations_are_measured(kind, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(growth, "PROBES", 3)

    async def play():
        core = sqlite_core(tmp_path)
        await core.start()
        await growth.fill(core, 20, kind)
        state = "succeeded" if kind == "settled" else "waiting"
        page = await core.ask(c.ListTasks(state=state, limit=100))
        taken = await growth.probe(core)
        await core.close()
        return page["records"], taken

    records, taken = asyncio.run(play())
    assert len([record for record in records if record["name"] == growth.FILLER]) >= 20
    assert {name: len(probes) for name, probes in taken.items()} == {
        "submit": 3,
        "claim": 1,
        "complete": 3,
        "list": 5,
        "list filtered": 5,
        "explain": 3,
    }


# recovery --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", recovery.KINDS)
def test_the_log_alone_gives_the_state_that_the_rows_gave(kind, tmp_path) -> None:
    recovery.write(str(tmp_path), kind, 20)

    async def digest():
        core = sqlite_core(tmp_path)
        await core.start()
        status = await core.ask(c.Status())
        folded = len(core.replica.folded_heads)
        await core.close()
        return status["digest"], folded

    with_rows, folded = asyncio.run(digest())
    assert folded, "the rows that were written stand for the log"
    recovery.forget_rows(tmp_path)
    alone, _ = asyncio.run(digest())
    assert alone == with_rows
    seconds, cpu_s, _ = recovery.start(str(tmp_path))
    assert seconds > 0
    assert cpu_s > 0


# heal ------------------------------------------------------------------------------------------------


def test_the_log_is_counted_from_where_the_cut_began(tmp_path) -> None:
    async def play():
        core = sqlite_core(tmp_path)
        await core.start()
        await core.hello(["t"], 1)
        await core.submit([task_spec("t", (1,), {})])
        cut = heal.log_end(tmp_path)
        await core.submit([task_spec("t", (n,), {}) for n in range(50)])
        after = heal.log_bytes(tmp_path, cut)
        everything = heal.log_bytes(tmp_path)
        await core.close()
        return cut, after, everything

    cut, (commits, size, packed), everything = asyncio.run(play())
    assert commits >= 1
    assert everything[0] == cut + commits
    assert 0 < packed < size < everything[1]


@pytest.mark.slow
def test_both_nodes_end_equal_and_probes_run_meanwhile(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(heal, "IDLE_PROBES", 3)
    found = asyncio.run(heal.measure(40, tmp_path))
    assert found["commits"] > 0
    assert found["wire_mb"] > found["packed_mb"] > 0
    assert {region: len(values) for region, values in found["idle"].items()} == {"eu": 3, "us": 3}
    assert all(found["during"].values())


# simulator -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_simulator_is_swept_on_both_kernels(tmp_path) -> None:
    report = asyncio.run(simulation.run(argparse.Namespace(seeds=1, runs=1)))
    assert [row[0] for row in report.tables[0].rows] == list(simulation.KERNELS)
