"""What a scenario wants: sentences that are read as they sound, and that fail with what was there instead."""

import pytest

from crdtsync.errors import ConfigError
from simulator import Arrivals, Fault, Load, Plan, Region, Scenario, World
from simulator.expect import parse

ISLAND = {
    "name": "an island",
    "regions": (Region("eu"), Region("us"), Region("ap")),
    "loads": (Load("charge", Arrivals(per_s=3)),),
    "plan": Plan((Fault("isolate", 5_000, 10_000, ("eu",)),)),
}


def unmet(*wants):
    return World(Scenario(expectations=wants, **ISLAND), 1, keep=False).run().unmet


def test_what_holds_is_not_reported():
    assert (
        unmet(
            "submitted >= 20",
            "succeeded == submitted",
            "accepted in eu from 5s to 15s >= 5",
            "accepted in eu before 5s + accepted in eu after 5s == accepted in eu",
            "finished of charge >= 20",
            "effects named charge - effects named 'undo charge' == succeeded of charge",
            "hits of isolate in eu >= 1",
            "states from 6s to 14s >= 2",
            "states before 4s <= 3",
            "missing >= 5",
            "converge_time <= 10s",
            "peak < 50",
            "starts == 3",
            "crashes + lost_commits + dead + open == 0",
        )
        == ()
    )


def test_what_does_not_hold_is_told_with_what_was_there_and_why_it_was_wanted():
    found = unmet("crashes in eu >= 1  # somebody should have died")
    assert found == ("wanted crashes in eu >= 1 (somebody should have died), but crashes is 0",)


@pytest.mark.parametrize(
    "text, fix",
    [
        ("", "cannot be counted"),
        ("conflicts", "expected one of =="),
        ("conflicts => 3", "expected one of =="),
        ("conflicts >= 1 and dead == 0", "takes no filter|is left over"),
        ("accepted from 3 to 4 == 0", "lacks its unit"),
        ("accepted from 3s until 4s == 0", "from 10s to 40s"),
        ("submitted in eu == 3", "it takes of"),
        ("accepted in >= 3", "cannot read|followed by nothing|no region"),
    ],
)
def test_what_cannot_be_read_is_answered_by_what_can(text, fix):
    with pytest.raises(ConfigError, match=fix):
        parse(text)
