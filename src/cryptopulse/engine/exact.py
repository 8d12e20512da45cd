"""One message → its trades or refusals. This is the reference: the fast path of `parse` must give the same rows.

A message is one JSON value in UTF-8 and nothing else. Three kinds carry trades: the Exchange feed's match and
last_match, the Advanced Trade feed's market_trades, and a page of the REST interface (an array of one product's
trades; the product is the message's key). All give the maker's side; the taker's is the opposite.

Lines of imported files (`venues/imported.py`) and the messages of other venues (`venues/registry.py`) have forms of
their own and the same domains.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, NamedTuple, get_args

import msgspec
import numpy as np

from cryptopulse.lake.products import is_product_id, is_symbol, venue_of
from cryptopulse.lake.tables import SILVER, TRADE_VALUE_END
from cryptopulse.venues import NOT_A_MESSAGE as NOT_OF_VENUE
from cryptopulse.venues import NOT_A_PAGE as NOT_A_PAGE_OF_VENUE
from cryptopulse.venues import Trades
from cryptopulse.venues.imported import EXCHANGES, MAKERS, TIMES, Layout, read_layout
from cryptopulse.venues.registry import COINBASE, MESSAGES, PAGES

ControlType = Literal[
    "subscriptions", "heartbeat", "error", "ticker", "status", "snapshot", "l2update",
    "received", "open", "done", "change", "activate", "auction",
]  # fmt: skip
ControlChannel = Literal[
    "subscriptions", "heartbeats", "ticker", "ticker_batch", "status", "candles", "l2_data", "user"
]  # fmt: skip
TAKER_SIDES = {"sell": "BUY", "SELL": "BUY", "buy": "SELL", "BUY": "SELL"}
"""The maker's side as the exchange writes it → the taker's."""

_MAKERS = {"buy": "sell", "sell": "buy"}

TRADE_MEMBERS = ("product_id", "trade_id", "price", "size", "side", "time")
"""The members of a trade that are used."""

NOT_A_MESSAGE = "not a JSON object with a type or a channel"
NOT_A_PAGE = "not a JSON array of trades"
NO_TRADES = "market_trades without events or their trades"
TWICE = "a member is there twice"
NOT_A_LINE = "not a line of an imported file with its layout"
OTHER_COLUMNS = "the line does not have the columns of its file"
OTHER_EXCHANGE = "exchange is not "

_NUMBER = re.compile(r"(-?)([0-9]+)(?:\.([0-9]+))?(?:[eE]([+-]?)([0-9]+))?")
_TIME = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?Z")
_ANY_TIME = re.compile(r"(.{10})[T ]([0-9:]{8}(?:\.[0-9]+)?) ?(?:Z|UTC|([+-])([0-9]{2}):?([0-9]{2}))?")
_TICKS = re.compile(r"-?[0-9]{1,30}(?:\.[0-9]{1,30})?(?:[eE][+-]?[0-9]{1,2})?")
_ANY_MOMENT = "1970-01-01T00:00:00Z"
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"')
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FRACTION_DIGITS_MAX = 9  # what the Advanced Trade feed writes at most; the tables keep six
_EXPONENT_DIGITS_MAX = 6  # a longer exponent is outside every domain, whatever its mantissa

NESTING_MAX = 64
"""How deep a message may be nested; the exchange's have five levels. JSON readers give up at depths that vary."""

SCALE = 12
"""Decimal places of prices and sizes, which are integers in units of 1e-12 here."""


def units(number: Decimal) -> int:
    """A price or size in units of 1e-12."""
    return int(number.scaleb(SCALE))


def micros(when: datetime) -> int:
    """µs UTC since 1970."""
    return (when - _EPOCH) // timedelta(microseconds=1)


_ID, _PRICE, _SIZE, _EVENT = (SILVER.domain(name) for name in ("trade_id", "price", "trade_size", "event_time"))
TRADE_ID_MIN, TRADE_ID_MAX = _ID.lowest, _ID.highest
PRICE_MAX, SIZE_MAX = units(_PRICE.highest), units(_SIZE.highest)
TIME_MIN, TIME_MAX = micros(_EVENT.lowest), micros(_EVENT.highest)
VALUE_END = units(TRADE_VALUE_END) * 10**SCALE  # price times size must be below this, both in units of 1e-12


class Row(NamedTuple):
    """A trade (`reason` is None), or what is known of a refused one."""

    reason: str | None
    symbol: str | None = None
    trade_id: int | None = None
    price: int | None = None
    """In units of 1e-12."""
    size: int | None = None
    """In units of 1e-12."""
    side: str | None = None
    time_us: int | None = None


class _Number(str):
    """A JSON number as it is written."""

    __slots__ = ()


class _Object(dict[str, Any]):
    """A JSON object, with the names of members that occur more than once in `twice`."""

    __slots__ = ("twice",)
    twice: frozenset[str]


def message_rows(body: bytes) -> list[Row]:
    """The rows of a message of the WebSocket; a control message has none. Never raises."""
    value = _value(body)
    if not isinstance(value, _Object):
        return [Row(NOT_A_MESSAGE)]
    kind, channel = value.get("type"), value.get("channel")
    if "type" in value.twice or (kind is None and "channel" in value.twice):
        return [Row(TWICE)]
    if kind in ("match", "last_match"):
        return [_trade_row(value)]
    if kind is not None:
        return [] if kind in get_args(ControlType) else [Row("unknown message type")]
    if channel == "market_trades":
        return list(_batch_rows(value))
    is_control = channel in get_args(ControlChannel)
    return [] if is_control else [Row(NOT_A_MESSAGE if channel is None else "unknown channel")]


def page_rows(body: bytes, product: str | None) -> list[Row]:
    """The rows of a page of the REST interface with the trades of `product`. Never raises."""
    value = _value(body)
    if not isinstance(value, list):
        return [Row(NOT_A_PAGE)]
    return [
        _trade_row(trade, product or "")
        if isinstance(trade, _Object) and any(trade.get(name) is not None for name in ("trade_id", "price", "size"))
        else Row(NOT_A_PAGE)
        for trade in value
    ]


def line_rows(body: bytes, product: str | None) -> list[Row]:
    """The row of a line of an imported file, with its layout; `product`: the message's key. Never raises."""
    head, newline, line = body.partition(b"\n")
    layout = read_layout(head) if newline else None
    if layout is None:
        return [Row(NOT_A_LINE)]
    if layout.is_csv:
        try:
            rows = list(csv.reader([line.decode()], strict=True, skipinitialspace=True))
        except (ValueError, csv.Error):
            rows = []
        if len(rows) != 1 or len(rows[0]) != layout.width:
            return [Row(OTHER_COLUMNS)]
        values: dict[str, Any] = {name: rows[0][int(place)].strip() for name, place in layout.places.items()}
    else:
        found = _value(line)
        if not isinstance(found, _Object):
            return [Row(OTHER_COLUMNS)]
        if not found.twice.isdisjoint(layout.places.values()):
            return [Row(TWICE)]
        values = {name: found.get(str(place)) for name, place in layout.places.items()}
    return [_line_row(values, layout, product)]


def venue_rows(body: bytes, key: str, *, is_page: bool = False) -> list[Row]:
    """The rows of a message whose key, `@venue` or a symbol of it, says that it is not Coinbase's. Never raises.

    `is_page`: it is a page of the REST interface, about the symbol that the key names.
    """
    symbol, _, venue = key.partition("@")
    if venue not in (PAGES if is_page else MESSAGES):
        return [Row(NOT_OF_VENUE)]
    if not is_page and body.strip() in (b"ping", b"pong"):  # OKX's signs of life are no JSON
        return []
    twice: list[str] = []
    value = _value(body, twice)
    if value is None:
        return [Row(NOT_A_PAGE_OF_VENUE if is_page else NOT_OF_VENUE)]
    if twice:
        return [Row(TWICE)]
    found: Trades = NOT_OF_VENUE
    if is_page:
        found = PAGES[venue](value, symbol)
    elif isinstance(value, _Object):
        found = MESSAGES[venue](value)
    if isinstance(found, str):
        return [Row(found)]
    rows = []
    for trade in found:
        named = f"{trade.symbol}@{venue}" if type(trade.symbol) is str else None
        side = _MAKERS.get(trade.taker_side)
        is_text = trade.time_power is None
        time = trade.time if is_text else _ANY_MOMENT
        row = checked_row(named, trade.trade_id, trade.price, trade.size, side, time, is_valid=is_symbol)
        rows.append(row if is_text else _timed(row, trade.time, trade.time_power))
    return rows


def _timed(row: Row, time: Any, power: int | None) -> Row:
    """`row` with its time, or refused for it."""
    if row.reason is not None:
        return row
    wrong, time_us = _line_micros(time, power)
    return row._replace(time_us=time_us) if wrong is None else Row(wrong, row.symbol, row.trade_id)


def _line_row(values: dict[str, Any], layout: Layout, product: str | None) -> Row:
    venue = venue_of(product or "")
    expected = venue.partition("-")[0] or COINBASE
    if "exchange" in values and EXCHANGES.get(str(values["exchange"]).lower()) != expected:
        return Row(OTHER_EXCHANGE + expected)
    side = str(values[layout.side]).lower()
    side = _MAKERS.get(side, "") if layout.side == "side" else MAKERS.get(side, side)
    symbol, trade_id = values.get("product_id", product), values["trade_id"]
    if venue and type(symbol) is str and not symbol.endswith(f"@{venue}"):
        symbol = f"{symbol}@{venue}"
    is_valid = is_symbol if venue else is_product_id
    row = checked_row(symbol, trade_id, values["price"], values["size"], side, _ANY_MOMENT, is_valid=is_valid)
    return _timed(row, values[layout.time], TIMES[layout.time])


def _line_micros(value: Any, power: int | None) -> tuple[str | None, int]:
    """What is wrong with `value` (None: nothing), and its µs UTC since 1970, rounded down. `power`: see TIMES."""
    found = (_ANY_TIME if power is None else _TICKS).fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return "time is missing or malformed", 0
    if power is not None and value.isdigit():  # as nearly always; fractions take ten times as long
        time_us = int(value) * 10**power if power >= 0 else int(value) // 10**-power
    elif power is not None:
        time_us = int(Fraction(value) * Fraction(10) ** power // 1)
    else:
        date, clock, sign, hours, minutes = found.groups()
        wrong, time_us = time_micros(f"{date}T{clock}Z")
        if wrong is not None:
            return wrong, 0
        if sign:
            time_us -= int(f"{sign}1") * (int(hours) * 60 + int(minutes)) * 60_000_000
    return (None if TIME_MIN <= time_us <= TIME_MAX else "time is out of range"), time_us


def _batch_rows(message: _Object) -> Iterator[Row]:
    events = message.get("events")
    if "events" in message.twice:
        yield Row(TWICE)
    elif not isinstance(events, list):
        yield Row(NO_TRADES)
    else:
        for event in events:
            trades = event.get("trades") if isinstance(event, _Object) else None
            if isinstance(event, _Object) and "trades" in event.twice:
                yield Row(TWICE)
            elif isinstance(trades, list):
                yield from map(_trade_row, trades)
            else:
                yield Row(NO_TRADES)


def _trade_row(trade: Any, product: str | None = None) -> Row:
    """The row of one trade; `product`: that of the REST page, None for messages of a WebSocket."""
    if not isinstance(trade, _Object):
        return Row("product_id is missing or malformed")
    if trade.twice.intersection(TRADE_MEMBERS if product is None else TRADE_MEMBERS[1:]):
        return Row(TWICE)
    symbol = trade.get("product_id") if product is None else product
    return checked_row(symbol, *(trade.get(name) for name in TRADE_MEMBERS[1:]))


def checked_row(  # noqa: PLR0913
    symbol: Any,
    trade_id: Any,
    price: Any,
    size: Any,
    side: Any,
    time: Any,
    *,
    is_valid: Callable[[str], bool] = is_product_id,
) -> Row:
    """The row for a trade's members, which should be strings; anything else is refused. `side` is the maker's.

    `is_valid`: whether a symbol is valid.
    """
    wrong, number = _id(trade_id)
    if type(symbol) is not str or not is_valid(symbol):
        return Row("product_id is missing or malformed", None, number)
    if wrong is None:
        wrong, price_units = decimal_units("price", price, PRICE_MAX)
    if wrong is None:
        wrong, size_units = decimal_units("size", size, SIZE_MAX)
    if wrong is None and price_units * size_units >= VALUE_END:
        wrong = "price times size is out of range"
    if wrong is None and (type(side) is not str or side not in TAKER_SIDES):
        wrong = "side is neither buy nor sell"
    if wrong is None:
        wrong, time_us = time_micros(time)
    if wrong is not None:
        return Row(wrong, symbol, number)
    return Row(None, symbol, number, price_units, size_units, TAKER_SIDES[side], time_us)


def _id(value: Any) -> tuple[str | None, int | None]:
    if not isinstance(value, str) or not value.isascii() or not value.isdigit():
        return "trade_id is missing or not a whole number", None
    digits = value.lstrip("0") or "0"
    if len(digits) > len(str(TRADE_ID_MAX)) or not TRADE_ID_MIN <= int(digits) <= TRADE_ID_MAX:
        return "trade_id is out of range", None
    return None, int(digits)


def decimal_units(name: str, value: Any, highest: int) -> tuple[str | None, int]:
    """What is wrong with `value` (None: nothing), and its exact number of units of 1e-12, in any JSON notation."""
    found = _NUMBER.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return f"{name} is missing, malformed or out of range", 0
    sign, whole, fraction, exponent_sign, exponent = (part or "" for part in found.groups())
    written = whole + fraction
    digits = written.strip("0")
    if sign or not digits:
        return f"{name} is not positive", 0
    # The number is `digits` times ten to the power of `place`; neither end of the digits is a zero.
    power = int(exponent_sign + (exponent.lstrip("0")[: _EXPONENT_DIGITS_MAX + 1] or "0"))
    place = power - len(fraction) + len(written) - len(written.rstrip("0"))
    if len(digits) + place > len(str(highest)) - SCALE:
        return f"{name} is missing, malformed or out of range", 0
    if place < -SCALE:
        return f"{name} has more than {SCALE} decimals", 0
    found_units = int(digits) * 10 ** (place + SCALE)
    return (f"{name} is missing, malformed or out of range" if found_units > highest else None), found_units


def time_micros(value: Any) -> tuple[str | None, int]:
    """What is wrong with `value` (None: nothing), and its µs UTC since 1970; the 7th to 9th decimals are cut off."""
    found = _TIME.fullmatch(value) if type(value) is str else None
    if found is None:
        return "time is missing or malformed", 0
    fraction = found[7] or ""
    if len(fraction) > _FRACTION_DIGITS_MAX:
        return f"time has more than {_FRACTION_DIGITS_MAX} decimals", 0
    year, month, day, hour, minute, second = map(int, found.groups()[:6])
    try:
        moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return "time is missing or malformed", 0
    time_us = micros(moment) + int(fraction[:6].ljust(6, "0"))
    return (None if TIME_MIN <= time_us <= TIME_MAX else "time is out of range"), time_us


def is_deep(body: bytes) -> bool:
    """Whether a JSON text is nested deeper than a message may be."""
    if body.count(b"[") + body.count(b"{") <= NESTING_MAX:
        return False
    brackets = np.frombuffer(_STRING.sub(b"", body), np.uint8) | 32  # this bit turns [ into { and ] into }
    opens, closes = (brackets == ord("{")).astype(np.int32), (brackets == ord("}")).astype(np.int32)
    return bool((opens - closes).cumsum().max() > NESTING_MAX)


_skip = msgspec.json.Decoder(msgspec.Raw).decode


def _value(body: bytes, twice: list[str] | None = None) -> Any:
    """The JSON value; None, which is not a message either, if `body` is not valid JSON or nested too deep.

    `twice` gets the names of all members that occur more than once in an object.
    """

    def members(pairs: list[tuple[str, Any]]) -> _Object:
        found = _members(pairs)
        if twice is not None:
            twice.extend(found.twice)
        return found

    try:
        text = body.decode()
        _skip(body)  # Python's reader accepts NaN and lone surrogates, msgspec's accepts bytes that are not UTF-8
        if is_deep(body):
            return None
        return json.loads(text, object_pairs_hook=members, parse_int=_Number, parse_float=_Number)
    except (ValueError, RecursionError):  # msgspec's errors and bad UTF-8 are ValueErrors
        return None


def _members(pairs: list[tuple[str, Any]]) -> _Object:
    found = _Object(pairs)
    is_plain = len(found) == len(pairs)
    found.twice = (
        frozenset() if is_plain else frozenset(name for name, n in Counter(p[0] for p in pairs).items() if n > 1)
    )
    return found
