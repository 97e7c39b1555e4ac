"""`end_to_end` computes what the peer kit's README defines, and compares only what was measured."""

import asyncio
import json
import sys

import pytest

from benchmarks import end_to_end, peers
from benchmarks.end_to_end import SETTINGS, Result, Setting, measure, tables_of, to_line

#: Every key that the kit's programs print.
KIT_KEYS = frozenset(
    [
        "peer",
        "variant",
        "n",
        "runs",
        "enq_s",
        "boot_s",
        "drain_s",
        "conc_s",
        "bulk_enq_s",
        "bulk_conc_s",
        "lat_n",
        "lat_p50_ms",
        "lat_p99_ms",
        "cpu_s_per_1k",
        "cpu_bulk_per_1k",
        "flush_per_1k",
        "pss_mb",
        "dups",
        "spread",
    ]
)


def made_up() -> Result:
    result = Result(SETTINGS[0], tasks=1_000)
    result.rates.update(enq=[10.0, 30.0, 20.0], drain=[5.0], conc=[7.0], bulk_enq=[90.0], bulk=[80.0])
    result.cpu["conc"] = [{"producer": 0.5, "eu node": 1.0}, {"producer": 0.5, "eu node": 3.0}]
    result.flushes["conc"] = [1_999.0, 2_001.0]
    result.latencies_ms = [float(ms) for ms in range(1, 101)]
    result.boot_s = [0.4, 0.6]
    return result


def test_the_line_has_every_figure_of_the_kit() -> None:
    line = to_line(made_up())
    assert line.keys() >= KIT_KEYS
    assert line["enq_s"] == 20
    assert line["boot_s"] == 0.5
    assert (line["lat_p50_ms"], line["lat_p99_ms"], line["lat_n"]) == (51, 100, 100)
    assert line["cpu_s_per_1k"] == 2.5
    assert line["cpu_node_per_1k"] == 2.0
    assert line["flush_per_1k"] == 2_000
    assert line["cpu_bulk_per_1k"] is None
    json.dumps(line)


def test_each_setting_is_a_row() -> None:
    rates, rest = tables_of([made_up(), made_up()])
    assert len(rates.rows) == len(rest.rows) == 2
    assert dict(zip(rates.columns, rates.rows[0], strict=True))["one call"].median == 20


@pytest.mark.parametrize(
    "options, names",
    [
        ("", [setting.name for setting in SETTINGS]),
        ("--embedded", ["one region, embedded node"]),
        ("--regions 1", ["one region"]),
        ("--regions 3", ["three regions, connected"]),
        ("--regions 3 --cut", ["three regions, one cut"]),
    ],
)
def test_options_choose_settings(options, names) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    end_to_end.arguments(parser)
    assert [setting.name for setting in end_to_end.chosen(parser.parse_args(options.split()))] == names


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_task_of_every_phase_runs_once(setting: Setting, tmp_path) -> None:
    result = asyncio.run(measure(setting, 10, 2, drain=15, latencies=3, data=tmp_path))
    phases = {"enq", "drain", "conc", "conc_enq", "bulk", "bulk_enq", "conc16", "conc16_enq", "conc64", "conc64_enq"}
    assert {name: len(rates) for name, rates in result.rates.items()} == dict.fromkeys(phases, 2)
    assert all(rate > 0 for rates in result.rates.values() for rate in rates)
    assert len(result.latencies_ms) == 3
    assert min(result.latencies_ms) > 0
    assert result.repeated == 0
    nodes = {f"{region} node" for region in setting.regions} if not setting.embedded else set()
    assert set(result.pss_mb) == nodes | {"eu worker"}
    assert set(result.cpu["bulk"][0]) == nodes | {"eu worker", "producer"}
    assert list(tmp_path.iterdir()) == []


# Peers -----------------------------------------------------------------------------------------------


@pytest.fixture
def kit(tmp_path):
    """A kit with one peer that is there, one that fails, and nobody else."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to(sys.executable)
    line = '{"peer": "huey", "variant": "v", "n": 7, "enq_s": 50.0, "lat_p50_ms": 4.0, "bulk_enq_s": null}'
    (tmp_path / "peer_huey.py").write_text(
        f"import sys\nassert '--tasks' in sys.argv\nprint('noise')\nprint('{line}')\n"
    )
    (tmp_path / "peer_taskiq.py").write_text("raise SystemExit('no broker here')\n")
    return tmp_path


def test_a_peer_is_run_through_the_kit(kit, tmp_path) -> None:
    line = peers.measure("huey", kit, 100, 5, tmp_path)
    assert line["enq_s"] == 50.0


@pytest.mark.parametrize(
    "name, reason",
    [
        ("taskiq", "no broker here"),
        ("oban", "venv-oban/bin/python is not there"),
        ("dramatiq", "peer_dramatiq.py is not there"),
        ("nobody", "no such peer"),
    ],
)
def test_an_absent_peer_is_named_with_the_reason(kit, tmp_path, name, reason) -> None:
    with pytest.raises(peers.AbsentError, match=reason):
        peers.measure(name, kit, 100, 5, tmp_path)


def test_ratios_are_over_the_peers_that_are_present() -> None:
    lines = {
        "crdtsync": [{"enq_s": 100.0, "lat_p50_ms": 1.0}, {"enq_s": 300.0, "lat_p50_ms": 1.0}],
        "huey": [{"enq_s": 50.0, "lat_p50_ms": 4.0}],
        "oban": [{"enq_s": 100.0, "lat_p50_ms": None}],
        "ceiling": [{"enq_s": 1_000.0, "lat_p50_ms": 0.5}],
    }
    figures, ratios = peers.tables_of(lines, {"celery": "not installed"})
    by_peer = {row[0]: dict(zip(ratios.columns, row, strict=True)) for row in ratios.rows}
    assert by_peer["huey"]["one call"] == "4.00"
    assert by_peer["ceiling"]["one call"] == "0.2"
    assert by_peer["best peer"]["one call"] == "2.00", "the prototype is no peer"
    assert by_peer["best peer"]["p50 ms"] == "0.25"
    assert by_peer["oban"]["p50 ms"] is None
    assert by_peer["best peer"]["bulk"] is None
    assert "celery: absent (not installed)" in figures.notes
