"""Whether small commits stay fast: the engine driven with live-sized batches, many thousand of them.

The batches come as fast as they are taken, with gold and maintenance beside them in threads of their own at the
intervals of the real pipeline. So this is somewhat harder than life, where the pipeline pauses between two steps.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from deltalake import DeltaTable

from benchmarks.messages import message_batches
from benchmarks.processes import Scratch
from benchmarks.storage import disk_use
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.tables import TABLES
from cryptopulse.log.sqlite import PARTITION, SqliteLog
from cryptopulse.pipeline import Pipeline
from cryptopulse.settings import Settings, load_settings

_MARKS = (500, 5_000, 50_000)  # and the end
_LATELY = 300
_MESSAGES = 100
_RATE = 1_000.0
_MAINTENANCE_S = 1.0  # as in `cryptopulse.pipeline`


@dataclass(frozen=True)
class Mark:
    """How it stands after some commits."""

    commits: int
    seconds: float
    """Since the start."""
    p50_ms: float
    """A step (log → bronze → silver → alerts) over the 300 before."""
    p99_ms: float
    max_ms: float
    delta_commits: int
    """Of all tables together."""
    live_files: int
    """Of all tables, newest version."""
    delta_log_files: int
    """In all Delta logs."""
    disk_files: int
    disk_mb: float
    rss_mb: float
    reopening_s: float
    """Opening the lake again after this: what a restart pays beside the start of Python."""


def measure(folder: Path, commits: int, say: Callable[[str], None]) -> list[Mark]:
    """Makes `commits` steps of 100 messages under `folder`; a mark after 500, 5,000, 50,000 and at the end."""
    wanted = sorted({mark for mark in _MARKS if mark < commits} | {commits})
    marks: list[Mark] = []
    with Scratch(folder) as scratch:
        settings = load_settings(lake=scratch.folder / "lake")
        log = SqliteLog(settings.log_path, settings.log.size_max_mb << 20)
        batches = enumerate(message_batches(commits * _MESSAGES, _MESSAGES, _RATE), start=1)
        begun = time.monotonic()
        for mark in wanted:
            lately: deque[float] = deque(maxlen=_LATELY)
            with Pipeline(settings, log) as pipeline, _beside(pipeline, settings) as check:
                for number, batch in batches:
                    check()
                    log.append(batch)
                    before = time.perf_counter()
                    pipeline.step(PARTITION)
                    lately.append((time.perf_counter() - before) * 1000)
                    if number % 1000 == 0 or number == mark:
                        median_ms = np.median(lately)
                        say(f"{number:,} of {commits:,} steps, median of the last {len(lately)}: {median_ms:.1f} ms")
                    if number == mark:
                        break
            taken_s = time.monotonic() - begun
            marks.append(_mark(Path(settings.lake), mark, taken_s, lately, _reopened(settings, log)))
        log.close()
    return marks


def _reopened(settings: Settings, log: SqliteLog) -> float:
    """Seconds that it takes to open the lake."""
    before = time.perf_counter()
    with Pipeline(settings, log):
        return time.perf_counter() - before


@contextmanager
def _beside(pipeline: Pipeline, settings: Settings) -> Iterator[Callable[[], None]]:
    """Gold and maintenance in threads while the context lasts. Gives a function that raises what stopped one."""
    stop = threading.Event()
    errors: list[Exception] = []

    def repeat(work: Callable[[], None], interval_s: float) -> None:
        try:
            while not stop.wait(interval_s):
                work()
        except Exception as error:  # noqa: BLE001 - raised by the main thread
            errors.append(error)

    def check() -> None:
        if errors:
            raise errors[0]

    threads = [
        threading.Thread(target=repeat, args=(pipeline.gold, settings.processing.gold_interval_ms / 1000)),
        threading.Thread(target=repeat, args=(pipeline.maintenance.run_due, _MAINTENANCE_S)),
    ]
    for thread in threads:
        thread.start()
    try:
        yield check
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    check()


def _mark(lake: Path, commits: int, seconds: float, lately: deque[float], reopening_s: float) -> Mark:
    p50, p99 = np.percentile(np.array(lately), [50, 99])
    folders = {table: Path(LakeLocation.of(lake).table_url(table)) for table in TABLES}
    tables = {table: DeltaTable(str(folder)) for table, folder in folders.items()}
    disk_bytes, disk_files = disk_use(lake)
    return Mark(
        commits=commits,
        seconds=round(seconds, 1),
        p50_ms=round(float(p50), 1),
        p99_ms=round(float(p99), 1),
        max_ms=round(max(lately), 1),
        delta_commits=sum(table.version() + 1 for table in tables.values()),
        live_files=sum(len(table.file_uris()) for table in tables.values()),
        delta_log_files=sum(1 for folder in folders.values() for _ in (folder / "_delta_log").iterdir()),
        disk_files=disk_files,
        disk_mb=round(disk_bytes / 1e6, 1),
        rss_mb=round(psutil.Process().memory_info().rss / 1e6, 1),
        reopening_s=round(reopening_s, 2),
    )
