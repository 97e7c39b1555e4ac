"""What one region holds, and how it writes: shared by the parts of a `Replica`.

`write` is the only way in which this region makes a fact: it goes into the open commit and is
folded into memory at once; nobody outside hears of it before it is durable (see `outbox`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from crdtsync.clock import HybridClock, Now
from crdtsync.coordination.limits import LimitTable
from crdtsync.coordination.membership import Membership, MemberState
from crdtsync.coordination.roster import Roster
from crdtsync.documents import DocumentShelf
from crdtsync.effects import CommitRow, Effect, Notify, ReadCommits
from crdtsync.errors import CorruptLogError, DamagedTaskError, RemoteProtocolError
from crdtsync.events import (
    LIMIT_EVENTS,
    TASK_EVENTS,
    Claimed,
    Declared,
    DocumentUpdated,
    Event,
    FinalHeads,
    MembersChanged,
    Reissued,
    WriterOpened,
)
from crdtsync.identifiers import DEFAULT_DOMAIN, Domain, EventId, RegionId, TaskId, WriterId, node_of, region_of
from crdtsync.log.caps import Caps
from crdtsync.log.commit import Commit
from crdtsync.log.domain_log import DomainLog
from crdtsync.log.heads import Heads
from crdtsync.log.reissues import Reissues
from crdtsync.log.stability import Stability
from crdtsync.outbox import Outbox
from crdtsync.protocol import codec
from crdtsync.scheduling.timers import Timers
from crdtsync.settings import Settings
from crdtsync.tasks import Task, TaskTable, tasks_of

EVENTS_PER_COMMIT_MAX: Final = 1_000  # a commit is read, checked and sent as one piece
COMMIT_BYTES_MAX: Final = 2 * 2**20  # of payloads and results in one commit, roughly


class RegionState:
    """One domain's log and tasks, this region's clock and timers, and what waits for the disk."""

    def __init__(self, settings: Settings, writer: WriterId, now: Now, *, clock_bound: int = 0) -> None:
        self.settings = settings
        self.me: RegionId = settings.region
        self.writer = writer
        self.domain: Domain = DEFAULT_DOMAIN
        self.now = now
        self.started = now
        self.heard_from_ms = now.mono_ms  # since when silence of others is counted: our start, or the end of a pause
        self.stamps = True  # False while this region's clock is off: then nothing new is written (`clock_watch`)
        self.clock = HybridClock(clock_bound, max_skew_ms=settings.max_skew_ms)
        self.roster = Roster(self.me, settings.seeds, joining=settings.joining)
        self.membership = self.roster.fold(Heads())
        self.others = self.membership.others(self.me)  # asked for at every review
        self.reformed: list[Callable[[Membership], None]] = []  # told of the membership before, when it has changed
        self._roster_news = False
        self.restoring = True  # what the disk holds is being folded: nobody is capped anew before that is done
        self.log = DomainLog(self.domain, writer, max_skew_ms=settings.max_skew_ms, members=self.membership.believed)
        self.stability = Stability(self.membership.counted)
        self.reissues = Reissues()
        self.table = TaskTable(self.domain, self.reissues)
        self.documents = DocumentShelf(writer)
        self.outbox = Outbox()
        self.timers = Timers()
        self.limits = LimitTable()
        self.recalled: list[tuple[EventId, Claimed]] = []  # starts of earlier incarnations, while a rate counts them
        self.declared: dict[str, dict[RegionId, tuple[EventId, Declared]]] = {}
        self.writers: dict[WriterId, WriterOpened] = {}  # own ancestors, and what each followed
        self.alarms: dict[str, dict[str, Any]] = {}
        self.deriving = False  # rows on disk are not believed: all are being made again from the whole log
        self.commit_bytes = 0  # on disk, roughly: what history_bytes_max is compared with
        self._token = 0
        self.sealed: list[Commit] = []  # our commits since the driver's last turn, for gossip and the log's age
        self._open: list[Event] = []
        self._open_stamp = self._open_number = 0
        self._open_bytes = 0
        self.touched_by: list[tuple[WriterId, int, tuple[TaskId, ...]]] = []  # for settlement, drained by it

    @property
    def time_ms(self) -> int:
        """Real time as far as this node can tell: what delays, deadlines and retention count by.

        Like stamps it follows the monotonic clock, so a wall clock that is set to another hour moves nothing that waits.
        """
        return self.clock.physical_ms(self.now)

    # Writing -----------------------------------------------------------------------------------

    def write(self, event: Event) -> EventId:
        """Make `event` a fact of this region: folded now, durable with the next batch.

        Whoever calls it asks `stamps` first, at a point from which the decision can be made again later.
        """
        if not self.stamps:
            self.notify("warning", "clock.stamped_while_off", kind=type(event).__name__)
        if not self._open:
            self._open_stamp, self._open_number = self.clock.tick(self.now), self.log.have[self.writer] + 1
        event_id = EventId(self._open_stamp, self.writer, self._open_number, len(self._open))
        self._open.append(event)
        self.fold(event_id, event)
        for part in event:
            if type(part) is bytes:
                self._open_bytes += len(part)
        if len(self._open) >= EVENTS_PER_COMMIT_MAX or self._open_bytes >= COMMIT_BYTES_MAX:
            self.seal()
        return event_id

    def seal(self) -> None:
        """Close the open commit. Done before anything foreign is folded, so that its stamp and
        `deps` are those of its first event."""
        if not self._open:
            return
        events, self._open, self._open_bytes = tuple(self._open), [], 0
        commit = self.log.append(events, self._open_stamp)
        self.keep(commit)
        self.note(commit)
        self.sealed.append(commit)

    def keep(self, commit: Commit) -> None:
        """Have `commit` stored with the next batch."""
        self.outbox.next.commits.append(
            CommitRow(commit.domain, commit.writer, commit.number, commit.stamp, commit.blob)
        )
        self.commit_bytes += len(commit.blob)

    def note(self, commit: Commit) -> None:
        """Remember which tasks a commit touched, for the day on which it is stable."""
        # Each once, and in the order of the events: they are visited in this order.
        self.touched_by.append((commit.writer, commit.number, tasks_of(commit.events)))

    @property
    def unsaved(self) -> bool:
        return bool(self._open)

    def fold(self, event_id: EventId, event: Event) -> None:
        """Let one event, ours or foreign, take effect in memory."""
        if self.reissues:
            event_id, event = self.reissues.fact(event_id, event)
        kind = type(event)
        if kind in TASK_EVENTS:
            if event.task not in self.table.damaged:  # type: ignore[union-attr]
                self.table.add(event_id, event)  # type: ignore[arg-type]
                if kind is Claimed and self.limits.period_ms_max:
                    self._recall(event_id, event)  # type: ignore[arg-type]
        elif kind in LIMIT_EVENTS:
            shares = self.limits.fold(event_id, event)  # type: ignore[arg-type]
            if shares is not None:
                self.table.digest.replace(*shares)
        elif isinstance(event, Declared):
            known = self.declared.setdefault(event.name, {})
            region = region_of(event_id.writer)
            if region not in known or known[region][0] < event_id:
                known[region] = (event_id, event)
        elif isinstance(event, Reissued):
            if self.reissues.add(event_id, event):
                self._reissue([event])
        elif isinstance(event, DocumentUpdated):
            self.documents.apply((self.domain, event.task, event.name), event_id, event.update)
        elif isinstance(event, MembersChanged | FinalHeads):
            if self.roster.add(event_id, event):
                self.roster_changed()
        elif isinstance(event, WriterOpened) and node_of(event_id.writer) == node_of(self.writer):
            self.writers[event_id.writer] = event

    def _reissue(self, events: Iterable[Reissued]) -> None:
        """What these re-issue takes its new place: at once where it was folded before, else when it is applied."""
        self.outbox.next.meta[f"reissues/{self.domain}"] = self.reissues.export()
        for event in events:
            self.log.release(WriterId(event.closed), event.last)
            self.table.read_again(event.tasks)
            for what in ("log.far_ahead", "log.held_back"):
                self.calm(what, writer=event.closed)
        for old, new in self.limits.read_again(self.reissues.id):
            self.table.digest.replace(old, new)
        for known in self.declared.values():
            for region, (event_id, declared) in known.items():
                known[region] = (self.reissues.id(event_id), declared)
        self.recalled = [(self.reissues.id(event_id), claim) for event_id, claim in self.recalled]

    def restore_reissues(self, meta: Mapping[str, bytes]) -> None:
        """What was re-issued, as the disk knows it. Call once the log is restored, before any commit or row."""
        state = meta.get(f"reissues/{self.domain}")
        if state:
            for event in self.reissues.join(state):
                self.log.release(WriterId(event.closed), event.last)

    def join_reissues(self, state: bytes) -> None:
        """What a peer whose snapshot is adopted knows of it. Raises RemoteProtocolError."""
        news = self.reissues.join(state)
        if news:
            self._reissue(news)

    def _recall(self, event_id: EventId, event: Claimed) -> None:
        """Note a start of this region that this incarnation did not make, if a rate may still count it."""
        if region_of(event_id.writer) == self.me and event_id.writer != self.writer:
            age_ms = self.time_ms - (event_id.stamp >> 16)
            if age_ms < self.limits.period_ms_max:
                self.recalled.append((event_id, event))

    # Members -----------------------------------------------------------------------------------

    @property
    def is_member(self) -> bool:
        """Whether this region takes part: a joiner does not yet, who was forgotten does no more."""
        return self.membership.is_member(self.me)

    def restore_members(self, meta: Mapping[str, bytes]) -> None:
        """Who belongs, as the disk knows it. The configuration counts on an empty disk alone. Call before all else."""
        settings = self.settings
        if "founders" in meta:
            founders: Any = codec.decode(meta["founders"], bytes_max=MEMBERS_BYTES_MAX)
            self.roster = Roster(self.me, [RegionId(name) for name in founders])
        elif "joining" in meta or settings.joining:
            self.roster = Roster(self.me, settings.others, joining=True)
            if "joining" not in meta:
                self.outbox.next.meta["joining"] = b"\x01"
        else:
            self.outbox.next.meta["founders"] = codec.encode(tuple(sorted(settings.members)))
        if "caps" in meta:
            self.log.caps = Caps.from_wire(codec.decode(meta["caps"], bytes_max=MEMBERS_BYTES_MAX))
        if "members" in meta:
            self.roster.join(codec.decode(meta["members"], bytes_max=MEMBERS_BYTES_MAX))
        self._roster_news = True
        self.reform()
        self._roster_news = True  # once more, when it is known what is applied

    def keep_caps(self) -> None:
        """Have on disk, with the next batch, how far those are followed that are being forgotten."""
        self.outbox.next.meta["caps"] = codec.encode(self.log.caps.to_wire())

    def join_roster(self, plain: Any) -> None:
        """Learn from a peer's snapshot who belongs: the records of it may have left the log (`reform` lets it take effect).

        Raises:
            CorruptLogError: It is no such thing; nothing was learned.
        """
        try:
            self.roster.join(plain)
        except (RemoteProtocolError, TypeError, ValueError) as error:
            raise CorruptLogError(f"what a peer's snapshot tells of the members is not readable: {error}") from error
        self.roster_changed()

    def roster_changed(self) -> None:
        """Facts about who belongs were learned: on disk before what is folded counts as such."""
        self._roster_news = True
        self.outbox.next.meta["members"] = codec.encode(self.roster.to_wire())

    def reform(self) -> None:
        """Let what is applied by now take effect on who belongs. Call after each commit, before the next is applied.

        A region that is being forgotten is followed no further than it was when we learned of it, unless a remaining
        member went further; so this must not wait.
        """
        before = self.membership
        if not self._roster_news and not before.finals:
            return
        self._roster_news = False
        now = self.membership = self.roster.fold(self.log.applied)
        for region, state in now.states.items():
            if state is MemberState.LEAVING:
                self._restrain(region, now, anew=now.stamp > before.stamp)
        for region, forgotten in now.forgotten.items():
            if region not in before.forgotten:
                self.log.restrain(region, forgotten.final, final=True)
        if now == before:
            return
        self.others = now.others(self.me)
        self.log.members = now.believed
        if now.counted != before.counted:
            self.stability.set_members(now.counted)
        for told in self.reformed:
            told(before)

    def _restrain(self, region: RegionId, now: Membership, *, anew: bool) -> None:
        if region in now.finals:
            self.log.restrain(region, now.finals[region], final=True)
        elif not self.restoring and (anew or not self.log.caps.holds(region)):
            self.log.restrain(region, self.log.applied, final=False)

    def task(self, task: TaskId) -> Task | None:
        """The task, None if it certainly was never submitted. What the disk holds of it is in memory (`Loader`).

        Raises:
            DamagedTaskError: It was, and cannot be read.
        """
        if task in self.table.damaged:
            raise DamagedTaskError(
                f"task {task.hex()} is damaged on the disk of {self.me}: ask another region", task=task.hex()
            )
        held = self.table.get(task)
        return None if held is None or self.table.view(held).submission is None else held

    def declaration(self, name: str) -> Declared | None:
        """The newest declaration of a task's name by any region, or None."""
        known = self.declared.get(name)
        return max(known.values())[1] if known else None

    # Telling -----------------------------------------------------------------------------------

    def emit(self, effect: Effect) -> None:
        """Let an effect leave once everything decided so far is durable."""
        self.outbox.emit(effect, unsaved=self.unsaved)

    def urgent(self, effect: Effect) -> None:
        self.outbox.urgent(effect)

    def notify(self, level: str, what: str, **facts: Any) -> None:
        self.outbox.urgent(Notify(level, what, facts))

    def alarm(self, what: str, **facts: Any) -> None:
        """Raise an alarm once; it stays visible in the status until the node restarts."""
        key = what + repr(sorted(facts.items()))
        if key not in self.alarms and len(self.alarms) < ALARMS_MAX:
            self.alarms[key] = {"what": what, "at_ms": self.time_ms, **facts}
            self.notify("alarm", what, **facts)

    def calm(self, what: str, **facts: Any) -> None:
        """The trouble is over: its alarms of these facts are taken down, and may ring again."""
        for key, alarm in list(self.alarms.items()):
            if alarm["what"] == what and all(alarm.get(name) == value for name, value in facts.items()):
                del self.alarms[key]

    def read_commits(self, token: int, writer: WriterId, first: int) -> None:
        self.urgent(ReadCommits(token, self.domain, writer, first, READ_BYTES))

    def token(self) -> int:
        self._token += 1
        return self._token

    def stable(self, event: EventId) -> bool:
        """Whether every member has the commit of this event, and knows where it stands if it was re-issued."""
        stable = self.stability.stable()
        if self.reissues:
            return all(stable.has(*at) for at in self.reissues.rests_on(event.writer, event.number))
        return stable.has(event.writer, event.number)


ALARMS_MAX: Final = 1_000
MEMBERS_BYTES_MAX: Final = 64 << 20
READ_BYTES: Final = 1_048_576  # of the log per read
