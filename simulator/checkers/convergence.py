"""CONV-*: equal commits mean equal state, vectors only grow, and after the heal everybody gets everything."""

from __future__ import annotations

from math import ceil, log2
from typing import TYPE_CHECKING, Any, Final

from crdtsync import events as ev
from simulator.checkers import reckoning
from simulator.checkers.chronicle import Chronicle, Family, Heads, named, seqs, told
from simulator.checkers.peek import own_time_ms
from simulator.checkers.reckoning import Fact, reckon
from simulator.trace import Record

if TYPE_CHECKING:
    from simulator.world import World

DIVERGENCE: Final = "gossip.divergence"  # equal heads, unequal digests, says a replica itself
STATES_KEPT: Final = 2_000  # (heads, digest) pairs remembered: two replicas at one cut are seldom far apart in time
#: CONV-5: how long a healed cluster may take to hand round what it had when it healed. Links that hung in silence are
#: found by the heartbeat and dialled again; then `ceil(log2 n)` exchanges of heads.
RECONNECT_US: Final = 20_000_000
ROUNDS: Final = 3  # exchanges of heads per doubling, since some are lost
RTTS: Final = 20


class Convergence(Family):
    kinds: tuple[str, ...] = ("disk.write", "disk.durable", "heads", "view", "node.start", "notify")
    invariants = ("CONV-1", "CONV-2", "CONV-4", "CONV-5", "CONV-6", "CONV-8")

    def __init__(self, chronicle: Chronicle) -> None:
        super().__init__(chronicle)
        self._digests: dict[tuple[tuple[str, int], ...], tuple[bytes, str, int]] = {}
        self._vectors: dict[str, tuple[str, Heads, Heads]] = {}  # node -> its writer, applied, have
        self._goal: Heads | None = None  # what was durable in healed regions at the heal
        self._asked: set[str] = set()  # of whom it is demanded
        self._reached: dict[str, int] = {}  # node -> when it covered the goal
        self._heal_us = 0
        self._ends: dict[str, tuple[Heads, bytes, int]] = {}  # region -> heads, digest at the end
        self._views: dict[bytes, dict[str, Record]] = {}

    def on_event(self, record: Record) -> None:
        match record.kind:
            case "disk.write":
                self._look(record)
            case "disk.durable":
                if self._goal is not None and record.node not in self._reached:
                    self._near(record.node, record.at_us)
            case "heads":
                self._ends[record.node] = (dict(told(record, "applied")), told(record, "digest"), record.seq)
            case "view":
                self._views.setdefault(bytes.fromhex(record.id), {})[record.node] = record
            case "notify":
                if record.id == DIVERGENCE:
                    self.fail(
                        "CONV-1",
                        f"{record.node} rings the alarm that must never ring: {dict(told(record, 'facts'))}",
                        events=(record.seq,),
                        about=record.node,
                    )
            case _:
                self._vectors.pop(record.node, None)

    # At all times ----------------------------------------------------------------------------------

    def _look(self, record: Record) -> None:
        node = self.world.nodes.get(record.node)
        if node is None or node.replica is None:
            return
        life = self.chronicle.node(record.node)
        applied, have = node.applied, node.have
        before = self._vectors.get(record.node)
        self.judged("CONV-4", record.node, record)
        if before is not None and before[0] == life.writer:
            for kind, old, new in (("applied", before[1], applied), ("have", before[2], have)):
                for writer, number in old.items():
                    if new.get(writer, 0) < number:
                        self.fail(
                            "CONV-4",
                            f"{record.node} had {kind} {number} commits of {writer} and now {new.get(writer, 0)}",
                            events=(record.seq,),
                            about=(record.node, writer),
                        )
        self._vectors[record.node] = (life.writer, applied, have)
        if life.ahead is not None and not life.donor:
            if all(applied.get(writer, 0) >= number for writer, number in life.ahead.items()):
                life.ahead = None
        if life.runs_ahead:
            return
        self._compare(record, tuple(sorted(applied.items())), node.digest)

    def _compare(self, record: Record, cut: tuple[tuple[str, int], ...], digest: bytes) -> None:
        known = self._digests.get(cut)
        if known is None:
            self._digests[cut] = (digest, record.node, record.seq)
            if len(self._digests) > STATES_KEPT:
                del self._digests[next(iter(self._digests))]
            return
        if known[1] != record.node:
            self.judged("CONV-1", record.node, record)
        if known[0] != digest:
            self.fail(
                "CONV-1",
                f"{record.node} and {known[1]} have applied the same commits and show different states "
                f"({digest.hex()[:12]} and {known[0].hex()[:12]})",
                events=(known[2], record.seq),
                about=frozenset((record.node, known[1])),
            )

    # After the heal --------------------------------------------------------------------------------

    def at_heal(self, world: World) -> None:
        self._heal_us = world.kernel.now_us
        nodes = world.healed_nodes()
        earliest_ms = min((own_time_ms(node) for node in nodes), default=0)
        max_skew_ms = max((node.settings.max_skew_ms for node in nodes), default=0)
        goal: Heads = {}
        self._asked = {node.name for node in nodes}
        for (writer, number), written in self.chronicle.commits.items():
            if written.commit.stamp >> 16 > earliest_ms + max_skew_ms:
                continue  # held back somewhere, and so is whatever follows it: its stamp is larger
            if any(self.chronicle.on_disk(node.name, writer, number) for node in nodes):
                goal[writer] = max(number, goal.get(writer, 0))
        self._goal = goal
        for node in nodes:
            self._near(node.name, self._heal_us)

    def _near(self, name: str, at_us: int) -> None:
        node = self.world.nodes.get(name)
        if node is not None and node.replica is not None and self._goal is not None:
            applied, roll = node.applied, self.chronicle.rolls.whole
            if all(applied.get(writer, 0) >= roll.counting(writer, number) for writer, number in self._goal.items()):
                self._reached.setdefault(name, at_us)

    def _bound_us(self, world: World) -> int:
        nodes = world.healed_nodes()
        rounds = ceil(log2(max(2, len(nodes)))) * ROUNDS
        gossip_us = max(node.settings.heads_interval_ms for node in nodes) * 1_000
        rtt_us = round(max(world.scenario.links.rtt_ms, *world.scenario.links.rtt.values(), 400) * 1_000)
        return RECONNECT_US + rounds * gossip_us + RTTS * rtt_us

    def at_end(self, world: World) -> None:
        self._judge_heal(world)
        self._judge_heads()
        healed = {node.name for node in world.healed_nodes()} if world.converged_us is not None else set()
        for task, shown in self._views.items():
            self._judge_task(task, shown, healed)

    def _judge_heal(self, world: World) -> None:
        if self._goal is None:
            return
        bound_us = self._bound_us(world)
        now_us = world.kernel.now_us
        for node in world.healed_nodes():
            if node.name not in self._asked:
                continue  # it joined afterwards
            self.chronicle.vacuity.count_ever("CONV-5", node.region)
            reached = self._reached.get(node.name)
            if reached is None and node.replica is not None:
                self._near(node.name, now_us)
                reached = self._reached.get(node.name)
            took = (now_us if reached is None else reached) - self._heal_us
            if took > bound_us:
                how = "still lacks" if reached is None else f"took {took / 1e6:.1f} s to get"
                self.fail(
                    "CONV-5",
                    f"{node.name} {how} what the healed regions held at the heal; the bound is {bound_us / 1e6:.1f} s",
                    about=node.name,
                )

    def _judge_heads(self) -> None:
        known: dict[tuple[tuple[str, int], ...], tuple[str, bytes, int]] = {}
        for region, (heads, digest, seq) in self._ends.items():
            if not heads or self.chronicle.node(region).runs_ahead:
                continue
            cut = tuple(sorted(heads.items()))
            other = known.setdefault(cut, (region, digest, seq))
            if other[0] != region:
                self.chronicle.vacuity.count_ever("CONV-2", region)
            if other[1] != digest:
                self.fail(
                    "CONV-2",
                    f"{region} and {other[0]} end with equal heads and different digests",
                    events=(other[2], seq),
                    about=frozenset((region, other[0])),
                )

    # What each region shows of each task, against what its commits say ------------------------------

    def _judge_task(self, task: bytes, shown: dict[str, Record], healed: set[str]) -> None:
        for region, record in shown.items():
            if region not in self._ends or self.chronicle.node(region).runs_ahead:
                continue
            facts = self.chronicle.within(task, self._ends[region][0])
            verdict = reckon(facts)
            if verdict is None:
                continue
            self.judged_task("CONV-6", task)
            view = record.subject
            winner = None if verdict.winner is None else str(verdict.winner)
            state, shown_winner = told(record, "state"), told(record, "winner")
            if (state, shown_winner) != (verdict.state, winner):
                self.fail(
                    "CONV-6",
                    f"{region} shows {named(task)} as {state} with the winner {shown_winner}; by its commits it is "
                    f"{verdict.state} with the winner {winner}",
                    task=task,
                    events=(*seqs(facts), record.seq),
                )
            self._judge_adds(task, region, record, facts, view)
        self._judge_equal(task, {region: record for region, record in shown.items() if region in healed})

    def _judge_adds(self, task: bytes, region: str, record: Record, facts: list[Fact], view: Any) -> None:
        """Nothing that was said is missing: attempts, ends, effects, edits."""
        self.judged_task("CONV-8", task)
        claims = {str(fact.id) for fact in facts if type(fact.event) is ev.Claimed}
        shown = {one[0] for one in told(record, "attempts")}
        lacking = claims - shown
        effects = {fact.id for fact in facts if type(fact.event) is ev.EffectRecorded}
        kept = {id for one in view.attempts for id, _ in one.effects}
        priority, labels = reckoning.edits(facts)
        if lacking or effects - kept:
            self.fail(
                "CONV-8",
                f"{region} shows {named(task)} without {len(lacking)} attempts and {len(effects - kept)} effects that "
                "its commits tell of",
                task=task,
                events=(*seqs(facts), record.seq),
            )
        if (view.priority, dict(view.labels)) != (priority, labels):
            self.fail(
                "CONV-8",
                f"{region} shows {named(task)} with priority {view.priority} and labels {dict(view.labels)}; the "
                f"latest edits make them {priority} and {labels}",
                task=task,
                events=(*seqs(facts), record.seq),
            )

    def _judge_equal(self, task: bytes, shown: dict[str, Record]) -> None:
        records = list(shown.values())
        for other in records[1:]:
            self.judged_task("CONV-2", task)
            for field in ("state", "winner", "result", "attempts"):
                if told(records[0], field) != told(other, field):
                    self.fail(
                        "CONV-2",
                        f"{records[0].node} and {other.node} have converged and show {named(task)} with another "
                        f"{field}: {told(records[0], field)!r:.80} and {told(other, field)!r:.80}",
                        task=task,
                        events=(records[0].seq, other.seq),
                    )
