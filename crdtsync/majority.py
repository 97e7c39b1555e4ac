"""Which of several clocks are right: what a majority of intervals has in common.

Marzullo and Owicki, "Maintaining the time in a distributed system", PODC 1983; Mills, RFC 5905, section 11.2.1. Each
clock is an interval that holds the true time if that clock is right. If at least `k` of `n` clocks are right, and `k` is
a majority, then the true time lies at a point that `k` intervals share. A clock whose interval holds no such point is
wrong, whoever the others are; one that is right is never called wrong, however wrong a minority is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Interval(NamedTuple):
    """Closed: both ends belong to it."""

    low: int
    high: int

    @classmethod
    def around(cls, middle: int, reach: int) -> Interval:
        assert reach >= 0, reach
        return cls(middle - reach, middle + reach)

    @property
    def middle(self) -> int:
        return (self.low + self.high) // 2

    def meets(self, other: Interval) -> bool:
        return self.low <= other.high and other.low <= self.high


class Shared(NamedTuple):
    """A stretch in which every point lies in at least so many of the intervals as were asked for."""

    stretch: Interval
    most: int  # in how many its best point lies


def majority_of(members: int) -> int:
    """How many of so many are more than half: any two such sets share one."""
    return members // 2 + 1


def shared(intervals: Iterable[Interval], at_least: int) -> list[Shared]:
    """The stretches that at least `at_least` intervals share, longest possible, in ascending order."""
    # At one point those that begin there count together with those that end there: intervals are closed.
    ends = sorted(end for i in intervals for end in ((i.low, 0), (i.high, 1)))
    found: list[Shared] = []
    depth = most = 0
    began: int | None = None
    for at, closes in ends:
        if not closes:
            depth += 1
            most = max(most, depth)
            if depth == at_least:
                began, most = at, depth
        else:
            if depth == at_least:
                assert began is not None
                found.append(Shared(Interval(began, at), most))
                began = None
            depth -= 1
    return found
