"""The dashboards' queries say what the trades say, counted here once more from the trades themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import sqlglot

from cryptopulse.lake.dataset import read
from cryptopulse.lake.dialect import duckdb_query
from cryptopulse.lake.queries import Chart, load_queries, parse_queries
from cryptopulse.lake.tables import ALERTS, BRONZE, SILVER
from dashboard_lake import HOUR, TRADES, fill
from support import Lake, model_completeness

QUERIES = load_queries()
SYMBOLS = ("BTC-USD", "ETH-USD")


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    """26 hours of trades with a hole and a crash."""
    made = Lake(tmp_path_factory.mktemp("dashboards") / "lake")
    fill(made)
    yield made
    made.close()


def rows(lake: Lake, name: str) -> list[dict[str, Any]]:
    return read(lake.settings.location, duckdb_query(QUERIES[name].sql)).to_pylist()


def minute(when: datetime) -> datetime:
    return when.replace(second=0, microsecond=0)


NEWEST = max(minute(trade.time) for trade in TRADES)


def of_last(length: timedelta, symbol: str, until: datetime = NEWEST) -> list[Any]:
    """The trades whose minute lies within `length` up to `until`, this minute included."""
    return [t for t in TRADES if t.symbol == symbol and until - length < minute(t.time) <= until]


def test_the_price_trend_has_the_mean_price_of_the_trades_of_an_hour(lake: Lake) -> None:
    found = rows(lake, "price_trend")
    expected = []
    for symbol in SYMBOLS:
        shown = of_last(24 * HOUR, symbol)
        for start in sorted({minute(t.time) for t in shown}):
            prices = [Decimal(t.price) for t in of_last(HOUR, symbol, start)]
            last = max((t for t in shown if minute(t.time) == start), key=lambda t: t.trade_id)
            mean = float(sum(prices) / len(prices))
            expected.append((symbol, start, Decimal(last.price), pytest.approx(mean, rel=1e-12)))
    assert [tuple(row.values()) for row in found] == expected
    assert len(found) > 100


def test_the_volume_of_an_asset_is_that_of_its_last_24_hours(lake: Lake) -> None:
    found = {row["symbol"]: row for row in rows(lake, "volume_by_asset")}
    for symbol in SYMBOLS:
        day = of_last(24 * HOUR, symbol)
        assert len(day) < sum(t.symbol == symbol for t in TRADES)  # some are older
        assert found[symbol] == {
            "symbol": symbol,
            "volume": sum(Decimal(t.size) for t in day),
            "notional": sum(Decimal(t.price) * Decimal(t.size) for t in day),
            "trade_count": len(day),
        }


def test_the_largest_turnover_stands_first(lake: Lake) -> None:
    turnovers = [row["notional"] for row in rows(lake, "volume_by_asset")]
    assert turnovers == sorted(turnovers, reverse=True)


def test_alerts_are_the_episodes_with_the_open_ones_first(lake: Lake) -> None:
    found = rows(lake, "live_alerts")
    stored = {row["alert_id"]: row for row in lake.arrow(ALERTS).to_pylist()}
    assert {row["alert_id"] for row in found} == set(stored)
    states = [row["state"] for row in found]
    assert set(states) == {"OPEN", "CLOSED"}
    assert states == sorted(states, reverse=True)
    for row in found:
        assert row == {name: stored[row["alert_id"]][name] for name in row}


def test_sentiment_counts_the_takers_of_the_last_hour(lake: Lake) -> None:
    found = {row["symbol"]: row for row in rows(lake, "sentiment")}
    for symbol in SYMBOLS:
        bought = [t for t in of_last(HOUR, symbol) if t.side == "BUY"]
        sold = [t for t in of_last(HOUR, symbol) if t.side == "SELL"]
        buys, sells = (sum(Decimal(t.size) for t in side) for side in (bought, sold))
        assert found[symbol] == {
            "symbol": symbol,
            "buy_count": len(bought),
            "sell_count": len(sold),
            "buy_volume": buys,
            "sell_volume": sells,
            "buy_volume_pct": pytest.approx(float(100 * buys / (buys + sells))),
        }


def test_trades_a_minute_are_counted_for_three_hours(lake: Lake) -> None:
    found = {(row["symbol"], row["window_start"]): row for row in rows(lake, "trades_a_minute")}
    expected: dict[tuple[str, datetime], list[Any]] = {}
    for symbol in SYMBOLS:
        for trade in of_last(3 * HOUR, symbol):
            expected.setdefault((symbol, minute(trade.time)), []).append(trade)
    assert set(found) == set(expected)
    for key, trades in expected.items():
        assert found[key]["trade_count"] == len(trades)
        assert found[key]["volume"] == sum(Decimal(t.size) for t in trades)


def test_latency_is_measured_hop_by_hop(lake: Lake) -> None:
    found = {(row["hop"], row["minute"]): row for row in rows(lake, "latency_by_hop")}
    bronze = {row["received_time"]: row for row in lake.arrow(BRONZE).to_pylist() if row["source"] == "websocket"}
    newest = max(bronze)
    measured: dict[tuple[str, datetime], list[float]] = {}

    def note(hop: str, received: datetime, since: datetime, until: datetime) -> None:
        measured.setdefault((hop, minute(received)), []).append((until - since) / timedelta(milliseconds=1))

    for message in (m for m in bronze.values() if m["received_time"] > newest - timedelta(minutes=10)):
        received = message["received_time"]
        note("receive to log", received, received, message["enqueued_time"])
        note("log to bronze", received, message["enqueued_time"], message["bronze_ingestion_time"])
    for trade in lake.arrow(SILVER).to_pylist():
        received = trade["ingestion_time"]
        if received > newest - timedelta(minutes=10) and trade["source"] == "websocket":
            note("exchange to receive", received, trade["event_time"], received)
            note("bronze to silver", received, bronze[received]["bronze_ingestion_time"], trade["load_timestamp"])
            note("receive to silver", received, received, trade["load_timestamp"])
    assert set(found) == set(measured)
    assert len({hop for hop, _ in found}) == 5
    for key, values in measured.items():
        p50, p99 = np.percentile(values, [50, 99])
        assert found[key]["measured"] == len(values)
        assert found[key]["p50_ms"] == pytest.approx(p50, rel=1e-9)
        assert found[key]["p99_ms"] == pytest.approx(p99, rel=1e-9)


def test_a_trade_that_was_fetched_to_close_a_hole_does_not_count_as_late(lake: Lake) -> None:
    ids = {row["trade_id"] for row in lake.arrow(SILVER).to_pylist() if row["source"] == "rest"}
    assert ids  # there is one, and it came 5 minutes late
    worst = max(row["p99_ms"] for row in rows(lake, "latency_by_hop") if row["hop"] == "exchange to receive")
    assert worst < 1000


def test_completeness_names_every_missing_id(lake: Lake) -> None:
    found = {row["symbol"]: row for row in rows(lake, "completeness")}
    holes = rows(lake, "holes")
    for symbol in SYMBOLS:
        ids = {t.trade_id for t in TRADES if t.symbol == symbol}
        missing = set(range(min(ids), max(ids) + 1)) - ids
        named = {
            one
            for hole in holes
            if hole["symbol"] == symbol
            for one in range(hole["first_missing_id"], hole["last_missing_id"] + 1)
        }
        assert named == missing
        assert found[symbol]["ids_held"] == len(ids)
        assert found[symbol]["ids_missing"] == len(missing)
        assert found[symbol]["holes"] == sum(hole["symbol"] == symbol for hole in holes)
        assert found[symbol]["held_pct"] == pytest.approx(100 * len(ids) / (len(ids) + len(missing)))
    assert holes


def test_hours_in_which_trades_were_missed_are_shown_with_what_became_of_them(lake: Lake) -> None:
    sources = {(row["symbol"], row["trade_id"]): row["source"] for row in lake.arrow(SILVER).to_pylist()}
    expected = model_completeness(replace(t, source=sources[t.symbol, t.trade_id]) for t in TRADES)
    found = rows(lake, "incomplete_hours")
    missed = sorted((row for row in expected if row["witness"]), key=lambda row: row["window_start"], reverse=True)
    assert found == [{name: row[name] for name in found[0]} for row in missed]
    assert [(row["missing_ids"], row["healed_ids"]) for row in found] == [(0, 1), (3, 0)]


def test_freshness_is_the_time_since_the_last_commit(lake: Lake) -> None:
    found = {row["table_name"]: row for row in rows(lake, "data_freshness")}
    assert list(found) == [
        "bronze.coinbase_raw_trades",
        "silver.fact_crypto_trades",
        "gold.dm_trade_bars",
        "gold.dm_crypto_price_stats",
    ]
    silver = found["silver.fact_crypto_trades"]
    assert silver["written_at"] == max(lake.arrow(SILVER)["load_timestamp"].to_pylist())
    assert silver["newest"] == max(trade.time for trade in TRADES)
    assert all(0 <= row["age_s"] < 600 for row in found.values())


@pytest.mark.parametrize("name", QUERIES)
def test_a_lake_without_rows_is_an_answer_and_not_an_error(name: str, lake: Lake, tmp_path: Path) -> None:
    empty = Lake(tmp_path / "lake")
    empty.drain()
    answer = read(empty.settings.location, duckdb_query(QUERIES[name].sql))
    filled = read(lake.settings.location, duckdb_query(QUERIES[name].sql))
    assert answer.schema.names == filled.schema.names
    assert answer.num_rows == (4 if name == "data_freshness" else 0)
    empty.close()


@pytest.mark.parametrize("name", QUERIES)
def test_charts_draw_columns_that_the_query_has_and_numbers_upwards(name: str, lake: Lake) -> None:
    query = QUERIES[name]
    schema = read(lake.settings.location, duckdb_query(query.sql)).schema
    drawn = {query.chart.x, *query.chart.y, query.chart.color} - {None}
    assert drawn <= set(schema.names)
    for column in query.chart.y:
        kind = schema.field(column).type
        assert pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        assert not pa.types.is_decimal(kind) or kind.scale > 0  # a count is a whole number


@pytest.mark.parametrize("dialect", ["spark", "databricks"])
@pytest.mark.parametrize("name", QUERIES)
def test_a_query_is_one_reading_statement_of_spark(name: str, dialect: str) -> None:
    (tree,) = sqlglot.parse(QUERIES[name].sql, read=dialect)
    assert isinstance(tree, sqlglot.exp.Query)
    tables = [table for table in tree.find_all(sqlglot.exp.Table) if table.db]
    assert tables
    assert all(not table.catalog for table in tables)


def test_what_a_query_says_about_itself_is_read() -> None:
    (query,) = parse_queries(
        "-- words before the first\n-- name: a\n-- title: A\n-- description: first\n--   second\n"
        "-- chart: line x=t y=p,q color=s\nSELECT 1 -- why\n;\n"
    )
    assert (query.name, query.title, query.description) == ("a", "A", "first second")
    assert query.chart == Chart("line", "t", ("p", "q"), "s")
    assert query.sql == "SELECT 1 -- why"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("-- name: a\n-- title: A\n-- chart: table\nSELECT 1;", "description is missing"),
        ("-- name: a\n-- title: A\n-- description: d\n-- chart: pie\nSELECT 1;", "chart 'pie'"),
        ("-- name: a\n-- title: A\n-- description: d\n-- chart: line x=t\nSELECT 1;", "needs x and y"),
        ("-- name: a\n-- title: A\n-- description: d\n-- chart: table\nSELECT 1", "semicolon"),
        ("-- name: a\n-- title: A\n-- description: d\n-- chart: table\nSELECT 1;\nSELECT 2;", "one statement"),
        ("-- name: a\n-- colour: red\nSELECT 1;", "colour"),
        (2 * "-- name: a\n-- title: A\n-- description: d\n-- chart: table\nSELECT 1;\n", "two of that name"),
    ],
)
def test_a_query_that_is_not_as_it_should_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_queries(text)
