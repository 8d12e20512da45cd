"""The newest alert episodes, kept in memory. No I/O."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.lake.alerts import family_of
from cryptopulse.lake.tables import ALERTS
from cryptopulse.text import decimal_text

COLUMNS: Final = tuple(ALERTS.arrow_schema.names)
"""All columns of an episode; load_timestamp says how new it is."""
KEPT_MAX: Final = 500
"""How many are sent at first, the newest and all that are open; the others are in the table."""
DAY_KEPT_MAX: Final = 10_000
"""How many are kept to be counted, of those of the last day: some 25 MB. A crash day of 20 products has 500."""
KEPT_S: Final = 30 * 86_400
"""Those that opened in the 30 days before the newest are read at first."""

_MINUTE_US = 60_000_000
_HOUR_US = 60 * _MINUTE_US
_DAY_US = 24 * _HOUR_US

Row = dict[str, Any]


class LiveEpisodes:
    """Rows of gold.dm_market_alerts by alert_id: plain values, decimals as texts, times in µs UTC.

    Kept are the newest KEPT_MAX, and those of the day before the newest one that is not in the future.
    """

    def __init__(self) -> None:
        """Knows none."""
        self.rows: dict[str, Row] = {}
        self._families: defaultdict[str, set[str]] = defaultdict(set)
        self._counted: tuple[int, dict[str, Any]] | None = None

    def clear(self) -> None:
        """Forgets all."""
        self.rows.clear()
        self._families.clear()
        self._counted = None

    def newest_first(self) -> list[Row]:
        """All that are kept, by when they opened."""
        return sorted(self.rows.values(), key=lambda row: (row["opened_at"], row["alert_id"]), reverse=True)

    def first_shown(self) -> list[Row]:
        """The newest KEPT_MAX, and all that are open."""
        return [row for place, row in enumerate(self.newest_first()) if place < KEPT_MAX or row["state"] == "OPEN"]

    def totals(self, now_us: int) -> dict[str, Any]:
        """How many are open, and what opened in the hour and the day before `now_us`, the lake's present (µs UTC).

        Counted again with each change and each minute, as it is needed with every commit.
        """
        if self._counted is None or self._counted[0] != now_us // _MINUTE_US:
            # One that opened in the future counts when it is there; a moment is between the newest trade and a new
            # episode.
            day = [row for row in self.rows.values() if now_us - _DAY_US < row["opened_at"] <= now_us + _MINUTE_US]
            counts = {
                "open_alerts": sum(row["state"] == "OPEN" for row in self.rows.values()),
                "alerts_1h": sum(row["opened_at"] > now_us - _HOUR_US for row in day),
                "alerts_24h": len(day),
                "critical_24h": sum(row["severity"] == "CRITICAL" for row in day),
                "largest_24h": max((row["price_change_pct"] for row in day), key=abs, default=None),
            }
            self._counted = now_us // _MINUTE_US, counts
        return self._counted[1]

    def take_in(self, rows: pa.Table, wall_us: int) -> tuple[list[Row], list[str]]:
        """What is new or has changed, and the ids of those that are no more in the table: covered by another now.

        `wall_us`: now, µs UTC.
        """
        changed = {row["alert_id"]: row for row in plain_episodes(rows)}
        covered = set()  # late trades have shown that they are a part of another: they are no more in the table
        for row in changed.values():
            for alert_id in self._families[family_of(row["alert_id"])]:
                trigger = self.rows[alert_id]["trigger_trade_id"]
                is_within = row["trigger_trade_id"] <= trigger <= row["last_trigger_trade_id"]
                if is_within and alert_id != row["alert_id"]:
                    covered.add(alert_id)
        for alert_id in covered:
            self._forget(alert_id)
        self.rows |= changed
        self._counted = None
        for alert_id in changed:
            self._families[family_of(alert_id)].add(alert_id)
        if len(self.rows) > KEPT_MAX:
            newest = self.newest_first()
            present_us = (row["opened_at"] for row in newest if row["opened_at"] <= wall_us + _MINUTE_US)
            day_us = next(present_us, wall_us) - _DAY_US
            for place, row in enumerate(newest[KEPT_MAX:], KEPT_MAX):
                if row["opened_at"] <= day_us or place >= DAY_KEPT_MAX:
                    self._forget(row["alert_id"])
        return list(changed.values()), sorted(covered - changed.keys())

    def _forget(self, alert_id: str) -> None:
        del self.rows[alert_id]
        self._families[family_of(alert_id)].discard(alert_id)


def plain_episodes(rows: pa.Table) -> list[Row]:
    """Rows of the table as `Episodes` keeps them."""
    columns = []
    for name in COLUMNS:
        column = rows[name]
        if pa.types.is_decimal(column.type):
            column = pa.array([decimal_text(value) for value in column.to_pylist()], pa.string())
        elif pa.types.is_timestamp(column.type):
            column = pc.cast(column, pa.int64())
        columns.append(column)
    found: list[Row] = pa.table(columns, names=list(COLUMNS)).to_pylist()
    return found
