"""Measure what papers claim of the algorithms that we use, and write `notebooks/data/papers.csv`. Tests compare.

python notebooks/papers.py            from the project's root; some minutes
"""

import csv
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent))

from tests.properties import test_clock_laws as clocks  # noqa: E402
from tests.properties import test_gossip_traffic as traffic  # noqa: E402

ENES = "Enes et al., ICDE 2019"
KULKARNI = "Kulkarni et al., OPODIS 2014"


def rows():
    yield "paper", "setup", "quantity", "claim", "measured"
    for name, graph, claim in (("tree", traffic.TREE, 21_000), ("mesh", traffic.MESH, 68_919)):
        sent = traffic.elements_sent(graph, adds=100, latency_ms=10)
        yield ENES, f"15-node {name}, 100 elements each", "elements sent, at most", claim, sent
    for nodes, epsilon_ms, spacing_ms in clocks.SETUPS:
        setup = f"{nodes} nodes, epsilon {epsilon_ms} ms, spacing {spacing_ms} ms"
        ahead_ms, counter = clocks.largest(nodes, epsilon_ms, spacing_ms)
        yield KULKARNI, setup, "largest l - pt in ms", epsilon_ms, ahead_ms
        yield KULKARNI, setup, "largest counter", epsilon_ms // spacing_ms + 1, counter


if __name__ == "__main__":
    with (FOLDER / "data" / "papers.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows())
