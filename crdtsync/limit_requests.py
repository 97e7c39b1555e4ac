"""What operators and apps say about limits: checked, and written as facts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from crdtsync import commands as c
from crdtsync.coordination.limits import AMOUNT_MAX, LIMITS_MAX, Limit, limit_id
from crdtsync.effects import Reply
from crdtsync.errors import InvalidRequestError, OverloadedError, UnknownLimitError
from crdtsync.events import LimitSet
from crdtsync.limit import SCOPES
from crdtsync.log.shapes import LIMIT_TARGETS
from crdtsync.region import RegionState
from crdtsync.scheduling.limits import Limits

OPERATOR: Final = "operator"
PERIOD_MS_MAX: Final = 31 * 86_400_000
TARGET_CHARS_MAX: Final = 500


class LimitRequests:
    """Args:
    all_know: Whether every member reads these events (`Neighbours.all_know_limits`).
    """

    def __init__(self, here: RegionState, limits: Limits, *, all_know: Callable[[], bool]) -> None:
        self._here = here
        self._limits = limits
        self._all_know = all_know

    # Operators ---------------------------------------------------------------------------------

    def set(self, command: c.SetLimit, ticket: Any) -> None:
        """Raises InvalidRequestError or OverloadedError: nothing was written."""
        self._check(command.limit)
        self._check_all_know()
        for setting in self._settings(command.limit, OPERATOR):
            self._here.write(setting)
        self._reply(ticket, self._of(command.limit.target))

    def remove(self, command: c.RemoveLimit, ticket: Any) -> None:
        """Raises UnknownLimitError: nothing was written."""
        limits = [limit for limit in self._here.limits if _in_force(limit, command.target)]
        if not limits:
            raise UnknownLimitError(f"{self._here.me} knows no limit on {command.target!r}", target=command.target)
        for limit in limits:
            assert limit.latest is not None
            self._here.write(limit.latest[1]._replace(scope="none", origin=OPERATOR))
        self._reply(ticket, {"target": command.target, "removed": len(limits)})

    def show(self, command: c.ListLimits, ticket: Any) -> None:
        """Raises UnknownLimitError, if a target is named."""
        records = self._limits.records() if command.target is None else self._of(command.target)
        if command.target is not None and not records:
            raise UnknownLimitError(f"{self._here.me} knows no limit on {command.target!r}", target=command.target)
        self._reply(ticket, records)

    def _of(self, target: str) -> list[dict[str, Any]]:
        return [record for record in self._limits.records() if record["target"] == target]

    def _reply(self, ticket: Any, value: Any) -> None:
        self._here.emit(Reply(ticket, value))

    # Apps --------------------------------------------------------------------------------------

    def declare(self, app: str, limits: Iterable[c.LimitDeclaration]) -> None:
        """What a worker's app declares: written when it differs from what this app last said here.

        So an operator's setting stays until the app itself says something new. While not every member is known to read
        such events the declaration is kept here, and in force: a global limit then has no rights yet.

        Raises:
            InvalidRequestError, OverloadedError: One of them makes no sense, or is one too many. Nothing was written.
        """
        limits = tuple(limits)
        for limit in limits:
            self._check(limit)
        for setting in (setting for limit in limits for setting in self._settings(limit, f"app:{app}")):
            if self._may_write():
                self._here.write(setting)
            else:
                self._limits.declare_later(setting)

    # Both --------------------------------------------------------------------------------------

    def _may_write(self) -> bool:
        """Nobody writes what a member cannot read. Who has read such an event before will read the next."""
        return self._here.stamps and (len(self._here.limits) > 0 or self._all_know())

    def _check_all_know(self) -> None:
        if not self._may_write():
            others = ", ".join(self._here.others)
            raise OverloadedError(
                f"a first limit needs all members to know of limits, and {self._here.me} has not met all of {others} "
                "since its start: ask again once it has"
            )

    def _check(self, limit: c.LimitDeclaration) -> None:
        _, _, name = limit.target.partition(":")
        if not limit.target.startswith(LIMIT_TARGETS) or not name or len(limit.target) > TARGET_CHARS_MAX:
            raise InvalidRequestError(
                f"a limit is on queue:NAME, task:NAME or key:KEY, not on {limit.target[:TARGET_CHARS_MAX]!r}"
            )
        if limit.scope not in SCOPES:
            raise InvalidRequestError(f"scope is global or region, not {limit.scope!r}")
        if limit.concurrency is None and limit.rate is None:
            raise InvalidRequestError(f"the limit on {limit.target} has neither a concurrency nor a rate")
        for what, amount in (("concurrency", limit.concurrency), ("rate", limit.rate)):
            if amount is not None and not 0 <= amount <= AMOUNT_MAX:
                raise InvalidRequestError(f"a {what} is between 0 and {AMOUNT_MAX}, not {amount}")
        if limit.rate is not None and not 1 <= limit.per_ms <= PERIOD_MS_MAX:
            raise InvalidRequestError(f"the period of a rate is between 1 and {PERIOD_MS_MAX} ms, not {limit.per_ms}")
        if len(self._here.limits) >= LIMITS_MAX:
            known = {limit_id(self._here.settings.namespace, limit.target, kind) for kind in ("concurrency", "rate")}
            if not any(self._here.limits.get(id) for id in known):
                raise OverloadedError(f"{LIMITS_MAX} limits were set in this cluster, which is as many as there may be")

    def _settings(self, limit: c.LimitDeclaration, origin: str) -> Iterator[LimitSet]:
        """The settings that this declaration changes."""
        here = self._here
        for kind, amount in (("concurrency", limit.concurrency), ("rate", limit.rate)):
            if amount is None:
                continue
            setting = LimitSet(
                limit=limit_id(here.settings.namespace, limit.target, kind),
                target=limit.target,
                kind=kind,
                scope=limit.scope,
                amount=amount,
                period_ms=limit.per_ms if kind == "rate" else 0,
                origin=origin,
                founders=here.membership.voters,
            )
            known = here.limits.get(setting.limit)
            if known is None or _said(known, setting, here.me) != setting:
                yield setting


def _said(limit: Limit, setting: LimitSet, me: str) -> LimitSet | None:
    """What the same origin said last: any operator, or this app in this region."""
    if setting.origin == OPERATOR:
        latest = limit.latest
    else:
        latest = next(
            (said for (region, app), said in limit.apps.items() if (region, app) == (me, setting.origin)), None
        )
    return None if latest is None else latest[1]._replace(founders=setting.founders)


def _in_force(limit: Limit, target: str) -> bool:
    return limit.latest is not None and limit.latest[1].target == target and limit.latest[1].scope != "none"
