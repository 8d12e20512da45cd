"""The live figures and candles against plain models, whatever the batches and whatever comes late."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from datetime import timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cryptopulse.lake.tables import BARS, SILVER
from cryptopulse.serve.live.candles import CANDLES, COLUMNS, GRAINS, HISTORY_COLUMNS, BarCandles, TradeCandles
from cryptopulse.serve.live.market import (
    BAR_COLUMNS,
    FIGURES,
    SECONDS,
    SPARK_MINUTES,
    TRADE_COLUMNS,
    LiveMarket,
    TradeColumns,
    float64,
)
from cryptopulse.serve.live.ring import Ring
from support import START, Trade, micros, model_bars

PRODUCTS = {"BTC-USD": ("60000.00", 2), "ETH-USD": ("2000.1", 1), "PEPE-USD": ("0.000012345678", 12)}
DAY_S = 86_400


def _made(seed: int, seconds: int, count: int) -> list[Trade]:
    """Trades of the last `seconds` before START, ids and times in one order; of the last product only one, at first."""
    rng = random.Random(seed)
    trades = []
    for symbol, (price, decimals) in PRODUCTS.items():
        times = sorted(rng.randrange(-seconds * 10**6, 0) for _ in range(count))
        if symbol == "PEPE-USD":
            times = times[:1]
        value = Decimal(price)
        for place, time_us in enumerate(times):
            value += Decimal(rng.randrange(-3, 4)).scaleb(-decimals)
            when = START + timedelta(microseconds=time_us)
            side = rng.choice(["BUY", "SELL"])
            trades.append(Trade(symbol, 1000 + place, when, f"{value:f}", f"{rng.randrange(1, 999)}.25", side))
    return trades


def _bars(trades: list[Trade], columns: tuple[str, ...] = BAR_COLUMNS) -> pa.Table:
    rows = [{name: row[name] for name in columns} for row in model_bars(trades)]
    return pa.Table.from_pylist(rows, schema=pa.schema([BARS.arrow_schema.field(name) for name in columns]))


def _rows(trades: list[Trade]) -> pa.Table:
    rows = [
        {
            "symbol": trade.symbol,
            "trade_id": trade.trade_id,
            "price": Decimal(trade.price),
            "trade_size": Decimal(trade.size),
            "side": trade.side,
            "event_time": trade.time,
        }
        for trade in trades
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema([SILVER.arrow_schema.field(name) for name in TRADE_COLUMNS]))


def _taken(market: LiveMarket, trades: list[Trade]) -> TradeColumns:
    rows = _rows(trades)
    return TradeColumns(rows, market.places(rows["symbol"]))


def _cut(trades: list[Trade], seed: int) -> list[list[Trade]]:
    """In batches, by time, but for some that come in a later batch."""
    rng = random.Random(seed)
    order = sorted(trades, key=lambda trade: trade.time)
    late = [trade for trade in order if rng.random() < 0.05]
    order = [trade for trade in order if trade not in late] + late
    places = sorted({0, len(order), *(rng.randrange(len(order)) for _ in range(20))})
    return [order[a:b] for a, b in pairwise(places)]


def _model(trades: list[Trade]) -> dict[str, dict[str, Any]]:
    """The figures, one trade after the other."""
    now = max(micros(trade.time) for trade in trades)
    minute = now // 60_000_000
    found: dict[str, dict[str, Any]] = {}
    for symbol in PRODUCTS:
        own = sorted(trade for trade in trades if trade.symbol == symbol)
        price = float(own[-1].price)

        def before(time_us: int, own: list[Trade] = own) -> float:
            past = [float(trade.price) for trade in own if micros(trade.time) < time_us]
            return past[-1] if past else math.nan

        def since(minutes: int, own: list[Trade] = own) -> list[Trade]:
            return [trade for trade in own if micros(trade.time) // 60_000_000 > minute - minutes]

        references = {
            "change_1m": before((now // 10**6 - 59) * 10**6),
            "change_5m": before((now // 10**6 - 299) * 10**6),
            "change_1h": before((now - 3_600 * 10**6) // 60_000_000 * 60_000_000),
            "change_24h": before((now - DAY_S * 10**6) // 60_000_000 * 60_000_000),
        }
        day, hour = since(1440), since(60)
        sizes = sum(Decimal(trade.size) for trade in hour)
        found[symbol] = {
            "price": price,
            **{name: 100 * (price / then - 1) for name, then in references.items()},
            "notional_24h": float(sum(Decimal(t.price) * Decimal(t.size) for t in day)),
            "volume_24h": float(sum(Decimal(t.size) for t in day)),
            "high_24h": max([float(t.price) for t in day], default=price),
            "low_24h": min([float(t.price) for t in day], default=price),
            "trades_24h": len(day),
            "buy_share_1h": 100 * float(sum(Decimal(t.size) for t in hour if t.side == "BUY") / sizes)
            if sizes
            else math.nan,
            "average_1h": sum(float(t.price) for t in hour) / len(hour) if hour else math.nan,
        }
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("seconds", [400, 7_000, DAY_S + 3_000])
def test_figures_are_those_of_a_plain_count_whatever_the_batches(seed: int, seconds: int) -> None:
    trades = _made(seed, seconds, 600)
    market, wall_us = LiveMarket(), micros(START)
    held: list[Trade] = []
    for batch in _cut(trades, seed):
        held += batch
        market.take_trades(_taken(market, batch), wall_us)
        touched = {(trade.symbol, micros(trade.time) // 60_000_000) for trade in batch}
        concerned = [trade for trade in held if (trade.symbol, micros(trade.time) // 60_000_000) in touched]
        market.take_bars(_bars(concerned), wall_us)
    figures, expected = market.figures(), _model(trades)
    assert sorted(market.symbols) == sorted(PRODUCTS)
    for number, symbol in enumerate(market.symbols):
        for place, name in enumerate(FIGURES):
            wanted = expected[symbol][name]
            assert figures[number, place] == pytest.approx(wanted, rel=1e-9, abs=1e-9, nan_ok=True), (symbol, name)
        prices = [Decimal(trade.price).normalize().as_tuple().exponent for trade in trades if trade.symbol == symbol]
        assert market.decimals[number] == -min(int(exponent) for exponent in prices)


def test_a_lake_that_was_read_whole_gives_the_figures_of_one_that_was_followed() -> None:
    trades = _made(9, 7_000, 600)
    followed, read = LiveMarket(), LiveMarket()
    for batch in _cut(trades, 9):
        followed.take_trades(_taken(followed, batch), micros(START))
    followed.take_bars(_bars(trades), micros(START))
    read.take_bars(_bars(trades), micros(START))
    read.take_trades(
        _taken(read, [t for t in trades if micros(t.time) > micros(START) - SECONDS * 10**6]), micros(START)
    )
    order = [read.symbols.index(symbol) for symbol in followed.symbols]
    np.testing.assert_allclose(followed.figures(), read.figures()[order])


def test_sparks_end_with_the_last_price_and_hold_through_quiet_minutes() -> None:
    market = LiveMarket()
    trades = [Trade("BTC-USD", n, START - timedelta(minutes=10 * (5 - n)), str(100 + n)) for n in range(5)]
    market.take_bars(_bars(trades), micros(START))
    (spark,) = market.sparks()
    assert len(spark) == SPARK_MINUTES
    assert spark[-41:].tolist() == [v for n in range(4) for v in [100.0 + n] * 10] + [104.0]
    assert np.isnan(spark[:-41]).all()


def test_a_trade_from_the_future_does_not_push_the_present_out() -> None:
    market = LiveMarket()
    now = Trade("BTC-USD", 1, START, "100")
    far = Trade("BTC-USD", 2, START + timedelta(days=1), "200")
    market.take_trades(_taken(market, [now, far]), micros(START))
    market.take_bars(_bars([now, far]), micros(START))
    assert market.now_us == micros(START)
    assert market.figures()[0, FIGURES.index("trades_24h")] == 1


def _model_candles(trades: list[Trade], symbol: str, seconds: int) -> list[list[float]]:
    own = sorted(trade for trade in trades if trade.symbol == symbol)
    candles = defaultdict(list)
    for trade in own:
        candles[micros(trade.time) // 10**6 // seconds * seconds].append(trade)
    rows = []
    for start, inside in sorted(candles.items())[-CANDLES:]:
        prices, sizes = [float(t.price) for t in inside], [float(t.size) for t in inside]
        minute = max(micros(t.time) for t in inside) // 60_000_000
        hour = [float(t.price) for t in own if minute - 60 < micros(t.time) // 60_000_000 <= minute]
        row = [start, prices[0], max(prices), min(prices), prices[-1], sum(sizes)]
        row += [sum(p * s for p, s in zip(prices, sizes, strict=True))]
        row += [sum(s for t, s in zip(inside, sizes, strict=True) if t.side == "BUY"), len(inside)]
        rows.append([*row, sum(hour) / len(hour)])
    return rows


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("grain", GRAINS)
def test_candles_are_those_of_a_plain_count_whatever_the_batches(grain: str, seed: int) -> None:
    seconds = GRAINS[grain]
    trades = _made(seed, min(seconds * 100, 20 * 3600), 400)
    market, wall_us = LiveMarket(), micros(START)
    batches = _cut(trades, seed)
    held = [trade for batch in batches[:5] for trade in batch]
    market.take_bars(_bars(held), wall_us)
    number = market.number("BTC-USD")
    assert number is not None
    candles = (BarCandles if seconds >= 60 else TradeCandles)(number, seconds, market)
    if isinstance(candles, BarCandles):
        candles.begin(candles.past(_bars([trade for trade in held if trade.symbol == "BTC-USD"], HISTORY_COLUMNS)))
    else:
        candles.take(_taken(market, held))
    for batch in batches[5:]:
        held += batch
        touched = {(trade.symbol, micros(trade.time) // 60_000_000) for trade in batch}
        bars = _bars([trade for trade in held if (trade.symbol, micros(trade.time) // 60_000_000) in touched])
        market.take_bars(bars, wall_us)
        if isinstance(candles, BarCandles):
            assert candles.take(bars) is not None
        else:
            candles.take(_taken(market, batch))
    found, expected = candles.rows[:, : len(COLUMNS) - 2], np.array(_model_candles(trades, "BTC-USD", seconds))
    if isinstance(candles, TradeCandles):  # the average of a candle is told when it changes, not when others do
        found, expected = found[:, :-1], expected[:, :-1]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_bar_that_is_older_than_the_minutes_kept_asks_for_a_new_beginning() -> None:
    market = LiveMarket()
    old, new = Trade("BTC-USD", 1, START - timedelta(days=3)), Trade("BTC-USD", 2, START)
    market.take_bars(_bars([old, new]), micros(START))
    candles = BarCandles(0, 3600, market)
    candles.begin(candles.past(_bars([old, new], HISTORY_COLUMNS)))
    assert candles.take(_bars([old])) is None
    assert candles.take(_bars([new])) is not None


def test_a_ring_keeps_the_newest_slots_and_forgets_the_others() -> None:
    ring = Ring(4, gauges=("a",), sums=("n",))
    ring.resize(2)
    for slot in range(100, 130):
        ring.put(np.array([0]), np.array([slot]), {"a": np.array([float(slot)]), "n": np.array([1.0])})
        kept = [one for one in range(slot - 3, slot + 1) if one >= 100]
        stretch = ring.window(slot - 3, slot)
        assert stretch.sum("n").tolist() == [len(kept), 0]
        assert stretch.highest("a")[0] == slot
        assert ring.last("a", slot - 2)[0] == pytest.approx(slot - 2 if slot - 2 in kept else math.nan, nan_ok=True)
    ring.reach(10_000)
    assert ring.window(0, 10_000).sum("n").tolist() == [0, 0]


def test_ids_of_all_sizes_can_be_drawn() -> None:
    found = float64(pa.chunked_array([[1, 2**53 + 1, 2**62]]))
    assert found.tolist() == pytest.approx([1, 2**53, 2**62])


def test_a_market_is_compared_across_venues_by_recent_prices_of_their_largest_products() -> None:
    market = LiveMarket()
    prices = {"BTC-USD": "100", "BTC-USDC": "999", "BTC/USD@kraken": "102", "BTCUSDT@binance": "101", "BTC-EUR": "9"}
    trades = [Trade(symbol, 1, START, price, "0.1" if price == "999" else "5") for symbol, price in prices.items()]
    trades.append(Trade("BTC-USDT@okx", 1, START - timedelta(minutes=6), "50"))
    market.take_bars(_bars(trades), micros(START))
    market.take_trades(_taken(market, trades), micros(START))
    (row,) = market.across(market.figures())
    assert row == {
        "market": "BTC/USD·USDT",
        "spread": pytest.approx(2.0),
        "decimals": 0,
        "prices": {"coinbase": 100.0, "kraken": 102.0, "binance": 101.0, "okx": None},
    }


def test_a_product_that_is_not_traded_any_more_does_not_stand_for_its_venue() -> None:
    market = LiveMarket()
    old = START - timedelta(minutes=30)
    trades = [
        Trade("BTC-USD", 1, old, "90", "500"),
        Trade("BTC-USDC", 1, START, "100"),
        Trade("BTC/USD@kraken", 1, START, "101"),
    ]
    market.take_bars(_bars(trades), micros(START))
    (row,) = market.across(market.figures())
    assert (row["prices"], row["spread"]) == ({"coinbase": 100.0, "kraken": 101.0}, pytest.approx(1.0))
