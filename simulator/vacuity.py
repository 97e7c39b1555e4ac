"""How often each kind of fault met each invariant: a checker that never saw a fault has proved nothing about it.

A cell counts an instance that a checker judged in a region (or about a task) that a fault of that kind had *changed
something in*, from its first hit until a little after its end. A fault that was drawn and dropped no frame counts for
nothing. Pairs that cannot meet are listed with the reason; any other cell that stays empty over a sweep is a failure of
the sweep, since it means that the plans or the checkers are blind there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from simulator.catalogue import CATALOGUE, Aim, Family
from simulator.trace import Record

AFTER_US: Final = 10_000_000  # how long after its end a fault's consequences are looked for

Table = dict[str, Counter[str]]


@dataclass(slots=True)
class _Window:
    kind: str
    until_us: int | None  # None while the fault lasts


class Vacuity:
    """The table of one run.

    Attributes:
        table: Fault kind -> invariant -> instances judged.
        judged: Invariant -> instances judged, faults or not.
    """

    kinds: Final = ("fault.start", "fault.hit", "fault.end")

    def __init__(self) -> None:
        self.table: Table = {}
        self.judged: Counter[str] = Counter()
        self._open: dict[str, dict[str, _Window]] = {}  # region -> fault id -> window
        self._struck: dict[str, dict[str, None]] = {}  # region -> kinds that ever changed something there
        self._tasks: dict[bytes, dict[str, None]] = {}

    def on_event(self, record: Record) -> None:
        """A fault began, changed something, or ended."""
        if record.kind == "fault.hit":
            kind: str = record.data[0]
            until = record.at_us + AFTER_US if CATALOGUE[kind].instant else None
            self._open.setdefault(region_of_node(record.node), {})[record.id] = _Window(kind, until)
            self.table.setdefault(kind, Counter())
            self._struck.setdefault(region_of_node(record.node), {})[kind] = None
        elif record.kind == "fault.end":
            for windows in self._open.values():
                if record.id in windows:
                    windows[record.id].until_us = record.at_us + AFTER_US

    def kinds_at(self, region: str, now_us: int) -> Iterable[str]:
        """The kinds of fault that have changed something in a region not long ago."""
        windows = self._open.get(region)
        if not windows:
            return ()
        for place in [place for place, w in windows.items() if w.until_us is not None and w.until_us < now_us]:
            del windows[place]
        return dict.fromkeys(window.kind for window in windows.values())

    def struck(self, region: str) -> Iterable[str]:
        """The kinds of fault that ever changed something in a region."""
        return tuple(self._struck.get(region, ()))

    def touch(self, task: bytes, region: str, now_us: int) -> None:
        """Something happened to a task in a region: faults at work there have met it."""
        kinds = self.kinds_at(region, now_us)
        if kinds:
            self._tasks.setdefault(task, {}).update(dict.fromkeys(kinds))

    def count(self, invariant: str, region: str, now_us: int) -> None:
        """An instance was judged in a region now."""
        self.judged[invariant] += 1
        for kind in self.kinds_at(region, now_us):
            self.table[kind][invariant] += 1

    def count_ever(self, invariant: str, region: str) -> None:
        """An instance was judged over a whole run: whatever ever struck the region has met it."""
        self.judged[invariant] += 1
        for kind in self._struck.get(region, ()):
            self.table[kind][invariant] += 1

    def count_task(self, invariant: str, task: bytes) -> None:
        """An instance was judged about a task, whatever its regions do now."""
        self.judged[invariant] += 1
        for kind in self._tasks.get(task, ()):
            self.table[kind][invariant] += 1

    def to_plain(self) -> dict[str, dict[str, int]]:
        return {kind: dict(sorted(cells.items())) for kind, cells in sorted(self.table.items())}


def region_of_node(node: str) -> str:
    """The region of a node's name: "eu" of "eu~2"."""
    return node.partition("~")[0]


def merge(tables: Iterable[Mapping[str, Mapping[str, int]]]) -> Table:
    """One table of a whole sweep."""
    whole: Table = {}
    for table in tables:
        for kind, cells in table.items():
            whole.setdefault(kind, Counter()).update(cells)
    return whole


# Pairs that cannot meet ----------------------------------------------------------------------------

#: (fault kind, invariant) -> why no instance of the invariant can touch the fault. "*" stands for every kind.
IMPOSSIBLE: Final[dict[tuple[str, str], str]] = {
    **{
        ("disk_clone", name): "two processes of one region vote until they meet: leases are not judged from there on"
        for name in ("EXCL-1", "EXCL-2", "EXCL-4", "EXCL-5", "EXCL-6", "EXCL-7", "EXCL-8", "EXCL-9", "LEAD-1")
    },
    **{(kind, "TIME-2"): "only a process that was stopped wakes" for kind in CATALOGUE if kind != "pause"},
}


def reason(kind: str, invariant: str) -> str | None:
    """Why this pair cannot meet, or None if it can."""
    return IMPOSSIBLE.get((kind, invariant)) or IMPOSSIBLE.get(("*", invariant))


def missing(table: Mapping[str, Mapping[str, int]], invariants: Iterable[str]) -> list[tuple[str, str]]:
    """The cells that stayed empty and need not: what makes a sweep fail. Of kinds that never struck, all of them."""
    names = sorted(invariants)
    return [
        (kind, name)
        for kind in CATALOGUE
        if CATALOGUE[kind].drawn or CATALOGUE[kind].family is Family.MEMBERSHIP
        for name in names
        if not table.get(kind, {}).get(name) and reason(kind, name) is None
    ]


__all__ = ["AFTER_US", "IMPOSSIBLE", "Aim", "Table", "Vacuity", "merge", "missing", "reason", "region_of_node"]
