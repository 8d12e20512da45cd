"""Computes bars and statistics again from silver's trades and compares them, a day at a time.

Exact columns must be equal to the last decimal; quotients and roots are floating-point numbers and may differ slightly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.audit.id_set import Bools, IdSet
from cryptopulse.audit.ids import by_product
from cryptopulse.audit.ledger import Account
from cryptopulse.audit.progress import Progress
from cryptopulse.audit.report import AuditCheck, moment, utc
from cryptopulse.audit.retention import kept_from
from cryptopulse.audit.scope import DAY_US, AuditScope, day_start_us
from cryptopulse.audit.snapshot import BARS, SILVER, STATISTICS, LakeSnapshot
from cryptopulse.text import decimal_text

_MINUTE_US = 60_000_000
_SLOT_US = 5 * _MINUTE_US
_BAR_EXACT = (
    "open", "high", "low", "close", "volume", "notional", "buy_volume", "sell_volume", "trade_count", "buy_count",
    "price_sum", "first_trade_id", "last_trade_id",
)  # fmt: skip
_BAR_NEAR = ("vwap",)
_BAR_NEWER = ("rest_count",)
"""Exact columns that bars of earlier versions lack."""
_STATS_EXACT = (
    "window_end", "max_price", "min_price", "total_trade_volume", "trade_count", "open_price", "close_price",
)  # fmt: skip
_STATS_NEAR = ("avg_price", "vwap", "volatility")
_INTERVAL = pa.schema([("symbol", pa.string()), ("first_trade_id", pa.int64()), ("last_trade_id", pa.int64())])


HealedCounts = Mapping[str, Mapping[int, int]]
"""Product → start of the hour (µs since 1970, UTC) → how many of silver's trades of that hour came over REST."""


def check_windows(
    snapshot: LakeSnapshot,
    scope: AuditScope,
    progress: Progress,
    accounts: Sequence[Account],
    progressed: Callable[[int, int], None],
) -> tuple[list[AuditCheck], HealedCounts]:
    """Compares the bars and statistics of the audited time; calls `progressed(days done, all days)`.

    Those of days that silver has let go stay as they were, and there is nothing to compare them with.
    """
    if SILVER not in snapshot.tables:
        return [], {}
    tables = [snapshot.tables[name] for name in (SILVER, BARS, STATISTICS) if name in snapshot.tables]
    first_day = kept_from(snapshot, SILVER)
    days = sorted({day for table in tables for day in table.days() if scope.has_day(day) and day >= first_day})
    check = _Windows(snapshot, scope, progress, accounts)
    for number, day in enumerate(days, start=1):
        check.compare(day)
        progressed(number, len(days))
    return [AuditCheck(name, check.counts[name], check.skipped[name]) for name in ("bars", "statistics")], check.healed


class _Windows:
    """The comparison, with the state that all days share."""

    def __init__(
        self, snapshot: LakeSnapshot, scope: AuditScope, progress: Progress, accounts: Sequence[Account]
    ) -> None:
        self._snapshot = snapshot
        self._scope = scope
        self._progress = progress
        self._accounts = {account.symbol: account for account in accounts}
        self._intervals = {
            "held": _intervals((a.symbol, a.held.all | a.let_go) for a in accounts),
            "known": _intervals((a.symbol, a.held.all | a.let_go | a.absent) for a in accounts),
        }
        self._has_doubled = any(account.held.doubled for account in accounts)
        self._slots_of_lost: set[tuple[str, int]] = set()
        self.counts: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.healed: dict[str, dict[int, int]] = {}

    def compare(self, day: date) -> None:
        """Compares one day's windows."""
        distinct = "DISTINCT ON (symbol, trade_id)" if self._has_doubled else ""
        minutes = self._snapshot.rows(  # the bars as they must be
            f"""
            SELECT
                symbol, epoch_us(event_time) // {_MINUTE_US} AS minute,
                arg_min(price, trade_id) AS open, max(price) AS high, min(price) AS low,
                arg_max(price, trade_id) AS close, sum(trade_size) AS volume,
                sum((price * trade_size)::DECIMAL(38, 12)) AS notional,
                coalesce(sum(trade_size) FILTER (side = 'BUY'), 0)::DECIMAL(38, 12) AS buy_volume,
                coalesce(sum(trade_size) FILTER (side = 'SELL'), 0)::DECIMAL(38, 12) AS sell_volume,
                count(*) AS trade_count, count(*) FILTER (side = 'BUY') AS buy_count, sum(price) AS price_sum,
                count(*) FILTER (source = 'rest') AS rest_count,
                min(trade_id) AS first_trade_id, max(trade_id) AS last_trade_id,
                sum((price * trade_size)::DECIMAL(38, 12))::DOUBLE / sum(trade_size)::DOUBLE AS vwap,
                max(epoch_us(load_timestamp)) > {self._progress.settled_us} AS is_open
            FROM (SELECT {distinct} * FROM fact_crypto_trades WHERE {self._within(day, "event_time")})
            GROUP BY symbol, minute""",
            {SILVER: self._snapshot.tables[SILVER].on(day)},
        )
        hours = self._snapshot.rows(
            f"SELECT symbol, minute // 60 * {60 * _MINUTE_US} AS start_us, sum(rest_count)::BIGINT AS healed "
            "FROM minutes GROUP BY ALL",
            {},
            {"minutes": minutes},
        )
        for hour in hours.to_pylist():
            self.healed.setdefault(hour["symbol"], {})[hour["start_us"]] = hour["healed"]
        self._slots_of_lost.clear()
        if BARS in self._snapshot.tables:
            self._compare_bars(day, minutes)
        if STATISTICS in self._snapshot.tables:
            self._compare_statistics(day, minutes)

    def _compare_bars(self, day: date, minutes: pa.Table) -> None:
        table = self._snapshot.tables[BARS]
        exact = [*_BAR_EXACT, *(name for name in _BAR_NEWER if name in table.columns)]
        compared = [*exact, *_BAR_NEAR, "is_complete"]
        stored = ", ".join(f"b.{name} AS stored_{name}, m.{name} AS made_{name}" for name in compared)
        complete = "b.is_complete IS DISTINCT FROM m.is_complete AND b.is_complete IS DISTINCT FROM m.is_known"
        flaws = [*_exact(exact), *_near(_BAR_NEAR), f"CASE WHEN {complete} THEN 'is_complete' END"]
        sql = f"""
            WITH made AS (
                SELECT
                    m.*, coalesce(h.last_trade_id > m.last_trade_id, false) AS is_complete,
                    coalesce(k.last_trade_id > m.last_trade_id, false) AS is_known
                FROM minutes AS m
                ASOF LEFT JOIN held AS h ON h.symbol = m.symbol AND m.first_trade_id > h.first_trade_id
                ASOF LEFT JOIN known AS k ON k.symbol = m.symbol AND m.first_trade_id > k.first_trade_id
            ),
            stored AS (
                SELECT
                    *, epoch_us(window_start) // {_MINUTE_US} AS minute,
                    count(*) OVER (PARTITION BY symbol, window_start) AS copies
                FROM dm_trade_bars
                WHERE {self._within(day, "window_start")}
                QUALIFY row_number() OVER (PARTITION BY symbol, window_start) = 1
            )
            SELECT
                coalesce(m.symbol, b.symbol) AS symbol, coalesce(m.minute, b.minute) AS "window",
                least(m.first_trade_id, b.first_trade_id) AS first_trade_id,
                greatest(m.last_trade_id, b.last_trade_id) AS last_trade_id, {_wrong(flaws)} AS wrong, {stored}
            FROM made AS m
            FULL JOIN stored AS b ON b.symbol = m.symbol AND b.minute = m.minute
            WHERE len(wrong) > 0 AND NOT coalesce(m.is_open, false)
            ORDER BY symbol, "window\""""
        differing = self._snapshot.rows(sql, {BARS: table.on(day)}, {"minutes": minutes, **self._intervals})
        self.counts["bars"] += minutes.num_rows
        self.skipped["bars"] += pc.sum(minutes["is_open"]).as_py() or 0
        for symbol, rows in by_product(differing):
            account = self._accounts.get(symbol)
            lost, late = (account.lost, account.held.late) if account else (IdSet.of(), IdSet.of())
            firsts, lasts = rows["first_trade_id"].to_numpy(), rows["last_trade_id"].to_numpy()
            wrong = rows["wrong"].to_pylist()
            is_missing = np.array([names == ["missing"] for names in wrong])
            only_incomplete = np.array([names == ["is_complete"] for names in wrong])
            # Where silver lost trades, a differing bar and its statistic may be right. `is_complete` also depends on
            # the trades beside the bar. A missing bar is a fault in any case.
            inside, beside = lost.touch(firsts, lasts), lost.touch(firsts - 1, lasts + 1)
            slots = rows["window"].to_numpy()[inside | (beside & is_missing)] // 5
            self._slots_of_lost |= {(symbol, slot) for slot in slots.tolist()}
            is_unsure: Bools = ~is_missing & (inside | (beside & only_incomplete))
            self.skipped["bars"] += int(is_unsure.sum())
            # The bar may not have been updated yet for a late trade beside it.
            is_settling = only_incomplete & late.touch(firsts - 1, lasts + 1)
            self._report_all(BARS, "bar", rows.filter(pa.array(~is_unsure & ~is_settling)).to_pylist())

    def _compare_statistics(self, day: date, minutes: pa.Table) -> None:
        inputs = {STATISTICS: self._snapshot.tables[STATISTICS].on(day)}
        unfinished = "SELECT NULL AS symbol, NULL AS slot WHERE false"
        if BARS in self._snapshot.tables and self._progress.bars_us is not None:
            inputs[BARS] = self._snapshot.tables[BARS].on(day)
            unfinished = (
                f"SELECT DISTINCT symbol, epoch_us(window_start) // {_SLOT_US} AS slot FROM dm_trade_bars "
                f"WHERE epoch_us(load_timestamp) > {self._progress.bars_us}"
            )
        compared = [*_STATS_EXACT, *_STATS_NEAR]
        stored = ", ".join(f"b.{name} AS stored_{name}, m.{name} AS made_{name}" for name in compared)
        sql = f"""
            WITH chained AS (
                SELECT *, minute // 5 AS slot, ln(close::DOUBLE / coalesce(
                    lag(close) OVER (PARTITION BY symbol, minute // 5 ORDER BY minute), open)::DOUBLE) AS log_return
                FROM minutes
            ),
            made AS (
                SELECT
                    symbol, slot, make_timestamptz((slot + 1) * {_SLOT_US}) AS window_end,
                    max(high) AS max_price, min(low) AS min_price,
                    sum(volume) AS total_trade_volume, sum(trade_count) AS trade_count,
                    arg_min(open, first_trade_id) AS open_price, arg_max(close, last_trade_id) AS close_price,
                    sum(price_sum)::DOUBLE / sum(trade_count) AS avg_price,
                    sum(notional)::DOUBLE / sum(volume)::DOUBLE AS vwap,
                    sqrt(sum(log_return * log_return)) AS volatility, bool_or(is_open) AS is_open
                FROM chained
                GROUP BY symbol, slot
            ),
            stored AS (
                SELECT
                    *, epoch_us(window_start) // {_SLOT_US} AS slot,
                    count(*) OVER (PARTITION BY symbol, window_start) AS copies
                FROM dm_crypto_price_stats
                WHERE {self._within(day, "window_start")}
                QUALIFY row_number() OVER (PARTITION BY symbol, window_start) = 1
            ),
            unfinished AS ({unfinished})
            SELECT
                coalesce(m.symbol, b.symbol) AS symbol, coalesce(m.slot, b.slot) AS "window",
                {_wrong([*_exact(_STATS_EXACT), *_near(_STATS_NEAR)])} AS wrong, {stored}
            FROM made AS m
            FULL JOIN stored AS b ON b.symbol = m.symbol AND b.slot = m.slot
            ANTI JOIN unfinished AS u
                ON u.symbol = coalesce(m.symbol, b.symbol) AND u.slot = coalesce(m.slot, b.slot)
            WHERE len(wrong) > 0 AND NOT coalesce(m.is_open, false)
            ORDER BY symbol, "window\""""
        differing = self._snapshot.rows(sql, inputs, {"minutes": minutes}).to_pylist()
        slots = self._snapshot.rows(
            "SELECT count(*) AS slots, count(*) FILTER (is_open) AS unsure "
            "FROM (SELECT bool_or(is_open) AS is_open FROM minutes GROUP BY symbol, minute // 5)",
            {},
            {"minutes": minutes},
        ).to_pylist()[0]
        certain = [row for row in differing if (row["symbol"], row["window"]) not in self._slots_of_lost]
        self.counts["statistics"] += slots["slots"]
        self.skipped["statistics"] += slots["unsure"] + len(differing) - len(certain)
        self._report_all(STATISTICS, "statistic", certain)

    def _within(self, day: date, column: str) -> str:
        """SQL that is true for rows of this day, of the audited products and time."""
        start_us = day_start_us(day)
        us = f"epoch_us({column})"
        day_only = f"{us} >= {start_us} AND {us} < {start_us + DAY_US}"
        return f"{self._scope.has_product()} AND {day_only} AND {self._scope.has_time(us)}"

    def _report_all(self, table: str, noun: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Reports differing windows; neighbouring windows of one product with the same fault are one finding."""
        runs: list[list[Mapping[str, Any]]] = []
        for row in rows:
            last = runs[-1][-1] if runs else None
            neighbour = last and (last["symbol"], last["wrong"], last["window"] + 1)
            if neighbour == (row["symbol"], row["wrong"], row["window"]):
                runs[-1].append(row)
            else:
                runs.append([row])
        for run in runs:
            self._report(table, noun, run)

    def _report(self, table: str, noun: str, run: Sequence[Mapping[str, Any]]) -> None:
        first, length_us = run[0], _MINUTE_US if table == BARS else _SLOT_US
        symbol, wrong = first["symbol"], first["wrong"]
        start, end = utc(first["window"] * length_us), utc(run[-1]["window"] * length_us)
        details: dict[str, Any] = {"window_start": start, "last_window_start": end, "windows": len(run)}
        about = f"{symbol}: {noun} of {moment(start)}"
        about += "" if len(run) == 1 else f" and on to that of {moment(end)} ({len(run):,})"
        repair = f"run `{self._snapshot.repairs.rebuild}`"
        if wrong in (["missing"], ["extra"]):
            what = "missing" if wrong == ["missing"] else f"there without a trade in {SILVER}"
            self._snapshot.report(f"{noun}_{wrong[0]}", table, f"{about}: {what}", repair, symbol, details)
            return
        details["columns"] = {
            name: {"stored": first[f"stored_{name}"], "expected": first[f"made_{name}"]}
            for name in wrong
            if name != "copies"
        }
        shown = [
            f"{name} {_shown(pair['stored'])} instead of {_shown(pair['expected'])}"
            for name, pair in details["columns"].items()
        ]
        shown += ["there more than once"] if "copies" in wrong else []
        self._snapshot.report(f"{noun}_differs", table, f"{about}: {', '.join(shown)}", repair, symbol, details)


def _intervals(parts: Iterable[tuple[str, IdSet]]) -> pa.Table:
    found = [(symbol, ids) for symbol, ids in parts if ids]
    if not found:
        return _INTERVAL.empty_table()
    symbols = [symbol for symbol, ids in found for _ in range(len(ids))]
    starts, ends = (np.concatenate([getattr(ids, name) for _, ids in found]) for name in ("starts", "ends"))
    return pa.table([pa.array(symbols), pa.array(starts), pa.array(ends)], schema=_INTERVAL)


def _wrong(columns: Sequence[str]) -> str:
    """SQL: the names of the faults in a joined row of `made` (m) and `stored` (b)."""
    differing = (
        f"list_filter([{', '.join(columns)}, CASE WHEN b.copies > 1 THEN 'copies' END], lambda x: x IS NOT NULL)"
    )
    return f"CASE WHEN b.symbol IS NULL THEN ['missing'] WHEN m.symbol IS NULL THEN ['extra'] ELSE {differing} END"


def _exact(names: Iterable[str]) -> list[str]:
    return [f"CASE WHEN b.{name} IS DISTINCT FROM m.{name} THEN '{name}' END" for name in names]


def _near(names: Iterable[str]) -> list[str]:
    # The last digits of floating-point sums depend on the order of the terms.
    near = "abs(b.{0} - m.{0}) <= 1e-9 * abs(m.{0}) + 1e-11"
    return [f"CASE WHEN NOT coalesce({near.format(name)}, false) THEN '{name}' END" for name in names]


def _shown(value: object) -> str:
    if isinstance(value, datetime):
        return moment(value)
    return decimal_text(value) if isinstance(value, Decimal) else str(value)
