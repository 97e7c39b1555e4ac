"""Vectors on the wire as differences."""

import pytest

from crdtsync.errors import RemoteProtocolError
from crdtsync.gossip.vectors import VectorFeed, VectorMirror
from crdtsync.identifiers import WriterId, writer_id
from crdtsync.log.heads import Heads
from crdtsync.protocol.peer_messages import VectorDelta

A, B, C = (writer_id(region, "n", 1, bytes(8)) for region in ("eu", "us", "ap"))


def test_the_mirror_shows_what_was_fed():
    feed, mirror = VectorFeed(), VectorMirror()
    for heads in (Heads(), Heads({A: 1}), Heads({A: 1, B: 7}), Heads({A: 2, B: 7, C: 1}), Heads({B: 7}), Heads({B: 9})):
        mirror.apply(feed.delta(heads))
        assert mirror.heads == heads
        assert mirror.trusted
        assert all(mirror[writer] == heads[writer] for writer in (A, B, C))


def test_only_what_changed_is_sent():
    feed = VectorFeed()
    many = Heads({writer_id("eu", "n", number, bytes(8)): 1 for number in range(100)})
    assert len(feed.delta(many).entries) == 100
    assert feed.delta(many) == VectorDelta(full=False, entries=())
    assert feed.delta(many.advanced(A, 5)) == VectorDelta(full=False, entries=((A, 5),))


def test_after_a_loss_a_mirror_is_trusted_again_only_when_it_heard_everything():
    feed, mirror = VectorFeed(), VectorMirror()
    mirror.apply(feed.delta(Heads({A: 1})))
    feed.delta(Heads({A: 1, B: 1}))  # lost
    mirror.distrust()
    mirror.apply(feed.delta(Heads({A: 2, B: 1})))
    assert not mirror.trusted
    feed.reset()
    mirror.apply(feed.delta(Heads({A: 2, B: 1})))
    assert mirror.trusted
    assert mirror.heads == Heads({A: 2, B: 1})


def test_a_mirror_is_bounded(monkeypatch):
    monkeypatch.setattr("crdtsync.gossip.vectors.WRITERS_MAX", 2)
    mirror = VectorMirror()
    mirror.apply(VectorDelta(full=True, entries=((A, 1), (B, 1))))
    with pytest.raises(RemoteProtocolError, match="limit"):
        mirror.apply(VectorDelta(full=False, entries=((WriterId(C), 1),)))
