"""The parser's way for many messages equals its way by the letter, whatever the messages hold."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Context, Decimal
from itertools import chain
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryptopulse.engine import parse as parser
from cryptopulse.engine.exact import Row, line_rows, message_rows, page_rows, venue_rows
from cryptopulse.engine.parse import PARSED_SCHEMA, parse

PRODUCT = "BTC-USD"
TIME = "2026-07-07T12:00:01.123456Z"
_RECEIVED = datetime(2026, 7, 7, tzinfo=UTC)
_EXACT = Context(prec=40)

Member = tuple[str, str]  # of a JSON object: both as they are written


def by_the_letter(bodies: list[tuple[bytes, str]], venue: str = "") -> list[Any]:
    """What `exact` makes of bodies and their sources, as rows of PARSED_SCHEMA. `venue`: as in a key, "@kraken"."""
    rows = []
    for place, (body, source) in enumerate(bodies):
        if source == "import":
            found = line_rows(body, PRODUCT + venue)
        elif venue:
            found = venue_rows(body, PRODUCT + venue, is_page=source == "rest")
        else:
            found = page_rows(body, PRODUCT) if source == "rest" else message_rows(body)
        rows += [(0, place, _RECEIVED, source, *_values(row)) for row in found]
    return [dict(zip(PARSED_SCHEMA.names, row, strict=True)) for row in rows]


def _values(row: Row) -> tuple[Any, ...]:
    numbers = [None if n is None else Decimal(n).scaleb(-12, _EXACT) for n in (row.price, row.size)]
    time = None if row.time_us is None else pa.scalar(row.time_us, pa.timestamp("us", "UTC")).as_py()
    return (*row[:3], *numbers, row.side, time)


def as_table(bodies: list[tuple[bytes, str]], venue: str) -> pa.Table:
    n = len(bodies)
    columns = {
        "body": pa.array([body for body, _ in bodies], pa.binary()),
        "partition": pa.array([0] * n, pa.int32()),
        "offset": pa.array(range(n), pa.int64()),
        "partition_key": pa.array([PRODUCT + venue] * n, pa.string()),
        "received_time": pa.array([_RECEIVED] * n, pa.timestamp("us", "UTC")),
        "source": pa.array([source for _, source in bodies], pa.string()),
    }
    return pa.table(columns)


def quoted(texts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return texts.map('"{}"'.format)


def times(first: str, last: str) -> st.SearchStrategy[datetime]:
    return st.datetimes(datetime.fromisoformat(first), datetime.fromisoformat(last))


DIGITS = st.text("0123456789", min_size=1, max_size=30)
NUMBERS = st.one_of(
    st.sampled_from(["100.5", "0.25", "1", "0", "0.000000000001", "999999999999.999999999999", "1e-8", "1E+3"]),
    st.decimals("1e-12", "1e16", places=12).map("{:f}".format),
    st.decimals(allow_nan=True, allow_infinity=True).map(str),
    st.tuples(DIGITS, DIGITS).map(".".join),
    st.tuples(DIGITS, st.sampled_from(["e", "E", "e-", "e+", ".", "-", ""]), DIGITS).map("".join),
    st.text("0123456789.eE+-", max_size=12),
)
TIMES = st.one_of(
    times("0001-01-01", "9999-12-31").map("{:%Y-%m-%dT%H:%M:%S.%fZ}".format),
    times("1969-12-31", "1970-01-02").map("{:%Y-%m-%dT%H:%M:%S.%fZ}".format),
    times("2199-12-31", "2200-01-02").map("{:%Y-%m-%dT%H:%M:%SZ}".format),
    st.from_regex(
        r"(19|2[0-2])[0-9]{2}(-[0-3][0-9]){2}[T ][0-2][0-9](:[0-6][0-9]){2}(\.[0-9]{0,10})?Z?", fullmatch=True
    ),
    st.text("0123456789-:TZ.+ ", min_size=18, max_size=32),
)
ODD = st.sampled_from(
    [
        *("null", "true", "[]", "{}", "5", "-0", "1e400", "NaN", "", '""', '"\\u0000"', '"\\ud800"', '"é"', '"\\n"'),
        *('{"price":"7"}', "[" * 70 + "]" * 70, '"' + "[" * 70 + '"', '":"', '"12:30"', '"\\u003a"'),
    ]
)
IDS = st.one_of(
    st.integers(-1, 2**63).map(str),
    st.sampled_from([str(2**62), str(2**62 + 1), "0", "7", "1.0", "1e3", "1" * 30]),
)


def usually(value: st.SearchStrategy[str], usual: str) -> st.SearchStrategy[str]:
    """Most often what makes a trade right, so that other members are looked at."""
    return st.one_of(st.just(usual), st.just(usual), st.just(usual), value, ODD)


TRADE = {
    "trade_id": usually(st.one_of(IDS, quoted(IDS)), "7"),
    "price": usually(st.one_of(quoted(NUMBERS), NUMBERS), '"100.5"'),
    "size": usually(st.one_of(quoted(NUMBERS), NUMBERS), '"0.25"'),
    "side": usually(quoted(st.sampled_from(["buy", "sell", "BUY", "SELL", "Buy", "hold"])), '"sell"'),
    "time": usually(quoted(TIMES), '"2026-07-07T12:00:01.123456Z"'),
}
PRODUCTS = usually(
    quoted(st.sampled_from(["BTC-USD", "BIP-20DEC30-CDE", "btc-usd", "A-B-C-D", "A-", "B-SIZE"])), '"ETH-USD"'
)
UNREAD = {
    "sequence": usually(IDS, "100329275918"),
    "maker_order_id": usually(
        quoted(st.text("0123456789abcdef-", max_size=40)), '"6b380eba-fd1d-43a8-91a0-fdb06e6ce87f"'
    ),
    "taker_order_id": usually(
        quoted(st.text("0123456789abcdef-", max_size=40)), '"b3639a38-ae66-493c-96ba-d2319e503590"'
    ),
}
TYPES = quoted(st.sampled_from(["match", "match", "match", "last_match", "heartbeat", "ticker", "surprise", ""]))
EXTRA: st.SearchStrategy[Member] = st.sampled_from(
    [
        *(("price", '"7"'), ("type", '"heartbeat"'), ("type", "null"), ("channel", '"heartbeats"'), ("events", "[]")),
        *(("pr\\u0069ce", '"7"'), ("time", '"12"'), ("time", '"2026-07-07T12:00:01Z"'), ("x", '"price"'), ("é", "1")),
        *(
            ("x", '{"time":1,"time":2}'),
            ("x", '"é"'),
            ("sequence", "5"),
            ("product_id", '"BTC-USD"'),
            ("trade_id", "7"),
        ),
        *(("side", '"buy"'), ("trades", "[]"), ("x", "[" * 70 + "]" * 70)),
    ]
)
WHITE = st.sampled_from(["", "", "", "", " ", "\n", "\t", "\r\n", "\f"])


@st.composite
def written(draw: st.DrawFn, members: dict[str, st.SearchStrategy[str]]) -> str:
    """A JSON object of `members`, sometimes with others, with one left out, or in another order."""
    found = [(name, draw(value)) for name, value in members.items()]
    change = draw(st.integers(0, 11))
    if change == 0:
        found.insert(draw(st.integers(0, len(found))), draw(EXTRA))
    if change == 1:
        found.pop(draw(st.integers(0, len(found) - 1)))
    if change == 2:
        found = draw(st.permutations(found))
    white = draw(WHITE)
    return "{" + f",{white}".join(f'"{name}":{white}{value}' for name, value in found) + "}" + white


MATCH = written({"type": TYPES, **UNREAD, "product_id": PRODUCTS, **TRADE})
BATCH_TRADE = written({"product_id": PRODUCTS, **TRADE, "trade_id": usually(quoted(IDS), '"7"')})
LISTS = lambda one: st.one_of(st.lists(one, max_size=3).map(lambda found: f"[{','.join(found)}]"), ODD)  # noqa: E731
EVENT = written({"type": usually(ODD, '"update"'), "trades": LISTS(BATCH_TRADE)})
CHANNELS = quoted(st.sampled_from(["market_trades", "market_trades", "market_trades", "heartbeats", "surprise"]))
BATCH = written({"channel": CHANNELS, "timestamp": usually(ODD, '"now"'), "events": LISTS(EVENT)})
HEARTBEAT = written(
    {"type": usually(TYPES, '"heartbeat"'), "last_trade_id": usually(IDS, "7"), "time": usually(ODD, '"now"')}
)
PAGE = st.tuples(LISTS(written(TRADE)), WHITE).map("".join)
TEXTS = st.one_of(MATCH, MATCH, MATCH, BATCH, HEARTBEAT, PAGE, PAGE)


def damaged(draw: st.DrawFn, text: str) -> bytes:
    """The text, now and then with a byte that is another, one too many, or one too few."""
    body = text.encode()
    if body and draw(st.integers(0, 9)) == 0:
        place, width = draw(st.integers(0, len(body) - 1)), draw(st.integers(0, 1))
        body = body[:place] + draw(st.binary(max_size=2)) + body[place + width :]
    return body


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, str]:
    text = draw(TEXTS)
    is_page = text.startswith("[") != (draw(st.integers(0, 19)) == 0)
    return damaged(draw, text), "rest" if is_page else "websocket"


UUIDS = usually(quoted(st.text("0123456789abcdef-\\é\x01", max_size=37)), '"6b380eba-fd1d-43a8-91a0-fdb06e6ce87f"')
LAYOUT = {
    "trade_id": usually(st.one_of(IDS, st.from_regex(r"0?[0-9]{1,18}", fullmatch=True)), "1052119289"),
    "maker_order_id": UUIDS,
    "taker_order_id": UUIDS,
    "side": usually(quoted(st.sampled_from(["buy", "sell", "BUY", "SELL", "sel", "buyy"])), '"buy"'),
    "size": usually(quoted(NUMBERS), '"0.00015721"'),
    "price": usually(quoted(NUMBERS), '"63514.6"'),
    "product_id": usually(quoted(st.sampled_from(["ETH-USD", "BTC-USDC", "BTC-US", "btc-usd"])), f'"{PRODUCT}"'),
    "sequence": usually(st.one_of(IDS, st.from_regex(r"0?[0-9]{1,18}", fullmatch=True)), "132235026010"),
    "time": usually(quoted(TIMES), '"2026-07-07T22:58:17.164892Z"'),
}


@st.composite
def laid_out(draw: st.DrawFn) -> tuple[bytes, str]:
    """A match in the layout of the Exchange feed, with any values."""
    members = ",".join(f'"{name}":{draw(value)}' for name, value in LAYOUT.items())
    return damaged(draw, f'{{"type":"match",{members}}}'), "websocket"


CELLS = st.one_of(
    st.sampled_from(["", '"', '""', '"a,b"', "a b", "é", "\x00", "\r", "\n", "x" * 200, " 7", '"7"', "7 ", "null"]),
    st.text("0123456789.,\"' eE-", max_size=8),
)
TICKS = st.one_of(
    st.integers(-1, 10**20).map(str),
    st.integers(1_594_000_000_000_000, 1_594_900_000_000_000).map(str),
    st.tuples(st.integers(0, 10**11), DIGITS).map("{0[0]}.{0[1]}".format),
    st.sampled_from(["7258118399999999", "7258118400000000", "1e9", "1.594E15", "-5", "1.", ".5", "1594132800123456"]),
)
ZONED = st.one_of(
    TIMES,
    st.tuples(
        times("1969-12-31", "2200-01-02").map("{:%Y-%m-%d %H:%M:%S.%f}".format),
        st.sampled_from(["", "+00:00", "-0530", " UTC", "+99:99", "Z", "+1:00"]),
    ).map("".join),
)
COLUMNS = {
    "exchange": usually(CELLS, "coinbase"),
    "product_id": usually(st.sampled_from(["ETH-USD", "BTC-USDC", "BTC-US", "btc-usd"]), PRODUCT),
    "trade_id": usually(st.one_of(IDS, st.from_regex(r"0?[0-9]{1,18}", fullmatch=True)), "1052119289"),
    "price": usually(NUMBERS, "63514.6"),
    "size": usually(NUMBERS, "0.00015721"),
    "side": usually(st.sampled_from(["buy", "sell", "BUY", "Sell", "sel", "buyy", "unknown"]), "buy"),
    "maker_side": usually(st.sampled_from(["buy", "BUY", "Sell", "True", "false", "falsey", "tru"]), "sell"),
    "time": usually(ZONED, "2026-07-07T22:58:17.164892Z"),
    "time_s": usually(TICKS, "1594132800.123456"),
    "time_ms": usually(TICKS, "1594132800123"),
    "time_us": usually(TICKS, "1594132800123456"),
    "time_ns": usually(TICKS, "1594132800123456789"),
}


@st.composite
def imported(draw: st.DrawFn) -> list[tuple[bytes, str]]:
    """Some lines of CSV or JSON with one layout, now and then one of the other kind, or damaged."""
    is_json = draw(st.booleans())
    side, time = draw(st.sampled_from(["side", "maker_side"])), draw(st.sampled_from(list(COLUMNS)[7:]))
    more: list[str | None] = ["exchange", "product_id", None]
    names = draw(st.permutations(["trade_id", "price", "size", side, time, *more[: draw(st.integers(0, 3))]]))
    found = []
    for _ in range(draw(st.integers(1, 6))):
        cells = [draw(CELLS if name is None else COLUMNS[name]) for name in names]
        if draw(st.integers(0, 9)) == 0:
            cells.append(draw(CELLS))
        layout, line = json.dumps(names), ",".join(cells)
        if (draw(st.integers(0, 9)) == 0) != is_json:
            layout = json.dumps({f"{name}.": name for name in names if name})
            values = [cell if re.fullmatch("[1-9][0-9]*", cell) else json.dumps(cell) for cell in cells]
            members = [f'"{name}.": {value}' for name, value in zip(names, values, strict=False) if name]
            line = (
                "{"
                + ", ".join([*members, *draw(st.sampled_from([[], [], [], ['"x": 1'], members[:1], ['"é": "["']]))])
                + "}"
            )
        found.append((damaged(draw, f"{layout}\n{line}"), "import"))
    return found


def assert_equal(bodies: list[tuple[bytes, str]]) -> None:
    assert_equal_of("", bodies)


def assert_equal_of(venue: str, bodies: list[tuple[bytes, str]]) -> None:
    found = parse(as_table(bodies, venue))
    found.validate(full=True)
    assert found.to_pylist() == by_the_letter(bodies, venue)


def assert_equal_of_okx(bodies: list[tuple[bytes, str]]) -> None:
    assert_equal_of("@okx", [(body.replace(b"coinbase", b"okex"), source) for body, source in bodies])


def assert_numbers_equal(trades: list[tuple[str, str, str]]) -> None:
    rest = '"type":"match","trade_id":7,"side":"buy","product_id":"BTC-USD"'
    texts = [f'{{{rest},"price":"{price}","size":"{size}","time":"{time}"}}' for price, size, time in trades]
    assert_equal([(text.encode(), "websocket") for text in texts])


SOURCES = st.sampled_from(["websocket", "rest", "import"])
BROTHERS: dict[str, tuple[Callable[[Any], None], st.SearchStrategy[Any]]] = {
    "messages": (assert_equal, st.lists(messages(), max_size=6)),
    "numbers and times": (assert_numbers_equal, st.lists(st.tuples(NUMBERS, NUMBERS, TIMES), max_size=6)),
    "bytes": (assert_equal, st.lists(st.tuples(st.binary(max_size=60), SOURCES), max_size=3)),
    "matches in the usual layout": (assert_equal, st.lists(laid_out(), max_size=6)),
    "matches and pages in the usual layout": (
        assert_equal,
        st.lists(st.tuples(laid_out(), SOURCES).map(lambda found: (found[0][0], found[1])), max_size=6),
    ),
    "matches in the usual layout and others": (assert_equal, st.lists(st.one_of(laid_out(), messages()), max_size=6)),
    "imported lines": (assert_equal, imported()),
    "imported lines of another venue": (assert_equal_of_okx, imported()),
    "messages and imported lines of another venue": (
        assert_equal_of_okx,
        st.tuples(imported(), st.lists(messages(), max_size=2)).map(lambda found: [*chain(*found)]),
    ),
    "imported lines between others": (
        assert_equal,
        st.tuples(imported(), st.lists(laid_out(), max_size=2), imported()).map(lambda found: [*chain(*found)]),
    ),
}


@pytest.mark.parametrize("examples", [100, pytest.param(20_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", BROTHERS)
@pytest.mark.parametrize("together_min", [0, 1_000])
def test_many_at_once_are_what_each_is_by_the_letter(
    kind: str, examples: int, together_min: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parser, "_TOGETHER_MIN", together_min)
    check, cases = BROTHERS[kind]
    run = settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    run(given(cases)(check))()


def test_the_rows_of_a_page_keep_their_order_though_one_between_is_refused() -> None:
    trades = [
        f'{{"trade_id":{n},"price":"{"dear" if n == 2 else 1}","size":"1","side":"sell","time":"{TIME}"}}'
        for n in (1, 2, 3)
    ]
    assert_equal([(f"[{','.join(trades)}]".encode(), "rest")])


def test_a_match_that_came_as_a_page_is_refused_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parser, "_TOGETHER_MIN", 0)
    body = (
        '{"type":"match","trade_id":7,"maker_order_id":"6b380eba-fd1d-43a8-91a0-fdb06e6ce87f",'
        '"taker_order_id":"b3639a38-ae66-493c-96ba-d2319e503590","side":"buy","size":"1","price":"2",'
        f'"product_id":"{PRODUCT}","sequence":5,"time":"{TIME}"}}'
    ).encode()
    assert_equal([(body, "websocket"), (body, "rest"), (body, "websocket")])


def test_a_layout_may_name_members_that_no_struct_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parser, "_TOGETHER_MIN", 0)
    members = {'"a': "trade_id", "\t": "price", "": "size", "é\\": "side", "\U0001f600": "time_us"}
    line = dict(zip(members, ["7", "1", "2", "buy", "1594132800123456"], strict=True))
    assert_equal([(f"{json.dumps(members)}\n{json.dumps(line)}".encode(), "import")])
