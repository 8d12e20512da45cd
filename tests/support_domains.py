"""The ends of what silver accepts, and a check that every statement carries them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, timedelta
from decimal import localcontext
from itertools import pairwise
from typing import Any, Protocol

import pyarrow as pa
import pytest
from hypothesis import strategies as st

from cryptopulse.engine.parse import absent_ids, parse
from cryptopulse.lake.tables import ABSENT, BARS, COMPLETENESS, COVERAGE, SILVER, STATS, Table
from support import Trade, advanced, at, bronze, model_bars, model_completeness, model_coverage, model_stats, page

IDS, TIMES = SILVER.domain("trade_id"), SILVER.domain("event_time")
SECONDS = (0, 1e-6, 59.999999, 60, 299.999999, 300, 3_599.999999, 3_600, 86_399.999999)
LARGEST, SMALLEST = "9999999999999999.999999999999", "0.000000000001"
EXTREME_IDS = [1, 2, 3, 5, 2**31 - 1, 2**31, 2**53 + 1, IDS.highest - 2, IDS.highest - 1, IDS.highest]
EXTREME_TIMES = [TIMES.lowest + timedelta(seconds=s) for s in SECONDS] + [
    TIMES.highest - timedelta(seconds=s) for s in SECONDS
]
EXTREME_VALUES = [
    (SMALLEST, SMALLEST), (SMALLEST, LARGEST), ("0.000999999999", LARGEST), ("999999999999.999999999999", SMALLEST),
    ("999999999999.999999999999", "9.999999999999"), ("1", "9999999999999.999999999999"), ("100.5", "0.25"),
]  # fmt: skip
SYMBOLS = ["BTC-USD", "BIP-20DEC30-CDE", "A" * 60 + "-USD"]


def _extremes() -> list[Trade]:
    """Each end alone, in a product of its own, and all of them together."""
    times = sorted(EXTREME_TIMES)
    alone = [Trade("ID-USD", number, at(n)) for n, number in enumerate(EXTREME_IDS)]
    alone += [Trade("TIME-USD", n + 1, time) for n, time in enumerate(times)]
    alone += [Trade("VALUE-USD", n + 1, at(n), *value) for n, value in enumerate(EXTREME_VALUES)]
    alone += [Trade(symbol, 7) for symbol in SYMBOLS]
    together = [
        Trade("ALL-USD", number, times[n * 2], *EXTREME_VALUES[n * 3 % len(EXTREME_VALUES)], "SELL" if n % 2 else "BUY")
        for n, number in enumerate(sorted(EXTREME_IDS)[: len(times) // 2])
    ]
    return alone + together


EXTREMES = _extremes()

TRADES = st.builds(
    lambda symbol, number, time, value, side, source: Trade(symbol, number, time, value[0], value[1], side, source),
    st.sampled_from(SYMBOLS[:2]),
    st.one_of(st.sampled_from(EXTREME_IDS), st.integers(IDS.lowest, IDS.highest)),
    st.one_of(
        st.sampled_from(EXTREME_TIMES),
        st.datetimes(TIMES.lowest.replace(tzinfo=None), TIMES.highest.replace(tzinfo=None)),
    ).map(lambda time: time.replace(tzinfo=UTC)),
    st.sampled_from(EXTREME_VALUES),
    st.sampled_from(["BUY", "SELL"]),
    st.sampled_from(["websocket", "rest"]),
)
LISTS_OF_TRADES = st.lists(TRADES, min_size=1, max_size=12, unique_by=lambda trade: (trade.symbol, trade.trade_id))
FLOATS = {"vwap", "avg_price", "volatility"}
LEFT_OUT = {"load_timestamp", "event_date", "window_date", "ingestion_time"}


class Statements(Protocol):
    """An engine's way to run a canonical statement."""

    def derive(self, name: str, inputs: Mapping[str, pa.Table]) -> pa.Table: ...


def derived(statements: Statements, trades: Sequence[Trade]) -> dict[str, pa.Table]:
    """Every table of `trades`, which come as messages of the WebSocket and as pages of REST."""
    pages = [page(of) for symbol in SYMBOLS if (of := [t for t in trades if t.symbol == symbol and t.source == "rest"])]
    others = [trade for trade in trades if trade.source == "websocket"]
    told = [trade.match() for trade in others[::2]] + ([advanced(others[1::2])] if others[1::2] else [])
    parsed = parse(bronze([*pages, *told]))
    assert parsed["reason"].null_count == parsed.num_rows == len(trades)
    found = {"silver.parsed_trades": parsed, COVERAGE.qualified: empty(COVERAGE), ABSENT.qualified: absent_ids(parsed)}
    for table in (SILVER, COVERAGE, BARS, STATS, COMPLETENESS):
        found[table.qualified] = statements.derive(table.qualified, found)
    return found


def empty(table: Table) -> pa.Table:
    return table.arrow_schema.empty_table()


def rows(found: pa.Table, table: Table) -> list[dict[str, Any]]:
    """As the table would hold them: in its types, in the order of its key."""
    kept = [field for field in table.arrow_schema if field.name not in LEFT_OUT]
    cast = found.select([field.name for field in kept]).cast(pa.schema(kept))
    return cast.sort_by([(name, "ascending") for name in table.key]).to_pylist()


def proved(trades: Sequence[Trade]) -> Iterator[tuple[str, int, int]]:
    """What the pages prove absent."""
    for symbol in SYMBOLS:
        ids = sorted(t.trade_id for t in trades if t.symbol == symbol and t.source == "rest")
        yield from ((symbol, low + 1, high - 1) for low, high in pairwise(ids) if high - low > 1)


def absent_in(trades: Sequence[Trade], symbol: str, first: int, last: int) -> int:
    """How many of the ids from `first` to `last` are proved absent and not held."""
    spans = [(max(first, low), min(last, high)) for of, low, high in proved(trades) if of == symbol]
    ids = {t.trade_id for t in trades if t.symbol == symbol}
    return sum(high - low + 1 - sum(low <= one <= high for one in ids) for low, high in spans if low <= high)


def assert_carried(statements: Statements, trades: Sequence[Trade]) -> None:
    found = derived(statements, trades)
    kept = [
        {"trade_id": t.trade_id, "symbol": t.symbol, "side": t.side, "event_time": t.time, "source": t.source}
        for t in sorted(trades)
    ]
    silver = [{name: row[name] for name in kept[0]} for row in rows(found[SILVER.qualified], SILVER)]
    assert silver == kept
    assert rows(found[COVERAGE.qualified], COVERAGE) == model_coverage(trades)
    with localcontext(prec=60):
        models = {BARS: model_bars(trades), STATS: model_stats(trades)}
    for table, model in models.items():
        there = rows(found[table.qualified], table)
        exact = [{name: value for name, value in row.items() if name not in FLOATS} for row in there]
        assert exact == [{name: value for name, value in row.items() if name not in FLOATS} for row in model]
        floats = [[row[name] for name in sorted(FLOATS & row.keys())] for row in there]
        modelled = [bar | {"vwap": float(bar["notional"] / bar["volume"])} for bar in model] if table is BARS else model
        wanted = [[row[name] for name in sorted(FLOATS & row.keys())] for row in modelled]
        assert floats == [pytest.approx(values, rel=1e-9, abs=1e-12) for values in wanted]
    hours = model_completeness(trades)
    for hour in hours:
        absent = absent_in(trades, hour["symbol"], hour["first_trade_id"], hour["last_trade_id"])
        missing = hour["missing_ids"] - absent
        hour |= {"absent_ids": absent, "missing_ids": missing, "is_complete": missing == 0}
    assert rows(found[COMPLETENESS.qualified], COMPLETENESS) == hours
