"""EXCL-8: what the holders of a lease believed is the history of a mutex.

A holder *believes* in its lease until its own monotonic clock has passed the end of it, whatever became of the process: its
workers run on for so long. What holders believed is kept as one history of a mutex per scope, in the form of
`docs/reference/histories.md`: acquired when it was granted, released when the belief ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from simulator import linearizability
from simulator.checkers.chronicle import Chronicle, Family
from simulator.history_file import parse
from simulator.trace import Record

if TYPE_CHECKING:
    from simulator.world import World

COLUMNS: Final = ("process", "type", "f", "value", "time_us")
STATES_MAX: Final = 100_000  # a history of beliefs is nearly one after another; an unknown verdict is no violation


@dataclass(slots=True)
class Tenure:
    """One node's time as the holder of a scope."""

    node: str
    life: int  # of the node: a holder's memory ends with it
    token: int
    granted_us: int
    seq: int
    until_mono_ms: int
    ended_us: int | None = None  # when it gave the lease up, or its crashed node's clock will have passed the end


class LeaseHistories(Family):
    kinds = ("notify", "node.crash", "node.failed", "node.start")
    #: EXCL-8: acquiring and releasing are linearizable, in each scope, by Wing and Gong's search.
    invariants = ("EXCL-8",)

    def __init__(self, chronicle: Chronicle) -> None:
        super().__init__(chronicle)
        self._tenures: dict[str, list[Tenure]] = {}  # by scope, in the order of their grants
        self._twins = False  # two processes of one region, each with its vote: an honest limit until they meet

    def on_event(self, record: Record) -> None:
        self._twins = self._twins or "~" in record.node
        if record.kind != "notify":
            self._memory_ended(record)
            return
        match record.id:
            case "lease.granted":
                self._granted(record, record.subject.facts)
            case "lease.renewed":
                for tenure in self._of(record.node, record.subject.facts["scope"]):
                    tenure.until_mono_ms = record.subject.facts["until_mono_ms"]
            case "lease.lost":
                for tenure in self._of(record.node, record.subject.facts["scope"]):
                    tenure.ended_us = min(record.at_us, self._ends_us(tenure, record.at_us))

    def _granted(self, record: Record, facts: dict[str, Any]) -> None:
        scope, token = facts["scope"], facts["token"]
        before = self._tenures.setdefault(scope, [])
        for tenure in before:
            if tenure.ended_us is None:
                ends_us = record.at_us if tenure.node == record.node else self._ends_us(tenure, record.at_us)
                # One that still believes has no end yet: it will be told, or found at the next grant.
                tenure.ended_us = ends_us if ends_us <= record.at_us else None
        life = self.world.nodes[record.node].life
        before.append(Tenure(record.node, life, token, record.at_us, record.seq, facts["until_mono_ms"]))

    def _of(self, node: str, scope: str) -> Iterator[Tenure]:
        """The tenure of a node that goes on."""
        return (one for one in self._tenures.get(scope, ()) if one.node == node and one.ended_us is None)

    def _memory_ended(self, record: Record) -> None:
        """The node forgot its leases. Whoever acts for it does so until their end, and no longer."""
        for scope in self._tenures:
            for tenure in self._of(record.node, scope):
                tenure.ended_us = self._ends_us(tenure, record.at_us)

    def _ends_us(self, tenure: Tenure, now_us: int) -> int:
        """When the holder's clock passes the end, if it keeps its rate; now, if it has."""
        return self.world.nodes[tenure.node].clock.true_us(tenure.until_mono_ms, now_us)

    def at_end(self, world: World) -> None:  # noqa: ARG002 - all of it was told
        if self._twins:
            return
        for history in self.histories():
            entry = parse(history)
            assert entry.operations is not None
            judgement = linearizability.judge(entry.operations, entry.initial, states_max=STATES_MAX)
            self.chronicle.vacuity.judged["EXCL-8"] += 1
            for node in dict.fromkeys(tenure.node for tenure in self._tenures[history["scope"]]):
                self.chronicle.vacuity.count_ever("EXCL-8", node.partition("~")[0])
            if judgement.linearizable is False:
                events = [tenure.seq for tenure in self._tenures[history["scope"]]]
                self.fail("EXCL-8", f"the history of {history['scope']} is not that of a mutex", events=events)

    def histories(self) -> list[dict[str, Any]]:
        """What the holders of each scope believed, as `crdtsync sim judge` reads it."""
        found = []
        for scope, tenures in sorted(self._tenures.items()):
            moments = []
            for number, tenure in enumerate(tenures):
                process = f"{tenure.node}#{tenure.life}/{number}"
                moments.append((tenure.granted_us, 1, process, "acquire", tenure.token))
                if tenure.ended_us is not None:
                    moments.append((tenure.ended_us, 0, process, "release", tenure.token))
            ops = [
                [process, type_, function, token, at_us]
                for at_us, _, process, function, token in sorted(moments)
                for type_ in ("invoke", "ok")
            ]
            name = f"{self.world.scenario.name} seed {self.world.seed}: {scope}"
            found.append(
                {"id": name, "model": "mutex", "init": "unlocked", "scope": scope, "cols": list(COLUMNS), "ops": ops}
            )
        return found
