"""IDEM-*: one task per idempotency key, one effect per line of attempts, and a memory of both that survives."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from crdtsync import events as ev
from crdtsync.identifiers import EventId, region_of
from simulator.checkers.chronicle import Chronicle, Family, named, seqs, told
from simulator.checkers.reckoning import Try, Verdict, lineage, reckon
from simulator.trace import Record


class Idempotency(Family):
    kinds = ("client.answer", "commit", "effect.done", "effect.repeated")
    invariants = ("IDEM-1", "IDEM-2", "IDEM-3")

    def __init__(self, chronicle: Chronicle) -> None:
        super().__init__(chronicle)
        self._keys: dict[tuple[str, str], dict[bytes, Record]] = {}  # (name, key) -> task -> first answer
        self._done: dict[bytes, dict[str, list[tuple[EventId, str, Record]]]] = {}  # task -> effect -> attempt, key

    def on_event(self, record: Record) -> None:
        match record.kind:
            case "client.answer":
                if told(record, "outcome") == "ok" and record.subject.op == "submit":
                    self._answer(record)
            case "commit":
                commit = self.chronicle.commits[record.subject.writer, record.subject.number].commit
                for place, event in enumerate(commit.events):
                    if type(event) is ev.Submitted and event.undoes is None:
                        self._submitted(record, EventId(commit.stamp, commit.writer, commit.number, place), event)
            case _:
                self._effect(record)

    # Keys ------------------------------------------------------------------------------------------

    def _answer(self, record: Record) -> None:
        operation = record.subject
        for spec, answer in zip(operation.command.specs, operation.value or (), strict=False):
            if not isinstance(answer, dict) or "id" not in answer:
                continue
            task = bytes.fromhex(answer["id"])
            self._same_work(record, spec, task)
            if not spec.key:
                continue
            self.judged("IDEM-1", record.node, record)
            known = self._keys.setdefault((spec.name, spec.key), {})
            known.setdefault(task, record)
            if len(known) > 1:
                self._generations(record, spec, known)

    def _generations(self, record: Record, spec: Any, known: dict[bytes, Record]) -> None:
        """Two tasks under one key: the later one must be of a later generation, opened when the window was over."""
        first: dict[int, bytes] = {}
        for task in known:
            submitted = next(
                (f.event for f in self.chronicle.tasks.get(task, ()) if type(f.event) is ev.Submitted), None
            )
            generation = 0 if submitted is None else submitted.generation
            if first.setdefault(generation, task) != task:
                self.fail(
                    "IDEM-1",
                    f"key {spec.key!r} of {spec.name!r} stands for {named(first[generation])} and {named(task)} in one "
                    "generation",
                    task=task,
                    events=(known[first[generation]].seq, record.seq),
                )

    def _same_work(self, record: Record, spec: Any, task: bytes) -> None:
        """A region that knows of another payload under this id or key must have refused."""
        self.judged("IDEM-1", record.node, record)
        held = [
            fact
            for fact in self.chronicle.tasks.get(task, ())
            if type(fact.event) is ev.Submitted and self.chronicle.holds(record.node, fact.id)
        ]
        # What came in between decision and answer is not held against it: some submission must fit.
        if held and all((f.event.name, f.event.payload) != (spec.name, spec.payload) for f in held):
            self.fail(
                "IDEM-1",
                f"{record.node} accepted another payload for {named(task)} ({spec.name!r}, key {spec.key!r}) than the "
                "one that it holds",
                task=task,
                events=(*seqs(held), record.seq),
            )

    def _submitted(self, record: Record, id: EventId, event: ev.Submitted) -> None:
        past = self.chronicle.past(event.task, id)
        self.judged("IDEM-3", record.node, record)
        if any(type(fact.event) is ev.Submitted for fact in past):
            self.fail(
                "IDEM-3",
                f"{record.node} accepted {named(event.task)} anew, though it had seen an earlier submission of it",
                task=event.task,
                events=(*seqs(past), record.seq),
            )
        if event.generation:
            self._next_generation(record, event)

    def _next_generation(self, record: Record, event: ev.Submitted) -> None:
        """A key's next generation opens only after the one before was over for the whole window."""
        before = [
            fact
            for facts in self.chronicle.tasks.values()
            for fact in facts
            if type(fact.event) is ev.Submitted
            and (fact.event.name, fact.event.key, fact.event.generation)
            == (event.name, event.key, event.generation - 1)
        ]
        verdict = reckon(self.chronicle.tasks[before[0].event.task]) if before else None
        if verdict is None or not verdict.ended:
            self.fail(
                "IDEM-1",
                f"{record.node} opened generation {event.generation} of key {event.key!r} while the one before had "
                "not ended",
                task=event.task,
                events=(record.seq,),
            )

    # Effects ---------------------------------------------------------------------------------------

    def _effect(self, record: Record) -> None:
        task, name = bytes.fromhex(told(record, "task")), told(record, "name")
        claim = next((f for f in self.chronicle.tasks.get(task, ()) if str(f.id) == told(record, "attempt")), None)
        if claim is None or name.startswith("undo "):
            return
        self.judged("IDEM-2", record.node, record)
        past = self.chronicle.past(task, claim.id)
        verdict = reckon([*past, claim])
        if verdict is None:
            return
        line = lineage(verdict, claim.id)
        before = self._done.setdefault(task, {}).setdefault(name, [])
        self._recorded(record, task, name, line)
        self._crashed(record, task, name, line, before, verdict)
        before.append((claim.id, record.id, record))

    def _recorded(self, record: Record, task: bytes, name: str, line: list[Try]) -> None:
        """What an earlier attempt of this line has recorded is not done again: it stands in the ledger."""
        for one in line[1:]:
            if any(effect.name == name for _, effect in one.records):
                self.fail(
                    "IDEM-2",
                    f"{name!r} of {named(task)} is done again by attempt {record['attempt']}, though attempt {one.id}, "
                    "which it continues, had recorded it",
                    task=task,
                    events=(record.seq,),
                )

    def _crashed(
        self,
        record: Record,
        task: bytes,
        name: str,
        line: list[Try],
        before: list[tuple[EventId, str, Record]],
        verdict: Verdict,
    ) -> None:
        """What was done and not recorded meets the sink under its old key in the same region, never across a cut."""
        mine = line[0]
        for attempt, key, earlier in before:
            if attempt == mine.id:
                continue
            if verdict.exclusive:
                self._under_leases(record, task, name, mine, verdict.attempt(attempt), key, earlier)
                continue
            follows = _keys_follow(line, attempt, verdict)
            if follows and key != record.id:
                self.fail(
                    "IDEM-2",
                    f"the sink was told {name!r} of {named(task)} under two keys by attempts that follow one another "
                    f"in {mine.region}",
                    task=task,
                    events=(earlier.seq, record.seq),
                )
            elif key == record.id and not follows and region_of(attempt.writer) != mine.region:
                self.fail(
                    "IDEM-2",
                    f"attempts in {region_of(attempt.writer)} and {mine.region} share a key for {name!r} of "
                    f"{named(task)}: undoing one would undo the other",
                    task=task,
                    events=(earlier.seq, record.seq),
                )

    def _under_leases(
        self, record: Record, task: bytes, name: str, mine: Try, other: Try | None, key: str, earlier: Record
    ) -> None:
        """Attempts of a `quorum` task have the same keys in whatever region, if they run on the same inputs."""
        if other is not None and other.claim.inputs == mine.claim.inputs and key != record.id:
            self.fail(
                "IDEM-2",
                f"the sink was told {name!r} of {named(task)} under two keys by attempts that exclude one another",
                task=task,
                events=(earlier.seq, record.seq),
            )


def _keys_follow(line: list[Try], attempt: EventId, verdict: Verdict) -> bool:
    """Whether the newest of a line has the effect keys of `attempt`: each continues an ended one of its own region, or
    of any region under `wait`."""
    for one, older in pairwise(line):
        if not one.claim.continues_ended:
            return False
        if one.region != older.region and verdict.submitted.options.partition != "wait":
            return False
        if older.id == attempt:
            return True
    return False
