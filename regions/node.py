"""`Node`: one region's process. A driver around the replica, a port for peers, one for clients and workers.

Started, it serves until `stop`: then it claims nothing more, lets handlers finish for a while,
offers what waits to other regions, writes and sends what is left, and says goodbye (close 1001).
A second `stop` does not wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import time
from collections.abc import Callable
from typing import Any, Final

from crdtsync.commands import AddRegion, Command, Drain, ListTasks, LogHeads, ReadLog, Status, VerifyLog
from crdtsync.effects import Assignment
from crdtsync.errors import (
    ConfigError,
    CrdtSyncError,
    DrainingError,
    InvalidRequestError,
    OverloadedError,
    error_from_record,
)
from crdtsync.identifiers import AttemptId, RegionId
from crdtsync.protocol.messages import PROTOCOL_VERSION, Opened
from regions.config import Config, peer_url_problem
from regions.driver import Driver
from regions.inspection import Inspection
from regions.memory import keep_trimmed
from regions.observability.logs import configure_logs, get_logger
from regions.recovery import settings_of
from regions.storage.sqlite import SqliteStore
from regions.storage.store import Store
from regions.transport.peers import PeerLinks
from regions.transport.server import GuestServer

DRAIN_LOOK_S: Final = 0.05  # how often a drain looks whether handlers have ended
FLUSH_TIMEOUT_S: Final = 5.0  # for the last batch and the last frames to peers
OFFER_GRACE_S: Final = 0.5  # after a drain's offers: others may accept before we say goodbye
ASK_TIMEOUT_S: Final = 10.0  # for the node's questions to its own replica
EXIT_FORCED: Final = 1

Announce = Callable[[str, str], None]  # url for clients and workers, url for peers


class Node:
    """One region's node.

    Args:
        config: Who it is and where it listens.
        store: Its disk; SQLite in `config.data_dir` by default.
        restored: The disk is a copy: nothing on it is trusted before the peers were asked.
        vouched: The disk is certainly as it was left: rights of global limits on it may be used before every other
            region has answered.
    """

    def __init__(
        self, config: Config, store: Store | None = None, *, restored: bool = False, vouched: bool = False
    ) -> None:
        self.config = config
        self.url = ""
        self.peer_url = ""
        self._log = get_logger(region=config.region)
        store = SqliteStore(config.data_dir) if store is None else store
        self._driver = Driver(settings_of(config, restored=restored, vouched=vouched), store, self)
        self._peers = PeerLinks(config, self)
        self._guests = GuestServer(config, self)
        self._peer_urls: dict[RegionId, str] = {}
        self._inspection = Inspection(store, self._state, self._flush_rows)
        self._own_tickets = itertools.count(-1, -1)  # below zero: never a guest's
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._inspecting: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._forced = asyncio.Event()

    async def run(self, announce: Announce | None = None) -> bool:
        """Serve until `stop`. Whether it ended in good order, rather than forced.

        Raises:
            ConfigError: A port cannot be bound.
            StorageError: The store cannot be used.
        """
        await self._driver.start()
        try:
            self.url = await _bound(self._guests.start(), self.config.listen.host, self.config.listen.port)
            self.peer_url = await _bound(self._peers.listen(), self.config.peer.host, self.config.peer.port)
        except BaseException:
            await self._guests.close()
            await self._driver.close()
            raise
        writer = self._driver.replica.writer
        self._log.info("node is up", writer=writer, url=self.url, peer_url=self.peer_url)
        if announce is not None:
            announce(self.url, self.peer_url)
        loop = asyncio.create_task(self._driver.run(), name="driver")
        trimming = asyncio.create_task(keep_trimmed(), name="memory")
        self._peers.dial()
        stop = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((loop, stop), return_when=asyncio.FIRST_COMPLETED)
            if not loop.done():
                await self._drain()
        finally:
            stop.cancel()
            trimming.cancel()
            await self._end(loop)
        self._log.info("node is down", writer=writer, forced=self._forced.is_set())
        return not self._forced.is_set()

    def stop(self) -> None:
        """End in good order; called again, end now."""
        if self._stopping.is_set():
            self._forced.set()
        self._stopping.set()

    # Shutting down -------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Start nothing more, offer what waits to others, and give handlers time to end."""
        self._log.info("draining", timeout_s=self.config.drain_timeout_s)
        until = time.monotonic() + self.config.drain_timeout_s
        try:
            drain = await self.ask(Drain())
            offered = bool(drain["waiting"]) and bool(self._peers.linked)
            offers_until = time.monotonic() + OFFER_GRACE_S if offered else 0.0
            while time.monotonic() < until and not self._forced.is_set():
                status = await self.ask(Status())
                if not status["running"] and time.monotonic() >= offers_until:
                    return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(DRAIN_LOOK_S):
                        await self._forced.wait()
        except (CrdtSyncError, TimeoutError) as error:
            self._log.warning("drain cut short", reason=str(error) or "no answer")

    async def _end(self, loop: asyncio.Task[None]) -> None:
        """Flush to disk and peers, say goodbye, leave no task behind."""
        for task in list(self._inspecting):
            task.cancel()
        try:
            self._driver.leave()
            async with asyncio.timeout(0 if self._forced.is_set() else FLUSH_TIMEOUT_S):
                await self._driver.flushed()
                await self._peers.flushed()
        except TimeoutError:
            self._log.warning("closing before everything was sent", seconds=FLUSH_TIMEOUT_S)
        await self._guests.close()
        await self._peers.close()
        self._driver.stop()
        results = await asyncio.gather(loop, return_exceptions=True)
        await self._driver.close()
        if results[0] is not None:
            raise results[0]

    # What peers bring (peers.Hearer) -------------------------------------------------------------

    def peers(self) -> dict[RegionId, str]:
        if not self._driver.ready:
            return self._peer_urls  # it reloads: they are the same after that
        urls = {}
        for region, url in self._driver.replica.peers().items():
            address = self.config.members.get(region, url)
            urls[region] = address if address and not peer_url_problem(address) else ""
        self._peer_urls = urls
        return urls

    def knows(self, peer: RegionId) -> bool:
        return not self._driver.ready or self._driver.replica.knows(peer)

    def allows(self, peer: RegionId) -> bool:
        return self._driver.ready and self._driver.replica.allowed(peer)

    def connected(self, peer: RegionId) -> None:
        self._driver.connected(peer)

    def disconnected(self, peer: RegionId) -> None:
        self._driver.disconnected(peer)

    def receive(self, peer: RegionId, frame: bytes) -> None:
        self._driver.receive(peer, frame)

    # What clients and workers ask (server.Desk) --------------------------------------------------

    def greeting(self) -> Opened:
        if self._stopping.is_set():
            raise DrainingError(f"node {self.config.region} is shutting down: ask another region, or wait")
        return Opened(PROTOCOL_VERSION, self.config.region, self._driver.replica.writer)

    def submit(self, command: Command, ticket: int) -> None:
        if isinstance(command, LogHeads | ReadLog | VerifyLog):
            task = asyncio.create_task(self._inspect(command, ticket))
            self._inspecting.add(task)
            task.add_done_callback(self._inspecting.discard)
        elif isinstance(command, AddRegion) and command.url and (problem := peer_url_problem(command.url)):
            self.reply(ticket, None, InvalidRequestError(f"{command.region[:32]}: {problem}").record(), final=True)
        else:
            self._driver.submit(command, ticket)

    def forget(self, ticket: int) -> None:
        self._driver.forget(ticket)

    async def ask(self, command: Command) -> Any:
        """A question of the node's own. Raises CrdtSyncError, or TimeoutError."""
        ticket = next(self._own_tickets)
        answer = self._asked[ticket] = asyncio.get_running_loop().create_future()
        try:
            self._driver.submit(command, ticket)
            async with asyncio.timeout(ASK_TIMEOUT_S):
                return await answer
        finally:
            del self._asked[ticket]

    async def _inspect(self, command: Command, ticket: int) -> None:
        try:
            self._guests.reply(ticket, await self._inspection.answer(command), None, final=True)
        except CrdtSyncError as error:
            self._guests.reply(ticket, None, error.record(), final=True)

    async def _flush_rows(self) -> None:
        """Bring the rows on disk up to what memory knows: every listing does."""
        await self.ask(ListTasks(limit=1))

    async def _state(self) -> tuple[dict[str, int], str]:
        """Applied heads, and the digest of what they resolve to."""
        status = await self.ask(Status())
        return status["heads"], status["digest"]

    # What the replica wants done (driver.Outlets) ------------------------------------------------

    def send(self, peer: RegionId, frame: bytes) -> None:
        self._peers.send(peer, frame)

    def disconnect(self, peer: RegionId, reason: str) -> None:
        self._peers.disconnect(peer, reason)

    def reply(self, ticket: int, value: Any, error: dict[str, Any] | None, *, final: bool) -> None:
        if ticket > 0:
            self._guests.reply(ticket, value, error, final=final)
            return
        answer = self._asked.get(ticket)
        if answer is None or answer.done():
            return
        if error is None:
            answer.set_result(value)
        else:
            answer.set_exception(error_from_record(error))

    def run_attempts(self, worker: str, assignments: tuple[Assignment, ...]) -> None:
        self._guests.run(worker, assignments)

    def stop_attempt(self, worker: str, attempt: AttemptId, reason: str) -> None:
        self._guests.stop(worker, (attempt.stamp, attempt.writer, attempt.number, attempt.index), reason)

    def reset(self, error: CrdtSyncError) -> None:
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(OverloadedError(str(error)))
        self._guests.reset(error)
        self._peers.reset("the node reloads its state from disk")


async def _bound(starting: Any, host: str, port: int) -> str:
    try:
        url: str = await starting
    except OSError as error:
        raise ConfigError(f"{host}:{port} cannot be bound: {error.strerror or error}") from None
    return url


def run_node(config: Config, announce: Announce | None = None, *, restored: bool = False, vouched: bool = False) -> int:
    """Run a node until SIGTERM or SIGINT; a second one does not wait. Returns the exit code."""
    configure_logs(config.log_level)

    async def run() -> bool:
        node = Node(config, restored=restored, vouched=vouched)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, node.stop)
        return await node.run(announce)

    try:
        config.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"data_dir {config.data_dir}: {error.strerror}") from None
    return 0 if asyncio.run(run()) else EXIT_FORCED
