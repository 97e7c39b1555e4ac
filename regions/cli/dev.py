"""`crdtsync dev`: a cluster on this machine for one's own app."""

from __future__ import annotations

from pathlib import Path

import click

from regions.cli.options import SECONDS, examples, output_option


@click.command(
    epilog=examples(
        "crdtsync dev --app shop.py:app --regions eu,us,ap",
        "crdtsync dev --app my.shop:app --data ./data --ready-file ready.json",
    ),
)
@click.option("--app", required=True, metavar="FILE_OR_MODULE:NAME", help="The app: shop.py:app or my.shop:app.")
@click.option("--regions", default="eu,us,ap", show_default=True, help="Names of the regions, with commas.")
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), help="Keep data here; else it is temporary.")
@click.option(
    "--ready-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write URLs and process ids here as JSON once all is up, and again after each restart.",
)
@click.option("--retention", type=SECONDS, metavar="S", help="Seconds that commits stay after every region has them.")
@click.option("--lost-after", type=SECONDS, default=3.0, show_default=True, metavar="S", help="Silence that is a loss.")
@click.option("--concurrency", type=click.IntRange(min=1), help="Attempts at once in each worker.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="warning",
    show_default=True,
    help="What the nodes and workers write to stderr.",
)
@output_option
def dev(
    *,
    app: str,
    regions: str,
    data: Path | None,
    ready_file: Path | None,
    retention: float | None,
    lost_after: float,
    concurrency: int | None,
    log_level: str,
    output: str,
) -> int:
    """Run a node and a worker process per region on loopback; restart what dies; Ctrl-C stops all.

    A region is not restarted while DATA/<region>.hold exists. --node URL of the printed lines
    talks to a region.
    """
    from crdtsync.identifiers import is_region
    from regions.cli.output import print_json_line, print_message
    from regions.supervisor import Plan, supervise

    names = tuple(dict.fromkeys(name.strip() for name in regions.split(",") if name.strip()))
    bad = [name for name in names if not is_region(name)]
    if bad or not names:
        raise click.BadParameter(
            f"{bad[0]!r} is not a region: lower-case letters, digits and dashes" if bad else "name at least one region",
            param_hint="--regions",
        )

    def announce(region: str, url: str, peer_url: str, data: Path) -> None:
        if output == "json":
            print_json_line({"region": region, "url": url, "peer_url": peer_url, "data": str(data)})
        else:
            click.echo(f"{region:<8} {url}   {data}")

    plan = Plan(
        app=app,
        regions=names,
        data=data,
        ready_file=ready_file,
        retention_s=None if retention is None else round(retention),
        lost_after_ms=round(lost_after * 1_000),
        concurrency=concurrency,
        log_level=log_level,
    )
    return supervise(plan, announce=announce, tell=print_message)
