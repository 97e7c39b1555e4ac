from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtsync.errors import ConfigError
from simulator import Fault, Plan
from simulator.catalogue import CATALOGUE, Aim, Family
from simulator.faults import BEGIN
from simulator.plan import ms_of, split_link, text_of_ms

REGIONS = ("eu", "us", "ap-1")


@st.composite
def faults(draw):
    kind = CATALOGUE[draw(st.sampled_from(sorted(CATALOGUE)))]
    params = {}
    for name, param in kind.params.items():
        if draw(st.booleans()):
            if param.choices:
                params[name] = draw(st.sampled_from(param.choices))
            else:
                params[name] = draw(st.floats(param.low, param.high))
    targets = {
        Aim.LINKS: ["*", "eu", "eu>us", "us<>ap-1"],
        Aim.REGIONS: ["*", "eu", "ap-1"],
        Aim.WORKERS: ["*", "eu", "eu/0"],
    }[kind.aim]
    chosen = draw(st.lists(st.sampled_from(targets), min_size=1, max_size=3, unique=True))
    duration = 0 if kind.instant else draw(st.integers(0, 10**8))
    return Fault(kind.name, draw(st.integers(0, 10**8)), duration, tuple(chosen), params)


plans = st.builds(
    Plan,
    faults=st.lists(faults(), max_size=6).map(tuple),
    heal_ms=st.none() | st.integers(0, 10**8),
    healed=st.lists(st.sampled_from(REGIONS), max_size=2, unique=True).map(tuple),
)


@given(plans)
def test_a_plan_survives_json(plan):
    plan.check(REGIONS)
    assert Plan.from_plain(json.loads(json.dumps(plan.to_plain()))) == plan


@given(st.integers(-(10**9), 10**9))
def test_a_duration_survives_its_text(duration_ms):
    assert ms_of(text_of_ms(duration_ms)) == duration_ms


@pytest.mark.parametrize(
    "text, expected", [("10s", 10_000), ("1.5h", 5_400_000), ("-20ms", -20), ("2min", 120_000), ("3d", 259_200_000)]
)
def test_durations_are_read_as_people_write_them(text, expected):
    assert ms_of(text) == expected


@pytest.mark.parametrize("text", ["10", "ten s", "", "1 fortnight", None, True])
def test_a_duration_without_a_unit_is_refused(text):
    with pytest.raises(ConfigError, match="unit"):
        ms_of(text)


@pytest.mark.parametrize(
    "fault, says",
    [
        (Fault("earthquake", 0), "there are"),
        (Fault("isolate", -1), "from 0"),
        (Fault("link_reset", 0, 10), "at once"),
        (Fault("isolate", 0, 1, ()), "at least one target"),
        (Fault("isolate", 0, 1, ("mars",)), "mars"),
        (Fault("link_delay", 0, 1, ("eu>mars",)), "mars"),
        (Fault("link_delay", 0, 1, ("eu<>eu",)), "no link"),
        (Fault("worker_hang", 0, 1, ("mars/1",)), "mars"),
        (Fault("link_loss", 0, 1, ("*",), {"rate": 2}), "from 0 to 1"),
        (Fault("link_loss", 0, 1, ("*",), {"speed": 2}), "rate"),
        (Fault("isolate", 0, 1, ("eu",), {"how": "gently"}), "black_hole"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused_with_what_would(fault, says):
    with pytest.raises(ConfigError, match=says):
        fault.check(REGIONS)


def test_every_kind_of_the_catalogue_can_be_put_into_effect():
    assert BEGIN.keys() == CATALOGUE.keys()
    assert {kind.family for kind in CATALOGUE.values()} == set(Family)


def test_links_are_read_with_dashes_in_names():
    assert split_link("eu-west-1>us") == ("eu-west-1", "us", False)
    assert split_link("eu<>us-2") == ("eu", "us-2", True)
    assert split_link("eu-west-1") is None


def test_other_faults_leave_the_moment_of_healing_where_it_was():
    plan = Plan((Fault("isolate", 5_000, 10_000, ("eu",)), Fault("pause", 1_000, 100, ("us",))))
    smaller = plan.with_faults([plan.faults[1]])
    assert smaller.healed_ms == plan.healed_ms == 15_000
