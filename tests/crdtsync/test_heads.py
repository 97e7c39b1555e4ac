from __future__ import annotations

import pytest

from crdtsync.errors import RemoteProtocolError
from crdtsync.log.heads import NUMBER_MAX, Heads, RunningHeads, Span
from tests.log_strategies import AP, EU, US


def test_the_number_itself_is_included():
    heads = Heads({EU: 7})
    assert heads[EU] == 7
    assert heads.has(EU, 7)
    assert not heads.has(EU, 8)


def test_nothing_is_known_of_an_absent_writer():
    heads = Heads({US: 0})
    assert heads[EU] == heads.get(EU) == 0
    assert US not in heads
    assert heads == Heads()
    assert heads.has(EU, 0)


def test_lacking_names_the_missing_spans_both_ends_included():
    mine, theirs = Heads({EU: 3, US: 9}), Heads({EU: 5, US: 9, AP: 2})
    assert mine.lacking(theirs) == (Span(AP, 1, 2), Span(EU, 4, 5))
    assert theirs.lacking(mine) == ()


def test_heads_do_not_change_when_what_they_were_made_from_does():
    running = RunningHeads()
    running.advance(EU, 1)
    taken = running.frozen()
    assert running.frozen() is taken
    running.advance(EU, 2)
    assert (taken[EU], running.frozen()[EU]) == (1, 2)


def test_advanced_never_goes_back():
    heads = Heads({EU: 3})
    assert heads.advanced(EU, 2) is heads
    assert heads.advanced(EU, 4) == Heads({EU: 4})
    assert heads == Heads({EU: 3})


def test_the_count_is_of_commits():
    assert Heads({EU: 3, US: 9}).count() == 12


def test_the_wire_form_is_sorted():
    assert Heads({US: 1, AP: 2}).to_wire() == ((AP, 2), (US, 1))
    assert list(Heads({US: 1, AP: 2})) == [AP, US]


@pytest.mark.parametrize(
    "plain",
    [
        None,
        ((EU,),),
        ((EU, True),),
        ((EU, 0),),
        ((EU, -1),),
        ((EU, NUMBER_MAX + 1),),
        (("nobody", 1),),
        ((US, 1), (EU, 1)),
        ((EU, 1), (EU, 2)),
        [[EU, 1]],
    ],
)
def test_heads_that_make_no_sense_are_refused(plain):
    with pytest.raises(RemoteProtocolError):
        Heads.from_wire(plain)
