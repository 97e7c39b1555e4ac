"""Options of the acceptance checks."""

import random

import pytest


def pytest_addoption(parser):
    parser.addoption("--seed", type=int, default=None, help="repeat the run of this seed; drawn anew by default")


@pytest.fixture
def seed(request):
    """Printed with each failure, as all output is."""
    given = request.config.getoption("--seed", None)  # unknown where `tests` as a whole is run
    chosen = random.SystemRandom().randrange(10_000) if given is None else given
    print(f"--seed {chosen}")
    return chosen
