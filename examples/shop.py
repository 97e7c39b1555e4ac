"""A shop in several regions: charge the customer, ship the parcel, say so.

    crdtsync dev --app examples/shop.py:app
    crdtsync task submit charge --arg order=A-1 --arg cents=1999 --wait

When a region is cut off, a charge that it owns may run there and, after a while, on the other side too. The
customer is to pay once: the log decides which charge counts, and `refund` undoes the other.

The payment gateway below only pretends. It keeps its ledger in one file, one JSON object a line, so that all
workers on this machine share it and anybody can read it: $SHOP_LEDGER, or shop-ledger.jsonl among the
temporary files.
"""

import asyncio
import fcntl
import json
import os
import secrets
import tempfile
from pathlib import Path

from crdtsync import App, Retry

app = App("shop")


@app.task(queue="payments", retry=Retry(attempts=5), compensate="refund")
async def charge(ctx, order: str, cents: int) -> str:
    # A recorded effect is not repeated. A crash between the effect and its record repeats it, and the gateway then
    # sees the same key again. An attempt on the other side of a cut has a key of its own, and so its own charge.
    return await ctx.effect("charge", gateway.charge, order, cents, ctx.effect_key("charge").hex())


@app.task
async def refund(ctx, charged) -> None:
    await gateway.refund(charged.effects["charge"])


@app.task
async def ship(ctx, order: str) -> str:
    return f"{order} left the warehouse in {ctx.region}"


@app.task
async def notify(ctx, order: str) -> str:
    return f"the customer knows about {order}"


class Gateway:
    """A payment provider that remembers the keys it has seen, as real ones do."""

    def __init__(self, ledger: Path) -> None:
        self.ledger = ledger

    async def charge(self, order: str, cents: int, key: str = "") -> str:
        charge = f"ch-{key or secrets.token_hex(8)}"
        entry = {"kind": "charge", "charge": charge, "order": order, "cents": cents}
        await asyncio.to_thread(self._write, entry)
        return charge

    async def refund(self, charge: str) -> None:
        await asyncio.to_thread(self._write, {"kind": "refund", "charge": charge})

    def _write(self, entry: dict) -> None:
        """Append under a lock. What was asked before is marked as a repeat, and moves no money."""
        with self.ledger.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
            file.seek(0)
            asked = {(line["kind"], line["charge"]) for line in map(json.loads, file)}
            repeat = (entry["kind"], entry["charge"]) in asked
            file.write(json.dumps(entry | {"repeat": repeat}) + "\n")
            file.flush()
            os.fsync(file.fileno())


gateway = Gateway(Path(os.environ.get("SHOP_LEDGER") or Path(tempfile.gettempdir(), "shop-ledger.jsonl")))
