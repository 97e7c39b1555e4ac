"""What a task's facts mean, reckoned here and not by the core: the rules of one task, written a second time.

The checkers compare this with what replicas show. It follows the text (the rules of one task, and the decisions 0004
and 0005 where they say more) and is written for reading: a list of facts in, one `Verdict` out, no memory, no speed.
Nothing of `crdtsync` that decides is imported; events and ids are the words that both speak.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from crdtsync import events as ev
from crdtsync.identifiers import EventId, region_of

COMPENSATIONS_ON: Final = ("cancelled", "expired")  # outcomes without a success that undo everything
NOBODYS_FAULT: Final = ("drain", "stopped")  # losses that are not counted


class Fact(NamedTuple):
    """One event of a task, and where it was written."""

    id: EventId
    event: Any
    node: str
    at_us: int  # true time at which its writer handed it to its disk
    seq: int  # of its commit's record


@dataclass(slots=True)
class Try:
    """One attempt, as the facts tell it."""

    id: EventId
    claim: ev.Claimed
    counts: bool  # it runs what THE submission asks for
    end: tuple[EventId, ev.Ended] | None = None  # the one that counts
    successes: list[EventId] = field(default_factory=list)  # all ends that say ok and not late
    records: list[tuple[EventId, ev.EffectRecorded]] = field(default_factory=list)
    checkpoint: tuple[int, EventId, bytes] | None = None
    fenced: bool = False  # the task was claimed under a newer token

    @property
    def region(self) -> str:
        return region_of(self.id.writer)

    @property
    def outcome(self) -> str:
        return "open" if self.end is None else self.end[1].outcome

    @property
    def may_win(self) -> bool:
        if self.end is None or self.outcome != "ok" or self.end[1].late:
            return False
        return self.counts and not self.fenced


@dataclass(slots=True)
class Verdict:
    """What is true of a task by a set of facts."""

    submission: EventId
    submitted: ev.Submitted
    state: str
    owner: str
    term: int
    tries: list[Try]
    winner: EventId | None
    failures: int
    lost: int
    deaths: int
    answered: frozenset[int]
    cancel: EventId | None  # the first that counts
    cancel_wins: bool
    asked: bool  # policy wait: the owner owes an answer to a cancel from elsewhere
    expired: EventId | None
    offers: list[tuple[EventId, ev.Offered]]  # of the current term, by its owner
    withdrawn: frozenset[EventId]
    failed_at: EventId | None
    streak: int

    @property
    def granted(self) -> int:
        return self.submitted.options.attempts * (1 + len(self.answered))

    @property
    def outcome_known(self) -> bool:
        """What `late` has to say of whatever is written now."""
        return self.winner is not None or self.cancelled_for_good

    @property
    def exclusive(self) -> bool:
        return self.submitted.options.partition.startswith("quorum")

    @property
    def cancelled_for_good(self) -> bool:
        return self.cancel is not None and self.cancel_wins

    @property
    def exhausted(self) -> bool:
        return self.deaths > len(self.answered)

    @property
    def open_tries(self) -> list[Try]:
        return [one for one in self.tries if one.end is None]

    @property
    def ended(self) -> bool:
        return self.state in ("succeeded", "dead", "cancelled", "expired")

    def attempt(self, id: EventId | None) -> Try | None:
        return next((one for one in self.tries if one.id == id), None)


def reckon(facts: Iterable[Fact]) -> Verdict | None:
    """The verdict on these facts of one task, None without a submission."""
    known = sorted({fact.id: fact for fact in facts}.values())
    by: dict[type[Any], list[tuple[EventId, Any]]] = {}
    for fact in known:
        by.setdefault(type(fact.event), []).append((fact.id, fact.event))
    submissions = by.get(ev.Submitted)
    if not submissions:
        return None
    submission, submitted = submissions[0]
    tries = _tries(by, submissions)
    opened = _openings(by)
    term = max((event.term for _, event in opened), default=0)
    opening = min((id for id, event in opened if event.term == term), default=None)
    owner = submitted.owner if opening is None else region_of(opening.writer)
    offers = [(id, o) for id, o in by.get(ev.Offered, ()) if o.term == term and region_of(id.writer) == owner]
    cancel, asked = _cancel(by, submission, submitted)
    wins = any(other.options.cancel == "wins" for _, other in submissions)
    expired = next((id for id, event in by.get(ev.Expired, ()) if not event.late), None)
    answered = frozenset(event.death for _, event in by.get(ev.Requeued, ()))
    failures, lost, deaths, streak, failed_at = _deaths(tries, submitted.options)
    winner = None
    if not (cancel is not None and wins):
        winner = min((one.id for one in tries if one.may_win), default=None)
    verdict = Verdict(
        submission, submitted, "", owner, term, tries, winner, failures, lost, deaths, answered, cancel, wins, asked,
        expired, offers, frozenset(event.offer for _, event in by.get(ev.Withdrawn, ())), failed_at, streak,
    )  # fmt: skip
    verdict.state = _state(verdict)
    return verdict


def _state(verdict: Verdict) -> str:
    if verdict.cancelled_for_good:
        return "cancelled"
    if verdict.winner is not None:
        return "succeeded"
    if verdict.open_tries:
        return "running" if verdict.cancel is None else "cancelling"
    if verdict.cancel is not None:
        return "cancelled"
    if verdict.expired is not None:
        return "expired"
    return "dead" if verdict.exhausted else "waiting"


def _tries(by: dict[type[Any], list[Any]], submissions: Sequence[tuple[EventId, ev.Submitted]]) -> list[Try]:
    first = submissions[0][1]
    same = {id for id, s in submissions if (s.name, s.payload, s.after) == (first.name, first.payload, first.after)}
    tries = {id: Try(id, claim, claim.submission in same) for id, claim in by.get(ev.Claimed, ())}
    newest = max((one.claim.token for one in tries.values()), default=0)
    for known in tries.values():
        known.fenced = known.claim.token not in (0, newest)
    for id, end in by.get(ev.Ended, ()):
        one = tries.get(EventId(*end.attempt))
        if one is None:
            continue
        if end.outcome == "ok" and not end.late:
            one.successes.append(id)
        rank = (end.outcome != "ok", end.outcome == "ok" and end.late, id)
        if one.end is None or rank < (one.end[1].outcome != "ok", one.outcome == "ok" and one.end[1].late, one.end[0]):
            one.end = (id, end)
    for id, effect in by.get(ev.EffectRecorded, ()):
        if (one := tries.get(EventId(*effect.attempt))) is not None:
            one.records.append((id, effect))
    for id, point in by.get(ev.Checkpointed, ()):
        one = tries.get(EventId(*point.attempt))
        if one is not None and (one.checkpoint is None or (point.index, id) > one.checkpoint[:2]):
            one.checkpoint = (point.index, id, point.data)
    return [tries[id] for id in sorted(tries)]


def _deaths(tries: Iterable[Try], options: ev.Options) -> tuple[int, int, int, int, EventId | None]:
    """Failures, losses that count, deaths, the streak since the last death, and when that streak's last one ended."""
    failures = lost = deaths = failed_here = lost_here = 0
    failed_at: EventId | None = None
    for end, one in sorted((one.end[0], one) for one in tries if one.end is not None and one.counts and one.outcome != "ok"):  # fmt: skip
        assert one.end is not None
        if one.outcome == "lost":
            if one.end[1].reason in NOBODYS_FAULT:
                continue
            lost, lost_here = lost + 1, lost_here + 1
        else:
            failures, failed_here = failures + 1, failed_here + 1
        failed_at = end
        at_once = one.outcome == "failed" and not one.end[1].retryable
        if at_once or failed_here >= options.attempts or lost_here > options.lost_max:
            deaths += 1
            failed_here = lost_here = 0
            failed_at = None
    return failures, lost, deaths, failed_here + lost_here, failed_at


def _cancel(
    by: dict[type[Any], list[Any]], submission: EventId, submitted: ev.Submitted
) -> tuple[EventId | None, bool]:
    requests = by.get(ev.CancelRequested, [])
    asked = False
    if submitted.options.partition == "wait":
        reigns = _reigns(by, submission, submitted)
        final = [
            (id, request)
            for id, request in requests
            if any(
                region_of(id.writer) == region and id > begins and (ends is None or id < ends)
                for region, begins, ends in reigns
            )
        ]
        last = max((id for id, _ in final), default=None)
        asked = any(last is None or id > last for id, _ in requests)
        requests = final
    return next((id for id, request in requests if not request.late), None), asked


def _openings(by: dict[type[Any], list[Any]]) -> list[tuple[EventId, Any]]:
    """Whatever opened a term, in stamp order: takeover, handover, or the end of a forgotten owner."""
    return sorted([*by.get(ev.TermOpened, ()), *by.get(ev.Inherited, ())], key=lambda pair: pair[0])


def _reigns(
    by: dict[type[Any], list[Any]], submission: EventId, submitted: ev.Submitted
) -> list[tuple[str, EventId, EventId | None]]:
    """Under `wait`: who owned from which event until its first offer."""
    openings = {0: (submitted.owner, submission)}
    for id, opened in _openings(by):
        openings.setdefault(opened.term, (region_of(id.writer), id))
    reigns = []
    for term, (region, begins) in openings.items():
        offers = [id for id, o in by.get(ev.Offered, ()) if o.term == term and region_of(id.writer) == region]
        reigns.append((region, begins, min(offers, default=None)))
    return reigns


# What is to be undone ------------------------------------------------------------------------------


class Due(NamedTuple):
    """One compensation that the facts call for. `key` is b"" unless it undoes one effect recorded after the end."""

    attempt: EventId
    key: bytes
    names: frozenset[str]
    early: bool  # permanent at once, whatever else is known


def due_compensations(verdict: Verdict, names: dict[EventId, str]) -> list[Due]:
    """What is undone once the outcome is final. `names` are the compensations that each submission asks for."""
    final = verdict.winner is not None or verdict.state in COMPENSATIONS_ON
    if verdict.submitted.undoes is not None or not final:
        return []
    standing = standing_keys(verdict)
    first: dict[bytes, tuple[EventId, EventId]] = {}
    for one in verdict.tries:
        for id, record in one.records:
            first[record.key] = min(first.get(record.key, (id, one.id)), (id, one.id))
    due = []
    for one in verdict.tries:
        wanted = names.get(EventId(*one.claim.submission), verdict.submitted.options.compensate)
        if not wanted or one.end is None or one.id == verdict.winner:
            continue
        early = verdict.cancelled_for_good or (verdict.winner is not None and verdict.winner < one.id)
        early = early and not verdict.exclusive
        own: dict[tuple[str, bytes], bool] = {}
        for id, record in sorted(one.records):
            if record.key not in standing and first[record.key][1] == one.id:
                own.setdefault((record.name, record.key), id > one.end[0])
        ledger = frozenset(name for (name, _), after in own.items() if not after)
        if ledger or one.outcome == "ok":
            due.append(Due(one.id, b"", ledger, early))
        due += [
            Due(one.id, key, frozenset(name for (name, k), after in own.items() if after and k == key), early)
            for key in sorted({key for (_, key), after in own.items() if after})
        ]
    return due


def standing_keys(verdict: Verdict) -> frozenset[bytes]:
    """The keys of the effects on which the outcome rests: the winner's own, and those that it relies on."""
    winner = verdict.attempt(verdict.winner)
    if winner is None:
        return frozenset()
    relied = {EventId(*id) for id in winner.claim.relies}
    return frozenset(record.key for one in verdict.tries for id, record in one.records if one is winner or id in relied)


def lineage(verdict: Verdict, attempt: EventId) -> list[Try]:
    """An attempt and those that it continues, newest first."""
    found: list[Try] = []
    one = verdict.attempt(attempt)
    while one is not None and one not in found:
        found.append(one)
        one = None if one.claim.continues is None else verdict.attempt(EventId(*one.claim.continues))
    return found


def edits(facts: Iterable[Fact]) -> tuple[int, dict[str, str]]:
    """Priority and labels: the later stamp of each field counts."""
    known = sorted({fact.id: fact for fact in facts}.values())
    first = next(fact.event for fact in known if type(fact.event) is ev.Submitted)
    priority, labels = first.priority, dict(first.labels)
    for fact in known:
        if type(fact.event) is ev.PriorityEdited:
            priority = fact.event.priority
        elif type(fact.event) is ev.LabelEdited:
            labels[fact.event.label] = fact.event.value
    return priority, {label: value for label, value in labels.items() if value}
