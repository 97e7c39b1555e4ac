"""The app of the check of limits: its handlers write down when they start and stop, on the clock that all processes share.

The ledger, $ACCEPTANCE_SINK, has one JSON object a line: what, attempt, region, pid, and the monotonic time in seconds.
"""

import asyncio
import json
import os
import time

from crdtsync import App, Limit

app = App("limited", limits=[Limit(queue="billing", concurrency=10, scope="global")])


def note(what: str, ctx) -> None:
    facts = {"what": what, "attempt": ctx.attempt_id, "region": ctx.region, "pid": os.getpid(), "at": time.monotonic()}
    file = os.open(os.environ["ACCEPTANCE_SINK"], os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    try:
        os.write(file, (json.dumps(facts) + "\n").encode())  # one write under O_APPEND: lines never mix
    finally:
        os.close(file)


@app.task(queue="billing", unserved_after=3600)
async def busy(ctx, seconds: float) -> str:
    note("start", ctx)
    try:
        await asyncio.sleep(seconds)
    finally:
        note("stop", ctx)
    return ctx.region
