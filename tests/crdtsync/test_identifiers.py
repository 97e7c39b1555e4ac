"""Names of writers: which start counts as the later one."""

from __future__ import annotations

from crdtsync.identifiers import incarnation_floor, writer_id

WALL_MS = 1_750_000_000_000


def test_a_start_is_numbered_above_what_a_restored_disk_has_forgotten() -> None:
    assert incarnation_floor(WALL_MS + 1_000, "eu") == incarnation_floor(WALL_MS, "eu") + 1


def test_a_start_is_numbered_above_copies_of_its_disk_that_it_has_heard_of() -> None:
    """Swarm seed 689: a copy was started in the same second, and its acknowledgement counted as the later one for ever."""
    floor = incarnation_floor(WALL_MS, "eu")
    copy, elsewhere = writer_id("eu", "a", floor, bytes(8)), writer_id("us", "a", floor + 7, bytes(8))
    assert incarnation_floor(WALL_MS, "eu", [copy, elsewhere]) == floor + 1
    assert incarnation_floor(WALL_MS, "eu", [writer_id("eu", "b", 3, bytes(8))]) == floor
