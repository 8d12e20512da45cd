"""Kraken: WebSocket v2, channel `trade`, with one to many trades a message; REST pages by time, oldest first.

Sources: Kraken's API center (WebSocket v2 trade, ping, reconnection guide; REST recent trades; rate limits).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Generator, Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any

import msgspec

from cryptopulse.venues import (
    NOT_A_MESSAGE,
    NOT_A_PAGE,
    Candle,
    FeedMessage,
    Heartbeat,
    Other,
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

_OTHER_CHANNELS = ("heartbeat", "status", "book", "level3", "ticker", "ohlc", "instrument")
_REST_NAMES = {"BTC": "XBT", "DOGE": "XDG"}
_SIDES = {"b": "buy", "s": "sell"}
_ID = 6  # place of the id in a row of REST
_PAGE_MAX = 1000
_REQUESTS_MAX = 25  # for one page; a few are enough, unless trades are very uneven
_MARGIN = 100  # ids below those wanted, to aim at
_BEFORE_NS = 2_000  # `since` may exclude its own time, and times of rows have fractions of a microsecond


class _Trade(msgspec.Struct, gc=False):
    symbol: str
    trade_id: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Result(msgspec.Struct):
    channel: str = ""
    symbol: str = ""


class _Message(msgspec.Struct):
    channel: str = ""
    method: str = ""
    success: bool = True
    symbol: str = ""
    error: str = ""
    data: msgspec.Raw = msgspec.Raw(b"[]")
    result: _Result | None = None


_message = msgspec.json.Decoder(_Message)
_trades = msgspec.json.Decoder(list[_Trade])


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

    def subscribe_frames(self, products: Sequence[str]) -> list[bytes]:
        """One frame. The snapshot has the last fifty trades, among them perhaps those missed between connections."""
        return [self._frame("subscribe", products)]

    def resubscribe_frames(self, products: Sequence[str]) -> list[bytes]:
        """One frame that unsubscribes, one that subscribes."""
        return [self._frame("unsubscribe", products), self._frame("subscribe", products)]

    def _frame(self, method: str, products: Sequence[str]) -> bytes:
        params: dict[str, Any] = {"channel": self.trades_channel, "symbol": [venues_own(each) for each in products]}
        if method == "subscribe":
            params["snapshot"] = True
        return msgspec.json.encode({"method": method, "params": params})

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
        if message.error and "already subscribed" not in message.error.lower():
            return Refusal(f"{message.error} {named}".strip(), product=f"{named}@kraken" if named else "")
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
        if channel in _OTHER_CHANNELS or (channel is None and ("method" in message or "error" in message)):
            return []
        return NOT_A_MESSAGE if channel is None else "unknown channel"

    def page(self, value: Any, symbol: str) -> Trades:
        """Rows of price, size, time in seconds, taker's side, order type, text, and id; beside them `last`."""
        result = value.get("result") if isinstance(value, dict) else None
        rows = [rows for name, rows in result.items() if name != "last"] if isinstance(result, dict) else []
        if len(rows) != 1 or not isinstance(rows[0], list) or not all(_is_row(row) for row in rows[0]):
            return NOT_A_PAGE
        return [VenueTrade(symbol, row[_ID], row[0], row[1], _SIDES.get(str(row[3]), ""), row[2], 6) for row in rows[0]]

    def error(self, value: Any) -> str | None:
        """Errors come with status 200 as well."""
        errors = value.get("error") if isinstance(value, dict) else None
        return ", ".join(map(str, errors)) if isinstance(errors, list) and errors else None

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

    def history(
        self, symbol: str, after: int | None, limit: int
    ) -> Generator[tuple[str, Query], Sequence[tuple[int, int]], None]:
        """REST pages by time alone, forwards: the time of an id is looked for between those of known trades."""
        pair, known = _pair(symbol), self._known.setdefault(symbol, [])
        wanted = 0 if after is None else max(after - limit, 1)
        for attempt in range(_REQUESTS_MAX):
            query: dict[str, int | str] = {"pair": pair, "count": _PAGE_MAX}
            if known and after is not None and (attempt or known[-1][0] > wanted):
                query["since"] = _since(known, wanted, attempt)
            page = yield "/0/public/Trades", query
            for end in {page[0], page[-1]} if page else ():
                at = bisect_left(known, end)
                if known[at : at + 1] != [end]:
                    known.insert(at, end)
            if after is None or not page:
                return
            first, last = page[0][0], page[-1][0]
            if query.get("since") == 0:
                wanted = max(wanted, first)  # there are no older ones
            is_newest = "since" not in query or len(page) < _PAGE_MAX
            if first <= wanted and (last >= after - 1 or is_newest):
                return


def _pair(symbol: str) -> str:
    base, _, quote = symbol.partition("/")
    return _REST_NAMES.get(base, base) + _REST_NAMES.get(quote, quote)


def _is_row(row: Any) -> bool:
    return isinstance(row, list) and len(row) > _ID


def _since(known: Sequence[tuple[int, int]], wanted: int, attempt: int) -> int:
    """A time (ns UTC) from which a page should begin with an id up to `wanted`, but close to it."""
    at = bisect_right(known, wanted, key=lambda trade: trade[0])
    if at == 0:
        (first, first_ns), (last, last_ns) = known[0], known[min(1, len(known) - 1)]
        pace_ns = (last_ns - first_ns) // max(last - first, 1) or 1_000_000
        return max(first_ns - (first - wanted + _MARGIN) * (pace_ns << attempt), 0)
    below, below_ns = known[at - 1]
    if at == len(known) or wanted - below < _PAGE_MAX // 2:
        return below_ns - _BEFORE_NS
    above, above_ns = known[at]
    if attempt % 3 == 2:
        return (below_ns + above_ns) // 2
    aim = max(wanted - _MARGIN, below)
    return below_ns + (above_ns - below_ns) * (aim - below) // (above - below) - _BEFORE_NS
