"""A stage for checkers: traces made by hand, of commits that are real and nodes that are not.

stage = Stage(Lifecycle, "eu", "us")
task = stage.submit("eu")
attempt = stage.claim("eu", task)
stage.end("eu", task, attempt)
assert stage.found() == []

Time passes only where a test says so. What a node writes has seen whatever its disk holds, unless told otherwise.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from crdtsync import events as ev
from crdtsync.clock import make_stamp
from crdtsync.coordination.membership import Membership
from crdtsync.coordination.roster import Roster
from crdtsync.effects import CommitRow, Notify, Persist, TaskRow
from crdtsync.identifiers import DEFAULT_DOMAIN, EventId, RegionId, TaskId, writer_id
from crdtsync.log.commit import NO_HASH, Commit, seal
from crdtsync.log.heads import Heads
from crdtsync.settings import Settings
from simulator.checkers import Chronicle, Family
from simulator.clock import EPOCH_US, LocalClock
from simulator.result import Operation, Violation
from simulator.scenario import Region, Scenario
from simulator.trace import Trace

OPTIONS = ev.Options("takeover", 3, 5, 1_000, 60_000, 2_000, "loses", "", 0, 60_000, 86_400_000, ())


class FakeNode:
    """What checkers ask of a node."""

    def __init__(self, stage: Stage, region: str, members: tuple[str, ...]) -> None:
        self.name = self.region = region
        self.settings = Settings("test", RegionId(region), "a", tuple(map(RegionId, members)), lost_after_ms=3_000)
        self.shown: Membership | None = None  # instead of what its log comes to
        self._folded: tuple[int, Membership] = (-1, Membership.founding(()))
        self.applied: dict[str, int] = {}
        self.digest = b"same"
        self.clock = LocalClock()
        self.replica: Any = SimpleNamespace(
            _here=SimpleNamespace(
                clock=SimpleNamespace(_mono_ms=0, _offset_ns=EPOCH_US * 1_000),
                log=SimpleNamespace(released=lambda _writer: 0),
                stamps=True,
            ),
            _reissuing=SimpleNamespace(pending=False),
            _opened=True,
            _rows=SimpleNamespace(floor_heads={}),
        )
        self.disk = SimpleNamespace(slow_us=0, store=SimpleNamespace(meta={}))
        self.slow_us = 0
        self.links: dict[str, object] = {}
        self.running = True
        self.rows: dict[bytes, Any] = {}
        self.log: list[Commit] = []  # own and others', as applied
        self.writer = ""
        self.incarnation = 0
        self.life = 1
        self._stage = stage

    @property
    def membership(self) -> Membership:
        if self.shown is not None:
            return self.shown
        if self._folded[0] != len(self.log):
            roster = Roster(RegionId(self.region), map(RegionId, self._stage.world.scenario.founders))
            for commit in self.log:
                for place, event in enumerate(commit.events):
                    if isinstance(event, ev.MembersChanged | ev.FinalHeads):
                        roster.add(EventId(commit.stamp, commit.writer, commit.number, place), event)
            self._folded = (len(self.log), roster.fold(Heads(self.applied)))
        return self._folded[1]

    @property
    def have(self) -> dict[str, int]:
        return dict(self.applied)

    @property
    def now(self) -> Any:
        return self.clock.now(self._stage.world.kernel.now_us)

    def tasks(self) -> dict[bytes, Any]:
        return self.rows


class Stage:
    def __init__(self, family: type[Family], *regions: str, joins: str = "", **scenario: Any) -> None:
        names = regions or ("eu", "us")
        kernel = SimpleNamespace(now_us=10_000_000)
        self.world = SimpleNamespace(
            kernel=kernel,
            seed=7,
            scenario=Scenario("stage", tuple(Region(name, joins=name == joins) for name in names), **scenario),
            nodes={},
            faults=[],
            history=[],
            workers=[],
            converged_us=kernel.now_us,
            violations=[],
        )
        self.world.nodes = {name: FakeNode(self, name, names) for name in names}
        self.world.regions = self.world.nodes
        self.world.healed_nodes = lambda: list(self.world.nodes.values())
        self.world.membership = lambda: max((n.membership for n in self.world.nodes.values()), key=lambda m: m.stamp)
        self.world.violation = self._violation
        self.trace = Trace(kernel)
        self.chronicle = Chronicle()
        self.checker = family(self.chronicle)
        for listener in (self.chronicle, self.checker):
            listener.begin(self.world)  # type: ignore[arg-type]
            self.trace.listen(listener.kinds, listener.on_event)
        self._batches = 0
        self.submissions: dict[bytes, EventId] = {}
        for name in names:
            self.start(name)

    def _violation(self, invariant: str, text: str, *, causes: tuple[int, ...] = (), task: str = "") -> Violation:
        found = Violation(invariant, self.world.kernel.now_us / 1e6, text, causes, task)
        self.world.violations.append(found)
        return found

    def found(self, *, end: bool = False) -> list[str]:
        """The invariants that were reported, each once, in order; `end` also judges the end of the run."""
        if end:
            self.checker.at_end(self.world)  # type: ignore[arg-type]
        return list(dict.fromkeys(violation.invariant for violation in self.world.violations))

    def wait(self, ms: int) -> None:
        self.world.kernel.now_us += ms * 1_000

    def node(self, name: str) -> FakeNode:
        return self.world.nodes[name]

    def notify(self, name: str, what: str, **facts: Any) -> None:
        """What a replica tells its operator."""
        told = tuple(sorted((key, str(value)) for key, value in facts.items()))
        self.trace.add("notify", name, what, ("info", told), subject=Notify("info", what, facts))

    # Nodes and disks -------------------------------------------------------------------------------

    def start(self, name: str, *, heads: dict[str, int] | None = None, writer: str = "") -> None:
        node = self.node(name)
        node.incarnation += 1
        node.writer = writer or writer_id(name, "a", node.incarnation, bytes(8))
        node.replica._here.clock._mono_ms = 1
        found = tuple(sorted((node.applied if heads is None else heads).items()))
        self.trace.add("node.start", name, node.writer, (node.incarnation, found, 0))

    def commit(
        self, name: str, *events: Any, durable: bool = True, stamp: int = 0, sees: dict[str, int] | None = None
    ) -> list[EventId]:
        """One commit of these events. `sees` is what its deps say of others, instead of the truth."""
        node = self.node(name)
        self.world.kernel.now_us += 1_000
        stamp = stamp or make_stamp((EPOCH_US + self.world.kernel.now_us) // 1_000, 1)
        mine = [commit for commit in node.log if commit.writer == node.writer]
        told = node.applied if sees is None else sees
        deps = [(w, n, bytes(8)) for w, n in sorted(told.items()) if w != node.writer]
        commit = seal(
            DEFAULT_DOMAIN,
            node.writer,  # type: ignore[arg-type]
            len(mine) + 1,
            stamp=stamp,
            deps=deps,  # type: ignore[arg-type]
            previous=mine[-1].hash if mine else NO_HASH,
            events=events,
        )
        row = CommitRow(commit.domain, commit.writer, commit.number, commit.stamp, commit.blob)
        self.trace.add(
            "commit", name, f"{commit.writer}:{commit.number}", (commit.stamp, commit.hash.hex()), subject=row
        )
        node.log.append(commit)
        node.applied[commit.writer] = commit.number
        self.store(name, commit, durable=durable)
        return [EventId(commit.stamp, commit.writer, commit.number, place) for place in range(len(events))]

    def store(
        self,
        name: str,
        *commits: Commit,
        durable: bool = True,
        rows: tuple[TaskRow, ...] = (),
        drop: Any = (),
        meta: tuple[tuple[str, bytes], ...] = (),
    ) -> None:
        """A batch on its way to a node's disk, and on it."""
        self._batches += 1
        written = tuple(CommitRow(c.domain, c.writer, c.number, c.stamp, c.blob) for c in commits)
        batch = Persist(self._batches, written, rows, meta=meta, drop=drop)
        data = (tuple((row.writer, row.number) for row in written), len(rows), 0)
        self.trace.add("disk.write", name, f"b{batch.batch}", data, subject=batch)
        if durable:
            self.trace.add("disk.durable", name, f"b{batch.batch}", subject=batch)

    def deliver(self, source: str, *targets: str, skip: int = 0) -> None:
        """Everything that `source` has applied reaches `targets`, except the first `skip` commits that they lack."""
        for target in targets or [name for name in self.world.nodes if name != source]:
            node = self.node(target)
            lacking = [c for c in self.node(source).log if node.applied.get(c.writer, 0) < c.number][skip:]
            for commit in lacking:
                node.log.append(commit)
                node.applied[commit.writer] = max(commit.number, node.applied.get(commit.writer, 0))
            self.store(target, *lacking)

    # What tasks do ---------------------------------------------------------------------------------

    def submit(
        self, name: str, *, task: bytes = b"", durable: bool = True, options: Any = OPTIONS, **fields: Any
    ) -> bytes:
        task = task or bytes([len(self.submissions) + 1]) * 16
        event = submitted(task, fields.pop("owner", name), options, **fields)
        (id,) = self.commit(name, event, durable=durable)
        self.submissions.setdefault(task, id)
        return task

    def claim(self, name: str, task: bytes, **fields: Any) -> EventId:
        values = {
            "term": 0,
            "continues": None,
            "continues_ended": False,
            "relies": (),
            "inputs": (),
            "token": 0,
            **fields,
        }
        (id,) = self.commit(name, ev.Claimed(TaskId(task), submission=self.submissions[task], **values))
        return id

    def end(
        self,
        name: str,
        task: bytes,
        attempt: EventId,
        outcome: str = "ok",
        *,
        late: bool = False,
        retryable: bool = True,
    ) -> EventId:
        value = b"\x01" if outcome == "ok" else b""
        (id,) = self.commit(name, ev.Ended(TaskId(task), attempt, outcome, late, retryable, "", value))
        return id

    def effect(self, name: str, task: bytes, attempt: EventId, what: str = "charge", key: bytes = b"k" * 16) -> EventId:
        (id,) = self.commit(name, ev.EffectRecorded(TaskId(task), attempt, what, key, b"\x01"))
        return id

    # What others see -------------------------------------------------------------------------------

    def answer(self, name: str, op: str, task: bytes, value: Any, *, command: Any = None, outcome: str = "ok") -> None:
        operation = Operation(f"c{len(self.world.history)}", op, name, task.hex(), 0, command, value=value)
        self.world.history.append(operation)
        self.trace.add("client.answer", name, operation.id, (outcome, ""), subject=operation)

    def view(self, name: str, task: bytes, state: str = "succeeded", *, settled: bool = True, **shown: Any) -> None:
        """What a region shows of a task at the end."""
        attempts = shown.pop("attempts", ())
        winner = shown.pop("winner", None)
        data = (state, settled, None if winner is None else str(winner), shown.pop("result", None), attempts)
        submission = self.submissions.get(task)
        defaults = {"conflicts": (), "attempts": (), "winner": winner, "cancel": None, "expired": None, "priority": 5,
                    "labels": (), "owner": name, "submission": submission,
                    "submitted": SimpleNamespace(not_before_ms=0, after=(), options=OPTIONS, queue="q", name="t", key="")}  # fmt: skip
        self.node(name).rows[task] = (None, settled)
        self.trace.add("view", name, task.hex(), data, subject=SimpleNamespace(**{**defaults, **shown}))

    def row(self, name: str, task: bytes, state: str = "succeeded", *, settled: bool = True) -> None:
        """A task's row on its way to disk."""
        row = TaskRow(DEFAULT_DOMAIN, TaskId(task), "t", "q", state, settled, False, name, 0, 0, (), bytes(16), b"")
        self.store(name, rows=(row,))

    def heads(self) -> None:
        """The end of the run: what every node has applied."""
        for name, node in self.world.nodes.items():
            self.trace.add("heads", name, name, (tuple(sorted(node.applied.items())), node.digest))


def submitted(task: bytes, owner: str, options: Any = OPTIONS, **fields: Any) -> ev.Submitted:
    values: dict[str, Any] = {"name": "t", "payload": b"\x01", "queue": "default", "priority": 5, "not_before_ms": 0,
              "deadline_ms": 0, "key": "", "generation": 0, "labels": (), "after": (), "undoes": None, "linked": None,
              **fields}  # fmt: skip
    return ev.Submitted(task=TaskId(task), owner=owner, options=options, **values)
