from __future__ import annotations

from crdtsync.identifiers import DEFAULT_DOMAIN
from crdtsync.log.domain_log import DomainLog
from crdtsync.log.gap_buffer import GapBuffer
from crdtsync.log.heads import Span
from tests.log_strategies import EU, US, expired, stamp


def commits(writer, count):
    log = DomainLog(DEFAULT_DOMAIN, writer)
    return [log.append([expired()], stamp(n)) for n in range(count)]


def test_what_is_missing_between_is_visible():
    buffer = GapBuffer(99, 1 << 20)
    for commit in commits(EU, 8)[3:5] + commits(EU, 8)[6:] + commits(US, 3)[2:]:
        buffer.add(commit)
    assert buffer.gaps({EU: 1}) == (Span(EU, 2, 3), Span(EU, 6, 6), Span(US, 1, 2))
    assert buffer.gaps({EU: 3, US: 2}) == (Span(EU, 6, 6),)


def test_taking_and_discarding_give_the_room_back():
    buffer = GapBuffer(99, 1 << 20)
    for commit in commits(EU, 4):
        buffer.add(commit)
    assert buffer.take(EU, 2).number == 2
    assert buffer.take(EU, 2) is None
    assert buffer.take(US, 1) is None
    assert buffer.holds(EU)
    buffer.discard(EU)
    buffer.discard(US)
    assert not buffer.holds(EU)
    assert (buffer.commits, buffer.bytes) == (0, 0)


def test_the_newest_of_the_same_writer_is_dropped_first():
    buffer = GapBuffer(3, 1 << 20)
    theirs, mine = commits(US, 1), commits(EU, 9)
    buffer.add(theirs[0])
    assert buffer.add(mine[8]) == ()
    assert buffer.add(mine[4]) == ()
    assert buffer.add(mine[3]) == (9,)
    assert buffer.add(mine[7]) == (8,)  # itself
    assert buffer.find(US, 1) is theirs[0]


def test_the_room_is_bounded_in_bytes_too():
    mine = commits(EU, 5)
    buffer = GapBuffer(99, len(mine[0].blob) + len(mine[1].blob) + len(mine[2].blob))
    for commit in mine:
        buffer.add(commit)
    assert buffer.commits <= 3
    assert buffer.bytes <= buffer.bytes_max
    assert buffer.find(EU, 1)
