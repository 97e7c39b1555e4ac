"""Links between nodes: directed wires that delay, rules that judge each frame, and connections over them.

A wire is an ordered stream with a latency, as TCP is. What goes wrong is a *rule* on a wire: rules are asked in order,
each may change the frame's delay, and the first that drops or holds it has spoken (turmoil's idea). So faults compose
without knowing each other, and taking one back removes one rule.

A connection has two ends, and each end believes what it has seen: a reset that was lost leaves the other end half open
until its own liveness notices. Connections come and go as in `regions.transport.peers`: both sides dial, at most one
link per pair is kept, by one rule that both sides judge alike.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from enum import Enum
from functools import partial
from typing import Any, Final, Protocol
from zlib import crc32

from simulator.kernel import Kernel
from simulator.trace import Trace

HANDSHAKE_BYTES: Final = 400
CONTROL_BYTES: Final = 60
LOCAL_US: Final = 50  # a network card and two kernels, whatever the distance


class Verdict(Enum):
    #: The frame is gone.
    DROP = "drop"
    #: The frame waits in the rule until the rule is taken back.
    HOLD = "hold"


class Packet:
    """A frame, or part of a handshake (`control`), about to cross a wire. Rules change it."""

    __slots__ = ("arrive", "control", "copies", "delay_us", "message", "ordered", "reason", "size")

    def __init__(self, size: int, delay_us: int, message: bytes | None, arrive: Callable[[bytes | None], None]) -> None:
        self.size = size
        self.delay_us = delay_us
        self.message = message
        self.arrive = arrive
        self.control = message is None
        self.ordered = True
        self.copies: list[int] = []  # further delays, each one more arrival
        self.reason = ""


class Rule(Protocol):
    """What is wrong with a wire."""

    def judge(self, packet: Packet, rng: random.Random) -> Verdict | None:
        """None lets the packet on to the next rule, changed or not."""

    def lift(self) -> Iterable[Packet]:
        """The rule is taken back: what it held, in the order in which it is to arrive."""


class Wire:
    """One direction between two nodes."""

    __slots__ = ("_clear_us", "_kernel", "_sent_us", "jitter", "one_way_us", "per_s_bytes", "rng", "rules", "tail")

    def __init__(
        self, kernel: Kernel, rng: random.Random, one_way_us: int, *, jitter: float, tail: float, per_s_bytes: int
    ) -> None:
        self.rules: list[Rule] = []
        self.rng = rng
        self.one_way_us = one_way_us
        self.jitter = jitter
        self.tail = tail
        self.per_s_bytes = per_s_bytes
        self._kernel = kernel
        self._clear_us = 0  # nothing sent later arrives earlier
        self._sent_us = 0  # when the last byte queued will have left

    def send(self, packet: Packet) -> Verdict | None:
        """Let the packet cross. Returns what became of it if it does not arrive by itself."""
        rng = self.rng
        now_us = self._kernel.now_us
        delay = self.one_way_us
        if self.jitter:
            delay += int(rng.expovariate(1.0) * delay * self.jitter)
        if self.tail and rng.random() < self.tail:
            delay += 9 * self.one_way_us
        packet.delay_us += delay
        for rule in self.rules:
            verdict = rule.judge(packet, rng)
            if verdict is not None:
                return verdict
        if self.per_s_bytes:
            self._sent_us = max(self._sent_us, now_us) + packet.size * 1_000_000 // self.per_s_bytes
            packet.delay_us += self._sent_us - now_us
        self.release(packet)
        return None

    def release(self, packet: Packet) -> None:
        """Let the packet arrive after its delay."""
        at_us = self._kernel.now_us + packet.delay_us
        if packet.ordered:
            at_us = self._clear_us = max(self._clear_us, at_us)
        self._kernel.at(at_us, packet.arrive, packet.message)
        for extra in packet.copies:
            self._kernel.at(at_us + extra, packet.arrive, packet.message)

    def remove(self, rule: Rule) -> None:
        """Take a rule back; what it held arrives now."""
        self.rules.remove(rule)
        for packet in rule.lift():
            packet.delay_us = self.one_way_us
            self.release(packet)


class End(Protocol):
    """A node, as its connections see it."""

    name: str
    region: str

    @property
    def running(self) -> bool:
        """Whether its machine answers: a process that listens."""

    @property
    def powered(self) -> bool:
        """Whether its machine would at least refuse."""

    def admits(self, connection: Connection) -> str:
        """Why a peer that dials is refused, "" if it is not."""

    def link_up(self, connection: Connection) -> None: ...

    def link_down(self, connection: Connection, reason: str) -> None: ...

    def frame(self, connection: Connection, message: bytes, cause: int) -> None: ...

    def dialled(self, peer: str, refused: str) -> None:
        """A try to reach `peer` ended without a link."""


class Connection:
    """One link between two nodes, as its two ends see it."""

    __slots__ = ("accepter", "dialler", "id", "up")

    def __init__(self, id: str, dialler: End, accepter: End) -> None:
        self.id = id
        self.dialler = dialler
        self.accepter = accepter
        self.up = {dialler.name: False, accepter.name: False}

    def other(self, end: End) -> End:
        return self.accepter if end is self.dialler else self.dialler


class Network:
    """All wires and connections.

    Args:
        one_way_us: From one region to another.
        stream: The random stream of that purpose and pair.
    """

    def __init__(
        self,
        kernel: Kernel,
        trace: Trace,
        one_way_us: Callable[[str, str], int],
        stream: Callable[..., random.Random],
        *,
        jitter: float,
        tail: float,
        per_s_bytes: int,
    ) -> None:
        self.messages = 0
        self.bytes = 0
        self.refusing: dict[tuple[str, str], int] = {}  # (dialler, accepter) -> how many faults refuse it
        self._kernel = kernel
        self._trace = trace
        self._one_way_us = one_way_us
        self._stream = stream
        self._make = partial(Wire, jitter=jitter, tail=tail, per_s_bytes=per_s_bytes)
        self._wires: dict[tuple[str, str], Wire] = {}
        self._dials = 0

    def wire(self, source: End, target: End) -> Wire:
        """The direction from one node to another."""
        key = (source.name, target.name)
        wire = self._wires.get(key)
        if wire is None:
            rng = self._stream("link", source.name, target.name)
            one_way_us = self._one_way_us(source.region, target.region) + LOCAL_US
            wire = self._wires[key] = self._make(self._kernel, rng, one_way_us)
        return wire

    # Coming and going --------------------------------------------------------------------------

    def dial(self, source: End, target: End, timeout_us: int) -> None:
        """Try once; `link_up` at both ends, or `dialled` at the one that tried."""
        self._dials += 1
        connection = Connection(f"{source.name}>{target.name}#{self._dials}", source, target)
        cause = self._trace.add("net.dial", source.name, connection.id, (target.name,))
        tried = _Try(self, connection, cause)
        self._kernel.after(timeout_us, tried.give_up)
        self._control(source, target, tried.knock)

    def _control(self, source: End, target: End, arrive: Callable[[Any], None], size: int = CONTROL_BYTES) -> None:
        self.wire(source, target).send(Packet(size, 0, None, arrive))

    def close(self, connection: Connection, end: End, reason: str, *, silent: bool = False) -> None:
        """One end closes. The other hears of it, if anything gets through; of a power cut (`silent`) it does not."""
        if not connection.up[end.name]:
            return
        connection.up[end.name] = False
        cause = self._trace.add("net.down", end.name, connection.id, (connection.other(end).name, reason))
        end.link_down(connection, reason)
        if not silent:
            other = connection.other(end)
            self._control(end, other, lambda _: self._closed(connection, other, "closed by the peer", cause))

    def _closed(self, connection: Connection, end: End, reason: str, cause: int) -> None:
        if connection.up[end.name]:
            connection.up[end.name] = False
            self._trace.add("net.down", end.name, connection.id, (connection.other(end).name, reason), (cause,))
            end.link_down(connection, reason)

    def reset(self, connection: Connection, reason: str) -> None:
        """Both ends learn at once that the connection is gone (a middlebox sent resets)."""
        for end in (connection.dialler, connection.accepter):
            self._closed(connection, end, reason, self._trace.count - 1)

    # Frames ------------------------------------------------------------------------------------

    def send(self, connection: Connection, source: End, message: bytes, causes: tuple[int, ...]) -> None:
        """One frame. Without an open end it is dropped: gossip repairs from the log."""
        if not connection.up[source.name]:
            return
        target = connection.other(source)
        self.messages += 1
        self.bytes += len(message)
        number = self.messages
        data = (target.name, len(message), crc32(message))
        seq = self._trace.add("net.send", source.name, f"m{number}", data, causes)
        packet = Packet(len(message), 0, message, partial(self._arrive, connection, source, number, seq))
        if self.wire(source, target).send(packet) is Verdict.DROP:
            self._trace.add("net.drop", source.name, f"m{number}", (target.name, packet.reason), (seq,))

    def _arrive(self, connection: Connection, source: End, number: int, cause: int, message: bytes) -> None:
        target = connection.other(source)
        if connection.up[target.name]:
            seq = self._trace.add("net.deliver", target.name, f"m{number}", (source.name,), (cause,))
            target.frame(connection, message, seq)
            return
        self._trace.add("net.drop", target.name, f"m{number}", (source.name, "no connection"), (cause,))
        if target.powered and connection.up[source.name]:
            self._control(target, source, lambda _: self._closed(connection, source, "reset by the peer", cause))


class _Try:
    """One handshake: there, answer, there again. It is over when it is over, or when its time is."""

    def __init__(self, network: Network, connection: Connection, cause: int) -> None:
        self._network = network
        self._connection = connection
        self._cause = cause
        self._over = False

    def knock(self, _: Any) -> None:
        """The request arrives."""
        network, connection = self._network, self._connection
        source, target = connection.dialler, connection.accepter
        if not target.powered:
            return
        key = (source.region, target.region)
        refused = "connection refused" if network.refusing.get(key) or not target.running else target.admits(connection)
        if refused:
            network._control(target, source, lambda _: self._end(refused))  # noqa: SLF001
            return
        connection.up[target.name] = True
        network._trace.add("net.up", target.name, connection.id, (source.name,), (self._cause,))  # noqa: SLF001
        network._control(target, source, self.answered, HANDSHAKE_BYTES)  # noqa: SLF001
        target.link_up(connection)

    def answered(self, _: Any) -> None:
        network, connection = self._network, self._connection
        source, target = connection.dialler, connection.accepter
        if self._over or not source.running:
            network._control(  # noqa: SLF001
                source,
                target,
                lambda _: network._closed(connection, target, "given up", self._cause),  # noqa: SLF001
            )
            return
        self._over = True
        connection.up[source.name] = True
        network._trace.add("net.up", source.name, connection.id, (target.name,), (self._cause,))  # noqa: SLF001
        source.link_up(connection)

    def give_up(self) -> None:
        self._end("timed out")

    def _end(self, reason: str) -> None:
        if not self._over:
            self._over = True
            connection = self._connection
            self._network._trace.add(  # noqa: SLF001
                "net.refused",
                connection.dialler.name,
                connection.id,
                (connection.accepter.name, reason),
                (self._cause,),
            )
            connection.dialler.dialled(connection.accepter.region, reason)
