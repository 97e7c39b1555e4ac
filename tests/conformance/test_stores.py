"""What every `Store` promises, asked of each, and then both driven side by side with the same steps."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from crdtsync.effects import CommitRow, DocumentRow, Persist, Query, TaskRow
from crdtsync.errors import CorruptLogError, StorageError, StoreLockedError
from crdtsync.identifiers import Domain, TaskId, WriterId
from regions.storage import MemoryStore, SqliteStore, Store, WriterMarks

D = Domain("default")
OTHER = Domain("archive")
EU = WriterId("eu/a#1-0123456789abcdef")
US = WriterId("us/a#1-0123456789abcdef")


@pytest.fixture(params=["memory", "sqlite"])
def store(request, tmp_path):
    return MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "data")


def check(store: Store, story: Callable[[Store], Awaitable[None]]) -> None:
    async def tell() -> None:
        async with opened(store):
            await story(store)

    asyncio.run(tell())


@asynccontextmanager
async def opened(store: Store):
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def commit(number: int, writer: WriterId = EU, blob: bytes | None = None, domain: Domain = D) -> CommitRow:
    return CommitRow(domain, writer, number, 1_000 + number, blob or f"{domain} {writer} {number}".encode())


def task(number: int, domain: Domain = D, **columns) -> TaskRow:
    row = TaskRow(
        domain, TaskId(number.to_bytes(16)), "charge", "default", "waiting", False, True, "eu", 1_000, 0, (),
        b"d" * 16, b"facts of %d" % number,
    )  # fmt: skip
    return row._replace(**columns)


async def flat(batches) -> list:
    return [item async for batch in batches for item in batch]


def tasks_query(*where: tuple, limit: int = 0, what: str = "tasks", domain: Domain = D, **page) -> Query:
    return Query(1, domain, what, where, limit, **page)


async def rows_of(store: Store, query: Query) -> list[TaskRow]:
    """All rows that a query finds, page by page."""
    found: list[TaskRow] = []
    while True:
        page = await store.query(query)
        found += page.rows
        if page.after is None:
            return found
        assert page.rows, "a page that is not the last holds something, unless it is damaged"
        query = replace(query, after=page.after)


# Durability --------------------------------------------------------------------------------------


def test_a_batch_is_there_after_a_restart(store):
    batch = Persist(
        1,
        commits=(commit(1), commit(1, US), commit(2)),
        rows=(task(1), task(2)),
        documents=(DocumentRow(D, b"", "notes", b"state"),),
        meta=(("clock", b"\x01"),),
    )

    async def story() -> None:
        async with opened(store):
            await store.append(batch)
        async with opened(store):
            assert await flat(store.commits_beyond(D, {})) == [row.blob for row in batch.commits]
            assert await store.load_rows(D, [row.task for row in batch.rows]) == list(batch.rows)
            assert await store.documents(D) == list(batch.documents)
            assert await store.meta() == dict(batch.meta)
            assert await store.heads(D) == {EU: 2, US: 1}

    asyncio.run(story())


def test_a_refused_batch_leaves_nothing_behind(store):
    async def story(store: Store) -> None:
        await store.append(Persist(1, commits=(commit(1),), rows=(task(1),), meta=(("a", b"old"),)))
        before = await everything(store)
        bad = Persist(
            2,
            commits=(commit(1, US), commit(2), commit(1, blob=b"another history")),
            rows=(task(1, state="dead"), task(2)),
            documents=(DocumentRow(D, b"", "notes", b"state"),),
            meta=(("a", b"new"),),
            drop=((D, EU, 1),),
        )
        with pytest.raises(CorruptLogError, match="another commit 1 of eu/a"):
            await store.append(bad)
        assert await everything(store) == before
        await store.append(Persist(3, commits=(commit(1, US), commit(2))))  # and the store can be used further
        assert await store.heads(D) == {EU: 2, US: 1}

    check(store, story)


def test_the_same_commit_again_is_left_alone(store):
    async def story(store: Store) -> None:
        await store.append(Persist(1, commits=(commit(1), commit(2))))
        await store.append(Persist(2, commits=(commit(2), commit(3), commit(1), commit(3))))
        assert await flat(store.commits_beyond(D, {})) == [commit(n).blob for n in (1, 2, 3)]
        assert (await store.stats()).commits == 3

    check(store, story)


def test_rows_documents_and_meta_replace_what_had_their_key(store):
    async def story(store: Store) -> None:
        await store.append(
            Persist(
                1,
                rows=(task(1), task(1, domain=OTHER)),
                documents=(DocumentRow(D, b"t", "n", b"1"),),
                meta=(("m", b"1"),),
            )
        )
        await store.append(
            Persist(
                2,
                rows=(task(1, state="dead", live=False, facts=b""),),
                documents=(DocumentRow(D, b"t", "n", b""), DocumentRow(D, b"", "n", b"3")),
                meta=(("m", b""),),
            )
        )
        assert await store.load_rows(D, [task(1).task]) == [task(1, state="dead", live=False, facts=b"")]
        assert await store.load_rows(OTHER, [task(1).task]) == [task(1, domain=OTHER)]
        assert await store.documents(D) == [DocumentRow(D, b"", "n", b"3"), DocumentRow(D, b"t", "n", b"")]
        assert await store.meta() == {"m": b""}

    check(store, story)


def test_incarnations_count_up_across_restarts(store):
    async def story() -> list[int]:
        numbers = []
        for _ in range(2):
            async with opened(store):
                numbers += [await store.next_incarnation(), await store.next_incarnation()]
        return numbers

    assert asyncio.run(story()) == [1, 2, 3, 4]


def test_an_incarnation_is_at_least_what_the_caller_says_and_never_goes_back(store):
    async def story() -> list[int]:
        async with opened(store):
            return [await store.next_incarnation(at_least) for at_least in (1, 50, 50, 7, 52, 100)]

    assert asyncio.run(story()) == [1, 50, 51, 52, 53, 100]


def test_a_closed_store_refuses_everything(store):
    async def story() -> None:
        await store.close()  # harmless
        for call in (
            store.append(Persist(1)),
            store.meta(),
            store.query(tasks_query()),
            store.next_incarnation(),
            store.compact(),
        ):
            with pytest.raises(StorageError, match="closed"):
                await call
        with pytest.raises(StorageError, match="closed"):
            await flat(store.live_rows(D))

    asyncio.run(story())


def test_a_store_is_opened_once_at_a_time(store, tmp_path):
    twin = store if isinstance(store, MemoryStore) else SqliteStore(tmp_path / "data")

    async def story(_: Store) -> None:
        with pytest.raises(StoreLockedError):
            await twin.open()

    check(store, story)
    check(twin, lambda store: store.meta())  # the first has let go


# Commits -----------------------------------------------------------------------------------------


def test_commits_are_read_from_a_number_up_to_a_size(store):
    async def story(store: Store) -> None:
        await store.append(Persist(1, commits=tuple(commit(n, blob=b"%03d" % n) for n in range(1, 8))))
        assert await store.read_commits(D, EU, 3, 9) == [b"003", b"004", b"005"]
        assert await store.read_commits(D, EU, 3, 8) == [b"003", b"004"]
        assert await store.read_commits(D, EU, 7, 0) == [b"007"], "one if there is any"
        assert await store.read_commits(D, EU, -1, 3) == [b"001"]
        for writer, first in ((EU, 8), (US, 1), (EU, 2**70)):
            assert await store.read_commits(D, writer, first, 100) == []
        assert await store.read_commits(OTHER, EU, 1, 100) == []

    check(store, story)


def test_commits_are_read_up_to_a_gap(store):
    async def story(store: Store) -> None:
        await store.append(Persist(1, commits=(commit(1), commit(2), commit(4))))
        assert await store.read_commits(D, EU, 1, 1_000) == [commit(1).blob, commit(2).blob]
        assert await store.read_commits(D, EU, 3, 1_000) == []
        await store.append(Persist(2, commits=(commit(3),)))
        assert await store.read_commits(D, EU, 1, 1_000) == [commit(n).blob for n in (1, 2, 3, 4)]
        assert await flat(store.commits_beyond(D, {EU: 2})) == [commit(4).blob, commit(3).blob]

    check(store, story)


def test_commits_beyond_heads_come_in_the_order_in_which_they_were_stored(store):
    rows = (commit(1), commit(1, US), commit(2, US), commit(2), commit(1, EU, domain=OTHER), commit(3, US))

    async def story(store: Store) -> None:
        for row in rows:
            await store.append(Persist(1, commits=(row,)))
        assert await flat(store.commits_beyond(D, {})) == [row.blob for row in rows if row.domain == D]
        assert await flat(store.commits_beyond(D, {US: 1, EU: 1})) == [rows[n].blob for n in (2, 3, 5)]
        assert await flat(store.commits_beyond(D, {US: 9, EU: 2})) == []
        assert await flat(store.commits_beyond(Domain("none"), {})) == []

    check(store, story)


def test_long_logs_come_in_batches(store):
    async def story(store: Store) -> None:
        blobs = [b"%06d" % n + bytes(2_000) for n in range(1, 2_501)]
        await store.append(Persist(1, commits=tuple(commit(n, blob=blob) for n, blob in enumerate(blobs, 1))))
        batches = [batch async for batch in store.commits_beyond(D, {EU: 10})]
        assert [blob for batch in batches for blob in batch] == blobs[10:]
        assert all(sum(map(len, batch)) < 1.1 * 2**20 for batch in batches)

    check(store, story)


def test_dropped_commits_are_gone_and_heads_remember_them(store):
    async def story(store: Store) -> None:
        await store.append(Persist(1, commits=tuple(commit(n, writer) for n in (1, 2, 3) for writer in (EU, US))))
        await store.append(Persist(2, drop=((D, EU, 2), (D, US, 3))))
        for _ in range(2):
            assert await flat(store.commits_beyond(D, {})) == [commit(3).blob]
            assert await store.read_commits(D, EU, 1, 1_000) == []
            assert await store.read_commits(D, EU, 3, 1_000) == [commit(3).blob]
            assert await store.heads(D) == {EU: 3, US: 3}
            assert (await store.recover()).domains == {D: {EU: WriterMarks(3, 2), US: WriterMarks(3, 3)}}
            await store.compact()
        assert (await store.stats()).commits == 1
        await store.append(Persist(3, commits=(commit(2), commit(4)), drop=((D, EU, 1),)))  # a late copy is not news
        assert await flat(store.commits_beyond(D, {})) == [commit(3).blob, commit(4).blob]

    check(store, story)


def test_a_drop_ahead_of_the_log_moves_its_head(store):
    """A snapshot stands for commits that never came: the log goes on behind them."""

    async def story(store: Store) -> None:
        await store.append(Persist(1, commits=(commit(1, US),), drop=((D, EU, 40), (D, US, 30))))
        assert await store.heads(D) == {EU: 40, US: 30}
        await store.append(Persist(2, commits=(commit(41), commit(31, US))))
        assert await flat(store.commits_beyond(D, {})) == [commit(41).blob, commit(31, US).blob]

    check(store, story)


# Rows --------------------------------------------------------------------------------------------


def test_rows_are_loaded_in_the_order_asked_for(store):
    async def story(store: Store) -> None:
        await store.append(Persist(1, rows=(task(1), task(2), task(3))))
        assert await store.load_rows(D, [task(3).task, bytes(16), task(1).task]) == [task(3), task(1)]

    check(store, story)


def test_every_column_comes_back(store):
    row = TaskRow(
        D, TaskId(b"\xff" * 16), "näme", "q\x00ueue", "cancelled", True, False, "", 2**48, 7,
        (("a", ""), ("b", "ü\"']")), b"\x00" * 16, b"\x00\xff",
    )  # fmt: skip

    async def story(store: Store) -> None:
        await store.append(Persist(1, rows=(row,)))
        assert await store.load_rows(D, [row.task]) == [row]
        assert await rows_of(store, tasks_query(("label", ("b", "ü\"']")), ("queue", "q\x00ueue"))) == [row]

    check(store, story)


def test_rows_are_read_in_id_order_in_chunks(store):
    async def story(store: Store) -> None:
        rows = [task(n) for n in (5, 3, 9, 1)]
        await store.append(Persist(1, rows=(*rows, task(4, domain=OTHER))))
        assert await store.read_rows(D, b"", 3) == [task(1), task(3), task(5)]
        assert await store.read_rows(D, task(5).task, 3) == [task(9)]
        assert await store.read_rows(D, task(9).task, 3) == []

    check(store, story)


def test_live_rows_and_ids_are_all_there(store):
    async def story(store: Store) -> None:
        rows = [task(n, live=n % 2 == 0) for n in range(2_500)]
        await store.append(Persist(1, rows=tuple(rows)))
        await store.append(Persist(2, rows=(task(0, live=False), task(1))))
        live = await flat(store.live_rows(D))
        assert [row.task for row in live] == [
            row.task for row in rows if (row.live and row.task != task(0).task) or row.task == task(1).task
        ]
        assert await flat(store.known_ids(D)) == [row.task for row in rows]
        assert await flat(store.known_ids(OTHER)) == []

    check(store, story)


def test_queries_filter_and_come_newest_first(store):
    rows = [
        task(n, created_ms=1_000 + n // 2, state=("waiting", "dead")[n % 2], queue=("mail", "pay")[n // 4 % 2],
             labels=(("tenant", "acme"), ("tier", str(n % 3))) if n % 2 else (), conflicts=n % 5 // 4)
        for n in range(20)
    ]  # fmt: skip

    async def story(store: Store) -> None:
        await store.append(Persist(1, rows=tuple(rows)))
        newest = rows[::-1]
        assert await rows_of(store, tasks_query()) == newest
        assert (await store.query(tasks_query(limit=3))).rows == tuple(newest[:3])
        assert (await store.query(tasks_query(("state", "dead"), limit=2))).rows == (rows[19], rows[17])
        assert await rows_of(store, tasks_query(("queue", "pay"))) == [row for row in newest if row.queue == "pay"]
        acme = [row for row in newest if row.labels]
        assert await rows_of(store, tasks_query(("label", ("tenant", "acme")))) == acme
        assert await rows_of(store, tasks_query(("label", ["tier", "1"]), ("queue", "mail"), ("state", "dead"))) == [
            row for row in acme if row.labels[1] == ("tier", "1") and row.queue == "mail"
        ]
        assert await rows_of(store, tasks_query(("label", ("tenant", "other")))) == []
        assert await rows_of(store, tasks_query(what="conflicts")) == [row for row in newest if row.conflicts]
        page = await store.query(
            tasks_query(("label", ("tenant", "acme")), ("state", "dead"), what="conflicts", limit=1)
        )
        assert page.rows == (rows[19],)
        assert await rows_of(store, tasks_query(domain=OTHER)) == []

    check(store, story)


def test_pages_join_to_the_whole_listing(store):
    """Also where many rows share a millisecond, and whatever the filter."""
    rows = [
        task(n, created_ms=1_000 + n // 7, state=("waiting", "dead", "running")[n % 3], queue="pq"[n % 2],
             labels=(("a", "x"),) if n % 4 else (), conflicts=n % 2)
        for n in range(60)
    ]  # fmt: skip
    filters: list[tuple] = [
        (),
        (("state", "dead"),),
        (("queue", "p"),),
        (("label", ("a", "x")),),
        (("label", ("a", "x")), ("queue", "q")),
    ]

    async def story(store: Store) -> None:
        await store.append(Persist(1, rows=tuple(rows)))
        for what in ("tasks", "conflicts"):
            for where in filters:
                whole = await store.query(tasks_query(*where, what=what))
                assert whole.after is None
                for limit in (1, 7, 100):
                    assert await rows_of(store, tasks_query(*where, what=what, limit=limit)) == list(whole.rows)
        exact = await store.query(tasks_query(limit=60))
        assert (len(exact.rows), exact.after) == (60, None), "nothing is behind it, so no cursor"
        assert (await store.query(tasks_query(after=(1_000, rows[0].task)))).rows == ()

    check(store, story)


def test_a_page_is_bounded_in_bytes_but_never_empty(store):
    rows = [task(n, created_ms=n, facts=bytes(100 * n)) for n in range(1, 6)]

    async def story(store: Store) -> None:
        await store.append(Persist(1, rows=tuple(rows)))
        page = await store.query(tasks_query(bytes_max=900))
        assert (page.rows, page.after) == ((rows[4], rows[3]), (4, rows[3].task))
        page = await store.query(tasks_query(bytes_max=899))
        assert (page.rows, page.after) == ((rows[4],), (5, rows[4].task))
        assert await rows_of(store, tasks_query(bytes_max=1)) == rows[::-1]

    check(store, story)


def test_queries_follow_edits_of_labels_states_and_age(store):
    async def story(store: Store) -> None:
        labels = (("a", "1"), ("b", "2"))
        await store.append(Persist(1, rows=(task(1, labels=labels), task(2, labels=labels))))
        await store.append(
            Persist(
                2, rows=(task(1, labels=(("b", "2"), ("c", "3")), state="dead"), task(2, labels=labels, created_ms=9))
            )
        )
        first, second = await rows_of(store, tasks_query())
        assert await rows_of(store, tasks_query(("label", ("a", "1")))) == [second]
        assert await rows_of(store, tasks_query(("label", ("b", "2")))) == [first, second]
        assert await rows_of(store, tasks_query(("label", ("b", "2")), ("state", "waiting"))) == [second]
        assert await rows_of(store, tasks_query(("label", ("c", "3")), ("state", "dead"))) == [first]

    check(store, story)


def test_what_no_store_can_answer_is_refused(store):
    async def story(store: Store) -> None:
        for query in (tasks_query(("owner", "eu")), tasks_query(what="attempts")):
            with pytest.raises(ValueError, match="cannot"):
                await store.query(query)

    check(store, story)


def test_stats_count_what_is_there(store):
    async def story(store: Store) -> None:
        await store.append(
            Persist(1, commits=(commit(1, blob=b"12345"), commit(2, blob=b"678")), rows=(task(1), task(2, live=False)),
                    documents=(DocumentRow(D, b"", "n", b""),), drop=((D, EU, 1),))
        )  # fmt: skip
        stats = await store.stats()
        assert (stats.commits, stats.commit_bytes, stats.dropped) == (2, 8, 1)
        assert (stats.tasks, stats.live, stats.documents, stats.corrupt) == (2, 1, 1, 0)
        await store.compact()
        stats = await store.stats()
        assert (stats.commits, stats.commit_bytes, stats.dropped) == (1, 3, 0)
        assert await store.check() == []
        assert store.corrupt_rows() == ()

    check(store, story)


# Both at once ------------------------------------------------------------------------------------


async def everything(store: Store) -> tuple:
    """All that a store can be asked for."""
    domains = (D, OTHER)
    return (
        await store.recover(),
        [await flat(store.commits_beyond(domain, {})) for domain in domains],
        [await store.read_rows(domain, b"", 1_000) for domain in domains],
        [await flat(store.live_rows(domain)) for domain in domains],
        [await flat(store.known_ids(domain)) for domain in domains],
        [await store.documents(domain) for domain in domains],
    )


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
labels = st.dictionaries(st.sampled_from("ab"), st.sampled_from(["", "x", "\0", '"']), max_size=2)
domains = st.sampled_from([D, D, OTHER])
writers = st.sampled_from([EU, US])
states = st.sampled_from(["waiting", "running", "dead"])
task_rows = st.builds(
    TaskRow,
    domain=domains,
    task=st.integers(0, 7).map(lambda n: TaskId(n.to_bytes(16))),
    name=texts,
    queue=st.sampled_from("pq"),
    state=states,
    settled=st.booleans(),
    live=st.booleans(),
    owner=st.sampled_from(["eu", "us"]),
    created_ms=st.integers(0, 3),
    conflicts=st.integers(0, 1),
    labels=labels.map(lambda pairs: tuple(sorted(pairs.items()))),
    digest=st.binary(min_size=16, max_size=16),
    facts=st.binary(max_size=40),
)
# Mostly one history per number, now and then a second one, which is to be refused.
commit_rows = st.builds(
    lambda domain, writer, number, other: commit(number, writer, b"another" if other else None, domain),
    domains, writers, st.integers(1, 6), st.sampled_from([False] * 15 + [True]),
)  # fmt: skip
batches = st.builds(
    Persist,
    batch=st.just(1),
    commits=st.lists(commit_rows, max_size=4).map(tuple),
    rows=st.lists(task_rows, max_size=4).map(tuple),
    documents=st.lists(
        st.builds(DocumentRow, domains, st.sampled_from([b"", bytes(16)]), texts, st.binary(max_size=9)), max_size=2
    ).map(tuple),
    meta=st.lists(st.tuples(texts, st.binary(max_size=9)), max_size=2).map(tuple),
    drop=st.lists(st.tuples(domains, writers, st.integers(1, 6)), max_size=1).map(tuple),
)
queries = st.builds(
    lambda domain, what, state, queue, label, limit, after, bytes_max: Query(
        1,
        domain,
        what,
        tuple(
            (name, value) for name, value in (("state", state), ("queue", queue), ("label", label)) if value is not None
        ),
        limit,
        after,
        bytes_max,
    ),
    domains,
    st.sampled_from(["tasks", "tasks", "conflicts"]),
    st.none() | states,
    st.none() | st.sampled_from("pq"),
    st.none() | st.tuples(st.sampled_from("ab"), st.sampled_from(["", "x", "\0", '"'])),
    st.integers(0, 3),
    st.none() | st.tuples(st.integers(0, 4), st.integers(0, 7).map(lambda n: n.to_bytes(16))),
    st.sampled_from([0, 0, 1, 50]),
)


class StoresAgree(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.runner = asyncio.Runner()
        self.stores: tuple[Store, ...] = (MemoryStore(), SqliteStore(self.directory / "data"))
        for store in self.stores:
            self.runner.run(store.open())

    def teardown(self) -> None:
        self.hold_the_same()
        for store in self.stores:
            self.runner.run(store.close())
        self.runner.close()
        shutil.rmtree(self.directory)

    def agree(self, ask: Callable[[Store], Awaitable[object]]) -> None:
        answers = []
        for store in self.stores:
            try:
                answers.append(self.runner.run(ask(store)))
            except StorageError as error:
                answers.append((type(error), str(error)))
        assert answers[0] == answers[1]

    @rule(batch=batches)
    def append(self, batch: Persist) -> None:
        self.agree(lambda store: store.append(batch))

    @rule(query=queries)
    def query(self, query: Query) -> None:
        self.agree(lambda store: store.query(query))

    @rule(domain=domains, writer=writers, first=st.integers(0, 7), bytes_max=st.sampled_from([0, 50, 10_000]))
    def read_commits(self, domain: Domain, writer: WriterId, first: int, bytes_max: int) -> None:
        self.agree(lambda store: store.read_commits(domain, writer, first, bytes_max))

    @rule(domain=domains, heads=st.dictionaries(writers, st.integers(0, 6)))
    def commits_beyond(self, domain: Domain, heads: dict[WriterId, int]) -> None:
        self.agree(lambda store: flat(store.commits_beyond(domain, heads)))

    @rule()
    def compact(self) -> None:
        for store in self.stores:
            self.runner.run(store.compact())

    @rule()
    def restart(self) -> None:
        for store in self.stores:
            self.runner.run(store.close())
            self.runner.run(store.open())

    @rule()
    def start_again(self) -> None:
        self.agree(lambda store: store.next_incarnation())

    @rule()
    def hold_the_same(self) -> None:
        self.agree(everything)


StoresAgree.TestCase.settings = settings(max_examples=50, stateful_step_count=20, deadline=None)
test_stores_agree = pytest.mark.slow(StoresAgree.TestCase)
