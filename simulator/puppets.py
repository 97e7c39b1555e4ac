"""Handlers that are not async: each in a thread of its own, of which only one ever runs.

A puppet runs until it blocks (`ctx.effect`, `ctx.checkpoint`, `time.sleep`); then the simulation goes on and the puppet
stands still, in the middle of its call, until what it waits for has come. Control is handed over, never shared, so the
order of things is as fixed as that of coroutines.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from simulator.forbidden import PUPPET, RealWorldError
from simulator.kernel import US, Fiber, Kernel

Block = Callable[[Awaitable[Any], float | None], Any]

_current: Final = threading.local()


class _Request:
    """What a puppet waits for."""

    __slots__ = ("awaitable", "timeout_s")

    def __init__(self, awaitable: Awaitable[Any], timeout_s: float | None) -> None:
        self.awaitable = awaitable
        self.timeout_s = timeout_s


class _Cut(BaseException):
    """Thrown into a puppet whose run is over, so that its thread ends."""


class _Puppet:
    def __init__(self, kernel: Kernel, function: Callable[[Block], Any]) -> None:
        self.kernel = kernel
        self.request: _Request | None = None
        self.value: Any = None
        self.error: BaseException | None = None
        self._function = function
        self._answer: tuple[Any, BaseException | None] = (None, None)
        self._go = threading.Semaphore(0)
        self._back = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=PUPPET, daemon=True)
        self._started = False

    def resume(self, value: Any = None, error: BaseException | None = None) -> bool:
        """Let it run until it blocks. Whether it did, and is not over."""
        self._answer = (value, error)
        self.request = None
        if self._started:
            self._go.release()
        else:
            self._started = True
            self._thread.start()
        self._back.acquire()
        return self.request is not None

    def _run(self) -> None:
        _current.puppet = self
        try:
            self.value = self._function(self.block)
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            self.error = error
        self.request = None
        self._back.release()

    def block(self, awaitable: Awaitable[Any], timeout_s: float | None) -> Any:
        """From its thread: wait for something of the simulation's."""
        self.request = _Request(awaitable, timeout_s)
        self._back.release()
        self._go.acquire()
        value, error = self._answer
        if error is not None:
            raise error
        return value


async def in_puppet(kernel: Kernel, function: Callable[[Block], Any]) -> Any:
    """Call `function(block)` in a thread that runs only while this waits for it."""
    puppet = _Puppet(kernel, function)
    waits = puppet.resume()
    try:
        while waits:
            request = puppet.request
            assert request is not None
            try:
                value = await _within(kernel, request)
            except Exception as error:  # noqa: BLE001 - it is the puppet's
                waits = puppet.resume(None, error)
            else:
                waits = puppet.resume(value)
    except BaseException:
        while puppet.resume(None, _Cut()):
            pass  # it caught that, and blocked again
        raise
    if puppet.error is not None:
        raise puppet.error
    return puppet.value


async def _within(kernel: Kernel, request: _Request) -> Any:
    if request.timeout_s is None:
        return await request.awaitable
    gate = kernel.gate()

    async def wait() -> Any:
        return await request.awaitable

    def done(value: Any, error: BaseException | None) -> None:
        if error is None:
            gate.open(value)
        elif isinstance(error, Exception):
            gate.fail(error)

    fiber: Fiber = kernel.spawn(wait(), done, kernel.owner())
    kernel.after(max(0, round(request.timeout_s * US)), partial(gate.open, None))
    try:
        return await gate
    finally:
        fiber.kill()


def block_for(sleep: Callable[[float], Awaitable[None]], seconds: float) -> None:
    """What `time.sleep` becomes: a wait in virtual time for handlers that are not async."""
    puppet = getattr(_current, "puppet", None)
    if puppet is None:
        raise RealWorldError("time.sleep() would hold the simulation: await asyncio.sleep() in an async handler")
    puppet.block(sleep(seconds), None)
