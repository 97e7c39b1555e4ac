"""Locks and leadership for programs: `Client.lock`, `Client.leader`.

    async with client.leader("billing") as lease:
        while lease.valid():
            await bill_next(fence=lease.token)

The node holds the lease among the regions, and the client a session of it: a task renews it in the background. What the
client knows is a time, on its own CLOCK_BOOTTIME, until which nobody else holds the lease: the node says for how long,
and the client counts from before it asked. So a program that was paused, or whose machine slept, finds out by asking
`valid()` that its time has passed, however late it wakes up. Between that question and an effect time goes by all the
same: hand `token` to the place where effects land, and let it refuse smaller ones (guides, Fence your effects).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from crdtsync import commands as c
from crdtsync.errors import CrdtSyncError, LeaseLostError

if TYPE_CHECKING:
    from regions.client import Client

TTL_S: Final = 10.0
RENEWALS: Final = 3  # in the time that the last answer named: two may get lost
RETRY_S: Final = 0.1
OWNER_BYTES: Final = 8


def now_ms() -> int:
    """This machine's monotonic time, which counts while it sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class Lease:
    """A lease that a program holds, or wants: `async with`, once.

    Attributes:
        name: What is held: one holder in the whole cluster.
        token: Of this tenure, larger than all before it; 0 before it is held.
        region: Whose node holds it for us.
        lost: Set once it is no longer held, for whatever reason.
    """

    def __init__(self, client: Client, name: str, *, ttl: float, wait: float | None) -> None:
        self.name = name
        self.token = 0
        self.region = ""
        self.lost = asyncio.Event()
        self._client = client
        self._ttl_ms = round(ttl * 1_000)
        self._wait_ms = None if wait is None else round(wait * 1_000)
        self._owner = secrets.token_hex(OWNER_BYTES)
        self._until_ms = 0
        self._keeping: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"Lease({self.name!r}, token={self.token}, valid={self.valid()})"

    def valid(self, for_s: float = 0.0) -> bool:
        """Whether nobody else can hold it now, and for `for_s` seconds more. Asks no one: call it before each step."""
        return not self.lost.is_set() and now_ms() + for_s * 1_000 < self._until_ms

    @property
    def left_s(self) -> float:
        """For how many seconds it is held, unless it is renewed."""
        return max(0.0, (self._until_ms - now_ms()) / 1_000) if not self.lost.is_set() else 0.0

    def check(self, for_s: float = 0.0) -> None:
        """Raises LeaseLostError unless `valid(for_s)`."""
        if not self.valid(for_s):
            raise LeaseLostError(
                f"{self.name!r} is no longer held under token {self.token}: stop what needs it",
                name=self.name,
                token=self.token,
            )

    async def acquire(self) -> None:
        """Wait until it is held. `async with` does it.

        Raises:
            LeaseHeldError, QuorumUnavailableError: Not within `wait` seconds.
            CrdtSyncError: As `Client.request`.
        """
        asked_ms = now_ms()
        command = c.LeaseAcquire(name=self.name, owner=self._owner, ttl_ms=self._ttl_ms, wait_ms=self._wait_ms)
        try:
            # The answer may have waited for long at the node: its time is counted from a question asked after it.
            granted = await self._client.request(command)
            self.token, self.region = granted["token"], granted["region"]
            if now_ms() - asked_ms >= granted["valid_ms"] // RENEWALS:
                asked_ms = now_ms()
                granted = await self._client.request(self._renewal())
        except BaseException:
            self.lost.set()
            with contextlib.suppress(CrdtSyncError, asyncio.CancelledError):
                await asyncio.shield(self._give_back(self._ttl_ms / 1_000))
            raise
        self._until_ms = asked_ms + granted["valid_ms"]
        self._keeping = asyncio.create_task(self._keep(), name=f"lease {self.name}")

    async def release(self) -> None:
        """Give it back. What needs it must have stopped. `async with` does it at the end."""
        left_s = self.left_s
        self.lost.set()
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
            self._keeping = None
            with contextlib.suppress(CrdtSyncError):  # it ends by itself
                await self._give_back(left_s)

    async def _give_back(self, within_s: float) -> None:
        command = c.LeaseRelease(name=self.name, owner=self._owner)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._client.request(command)

    def _renewal(self) -> c.LeaseRenew:
        return c.LeaseRenew(name=self.name, owner=self._owner, token=self.token)

    async def _keep(self) -> None:
        """Renew it while it lasts, and tell once it does not."""
        try:
            while self.valid():
                await asyncio.sleep(self.left_s / RENEWALS)
                asked_ms = now_ms()
                try:
                    async with asyncio.timeout(self.left_s):
                        answer: dict[str, Any] = await self._client.request(self._renewal())
                except LeaseLostError:
                    return
                except (CrdtSyncError, TimeoutError):
                    await asyncio.sleep(min(RETRY_S, self.left_s))  # the node is away: its lease may outlive that
                else:
                    self._until_ms = max(self._until_ms, asked_ms + answer["valid_ms"])
        finally:
            self.lost.set()

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.release()
