"""Facts that are on disk: whoever waits for several finds all of them, whatever leaves memory meanwhile."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from crdtsync.duties import COMPENSATION
from crdtsync.effects import Load, TaskRow
from crdtsync.events import PriorityEdited, Submitted
from crdtsync.identifiers import DEFAULT_DOMAIN, EventId, TaskId, WriterId
from crdtsync.loader import Loader
from crdtsync.outbox import Outbox
from crdtsync.region import RegionState
from crdtsync.tasks import TaskTable

WRITER = WriterId("eu/a#1-0123456789abcdef")


def name(number: int) -> TaskId:
    return TaskId(number.to_bytes(16, "big"))


def submitted(task: TaskId) -> Submitted:
    return Submitted(task, "noop", b"\x80", "eu", "default", 5, 0, 0, "", 0, (), (), None, None, COMPENSATION)


def shelf(*numbers: int) -> tuple[TaskTable, Loader, Outbox, dict[TaskId, TaskRow]]:
    """A table that knows these tasks, all of them on disk only."""
    table, outbox = TaskTable(DEFAULT_DOMAIN), Outbox()
    disk = {}
    for number in numbers:
        task = table.add(EventId(1 << 16, WRITER, number, 0), submitted(name(number)))
        disk[task.id] = table.clean(task)
        table.evict(task)
    tokens = iter(range(1, 100))
    return table, Loader(table, outbox, lambda: next(tokens)), outbox, disk


def loads(outbox: Outbox) -> list[Load]:
    return [effect for effect in outbox.take() if isinstance(effect, Load)]


def test_what_was_in_memory_when_asked_for_stays_until_the_rest_has_come() -> None:
    """A commit of two tasks was folded onto nothing: one of them had left memory while the other was read."""
    table, loader, outbox, disk = shelf(1, 2)
    loader.require([name(1)], lambda: None)
    [first] = loads(outbox)
    loader.loaded(first.token, [disk[name(1)]])
    seen: list[bool] = []
    loader.require([name(1), name(2)], lambda: seen.append(all(table.get(name(n)) is not None for n in (1, 2))))
    held = table.get(name(1))
    assert held is not None
    assert held.pins == 1
    [second] = loads(outbox)
    assert second.tasks == (name(2),)
    loader.loaded(second.token, [disk[name(2)]])
    assert seen == [True]
    assert held.pins == 0


def test_what_came_first_stays_until_the_last_has_come() -> None:
    table, loader, outbox, disk = shelf(1, 2)
    loader.require([name(2)], lambda: None)
    seen: list[bool] = []
    loader.require([name(1), name(2)], lambda: seen.append(True))
    one, other = loads(outbox)
    loader.loaded(other.token, [disk[name(1)]])
    early = table.get(name(1))
    assert early is not None
    assert early.pins == 1
    loader.loaded(one.token, [disk[name(2)]])
    assert seen == [True]
    assert early.pins == 0


def test_requests_for_one_task_run_in_the_order_in_which_they_came() -> None:
    _, loader, outbox, disk = shelf(1)
    order: list[int] = []
    loader.require([name(1)], lambda: order.append(1))
    loader.require([name(1)], lambda: order.append(2))
    [load] = loads(outbox)
    loader.loaded(load.token, [disk[name(1)]])
    assert order == [1, 2]


def test_what_the_disk_does_not_have_is_not_asked_for_again() -> None:
    table, loader, outbox, _ = shelf(1)
    ran: list[bool] = []
    loader.require([name(1)], lambda: ran.append(table.get(name(1)) is None))
    [load] = loads(outbox)
    loader.loaded(load.token, [])
    loader.require([name(1)], lambda: ran.append(True))
    assert ran == [True, True]
    assert loads(outbox) == []


def test_tasks_of_a_commit_are_visited_in_the_order_of_its_events() -> None:
    """Found in swarm seed 260: they were visited in the order of a set of bytes, which differs from process to process."""
    tasks = [name(number) for number in (9, 3, 7, 1, 8, 2, 6)]
    events = [PriorityEdited(task, 1, None) for task in [*tasks, tasks[0]]]
    here: Any = SimpleNamespace(touched_by=[])
    commit: Any = SimpleNamespace(writer=WRITER, number=1, events=events)
    RegionState.note(here, commit)
    assert here.touched_by == [(WRITER, 1, tuple(tasks))]


def test_what_a_request_had_kept_is_touched_again_in_the_order_of_ids() -> None:
    """As above: in the order of a set it was another one in each process."""
    numbers = [9, 3, 7, 1, 8, 2, 6]
    table, loader, outbox, disk = shelf(*numbers, 10)
    loader.require([name(n) for n in numbers], lambda: None)
    [first] = loads(outbox)
    loader.loaded(first.token, [disk[task] for task in first.tasks])
    table.take_touched()
    loader.require([name(n) for n in (*numbers, 10)], lambda: None)
    [second] = loads(outbox)
    loader.loaded(second.token, [disk[task] for task in second.tasks])
    assert [task.id for task in table.take_touched()] == sorted([*map(name, numbers), name(10)])
