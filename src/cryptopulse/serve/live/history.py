"""What is read of a whole table at first: its newest part, or the past of one product. Never all of it."""

from __future__ import annotations

import time

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from cryptopulse.engine.delta import read_table, utc_literal
from cryptopulse.engine.recent import MICROS
from cryptopulse.errors import LakeUnreachable
from cryptopulse.lake.access import is_there
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.tables import BARS, SILVER, Table
from cryptopulse.serve.live.candles import CANDLES, HISTORY_COLUMNS
from cryptopulse.serve.live.follow import Where

_FUTURE_US = 60 * MICROS  # a clock may be off by so much
_HOUR_S = 3600


def last_of(column: str, seconds: int) -> Where:
    """The rows of the last `seconds` before the newest value of the time `column`."""

    def where(table: DeltaTable) -> str:
        newest = newest_us(table, column)
        return "true" if newest is None else f"{column} > {utc_literal(newest - seconds * MICROS)}"

    return where


def newest_us(table: DeltaTable, column: str) -> int | None:
    """The newest time in `column`, µs UTC, by the files' statistics, not in the future; None when they don't say."""
    actions = pa.table(table.get_add_actions(flatten=True))
    if f"max.{column}" not in actions.column_names:
        return None
    newest = pc.max(pc.cast(actions[f"max.{column}"], pa.timestamp("us"))).as_py()
    if newest is None:
        return None
    found = int(pc.cast(pa.scalar(newest, pa.timestamp("us")), pa.int64()).as_py())
    return min(found + 1000, time.time_ns() // 1000 + _FUTURE_US)  # statistics are cut to milliseconds


def history_of(lake: LakeLocation, symbol: str, seconds: int, now_us: int, loaded_us: int | None) -> pa.Table:
    """The last CANDLES candles of `seconds` of a product (TRADE_CANDLE_COLUMNS), or for a minute and more the bars that
    they are made of (HISTORY_COLUMNS).

    `now_us`: time of the newest trade. `loaded_us`: trades of later commits are left out, as they come as news.
    Raises what `read_table` raises.
    """
    if seconds >= 60:
        first_us = now_us - (CANDLES * seconds + _HOUR_S) * MICROS  # with the hour before, for the averages
        where = f"symbol = '{symbol}' AND window_start > {utc_literal(first_us)}"
        return _read(lake, BARS, ", ".join(f'"{name}"' for name in HISTORY_COLUMNS), where)
    first_us = (now_us // (seconds * MICROS) - CANDLES + 1) * seconds * MICROS
    where = f"symbol = '{symbol}' AND event_time >= {utc_literal(first_us)}"
    where += f" AND load_timestamp <= {utc_literal(loaded_us or 0)} GROUP BY 1 ORDER BY 1"
    return _read(lake, SILVER, _CANDLES_SQL.format(seconds=seconds, length_us=seconds * MICROS), where)


# By the query engine and not here: half the work, and none of it holds up Python's other threads.
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
    if not is_there(lake, table):  # a moment ago it was
        raise LakeUnreachable(f"Table {table.qualified} is gone")
    return read_table(lake, table, columns, where)
