"""How far the writers of regions that are being forgotten are followed.

A region that has been told to forget another one says what it has applied of it, and applies no more than that, with one
exception: what a remaining member's commit rests on. That member has applied it, so it stands in that member's own
answer. Once all have answered, the caps are *closed* at the final heads: beyond them nothing is believed, whoever brings
it, and what was stored beyond them is kept on disk as evidence, applied and passed on by nobody (rules.md, Membership).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from crdtsync.identifiers import RegionId, WriterId, region_of
from crdtsync.log.heads import Heads


class Caps:
    """The last commit of each capped writer that may be applied. A writer of a capped region has 0 unless it has more."""

    def __init__(self) -> None:
        self._closed: dict[RegionId, bool] = {}
        self._last: dict[WriterId, int] = {}
        self._void: dict[
            WriterId, int
        ] = {}  # writers of which more than may be applied is stored, and up to where it may

    def __bool__(self) -> bool:
        return bool(self._closed)

    def holds(self, region: RegionId) -> bool:
        return region in self._closed

    def is_closed(self, region: RegionId) -> bool:
        return self._closed.get(region, False)

    def allows(self, writer: WriterId, number: int) -> bool:
        return region_of(writer) not in self._closed or number <= self._last.get(writer, 0)

    def impose(self, region: RegionId, heads: Heads) -> None:
        """Follow `region` no further than `heads`, but for what others rest on."""
        self._closed.setdefault(region, False)
        for writer, number in heads.items():
            if region_of(writer) == region:
                self._last[writer] = max(number, self._last.get(writer, 0))

    def close(self, region: RegionId, final: Heads, have: Iterable[tuple[WriterId, int]]) -> None:
        """Follow `region` up to `final`, and never further; `have` is what is stored."""
        self._closed[region] = True
        for writer in [w for w in self._last if region_of(w) == region]:
            del self._last[writer]
        self._last.update((w, n) for w, n in final.items() if region_of(w) == region)
        for writer, number in have:
            if region_of(writer) == region and number > self._last.get(writer, 0):
                self._void[writer] = self._last.get(writer, 0)

    def lift(self, writer: WriterId, number: int) -> bool:
        """A commit that may be applied rests on this one. Whether it may be applied as well, from now on."""
        if self.is_closed(region_of(writer)):
            return False
        self._last[writer] = number
        return True

    def refuses(self, writer: WriterId, number: int) -> bool:
        """Whether a commit that arrives is not even to be stored."""
        return self.is_closed(region_of(writer)) and number > self._last.get(writer, 0)

    def clamped(self, heads: Heads) -> Heads:
        """Without what is stored and void."""
        if not self._void:
            return heads
        return Heads({writer: min(number, self._void.get(writer, number)) for writer, number in heads.items()})

    def to_wire(self) -> tuple[Any, ...]:
        return (
            tuple(sorted(self._closed.items())),
            tuple(sorted(self._last.items())),
            tuple(sorted(self._void.items())),
        )

    @classmethod
    def from_wire(cls, plain: Any) -> Caps:
        """Inverse of `to_wire`; what it gets is our own."""
        caps = cls()
        closed, last, void = plain
        caps._closed, caps._last, caps._void = dict(closed), dict(last), dict(void)
        return caps
