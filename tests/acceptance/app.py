"""The app of the acceptance checks: its effects go to one file that all workers share, which stands for the world.

The file, $ACCEPTANCE_SINK, has one JSON object a line: what was done and what was undone, by effect key.
"""

import asyncio
import hashlib
import json
import os
import time

from crdtsync import App, PermanentError, Retry

app = App("acceptance")
QUICK = Retry(attempts=4, base=0.1, cap=1.0)


def draw(*what) -> float:
    """A number in [0, 1) that only depends on its arguments: the same handler raises in every run of a seed."""
    return int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=4).digest(), "big") / 2**32


def sink(kind: str, **facts) -> None:
    line = json.dumps({"kind": kind, **facts}) + "\n"
    file = os.open(os.environ["ACCEPTANCE_SINK"], os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    try:
        os.write(file, line.encode())  # one write under O_APPEND: lines of several processes never mix
    finally:
        os.close(file)


def do(ctx, name: str) -> str:
    key = ctx.effect_key(name).hex()
    sink("do", key=key, task=ctx.task_id, attempt=ctx.attempt_id)
    return key


@app.task
async def sure(ctx, seconds: float = 0) -> str:
    """Never raises."""
    await asyncio.sleep(seconds)
    return ctx.region


@app.task
def sure_in_thread(ctx, seconds: float = 0) -> str:
    time.sleep(seconds)
    return ctx.region


@app.task(retry=QUICK)
async def shaky(ctx, number: int, chance: float) -> str:
    """Raises now and then, and on some inputs whatever happens."""
    await asyncio.sleep(0.01)
    if draw(number) < chance / 4:
        raise PermanentError("this one never works")
    if draw(number, ctx.attempt) < chance:
        raise ValueError("bad luck")
    return ctx.region


@app.task(retry=QUICK, compensate="release")
async def book(ctx, seconds: float = 0) -> str:
    """Two effects, and never raises."""
    await ctx.effect("hold", do, ctx, "hold")
    await asyncio.sleep(seconds)
    await ctx.effect("sign", do, ctx, "sign")
    return ctx.region


@app.task(retry=QUICK, compensate="release")
async def gamble(ctx, number: int, chance: float, seconds: float = 0) -> str:
    """Two effects, and raises between them now and then."""
    await ctx.effect("hold", do, ctx, "hold")
    await asyncio.sleep(seconds)
    if draw(number, ctx.attempt) < chance:
        raise ValueError("bad luck")
    await ctx.effect("sign", do, ctx, "sign")
    return ctx.region


@app.task(retry=Retry(base=0.1, cap=1.0))
async def release(ctx, lost) -> None:
    for name, key in lost.effects.items():
        await ctx.effect(f"undo {name}", sink_undo, key, lost.task_id)


def sink_undo(key: str, task: str) -> None:
    sink("undo", key=key, task=task)
