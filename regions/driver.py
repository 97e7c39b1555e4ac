"""The loop around a `Replica`: inputs in, effects out, durable first.

    inputs (frames, requests, time)  ->  Replica  ->  effects  ->  disk, peers, clients, workers

Inputs are fed synchronously from whatever received them; one callback of the loop, armed by the first
of them, takes the effects of all that came together. The replica itself holds back what rests on commits that are not on disk, so
the driver carries out whatever it sees, in order. One `Persist` is under way at a time; what
arrives meanwhile makes the next (group commit): that is where throughput comes from.

When the disk fails, or the replica raises what it must not, memory may be ahead of disk or wrong.
Then the replica is discarded, everybody is told to ask again, and a new incarnation is built from
disk. Nothing decides here.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from crdtsync.clock import Now
from crdtsync.commands import Command
from crdtsync.effects import (
    Assignment,
    Disconnect,
    Effect,
    Load,
    Notify,
    Persist,
    Query,
    ReadCommits,
    ReadRows,
    Reply,
    Restart,
    Run,
    Send,
    Stop,
)
from crdtsync.errors import CrdtSyncError, OverloadedError, RemoteProtocolError, StorageError
from crdtsync.identifiers import AttemptId, RegionId
from crdtsync.replica import Replica
from crdtsync.settings import Settings
from regions.observability.logs import get_logger
from regions.reading import read
from regions.recovery import recover
from regions.storage.store import Store

RELOAD_S_MIN: Final = 0.1  # after a failure: at once, then slower while the disk stays broken
RELOAD_S_MAX: Final = 5.0
RELOAD_QUIET_S: Final = 10.0  # a failure so soon after a reload counts as the same one
IDLE_S_MAX: Final = 1.0  # the loop looks at the clock at least so often, whatever the replica asked for
ENTROPY_BYTES: Final = 8  # of an incarnation's identity
COMPACT_S_MIN: Final = 10.0  # between two compactions: dropped commits come in slices
LATE_LOOP_S: Final = 0.5  # a step that holds the loop longer is reported: everybody waits meanwhile

_LEVELS: Final = {"debug": "debug", "info": "info", "warning": "warning", "alarm": "error"}


class Outlets(Protocol):
    """Where effects go: the transports."""

    def send(self, peer: RegionId, frame: bytes) -> None: ...

    def disconnect(self, peer: RegionId, reason: str) -> None: ...

    def reply(self, ticket: Any, value: Any, error: dict[str, Any] | None, *, final: bool) -> None: ...

    def run_attempts(self, worker: str, assignments: tuple[Assignment, ...]) -> None: ...

    def stop_attempt(self, worker: str, attempt: AttemptId, reason: str) -> None: ...

    def reset(self, error: CrdtSyncError) -> None:
        """The replica was discarded: end every connection; open requests fail with `error`."""


class Driver:
    """One replica, its store, and the loop between them and the outlets."""

    def __init__(self, settings: Settings, store: Store, outlets: Outlets) -> None:
        self.settings = settings
        self.store = store
        self.counters: Counter[str] = Counter()
        self._outlets = outlets
        self._replica: Replica | None = None
        self._log = get_logger(region=settings.region)
        self._changed = asyncio.Event()  # it failed, or is to stop: what `run` has to deal with
        self._turn: asyncio.Handle | None = None  # the step that is due
        self._alarm: asyncio.TimerHandle | None = None  # the step for which time alone is the reason
        self._rang = False  # a deadline has come
        self._idle = asyncio.Event()  # nothing is being written
        self._idle.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._compaction: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._broken: BaseException | None = None  # what a reload would not cure
        self._rebuilt = -RELOAD_QUIET_S  # when the state was last reloaded, on the loop's clock
        self._rebuild_delay = 0.0
        self._generation = 0  # of the replica: answers to an older one's reads are dropped
        self._running = False
        self._stopped = False

    # The outside ---------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        return self._replica is not None

    @property
    def replica(self) -> Replica:
        """The replica. Raises OverloadedError while it is being loaded."""
        if self._replica is None:
            raise OverloadedError("the node is loading its state from disk: ask again in a moment")
        return self._replica

    async def start(self) -> None:
        """Open the store and build the replica.

        Raises:
            StorageError: The store cannot be used; nothing is left open.
        """
        await self.store.open()
        try:
            await self._build()
        except BaseException:
            await self.store.close()
            raise

    async def run(self) -> None:
        """Carry out effects and keep time until `stop`."""
        self._running = True
        try:
            while not self._stopped:
                if self._broken is not None:
                    raise self._broken
                if self._failure is not None:
                    await self._rebuild()
                self._wake()
                await self._changed.wait()
                self._changed.clear()
        finally:
            self._running = False
            self._disarm()

    async def close(self) -> None:
        """Write what is still to be written, then close the store. Call after `run` has returned."""
        await self._idle.wait()
        background = [*self._tasks, *([self._compaction] if self._compaction else [])]
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        self._replica = None
        await self.store.close()

    def stop(self) -> None:
        self._stopped = True
        self._changed.set()

    async def flushed(self) -> None:
        """Wait until everything decided so far is durable and its effects were carried out."""
        while self._replica is not None and not self._failure:
            if not self._step() and self._idle.is_set():
                return
            await self._idle.wait()

    # Inputs --------------------------------------------------------------------------------------

    def connected(self, peer: RegionId) -> None:
        self._feed(lambda replica, now: replica.connected(peer, now))

    def disconnected(self, peer: RegionId) -> None:
        self._feed(lambda replica, now: replica.disconnected(peer, now))

    def receive(self, peer: RegionId, frame: bytes) -> None:
        self._feed(lambda replica, now: replica.receive(peer, frame, now))

    def leave(self) -> None:
        """This node is about to stop."""
        self._feed(lambda replica, now: replica.leave(now))

    def forget(self, ticket: Any) -> None:
        """Whoever held `ticket` is gone."""
        if self._replica is not None:
            self._replica.forget(ticket)

    def submit(self, command: Command, ticket: Any) -> None:
        """Hand a command to the replica. Raises CrdtSyncError when it is refused on the spot."""
        replica = self.replica
        try:
            replica.submit(cast("Any", command), clock(), ticket)
        except CrdtSyncError:
            raise
        except Exception as error:
            self._fail(error)
            raise StorageError("the node failed on this request and reloads its state: ask again") from error
        finally:
            self._wake()

    def _feed(self, call: Callable[[Replica, Now], None]) -> None:
        """Feed one input; an error that is not the sender's fault discards the replica."""
        if self._replica is None:
            return
        try:
            call(self._replica, clock())
        except RemoteProtocolError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, this memory is not to be trusted any more
            self._fail(error)
        self._wake()

    # The loop ------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Have a step made, once for all inputs that come until then."""
        if self._turn is None and self._running:
            self._turn = asyncio.get_running_loop().call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._turn = None
        if self._stopped:
            return
        try:
            self._step()
            self._arm()
        except BaseException as error:  # noqa: BLE001 - an outlet failed: `run` ends with it
            self._broken = error
            self._changed.set()

    def _step(self) -> bool:
        """Let the replica act on the time, then carry out all that it wants done. Whether there was a batch to write.

        A batch that is made durable on the loop ends the step: what waited for it is sent first, and what follows from
        it is done in the next one, together with what comes meanwhile.
        """
        replica = self._replica
        if replica is None:
            return False
        started = time.monotonic()
        try:
            if self._rang:
                self._rang = False
                replica.tick(clock())
            effects = replica.take_effects()
        except Exception as error:  # noqa: BLE001 - as in _feed
            self._fail(error)
            return False
        batch = None
        for effect in effects:
            if type(effect) is Persist:
                batch = effect
            else:
                self._carry_out(effect)
        if batch is not None:
            self._write(batch)
        held = time.monotonic() - started
        if held > LATE_LOOP_S:
            self._log.warning("the loop was held up", seconds=round(held, 2), effects=len(effects))
        return batch is not None

    def _arm(self) -> None:
        """See that a step is made when the replica's next deadline comes. One that comes too early costs little, so an
        alarm that is set for an earlier time stays."""
        if self._replica is None or self._failure is not None or self._turn is not None:
            return
        deadline = self._replica.next_deadline_ms()
        wait = IDLE_S_MAX if deadline is None else min(IDLE_S_MAX, (deadline - clock().mono_ms) / 1_000)
        if wait <= 0:
            self._rang = True
            self._wake()
            return
        loop = asyncio.get_running_loop()
        when = loop.time() + wait
        if self._alarm is not None:
            if self._alarm.when() <= when:
                return
            self._alarm.cancel()
        self._alarm = loop.call_at(when, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self._rang = True
        self._wake()

    def _disarm(self) -> None:
        for handle in (self._turn, self._alarm):
            if handle is not None:
                handle.cancel()
        self._turn = self._alarm = None

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Send(peer, message):
                self._outlets.send(peer, message)
            case Reply(ticket, value, error, final):
                self._outlets.reply(ticket, value, error, final=final)
            case Run(worker, assignments):
                self._outlets.run_attempts(worker, assignments)
            case Load() | ReadCommits() | ReadRows() | Query():
                self._spawn(self._answer(effect, self._generation))
            case Stop(worker, attempt, reason):
                self._outlets.stop_attempt(worker, attempt, reason)
            case Disconnect(peer, reason):
                self._outlets.disconnect(peer, reason)
            case Restart(reason):
                self._discard(OverloadedError(f"the node starts anew ({reason}): ask again in a moment"))
                self._log.warning("the node starts anew", reason=reason)
            case Notify():
                self._notify(effect)

    def _notify(self, effect: Notify) -> None:
        self.counters[effect.what] += 1
        facts = {(f"{key}_" if key in ("event", "level") else key): value for key, value in effect.facts.items()}
        getattr(self._log, _LEVELS[effect.level])(effect.what, **facts)

    # The disk ------------------------------------------------------------------------------------

    def _write(self, batch: Persist) -> None:
        """Make a batch durable: at once if that is quick, else in the store's thread."""
        assert self._idle.is_set(), "one batch is under way at a time"
        try:
            done = self.store.append_at_once(batch)
        except StorageError as error:
            self._fail(error)
            return
        if done:
            self._written(batch)
        else:
            self._idle.clear()
            self._spawn(self._persist(batch))

    async def _persist(self, batch: Persist) -> None:
        generation = self._generation
        try:
            await self.store.append(batch)
        except StorageError as error:
            self._fail(error)
            return
        finally:
            self._idle.set()
        if generation == self._generation:
            self._written(batch)

    def _written(self, batch: Persist) -> None:
        replica = self._replica
        if replica is not None:
            try:
                replica.persisted(batch.batch, clock())
                effects = replica.take_released()
            except Exception as error:  # noqa: BLE001 - as in _feed
                self._fail(error)
                return
            for effect in effects:
                self._carry_out(effect)
            self._arm()
        if batch.drop and self._compaction is None:
            self._compaction = asyncio.create_task(self._compact())

    async def _compact(self) -> None:
        """Give the disk of dropped commits back, a while later: more is dropped meanwhile."""
        try:
            await asyncio.sleep(COMPACT_S_MIN)
            freed = await self.store.compact()
            self._log.debug("disk released", bytes=freed)
        except StorageError as error:  # nothing depends on it
            self._log.warning("disk not released", reason=str(error))
        finally:
            self._compaction = None

    async def _answer(self, effect: Load | ReadCommits | ReadRows | Query, generation: int) -> None:
        try:
            answer = await read(self.store, effect)
        except StorageError as error:
            self._fail(error)
            return
        if answer.damaged:
            self._log.error("damaged on disk", rows=[str(row) for row in answer.damaged])
            self.counters["storage.damaged"] += len(answer.damaged)
        if generation == self._generation:
            self._feed(answer.give)

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    # Failure and recovery ------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        """Discard the replica; the loop builds a new one."""
        if not self._discard(StorageError(f"the node could not go on ({error}) and reloads its state: ask again")):
            return
        expected = isinstance(error, StorageError)
        self._log.error("state discarded, reloading from disk", reason=str(error), exc_info=None if expected else error)

    def _discard(self, told: CrdtSyncError) -> bool:
        """End the replica, and everybody's connection; the loop builds another one. False if that is under way."""
        if self._failure is not None or self._stopped:
            return False
        self._failure = told
        self._replica = None
        self._generation += 1
        self.counters["node.reloads"] += 1
        self._outlets.reset(told)
        self._changed.set()
        return True

    async def _rebuild(self) -> None:
        await self._idle.wait()
        loop = asyncio.get_running_loop()
        # What failed again soon after a reload fails for a reason that a reload does not cure: each start costs an
        # incarnation, so the next ones come ever more seldom.
        again_soon = loop.time() - self._rebuilt < RELOAD_QUIET_S
        self._rebuild_delay = min(max(self._rebuild_delay * 2, RELOAD_S_MIN), RELOAD_S_MAX) if again_soon else 0.0
        if self._rebuild_delay:
            self._log.error("the state fails again and again", again_in_s=self._rebuild_delay)
            await asyncio.sleep(self._rebuild_delay)
        delay = RELOAD_S_MIN
        while not self._stopped:
            try:
                await self._build()
            except StorageError as error:
                self._log.error("reload failed", reason=str(error), again_in_s=delay)
                await asyncio.sleep(delay)
                delay = min(delay * 2, RELOAD_S_MAX)
            else:
                self._failure = None
                self._rebuilt = loop.time()
                self._log.warning("state reloaded", writer=self.replica.writer)
                return

    async def _build(self) -> None:
        self._replica = await recover(self.settings, self.store, os.urandom(ENTROPY_BYTES), clock)
        self._wake()


def clock() -> Now:
    """The time of an input: the wall clock, and one that counts on while the machine sleeps."""
    return Now(time.time_ns() // 1_000_000, time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000)
