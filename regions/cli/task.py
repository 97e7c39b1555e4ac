"""`crdtsync task`: submit tasks, follow them, steer them."""

from __future__ import annotations

from typing import Any, Final

import click

from crdtsync import commands
from regions.cli.options import (
    PAIR,
    SECONDS,
    STATES,
    TASK_ID,
    examples,
    keyword_arguments,
    milliseconds,
    node_options,
)
from regions.cli.output import print_json, print_message, print_record, print_rows

EXIT_TASK_FAILED: Final = 1
ATTEMPT_COLUMNS: Final = ("number", "region", "term", "token", "state", "error", "started_at", "ended_at")
ALWAYS_SHOWN: Final = frozenset({"id", "name", "state", "settled", "owner", "term", "attempts", "result"})
LIST_COLUMNS: Final = ("id", "name", "state", "settled", "queue", "owner", "term", "waiting_for")

ENDED_STATES: Final = ("succeeded", "dead", "expired", "cancelled")


@click.group()
def task() -> None:
    """Submit tasks, follow them, steer them."""


@task.command(
    epilog=examples(
        "crdtsync task submit charge --arg order=A17 --arg cents=1250 --key A17",
        'crdtsync task submit report --args-json \'{"day": "2026-11-22"}\' --delay 60',
        "crdtsync task submit ship --after 0198c0d2... --region spread --wait --timeout 30",
        "generate-orders | crdtsync task submit --from -",
    ),
)
@click.argument("name", required=False)
@click.option("--arg", "pairs", type=PAIR, multiple=True, help="A keyword argument; the value is JSON if it parses.")
@click.option("--args-json", metavar="JSON", help="All keyword arguments as one object.")
@click.option("--from", "source", type=click.File("rb"), help="Submit one JSON object a line; - reads stdin.")
@click.option("--key", default="", help="Idempotency key: the same name and key is the same task.")
@click.option("--queue", help="Queue; the task's own by default.")
@click.option("--priority", type=click.IntRange(0, 9), help="0 to 9, higher first.")
@click.option("--delay", type=SECONDS, metavar="S", help="Seconds to wait before the first attempt.")
@click.option("--after", type=TASK_ID, multiple=True, metavar="ID", help="Start only when this task has succeeded.")
@click.option("--region", default="here", help="Owner: here, spread, or a region's name.")
@click.option("--partition", type=click.Choice(["wait", "takeover", "quorum"]), help="What happens in a partition.")
@click.option("--scope", type=click.Choice(["queue", "key", "task"]), help="With quorum: what shares one lease.")
@click.option("--label", "labels", type=PAIR, multiple=True, help="A label, key=value.")
@click.option("--wait", is_flag=True, help="Wait for the end and print the task as `task show` does.")
@click.option("--timeout", type=SECONDS, metavar="S", help="With --wait: give up after so many seconds (exit 124).")
@node_options
def submit(
    *,
    name: str | None,
    pairs: tuple[tuple[str, str], ...],
    args_json: str | None,
    source: Any,
    key: str,
    queue: str | None,
    priority: int | None,
    delay: float | None,
    after: tuple[bytes, ...],
    region: str,
    partition: str | None,
    scope: str | None,
    labels: tuple[tuple[str, str], ...],
    wait: bool,
    timeout: float | None,
    node: str,
    output: str,
) -> int:
    """Submit one task by NAME, or many with --from.

    Lines of --from are objects: name, args, key, queue, priority, delay, after, region, partition,
    scope, label, ref. `after` may name "@ref"s of the same file. One JSON line is printed per input line,
    in order: {"id", "created"} or {"line", "error"}; exit 1 if any failed.
    """
    if source is not None:
        if name is not None or pairs or args_json is not None or wait:
            raise click.UsageError("--from takes everything from its lines: no NAME, --arg, --args-json or --wait")
        from regions.cli.bulk import submit_lines

        return submit_lines(node, source)
    if name is None:
        raise click.UsageError("NAME is missing: say which task, or give many with --from FILE")
    from crdtsync.protocol.values import encode_arguments
    from regions.cli.session import ask
    from regions.submission import new_task_id

    spec = commands.TaskSpec(
        name=name,
        payload=encode_arguments(name, (), keyword_arguments(pairs, args_json)),
        id=new_task_id() if not key else None,
        queue=queue,
        priority=priority,
        delay_ms=milliseconds(delay),
        key=key,
        labels=dict(labels),
        after=after,
        region=region,
        partition=partition,
        scope=scope,
    )
    answer = accepted(ask(node, commands.Submit(specs=(spec,)))[0])
    if wait:
        return _wait_and_print(node, bytes.fromhex(answer["id"].replace("-", "")), False, timeout, output)
    if output == "json":
        print_json(answer)
    else:
        click.echo(f"{answer['id']}  {'created' if answer['created'] else 'existed: same name and key'}")
    return 0


def accepted(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer to one submission. Raises the error that it carries, if any."""
    if "error" in answer:
        from crdtsync.errors import error_from_record

        raise error_from_record(answer["error"])
    return answer


@task.command(
    "list",
    epilog=examples(
        "crdtsync task list --state waiting",
        "crdtsync task list --label batch=7 --limit 0 -o json",
    ),
)
@click.option("--state", type=click.Choice(STATES), help="Only tasks in this state.")
@click.option("--queue", help="Only tasks of this queue.")
@click.option("--label", type=PAIR, help="Only tasks with this label, key=value.")
@click.option("--limit", type=click.IntRange(min=0), default=100, show_default=True, help="At most so many; 0: all.")
@node_options
def list_(
    *, state: str | None, queue: str | None, label: tuple[str, str] | None, limit: int, node: str, output: str
) -> None:
    """List tasks, newest first."""
    from regions.cli.session import print_listing

    command = commands.ListTasks(state=state, queue=queue, label=label, limit=limit)
    empty = "no tasks match; submit one with: crdtsync task submit NAME"
    count = print_listing(node, command, LIST_COLUMNS, output, empty=empty)
    if output == "table" and limit and count == limit:
        print_message(f"the newest {limit}; --limit 0 shows all")


@task.command()
@click.argument("id", type=TASK_ID)
@node_options
def show(*, id: bytes, node: str, output: str) -> None:
    """Show one task: its state, attempts, result, conflicts, and what it waits for."""
    from regions.cli.session import ask

    _print_task(ask(node, commands.Describe(task=id)), output)


@task.command()
@click.argument("id", type=TASK_ID)
@node_options
def history(*, id: bytes, node: str, output: str) -> None:
    """Show what happened to one task, event by event, in the order of their stamps."""
    from regions.cli.session import ask

    rows = ask(node, commands.History(task=id))
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print_rows(rows, columns, output, empty="nothing has happened to it yet")


@task.command()
@click.argument("id", type=TASK_ID)
@node_options
def explain(*, id: bytes, node: str, output: str) -> None:
    """Say why the task is where it is: why here, why waiting, why twice, who won by which rule.

    The first part is the same text on every region that holds the same commits; what only this
    one knows stands apart.
    """
    from regions.cli.session import ask

    answer = ask(node, commands.Explain(task=id))
    if output == "json":
        print_json(answer)
        return
    click.echo(answer["text"])
    if answer.get("local"):
        # What only this replica knows. Of a task that has ended the explanation is the shared text alone, so that
        # it can be compared between regions; what is still missing for its settlement is a message beside it.
        click.echo(f"\n{answer['local']}", err=answer["state"] in ENDED_STATES)


@task.command(
    epilog=examples(
        "crdtsync task wait 0198c0d2... --timeout 30 -o json",
    ),
)
@click.argument("id", type=TASK_ID)
@click.option("--timeout", type=SECONDS, metavar="S", help="Give up after so many seconds (exit 124).")
@click.option("--settled", is_flag=True, help="Wait until no later fact can change the outcome.")
@node_options
def wait(*, id: bytes, timeout: float | None, settled: bool, node: str, output: str) -> int:
    """Wait for a task to end and print it. Exit 1 if it did not succeed, 124 if it did not end in time."""
    return _wait_and_print(node, id, settled, timeout, output)


@task.command()
@click.argument("id", type=TASK_ID)
@click.option("--reason", default="", help="Why, for the history.")
@node_options
def cancel(*, id: bytes, reason: str, node: str, output: str) -> None:
    """Ask for a task to be cancelled. The answer says whether that came in time."""
    from regions.cli.session import ask

    print_record(ask(node, commands.Cancel(task=id, reason=reason)), output)


@task.command()
@click.argument("id", type=TASK_ID)
@node_options
def requeue(*, id: bytes, node: str, output: str) -> None:
    """Give a dead task its attempts again; it keeps its effects and checkpoints. Exit 4 unless it is dead."""
    from regions.cli.session import ask

    print_record(ask(node, commands.Requeue(task=id)), output)


@task.command(
    epilog=examples(
        "crdtsync task edit 0198c0d2... --priority 9 --label team=billing",
    ),
)
@click.argument("id", type=TASK_ID)
@click.option("--priority", type=click.IntRange(0, 9), help="0 to 9, higher first.")
@click.option("--label", "labels", type=PAIR, multiple=True, help="Set a label; key= removes it.")
@node_options
def edit(*, id: bytes, priority: int | None, labels: tuple[tuple[str, str], ...], node: str, output: str) -> None:
    """Change a task's priority or labels."""
    if priority is None and not labels:
        raise click.UsageError("nothing to change: give --priority or --label")
    from regions.cli.session import ask

    print_record(ask(node, commands.Edit(task=id, priority=priority, labels=dict(labels))), output)


def _wait_and_print(node: str, id_: bytes, settled: bool, timeout: float | None, output: str) -> int:
    from regions.cli.session import ask

    record = ask(node, commands.Await(task=id_, settled=settled), timeout_s=timeout)
    _print_task(record, output)
    if record["state"] == "succeeded":
        return 0
    print_message(f"the task ended {record['state']}: crdtsync task explain {record['id']}")
    return EXIT_TASK_FAILED


def _print_task(record: dict[str, Any], output: str) -> None:
    """A task: all of it as JSON; for people what is there, and of attempts what fits a line."""
    if output == "table":
        record = {key: value for key, value in record.items() if value not in (None, "", [], {}) or key in ALWAYS_SHOWN}
        record["attempts"] = [
            {column: attempt.get(column) for column in ATTEMPT_COLUMNS} for attempt in record["attempts"]
        ]
    print_record(record, output)
