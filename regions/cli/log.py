"""`crdtsync log`: follow the replicated log, verify it, export it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from crdtsync import commands
from regions.cli.options import examples, node_options, output_option
from regions.cli.output import print_json, print_json_line, print_message, print_record, table

if TYPE_CHECKING:
    from regions.client import Client

EXIT_FINDINGS: Final = 1
FOLLOW_S: Final = 0.5  # how often `log tail -f` asks for more
NODE_OR_DATA: Final = "say where: --node URL (or CRDTSYNC_NODE) for a running node, --data DIR for one that is not"
SUMMARY_KINDS_MAX: Final = 6


@click.group()
def log() -> None:
    """The replicated log: follow, verify, export."""


@log.command(epilog=examples("crdtsync log tail --limit 20", "crdtsync log tail -f -o json | jq .events"))
@click.option("--limit", type=click.IntRange(min=0), default=20, show_default=True, help="The newest so many commits.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("--writer", help="Only this writer's commits, or a region's or node's: eu, eu/a.")
@node_options
def tail(*, limit: int, follow: bool, writer: str | None, node: str, output: str) -> None:
    """Print the newest commits of the log, in the order of their stamps."""
    from regions.cli.session import talk

    async def conversation(client: Client) -> None:
        import asyncio

        shown: dict[str, int] = {}
        heads = await _heads(client, writer)
        commits = []
        for head in heads:
            first = max(head["floor"], head["head"] - limit) + 1
            async for commit in _read(client, head["writer"], first):
                commits.append(commit)
                shown[head["writer"]] = commit["number"]
        commits.sort(key=lambda commit: (commit["stamp"], commit["writer"], commit["number"]))
        _print_commits(commits[-limit:] if limit else [], output, follow=follow)
        while follow:
            await asyncio.sleep(FOLLOW_S)
            fresh = []
            for head in await _heads(client, writer):
                name = head["writer"]
                if head["head"] > shown.get(name, head["floor"]):
                    async for commit in _read(client, name, shown.get(name, head["floor"]) + 1):
                        fresh.append(commit)
                        shown[name] = commit["number"]
            _print_commits(fresh, output, follow=True)

    talk(node, conversation)


@log.command(epilog=examples("crdtsync log verify", "crdtsync log verify --data /var/lib/crdtsync"))
@click.option("--node", metavar="URL", envvar="CRDTSYNC_NODE", show_envvar=True, help="Verify a running node's log.")
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), help="Verify a directory that no node uses.")
@output_option
def verify(*, node: str | None, data: Path | None, output: str) -> int:
    """Check every commit and task on disk: chains, hashes, numbers, the state digest. Exit 1 on a finding."""
    if data is not None:
        import asyncio

        from regions.inspection import verify_directory

        report = asyncio.run(verify_directory(data)).record()
    elif node is not None:
        from regions.cli.session import ask

        report = ask(node, commands.VerifyLog())
    else:
        raise click.UsageError(NODE_OR_DATA)
    if output == "json":
        print_json(report)
    else:
        for finding in report["findings"]:
            click.echo(finding)
        print_message(
            f"{report['commits']} commits of {report['writers']} writers, {report['tasks']} tasks, "
            f"digest {report['digest']}: {'ok' if report['ok'] else 'NOT ok'}"
        )
    return 0 if report["ok"] else EXIT_FINDINGS


@log.command(epilog=examples("crdtsync log export > log.jsonl", "crdtsync log export --writer eu/a"))
@click.option("--writer", help="Only this writer's commits, or a region's or node's: eu, eu/a.")
@node_options
def export(*, writer: str | None, node: str, output: str) -> None:  # noqa: ARG001 - lines of JSON either way
    """Print every commit on disk as one JSON object a line, writer by writer, with its hash and bytes."""
    from regions.cli.session import talk

    async def conversation(client: Client) -> None:
        for head in await _heads(client, writer):
            async for commit in _read(client, head["writer"], head["floor"] + 1, whole=True):
                print_json_line(commit)

    talk(node, conversation)


@log.command(
    epilog=examples(
        "crdtsync log reissue eu/a#7-0123456789abcdef --from 41",
        "crdtsync log reissue eu/a#7-0123456789abcdef --from 41 --yes",
    )
)
@click.argument("writer")
@click.option("--from", "first", type=click.IntRange(min=1), required=True, help="The first commit that is not good.")
@click.option("--yes", is_flag=True, help="Do it. Without this it is a dry run.")
@node_options
def reissue(*, writer: str, first: int, yes: bool, node: str, output: str) -> None:
    """Re-issue commits of WRITER: those that it stamped far ahead, because its clock was wrong.

    Ask the node that wrote them, once its clock is right; `clock show` in any region names writer and commit. Without
    --yes it shows what they hold and changes nothing. With it the node starts anew at once, and before it does anything
    else it has all regions take these commits, and those of its later starts, as stamped now. Nothing is lost by it: what
    handlers run goes on, and ids and effect keys stay as they were.
    """
    from crdtsync.errors import InvalidRequestError, UnknownTaskError
    from regions.cli.session import talk

    async def conversation(client: Client) -> dict[str, Any]:
        heads = {head["writer"]: head for head in await client.request(commands.LogHeads())}
        if writer not in heads:
            raise UnknownTaskError(f"no writer {writer!r} is known here; log tail names them", writer=writer)
        head = heads[writer]
        if not head["floor"] < first <= head["head"]:
            raise InvalidRequestError(
                f"commits {head['floor'] + 1} to {head['head']} of {writer} are here, {first} is not among them"
            )
        clock = await client.request(commands.ShowClock())
        plan = _plan(writer, [commit async for commit in _read(client, writer, first)], clock)
        if yes:
            plan["reissued"] = (await client.request(commands.ReissueLog(writer=writer, first=first)))["writers"]
        return plan

    plan = talk(node, conversation)
    print_record(plan, output)
    if output != "json":
        print_message(
            "the node starts anew and re-issues them first; `crdtsync clock show` tells when it is done"
            if yes
            else "this is a dry run: nothing was changed; --yes does it"
        )


def _plan(writer: str, commits: list[dict[str, Any]], clock: dict[str, Any]) -> dict[str, Any]:
    """What these commits hold, and how far they are ahead."""
    from crdtsync.clock import stamp_ms

    events = [event for commit in commits for event in commit["events"]]
    kinds: dict[str, int] = {}
    for event in events:
        kinds[event["kind"]] = kinds.get(event["kind"], 0) + 1
    # By the wall clock where that is behind: a node alone may count on from the future after it was set right.
    ahead_ms = stamp_ms(commits[0]["stamp"]) - min(clock["time_ms"], clock["wall_ms"])
    return {
        "writer": writer,
        "from": commits[0]["number"],
        "upto": commits[-1]["number"],
        "commits": len(commits),
        "events": len(events),
        "kinds": kinds,
        "tasks": sorted({event["task"] for event in events if "task" in event}),
        "ahead_ms": ahead_ms,
        "applied_ms": stamp_ms(commits[-1]["stamp"]) - clock["max_skew_ms"],
        "needed": ahead_ms > clock["max_hold_ms"],
    }


async def _heads(client: Client, writer: str | None) -> list[dict[str, Any]]:
    heads: list[dict[str, Any]] = await client.request(commands.LogHeads())
    return [
        head
        for head in heads
        if writer is None or head["writer"] == writer or head["writer"].startswith((f"{writer}/", f"{writer}#"))
    ]


async def _read(client: Client, writer: str, first: int, *, whole: bool = False) -> AsyncIterator[dict[str, Any]]:
    """Commits of one writer from a number on, decoded."""
    from crdtsync.log.commit import decode_commit

    while blobs := await client.request(commands.ReadLog(writer=writer, first=first)):
        for blob in blobs:
            commit = decode_commit(blob)
            first = commit.number + 1
            record: dict[str, Any] = {
                "domain": commit.domain,
                "writer": commit.writer,
                "number": commit.number,
                "stamp": commit.stamp,
                "hash": commit.hash.hex(),
                "events": [{"kind": type(event).__name__, **_fields(event)} for event in commit.events],
            }
            if whole:
                record["previous"] = commit.previous.hex()
                record["deps"] = {dep.writer: dep.number for dep in commit.deps}
                record["blob"] = blob.hex()
            yield record


def _fields(event: Any) -> dict[str, Any]:
    return {name: _readable(value) for name, value in event._asdict().items()}


def _readable(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return str(value) if hasattr(value, "stamp") else [_readable(item) for item in value]
    return value


def _print_commits(commits: list[dict[str, Any]], output: str, *, follow: bool) -> None:
    if output == "json":
        if not follow:
            print_json(commits)
            return
        for commit in commits:
            print_json_line(commit)
        return
    if not commits:
        return
    rows = [[_time(c["stamp"]), c["writer"], str(c["number"]), _summary(c["events"])] for c in commits]
    for line in table(rows, ["time", "writer", "number", "events"]):
        click.echo(line)


def _time(stamp: int) -> str:
    from datetime import UTC, datetime

    from crdtsync.clock import stamp_ms

    return datetime.fromtimestamp(stamp_ms(stamp) / 1_000, UTC).strftime("%H:%M:%S.%f")[:-3]


def _summary(events: list[dict[str, Any]]) -> str:
    from collections import Counter

    kinds = Counter(event["kind"] for event in events)
    shown = [f"{kind} x{count}" if count > 1 else kind for kind, count in kinds.most_common(SUMMARY_KINDS_MAX)]
    return ", ".join(shown)
