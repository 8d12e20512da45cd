"""Catch-up: a log that holds a crash day, brought through gold as fast as possible.

Each run is a process of its own on a copy of the same log, so that memory is its own and nothing is warm.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from benchmarks.processes import MeasurementError, Scratch, in_a_process, peak_rss_mb
from benchmarks.storage import LogStorage, Storage, log_storage, storage_of
from cryptopulse.log import MESSAGE_SCHEMA
from cryptopulse.log.sqlite import SqliteLog
from cryptopulse.pipeline import Pipeline
from cryptopulse.settings import load_settings
from cryptopulse.simulator.crash_day import CrashDay

_LOG_BYTES_MAX = 64 << 30


@dataclass(frozen=True)
class Drain:
    """One run."""

    trades: int
    seconds: float
    """From the first read of the log to the last commit in gold."""
    cpu_s: float
    """CPU time of the process meanwhile."""
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

    messages: int
    append_messages: int
    """Messages of one append to the log."""
    log: LogStorage
    runs: list[Drain]

    @property
    def median(self) -> Drain:
        """The run in the middle (the lower one of two)."""
        return sorted(self.runs, key=lambda run: run.trades_per_s)[(len(self.runs) - 1) // 2]


def measure(folder: Path, trades: int, runs: int, append_messages: int, say: Callable[[str], None]) -> CatchUp:
    """Fills a log with a crash day of `trades` in appends of `append_messages`, and works it off `runs` times."""
    with Scratch(folder) as scratch:
        filled = scratch.folder / "filled.db"
        say(f"filling a log with a crash day of {trades:,} trades")
        messages, expected = in_a_process(_fill, filled, trades, append_messages)
        found = log_storage(filled)
        drains = []
        for number in range(1, runs + 1):
            say(f"catch-up, run {number} of {runs}")
            lake = scratch.folder / f"lake-{number}"
            (lake / "_cryptopulse").mkdir(parents=True)
            shutil.copyfile(filled, lake / "_cryptopulse" / "log.db")
            drains.append(in_a_process(_drain, lake))
            shutil.rmtree(lake)
        if any(drain.trades != expected for drain in drains):
            raise MeasurementError(f"of {expected} trades {min(drain.trades for drain in drains)} were stored")
        return CatchUp(messages, append_messages, found, drains)


def _fill(path: Path, trades: int, append_messages: int) -> tuple[int, int]:
    """Returns how many messages the log holds, and how many trades are in them."""
    day = CrashDay(trades)
    log = SqliteLog(path, _LOG_BYTES_MAX)
    for messages in day.messages():
        received = pa.array(messages.received_us, MESSAGE_SCHEMA.field("received_time").type)
        sources = pa.repeat("websocket", len(messages.bodies))
        table = pa.table([messages.products, received, sources, messages.bodies], schema=MESSAGE_SCHEMA)
        for start in range(0, table.num_rows, append_messages):
            log.append(table.slice(start, append_messages))
    log.close()
    return day.summary.messages, day.summary.trades


def _drain(lake: Path) -> Drain:
    settings = load_settings(lake=lake)
    log = SqliteLog(settings.log_path, _LOG_BYTES_MAX)
    with Pipeline(settings, log) as pipeline:
        begun, cpu_begun = time.perf_counter(), time.process_time()
        pipeline.drain(lambda _done, _total: None)
        seconds, cpu_s = time.perf_counter() - begun, time.process_time() - cpu_begun
    peak_mb = peak_rss_mb(os.getpid())
    begun = time.perf_counter()
    with Pipeline(settings, log):
        reopen_s = time.perf_counter() - begun
    log.close()
    storage = storage_of(lake)
    return Drain(
        trades=storage.trades,
        seconds=round(seconds, 3),
        cpu_s=round(cpu_s, 3),
        rss_peak_mb=round(peak_mb, 1),
        reopen_s=round(reopen_s, 3),
        storage=storage,
    )
