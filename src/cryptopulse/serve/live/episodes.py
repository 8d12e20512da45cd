"""The newest alert episodes, kept in memory. No I/O."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.lake.alerts import KINDS, family_of
from cryptopulse.lake.tables import ALERTS
from cryptopulse.text import decimal_text

COLUMNS: Final = tuple(ALERTS.arrow_schema.names)
"""All columns of an episode; load_timestamp tells new versions apart."""
KEPT_MAX: Final = 500
"""How many a snapshot has, the newest ones; plus all open ones. The others are only in the table."""
DAY_KEPT_MAX: Final = 10_000
"""How many of the last day are kept for counting: some 25 MB. A crash day of 20 products has 500."""
KEPT_S: Final = 30 * 86_400
"""The first read covers episodes that opened in the 30 days before the newest one."""

_MINUTE_US = 60_000_000
_HOUR_US = 60 * _MINUTE_US
_DAY_US = 24 * _HOUR_US

Row = dict[str, Any]


class LiveEpisodes:
    """Rows of gold.dm_market_alerts by alert_id: plain values, decimals as texts, times in µs UTC.

    Keeps the newest KEPT_MAX, and those of the day before the newest one that is not in the future.
    """

    def __init__(self) -> None:
        """Starts empty."""
        self.rows: dict[str, Row] = {}
        self._families: defaultdict[str, set[str]] = defaultdict(set)
        self._counted: tuple[int, dict[str, Any]] | None = None

    def clear(self) -> None:
        """Forgets all."""
        self.rows.clear()
        self._families.clear()
        self._counted = None

    def newest_first(self) -> list[Row]:
        """All kept episodes, the last opened first."""
        return sorted(self.rows.values(), key=lambda row: (row["opened_at"], row["alert_id"]), reverse=True)

    def first_shown(self) -> list[Row]:
        """The newest KEPT_MAX, and all open ones."""
        return [row for place, row in enumerate(self.newest_first()) if place < KEPT_MAX or row["state"] == "OPEN"]

    def totals(self, now_us: int) -> dict[str, Any]:
        """How many are open, and how many opened in the hour and day before `now_us`, the newest trade (µs UTC).

        Needed with every commit, so the counts are kept until the next change or minute.
        """
        if self._counted is None or self._counted[0] != now_us // _MINUTE_US:
            # Episodes of the future don't count yet, but a new one may be a moment ahead of the newest trade.
            day = [row for row in self.rows.values() if now_us - _DAY_US < row["opened_at"] <= now_us + _MINUTE_US]
            of_price = [row for row in day if KINDS[row["alert_type"]] == "price"]
            counts = {
                "open_alerts": sum(row["state"] == "OPEN" for row in self.rows.values()),
                "alerts_1h": sum(row["opened_at"] > now_us - _HOUR_US for row in day),
                "alerts_24h": len(day),
                "critical_24h": sum(row["severity"] == "CRITICAL" for row in day),
                "largest_24h": max(map(_change, of_price), key=abs, default=None),
            }
            self._counted = now_us // _MINUTE_US, counts
        return self._counted[1]

    def take_in(self, rows: pa.Table, wall_us: int) -> tuple[list[Row], list[str]]:
        """Takes in new and changed rows. Returns them, and the ids of episodes that are no longer in the table because
        another one covers them now.

        `wall_us`: now, µs UTC.
        """
        changed = {row["alert_id"]: row for row in plain_episodes(rows)}
        covered = set()  # late trades made them part of another episode, so the table no longer has them
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


def _change(row: Row) -> float:
    change: float = row["price_change_pct"]
    return change


def plain_episodes(rows: pa.Table) -> list[Row]:
    """Rows of the table as `LiveEpisodes` keeps them."""
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
