"""Was there one order in which a register could have answered so? Wing and Gong's search, just in time.

A history is what clients saw: when each operation was invoked, when it returned, and with what. It is *linearizable*
if every operation can be given one moment between its invocation and its return, such that a register obeying them
one at a time in that order gives the same answers (Herlihy and Wing 1990). The search is that of Wing and Gong (1993)
with the memory and the just-in-time order of Lowe (2017): a *configuration*, which is the register's value and the
open operations that already took effect, walks along the history. Nothing takes effect before some operation must
return; then whatever can precede it is tried, each on a way of its own, and the way that explains most goes on first.
No configuration is walked from twice.

Three things keep their number small, and each is exact:

- An operation that changes nothing (a read, a compare that failed) takes effect at the first moment at which its answer
  is right: whoever leaves it for later can leave it out there.
- Operations of unknown outcome, whose client got no answer, may take effect at any later time or never. So they need
  no identity: two writes of 3 without an answer are a pool of two, and a configuration counts what it has used.
- Of two configurations that differ only in such counts, the one that used less can do all that the other can.

A mutex is a register of two values: acquiring is a compare-and-set from free to held, releasing the opposite.

Without a bound the problem is NP-complete; a search that reaches its bound says "unknown", never a guess.

    Wing, Gong: Testing and verifying concurrent objects. JPDC 17, 1993.
    Lowe: Testing for linearizability. Concurrency and Computation 29, 2017.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from heapq import heappop, heappush
from itertools import islice
from operator import le
from typing import Final, NamedTuple

STATES_MAX: Final = 2_000_000  # ten seconds or so, and at worst half a gigabyte
POLL_STATES: Final = 1_024  # so often the search asks whether to give up
COMPARED_MAX: Final = 1_024  # of the configurations in one place; with more, some are looked into in vain
POOLS_MAX: Final = 2_000  # kinds of operations without an answer: each makes every configuration larger
_ILLEGAL: Final = -1


class Kind(StrEnum):
    READ = "read"  #: the value is `a`
    DIFFERS = "differs"  #: the value is not `a`: a compare-and-set from `a` that answered "no"
    WRITE = "write"  #: the value becomes `a`
    CAS = "cas"  #: the value was `a`, and becomes `b`


class Action(NamedTuple):
    """What an operation does to the register, its answer included. Values are numbers that stand for the real ones."""

    kind: Kind
    a: int
    b: int = 0

    @property
    def changes(self) -> bool:
        return self.kind is Kind.WRITE or (self.kind is Kind.CAS and self.a != self.b)


class Operation(NamedTuple):
    """One operation as its client saw it; times are places in the history.

    `returned` is None if no answer ever came: it may have taken effect at any time since `invoked`, or never.
    Operations that certainly did not happen, and answers that say nothing, are left out by whoever writes this.
    """

    action: Action
    invoked: int
    returned: int | None


@dataclass(frozen=True, slots=True)
class Judgement:
    #: None: the search was cut short.
    linearizable: bool | None
    #: Configurations looked at.
    states: int
    #: The operation whose answer stayed unexplained on the way that explained most; None unless not linearizable.
    refuted_by: Operation | None = None


FREE: Final = 0
HELD: Final = 1
ACQUIRE: Final = Action(Kind.CAS, FREE, HELD)
RELEASE: Final = Action(Kind.CAS, HELD, FREE)


def never() -> bool:
    return False


def judge(
    operations: Sequence[Operation],
    initial: int = 0,
    *,
    states_max: int = STATES_MAX,
    give_up: Callable[[], bool] = never,
) -> Judgement:
    """Whether one register, first holding `initial`, explains all operations.

    Args:
        operations: In any order. No two share a place (`invoked`, `returned`).
        states_max: Configurations to look at before giving up.
        give_up: Asked every POLL_STATES configurations; a clock or a patience of the caller's.
    """
    search = _Search(states_max, give_up)
    try:
        linearizable = search.run(_moments(operations), initial)
    except _CutShortError:
        return Judgement(None, search.states)
    return Judgement(linearizable, search.states, None if linearizable else search.furthest)


def step(value: int, action: Action) -> int:
    """The register's value after the action, or a negative number if the action cannot have had that answer."""
    match action.kind:
        case Kind.READ:
            return value if value == action.a else _ILLEGAL
        case Kind.DIFFERS:
            return value if value != action.a else _ILLEGAL
        case Kind.WRITE:
            return action.a
        case Kind.CAS:
            return action.b if value == action.a else _ILLEGAL


class _CutShortError(Exception):
    pass


class _Moment(NamedTuple):
    """A place in the history at which something is asked of a configuration, and what was open there."""

    operation: Operation
    bit: int
    #: Whether the operation returns here; else it is invoked here, and changes nothing.
    returns: bool
    #: Open operations that change the value, and those that do not, with their bits.
    changing: tuple[tuple[int, Action], ...]
    looking: tuple[tuple[int, Action], ...]
    #: Of each pool: what its operations do, and how many were invoked so far.
    pools: tuple[tuple[Action, int], ...]


def _moments(operations: Iterable[Operation]) -> list[_Moment]:
    invoked = dict.fromkeys((one.action for one in operations if one.returned is None and one.action.changes), 0)
    if len(invoked) > POOLS_MAX:
        raise _CutShortError
    changing: dict[int, Action] = {}
    looking: dict[int, Action] = {}
    bits: dict[Operation, int] = {}
    pools = (*invoked.items(),)  # one tuple until it changes: histories are long
    moments = []

    def moment(operation: Operation, bit: int, *, returns: bool) -> _Moment:
        return _Moment(operation, bit, returns, (*changing.items(),), (*looking.items(),), pools)

    for _, returns, operation in sorted(_events(operations)):
        action = operation.action
        if operation.returned is None:
            if action.changes:
                invoked[action] += 1
                pools = (*invoked.items(),)
        elif not returns:
            taken = sum(bits.values())
            bit = bits[operation] = ~taken & (taken + 1)
            (changing if action.changes else looking)[bit] = action
            if not action.changes:
                moments.append(moment(operation, bit, returns=False))
        else:
            moments.append(moment(operation, bits.pop(operation), returns=True))
            (changing if action.changes else looking).pop(moments[-1].bit)
    return moments


def _events(operations: Iterable[Operation]) -> Iterable[tuple[int, bool, Operation]]:
    for operation in operations:
        yield operation.invoked, False, operation
        if operation.returned is not None:
            yield operation.returned, True, operation


class _Search:
    """From configuration to configuration: first those that explain most of the history, of these who used least."""

    def __init__(self, states_max: int, give_up: Callable[[], bool]) -> None:
        self.states = 0
        self._states_max = states_max
        self._give_up = give_up
        self._moments: Sequence[_Moment] = ()
        self._seen: defaultdict[int, _Frugal] = defaultdict(_Frugal)
        # In the order of a heap: how much is explained (negative), how much was used, and the configuration.
        self._pending: list[tuple[int, int, int, int, tuple[int, ...]]] = []
        self._furthest = 0

    @property
    def furthest(self) -> Operation:
        """The operation whose return could not be explained, on the way that explained most."""
        return self._moments[self._furthest].operation

    def run(self, moments: Sequence[_Moment], initial: int) -> bool:
        self._moments = moments
        self._push(0, initial, 0, (0,) * len(moments[0].pools) if moments else ())
        while self._pending:
            place, _, value, done, used = heappop(self._pending)
            if self._advance(-place, value, done, used):
                return True
        return False

    def _push(self, place: int, value: int, done: int, used: tuple[int, ...]) -> None:
        heappush(self._pending, (-place, sum(used), value, done, used))

    def _advance(self, place: int, value: int, done: int, used: tuple[int, ...]) -> bool:
        """Follow the history as far as this configuration explains it. True if it explains all."""
        while place < len(self._moments):
            moment = self._moments[place]
            if not moment.returns:
                if step(value, moment.operation.action) >= 0:
                    done |= moment.bit
            elif done & moment.bit:
                done &= ~moment.bit
            else:
                self._branch(place, value, done, used)
                return False
            place += 1
        return True

    def _branch(self, place: int, value: int, done: int, used: tuple[int, ...]) -> None:
        """Something must take effect first: whatever may, on ways of their own."""
        self._furthest = max(self._furthest, place)
        if not self._seen[place].add(value, done, used):
            return
        self._count()
        moment = self._moments[place]
        for bit, action in moment.changing:
            if not done & bit and (after := step(value, action)) >= 0:
                self._push(place, after, _looked(moment, after, done | bit), used)
        for i, (action, invoked) in enumerate(moment.pools):
            if used[i] < invoked and (after := step(value, action)) not in (_ILLEGAL, value):
                self._push(place, after, _looked(moment, after, done), (*used[:i], used[i] + 1, *used[i + 1 :]))

    def _count(self) -> None:
        self.states += 1
        if self.states > self._states_max or (self.states % POLL_STATES == 0 and self._give_up()):
            raise _CutShortError


def _looked(moment: _Moment, value: int, done: int) -> int:
    """With all that are open and right about the value."""
    for bit, action in moment.looking:
        if not done & bit and step(value, action) >= 0:
            done |= bit
    return done


class _Frugal:
    """Configurations at one place, without those that an earlier one can stand for: the same, and it used no more."""

    def __init__(self) -> None:
        # What was used, by value and open operations that took effect; a dict for its order.
        self._used: dict[tuple[int, int], dict[tuple[int, ...], None]] = {}

    def add(self, value: int, done: int, used: tuple[int, ...]) -> bool:
        kept = self._used.setdefault((value, done), {})
        if used in kept or any(all(map(le, less, used)) for less in islice(kept, COMPARED_MAX)):
            return False
        kept[used] = None
        return True
