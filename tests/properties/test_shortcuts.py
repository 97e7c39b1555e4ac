"""Paths that are taken because they are quick lead where the plain ones lead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from hypothesis import example, given, settings
from hypothesis import strategies as st

from crdtsync import commands as c
from crdtsync import tasks
from crdtsync.duties import Duties
from crdtsync.identifiers import DEFAULT_DOMAIN
from crdtsync.log.digest import NOTHING, Digest
from crdtsync.resolve import count_failures, resolve
from crdtsync.task_view import view_hash
from crdtsync.tasks import TaskTable
from tests.cluster import Cluster, Node, Outcome, succeed
from tests.properties.story import Story
from tests.properties.test_join_laws import facts_of, histories

REGIONS = ("eu", "us")
TASKS = {
    "noop": succeed,
    "fails": lambda _: Outcome("failed", retryable=False),
    "slow": lambda _: Outcome(after_ms=700),
    "charge": lambda _: Outcome(effects={"card": 1}, after_ms=400),
    "breaks": lambda _: Outcome("failed", effects={"card": 1}, after_ms=400),
    "refund": succeed,
}
DECLARED = {"charge": {"compensate": "refund"}, "breaks": {"compensate": "refund", "cancel": "loses"}}
# A task: where, which, on which earlier one it depends and whether it waits until that has settled, how long after.
scripts = st.lists(
    st.tuples(
        st.sampled_from(REGIONS),
        st.sampled_from([name for name in TASKS if name != "refund"]),
        st.none() | st.integers(0, 3),
        st.booleans(),
        st.sampled_from([0, 50, 600]),
    ),
    min_size=1,
    max_size=5,
)


@contextmanager
def every_review_in_full() -> Iterator[None]:
    review = Duties.review

    def in_full(self: Duties, task: Any) -> None:
        task.rests = False
        review(self, task)

    with (
        mock.patch.object(Duties, "review", in_full),
        mock.patch.object(Duties, "_simply_runs", return_value=False),
        mock.patch.object(tasks, "grown", return_value=None),
    ):
        yield


def _await(node: Node, task: bytes, ticket: int, *, settled: bool) -> None:
    node.feed(lambda replica: replica.submit(c.Await(task, settled=settled), node.now, ticket))


def played(script: list[Any], *, cut: bool, cancel: bool) -> Any:
    """What is seen of two regions that run these tasks: what waits hear and when, what ran, what the tasks become."""
    cluster = Cluster(*REGIONS, tasks=TASKS, declare=DECLARED, ended_kept_max=1)
    made: list[bytes] = []
    waits: list[tuple[Any, int]] = []
    if cut:
        cluster.isolate("us")
    for region, name, parent, settled, after_ms in script:
        options: dict[str, Any] = {"partition": "wait"} if name == "slow" else {}
        if parent is not None and parent < len(made) and cluster.nodes[region].replica is not None:
            known = [task for task, (home, *_) in zip(made, script, strict=False) if home == region]
            if known:
                options["after_settled" if settled else "after"] = (known[parent % len(known)],)
        made.append(cluster.submit(region, name, **options))
        ticket = cluster.ticket()
        node = cluster.nodes[region]
        _await(node, made[-1], ticket, settled=settled)
        waits.append((node, ticket))
        cluster.run_for(after_ms)
    if cancel:
        cluster.nodes[script[0][0]].ask(c.Cancel(made[0]))
    cluster.run_for(2_000)
    cluster.heal()
    cluster.run_for(20_000)
    heard = [[reply.value for reply in node.answers.get(ticket, [])] for node, ticket in waits]
    seen = [cluster.show(region, task) for region in REGIONS for task in made]
    return (
        heard,
        seen,
        cluster.started,
        cluster.digests(),
        [len(node.replica._here.table) for node in cluster.nodes.values()],
    )


@settings(max_examples=30, deadline=None)
@given(scripts, st.booleans(), st.booleans())
@example([("eu", "breaks", None, False, 0)], False, True)  # what was charged is given back once the cancel has settled
def test_short_reviews_do_what_full_ones_do(script, cut, cancel):
    quick = played(script, cut=cut, cancel=cancel)
    with every_review_in_full():
        assert played(script, cut=cut, cancel=cancel) == quick


@settings(max_examples=20, deadline=None)
@given(scripts, st.booleans())
def test_a_digest_that_is_made_when_asked_for_is_that_of_all_tasks(script, cut):
    cluster = Cluster(*REGIONS, tasks=TASKS, ended_kept_max=1)
    if cut:
        cluster.isolate("us")
    for region, name, _, _, after_ms in script:
        cluster.submit(region, name)
        cluster.run_for(after_ms)
    for node in cluster.nodes.values():
        node.ask(c.ListTasks())  # every row is on disk after this
        rows = {row.task: row.digest for row in node.store._rows.values()}
        table = node.replica._here.table
        shares = rows | {task.id: view_hash(task.id, resolve(task.facts)) for task in table}
        whole = Digest()
        for share in shares.values():
            whole.replace(NOTHING, share)
        assert whole == table.digest


@given(histories, st.randoms(use_true_random=False))
def test_a_view_that_grows_with_its_task_is_the_one_that_its_facts_resolve_to(history, rng):
    shuffled = list(history)
    for pairs in (history, rng.sample(shuffled, len(shuffled))):
        table = TaskTable(DEFAULT_DOMAIN)
        for event_id, event in pairs:
            task = table.add(event_id, event)
            assert table.view(task) == resolve(task.facts)


@given(st.sampled_from(["ok", "failed", "lost"]), st.booleans(), st.booleans(), st.booleans())
def test_a_task_that_simply_runs_grows_into_what_it_resolves_to(outcome, late, effect, other):
    story = Story()
    table = TaskTable(DEFAULT_DOMAIN)
    story.submit()
    claim = story.claim()
    if effect:
        story.effect(claim, "charge")
    story.end(claim, outcome, late=late)
    if other:
        story.submit(payload=b"other")
    for event_id, event in sorted(story.facts.events(), key=lambda pair: pair[0]):
        task = table.add(event_id, event)
        assert table.view(task) == resolve(task.facts)


@given(histories)
def test_failures_that_are_not_counted_are_none(history):
    view = resolve(facts_of(history))
    if view.submitted is not None and view.attempts and not (view.winner is not None and len(view.attempts) == 1):
        counted = count_failures(view.attempts, view.submitted.options)
        assert (view.failures, view.lost, view.deaths, view.streak, view.failed_at) == counted
