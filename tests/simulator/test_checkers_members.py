"""What checkers of membership and of fencing say of hand-made histories."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from crdtsync import events as ev
from crdtsync.identifiers import EventId, TaskId
from crdtsync.protocol import codec
from simulator.checkers.checkpoints import Checkpoints
from simulator.checkers.exclusivity import Exclusivity
from simulator.checkers.fencing import Fencing
from simulator.checkers.members import Members
from simulator.checkers.rolls import Rolls
from simulator.plan import Fault, Plan
from tests.simulator.stage import Stage

OLD = ("ap", "eu", "us")
LEASE_MS = 10_000


def change(version: int, what: str, *regions: str, epoch: int = 0) -> ev.MembersChanged:
    return ev.MembersChanged(epoch, version, OLD, what, regions, "", False)


def vote(stage: Stage, change: ev.MembersChanged, *voters: str, ballot: int = 1) -> None:
    """These voters accept a change, durably."""
    for voter in voters:
        promise = (change.epoch, change.version, ballot, "w", ballot, "w", codec.encode(tuple(change)))
        stage.store(voter, meta=(("synod", codec.encode(promise)),))


def answer(stage: Stage, region: str, version: int, of: str) -> None:
    heads = tuple((w, n) for w, n in sorted(stage.node(region).applied.items()) if w.startswith(f"{of}/"))
    stage.commit(region, ev.FinalHeads(0, version, heads))


class TestConfigurations:
    def test_a_change_that_a_majority_has_on_disk_is_fine(self):
        stage = Stage(Exclusivity, *OLD)
        forget = change(2, "forget", "ap")
        vote(stage, forget, "eu", "us")
        stage.commit("eu", forget)
        assert stage.found() == []

    def test_a_minority_decides_nothing(self):
        stage = Stage(Exclusivity, *OLD)
        forget = change(2, "forget", "ap")
        vote(stage, forget, "eu")
        stage.commit("eu", forget)
        assert stage.found() == ["EXCL-4"]

    def test_votes_of_two_ballots_are_no_majority_together(self):
        stage = Stage(Exclusivity, *OLD)
        forget = change(2, "forget", "ap")
        vote(stage, forget, "eu")
        vote(stage, forget, "us", ballot=2)
        stage.commit("eu", forget)
        assert stage.found() == ["EXCL-4"]

    def test_who_is_only_joining_has_no_vote(self):
        stage = Stage(Exclusivity, *OLD, "sa", joins="sa")
        add, forget = change(2, "add", "sa"), change(3, "forget", "sa")
        vote(stage, add, "eu", "us")
        stage.commit("eu", add)
        stage.wait(LEASE_MS)
        vote(stage, forget, "eu", "sa")
        stage.commit("eu", forget)
        assert stage.found() == ["EXCL-4"]

    def test_one_version_is_decided_once(self):
        stage = Stage(Exclusivity, *OLD, "sa")
        for voters, forget in ((("eu", "us", "ap"), "sa"), (("eu", "us", "sa"), "ap")):
            vote(stage, change(2, "forget", forget), *voters)
            stage.commit(voters[0], change(2, "forget", forget))
        assert stage.found() == ["EXCL-4"]

    def test_whoever_learns_of_a_decision_may_write_it_down_again(self):
        stage = Stage(Exclusivity, *OLD)
        forget = change(2, "forget", "ap")
        vote(stage, forget, "eu", "us")
        stage.commit("eu", forget)
        stage.commit("us", forget)
        assert stage.found() == []

    def test_the_next_change_waits_for_a_maximal_lease(self):
        stage = Stage(Exclusivity, *OLD, "na", "sa")
        first, second = change(2, "forget", "ap"), change(3, "forget", "sa")
        for waits_ms, forget in ((0, first), (LEASE_MS // 2, second)):
            stage.wait(waits_ms)
            vote(stage, forget, "eu", "us", "na")
            stage.commit("eu", forget)
        assert stage.found() == ["EXCL-4"]

    def test_nobody_is_added_while_another_one_leaves(self):
        stage = Stage(Exclusivity, *OLD)
        forget, add = change(2, "forget", "ap"), change(3, "add", "sa")
        vote(stage, forget, "eu", "us")
        stage.commit("eu", forget)
        stage.wait(LEASE_MS)
        vote(stage, add, "eu", "us")
        stage.commit("eu", add)
        assert stage.found() == ["EXCL-4"]

    def test_two_regions_at_once_would_be_too_many(self):
        stage = Stage(Exclusivity, *OLD)
        forget = change(2, "forget", "ap", "us")
        vote(stage, forget, "eu", "us", "ap")
        stage.commit("eu", forget)
        assert stage.found() == ["EXCL-4"]

    def test_an_operators_word_that_a_majority_is_gone_needs_no_votes(self):
        stage = Stage(Exclusivity, *OLD)
        stage.commit("eu", change(2, "forget", "ap", "us", epoch=1))
        assert stage.found() == []


def grant(stage: Stage, holder: str, *voters: str, durable: bool = True, token: int = 5) -> None:
    """These voters accept the holder's ballot, and it takes a lease by their votes."""
    until = {"until_mono_ms": stage.world.kernel.now_us // 1_000 + LEASE_MS}
    for voter in voters:
        if durable:
            stage.store(voter, meta=(("leases", codec.encode((token, LEASE_MS))),))
        stage.notify(voter, "lease.accepted", scope="s", region=holder, ballot=token, **until)
    stage.notify(holder, "lease.granted", scope="s", token=token, ballot=token, voters=list(voters), **until)


class TestGrants:
    def test_a_vote_whose_disk_has_burned_since_was_durable_all_the_same(self):
        stage = Stage(Exclusivity, *OLD)
        stage.wait(2 * LEASE_MS)
        grant(stage, "eu", "eu", "us")
        assert stage.node("us").disk.store.meta == {}
        assert stage.found() == []

    def test_a_vote_that_no_disk_ever_knew_is_reported(self):
        stage = Stage(Exclusivity, *OLD)
        stage.wait(2 * LEASE_MS)
        grant(stage, "eu", "eu", "us", durable=False)
        assert stage.found() == ["EXCL-2"]

    def test_a_lease_needs_a_majority_of_the_members_of_that_moment(self):
        stage = Stage(Exclusivity, *OLD, "sa", joins="sa")
        stage.wait(2 * LEASE_MS)
        grant(stage, "eu", "eu", "us")
        for version, what in ((2, "add"), (3, "admit")):
            stage.wait(LEASE_MS)
            vote(stage, change(version, what, "sa"), *OLD)
            stage.commit("eu", change(version, what, "sa"))
        stage.deliver("eu", "us")
        assert stage.found() == []
        stage.wait(LEASE_MS)
        grant(stage, "eu", "eu", "us", token=6)
        assert stage.found() == ["EXCL-4"]


def forgotten(stage: Stage) -> None:
    """The region ap is forgotten, and all have said what they have of it."""
    stage.commit("eu", change(2, "forget", "ap"))
    stage.deliver("eu", "us")
    answer(stage, "eu", 2, "ap")
    answer(stage, "us", 2, "ap")
    stage.deliver("eu", "us")
    stage.deliver("us", "eu")


class TestMembers:
    def test_what_was_agreed_on_of_a_forgotten_region_is_fine(self):
        stage = Stage(Members, *OLD)
        stage.submit("ap")
        stage.deliver("ap")
        forgotten(stage)
        stage.submit("eu")
        assert stage.found() == []

    def test_nothing_is_applied_beyond_the_end_of_a_forgotten_region(self):
        stage = Stage(Members, *OLD)
        forgotten(stage)
        stage.submit("ap")  # alone
        assert stage.found() == []
        stage.deliver("ap", "us")
        assert stage.found() == ["MEMB-1"]

    def test_what_one_of_them_had_is_not_beyond_the_end(self):
        stage = Stage(Members, *OLD)
        stage.submit("ap")
        stage.deliver("ap", "us")
        forgotten(stage)
        stage.deliver("us", "eu")
        stage.submit("eu")
        assert stage.found() == []

    def test_a_region_that_has_left_before_all_have_answered_is_reported(self):
        stage = Stage(Members, *OLD)
        forgotten(stage)
        early = stage.node("us").membership
        stage = Stage(Members, *OLD)
        stage.commit("eu", change(2, "forget", "ap"))
        answer(stage, "eu", 2, "ap")
        stage.node("eu").shown = early
        stage.submit("eu")
        assert stage.found() == ["MEMB-2"]

    def test_answers_of_unlike_versions_are_not_added_up(self):
        """By the reckoning of the checkers; the core's is held against it in every run."""
        rolls = Rolls((*OLD, "na", "sa"))
        place = iter(range(1, 100))

        def note(region: str, event: ev.MembersChanged | ev.FinalHeads) -> None:
            rolls.note(EventId(next(place) << 16, f"{region}/a#1-0000000000000000", 1, 0), event)

        note("eu", change(2, "forget", "ap"))
        for region in ("eu", "us"):
            note(region, ev.FinalHeads(0, 2, ()))
        note("eu", change(3, "forget", "sa"))
        note("na", ev.FinalHeads(0, 3, ()))
        assert (rolls.whole.leaving, dict(rolls.whole.gone)) == (("ap", "sa"), {})
        for region in ("eu", "us"):
            note(region, ev.FinalHeads(0, 3, ()))
        assert set(rolls.whole.gone) == {"ap", "sa"}

    @pytest.mark.parametrize("heard", [True, False])
    def test_a_joiner_waits_for_every_members_acknowledgement(self, heard):
        stage = Stage(Members, *OLD, "sa", joins="sa")
        stage.commit("eu", change(2, "add", "sa"))
        stage.deliver("eu", "us", "sa")
        if heard:
            stage.deliver("eu", "ap")
        stage.commit("sa", change(3, "admit", "sa"))
        assert [name for name in stage.found() if name == "MEMB-3"] == ([] if heard else ["MEMB-3"])

    def test_a_joiner_has_applied_what_the_members_had_when_they_acknowledged_it(self):
        stage = Stage(Members, *OLD, "sa", joins="sa")
        stage.submit("us")  # which the joiner never gets
        stage.commit("eu", change(2, "add", "sa"))
        stage.deliver("eu", "us", "ap", "sa")
        stage.commit("sa", change(3, "admit", "sa"))
        assert "MEMB-3" in stage.found()

    def test_a_change_that_stays_half_done_is_reported(self):
        stage = Stage(Members, *OLD, plan=Plan(heal_ms=1_000))
        stage.commit("eu", change(2, "forget", "ap"))
        stage.world.healed_nodes = lambda: [stage.node("eu"), stage.node("us")]
        assert stage.found(end=True) == []
        stage.wait(70_000)
        assert stage.found(end=True) == ["MEMB-4"]

    @pytest.mark.parametrize("told", [True, False])
    def test_who_was_forgotten_and_is_back_is_told(self, told):
        stage = Stage(Members, *OLD, plan=Plan((Fault("isolate", 0, 1_000, ("ap",)),)))
        forgotten(stage)
        stage.world.healed_nodes = lambda: [stage.node("eu"), stage.node("us")]
        if told:
            stage.notify("ap", "region.forgotten", by="eu")
        stage.wait(20_000)
        assert stage.found(end=True) == ([] if told else ["MEMB-4"])


def checkpoint(stage: Stage, name: str, task: bytes, attempt: EventId, index: int) -> None:
    stage.commit(name, ev.Checkpointed(TaskId(task), attempt, index, b"data"))


def assign(
    stage: Stage, name: str, task: bytes, attempt: EventId, fence: int, index: int, saved: bytes | None = b"data"
) -> None:
    assignment = SimpleNamespace(
        task=task,
        attempt=attempt,
        fence=fence,
        checkpoint=saved,
        checkpoint_index=index,
        name="t",
        number=1,
        effects=(),
    )
    data = (task.hex(), "t", 1, 0, fence, "w")
    stage.trace.add("task.assigned", name, str(attempt), data, subject=assignment)


class TestFencing:
    def test_the_success_of_the_newest_token_is_fine(self):
        stage = Stage(Fencing)
        task = stage.submit("eu")
        older = stage.claim("eu", task, token=5)
        stage.deliver("eu")
        newer = stage.claim("us", task, token=7)
        stage.end("us", task, newer)
        stage.end("eu", task, older)
        stage.deliver("us")
        stage.deliver("eu")
        attempts = ((str(older), "ok", False), (str(newer), "ok", False))
        stage.heads()
        stage.view("eu", task, winner=newer, attempts=attempts)
        assert stage.found(end=True) == []

    def test_the_success_of_an_older_token_never_is_the_outcome(self):
        stage = Stage(Fencing)
        task = stage.submit("eu")
        older = stage.claim("eu", task, token=5)
        stage.deliver("eu")
        newer = stage.claim("us", task, token=7)
        stage.end("eu", task, older)
        stage.deliver("us")
        stage.heads()
        stage.view("eu", task, winner=older, attempts=((str(older), "ok", False), (str(newer), "open", False)))
        assert stage.found(end=True) == ["EXCL-3"]

    def test_what_a_region_has_not_heard_of_shuts_nothing_out_there_yet(self):
        stage = Stage(Fencing)
        task = stage.submit("eu")
        older = stage.claim("eu", task, token=5)
        stage.deliver("eu")
        stage.claim("us", task, token=7)
        stage.end("eu", task, older)
        stage.heads()
        stage.view("eu", task, winner=older, attempts=((str(older), "ok", False),))
        assert stage.found(end=True) == []

    def test_what_was_done_under_an_older_token_stays_as_evidence(self):
        stage = Stage(Fencing)
        task = stage.submit("eu")
        older = stage.claim("eu", task, token=5)
        stage.deliver("eu")
        newer = stage.claim("us", task, token=7)
        stage.end("us", task, newer)
        stage.end("eu", task, older)
        stage.deliver("us")
        stage.heads()
        stage.view("eu", task, winner=newer, attempts=((str(newer), "ok", False),))
        assert stage.found(end=True) == ["EXCL-3"]

    def test_nobody_decides_what_it_has_seen_shut_out(self):
        stage = Stage(Fencing)
        task = stage.submit("eu")
        older = stage.claim("eu", task, token=5)
        stage.deliver("eu")
        stage.claim("us", task, token=7)
        stage.end("eu", task, older)
        stage.commit("eu", ev.Decided(TaskId(task), older))
        assert stage.found() == []
        stage.deliver("us")
        stage.commit("eu", ev.Decided(TaskId(task), older))
        assert stage.found() == ["EXCL-3"]

    @pytest.mark.parametrize("late, found", [(False, []), (True, ["EXCL-3"])])
    def test_nobody_resumes_from_what_was_saved_behind_a_newer_claim(self, late, found):
        stage = Stage(Fencing)
        task = stage.submit("eu")
        older = stage.claim("eu", task, token=5)
        if not late:
            checkpoint(stage, "eu", task, older, 3)
        stage.deliver("eu")
        newer = stage.claim("us", task, token=7, continues=older)
        if late:
            checkpoint(stage, "eu", task, older, 3)
        stage.deliver("eu")
        newest = stage.claim("us", task, token=9, continues=newer)
        assign(stage, "us", task, newest, 9, 3)
        assert stage.found() == found

    @pytest.mark.parametrize("index, found", [(0, []), (3, ["CKPT-1"])])
    def test_what_a_region_resumes_from_is_the_newest_that_is_not_shut_out(self, index, found):
        """An attempt that goes on saving behind a newer claim has nothing left to resume from: its newest alone is kept."""
        stage = Stage(Checkpoints)
        task = stage.submit("eu")
        older = stage.claim("eu", task, token=5)
        stage.deliver("eu")
        newer = stage.claim("us", task, token=7, continues=older)
        checkpoint(stage, "eu", task, older, 3)
        stage.end("us", task, newer, "lost")
        stage.deliver("eu")
        stage.deliver("us")
        newest = stage.claim("us", task, token=9, continues=newer)
        assign(stage, "us", task, newest, 9, index, saved=b"data" if index else None)
        assert stage.found() == found
