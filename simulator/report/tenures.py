"""Who held what: the leases of regions and the locks of programs, collected while a run goes on.

A lease's end is told by its holder's own clock; what that is in true time is known at that moment only. So these are not
read from the records afterwards, as the rest of a story is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from simulator.trace import SCHEMA

if TYPE_CHECKING:
    from simulator.trace import Record
    from simulator.world import World

DIED: Final = "its process died"


@dataclass(slots=True)
class Tenure:
    """One region held one scope under one token. Times are true microseconds."""

    scope: str
    node: str
    token: int
    voters: tuple[str, ...]
    start_us: int
    until_us: int  # of the grant, or of the last renewal: the voters are bound until then at the least
    renewed: int = 0
    ran: int = 0  # attempts that were handed to workers under it
    end_us: int | None = None  # before `until_us`: given back, or its process died
    why: str = ""

    @property
    def region(self) -> str:
        return self.node.partition("~")[0]

    def over_us(self, now_us: int) -> int:
        """When it was over, or now if it goes on."""
        return min(now_us, self.until_us if self.end_us is None else self.end_us)


class Act(NamedTuple):
    """A program wrote to what its lock protects."""

    at_us: int
    taken: bool  # False: refused, since a larger token had been seen
    looked: bool  # whether it looked at its lease before it wrote


@dataclass(slots=True)
class Holding:
    """One program believed that it held one name, from its first answer on."""

    name: str
    owner: str
    node: str
    token: int
    start_us: int
    until_us: int
    end_us: int | None = None
    why: str = ""
    acts: list[Act] = field(default_factory=list)

    def over_us(self, now_us: int) -> int:
        """When it was over, or now if it goes on."""
        return min(now_us, self.until_us if self.end_us is None else self.end_us)


class Tenures:
    """Reads what holders and programs tell of themselves. Judges nothing.

    Attributes:
        leases: Each tenure of a region, in the order of their grants.
        locks: Each time that a program held a name, in the order of their beginnings.
    """

    kinds: Final = (
        "notify",
        "node.crash",
        "node.failed",
        "task.assigned",
        "lock.held",
        "lock.renewed",
        "lock.over",
        "register.write",
    )

    def __init__(self) -> None:
        self.leases: list[Tenure] = []
        self.locks: list[Holding] = []
        self._open: dict[tuple[str, str], Tenure] = {}  # (node, scope)
        self._under: dict[tuple[str, int], Tenure] = {}  # (node, token), for the attempts that carry it
        self._held: dict[str, Holding] = {}  # by program

    def on_event(self, world: World, record: Record) -> None:
        match record.kind:
            case "notify":
                if record.id in ("lease.granted", "lease.renewed", "lease.lost"):
                    self._lease(world, record, record.subject.facts)
            case "node.crash" | "node.failed":
                for key in [key for key in self._open if key[0] == record.node]:
                    self._end(self._open.pop(key), record.at_us, DIED)
            case "task.assigned":
                fence: Any = record["fence"]
                tenure = self._under.get((record.node, fence or 0))
                if tenure is not None:
                    tenure.ran += 1
            case _:
                self._program(record)

    def _lease(self, world: World, record: Record, facts: dict[str, Any]) -> None:
        key = (record.node, facts["scope"])
        known = self._open.get(key)
        if record.id == "lease.lost":
            if known is not None and known.token == facts["token"]:
                self._end(self._open.pop(key), record.at_us, str(facts["reason"]))
            return
        until_us = world.nodes[record.node].clock.true_us(facts["until_mono_ms"], record.at_us)
        if record.id == "lease.granted":
            tenure = Tenure(facts["scope"], record.node, facts["token"], tuple(facts["voters"]), record.at_us, until_us)
            self.leases.append(tenure)
            self._open[key] = self._under[record.node, tenure.token] = tenure
        elif known is not None and known.token == facts["token"]:
            known.until_us = until_us
            known.renewed += 1

    @staticmethod
    def _end(tenure: Tenure, at_us: int, why: str) -> None:
        if at_us <= tenure.until_us:
            tenure.end_us = at_us
        tenure.why = why

    def _program(self, record: Record) -> None:
        said: dict[str, Any] = dict(zip(SCHEMA[record.kind], record.data, strict=True))
        known = self._held.get(record.id)
        if record.kind == "register.write":
            if known is not None:
                known.acts.append(Act(record.at_us, said["outcome"] == "ok", bool(said["looked"])))
        elif record.kind == "lock.over":
            if known is not None:
                del self._held[record.id]
                known.why = said["reason"]
                if record.at_us <= known.until_us:
                    known.end_us = record.at_us
        elif record.kind == "lock.held":
            holding = Holding(said["name"], record.id, record.node, said["token"], record.at_us, said["until_us"])
            self.locks.append(holding)
            self._held[record.id] = holding
        elif known is not None:
            known.until_us = said["until_us"]
