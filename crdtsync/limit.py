"""`Limit`: how much of something may run at once, or start in a while, as an app declares it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from crdtsync.commands import LimitDeclaration
from crdtsync.errors import ConfigError

SCOPES: Final = ("global", "region")
UNITS_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_RATE: Final = re.compile(r"([0-9]{1,9})/([0-9]{0,9})(ms|s|min|m|h|d)")


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit on a queue, a task or a key; name exactly one of the three.

    Attributes:
        queue: All tasks of this queue together.
        task: All tasks of this name, whatever their queue.
        key: All tasks that were submitted under this key.
        concurrency: How many attempts may run at once; 0 stops them all.
        rate: How many may be started in any span of `per`, as a number, or with its period as in "100/min".
        per: The period of `rate`, in seconds unless it is a timedelta.
        scope: "global" counts all regions together, and holds through any partition: each region holds a part of it.
            "region" counts in each region by itself.
    """

    queue: str | None = None
    task: str | None = None
    key: str | None = None
    concurrency: int | None = None
    rate: int | str | None = None
    per: float | timedelta = 1.0
    scope: str = "global"

    def __post_init__(self) -> None:
        named = [name for name in (self.queue, self.task, self.key) if name is not None]
        if len(named) != 1 or not named[0]:
            raise ConfigError(
                "a Limit is on one queue, one task or one key, as in Limit(queue='billing', concurrency=10)"
            )
        if self.concurrency is None and self.rate is None:
            raise ConfigError(f"Limit on {self.target}: give concurrency=, rate=, or both")
        for what, amount in (("concurrency", self.concurrency), ("rate", self.rate)):
            if isinstance(amount, bool) or (isinstance(amount, int) and amount < 0):
                raise ConfigError(f"Limit on {self.target}: {what}={amount!r} is not a number from 0")
        if self.scope not in SCOPES:
            raise ConfigError(f"Limit on {self.target}: scope={self.scope!r} is neither 'global' nor 'region'")
        _ = self.declaration

    @property
    def target(self) -> str:
        kinds = (("queue", self.queue), ("task", self.task), ("key", self.key))
        return next(f"{kind}:{name}" for kind, name in kinds if name is not None)

    @property
    def declaration(self) -> LimitDeclaration:
        """What a worker tells its node. Raises ConfigError if the rate makes no sense."""
        per_ms = round((self.per.total_seconds() if isinstance(self.per, timedelta) else self.per) * 1_000)
        rate = self.rate
        if isinstance(rate, str):
            rate, per_ms = parse_rate(rate)
        if rate is not None and per_ms < 1:
            raise ConfigError(f"Limit on {self.target}: per={self.per!r} is no period")
        return LimitDeclaration(self.target, self.concurrency, rate, per_ms, self.scope)


def parse_rate(text: str) -> tuple[int, int]:
    """Starts, and the milliseconds of their period, of "100/min", "5/s", "1000/15min". Raises ConfigError."""
    match = _RATE.fullmatch(text.strip())
    if match is None or match[2] == "0":
        raise ConfigError(f"{text!r} is not a rate: write 5/s, 100/min, 1000/15min, 10000/h or 1/d")
    return int(match[1]), int(match[2] or 1) * UNITS_MS[match[3]]
