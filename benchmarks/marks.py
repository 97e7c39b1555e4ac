"""When each task's handler started: one slot per task in a file that handlers and the benchmark map into memory.

Writing one takes about 0.3 us and asks nobody, so the figures contain the coordinator and not its observer. A slot that
is written again keeps its first time, and the repetition is counted.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import struct
import time
from pathlib import Path
from typing import Final

VARIABLE: Final = "CRDTSYNC_BENCH_MARKS"  # names the file to handlers, in their process
POLL_S: Final = 0.02

_SLOT: Final = struct.Struct("=d")
_COUNT: Final = struct.Struct("=q")
_HEAD: Final = 64  # bytes before the first slot; the count of repetitions stands at 0


class Marks:
    """The file of start times, in seconds of CLOCK_MONOTONIC, which all processes share."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self._free = 0

    @classmethod
    def create(cls, path: Path, slots: int) -> Marks:
        with path.open("wb") as file:
            file.truncate(_HEAD + slots * _SLOT.size)
        return cls(path)

    @property
    def slots(self) -> int:
        return (len(self._memory) - _HEAD) // _SLOT.size

    @property
    def repeated(self) -> int:
        """How often a task started that had started before."""
        count: int = _COUNT.unpack_from(self._memory, 0)[0]
        return count

    def take(self, count: int) -> range:
        """The next `count` slots, never given out before."""
        taken = range(self._free, self._free + count)
        if taken.stop > self.slots:
            raise ValueError(f"{taken.stop} slots are needed, the file has {self.slots}")
        self._free = taken.stop
        return taken

    def mark(self, slot: int) -> None:
        """The handler of `slot` starts now."""
        place = _HEAD + _SLOT.size * slot
        if _SLOT.unpack_from(self._memory, place)[0]:
            _COUNT.pack_into(self._memory, 0, self.repeated + 1)
        else:
            _SLOT.pack_into(self._memory, place, time.monotonic())

    def time(self, slot: int) -> float:
        """When it started, 0 if it has not."""
        at: float = _SLOT.unpack_from(self._memory, _HEAD + _SLOT.size * slot)[0]
        return at

    def times(self, slots: range) -> tuple[float, ...]:
        return struct.unpack_from(f"={len(slots)}d", self._memory, _HEAD + _SLOT.size * slots.start)

    def done(self, slots: range) -> int:
        return sum(1 for at in self.times(slots) if at)

    async def wait(self, slots: range, timeout_s: float, *, poll_s: float = POLL_S) -> None:
        """Until all of them have started.

        Raises:
            TimeoutError: They have not in time. The message says how many have.
        """
        until = time.monotonic() + timeout_s
        slot = slots.start
        while slot < slots.stop:
            while slot < slots.stop and self.time(slot):
                slot += 1
            if slot < slots.stop:
                if time.monotonic() > until:
                    raise TimeoutError(f"only {self.done(slots)} of {len(slots)} tasks ran within {timeout_s:g} s")
                await asyncio.sleep(poll_s)


def from_environment() -> Marks:
    """In a handler's process: the file that the benchmark named."""
    return Marks(Path(os.environ[VARIABLE]))
