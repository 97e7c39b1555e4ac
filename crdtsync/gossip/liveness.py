"""When each region last gave a sign of life, by whichever path it came (rules.md, Silent).

Every ping carries its sender's monotonic time as a *beat*, and the newest beats of others with their age. A beat counts
once: only one that is newer than any heard before refreshes a region. Relaying ages alone would not do, because the
time spent under way is in no age: two regions would hand the news of a dead third back and forth, and make it younger
by two latencies with each exchange; at half the interval of pings it would never die.
"""

from __future__ import annotations

from collections.abc import Iterable

from crdtsync.clock import Now, stamp_ms
from crdtsync.effects import CommitRow
from crdtsync.identifiers import RegionId, WriterId, incarnation_of, region_of
from crdtsync.protocol.peer_messages import Beat


class Liveness:
    """Signs of life of every region but our own."""

    def __init__(self, me: RegionId, members: Iterable[RegionId]) -> None:
        self._me = me
        self._members: tuple[RegionId, ...] = ()
        self.set_members(members)
        self._beats: dict[RegionId, tuple[int, int, int]] = {}  # incarnation, beat, when on our own clock
        self._heard: dict[RegionId, int] = {}

    def set_members(self, members: Iterable[RegionId]) -> None:
        """Signs of life of anybody else are ignored from now on."""
        self._members = tuple(sorted(set(members) - {self._me}))

    def last_heard(self, region: RegionId) -> int | None:
        """Monotonic time of the freshest sign of life; None if there was none since the start."""
        return self._heard.get(region)

    def frame(self, region: RegionId, now: Now) -> None:
        """A frame came from `region` itself."""
        self._refresh(region, now.mono_ms)

    def beat(self, writer: WriterId, mono_ms: int, now: Now) -> None:
        """A ping came from the region of `writer` itself."""
        self._newer(region_of(writer), incarnation_of(writer), mono_ms, now.mono_ms)

    def relayed(self, beats: Iterable[Beat], now: Now) -> None:
        """A peer tells what it heard of others. Regions that are no members are ignored."""
        for beat in beats:
            if beat.region in self._members:
                self._newer(beat.region, beat.incarnation, beat.beat, now.mono_ms - beat.age_ms)

    def commit(self, row: CommitRow, time_ms: int, now: Now) -> None:
        """A commit of that region is durable here: its region was alive at its stamp, if that is not in our future.

        `time_ms` is our own real time, by which stamps are judged: a wall clock that was set makes nobody younger.
        """
        self._refresh(region_of(row.writer), now.mono_ms - max(0, time_ms - stamp_ms(row.stamp)))

    def acknowledged(self, region: RegionId, mono_ms: int) -> None:
        """An acknowledgement of that region that nobody had told us of, given at `mono_ms` of our clock."""
        self._refresh(region, mono_ms)

    def to_relay(self, peer: RegionId, now: Now) -> tuple[Beat, ...]:
        """What to tell `peer`: the newest beat of every region but itself."""
        return tuple(
            Beat(region, incarnation, beat, now.mono_ms - heard)
            for region, (incarnation, beat, heard) in sorted(self._beats.items())
            if region != peer
        )

    def _newer(self, region: RegionId, incarnation: int, beat: int, heard: int) -> None:
        known = self._beats.get(region)
        if known is None or (incarnation, beat) > known[:2]:
            self._beats[region] = (incarnation, beat, heard)
            self._refresh(region, heard)

    def _refresh(self, region: RegionId, mono_ms: int) -> None:
        if region in self._members and mono_ms > self._heard.get(region, mono_ms - 1):
            self._heard[region] = mono_ms
