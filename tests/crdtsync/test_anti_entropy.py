"""What a peer lacks, and in which order it is sent."""

from __future__ import annotations

import itertools

import pytest

from crdtsync.effects import CommitRow
from crdtsync.events import Expired
from crdtsync.gossip.anti_entropy import (
    CROSSING_MS,
    FRAME_COMMITS_MAX,
    TRIES_AT_ONCE,
    CommitCache,
    Feed,
    Gathered,
    Read,
)
from crdtsync.gossip.settings import GossipSettings
from crdtsync.identifiers import DEFAULT_DOMAIN, RegionId, TaskId, WriterId, writer_id
from crdtsync.log.commit import NO_HASH, seal
from crdtsync.log.heads import Heads

EU, US, AP, SA = (RegionId(name) for name in ("eu", "us", "ap", "sa"))
EU_1, US_1, AP_1 = (writer_id(region, "n", 1, bytes(8)) for region in (EU, US, AP))
SETTINGS = GossipSettings()
NO_LINKS: frozenset[RegionId] = frozenset()
LARGE = 1 << 20


def row(writer: WriterId, number: int, stamp: int | None = None, size: int = 10) -> CommitRow:
    return CommitRow(DEFAULT_DOMAIN, writer, number, number * 10 if stamp is None else stamp, bytes(size))


def cache_of(*rows: CommitRow, bytes_max: int = LARGE) -> CommitCache:
    cache = CommitCache(bytes_max)
    for each in rows:
        cache.add(each)
    return cache


def feed_to(peer: RegionId = US) -> Feed:
    return Feed(DEFAULT_DOMAIN, EU, peer, SETTINGS)


def heads(feed: Feed, theirs: Heads, mine: Heads, *, seen=0, lost=False, links=NO_LINKS, relay=True, now_ms=0) -> None:
    feed.heads(theirs, mine, seen=seen, lost=lost, links=frozenset(links), is_relay=lambda _: relay, now_ms=now_ms)


def gather(feed: Feed, cache: CommitCache, mine: Heads, *, floor=None, bytes_max=LARGE, now_ms=0) -> Gathered:
    return feed.gather(cache, mine, floor or Heads(), bytes_max, now_ms)


def numbers(gathered: Gathered) -> list[tuple[WriterId, list[int]]]:
    return [(run.writer, list(range(run.first, run.first + len(run.blobs)))) for run in gathered.runs]


# Positions


def test_nothing_is_sent_before_the_peer_has_said_what_it_has():
    feed, cache, mine = feed_to(), cache_of(row(EU_1, 1)), Heads({EU_1: 1})
    feed.durable(row(EU_1, 1), None, NO_LINKS, 0)
    assert gather(feed, cache, mine) == Gathered()
    heads(feed, Heads(), mine)
    assert numbers(gather(feed, cache, mine)) == [(EU_1, [1])]


def test_what_was_sent_is_not_sent_again():
    feed, cache, mine = feed_to(), cache_of(row(EU_1, 1), row(EU_1, 2)), Heads({EU_1: 2})
    heads(feed, Heads(), mine)
    feed.sent(gather(feed, cache, mine), 5, mine)
    assert gather(feed, cache, mine) == Gathered()
    heads(feed, Heads(), mine, seen=4)  # said before our frame came
    assert gather(feed, cache, mine) == Gathered()


def test_what_the_peer_processed_and_lacks_is_sent_again():
    feed, cache, mine = feed_to(), cache_of(row(EU_1, 1), row(EU_1, 2)), Heads({EU_1: 2})
    heads(feed, Heads(), mine)
    feed.sent(gather(feed, cache, mine), 5, mine)
    heads(feed, Heads({EU_1: 1}), mine, seen=5)
    assert numbers(gather(feed, cache, mine)) == [(EU_1, [2])]


def test_what_the_peer_sent_us_is_never_sent_back():
    feed, cache, mine = feed_to(), cache_of(row(AP_1, 1), row(AP_1, 2)), Heads({AP_1: 2})
    heads(feed, Heads(), Heads())
    feed.they_sent(AP_1, 2)
    feed.durable(row(AP_1, 1), US, NO_LINKS, 0)
    feed.durable(row(AP_1, 2), US, NO_LINKS, 0)
    assert gather(feed, cache, mine) == Gathered()


def test_a_peer_that_does_not_take_a_writer_is_offered_it_ever_less_often():
    feed, cache, mine = feed_to(), cache_of(row(EU_1, 1)), Heads({EU_1: 1})
    offers = []
    heads(feed, Heads(), mine)
    for now_ms in range(0, 600_000, 2_000):
        gathered = gather(feed, cache, mine, now_ms=now_ms)
        if gathered.runs:
            offers.append(now_ms)
            feed.sent(gathered, now_ms + 1, mine)
        heads(feed, Heads(), mine, seen=now_ms + 1, now_ms=now_ms)
    assert offers[: TRIES_AT_ONCE + 1] == [0, 2_000, 4_000]
    waits = [after - before for before, after in itertools.pairwise(offers)]
    assert waits == sorted(waits)
    assert waits[-1] == SETTINGS.stall_ms_max


def test_frames_that_were_lost_are_no_sign_of_refusal():
    feed, cache, mine = feed_to(), cache_of(row(EU_1, 1)), Heads({EU_1: 1})
    heads(feed, Heads(), mine)
    for frame in range(1, 50):
        gathered = gather(feed, cache, mine)
        assert gathered.runs, frame
        feed.sent(gathered, frame, mine)
        heads(feed, Heads(), mine, seen=frame, lost=True)


def test_a_peer_that_takes_a_writer_again_is_fed_at_once():
    feed, cache, mine = feed_to(), cache_of(row(EU_1, 1), row(EU_1, 2)), Heads({EU_1: 2})
    heads(feed, Heads(), mine)
    for frame in range(1, 8):
        gathered = gather(feed, cache, mine)
        feed.sent(gathered, frame, mine)
        heads(feed, Heads(), mine, seen=frame)
    assert gather(feed, cache, mine) == Gathered()
    assert feed.next_deadline_ms(0) is not None
    heads(feed, Heads({EU_1: 1}), mine, seen=9)
    assert numbers(gather(feed, cache, mine)) == [(EU_1, [2])]


# Order


def test_commits_go_out_in_the_order_of_their_stamps():
    """Causes before effects: whatever a commit depends on has a smaller stamp."""
    rows = [row(EU_1, 1, 10), row(AP_1, 1, 20), row(EU_1, 2, 30), row(AP_1, 2, 40), row(AP_1, 3, 50)]
    feed, mine = feed_to(), Heads({EU_1: 2, AP_1: 3})
    cache = cache_of(*rows)
    heads(feed, Heads(), mine)
    order = []
    while (gathered := gather(feed, cache, mine, bytes_max=1)).runs:
        order += numbers(gathered)
        feed.sent(gathered, 1, mine)
    assert order == [(EU_1, [1]), (AP_1, [1]), (EU_1, [2]), (AP_1, [2]), (AP_1, [3])]


def test_a_frame_holds_one_run_per_writer():
    rows = [row(EU_1, 1, 10), row(AP_1, 1, 20), row(EU_1, 2, 30), row(AP_1, 2, 40)]
    feed, mine = feed_to(), Heads({EU_1: 2, AP_1: 2})
    heads(feed, Heads(), mine)
    assert numbers(gather(feed, cache_of(*rows), mine)) == [(EU_1, [1, 2]), (AP_1, [1, 2])]


def test_frames_are_bounded_in_bytes_and_in_commits_but_hold_at_least_one():
    count = FRAME_COMMITS_MAX + 5
    small = cache_of(*(row(EU_1, number, size=1) for number in range(1, count + 1)))
    feed, mine = feed_to(), Heads({EU_1: count})
    heads(feed, Heads(), mine)
    assert len(gather(feed, small, mine).runs[0].blobs) == FRAME_COMMITS_MAX
    assert len(gather(feed, small, mine, bytes_max=100).runs[0].blobs) == 100
    large, mine = cache_of(row(AP_1, 1, size=5_000)), Heads({AP_1: 1})
    feed = feed_to()
    heads(feed, Heads(), mine)
    assert numbers(gather(feed, large, mine, bytes_max=100)) == [(AP_1, [1])]


def test_what_is_on_disk_is_read_first_the_oldest_writer_first():
    cache, mine = cache_of(row(EU_1, 9, 90), row(AP_1, 9, 95)), Heads({EU_1: 9, AP_1: 9})
    feed = feed_to()
    heads(feed, Heads({EU_1: 7, AP_1: 8}), mine)
    gathered = gather(feed, cache, mine)
    assert gathered == Gathered(read=Read(EU_1, 8))
    feed.start_read(gathered.read)
    assert gather(feed, cache, mine) == Gathered()  # one read at a time
    (frame,) = feed.commits_read([b"blob"], LARGE, 0)
    feed.sent(frame, 1, mine)
    assert numbers(gather(feed, cache, mine)) == [(EU_1, [9]), (AP_1, [9])]


def test_writers_on_disk_take_turns_by_stamp():
    def blob(writer: WriterId, stamp: int) -> bytes:
        event = Expired(TaskId(bytes(16)), late=False)
        return seal(DEFAULT_DOMAIN, writer, 1, stamp=stamp, deps=(), previous=NO_HASH, events=[event]).blob

    feed, mine, turns = feed_to(), Heads({EU_1: 3, AP_1: 3}), []
    heads(feed, Heads(), mine)
    for stamp in (50, 40, 60, 70):
        read = gather(feed, cache_of(), mine).read
        turns.append(read)
        feed.start_read(read)
        (frame,) = feed.commits_read([blob(read.writer, stamp)], LARGE, 0)
        feed.sent(frame, 1, mine)
    assert turns == [Read(AP_1, 1), Read(EU_1, 1), Read(EU_1, 2), Read(AP_1, 2)]


def test_a_read_is_cut_into_frames_and_what_the_peer_got_meanwhile_is_left_out():
    feed, mine = feed_to(), Heads({EU_1: 9})
    heads(feed, Heads({EU_1: 2}), mine)
    read = gather(feed, cache_of(), mine).read
    assert read == Read(EU_1, 3)
    feed.start_read(read)
    feed.they_sent(EU_1, 4)
    frames = feed.commits_read([bytes(10)] * 7, 25, 0)
    assert [numbers(frame) for frame in frames] == [[(EU_1, [5, 6])], [(EU_1, [7, 8])], [(EU_1, [9])]]


def test_a_read_that_starts_beyond_what_the_peer_lacks_is_made_again():
    feed, mine = feed_to(), Heads({EU_1: 9})
    heads(feed, Heads({EU_1: 5}), mine)
    feed.start_read(gather(feed, cache_of(), mine).read)
    heads(feed, Heads({EU_1: 2}), mine)  # cannot be, on an honest peer; must do no harm
    assert feed.commits_read([b"x"], LARGE, 0) == []
    assert gather(feed, cache_of(), mine).read == Read(EU_1, 3)


def test_commits_that_are_missing_on_disk_stop_only_their_own_writer():
    cache, mine = cache_of(row(AP_1, 1)), Heads({EU_1: 5, AP_1: 1})
    feed = feed_to()
    heads(feed, Heads(), mine)
    for _ in range(TRIES_AT_ONCE + 1):
        read = gather(feed, cache, mine).read
        assert read == Read(EU_1, 1)
        feed.start_read(read)
        assert feed.commits_read([], LARGE, 0) == []
    assert numbers(gather(feed, cache, mine)) == [(AP_1, [1])]


def test_below_the_floor_only_a_snapshot_helps():
    feed, mine = feed_to(), Heads({EU_1: 9, AP_1: 3})
    heads(feed, Heads({EU_1: 4, AP_1: 1}), mine)
    assert gather(feed, cache_of(row(AP_1, 2)), mine, floor=Heads({EU_1: 5})).below_floor
    feed.paused = True
    assert gather(feed, cache_of(), mine, floor=Heads({EU_1: 5})) == Gathered()
    feed.paused = False
    heads(feed, Heads({EU_1: 5, AP_1: 3}), mine)
    assert gather(feed, cache_of(), mine, floor=Heads({EU_1: 5})).read == Read(EU_1, 6)


# Leaving commits to others


def caught_up(links=(AP,)) -> Feed:
    """A feed to us, which is up to date and linked with `links`."""
    feed = feed_to()
    heads(feed, Heads(), Heads(), links=links)
    return feed


def test_a_commit_is_left_to_where_it_came_from_when_the_peer_is_linked_there():
    feed, mine = caught_up(), Heads({AP_1: 1})
    feed.durable(row(AP_1, 1), AP, frozenset({AP}), 0)
    assert gather(feed, cache_of(row(AP_1, 1)), mine) == Gathered()


def test_our_own_commits_are_left_to_nobody():
    feed, mine = caught_up(), Heads({EU_1: 1})
    feed.durable(row(EU_1, 1), None, frozenset({AP}), 0)
    assert numbers(gather(feed, cache_of(row(EU_1, 1)), mine)) == [(EU_1, [1])]


def test_it_is_relayed_when_the_peer_has_no_link_there():
    feed, mine = caught_up(links=(SA,)), Heads({AP_1: 1})
    feed.durable(row(AP_1, 1), AP, frozenset({SA}), 0)
    assert numbers(gather(feed, cache_of(row(AP_1, 1)), mine)) == [(AP_1, [1])]


def test_what_another_source_did_not_bring_goes_out_at_the_next_heads():
    feed, mine = caught_up(), Heads({AP_1: 1})
    feed.durable(row(AP_1, 1), AP, frozenset({AP}), 0)
    heads(feed, Heads(), mine, links=(AP,), now_ms=CROSSING_MS)
    assert numbers(gather(feed, cache_of(row(AP_1, 1)), mine)) == [(AP_1, [1])]


def test_heads_that_may_have_crossed_a_commit_do_not_say_that_it_is_missing():
    """Swarm seed 625: among regions far from each other every commit was sent by every region that had it."""
    feed, mine = caught_up(), Heads({AP_1: 2})
    feed.durable(row(AP_1, 1), AP, frozenset({AP}), 0)
    heads(feed, Heads(), mine, links=(AP,), now_ms=CROSSING_MS - 1)
    assert gather(feed, cache_of(row(AP_1, 1), row(AP_1, 2)), mine) == Gathered()
    heads(feed, Heads({AP_1: 1}), mine, links=(AP,), now_ms=CROSSING_MS)  # the source goes on
    assert gather(feed, cache_of(row(AP_1, 1), row(AP_1, 2)), mine) == Gathered()
    heads(feed, Heads({AP_1: 1}), mine, now_ms=CROSSING_MS + 1)  # until its link is gone
    assert numbers(gather(feed, cache_of(row(AP_1, 2)), mine)) == [(AP_1, [2])]


def test_without_heads_it_goes_out_after_two_intervals():
    feed, mine, cache = caught_up(), Heads({AP_1: 1}), cache_of(row(AP_1, 1))
    feed.durable(row(AP_1, 1), AP, frozenset({AP}), 0)
    due_ms = feed.next_deadline_ms(0)
    assert due_ms == 2 * SETTINGS.heads_interval_ms
    assert not feed.tick(due_ms - 1)
    assert feed.tick(due_ms)
    assert numbers(gather(feed, cache, mine, now_ms=due_ms)) == [(AP_1, [1])]


def test_a_commit_that_only_we_can_bring_takes_the_place_of_those_left_to_others():
    """Or, with sources that change, each neighbour would wait for the next heads."""
    rows = [row(AP_1, 1), row(AP_1, 2)]
    feed, mine = caught_up(links=(SA,)), Heads({AP_1: 2})
    feed.durable(rows[0], SA, frozenset({SA}), 0)
    feed.durable(rows[1], AP, frozenset({SA}), 0)
    gathered = gather(feed, cache_of(*rows), mine)
    assert numbers(gathered) == [(AP_1, [2])]
    feed.sent(gathered, 3, mine)
    heads(feed, Heads(), mine, seen=3)  # the other source did not bring the first
    assert numbers(gather(feed, cache_of(*rows), mine)) == [(AP_1, [1, 2])]


def test_a_backlog_is_left_to_its_origin_as_long_as_that_brings_it():
    """After a heal two regions would otherwise send the same backlog."""
    feed, mine, cache = feed_to(), Heads({AP_1: 10_000}), cache_of()
    heads(feed, Heads(), mine, links=(AP,))
    assert gather(feed, cache, mine) == Gathered()
    heads(feed, Heads({AP_1: 3_000}), mine, links=(AP,), now_ms=CROSSING_MS)
    assert gather(feed, cache, mine) == Gathered()
    heads(feed, Heads({AP_1: 3_000}), mine, links=(AP,), now_ms=2 * CROSSING_MS)  # it stopped
    assert gather(feed, cache, mine).read == Read(AP_1, 3_001)


def test_a_backlog_is_not_left_to_an_origin_that_lost_its_disk():
    feed, mine = feed_to(), Heads({AP_1: 10_000})
    heads(feed, Heads(), mine, links=(AP,), relay=False)
    assert gather(feed, cache_of(), mine).read == Read(AP_1, 1)


def test_a_region_is_always_given_back_its_own_commits():
    feed, mine = feed_to(AP), Heads({AP_1: 5})
    heads(feed, Heads(), mine, links=(US,), relay=False)
    assert gather(feed, cache_of(), mine).read == Read(AP_1, 1)
    other = feed_to(AP)
    heads(other, Heads(), Heads(), links=(US,))
    other.durable(row(AP_1, 1), US, frozenset({US, AP}), 0)
    assert numbers(gather(other, cache_of(row(AP_1, 1)), Heads({AP_1: 1}))) == [(AP_1, [1])]


# The cache


def test_the_cache_is_bounded_and_the_oldest_leave_first():
    cache = cache_of(*(row(EU_1, number, size=10) for number in range(1, 8)), bytes_max=30)
    assert cache.bytes == 30
    held = [number for number in range(1, 8) if cache.get(DEFAULT_DOMAIN, EU_1, number) is not None]
    assert held == [5, 6, 7]


def test_a_commit_larger_than_the_cache_is_read_from_disk():
    cache = cache_of(row(EU_1, 1, size=31), bytes_max=30)
    assert cache.bytes == 0
    assert cache.get(DEFAULT_DOMAIN, EU_1, 1) is None


@pytest.mark.parametrize("times", [1, 3])
def test_a_commit_is_kept_once(times):
    assert cache_of(*[row(EU_1, 1, size=10)] * times).bytes == 10
