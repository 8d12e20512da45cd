"""Current figures of every product: last price, changes, volume, sparkline. No I/O, and no Python per row.

Two rings of numpy columns have a row for each product: minutes of the last 25 hours, filled from bars, and seconds of
the last minutes, filled from trades. So changes over 1 and 5 minutes are exact to a second, those over 1 and 24 hours
to a minute. "Now" is the time of the newest trade, as in `dashboards/queries.sql`, even if the pipeline has stopped.

Not in SQL: for 500 products and 25 hours one statement of DuckDB takes eight times as long as numpy (measured side by
side), and a commit may come every 50 ms.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.lake.products import base_and_quote, market_of, venue_of
from cryptopulse.serve.live.ring import Floats, Ints, Ring
from cryptopulse.text import MICROS

BAR_COLUMNS: Final = (
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
    "last_trade_id",
)
"""The columns of gold.dm_trade_bars that `LiveMarket.take_bars` needs."""
TRADE_COLUMNS: Final = ("symbol", "trade_id", "price", "trade_size", "side", "event_time")
"""The columns of silver.fact_crypto_trades that `TradeColumns` needs."""

MINUTES: Final = 1500
"""25 hours: a day, and the hour before it for the averages over an hour."""
SECONDS: Final = 390
"""The 5 minutes of `change_5m`, the rest of the minute in which they begin (earlier prices come from the minutes), and
30 s to spare."""
SPARK_MINUTES: Final = 60
PRODUCTS_MAX: Final = 2_000
"""Coinbase has some 800. It bounds the memory, 12 MB per 100 products; further products are left out."""
DECIMALS_MAX: Final = 12  # as in the tables

_FUTURE_US = 60 * MICROS  # a clock may be wrong by this much; later times must not push the present out of the rings
_MINUTE_US = 60 * MICROS
_DAY_MINUTES = 1440
_HOUR_MINUTES = 60
_RECENT_MINUTES = 5  # an older price is not compared with those of other venues

FIGURES: Final = (
    "price",
    "change_1m",
    "change_5m",
    "change_1h",
    "change_24h",
    "notional_24h",
    "volume_24h",
    "high_24h",
    "low_24h",
    "trades_24h",
    "buy_share_1h",
    "average_1h",
)
"""The columns of `LiveMarket.figures`: prices and amounts in the quote currency, volume in the base currency, changes
and the buyers' share in percent."""


class TradeColumns:
    """A batch of trades as numpy columns, in the order of (product, id)."""

    def __init__(self, rows: pa.Table, products: Ints) -> None:
        """`rows` have TRADE_COLUMNS; `products`: the number of each row's product, negative if it is left out."""
        ids = int64(rows["trade_id"])
        order = np.lexsort((ids, products))
        order = order[products[order] >= 0]
        self.product: Ints = products[order]
        self.trade_id: Ints = ids[order]
        self.time_us: Ints = int64(rows["event_time"])[order]
        self.price: Floats = float64(rows["price"])[order]
        self.size: Floats = float64(rows["trade_size"])[order]
        self.is_buy = np.asarray(pc.equal(rows["side"], "BUY").to_numpy(), dtype=np.bool_)[order]

    def __len__(self) -> int:
        """Number of trades."""
        return len(self.product)

    def of(self, product: int) -> slice:
        """The trades of one product."""
        first, last = np.searchsorted(self.product, (product, product + 1))
        return slice(int(first), int(last))


class LiveMarket:
    """The products and their figures. Not thread-safe."""

    def __init__(self) -> None:
        """Starts without products."""
        self.symbols: list[str] = []
        """Product ids; the index of an id is the product's number everywhere, and never changes."""
        self.now_us = 0
        """Time of the newest trade, µs UTC; 0: none yet."""
        self.left_out = 0
        """How often a batch contained a product beyond PRODUCTS_MAX."""
        sums = ("volume", "notional", "buy_volume", "trade_count", "price_sum")
        self.minutes = Ring(MINUTES, gauges=("open", "high", "low", "close"), sums=sums)
        self._seconds = Ring(SECONDS, gauges=("price",), sums=("trade_id",))
        self._numbers: dict[str, int] = {}
        self._price: Floats = np.zeros(0)
        self._price_id: Ints = np.zeros(0, np.int64)
        self.decimals: npt.NDArray[np.int8] = np.zeros(0, np.int8)
        """Most decimals that a price of the product has had: its tick size."""

    def number(self, symbol: str) -> int | None:
        """The number of the product `symbol`; None when it is not known."""
        return self._numbers.get(symbol)

    def forget_bars(self) -> None:
        """Forgets the bars and the last prices; products keep their numbers."""
        self.minutes.clear()
        self._price[:] = np.nan
        self._price_id[:] = -1
        self.now_us = self._seconds.head * MICROS

    def forget_trades(self) -> None:
        """Forgets the trades of the last minutes."""
        self._seconds.clear()

    def take_bars(self, rows: pa.Table, wall_us: int) -> None:
        """Takes in new and changed bars (BAR_COLUMNS), in the order of their commits. `wall_us`: now, µs UTC."""
        starts = int64(rows["window_start"])
        products = self.places(rows["symbol"])
        known = np.flatnonzero((products >= 0) & (starts <= wall_us + _FUTURE_US))
        if not len(known):
            return
        products, starts = products[known], starts[known]
        columns = {name: float64(rows[name])[known] for name in self.minutes.columns}
        self.minutes.put(products, starts // _MINUTE_US, columns)
        self._note_decimals(np.tile(products, 3), np.concatenate([columns[n] for n in ("close", "high", "low")]))
        self._note_prices(products, int64(rows["last_trade_id"])[known], columns["close"])
        self.now_us = max(self.now_us, int(starts.max()))

    def take_trades(self, trades: TradeColumns, wall_us: int) -> None:
        """Takes in new trades, each once. `wall_us`: now, µs UTC."""
        known = np.flatnonzero(trades.time_us <= wall_us + _FUTURE_US)
        if not len(known):
            return
        product, price, ids = trades.product[known], trades.price[known], trades.trade_id[known]
        times = trades.time_us[known]
        self.now_us = max(self.now_us, int(times.max()))
        self._note_decimals(product, price)
        self._note_prices(product, ids, price)
        second = times // MICROS
        self._seconds.reach(int(second.max()))
        is_last = self._seconds.get("trade_id", product, second) <= ids  # False for a healed trade with a lower id
        self._seconds.put(product[is_last], second[is_last], {"price": price[is_last], "trade_id": ids[is_last]})

    def figures(self) -> Floats:
        """Shape (products, FIGURES); NaN where nothing is known."""
        price = np.where(self._price_id >= 0, self._price, np.nan)
        day = self.minutes.window(self._minute - _DAY_MINUTES + 1, self._minute)
        hour = self.minutes.window(self._minute - _HOUR_MINUTES + 1, self._minute)
        volume_1h = hour.sum("volume")
        with np.errstate(invalid="ignore", divide="ignore"):
            share = 100 * hour.sum("buy_volume") / volume_1h
            average = hour.sum("price_sum") / hour.sum("trade_count")
        columns = (
            price,
            _change(price, self._price_ago(60)),
            _change(price, self._price_ago(300)),
            _change(price, self._price_ago(3600)),
            _change(price, self._price_ago(86_400)),
            day.sum("notional"),
            day.sum("volume"),
            np.fmax(day.highest("high"), price),
            np.fmin(day.lowest("low"), price),
            day.sum("trade_count"),
            share,
            average,
        )
        return np.column_stack(columns) if len(price) else np.zeros((0, len(FIGURES)))

    def across(self, figures: Floats) -> list[dict[str, Any]]:
        """Markets that are traded at several venues: their base and quotes (BTC/USD·USDT), each venue's price, and the
        spread, in percent of the lowest.

        `figures`: those of now. A venue counts with its largest product that has traded in the last minutes; without
        one its price is None.
        """
        recent = self.minutes.window(self._minute - _RECENT_MINUTES + 1, self._minute).sum("trade_count")
        price, volume = (figures[:, FIGURES.index(name)] for name in ("price", "notional_24h"))
        markets: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for number, symbol in enumerate(self.symbols[: len(figures)]):
            if market := market_of(symbol):
                best = markets[market].setdefault(venue_of(symbol) or "coinbase", number)
                if (recent[number] > 0, volume[number]) > (recent[best] > 0, volume[best]):
                    markets[market][venue_of(symbol) or "coinbase"] = number
        rows = []
        for market, venues in sorted(markets.items()):
            if len(venues) < 2:
                continue
            prices = {venue: float(price[n]) if recent[n] > 0 and price[n] > 0 else None for venue, n in venues.items()}
            known = [one for one in prices.values() if one is not None]
            spread = (max(known) / min(known) - 1) * 100 if len(known) > 1 else None
            decimals = int(self.decimals[list(venues.values())].max())
            pairs = [pair for number in venues.values() if (pair := base_and_quote(self.symbols[number]))]
            name = f"{market.partition('/')[0]}/{'·'.join(sorted({quote for _, quote in pairs}))}"
            rows.append({"market": name, "spread": spread, "decimals": decimals, "prices": prices})
        return rows

    def sparks(self) -> Floats:
        """Shape (products, SPARK_MINUTES): the price at the end of each of the last minutes; NaN before the first."""
        window = self.minutes.window(self._minute - SPARK_MINUTES + 1, self._minute)
        return window.filled("close")

    def average_1h(self, product: int, minutes: Ints) -> Floats:
        """Mean price of the trades in the hour that ends with each of `minutes` (numbers since 1970); NaN for none."""
        sums, counts = (self.minutes.running(name, product) for name in ("price_sum", "trade_count"))
        places = np.clip(minutes - self.minutes.first + 1, 0, len(sums) - 1)
        before = np.maximum(places - _HOUR_MINUTES, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((sums[places] - sums[before]) / (counts[places] - counts[before]))

    def places(self, symbols: pa.ChunkedArray) -> Ints:
        """The number of each row's product, new ones included; -1 for a product that is left out."""
        encoded = pc.dictionary_encode(symbols.combine_chunks())
        numbers: list[int] = []
        for symbol in encoded.dictionary.to_pylist():
            number = self._numbers.get(symbol, -1)
            if number < 0 and len(self.symbols) >= PRODUCTS_MAX:
                self.left_out += 1
            elif number < 0:
                number = self._numbers[symbol] = len(self.symbols)
                self.symbols.append(symbol)
                self.minutes.resize(number + 1)
                self._seconds.resize(number + 1)
                self._price = np.append(self._price, np.nan)
                self._price_id = np.append(self._price_id, -1)
                self.decimals = np.append(self.decimals, np.int8(0))
            numbers.append(number)
        return np.asarray(numbers, np.int64)[encoded.indices.to_numpy()] if numbers else np.zeros(0, np.int64)

    @property
    def _minute(self) -> int:
        return self.now_us // _MINUTE_US

    def _price_ago(self, seconds: int) -> Floats:
        """The last price at or before `seconds` ago: from the ring of seconds if it has one, else from the minutes."""
        then_us = self.now_us - seconds * MICROS
        by_minutes = self.minutes.last("close", then_us // _MINUTE_US - 1)
        if seconds > SECONDS:
            return by_minutes
        by_seconds = self._seconds.last("price", then_us // MICROS)
        return np.where(np.isnan(by_seconds), by_minutes, by_seconds)

    def _note_prices(self, products: Ints, ids: Ints, prices: Floats) -> None:
        """Updates the last prices: the price of the highest id counts."""
        order = np.argsort(ids, kind="stable")
        products, ids, prices = products[order], ids[order], prices[order]
        is_newer = ids >= self._price_id[products]
        self._price_id[products[is_newer]] = ids[is_newer]  # of repeated products the last value counts
        self._price[products[is_newer]] = prices[is_newer]

    def _note_decimals(self, products: Ints, prices: Floats) -> None:
        needed = decimals_of(prices)
        np.maximum.at(self.decimals, products, needed)


def decimals_of(prices: Floats) -> npt.NDArray[np.int8]:
    """How many decimals each price has, at most DECIMALS_MAX and some 15 digits in all."""
    needed = np.zeros(len(prices), np.int8)
    open_ = np.arange(len(prices))
    for decimals in range(DECIMALS_MAX):
        rounded = np.round(prices[open_], decimals)
        # Tolerance: half a unit of the tables' last decimal, or the precision of a float.
        open_ = open_[np.abs(rounded - prices[open_]) > np.maximum(5e-13, 4e-16 * np.abs(prices[open_]))]
        if not len(open_):
            break
        needed[open_] = decimals + 1
    return needed


def _change(now: Floats, then: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(100 * (now / then - 1))


def int64(column: pa.ChunkedArray) -> Ints:
    """A column of integers or times as a numpy array."""
    return np.asarray(pc.cast(column, pa.int64()).to_numpy())


def float64(column: pa.ChunkedArray) -> Floats:
    """A column of decimals or numbers as a numpy array, for display: some 15 digits, also for longer ids."""
    return np.asarray(pc.cast(column, pa.float64(), safe=False).to_numpy())
