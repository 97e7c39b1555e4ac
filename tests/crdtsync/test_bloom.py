from __future__ import annotations

from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtsync.log.bloom import BITS_PER_ID, KnownIds


def hashed(n: int) -> bytes:
    return blake2b(n.to_bytes(8), digest_size=16).digest()


def uuid7(n: int) -> bytes:
    """A hundred in each millisecond, as a busy client mints them."""
    random = int.from_bytes(hashed(n)[:10])
    ms = 1_700_000_000_000 + n // 100
    return (ms << 80 | 7 << 76 | random >> 68 << 64 | 2 << 62 | random & (1 << 62) - 1).to_bytes(16)


def counted(n: int) -> bytes:
    return n.to_bytes(16)


def counted_high(n: int) -> bytes:
    return (n << 96).to_bytes(16)


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=200))
def test_there_are_no_false_negatives(items):
    known = KnownIds(first_layer_ids=16)
    for item in items:
        known.add(item)
    assert all(known.may_contain(item) for item in items)


@pytest.mark.parametrize("mint", [hashed, uuid7, counted, counted_high], ids=lambda mint: mint.__name__)
def test_false_positives_are_rare_whatever_mints_the_ids(mint):
    known = KnownIds(first_layer_ids=4_096)
    for n in range(4_096):
        known.add(mint(n))
    wrong = sum(known.may_contain(mint(n)) for n in range(10_000, 20_000))
    assert wrong < 200  # 0.8 % in theory, 2 % at the very most


def test_the_filter_grows_and_stays_within_ten_bits_an_id():
    known = KnownIds(first_layer_ids=100)
    for n in range(2_100):  # fills three layers: 100, 400, 1,600
        known.add(hashed(n))
    assert all(known.may_contain(hashed(n)) for n in range(2_100))
    assert known.memory_bytes() * 8 <= 2_100 * BITS_PER_ID + 3 * 8
    assert sum(known.may_contain(hashed(n)) for n in range(10_000, 12_000)) < 80


def test_an_empty_filter_contains_nothing():
    assert not KnownIds().may_contain(bytes(16))
