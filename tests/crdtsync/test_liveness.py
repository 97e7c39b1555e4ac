"""Signs of life, by any path."""

from crdtsync.clock import Now, make_stamp
from crdtsync.effects import CommitRow
from crdtsync.gossip.liveness import Liveness
from crdtsync.identifiers import DEFAULT_DOMAIN, RegionId, writer_id
from crdtsync.protocol.peer_messages import Beat

EU, US, AP = RegionId("eu"), RegionId("us"), RegionId("ap")
MEMBERS = (EU, US, AP)
AP_7 = writer_id("ap", "n", 7, bytes(8))


def at(mono_ms: int) -> Now:
    return Now(1_700_000_000_000 + mono_ms, mono_ms)


def test_a_relayed_beat_is_as_old_as_it_says():
    liveness = Liveness(EU, MEMBERS)
    liveness.relayed([Beat(AP, 7, 123, 400)], at(5_000))
    assert liveness.last_heard(AP) == 4_600


def test_the_news_of_a_dead_region_does_not_get_younger_by_being_handed_around():
    """Ages leave out the time under way: relayed every second over 400 ms, they would grow by 0.2 s a second."""
    eu, us = Liveness(EU, MEMBERS), Liveness(US, MEMBERS)
    us.beat(AP_7, 1, at(1_000))
    for now_ms in range(1_000, 61_000, 1_000):
        eu.relayed(us.to_relay(EU, at(now_ms)), at(now_ms + 400))
        us.relayed(eu.to_relay(US, at(now_ms + 500)), at(now_ms + 900))
    assert us.last_heard(AP) == 1_000
    assert eu.last_heard(AP) == 1_400


def test_a_beat_of_a_new_incarnation_is_newer_whatever_its_clock_says():
    """A reboot starts the monotonic clock again."""
    liveness = Liveness(EU, MEMBERS)
    liveness.relayed([Beat(AP, 7, 999_999, 0)], at(1_000))
    liveness.relayed([Beat(AP, 8, 5, 0)], at(2_000))
    assert liveness.last_heard(AP) == 2_000
    liveness.relayed([Beat(AP, 7, 1_000_000, 0)], at(3_000))
    assert liveness.last_heard(AP) == 2_000


def test_a_commit_that_comes_late_is_no_fresh_sign_of_life():
    liveness = Liveness(EU, MEMBERS)
    written = CommitRow(DEFAULT_DOMAIN, AP_7, 1, make_stamp(at(10_000).wall_ms), b"")
    liveness.commit(written, at(70_000).wall_ms, at(70_000))
    assert liveness.last_heard(AP) == 10_000


def test_a_commit_from_a_clock_ahead_of_ours_is_no_younger_than_now():
    liveness = Liveness(EU, MEMBERS)
    liveness.commit(
        CommitRow(DEFAULT_DOMAIN, AP_7, 1, make_stamp(at(99_000).wall_ms), b""), at(1_000).wall_ms, at(1_000)
    )
    assert liveness.last_heard(AP) == 1_000


def test_signs_of_life_only_move_forward():
    liveness = Liveness(EU, MEMBERS)
    liveness.frame(AP, at(9_000))
    liveness.relayed([Beat(AP, 7, 1, 5_000)], at(9_500))
    liveness.acknowledged(AP, 8_000)
    assert liveness.last_heard(AP) == 9_000


def test_strangers_and_we_ourselves_are_not_kept_account_of():
    liveness = Liveness(EU, MEMBERS)
    liveness.relayed([Beat(RegionId("xx"), 1, 1, 0), Beat(EU, 1, 1, 0)], at(1))
    liveness.frame(EU, at(1))
    assert liveness.last_heard(RegionId("xx")) is None
    assert liveness.last_heard(EU) is None
    assert liveness.to_relay(US, at(1)) == ()


def test_nobody_is_told_about_itself():
    liveness = Liveness(EU, MEMBERS)
    liveness.beat(AP_7, 5, at(1_000))
    assert liveness.to_relay(AP, at(1_200)) == ()
    assert liveness.to_relay(US, at(1_200)) == (Beat(AP, 7, 5, 200),)
