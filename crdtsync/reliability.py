"""When the next attempt may start: exponential backoff with jitter, alike on every replica.

The jitter is a hash, not a random number: whoever owns the task by then computes the same instant,
and tasks that failed together still spread (full jitter over the upper half of the delay, after
Brooker, "Exponential Backoff and Jitter", AWS 2015; the lower half is kept so that a target under
load gets its pause).
"""

from __future__ import annotations

import hashlib
from typing import Final

from crdtsync.events import Options
from crdtsync.identifiers import TaskId
from crdtsync.task_view import TaskView

STAMP_COUNTER_BITS: Final = 16
_STREAK_MAX: Final = 1_000  # any factor has met any cap by then, and powers stay small


def backoff_ms(options: Options, streak: int) -> int:
    """The delay after `streak` failures in a row, before jitter."""
    base, ceiling = options.backoff_ms_base, options.backoff_ms_max
    if streak <= 0 or base <= 0:
        return 0
    delay, factor = base, options.backoff_factor_permille
    for _ in range(min(streak - 1, _STREAK_MAX)):
        if delay >= ceiling or factor <= 1_000:
            break
        delay = max(delay + 1, delay * factor // 1_000)
    return min(delay, ceiling) if ceiling > 0 else delay


def jittered_ms(task: TaskId, attempts: int, delay_ms: int) -> int:
    """A delay between half of `delay_ms` and all of it, by the task and the number of its attempts."""
    digest = hashlib.blake2b(attempts.to_bytes(8, "big"), digest_size=8, key=task).digest()
    half = delay_ms // 2
    return half + int.from_bytes(digest, "big") % (delay_ms - half + 1)


def next_attempt_at_ms(view: TaskView) -> int:
    """Wall time in milliseconds before which no attempt may start; 0 for at once.

    Counts failures and losses since the last death (a drain is neither), from the stamp of the last
    one, and the submission's own `not_before_ms`.
    """
    submitted = view.submitted
    if submitted is None:
        return 0
    if view.failed_at is None:
        return submitted.not_before_ms
    delay = jittered_ms(submitted.task, len(view.attempts), backoff_ms(submitted.options, view.streak))
    return max(submitted.not_before_ms, (view.failed_at.stamp >> STAMP_COUNTER_BITS) + delay)
