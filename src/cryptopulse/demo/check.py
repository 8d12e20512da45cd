"""Compares the simulator's own count of the demo's trades with the tables, which are read with deltalake alone.

It shares no code with the pipeline. The demo fetches what was traded before its start, its market opens when every
product has a subscriber, and what is traded while the feed is cut off is healed, so each id from the first to the last
that the simulator published must be stored exactly once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, QueryBuilder
from deltalake.exceptions import DeltaError, TableNotFoundError


@dataclass(frozen=True)
class CrashFound:
    """A staged crash and its rows in the alerts table."""

    product: str
    depth_pct: float
    rows: int
    change_pct: float | None
    start_price: Decimal | None
    end_price: Decimal | None
    latency_ms: float | None
    """From the receipt of the trade that opened the episode until the row was committed."""


@dataclass(frozen=True)
class CheckResult:
    """Result of the comparison."""

    products: int
    sent: int
    stored: int
    """Rows with ids that were sent."""
    lost: int
    duplicated: int
    strange: int
    """Rows with ids that were never sent."""
    crashes: list[CrashFound]
    alerts: int
    """All rows of the alerts table."""
    healed: int = 0
    """Rows that came over REST."""

    @property
    def complete(self) -> bool:
        """Whether every trade is stored exactly once and nothing else is."""
        return not (self.lost or self.duplicated or self.strange)

    @property
    def crashes_right(self) -> bool:
        """Whether each staged crash is exactly one row."""
        return all(crash.rows == 1 for crash in self.crashes)


def check(lake: Path, ledger: Mapping[str, Any]) -> CheckResult:
    """Compares the simulator's ledger, taken after trading stopped, with the tables of `lake`."""
    trades = _read(lake / "silver" / "fact_crypto_trades", ["symbol", "trade_id", "ingestion_time", "source"])
    trade_ids = np.empty(0, dtype=np.int64) if trades is None else trades["trade_id"].to_numpy()
    symbols = np.empty(0, dtype=object) if trades is None else trades["symbol"].to_numpy()
    sent = lost = duplicated = stored = 0
    for product, figures in ledger["products"].items():
        first, last = figures["first_trade_id"], figures["last_trade_id"]
        ids = trade_ids[symbols == product]
        inside = ids[(ids >= first) & (ids <= last)]
        distinct = np.unique(inside)
        sent += last - first + 1
        stored += len(inside)
        lost += last - first + 1 - len(distinct)
        duplicated += len(inside) - len(distinct)
    alerts_path = lake / "gold" / "dm_market_alerts"
    table = _open(alerts_path)
    alerts = [] if table is None else _rows(table, "*").to_pylist()
    crashes = []
    for episode in ledger["episodes"]:
        if episode["kind"] != "crash" or not episode["ended"]:
            continue  # an episode that was cut off may not have reached the threshold
        found = [row for row in alerts if (row["symbol"], row["alert_type"]) == (episode["product"], "FLASH_CRASH")]
        row = found[0] if found else None
        crashes.append(
            CrashFound(
                product=episode["product"],
                depth_pct=episode["depth_pct"],
                rows=len(found),
                change_pct=row and row["price_change_pct"],
                start_price=row and row["start_price"],
                end_price=row and row["end_price"],
                latency_ms=row and _latency_ms(alerts_path, row, trades),
            )
        )
    return CheckResult(
        products=len(ledger["products"]),
        sent=sent,
        stored=stored,
        lost=lost,
        duplicated=duplicated,
        strange=(0 if trades is None else trades.num_rows) - stored,
        crashes=crashes,
        alerts=len(alerts),
        healed=0 if trades is None else int(pc.sum(pc.equal(trades["source"], "rest")).as_py() or 0),
    )


def all_stored(lake: Path, ledger: Mapping[str, Any]) -> bool:
    """Whether the stored intervals of ids have every id that was sent; a cheap check."""
    coverage = _read(lake / "silver" / "trade_id_coverage", ["symbol", "first_trade_id", "last_trade_id"])
    left = {
        product: figures["last_trade_id"] - figures["first_trade_id"] + 1
        for product, figures in ledger["products"].items()
    }
    for symbol, first, last in zip(*(column.to_pylist() for column in coverage or ()), strict=True):
        if sent := ledger["products"].get(symbol):
            inside = min(last, sent["last_trade_id"]) - max(first, sent["first_trade_id"]) + 1
            left[symbol] -= max(inside, 0)
    return not any(left.values())


def _latency_ms(path: Path, alert: Mapping[str, Any], trades: pa.Table | None) -> float | None:
    """Milliseconds from the receipt of the trade that opened the episode to the first commit with its row."""
    if trades is None:
        return None
    is_trigger = (trades["symbol"].to_numpy() == alert["symbol"]) & (
        trades["trade_id"].to_numpy() == alert["trigger_trade_id"]
    )
    received = trades.filter(pa.array(is_trigger))["ingestion_time"].to_pylist()
    if not received:
        return None
    committed = _first_commit(path, str(alert["alert_id"])) or alert["detected_at"]
    return float((committed - received[0]).total_seconds() * 1000)


def _first_commit(path: Path, alert_id: str) -> datetime | None:
    """When the first commit with the row became visible (its file's time, UTC); None when that file is gone."""
    logs = sorted((path / "_delta_log").glob("*.json"))
    low, high = 0, len(logs) - 1
    while low <= high:  # binary search: once there, a row stays
        middle = (low + high) // 2
        table = _open(path, version=int(logs[middle].stem))
        if table is None:
            return None
        if alert_id in _rows(table, "alert_id")["alert_id"].to_pylist():
            high = middle - 1
        else:
            low = middle + 1
    return None if low >= len(logs) or low == 0 else datetime.fromtimestamp(logs[low].stat().st_mtime, UTC)


def _read(path: Path, columns: list[str]) -> pa.Table | None:
    table = _open(path)
    return None if table is None else _rows(table, ", ".join(columns))


def _rows(table: DeltaTable, columns: str) -> pa.Table:
    # Not `to_pyarrow_table`: its threads abort one in four short-lived processes at exit (deltalake 1.6.6).
    reader = QueryBuilder().register("rows", table).execute(f"SELECT {columns} FROM rows")  # noqa: S608 -- our names
    rows = pa.table(reader.read_all())
    text = [pa.field(f.name, pa.string() if pa.types.is_string_view(f.type) else f.type) for f in rows.schema]
    return rows.cast(pa.schema(text))


def _open(path: Path, version: int | None = None) -> DeltaTable | None:
    try:
        return DeltaTable(str(path), version=version)
    except (TableNotFoundError, DeltaError):
        return None
