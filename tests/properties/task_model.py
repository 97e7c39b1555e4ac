"""Small worlds in which every history is tried, over the real `resolve`, `undo` and `is_settled`.

Regions act on one task whenever `lifecycle` lets them, each by its own view; one-way syncs carry
everything that one region holds to another, acknowledgements included. After each step the world
checks what rules.md promises:

- a settled outcome never changes, nor does a decided one;
- nothing is undone that the winner did or ever relies on, as a sink that knows effect keys sees it,
  and no compensation has two contents;
- a winner only ever gives way to an earlier claim, while the submission stays; under `quorum` only to a newer token;
- under `quorum`, what a majority holds while the lease is valid is decided, where cancels lose;
- the winner ran, and inherited from, what THE submission asks for;
- at rest, what no outcome rests on is undone, once, and nothing else (a dead task keeps its ledger).

Compensations are submitted as early as each region may. `explore` walks all histories within the
bounds of a `World`; `wander` walks one at random, longer, with more regions.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from crdtsync import lifecycle, resolve, undoing
from crdtsync.events import (
    CancelRequested,
    Claimed,
    Decided,
    EffectRecorded,
    Ended,
    Expired,
    Offered,
    Options,
    Requeued,
    Submitted,
    TermOpened,
    Withdrawn,
)
from crdtsync.history import Facts
from crdtsync.identifiers import EventId, TaskId, writer_id
from crdtsync.lifecycle import Action, AttemptState, TaskState

TASK = TaskId(b"t" * 16)
NAMES = ("eu", "us", "ap")
WRITERS = [writer_id(name, "a", 1, bytes(8)) for name in NAMES]
INDEX = {writer: number for number, writer in enumerate(WRITERS)}
EFFECTS = ("hold", "charge")  # names that a handler goes through, in this order


@dataclass(frozen=True)
class World:
    """One set of bounds. `acts` names what may happen beside claims, ends and takeovers."""

    name: str
    acts: frozenset[str] = frozenset()
    regions: int = 2
    partition: str = "takeover"
    cancel: str = "loses"
    attempts: int = 2
    events: int = 6  # beyond the submissions
    syncs: int = 3
    claims: int = 3
    offsets: tuple[int, ...] = (0, 0, 0)  # how far each clock is ahead
    payloads: tuple[bytes, ...] = ()  # one submission per region, each unknown to the others at first
    cancels: tuple[str, ...] = ()  # the cancel policy of each of those
    own_inputs: bool = False  # each region uses another attempt of the parent
    grants: int = 0  # leases granted; each takes the heads of the voters, and is the only valid one


Ledger = tuple[tuple[str, bytes], ...]  # inherited effects: name -> result


class State(NamedTuple):
    logs: tuple[tuple[int, ...], ...]  # per region: its events, as numbers in the registry
    applied: tuple[tuple[int, ...], ...]  # per region: how many events of each region it has applied
    acks: tuple[tuple[tuple[int, ...], ...], ...]  # per region, of each region: what that one had applied
    undone: frozenset[tuple[Any, ...]]
    final: frozenset[tuple[Any, ...]]  # outcomes that some region called settled or decided
    events: int
    syncs: int
    lease: tuple[int, int] = (-1, 0)  # who holds it, by which token


class BrokenPromiseError(AssertionError):
    def __init__(self, what: str, story: list[str]) -> None:
        super().__init__(what + "".join(f"\n  {line}" for line in story))
        self.what = what


@dataclass
class Explorer:
    world: World
    ids: list[tuple[EventId, Any, Ledger]] = field(default_factory=list)
    known: dict[tuple[EventId, Any, Ledger], int] = field(default_factory=dict)
    views: dict[frozenset[int], tuple[Facts, resolve.TaskView]] = field(default_factory=dict)
    states: int = 0

    # What a region knows ---------------------------------------------------------------------------

    def facts(self, events: frozenset[int]) -> tuple[Facts, resolve.TaskView]:
        found = self.views.get(events)
        if found is None:
            facts = Facts()
            for number in sorted(events, key=lambda n: self.ids[n][0], reverse=len(self.views) % 2 == 0):
                facts.add(*self.ids[number][:2])
            found = self.views[events] = facts, resolve.resolve(facts)
        return found

    def seen(self, state: State, region: int) -> frozenset[int]:
        applied = state.applied[region]
        return frozenset(number for log, upto in zip(state.logs, applied, strict=True) for number in log[:upto])

    def everything(self, state: State) -> frozenset[int]:
        return frozenset(number for log in state.logs for number in log)

    def stable_vector(self, state: State, region: int) -> list[int]:
        members = range(len(state.logs))
        of = [state.applied[region] if m == region else state.acks[region][m] for m in members]
        return [min(vector[w] for vector in of) for w in members]

    # Beginning -------------------------------------------------------------------------------------

    def options(self, cancel: str) -> Options:
        world = self.world
        return Options(world.partition, world.attempts, 1, 0, 0, 2000, cancel, "undo", 0, 0, 0, ())

    def submitted(self, owner: int, payload: bytes, cancel: str) -> Submitted:
        deadline = 1 if "expire" in self.world.acts else 0
        name = NAMES[owner]
        return Submitted(
            TASK, "pay", payload, name, "q", 5, 0, deadline, "", 0, (), (), None, None, self.options(cancel)
        )

    def first(self) -> State:
        count = self.world.regions
        zero = (0,) * count
        state = State(((),) * count, (zero,) * count, ((zero,) * count,) * count, frozenset(), frozenset(), 0, 0)
        if not self.world.payloads:
            state = self.write(state, 0, self.submitted(0, b"p", self.world.cancel))
            for region in range(1, count):
                state = self.sync(state, 0, region)
        else:
            cancels = self.world.cancels or (self.world.cancel,) * count
            for region, (payload, cancel) in enumerate(zip(self.world.payloads, cancels, strict=True)):
                state = self.write(state, region, self.submitted(region, payload, cancel))
        return state._replace(events=0, syncs=0)

    # Steps -----------------------------------------------------------------------------------------

    def write(self, state: State, region: int, event: Any) -> State:
        log, seen = state.logs[region], self.seen(state, region)
        newest = max((self.ids[n][0].stamp for n in seen), default=0)
        stamp = max(newest, self.world.offsets[region]) + 1
        ledger: Ledger = ()
        if type(event) is Claimed and event.continues is not None:
            # What the handler is given; whatever the claim records, it is what the attempt relies on.
            inherited = undoing.inherited_effects(self.facts(seen)[0], event.continues)
            ledger = tuple((effect.name, effect.result) for effect in inherited)
        entry = (EventId(stamp, WRITERS[region], len(log) + 1, 0), event, ledger)
        number = self.known.get(entry)
        if number is None:
            number = self.known[entry] = len(self.ids)
            self.ids.append(entry)
        logs = _put(state.logs, region, (*log, number))
        applied = _put(state.applied, region, _put(state.applied[region], region, len(log) + 1))
        return state._replace(logs=logs, applied=applied, events=state.events + 1)

    def sync(self, state: State, giver: int, taker: int) -> State:
        applied = _put(state.applied, taker, _join(state.applied[taker], state.applied[giver]))
        acks = list(map(_join, state.acks[taker], state.acks[giver]))
        acks[giver] = _join(acks[giver], state.applied[giver])
        return state._replace(applied=applied, acks=_put(state.acks, taker, tuple(acks)), syncs=state.syncs + 1)

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        """Every next step within the bounds: what was done, and the state after it."""
        world = self.world
        if state.syncs < world.syncs:
            for giver in range(world.regions):
                for taker in range(world.regions):
                    if giver != taker:
                        after = self.sync(state, giver, taker)
                        if after.applied != state.applied or after.acks != state.acks:
                            yield f"sync {NAMES[giver]} -> {NAMES[taker]}", after
        if state.events < world.events:
            for region in range(world.regions):
                for event in self.acts(state, region):
                    yield f"{NAMES[region]}: {_told(event)}", self.write(state, region, event)

        if state.lease[1] < world.grants:
            for region in range(world.regions):
                for voter in range(world.regions):
                    if voter != region:  # the two are a majority, as there are three regions at most
                        after = self.sync(state, voter, region)._replace(syncs=state.syncs)
                        yield f"lease to {NAMES[region]}", after._replace(lease=(region, state.lease[1] + 1))

    def acts(self, state: State, region: int) -> Iterator[Any]:
        """What one region may write next, by its own view and the lifecycle."""
        holder, token = state.lease
        token = token if holder == region else 0
        facts, view = self.facts(self.seen(state, region))
        me, acts, world = NAMES[region], self.world.acts, self.world
        if view.submitted is None:
            return
        if len(view.attempts) < world.claims and lifecycle.may_claim(view, me, token=token):
            yield self.claim(facts, view, region)._replace(token=token)
        late = lifecycle.outcome_known(view)
        for attempt in view.attempts:
            if lifecycle.allowed(view, Action.SUCCEED, me, attempt=attempt.id):
                yield Ended(TASK, attempt.id, "ok", late, True, "", b"ok")
                yield Ended(TASK, attempt.id, "failed", late, True, "E", b"")
                if "reject" in acts:
                    yield Ended(TASK, attempt.id, "failed", late, False, "E", b"")
                if "lose" in acts:
                    yield Ended(TASK, attempt.id, "lost", late, True, "crash", b"")
            effects = attempt.state is AttemptState.OPEN or "late-effect" in acts
            if effects and "no-effect" not in acts and lifecycle.allowed(view, Action.EFFECT, me, attempt=attempt.id):
                done = {effect.name for effect in undoing.own_effects(attempt)}
                if attempt.continues is not None:
                    relied = frozenset(attempt.relies)
                    done |= {e.name for a in view.attempts for e in undoing.own_effects(a) if e.id in relied}
                name = next((name for name in EFFECTS if name not in done), None)
                if name is not None:
                    key = undoing.effect_key(TASK, attempt.root, name)
                    yield EffectRecorded(TASK, attempt.id, name, key, key + f" {name} by {attempt.id}".encode())
        if "cancel" in acts and lifecycle.allowed(view, Action.CANCEL, me) and self.cancels(facts, region) < 1:
            yield CancelRequested(TASK, late, "")
        if lifecycle.must_answer_cancel(view, me):
            yield CancelRequested(TASK, late, "answer")
        if lifecycle.may_open_term(view, me) and view.term < 2:
            yield TermOpened(TASK, view.term + 1, None)
        if "expire" in acts and lifecycle.may_expire(view, me):
            yield Expired(TASK, late)
        if "requeue" in acts and lifecycle.allowed(view, Action.REQUEUE, me):
            for death in view.unanswered:
                yield Requeued(TASK, death)
        if lifecycle.may_resume(view, me) and self.has_seen_withdrawal(state, region, view):
            yield TermOpened(TASK, view.term + 1, view.returning.offer)
        if self.is_held_by_majority(state, region, view) and not view.decided:
            assert view.winner is not None
            yield Decided(TASK, view.winner)
        if "offer" in acts:
            if lifecycle.allowed(view, Action.OFFER, me) and view.offer is None and view.term < 2:
                yield Offered(TASK, view.term, NAMES[(region + 1) % world.regions], "drain")
            if view.offer is not None and view.owner == me:
                yield Withdrawn(TASK, view.offer.id)
            if lifecycle.may_accept(view, me):
                yield TermOpened(TASK, view.term + 1, view.offer.id if view.offer else None)

    def cancels(self, facts: Facts, region: int) -> int:
        return sum(type(e) is CancelRequested and i.writer == WRITERS[region] for i, e in facts.rest)

    def has_seen_withdrawal(self, state: State, region: int, view: resolve.TaskView) -> bool:
        receiver = NAMES.index(view.returning.region)
        return bool(state.acks[region][receiver][region] >= view.returning.withdrawal.number)

    def claim(self, facts: Facts, view: resolve.TaskView, region: int) -> Claimed:
        inputs = ((TaskId(b"p" * 16), EventId(region, WRITERS[region], 1, 0)),) if self.world.own_inputs else ()
        continued = undoing.continuation(view, inputs)
        relies = () if continued is None else tuple(e.id for e in undoing.inherited_effects(facts, continued.id))
        assert view.submission is not None
        return Claimed(
            TASK,
            view.term,
            view.submission,
            None if continued is None else continued.id,
            continued is not None and continued.state is not AttemptState.OPEN,
            relies,
            inputs,
            0,
        )

    # What must hold --------------------------------------------------------------------------------

    def checked(self, state: State) -> State:
        """The state with what each region undoes and calls final by now. Raises BrokenPromiseError."""
        undone, final = set(state.undone), set(state.final)
        for region in range(self.world.regions):
            facts, view = self.facts(self.seen(state, region))
            if not view.attempts and view.state not in lifecycle.ENDED:
                continue
            vector = self.stable_vector(state, region)

            def stable(event_id: EventId, vector: list[int] = vector) -> bool:
                return event_id.number <= vector[INDEX[event_id.writer]]

            settled = undoing.is_settled(facts, view, stable)
            decided = undoing.is_decided(facts, view, stable)
            if settled or decided:
                final.add((str(view.state), view.winner, len(view.answered)))
            for due in undoing.undo(facts, view, settled=settled, decided=decided):
                if due.region == NAMES[region]:
                    undone.add((due.id, due.attempt, due.effects, due.result))
        if len({entry[0] for entry in undone}) != len(undone):
            raise BrokenPromiseError(
                "one compensation was submitted with two contents", [str(entry) for entry in undone]
            )
        everything = self.everything(state)
        if undone or final:
            self.check_final(everything, undone, final)
        if self.world.payloads:
            self.check_payload(everything)
        self.check_rest(everything, undone)
        if len(undone) != len(state.undone) or len(final) != len(state.final):
            return state._replace(undone=frozenset(undone), final=frozenset(final))
        return state

    def is_held_by_majority(self, state: State, region: int, view: resolve.TaskView) -> bool:
        """Whether the lease's holder sees a success of its own, under this lease, that a majority has applied."""
        winner = view.attempt(view.winner) if view.winner is not None else None
        if winner is None or winner.end is None or state.lease != (region, winner.token):
            return False
        if self.world.cancel == "wins":
            return False  # somebody outside the majority may have written one (decision 0012)
        writer, number = INDEX[winner.end.writer], winner.end.number
        holding = sum(applied[writer] >= number for applied in state.applied)
        return writer == region and 2 * holding > self.world.regions

    def check_moves(self, before: State, after: State) -> None:
        """Whether the winner moved, in any region's view, otherwise than to an earlier claim."""
        for region in range(self.world.regions):
            if before.applied[region] != after.applied[region]:
                _, old = self.facts(self.seen(before, region))
                if old.winner is not None:
                    _, new = self.facts(self.seen(after, region))
                    fenced = any(a.id == old.winner and a.fenced for a in new.attempts)
                    gone = fenced or (
                        new.winner is None and (new.is_cancelled_for_good or old.submission != new.submission)
                    )
                    if not gone and (
                        new.winner is None or (new.winner > old.winner and old.submission == new.submission)
                    ):
                        raise BrokenPromiseError(f"the winner moved from {old.winner} to {new.winner}", [])

    def check_final(self, everything: frozenset[int], undone: set[Any], final: set[Any]) -> None:
        _, view = self.facts(everything)
        standing = self.standing_keys(everything, view)
        for _, attempt, effects, _ in undone:
            if attempt == view.winner:
                raise BrokenPromiseError(f"the winner {attempt} was undone", [])
            if not standing.isdisjoint(key_of(result) for _, result in effects):
                raise BrokenPromiseError(f"the winner rests on what was undone of {attempt}", [])
        for outcome, winner, answered in final:
            if outcome == TaskState.DEAD and (len(view.answered) > answered or view.cancel is not None):
                continue  # somebody's later word: a requeue, or a cancel of the dead letter
            if (str(view.state), view.winner) != (outcome, winner):
                raise BrokenPromiseError(f"final: {outcome} by {winner}; now: {view.state} by {view.winner}", [])

    def check_payload(self, everything: frozenset[int]) -> None:
        facts, view = self.facts(everything)
        if view.winner is None:
            return
        payloads = {event_id: submitted.payload for event_id, submitted in facts.submissions}
        relied = {result for _, result in self.ledger_of_winner(everything, view)}
        for attempt in view.attempts:
            used = attempt.id == view.winner or any(event.result in relied for _, event in attempt.effects)
            if used and payloads[attempt.submission] != facts.submissions[0][1].payload:
                raise BrokenPromiseError(f"the outcome rests on {attempt.id}, which ran another payload", [])

    def ledger_of_winner(self, everything: frozenset[int], view: resolve.TaskView) -> Ledger:
        for number in everything:
            event_id, event, ledger = self.ids[number]
            if event_id == view.winner and type(event) is Claimed:
                return ledger
        return ()

    def standing_keys(self, everything: frozenset[int], view: resolve.TaskView) -> set[bytes]:
        """What the outcome rests on: the winner's effects and its ledger (by what it was given, not its claim)."""
        winner = view.attempt(view.winner) if view.winner is not None else None
        if winner is None:
            return set()
        own = {event.key for _, event in winner.effects}
        return own | {key_of(result) for _, result in self.ledger_of_winner(everything, view)}

    def check_rest(self, everything: frozenset[int], undone: set[Any]) -> None:
        """If all regions heard of everything now: is all undone that should be, and no more?"""
        facts, view = self.facts(everything)
        if view.state not in lifecycle.ENDED or view.open_attempts or view.state is TaskState.DEAD:
            return
        done = set(undone)
        for due in undoing.undo(facts, view, settled=True, decided=True):
            done.add((due.id, due.attempt, due.effects, due.result))
        if len({entry[0] for entry in done}) != len(done):
            raise BrokenPromiseError("one compensation has two contents at rest", [str(entry) for entry in done])
        undone_keys = Counter(key_of(result) for entry in done for _, result in entry[2])
        results = {entry[1] for entry in done if entry[3] is not None}
        standing = self.standing_keys(everything, view)
        for attempt in view.attempts:
            for effect in undoing.own_effects(attempt):
                times = undone_keys[effect.key]
                if times != (0 if effect.key in standing else 1):
                    told = f"{effect.name} of {attempt.id} is undone {times} times"
                    raise BrokenPromiseError(f"at rest {view.state}: {told}", [])
            if attempt.state is AttemptState.OK and (attempt.id == view.winner) == (attempt.id in results):
                raise BrokenPromiseError(f"at rest {view.state}: the result of {attempt.id} is in the wrong place", [])


def explore(world: World) -> Explorer:
    """Try every history within the bounds. Raises BrokenPromiseError with the history that breaks a promise."""
    explorer = Explorer(world)
    first = explorer.checked(explorer.first())
    seen = {first}
    came_from: dict[State, tuple[State | None, str]] = {first: (None, "")}
    pending = [first]
    while pending:
        state = pending.pop()
        for told, raw in explorer.steps(state):
            try:
                explorer.check_moves(state, raw)
                after = explorer.checked(raw)
            except BrokenPromiseError as broken:
                raise BrokenPromiseError(f"{world.name}: {broken.what}", [*_story(came_from, state), told]) from None
            if after not in seen:
                seen.add(after)
                came_from[after] = (state, told)
                pending.append(after)
    explorer.states = len(seen)
    return explorer


def wander(world: World, seed: int) -> Explorer:
    """One random history within the bounds. Raises BrokenPromiseError."""
    rng = random.Random(seed)
    explorer = Explorer(world)
    state = explorer.checked(explorer.first())
    story = [f"seed {seed} in {world.name}"]
    while True:
        steps = list(explorer.steps(state))
        if not steps:
            return explorer
        syncs = [step for step in steps if step[0].startswith("sync")]
        others = [step for step in steps if not step[0].startswith("sync")]
        told, raw = rng.choice(syncs if syncs and (not others or rng.random() < 0.4) else others)
        story.append(told)
        try:
            explorer.check_moves(state, raw)
            state = explorer.checked(raw)
        except BrokenPromiseError as broken:
            raise BrokenPromiseError(f"{world.name}: {broken.what}", story) from None


def key_of(result: bytes) -> bytes:
    """The effect key, which every effect here has in front of its result."""
    return result[:16]


def _story(came_from: dict[State, tuple[State | None, str]], state: State | None) -> list[str]:
    story: list[str] = []
    while state is not None:
        state, told = came_from[state]
        if told:
            story.append(told)
    return story[::-1]


def _told(event: Any) -> str:
    parts = [f"{name}={value}" for name, value in zip(event._fields, event, strict=True) if name != "task" and value]
    return f"{type(event).__name__} {' '.join(parts)}"


def _put(items: tuple[Any, ...], at: int, item: Any) -> tuple[Any, ...]:
    return (*items[:at], item, *items[at + 1 :])


def _join(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(max, one, other))
