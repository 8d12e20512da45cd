"""What a symbol says: its venue, base and quote, and the market that it belongs to."""

from __future__ import annotations

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptopulse.lake.database import Limits, tune
from cryptopulse.lake.products import SYMBOL, base_and_quote, market_of, venue_of


@pytest.mark.parametrize(
    ("symbol", "pair", "market"),
    [
        ("BTC-USD", ("BTC", "USD"), "BTC/USD"),
        ("BTC-USDC", ("BTC", "USDC"), "BTC/USD"),
        ("ETH-BTC", ("ETH", "BTC"), "ETH/BTC"),
        ("BIP-20DEC30-CDE", None, ""),
        ("BTC/USD@kraken", ("BTC", "USD"), "BTC/USD"),
        ("BTC/EUR@kraken", ("BTC", "EUR"), "BTC/EUR"),
        ("BTCUSDT@binance", ("BTC", "USDT"), "BTC/USD"),
        ("BTCFDUSD@binance", ("BTC", "FDUSD"), "BTC/USD"),
        ("1000SATSUSDT@binance", ("1000SATS", "USDT"), "1000SATS/USD"),
        ("USDCUSDT@binance", ("USDC", "USDT"), "USDC/USD"),
        ("ETHBTC@binance", ("ETH", "BTC"), "ETH/BTC"),
        ("USDT@binance", None, ""),
        ("BTCUSDT@binance-aggregates", ("BTC", "USDT"), ""),
        ("BTC-USDT@okx", ("BTC", "USDT"), "BTC/USD"),
        ("BTC-USDT-SWAP@okx", None, ""),
        ("BTC-USD@elsewhere", None, ""),
    ],
)
def test_a_symbol_says_what_is_traded_for_which_currency(
    symbol: str, pair: tuple[str, str] | None, market: str
) -> None:
    assert (base_and_quote(symbol), market_of(symbol)) == (pair, market)


_NAMES = st.sampled_from(["BTC", "ETH", "USD", "USDT", "USDC", "FDUSD", "EUR", "EURI", "1INCH", "btc"])
_USUAL = st.builds("{}{}{}{}".format, _NAMES, st.sampled_from(["", "-", "/", "."]), _NAMES, st.just("")).flatmap(
    lambda name: st.sampled_from([name, *(f"{name}@{venue}" for venue in ("kraken", "binance", "okx", "elsewhere"))])
)


@pytest.fixture(scope="module")
def database() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(":memory:")
    tune(connection, Limits(256, 1), "")
    return connection


@settings(max_examples=300, deadline=None)
@given(symbols=st.lists(_USUAL | st.from_regex(SYMBOL, fullmatch=True), min_size=1, max_size=20))
def test_sql_says_the_same_as_python(database: duckdb.DuckDBPyConnection, symbols: list[str]) -> None:
    told = database.execute(
        "SELECT venue(s), base(s), quote(s), market(s) FROM (SELECT unnest($1) AS s)", [symbols]
    ).fetchall()
    assert told == [
        (venue_of(symbol) or "coinbase", *(base_and_quote(symbol) or (None, None)), market_of(symbol) or None)
        for symbol in symbols
    ]
