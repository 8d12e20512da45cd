"""A crash day as a recording, or as a file of trades, brought into an empty lake by the command that people use.

The simulator says what the recording holds; what the lake holds afterwards must be the same.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from benchmarks.processes import MeasurementError, Scratch, in_a_process, peak_rss_mb
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.tables import ALERTS, Table
from cryptopulse.simulator.crash_day import CrashDay

_POLL_S = 0.02
_TIMES_OUT_S = 600.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Replay:
    """One run of the command, with the start and the end of the process."""

    seconds: float
    cpu_s: float
    """User and system."""
    rss_peak_mb: float
    episodes: int


@dataclass(frozen=True)
class Replays:
    """All runs over one file."""

    messages: int
    trades: int
    """Each counted once."""
    missing_ids: int
    holes: int
    runs: list[Replay]

    @property
    def median(self) -> Replay:
        """The run in the middle (the slower one of two)."""
        return sorted(self.runs, key=lambda run: run.seconds)[len(self.runs) // 2]


def measure(folder: Path, trades: int, runs: int, say: Callable[[str], None]) -> Replays:
    """Writes a crash day of `trades` under `folder`, and replays it `runs` times.

    Raises MeasurementError when a lake holds something else than the recording.
    """
    with Scratch(folder) as scratch:
        recording = scratch.folder / "crash-day.jsonl"
        say(f"writing a crash day of {trades:,} trades")
        simulator = scratch.start("simulate", "--crash-day", str(recording), "--trades", str(trades), "--json")
        written, _ = simulator.communicate()
        if simulator.returncode:
            raise MeasurementError(f"`cryptopulse simulate` ended with exit code {simulator.returncode}")
        with recording.open("rb") as file:
            os.fsync(file)  # the system writes it out now, not while it is replayed
        summary = json.loads(written)
        found = []
        for number in range(1, runs + 1):
            say(f"replay of the crash day, run {number} of {runs}")
            found.append(_run(scratch, "replay", recording, scratch.folder / f"lake-{number}", summary))
        return _replays(summary, found)


def measure_import(folder: Path, trades: int, runs: int, say: Callable[[str], None]) -> Replays:
    """Writes the trades of a crash day as tardis.dev would under `folder`, and imports them `runs` times.

    Raises MeasurementError when a lake holds something else than the day.
    """
    with Scratch(folder) as scratch:
        file = scratch.folder / "crash-day.csv"
        say(f"writing a crash day of {trades:,} trades as CSV")
        summary = in_a_process(_write_csv, file, trades)
        found = []
        for number in range(1, runs + 1):
            say(f"import of the crash day, run {number} of {runs}")
            found.append(_run(scratch, "import", file, scratch.folder / f"lake-{number}", summary))
        return _replays(summary, found)


def _write_csv(file: Path, trades: int) -> dict[str, Any]:
    """Returns what the file holds; its lines count as messages."""
    day, read, lines = CrashDay(trades), msgspec.json.Decoder().decode, 0
    with file.open("w") as text:
        text.write("exchange,symbol,timestamp,local_timestamp,id,side,price,amount\n")
        for messages in day.messages():
            for received_us, body in zip(messages.received_us, messages.bodies, strict=True):
                trade = read(body)
                if trade["type"] in ("match", "last_match"):
                    time_us = (datetime.fromisoformat(trade["time"]) - _EPOCH) // timedelta(microseconds=1)
                    side = "buy" if trade["side"] == "sell" else "sell"  # the taker's
                    cells = ("coinbase", trade["product_id"], time_us, received_us, trade["trade_id"], side)
                    text.write(",".join(map(str, (*cells, trade["price"], trade["size"]))) + "\n")
                    lines += 1
        text.flush()
        os.fsync(text.fileno())  # the system writes it out now, not while it is imported
    return asdict(day.summary) | {"messages": lines}


def _replays(summary: Mapping[str, Any], runs: list[Replay]) -> Replays:
    return Replays(**{name: summary[name] for name in ("messages", "trades", "missing_ids", "holes")}, runs=runs)


def _run(scratch: Scratch, command: str, file: Path, lake: Path, summary: Mapping[str, Any]) -> Replay:
    """Brings `file` into `lake`, which is deleted at the end."""
    begun = time.monotonic()
    popen = scratch.start(command, str(file), "--lake", str(lake), "--json")
    peak_mb = 0.0
    while True:
        peak_mb = max(peak_mb, peak_rss_mb(popen.pid))
        ended, status, usage = os.wait4(popen.pid, os.WNOHANG)
        if ended:
            popen.returncode = os.waitstatus_to_exitcode(status)
            break
        if time.monotonic() > begun + _TIMES_OUT_S:
            raise MeasurementError(f"`cryptopulse {command}` did not end within {_TIMES_OUT_S:g} s")
        time.sleep(_POLL_S)
    seconds = time.monotonic() - begun
    if popen.returncode:
        raise MeasurementError(f"`cryptopulse {command}` ended with exit code {popen.returncode}")
    assert popen.stdout is not None
    episodes = _rows(lake, ALERTS)
    check(summary, json.load(popen.stdout), episodes)
    shutil.rmtree(lake)
    return Replay(round(seconds, 2), round(usage.ru_utime + usage.ru_stime, 2), round(peak_mb, 1), episodes)


def check(summary: Mapping[str, Any], result: Mapping[str, Any], episodes: int) -> None:
    """Raises MeasurementError unless the lake holds what the recording does and the crash was noticed.

    `summary`: what the simulator says of the recording; `result`: what `replay --json` or `import --json` says of the
    lake.
    """
    held = {product: product_summary["trades"] for product, product_summary in summary["products"].items()}
    expected = {
        "messages": summary["messages"],
        "trades": summary["trades"],
        "duplicates": summary["repeated"],
        "quarantined": 0,
        "missing_ids": summary["missing_ids"],
        "holes": summary["holes"],
        "symbols": held,
    }
    wrong = [f"{name} {result[name]}, not {value}" for name, value in expected.items() if result[name] != value]
    if wrong or not episodes:
        raise MeasurementError(f"the crash day was brought in wrongly: {'; '.join(wrong) or 'no episode'}")


def _rows(lake: Path, table: Table) -> int:
    actions = DeltaTable(LakeLocation.of(lake).table_url(table)).get_add_actions(flatten=True)
    return int(pc.sum(pa.table(actions)["num_records"]).as_py() or 0)
