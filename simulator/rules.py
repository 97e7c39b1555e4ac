"""What can be wrong with a wire: one small class per verdict, composed by being asked in turn."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from simulator.network import Packet, Verdict

Hit = Callable[[str], None]  # the fault changed something: what it did


class _Rule:
    """A rule that holds nothing."""

    __slots__ = ("hit",)

    def __init__(self, hit: Hit) -> None:
        self.hit = hit

    def lift(self) -> Iterable[Packet]:
        return ()


class Delay(_Rule):
    """Later, by a fixed time and up to a random one."""

    __slots__ = ("extra_us", "up_to_us")

    def __init__(self, hit: Hit, extra_us: int, up_to_us: int) -> None:
        super().__init__(hit)
        self.extra_us = extra_us
        self.up_to_us = up_to_us

    def judge(self, packet: Packet, rng: random.Random) -> Verdict | None:
        packet.delay_us += self.extra_us + (rng.randint(0, self.up_to_us) if self.up_to_us else 0)
        self.hit("delayed")
        return None


class Drop(_Rule):
    """Gone: every packet, or every frame with some probability."""

    __slots__ = ("rate",)

    def __init__(self, hit: Hit, rate: float | None = None) -> None:
        super().__init__(hit)
        self.rate = rate

    def judge(self, packet: Packet, rng: random.Random) -> Verdict | None:
        if self.rate is not None and (packet.control or rng.random() >= self.rate):
            return None  # what is not a frame is TCP's, which retransmits
        packet.reason = "black hole" if self.rate is None else "loss"
        self.hit("dropped")
        return Verdict.DROP


class Duplicate(_Rule):
    __slots__ = ("rate",)

    def __init__(self, hit: Hit, rate: float) -> None:
        super().__init__(hit)
        self.rate = rate

    def judge(self, packet: Packet, rng: random.Random) -> Verdict | None:
        if not packet.control and rng.random() < self.rate:
            packet.copies.append(rng.randint(0, 200_000))
            self.hit("duplicated")
        return None


class Reorder(_Rule):
    __slots__ = ("rate", "up_to_us")

    def __init__(self, hit: Hit, rate: float, up_to_us: int) -> None:
        super().__init__(hit)
        self.rate = rate
        self.up_to_us = up_to_us

    def judge(self, packet: Packet, rng: random.Random) -> Verdict | None:
        if not packet.control and rng.random() < self.rate:
            packet.ordered = False
            packet.delay_us += rng.randint(0, self.up_to_us)
            self.hit("reordered")
        return None


class Garbage(_Rule):
    """Cut short: what a broken peer sends. A flipped bit is caught by TLS or TCP: it is a loss."""

    __slots__ = ("rate",)

    def __init__(self, hit: Hit, rate: float) -> None:
        super().__init__(hit)
        self.rate = rate

    def judge(self, packet: Packet, rng: random.Random) -> Verdict | None:
        if packet.message and rng.random() < self.rate:
            packet.message = packet.message[: rng.randrange(len(packet.message))]
            self.hit("cut short")
        return None


class Bandwidth(_Rule):
    """A queue that empties at so many bytes a second."""

    __slots__ = ("_backlog_us", "_clock", "per_s_bytes")

    def __init__(self, hit: Hit, per_s_bytes: float, clock: Callable[[], int]) -> None:
        super().__init__(hit)
        self.per_s_bytes = per_s_bytes
        self._clock = clock
        self._backlog_us = 0  # true time at which the queue will be empty

    def judge(self, packet: Packet, rng: random.Random) -> Verdict | None:  # noqa: ARG002
        now_us = self._clock()
        self._backlog_us = max(self._backlog_us, now_us) + round(packet.size * 1_000_000 / self.per_s_bytes)
        packet.delay_us += self._backlog_us - now_us
        self.hit("queued")
        return None


class Hold(_Rule):
    """Kept until the rule is taken back; then in order, or shuffled."""

    __slots__ = ("_held", "_shuffle")

    def __init__(self, hit: Hit, shuffle: random.Random | None = None) -> None:
        super().__init__(hit)
        self._held: list[Packet] = []
        self._shuffle = shuffle

    def judge(self, packet: Packet, rng: random.Random) -> Verdict | None:  # noqa: ARG002
        self._held.append(packet)
        self.hit("held")
        return Verdict.HOLD

    def lift(self) -> Iterable[Packet]:
        held, self._held = self._held, []
        if self._shuffle is not None:
            self._shuffle.shuffle(held)
            for packet in held:
                packet.ordered = False
        return held
