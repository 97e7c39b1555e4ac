"""`Heads`: what has been seen, as the number of the last commit per writer (a version vector).

The off-by-one, settled: numbers start at 1 and the vector is *right-closed*. `heads[w] == 7` says that commits 1 to 7
of `w` are in, number 7 included; 0, the same as absence, says that nothing is. What comes next is `heads[w] + 1`.

Heads form a lattice: `join` is the pointwise maximum, `meet` the minimum, `covers` the order. They are immutable, so
that one that was taken when a batch was written still says what that batch held when its fsync returns.
Parker et al., "Detection of mutual inconsistency in distributed systems", IEEE TSE 1983.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from crdtsync.errors import RemoteProtocolError
from crdtsync.identifiers import RegionId, WriterId, is_writer

WRITERS_MAX: Final = 65_536  # entries of one vector on the wire: every start of a node adds one
NUMBER_MAX: Final = (1 << 53) - 1  # exact in every JSON reader; 285 years at a million commits a second

_PAIR: Final = (str, int)


class Span(NamedTuple):
    """Commits `first` to `last` of `writer`, both included."""

    writer: WriterId
    first: int
    last: int


class Heads:
    """Writer -> number of its last commit, that one included. Immutable; zeros are not stored."""

    __slots__ = ("_last",)

    def __init__(self, last: Mapping[WriterId, int] | Iterable[tuple[WriterId, int]] = ()) -> None:
        self._last: dict[WriterId, int] = {writer: number for writer, number in dict(last).items() if number}
        assert all(number > 0 for number in self._last.values()), self._last

    @classmethod
    def of(cls, last: dict[WriterId, int]) -> Heads:
        """A copy of `last`, which holds no zeros: the fast way in for the log's own counters."""
        self = cls.__new__(cls)
        self._last = dict(last)
        return self

    def __getitem__(self, writer: WriterId) -> int:
        return self._last.get(writer, 0)

    def get(self, writer: WriterId, default: int = 0) -> int:
        return self._last.get(writer, default)

    def __iter__(self) -> Iterator[WriterId]:
        return iter(sorted(self._last))

    def __len__(self) -> int:
        return len(self._last)

    def __contains__(self, writer: object) -> bool:
        return writer in self._last

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return self._last == other._last if isinstance(other, Heads) else NotImplemented

    def __hash__(self) -> int:
        return hash(frozenset(self._last.items()))

    def __repr__(self) -> str:
        return f"Heads({dict(self.items())})"

    def items(self) -> list[tuple[WriterId, int]]:
        """(writer, number) pairs in the order of the writers."""
        return sorted(self._last.items())

    def of_region(self, region: RegionId) -> dict[WriterId, int]:
        """The entries of one region's writers."""
        prefix = f"{region}/"
        return {writer: number for writer, number in self._last.items() if writer.startswith(prefix)}

    def has(self, writer: WriterId, number: int) -> bool:
        return self._last.get(writer, 0) >= number

    def covers(self, other: Heads) -> bool:
        """Whether everything in `other` is in here too."""
        if self is other:
            return True
        have = self._last.get
        for writer, number in other._last.items():  # noqa: SIM110 - half of what all() takes, and asked all the time
            if have(writer, 0) < number:
                return False
        return True

    def join(self, other: Heads) -> Heads:
        """The least heads that cover both."""
        joined = self._last.copy()
        for writer, number in other._last.items():
            if number > joined.get(writer, 0):
                joined[writer] = number
        return Heads.of(joined)

    def meet(self, other: Heads) -> Heads:
        """What is in both."""
        theirs = other._last
        return Heads.of({w: min(number, theirs[w]) for w, number in self._last.items() if w in theirs})

    def advanced(self, writer: WriterId, number: int) -> Heads:
        """These heads with `writer` at `number`, if that is further."""
        if number <= self._last.get(writer, 0):
            return self
        return Heads.of({**self._last, writer: number})

    def beyond(self, other: Mapping[WriterId, int]) -> dict[WriterId, int]:
        """The entries that are further than in `other`."""
        reached = other.get
        return {writer: number for writer, number in self._last.items() if number > reached(writer, 0)}

    def changes(self, before: Heads) -> list[tuple[WriterId, int]]:
        """What makes these heads of those before, in the order of the writers; number 0 removes an entry."""
        known, last = before._last, self._last
        changed = [(writer, number) for writer, number in last.items() if known.get(writer) != number]
        if len(last) - sum([writer not in known for writer, _ in changed]) < len(known):
            changed += [(writer, 0) for writer in known if writer not in last]
        changed.sort()
        return changed

    def lacking(self, other: Heads) -> tuple[Span, ...]:
        """What is in `other` and not here, one span per writer, in the order of the writers."""
        mine = self._last
        return tuple(
            Span(writer, mine.get(writer, 0) + 1, number)
            for writer, number in other.items()
            if number > mine.get(writer, 0)
        )

    def count(self) -> int:
        """How many commits these heads stand for."""
        return sum(self._last.values())

    def to_wire(self) -> tuple[tuple[str, int], ...]:
        """Sorted pairs: equal heads are equal bytes."""
        return tuple(self.items())

    @classmethod
    def from_wire(cls, plain: Any) -> Heads:
        """Inverse of `to_wire`.

        Raises:
            RemoteProtocolError: If the writers are not in order, not writers, or too many, or a number makes no sense.
        """
        if type(plain) is not tuple or len(plain) > WRITERS_MAX:
            raise RemoteProtocolError(f"heads are an array of at most {WRITERS_MAX} pairs")
        last: dict[WriterId, int] = {}
        before = ""
        for pair in plain:
            if type(pair) is not tuple or tuple(map(type, pair)) != _PAIR:
                raise RemoteProtocolError("heads hold (writer, number) pairs")
            writer, number = pair
            if writer <= before or not is_writer(writer) or not 0 < number <= NUMBER_MAX:
                raise RemoteProtocolError(f"heads cannot hold {writer!r}: {number} after {before!r}")
            last[writer] = number
            before = writer
        return cls.of(last)


class RunningHeads(dict[WriterId, int]):
    """Heads under construction: a plain dict for its owner, immutable `Heads` for everybody else."""

    __slots__ = ("_frozen",)

    def __init__(self) -> None:
        super().__init__()
        self._frozen: Heads | None = None

    def advance(self, writer: WriterId, number: int) -> None:
        """Set `writer` to `number`, which is further than it was."""
        self[writer] = number
        self._frozen = None

    def join(self, heads: Heads) -> list[WriterId]:
        """Go up to `heads` where they are further. Returns the writers that moved."""
        moved = heads.beyond(self)
        self.update(moved)
        if moved:
            self._frozen = None
        return list(moved)

    def frozen(self) -> Heads:
        """These heads as they are now; copied at most once per change."""
        if self._frozen is None:
            self._frozen = Heads.of(self)
        return self._frozen
