"""Planted bugs about limits; see `bugs`."""

# ruff: noqa: ARG005, SLF001 - a bug has the signature of what it replaces, and reaches inside

from __future__ import annotations

from typing import Any, Final

from crdtsync import neighbours
from crdtsync.coordination import limits as facts
from crdtsync.events import RightsMinted, RightsMoved
from crdtsync.scheduling import limits
from simulator.mutants import Bug, Patches


def limit_not_asked(patches: Patches) -> None:
    patches.replace(limits.Limits, "blocking", lambda self, lane: None)


def share_minted_in_a_partition(patches: Patches) -> None:
    def mint(self: Any, rule: Any) -> None:
        short = rule.setting.amount // len(self._here.membership.voters) + 1 - rule.limit.rights(self._here.me)
        if short > 0 and rule.parked and rule.limit.latest is not None:
            self._here.write(RightsMinted(rule.limit.id, short, rule.limit.latest[0]))

    patches.replace(limits.Limits, "_mint", mint)


def slot_returned_twice(patches: Patches) -> None:
    release = limits.Limits._release

    def again(self: Any, attempt: Any) -> None:
        scope = self._bound.get(attempt)
        release(self, attempt)
        if scope is not None and attempt.region == self._here.me:
            self._count(attempt, scope, -1)

    patches.replace(limits.Limits, "_release", again)


def rights_used_before_the_answers(patches: Patches) -> None:
    patches.replace(neighbours.Neighbours, "may_use_rights", lambda self: True)


def rights_given_while_in_use(patches: Patches) -> None:
    def give(self: Any, rule: Any) -> None:
        links = self._links()
        spare = rule.limit.rights(self._here.me)
        if links and spare > 0:
            self._pass(rule, self._gifts(rule, links), spare, links)

    patches.replace(limits.Limits, "_give", give)


def giver_keeps_what_it_gave(patches: Patches) -> None:
    fold = facts.Limit.fold

    def generous(self: Any, id: Any, event: Any) -> bool:
        if isinstance(event, RightsMoved):
            before = fold(self, id._replace(index=max(0, id.index)), event)
            ledger = self.ledgers[id.writer]
            if before:
                ledger.minted += event.amount
                self._held = None
            return before
        return fold(self, id, event)

    patches.replace(facts.Limit, "fold", generous)


def starts_of_a_rate_forgotten_in_a_restart(patches: Patches) -> None:
    patches.replace(limits.Limits, "restore_used", lambda self, used: None)
    patches.replace(limits.Limits, "recall", lambda self: self._here.recalled.clear())


LIMIT_BUGS: Final = (
    Bug("limit_not_asked", "whatever is ready is started", ("CAP-1",), "capped", plant=limit_not_asked),
    Bug("share_minted_in_a_partition", "a region that lacks rights mints its share itself", ("CAP-1",), "capped",
        plant=share_minted_in_a_partition),
    Bug("slot_returned_twice", "an attempt's end gives its slot back twice", ("CAP-1",), "capped",
        plant=slot_returned_twice),
    Bug("rights_used_before_the_answers", "a node on an old disk uses rights that it has given away since", ("CAP-1",),
        "capped", plant=rights_used_before_the_answers, seeds=20),
    Bug("rights_given_while_in_use", "rights that running attempts hold are given away", ("CAP-1",), "capped",
        plant=rights_given_while_in_use),
    Bug("giver_keeps_what_it_gave", "whoever gives rights away goes on counting them as its own", ("CAP-1",), "capped",
        plant=giver_keeps_what_it_gave),
    Bug("starts_of_a_rate_forgotten_in_a_restart", "a restarted node has started nothing yet", ("CAP-1",), "paced",
        plant=starts_of_a_rate_forgotten_in_a_restart),
)  # fmt: skip
