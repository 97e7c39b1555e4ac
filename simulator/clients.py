"""Users: they submit, cancel and wait, and remember what they were told.

An answer is definite: done, or certainly not done. No answer is neither, and a good client asks again with the same
id; `World.history` keeps what it knew at the end: "ok", "refused" or "unknown".
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from crdtsync.commands import Await, Submit
from simulator.result import Operation

if TYPE_CHECKING:
    from simulator.node import Node
    from simulator.world import World

PATIENCE_US: Final = 3_000_000  # for one answer
SENDINGS_MAX: Final = 6  # of one request: the first, and resends with the same id
PAUSE_US: Final = (200_000, 1_500_000)  # before it is sent again
ELSEWHERE: Final = 0.5  # share of the resends that go to another region
RETRY_CODES: Final = frozenset({"overloaded", "storage", "draining", "internal", "unreachable", "undeclared"})

ASKED_ONCE: Final = frozenset(
    {"add", "forget"}
)  # an operator looks first, and then asks whom it likes (`faults.members`)

OnDone = Callable[[Operation], None]


class Clients:
    """All users of all regions."""

    def __init__(self, world: World) -> None:
        self.history: list[Operation] = []
        self._world = world
        self._rng: random.Random = world.stream("clients")

    def call(self, op: str, region: str, command: Any, task: str = "", *, then: OnDone | None = None) -> Operation:
        """Send one request to a region, again if need be. `then` is called once the outcome is known, or given up."""
        world = self._world
        operation = Operation(f"c{len(self.history)}", op, region, task, world.kernel.now_us, command, sent=0)
        self.history.append(operation)
        self._send(operation, then)
        return operation

    def submit(self, region: str, submit: Submit, *, then: OnDone | None = None) -> Operation:
        """Submit tasks; their ids are known beforehand, so that asking again makes no second task."""
        ids = ",".join(spec.id.hex() for spec in submit.specs if spec.id is not None)
        return self.call("submit", region, submit, ids, then=then)

    def wait(self, region: str, task: bytes, *, then: OnDone | None = None) -> Operation:
        """Wait for a task's end at a region, as `Client.wait` does."""
        return self.call("await", region, Await(task), task.hex(), then=then)

    def _send(self, operation: Operation, then: OnDone | None) -> None:
        operation.sent += 1
        data = (operation.op, operation.task, operation.sent)
        node = self._world.regions[operation.region]
        operation.call_seq = self._world.trace.add(
            "client.call", node.name, operation.id, data, subject=operation.command
        )
        _Request(self._world, self, node, operation, then).send()

    def answered(self, operation: Operation, value: Any, cause: int) -> None:
        self._close(operation, "ok", value, cause)

    def failed(self, operation: Operation, error: dict[str, Any], cause: int, then: OnDone | None) -> None:
        """The region refused, or no answer came. It is sent again while that makes sense."""
        definite = bool(error.get("definite", True))
        if not definite:
            operation.outcome = "unknown"
        again = operation.op not in ASKED_ONCE and (not definite or error["code"] in RETRY_CODES)
        if again and operation.sent < SENDINGS_MAX and not self._world.over:
            rng = self._rng
            if len(self._world.regions) > 1 and rng.random() < ELSEWHERE and operation.op != "await":
                others = [name for name in self._world.regions if name != operation.region]
                operation.region = rng.choice(others)
            self._world.kernel.after(rng.randint(*PAUSE_US), self._send, operation, then)
            return
        outcome = "unknown" if operation.outcome == "unknown" else "refused"
        self._close(operation, outcome, error, cause)
        if then is not None:
            then(operation)

    def _close(self, operation: Operation, outcome: str, value: Any, cause: int) -> None:
        operation.outcome = outcome
        operation.value = value
        operation.answered_us = self._world.kernel.now_us
        causes = (operation.call_seq, cause) if cause >= 0 else (operation.call_seq,)
        told = told_of(value)
        operation.answer_seq = self._world.trace.add(
            "client.answer", operation.region, operation.id, (outcome, told), causes, subject=operation
        )


class _Request:
    """One sending of one request, over a connection of its own."""

    def __init__(self, world: World, clients: Clients, node: Node, operation: Operation, then: OnDone | None) -> None:
        self._world = world
        self._clients = clients
        self._node = node
        self._operation = operation
        self._then = then
        self._over = False

    def send(self) -> None:
        kernel, operation = self._world.kernel, self._operation
        if not self._node.welcome(self):
            self._fail({"code": "unreachable", "message": "nobody listens", "definite": True})
            return
        kernel.after(LOCAL_US, self._node.ask, self, operation.command, self._answered, operation.call_seq)
        if operation.op != "await":
            kernel.after(PATIENCE_US, self._impatient)

    def _answered(self, value: Any, error: dict[str, Any] | None, final: bool, cause: int) -> None:  # noqa: ARG002
        if self._over:
            return
        if error is not None:
            self._fail(error, cause)
            return
        self._over = True
        self._node.goodbye(self)
        self._clients.answered(self._operation, value, cause)
        if self._then is not None:
            self._then(self._operation)

    def _impatient(self) -> None:
        self._fail({"code": "timeout", "message": "no answer in time", "definite": False})

    def hung_up(self, reason: str) -> None:
        self._fail({"code": "indefinite", "message": f"the connection ended: {reason}", "definite": False})

    def _fail(self, error: dict[str, Any], cause: int = -1) -> None:
        if not self._over:
            self._over = True
            self._node.goodbye(self)
            self._clients.failed(self._operation, error, cause, self._then)


LOCAL_US: Final = 300


def told_of(value: Any) -> Any:
    """What of an answer counts for the trace: all of it, in a fixed order."""
    if isinstance(value, dict):
        return tuple((str(key), told_of(item)) for key, item in sorted(value.items()))
    if isinstance(value, list | tuple):
        return tuple(told_of(item) for item in value)
    return value if isinstance(value, str | int | float | bytes | bool) or value is None else str(value)
