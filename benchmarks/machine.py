"""On what was measured: figures mean little without it."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

_LIBRARIES = ("cryptopulse", "deltalake", "duckdb", "numpy", "picows", "pyarrow", "uvloop")


@dataclass(frozen=True)
class Machine:
    """A machine as far as it matters here."""

    cpu: str
    cores: int
    """Cores that this process may use."""
    memory_bytes: int
    kernel: str
    folder: str
    filesystem: str
    """Type of the file system under `folder`, where all tables and logs of the benchmarks lie."""
    python: str
    libraries: dict[str, str]
    load_before: float
    """Load average of the last minute when the benchmark began: an idle machine has about 0."""
    measured_at: str
    """ISO 8601, UTC."""


def describe(folder: Path) -> Machine:
    """This machine; `folder` is where the benchmarks write."""
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=int(psutil.virtual_memory().total),
        kernel=f"{platform.system()} {platform.release()}",
        folder=str(folder),
        filesystem=_filesystem(folder),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        libraries={name: version(name) for name in _LIBRARIES},
        load_before=round(os.getloadavg()[0], 2),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _filesystem(folder: Path) -> str:
    """The type of the mount that `folder` lies on: the deepest one that contains it."""
    place = folder.resolve()
    mounts = [mount for mount in psutil.disk_partitions(all=True) if place.is_relative_to(mount.mountpoint)]
    return str(max(mounts, key=lambda mount: len(mount.mountpoint)).fstype) if mounts else "unknown"
