"""DUR-* and LOG-*: what was acknowledged is on disk and stays; what is on disk is what was written, whole and in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from crdtsync import events as ev
from crdtsync.effects import CommitRow, Persist
from crdtsync.log.commit import NO_HASH, commit_hash
from simulator.checkers.chronicle import Chronicle, Family, NodeLife, named, told
from simulator.trace import Record
from simulator.vacuity import region_of_node

if TYPE_CHECKING:
    from simulator.world import World

NEVER_DURABLE: Final = "not yet on disk"


REPAIRS: Final = frozenset((ev.WriterOpened, ev.Reissued))


class Durability(Family):
    kinds = ("client.answer", "commit", "disk.write", "disk.lost", "node.start", "notify", "task.assigned")
    invariants = ("DUR-1", "DUR-2", "LOG-1", "LOG-2", "LOG-3", "LOG-4", "LOG-5", "LOG-7")

    def __init__(self, chronicle: Chronicle) -> None:
        super().__init__(chronicle)
        self._hashes: dict[tuple[str, int], bytes] = {}
        self._gone: dict[tuple[str, int], int] = {}  # of commits that never became durable: seq of their loss
        self._promised: dict[bytes, tuple[str, Record]] = {}  # task -> the region that acknowledged it first

    def on_event(self, record: Record) -> None:
        match record.kind:
            case "disk.write":
                self._write(record)
            case "commit":
                self._commit(record)
            case "client.answer":
                self._answer(record)
            case "disk.lost":
                if told(record, "reason") == NEVER_DURABLE:
                    for writer, number in told(record, "commits"):
                        if not any(self.chronicle.held_ever(name, writer, number) for name in self.chronicle.nodes):
                            self._gone[writer, number] = record.seq
            case "node.start":
                self._start(record)
            case "notify":
                if record.id == "commits.lost":
                    self._given_up(record)
            case "task.assigned":
                self._assigned(record)

    # Commits on their way to a disk ----------------------------------------------------------------

    def _commit(self, record: Record) -> None:
        row: CommitRow = record.subject
        commit = self.chronicle.commits[row.writer, row.number].commit
        life = self.chronicle.node(record.node)
        self.judged("LOG-5", record.node, record)
        before = self._hashes.get((row.writer, row.number - 1), NO_HASH)
        self._hashes.setdefault((row.writer, row.number), commit_hash(row.blob))
        if commit.previous != before:
            self.fail(
                "LOG-5",
                f"commit {row.number} of {row.writer} does not follow the one before it: it names another hash",
                events=(record.seq,),
            )
        if row.writer != life.writer or commit.hash.hex() != told(record, "hash"):
            self.fail(
                "LOG-5",
                f"{record.node} wrote commit {row.number} as {row.writer}, though it runs as {life.writer}",
                events=(record.seq,),
            )
        self._told_all(record, row, life)

    def _told_all(self, record: Record, row: CommitRow, life: NodeLife) -> None:
        """A commit's deps must name everything that its writer had applied by its previous write: or nothing, where it
        re-issues what others hold back."""
        if {type(event) for event in self.chronicle.commits[row.writer, row.number].commit.events} <= REPAIRS:
            return
        self.judged("LOG-2", record.node, record)
        seen = self.chronicle.commits[row.writer, row.number].seen
        for writer, number in life.applied_before.items():
            if writer != row.writer and seen.get(writer, 0) < number:
                self.fail(
                    "LOG-2",
                    f"commit {row.number} of {row.writer} says that it had seen {seen.get(writer, 0)} commits of "
                    f"{writer}; its node had applied {number}",
                    events=(record.seq,),
                )

    def _write(self, record: Record) -> None:
        batch: Persist = record.subject
        life = self.chronicle.node(record.node)
        coming: dict[str, int] = {}
        for row in batch.commits:
            self._row(record, row, life, coming)
        if batch.drop:
            self._drop(record, batch)
        self._look_at_applied(record, life, coming)

    def _row(self, record: Record, row: CommitRow, life: NodeLife, coming: dict[str, int]) -> None:
        place = (row.writer, row.number)
        self.judged("LOG-1", record.node, record)
        digest = commit_hash(row.blob)
        known = self._hashes.setdefault(place, digest)
        if known != digest:
            self.fail(
                "LOG-1",
                f"commit {row.number} of {row.writer} stands for two contents: {record.node} stores another than was "
                "stored elsewhere",
                events=(record.seq,),
                about=place,
            )
        written = self.chronicle.commits.get(place)
        self.judged("LOG-4", record.node, record)
        if written is None:
            self.fail(
                "LOG-4",
                f"{record.node} stores commit {row.number} of {row.writer}, which nobody ever wrote",
                events=(record.seq,),
            )
        elif row.writer != life.writer:
            self.judged("LOG-3", record.node, record)
            if place in self._gone or not self.chronicle.held_ever(written.node, *place):
                self.fail(
                    "LOG-3",
                    f"{record.node} has got commit {row.number} of {row.writer}, which was never durable where it was "
                    "written: it left the node before its fsync",
                    events=(written.seq, record.seq, self._gone.get(place, -1)),
                    about=place,
                )
        have = max(coming.get(row.writer, 0), life.on_disk.get(row.writer, 0))
        self.judged("LOG-2", record.node, record)
        if row.number > have + 1:
            self.fail(
                "LOG-2",
                f"{record.node} stores commit {row.number} of {row.writer} after {have}: the ones between are missing",
                events=(record.seq,),
                about=(record.node, place),
            )
        coming[row.writer] = max(have, row.number)

    def _look_at_applied(self, record: Record, life: NodeLife, coming: dict[str, int]) -> None:
        """The applied set is a gap-free prefix of each writer, holds all that it rests on, and only grows."""
        node = self.world.nodes.get(record.node)
        if node is None or node.replica is None:
            return
        applied = node.applied
        commits = self.chronicle.commits
        self.judged("LOG-2", record.node, record)
        for writer, number in applied.items():
            if life.applied.get(writer, 0) >= number or number <= life.floor.get(writer, 0):
                continue
            stored = max(coming.get(writer, 0), life.on_disk.get(writer, 0))
            if number > stored:
                self.fail(
                    "LOG-2",
                    f"{record.node} has applied commit {number} of {writer}; its disk holds no more than {stored}",
                    events=(record.seq,),
                    about=(record.node, writer),
                )
            written = commits.get((writer, number))
            if written is None:
                continue
            for other, needed in written.seen.items():
                if applied.get(other, 0) < needed:
                    self.fail(
                        "LOG-2",
                        f"{record.node} has applied commit {number} of {writer}, which had seen commit {needed} of "
                        f"{other}, and of that writer only {applied.get(other, 0)}: the applied set is not closed",
                        events=(written.seq, record.seq),
                        about=(record.node, writer, other),
                    )
        life.applied_before, life.applied = life.applied, applied

    def _drop(self, record: Record, batch: Persist) -> None:
        for _, writer, number in batch.drop:
            self.judged("LOG-7", record.node, record)
            lacking = self.chronicle.dropped_too_early(writer, number)
            if lacking:
                self.fail(
                    "LOG-7",
                    f"{record.node} drops the commits of {writer} up to {number}, which {', '.join(lacking)} never had",
                    events=(record.seq,),
                    about=(record.node, writer),
                )

    # Restarts --------------------------------------------------------------------------------------

    def _start(self, record: Record) -> None:
        if "~" in record.node:
            return
        self.judged("LOG-5", record.node, record)
        life = self.chronicle.node(record.node)
        if life.rebased:
            life.rebased = False
            return
        # Below the floor of a snapshot that it took, a disk may still hold what it is about to drop.
        found, known = (
            {writer: number for writer, number in heads.items() if number > life.floor.get(writer, 0)}
            for heads in (dict(told(record, "heads")), life.on_disk)
        )
        for writer in sorted(found.keys() | known.keys()):
            if found.get(writer, 0) != known.get(writer, 0):
                self.fail(
                    "LOG-5",
                    f"{record.node} starts and finds {found.get(writer, 0)} commits of {writer} on its disk; "
                    f"{known.get(writer, 0)} were durable",
                    events=(record.seq,),
                    about=(record.node, writer),
                )
        if any(record.id == written.commit.writer for written in self.chronicle.commits.values()):
            self.fail(
                "LOG-1",
                f"{record.node} starts as {record.id}, under which commits were written before: an identity is reused",
                events=(record.seq,),
                about=record.id,
            )

    def _given_up(self, record: Record) -> None:
        """What a node calls lost for good is on no member's disk."""
        for writer, _, last in record.subject.facts["lacking"]:
            for name in self.world.scenario.names:
                if self.chronicle.on_disk(name, writer, last):
                    self.fail(
                        "DUR-2",
                        f"{record.node} gives up the commits of {writer} up to {last}, which {name} has on its disk",
                        events=(record.seq,),
                        about=(record.node, writer),
                    )

    # Promises --------------------------------------------------------------------------------------

    def _answer(self, record: Record) -> None:
        operation = record.subject
        if told(record, "outcome") != "ok":
            return
        region = region_of_node(record.node)
        if operation.op == "submit":
            for task in _accepted(operation.value):
                self.judged("DUR-1", region, record)
                self._on_disk(record, region, task, ev.Submitted, "the submission")
                self._promised.setdefault(task, (region, record))
        elif operation.op == "cancel" and _is_taken(operation.value):
            task = bytes.fromhex(operation.task)
            self.judged("DUR-1", region, record)
            self._on_disk(record, region, task, ev.CancelRequested, "a cancel")

    def _on_disk(self, record: Record, region: str, task: bytes, kind: type[Any], what: str) -> None:
        chronicle = self.chronicle
        if chronicle.node(region).runs_ahead:
            return  # it may know of the task by a snapshot's row, which is durable without the commit
        facts = [fact for fact in chronicle.tasks.get(task, ()) if type(fact.event) is kind]
        if not any(chronicle.holds(region, fact.id) for fact in facts):
            self.fail(
                "DUR-1",
                f"{region} acknowledged {what} of {named(task)} ({record.id}), and its disk does not hold it",
                task=task,
                events=(*(fact.seq for fact in facts), record.seq),
            )

    def _assigned(self, record: Record) -> None:
        """A handler may start once its claim is durable: else a crash forgets that it ever ran."""
        assignment = record.subject
        self.judged("LOG-3", record.node, record)
        if not self.chronicle.holds(record.node, assignment.attempt):
            self.fail(
                "LOG-3",
                f"{record.node} hands {named(assignment.task)} to a worker before the claim is on its disk",
                task=assignment.task,
                events=(record.seq,),
            )

    def at_end(self, world: World) -> None:
        """After the heal every live replica knows whatever was acknowledged, unless every disk that had it was lost."""
        if world.converged_us is None:
            return
        nodes = [node for node in world.healed_nodes() if node.replica is not None]
        known = {node.name: node.tasks() for node in nodes}
        healed = {node.name for node in nodes}
        for task, (region, record) in self._promised.items():
            facts = [f for f in self.chronicle.tasks.get(task, ()) if type(f.event) is ev.Submitted]
            if not any(self.chronicle.survives(fact.id) for fact in facts):
                continue  # judged by DUR-1 when it was promised; its disk is gone, and nobody else had it yet
            if region not in healed and not any(task in known[node.name] for node in nodes):
                continue  # whoever has it is still as the faults left it: it need not have told anybody
            self.judged_task("DUR-2", task)
            for node in nodes:
                if task not in known[node.name]:
                    self.fail(
                        "DUR-2",
                        f"{named(task)}, acknowledged by {region} at {record.at_s:.3f} s, is unknown in {node.name} "
                        "after the heal",
                        task=task,
                        events=(record.seq,),
                    )


def _is_taken(value: Any) -> bool:
    """Whether the answer to a cancel says that it was noted, rather than that it came too late."""
    return isinstance(value, dict) and not str(value.get("answer", "already")).startswith("already")


def _accepted(value: Any) -> list[bytes]:
    """The tasks that an answer to a submit acknowledges."""
    return [bytes.fromhex(one["id"]) for one in value or () if isinstance(one, dict) and "id" in one]
