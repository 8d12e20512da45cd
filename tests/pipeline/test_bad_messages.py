"""Whatever arrives: trades go to silver, what is no trade goes to quarantine with a reason, and nothing raises."""

from __future__ import annotations

import json
from typing import Any

import pyarrow.compute as pc
import pytest
from deltalake import write_deltalake

from cryptopulse.lake.tables import ABSENT, BRONZE, QUARANTINE, SILVER
from support import Lake, Message, Trade, advanced, at, message, page

GOOD = Trade("BTC-USD", 7, at(1), "100.5", "0.25")


def _match(**changes: Any) -> Message:
    return GOOD.match(**changes)


def _events(value: Any) -> Message:
    return message(json.dumps({"channel": "market_trades", "events": value}).encode())


NOT_JSON = "not a JSON object with a type or a channel"
BAD = {
    "invalid JSON": (message(b'{"type":"match",'), NOT_JSON),
    "text": (message(b"hello"), NOT_JSON),
    "empty": (message(b""), NOT_JSON),
    "blank": (message(b"  \n"), NOT_JSON),
    "invalid UTF-8": (message(b'{"type":"match","product_id":"\xff\xfe"}'), NOT_JSON),
    "binary": (message(bytes(range(256))), NOT_JSON),
    "NUL bytes": (message(b"\0" * 64), NOT_JSON),
    "a NUL after an object": (message(b'{"type":"heartbeat"}\0'), NOT_JSON),
    "array": (message(b"[1,2]"), NOT_JSON),
    "number": (message(b"17"), NOT_JSON),
    "null": (message(b"null"), NOT_JSON),
    "true": (message(b"true"), NOT_JSON),
    "string": (message(b'"match"'), NOT_JSON),
    "invalid UTF-8 in a member that nobody reads": (
        message(b'{"type":"match","maker_order_id":"\xff",' + GOOD.match()["body"][17:]),
        NOT_JSON,
    ),
    "two trades in one message": (message(GOOD.match()["body"] * 2), NOT_JSON),
    "REST page with a second one": (message(page([GOOD])["body"] * 2, "rest", "BTC-USD"), "not a JSON array of trades"),
    "two objects": (message(b'{"type":"heartbeat"}{"type":"heartbeat"}'), NOT_JSON),
    "empty object": (message(b"{}"), NOT_JSON),
    "unknown type": (message(b'{"type":"surprise"}'), "unknown message type"),
    "unknown channel": (message(b'{"channel":"surprise"}'), "unknown channel"),
    "type null": (message(b'{"type":null}'), NOT_JSON),
    "type number": (message(b'{"type":5}'), "unknown message type"),
    "no product": (_match(product_id=None), "product_id"),
    "lower-case product": (_match(product_id="btc-usd"), "product_id"),
    "product of another shape": (_match(product_id="BTC/USD'; --"), "product_id"),
    "product number": (_match(product_id=5), "product_id"),
    "product with a line end": (_match(product_id="BTC-USD\n"), "product_id"),
    "no id": (_match(trade_id=None), "trade_id"),
    "id text": (_match(trade_id="seven"), "trade_id"),
    "id negative": (_match(trade_id=-7), "trade_id"),
    "id fraction": (_match(trade_id=7.5), "trade_id"),
    "id too large": (_match(trade_id=2**63), "trade_id"),
    "id of 30 digits": (_match(trade_id="1" * 30), "trade_id"),
    "id list": (_match(trade_id=[7]), "trade_id"),
    "id true": (_match(trade_id=True), "trade_id"),
    "id with spaces": (_match(trade_id=" 7 "), "trade_id"),
    "no price": (_match(price=None), "price"),
    "price empty": (_match(price=""), "price"),
    "price text": (_match(price="cheap"), "price"),
    "price negative": (_match(price="-1"), "price"),
    "price zero": (_match(price="0"), "price is not positive"),
    "price zero with decimals": (_match(price="0.000000000000"), "price is not positive"),
    "price NaN": (_match(price="NaN"), "price"),
    "price Infinity": (_match(price="Infinity"), "price"),
    "price exponent": (_match(price="1e5"), "price"),
    "price hexadecimal": (_match(price="0x10"), "price"),
    "price with a comma": (_match(price="1,000"), "price"),
    "price of 13 decimals": (_match(price="0.0000000000001"), "price"),
    "price of 13 digits": (_match(price="1000000000000"), "price"),
    "price of 400 digits": (_match(price="9" * 400), "price"),
    "price object": (_match(price={"amount": "1"}), "price"),
    "price with a point only": (_match(price="."), "price"),
    "no size": (_match(size=None), "size"),
    "size zero": (_match(size="0.0"), "size is not positive"),
    "size negative": (_match(size="-0.1"), "size"),
    "size of 13 decimals": (_match(size="1.1234567890123"), "size"),
    "size of 17 digits": (_match(size="12345678901234567"), "size"),
    "product of price and size": (_match(price="999999999999", size="9999999999999999"), "price times size"),
    "no side": (_match(side=None), "side"),
    "side hold": (_match(side="hold"), "side"),
    "no time": (_match(time=None), "time"),
    "time text": (_match(time="yesterday"), "time"),
    "time of month 13": (_match(time="2026-13-01T00:00:00Z"), "time"),
    "time of February 30": (_match(time="2026-02-30T00:00:00Z"), "time"),
    "time without zone": (_match(time="2026-07-07T12:00:01"), "time"),
    "time number": (_match(time=1783425601), "time"),
    "time of hour 24": (_match(time="2026-07-07T24:00:00Z"), "time"),
    "time of year 99999": (_match(time="99999-01-01T00:00:00Z"), "time"),
    "deeply nested": (message(b'{"type":' + b"[" * 5_000 + b"]" * 5_000 + b"}"), ""),
    "deeply nested array": (message(b"[" * 100_000), NOT_JSON),
    "5 MB of text": (message(b"x" * 5_000_000), NOT_JSON),
    "5 MB of JSON": (message(b'{"type":"' + b"x" * 5_000_000 + b'"}'), "unknown message type"),
    "Advanced without events": (message(b'{"channel":"market_trades"}'), "market_trades"),
    "Advanced with events null": (_events(None), "market_trades"),
    "Advanced with events of another type": (_events("many"), ""),
    "Advanced with one bad trade": (_events([{"trades": [{"trade_id": "1"}]}]), "product_id"),
    "Advanced with trades null": (_events([{"type": "update", "trades": None}]), "market_trades"),
    "Advanced with an event without trades": (_events([{"type": "update"}]), "market_trades"),
    "Advanced with a trade null": (_events([{"trades": [None]}]), "product_id"),
    "REST page of text": (message(b"Bad gateway", "rest", "BTC-USD"), "not a JSON array of trades"),
    "REST page that is an object": (message(b'{"message":"NotFound"}', "rest", "BTC-USD"), "not a JSON array"),
    "REST page of numbers": (message(b"[1,2]", "rest", "BTC-USD"), "not a JSON array of trades"),
    "REST page of nulls": (message(b"[null]", "rest", "BTC-USD"), "not a JSON array of trades"),
    "REST page without product": (message(page([GOOD])["body"], "rest", ""), "product_id"),
    "REST page cut short": (message(page([GOOD])["body"][:-5], "rest", "BTC-USD"), "not a JSON array"),
}
CONTROL = [
    b'{"type":"subscriptions","channels":[]}',
    b'{"type":"heartbeat","last_trade_id":7,"product_id":"BTC-USD"}',
    b'{"type":"error","message":"no","reason":"because"}',
    b'{"type":"ticker","price":"1"}',
    b'{"type":"l2update","changes":[["buy","1","2"]]}',
    b'{"channel":"heartbeats","events":[{"current_time":"now","heartbeat_counter":5}]}',
    b'{"channel":"subscriptions","events":[{"subscriptions":{"market_trades":["BTC-USD"]}}]}',
    b'{"channel":"market_trades","events":[]}',
    b'{"channel":"market_trades","events":[{"type":"snapshot","trades":[]}]}',
]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All bad messages in one batch, a good trade after each."""
    lake = Lake(tmp_path_factory.mktemp("bad") / "lake")
    stream: list[Message] = []
    for number, (bad, _) in enumerate(BAD.values()):
        stream += [bad, Trade("ETH-USD", number + 1, at(number)).match()]
    lake.take_in(stream)
    yield lake
    lake.close()


def test_every_good_trade_among_the_bad_messages_is_stored(judged: Lake) -> None:
    assert [row["trade_id"] for row in judged.rows(SILVER)] == list(range(1, len(BAD) + 1))
    assert judged.arrow(BRONZE).num_rows == 2 * len(BAD)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_message_is_kept_whole_with_its_reason(judged: Lake, kind: str) -> None:
    bad, reason = BAD[kind]
    first = judged.log.bounds(0)[0]
    place = first + 2 * list(BAD).index(kind)
    found = [row for row in _quarantined(judged) if row["offset"] == place]
    assert len(found) == 1, f"{kind}: {len(found)} rows in quarantine"
    assert found[0]["body"] == bad["body"]
    assert reason in found[0]["reason"]
    assert (found[0]["source"], found[0]["partition_key"]) == (bad["source"], bad["partition_key"])


_CACHE: dict[Any, list[dict[str, Any]]] = {}


def _quarantined(lake: Lake) -> list[dict[str, Any]]:
    return _CACHE.setdefault(lake.path, lake.rows(QUARANTINE))


def test_bad_messages_do_not_stop_a_lake_that_is_opened_again(judged: Lake) -> None:
    assert judged.drain()["messages"] == 0


def test_control_messages_are_neither_trades_nor_refused(lake: Lake) -> None:
    lake.take_in([*map(message, CONTROL), GOOD.match("last_match")])
    assert lake.rows(QUARANTINE) == []
    assert [row["trade_id"] for row in lake.rows(SILVER)] == [7]


def test_one_bad_trade_in_a_batch_does_not_cost_the_good_ones(lake: Lake) -> None:
    trades = [Trade("BTC-USD", one, at(one), price="-1" if one == 3 else "5") for one in range(1, 6)]
    wrong = [Trade("ETH-USD", one, at(one), size="0" if one == 9 else "5") for one in range(7, 11)]
    lake.take_in([advanced(trades), page(wrong)])
    assert [row["trade_id"] for row in lake.rows(SILVER)] == [1, 2, 4, 5, 7, 8, 10]
    assert [row["reason"].split()[0] for row in lake.rows(QUARANTINE)] == ["price", "size"]


def test_what_the_feeds_may_write_in_their_own_ways_is_accepted(lake: Lake) -> None:
    lake.take_in(
        [
            GOOD.match(trade_id="1", price=100.5, size="0.250000000000000"),
            GOOD.match(trade_id=2, time="2026-07-07T12:00:01Z"),
            GOOD.match(trade_id=3, time="2026-07-07T12:00:01.123456789Z", side="SELL"),
            GOOD.match(trade_id=4, time="2026-07-07T12:00:01.5Z", extra={"type": "deep"}),
            message(GOOD.match(trade_id=5)["body"].replace(b": ", b" :\t\r\n ")),
            message(GOOD.match(trade_id=6, maker_order_id="é\u2028\U0001f600")["body"]),
        ]
    )
    rows = lake.rows(SILVER)
    assert [row["trade_id"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert {(str(row["price"].normalize()), str(row["trade_size"].normalize())) for row in rows} == {("100.5", "0.25")}
    assert [row["event_time"].microsecond for row in rows] == [0, 0, 123456, 500000, 0, 0]
    assert [row["side"] for row in rows] == ["BUY", "BUY", "BUY", "BUY", "BUY", "BUY"]


def test_a_member_that_is_there_twice_gives_one_row_somewhere(lake: Lake) -> None:
    twice = GOOD.match()["body"].replace(b'"price": "100.5"', b'"price": "100.5", "price": "7"')
    lake.take_in([message(twice)])
    assert len(lake.rows(SILVER)) + len(lake.rows(QUARANTINE)) == 1


def test_what_another_engine_has_stored_of_bronze_is_not_stored_again(lake: Lake) -> None:
    """As after Spark: rows are there, but not under this engine's positions."""
    lake.take_in([GOOD.match()])
    there = Lake(lake.path.with_name("there"))
    there.take_in([GOOD.match(), message(b"{"), page_with_a_hole()])
    shift = lake.log.origin(0) - there.log.origin(0)
    for table in (BRONZE, QUARANTINE, ABSENT):
        rows = there.arrow(table)
        place = rows.column_names.index("offset")
        moved = rows.set_column(place, rows.schema.field("offset"), pc.add(rows["offset"], shift))
        write_deltalake(lake.delta(table), moved.filter(pc.greater(moved["offset"], lake.log.origin(0))), mode="append")
    lake.append([message(b"{"), page_with_a_hole()])
    lake.drain()
    found = [[row[name] for name in QUARANTINE.key] for row in lake.rows(QUARANTINE)]
    assert found == [[0, lake.log.origin(0) + 1]]
    assert lake.arrow(ABSENT).num_rows == 1
    assert lake.contents() == there.contents()
    there.close()


def page_with_a_hole() -> Message:
    return page([Trade("ETH-USD", number) for number in (1, 2, 4)])
