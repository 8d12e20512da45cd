"""Messages of venues beside Coinbase: composed ones, hostile ones, and their key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptopulse.audit.venues import venue_trades
from cryptopulse.engine.exact import Row, venue_rows
from cryptopulse.engine.parse import parse
from cryptopulse.lake.products import is_product_id, is_symbol
from cryptopulse.lake.tables import BRONZE
from cryptopulse.settings import RECORDED_VENUES, Settings
from cryptopulse.venues.registry import MESSAGES, VENUES

KRAKEN = (
    '{"channel":"trade","type":"update","data":['
    '{"symbol":"BTC/USD","side":"sell","price":63501.60,"qty":2e-8,"ord_type":"limit","trade_id":7,'
    '"timestamp":"2026-07-07T23:00:05.562702Z"},'
    '{"symbol":"ETH/USD","side":"buy","price":1775.1,"qty":0.50000000,"ord_type":"market","trade_id":3,'
    '"timestamp":"2026-07-07T23:00:05.562702Z"}]}'
)
BINANCE = '{"e":"trade","E":2,"s":"BTCUSDT","t":6486989273,"p":"63551.02","q":"0.00317","T":%s,"m":%s,"M":true}'
OKX = '{"arg":{"channel":"%s","instId":"BTC-USDT"},"data":[%s]}'
OKX_TRADE = (
    '{"instId":"BTC-USDT","tradeId":"123","px":"84310.1","sz":"0.03","side":"buy","ts":"1793631845101","source":"0"%s}'
)
UNIT = 10**12


def micros(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1e6)


def rows(venue: str, body: str) -> list[Row]:
    return venue_rows(body.encode(), f"@{venue}")


def test_kraken_sends_several_trades_with_numbers_and_the_takers_side() -> None:
    us = micros("2026-07-07T23:00:05.562702")
    assert rows("kraken", KRAKEN) == [
        Row(None, "BTC/USD@kraken", 7, 63_501_600_000_000_000, 20_000, "SELL", us),
        Row(None, "ETH/USD@kraken", 3, 1_775_100_000_000_000, UNIT // 2, "BUY", us),
    ]


@pytest.mark.parametrize(("maker", "side"), [("true", "SELL"), ("false", "BUY")])
@pytest.mark.parametrize("time", ["1783465157897", "1783465157897000"])
@pytest.mark.parametrize("form", ["%s", '{"stream":"btcusdt@trade","data":%s}'])
def test_binance_counts_milliseconds_or_microseconds_and_names_the_maker(
    maker: str, side: str, time: str, form: str
) -> None:
    (row,) = rows("binance", form % (BINANCE % (time, maker)))
    assert row == Row(
        None, "BTCUSDT@binance", 6486989273, 63_551_020_000_000_000, 3_170_000_000, side, 1_783_465_157_897_000
    )


def test_binances_aggregates_have_ids_and_symbols_of_their_own() -> None:
    body = '{"e":"aggTrade","E":2,"s":"NKNUSDT","a":15683430,"p":"0.35","q":"1","f":1,"l":3,"T":1634,"m":true}'
    (row,) = rows("binance-aggregates", body)
    assert (row.reason, row.symbol, row.trade_id) == (None, "NKNUSDT@binance-aggregates", 15683430)
    assert rows("binance", body) == rows("binance-aggregates", BINANCE % (1, "true")) == []


def test_okx_stands_for_one_trade_or_is_refused() -> None:
    alone = Row(None, "BTC-USDT@okx", 123, 84_310_100_000_000_000, 30_000_000_000, "BUY", 1_793_631_845_101_000)
    assert rows("okx", OKX % ("trades-all", OKX_TRADE % "")) == [alone]
    assert rows("okx", OKX % ("trades", OKX_TRADE % ',"count":"1"')) == [alone]
    assert rows("okx", OKX % ("trades", OKX_TRADE % ',"count":"3"')) == [
        Row("several trades in one; the channel trades-all has each")
    ]


CONTROL = {
    "kraken": [
        '{"channel":"heartbeat"}',
        '{"channel":"status","type":"update","data":[{"connection_id":44218940131019144131}]}',
        '{"method":"subscribe","result":{"channel":"trade","symbol":"BTC/USD"},"success":true}',
        '{"error":"Currency pair not supported XBT/USD","method":"subscribe","success":false}',
        '{"Error":"Exceeded msg rate"}',
        '{"channel":"book","type":"snapshot","data":[{"symbol":"BTC/USD","bids":[]}]}',
    ],
    "binance": [
        '{"result":null,"id":1}',
        '{"stream":"!miniTicker@arr","data":[{"e":"24hrMiniTicker","s":"A"},{"e":"24hrMiniTicker","s":"B"}]}',
        '{"code":2,"msg":"Invalid request"}',
        '{"stream":"a@depth","data":{"e":"depthUpdate","s":"A"}}',
        '{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1}}',
        '{"u":1,"s":"BNBUSDT","b":"25.35","B":"31.21","a":"25.36","A":"40.66"}',
    ],
    "okx": [
        "pong",
        '{"event":"subscribe","arg":{"channel":"trades","instId":"BTC-USDT"}}',
        '{"event":"error","code":"60012","msg":"Invalid request"}',
        OKX % ("books", '{"asks":[]}'),
    ],
}


@pytest.mark.parametrize(("venue", "body"), [(venue, body) for venue, bodies in CONTROL.items() for body in bodies])
def test_other_messages_have_no_trades_and_are_not_refused(venue: str, body: str) -> None:
    assert rows(venue, body) == []


@pytest.mark.parametrize(
    ("venue", "body", "reason"),
    [
        ("kraken", "pang", "not a message of this venue"),
        ("kraken", KRAKEN.replace("05.562702Z", "05.562702+02:00"), "time is missing or malformed"),
        ("binance", BINANCE % ("1783465157897.000", "true"), "time is missing or malformed"),
        ("binance", '{"stream":"x","data":[{"e":"trade"}]}', "unknown message type"),
        ("okx", OKX % ("trades-all", OKX_TRADE.replace("5101", "5101.0") % ""), "time is missing or malformed"),
        ("kraken", "[]", "not a message of this venue"),
        ("kraken", "{}", "not a message of this venue"),
        ("kraken", '{"channel":"trades"}', "unknown channel"),
        ("kraken", '{"channel":"trade","data":{}}', "a trade message without its trades"),
        ("kraken", KRAKEN.replace('"side":"sell"', '"side":"sell","side":"buy"'), "a member is there twice"),
        ("kraken", KRAKEN.replace('"BTC/USD"', "17"), "product_id is missing or malformed"),
        ("kraken", KRAKEN.replace("BTC/USD", "BTC/USD@okx"), "product_id is missing or malformed"),
        ("kraken", KRAKEN.replace("63501.60", "-1"), "price is not positive"),
        ("kraken", KRAKEN.replace("05.562702Z", "65.562702Z"), "time is missing or malformed"),
        ("binance", BINANCE % ("1" * 25, "true"), "time is out of range"),
        ("binance", BINANCE % (1, "1"), "side is neither buy nor sell"),
        ("binance", BINANCE.replace('"e":"trade"', '"e":"news"') % (1, "true"), "unknown message type"),
        ("okx", OKX % ("trades-all", "5"), "a trade message without its trades"),
        ("nowhere", KRAKEN, "not a message of this venue"),
    ],
)
def test_what_is_not_understood_is_refused_with_a_reason(venue: str, body: str, reason: str) -> None:
    assert rows(venue, body)[0].reason == reason


def bronze(messages: list[tuple[str, str]]) -> pa.Table:
    """(key, body) of each as rows of bronze."""
    now = datetime(2026, 7, 7, tzinfo=UTC)
    columns: Mapping[str, list[Any]] = {
        "body": [body.encode() for _, body in messages],
        "partition": [0] * len(messages),
        "offset": list(range(len(messages))),
        "partition_key": [key for key, _ in messages],
        "received_time": [now] * len(messages),
        "source": ["websocket"] * len(messages),
    }
    schema = pa.schema([BRONZE.arrow_schema.field(name) for name in columns])
    return pa.table(columns, schema)


MATCH = (
    '{"type":"match","trade_id":5,"maker_order_id":"a","taker_order_id":"b","side":"sell","size":"1","price":"2",'
    '"product_id":"%s","sequence":1,"time":"2026-07-07T23:00:05.562702Z"}'
)

BATCH = (
    '{"channel":"market_trades","events":[{"trades":[{"product_id":"BTC/USD@kraken","trade_id":"1","price":"1",'
    '"size":"1","side":"BUY","time":"2026-07-07T23:00:05Z"}]}]}'
)


@pytest.mark.parametrize("count", [1, 1_000])  # one by one, and together
def test_the_key_alone_says_whose_message_it_is(count: int) -> None:
    messages = [
        ("BTC-USD", MATCH % "BTC-USD"),
        ("@kraken", KRAKEN),
        ("@kraken", MATCH % "BTC-USD"),
        ("", KRAKEN),
        ("BTC/USD@kraken", MATCH % "BTC/USD@kraken"),
        ("", BATCH),
    ]
    found = parse(bronze(messages * count)).to_pylist()
    first = [(row["offset"], row["symbol"], row["reason"]) for row in found][:7]
    assert first == [
        (0, "BTC-USD", None),
        (1, "BTC/USD@kraken", None),
        (1, "ETH/USD@kraken", None),
        (2, None, "not a message of this venue"),
        (3, None, "unknown message type"),
        (4, None, "not a message of this venue"),
        (5, None, "product_id is missing or malformed"),
    ]
    assert len(found) == 7 * count


@pytest.mark.parametrize("text", ["BTC/USD@kraken", "AAPLx/USD@kraken", "BTCUSDT@binance", "BTC-USD-220527@okx"])
def test_a_symbol_of_another_venue_is_none_of_coinbase(text: str) -> None:
    assert is_symbol(text)
    assert not is_product_id(text)


@pytest.mark.parametrize("text", ["@kraken", "BTC/USD@", "BTC/USD@Kraken", "BTC//USD@kraken", "a@b@c", "BTC'@okx"])
def test_no_symbol(text: str) -> None:
    assert not is_symbol(text)


EXAMPLES = {
    "kraken": KRAKEN,
    "binance": BINANCE % (1_783_465_157_897, "true"),
    "okx": OKX % ("trades-all", OKX_TRADE % ""),
}
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-1, 10**20), st.text(max_size=6), st.just([]), st.just({}),
    st.sampled_from(["1e-8", "1e400", "NaN", "007", "2026-07-07T23:00:05+02:00", "trade", "sell", "BTC/USD"]),
    st.floats(),
)  # fmt: skip


@st.composite
def changed_messages(draw: st.DrawFn) -> tuple[str, str]:
    """A venue, and its example with some values replaced, members left out, or letters gone."""
    venue = draw(st.sampled_from(sorted(EXAMPLES)))
    value = json.loads(EXAMPLES[venue])
    for _ in range(draw(st.integers(0, 3))):
        place: Any = value
        while isinstance(place, dict | list) and place:
            names = list(place) if isinstance(place, dict) else list(range(len(place)))
            name = draw(st.sampled_from(names))
            if not isinstance(place[name], dict | list) or not place[name] or draw(st.integers(0, 5)) == 0:
                place[name] = draw(VALUES)
                break
            place = place[name]
    text = json.dumps(value)
    return venue, text if draw(st.integers(0, 9)) else text[: draw(st.integers(0, len(text)))]


@given(changed_messages())
def test_the_audit_reads_what_the_parser_accepts_and_no_message_raises(message: tuple[str, str]) -> None:
    venue, body = message
    accepted = [row for row in rows(venue, body) if row.reason is None]
    read = list(venue_trades(body.encode(), f"@{venue}"))
    ids = {(trade["symbol"], int(trade["trade_id"])) for trade in read if trade["trade_id"].isdecimal()}
    assert {(row.symbol, row.trade_id) for row in accepted} <= ids


def test_every_venue_has_an_example_here() -> None:
    assert MESSAGES.keys() - {"binance-aggregates"} == EXAMPLES.keys()


def test_each_venue_that_can_be_recorded_has_its_section_of_settings() -> None:
    assert tuple(VENUES) == RECORDED_VENUES
    assert VENUES.keys() <= Settings.model_fields.keys()
