"""`DomainLog`: what this replica knows of one domain's log, and what may be applied next.

Three vectors, never mixed. *have*: gap-free, on disk or in the batch being written, what peers exchange. *applied*:
folded. *durable*: of each, what is on disk. A commit takes this way:

    receive     arrives before its predecessor > gap buffer, bounded, visible, dropped newest first
                its predecessor is have        > have: chain, stamp and number are checked here, once
    waits       for its predecessor and its `deps` to be applied, and for its stamp's time to come
    applied     next_applicable() names it, the replica folds it, mark_applied() says so

So the applied set is causally closed at all times. A blocked commit is indexed under the one thing it waits for, and
looked at again when that happens; nothing is scanned. Each writer's stream is in order, so only the first commit of
each can be blocked. What waits longer than memory allows is dropped from it and read back from disk.

Time is held back as well: a commit stamped ahead of own time is have (stored and relayed), but not applied until then.
Since whatever follows it causally has a larger stamp, exactly the infected suffix of each writer waits.

A writer that contradicts itself is quarantined: the two commits are kept, nothing of it is accepted any more, what was
have before stays and is applied. Without signatures a peer can forge such evidence; it cannot make replicas differ.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Any, Final

from crdtsync.clock import COUNTER_BITS, MAX_SKEW_MS
from crdtsync.errors import CorruptLogError, LocalProtocolError, RemoteProtocolError
from crdtsync.events import Event, Plain
from crdtsync.identifiers import Domain, RegionId, WriterId, region_of
from crdtsync.log.caps import Caps
from crdtsync.log.commit import HASH_BYTES, NO_HASH, PREFIX_BYTES, Commit, commit_hash, decode_commit, seal
from crdtsync.log.gap_buffer import GapBuffer
from crdtsync.log.heads import Heads, RunningHeads, Span
from crdtsync.log.shapes import checked_writer
from crdtsync.log.verdicts import (
    Alarm,
    Distrust,
    Evidence,
    LogLimits,
    Received,
    Refusal,
    Verdict,
    Wait,
    Waiting,
)

STATE_VERSION: Final = 1
LOST_MAX: Final = 10_000  # damaged commits remembered; a disk that has more is to be replaced, not mended
DEFAULT_LIMITS: Final = LogLimits()

_DUPLICATE: Final = Received(Verdict.DUPLICATE)
_BUFFERED: Final = Received(Verdict.BUFFERED)


class _Stream:
    """One writer's commits, as far as they are in memory."""

    __slots__ = ("applied_hash", "applied_stamp", "deps_met", "hashes", "have_hash", "have_stamp", "queued",
                 "ready", "writer")  # fmt: skip

    def __init__(self, writer: WriterId, last_hash: bytes = NO_HASH, stamp: int = 0) -> None:
        self.writer = writer
        self.have_hash = self.applied_hash = last_hash
        self.have_stamp = self.applied_stamp = stamp
        self.hashes: dict[int, bytes] = {}  # of the last `hashes_kept` numbers
        self.ready: deque[Commit] = deque()  # contiguous from applied + 1; what is have beyond it is on disk alone
        self.deps_met = 0  # how many of ready[0]'s deps were found applied; they stay so
        self.queued = False  # whether it stands among the candidates


class DomainLog:
    """The log of `domain`, seen by the incarnation `writer`.

    Args:
        writer: Who appends here. It must be new: a writer found in the restored state is refused.
        max_skew_ms: How far a stamp may be ahead of own time to be applied.
        members: The regions whose writers are believed; none given means that the caller looks.
    """

    def __init__(
        self,
        domain: Domain,
        writer: WriterId,
        *,
        limits: LogLimits = DEFAULT_LIMITS,
        max_skew_ms: int = MAX_SKEW_MS,
        members: Iterable[RegionId] = (),
    ) -> None:
        self.domain = domain
        self.writer = writer
        self.limits = limits
        self.members = frozenset(members)  # changes with the membership
        self.max_skew_ms = max_skew_ms
        self.quarantined: dict[WriterId, Evidence] = {}
        self.caps = Caps()  # of regions that are being forgotten, or were
        self._streams: dict[WriterId, _Stream] = {}
        self._have = RunningHeads()
        self._applied = RunningHeads()
        self._durable_have = RunningHeads()
        self._durable_applied = RunningHeads()
        self._known: dict[bytes, None] = {}  # all hashes that streams keep: a repetition is seen before it is decoded
        self._changed: set[WriterId] = set()  # others whose applied head moved since our last commit
        self._candidates: deque[_Stream] = deque()  # streams whose next commit may be applicable
        self._waiters: dict[WriterId, list[tuple[int, WriterId]]] = {}  # heaps: who waits for this writer's number
        self._held: list[tuple[int, WriterId]] = []  # heap: own time at which a held-back stream is looked at again
        self._blocked: dict[WriterId, Waiting] = {}
        self._absent: dict[WriterId, None] = {}  # streams whose next commit is on disk alone
        self._lost: dict[tuple[WriterId, int], None] = {}  # applied, and damaged on disk
        self._gaps = GapBuffer(limits.gap_commits_max, limits.gap_bytes_max)
        self._waiting_bytes = 0
        self._released: dict[WriterId, int] = {}  # whose stamps count no more, up to which number: re-issued
        self.apart = False  # whether what we write rests on nothing, for now: what re-issues must not wait for anybody
        self._alarms: list[Alarm] = []
        self._alarmed: set[tuple[str, WriterId]] = set()

    # What is known

    @property
    def have(self) -> Heads:
        return self._have.frozen()

    @property
    def applied(self) -> Heads:
        return self._applied.frozen()

    @property
    def durable_have(self) -> Heads:
        return self.caps.clamped(self._durable_have.frozen())

    @property
    def durable_applied(self) -> Heads:
        """What may be acknowledged: applied, and on disk."""
        return self._durable_applied.frozen()

    @property
    def head_hashes(self) -> dict[WriterId, bytes]:
        """Hash of the last commit that we have, per writer."""
        return {writer: stream.have_hash for writer, stream in self._streams.items() if self._have.get(writer)}

    def hash_of(self, writer: WriterId, number: int) -> bytes | None:
        """The hash of a commit that we have, None when it is unknown or too long ago."""
        stream = self._streams.get(writer)
        return stream.hashes.get(number) if stream else None

    def is_applied(self, writer: WriterId, number: int) -> bool:
        """Whether the applied set holds this commit. Cheaper than `applied`."""
        return self._applied.get(writer, 0) >= number

    def gaps(self) -> tuple[Span, ...]:
        """What is missing before commits that have arrived, sorted."""
        return self._gaps.gaps(self._have)

    def waiting(self) -> tuple[Waiting, ...]:
        """The commits that are have and cannot be applied now, the first of each writer, sorted by writer."""
        on_disk = [Waiting(w, self._applied.get(w, 0) + 1, Wait.DISK) for w in self._absent]
        return tuple(sorted([*self._blocked.values(), *on_disk]))

    def held_back(self, writer: WriterId) -> tuple[int, int]:
        """How many commits of this writer are have and not applied, and when the last of them may be, in own time."""
        stream = self._streams[writer]
        left = self._have.get(writer, 0) - self._applied.get(writer, 0)
        return left, (stream.have_stamp >> COUNTER_BITS) - self.max_skew_ms

    def next_deadline_ms(self) -> int | None:
        """Own time at which a held-back commit may become applicable."""
        return self._held[0][0] if self._held else None

    def take_alarms(self) -> tuple[Alarm, ...]:
        """What happened since the last call that an operator must know."""
        alarms, self._alarms = tuple(self._alarms), []
        return alarms

    # Commits come in

    def append(self, events: Iterable[Event], stamp: int) -> Commit:
        """Seal the next commit of our own writer. It is have and applied at once, durable when `mark_durable` says so.

        Raises:
            LocalProtocolError: If peers would refuse it, or a clone of this incarnation is at work. Nothing happened.
        """
        stream = self._stream(self.writer)
        if self.writer in self.quarantined:
            raise LocalProtocolError(f"{self.writer} is quarantined: restart this node as another incarnation")
        if stamp < stream.have_stamp:
            raise LocalProtocolError(f"stamp {stamp} goes back behind {stream.have_stamp}")
        changed = [] if self.apart else sorted(self._changed)
        deps = [(w, self._applied[w], self._streams[w].applied_hash[:PREFIX_BYTES]) for w in changed]
        number = self._have.get(self.writer, 0) + 1
        commit = seal(
            self.domain, self.writer, number, stamp=stamp, deps=deps, previous=stream.have_hash, events=events
        )
        if not self.apart:
            self._changed.clear()
        self._advance_have(stream, commit)
        self._advance_applied(stream, commit)
        return commit

    def receive(self, blob: bytes, wall_ms: int) -> Received:
        """Take in a commit from a peer, in any order, any number of times. Never raises, whatever the bytes.

        The caller vouches that the writer belongs to a member of the domain.

        Args:
            blob: The commit as it travels.
            wall_ms: Own time (`HybridClock.physical_ms`), for the alarm about stamps far ahead.
        """
        if commit_hash(blob) in self._known and not self._lost:
            return _DUPLICATE
        try:
            commit = decode_commit(blob)
        except RemoteProtocolError as error:
            return Received(Verdict.REFUSED, refusal=Refusal.MALFORMED, reason=str(error))
        writer = commit.writer
        if commit.domain != self.domain:
            reason = f"a commit of domain {commit.domain!r}, not {self.domain!r}"
            return Received(Verdict.REFUSED, refusal=Refusal.DOMAIN, reason=reason)
        if self.members and region_of(writer) not in self.members:
            return Received(Verdict.REFUSED, refusal=Refusal.STRANGER, reason=f"{writer} is of no member")
        if writer in self.quarantined:
            return Received(Verdict.REFUSED, refusal=Refusal.QUARANTINED, reason=f"{writer} is quarantined")
        if self.caps and self.caps.refuses(writer, commit.number):
            reason = f"commit {commit.number} of {writer} lies beyond what is left of its forgotten region"
            return Received(Verdict.REFUSED, refusal=Refusal.FORGOTTEN, reason=reason)
        if writer not in self._streams and len(self._streams) >= self.limits.writers_max:
            reason = f"more than {self.limits.writers_max} writers"
            return Received(Verdict.REFUSED, refusal=Refusal.OVERFLOW, reason=reason)
        if self._is_far_ahead(commit, wall_ms) and not self._is_released(commit):
            self._alarm_far_ahead(commit, wall_ms)
        return self._take_in(commit)

    def _take_in(self, commit: Commit) -> Received:
        stream = self._stream(commit.writer)
        have = self._have.get(commit.writer, 0)
        if commit.number <= have:
            known = stream.hashes.get(commit.number)
            if known is None or known == commit.hash:
                if self.is_lost(commit.writer, commit.number):
                    return Received(Verdict.MENDED, (commit,))
                return _DUPLICATE
            return self._quarantine(stream, commit, Distrust.EQUIVOCATION)
        if commit.writer == self.writer:  # only we write under this name: somebody runs a copy of us
            return self._quarantine(stream, commit, Distrust.EQUIVOCATION)
        if commit.number > have + 1:
            return self._buffer(stream, commit)
        released: list[Commit] = []
        following: Commit | None = commit
        while following is not None:
            distrust = self._distrust(stream, following)
            if distrust is not None:
                return self._quarantine(stream, following, distrust, released)
            self._advance_have(stream, following)
            self._keep(stream, following)
            released.append(following)
            following = self._gaps.take(commit.writer, following.number + 1)
        if not self._gaps.holds(commit.writer):
            self._alarmed.discard(("log.gap_overflow", commit.writer))
        return Received(Verdict.NEW, tuple(released))

    @staticmethod
    def _distrust(stream: _Stream, commit: Commit) -> Distrust | None:
        if commit.previous != stream.have_hash:
            return Distrust.CHAIN
        return Distrust.STAMP if commit.stamp < stream.have_stamp else None

    def _quarantine(
        self, stream: _Stream, other: Commit, distrust: Distrust, released: Iterable[Commit] = ()
    ) -> Received:
        number = other.number if distrust is Distrust.EQUIVOCATION else other.number - 1
        buffered = self._gaps.find(stream.writer, number)
        held = next((c.blob for c in stream.ready if c.number == number), buffered.blob if buffered else b"")
        self.quarantined[stream.writer] = Evidence(stream.writer, other.number, distrust, held, other.blob)
        self._gaps.discard(stream.writer)
        reason = f"{stream.writer} contradicts itself at {other.number}: {distrust}"
        self._alarm("log.quarantined", other, reason)
        return Received(Verdict.QUARANTINED, tuple(released), reason=reason)

    def _buffer(self, stream: _Stream, commit: Commit) -> Received:
        present = self._gaps.find(commit.writer, commit.number)
        if present is not None:
            if present.hash == commit.hash:
                return _BUFFERED
            return self._quarantine(stream, commit, Distrust.EQUIVOCATION)
        dropped = self._gaps.add(commit)
        if not dropped:
            return _BUFFERED
        reason = f"the gap buffer of {self.domain!r} is full: {self._gaps.commits} commits, {self._gaps.bytes} bytes"
        self._alarm("log.gap_overflow", commit, reason)
        if dropped[-1] == commit.number:
            return Received(Verdict.REFUSED, refusal=Refusal.OVERFLOW, reason=reason, dropped=dropped)
        return Received(Verdict.BUFFERED, reason=reason, dropped=dropped)

    # From have to applied

    def next_applicable(self, wall_ms: int) -> Commit | None:
        """The next commit whose predecessor and deps are applied and whose time has come, None if there is none.

        The same one until `mark_applied` is called.

        Args:
            wall_ms: Own time (`HybridClock.physical_ms`).
        """
        while self._held and self._held[0][0] <= wall_ms:
            self._examine(heappop(self._held)[1])
        while self._candidates:
            stream = self._candidates[0]
            obstacle = self._obstacle(stream, stream.ready[0], wall_ms) if stream.ready else None
            if obstacle is None and stream.ready:
                return stream.ready[0]
            self._candidates.popleft()
            stream.queued = False
            if obstacle is not None:
                self._blocked[stream.writer] = obstacle
        return None

    def mark_applied(self, commit: Commit) -> None:
        """The replica has folded `commit`, which `next_applicable` named last."""
        stream = self._streams[commit.writer]
        assert stream.ready, commit.writer
        assert stream.ready[0].number == commit.number, (commit.writer, commit.number, stream.ready[0].number)
        stream.ready.popleft()
        stream.deps_met = 0
        self._waiting_bytes -= len(commit.blob)
        self._advance_applied(stream, commit)
        if not stream.ready and commit.number < self._have[commit.writer]:
            self._absent[commit.writer] = None

    def _obstacle(self, stream: _Stream, commit: Commit, wall_ms: int) -> Waiting | None:
        release_ms = (commit.stamp >> COUNTER_BITS) - self.max_skew_ms
        if release_ms > wall_ms and not self._is_released(commit):
            heappush(self._held, (release_ms, stream.writer))
            wait = Wait.STAMP
            if self._is_far_ahead(commit, wall_ms):
                wait = Wait.FAR_AHEAD
                self._alarm_far_ahead(commit, wall_ms)
            else:
                ahead_ms = (commit.stamp >> COUNTER_BITS) - wall_ms
                self._alarm("log.held_back", commit, f"stamped {ahead_ms} ms ahead: it waits for its time")
            return Waiting(commit.writer, commit.number, wait, until_ms=release_ms)
        if self.caps and not self.caps.allows(commit.writer, commit.number):
            return Waiting(commit.writer, commit.number, Wait.FORGOTTEN)
        deps = commit.deps
        while stream.deps_met < len(deps):
            writer, number, prefix = deps[stream.deps_met]
            if self._applied.get(writer, 0) < number:
                if self.caps and not self.caps.allows(writer, number):
                    if not self.caps.lift(writer, number):
                        return Waiting(commit.writer, commit.number, Wait.FORGOTTEN, (writer, number))
                    self._look_again(writer)
                heappush(self._waiters.setdefault(writer, []), (number, stream.writer))
                return Waiting(commit.writer, commit.number, Wait.COMMIT, (writer, number))
            known = self._streams[writer].hashes.get(number)
            if known is not None and not known.startswith(prefix):
                self._alarm("log.other_branch", commit, f"it rests on another commit {number} of {writer} than ours")
                return Waiting(commit.writer, commit.number, Wait.BRANCH, (writer, number))
            stream.deps_met += 1
        return None

    def release(self, writer: WriterId, upto: int) -> None:
        """Commits of this writer were re-issued: their own stamps hold them back no more. Harmless to repeat."""
        if upto > self._released.get(writer, 0):
            self._released[writer] = upto
            self._alarmed -= {("log.far_ahead", writer), ("log.held_back", writer)}
            self._look_again(writer)

    def released(self, writer: WriterId) -> int:
        """Up to which number the commits of this writer were re-issued, 0 if none was."""
        return self._released.get(writer, 0)

    def ahead(self, wall_ms: int) -> tuple[WriterId, ...]:
        """Writers of whom something was applied that is ahead of this time and was not re-issued, sorted."""
        found = []
        for writer, number in sorted(self._applied.items()):
            ahead_ms = (self._streams[writer].applied_stamp >> COUNTER_BITS) - wall_ms
            if ahead_ms > self.max_skew_ms and number > self._released.get(writer, 0):
                found.append(writer)
        return tuple(found)

    def head_stamp(self, writer: WriterId) -> int:
        """The stamp of the last commit that we have of this writer, 0 for none."""
        stream = self._streams.get(writer)
        return stream.have_stamp if stream is not None else 0

    def restrain(self, region: RegionId, heads: Heads, *, final: bool) -> None:
        """Follow a region that is being forgotten no further than `heads` (`log.caps`). Harmless to repeat."""
        if final:
            self.caps.close(region, heads, self._have.items())
        else:
            self.caps.impose(region, heads)
        for writer in list(self._streams):
            if region_of(writer) == region:
                self._look_again(writer)
        # What waits for a commit of that region already asks again: the cap may have to be lifted for it.
        for writer in [w for w in self._waiters if region_of(w) == region]:
            for _, waiter in self._waiters.pop(writer):
                self._look_again(waiter)

    def _look_again(self, writer: WriterId) -> None:
        stream = self._streams.get(writer)
        if stream is not None and stream.ready:
            self._examine(writer)

    def _examine(self, writer: WriterId) -> None:
        stream = self._streams[writer]
        self._blocked.pop(writer, None)
        if not stream.queued:
            stream.queued = True
            self._candidates.append(stream)

    def _advance_have(self, stream: _Stream, commit: Commit) -> None:
        stream.have_hash = commit.hash
        stream.have_stamp = commit.stamp
        stream.hashes[commit.number] = commit.hash
        self._known[commit.hash] = None
        forgotten = stream.hashes.pop(commit.number - self.limits.hashes_kept, None)
        if forgotten is not None:
            self._known.pop(forgotten, None)
        self._have.advance(commit.writer, commit.number)

    def _advance_applied(self, stream: _Stream, commit: Commit) -> None:
        writer, number = commit.writer, commit.number
        stream.applied_hash = commit.hash
        stream.applied_stamp = commit.stamp
        self._applied.advance(writer, number)
        if number <= self._durable_have.get(writer, 0):
            self._durable_applied.advance(writer, number)
        if writer != self.writer:
            self._changed.add(writer)
        self._wake(writer, number)

    def _wake(self, writer: WriterId, number: int) -> None:
        """Look again at what waited for `writer` to be applied up to `number`."""
        waiters = self._waiters.get(writer)
        if waiters:
            while waiters and waiters[0][0] <= number:
                self._examine(heappop(waiters)[1])
            if not waiters:
                del self._waiters[writer]

    # Memory and disk

    def _keep(self, stream: _Stream, commit: Commit) -> None:
        """Hold a commit that became have in memory, unless what waits there is at its limit."""
        in_memory = self._applied.get(stream.writer, 0) + len(stream.ready)
        if in_memory + 1 != commit.number:
            return  # earlier ones of this writer are on disk alone, and are read back first
        size = len(commit.blob)
        # One commit of each writer stays whatever the limit: without seeing it we could not tell what it waits for.
        if stream.ready and self._waiting_bytes + size > self.limits.waiting_bytes_max:
            return
        stream.ready.append(commit)
        self._waiting_bytes += size
        if len(stream.ready) == 1:
            self._absent.pop(stream.writer, None)
            self._examine(stream.writer)

    def needed(self) -> tuple[WriterId, int] | None:
        """A writer and the number from which its commits are to be read from disk and handed to `provide`.

        The same one until that is done, so keep at most one such read under way.
        """
        for writer in self._absent:
            first = self._applied.get(writer, 0) + 1
            if first <= self._durable_have.get(writer, 0):
                return writer, first
        return None

    def provide(self, blobs: Iterable[bytes]) -> int:
        """Take commits back that are have already, in order; returns how many were of use.

        Raises:
            CorruptLogError: If one is not what we had. Those before it were taken. Fetch it from a peer and provide it.
        """
        taken = 0
        for blob in blobs:
            commit = self._decode_own(blob)
            stream = self._streams.get(commit.writer)
            expected = self._applied.get(commit.writer, 0) + (len(stream.ready) if stream else 0) + 1
            if stream is None or commit.number != expected or commit.number > self._have.get(commit.writer, 0):
                continue
            previous = stream.ready[-1].hash if stream.ready else stream.applied_hash
            if commit.previous != previous or stream.hashes.get(commit.number, commit.hash) != commit.hash:
                raise CorruptLogError(f"commit {commit.number} of {commit.writer} on disk is not the one we had")
            before = len(stream.ready)
            self._keep(stream, commit)
            if len(stream.ready) == before:
                break
            taken += 1
        return taken

    # Damage

    def lose(self, writer: WriterId, number: int) -> None:
        """An applied commit is damaged on disk. What it says is folded; that it can be read again takes a peer.

        So peers are told that it is lacking (`announced`), and `receive` says MENDED when one sends it.
        """
        assert self.is_applied(writer, number), "what is not applied is not to be had: the replica is built anew"
        if len(self._lost) < LOST_MAX:
            self._lost[writer, number] = None

    def is_lost(self, writer: WriterId, number: int) -> bool:
        return (writer, number) in self._lost

    def mended(self, writer: WriterId, number: int) -> None:
        """It is on disk again, or nobody needs it any more."""
        self._lost.pop((writer, number), None)

    def dropped(self, writer: WriterId, upto: int) -> None:
        """The commits up to this number left the log: none of them is missed."""
        for name, number in [at for at in self._lost if at[0] == writer and at[1] <= upto]:
            del self._lost[name, number]

    @property
    def announced(self) -> Heads:
        """What peers are told that we have: `have`, but per writer only up to the first commit that is lost."""
        if not self._lost:
            return self.caps.clamped(self.have)
        heads = dict(self._have.items())
        for writer, number in self._lost:
            heads[writer] = min(heads[writer], number - 1)
        return self.caps.clamped(Heads(heads))

    def mark_durable(self, have: Heads, applied: Heads) -> None:
        """A batch is on disk: `have` and `applied` as they were when it was taken.

        What is applied and on disk counts as durably applied, also what was applied since then. `applied` itself says
        what else is: heads that were adopted, whose rows went into this batch.
        """
        assert have.covers(applied), "what is applied is have"
        for writer, number in have.items():
            if number > self._durable_have.get(writer, 0):
                assert number <= self._have.get(writer, 0), (writer, number)
                self._durable_have.advance(writer, number)
                durable = min(number, self._applied.get(writer, 0))
                if durable > self._durable_applied.get(writer, 0):
                    self._durable_applied.advance(writer, durable)
        for writer, number in applied.items():
            if number > self._durable_applied.get(writer, 0):
                self._durable_applied.advance(writer, number)

    # Restart

    def export_state(self) -> Plain:
        """The applied heads with what continuing each chain needs. Plain, for the replica's meta: store it once all
        rows that were dirty when it was taken are on disk."""
        return (
            STATE_VERSION,
            self.domain,
            tuple(
                (writer, number, self._streams[writer].applied_hash, self._streams[writer].applied_stamp)
                for writer, number in sorted(self._applied.items())
            ),
        )

    def export_evidence(self) -> Plain:
        """Who is quarantined, and why. Store it in the batch after each QUARANTINED verdict."""
        return tuple(
            (writer, e.number, str(e.distrust), e.held, e.other) for writer, e in sorted(self.quarantined.items())
        )

    def restore(self, state: Any, evidence: Any = ()) -> None:
        """Start from what was exported. Call it once, on a new log; then `restore_commit` what the disk holds beyond.

        Raises:
            CorruptLogError: If it is not such a state. The log is unusable then.
            LocalProtocolError: If our own writer is in it: identities are used once.
        """
        assert not self._streams, "restore comes first"
        try:
            version, domain, writers = state
            if version != STATE_VERSION or domain != self.domain:
                raise CorruptLogError(f"state of version {version}, domain {domain!r}: expected {self.domain!r}")
            for writer, number, last_hash, stamp in writers:
                if len(last_hash) != HASH_BYTES or number <= 0:
                    raise CorruptLogError(f"state names commit {number} of {writer} without its hash")
                stream = self._streams[writer] = _Stream(writer, last_hash, stamp)
                stream.hashes[number] = last_hash
                self._known[last_hash] = None
                for vector in (self._have, self._applied, self._durable_have, self._durable_applied):
                    vector.advance(writer, number)
            for writer, number, distrust, held, other in evidence:
                self.quarantined[writer] = Evidence(writer, number, Distrust(distrust), held, other)
        except (TypeError, ValueError) as error:
            raise CorruptLogError(f"malformed log state: {error}") from error
        if self.writer in self._streams or self.writer in self.quarantined:
            raise LocalProtocolError(f"{self.writer} wrote before: every start needs a new incarnation")
        self._changed.update(self._streams)

    def adopt(self, state: Any) -> Heads:
        """Go on from a peer's exported state, whose facts were joined into ours: everything up to there counts as applied.

        Commits that were waiting and are covered by it are forgotten. It is durable with the batch that holds the rows.
        Returns the heads that moved.

        Raises:
            CorruptLogError: If it is not such a state, or rests on another commit than one that we hold under the
                same number. The log is unchanged.
        """
        try:
            version, domain, writers = state
            checked = [(checked_writer(w), int(n), bytes(h), int(s)) for w, n, h, s in writers]
            if version != STATE_VERSION or domain != self.domain or any(len(h) != HASH_BYTES for _, _, h, _ in checked):
                raise CorruptLogError(f"a state of version {version!r}, domain {domain!r} cannot be adopted")
        except (TypeError, ValueError, RemoteProtocolError) as error:
            raise CorruptLogError(f"malformed log state: {error}") from error
        for writer, number, last_hash, _ in checked:
            if self.hash_of(writer, number) not in (None, last_hash):
                raise CorruptLogError(f"the peer's state rests on another commit {number} of {writer} than ours")
        moved: dict[WriterId, int] = {}
        for writer, number, last_hash, stamp in checked:
            if number <= self._applied.get(writer, 0) or writer == self.writer or writer in self.quarantined:
                continue
            stream = self._stream(writer)
            while stream.ready and stream.ready[0].number <= number:
                self._waiting_bytes -= len(stream.ready.popleft().blob)
            self._gaps.discard(writer)  # what is still of use comes again behind the new heads
            stream.deps_met = 0
            stream.applied_hash, stream.applied_stamp = last_hash, stamp
            if number >= self._have.get(writer, 0):
                for known in stream.hashes.values():  # they are numbered too far back to be kept one by one
                    self._known.pop(known, None)
                stream.hashes = {number: last_hash}
                self._known[last_hash] = None
                stream.have_hash, stream.have_stamp = last_hash, stamp
                self._have.advance(writer, number)
            self._applied.advance(writer, number)
            self._changed.add(writer)
            moved[writer] = number
            self._blocked.pop(writer, None)
            self._absent.pop(writer, None)
            if stream.ready:
                self._examine(writer)
            elif number < self._have[writer]:
                self._absent[writer] = None
            self._wake(writer, number)
        return Heads(moved)

    def restore_commit(self, blob: bytes) -> Received:
        """Take a commit from our own disk: durable already. Then apply what `next_applicable` names, as ever.

        BUFFERED means that the disk lacks a predecessor: it is in `gaps()`, and comes from peers.

        Raises:
            CorruptLogError: If it is malformed or does not follow its predecessor. It was skipped.
        """
        commit = self._decode_own(blob)
        if commit.writer == self.writer:
            raise LocalProtocolError(f"{self.writer} wrote before: every start needs a new incarnation")
        stream = self._stream(commit.writer)
        if commit.number == self._have.get(commit.writer, 0) + 1 and self._distrust(stream, commit) is not None:
            raise CorruptLogError(f"commit {commit.number} of {commit.writer} on disk does not follow its predecessor")
        received = self._take_in(commit)
        if received.commits:
            self._durable_have.advance(commit.writer, self._have[commit.writer])
        return received

    # Helpers

    def _decode_own(self, blob: bytes) -> Commit:
        try:
            commit = decode_commit(blob)
        except RemoteProtocolError as error:
            raise CorruptLogError(f"a commit on disk is damaged: {error}") from error
        if commit.domain != self.domain:
            raise CorruptLogError(f"a commit of domain {commit.domain!r} on disk under {self.domain!r}")
        return commit

    def _stream(self, writer: WriterId) -> _Stream:
        stream = self._streams.get(writer)
        if stream is None:
            stream = self._streams[writer] = _Stream(writer)
        return stream

    def _is_far_ahead(self, commit: Commit, wall_ms: int) -> bool:
        return commit.stamp >> COUNTER_BITS > wall_ms + self.limits.max_hold_ms

    def _is_released(self, commit: Commit) -> bool:
        return commit.number <= self._released.get(commit.writer, 0)

    def _alarm_far_ahead(self, commit: Commit, wall_ms: int) -> None:
        ahead_ms = (commit.stamp >> COUNTER_BITS) - wall_ms
        self._alarm("log.far_ahead", commit, f"stamped {ahead_ms} ms ahead: stop {commit.writer}, correct its clock")

    def _alarm(self, what: str, commit: Commit, reason: str) -> None:
        if (what, commit.writer) not in self._alarmed:
            self._alarmed.add((what, commit.writer))
            self._alarms.append(Alarm(what, commit.writer, commit.number, reason))
