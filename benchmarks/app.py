"""The app whose tasks are measured: handlers that only say when they started."""

from __future__ import annotations

import asyncio
import functools
from typing import Any, Final

from benchmarks.marks import from_environment
from crdtsync.app import App

app = App("benchmarks")

WORK_S: Final = 0.005

_marks = functools.cache(from_environment)


@app.task
async def mark(ctx: Any, slot: int) -> None:
    _marks().mark(slot)


@app.task
def mark_in_thread(ctx: Any, slot: int) -> None:
    _marks().mark(slot)


@app.task
async def mark_at_end(ctx: Any, slot: int) -> None:
    await asyncio.sleep(WORK_S)
    _marks().mark(slot)
