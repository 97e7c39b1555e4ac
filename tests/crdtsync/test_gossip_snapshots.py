"""A snapshot on its way: complete, in order, in pieces, or told to begin again."""

from __future__ import annotations

import pytest

from crdtsync.effects import TaskRow
from crdtsync.errors import RemoteProtocolError
from crdtsync.gossip.snapshots import SnapshotReceiver, SnapshotSender
from crdtsync.identifiers import DEFAULT_DOMAIN, TaskId
from crdtsync.protocol.peer_messages import STATE_PIECE_BYTES_MAX, SnapshotChunk, SnapshotEnd, SnapshotState


def row(number: int, size: int = 100) -> TaskRow:
    task = TaskId(number.to_bytes(16, "big"))
    return TaskRow(
        domain=DEFAULT_DOMAIN,
        task=task,
        name="charge",
        queue="default",
        state="dead",
        settled=True,
        live=False,
        owner="eu",
        created_ms=0,
        conflicts=0,
        labels=(),
        digest=bytes(16),
        facts=bytes(size),
    )


def end_of(sender: SnapshotSender) -> SnapshotEnd:
    return SnapshotEnd(sender.domain, sender.rows_sent, len(sender.state), (), (), b"")


@pytest.mark.parametrize("bytes_max", [1, 1_000, 100_000])
@pytest.mark.parametrize("state_bytes", [0, 1, STATE_PIECE_BYTES_MAX + 1])
def test_what_is_received_is_what_was_sent(bytes_max, state_bytes):
    bytes_max = max(bytes_max, state_bytes // 50)
    stored = [row(number) for number in range(25)]
    sender = SnapshotSender(DEFAULT_DOMAIN, bytes(state_bytes))
    receiver, received = SnapshotReceiver(DEFAULT_DOMAIN, 10 << 20), []
    while not sender.complete:
        if sender.wants_rows():
            sender.reading = 1
            assert not sender.wants_rows()
            sender.rows_read([each for each in stored if each.task > sender.after][:10])
            continue
        piece = sender.next_piece(0, bytes_max)
        if isinstance(piece, SnapshotChunk):
            receiver.rows(piece)
            received += piece.rows
        else:
            assert isinstance(piece, SnapshotState)
            receiver.piece(piece)
    assert received == stored
    assert receiver.end(end_of(sender)) == sender.state


def test_nothing_is_sent_while_rows_are_read():
    sender = SnapshotSender(DEFAULT_DOMAIN, b"state")
    sender.reading = 1
    assert sender.next_piece(0, 1_000) is None
    assert not sender.complete


def test_chunks_keep_to_their_size_but_hold_at_least_one_row():
    sender = SnapshotSender(DEFAULT_DOMAIN, b"")
    sender.rows_read([row(1, 5_000), row(2, 100), row(3, 100), row(4, 5_000)])
    sizes = []
    while (piece := sender.next_piece(0, 1_000)) is not None:
        sizes.append(len(piece.rows))
    assert sizes == [1, 2, 1]


@pytest.mark.parametrize("lost", ["rows", "state"])
def test_an_incomplete_snapshot_is_noticed(lost):
    receiver = SnapshotReceiver(DEFAULT_DOMAIN, 1_000)
    if lost != "rows":
        receiver.rows(SnapshotChunk(DEFAULT_DOMAIN, 0, (row(1),)))
    if lost != "state":
        receiver.piece(SnapshotState(DEFAULT_DOMAIN, 0, b"state"))
    assert receiver.end(SnapshotEnd(DEFAULT_DOMAIN, 1, 5, (), (), b"")) is None


def test_the_state_is_bounded():
    receiver = SnapshotReceiver(DEFAULT_DOMAIN, 10)
    receiver.piece(SnapshotState(DEFAULT_DOMAIN, 0, bytes(10)))
    with pytest.raises(RemoteProtocolError):
        receiver.piece(SnapshotState(DEFAULT_DOMAIN, 0, b"x"))
