"""Updates of a Yjs text, read strictly before pycrdt sees them.

What pycrdt does with bytes that are not what an honest peer sends is not defined: nesting ends the
process, text that is not UTF-8 is trusted, a range of deletions ahead of the history deletes what
its writer will say next, and what refers to the unknown waits for ever, invisibly
(docs/decisions/0003-what-pycrdt-is-for.md). So only the part of the format that a plain text needs
is read here, every length and every reference is checked against what is known, and what was
read must encode to the very bytes that came.

The format is lib0's and Yjs's update v1: `Y.encodeStateAsUpdate`, src/utils/encoding.js and
src/structs/Item.js in yjs 13.6, yrs/src/update.rs in yrs 0.27. Clocks count UTF-16 code units.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

ROOT: Final = "t"  # the name of the one text in a document
CLOCK_MAX: Final = 1 << 31  # of one writer: yrs computes offsets in 32 bits with a sign
CLIENT_MAX: Final = 1 << 53  # client ids are integers that JavaScript can hold

# yrs splits a run of text at any code unit, and a surrogate pair that is split leaves it with a history
# that it cannot read back. So no text in here has any; documents.py spells such characters as two.
LAST: Final = "\uffff"

NOTHING: Final = b"\0\0"  # the update that changes nothing

_DELETED: Final = 1
_STRING: Final = 4
_HAS_LEFT: Final = 0x80
_HAS_RIGHT: Final = 0x40

Place = tuple[int, int]  # client, clock


class Item(NamedTuple):
    """A run of text, or of text that is gone. In the middle of the text it names its neighbours
    when it was written, at the very start of an empty one the root."""

    left: Place | None
    right: Place | None
    text: str | None  # None when deleted
    length: int  # UTF-16 code units, here also characters


class TextUpdate(NamedTuple):
    items: tuple[tuple[int, int, tuple[Item, ...]], ...]  # client, first clock, its items, in the order of the bytes
    deleted: tuple[tuple[int, tuple[Place, ...]], ...]  # client, its ranges as (clock, length)

    def ends(self) -> dict[int, int]:
        """The clock after the last item, per client."""
        return {client: first + sum(item.length for item in items) for client, first, items in self.items}


def parse(data: bytes) -> TextUpdate:
    """Read an update that holds nothing but text.

    Raises:
        ValueError: If it is anything else. The message says what.
    """
    reader = _Reader(data)
    items = tuple(_section(reader) for _ in range(reader.count()))
    deleted = tuple(
        (reader.integer(CLIENT_MAX), tuple((reader.integer(), reader.integer()) for _ in range(reader.count())))
        for _ in range(reader.count())
    )
    update = TextUpdate(items, deleted)
    for clients in ([client for client, _, _ in items], [client for client, _ in deleted]):
        if len(set(clients)) < len(clients):
            raise ValueError("a client has two sections")
    # Longer forms of a number, and whatever else two readers could take for different things.
    if encode(update) != data:
        raise ValueError("not in the form that Yjs writes")
    return update


def check_update(update: TextUpdate, client: int, known: Mapping[int, int]) -> bool:
    """Whether `update`, as one writer sends it, is news to a text that has `known` clocks.

    Raises:
        ValueError: If it is not what the writer with this client id can have sent next.
    """
    if any(other != client for other, _, _ in update.items):
        raise ValueError("it writes in another writer's name")
    ends = dict(known)
    for _, first, items in update.items:
        end = first + sum(item.length for item in items)
        if end <= known.get(client, 0):
            return False  # applied before
        if first != known.get(client, 0):
            raise ValueError(f"its text starts at {first}, after {known.get(client, 0)} are known")
        if any(item.text is None for item in items):
            raise ValueError("it writes what is deleted already")
        _check_items(client, first, items, ends)
    _check_deleted(update, ends)
    return True


def check_state(update: TextUpdate) -> None:
    """Raises ValueError if `update` is not the whole of a text's history."""
    ends = update.ends()
    for client, first, items in update.items:
        if first != 0:
            raise ValueError(f"the history of client {client} starts at {first}")
        _check_items(client, first, items, dict(ends))
    _check_deleted(update, ends)


def _check_items(client: int, first: int, items: tuple[Item, ...], ends: dict[int, int]) -> None:
    """Every neighbour is there: anywhere in `ends`, and of the same client before the item itself."""
    ends[client] = first
    for item in items:
        for place in (item.left, item.right):
            if place is not None and place[1] >= ends.get(place[0], 0):
                raise ValueError(f"it refers to {place}, which is not known")
        ends[client] += item.length
        if ends[client] > CLOCK_MAX:
            raise ValueError("a writer's text history is too long")


def _check_deleted(update: TextUpdate, ends: Mapping[int, int]) -> None:
    for client, ranges in update.deleted:
        for clock, length in ranges:
            if length == 0 or clock + length > ends.get(client, 0):
                raise ValueError(f"it deletes {length} from {clock} of client {client}, which are not known")


def parse_clocks(data: bytes) -> dict[int, int]:
    """Read a Yjs state vector: how much is known of each client. Raises ValueError."""
    reader = _Reader(data)
    return {reader.integer(CLIENT_MAX): reader.integer() for _ in range(reader.count())}


def encode(update: TextUpdate) -> bytes:
    """Inverse of `parse`."""
    out = bytearray()
    _put(out, len(update.items))
    for client, first, items in update.items:
        for number in (len(items), client, first):
            _put(out, number)
        for item in items:
            _put_item(out, item)
    _put(out, len(update.deleted))
    for client, ranges in update.deleted:
        for number in (client, len(ranges), *(number for place in ranges for number in place)):
            _put(out, number)
    return bytes(out)


def _put_item(out: bytearray, item: Item) -> None:
    kind = _DELETED if item.text is None else _STRING
    out.append(kind | (_HAS_LEFT if item.left else 0) | (_HAS_RIGHT if item.right else 0))
    for place in (item.left, item.right):
        if place is not None:
            _put(out, place[0])
            _put(out, place[1])
    if item.left is None and item.right is None:
        _put(out, 1)
        _put_text(out, ROOT)
    if item.text is None:
        _put(out, item.length)
    else:
        _put_text(out, item.text)


def _put(out: bytearray, number: int) -> None:
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)


def _put_text(out: bytearray, text: str) -> None:
    data = text.encode()
    _put(out, len(data))
    out += data


def _section(reader: _Reader) -> tuple[int, int, tuple[Item, ...]]:
    count = reader.count()
    client, first = reader.integer(CLIENT_MAX), reader.integer()
    if count == 0:
        raise ValueError("a section without items")
    return client, first, tuple(_item(reader) for _ in range(count))


def _item(reader: _Reader) -> Item:
    info = reader.byte()
    kind = info & ~(_HAS_LEFT | _HAS_RIGHT)
    if kind not in (_DELETED, _STRING):
        raise ValueError(f"it holds something of kind {kind}, and no text")
    left = (reader.integer(CLIENT_MAX), reader.integer()) if info & _HAS_LEFT else None
    right = (reader.integer(CLIENT_MAX), reader.integer()) if info & _HAS_RIGHT else None
    if left is None and right is None and (reader.integer() != 1 or reader.text() != ROOT):
        raise ValueError("it writes outside the text")
    if kind == _DELETED:
        text, length = None, reader.integer()
    else:
        text = reader.text()
        length = len(text)
        if not text.isascii() and max(text) > LAST:
            raise ValueError("it holds a character that takes two code units")
    if length == 0:
        raise ValueError("an item without length")
    return Item(left, right, text, length)


class _Reader:
    """Reads lib0's numbers and strings. Raises ValueError at the end of the data."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def byte(self) -> int:
        if self._at >= len(self._data):
            raise ValueError("it ends too early")
        self._at += 1
        return self._data[self._at - 1]

    def integer(self, limit: int = CLOCK_MAX) -> int:
        number = shift = 0
        while (byte := self.byte()) & 0x80:
            number |= (byte & 0x7F) << shift
            shift += 7
            if number > limit or shift > 63:
                raise ValueError(f"a number is beyond {limit}")
        number |= byte << shift
        if number > limit:
            raise ValueError(f"a number is beyond {limit}")
        return number

    def count(self) -> int:
        """A number of things that follow, each of at least one byte."""
        number = self.integer()
        if number > len(self._data) - self._at:
            raise ValueError("it ends too early")
        return number

    def text(self) -> str:
        length = self.count()
        self._at += length
        return self._data[self._at - length : self._at].decode()  # UnicodeDecodeError is a ValueError
