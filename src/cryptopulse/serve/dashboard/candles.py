"""Pages of past candles, for charts that go back further than the live candles (`live/charts.py`)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from cryptopulse.lake.activity_bars import BarSize
from cryptopulse.lake.dataset import Lake
from cryptopulse.serve.live.candles import CANDLES, COLUMNS, averages_1h
from cryptopulse.serve.live.market import decimals_of, float64, int64
from cryptopulse.serve.live.ring import Floats
from cryptopulse.text import MICROS

_BAR = ("window_start", "open", "high", "low", "close", "volume", "notional", "buy_volume", "trade_count")
_BAR_ORDER = [("window_start", "ascending"), ("first_trade_id", "ascending")]
_MINUTE = 60
_LATEST = datetime.max.replace(tzinfo=UTC) - timedelta(days=1)


def candles_page(
    lake: Lake, symbol: str, grain: int | BarSize, before: datetime | None = None, start: datetime | None = None
) -> dict[str, Any]:
    """The last CANDLES candles that begin before `before`; with `start`, the first ones from there on. `grain`: their
    length in seconds, or the activity that ends them.

    `columns` and `rows` as in the live topic, the oldest first. `time` tells them apart: of bars by activity that begin
    in the same microsecond, it is a microsecond later for each. `decimals`: most decimals of these prices; `is_end`:
    whether there are no more candles in that direction. Raises the errors of `Lake.bars` and `Lake.activity_bars`.
    """
    if isinstance(grain, int):
        bars = lake.bars(symbol, start, before, grain=grain, columns=(*_BAR, "first_trade_id"))
    else:
        columns = (*_BAR, "first_trade_id", "window_end")
        bars = lake.activity_bars(symbol, start, before, by=grain.measure, size=grain.size, columns=columns)
    found = (bars if start is not None else bars.reversed()).limit(CANDLES + 1).arrow()
    page = found.slice(0, CANDLES).sort_by(_BAR_ORDER)
    begun_us, place = int64(page["window_start"]), np.arange(page.num_rows)
    start_us = np.maximum.accumulate(begun_us - place) + place
    end_us = begun_us + grain * MICROS if isinstance(grain, int) else int64(page["window_end"])
    averages: Floats = np.zeros(0)
    if page.num_rows:  # of the hour that ends with the last minute with a trade that is over when the candle is
        first, newest = page["window_start"][0].as_py(), page["window_start"][-1].as_py()
        last = min(newest, _LATEST) + timedelta(microseconds=int(end_us[-1] - begun_us[-1]))
        hour_columns = ("window_start", "price_sum", "trade_count")
        hour = lake.bars(symbol, first - timedelta(minutes=61), last, columns=hour_columns).arrow()
        minutes = int64(hour["window_start"]) // (_MINUTE * MICROS)
        of_minutes = averages_1h(minutes, float64(hour["price_sum"]), float64(hour["trade_count"]))
        places = np.searchsorted(minutes, end_us // (_MINUTE * MICROS) - 1, side="right") - 1
        averages = np.where(places >= 0, np.append(of_minutes, np.nan)[places], np.nan)
    candles = np.column_stack([start_us / MICROS, *(float64(page[name]) for name in _BAR[1:]), averages])
    decimals = decimals_of(np.concatenate([float64(page["high"]), float64(page["low"])]))
    return {
        "columns": COLUMNS[: candles.shape[1]],
        "rows": candles.tolist(),
        "decimals": int(decimals.max(initial=0)),
        "is_end": found.num_rows <= CANDLES,
    }
