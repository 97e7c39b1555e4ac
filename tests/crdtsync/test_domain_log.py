from __future__ import annotations

import cbor2
import pytest

from crdtsync.errors import CorruptLogError, LocalProtocolError
from crdtsync.identifiers import DEFAULT_DOMAIN, Domain
from crdtsync.log.commit import NO_HASH, seal
from crdtsync.log.domain_log import DomainLog
from crdtsync.log.heads import Heads, Span
from crdtsync.log.verdicts import Distrust, Evidence, LogLimits, Refusal, Verdict, Wait, Waiting
from tests.log_strategies import AP, EPOCH_MS, EU, US, apply_all, deliver, expired, stamp, writer

NOW = EPOCH_MS
HOUR_MS = 3_600_000


def log_of(writer=AP, **limits):
    return DomainLog(DEFAULT_DOMAIN, writer, limits=LogLimits(**limits))


def chain(writer, count, *, event=0, start_ms=0):
    """A log of `writer` and its first commits; another `event` makes another branch."""
    log = log_of(writer)
    return log, [log.append([expired(event)], stamp(start_ms + n)) for n in range(count)]


def conversation():
    """EU writes 1 and 2; US sees them and writes 1; EU sees that and writes 3."""
    eu, first = chain(EU, 2)
    us = log_of(US)
    deliver(us, *first)
    answer = us.append([expired()], stamp(10))
    deliver(eu, answer)
    return [*first, answer, eu.append([expired()], stamp(20))]


class TestAppending:
    def test_an_own_commit_is_have_and_applied_at_once_and_durable_when_told(self):
        log, (commit,) = chain(EU, 1)
        assert log.have == log.applied == Heads({EU: 1})
        assert log.durable_have == log.durable_applied == Heads()
        log.mark_durable(log.have, log.applied)
        assert log.durable_have == log.durable_applied == Heads({EU: 1})
        assert log.hash_of(EU, 1) == commit.hash == log.head_hashes[EU]

    def test_commits_are_numbered_from_one_and_chained(self):
        _, commits = chain(EU, 3)
        assert [commit.number for commit in commits] == [1, 2, 3]
        assert [commit.previous for commit in commits] == [NO_HASH, commits[0].hash, commits[1].hash]

    def test_deps_are_what_was_applied_since_the_last_own_commit(self):
        first, second, answer, third = conversation()
        assert answer.deps == ((EU, 2, second.hash[:8]),)
        assert third.deps == ((US, 1, answer.hash[:8]),)
        assert first.deps == ()

    def test_what_an_own_commit_has_said_its_successor_does_not_repeat(self):
        _, commits = chain(EU, 1)
        us = log_of(US)
        deliver(us, *commits)
        assert us.append([expired()], stamp()).deps
        assert us.append([expired()], stamp()).deps == ()

    def test_what_is_have_and_not_applied_is_no_dep(self):
        _, commits = chain(EU, 1)
        us = log_of(US)
        us.receive(commits[0].blob, NOW)
        assert us.append([expired()], stamp()).deps == ()

    def test_a_stamp_that_goes_back_is_refused_before_it_is_written(self):
        log, _ = chain(EU, 2)
        with pytest.raises(LocalProtocolError):
            log.append([expired()], stamp(-1))
        assert log.have == Heads({EU: 2})

    def test_a_refused_event_leaves_the_log_as_it_was(self):
        log, _ = chain(EU, 1)
        with pytest.raises(LocalProtocolError):
            log.append([expired()._replace(task=b"short")], stamp(9))
        assert log.append([expired()], stamp(9)).number == 2


class TestReceiving:
    def test_in_order_every_commit_is_new_and_applied(self):
        log = log_of()
        for commit in conversation():
            assert log.receive(commit.blob, NOW).commits == (commit,)
            assert apply_all(log) == [commit]
        assert log.applied == log.have == Heads({EU: 3, US: 1})

    def test_in_reverse_order_the_first_one_releases_the_rest(self):
        _, commits = chain(EU, 3)
        log = log_of()
        assert log.receive(commits[2].blob, NOW).verdict is Verdict.BUFFERED
        assert log.receive(commits[1].blob, NOW).verdict is Verdict.BUFFERED
        assert log.gaps() == (Span(EU, 1, 1),)
        received = log.receive(commits[0].blob, NOW)
        assert (received.verdict, received.commits) == (Verdict.NEW, tuple(commits))
        assert log.gaps() == ()
        assert apply_all(log) == commits

    def test_a_second_copy_is_a_duplicate_whether_have_or_buffered(self):
        _, commits = chain(EU, 3)
        log = log_of()
        assert log.receive(commits[2].blob, NOW).verdict is Verdict.BUFFERED
        assert log.receive(commits[2].blob, NOW).verdict is Verdict.BUFFERED
        assert log.receive(commits[0].blob, NOW).verdict is Verdict.NEW
        assert log.receive(commits[0].blob, NOW).verdict is Verdict.DUPLICATE
        assert log.have == Heads({EU: 1})

    def test_a_commit_older_than_the_kept_hashes_counts_as_a_duplicate(self):
        _, commits = chain(EU, 6)
        log = log_of(hashes_kept=2)
        deliver(log, *commits)
        assert log.hash_of(EU, 4) is None
        assert log.hash_of(EU, 5) == commits[4].hash
        assert log.receive(commits[0].blob, NOW).verdict is Verdict.DUPLICATE
        assert len(log._known) == 2

    def test_bytes_that_are_no_commit_are_refused(self):
        log = log_of()
        for blob in (b"", b"\x80", b"\xff" * 40, cbor2.dumps({"a": 1.5})):
            received = log.receive(blob, NOW)
            assert (received.verdict, received.refusal) == (Verdict.REFUSED, Refusal.MALFORMED)
            assert received.reason

    def test_a_commit_of_another_domain_is_refused(self):
        commit = seal(Domain("other"), EU, 1, stamp=stamp(), deps=(), previous=NO_HASH, events=[expired()])
        assert log_of().receive(commit.blob, NOW).refusal is Refusal.DOMAIN

    def test_the_number_of_writers_is_bounded(self):
        log = log_of(writers_max=2)
        verdicts = [log.receive(chain(writer(f"r{n}"), 1)[1][0].blob, NOW).verdict for n in range(3)]
        assert verdicts == [Verdict.NEW, Verdict.NEW, Verdict.REFUSED]

    def test_a_full_gap_buffer_drops_the_newest_and_says_so(self):
        _, commits = chain(EU, 6)
        log = log_of(gap_commits_max=2)
        log.receive(commits[3].blob, NOW)
        log.receive(commits[2].blob, NOW)
        received = log.receive(commits[1].blob, NOW)
        assert (received.verdict, received.dropped) == (Verdict.BUFFERED, (4,))
        received = log.receive(commits[5].blob, NOW)
        assert (received.verdict, received.refusal, received.dropped) == (Verdict.REFUSED, Refusal.OVERFLOW, (6,))
        assert [alarm.what for alarm in log.take_alarms()] == ["log.gap_overflow"]
        assert len(log.receive(commits[0].blob, NOW).commits) == 3


class TestCausality:
    def test_a_commit_waits_for_what_it_depends_on(self):
        first, second, answer, third = conversation()
        log = log_of()
        assert deliver(log, answer) == []
        assert log.waiting() == (Waiting(US, 1, Wait.COMMIT, (EU, 2)),)
        assert deliver(log, first) == [first]
        assert deliver(log, second) == [second, answer]
        assert deliver(log, third) == [third]
        assert log.waiting() == ()

    def test_each_commit_waits_for_its_own_deps(self):
        _, (one, two) = chain(EU, 2)
        us = log_of(US)
        deliver(us, one)
        first = us.append([expired()], stamp(10))
        deliver(us, two)
        second = us.append([expired()], stamp(11))
        log = log_of()
        assert deliver(log, one, first, second) == [one, first]
        assert log.waiting() == (Waiting(US, 2, Wait.COMMIT, (EU, 2)),)
        assert deliver(log, two) == [two, second]

    def test_the_same_commit_is_named_until_it_is_applied(self):
        _, commits = chain(EU, 2)
        log = log_of()
        for commit in commits:
            log.receive(commit.blob, NOW)
        assert log.next_applicable(NOW) == log.next_applicable(NOW) == commits[0]
        assert not log.is_applied(EU, 1)
        log.mark_applied(commits[0])
        assert log.is_applied(EU, 1)
        assert log.next_applicable(NOW) == commits[1]

    def test_a_commit_that_rests_on_another_branch_is_never_applied(self):
        _, (ours, _) = chain(EU, 2)
        _, (theirs, _) = chain(EU, 2, event=1)
        us = log_of(US)
        deliver(us, theirs)
        answer = us.append([expired()], stamp(10))
        log = log_of()
        assert deliver(log, ours, answer) == [ours]
        assert log.waiting() == (Waiting(US, 1, Wait.BRANCH, (EU, 1)),)
        assert [alarm.what for alarm in log.take_alarms()] == ["log.other_branch"]
        assert log.have == Heads({EU: 1, US: 1})

    def test_a_blocked_commit_is_looked_at_only_when_what_it_waits_for_is_applied(self):
        """Many writers wait for one: each of its commits wakes those that named it, and no others."""
        _, commits = chain(EU, 50)
        answers = []
        for n, commit in enumerate(commits):
            other = log_of(writer(f"r{n}"))
            deliver(other, *commits[: n + 1])
            answers.append(other.append([expired()], stamp(100 + n)))
            assert answers[-1].deps == ((EU, n + 1, commit.hash[:8]),)
        log = log_of()
        deliver(log, *answers)
        assert len(log.waiting()) == 50
        for commit, answer in zip(commits, answers, strict=True):
            assert deliver(log, commit) == [commit, answer]


class TestHoldingBack:
    def test_a_commit_ahead_of_own_time_is_have_and_applied_when_its_time_comes(self):
        _, (commit,) = chain(EU, 1, start_ms=501)
        log = log_of()
        assert log.receive(commit.blob, NOW).verdict is Verdict.NEW
        assert apply_all(log, NOW) == []
        assert log.have == Heads({EU: 1})
        assert log.next_deadline_ms() == NOW + 1
        assert log.waiting() == (Waiting(EU, 1, Wait.STAMP, until_ms=NOW + 1),)
        assert apply_all(log, NOW + 1) == [commit]
        assert log.next_deadline_ms() is None
        assert log.waiting() == ()
        assert [(alarm.what, alarm.writer, alarm.number) for alarm in log.take_alarms()] == [("log.held_back", EU, 1)]

    def test_a_stamp_at_the_limit_is_not_held_back(self):
        _, (commit,) = chain(EU, 1, start_ms=500)
        assert deliver(log_of(), commit) == [commit]

    def test_only_the_infected_suffix_waits(self):
        eu, good = chain(EU, 2)
        bad = eu.append([expired()], stamp(60_000))
        us = log_of(US)
        deliver(us, *good)
        fine = us.append([expired()], stamp(5))
        deliver(us, bad, wall_ms=NOW + 60_000)
        follows = us.append([expired()], stamp(60_001))
        log = log_of()
        assert deliver(log, *good, bad, fine, follows) == [*good, fine]
        assert [waiting.wait for waiting in log.waiting()] == [Wait.STAMP, Wait.STAMP]
        assert apply_all(log, NOW + 60_000) == [bad, follows]

    def test_a_stamp_far_ahead_raises_one_alarm_and_is_kept(self):
        _, commits = chain(EU, 2, start_ms=2 * HOUR_MS)
        log = log_of()
        deliver(log, *commits)
        deliver(log, *commits)
        assert [alarm.what for alarm in log.take_alarms()] == ["log.far_ahead"]
        assert log.waiting()[0].wait is Wait.FAR_AHEAD
        assert apply_all(log, NOW + 2 * HOUR_MS) == commits
        assert log.take_alarms() == ()

    def test_a_wall_clock_that_steps_back_applies_nothing_early(self):
        _, commits = chain(EU, 2, start_ms=1_000)
        log = log_of()
        log.receive(commits[0].blob, NOW)
        log.receive(commits[1].blob, NOW)
        assert log.next_applicable(NOW) is None
        assert apply_all(log, NOW - 5_000) == []
        assert apply_all(log, NOW + 501) == commits


class TestQuarantine:
    def test_a_second_commit_under_one_number_quarantines_its_writer(self):
        _, (ours, next_ours) = chain(EU, 2)
        _, (theirs, _) = chain(EU, 2, event=1)
        log = log_of()
        deliver(log, ours)
        received = log.receive(theirs.blob, NOW)
        assert (received.verdict, received.commits) == (Verdict.QUARANTINED, ())
        assert log.quarantined == {EU: Evidence(EU, 1, Distrust.EQUIVOCATION, b"", theirs.blob)}
        assert [alarm.what for alarm in log.take_alarms()] == ["log.quarantined"]
        assert log.receive(next_ours.blob, NOW).refusal is Refusal.QUARANTINED
        assert log.receive(ours.blob, NOW).verdict is Verdict.DUPLICATE
        assert log.have == log.applied == Heads({EU: 1})

    def test_both_commits_are_kept_as_evidence_while_both_are_in_memory(self):
        _, (ours, _) = chain(EU, 2)
        _, (theirs, _) = chain(EU, 2, event=1)
        log = log_of()
        log.receive(ours.blob, NOW)
        log.receive(theirs.blob, NOW)
        assert log.quarantined[EU] == Evidence(EU, 1, Distrust.EQUIVOCATION, ours.blob, theirs.blob)
        assert apply_all(log) == [ours]  # it was have before

    def test_two_buffered_commits_under_one_number_quarantine_too(self):
        _, ours = chain(EU, 3)
        _, theirs = chain(EU, 3, event=1)
        log = log_of()
        log.receive(ours[2].blob, NOW)
        assert log.receive(theirs[2].blob, NOW).verdict is Verdict.QUARANTINED
        assert log.quarantined[EU] == Evidence(EU, 3, Distrust.EQUIVOCATION, ours[2].blob, theirs[2].blob)
        assert log.gaps() == ()

    def test_a_broken_chain_quarantines(self):
        _, (ours, _) = chain(EU, 2)
        _, (_, theirs) = chain(EU, 2, event=1)
        log = log_of()
        log.receive(ours.blob, NOW)
        assert log.receive(theirs.blob, NOW).verdict is Verdict.QUARANTINED
        assert log.quarantined[EU] == Evidence(EU, 2, Distrust.CHAIN, ours.blob, theirs.blob)

    def test_a_chain_that_breaks_inside_the_gap_buffer_keeps_what_came_before(self):
        _, ours = chain(EU, 3)
        _, theirs = chain(EU, 3, event=1)
        log = log_of()
        log.receive(theirs[2].blob, NOW)
        log.receive(ours[1].blob, NOW)
        received = log.receive(ours[0].blob, NOW)
        assert (received.verdict, received.commits) == (Verdict.QUARANTINED, (ours[0], ours[1]))
        assert log.have == Heads({EU: 2})

    def test_a_stamp_that_goes_back_quarantines(self):
        _, (first, _) = chain(EU, 2, start_ms=10)
        second = seal(DEFAULT_DOMAIN, EU, 2, stamp=stamp(9), deps=(), previous=first.hash, events=[expired()])
        log = log_of()
        log.receive(first.blob, NOW)
        assert log.receive(second.blob, NOW).verdict is Verdict.QUARANTINED
        assert log.quarantined[EU].distrust is Distrust.STAMP

    def test_somebody_else_writing_under_our_own_name_stops_us(self):
        ours, _ = chain(EU, 1)
        _, (_, theirs) = chain(EU, 2)
        assert ours.receive(theirs.blob, NOW).verdict is Verdict.QUARANTINED
        with pytest.raises(LocalProtocolError, match="another incarnation"):
            ours.append([expired()], stamp(9))

    def test_others_are_not_affected(self):
        _, (ours, _) = chain(EU, 2)
        _, (theirs, _) = chain(EU, 2, event=1)
        _, others = chain(US, 2)
        log = log_of()
        deliver(log, ours, theirs)
        assert deliver(log, *others) == others


class TestDurability:
    def test_only_what_is_on_disk_may_be_acknowledged(self):
        _, commits = chain(EU, 3)
        log = log_of()
        deliver(log, commits[0])
        have, applied = log.have, log.applied
        deliver(log, *commits[1:])
        log.mark_durable(have, applied)
        assert log.durable_have == log.durable_applied == Heads({EU: 1})

    def test_what_was_durable_before_it_was_applied_counts_when_it_is_applied(self):
        _, (commit,) = chain(EU, 1, start_ms=1_000)
        log = log_of()
        log.receive(commit.blob, NOW)
        log.mark_durable(log.have, log.applied)
        assert (log.durable_have, log.durable_applied) == (Heads({EU: 1}), Heads())
        apply_all(log, NOW + 1_000)
        assert log.durable_applied == Heads({EU: 1})

    def test_what_was_applied_while_its_batch_was_written_counts_when_it_is_durable(self):
        _, (commit,) = chain(EU, 1, start_ms=1_000)
        log = log_of()
        log.receive(commit.blob, NOW)
        have, applied = log.have, log.applied
        apply_all(log, NOW + 1_000)
        log.mark_durable(have, applied)
        assert log.durable_applied == Heads({EU: 1})


class TestMemory:
    def blocked(self, count, **limits):
        """A log in which `count` commits of US wait for one of EU, and that one."""
        _, (key,) = chain(EU, 1)
        us = log_of(US)
        deliver(us, key)
        commits = [us.append([expired()], stamp(n)) for n in range(count)]
        log = log_of(**limits)
        deliver(log, *commits)
        return log, key, commits

    def test_what_waits_beyond_the_limit_is_read_back_from_disk(self):
        log, key, commits = self.blocked(10, waiting_bytes_max=400)
        assert log.have == Heads({US: 10})
        log.mark_durable(log.have, log.applied)
        assert log.needed() is None  # the first ones are in memory, and blocked
        applied = deliver(log, key)
        assert applied[0] == key
        while (needed := log.needed()) is not None:
            assert needed == (US, len(applied))
            assert log.waiting() == (Waiting(US, len(applied), Wait.DISK),)
            assert log.provide([commit.blob for commit in commits[needed[1] - 1 :]]) >= 1
            applied += apply_all(log)
        assert applied == [key, *commits]

    def test_what_is_not_yet_durable_cannot_be_read_back(self):
        log, key, commits = self.blocked(10, waiting_bytes_max=1)
        deliver(log, key)
        assert log.applied[US] == 1
        assert log.needed() is None
        log.mark_durable(log.have, log.applied)
        assert log.needed() == (US, 2)
        assert log.provide([commits[1].blob]) == 1

    def test_one_commit_of_each_writer_is_kept_whatever_the_limit(self):
        """Or two writers that wait for each other could keep each other out of memory."""
        log = log_of(waiting_bytes_max=1)
        history = conversation()
        for commit in reversed(history):
            log.receive(commit.blob, NOW)
        log.mark_durable(log.have, log.applied)
        applied = apply_all(log)
        while (needed := log.needed()) is not None:
            log.provide([c.blob for c in history if c.writer == needed[0] and c.number >= needed[1]])
            applied += apply_all(log)
        assert applied == history

    def test_stale_answers_from_disk_do_no_harm(self):
        log, key, commits = self.blocked(4)
        assert log.provide([commits[0].blob, commits[3].blob, key.blob]) == 0
        assert deliver(log, key) == [key, *commits]

    def test_a_commit_on_disk_that_is_not_the_one_we_had_is_corrupt(self):
        log, key, commits = self.blocked(3, waiting_bytes_max=1)
        log.mark_durable(log.have, log.applied)
        deliver(log, key)
        forged = seal(DEFAULT_DOMAIN, US, 2, stamp=stamp(9), deps=(), previous=commits[0].hash, events=[expired(7)])
        with pytest.raises(CorruptLogError):
            log.provide([forged.blob])
        with pytest.raises(CorruptLogError, match="damaged"):
            log.provide([b"\0"])
        assert log.provide([commits[1].blob]) == 1

    def test_a_small_commit_does_not_slip_into_memory_past_a_large_one(self):
        _, (key,) = chain(EU, 1)
        us = log_of(US)
        deliver(us, key)
        commits = [us.append([expired()] * count, stamp(n)) for n, count in enumerate([1, 100, 1])]
        log = log_of(waiting_bytes_max=1_000)
        assert deliver(log, *commits, key) == [key, commits[0]]
        log.mark_durable(log.have, log.applied)
        assert log.needed() == (US, 2)
        assert log.provide([commits[1].blob, commits[2].blob]) == 1
        assert apply_all(log) == [commits[1]]

    def test_memory_stays_bounded_while_a_writer_waits(self):
        log, _, commits = self.blocked(200, waiting_bytes_max=2_000)
        assert sum(len(commit.blob) for commit in log._streams[US].ready) <= 2_000 + len(commits[-1].blob)


class TestRestart:
    def test_a_restored_log_goes_on_where_it_was(self):
        history = conversation()
        log = log_of()
        deliver(log, *history[:2])
        state = log.export_state()
        deliver(log, *history[2:])

        again = log_of(writer("ap", 2))
        again.restore(cbor2.loads(cbor2.dumps(state)))
        assert again.have == again.applied == again.durable_applied == Heads({EU: 2})
        for commit in history:
            again.restore_commit(commit.blob)
        assert apply_all(again) == history[2:]
        assert again.have == again.applied == again.durable_have == again.durable_applied == log.applied

    def test_the_first_commit_of_an_incarnation_depends_on_all_that_it_took_over(self):
        log = log_of()
        history = conversation()
        deliver(log, *history)
        again = log_of(writer("ap", 2))
        again.restore(log.export_state())
        assert again.append([expired()], stamp(30)).deps == (
            (EU, 3, history[3].hash[:8]),
            (US, 1, history[2].hash[:8]),
        )

    def test_an_identity_is_used_once(self):
        log, commits = chain(EU, 1)
        again = log_of(EU)
        with pytest.raises(LocalProtocolError, match="new incarnation"):
            again.restore(log.export_state())
        with pytest.raises(LocalProtocolError, match="new incarnation"):
            log_of(EU).restore_commit(commits[0].blob)

    def test_quarantine_survives_a_restart(self):
        _, (ours, later) = chain(EU, 2)
        _, (theirs, _) = chain(EU, 2, event=1)
        log = log_of()
        deliver(log, ours, theirs)
        again = log_of(writer("ap", 2))
        again.restore(log.export_state(), cbor2.loads(cbor2.dumps(log.export_evidence())))
        assert again.quarantined == log.quarantined
        assert again.receive(later.blob, NOW).refusal is Refusal.QUARANTINED

    def test_what_was_have_of_a_quarantined_writer_is_restored(self):
        _, (ours, _) = chain(EU, 2)
        _, (theirs, _) = chain(EU, 2, event=1)
        log = log_of()
        deliver(log, ours, theirs)
        again = log_of(writer("ap", 2))
        again.restore(log_of().export_state(), log.export_evidence())
        again.restore_commit(ours.blob)
        assert apply_all(again) == [ours]

    def test_a_hole_on_disk_is_a_visible_gap_that_a_peer_fills(self):
        _, commits = chain(EU, 3)
        log = log_of()
        log.restore(log_of().export_state())
        log.restore_commit(commits[0].blob)
        assert log.restore_commit(commits[2].blob).verdict is Verdict.BUFFERED
        assert log.gaps() == (Span(EU, 2, 2),)
        assert log.durable_have == Heads({EU: 1})
        assert log.receive(commits[1].blob, NOW).commits == tuple(commits[1:])

    def test_damage_on_disk_is_told_and_skipped(self):
        _, commits = chain(EU, 2)
        _, (_, other) = chain(EU, 2, event=1)
        log = log_of()
        log.restore_commit(commits[0].blob)
        with pytest.raises(CorruptLogError):
            log.restore_commit(commits[1].blob[:-3])
        with pytest.raises(CorruptLogError, match="does not follow"):
            log.restore_commit(other.blob)
        assert not log.quarantined
        log.restore_commit(commits[1].blob)
        assert apply_all(log) == commits

    @pytest.mark.parametrize(
        "state",
        [
            None,
            (),
            (2, "default", ()),
            (1, "other", ()),
            (1, "default", ((EU, 1),)),
            (1, "default", ((EU, 1, b"", 0),)),
        ],
    )
    def test_a_state_that_makes_no_sense_is_corrupt(self, state):
        with pytest.raises(CorruptLogError):
            log_of().restore(state)

    def test_a_tail_longer_than_memory_comes_back_in_portions(self):
        _, commits = chain(EU, 40)
        log = log_of(waiting_bytes_max=500)
        for commit in commits:
            log.restore_commit(commit.blob)
        applied = apply_all(log)
        assert len(applied) < 40
        while (needed := log.needed()) is not None:
            log.provide([commit.blob for commit in commits[needed[1] - 1 : needed[1] + 9]])
            applied += apply_all(log)
        assert applied == commits


class TestAdopting:
    """A replica that is older than a peer's floor goes on from that peer's state."""

    def test_what_the_state_covers_counts_as_applied_and_what_follows_it_fits(self):
        history = conversation()
        donor = log_of(writer("donor"))
        deliver(donor, *history[:3])
        log = log_of()
        assert log.adopt(cbor2.loads(cbor2.dumps(donor.export_state()))) == Heads({EU: 2, US: 1})
        assert log.have == log.applied == Heads({EU: 2, US: 1})
        assert deliver(log, *history) == [history[3]]
        assert log.append([expired()], stamp(30)).deps[0] == (EU, 3, history[3].hash[:8])

    def test_it_is_acknowledged_once_its_batch_is_durable(self):
        _, commits = chain(EU, 3)
        donor = log_of(writer("donor"))
        deliver(donor, *commits)
        log = log_of()
        log.mark_durable(log.have, log.applied)
        log.adopt(donor.export_state())
        assert log.durable_applied == Heads()
        log.mark_durable(log.have, log.applied)
        assert log.durable_have == log.durable_applied == Heads({EU: 3})

    def test_it_is_acknowledged_even_if_the_commits_were_on_disk_before(self):
        """They waited for something that the state holds."""
        history = conversation()
        donor = log_of(writer("donor"))
        deliver(donor, *history)
        log = log_of()
        deliver(log, history[2])
        log.mark_durable(log.have, log.applied)
        log.adopt(donor.export_state())
        log.mark_durable(log.have, log.applied)
        assert log.durable_applied == log.applied == Heads({EU: 3, US: 1})
        assert log.waiting() == ()
        assert apply_all(log) == []

    def test_what_waited_for_it_is_applied(self):
        first, second, answer, third = conversation()
        donor = log_of(writer("donor"))
        deliver(donor, first, second)
        log = log_of()
        deliver(log, answer, third)
        log.adopt(donor.export_state())
        assert deliver(log, third) == [answer, third]
        assert log.gaps() == ()

    def test_commits_beyond_it_that_are_have_stay_and_are_applied(self):
        _, (one, two) = chain(EU, 2)
        us = log_of(US)
        deliver(us, one)
        answers = [us.append([expired()], stamp(10 + n)) for n in range(3)]
        donor = log_of(writer("donor"))
        deliver(donor, one, answers[0])
        log = log_of()
        deliver(log, *answers)
        log.adopt(donor.export_state())
        assert apply_all(log) == answers[1:]
        assert deliver(log, two) == [two]

    def test_a_state_of_another_branch_changes_nothing(self):
        _, (ours, _) = chain(EU, 2)
        _, (theirs, _) = chain(EU, 2, event=1)
        _, others = chain(US, 1)
        donor = log_of(writer("donor"))
        deliver(donor, theirs, *others)
        log = log_of()
        log.receive(ours.blob, NOW)
        with pytest.raises(CorruptLogError, match="another commit 1"):
            log.adopt(donor.export_state())
        assert log.have == Heads({EU: 1})
        assert apply_all(log) == [ours]

    @pytest.mark.parametrize("state", [None, (2, "default", ()), (1, "other", ()), (1, "default", ((EU, 1, b"", 0),))])
    def test_a_state_that_makes_no_sense_changes_nothing(self, state):
        log = log_of()
        with pytest.raises(CorruptLogError):
            log.adopt(state)
        assert log.have == Heads()
