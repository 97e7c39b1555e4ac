"""What several regions did that does not go together, and by which rule it is joined.

`RESOLUTIONS` is the second of the two tables (see `lifecycle`): one row per kind of conflict, with
its rule and its explanation. The rule itself is carried out by `resolve`, which asks the whole set
of facts; this module says *that* it was needed, who won, who lost, and why. Until the task is settled
more facts may still change who won, or put one conflict in another's place.

Its ids are hashes of (task, kind, discriminator), so every replica gives a conflict the same name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from crdtsync.events import (
    Inherited,
    LabelEdited,
    PriorityEdited,
    Requeued,
    TermOpened,
)
from crdtsync.history import Facts
from crdtsync.identifiers import AttemptId, EventId, TaskId, region_of
from crdtsync.task_view import AttemptState, AttemptView, Conflict, TaskView, is_same_work
from crdtsync.undoing import (
    Effect,
    Stable,
    Undo,
    continuation,
    effect_key,
    effect_root,
    inherited_effects,
    is_decided,
    is_settled,
    newest_checkpoint,
    own_effects,
    relied_on,
    undo,
)

__all__ = [
    "RESOLUTIONS",
    "Conflict",
    "ConflictKind",
    "Effect",
    "Resolution",
    "Stable",
    "Undo",
    "conflict_id",
    "continuation",
    "effect_key",
    "effect_root",
    "find_conflicts",
    "inherited_effects",
    "is_decided",
    "is_settled",
    "log_conflict",
    "lost_inputs",
    "newest_checkpoint",
    "own_effects",
    "relied_on",
    "undo",
]


class ConflictKind(StrEnum):
    #: Two attempts succeeded.
    DOUBLE_SUCCESS = "double_success"
    #: A success met a cancel whose writer had not seen it.
    SUCCESS_AGAINST_CANCEL = "success_against_cancel"
    #: A success met an expiry.
    SUCCESS_AGAINST_EXPIRY = "success_against_expiry"
    #: A success met failures that had used up what was granted.
    SUCCESS_AGAINST_DEATH = "success_against_death"
    #: Two regions opened the same term.
    TWO_TAKEOVERS = "two_takeovers"
    #: One id or key was submitted with different payloads.
    DUPLICATE_SUBMISSION = "duplicate_submission"
    #: Two regions changed one field without having seen each other's change.
    CONCURRENT_EDITS = "concurrent_edits"
    #: Regions apart used up more attempts together than were granted.
    RETRIES_EXCEEDED = "retries_exceeded"
    #: A dead task was requeued while an attempt elsewhere was about to succeed.
    REQUEUE_AGAINST_SUCCESS = "requeue_against_success"
    #: A dependent ran on a parent's result that lost.
    LOST_INPUT = "lost_input"
    #: One attempt ended more than once.
    SEVERAL_ENDS = "several_ends"
    #: Two regions ran the task at the same time.
    DOUBLE_RUN = "double_run"
    #: An attempt succeeded under a fencing token that was no longer the newest.
    FENCED_COMPLETION = "fenced_completion"
    #: Two incarnations of one node were alive. Raised from the log.
    TWO_INCARNATIONS = "two_incarnations"
    #: One writer wrote two commits under one number. Raised from the log.
    EQUIVOCATING_WRITER = "equivocating_writer"


class Resolution(NamedTuple):
    rule: str  # its name, stable: programs and metrics use it
    winner: str  # who wins, in general
    explanation: str  # `{winner}` and `{losers}` are filled in


K = ConflictKind
RESOLUTIONS: Final[Mapping[ConflictKind, Resolution]] = {
    K.DOUBLE_SUCCESS: Resolution(
        "earliest-claim",
        "the success with the earliest claim, among those that are not late",
        "The task succeeded more than once. The earliest claim wins: {winner}, over {losers}."
        " What the losing side did and the winner does not rely on is undone.",
    ),
    K.SUCCESS_AGAINST_CANCEL: Resolution(
        "cancel-policy",
        "the cancel if the task's policy is `wins`, else the success",
        "A cancel and a success were written without knowledge of each other. By the task's cancel policy"
        " {winner} wins over {losers}.",
    ),
    K.SUCCESS_AGAINST_EXPIRY: Resolution(
        "success-over-expiry",
        "the success",
        "The task's deadline was declared passed while an attempt was succeeding. The success wins: {winner}.",
    ),
    K.SUCCESS_AGAINST_DEATH: Resolution(
        "success-over-death",
        "the success",
        "What was granted was used up, and an attempt succeeded all the same. The success wins: {winner}.",
    ),
    K.TWO_TAKEOVERS: Resolution(
        "smallest-stamp-of-term",
        "the region whose event of that term has the smallest stamp",
        "Two regions took the task over at the same time. The smaller stamp owns it: {winner}, not {losers}.",
    ),
    K.DUPLICATE_SUBMISSION: Resolution(
        "earliest-submission",
        "the submission with the smallest stamp",
        "The same id or key was submitted with different payloads. The earliest counts: {winner}. {losers} is kept"
        " and has no effect; attempts that ran it lost.",
    ),
    K.CONCURRENT_EDITS: Resolution(
        "later-stamp",
        "the edit with the later stamp",
        "One field was changed in two regions that had not seen each other's change. The later one counts: {winner},"
        " not {losers}.",
    ),
    K.RETRIES_EXCEEDED: Resolution(
        "sum-counts",
        "nobody: the sum counts",
        "Regions that could not see each other used up more attempts together than were granted. The sum counts:"
        " nothing more starts.",
    ),
    K.REQUEUE_AGAINST_SUCCESS: Resolution(
        "success-over-requeue",
        "the success",
        "The task looked dead and was requeued while an attempt elsewhere was succeeding. The success wins: {winner}.",
    ),
    K.LOST_INPUT: Resolution(
        "outcome-stays",
        "the dependent's outcome stays",
        "The task ran on a result of {losers} that lost. Its outcome stays and is marked.",
    ),
    K.SEVERAL_ENDS: Resolution(
        "success-then-smallest-stamp",
        "a success beats any other end, then the smaller stamp",
        "One attempt ended more than once. {winner} counts, {losers} does not.",
    ),
    K.DOUBLE_RUN: Resolution(
        "takeover-runs-twice",
        "the outcome decides as usual",
        "Two regions had the task under way at the same time, as a takeover allows. {winner}",
    ),
    K.FENCED_COMPLETION: Resolution(
        "newest-token",
        "the attempt under the newest fencing token",
        "An attempt succeeded after the task had been claimed under a newer lease: {losers}. It never decides, and is"
        " undone unless the outcome rests on it. {winner}",
    ),
    K.TWO_INCARNATIONS: Resolution(
        "operator-decides",
        "the one that the operator keeps; both stop claiming",
        "Two incarnations of one node are alive, neither the other's ancestor: {winner} and {losers}.",
    ),
    K.EQUIVOCATING_WRITER: Resolution(
        "quarantine",
        "whichever commit was applied first, here; the writer is quarantined",
        "A writer wrote two different commits under one number: {winner} was kept, {losers} is evidence.",
    ),
}
assert RESOLUTIONS.keys() == set(ConflictKind)  # no kind is without a rule


def conflict_id(task: TaskId, kind: ConflictKind, discriminator: str) -> str:
    digest = hashlib.blake2b(digest_size=8, key=task)
    digest.update(f"{kind}\0{discriminator}".encode())
    return digest.hexdigest()


def _conflict(
    task: TaskId,
    kind: ConflictKind,
    winner: str,
    losers: Iterable[str],
    *,
    by: str = "",
    attempts: Iterable[AttemptId] = (),
    note: str = "",
) -> Conflict:
    named = tuple(losers)
    resolution = RESOLUTIONS[kind]
    detail = resolution.explanation.format(winner=winner, losers=" and ".join(named))
    if note:
        detail += " " + note
    return Conflict(conflict_id(task, kind, by), task, kind, resolution.rule, winner, named, detail, tuple(attempts))


def log_conflict(task: TaskId, kind: ConflictKind, winner: str, losers: Iterable[str], by: str) -> Conflict:
    """A conflict that the log finds, not `resolve`: two incarnations, an equivocating writer.

    It is shown in the name of `task`, or of 16 zero bytes; `by` tells it from others of its kind.
    """
    return _conflict(task, kind, winner, losers, by=by)


def find_conflicts(facts: Facts, view: TaskView) -> tuple[Conflict, ...]:
    """Every conflict that a task's own facts show. `view` is what they resolve to otherwise."""
    if view.submitted is None:
        return ()
    task = view.submitted.task
    found = [
        *_on_submissions(task, facts),
        *_on_outcome(task, facts, view),
        *_on_terms(task, facts),
        *_on_edits(task, facts),
        *_on_ends(task, facts, view),
        *_on_overlap(task, view),
    ]
    return tuple(found)


def named(attempt: AttemptView) -> str:
    return f"attempt {attempt.number} in {attempt.region}"


def _on_submissions(task: TaskId, facts: Facts) -> Iterator[Conflict]:
    (first, submitted), *others = facts.submissions
    losers = [event_id for event_id, other in others if not is_same_work(submitted, other)]
    if losers:
        ran = [a.id for a in facts.attempts if a.claim is not None and a.claim.submission in losers]
        yield _conflict(
            task,
            K.DUPLICATE_SUBMISSION,
            f"the submission {first}",
            [f"the submission {event_id}" for event_id in losers],
            attempts=ran,
        )


def _on_outcome(task: TaskId, facts: Facts, view: TaskView) -> Iterator[Conflict]:
    winner = view.attempt(view.winner) if view.winner is not None else None
    fenced = [a for a in view.attempts if a.state is AttemptState.OK and a.fenced]
    if fenced:
        text = "No success counts yet." if winner is None else f"The outcome is that of {named(winner)}."
        yield _conflict(task, K.FENCED_COMPLETION, text, map(named, fenced), attempts=[a.id for a in fenced])
    succeeded = [a for a in view.attempts if a.state is AttemptState.OK and not a.fenced]
    if winner is not None and len(succeeded) > 1:
        losing = [a for a in succeeded if a is not winner]
        yield _conflict(task, K.DOUBLE_SUCCESS, named(winner), map(named, losing), attempts=[a.id for a in losing])
    if view.cancel is not None and succeeded:
        cancel = f"the cancel by {region_of(view.cancel.id.writer)}"
        if view.cancel.wins:
            yield _conflict(
                task,
                K.SUCCESS_AGAINST_CANCEL,
                cancel,
                map(named, succeeded),
                attempts=[a.id for a in succeeded],
            )
        elif winner is not None:
            yield _conflict(task, K.SUCCESS_AGAINST_CANCEL, named(winner), [cancel])
    if winner is not None:
        if view.expired is not None:
            expiry = f"the expiry by {region_of(view.expired.writer)}"
            yield _conflict(task, K.SUCCESS_AGAINST_EXPIRY, named(winner), [expiry])
        if view.exhausted:
            yield _conflict(task, K.SUCCESS_AGAINST_DEATH, named(winner), [f"the death after {view.failures} failures"])
        for event_id, event in facts.rest:
            if type(event) is Requeued and winner.id < event_id:
                requeue = f"the requeue of death {event.death} by {region_of(event_id.writer)}"
                yield _conflict(task, K.REQUEUE_AGAINST_SUCCESS, named(winner), [requeue], by=str(event_id))
    failed = [a for a in view.attempts if a.state is AttemptState.FAILED and a.counts]
    if view.failures > view.granted and len({a.region for a in failed}) > 1:
        yield _conflict(
            task,
            K.RETRIES_EXCEEDED,
            "nobody",
            map(named, failed),
            by=str(view.granted),
            note=f"{view.failures} failed of {view.granted} granted.",
        )


def _on_terms(task: TaskId, facts: Facts) -> Iterator[Conflict]:
    by_term: dict[int, list[EventId]] = {}
    for event_id, event in facts.rest:
        if isinstance(event, TermOpened | Inherited):
            by_term.setdefault(event.term, []).append(event_id)
    for term, ids in sorted(by_term.items()):
        regions = [region_of(event_id.writer) for event_id in ids]  # in stamp order: the first owns the term
        losers = sorted(set(regions) - {regions[0]})
        if losers:
            yield _conflict(task, K.TWO_TAKEOVERS, regions[0], losers, by=str(term), note=f"It was term {term}.")


def _on_edits(task: TaskId, facts: Facts) -> Iterator[Conflict]:
    """Two edits that rest on the same earlier one were written apart: no region skips an edit that it saw."""
    fields: dict[str, dict[EventId, tuple[str, EventId | None]]] = {}
    for event_id, event in facts.rest:
        if type(event) is PriorityEdited:
            fields.setdefault("priority", {})[event_id] = (str(event.priority), event.saw)
        elif type(event) is LabelEdited:
            fields.setdefault(f"label {event.label}", {})[event_id] = (event.value, event.saw)
    for field, edits in sorted(fields.items()):
        forks: dict[EventId | None, list[EventId]] = {}
        newest: dict[EventId | None, EventId] = {}  # edit -> the latest one that rests on it
        for event_id in sorted(edits, reverse=True):
            saw = edits[event_id][1]
            forks.setdefault(saw, []).append(event_id)
            newest.setdefault(event_id, event_id)
            newest[saw] = max(newest.get(saw, event_id), newest[event_id])
        for saw, rivals in sorted(forks.items(), key=lambda item: min(item[1])):
            if len({edits[event_id][0] for event_id in rivals}) > 1:
                kept = max(rivals, key=newest.__getitem__)
                said = {
                    event_id: f"{edits[event_id][0]!r} by {region_of(event_id.writer)}" for event_id in sorted(rivals)
                }
                yield _conflict(
                    task,
                    K.CONCURRENT_EDITS,
                    said[kept],
                    [text for event_id, text in said.items() if event_id != kept],
                    by=f"{field} {saw and EventId(*saw)}",
                    note=f"The field is {field}.",
                )


def _on_ends(task: TaskId, facts: Facts, view: TaskView) -> Iterator[Conflict]:
    for attempt in facts.attempts:
        if len({(end.outcome, end.value) for _, end in attempt.ends}) > 1:
            seen = view.attempt(attempt.id)
            if seen is not None:
                others = [end.outcome for event_id, end in attempt.ends if event_id != seen.end]
                yield _conflict(
                    task,
                    K.SEVERAL_ENDS,
                    str(seen.state),
                    others,
                    by=str(attempt.id),
                    note=f"It was {named(seen)}.",
                )


def _on_overlap(task: TaskId, view: TaskView) -> Iterator[Conflict]:
    """Attempts of two regions, each claimed before the other's end, by stamps. Open ones may yet be: not told."""
    ended = [a for a in view.attempts if a.end is not None]
    if len({a.region for a in ended}) < 2 or sum(a.state is AttemptState.OK for a in ended) > 1:
        return  # two successes are told as such
    over: set[AttemptId] = set()
    under_way: list[AttemptView] = []
    for attempt in ended:  # in claim order
        under_way = [a for a in under_way if a.end is not None and a.end > attempt.id]
        beside = [a.id for a in under_way if a.region != attempt.region]
        if beside:
            over.update(beside, (attempt.id,))
        under_way.append(attempt)
    if over:
        ran = [a for a in ended if a.id in over]
        winner = view.attempt(view.winner) if view.winner is not None else None
        text = "No success came of it." if winner is None else f"The outcome is that of {named(winner)}."
        losing = [a for a in ran if winner is None or a.id != winner.id]
        yield _conflict(task, K.DOUBLE_RUN, text, map(named, losing), attempts=[a.id for a in losing])


def lost_inputs(view: TaskView, parents: Mapping[TaskId, TaskView]) -> tuple[Conflict, ...]:
    """Where the attempt that decided ran on a parent's attempt that is not that parent's winner.

    `parents` holds the views of the task's parents, as far as they are known.
    """
    winner = view.attempt(view.winner) if view.winner is not None else None
    if winner is None or view.submitted is None:
        return ()
    task = view.submitted.task
    found = []
    for parent, used in winner.inputs:
        known = parents.get(parent)
        if known is not None and (known.winner is None or not known.winner.names(used)):
            now = None if known.winner is None else known.attempt(known.winner)
            stands = "has no result now" if now is None else f"has the result of {named(now)} now"
            found.append(
                _conflict(
                    task,
                    K.LOST_INPUT,
                    f"{named(winner)} of this task",
                    [f"task {parent.hex()}"],
                    by=parent.hex(),
                    note=f"That task {stands}.",
                )
            )
    return tuple(found)
