"""Many seeds: worker processes, each seed judged, a share of them played again elsewhere and compared.

A share of the seeds is played again in a fresh process, under another `PYTHONHASHSEED` and on the other kernel; the
trace hash must be the same, or something in us reads what it must not (an order of hashing, a clock, an earlier run).
The first event in which the two differ is part of the report.

A cell of the vacuity table that stays empty fails a sweep that was long enough to fill it: see `vacuity.missing`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from simulator import vacuity
from simulator.checkers import INVARIANTS, all_checkers, vacuity_of
from simulator.source import SWARM, Source, play
from simulator.trace import SCHEMA

AGAIN_EVERY: Final = 20  # seeds: 5 % are played again
VACUITY_SEEDS_MIN: Final = 500  # fewer seeds are not expected to have met everything
VIOLATIONS_MAX: Final = 1_000  # kept of one sweep
AHEAD: Final = 2  # jobs handed out per worker process
HASH_SEEDS: Final = 8  # tried where a seed came out differently
AGAIN_S_MAX: Final = 600  # for one seed in a fresh process


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one seed came to. Small, since it crosses from a worker process."""

    seed: int
    trace_hash: str
    virtual_s: float
    events: int
    real_s: float
    violations: tuple[Mapping[str, Any], ...]
    vacuity: vacuity.Table
    judged: Mapping[str, int]
    #: Of a seed that was played again: whether it was the same; else what differed first.
    again: bool | None = None
    difference: str = ""


@dataclass(slots=True)
class Summary:
    """A sweep so far."""

    seeds: int = 0
    virtual_s: float = 0.0
    events: int = 0
    real_s: float = 0.0
    violations: list[Mapping[str, Any]] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)  # seeds, in the order in which they came
    vacuity: vacuity.Table = field(default_factory=dict)
    judged: Counter[str] = field(default_factory=Counter)
    again: int = 0
    unequal: list[tuple[int, str]] = field(default_factory=list)
    slowest: list[tuple[float, int]] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    interrupted: bool = False

    def add(self, outcome: Outcome, source: Source) -> None:
        """One seed more."""
        self.seeds += 1
        self.virtual_s += outcome.virtual_s
        self.events += outcome.events
        self.slowest = sorted([*self.slowest, (round(outcome.real_s, 1), outcome.seed)], reverse=True)[:5]
        self.vacuity = vacuity.merge((self.vacuity, outcome.vacuity))
        self.judged.update(outcome.judged)
        if outcome.violations:
            self.failed.append(outcome.seed)
            for violation in outcome.violations[: VIOLATIONS_MAX - len(self.violations)]:
                told = {"seed": outcome.seed, **violation, "reproduce": source.command(outcome.seed)}
                self.violations.append(told)
        if outcome.again is not None:
            self.again += 1
            if not outcome.again:
                self.unequal.append((outcome.seed, outcome.difference))

    def judge_vacuity(self, source: Source) -> None:
        """See which cells a sweep of this length should have filled."""
        if source.name == SWARM and self.seeds >= VACUITY_SEEDS_MIN:
            self.missing = vacuity.missing(self.vacuity, INVARIANTS)

    @property
    def ok(self) -> bool:
        return not self.violations and not self.unequal and not self.missing

    def to_plain(self) -> dict[str, Any]:
        real_s = max(self.real_s, 1e-9)
        return {
            "seeds": self.seeds,
            "virtual_h": round(self.virtual_s / 3_600, 4),
            "events": self.events,
            "events_per_s": round(self.events / real_s),
            "seeds_per_h": round(self.seeds * 3_600 / real_s),
            "violations": self.violations,
            "vacuity": {kind: dict(sorted(cells.items())) for kind, cells in sorted(self.vacuity.items())},
            "vacuity_missing": [list(cell) for cell in self.missing],
            "rerun": self.again,
            "rerun_equal": not self.unequal,
            "rerun_differences": [{"seed": seed, "text": text} for seed, text in self.unequal],
        }


def sweep(
    source: Source,
    seeds: Sequence[int],
    *,
    jobs: int = 1,
    time_s: float = 0,
    on_outcome: Callable[[Outcome, Summary], None] | None = None,
) -> Summary:
    """Play the seeds, in as many processes as `jobs` says, until all are done or `time_s` is over (0: no limit).

    Ctrl-C or SIGTERM ends it at once, with what was found so far, and leaves no process behind.
    """
    summary = Summary()
    began = time.monotonic()
    try:
        with (
            _ended_by_sigterm(),
            closing(_outcomes(source, _until(seeds, began + time_s if time_s else None), jobs)) as played,
        ):
            for outcome in played:
                summary.add(outcome, source)
                summary.real_s = time.monotonic() - began
                if on_outcome is not None:
                    on_outcome(outcome, summary)
    except KeyboardInterrupt:
        summary.interrupted = True
    summary.real_s = time.monotonic() - began
    summary.judge_vacuity(source)
    return summary


def _until(seeds: Sequence[int], end_s: float | None) -> Iterator[int]:
    for seed in seeds:
        if end_s is not None and time.monotonic() >= end_s:
            return
        yield seed


def _outcomes(source: Source, seeds: Iterator[int], jobs: int) -> Generator[Outcome, None, None]:
    one = partial(outcome_of, source)
    if jobs <= 1:
        for seed, twice in zip(seeds, _again(), strict=False):
            yield one(seed, twice)
        return
    again = _again()
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin_worker)
    running: set[Future[Outcome]] = set()
    try:
        for seed in seeds:
            running.add(pool.submit(one, seed, next(again)))
            if len(running) >= AHEAD * jobs:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    finally:
        pool.shutdown(wait=not running, cancel_futures=True)
        if running:  # interrupted: what is under way is of no use to anybody
            for process in multiprocessing.active_children():
                process.terminate()


def _again() -> Iterator[bool]:
    """Which seeds of a sweep are played again: the first, and each twentieth after it."""
    while True:
        yield True
        for _ in range(AGAIN_EVERY - 1):
            yield False


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and ends us
    signal.signal(signal.SIGTERM, _end_worker)


def _end_worker(_signal: int, _frame: object) -> None:
    for child in _children:
        child.kill()  # it ignores interrupts, as we do
    os._exit(1)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends what it surrounds as Ctrl-C does; worker processes would outlive us otherwise."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return

    def end(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def outcome_of(source: Source, seed: int, again: bool = False) -> Outcome:
    """Play one seed, and once more elsewhere if `again`."""
    began = time.monotonic()
    checkers = all_checkers()
    scenario = source.scenario(seed)
    try:
        result = play(scenario, seed, kernel=source.kernel, checkers=checkers)
    except Exception as error:  # noqa: BLE001 - a seed that breaks the simulator is a finding, not the end of a sweep
        broken = {"invariant": "SIM-1", "at_s": 0.0, "text": f"the simulator raised {type(error).__name__}: {error}"}
        return Outcome(seed, "", 0.0, 0, time.monotonic() - began, (broken,), {}, {})
    violations = [violation.to_plain() for violation in result.violations]
    violations += [{"invariant": "want", "at_s": result.virtual_s, "text": text} for text in result.unmet]
    met = vacuity_of(checkers)
    real_s = time.monotonic() - began
    same, difference = (None, "") if not again else _same_elsewhere(source, seed, result.trace_hash)
    return Outcome(
        seed,
        result.trace_hash,
        result.virtual_s,
        result.events,
        real_s,
        tuple(violations),
        met.table,
        met.judged,
        same,
        difference,
    )


# Elsewhere ---------------------------------------------------------------------------------------

_children: Final[list[subprocess.Popen[str]]] = []  # under way: ended with us


def _same_elsewhere(source: Source, seed: int, trace_hash: str) -> tuple[bool, str]:
    told = _run_elsewhere(source, seed, "trio")
    if told == trace_hash:
        return True, ""
    if len(told) != len(trace_hash):
        return False, told
    with tempfile.TemporaryDirectory() as folder:
        traces = [Path(folder, name) for name in ("one.jsonl", "other.jsonl")]
        _run_elsewhere(source, seed, "trio", traces[1])
        for hash_seed in map(str, range(HASH_SEEDS)):  # ours is not known: it may be the order of hashing that differs
            if _run_elsewhere(source, seed, source.kernel, traces[0], hash_seed=hash_seed) != told:
                return False, first_difference(*traces)
        return False, "equal when looked at again: it depends on what ran before"


def _run_elsewhere(source: Source, seed: int, kernel: str, trace: Path | None = None, hash_seed: str = "4711") -> str:
    """The trace hash of this seed in a fresh process; or what that process said instead."""
    arguments = [source.name, "--seed", str(seed), "--kernel", kernel, "--quick", "-o", "json"]
    if source.app:
        arguments += ["--app", source.app]
    if source.duration_ms:
        arguments += ["--time", f"{source.duration_ms}ms"]
    if trace is not None:
        arguments += ["--trace", str(trace)]
    command = [sys.executable, "-m", "regions.cli", "sim", "run", *arguments]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as child:  # noqa: S603 - ourselves
        _children.append(child)
        try:
            stdout, stderr = child.communicate(timeout=AGAIN_S_MAX)
        except subprocess.TimeoutExpired:
            return f"a fresh process took longer than {AGAIN_S_MAX} s"
        finally:
            child.kill()  # nothing happens to one that has ended
            _children.remove(child)
    try:
        return str(json.loads(stdout)["trace_hash"])
    except (ValueError, KeyError):
        return f"a fresh process ended with {child.returncode} and said: {stderr.strip()[-500:]}"


def first_difference(one: Path, other: Path) -> str:
    """The first record in which two traces on disk differ, in prose; "" if they are equal."""
    with one.open(encoding="utf-8") as mine, other.open(encoding="utf-8") as others:
        for left, right in zip_longest(map(_counted, mine), map(_counted, others)):
            if left != right:
                return f"one process: {left or 'over'}; the other: {right or 'over'}"
    return ""


def _counted(line: str) -> str:
    """What of a JSON line counts for the hash: its details do not."""
    plain = json.loads(line)
    names = ("seq", "at_us", "node", "kind", "id", "causes", *SCHEMA[plain["kind"]])
    return json.dumps({name: plain[name] for name in names})
