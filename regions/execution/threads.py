"""Threads for handlers that are not async.

The standard pool joins its threads when the interpreter ends, so one handler that never returns would
keep a drained worker alive for ever. These are daemons: what still runs when the worker ends is cut
off, as its attempt was handed back before.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextvars import copy_context


class HandlerThreads:
    """At most `limit` threads, started when needed, kept for the next call.

    Args:
        name: What the threads are called in a traceback.
        limit: Calls beyond it wait for a thread.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._started = 0
        self._idle = 0

    def run(self, call: Callable[[], None]) -> None:
        """Call it in some thread, with a copy of the caller's context variables. It must not raise."""
        context = copy_context()
        self._calls.put(lambda: context.run(call))
        with self._lock:
            if self._idle > 0:
                self._idle -= 1  # promised to this call
                return
            if self._started >= self._limit:
                return
            self._started += 1
        threading.Thread(target=self._serve, name=f"{self._name}-{self._started}", daemon=True).start()

    def close(self) -> None:
        """Let idle threads end; busy ones end after their call, or with the process."""
        with self._lock:
            for _ in range(self._started):
                self._calls.put(None)

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            with self._lock:
                self._idle += 1
