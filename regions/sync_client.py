"""`SyncClient`: a `Client` for programs without an event loop. The same calls, and each blocks.

with SyncClient("ws://127.0.0.1:7700") as client:
    print(client.submit("charge", "A-1", cents=1999).result(timeout=30))
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from crdtsync.app import Handler
from crdtsync.commands import TaskSpec
from crdtsync.errors import CrdtSyncError, UnreachableError
from regions.client import Client, Handle
from regions.connection import Command
from regions.leases import TTL_S, Lease
from regions.submission import DEFAULT_OPTIONS, Options, TaskRef

T = TypeVar("T")


class SyncClient:
    """Takes what `Client` takes, and runs one on a loop in a thread of its own. Usable from several threads.

    Where `Client` has more than stands here, `do` calls it: `client.do(lambda c: c.history(id))`.
    """

    def __init__(self, url: str | None = None, **options: Any) -> None:
        self._client = Client(url, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="crdtsync client", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._wait(self._client.connect())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._wait(self._client.close())
        finally:
            self._end()

    def do(self, question: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
        """Call something of the `Client` and wait for it. Errors as there."""
        return self._wait(question(self._client))

    def request(self, command: Command) -> Any:
        return self.do(lambda client: client.request(command))

    def submit(
        self, task: str | Handler, /, *args: Any, options: Options = DEFAULT_OPTIONS, **kwargs: Any
    ) -> SyncHandle:
        handle = self.do(lambda client: client.submit(task, *args, options=options, **kwargs))
        return SyncHandle(self, handle)

    def submit_many(self, specs: Iterable[TaskSpec]) -> list[SyncHandle | CrdtSyncError]:
        answers = self.do(lambda client: client.submit_many(specs))
        return [SyncHandle(self, answer) if isinstance(answer, Handle) else answer for answer in answers]

    def handle(self, task: TaskRef) -> SyncHandle:
        return SyncHandle(self, self._client.handle(task))

    @contextlib.contextmanager
    def leader(self, name: str, *, ttl: float = TTL_S, wait: float | None = None) -> Iterator[Lease]:
        """As `Client.leader`: `with client.leader("billing") as lease:`. Renewed in the client's own thread."""

        async def made() -> Lease:
            lease = Lease(self._client, name, ttl=ttl, wait=wait)
            await lease.acquire()
            return lease

        lease = self._wait(made())
        try:
            yield lease
        finally:
            self._wait(lease.release())

    lock = leader

    def watch(self, task: TaskRef | None = None, *, queue: str | None = None) -> Iterator[dict[str, Any]]:
        """As `Client.watch`. Close the iterator, or leave it to the end of the client."""
        changes = self._client.watch(task, queue=queue)
        try:
            while True:
                try:
                    yield self._wait(_next(changes))
                except StopAsyncIteration:
                    return
        finally:
            if self._loop.is_running():
                self._wait(_closed(changes))

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if not self._loop.is_running():
            coroutine.close()
            raise UnreachableError("this client is not open: use it in a `with` block")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C in the caller's thread
            raise

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class SyncHandle:
    """One task, as `Handle`; each call blocks."""

    __slots__ = ("_client", "created", "id")

    def __init__(self, client: SyncClient, handle: Handle) -> None:
        self._client = client
        self.id = handle.id
        self.created = handle.created

    def __repr__(self) -> str:
        return f"SyncHandle({self.id!r})"

    def result(self, *, timeout: float | None = None, settled: bool = False) -> Any:
        return self._client.do(lambda client: client.result(self.id, timeout=timeout, settled=settled))

    def wait(self, *, timeout: float | None = None, settled: bool = False) -> dict[str, Any]:
        return self._client.do(lambda client: client.wait(self.id, timeout=timeout, settled=settled))

    def status(self) -> dict[str, Any]:
        return self._client.do(lambda client: client.status(self.id))

    def explain(self) -> dict[str, Any]:
        return self._client.do(lambda client: client.explain(self.id))

    def cancel(self, reason: str = "") -> dict[str, Any]:
        return self._client.do(lambda client: client.cancel(self.id, reason))

    def requeue(self) -> dict[str, Any]:
        return self._client.do(lambda client: client.requeue(self.id))


async def _next(changes: Any) -> dict[str, Any]:
    record: dict[str, Any] = await anext(changes)
    return record


async def _closed(changes: Any) -> None:
    await changes.aclose()
