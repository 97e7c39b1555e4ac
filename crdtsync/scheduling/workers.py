"""The workers connected to this node: what they can run, what they run, and whether they live.

Decides nothing about tasks: it answers who may take one, and who has gone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from crdtsync.commands import WorkerHello
from crdtsync.identifiers import AttemptId, TaskId, WorkerId
from crdtsync.scheduling.ready import Lane


@dataclass(slots=True)
class Worker:
    id: WorkerId
    app: str
    names: frozenset[str]
    queues: frozenset[str]  # empty: all
    credits: int
    heard_ms: int  # monotonic
    connected: bool = True
    draining: bool = False
    running: dict[AttemptId, TaskId] = field(default_factory=dict)

    @property
    def free(self) -> int:
        if not self.connected or self.draining:
            return 0
        return self.credits - len(self.running)

    def serves(self, lane: Lane) -> bool:
        queue, name = lane[:2]
        return name in self.names and (not self.queues or queue in self.queues)


@dataclass(slots=True)
class Running:
    """An attempt of this region that is under way, as far as this node knows."""

    task: TaskId
    worker: WorkerId | None  # None: nobody has reported it yet (after a restart)
    progress: str = ""
    stop: str = ""  # the reason for which it was asked to stop
    told: AttemptId | None = None  # what its worker calls it, where that was re-issued since


class Workers:
    def __init__(self) -> None:
        self._workers: dict[WorkerId, Worker] = {}
        self.running: dict[AttemptId, Running] = {}

    def all(self) -> list[Worker]:
        return list(self._workers.values())

    def __len__(self) -> int:
        return len(self._workers)

    def get(self, worker: WorkerId) -> Worker | None:
        return self._workers.get(worker)

    def hello(self, command: WorkerHello, mono_ms: int) -> Worker:
        """Register a worker, or a known one that has come back."""
        id = WorkerId(command.worker)
        worker = self._workers.get(id)
        names = frozenset(task.name for task in command.tasks)
        if worker is None:
            worker = Worker(id, command.app, names, frozenset(command.queues), command.credits, mono_ms)
            self._workers[id] = worker
        else:
            worker.names, worker.queues = names, frozenset(command.queues)
            worker.credits, worker.heard_ms, worker.connected = command.credits, mono_ms, True
        return worker

    def remove(self, worker: WorkerId) -> Worker | None:
        return self._workers.pop(worker, None)

    def serves(self, lane: Lane) -> bool:
        """Whether some connected worker could ever run this lane's tasks."""
        return any(w.connected and not w.draining and w.serves(lane) for w in self._workers.values())

    def pick(self, lane: Lane) -> Worker | None:
        """The least loaded worker with credit for this lane."""
        best: Worker | None = None
        most = 0
        for worker in self._workers.values():
            free = worker.free
            if free >= most and free and worker.serves(lane):
                if best is None or (free, worker.id) > (most, best.id):
                    best, most = worker, free
        return best

    def credits_for(self, lane: Lane) -> int:
        """How many more attempts of this lane the workers could take now."""
        return sum(w.free for w in self._workers.values() if w.free > 0 and w.serves(lane))

    @property
    def any_free(self) -> bool:
        return any(w.free > 0 for w in self._workers.values())

    def assign(self, worker: Worker, attempt: AttemptId, task: TaskId) -> None:
        worker.running[attempt] = task
        self.running[attempt] = Running(task, worker.id)

    def expect(self, attempt: AttemptId, task: TaskId) -> None:
        """An attempt of this region is open, and no worker has reported it yet."""
        self.running.setdefault(attempt, Running(task, None))

    def told(self, attempt: AttemptId) -> AttemptId:
        """What the worker that runs this attempt calls it."""
        running = self.running.get(attempt)
        return attempt if running is None or running.told is None else running.told

    def adopt(self, worker: Worker, attempt: AttemptId, task: TaskId, told: AttemptId | None = None) -> None:
        """A worker reports that it runs this attempt, and may call it by an older id."""
        known = self.running.setdefault(attempt, Running(task, worker.id))
        if known.worker is not None and known.worker != worker.id:
            other = self._workers.get(known.worker)
            if other is not None:
                other.running.pop(attempt, None)
        known.worker, known.told = worker.id, told
        worker.running[attempt] = task

    def forgive(self, pause_ms: int) -> None:
        """We were not there for so long ourselves: what workers said meanwhile is still to be read."""
        for worker in self._workers.values():
            worker.heard_ms += pause_ms

    def ended(self, attempt: AttemptId) -> None:
        known = self.running.pop(attempt, None)
        if known is not None and known.worker is not None:
            worker = self._workers.get(known.worker)
            if worker is not None:
                worker.running.pop(attempt, None)
