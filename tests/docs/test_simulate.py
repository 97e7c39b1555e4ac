"""The guide to the simulator works as written: its app and its scenario, run by its commands."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from regions.cli import cli
from simulator.expect import check

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "guides" / "simulate-your-own-tasks.md").read_text("utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The guide's files, in the folder where a reader would be."""
    for _, code in BLOCK.findall(GUIDE):
        name = re.match(r"# (\w+\.\w+)\n", code)
        if name:
            (tmp_path / name[1]).write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("orders", None)


def run(*arguments):
    done = CliRunner().invoke(cli, ["sim", *arguments], standalone_mode=False)
    assert done.exception is None, done.output
    return done


@pytest.mark.parametrize("kernel", ["heap", "trio"])
def test_a_scenario_written_from_the_guide_runs_with_the_readers_own_app(example, kernel):
    done = run("run", "orders.toml", "--seed", "1", "--kernel", kernel, "-o", "json", "--report", "orders.html")
    assert done.return_value == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["tasks"]["succeeded"] == told["tasks"]["submitted"] > 20
    assert told["unmet"] == []
    assert "reserve" in (example / "orders.html").read_text()


def test_the_guides_program_runs(example):
    program = next(code for language, code in BLOCK.findall(GUIDE) if "from orders import app" in code)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=example,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{example}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_an_expectation_that_is_not_met_is_told_and_exits_with_1(example):
    text = (example / "orders.toml").read_text() + '\n[[expect]]\nwant = "crashes >= 1"\nwhy = "just so"\n'
    (example / "orders.toml").write_text(text)
    done = run("run", "orders.toml", "--seed", "1", "-o", "json")
    assert done.return_value == 1
    assert "UNMET wanted crashes >= 1 (just so), but crashes is 0" in done.stderr
    assert "crdtsync sim run orders.toml --seed 1" in done.stderr


def test_a_handler_that_asks_for_real_chance_is_told_what_to_do_instead(example):
    source = (example / "orders.py").read_text()
    (example / "orders.py").write_text(source.replace('return f"shelf', 'import uuid; uuid.uuid4(); return f"shelf'))
    done = run("run", "orders.toml", "--seed", "1", "-o", "json", "--quick")
    assert done.return_value == 1
    assert json.loads(done.stdout)["tasks"]["succeeded"] == 0


def test_the_tables_of_the_reference_are_current():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import generate_scenarios as generate
    finally:
        sys.path.pop(0)
    for name in generate.PAGES:
        page = (generate.REFERENCE / name).read_text("utf-8")
        assert page == generate.filled(page, name), "run python docs/generate_scenarios.py"


def test_the_reference_has_a_section_for_every_part_of_a_scenario_and_its_wants_can_be_read():
    """Once the marks of three tables stood side by side, and nothing said how to write an expectation."""
    page = (ROOT / "docs/reference/scenarios.md").read_text("utf-8")
    for table in ("regions.NAME", "links", "settings", "[load]", "[fault]", "[expect]"):
        assert re.search(rf"^## `\[{re.escape(table)}\]", page, re.MULTILINE), table
    wants = [line for line in page.splitlines() if line.startswith("want = ")]
    assert len(wants) == 3
    for line in wants:
        check(tomllib.loads(line)["want"], ("eu", "us"))


def test_the_page_about_planted_bugs_fits_them():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import generate_mutants as generate
    finally:
        sys.path.pop(0)
    page = generate.PAGE.read_text("utf-8")
    assert generate.wrong(page) == [], "run python docs/generate_mutants.py"
    assert generate.wrong(page.replace("DUR-1, seed", "DUR-9, seed", 1)), "and a wrong one would be seen"
