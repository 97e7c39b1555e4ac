"""Whatever the order and number of deliveries: the same commits, applied in causal order, and nothing breaks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from crdtsync.events import Unknown
from crdtsync.identifiers import DEFAULT_DOMAIN
from crdtsync.log.commit import decode_commit, seal
from crdtsync.log.domain_log import DomainLog
from crdtsync.log.heads import Heads
from crdtsync.log.verdicts import LogLimits, Refusal, Verdict
from tests.log_strategies import EPOCH_MS, apply_all, expired, histories, writer

OBSERVER = writer("observer")


@given(histories(), st.data())
def test_any_order_and_repetition_of_deliveries_applies_the_same_in_causal_order(history, data):
    order = data.draw(st.permutations(history.commits))
    again = data.draw(st.lists(st.sampled_from(history.commits), max_size=8))
    eager = data.draw(st.booleans())
    log = DomainLog(DEFAULT_DOMAIN, OBSERVER)
    applied = []
    for commit in [*order, *again]:
        log.receive(commit.blob, EPOCH_MS)
        if eager:
            applied += apply_all(log)
    applied += apply_all(log)
    assert sorted(applied, key=lambda c: (c.writer, c.number)) == sorted(
        history.commits, key=lambda c: (c.writer, c.number)
    )
    seen: set[tuple[str, int]] = set()
    for commit in applied:
        assert history.past[commit.writer, commit.number] <= seen
        seen.add((commit.writer, commit.number))
    assert log.gaps() == log.waiting() == log.take_alarms() == ()


@given(histories(), st.data())
def test_a_lost_commit_is_visible_and_nothing_that_follows_it_is_applied(history, data):
    lost = data.draw(st.sampled_from(history.commits))
    log = DomainLog(DEFAULT_DOMAIN, OBSERVER)
    for commit in data.draw(st.permutations([c for c in history.commits if c != lost])):
        log.receive(commit.blob, EPOCH_MS)
    applied = {(commit.writer, commit.number) for commit in apply_all(log)}
    lost_id = (lost.writer, lost.number)
    for commit in history.commits:
        commit_id = (commit.writer, commit.number)
        assert (commit_id in applied) == (commit_id != lost_id and lost_id not in history.past[commit_id])
    followers = [c for c in history.commits if c.writer == lost.writer and c.number > lost.number]
    assert bool(log.gaps()) == bool(followers)
    released = log.receive(lost.blob, EPOCH_MS).commits
    assert released == (lost, *followers)
    assert len(applied) + len(apply_all(log)) == len(history.commits)


@given(histories(), st.data())
def test_the_applied_set_is_causally_closed_under_tiny_limits_and_restarts(history, data):
    """Buffers of a few commits, a disk to read back from, a crash somewhere: in the end everything is applied."""
    limits = LogLimits(gap_commits_max=2, waiting_bytes_max=300, hashes_kept=2)
    disk: dict[tuple[str, int], bytes] = {}
    log = DomainLog(DEFAULT_DOMAIN, OBSERVER, limits=limits)
    state = log.export_state()

    def settle(log):
        log.mark_durable(log.have, log.applied)
        applied = apply_all(log)
        while (needed := log.needed()) is not None:
            writer, first = needed
            log.provide([disk[w, n] for w, n in sorted(disk) if w == writer and n >= first])
            applied += apply_all(log)
        return applied

    order = data.draw(st.permutations(history.commits))
    crash_at = data.draw(st.integers(0, len(order)))
    for n, commit in enumerate(order + history.commits):  # what overflowed is pulled again, in order
        if n == crash_at:
            log = DomainLog(DEFAULT_DOMAIN, writer("observer", 2), limits=limits)
            log.restore(state)
            for _, blob in sorted(disk.items()):
                log.restore_commit(blob)
            settle(log)
        received = log.receive(commit.blob, EPOCH_MS)
        assert received.verdict is not Verdict.QUARANTINED
        for new in received.commits:
            disk[new.writer, new.number] = new.blob
        settle(log)
        if data.draw(st.booleans()):
            state = log.export_state()
    assert log.applied == log.have == log.durable_applied
    assert log.applied.count() == len(history.commits)
    assert log._waiting_bytes == log._gaps.bytes == log._gaps.commits == 0


@given(histories(), st.data())
def test_equivocation_quarantines_its_writer_and_never_changes_what_was_applied(history, data):
    victim = data.draw(st.sampled_from(history.commits))
    forged = seal(
        DEFAULT_DOMAIN,
        victim.writer,
        victim.number,
        stamp=victim.stamp,
        deps=victim.deps,
        previous=victim.previous,
        events=[expired(10_000)],
    )
    log = DomainLog(DEFAULT_DOMAIN, OBSERVER)
    applied: dict[tuple[str, int], bytes] = {}
    for commit in data.draw(st.permutations([*history.commits, forged])):
        log.receive(commit.blob, EPOCH_MS)
        for done in apply_all(log):
            assert (done.writer, done.number) not in applied
            applied[done.writer, done.number] = done.hash
    assert set(log.quarantined) == {victim.writer}
    assert log.quarantined[victim.writer].other
    successor = seal(
        DEFAULT_DOMAIN,
        victim.writer,
        victim.number + 1,
        stamp=victim.stamp,
        deps=(),
        previous=victim.hash,
        events=[expired(10_001)],
    )
    assert log.receive(successor.blob, EPOCH_MS).refusal is Refusal.QUARANTINED
    for commit in history.commits:  # whoever does not rest on the quarantined writer goes on
        past = history.past[commit.writer, commit.number]
        if commit.writer != victim.writer and all(w != victim.writer for w, _ in past):
            assert applied[commit.writer, commit.number] == commit.hash


@given(st.lists(st.binary(max_size=60)))
def test_no_bytes_make_receive_raise_or_change_what_is_known(blobs):
    log = DomainLog(DEFAULT_DOMAIN, OBSERVER)
    for blob in blobs:
        assert log.receive(blob, EPOCH_MS).verdict is Verdict.REFUSED
    assert log.have == Heads()


@given(histories(writers_max=2, steps_max=6), st.data())
def test_a_damaged_commit_never_raises_and_never_applies_what_was_not_written(history, data):
    blob = bytearray(data.draw(st.sampled_from(history.commits)).blob)
    for _ in range(data.draw(st.integers(1, 3))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    log = DomainLog(DEFAULT_DOMAIN, OBSERVER)
    received = log.receive(bytes(blob), EPOCH_MS)
    for commit in received.commits:
        assert decode_commit(commit.blob) == commit
        assert not any(type(event) is Unknown and event.kind <= 16 for event in commit.events)
    for commit in history.commits:
        log.receive(commit.blob, EPOCH_MS)
    apply_all(log)
