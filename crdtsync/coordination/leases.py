"""`Leases`: all scopes that this region votes on, wants and holds.

A scope is a name: `queue:NAME`, `key:NAMESPACE/NAME/KEY`, `task:HEX`, `user:NAME`. Whoever needs a lease says `want`,
looks at `held`, and is told of changes; the rest (ballots, renewal, retries) happens here. The rules are `lease`'s.

Many scopes cost little. What is asked of a peer in one turn goes out as one frame; renewals that fall due together are
sent together; and a voter writes to disk not each ballot but one bound for all scopes, ahead of the clock, so that a
busy voter writes once in `RESERVE_MS`. That bound is also all that is known of scopes that were forgotten: to them, it
is the highest ballot answered. Raising it never does harm, it only makes somebody take a higher ballot.

Only directly linked regions are asked. With a link down between two regions of a connected cluster the holder must
reach a majority itself; leases are not relayed.

**Ready.** A voter's answer to a new tenure carries what it has applied. Whatever an earlier holder made known to a
majority, one of the voters of any later one has; so a holder that has applied all that its voters had knows it too.
Before that it holds the lease and acts on nothing (`Held.ready`).

**Hand-on.** A holder of a scope that others were refused lately gives it back after `max_hold_ms`, once nothing runs
under it any more (`in_use`); until then it goes on renewing, and starts nothing new.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from crdtsync.coordination.lease import (
    Acceptor,
    Answer,
    Ask,
    Bid,
    BidState,
    Proposer,
    Refusal,
    Step,
    Terms,
    Vote,
)
from crdtsync.coordination.membership import Membership
from crdtsync.effects import Notify
from crdtsync.errors import OverloadedError
from crdtsync.identifiers import RegionId, region_of
from crdtsync.log.heads import Heads
from crdtsync.protocol import codec
from crdtsync.protocol.peer_messages import LEASES_PER_FRAME_MAX, SCOPE_CHARS_MAX, LeaseAnswers, LeaseAsks, LeasesFreed
from crdtsync.region import RegionState

SCOPES_MAX: Final = 20_000  # that one region wants at once
VOTES_MAX: Final = 100_000  # leases that one voter keeps in memory: 20,000 of each of five regions
RESERVE_MS: Final = 10_000  # how far ahead of the clock the bound of ballots on disk is set
META: Final = "leases"
META_BYTES_MAX: Final = 64


class Held(NamedTuple):
    """A lease that is held here, as of now. Times are monotonic, in milliseconds."""

    token: int
    until_mono_ms: int
    starts_until_mono_ms: int  # from here on nothing new is started: stasis, or it is to be handed on
    ready: bool  # what the voters had applied is applied here; before that, act on nothing


class HeldBy(NamedTuple):
    """Who holds a lease, as far as is known here."""

    region: RegionId
    token: int
    until_mono_ms: int  # as counted here, at the latest


class Refused(NamedTuple):
    """Why a voter said no last time."""

    refusal: Refusal
    holder: RegionId
    token: int
    until_mono_ms: int


class Wanted:
    """What is wanted or held here: one scope."""

    __slots__ = ("bid", "by", "contended_ms", "handing_on", "heads", "need", "ready", "refused", "since_ms", "voters")

    def __init__(self) -> None:
        self.bid = Bid()
        self.by: set[str] = set()
        self.heads: dict[RegionId, Heads] = {}  # what voters of the round had applied
        self.need = Heads()  # to be applied before this tenure may act
        self.ready = False
        self.voters: tuple[RegionId, ...] = ()  # who granted the tenure, or prolonged it last
        self.refused: dict[RegionId, Refused] = {}
        self.since_ms = 0
        self.contended_ms: int | None = None  # when a voter last said that others wait
        self.handing_on = False


class Leases:
    """Args:
    tell: Send a message to a linked region. False if it has no link, or cannot read it.
    linked: The regions that can be asked now, this one not among them.
    distrusted: Why this node may neither vote nor hold; "" if it may.
    """

    def __init__(
        self,
        here: RegionState,
        *,
        tell: Callable[..., bool],
        linked: Callable[[], Iterable[RegionId]],
        distrusted: Callable[[], str],
    ) -> None:
        self._here = here
        self._tell = tell
        self._linked = linked
        self._distrusted = distrusted
        self.terms = Terms.of(here.settings.lease_ms)
        self._acceptor = Acceptor(self.terms)
        self._proposer = Proposer(self.terms, here.writer)
        self.in_use: Callable[[str], bool] = lambda _scope: False
        self._listeners: list[Callable[[str], None]] = []
        self._changed: dict[str, None] = {}
        # As a voter
        self._votes: dict[str, Vote] = {}
        self._waiters: dict[str, dict[RegionId, int]] = {}  # who was refused because of a lease, and when last
        self._forgotten = 0  # no ballot above it was answered in a scope that is not in `_votes`
        self._top = 0  # the highest ballot answered, or used here
        self._durable = 0  # ballots up to here may be answered at once
        self._longest_ms = 0  # that leases accepted by an earlier incarnation may have been
        self._silent_until_ms = 0
        self._sweep_ms = 0
        # As a proposer
        self._wanted: dict[str, Wanted] = {}
        self._unready: dict[str, None] = {}
        self._due: list[tuple[int, str]] = []
        self._due_of: dict[str, int] = {}  # what in `_due` is meant; the rest is left from before
        self._own: deque[Ask] = deque()
        self._asks: dict[RegionId, list[Ask]] = {}
        self._answers: dict[tuple[RegionId, str], list[Answer]] = {}
        self._freed: dict[RegionId, list[str]] = {}
        self._membership: Membership = here.membership
        self._started = False

    # Start ---------------------------------------------------------------------------------------

    def restore(self, meta: Mapping[str, bytes]) -> None:
        """Take up what the disk remembers. Call before `start`.

        Raises:
            RemoteProtocolError: If it is not what we wrote.
        """
        if META in meta:
            plain: Any = codec.decode(meta[META], bytes_max=META_BYTES_MAX)
            self._forgotten, self._longest_ms = plain
            self._top = self._forgotten
            # Accepting longer leases than the disk knows of must be on disk first, for the silence after the next start.
            self._durable = self._forgotten if self._longest_ms >= self.terms.lease_ms else 0

    def start(self) -> None:
        now_ms = self._here.now.mono_ms
        self._silence(now_ms)
        self._sweep_ms = now_ms + self.terms.lease_ms
        self._started = True

    def _silence(self, now_ms: int) -> None:
        """This voter knows nothing of leases that it, or its region before it joined, may have accepted."""
        longest = Acceptor(Terms.of(max(self._longest_ms, self.terms.lease_ms)))
        self._silent_until_ms = longest.silent_until(now_ms)

    # What the core asks --------------------------------------------------------------------------

    def listen(self, changed: Callable[[str], None]) -> None:
        """Have `changed(scope)` called when a scope is granted, lost, ready, or to be handed on."""
        self._listeners.append(changed)

    def want(self, scope: str, by: str = "") -> None:
        """Get this lease and keep it, for `by`, until that one says `unwant`.

        Raises:
            OverloadedError: So many are wanted already. Nothing changed.
        """
        assert 0 < len(scope) <= SCOPE_CHARS_MAX, scope
        wanted = self._wanted.get(scope)
        if wanted is None:
            if len(self._wanted) >= SCOPES_MAX:
                raise OverloadedError(f"{self._here.me} wants {SCOPES_MAX} leases already: use fewer scopes, or wait")
            wanted = self._wanted[scope] = Wanted()
        wanted.by.add(by)
        self._set(scope, wanted, self._proposer.want(wanted.bid, self._here.now.mono_ms))

    def unwant(self, scope: str, by: str = "") -> None:
        """`by` needs it no more. It is given back when nobody does."""
        wanted = self._wanted.get(scope)
        if wanted is None:
            return
        wanted.by.discard(by)
        if not wanted.by:
            self._give_back(scope, wanted)
            del self._wanted[scope]
            self._due_of.pop(scope, None)

    def release(self, scope: str) -> None:
        """Let others have it first; it stays wanted here."""
        wanted = self._wanted.get(scope)
        if wanted is not None:
            self._give_back(scope, wanted)
            now_ms = self._here.now.mono_ms
            others = wanted.contended_ms is not None and now_ms - wanted.contended_ms <= 2 * self.terms.lease_ms
            bid = self._proposer.want(wanted.bid, now_ms + (self.terms.round_ms if others else 0))
            self._set(scope, wanted, bid)

    def release_all(self, keep: Callable[[str], bool]) -> None:
        """This node stops: nobody should have to wait for the end of its leases, but for those that `keep` names."""
        for scope, wanted in list(self._wanted.items()):
            if keep(scope):
                continue
            self._give_back(scope, wanted)
            del self._wanted[scope]

    def wanted(self) -> tuple[str, ...]:
        return tuple(self._wanted)

    def held(self, scope: str) -> Held | None:
        """The lease, if it is held here now."""
        wanted = self._wanted.get(scope)
        if wanted is None or not wanted.bid.held(self._here.now.mono_ms) or self._distrusted():
            return None
        bid = wanted.bid
        starts_ms = 0 if wanted.handing_on else bid.until_ms - self.terms.stasis_ms
        return Held(bid.token, bid.until_ms, starts_ms, wanted.ready)

    def valid(self, scope: str, token: int) -> bool:
        """Whether it is held here, now, under just this token."""
        held = self.held(scope)
        return held is not None and held.token == token

    def granted_by(self, scope: str) -> tuple[RegionId, ...]:
        """Who voted for the lease that is held here, the last time."""
        wanted = self._wanted.get(scope)
        return wanted.voters if wanted is not None and self.held(scope) is not None else ()

    def held_by(self, scope: str) -> HeldBy | None:
        """Who holds it, as far as is known here: by this region's own lease and vote, and by what voters told."""
        now_ms = self._here.now.mono_ms
        held = self.held(scope)
        if held is not None:
            return HeldBy(self._here.me, held.token, held.until_mono_ms)
        known = []
        vote = self._votes.get(scope)
        if vote is not None and (vote := vote.at(now_ms)).accepted is not None:
            known.append(HeldBy(region_of(vote.accepted.writer), vote.token, vote.until_ms))
        wanted = self._wanted.get(scope)
        if wanted is not None:
            known += [
                HeldBy(no.holder, no.token, no.until_mono_ms)
                for no in wanted.refused.values()
                if no.refusal is Refusal.HELD and no.until_mono_ms > now_ms
            ]
        known = [one for one in known if one.region != self._here.me]
        return max(known, key=lambda one: (one.token, one.until_mono_ms), default=None)

    def scopes(self) -> list[str]:
        """Every scope that is wanted here, or of which this voter knows a holder, sorted."""
        now_ms = self._here.now.mono_ms
        voted = [scope for scope, vote in self._votes.items() if vote.at(now_ms).accepted is not None]
        return sorted({*self._wanted, *voted})

    def why_not(self, scope: str) -> str:
        """Why this region may not act under the lease now; "" if it may."""
        now_ms = self._here.now.mono_ms
        reason = self._distrusted()
        if reason:
            return reason
        held = self.held(scope)
        if held is not None:
            if not held.ready:
                return "holds the lease and catches up with what its voters have"
            if now_ms >= held.starts_until_mono_ms:
                return "holds the lease for what runs, and starts nothing more before it is renewed or handed on"
            return ""
        if not self._here.membership.is_member(self._here.me):
            return f"{self._here.me} is not a member (yet), and so may hold no lease"
        voters = self._here.membership.voters
        seen = self._reachable()
        needed = self._here.membership.majority
        if len(seen) < needed:
            return f"needs {needed} of {len(voters)} regions, sees {len(seen)}"
        other = self.held_by(scope)
        if other is not None:
            return f"{other.region} holds it with token {other.token} for at most {_s(other.until_mono_ms - now_ms)}"
        wanted = self._wanted.get(scope)
        if wanted is None:
            return "not asked for"
        return self._why_refused(wanted, now_ms) or "asking " + ", ".join(r for r in voters if r != self._here.me)

    def _why_refused(self, wanted: Wanted, now_ms: int) -> str:
        texts = {
            Refusal.SILENT: "has started lately and may not vote for another {left}",
            Refusal.MEMBERS: "has another membership: it lags, or this region does",
            Refusal.LENGTH: "allows only shorter leases: set the same lease_ms in all regions",
            Refusal.CROWDED: "keeps as many leases as it can",
        }
        said = [
            f"{region} " + texts[no.refusal].format(left=_s(max(0, no.until_mono_ms - now_ms)))
            for region, no in sorted(wanted.refused.items())
            if no.refusal in texts
        ]
        return "; ".join(said)

    # Time and turns ------------------------------------------------------------------------------

    def next_deadline_ms(self) -> int | None:
        """When `advance` is next worth calling."""
        while self._due and self._due_of.get(self._due[0][1]) != self._due[0][0]:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def advance(self) -> None:
        """Do what is due, and tell who listens. Call after each input."""
        if not self._started:
            return
        if self._membership is not self._here.membership:
            self._members_changed()
        now_ms = self._here.now.mono_ms
        if self._due and self._due[0][0] <= now_ms:
            self._do_due(now_ms)
        self._answer_own()
        if self._unready:
            self._check_ready()
        if now_ms >= self._sweep_ms:
            self._sweep(now_ms)
        while self._changed:
            changed, self._changed = self._changed, {}
            for scope in changed:
                for listener in self._listeners:
                    listener(scope)
            self._answer_own()

    def flush(self) -> None:
        """Send what was gathered: one frame a peer."""
        if not (self._asks or self._answers or self._freed):
            return
        here = self._here
        epoch, version = here.membership.epoch, here.membership.version
        asks, self._asks = self._asks, {}
        for region, mine in asks.items():
            for part in _parts(mine):
                self._tell(region, LeaseAsks(epoch, version, part))
        answers, self._answers = self._answers, {}
        for (region, _), given in answers.items():
            fresh = any(a.step == Step.PROPOSE and not a.refusal and a.token == a.number for a in given)
            heads = tuple(here.log.durable_applied.items()) if fresh else ()
            for part in _parts(given):
                self._tell(region, LeaseAnswers(epoch, version, part, heads))
        freed, self._freed = self._freed, {}
        for region, scopes in freed.items():
            for part in _parts(scopes):
                self._tell(region, LeasesFreed(part))

    def _do_due(self, now_ms: int) -> None:
        """What is due, and with the first renewal all that are due soon: they travel together."""
        until_ms = now_ms
        later: list[str] = []
        while self._due and self._due[0][0] <= until_ms:
            when, scope = heapq.heappop(self._due)
            if self._due_of.get(scope) != when:
                continue
            del self._due_of[scope]
            wanted = self._wanted.get(scope)
            if wanted is None:
                continue
            if wanted.bid.token and not wanted.bid.held(now_ms):
                self._lose(scope, wanted, "its time is over")
            bid = wanted.bid
            renews = bid.state is BidState.WAITING and bid.held(now_ms)
            if bid.state is BidState.IDLE or bid.due_ms > (until_ms if renews else now_ms):
                later.append(scope)
                continue
            if renews:
                until_ms = now_ms + self.terms.renew_ms // 2
                if self._hand_on(scope, wanted, now_ms):
                    continue
            self._try(scope, wanted, now_ms)
        for scope in later:
            self._schedule(scope, self._wanted[scope].bid)

    def _try(self, scope: str, wanted: Wanted, now_ms: int) -> None:
        bid = wanted.bid
        if bid.state is BidState.WAITING and self._hopeless():
            self._set(scope, wanted, bid._replace(due_ms=now_ms + self.terms.round_ms))
            return
        bid, ask = self._proposer.due(bid, scope, now_ms, self._next_number())
        if ask is not None:
            wanted.heads.clear()
        self._set(scope, wanted, bid)
        self._ask(ask)

    def _hopeless(self) -> bool:
        """No majority can be asked now. When that changes, `linked` tries at once."""
        return bool(self._distrusted()) or len(self._reachable()) < self._here.membership.majority

    def _reachable(self) -> list[RegionId]:
        linked = {*self._linked(), self._here.me}
        return [region for region in self._here.membership.voters if region in linked]

    def _next_number(self) -> int:
        self._top = min(max(self._top, self._here.clock.physical_ms(self._here.now)) + 1, 2**53 - 1)
        return self._top

    def _hand_on(self, scope: str, wanted: Wanted, now_ms: int) -> bool:
        """Others have waited for long enough: begin to hand it on, or do it. True if it was given back."""
        lately_ms = now_ms - 2 * self.terms.lease_ms
        contended = wanted.contended_ms is not None and wanted.contended_ms >= lately_ms
        long = now_ms - wanted.since_ms >= self._here.settings.max_hold_lease_ms
        if scope.startswith("user:") or not (contended and long):
            if wanted.handing_on:
                wanted.handing_on = False
                self._changed[scope] = None
            return False
        if not wanted.handing_on:
            wanted.handing_on = True
            self._changed[scope] = None
        if self.in_use(scope):
            return False
        self.release(scope)
        return True

    def _set(self, scope: str, wanted: Wanted, bid: Bid) -> None:
        wanted.bid = bid
        self._schedule(scope, bid)

    def _schedule(self, scope: str, bid: Bid) -> None:
        when = bid.due_ms if not bid.token else min(bid.due_ms, bid.until_ms)
        if bid.state is BidState.IDLE:
            self._due_of.pop(scope, None)
        elif self._due_of.get(scope) != when:
            self._due_of[scope] = when
            heapq.heappush(self._due, (when, scope))

    def _ask(self, ask: Ask | None) -> None:
        """Ask every voter, this one too."""
        if ask is None:
            return
        for region in self._reachable():
            if region == self._here.me:
                self._own.append(ask)
            else:
                self._asks.setdefault(region, []).append(ask)

    def _give_back(self, scope: str, wanted: Wanted) -> None:
        was_held = wanted.bid.held(self._here.now.mono_ms)
        bid, ask = self._proposer.drop(wanted.bid, scope)
        if was_held:
            self._lose(scope, wanted, "it was given back")
        self._set(scope, wanted, bid)
        wanted.handing_on = False
        self._ask(ask)

    # Votes ---------------------------------------------------------------------------------------

    def _answer_own(self) -> None:
        while self._own:
            ask = self._own.popleft()
            self._vote(
                self._here.me, self._here.writer, ask, self._here.membership.epoch, self._here.membership.version
            )

    def _vote(self, region: RegionId, writer: str, ask: Ask, epoch: int, version: int) -> None:
        """Answer one request, as soon as its ballot is durable."""
        now_ms = self._here.now.mono_ms
        vote = self._votes.get(ask.scope, Vote.after(self._forgotten)).at(now_ms)
        refusal, left_ms = self._may_vote(region, ask, epoch, version, now_ms)
        if not refusal:
            was = vote
            vote, refusal = self._acceptor.asked(vote, writer, ask, now_ms)
            if not refusal:
                self._votes[ask.scope] = vote
                self._top = max(self._top, vote.promised.number)
                if ask.step == Step.PREPARE:
                    self._note("lease.promised", ask, region)
                elif ask.step == Step.PROPOSE:
                    self._note("lease.accepted", ask, region, until_mono_ms=vote.until_ms)
            elif refusal is Refusal.HELD:
                self._waiters.setdefault(ask.scope, {})[region] = now_ms
            if was.accepted is not None and vote.accepted is None:
                self._note("lease.released", ask, region)
                self._free(ask.scope)
        if ask.step == Step.RELEASE:
            return
        answer = self._acceptor.answer(ask, vote, refusal, now_ms, contended=self._contended(ask.scope, region, now_ms))
        if left_ms:
            answer = answer._replace(left_ms=left_ms)
        self._when_durable(vote.promised.number if not refusal else 0, lambda: self._give(region, writer, answer))

    def _may_vote(self, region: RegionId, ask: Ask, epoch: int, version: int, now_ms: int) -> tuple[Refusal, int]:
        membership = self._here.membership
        if (epoch, version) != (membership.epoch, membership.version) or not membership.is_member(region):
            return Refusal.MEMBERS, 0
        if not membership.is_member(self._here.me):
            return Refusal.MEMBERS, 0
        if now_ms < self._silent_until_ms:
            return Refusal.SILENT, self._silent_until_ms - now_ms
        if self._distrusted():
            return Refusal.SILENT, self.terms.lease_ms
        if ask.scope not in self._votes and len(self._votes) >= VOTES_MAX:
            return Refusal.CROWDED, 0
        return Refusal.NONE, 0

    def _when_durable(self, number: int, then: Callable[[], None]) -> None:
        """Run `then` once a restart would remember that ballots up to `number` were answered."""
        here = self._here
        if number <= self._durable:
            then()
            return
        bound = max(self._top, here.clock.physical_ms(here.now) + RESERVE_MS)
        longest_ms = self.terms.lease_ms

        def durable() -> None:
            self._durable = max(self._durable, bound)
            self._longest_ms = max(self._longest_ms, longest_ms)
            then()

        here.outbox.next.meta[META] = codec.encode((bound, max(self._longest_ms, longest_ms)))
        here.outbox.next.after.append(durable)

    def _give(self, region: RegionId, writer: str, answer: Answer) -> None:
        if region == self._here.me:
            self._answered(region, answer, Heads())
            self._answer_own()
        else:
            self._answers.setdefault((region, writer), []).append(answer)

    def _contended(self, scope: str, region: RegionId, now_ms: int) -> bool:
        waiters = self._waiters.get(scope)
        if not waiters:
            return False
        return any(who != region and now_ms - when <= 2 * self.terms.lease_ms for who, when in waiters.items())

    def _free(self, scope: str) -> None:
        """The holder has given it back: those who wait may try."""
        for region in self._waiters.pop(scope, ()):
            if region == self._here.me:
                self._freed_here(scope)
            else:
                self._freed.setdefault(region, []).append(scope)

    def _sweep(self, now_ms: int) -> None:
        """Forget votes on what nobody holds: the one bound on disk stands for all of them."""
        self._sweep_ms = now_ms + self.terms.lease_ms
        for scope, vote in list(self._votes.items()):
            if vote.at(now_ms).accepted is None and scope not in self._wanted:
                self._forgotten = max(self._forgotten, vote.promised.number)
                del self._votes[scope]
                self._waiters.pop(scope, None)

    # What peers say ------------------------------------------------------------------------------

    def heard(self, region: RegionId, writer: str, message: LeaseAsks | LeaseAnswers | LeasesFreed) -> None:
        """A frame from a linked region; `writer` is the incarnation that the link is to."""
        if isinstance(message, LeaseAsks):
            for ask in message.asks:
                self._vote(region, writer, ask, message.epoch, message.version)
        elif isinstance(message, LeasesFreed):
            for scope in message.scopes:
                self._freed_here(scope)
        else:
            membership = self._here.membership
            heads = Heads.from_wire(message.heads)
            current = (message.epoch, message.version) == (membership.epoch, membership.version)
            for answer in message.answers:
                if membership.is_member(region) and (current or answer.refusal):
                    self._answered(region, answer, heads)

    def _freed_here(self, scope: str) -> None:
        wanted = self._wanted.get(scope)
        if wanted is not None:
            wanted.refused.clear()
            self._set(scope, wanted, self._proposer.freed(wanted.bid, scope, self._here.now.mono_ms))

    def _answered(self, region: RegionId, answer: Answer, heads: Heads) -> None:
        wanted = self._wanted.get(answer.scope)
        if wanted is None:
            return
        now_ms = self._here.now.mono_ms
        if answer.refusal:
            until_ms = now_ms + answer.left_ms
            wanted.refused[region] = Refused(Refusal(answer.refusal), RegionId(answer.holder), answer.token, until_ms)
        else:
            wanted.refused.pop(region, None)
            if answer.step == Step.PROPOSE:
                wanted.heads[region] = heads
        if answer.contended:
            wanted.contended_ms = now_ms
        was = wanted.bid
        if was.token and not was.held(now_ms):
            self._lose(answer.scope, wanted, "its time is over")
            was = wanted.bid
        members = len(self._here.membership.voters)
        bid, ask = self._proposer.answered(was, region, answer, members, now_ms)
        if ask is not None:
            wanted.heads.clear()
        self._set(answer.scope, wanted, bid)
        if bid.until_ms > was.until_ms:
            self._granted(answer.scope, wanted, was, now_ms)
        self._ask(ask)

    def _granted(self, scope: str, wanted: Wanted, was: Bid, now_ms: int) -> None:
        bid = wanted.bid
        wanted.voters = tuple(sorted(RegionId(voter) for voter in bid.yes))
        if bid.token != was.token:
            wanted.since_ms = now_ms
            wanted.contended_ms = None
            wanted.ready = False
            wanted.need = Heads()
            for voter in wanted.voters:
                wanted.need = wanted.need.join(wanted.heads.get(voter, Heads()))
            self._unready[scope] = None
            self._changed[scope] = None
        what = "lease.granted" if bid.token != was.token else "lease.renewed"
        self._here.urgent(
            Notify(
                "info" if what == "lease.granted" else "debug",
                what,
                {
                    "scope": scope,
                    "token": bid.token,
                    "ballot": bid.number,
                    "voters": list(wanted.voters),
                    "until_mono_ms": bid.until_ms,
                },
            )
        )

    def _lose(self, scope: str, wanted: Wanted, why: str) -> None:
        token, ready = wanted.bid.token, wanted.ready
        wanted.bid = wanted.bid._replace(token=0, until_ms=0)
        wanted.ready = wanted.handing_on = False
        self._unready.pop(scope, None)
        self._changed[scope] = None
        self._here.notify("info", "lease.lost", scope=scope, token=token, reason=why, was_ready=ready)

    def _check_ready(self) -> None:
        log = self._here.log
        for scope in list(self._unready):
            wanted = self._wanted.get(scope)
            if wanted is None:
                del self._unready[scope]
            elif all(log.applied[w] >= n or w in log.quarantined for w, n in wanted.need.items()):
                del self._unready[scope]
                wanted.ready = True
                self._changed[scope] = None
                self._here.notify("debug", "lease.ready", scope=scope, token=wanted.bid.token)

    def linked(self, _region: RegionId) -> None:
        """There is a link again: what had to wait for a majority is tried soon, one after the other."""
        now_ms = self._here.now.mono_ms
        if self._hopeless():
            return
        for scope, wanted in self._wanted.items():
            if wanted.bid.state is BidState.WAITING and not wanted.bid.held(now_ms):
                self._set(scope, wanted, self._proposer.freed(wanted.bid, scope, now_ms))

    def _members_changed(self) -> None:
        """Rounds under the old membership are over; a new voter knows nothing of what was accepted before."""
        here, before = self._here, self._membership
        self._membership = here.membership
        if here.membership.is_member(here.me) and not before.is_member(here.me):
            self._silence(here.now.mono_ms)
        for scope, wanted in list(self._wanted.items()):
            bid = wanted.bid
            if bid.state in (BidState.PREPARING, BidState.PROPOSING):
                self._set(scope, wanted, self._proposer.due(bid, scope, here.now.mono_ms, 0)[0])

    def _note(self, what: str, ask: Ask, region: RegionId, **facts: Any) -> None:
        self._here.notify("debug", what, scope=ask.scope, ballot=ask.number, region=region, **facts)


def _parts(items: list[Any]) -> Iterable[tuple[Any, ...]]:
    for start in range(0, len(items), LEASES_PER_FRAME_MAX):
        yield tuple(items[start : start + LEASES_PER_FRAME_MAX])


def _s(ms: int) -> str:
    return f"{ms / 1_000:.1f} s"
