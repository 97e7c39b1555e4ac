"""Shrinking: what is left is small, and still breaks the same invariant."""

from itertools import count

import pytest
from click.testing import CliRunner

from regions.cli import cli
from simulator import Arrivals, Fault, Load, Plan, Region, Scenario
from simulator import shrink as shrinking
from simulator.scenario_text import to_toml
from simulator.scenario_toml import parse, read
from simulator.shrink import NothingFailsError, ddmin, shrink
from simulator.source import play


class Hates:
    """A checker that cannot stand an effect while a region is isolated."""

    kinds = ("fault.start", "fault.end", "effect.done")

    def begin(self, world):
        self.world, self.cut = world, set()

    def on_event(self, record):
        if record.kind == "fault.start" and record["fault"] == "isolate":
            self.cut.add(record.id)
        elif record.kind == "fault.end":
            self.cut.discard(record.id)
        elif self.cut and record.kind == "effect.done":
            self.world.violation("HATE-1", "an effect during a cut", causes=(record.seq,))

    def at_heal(self, world): ...

    def at_end(self, world): ...


BUSY = Scenario(
    name="busy",
    regions=(Region("eu", drift_ppm=50), Region("us"), Region("ap")),
    loads=(Load("noop", Arrivals(per_s=1)), Load("charge", Arrivals("bursty", per_s=3, burst=3))),
    plan=Plan(
        (
            Fault("kill", 2_000, 1_000, ("us",)),
            Fault("isolate", 3_000, 4_000, ("eu", "ap"), {"how": "reset"}),
            Fault("disk_slow", 3_500, 2_000, ("ap",)),
            Fault("clock_step", 4_000, 0, ("us",), {"by_ms": 9_000}),
        ),
        8_000,
    ),
    settings={"lost_after_ms": 2_000},
    duration_ms=15_000,
)


def test_the_smallest_plan_has_the_one_fault_that_matters():
    found = shrink(BUSY, 5, judges=lambda: (Hates(),), time_s=50)
    assert found.invariant == "HATE-1"
    small = found.scenario
    assert [fault.kind for fault in small.plan.faults] == ["isolate"]
    assert small.plan.faults[0].duration_ms < 4_000
    assert [load.model for load in small.loads] == ["charge"]
    assert len(small.regions) < 3
    assert small.settings == {}
    again = play(parse(to_toml(small)), 5, checkers=(Hates(),))
    assert again.violations[0].invariant == "HATE-1", "what is written can be played by anybody"


def test_nothing_is_shrunk_that_passes():
    with pytest.raises(NothingFailsError, match="passes"):
        shrink(BUSY, 5, judges=tuple)


def test_time_that_is_up_leaves_what_was_found_so_far():
    found = shrink(BUSY, 5, judges=lambda: (Hates(),), time_s=0)
    assert not found.over
    assert found.scenario.plan == BUSY.plan


@pytest.mark.parametrize("needed", [{7}, {0, 19}, {3, 4, 5}, set(), set(range(20))])
def test_ddmin_keeps_what_is_needed_and_no_more(needed):
    assert ddmin(range(20), lambda some: needed <= set(some)) == sorted(needed)


def test_a_seed_is_shrunk_to_a_file_on_the_command_line(tmp_path):
    (tmp_path / "fails.toml").write_text(to_toml(BUSY) + '\n[[expect]]\nwant = "crashes == 0"\nwhy = "no one dies"\n')
    small = tmp_path / "small.toml"
    arguments = ["sim", "shrink", "--seed", "5", "--scenario", str(tmp_path / "fails.toml"), "--out", str(small)]
    done = CliRunner().invoke(cli, [*arguments, "--time", "20"], standalone_mode=False)
    assert done.exception is None, done.output
    assert [fault.kind for fault in read(small).plan.faults] == ["kill"]
    assert "crdtsync sim run" in small.read_text().splitlines()[2]
    assert play(read(small), 5).unmet


def test_ctrl_c_writes_the_smallest_that_was_found_by_then(tmp_path, monkeypatch):
    (tmp_path / "fails.toml").write_text(to_toml(BUSY) + '\n[[expect]]\nwant = "crashes == 0"\n')
    small = tmp_path / "small.toml"
    run, runs = shrinking._World.run, count(1)

    def impatient(world):
        if next(runs) == 8:
            raise KeyboardInterrupt
        return run(world)

    monkeypatch.setattr(shrinking._World, "run", impatient)
    arguments = ["sim", "shrink", "--seed", "5", "--scenario", str(tmp_path / "fails.toml"), "--out", str(small)]
    done = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert done.return_value == 130
    assert "interrupted" in done.stdout
    assert play(read(small), 5).unmet
    assert len(read(small).plan.faults) < len(BUSY.plan.faults)
