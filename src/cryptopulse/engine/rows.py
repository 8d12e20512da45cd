"""Helpers for rows about to be written, and for the windows that they touch."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.lake.tables import Table
from cryptopulse.text import MICROS


def shaped(rows: pa.Table, table: Table) -> pa.Table:
    """`rows` with exactly the table's columns, in its order and types."""
    return rows.select(table.arrow_schema.names).cast(table.arrow_schema)


def stamped(rows: pa.Table, load_us: int) -> pa.Table:
    """`rows` with their load_timestamp (µs UTC)."""
    return rows.append_column("load_timestamp", constant_time(load_us, rows.num_rows))


def constant_time(us: int, rows: int) -> pa.Array:
    """A column of one time, µs UTC."""
    return pa.array(np.full(rows, us, dtype="datetime64[us]"), pa.timestamp("us", tz="UTC"))


def newest_load_us(rows: pa.Table) -> int:
    """The largest load_timestamp (µs UTC) of `rows`, which must not be empty."""
    return int(pc.cast(pc.max(rows["load_timestamp"]), pa.int64()).as_py())


def window_starts(times: pa.ChunkedArray, seconds: int) -> pa.ChunkedArray:
    """The start (µs UTC) of the window that each time lies in; windows start at multiples of their length."""
    length = pa.scalar(seconds * MICROS, pa.int64())
    return pc.multiply(pc.divide(pc.cast(times, pa.int64()), length), length)


def touched_windows(news: pa.Table, time: str, seconds: int) -> pa.Table:
    """Distinct (symbol, window_us) of the rows `news`, by their column `time`; window_us is µs UTC."""
    window_us = window_starts(news[time], seconds)
    return distinct_windows(pa.table({"symbol": pc.cast(news["symbol"], pa.string()), "window_us": window_us}))


def distinct_windows(windows: pa.Table) -> pa.Table:
    """Each (symbol, window_us) once."""
    return windows.group_by(["symbol", "window_us"]).aggregate([]).select(["symbol", "window_us"])


def kept_windows(windows: pa.Table, kept_from_us: int) -> pa.Table:
    """Those of `windows` (symbol, window_us) that begin at `kept_from_us` (µs UTC) or later."""
    return windows.filter(pc.greater_equal(windows["window_us"], kept_from_us)) if kept_from_us else windows


def in_windows(rows: pa.Table, windows: pa.Table) -> pa.Array:
    """For each of `rows` (symbol, window_start) whether it is one of `windows` (symbol, window_us)."""
    if not rows.num_rows or not windows.num_rows:
        return pa.array(np.zeros(rows.num_rows, dtype=bool))
    names = pc.unique(windows["symbol"])
    wanted_place, row_place = (
        pc.fill_null(pc.index_in(t["symbol"], names), -1).to_numpy().astype(np.int64) for t in (windows, rows)
    )
    starts = pc.cast(rows["window_start"], pa.int64()).to_numpy()
    times = np.unique(windows["window_us"].to_numpy())
    # (product, window) as one number, made of their indexes: the times themselves leave no bits for the product.
    wanted = wanted_place * (len(times) + 1) + np.searchsorted(times, windows["window_us"].to_numpy())
    place = np.searchsorted(times, starts)
    is_time = (place < len(times)) & (times[np.minimum(place, len(times) - 1)] == starts)
    return pa.array(is_time & (row_place >= 0) & np.isin(row_place * (len(times) + 1) + place, wanted), pa.bool_())
