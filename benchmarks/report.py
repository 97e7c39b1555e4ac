"""What a benchmark found, for people (tables on a terminal) and for programs (JSON)."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.measure import Figure

Cell: TypeAlias = str | int | float | Figure | None


@dataclass(slots=True)
class Table:
    """Rows of cells under named columns; the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, *cells: Cell) -> None:
        assert len(cells) == len(self.columns), f"{len(cells)} cells under {len(self.columns)} columns"
        self.rows.append(cells)

    def to_plain(self) -> dict[str, Any]:
        rows = [dict(zip(self.columns, map(_plain_cell, row), strict=True)) for row in self.rows]
        return {"title": self.title, "rows": rows, "notes": self.notes}


@dataclass(slots=True)
class Report:
    """Everything that one run of one benchmark found."""

    benchmark: str
    input: dict[str, Any]
    machine: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    calibrations: list[dict[str, Any]] = field(default_factory=list)
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M"))
    seconds: float = 0.0  # that it took, all runs and preparations together
    command: str = ""

    def to_plain(self) -> dict[str, Any]:
        return {
            "benchmark": self.benchmark,
            "date": self.date,
            "command": self.command,
            "seconds": round(self.seconds, 1),
            "input": self.input,
            "machine": self.machine,
            "calibrations": self.calibrations,
            "tables": [table.to_plain() for table in self.tables],
        }

    def to_json(self) -> str:
        return json.dumps(self.to_plain(), indent=2, sort_keys=False)

    def show(self, console: Console) -> None:
        """Print tables, and below them what they are worth."""
        for table in self.tables:
            _show(table, console)
        given = ", ".join(f"{key}={value}" for key, value in self.input.items())
        console.print(f"[bold]{self.benchmark}[/] {self.date}, input: {given}", highlight=False)
        facts = ", ".join(f"{key} {value}" for key, value in self.machine.items())
        console.print(f"machine: {facts}", highlight=False)
        for calibration in self.calibrations:
            console.print(
                "calibration {at}: Python {python_mops} Mops/s, fsync p50 {fsync_p50_us} us, idle {idle_percent} %, "
                "steal {steal_percent} %, load {load}".format(**calibration),
                highlight=False,
            )


def _show(table: Table, console: Console) -> None:
    shown = RichTable(title=table.title, title_justify="left", title_style="bold")
    for index, column in enumerate(table.columns):
        shown.add_column(column, justify="left" if index == 0 else "right")
    for row in table.rows:
        shown.add_row(*map(text_of, row))
    console.print(shown)
    for note in table.notes:
        console.print(f"  {note}", highlight=False)


def text_of(cell: Cell) -> str:
    """A cell as people read it: the median, and how far the runs lie apart if there was more than one."""
    if cell is None:
        return "-"
    if isinstance(cell, Figure):
        return number_text(cell.median) + (f" ±{cell.spread:.0%}" if len(cell.values) > 1 else "")
    return cell if isinstance(cell, str) else number_text(cell)


def number_text(number: float) -> str:
    """Three significant digits or more, with thousands apart."""
    if number == 0 or abs(number) >= 100:
        return f"{number:,.0f}"
    if abs(number) >= 10:
        return f"{number:.1f}"
    return f"{number:.2f}" if abs(number) >= 1 else f"{number:.3g}"


def _plain_cell(cell: Cell) -> Any:
    return cell.to_plain() if isinstance(cell, Figure) else cell
