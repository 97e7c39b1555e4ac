"""Rights under a global limit: no history makes them more than the limit, and each rule is missed when it is left out."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtsync.coordination.shares import dealt, evenly, passed_on
from crdtsync.identifiers import RegionId
from tests.properties.limit_model import BrokenLimitError, Fact, World, wander

WORLDS = {
    "three regions": World,
    "two regions": lambda: World(regions=2, amounts=(1, 2)),
    "no disk goes back": lambda: World(restores=False),
    "the amount never changes": lambda: World(amounts=(3,)),
}


@pytest.mark.parametrize("name", WORLDS)
def test_no_history_has_more_rights_than_the_limit_nor_loses_one(name: str) -> None:
    for seed in range(300):
        wander(WORLDS[name](), seed)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("name", WORLDS)
def test_no_history_of_many_seeds_has_more_rights_than_the_limit(name: str) -> None:
    for seed in range(1_000, 11_000):
        wander(WORLDS[name](), seed, length=random.Random(seed).randint(10, 120))


WEAK: dict[str, dict[str, Any]] = {
    "rights by creation": {},
    "anybody mints": {},
    "answers are not waited for": {},
    "one answer is enough": {},
    "answers are not caught up with": {"regions": 2, "amounts": (1, 2)},
    "answers before it is durable": {"regions": 2, "amounts": (1, 2)},
    "mint before the answers": {},
    "give before the answers": {},
    "give what is used": {},
    "burn what is used": {"regions": 2, "amounts": (1, 3)},
    "any move is fresh": {},
    "count what is promised": {},
    "gossip before it is durable": {"regions": 2, "amounts": (1, 2)},
}


@pytest.mark.parametrize("weak", WEAK)
def test_each_rule_is_missed_when_it_is_left_out(weak: str) -> None:
    for seed in range(2_500):
        try:
            wander(World(weak=weak, **WEAK[weak]), seed)
        except BrokenLimitError:
            return
    pytest.fail(f"nothing showed that a rule is missing: {weak}")


def burn_on_an_old_disk(world: World) -> None:
    """Us gives its right back, forgets that with its disk, and hears that the limit was lowered."""
    world.set(0, 2)
    world._write(0, Fact("mint", 2))
    world.move(0, 1, 1)
    exchange(world, 0, 1)
    world.nodes[1].copy = dict(world.nodes[1].disk)
    world.set(0, 1)
    world.persist(0)
    lowered = dict(world.nodes[0].disk)
    world.move(1, 0, 1)
    exchange(world, 1, 0)
    world.restore(1)
    world._learn(1, lowered)
    if burned := world.may_burn(1):
        world._write(1, Fact("burn", burned))
    exchange(world, 1, 0)
    world.set(0, 2)
    if minted := world.may_mint(0):
        world._write(0, Fact("mint", minted))
    world.check()


def exchange(world: World, source: int, sink: int) -> None:
    world.persist(source)
    world.sync(source, sink)
    world.persist(sink)


def test_rights_that_an_old_disk_remembers_are_not_burned_before_the_answers() -> None:
    """Too rare a story for histories at random: what is burned twice is minted again."""
    burn_on_an_old_disk(World(regions=2))
    with pytest.raises(BrokenLimitError):
        burn_on_an_old_disk(World(regions=2, weak="burn before the answers"))


# Shares ------------------------------------------------------------------------------------------

REGIONS = [RegionId(name) for name in ("ap", "eu", "sa", "us")]
amounts = st.dictionaries(st.sampled_from(REGIONS), st.integers(0, 30), min_size=1)


@given(st.integers(0, 60), amounts, st.randoms(use_true_random=False))
def test_nobody_is_dealt_more_than_it_wants_and_nothing_is_left_while_somebody_wants(total, wants, rng) -> None:
    order = sorted(wants)
    rng.shuffle(order)
    deal = dealt(total, wants, order)
    assert all(0 <= deal[region] <= wants[region] for region in wants)
    assert sum(deal.values()) == min(total, sum(wants.values()))
    wanting = [region for region in order if wants[region]]
    assert all(deal[region] >= 1 for region in wanting[:total]), "whoever has waited longest is not passed over"


@given(amounts, amounts)
def test_gifts_of_all_bring_everybody_to_the_deal_and_nobody_gives_what_it_needs(have, wants) -> None:
    have = {region: have.get(region, 0) for region in {*have, *wants}}
    wants = {region: wants.get(region, 0) for region in have}
    deal = dealt(sum(have.values()), wants, sorted(have))
    after = dict(have)
    for giver in have:
        gifts = passed_on(have, deal, giver)
        assert sum(gifts.values()) <= max(0, have[giver] - deal[giver])
        for receiver, amount in gifts.items():
            assert amount > 0
            after[giver] -= amount
            after[receiver] += amount
    assert all(after[region] >= deal[region] for region in have)


@given(st.integers(0, 50), st.sets(st.sampled_from(REGIONS), min_size=1))
def test_even_shares_differ_by_one_at_most(total, regions) -> None:
    shares = evenly(total, regions)
    assert sum(shares.values()) == total
    assert max(shares.values()) - min(shares.values()) <= 1
