"""Kraken: WebSocket v2, channel `trade`, with one to many trades a message; REST pages by time, oldest first.

Sources: Kraken's API center (WebSocket v2 trade, ping, reconnection guide; REST recent trades; rate limits).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Generator, Mapping, Sequence
from decimal import Decimal
from math import isqrt
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
    venues_own,
)

_ANSWER = ("method", "error", "Error")  # members of an answer
_OTHER_CHANNELS = ("heartbeat", "status", "book", "level3", "ticker", "ohlc", "instrument")
_REST_NAMES = {"BTC": "XBT", "DOGE": "XDG"}
_SIDES = {"b": "buy", "s": "sell"}
_ID = 6  # place of the id in a row of REST
_PAGE_MAX = 1000
_REQUESTS_MAX = 30  # for one page; two are enough, unless trades are very uneven
_EARLIER_MAX = 3
_KNOWN_MAX = 2_000
_NEAR_NS = 4_000
_NO_ID = 2**62  # above every id
_TRADES = "/0/public/Trades"
_MARGIN = 100  # ids below those wanted, to aim at
_BEFORE_NS = 2_000  # `since` may exclude its own time, and times of rows have fractions of a microsecond


class _KrakenTrade(msgspec.Struct, gc=False):
    symbol: str
    trade_id: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Result(msgspec.Struct):
    channel: str = ""
    symbol: str = ""


class _KrakenMessage(msgspec.Struct):
    channel: str = ""
    method: str | None = None
    symbol: str | None = None
    error: str | None = None
    rate_error: str | None = msgspec.field(name="Error", default=None)
    data: msgspec.Raw = msgspec.Raw(b"[]")
    result: _Result | None = None


_message = msgspec.json.Decoder(_KrakenMessage)
_trades = msgspec.json.Decoder(list[_KrakenTrade])


class Kraken(Venue):
    """See `Venue`."""

    venue = "kraken"
    default_url = "wss://ws.kraken.com/v2"
    trades_channel = "trade"  # heartbeats need no subscription
    connects_per_second = 0.2
    """150 attempts in ten minutes are allowed."""
    rest_url = "https://api.kraken.com"
    requests_per_second = 1.0
    page_max = _PAGE_MAX // 2
    """A page begins at a time, so it has others as well."""
    candles_max = 720
    candles_kept = 720

    def __init__(self) -> None:
        self._known: dict[str, list[tuple[int, int]]] = {}
        """Symbol → (id, time in ns UTC) of some trades, in order, between which others are looked for."""

    def frame(self, kind: FrameKind, products: Sequence[str]) -> bytes:
        """The snapshot has the last fifty trades, among them perhaps those missed between connections."""
        params: dict[str, Any] = {"channel": self.trades_channel, "symbol": [venues_own(each) for each in products]}
        if kind == "subscribe":
            params["snapshot"] = True
        return msgspec.json.encode({"method": kind, "params": params})

    def read(self, raw: bytes) -> FeedMessage:
        """See `Dialect.read`."""
        try:
            message = _message.decode(raw)
            if message.channel == self.trades_channel:
                found = sorted((f"{row.symbol}@kraken", row.trade_id) for row in _trades.decode(message.data))
                products = {product for product, _ in found}
                return TradesMessage(tuple(found), product=products.pop() if len(products) == 1 else "")
        except (ValueError, RecursionError) as error:  # msgspec's errors and bad UTF-8 are ValueErrors
            return Unreadable(str(error))
        if message.channel == "heartbeat" or message.method == "pong":
            return Heartbeat()
        named = message.symbol or (message.result.symbol if message.result else "")
        refusal = message.error or message.rate_error
        if refusal and "already subscribed" not in refusal.lower():
            return Refusal(f"{refusal} {named}".strip(), product=f"{named}@kraken" if named else "")
        if message.method == "subscribe" and named:
            return Subscriptions({self.trades_channel: frozenset([f"{named}@kraken"])})
        return Other() if message.channel or message.method else Unreadable("neither channel nor method")

    def trades(self, message: Mapping[str, Any]) -> Trades:
        """The channel `trade` has one to many trades, a snapshot the last fifty."""
        channel = message.get("channel")
        if channel == self.trades_channel:
            rows = message.get("data")
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                return "a trade message without its trades"
            return [
                VenueTrade(row.get("symbol"), row.get("trade_id"), row.get("price"), row.get("qty"),
                           str(row.get("side")), row.get("timestamp"))
                for row in rows
            ]  # fmt: skip
        if channel in _OTHER_CHANNELS or (channel is None and not message.keys().isdisjoint(_ANSWER)):
            return []
        return NOT_A_MESSAGE if channel is None else "unknown channel"

    def page(self, value: Any, symbol: str) -> Trades:
        """Rows of price, size, time in seconds, taker's side, order type, text, and id; beside them `last`."""
        result = value.get("result") if isinstance(value, dict) else None
        rows = [rows for name, rows in result.items() if name != "last"] if isinstance(result, dict) else []
        if (
            len(rows) != 1
            or not isinstance(rows[0], list)
            or not all(isinstance(row, list) and len(row) > _ID for row in rows[0])
        ):
            return NOT_A_PAGE
        return [VenueTrade(symbol, row[_ID], row[0], row[1], _SIDES.get(str(row[3]), ""), row[2], 6) for row in rows[0]]

    def error(self, value: Any) -> AnswerError | None:
        """Errors come with status 200 as well."""
        errors = value.get("error") if isinstance(value, dict) else None
        if not isinstance(errors, list) or not errors:
            return None
        text = ", ".join(map(str, errors))
        words = text.lower()
        is_busy = "too many requests" in words or "rate limit" in words
        return AnswerError(text, "busy" if is_busy else "no product" if "unknown asset pair" in words else "other")

    def candles_request(self, symbol: str, first: int, last: int) -> tuple[str, Query]:  # noqa: ARG002 - it sends all
        """The newest 720 minutes, from a time on."""
        return "/0/public/OHLC", {"pair": _pair(symbol), "interval": 1, "since": first - 1}

    def candles(self, value: Any) -> list[Candle]:
        """Rows of time, open, high, low, close, vwap, volume and count."""
        (rows,) = (rows for name, rows in value["result"].items() if name != "last")
        return [
            Candle(int(time), Decimal(low), Decimal(high), Decimal(open_), Decimal(close), Decimal(volume), int(count))
            for time, open_, high, low, close, _vwap, volume, count in rows
            if int(count)
        ]

    def history(self, symbol: str, after: int | None, limit: int) -> Generator[tuple[str, Query], Page, bool]:
        """REST pages by time alone, forwards. The time of an id is looked for between two times: a page from `low` on
        begins with an id up to the one wanted, a page from `high` on with a later one."""
        query: dict[str, int | str] = {"pair": _pair(symbol), "count": _PAGE_MAX}
        known = self._known.setdefault(symbol, [])
        wanted = 0 if after is None else max(after - limit, 1)
        if after is None or not known or known[-1][0] <= wanted:
            page = yield _TRADES, query
            _remember(known, page)
            if after is None or not page or not known or len(page) < _PAGE_MAX:
                return True  # all that there is
            if page[0][0] <= wanted:
                lacking = limit - _count_below(page, after)
                if lacking <= 0:
                    return True
                wanted = max(page[0][0] - lacking, 1)  # ids that it lacks are no rows
        at = bisect_right(known, wanted, key=_id_of)
        low = _below(known, wanted)
        high = known[at] if at < len(known) else (_NO_ID, known[-1][1] + 1)
        is_low_asked = False
        for attempt in range(_REQUESTS_MAX):
            if low is None:
                since = _earlier(known, high, wanted, attempt)
            elif is_low_asked or wanted - low[0] > 2 * _PAGE_MAX:
                if high[1] - low[1] <= _NEAR_NS:
                    return False  # more trades of one moment than a page has
                since = _between(low, high, wanted, attempt)
            else:
                since = low[1]
            page = yield _TRADES, query | {"since": since}
            _remember(known, page)
            first, last = (page[0][0], page[-1][0]) if page else (_NO_ID, 0)
            if since == 0:
                wanted = max(wanted, first)  # there are no older ones
            if first > wanted:
                high = first, since
            elif last >= after - 1 or len(page) < _PAGE_MAX:
                lacking = limit - _count_below(page, after)
                if lacking <= 0 or since == 0 or first == 1:
                    return True
                wanted, high = max(first - lacking, 1), (first, since)
                low, is_low_asked = _below(known, wanted), False
            elif last <= wanted and (end_ns := page[-1][1]) is not None:
                low, is_low_asked = (last, end_ns - _BEFORE_NS), False
            else:
                low, is_low_asked = (first, since), True
        return False


def _pair(symbol: str) -> str:
    base, _, quote = symbol.partition("/")
    return _REST_NAMES.get(base, base) + _REST_NAMES.get(quote, quote)


def _below(known: Sequence[tuple[int, int]], wanted: int) -> tuple[int, int] | None:
    """The newest known trade with an id up to `wanted`, and a time from which a page begins with it; None: none."""
    at = bisect_right(known, wanted, key=_id_of)
    return (known[at - 1][0], known[at - 1][1] - _BEFORE_NS) if at else None


def _count_below(page: Page, after: int) -> int:
    return sum(number < after for number, _ in page)


def _id_of(trade: tuple[int, int]) -> int:
    return trade[0]


def _remember(known: list[tuple[int, int]], page: Page) -> None:
    """Adds the ends of `page` to `known`, a bounded list in order."""
    for number, time_ns in {page[0], page[-1]} if page else ():
        at = bisect_left(known, number, key=_id_of)
        if time_ns is not None and (at == len(known) or known[at][0] != number):
            known.insert(at, (number, time_ns))
    if len(known) > _KNOWN_MAX:
        del known[1:-1:2]


def _earlier(known: Sequence[tuple[int, int]], high: tuple[int, int], wanted: int, attempt: int) -> int:
    """A time (ns UTC) before that of id `wanted`, by the pace of the oldest known trades; at last the beginning."""
    if attempt >= _EARLIER_MAX:
        return 0
    (first, first_ns), (last, last_ns) = known[0], known[min(1, len(known) - 1)]
    pace_ns = max((last_ns - first_ns) // max(last - first, 1), 1_000)
    return max(high[1] - (high[0] - wanted + _MARGIN) * (pace_ns << 5 * attempt), 0)


def _between(low: tuple[int, int], high: tuple[int, int], wanted: int, attempt: int) -> int:
    """A time (ns UTC) between those of `low` and `high`: by the pace, in the middle, or near one of them, in turn.

    Trades may come in a rush at one end and seldom in the rest, where neither pace nor halves find their place soon.
    """
    span = high[1] - low[1]
    near = isqrt(span * 1_000_000)
    parts = [near, span // 2, span - near]
    if high[0] != _NO_ID:
        parts.insert(0, span * max(wanted - _MARGIN - low[0], 0) // (high[0] - low[0]))
    return low[1] + min(max(parts[attempt % len(parts)], 1_000), span - 1_000)
