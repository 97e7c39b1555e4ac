"""Facts that a snapshot brought ahead of the heads: how far they go is known, or nothing is told of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from crdtsync.ahead import Ahead
from crdtsync.clock import Now
from crdtsync.identifiers import RegionId, WriterId, writer_id
from crdtsync.log.heads import Heads

JP, US = RegionId("jp"), RegionId("us")
WRITER: WriterId = writer_id("jp", "a", 1, bytes(8))
DURABLE, BEYOND = Heads({WRITER: 3}), Heads({WRITER: 6})


class Here(SimpleNamespace):
    """As much of a region as this asks for."""


@pytest.fixture
def here() -> Here:
    return Here(
        now=Now(0, 0),
        outbox=SimpleNamespace(next=SimpleNamespace(meta={})),
        log=SimpleNamespace(applied=DURABLE, quarantined=()),
        membership=SimpleNamespace(has_lost=lambda _: False),
    )


def test_what_is_passed_on_reaches_as_far_as_what_was_taken_in(here: Here) -> None:
    """Swarm seed 602: who took a snapshot from a region that ran ahead itself told a digest of facts that its heads lacked."""
    ahead = Ahead(here, lambda _: None)  # type: ignore[arg-type]
    assert ahead.reach(DURABLE) == DURABLE
    ahead.rows_came(JP)
    assert ahead.reach(DURABLE) is None
    ahead.complete(JP)
    assert ahead.reach(DURABLE) is None
    ahead.adopted(JP, BEYOND)
    assert ahead.reach(DURABLE) == BEYOND
    assert not ahead.covered(DURABLE)
    assert ahead.covered(BEYOND)


def test_what_broke_off_is_covered_once_its_senders_heads_are_durable(here: Here) -> None:
    ahead = Ahead(here, lambda _: BEYOND)  # type: ignore[arg-type]
    ahead.rows_came(US)
    ahead.aborted(US)
    assert ahead.runs_ahead()
    assert ahead.reach(DURABLE) is None
    ahead.opened(US)
    here.log.applied = BEYOND
    assert not ahead.runs_ahead()
    assert not ahead.covered(DURABLE), "applied, and not yet durable: the digest at hand is an older one"
    assert ahead.covered(BEYOND)
