from __future__ import annotations

import pytest

from crdtsync.errors import RemoteProtocolError
from crdtsync.identifiers import RegionId
from crdtsync.log.heads import Heads
from crdtsync.log.stability import Ack, Heard, Stability
from tests.log_strategies import AP, EU, US, writer

EVERYTHING = Heads({EU: 99, US: 99, AP: 99})


def ack(writer, own_number=0, **heads):
    names = {"eu": EU, "us": US, "ap": AP}
    region = RegionId(writer.split("/")[0])
    return Ack(region, writer, own_number, Heads({names[name]: number for name, number in heads.items()}))


def stability(*members, applied=EVERYTHING):
    return Stability([RegionId(member) for member in members], applied)


def test_a_cluster_of_one_is_stable_with_its_own_acknowledgement():
    alone = stability("eu")
    assert alone.offer(ack(EU, 3, eu=3), 0)
    assert alone.stable() == Heads({EU: 3})


def test_nothing_is_stable_before_every_member_has_answered():
    pair = stability("eu", "us")
    pair.offer(ack(EU, 3, eu=3), 0)
    assert pair.stable() == Heads()
    assert pair.missing(EU, 3) == ["us"]


def test_what_every_member_acknowledged_is_stable():
    pair = stability("eu", "us")
    pair.offer(ack(EU, 3, eu=3, us=5), 0)
    pair.offer(ack(US, 7, eu=2, us=7), 0)
    assert pair.stable() == Heads({EU: 2, US: 5})
    assert pair.missing(EU, 3) == ["us"]
    assert pair.missing(US, 6) == ["eu"]
    assert pair.missing(EU, 2) == []


def test_an_acknowledgement_counts_only_once_its_givers_own_commits_are_applied():
    pair = stability("eu", "us", applied=Heads({EU: 1, US: 4}))
    pair.offer(ack(EU, 1, eu=1), 0)
    pair.offer(ack(US, 5, eu=1, us=5), 0)
    assert pair.stable() == Heads()
    assert pair.missing(EU, 1) == ["us"]
    assert pair.advance(Heads({EU: 1, US: 5}))
    assert pair.stable() == Heads({EU: 1})


def test_an_acknowledgement_waits_for_the_commits_of_earlier_incarnations_too():
    """They may be concurrent with what it acknowledges, and a restart does not make them known."""
    reborn = writer("us", 2)
    pair = stability("eu", "us", applied=Heads({EU: 1}))
    pair.offer(ack(EU, 1, eu=1), 0)
    pair.offer(Ack(RegionId("us"), reborn, 0, Heads({EU: 1, US: 4})), 0)
    assert pair.stable() == Heads()
    pair.advance(Heads({EU: 1, US: 4}))
    assert pair.stable() == Heads({EU: 1})


def test_a_member_that_writes_without_pause_cannot_keep_its_acknowledgements_from_counting():
    pair = stability("eu", "us", applied=Heads({EU: 9}))
    pair.offer(ack(EU, 0, eu=9), 0)
    for number in range(1, 9):
        pair.offer(ack(US, number, eu=number), 0)
        pair.advance(Heads({EU: 9, US: number - 1}))  # always one behind
    assert pair.stable()[EU] >= 1


def test_the_latest_pending_acknowledgement_counts_when_it_can():
    pair = stability("eu", "us", applied=Heads({EU: 9}))
    pair.offer(ack(EU, 0, eu=9), 0)
    for number in range(1, 9):
        pair.offer(ack(US, number, eu=number), 0)
    pair.advance(Heads({EU: 9, US: 8}))
    assert pair.stable() == Heads({EU: 8})


def test_an_incarnation_whose_end_was_lost_does_not_block_its_successor():
    reborn = writer("us", 2)
    pair = stability("eu", "us", applied=Heads({EU: 9}))
    pair.offer(ack(EU, 0, eu=9), 0)
    pair.offer(ack(US, 5, eu=5), 0)  # its commits up to 5 were lost with the disk
    pair.offer(ack(reborn, 1, eu=6), 0)
    pair.offer(ack(reborn, 2, eu=7), 0)
    pair.advance(Heads({EU: 9, reborn: 1}))
    assert pair.stable() == Heads({EU: 6})


def test_acknowledgements_that_come_late_or_twice_are_no_news():
    pair = stability("eu", "us")
    assert pair.offer(ack(US, 5, eu=5), 0)
    assert not pair.offer(ack(US, 5, eu=5), 0)
    assert not pair.offer(ack(US, 4, eu=4), 0)
    assert not pair.offer(ack(writer("us", 0), 9, eu=9), 0)
    assert pair.offer(ack(US, 5, eu=6), 0)
    assert not pair.offer(ack(AP, 5, eu=5), 0)  # no member


def test_the_latest_acknowledgement_keeps_when_it_was_given():
    pair = stability("eu", "us", applied=Heads())
    pair.offer(ack(US, 5, eu=5), 100)
    pair.offer(ack(US, 5, eu=5), 250)  # still as it was, which is a sign of life
    pair.offer(ack(US, 5, eu=5), 200)
    assert pair.latest() == {"us": Heard(ack(US, 5, eu=5), 250)}


def test_the_stable_cut_never_goes_back():
    pair = stability("eu", "us")
    pair.offer(ack(EU, 3, eu=3), 0)
    pair.offer(ack(US, 7, eu=3), 0)
    pair.offer(ack(writer("us", 2), 0, eu=1), 0)  # an older disk
    pair.set_members([RegionId("eu"), RegionId("us"), RegionId("ap")])
    assert pair.stable() == Heads({EU: 3})
    assert pair.missing(EU, 4) == ["ap", "eu", "us"]
    pair.set_members([RegionId("eu")])
    assert pair.stable() == Heads({EU: 3})


def test_an_acknowledgement_survives_the_wire():
    given = ack(US, 5, eu=5, ap=2)
    assert Ack.from_wire(given.to_wire()) == given


@pytest.mark.parametrize(
    "plain",
    [None, (), ("us", US, 1), ("eu", US, 1, ()), ("us", "us", 1, ()), ("us", US, -1, ()), ("us", US, 1, ((US, 0),))],
)
def test_an_acknowledgement_that_makes_no_sense_is_refused(plain):
    with pytest.raises(RemoteProtocolError):
        Ack.from_wire(plain)
