"""Where a commit is made: on the loop while that is quick, in the thread otherwise."""

import asyncio

from crdtsync.effects import CommitRow, Persist
from crdtsync.identifiers import DEFAULT_DOMAIN, WriterId
from regions.storage.sqlite import SqliteStore
from regions.storage.swiftness import BYTES_MAX, QUICK_S, Swiftness

WRITER = WriterId("eu/a#1")


def batch(number, size=100, **more):
    return Persist(number, commits=(CommitRow(DEFAULT_DOMAIN, WRITER, number, number, b"x" * size),), **more)


def learned(*seconds):
    swiftness = Swiftness()
    for took in seconds:
        swiftness.took(batch(1), took)
    return swiftness


def test_nothing_is_written_on_the_loop_before_the_disk_is_known():
    assert not Swiftness().suits(batch(1))


def test_on_a_quick_disk_small_batches_are_written_on_the_loop_and_large_ones_are_not():
    quick = learned(*[QUICK_S / 4] * 60)
    assert quick.suits(batch(1, BYTES_MAX))
    assert not quick.suits(batch(1, BYTES_MAX + 1))


def test_a_slow_disk_does_not_hold_the_loop_up():
    assert not learned(*[2 * QUICK_S] * 60).suits(batch(1))


def test_whoever_was_slow_once_is_soon_trusted_again_and_a_row_of_them_is_learned_from():
    swiftness = learned(*[QUICK_S / 4] * 60)
    swiftness.took(batch(1), 1.0)
    quick = [QUICK_S / 4] * 40
    while not swiftness.suits(batch(1)):
        swiftness.took(batch(1), quick.pop())
    for _ in range(2):
        swiftness.took(batch(1), 4 * QUICK_S)
    assert not swiftness.suits(batch(1))


def test_what_is_written_at_once_is_durable_and_never_overtakes_the_thread(tmp_path):
    async def scenario():
        store = SqliteStore(tmp_path)
        await store.open()
        store._swiftness.expected_s = 0.0
        assert store.append_at_once(batch(1))
        waiting = asyncio.create_task(store.append(batch(2)))
        await asyncio.sleep(0)  # it is in the thread's queue now
        while not waiting.done():
            assert store._write.idle or not store.append_at_once(batch(3))
            await asyncio.sleep(0)
        store._swiftness.expected_s = 0.0  # however slow this machine was just now
        assert store.append_at_once(batch(3))
        other = SqliteStore(tmp_path / "copy")
        (tmp_path / "copy").mkdir()
        for file in tmp_path.glob("crdtsync.db*"):
            (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
        await other.open()
        assert await other.heads(DEFAULT_DOMAIN) == {WRITER: 3}
        await other.close()
        await store.close()

    asyncio.run(scenario())
