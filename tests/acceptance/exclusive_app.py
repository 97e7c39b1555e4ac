"""The app of the acceptance checks on what must not happen twice.

Its world is one SQLite file that all workers share, $ACCEPTANCE_WORLD: a sink that refuses old fencing tokens, a sink that
remembers effect keys, and a diary of who ran when. Times are CLOCK_MONOTONIC, which all processes of a machine share.
"""

import asyncio
import contextlib
import os
import sqlite3
import time

from crdtsync import App, Retry
from crdtsync.errors import FencedError
from regions.fencing import sql

app = App("exclusive")
PATIENT = Retry(attempts=50, base=0.1, cap=1.0)
BUSY_S = 60.0  # a process may be stopped for seconds while it holds the file

TABLES = (
    sql.create_gates(),
    # Every call that arrived, in order, and whether the sink that checks fences accepted it.
    """CREATE TABLE IF NOT EXISTS arrived (place INTEGER PRIMARY KEY, scope TEXT, token INTEGER, task TEXT, attempt TEXT,
       region TEXT, accepted INTEGER)""",
    # The sink that deduplicates.
    "CREATE TABLE IF NOT EXISTS taken (key TEXT PRIMARY KEY, task TEXT, repeats INTEGER NOT NULL DEFAULT 0)",
    # When a handler acted: it began, and ended, which those that are killed never do.
    """CREATE TABLE IF NOT EXISTS ran (id INTEGER PRIMARY KEY, scope TEXT, token INTEGER, task TEXT, attempt TEXT, region TEXT,
       pid INTEGER, began REAL, ended REAL)""",
)
BEGAN = """INSERT INTO ran (scope, token, task, attempt, region, pid, began, ended) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"""


def world(path=None):
    connection = sqlite3.connect(path or os.environ["ACCEPTANCE_WORLD"], timeout=BUSY_S, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")  # it outlives processes, not machines
    return connection


def create(path):
    connection = world(path)
    connection.execute("PRAGMA journal_mode = WAL")
    for table in TABLES:
        connection.execute(table)
    connection.close()


def land(who, key: str) -> None:
    """What the world does with one call."""
    scope, token, task, attempt, region, _ = who
    connection = world()
    try:
        connection.execute("BEGIN IMMEDIATE")
        fenced = None
        try:
            sql.apply(connection.cursor(), sql.gate(scope, token))
        except FencedError as error:
            fenced = error
        row = (scope, token, task, attempt, region, fenced is None)
        connection.execute(
            "INSERT INTO arrived (scope, token, task, attempt, region, accepted) VALUES (?, ?, ?, ?, ?, ?)", row
        )
        connection.execute(
            "INSERT INTO taken (key, task) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET repeats = repeats + 1",
            (key, task),
        )
        connection.execute("COMMIT")
        if fenced is not None:
            raise fenced
    finally:
        connection.close()


class Run:
    """Keeps the diary of one handler: the times in which it acts. While it waits for its node it does not."""

    def __init__(self, ctx, scope: str) -> None:
        self.ctx = ctx
        self.who = (scope, ctx.fence, ctx.task_id, ctx.attempt_id, ctx.region, os.getpid())

    async def act(self, seconds: float) -> None:
        """Act for so long, or until asked to stop."""
        connection = world()
        try:
            row = connection.execute(BEGAN, (*self.who, time.monotonic(), None)).lastrowid
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await self.ctx.cancelled.wait()
            finally:
                connection.execute("UPDATE ran SET ended = ? WHERE id = ?", (time.monotonic(), row))
        finally:
            connection.close()
        if self.ctx.cancelled:
            raise RuntimeError(f"asked to stop: {self.ctx.cancelled.reason}")


@app.task(partition="quorum", retry=PATIENT)
async def strike(ctx, scope: str, before: float, on_the_way: float, after: float) -> str:
    """One effect that must not happen twice, and may arrive late."""
    run = Run(ctx, scope)

    async def call() -> None:
        await asyncio.sleep(on_the_way)
        await asyncio.to_thread(land, run.who, ctx.effect_key("strike").hex())

    await run.act(before)
    await ctx.effect("strike", call)
    await run.act(after)
    return ctx.region
