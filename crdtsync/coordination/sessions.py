"""Locks and leadership for users: which client holds a name, until when, and under which token.

A region holds the lease of the scope `user:NAME`, as any other; a *session* is a client's claim on it, kept alive by the
client's renewals. Both must live: when the region loses its lease the session is over at once, and a client that falls
silent loses it after its `ttl`. What a client was told is kept: its session is never ended before the time that its last
answer named, unless it gives the lease back itself, or the region's own lease, from which that time was taken, is over.

Each session has a token of its own. Where the next one is of the same region, the lease is given back and taken anew in
between, so that tokens tell sessions of one region apart as well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from crdtsync import commands as c
from crdtsync.coordination.leases import Held, Leases
from crdtsync.errors import (
    CrdtSyncError,
    InvalidRequestError,
    LeaseHeldError,
    LeaseLostError,
    OverloadedError,
    QuorumUnavailableError,
)
from crdtsync.region import RegionState

PREFIX: Final = "user:"
NAME_CHARS_MAX: Final = 200
OWNER_CHARS_MAX: Final = 100
SESSIONS_MAX: Final = 10_000  # that hold or wait, of all clients of one node
TTL_MS_MIN: Final = 500
TTL_MS_MAX: Final = 3_600_000
BY: Final = "session"


class Session:
    """One client's claim: it waits while `token` is 0."""

    __slots__ = ("ends_ms", "owner", "patient_ms", "tickets", "token", "ttl_ms", "until_ms")

    def __init__(self, owner: str, ttl_ms: int) -> None:
        self.owner = owner
        self.ttl_ms = ttl_ms
        self.tickets: dict[Any, None] = {}  # who waits for the grant
        self.token = 0
        self.patient_ms: int | None = None  # when it stops waiting
        self.ends_ms = 0  # when its client has been silent for too long
        self.until_ms = 0  # how long it was told that it holds


class Lock:
    """One name: who holds it here, and who waits, first come first served."""

    __slots__ = ("holder", "leaving", "waiting")

    def __init__(self) -> None:
        self.holder: Session | None = None
        self.waiting: deque[Session] = deque()
        self.leaving = False  # the holder's session was ended for it; what it was told is waited for


class Sessions:
    def __init__(
        self,
        here: RegionState,
        leases: Leases,
        reply: Callable[[Any, Any], None],
        refuse: Callable[[Any, CrdtSyncError], None],
    ) -> None:
        self._here = here
        self._leases = leases
        self._reply = reply
        self._refuse = refuse
        self._locks: dict[str, Lock] = {}
        self._lock_of: dict[Any, str] = {}  # by waiting ticket
        self._count = 0
        leases.listen(self._changed)

    # Commands ------------------------------------------------------------------------------------

    def acquire(self, command: c.LeaseAcquire, ticket: Any) -> None:
        """Answer once the owner holds the name, or with what is in the way when its patience is over.

        Raises:
            CrdtSyncError: Refused; nothing changed.
        """
        scope = self._checked(command.name, command.owner)
        if not TTL_MS_MIN <= command.ttl_ms <= TTL_MS_MAX:
            raise InvalidRequestError(f"ttl is {TTL_MS_MIN} to {TTL_MS_MAX} ms, not {command.ttl_ms}")
        now_ms = self._here.now.mono_ms
        lock = self._locks.get(scope)
        session = self._of(lock, command.owner)
        if session is None:
            if self._count >= SESSIONS_MAX:
                raise OverloadedError(f"{SESSIONS_MAX} clients hold or wait for leases here already: ask again later")
            self._leases.want(scope, BY)
            lock = self._locks.setdefault(scope, Lock())
            session = Session(command.owner, command.ttl_ms)
            lock.waiting.append(session)
            self._count += 1
        assert lock is not None
        session.ttl_ms = command.ttl_ms
        self._check(scope, lock)
        if session.token:
            self._reply(ticket, self._told(command.name, session))
        else:
            session.tickets[ticket] = None
            self._lock_of[ticket] = scope
            session.patient_ms = None if command.wait_ms is None else now_ms + max(0, command.wait_ms)
            self._watch(scope, lock)

    def renew(self, command: c.LeaseRenew, ticket: Any) -> None:
        """The client lives and wants to keep it.

        Raises:
            LeaseLostError: It does not hold the name under this token any more.
        """
        scope = self._checked(command.name, command.owner)
        lock = self._locks.get(scope)
        if lock is not None:
            self._check(scope, lock)
        session = lock.holder if lock is not None and not lock.leaving else None
        if session is None or (session.owner, session.token) != (command.owner, command.token):
            raise LeaseLostError(
                f"{command.name!r} is no longer held under token {command.token}: stop what needs it",
                name=command.name,
                token=command.token,
            )
        self._reply(ticket, self._told(command.name, session))

    def release(self, command: c.LeaseRelease, ticket: Any) -> None:
        """Give it back, or stop waiting. A stale one changes nothing. Without an owner: an operator takes it away."""
        scope = self._checked(command.name, command.owner or "operator")
        lock = self._locks.get(scope)
        if not command.owner:
            self._reply(ticket, self._take_away(scope, lock, command.name))
            return
        session = self._of(lock, command.owner)
        stale = session is None or (command.token and session.token != command.token)
        if lock is None or session is None or stale:
            self._reply(ticket, {"name": command.name, "released": False})
            return
        if session is lock.holder:
            self._end(scope, lock)
        else:
            self._withdraw(scope, lock, session)
        self._reply(ticket, {"name": command.name, "released": True})

    def _take_away(self, scope: str, lock: Lock | None, name: str) -> dict[str, Any]:
        """What the holder was told stays true: nobody else gets it before that time."""
        if lock is None or lock.holder is None:
            other = self._leases.held_by(scope)
            where = f": {other.region} holds it, ask there" if other is not None else ""
            raise LeaseHeldError(f"no client of {self._here.me} holds {name!r}{where}", name=name)
        lock.leaving = True
        left_ms = max(0, lock.holder.until_ms - self._here.now.mono_ms)
        self._check(scope, lock)
        return {"name": name, "released": True, "free_in_ms": left_ms}

    def records(self, only: str = "") -> list[dict[str, Any]]:
        """Every lease that this region wants, holds, or has voted for."""
        now_ms = self._here.now.mono_ms
        records = []
        for scope in self._leases.scopes():
            if only and scope != only:
                continue
            held = self._leases.held(scope)
            known = self._leases.held_by(scope)
            lock = self._locks.get(scope)
            holder = lock.holder if lock is not None else None
            records.append(
                {
                    "scope": scope,
                    "holder": known.region if known is not None else None,
                    "token": known.token if known is not None else None,
                    "left_ms": max(0, known.until_mono_ms - now_ms) if known is not None else None,
                    "here": held is not None,
                    "ready": held is not None and held.ready,
                    "voters": list(self._leases.granted_by(scope)),
                    "owner": holder.owner if holder is not None and held is not None else None,
                    "waiting": len(lock.waiting) if lock is not None else 0,
                    "why_not": self._leases.why_not(scope) if scope in self._leases.wanted() else "",
                }
            )
        return records

    def holds(self, scope: str) -> bool:
        """Whether a client was told that it holds this, for a time that is not over."""
        lock = self._locks.get(scope)
        return lock is not None and lock.holder is not None and self._here.now.mono_ms < lock.holder.until_ms

    # Time and changes ----------------------------------------------------------------------------

    def forget(self, ticket: Any) -> None:
        """Whoever waited with it is gone, and waits no longer."""
        scope = self._lock_of.pop(ticket, None)
        lock = self._locks.get(scope) if scope is not None else None
        if lock is None or scope is None:
            return
        for session in list(lock.waiting):
            if ticket in session.tickets:
                del session.tickets[ticket]
                if not session.tickets:
                    self._withdraw(scope, lock, session)

    def check(self, scope: str) -> None:
        """A timer of this scope is due."""
        lock = self._locks.get(scope)
        if lock is not None:
            self._check(scope, lock)

    def _changed(self, scope: str) -> None:
        if (lock := self._locks.get(scope)) is not None:
            self._check(scope, lock)

    def _check(self, scope: str, lock: Lock) -> None:
        holder, now_ms = lock.holder, self._here.now.mono_ms
        if holder is not None:
            if not self._leases.valid(scope, holder.token):
                self._forget_holder(lock)
            elif now_ms >= (holder.until_ms if lock.leaving else max(holder.ends_ms, holder.until_ms)):
                self._end(scope, lock)
        for session in [s for s in lock.waiting if s.patient_ms is not None and now_ms >= s.patient_ms]:
            error = self._in_the_way(scope, lock, scope.removeprefix(PREFIX))
            for ticket in session.tickets:
                self._refuse(ticket, error)
            self._withdraw(scope, lock, session)
        self._grant(scope, lock)
        self._watch(scope, lock)

    def _watch(self, scope: str, lock: Lock) -> None:
        """Set the one timer of this scope to what comes first."""
        times = [session.patient_ms for session in lock.waiting if session.patient_ms is not None]
        if lock.holder is not None:
            held_ms = lock.holder.until_ms
            times.append(held_ms if lock.leaving else max(held_ms, lock.holder.ends_ms))
        elif lock.waiting and (held := self._leases.held(scope)) is not None and not self._fresh(held):
            times.append(self._here.now.mono_ms + self._leases.terms.backoff_ms)  # for its renewal
        if times:
            self._here.timers.at_mono(min(times), ("session", scope))

    def _grant(self, scope: str, lock: Lock) -> None:
        """Let the first who waits have it, if this region holds it and nobody here does.

        That the region has caught up with its voters (`Held.ready`) is not waited for: a lock rests on no fact of the
        log, and one commit from a clock that is far ahead would keep everybody out for as long as it is held back.
        """
        held = self._leases.held(scope)
        if held is not None and lock.holder is None and lock.waiting and self._fresh(held):
            session = lock.waiting.popleft()
            lock.holder, session.token = session, held.token
            tickets, session.tickets = session.tickets, {}
            name = scope.removeprefix(PREFIX)
            record = self._told(name, session)
            self._here.notify("info", "lock.granted", name=name, token=session.token, owner=session.owner)
            for ticket in tickets:
                self._lock_of.pop(ticket, None)
                self._reply(ticket, record)
        if lock.holder is None and not lock.waiting:
            self._locks.pop(scope, None)
            self._leases.unwant(scope, BY)

    def _fresh(self, held: Held) -> bool:
        """Whether enough of the lease is left to be worth telling; otherwise its renewal is waited for."""
        return held.starts_until_mono_ms > self._here.now.mono_ms

    def _told(self, name: str, session: Session) -> dict[str, Any]:
        """The answer to who holds it: for how long, counted from when it asked."""
        scope, now_ms = PREFIX + name, self._here.now.mono_ms
        held = self._leases.held(scope)
        assert held is not None
        assert held.token == session.token, (held, session.token)
        valid_ms = min(held.until_mono_ms - now_ms, session.ttl_ms)
        session.until_ms = max(session.until_ms, now_ms + valid_ms)
        # Two clocks count the same time: what the client counts as its ttl may take longer here.
        session.ends_ms = now_ms + session.ttl_ms + self._leases.terms.margin_ms
        self._watch(scope, self._locks[scope])
        return {"name": name, "region": self._here.me, "token": session.token, "valid_ms": valid_ms}

    def _end(self, scope: str, lock: Lock) -> None:
        """The session is over while this region holds the lease: the next one needs another token."""
        self._forget_holder(lock)
        if lock.waiting:
            self._leases.release(scope)
        self._grant(scope, lock)

    def _forget_holder(self, lock: Lock) -> None:
        if lock.holder is not None:
            self._count -= 1
        lock.holder, lock.leaving = None, False

    def _withdraw(self, scope: str, lock: Lock, session: Session) -> None:
        lock.waiting.remove(session)
        for ticket in session.tickets:
            self._lock_of.pop(ticket, None)
        self._count -= 1
        self._grant(scope, lock)

    # Helpers -------------------------------------------------------------------------------------

    def _checked(self, name: str, owner: str) -> str:
        if not 0 < len(name) <= NAME_CHARS_MAX:
            raise InvalidRequestError(f"the name of a lease has 1 to {NAME_CHARS_MAX} characters")
        if not 0 < len(owner) <= OWNER_CHARS_MAX:
            raise InvalidRequestError(f"the owner of a lease has 1 to {OWNER_CHARS_MAX} characters")
        return PREFIX + name

    @staticmethod
    def _of(lock: Lock | None, owner: str) -> Session | None:
        if lock is None:
            return None
        if lock.holder is not None and lock.holder.owner == owner and not lock.leaving:
            return lock.holder
        return next((session for session in lock.waiting if session.owner == owner), None)

    def _in_the_way(self, scope: str, lock: Lock, name: str) -> CrdtSyncError:
        other = self._leases.held_by(scope)
        if lock.holder is not None:
            return LeaseHeldError(
                f"{name!r} is held by {lock.holder.owner} at {self._here.me}, token {lock.holder.token}",
                name=name,
                token=lock.holder.token,
                region=self._here.me,
            )
        if other is not None and other.region != self._here.me:
            return LeaseHeldError(
                f"{name!r} is held at {other.region}, token {other.token}",
                name=name,
                token=other.token,
                region=other.region,
            )
        return QuorumUnavailableError(
            f"{name!r} cannot be had at once: {self._leases.why_not(scope)}; wait for it, or ask again", name=name
        )
