"""`DocumentShelf`: the documents that one replica holds, a task's own and shared ones.

A document maps keys to values that several regions may write at once. What travels in a
`DocumentUpdated` event is our list of operations (`document_state`), resolved by the order of the
cluster; docs/decisions/0003-what-pycrdt-is-for.md says why. Values cross every border as canonical
CBOR bytes and are never looked at here, so they come back as what was put in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from crdtsync.document_state import (
    ADD,
    APPEND,
    DELETE,
    KEY_BYTES_MAX,
    SET,
    TOTAL_MAX,
    UPDATE_BYTES_MAX,
    DocumentState,
    Entry,
    Op,
    Text,
    decode_ops,
    encode_ops,
)
from crdtsync.effects import DocumentRow
from crdtsync.errors import InvalidRequestError, PayloadTooLargeError, RemoteProtocolError
from crdtsync.identifiers import Domain, EventId, WriterId
from crdtsync.protocol.codec import decode_value, encode_value

DocumentKey: TypeAlias = tuple[Domain, bytes, str]  # the task is b"" for a shared document

# A region accepts no edit that takes its copy beyond this. Regions that are cut off from each other
# each count what they see, so n of them can reach n times as much; so can joins, which are not edits.
DOCUMENT_BYTES_MAX: Final = 1 << 20
STATE_BYTES_MAX: Final = 64 * DOCUMENT_BYTES_MAX  # of a state that is read back or joined
QUARANTINED_MAX: Final = 1_000  # documents whose damage is remembered


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
    ) -> bytes:
        """The update that makes these changes: write it as a `DocumentUpdated`, and then `apply` it.
        Nothing is changed here yet.

        Args:
            key: Which document.
            entries: Values to set, canonical CBOR; None deletes.
            add: Amounts to add to numbers; what several regions add is summed.
            append: Items to append to lists, canonical CBOR; what several regions append is kept,
                in the order of the cluster.

        Raises:
            InvalidRequestError: A key is empty, too long, or named twice; a value is not CBOR.
            PayloadTooLargeError: The document or the update would grow beyond its limit.
        """
        add, append = add or {}, append or {}
        ops = [
            Op(DELETE, name) if data is None else Op(SET, name, content=data) for name, data in sorted(entries.items())
        ]
        ops += [Op(ADD, name, self._base(key, name), amount) for name, amount in sorted(add.items())]
        ops += [Op(APPEND, name, self._base(key, name), data) for name, data in sorted(append.items())]
        for op in ops:
            _check(op)
        if len({op.key for op in ops}) < len(ops):
            raise InvalidRequestError("an edit changes each entry of a document once")
        update = encode_ops(ops)
        size = len(update) + len(self.state(key))
        if size > DOCUMENT_BYTES_MAX:
            raise PayloadTooLargeError(
                f"the document would have {size} bytes, the limit is {DOCUMENT_BYTES_MAX}; keep large data in a store",
                size=size,
                limit=DOCUMENT_BYTES_MAX,
            )
        return update

    def _base(self, key: DocumentKey, name: str) -> Any:
        document = self._documents.get(key)
        entry = None if document is None else document.entries.get(name)
        return () if entry is None else entry.write

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
            document = self._documents[key] = DocumentState(_no_text)
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
        return hashlib.blake2b(self.state(key), digest_size=16).digest()

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
    document = DocumentState(_no_text)
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


def _check(op: Op) -> None:
    if not 0 < len(op.key.encode(errors="replace")) <= KEY_BYTES_MAX:
        raise InvalidRequestError(f"a document's key has 1 to {KEY_BYTES_MAX} bytes: {op.key[:40]!r}")
    if op.kind in (SET, APPEND):
        try:
            decode_value(op.content, bytes_max=UPDATE_BYTES_MAX)
        except RemoteProtocolError as error:
            raise InvalidRequestError(f"entry {op.key!r} is not a value: {error}") from error
    elif op.kind == ADD and abs(op.content) > TOTAL_MAX:
        raise InvalidRequestError(f"entry {op.key!r}: {op.content} is too much to add at once")


def _no_text() -> Text:
    raise ValueError("text is not known to this version")
