"""`Reissues`: which commits count under another stamp than their own, and what their events are called then.

A commit that was stamped by a clock far ahead is held back by everybody whose clock is right. When that clock is right
again its region starts a new incarnation, which writes `Reissued` events: these commits count as stamped when I was.
Nothing is copied and nothing is void: the commits themselves are applied behind that event, by all.

The *name* of an event is the writer, number and index that it was written under, and never changes; effect keys and the
ids of compensations derive from it alone. Its *place* is the stamp, the smallest that is known of it. An `EventId` holds
both; so whatever is folded is read through here first, its own id and those by which it names other facts of its task:

    fold(id, event)                 of a commit that was re-issued before: takes its place at once
    a `Reissued` event is folded    what was folded under the old stamps before is read again (`TaskTable.read_again`)

Both ways end at the same facts, so what a replica shows is a function of the commits that it has applied, whether it
had applied the re-issued ones before or not. Ids by which facts name attempts of *other* tasks (`inputs`, `undoes`) stay as they
were written, and are compared by name (`EventId.names`): else an event would change tasks that it does not touch.
Why it is like this: docs/decisions/0018.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, TypeVar, cast

from crdtsync.errors import RemoteProtocolError
from crdtsync.events import (
    Checkpointed,
    Claimed,
    Decided,
    EffectRecorded,
    Ended,
    Event,
    LabelEdited,
    PriorityEdited,
    Reissued,
    RightsMinted,
    TermOpened,
    Withdrawn,
)
from crdtsync.identifiers import EventId, WriterId, incarnation_of, node_of
from crdtsync.log.shapes import check_events, checked_event_id, plain_event
from crdtsync.protocol import codec

STATE_VERSION: Final = 1
STATE_BYTES_MAX: Final = 64 << 20  # task ids of what was ever re-issued: 16 bytes each

_OF_ATTEMPTS: Final = frozenset((EffectRecorded, Checkpointed, Ended, Decided))
_OF_OFFERS: Final = frozenset((TermOpened, Withdrawn))
_OF_OLDER: Final = frozenset((PriorityEdited, LabelEdited, RightsMinted))
_Fact = TypeVar("_Fact", bound=Event)


class Reissues:
    """All `Reissued` events that were folded. Grows only; false while there are none."""

    def __init__(self) -> None:
        self._of: dict[str, dict[tuple[str, int, int], tuple[int, Reissued]]] = {}  # writer -> name -> stamp, event

    def __bool__(self) -> bool:
        return bool(self._of)

    def events(self) -> Iterator[Reissued]:
        for known in self._of.values():
            for _, event in known.values():
                yield event

    def add(self, id: EventId, event: Reissued) -> bool:
        """Fold one. False if it was known, or counts for nothing: a node re-issues what an earlier start of it wrote."""
        closed = event.closed
        if node_of(id.writer) != node_of(closed) or incarnation_of(id.writer) <= incarnation_of(closed):
            return False
        known = self._of.setdefault(closed, {})
        stamp, _ = known.get(id[1:], (id.stamp + 1, event))
        if id.stamp >= stamp:
            return False
        known[id[1:]] = (id.stamp, event)
        return True

    # Reading -----------------------------------------------------------------------------------

    def covers(self, writer: str, number: int) -> bool:
        return any(True for _ in self._covering(writer, number))

    def stamp(self, writer: str, number: int, own: int) -> int:
        """The stamp that a commit counts under, the smallest that is known; `own` is what it was sealed with."""
        for (by, at, _), stamp, _ in self._covering(writer, number):
            own = min(own, self.stamp(by, at, stamp))  # what re-issued it may have been re-issued itself
        return own

    def rests_on(self, writer: str, number: int) -> list[tuple[WriterId, int]]:
        """The commits behind which a commit has its place: its own, and those that re-issued it."""
        found = [(WriterId(writer), number)]
        for (by, at, _), _, _ in self._covering(writer, number):
            found += self.rests_on(by, at)
        return found

    def id(self, plain: tuple[Any, ...]) -> EventId:
        """An event's id with the stamp that it counts under."""
        stamp, writer, number, index = plain
        return EventId(self.stamp(writer, number, stamp), writer, number, index)

    def fact(self, id: EventId, event: _Fact) -> tuple[EventId, _Fact]:
        """An event as it is folded: its id, and those by which it names other events of what it is about."""
        kind = type(event)
        read: Any = event
        if kind is Claimed:
            read = read._replace(
                submission=self.id(read.submission),
                continues=None if read.continues is None else self.id(read.continues),
                relies=tuple(map(self.id, read.relies)),
            )
        elif kind in _OF_ATTEMPTS:
            read = read._replace(attempt=self.id(read.attempt))
            if kind is Ended and not read.late and self._is_late(id):
                read = read._replace(late=True)
        elif kind in _OF_OFFERS and read.offer is not None:
            read = read._replace(offer=self.id(read.offer))
        elif kind in _OF_OLDER and read.saw is not None:
            read = read._replace(saw=self.id(read.saw))
        return self.id(id), cast("_Fact", read)

    def _is_late(self, id: EventId) -> bool:
        place = (id.number, id.index)
        return any(place in event.late for _, _, event in self._covering(id.writer, id.number))

    def _covering(self, writer: str, number: int) -> Iterator[tuple[tuple[str, int, int], int, Reissued]]:
        for name, (stamp, event) in self._of.get(writer, _NONE).items():
            if event.first <= number <= event.last:
                yield name, stamp, event

    # As bytes ----------------------------------------------------------------------------------

    def export(self) -> bytes:
        """Everything, for the disk and for snapshots."""
        plain = [
            ((stamp, *name), plain_event(event))
            for known in self._of.values()
            for name, (stamp, event) in known.items()
        ]
        return codec.encode((STATE_VERSION, tuple(sorted(plain))))

    def join(self, state: bytes) -> list[Reissued]:
        """Take in what `export` gave, here or elsewhere. Returns what was news. Raises RemoteProtocolError."""
        plain: Any = codec.decode(state, bytes_max=STATE_BYTES_MAX)
        if type(plain) is not tuple or len(plain) != 2 or plain[0] != STATE_VERSION:
            raise RemoteProtocolError("what was re-issued has another form than this version's")
        news = []
        for pair in plain[1]:
            if type(pair) is not tuple or len(pair) != 2:
                raise RemoteProtocolError("what was re-issued is an event and its id")
            (event,) = check_events((pair[1],))
            if not isinstance(event, Reissued):
                raise RemoteProtocolError("only `Reissued` events re-issue")
            if self.add(checked_event_id(pair[0]), event):
                news.append(event)
        return news


_NONE: Final[dict[tuple[str, int, int], tuple[int, Reissued]]] = {}
