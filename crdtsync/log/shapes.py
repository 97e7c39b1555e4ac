"""From decoded CBOR to events: every field checked, down to its last element.

An event that passes here has the exact types and ranges that `events.py` promises, so that nothing behind it checks
again. Checks look at the form alone, never at state: what one replica accepts every replica accepts, for ever.
A new meaning needs a new kind, not a wider check.

Written for speed, since each event on its way in passes: one set look-up checks the flat types of a whole event, then a
function per kind checks ranges and what is nested. Names of writers and regions and the options of a task repeat, so
equal ones are checked once and share one object.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, Never

from crdtsync.errors import RemoteProtocolError
from crdtsync.events import (
    KIND_OF,
    SIGNATURES,
    CancelRequested,
    Checkpointed,
    Claimed,
    Decided,
    Declared,
    DocumentUpdated,
    EffectRecorded,
    Ended,
    Event,
    Expired,
    FinalHeads,
    Inherited,
    LabelEdited,
    LimitSet,
    MembersChanged,
    Offered,
    Options,
    PriorityEdited,
    Reissued,
    Requeued,
    RightsBurned,
    RightsInherited,
    RightsMinted,
    RightsMoved,
    Submitted,
    TermOpened,
    Unknown,
    Withdrawn,
    WriterOpened,
)
from crdtsync.identifiers import TASK_ID_BYTES, EventId, RegionId, WriterId, is_region, is_writer
from crdtsync.protocol.codec import check_plain

INT_BITS: Final = 53  # counts and milliseconds: exact in every JSON reader
STAMP_BITS: Final = 63  # SQLite's integers have a sign
INDEX_BITS: Final = 20  # more events than a commit can hold
KIND_BITS: Final = 16
PRIORITY_MAX: Final = 9
NAMES_CACHED: Final = 8_192  # writers and regions; each incarnation is a writer
OPTIONS_CACHED: Final = 4_096  # distinct options of tasks: some per declared task and version

PARTITIONS: Final = frozenset(("wait", "takeover", "quorum", "quorum:task"))
CANCELS: Final = frozenset(("wins", "loses"))
OUTCOMES: Final = frozenset(("ok", "failed", "lost"))
OFFER_REASONS: Final = frozenset(("drain", "unserved"))
MEMBER_CHANGES: Final = frozenset(("add", "admit", "forget"))
URL_CHARS_MAX: Final = 2_048
LIMIT_TARGETS: Final = ("queue:", "task:", "key:")
LIMIT_KINDS: Final = frozenset(("concurrency", "rate"))
LIMIT_SCOPES: Final = frozenset(("region", "global", "none"))
LIMIT_ID_BYTES: Final = 16

_EVENT_ID: Final = (int, str, int, int)
_OPTIONS: Final = (str, int, int, int, int, int, str, str, int, int, int, tuple)
_LABEL: Final = (str, str)
_PARENT: Final = (bytes, bool)
_INPUT: Final = (bytes, tuple)
_UNDOES: Final = (bytes, tuple, bytes)
_HEAD: Final = (str, int)
_PLACE: Final = (int, int)

_new: Final[Callable[..., Any]] = tuple.__new__  # a named tuple of checked fields, without another call in Python


def _bad(what: str) -> Never:
    raise RemoteProtocolError(f"malformed event: {what}")


@lru_cache(maxsize=NAMES_CACHED)
def checked_writer(text: str) -> WriterId:
    """`text` itself, one object for all equal ones. Raises RemoteProtocolError."""
    if not is_writer(text):
        _bad(f"{text[:80]!r} is not a writer")
    return WriterId(text)


@lru_cache(maxsize=NAMES_CACHED)
def checked_region(text: str) -> RegionId:
    """`text` itself, one object for all equal ones. Raises RemoteProtocolError."""
    if not is_region(text):
        _bad(f"{text[:80]!r} is not a region")
    return RegionId(text)


def checked_event_id(plain: Any) -> EventId:
    """An id as it stands in an event. Raises RemoteProtocolError."""
    if type(plain) is not tuple or tuple(map(type, plain)) != _EVENT_ID:
        _bad("an event id is (stamp, writer, number, index)")
    stamp, writer, number, index = plain
    if stamp >> STAMP_BITS or number >> INT_BITS or number == 0 or index >> INDEX_BITS:
        _bad(f"no event can have the id {plain!r}")
    event_id: EventId = _new(EventId, (stamp, checked_writer(writer), number, index))
    return event_id


# Only reached with the exact types checked: as keys of a cache, True would pass for 1.
@lru_cache(maxsize=OPTIONS_CACHED)
def _options_of(plain: tuple[Any, ...]) -> Options:
    options = Options(*plain)
    if options.partition not in PARTITIONS or options.cancel not in CANCELS:
        _bad(f"no such policy: {options.partition!r}, {options.cancel!r}")
    numbers = [value for value in options if type(value) is int]
    if any(number >> INT_BITS for number in numbers):
        _bad("a number in the options is negative or too large")
    return options


def _options(plain: tuple[Any, ...]) -> Options:
    if tuple(map(type, plain)) != _OPTIONS:
        _bad("options have other fields")
    if any(type(name) is not str for name in plain[11]):
        _bad("non-retryable errors are named by text")
    return _options_of(plain)


def _event_ids(plain: tuple[Any, ...]) -> tuple[EventId, ...]:
    return tuple(map(checked_event_id, plain))


def _pairs(plain: tuple[Any, ...], shape: tuple[type, ...], what: str) -> None:
    for pair in plain:
        if type(pair) is not tuple or tuple(map(type, pair)) != shape:
            _bad(what)


def _labels(plain: tuple[Any, ...]) -> None:
    _pairs(plain, _LABEL, "labels are (label, value) pairs")
    labels = [label for label, _ in plain]
    if any(labels[i] >= labels[i + 1] for i in range(len(labels) - 1)):
        _bad("labels are sorted, each once")


def _parents(plain: tuple[Any, ...]) -> None:
    _pairs(plain, _PARENT, "parents are (task, settled) pairs")
    if any(len(task) != TASK_ID_BYTES for task, _ in plain):
        _bad("a parent is not a task id")


def _inputs(plain: tuple[Any, ...]) -> tuple[Any, ...]:
    _pairs(plain, _INPUT, "inputs are (task, attempt) pairs")
    if any(len(task) != TASK_ID_BYTES for task, _ in plain):
        _bad("an input is not of a task id")
    return tuple((task, checked_event_id(attempt)) for task, attempt in plain)


def _undoes(plain: tuple[Any, ...]) -> tuple[Any, ...]:
    if tuple(map(type, plain)) != _UNDOES or len(plain[0]) != TASK_ID_BYTES:
        _bad("what is undone is (task, attempt, effect key)")
    return (plain[0], checked_event_id(plain[1]), plain[2])


def _task(task: bytes) -> None:
    if len(task) != TASK_ID_BYTES:
        _bad(f"a task id has {TASK_ID_BYTES} bytes, this one {len(task)}")


# One function per kind. `e` is the whole event, its kind first, its flat types checked.


def _submitted(e: Any) -> Event:
    (_, task, name, payload, owner, queue, priority, not_before_ms, deadline_ms, key, generation, labels, after, undoes,
     linked, options) = e  # fmt: skip
    _task(task)
    if not 0 <= priority <= PRIORITY_MAX or (not_before_ms | deadline_ms | generation) >> INT_BITS or not name:
        _bad("a submission's numbers are out of range, or it has no name")
    if labels:
        _labels(labels)
    if after:
        _parents(after)
    if linked is not None:
        _task(linked)
    if undoes is not None:
        undoes = _undoes(undoes)
    owner = checked_region(owner)
    fields = (task, name, payload, owner, queue, priority, not_before_ms, deadline_ms, key, generation, labels, after)
    event: Submitted = _new(Submitted, (*fields, undoes, linked, _options(options)))
    return event


def _term_opened(e: Any) -> Event:
    _, task, term, offer = e
    _task(task)
    if term >> INT_BITS:
        _bad("no such term")
    return TermOpened(task, term, None if offer is None else checked_event_id(offer))


def _offered(e: Any) -> Event:
    _, task, term, region, reason = e
    _task(task)
    if term >> INT_BITS or reason not in OFFER_REASONS:
        _bad(f"no such term or reason of an offer: {term}, {reason!r}")
    return Offered(task, term, checked_region(region), reason)


def _withdrawn(e: Any) -> Event:
    _, task, offer = e
    _task(task)
    return Withdrawn(task, checked_event_id(offer))


def _claimed(e: Any) -> Event:
    _, task, term, submission, continues, ended, relies, inputs, token = e
    _task(task)
    if term >> INT_BITS or token < 0:
        _bad("no such term or token")
    if continues is not None:
        continues = checked_event_id(continues)
    if relies:
        relies = _event_ids(relies)
    if inputs:
        inputs = _inputs(inputs)
    event: Claimed = _new(Claimed, (task, term, checked_event_id(submission), continues, ended, relies, inputs, token))
    return event


def _effect_recorded(e: Any) -> Event:
    _, task, attempt, name, key, result = e
    _task(task)
    event: EffectRecorded = _new(EffectRecorded, (task, checked_event_id(attempt), name, key, result))
    return event


def _checkpointed(e: Any) -> Event:
    _, task, attempt, index, data = e
    _task(task)
    if index >> INT_BITS:
        _bad("no such checkpoint")
    event: Checkpointed = _new(Checkpointed, (task, checked_event_id(attempt), index, data))
    return event


def _ended(e: Any) -> Event:
    _, task, attempt, outcome, late, retryable, reason, value = e
    _task(task)
    if outcome not in OUTCOMES:
        _bad(f"no such outcome: {outcome!r}")
    event: Ended = _new(Ended, (task, checked_event_id(attempt), outcome, late, retryable, reason, value))
    return event


def _cancel_requested(e: Any) -> Event:
    _task(e[1])
    return CancelRequested(*e[1:])


def _expired(e: Any) -> Event:
    _task(e[1])
    return Expired(*e[1:])


def _requeued(e: Any) -> Event:
    _, task, death = e
    _task(task)
    if death >> INT_BITS or not death:
        _bad("deaths count from 1")
    return Requeued(task, death)


def _priority_edited(e: Any) -> Event:
    _, task, priority, saw = e
    _task(task)
    if not 0 <= priority <= PRIORITY_MAX:
        _bad(f"priority {priority} is not within 0 and {PRIORITY_MAX}")
    return PriorityEdited(task, priority, None if saw is None else checked_event_id(saw))


def _label_edited(e: Any) -> Event:
    _, task, label, value, saw = e
    _task(task)
    return LabelEdited(task, label, value, None if saw is None else checked_event_id(saw))


def _document_updated(e: Any) -> Event:
    if e[1]:  # a shared document belongs to no task
        _task(e[1])
    return DocumentUpdated(*e[1:])


def _declared(e: Any) -> Event:
    _, name, app, queue, priority, options = e
    if not name:
        _bad("a declared task has a name")
    if not 0 <= priority <= PRIORITY_MAX:
        _bad("no such priority")
    return Declared(name, app, queue, priority, _options(options))


def _writer_opened(e: Any) -> Event:
    _, predecessor, number, features = e
    if number >> INT_BITS or features < 0:
        _bad("no such predecessor or features")
    return WriterOpened(checked_writer(predecessor) if predecessor else "", number, features)


def _regions(plain: tuple[Any, ...]) -> tuple[RegionId, ...]:
    if any(type(name) is not str for name in plain):
        _bad("regions are named by text")
    regions = tuple(map(checked_region, plain))
    if any(regions[i] >= regions[i + 1] for i in range(len(regions) - 1)):
        _bad("regions are sorted, each once")
    return regions


def _members_changed(e: Any) -> Event:
    _, epoch, version, founders, change, regions, url, stopped = e
    if (epoch | version) >> 31 or version < 2:
        _bad(f"no such epoch or version of the membership: {epoch}, {version}")
    if change not in MEMBER_CHANGES or not regions or len(url) > URL_CHARS_MAX:
        _bad(f"no such change of the membership: {change!r}")
    return MembersChanged(epoch, version, _regions(founders), change, _regions(regions), url, stopped)


def _final_heads(e: Any) -> Event:
    _, epoch, version, heads = e
    if (epoch | version) >> 31:
        _bad(f"no such epoch or version of the membership: {epoch}, {version}")
    _pairs(heads, _HEAD, "heads are (writer, number) pairs")
    if any(number >> INT_BITS or not number for _, number in heads):
        _bad("no commit has such a number")
    checked = tuple((checked_writer(writer), number) for writer, number in heads)
    if any(checked[i][0] >= checked[i + 1][0] for i in range(len(checked) - 1)):
        _bad("heads are sorted by writer, each once")
    return FinalHeads(epoch, version, checked)


def _inherited(e: Any) -> Event:
    _, task, term, region, version = e
    _task(task)
    if term >> INT_BITS or version >> 31:
        _bad("no such term, or version of the membership")
    return Inherited(task, term, checked_region(region), version)


def _limit(limit: bytes, amount: int = 1) -> None:
    if len(limit) != LIMIT_ID_BYTES or amount >> INT_BITS:
        _bad(f"a limit has an id of {LIMIT_ID_BYTES} bytes, and amounts are never negative")


def _limit_set(e: Any) -> Event:
    _, limit, target, kind, scope, amount, period_ms, origin, founders = e
    _limit(limit, amount)
    if not target.startswith(LIMIT_TARGETS) or kind not in LIMIT_KINDS or scope not in LIMIT_SCOPES:
        _bad(f"no such limit: {target[:80]!r}, {kind!r}, {scope!r}")
    if period_ms >> INT_BITS or (period_ms > 0) != (kind == "rate"):
        _bad("a rate has a period, and nothing else has")
    if not founders or any(type(founder) is not str for founder in founders):
        _bad("founders are regions")
    regions = tuple(map(checked_region, founders))
    if any(regions[i] >= regions[i + 1] for i in range(len(regions) - 1)):
        _bad("founders are sorted, each once")
    return LimitSet(limit, target, kind, scope, amount, period_ms, origin, regions)


def _rights_minted(e: Any) -> Event:
    _, limit, amount, saw = e
    _limit(limit, amount)
    return RightsMinted(limit, amount, checked_event_id(saw))


def _rights_moved(e: Any) -> Event:
    _, limit, to, amount = e
    _limit(limit, amount)
    return RightsMoved(limit, checked_writer(to), amount)


def _rights_burned(e: Any) -> Event:
    _limit(*e[1:])
    return RightsBurned(*e[1:])


def _rights_inherited(e: Any) -> Event:
    _, limit, region = e
    _limit(limit)
    return RightsInherited(limit, checked_region(region))


def _reissued(e: Any) -> Event:
    _, closed, first, last, late, tasks = e
    if not 0 < first <= last or last >> INT_BITS:
        _bad(f"no commits {first} to {last} can be re-issued")
    _pairs(late, _PLACE, "what is late is named by (number, index)")
    if any(not first <= number <= last or index >> INDEX_BITS for number, index in late):
        _bad("what is late is none of what is re-issued")
    if any(type(task) is not bytes or len(task) != TASK_ID_BYTES for task in tasks):
        _bad("what is re-issued touches tasks")
    for names in (late, tasks):
        if any(names[i] >= names[i + 1] for i in range(len(names) - 1)):
            _bad("what is late, and tasks, are sorted, each once")
    return Reissued(checked_writer(closed), first, last, late, tasks)


def _decided(e: Any) -> Event:
    _, task, attempt = e
    _task(task)
    return Decided(task, checked_event_id(attempt))


_CHECKS: Final[dict[int, Callable[[Any], Event]]] = {
    1: _submitted,
    2: _term_opened,
    3: _offered,
    4: _withdrawn,
    5: _claimed,
    6: _effect_recorded,
    7: _checkpointed,
    8: _ended,
    9: _cancel_requested,
    10: _expired,
    11: _requeued,
    12: _priority_edited,
    13: _label_edited,
    14: _document_updated,
    15: _declared,
    16: _writer_opened,
    17: _members_changed,
    18: _final_heads,
    19: _inherited,
    22: _limit_set,
    23: _rights_minted,
    24: _rights_moved,
    25: _rights_burned,
    26: _rights_inherited,
    27: _reissued,
    30: _decided,
}
assert _CHECKS.keys() == SIGNATURES.keys()  # no kind is let through unchecked

_BY_KIND: Final = {
    kind: (frozenset((int, *signature) for signature in SIGNATURES[kind]), check) for kind, check in _CHECKS.items()
}


def check_events(plain: Any) -> tuple[Event, ...]:
    """The events that a decoded array of arrays holds, checked and in their records.

    A kind that this version does not know becomes an `Unknown`, provided that it is plain.

    Raises:
        RemoteProtocolError: If one of them is malformed; the message says how.
    """
    if type(plain) is not tuple:
        _bad("events are an array")
    events: list[Event] = []
    append = events.append
    known = _BY_KIND
    for event in plain:
        if type(event) is not tuple or not event:
            _bad("an event is an array")
        entry = known.get(event[0]) if type(event[0]) is int else _bad("a kind is a number")
        if entry is None:
            append(_unknown(event))
        else:
            signatures, check = entry
            if tuple(map(type, event)) not in signatures:
                _bad(f"kind {event[0]} has other fields")
            append(check(event))
    return tuple(events)


def _unknown(event: tuple[Any, ...]) -> Unknown:
    if event[0] <= 0 or event[0] >> KIND_BITS:
        _bad(f"no kind has the number {event[0]}")
    check_plain(event)
    return Unknown(event[0], event[1:])


def plain_event(event: Event) -> tuple[Any, ...]:
    """The array `[kind, field, ...]` that stands for `event` in a commit."""
    if type(event) is Unknown:
        return (event.kind, *event.fields)
    return (KIND_OF[type(event)], *event)
