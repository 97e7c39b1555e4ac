"""Facts that are here ahead of the heads: the rows of snapshots, until the commits that they tell of are here as well.

A snapshot's rows are read while their sender moves on, so some hold facts of commits that its heads do not cover. What is
written on their ground would not name those commits in its `deps`: happened-before would be wrong. So nothing is started
on them, and no digest is told, before the heads cover all that they may hold. Where a snapshot breaks off, nobody knows
how far its rows went until its sender has told anew what it has.

All of it is on disk. Whose rows are coming is written with the first of them, and struck out with the heads that cover
them: a node that crashes in between finds rows without heads on its disk, and must know it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from crdtsync.identifiers import RegionId
from crdtsync.log.heads import Heads
from crdtsync.protocol import codec
from crdtsync.region import RegionState

AHEAD_BYTES_MAX: Final = 1 << 22
TORN_BYTES_MAX: Final = 1 << 16
TORN_MS: Final = 60_000  # for how long nothing is started on what a snapshot left that broke off, after it or a start
META: Final = "ahead"
META_TORN: Final = "torn"


class Ahead:
    """How far rows of snapshots may run ahead of the heads.

    Args:
        peer_have: What a linked peer said on this link that it has; None before it did.
    """

    def __init__(self, here: RegionState, peer_have: Callable[[RegionId], Heads | None]) -> None:
        self._here = here
        self._peer_have = peer_have
        self._until: Heads | None = None  # what the rows of adopted snapshots may hold; as on disk
        self._incoming: set[RegionId] = set()  # peers whose snapshot's rows are coming in
        self._joining = 0  # snapshots that have come, and whose rows are not all joined yet
        # Whose snapshot broke off when rows had come: since when, and whether it has been linked anew.
        self._torn: dict[RegionId, tuple[int, bool]] = {}
        self._noted: set[RegionId] = set()  # whose rows may be on disk without heads; as on disk

    def restore(self, meta: Mapping[str, bytes]) -> None:
        """Take up what the disk remembers. Raises RemoteProtocolError if it is not what we wrote."""
        if META in meta:
            until = Heads.from_wire(codec.decode(meta[META], bytes_max=AHEAD_BYTES_MAX))
            self._until = until if list(until.items()) else None
        if META_TORN in meta:
            names: Any = codec.decode(meta[META_TORN], bytes_max=TORN_BYTES_MAX)
            self._noted = {RegionId(name) for name in names}
            self._torn = dict.fromkeys(sorted(self._noted), (self._here.now.mono_ms, False))

    # A snapshot comes ----------------------------------------------------------------------------

    def rows_came(self, peer: RegionId) -> None:
        """Call before they are joined: the note is on disk with the first of them, or before."""
        self._incoming.add(peer)
        if peer not in self._noted:
            self._noted.add(peer)
            self._write_noted()

    def complete(self, peer: RegionId) -> None:
        """All its rows have come; some may wait to be joined. Its heads will cover what an earlier one of it left."""
        self._incoming.discard(peer)
        self._torn.pop(peer, None)
        self._joining += 1

    def adopted(self, peer: RegionId, until: Heads) -> None:
        """Its rows are joined and its heads ours; the rows may hold facts up to `until`."""
        self._joining -= 1
        self._until = until if self._until is None else self._until.join(until)
        self._here.outbox.next.meta[META] = codec.encode(self._until.to_wire())
        self._strike_out(peer)

    def refused(self, peer: RegionId) -> None:
        """Its rows are joined, and its heads cannot be ours."""
        self._joining -= 1
        self._torn[peer] = (self._here.now.mono_ms, False)

    def aborted(self, peer: RegionId) -> None:
        """It broke off."""
        if peer in self._incoming:
            self._incoming.discard(peer)
            self._torn[peer] = (self._here.now.mono_ms, False)

    def opened(self, peer: RegionId) -> None:
        """There is a new link: what the peer says that it has, it says after all that it ever sent."""
        if peer in self._torn:
            self._torn[peer] = (self._torn[peer][0], True)

    # What follows --------------------------------------------------------------------------------

    def covered(self, heads: Heads) -> bool:
        """Whether these heads, applied and durable, tell of all facts that are here: only then is a digest told."""
        if self._incoming or self._joining or self._still_torn():
            return False
        if self._until is not None:
            if not heads.covers(self._until):
                return False
            self._until = None
            self._here.outbox.next.meta[META] = codec.encode(())
        return True

    def reach(self, heads: Heads) -> Heads | None:
        """Heads that cover all facts that are here, `heads` being durable; None while nobody knows. What is passed on in a
        snapshot reaches as far."""
        if self._is_boundless():
            return None
        return heads if self._until is None else heads.join(self._until)

    def runs_ahead(self) -> bool:
        """Whether facts are here that the heads do not tell of, so that nothing is written on their ground."""
        if self._is_boundless():
            return True
        if self._until is None:
            return False
        log = self._here.log  # of a quarantined writer no more will come
        return any(n > log.applied[w] and w not in log.quarantined for w, n in self._until.items())

    def _is_boundless(self) -> bool:
        if self._incoming or self._joining:
            return True
        return any(self._here.now.mono_ms - since_ms < TORN_MS for since_ms, _ in self._still_torn())

    def _still_torn(self) -> list[tuple[int, bool]]:
        """Snapshots that broke off, and whose facts may still run ahead: until our heads cover what the sender tells when
        it is back, nobody knows how far its rows went."""
        for peer, (_, again) in list(self._torn.items()):
            goal = self._peer_have(peer) if again else None
            if self._here.membership.has_lost(peer) or (goal is not None and self._here.log.applied.covers(goal)):
                del self._torn[peer]
                self._strike_out(peer)
                if goal is not None:  # applied, and not yet durable: the digest of the heads before is another one
                    self._until = goal if self._until is None else self._until.join(goal)
        return list(self._torn.values())

    def _strike_out(self, peer: RegionId) -> None:
        if peer in self._noted and peer not in self._incoming and peer not in self._torn:
            self._noted.discard(peer)
            self._write_noted()

    def _write_noted(self) -> None:
        self._here.outbox.next.meta[META_TORN] = codec.encode(tuple(sorted(self._noted)))
