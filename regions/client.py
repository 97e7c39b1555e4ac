"""`Client`: submit tasks to a node, wait for them, ask about them, from any asyncio program.

    async with Client("ws://127.0.0.1:7700") as client:
        handle = await client.submit("charge", "A-1", cents=1999)
        print(await handle.result(timeout=30))

Ids are minted here, so a submission whose answer was lost is sent again and is still one task. What
cannot be sent again without harm raises IndefiniteError; what was never sent, UnreachableError.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from crdtsync import commands as c
from crdtsync.app import Handler
from crdtsync.errors import (
    ConfigError,
    CrdtSyncError,
    TaskFailedError,
    UnreachableError,
    WaitTimeoutError,
    error_from_record,
)
from crdtsync.limit import Limit
from regions.connection import LOST, Command, NodeConnection, Pending, Repeat
from regions.duplex import Dial, dial_websocket
from regions.leases import TTL_S, Lease
from regions.submission import DEFAULT_OPTIONS, Options, TaskRef, new_task_id, task_id_of, task_spec

__all__ = ["Client", "Handle", "Options"]

NODE_VARIABLE: Final = "CRDTSYNC_NODE"
CONNECT_TIMEOUT_S: Final = 5.0
PATIENCE_S: Final = 15.0  # a node restarts in two; a longer absence is worth telling
BULK_TASKS_MAX: Final = 500  # per frame
BULK_BYTES_MAX: Final = 1 << 20  # of payloads per frame
BULK_FRAMES_MAX: Final = 8  # under way at once
STREAM_RECORDS_MAX: Final = 10_000  # unread by the caller; beyond it records are dropped and a gap is told

# Cancelling, cutting, healing and draining name the state that is wanted. A second requeue could answer another death,
# a second edit undo somebody's newer one.
_REPEATS: Final[dict[type[Any], Repeat]] = {
    c.Submit: Repeat.SAME,
    c.Cancel: Repeat.SAME,
    c.CutLinks: Repeat.SAME,
    c.HealLinks: Repeat.SAME,
    c.Drain: Repeat.SAME,
    c.LeaseAcquire: Repeat.SAME,
    c.LeaseRenew: Repeat.SAME,
    c.LeaseRelease: Repeat.SAME,
    c.AddRegion: Repeat.NEVER,
    c.ForgetRegion: Repeat.NEVER,
    c.SetLimit: Repeat.SAME,
    c.RemoveLimit: Repeat.NEVER,
    c.Requeue: Repeat.NEVER,
    c.Edit: Repeat.NEVER,
    c.EditDocument: Repeat.NEVER,
}
_GAP: Final = {"id": None, "state": None, "name": None, "settled": None, "gap": True}


class Client:
    """A connection to one node, kept up across its restarts.

    Args:
        url: `ws://HOST:PORT` of the node; the environment's CRDTSYNC_NODE unless given.
        connect_timeout: Seconds until the first connection is given up.
        patience: Seconds for which a request outlives the node's absence later on.
        dial: How to open a transport instead of a websocket to `url`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        connect_timeout: float = CONNECT_TIMEOUT_S,
        patience: float = PATIENCE_S,
        dial: Dial | None = None,
    ) -> None:
        where = url or os.environ.get(NODE_VARIABLE)
        if where is None and dial is None:
            raise ConfigError(f"which node? Give Client(url), or set {NODE_VARIABLE}=ws://HOST:PORT")
        self.url = where or "embedded node"
        self._connect_timeout = connect_timeout
        self._connection = NodeConnection(dial or dial_websocket(self.url), "client", self.url, patience_s=patience)
        self._begun = False

    # Life ------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        """Open the connection. `async with` does it.

        Raises:
            UnreachableError: If no node answers in time.
        """
        if self._begun:
            raise ConfigError("a Client is connected once; make another one")
        self._begun = True
        self._connection.start()
        try:
            await self._connection.wait_open(self._connect_timeout)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Hang up. What still waits for an answer raises UnreachableError or IndefiniteError."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def region(self) -> str:
        """The node's region, once connected."""
        opened = self._connection.opened
        if opened is None:
            raise UnreachableError(f"not connected to {self.url} yet")
        return opened.region

    @property
    def writer(self) -> str:
        """The node's present incarnation, once connected."""
        opened = self._connection.opened
        if opened is None:
            raise UnreachableError(f"not connected to {self.url} yet")
        return opened.writer

    # Any command -----------------------------------------------------------------------------------

    async def request(self, command: Command) -> Any:
        """Send one command and return its answer, plain values as `commands` describes them.

        Raises:
            UnreachableError: The node stayed away; nothing was done.
            IndefiniteError: The answer was lost; it may have been done.
            CrdtSyncError: As the node answered.
        """
        waits = isinstance(command, c.Await | c.LeaseAcquire)
        repeat = _REPEATS.get(type(command), Repeat.READ)
        if isinstance(command, c.Submit):
            command = _with_ids(command)
        if isinstance(command, c.ListTasks | c.ListConflicts):
            return [record async for page in self.pages(command) for record in page]
        return await self._connection.request(command, repeat=repeat, waits=waits)

    call = request

    async def pages(self, command: c.ListTasks | c.ListConflicts) -> AsyncIterator[_Records]:
        """A listing page by page, for those too long to be held as one list; `request` joins them."""
        while True:
            page = await self._connection.request(command, repeat=Repeat.READ, waits=False)
            records: _Records = page["records"]
            left = 0
            if command.limit:
                records = records[: command.limit]
                left = command.limit - len(records)
            yield records
            if page["next"] is None or (command.limit and not left):
                return
            created_ms, task = page["next"]
            command = msgspec.structs.replace(command, limit=left, after=(created_ms, task))

    async def stream(self, command: c.Watch) -> AsyncIterator[dict[str, Any]]:
        """The answers to a command that has many, until the caller stops asking.

        When the connection is lost, and where the caller reads too slowly, one record with `"gap": True` says that
        records may be missing: look at the present state again.
        """
        records: asyncio.Queue[tuple[Any, CrdtSyncError | None, bool]] = asyncio.Queue()
        gap = False

        def settle(value: Any, error: CrdtSyncError | None, final: bool) -> None:
            nonlocal gap
            if value is LOST:
                value = dict(_GAP)
            if error is None and records.qsize() >= STREAM_RECORDS_MAX:
                gap = True
                return
            if gap:
                gap = False
                records.put_nowait((dict(_GAP), None, False))
            records.put_nowait((value, error, final))

        pending: Pending = self._connection.post(command, settle, repeat=Repeat.READ, waits=True)
        try:
            while True:
                value, error, final = await records.get()
                if error is not None:
                    raise error
                if value is not None:
                    yield value
                if final:
                    return
        finally:
            self._connection.forget(pending)

    # Submitting ------------------------------------------------------------------------------------

    async def submit(
        self, task: str | Handler, /, *args: Any, options: Options = DEFAULT_OPTIONS, **kwargs: Any
    ) -> Handle:
        """Submit one task, given by name or by its decorated function. On return it is durable here.

        Args:
            task: What to run.
            args: Its arguments after the context.
            options: Everything that is not an argument: key, region, labels, ...
            kwargs: Its keyword arguments.

        Raises:
            UndeclaredTaskError: No app in the cluster ever declared it.
            DuplicateTaskError: Its key or id is taken by a submission with other arguments.
            CrdtSyncError: As `request`.
        """
        [answer] = await self._submit([task_spec(task, args, kwargs, options)])
        if isinstance(answer, CrdtSyncError):
            raise answer
        return answer

    async def submit_many(self, specs: Iterable[c.TaskSpec]) -> list[Handle | CrdtSyncError]:
        """Submit many tasks (see `task_spec`), many per frame and several frames at once.

        Returns a handle or what was wrong for each, in order. A spec may name earlier ones in `after`. What raises is
        the connection's trouble; with ids of one's own, sending all of them again is harmless.
        """
        answers: list[Handle | CrdtSyncError] = []
        under_way: list[asyncio.Task[list[Handle | CrdtSyncError]]] = []
        sent: set[bytes] = set()  # ids whose acceptance is not known yet
        try:
            for batch in _batches(specs):
                # A node takes a task only when it holds its parents, and may look at two frames in either order.
                needs = any(parent in sent for spec in batch for parent in (*spec.after, *spec.after_settled))
                while under_way and (needs or len(under_way) >= BULK_FRAMES_MAX):
                    answers += await under_way.pop(0)
                if not under_way:
                    sent.clear()
                sent.update(spec.id for spec in batch if spec.id is not None)
                under_way.append(asyncio.ensure_future(self._submit(batch)))
            while under_way:
                answers += await under_way.pop(0)
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
        return answers

    async def _submit(self, batch: list[c.TaskSpec]) -> list[Handle | CrdtSyncError]:
        records = await self.request(c.Submit(specs=tuple(batch)))
        return [
            error_from_record(record["error"])
            if "error" in record
            else Handle(self, record["id"], created=bool(record["created"]))
            for record in records
        ]

    def handle(self, task: TaskRef) -> Handle:
        """A handle to a task by its id. Asks nobody whether there is one."""
        return Handle(self, task_id_of(task).hex(), created=False)

    # One task --------------------------------------------------------------------------------------

    async def wait(self, task: TaskRef, *, timeout: float | None = None, settled: bool = False) -> dict[str, Any]:  # noqa: ASYNC109
        """The task's record once it has ended, however it ended; with `settled`, once nothing can change that.

        Raises:
            WaitTimeoutError: It did not within `timeout` seconds. It goes on.
            UnknownTaskError: The node does not know it.
        """
        command = c.Await(task=task_id_of(task), settled=settled)
        try:
            async with asyncio.timeout(timeout):
                record: dict[str, Any] = await self.request(command)
        except TimeoutError:
            raise WaitTimeoutError(
                f"task {command.task.hex()} has not {'settled' if settled else 'ended'} within {timeout:g} s; it goes on",
                task=command.task.hex(),
            ) from None
        return record

    async def result(self, task: TaskRef, *, timeout: float | None = None, settled: bool = False) -> Any:  # noqa: ASYNC109
        """What the task's handler returned, in the attempt that won.

        Raises:
            TaskFailedError: It ended without success; `facts["task"]` is its record.
            CrdtSyncError: As `wait`.
        """
        record = await self.wait(task, timeout=timeout, settled=settled)
        if record["state"] == "succeeded":
            return _value(record["result"])
        raise TaskFailedError(_failure(record), task=record)

    async def status(self, task: TaskRef) -> dict[str, Any]:
        """The task's record, as `crdtsync task show -o json` prints it."""
        record: dict[str, Any] = await self.request(c.Describe(task=task_id_of(task)))
        return record

    async def history(self, task: TaskRef) -> list[dict[str, Any]]:
        """What happened to the task, in the order of the stamps."""
        records: list[dict[str, Any]] = await self.request(c.History(task=task_id_of(task)))
        return records

    async def explain(self, task: TaskRef) -> dict[str, Any]:
        """Why the task is where it is: `text` is the same on every replica, `local` what this one knows."""
        record: dict[str, Any] = await self.request(c.Explain(task=task_id_of(task)))
        return record

    async def cancel(self, task: TaskRef, reason: str = "") -> dict[str, Any]:
        """Ask for the task to be cancelled; `answer` says what became of it."""
        record: dict[str, Any] = await self.request(c.Cancel(task=task_id_of(task), reason=reason))
        return record

    async def requeue(self, task: TaskRef) -> dict[str, Any]:
        """Grant a dead task its attempts again. Raises IllegalTransitionError unless it is dead."""
        record: dict[str, Any] = await self.request(c.Requeue(task=task_id_of(task)))
        return record

    async def edit(
        self, task: TaskRef, *, priority: int | None = None, labels: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Change the task's priority, or some of its labels; an empty text removes a label."""
        command = c.Edit(task=task_id_of(task), priority=priority, labels=dict(labels or {}))
        record: dict[str, Any] = await self.request(command)
        return record

    def watch(self, task: TaskRef | None = None, *, queue: str | None = None) -> AsyncIterator[dict[str, Any]]:
        """Every change of one task, of a queue's, or of all: `{"id", "state", "name", "settled", "at_ms"}`.

        `aclose()` the iterator, or leave it by `break` inside `contextlib.aclosing`. Gaps: see `stream`.
        """
        return self.stream(c.Watch(task=None if task is None else task_id_of(task), queue=queue))

    # Leases ----------------------------------------------------------------------------------------

    def leader(self, name: str, *, ttl: float = TTL_S, wait: float | None = None) -> Lease:
        """Be the one that leads `name` in the whole cluster: `async with client.leader("billing") as lease:`.

        Args:
            ttl: Seconds of silence of this program after which another one may lead.
            wait: Seconds to wait for it; None: until it is ours.
        """
        return Lease(self, name, ttl=ttl, wait=wait)

    def lock(self, name: str, *, ttl: float = TTL_S, wait: float | None = None) -> Lease:
        """The same lease under the name that fits: one holder at a time, in the whole cluster. See `leader`."""
        return Lease(self, name, ttl=ttl, wait=wait)

    async def leases(self, scope: str = "") -> _Records:
        """Who holds what with which token, as this node knows: what it wants, holds, or voted for."""
        records: _Records = await self.request(c.LeaseList(scope=scope))
        return records

    # The rest --------------------------------------------------------------------------------------

    async def list(
        self,
        *,
        state: str | None = None,
        queue: str | None = None,
        label: tuple[str, str] | None = None,
        limit: int = 100,
    ) -> list[dict[str, Any]]:
        """Records of tasks that match, newest first. `limit` 0 means all."""
        records: list[dict[str, Any]] = await self.request(
            c.ListTasks(state=state, queue=queue, label=label, limit=limit)
        )
        return records

    async def conflicts(self, *, limit: int = 0) -> _Records:
        """The conflicts that this node knows of, with their resolution and compensations."""
        records: _Records = await self.request(c.ListConflicts(limit=limit))
        return records

    async def regions(self) -> _Records:
        """Every region as this node sees it: status, digest, heads, distance."""
        records: _Records = await self.request(c.ListRegions())
        return records

    async def links(self) -> _Records:
        """The links of this node: up, down or cut."""
        records: _Records = await self.request(c.ListLinks())
        return records

    async def cut(self, *regions: str) -> Any:
        """For game days: drop and refuse links to these regions, or to all, until they are healed."""
        return await self.request(c.CutLinks(regions=regions))

    async def heal(self, *regions: str) -> Any:
        """End `cut`, for these regions or for all."""
        return await self.request(c.HealLinks(regions=regions))

    async def add_region(self, region: str, url: str = "") -> dict[str, Any]:
        """Have a region join the cluster; its peers dial it at `url`, if one is given. Raises MembershipError."""
        record: dict[str, Any] = await self.request(c.AddRegion(region, url))
        return record

    async def forget_region(self, *regions: str, stopped: bool = False, force: bool = False) -> dict[str, Any]:
        """Have a region leave for good; see `crdtsync region forget`. Raises MembershipError."""
        record: dict[str, Any] = await self.request(c.ForgetRegion(regions, stopped, force))
        return record

    async def drain(self, *, off: bool = False) -> Any:
        """Start nothing more in this region and offer what waits to the others; `off` ends it."""
        return await self.request(c.Drain(off=off))

    async def clock(self) -> dict[str, Any]:
        """This node's clocks, what a majority of the regions says of them, offset and drift of each, what is held back."""
        record: dict[str, Any] = await self.request(c.ShowClock())
        return record

    async def limits(self, target: str | None = None) -> _Records:
        """The limits in force, or those on one target: rights, what runs and what waits, by region."""
        records: _Records = await self.request(c.ListLimits(target=target))
        return records

    async def limit_set(self, limit: Limit) -> _Records:
        """Set a limit for all regions, in place of what apps declare. Its records as this node has them."""
        records: _Records = await self.request(c.SetLimit(limit.declaration))
        return records

    async def limit_remove(self, target: str) -> dict[str, Any]:
        """Take away the limits on a target, as `Limit.target` names it: "queue:billing"."""
        record: dict[str, Any] = await self.request(c.RemoveLimit(target))
        return record

    async def node_status(self) -> dict[str, Any]:
        """The node's own record: writer, members, digest, queues, workers, buffers, alarms."""
        record: dict[str, Any] = await self.request(c.Status())
        return record


_Records = list[dict[str, Any]]


class Handle:
    """One task, as its submitter holds it. Its methods are those of `Client` for this task."""

    __slots__ = ("_client", "created", "id")

    def __init__(self, client: Client, id: str, *, created: bool) -> None:
        self._client = client
        self.id = id
        #: False if the node held a task with this id or key already. After a lost connection that may be this very
        #: submission, sent twice.
        self.created = created

    def __repr__(self) -> str:
        return f"Handle({self.id!r})"

    async def result(self, *, timeout: float | None = None, settled: bool = False) -> Any:  # noqa: ASYNC109
        return await self._client.result(self.id, timeout=timeout, settled=settled)

    async def wait(self, *, timeout: float | None = None, settled: bool = False) -> dict[str, Any]:  # noqa: ASYNC109
        return await self._client.wait(self.id, timeout=timeout, settled=settled)

    async def status(self) -> dict[str, Any]:
        return await self._client.status(self.id)

    async def history(self) -> list[dict[str, Any]]:
        return await self._client.history(self.id)

    async def explain(self) -> dict[str, Any]:
        return await self._client.explain(self.id)

    async def cancel(self, reason: str = "") -> dict[str, Any]:
        return await self._client.cancel(self.id, reason)

    async def requeue(self) -> dict[str, Any]:
        return await self._client.requeue(self.id)

    async def edit(self, *, priority: int | None = None, labels: Mapping[str, str] | None = None) -> dict[str, Any]:
        return await self._client.edit(self.id, priority=priority, labels=labels)

    def watch(self) -> AsyncIterator[dict[str, Any]]:
        return self._client.watch(self.id)


def _with_ids(command: c.Submit) -> c.Submit:
    """Give each task an id, so that sending it twice is one task. A key is an id already."""
    if all(spec.id is not None or spec.key for spec in command.specs):
        return command
    return c.Submit(
        tuple(
            spec if spec.id is not None or spec.key else msgspec.structs.replace(spec, id=new_task_id())
            for spec in command.specs
        )
    )


def _batches(specs: Iterable[c.TaskSpec]) -> Iterable[list[c.TaskSpec]]:
    batch: list[c.TaskSpec] = []
    size = 0
    for spec in specs:
        if batch and (len(batch) >= BULK_TASKS_MAX or size + len(spec.payload) > BULK_BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append(spec)
        size += len(spec.payload)
    if batch:
        yield batch


def _value(shown: Any) -> Any:
    """A result as the handler returned it: records show bytes as `{"base64": text}`."""
    if isinstance(shown, dict):
        if len(shown) == 1 and isinstance(encoded := shown.get("base64"), str):
            with contextlib.suppress(ValueError):
                return base64.b64decode(encoded, validate=True)
        return {key: _value(value) for key, value in shown.items()}
    if isinstance(shown, list):
        return [_value(value) for value in shown]
    return shown


def _failure(record: Mapping[str, Any]) -> str:
    errors = [attempt.get("error") for attempt in record.get("attempts") or ()]
    last = next((error for error in reversed(errors) if error), None)
    told = f"; last error: {last}" if last else ""
    return f"task {record.get('id')} ({record.get('name')}) ended {record.get('state')}{told}"
