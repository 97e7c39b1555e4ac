"""HLC-* and TIME-*: stamps order what happened, stay near true time, and what is ahead of it waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from crdtsync import events as ev
from crdtsync.identifiers import EventId, incarnation_of, node_of
from simulator.catalogue import Family as Faults
from simulator.checkers.chronicle import Chronicle, Family, Heads, named
from simulator.checkers.peek import own_time_ms, physical_ms, refuses, repairs, true_ms
from simulator.clock import EPOCH_US
from simulator.trace import Record

if TYPE_CHECKING:
    from simulator.node import Node

COUNTER_ODD: Final = 1 << 15  # a counter that gets this far within a millisecond runs away
SLACK_MS: Final = 5  # between a decision and the record of the batch that carries it
MEASURED_MS: Final = 1_000  # twice the uncertainty of a measurement over the slowest links
NOTICE_US: Final = 5_000_000  # pings a second, and the batch under way
AWAKE_US: Final = 10_000_000  # how long after a pause what it does is looked at
UNHEARD: Final = frozenset(
    {Faults.CLOCK, Faults.WORKER, Faults.WORKLOAD, Faults.MEMBERSHIP}
)  # faults that keep no ping back
DRIFT_SLACK_MS: Final = 200  # what a clock that drifts by 500 ppm gains in some minutes


class Time(Family):
    kinds = ("commit", "disk.write", "fault.start", "fault.hit", "node.resume")
    invariants = ("HLC-1", "HLC-2", "HLC-3", "HLC-4", "HLC-5", "HLC-6", "TIME-1", "TIME-2")

    def __init__(self, chronicle: Chronicle) -> None:
        super().__init__(chronicle)
        self._last: dict[str, tuple[int, str, int]] = {}  # node -> its newest durable stamp, its commit, seq
        self._ids: dict[tuple[int, str], int] = {}
        self._worst_ms = 0  # how far some wall clock ever was ahead of true time
        self._applied: dict[str, Heads] = {}
        self._off: dict[str, tuple[int, tuple[int, ...]]] = {}  # node -> off the majority since when, over which links
        self._woke_us: dict[str, int] = {}

    def on_event(self, record: Record) -> None:
        match record.kind:
            case "commit":
                self._commit(record)
            case "disk.write":
                self._applied_in_time(record)
                self._stopped_by_nobody(record)
            case "node.resume":
                self._woke_us[record.node] = record.at_us
            case _:
                self._look_at_clocks(record.at_us)

    def _look_at_clocks(self, now_us: int) -> None:
        for node in self.world.nodes.values():
            self._worst_ms = max(self._worst_ms, node.clock.error_us(now_us) // 1_000)
            links = self._outvoted_over(node)
            since_us, before = self._off.get(node.name, (now_us, ()))
            if not links or links != before:
                since_us = now_us
            self._off[node.name] = (since_us, links)

    def _outvoted_over(self, node: Node) -> tuple[int, ...]:
        """The links over which a node hears of a majority of right clocks that its own is off: none if it is not."""
        members = self.chronicle.roll_of(node).voters
        reach_ms = node.settings.max_skew_ms // 2
        now_us = self.world.kernel.now_us
        if not node.running or abs(physical_ms(node) - true_ms(now_us)) <= 3 * reach_ms + MEASURED_MS:
            return ()
        right = [
            id(node.links[peer.settings.region])
            for peer in self.world.nodes.values()
            if peer is not node
            and peer.region in members
            and peer.running
            and peer.settings.region in node.links
            and abs(physical_ms(peer) - true_ms(now_us)) <= reach_ms
        ]
        return tuple(right) if len(right) > len(members) // 2 and self._links_are_well() else ()

    def _links_are_well(self) -> bool:
        """Whether pings come and go: no fault is at work that could keep them back."""
        return all(active.over or active.fault.spec.family in UNHEARD for active in self.world.faults)

    # What is written -------------------------------------------------------------------------------

    def _commit(self, record: Record) -> None:
        written = self.chronicle.commits[record.subject.writer, record.subject.number]
        commit = written.commit
        self._grows(record, commit.stamp, commit.writer, commit.number)
        self._after_what_it_saw(record, commit.stamp, commit.writer, written.seen)
        self._near_true_time(record, commit.stamp)
        self.judged("HLC-5", record.node, record)
        if commit.stamp & 0xFFFF >= COUNTER_ODD:
            self.fail(
                "HLC-5", f"{record.node} is at counter {commit.stamp & 0xFFFF} of a millisecond", events=(record.seq,)
            )
        known = self._ids.setdefault((commit.stamp, commit.writer), commit.number)
        self.judged("HLC-6", record.node, record)
        if known != commit.number:
            self.fail(
                "HLC-6",
                f"commits {known} and {commit.number} of {commit.writer} have one stamp: their order is a tie",
                events=(record.seq,),
            )
        for place, event in enumerate(commit.events):
            self._in_time(record, EventId(commit.stamp, commit.writer, commit.number, place), event)

    def _grows(self, record: Record, stamp: int, writer: str, number: int) -> None:
        """Stamps of one node only grow, over restarts too, as long as its disk keeps what it promised."""
        name = record.node if "~" in record.node else node_of(writer)
        last = self._last.get(name)
        self.judged("HLC-1", record.node, record)
        if last is not None:
            _, before, at = last
            kept = incarnation_of(before) == incarnation_of(writer) or self.chronicle.on_disk(record.node, before, at)
            if kept and stamp <= last[0] and not repairs(self.world.nodes[record.node], before, at):
                self.fail(
                    "HLC-1",
                    f"commit {number} of {writer} is stamped {stamp}, not after {last[0]} of {before}",
                    events=(record.seq,),
                )
        self._last[name] = (stamp, writer, number)

    def _after_what_it_saw(self, record: Record, stamp: int, writer: str, seen: dict[str, int]) -> None:
        self.judged("HLC-2", record.node, record)
        for other, number in seen.items():
            earlier = self.chronicle.commits.get((other, number))
            if earlier is not None and other != writer and self.chronicle.stamp_of(earlier.commit) >= stamp:
                self.fail(
                    "HLC-2",
                    f"{record.node} had seen commit {number} of {other} and stamps {stamp}, not after its "
                    f"{earlier.commit.stamp}",
                    events=(earlier.seq, record.seq),
                )

    def _near_true_time(self, record: Record, stamp: int) -> None:
        """No stamp is ahead of the furthest wall clock, or of its own region's time, by more than the skew that is
        accepted; and who has been off a majority for long enough to know it stamps nothing."""
        self.judged("HLC-3", record.node, record)
        self._look_at_clocks(record.at_us)
        node = self.world.nodes[record.node]
        lead_ms = (stamp >> 16) - physical_ms(node)
        if lead_ms > node.settings.max_skew_ms + SLACK_MS:
            self.fail("HLC-3", f"{record.node} stamps {lead_ms} ms ahead of its own time", events=(record.seq,))
        since_us, links = self._off.get(record.node, (record.at_us, ()))
        if links and record.at_us - since_us > NOTICE_US:
            self.fail(
                "HLC-3",
                f"{record.node} stamps, though a majority has told it for {(record.at_us - since_us) / 1e6:.0f} s that "
                f"its clock is off by {physical_ms(node) - true_ms(record.at_us)} ms",
                events=(record.seq,),
            )
        ahead_ms = (stamp >> 16) - (EPOCH_US + record.at_us) // 1_000
        bound_ms = self._worst_ms + node.settings.max_skew_ms + DRIFT_SLACK_MS
        if ahead_ms > bound_ms:
            self.fail(
                "HLC-3",
                f"{record.node} stamps {ahead_ms} ms ahead of true time; no clock was ahead by more than "
                f"{self._worst_ms} ms",
                events=(record.seq,),
            )

    def _in_time(self, record: Record, id: EventId, event: Any) -> None:
        """Nothing starts before its time or expires before its deadline, by the clock of whoever decides: the one that
        does not step with the wall clock."""
        kind = type(event)
        if kind not in (ev.Claimed, ev.Expired):
            return
        before = self.chronicle.verdict_before(event.task, id)
        if before is None:
            return
        if kind is ev.Claimed:
            self._awake(record, id, event, before.submitted.deadline_ms)
        due_ms = before.submitted.not_before_ms if kind is ev.Claimed else before.submitted.deadline_ms
        if not due_ms:
            return
        self.judged("TIME-1", record.node, record)
        early_ms = due_ms - physical_ms(self.world.nodes[record.node])
        if early_ms > SLACK_MS:
            did = "started" if kind is ev.Claimed else "expired"
            self.fail(
                "TIME-1",
                f"{record.node} {did} {named(event.task)} {early_ms} ms early, by its own clock",
                task=event.task,
                events=(record.seq,),
            )

    def _awake(self, record: Record, id: EventId, event: ev.Claimed, deadline_ms: int) -> None:
        """Whoever was stopped looks at what became due before it goes on: it starts nothing past its deadline."""
        woke_us = self._woke_us.get(record.node)
        if woke_us is None or record.at_us - woke_us > AWAKE_US:
            return
        self.judged("TIME-2", record.node, record)
        late_ms = (id.stamp >> 16) - deadline_ms
        if deadline_ms and late_ms > self.world.nodes[record.node].settings.max_skew_ms + SLACK_MS:
            self.fail(
                "TIME-2",
                f"{record.node} woke and started {named(event.task)}, whose deadline had passed {late_ms} ms ago",
                task=event.task,
                events=(record.seq,),
            )

    # What is applied -------------------------------------------------------------------------------

    def _stopped_by_nobody(self, record: Record) -> None:
        """Nobody whose clock was right throughout stops for its clock's sake, whatever others stamp: it agrees with a
        majority, or there is none."""
        node = self.world.nodes.get(record.node)
        if node is None or not refuses(node) or node.clock.offset_us or node.clock.drift_ppm:
            return
        touched = any(f.fault.spec.family is Faults.CLOCK and f.hits[node.region] for f in self.world.faults)
        reach_ms = node.settings.max_skew_ms // 2
        voters = self.chronicle.roll_of(node).voters
        peers = [peer for peer in self.world.nodes.values() if peer.region in voters]
        right = [abs(physical_ms(peer) - true_ms(record.at_us)) <= reach_ms for peer in peers]
        if not touched and sum(right) > len(right) // 2:
            self.fail(
                "HLC-4", f"{record.node} stamps nothing, though only others' clocks are off", events=(record.seq,)
            )

    def _applied_in_time(self, record: Record) -> None:
        node = self.world.nodes.get(record.node)
        if node is None or node.replica is None:
            return
        life = self.chronicle.node(record.node)
        before = self._applied.get(life.writer, {})
        applied = node.applied
        own_ms = -1
        for writer, number in applied.items():
            if writer == life.writer or before.get(writer, 0) >= number or life.floor.get(writer, 0) >= number:
                continue
            written = self.chronicle.commits.get((writer, number))
            if written is None:
                continue
            if own_ms < 0:
                own_ms = own_time_ms(node)
            self.judged("HLC-4", record.node, record)
            ahead_ms = (self.chronicle.stamp_of(written.commit) >> 16) - own_ms
            limit_ms = node.settings.max_skew_ms + SLACK_MS
            if ahead_ms > limit_ms and not (life.restored or repairs(node, writer, number)):
                self.fail(
                    "HLC-4",
                    f"{record.node} has applied commit {number} of {writer}, stamped {ahead_ms} ms ahead of its own "
                    f"time; the limit is {node.settings.max_skew_ms} ms",
                    events=(written.seq, record.seq),
                )
        self._applied[life.writer] = applied
