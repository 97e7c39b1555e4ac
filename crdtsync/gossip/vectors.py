"""Vectors on the wire as differences: in the long run only a few writers move, but every start of a node adds one.

A `VectorFeed` remembers what it sent last on this link and sends what changed since; a `VectorMirror` on the other side
adds it up. That rests on no frame being lost, so frames are numbered: a receiver that misses one stops trusting its
mirrors and says so (`missed`), the sender then sends every vector whole again, and the mirrors are trusted again.
"""

from __future__ import annotations

from crdtsync.errors import RemoteProtocolError
from crdtsync.identifiers import WriterId
from crdtsync.log.heads import WRITERS_MAX, Heads
from crdtsync.protocol.peer_messages import NOTHING_NEW, VectorDelta


class VectorFeed:
    """One vector on its way to one peer."""

    def __init__(self) -> None:
        self._sent: Heads | None = None

    def reset(self) -> None:
        """The next delta carries the whole vector."""
        self._sent = None

    def delta(self, vector: Heads) -> VectorDelta:
        """What to send so that the mirror shows `vector`. It counts as sent."""
        before, self._sent = self._sent, vector
        if before is None:
            return VectorDelta(full=True, entries=vector.to_wire())  # type: ignore[arg-type]  # the same writers
        if before is vector:
            return NOTHING_NEW
        return VectorDelta(full=False, entries=tuple(vector.changes(before)))


class VectorMirror:
    """A peer's vector as last heard. `trusted` once it was heard whole and nothing was lost since."""

    def __init__(self) -> None:
        self.trusted = False
        self._last: dict[WriterId, int] = {}
        self._heads: Heads | None = None

    def distrust(self) -> None:
        """A frame was lost: entries may be behind until the vector comes whole again."""
        self.trusted = False

    def apply(self, delta: VectorDelta) -> None:
        """Take in what the peer sent.

        Raises:
            RemoteProtocolError: If the vector would have more writers than any may.
        """
        if delta.full:
            self._last = {}
            self.trusted = True
        elif not delta.entries:
            return
        self._heads = None
        for writer, number in delta.entries:
            if number:
                self._last[writer] = number
            else:
                self._last.pop(writer, None)
        if len(self._last) > WRITERS_MAX:
            raise RemoteProtocolError(f"a vector of {len(self._last)} writers is over the limit of {WRITERS_MAX}")

    def __getitem__(self, writer: WriterId) -> int:
        return self._last.get(writer, 0)

    @property
    def heads(self) -> Heads:
        if self._heads is None:
            self._heads = Heads.of(self._last)
        return self._heads
