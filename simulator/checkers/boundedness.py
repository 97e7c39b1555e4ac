"""BP-1, NET-*: queues have limits, commits are sent once and never back, and a cluster at rest is quiet."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from simulator.checkers.chronicle import Chronicle, Family, told
from simulator.checkers.peek import commits_sent, queues
from simulator.trace import Record
from simulator.vacuity import region_of_node

if TYPE_CHECKING:
    from simulator.world import World

LOOK_US: Final = 1_000_000
MESSAGES_PER_LINK_S_MAX: Final = 12.0  # of a cluster at rest: pings, heads, acknowledgements, both ways
SENT_FACTOR: Final = (
    2.5  # transmissions per commit and region where nothing is lost: heads may cross pushes on long links
)
SENT_FACTOR_LOSSY: Final = (
    4.0  # with faults that lose frames, processes or disks: what is not known to be there is resent
)
SENT_SLACK: Final = 100
LOSING: Final = ("link_", "isolate", "halves", "bridge", "majorities_ring", "flapping", "kill", "pause", "slow",
                 "crash_loop", "disk_")  # fmt: skip
REST_US: Final = 1_000_000  # of the quiet at the end that is left out, while acknowledgements settle
DIALS_PER_S_MAX: Final = 20.0  # of one node to one peer: more is a reconnect storm


class Boundedness(Family):
    kinds = ("disk.write", "net.send", "net.dial")
    invariants = ("BP-1", "NET-2", "NET-3", "NET-4")

    def __init__(self, chronicle: Chronicle) -> None:
        super().__init__(chronicle)
        self._looked_us: dict[str, int] = {}
        self._sent: dict[int, Counter[tuple[str, str]]] = {}  # second -> link -> frames, of the last seconds
        self._dials: Counter[tuple[str, str, int]] = Counter()
        self._commits_sent: dict[str, int] = {}  # by each incarnation, when it was last looked at

    def on_event(self, record: Record) -> None:
        match record.kind:
            case "net.send":
                second = record.at_us // 1_000_000
                links = self._sent.get(second)
                if links is None:
                    links = self._sent[second] = Counter()
                    for old in [s for s in self._sent if s < second - 10]:
                        del self._sent[old]
                links[record.node, told(record, "peer")] += 1
            case "net.dial":
                self.judged("NET-4", record.node, record)
                about = (record.node, told(record, "peer"), record.at_us // 1_000_000)
                self._dials[about] += 1
                if self._dials[about] > DIALS_PER_S_MAX:
                    self.fail(
                        "NET-4",
                        f"{record.node} dialled {record['peer']} {self._dials[about]} times within a second",
                        events=(record.seq,),
                        about=about[:2],
                    )
            case _:
                self._count_sent(record.node)
                if record.at_us - self._looked_us.get(record.node, -LOOK_US) >= LOOK_US:
                    self._looked_us[record.node] = record.at_us
                    self._look(record)

    def _count_sent(self, name: str) -> None:
        node = self.world.nodes.get(name)
        if node is not None and node.replica is not None:
            self._commits_sent[self.chronicle.node(name).writer] = commits_sent(node)

    def _look(self, record: Record) -> None:
        node = self.world.nodes.get(record.node)
        if node is None:
            return
        self.judged("BP-1", record.node, record)
        for name, (length, limit) in queues(node).items():
            if length > limit:
                self.fail(
                    "BP-1",
                    f"{record.node}: {name} are {length}, the limit is {limit}",
                    events=(record.seq,),
                    about=(record.node, name),
                )

    def at_end(self, world: World) -> None:
        self._sent_once(world)
        self._at_rest(world)

    def _sent_once(self, world: World) -> None:
        """Each commit goes once to each other region: about that many are sent, and never back to where they came from."""
        regions = len(world.scenario.names)
        needed = len(self.chronicle.commits) * (regions - 1)
        for name in world.nodes:
            self._count_sent(name)
        sent = sum(self._commits_sent.values())
        lossy = any(active.fault.kind.startswith(LOSING) for active in world.faults if active.hits)
        for region in world.scenario.names:
            self.chronicle.vacuity.count_ever("NET-2", region)
        bound = needed * (SENT_FACTOR_LOSSY if lossy else SENT_FACTOR) + SENT_SLACK
        if sent > bound:
            self.fail(
                "NET-2",
                f"{sent} commits were sent where {needed} transmissions suffice ({len(self.chronicle.commits)} commits to "
                f"{regions - 1} regions each); the bound is {bound:.0f}",
            )

    def _at_rest(self, world: World) -> None:
        """A cluster that has stood still for a while sends heartbeats only."""
        now_us = world.kernel.now_us
        if world.converged_us is None or now_us - self.chronicle.moved_us < 2 * REST_US:
            return
        first = (self.chronicle.moved_us + REST_US) // 1_000_000 + 1
        quiet = [second for second in self._sent if first <= second < now_us // 1_000_000]
        if not quiet:
            return
        totals: Counter[tuple[str, str]] = Counter()
        for second in quiet:
            totals.update(self._sent[second])
        for (one, other), frames in totals.items():
            self.chronicle.vacuity.count_ever("NET-3", region_of_node(one))
            if frames / len(quiet) > MESSAGES_PER_LINK_S_MAX:
                self.fail(
                    "NET-3",
                    f"{one} sends {other} {frames / len(quiet):.0f} frames a second though nothing has been written for "
                    f"{(now_us - self.chronicle.moved_us) / 1e6:.1f} s",
                    about=(one, other),
                )
