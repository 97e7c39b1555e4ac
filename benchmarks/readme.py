"""The tables of the README, written from the JSON results of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.report import number_text

README: Final = Path(__file__).parent / "README.md"
BEGIN: Final = "<!-- figures: written by `python -m benchmarks report`, not by hand -->"
END: Final = "<!-- end of figures -->"


def read(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The reports in these files: each holds one, or an array of them."""
    reports: list[dict[str, Any]] = []
    for path in paths:
        found = json.loads(path.read_text("utf-8"))
        reports += found if isinstance(found, list) else [found]
    return reports


def put(text: str, figures: str) -> str:
    """`text` with the figures in the marked place, instead of those that are there.

    Raises:
        ValueError: It has no such place.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no place for figures: it begins with {BEGIN} and ends with {END}")
    return f"{head}{BEGIN}\n\n{figures.strip()}\n\n{END}{tail}"


def markdown(reports: Sequence[Mapping[str, Any]]) -> str:
    """One section per report."""
    return "\n\n".join(map(_section, reports))


def _section(report: Mapping[str, Any]) -> str:
    parts = [f"### {report['benchmark']}"]
    given = ", ".join(f"{key} {_plain(value)}" for key, value in report["input"].items())
    took = f", took {report['seconds']:.0f} s" if report.get("seconds") else ""
    command = f"`{report['command']}`, " if report.get("command") else ""
    parts.append(f"{report['date']}: {command}{given}{took}.")
    parts.append("Machine: " + ", ".join(f"{key} {value}" for key, value in report["machine"].items()) + ".")
    for table in report["tables"]:
        parts.append(f"**{table['title']}**")
        parts.append(_table(table["rows"]))
        if table["notes"]:
            parts.append("\n".join(f"- {note}" for note in table["notes"]))
    if report["calibrations"]:
        parts.append("Calibration, before, between and after:")
        parts.append(_table(report["calibrations"]))
    return "\n\n".join(parts)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "(nothing measured)"
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    lines += ["| " + " | ".join(_cell(row[column]) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(cell: Any) -> str:
    if isinstance(cell, Mapping):  # a figure
        spread = (cell["high"] - cell["low"]) / 2 / cell["median"] if cell["median"] else 0.0
        return number_text(cell["median"]) + (f" ±{spread:.0%}" if len(cell["runs"]) > 1 else "")
    return _plain(cell)


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return " ".join(map(_plain, value))
    return number_text(value)
