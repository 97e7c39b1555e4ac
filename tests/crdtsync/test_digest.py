from __future__ import annotations

from hashlib import blake2b

from crdtsync.log.digest import NOTHING, Digest


def share(n: int) -> bytes:
    return blake2b(bytes([n]), digest_size=16).digest()


def test_order_does_not_matter():
    one, other = Digest(), Digest()
    for n in range(20):
        one.replace(NOTHING, share(n))
    for n in reversed(range(20)):
        other.replace(NOTHING, share(n))
    assert one == other
    assert one != Digest()


def test_replacing_is_removing_and_adding():
    direct, stepwise = Digest(), Digest()
    direct.replace(NOTHING, share(2))
    stepwise.replace(NOTHING, share(1))
    stepwise.replace(share(1), share(2))
    assert direct == stepwise
    stepwise.replace(share(2), NOTHING)
    assert bytes(stepwise) == NOTHING


def test_a_digest_continues_from_its_bytes():
    digest = Digest()
    digest.replace(NOTHING, share(1))
    assert Digest(bytes(digest)) == digest
    assert bytes.fromhex(digest.hex()) == bytes(digest)
    assert digest.hex() in repr(digest)


def test_the_sum_wraps_at_128_bits():
    digest = Digest(b"\xff" * 16)
    digest.replace(NOTHING, b"\0" * 15 + b"\x01")
    assert bytes(digest) == NOTHING
