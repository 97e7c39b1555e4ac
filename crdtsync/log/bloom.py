"""`KnownIds`: which task ids were certainly never seen, in ten bits each.

A Bloom filter (Bloom, CACM 1970) with seven probes: no false negatives, and 0.8 % false positives, each of which costs one
read of a row that is not there. When a layer is full a larger one is added, so an answer takes one look per layer, and
the layers together stay below 3 % up to some ten million ids.

Probes are double hashing (Kirsch and Mitzenmacher 2006) on the id's own bits, mixed by one multiplication: task ids are
hashes or uuid7, and Python's `hash` differs between processes, which would make replays differ.
"""

from __future__ import annotations

from typing import Final

BITS_PER_ID: Final = 10
PROBES: Final = 7  # ln 2 * 10, rounded
FIRST_LAYER_IDS: Final = 1 << 16
GROWTH: Final = 4  # each layer holds four times the ids of the one before

_MIX: Final = (
    0xDA942042E4DD58B5_9E3779B97F4A7C15  # odd, bits all over: the product's upper half depends on the whole id
)
_MASK: Final = (1 << 64) - 1


class _Layer:
    __slots__ = ("bits", "bytes", "room")

    def __init__(self, ids: int) -> None:
        self.room = ids
        self.bits = ids * BITS_PER_ID
        self.bytes = bytearray(self.bits // 8 + 1)


class KnownIds:
    """A set of 16-byte ids that answers "certainly not" or "maybe"."""

    def __init__(self, first_layer_ids: int = FIRST_LAYER_IDS) -> None:
        self._layers = [_Layer(first_layer_ids)]
        self._ids = first_layer_ids

    def add(self, item: bytes) -> None:
        layer = self._layers[0]
        if not layer.room:
            self._ids *= GROWTH
            layer = _Layer(self._ids)
            self._layers.insert(0, layer)
        layer.room -= 1
        product = int.from_bytes(item) * _MIX
        mixed = product ^ product >> 128
        probe, step = mixed >> 64 & _MASK, mixed & _MASK | 1
        field, bits = layer.bytes, layer.bits
        for _ in range(PROBES):
            position = probe % bits
            field[position >> 3] |= 1 << (position & 7)
            probe += step

    def may_contain(self, item: bytes) -> bool:
        """False only if `item` was never added."""
        product = int.from_bytes(item) * _MIX
        mixed = product ^ product >> 128
        first, step = mixed >> 64 & _MASK, mixed & _MASK | 1
        for layer in self._layers:
            probe, field, bits = first, layer.bytes, layer.bits
            for _ in range(PROBES):
                position = probe % bits
                if not field[position >> 3] >> (position & 7) & 1:
                    break
                probe += step
            else:
                return True
        return False

    def memory_bytes(self) -> int:
        return sum(len(layer.bytes) for layer in self._layers)
