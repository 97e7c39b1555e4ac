"""What a peer lacks, and in which order it is sent.

A `Feed` stands for one peer in one domain. Its *position* is, per writer, the number up to which the peer has the
commits or has been sent them; whatever is durable here beyond it goes out. There is no queue: a backlog is a position,
and what is sent is taken from the cache of recent commits or read from disk when credit allows.

Positions move forward when the peer says what it has, sends us a commit itself, or is sent one; never otherwise. They
move back when the peer has processed the frame in which we sent something and still lacks it: then it was lost or
refused, and is sent again, ever more seldom if the peer does not take it (a writer quarantined there).

**Relay once, never back** (Enes et al., "Efficient synchronization of state-based CRDTs", ICDE 2019: without both, 67 to
104 times the bytes). A commit is offered when it became durable, so once; its sender has it, so never back. Beyond that
paper, we leave commits alone that the peer gets directly from where we got them, or from their origin, because it says
it has a link there (*hold*). A hold ends with the peer's next heads, whatever became of that link; only while it is
far behind and visibly catching up is it left to the other source, or two regions would send it the same backlog.

**Order.** A commit's stamp is larger than those of all it depends on. So what is in the cache goes out merged by stamp,
and what must be read is read in turns, the writer with the oldest stamp first: the receiver's buffer stays small.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from typing import Final, NamedTuple

from crdtsync.effects import CommitRow
from crdtsync.errors import RemoteProtocolError
from crdtsync.gossip.settings import GossipSettings
from crdtsync.identifiers import Domain, RegionId, WriterId, region_of
from crdtsync.log.commit import decode_commit
from crdtsync.log.heads import Heads
from crdtsync.protocol.peer_messages import RUN_COMMITS_MAX, RUNS_MAX, Run

FRAME_COMMITS_MAX: Final = 4_096  # in one frame, however small: bounds the time that a receiver takes for it
assert min(RUN_COMMITS_MAX, RUNS_MAX) >= FRAME_COMMITS_MAX
TRIES_AT_ONCE: Final = 2  # a peer that processed a commit and lacks it gets it again at once so often; then we wait
CROSSING_MS: Final = 500  # heads that come so soon after a commit may have crossed it: about the longest round trip

IsRelay = Callable[[WriterId], bool]


class CommitCache:
    """Recent durable commits of all domains, the oldest leaving first."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes = 0
        self._bytes_max = bytes_max
        self._rows: dict[tuple[Domain, WriterId, int], CommitRow] = {}
        self._order: deque[CommitRow] = deque()

    def add(self, row: CommitRow) -> None:
        key = (row.domain, row.writer, row.number)
        if key in self._rows:
            return
        self._rows[key] = row
        self._order.append(row)
        self.bytes += len(row.blob)
        while self.bytes > self._bytes_max:
            oldest = self._order.popleft()
            del self._rows[oldest.domain, oldest.writer, oldest.number]
            self.bytes -= len(oldest.blob)

    def get(self, domain: Domain, writer: WriterId, number: int) -> CommitRow | None:
        return self._rows.get((domain, writer, number))


class Read(NamedTuple):
    """Commits that are on disk alone."""

    writer: WriterId
    first: int


class Gathered(NamedTuple):
    """What may go out next: runs to send, or a read to make first, or neither."""

    runs: tuple[Run, ...] = ()
    stamps: tuple[int, ...] = ()  # of the last commit of each run
    read: Read | None = None
    below_floor: bool = False  # the peer lacks what was dropped here: only a snapshot helps


_NOTHING: Final = Gathered()


class _Stall(NamedTuple):
    """A writer whose commits the peer processed and does not have."""

    have: int
    tries: int
    until_ms: int


class _Hold(NamedTuple):
    """What the peer lacks of a writer is left to another source: as long as it comes, or might still be under way."""

    have: int  # what the peer had when this began
    since_ms: int
    until_ms: int  # at the latest, unless it got on


class Feed:
    """One peer's position in one domain.

    Args:
        me: This region.
        peer: The region that is fed.
    """

    def __init__(self, domain: Domain, me: RegionId, peer: RegionId, settings: GossipSettings) -> None:
        self.domain = domain
        self.reading: Read | None = None  # under way; at most one per peer
        self.paused = False  # while the peer takes a snapshot
        self._me = me
        self._peer = peer
        self._settings = settings
        self._theirs: Heads | None = None  # as of their last heads
        self._position: dict[WriterId, int] = {}
        self._sent_in: dict[WriterId, int] = {}  # number of the last frame that carried commits of this writer
        self._cursor: dict[WriterId, int] = {}  # stamp of the last commit sent
        self._behind: set[WriterId] = set()
        self._holds: dict[WriterId, _Hold] = {}
        self._released: set[WriterId] = set()  # no longer held until the peer has caught up
        self._stalls: dict[WriterId, _Stall] = {}

    @property
    def started(self) -> bool:
        """Whether the peer has said what it has. Before that nothing is sent."""
        return self._theirs is not None

    def position(self, writer: WriterId) -> int:
        return self._position.get(writer, 0)

    def lacks(self, mine: Heads) -> int:
        """How many of our durable commits the peer neither has nor was sent."""
        return sum(max(0, mine[writer] - self.position(writer)) for writer in self._behind)

    # What the peer says and sends ------------------------------------------------------------------------------------

    def heads(
        self,
        theirs: Heads,
        mine: Heads,
        *,
        seen: int,
        lost: bool,
        links: frozenset[RegionId],
        is_relay: IsRelay,
        now_ms: int,
    ) -> None:
        """The peer's heads have come.

        Args:
            theirs: What it has.
            mine: What is durable here.
            seen: The number of our last frame that it had processed then.
            lost: Whether frames of ours were lost since its last heads.
            links: To whom it is linked.
            is_relay: Whether the peer's link to a writer's region may be relied on for this writer.
            now_ms: Monotonic time.
        """
        before, self._theirs = self._theirs, theirs
        for writer, number in mine.items():
            have = theirs[writer]
            position = self._position.get(writer, 0)
            stall = self._stalls.get(writer)
            if stall is not None and have > stall.have:
                del self._stalls[writer]
            if have > position:
                self._position[writer] = have
            elif position > have and seen >= self._sent_in.get(writer, 0):
                self._position[writer] = have
                self._stall(writer, have, lost, now_ms)
            if self._position.get(writer, 0) >= number:
                self._caught_up(writer)
                continue
            self._behind.add(writer)
            elsewhere = region_of(writer) in links and is_relay(writer)
            self._judge_hold(writer, number=number, have=have, before=before, elsewhere=elsewhere, now_ms=now_ms)

    def they_sent(self, writer: WriterId, last: int) -> None:
        """The peer sent commits of `writer` up to `last`: it has them."""
        if last > self._position.get(writer, 0):
            self._position[writer] = last

    def durable(self, row: CommitRow, source: RegionId | None, links: frozenset[RegionId], now_ms: int) -> None:
        """A commit became durable here. `source` is the peer that it came from first, None if it is our own."""
        writer = row.writer
        if self._theirs is None or self._position.get(writer, 0) >= row.number:
            return
        origin = region_of(writer)
        elsewhere = source is not None and (source in links or origin in links) and origin != self._peer
        if writer in self._holds:
            held = row.number - 1 - self._position.get(writer, 0)
            if not elsewhere and held <= self._settings.bulk_commits:
                # This one nobody else brings. Those before it somebody does: if not, its next heads tell.
                self._position[writer] = row.number - 1
                del self._holds[writer]
        elif elsewhere and writer not in self._behind and writer not in self._released:
            self._holds[writer] = self._hold(self._theirs[writer], now_ms)
        self._behind.add(writer)

    def _judge_hold(
        self, writer: WriterId, *, number: int, have: int, before: Heads | None, elsewhere: bool, now_ms: int
    ) -> None:
        """Decide, at the peer's heads, whether somebody else is to send it the commits of `writer` that it lacks."""
        bulk = number - have > self._settings.bulk_commits
        if writer in self._holds:
            hold = self._holds[writer]
            if elsewhere and have > hold.have:
                self._holds[writer] = self._hold(have, now_ms)
            elif not elsewhere or now_ms - hold.since_ms >= CROSSING_MS:
                del self._holds[writer]
                self._released.add(writer)
        elif elsewhere and writer not in self._released and (before is None or bulk):
            self._holds[writer] = self._hold(have, now_ms)

    def _hold(self, have: int, now_ms: int) -> _Hold:
        # Its heads come before that, unless they are lost.
        return _Hold(have, now_ms, now_ms + 2 * self._settings.heads_interval_ms)

    def _stall(self, writer: WriterId, have: int, lost: bool, now_ms: int) -> None:
        stall = self._stalls.get(writer)
        tries = 0 if stall is None or lost else stall.tries + 1
        delay_ms = 0
        if tries >= TRIES_AT_ONCE:
            exponent = min(tries - TRIES_AT_ONCE, 16)  # beyond any limit; keeps the number small
            delay_ms = min(self._settings.heads_interval_ms << exponent, self._settings.stall_ms_max)
        self._stalls[writer] = _Stall(have, tries, now_ms + delay_ms)

    def _caught_up(self, writer: WriterId) -> None:
        self._behind.discard(writer)
        self._holds.pop(writer, None)
        self._released.discard(writer)

    # What goes out ---------------------------------------------------------------------------------------------------

    def gather(self, cache: CommitCache, mine: Heads, floor: Heads, bytes_max: int, now_ms: int) -> Gathered:
        """What to send next, at most about `bytes_max` of it but at least one commit."""
        if self._theirs is None or self.paused or self.reading is not None:
            return _NOTHING
        cached: list[tuple[int, WriterId, CommitRow]] = []
        on_disk: list[tuple[int, WriterId, int]] = []
        for writer in sorted(self._behind):
            stall = self._stalls.get(writer)
            if writer in self._holds or (stall is not None and stall.until_ms > now_ms):
                continue
            number = self._position.get(writer, 0) + 1
            if number > mine[writer]:
                self._caught_up(writer)
                continue
            if number <= floor[writer]:
                return Gathered(below_floor=True)
            row = cache.get(self.domain, writer, number)
            if row is None:
                on_disk.append((self._cursor.get(writer, 0), writer, number))
            else:
                cached.append((row.stamp, writer, row))
        if on_disk:  # older than all that is cached: first
            _, writer, first = min(on_disk)
            return Gathered(read=Read(writer, first))
        return self._merge(cached, cache, mine, bytes_max) if cached else _NOTHING

    def _merge(
        self, heap: list[tuple[int, WriterId, CommitRow]], cache: CommitCache, mine: Heads, bytes_max: int
    ) -> Gathered:
        """The next commits by stamp, one run per writer."""
        heapify(heap)
        runs: dict[WriterId, list[CommitRow]] = {}
        size = count = 0
        while heap and count < FRAME_COMMITS_MAX:
            _, writer, row = heappop(heap)
            if count and size + len(row.blob) > bytes_max:
                break
            runs.setdefault(writer, []).append(row)
            size += len(row.blob)
            count += 1
            following = cache.get(self.domain, writer, row.number + 1) if row.number < mine[writer] else None
            if following is not None:
                heappush(heap, (following.stamp, writer, following))
        return Gathered(
            tuple(Run(writer, rows[0].number, tuple(row.blob for row in rows)) for writer, rows in runs.items()),
            tuple(rows[-1].stamp for rows in runs.values()),
        )

    def start_read(self, read: Read) -> None:
        self.reading = read

    def commits_read(self, blobs: Sequence[bytes], bytes_max: int, now_ms: int) -> list[Gathered]:
        """The read under way is done: what of it the peer still lacks, cut into frames of about `bytes_max`."""
        read, self.reading = self.reading, None
        assert read is not None
        skip = self._position.get(read.writer, 0) + 1 - read.first
        if skip < 0:  # meanwhile the peer turned out to lack earlier ones: read again from there
            return []
        if not blobs:
            self._stall(read.writer, self.position(read.writer), lost=False, now_ms=now_ms)
            return []
        frames: list[Gathered] = []
        first, size = read.first + skip, 0
        pending: list[bytes] = []
        for blob in blobs[skip:]:
            if pending and (size + len(blob) > bytes_max or len(pending) == FRAME_COMMITS_MAX):
                frames.append(Gathered((Run(read.writer, first, tuple(pending)),), (0,)))
                first, size, pending = first + len(pending), 0, []
            pending.append(blob)
            size += len(blob)
        if pending:
            frames.append(Gathered((Run(read.writer, first, tuple(pending)),), (_stamp_of(pending[-1]),)))
        return frames

    def sent(self, gathered: Gathered, frame: int, mine: Heads) -> None:
        """What was gathered went out in frame number `frame`."""
        for run, stamp in zip(gathered.runs, gathered.stamps, strict=True):
            last = run.first + len(run.blobs) - 1
            self._position[run.writer] = last
            self._sent_in[run.writer] = frame
            self._cursor[run.writer] = stamp
            if last >= mine[run.writer]:
                self._caught_up(run.writer)

    # Time ------------------------------------------------------------------------------------------------------------

    def tick(self, now_ms: int) -> bool:
        """Let go of what is due. Returns whether there may be something to send."""
        if not self.waits:
            return False
        due = [writer for writer, hold in self._holds.items() if hold.until_ms <= now_ms]
        for writer in due:
            del self._holds[writer]
            self._released.add(writer)
        return bool(due) or any(
            stall.until_ms <= now_ms and writer in self._behind for writer, stall in self._stalls.items()
        )

    @property
    def waits(self) -> bool:
        """Whether anything is left to another source, or to a later time."""
        return bool(self._holds or self._stalls)

    def next_deadline_ms(self, now_ms: int) -> int | None:
        """When `tick` is next worth calling: a hold or a stall ends. Those that are over do not count."""
        ends = [hold.until_ms for hold in self._holds.values()]
        ends += [s.until_ms for writer, s in self._stalls.items() if writer in self._behind and s.until_ms > now_ms]
        return min(ends, default=None)


def _stamp_of(blob: bytes) -> int:
    """For the order of reads. A damaged commit is the receiver's to refuse; here it only loses its turn."""
    try:
        return decode_commit(blob).stamp
    except RemoteProtocolError:
        return 0
