"""DAG-*: a dependent starts after what it depends on has succeeded, and says which attempts it rests on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from crdtsync import events as ev
from crdtsync.identifiers import EventId
from simulator.checkers.chronicle import Chronicle, Family, named, seqs, told
from simulator.trace import Record

if TYPE_CHECKING:
    from simulator.world import World

FAILED: Final = ("dead", "cancelled", "expired")


class Dependencies(Family):
    kinds = ("commit", "view")
    invariants = ("DAG-1", "DAG-2", "DAG-4")

    def __init__(self, chronicle: Chronicle) -> None:
        super().__init__(chronicle)
        self._parents: dict[bytes, tuple[tuple[bytes, bool], ...]] = {}
        self._views: dict[bytes, dict[str, Record]] = {}

    def on_event(self, record: Record) -> None:
        if record.kind == "view":
            self._views.setdefault(bytes.fromhex(record.id), {})[record.node] = record
            return
        commit = self.chronicle.commits[record.subject.writer, record.subject.number].commit
        for place, event in enumerate(commit.events):
            id = EventId(commit.stamp, commit.writer, commit.number, place)
            if type(event) is ev.Submitted and event.after:
                self._submitted(record, id, event)
            elif type(event) is ev.Claimed:
                self._claimed(record, id, event)

    def _submitted(self, record: Record, id: EventId, event: ev.Submitted) -> None:
        """It may name only what its region held, or what comes before it in the same commit: so no cycle is made."""
        self.judged("DAG-2", record.node, record)
        self._parents[event.task] = event.after
        for parent, _ in event.after:
            if not any(type(fact.event) is ev.Submitted for fact in self.chronicle.past(parent, id)):
                self.fail(
                    "DAG-2",
                    f"{record.node} accepted {named(event.task)} after {named(parent)}, which it did not hold",
                    task=event.task,
                    events=(record.seq,),
                )

    def _claimed(self, record: Record, id: EventId, event: ev.Claimed) -> None:
        before = self.chronicle.verdict_before(event.task, id)
        if before is None or not before.submitted.after:
            return
        self.judged("DAG-1", record.node, record)
        used = {task: EventId(*attempt) for task, attempt in event.inputs}
        for parent, settled in before.submitted.after:
            past = self.chronicle.past(parent, id)
            verdict = self.chronicle.verdict_before(parent, id)
            why = ""
            if verdict is None or verdict.winner is None:
                state = "unknown" if verdict is None else verdict.state
                why = f"its parent {named(parent)} was {state}"
            elif used.get(parent) != verdict.winner:
                why = f"it says that it rests on attempt {used.get(parent)} of {named(parent)}, not on {verdict.winner}"
            elif settled:
                winner = verdict.attempt(verdict.winner)
                assert winner is not None
                assert winner.end is not None
                lacking = self.chronicle.lacking(winner.end[0])
                if (
                    lacking
                    and not self.chronicle.node(record.node).runs_ahead
                    and not self.chronicle.is_doubtful(parent)
                ):
                    why = f"its parent {named(parent)} was not settled: {', '.join(lacking)} never had its end"
            if why:
                self.fail(
                    "DAG-1",
                    f"{record.node} started {named(event.task)}, though {why}",
                    task=event.task,
                    events=(*seqs(past), record.seq),
                )

    def at_end(self, world: World) -> None:
        self._cycles()
        if world.converged_us is None:
            return
        for task, parents in self._parents.items():
            shown = self._views.get(task)
            if shown:
                self._cascade(task, parents, shown)

    def _cycles(self) -> None:
        done: set[bytes] = set()
        for start in self._parents:
            path: list[bytes] = []
            todo = [(start, False)]
            while todo:
                task, leaving = todo.pop()
                if leaving:
                    path.remove(task)
                    done.add(task)
                elif task in path:
                    self.fail("DAG-2", f"{named(task)} waits for itself over {len(path)} tasks", task=task)
                    return
                elif task not in done:
                    path.append(task)
                    todo.append((task, True))
                    todo += [(parent, False) for parent, _ in self._parents.get(task, ())]

    def _cascade(self, task: bytes, parents: tuple[tuple[bytes, bool], ...], shown: dict[str, Record]) -> None:
        """Where a parent has failed for good, whoever still waits for it waits for ever."""
        self.judged_task("DAG-4", task)
        for parent, _ in parents:
            for region, record in shown.items():
                of_parent = self._views.get(parent, {}).get(region)
                if of_parent is None or told(of_parent, "state") not in FAILED or not told(of_parent, "settled"):
                    continue
                if (
                    told(record, "state") == "waiting"
                    and self.chronicle.world.kernel.now_us - self._moved(parent) > PATIENCE_US
                ):
                    self.fail(
                        "DAG-4",
                        f"{named(task)} still waits in {region} for {named(parent)}, which is {of_parent['state']}",
                        task=task,
                        events=(of_parent.seq, record.seq),
                    )

    def _moved(self, task: bytes) -> int:
        return max((fact.at_us for fact in self.chronicle.tasks.get(task, ())), default=0)


PATIENCE_US: Final = 30_000_000  # from the last fact of a parent to its dependents' end


__all__ = ["Dependencies"]
