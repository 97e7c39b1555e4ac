"""One task's facts, and their join.

The facts of a task are a grow-only set of events, so merging is union: order, repetition and
grouping cannot matter (a join-semilattice; Shapiro et al., "Conflict-free Replicated Data Types",
2011). What the set *means* is `resolve`'s business. The one thing dropped is a checkpoint that a
newer one of the same attempt replaces: `max` is a join too, and nothing reads the older ones.

Made for a million of them: a task holds three tuples, shared and empty at first, so one that only
waits costs its submission and little else. Tuples are rebuilt when they grow; a task has few facts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any, Final, NamedTuple

import msgspec

from crdtsync.errors import CorruptLogError, RemoteProtocolError
from crdtsync.events import (
    KIND_OF,
    TASK_KINDS,
    Checkpointed,
    Claimed,
    EffectRecorded,
    Ended,
    Submitted,
    TaskEvent,
)
from crdtsync.identifiers import AttemptId, EventId, TaskId
from crdtsync.log.shapes import check_events, checked_writer, plain_event
from crdtsync.protocol import codec

ROW_VERSION: Final = 1  # in canonical CBOR: what peers send each other
PACKED_VERSION: Final = 2  # in MessagePack: what the disk keeps
ROW_BYTES_MAX: Final = 64 << 20  # far above what the limits on effects, results and attempts let through

_ID_TYPES: Final = (int, str, int, int)
_by_id: Final = itemgetter(0)


class AttemptFacts(NamedTuple):
    """What is known of one attempt. Without its claim (facts out of order) it counts for nothing yet."""

    id: AttemptId
    claim: Claimed | None = None
    effects: tuple[tuple[EventId, EffectRecorded], ...] = ()  # sorted by id
    checkpoint: tuple[EventId, Checkpointed] | None = None  # the greatest (index, id)
    ends: tuple[tuple[EventId, Ended], ...] = ()  # sorted by id; more than one only by mistake


class Facts:
    """One task's facts. Compares by content; not hashable, because it grows."""

    __slots__ = ("attempts", "rest", "submissions")

    def __init__(self) -> None:
        self.submissions: tuple[tuple[EventId, Submitted], ...] = ()  # sorted by id
        self.attempts: tuple[AttemptFacts, ...] = ()  # sorted by id
        self.rest: tuple[tuple[EventId, TaskEvent], ...] = ()  # terms, offers, cancels, edits, ...; sorted by id

    def add(self, event_id: EventId, event: TaskEvent) -> bool:
        """Join one fact. True when it was news, that is, when the facts changed."""
        kind = type(event)
        if kind is Claimed:
            return self._add_claim(event_id, event)  # type: ignore[arg-type]
        if kind is Ended or kind is EffectRecorded or kind is Checkpointed:
            return self._add_to_attempt(event_id, event)  # type: ignore[arg-type]
        if kind is Submitted:
            if not self.submissions:
                self.submissions = ((event_id, event),)  # type: ignore[assignment]
                return True
            grown: Any = _inserted(self.submissions, event_id, event)
            if grown is None:
                return False
            self.submissions = grown
            return True
        grown = _inserted(self.rest, event_id, event)
        if grown is None:
            return False
        self.rest = grown
        return True

    def _add_claim(self, event_id: EventId, claim: Claimed) -> bool:
        attempts = self.attempts
        if not attempts:
            self.attempts = (AttemptFacts(event_id, claim),)
            return True
        at = bisect_left(attempts, event_id, key=_by_id)
        if at == len(attempts) or attempts[at].id != event_id:
            self.attempts = (*attempts[:at], AttemptFacts(event_id, claim), *attempts[at:])
            return True
        if attempts[at].claim is not None:
            return False
        self._put(at, attempts[at]._replace(claim=claim))
        return True

    def _add_to_attempt(self, event_id: EventId, event: Ended | EffectRecorded | Checkpointed) -> bool:
        attempts, attempt = self.attempts, event.attempt
        at = len(attempts) - 1
        if at < 0 or attempts[at].id != attempt:  # mostly it is the newest
            at = bisect_left(attempts, attempt, key=_by_id)
            if at == len(attempts) or attempts[at].id != attempt:
                self.attempts = attempts = (*attempts[:at], AttemptFacts(EventId(*attempt)), *attempts[at:])
        old = attempts[at]
        own, claim, effects, checkpoint, ends = old
        if type(event) is Ended:
            grown: Any = _inserted(ends, event_id, event) if ends else ((event_id, event),)
            if grown is None:
                return False
            self._put(at, AttemptFacts(own, claim, effects, checkpoint, grown))
            return True
        if type(event) is EffectRecorded:
            grown = _inserted(effects, event_id, event)
            if grown is None:
                return False
            self._put(at, AttemptFacts(own, claim, grown, checkpoint, ends))
            return True
        assert type(event) is Checkpointed
        if checkpoint is not None and (checkpoint[1].index, checkpoint[0]) >= (event.index, event_id):
            return False
        self._put(at, AttemptFacts(own, claim, effects, (event_id, event), ends))
        return True

    def _put(self, at: int, attempt: AttemptFacts) -> None:
        attempts = self.attempts
        self.attempts = (attempt,) if len(attempts) == 1 else (*attempts[:at], attempt, *attempts[at + 1 :])

    def join(self, other: Facts) -> bool:
        """Add everything that `other` knows. True when something of it was news."""
        news = [self.add(event_id, event) for event_id, event in other.events()]
        return any(news)

    def read_through(self, lens: Callable[[EventId, TaskEvent], tuple[EventId, TaskEvent]]) -> bool:
        """Take every fact for what `lens` says it is (`log.reissues`). True when that changed anything."""
        before = list(self.events())
        after = [lens(event_id, event) for event_id, event in before]
        if after == before:
            return False
        fresh = Facts()
        for event_id, event in after:
            fresh.add(event_id, event)
        self.submissions, self.attempts, self.rest = fresh.submissions, fresh.attempts, fresh.rest
        return True

    def copy(self) -> Facts:
        """Facts of the same content that grow on their own."""
        twin = Facts()
        twin.submissions, twin.attempts, twin.rest = self.submissions, self.attempts, self.rest
        return twin

    @property
    def task(self) -> TaskId | None:
        """The task that these are the facts of, None while there are none."""
        return next((event.task for _, event in self.events()), None)

    @property
    def kinds(self) -> frozenset[int]:
        """The numbers of the kinds that occur (see `events.KINDS`)."""
        return frozenset(KIND_OF[type(event)] for _, event in self.events())

    def attempt(self, event_id: AttemptId) -> AttemptFacts | None:
        if self.attempts and self.attempts[-1].id == event_id:  # mostly it is the newest
            return self.attempts[-1]
        at = bisect_left(self.attempts, event_id, key=_by_id)
        return self.attempts[at] if at < len(self.attempts) and self.attempts[at].id == event_id else None

    def events(self) -> Iterator[tuple[EventId, TaskEvent]]:
        """Every fact that is kept, in no particular order."""
        yield from self.submissions
        for event_id, claim, effects, checkpoint, ends in self.attempts:
            if claim is not None:
                yield event_id, claim
            yield from effects
            if checkpoint is not None:
                yield checkpoint
            yield from ends
        yield from self.rest

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Facts):
            return NotImplemented
        return self.submissions == other.submissions and self.attempts == other.attempts and self.rest == other.rest

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return sum(1 for _ in self.events())

    def __repr__(self) -> str:
        return f"<Facts of {self.task.hex() if self.task else 'nothing'}: {len(self)} events>"

    # Rows --------------------------------------------------------------------------------------

    def to_row(self) -> bytes:
        """These facts as one canonical byte string: equal facts have equal rows.

        Lossless for `resolve`: `from_row(row)` joined with new facts resolves as all facts do.
        """
        events = tuple((event_id, plain_event(event)) for event_id, event in sorted(self.events(), key=_by_id))
        return codec.encode((ROW_VERSION, events))

    @classmethod
    def from_row(cls, row: bytes) -> Facts:
        """Inverse of `to_row`. The row may come from a peer, so each field is checked.

        Raises:
            CorruptLogError: If the bytes are not such a row.
        """
        try:
            plain = codec.decode_unchecked(row, bytes_max=ROW_BYTES_MAX)
            version, pairs = plain
            if version != ROW_VERSION:
                raise CorruptLogError(f"a task's row has the version {version!r}, this program reads {ROW_VERSION}")
            return cls._of_plain([event_id for event_id, _ in pairs], tuple(event for _, event in pairs))
        except (RemoteProtocolError, TypeError, ValueError) as error:
            raise CorruptLogError(f"a task's row cannot be read: {error}", bytes=len(row)) from error

    def pack(self) -> bytes:
        """As `to_row`, for this node's own disk: equal facts are equal bytes here, too.

        In MessagePack, because each task that ends is written once at least: 1.6 us, where the CBOR takes 11.
        """
        return _packed(
            (PACKED_VERSION, [(event_id, KIND_OF[type(e)], e) for event_id, e in sorted(self.events(), key=_by_id)])
        )

    @classmethod
    def unpack(cls, row: bytes) -> Facts:
        """Inverse of `pack`, and of `to_row` for what earlier versions wrote. Never for what a peer sends: a few
        bytes of MessagePack may claim to be an array of any length, and memory is taken before that is noticed.

        Raises:
            CorruptLogError: If the bytes are not such a row.
        """
        if not row.startswith(_PACKED_HEAD):
            return cls.from_row(row)
        try:
            version, triples = _unpacked(row)
            if version != PACKED_VERSION:
                raise CorruptLogError(f"a task's row has the version {version!r}, this program reads {PACKED_VERSION}")
            events = tuple([(kind, *map(_as_tuples, fields)) for _, kind, fields in triples])
            return cls._of_plain([event_id for event_id, _, _ in triples], events)
        except (msgspec.MsgspecError, RemoteProtocolError, TypeError, ValueError, RecursionError) as error:
            raise CorruptLogError(f"a task's row cannot be read: {error}", bytes=len(row)) from error

    @classmethod
    def _of_plain(cls, plain_ids: list[Any], plain: tuple[Any, ...]) -> Facts:
        """Facts of one task from their ids and their events in plain form, all of it checked."""
        events = check_events(plain)
        ids = list(map(_checked_id, plain_ids))
        facts = cls()
        task = None
        for event_id, event in zip(ids, events, strict=True):
            if KIND_OF.get(type(event)) not in TASK_KINDS:
                raise CorruptLogError(f"a task's row holds a {type(event).__name__}, which is no fact of a task")
            if task is None:
                task = event.task  # type: ignore[union-attr]
            elif event.task != task:  # type: ignore[union-attr]
                raise CorruptLogError("a task's row holds facts of two tasks")
            facts.add(event_id, event)  # type: ignore[arg-type]
        return facts


_packed: Final = msgspec.msgpack.Encoder().encode
_unpacked: Final = msgspec.msgpack.Decoder(tuple[int, list[tuple[tuple[int, str, int, int], int, list[Any]]]]).decode
_PACKED_HEAD: Final = b"\x92"  # an array of two; in CBOR it begins with 0x82


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if type(value) is list else value


def to_travel(row: bytes) -> bytes:
    """What a peer may be sent in place of a row of this node's disk.

    Raises:
        CorruptLogError: If the row is none.
    """
    return Facts.unpack(row).to_row() if row.startswith(_PACKED_HEAD) else row


def _checked_id(plain: Any) -> EventId:
    if type(plain) is not tuple or tuple(map(type, plain)) != _ID_TYPES or min(plain[0], *plain[2:]) < 0:
        raise ValueError("an event id is (stamp, writer, number, index)")
    return EventId(plain[0], checked_writer(plain[1]), plain[2], plain[3])


def _inserted(pairs: tuple[Any, ...], event_id: EventId, event: Any) -> tuple[Any, ...] | None:
    """`pairs` with (id, event) in its place; None when the id is there already."""
    if not pairs or pairs[-1][0] < event_id:
        return (*pairs, (event_id, event))
    at = bisect_left(pairs, event_id, key=_by_id)
    if pairs[at][0] == event_id:
        return None
    return (*pairs[:at], (event_id, event), *pairs[at:])
