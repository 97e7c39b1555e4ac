"""Histories of one task, written down event by event, for tests that look at one rule each."""

from __future__ import annotations

from typing import Any

from crdtsync.events import (
    CancelRequested,
    Checkpointed,
    Claimed,
    EffectRecorded,
    Ended,
    Expired,
    LabelEdited,
    Offered,
    Options,
    PriorityEdited,
    Requeued,
    Submitted,
    TermOpened,
    Withdrawn,
)
from crdtsync.history import Facts
from crdtsync.identifiers import EventId, TaskId, writer_id
from crdtsync.protocol.codec import encode_value
from crdtsync.resolve import resolve
from crdtsync.task_view import TaskView
from crdtsync.undoing import effect_key, inherited_effects

TASK = TaskId(bytes(range(16)))
START_MS = 1_700_000_000_000  # 2023-11-14T22:13:20Z

OPTIONS = Options(
    partition="takeover",
    attempts=3,
    lost_max=5,
    backoff_ms_base=1_000,
    backoff_ms_max=60_000,
    backoff_factor_permille=2_000,
    cancel="loses",
    compensate="refund",
    timeout_ms=0,
    unserved_after_ms=60_000,
    window_ms=86_400_000,
    non_retryable=(),
)


def writer(region: str) -> Any:
    return writer_id(region, "a", 1, bytes(8))


class Story:
    """Every event is a second later than the one before it, in whatever region."""

    def __init__(self, task: TaskId = TASK) -> None:
        self.task = task
        self.facts = Facts()
        self.second = 0

    @property
    def view(self) -> TaskView:
        return resolve(self.facts)

    def write(self, region: str, event: Any) -> EventId:
        self.second += 1
        event_id = EventId((START_MS + 1_000 * self.second) << 16, writer(region), self.second, 0)
        assert self.facts.add(event_id, event)
        return event_id

    def submit(self, region: str = "eu", *, payload: Any = None, **changes: Any) -> EventId:
        fields = {name: changes.pop(name) for name in list(changes) if name in Submitted._fields}
        submitted = Submitted(
            task=self.task,
            name="charge",
            payload=encode_value([["A17"], {"cents": 1250}] if payload is None else payload),
            owner=region,
            queue="payments",
            priority=5,
            not_before_ms=0,
            deadline_ms=0,
            key="",
            generation=0,
            labels=(),
            after=(),
            undoes=None,
            linked=None,
            options=OPTIONS._replace(**changes),
        )
        return self.write(region, submitted._replace(**fields))

    def claim(self, region: str = "eu", *, continues: EventId | None = None, **changes: Any) -> EventId:
        """One attempt, which inherits as a region does that knows all the facts."""
        view = self.view
        before = None if continues is None else view.attempt(continues)
        relies = () if continues is None else tuple(e.id for e in inherited_effects(self.facts, continues))
        assert view.submission is not None
        claimed = Claimed(
            task=self.task,
            term=view.term,
            submission=view.submission,
            continues=continues,
            continues_ended=before is not None and before.end is not None,
            relies=relies,
            inputs=(),
            token=0,
        )
        return self.write(region, claimed._replace(**changes))

    def effect(self, attempt: EventId, name: str, result: Any = "done") -> EventId:
        known = self.view.attempt(attempt)
        key = effect_key(self.task, attempt if known is None else known.root, name)
        return self.write(attempt.region, EffectRecorded(self.task, attempt, name, key, encode_value(result)))

    def checkpoint(self, attempt: EventId, index: int, data: bytes = b"") -> EventId:
        return self.write(attempt.region, Checkpointed(self.task, attempt, index, data))

    def end(
        self,
        attempt: EventId,
        outcome: str = "ok",
        *,
        late: bool = False,
        retryable: bool = True,
        reason: str = "",
        value: Any = None,
    ) -> EventId:
        data = b"" if outcome == "lost" else encode_value(value)
        return self.write(attempt.region, Ended(self.task, attempt, outcome, late, retryable, reason, data))

    def fail(self, attempt: EventId, *, retryable: bool = True) -> EventId:
        return self.end(
            attempt, "failed", retryable=retryable, reason="ValueError", value=["ValueError", "no such card", "trace"]
        )

    def term(self, region: str, term: int, offer: EventId | None = None) -> EventId:
        return self.write(region, TermOpened(self.task, term, offer))

    def offer(self, region: str, to: str, term: int = 0) -> EventId:
        return self.write(region, Offered(self.task, term, to, "drain"))

    def withdraw(self, offer: EventId) -> EventId:
        return self.write(offer.region, Withdrawn(self.task, offer))

    def cancel(self, region: str = "eu", *, late: bool = False) -> EventId:
        return self.write(region, CancelRequested(self.task, late, "changed my mind"))

    def expire(self, region: str = "eu", *, late: bool = False) -> EventId:
        return self.write(region, Expired(self.task, late))

    def requeue(self, death: int = 1, region: str = "eu") -> EventId:
        return self.write(region, Requeued(self.task, death))

    def priority(self, value: int, region: str = "eu", saw: EventId | None = None) -> EventId:
        return self.write(region, PriorityEdited(self.task, value, saw))

    def label(self, name: str, value: str, region: str = "eu", saw: EventId | None = None) -> EventId:
        return self.write(region, LabelEdited(self.task, name, value, saw))
