"""`crash` kills real processes, and what it tells is what happened."""

import argparse
import asyncio
import os
import time
from pathlib import Path

import pytest

from benchmarks import crash
from benchmarks.processes import busy


@pytest.mark.slow
def test_all_work_runs_after_each_kill(tmp_path) -> None:
    args = argparse.Namespace(tasks=80, runs=1, data=tmp_path)
    report = asyncio.run(crash.run(args))
    (table,) = report.tables
    assert [row[0] for row in table.rows] == list(crash.VICTIMS)
    for _, seconds, done, tasks, _ in table.rows:
        assert seconds.median > 0
        assert 20 <= done.median < tasks


def test_processes_that_keep_the_machine_busy_end_with_the_measurement() -> None:
    def children() -> set[str]:
        return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text("ascii").split())

    before = children()
    with busy(2):
        time.sleep(0.01)
        assert len(children() - before) == 2
    assert children() == before
