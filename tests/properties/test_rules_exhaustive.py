"""The rules of one task, tried in every small history, and each rule weakened to see that it is missed.

`make slow` walks the larger bounds and more seeds. The worlds and what is checked: task_model.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any
from unittest import mock

import pytest

from crdtsync import lifecycle, resolve, undoing
from crdtsync.conflicts import ConflictKind
from crdtsync.lifecycle import AttemptState, TaskState
from tests.properties import task_model
from tests.properties.task_model import BrokenPromiseError, Explorer, World, explore, wander

ACTS = frozenset({"cancel", "requeue", "reject", "lose", "late-effect", "expire"})
SMALL = [
    World("takeover", events=6, syncs=3),
    World("cancel wins", frozenset({"cancel"}), cancel="wins", events=5),
    World("cancel wins, clock of us ahead", frozenset({"cancel"}), cancel="wins", events=5, offsets=(0, 9)),
    World("cancel loses", frozenset({"cancel"}), events=5),
    World("cancel loses, clock of eu ahead", frozenset({"cancel"}), events=5, offsets=(9, 0)),
    World("expiry", frozenset({"expire", "cancel"}), events=5),
    World("deaths and requeues", frozenset({"requeue", "reject", "lose"}), attempts=1, events=5),
    World("effects after the end", frozenset({"late-effect"}), events=6, syncs=2),
    World("each region its own inputs", own_inputs=True, events=6),
    World("one id, the same payload twice", payloads=(b"p", b"p"), events=5),
    World("one id, two payloads", payloads=(b"p", b"q"), events=5, offsets=(0, 5)),
    World("two payloads and cancel policies", frozenset({"cancel"}), payloads=(b"p", b"q"), cancels=("loses", "wins"),
          events=4),
    World("wait", frozenset({"offer", "cancel", "expire"}), partition="wait", cancel="wins", events=6),
    World("wait, cancel loses", frozenset({"offer", "cancel"}), partition="wait", events=6),
    World("quorum", partition="quorum", regions=3, events=5, syncs=1, grants=2),
    World("quorum, cancel wins", frozenset({"cancel"}), partition="quorum", cancel="wins", regions=3, events=3, syncs=1,
          grants=2, offsets=(0, 9, 0)),
    World("quorum, cancel loses", frozenset({"cancel", "lose"}), partition="quorum", regions=3, events=3, syncs=1,
          grants=2),
]  # fmt: skip
RANDOM = [
    World("three regions", ACTS, regions=3, events=14, syncs=12, claims=5),
    World("three regions, skewed, cancel wins", ACTS, regions=3, cancel="wins", events=14, syncs=12, claims=5,
          offsets=(9, 0, 3)),
    World("three submissions", ACTS, regions=3, events=14, syncs=12, claims=5, payloads=(b"p", b"p", b"q"),
          cancels=("loses", "wins", "loses"), offsets=(2, 1, 0)),
    World("wait in three regions", ACTS | {"offer"}, regions=3, partition="wait", events=14, syncs=16, claims=5),
    World("deaths in three regions", frozenset({"requeue", "no-effect"}), regions=3, attempts=1, events=14, syncs=6,
          claims=5),
    World("quorum in three regions", ACTS, regions=3, partition="quorum", events=14, syncs=12, claims=5, grants=5,
          offsets=(9, 0, 3)),
    World("quorum, cancel wins", ACTS, regions=3, partition="quorum", cancel="wins", events=14, syncs=12, claims=5,
          grants=5),
    World("quorum, two payloads", frozenset({"lose"}), regions=3, partition="quorum", payloads=(b"p", b"q", b"q"),
          events=12, syncs=12, claims=5, grants=5, offsets=(2, 1, 0)),
    World("quorum, own inputs", ACTS, regions=3, partition="quorum", own_inputs=True, events=14, syncs=12, claims=5,
          grants=5),
    World("many attempts", frozenset({"no-effect"}), regions=3, events=10, syncs=16, claims=6),
]  # fmt: skip


NOT_MODELLED = {
    ConflictKind.CONCURRENT_EDITS,  # change no outcome
    ConflictKind.SEVERAL_ENDS,  # two incarnations of one node
    ConflictKind.LOST_INPUT,  # takes two tasks
    ConflictKind.TWO_INCARNATIONS,
    ConflictKind.EQUIVOCATING_WRITER,
}


def named(world: World) -> str:
    return world.name


@pytest.mark.parametrize("world", SMALL, ids=named)
def test_no_small_history_breaks_a_promise(world: World) -> None:
    assert explore(world).states > 3_000


def test_the_histories_meet_every_state_and_conflict() -> None:
    """Nothing is proved by what never happens."""
    states: set[TaskState] = set()
    kinds: set[str] = set()
    for world in RANDOM:
        for seed in range(200):
            for _, view in wander(world, seed).views.values():
                states.add(view.state)
                kinds.update(conflict.kind for conflict in view.conflicts)
    assert states == set(TaskState)
    assert kinds == set(ConflictKind) - NOT_MODELLED


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("world", SMALL, ids=named)
def test_no_larger_history_breaks_a_promise(world: World) -> None:
    assert explore(replace(world, events=world.events + 1, syncs=world.syncs + (world.regions == 2))).states > 30_000


@pytest.mark.parametrize("world", RANDOM, ids=named)
def test_no_random_history_breaks_a_promise(world: World) -> None:
    for seed in range(150):
        wander(world, seed)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("world", RANDOM, ids=named)
def test_no_history_of_many_seeds_breaks_a_promise(world: World) -> None:
    for seed in range(1_000, 21_000):
        wander(world, seed)


# Weakened rules ------------------------------------------------------------------------------------

Weaken = Callable[[pytest.MonkeyPatch], None]
WEAKENED: dict[str, tuple[Weaken, tuple[World, ...]]] = {}

TAKEOVER, WINS, LOSES, EXPIRY, DEATHS = SMALL[0], SMALL[1], SMALL[3], SMALL[5], SMALL[6]
WINS_SKEWED, LOSES_SKEWED, LATE_EFFECTS, OWN_INPUTS = SMALL[2], SMALL[4], SMALL[7], SMALL[8]
THREE_REGIONS = World("three regions", regions=3, events=14, syncs=6, claims=4, offsets=(0, 20, 10))
SAME_PAYLOAD, TWO_PAYLOADS, TWO_POLICIES, WAIT, WAIT_LOSES = SMALL[9:14]
QUORUM = World("quorum", frozenset({"lose"}), partition="quorum", regions=3, events=12, syncs=10, claims=4, grants=4)


def weakened(*worlds: World) -> Callable[[Weaken], Weaken]:
    def register(weaken: Weaken) -> Weaken:
        WEAKENED[weaken.__name__] = weaken, worlds
        return weaken

    return register


def wrap(patch: pytest.MonkeyPatch, module: ModuleType, name: str, around: Callable[..., Any]) -> None:
    """Replace a function by `around(original, *its arguments)`."""
    original = getattr(module, name)
    patch.setattr(module, name, lambda *args, **kwargs: around(original, *args, **kwargs))


@weakened(TAKEOVER)
def the_latest_claim_wins(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        resolve, "winner_of", lambda attempts: max((a.id for a in attempts if resolve.is_candidate(a)), default=None)
    )


@weakened(replace(TAKEOVER, events=7))
def the_earliest_end_wins(patch: pytest.MonkeyPatch) -> None:
    def winner_of(attempts: Any) -> Any:
        return min(((a.end, a.id) for a in attempts if resolve.is_candidate(a)), default=(None, None))[1]

    patch.setattr(resolve, "winner_of", winner_of)


@weakened(TAKEOVER)
def late_is_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(resolve, "is_candidate", lambda a: a.state is AttemptState.OK and a.counts)


@weakened(TAKEOVER)
def late_is_never_told(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lifecycle, "outcome_known", lambda _: False)


@weakened(WINS, LOSES)
def a_cancel_counts_however_late(patch: pytest.MonkeyPatch) -> None:
    def cancel_of(original: Any, facts: Any, found: Any) -> Any:
        kind = resolve.CancelRequested
        earlier = resolve._Found(found)
        earlier[kind] = [(event_id, event._replace(late=False)) for event_id, event in found[kind]]
        return original(facts, earlier)

    wrap(patch, resolve, "cancel_of", cancel_of)


@weakened(TWO_POLICIES)
def only_the_first_submission_says_whether_a_cancel_wins(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(resolve, "cancel_wins", lambda facts: facts.submissions[0][1].options.cancel == "wins")


@weakened(LOSES)
def a_losing_cancel_is_settled_at_once(patch: pytest.MonkeyPatch) -> None:
    wrap(patch, undoing, "is_settled", lambda original, f, v, s: v.state is TaskState.CANCELLED or original(f, v, s))


@weakened(replace(LOSES, events=7, syncs=2))
def a_losing_cancel_undoes_early(patch: pytest.MonkeyPatch) -> None:
    wrap(patch, undoing, "is_void", lambda original, a, view: view.cancel is not None or original(a, view))


@weakened(QUORUM)
def an_older_token_still_decides(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(resolve, "is_fenced", lambda *_: False)


@weakened(replace(QUORUM, cancel="wins", acts=ACTS))
def under_quorum_what_shares_keys_is_undone_before_all_records_are_known(patch: pytest.MonkeyPatch) -> None:
    def is_settled(original: Any, facts: Any, view: Any, stable: Any) -> bool:
        options = view.submitted.options._replace(partition="takeover")
        return bool(original(facts, view._replace(submitted=view.submitted._replace(options=options)), stable))

    wrap(patch, undoing, "is_settled", is_settled)


@weakened(replace(QUORUM, acts=frozenset({"no-effect"}), events=8, syncs=6, claims=3, grants=3))
def a_lease_is_used_before_its_holder_has_what_its_voters_have(patch: pytest.MonkeyPatch) -> None:
    def steps(original: Any, self: Explorer, state: task_model.State) -> Any:
        for told, after in original(self, state):
            if after.lease == state.lease:
                yield told, after
            else:
                yield told, state._replace(lease=after.lease)

    wrap(patch, Explorer, "steps", steps)  # type: ignore[arg-type]


@weakened(WAIT)
def under_wait_anybody_cancels(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(resolve, "_is_in_reign", lambda *_: True)


@weakened(WAIT, WAIT_LOSES)
def under_wait_an_owner_cancels_what_it_has_offered(patch: pytest.MonkeyPatch) -> None:
    def reigns_of(original: Any, facts: Any, found: Any) -> Any:
        return [(owner, opening, None) for owner, opening, _ in original(facts, found)]

    wrap(patch, resolve, "reigns_of", reigns_of)


@weakened(WAIT, replace(WAIT, events=7))
def under_wait_an_offer_taken_back_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(resolve, "returning_of", lambda *_: None)


@weakened(WAIT)
def under_wait_a_giver_resumes_unheard(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Explorer, "has_seen_withdrawal", lambda *_: True)


@weakened(replace(WAIT, events=7), replace(WAIT_LOSES, events=7))
def under_wait_a_giver_starts_what_it_offered(patch: pytest.MonkeyPatch) -> None:
    wrap(
        patch,
        lifecycle,
        "_refusal_of_claim",
        lambda original, view, *args: original(view._replace(offer=None, returning=None), *args),
    )


@weakened(TAKEOVER)
def a_success_is_settled_at_once(patch: pytest.MonkeyPatch) -> None:
    wrap(patch, undoing, "is_settled", lambda original, f, v, s: v.winner is not None or original(f, v, s))


@weakened(TAKEOVER, LOSES)
def stable_forgets_where_the_acknowledgement_was_given(patch: pytest.MonkeyPatch) -> None:
    """An acknowledgement counts as soon as it is heard of, without its giver's own commits."""

    def stable_vector(self: Explorer, state: task_model.State, region: int) -> list[int]:
        return [min(applied[writer] for applied in state.applied) for writer in range(len(state.logs))]

    patch.setattr(Explorer, "stable_vector", stable_vector)


@weakened(DEATHS, LOSES, EXPIRY)
def an_end_is_settled_by_part_of_the_facts(patch: pytest.MonkeyPatch) -> None:
    def is_settled(original: Any, facts: Any, view: Any, stable: Any) -> bool:
        some = view.state in lifecycle.ENDED and any(stable(a.end) for a in view.attempts if a.end)
        return some or original(facts, view, stable)

    wrap(patch, undoing, "is_settled", is_settled)


@weakened(DEATHS, LOSES, EXPIRY)
def an_open_attempt_does_not_keep_a_task_running(patch: pytest.MonkeyPatch) -> None:
    wrap(patch, resolve, "state_of", lambda original, **facts: original(**{**facts, "is_open": False}))
    patch.setattr(resolve.TaskView, "open_attempts", ())


@weakened(TAKEOVER)
def what_the_winner_inherited_is_undone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(undoing, "relied_on", lambda _: frozenset())


@weakened(replace(TAKEOVER, events=7))
def a_claim_does_not_record_what_it_relies_on(patch: pytest.MonkeyPatch) -> None:
    wrap(patch, Explorer, "claim", lambda original, *args: original(*args)._replace(relies=()))  # type: ignore[arg-type]


@weakened(replace(TAKEOVER, events=8, syncs=2, claims=3, attempts=3))
def a_claim_relies_only_on_the_attempt_that_it_continues(patch: pytest.MonkeyPatch) -> None:
    """Not on those which that one continued."""

    def claim(original: Any, self: Explorer, facts: Any, view: Any, region: int) -> Any:
        claimed = original(self, facts, view, region)
        return claimed._replace(relies=tuple(r for r in claimed.relies if self.is_own(facts, claimed.continues, r)))

    def is_own(self: Explorer, facts: Any, attempt: Any, effect: Any) -> bool:
        return any(event_id == effect for event_id, _ in facts.attempt(attempt).effects)

    patch.setattr(Explorer, "is_own", is_own, raising=False)
    wrap(patch, Explorer, "claim", claim)  # type: ignore[arg-type]


@weakened(THREE_REGIONS)
def a_failed_attempt_is_undone_before_the_success_is_settled(patch: pytest.MonkeyPatch) -> None:
    wrap(patch, undoing, "is_void", lambda original, a, view: view.winner is not None or original(a, view))


@weakened(THREE_REGIONS)
def early_what_the_present_winner_does_not_rely_on_is_undone(patch: pytest.MonkeyPatch) -> None:
    def undo(original: Any, facts: Any, view: Any, *, settled: bool, decided: bool) -> Any:
        return original(facts, view, settled=settled or view.winner is not None, decided=decided)

    wrap(patch, undoing, "undo", undo)


@weakened(WINS)
def an_open_attempt_is_undone(patch: pytest.MonkeyPatch) -> None:
    def undo(original: Any, facts: Any, view: Any, **known: bool) -> Any:
        closed = [a._replace(state=AttemptState.LOST) if a.state is AttemptState.OPEN else a for a in view.attempts]
        return original(facts, view._replace(attempts=tuple(closed)), **known)

    wrap(patch, undoing, "undo", undo)


@weakened(TAKEOVER)
def only_successes_are_undone(patch: pytest.MonkeyPatch) -> None:
    def undo(original: Any, facts: Any, view: Any, **known: bool) -> Any:
        return tuple(due for due in original(facts, view, **known) if due.result is not None)

    wrap(patch, undoing, "undo", undo)


@weakened(LATE_EFFECTS)
def an_effect_after_the_end_is_part_of_its_attempt(patch: pytest.MonkeyPatch) -> None:
    def own_effects(original: Any, attempt: Any) -> Any:
        return tuple(effect._replace(after_end=False) for effect in original(attempt))

    wrap(patch, undoing, "own_effects", own_effects)


@weakened(LATE_EFFECTS)
def what_the_winner_did_as_well_is_undone(patch: pytest.MonkeyPatch) -> None:
    """By a lost attempt that comes back: the sink has done it once, under one key."""
    patch.setattr(undoing, "standing_keys", lambda _: frozenset())


@weakened(World("one region", LATE_EFFECTS.acts | {"cancel"}, events=7, syncs=0, attempts=3, claims=2))
def what_two_attempts_recorded_under_one_key_is_undone_twice(patch: pytest.MonkeyPatch) -> None:
    class Everyones(dict[bytes, Any]):
        def __getitem__(self, key: bytes) -> Any:
            return mock.ANY

    patch.setattr(undoing, "first_records", lambda _: Everyones())


@weakened(EXPIRY)
def what_expired_is_left_standing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(undoing, "_UNDONE_ENTIRELY", frozenset({TaskState.CANCELLED}))


@weakened(LOSES)
def a_task_is_claimed_after_its_cancel(patch: pytest.MonkeyPatch) -> None:
    wrap(
        patch,
        lifecycle,
        "_refusal_of_claim",
        lambda original, view, *args: original(view._replace(cancel=None, asked=None), *args),
    )
    patch.setitem(lifecycle.TRANSITIONS[TaskState.CANCELLED], lifecycle.Action.CLAIM, frozenset({TaskState.CANCELLING}))


@weakened(replace(EXPIRY, events=6))
def a_task_is_claimed_after_its_expiry(patch: pytest.MonkeyPatch) -> None:
    wrap(
        patch,
        lifecycle,
        "_refusal_of_claim",
        lambda original, view, *args: original(view._replace(expired=None), *args),
    )
    patch.setitem(lifecycle.TRANSITIONS[TaskState.EXPIRED], lifecycle.Action.CLAIM, frozenset({TaskState.RUNNING}))


@weakened(DEATHS)
def a_dead_task_is_claimed(patch: pytest.MonkeyPatch) -> None:
    wrap(
        patch,
        lifecycle,
        "_refusal_of_claim",
        lambda original, view, *args: original(view._replace(deaths=0), *args),
    )
    patch.setitem(lifecycle.TRANSITIONS[TaskState.DEAD], lifecycle.Action.CLAIM, frozenset({TaskState.RUNNING}))


@weakened(TWO_PAYLOADS)
def another_payloads_attempt_wins(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(resolve, "is_same_work", lambda *_: True)


@weakened(TWO_PAYLOADS)
def another_payloads_attempt_is_continued(patch: pytest.MonkeyPatch) -> None:
    wrap(
        patch,
        undoing,
        "continuation",
        lambda original, view, inputs: original(
            view._replace(attempts=tuple(a._replace(counts=True) for a in view.attempts)), inputs
        ),
    )


@pytest.mark.parametrize("rule", WEAKENED)
def test_a_weakened_rule_is_found(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weaken, worlds = WEAKENED[rule]
    weaken(monkeypatch)
    with pytest.raises(BrokenPromiseError):
        try_all(worlds)


def try_all(worlds: tuple[World, ...]) -> None:
    for world in worlds:
        if world.regions == 2:
            explore(world)
        else:  # too many histories to try them all
            for seed in range(5_000):
                wander(world, seed)
