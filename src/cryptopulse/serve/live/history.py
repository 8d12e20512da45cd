"""First reads of a table: its newest part, or the past of one product. Never the whole table."""

from __future__ import annotations

import time

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from cryptopulse.errors import LakeUnreachable
from cryptopulse.lake.dialect import delta_time
from cryptopulse.lake.follower import Where
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.reading import read_table
from cryptopulse.lake.storage import is_there
from cryptopulse.lake.tables import BARS, SILVER, Table
from cryptopulse.serve.live.candles import CANDLES, HISTORY_COLUMNS
from cryptopulse.text import MICROS

_FUTURE_US = 60 * MICROS  # a clock may be wrong by this much
_HOUR_S = 3600


def last_of(column: str, seconds: int) -> Where:
    """A condition for the rows of the last `seconds` before the newest value of the time `column`."""

    def where(table: DeltaTable) -> str:
        newest = newest_us(pa.table(table.get_add_actions(flatten=True)), column)
        return "true" if newest is None else f"{column} > {delta_time(newest - seconds * MICROS)}"

    return where


def newest_us(actions: pa.Table, column: str) -> int | None:
    """The newest time in `column` (µs UTC) that is not in the future, by the statistics (in ms) of a table's add
    `actions`. Too early if the file with that time also has a time in the future. None without statistics.
    """
    if f"max.{column}" not in actions.column_names:
        return None
    first, last = (
        pc.cast(pc.cast(actions[f"{edge}.{column}"], pa.timestamp("us")), pa.int64()) for edge in ("min", "max")
    )
    until_us = time.time_ns() // 1000 + _FUTURE_US
    # A trade of the year 2150 must not hide the other products.
    known = pc.if_else(pc.less_equal(last, until_us), last, first)
    found: int | None = pc.max(known.filter(pc.less_equal(known, until_us))).as_py()
    return found


def history_of(lake: LakeLocation, symbol: str, seconds: int, now_us: int, loaded_us: int | None) -> pa.Table:
    """The last CANDLES candles of `seconds` of a product (TRADE_CANDLE_COLUMNS); from a minute on, the bars that they
    are made of (HISTORY_COLUMNS).

    `now_us`: time of the newest trade (µs UTC). `loaded_us`: trades of later commits are left out, because they come
    as changes. Raises LakeUnreachable when the table is gone, and the errors of `read_table`.
    """
    if seconds >= 60:
        first_us = now_us - (CANDLES * seconds + _HOUR_S) * MICROS  # with the hour before, for the averages
        where = f"symbol = '{symbol}' AND window_start > {delta_time(first_us)}"
        return _read(lake, BARS, ", ".join(f'"{name}"' for name in HISTORY_COLUMNS), where)
    first_us = (now_us // (seconds * MICROS) - CANDLES + 1) * seconds * MICROS
    where = f"symbol = '{symbol}' AND event_time >= {delta_time(first_us)}"
    where += f" AND load_timestamp <= {delta_time(loaded_us or 0)} GROUP BY 1 ORDER BY 1"
    return _read(lake, SILVER, _CANDLES_SQL.format(seconds=seconds, length_us=seconds * MICROS), where)


# Done by the query engine: it takes half the time, and does not block Python's other threads.
_CANDLES_SQL = """
    arrow_cast(event_time, 'Int64') / {length_us} * {seconds} AS time,
    arrow_cast(first_value(price ORDER BY trade_id), 'Float64') AS open,
    arrow_cast(max(price), 'Float64') AS high,
    arrow_cast(min(price), 'Float64') AS low,
    arrow_cast(last_value(price ORDER BY trade_id), 'Float64') AS close,
    sum(arrow_cast(trade_size, 'Float64')) AS volume,
    sum(arrow_cast(price, 'Float64') * arrow_cast(trade_size, 'Float64')) AS notional,
    sum(CASE WHEN side = 'BUY' THEN arrow_cast(trade_size, 'Float64') ELSE 0 END) AS buy_volume,
    arrow_cast(count(*), 'Float64') AS trade_count,
    min(trade_id) AS first_trade_id,
    max(trade_id) AS last_trade_id"""


def _read(lake: LakeLocation, table: Table, columns: str, where: str) -> pa.Table:
    if not is_there(lake, table):  # it was there a moment ago
        raise LakeUnreachable(f"Table {table.qualified} is gone")
    return read_table(lake, table, columns, where)
