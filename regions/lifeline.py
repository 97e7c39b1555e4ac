"""A child that never outlives its supervisor, however that ends.

The kernel sends SIGKILL when the parent dies (PR_SET_PDEATHSIG), which works with a blocked event
loop and after `kill -9` of the parent, where an atexit hook or a signal handler would not. Where
there is no such call, a thread watches the parent's id instead.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from typing import Final

PR_SET_PDEATHSIG: Final = 1
WATCH_INTERVAL_S: Final = 0.2


def end_with(parent: int) -> None:
    """End this process when `parent`, which must have started it, ends. Returns at once.

    Children must be started from a thread that lives as long as the parent: the kernel watches that
    thread.
    """
    if not _ask_kernel():
        threading.Thread(target=_watch, args=(parent,), daemon=True, name="lifeline").start()
    if os.getppid() != parent:  # it died before the call
        sys.exit(1)


def _ask_kernel() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        return bool(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_INTERVAL_S)
    os.kill(os.getpid(), signal.SIGKILL)
