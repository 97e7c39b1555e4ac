"""What a forgotten region leaves behind, and who sees to it (rules.md, Membership).

Its open attempts are lost, its tasks go on in another region, whatever their policy, and what it owed to undo is undone.
Each of these is an event that one region writes: the *heir*, the next member in the rendezvous order of the task. It
writes once the region has left for good: then all that region ever did, as far as it counts, is applied here, so no
success of it can turn up behind the back of a loss.

Two heirs, in a cut around another change, do no harm: two ends of one attempt, two terms and two compensations of one id
are joined as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from crdtsync import lifecycle
from crdtsync.effects import ReadRows, TaskRow
from crdtsync.events import Ended, Inherited
from crdtsync.identifiers import RegionId, TaskId
from crdtsync.protocol import codec
from crdtsync.region import RegionState
from crdtsync.scheduling.placement import rendezvous_order
from crdtsync.task_view import AttemptState, TaskView
from crdtsync.tasks import Task

REASON: Final = "owner forgotten"  # of a loss
ROWS_PER_READ: Final = 500
SWEPT_BYTES_MAX: Final = 1 << 20


class Inheritance:
    """This region's part of it.

    Args:
        require: Brings tasks into memory.
        may_touch_old: Whether older tasks may be touched at all.
    """

    def __init__(
        self,
        here: RegionState,
        require: Callable[[Iterable[TaskId], Callable[[], None]], None],
        *,
        may_touch_old: Callable[[], bool],
    ) -> None:
        self._here = here
        self._require = require
        self._may_touch_old = may_touch_old
        self._swept: frozenset[str] = frozenset()  # forgotten regions of whose ended tasks none is owed anything
        self._sweeping: frozenset[str] = frozenset()
        self._token: int | None = None

    def restore(self, swept: bytes | None) -> None:
        """What the disk knows of sweeps that were completed."""
        if swept is not None:
            self._swept = frozenset(codec.decode(swept, bytes_max=SWEPT_BYTES_MAX))  # type: ignore[arg-type]

    # One task ----------------------------------------------------------------------------------

    def is_heir(self, region: str, id_: bytes) -> bool:
        """Whether what the forgotten `region` leaves under this id is for this region to see to."""
        here = self._here
        if region not in here.membership.forgotten or not here.is_member:
            return False
        return rendezvous_order(id_, here.membership.owners)[0] == here.me

    def settle(self, task: Task, view: TaskView) -> bool:
        """Write what is due for a task. Whether anything was: then it is looked at again."""
        here = self._here
        if not here.membership.forgotten or not self._may_touch_old():
            return False
        written = False
        for attempt in view.attempts:
            if attempt.state is AttemptState.OPEN and self.is_heir(attempt.region, task.id):
                late = lifecycle.outcome_known(view)
                here.write(Ended(task.id, attempt.id, "lost", late, True, REASON, b""))
                written = True
        if not written and not task.ended and self._inherits(task.id, view):
            owner = RegionId(view.owner)
            version = here.membership.forgotten[owner].version
            here.write(Inherited(task.id, view.term + 1, owner, version))
            here.notify("info", "task.inherited", task=task.id.hex(), owner=owner, term=view.term + 1)
            written = True
        return written

    def _inherits(self, task: TaskId, view: TaskView) -> bool:
        """Whether this region goes on with a task of a forgotten owner.

        Whom it was offered to may have accepted it in this moment: under `wait` nobody else may start it then.
        """
        here = self._here
        if view.owner not in here.membership.forgotten:
            return False
        offered = view.offer.region if view.offer is not None else view.returning.region if view.returning else None
        if offered is not None and here.membership.is_member(offered):
            return offered == here.me
        return self.is_heir(view.owner, task)

    # Ended tasks, on disk ----------------------------------------------------------------------

    def advance(self) -> None:
        """Look through ended tasks once after a region has left: it may not have come to undo what it had to."""
        here = self._here
        missing = frozenset(here.membership.forgotten) - self._swept
        if missing and self._token is None and self._may_touch_old():
            here.table.touch_all()
            self._sweeping = missing
            self._read(b"")

    def _read(self, after: bytes) -> None:
        self._token = self._here.token()
        self._here.urgent(ReadRows(self._token, self._here.domain, after, ROWS_PER_READ))

    def rows_read(self, token: int, rows: Sequence[TaskRow]) -> bool:
        """The answer to a read of ours. False if the token is somebody else's."""
        if token != self._token:
            return False
        if not rows:
            self._token = None
            self._swept |= self._sweeping
            self._here.outbox.next.meta["swept"] = codec.encode(tuple(sorted(self._swept)))
            return True
        names = [f"{region}/".encode() for region in self._sweeping]
        found = [row.task for row in rows if any(name in row.facts for name in names)]
        last = rows[-1].task

        def look() -> None:
            for task_id in found:
                task = self._here.table.get(task_id)
                if task is not None:
                    self._here.table.touch(task)
            self._read(last)

        self._require(found, look)
        return True

    def rows_damaged(self, token: int) -> bool:
        """The read of ours met a damaged row: begin again at the next start."""
        return token == self._token
