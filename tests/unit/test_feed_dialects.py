"""What a raw message of each feed says to the session."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptopulse.errors import ConfigurationError
from cryptopulse.venues import Dialect, FeedMessage, Heartbeat, Other, Refusal, Subscriptions, TradesMessage, Unreadable
from cryptopulse.venues.coinbase_advanced import AdvancedDialect
from cryptopulse.venues.coinbase_exchange import ExchangeDialect

MATCH = b'{"type":"match","trade_id":7,"side":"sell","size":"0.2","price":"9.1","product_id":"BTC-USD"}'

EXCHANGE_CASES: list[tuple[bytes, FeedMessage]] = [
    (MATCH, TradesMessage((("BTC-USD", 7),), product="BTC-USD")),
    (MATCH.replace(b"match", b"last_match"), TradesMessage((("BTC-USD", 7),), product="BTC-USD")),
    (
        b'{"type":"heartbeat","last_trade_id":9,"product_id":"ETH-USD","sequence":1}',
        Heartbeat(9, product="ETH-USD"),
    ),
    (b'{"type":"heartbeat","product_id":"ETH-USD"}', Heartbeat(0, product="ETH-USD")),
    (
        b'{"type":"subscriptions","channels":[{"name":"matches","product_ids":["A-B"],"account_ids":null}]}',
        Subscriptions({"matches": frozenset({"A-B"})}),
    ),
    (
        b'{"type":"error","message":"Failed","reason":"A-B is not a product"}',
        Refusal("Failed: A-B is not a product"),
    ),
    (b'{"type":"error","message":"Failed"}', Refusal("Failed")),
    (b'{"type":"l2update","product_id":"A-B","changes":[["buy","1","2"]]}', Other(product="A-B")),
    (b'{"type":"something new"}', Other()),
]


@pytest.mark.parametrize(("raw", "message"), EXCHANGE_CASES)
def test_exchange_messages_are_understood(raw: bytes, message: FeedMessage) -> None:
    assert ExchangeDialect().read(raw) == message


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\x01",
        b"[]",
        b'"match"',
        b"{}",
        MATCH[:-1],
        MATCH.replace(b"7", b'"7"'),
        MATCH.replace(b"7", b"-7"),
        MATCH.replace(b"7", b"9" * 40),
        MATCH.replace(b'"trade_id":7,', b""),
        MATCH.replace(b"BTC", b"\xff\xfe"),
        b'{"type":"match","trade_id":7}',
        b'{"type":"subscriptions","channels":[1]}',
        b'{"x":' * 50_000,
    ],
)
def test_what_is_no_exchange_message_is_called_unreadable(raw: bytes) -> None:
    assert isinstance(ExchangeDialect().read(raw), Unreadable)


def _trades(*trades: tuple[str, str], sequence_num: int = 3) -> bytes:
    rows = [{"product_id": product, "trade_id": trade_id, "side": "BUY"} for product, trade_id in trades]
    envelope = {
        "channel": "market_trades",
        "sequence_num": sequence_num,
        "events": [{"type": "update", "trades": rows}],
    }
    return json.dumps(envelope).encode()


ADVANCED_CASES: list[tuple[bytes, FeedMessage]] = [
    (
        _trades(("A-B", "12"), ("A-B", "11")),
        TradesMessage((("A-B", 11), ("A-B", 12)), product="A-B", sequence_num=3),
    ),
    (_trades(("A-B", "12"), ("C-D", "5")), TradesMessage((("C-D", 5), ("A-B", 12)), sequence_num=3)),
    (_trades(), TradesMessage((), sequence_num=3)),
    (
        b'{"channel":"heartbeats","sequence_num":4,"events":[{"heartbeat_counter":"1"}]}',
        Heartbeat(sequence_num=4),
    ),
    (
        b'{"channel":"subscriptions","sequence_num":5,"events":[{"subscriptions":{"market_trades":["A-B"]}}]}',
        Subscriptions({"market_trades": frozenset({"A-B"})}, sequence_num=5),
    ),
    (b'{"type":"error","message":"no such channel"}', Refusal("no such channel")),
    (b'{"channel":"candles","sequence_num":6,"events":[{"candles":[]}]}', Other(sequence_num=6)),
]


@pytest.mark.parametrize(("raw", "message"), ADVANCED_CASES)
def test_advanced_messages_are_understood(raw: bytes, message: FeedMessage) -> None:
    assert AdvancedDialect().read(raw) == message


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"nonsense",
        b"{}",
        _trades(("A-B", "x")),
        _trades(("A-B", "9" * 19)),
        _trades(("A-B", "-1")),
        b"[" * 50_000,
    ],
)
def test_what_is_no_advanced_message_is_called_unreadable(raw: bytes) -> None:
    assert isinstance(AdvancedDialect().read(raw), Unreadable)


@given(st.binary() | st.text().map(str.encode), st.sampled_from([ExchangeDialect(), AdvancedDialect()]))
def test_no_bytes_make_a_dialect_raise(raw: bytes, dialect: Dialect) -> None:
    assert isinstance(dialect.read(raw), FeedMessage)


def test_the_exchange_feed_is_asked_for_both_channels_in_one_frame() -> None:
    (frame,) = ExchangeDialect().subscribe_frames(["BTC-USD", "ETH-USD"])
    assert json.loads(frame) == {
        "type": "subscribe",
        "product_ids": ["BTC-USD", "ETH-USD"],
        "channels": ["matches", "heartbeat"],
    }


def test_the_advanced_feed_is_asked_for_one_channel_in_each_frame() -> None:
    trades, heartbeats = map(json.loads, AdvancedDialect().subscribe_frames(["BTC-USD"]))
    assert trades == {"type": "subscribe", "channel": "market_trades", "product_ids": ["BTC-USD"]}
    assert heartbeats == {"type": "subscribe", "channel": "heartbeats"}


def test_usdc_products_are_refused_on_the_advanced_feed_with_the_name_to_use() -> None:
    with pytest.raises(ConfigurationError, match="Ask for BTC-USD,"):
        AdvancedDialect().check_products(["ETH-USD", "BTC-USDC"])
    ExchangeDialect().check_products(["BTC-USDC"])
