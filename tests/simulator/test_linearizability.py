"""The search agrees with whoever judged before us, and with trying every order."""

import gzip
import itertools
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.history_file import read
from simulator.linearizability import ACQUIRE, HELD, RELEASE, Action, Kind, Operation, judge, step

HISTORIES = Path(__file__).parents[3] / "shared" / "data" / "histories" / "histories.jsonl.gz"
needs_histories = pytest.mark.skipif(not HISTORIES.exists(), reason="../shared is absent")


def history(*lines):
    """`history("w1 |--|", "r2   |-|")`: one operation a line, its bar where it was open; `...` at its end: no answer."""
    operations, taken = [], itertools.count()
    edges = sorted((column, row) for row, line in enumerate(lines) for column in (line.index("|"), line.rindex("|")))
    places = {edge: next(taken) for edge in edges}
    for row, line in enumerate(lines):
        what = line.split()[0]
        numbers = [int(digit) for digit in what[1:]]
        action = {
            "r": lambda a: Action(Kind.READ, a),
            "n": lambda a: Action(Kind.DIFFERS, a),
            "w": lambda a: Action(Kind.WRITE, a),
            "c": lambda a, b: Action(Kind.CAS, a, b),
        }[what[0]](*numbers)
        first, last = places[line.index("|"), row], places[line.rindex("|"), row]
        operations.append(Operation(action, first, None if line.endswith("...") else last))
    return operations


def linearizable(*lines, initial=0):
    return judge(history(*lines), initial).linearizable


def by_trying_every_order(operations, initial):
    """Every order of every choice of those without an answer."""
    answered = [operation for operation in operations if operation.returned is not None]
    others = [operation for operation in operations if operation.returned is None]
    for size in range(len(others) + 1):
        for chosen in itertools.combinations(others, size):
            for order in itertools.permutations(answered + list(chosen)):
                if explains(order, initial):
                    return True
    return False


def explains(order, initial):
    value, latest = initial, -1
    for operation in order:
        latest = max(latest, operation.invoked)
        if operation.returned is not None and operation.returned < latest:
            return False  # it had returned before one that stands ahead of it was invoked
        value = step(value, operation.action)
        if value < 0:
            return False
    return True


# What is and what is not --------------------------------------------------------------------------


def test_a_read_may_return_either_value_while_a_write_is_open():
    assert linearizable("w1  |------|", "r0    |-|", "r1        |-|")
    assert linearizable("w1  |------|", "r1    |-|", "r1        |-|")


def test_a_value_once_read_does_not_go_back():
    assert not linearizable("w1  |----------|", "r1    |-|", "r0        |-|")


def test_a_read_after_a_write_returned_sees_it():
    assert not linearizable("w1  |--|", "r0       |--|")


def test_two_of_two_compare_and_sets_from_one_value_cannot_both_succeed():
    assert not linearizable("c01  |---|", "c02   |---|")
    assert linearizable("c01  |---|", "c12   |---|")


def test_a_compare_that_failed_tells_that_the_value_was_another():
    assert not linearizable("n0  |---|")
    assert linearizable("w1  |---|", "n0   |---|")


def test_a_write_without_an_answer_may_take_effect_late_or_never():
    assert linearizable("w1  |---|...", "r0        |-|", "r1            |-|", "r1                |-|")
    assert linearizable("w1  |---|...", "r0        |-|", "r0            |-|")
    assert not linearizable("w1  |---|...", "r0        |-|", "r1            |-|", "r0                |-|")


def test_a_write_without_an_answer_takes_effect_once():
    lines = ["w1 |-|...", "w2     |-|", "r1          |-|", "w2               |-|", "r1                    |-|"]
    assert not linearizable(*lines)
    assert linearizable(*lines, "w1 |-|...")


def test_an_open_operation_does_not_take_effect_before_it_was_invoked():
    assert not linearizable("r1  |-|", "w1      |-|...")


def test_a_mutex_is_not_acquired_twice():
    acquired = Operation(ACQUIRE, 0, 1)
    assert judge([acquired]).linearizable
    assert not judge([acquired], HELD).linearizable
    assert not judge([acquired, Operation(ACQUIRE, 2, 3)]).linearizable
    assert judge([acquired, Operation(RELEASE, 2, None), Operation(ACQUIRE, 3, 4)]).linearizable


def test_the_operation_that_nothing_explains_is_named():
    operations = history("w1  |--|", "r0       |--|", "r1              |-|")
    assert judge(operations).refuted_by == operations[1]


# Against other judges -----------------------------------------------------------------------------

VALUES = st.integers(0, 2)
ACTIONS = st.one_of(
    st.builds(Action, st.sampled_from([Kind.READ, Kind.DIFFERS, Kind.WRITE]), VALUES),
    st.builds(Action, st.just(Kind.CAS), VALUES, VALUES),
)


@st.composite
def small_histories(draw):
    actions = draw(st.lists(ACTIONS, max_size=5))
    places = draw(st.permutations(range(2 * len(actions))))
    unanswered = draw(st.lists(st.booleans(), min_size=len(actions), max_size=len(actions)))
    return [
        Operation(action, min(pair), None if lost else max(pair))
        for action, lost, pair in zip(actions, unanswered, zip(places[::2], places[1::2], strict=True), strict=True)
    ]


@settings(max_examples=200)
@given(small_histories())
def test_the_search_agrees_with_trying_every_order(operations):
    assert judge(operations).linearizable is by_trying_every_order(operations, 0)


def test_small_histories_are_of_both_kinds():
    """So that agreeing on them says something."""
    draw = random.Random(1)
    verdicts = [judge(a_real_history(draw, size=5, values=2)).linearizable for _ in range(50)]
    assert all(verdicts)
    broken = [judge(tampered(draw, a_real_history(draw, size=12, values=3))).linearizable for _ in range(200)]
    assert 20 < broken.count(False) < 200


def a_real_history(draw, *, size, values=3, lost=0.2):
    """What clients of one register see whose requests and answers are delayed at random, and sometimes lost."""
    # Each operation: sent, in effect, answered. Effects happen in the order of their times.
    times = []
    for i in range(size):  # bounded delays: what is open at once is what the problem is exponential in
        sent = i + draw.uniform(0, 3)
        effect = sent + draw.uniform(0, 2)
        times.append((effect, sent, effect + draw.uniform(0, 2)))
    value, seen = 0, []
    for _, sent, answered in sorted(times):
        kind, a, b = draw.choice("rwc"), draw.randrange(values), draw.randrange(values)
        unanswered = draw.random() < lost
        if unanswered and draw.random() < 0.5:  # the request was lost, and not the answer
            action = Action(Kind.WRITE, a) if kind != "c" else Action(Kind.CAS, a, b)
        elif kind == "r":
            action = Action(Kind.READ, value)
        elif kind == "w":
            action, value = Action(Kind.WRITE, a), a
        elif value == a:
            action, value = Action(Kind.CAS, a, b), b
        else:
            action = Action(Kind.CAS, a, b) if unanswered else Action(Kind.DIFFERS, a)
        seen.append((action, sent, None if unanswered else answered))
    moments = [(sent, "asked", i) for i, (_, sent, _) in enumerate(seen)]
    moments += [(answered, "told", i) for i, (_, _, answered) in enumerate(seen) if answered is not None]
    place = {(what, i): at for at, (_, what, i) in enumerate(sorted(moments))}
    return [Operation(action, place["asked", i], place.get(("told", i))) for i, (action, _, _) in enumerate(seen)]


def tampered(draw, operations):
    """The same, but one answer is another."""
    chosen = draw.randrange(len(operations))
    action = operations[chosen].action
    other = action._replace(a=(action.a + 1) % 3)
    return [*operations[:chosen], operations[chosen]._replace(action=other), *operations[chosen + 1 :]]


@settings(max_examples=50)
@given(st.randoms(use_true_random=False), st.integers(1, 60), st.integers(1, 4), st.sampled_from([0.0, 0.2, 0.6]))
def test_what_a_register_behind_random_delays_answered_is_linearizable(draw, size, values, lost):
    assert judge(a_real_history(draw, size=size, values=values, lost=lost)).linearizable is True


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 6))
def test_a_tampered_history_is_judged_as_by_trying_every_order(draw, size):
    operations = tampered(draw, a_real_history(draw, size=size))
    assert judge(operations).linearizable is by_trying_every_order(operations, 0)


@needs_histories
def test_every_verdict_on_real_register_and_mutex_histories_is_agreed_with():
    lines = gzip.decompress(HISTORIES.read_bytes()).splitlines()
    said = {record["id"]: record.get("linearizable") for record in map(json.loads, lines)}
    with HISTORIES.open("rb") as file:
        histories = read(file)
    judged = [entry for entry in histories if entry.model in ("cas-register", "register", "mutex")]
    assert len(judged) > 100
    differing = {
        entry.id: judgement
        for entry in judged
        if (judgement := judge(entry.operations, entry.initial)).linearizable is not said[entry.id]
    }
    assert not differing
    assert all(entry.operations is None for entry in histories if entry not in judged)


# Bounds -------------------------------------------------------------------------------------------


def hard(size):
    """Writes that are all open at once, in any order, and a read of what none of them wrote."""
    operations = [Operation(Action(Kind.WRITE, i + 1), i, 2 * size + i) for i in range(size)]
    return [*operations, Operation(Action(Kind.READ, size + 1), size, size + 1)]


def test_a_search_that_reaches_its_bound_says_so_instead_of_guessing():
    judgement = judge(hard(15), states_max=1_000)
    assert judgement.linearizable is None
    assert judgement.states == 1_001
    assert judge(hard(5)).linearizable is False


def test_a_search_asks_whether_to_give_up():
    asked = itertools.count(1)
    judgement = judge(hard(15), give_up=lambda: next(asked) == 3)
    assert judgement.linearizable is None
    assert judgement.states == 3 * 1_024


def test_hundreds_of_operations_without_an_answer_are_no_burden():
    operations, place = [], itertools.count()
    for i in range(300):
        operations.append(Operation(Action(Kind.WRITE, i % 3 + 1), next(place), None))
        operations.append(Operation(Action(Kind.READ, i % 3 + 1), next(place), next(place)))
    judgement = judge(operations)
    assert judgement.linearizable is True
    assert judgement.states < 100_000
