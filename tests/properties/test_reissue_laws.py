"""Re-issued commits, in whatever order everything arrives, and whatever was applied of them before: one state."""

from __future__ import annotations

from random import Random
from typing import Any, Final

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from crdtsync import commands as c
from crdtsync.clock import Now
from crdtsync.events import TASK_EVENTS, Reissued
from crdtsync.identifiers import EventId, RegionId, TaskId, region_of
from crdtsync.log.commit import Commit, decode_commit
from crdtsync.protocol.codec import encode_value
from crdtsync.region import RegionState
from crdtsync.settings import Settings
from crdtsync.undoing import effect_key
from tests.cluster import EPOCH_MS, AskError, Cluster, Outcome, now_or_never

YEAR_2099_MS = 4_070_908_800_000 - EPOCH_MS
REGIONS = ("eu", "us", "ap")
REFUSALS: Final = ("not_found", "conflict", "unavailable", "overloaded")  # for what a region does not know, or not yet
EXAMPLES: Final = 8  # a story of a minute each
RETENTION_MS = 2 * YEAR_2099_MS  # nothing leaves the log
NOW = Now(EPOCH_MS + 86_400_000, 0)  # of whoever looks at it a day later


def story(rng: Random, wrong: tuple[str, ...]) -> tuple[Cluster, dict[str, list[TaskId]]]:
    """Some regions live in the year 2099 for a while, do what users ask for, and are repaired in some order."""

    def handler(assignment: Any) -> Outcome:
        outcome = "failed" if assignment.payload and assignment.payload[-1] % 3 == assignment.number else "ok"
        return Outcome(outcome, value=assignment.number, after_ms=50, effects={f"e{assignment.number}": 1})

    tasks = {"work": handler, "undo": lambda _: Outcome()}
    declare = {"work": {"compensate": "undo", "backoff_ms_base": 20}}
    cluster = Cluster(*REGIONS, tasks=tasks, declare=declare, retention_ms=RETENTION_MS)
    accepted: dict[str, list[TaskId]] = {region: [] for region in REGIONS}

    def act(region: str) -> None:
        known = [task for tasks in accepted.values() for task in tasks]
        kind = rng.choice(("submit", "submit", "edit", "cancel", "limit", "wait"))
        try:
            if kind == "submit" or not known:
                payload = encode_value([[rng.randint(0, 5)], {}])
                spec = c.TaskSpec(
                    name="work",
                    payload=payload,
                    region=rng.choice(wrong),
                    partition=rng.choice(("takeover", "wait")),
                )
                (answer,) = cluster.nodes[RegionId(region)].ask(c.Submit((spec,)))
                accepted[region].append(TaskId(bytes.fromhex(answer["id"])))
            elif kind == "edit":
                cluster.nodes[RegionId(region)].ask(c.Edit(rng.choice(known), labels={"l": rng.choice("xyz")}))
            elif kind == "cancel":
                cluster.nodes[RegionId(region)].ask(c.Cancel(rng.choice(known)))
            elif kind == "limit":
                cluster.nodes[RegionId(region)].ask(
                    c.SetLimit(c.LimitDeclaration("task:work", concurrency=rng.randint(5, 9)))
                )
        except AskError as refused:
            if refused.code not in REFUSALS:
                raise
        cluster.run_for(rng.choice((0, 30, 400, 4_000)))

    if rng.random() < 0.5:
        cluster.nodes[RegionId("eu")].ask(c.SetLimit(c.LimitDeclaration("task:work", concurrency=10)))
    act(wrong[0])
    cluster.run_for(200)
    for region in wrong:
        for other in set(REGIONS) - set(wrong):
            cluster.cut(region, other)
    if len(wrong) > 1 and rng.random() < 0.5:
        cluster.cut(*wrong)  # meet again later, or not
    for region in wrong:
        cluster.nodes[RegionId(region)].wall_offset_ms = YEAR_2099_MS
        cluster.restart(region)
    cluster.run_for(2_500)
    for _ in range(rng.randint(1, 6)):
        act(rng.choice(wrong))
    if len(wrong) > 1 and rng.random() < 0.5:
        cluster._cut.discard(frozenset(wrong))
        cluster.run_for(3_000)
        act(rng.choice(wrong))
    cluster.run_for(1_000)
    cluster.heal()
    cluster.run_for(3_000)
    for region in wrong:
        cluster.nodes[RegionId(region)].wall_offset_ms = 0
    cluster.run_for(3_000)
    for region in rng.sample(wrong, len(wrong)):
        heads = cluster.status(region)["heads"]
        own = sorted((w for w in heads if region_of(w) == region), key=lambda w: int(w.split("#")[1].split("-")[0]))
        cluster.nodes[RegionId(region)].ask(c.ReissueLog(own[1], 1))
        cluster.run_for(rng.choice((0, 40, 4_000)))
        if rng.random() < 0.5:
            cluster.restart(region)
    cluster.run_for(12_000)
    return cluster, accepted


def commits_of(cluster: Cluster, region: str) -> list[Commit]:
    store = cluster.nodes[RegionId(region)].store

    async def read() -> list[Commit]:
        return [decode_commit(blob) async for blobs in store.commits_beyond("default", {}) for blob in blobs]  # type: ignore[arg-type]

    return now_or_never(read())


class Observer:
    """Folds commits as a replica does, in memory alone. Its clock may be in 2099 as well, for a while."""

    def __init__(self) -> None:
        members = tuple(RegionId(region) for region in ("xx", *REGIONS))
        node = Settings(cluster="test", region=members[0], node="a", members=members)
        self.here = RegionState(node, "xx/a#1-0000000000000001", NOW)  # type: ignore[arg-type]

    def take(self, commit: Commit, wall_ms: int) -> None:
        self.here.log.receive(commit.blob, wall_ms)
        self.apply(wall_ms)

    def apply(self, wall_ms: int) -> None:
        while (commit := self.here.log.next_applicable(wall_ms)) is not None:
            for index, event in enumerate(commit.events):
                self.here.fold(EventId(commit.stamp, commit.writer, commit.number, index), event)
            self.here.log.mark_applied(commit)

    def state(self) -> Any:
        table = self.here.table
        tasks = {task.id: (task.facts, table.view(task)) for task in table}
        return tasks, bytes(table.digest), self.here.limits.export(), self.here.declared


@settings(max_examples=EXAMPLES, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(seed=st.integers(0, 2**32), wrong=st.sampled_from([("ap",), ("us", "ap")]))
def test_in_any_order_and_whatever_was_applied_before_reissued_commits_make_one_state(seed, wrong) -> None:
    rng = Random(seed)
    cluster, accepted = story(rng, wrong)
    assert cluster.converge()
    assert not [notice for notice in cluster.alarms() if notice.what == "gossip.divergence"]
    commits = commits_of(cluster, "eu")
    assert any(isinstance(event, Reissued) for commit in commits for event in commit.events)
    states = []
    for _ in range(3):
        order = rng.sample(commits, len(commits))
        misled = rng.randint(0, len(order))  # so many arrive while its own clock is in 2099 too
        observer = Observer()
        for place, commit in enumerate(order):
            observer.take(commit, NOW.wall_ms + (YEAR_2099_MS + 10**9 if place < misled else 0))
        observer.apply(NOW.wall_ms)
        assert observer.here.log.applied == observer.here.log.have, "nothing is held back for good"
        states.append(observer.state())
    assert states[1:] == states[:-1]
    tasks, digest, _, _ = states[0]
    eu = cluster.nodes[RegionId("eu")].replica
    assert eu is not None
    assert digest == bytes(eu._here.table.digest)
    # Every fact is there once, under the name that it was written with; nothing that was accepted is lost.
    written: dict[TaskId, set[str]] = {}
    for commit in commits:
        for index, event in enumerate(commit.events):
            if type(event) in TASK_EVENTS:
                written.setdefault(event.task, set()).add(commit.event_id(index).name)  # type: ignore[union-attr]
    assert {task: sorted(id.name for id, _ in facts.events()) for task, (facts, _) in tasks.items()} == {
        task: sorted(names) for task, names in written.items()
    }
    assert all(task in tasks for region in REGIONS for task in accepted[region])
    # And the key under which a sink met an effect is still the one that derives from its attempt.
    for task, (_, view) in tasks.items():
        for attempt in view.attempts:
            assert all(event.key == effect_key(task, attempt.root, event.name) for _, event in attempt.effects)
