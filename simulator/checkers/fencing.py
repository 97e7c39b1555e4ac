"""EXCL-3: what was done under an older token than the largest seen never becomes the outcome, and stays as evidence.

A task under leases is claimed under a token, and whoever claims it under a newer one shuts the older attempts out: their
completions decide nothing, and what they save after that is resumed by nobody. Judged by the facts that each region knows
of a task, of what it shows, of what it says is decided, and of what it hands to a handler.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from crdtsync import events as ev
from crdtsync.effects import Assignment
from crdtsync.identifiers import EventId
from simulator.checkers.chronicle import Chronicle, Family, Heads, named, seqs, told
from simulator.checkers.reckoning import Fact
from simulator.trace import Record

if TYPE_CHECKING:
    from simulator.world import World


class Fencing(Family):
    kinds = ("commit", "task.assigned", "heads", "view")
    invariants = ("EXCL-3",)

    def __init__(self, chronicle: Chronicle) -> None:
        super().__init__(chronicle)
        self._ends: dict[str, Heads] = {}
        self._views: dict[bytes, dict[str, Record]] = {}

    def on_event(self, record: Record) -> None:
        match record.kind:
            case "commit":
                commit = self.chronicle.commits[record.subject.writer, record.subject.number].commit
                for place, event in enumerate(commit.events):
                    if type(event) is ev.Decided:
                        id = EventId(commit.stamp, commit.writer, commit.number, place)
                        self._decided(record, event, self.chronicle.past(event.task, id))
            case "task.assigned":
                self._assigned(record, record.subject)
            case "heads":
                self._ends[record.node] = dict(told(record, "applied"))
            case "view":
                self._views.setdefault(bytes.fromhex(record.id), {})[record.node] = record

    def _decided(self, record: Record, event: ev.Decided, past: list[Fact]) -> None:
        """Nobody calls decided what a claim has shut out that it had seen."""
        tokens = tokens_of(past)
        if not tokens:
            return
        self.judged("EXCL-3", record.node, record)
        mine = tokens.get(EventId(*event.attempt), 0)
        if mine < max(tokens.values()):
            self.fail(
                "EXCL-3",
                f"{record.node} calls {named(event.task)} decided by an attempt under token {mine}, having seen "
                f"{max(tokens.values())}",
                task=event.task,
                events=(*seqs(past), record.seq),
            )

    def _assigned(self, record: Record, assignment: Assignment) -> None:
        """No handler resumes from what was saved under an older token after the task was claimed under a newer one."""
        claim = self.chronicle.attempts.get(assignment.attempt)
        if claim is None or not assignment.fence or assignment.checkpoint is None:
            return
        past = [*self.chronicle.past(assignment.task, claim.id), claim]
        self.judged("EXCL-3", record.node, record)
        saved = [fact for fact in past if type(fact.event) is ev.Checkpointed and _is(fact.event, assignment)]
        if saved and all(_is_fenced(fact, past) for fact in saved):
            self.fail(
                "EXCL-3",
                f"{record.node} resumes {named(assignment.task)} from checkpoint {assignment.checkpoint_index}, which "
                "was saved under an older token after a newer claim",
                task=assignment.task,
                events=(*seqs(saved), record.seq),
            )

    def at_end(self, world: World) -> None:  # noqa: ARG002 - the trace has told all of it
        for task, shown in self._views.items():
            for region, record in shown.items():
                if region in self._ends and not self.chronicle.node(region).runs_ahead:
                    self._shown(task, record, self.chronicle.within(task, self._ends[region]))

    def _shown(self, task: bytes, record: Record, facts: list[Fact]) -> None:
        """The winner is of the newest token, and what the older ones did is there to be looked at."""
        tokens = tokens_of(facts)
        newest = max(tokens.values(), default=0)
        if not newest:
            return
        self.judged_task("EXCL-3", task)
        winner = told(record, "winner")
        attempts = {id: state for id, state, _ in told(record, "attempts")}
        for id, token in tokens.items():
            if str(id) == winner and token < newest:
                self.fail(
                    "EXCL-3",
                    f"{record.node} shows the success under token {token} as the outcome of {named(task)}, which was "
                    f"claimed under {newest}",
                    task=task,
                    events=(*seqs(facts), record.seq),
                )
            ended = any(type(fact.event) is ev.Ended and EventId(*fact.event.attempt) == id for fact in facts)
            if token < newest and ended and attempts.get(str(id), "open") == "open":
                self.fail(
                    "EXCL-3",
                    f"{record.node} shows nothing of how the attempt under token {token} of {named(task)} ended",
                    task=task,
                    events=(*seqs(facts), record.seq),
                )


def tokens_of(facts: Iterable[Fact]) -> dict[EventId, int]:
    """Attempt -> its token, of those claimed under leases."""
    return {fact.id: fact.event.token for fact in facts if type(fact.event) is ev.Claimed and fact.event.token}


def _is(event: ev.Checkpointed, assignment: Assignment) -> bool:
    return (event.index, event.data) == (assignment.checkpoint_index, assignment.checkpoint)


def _is_fenced(saved: Fact, facts: list[Fact]) -> bool:
    """Whether the task had been claimed under a newer token before this was saved."""
    tokens = tokens_of(facts)
    mine = tokens.get(EventId(*saved.event.attempt), 0)
    return any(token > mine and id < saved.id for id, token in tokens.items())


__all__ = ["Fencing"]
