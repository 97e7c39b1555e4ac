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

import asyncio
import gzip
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from crdtsync import App

app = App("workflow")


@app.task(name="step")
async def step(ctx, ms: int) -> None:
    """Stand in for a program that runs for `ms` milliseconds."""
    await asyncio.sleep(ms / 1000)


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


def read_compact(tasks: list[list]) -> list[Step]:
    """`[id, name, runtime in seconds, [indexes of parents], ...]` for each task; what follows is not needed here."""
    steps = [Step(str(row[0]), float(row[2]), tuple(dict.fromkeys(row[3]))) for row in tasks]
    for step in steps:
        for parent in step.parents:
            if not 0 <= parent < len(steps):
                raise NotAWorkflowError(f"step {step.name!r} has parent number {parent} of {len(steps)} tasks")
    return steps


def read_wfformat(workflow: dict) -> list[Step]:
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

    def runtime_s(task: dict) -> float:
        row = recorded.get(task.get("id"), task)
        value = row.get("runtimeInSeconds", row.get("runtime"))
        if value is None:
            raise NotAWorkflowError(f"no run time was recorded for step {task.get('id', task['name'])!r}")
        return max(0.0, float(value))

    return [
        Step(name, runtime_s(task), tuple(before)) for name, task, before in zip(names, tasks, parents, strict=True)
    ]
