"""Users who hold locks, and act under them on a register that refuses smaller tokens.

Each is a program of its own, on a machine beside a node, with a clock of its own. It asks for a name, does a few things
while it believes that it holds it, renews, and gives it back; or it dies, or sleeps through its time and goes on without
looking. What it believes follows `regions.leases`: from the moment before it asked, for as long as the answer says.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from crdtsync.commands import LeaseAcquire, LeaseRelease, LeaseRenew

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulator.node import Node
    from simulator.world import World

NAMES: Final = 3  # few enough to be fought for
LOCAL_US: Final = 300
STEP_US: Final = (20_000, 400_000)  # between two things that a holder does
STEPS_MAX: Final = 12
DRIFT_PPM: Final = 200  # of a program's own clock, either way
SLEEP_SHARE: Final = 0.05  # of the steps before which a program is paused, and then goes on without looking
DIES_SHARE: Final = 0.1
PROBE_AFTER_US: Final = 1_000_000  # after the healing, a name that nobody holds is asked for
PROBE: Final = "probe"


@dataclass(slots=True)
class Register:
    """The world outside: what a token that is as large as any before may change."""

    token: int = 0
    owner: str = ""

    def write(self, token: int, owner: str) -> bool:
        if token < self.token:
            return False
        self.token, self.owner = token, owner
        return True


class Locks:
    """All such users."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.registers: dict[str, Register] = {}
        self.open = 0  # programs that are not done
        self._count = 0

    def arrive(self, region: str, rng: random.Random, name: str = "") -> None:
        """One program starts, wants a name for a while, and ends."""
        self._count += 1
        self.open += 1
        name = name or f"lock-{rng.randrange(NAMES)}"
        Holder(self, self.world.regions[region], name, f"h{self._count}", random.Random(rng.getrandbits(64))).ask()  # noqa: S311

    def probe(self) -> None:
        """Faults are over: a lease that nobody holds can be had."""
        nodes, voters = self.world.healed_nodes(), tuple(self.world.regions)
        if self.world.scenario.changes_members:
            newest = self.world.membership()
            voters = () if newest is None else newest.voters
            nodes = [node for node in nodes if node.region in voters]
        if 2 * len(nodes) > len(voters):
            rng = self.world.stream("probe")
            self.arrive(rng.choice(nodes).region, rng, PROBE)


class Holder:
    """One program: a guest of one node, from its question to its end."""

    def __init__(self, locks: Locks, node: Node, name: str, owner: str, rng: random.Random) -> None:
        self.name = name
        self.owner = owner
        self.node = node
        self.token = 0
        self.until_ms = 0
        self._locks = locks
        self._kernel = locks.world.kernel
        self._trace = locks.world.trace
        self._rng = rng
        self._ppm = rng.randint(-DRIFT_PPM, DRIFT_PPM)
        self._ttl_ms = rng.choice((1_000, 3_000, 10_000))
        self._steps = rng.randint(1, STEPS_MAX)
        self._dies = rng.random() < DIES_SHARE
        self._asked_ms = 0
        self._over = self._asleep = False
        self._seq = -1

    @property
    def now_ms(self) -> int:
        """By its own clock."""
        now_us = self._kernel.now_us
        return (now_us + now_us * self._ppm // 1_000_000) // 1_000

    @property
    def until_us(self) -> int:
        """True time until which it believes that it holds the name."""
        return self.until_ms * 1_000 * 1_000_000 // (1_000_000 + self._ppm)

    def ask(self) -> None:
        probe = self.name == PROBE
        wait_ms = None if probe else self._rng.choice((500, 2_000, 5_000))
        if not self.node.welcome(self):
            self._end("unreachable")
            return
        self._send(LeaseAcquire(self.name, self.owner, self._ttl_ms, wait_ms), self._granted)

    def hung_up(self, reason: str) -> None:
        """What it holds it goes on holding, for as long as it was told."""
        if self.token == 0:
            self._end(reason)

    # Asking --------------------------------------------------------------------------------------

    def _send(self, command: Any, then: Callable[[Any, dict[str, Any] | None], None]) -> None:
        self._asked_ms = asked_ms = self.now_ms
        what = type(command).__name__.removeprefix("Lease").lower()
        seq = self._trace.add("lock.call", self.node.name, self.owner, (what, self.name, self.token), self._causes())

        def answered(value: Any, error: dict[str, Any] | None, final: bool, cause: int) -> None:  # noqa: ARG001
            self._seq = cause
            self._asked_ms = asked_ms
            then(value, error)

        self._kernel.after(LOCAL_US, self.node.ask, self, command, answered, seq)

    def _causes(self) -> tuple[int, ...]:
        return (self._seq,) if self._seq >= 0 else ()

    def _granted(self, value: Any, error: dict[str, Any] | None) -> None:
        if self._over:
            return
        if error is not None:
            self._end(error["code"])
            return
        self.token = value["token"]
        if self.now_ms - self._asked_ms >= value["valid_ms"] // 3 and self in self.node.guests:
            self._send(LeaseRenew(self.name, self.owner, self.token), self._begun)  # it waited: its time is half over
        else:
            self._begun(value, None)

    def _begun(self, value: Any, error: dict[str, Any] | None) -> None:
        if self._over:
            return
        if error is not None:
            self._end(error["code"])
            return
        self._believe(value["valid_ms"], "lock.held")
        self._kernel.after(self._rng.randint(*STEP_US), self._step)
        self._renew_later()

    def _believe(self, valid_ms: int, kind: str) -> None:
        self.until_ms = max(self.until_ms, self._asked_ms + valid_ms)
        self._seq = self._trace.add(
            kind, self.node.name, self.owner, (self.name, self.token, self.until_us), self._causes(), subject=self
        )

    # Holding -------------------------------------------------------------------------------------

    @property
    def valid(self) -> bool:
        return not self._over and self.now_ms < self.until_ms

    def _renew_later(self) -> None:
        left_ms = self.until_ms - self.now_ms
        if left_ms > 0 and not self._over:
            self._kernel.after(max(10_000, left_ms * 1_000 // 3), self._renew)

    def _renew(self) -> None:
        if self.valid and not self._asleep and self in self.node.guests:
            self._send(LeaseRenew(self.name, self.owner, self.token), self._renewed)

    def _renewed(self, value: Any, error: dict[str, Any] | None) -> None:
        if self._over:
            return
        if error is not None:
            self._end(error["code"])
            return
        self._believe(value["valid_ms"], "lock.renewed")
        self._renew_later()

    def _step(self) -> None:
        """Do one thing while it holds the name; or wake up late and do it all the same."""
        if self._over:
            return
        if self._steps > 0 and self._rng.random() < SLEEP_SHARE:
            self._asleep = True
            late_us = max(0, self.until_us - self._kernel.now_us) + self._rng.randint(*STEP_US)
            self._kernel.after(late_us, self._write, False)
            self._kernel.after(late_us + 1, self._end, "overslept")
            return
        if not self.valid:
            self._end("its time was over")
        elif self._steps <= 0:
            self._release()
        else:
            self._steps -= 1
            self._write(True)
            self._kernel.after(self._rng.randint(*STEP_US), self._step)

    def _write(self, looked: bool) -> None:
        if self._over:
            return
        done = self._locks.registers.setdefault(self.name, Register()).write(self.token, self.owner)
        data = (self.name, self.token, "ok" if done else "refused", looked)
        self._trace.add("register.write", self.node.name, self.owner, data, self._causes(), subject=self)

    def _release(self) -> None:
        if self._dies or self not in self.node.guests:
            self._end("died")
            return
        self._end("released", hang_up=False)
        self._kernel.after(LOCAL_US, self.node.ask, self, LeaseRelease(self.name, self.owner), _ignored, self._seq)
        self._kernel.after(10 * LOCAL_US, self.node.goodbye, self)

    def _end(self, reason: str, *, hang_up: bool = True) -> None:
        if self._over:
            return
        self._over = True
        self._locks.open -= 1
        data = (self.name, self.token, reason)
        self._trace.add("lock.over", self.node.name, self.owner, data, self._causes(), subject=self)
        if hang_up:
            self.node.goodbye(self)


def _ignored(value: Any, error: dict[str, Any] | None, final: bool, cause: int) -> None:
    """Nobody waits for this answer."""
