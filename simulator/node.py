"""`Node`: one process of one region: the driver's four steps, a disk that outlives it, and what can befall a process.

The driver is as dull as production's (`regions.driver`): feed an input, take the effects, carry them out in order,
durable first; when the disk fails, discard the replica and build another from disk. Nothing decides here.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

from crdtsync import effects as e
from crdtsync.clock import Now
from crdtsync.commands import WorkerGone
from crdtsync.coordination.membership import Membership
from crdtsync.errors import CrdtSyncError, RemoteProtocolError, StorageError
from crdtsync.identifiers import (
    DEFAULT_DOMAIN,
    AttemptId,
    EventId,
    RegionId,
    TaskId,
    WriterId,
    incarnation_floor,
    writer_id,
)
from crdtsync.log.commit import commit_hash, decode_commit
from crdtsync.replica import Replica
from crdtsync.settings import Settings
from crdtsync.task_view import TaskView
from crdtsync.tasks import Task
from simulator.clock import LocalClock
from simulator.dialling import Dialling
from simulator.disk import READ_US, Disk
from simulator.network import Connection

if TYPE_CHECKING:
    from simulator.world import World

START_US: Final = 30_000  # a process starts and opens its files
RELOAD_US_MIN: Final = 100_000  # as regions.driver: soon, then slower while the disk stays broken
RELOAD_US_MAX: Final = 5_000_000
LOCAL_US: Final = 300  # between a node and its clients and workers, one way
CAUSES_MAX: Final = 16  # inputs named as causes of one write

Answer = Callable[[Any, dict[str, Any] | None, bool, int], None]  # value, error, final, seq of its cause


class Guest(Protocol):
    """A client or a worker, connected to a node."""

    def hung_up(self, reason: str) -> None:
        """The connection is gone: whatever was asked and not answered may have been done, or not."""


class WorkerGuest(Guest, Protocol):
    """A worker, connected to a node."""

    def assigned(self, assignment: e.Assignment, cause: int) -> None: ...

    def asked_to_stop(self, attempt: AttemptId, reason: str, cause: int) -> None: ...


class Trap:
    """kill -9 at an effect boundary: what `faults` waits for."""

    def __init__(self, kind: type[Any] | None, nth: int, *, after: bool, spring: Callable[[], None]) -> None:
        self.kind = kind  # None: any effect
        self.left = nth
        self.after = after
        self.spring = spring

    def counts(self, effect: e.Effect) -> bool:
        """Whether this is the one."""
        if self.kind is None or isinstance(effect, self.kind):
            self.left -= 1
            return self.left == 0
        return False


class Node:
    """One process.

    Args:
        name: "eu", or "eu~2" for a second process of that region.
        settings: Whose node it is, and its limits.

    Attributes:
        replica: None while the process is down.
        held_down: Faults that keep it from starting.
        notices: What the replica told its operators, newest last.
    """

    def __init__(self, world: World, name: str, settings: Settings, disk: Disk, clock: LocalClock) -> None:
        self.name = name
        self.region: str = settings.region
        self.settings = settings
        self.disk = disk
        self.clock = clock
        self.replica: Replica | None = None
        self.powered = True
        self.paused = False
        self.slow_us = 0
        self.trap: Trap | None = None
        self.held_down: dict[object, None] = {}
        self.life = 0  # of the process; what an earlier one began is ignored
        self.links: dict[RegionId, Connection] = {}
        self._told_of: dict[
            RegionId, Connection
        ] = {}  # those that the replica has got to: a slow one lags behind `links`
        self.guests: dict[Guest, None] = {}
        self.workers: dict[str, WorkerGuest] = {}
        self.notices: list[e.Notify] = []
        self.restored = False  # the operator says that the disk is a copy
        self._world = world
        self._kernel = world.kernel
        self._trace = world.trace
        self._rng: random.Random = world.stream("node", name)
        self._dialling = Dialling(world, self, world.stream("dial", name))
        self._backlog: list[tuple[str, tuple[Any, ...], int]] = []
        self._busy_us = 0
        self._draining = False
        self._timer_us: int | None = None
        self._cause = -1
        self._write = -1  # the disk.write under way
        self._inputs: list[int] = []
        self._tickets = 0
        self._answers: dict[int, tuple[Guest, Answer]] = {}
        self._reload_us = RELOAD_US_MIN
        self._carry: Final[dict[type[Any], Callable[[Any], None]]] = {
            e.Persist: self._persist,
            e.Load: self._read,
            e.ReadCommits: self._read,
            e.ReadRows: self._read,
            e.Query: self._read,
            e.Send: self._send,
            e.Disconnect: self._disconnect,
            e.Reply: self._reply,
            e.Run: self._run,
            e.Stop: self._stop,
            e.Restart: self._restart,
            e.Notify: self._notify,
        }

    def __repr__(self) -> str:
        return f"<Node {self.name} {'up' if self.replica is not None else 'down'}>"

    # Public state ------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the process answers."""
        return self.replica is not None and not self.paused

    @property
    def now(self) -> Now:
        return self.clock.now(self._kernel.now_us)

    @property
    def applied(self) -> dict[WriterId, int]:
        """The heads that the replica has folded."""
        return {} if self.replica is None else dict(self.replica._here.log.applied.items())  # noqa: SLF001

    @property
    def have(self) -> dict[WriterId, int]:
        """The heads that the replica holds, folded or not."""
        return {} if self.replica is None else dict(self.replica._here.log.have.items())  # noqa: SLF001

    @property
    def membership(self) -> Membership:
        """Who belongs to the cluster, as `region list` shows it here. The process runs."""
        assert self.replica is not None
        return self.replica._here.membership  # noqa: SLF001

    @property
    def digest(self) -> bytes:
        """The replica's own digest of its state."""
        return b"" if self.replica is None else bytes(self.replica._here.table.digest)  # noqa: SLF001

    def tasks(self) -> dict[TaskId, tuple[TaskView, bool]]:
        """Every task that this node knows, in id order: its view, and whether it is settled here."""
        found: dict[TaskId, tuple[TaskView, bool]] = {}
        for row in self.disk.store.read_rows(DEFAULT_DOMAIN, b"", len(self.disk.store.rows)):
            task = Task.from_row(row)
            assert task.view is not None
            found[row.task] = (task.view, row.settled)
        if self.replica is not None:
            table = self.replica._here.table  # noqa: SLF001
            for task in table:
                found[task.id] = (table.view(task), task.settled)
        return dict(sorted(found.items()))

    # The process -------------------------------------------------------------------------------

    def start(self, cause: int = -1) -> None:
        """Start the process, unless a fault holds it down. It serves a moment later."""
        if self.replica is None and not self.held_down:
            self.life += 1
            self.powered = True
            self._kernel.after(START_US, self._build, self.life, cause)

    def _build(self, life: int, cause: int) -> None:
        """As `regions.recovery.recover`: a new incarnation, what was known, what came after it."""
        if life != self.life or self.replica is not None or self.held_down:
            return
        store = self.disk.store
        if self.disk.full:
            self._kernel.after(self._reload_us, self._build, life, cause)
            self._reload_us = min(RELOAD_US_MAX, self._reload_us * 2)
            return
        self._reload_us = RELOAD_US_MIN
        known = [writer for writer, _ in store.heads().items()]
        store.incarnation = max(store.incarnation + 1, incarnation_floor(self.now.wall_ms, self.region, known))
        writer = writer_id(self.region, self.settings.node, store.incarnation, self._rng.randbytes(8))
        settings = self._world.settings_of(self)
        replica = Replica(settings, writer, self.now, store.meta)
        replica.restore_known(store.known_ids(DEFAULT_DOMAIN))
        replica.restore_rows(store.live_rows(DEFAULT_DOMAIN))
        replica.restore_documents(store.documents_of(DEFAULT_DOMAIN))
        replica.restore_commits(store.commits_beyond(DEFAULT_DOMAIN, replica.folded_heads))
        self.replica = replica
        for mutant in self._world.mutants:
            mutant.on_replica(self)
        heads = tuple(sorted(store.heads().items()))
        self._cause = self._trace.add(
            "node.start", self.name, writer, (store.incarnation, heads, len(store.rows)), (cause,) if cause >= 0 else ()
        )
        try:
            replica.start(self.now)
        except Exception as error:  # noqa: BLE001 - as in _feed
            self._failed(error)
            return
        self._pump()
        self._dialling.begin()

    def crash(self, reason: str, *, power: bool = False, cause: int = -1) -> None:
        """`kill -9`, or a power cut: what is not on disk is lost, and with `power` nobody says goodbye."""
        if self.replica is None and not power:
            self.life += 1
            return
        cause = self._trace.add("node.crash", self.name, self.name, (reason,), (cause,) if cause >= 0 else ())
        self._end(reason, silent=power)
        self._crash_disk(cause, power=power)
        if power:
            self.powered = False
            self.clock.boot(self._kernel.now_us)

    def _crash_disk(self, cause: int, *, power: bool) -> None:
        """Whatever was being written is on disk, or it is not."""
        tail = self.disk.crash(power=power)
        if tail.batch is not None:
            commits = tuple((row.writer, row.number) for row in tail.batch.commits)
            kind, data = ("disk.durable", ()) if tail.kept else ("disk.lost", (commits, "not yet on disk"))
            self._trace.add(kind, self.name, f"b{tail.batch.batch}", data, (self._write, cause), subject=tail.batch)
        if tail.commits:
            self.lost(tail.commits, "the disk had lied", cause)

    def lost(self, rows: tuple[e.CommitRow, ...], reason: str, cause: int) -> None:
        """Commits that were durable are gone."""
        commits = tuple((row.writer, row.number) for row in rows)
        self._trace.add("disk.lost", self.name, self.name, (commits, reason), (cause,) if cause >= 0 else ())

    def _end(self, reason: str, *, silent: bool) -> None:
        """Whatever ended the process: nothing of it goes on."""
        self.life += 1
        self.replica = None
        self.paused = False
        self.trap = None
        self._timer_us = None
        self._backlog.clear()
        self._inputs.clear()
        self._busy_us = 0
        for connection in list(self.links.values()):
            self._world.network.close(connection, self, reason, silent=silent)
        self.links.clear()
        self._told_of.clear()
        self._answers.clear()
        self.workers.clear()
        guests, self.guests = list(self.guests), {}
        for guest in guests:
            self._kernel.after(LOCAL_US, guest.hung_up, reason)

    def _failed(self, error: BaseException) -> None:
        """The driver discards the replica: its memory may be ahead of disk, or wrong."""
        reason = f"{type(error).__name__}: {error}"
        cause = self._trace.add("node.failed", self.name, self.name, (reason,), (self._cause,))
        if not isinstance(error, StorageError):
            self._world.core_raised(self, error)
        self._end("state discarded", silent=False)
        self._crash_disk(cause, power=False)
        self._kernel.after(self._reload_us, self._build, self.life, self._cause)
        self._reload_us = min(RELOAD_US_MAX, self._reload_us * 2)

    def pause(self) -> None:
        """SIGSTOP."""
        if self.replica is not None and not self.paused:
            self.paused = True
            self._trace.add("node.pause", self.name, self.name)

    def resume(self) -> None:
        if self.paused:
            self.paused = False
            self._cause = self._trace.add("node.resume", self.name, self.name)
            # As asyncio does: what stands in the sockets is read before the timers that are due.
            self._backlog.sort(key=lambda call: call[0] == "tick")
            self._catch_up(self.life)

    # Inputs ------------------------------------------------------------------------------------

    def input(self, name: str, args: tuple[Any, ...], cause: int) -> None:
        """Call a method of the replica with `args` and the time, when the process gets to it."""
        if self.replica is None:
            return
        if self.paused or self._backlog or self.slow_us or self._kernel.now_us < self._busy_us:
            self._backlog.append((name, args, cause))
            if not self._draining and not self.paused:
                self._draining = True
                self._kernel.at(max(self._busy_us, self._kernel.now_us + self.slow_us), self._catch_up, self.life)
            return
        self._feed(name, args, cause)

    def _catch_up(self, life: int) -> None:
        """One after another what came while the process could not."""
        self._draining = False
        if life != self.life or self.paused:
            return
        while self._backlog and not self.paused:  # a crash empties the backlog
            name, args, cause = self._backlog.pop(0)
            self._feed(name, args, cause)
            if self.slow_us and self._backlog:
                self._draining = True
                self._busy_us = self._kernel.now_us + self.slow_us
                self._kernel.at(self._busy_us, self._catch_up, self.life)
                return
        self._arm()

    def _feed(self, name: str, args: tuple[Any, ...], cause: int) -> None:
        replica = self.replica
        if replica is None:
            return
        self._cause = cause
        if cause >= 0 and len(self._inputs) < CAUSES_MAX:
            self._inputs.append(cause)
        now = self.clock.now(self._kernel.now_us)
        if name == "connected":
            peer, self._told_of[peer] = args
            args = (peer,)
        elif name == "disconnected":
            self._told_of.pop(args[0], None)
        try:
            if name == "submit":
                replica.submit(args[0], now, args[1])
            else:
                getattr(replica, name)(*args, now)
        except RemoteProtocolError as error:
            connection = self._link(args[0]) if name == "receive" else None
            if connection is not None:
                self._world.network.close(connection, self, str(error))
                return
            self._failed(error)
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, this memory is not to be trusted any more
            self._failed(error)
            return
        self._pump()

    def ask(self, guest: Guest, command: Any, answer: Answer, cause: int) -> None:
        """A command from a client or worker that is connected. `answer` is called when an answer reaches it."""
        if self.replica is None or guest not in self.guests:
            return
        self._tickets += 1
        ticket = self._tickets
        self._answers[ticket] = (guest, answer)
        self.input("submit", (command, ticket), cause)

    def welcome(self, guest: Guest) -> bool:
        """A guest connects. Whether anybody listens."""
        if self.running:
            self.guests[guest] = None
        return self.running

    def employ(self, worker: str, guest: WorkerGuest) -> bool:
        """A worker connects. Whether anybody listens."""
        if self.welcome(guest):
            self.workers[worker] = guest
        return self.running

    def goodbye(self, guest: Guest, worker: str = "", cause: int = -1) -> None:
        """A guest's connection ends, and the process learns of it."""
        self.guests.pop(guest, None)
        for ticket in [ticket for ticket, (asker, _) in self._answers.items() if asker is guest]:
            del self._answers[ticket]
            if self.replica is not None:
                self.replica.forget(ticket)
        if worker and self.workers.get(worker) is guest:
            del self.workers[worker]
            self.input("submit", (WorkerGone(worker), 0), cause)

    # Links (network.End) -------------------------------------------------------------------------

    def admits(self, connection: Connection) -> str:
        return self._dialling.admits(connection)

    def link_up(self, connection: Connection) -> None:
        peer = RegionId(connection.other(self).region)
        if connection.dialler is self:
            self._dialling.linked(peer)
            if not self._dialling.wants(peer, connection):
                self._world.network.close(connection, self, "not wanted any more")
                return
        older = self.links.get(peer)
        if older is not None:
            self._world.network.close(older, self, "a newer link takes its place")
        self.links[peer] = connection
        self.input("connected", (peer, connection), self._trace.count - 1)

    def link_down(self, connection: Connection, reason: str) -> None:  # noqa: ARG002 - the trace has it
        peer = RegionId(connection.other(self).region)
        if self.links.get(peer) is connection:
            del self.links[peer]
            self.input("disconnected", (peer,), self._trace.count - 1)
            self._dialling.lost(peer)

    def frame(self, connection: Connection, message: bytes, cause: int) -> None:
        peer = RegionId(connection.other(self).region)
        if self.links.get(peer) is connection:
            self.input("receive", (peer, message), cause)

    def dialled(self, peer: str, refused: str) -> None:  # noqa: ARG002 - the trace has it
        self._dialling.failed(RegionId(peer))

    # Effects -----------------------------------------------------------------------------------

    def _pump(self) -> None:
        replica = self.replica
        assert replica is not None
        try:
            effects = replica.take_effects()
        except Exception as error:  # noqa: BLE001 - as in _feed
            self._failed(error)
            return
        if effects:
            carry = self._carry
            for effect in effects:
                if self.trap is None:
                    carry[type(effect)](effect)
                elif self._carry_to_trap(effect):
                    return
                if self.replica is not replica:
                    return
        self._arm()

    def _carry_to_trap(self, effect: e.Effect) -> bool:
        """Carry one effect out while a trap waits. Whether it has sprung, and the process is gone."""
        trap = self.trap
        assert trap is not None
        sprung = trap.counts(effect)
        if not sprung or trap.after:
            self._carry[type(effect)](effect)
        if sprung:
            self.trap = None
            trap.spring()
        return sprung

    def _arm(self) -> None:
        """See that the replica gets its tick."""
        replica = self.replica
        if replica is None:
            return
        due_ms = replica.next_deadline_ms()
        if due_ms is None:
            return
        at_us = self.clock.true_us(due_ms, self._kernel.now_us)
        if self._timer_us is None or at_us < self._timer_us:
            self._timer_us = at_us
            self._kernel.at(at_us, self._timer, self.life, at_us)

    def rearm(self) -> None:
        """The clock's rate changed: timers are due at other true times."""
        self._timer_us = None
        self._arm()

    def _timer(self, life: int, at_us: int) -> None:
        if life != self.life or at_us != self._timer_us:
            return
        self._timer_us = None
        replica = self.replica
        if replica is None or self.paused:
            return  # on resumption the timers are looked at again
        due_ms = replica.next_deadline_ms()
        if due_ms is not None and due_ms <= self.now.mono_ms:
            self.input("tick", (), -1)
        else:
            self._arm()

    def _causes(self) -> tuple[int, ...]:
        return (self._cause,) if self._cause >= 0 else ()

    def _persist(self, effect: e.Persist) -> None:
        trace, replica = self._trace, self.replica
        assert replica is not None
        causes, self._inputs = tuple(self._inputs), []
        size = 0
        commits: list[tuple[str, int]] = []
        for row in effect.commits:
            size += len(row.blob)
            commits.append((row.writer, row.number))
            if row.writer == replica.writer:
                data = (row.stamp, commit_hash(row.blob).hex())
                trace.add("commit", self.name, f"{row.writer}:{row.number}", data, causes, subject=row)
        write = (tuple(commits), len(effect.rows), size)
        seq = trace.add("disk.write", self.name, f"b{effect.batch}", write, causes, subject=effect)
        self._write = seq
        self.disk.begin(effect)
        self._kernel.after(self.disk.write_us(), self._written, self.life, effect, seq)

    def _written(self, life: int, effect: e.Persist, cause: int) -> None:
        if life != self.life:
            return
        try:
            self.disk.finish()
        except CrdtSyncError as error:
            self._cause = self._trace.add("disk.refused", self.name, f"b{effect.batch}", (str(error),), (cause,))
            self._failed(error)
            return
        seq = self._trace.add("disk.durable", self.name, f"b{effect.batch}", (), (cause,), subject=effect)
        self.input("persisted", (effect.batch,), seq)

    def _read(self, effect: Any) -> None:
        self._kernel.after(READ_US, self._found, self.life, effect, self._cause)

    def _found(self, life: int, effect: Any, cause: int) -> None:
        if life == self.life:
            self.input(ANSWERED_BY[type(effect)], (effect.token, self.disk.store.read(effect)), cause)

    def _link(self, peer: RegionId) -> Connection | None:
        """The link that the replica means: frames of an old one do not leave by the one that has taken its place."""
        connection = self._told_of.get(peer)
        return connection if connection is self.links.get(peer) else None

    def _send(self, effect: e.Send) -> None:
        connection = self._link(effect.peer)
        if connection is not None:
            self._world.network.send(connection, self, effect.message, self._causes())

    def _disconnect(self, effect: e.Disconnect) -> None:
        connection = self._link(effect.peer)
        if connection is not None:
            # After this turn, as the websocket's task would: a replica is fed one input at a time.
            self._kernel.after(0, self._world.network.close, connection, self, effect.reason)

    def _reply(self, effect: e.Reply) -> None:
        waiting = self._answers.pop(effect.ticket, None) if effect.final else self._answers.get(effect.ticket)
        if waiting is not None:
            guest, answer = waiting
            self._kernel.after(LOCAL_US, self._answered, guest, answer, effect, self._cause)

    def _answered(self, guest: Guest, answer: Answer, effect: e.Reply, cause: int) -> None:
        if guest in self.guests:
            answer(effect.value, effect.error, effect.final, cause)

    def _run(self, effect: e.Run) -> None:
        guest = self.workers.get(effect.worker)
        for a in effect.assignments:
            data = (a.task.hex(), a.name, a.number, a.term, a.fence, effect.worker)
            seq = self._trace.add("task.assigned", self.name, str(a.attempt), data, self._causes(), subject=a)
            if guest is not None:
                self._kernel.after(LOCAL_US, guest.assigned, a, seq)

    def _stop(self, effect: e.Stop) -> None:
        seq = self._trace.add("task.stop", self.name, str(effect.attempt), (effect.reason,), self._causes())
        guest = self.workers.get(effect.worker)
        if guest is not None:
            self._kernel.after(LOCAL_US, guest.asked_to_stop, effect.attempt, effect.reason, seq)

    def _restart(self, effect: e.Restart) -> None:
        """As the driver: the replica asks for another incarnation, built from disk."""
        self._trace.add("node.failed", self.name, self.name, (effect.reason,), self._causes())
        self._end(effect.reason, silent=False)
        self._crash_disk(self._cause, power=False)
        self._kernel.after(RELOAD_US_MIN, self._build, self.life, self._cause)

    def _notify(self, effect: e.Notify) -> None:
        self.notices.append(effect)
        facts = tuple(sorted((key, str(value)) for key, value in effect.facts.items()))
        self._trace.add("notify", self.name, effect.what, (effect.level, facts), self._causes(), subject=effect)


ANSWERED_BY: Final[dict[type[Any], str]] = {
    e.Load: "loaded",
    e.ReadCommits: "commits_read",
    e.ReadRows: "rows_read",
    e.Query: "queried",
}


def commit_details(row: e.CommitRow) -> dict[str, Any]:
    """What a `commit` record says beyond its hash: whom it had seen, and what it states."""
    commit = decode_commit(row.blob)
    return {
        "deps": [[dep.writer, dep.number] for dep in commit.deps],
        "events": [{"event": type(event).__name__, **_named(event)} for event in commit.events],
    }


def _named(event: Any) -> dict[str, Any]:
    return {name: _plain(value) for name, value in event._asdict().items()}


def _plain(value: Any) -> Any:
    """Ids of events as they stand in other records, records by their fields' names, and the rest as it is."""
    if isinstance(value, EventId):
        return str(value)
    if isinstance(value, tuple):
        return _named(value) if hasattr(value, "_asdict") else [_plain(item) for item in value]
    return value
