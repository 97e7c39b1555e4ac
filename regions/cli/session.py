"""One question to a node and its answer: what nearly every command is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from crdtsync.commands import ClientCommand, ListConflicts, ListTasks
from crdtsync.errors import WaitTimeoutError
from regions.cli.output import JsonArray, print_rows
from regions.client import Client

_Answer = TypeVar("_Answer")


def ask(node: str, command: ClientCommand, *, timeout_s: float | None = None) -> Any:
    """Send one command and return its answer.

    Args:
        node: The URL of the node.
        command: What to ask.
        timeout_s: How long to wait for the answer; None for as long as the connection lives.

    Raises:
        CrdtSyncError: As the node answered, or UnreachableError.
        WaitTimeoutError: No answer in time.
    """

    async def question(client: Client) -> Any:
        return await client.request(command)

    return talk(node, question, timeout_s=timeout_s)


def print_listing(
    node: str, command: ListTasks | ListConflicts, columns: Sequence[str], output: str, *, empty: str
) -> int:
    """Print a listing, page by page as JSON; a table needs all rows first, but only these columns of them.

    Returns how many records there were. Raises as `ask`; what was printed before is then not a whole array.
    """

    async def conversation(client: Client) -> int:
        array, rows, count = JsonArray(), [], 0
        async for page in client.pages(command):
            count += len(page)
            if output == "json":
                array.add(page)
            else:
                rows += [{column: record.get(column) for column in columns} for record in page]
        if output == "json":
            array.end()
        else:
            print_rows(rows, columns, output, empty=empty)
        return count

    return talk(node, conversation)


def talk(
    node: str, conversation: Callable[[Client], Coroutine[Any, Any, _Answer]], *, timeout_s: float | None = None
) -> _Answer:
    """Run `conversation` over one connection to `node`, closed afterwards."""

    async def run() -> _Answer:
        # The time to connect has a limit of its own: a node that is away is unreachable, not slow.
        async with Client(node) as client:
            try:
                async with asyncio.timeout(timeout_s):
                    return await conversation(client)
            except TimeoutError:
                raise WaitTimeoutError(f"no answer within {timeout_s:g} s; the task goes on") from None

    return asyncio.run(run())
