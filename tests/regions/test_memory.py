"""What a node tells Python's collector, and the C library's."""

import gc

from regions import memory


def test_a_settled_process_looks_for_cycles_seldom_and_never_in_what_was_imported() -> None:
    before = gc.get_threshold()
    try:
        memory.settle()
        assert gc.get_threshold() == memory.THRESHOLDS
        assert gc.isenabled()  # cycles of its own still go
        assert gc.get_freeze_count() > 1_000
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
