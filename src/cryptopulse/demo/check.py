"""Compares the simulator's own count of the demo's trades with the tables, which are read with deltalake alone.

It shares no code with the pipeline. The demo fetches what was traded before its start, its market opens when every
product has a subscriber at every venue, and what is traded while a feed is cut off is healed. So for each venue every
id from the first that it was to record to the last that the simulator published must be stored exactly once.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, QueryBuilder
from deltalake.exceptions import DeltaError, TableNotFoundError

from cryptopulse.simulator.other_venues import SYMBOLS

COINBASE = "coinbase"

Ids = npt.NDArray[np.int64]

Recorded = Mapping[str, Mapping[str, int]]
"""Venue → product → the first trade id to be stored; of products that are not named, all ids that were sent."""


def symbol_at(venue: str, product: str) -> str:
    """What the tables call a simulated product that `venue` trades."""
    return product if venue == COINBASE else f"{SYMBOLS[venue](product)}@{venue}"


@dataclass(frozen=True)
class CrashFound:
    """A staged crash and its rows in the alerts table."""

    symbol: str
    depth_pct: float
    rows: int
    change_pct: float | None
    start_price: Decimal | None
    end_price: Decimal | None
    latency_ms: float | None
    """From the receipt of the trade that opened the episode until the row was committed."""


@dataclass(frozen=True)
class VenueResult:
    """Result for the trades of one venue."""

    sent: int
    """Ids to be stored."""
    stored: int
    """Rows with these ids."""
    lost: int
    duplicated: int
    older: int
    """Rows with ids that were sent before those to be stored."""


@dataclass(frozen=True)
class CheckResult:
    """Result of the comparison."""

    products: int
    venues: Mapping[str, VenueResult]
    strange: int
    """Rows with ids that were never sent."""
    crashes: list[CrashFound]
    alerts: int
    """All rows of the alerts table."""
    healed: int = 0
    """Rows that came over REST."""

    @property
    def sent(self) -> int:
        """Ids to be stored, of all venues."""
        return sum(venue.sent for venue in self.venues.values())

    @property
    def stored(self) -> int:
        """Rows with these ids."""
        return sum(venue.stored for venue in self.venues.values())

    @property
    def lost(self) -> int:
        """Ids without a row."""
        return sum(venue.lost for venue in self.venues.values())

    @property
    def duplicated(self) -> int:
        """Rows beyond the first of their id."""
        return sum(venue.duplicated for venue in self.venues.values())

    @property
    def complete(self) -> bool:
        """Whether every trade is stored exactly once and nothing else is."""
        return not (self.lost or self.duplicated or self.strange)

    @property
    def crashes_right(self) -> bool:
        """Whether each staged crash is exactly one row."""
        return all(crash.rows == 1 for crash in self.crashes)


def check(lake: Path, ledger: Mapping[str, Any], recorded: Recorded) -> CheckResult:
    """Compares the simulator's ledger, taken after trading stopped, with the tables of `lake`."""
    trades = _read(lake / "silver" / "fact_crypto_trades", ["symbol", "trade_id", "ingestion_time", "source"])
    ids = {} if trades is None else _ids(trades)
    venues = {venue: _of_venue(venue, ids, ledger, firsts) for venue, firsts in recorded.items()}
    alerts_path = lake / "gold" / "dm_market_alerts"
    table = _open(alerts_path)
    alerts = [] if table is None else _rows(table, "*").to_pylist()
    crashes = []
    # An episode that was cut off may not have reached the threshold.
    staged = [episode for episode in ledger["episodes"] if episode["kind"] == "crash" and episode["ended"]]
    for venue, episode in itertools.product(recorded, staged):
        symbol = symbol_at(venue, episode["product"])
        found = [row for row in alerts if (row["symbol"], row["alert_type"]) == (symbol, "FLASH_CRASH")]
        row = found[0] if found else None
        crashes.append(
            CrashFound(
                symbol=symbol,
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
        venues=venues,
        strange=sum(map(len, ids.values())) - sum(venue.stored + venue.older for venue in venues.values()),
        crashes=crashes,
        alerts=len(alerts),
        healed=0 if trades is None else int(pc.sum(pc.equal(trades["source"], "rest")).as_py() or 0),
    )


def _ids(trades: pa.Table) -> dict[str, Ids]:
    """The ids of all rows, by symbol."""
    ids, symbols = trades["trade_id"].to_numpy(), trades["symbol"].to_numpy()
    return {str(symbol): ids[symbols == symbol] for symbol in pc.unique(trades["symbol"]).to_pylist()}


def _of_venue(
    venue: str, stored: Mapping[str, Ids], ledger: Mapping[str, Any], firsts: Mapping[str, int]
) -> VenueResult:
    figures = Counter[str]()
    for name, sent in ledger["products"].items():
        last = sent["last_trade_id"]
        first = firsts.get(name, sent["first_trade_id"])
        ids = stored.get(symbol_at(venue, name), np.empty(0, dtype=np.int64))
        ids = ids[(ids >= sent["first_trade_id"]) & (ids <= last)]
        distinct = np.unique(ids)
        figures["sent"] += last - first + 1
        figures["stored"] += int((ids >= first).sum())
        figures["lost"] += last - first + 1 - int((distinct >= first).sum())
        figures["duplicated"] += len(ids) - len(distinct)
        figures["older"] += int((ids < first).sum())
    return VenueResult(**{each.name: figures[each.name] for each in fields(VenueResult)})


def all_stored(lake: Path, ledger: Mapping[str, Any], recorded: Recorded) -> bool:
    """Whether the stored intervals of ids have every id to be stored; a cheap check."""
    coverage = _read(lake / "silver" / "trade_id_coverage", ["symbol", "first_trade_id", "last_trade_id"])
    wanted = {
        symbol_at(venue, name): (firsts.get(name, sent["first_trade_id"]), sent["last_trade_id"])
        for venue, firsts in recorded.items()
        for name, sent in ledger["products"].items()
    }
    left = {symbol: last - first + 1 for symbol, (first, last) in wanted.items()}
    for symbol, first, last in zip(*(column.to_pylist() for column in coverage or ()), strict=True):
        if symbol in wanted:
            first_wanted, last_wanted = wanted[symbol]
            left[symbol] -= max(min(last, last_wanted) - max(first, first_wanted) + 1, 0)
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
