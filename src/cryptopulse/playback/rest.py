"""REST of the exchange, from the lake: products, pages of trades, candles; of the time that has been played."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http import HTTPStatus

import msgspec

from cryptopulse.errors import ConfigurationError, CryptoPulseError
from cryptopulse.lake.dataset import Lake
from cryptopulse.lake.scan import moment_of
from cryptopulse.lake.tables import SILVER
from cryptopulse.playback.window import Window
from cryptopulse.simulator.messages import encode
from cryptopulse.simulator.wire import HttpRequest, HttpResponse
from cryptopulse.text import MICROS, decimal_text, parse_time

_PAGE_MAX = 1000
_ID_END = 2**62 + 1
_CANDLES_MAX = 300
_CANDLE = ("low", "high", "open", "close", "volume")
_GRANULARITIES = (60, 300, 900, 3600, 21600, 86400)
_MAKER = {"BUY": "sell", "SELL": "buy"}
_TRADES = f"""
    SELECT event_time, trade_id, price, trade_size, side FROM {SILVER.qualified}
    WHERE symbol = $symbol AND trade_id < $after AND trade_id > $before AND event_time <= $now
    ORDER BY trade_id DESC LIMIT $rows
"""  # noqa: S608 - a name of our own


class Rest:
    """Answers requests; each takes some tens of milliseconds, so call it in a thread."""

    def __init__(self, lake: Lake, window: Window) -> None:
        """`window`: its products and its time."""
        self._lake = lake
        self._window = window

    def respond(self, request: HttpRequest) -> HttpResponse:
        """Answers one request."""
        try:
            found = self._answer(request)
        except (ValueError, ConfigurationError) as error:
            return HttpResponse(encode({"message": str(error)}), HTTPStatus.BAD_REQUEST)
        except CryptoPulseError as error:
            return HttpResponse(encode({"message": str(error)}), HTTPStatus.SERVICE_UNAVAILABLE)
        return found or HttpResponse(encode({"message": "NotFound"}), HTTPStatus.NOT_FOUND)

    def _answer(self, request: HttpRequest) -> HttpResponse | None:
        known = self._window.products
        match request.path.strip("/").split("/"):
            case ["products"]:
                return HttpResponse(encode([_product_row(name) for name in known]))
            case ["products", name] if name in known:
                return HttpResponse(encode(_product_row(name)))
            case ["products", name, "trades"] if name in known:
                return self._trades(name, request.query)
            case ["products", name, "candles"] if name in known:
                return self._candles(name, request.query)
        return None

    def _trades(self, symbol: str, query: Mapping[str, str]) -> HttpResponse:
        """A page, newest first: the newest ids below `after`, without those up to `before`."""
        wanted = {
            "symbol": symbol,
            "after": min(int(query.get("after", _ID_END)), _ID_END),
            "before": min(max(int(query.get("before", 0)), 0), _ID_END),
            "rows": min(max(int(query.get("limit", _PAGE_MAX)), 1), _PAGE_MAX),
            "now": moment_of(self._window.now_us),
        }
        rows = [
            {
                "time": row["event_time"].strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                "trade_id": row["trade_id"],
                "price": decimal_text(row["price"]),
                "size": decimal_text(row["trade_size"]),
                "side": _MAKER[row["side"]],
            }
            for row in self._lake.sql(_TRADES, wanted)
        ]
        headers = {}
        if rows:
            headers = {"cb-before": str(rows[0]["trade_id"]), "cb-after": str(rows[-1]["trade_id"])}
        return HttpResponse(encode(rows), headers=headers)

    def _candles(self, symbol: str, query: Mapping[str, str]) -> HttpResponse:
        """Rows of [time, low, high, open, close, volume], newest first, of spans that have been played to their end."""
        grain = int(query.get("granularity", 60))
        if grain not in _GRANULARITIES:
            raise ValueError("Unsupported granularity")
        start, end = (_moment(query.get(name)) for name in ("start", "end"))
        # Only what is over: a stored bar has the trades that are still to come. The end is included.
        played = moment_of(max(self._window.now_us - grain * MICROS, 0))
        until = played if end is None else min(end, played)
        if start is not None and end is not None and start > end:
            raise ValueError("start must not be after end")
        if start is not None and start > until:
            return HttpResponse(b"[]")
        bars = self._lake.bars(symbol, start, until + timedelta(microseconds=1), grain=grain)
        rows = [
            [int(bar["window_start"].timestamp()), *(_number(bar[name]) for name in _CANDLE)]
            for bar in bars.reversed().limit(_CANDLES_MAX)
        ]
        return HttpResponse(encode(rows))


def _product_row(product: str) -> dict[str, object]:
    base, _, quote = product.partition("-")
    row = {"id": product, "base_currency": base, "quote_currency": quote.rpartition("-")[2], "display_name": product}
    return {**row, "status": "online", "trading_disabled": False}


def _number(value: Decimal) -> msgspec.Raw:
    """A decimal as JSON's number, with its digits."""
    return msgspec.Raw(decimal_text(value).encode())


def _moment(text: str | None) -> datetime | None:
    """A time in seconds since 1970 or as ISO 8601. Raises ValueError for neither."""
    if text is None:
        return None
    try:
        return datetime.fromtimestamp(int(text), UTC) if text.isdecimal() else parse_time(text)
    except (ConfigurationError, OverflowError) as error:
        raise ValueError(str(error)) from error
