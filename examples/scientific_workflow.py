"""Run a recorded scientific workflow on a cluster, and cut a region off while it runs.

    python examples/scientific_workflow.py montage.json --speedup 50 --cut us@30%..60%

FILE is a workflow in WfFormat (wfcommons.org), versions 1.0 to 1.6, or the compact form described at `read_compact`;
either may be gzipped. Each step becomes one task that sleeps for the step's recorded time divided by --speedup and
starts after its parents. Without --node or --ready-file, a cluster of three regions is started for the run with
`crdtsync dev`, and stopped at its end. To use a running one, start it with this file as its app:

    crdtsync dev --app examples/scientific_workflow.py:app --ready-file ready.json
    python examples/scientific_workflow.py montage.json --ready-file ready.json

At the end the regions must have agreed, every step must have one outcome, and no step may have started before its
parents were done in the view of the region that ran it. Exit code 1 if any of this does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import json
import re
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crdtsync import App
from crdtsync.commands import LogHeads, ReadLog
from crdtsync.errors import CrdtSyncError
from crdtsync.events import Claimed, Ended, Event, TermOpened
from crdtsync.identifiers import EventId
from crdtsync.log.commit import decode_commit
from regions.client import Client
from regions.devcluster import dev_cluster
from regions.submission import Options, new_task_id, task_spec

HERE = Path(__file__).resolve()

app = App("workflow")


@app.task(name="step")
async def step(ctx, ms: int) -> None:
    """Stand in for a program that runs for `ms` milliseconds."""
    await asyncio.sleep(ms / 1000)


ENDED = frozenset({"succeeded", "dead", "expired", "cancelled"})
POLL_S = 0.1
RETRY_S = 0.5
LOOK_S = 2.0
PATIENCE_S = 15.0  # beyond the longest step: five times the silence after which a dev cluster takes work over
AGREE_TIMEOUT_S = 60.0  # after the last heal


# The workflow ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    name: str
    runtime_s: float
    parents: tuple[int, ...]  # indexes into the workflow's steps


@dataclass(frozen=True)
class Workflow:
    """Steps in the order of the file; `order` visits every step after its parents."""

    name: str
    steps: list[Step]
    order: list[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", topological(self.steps))

    @property
    def edges(self) -> int:
        return sum(len(step.parents) for step in self.steps)

    @property
    def total_s(self) -> float:
        return sum(step.runtime_s for step in self.steps)

    @property
    def critical_path_s(self) -> float:
        """The longest chain of steps that wait for one another: no number of workers can beat it."""
        done_at = [0.0] * len(self.steps)
        for index in self.order:
            step = self.steps[index]
            done_at[index] = max((done_at[parent] for parent in step.parents), default=0.0) + step.runtime_s
        return max(done_at, default=0.0)

    @property
    def levels(self) -> int:
        depth = [0] * len(self.steps)
        for index in self.order:
            depth[index] = 1 + max((depth[parent] for parent in self.steps[index].parents), default=0)
        return max(depth, default=0)


class NotAWorkflowError(Exception):
    """The file is readable, but not as a workflow. The message says what is wrong and where."""


def topological(steps: list[Step]) -> list[int]:
    """Indexes such that parents come first; file order where the parents leave a choice."""
    waiting_for = [len(step.parents) for step in steps]
    children: list[list[int]] = [[] for _ in steps]
    for index, step in enumerate(steps):
        for parent in step.parents:
            children[parent].append(index)
    ready = [index for index, count in enumerate(waiting_for) if count == 0]
    for index in ready:  # grows while we walk along it
        for child in children[index]:
            waiting_for[child] -= 1
            if waiting_for[child] == 0:
                ready.append(child)
    if len(ready) < len(steps):
        stuck = next(index for index, count in enumerate(waiting_for) if count > 0)
        raise NotAWorkflowError(f"steps depend on each other in a circle; {steps[stuck].name!r} can never start")
    return ready


def read_workflow(path: Path) -> Workflow:
    """Read either form. Raises OSError or NotAWorkflowError."""
    raw = path.read_bytes()
    try:
        content = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
    except (ValueError, EOFError, gzip.BadGzipFile) as error:
        raise NotAWorkflowError(f"{path} is not JSON: {error}") from error
    name = path.name.removesuffix(".gz").removesuffix(".json")
    try:
        if isinstance(content, dict) and isinstance(content.get("workflow"), dict):
            return Workflow(name, read_wfformat(content["workflow"]))
        if isinstance(content, dict) and isinstance(content.get("tasks"), list):
            return Workflow(name, read_compact(content["tasks"]))
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise NotAWorkflowError(f"{path} has a task that cannot be read: {error!r}") from error
    raise NotAWorkflowError(f"{path} has neither a WfFormat 'workflow' nor the 'tasks' of the compact form")


def read_compact(tasks: list[list[Any]]) -> list[Step]:
    """`[id, name, runtime in seconds, [indexes of parents], ...]` for each task; what follows is not needed here."""
    steps = [Step(str(row[0]), float(row[2]), tuple(dict.fromkeys(row[3]))) for row in tasks]
    for step in steps:
        for parent in step.parents:
            if not 0 <= parent < len(steps):
                raise NotAWorkflowError(f"step {step.name!r} has parent number {parent} of {len(steps)} tasks")
    return steps


def read_wfformat(workflow: dict[str, Any]) -> list[Step]:
    """Versions up to 1.4 keep everything in `tasks` (`jobs` before 1.3) and refer to tasks by name; from 1.5 on the
    graph is under `specification`, the run times under `execution`, and tasks refer to each other by id. An edge may
    be told by the parent, by the child, or by both."""
    if "specification" in workflow:
        tasks = workflow["specification"]["tasks"]
        recorded = {row["id"]: row for row in workflow.get("execution", {}).get("tasks", ())}
        if not recorded:
            raise NotAWorkflowError("no 'execution' section: the workflow was never run, so there are no times")
    else:
        tasks = workflow.get("tasks") or workflow["jobs"]
        recorded = {}
    names = [str(task.get("id", task["name"])) for task in tasks]
    index_of: dict[str, int] = {}
    for key in ("id", "name"):  # an id always wins over another task's name; of equal names, none is a reference
        counts = Counter(task[key] for task in tasks if key in task)
        for index, task in enumerate(tasks):
            if key in task and counts[task[key]] == 1:
                index_of.setdefault(task[key], index)
    parents: list[dict[int, None]] = [{} for _ in tasks]  # dictionaries, because they keep the order

    def find(reference: str, by: str) -> int:
        if reference not in index_of:
            raise NotAWorkflowError(f"step {by!r} refers to {reference!r}, which is not a task or not the only one")
        return index_of[reference]

    for index, task in enumerate(tasks):
        for reference in task.get("parents", ()):
            parents[index][find(reference, names[index])] = None
        for reference in task.get("children", ()):
            parents[find(reference, names[index])][index] = None

    def runtime_s(task: dict[str, Any]) -> float:
        row = recorded.get(task.get("id"), task)
        value = row.get("runtimeInSeconds", row.get("runtime"))
        if value is None:
            raise NotAWorkflowError(f"no run time was recorded for step {task.get('id', task['name'])!r}")
        return max(0.0, float(value))

    return [
        Step(name, runtime_s(task), tuple(before)) for name, task, before in zip(names, tasks, parents, strict=True)
    ]


# The run -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cut:
    """Cut `region` off once `start` percent of the steps are done, heal it at `end` percent."""

    region: str
    start: float
    end: float

    @classmethod
    def parse(cls, text: str) -> Cut:
        match = re.fullmatch(r"([a-z0-9-]+)@(\d+(?:\.\d+)?)%\.\.(\d+(?:\.\d+)?)%", text)
        if match is None or not 0 <= float(match[2]) < float(match[3]) <= 100:
            raise argparse.ArgumentTypeError(f"{text!r}: write REGION@FROM%..TO%, as in us@30%..60%")
        return cls(match[1], float(match[2]), float(match[3]))


@dataclass
class Run:
    """One workflow on one cluster, followed through the eyes of every region."""

    workflow: Workflow
    clients: dict[str, Client]  # by region
    options: argparse.Namespace
    label: str = field(default_factory=lambda: f"run-{secrets.token_hex(4)}")
    ids: list[bytes] = field(default_factory=list)
    index_of: dict[str, int] = field(default_factory=dict)
    states: dict[str, dict[int, str]] = field(default_factory=dict)  # region: step: state as seen there
    cut_now: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    moved_at: float = 0.0
    started_at: float = 0.0
    finished_at: float = 0.0

    def __post_init__(self) -> None:
        self.ids = [new_task_id() for _ in self.workflow.steps]
        self.index_of = {task_id.hex(): index for index, task_id in enumerate(self.ids)}
        self.states = {region: {} for region in self.clients}

    @property
    def ended(self) -> set[int]:
        """Steps that have ended, as far as any region knows."""
        return {index for seen in self.states.values() for index, state in seen.items() if state in ENDED}

    async def execute(self, show: Progress) -> None:
        """Submit, follow, cut and heal; returns when every step has ended and all regions know."""
        followers = [asyncio.create_task(self.follow(region)) for region in self.clients]
        try:
            for cut in self.options.cut:
                if cut.start == 0:
                    await self.cut(cut)
            self.started_at = self.moved_at = time.monotonic()
            await self.submit()
            await self.until_ended(show)
            self.finished_at = time.monotonic()
            for region in sorted(self.cut_now):
                await self.heal(region)
            await self.until_all_know(show)
        finally:
            for follower in followers:
                follower.cancel()
            await asyncio.gather(*followers, return_exceptions=True)

    async def submit(self) -> None:
        """Parents first and in bulk: a region accepts a step only when it holds the steps that it comes after."""
        specs = []
        for index in self.workflow.order:
            step = self.workflow.steps[index]
            options = Options(
                id=self.ids[index],
                after=[self.ids[parent] for parent in step.parents],
                region=self.options.region,
                partition=self.options.partition,
                labels={"workflow": self.label},
            )
            specs.append(task_spec("step", (), {"ms": round(step.runtime_s / self.options.speedup * 1000)}, options))
        for answer in await self.clients[self.options.submit_to].submit_many(specs):
            if isinstance(answer, CrdtSyncError):
                raise answer

    async def follow(self, region: str) -> None:
        """Keep `states[region]` up to date: changes as they happen, and a listing where some may have been missed."""
        while True:
            with contextlib.suppress(CrdtSyncError):
                async with contextlib.aclosing(self.clients[region].watch()) as changes:
                    async for change in changes:
                        if change.get("gap"):
                            await self.look(region)
                        else:
                            self.saw(region, change)
            await asyncio.sleep(RETRY_S)
            with contextlib.suppress(CrdtSyncError):
                await self.look(region)

    async def look(self, region: str) -> list[dict[str, Any]]:
        """All steps of this run as a region knows them."""
        rows = await self.clients[region].list(label=("workflow", self.label), limit=0)
        for row in rows:
            self.saw(region, row)
        return rows

    async def look_everywhere(self) -> None:
        for region in self.clients:
            with contextlib.suppress(CrdtSyncError):
                await self.look(region)

    def saw(self, region: str, record: dict[str, Any]) -> None:
        index = self.index_of.get(record["id"].replace("-", ""))
        if index is not None and self.states[region].get(index) != record["state"]:
            self.states[region][index] = record["state"]
            self.moved_at = time.monotonic()

    async def until_ended(self, show: Progress) -> None:
        """Cut and heal as the work goes on. A cut that lets nothing move any more is healed early, and noted."""
        pending = [cut for cut in self.options.cut if cut.start > 0]
        looked_at = 0.0
        patience_s = PATIENCE_S + max(step.runtime_s for step in self.workflow.steps) / self.options.speedup
        while len(self.ended) < len(self.workflow.steps):
            percent = 100 * len(self.ended) / len(self.workflow.steps)
            for cut in [cut for cut in pending if percent >= cut.start]:
                pending.remove(cut)
                await self.cut(cut)
            for cut in [cut for cut in self.options.cut if cut.region in self.cut_now and percent >= cut.end]:
                await self.heal(cut.region)
            stuck_s = time.monotonic() - self.moved_at
            if stuck_s > LOOK_S and time.monotonic() > looked_at + LOOK_S:  # a change may have come before the watch
                looked_at = time.monotonic()
                await self.look_everywhere()
            if stuck_s > patience_s:
                if not self.cut_now:
                    raise NoProgressError(f"nothing has moved for {stuck_s:.0f} s: {await self.waiting()}")
                self.note(f"nothing moved for {stuck_s:.0f} s at {percent:.0f} %: {await self.waiting()}")
                for region in sorted(self.cut_now):
                    await self.heal(region)
                self.moved_at = time.monotonic()
            show.update(self)
            await asyncio.sleep(POLL_S)

    async def until_all_know(self, show: Progress) -> None:
        deadline = time.monotonic() + AGREE_TIMEOUT_S
        while not await self.agreed() and time.monotonic() < deadline:
            await self.look_everywhere()
            show.update(self)
            await asyncio.sleep(RETRY_S)
        show.update(self)

    async def agreed(self) -> bool:
        if any(len(ended_of(seen)) < len(self.workflow.steps) for seen in self.states.values()):
            return False
        return agree(await self.own_rows())

    async def own_rows(self) -> dict[str, dict[str, Any]]:
        listings = {region: await client.regions() for region, client in self.clients.items()}
        return {region: next(row for row in rows if row["region"] == region) for region, rows in listings.items()}

    async def waiting(self) -> str:
        """What one of the steps that have not ended says it waits for."""
        for region, client in self.clients.items():
            for row in await client.list(label=("workflow", self.label), state="waiting", limit=0):
                if row.get("waiting_for"):
                    return f"in {region}, step {row['id']} waits for {row['waiting_for']}"
        return "no step says what it waits for"

    async def cut(self, cut: Cut) -> None:
        await self.clients[cut.region].cut()
        self.cut_now.add(cut.region)
        self.note(f"cut {cut.region} off, {len(self.ended)} of {len(self.workflow.steps)} steps done")

    async def heal(self, region: str) -> None:
        await self.clients[region].heal()
        self.cut_now.discard(region)
        self.note(f"healed {region}, {len(self.ended)} of {len(self.workflow.steps)} steps done")

    def note(self, text: str) -> None:
        elapsed = time.monotonic() - self.started_at if self.started_at else 0.0
        self.notes.append(f"{elapsed:6.1f} s  {text}")
        print(self.notes[-1], file=sys.stderr)


class NoProgressError(Exception):
    """Nothing moves although no region is cut off."""


def ended_of(seen: dict[int, str]) -> list[int]:
    return [index for index, state in seen.items() if state in ENDED]


def agree(rows: dict[str, dict[str, Any]]) -> bool:
    """Whether regions, by their own rows, hold the same commits and have the same state."""
    return len({json.dumps([row["heads"], row["digest"]], sort_keys=True) for row in rows.values()}) == 1


# What the log says --------------------------------------------------------------------------------------------------


class Log:
    """All commits that one region holds, read from its node: who had seen what, exactly.

    A commit names the part of every other writer's log that its own writer had applied, as the difference to that
    writer's commit before. So whether one event was known when another was written is a look-up, not a guess from
    clocks.
    """

    def __init__(self) -> None:
        self.claims: list[tuple[EventId, Claimed]] = []
        self.ends: dict[EventId, tuple[EventId, Ended]] = {}  # by attempt; of several, a success
        self.takeovers = 0
        self._seen: dict[tuple[str, int], dict[str, int]] = {}

    @classmethod
    async def read(cls, client: Client, tasks: set[bytes]) -> Log:
        """Read what concerns these tasks. Raises NoProgressError if the node has dropped commits already."""
        log = cls()
        for head in await client.request(LogHeads()):
            if head["floor"]:
                raise NoProgressError(
                    f"{client.region} has dropped commits up to {head['floor']} of {head['writer']}: keep them longer "
                    "(retention_s) to have the order checked"
                )
            seen: dict[str, int] = {}
            first = 1
            while blobs := await client.request(ReadLog(writer=head["writer"], first=first)):
                for blob in blobs:
                    commit = decode_commit(blob)
                    first = commit.number + 1
                    if commit.deps:
                        seen = seen | {dep.writer: dep.number for dep in commit.deps}
                    log._seen[commit.writer, commit.number] = seen
                    for index, event in enumerate(commit.events):
                        log._add(EventId(commit.stamp, commit.writer, commit.number, index), event, tasks)
        return log

    def _add(self, event_id: EventId, event: Event, tasks: set[bytes]) -> None:
        if getattr(event, "task", None) not in tasks:
            return
        if isinstance(event, Claimed):
            self.claims.append((event_id, event))
        elif isinstance(event, Ended):
            attempt = EventId(*event.attempt)
            if event.outcome == "ok" or attempt not in self.ends:
                self.ends[attempt] = event_id, event
        elif isinstance(event, TermOpened) and event.offer is None:
            self.takeovers += 1

    def had_seen(self, later: EventId, earlier: EventId) -> bool:
        """Whether whoever wrote `later` knew `earlier`."""
        if later.writer == earlier.writer:
            return (earlier.number, earlier.index) < (later.number, later.index)
        return self._seen[later.writer, later.number].get(earlier.writer, 0) >= earlier.number


def misordered(run: Run, log: Log, region: str) -> list[str]:
    """Attempts that `region` began before it knew that all parents were done."""
    found = []
    for claim_id, claim in log.claims:
        if claim_id.region != region:
            continue
        index = run.index_of[claim.task.hex()]
        inputs = {parent: EventId(*attempt) for parent, attempt in claim.inputs}
        for parent in run.workflow.steps[index].parents:
            attempt = inputs.get(run.ids[parent])
            end = log.ends.get(attempt) if attempt is not None else None
            if end is None or end[1].outcome != "ok" or not log.had_seen(claim_id, end[0]):
                found.append(f"{run.workflow.steps[index].name} before {run.workflow.steps[parent].name}")
    return found


# The report ----------------------------------------------------------------------------------------------------------


async def report(run: Run) -> dict[str, Any]:
    """What the run amounted to, from the records and logs that the nodes give."""
    records = {region: {row["id"]: row for row in await run.look(region)} for region in run.clients}
    logs = {region: await Log.read(client, set(run.ids)) for region, client in run.clients.items()}
    rows = await run.own_rows()
    somewhere = next(iter(run.clients))
    conflicts = await run.clients[somewhere].conflicts()
    speedup = run.options.speedup
    critical_path_s = run.workflow.critical_path_s / speedup
    total_s = run.workflow.total_s / speedup
    slots = run.options.slots * len(run.clients)
    attempts = Counter(claim_id.region for claim_id, _ in logs[somewhere].claims)
    winners = Counter(winner_region(record) for record in records[somewhere].values())
    return {
        "workflow": run.workflow.name,
        "steps": len(run.workflow.steps),
        "edges": run.workflow.edges,
        "levels": run.workflow.levels,
        "speedup": speedup,
        "makespan_s": round(run.finished_at - run.started_at, 3),
        "critical_path_s": round(critical_path_s, 3),
        "total_s": round(total_s, 3),
        "slots": slots,
        "bound_s": round(max(critical_path_s, total_s / slots), 3),
        "tasks_per_region": dict(sorted(winners.items())),
        "attempts_per_region": dict(sorted(attempts.items())),
        "attempts": attempts.total(),
        "takeovers": logs[somewhere].takeovers,
        "conflicts": dict(Counter(item["kind"] for item in conflicts if item["task"] in run.index_of)),
        "notes": run.notes,
        "checks": checks(run, records, logs, rows),
    }


def checks(
    run: Run, records: dict[str, dict[str, Any]], logs: dict[str, Log], rows: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """What must hold at the end: what is claimed, whether it held, and by what that was seen."""
    wanted = len(run.workflow.steps)
    done = {region: sum(row["state"] == "succeeded" for row in seen.values()) for region, seen in records.items()}
    views = {
        json.dumps([(row["state"], row["attempts"]) for _, row in sorted(seen.items())], sort_keys=True)
        for seen in records.values()
    }
    wrong = {region: misordered(run, log, region) for region, log in logs.items()}
    looked_at = sum(
        len(run.workflow.steps[run.index_of[claim.task.hex()]].parents)
        for region, log in logs.items()
        for claim_id, claim in log.claims
        if claim_id.region == region
    )
    first_wrong = next((found[0] for found in wrong.values() if found), "")
    return [
        {
            "claim": "every step has succeeded, in the view of every region",
            "held": set(done.values()) == {wanted},
            "evidence": ", ".join(f"{region} {count} of {wanted}" for region, count in done.items()),
        },
        {
            "claim": "every step has one outcome, by the same attempts in every region",
            "held": len(views) == 1,
            "evidence": f"{len(views)} view(s) in {len(records)} region(s)",
        },
        {
            "claim": "all regions hold the same commits and show the same digest",
            "held": agree(rows),
            "evidence": ", ".join(f"{region} {row['digest'][:12]}" for region, row in rows.items()),
        },
        {
            "claim": "no step started before its parents were done in the view of the region that ran it",
            "held": not any(wrong.values()),
            "evidence": f"{looked_at} parents of {sum(len(log.claims) for log in logs.values()) // len(logs)} attempts"
            + (f"; {first_wrong}" if first_wrong else ""),
        },
    ]


def winner_region(record: dict[str, Any]) -> str:
    """Where the attempt that counts ran."""
    by_number = {attempt["number"]: str(attempt["region"]) for attempt in record["attempts"]}
    return by_number.get(record["winner"], "none")


def print_report(result: dict[str, Any]) -> None:
    def line(name: str, text: str) -> None:
        print(f"{name:<16} {text}")

    def counts(of: dict[str, int]) -> str:
        return ", ".join(f"{name} {count}" for name, count in of.items()) or "none"

    line(
        "workflow", f"{result['workflow']}: {result['steps']} steps, {result['edges']} edges, {result['levels']} levels"
    )
    line("makespan", f"{result['makespan_s']:.1f} s, at {result['speedup']:g} times the recorded speed")
    line("critical path", f"{result['critical_path_s']:.1f} s")
    line("all work", f"{result['total_s']:.1f} s, on {result['slots']} slots")
    line("at best", f"{result['bound_s']:.1f} s, as no scheduler could beat it")
    line("tasks", counts(result["tasks_per_region"]))
    line("attempts", counts(result["attempts_per_region"]))
    line("takeovers", str(result["takeovers"]))
    line("conflicts", counts(result["conflicts"]))
    for note in result["notes"]:
        line("", note)
    for check in result["checks"]:
        line("ok" if check["held"] else "FAILED", f"{check['claim']} ({check['evidence']})")


# The command ---------------------------------------------------------------------------------------------------------


class Progress:
    """One line that is rewritten on a terminal; elsewhere a line for each tenth."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._told = -1

    def update(self, run: Run) -> None:
        wanted = len(run.workflow.steps)
        tenth = 10 * len(run.ended) // wanted
        running = {index for seen in run.states.values() for index, state in seen.items() if state == "running"}
        seen = ", ".join(f"{region} sees {len(ended_of(states))}" for region, states in run.states.items())
        cut = f"; cut off: {', '.join(sorted(run.cut_now))}" if run.cut_now else ""
        elapsed = time.monotonic() - run.started_at
        text = f"{elapsed:6.1f} s  {len(run.ended)} of {wanted} done, {len(running - run.ended)} running ({seen}){cut}"
        if self._live:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        elif tenth != self._told:
            print(text, file=sys.stderr, flush=True)
        self._told = tenth

    def finish(self) -> None:
        if self._live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scientific_workflow.py", description="Run a recorded scientific workflow on a cluster of regions."
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="WfFormat JSON or the compact form; may be gzipped")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--node", metavar="URL[,URL...]", help="nodes of a running cluster, all of them")
    where.add_argument("--ready-file", type=Path, metavar="F", help="the ready file of a running `crdtsync dev`")
    parser.add_argument("--regions", default="eu,us,ap", help="of the cluster that is started otherwise [eu,us,ap]")
    parser.add_argument("--slots", type=int, default=16, metavar="N", help="steps at once in each region's worker [16]")
    parser.add_argument("--speedup", type=float, default=100.0, metavar="X", help="run X times as fast [100]")
    parser.add_argument("--region", default="spread", help="who owns the steps: spread, here, or a region [spread]")
    parser.add_argument("--partition", choices=["takeover", "wait"], default="takeover", help="[takeover]")
    parser.add_argument("--submit-to", metavar="REGION", help="where to submit [the first region]")
    parser.add_argument(
        "--cut",
        type=Cut.parse,
        action="append",
        default=[],
        metavar="REGION@FROM%..TO%",
        help="cut a region off while so many percent of the steps are done; 0%% is before the submission",
    )
    parser.add_argument("-o", "--output", choices=["table", "json"], default="table", help="how to print the report")
    options = parser.parse_args(arguments)
    if not options.speedup > 0:
        parser.error("--speedup must be above 0")
    if options.slots < 1:
        parser.error("--slots must be at least 1")
    return options


@contextlib.asynccontextmanager
async def urls_of(options: argparse.Namespace) -> AsyncIterator[list[str]]:
    """The nodes that were named, or those of a cluster of our own."""
    if options.node:
        yield options.node.split(",")
    elif options.ready_file:
        yield [node["url"] for node in json.loads(options.ready_file.read_text())["nodes"].values()]
    else:
        with tempfile.TemporaryDirectory(prefix="crdtsync-workflow-") as folder:
            regions = options.regions.split(",")
            print(f"starting {', '.join(regions)} on this machine", file=sys.stderr)
            async with dev_cluster(f"{HERE}:app", Path(folder), regions=regions, concurrency=options.slots) as cluster:
                yield list(cluster.urls.values())


async def run_workflow(workflow: Workflow, options: argparse.Namespace) -> dict[str, Any]:
    async with urls_of(options) as urls, contextlib.AsyncExitStack() as stack:
        connected = [await stack.enter_async_context(Client(url)) for url in urls]
        clients = {client.region: client for client in connected}
        options.submit_to = options.submit_to or connected[0].region
        for region in {options.submit_to, *(cut.region for cut in options.cut)}:
            if region not in clients:
                raise NoProgressError(f"no node of {region} was given; there are {', '.join(sorted(clients))}")
        run = Run(workflow, clients, options)
        show = Progress()
        try:
            await run.execute(show)
        finally:
            show.finish()
            for region in sorted(run.cut_now):  # whatever happened: nobody else's cluster is left cut
                with contextlib.suppress(CrdtSyncError):
                    await run.heal(region)
        return await report(run)


def main() -> int:
    options = parse_arguments()
    try:
        workflow = read_workflow(options.file)
        result = asyncio.run(run_workflow(workflow, options))
    except (OSError, NotAWorkflowError, NoProgressError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, NoProgressError) else 2
    except CrdtSyncError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    if options.output == "json":
        print(json.dumps(result))
    else:
        print_report(result)
    return 0 if all(check["held"] for check in result["checks"]) else 1


if __name__ == "__main__":
    sys.exit(main())
