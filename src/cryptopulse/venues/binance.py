"""Binance spot: the streams `@trade`, with a trade a message, and `@aggTrade`; REST pages by id, oldest first.

Sources: binance-spot-api-docs (WebSocket streams, REST market data, errors).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any

import msgspec

from cryptopulse.venues import (
    NOT_A_MESSAGE,
    NOT_A_PAGE,
    AnswerError,
    Candle,
    FeedMessage,
    FrameKind,
    Heartbeat,
    Other,
    Page,
    Query,
    Refusal,
    Subscriptions,
    Trades,
    TradesMessage,
    Unreadable,
    Venue,
    VenueTrade,
    check_capitals,
    venues_own,
)

_EVENTS = (
    "trade", "aggTrade", "blockTrade", "kline", "depthUpdate", "24hrTicker", "24hrMiniTicker", "1hTicker", "4hTicker",
    "1dTicker", "bookTicker", "avgPrice", "serverShutdown",
)  # fmt: skip
_MICROS_DIGITS = 15  # as milliseconds this would be after the year 5000
_SIDES = {True: "sell", False: "buy"}  # whether the buyer is the maker → the taker's side
_PAGE_MAX = 1000
_ASK, _ALIVE = 2, 3  # numbers of our requests: which streams there are, and the same as a sign of life


class _BinanceTrade(msgspec.Struct, gc=False):
    e: str = ""
    s: str = ""
    t: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None


class _BinanceMessage(_BinanceTrade, gc=False):
    stream: str = ""
    data: _BinanceTrade | None = None


class _Answer(msgspec.Struct):
    id: int | None = None
    result: list[str] | None = None
    code: int | None = None
    msg: str = ""


_message = msgspec.json.Decoder(_BinanceMessage)
_answer = msgspec.json.Decoder(_Answer)


class Binance(Venue):
    """See `Venue`. Its server says which streams there are when it is asked, and refuses none that does not exist."""

    venue = "binance"
    default_url = "wss://data-stream.binance.vision/ws"
    trades_channel = "trade"
    heartbeat_request = b'{"method":"LIST_SUBSCRIPTIONS","id":%d}' % _ALIVE
    answers_each_product = False
    tells_newest = False
    connects_per_second = 0.5
    """300 attempts in five minutes are allowed."""
    rest_url = "https://api.binance.com"
    requests_per_second = 3.0
    """A page weighs 25, and 6,000 a minute are allowed."""
    page_max = _PAGE_MAX
    candles_max = 1000

    def subscribe_frames(self, products: Sequence[str]) -> list[bytes]:
        """The answer to the first frame names no streams; that to the second does."""
        ask = msgspec.json.encode({"method": "LIST_SUBSCRIPTIONS", "id": _ASK})
        return [self.frame("subscribe", products), ask]

    def frame(self, kind: FrameKind, products: Sequence[str]) -> bytes:
        """One for all."""
        streams = [f"{venues_own(product).lower()}@trade" for product in products]
        return msgspec.json.encode({"method": kind.upper(), "params": streams, "id": 1})

    def read(self, raw: bytes) -> FeedMessage:
        """See `Dialect.read`."""
        try:
            message = _message.decode(raw)
            event = message.data or message
            if event.e == "trade" and event.t is not None and event.s:
                product = f"{event.s}@binance"
                return TradesMessage(((product, event.t),), product=product)
            if event.e or message.stream:
                return Unreadable("a trade without its id or symbol") if event.e == "trade" else Other()
            return self._answered(_answer.decode(raw))
        except (ValueError, RecursionError) as error:  # msgspec's errors and bad UTF-8 are ValueErrors
            return Unreadable(str(error))

    def _answered(self, answer: _Answer) -> FeedMessage:
        if answer.code is not None:
            return Refusal(f"{answer.code}: {answer.msg}")
        if answer.id == _ALIVE:
            return Heartbeat()
        if answer.result is not None:
            named = (name.removesuffix("@trade").upper() for name in answer.result)
            return Subscriptions({self.trades_channel: frozenset(f"{name}@binance" for name in named)})
        return Other() if answer.id is not None else Unreadable("neither an event nor an answer")

    def trades(self, message: Mapping[str, Any]) -> Trades:
        """The stream `@trade`, alone or in a combined stream. Aggregates have ids of their own and are left out."""
        return _trades(message, "trade", "t")

    def page(self, value: Any, symbol: str) -> Trades:
        """Rows with id, price, qty, time in ms (µs if so asked) and whether the buyer is the maker."""
        if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
            return NOT_A_PAGE
        return [
            VenueTrade(symbol, row.get("id"), row.get("price"), row.get("qty"), _side(row.get("isBuyerMaker")),
                       *_time(row.get("time")))
            for row in value
        ]  # fmt: skip

    def error(self, value: Any) -> AnswerError | None:
        """Errors have a status of their own."""
        return AnswerError(str(value.get("msg")), "other") if isinstance(value, dict) and "code" in value else None

    def candles_request(self, symbol: str, first: int, last: int) -> tuple[str, Query]:
        """Times are in ms."""
        query: dict[str, int | str] = {"symbol": symbol, "interval": "1m", "limit": self.candles_max}
        return "/api/v3/klines", query | {"startTime": first * 1000, "endTime": last * 1000}

    def candles(self, value: Any) -> list[Candle]:
        """Rows of time in ms, open, high, low, close, volume, end, value, count, …"""
        found = []
        for time, open_, high, low, close, volume, _end, _value, count, *_ in value:
            if count:
                prices = Decimal(low), Decimal(high), Decimal(open_), Decimal(close)
                found.append(Candle(time // 1000, *prices, Decimal(volume), count))
        return found

    def history(self, symbol: str, after: int | None, limit: int) -> Generator[tuple[str, Query], Page, bool]:
        """REST pages from an id on, upwards. Ids that it lacks are no rows, so the page may have to begin lower."""
        if after is None:
            yield "/api/v3/trades", {"symbol": symbol, "limit": limit}
            return True
        first = max(after - limit, 1)
        too_low, too_high = 0, None
        while True:
            query: Query = {"symbol": symbol, "fromId": first, "limit": _PAGE_MAX}
            page = yield "/api/v3/historicalTrades", query
            if not page or (len(page) < _PAGE_MAX and page[-1][0] < after - 1):
                return True  # the present, which has not come to `after` yet
            if page[-1][0] >= after - 1:
                if first == 1 or sum(number < after for number, _ in page) >= limit:
                    return True
                too_high = first
            else:
                too_low = first
            if too_high is None or too_high - too_low <= 1:
                return False  # it lacks more ids than a page has rows
            if too_low:
                first = (too_low + too_high) // 2
            else:  # from the first id of all, if there are none between
                first = 1 if page[0][0] > first else max(after - 2 * (after - first), 1)

    def check_products(self, products: Sequence[str]) -> None:
        """Raises ConfigurationError for small letters: Binance would answer with capitals."""
        check_capitals(products)


def _trades(message: Mapping[str, Any], kind: str, number: str) -> Trades:
    data = message.get("data") if "stream" in message else message
    if isinstance(data, list):  # the stream of all tickers
        others = [row.get("e") for row in data if isinstance(row, dict)]
        is_known = len(others) == len(data) and all(one != kind and one in _EVENTS for one in others)
        return [] if is_known else "unknown message type"
    if not isinstance(data, dict):
        return NOT_A_MESSAGE
    event = data.get("e")
    if event == kind:
        side, time = _side(data.get("m")), _time(data.get("T"))
        return [VenueTrade(data.get("s"), data.get(number), data.get("p"), data.get("q"), side, *time)]
    if event is None:  # an answer, an error, or the best prices
        return [] if any(name in data for name in ("result", "code", "error", "u", "lastUpdateId")) else NOT_A_MESSAGE
    return [] if event in _EVENTS else "unknown message type"


def _side(is_buyer_maker: Any) -> str:
    return _SIDES[is_buyer_maker] if isinstance(is_buyer_maker, bool) else ""


def _time(value: Any) -> tuple[str | None, int]:
    """A whole number in µs or ms, and the power of ten that makes µs of it."""
    time = str(value) if type(value) is int else value
    if not isinstance(time, str) or not time.isascii() or not time.isdigit():
        return None, 3
    return time, 0 if len(time.lstrip("0")) >= _MICROS_DIGITS else 3


def aggregate_trades(message: Mapping[str, Any]) -> Trades:
    """The stream `@aggTrade`: a row for the fills of an order at one price, by the ids of aggregates."""
    return _trades(message, "aggTrade", "a")
