"""How this region takes part in changing who belongs: it asks for a change, votes, answers for the forgotten, and joins.

    a change     an operator asks one member; it proposes the next version to the voters of this one (`synod`), and writes
                 the decision into the log, from which everybody learns it
    forgetting   each voter answers with what it has applied of the region that leaves; from then on `roster` tells
    joining      the joiner pulls everything, waits until every voter has acknowledged the record that adds it and it has
                 applied what these acknowledgements name, and then has itself admitted, by a change like any other

One change at a time. The next is decided at the earliest one maximal lease after a voter has applied the last one: two
versions apart majorities need not meet, and a lease that the first had granted must be over by then.

A voter that has accepted a change and hears of no decision proposes it again: what may be decided must not stay hidden
until somebody happens to want another change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from crdtsync.coordination.membership import Membership, MemberState
from crdtsync.coordination.synod import (
    Accepted,
    Acceptor,
    Ballot,
    Instance,
    Promise,
    Proposer,
    Refused,
)
from crdtsync.errors import CrdtSyncError, IndefiniteError, InvalidRequestError, MembershipError
from crdtsync.events import KIND_OF, FinalHeads, MembersChanged
from crdtsync.gossip.arrived import SynodMessage
from crdtsync.identifiers import EventId, RegionId, region_of
from crdtsync.log.heads import Heads
from crdtsync.log.shapes import check_events
from crdtsync.protocol import codec
from crdtsync.protocol.peer_messages import (
    MEMBERS_MAX,
    SYNOD_VALUE_BYTES_MAX,
    SynodAccept,
    SynodAccepted,
    SynodNotNow,
    SynodPrepare,
    SynodPromise,
    SynodRefused,
)
from crdtsync.region import RegionState

DECIDE_MS: Final = 15_000  # after which whoever asked is told that it is not decided yet; the proposal goes on
FINISH_MS: Final = 5_000  # how long a voter that has accepted a change waits for the decision
ADMIT_MS: Final = 1_000  # how often a joiner looks whether it may be admitted
STATE_BYTES_MAX: Final = 1 << 20

Answer = Callable[[CrdtSyncError | None], None]  # None: it is decided, and on disk


class _Asked(NamedTuple):
    change: MembersChanged
    until_ms: int
    answer: Answer


@dataclass(slots=True)
class _Proposal:
    """The instance that is being proposed from here, and when the next step of it is due."""

    proposer: Proposer
    due_ms: int = 0


class Assembly:
    """One region's part in it.

    Args:
        tell: Sends a message over the link to a peer, if there is one.
        linked: The peers that read such messages.
        older: The members that have been met, and do not read them.
        silent: The members of which nothing has been heard for `lost_after`, by any path.
        open_writer: For a joiner: its first commit may be written.
    """

    def __init__(
        self,
        here: RegionState,
        *,
        tell: Callable[[RegionId, SynodMessage], bool],
        linked: Callable[[], tuple[RegionId, ...]],
        older: Callable[[], tuple[RegionId, ...]],
        heard_ms: Callable[[RegionId], int | None],
        open_writer: Callable[[], None],
    ) -> None:
        self._here = here
        self._tell = tell
        self._linked = linked
        self._older = older
        self._heard_ms = heard_ms
        self._open_writer = open_writer
        self._acceptor: Acceptor | None = None
        self._accepted_ms = 0
        self._proposal: _Proposal | None = None
        self._asked: _Asked | None = None
        self._rounds = 0  # of this incarnation, in all instances: no ballot is used twice
        self._changed_ms = 0  # when the last change took effect here, or we started without knowing when
        self._admit_ms = 0
        here.reformed.append(self._reformed)

    def restore(self, meta: dict[str, bytes] | Any) -> None:
        """Take up what this voter has promised. Raises CorruptLogError."""
        if "synod" in meta:
            self._acceptor = Acceptor.from_wire(codec.decode(meta["synod"], bytes_max=STATE_BYTES_MAX))

    def start(self) -> None:
        now_ms = self._here.now.mono_ms
        self._changed_ms = self._accepted_ms = now_ms

    # Asking for a change -----------------------------------------------------------------------

    def add(self, region: str, url: str, answer: Answer) -> None:
        """Propose that `region` joins. Raises MembershipError or InvalidRequestError; nothing has happened then."""
        now = self._here.membership
        if region in now.states:
            raise InvalidRequestError(f"{region} belongs to the cluster already: it is {now.states[RegionId(region)]}")
        if region in now.forgotten:
            version = now.forgotten[RegionId(region)].version
            raise InvalidRequestError(
                f"{region} was forgotten in version {version}, and a name is used once: choose another one, such as "
                f"{region}-2"
            )
        if len(now.states) >= MEMBERS_MAX:
            raise MembershipError(f"the cluster has {MEMBERS_MAX} regions, which is the limit")
        self._refuse_while_changing(now)
        self._refuse_older(())
        silent = [r for r in now.voters if r != self._here.me and self._is_silent(r)]
        if silent:
            raise MembershipError(
                f"{', '.join(silent)} is silent: a joiner waits for every member's word; wait until it is back, or "
                "forget it first"
            )
        self._propose(MembersChanged(*self._next(now), "add", (region,), url, False), answer)

    def forget(self, regions: tuple[str, ...], *, stopped: bool, force: bool, answer: Answer) -> None:
        """Propose that a region leaves; with `force` decide alone that several have. Raises as `add` does."""
        here, now = self._here, self._here.membership
        if not regions:
            raise InvalidRequestError("name the region that is to be forgotten")
        for region in regions:
            if region == here.me:
                raise InvalidRequestError(f"{region} cannot forget itself: ask another region")
            if now.has_lost(region):
                if stopped and not force and region in now.forgotten and not now.forgotten[RegionId(region)].stopped:
                    continue  # the operator's word comes later
                raise InvalidRequestError(f"{region} is forgotten already")
            if region not in now.states:
                known = ", ".join(r for r in now.linked if r != here.me) or "none"
                raise InvalidRequestError(f"no region is called {region!r}: there are {known}")
            if RegionId(region) in self._linked():
                raise MembershipError(
                    f"{region} is linked to {here.me}: stop its node first (drain it, and then say --stopped), or cut it off"
                )
        names = tuple(sorted(set(regions)))
        self._refuse_older(names)
        left = [r for r in now.voters if r not in names]
        if force:
            joining = [r for r in now.joining if r not in names]
            if joining:
                raise MembershipError(f"{joining[0]} is joining: name it as well, and add another one afterwards")
            if len(left) >= now.majority:
                raise MembershipError(
                    f"{len(left)} of {len(now.voters)} regions remain, which is a majority: leave --force out"
                )
            change = MembersChanged(now.epoch + 1, now.version + 1, self._founders(), "forget", names, "", stopped)
            self._write(change)
            here.outbox.next.after.append(lambda: answer(None))
            return
        if len(names) > 1:
            raise InvalidRequestError("one region is forgotten at a time, unless a majority is gone (--force)")
        if not left:
            raise MembershipError(f"nobody would remain without {names[0]}")
        if now.joining and names[0] not in now.joining:
            raise MembershipError(f"{now.joining[0]} is joining: let it, or forget it first")
        self._propose(MembersChanged(*self._next(now), "forget", names, "", stopped), answer)

    def _refuse_while_changing(self, now: Membership) -> None:
        if now.joining:
            raise MembershipError(f"{now.joining[0]} is joining: one change at a time ({self.waits_for()})")
        if now.leaving:
            raise MembershipError(f"{now.leaving[0]} is leaving: one change at a time ({self.waits_for()})")

    def _refuse_older(self, leaving: tuple[str, ...]) -> None:
        """Nothing is written of members that one of them would not read."""
        older = [region for region in self._older() if region not in leaving]
        if older:
            raise MembershipError(
                f"{', '.join(older)} runs a version of crdtsync that does not know of changing members, and would be left "
                "behind: update it first"
            )

    def _next(self, now: Membership) -> tuple[int, int, tuple[RegionId, ...]]:
        return now.epoch, now.version + 1, self._founders()

    def _founders(self) -> tuple[RegionId, ...]:
        return self._here.roster.founders

    def _is_silent(self, region: RegionId) -> bool:
        heard, here = self._heard_ms(region), self._here
        since = here.started.mono_ms if heard is None else max(heard, here.started.mono_ms)
        return here.now.mono_ms - since >= here.settings.lost_after_ms

    def _propose(self, change: MembersChanged, answer: Answer) -> None:
        here = self._here
        if not here.is_member:
            raise MembershipError(f"{here.me} is no member of this cluster: ask one that is")
        if self._asked is not None:
            raise MembershipError("another change is under way here: wait for it")
        wait_ms = self._wait_ms()
        if wait_ms:
            raise MembershipError(
                f"the membership has just changed: the next change may be decided in {wait_ms / 1000:.0f} s",
                wait_ms=wait_ms,
            )
        missing = self._proposer(change).missing({here.me, *self._linked()})
        voters = here.membership.voters
        if missing:
            raise MembershipError(
                f"needs {here.membership.majority} of {len(voters)} regions, sees {here.membership.majority - missing}"
                "; if the others are gone for good, an operator can decide alone: region forget --force"
            )
        self._asked = _Asked(change, here.now.mono_ms + DECIDE_MS, answer)
        self._begin(change)

    def _wait_ms(self) -> int:
        """How long the next change has to wait here, so that leases of two versions ago are over."""
        here = self._here
        if here.membership.version <= 1:
            return 0
        return max(0, self._changed_ms + here.settings.lease_ms - here.now.mono_ms)

    # Proposing ---------------------------------------------------------------------------------

    def _proposer(self, change: MembersChanged) -> Proposer:
        value = codec.encode(tuple(change))
        assert len(value) <= SYNOD_VALUE_BYTES_MAX, change
        return Proposer(
            Instance(change.epoch, change.version),
            self._here.writer,
            self._here.membership.voters,
            value,
            _seen=self._rounds,
        )

    def _begin(self, change: MembersChanged) -> None:
        self._proposal = _Proposal(self._proposer(change))
        self._round()

    def _round(self) -> None:
        """Begin a round, or the next one."""
        proposal = self._proposal
        assert proposal is not None
        proposer = proposal.proposer
        ballot = proposer.begin()
        self._rounds = max(self._rounds, ballot.round)
        proposal.due_ms = self._here.now.mono_ms + proposer.retry_after_ms()
        self._to_voters(SynodPrepare(*proposer.instance, *ballot))

    def _to_voters(self, message: SynodPrepare | SynodAccept) -> None:
        assert self._proposal is not None
        for voter in self._proposal.proposer.voters:
            if voter == self._here.me:
                self._vote(message, lambda answer: self.heard(self._here.me, answer))
            else:
                self._tell(RegionId(voter), message)

    def heard(self, peer: RegionId, message: SynodMessage) -> None:
        """A message about the next version came from `peer`."""
        if isinstance(message, SynodPrepare | SynodAccept):
            self._vote(message, lambda answer: self._tell(peer, answer))
            return
        proposal = self._proposal
        if proposal is None or proposal.proposer.instance != (message.epoch, message.version):
            return
        proposer = proposal.proposer
        match message:
            case SynodPromise(_, _, number, writer, accepted, by, value):
                if proposer.promised(peer, Promise(Ballot(number, writer), Ballot(accepted, by), value)):
                    self._to_voters(SynodAccept(*proposer.instance, *proposer.ballot, proposer.value))
            case SynodAccepted(_, _, number, writer):
                if proposer.accepted(peer, Accepted(Ballot(number, writer))):
                    self._decided(proposer.value)
            case SynodRefused(_, _, number, writer, promised, by):
                proposer.refused(Refused(Ballot(number, writer), Ballot(promised, by)))
            case SynodNotNow(_, _, _, _, wait_ms):
                proposal.due_ms = max(
                    proposal.due_ms, self._here.now.mono_ms + min(wait_ms, self._here.settings.lease_ms)
                )

    def _decided(self, value: bytes) -> None:
        """A majority has accepted it: write it down, if all it rests on is known here."""
        self._proposal = None
        change = _change_of(value)
        if change is None:
            return
        if self._here.me in change.regions and change.change == "admit":
            self._open_writer()
        if not self._here.stamps:
            return  # the clock is off by now: a voter writes it down
        self._write(change)
        asked, self._asked = self._asked, None
        if asked is None:
            return
        if asked.change == change:
            self._here.outbox.next.after.append(lambda: asked.answer(None))
        else:
            asked.answer(MembershipError(f"another change was decided first: {describe(change)}; look, and ask again"))

    def _write(self, change: MembersChanged) -> None:
        self._here.write(change)
        self._here.reform()

    # Voting ------------------------------------------------------------------------------------

    def _vote(self, message: SynodPrepare | SynodAccept, reply: Callable[[Any], object]) -> None:
        """Answer once what was promised is on disk."""
        here, now = self._here, self._here.membership
        if not here.is_member:
            return
        instance = Instance(message.epoch, message.version)
        wait_ms = self._wait_ms()
        if instance != (now.epoch, now.version + 1) or wait_ms:
            reply(SynodNotNow(*instance, now.epoch, now.version, wait_ms))
            return
        acceptor = self._acceptor
        if acceptor is None or acceptor.instance != instance:
            acceptor = self._acceptor = Acceptor(instance)
        ballot = Ballot(message.round, message.writer)
        said: Promise | Accepted | Refused
        if isinstance(message, SynodPrepare):
            said = acceptor.prepare(ballot)
        elif _change_of(message.value) is None:
            return
        else:
            said = acceptor.accept(ballot, message.value)
            self._accepted_ms = here.now.mono_ms
        if isinstance(said, Refused):
            reply(SynodRefused(*instance, *ballot, *said.promised))
            return
        answer: SynodMessage = SynodAccepted(*instance, *ballot)
        if isinstance(said, Promise):
            answer = SynodPromise(*instance, *ballot, *said.accepted, said.value)
        here.outbox.next.meta["synod"] = codec.encode(acceptor.to_wire())

        def durable() -> None:
            reply(answer)

        here.outbox.next.after.append(durable)

    # What is due -------------------------------------------------------------------------------

    def advance(self) -> None:
        """Do what is due: answers, the next round, a joiner's admission, what others left half decided."""
        here, now = self._here, self._here.membership
        now_ms = here.now.mono_ms
        self._answer(now)
        if self._asked is not None and now_ms >= self._asked.until_ms:
            asked, self._asked = self._asked, None
            asked.answer(IndefiniteError("it is not decided yet, and is still being proposed: see region list"))
        if self._proposal is not None and now_ms >= self._proposal.due_ms:
            self._round()
        if self._proposal is None:
            self._finish(now, now_ms)
            self._seek_admission(now, now_ms)

    def _answer(self, now: Membership) -> None:
        """Say what is applied here of the leaving, once per version."""
        here = self._here
        if here.me not in now.unanswered or not here.stamps:
            return
        heads = tuple((w, n) for w, n in here.log.applied.items() if region_of(w) in now.leaving)
        here.keep_caps()
        here.write(FinalHeads(now.epoch, now.version, heads))
        here.reform()

    def _finish(self, now: Membership, now_ms: int) -> None:
        """Propose what this voter has accepted, if nobody tells of the decision."""
        acceptor = self._acceptor
        if acceptor is None or not acceptor.value or acceptor.instance != (now.epoch, now.version + 1):
            return
        if (
            not self._here.is_member
            or now_ms < self._accepted_ms + FINISH_MS
            or self._wait_ms()
            or not self._here.stamps
        ):
            return
        change = _change_of(acceptor.value)
        # Whoever writes that a region is added must know that the last one that left is gone: so everybody does.
        if change is not None and not (change.change == "add" and now.leaving):
            self._accepted_ms = now_ms
            self._begin(change)

    def _seek_admission(self, now: Membership, now_ms: int) -> None:
        here = self._here
        if now.version == 0 or now.states.get(here.me) is not MemberState.JOINING or now_ms < self._admit_ms:
            return
        self._admit_ms = now_ms + ADMIT_MS
        if not self.join_waits_for(here.me):
            self._begin(MembersChanged(*self._next(now), "admit", (here.me,), "", False))

    def join_waits_for(self, region: RegionId) -> str:
        """What keeps a joiner from being admitted, as far as this region knows; "" if nothing."""
        here, now = self._here, self._here.membership
        record = here.roster.added(region)
        if record is None:
            return "the record that adds it"
        latest = here.stability.latest()
        missing = [r for r in now.voters if not _acknowledges(latest.get(r), record)]
        if missing:
            return f"{', '.join(missing)} to acknowledge the record that adds it"
        named = Heads()
        for voter in now.voters:
            named = named.join(latest[voter].ack.heads)
        applied = here.log.applied
        if region != here.me:
            heard = latest.get(region)
            applied = heard.ack.heads if heard is not None else Heads()
        lacking = sum(span.last - span.first + 1 for span in applied.lacking(named))
        return f"{lacking} commits to be applied there" if lacking else ""

    def waits_for(self) -> str:
        """What the change that is under way waits for, in words; "" if none is."""
        now = self._here.membership
        if now.joining:
            region = now.joining[0]
            return f"{region} is joining and waits for {self.join_waits_for(region) or 'the members to admit it'}"
        for region in now.leaving:
            if region in now.finals:
                return f"{region} is leaving: its last commits are being applied here"
            if now.unanswered:
                return f"{region} is leaving: {', '.join(sorted(now.unanswered))} has yet to say what it applied of it"
        if self._proposal is not None:
            change = _change_of(self._proposal.proposer.value or self._proposal.proposer.own)
            return f"{describe(change)} is being proposed" if change is not None else ""
        return ""

    def described(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of regions, with their part in the membership, and a row for each that is leaving or has left.

        Adds `state`, `version` and `epoch` (of the membership), `acknowledged` (whether it is known to have applied the
        last change) and `waits_for` (what the change of this region waits for; "" if it is not changing).
        """
        here, now = self._here, self._here.membership
        latest, last = here.stability.latest(), here.roster.last_change
        waits_for = self.waits_for()
        named = {row["region"] for row in rows}
        gone = [*now.leaving, *sorted(now.forgotten)]
        rows = [*rows, *({"region": r, "self": False, "status": "refused"} for r in gone if r not in named)]
        for row in rows:
            region = RegionId(row["region"])
            heard = latest.get(region)
            row["state"] = "forgotten" if region in now.forgotten else str(now.states.get(region, "stranger"))
            row |= {"version": now.version, "epoch": now.epoch}
            row["acknowledged"] = last is None or (heard is not None and heard.ack.heads.has(last.writer, last.number))
            row["waits_for"] = waits_for if region in (*now.joining, *now.leaving) else ""
            if region in now.forgotten:
                row["heads"] = dict(now.forgotten[region].final.items())
                row["forgotten_in"] = now.forgotten[region].version
        return rows

    def next_deadline_ms(self) -> int | None:
        """Monotonic time at which `advance` is next worth calling."""
        here, now = self._here, self._here.membership
        times = [] if self._asked is None else [self._asked.until_ms]
        if self._proposal is not None:
            return min([self._proposal.due_ms, *times])
        if now.version and now.states.get(here.me) is MemberState.JOINING:
            times.append(self._admit_ms)
        acceptor = self._acceptor
        if (
            acceptor is not None
            and acceptor.value
            and acceptor.instance == (now.epoch, now.version + 1)
            and here.is_member
        ):
            times.append(max(self._accepted_ms + FINISH_MS, here.now.mono_ms + 1_000))
        return min(times, default=None)

    def _reformed(self, before: Membership) -> None:
        here, now = self._here, self._here.membership
        if now.stamp == before.stamp:
            return
        self._changed_ms = here.now.mono_ms
        if self._proposal is not None and self._proposal.proposer.instance <= (now.epoch, now.version):
            self._proposal = None
        asked = self._asked
        if asked is not None and (asked.change.epoch, asked.change.version) <= (now.epoch, now.version):
            self._asked = None
            made = here.roster.change(now.epoch, asked.change.version)
            if made == asked.change:
                here.outbox.next.after.append(lambda: asked.answer(None))
            else:
                what = describe(made) if made is not None else "another epoch has begun"
                asked.answer(MembershipError(f"another change was decided first: {what}; look, and ask again"))


def _acknowledges(heard: Any, record: EventId) -> bool:
    return heard is not None and heard.ack.heads.has(record.writer, record.number)


def _change_of(value: bytes) -> MembersChanged | None:
    """The change that a value stands for; None if it is none, whoever sent it."""
    try:
        plain: Any = codec.decode(value, bytes_max=SYNOD_VALUE_BYTES_MAX)
        (event,) = check_events(((KIND_OF[MembersChanged], *plain),))
    except (CrdtSyncError, TypeError, ValueError):
        return None
    return event if isinstance(event, MembersChanged) else None


def describe(change: MembersChanged) -> str:
    """One change in words."""
    return f"version {change.version}: {change.change} {', '.join(change.regions)}"
