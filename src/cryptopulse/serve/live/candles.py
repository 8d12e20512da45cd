"""The candles of one product in one grain, kept up to date. No I/O, and no Python per row.

Grains of a minute and more are made of bars, finer ones of trades. Only the candles are kept. Changed ones are computed
again from the market's minutes, or updated with new trades, each of which comes once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import pyarrow as pa

from cryptopulse.serve.live.market import LiveMarket, TradeColumns, float64, int64
from cryptopulse.serve.live.ring import Floats, Ints
from cryptopulse.text import MICROS

GRAINS: Final[Mapping[str, int]] = {"1s": 1, "5s": 5, "15s": 15, "1m": 60, "5m": 300, "15m": 900, "1h": 3600}
"""The grains by name, in seconds."""
CANDLES: Final = 1200
"""How many candles are kept: 20 minutes of seconds, 50 days of hours."""
COLUMNS: Final = (
    "time",
    "open",
    "high",
    "low",
    "close",
    "volume",
    "notional",
    "buy_volume",
    "trade_count",
    "average_1h",
    "first_trade_id",
    "last_trade_id",
)
"""The columns of a candle. `time`: its start in seconds since 1970; `average_1h`: mean price of the trades in the hour
that ends with the last minute that is over when the candle is, as `price_trend` in `dashboards/queries.sql`: no trade
after the candle is in it. Ids are 0 for candles made of bars."""
HISTORY_COLUMNS: Final = (
    "symbol",
    "window_start",
    "open",
    "high",
    "low",
    "close",
    "volume",
    "notional",
    "buy_volume",
    "trade_count",
    "price_sum",
)
"""The columns of gold.dm_trade_bars that `BarCandles.past` needs."""
TRADE_CANDLE_COLUMNS: Final = tuple(name for name in COLUMNS if name != "average_1h")
"""The columns that `TradeCandles.past` needs."""

_MINUTE = 60
_HOUR_MINUTES = 60
_TIME, _OPEN, _HIGH, _LOW, _CLOSE, _VOLUME, _NOTIONAL, _BUY, _COUNT, _AVERAGE, _FIRST_ID, _LAST_ID = range(len(COLUMNS))
_SUMS = [_VOLUME, _NOTIONAL, _BUY, _COUNT]


class BarCandles:
    """Candles of a minute or more."""

    def __init__(self, product: int, seconds: int, market: LiveMarket) -> None:
        """`seconds`: the grain, a whole number of minutes."""
        self.product = product
        self._minutes = seconds // _MINUTE
        self._market = market
        self.rows: Floats = _empty()
        """Candles with COLUMNS, in the order of time."""

    def past(self, rows: pa.Table) -> Floats:
        """Candles from the product's bars `rows` (HISTORY_COLUMNS), which begin an hour earlier for the averages.
        Changes nothing, so any thread may call it.
        """
        rows = rows.sort_by("window_start")
        minutes = int64(rows["window_start"]) // (_MINUTE * MICROS)
        bars = _of_columns(minutes, {name: float64(rows[name]) for name in HISTORY_COLUMNS[2:]})
        made = _merged(bars, self._minutes * _MINUTE)
        newest = made[-1, _TIME] if len(made) else 0
        return made[made[:, _TIME] > newest - CANDLES * self._minutes * _MINUTE]  # not those of the hour before

    def begin(self, past: Floats) -> None:
        """Starts with the candles `past`."""
        self.rows = past

    def take(self, rows: pa.Table) -> Floats | None:
        """Takes in new bars, after the market; returns the changed candles, None when the past must be read again."""
        market = self._market
        places = market.places(rows["symbol"])
        minutes = int64(rows["window_start"])[places == self.product] // (_MINUTE * MICROS)
        if not len(minutes):
            return self.rows[:0]
        starts = np.unique(minutes // self._minutes * self._minutes)
        oldest = int(self.rows[0, _TIME]) // _MINUTE if len(self.rows) else 0
        starts = starts[starts >= oldest]
        if len(starts) and starts[0] - _HOUR_MINUTES < market.minutes.first:
            return None
        if not len(starts):
            return self.rows[:0]
        # Computed again from the market's minutes, from the first changed one on.
        first = int(starts[0])
        columns, begin = market.minutes.row(self.product, first - _HOUR_MINUTES)
        traded = np.flatnonzero(columns["trade_count"] > 0)
        bars = _of_columns(traded + begin, {name: values[traded] for name, values in columns.items()})
        made = _merged(bars[bars[:, _TIME] >= first * _MINUTE], self._minutes * _MINUTE)
        concerned = made[made[:, _TIME] < (starts[-1] + _HOUR_MINUTES) * _MINUTE + self._minutes * _MINUTE]
        places = np.searchsorted(self.rows[:, _TIME], concerned[:, _TIME])
        is_new = np.ones(len(concerned), np.bool_)
        inside = np.flatnonzero(places < len(self.rows))
        is_new[inside] = (self.rows[places[inside]] != concerned[inside]).any(axis=1)
        changed: Floats = concerned[is_new]  # with those whose average a late trade changed, up to an hour later
        self.rows = _replaced(self.rows, changed)[-CANDLES:]
        return changed


class TradeCandles:
    """Candles of less than a minute."""

    def __init__(self, product: int, seconds: int, market: LiveMarket) -> None:
        """`seconds`: the grain."""
        self.product = product
        self._seconds = seconds
        self._market = market
        self.rows: Floats = _empty()
        """Candles with COLUMNS, in the order of time."""

    def past(self, rows: pa.Table) -> Floats:
        """Candles from the rows of `history_of` (TRADE_CANDLE_COLUMNS). Any thread may call it."""
        past = np.zeros((rows.num_rows, len(COLUMNS)))
        for name in TRADE_CANDLE_COLUMNS:
            past[:, COLUMNS.index(name)] = float64(rows[name])
        return past[-CANDLES:]

    def begin(self, past: Floats) -> None:
        """Starts with the candles `past`."""
        self.rows = self._with_averages(past)

    def take(self, trades: TradeColumns) -> Floats:
        """Takes in new trades; returns the changed candles."""
        own = trades.of(self.product)
        if own.start == own.stop:
            return self.rows[:0]
        price, size = trades.price[own], trades.size[own]
        parts = np.zeros((len(price), len(COLUMNS)))  # each trade as a candle of its own
        parts[:, _TIME] = trades.time_us[own] // (self._seconds * MICROS) * self._seconds
        parts[:, _OPEN] = parts[:, _HIGH] = parts[:, _LOW] = parts[:, _CLOSE] = price
        parts[:, _VOLUME], parts[:, _NOTIONAL] = size, price * size
        parts[:, _BUY] = np.where(trades.is_buy[own], size, 0.0)
        parts[:, _COUNT] = 1
        parts[:, _FIRST_ID] = parts[:, _LAST_ID] = trades.trade_id[own]
        starts = np.unique(parts[:, _TIME])
        if len(self.rows) >= CANDLES:
            starts = starts[starts >= self.rows[0, _TIME]]
        concerned = self.rows[np.isin(self.rows[:, _TIME], starts)]
        changed = _merged(np.concatenate([concerned, parts[np.isin(parts[:, _TIME], starts)]]), self._seconds)
        self.rows = _replaced(self.rows, self._with_averages(changed))[-CANDLES:]
        return changed

    def _with_averages(self, rows: Floats) -> Floats:
        ends = (rows[:, _TIME] + self._seconds).astype(np.int64)
        rows[:, _AVERAGE] = self._market.average_1h(self.product, ends // _MINUTE - 1)
        return rows


def _empty() -> Floats:
    return np.zeros((0, len(COLUMNS)))


def _of_columns(minutes: Ints, columns: Mapping[str, Floats]) -> Floats:
    """Bars as candles of a minute, with the average of the hour up to each one."""
    rows = np.zeros((len(minutes), len(COLUMNS)))
    rows[:, _TIME] = minutes * _MINUTE
    for place, name in enumerate(COLUMNS[_OPEN:_AVERAGE], _OPEN):
        rows[:, place] = columns[name]
    rows[:, _AVERAGE] = averages_1h(minutes, columns["price_sum"], columns["trade_count"])
    rows[:, _FIRST_ID] = rows[:, _LAST_ID] = 0
    return rows


def averages_1h(minutes: Ints, price_sum: Floats, trade_count: Floats) -> Floats:
    """Mean price of the trades in the hour that ends with each of `minutes` (numbers since 1970, ascending). Each
    minute must have a trade.
    """
    sums = np.concatenate([[0.0], np.cumsum(price_sum)])
    counts = np.concatenate([[0.0], np.cumsum(trade_count)])
    since = np.searchsorted(minutes, minutes - _HOUR_MINUTES, side="right")
    until = np.arange(1, len(minutes) + 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((sums[until] - sums[since]) / (counts[until] - counts[since]))


def _merged(rows: Floats, seconds: int) -> Floats:
    """Merges candles, or parts of them, into candles of `seconds`. The part with the lowest id opens, the one with the
    highest closes; without ids it is the earliest and the latest.
    """
    if not len(rows):
        return rows
    starts = rows[:, _TIME] // seconds * seconds
    order = np.lexsort((rows[:, _TIME], rows[:, _FIRST_ID], starts))
    rows, starts = rows[order], starts[order]
    first = np.flatnonzero(np.concatenate([[True], starts[1:] != starts[:-1]]))
    last = np.concatenate([first[1:], [len(rows)]]) - 1
    made = rows[first].copy()
    made[:, _TIME] = starts[first]
    made[:, _HIGH] = np.maximum.reduceat(rows[:, _HIGH], first)
    made[:, _LOW] = np.minimum.reduceat(rows[:, _LOW], first)
    made[:, _SUMS] = np.add.reduceat(rows[:, _SUMS], first, axis=0)
    by_end = np.lexsort((rows[:, _TIME], rows[:, _LAST_ID], starts))
    made[:, [_CLOSE, _AVERAGE, _LAST_ID]] = rows[by_end][last][:, [_CLOSE, _AVERAGE, _LAST_ID]]
    return made


def _replaced(rows: Floats, changed: Floats) -> Floats:
    """`rows` with the rows of `changed` replaced, by their time, or added."""
    if not len(changed):
        return rows
    if not len(rows) or changed[0, _TIME] > rows[-1, _TIME]:
        return np.concatenate([rows, changed])
    kept = rows[~np.isin(rows[:, _TIME], changed[:, _TIME])]
    both = np.concatenate([kept, changed])
    return np.asarray(both[np.argsort(both[:, _TIME], kind="stable")])
