"""What nobody may ask within a simulation: real time, entropy, and the random generators that everybody shares.

`Forbidden` says what has to be replaced, where, and by what. A module's attribute is not enough: a user's module that
says `from time import time` holds the function itself, and `datetime` reads the clock in C. So names are replaced in
the modules that are neither Python's nor a library's too.

Threads that were there before a run, such as those of a notebook's kernel, are no part of it: they get what they ask for.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import random
import secrets
import sys
import sysconfig
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from crdtsync.errors import CrdtSyncError

#: Modules whose reading of the wall clock decides nothing: log lines of handlers carry virtual time.
MAY_ASK_THE_TIME: Final = ("logging", "structlog")

PUPPET: Final = "puppet"  # the name of threads in which handlers run that are not async
TAKE: Final = "take the time from the task's arguments, or sleep"
DRAW: Final = "draw from a seeded random.Random"

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
    "thread_time",
    "thread_time_ns",
)
_BROKEN_DOWN: Final = {
    "gmtime": 0,
    "localtime": 0,
    "ctime": 0,
    "asctime": 0,
    "strftime": 1,
}  # -> arguments without a time
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
_OURS: Final = frozenset({"crdtsync", "regions", "simulator"})
_LIBRARIES: Final = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})

Place = tuple[
    Any, str, Any
]  # where (a module, a class, or a module's namespace), a name, and what stands there instead


class RealWorldError(CrdtSyncError):
    """Something in a simulation asked for real time or chance: its run could not be repeated."""

    code = "config"


def refuse(what: str, instead: str) -> Any:
    """Raise RealWorldError."""
    raise RealWorldError(f"{what}() in a simulation: a run of the same seed would differ; {instead}")


class Forbidden:
    """All that has to be replaced for one run.

    Args:
        wall_s: Virtual wall time, for log lines.
        sleep: What `asyncio.sleep` and `trio.sleep` become.
        block: What `time.sleep` becomes.
        namespaces: Of the user's handlers: their modules may be known to nobody else.
    """

    def __init__(
        self,
        wall_s: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        block: Callable[[float], None],
        namespaces: Iterable[dict[str, Any]] = (),
    ) -> None:
        self._wall_s = wall_s
        self.foreign: frozenset[int] = frozenset()  # threads that are no part of the run
        self._fakes: dict[int, Any] = {}  # id of the real thing -> what stands in for it
        self._real: list[Any] = []  # holds on to them, or their ids might be given to others
        self.places: list[Place] = list(self._of_modules(sleep, block))
        self.places += self._of_users(namespaces)

    def look_around(self) -> None:
        """Call when a run begins or goes on: whatever other threads there are now are none of its own."""
        me = threading.get_ident()
        self.foreign = frozenset(
            thread.ident for thread in threading.enumerate() if thread.ident not in (None, me) and thread.name != PUPPET
        )

    def _of_modules(self, sleep: Callable[[float], Awaitable[None]], block: Callable[[float], None]) -> Iterator[Place]:
        for name in _CLOCKS:
            yield from self._place(time, name, self._clock(name))
        for name, others in _BROKEN_DOWN.items():
            yield from self._place(time, name, _of_a_given_time(name, others))
        for module, names in _ENTROPY:
            for name in names:
                yield from self._place(module, name, _refusing(f"{module.__name__}.{name}", DRAW))
        yield random, "_urandom", self._for_us(os.urandom, _refusing("random.SystemRandom", DRAW))
        yield random.Random, "seed", self._for_us(_SEED, _seed)
        for real in (dt.datetime, dt.date):
            yield from self._place(dt, real.__name__, self._moments(real))
        yield from self._place(time, "sleep", block)
        virtual = _sleeper(sleep)
        yield from self._place(asyncio, "sleep", virtual)
        if "trio" in sys.modules:
            yield from self._place(sys.modules["trio"], "sleep", virtual)

    def _place(self, module: Any, name: str, fake: Any) -> Iterator[Place]:
        real = getattr(module, name, None)
        if real is not None:
            fake = fake if isinstance(fake, type) else self._for_us(real, fake)
            self._fakes[id(real)] = fake
            self._real.append(real)
            yield module, name, fake

    def _for_us(self, real: Any, fake: Any) -> Callable[..., Any]:
        """The real thing for threads that are no part of the run."""

        def either(*args: Any, **kwargs: Any) -> Any:
            return (real if threading.get_ident() in self.foreign else fake)(*args, **kwargs)

        return either

    def _of_users(self, namespaces: Iterable[dict[str, Any]]) -> Iterator[Place]:
        """The same things under whatever name the user's modules gave them."""
        modules = [vars(module) for name, module in list(sys.modules.items()) if _is_users(name, module)]
        seen: set[int] = set()
        for namespace in (*modules, *namespaces):
            if id(namespace) in seen:
                continue
            seen.add(id(namespace))
            for name, value in list(namespace.items()):
                fake = self._fakes.get(id(value))
                if fake is not None:
                    yield namespace, name, fake

    def _clock(self, name: str) -> Callable[..., Any]:
        what = f"time.{name}"

        def clock(*_: Any) -> Any:
            if name not in ("time", "time_ns", "monotonic") or not _may_ask(3):
                refuse(what, TAKE)
            now_s = self._wall_s()
            return int(now_s * 1_000_000_000) if name == "time_ns" else now_s

        return clock

    def _moments(self, real: Any) -> type:
        """A class that is `real` in every way but that it does not know what time it is."""

        def asked(what: str) -> Any:
            def now(_cls: type, *tz: Any, **named: Any) -> Any:
                if threading.get_ident() in self.foreign:
                    return getattr(real, what)(*tz, **named)
                if not _may_ask(2):
                    refuse(f"{real.__name__}.{what}", TAKE)
                return real.fromtimestamp(self._wall_s(), *tz, **named)

            return classmethod(now)

        def new(_cls: type, *args: Any, **kwargs: Any) -> Any:
            return real(*args, **kwargs)  # what handlers make are ordinary ones

        body: dict[str, Any] = {name: asked(name) for name in ("now", "utcnow", "today") if hasattr(real, name)}
        return _LikeReal(real.__name__, (real,), {**body, "__new__": new, "__module__": real.__module__})


class _LikeReal(type):
    """The class of a stand-in for its base: whatever is one of the base counts as one of these."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls.__mro__[1])

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls.__mro__[1])


def _may_ask(depth: int) -> bool:
    """Whether whoever stands so many calls above this decides nothing by the time."""
    asker: Mapping[str, Any] = sys._getframe(depth).f_globals  # noqa: SLF001
    return str(asker.get("__name__", "")).partition(".")[0] in MAY_ASK_THE_TIME


def _is_users(name: str, module: Any) -> bool:
    top = name.partition(".")[0]
    file = getattr(module, "__file__", None)
    if not isinstance(getattr(module, "__dict__", None), dict) or top in _OURS or top in sys.stdlib_module_names:
        return False
    return file is None or not str(file).startswith(_LIBRARIES) or name == "__main__"


def _refusing(what: str, instead: str) -> Callable[..., Any]:
    def refused(*_: Any, **__: Any) -> Any:
        return refuse(what, instead)

    return refused


def _of_a_given_time(name: str, others: int) -> Callable[..., Any]:
    """`time.localtime` and its like, which read the clock if no time is given."""
    real = getattr(time, name)

    def given(*args: Any) -> Any:
        if len(args) <= others or args[others] is None:
            refuse(f"time.{name}", TAKE)
        return real(*args)

    return given


_SEED: Final = random.Random.seed


def _seed(self: random.Random, a: Any = None, version: int = 2) -> None:
    if a is None:
        refuse("random.Random", "give it a seed, as in random.Random(ctx.attempt_id)")
    _SEED(self, a, version)


def _sleeper(sleep: Callable[[float], Awaitable[None]]) -> Callable[..., Any]:
    async def virtual_sleep(delay: float, result: Any = None) -> Any:
        await sleep(delay)
        return result

    return virtual_sleep
