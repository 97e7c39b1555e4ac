"""CKPT-*: an attempt goes on from the newest checkpoint and ledger of the line that it continues, and never back."""

from __future__ import annotations

from crdtsync import events as ev
from crdtsync.effects import Assignment
from crdtsync.identifiers import EventId
from simulator.checkers.chronicle import Chronicle, Family, named, seqs
from simulator.checkers.reckoning import Try, Verdict, lineage, reckon
from simulator.trace import Record


class Checkpoints(Family):
    #: CKPT-1: resumes from the newest checkpoint that its region had seen. CKPT-2: an index is never used twice in one
    #: line, so no work is redone beyond one interval. CKPT-3: the ledger of the line is inherited whole.
    kinds = ("task.assigned", "commit")
    invariants = ("CKPT-1", "CKPT-2", "CKPT-3")

    def __init__(self, chronicle: Chronicle) -> None:
        super().__init__(chronicle)
        self._started: dict[EventId, int] = {}  # attempt -> index that it began with

    def on_event(self, record: Record) -> None:
        if record.kind == "task.assigned":
            self._assigned(record, record.subject)
            return
        commit = self.chronicle.commits[record.subject.writer, record.subject.number].commit
        for place, event in enumerate(commit.events):
            if type(event) is ev.Checkpointed:
                self._saved(record, EventId(commit.stamp, commit.writer, commit.number, place), event)

    def _assigned(self, record: Record, assignment: Assignment) -> None:
        claim = self.chronicle.attempts.get(assignment.attempt)
        if claim is None:
            return
        past = self.chronicle.past(assignment.task, claim.id)
        verdict = reckon([*past, claim])
        if verdict is None:
            return
        line = lineage(verdict, claim.id)
        self.judged("CKPT-1", record.node, record)
        newest = max(
            (
                one.checkpoint
                for one, by in zip(line, [None, *line], strict=False)
                if one.checkpoint and not _fenced(one, by)
            ),
            default=None,
        )
        index, data = (0, None) if newest is None else (newest[0], newest[2])
        self._started[assignment.attempt] = assignment.checkpoint_index
        if (assignment.checkpoint_index, assignment.checkpoint) != (index, data):
            self.fail(
                "CKPT-1",
                f"attempt {assignment.attempt} of {named(assignment.task)} starts from checkpoint "
                f"{assignment.checkpoint_index}; the newest that {record.node} had seen is {index}",
                task=assignment.task,
                events=(*seqs(past), record.seq),
            )
        self._continues(record, assignment, verdict, line)

    def _continues(self, record: Record, assignment: Assignment, verdict: Verdict, line: list[Try]) -> None:
        """It continues the newest attempt with the same inputs, and has that one's whole ledger."""
        self.judged("CKPT-3", record.node, record)
        mine = line[0]
        others = [
            one
            for one in verdict.tries
            if one is not mine and one.counts and one.claim.inputs == mine.claim.inputs and one.outcome != "ok"
        ]
        told = None if mine.claim.continues is None else EventId(*mine.claim.continues)
        wanted = others[-1].id if others else None
        had = {name for name, _ in assignment.effects}
        known = {effect.name for one in line[1:] for _, effect in one.records} if told == wanted else set()
        if told != wanted:
            self.fail(
                "CKPT-3",
                f"attempt {mine.id} of {named(assignment.task)} continues {told}; the newest with its inputs is {wanted}",
                task=assignment.task,
                events=(record.seq,),
            )
        elif had != known:
            self.fail(
                "CKPT-3",
                f"attempt {mine.id} of {named(assignment.task)} starts with the ledger {sorted(had)}; the attempts that "
                f"it continues recorded {sorted(known)}",
                task=assignment.task,
                events=(record.seq,),
            )

    def _saved(self, record: Record, id: EventId, event: ev.Checkpointed) -> None:
        self.judged("CKPT-2", record.node, record)
        attempt = EventId(*event.attempt)
        before = {
            fact.event.index: fact.event.data
            for fact in self.chronicle.past(event.task, id)
            if type(fact.event) is ev.Checkpointed and EventId(*fact.event.attempt) == attempt
        }
        last = max(before, default=self._started.get(attempt, 0))
        # A save whose answer was lost is sent again, and may stand twice.
        if event.index <= last and before.get(event.index) != event.data:
            self.fail(
                "CKPT-2",
                f"attempt {attempt} of {named(event.task)} saved checkpoint {event.index} after {last}: its index "
                "went back",
                task=event.task,
                events=(record.seq,),
            )


def _fenced(one: Try, by: Try | None) -> bool:
    """Whether an attempt went on saving when the one that continues it had been claimed under a newer token.

    One checkpoint of an attempt is kept, the newest; so the earlier ones are of no use then either.
    """
    assert one.checkpoint is not None
    return by is not None and one.claim.token < by.claim.token and one.checkpoint[1] > by.id
