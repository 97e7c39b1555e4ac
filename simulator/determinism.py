"""What keeps the real world out of a simulation; the one module that touches trio's internals.

trio breaks ties by chance and by `id()` unless told otherwise, by two private switches (trio 0.35; a test guards them).
Everything else that could differ between two runs raises (`forbidden`): real clocks, entropy, uuids, the global random
generator. `PYTHONHASHSEED` is not fixed: nothing here may iterate a set, and a share of the seeds is run again under another one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Self

from simulator.forbidden import Forbidden, Place, RealWorldError


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
        namespaces: Of the user's handlers (`__globals__`).
    """

    def __init__(
        self,
        wall_s: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        block: Callable[[float], None],
        namespaces: Iterable[dict[str, Any]] = (),
    ) -> None:
        self._replaced: list[Place] = []
        self._forbidden = Forbidden(wall_s, sleep, block, namespaces)

    def __enter__(self) -> Self:
        self._forbidden.look_around()
        for owner, name, fake in self._forbidden.places:
            if isinstance(owner, dict):
                self._replaced.append((owner, name, owner[name]))
                owner[name] = fake
            else:
                self._replaced.append((owner, name, vars(owner)[name]))
                setattr(owner, name, fake)
        return self

    def __exit__(self, *_: object) -> None:
        while self._replaced:
            owner, name, real = self._replaced.pop()
            if isinstance(owner, dict):
                owner[name] = real
            else:
                setattr(owner, name, real)

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        """The real world again, for a moment: a progress bar, a file."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()


__all__ = ["Guard", "RealWorldError", "seeded_trio"]
