"""The kernel on trio; see `kernel` for what it has in common with the bare one, and why it needs no trick to wait."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import ContextVar
from functools import partial
from heapq import heappop
from typing import Any, Final

import trio

from simulator.determinism import seeded_trio
from simulator.kernel import STEPS_AT_ONCE_MAX, US, Cancelled, Done, Kernel, StuckError


class JumpClock(trio.abc.Clock):
    """Virtual time. trio asks for the next deadline only when no task can run: then the kernel says who goes on."""

    def __init__(self, kernel: TrioKernel) -> None:
        self._kernel = kernel

    def start_clock(self) -> None:
        """Nothing to start."""

    def current_time(self) -> float:
        return self._kernel.time_s

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return self._kernel.idle(deadline)


class TrioKernel(Kernel):
    """Handlers are trio tasks.

    Args:
        seed: Of trio's own choices among tasks that can run at the same moment.
    """

    name = "trio"

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.time_s = 0.0
        self._seed = seed
        self._deadline_us = math.inf  # trio's next one, as of the last time that no task could run
        self._driver: trio.lowlevel.Task | None = None
        self._parked = False  # the driver has given way
        self._jumps = False  # and lets trio's next deadline come
        self._nursery: trio.Nursery | None = None

    def run(self, until_us: int) -> None:
        with seeded_trio(self._seed):
            trio.run(self._main, until_us, clock=JumpClock(self), strict_exception_groups=True)

    async def _main(self, until_us: int) -> None:
        self._driver = trio.lowlevel.current_task()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self._drive(until_us)
            nursery.cancel_scope.cancel()

    async def _drive(self, until_us: int) -> None:
        queue, ready = self._queue, self._ready
        at_once = 0
        while not self._stopped:
            next_us = queue[0][0] if queue else math.inf
            if self._deadline_us < next_us and self._deadline_us <= until_us:
                self._jumps = True
                await self._give_way()
                await self._run_ready()
                continue
            if next_us > until_us:
                break
            at_us, _, call, args = heappop(queue)
            if at_us > self.now_us:
                self.now_us = at_us
                self.time_s = max(self.time_s, at_us / US)
                at_once = 0
            elif (at_once := at_once + 1) > STEPS_AT_ONCE_MAX:
                raise StuckError(f"{at_once} events at {at_us / US:.6f} s and time does not pass; the last is {call!r}")
            self.steps += 1
            call(*args)
            if ready:
                await self._run_ready()
        if not self._stopped:
            self.now_us = max(self.now_us, until_us)

    async def _run_ready(self) -> None:
        while self._ready:
            self._ready.popleft()()
            await self._give_way()

    async def _give_way(self) -> None:
        """Let fibers run until none of them can."""
        self._parked = True
        await trio.lowlevel.wait_task_rescheduled(_not_now)

    def idle(self, deadline_s: float) -> float:
        """No task can run: the driver goes on, or trio's next deadline comes. Returns how long to wait for real."""
        if not self._parked:  # the end: whoever is cancelled and still waits gets its deadlines
            if deadline_s == math.inf:
                return LAST_WAIT_S
            self.time_s = max(self.time_s, deadline_s)
            return 0.0
        if deadline_s <= self.time_s:
            return 0.0  # trio sees to it in this very turn
        self._deadline_us = deadline_s * US
        if self._jumps:
            self._jumps = False
            if not self._queue or self._deadline_us < self._queue[0][0]:
                self.time_s = deadline_s
                self.now_us = max(self.now_us, math.floor(self._deadline_us))
                return 0.0
        self._parked = False
        assert self._driver is not None
        trio.lowlevel.reschedule(self._driver)
        return 0.0

    def gate(self) -> TrioGate:
        return TrioGate(self._ready)

    def spawn(self, coroutine: Coroutine[Any, Any, Any], done: Done, owner: Any = None) -> TrioFiber:
        fiber = TrioFiber(self._ready, coroutine, done, owner)
        self._ready.append(partial(self._start, fiber))
        return fiber

    def owner(self) -> Any:
        return _OWNER.get()

    def _start(self, fiber: TrioFiber) -> None:
        assert self._nursery is not None, "handlers run while the kernel does"
        self._nursery.start_soon(fiber.run)


#: Inherited by the tasks that a handler starts.
_OWNER: ContextVar[Any] = ContextVar("owner", default=None)
LAST_WAIT_S: Final = 0.05  # for a handler that waits behind a shield when the run is over


class TrioGate:
    __slots__ = ("_error", "_open", "_ready", "_value", "_waiters")

    def __init__(self, ready: deque[Callable[[], None]]) -> None:
        self._ready = ready
        self._open = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._waiters: list[trio.lowlevel.Task] = []

    def open(self, value: Any = None) -> None:
        if not self._open:
            self._open, self._value = True, value
            for task in self._waiters:
                self._ready.append(partial(self._wake, task))

    def fail(self, error: BaseException) -> None:
        self._error = error
        self.open()

    def __await__(self) -> Generator[Any, Any, Any]:
        if not self._open:
            yield from self._wait().__await__()
        if self._error is not None:
            raise self._error
        return self._value

    async def _wait(self) -> None:
        task = trio.lowlevel.current_task()

        def abort(_: Any) -> trio.lowlevel.Abort:
            self._waiters.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        self._waiters.append(task)
        await trio.lowlevel.wait_task_rescheduled(abort)

    def _wake(self, task: trio.lowlevel.Task) -> None:
        if task in self._waiters:  # or it was cancelled meanwhile
            self._waiters.remove(task)
            trio.lowlevel.reschedule(task)


class TrioFiber:
    __slots__ = ("_coroutine", "_done", "_killed", "_owner", "_ready", "_scope")

    def __init__(
        self, ready: deque[Callable[[], None]], coroutine: Coroutine[Any, Any, Any], done: Done, owner: Any
    ) -> None:
        self._ready = ready
        self._owner = owner
        self._coroutine = coroutine
        self._done = done
        self._scope = trio.CancelScope()
        self._killed = False

    async def run(self) -> None:
        _OWNER.set(self._owner)
        value: Any = None
        error: BaseException | None = None
        with self._scope:
            try:
                value = await self._coroutine
            except trio.Cancelled:
                raise
            except BaseException as raised:  # noqa: BLE001 - whatever a handler raises is its outcome
                error = raised
        if not self._killed:
            self._done(value, Cancelled() if self._scope.cancelled_caught else error)

    def cancel(self) -> None:
        self._ready.append(self._scope.cancel)

    def kill(self) -> None:
        self._killed = True
        self.cancel()  # a trio task cannot be left where it is; what it says from now on goes nowhere


def _not_now(_: Any) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED
