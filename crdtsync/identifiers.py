"""Names for things: regions, writers, tasks, and the position of an event in the history.

A *writer* is one incarnation of a node: `eu/a#7-0123456789abcdef` is the seventh start of node
`a` in region `eu`, with 64 random bits that the driver drew at that start. A restored or cloned
disk therefore never writes under an old identity (design 2).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final, NamedTuple, NewType

RegionId = NewType("RegionId", str)
WriterId = NewType("WriterId", str)
Domain = NewType("Domain", str)
TaskId = NewType("TaskId", bytes)  # 16 bytes: a uuid7 minted by the client, or a hash
WorkerId = NewType("WorkerId", str)

DEFAULT_DOMAIN: Final = Domain("default")
TASK_ID_BYTES: Final = 16
INCARNATION_EPOCH_S: Final = 1_735_689_600  # 2025-01-01
# Of a clock that says 2053 or more: a writer's name has nine digits, and those above are for the starts that follow.
INCARNATION_FLOOR_MAX: Final = 900_000_000

_REGION = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_WRITER = re.compile(r"([a-z0-9][a-z0-9-]{0,31})/([a-z0-9][a-z0-9-]{0,31})#([0-9]{1,9})-([0-9a-f]{16})")


class EventId(NamedTuple):
    """Where an event stands: its commit's stamp, writer and number, and its index in that commit.

    Compares as the total order of the cluster: stamp first, then writer, then position. Two
    events never share an id. The id of an attempt is the id of its claim event.
    """

    stamp: int
    writer: WriterId
    number: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls on an id

    @property
    def region(self) -> RegionId:
        return region_of(self.writer)

    @property
    def name(self) -> str:
        """What this event is called for ever. Its stamp is no part of it: a commit may be re-issued under another."""
        return f"{self.writer}:{self.number}.{self.index}"

    def names(self, other: tuple[Any, ...] | None) -> bool:
        """Whether `other`, an id as it stands in an event, is that of the same event, whatever its stamp."""
        return other is not None and self[1:] == other[1:]

    def __str__(self) -> str:
        return f"{self.name}@{self.stamp}"


AttemptId = EventId


def is_region(text: str) -> bool:
    return _REGION.fullmatch(text) is not None


def writer_id(region: str, node: str, incarnation: int, entropy: bytes) -> WriterId:
    """The identity of one start of a node. `entropy` is 8 bytes that the driver drew."""
    text = f"{region}/{node}#{incarnation}-{entropy.hex()}"
    if not is_writer(text):
        raise ValueError(f"not a writer id: {text!r}")
    return WriterId(text)


def incarnation_floor(wall_ms: int, region: str, known: Iterable[WriterId] = ()) -> int:
    """The least number of a start at this time: above those that a restored disk has forgotten (decision 0007), and above
    those that it heard of from others, since a copy of it may have been started in the same second."""
    by_time = min(max(1, wall_ms // 1_000 - INCARNATION_EPOCH_S), INCARNATION_FLOOR_MAX)
    return max([by_time, *(incarnation_of(writer) + 1 for writer in known if region_of(writer) == region)])


def is_writer(text: str) -> bool:
    return _WRITER.fullmatch(text) is not None


@lru_cache(maxsize=4_096)  # the same few writers come with every frame
def region_of(writer: str) -> RegionId:
    return RegionId(writer[: writer.index("/")])


@lru_cache(maxsize=4_096)
def node_of(writer: str) -> str:
    """`eu/a` of `eu/a#7-...`: the node whose incarnations are ancestors of one another."""
    return writer[: writer.index("#")]


@lru_cache(maxsize=4_096)
def incarnation_of(writer: str) -> int:
    return int(writer[writer.index("#") + 1 : writer.rindex("-")])


def parse_task_id(text: str) -> TaskId:
    """A task id as people and JSON write it: 32 hex digits, dashes allowed. Raises ValueError."""
    raw = bytes.fromhex(text.replace("-", ""))
    if len(raw) != TASK_ID_BYTES:
        raise ValueError(f"a task id has {TASK_ID_BYTES} bytes, this one {len(raw)}: {text!r}")
    return TaskId(raw)


def derived_id(*parts: bytes) -> TaskId:
    """A task id that every replica derives alike: a hash of length-prefixed parts."""
    digest = hashlib.blake2b(digest_size=TASK_ID_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    return TaskId(digest.digest())


def keyed_task_id(namespace: str, name: str, key: str, generation: int) -> TaskId:
    """The id that all submissions under one idempotency key share (rules.md, Keys)."""
    return derived_id(b"key", namespace.encode(), name.encode(), key.encode(), generation.to_bytes(4, "big"))


def compensation_id(task: TaskId, attempt: AttemptId, effect_key: bytes | None = None) -> TaskId:
    """The id of the task that undoes an attempt, or one effect recorded after that attempt's end."""
    parts = [b"undo", task, EventId(*attempt).name.encode()]
    return derived_id(*parts) if effect_key is None else derived_id(*parts, effect_key)
