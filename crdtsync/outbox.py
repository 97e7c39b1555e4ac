"""What waits for the disk, and what waits behind it.

One batch is under way at a time; whatever arrives meanwhile goes into the next one (group commit).
An effect is held behind the newest batch that it may rest on, so a driver that carries effects
out in order can never let anybody hear of what is not durable (design 3, *durable first*).

Loading from disk, reading commits and sending what is already durable rest on nothing: they are
`urgent` and leave at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from crdtsync.effects import CommitRow, DocumentRow, Effect, Persist, TaskRow
from crdtsync.identifiers import Domain, TaskId, WriterId


@dataclass(slots=True)
class Batch:
    """One transaction being gathered or written, and the effects that wait for it."""

    number: int
    commits: list[CommitRow] = field(default_factory=list)
    rows: dict[tuple[Domain, TaskId], TaskRow] = field(default_factory=dict)
    documents: dict[tuple[Domain, bytes, str], DocumentRow] = field(default_factory=dict)
    meta: dict[str, bytes] = field(default_factory=dict)
    drop: list[tuple[Domain, WriterId, int]] = field(default_factory=list)
    held: list[Effect] = field(default_factory=list)
    after: list[Callable[[], None]] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not (self.commits or self.rows or self.documents or self.meta or self.drop)

    def persist(self) -> Persist:
        return Persist(
            batch=self.number,
            commits=tuple(self.commits),
            rows=tuple(self.rows.values()),
            documents=tuple(self.documents.values()),
            meta=tuple(self.meta.items()),
            drop=tuple(self.drop),
        )


class Outbox:
    """Effects on their way out, each behind the batch that it rests on."""

    def __init__(self) -> None:
        self._free: list[Effect] = []
        self._next = Batch(1)
        self._under_way: Batch | None = None

    @property
    def next(self) -> Batch:
        """The batch being gathered."""
        return self._next

    @property
    def under_way(self) -> Batch | None:
        return self._under_way

    def urgent(self, effect: Effect) -> None:
        """Let `effect` leave at once: it rests on nothing that is not durable."""
        self._free.append(effect)

    def emit(self, effect: Effect, *, unsaved: bool) -> None:
        """Let `effect` leave once all that it may rest on is durable.

        Args:
            unsaved: Whether anything was decided that is not even in the next batch yet.
        """
        if unsaved or not self._next.empty or self._next.after:
            self._next.held.append(effect)
        elif self._under_way is not None:
            self._under_way.held.append(effect)
        else:
            self._free.append(effect)

    def close(self) -> Batch:
        """Turn the gathered batch into the one under way. Call only when none is."""
        assert self._under_way is None
        batch, self._next = self._next, Batch(self._next.number + 1)
        self._under_way = batch
        self._free.append(batch.persist())
        return batch

    def persisted(self, number: int) -> None:
        """The batch under way is durable: release what waited for it, in order."""
        batch = self._under_way
        assert batch is not None, f"no batch is under way, least of all {number}"
        assert batch.number == number, f"batch {batch.number} is under way, not {number}"
        self._under_way = None
        self._free.extend(batch.held)
        for callback in batch.after:
            callback()

    def take(self) -> list[Effect]:
        taken, self._free = self._free, []
        return taken
