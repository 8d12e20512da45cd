"""Activity bars are those that one gets trade by trade with decimals, whatever the sizes, days and products."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Context, Decimal, localcontext
from itertools import groupby
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.activity_bars import (
    ACTIVITY_BARS,
    MEASURES,
    BarSize,
    Measure,
    activity_bars,
    streamed_activity_bars,
)
from cryptopulse.lake.tables import COVERAGE, SILVER

EVENING = datetime(2026, 7, 6, 23, 59, 30, tzinfo=UTC)
SCHEMA = pa.schema(
    [
        *(SILVER.arrow_schema.field(name) for name in ("symbol", "trade_id", "price", "trade_size", "side")),
        *(SILVER.arrow_schema.field(name) for name in ("event_time", "source")),
        pa.field("notional", pa.decimal128(38, 12)),
    ]
)


@dataclass
class Bar:
    """A bar as it grows."""

    trades: list[dict[str, Any]] = field(default_factory=list)

    def sum(self, name: str, *, signed: bool = False) -> Decimal:
        found = [Decimal(1) if name == "" else trade[name] for trade in self.trades]
        signs = [-1 if signed and trade["side"] == "SELL" else 1 for trade in self.trades]
        return sum((sign * amount for sign, amount in zip(signs, found, strict=True)), Decimal(0))

    def measured(self, measure: Measure) -> Decimal:
        prices = [trade["price"] for trade in self.trades]
        return {
            "trades": self.sum(""),
            "volume": self.sum("trade_size"),
            "notional": self.sum("notional"),
            "trade_imbalance": abs(self.sum("", signed=True)),
            "volume_imbalance": abs(self.sum("trade_size", signed=True)),
            "range": max(prices) - min(prices),
        }[measure]


def one_by_one(trades: list[dict[str, Any]], measure: Measure, size: Decimal) -> Iterator[tuple[Bar, bool]]:
    """(bar, whether it reached its size) of trades that are in order."""
    for _, day in groupby(trades, lambda trade: (trade["symbol"], trade["event_time"].date())):
        bar = Bar()
        for trade in day:
            bar.trades.append(trade)
            if bar.measured(measure) >= size:
                yield bar, True
                bar = Bar()
        if bar.trades:
            yield bar, False


@st.composite
def markets(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Trades of one or two products around midnight, in order."""
    found = []
    decimals = draw(st.sampled_from([(2, 8), (12, 12), (0, 0)]))
    highest = draw(st.sampled_from([Decimal(100), Decimal(10**11)]))
    for symbol in ("BTC-USD", "ETH-USD")[: draw(st.integers(1, 2))]:
        number, time = draw(st.integers(1, 2**62 - 1_000)), EVENING
        for _ in range(draw(st.integers(0, 60))):
            number += draw(st.sampled_from([1, 1, 1, 2]))
            time += timedelta(microseconds=draw(st.integers(0, 2_000_000)))
            price = draw(st.decimals(Decimal(1).scaleb(-decimals[0]), highest, places=decimals[0]))
            amount = draw(st.decimals(Decimal(1).scaleb(-decimals[1]), highest, places=decimals[1]))
            amount = min(amount, Decimal(10**12)) if price * amount < 10**13 else Decimal(1)
            with localcontext(Context(prec=60, rounding=ROUND_HALF_UP)):
                notional = (price * amount).quantize(Decimal("1e-12"))
            found.append(
                {
                    "symbol": symbol,
                    "trade_id": number,
                    "price": price,
                    "trade_size": amount,
                    "side": draw(st.sampled_from(["BUY", "SELL"])),
                    "event_time": time,
                    "source": draw(st.sampled_from(["websocket", "rest"])),
                    "notional": notional,
                }
            )
    return found


@given(markets(), st.sampled_from(MEASURES), st.integers(1, 20), st.decimals("0.01", "500", places=2))
@settings(max_examples=300, deadline=None)
def test_bars_are_those_of_one_trade_after_the_other(
    trades: list[dict[str, Any]], measure: Measure, count: int, amount: Decimal
) -> None:
    size = Decimal(count) if measure in ("trades", "trade_imbalance") else amount
    found = activity_bars(pa.Table.from_pylist(trades, schema=SCHEMA), COVERAGE.empty, BarSize(measure, size))
    found.validate(full=True)
    with localcontext(Context(prec=60)):
        expected = [
            {
                "symbol": bar.trades[0]["symbol"],
                "window_start": bar.trades[0]["event_time"],
                "window_end": bar.trades[-1]["event_time"],
                "open": bar.trades[0]["price"],
                "high": max(trade["price"] for trade in bar.trades),
                "low": min(trade["price"] for trade in bar.trades),
                "close": bar.trades[-1]["price"],
                "volume": bar.sum("trade_size"),
                "notional": bar.sum("notional"),
                "vwap": pytest.approx(float(bar.sum("notional") / bar.sum("trade_size")), rel=1e-12),
                "buy_volume": sum(t["trade_size"] for t in bar.trades if t["side"] == "BUY"),
                "sell_volume": sum(t["trade_size"] for t in bar.trades if t["side"] == "SELL"),
                "trade_count": len(bar.trades),
                "buy_count": sum(t["side"] == "BUY" for t in bar.trades),
                "rest_count": sum(t["source"] == "rest" for t in bar.trades),
                "price_sum": bar.sum("price"),
                "first_trade_id": bar.trades[0]["trade_id"],
                "last_trade_id": bar.trades[-1]["trade_id"],
                "is_closed": is_closed,
                "is_complete": False,
            }
            for bar, is_closed in one_by_one(trades, measure, size)
        ]
    assert found.to_pylist() == expected
    assert found.schema == ACTIVITY_BARS.arrow_schema


@given(markets(), st.sampled_from(MEASURES), st.integers(1, 20), st.integers(1, 40), st.booleans())
@settings(max_examples=100, deadline=None)
def test_any_cut_into_batches_gives_the_same_bars(
    trades: list[dict[str, Any]], measure: Measure, count: int, rows: int, is_held: bool
) -> None:
    table, size = pa.Table.from_pylist(trades, schema=SCHEMA), BarSize(measure, Decimal(count))
    covered = [
        {"symbol": symbol, "first_trade_id": min(ids) - 1, "last_trade_id": max(ids)}
        for symbol in {trade["symbol"] for trade in trades}
        if is_held and (ids := [trade["trade_id"] for trade in trades if trade["symbol"] == symbol])
    ]
    names = COVERAGE.arrow_schema.names
    coverage = pa.Table.from_pylist([{name: row.get(name) for name in names} for row in covered], COVERAGE.arrow_schema)
    batches = table.combine_chunks().to_batches(max_chunksize=rows)
    parts = list(streamed_activity_bars(batches, coverage, size))
    assert pa.concat_tables([ACTIVITY_BARS.empty, *parts]) == activity_bars(table, coverage, size)


def test_a_bar_is_complete_when_no_id_of_the_day_so_far_is_missing() -> None:
    trades = [
        {
            "symbol": "BTC-USD",
            "trade_id": number,
            "price": Decimal(1),
            "trade_size": Decimal(1),
            "side": "BUY",
            "event_time": EVENING + timedelta(minutes=number - 10),
            "source": "websocket",
            "notional": Decimal(1),
        }
        for number in (10, 11, 12, 13, 14, 16, 17, 18, 19)
    ]
    columns = COVERAGE.arrow_schema.names
    rows = [
        {"symbol": "BTC-USD", "first_trade_id": first, "last_trade_id": last} for first, last in ((10, 14), (16, 19))
    ]
    coverage = pa.Table.from_pylist([{name: row.get(name) for name in columns} for row in rows])
    found = activity_bars(pa.Table.from_pylist(trades, schema=SCHEMA), coverage, BarSize.of("trades", 2))
    # Id 10 is the only one of its day, and nobody knows id 9. The next day begins with 11; 15 is missing.
    assert found.select(["first_trade_id", "is_closed", "is_complete"]).to_pydict() == {
        "first_trade_id": [10, 11, 13, 16, 18],
        "is_closed": [False, True, True, True, True],
        "is_complete": [False, True, True, False, False],
    }


def test_many_bars_can_be_stopped() -> None:
    trade = {"symbol": "BTC-USD", "price": 1, "trade_size": 1, "side": "BUY", "source": "rest", "notional": 1}
    trades = [trade | {"trade_id": number, "event_time": EVENING} for number in range(1, 3_000)]
    calls: list[int] = []

    def check_time() -> None:
        calls.append(len(calls))
        if len(calls) == 3:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        activity_bars(pa.Table.from_pylist(trades, schema=SCHEMA), COVERAGE.empty, BarSize.of("trades", 1), check_time)


def test_sizes_are_exact_however_large() -> None:
    assert BarSize.of("volume", "100000000000000000.000000000001").size == Decimal("100000000000000000.000000000001")
    assert BarSize.of("trades", 10**17).size == 10**17


@pytest.mark.parametrize(
    ("by", "size"),
    [
        *(("volume", size) for size in ("0", "-1", "NaN", "inf", "many", "", "1e-13", None, "1e30")),
        *(("trades", size) for size in (0, 1.5, "2.5")),
        ("trade_imbalance", "0.1"),
        ("weight", 1),
    ],
)
def test_an_impossible_size_is_refused_in_one_line(by: str, size: object) -> None:
    with pytest.raises(ConfigurationError, match=f"^{'by' if by == 'weight' else 'size'}=[^\n]+\\.$"):
        BarSize.of(by, size)
