"""The event queue in virtual time: bare, and on trio.

An event is a call at a time, in whole microseconds; ties are played in the order in which they were made. Machines
(replicas, links, disks, clocks) are called inline. Only handlers are coroutines: a *fiber* runs until it waits for a
*gate*, and whoever opens a gate only makes its fibers ready. Once the event that opened it is over, ready fibers go
on, one at a time, each until it waits again. Both kernels keep to this, so a run under one is the run under the other.

`HeapKernel` steps the coroutines itself; they may wait for gates only (`ctx.*` and every sleep are gates).

`trio_kernel.TrioKernel` makes each fiber a trio task, so a handler may use whatever trio has. One driver task owns the queue. It
gives way only when a fiber is ready or trio has a deadline before the next event, and gets control back from the clock:
trio asks a clock for its next deadline exactly when no task can run (`trio.abc.Clock.deadline_to_sleep_time`), so
nothing waits for real, and virtual time moves either to the next event or to trio's next deadline, whichever is first.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from heapq import heappop, heappush
from typing import Any, Final, Protocol

from crdtsync.errors import CrdtSyncError

US: Final = 1_000_000  # microseconds in a second
STEPS_AT_ONCE_MAX: Final = 1_000_000  # events without time passing: something feeds itself

Done = Callable[[Any, BaseException | None], None]


class StuckError(CrdtSyncError):
    """Virtual time stands still although events keep coming: a bug in the simulator or a handler that never waits."""

    code = "internal"


class ForeignAwaitError(CrdtSyncError):
    """A handler awaits what only a real event loop can give."""

    code = "config"


class Cancelled(BaseException):
    """Thrown into a handler that was told to stop and did not, as its event loop would."""


class Gate(Protocol):
    """What a fiber waits for: opened once, with a value or an error. Late waiters do not wait."""

    def open(self, value: Any = None) -> None: ...

    def fail(self, error: BaseException) -> None: ...

    def __await__(self) -> Generator[Any, Any, Any]: ...


class Fiber(Protocol):
    """A handler under way."""

    def cancel(self) -> None:
        """Throw `Cancelled` (trio's own under trio) into it where it waits, once the event is over."""

    def kill(self) -> None:
        """Its process is gone: it gets no further, and nobody hears how it ended."""


class Kernel:
    """What both kernels are."""

    name = ""

    def __init__(self) -> None:
        self.now_us = 0
        self.steps = 0
        self._queue: list[tuple[int, int, Callable[..., Any], tuple[Any, ...]]] = []
        self._made = 0
        self._ready: deque[Callable[[], None]] = deque()
        self._stopped = False

    def at(self, at_us: int, call: Callable[..., Any], *args: Any) -> None:
        """Call `call(*args)` at that time, or now if it is past, after whatever was put there before."""
        self._made += 1
        heappush(self._queue, (max(at_us, self.now_us), self._made, call, args))

    def after(self, delay_us: int, call: Callable[..., Any], *args: Any) -> None:
        self._made += 1
        heappush(self._queue, (self.now_us + delay_us, self._made, call, args))

    def stop(self) -> None:
        """End the run after the event under way."""
        self._stopped = True

    def run(self, until_us: int) -> None:
        """Play all events up to and including that time. Once."""
        raise NotImplementedError

    def gate(self) -> Gate:
        raise NotImplementedError

    def spawn(self, coroutine: Coroutine[Any, Any, Any], done: Done, owner: Any = None) -> Fiber:
        """Run a handler, from after this event on. `done(value, error)` is called when it has ended."""
        raise NotImplementedError

    def owner(self) -> Any:
        """Whose handler is running: what its fiber was spawned with, None outside of handlers."""
        raise NotImplementedError

    def close(self) -> None:
        """End what is left after the run: handlers that wait for ever."""

    def make_ready(self, call: Callable[[], None]) -> None:
        """Call once the event under way is over, after what was made ready before."""
        self._ready.append(call)

    def sleep(self, seconds: float) -> Awaitable[None]:
        """Wait in virtual time."""
        gate = self.gate()
        self.after(max(0, round(seconds * US)), gate.open)
        return gate


class HeapKernel(Kernel):
    """For bulk: nothing but the queue."""

    name = "heap"

    def __init__(self) -> None:
        super().__init__()
        self.running: HeapFiber | None = None
        self.fibers: dict[HeapFiber, None] = {}

    def run(self, until_us: int) -> None:
        queue, ready = self._queue, self._ready
        at_once = 0
        while queue and not self._stopped:
            at_us, _, call, args = queue[0]
            if at_us > until_us:
                break
            heappop(queue)
            if at_us > self.now_us:
                self.now_us = at_us
                at_once = 0
            elif (at_once := at_once + 1) > STEPS_AT_ONCE_MAX:
                raise StuckError(f"{at_once} events at {at_us / US:.6f} s and time does not pass; the last is {call!r}")
            self.steps += 1
            call(*args)
            while ready:
                ready.popleft()()
        if not self._stopped:
            self.now_us = max(self.now_us, until_us)

    def gate(self) -> HeapGate:
        return HeapGate(self._ready)

    def spawn(self, coroutine: Coroutine[Any, Any, Any], done: Done, owner: Any = None) -> HeapFiber:
        fiber = HeapFiber(self, coroutine, done, owner)
        self.fibers[fiber] = None
        self._ready.append(fiber.step)
        return fiber

    def owner(self) -> Any:
        return None if self.running is None else self.running.owner

    def close(self) -> None:
        for fiber in list(self.fibers):
            fiber.close()
        self.fibers.clear()


class HeapGate:
    __slots__ = ("_error", "_open", "_ready", "_value", "_waiters")

    def __init__(self, ready: deque[Callable[[], None]]) -> None:
        self._ready = ready
        self._open = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._waiters: list[HeapFiber] = []

    def open(self, value: Any = None) -> None:
        if not self._open:
            self._open, self._value = True, value
            for fiber in self._waiters:
                self._ready.append(partial(fiber.woken, self))
            self._waiters.clear()

    def fail(self, error: BaseException) -> None:
        self._error = error
        self.open()

    def __await__(self) -> Generator[Any, Any, Any]:
        if not self._open:
            yield self
        if self._error is not None:
            raise self._error
        return self._value

    def wait(self, fiber: HeapFiber) -> None:
        if self._open:
            self._ready.append(partial(fiber.woken, self))
        else:
            self._waiters.append(fiber)

    def leave(self, fiber: HeapFiber) -> None:
        if fiber in self._waiters:
            self._waiters.remove(fiber)


class HeapFiber:
    __slots__ = ("_cancelled", "_coroutine", "_done", "_gate", "_kernel", "_over", "owner")

    def __init__(self, kernel: HeapKernel, coroutine: Coroutine[Any, Any, Any], done: Done, owner: Any) -> None:
        self.owner = owner
        self._kernel = kernel
        self._coroutine = coroutine
        self._done = done
        self._gate: HeapGate | None = None
        self._cancelled = False
        self._over = False

    def step(self) -> None:
        """Go on until the coroutine waits again, or ends."""
        if self._over:
            return
        value: Any = None
        error: BaseException | None = None
        self._gate = None
        kernel, coroutine = self._kernel, self._coroutine
        kernel.running = self
        try:
            if self._cancelled:
                self._cancelled = False
                trap = coroutine.throw(Cancelled())
            else:
                trap = coroutine.send(None)
            while not isinstance(trap, HeapGate):
                # Tell the handler where it stands; it may catch that, and wait for something else.
                trap = coroutine.throw(ForeignAwaitError(_FOREIGN))
        except StopIteration as stop:
            value = stop.value
        except BaseException as raised:  # noqa: BLE001 - whatever a handler raises is its outcome
            error = raised
        else:
            self._gate = trap
            trap.wait(self)
            return
        finally:
            kernel.running = None
        self._over = True
        kernel.fibers.pop(self, None)
        self._done(value, error)

    def woken(self, gate: HeapGate) -> None:
        """What it waited for has come; unless it was cancelled first, and waits for something else by now."""
        if self._gate is gate:
            self.step()

    def cancel(self) -> None:
        """Cancel it where it stands when its turn comes: what it had waited for, and got before, it has."""
        if not self._over:
            self._kernel.make_ready(self._throw)

    def _throw(self) -> None:
        if not self._over:
            self._cancelled = True
            if self._gate is not None:
                self._gate.leave(self)
            self.step()

    def kill(self) -> None:
        self._over = True  # it stays where it is until the run is over: a dead process cleans nothing up

    def close(self) -> None:
        """Forget the handler where it stands. What it does about that is nobody's business any more."""
        self._over = True
        with contextlib.suppress(BaseException):
            self._coroutine.close()


_FOREIGN: Final = (
    "this handler awaits something of a real event loop, which the heap kernel does not have: "
    "run it with --kernel trio, or await only ctx, asyncio.sleep and trio.sleep"
)


def make_kernel(name: str, seed: int) -> Kernel:
    """The kernel of that name. Raises ValueError."""
    if name == "heap":
        return HeapKernel()
    if name == "trio":
        from simulator.trio_kernel import TrioKernel  # noqa: PLC0415 - a sweep needs no trio

        return TrioKernel(seed)
    raise ValueError(f"kernel {name!r} is neither 'heap' nor 'trio'")
