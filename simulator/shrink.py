"""From a failing seed to the smallest scenario that still fails: what a person should look at.

Delta debugging (Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input", IEEE TSE 2002) over the
faults and then over the loads; then every fault is made shorter, simpler and narrower, the workload thinner, the world
plainer. A candidate counts only if it breaks the *same* invariant: a plan that fails otherwise is another story.

The seed stays. Streams of chance belong to a purpose and a place (`World.stream`), so what is taken away disturbs
little of what is left; and since a run is a function of scenario and seed, the smallest one is as reproducible.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from simulator.plan import Fault, text_of_ms
from simulator.result import Checker, Mutant, Violation
from simulator.scenario import Arrivals, Links, Load, Region, Scenario
from simulator.source import play
from simulator.world import World

TIME_S: Final = 60.0
RUNS_MAX: Final = 2_000
SHORT_MS: Final = 100  # a fault shorter than this is not made shorter still
AFTER_MS: Final = 5_000  # a run goes on for so long after what went wrong

T = TypeVar("T")
Fails = Callable[[Scenario], float | None]


@dataclass(slots=True)
class Shrunk:
    """What came of it.

    Attributes:
        invariant: What is broken, in the smallest scenario as in the first.
        steps: What was left out or made smaller, in prose.
        over: Whether there was nothing left to try; else time or runs ran out, or somebody lost patience.
    """

    scenario: Scenario
    seed: int
    invariant: str
    text: str
    runs: int = 0
    real_s: float = 0.0
    steps: list[str] = field(default_factory=list)
    over: bool = False
    interrupted: bool = False


class NothingFailsError(ValueError):
    """The run that should be shrunk is clean."""


class _OutOfTimeError(Exception):
    pass


def shrink(
    scenario: Scenario,
    seed: int,
    *,
    judges: Callable[[], Sequence[Checker]],
    mutants: Callable[[], Sequence[Mutant]] = tuple,
    kernel: str = "heap",
    time_s: float = TIME_S,
    progress: Callable[[str], None] | None = None,
    on_run: Callable[[Shrunk], None] | None = None,
) -> Shrunk:
    """Find the smallest scenario that breaks the invariant that this one breaks first.

    Args:
        scenario: It fails under `seed`.
        seed: Kept.
        judges: Makes checkers, fresh for each run.
        mutants: Makes planted bugs, fresh for each run.
        kernel: "heap", or "trio" for an app that needs it.
        time_s: When to stop with what was found so far.
        progress: Told of each step.
        on_run: Told before each run how far it is.

    Ctrl-C ends it with what was found so far.

    Raises:
        NothingFailsError: If the scenario passes.
    """
    began = time.monotonic()
    first = play(scenario, seed, kernel=kernel, checkers=judges(), mutants=mutants())
    if first.violations:
        invariant, text = first.violations[0].invariant, first.violations[0].text
    elif first.unmet:
        invariant, text = "want", first.unmet[0]
    else:
        raise NothingFailsError(f"seed {seed} of {scenario.name!r} passes: there is nothing to shrink")
    wanted = text.partition(", but ")[0]  # the same expectation, whatever is there instead

    found = Shrunk(scenario, seed, invariant, text, runs=1)

    def fails(candidate: Scenario) -> float | None:
        """When the invariant is broken; None if it holds."""
        if found.runs >= RUNS_MAX or time.monotonic() - began > time_s:
            raise _OutOfTimeError
        found.runs += 1
        found.real_s = time.monotonic() - began
        if on_run is not None:
            on_run(found)
        try:
            result = _World(invariant, candidate, seed, kernel, judges(), mutants()).run()
        except Exception:  # noqa: BLE001 - a candidate that cannot be played is none
            return None
        for violation in result.violations:
            if violation.invariant == invariant:
                found.text = violation.text
                return violation.at_s
        for unmet in result.unmet:
            if invariant == "want" and unmet.startswith(wanted):
                found.text = unmet
                return result.virtual_s
        return None

    def take(candidate: Scenario, step: str) -> bool:
        if fails(candidate) is None:
            return False
        found.scenario = candidate
        found.steps.append(step)
        if progress is not None:
            progress(step)
        return True

    try:
        if first.violations:
            soon_ms = round(first.violations[0].at_s * 1_000) + AFTER_MS
            if soon_ms < scenario.duration_ms:
                take(replace(found.scenario, duration_ms=soon_ms), f"over after {text_of_ms(soon_ms)}")
            take(replace(found.scenario, expectations=()), "without expectations")
        while True:
            before = found.scenario
            _fewer(found, fails, take)
            _smaller(found, take)
            if found.scenario == before:
                break
        found.over = True
    except _OutOfTimeError:
        pass
    except KeyboardInterrupt:
        found.interrupted = True
    found.scenario = replace(found.scenario, drawn={}, name=f"{scenario.name}, shrunk")
    found.real_s = time.monotonic() - began
    return found


class _World(World):
    """A run that ends once the invariant is broken: the rest of it says nothing new."""

    def __init__(
        self,
        invariant: str,
        scenario: Scenario,
        seed: int,
        kernel: str,
        checkers: Sequence[Checker],
        mutants: Sequence[Mutant],
    ) -> None:
        super().__init__(scenario, seed, kernel=kernel, checkers=checkers, mutants=mutants, keep=False)
        self._wanted = invariant

    def violation(self, invariant: str, text: str, *, causes: tuple[int, ...] = (), task: str = "") -> Violation:
        if invariant == self._wanted:
            self.kernel.stop()
        return super().violation(invariant, text, causes=causes, task=task)


Take = Callable[[Scenario, str], bool]


def _fewer(found: Shrunk, fails: Fails, take: Take) -> None:
    """Leave out faults, loads and regions."""
    start = found.scenario
    faults = ddmin(start.plan.faults, lambda some: fails(replace(start, plan=start.plan.with_faults(some))) is not None)
    if len(faults) < len(start.plan.faults):
        smaller = replace(start, plan=start.plan.with_faults(faults))
        take(smaller, f"{len(faults)} of {len(start.plan.faults)} faults")
    start = found.scenario
    loads = ddmin(start.loads, lambda some: fails(replace(start, loads=tuple(some))) is not None)
    if len(loads) < len(start.loads):
        take(replace(start, loads=tuple(loads)), f"{len(loads)} of {len(start.loads)} loads")
    for region in found.scenario.regions:
        smaller = _without(found.scenario, region)
        if len(smaller.regions) > 1:
            take(smaller, f"without {region.name}")


def _smaller(found: Shrunk, take: Take) -> None:
    """Shorten what is left, and make it plainer."""
    for place in range(len(found.scenario.plan.faults)):
        for smaller in _smaller_faults(found.scenario.plan.faults[place]):
            faults = list(found.scenario.plan.faults)
            current = faults[place]
            faults[place] = smaller(current)
            if faults[place] != current:
                plan = replace(found.scenario.plan, faults=tuple(faults))
                while take(replace(found.scenario, plan=plan), str(faults[place])):
                    current, faults[place] = faults[place], smaller(faults[place])
                    if faults[place] == current:
                        break
                    plan = replace(found.scenario.plan, faults=tuple(faults))
    for place in range(len(found.scenario.loads)):
        for thinner in (_counted, _rarer, _plainer_load):
            while True:
                loads = list(found.scenario.loads)
                loads[place] = thinner(loads[place])
                if loads[place] == found.scenario.loads[place]:
                    break
                if not take(replace(found.scenario, loads=tuple(loads)), f"a thinner load {loads[place].model}"):
                    break
    for plainer, step in _plainer(found.scenario):
        candidate = plainer(found.scenario)
        if candidate != found.scenario:
            take(candidate, step)


def ddmin(items: Sequence[T], fails: Callable[[Sequence[T]], bool]) -> list[T]:
    """A smallest part of `items` that still fails: no single item can be left out of it.

    All of `items` is known to fail.
    """
    left = list(items)
    parts = 2
    if left and fails([]):
        return []
    while len(left) >= 2:
        size = -(-len(left) // parts)
        chunks = [left[start : start + size] for start in range(0, len(left), size)]
        for place, chunk in enumerate(chunks):
            rest = [item for other, part in enumerate(chunks) if other != place for item in part]
            if len(chunks) > 2 and fails(chunk):  # with two, each is the other's rest
                left, parts = chunk, 2
                break
            if fails(rest):
                left, parts = rest, max(parts - 1, 2)
                break
        else:
            if parts >= len(left):
                return left
            parts = min(len(left), 2 * parts)
    return left


def _without(scenario: Scenario, region: Region) -> Scenario:
    """The same story without a region, and without what names it alone."""
    name = region.name
    faults = []
    for fault in scenario.plan.faults:
        targets = tuple(t for t in fault.targets if name not in t.replace("<>", ">").partition("/")[0].split(">"))
        if targets:
            faults.append(replace(fault, targets=targets))
    loads = []
    for load in scenario.loads:
        regions = tuple(r for r in load.regions if r != name)
        if regions or not load.regions:
            loads.append(replace(load, regions=regions))
    pairs = {pair: rtt for pair, rtt in scenario.links.rtt.items() if name not in pair.replace("<>", ">").split(">")}
    healed = tuple(r for r in scenario.plan.healed if r != name)
    return replace(
        scenario,
        regions=tuple(r for r in scenario.regions if r != region),
        loads=tuple(loads),
        links=replace(scenario.links, rtt=pairs),
        plan=replace(scenario.plan, faults=tuple(faults), healed=healed),
    )


def _smaller_faults(fault: Fault) -> Iterator[Callable[[Fault], Fault]]:
    """Ways to make one fault smaller; each is tried until it fails no more."""
    if fault.duration_ms:
        yield lambda f: replace(f, duration_ms=f.duration_ms // 2 if f.duration_ms > SHORT_MS else f.duration_ms)
    for name in sorted(fault.params):
        yield lambda f, name=name: replace(f, params={k: v for k, v in f.params.items() if k != name})  # type: ignore[misc]
    for target in fault.targets:
        yield lambda f, target=target: (  # type: ignore[misc]
            replace(f, targets=tuple(t for t in f.targets if t != target)) if len(f.targets) > 1 else f
        )
    yield lambda f: replace(f, start_ms=f.start_ms // 1_000 * 1_000)


def _counted(load: Load) -> Load:
    """Half as many arrivals. The first step gives a number to what had none."""
    arrivals = load.arrivals
    count = arrivals.count // 2 if arrivals.count else 256
    return load if count < 1 else replace(load, arrivals=replace(arrivals, count=count))


def _rarer(load: Load) -> Load:
    arrivals = load.arrivals
    if arrivals.per_s <= 0.1 or arrivals.shape in ("once", "trace"):
        return load
    return replace(load, arrivals=replace(arrivals, per_s=round(arrivals.per_s / 2, 3)))


def _plainer_load(load: Load) -> Load:
    arrivals = load.arrivals
    if arrivals.shape in ("bursty", "poisson"):
        return replace(load, arrivals=Arrivals("constant", arrivals.per_s, arrivals.start_ms, count=arrivals.count))
    if load.options:
        return replace(load, options=dict(list(load.options.items())[1:]))
    return load


def _plainer(scenario: Scenario) -> Iterator[tuple[Callable[[Scenario], Scenario], str]]:
    """Ways to make the world plainer."""
    links = scenario.links
    yield lambda s: replace(s, links=Links(rtt_ms=links.rtt_ms, jitter=0, tail=0)), "links without chance"
    yield lambda s: replace(s, disk_ms=(1.0, 1.0)), "an even disk"
    yield lambda s: replace(s, regions=tuple(Region(region.name) for region in s.regions)), "plain regions"
    yield lambda s: replace(s, plan=replace(s.plan, healed=())), "all healed"
    for name in sorted(scenario.settings):
        yield (
            lambda s, name=name: replace(s, settings={k: v for k, v in s.settings.items() if k != name}),  # type: ignore[misc]
            f"without the setting {name}",
        )
    heal_ms = max((fault.end_ms for fault in scenario.plan.faults), default=0) + 1_000
    if scenario.plan.heal_ms is not None and heal_ms < scenario.plan.heal_ms:
        yield lambda s: replace(s, plan=replace(s.plan, heal_ms=heal_ms)), f"healed at {text_of_ms(heal_ms)}"
    shorter_ms = max(heal_ms + AFTER_MS, scenario.duration_ms // 2)
    if shorter_ms < scenario.duration_ms:
        yield lambda s: replace(s, duration_ms=shorter_ms), f"over after {text_of_ms(shorter_ms)}"
