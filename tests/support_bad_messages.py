"""Messages that are no trades, with the reason that each is refused for."""

from __future__ import annotations

import json
import re
from typing import Any

from support import Message, Trade, advanced, at, message, page

GOOD = Trade("BTC-USD", 7, at(1), "100.5", "0.25")
"""What the messages say but for what is bad about them."""
OPEN = b'{"type":"match",'
MAKER = b'"maker_order_id":"6b380eba-fd1d-43a8-91a0-fdb06e6ce87f",'
FULL = (
    b'{"type":"match","trade_id":7,'
    + MAKER
    + b'"taker_order_id":"b3639a38-ae66-493c-96ba-d2319e503590","side":"sell","size":"0.25","price":"100.5",'
    b'"product_id":"BTC-USD","sequence":100329275918,"time":"2026-07-07T12:00:01.000000Z"}'
)
"""The same as GOOD.match, with all members and letter by letter as the feed writes it."""


def match_with(**changes: Any) -> Message:
    return GOOD.match(**changes)


def with_member(member: str) -> Message:
    """A match with one more member, written as it stands."""
    return message(GOOD.match()["body"].replace(b"{", b"{" + member.encode() + b", ", 1))


def with_number(name: str, literal: str, **changes: Any) -> Message:
    """A match with a JSON number, written as it stands."""
    return message(GOOD.match(**changes, **{name: "@"})["body"].replace(b'"@"', literal.encode()))


def full(*changes: tuple[bytes, bytes]) -> Message:
    """FULL with parts of its text replaced."""
    body = FULL
    for old, new in changes:
        assert old in body
        body = body.replace(old, new, 1)
    return message(body)


def batch_of(value: Any) -> Message:
    return message(json.dumps({"channel": "market_trades", "events": value}).encode())


def page_of(body: bytes) -> Message:
    return message(body, "rest", "BTC-USD")


NO_MESSAGE, NO_PAGE = "not a JSON object with a type or a channel", "not a JSON array of trades"
TWICE = "a member is there twice"
NO_PRODUCT, NO_ID = "product_id is missing or malformed", "trade_id is missing or not a whole number"
ID_RANGE, TIME_RANGE = "trade_id is out of range", "time is out of range"
NO_PRICE, NO_SIZE = "price is missing, malformed or out of range", "size is missing, malformed or out of range"
NO_SIDE, NO_TIME = "side is neither buy nor sell", "time is missing or malformed"
NO_TRADES = "market_trades without events or their trades"
BAD: dict[str, tuple[Message, str]] = {
    "invalid JSON": (message(OPEN), NO_MESSAGE),
    "text": (message(b"hello"), NO_MESSAGE),
    "empty": (message(b""), NO_MESSAGE),
    "blank": (message(b"  \n"), NO_MESSAGE),
    "invalid UTF-8": (message(b'{"type":"match","product_id":"\xff\xfe"}'), NO_MESSAGE),
    "invalid UTF-8 that nobody reads": (message(OPEN + b'"x":"\xff",' + GOOD.match()["body"][17:]), NO_MESSAGE),
    "invalid UTF-8 in a name": (message(OPEN + b'"\xff":1,' + GOOD.match()["body"][17:]), NO_MESSAGE),
    "invalid UTF-8 on a page": (page_of(b'[{"x":"\xff",' + page([GOOD])["body"][2:]), NO_PAGE),
    "a surrogate in UTF-8": (message(OPEN + b'"x":"\xed\xa0\x80",' + GOOD.match()["body"][17:]), NO_MESSAGE),
    "half a surrogate pair": (with_member(r'"x": "\ud800"'), NO_MESSAGE),
    "half a surrogate pair in a product": (message(OPEN + rb'"product_id":"\udc00"}'), NO_MESSAGE),
    "binary": (message(bytes(range(256))), NO_MESSAGE),
    "NUL bytes": (message(b"\0" * 64), NO_MESSAGE),
    "a NUL after an object": (message(b'{"type":"heartbeat"}\0'), NO_MESSAGE),
    "a NUL after a match": (message(GOOD.match()["body"] + b"\0"), NO_MESSAGE),
    "a NUL in a product": (match_with(product_id="BTC-USD\0"), NO_PRODUCT),
    "a byte order mark": (message(b"\xef\xbb\xbf" + GOOD.match()["body"]), NO_MESSAGE),
    "UTF-16": (message(GOOD.match()["body"].decode().encode("utf-16")), NO_MESSAGE),
    "array": (message(b"[1,2]"), NO_MESSAGE),
    "a page on the WebSocket": (message(page([GOOD])["body"]), NO_MESSAGE),
    "number": (message(b"17"), NO_MESSAGE),
    "null": (message(b"null"), NO_MESSAGE),
    "true": (message(b"true"), NO_MESSAGE),
    "string": (message(b'"match"'), NO_MESSAGE),
    "NaN in a member that nobody reads": (with_member('"x": NaN'), NO_MESSAGE),
    "a line end in a text": (with_member('"x": "a\nb"'), NO_MESSAGE),
    "a comma too many": (message(GOOD.match()["body"][:-1] + b",}"), NO_MESSAGE),
    "single quotes": (message(GOOD.match()["body"].replace(b'"', b"'")), NO_MESSAGE),
    "two trades in one message": (message(GOOD.match()["body"] * 2), NO_MESSAGE),
    "two trades on two lines": (message(GOOD.match()["body"] + b"\n" + GOOD.match()["body"]), NO_MESSAGE),
    "two objects": (message(b'{"type":"heartbeat"}{"type":"heartbeat"}'), NO_MESSAGE),
    "text after a value": (message(GOOD.match()["body"] + b" and more"), NO_MESSAGE),
    "a vertical tab after a value": (message(GOOD.match()["body"] + b"\v"), NO_MESSAGE),
    "a trade in an array": (message(b"[" + GOOD.match()["body"] + b"]"), NO_MESSAGE),
    "empty object": (message(b"{}"), NO_MESSAGE),
    "unknown type": (message(b'{"type":"surprise"}'), "unknown message type"),
    "type with a line end": (message(b'{"type":"heartbeat\\n"}'), "unknown message type"),
    "type empty": (message(b'{"type":""}'), "unknown message type"),
    "type number": (message(b'{"type":5}'), "unknown message type"),
    "type list": (message(b'{"type":["match"]}'), "unknown message type"),
    "type null": (message(b'{"type":null}'), NO_MESSAGE),
    "unknown channel": (message(b'{"channel":"surprise"}'), "unknown channel"),
    "channel number": (message(b'{"channel":1e5}'), "unknown channel"),
    "two types": (with_member('"type": "heartbeat"'), TWICE),
    "two types, one with an escape": (with_member(r'"typ\u0065": "heartbeat"'), TWICE),
    "two channels": (message(b'{"channel":"market_trades","channel":"heartbeats"}'), TWICE),
    "two lists of events": (message(b'{"channel":"market_trades","events":[],"events":[]}'), TWICE),
    "two lists of trades": (message(b'{"channel":"market_trades","events":[{"trades":[],"trades":[]}]}'), TWICE),
    "two prices": (with_member('"price": "7"'), TWICE),
    "two prices that are the same": (with_member('"price": "100.5"'), TWICE),
    "two prices, one with an escape": (with_member(r'"\u0070rice": "7"'), TWICE),
    "two products": (with_member('"product_id": "ETH-USD"'), TWICE),
    "two prices in a batch": (message(advanced([GOOD])["body"].replace(b'"side"', b'"price": "7", "side"')), TWICE),
    "two prices on a page": (page_of(page([GOOD])["body"].replace(b'"side"', b'"price": "7", "side"')), TWICE),
    "full, two prices": (full((b"{", b'{"price":"100.5",')), TWICE),
    "full, two prices and no sequence": (full((b"{", b'{"price":"7",'), (b'"sequence":100329275918,', b"")), TWICE),
    "full, two prices and no maker": (full((b"{", b'{"price":"7",'), (MAKER, b"")), TWICE),
    "full, two prices and an escaped colon": (full((b"{", b'{"price":"7",'), (b"12:00:01", b"12\\u003a00:01")), TWICE),
    "full, invalid UTF-8 in an id that nobody reads": (full((b"6b380eba", b"6b380eb\xff")), NO_MESSAGE),
    "full, nested deeply where nobody reads": (full((b"100329275918", b"[" * 65 + b"]" * 65)), NO_MESSAGE),
    "full, without its end": (full((b"}", b"")), NO_MESSAGE),
    "no product": (match_with(product_id=None), NO_PRODUCT),
    "product null": (with_number("product_id", "null"), NO_PRODUCT),
    "product empty": (match_with(product_id=""), NO_PRODUCT),
    "product of one part": (match_with(product_id="BTCUSD"), NO_PRODUCT),
    "product of four parts": (match_with(product_id="A-B-C-D"), NO_PRODUCT),
    "product with an empty part": (match_with(product_id="BTC-"), NO_PRODUCT),
    "product of 65 letters": (match_with(product_id="A" * 61 + "-USD"), NO_PRODUCT),
    "lower-case product": (match_with(product_id="btc-usd"), NO_PRODUCT),
    "product of another alphabet": (match_with(product_id="ВТС-USD"), NO_PRODUCT),
    "product of other digits": (match_with(product_id="BTC-١"), NO_PRODUCT),
    "product of another shape": (match_with(product_id="BTC/USD'; --"), NO_PRODUCT),
    "product number": (match_with(product_id=5), NO_PRODUCT),
    "product with a line end": (match_with(product_id="BTC-USD\n"), NO_PRODUCT),
    "no id": (match_with(trade_id=None), NO_ID),
    "id null": (with_number("trade_id", "null"), NO_ID),
    "id text": (match_with(trade_id="seven"), NO_ID),
    "id empty": (match_with(trade_id=""), NO_ID),
    "id negative": (match_with(trade_id=-7), NO_ID),
    "id minus zero": (with_number("trade_id", "-0"), NO_ID),
    "id fraction": (match_with(trade_id=7.5), NO_ID),
    "id with a point": (with_number("trade_id", "7.0"), NO_ID),
    "id with an exponent": (with_number("trade_id", "7e0"), NO_ID),
    "id of other digits": (match_with(trade_id="٧"), NO_ID),
    "id list": (match_with(trade_id=[7]), NO_ID),
    "id true": (match_with(trade_id=True), NO_ID),
    "id with spaces": (match_with(trade_id=" 7 "), NO_ID),
    "id hexadecimal": (match_with(trade_id="0x7"), NO_ID),
    "id zero": (match_with(trade_id=0), ID_RANGE),
    "id above the highest": (match_with(trade_id=2**62 + 1), ID_RANGE),
    "id of 64 bits": (match_with(trade_id=2**63 - 1), ID_RANGE),
    "id of more bits": (match_with(trade_id=2**63), ID_RANGE),
    "id text of more bits": (match_with(trade_id=str(2**64 + 7)), ID_RANGE),
    "id of 30 digits": (match_with(trade_id="1" * 30), ID_RANGE),
    "id of 1,000 digits": (with_number("trade_id", "1" * 1000), ID_RANGE),
    "id of 10,000 digits": (with_number("trade_id", "1" * 10_000), ID_RANGE),
    "no price": (match_with(price=None), NO_PRICE),
    "price null": (with_number("price", "null"), NO_PRICE),
    "price empty": (match_with(price=""), NO_PRICE),
    "price text": (match_with(price="cheap"), NO_PRICE),
    "price NaN": (match_with(price="NaN"), NO_PRICE),
    "price Infinity": (match_with(price="Infinity"), NO_PRICE),
    "price hexadecimal": (match_with(price="0x10"), NO_PRICE),
    "price with a comma": (match_with(price="1,000"), NO_PRICE),
    "price with an underscore": (match_with(price="1_000"), NO_PRICE),
    "price with spaces": (match_with(price=" 1"), NO_PRICE),
    "price with a line end": (match_with(price="1\n"), NO_PRICE),
    "price with a plus": (match_with(price="+1"), NO_PRICE),
    "price with a point only": (match_with(price="."), NO_PRICE),
    "price with a point at its end": (match_with(price="5."), NO_PRICE),
    "price with a point at its start": (match_with(price=".5"), NO_PRICE),
    "price with two points": (match_with(price="1.2.3"), NO_PRICE),
    "price of other digits": (match_with(price="１"), NO_PRICE),
    "price object": (match_with(price={"amount": "1"}), NO_PRICE),
    "price true": (match_with(price=True), NO_PRICE),
    "price of 13 digits": (match_with(price="1000000000000"), NO_PRICE),
    "price of 40 digits": (match_with(price="9" * 40), NO_PRICE),
    "price of 400 digits": (match_with(price="9" * 400), NO_PRICE),
    "price of 129 bits": (match_with(price=str(2**128 + 7)), NO_PRICE),
    "price of 129 bits with decimals": (match_with(price=f"{2**128 // 10**12 + 7}.{2**128 % 10**12:012d}"), NO_PRICE),
    "price number of 400 digits": (with_number("price", "9" * 400), NO_PRICE),
    "price with too large an exponent": (match_with(price="1e12"), NO_PRICE),
    "price with an endless exponent": (match_with(price="1e" + "9" * 5000), NO_PRICE),
    "price with an exponent only": (match_with(price="e5"), NO_PRICE),
    "price with an empty exponent": (match_with(price="1e"), NO_PRICE),
    "price negative": (match_with(price="-1"), "price is not positive"),
    "price zero": (match_with(price="0"), "price is not positive"),
    "price zero with decimals": (match_with(price="0.000000000000"), "price is not positive"),
    "price zero with an exponent": (match_with(price="0e999999999"), "price is not positive"),
    "price minus zero": (with_number("price", "-0.0"), "price is not positive"),
    "price of 13 decimals": (match_with(price="0.0000000000001"), "price has more than 12 decimals"),
    "price of 400 decimals": (match_with(price="1." + "0" * 399 + "1"), "price has more than 12 decimals"),
    "price of 13 decimals by exponent": (match_with(price="1e-13"), "price has more than 12 decimals"),
    "price with an endless minus": (match_with(price="1e-" + "9" * 5000), "price has more than 12 decimals"),
    "no size": (match_with(size=None), NO_SIZE),
    "size zero": (match_with(size="0.0"), "size is not positive"),
    "size negative": (match_with(size="-0.1"), "size is not positive"),
    "size of 13 decimals": (match_with(size="1.1234567890123"), "size has more than 12 decimals"),
    "size of 17 digits": (match_with(size="12345678901234567"), NO_SIZE),
    "price times size": (match_with(price="999999999999", size="9999999999999999"), "price times size is out of range"),
    "price times size, the first too large": (match_with(price="1", size="1e13"), "price times size is out of range"),
    "no side": (match_with(side=None), NO_SIDE),
    "side hold": (match_with(side="hold"), NO_SIDE),
    "side of mixed case": (match_with(side="Buy"), NO_SIDE),
    "side list": (match_with(side=["buy"]), NO_SIDE),
    "no time": (match_with(time=None), NO_TIME),
    "time null": (with_number("time", "null"), NO_TIME),
    "time text": (match_with(time="yesterday"), NO_TIME),
    "time number": (match_with(time=1783425601), NO_TIME),
    "time of month 13": (match_with(time="2026-13-01T00:00:00Z"), NO_TIME),
    "time of February 30": (match_with(time="2026-02-30T00:00:00Z"), NO_TIME),
    "time of February 29 in another year": (match_with(time="2026-02-29T00:00:00Z"), NO_TIME),
    "time of minute 60": (match_with(time="2026-07-07T12:60:00Z"), NO_TIME),
    "time of a leap second": (match_with(time="2016-12-31T23:59:60Z"), NO_TIME),
    "time of hour 24": (match_with(time="2026-07-07T24:00:00Z"), NO_TIME),
    "time without zone": (match_with(time="2026-07-07T12:00:01"), NO_TIME),
    "time of another zone": (match_with(time="2026-07-07T12:00:01+00:00"), NO_TIME),
    "time without seconds": (match_with(time="2026-07-07T12:00Z"), NO_TIME),
    "time without T": (match_with(time="2026-07-07 12:00:01Z"), NO_TIME),
    "time with a point only": (match_with(time="2026-07-07T12:00:01.Z"), NO_TIME),
    "time with a comma": (match_with(time="2026-07-07T12:00:01,5Z"), NO_TIME),
    "time with other digits": (match_with(time="２０26-07-07T12:00:01Z"), NO_TIME),
    "time with text after its decimals": (match_with(time="2026-07-07T12:00:01.123456garbageZ"), NO_TIME),
    "time with text after its Z": (match_with(time="2026-07-07T12:00:01.123456Z and more"), NO_TIME),
    "time of ten decimals": (match_with(time="2026-07-07T12:00:01.1234567890Z"), "time has more than 9 decimals"),
    "time of the year 0": (match_with(time="0000-01-01T00:00:00Z"), NO_TIME),
    "time of a year before": (match_with(time="-001-01-01T00:00:00Z"), NO_TIME),
    "time of the year 1": (match_with(time="0001-01-01T00:00:00Z"), TIME_RANGE),
    "time of year 99999": (match_with(time="99999-01-01T00:00:00Z"), NO_TIME),
    "time before 1970": (match_with(time="1969-12-31T23:59:59.999999999Z"), TIME_RANGE),
    "time of 2200": (match_with(time="2200-01-01T00:00:00Z"), TIME_RANGE),
    "time of 2300": (match_with(time="2300-01-01T00:00:00Z"), TIME_RANGE),
    "time of the year 9999": (match_with(time="9999-12-31T23:59:59.999999Z"), TIME_RANGE),
    "deeply nested": (message(b'{"type":' + b"[" * 5_000 + b"]" * 5_000 + b"}"), NO_MESSAGE),
    "deeply nested array": (message(b"[" * 100_000), NO_MESSAGE),
    "deeply nested objects": (message(b'{"a":' * 100_000), NO_MESSAGE),
    "deeply nested in a member that nobody reads": (with_member('"x": ' + "[" * 65 + "]" * 65), NO_MESSAGE),
    "deeply nested page": (page_of(b"[" * 100_000 + b"]" * 100_000), NO_PAGE),
    "5 MB of text": (message(b"x" * 5_000_000), NO_MESSAGE),
    "5 MB of JSON": (message(b'{"type":"' + b"x" * 5_000_000 + b'"}'), "unknown message type"),
    "10 MB of digits": (with_number("price", "1." + "1" * 10_000_000), "price has more than 12 decimals"),
    "1 MB of names": (message(b'{"type":1' + b',"type":1' * 100_000 + b"}"), TWICE),
    "Advanced without events": (message(b'{"channel":"market_trades"}'), NO_TRADES),
    "Advanced with events null": (batch_of(None), NO_TRADES),
    "Advanced with events of another type": (batch_of("many"), NO_TRADES),
    "Advanced with an event of another type": (batch_of([5]), NO_TRADES),
    "Advanced with one bad trade": (batch_of([{"trades": [{"trade_id": "1"}]}]), NO_PRODUCT),
    "Advanced with trades null": (batch_of([{"type": "update", "trades": None}]), NO_TRADES),
    "Advanced with trades of another type": (batch_of([{"type": "update", "trades": {}}]), NO_TRADES),
    "Advanced with an event without trades": (batch_of([{"type": "update"}]), NO_TRADES),
    "Advanced with a trade null": (batch_of([{"trades": [None]}]), NO_PRODUCT),
    "Advanced with an id too large": (advanced([Trade("BTC-USD", 2**62 + 1)]), ID_RANGE),
    "REST page of text": (page_of(b"Bad gateway"), NO_PAGE),
    "REST page that is empty": (page_of(b""), NO_PAGE),
    "REST page that is an object": (page_of(b'{"message":"NotFound"}'), NO_PAGE),
    "REST page of numbers": (page_of(b"[1,2]"), NO_PAGE),
    "REST page of nulls": (page_of(b"[null]"), NO_PAGE),
    "REST page of objects of another kind": (page_of(b'[{"id":1}]'), NO_PAGE),
    "REST page without product": (message(page([GOOD])["body"], "rest", ""), NO_PRODUCT),
    "REST page cut short": (page_of(page([GOOD])["body"][:-5]), NO_PAGE),
    "REST page with a second one": (page_of(page([GOOD])["body"] * 2), NO_PAGE),
    "REST page with a time null": (page_of(re.sub(rb'"2026.*Z"', b"null", page([GOOD])["body"])), NO_TIME),
}  # fmt: skip
CONTROL = [
    b'{"type":"subscriptions","channels":[]}',
    b'{"type":"heartbeat","last_trade_id":7,"product_id":"BTC-USD"}',
    b'{"type":"heartbeat","product_id":5,"time":null}',
    b'{"type":"error","message":"no","reason":"because"}',
    b'{"type":"ticker","price":"1"}',
    b'{"type":"status","products":[{"type":"spot"}]}',
    b'{"type":"l2update","changes":[["buy","1","2"]]}',
    b'{"channel":"heartbeats","events":[{"current_time":"now","heartbeat_counter":5}]}',
    b'{"channel":"subscriptions","events":[{"subscriptions":{"market_trades":["BTC-USD"]}}]}',
    b'{"channel":"l2_data","events":"anything"}',
    b'{"channel":"market_trades","events":[]}',
    b'{"channel":"market_trades","events":[{"type":"snapshot","trades":[]}]}',
    b'{"type":null,"channel":"heartbeats"}',
    b'{"type":"heartbeat","channel":"surprise","channel":"surprise"}',
    b' {"type":"heartbeat"}\r\n',
]
