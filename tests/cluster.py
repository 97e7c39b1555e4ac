"""Several replicas in one thread and in virtual time, for tests.

`Cluster` drives real `Replica`s through the driver's four steps with a memory store, a network of
links with a fixed delay, and workers whose handlers are plain functions. Nothing waits for real:
`run_for` plays events in the order of their time, ties in the order in which they were made.

    cluster = Cluster("eu", "us", "ap", tasks={"charge": succeed})
    task = cluster.submit("eu", "charge")
    cluster.cut("eu", "us")
    cluster.run_for(10_000)
    cluster.heal()
    assert cluster.converge()
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, TypeVar

from msgspec import structs

from crdtsync import commands as c
from crdtsync import effects as e
from crdtsync.clock import Now
from crdtsync.coordination.membership import Membership
from crdtsync.errors import CorruptLogError, StorageError
from crdtsync.identifiers import RegionId, parse_task_id, writer_id
from crdtsync.protocol.codec import decode_value, encode_value
from crdtsync.replica import Replica
from crdtsync.settings import Settings
from regions.reading import read
from regions.recovery import rebuild
from regions.storage.memory import MemoryStore

EPOCH_MS = 1_750_000_000_000  # what the wall shows when the monotonic clocks show 0
LINK_MS = 20
DISK_MS = 2
WORKER_MS = 1
T = TypeVar("T")


def now_or_never(waiting: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits, as those of `MemoryStore` do not."""
    try:
        waiting.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    raise AssertionError("this coroutine waits for something real")


@dataclass(frozen=True)
class Outcome:
    """What a test handler answers: how its attempt ends, after how long, with which effects."""

    outcome: str = "ok"
    value: Any = None
    after_ms: int = 10
    retryable: bool = True
    effects: dict[str, Any] = field(default_factory=dict)


Handler = Callable[[e.Assignment], Outcome]


def succeed(assignment: e.Assignment) -> Outcome:
    return Outcome(value=f"done by {assignment.region}")


def never(assignment: e.Assignment) -> Outcome:
    return Outcome(after_ms=10**12)


class Node:
    """One region: a disk that outlives crashes, and a replica that does not."""

    def __init__(self, cluster: Cluster, region: RegionId, **settings: Any) -> None:
        self.cluster = cluster
        self.settings = settings  # what differs from the cluster's
        self.region = region
        self.store = MemoryStore()
        self.replica: Replica | None = None
        self.wall_offset_ms = 0
        self.start_offset_ms = 0  # of the clock from which starts are numbered
        self.life = 0  # events of an earlier life are ignored
        self.answers: dict[Any, list[e.Reply]] = {}
        self.notices: list[e.Notify] = []
        self.reloads: list[str] = []  # why the replica was discarded
        self.workers: dict[str, Worker] = {}

    @property
    def now(self) -> Now:
        return Now(EPOCH_MS + self.cluster.time_ms + self.wall_offset_ms, self.cluster.time_ms)

    def start(self) -> None:
        now_or_never(self.store.open())
        self.build()

    def build(self) -> None:
        """A replica from what is on disk; after a failure from the store as it is, still open."""
        self.life += 1
        incarnation = now_or_never(self.store.next_incarnation((self.cluster.time_ms + self.start_offset_ms) // 1_000))
        entropy = (self.cluster.entropy + incarnation * 1_000 + len(self.region)).to_bytes(8, "big")
        self.cluster.entropy += 1
        settings = replace(self.cluster.settings, region=self.region, **self.settings)
        writer = writer_id(self.region, "a", incarnation, entropy)
        self.replica = now_or_never(rebuild(settings, writer, self.store, lambda: self.now))
        self.pump()

    def crash(self) -> None:
        """Lose everything that is not on disk."""
        self.life += 1
        self.replica = None
        now_or_never(self.store.close())

    def feed(self, feed: Callable[[Replica], None]) -> None:
        if self.replica is not None:
            try:
                feed(self.replica)
            except CorruptLogError as error:  # as the driver does: see Replica, duty 5
                self.reloads.append(str(error))
                self.cluster.reload(self.region)
                return
            self.pump()

    def pump(self) -> None:
        assert self.replica is not None
        life, effects = self.life, self.replica.take_effects()
        while effects:
            for effect in effects:
                self.carry_out(effect)
                if self.life != life:
                    return  # it asked for another incarnation, which has begun
            effects = self.replica.take_effects()
        due = self.replica.next_deadline_ms()
        if due is not None:
            life = self.life
            at = max(due, self.cluster.time_ms)
            self.cluster.at(at, lambda: self.tick(life))

    def tick(self, life: int) -> None:
        if life == self.life and self.replica is not None:
            due = self.replica.next_deadline_ms()
            if due is not None and due <= self.cluster.time_ms:
                self.feed(lambda replica: replica.tick(self.now))

    def carry_out(self, effect: e.Effect) -> None:
        replica, cluster, life = self.replica, self.cluster, self.life
        assert replica is not None

        def later(delay_ms: int, then: Callable[[Replica], None]) -> None:
            cluster.at(cluster.time_ms + delay_ms, lambda: self.feed(then) if self.life == life else None)

        match effect:
            case e.Persist():

                def written(replica: Replica) -> None:
                    now_or_never(self.store.append(effect))
                    replica.persisted(effect.batch, self.now)

                later(DISK_MS, written)
            case e.Load() | e.ReadCommits() | e.ReadRows() | e.Query():
                answer = now_or_never(read(self.store, effect))
                later(1, lambda r: answer.give(r, self.now))
            case e.Send(peer, message):
                cluster.send(self.region, peer, message)
            case e.Disconnect(peer, _):
                cluster.hang_up(self.region, peer)
            case e.Reply(ticket):
                self.answers.setdefault(ticket, []).append(effect)
            case e.Run(worker, assignments):
                for assignment in assignments:
                    if worker in self.workers:
                        self.workers[worker].run(assignment)
            case e.Stop(worker, attempt, reason):
                if worker in self.workers:
                    self.workers[worker].stop(attempt, reason)
            case e.Restart(reason):
                self.reloads.append(reason)
                cluster.reload(self.region)
            case e.Notify():
                self.notices.append(effect)

    def ask(self, command: Any) -> Any:
        """Submit a command and play until its answer is there."""
        ticket = self.cluster.ticket()
        life = self.life
        self.feed(lambda replica: replica.submit(command, self.now, ticket))
        for _ in range(100_000):
            if self.life != life and ticket not in self.answers:
                raise AskError(StorageError("the node reloads its state: ask again").record())
            if ticket in self.answers:
                reply = self.answers.pop(ticket)[0]
                if reply.error is not None:
                    raise AskError(reply.error)
                return reply.value
            self.cluster.step()
        raise AssertionError(f"no answer to {command}")

    def listing(self, command: c.ListTasks | c.ListConflicts) -> list[dict[str, Any]]:
        """All pages of a listing."""
        page = self.ask(command)
        records: list[dict[str, Any]] = page["records"]
        while page["next"] is not None:
            page = self.ask(structs.replace(command, after=page["next"]))
            records += page["records"]
        return records


class AskError(Exception):
    def __init__(self, record: dict[str, Any]) -> None:
        super().__init__(record["message"])
        self.code = record["code"]


class Worker:
    """A worker process of one node. Handlers decide at once; what they did takes its time."""

    def __init__(self, node: Node, name: str, declarations: tuple[c.TaskDeclaration, ...], credits: int) -> None:
        self.node = node
        self.name = name
        self.declarations = declarations
        self.credits = credits
        self.running: dict[Any, e.Assignment] = {}
        self.alive = True

    def hello(self) -> None:
        running = tuple(tuple(attempt) for attempt in self.running)
        limits = self.node.cluster.limits
        hello = c.WorkerHello(self.name, "test", self.declarations, self.credits, running=running, limits=limits)  # type: ignore[arg-type]
        self.tell(hello)
        self._beat()

    def _beat(self) -> None:
        if self.alive:
            self.tell(c.Heartbeat(self.name))
            self.node.cluster.at(self.node.cluster.time_ms + 1_000, self._beat)

    def tell(self, command: Any) -> None:
        node = self.node
        ticket = node.cluster.ticket()
        node.feed(lambda replica: replica.submit(command, node.now, ticket))

    def run(self, assignment: e.Assignment) -> None:
        if not self.alive:
            return
        cluster = self.node.cluster
        self.running[assignment.attempt] = assignment
        cluster.started.append((cluster.time_ms, self.node.region, assignment))
        outcome = cluster.tasks[assignment.name](assignment)
        for name, result in outcome.effects.items():
            from crdtsync.undoing import effect_key

            key = effect_key(assignment.task, assignment.root, name)
            known = dict(assignment.effects)
            if name not in known:
                cluster.sink.append((name, key, assignment.attempt))
                effect = c.RecordEffect(tuple(assignment.attempt), name, key, encode_value(result))  # type: ignore[arg-type]
                cluster.at(cluster.time_ms + WORKER_MS, lambda effect=effect: self.tell(effect) if self.alive else None)  # type: ignore[misc]
        cluster.at(cluster.time_ms + outcome.after_ms, lambda: self.end(assignment, outcome))

    def end(self, assignment: e.Assignment, outcome: Outcome) -> None:
        if self.alive and self.running.pop(assignment.attempt, None) is not None:
            value = encode_value(["TestError", "it failed", ""] if outcome.outcome == "failed" else outcome.value)
            reason = "TestError" if outcome.outcome == "failed" else ""
            self.tell(
                c.Complete(tuple(assignment.attempt), outcome.outcome, value, outcome.retryable, reason)  # type: ignore[arg-type]
            )

    def stop(self, attempt: Any, reason: str) -> None:
        self.node.cluster.stopped.append((self.node.region, attempt, reason))
        assignment = self.running.pop(attempt, None)
        if assignment is not None and self.node.cluster.obedient:
            self.tell(c.Complete(tuple(attempt), "lost", b"", True, "stopped"))  # type: ignore[arg-type]
        elif assignment is not None:
            self.running[attempt] = assignment

    def kill(self) -> None:
        self.alive = False
        self.node.workers.pop(self.name, None)
        self.tell(c.WorkerGone(self.name))


class Cluster:
    """`tasks` maps names to handlers; `declare` holds options of their declarations, `walls` by how many milliseconds
    a region's wall clock is ahead from its start."""

    def __init__(
        self,
        *regions: str,
        tasks: dict[str, Handler] | None = None,
        declare: dict[str, dict[str, Any]] | None = None,
        workers: bool = True,
        credits: int = 10,
        walls: dict[str, int] | None = None,
        limits: tuple[c.LimitDeclaration, ...] = (),
        **settings: Any,
    ) -> None:
        members = tuple(RegionId(region) for region in regions)
        self.settings = Settings(
            cluster="test",
            region=members[0],
            node="a",
            members=members,
            **{"lost_after_ms": 3_000, "worker_lost_after_ms": 1_500, **settings},
        )
        self.tasks: dict[str, Handler] = tasks or {"noop": succeed}
        options = declare or {}
        self.declarations = tuple(c.TaskDeclaration(name, **options.get(name, {})) for name in self.tasks)
        self.credits = credits
        self.limits = limits
        self.time_ms = 0
        self.entropy = 1
        self.obedient = True  # whether handlers end when they are asked to stop
        self.started: list[tuple[int, RegionId, e.Assignment]] = []
        self.stopped: list[tuple[RegionId, Any, str]] = []
        self.sink: list[tuple[str, bytes, Any]] = []  # effects that really happened
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0
        self._tickets = 0
        self._links: dict[frozenset[str], int] = {}  # which generation of the link between two is up
        self._generation = 0
        self._cut: set[frozenset[str]] = set()
        self.sent: dict[tuple[str, str], int] = {}
        self.nodes = {region: Node(self, region) for region in members}
        for node in self.nodes.values():
            node.wall_offset_ms = (walls or {}).get(node.region, 0)
            node.start()
        self._dial()
        if workers:
            for region in members:
                self.worker(region)
        self.run_for(300)

    def join(self, region: str, *seeds: str, worker: bool = False) -> Node:
        """Start the node of a region that is to be added; `seeds` are the members that it is told of (all if none)."""
        told = tuple(map(RegionId, seeds)) or tuple(self.nodes)
        node = Node(self, RegionId(region), members=(*told, RegionId(region)), joining=True)
        self.nodes[node.region] = node
        node.start()
        if worker:
            self.worker(region)
        return node

    def membership(self, region: str) -> Membership:
        replica = self.nodes[RegionId(region)].replica
        assert replica is not None
        return replica._here.membership

    def worker(self, region: str, name: str | None = None) -> Worker:
        node = self.nodes[RegionId(region)]
        self._tickets += 1
        worker = Worker(node, name or f"{region}-worker-{self._tickets}", self.declarations, self.credits)
        node.workers[worker.name] = worker
        worker.hello()
        return worker

    # Time --------------------------------------------------------------------------------------

    def at(self, time_ms: int, then: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (time_ms, self._sequence, then))

    def step(self) -> None:
        time_ms, _, then = heapq.heappop(self._events)
        self.time_ms = max(self.time_ms, time_ms)
        then()

    def run_for(self, duration_ms: int) -> None:
        end = self.time_ms + duration_ms
        while self._events and self._events[0][0] <= end:
            self.step()
        self.time_ms = end

    def run_until(self, condition: Callable[[], bool], limit_ms: int = 120_000) -> bool:
        end = self.time_ms + limit_ms
        while not condition():
            if not self._events or self._events[0][0] > end:
                return False
            self.step()
        return True

    def ticket(self) -> int:
        self._tickets += 1
        return self._tickets

    # Network -----------------------------------------------------------------------------------

    def _dial(self) -> None:
        """Level-triggered: link whoever may be linked, every now and then."""
        names = sorted(self.nodes)
        for a, b in combinations(names, 2):
            pair = frozenset((a, b))
            one, other = self.nodes[a].replica, self.nodes[b].replica
            if pair in self._links or pair in self._cut or one is None or other is None:
                continue
            if one.allowed(b) and other.allowed(a):
                self._generation += 1
                self._links[pair] = self._generation
                self._open(a, b)
                self._open(b, a)
        self.at(self.time_ms + 200, self._dial)

    def _open(self, region: RegionId, peer: RegionId) -> None:
        node = self.nodes[region]
        node.feed(lambda replica: replica.connected(peer, node.now))

    def send(self, source: str, target: str, message: bytes) -> None:
        pair = frozenset((source, target))
        generation = self._links.get(pair)
        if generation is None:
            return
        self.sent[source, target] = self.sent.get((source, target), 0) + len(message)

        def arrive() -> None:
            if self._links.get(pair) == generation:
                node = self.nodes[RegionId(target)]
                node.feed(lambda replica: replica.receive(source, message, node.now))

        self.at(self.time_ms + LINK_MS, arrive)

    def unlink(self, a: str, b: str) -> None:
        if self._links.pop(frozenset((a, b)), None) is not None:
            for one, other in ((a, b), (b, a)):
                node = self.nodes[RegionId(one)]
                node.feed(lambda replica, node=node, other=other: replica.disconnected(other, node.now))  # type: ignore[misc]

    def hang_up(self, a: str, b: str) -> None:
        """One side closes the link: what it sent before still arrives."""
        pair = frozenset((a, b))
        generation = self._links.get(pair)

        def closed() -> None:
            if generation is not None and self._links.get(pair) == generation:
                self.unlink(a, b)

        self.at(self.time_ms + LINK_MS + 1, closed)

    def cut(self, a: str, b: str) -> None:
        self._cut.add(frozenset((a, b)))
        self.unlink(a, b)

    def isolate(self, region: str) -> None:
        for other in self.nodes:
            if other != region:
                self.cut(region, other)

    def heal(self) -> None:
        self._cut.clear()

    def crash(self, region: str) -> None:
        """`kill -9` of a node: links drop, workers stay and will reconnect."""
        for other in list(self.nodes):
            if other != region:
                self.unlink(region, other)
        self.nodes[RegionId(region)].crash()

    def reload(self, region: str) -> None:
        """The replica is discarded, and built again from disk."""
        node = self.nodes[RegionId(region)]
        node.replica = None
        for other in list(self.nodes):
            if other != region:
                self.unlink(region, other)
        node.build()
        for worker in node.workers.values():
            worker.hello()

    def restart(self, region: str) -> None:
        node = self.nodes[RegionId(region)]
        if node.replica is not None:
            self.crash(region)
        node.start()
        for worker in node.workers.values():
            worker.hello()

    # Shorthands --------------------------------------------------------------------------------

    def submit(self, at: str, name: str = "noop", *args: Any, **options: Any) -> bytes:
        """Submit one task; returns its id once the region has acknowledged it."""
        spec = c.TaskSpec(name=name, payload=encode_value([list(args), {}]), **options)
        answer = self.nodes[RegionId(at)].ask(c.Submit((spec,)))[0]
        if "error" in answer:
            raise AskError(answer["error"])
        return parse_task_id(answer["id"])

    def show(self, region: str, task: bytes) -> dict[str, Any]:
        return self.nodes[RegionId(region)].ask(c.Describe(task))  # type: ignore[no-any-return]

    def explain(self, region: str, task: bytes) -> str:
        return self.nodes[RegionId(region)].ask(c.Explain(task))["text"]  # type: ignore[no-any-return]

    def state(self, region: str, task: bytes) -> str:
        return self.show(region, task)["state"]  # type: ignore[no-any-return]

    def status(self, region: str) -> dict[str, Any]:
        return self.nodes[RegionId(region)].ask(c.Status())  # type: ignore[no-any-return]

    def digests(self) -> set[str]:
        return {
            (node.replica._here.table.digest.hex(), str(node.replica._here.log.applied))
            for node in self.nodes.values()
            if node.replica is not None
        }  # type: ignore[return-value]

    def converge(self, limit_ms: int = 60_000) -> bool:
        """Play until all replicas hold the same commits and show the same state."""
        return self.run_until(lambda: len(self.digests()) == 1, limit_ms)

    def alarms(self) -> list[e.Notify]:
        return [notice for node in self.nodes.values() for notice in node.notices if notice.level == "alarm"]


def result_of(record: dict[str, Any]) -> Any:
    return decode_value(record["result"]) if isinstance(record["result"], bytes) else record["result"]
