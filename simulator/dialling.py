"""How a node gets and keeps its links: as `regions.transport.peers` does it, without sockets.

Both sides dial, so that one of them behind a firewall is enough. When two links of a pair come up at once, the one
that the smaller region name dialled stays; a newer link of the same dialler replaces the older.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

from crdtsync.identifiers import RegionId
from simulator.network import Connection

if TYPE_CHECKING:
    from simulator.node import Node
    from simulator.world import World

# As in regions.transport.peers; a test compares them.
REDIAL_US_MIN: Final = 100_000
REDIAL_US_MAX: Final = 2_000_000
REDIAL_FACTOR: Final = 2
SECOND_DIALLER_US: Final = 500_000
LOOK_AGAIN_US: Final = 100_000
OPEN_TIMEOUT_US: Final = 5_000_000


class Dialling:
    """Keeps one node dialling whom it has no link to."""

    def __init__(self, world: World, node: Node, rng: random.Random) -> None:
        self._world = world
        self._kernel = world.kernel
        self._node = node
        self._rng = rng
        self._delay_us: dict[RegionId, int] = {}
        self._up_us: dict[RegionId, int] = {}  # when a link that was dialled from here came up
        self._short_us: dict[RegionId, int] = {}  # how long to wait before the next, of those that ended at once
        self._kept: dict[RegionId, None] = {}  # peers that are dialled, where members come and go
        self._busy: dict[RegionId, int] = {}  # peers for which a look or a try is pending, and of which life

    def begin(self) -> None:
        """The process serves: dial everybody."""
        node = self._node
        self._kept.clear()
        self._busy.clear()
        self._delay_us.clear()
        if self._world.scenario.changes_members:
            self._keep_up(node.life)
            return
        for peer in node.settings.others:
            self._look_after(peer, SECOND_DIALLER_US if peer < node.region else 0)

    def _keep_up(self, life: int) -> None:
        """Members come and go: whoever is new is dialled too, who is gone no more (`_look`)."""
        node = self._node
        if life != node.life or node.replica is None:
            return
        for peer in node.replica.peers():
            if peer not in self._kept:
                self._kept[peer] = None
                self._look_after(peer, SECOND_DIALLER_US if peer < node.region else 0)
        self._kernel.after(LOOK_AGAIN_US, self._keep_up, life)

    def _look_after(self, peer: RegionId, delay_us: int) -> None:
        if self._busy.get(peer) != self._node.life:
            self._busy[peer] = self._node.life
            self._kernel.after(delay_us, self._look, peer, self._node.life)

    def _look(self, peer: RegionId, life: int) -> None:
        node = self._node
        if life != node.life:
            return
        self._busy.pop(peer, None)
        if peer in node.links:
            return  # `lost` tells when it is time again
        if self._world.scenario.changes_members and (node.replica is None or peer not in node.replica.peers()):
            self._kept.pop(peer, None)
            return
        if node.paused or not self._allowed(peer):
            self._delay_us.pop(peer, None)
            self._look_after(peer, round(LOOK_AGAIN_US * (1 + self._rng.random()) * (2 if peer < node.region else 1)))
            return
        self._busy[peer] = life
        self._world.network.dial(node, self._world.nodes[peer], OPEN_TIMEOUT_US)

    def _allowed(self, peer: RegionId) -> bool:
        replica = self._node.replica
        return replica is not None and replica.knows(peer) and replica.allowed(peer)

    def failed(self, peer: RegionId) -> None:
        """A try was refused, or nobody answered."""
        if self._busy.pop(peer, None) != self._node.life:
            return
        delay_us = self._delay_us.get(peer, REDIAL_US_MIN)
        self._delay_us[peer] = min(REDIAL_US_MAX, delay_us * REDIAL_FACTOR)
        self._look_after(peer, round(delay_us * (0.5 + self._rng.random() / 2)))

    def linked(self, peer: RegionId) -> None:
        """A try made a link."""
        self._busy.pop(peer, None)
        self._delay_us.pop(peer, None)
        self._up_us[peer] = self._kernel.now_us

    def lost(self, peer: RegionId) -> None:
        """The link to `peer` is gone. One that ended at once was refused: it is tried again ever more seldom."""
        if self._node.replica is None:
            return
        delay_us = REDIAL_US_MIN
        lasted_us = self._kernel.now_us - self._up_us.get(peer, 0)
        if self._world.scenario.changes_members and lasted_us < REDIAL_US_MAX:
            delay_us = self._short_us.get(peer, REDIAL_US_MIN)
            self._short_us[peer] = min(REDIAL_US_MAX, delay_us * REDIAL_FACTOR)
        else:
            self._short_us.pop(peer, None)
        self._look_after(peer, round(delay_us * (0.5 + self._rng.random() / 2)))

    def admits(self, connection: Connection) -> str:
        """Why a peer that dials is refused, "" if it is not."""
        peer = RegionId(connection.dialler.region)
        if not self._allowed(peer):
            return "links to this region are refused for now"
        if not self.may_replace(peer, connection):
            return "this pair has a link already"
        return ""

    def wants(self, peer: RegionId, connection: Connection) -> bool:
        """Whether a link that was dialled from here is still wanted, now that it is up."""
        return self._allowed(peer) and self.may_replace(peer, connection)

    def may_replace(self, peer: RegionId, connection: Connection) -> bool:
        """Whether a new link would take the place of the one in use, if there is one. Both ends judge alike."""
        link = self._node.links.get(peer)
        dialler = connection.dialler.region
        return link is None or dialler == link.dialler.region or dialler < link.dialler.region
