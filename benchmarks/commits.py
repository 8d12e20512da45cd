"""Whether small commits stay cheap: the pipeline driven with live-sized batches, a hundred thousand of them.

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
from benchmarks.processes import Scratch, in_a_process
from benchmarks.storage import disk_use
from cryptopulse.deployment import MEMORY_CHECK_S, FreedMemory
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.tables import TABLES
from cryptopulse.log.sqlite import PARTITION, SqliteLog
from cryptopulse.pipeline import Pipeline
from cryptopulse.settings import Settings, load_settings

_MARKS = (1_000, 10_000, 50_000)  # and the end
_LATELY = 800  # steps before a mark that it tells of: some maintenance of every kind falls into them
_MESSAGES = 100
_RATE = 1_000.0
_MAINTENANCE_S = 1.0  # as in `cryptopulse.pipeline`


@dataclass(frozen=True)
class Tables:
    """All tables of a lake together."""

    delta_commits: int
    live_files: int
    """Newest version."""
    delta_log_files: int
    disk_files: int
    disk_mb: float


@dataclass(frozen=True)
class Mark:
    """How it stands after some steps; the figures of a step are those of the last 800."""

    commits: int
    """Steps, each a commit to bronze, one to silver, and what follows from them."""
    seconds: float
    """Since the start."""
    p50_ms: float
    """A step (log → bronze → silver → alerts)."""
    p99_ms: float
    max_ms: float
    cpu_ms: float
    """CPU time of the process for a step, gold and maintenance included, the making of messages not."""
    rss_mb: float
    tables: Tables


@dataclass(frozen=True)
class Soak:
    """A long run."""

    marks: list[Mark]
    fresh: Mark
    """A new lake in a new process, up to the first mark, measured right after the last one: a machine's pace changes by
    the hour, so times of the end are compared with these."""
    reopening_s: float
    """Opening the lake again at the end: what a restart pays beside the start of Python."""


def measure(folder: Path, commits: int, say: Callable[[str], None]) -> Soak:
    """Makes `commits` steps of 100 messages under `folder`; a mark after 1,000, 10,000, 50,000 and at the end."""
    wanted = sorted({mark for mark in _MARKS if mark < commits} | {commits})
    marks: list[Mark] = []
    with Scratch(folder) as scratch:
        settings = load_settings(lake=scratch.folder / "lake")
        log = SqliteLog(settings.log_path, settings.log.size_max_mb << 20)
        run = _Run(log, commits)
        with Pipeline(settings, log) as pipeline:
            for mark in wanted:
                with _beside(pipeline, settings) as check:
                    while run.steps < mark:
                        check()
                        run.step(pipeline)
                        if run.steps % 1000 == 0:
                            median_ms = np.median(run.took_ms)
                            say(f"{run.steps:,} of {commits:,} steps, median of the last {_LATELY}: {median_ms:.1f} ms")
                marks.append(run.mark(in_a_process(_tables, Path(settings.lake))))
        before = time.perf_counter()
        with Pipeline(settings, log):
            reopening_s = time.perf_counter() - before
        log.close()
        # Before the long lake is deleted, which would keep the disk busy.
        fresh = in_a_process(_first_mark, folder) if len(marks) > 1 else marks[0]
    return Soak(marks, fresh, round(reopening_s, 2))


def _first_mark(folder: Path) -> Mark:
    return measure(folder, _MARKS[0], lambda _text: None).marks[0]


class _Run:
    """The steps so far."""

    def __init__(self, log: SqliteLog, steps: int) -> None:
        self.steps = 0
        self.took_ms: deque[float] = deque(maxlen=_LATELY)
        self._log = log
        self._batches = message_batches(steps * _MESSAGES, _MESSAGES, _RATE)
        self._begun = time.monotonic()
        self._cpu_s: deque[float] = deque(maxlen=_LATELY + 1)
        """CPU time of the process after each step, without what was not the pipeline's."""
        self._not_its_own_s = 0.0
        self._note_cpu()

    def step(self, pipeline: Pipeline) -> None:
        """One step over the next batch."""
        cpu_begun = time.thread_time()
        self._log.append(next(self._batches))
        self._not_its_own_s += time.thread_time() - cpu_begun
        begun = time.perf_counter()
        pipeline.step(PARTITION)
        self.took_ms.append((time.perf_counter() - begun) * 1000)
        self.steps += 1
        self._note_cpu()

    def _note_cpu(self) -> None:
        self._cpu_s.append(time.process_time() - self._not_its_own_s)

    def mark(self, tables: Tables) -> Mark:
        """How it stands now."""
        p50, p99 = np.percentile(np.array(self.took_ms), [50, 99])
        return Mark(
            commits=self.steps,
            seconds=round(time.monotonic() - self._begun, 1),
            p50_ms=round(float(p50), 2),
            p99_ms=round(float(p99), 2),
            max_ms=round(max(self.took_ms), 2),
            cpu_ms=round((self._cpu_s[-1] - self._cpu_s[0]) / (len(self._cpu_s) - 1) * 1000, 2),
            rss_mb=round(psutil.Process().memory_info().rss / 1e6, 1),
            tables=tables,
        )


@contextmanager
def _beside(pipeline: Pipeline, settings: Settings) -> Iterator[Callable[[], None]]:
    """What a process does beside its steps, in threads. Gives a function that raises what stopped one of them."""
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
        threading.Thread(target=repeat, args=(FreedMemory().return_it, MEMORY_CHECK_S)),
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


def _tables(lake: Path) -> Tables:
    folders = [Path(LakeLocation.of(lake).table_url(table)) for table in TABLES]
    deltas = [DeltaTable(str(folder)) for folder in folders]
    disk_bytes, disk_files = disk_use(lake)
    return Tables(
        delta_commits=sum(delta.version() + 1 for delta in deltas),
        live_files=sum(len(delta.file_uris()) for delta in deltas),
        delta_log_files=sum(1 for folder in folders for _ in (folder / "_delta_log").iterdir()),
        disk_files=disk_files,
        disk_mb=round(disk_bytes / 1e6, 1),
    )
