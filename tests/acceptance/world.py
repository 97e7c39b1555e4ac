"""What the shared world of `exclusive_app` saw, judged with nothing but its own diary and the deeds of the harm."""

import contextlib
import pathlib
from collections import defaultdict
from dataclasses import dataclass

from tests.acceptance import exclusive_app


@dataclass(frozen=True)
class Ran:
    """A time in which one handler acted, by a clock that all processes share."""

    scope: str
    token: int
    task: str
    attempt: str
    region: str
    pid: int
    began: float
    ended: float  # or its process was killed, or stopped for longer than a lease


@dataclass
class Harmed:
    """When processes were killed, or stopped and continued, by process id; and those of each region."""

    killed: dict
    stopped: list  # (pid, from, until)

    def ends_at(self, pid, began):
        """When a handler in `pid` can have acted last, by what was done to its process: None if nothing was."""
        moments = [self.killed[pid]] if pid in self.killed else []
        moments += [at for stopped, at, until in self.stopped if stopped == pid and until > began]
        return min(moments, default=None)


class World:
    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def _rows(self, query):
        with contextlib.closing(exclusive_app.world(self.path)) as connection:
            return connection.execute(query).fetchall()

    def accepted(self):
        """Tokens that the sink which checks fences accepted, in order, by scope."""
        tokens = defaultdict(list)
        for scope, token in self._rows("SELECT scope, token FROM arrived WHERE accepted ORDER BY place"):
            tokens[scope].append(token)
        return tokens

    def refused(self):
        return self._rows("SELECT scope, token, task, attempt FROM arrived WHERE NOT accepted ORDER BY place")

    def arrived(self, task):
        """(token, region, whether it was accepted) of each call of a task, in order."""
        query = "SELECT token, region, accepted FROM arrived WHERE task = '{}' ORDER BY place"
        return [(token, region, bool(accepted)) for token, region, accepted in self._rows(query.format(task))]

    def begun(self, task):
        """(token, region) of each time in which a handler of a task began to act."""
        return self._rows(f"SELECT token, region FROM ran WHERE task = '{task}' ORDER BY began")

    def landed(self):
        """Tasks whose effect the sink which checks fences accepted."""
        return {task for (task,) in self._rows("SELECT DISTINCT task FROM arrived WHERE accepted")}

    def taken(self):
        """By task: the keys that the sink which deduplicates took."""
        keys = defaultdict(list)
        for key, task in self._rows("SELECT key, task FROM taken"):
            keys[task].append(key)
        return keys

    def repeats(self):
        return self._rows("SELECT coalesce(sum(repeats), 0) FROM taken")[0][0]

    def ran(self, harmed, until):
        """When handlers acted. One whose process is killed or stopped acts until then: what it does when it goes on, not
        knowing that it stood still, is for fences to refuse."""
        runs = []
        for scope, token, task, attempt, region, pid, began, ended in self._rows(
            "SELECT scope, token, task, attempt, region, pid, began, ended FROM ran ORDER BY began"
        ):
            moments = [until if ended is None else ended]
            if (at := harmed.ends_at(pid, began)) is not None:
                moments.append(max(at, began))
            runs.append(Ran(scope, token, task, attempt, region, pid, began, min(moments)))
        return runs


def overlaps(runs, grace_s=0.0):
    """Pairs that ran in one scope at the same time under two tokens."""
    found, by_scope = [], defaultdict(list)
    for run in runs:
        by_scope[run.scope].append(run)
    for same in by_scope.values():
        open_ = []
        for run in sorted(same, key=lambda run: run.began):
            open_ = [other for other in open_ if other.ended - grace_s > run.began]
            found += [(other, run) for other in open_ if other.token != run.token]
            open_.append(run)
    return found
