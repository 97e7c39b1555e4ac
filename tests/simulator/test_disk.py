from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtsync.effects import CommitRow, DocumentRow, Load, Persist, Query, ReadCommits, ReadRows, TaskRow
from crdtsync.errors import CorruptLogError, StorageError
from crdtsync.identifiers import DEFAULT_DOMAIN, TaskId, WriterId
from regions.storage.memory import MemoryStore
from simulator.disk import Disk, Store
from tests.cluster import now_or_never

WRITERS = [WriterId(f"eu/a#{n}-0123456789abcdef") for n in (1, 2)]


def drained(stream):
    items = []
    while True:
        try:
            items += now_or_never(anext(stream))
        except StopAsyncIteration:
            return items


def commit(number, writer=WRITERS[0], blob=None):
    return CommitRow(DEFAULT_DOMAIN, writer, number, number, blob or f"{writer}{number}".encode())


def row(n, **columns):
    base = TaskRow(
        DEFAULT_DOMAIN, TaskId(bytes([n]) * 16), "t", "q", "waiting", False, n % 2 == 0, "eu", n, 0, (), bytes(16), b"f"
    )
    return base._replace(**columns)


@st.composite
def batches(draw):
    heads = dict.fromkeys(WRITERS, 0)
    found = []
    for number in range(draw(st.integers(1, 8))):
        commits = []
        for writer in draw(st.lists(st.sampled_from(WRITERS), max_size=4)):
            heads[writer] += 1
            commits.append(commit(heads[writer], writer))
        ids = draw(st.lists(st.integers(1, 9), max_size=4))
        rows = [
            row(n, state=draw(st.sampled_from(["waiting", "dead"])), conflicts=n % 3, labels=(("a", str(n % 2)),))
            for n in ids
        ]
        drop = [
            (DEFAULT_DOMAIN, w, draw(st.integers(0, heads[w]))) for w in WRITERS if heads[w] and draw(st.booleans())
        ]
        documents = (DocumentRow(DEFAULT_DOMAIN, b"", f"d{number % 2}", b"s"),)
        meta = ((f"m{number % 3}", b"v"),)
        found.append(Persist(number, tuple(commits), tuple(rows), documents, meta, tuple(drop)))
    return found


@given(batches())
def test_the_simulated_store_answers_as_the_shipped_one(found):
    ours, shipped = Store(), MemoryStore()
    now_or_never(shipped.open())
    for batch in found:
        ours.append(batch)
        now_or_never(shipped.append(batch))
    assert ours.meta == now_or_never(shipped.meta())
    assert ours.documents_of(DEFAULT_DOMAIN) == now_or_never(shipped.documents(DEFAULT_DOMAIN))
    assert ours.commits_beyond(DEFAULT_DOMAIN, {WRITERS[0]: 2}) == drained(
        shipped.commits_beyond(DEFAULT_DOMAIN, {WRITERS[0]: 2})
    )
    assert ours.known_ids(DEFAULT_DOMAIN) == drained(shipped.known_ids(DEFAULT_DOMAIN))
    assert ours.live_rows(DEFAULT_DOMAIN) == drained(shipped.live_rows(DEFAULT_DOMAIN))
    for first in (1, 3):
        for size in (1, 1_000):
            asked = ReadCommits(1, DEFAULT_DOMAIN, WRITERS[1], first, size)
            theirs = now_or_never(shipped.read_commits(DEFAULT_DOMAIN, WRITERS[1], first, size))
            assert ours.read(asked) == theirs
    ids = (row(1).task, row(2).task)
    assert ours.read(Load(1, DEFAULT_DOMAIN, ids)) == now_or_never(shipped.load_rows(DEFAULT_DOMAIN, ids))
    assert ours.read(ReadRows(1, DEFAULT_DOMAIN, row(2).task, 3)) == now_or_never(
        shipped.read_rows(DEFAULT_DOMAIN, row(2).task, 3)
    )
    for what in ("tasks", "conflicts"):
        for where in ((), (("state", "dead"),), (("label", ("a", "1")),)):
            query = Query(1, DEFAULT_DOMAIN, what, where, 2)
            assert ours.read(query) == now_or_never(shipped.query(query))


def test_a_second_commit_under_one_number_is_refused_and_changes_nothing():
    store = Store()
    store.append(Persist(1, (commit(1),)))
    with pytest.raises(CorruptLogError):
        store.append(Persist(2, (commit(2), commit(1, blob=b"other")), meta=(("m", b"v"),)))
    assert store.heads() == {WRITERS[0]: 1}
    assert store.meta == {}


def disk(seed=1):
    return Disk(random.Random(seed), (1, 2))


def written(target, number):
    target.begin(Persist(number, (commit(number),)))
    target.finish()


def test_an_append_is_there_after_it_has_finished():
    target = disk()
    written(target, 1)
    assert target.crash(power=True).batch is None
    assert target.store.heads() == {WRITERS[0]: 1}


def test_a_power_cut_loses_the_write_under_way():
    target = disk()
    target.begin(Persist(1, (commit(1),)))
    tail = target.crash(power=True)
    assert tail.batch is not None
    assert not tail.kept
    assert target.store.heads() == {}


def test_a_kill_keeps_the_write_under_way_or_loses_it_whole():
    kept = set()
    for seed in range(20):
        target = disk(seed)
        target.begin(Persist(1, (commit(1), commit(2))))
        kept.add((target.crash(power=False).kept, len(target.store.commits)))
    assert kept == {(True, 2), (False, 0)}


def test_a_full_disk_refuses_and_a_failing_one_does_sometimes():
    target = disk()
    target.full = True
    with pytest.raises(StorageError):
        written(target, 1)
    target.full = False
    target.failing = 0.5
    outcomes = []
    for number in range(1, 30):
        try:
            target.begin(Persist(number, ()))
            target.finish()
            outcomes.append(True)
        except StorageError:
            outcomes.append(False)
    assert set(outcomes) == {True, False}


def test_a_lying_disk_has_what_it_had_when_it_began_to_lie():
    target = disk()
    written(target, 1)
    target.begin_lying()
    written(target, 2)
    assert target.store.heads() == {WRITERS[0]: 2}
    tail = target.crash(power=True)
    assert [gone.number for gone in tail.commits] == [2]
    assert target.store.heads() == {WRITERS[0]: 1}


def test_a_copy_does_not_change_with_its_original():
    target = disk()
    written(target, 1)
    copy = target.store.copy()
    twin = target.clone(random.Random(2))
    written(target, 2)
    assert twin.store.heads() == {WRITERS[0]: 1}
    assert [gone.number for gone in target.restore(copy)] == [2]
    written(target, 2)
    assert copy.heads() == {WRITERS[0]: 1}


def test_a_slow_disk_takes_its_time():
    target = disk()
    assert 1_000 <= target.write_us() <= 2_000
    target.slow_us = 300_000
    assert target.write_us() == 300_000
