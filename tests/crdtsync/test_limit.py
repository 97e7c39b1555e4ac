"""Limits as apps declare them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from crdtsync import App, Limit
from crdtsync.commands import LimitDeclaration
from crdtsync.errors import ConfigError
from crdtsync.limit import parse_rate


@pytest.mark.parametrize(
    "text, starts, per_ms",
    [
        ("5/s", 5, 1_000),
        ("100/min", 100, 60_000),
        ("100/m", 100, 60_000),
        ("1000/15min", 1_000, 900_000),
        ("1/d", 1, 86_400_000),
        ("3/250ms", 3, 250),
    ],
)
def test_a_rate_is_read_with_its_period(text: str, starts: int, per_ms: int) -> None:
    assert parse_rate(text) == (starts, per_ms)


@pytest.mark.parametrize("text", ["", "5", "5/", "/s", "5/0s", "-5/s", "5/y", "5.5/s"])
def test_what_is_no_rate_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="100/min"):
        parse_rate(text)


def test_a_limit_becomes_what_a_worker_declares() -> None:
    limit = Limit(task="charge", concurrency=3, rate=10, per=timedelta(minutes=1), scope="region")
    assert limit.declaration == LimitDeclaration("task:charge", 3, 10, 60_000, "region")
    assert Limit(key="acme", rate="2/h").declaration == LimitDeclaration("key:acme", None, 2, 3_600_000, "global")
    assert App("shop", limits=[limit]).limit_declarations() == (limit.declaration,)


@pytest.mark.parametrize(
    "fields",
    [
        {"concurrency": 1},
        {"queue": "a", "task": "b", "concurrency": 1},
        {"queue": "", "concurrency": 1},
        {"queue": "a"},
        {"queue": "a", "concurrency": -1},
        {"queue": "a", "concurrency": True},
        {"queue": "a", "rate": "often"},
        {"queue": "a", "rate": 1, "per": 0},
        {"queue": "a", "concurrency": 1, "scope": "planet"},
    ],
)
def test_a_limit_that_makes_no_sense_is_refused_where_it_is_declared(fields: dict) -> None:
    with pytest.raises(ConfigError):
        Limit(**fields)


def test_an_app_has_one_limit_per_target() -> None:
    with pytest.raises(ConfigError, match="two limits"):
        App("shop", limits=[Limit(queue="a", concurrency=1), Limit(queue="a", rate="1/s")])
    with pytest.raises(ConfigError, match="not a Limit"):
        App("shop", limits=[10])  # type: ignore[list-item]
