"""What a set of facts means: `resolve(facts) -> TaskView`, a pure function.

Why a function of the *set* and not a replay: events of several regions arrive in any order, and a
state machine fed in different orders ends in different states. Here merging is union and every
rule below asks the whole set, so two replicas with equal facts have equal views by construction.
What makes the answers final early enough to act upon is that the rules are *monotone*: more facts
can move the winner only to a smaller claim, and an attempt that lost once never wins again
(rules.md). Settled is Bayou's "committed" (Terry et al., SOSP 1995), without its primary.

Each rule is a function of its own, so that the tests can weaken one and see that it is missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

from crdtsync.conflicts import find_conflicts
from crdtsync.events import (
    CancelRequested,
    Claimed,
    Decided,
    Ended,
    Expired,
    Inherited,
    LabelEdited,
    Offered,
    Options,
    PriorityEdited,
    Requeued,
    Submitted,
    TaskEvent,
    TermOpened,
    Withdrawn,
)
from crdtsync.history import Facts
from crdtsync.identifiers import AttemptId, EventId, RegionId, region_of
from crdtsync.task_view import (
    AttemptState,
    AttemptView,
    CancelView,
    OfferView,
    ReturnView,
    TaskState,
    TaskView,
    is_same_work,
    view_hash,
)
from crdtsync.undoing import keeps_keys, shared_root

__all__ = ["TaskView", "resolve", "view_hash"]

PRIORITY_DEFAULT: Final = 5
UNCOUNTED_LOSSES: Final = frozenset(("drain", "stopped"))  # nobody's fault: the region asked for it

_OUTCOMES: Final = {"ok": AttemptState.OK, "failed": AttemptState.FAILED, "lost": AttemptState.LOST}
_OPEN, _OK, _FAILED, _LOST = AttemptState.OPEN, AttemptState.OK, AttemptState.FAILED, AttemptState.LOST
_region: Final = lru_cache(maxsize=8_192)(region_of)
_new: Final[Any] = tuple.__new__  # a named tuple from its fields in order, without a call in Python


def resolve(facts: Facts) -> TaskView:
    """The state of a task by its facts alone. Total: facts without a submission wait, owned by nobody."""
    submissions = facts.submissions
    if not submissions:
        return _UNKNOWN
    submission, submitted = submissions[0]
    options = submitted.options
    attempts = _attempts(facts) if facts.attempts else ()
    winner = winner_of(attempts) if attempts else None
    is_open = any(attempt.state is _OPEN for attempt in attempts)

    owner, term, term_id = submitted.owner, 0, None
    priority, labels = submitted.priority, submitted.labels
    answered: tuple[int, ...] = ()
    cancel = asked = expired = offer = returning = None
    decided = False
    if facts.rest:
        found = _sorted_out(facts)
        owner, term, term_id = owner_of(submitted, found[TermOpened])
        offer = offer_of(owner, term, found[Offered], found[Withdrawn])
        if options.partition == "wait":
            returning = returning_of(owner, term, found[Offered], found[Withdrawn])
        cancel, asked = cancel_of(facts, found)
        if cancel is not None and cancel.wins:
            winner = None
        expired = next((event_id for event_id, event in found[Expired] if not event.late), None)
        decided = any(EventId(*event.attempt) == winner for _, event in found[Decided])
        answered = tuple(sorted({event.death for _, event in found[Requeued]}))
        for _, edit in found[PriorityEdited]:
            priority = edit.priority  # sorted by stamp: the later write wins, by intent; `conflicts` shows the other
        if found[LabelEdited]:
            labels = _labels_of(submitted, found[LabelEdited])

    failures = lost = deaths = streak = 0
    failed_at = None
    if len(attempts) > 1 or (attempts and winner is None and not is_open):  # an open one alone has not failed
        failures, lost, deaths, streak, failed_at = count_failures(attempts, options)

    state = state_of(
        cancel=cancel,
        succeeded=winner is not None,
        is_open=is_open,
        expired=expired is not None,
        dead=deaths > len(answered),
    )
    view: TaskView = _new(
        TaskView,
        (state, submission, submitted, owner, term, term_id, attempts, winner, failures, lost,
         options.attempts * (1 + len(answered)), deaths, answered, streak, failed_at, priority, labels,
         cancel, asked, expired, offer, returning, decided, ()),
    )  # fmt: skip
    if facts.rest or len(attempts) > 1 or len(submissions) > 1 or (attempts and len(facts.attempts[0].ends) > 1):
        conflicts = find_conflicts(facts, view)
        if conflicts:
            view = view._replace(conflicts=conflicts)
    return view


def grown(view: TaskView, facts: Facts, event_id: EventId, event: TaskEvent) -> TaskView | None:
    """`resolve(facts)`, from the view of what they were before `event`; None where that takes `resolve`.

    For the two steps of a task that simply runs: its first claim, and the success of that. Each costs 1 us here, and
    2.8 where everything is asked again. A property test compares the two.
    """
    attempts = facts.attempts
    if facts.rest or len(facts.submissions) != 1 or len(attempts) != 1 or view.submitted is None:
        return None
    ((_, claim, effects, _, ends),) = attempts
    if claim is None or claim.token or claim.continues is not None:
        return None
    if event is claim:
        if effects or ends:
            return None
        counts = claim.submission == view.submission
        known = (1, event_id, _region(event_id.writer), claim.term, *_STILL_OPEN, (), None, event_id)
        attempt = _new(AttemptView, (*known, claim.relies, claim.inputs, claim.submission, counts, 0, False))
        state, winner = TaskState.RUNNING, None
    elif (
        type(event) is Ended and event.outcome == "ok" and not event.late and len(ends) == 1 and len(view.attempts) == 1
    ):
        before = view.attempts[0]
        if not before.counts:
            return None
        how = (_OK, False, event.retryable, event.reason, event.value, event_id)
        attempt = _new(AttemptView, (*before[:_HOW], *how, *before[_HOW + len(how) :]))
        state, winner = TaskState.SUCCEEDED, before.id
    else:
        return None
    after: TaskView = _new(TaskView, (state, *view[1:_ATTEMPTS], (attempt,), winner, *view[_ATTEMPTS + 2 :]))
    return after


_HOW: Final = AttemptView._fields.index("state")  # where it is told how an attempt ended
_ATTEMPTS: Final = TaskView._fields.index("attempts")  # the winner follows


_UNKNOWN: Final = TaskView(
    TaskState.WAITING, None, None, "", 0, None, (), None, 0, 0, 0, 0, (), 0, None, PRIORITY_DEFAULT, (),
    None, None, None, None, None, False, (),
)  # fmt: skip


# The rules -----------------------------------------------------------------------------------------


def state_of(*, cancel: CancelView | None, succeeded: bool, is_open: bool, expired: bool, dead: bool) -> TaskState:
    """The order of precedence in which one state covers another."""
    if cancel is not None and cancel.wins:
        return TaskState.CANCELLED
    if succeeded:
        return TaskState.SUCCEEDED
    if is_open:
        return TaskState.RUNNING if cancel is None else TaskState.CANCELLING
    if cancel is not None:
        return TaskState.CANCELLED
    if expired:
        return TaskState.EXPIRED
    return TaskState.DEAD if dead else TaskState.WAITING


def is_candidate(attempt: AttemptView) -> bool:
    """Whether an attempt qualifies as winner: it succeeded, not late, not fenced, at what THE submission asks for."""
    return attempt.state is _OK and not attempt.late and attempt.counts and not attempt.fenced


def newest_token(facts: Facts) -> int:
    """The newest fencing token under which the task was claimed, 0 if none was."""
    return max((claim.token for _, claim, *_ in facts.attempts if claim is not None), default=0)


def is_fenced(claim: Claimed, newest: int) -> bool:
    """Whether a claim under a newer token shut this one out.

    Whoever wrote the newer claim had not seen a success of this one, or it would not have claimed; so
    asking for the tokens is enough. Tokens only grow: what is fenced stays so.
    """
    return 0 < claim.token < newest


def winner_of(attempts: Iterable[AttemptView]) -> AttemptId | None:
    """The earliest claim among the candidates. Attempts come in claim order."""
    return next((attempt.id for attempt in attempts if is_candidate(attempt)), None)


def outcome_of(ends: Sequence[tuple[EventId, Ended]]) -> tuple[EventId, Ended]:
    """The end that counts of several: a success that is not late, any success, then the smaller stamp."""
    return min(ends, key=lambda pair: (pair[1].outcome != "ok", pair[1].outcome == "ok" and pair[1].late, pair[0]))


def owner_of(
    submitted: Submitted, terms: Sequence[tuple[EventId, TermOpened | Inherited]]
) -> tuple[str, int, EventId | None]:
    """Owner, term and what opened it: the highest term, within a term the smallest stamp."""
    if not terms:
        return submitted.owner, 0, None
    event_id, opened = min(terms, key=lambda pair: (-pair[1].term, pair[0]))
    return _region(event_id.writer), opened.term, event_id


def offer_of(
    owner: str,
    term: int,
    offers: Sequence[tuple[EventId, Offered]],
    withdrawn: Sequence[tuple[EventId, Withdrawn]],
) -> OfferView | None:
    """The owner's newest offer of the current term, unless it was taken back. Taken up, it opened a new term."""
    current = [
        (event_id, offer) for event_id, offer in offers if offer.term == term and _region(event_id.writer) == owner
    ]
    if not current:
        return None
    event_id, offer = current[-1]
    if any(taken.offer == event_id for _, taken in withdrawn):
        return None
    return OfferView(event_id, RegionId(offer.region), offer.reason)


def returning_of(
    owner: str,
    term: int,
    offers: Sequence[tuple[EventId, Offered]],
    withdrawn: Sequence[tuple[EventId, Withdrawn]],
) -> ReturnView | None:
    """The offer of the current term that its giver took back, if there is one; asked under `wait` only."""
    for offer_id, offer in offers:
        if offer.term == term and _region(offer_id.writer) == owner:
            for event_id, taken in withdrawn:
                if taken.offer == offer_id:
                    return ReturnView(offer_id, event_id, RegionId(offer.region))
    return None


def cancel_wins(facts: Facts) -> bool:
    """Whether a cancel of this task wins against a success.

    Any submission that says so is enough: were it THE submission's word alone, a smaller one that
    arrives later could turn a cancel that had been acted upon into a loser (decision 0004).
    """
    return any(submitted.options.cancel == "wins" for _, submitted in facts.submissions)


def cancel_of(facts: Facts, found: _Found) -> tuple[CancelView | None, EventId | None]:
    """The first cancel that counts, and the first that its owner has yet to answer.

    A late cancel never counts. Under `wait` only the owner's does, since its word is final at once:
    from elsewhere, or while an offer of its own is out, a cancel is a request.
    """
    requests = found[CancelRequested]
    if not requests:
        return None, None
    asked = None
    if facts.submissions[0][1].options.partition == "wait":
        reigns = reigns_of(facts, found)
        final = [pair for pair in requests if _is_in_reign(pair[0], reigns)]
        answered = max((event_id for event_id, _ in final), default=None)
        asked = next((event_id for event_id, _ in requests if answered is None or event_id > answered), None)
        requests = final
    for event_id, request in requests:
        if not request.late:
            return CancelView(event_id, cancel_wins(facts), request.reason), asked
    return None, asked


def count_failures(attempts: Iterable[AttemptView], options: Options) -> tuple[int, int, int, int, EventId | None]:
    """Failures, counted losses, deaths, and the streak since the last death with its last end.

    Death k is the k-th exhaustion of what was granted, walking the ends in stamp order. The count
    of deaths never falls when facts are added: a longer walk exhausts at least as often.
    """
    failures = lost = deaths = failed_here = lost_here = 0
    failed_at = None
    ended = [(a.end, a) for a in attempts if a.end is not None and a.counts and a.state is not _OK]
    for end, attempt in sorted(ended):
        if attempt.state is _LOST:
            if attempt.reason in UNCOUNTED_LOSSES:
                continue
            lost += 1
            lost_here += 1
        else:
            failures += 1
            failed_here += 1
        failed_at = end
        final = attempt.state is _FAILED and not attempt.retryable
        if final or failed_here >= options.attempts or lost_here > options.lost_max:
            deaths += 1
            failed_here = lost_here = 0
            failed_at = None
    return failures, lost, deaths, failed_here + lost_here, failed_at


# Parts ---------------------------------------------------------------------------------------------


def _attempts(facts: Facts) -> tuple[AttemptView, ...]:
    submissions = facts.submissions
    counting = None  # the submissions whose attempts count; None while there is but one
    if len(submissions) > 1:
        counting = {event_id for event_id, submitted in submissions if is_same_work(submissions[0][1], submitted)}
    newest = newest_token(facts)
    views: list[AttemptView] = []
    for attempt in facts.attempts:
        event_id, claim, effects, _, ends = attempt
        if claim is None:
            continue
        how: tuple[Any, ...] = _STILL_OPEN
        if ends:
            end_id, end = ends[0] if len(ends) == 1 else outcome_of(ends)
            how = (_OUTCOMES.get(end.outcome, _LOST), end.late, end.retryable, end.reason, end.value, end_id)
        continues = claim.continues
        root = event_id
        if claim.token:
            root = shared_root(claim.inputs)
        elif continues is not None and keeps_keys(facts, attempt):
            root = next((view.root for view in views if view.id == continues), event_id)
        counts = claim.submission == submissions[0][0] if counting is None else claim.submission in counting
        known = (len(views) + 1, event_id, _region(event_id.writer), claim.term, *how, effects, continues, root)
        fenced = is_fenced(claim, newest)
        views.append(
            _new(AttemptView, (*known, claim.relies, claim.inputs, claim.submission, counts, claim.token, fenced))
        )
    return tuple(views)


_STILL_OPEN: Final = (_OPEN, False, True, "", b"", None)


class _Found(dict[type[Any], list[Any]]):
    """Facts by kind, each list in stamp order; empty for what does not occur."""

    def __missing__(self, kind: type[Any]) -> list[Any]:
        return []


def _sorted_out(facts: Facts) -> _Found:
    found = _Found()
    for pair in facts.rest:
        kind = type(pair[1])
        if kind is Inherited:  # a term like any other
            kind = TermOpened
        if kind in found:
            found[kind].append(pair)
        else:
            found[kind] = [pair]
    return found


def _labels_of(submitted: Submitted, edits: Iterable[tuple[EventId, LabelEdited]]) -> tuple[tuple[str, str], ...]:
    labels = dict(submitted.labels)
    for _, edit in edits:  # in stamp order, as with the priority
        labels[edit.label] = edit.value
    return tuple(sorted((label, value) for label, value in labels.items() if value))


def reigns_of(facts: Facts, found: _Found) -> list[tuple[str, EventId, EventId | None]]:
    """Who owned the task from which event until which: (region, opening, its first offer).

    With its first offer an owner's word ceases to be final, for the receiver may own the task
    already. If the offer comes to nothing, the giver opens a new term, and with it a new reign.
    """
    submission, submitted = facts.submissions[0]
    openings: dict[int, tuple[str, EventId]] = {0: (submitted.owner, submission)}
    for event_id, opened in found[TermOpened]:
        if opened.term not in openings:  # in stamp order: the smallest of each term
            openings[opened.term] = (_region(event_id.writer), event_id)
    offers = [(offer.term, _region(event_id.writer), event_id) for event_id, offer in found[Offered]]
    return [
        (owner, opening, min((e for t, giver, e in offers if t == term and giver == owner), default=None))
        for term, (owner, opening) in sorted(openings.items())
    ]


def _is_in_reign(event_id: EventId, reigns: Iterable[tuple[str, EventId, EventId | None]]) -> bool:
    region = _region(event_id.writer)
    return any(
        region == owner and event_id > opening and (offer is None or event_id < offer)
        for owner, opening, offer in reigns
    )
