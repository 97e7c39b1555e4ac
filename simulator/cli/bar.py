"""A bar on a terminal's stderr, moved between the events of a simulation."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Final, Protocol

STEPS: Final = 200  # of a bar: finer than it is drawn


class Show(Protocol):
    def __call__(self, done: float, *, text: str) -> None: ...


@contextlib.contextmanager
def bar(total: float, text: str = "", *, counts: bool = False) -> Iterator[Show | None]:
    """Yields `show(done, text)`; None where nobody looks.

    Args:
        counts: Whether what is counted are things, and not time: then "3/46" is shown instead of a share.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn

    columns = (BarColumn(), MofNCompleteColumn() if counts else TaskProgressColumn(), TextColumn("{task.description}"))
    # No thread of its own: real time is out of bounds while a simulation runs.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as progress:
        task = progress.add_task(escape(text), total=total)
        progress.refresh()

        shown = (0, text)

        def show(done: float, *, text: str) -> None:
            nonlocal shown
            now = (int(done if counts else STEPS * done / max(total, 1e-9)), text)
            if now == shown:
                return  # a long run would spend more time on its bar than on itself
            shown = now
            progress.update(task, completed=min(done, total), description=escape(text), refresh=True)

        yield show
