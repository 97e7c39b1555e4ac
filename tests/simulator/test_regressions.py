"""The seeds in which sweeps found something: each as the scenario that was drawn then, since drawing changes.

A file is named after its seed and tells the story in its head. What is quick to show is also a test of the core, named
for what went wrong.
"""

from pathlib import Path

import pytest

from simulator.source import Source
from simulator.sweep import outcome_of

FOUND = sorted(Path(__file__).parent.joinpath("regressions").glob("*.toml"))


def test_every_find_is_kept_with_its_story():
    assert FOUND
    for file in FOUND:
        first, second, *_ = file.read_text().splitlines()
        assert first == f"# Found in swarm seed {seed_of(file)}."
        assert second.startswith("# ")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("file", FOUND, ids=lambda file: file.stem)
def test_what_was_found_is_not_found_again(file):
    outcome = outcome_of(Source(str(file)), seed_of(file))
    assert not outcome.violations, outcome.violations[:3]


def seed_of(file: Path) -> int:
    return int(file.stem.partition("-")[0])
