"""Who belongs to the cluster, reckoned here and not by the core: the rules of membership, written a second time.

All records of changes and of answers, and what they come to for somebody who has seen a part of them. It follows the
text (the rules of membership, and decision 0017 where it says more): changes take effect in the order of their versions,
those of a newer epoch in the place of what an older one decided from there on; a region that is being forgotten has left
once all members of one version, from the one that forgot it on, have answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from crdtsync import events as ev
from crdtsync.identifiers import EventId, region_of

Seen: TypeAlias = Callable[[EventId], bool]


@dataclass(frozen=True)
class Roll:
    """Who belongs, by some set of records.

    Attributes:
        voters: Members in full, sorted: they vote, own and run.
        joining: Added, and not admitted yet.
        leaving: Forgotten, and not all have answered.
        gone: Forgotten, and all have: up to which commit of each writer the region was heard.
    """

    epoch: int
    version: int
    voters: tuple[str, ...]
    joining: tuple[str, ...] = ()
    leaving: tuple[str, ...] = ()
    gone: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def majority(self) -> int:
        return len(self.voters) // 2 + 1

    def counting(self, writer: str, number: int) -> int:
        """How many of so many commits of a writer are part of the history."""
        final = self.gone.get(region_of(writer))
        return number if final is None else min(number, final.get(writer, 0))

    def is_void(self, writer: str, number: int) -> bool:
        """Whether a commit lies beyond the end of a region that has left."""
        return self.counting(writer, number) < number


class Rolls:
    """The records of one run.

    Args:
        founders: Who is configured to be there from the start.
    """

    def __init__(self, founders: Iterable[str]) -> None:
        self._founding = Roll(0, 1, tuple(sorted(founders)))
        self.changes: list[tuple[EventId, ev.MembersChanged]] = []  # in the order in which they were written
        self._answers: list[tuple[EventId, ev.FinalHeads]] = []
        self._known: dict[tuple[EventId, ...], Roll] = {}
        self._whole: Roll | None = self._founding

    def __bool__(self) -> bool:
        """Whether the membership ever changed."""
        return bool(self.changes)

    def note(self, id: EventId, event: ev.MembersChanged | ev.FinalHeads) -> None:
        self._whole = None
        if isinstance(event, ev.FinalHeads):
            self._answers.append((id, event))
        else:
            self.changes.append((id, event))

    @property
    def whole(self) -> Roll:
        """By all records that were ever written."""
        if self._whole is None:
            self._whole = self.seen_by(lambda _: True)
        return self._whole

    def seen_by(self, seen: Seen) -> Roll:
        """By the records that somebody has seen."""
        if not self.changes:
            return self._founding
        changes = [(id, event) for id, event in self.changes if seen(id)]
        answers = [(id, event) for id, event in self._answers if seen(id)]
        key = tuple(id for id, _ in (*changes, *answers))
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._reckon(changes, answers)
        return known

    def before(self, change: ev.MembersChanged) -> Roll:
        """Who belonged when this change was decided: after all changes before it, by whomever they were seen."""
        earlier = [
            (id, event) for id, event in self.changes if event.version < change.version and event.epoch <= change.epoch
        ]
        answers = [
            (id, event) for id, event in self._answers if event.version < change.version and event.epoch <= change.epoch
        ]
        return self._reckon(earlier, answers)

    def _reckon(
        self, changes: list[tuple[EventId, ev.MembersChanged]], answers: list[tuple[EventId, ev.FinalHeads]]
    ) -> Roll:
        members, joining, leaving = set(self._founding.voters), set[str](), set[str]()
        gone: dict[str, Mapping[str, int]] = {}
        epoch, version = 0, 1
        for change in _in_effect(changes):
            epoch, version = change.epoch, change.version
            named = set(change.regions)
            members, joining, leaving = members - named, joining - named, leaving - named
            if change.change == "add":
                joining |= named
            elif change.change == "admit":
                members |= named
            else:
                leaving |= named
            said = [(region_of(id.writer), e) for id, e in answers if (e.epoch, e.version) == (epoch, version)]
            if leaving and members <= {region for region, _ in said}:
                heads = _joined(event.heads for region, event in said if region in members)
                for region in leaving:
                    gone[region] = {w: n for w, n in heads.items() if region_of(w) == region}
                leaving = set()
        return Roll(epoch, version, tuple(sorted(members)), tuple(sorted(joining)), tuple(sorted(leaving)), gone)


def _in_effect(changes: list[tuple[EventId, ev.MembersChanged]]) -> list[ev.MembersChanged]:
    """One change of each version, in order; of records that contradict one another the one that sorts first."""
    first: dict[tuple[int, int], ev.MembersChanged] = {}
    for _, event in sorted(changes, key=lambda pair: pair[0]):
        first.setdefault((event.epoch, event.version), event)
    # A newer epoch takes over from its first version on.
    begins = {epoch: min(v for e, v in first if e == epoch) for epoch in {e for e, _ in first}}
    return [
        event
        for (epoch, version), event in sorted(first.items())
        if all(version < begins[later] for later in begins if later > epoch)
    ]


def _joined(vectors: Iterable[Iterable[tuple[str, int]]]) -> dict[str, int]:
    joined: dict[str, int] = {}
    for vector in vectors:
        for writer, number in vector:
            joined[writer] = max(number, joined.get(writer, 0))
    return joined
