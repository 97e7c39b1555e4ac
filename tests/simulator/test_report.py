"""Reports: one page that needs nothing else, and prose in the order in which a person asks."""

from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest

from simulator import Arrivals, Fault, Load, Plan, Region, Scenario, World, report
from simulator.report.prose import lanes
from simulator.report.story import Story
from simulator.report.svg import pack

SCENARIO = Scenario(
    name="an <island> & more",
    text='A story with "quotes".',
    regions=(Region("eu"), Region("us", wall_off_ms=200), Region("ap")),
    loads=(Load("charge", Arrivals(per_s=4)), Load("long", Arrivals(per_s=1))),
    plan=Plan(
        (
            Fault("isolate", 4_000, 8_000, ("eu",)),
            Fault("kill", 6_000, 2_000, ("us",)),
            Fault("clock_step", 5_000, 0, ("ap",), {"by_ms": 90_000}),
        )
    ),
    expectations=("crashes == 7  # so that there is something to tell",),
    drawn={"regions": 3},
)


@pytest.fixture(scope="module")
def world():
    world = World(SCENARIO, 3, checkers=(report.Watch(),))
    world.run()
    return world


def test_a_page_is_one_file_that_fetches_nothing(world):
    page = report.html(world, world.result(), command="crdtsync sim run x --seed 3")
    for outside in ("http://", "https://", "<script", "<link", "url(http", "@import"):
        assert outside not in page.replace("http://www.w3.org/2000/svg", "")
    assert "an &lt;island&gt; &amp; more" in page
    assert "an <island>" not in page
    assert "crdtsync sim run x --seed 3" in page


def test_a_page_draws_lanes_divergence_and_clocks(world):
    page = report.html(world, world.result())
    drawings = ["<svg " + part.partition("</svg>")[0] + "</svg>" for part in page.split("<svg ")[1:]]
    charts = [ET.fromstring(drawing) for drawing in drawings if 'role="img"' in drawing]
    assert len(charts) == 3, "each is well-formed XML"
    lanes_chart, divergence, clocks = drawings[-3:]
    for css in (
        "attempt ok",
        "band family-topology",
        "shade family-clock",
        "down",
        "effect",
        "message",
        "dropped",
        "healed",
    ):
        assert f'class="{css}"' in lanes_chart, css
    assert "all equal at" in divergence
    assert "+10 s" in clocks


def test_a_story_has_what_the_run_had(world):
    story = Story.of(world)
    assert [band.fault.kind for band in story.bands] == ["isolate", "clock_step", "kill"]
    assert [(down.region, down.reason) for down in story.downs] == [("us", "kill")]
    assert len(story.bars) == len(world.trace.of("task.begin"))
    assert {bar.outcome for bar in story.bars} >= {"ok"}
    assert any(message.arrived_us is None for message in story.messages)
    assert story.clocks["us"][0][1] == 200_000


def test_a_failure_is_told_in_the_order_in_which_one_asks(world):
    told = report.text(world, world.result(), command="crdtsync sim run x --seed 3")
    order = ["UNMET wanted crashes == 7 (so that", "Reproduce", "crdtsync sim run x --seed 3", "Plan", "isolate eu at 4s",
             "sim shrink --scenario x --seed 3", "Drawn", "What led to it", "Lanes"]  # fmt: skip
    places = [told.index(part) for part in order]
    assert places == sorted(places)
    assert len(told[told.index("What led to it") : told.index("Lanes")].splitlines()) <= 103


def test_a_violation_is_told_with_its_causes():
    world = World(SCENARIO, 3)
    world.run()
    end = world.trace.of("task.end")[5]
    world.violation("TASK-1", "a task went the wrong way", causes=(end.seq,))
    told = report.text(world, world.result())
    assert "VIOLATION TASK-1" in told
    assert f"because {end.at_s:>10.3f} s  #{end.seq}" in told
    led = told[told.index("What led to it") : told.index("Lanes")]
    assert "task.assigned" in led, "the slice goes back along the causes"


def test_a_violation_about_a_task_is_told_as_the_story_of_that_task():
    world = World(SCENARIO, 3)
    world.run()
    effect = world.trace.of("effect.done")[3]
    world.violation("IDEM-2", "it was done twice", task=effect["task"])
    told = report.text(world, world.result())
    led = told[told.index("What led to it") : told.index("Lanes")].splitlines()[1:]
    id = effect["task"][:8]
    for part in (
        f"op=submit task={id}",
        "Submitted owner=",
        "Claimed",
        "EffectRecorded",
        "Ended attempt=",
        "disk.write",
    ):
        assert any(part in line for line in led), part
    assert not any("net." in line for line in led), "heartbeats are no part of it"
    assert all(id in line for line in led if "task=" in line), "and neither are other tasks"
    assert not any(len(word) > 60 for line in led for word in line.split()), "ids are shortened"


def test_lanes_show_who_was_down_and_who_ran(world):
    eu, us, _ap, *_ = lanes(Story.of(world))
    assert "x" in us
    assert "x" not in eu
    assert "#" in eu
    assert "=" in eu


def test_spans_of_one_row_do_not_touch():
    assert pack([(0, 10), (5, 8), (8, 12), (10, 11)]) == [0, 1, 1, 0]


HOLDERS = Scenario(
    name="holders",
    regions=(Region("eu"), Region("us"), Region("ap")),
    loads=(
        Load("locks", Arrivals(per_s=1.5)),
        Load("noop", Arrivals(per_s=2), options={"partition": "quorum"}),
        Load("charge", Arrivals(per_s=1), options={"partition": "quorum", "scope": "task"}),
    ),
    plan=Plan((Fault("isolate", 8_000, 8_000, ("eu",)), Fault("kill", 18_000, 2_000, ("us",)))),
    settings={"lease_ms": 3_000},
    duration_ms=30_000,
)


@pytest.fixture(scope="module")
def held():
    world = World(HOLDERS, 1, checkers=(report.Watch(),))
    world.run()
    return world


def test_a_story_tells_who_held_what_under_which_token_from_when_until_when(held):
    story = Story.of(held)
    granted = [record for record in held.trace.of("notify") if record.id == "lease.granted"]
    assert [(tenure.node, tenure.token, tenure.start_us) for tenure in story.leases] == [
        (record.node, record.subject.facts["token"], record.at_us) for record in granted
    ]
    assert sum(tenure.ran for tenure in story.leases) > 10
    by_scope = {}
    for tenure in story.leases:
        by_scope.setdefault(tenure.scope, []).append(tenure)
    assert {scope.partition(":")[0] for scope in by_scope} == {"queue", "user", "task"}
    for tenures in by_scope.values():
        for before, after in pairwise(tenures):
            assert before.token < after.token
            assert before.over_us(story.end_us) <= after.start_us + 2_000, "one holder at a time"
    cut_off = [tenure for tenure in story.leases if tenure.region == "eu" and 8_000_000 < tenure.start_us < 16_000_000]
    assert not cut_off, "no majority, no lease"
    assert "its process died" in {tenure.why for tenure in story.leases}
    assert len(story.locks) == len(held.trace.of("lock.held"))
    assert sum(len(holding.acts) for holding in story.locks) == len(held.trace.of("register.write"))


def test_a_page_draws_leases_and_locks_as_bars(held):
    page = report.html(held, held.result())
    start = page.index("Who held what")
    section = page[start : page.index("</section>", start)]
    chart = "<svg " + section.rpartition("<svg ")[2].partition("</svg>")[0] + "</svg>"
    ET.fromstring(chart)
    story = Story.of(held)
    assert chart.count('class="holder ') == len(story.leases)
    assert chart.count('class="lock"') == len(story.locks)
    for part in ("lock-0", "queue:default", "tasks", "votes of", 'class="act"', "shade family-topology"):
        assert part in chart, part


def test_a_page_without_leases_has_no_empty_picture_of_them(world):
    assert "Who held what" not in report.html(world, world.result())


def test_a_story_tells_when_the_membership_changed():
    scenario = Scenario(
        name="loss",
        regions=(Region("eu"), Region("us"), Region("ap")),
        plan=Plan((Fault("disk_lost", 4_000, 1_800_000, ("ap",)), Fault("forget", 12_000, 0, ("ap",))), 20_000),
        duration_ms=30_000,
    )
    world = World(scenario, 1)
    world.run()
    story = Story.of(world)
    assert [tick.text for tick in story.members] == ["forget ap (membership 2)"]
    assert "forget ap (membership 2)" in report.html(world, world.result())
