"""The `crdtsync` command: noun, then verb; one module per noun, imported when it is used.

Data goes to stdout, messages to stderr. Exit codes: 0 ok, 1 the task failed or a check did,
2 usage, 3 not found, 4 conflict, 5 not permitted, 69 unreachable, 75 retry later,
78 configuration, 124 timeout, 130 Ctrl-C. They come from `crdtsync.errors` and are turned into
an exit in `main`, nowhere else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from crdtsync.errors import CrdtSyncError
from regions.cli.lazy import LazyGroup
from regions.cli.output import report_error, wants_json

EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it

NOUNS: Final = {
    "demo": ("regions.cli.demo:demo", "Three regions on this machine: cut, diverge, heal, converge."),
    "dev": ("regions.cli.dev:dev", "A cluster on this machine for one's own app; restarts what dies."),
    "node": ("regions.cli.node:node", "Run a node: one per region."),
    "worker": ("regions.cli.worker:worker", "Run a worker: the process in which handlers run."),
    "config": ("regions.cli.config:config", "Show and check a node's configuration."),
    "task": ("regions.cli.task:task", "Submit tasks, follow them, steer them."),
    "region": ("regions.cli.region:region", "The regions as this one sees them; cut, heal, drain."),
    "lease": ("regions.cli.lease:lease", "Who holds which lock, queue or key, and why it can't be had."),
    "limit": ("regions.cli.limit:limit", "How much may run at once, or start in a while, over all regions."),
    "conflict": ("regions.cli.conflict:conflict", "What several regions did at once, and how it was resolved."),
    "clock": ("regions.cli.clock:clock", "Clocks: offset and drift of every region, and what is held back."),
    "log": ("regions.cli.log:log", "The replicated log: follow, verify, export."),
    "sim": ("simulator.cli:sim", "Run a cluster in virtual time, under faults, from one seed."),
    "doc": ("regions.cli.doc:doc", "Shared documents and those of tasks."),
}

EXAMPLES: Final = """\b
Examples:
  crdtsync dev --app shop.py:app --regions eu,us,ap
  export CRDTSYNC_NODE=ws://127.0.0.1:7700
  crdtsync task submit charge --arg order=A17 --arg cents=1250 --wait
  crdtsync region list -o json

Exit codes: 0 ok, 1 failed task or check, 2 usage, 3 not found, 4 conflict,
5 not permitted, 69 unreachable, 75 retry later, 78 configuration, 124 timeout."""


@click.group(cls=LazyGroup, nouns=NOUNS, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="crdtsync", message="%(prog)s %(version)s")
def cli() -> None:
    """Tasks that regions run on their own while they are cut off, and agree on when they meet again."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: the one place where errors become codes."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = cli.main(args=given, prog_name="crdtsync", standalone_mode=False)
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show(sys.stderr)
        return error.exit_code
    except CrdtSyncError as error:
        report_error(error, as_json=wants_json(given))
        return error.exit_code
    except BrokenPipeError:
        # Whoever read our output has seen enough. Point stdout elsewhere, so that Python's flush at exit is silent.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return result if isinstance(result, int) else 0
