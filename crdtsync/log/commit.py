"""Commits: the events that one writer made durable together, chained by hash.

On the wire and on disk a commit is one CBOR array

    [version, domain, writer, number, stamp, deps, previous, events, signature]

of plain values. Its hash is the SHA-256 of these bytes up to the signature, which is last for that reason: whoever has
the bytes has the hash without encoding anything again, and signing does not change it. `previous` is the hash of the
writer's commit before, so the last hash stands for everything that a writer ever said.

`deps` is what had changed, since the writer's previous commit, in the heads of the domain that the writer had applied:
sorted (writer, number, first 8 bytes of that commit's hash). Summed up along the chain they are the exact causal past.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Any, Final, NamedTuple

import cbor2

from crdtsync.effects import CommitRow
from crdtsync.errors import LocalProtocolError, RemoteProtocolError
from crdtsync.events import Event
from crdtsync.identifiers import Domain, EventId, WriterId
from crdtsync.log.encoding import encode_events
from crdtsync.log.heads import NUMBER_MAX, WRITERS_MAX
from crdtsync.log.shapes import STAMP_BITS, check_events, checked_writer
from crdtsync.protocol.codec import decode_unchecked

COMMIT_VERSION: Final = 1
COMMIT_BYTES_MAX: Final = 8 << 20  # a few of the largest payloads; one commit is one frame and one row
COMMIT_EVENTS_MAX: Final = 10_000  # keeps the fold of one commit well under the shortest heartbeat
COMMIT_DEPTH_MAX: Final = 16
DOMAIN_CHARS_MAX: Final = 64
HASH_BYTES: Final = 32
PREFIX_BYTES: Final = 8  # of a hash, in deps: enough to tell two branches apart
SIGNATURE_BYTES: Final = 64  # Ed25519
NO_HASH: Final = bytes(HASH_BYTES)  # `previous` of a writer's first commit

_FIELDS: Final = (int, str, str, int, int, tuple, bytes, tuple, bytes)
_DEP: Final = (str, int, bytes)
_HEAD: Final = bytes((0x80 | len(_FIELDS),))  # of the array; that of a shorter one is a byte as well
_UNSIGNED: Final = cbor2.dumps(b"")
_SIGNED: Final = cbor2.dumps(bytes(SIGNATURE_BYTES))[:-SIGNATURE_BYTES]


class Dep(NamedTuple):
    """The writer of a commit had applied `writer` up to `number`, whose hash begins with `prefix`."""

    writer: WriterId
    number: int
    prefix: bytes


class Commit(NamedTuple):
    domain: Domain
    writer: WriterId
    number: int  # from 1, gap-free
    stamp: int  # never goes back within a writer
    deps: tuple[Dep, ...]
    previous: bytes  # NO_HASH for number 1
    events: tuple[Event, ...]
    signature: bytes  # b"" until writers sign
    hash: bytes
    blob: bytes  # the commit as it is stored and travels

    def event_id(self, index: int) -> EventId:
        return EventId(self.stamp, self.writer, self.number, index)

    def row(self) -> CommitRow:
        return CommitRow(self.domain, self.writer, self.number, self.stamp, self.blob)


def seal(
    domain: Domain,
    writer: WriterId,
    number: int,
    *,
    stamp: int,
    deps: Iterable[tuple[WriterId, int, bytes]],
    previous: bytes,
    events: Iterable[Event],
) -> Commit:
    """The commit of these events. It is decoded again, so that nothing is made durable that peers would refuse.

    Raises:
        LocalProtocolError: If an event or field is not what peers accept. Nothing happened.
    """
    before = (COMMIT_VERSION, domain, writer, number, stamp, tuple(deps), previous)
    try:
        return decode_commit(b"".join((_HEAD, cbor2.dumps(before)[1:], encode_events(tuple(events)), _UNSIGNED)))
    except (RemoteProtocolError, cbor2.CBOREncodeError, UnicodeEncodeError) as error:
        raise LocalProtocolError(f"commit {number} of {writer} cannot be written: {error}") from error


def commit_hash(blob: bytes) -> bytes:
    """The hash of the commit that `blob` is, if it is one; cheap enough to ask before decoding."""
    if blob[-len(_SIGNED) - SIGNATURE_BYTES : -SIGNATURE_BYTES] == _SIGNED:
        return sha256(memoryview(blob)[: -len(_SIGNED) - SIGNATURE_BYTES]).digest()
    return sha256(memoryview(blob)[: -len(_UNSIGNED)]).digest()


def decode_commit(blob: bytes) -> Commit:
    """The commit that `blob` holds, checked in itself: types, ranges, order, every event.

    Whether it fits what came before is `DomainLog`'s to say. Signatures are not verified yet.

    Raises:
        RemoteProtocolError: If it is malformed.
    """
    plain = decode_unchecked(blob, bytes_max=COMMIT_BYTES_MAX, depth_max=COMMIT_DEPTH_MAX)
    if type(plain) is not tuple or tuple(map(type, plain)) != _FIELDS:
        raise RemoteProtocolError("a commit is an array of nine fields")
    version, domain, writer, number, stamp, deps, previous, events, signature = plain
    if version != COMMIT_VERSION:
        raise RemoteProtocolError(f"commit version {version} is not {COMMIT_VERSION}: upgrade", version=version)
    if not 0 < len(domain) <= DOMAIN_CHARS_MAX:
        raise RemoteProtocolError(f"a domain's name has 1 to {DOMAIN_CHARS_MAX} characters, this one {len(domain)}")
    writer = checked_writer(writer)
    if not 0 < number <= NUMBER_MAX or stamp <= 0 or stamp >> STAMP_BITS:
        raise RemoteProtocolError(f"number {number} or stamp {stamp} is out of range", writer=writer)
    if len(previous) != HASH_BYTES or (number == 1) != (previous == NO_HASH):
        raise RemoteProtocolError(f"commit {number} names a predecessor that cannot be", writer=writer)
    if signature:
        well_formed = len(signature) == SIGNATURE_BYTES and blob[-len(_SIGNED) - SIGNATURE_BYTES :].startswith(_SIGNED)
    else:
        well_formed = blob.endswith(_UNSIGNED)
    if not well_formed:
        raise RemoteProtocolError("malformed signature", writer=writer)
    if not 0 < len(events) <= COMMIT_EVENTS_MAX:
        raise RemoteProtocolError(f"a commit has 1 to {COMMIT_EVENTS_MAX} events, not {len(events)}", writer=writer)
    checked_deps = _check_deps(deps, writer) if deps else ()
    fields = (domain, writer, number, stamp, checked_deps, previous, check_events(events), signature)
    return Commit(*fields, commit_hash(blob), blob)


def _check_deps(plain: tuple[Any, ...], own: WriterId) -> tuple[Dep, ...]:
    if len(plain) > WRITERS_MAX:
        raise RemoteProtocolError(f"more than {WRITERS_MAX} dependencies", writer=own)
    deps = []
    before = ""
    for dep in plain:
        if type(dep) is not tuple or tuple(map(type, dep)) != _DEP:
            raise RemoteProtocolError("a dependency is (writer, number, prefix)", writer=own)
        writer, number, prefix = dep
        if writer <= before or writer == own or not 0 < number <= NUMBER_MAX or len(prefix) != PREFIX_BYTES:
            raise RemoteProtocolError(f"no commit can depend on {dep!r}", writer=own)
        before = writer
        deps.append(Dep(checked_writer(writer), number, prefix))
    return tuple(deps)
