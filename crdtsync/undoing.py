"""When an outcome is final, and what is undone then: the lower half of rules.md's action table.

What is undone is an attempt's *own* effects: those that it recorded, and its result if it
succeeded. An attempt that continues another one inherits that one's effects and *relies* on them as
it saw them at its claim; what the winner relies on stands. Each function asks the facts alone;
`stable`, `settled` and `decided` are what one replica knows beyond them, told by the caller.

Garcia-Molina and Salem's compensating transactions (Sagas, SIGMOD 1987), with two differences: the
unit is the attempt, and the decision is one that later merges cannot reverse.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple, TypeAlias

from crdtsync.events import Checkpointed
from crdtsync.history import AttemptFacts, Facts
from crdtsync.identifiers import AttemptId, EventId, RegionId, TaskId, WriterId, compensation_id, derived_id, region_of
from crdtsync.task_view import ENDED, AttemptState, AttemptView, TaskState, TaskView

Inputs: TypeAlias = tuple[tuple[TaskId, AttemptId], ...]
Stable = Callable[[EventId], bool]  # whether every member has the commit of this event


class Effect(NamedTuple):
    """One recorded effect. Recorded twice, it is one effect, and the first record names it."""

    id: EventId
    name: str
    key: bytes
    result: bytes
    ids: tuple[EventId, ...]  # of all its records
    after_end: bool  # recorded when its attempt had ended: undone by a compensation of its own


class Undo(NamedTuple):
    """One compensation that is due. The region that claimed the attempt submits it."""

    task: TaskId
    attempt: AttemptId
    number: int  # of the attempt, for display
    region: RegionId
    effects: tuple[tuple[str, bytes], ...]  # name -> recorded result, in the order of recording
    result: bytes | None  # of the attempt if it succeeded
    effect_key: bytes | None  # set where this undoes one effect recorded after the attempt's end
    compensate: str  # name of the task that undoes

    @property
    def id(self) -> TaskId:
        return compensation_id(self.task, self.attempt, self.effect_key)


# Final or not --------------------------------------------------------------------------------------


def is_settled(facts: Facts, view: TaskView, stable: Stable) -> bool:
    """Whether no later fact can change the outcome. Only a requeue moves on from a settled death.

    A winning cancel is settled at once. A success is when its end is stable: whatever could beat it
    was written by somebody who had not seen it, and all such commits are here. The other outcomes
    wait for all facts of the task, and for its open attempts. So does every outcome under a lease: its
    attempts share effect keys, and which of them recorded one first must be known before it is undone.
    """
    shares_keys = view.submitted is not None and view.submitted.options.exclusive
    if not shares_keys:
        if view.is_cancelled_for_good:
            return True
        if view.winner is not None:
            winner = view.attempt(view.winner)
            return winner is not None and winner.end is not None and stable(winner.end)
    if view.state not in ENDED or view.open_attempts:
        return False
    return all(stable(event_id) for event_id, _ in facts.events())


def is_decided(facts: Facts, view: TaskView, stable: Stable) -> bool:
    """Whether the outcome may be acted upon beyond the task: cascades, dead letters, hooks.

    Under `wait` the owner's own event decides: nobody else runs, cancels or expires the task. Under
    `quorum` a success is decided once a majority held it while its lease was valid (`Decided`).
    """
    if view.state not in ENDED or view.submitted is None:
        return False
    if view.is_cancelled_for_good or view.decided or view.submitted.options.partition == "wait":
        return True
    return is_settled(facts, view, stable)


# What an attempt did -------------------------------------------------------------------------------


def own_effects(attempt: AttemptView | AttemptFacts) -> tuple[Effect, ...]:
    """What an attempt recorded, each effect once, in the order of recording."""
    if not attempt.effects:
        return ()
    if isinstance(attempt, AttemptView):
        end = attempt.end
    else:
        end = attempt.ends[0][0] if attempt.ends else None
    found: dict[tuple[str, bytes], Effect] = {}
    for event_id, event in attempt.effects:
        same = found.get((event.name, event.key))
        if same is None:
            after_end = end is not None and event_id > end
            found[event.name, event.key] = Effect(event_id, event.name, event.key, event.result, (event_id,), after_end)
        else:
            found[event.name, event.key] = same._replace(ids=(*same.ids, event_id))
    return tuple(found.values())


def relied_on(view: TaskView) -> frozenset[EventId]:
    """The inherited effects on which the winner relies."""
    winner = view.attempt(view.winner) if view.winner is not None else None
    return frozenset() if winner is None else frozenset(winner.relies)


def standing_keys(view: TaskView) -> frozenset[bytes]:
    """The keys of all effects on which the outcome rests: the winner's own, and those that it relies on.

    A sink that knows keys has done each of them once, whoever recorded it. A lost worker that comes
    back and records what a retry in its region has done as well has done nothing that could be undone.
    """
    winner = view.attempt(view.winner) if view.winner is not None else None
    if winner is None:
        return frozenset()
    relied = relied_on(view)
    return frozenset(
        event.key
        for attempt in view.attempts
        for event_id, event in attempt.effects
        if attempt is winner or event_id in relied
    )


def first_records(view: TaskView) -> dict[bytes, AttemptId]:
    """Of each effect key the attempt that recorded it first: it is undone with that one, and once."""
    first: dict[bytes, tuple[EventId, AttemptId]] = {}
    for attempt in view.attempts:
        for event_id, event in attempt.effects:
            known = first.get(event.key)
            if known is None or event_id < known[0]:
                first[event.key] = (event_id, attempt.id)
    return {key: attempt for key, (_, attempt) in first.items()}


def effect_key(task: TaskId, root: AttemptId, name: str) -> bytes:
    """The key under which a sink meets an effect: the same for a retry after a crash, another one for an
    attempt that runs at the same time on the other side (rules.md, Effect key)."""
    return derived_id(b"effect", task, EventId(*root).name.encode(), name.encode())


def shared_root(inputs: tuple[tuple[TaskId, AttemptId], ...]) -> AttemptId:
    """The root of the effect keys of every attempt under a lease that has the same inputs.

    Attempts of a `quorum` task follow one another, whichever region makes them, and a new holder may
    not even have heard of the claim before it (a crash, a cut). What goes to the sink is to be known
    there all the same, so the keys derive from the task alone (decision 0012). No event has this id.
    """
    digest = hashlib.blake2b(digest_size=6)
    for task, attempt in inputs:
        digest.update(task + EventId(*attempt).name.encode())
    return EventId(0, _NOBODY, 0, int.from_bytes(digest.digest(), "big") if inputs else 0)


_NOBODY: Final = WriterId("every/holder#0-0000000000000000")


def keeps_keys(facts: Facts, attempt: AttemptFacts) -> bool:
    """Whether an attempt meets sinks under the keys of the one that it continues.

    Only where the two certainly never run beside a third that does the same: attempts of one region
    follow one another, and so do those of a `wait` task. Two regions that go on from one *ended*
    attempt on two sides of a cut must not share its keys, or undoing one undoes the other
    (decision 0005).
    """
    claim = attempt.claim
    if claim is None or claim.continues is None or not claim.continues_ended:
        return False
    if region_of(claim.continues[1]) == region_of(attempt.id.writer):
        return True
    return any(
        event_id == claim.submission and submitted.options.partition == "wait"
        for event_id, submitted in facts.submissions
    )


def chain(facts: Facts, attempt: AttemptId, *, same_keys: bool = False) -> Iterator[AttemptFacts]:
    """`attempt` and those that it continues, newest first; with `same_keys` those whose effect keys it has."""
    known = facts.attempt(attempt)
    while known is not None:
        yield known
        claim = known.claim
        if claim is None or claim.continues is None or (same_keys and not keeps_keys(facts, known)):
            return
        if claim.continues >= known.id:  # no attempt continues a later one; so no circle can be forged
            return
        known = facts.attempt(claim.continues)


def effect_root(facts: Facts, attempt: AttemptId) -> AttemptId:
    """The attempt from which the effect keys of `attempt` derive."""
    root = attempt
    for known in chain(facts, attempt, same_keys=True):
        if known.claim is not None and known.claim.token:
            return shared_root(known.claim.inputs)
        root = known.id
    return root


def continuation(view: TaskView, inputs: Inputs) -> AttemptView | None:
    """The attempt that a claim with these inputs continues: the newest one with the same, if any."""
    for attempt in reversed(view.attempts):
        if attempt.counts and same_inputs(attempt.inputs, inputs) and attempt.state is not AttemptState.OK:
            return attempt
    return None


def same_inputs(one: Inputs, other: Inputs) -> bool:
    """Whether two claims run on the same attempts of their parents, each of which may have been re-issued since."""
    return one == other or [(task, attempt[1:]) for task, attempt in one] == [(t, a[1:]) for t, a in other]


def inherited_effects(facts: Facts, continued: AttemptId) -> tuple[Effect, ...]:
    """The effects that an attempt inherits when it continues `continued` now: its ledger at the start.

    First what that one inherited itself, then what it recorded. The ids of all are what the claim
    `relies` on.
    """
    attempt = facts.attempt(continued)
    if attempt is None:
        return ()
    inherited: list[Effect] = []
    if attempt.claim is not None and attempt.claim.relies:
        relies = frozenset(attempt.claim.relies)
        for other in facts.attempts:
            inherited += [effect for effect in own_effects(other) if not relies.isdisjoint(effect.ids)]
    return (*inherited, *own_effects(attempt))


def inherited_names(facts: Facts, attempt: AttemptId) -> frozenset[str]:
    """The names of the effects that an attempt inherited: they are not its own, and not undone with it."""
    known = facts.attempt(attempt)
    if known is None or known.claim is None:
        return frozenset()
    relies = frozenset(known.claim.relies)
    effects = [effect for other in facts.attempts for effect in own_effects(other)]
    return frozenset(effect.name for effect in effects if not relies.isdisjoint(effect.ids))


def newest_checkpoint(facts: Facts, attempt: AttemptId) -> Checkpointed | None:
    """The checkpoint from which `attempt` resumes: the newest of it and of those that it continues."""
    found = []
    fenced_by: AttemptFacts | None = None
    for known in chain(facts, attempt):
        if known.checkpoint is not None and not _is_behind_fence(known, fenced_by):
            found.append(known.checkpoint)
        fenced_by = known
    return max(found, key=lambda pair: (pair[1].index, pair[0]))[1] if found else None


def _is_behind_fence(known: AttemptFacts, by: AttemptFacts | None) -> bool:
    """Whether the newest checkpoint of `known` was saved when `by` had been claimed under a newer token."""
    if by is None or by.claim is None or known.claim is None or known.checkpoint is None:
        return False
    return known.claim.token < by.claim.token and known.checkpoint[0] > by.id


# What is undone ------------------------------------------------------------------------------------


def is_compensated(facts: Facts) -> bool:
    """Whether any submission names a compensation: else nothing of the task is ever undone."""
    return any(submitted.options.compensate for _, submitted in facts.submissions)


def undo(facts: Facts, view: TaskView, *, settled: bool, decided: bool) -> tuple[Undo, ...]:
    """The compensations that are due by now, done or not. Only ever grows, as facts do.

    `settled` and `decided` are whether the caller knows the outcome as such. Under `wait` a decided
    one is enough, elsewhere the word changes nothing.
    """
    submitted = view.submitted
    if submitted is None or submitted.undoes is not None or not view.attempts:
        return ()
    if not is_compensated(facts):
        return ()
    names = {event_id: submission.options.compensate for event_id, submission in facts.submissions}
    final = settled or (decided and submitted.options.partition == "wait")
    standing, first = standing_keys(view), first_records(view)
    due: list[Undo] = []
    for attempt in view.attempts:
        name = names.get(EventId(*attempt.submission), submitted.options.compensate)
        if name and attempt.state is not AttemptState.OPEN and attempt.id != view.winner:
            if is_void(attempt, view) or (final and (view.winner is not None or view.state in _UNDONE_ENTIRELY)):
                due += _compensations(submitted.task, attempt, name, standing, first)
    return tuple(due)


# A dead task keeps its ledger for its requeue. What expired is never requeued, so it is undone like
# what was cancelled (rules.md names only the cancel; decision 0004).
_UNDONE_ENTIRELY: Final = frozenset((TaskState.CANCELLED, TaskState.EXPIRED))


def is_void(attempt: AttemptView, view: TaskView) -> bool:
    """Whether an ended attempt can be undone early: nothing that may still win can rely on it.

    The winner only moves to smaller claims, and relies on smaller claims than its own.
    """
    if view.submitted is None or view.submitted.options.exclusive:
        return False  # a newer token may yet fence the winner
    return view.is_cancelled_for_good or (view.winner is not None and view.winner < attempt.id)


def _compensations(
    task: TaskId, attempt: AttemptView, name: str, standing: frozenset[bytes], first: dict[bytes, AttemptId]
) -> Iterable[Undo]:
    own = own_effects(attempt)
    effects = [effect for effect in own if effect.key not in standing and first[effect.key] == attempt.id]
    ledger = tuple((effect.name, effect.result) for effect in effects if not effect.after_end)
    result = attempt.value if attempt.state is AttemptState.OK else None
    if ledger or result is not None:
        yield Undo(task, attempt.id, attempt.number, attempt.region, ledger, result, None, name)
    late = [effect for effect in effects if effect.after_end]
    for key in dict.fromkeys(effect.key for effect in late):
        pairs = tuple((effect.name, effect.result) for effect in late if effect.key == key)
        yield Undo(task, attempt.id, attempt.number, attempt.region, pairs, None, key, name)
