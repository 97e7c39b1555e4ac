"""Close and re-issue, tried in every small history, and each rule weakened to see that it is missed."""

from __future__ import annotations

import pytest

from tests.properties.reissue_model import BrokenPromiseError, Explorer, Rules

LONG = (pytest.mark.slow, pytest.mark.timeout(300))
WORLDS = [
    pytest.param((True, False), 7, id="one of two clocks breaks"),
    pytest.param((True, True), 4, id="both clocks break"),
    pytest.param((True, True), 6, id="both clocks break, longer", marks=LONG),
    pytest.param((True, True, False), 3, id="two of three clocks break", marks=LONG),
]


@pytest.mark.parametrize("breaks, events", WORLDS)
def test_no_small_history_of_close_and_reissue_breaks_a_promise(breaks, events) -> None:
    assert Explorer(Rules(), breaks, events).run() > 1_000


@pytest.mark.parametrize(
    "rules, said",
    [
        pytest.param(Rules(same_fact=False), "lost", id="another fact"),
        pytest.param(Rules(undone_is_late=False), "was undone", id="undone and not late"),
        pytest.param(Rules(void_counts_for_stability=True), "was settled", id="void commits count for stability"),
        pytest.param(Rules(late_judged_again=True), "was undone", id="late judged again", marks=LONG),
    ],
)
def test_each_rule_of_it_is_needed(rules, said) -> None:
    with pytest.raises(BrokenPromiseError, match=said):
        Explorer(rules, (True, True), 6).run()
