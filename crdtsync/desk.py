"""Which part carries out which command: one table, and what concerns the node as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from crdtsync import commands as c
from crdtsync.clock_status import clock_record, held_back_records
from crdtsync.clock_watch import ClockWatch
from crdtsync.coordination.sessions import Sessions
from crdtsync.document_requests import DocumentRequests
from crdtsync.effects import Reply
from crdtsync.errors import CrdtSyncError, InvalidRequestError, NotAMemberError, NotImplementedYetError
from crdtsync.identifiers import RegionId, is_region
from crdtsync.limit_requests import LimitRequests
from crdtsync.log.shapes import URL_CHARS_MAX
from crdtsync.neighbours import Neighbours
from crdtsync.region import RegionState
from crdtsync.reissuing import Reissuing
from crdtsync.requests import Requests
from crdtsync.scheduling.handover import Handover
from crdtsync.scheduling.ready import ReadyQueue
from crdtsync.scheduling.workers import Workers
from crdtsync.worker_requests import WorkerRequests

DAMAGED_SHOWN_MAX: Final = 100  # in the status
#: Commands that cannot be carried out without a stamp: refused while this region's clock is off.
WRITING: Final = frozenset(
    {c.Submit, c.Cancel, c.Requeue, c.Edit, c.EditDocument, c.AddRegion, c.ForgetRegion, c.SetLimit, c.RemoveLimit}
)
#: What a region that has not joined, or was forgotten, refuses. What its workers report is still kept: it happened.
TAKING_PART: Final = frozenset(
    (
        c.Submit,
        c.Cancel,
        c.Requeue,
        c.Edit,
        c.EditDocument,
        c.WorkerHello,
        c.Drain,
        c.AddRegion,
        c.ForgetRegion,
        c.SetLimit,
        c.RemoveLimit,
    )
)


class Desk:
    def __init__(
        self,
        here: RegionState,
        *,
        requests: Requests,
        worker_requests: WorkerRequests,
        documents: DocumentRequests,
        limits: LimitRequests,
        neighbours: Neighbours,
        handover: Handover,
        workers: Workers,
        ready: ReadyQueue,
        clock_watch: ClockWatch,
        sessions: Sessions,
        reissuing: Reissuing,
    ) -> None:
        self._here = here
        self._requests = requests
        self._worker_requests = worker_requests
        self._documents = documents
        self._limits = limits
        self._neighbours = neighbours
        self._handover = handover
        self._workers = workers
        self._ready = ready
        self._clock_watch = clock_watch
        self._sessions = sessions
        self._reissuing = reissuing

    def do(self, command: Any, ticket: Any) -> None:
        """Carry one command out; its answers are `Reply` effects with `ticket`. Never raises for what it asks."""
        try:
            if type(command) in TAKING_PART and not self._neighbours.takes_part:
                raise self._no_member()
            handler = self._handlers.get(type(command))
            if handler is None:
                raise NotImplementedYetError(f"{self._here.me} does not know {type(command).__name__}")
            if not self._here.stamps:
                if isinstance(command, c.Complete | c.RecordEffect | c.SaveCheckpoint):
                    self._worker_requests.hold(command, ticket)
                    return
                if type(command) in WRITING:
                    raise self._clock_watch.error(self._here.now)
            handler(self, command, ticket)
        except CrdtSyncError as error:
            self._here.emit(Reply(ticket, None, error.record()))

    def _no_member(self) -> NotAMemberError:
        """Why this region takes no work."""
        here = self._here
        if self._neighbours.forgotten:
            return NotAMemberError(f"this region has no part in the cluster: {self._neighbours.forgotten}")
        if here.membership.has_lost(here.me):
            return NotAMemberError(f"{here.me} was forgotten: stop this node, keep its data as evidence")
        waits = self._neighbours.assembly.waits_for() or "a member has to add it: crdtsync region add"
        return NotAMemberError(f"{here.me} has not joined the cluster yet: {waits}")

    def _changed(self, region: str, ticket: Any) -> Callable[[CrdtSyncError | None], None]:
        """What tells whoever asked for a change how it went."""

        def answer(error: CrdtSyncError | None) -> None:
            if error is not None:
                self._here.emit(Reply(ticket, None, error.record()))
                return
            now = self._here.membership
            self._requests.reply(
                ticket,
                {
                    "region": region,
                    "state": str(now.states.get(RegionId(region), "forgotten")),
                    "version": now.version,
                    "epoch": now.epoch,
                    "waits_for": self._neighbours.assembly.waits_for(),
                },
            )

        return answer

    def _add(self, command: c.AddRegion, ticket: Any) -> None:
        if not is_region(command.region):
            raise InvalidRequestError(
                f"{command.region[:80]!r} is no region: 1 to 32 lower-case letters, digits, dashes"
            )
        if len(command.url) > URL_CHARS_MAX:
            raise InvalidRequestError(f"a URL has at most {URL_CHARS_MAX} characters")
        self._neighbours.assembly.add(command.region, command.url, self._changed(command.region, ticket))

    def _forget(self, command: c.ForgetRegion, ticket: Any) -> None:
        self._neighbours.assembly.forget(
            command.regions,
            stopped=command.stopped,
            force=command.force,
            answer=self._changed(", ".join(command.regions), ticket),
        )

    def _drain(self, command: c.Drain, ticket: Any) -> None:
        self._handover.draining = not command.off
        self._here.table.touch_all()
        waiting = sum(1 for t in self._here.table if not t.ended and self._here.table.view(t).owner == self._here.me)
        self._requests.reply(
            ticket,
            {
                "region": self._here.me,
                "draining": self._handover.draining,
                "running": len(self._workers.running),
                "waiting": waiting,
            },
        )

    def _status(self, _command: c.Status, ticket: Any) -> None:
        here = self._here
        here.seal()  # what is open counts in the digest: the heads have to name it
        self._requests.reply(
            ticket,
            {
                "region": here.me,
                "writer": here.writer,
                "cluster": self._here.settings.cluster,
                "members": list(self._here.membership.linked),
                "digest": here.table.digest.hex(),
                "heads": dict(here.log.applied.items()),
                "tasks_in_memory": len(here.table),
                "ready": len(self._ready),
                "running": len(self._workers.running),
                "draining": self._handover.draining,
                "workers": [
                    {"id": w.id, "app": w.app, "tasks": sorted(w.names), "running": len(w.running), "free": w.free}
                    for w in self._workers.all()
                ],
                "gaps": [list(gap) for gap in here.log.gaps()],
                "held_back": held_back_records(here.log),
                "quarantined": sorted(here.log.quarantined),
                "commit_bytes": here.commit_bytes,
                "skew_ms": here.clock.skew_ms(here.now),
                "clock": str(self._clock_watch.verdict),
                "recovering": sorted(self._neighbours.unanswered),
                "alarms": list(here.alarms.values()),
                "damaged": [task.hex() for task in sorted(here.table.damaged)[:DAMAGED_SHOWN_MAX]],
            },
        )

    def _clock(self, _command: c.ShowClock, ticket: Any) -> None:
        here = self._here
        record = clock_record(here, self._clock_watch, self._neighbours.gossip)
        self._requests.reply(
            ticket, record | {"waiting_reports": self._worker_requests.held, "reissuing": self._reissuing.record()}
        )

    def _regions(self, _command: c.ListRegions, ticket: Any) -> None:
        self._requests.reply(ticket, self._neighbours.assembly.described(self._neighbours.regions()))

    def _leases(self, command: c.LeaseList, ticket: Any) -> None:
        self._requests.reply(ticket, self._sessions.records(command.scope))

    def _links(self, _command: c.ListLinks, ticket: Any) -> None:
        self._requests.reply(ticket, self._neighbours.links())

    def _cut(self, command: c.CutLinks, ticket: Any) -> None:
        self._neighbours.cut(command.regions)
        self._requests.reply(ticket, self._neighbours.links())

    def _heal(self, command: c.HealLinks, ticket: Any) -> None:
        self._neighbours.heal(command.regions)
        self._requests.reply(ticket, self._neighbours.links())

    _handlers: Final[dict[type, Callable[[Desk, Any, Any], None]]] = {
        c.Submit: lambda self, command, ticket: self._requests.submit(command, ticket),
        c.Cancel: lambda self, command, ticket: self._requests.cancel(command, ticket),
        c.Requeue: lambda self, command, ticket: self._requests.requeue(command, ticket),
        c.Edit: lambda self, command, ticket: self._requests.edit(command, ticket),
        c.Describe: lambda self, command, ticket: self._requests.describe(command, ticket),
        c.History: lambda self, command, ticket: self._requests.history(command, ticket),
        c.Explain: lambda self, command, ticket: self._requests.explain(command, ticket),
        c.Await: lambda self, command, ticket: self._requests.wait(command, ticket),
        c.Watch: lambda self, command, ticket: self._requests.watch(command, ticket),
        c.ListTasks: lambda self, command, ticket: self._requests.list_tasks(command, ticket),
        c.ListConflicts: lambda self, command, ticket: self._requests.list_conflicts(command, ticket),
        c.ShowConflict: lambda self, command, ticket: self._requests.show_conflict(command, ticket),
        c.ListRegions: _regions,
        c.ListLinks: _links,
        c.CutLinks: _cut,
        c.HealLinks: _heal,
        c.AddRegion: _add,
        c.ForgetRegion: _forget,
        c.Drain: _drain,
        c.Status: _status,
        c.ShowClock: _clock,
        c.ReissueLog: lambda self, command, ticket: self._reissuing.ask(command, ticket),
        c.LeaseAcquire: lambda self, command, ticket: self._sessions.acquire(command, ticket),
        c.LeaseRenew: lambda self, command, ticket: self._sessions.renew(command, ticket),
        c.LeaseRelease: lambda self, command, ticket: self._sessions.release(command, ticket),
        c.LeaseList: _leases,
        c.SetLimit: lambda self, command, ticket: self._limits.set(command, ticket),
        c.RemoveLimit: lambda self, command, ticket: self._limits.remove(command, ticket),
        c.ListLimits: lambda self, command, ticket: self._limits.show(command, ticket),
        c.ShowDocument: lambda self, command, ticket: self._documents.show(command, ticket),
        c.EditDocument: lambda self, command, ticket: self._documents.edit(command, ticket),
        c.WorkerHello: lambda self, command, ticket: self._worker_requests.hello(command, ticket),
        c.Heartbeat: lambda self, command, ticket: self._worker_requests.heartbeat(command, ticket),
        c.CheckFence: lambda self, command, ticket: self._worker_requests.check_fence(command, ticket),
        c.RecordEffect: lambda self, command, ticket: self._worker_requests.record_effect(command, ticket),
        c.SaveCheckpoint: lambda self, command, ticket: self._worker_requests.save_checkpoint(command, ticket),
        c.Complete: lambda self, command, ticket: self._worker_requests.complete(command, ticket),
        c.WorkerDraining: lambda self, command, ticket: self._worker_requests.draining(command, ticket),
        c.WorkerGone: lambda self, command, _ticket: self._worker_requests.gone(command),
    }
