"""When rows came into a table, by its Delta log alone: the same for whoever writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.tables import Table

Trade = tuple[str, int]
"""Product and trade id."""


@dataclass(frozen=True)
class Commit:
    """One commit that added rows."""

    at: float
    """Time of its file, seconds since 1970: it is written whole under another name first, and then put in its place."""
    files: tuple[Path, ...]
    rows: int

    def read(self, columns: list[str]) -> pa.Table:
        """The rows that it added. Its files stay for an hour at least, merged into others or not."""
        return pa.concat_tables(pq.ParquetFile(file).read(columns=columns) for file in self.files)


class Follower:
    """Notes the commits of one local table as they come: an engine may remove old entries of the log."""

    def __init__(self, lake: Path, table: Table) -> None:
        """The table may not be there yet."""
        self._folder = Path(LakeLocation.of(lake).table_url(table))
        self._next = 0
        self.commits: list[Commit] = []

    def look(self) -> None:
        """Takes in the commits since the last look; call it several times a second."""
        while (file := self._folder / "_delta_log" / f"{self._next:020d}.json").exists():
            self._next += 1
            at, text = file.stat().st_mtime, file.read_text()
            adds = [action["add"] for action in map(json.loads, text.splitlines()) if "add" in action]
            adds = [add for add in adds if add["dataChange"]]  # merging small files adds no rows
            if adds:
                rows = sum(json.loads(add["stats"])["numRecords"] for add in adds)
                self.commits.append(Commit(at, tuple(self._folder / unquote(add["path"]) for add in adds), rows))

    @property
    def rows(self) -> int:
        """Rows of all commits, replaced ones included."""
        return sum(commit.rows for commit in self.commits)


def silver_latencies_ms(commits: list[Commit], first_us: int, last_us: int) -> npt.NDArray[np.float64]:
    """For each trade that was received between the two times (µs since 1970): receipt → its commit."""
    found = []
    for commit in commits:
        received_us = _micros(commit.read(["ingestion_time"])["ingestion_time"])
        wanted = received_us[(received_us >= first_us) & (received_us < last_us)]
        found.append(commit.at * 1e3 - wanted / 1e3)
    return np.concatenate(found) if found else np.array([])


def received_us(commits: list[Commit]) -> dict[Trade, int]:
    """Silver's trades and when each was received."""
    found: dict[Trade, int] = {}
    for commit in commits:
        rows = commit.read(["symbol", "trade_id", "ingestion_time"])
        trades = zip(rows["symbol"].to_pylist(), rows["trade_id"].to_pylist(), strict=True)
        found.update(zip(trades, _micros(rows["ingestion_time"]).tolist(), strict=True))
    return found


def episodes(commits: list[Commit]) -> dict[Trade, float]:
    """The trade that opened each alert → when the alert was first committed (seconds since 1970)."""
    found: dict[Trade, float] = {}
    for commit in commits:
        rows = commit.read(["symbol", "trigger_trade_id"])
        for trade in zip(rows["symbol"].to_pylist(), rows["trigger_trade_id"].to_pylist(), strict=True):
            found.setdefault(trade, commit.at)
    return found


def alert_latencies_ms(opened: Mapping[Trade, float], received: Mapping[Trade, int]) -> npt.NDArray[np.float64]:
    """For each episode: receipt of the trade that opened it → the alert's first commit."""
    return np.array([at * 1e3 - received[trade] / 1e3 for trade, at in opened.items()])


def _micros(times: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Times as µs since 1970; Spark's files have them in nanoseconds."""
    unit = pa.timestamp("us", tz=times.type.tz)
    values: npt.NDArray[np.int64] = pc.cast(pc.cast(times, unit), pa.int64()).to_numpy()
    return values
