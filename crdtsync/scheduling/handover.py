"""Ownership that moves: takeover of silent owners, and handover by offer and acceptance.

Only the owner claims. A region takes over when the owner and every region before it in the task's
rendezvous order have been silent to it for `lost_after`; a cut-off owner goes on meanwhile, that
is what the conflict rules are for. A handover is an offer by the owner and takes effect by the
receiver's accepting event, so nobody races for a task (rules.md, Owner).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from crdtsync import lifecycle
from crdtsync.events import Offered, TermOpened, Withdrawn
from crdtsync.identifiers import RegionId, TaskId
from crdtsync.region import RegionState
from crdtsync.scheduling.placement import may_take_over, next_taker
from crdtsync.scheduling.ready import Lane
from crdtsync.task_view import TaskView
from crdtsync.tasks import Task

TAKEOVERS_PER_TURN: Final = 200  # terms opened by one tick; the rest follow in the next ones
OFFER_RETRY_MS: Final = 5_000  # an offer that nobody took is made anew, elsewhere if possible


class Handover:
    def __init__(
        self,
        here: RegionState,
        *,
        last_heard: Callable[[RegionId], int | None],
        serves: Callable[[Lane], bool],
        reachable: Callable[[RegionId], bool],
    ) -> None:
        self._here = here
        self._last_heard = last_heard
        self._serves = serves
        self._reachable = reachable
        self._foreign: dict[RegionId, dict[TaskId, None]] = {}
        self._owner_of: dict[TaskId, RegionId] = {}
        self.offers: dict[TaskId, None] = {}  # tasks that are offered, by us or to us
        self.draining = False

    # Silence -----------------------------------------------------------------------------------

    def silent_for_ms(self, region: RegionId) -> int:
        """For how long nothing of `region` has reached this replica by any path."""
        heard, since_ms = self._last_heard(region), self._here.heard_from_ms
        return self._here.now.mono_ms - (since_ms if heard is None else max(heard, since_ms))

    def silent(self) -> frozenset[RegionId]:
        lost_after = self._here.settings.lost_after_ms
        return frozenset(r for r in self._here.others if self.silent_for_ms(r) >= lost_after)

    def present(self) -> frozenset[RegionId]:
        """The other members of which something has been heard within `lost_after`."""
        lost_after = self._here.settings.lost_after_ms
        return frozenset(r for r in self._here.others if self.silent_for_ms(r) < lost_after)

    # Takeover ----------------------------------------------------------------------------------

    def watch(self, task: Task, view: TaskView) -> None:
        """Remember a task of another owner that this region may have to take over."""
        owner = RegionId(view.owner)
        if self._owner_of.get(task.id) == owner:
            return
        self.forget(task.id)
        if view.submitted is not None and view.submitted.options.partition == "takeover":
            self._owner_of[task.id] = owner
            self._foreign.setdefault(owner, {})[task.id] = None

    def forget(self, task: TaskId) -> None:
        owner = self._owner_of.pop(task, None)
        if owner is not None:
            self._foreign[owner].pop(task, None)

    def take_over(self) -> bool:
        """Open terms for tasks of silent owners. True if there may be more for the next turn."""
        here = self._here
        if self.draining or not any(self._foreign.values()):
            return False
        silent = self.silent()
        left = TAKEOVERS_PER_TURN
        for owner in sorted(silent):
            for task_id in list(self._foreign.get(owner, ())):
                task = here.table.get(task_id)
                if task is None:
                    self.forget(task_id)
                    continue
                view = here.table.view(task)
                if not lifecycle.may_open_term(view, here.me):
                    continue
                if may_take_over(task_id, owner, here.me, here.membership.owners, silent):
                    if left == 0:
                        return True
                    left -= 1
                    here.write(TermOpened(task_id, view.term + 1, None))
                    here.notify("info", "task.taken_over", task=task_id.hex(), owner=owner, term=view.term + 1)
        return False

    def note_offer(self, task: Task, view: TaskView) -> None:
        """Keep `offers` up to date."""
        offer = view.offer
        if offer is None or task.ended or self._here.me not in (offer.region, view.owner):
            self.offers.pop(task.id, None)
        else:
            self.offers[task.id] = None

    # Handover ----------------------------------------------------------------------------------

    def offer(self, task: Task, view: TaskView, reason: str) -> bool:
        """Offer a waiting task that this region owns. False when nobody is there to take it."""
        here = self._here
        assert view.submitted is not None
        name = view.submitted.name
        willing: Iterable[RegionId] = here.declared.get(name, ())
        taker = next_taker(task.id, here.me, here.membership.owners, filter(self._reachable, willing))
        if taker is None:
            return False
        if view.offer is not None and view.offer.region == taker:
            return True
        if lifecycle.allowed(view, lifecycle.Action.OFFER, here.me):
            here.write(Offered(task.id, view.term, taker, reason))
        return True

    def withdraw(self, task: Task, view: TaskView) -> None:
        """Take an unanswered offer of ours back: this region can run the task itself again."""
        if view.offer is not None and view.owner == self._here.me:
            self._here.write(Withdrawn(task.id, view.offer.id))

    def accept(self, task: Task, view: TaskView) -> bool:
        """Accept an offer made to this region, if it can run the task."""
        offer = view.offer
        if (
            offer is None
            or offer.region != self._here.me
            or self.draining
            or not lifecycle.may_accept(view, self._here.me)
        ):
            return False
        assert view.submitted is not None
        if not self._serves((view.submitted.queue, view.submitted.name)):
            return False
        self._here.write(TermOpened(task.id, view.term + 1, offer.id))
        return True
