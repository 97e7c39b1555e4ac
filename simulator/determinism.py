"""What keeps the real world out of a simulation; the one module that touches trio's internals.

trio breaks ties by chance and by `id()` unless told otherwise, by two private switches (trio 0.35; a test guards them).
Everything else that could differ between two runs raises: real clocks, entropy, uuids, the global random generator.
`PYTHONHASHSEED` is not fixed: nothing here may iterate a set, and a share of the seeds is run again under another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, Self

from crdtsync.errors import CrdtSyncError

#: Modules whose reading of the wall clock decides nothing: log lines of handlers carry virtual time.
MAY_ASK_THE_TIME: Final = ("logging", "structlog")

_CLOCKS: Final = (
    "time",
    "time_ns",
    "monotonic",
    "monotonic_ns",
    "perf_counter",
    "perf_counter_ns",
    "clock_gettime",
    "clock_gettime_ns",
    "process_time",
    "process_time_ns",
)
_RANDOM: Final = tuple(
    name
    for name in dir(random)
    if name.islower() and not name.startswith("_") and getattr(getattr(random, name), "__self__", None) is not None
)
_ENTROPY: Final[tuple[tuple[Any, tuple[str, ...]], ...]] = (
    (os, ("urandom", "getrandom")),
    (uuid, ("uuid1", "uuid4", "getnode")),
    (secrets, ("token_bytes", "token_hex", "token_urlsafe", "randbelow", "randbits", "choice")),
    (random, _RANDOM),
)


class RealWorldError(CrdtSyncError):
    """Something in a simulation asked for real time or chance: its run could not be repeated."""

    code = "config"


@contextlib.contextmanager
def seeded_trio(seed: int) -> Iterator[None]:
    """Let trio's scheduler make the same choices in every run of a seed, within this block."""
    from trio._core import _run  # noqa: PLC0415 - see above

    switches: Any = _run
    allowed, state = switches._ALLOW_DETERMINISTIC_SCHEDULING, switches._r.getstate()  # noqa: SLF001
    switches._ALLOW_DETERMINISTIC_SCHEDULING = True  # noqa: SLF001
    switches._r.seed(seed)  # noqa: SLF001
    try:
        yield
    finally:
        switches._ALLOW_DETERMINISTIC_SCHEDULING = allowed  # noqa: SLF001
        switches._r.setstate(state)  # noqa: SLF001


class Guard:
    """While entered, the real world raises, and every sleep that a handler may use is one in virtual time.

    Args:
        wall_s: Virtual wall time, for log lines.
        sleep: What `asyncio.sleep` and `trio.sleep` become.
        block: What `time.sleep` becomes.
    """

    def __init__(
        self,
        wall_s: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        block: Callable[[float], None],
    ) -> None:
        self._replaced: list[tuple[Any, str, Any]] = []
        self._fakes: list[tuple[Any, str, Any]] = []
        self._wall_s = wall_s
        for name in _CLOCKS:
            self._fake(time, name, self._clock(name))
        for module, names in _ENTROPY:
            for name in names:
                self._fake(module, name, _raiser(f"{module.__name__}.{name}", "draw from a seeded random.Random"))
        self._fake(time, "sleep", block)
        self._fake(asyncio, "sleep", _sleeper(sleep))
        if "trio" in sys.modules:
            self._fake(sys.modules["trio"], "sleep", _sleeper(sleep))

    def _fake(self, module: Any, name: str, fake: Any) -> None:
        if hasattr(module, name):
            self._fakes.append((module, name, fake))

    def _clock(self, name: str) -> Callable[..., Any]:
        refuse = _raiser(f"time.{name}", "take the time from the task's arguments, or sleep")
        if name not in ("time", "time_ns", "monotonic"):
            return refuse

        def clock() -> Any:
            asker = sys._getframe(1).f_globals.get("__name__", "")  # noqa: SLF001
            if asker.partition(".")[0] not in MAY_ASK_THE_TIME:
                refuse()
            now_s = self._wall_s()
            return int(now_s * 1_000_000_000) if name == "time_ns" else now_s

        return clock

    def __enter__(self) -> Self:
        for module, name, fake in self._fakes:
            self._replaced.append((module, name, getattr(module, name)))
            setattr(module, name, fake)
        return self

    def __exit__(self, *_: object) -> None:
        while self._replaced:
            module, name, real = self._replaced.pop()
            setattr(module, name, real)

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """The real world again, for a moment: a progress bar, a file."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()


def _raiser(what: str, instead: str) -> Callable[..., Any]:
    def refused(*_: Any, **__: Any) -> Any:
        raise RealWorldError(f"{what}() in a simulation: a run of the same seed would differ; {instead}")

    return refused


def _sleeper(sleep: Callable[[float], Awaitable[None]]) -> Callable[..., Any]:
    async def virtual_sleep(delay: float, result: Any = None) -> Any:
        await sleep(delay)
        return result

    return virtual_sleep
