"""Which windows a batch touches, and how to name them to a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.engine.delta import utc_literal
from cryptopulse.engine.recent import MICROS

_DAY_US = 86_400 * MICROS


def touched_windows(news: pa.Table, time: str, seconds: int) -> pa.Table:
    """Distinct (symbol, window_us) of the rows `news`, by their column `time`; windows start at multiples."""
    length = pa.scalar(seconds * MICROS, pa.int64())
    window_us = pc.multiply(pc.divide(pc.cast(news[time], pa.int64()), length), length)
    return distinct_windows(pa.table({"symbol": pc.cast(news["symbol"], pa.string()), "window_us": window_us}))


def distinct_windows(windows: pa.Table) -> pa.Table:
    """Each (symbol, window_us) once."""
    return windows.group_by(["symbol", "window_us"]).aggregate([]).select(["symbol", "window_us"])


def in_windows(rows: pa.Table, windows: pa.Table) -> pa.Array:
    """For each of `rows` (symbol, window_start) whether it is one of `windows` (symbol, window_us)."""
    named = set(zip(windows["symbol"].to_pylist(), windows["window_us"].to_pylist(), strict=True))
    starts = pc.cast(rows["window_start"], pa.int64()).to_pylist()
    return pa.array([row in named for row in zip(rows["symbol"].to_pylist(), starts, strict=True)], pa.bool_())


_RUNS_MAX = 64  # longer conditions plan slowly, and some thousands overflow DataFusion's stack (measured)


class _Run(NamedTuple):
    symbols: list[str]
    first_us: int
    last_us: int


class Runs:
    """Touched windows as few conditions: products × a stretch of neighbouring windows."""

    def __init__(self, touched: pa.Table, seconds: int) -> None:
        """`touched`: (symbol, window_us); a window is `seconds` long."""
        self._length_us = seconds * MICROS
        windows: dict[str, list[int]] = {}
        for symbol, window_us in zip(*(column.to_pylist() for column in touched.columns), strict=True):
            windows.setdefault(symbol, []).append(window_us)
        # Neighbouring windows of one product make a run; products with the same run share one condition.
        symbols_of: dict[tuple[int, int], list[str]] = {}
        for symbol in sorted(windows):
            for run in self._stretches(sorted(windows[symbol])):
                symbols_of.setdefault(run, []).append(symbol)
        self._runs = [_Run(symbols, first, last) for (first, last), symbols in sorted(symbols_of.items())]

    def _stretches(self, windows: list[int]) -> Iterator[tuple[int, int]]:
        """First and last window of each stretch without a gap."""
        first = last = windows[0]
        for window in windows[1:]:
            if window != last + self._length_us:
                yield first, last
                first = window
            last = window
        yield first, last

    @property
    def are_exact(self) -> bool:
        """Whether `condition` names these windows and no others; too many are named by products and days."""
        return len(self._runs) <= _RUNS_MAX

    @property
    def first_us(self) -> int:
        """Start of the earliest window, µs UTC."""
        return int(min(run.first_us for run in self._runs))

    @property
    def last_us(self) -> int:
        """Last microsecond of the latest window."""
        return int(max(run.last_us for run in self._runs)) + self._length_us - 1

    def condition(self, time: str, day: str) -> str:
        """SQL that is true for the rows of these windows in a table with time column `time` and day column `day`."""
        if not self.are_exact:
            return self._wide_condition(time, day)
        parts = []
        for run in self._runs:
            symbols = ", ".join(f"'{symbol}'" for symbol in run.symbols)
            first, last = run.first_us, run.last_us + self._length_us - 1
            parts.append(f"(symbol IN ({symbols}) AND {between_us(time, day, first, last)})")
        return " OR ".join(parts)

    def _wide_condition(self, time: str, day: str) -> str:
        symbols = sorted({symbol for run in self._runs for symbol in run.symbols})
        days = {at // _DAY_US for run in self._runs for at in range(run.first_us, run.last_us + _DAY_US, _DAY_US)}
        named = ", ".join(f"'{symbol}'" for symbol in symbols)
        dated = ", ".join(f"CAST(to_timestamp_micros({at * _DAY_US}) AS DATE)" for at in sorted(days))
        within = f"{time} >= {utc_literal(self.first_us)} AND {time} <= {utc_literal(self.last_us)}"
        return f"symbol IN ({named}) AND {day} IN ({dated}) AND {within}"


def between_us(time: str, day: str, first_us: int, last_us: int) -> str:
    """SQL (DataFusion's) for `time` in [first_us, last_us], µs UTC, and its day, which prunes partitions."""
    first, last = f"to_timestamp_micros({first_us})", f"to_timestamp_micros({last_us})"
    return (
        f"{day} >= CAST({first} AS DATE) AND {day} <= CAST({last} AS DATE) "
        f"AND {time} >= {utc_literal(first_us)} AND {time} <= {utc_literal(last_us)}"
    )
