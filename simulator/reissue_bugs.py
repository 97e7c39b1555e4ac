"""Planted bugs about re-issuing what a wrong clock has stamped; see `bugs`."""

# ruff: noqa: ARG005 - a bug has the signature of what it replaces

from __future__ import annotations

from typing import Any, Final

from crdtsync import tasks
from crdtsync.log import domain_log
from simulator.mutants import Bug, Patches


def re_issue_rests_on_all(patches: Patches) -> None:
    append = domain_log.DomainLog.append

    def resting(self: Any, events: Any, stamp: int) -> Any:
        self.apart = False
        return append(self, events, stamp)

    patches.replace(domain_log.DomainLog, "append", resting)


def re_issued_and_not_read_again(patches: Patches) -> None:
    patches.replace(tasks.TaskTable, "read_again", lambda self, tasks: None)


REISSUE_BUGS: Final = (
    Bug("re_issue_rests_on_all", "what re-issues commits waits for these very commits", ("CONV-5",), "future",
        plant=re_issue_rests_on_all),
    Bug("re_issued_and_not_read_again", "what was folded before keeps its place when it is re-issued",
        ("CONV-1", "CONV-2", "CONV-6"), "future", plant=re_issued_and_not_read_again),
)  # fmt: skip
