"""Memory: how often Python looks for cycles in it, and what a burst took going back to the machine.

What a node holds are records that point to no one who points back. Python's collector, as it comes, walks through all of
them again and again while they become more: with 40,000 events taken in it took more than half of the CPU (93,000
events a second, 190,000 with the thresholds below). So it looks more seldom; what was imported it never looks at.

A queue of 100,000 tasks takes 150 MB; when it is worked off, glibc keeps most of the pages in its
free lists. `malloc_trim` hands them back: 2 to 10 ms for a heap of 100 MB, so it is done rarely.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
from typing import Final

TRIM_S: Final = 10.0
#: New objects until the young are looked at; how many times that until the middle-aged are, and of these until all.
THRESHOLDS: Final = (20_000, 50, 100)


def settle() -> None:
    """Have the collector look for cycles as seldom as a node needs. For a process of our own, once it is imported."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)


def trim() -> bool:
    """Give free pages back. False where the C library cannot."""
    try:
        library = ctypes.CDLL(None)
        return bool(library.malloc_trim(0))
    except (AttributeError, OSError):
        return False


async def keep_trimmed(interval_s: float = TRIM_S) -> None:
    """Trim every now and then, until cancelled."""
    while True:
        await asyncio.sleep(interval_s)
        gc.collect(1)  # young cycles only: a full collection would stop the node for too long
        trim()
