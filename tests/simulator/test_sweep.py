"""Sweeps: every seed judged, a share of them played again elsewhere, and an exit code that says so."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import pytest
from click.testing import CliRunner

from regions.cli import cli
from simulator import World, scenario_toml, swarm
from simulator.catalogue import CATALOGUE
from simulator.cli.sweep import seeds_of
from simulator.plan import Fault, Plan
from simulator.scenario import Arrivals, Load, Region, Scenario
from simulator.scenario_text import to_toml
from simulator.source import Source, play
from simulator.swarm import draw
from simulator.sweep import first_difference, outcome_of, sweep

QUIET = 'regions = ["eu", "us"]\nduration = "20s"\n[[load]]\narrivals = { per_s = 2, until = "5s" }\n'


@pytest.fixture
def quiet(tmp_path):
    file = tmp_path / "quiet.toml"
    file.write_text(QUIET)
    return str(file)


def test_a_seed_draws_the_same_scenario_every_time_and_it_can_be_written_down():
    for seed in range(200):
        scenario = draw(seed)
        scenario.check()
        assert scenario == draw(seed)
        written = scenario_toml.parse(to_toml(scenario))
        assert (written.plan, written.loads, written.regions) == (scenario.plan, scenario.loads, scenario.regions)
        assert (written.links, written.settings, written.disk_ms) == (
            scenario.links,
            scenario.settings,
            scenario.disk_ms,
        )


def test_the_swarm_goes_everywhere():
    scenarios = [draw(seed) for seed in range(400)]
    kinds = Counter(fault.kind for scenario in scenarios for fault in scenario.plan.faults)
    assert kinds.keys() == {name for name, kind in CATALOGUE.items() if kind.drawn} | {"add", "forget"}
    founders = {sum(1 for region in scenario.regions if not region.joins) for scenario in scenarios}
    assert founders == set(range(2, 8))
    assert any(scenario.plan.healed for scenario in scenarios)


def test_a_new_kind_of_fault_leaves_the_scenarios_of_other_seeds_as_they_were(monkeypatch):
    before = {seed: draw(seed) for seed in range(100)}
    monkeypatch.delitem(swarm.CATALOGUE, "clock_step")
    changed = [seed for seed, scenario in before.items() if draw(seed) != scenario]
    assert changed == [
        seed
        for seed, scenario in before.items()
        if "clock_step" in scenario.drawn["kinds"] or any(fault.kind == "clock_step" for fault in scenario.plan.faults)
    ]
    assert 0 < len(changed) < 20


def test_faults_that_meet_an_invariant_too_rarely_by_chance_are_given_company():
    """Over 603 seeds no storm of cancels had met a limit, and no worker that ignores requests to stop an offer."""
    storms, deaf = [], []
    for seed in range(300):
        scenario = draw(seed)
        kinds = Counter(fault.kind for fault in scenario.plan.faults)
        if kinds["cancel_storm"]:
            storms.append(bool(scenario.limits))
        for fault in scenario.plan.faults:
            if fault.kind == "worker_deaf":
                asked = [
                    other
                    for other in scenario.plan.faults
                    if other.kind == "cancel_storm"
                    and other.targets == fault.targets
                    and other.start_ms == fault.start_ms
                ]
                deaf.append(bool(asked) and kinds["drain"] > 0)
    assert sum(storms) > len(storms) / 2
    assert sum(deaf) > 10
    assert sum(deaf) < len(deaf), "and some are left alone"


def test_a_drawn_load_is_one_that_its_regions_can_bear():
    """Else what waits its turn behind thousands looks stuck, and nobody can tell."""
    bursts = 0
    for seed in range(300):
        scenario = draw(seed)
        slots = min(region.workers * region.credits for region in scenario.regions)
        per_s = sum(load.arrivals.per_s for load in scenario.loads) / len(scenario.regions)
        work = sum(load.arrivals.per_s * swarm.WORK_S.get(load.model, 0) for load in scenario.loads) / len(
            scenario.regions
        )
        assert work <= swarm.UTILISATION_MAX * slots + 0.01
        for fault in scenario.plan.faults:
            if fault.kind == "burst":
                bursts += 1
                extra_s = (fault.number("factor") - 1) * max(0, fault.duration_ms - swarm.BURST_MS_MIN) / 1_000
                assert extra_s * per_s <= swarm.BURST_TASKS_MAX + 1
                assert extra_s * work <= swarm.BURST_WORK_S_MAX * slots * 1.01
    assert bursts


def test_a_burst_comes_where_it_strikes():
    arrivals = Arrivals("constant", per_s=4, until_ms=9_000)
    plan = Plan((Fault("burst", 1_000, 8_000, ("us",), {"factor": 10}),), heal_ms=9_000)
    regions = tuple(map(Region, ("eu", "us", "ap")))
    world = World(Scenario("burst", regions, loads=(Load("noop", arrivals),), plan=plan, duration_ms=15_000), 1)
    world.run()
    came = Counter(operation.region for operation in world.history)
    assert came["us"] > 5 * max(came["eu"], came["ap"])


def test_a_sweep_counts_and_compares(quiet):
    summary = sweep(Source(quiet), range(3))
    plain = summary.to_plain()
    assert plain["seeds"] == 3
    assert plain["rerun"] == 1
    assert plain["rerun_equal"] is True
    assert plain["violations"] == []
    assert plain["events"] > 100
    assert summary.ok


def test_a_seed_that_fails_is_told_with_the_line_that_reproduces_it(tmp_path):
    file = tmp_path / "fails.toml"
    file.write_text(QUIET + '[[expect]]\nwant = "crashes == 1"\n')
    summary = sweep(Source(str(file)), range(2))
    assert not summary.ok
    assert summary.failed == [0, 1]
    told = summary.to_plain()["violations"][0]
    assert told["reproduce"] == f"crdtsync sim run {file} --seed 0"
    assert told["text"] == "wanted crashes == 1, but crashes is 0"


def test_a_simulator_that_breaks_is_a_finding(quiet, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no")

    monkeypatch.setattr("simulator.sweep.play", broken)
    outcome = outcome_of(Source(quiet), 1)
    assert outcome.violations[0]["invariant"] == "SIM-1"


def test_a_run_that_came_out_differently_is_a_failure(quiet, monkeypatch):
    monkeypatch.setattr("simulator.sweep._run_elsewhere", lambda *_, **__: "a fresh process ended with 3")
    summary = sweep(Source(quiet), range(1))
    assert not summary.ok
    assert summary.to_plain()["rerun_equal"] is False
    assert summary.unequal == [(0, "a fresh process ended with 3")]


def test_the_first_difference_of_two_traces_is_found(tmp_path):
    line = {"seq": 0, "at_us": 5, "node": "eu", "kind": "node.pause", "id": "eu", "causes": []}
    for name, at_us in (("one", 5), ("other", 6)):
        (tmp_path / name).write_text(json.dumps(line) + "\n" + json.dumps({**line, "seq": 1, "at_us": at_us}) + "\n")
    found = first_difference(tmp_path / "one", tmp_path / "other")
    assert '"seq": 1, "at_us": 5' in found
    assert '"at_us": 6' in found
    assert first_difference(tmp_path / "one", tmp_path / "one") == ""


def test_seeds_are_given_from_to():
    assert seeds_of("3..5") == range(3, 6)
    assert seeds_of("7") == range(7, 8)


@pytest.mark.slow
def test_a_sweep_in_worker_processes_on_the_command_line(quiet):
    arguments = ["sim", "sweep", "--scenario", quiet, "--seeds", "0..5", "--jobs", "2", "-o", "json"]
    done = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert done.exception is None
    assert done.return_value == 0
    assert json.loads(done.stdout)["seeds"] == 6


def _alive_in(group: int) -> list[str]:
    """The processes of a group that have not ended."""
    told = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    lines = [line.split(None, 2) for line in told.splitlines()]
    return [args for pgid, state, args in lines if int(pgid) == group and not state.startswith("Z")]


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("signalled", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_an_interrupted_sweep_ends_at_once_and_says_what_it_found(request, quiet, jobs, signalled):
    """As on a terminal: Ctrl-C reaches every process of the group, and the sweep is left by none of them."""
    screen, stderr = pty.openpty()
    command = [sys.executable, "-m", "regions.cli", "sim", "sweep", "--scenario", quiet]
    command += ["--seeds", "0..99999", "--jobs", jobs, "-o", "json"]
    sweeping = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    request.addfinalizer(sweeping.wait)
    request.addfinalizer(sweeping.kill)
    os.close(stderr)
    shown = b""
    while not re.search(rb"[1-9]\d*/100000", shown):  # the bar: seeds are coming in
        shown += os.read(screen, 4_096)
    if signalled == signal.SIGINT:
        os.killpg(sweeping.pid, signal.SIGINT)
    else:
        sweeping.terminate()
    stdout, _ = sweeping.communicate(timeout=30)
    told = json.loads(stdout)
    assert sweeping.returncode == 130
    assert 1 <= told["seeds"] < 99_999
    assert told["violations"] == []
    os.close(screen)
    left_by = time.monotonic() + 20
    while left := _alive_in(sweeping.pid):
        assert time.monotonic() < left_by, left
        time.sleep(0.05)


@pytest.mark.timeout(400)  # twice long_isolation, on whatever machine
@pytest.mark.parametrize("name", scenario_toml.names())
def test_every_scenario_passes_on_one_seed_and_comes_out_the_same_elsewhere(name):
    """Elsewhere: in a fresh process, on the other kernel, under another PYTHONHASHSEED."""
    found = outcome_of(Source(name), 1, again=True)
    assert not found.violations, found.violations[:3]
    assert found.again, found.difference


@pytest.mark.slow
@pytest.mark.timeout(1_800)  # long_isolation plays an hour, 20 times
@pytest.mark.parametrize("name", scenario_toml.names())
def test_every_scenario_passes_on_twenty_seeds(name):
    summary = sweep(Source(name), range(20))
    assert summary.ok, summary.to_plain()["violations"][:3]


def test_a_few_seeds_of_the_swarm_are_clean_and_come_out_the_same_elsewhere():
    summary = sweep(Source(), range(3))
    assert summary.ok, summary.to_plain()
    assert summary.again == 1


def test_what_ships_can_fail():
    """A scenario whose faults are left out does not get what it wants: its story has to happen."""
    scenario = scenario_toml.read("double_charge")
    tame = replace(scenario, plan=replace(scenario.plan, faults=(), heal_ms=scenario.plan.healed_ms))
    assert play(tame, 1).unmet
