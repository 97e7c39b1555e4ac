"""Who judges a run: one family of invariants per module, each by its own reckoning."""

from __future__ import annotations

from simulator.result import Checker


def all_checkers() -> tuple[Checker, ...]:
    """All checkers, fresh: each judges one run."""
    return ()
