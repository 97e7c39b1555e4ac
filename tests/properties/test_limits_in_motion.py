"""One global limit over a cluster whose members come and go at random, while links are cut and nodes die."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest

from crdtsync import commands as c
from crdtsync.coordination.membership import Membership
from crdtsync.identifiers import RegionId
from tests.cluster import AskError, Cluster, Outcome
from tests.crdtsync.test_limits import Watch

STEPS = 24
STEP_MS = 10
WORK_MS = 300
QUEUE = "billing"


class Story:
    """One random history. At each moment no more runs, everywhere together, than the most that anybody has set."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.cluster = Cluster(
            "eu",
            "us",
            "ap",
            "sa",
            tasks={"work": lambda _: Outcome(after_ms=WORK_MS)},
            declare={"work": {"queue": QUEUE}},
            lease_ms=400,
            lost_after_ms=1_500,
        )
        self.watch = Watch(self.cluster)
        self.joiners = ["na", "za"]
        self.known: dict[str, int] = {}  # region -> when it heard of the limit
        self.stopped: set[str] = set()  # for good: nobody starts these again
        self.ceiling = 0
        self.changes = 0
        self.created = self.rng.random() < 0.5
        if self.created:
            self.limit("eu")
            self.run_for(3_000)

    def membership(self, region: str) -> Membership:
        return self.cluster.membership(region)

    def up(self) -> list[str]:
        nodes = self.cluster.nodes
        alive = [region for region, node in nodes.items() if node.replica is not None]
        lost = {other for region in alive for other in nodes if self.membership(region).has_lost(other)}
        return [r for r in alive if r not in lost and self.membership(r).is_member(r)]

    def run_for(self, ms: int) -> None:
        """Whatever was started where the limit was known counts; elsewhere there is none yet."""
        for _ in range(ms // STEP_MS):
            self.cluster.run_for(STEP_MS)
            for region, node in self.cluster.nodes.items():
                if region not in self.known and node.replica is not None and len(node.replica._here.limits):
                    self.known[region] = self.cluster.time_ms
            running = {
                region: self.watch.running(region)
                for region, since_ms in self.known.items()
                if self.cluster.time_ms > since_ms + WORK_MS + STEP_MS
            }
            assert sum(running.values()) <= self.ceiling, running

    def limit(self, at: str) -> None:
        amount = self.rng.randint(2, 9)
        before, self.ceiling = self.ceiling, max(self.ceiling, amount)
        if not self.ask(at, c.SetLimit(c.LimitDeclaration(f"queue:{QUEUE}", concurrency=amount))):
            self.ceiling = before

    def ask(self, at: str, command: object) -> bool:
        try:
            self.cluster.nodes[RegionId(at)].ask(command)
        except AskError:
            return False
        return True

    def flood(self, regions: list[str], count: int) -> None:
        for n in range(count):
            with suppress(AskError):  # a region that has just heard that it was forgotten takes no work
                self.cluster.submit(self.rng.choice(regions), "work", n)

    def step(self) -> None:
        cluster, rng = self.cluster, self.rng
        up = self.up()
        if not up:
            return
        at = rng.choice(up)
        match rng.choice(
            ("flood", "flood", "limit", "cut", "isolate", "heal", "crash", "restart", "forget", "stop", "join")
        ):
            case "flood" if self.ceiling:
                self.flood([at], rng.randint(5, 30))
            case "limit":
                self.limit(at)
            case "cut":
                cluster.cut(*rng.sample(sorted(cluster.nodes), 2))
            case "isolate":
                cluster.isolate(at)
            case "heal":
                cluster.heal()
            case "crash" if len(up) > 2:
                cluster.crash(at)
            case "restart":
                for region, node in cluster.nodes.items():
                    if node.replica is None and region not in self.stopped and rng.random() < 0.5:
                        cluster.restart(region)
            case "forget" if len(up) > 2:  # it may run on, cut off
                other = rng.choice([region for region in cluster.nodes if region != at])
                self.changes += self.ask(at, c.ForgetRegion((other,)))
            case "stop" if len(up) > 2:
                other = rng.choice([region for region in up if region != at])
                cluster.crash(other)
                for worker in list(cluster.nodes[RegionId(other)].workers.values()):
                    worker.kill()
                self.stopped.add(other)
                self.run_for(2_000)
                self.changes += self.ask(at, c.ForgetRegion((other,), True))
            case "join" if self.joiners:
                name = self.joiners[0]
                if self.ask(at, c.AddRegion(name)):
                    self.changes += 1
                    self.joiners.pop(0)
                    cluster.join(name, *up, worker=True)
        self.run_for(rng.choice((20, 200, 1_000)))

    def rest(self) -> None:
        """Everything heals, and the limit is still kept."""
        self.cluster.heal()
        for region, node in self.cluster.nodes.items():
            if node.replica is None and region not in self.stopped:
                self.cluster.restart(region)
        self.run_for(3_000)
        if up := self.up():
            self.limit(self.rng.choice(up))
            self.run_for(500)
            self.flood(up, 60)
        self.run_for(6_000)


@pytest.mark.parametrize("seed", range(4))
def test_no_more_runs_than_was_ever_set_whoever_comes_and_goes(seed: int) -> None:
    story = Story(seed)
    for _ in range(STEPS):
        story.step()
    story.rest()


@pytest.mark.slow
def test_it_holds_over_many_histories() -> None:
    changes = 0
    for seed in range(100, 160):
        story = Story(seed)
        for _ in range(STEPS):
            story.step()
        story.rest()
        changes += story.changes
    assert changes > 60
