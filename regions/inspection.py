"""Is the log on this disk what its writers said, whole and unchanged? `log verify`, on a live node or offline.

Checked for every commit: that it can be read, that its writer's numbers are gap-free, that it
carries the hash of the one before, that its stamp does not go back, that what it depends on is
here under the hash that it saw. For every task row: that its facts resolve to its share of the
state digest. For a live node that is quiet meanwhile: that the shares sum up to the digest that it
tells its peers.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from crdtsync.commands import Command, LogHeads, ReadLog, VerifyLog
from crdtsync.coordination.limits import LimitTable
from crdtsync.errors import ConfigError, CorruptLogError, CrdtSyncError
from crdtsync.events import LimitEvent
from crdtsync.history import Facts
from crdtsync.identifiers import Domain, EventId, WriterId
from crdtsync.log.commit import NO_HASH, PREFIX_BYTES, Commit, decode_commit
from crdtsync.log.digest import NOTHING, Digest
from crdtsync.log.reissues import Reissues
from crdtsync.resolve import resolve
from crdtsync.rows import FOLD_BYTES_MAX, limit_facts
from crdtsync.task_view import view_hash
from regions.storage.store import CorruptRowError, Store, WriterMarks

FINDINGS_MAX: Final = 100  # the first hundred say enough; a disk that has more is to be replaced
ROWS_PER_READ: Final = 500
READ_BYTES: Final = 512 << 10  # of commits in one answer to a client

State = Callable[[], Awaitable[tuple[dict[str, int], str]]]  # what the node knows now: its heads and digest


@dataclass(slots=True)
class Report:
    """What was looked at, and what is wrong with it."""

    commits: int = 0
    writers: int = 0
    tasks: int = 0
    digest: str = ""
    compared: bool = False  # whether the digest could be compared with the node's own
    findings: list[str] = field(default_factory=list)

    def found(self, text: str) -> None:
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(text)
        elif len(self.findings) == FINDINGS_MAX:
            self.findings.append(f"... and more: only the first {FINDINGS_MAX} are listed")

    def record(self) -> dict[str, Any]:
        return {
            "ok": not self.findings,
            "commits": self.commits,
            "writers": self.writers,
            "tasks": self.tasks,
            "digest": self.digest,
            "digest_compared": self.compared,
            "findings": self.findings,
        }


@dataclass(slots=True)
class _Chain:
    """What was seen of one writer's commits: enough to check the next, and what depends on them."""

    floor: int
    last: int
    hash: bytes | None  # of the last one; None when it was dropped
    stamp: int = 0
    prefixes: array[int] = field(default_factory=lambda: array("Q"))  # of the hashes, from floor + 1 on

    def prefix(self, number: int) -> int | None:
        place = number - self.floor - 1
        return self.prefixes[place] if 0 <= place < len(self.prefixes) else None


class Inspection:
    """Answers the commands that are about the log itself."""

    def __init__(self, store: Store, state: State, flush: Callable[[], Awaitable[None]]) -> None:
        self._store = store
        self._state = state
        self._flush = flush
        self._verifying = asyncio.Lock()  # one at a time: it reads the whole disk

    async def answer(self, command: Command) -> Any:
        """The answer to `LogHeads`, `ReadLog` or `VerifyLog`. Raises CrdtSyncError."""
        match command:
            case LogHeads():
                recovered = await self._store.recover()
                return [
                    {"domain": domain, "writer": writer, "head": marks.head, "floor": marks.floor}
                    for domain, writers in sorted(recovered.domains.items())
                    for writer, marks in sorted(writers.items())
                ]
            case ReadLog(writer, first, domain):
                return await self._store.read_commits(Domain(domain), WriterId(writer), first, READ_BYTES)
            case VerifyLog():
                async with self._verifying:
                    return (await self._verify()).record()
        raise TypeError(f"{type(command).__name__} is not about the log")

    async def _verify(self) -> Report:
        await self._flush()
        before = await self._state()
        report = await verify(self._store, before[0])
        if before == await self._state():
            report.compared = True
            if before[1] != report.digest:
                report.found(f"state digest: the node says {before[1]}, its rows sum up to {report.digest}")
        return report


async def verify(store: Store, applied: Mapping[str, int] | None = None) -> Report:
    """Read everything that an open store holds and say what is wrong with it.

    Args:
        applied: The heads of what is folded into the state, if that is known; else all that is stored.
    """
    report = Report()
    try:
        recovered = await store.recover()
        for domain, writers in recovered.domains.items():
            report.writers += len(writers)
            reissues = _stored_reissues(domain, recovered.meta, report)
            limits = _stored_limits(domain, recovered.meta, report)
            limits.read_again(reissues.id)
            await _verify_commits(store, domain, writers, (limits, reissues), applied, report)
            digest = Digest()
            for limit in limits:
                digest.replace(NOTHING, limit.share)
            await _verify_rows(store, domain, digest, report)
            report.digest = digest.hex()
    except CorruptRowError as error:
        report.found(str(error))
    for row in store.corrupt_rows():
        report.found(f"damaged on disk: {' '.join(str(part) for part in row if part)}")
    return report


async def _verify_commits(
    store: Store,
    domain: Domain,
    writers: dict[WriterId, WriterMarks],
    state: tuple[LimitTable, Reissues],
    applied: Mapping[str, int] | None,
    report: Report,
) -> None:
    chains = {
        writer: _Chain(mark.floor, mark.floor, None if mark.floor else NO_HASH) for writer, mark in writers.items()
    }
    open_deps: list[tuple[Commit, WriterId, int, int]] = []  # on commits that were stored later
    async for blobs in store.commits_beyond(domain, {writer: mark.floor for writer, mark in writers.items()}):
        for blob in blobs:
            try:
                commit = decode_commit(blob)
            except CrdtSyncError as error:
                report.found(f"a commit of {domain} cannot be read: {error}")
                continue
            report.commits += 1
            _verify_link(commit, domain, chains, report)
            _fold_limits(commit, *state, applied)
            for dep in commit.deps:
                prefix = int.from_bytes(dep.prefix, "big")
                chain = chains.get(dep.writer)
                if chain is None or dep.number > chain.last:
                    open_deps.append((commit._replace(events=(), blob=b""), dep.writer, dep.number, prefix))
                elif chain.prefix(dep.number) not in (None, prefix):
                    report.found(f"{_name(commit)} saw another commit {dep.number} of {dep.writer} than is here")
        await asyncio.sleep(0)
    for commit, writer, number, prefix in open_deps:
        chain = chains.get(writer)
        if chain is None or number > chain.last:
            report.found(f"{_name(commit)} depends on commit {number} of {writer}, which is not here")
        elif chain.prefix(number) not in (None, prefix):
            report.found(f"{_name(commit)} saw another commit {number} of {writer} than is here")
    for writer, mark in writers.items():
        if chains[writer].last != mark.head:
            report.found(f"{writer}: commits end at {chains[writer].last}, the head says {mark.head}")


def _verify_link(commit: Commit, domain: Domain, chains: dict[WriterId, _Chain], report: Report) -> None:
    chain = chains.get(commit.writer)
    if chain is None:  # stored after the heads were read
        chain = chains[commit.writer] = _Chain(commit.number - 1, commit.number - 1, None)
    if commit.domain != domain:
        report.found(f"{_name(commit)} says that it belongs to domain {commit.domain!r}")
    if commit.number != chain.last + 1:
        report.found(f"{_name(commit)} follows number {chain.last}: commits between them are missing")
    elif chain.hash is not None and commit.previous != chain.hash:
        report.found(f"{_name(commit)} does not follow the commit before it: the chain is broken")
    if commit.stamp < chain.stamp:
        report.found(f"{_name(commit)} is stamped before the commit that it follows")
    chain.last, chain.hash, chain.stamp = commit.number, commit.hash, commit.stamp
    chain.prefixes.append(int.from_bytes(commit.hash[:PREFIX_BYTES], "big"))


def _stored_limits(domain: Domain, meta: Mapping[str, bytes], report: Report) -> LimitTable:
    """What is kept of limits as a whole: of commits that were dropped, and of some that are still there."""
    table = LimitTable()
    state = meta.get(f"limits/{domain}")
    if state is not None:
        try:
            table.join(limit_facts(state), bytes_max=FOLD_BYTES_MAX)
        except CrdtSyncError as error:
            report.found(f"the limits of {domain} cannot be read: {error}")
    return table


def _stored_reissues(domain: Domain, meta: Mapping[str, bytes], report: Report) -> Reissues:
    """Which commits count under another stamp than their own."""
    reissues = Reissues()
    state = meta.get(f"reissues/{domain}")
    if state is not None:
        try:
            reissues.join(state)
        except CrdtSyncError as error:
            report.found(f"what was re-issued in {domain} cannot be read: {error}")
    return reissues


def _fold_limits(commit: Commit, limits: LimitTable, reissues: Reissues, applied: Mapping[str, int] | None) -> None:
    if applied is not None and commit.number > applied.get(commit.writer, 0):
        return  # held back, or waits for others: no part of the state
    for place, event in enumerate(commit.events):
        if isinstance(event, LimitEvent):
            limits.fold(*reissues.fact(EventId(commit.stamp, commit.writer, commit.number, place), event))


async def _verify_rows(store: Store, domain: Domain, digest: Digest, report: Report) -> None:
    nothing = bytes(len(bytes(digest)))
    after = b""
    while rows := await store.read_rows(domain, after, ROWS_PER_READ):
        for row in rows:
            report.tasks += 1
            digest.replace(nothing, row.digest)
            try:
                share = view_hash(row.task, resolve(Facts.unpack(row.facts)))
            except CrdtSyncError as error:
                report.found(f"task {row.task.hex()}: its facts cannot be read: {error}")
                continue
            if share != row.digest:
                report.found(f"task {row.task.hex()}: its facts do not resolve to the digest beside them")
        after = rows[-1].task
        await asyncio.sleep(0)


def _name(commit: Commit) -> str:
    return f"commit {commit.number} of {commit.writer}"


async def verify_directory(directory: Path) -> Report:
    """Verify the data of a node that is not running.

    Raises:
        StoreLockedError: It is running: ask it with --node instead.
        ConfigError: There is no node's data.
    """
    from regions.storage.sqlite import FILE, SqliteStore  # noqa: PLC0415 - a node brings its own

    if not (directory / FILE).exists():
        raise ConfigError(f"{directory}: no node has its data here ({FILE} is missing)")
    store = SqliteStore(directory)
    try:
        await store.open()
        report = await verify(store)
        for finding in await store.check():
            report.found(finding)
    except CorruptLogError as error:
        report = Report()
        report.found(str(error))
    finally:
        await store.close()
    return report
