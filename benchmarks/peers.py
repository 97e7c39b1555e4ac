"""The peer kit's programs, run beside ours: one JSON line each, as the kit's README defines it.

The kit is not part of this project. It is a folder with one `peer_NAME.py` per peer, and virtual environments that
hold the peers; whatever of it is not there is reported as absent, with the reason.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.report import Table, number_text

TIMEOUT_S: Final = 300.0


class Peer(NamedTuple):
    """How the kit's own comparison runs a peer: environment, program, options, tasks at most."""

    venv: str
    program: str
    options: tuple[str, ...] = ()
    tasks_max: int = 5_000  # slower peers are given fewer, so that a round ends
    durable: bool = True


PEERS: Final[dict[str, Peer]] = {
    "ceiling": Peer("venv-lim", "peer_ceiling.py", tasks_max=20_000),
    "oban": Peer("venv-oban", "peer_oban.py"),
    "huey": Peer("venv", "peer_huey.py", ("--store", "sqlite", "-d", "0.001", "-m", "0.01")),
    "huey_redis": Peer("venv", "peer_huey.py", ("-k", "thread", "-w", "4", "--redis", "always")),
    "dramatiq": Peer("venv", "peer_dramatiq.py", ("-p", "1", "-t", "32", "--redis", "always")),
    "taskiq": Peer("venv", "peer_taskiq.py", ("--redis", "always")),
    "celery": Peer("venv", "peer_celery.py", ("--broker", "amqp", "--pool", "solo", "--acks-late"), 3_000),
    "saq": Peer("venv-saq", "peer_saq.py", ("--redis", "always"), 3_000),
    "procrastinate": Peer("venv", "peer_procrastinate.py", (), 1_000),
    "dbos": Peer("venv", "peer_dbos.py", ("--poll", "0.05"), 1_000),
}
REFERENCE: Final = "ceiling"  # not a peer: the least that any such engine must do

#: The kit's name, ours, and whether more is better.
COLUMNS: Final = (
    ("enq_s", "one call", True),
    ("bulk_enq_s", "bulk", True),
    ("drain_s", "drain", True),
    ("conc_s", "call + work", True),
    ("bulk_conc_s", "bulk + work", True),
    ("lat_p50_ms", "p50 ms", False),
    ("lat_p99_ms", "p99 ms", False),
    ("cpu_s_per_1k", "CPU s/1k", False),
    ("cpu_bulk_per_1k", "CPU s/1k bulk", False),
    ("flush_per_1k", "flushes/1k", False),
)


class AbsentError(Exception):
    """The peer cannot be measured here."""


def measure(name: str, kit: Path, tasks: int, latencies: int, data: Path) -> dict[str, Any]:
    """One run of a peer, as its JSON line.

    Raises:
        AbsentError: It is not installed, or does not run.
    """
    peer = PEERS.get(name)
    if peer is None:
        raise AbsentError(f"no such peer; known are {', '.join(PEERS)}")
    kit = kit.absolute()
    python = kit / peer.venv / "bin" / "python"
    for needed in (python, kit / peer.program):
        if not needed.exists():
            raise AbsentError(f"{needed.relative_to(kit)} is not there")
    command = [str(python), peer.program, "--tasks", str(min(tasks, peer.tasks_max)), "--runs", "1"]
    command += ["--lat", str(latencies), "--lat-budget", "15", *peer.options]
    place = Path(os.environ.get("BENCH_DATA", data / "peers"))
    place.mkdir(parents=True, exist_ok=True)
    try:
        ended = subprocess.run(
            command,
            cwd=kit,
            env={**os.environ, "BENCH_DATA": str(place)},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise AbsentError(f"did not end within {TIMEOUT_S:g} s") from None
    line = last_line(ended.stdout)
    if ended.returncode or not line.startswith("{"):
        raise AbsentError(last_line(ended.stderr) or f"exit code {ended.returncode}")
    figures: dict[str, Any] = json.loads(line)
    return figures


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def median_of(lines: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [line[key] for line in lines if isinstance(line.get(key), int | float)]
    return statistics.median(values) if values else None


def tables_of(lines: Mapping[str, Sequence[Mapping[str, Any]]], absent: Mapping[str, str]) -> list[Table]:
    """The figures of all, and how ours compare: by peer, and with the best peer of each column."""
    figures = Table("Medians over the rounds", ("peer", *(ours for _, ours, _ in COLUMNS)))
    ratios = Table("Ours divided by theirs (time, CPU and flushes: below 1 is better)", figures.columns)
    medians = {name: {key: median_of(runs, key) for key, _, _ in COLUMNS} for name, runs in lines.items()}
    ours = medians["crdtsync"]
    for name, theirs in medians.items():
        figures.add(name, *(theirs[key] for key, _, _ in COLUMNS))
        if name != "crdtsync":
            ratios.add(name, *(ratio(ours[key], theirs[key]) for key, _, _ in COLUMNS))
    best = {key: best_of(medians, key, more=more) for key, _, more in COLUMNS}
    if any(value is not None for value in best.values()):
        ratios.add("best peer", *(ratio(ours[key], best[key]) for key, _, _ in COLUMNS))
    for name, reason in absent.items():
        figures.notes.append(f"{name}: absent ({reason})")
    for name, runs in lines.items():
        figures.notes.append(f"{name}: {runs[0].get('variant', '')}, {runs[0].get('n')} tasks, {len(runs)} rounds")
    return [figures, ratios]


def best_of(medians: Mapping[str, Mapping[str, float | None]], key: str, *, more: bool) -> float | None:
    """The best of the peers proper."""
    values = [m[key] for name, m in medians.items() if name not in ("crdtsync", REFERENCE)]
    present = [value for value in values if value is not None]
    if not present:
        return None
    return max(present) if more else min(present)


def ratio(ours: float | None, theirs: float | None) -> str | None:
    return None if ours is None or not theirs else number_text(ours / theirs)
