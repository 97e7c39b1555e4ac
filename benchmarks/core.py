"""One replica with its store and nothing around it: no socket, no worker process, no loop of its own.

`Core` plays the driver's part one step after the other, and tells apart the CPU seconds that were spent in the core and
all others (the store's). What is measured here is what the logic costs; `end_to_end` measures what people get.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from benchmarks.measure import pss_mb
from benchmarks.producers import SPECS_PER_SUBMIT
from crdtsync import commands as c
from crdtsync import effects as e
from crdtsync.clock import Now
from crdtsync.errors import error_from_record
from crdtsync.identifiers import RegionId
from crdtsync.replica import Replica
from crdtsync.settings import Settings
from regions.driver import clock
from regions.memory import settle
from regions.reading import read
from regions.recovery import recover
from regions.storage.sqlite import SqliteStore
from regions.storage.store import Store

WORKER: Final = "worker"
DAY_MS: Final = 86_400_000
OK: Final = b"\xf6"  # the canonical CBOR of None

P = ParamSpec("P")
T = TypeVar("T")


def settings_of(region: str = "eu", members: Sequence[str] = ("eu",), **others: Any) -> Settings:
    """A replica that never waits for a silent worker: time passes while something is measured."""
    chosen = {"worker_lost_after_ms": DAY_MS, "start_grace_ms": 0, "lost_after_ms": DAY_MS, **others}
    return Settings("benchmarks", RegionId(region), "a", tuple(map(RegionId, members)), **chosen)


class Core:
    """A replica and its driver, which is asked rather than running."""

    def __init__(self, store: Store, settings: Settings | None = None) -> None:
        self.store = store
        self.settings = settings_of() if settings is None else settings
        self.core_s = 0.0  # CPU seconds inside the replica
        self.assigned: list[e.Assignment] = []
        self._answers: dict[int, e.Reply] = {}
        self._tickets = 0
        self._replica: Replica | None = None

    @property
    def replica(self) -> Replica:
        assert self._replica is not None, "not started"
        return self._replica

    async def start(self) -> None:
        """From disk, up to the first turn in which nothing is left to fold."""
        await self.store.open()
        self._replica = await recover(self.settings, self.store, os.urandom(8), clock)
        await self.ask(c.Status())

    async def close(self) -> None:
        self._replica = None
        await self.store.close()

    async def feed(self, give: Callable[[Replica, Now], None]) -> None:
        """One input, and all that follows from it."""
        self._in_core(lambda: give(self.replica, clock()))
        await self.pump()

    async def pump(self) -> None:
        """Carry out effects until there are none."""
        while effects := self._in_core(self._take):
            for effect in effects:
                match effect:
                    case e.Persist(batch):
                        await self.store.append(effect)
                        self._in_core(lambda batch=batch: self.replica.persisted(batch, clock()))  # type: ignore[misc]
                    case e.Load() | e.ReadCommits() | e.ReadRows() | e.Query():
                        answer = await read(self.store, effect)
                        self._in_core(lambda answer=answer: answer.give(self.replica, clock()))  # type: ignore[misc]
                    case e.Run(_, assignments):
                        self.assigned += assignments
                    case e.Reply(ticket):
                        self._answers[ticket] = effect
                    case _:
                        pass

    async def ask(self, command: Any) -> Any:
        """The answer to a command. Raises the error that it is, if it is one."""
        self._tickets += 1
        ticket = self._tickets
        await self.feed(lambda replica, now: replica.submit(command, now, ticket))
        while ticket not in self._answers:
            await self.pump()
        answer = self._answers.pop(ticket)
        if answer.error is not None:
            raise error_from_record(answer.error)
        return answer.value

    async def send(self, commands: Iterable[Any]) -> None:
        """Commands that came in one frame; what they are answered is not kept."""
        for command in commands:
            self._in_core(lambda command=command: self.replica.submit(command, clock(), 0))  # type: ignore[misc]
        await self.pump()
        self._answers.pop(0, None)

    # What a worker and a client would do ---------------------------------------------------------

    async def hello(self, names: Sequence[str], credits: int) -> None:
        await self.ask(c.WorkerHello(WORKER, "benchmarks", tuple(map(c.TaskDeclaration, names)), credits))

    async def leave(self) -> None:
        await self.feed(lambda replica, now: replica.submit(c.WorkerGone(WORKER), now, 0))

    async def submit(self, specs: Sequence[c.TaskSpec]) -> list[bytes]:
        """Submit all, many per frame, and return their ids."""
        ids = []
        for begin in range(0, len(specs), SPECS_PER_SUBMIT):
            for record in await self.ask(c.Submit(tuple(specs[begin : begin + SPECS_PER_SUBMIT]))):
                if "error" in record:
                    raise error_from_record(record["error"])
                ids.append(bytes.fromhex(record["id"]))
        return ids

    async def complete(self, assignments: Iterable[e.Assignment]) -> None:
        """These attempts end well, all told in one frame."""
        await self.send(complete_of(assignment) for assignment in assignments)

    async def work_off(self, per_frame: int = 50) -> None:
        """Complete what is assigned until nothing more comes."""
        while self.assigned:
            now, self.assigned = self.assigned[:per_frame], self.assigned[per_frame:]
            await self.complete(now)

    def _take(self) -> list[e.Effect]:
        deadline = self.replica.next_deadline_ms()
        now = clock()
        if deadline is not None and deadline <= now.mono_ms:
            self.replica.tick(now)
        return self.replica.take_effects()

    def _in_core(self, call: Callable[[], T]) -> T:
        begun = time.process_time()
        try:
            return call()
        finally:
            self.core_s += time.process_time() - begun


def complete_of(assignment: e.Assignment) -> c.Complete:
    stamp, writer, number, index = assignment.attempt
    return c.Complete((stamp, writer, number, index), "ok", OK)


def sqlite_core(data: Path, **settings: Any) -> Core:
    return Core(SqliteStore(data), settings_of(**settings))


def memory_mb() -> float:
    """Of this process, after what is garbage has gone."""
    gc.collect()
    return pss_mb(os.getpid())


def in_fresh_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call it where no earlier measurement left memory or warm caches behind, in a process set up as a node's is."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=settle) as pool:
        return pool.submit(function, *args, **kwargs).result()
