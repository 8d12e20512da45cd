"""The newest alert episodes, kept in memory. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.lake.tables import ALERTS
from cryptopulse.serve.notify.episodes import family_of

COLUMNS: Final = tuple(ALERTS.arrow_schema.names)
"""All that the table tells of an episode; load_timestamp says how new it is."""
KEPT_MAX: Final = 500
"""How many are kept, the newest; all of them are in the table."""

KEPT_S: Final = 30 * 86_400
"""Those that opened in the 30 days before the newest are read at first."""

Row = dict[str, Any]


class Episodes:
    """Rows of gold.dm_market_alerts by alert_id: plain values, decimals as texts, times in µs UTC."""

    def __init__(self) -> None:
        """Knows none."""
        self.rows: dict[str, Row] = {}

    def clear(self) -> None:
        """Forgets all."""
        self.rows.clear()

    def newest_first(self) -> list[Row]:
        """All that are kept, by when they opened."""
        return sorted(self.rows.values(), key=lambda row: (row["opened_at"], row["alert_id"]), reverse=True)

    def take_in(self, rows: pa.Table) -> tuple[list[Row], list[str]]:
        """What is new or has changed, and the ids of those that are gone: covered by another now, or too old."""
        changed = {row["alert_id"]: row for row in plain_episodes(rows)}
        gone = {alert_id for row in changed.values() for alert_id in self._covered_by(row)}
        for alert_id in gone:
            del self.rows[alert_id]
        self.rows |= changed
        for row in self.newest_first()[KEPT_MAX:]:
            del self.rows[row["alert_id"]]
            gone.add(row["alert_id"])
        return [row for alert_id, row in changed.items() if alert_id in self.rows], sorted(gone - changed.keys())

    def _covered_by(self, row: Row) -> Iterable[str]:
        """Episodes of which late trades have shown that they are a part of `row`: they are no more in the table."""
        family = family_of(row["alert_id"])
        first, last = row["trigger_trade_id"], row["last_trigger_trade_id"]
        for alert_id, other in self.rows.items():
            is_within = first <= other["trigger_trade_id"] <= last
            if alert_id != row["alert_id"] and is_within and family_of(alert_id) == family:
                yield alert_id


def plain_episodes(rows: pa.Table) -> list[Row]:
    """Rows of the table as `Episodes` keeps them."""
    columns = []
    for name in COLUMNS:
        column = rows[name]
        if pa.types.is_decimal(column.type):
            column = pa.array([f"{value.normalize():f}" for value in column.to_pylist()], pa.string())
        elif pa.types.is_timestamp(column.type):
            column = pc.cast(column, pa.int64())
        columns.append(column)
    found: list[Row] = pa.table(columns, names=list(COLUMNS)).to_pylist()
    return found
