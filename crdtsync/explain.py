"""Why a task is where it is, in plain English.

`explain` uses facts alone: every replica that holds the same commits tells the same, to the letter.
`explain_local` adds what only one replica knows, each line marked as its own view.

The text is for people. Programs use `views`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from crdtsync.conflicts import lost_inputs
from crdtsync.events import CancelRequested, Inherited, Offered, Requeued, TermOpened
from crdtsync.history import Facts
from crdtsync.identifiers import EventId, TaskId, region_of
from crdtsync.reliability import next_attempt_at_ms
from crdtsync.task_view import AttemptState, AttemptView, Conflict, TaskState, TaskView
from crdtsync.undoing import own_effects, standing_keys, undo
from crdtsync.views import at, error_of, utc

ATTEMPTS_SHOWN: Final = 20  # of many, the first and the last few tell the story
PARENTS_SHOWN: Final = 10

_POLICIES: Final = {
    "wait": "Only its owner may run it (partition=wait).",
    "takeover": "If its owner falls silent, another region takes it over (partition=takeover).",
    "quorum": "It runs only under a lease from a majority of the regions (partition=quorum).",
    "quorum:task": "It runs only under a lease of its own from a majority of the regions (partition=quorum).",
}


def explain(
    task: TaskId,
    facts: Facts,
    view: TaskView,
    *,
    parents: Mapping[TaskId, TaskView] | None = None,
    compensations: Mapping[TaskId, str] | None = None,
) -> str:
    """The shared explanation.

    `parents` are the views of the tasks that this one comes after, `compensations` the states of
    those of its compensations that exist.
    """
    if view.submitted is None:
        return f"Of task {task.hex()} no submission is known here, only facts that refer to it. It waits for one."
    lines = [
        *_headline(task, facts, view),
        *_why_here(facts, view),
        *_why_waiting(view, parents or {}),
        *_attempts(view),
        *_ending(facts, view),
        *_outcome(view, parents or {}),
        *_conflicts((*view.conflicts, *lost_inputs(view, parents or {}))),
        *_left_standing(view),
        *_undone(facts, view, compensations or {}),
    ]
    return "\n".join(lines)


def explain_local(
    me: str,
    view: TaskView,
    *,
    settled: bool,
    waiting_for: str | None = None,
    missing: Iterable[str] = (),
    silent: Mapping[str, int] | None = None,
    waiting_since_ms: int | None = None,
) -> str:
    """What only region `me` can say.

    `missing` names the members whose acknowledgement stands between the outcome and its settlement,
    `silent` for how many milliseconds a region has not been heard of; the wait counts in wall time.
    """
    said: list[str] = []
    absent = sorted(missing)
    if waiting_for is not None:
        since = f" since {utc(waiting_since_ms)}" if waiting_since_ms is not None else ""
        said.append(f"it waits{since} for {waiting_for}.")
    if settled:
        said.append("the outcome is settled: no later fact can change it.")
    elif view.submitted is not None and view.state in _ENDED_WORDS:
        if absent:
            said.append(
                f"the outcome is tentative: {_list(absent)} {'has' if len(absent) == 1 else 'have'} not acknowledged"
                " all of it yet."
            )
        else:
            said.append("the outcome is tentative.")
    for region, for_ms in sorted((silent or {}).items()):
        said.append(f"nothing was heard of {region} for {for_ms / 1000:.1f} s.")
    return "\n".join(f"As {me} sees it: {text}" for text in said)


_ENDED_WORDS: Final[Mapping[TaskState, str]] = {
    TaskState.SUCCEEDED: "succeeded",
    TaskState.DEAD: "is dead",
    TaskState.EXPIRED: "has expired",
    TaskState.CANCELLED: "is cancelled",
}


# Parts ---------------------------------------------------------------------------------------------


def _headline(task: TaskId, facts: Facts, view: TaskView) -> Iterator[str]:
    submission, submitted = facts.submissions[0]
    verb = _ENDED_WORDS.get(view.state, f"is {view.state}")
    where = region_of(submission.writer)
    yield f"Task {task.hex()} ({submitted.name}) {verb}. It was submitted in {where} at {at(submission)}."
    if submitted.undoes is not None:
        undone, attempt, key = submitted.undoes
        what = "one effect of" if key else "what was done by"
        yield f"It undoes {what} an attempt of task {undone.hex()}, which {region_of(attempt[1])} had claimed."
    if submitted.linked is not None:
        yield f"It was submitted anew for task {submitted.linked.hex()}."
    if len(facts.submissions) > 1:
        others = [region_of(event_id.writer) for event_id, _ in facts.submissions[1:]]
        yield f"It was submitted {len(facts.submissions)} times, also in {_list(sorted(set(others)))}; the first counts."


def _why_here(facts: Facts, view: TaskView) -> Iterator[str]:
    submission, submitted = facts.submissions[0]
    accepted = region_of(submission.writer)
    chosen = (
        "the region that accepted it" if submitted.owner == accepted else f"chosen by {accepted}, which accepted it"
    )
    policy = _POLICIES.get(submitted.options.partition, "")
    yield f"Its owner was {submitted.owner} at first, {chosen}. {policy}".rstrip()
    offers = {event_id: event for event_id, event in facts.rest if type(event) is Offered}
    for event_id, event in facts.rest:
        if type(event) is TermOpened:
            region = region_of(event_id.writer)
            if event.offer is not None and region_of(event.offer[1]) == region:
                how = f"{region} went on with it after an offer that nobody took up"
            elif event.offer is None:
                how = f"{region} took it over, because its owner was silent to {region}"
            else:
                offer = offers.get(EventId(*event.offer))
                why = f" ({offer.reason})" if offer is not None else ""
                how = f"{region} accepted it, offered by {region_of(event.offer[1])}{why}"
            lost = "" if event_id == view.term_id or event.term != view.term else ", after another region"
            yield f"Term {event.term}: {how}, at {at(event_id)}{lost}."
        elif type(event) is Inherited:
            heir = region_of(event_id.writer)
            how = f"owner forgotten: {event.region} left the cluster in version {event.version}, and {heir} is next"
            yield f"Term {event.term}: {how}, at {at(event_id)}."
    if view.term:
        yield f"Its owner is {view.owner}, by term {view.term}."
    if view.offer is not None:
        yield f"It is offered to {view.offer.region} ({view.offer.reason}); until that answers, nobody starts it."
    elif view.returning is not None:
        to = view.returning.region
        yield f"Its offer to {to} was taken back; {view.owner} starts it once it knows that {to} has not taken it up."


def _why_waiting(view: TaskView, parents: Mapping[TaskId, TaskView]) -> Iterator[str]:
    if view.state is not TaskState.WAITING or view.submitted is None:
        return
    open_parents = []
    for parent, settled in view.submitted.after:
        known = parents.get(parent)
        if known is None:
            open_parents.append(f"{parent.hex()} (not looked up)")
        elif known.winner is None:
            open_parents.append(f"{parent.hex()} ({known.state})")
        elif settled:
            open_parents.append(f"{parent.hex()} (succeeded; it has to be settled)")
    if open_parents:
        shown = _list(open_parents[:PARENTS_SHOWN])
        more = f" and {len(open_parents) - PARENTS_SHOWN} more" if len(open_parents) > PARENTS_SHOWN else ""
        yield f"It comes after {_count(len(view.submitted.after), 'task')}; these are missing: {shown}{more}."
    elif view.submitted.after:
        yield f"It comes after {_count(len(view.submitted.after), 'task')}, and none is missing."
    if view.failed_at is not None:
        yield (
            f"After {_count(view.streak, 'attempt')} failed or lost in a row the next one starts at"
            f" {utc(next_attempt_at_ms(view))} at the earliest."
        )
    elif view.submitted.not_before_ms:
        yield f"It starts at {utc(view.submitted.not_before_ms)} at the earliest."
    if view.asked is not None:
        asker = region_of(view.asked.writer)
        yield f"{asker} asked for its cancel; its owner {view.owner} has yet to answer, and starts nothing until then."


def _attempts(view: TaskView) -> Iterator[str]:
    attempts = view.attempts
    shown = attempts
    if len(attempts) > ATTEMPTS_SHOWN:
        half = ATTEMPTS_SHOWN // 2
        shown = (*attempts[:half], *attempts[-half:])
    for attempt in shown:
        if shown is not attempts and attempt is attempts[-(ATTEMPTS_SHOWN // 2)]:
            yield f"({len(attempts) - len(shown)} more attempts.)"
        yield _attempt(view, attempt)


def _attempt(view: TaskView, attempt: AttemptView) -> str:
    under = f" under fencing token {attempt.token}" if attempt.token else ""
    began = f"Attempt {attempt.number} began in {attempt.region} at {at(attempt.id)}{under}"
    parts = [f"{began}{_why_begun(view, attempt)}"]
    if attempt.continues is not None:
        before = view.attempt(attempt.continues)
        if before is not None:
            parts.append(f"It continued attempt {before.number}{_inherited(view, attempt)}")
    if attempt.inputs:
        used = [f"{parent.hex()} (by {region_of(used[1])})" for parent, used in attempt.inputs[:PARENTS_SHOWN]]
        more = f" and {len(attempt.inputs) - PARENTS_SHOWN} more" if len(attempt.inputs) > PARENTS_SHOWN else ""
        parts.append(f"It ran on the results of {_list(used)}{more}")
    effects = own_effects(attempt)
    if effects:
        parts.append(f"It recorded {_list([effect.name for effect in effects])}")
    parts.append(_how_ended(attempt))
    if attempt.fenced:
        parts.append("A claim under a newer token has fenced it: it decides nothing")
    return ". ".join(parts) + "."


def _why_begun(view: TaskView, attempt: AttemptView) -> str:
    """Why this one was started though others had been: a retry, or a run on two sides."""
    earlier = view.attempts[: attempt.number - 1]
    running = [a for a in earlier if a.end is None or a.end > attempt.id]
    if running:
        others = _list([f"attempt {a.number} in {a.region}" for a in running])
        because = f", by term {attempt.term}" if attempt.term else ""
        return f"{because} while {others} had not ended"
    if earlier:
        last = max(earlier, key=lambda a: (a.end is not None, a.end or a.id))
        return f", after attempt {last.number} was {last.state}"
    return ""


def _inherited(view: TaskView, attempt: AttemptView) -> str:
    if not attempt.relies:
        return ""
    relies = frozenset(attempt.relies)
    names = [effect.name for a in view.attempts for effect in own_effects(a) if not relies.isdisjoint(effect.ids)]
    return f" and relies on its {_list(names)}" if names else ""


def _how_ended(attempt: AttemptView) -> str:
    if attempt.end is None:
        return "It is still open"
    moment = at(attempt.end)
    late = ", late: an outcome was known in its region by then" if attempt.late else ""
    if attempt.state is AttemptState.OK:
        return f"It succeeded at {moment}{late}"
    error, _ = error_of(attempt)
    if attempt.state is AttemptState.LOST:
        return f"It was lost at {moment} ({attempt.reason or 'no reason given'}){late}"
    kept = "" if attempt.retryable else "; such an error is not tried again"
    return f"It failed at {moment}{late}: {error}{kept}"


def _ending(facts: Facts, view: TaskView) -> Iterator[str]:
    for event_id, event in facts.rest:
        if type(event) is CancelRequested:
            why = f" ({event.reason})" if event.reason else ""
            who = f"{region_of(event_id.writer)} asked for its cancel at {at(event_id)}{why}"
            if event.late:
                yield f"{who}: too late, it had succeeded already."
            elif view.cancel is None:
                yield f"{who}: a request, which its owner answers."
            elif view.cancel.wins:
                yield f"{who}: it is cancelled for good, and whatever succeeds is undone."
            else:
                yield f"{who}: nothing new is started, but a success that is not late beats it."
        elif type(event) is Requeued:
            yield f"{region_of(event_id.writer)} requeued it after death {event.death}, at {at(event_id)}."
    if view.expired is not None:
        yield f"{region_of(view.expired.writer)} said at {at(view.expired)} that its deadline had passed."


def _outcome(view: TaskView, parents: Mapping[TaskId, TaskView]) -> Iterator[str]:
    attempts = {attempt.id: attempt for attempt in view.attempts}
    if view.winner is not None:
        winner = attempts[view.winner]
        rivals = [a for a in view.attempts if a.state is AttemptState.OK and a is not winner]
        rule = "the only success that counts" if not rivals else "the earliest claim among the successes not late"
        if any(a.fenced for a in rivals):
            rule = "it began under the newest fencing token"
        yield f"The outcome is that of attempt {winner.number} in {winner.region}: {rule}."
        if view.decided:
            yield "A majority of the regions had it while its lease was valid, so no newer claim can shut it out."
        for parent, used in winner.inputs:
            known = parents.get(parent)
            if known is not None and known.winner == used:
                yield f"The result of {parent.hex()} on which it ran still stands."
    elif view.state is TaskState.DEAD:
        yield f"{_used_up(view)} A requeue grants {_granted_per_death(view)} more."
    elif view.exhausted and view.state is TaskState.RUNNING:
        yield f"{_used_up(view)} Unless an attempt that is still open succeeds, it will be dead."


def _used_up(view: TaskView) -> str:
    final = [a for a in view.attempts if a.state is AttemptState.FAILED and not a.retryable and a.counts]
    if final and view.failures < view.granted:
        return f"Attempt {final[-1].number} failed with an error that is not tried again."
    if view.failures >= view.granted:
        return f"{_count(view.failures, 'attempt')} failed, of {view.granted} granted."
    return f"{_count(view.lost, 'attempt')} lost: that is more than it may lose."


def _granted_per_death(view: TaskView) -> str:
    return _count(view.submitted.options.attempts if view.submitted is not None else 0, "attempt")


def _conflicts(conflicts: Iterable[Conflict]) -> Iterator[str]:
    for conflict in conflicts:
        yield f"Conflict {conflict.id} ({conflict.kind}, rule {conflict.rule}): {conflict.detail}"


def _left_standing(view: TaskView) -> Iterator[str]:
    """What lost, and has nothing declared that would undo it."""
    submitted, standing = view.submitted, standing_keys(view)
    if view.winner is None or submitted is None or submitted.options.compensate or submitted.undoes is not None:
        return
    for attempt in view.attempts:
        own = [effect.name for effect in own_effects(attempt) if effect.key not in standing]
        if own and attempt.id != view.winner:
            where = f"of attempt {attempt.number} in {attempt.region}"
            yield f"Nothing {where} is undone, since no compensation is declared; it had recorded {_list(own)}."


def _undone(facts: Facts, view: TaskView, compensations: Mapping[TaskId, str]) -> Iterator[str]:
    """What the outcome as it stands has undone; what exists already is told even if it no longer follows."""
    told: set[TaskId] = set()
    settled = view.state in _ENDED_WORDS
    for due in undo(facts, view, settled=settled, decided=settled):
        told.add(due.id)
        names = [name for name, _ in due.effects]
        what = _list(names + (["the result"] if due.result is not None else []))
        of = f"of attempt {due.number} in {due.region}:"
        state = compensations.get(due.id)
        if state is None:
            yield f"To be undone {of} {what}, by {due.region} as task {due.id.hex()} ({due.compensate})."
        else:
            yield f"Undone {of} {what}, by task {due.id.hex()} ({due.compensate}, {state})."
    for other in sorted(set(compensations) - told):
        yield f"Undone before: task {other.hex()} ({compensations[other]})."


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _list(parts: Iterable[str]) -> str:
    named = list(parts)
    if len(named) < 2:
        return "".join(named)
    return f"{', '.join(named[:-1])} and {named[-1]}"
