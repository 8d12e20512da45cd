"""Catch-up: a log that was filled beforehand, brought through gold as fast as possible.

Each run is a process of its own on a copy of the same log, so that memory is its own and nothing is warm.
"""

from __future__ import annotations

import multiprocessing
import resource
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from benchmarks.messages import message_batches
from benchmarks.processes import MeasurementError, Scratch
from benchmarks.stages import StageClock
from benchmarks.storage import LogStorage, Storage, log_storage, storage_of
from cryptopulse.log.sqlite import SqliteLog
from cryptopulse.pipeline import Pipeline
from cryptopulse.settings import load_settings

_P = ParamSpec("_P")
_R = TypeVar("_R")
_LOG_BYTES_MAX = 64 << 30
_MARKET_RATE = 1_000.0  # trades a second of market time: how many windows the trades fall into


@dataclass(frozen=True)
class Drain:
    """One run."""

    messages: int
    trades: int
    seconds: float
    """From the first read of the log to the last commit in gold."""
    cores: float
    """CPU time of the process / `seconds`."""
    busy_s: dict[str, float]
    """Stage → seconds in which it was at work (`benchmarks.stages`)."""
    rss_peak_mb: float
    reopen_s: float
    """Opening the lake again afterwards, with all its trades: the part of a start that grows with the lake."""
    storage: Storage

    @property
    def trades_per_s(self) -> float:
        """Through gold."""
        return self.trades / self.seconds


@dataclass(frozen=True)
class CatchUp:
    """All runs over one log."""

    append_messages: int
    """Messages of one append to the log."""
    log: LogStorage
    runs: list[Drain]

    @property
    def best(self) -> Drain:
        """The fastest run: the one that was disturbed least."""
        return max(self.runs, key=lambda run: run.trades_per_s)

    @property
    def median(self) -> Drain:
        """The run in the middle (the lower one of two)."""
        return sorted(self.runs, key=lambda run: run.trades_per_s)[(len(self.runs) - 1) // 2]


def measure(folder: Path, messages: int, runs: int, append_messages: int, say: Callable[[str], None]) -> CatchUp:
    """Fills a log with `messages` in appends of `append_messages`, and works it off `runs` times under `folder`."""
    with Scratch(folder) as scratch:
        filled = scratch.folder / "filled.db"
        say(f"filling a log with {messages:,} messages")
        _in_a_process(_fill, filled, messages, append_messages)
        found = log_storage(filled)
        drains = []
        for number in range(1, runs + 1):
            say(f"catch-up, run {number} of {runs}")
            lake = scratch.folder / f"lake-{number}"
            (lake / "_cryptopulse").mkdir(parents=True)
            shutil.copyfile(filled, lake / "_cryptopulse" / "log.db")
            drains.append(_in_a_process(_drain, lake))
            shutil.rmtree(lake)
        if any(drain.trades != messages for drain in drains):
            raise MeasurementError(f"of {messages} trades only {min(drain.trades for drain in drains)} were stored")
        return CatchUp(append_messages, found, drains)


def _in_a_process(function: Callable[_P, _R], *arguments: _P.args, **named: _P.kwargs) -> _R:
    """Calls a function of a module in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **named).result()


def _fill(path: Path, messages: int, append_messages: int) -> None:
    log = SqliteLog(path, _LOG_BYTES_MAX)
    for batch in message_batches(messages, append_messages, _MARKET_RATE):
        log.append(batch)
    log.close()


def _drain(lake: Path) -> Drain:
    settings = load_settings(lake=lake)
    log = SqliteLog(settings.log_path, _LOG_BYTES_MAX)
    clock = StageClock()
    with Pipeline(settings, log) as pipeline:
        clock.attach(pipeline, log)
        begun, cpu_begun = time.perf_counter(), time.process_time()
        pipeline.drain(lambda _done, _total: None)
        seconds, cpu_s = time.perf_counter() - begun, time.process_time() - cpu_begun
        summary = pipeline.telemetry.summary()
    peak_mb = _peak_rss_mb()
    begun = time.perf_counter()
    with Pipeline(settings, log):
        reopen_s = time.perf_counter() - begun
    log.close()
    return Drain(
        messages=int(str(summary["messages"])),
        trades=int(str(summary["trades"])),
        seconds=round(seconds, 3),
        cores=round(cpu_s / seconds, 2),
        busy_s={stage: round(busy, 3) for stage, busy in clock.busy_s.items()},
        rss_peak_mb=round(peak_mb, 1),
        reopen_s=round(reopen_s, 3),
        storage=storage_of(lake),
    )


def _peak_rss_mb() -> float:
    """The most memory that this process has had, in MB."""
    try:
        # Not `getrusage`: a child begins with its parent's peak.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3 * 1.024
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
