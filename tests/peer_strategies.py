"""Hypothesis strategies for what peers say to each other."""

from __future__ import annotations

from hypothesis import strategies as st

from crdtsync.coordination.lease import Answer, Ask, Refusal, Step
from crdtsync.effects import TaskRow
from crdtsync.identifiers import DEFAULT_DOMAIN, Domain, RegionId, TaskId, writer_id
from crdtsync.protocol import peer_messages as m

NAMES = ("ap", "eu", "us")

numbers = st.integers(0, 2**53 - 1)
positives = st.integers(1, 2**53 - 1)
walls = st.integers(-(2**53) + 1, 2**53 - 1)
regions = st.sampled_from(NAMES).map(RegionId)
writers = st.builds(
    writer_id, st.sampled_from(NAMES), st.just("n"), st.integers(0, 9), st.binary(min_size=8, max_size=8)
)
domains = st.sampled_from([DEFAULT_DOMAIN, Domain("billing")])
texts = st.text(st.characters(codec="utf-8"), max_size=20)
blobs = st.binary(max_size=50)
vectors = st.dictionaries(writers, positives, max_size=4).map(lambda last: tuple(sorted(last.items())))
deltas = st.builds(m.VectorDelta, st.booleans(), st.lists(st.tuples(writers, numbers), max_size=4).map(tuple))
runs = st.builds(m.Run, writers, numbers, st.lists(blobs, max_size=3).map(tuple))
beats = st.builds(m.Beat, regions, numbers, numbers, numbers)
digests = st.one_of(st.just(b""), st.binary(min_size=16, max_size=16))
own_heads = st.builds(m.OwnHeads, domains, vectors, st.none() | st.tuples(writers, numbers, vectors))


scopes = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
steps = st.sampled_from([int(step) for step in Step])
lease_ms = st.integers(0, m.LEASE_MS_MAX)
refusals = st.sampled_from([str(refusal) for refusal in Refusal])
asks = st.builds(Ask, scopes, steps, numbers, numbers, numbers, lease_ms)
answers = st.builds(
    Answer,
    scopes,
    steps,
    numbers,
    numbers,
    refusals,
    numbers,
    st.just("") | regions,
    numbers,
    lease_ms,
    st.booleans(),
)


def _tuples(items: st.SearchStrategy, max_size: int = 3) -> st.SearchStrategy:
    return st.lists(items, max_size=max_size).map(tuple)


def _rows(domain: Domain) -> st.SearchStrategy:
    return st.builds(
        TaskRow,
        st.just(domain),
        st.binary(min_size=16, max_size=16).map(TaskId),
        texts,
        texts,
        texts,
        st.booleans(),
        st.booleans(),
        texts,
        walls,
        numbers,
        _tuples(st.tuples(texts, texts)),
        digests,
        blobs,
    )


small_talk = st.one_of(
    st.builds(m.HeadsHeard, domains, numbers, numbers, numbers, _tuples(regions), deltas, deltas, deltas, digests),
    st.builds(m.Credit, numbers),
    st.builds(m.AckHeard, domains, regions, writers, numbers, deltas, numbers),
    st.builds(m.Ping, numbers, walls, numbers, numbers, _tuples(beats)),
    st.builds(m.Pong, numbers, walls, walls, walls),
)
commits = st.builds(m.Commits, domains, numbers, _tuples(runs))
bundles = st.builds(
    lambda told, data: m.Bundle((*told, *data)),
    st.lists(small_talk, min_size=1, max_size=3),
    st.lists(commits, max_size=1),
)

demands = st.builds(m.Demand, st.binary(min_size=16, max_size=16), numbers, numbers, numbers, numbers, st.booleans())
messages = st.one_of(
    bundles,
    st.builds(m.Hello, numbers, texts, regions, writers, numbers, numbers, _tuples(domains), numbers),
    st.builds(m.HelloRefused, texts, texts),
    st.builds(m.HeadsHeard, domains, numbers, numbers, numbers, _tuples(regions), deltas, deltas, deltas, digests),
    st.builds(m.Commits, domains, numbers, _tuples(runs)),
    st.builds(m.Credit, numbers),
    st.builds(m.AckHeard, domains, regions, writers, numbers, deltas, numbers),
    st.builds(m.Ping, numbers, walls, numbers, numbers, _tuples(beats)),
    st.builds(m.Pong, numbers, walls, walls, walls),
    st.builds(m.MustSnapshot, domains, vectors),
    st.builds(m.SnapshotRequest, domains),
    domains.flatmap(lambda d: st.builds(m.SnapshotChunk, st.just(d), numbers, _tuples(_rows(d)))),
    st.builds(m.SnapshotState, domains, numbers, blobs),
    st.builds(m.SnapshotEnd, domains, numbers, numbers, vectors, vectors, digests),
    st.builds(m.OwnHeadsQuestion, writers, numbers, _tuples(regions)),
    st.builds(m.OwnHeadsAnswer, writers, regions, _tuples(own_heads)),
    st.builds(m.Bye, texts),
    st.builds(m.SynodPrepare, numbers, numbers, numbers, writers),
    st.builds(m.SynodPromise, numbers, numbers, numbers, writers, numbers, writers | st.just(""), blobs),
    st.builds(m.SynodAccept, numbers, numbers, numbers, writers, blobs),
    st.builds(m.SynodAccepted, numbers, numbers, numbers, writers),
    st.builds(m.SynodRefused, numbers, numbers, numbers, writers, numbers, writers),
    st.builds(m.SynodNotNow, numbers, numbers, numbers, numbers, numbers),
    st.builds(m.LeaseAsks, numbers, numbers, _tuples(asks)),
    st.builds(m.LeaseAnswers, numbers, numbers, _tuples(answers), vectors),
    st.builds(m.LeasesFreed, _tuples(scopes)),
    st.builds(m.LimitDemands, domains, _tuples(demands)),
)
