"""What notebooks look at: how each region saw a task while time went by, and the graph of its history.

views = Views()
world = World(scenario, seed=7, checkers=(views,))
world.run()
task = views.contested()[0]
views.of(task)["eu"]                 # [(at_s, state), ...]
history(world, task)                 # its commits, with their parents
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from crdtsync.log.commit import decode_commit
from simulator.trace import Record

if TYPE_CHECKING:
    from simulator.world import World

EVERY_US: Final = 250_000  # how often views are taken: each costs as much as a listing of all tasks


class Seen(NamedTuple):
    """A task as one region saw it from some moment on."""

    at_s: float
    state: str
    winner: str  # the region whose attempt counts; "" while none does
    attempts: tuple[tuple[str, str], ...]  # region and state of each


class Views:
    """A checker that judges nothing and remembers what every region showed. Not for large runs.

    Attributes:
        seen: Region -> task in hex -> how it looked, each change once.
    """

    kinds = ("disk.durable",)

    def __init__(self, every_us: int = EVERY_US) -> None:
        self.seen: dict[str, dict[str, list[Seen]]] = {}
        self._every_us = every_us
        self._next_us = 0
        self._world: World | None = None

    def begin(self, world: World) -> None:
        self._world = world

    def on_event(self, record: Record) -> None:
        if record.at_us >= self._next_us:
            self._next_us = record.at_us + self._every_us
            self._look(record.at_s)

    def at_heal(self, world: World) -> None: ...

    def at_end(self, world: World) -> None:
        self._look(world.kernel.now_us / 1_000_000)

    def _look(self, at_s: float) -> None:
        assert self._world is not None
        for region, node in self._world.regions.items():
            if node.replica is None:
                continue
            known = self.seen.setdefault(region, {})
            for task, (view, _) in node.tasks().items():
                winner = next((str(a.region) for a in view.attempts if a.id == view.winner), "")
                attempts = tuple((str(a.region), str(a.state)) for a in view.attempts)
                now = Seen(at_s, str(view.state), winner, attempts)
                changes = known.setdefault(task.hex(), [])
                if not changes or changes[-1][1:] != now[1:]:
                    changes.append(now)

    def of(self, task: str) -> dict[str, list[Seen]]:
        """How each region saw this task."""
        return {region: known.get(task, []) for region, known in self.seen.items()}

    def contested(self) -> list[str]:
        """Tasks of which two regions named different winners, or ran attempts that the other did not know; the most first."""

        def quarrel(task: str) -> int:
            winners = {seen.winner for changes in self.of(task).values() for seen in changes if seen.winner}
            runs = max((len(seen.attempts) for changes in self.of(task).values() for seen in changes), default=0)
            return 10 * len(winners) + runs

        tasks = sorted({task for known in self.seen.values() for task in known})
        return sorted((task for task in tasks if quarrel(task) > 11), key=lambda task: (-quarrel(task), task))


class Moment(NamedTuple):
    """One commit of a task's history."""

    id: str
    region: str
    at_s: float
    events: tuple[str, ...]  # names of what it says about the task; none where branches join
    parents: tuple[str, ...]  # the newest commits of this history that its writer had seen


class _Commit(NamedTuple):
    moment: Moment
    writer: str
    number: int
    heads: dict[str, int]  # what its writer had seen when it wrote it

    def saw(self, other: _Commit) -> bool:
        return self.heads.get(other.writer, 0) >= other.number


def history(world: World, task: str) -> list[Moment]:
    """The commits that say something about a task, in true order, with what happened before what.

    The order is exact: a commit happened before another if the other's writer had seen it (its `deps`), and a parent
    that another parent had seen is left out, as in a drawing of a version history. Where the history forked, the first
    commit of each region that had seen all of it is added, without events: there the branches join.
    """
    commits = _commits(world, task)
    found = [commit for commit in commits if commit.moment.events]
    leaves = [one for one in found if not any(other.saw(one) for other in found if other is not one)]
    joined: set[str] = set()
    moments: list[_Commit] = []
    for commit in commits:
        region = commit.moment.region
        joins = len(leaves) > 1 and region not in joined and all(commit.saw(one) for one in found if one is not commit)
        if commit.moment.events or joins:
            moments.append(commit)
        if joins:
            joined.add(region)
    return [commit.moment._replace(parents=_parents(commit, found)) for commit in moments]


def _commits(world: World, task: str) -> list[_Commit]:
    seen: dict[str, dict[str, int]] = {}  # writer -> what it had seen with its latest commit
    commits = []
    for record in world.trace.of("commit"):
        commit = decode_commit(record.subject.blob)
        heads = dict(seen.get(commit.writer, {}))
        for dep in commit.deps:
            heads[dep.writer] = max(heads.get(dep.writer, 0), dep.number)
        heads[commit.writer] = commit.number - 1
        said = tuple(type(event).__name__ for event in commit.events if _task_of(event) == task)
        moment = Moment(record.id, record.node.partition("~")[0], record.at_s, said, ())
        commits.append(_Commit(moment, commit.writer, commit.number, heads))
        seen[commit.writer] = {**heads, commit.writer: commit.number}
    return commits


def _parents(commit: _Commit, found: list[_Commit]) -> tuple[str, ...]:
    before = [one for one in found if one is not commit and commit.saw(one)]
    return tuple(one.moment.id for one in before if not any(other.saw(one) for other in before if other is not one))


def _task_of(event: object) -> str:
    task = getattr(event, "task", b"")
    return task.hex() if isinstance(task, bytes) else ""


def divergence(world: World) -> Mapping[str, list[float]]:
    """For plotting: seconds, commits that some region lacked of another's, and different states, sample by sample."""
    return {
        "at_s": [sample.at_us / 1_000_000 for sample in world.divergence],
        "missing": [float(sample.missing) for sample in world.divergence],
        "states": [float(sample.states) for sample in world.divergence],
    }
