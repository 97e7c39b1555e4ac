"""How far regions are apart: from a measured matrix, from their places, or as the scenario says."""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from crdtsync.errors import ConfigError
from simulator.plan import split_link
from simulator.scenario import Region, Scenario

EARTH_KM: Final = 6_371.0
RTT_MS_BASE: Final = 4.0  # last miles and routers at both ends
KM_PER_MS: Final = 75.0  # of RTT: light in glass makes 100 there and back, and cables make detours


def distance_km(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Along the great circle between two (latitude, longitude) in degrees."""
    lat1, lon1, lat2, lon2 = map(math.radians, (*one, *other))
    half = math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return 2 * EARTH_KM * math.asin(min(1.0, math.sqrt(half)))


def rtt_of_places(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Milliseconds: 4 + km/75, which fits public clouds' backbones."""
    return RTT_MS_BASE + distance_km(one, other) / KM_PER_MS


def read_matrix(path: str | Path) -> dict[tuple[str, str], float]:
    """RTTs in milliseconds by (source, target), from a CSV file (or .gz) with the columns src, dst, and avg_ms or
    avg_rtt_ms; a later row replaces an earlier one, so a file of weekly surveys ends with the newest. Names are taken as
    regions have them: "Washington DC" is washington-dc.

    Raises:
        ConfigError: If it cannot be read.
    """
    file = Path(path)
    opened = gzip.open if file.suffix == ".gz" else open
    matrix: dict[tuple[str, str], float] = {}
    try:
        with opened(file, "rt", encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                value = row.get("avg_ms") or row.get("avg_rtt_ms")
                if value is not None:
                    matrix[_name(row["src"]), _name(row["dst"])] = float(value)
    except (OSError, ValueError, KeyError, UnicodeDecodeError) as error:
        raise ConfigError(f"latency matrix {file}: {error}; expected CSV with the columns src,dst,avg_ms") from error
    return matrix


def _name(text: str) -> str:
    return text.strip().lower().replace(" ", "-")


class Latencies:
    """One-way delays of a scenario, in microseconds."""

    def __init__(self, scenario: Scenario) -> None:
        links = scenario.links
        self._places: Mapping[str, Region] = {region.name: region for region in scenario.regions}
        self._rtt_ms = links.rtt_ms
        self._given: dict[tuple[str, str], float] = {}
        self._matrix = read_matrix(links.matrix) if links.matrix else {}
        for name, rtt_ms in links.rtt.items():
            link = split_link(name)
            if link is None:
                raise ConfigError(f"links.rtt names {name!r}: write the pair as in 'eu<>us'")
            one, other, both = link
            self._given[one, other] = rtt_ms
            if both:
                self._given[other, one] = rtt_ms
        if self._matrix:
            known = {source for source, _ in self._matrix}
            missing = [r.name for r in scenario.regions if r.name not in known]
            if missing:
                raise ConfigError(f"{links.matrix} has no region {missing[0]!r}; it has {', '.join(sorted(known))}")

    def rtt_ms(self, source: str, target: str) -> float:
        pair = (source, target)
        if pair in self._given:
            return self._given[pair]
        if self._matrix:
            found = self._matrix.get(pair, self._matrix.get((target, source)))
            if found is not None:
                return found
        one, other = self._places[source].place, self._places[target].place
        if one is not None and other is not None:
            return rtt_of_places(one, other)
        return self._rtt_ms

    def one_way_us(self, source: str, target: str) -> int:
        return round(self.rtt_ms(source, target) * 500)
