"""What the parser makes of messages: trades, refusals with a reason, and never an exception."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from cryptopulse.engine.parse import (
    PARSED_SCHEMA,
    absent_ids,
    parse,
    parse_batches,
    refused_messages,
    with_other_content,
)
from cryptopulse.lake.tables import ABSENT, QUARANTINE, SILVER
from support import EPOCH, Message, Trade, advanced, at, bronze, message, page
from support_bad_messages import (
    BAD,
    CONTROL,
    FULL,
    GOOD,
    NO_MESSAGE,
    NO_TRADES,
    batch_of,
    match_with,
    page_of,
    with_member,
    with_number,
)


def parsed(*messages: Message) -> list[dict[str, Any]]:
    return parse(bronze(messages)).to_pylist()


@pytest.fixture(scope="module")
def judged() -> dict[int, list[dict[str, Any]]]:
    """The rows of all bad messages in one batch, a good trade after each, by the place of the message."""
    stream = [one for bad, _ in BAD.values() for one in (bad, GOOD.match())]
    rows: dict[int, list[dict[str, Any]]] = {}
    for row in parse(bronze(stream)).to_pylist():
        rows.setdefault(row["offset"], []).append(row)
    return rows


def test_every_bad_message_has_its_reason_and_gives_nothing_to_compute_with(judged: dict[int, list[Any]]) -> None:
    found = {name: judged[2 * n] for n, name in enumerate(BAD)}
    assert {name: [row["reason"] for row in rows][:1] for name, rows in found.items()} == {
        name: [reason] for name, (_, reason) in BAD.items()
    }
    values = {row[name] for rows in found.values() for row in rows for name in PARSED_SCHEMA.names[7:]}
    assert values == {None}


def test_every_good_trade_among_bad_messages_is_read(judged: dict[int, list[Any]]) -> None:
    (right,) = parsed(GOOD.match())
    assert all(judged[2 * n + 1] == [right | {"offset": 2 * n + 1}] for n in range(len(BAD)))


def test_a_bad_message_alone_is_refused_as_it_is_among_others(judged: dict[int, list[Any]]) -> None:
    for n, (name, (bad, _)) in enumerate(BAD.items()):
        alone = parse(bronze([bad], first=2 * n)).to_pylist()
        assert alone == judged[2 * n], name


def test_refused_messages_are_kept_whole_one_row_each() -> None:
    wrong = page([Trade("ETH-USD", n, price="-1" if n % 2 else "1", size="0") for n in range(1, 5)])
    messages = bronze([GOOD.match(), message(b"{"), wrong, *map(message, CONTROL)], partition=3, first=40)
    found = refused_messages(parse(messages), messages)
    assert found.schema.names == [name for name in QUARANTINE.arrow_schema.names if name != "load_timestamp"]
    rows = found.select(["partition", "offset", "reason", "body", "source", "partition_key"]).to_pylist()
    assert [[*row.values()] for row in rows] == [
        [3, 41, NO_MESSAGE, b"{", "websocket", ""],
        [3, 42, "size is not positive", wrong["body"], "rest", "ETH-USD"],
    ]
    assert refused_messages(parse(messages.slice(0, 1)), messages).num_rows == 0


def test_control_messages_give_no_rows() -> None:
    assert parsed(*map(message, CONTROL)) == []


def test_a_last_match_is_a_trade_and_the_side_is_the_takers() -> None:
    rows = parsed(GOOD.match("last_match"), match_with(side="buy"), match_with(side="SELL"), match_with(side="BUY"))
    assert [(row["trade_id"], row["side"], row["reason"]) for row in rows] == [
        (7, side, None) for side in ("BUY", "SELL", "BUY", "SELL")
    ]


def test_a_match_is_read_alike_with_and_without_the_members_that_nobody_reads() -> None:
    rows = parsed(message(FULL, key="BTC-USD", received=at(1)), GOOD.match())
    assert rows[0] == rows[1] | {"offset": 0}


def test_a_batch_and_a_page_give_their_trades_in_the_order_written_around_refused_ones() -> None:
    trades = [Trade("BTC-USD", n, at(n), price="-1" if n == 3 else "5") for n in range(1, 6)]
    rows = parsed(advanced(trades), page(trades), GOOD.match())
    assert [(row["offset"], row["trade_id"], row["reason"] is None) for row in rows] == [
        *((place, n, n != 3) for place in (0, 1) for n in range(5, 0, -1)),
        (2, 7, True),
    ]
    assert {row["symbol"] for row in rows} == {"BTC-USD"}


def test_an_event_without_trades_costs_no_trade_of_the_other_events() -> None:
    fields = GOOD.fields() | {"product_id": "BTC-USD", "trade_id": "7"}
    rows = parsed(batch_of([{"type": "update"}, {"trades": [fields]}]))
    assert [(row["reason"], row["trade_id"]) for row in rows] == [(NO_TRADES, None), (None, 7)]


def test_a_refused_trade_keeps_its_product_and_id() -> None:
    found = [
        (row["symbol"], row["trade_id"])
        for row in parsed(match_with(price="-1"), match_with(trade_id=0), match_with(product_id="?"))
    ]
    assert found == [("BTC-USD", 7), ("BTC-USD", None), (None, 7)]


WHITE = ["\n", "\r\n", "\t", " ", "\n\n\t \r"]


@pytest.mark.parametrize("white", WHITE, ids=repr)
def test_white_space_around_a_value_is_passed_over(white: str) -> None:
    around = [
        message(white.encode() + one["body"] + white.encode(), one["source"], one["partition_key"])
        for one in (GOOD.match(), advanced([GOOD]), page([GOOD]))
    ]
    inside = message(GOOD.match()["body"].replace(b": ", b" :" + white.encode()))
    assert [(row["trade_id"], row["reason"]) for row in parsed(*around, inside)] == [(7, None)] * 4


def test_what_the_feeds_may_write_in_their_own_ways_is_accepted() -> None:
    rows = parsed(
        match_with(trade_id="7", extra={"type": "deep", "price": "5"}),
        message(GOOD.match(maker_order_id="é\u2028\U0001f600\\")["body"]),
        message(json.dumps({**json.loads(GOOD.match()["body"]), "x": "é\u2028"}, ensure_ascii=False).encode()),
        message(GOOD.match()["body"].replace(b"price", b"pr\\u0069ce").replace(b"-USD", b"\\u002dUSD")),
        with_member('"sequence": 5, "sequence": 6, "x": ' + "[" * 60 + "]" * 60),
        with_member('"x": "' + "[" * 100 + '"'),
        message(json.dumps([GOOD.fields() | {"product_id": 5}]).encode(), "rest", "BTC-USD"),
    )
    (right,) = parsed(GOOD.match())
    assert [row | {"offset": 0, "source": "websocket", "received_time": at(1)} for row in rows] == [right] * len(rows)


@pytest.mark.parametrize("product", ["BTC-USD", "BIP-20DEC30-CDE", "00-USD", "1INCH-USDC", "A" * 60 + "-USD"])
def test_product_ids_of_two_and_three_parts_are_read(product: str) -> None:
    assert [row["symbol"] for row in parsed(match_with(product_id=product))] == [product]


NUMBERS = [
    "1", "100.5", "100.50000000", "007.50", "0.000000000001", "0.250000000000000", "999999999999.999999999999",
    "99999999999.123456789012", "123456.789012345678", "1.000000000001", "1e-8", "1E-12", "1e+3", "1E3", "1.5e-3",
    "12300e-2", "0.0001E4", "1000000000000e-12", "1e0", "1e-0", "1e00000000000000000003", "5" + "0" * 20 + "e-20",
    "1." + "0" * 400, "0" * 400 + "1",
]  # fmt: skip


def test_numbers_are_exact_however_they_are_written() -> None:
    prices = parsed(*(match_with(price=text, size="1e-12") for text in NUMBERS))
    sizes = parsed(*(match_with(size=text, price="1e-12") for text in NUMBERS))
    assert [(row["reason"], row["price"]) for row in prices] == [(None, Decimal(text)) for text in NUMBERS]
    assert [(row["reason"], row["trade_size"]) for row in sizes] == [(None, Decimal(text)) for text in NUMBERS]


def test_numbers_where_coinbase_writes_texts_are_exact_too() -> None:
    literals = [text for text in NUMBERS if not re.match("0[0-9]", text)]
    rows = parsed(*(with_number("price", text, size="1e-12") for text in literals))
    assert [(row["reason"], row["price"]) for row in rows] == [(None, Decimal(text)) for text in literals]


@pytest.mark.parametrize(
    ("text", "after"),
    {
        "1970-01-01T00:00:00Z": 0,
        "1970-01-01T00:00:00.0Z": 0,
        "1970-01-01T00:00:00.000001Z": 1,
        "1970-01-01T00:00:00.000000999Z": 0,
        "1970-01-01T00:00:01.5Z": 1_500_000,
        "1970-01-01T00:00:01.1234Z": 1_123_400,
        "1970-01-01T00:00:01.1234567Z": 1_123_456,
        "1970-01-01T00:00:01.123456789Z": 1_123_456,
        "1972-02-29T23:59:59.999999999Z": 68_255_999_999_999,
        "2199-12-31T23:59:59.999999999Z": 7_258_118_399_999_999,
    }.items(),
)
def test_times_keep_their_microseconds(text: str, after: int) -> None:
    assert [row["event_time"] for row in parsed(match_with(time=text))] == [EPOCH + timedelta(microseconds=after)]


def test_the_parser_takes_what_the_contract_says_and_no_more() -> None:
    for name, member in {"trade_id": "trade_id", "event_time": "time"}.items():
        domain = SILVER.domain(name)
        step = timedelta(microseconds=1) if name == "event_time" else 1
        ends = [domain.lowest - step, domain.lowest, domain.highest, domain.highest + step]
        texts = [f"{end:%Y-%m-%dT%H:%M:%S.%fZ}" if isinstance(end, datetime) else end for end in ends]
        reasons = [row["reason"] for row in parsed(*(match_with(**{member: text}) for text in texts))]
        assert [reason is None for reason in reasons] == [False, True, True, False], name
    for name, member in {"price": "price", "trade_size": "size"}.items():
        domain = SILVER.domain(name)
        texts = [f"{domain.lowest / 10:f}", f"{domain.lowest:f}", f"{domain.highest:f}", f"{domain.highest + 1:f}"]
        other = {"price": {"size": "1e-12"}, "trade_size": {"price": "1e-12"}}[name]
        reasons = [row["reason"] for row in parsed(*(match_with(**{member: text, **other}) for text in texts))]
        assert [reason is None for reason in reasons] == [False, True, True, False], name


def test_the_value_of_a_trade_is_judged_exactly() -> None:
    rows = parsed(
        match_with(price="9999999.999999999999", size="1000000"),
        match_with(price="10000000", size="1000000"),
        match_with(price="0.0009", size="9999999999999999.999999999999"),
    )
    assert [row["reason"] for row in rows] == [None, "price times size is out of range", None]


def test_spark_gets_the_same_rows_batch_by_batch() -> None:
    messages = bronze([GOOD.match(), message(b"{"), page([GOOD]), *map(message, CONTROL), advanced([GOOD])])
    batches = list(parse_batches(iter(messages.to_batches(max_chunksize=2))))
    assert pa.Table.from_batches(batches).equals(parse(messages))
    assert parse(messages).schema.equals(PARSED_SCHEMA)
    assert parse(messages.slice(0, 0)).equals(PARSED_SCHEMA.empty_table())


def test_a_page_proves_which_ids_between_its_own_the_exchange_does_not_have() -> None:
    pages = [
        page([Trade("ETH-USD", n, price="-1" if n == 4 else "1") for n in ids]) for ids in ((1, 2, 4, 9), (3,), (5, 7))
    ]
    found = absent_ids(parse(bronze([GOOD.match(), *pages, match_with(trade_id=900)], partition=2, first=10)))
    assert found.schema.names == [name for name in ABSENT.arrow_schema.names if name != "load_timestamp"]
    rows = found.select(
        ["symbol", "first_trade_id", "last_trade_id", "partition", "offset", "received_date"]
    ).to_pylist()
    assert [[*row.values()] for row in rows] == [
        ["ETH-USD", 3, 3, 2, 11, at(0).date()],
        ["ETH-USD", 5, 8, 2, 11, at(0).date()],
        ["ETH-USD", 6, 6, 2, 13, at(0).date()],
    ]


@pytest.mark.parametrize("row", [GOOD.fields() | {"trade_id": "x"}, GOOD.fields() | {"trade_id": 2**63}, 5, {}])
def test_a_page_with_a_row_that_cannot_be_read_proves_nothing(row: Any) -> None:
    body = json.dumps([*(GOOD.fields() | {"trade_id": n} for n in (1, 9)), row]).encode()
    assert absent_ids(parse(bronze([page_of(body)]))).num_rows == 0
    assert absent_ids(parse(bronze([message(body, "rest", "no product")]))).num_rows == 0


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({}, False),
        ({"price": "100.50000000"}, False),
        ({"time": "2026-07-07T12:00:01Z"}, False),
        ({"price": "100.500000000001"}, True),
        ({"size": "0.26"}, True),
        ({"side": "buy"}, True),
        ({"time": "2026-07-07T12:00:01.000001Z"}, True),
        ({"product_id": "ETH-USD", "price": "5"}, False),
        ({"trade_id": 8, "price": "5"}, False),
    ],
)
def test_a_trade_with_the_same_id_and_other_content_is_told_from_a_repeated_one(change: Any, differs: bool) -> None:
    held = parse(bronze([GOOD.match(), Trade("ETH-USD", 8).match()]))
    repeated = parse(bronze([Trade("ETH-USD", 8).match(), match_with(**change)], first=5))
    assert with_other_content(repeated, held)["offset"].to_pylist() == [6] * differs
    assert with_other_content(repeated.slice(0, 0), held).equals(repeated.slice(0, 0))


def test_many_steps_give_what_one_message_at_a_time_gives() -> None:
    stream = [Trade(f"P{n % 7}-USD", n + 1, at(n / 100), f"{n}.5", f"0.{n + 1}").match() for n in range(9_000)]
    stream[4_500] = message(b"{")
    stream[8_000] = page([Trade("ETH-USD", n) for n in range(1, 1_001)])
    messages = bronze(stream)
    assert parse(messages)["trade_id"].to_pylist() == [
        *range(1, 4_501), None, *range(4_502, 8_001), *range(1_000, 0, -1), *range(8_002, 9_001)
    ]  # fmt: skip
