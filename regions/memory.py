"""Memory that a burst took goes back to the machine.

A queue of 100,000 tasks takes 150 MB; when it is worked off, glibc keeps most of the pages in its
free lists. `malloc_trim` hands them back: 2 to 10 ms for a heap of 100 MB, so it is done rarely.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
from typing import Final

TRIM_S: Final = 10.0


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
