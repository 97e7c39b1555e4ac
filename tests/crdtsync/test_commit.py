from __future__ import annotations

from hashlib import sha256

import cbor2
import pytest

from crdtsync.errors import LocalProtocolError, RemoteProtocolError
from crdtsync.events import Expired, Unknown
from crdtsync.identifiers import DEFAULT_DOMAIN, EventId
from crdtsync.log.commit import (
    COMMIT_EVENTS_MAX,
    NO_HASH,
    Dep,
    commit_hash,
    decode_commit,
    seal,
)
from tests.log_strategies import AP, EU, US, expired, stamp, task

PREFIX = b"12345678"
EVENTS = (expired(),)


def sealed(number=1, *, previous=NO_HASH, deps=(), events=EVENTS):
    return seal(DEFAULT_DOMAIN, EU, number, stamp=stamp(), deps=deps, previous=previous, events=events)


def altered(index, value):
    """A valid commit with one of its nine fields replaced."""
    fields = list(cbor2.loads(sealed().blob))
    fields[index] = value
    return cbor2.dumps(fields)


def test_a_commit_survives_its_encoding():
    commit = sealed(deps=((US, 3, PREFIX),), events=(expired(1), Unknown(999, (1, (b"", None)))))
    assert decode_commit(commit.blob) == commit
    assert commit.deps == (Dep(US, 3, PREFIX),)
    assert commit.events == (Expired(task(1), late=False), Unknown(999, (1, (b"", None))))
    assert commit.event_id(1) == EventId(stamp(), EU, 1, 1)
    assert commit.row() == (DEFAULT_DOMAIN, EU, 1, stamp(), commit.blob)


def test_the_hash_is_of_the_bytes_before_the_signature():
    commit = sealed()
    assert commit.hash == commit_hash(commit.blob) == sha256(commit.blob[:-1]).digest()


def test_signing_does_not_change_the_hash():
    blob = altered(8, b"s" * 64)
    signed = decode_commit(blob)
    assert signed.signature == b"s" * 64
    assert signed.hash == sealed().hash


def test_every_other_byte_changes_the_hash():
    commit = sealed()
    for n in range(len(commit.blob) - 1):
        changed = bytearray(commit.blob)
        changed[n] ^= 1
        assert commit_hash(bytes(changed)) != commit.hash


@pytest.mark.parametrize(
    "blob, why",
    [
        (b"", "end of stream"),
        (b"\x01", "nine fields"),
        (cbor2.dumps([1]), "nine fields"),
        (altered(0, 2), "upgrade"),
        (altered(0, True), "nine fields"),
        (altered(1, ""), "domain"),
        (altered(1, "d" * 65), "domain"),
        (altered(2, "nobody"), "not a writer"),
        (altered(3, 0), "out of range"),
        (altered(3, -1), "out of range"),
        (altered(3, 2**53), "out of range"),
        (altered(3, 2), "predecessor"),
        (altered(4, 0), "out of range"),
        (altered(4, 2**63), "out of range"),
        (altered(4, -1), "out of range"),
        (altered(5, [[US, 1]]), "dependency"),
        (altered(5, [[US, 0, PREFIX]]), "depend"),
        (altered(5, [[US, 1, b""]]), "depend"),
        (altered(5, [[EU, 1, PREFIX]]), "depend"),
        (altered(5, [[US, 1, PREFIX], [AP, 1, PREFIX]]), "depend"),
        (altered(5, [[US, 1, PREFIX], [US, 2, PREFIX]]), "depend"),
        (altered(5, ["abc"]), "dependency"),
        (altered(6, b"1" * 31), "predecessor"),
        (altered(6, b"1" * 32), "predecessor"),
        (altered(7, []), "events"),
        (altered(7, [[]]), "an event is an array"),
        (altered(8, b"short"), "signature"),
        (sealed().blob[:-1] + b"\x58\x00", "signature"),
        (sealed().blob + b"\0", "follow"),
    ],
)
def test_a_malformed_commit_is_refused_with_its_reason(blob, why):
    with pytest.raises(RemoteProtocolError, match=why):
        decode_commit(blob)


def test_a_commit_has_a_bounded_number_of_events():
    event = cbor2.loads(sealed().blob)[7][0]
    assert decode_commit(altered(7, [event] * COMMIT_EVENTS_MAX))
    with pytest.raises(RemoteProtocolError, match="events"):
        decode_commit(altered(7, [event] * (COMMIT_EVENTS_MAX + 1)))


@pytest.mark.parametrize(
    "event",
    [
        Expired(b"short", late=False),
        Expired(task(1), late=1),
        Expired(task(1), late=None),
        Unknown(1, ()),
        Unknown(999, (1.5,)),
        Unknown(999, ({},)),
        Unknown(999, (2**64,)),
        Unknown(0, ()),
    ],
)
def test_what_peers_would_refuse_is_never_sealed(event):
    with pytest.raises(LocalProtocolError):
        sealed(events=(event,))


def test_equal_commits_share_the_names_of_writers():
    one, other = decode_commit(sealed().blob), decode_commit(sealed().blob)
    assert one.writer is other.writer
