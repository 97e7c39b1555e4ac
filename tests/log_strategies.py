"""Writers, events and histories of commits for the tests of the log."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from crdtsync.events import (
    CancelRequested,
    Checkpointed,
    Claimed,
    Declared,
    DocumentUpdated,
    EffectRecorded,
    Ended,
    Event,
    Expired,
    FinalHeads,
    Inherited,
    LabelEdited,
    LimitSet,
    MembersChanged,
    Offered,
    Options,
    PriorityEdited,
    Reissued,
    Requeued,
    RightsBurned,
    RightsInherited,
    RightsMinted,
    RightsMoved,
    Submitted,
    TermOpened,
    Unknown,
    Withdrawn,
    WriterOpened,
)
from crdtsync.identifiers import DEFAULT_DOMAIN, EventId, TaskId, WriterId, writer_id
from crdtsync.log.commit import Commit
from crdtsync.log.domain_log import DomainLog

EPOCH_MS = 1_700_000_000_000
OPTIONS = Options("takeover", 3, 5, 1_000, 60_000, 2_000, "loses", "", 0, 10_000, 86_400_000, ("ValueError",))


def writer(region: str, incarnation: int = 1) -> WriterId:
    return writer_id(region, "a", incarnation, (region * 8).encode()[:8])


EU, US, AP = writer("eu"), writer("us"), writer("ap")


def stamp(ms: int = 0, counter: int = 0) -> int:
    """A stamp `ms` after the tests' epoch."""
    return (EPOCH_MS + ms) << 16 | counter


def task(n: int) -> TaskId:
    return TaskId(n.to_bytes(16))


def expired(n: int = 0) -> Event:
    """The smallest event."""
    return Expired(task(n), late=False)


def apply_all(log: DomainLog, wall_ms: int = EPOCH_MS) -> list[Commit]:
    applied = []
    while (commit := log.next_applicable(wall_ms)) is not None:
        log.mark_applied(commit)
        applied.append(commit)
    return applied


def deliver(log: DomainLog, *commits: Commit, wall_ms: int = EPOCH_MS) -> list[Commit]:
    """Receive the commits and apply what can be; returns what was applied, in order."""
    for commit in commits:
        log.receive(commit.blob, wall_ms)
    return apply_all(log, wall_ms)


ids = st.binary(min_size=16, max_size=16).map(TaskId)
writers = st.builds(
    writer_id,
    st.sampled_from(["eu", "us", "ap-south-1"]),
    st.sampled_from(["a", "b1"]),
    st.integers(0, 999),
    st.binary(min_size=8, max_size=8),
)
counts = st.integers(0, 2**53 - 1)
texts = st.text(max_size=8)
event_ids = st.builds(EventId, st.integers(0, 2**63 - 1), writers, st.integers(1, 2**53 - 1), st.integers(0, 2**20 - 1))
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.binary(max_size=9) | texts,
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=12,
)
options = st.builds(
    Options,
    st.sampled_from(["wait", "takeover", "quorum"]),
    counts,
    counts,
    counts,
    counts,
    counts,
    st.sampled_from(["wins", "loses"]),
    texts,
    counts,
    counts,
    counts,
    st.lists(texts, max_size=2).map(tuple),
)
names = st.text(min_size=1, max_size=8)
regions = st.sampled_from(["eu", "us", "ap-south-1"])
region_sets = st.sets(regions, min_size=1).map(lambda names: tuple(sorted(names)))
priorities = st.integers(0, 9)
maybe_id = st.none() | event_ids
targets = st.sampled_from(["queue:", "task:", "key:"]).flatmap(lambda kind: texts.map(lambda name: kind + name))
limit_sets = st.builds(
    lambda id, target, scope, amount, period_ms, origin, founders: LimitSet(
        id, target, "rate" if period_ms else "concurrency", scope, amount, period_ms, origin, founders
    ),
    ids,
    targets,
    st.sampled_from(["region", "global", "none"]),
    counts,
    counts,
    st.just("operator") | texts.map(lambda app: f"app:{app}"),
    st.sets(regions, min_size=1).map(lambda names: tuple(sorted(names))),
)
events: st.SearchStrategy[Any] = st.one_of(
    st.builds(
        Submitted,
        ids,
        names,
        st.binary(max_size=9),
        regions,
        texts,
        priorities,
        counts,
        counts,
        texts,
        counts,
        st.dictionaries(texts, texts, max_size=3).map(lambda d: tuple(sorted(d.items()))),
        st.lists(st.tuples(ids, st.booleans()), max_size=2).map(tuple),
        st.none() | st.tuples(ids, event_ids, st.binary(max_size=9)),
        st.none() | ids,
        options,
    ),
    st.builds(TermOpened, ids, counts, maybe_id),
    st.builds(Offered, ids, counts, regions, st.sampled_from(["drain", "unserved"])),
    st.builds(Withdrawn, ids, event_ids),
    st.builds(
        Claimed,
        ids,
        counts,
        event_ids,
        maybe_id,
        st.booleans(),
        st.lists(event_ids, max_size=2).map(tuple),
        st.lists(st.tuples(ids, event_ids), max_size=2).map(tuple),
        counts,
    ),
    st.builds(EffectRecorded, ids, event_ids, texts, st.binary(max_size=9), st.binary(max_size=9)),
    st.builds(Checkpointed, ids, event_ids, counts, st.binary(max_size=9)),
    st.builds(
        Ended,
        ids,
        event_ids,
        st.sampled_from(["ok", "failed", "lost"]),
        st.booleans(),
        st.booleans(),
        texts,
        st.binary(max_size=9),
    ),
    st.builds(CancelRequested, ids, st.booleans(), texts),
    st.builds(Expired, ids, st.booleans()),
    st.builds(Requeued, ids, st.integers(1, 99)),
    st.builds(PriorityEdited, ids, priorities, maybe_id),
    st.builds(LabelEdited, ids, texts, texts, maybe_id),
    st.builds(DocumentUpdated, ids | st.just(b""), texts, st.binary(max_size=9)),
    st.builds(Declared, names, texts, texts, priorities, options),
    st.builds(WriterOpened, writers | st.just(""), counts, counts),
    st.builds(
        MembersChanged,
        st.integers(0, 9),
        st.integers(2, 99),
        region_sets,
        st.sampled_from(["add", "admit", "forget"]),
        region_sets,
        st.sampled_from(["", "ws://127.0.0.1:7501"]),
        st.booleans(),
    ),
    st.builds(
        FinalHeads,
        st.integers(0, 9),
        st.integers(1, 99),
        st.dictionaries(writers, st.integers(1, 99), max_size=3).map(lambda heads: tuple(sorted(heads.items()))),
    ),
    st.builds(Inherited, ids, counts, regions, st.integers(1, 99)),
    limit_sets,
    st.builds(RightsMinted, ids, counts, event_ids),
    st.builds(RightsMoved, ids, writers, counts),
    st.builds(RightsBurned, ids, counts),
    st.builds(RightsInherited, ids, regions),
    st.builds(
        lambda closed, first, more, late, tasks: Reissued(
            closed,
            first,
            first + more,
            tuple(sorted({(first + n % (more + 1), i) for n, i in late})),
            tuple(sorted(tasks)),
        ),
        writers,
        st.integers(1, 99),
        st.integers(0, 99),
        st.sets(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=3),
        st.sets(ids, max_size=3),
    ),
    st.builds(Unknown, st.integers(1_000, 65_535), st.lists(plain, max_size=3).map(tuple)),
)


@dataclass
class History:
    """What some writers wrote while they heard of each other now and then."""

    commits: list[Commit] = field(default_factory=list)
    past: dict[tuple[WriterId, int], frozenset[tuple[WriterId, int]]] = field(default_factory=dict)


@st.composite
def histories(draw: st.DrawFn, writers_max: int = 4, steps_max: int = 16) -> History:
    """Commits of several writers with their true causal pasts, kept beside the log as a witness."""
    names = [writer(f"r{n}") for n in range(draw(st.integers(1, writers_max)))]
    logs = {name: DomainLog(DEFAULT_DOMAIN, name) for name in names}
    seen: dict[WriterId, set[tuple[WriterId, int]]] = {name: set() for name in names}
    history = History()
    for step in range(draw(st.integers(1, steps_max))):
        who = draw(st.sampled_from(names))
        # Hears of some commits, usually recent ones, each with its past, as anti-entropy brings it; then writes.
        for back in draw(st.lists(st.integers(1, 4), max_size=2)):
            heard = history.commits[-back % len(history.commits)] if history.commits else None
            if heard is None:
                continue
            wanted = history.past[heard.writer, heard.number] | {(heard.writer, heard.number)}
            for commit in history.commits:
                if (commit.writer, commit.number) in wanted:
                    deliver(logs[who], commit)
            seen[who] |= wanted
        commit = logs[who].append([expired(step)], stamp(step))
        history.past[who, commit.number] = frozenset(seen[who])
        seen[who].add((who, commit.number))
        history.commits.append(commit)
    return history
