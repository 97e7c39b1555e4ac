"""The README's tables are what the JSON results say."""

import json

import pytest

from benchmarks import readme
from benchmarks.__main__ import main
from benchmarks.measure import figure
from benchmarks.report import Report, Table


def a_report() -> Report:
    table = Table("Rates", ("what", "a second", "ms"), notes=["a note"])
    table.add("in turn", figure([90_000.0, 100_000.0, 110_000.0]), 1.25)
    table.add("twice", None, "absent")
    calibration = {"at": "12:00:00", "python_mops": 20.5}
    return Report("merge", {"events": [4_000], "runs": 3}, {"cpus": 2}, [table], [calibration], seconds=61.0)


def test_results_stand_in_the_marked_place_and_nothing_else_changes(tmp_path) -> None:
    page, results = tmp_path / "README.md", tmp_path / "results.json"
    page.write_text(f"# Before\n{readme.BEGIN}\nold\n{readme.END}\nAfter\n")
    results.write_text(f"[{a_report().to_json()}]")
    assert main(["report", str(results), "--into", str(page)]) == 0
    text = page.read_text()
    assert text.startswith(f"# Before\n{readme.BEGIN}\n")
    assert text.endswith(f"{readme.END}\nAfter\n")
    assert "old" not in text
    assert "| in turn | 100,000 ±10% | 1.25 |" in text
    assert "| twice | - | absent |" in text
    assert "- a note" in text
    assert "events 4,000, runs 3, took 61 s." in text
    assert main(["report", str(results), "--into", str(page)]) == 0
    assert page.read_text() == text


def test_several_results_come_in_the_order_given(tmp_path) -> None:
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    one.write_text(json.dumps(a_report().to_plain() | {"benchmark": "heal"}))
    other.write_text(a_report().to_json())
    assert [report["benchmark"] for report in readme.read([one, other])] == ["heal", "merge"]


def test_a_page_without_a_place_for_figures_is_left_alone(tmp_path) -> None:
    page, results = tmp_path / "README.md", tmp_path / "results.json"
    page.write_text("# Nothing here\n")
    results.write_text(a_report().to_json())
    with pytest.raises(ValueError, match="no place for figures"):
        main(["report", str(results), "--into", str(page)])
    assert page.read_text() == "# Nothing here\n"


def test_our_own_page_has_the_place() -> None:
    text = readme.README.read_text("utf-8")
    assert "x" in readme.put(text, "x")
