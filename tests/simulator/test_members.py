"""Regions that come and go in simulated clusters: what a plan can say, and what the world makes of it."""

from __future__ import annotations

from simulator import Arrivals, Fault, Load, Plan, Region, Scenario, World
from simulator.checkers import all_checkers

OLD = ("eu", "us", "ap")


def story(*faults: Fault, joins: str = "", heal_ms: int = 20_000, regions: tuple[str, ...] = OLD) -> Scenario:
    joiner = (Region(joins, joins=True),) if joins else ()
    return Scenario(
        "members",
        (*map(Region, regions), *joiner),
        loads=(Load("noop", Arrivals(per_s=3.0)),),
        plan=Plan(faults, heal_ms),
        duration_ms=120_000,
    )


def played(*faults: Fault, seed: int = 1, kernel: str = "heap", checked: bool = True, **rest) -> World:
    world = World(story(*faults, **rest), seed, kernel=kernel, checkers=all_checkers() if checked else ())
    world.run()
    assert not world.violations, [violation.text for violation in world.violations[:3]]
    return world


def records(world: World, kind: str, node: str = "") -> list:
    return [record for record in world.trace.records if record.kind == kind and node in ("", record.node)]


def test_a_region_that_joins_is_not_there_before_it_is_added_and_a_member_after():
    world = played(Fault("add", 4_000, 10_000, ("sa",)), joins="sa")
    assert records(world, "node.start", "sa")[0].at_us >= 4_000_000
    assert records(world, "worker.up", "sa")[0].at_us >= 4_000_000
    assert {node.membership.voters for node in world.regions.values()} == {("ap", "eu", "sa", "us")}
    assert any(record.node == "sa" for record in records(world, "task.begin"))


def test_no_fault_starts_a_region_that_is_not_there_yet():
    world = played(
        Fault("kill", 1_000, 500, ("sa",)),
        Fault("disk_drop_tail", 2_000, 500, ("sa",)),
        Fault("add", 6_000, 10_000, ("sa",)),
        joins="sa",
    )
    assert records(world, "node.start", "sa")[0].at_us >= 6_000_000


def test_a_region_that_is_never_added_owes_nothing_and_holds_nobody_up():
    world = played(Fault("kill", 3_000, 500, ("eu",)), joins="sa")
    assert world.converged_us is not None
    assert world.outsiders() == {"sa"}
    assert not records(world, "node.start", "sa")


def test_an_operator_who_is_refused_asks_again_until_it_is_done():
    """A silent member keeps the others from adding anybody, and a link from forgetting its other end."""
    world = played(
        Fault("isolate", 3_000, 8_000, ("ap",)),
        Fault("add", 8_000, 20_000, ("sa",)),
        joins="sa",
    )
    asked = [operation for operation in world.history if operation.op == "add"]
    assert len(asked) > 1
    assert asked[0].outcome == "refused"
    assert "is silent" in asked[0].value["message"]
    assert world.membership().is_member("sa")


def test_an_operator_gives_up_at_the_end():
    world = played(Fault("forget", 3_000, 4_000, ("ap",)))
    asked = [operation for operation in world.history if operation.op == "forget"]
    assert 1 < len(asked) < 6
    assert all("is linked to" in operation.value["message"] for operation in asked)
    assert world.membership().version == 1
    assert world.outsiders() == frozenset()


def test_who_is_forgotten_behind_a_cut_is_told_when_it_is_back_and_what_it_did_alone_does_not_count():
    world = played(
        Fault("isolate", 4_000, 12_000, ("ap",), {"how": "reset"}),
        Fault("forget", 7_000, 8_000, ("ap",), {"stopped": "no"}),
    )
    forgotten = world.regions["eu"].membership.forgotten["ap"]
    alone = {writer: number for writer, number in world.regions["ap"].applied.items() if writer.startswith("ap/")}
    assert any(number > forgotten.final.get(writer, 0) for writer, number in alone.items()), "it went on"
    for region in ("eu", "us"):
        applied = world.regions[region].applied
        assert all(applied.get(writer, 0) <= forgotten.final.get(writer, 0) for writer in alone)
    told = [record for record in records(world, "notify", "ap") if record.id == "region.forgotten"]
    assert {16_000_000 <= record.at_us < 20_000_000 for record in told} == {True}
    assert world.outsiders() == {"ap"}


def test_an_operator_decides_alone_that_a_majority_is_gone():
    world = played(
        Fault("isolate", 3_000, 25_000, ("eu",)),
        Fault("forget", 10_000, 0, ("us", "ap"), {"force": "yes"}),
    )
    assert (world.regions["eu"].membership.epoch, world.regions["eu"].membership.voters) == (1, ("eu",))
    assert world.outsiders() == {"us", "ap"}
    assert world.converged_us is not None


def test_both_kernels_play_members_alike():
    faults = (
        Fault("isolate", 3_000, 9_000, ("ap",)),
        Fault("forget", 6_000, 8_000, ("ap",)),
        Fault("add", 16_000, 20_000, ("sa",)),
    )
    hashes = {played(*faults, joins="sa", kernel=kernel, heal_ms=40_000).trace.hash for kernel in ("heap", "trio")}
    assert len(hashes) == 1
