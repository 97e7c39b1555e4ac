"""The bugs that `mutants` plants, one function each: what is replaced, and by what.

They reach into private parts of the core on purpose. When the core changes shape, a mutant that finds nothing to
replace fails at once, and one that no longer changes anything survives and fails its test.
"""

# ruff: noqa: ARG005, SLF001 - a bug has the signature of what it replaces, and reaches inside

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from crdtsync import clock as clocks
from crdtsync import (
    clock_watch,
    duties,
    intake,
    lifecycle,
    outbox,
    region,
    requests,
    resolve,
    rows,
    tasks,
    undoing,
)
from crdtsync.coordination import lease, leases, sessions
from crdtsync.events import CancelRequested, Ended, Requeued
from crdtsync.gossip import anti_entropy
from crdtsync.gossip.settings import GossipSettings
from crdtsync.history import Facts
from crdtsync.identifiers import RegionId, derived_id
from crdtsync.log import digest, domain_log, stability
from crdtsync.log.stability import Ack
from crdtsync.log.verdicts import Received, Verdict
from crdtsync.replica import Replica
from crdtsync.scheduling import dispatch, handover
from crdtsync.scheduling.ready import order_key
from crdtsync.task_view import view_hash
from crdtsync.workflow import dependencies
from simulator import node as driver
from simulator.limit_bugs import LIMIT_BUGS
from simulator.member_bugs import MEMBER_BUGS
from simulator.mutants import Bug, Patches
from simulator.reissue_bugs import REISSUE_BUGS

if TYPE_CHECKING:
    from simulator.node import Node

# Durability ----------------------------------------------------------------------------------------


def acknowledge_before_fsync(patches: Patches) -> None:
    patches.replace(outbox.Outbox, "emit", lambda self, effect, *, unsaved: self._free.append(effect))


def gossip_before_fsync(patches: Patches) -> None:
    close = outbox.Outbox.close

    def hasty(self: Any) -> Any:
        batch = close(self)
        todo, batch.after = batch.after, []
        for callback in todo:
            callback()
        return batch

    patches.replace(outbox.Outbox, "close", hasty)


def cancel_not_written(patches: Patches) -> None:
    write = region.RegionState.write

    def forgets(self: Any, event: Any) -> Any:
        if type(event) is CancelRequested:
            return self.table.get(event.task) and next(self.table.get(event.task).facts.events())[0]
        return write(self, event)

    patches.replace(region.RegionState, "write", forgets)


def forget_dedup_after_restart(patches: Patches) -> None:
    patches.replace(Replica, "restore_known", lambda self, ids: None)


def fold_recorded_before_its_rows(patches: Patches) -> None:
    start_flush = rows.Rows.start_flush

    def hasty(self: Any, *, anew: bool = False) -> None:
        start_flush(self, anew=anew)
        if self._pending:
            self._pending.clear()

    patches.replace(rows.Rows, "start_flush", hasty)


def reuse_of_an_incarnation(patches: Patches) -> None:
    patches.replace(driver, "writer_id", lambda name, node, _count, _entropy: f"{name}/{node}#1-{'0' * 16}")


# The log -------------------------------------------------------------------------------------------


def ignore_deps(patches: Patches) -> None:
    obstacle = domain_log.DomainLog._obstacle

    def blind(self: Any, stream: Any, commit: Any, wall_ms: int) -> Any:
        return obstacle(self, stream, commit._replace(deps=()), wall_ms)

    patches.replace(domain_log.DomainLog, "_obstacle", blind)


def skip_gaps(patches: Patches) -> None:
    def skips(self: Any, stream: Any, commit: Any) -> Received:
        self._advance_have(stream, commit)
        self._keep(stream, commit)
        return Received(Verdict.NEW, (commit,))

    patches.replace(domain_log.DomainLog, "_buffer", skips)


def apply_what_is_held_back(patches: Patches) -> None:
    obstacle = domain_log.DomainLog._obstacle

    def hasty(self: Any, stream: Any, commit: Any, _wall_ms: int) -> Any:
        return obstacle(self, stream, commit, 1 << 60)

    def follows(self: Any, stamp: int, _now: Any) -> None:
        self._last = max(self._last, stamp)

    patches.replace(domain_log.DomainLog, "_obstacle", hasty)
    patches.replace(clocks.HybridClock, "observe", follows)


def drop_before_all_have_it(patches: Patches) -> None:
    drop_old = rows.Rows.drop_old

    def greedy(self: Any) -> None:
        here, visited = self._here, self._visited
        mine = here.log.durable_applied
        self._visited = dict(mine.items())
        self._here = _Instead(here, stability=SimpleNamespace(stable=lambda: mine))
        try:
            drop_old(self)
        finally:
            self._here, self._visited = here, visited

    patches.replace(rows.Rows, "drop_old", greedy)


class _Instead:
    """Another object with some attributes replaced."""

    def __init__(self, whole: Any, **instead: Any) -> None:
        self.__dict__.update(instead)
        self._whole = whole

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)


def snapshot_without_rows(patches: Patches) -> None:
    from crdtsync import intake  # noqa: PLC0415

    patches.replace(intake.Intake, "join_rows", lambda self, peer, rows, size: self.credit(peer, size))


def acknowledge_what_is_not_applied(patches: Patches) -> None:
    from crdtsync import neighbours  # noqa: PLC0415

    def boasts(self: Any) -> None:
        here = self._here
        have = here.log.durable_have
        ack = Ack(here.me, here.writer, have[here.writer], have)
        self.gossip.acknowledge(here.domain, ack, here.now)
        here.stability.advance(here.log.applied)

    patches.replace(neighbours.Neighbours, "_acknowledge", boasts)


def relay_back(patches: Patches) -> None:
    def back(self: Any, row: Any, source: Any, links: Any, now_ms: int) -> None:  # noqa: ARG001
        self._position[row.writer] = min(self._position.get(row.writer, 0), row.number - 1)
        self._behind.add(row.writer)

    patches.replace(anti_entropy.Feed, "durable", back)


def chatter_at_rest(patches: Patches) -> None:
    def hasty(**settings: Any) -> GossipSettings:
        return GossipSettings(**{**settings, "heads_interval_ms": 20})

    from crdtsync import neighbours  # noqa: PLC0415

    patches.replace(neighbours, "GossipSettings", hasty)


# Time ----------------------------------------------------------------------------------------------


def stamps_from_the_wall_clock(patches: Patches) -> None:
    def tick(self: Any, now: Any) -> int:
        stamp = self._last = clocks.make_stamp(now.wall_ms, self._last & 0xFF)
        return stamp

    patches.replace(clocks.HybridClock, "tick", tick)


def stamps_go_back_at_a_restart(patches: Patches) -> None:
    begin = clocks.HybridClock.__init__

    def forgets(self: Any, bound: int = 0, *, max_skew_ms: int = clocks.MAX_SKEW_MS) -> None:  # noqa: ARG001
        begin(self, 0, max_skew_ms=max_skew_ms)

    patches.replace(clocks.HybridClock, "__init__", forgets)
    patches.replace(clocks.HybridClock, "observe", lambda self, stamp, now: None)


def waits_by_the_wall_clock(patches: Patches) -> None:
    patches.replace(region.RegionState, "time_ms", property(lambda self: self.now.wall_ms))


def stamps_while_its_clock_is_off(patches: Patches) -> None:
    patches.replace(clock_watch.ClockWatch, "stopped", property(lambda self: False))


def held_back_stamps_are_followed(patches: Patches) -> None:
    arrived = intake.Intake.arrived

    def follows(self: Any, peer: Any, blobs: Any, size: int) -> None:
        arrived(self, peer, blobs, size)
        here = self._here
        here.clock._last = max([here.clock._last, *(s.have_stamp for s in here.log._streams.values())])

    patches.replace(intake.Intake, "arrived", follows)


# Resolution ----------------------------------------------------------------------------------------


def winner_by_end(patches: Patches) -> None:
    def first_to_end(attempts: Any) -> Any:
        done = [attempt for attempt in attempts if resolve.is_candidate(attempt)]
        return min(done, key=lambda attempt: attempt.end).id if done else None

    patches.replace(resolve, "winner_of", first_to_end)


def winner_by_arrival(patches: Patches) -> None:
    view_of = tasks.TaskTable.view
    first: dict[tuple[int, bytes], Any] = {}

    def sticky(self: Any, task: Any) -> Any:
        view = view_of(self, task)
        if view.winner is not None:
            known = first.setdefault((id(self), task.id), view.winner)
            if known != view.winner:
                view = task.view = view._replace(winner=known)
                share = view_hash(task.id, view)
                self.digest.replace(task.digest, share)
                task.digest = share
        return view

    patches.replace(tasks.TaskTable, "view", sticky)


def resolve_differs_in_one_region(patches: Patches, node: Node) -> None:
    del patches  # it dies with its replica
    assert node.replica is not None
    table, module = node.replica._here.table, vars(tasks)
    view_of, truth = table.view, module["resolve"]

    def wrong(facts: Facts) -> Any:
        view = truth(facts)
        return view._replace(failures=view.failures + 1) if len(view.attempts) > 1 and view.winner is not None else view

    def view(task: Any) -> Any:
        if task.view is not None:
            return task.view
        module["resolve"] = wrong
        try:
            return view_of(task)
        finally:
            module["resolve"] = truth

    table.view = view  # type: ignore[method-assign]


def digest_not_updated(patches: Patches, node: Node) -> None:
    del patches
    assert node.replica is not None
    table = node.replica._here.table
    count = itertools.count(1)

    class Lazy(digest.Digest):
        def replace(self, old: bytes, new: bytes) -> None:
            if next(count) % 7:
                super().replace(old, new)

    table.digest = Lazy(bytes(table.digest))


def hash_input_not_canonical(patches: Patches) -> None:
    hashed = view_hash
    count = itertools.count()

    def unstable(task: Any, view: Any) -> bytes:
        return hashed(task, view._replace(labels=(("order", str(next(count) % 2)),)))

    patches.replace(tasks, "view_hash", unstable)


def retry_cap_per_region(patches: Patches) -> None:
    count = resolve.count_failures

    def apart(attempts: Any, options: Any) -> Any:
        attempts = tuple(attempts)
        regions = sorted({attempt.region for attempt in attempts})
        return max((count([a for a in attempts if a.region == r], options) for r in regions), key=lambda c: c[:4])

    patches.replace(resolve, "count_failures", apart)


def permanent_failures_are_retried(patches: Patches) -> None:
    count = resolve.count_failures
    patches.replace(
        resolve,
        "count_failures",
        lambda attempts, options: count([a._replace(retryable=True) for a in attempts], options),
    )


def late_flag_lies(patches: Patches) -> None:
    patches.replace(lifecycle, "outcome_known", lambda view: False)


def late_cancels_count(patches: Patches) -> None:
    cancel_of = resolve.cancel_of

    def counts(facts: Facts, found: Any) -> Any:
        found[CancelRequested] = [(at, event._replace(late=False)) for at, event in found[CancelRequested]]
        return cancel_of(facts, found)

    patches.replace(resolve, "cancel_of", counts)


def expired_still_starts(patches: Patches) -> None:
    state_of, refusal = resolve.state_of, lifecycle._refusal_of_claim
    patches.replace(resolve, "state_of", lambda *, expired, **rest: state_of(expired=False, **rest))
    patches.replace(lifecycle, "_refusal_of_claim", lambda view, *rest: refusal(view._replace(expired=None), *rest))


def requeue_grants_forever(patches: Patches) -> None:
    sorted_out = resolve._sorted_out

    def every(facts: Facts) -> Any:
        found = sorted_out(facts)
        requeues = found[Requeued]
        if len({event.death for _, event in requeues}) < len(requeues):
            found[Requeued] = [(at, event._replace(death=n + 1)) for n, (at, event) in enumerate(requeues)]
        return found

    patches.replace(resolve, "_sorted_out", every)


def giver_starts_what_it_offered(patches: Patches) -> None:
    refusal = lifecycle._refusal_of_claim
    patches.replace(
        lifecycle, "_refusal_of_claim", lambda view, *rest: refusal(view._replace(offer=None, returning=None), *rest)
    )
    patches.replace(
        duties.Duties,
        "_take_back",
        lambda self, task, view: self._ready.add(
            task.id,
            self._limits.lane_of(view),
            order_key(view.submission, view.priority, 0),
        ),
    )


def settle_without_stability(patches: Patches) -> None:
    patches.replace(stability.Stability, "stable", lambda self: self._applied)


# Effects and compensation --------------------------------------------------------------------------


def compensate_twice(patches: Patches) -> None:
    count = itertools.count()
    patches.replace(undoing, "compensation_id", lambda *parts: derived_id(b"undo", str(next(count) // 3).encode()))


def compensate_never(patches: Patches) -> None:
    patches.replace(undoing, "undo", lambda facts, view, *, settled, decided: ())


def compensate_before_it_is_settled(patches: Patches) -> None:
    undo = undoing.undo
    patches.replace(
        undoing, "undo", lambda facts, view, *, settled, decided: undo(facts, view, settled=True, decided=True)
    )


def undo_inherited_effects(patches: Patches) -> None:
    patches.replace(undoing, "standing_keys", lambda view: frozenset())


def share_keys_across_a_cut(patches: Patches) -> None:
    def shares(facts: Facts, attempt: Any) -> bool:  # noqa: ARG001
        claim = attempt.claim
        return claim is not None and claim.continues is not None and claim.continues_ended

    patches.replace(undoing, "keeps_keys", shares)
    patches.replace(resolve, "keeps_keys", shares)


def ledger_not_inherited(patches: Patches) -> None:
    patches.replace(dispatch, "inherited_effects", lambda facts, continued: ())


def older_checkpoint_wins(patches: Patches) -> None:
    def oldest(facts: Facts, attempt: Any) -> Any:
        found = [known.checkpoint for known in undoing.chain(facts, attempt) if known.checkpoint is not None]
        return min(found, key=lambda pair: (pair[1].index, pair[0]))[1] if len(found) > 1 else None

    patches.replace(dispatch, "newest_checkpoint", oldest)


# Scheduling ----------------------------------------------------------------------------------------


def take_over_too_early(patches: Patches) -> None:
    def impatient(self: Any) -> frozenset[RegionId]:
        lost_after = self._here.settings.lost_after_ms // 3
        return frozenset(r for r in self._here.others if self.silent_for_ms(r) >= lost_after)

    patches.replace(handover.Handover, "silent", impatient)


def take_over_out_of_turn(patches: Patches) -> None:
    patches.replace(handover, "may_take_over", lambda task, owner, me, members, silent: owner in silent and owner != me)


def start_before_parents(patches: Patches) -> None:
    needs_of = dependencies.Dependencies.needs

    def careless(self: Any, task: Any) -> Any:
        needs = needs_of(self, task)
        if needs is not None:
            needs.unmet.clear()
            needs.loading = False
            needs.doomed = None
        return needs

    patches.replace(dependencies.Dependencies, "needs", careless)


def keyed_task_stays_here(patches: Patches) -> None:
    patches.replace(requests, "owner_of", lambda region, task, *, here, **_: here)


def key_generation_ignored(patches: Patches) -> None:
    patches.replace(requests.Requests, "_window_over", lambda self, held: not held.ended)


def submit_again_makes_it_anew(patches: Patches) -> None:
    accept = requests.Requests._accept

    def anew(self: Any, spec: Any, answer: Any, generation: int = 0) -> None:
        held, self._here = self._here, _Instead(self._here, task=lambda task: None)
        try:
            accept(self, spec, answer, generation)
        finally:
            self._here = held

    patches.replace(requests.Requests, "_accept", anew)


def other_payload_is_accepted(patches: Patches) -> None:
    patches.replace(requests.Requests, "_same", lambda self, spec, held: None)


def no_backoff(patches: Patches) -> None:
    patches.replace(duties, "next_attempt_at_ms", lambda view: 0)


def lost_attempts_stay_open(patches: Patches) -> None:
    patches.replace(dispatch.Dispatcher, "watch_open", lambda self, task, view: None)


def two_attempts_at_once(patches: Patches) -> None:
    end = dispatch.Dispatcher.end

    def again(self: Any, task: Any, attempt: Any, outcome: str, value: bytes, **rest: Any) -> bool:
        known = self._here.table.view(task).attempt(attempt)
        if known is not None and known.end is not None and outcome == "ok":
            self._here.write(Ended(task.id, attempt, outcome, False, True, "", value))
            return True
        return end(self, task, attempt, outcome, value, **rest)

    patches.replace(dispatch.Dispatcher, "end", again)


# Leases --------------------------------------------------------------------------------------------


def renew_in_a_minority(patches: Patches) -> None:
    won = lease.Proposer._won

    def content(self: Any, bid: Any, members: int) -> bool:
        return bool(bid.yes) if bid.token else won(self, bid, members)

    patches.replace(lease.Proposer, "_won", content)


def grant_in_a_minority(patches: Patches) -> None:
    patches.replace(lease.Proposer, "_won", lambda self, bid, members: bool(bid.yes))


def lease_timer_starts_late(patches: Patches) -> None:
    granted = lease.Proposer._granted

    def late(self: Any, bid: Any, scope: str, now_ms: int) -> Any:
        return granted(self, bid._replace(started_ms=now_ms + self.terms.margin_ms), scope, now_ms)

    patches.replace(lease.Proposer, "_granted", late)


def voters_are_not_silent_after_a_start(patches: Patches) -> None:
    patches.replace(lease.Acceptor, "silent_until", lambda self, started_ms: started_ms)


def votes_are_not_durable(patches: Patches) -> None:
    patches.replace(leases.Leases, "_when_durable", lambda self, number, then: then())


def voters_disturb_a_holder(patches: Patches) -> None:
    prepare = lease.Acceptor._prepare
    patches.replace(
        lease.Acceptor, "_prepare", lambda self, vote, ballot: prepare(self, vote._replace(accepted=None), ballot)
    )


def leases_by_the_wall_clock(patches: Patches) -> None:
    """The end of a lease is a time of day, on a clock that may be set."""
    advance = leases.Leases.advance
    last: dict[int, int] = {}

    def advancing(self: Any) -> None:
        now = self._here.now
        off_ms = now.wall_ms - now.mono_ms
        set_by_ms = off_ms - last.get(id(self), off_ms)
        last[id(self)] = off_ms
        for wanted in self._wanted.values() if set_by_ms else ():
            if wanted.bid.token:
                wanted.bid = wanted.bid._replace(until_ms=wanted.bid.until_ms - set_by_ms)
        advance(self)

    patches.replace(leases.Leases, "advance", advancing)


def sessions_share_a_token(patches: Patches) -> None:
    """The next program of a region holds what the one before held, under the same token."""
    patches.replace(leases.Leases, "release", lambda self, scope: None)


def clients_are_told_too_much(patches: Patches) -> None:
    """A client is told its region's whole lease though it may fall silent before."""
    told = sessions.Sessions._told

    def generous(self: Any, name: str, session: Any) -> Any:
        until_ms = session.until_ms
        record = told(self, name, session)
        held = self._leases.held(sessions.PREFIX + name)
        session.until_ms = until_ms
        return {**record, "valid_ms": held.until_mono_ms - self._here.now.mono_ms}

    patches.replace(sessions.Sessions, "_told", generous)


BUGS: Final = (
    Bug("acknowledge_before_fsync", "answers leave before the batch that they rest on is on disk", ("DUR-1",),
        plant=acknowledge_before_fsync),
    Bug("gossip_before_fsync", "commits are sent to peers before they are on disk", ("LOG-3",), "crashes",
        plant=gossip_before_fsync),
    Bug("cancel_not_written", "a cancel is acknowledged and not written", ("DUR-1",), plant=cancel_not_written),
    Bug("forget_dedup_after_restart", "ids that were known before a restart count as new", ("IDEM-3",), "keyed",
        plant=forget_dedup_after_restart),
    Bug("fold_recorded_before_its_rows", "the disk says that rows are folded which were never written",
        ("CONV-1", "CONV-6", "DUR-2"), "crashes", plant=fold_recorded_before_its_rows),
    Bug("reuse_of_an_incarnation", "a restarted node goes on under its old identity", ("LOG-1", "CORE-1"),
        plant=reuse_of_an_incarnation),
    Bug("ignore_deps", "commits are applied before what they rest on", ("LOG-2",), "loss", plant=ignore_deps),
    Bug("skip_gaps", "a commit is taken though the one before it is missing", ("LOG-2",), "loss", plant=skip_gaps),
    Bug("apply_what_is_held_back", "commits from the future are applied at once", ("HLC-4",), "skew",
        plant=apply_what_is_held_back),
    Bug("drop_before_all_have_it", "commits are dropped while a member lacks them", ("LOG-7",), "forgetful",
        plant=drop_before_all_have_it),
    Bug("snapshot_without_rows", "a snapshot's heads are adopted and its rows are not", ("CONV-2", "CONV-8", "DUR-2"),
        "forgetful", plant=snapshot_without_rows),
    Bug("acknowledge_what_is_not_applied", "what is merely stored is acknowledged as applied", ("TASK-4", "CONF-4"),
        "skew", plant=acknowledge_what_is_not_applied),
    Bug("relay_back", "commits are sent back to where they came from", ("NET-2",), "calm", plant=relay_back),
    Bug("chatter_at_rest", "heads are exchanged without pause", ("NET-3",), "calm", plant=chatter_at_rest),
    Bug("stamps_from_the_wall_clock", "stamps are wall time: the last writer wins, as it likes",
        ("HLC-1", "HLC-2", "CORE-1"), "skew", plant=stamps_from_the_wall_clock),
    Bug("stamps_go_back_at_a_restart", "the highest stamp is forgotten in a restart", ("HLC-1", "HLC-2"), "skew",
        plant=stamps_go_back_at_a_restart),
    Bug("stamps_while_its_clock_is_off", "a region whose clock is off goes on as if it was right", ("HLC-3",), "off",
        plant=stamps_while_its_clock_is_off),
    Bug("held_back_stamps_are_followed", "clocks follow what is held back", ("HLC-3", "HLC-4"), "off",
        plant=held_back_stamps_are_followed),
    Bug("waits_by_the_wall_clock", "delays and backoff count by a clock that may step", ("TIME-1", "RETRY-2"), "skew",
        plant=waits_by_the_wall_clock),
    Bug("renew_in_a_minority", "one vote is enough to renew a lease", ("EXCL-4", "LEAD-1"), "locks",
        plant=renew_in_a_minority),
    Bug("grant_in_a_minority", "one vote is enough for a lease", ("EXCL-4", "LEAD-1"), "locks",
        plant=grant_in_a_minority),
    Bug("lease_timer_starts_late", "a lease counts from when it was granted, not from before it was asked for",
        ("EXCL-4", "LEAD-1"), "locks", plant=lease_timer_starts_late),
    Bug("voters_are_not_silent_after_a_start", "a voter that has forgotten what it accepted votes at once",
        ("EXCL-5", "LEAD-1"), "locks", plant=voters_are_not_silent_after_a_start),
    Bug("votes_are_not_durable", "a voter answers before its ballot is on disk", ("EXCL-2",), "locks",
        plant=votes_are_not_durable),
    Bug("voters_disturb_a_holder", "a voter promises although somebody else's lease is not over",
        ("EXCL-5", "LEAD-1"), "locks", plant=voters_disturb_a_holder),
    Bug("leases_by_the_wall_clock", "a holder counts its lease on a clock that may be set", ("EXCL-4", "EXCL-6", "LEAD-1"),
        "locks", plant=leases_by_the_wall_clock, seeds=10),
    Bug("sessions_share_a_token", "the next program of a region gets the token of the one before", ("EXCL-1",),
        "locks", plant=sessions_share_a_token),
    Bug("clients_are_told_too_much", "a program believes longer in its lock than its region waits for it",
        ("EXCL-6", "EXCL-1"), "locks", plant=clients_are_told_too_much),
    Bug("winner_by_end", "the first to end wins, not the first to claim", ("CONV-6", "CONF-1", "CONF-3"),
        "parted", plant=winner_by_end),
    Bug("winner_by_arrival", "the success that a replica heard of first wins there", ("CONV-1", "CONV-2"),
        plant=winner_by_arrival),
    Bug("resolve_differs_in_one_region", "`resolve` gives another answer on a single replica", ("CONV-1", "CONV-2"),
        plant_one=resolve_differs_in_one_region, digest_only=True),
    Bug("digest_not_updated", "one replica forgets to bring its digest up to date", ("CONV-1", "CONV-2"),
        plant_one=digest_not_updated, digest_only=True),
    Bug("hash_input_not_canonical", "what is hashed depends on more than the state", ("CONV-1",), "calm",
        plant=hash_input_not_canonical),
    Bug("retry_cap_per_region", "each region counts its own failures only", ("CONV-6", "RETRY-1", "TASK-3"),
        "worn", plant=retry_cap_per_region),
    Bug("permanent_failures_are_retried", "a failure that is not retryable is tried again", ("RETRY-4", "TASK-3"),
        plant=permanent_failures_are_retried),
    Bug("late_flag_lies", "whoever had seen an outcome says that it had not", ("CONF-3",), plant=late_flag_lies),
    Bug("late_cancels_count", "a cancel after a success takes it back", ("CONV-6", "CONF-3"),
        plant=late_cancels_count),
    Bug("expired_still_starts", "what has expired is started all the same", ("TASK-3", "CONV-6"), "deadlines",
        plant=expired_still_starts),
    Bug("requeue_grants_forever", "two requeues of one death grant twice", ("RETRY-1", "TASK-3", "CONV-6", "DLQ-1"),
        "drained", plant=requeue_grants_forever),
    Bug("giver_starts_what_it_offered", "whoever has offered a task starts it before it knows that nobody took it",
        ("OWN-3", "OWN-1"), "drained", plant=giver_starts_what_it_offered),
    Bug("settle_without_stability", "an outcome is settled though a member has not heard of it", ("TASK-4",),
        plant=settle_without_stability),
    Bug("compensate_twice", "a compensation's id is not derived from what it undoes", ("CONF-2",),
        "torn", plant=compensate_twice),
    Bug("compensate_never", "nothing is ever undone", ("CONF-1",), plant=compensate_never),
    Bug("compensate_before_it_is_settled", "effects are undone on a success that may yet lose", ("CONF-4",),
        "parted", plant=compensate_before_it_is_settled),
    Bug("undo_inherited_effects", "what the winner rests on is undone with the loser", ("CONF-4",),
        plant=undo_inherited_effects),
    Bug("share_keys_across_a_cut", "attempts on two sides of a cut meet the sink under one key", ("IDEM-2",),
        "torn", plant=share_keys_across_a_cut),
    Bug("ledger_not_inherited", "a retry does again what was recorded", ("IDEM-2", "CKPT-3"),
        plant=ledger_not_inherited),
    Bug("older_checkpoint_wins", "an attempt resumes from an older checkpoint", ("CKPT-1",),
        plant=older_checkpoint_wins),
    Bug("take_over_too_early", "a region is taken over before it was silent long enough", ("OWN-2",),
        plant=take_over_too_early),
    Bug("take_over_out_of_turn", "whoever misses the owner takes over, in no order", ("OWN-2",),
        plant=take_over_out_of_turn),
    Bug("start_before_parents", "a dependent starts before its parents", ("DAG-1",), plant=start_before_parents),
    Bug("keyed_task_stays_here", "a keyed task that must not run twice belongs to whoever accepted it", ("LOC-1",),
        "keyed", plant=keyed_task_stays_here),
    Bug("key_generation_ignored", "a key's next generation opens while the one before runs", ("IDEM-1",),
        plant=key_generation_ignored),
    Bug("submit_again_makes_it_anew", "a repeated submission is written again", ("IDEM-3",),
        plant=submit_again_makes_it_anew),
    Bug("other_payload_is_accepted", "another payload under a known key is accepted", ("IDEM-1",), "keyed",
        plant=other_payload_is_accepted),
    Bug("no_backoff", "a failed task is tried again at once", ("RETRY-2",), plant=no_backoff),
    Bug("lost_attempts_stay_open", "nobody looks after attempts that ran before a restart", ("CONF-7", "LIVE-TASK"),
        plant=lost_attempts_stay_open),
    Bug("two_attempts_at_once", "an attempt that was given up ends again", ("TASK-1",), plant=two_attempts_at_once),
    *LIMIT_BUGS,
    *REISSUE_BUGS,
    *MEMBER_BUGS,
)  # fmt: skip
assert len({bug.name for bug in BUGS}) == len(BUGS)
