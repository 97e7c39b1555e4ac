"""Scenarios as people write them: every key is read, every mistake is named with its place and the fix."""

import csv
import gzip
import random
import string
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest

from crdtsync import App
from crdtsync.errors import ConfigError
from simulator import Arrivals, Fault, Links, Load, Plan, Region, Scenario, World
from simulator.arrivals import moments, read_trace
from simulator.checkers import all_checkers
from simulator.latency import Latencies
from simulator.scenario_text import to_toml
from simulator.scenario_toml import find, names, parse, read
from simulator.source import play

MINIMAL = 'regions = ["eu", "us"]\n'


def test_the_smallest_scenario_is_a_list_of_regions():
    scenario = parse(MINIMAL)
    assert scenario.names == ("eu", "us")
    assert scenario.loads == (Load(),)
    assert scenario.plan == Plan()


def test_every_key_is_read():
    app = App("own")
    scenario = parse(
        """
        name = "all of it"
        story = "Whatever can be said."
        duration = "5min"
        heal = "2min"
        healed = ["eu", "us"]

        [regions.eu]
        place = [50.1, 8.7]
        clock_off = "-200ms"
        drift_ppm = 100
        workers = 2
        credits = 5
        [regions.us]
        [regions.ap]

        [links]
        rtt = "100ms"
        jitter = 0.1
        tail = 0
        bytes_per_s = 1_000_000
        [links.pairs]
        "eu<>us" = "90ms"

        [settings]
        lost_after = "10s"
        labels_max = 7

        [disk]
        fsync = ["2ms", "9ms"]

        [[load]]
        task = "mine"
        regions = "eu"
        args = ["order-{n}", 3]
        kwargs = { gift = true }
        options = { delay = "2s", partition = "wait" }
        arrivals = { shape = "bursty", per_s = 3, burst = 4, start = "2s", until = "50s", count = 20 }

        [[fault]]
        kind = "flapping"
        at = "20s"
        for = "10s"
        targets = "eu<>us"
        period = "1s"
        down = 0.3

        [[fault]]
        kind = "kill"
        at = "10s"
        for = "5s"
        targets = ["ap"]
        when = "reply"

        [[expect]]
        want = "succeeded == submitted"
        why = "it should"
        """,
        app=app,
    )
    assert scenario == Scenario(
        name="all of it",
        text="Whatever can be said.",
        regions=(
            Region("eu", (50.1, 8.7), -200, 100, 2, 5),
            Region("us"),
            Region("ap"),
        ),
        links=Links({"eu<>us": 90}, "", 100, 0.1, 0, 1_000_000),
        loads=(
            Load(
                "task:mine",
                Arrivals("bursty", 3, 2_000, 50_000, 4, 20),
                ("eu",),
                ("order-{n}", 3),
                {"gift": True},
                {"delay_ms": 2_000, "partition": "wait"},
            ),
        ),
        plan=Plan(
            (
                Fault("kill", 10_000, 5_000, ("ap",), {"when": "reply"}),
                Fault("flapping", 20_000, 10_000, ("eu<>us",), {"period_ms": 1_000, "down": 0.3}),
            ),
            120_000,
            ("eu", "us"),
        ),
        expectations=("succeeded == submitted  # it should",),
        settings={"lost_after_ms": 10_000, "labels_max": 7},
        disk_ms=(2, 9),
        duration_ms=300_000,
        app=app,
    )
    again = parse(to_toml(scenario, app="own.py:app"), app=app)
    assert again == scenario


@pytest.mark.parametrize("name", names())
def test_what_ships_reads_back_as_it_was_written(name):
    scenario = read(name)
    assert scenario.text, "it tells its story"
    assert scenario.expectations, "it can fail"
    assert scenario.plan.faults, "something goes wrong in it"
    assert parse(to_toml(scenario)) == scenario


def test_the_stories_that_were_promised_are_there():
    assert {
        "split_brain", "double_charge", "minority_island", "flapping_link", "one_way_link", "slow_disk", "clock_jump",
        "clock_drift", "long_isolation", "rolling_restart", "restored_backup", "cloned_disk", "region_loss_and_forget",
        "cancel_race", "thundering_heal", "bridge", "majorities_ring",
    } <= set(names())  # fmt: skip


@pytest.mark.parametrize(
    "text, key, fix",
    [
        ("regions = 3", "regions = 3", 'as in ["eu", "us", "ap"]'),
        ("", "regions", "a list of names"),
        ('regions = ["eu"]\nduraton = "3s"', "duraton", "did you mean 'duration'?"),
        ('regions = ["eu"]\nduration = 30', "duration = 30", '"30s"'),
        ('regions = ["eu"]\nduration = "30 parsecs"', "duration", "500ms, 10s, 2min"),
        ('regions = ["EU!"]', "EU!", "lower-case"),
        ("[regions.eu]\nplace = 7", "regions.eu.place", "[50.1, 8.7]"),
        ("[regions.eu]\nworkers = -1", "regions.eu.workers", "from 0 to 100"),
        ('[regions.eu]\njoins = "yes"', "regions.eu.joins", "true or false"),
        ("[regions.eu]\njoins = true", "every region joins", "add them"),
        (MINIMAL + '[[fault]]\nkind = "add"\nat = "1s"\ntargets = ["eu"]', "a founder", "joins = true"),
        (MINIMAL + '[links]\nrtt = "80"', "links.rtt", "a number and a unit"),
        (MINIMAL + '[links]\ncsv = "no.csv"', "links.csv", "there is no"),
        (MINIMAL + '[settings]\nlost = "3s"', "settings.lost", "There are"),
        (MINIMAL + '[[load]]\nmodel = "charg"', "load[1].model", "did you mean 'charge'?"),
        (MINIMAL + '[[load]]\ntask = "mine"', "load[1].task", 'app = "FILE.py:app"'),
        (MINIMAL + '[[load]]\narrivals = { shape = "poison" }', "load[1].arrivals.shape", "did you mean 'poisson'?"),
        (MINIMAL + '[[load]]\narrivals = { shape = "trace" }', "load[1].arrivals.csv", "first column is seconds"),
        (MINIMAL + '[[load]]\noptions = { speed = 3 }', "load[1].options.speed", "no such option"),
        (MINIMAL + '[load]\nmodel = "noop"', "load", "[[load]] with two brackets"),
        (MINIMAL + '[[fault]]\nkind = "isolat"\nat = "1s"', "fault[1].kind", "did you mean 'isolate'?"),
        (MINIMAL + '[[fault]]\nkind = "isolate"', "fault[1].at", 'at = "10s"'),
        (MINIMAL + '[[fault]]\nkind = "isolate"\nat = "1s"\ntargets = ["mars"]', "'mars'", "eu, us"),
        (MINIMAL + '[[fault]]\nkind = "isolate"\nat = "1s"\nhow = "kindly"', "'kindly'", "'black_hole', 'reset'"),
        (MINIMAL + '[[expect]]\nwant = "conflict >= 1"', "expect[1].want", "did you mean 'conflicts'?"),
        (MINIMAL + '[[expect]]\nwant = "accepted in mars >= 1"', "'mars'", "eu, us"),
        ("regions = [", "not TOML", "at end of document"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_file_key_and_fix(text, key, fix):
    with pytest.raises(ConfigError) as error:
        parse(text, where="my.toml")
    assert str(error.value).startswith("my.toml: ")
    assert key in str(error.value)
    assert fix in str(error.value)


def test_a_scenario_is_found_by_name_or_file(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(MINIMAL)
    assert read(file).name == "mine"
    assert find("split_brain").is_file()
    with pytest.raises(ConfigError, match="did you mean 'split_brain'"):
        find("splt_brain")
    with pytest.raises(ConfigError, match="no such file"):
        find("no.toml")


def test_an_app_is_named_beside_the_scenario_and_loaded_by_whoever_can(tmp_path):
    (tmp_path / "mine.toml").write_text(MINIMAL + 'app = "own.py:app"\n[[load]]\ntask = "hello"\n')
    asked = []
    app = App("own")

    def find_app(place):
        asked.append(place)
        return app

    assert read(tmp_path / "mine.toml", find_app=find_app).app is app
    assert asked == [f"{tmp_path / 'own.py'}:app"]
    with pytest.raises(ConfigError, match="nobody here loads apps"):
        read(tmp_path / "mine.toml")


def test_texts_survive_whatever_is_in_them():
    scenario = replace(parse(MINIMAL), name='a "quoted" ünïcode\\name', text="two\nlines")
    assert parse(to_toml(scenario, comment="a comment\nof two lines")) == scenario


GIVEN = Path(__file__).parents[3] / "shared" / "data"
needs_given = pytest.mark.skipif(not GIVEN.exists(), reason="../shared is absent")
MATRICES = {
    "aws_2020-06-05.csv": ("us-east-1", "eu-west-1", "ap-northeast-1"),
    "aws_2021-02-13_5regions.csv": ("ap-southeast-1", "eu-west-1", "sa-east-1"),
    "ibm_weekly.csv.gz": ("washington-dc", "frankfurt", "tokyo"),
}
RECORDED = (
    "alibaba_openb_pods.csv.gz",
    "azure_functions_2021_sample.csv.gz",
    "azure_llm_code_2023.csv.gz",
    "lcg_2005.csv.gz",
    "nasa_ipsc_1993.csv.gz",
)


@needs_given
@pytest.mark.parametrize("name, regions", MATRICES.items())
def test_measured_round_trips_between_real_regions_are_those_of_the_links(name, regions):
    file = GIVEN / "rtt" / name
    scenario = parse(f'regions = {list(regions)}\n[links]\ncsv = "{file}"\n')
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt") as lines:
        named = str.maketrans(string.ascii_uppercase + " ", string.ascii_lowercase + "-")
        rows = {(row["src"].translate(named), row["dst"].translate(named)): row for row in csv.DictReader(lines)}
    latencies = Latencies(scenario)
    for source, target in permutations(regions, 2):
        row = rows.get((source, target)) or rows[target, source]
        measured_ms = float(row.get("avg_ms") or row["avg_rtt_ms"])
        assert latencies.rtt_ms(source, target) == measured_ms
        assert latencies.one_way_us(source, target) == round(measured_ms * 500)


@needs_given
@pytest.mark.parametrize("name", RECORDED)
def test_recorded_arrivals_come_when_they_came(name):
    file = GIVEN / "traces" / name
    text = f'regions = ["eu", "us"]\n[[load]]\narrivals = {{ shape = "trace", csv = "{file}", count = 50, start = "2s" }}\n'
    (load,) = parse(text).loads
    came = [at_us for at_us, _ in moments(load.arrivals, random.Random(1), 1 << 62)]
    recorded = sorted(read_trace(str(file)))[:50]
    assert came == [2_000_000 + round(at_s * 1_000_000) for at_s in recorded]
    assert len(came) == 50


@needs_given
def test_a_run_over_measured_links_with_recorded_arrivals_is_right():
    matrix, trace = GIVEN / "rtt" / "aws_2020-06-05.csv", GIVEN / "traces" / "azure_functions_2021_sample.csv.gz"
    text = f"""
    regions = {list(MATRICES[matrix.name])}
    duration = "40s"
    [links]
    csv = "{matrix}"
    [[load]]
    arrivals = {{ shape = "trace", csv = "{trace}", count = 30, until = "10s" }}
    [[fault]]
    kind = "isolate"
    at = "3s"
    for = "5s"
    targets = ["eu-west-1"]
    """
    result = play(parse(text), 1, checkers=all_checkers())
    assert result.ok, result.violations
    assert result.tasks["succeeded"] == result.tasks["submitted"] == 24, "those that came before the healing"


def test_durations_among_a_loads_options_are_written_as_such_and_read_back():
    text = MINIMAL + '[[load]]\noptions = { deadline = "10s", delay = "1s", backoff_base = "2s", timeout = "3s" }'
    scenario = parse(text)
    assert scenario.loads[0].options == {
        "deadline_in_ms": 10_000,
        "delay_ms": 1_000,
        "backoff_ms_base": 2_000,
        "timeout_ms": 3_000,
    }
    assert parse(to_toml(scenario)).loads == scenario.loads


def test_a_deadline_counts_from_each_submission():
    """It was taken for a moment in 1970: everything expired at once."""
    text = (
        'regions = ["eu"]\nduration = "40s"\n[[load]]\nmodel = "%s"\narrivals = { shape = "constant", until = "10s" }\n'
    )
    in_time = play(parse(text % "noop" + 'options = { deadline = "5s" }'), 1)
    assert in_time.tasks["succeeded"] == in_time.tasks["submitted"] == 9
    late = play(parse(text % "noop" + 'options = { deadline = "2s", delay = "3s" }'), 1)
    assert late.tasks["expired"] == late.tasks["submitted"] == 9


def test_keys_and_labels_of_own_tasks_are_filled_in():
    app = App("own")

    @app.task
    async def work(ctx):
        return None

    text = (
        'regions = ["eu", "us"]\nduration = "40s"\n[[load]]\ntask = "work"\narrivals = { count = 6 }\n'
        'options = { key = "order-{n}", labels = { lane = "l{n}" } }'
    )
    world = World(parse(text, app=app), 1)
    assert world.run().tasks["succeeded"] == 6
    submitted = [view.submitted for view, _ in world.views().values()]
    assert {one.key for one in submitted} == {f"order-{n}" for n in range(1, 7)}
    assert {one.labels for one in submitted} == {(("lane", f"l{n}"),) for n in range(1, 7)}
