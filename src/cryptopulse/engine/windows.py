"""Which windows a batch touches, and how to name them to a table."""

from __future__ import annotations

import pyarrow as pa

from cryptopulse.engine.delta import utc_literal
from cryptopulse.engine.recent import MICROS
from cryptopulse.engine.session import Session

_TOUCHED_SQL = """
SELECT DISTINCT symbol, epoch_us({time}) // {length_us} * {length_us} AS window_us FROM news
"""
# Neighbouring windows of one product make a run; products with the same run share one condition.
_RUNS_SQL = """
SELECT list(symbol ORDER BY symbol) AS symbols, first_us, last_us
FROM (
    SELECT symbol, min(window_us) AS first_us, max(window_us) AS last_us
    FROM (
        SELECT symbol, window_us, window_us // {length_us} - row_number() OVER (PARTITION BY symbol ORDER BY window_us) AS run
        FROM touched)
    GROUP BY symbol, run)
GROUP BY first_us, last_us
ORDER BY first_us, last_us
"""


def touched_windows(session: Session, news: pa.Table, time: str, seconds: int) -> pa.Table:
    """Distinct (symbol, window_us) of the rows `news`, by their column `time`; windows start at multiples."""
    sql = _TOUCHED_SQL.format(time=time, length_us=seconds * MICROS)
    return session.query(sql, {"news": news.select(["symbol", time])})


class Runs:
    """Touched windows as few conditions: products × a stretch of neighbouring windows."""

    def __init__(self, session: Session, touched: pa.Table, seconds: int) -> None:
        """`touched`: (symbol, window_us); a window is `seconds` long."""
        self._length_us = seconds * MICROS
        self._runs = session.query(_RUNS_SQL.format(length_us=self._length_us), {"touched": touched}).to_pylist()

    @property
    def first_us(self) -> int:
        """Start of the earliest window, µs UTC."""
        return int(min(run["first_us"] for run in self._runs))

    @property
    def last_us(self) -> int:
        """Last microsecond of the latest window."""
        return int(max(run["last_us"] for run in self._runs)) + self._length_us - 1

    def condition(self, time: str, day: str) -> str:
        """SQL that is true for the rows of these windows in a table with time column `time` and day column `day`."""
        parts = []
        for run in self._runs:
            symbols = ", ".join(f"'{symbol}'" for symbol in run["symbols"])
            first, last = run["first_us"], run["last_us"] + self._length_us - 1
            parts.append(f"(symbol IN ({symbols}) AND {between_us(time, day, first, last)})")
        return " OR ".join(parts)


def between_us(time: str, day: str, first_us: int, last_us: int) -> str:
    """SQL (DataFusion's) for `time` in [first_us, last_us], µs UTC, and its day, which prunes partitions."""
    first, last = f"to_timestamp_micros({first_us})", f"to_timestamp_micros({last_us})"
    return (
        f"{day} >= CAST({first} AS DATE) AND {day} <= CAST({last} AS DATE) "
        f"AND {time} >= {utc_literal(first_us)} AND {time} <= {utc_literal(last_us)}"
    )

