"""RETRY-* and DLQ-1: attempts are counted, rest in between, and end in one dead letter."""

from __future__ import annotations

from typing import Final

from crdtsync import events as ev
from crdtsync.effects import TaskRow
from crdtsync.identifiers import EventId
from simulator.checkers.chronicle import Family, named, seqs
from simulator.checkers.peek import physical_ms
from simulator.checkers.reckoning import Verdict, reckon
from simulator.trace import Record

SLACK_MS: Final = 5  # between a decision and the record of the batch that carries it


class Retries(Family):
    kinds = ("commit", "disk.write")
    invariants = ("RETRY-1", "RETRY-2", "RETRY-4", "DLQ-1")

    def on_event(self, record: Record) -> None:
        match record.kind:
            case "disk.write":
                for row in record.subject.rows:
                    if row.state == "dead":
                        self._dead(record, row)
            case _:
                commit = self.chronicle.commits[record.subject.writer, record.subject.number].commit
                for place, event in enumerate(commit.events):
                    if type(event) is ev.Claimed:
                        self._claimed(record, EventId(commit.stamp, commit.writer, commit.number, place), event)

    def _claimed(self, record: Record, id: EventId, event: ev.Claimed) -> None:
        past = self.chronicle.past(event.task, id)
        before = reckon(past)
        if before is None or not before.tries:
            return
        self.judged("RETRY-1", record.node, record)
        events = (*seqs(past), record.seq)
        if before.failures >= before.granted:
            self.fail(
                "RETRY-1",
                f"{record.node} started attempt {len(before.tries) + 1} of {named(event.task)}, of which {before.failures} "
                f"had failed and {before.granted} were granted",
                task=event.task,
                events=events,
            )
        final = [one for one in before.tries if one.counts and one.end is not None and not one.end[1].retryable]
        self.judged("RETRY-4", record.node, record)
        if any(one.outcome == "failed" for one in final) and before.exhausted:
            self.fail(
                "RETRY-4",
                f"{record.node} started {named(event.task)} again after a failure that is not retryable",
                task=event.task,
                events=events,
            )
        self._rested(record, event, before)

    def _rested(self, record: Record, event: ev.Claimed, before: Verdict) -> None:
        """Between a failure and half the backoff after it nothing starts, by the clock of whoever starts it."""
        end, options = before.failed_at, before.submitted.options
        if end is None:
            return
        self.judged("RETRY-2", record.node, record)
        delay_ms = options.backoff_ms_base
        for _ in range(before.streak - 1):
            delay_ms = delay_ms * options.backoff_factor_permille // 1_000
        cap_ms = options.backoff_ms_max or delay_ms
        least_ms = min(delay_ms, cap_ms) // 2 - SLACK_MS
        # Not by the claim's stamp: a commit that waits for its batch has that of its first event.
        rested_ms = physical_ms(self.world.nodes[record.node]) - (end.stamp >> 16)
        if rested_ms < least_ms:
            self.fail(
                "RETRY-2",
                f"{record.node} started {named(event.task)} {rested_ms} ms after its last failure; its backoff is at "
                f"least {least_ms} ms",
                task=event.task,
                events=(record.seq,),
            )

    def _dead(self, record: Record, row: TaskRow) -> None:
        """A dead letter is one: its attempts are used up and none is open."""
        life = self.chronicle.node(record.node)
        if life.runs_ahead:
            return
        verdict = reckon(self.chronicle.within(row.task, self.world.nodes[record.node].applied))
        if verdict is None:
            return
        self.judged("DLQ-1", record.node, record)
        if verdict.state != "dead":
            self.fail(
                "DLQ-1",
                f"{record.node} keeps {named(row.task)} as a dead letter; by its facts it is {verdict.state} "
                f"({verdict.failures} of {verdict.granted} failed)",
                task=row.task,
                events=(record.seq,),
            )
