"""MEMB-*: who comes is caught up first, of who left nothing counts beyond the end, and all that remain agree on who belongs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from crdtsync import events as ev
from crdtsync.identifiers import EventId, region_of
from simulator.checkers.chronicle import Chronicle, Family, Heads
from simulator.checkers.time import UNHEARD
from simulator.trace import Record
from simulator.vacuity import region_of_node

if TYPE_CHECKING:
    from crdtsync.coordination.membership import Membership
    from simulator.node import Node
    from simulator.world import World

CHANGED_WITHIN_US: Final = 60_000_000  # of the heal: some leases, rounds that were lost, and a history to read
TOLD_WITHIN_US: Final = 15_000_000  # of a forgotten region's return: silent links are given up, and dialled again


class Members(Family):
    kinds = ("commit", "disk.write", "disk.durable", "notify", "node.start")
    #: MEMB-1: no region that remains applies anything of one that has left beyond what they agreed on. MEMB-2: what a
    #: replica shows of the membership is what its commits come to. MEMB-3: a joiner is admitted once every member has
    #: acknowledged the record that adds it, and it has applied what they had by then. MEMB-4: after the heal no change
    #: stays half done, and who was forgotten is told when it is back.
    invariants = ("MEMB-1", "MEMB-2", "MEMB-3", "MEMB-4")

    def __init__(self, chronicle: Chronicle) -> None:
        super().__init__(chronicle)
        self._shown: dict[str, Membership] = {}
        self._added: dict[str, EventId] = {}  # joiner -> the record that adds it
        self._acked: dict[str, dict[str, Heads]] = {}  # joiner -> voter -> what it had when it had that record
        self._judged: dict[str, None] = {}  # the regions of admissions
        self._warned: set[str] = set()  # who learned that it was forgotten
        self._back_us: dict[str, int] = {}

    def on_event(self, record: Record) -> None:
        match record.kind:
            case "commit":
                self._commit(record)
            case "notify":
                if record.id == "region.forgotten":
                    self._warned.add(record.node)
            case "node.start":
                self._back_us[record.node] = record.at_us
            case _ if self.chronicle.rolls:
                if record.kind == "disk.durable":
                    self._durable(record)
                else:
                    self._write(record)

    # What is applied, and what is shown --------------------------------------------------------------

    def _write(self, record: Record) -> None:
        node = self.world.nodes.get(record.node)
        if node is None or node.replica is None:
            return
        self._beyond_the_end(record, node)
        shown = node.membership
        if self._shown.get(record.node) is not shown:
            self._shown[record.node] = shown
            self._judge_shown(record, node, shown)

    def _beyond_the_end(self, record: Record, node: Node) -> None:
        gone = self.chronicle.rolls.whole.gone
        if not gone or node.region in gone:
            return
        self.judged("MEMB-1", record.node, record)
        for writer, number in node.applied.items():
            final = gone.get(region_of(writer))
            if final is not None and number > final.get(writer, 0):
                self.fail(
                    "MEMB-1",
                    f"{record.node} has applied commit {number} of {writer}, which was forgotten; all agreed that it "
                    f"ends with {final.get(writer, 0)}",
                    events=(record.seq,),
                    about=(record.node, writer),
                )

    def _judge_shown(self, record: Record, node: Node, shown: Membership) -> None:
        chronicle, applied = self.chronicle, {str(writer): number for writer, number in node.applied.items()}
        roll = chronicle.roll_of(node)
        on_disk = chronicle.rolls.seen_by(
            lambda id: applied.get(id.writer, 0) >= id.number or chronicle.on_disk(node.name, id.writer, id.number)
        )
        if chronicle.node(node.name).runs_ahead or roll != on_disk or not shown.version:
            return  # it knows more of it than its heads tell, for a moment
        self.judged("MEMB-2", record.node, record)
        left = {
            region: final
            for region, final in roll.gone.items()
            if all(applied.get(writer, 0) >= number for writer, number in final.items())
        }
        mine: tuple[Any, ...] = (roll.epoch, roll.version, roll.voters, roll.joining)
        told: tuple[Any, ...] = (shown.epoch, shown.version, shown.voters, shown.joining)
        finals = {str(region): dict(forgotten.final.items()) for region, forgotten in shown.forgotten.items()}
        leaving = {*roll.leaving, *roll.gone} - left.keys()
        if told != mine or finals != left or set(shown.leaving) != leaving:
            self.fail(
                "MEMB-2",
                f"{record.node} shows the membership {told}, {sorted(shown.leaving)} leaving, {finals} gone; by its "
                f"commits it is {mine}, {sorted(leaving)} leaving, {left} gone",
                events=(record.seq,),
                about=(record.node, shown.stamp),
            )

    # Joining -----------------------------------------------------------------------------------------

    def _commit(self, record: Record) -> None:
        commit = self.chronicle.commits[record.subject.writer, record.subject.number].commit
        for place, event in enumerate(commit.events):
            if type(event) is ev.MembersChanged and event.change == "add":
                for region in event.regions:
                    self._added.setdefault(region, EventId(commit.stamp, commit.writer, commit.number, place))
            elif type(event) is ev.MembersChanged and event.change == "admit":
                for region in event.regions:
                    self._admitted(record, region, event)

    def _durable(self, record: Record) -> None:
        """Who has applied the record that adds a joiner, durably, may have acknowledged it from now on."""
        acked = self.chronicle.node(record.node).acked
        for region, id in self._added.items():
            words = self._acked.setdefault(region, {})
            if acked.get(id.writer, 0) >= id.number:
                words.setdefault(region_of_node(record.node), acked)

    def _admitted(self, record: Record, region: str, event: ev.MembersChanged) -> None:
        added, joiner = self._added.get(region), self.world.regions[region]
        if added is None or self.chronicle.node(region).restored:
            return
        before = self.chronicle.rolls.before(event)
        self._judged.update(dict.fromkeys((region, *before.voters)))
        words = self._acked.get(region, {})
        has = joiner.applied or self.chronicle.node(region).acked
        for voter in before.voters:
            if self.chronicle.node(voter).restored:
                continue  # what it had may be gone for good
            named = words.get(voter)
            lacking = sum(max(0, number - has.get(writer, 0)) for writer, number in (named or {}).items())
            if named is None or lacking:
                why = "has not acknowledged the record that adds it" if named is None else f"had {lacking} more commits"
                self.fail(
                    "MEMB-3",
                    f"{record.node} writes that {region} is admitted, though {voter} {why}",
                    events=(record.seq,),
                    about=(region, event.version),
                )

    # The end -----------------------------------------------------------------------------------------

    def at_end(self, world: World) -> None:
        newest = world.membership()
        if not self.chronicle.rolls or newest is None:
            return
        now_us, whole = world.kernel.now_us, self.chronicle.rolls.whole
        for region in self._judged:
            self.chronicle.vacuity.count_ever("MEMB-3", region)
        counted = {*newest.voters, *newest.joining}
        if {node.name for node in world.healed_nodes() if node.replica is not None} >= counted:
            for name in counted:
                self.chronicle.vacuity.count_ever("MEMB-4", name)
            since_us = max(world.scenario.plan.healed_ms * 1_000, *(fact.at_us for fact in self._changes()))
            if (newest.joining or newest.leaving) and now_us - since_us > CHANGED_WITHIN_US:
                changing = ", ".join((*newest.joining, *newest.leaving))
                self.fail("MEMB-4", f"{changing} is still changing {(now_us - since_us) / 1e6:.0f} s after the heal")
        for region in whole.gone:
            node = world.regions[region]
            if node.replica is None or not self._could_be_told(world, node, now_us):
                continue
            self.chronicle.vacuity.count_ever("MEMB-4", region)
            if region not in self._warned and not node.membership.has_lost(region):
                self.fail("MEMB-4", f"{region} was forgotten, is back, and nobody has told it")

    def _changes(self) -> list[Any]:
        return [self.chronicle.commits[id.writer, id.number] for id, _ in self.chronicle.rolls.changes]

    def _could_be_told(self, world: World, node: Node, now_us: int) -> bool:
        """Whether it has been up, and no fault at work, for long enough."""
        if any(not active.over for active in world.faults):
            return False
        plan = world.scenario.plan
        ends = [min(fault.end_ms, plan.healed_ms) for fault in plan.faults if fault.spec.family not in UNHEARD]
        since_us = max(ends, default=0) * 1_000
        return now_us - max(since_us, self._back_us.get(node.name, 0)) > TOLD_WITHIN_US


__all__ = ["Members"]
