"""Bars of any grain, exactly: from the stored minutes, or from the trades where a minute is too coarse.

Open and close are by trade id, sums are of decimals, the VWAP is the quotient of the sums. A coarse bar is complete
when all its minutes are, no id between them is missing, and the trade after its last one lies in a later bar.
"""

from __future__ import annotations

import re
from datetime import timedelta

from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.dialect import bound_name, duckdb_sql, time_literal
from cryptopulse.lake.tables import BARS, COVERAGE, SILVER

_DAY_S = 86_400
_UNITS_S = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": _DAY_S}
_WINDOW = re.compile(r"\b60000000\b")  # the window in the canonical statement, in µs

COLUMNS = tuple(name for name in BARS.arrow_schema.names if name not in ("load_timestamp", "window_date"))
"""Columns of a bar of any grain: those of gold.dm_trade_bars except load_timestamp and window_date."""


def grain_seconds(grain: str | int | timedelta) -> int:
    """Seconds of `"5m"`, `"1s"`, `"4h"`, `"1d"`, of a number of seconds, or of a timedelta.

    Raises ConfigurationError unless it is a whole number of seconds that divides a day.
    """
    if isinstance(grain, timedelta):
        seconds = grain.total_seconds()
    elif isinstance(grain, str):
        found = re.fullmatch(r"(\d{1,6})\s*([a-z]+)", grain.strip().lower())
        seconds = int(found[1]) * _UNITS_S.get(found[2], 0) if found else 0
    else:
        seconds = grain
    if seconds < 1 or seconds != int(seconds) or _DAY_S % seconds:
        raise ConfigurationError(
            f"{grain!r} is no grain of bars: write 1s, 5m, 1h or 1d, or another length that divides a day."
        )
    return int(seconds)


def from_trades(seconds: int, trades: str, coverage: str) -> str:
    """SQL for bars. `trades`: SQL that gives the trades; `coverage`: SQL that gives silver.trade_id_coverage."""
    bars = _WINDOW.sub(str(seconds * 1_000_000), duckdb_sql(BARS.qualified, is_bulk=True))
    return (
        f"WITH {bound_name(SILVER.qualified)} AS ({trades}), {bound_name(COVERAGE.qualified)} AS ({coverage}) "  # noqa: S608
        f"SELECT * FROM ({bars})"
    )


def from_minutes(seconds: int, minutes: str, newest: str | None) -> str:
    """SQL for coarser bars. `minutes`: SQL that gives their minutes, of whole bars only.

    `newest`: SQL that gives at least the newest minute of each product, None if all bars ended long ago. A product's
    newest bar is still in progress.
    """
    width = seconds * 1_000_000
    start = f"epoch_us(window_start) - epoch_us(window_start) % {width}"
    is_over, joined = "true", f"({minutes})"
    if newest:
        last = f"SELECT symbol, max(epoch_us(window_start)) AS newest_us FROM ({newest}) GROUP BY symbol"  # noqa: S608
        is_over, joined = f"any_value(newest_us) >= {start} + {width}", f"({minutes}) JOIN ({last}) USING (symbol)"
    return (
        f"SELECT symbol, {time_literal(start)} AS window_start, "  # noqa: S608 - made of our own parts
        "arg_min(open, first_trade_id) AS open, max(high) AS high, min(low) AS low, "
        "arg_max(close, last_trade_id) AS close, sum(volume) AS volume, sum(notional) AS notional, "
        "CAST(sum(notional) AS DOUBLE) / CAST(sum(volume) AS DOUBLE) AS vwap, "
        "sum(buy_volume) AS buy_volume, sum(sell_volume) AS sell_volume, "
        "CAST(sum(trade_count) AS BIGINT) AS trade_count, CAST(sum(buy_count) AS BIGINT) AS buy_count, "
        "CAST(sum(rest_count) AS BIGINT) AS rest_count, sum(price_sum) AS price_sum, "
        "min(first_trade_id) AS first_trade_id, max(last_trade_id) AS last_trade_id, "
        "bool_and(is_complete) AND sum(last_trade_id - first_trade_id + 1) > max(last_trade_id) - min(first_trade_id) "
        f"AND {is_over} AS is_complete FROM {joined} GROUP BY symbol, {start}"
    )
