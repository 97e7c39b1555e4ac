"""`Digest`: a fingerprint of many things at once, whatever the order they came in.

The sum modulo 2**128 of one 16-byte hash per thing: replacing one thing costs one subtraction and one addition, and equal
sets have equal sums. Bellare and Micciancio, "A new paradigm for collision-free hashing", Eurocrypt 1997 (AdHash). It
finds bugs and damage; against somebody who can choose a thousand of the hashes 128 bits of sum are not enough.
"""

from __future__ import annotations

from typing import Final

DIGEST_BYTES: Final = 16
NOTHING: Final = bytes(DIGEST_BYTES)  # the share of what is not there

_MASK: Final = (1 << 8 * DIGEST_BYTES) - 1


class Digest:
    """A running fingerprint. `NOTHING` as a share means that there is no such thing."""

    __slots__ = ("_sum",)

    def __init__(self, value: bytes = NOTHING) -> None:
        assert len(value) == DIGEST_BYTES, len(value)
        self._sum = int.from_bytes(value)

    def replace(self, old: bytes, new: bytes) -> None:
        """One thing's share was `old` and is `new` now."""
        assert len(old) == len(new) == DIGEST_BYTES, (len(old), len(new))
        self._sum = (self._sum + int.from_bytes(new) - int.from_bytes(old)) & _MASK

    def __bytes__(self) -> bytes:
        return self._sum.to_bytes(DIGEST_BYTES)

    def __eq__(self, other: object) -> bool:
        return self._sum == other._sum if isinstance(other, Digest) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it changes

    def hex(self) -> str:
        return bytes(self).hex()

    def __repr__(self) -> str:
        return f"Digest({self.hex()})"
