"""`DocumentShelf`: the documents that one replica holds, a task's own and shared ones.

A document maps keys to values that several regions may write at once. What travels in a
`DocumentUpdated` event is our list of operations (`document_state`), resolved by the order of the
cluster. pycrdt holds the text among them, where regions write into the middle of one another's
sentences, and nothing else; docs/decisions/0003-what-pycrdt-is-for.md says why. Values cross every
border as canonical CBOR bytes and are never looked at here, so they come back as what was put in.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeAlias

import pycrdt

from crdtsync import text_update
from crdtsync.document_state import (
    ADD,
    APPEND,
    DELETE,
    KEY_BYTES_MAX,
    SET,
    TEXT,
    TOTAL_MAX,
    UPDATE_BYTES_MAX,
    DocumentState,
    Entry,
    Op,
    decode_ops,
    encode_ops,
)
from crdtsync.effects import DocumentRow
from crdtsync.errors import InvalidRequestError, PayloadTooLargeError, RemoteProtocolError
from crdtsync.identifiers import Domain, EventId, WriterId
from crdtsync.protocol.codec import decode_value, encode_value

DocumentKey: TypeAlias = tuple[Domain, bytes, str]  # the task is b"" for a shared document

# A region accepts no edit that takes its copy beyond this. Regions that are cut off from each other
# each count what they see, so n of them can reach n times as much; so can joins, which are not edits. Equal to
# UPDATE_BYTES_MAX, so no update that fits is void for its size.
DOCUMENT_BYTES_MAX: Final = UPDATE_BYTES_MAX
STATE_BYTES_MAX: Final = 64 * DOCUMENT_BYTES_MAX  # of a state that is read back or joined
QUARANTINED_MAX: Final = 1_000  # documents whose damage is remembered
TEXT_LOG_MAX: Final = 64  # updates of a text kept one by one until they are saved as one


class Splice(NamedTuple):
    """A change of a text, counted in characters of its content here: from `at` on, `delete`
    characters go and `insert` comes. `at` may be `END`."""

    at: int
    delete: int
    insert: str


END: Final = -1


class DocumentShelf:
    """All documents of one replica.

    Args:
        writer: Who edits here.
    """

    def __init__(self, writer: WriterId) -> None:
        self._writer = writer
        self._documents: dict[DocumentKey, DocumentState] = {}
        self._dirty: dict[DocumentKey, None] = {}
        self.quarantined: dict[DocumentKey, str] = {}  # what could not be applied to it, in words

    # Editing -----------------------------------------------------------------------------------

    def edit(
        self,
        key: DocumentKey,
        entries: Mapping[str, bytes | None],
        *,
        add: Mapping[str, int] | None = None,
        append: Mapping[str, bytes] | None = None,
        text: Mapping[str, Splice] | None = None,
    ) -> bytes:
        """The update that makes these changes: write it as a `DocumentUpdated`, and then `apply` it.
        Nothing is changed here yet.

        Args:
            key: Which document.
            entries: Values to set, canonical CBOR; None deletes.
            add: Amounts to add to numbers; what several regions add is summed.
            append: Items to append to lists, canonical CBOR; what several regions append is kept,
                in the order of the cluster.
            text: Changes of texts; what several regions write is merged character by character.

        Raises:
            InvalidRequestError: A key is empty, too long, or named twice; a value is not CBOR; a
                change reaches beyond the text, or holds characters U+E000 to U+E7FF.
            PayloadTooLargeError: The document or the update would grow beyond its limit.
        """
        add, append = add or {}, append or {}
        ops = [
            Op(DELETE, name) if data is None else Op(SET, name, content=data) for name, data in sorted(entries.items())
        ]
        ops += [Op(ADD, name, self._base(key, name), amount) for name, amount in sorted(add.items())]
        ops += [Op(APPEND, name, self._base(key, name), data) for name, data in sorted(append.items())]
        ops += [self._text_op(key, name, splice) for name, splice in sorted((text or {}).items())]
        for op in ops:
            _check(op)
        if len({op.key for op in ops}) < len(ops):
            raise InvalidRequestError("an edit changes each entry of a document once")
        update = encode_ops(ops)
        document = self._documents.get(key)
        size = len(update) + (0 if document is None else document.size_max)
        if document is not None and size > DOCUMENT_BYTES_MAX:
            size = len(update) + len(document.encode())  # exact, and only now, since it costs the whole document
        if size > DOCUMENT_BYTES_MAX:
            raise _too_large(size)
        return update

    def _base(self, key: DocumentKey, name: str) -> Any:
        document = self._documents.get(key)
        entry = None if document is None else document.entries.get(name)
        return () if entry is None else entry.write

    def _text_op(self, key: DocumentKey, name: str, splice: Splice) -> Op:
        document = self._documents.get(key)
        entry = None if document is None else document.entries.get(name)
        found = None if entry is None else entry.visible.text
        current = found if isinstance(found, _Text) else _Text()
        return Op(TEXT, name, self._base(key, name), current.splice(self._writer, name, splice))

    # Learning ----------------------------------------------------------------------------------

    def apply(self, key: DocumentKey, event: EventId, update: bytes) -> None:
        """Let one update, ours or foreign, take effect. Applying it again is harmless.

        Call for each writer's events in their order. An update that is not valid is void, here as
        on every replica, and noted in `quarantined`.
        """
        try:
            ops = decode_ops(update)
        except RemoteProtocolError as error:
            self._quarantine(key, f"update {event} is void: {error}")
            return
        try:
            self._document(key).apply(event, ops)
        except ValueError as error:
            self._quarantine(key, f"part of update {event} is void: {error}")
        self._dirty[key] = None

    def join(self, key: DocumentKey, state: bytes) -> None:
        """Take in what a peer's state of a document holds.

        Raises:
            RemoteProtocolError: It is not a document's state.
        """
        if state:
            self._document(key).join(state, bytes_max=STATE_BYTES_MAX)
            self._dirty[key] = None

    def restore(self, key: DocumentKey, state: bytes) -> None:
        """Take a document from the disk. One that cannot be read is left out, and noted."""
        try:
            if state:
                self._document(key).join(state, bytes_max=STATE_BYTES_MAX)
        except RemoteProtocolError as error:
            self._quarantine(key, f"cannot be read back: {error}")

    def _document(self, key: DocumentKey) -> DocumentState:
        document = self._documents.get(key)
        if document is None:
            document = self._documents[key] = DocumentState(_Text)
        return document

    def _quarantine(self, key: DocumentKey, reason: str) -> None:
        if len(self.quarantined) < QUARANTINED_MAX:
            self.quarantined.setdefault(key, reason)

    # Reading -----------------------------------------------------------------------------------

    def value(self, key: DocumentKey) -> dict[str, Any]:
        """The entries, decoded. Empty for a document that does not exist."""
        document = self._documents.get(key)
        return {} if document is None else _values(document)

    def state(self, key: DocumentKey) -> bytes:
        """The whole document for a worker (`read_entries`), the disk or a peer; b"" when there is none."""
        document = self._documents.get(key)
        return b"" if document is None else document.encode()

    def fingerprint(self, key: DocumentKey) -> bytes:
        """16 bytes that are equal on replicas that applied the same updates."""
        document = self._documents.get(key)
        state = b"" if document is None else document.encode(summary=True)
        return hashlib.blake2b(state, digest_size=16).digest()

    def keys(self, domain: Domain) -> list[DocumentKey]:
        return sorted(key for key in self._documents if key[0] == domain)

    # Storing -----------------------------------------------------------------------------------

    @property
    def dirty(self) -> bool:
        """Whether any document changed since the last `take_dirty`."""
        return bool(self._dirty)

    def take_dirty(self, domain: Domain) -> list[DocumentRow]:
        """The rows of changed documents, to be stored with the next batch."""
        keys = sorted(key for key in self._dirty if key[0] == domain)
        for key in keys:
            del self._dirty[key]
        return [DocumentRow(*key, self.state(key)) for key in keys]

    def rows(self, domain: Domain) -> list[DocumentRow]:
        """All documents, for a snapshot."""
        return [DocumentRow(*key, self.state(key)) for key in self.keys(domain)]


def read_entries(state: bytes) -> dict[str, bytes]:
    """The entries of a document's state, each as canonical CBOR: what a worker sees of it.

    Raises:
        RemoteProtocolError: If it is not a document's state.
    """
    document = DocumentState(_Text)
    if state:
        document.join(state, bytes_max=STATE_BYTES_MAX)
    return {
        key: entry.value if entry.value is not None and not entry.content else encode_value(_value(entry))
        for key, entry in sorted(document.entries.items())
        if entry.present
    }


def _values(document: DocumentState) -> dict[str, Any]:
    return {key: _value(entry) for key, entry in sorted(document.entries.items()) if entry.present}


def _value(entry: Entry) -> Any:
    """What an entry shows: its write, with what was put on top. Text hides items, items hide amounts."""
    parts = entry.visible
    start = None if entry.value is None else _decoded(entry.value)
    if parts.text is not None:
        return parts.text.content()
    if parts.items:
        first = start if isinstance(start, list) else [] if entry.value is None else [start]
        return first + [_decoded(item) for _, item in sorted(parts.items.items())]
    if parts.added:
        number = start if isinstance(start, (int, float)) and not isinstance(start, bool) else 0
        return number + sum(total for _, _, total in parts.added.values())
    return start


def _decoded(data: bytes) -> Any:
    """A value; as raw bytes when a writer that checked less than we do put in what is no value."""
    try:
        return decode_value(data)
    except RemoteProtocolError:
        return data


def _too_large(size: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"the document would have {size} bytes, the limit is {DOCUMENT_BYTES_MAX}; keep large data in a store",
        size=size,
        limit=DOCUMENT_BYTES_MAX,
    )


def _check(op: Op) -> None:
    if not 0 < len(op.key.encode(errors="replace")) <= KEY_BYTES_MAX:
        raise InvalidRequestError(f"a document's key has 1 to {KEY_BYTES_MAX} bytes: {op.key[:40]!r}")
    if op.kind in (SET, APPEND):
        if len(op.content) > DOCUMENT_BYTES_MAX:
            raise _too_large(len(op.content))
        try:
            decode_value(op.content, bytes_max=DOCUMENT_BYTES_MAX)
        except RemoteProtocolError as error:
            raise InvalidRequestError(f"entry {op.key!r} is not a value: {error}") from error
    elif op.kind == ADD and abs(op.content) > TOTAL_MAX:
        raise InvalidRequestError(f"entry {op.key!r}: {op.content} is too much to add at once")


# Text --------------------------------------------------------------------------------------------


class _Text:
    """One text in a pycrdt document of its own, fed only with what `text_update` has checked.

    pycrdt undoes nothing when it fails in the middle, so what it was fed is kept beside it and it
    is built again from that.
    """

    def __init__(self) -> None:
        self._doc, self._text = _empty()
        self._known: dict[int, int] = {}  # client id: how many code units of it are known
        self._saved = b""
        self._since: list[bytes] = []

    def apply(self, writer: str, data: bytes) -> None:
        update = text_update.parse(data)
        if text_update.check_update(update, client_id(writer), self._known):
            self._feed(data, {**self._known, **update.ends()})

    def join(self, state: bytes) -> None:
        update = text_update.parse(state)
        text_update.check_state(update)
        known = dict(self._known)
        for client, end in update.ends().items():
            known[client] = max(end, known.get(client, 0))
        self._feed(state, known)

    def _feed(self, data: bytes, known: dict[int, int]) -> None:
        try:
            self._doc.apply_update(data)
            sound = text_update.parse_clocks(self._doc.get_state()) == known
        except BaseException as error:
            # A panic in Rust is a BaseException so that nobody swallows it by chance. It is about
            # this document alone, which is thrown away here.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            self._rebuild()
            raise ValueError(f"pycrdt: {error}") from error
        if not sound:  # something refers to itself in a circle, and would wait for ever
            self._rebuild()
            raise ValueError("it holds what can never be placed")
        self._known = known
        self._since.append(data)
        if len(self._since) > TEXT_LOG_MAX:
            self.state()

    def _rebuild(self) -> None:
        self._doc, self._text = _empty()
        for data in (self._saved, *self._since):
            if data:
                self._doc.apply_update(data)

    def state(self) -> bytes:
        if self._since:
            self._saved = self._doc.get_update()
            self._since.clear()
        return self._saved

    def summary(self) -> bytes:
        clocks = ",".join(f"{client}:{clock}" for client, clock in sorted(self._known.items()))
        return f"{clocks}\n{self._text}".encode()

    def content(self) -> str:
        return _unspell(str(self._text))

    def splice(self, writer: WriterId, name: str, splice: Splice) -> bytes:
        """The update by which `writer` makes a change. The text itself stays as it is."""
        content = self.content()
        at = len(content) if splice.at == END else splice.at
        if not (0 <= at <= at + splice.delete <= len(content)):
            raise InvalidRequestError(f"text {name!r} has {len(content)} characters: no {splice.delete} can go at {at}")
        insert = _spell(name, splice.insert)
        # pycrdt counts bytes of UTF-8, and does not see when a count ends inside a character.
        start = len(_spell(name, content[:at]).encode())
        end = start + len(_spell(name, content[at : at + splice.delete]).encode())
        doc, text = _empty(client_id(writer))
        if state := self.state():
            doc.apply_update(state)
        updates: list[bytes] = []
        subscription = doc.observe(lambda event: updates.append(event.update))
        with doc.transaction():
            if end > start:
                del text[start:end]
            if insert:
                text.insert(start, insert)
        doc.unobserve(subscription)
        return updates[0] if updates else text_update.NOTHING


def client_id(writer: str) -> int:
    """The pycrdt client id of a writer: 53 bits of a hash, so that every replica derives it.

    An incarnation writes under its own id and never again under it, as pycrdt needs: two
    histories under one id diverge in silence. Two writers of one text share an id with a
    probability of 1 in 9e15; the later one's text is then void.
    """
    return int.from_bytes(hashlib.blake2b(writer.encode(), digest_size=8).digest()) >> 11


def _empty(client: int = 0) -> tuple[pycrdt.Doc[pycrdt.Text], pycrdt.Text]:
    doc: pycrdt.Doc[pycrdt.Text] = pycrdt.Doc(client_id=client)
    return doc, doc.get(text_update.ROOT, type=pycrdt.Text)


# Characters beyond U+FFFF are spelled as two private ones, see text_update.LAST.
_ASTRAL: Final = re.compile("[\U00010000-\U0010ffff]")
_SPELLED: Final = re.compile("([\ue000-\ue3ff])([\ue400-\ue7ff])|[\ue000-\ue7ff]")


def _spell(name: str, text: str) -> str:
    if text.isascii():
        return text
    if _SPELLED.search(text):
        raise InvalidRequestError(f"text {name!r} cannot hold the private characters U+E000 to U+E7FF")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRequestError(f"text {name!r} cannot hold half a surrogate pair")

    def halves(match: re.Match[str]) -> str:
        number = ord(match[0]) - 0x10000
        return chr(0xE000 + (number >> 10)) + chr(0xE400 + (number & 0x3FF))

    return _ASTRAL.sub(halves, text)


def _unspell(text: str) -> str:
    if text.isascii():
        return text

    def whole(match: re.Match[str]) -> str:
        if match[1] is None:
            return "\ufffd"  # half a character: no honest writer makes one
        return chr(0x10000 + (ord(match[1]) - 0xE000 << 10) + ord(match[2]) - 0xE400)

    return _SPELLED.sub(whole, text)
