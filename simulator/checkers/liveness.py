"""LIVE-TASK and AVAIL-1: after the heal everything ends; during faults whoever is up serves its own users."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from crdtsync.events import Submitted
from crdtsync.identifiers import region_of
from simulator.checkers.chronicle import Chronicle, Family, named, told
from simulator.checkers.peek import own_time_ms, physical_ms, stamps, true_ms
from simulator.trace import Record
from simulator.vacuity import region_of_node

if TYPE_CHECKING:
    from simulator.world import World

#: How long a task may lie still in a healed cluster before it counts as stuck: the longest backoff of the built-in
#: models, a lost worker, and a takeover after it.
STUCK_US: Final = 45_000_000
BUSY_US: Final = 5_000_000  # an owner that has started something since is at work on its queue
ANSWER_US: Final = 3_000_000  # AVAIL-1: what a client waits for an answer (clients.PATIENCE_US)
HARMLESS: Final = ("link_", "worker_", "isolate", "halves", "bridge", "majorities_ring", "flapping", "burst",
                   "duplicate_submits", "cancel_storm", "failing", "poison", "clock_", "add", "forget")  # fmt: skip


class Liveness(Family):
    kinds = ("client.call", "client.answer", "node.start", "node.crash", "node.failed", "node.pause", "node.resume",
             "fault.hit", "fault.end", "view", "notify")  # fmt: skip
    invariants = ("LIVE-TASK", "AVAIL-1")

    def __init__(self, chronicle: Chronicle) -> None:
        super().__init__(chronicle)
        self._calls: dict[str, tuple[str, int, int]] = {}  # request -> region, when, seq
        self._unwell_us: dict[str, int] = {}  # region -> when its process or disk last had anything
        self._views: dict[bytes, dict[str, Record]] = {}
        self._leases: dict[str, str] = {}  # scope -> the region that was granted it last

    def on_event(self, record: Record) -> None:
        region = region_of_node(record.node)
        match record.kind:
            case "client.call":
                self._call(record, region)
            case "client.answer":
                self._calls.pop(record.id, None)
                if record.subject.op == "submit":
                    self.judged("AVAIL-1", region, record)
            case "notify":
                if record.id in ("lease.granted", "lease.renewed"):
                    self._leases[record.subject.facts["scope"]] = region
            case "view":
                self._views.setdefault(bytes.fromhex(record.id), {})[record.node] = record
            case "fault.hit":
                if not told(record, "fault").startswith(HARMLESS):
                    self._unwell_us[region] = record.at_us
            case "fault.end":
                if not told(record, "fault").startswith(HARMLESS):
                    for active in self.world.faults:
                        if active.id == record.id:
                            self._unwell_us.update(dict.fromkeys(active.hits, record.at_us))
            case _:
                self._unwell_us[region] = record.at_us

    def _call(self, record: Record, region: str) -> None:
        """Sent again after the whole patience: the region had not answered, though nothing ailed it."""
        before = self._calls.get(record.id)
        self._calls[record.id] = (region, record.at_us, record.seq)
        if before is None or told(record, "op") != "submit" or told(record, "attempt") < 2:
            return
        asked, at_us, seq = before
        waited_us = record.at_us - at_us
        if waited_us < ANSWER_US:
            return  # it was refused, or hung up upon
        if self._was_well(asked, at_us, record.at_us):
            self.fail(
                "AVAIL-1",
                f"{asked} did not answer a submission within {ANSWER_US / 1e6:.0f} s, though it was up and its disk good",
                events=(seq, record.seq),
                about=asked,
            )

    def _was_well(self, region: str, since_us: int, now_us: int) -> bool:
        """Whether neither process nor disk of that region had anything, for long enough to be over it."""
        node = self.world.regions[region]
        if not node.running or node.slow_us or now_us - self._unwell_us.get(region, 0) < now_us - since_us + ANSWER_US:
            return False
        return not any(
            not active.over and active.hits[region] and not active.fault.kind.startswith(HARMLESS)
            for active in self.world.faults
        )

    def at_end(self, world: World) -> None:
        healed = world.healed_nodes()
        names = {node.name for node in healed if node.replica is not None}
        whole = names >= set(self.chronicle.members_left)
        now_us = world.kernel.now_us
        off = {
            node.region
            for node in healed
            if not stamps(node) or abs(own_time_ms(node) - true_ms(now_us)) > node.settings.max_skew_ms
        }
        since_us = max(world.scenario.plan.healed_ms * 1_000, 0)
        for task, shown in self._views.items():
            here = [record for region, record in shown.items() if region in names]
            if not here:
                continue
            self.judged_task("LIVE-TASK", task)
            still = [
                record
                for record in here
                if told(record, "state") in ("waiting", "running", "cancelling")
                and region_of_node(record.node) not in off
            ]
            moved = max([since_us, *(fact.at_us for fact in self.chronicle.tasks.get(task, ()))])
            if not still or not whole or now_us - moved <= STUCK_US or self._held_back(task, still[0], off):
                continue
            if not self._excused(still[0]):
                self.fail(
                    "LIVE-TASK",
                    f"{named(task)} is {still[0]['state']} in {still[0].node}, and nothing has happened to it for "
                    f"{(now_us - moved) / 1e6:.0f} s after the heal",
                    task=task,
                    events=(still[0].seq,),
                )

    def _held_back(self, task: bytes, record: Record, off: set[str]) -> bool:
        """Whether a clock that is off keeps it: who is off may stamp nothing, and what is stamped ahead of others' time
        waits there until it has come."""
        submitted = record.subject.submitted
        if not off or submitted is None:
            return False
        writers = {region_of(fact.id.writer) for fact in self.chronicle.tasks.get(task, ())}
        # Nothing settles before everybody has applied what everybody wrote.
        return (
            record.subject.owner in off or not off.isdisjoint(writers) or any(settled for _, settled in submitted.after)
        )

    def _holders(self, task: str, submitted: Submitted) -> list[str]:
        """The region that holds the lease of a task under one: it runs the task, whoever owns it."""
        if not submitted.options.partition.startswith("quorum"):
            return []
        ends = (f":{task}", f"/{submitted.key}" if submitted.key else f":{submitted.queue}")
        return [region for scope, region in self._leases.items() if scope.endswith(ends)]

    def _rights_are_gone(self, submitted: Submitted) -> bool:
        """Whether it is under a global limit of which a region took its rights along that may still run: so they stay lost."""
        gone = self.chronicle.rolls.whole.gone.keys()
        stopped = {r for _, change in self.chronicle.rolls.changes if change.stopped for r in change.regions}
        targets = (f"queue:{submitted.queue}", f"task:{submitted.name}", f"key:{submitted.key}")
        limits = [limit for limit in self.world.scenario.limits if limit.scope == "global" and limit.target in targets]
        return bool(limits) and not gone <= stopped

    def _excused(self, record: Record) -> bool:
        """Whether it waits for something that may still come: its time, a parent, a handler that runs."""
        view = record.subject
        submitted = view.submitted
        if submitted is None:
            return True
        for region in (view.owner, *self._holders(record.id, submitted)):
            if self.world.kernel.now_us - self.chronicle.claimed_us.get(region, -BUSY_US) < BUSY_US:
                return True  # it waits its turn behind others
            workers = [worker for worker in self.world.workers if worker.node.region == region and worker.alive]
            if workers and all(len(worker.running) >= worker.credits for worker in workers):
                return True  # behind handlers that take their time
        if self._rights_are_gone(submitted):
            return True
        if submitted.not_before_ms > physical_ms(self.world.nodes[record.node]):
            return True
        for parent, _ in submitted.after:
            of_parent = self._views.get(parent, {}).get(record.node)
            if of_parent is None or told(of_parent, "state") in ("waiting", "running", "cancelling"):
                return True
        running = self.chronicle.running()
        return any(one[0] in running for one in told(record, "attempts") if one[1] == "open")


__all__ = ["Liveness"]
