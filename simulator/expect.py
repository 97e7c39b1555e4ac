"""What a scenario wants to be true at its end: sentences such as `accepted in eu from 10s to 40s >= 5`.

    want  = side ("==" | "!=" | "<" | "<=" | ">" | ">=") side
    side  = term (("+" | "-") term)*
    term  = a number, a duration ("10s" counts as 10), or a quantity and its filters
    filters: "in REGION", "of TASK", "named NAME", "from 10s to 40s", "before 10s", "after 40s"

Names with spaces stand in quotes. `QUANTITIES` says what can be counted. An expectation is about this scenario and no
more; what must hold in every run is an invariant, and the checkers see to it. Text after `#` says why it is wanted.
"""

from __future__ import annotations

import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

from crdtsync.errors import ConfigError
from crdtsync.task_view import ENDED
from simulator.plan import ms_of
from simulator.trace import SCHEMA, Record

if TYPE_CHECKING:
    from simulator.result import Result
    from simulator.world import World

OPERATORS: Final[dict[str, Callable[[float, float], bool]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_WHERE: Final = frozenset({"in", "from", "before", "after"})
_WORK: Final = _WHERE | {"of"}

#: What can be counted -> (what it is, which filters it takes).
QUANTITIES: Final[dict[str, tuple[str, frozenset[str]]]] = {
    "submitted": ("tasks acknowledged to a client", frozenset({"of"})),
    "succeeded": ("tasks that ended with a result", frozenset({"of"})),
    "dead": ("tasks whose attempts are used up", frozenset({"of"})),
    "cancelled": ("tasks that a cancel ended", frozenset({"of"})),
    "expired": ("tasks whose deadline ended them", frozenset({"of"})),
    "open": ("tasks that had not ended", frozenset({"of"})),
    "unsettled": ("tasks that some region that is up did not call settled", frozenset({"of"})),
    "conflicts": ("conflicts that were found and resolved", frozenset()),
    "compensations": ("tasks made to undo what a lost attempt did", frozenset()),
    "double_runs": ("tasks of which two handlers returned", frozenset()),
    "accepted": ("requests of clients that were answered and done", _WHERE),
    "refused": ("requests of clients that were certainly not done", _WHERE),
    "unknown": ("requests of clients of which nobody told them", _WHERE),
    "started": ("attempts that began", _WORK),
    "finished": ("attempts whose handler returned", _WORK),
    "failed": ("attempts whose handler raised", _WORK),
    "lost": ("attempts that were stopped or died with their worker", _WORK),
    "peak": ("most attempts that began within one second", _WORK),
    "effects": ("things done to the world outside, once per effect key", _WORK | {"named"}),
    "repeats": ("effects done again under their key, as a crash before the record makes them", _WORK | {"named"}),
    "crashes": ("ends of a node's process", _WHERE),
    "starts": ("starts of a node's process", _WHERE),
    "lost_commits": ("commits that were durable, or on their way, and are gone", _WHERE),
    "notices": ("what replicas told their operators", _WHERE | {"named"}),
    "hits": ("how often faults changed something", frozenset({"in", "of"})),
    "states": ("most different states that regions showed at one moment", frozenset({"from", "before", "after"})),
    "missing": ("most commits that regions lacked of one another's", frozenset({"from", "before", "after"})),
    "converge_time": ("seconds from the healing until all were equal, be it for a moment: work goes on", frozenset()),
    "quiet_time": ("seconds from the healing until all were equal for good", frozenset()),
}

_TOKEN: Final = re.compile(
    r"""\s*(?: (?P<quoted>"[^"]*"|'[^']*') | (?P<op>[=<>!]+) | (?P<sign>[+-](?=\s))
        | (?P<number>-?[0-9]+(?:\.[0-9]+)?(?:us|ms|s|min|m|h|d)?)(?![\w.]) | (?P<word>[\w.*/-]+) )""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Term:
    """A number, or a quantity with its filters."""

    sign: int
    number: float = 0.0
    quantity: str = ""
    region: str = ""
    of: str = ""
    named: str = ""
    from_us: int = 0
    to_us: float = math.inf

    def __str__(self) -> str:
        return self.quantity or f"{self.number:g}"


@dataclass(frozen=True, slots=True)
class Want:
    """One expectation, read."""

    text: str
    why: str
    left: tuple[Term, ...]
    op: str
    right: tuple[Term, ...]


def parse(text: str) -> Want:
    """Read one expectation. Raises ConfigError, which says what can be written."""
    said, _, why = text.partition("#")
    tokens = _tokens(said.strip())
    left = _side(tokens, text)
    kind, op = next(tokens, ("", ""))
    if kind != "op" or op not in OPERATORS:
        raise ConfigError(f"want {said!r}: expected one of {' '.join(OPERATORS)}, as in 'conflicts >= 1'")
    right = _side(tokens, text)
    rest = next(tokens, ("", ""))
    if rest[1]:
        raise ConfigError(f"want {said!r}: {rest[1]!r} is left over; one comparison is one expectation")
    return Want(said.strip(), why.strip(), left, op, right)


def check(text: str, regions: tuple[str, ...]) -> None:
    """See that an expectation can be read and names what there is. Raises ConfigError."""
    want = parse(text)
    for term in (*want.left, *want.right):
        if term.region and term.region not in regions:
            raise ConfigError(f"want {want.text!r}: {term.region!r} is no region; there are {', '.join(regions)}")


class _Tokens:
    """Tokens with one to look ahead."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0
        self._ahead: tuple[str, str] | None = None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return self

    def __next__(self) -> tuple[str, str]:
        if self._ahead is not None:
            token, self._ahead = self._ahead, None
            return token
        if not self._text[self._place :].strip():
            raise StopIteration
        match = _TOKEN.match(self._text, self._place)
        if match is None:
            raise ConfigError(f"want {self._text!r}: cannot read {self._text[self._place :].strip()!r}")
        self._place = match.end()
        kind = str(match.lastgroup)
        return ("word", match["quoted"][1:-1]) if kind == "quoted" else (kind, match[kind])

    def peek(self) -> tuple[str, str]:
        if self._ahead is None:
            self._ahead = next(self, ("", ""))
        return self._ahead


def _tokens(text: str) -> _Tokens:
    return _Tokens(text)


def _side(tokens: _Tokens, text: str) -> tuple[Term, ...]:
    terms = [_term(tokens, text, 1)]
    while tokens.peek()[0] == "sign":
        _, sign = next(tokens)
        terms.append(_term(tokens, text, 1 if sign == "+" else -1))
    return tuple(terms)


def _term(tokens: _Tokens, text: str, sign: int) -> Term:
    kind, word = next(tokens, ("", ""))
    if kind == "number":
        return Term(sign, float(word) if word[-1].isdigit() else ms_of(word) / 1_000)
    known = QUANTITIES.get(word)
    if kind != "word" or known is None:
        close = get_close_matches(word, QUANTITIES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"want {text!r}: {word!r} cannot be counted; {hint}There are {', '.join(QUANTITIES)}")
    term = Term(sign, quantity=word)
    while tokens.peek()[0] == "word":
        _, name = next(tokens)
        if name not in known[1]:
            can = ", ".join(sorted(known[1])) or "no filter"
            raise ConfigError(f"want {text!r}: {word!r} cannot be told {name!r}; it takes {can}")
        told_kind, value = next(tokens, ("", ""))
        if told_kind not in ("word", "number"):
            raise ConfigError(f"want {text!r}: {name!r} is followed by nothing")
        if name == "from":
            told, until = next(tokens, ("", ""))[1], next(tokens, ("", ""))[1]
            if told != "to":
                raise ConfigError(f"want {text!r}: write 'from 10s to 40s'")
            term = replace(term, from_us=_us(value, text), to_us=_us(until, text))
        elif name == "before":
            term = replace(term, to_us=_us(value, text))
        elif name == "after":
            term = replace(term, from_us=_us(value, text))
        elif name == "in":
            term = replace(term, region=value)
        elif name == "of":
            term = replace(term, of=value)
        else:
            term = replace(term, named=value)
    return term


def _us(value: str, text: str) -> int:
    if value[-1:].isdigit():
        raise ConfigError(f"want {text!r}: {value!r} lacks its unit; write {value}s or {value}ms")
    return ms_of(value, f"want {text!r}") * 1_000


class Expectations:
    """What the scenario of one world wants, and the few events that have to be counted for it."""

    kinds = (
        "task.assigned",
        "task.begin",
        "task.end",
        "effect.done",
        "effect.repeated",
        "node.crash",
        "node.start",
        "disk.lost",
        "notify",
    )

    def __init__(self, texts: tuple[str, ...]) -> None:
        self.wants = tuple(map(parse, texts))
        self._events: list[tuple[str, int, str, str, str, int]] = []  # quantity, at, region, task name, name, count
        self._names: dict[str, str] = {}  # attempt -> name of its task

    def on_event(self, record: Record) -> None:
        """Count one record."""
        name = self._names.get(record.id, "")
        said: Any = dict(zip(SCHEMA[record.kind], record.data, strict=True))
        match record.kind:
            case "task.assigned":
                self._names[record.id] = said["name"]
            case "task.begin":
                self._count("started", record, name)
            case "task.end":
                how = {"ok": "finished", "failed": "failed"}.get(said["outcome"], "lost")
                self._count(how, record, name)
            case "effect.done":
                self._count("effects", record, self._names.get(said["attempt"], ""), said["name"])
            case "effect.repeated":
                self._count("repeats", record, self._names.get(said["attempt"], ""), said["name"])
            case "node.crash":
                self._count("crashes", record)
            case "node.start":
                self._count("starts", record)
            case "disk.lost":
                self._count("lost_commits", record, count=len(said["commits"]))
            case "notify":
                self._count("notices", record, named=record.id)

    def _count(self, what: str, record: Record, of: str = "", named: str = "", count: int = 1) -> None:
        self._events.append((what, record.at_us, record.node.partition("~")[0], of, named, count))

    def unmet(self, world: World, result: Result) -> tuple[str, ...]:
        """What did not come, in prose. Call after the run."""
        found: list[str] = []
        for want in self.wants:
            left, right = (
                sum(t.sign * self._value(t, world, result) for t in side) for side in (want.left, want.right)
            )
            if not OPERATORS[want.op](left, right):
                told = [
                    f"{t} is {_told(self._value(t, world, result))}" for t in (*want.left, *want.right) if t.quantity
                ]
                why = f" ({want.why})" if want.why else ""
                found.append(f"wanted {want.text}{why}, but {', '.join(told)}")
        return tuple(found)

    def _value(self, term: Term, world: World, result: Result) -> float:
        quantity = term.quantity
        match quantity:
            case "":
                return term.number
            case "submitted" | "succeeded" | "dead" | "cancelled" | "expired" | "open":
                return _tasks_of(world, term.of)[quantity] if term.of else result.tasks[quantity]
            case "unsettled":
                return len(_unsettled(world, term.of))
            case "conflicts" | "compensations" | "double_runs":
                return float(getattr(result, quantity))
            case "accepted" | "refused" | "unknown":
                return self._requests(term, world)
            case "hits":
                return sum(
                    sum(count for region, count in active.hits.items() if term.region in ("", region))
                    for active in world.faults
                    if term.of in ("", active.fault.kind)
                )
            case "states" | "missing":
                samples = [s for s in world.divergence if term.from_us <= s.at_us <= term.to_us]
                return max((getattr(sample, quantity) for sample in samples), default=0)
            case "converge_time" if not world.scenario.plan.healed:
                healed_us = world.scenario.plan.healed_ms * 1_000
                after = (s.at_us - healed_us for s in world.divergence if s.at_us >= healed_us and s.states == 1)
                return next(after, math.inf) / 1_000_000
            case "converge_time" | "quiet_time":
                at_s = result.converged_at_s
                return math.inf if at_s is None else max(0.0, at_s - result.healed_at_s)
            case "peak":
                return _peak([at for _, at, *_ in self._matching("started", term)])
        return sum(event[5] for event in self._matching(quantity, term))

    def _matching(self, what: str, term: Term) -> Iterator[tuple[str, int, str, str, str, int]]:
        for event in self._events:
            _, at_us, region, of, named, _ = event
            if (
                event[0] == what
                and term.from_us <= at_us <= term.to_us
                and term.region in ("", region)
                and term.of in ("", of)
                and term.named in ("", named)
            ):
                yield event

    def _requests(self, term: Term, world: World) -> int:
        outcome = {"accepted": "ok"}.get(term.quantity, term.quantity)
        return sum(
            operation.outcome == outcome
            and term.region in ("", operation.region)
            and operation.answered_us is not None
            and term.from_us <= operation.answered_us <= term.to_us
            for operation in world.history
        )


def _tasks_of(world: World, name: str) -> Mapping[str, int]:
    states: Counter[str] = Counter()
    for view, _ in world.views().values():
        if view.submitted is not None and view.submitted.name == name:
            states[str(view.state) if view.state in ENDED else "open"] += 1
            states["submitted"] += 1
    return states


def _unsettled(world: World, name: str) -> set[bytes]:
    return {
        task
        for node in world.healed_nodes()
        for task, (view, settled) in node.tasks().items()
        if view.submitted is not None and name in ("", view.submitted.name) and not settled
    }


def _peak(moments: list[int]) -> int:
    most = first = 0
    for last, at_us in enumerate(moments):
        while at_us - moments[first] > 1_000_000:
            first += 1
        most = max(most, last - first + 1)
    return most


def _told(value: Any) -> str:
    return "never" if value == math.inf else f"{value:g}"
