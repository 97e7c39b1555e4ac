"""What a document is: entries by key, written by any region at any time, joined without a referee.

Every change is an *operation* that is named by its place in the history (`OpId`), so a document is
a join-semilattice like a task's facts: applying an operation again, or joining the states of two
replicas that share some of their past, changes nothing more. It has to be, since rows are flushed
lazily and a snapshot runs ahead of the commits that its receiver still pulls.

An entry is a register with content on top of it:

- the register holds the greatest write (set or delete) in the order of the cluster: a write that
  saw another always beats it, and of concurrent ones the later stamp wins. The loser stays in the
  log. Losing a write is acceptable here because a key is one thing, and whoever wants both
  writes adds, appends, or uses two keys.
- added amounts, appended items and text are *based on* the write that their writer saw. They count
  as long as that write holds, all of them, whoever made them. A later set or delete starts afresh.

Limits are checked where a document is edited. A replica applies whatever other members accepted:
refusing it here and not elsewhere would let replicas differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from crdtsync.errors import RemoteProtocolError
from crdtsync.events import Plain
from crdtsync.identifiers import EventId, is_writer
from crdtsync.protocol import codec

OPS_VERSION: Final = 1
STATE_VERSION: Final = 1
KEY_BYTES_MAX: Final = 256
UPDATE_BYTES_MAX: Final = 1 << 20  # one `DocumentUpdated.update`; a larger one is void on every replica
OP_BYTES_MAX: Final = 256  # what an operation adds to a state at most, beside its key and content: ids and heads
TOTAL_MAX: Final = 1 << 62  # of the amounts that one writer adds; what would pass it is void

SET, DELETE, ADD, APPEND, TEXT = range(5)

# Stamp, writer, number and index of the event, and the operation's index in it. Greater is later.
# () is the base of content that was there before any write, and less than all.
OpId: TypeAlias = tuple[int, str, int, int, int] | tuple[()]


class Op(NamedTuple):
    """One operation. What else it holds depends on its kind: SET a value, ADD a base and an
    amount, APPEND a base and a value, TEXT a base and a piece of text history."""

    kind: int
    key: str
    base: OpId = ()
    content: Any = None


class Text(Protocol):
    """Text that several writers change at once (see documents.py)."""

    def apply(self, writer: str, data: bytes) -> None:
        """Raises ValueError if `data` is not what such a writer can have made; nothing is changed."""

    def join(self, state: bytes) -> None:
        """Raises ValueError if `state` is none; nothing is changed."""

    def state(self) -> bytes:
        """The whole history, for `join`. Not the same bytes on each replica."""

    def summary(self) -> bytes:
        """Equal on replicas that hold the same."""

    def content(self) -> str: ...


class Parts:
    """The content that was put on top of one write."""

    __slots__ = ("added", "items", "text")

    def __init__(self) -> None:
        self.added: dict[str, tuple[int, int, int]] = {}  # writer: its last event (number, index), its total
        self.items: dict[OpId, bytes] = {}
        self.text: Text | None = None


class Entry:
    """One key: the greatest write, and what was put on top of it."""

    __slots__ = ("content", "value", "write")

    def __init__(self) -> None:
        self.write: OpId = ()
        self.value: bytes | None = None  # None after a delete, or before any write
        self.content: dict[OpId, Parts] = {}

    def put(self, write: OpId, value: bytes | None) -> None:
        if write > self.write:
            self.write, self.value = write, value
            for base in [base for base in self.content if base < write]:
                del self.content[base]

    def parts(self, base: OpId) -> Parts | None:
        """Where content based on `base` goes; None when a later write has replaced it.

        A base that is not here yet is kept: causal order makes it impossible among honest writers,
        and among others replicas must not differ by who believed them.
        """
        return None if base < self.write else self.content.setdefault(base, Parts())

    @property
    def visible(self) -> Parts:
        return self.content.get(self.write) or Parts()

    @property
    def present(self) -> bool:
        return self.value is not None or self.write in self.content


class DocumentState:
    """All entries of one document. `new_text` makes an empty `Text`."""

    __slots__ = ("entries", "new_text", "size_max")

    def __init__(self, new_text: Callable[[], Text]) -> None:
        self.entries: dict[str, Entry] = {}
        self.new_text = new_text
        self.size_max = 0  # bytes that `encode` certainly stays below

    def apply(self, event: EventId, ops: Iterable[Op]) -> None:
        """Let the operations of one event take effect. Again is harmless.

        The events of one writer must come in their order (causal order gives that).

        Raises:
            ValueError: A piece of text is not valid; the operations before it took effect.
        """
        for index, op in enumerate(ops):
            self.size_max += (
                OP_BYTES_MAX + len(op.key) * 4 + (0 if isinstance(op.content, int | None) else len(op.content))
            )
            entry = self.entries.get(op.key)
            if entry is None:
                entry = self.entries[op.key] = Entry()
            place: OpId = (*event, index)
            if op.kind in (SET, DELETE):
                entry.put(place, op.content)
                continue
            parts = entry.parts(op.base)
            if parts is None:
                continue
            if op.kind == ADD:
                number, at, total = parts.added.get(event.writer, (0, -1, 0))
                if (number, at) < (event.number, event.index) and abs(total + op.content) <= TOTAL_MAX:
                    parts.added[event.writer] = (event.number, event.index, total + op.content)
            elif op.kind == APPEND:
                parts.items[place] = op.content
            else:
                parts.text = parts.text or self.new_text()
                parts.text.apply(event.writer, op.content)

    def join(self, state: bytes, *, bytes_max: int) -> None:
        """Take in all that another replica's state of this document holds.

        Raises:
            RemoteProtocolError: If it is no such state. Nothing of it was joined, unless it is a
                text inside it that is not valid.
        """
        self.size_max += len(state)
        for key, write, value, content in _state_from(codec.decode(state, bytes_max=bytes_max)):
            entry = self.entries.get(key)
            if entry is None:
                entry = self.entries[key] = Entry()
            entry.put(write, value)
            for base, added, items, text in content:
                parts = entry.parts(base)
                if parts is None:
                    continue
                for writer, last in added.items():
                    parts.added[writer] = max(last, parts.added.get(writer, last))
                parts.items.update(items)
                if text is not None:
                    parts.text = parts.text or self.new_text()
                    try:
                        parts.text.join(text)
                    except ValueError as error:
                        raise RemoteProtocolError(f"the text of entry {key!r} is not valid: {error}") from error

    def encode(self, *, summary: bool = False) -> bytes:
        """The state as bytes. With `summary`, equal states have equal bytes, which cannot be joined."""
        if not self.entries:
            return b""
        writers = sorted({place[1] for place in self._places() if place} | {w for p in self._parts() for w in p.added})
        index = {writer: number for number, writer in enumerate(writers)}

        def short(place: OpId) -> Plain:
            return (place[0], index[place[1]], *place[2:]) if place else ()

        entries = tuple(
            (
                key,
                short(entry.write),
                entry.value,
                tuple(
                    (
                        short(base),
                        tuple((index[writer], *last) for writer, last in sorted(parts.added.items())),
                        tuple((short(place), item) for place, item in sorted(parts.items.items())),
                        None if parts.text is None else parts.text.summary() if summary else parts.text.state(),
                    )
                    for base, parts in sorted(entry.content.items())
                ),
            )
            for key, entry in sorted(self.entries.items())
        )
        state = codec.encode((STATE_VERSION, tuple(writers), entries))
        if not summary:
            self.size_max = len(state)
        return state

    def _parts(self) -> Iterable[Parts]:
        return (parts for entry in self.entries.values() for parts in entry.content.values())

    def _places(self) -> Iterable[OpId]:
        for entry in self.entries.values():
            yield entry.write
            for base, parts in entry.content.items():
                yield base
                yield from parts.items


# Operations as bytes -----------------------------------------------------------------------------


def encode_ops(ops: Iterable[Op]) -> bytes:
    return codec.encode((OPS_VERSION, tuple(_FIELDS[op.kind](op) for op in ops)))


_FIELDS: Final[dict[int, Callable[[Op], Plain]]] = {
    SET: lambda op: (SET, op.key, op.content),
    DELETE: lambda op: (DELETE, op.key),
    ADD: lambda op: (ADD, op.key, op.base, op.content),
    APPEND: lambda op: (APPEND, op.key, op.base, op.content),
    TEXT: lambda op: (TEXT, op.key, op.base, op.content),
}
_CONTENT: Final = {ADD: int, APPEND: bytes, TEXT: bytes}


def decode_ops(update: bytes) -> tuple[Op, ...]:
    """Inverse of `encode_ops`, for bytes from anybody.

    Raises:
        RemoteProtocolError: If it is anything else. One operation per key and update, so that an
            operation's writer, number and index name it within its key.
    """
    plain = codec.decode(update, bytes_max=UPDATE_BYTES_MAX)
    match plain:
        case (int() as version, tuple() as fields) if type(version) is int and version == OPS_VERSION:
            ops = tuple(_op(item) for item in fields)
        case _:
            raise RemoteProtocolError("not a document update of this version")
    if len({op.key for op in ops}) < len(ops):
        raise RemoteProtocolError("a document update has two operations on one key")
    return ops


def _op(fields: Plain) -> Op:
    match fields:
        case (0, str() as key, bytes() as value) if type(fields[0]) is int:
            op = Op(SET, key, content=value)
        case (1, str() as key) if type(fields[0]) is int:
            op = Op(DELETE, key)
        case (int() as kind, str() as key, base, content) if (
            type(kind) is int and kind in _CONTENT and type(content) is _CONTENT[kind]
        ):
            op = Op(kind, key, _op_id(base), content)
        case _:
            raise RemoteProtocolError("not an operation on a document")
    if not 0 < len(key.encode()) <= KEY_BYTES_MAX:
        raise RemoteProtocolError(f"a document's key has 1 to {KEY_BYTES_MAX} bytes")
    return op


def _op_id(plain: Plain, writers: tuple[str, ...] | None = None) -> OpId:
    """`writers`: when given, all of them valid, the second field is an index into it."""
    if plain == () and type(plain) is tuple:
        return ()
    if type(plain) is not tuple or len(plain) != 5:
        raise RemoteProtocolError("not the name of an operation")
    stamp, writer, number, index, op = plain
    if writers is not None:
        writer = _writer(writers, writer)
    elif type(writer) is not str or not is_writer(writer):
        raise RemoteProtocolError("not the name of a writer")
    if type(stamp) is not int or type(number) is not int or type(index) is not int or type(op) is not int:
        raise RemoteProtocolError("not the name of an operation")
    return stamp, writer, number, index, op


def _writer(writers: tuple[str, ...], index: Any) -> str:
    if type(index) is not int or not 0 <= index < len(writers):
        raise RemoteProtocolError("not a writer of this document")
    return writers[index]


def _state_from(plain: Any) -> list[Any]:
    """The entries of an encoded state, every type checked."""
    try:
        version, writers, entries = plain
        if version != STATE_VERSION or any(type(w) is not str or not is_writer(w) for w in writers):
            raise RemoteProtocolError("not a document of this version")
        return [
            (_text(key), _op_id(write, writers), _bytes_or_none(value), [_content(each, writers) for each in content])
            for key, write, value, content in entries
        ]
    except (ValueError, TypeError, IndexError) as error:
        raise RemoteProtocolError(f"not a document: {error}") from error


def _content(
    plain: Any, writers: tuple[str, ...]
) -> tuple[OpId, dict[str, tuple[int, int, int]], dict[OpId, bytes], bytes | None]:
    base, added, items, text = plain
    totals = {
        _writer(writers, writer): (_int(number), _int(index), _int(total)) for writer, number, index, total in added
    }
    named = {_op_id(place, writers): _bytes(item) for place, item in items}
    return _op_id(base, writers), totals, named, _bytes_or_none(text)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError("text expected")
    return value


def _int(value: Any) -> int:
    if type(value) is not int or value < -TOTAL_MAX:
        raise TypeError("an integer expected")
    return value


def _bytes(value: Any) -> bytes:
    if type(value) is not bytes:
        raise TypeError("bytes expected")
    return value


def _bytes_or_none(value: Any) -> bytes | None:
    return None if value is None else _bytes(value)
