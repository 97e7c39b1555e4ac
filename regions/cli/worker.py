"""`crdtsync worker run`: the process in which handlers run."""

from __future__ import annotations

import click

from regions.cli.options import SECONDS, examples, node_options


@click.group()
def worker() -> None:
    """Run a worker: the process in which handlers run."""


@worker.command(
    epilog=examples(
        "crdtsync worker run --app shop.py:app --node ws://127.0.0.1:7700",
        "crdtsync worker run --app my.shop:app --queue payments --concurrency 4",
    ),
)
@click.option("--app", required=True, metavar="FILE_OR_MODULE:NAME", help="The app: shop.py:app or my.shop:app.")
@click.option("--concurrency", type=click.IntRange(min=1), help="Attempts at once.")
@click.option("--queue", "queues", multiple=True, help="Serve only this queue; may be repeated.")
@click.option("--drain-timeout", type=SECONDS, default=20.0, show_default=True, metavar="S", help="For SIGTERM.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="Least severe log line on stderr.",
)
@click.option("--supervisor", type=int, hidden=True, help="End with this process.")
@node_options
def run(
    *,
    app: str,
    concurrency: int | None,
    queues: tuple[str, ...],
    drain_timeout: float,
    log_level: str,
    supervisor: int | None,
    node: str,
    output: str,
) -> int:
    """Run the handlers of an app for a node, until SIGTERM or Ctrl-C; then finish what runs.

    The app's folder is put on the import path.
    """
    import asyncio

    from regions.cli.output import print_json_line
    from regions.execution.registry import load_app
    from regions.execution.worker import CONCURRENCY, Worker
    from regions.lifeline import end_with
    from regions.observability.logs import configure_logs

    if supervisor is not None:
        end_with(supervisor)
    configure_logs(log_level)
    loaded = load_app(app)
    if output == "json":
        print_json_line({"app": loaded.name, "node": node})

    async def serve() -> None:
        await Worker(
            loaded, node, concurrency=concurrency or CONCURRENCY, queues=queues, drain_grace=drain_timeout
        ).run(signals=True)

    asyncio.run(serve())
    return 0
