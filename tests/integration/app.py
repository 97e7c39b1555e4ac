"""The app of the integration tests: small, and telling when and where it ran."""

import asyncio
import os
import pathlib

from crdtsync import App, Retry

app = App("integration")


@app.task
async def add(ctx, a: int, b: int) -> int:
    return a + b


@app.task(retry=Retry(attempts=2, base=0.05))
def fail(ctx) -> None:
    raise ValueError("as asked")


@app.task
async def nap(ctx, seconds: float) -> str:
    await asyncio.sleep(seconds)
    return ctx.region


@app.task(compensate="undo")
async def write(ctx, path: str, seconds: float = 0) -> str:
    """Adds a line, after a while; the line names the region, so that a test sees who ran."""
    await asyncio.sleep(seconds)
    await ctx.effect("line", _append, path, f"+{ctx.region}")
    return ctx.region


@app.task
async def undo(ctx, lost) -> None:
    await ctx.effect("unline", _append, lost.effects["line"], f"-{lost.region}")


def _append(path: str, line: str) -> str:
    with pathlib.Path(path).open("a") as file:
        file.write(line + "\n")
        os.fsync(file.fileno())
    return path
