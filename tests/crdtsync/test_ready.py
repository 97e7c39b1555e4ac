"""The order in which ready tasks are taken."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from crdtsync.identifiers import EventId, TaskId, WriterId
from crdtsync.scheduling.ready import AGING_MS, ReadyQueue, order_key

WRITER = WriterId("eu/a#1-0123456789abcdef")


def submission(at_ms: int, number: int = 1) -> EventId:
    return EventId(at_ms << 16, WRITER, number, 0)


def name(number: int) -> TaskId:
    return TaskId(number.to_bytes(16, "big"))


def drained(queue: ReadyQueue) -> list[int]:
    taken = []
    while (lane := queue.next_lane(lambda _: True)) is not None:
        task = queue.pop(lane)
        assert task is not None
        taken.append(int.from_bytes(task, "big"))
    return taken


def test_priority_goes_first_and_equal_priorities_go_in_order_of_submission() -> None:
    queue = ReadyQueue()
    for number, priority in enumerate((1, 9, 5, 9)):
        queue.add(name(number), ("q", "t"), order_key(submission(number), priority, 0))
    assert drained(queue) == [1, 3, 2, 0]


def test_a_task_that_waited_long_enough_goes_before_a_later_one_of_higher_priority() -> None:
    queue = ReadyQueue()
    queue.add(name(0), ("q", "t"), order_key(submission(0), 0, 0))
    queue.add(name(1), ("q", "t"), order_key(submission(9 * AGING_MS - 1), 9, 0))
    queue.add(name(2), ("q", "t"), order_key(submission(9 * AGING_MS + 1), 9, 0))
    assert drained(queue) == [1, 0, 2]


def test_lanes_take_turns_however_full_one_is() -> None:
    queue = ReadyQueue()
    for number in range(100):
        queue.add(name(number), ("q", "flood"), order_key(submission(number), 9, 0))
    queue.add(name(100), ("q", "drop"), order_key(submission(1_000), 0, 0))
    assert drained(queue).index(100) <= 1


def test_a_near_deadline_counts_like_the_highest_priority() -> None:
    queue = ReadyQueue()
    queue.add(name(0), ("q", "t"), order_key(submission(1_000_000), 9, 0))
    queue.add(name(1), ("q", "t"), order_key(submission(1_000_000, 2), 0, 1_000_100))
    assert drained(queue) == [1, 0]


@given(
    st.lists(st.tuples(st.sampled_from("arm"), st.integers(0, 9), st.integers(0, 5), st.integers(0, 2)), max_size=60)
)
def test_it_agrees_with_a_list_that_is_sorted_anew_each_time(steps: list[tuple[str, int, int, int]]) -> None:
    queue, plain = ReadyQueue(), {}
    for what, number, priority, lane_number in steps:
        lane = ("q", str(lane_number))
        if what in "am":
            key = order_key(submission(number * 1_000, number + 1), priority, 0)
            queue.add(name(number), lane, key)
            plain[name(number)] = (lane, key)
        else:
            queue.remove(name(number))
            plain.pop(name(number), None)
        assert len(queue) == len(plain)
        assert {lane for lane, _ in plain.values()} == set(queue.lanes())
    for lane in queue.lanes():
        expected = sorted((key, task) for task, (where, key) in plain.items() if where == lane)
        taken = []
        while (task := queue.pop(lane)) is not None:
            taken.append(task)
        assert taken == [task for _, task in expected]
