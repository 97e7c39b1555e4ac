"""TASK-*: each region takes only steps that its own view allows, and what is settled stays as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crdtsync import events as ev
from crdtsync.identifiers import EventId, region_of
from simulator.checkers.chronicle import Chronicle, Family, named, seqs, told
from simulator.checkers.reckoning import Verdict, reckon
from simulator.trace import Record

if TYPE_CHECKING:
    from crdtsync.effects import Persist, TaskRow

TERMINAL = frozenset(("succeeded", "dead", "cancelled", "expired"))


class Lifecycle(Family):
    kinds = ("commit", "disk.write", "view", "client.answer")
    invariants = ("TASK-1", "TASK-2", "TASK-3", "TASK-4")

    def __init__(self, chronicle: Chronicle) -> None:
        super().__init__(chronicle)
        self._settled: dict[bytes, tuple[str, str, tuple[Any, ...], int]] = {}  # node, state, outcome, seq

    def on_event(self, record: Record) -> None:
        match record.kind:
            case "commit":
                commit = self.chronicle.commits[record.subject.writer, record.subject.number].commit
                for place, event in enumerate(commit.events):
                    if type(event) in STEPS:
                        self._step(record, EventId(commit.stamp, commit.writer, commit.number, place), event)
            case "disk.write":
                batch: Persist = record.subject
                for row in batch.rows:
                    if row.settled:
                        self._row(record, row)
            case "view":
                self._view(record)
            case _:
                self._answer(record)

    # Steps -----------------------------------------------------------------------------------------

    def _step(self, record: Record, id: EventId, event: Any) -> None:
        if self.chronicle.commits[id.writer, id.number].ahead and type(event) is not ev.Claimed:
            return  # it knew more than its heads tell; but nothing is started before these have caught up
        before = self.chronicle.verdict_before(event.task, id)
        region = self._meant(before, id, event)
        invariant = "TASK-3" if type(event) is ev.Claimed else "TASK-1"
        self.judged(invariant, record.node, record)
        why = "it knows no submission of it" if before is None else STEPS[type(event)](before, region, event)
        if why:
            what = type(event).__name__
            self.fail(
                invariant,
                f"{record.node} wrote {what} for {named(event.task)}, though by all it had seen {why}",
                task=event.task,
                events=(*seqs(self.chronicle.past(event.task, id)), record.seq),
                about=(event.task, what),
            )

    def _meant(self, before: Verdict | None, id: EventId, event: Any) -> str:
        """In whose place it was written: of a region that has left for good, another one says that an attempt is lost."""
        if isinstance(event, ev.Ended) and event.outcome == "lost" and before is not None:
            one = before.attempt(EventId(*event.attempt))
            if one is not None and one.region in self.chronicle.roll_before(id).gone:
                return one.region
        return region_of(id.writer)

    # Settled ---------------------------------------------------------------------------------------

    def _row(self, record: Record, row: TaskRow) -> None:
        """A region calls an outcome settled: then every member must have what makes it so."""
        life = self.chronicle.node(record.node)
        facts = self.chronicle.tasks.get(row.task, [])
        heads = self.world.nodes[record.node].applied
        known = [fact for fact in facts if heads.get(fact.id.writer, 0) >= fact.id.number]
        verdict = reckon(known)
        if verdict is None or row.state not in TERMINAL or life.runs_ahead:
            return
        self.judged("TASK-4", record.node, record)
        if not verdict.cancelled_for_good:
            winner = verdict.attempt(verdict.winner)
            # What was settled by one end of an attempt stays so if that is ended again.
            ways = [[end] for end in winner.successes] if winner is not None else [[fact.id for fact in known]]
            lacks = [sorted({name for id in way for name in self.chronicle.lacking(id)}) for way in ways]
            if all(lacks) and not self.chronicle.is_doubtful(row.task):
                self.fail(
                    "TASK-4",
                    f"{record.node} calls {named(row.task)} settled as {row.state}, though {', '.join(lacks[0])} "
                    f"has never had {ways[0][0]}",
                    task=row.task,
                    events=(*seqs(known), record.seq),
                )
        self._fix(row.task, record, row.state, _outcome(verdict))

    def _view(self, record: Record) -> None:
        if told(record, "settled") and told(record, "state") in TERMINAL:
            task = bytes.fromhex(record.id)
            self.judged_task("TASK-4", task)
            if told(record, "state") == "succeeded":
                self._fix(task, record, "succeeded", (told(record, "winner"),))
        if told(record, "state") in TERMINAL:
            self._override(record)

    def _fix(self, task: bytes, record: Record, state: str, outcome: tuple[Any, ...]) -> None:
        known = self._settled.get(task)
        if known is None or known[1] == "dead":  # only a requeue or a cancel moves on from a settled death
            self._settled[task] = (record.node, state, outcome, record.seq)
        elif (known[1], known[2]) != (state, outcome) and not self.chronicle.is_doubtful(task):
            self.fail(
                "TASK-4",
                f"{named(task)} was settled as {known[1]} {known[2]} in {known[0]}, and {record.node} says "
                f"{state} {outcome}",
                task=task,
                events=(known[3], record.seq),
            )

    def _answer(self, record: Record) -> None:
        """What a client was told of a settled outcome stays true."""
        operation = record.subject
        value = operation.value
        if (
            operation.op == "await"
            and told(record, "outcome") == "ok"
            and isinstance(value, dict)
            and value.get("settled")
        ):
            task = bytes.fromhex(operation.task)
            self.judged("TASK-4", record.node, record)
            known = self._settled.get(task)
            if known is not None and known[1] != "dead" and known[1] != value.get("state"):
                self.fail(
                    "TASK-4",
                    f"a client was told that {named(task)} is settled as {value.get('state')}; {known[0]} had settled "
                    f"it as {known[1]}",
                    task=task,
                    events=(known[3], record.seq),
                )

    def _override(self, record: Record) -> None:
        """Where one outcome gave way to another, the view says so with a conflict."""
        task, view = bytes.fromhex(record.id), record.subject
        ok = [one for one in view.attempts if str(one.state) == "ok"]
        newest = max((one.token for one in view.attempts), default=0)
        succeeded = [one for one in ok if one.token in (0, newest)]
        self.judged_task("TASK-2", task)
        kinds = {str(conflict.kind) for conflict in view.conflicts}
        if len(ok) > len(succeeded) and "fenced_completion" not in kinds:
            self._silent(task, record, "an attempt succeeded under an older token")
        elif view.winner is not None and len(succeeded) > 1 and "double_success" not in kinds:
            self._silent(task, record, f"{len(succeeded)} attempts succeeded")
        elif view.winner is not None and view.expired is not None and "success_against_expiry" not in kinds:
            self._silent(task, record, "it succeeded against an expiry")
        elif succeeded and view.cancel is not None and "success_against_cancel" not in kinds:
            self._silent(task, record, "a success met a cancel")

    def _silent(self, task: bytes, record: Record, what: str) -> None:
        self.fail(
            "TASK-2",
            f"{record.node} shows {named(task)} as {record['state']} without a conflict, though {what}",
            task=task,
            events=(record.seq,),
        )


def _outcome(verdict: Verdict) -> tuple[Any, ...]:
    return (str(verdict.winner),) if verdict.state == "succeeded" else ()


# What a region may write, by all that it had seen: why not, or "" ------------------------------------


def _claim(before: Verdict, region: str, event: ev.Claimed) -> str:
    if before.cancel is not None or before.asked:
        return "its cancel was asked for"
    if before.winner is not None or before.ended:
        return f"it was {before.state}"
    if before.expired is not None:
        return "it had expired"
    if before.exhausted:
        return f"its attempts were used up ({before.failures} of {before.granted} failed, {before.lost} lost)"
    if EventId(*event.submission) != before.submission:
        return "another submission was the smallest"
    if any(one.region == region for one in before.open_tries):
        return "an attempt of its own was open"
    return ""


def _end(before: Verdict, region: str, event: ev.Ended) -> str:
    one = before.attempt(EventId(*event.attempt))
    if one is None:
        return "there was no such attempt"
    if one.region != region:
        return f"the attempt was {one.region}'s"
    return "the attempt had ended" if one.end is not None else ""


def _record(before: Verdict, region: str, event: ev.EffectRecorded) -> str:
    one = before.attempt(EventId(*event.attempt))
    if one is None:
        return "there was no such attempt"
    if one.region != region:
        return f"the attempt was {one.region}'s"
    return "its handler had returned" if one.outcome == "ok" else ""


def _point(before: Verdict, region: str, event: ev.Checkpointed) -> str:
    one = before.attempt(EventId(*event.attempt))
    if one is None or one.region != region:
        return "it was no attempt of its own"
    return "the attempt had ended" if one.end is not None else ""


def _expire(before: Verdict, region: str, _event: ev.Expired) -> str:
    if before.owner != region:
        return f"it belonged to {before.owner}"
    if not before.submitted.deadline_ms:
        return "it has no deadline"
    return f"it was {before.state}" if before.ended else ""


def _requeue(before: Verdict, _region: str, event: ev.Requeued) -> str:
    if before.state != "dead" and not before.exhausted:
        return f"it was {before.state}"
    return f"death {event.death} had been answered" if event.death in before.answered else ""


def _cancel(before: Verdict, _region: str, event: ev.CancelRequested) -> str:
    return f"it was {before.state}" if before.state in ("cancelled", "expired") and not event.late else ""


STEPS: dict[type[Any], Any] = {
    ev.Claimed: _claim,
    ev.Ended: _end,
    ev.EffectRecorded: _record,
    ev.Checkpointed: _point,
    ev.Expired: _expire,
    ev.Requeued: _requeue,
    ev.CancelRequested: _cancel,
}
