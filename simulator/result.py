"""What a run gives back: plain records, and the seam for those who judge it while it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from simulator.trace import Record

if TYPE_CHECKING:
    from simulator.node import Node
    from simulator.world import World


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that did not hold."""

    invariant: str  # its id, as in "EXCL-1"
    at_s: float
    text: str  # in prose, with the ids and causes
    causes: tuple[int, ...] = ()  # seqs of the records that show it
    task: str = ""  # its id in hex, where the invariant is about one

    def to_plain(self) -> dict[str, Any]:
        plain: dict[str, Any] = {"invariant": self.invariant, "at_s": self.at_s, "text": self.text}
        if self.task:
            plain["task"] = self.task
        return {**plain, "events": list(self.causes)}


class Checker(Protocol):
    """One family of invariants. It judges by its own reckoning and never calls the rule that it checks.

    Attributes:
        kinds: The record kinds it wants to see; ("*",) for all.
    """

    kinds: tuple[str, ...]

    def begin(self, world: World) -> None:
        """The world is built and nothing has happened yet."""

    def on_event(self, record: Record) -> None:
        """One record, at the moment it is made. Report by `world.violation(...)`."""

    def at_heal(self, world: World) -> None:
        """The phase of faults is over."""

    def at_end(self, world: World) -> None:
        """The run is over; replicas are as they were left."""


class Mutant(Protocol):
    """A planted bug. The world calls `install` before anything is built and `remove` after the run, whatever happens."""

    name: str

    def install(self, world: World) -> None: ...

    def on_replica(self, node: Node) -> None:
        """A replica was built (`node.replica`), and has not been fed anything yet."""

    def remove(self) -> None: ...


@dataclass(slots=True)
class Operation:
    """One request of one client, from its first sending to its answer. What clients saw is `World.history`."""

    id: str  # "c<number>"
    op: str  # "submit" | "cancel" | "requeue" | "edit" | "await" | ...
    region: str  # where it was sent last
    task: str  # hex; "" while unknown
    called_us: int
    command: Any
    answered_us: int | None = None
    #: "open" | "ok" | "refused" (definite: certainly not done) | "unknown" (indefinite: it may have been done).
    outcome: str = "open"
    value: Any = None  # the answer, or the error's record
    sent: int = 1  # how often
    call_seq: int = -1
    answer_seq: int = -1


@dataclass(frozen=True, slots=True)
class Result:
    """The run, in numbers; `to_plain` is what `crdtsync sim run -o json` prints."""

    seed: int
    scenario: str
    kernel: str
    virtual_s: float
    events: int
    messages: int
    bytes: int
    trace_hash: str
    violations: tuple[Violation, ...] = ()
    #: When all regions that were to be healed first held the same commits and showed the same state for good.
    converged_at_s: float | None = None
    healed_at_s: float = 0.0
    #: submitted (acknowledged to a client), and how they ended: succeeded, dead, cancelled, expired; open is the rest.
    tasks: Mapping[str, int] = field(default_factory=dict)
    conflicts: int = 0
    compensations: int = 0
    #: Tasks (compensations apart) of which two handlers returned without an error.
    double_runs: int = 0
    #: What was expected and did not come, in prose.
    unmet: tuple[str, ...] = ()
    real_s: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.violations and not self.unmet

    def to_plain(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "scenario": self.scenario,
            "kernel": self.kernel,
            "virtual_s": self.virtual_s,
            "events": self.events,
            "messages": self.messages,
            "bytes": self.bytes,
            "trace_hash": self.trace_hash,
            "violations": [violation.to_plain() for violation in self.violations],
            "converged_at_s": self.converged_at_s,
            "healed_at_s": self.healed_at_s,
            "tasks": dict(self.tasks),
            "conflicts": self.conflicts,
            "compensations": self.compensations,
            "double_runs": self.double_runs,
            "unmet": list(self.unmet),
        }
