"""When requests come: constant gaps, Poisson, bursts, or a recorded trace."""

from __future__ import annotations

import csv
import gzip
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from crdtsync.errors import ConfigError
from simulator.scenario import Arrivals

TRACE_ROWS_MAX: Final = 1_000_000
GAP_US_MIN: Final = 1


def moments(arrivals: Arrivals, rng: random.Random, until_us: int) -> Iterator[tuple[int, int]]:
    """(true time in microseconds, how many at once), in order, up to and including `until_us`.

    Raises:
        ConfigError: If a trace cannot be read.
    """
    start_us = arrivals.start_ms * 1_000
    if arrivals.until_ms:
        until_us = min(until_us, arrivals.until_ms * 1_000)
    left = arrivals.count or 1 << 60
    for at_us, size in _endless(arrivals, rng, start_us):
        if at_us > until_us or left <= 0:
            return
        yield at_us, min(size, left)
        left -= size


def _endless(arrivals: Arrivals, rng: random.Random, start_us: int) -> Iterator[tuple[int, int]]:
    if arrivals.shape == "once":
        yield start_us, arrivals.burst
        return
    if arrivals.shape == "trace":
        for after_s in read_trace(arrivals.path):
            yield start_us + round(after_s * 1_000_000), 1
        return
    if arrivals.per_s <= 0:
        return
    size = arrivals.burst if arrivals.shape == "bursty" else 1
    mean_us = size * 1_000_000 / arrivals.per_s
    at_us = start_us
    while True:
        gap = mean_us if arrivals.shape == "constant" else rng.expovariate(1.0) * mean_us
        at_us += max(GAP_US_MIN, round(gap))
        yield at_us, size


def read_trace(path: str) -> list[float]:
    """Seconds from the first row on: the first column of a CSV file (or .gz), or the column named submit_s,
    arrival_s, start_s, creation_s, time_s or seconds. Sorted. Raises ConfigError."""
    file = Path(path)
    opened = gzip.open if file.suffix == ".gz" else open
    moments_s: list[float] = []
    try:
        with opened(file, "rt", encoding="utf-8", newline="") as lines:
            rows = csv.reader(lines)
            header = next(rows, [])
            column = next((i for i, name in enumerate(header) if name.strip() in _COLUMNS), 0)
            if header and _is_number(header[column]):
                moments_s.append(float(header[column]))
            for row in rows:
                if row and len(moments_s) < TRACE_ROWS_MAX:
                    moments_s.append(float(row[column]))
    except (OSError, ValueError, IndexError, UnicodeDecodeError) as error:
        raise ConfigError(f"arrival trace {file}: {error}; expected CSV whose first column is seconds") from error
    moments_s.sort()
    return [moment - moments_s[0] for moment in moments_s]


_COLUMNS: Final = frozenset({"submit_s", "arrival_s", "start_s", "creation_s", "seconds", "time_s"})


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
