"""What figures, marks and tables say is what was put into them."""

import io
import json
import os
import time

import pytest
from rich.console import Console

from benchmarks import measure
from benchmarks.marks import Marks
from benchmarks.measure import Figure, figure, percentile
from benchmarks.report import Report, Table, text_of


def test_a_figure_is_the_median_and_keeps_every_run() -> None:
    taken = Figure((30.0, 10.0, 20.0), "ms")
    assert (taken.median, taken.low, taken.high) == (20.0, 10.0, 30.0)
    assert taken.to_plain() == {"median": 20.0, "low": 10.0, "high": 30.0, "runs": [30.0, 10.0, 20.0], "unit": "ms"}
    assert taken.spread == 0.5
    assert figure([]) is None


def test_a_percentile_is_a_value_that_was_seen() -> None:
    values = list(range(1, 101))
    assert percentile(values, 0.5) == 51
    assert percentile(values, 0.99) == 100
    assert percentile([7.0], 0.99) == 7.0


def test_the_kernel_is_asked_for_the_right_fields(tmp_path) -> None:
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    assert 0.03 <= measure.cpu_s(os.getpid()) - sum(os.times()[2:4]) <= sum(os.times()[:2]) + 0.05
    assert 1 < measure.pss_mb(os.getpid()) < 10_000
    assert measure.cpu_s(2**22 + 1) == measure.pss_mb(2**22 + 1) == 0
    counted = measure.flushes(tmp_path)
    assert counted is None or counted >= 0
    assert measure.file_system(tmp_path) != "?"


def test_the_machine_is_described_without_its_name(tmp_path) -> None:
    facts = measure.machine_facts(tmp_path)
    assert facts["cpus"] >= 1
    assert os.uname().nodename not in json.dumps(facts)


def test_a_slot_keeps_the_first_start_and_counts_the_others(tmp_path) -> None:
    marks = Marks.create(tmp_path / "marks", 10)
    slots = marks.take(3)
    before = time.monotonic()
    other = Marks(tmp_path / "marks")  # as a worker process maps it
    other.mark(0)
    other.mark(2)
    first = marks.time(0)
    other.mark(0)
    assert before <= first <= time.monotonic()
    assert marks.time(0) == first
    assert marks.repeated == 1
    assert marks.done(slots) == 2
    assert marks.times(slots)[1] == 0
    assert marks.take(7) == range(3, 10)
    with pytest.raises(ValueError, match="11 slots are needed"):
        marks.take(1)


async def _wait(marks: Marks, slots: range) -> None:
    await marks.wait(slots, 0, poll_s=0)


def test_waiting_for_tasks_that_never_run_says_how_many_did(tmp_path) -> None:
    import asyncio

    marks = Marks.create(tmp_path / "marks", 4)
    slots = marks.take(4)
    marks.mark(1)
    with pytest.raises(TimeoutError, match="only 1 of 4 tasks"):
        asyncio.run(_wait(marks, slots))
    for slot in slots:
        marks.mark(slot)
    asyncio.run(_wait(marks, slots))


def test_a_report_says_the_same_to_people_and_to_programs() -> None:
    table = Table("Rates", ("case", "tasks/s", "note"))
    table.add("one", Figure((1_000.0, 3_000.0, 2_000.0)), None)
    report = Report("end_to_end", {"tasks": 5}, {"cpus": 2}, [table])
    plain = json.loads(report.to_json())
    assert plain["tables"][0]["rows"] == [
        {
            "case": "one",
            "tasks/s": {"median": 2000.0, "low": 1000.0, "high": 3000.0, "runs": [1000.0, 3000.0, 2000.0]},
            "note": None,
        }
    ]
    console = Console(width=120, file=io.StringIO())
    report.show(console)
    text = console.file.getvalue()
    assert "2,000 ±50%" in text
    assert "tasks=5" in text


def test_numbers_are_shown_with_three_digits() -> None:
    shown = [text_of(number) for number in (0, 12_345.6, 123.4, 12.34, 1.234, 0.01234)]
    assert shown == ["0", "12,346", "123", "12.3", "1.23", "0.0123"]


def test_a_row_has_a_cell_for_every_column() -> None:
    with pytest.raises(AssertionError, match="1 cells under 2 columns"):
        Table("t", ("a", "b")).add("x")
