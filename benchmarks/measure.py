"""What a figure is, and how fast the machine was when it was taken.

Figures of two machines, or of one machine in two hours, do not compare; ratios taken in one run do. So every run
carries the machine's facts, and a calibration from before, between and after: when that drifts, the figures drifted too.
"""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

CALIBRATION_LOOPS: Final = 2_000_000
CALIBRATION_SYNCS: Final = 300
SYNC_BYTES: Final = 110  # what one event takes, as in the peer kit's calibration
DATA: Final = Path(tempfile.gettempdir())


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity: every run's value, in the order of the runs."""

    values: tuple[float, ...]
    unit: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    @property
    def spread(self) -> float:
        """Half the distance between the lowest and the highest run, as a share of the median."""
        return (self.high - self.low) / 2 / self.median if self.median else 0.0

    def to_plain(self) -> dict[str, Any]:
        plain: dict[str, Any] = {"median": self.median, "low": self.low, "high": self.high, "runs": list(self.values)}
        return plain | ({"unit": self.unit} if self.unit else {})


def figure(values: Iterable[float], unit: str = "") -> Figure | None:
    """A figure of these runs, None if there was none."""
    taken = tuple(values)
    return Figure(taken, unit) if taken else None


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of all lie, rounded up to one that was seen."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


# The machine -------------------------------------------------------------------------------------


def machine_facts(data: Path) -> dict[str, Any]:
    """What is worth knowing of this machine, and of the disk under `data`; no names."""
    return {
        "cpus": os.cpu_count(),
        "cpu": _cpu_model(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "file_system": file_system(data),
        "flushes_counted": flushes(data) is not None,
    }


def calibrate(data: Path) -> dict[str, Any]:
    """How fast the machine is now: additions in pure Python, one fdatasync, and who else is busy."""
    busy = _cpu_jiffies()
    mops = statistics.median(_python_mops() for _ in range(5))
    sync_us = _sync_us(data)
    after = _cpu_jiffies()
    total = max(1, after[0] - busy[0])
    return {
        "at": time.strftime("%H:%M:%S"),
        "python_mops": round(mops, 1),
        "fsync_p50_us": round(sync_us),
        "idle_percent": round(100 * (after[1] - busy[1]) / total),
        "steal_percent": round(100 * (after[2] - busy[2]) / total, 1),
        "load": round(os.getloadavg()[0], 2),
    }


def file_system(path: Path) -> str:
    """The type of the file system that holds `path`: a tmpfs makes every promise to be durable free, and worthless."""
    best, kind = "", "?"
    for line in Path("/proc/mounts").read_text("utf-8").splitlines():
        _, mount, found, *_ = line.split()
        if str(path.resolve()).startswith(mount) and len(mount) >= len(best):
            best, kind = mount, found
    return kind


def flushes(path: Path) -> int | None:
    """Flush requests that the disk under `path` has finished since boot, all processes together; None if unknown."""
    number = path.resolve().stat().st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not device.exists():
        return None
    disk = device.resolve()
    if (disk / "partition").exists():  # flushes are counted for the whole disk
        disk = disk.parent
    fields = (disk / "stat").read_text("ascii").split()
    return int(fields[15]) if len(fields) > 15 else None


def cpu_s(pid: int) -> float:
    """CPU seconds of a process, its threads and its ended children; 0 if it is gone."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, after_name[11:15])) / os.sysconf("SC_CLK_TCK")


def pss_mb(pid: int) -> float:
    """Memory of a process in 10**6 bytes, shared pages counted in parts; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1_024 / 1e6 for line in lines if line.startswith("Pss:")), 0.0)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _cpu_jiffies() -> tuple[int, int, int]:
    """All, idle and stolen ones."""
    fields = [int(text) for text in Path("/proc/stat").read_text("ascii").splitlines()[0].split()[1:]]
    return sum(fields), fields[3] + fields[4], fields[7]


def _python_mops() -> float:
    begun = time.perf_counter()
    x = 0
    for i in range(CALIBRATION_LOOPS):
        x += i & 7
    return CALIBRATION_LOOPS / 1e6 / (time.perf_counter() - begun)


def _sync_us(data: Path) -> float:
    taken = []
    with tempfile.NamedTemporaryFile(dir=data) as file:
        for _ in range(CALIBRATION_SYNCS):
            os.write(file.fileno(), b"x" * SYNC_BYTES)
            begun = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - begun)
    return statistics.median(taken) * 1e6
