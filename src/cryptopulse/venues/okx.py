"""OKX: the channel `trades-all`, with a trade a message; REST pages by id, newest first.

Sources: OKX's API v5 (WebSocket overview, all trades channel, trades history).
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal

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

_CHANNELS = ("trades", "trades-all")
_NAMED = re.compile(r"instId:([A-Za-z0-9-]+)")
_KINDS: Mapping[str, Literal["busy", "no product"]] = {"50011": "busy", "51001": "no product"}
_PAGE_MAX = 100


class _Arg(msgspec.Struct, gc=False):
    channel: str = ""
    inst_id: str = msgspec.field(name="instId", default="")


class _OkxTrade(msgspec.Struct, gc=False):
    inst_id: str = msgspec.field(name="instId")
    trade_id: Annotated[str, msgspec.Meta(pattern=r"\A[0-9]{1,18}\Z")] = msgspec.field(name="tradeId")
    count: str = "1"


class _OkxMessage(msgspec.Struct, gc=False):
    event: str = ""
    arg: _Arg = msgspec.field(default_factory=_Arg)
    msg: str = ""
    data: msgspec.Raw = msgspec.Raw(b"[]")


_message = msgspec.json.Decoder(_OkxMessage)
_trades = msgspec.json.Decoder(list[_OkxTrade])


class Okx(Venue):
    """See `Venue`. Its signs of life, `ping` and `pong`, are no JSON."""

    venue = "okx"
    default_url = "wss://ws.okx.com:8443/ws/v5/business"
    trades_channel = "trades-all"
    heartbeat_request = b"ping"
    tells_newest = False
    connects_per_second = 1.0
    """Three a second are allowed."""
    rest_url = "https://www.okx.com"
    requests_per_second = 8.0
    """20 in two seconds are allowed."""
    page_max = _PAGE_MAX
    candles_max = 100

    def frame(self, kind: FrameKind, products: Sequence[str]) -> bytes:
        """One for all."""
        args = [{"channel": self.trades_channel, "instId": venues_own(product)} for product in products]
        return msgspec.json.encode({"op": kind, "args": args})

    def read(self, raw: bytes) -> FeedMessage:
        """See `Dialect.read`."""
        if raw == b"pong":
            return Heartbeat()
        try:
            message = _message.decode(raw)
            if not message.event and message.arg.channel == self.trades_channel:
                found = sorted((f"{row.inst_id}@okx", int(row.trade_id)) for row in _trades.decode(message.data))
                products = {product for product, _ in found}
                return TradesMessage(tuple(found), product=products.pop() if len(products) == 1 else "")
        except (ValueError, RecursionError) as error:  # msgspec's errors and bad UTF-8 are ValueErrors
            return Unreadable(str(error))
        if message.event == "subscribe" and message.arg.inst_id:
            return Subscriptions({self.trades_channel: frozenset([f"{message.arg.inst_id}@okx"])})
        if message.event == "error":
            named = _NAMED.search(message.msg)
            return Refusal(message.msg, product=f"{named[1]}@okx" if named else "")
        return Other() if message.event or message.arg.channel else Unreadable("neither event nor channel")

    def trades(self, message: Mapping[str, Any]) -> Trades:
        """The channels `trades-all`, one trade a message, and `trades`, if its message stands for one trade.

        One that stands for several has the last one's id and the size of all: the others' ids could never be held.
        """
        arg = message.get("arg")
        channel = arg.get("channel") if isinstance(arg, dict) else None
        if "event" in message:
            return []
        if not isinstance(channel, str):
            return NOT_A_MESSAGE
        if channel not in _CHANNELS:
            return []
        rows = message.get("data")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            return "a trade message without its trades"
        if any(row.get("count", "1") != "1" for row in rows):
            return "several trades in one; the channel trades-all has each"
        return [_trade(row, row.get("instId")) for row in rows]

    def page(self, value: Any, symbol: str) -> Trades:
        """`data`: rows as on the feed, newest first."""
        rows = value.get("data") if isinstance(value, dict) and value.get("code") == "0" else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            return NOT_A_PAGE
        return [_trade(row, symbol) for row in reversed(rows)]

    def error(self, value: Any) -> AnswerError | None:
        """Some errors come with status 200."""
        code = value.get("code") if isinstance(value, dict) else None
        if code == "0" or not isinstance(code, str):
            return None
        return AnswerError(f"{code}: {value.get('msg')}", _KINDS.get(code, "other"))

    def candles_request(self, symbol: str, first: int, last: int) -> tuple[str, Query]:
        """Candles before a time (ms), the newest first."""
        query: dict[str, int | str] = {"instId": symbol, "bar": "1m", "limit": (last - first) // 60 + 1}
        return "/api/v5/market/history-candles", query | {"after": (last + 60) * 1000}

    def candles(self, value: Any) -> list[Candle]:
        """Rows of time (ms), open, high, low, close and volume as texts, and more; without a count."""
        found = []
        for time, *texts in value["data"]:
            open_, high, low, close, volume = map(Decimal, texts[:5])
            if volume:
                found.append(Candle(int(time) // 1000, low, high, open_, close, volume))
        return found

    def history(self, symbol: str, after: int | None, limit: int) -> Generator[tuple[str, Query], Page, bool]:
        """REST pages by id, downwards."""
        if after is None:
            yield "/api/v5/market/trades", {"instId": symbol, "limit": limit}
        else:
            yield "/api/v5/market/history-trades", {"instId": symbol, "type": 1, "after": after, "limit": limit}
        return True

    def check_products(self, products: Sequence[str]) -> None:
        """Raises ConfigurationError for small letters: OKX has none."""
        check_capitals(products)


def _trade(row: Mapping[str, Any], symbol: Any) -> VenueTrade:
    time = row.get("ts")
    is_whole = isinstance(time, str) and time.isascii() and time.isdigit()
    side = str(row.get("side"))
    return VenueTrade(symbol, row.get("tradeId"), row.get("px"), row.get("sz"), side, time if is_whole else None, 3)
