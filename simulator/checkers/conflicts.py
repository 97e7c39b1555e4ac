"""CONF-*: one winner, truthful lateness, and every effect that the outcome does not rest on is undone exactly once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from crdtsync import events as ev
from crdtsync.identifiers import EventId, region_of
from crdtsync.protocol.codec import decode_value
from simulator.checkers.chronicle import Chronicle, Family, named, seqs, told
from simulator.checkers.placement import order_of
from simulator.checkers.reckoning import Due, Verdict, due_compensations, reckon, standing_keys
from simulator.trace import Record
from simulator.vacuity import region_of_node

if TYPE_CHECKING:
    from simulator.world import World

REPORTED_FACTOR: Final = 2  # of the time that a started node gives its workers: it counts from its first review
LATE: Final = frozenset((ev.Ended, ev.CancelRequested, ev.Expired))


class Conflicts(Family):
    kinds = ("commit", "view", "effect.done", "effect.repeated")
    invariants = ("CONF-1", "CONF-2", "CONF-3", "CONF-4", "CONF-7")

    def __init__(self, chronicle: Chronicle) -> None:
        super().__init__(chronicle)
        self._undoing: dict[bytes, list[tuple[EventId, ev.Submitted, int]]] = {}  # task -> submissions that undo it
        self._views: dict[bytes, dict[str, Record]] = {}

    def on_event(self, record: Record) -> None:
        if record.kind == "view":
            self._views.setdefault(bytes.fromhex(record.id), {})[record.node] = record
        elif record.kind == "commit":
            commit = self.chronicle.commits[record.subject.writer, record.subject.number].commit
            for place, event in enumerate(commit.events):
                id = EventId(commit.stamp, commit.writer, commit.number, place)
                if type(event) in LATE:
                    self._late(record, id, event)
                elif type(event) is ev.Submitted and event.undoes is not None:
                    self._compensation(record, id, event)

    # Late ------------------------------------------------------------------------------------------

    def _late(self, record: Record, id: EventId, event: Any) -> None:
        before = self.chronicle.verdict_before(event.task, id)
        if before is None or self.chronicle.commits[id.writer, id.number].ahead:
            return
        self.judged("CONF-3", record.node, record)
        if event.late != before.outcome_known:
            known = "had seen an outcome" if before.outcome_known else "had seen none"
            self.fail(
                "CONF-3",
                f"{record.node} wrote {type(event).__name__} for {named(event.task)} with late={event.late}, though it "
                f"{known} ({before.state})",
                task=event.task,
                events=(*seqs(self.chronicle.past(event.task, id)), record.seq),
            )

    # Compensations as they are submitted -----------------------------------------------------------

    def _compensation(self, record: Record, id: EventId, event: ev.Submitted) -> None:
        assert event.undoes is not None
        task, attempt, key = event.undoes
        attempt = self.chronicle.reissues.id(attempt)
        self._undoing.setdefault(task, []).append((id, event, record.seq))
        if self.chronicle.commits[id.writer, id.number].ahead:
            return
        past = self.chronicle.past(task, id)
        before = reckon(past)
        self.judged("CONF-4", record.node, record)
        why = self._wrong(before, attempt, key, event, id)
        if why:
            self.fail(
                "CONF-4",
                f"{record.node} undoes attempt {attempt} of {named(task)}, though {why}",
                task=task,
                events=(*seqs(past), record.seq),
                about=(task, attempt, key),
            )

    def _wrong(self, before: Verdict | None, attempt: EventId, key: bytes, event: ev.Submitted, id: EventId) -> str:
        """Why this compensation must not be, "" if it may."""
        one = None if before is None else before.attempt(attempt)
        if before is None or one is None:
            return "it had not seen that attempt"
        if before.submitted.undoes is not None:
            return "that is a compensation itself"
        if one.end is None:
            return "the attempt had not ended"
        if one.id == before.winner:
            return "the attempt is the winner"
        roll = self.chronicle.roll_before(id)
        whose = order_of(event.task, roll.voters)[0] if one.region in roll.gone else one.region
        if whose != region_of(id.writer):
            return f"the attempt was {whose}'s to undo"
        names = self.chronicle.names_of_compensations(before.submitted.task)
        due = next((due for due in due_compensations(before, names) if (due.attempt, due.key) == (attempt, key)), None)
        if due is None:
            return f"nothing of it was to be undone ({before.state})"
        named_effects = frozenset(decode_value(event.payload)["effects"])
        if named_effects - due.names:
            standing = sorted(named_effects - due.names)
            return f"{', '.join(standing)} is not its own, or the outcome rests on it"
        if not due.early:
            return self._premature(before)
        return ""

    def _premature(self, before: Verdict) -> str:
        """A later merge must not be able to change the outcome on which a compensation rests."""
        if before.submitted.options.partition == "wait":
            return ""
        winner = before.attempt(before.winner)
        if winner is None or winner.end is None or self.chronicle.is_doubtful(before.submitted.task):
            return ""
        lacking = self.chronicle.lacking(winner.end[0])
        return f"the success is not settled: {', '.join(lacking)} never had it" if lacking else ""

    # At the end ------------------------------------------------------------------------------------

    def at_end(self, world: World) -> None:
        converged = world.converged_us is not None
        names = {node.name for node in world.healed_nodes()}
        whole = converged and names >= set(self.chronicle.members_left)
        for task, facts in self.chronicle.tasks.items():
            shown = {name: record for name, record in self._views.get(task, {}).items() if name in names}
            self._once(task)
            verdict = reckon([fact for fact in facts if self.chronicle.survives(fact.id)])
            if verdict is None or not verdict.ended:
                continue
            settled = bool(shown) and all(told(record, "settled") for record in shown.values())
            if whole and settled and len(shown) == len(names):
                self._judge(task, verdict, shown)
                self._conservation(task, shown)

    def _once(self, task: bytes) -> None:
        """One id for whatever is undone, and never two for one."""
        ids: dict[tuple[EventId, bytes], bytes] = {}
        for _, event, seq in self._undoing.get(task, ()):
            assert event.undoes is not None
            about = (self.chronicle.reissues.id(event.undoes[1]), event.undoes[2])
            self.judged_task("CONF-2", task)
            known = ids.setdefault(about, event.task)
            if known != event.task:
                self.fail(
                    "CONF-2",
                    f"attempt {about[0]} of {named(task)} is undone by two tasks, {known.hex()[:8]} and "
                    f"{event.task.hex()[:8]}",
                    task=task,
                    events=(seq,),
                )

    def _judge(self, task: bytes, verdict: Verdict, shown: dict[str, Record]) -> None:
        self.judged_task("CONF-1", task)
        winners = {told(record, "winner") for record in shown.values()}
        mine = None if verdict.winner is None else str(verdict.winner)
        if winners != {mine}:
            self.fail(
                "CONF-1",
                f"{named(task)} has the winner {mine} by its facts; the regions show {sorted(map(str, winners))}",
                task=task,
                events=[record.seq for record in shown.values()],
            )
        if verdict.submitted.undoes is not None:
            return
        due = {
            (one.attempt, one.key): one
            for one in due_compensations(verdict, self.chronicle.names_of_compensations(task))
        }
        done = {
            (self.chronicle.reissues.id(event.undoes[1]), event.undoes[2]): event
            for id, event, _ in self._undoing.get(task, ())
            if event.undoes is not None and self.chronicle.survives(id)
        }
        for about in sorted(due.keys() - done.keys()):
            self._missing(task, due[about], shown)
        for about in sorted(done.keys() - due.keys()):
            self.fail(
                "CONF-4",
                f"attempt {about[0]} of {named(task)} was undone, and the outcome ({verdict.state}) gave no cause",
                task=task,
            )
        self._left_standing(task, verdict, done)

    def _missing(self, task: bytes, due: Due, shown: dict[str, Record]) -> None:
        self.fail(
            "CONF-1",
            f"attempt {due.attempt} of {named(task)} did {', '.join(sorted(due.names)) or 'something'} that the "
            "outcome does not rest on; nothing undoes it",
            task=task,
            events=[record.seq for record in shown.values()],
        )

    def _left_standing(self, task: bytes, verdict: Verdict, done: dict[Any, ev.Submitted]) -> None:
        """What a compensation undoes is not what the outcome rests on."""
        standing = standing_keys(verdict)
        for (attempt, _), event in done.items():
            one = verdict.attempt(attempt)
            if one is None:
                continue
            undone = frozenset(decode_value(event.payload)["effects"])
            for _, record in one.records:
                if record.name in undone and record.key in standing:
                    self.fail(
                        "CONF-4",
                        f"{record.name} of attempt {attempt} of {named(task)} was undone, and the outcome rests on it",
                        task=task,
                    )

    def _may_be_reported(self, writer: str) -> bool:
        """Whether a later start of this node has just been made, and still waits for workers to say what they run."""
        world = self.chronicle.world
        for name, life in self.chronicle.nodes.items():
            node = world.nodes.get(name)
            if (
                node is not None
                and node.running
                and life.writer != writer
                and region_of_node(name) == region_of(writer)
            ):
                waits_ms = REPORTED_FACTOR * max(node.settings.start_grace_ms, node.settings.worker_lost_after_ms)
                if world.kernel.now_us - life.started_us < waits_ms * 1_000:
                    return True
        return False

    def _conservation(self, task: bytes, shown: dict[str, Record]) -> None:
        """An attempt that is open at the end runs somewhere: nothing else can end it any more."""
        self.judged_task("CONF-7", task)
        running = self.chronicle.running()
        for record in shown.values():
            for id, state, _ in told(record, "attempts"):
                if state == "open" and id not in running and not self._may_be_reported(id.partition(":")[0]):
                    self.fail(
                        "CONF-7",
                        f"{record.node} shows attempt {id} of {named(task)} as open, and no worker runs it",
                        task=task,
                        events=(record.seq,),
                    )
