"""The same market as Kraken, Binance and OKX would tell it: their feeds, and the trades of their REST interfaces.

A product has the same trades, ids and prices at each; only symbols and words differ. Formats follow recordings of the
real feeds and the venues' documentation.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from cryptopulse.simulator.candles import candles_between, filled
from cryptopulse.simulator.market import Trades
from cryptopulse.simulator.messages import decimal_text, encode, fixed_text
from cryptopulse.simulator.session import ClientSession
from cryptopulse.simulator.venue import Batch, SimulatedVenue
from cryptopulse.simulator.wire import ServerConnection, frame

_KRAKEN_TRADES_MAX = 5  # in a message
_KRAKEN_SNAPSHOT = 50
_KRAKEN_PAGE_MAX = _BINANCE_PAGE_MAX = 1000
_OKX_PAGE_MAX = 100
_MICROS = 1_000_000


def kraken_symbol(product_id: str) -> str:
    """BTC/USD."""
    return product_id.replace("-", "/")


def binance_symbol(product_id: str) -> str:
    """BTCUSD."""
    return product_id.replace("-", "")


SYMBOLS: Mapping[str, Callable[[str], str]] = {"kraken": kraken_symbol, "binance": binance_symbol, "okx": str}
"""Venue → how it calls a product of the simulated market."""


def _values(venue: SimulatedVenue, trades: Trades) -> Iterator[tuple[int, int, str, str, bool, int]]:
    """(number of the product, id, price, size, whether the taker bought, time in µs UTC) of each trade."""
    columns = (trades[name].tolist() for name in ("product", "trade_id", "price", "size", "maker_sell", "time_us"))
    for number, trade_id, price, size, taker_bought, time_us in zip(*columns, strict=True):
        product = venue.products[number]
        prices = decimal_text(price, product.price_decimals), decimal_text(size, product.size_decimals)
        yield number, trade_id, *prices, taker_bought, time_us + venue.writer.start_us


class VenueSession(ClientSession):
    """A connection that speaks another venue's dialect."""

    symbol: Callable[[str], str]

    def __init__(
        self, socket: ServerConnection, venue: SimulatedVenue, number: int, changed: Callable[[ClientSession], None]
    ) -> None:
        """See ClientSession."""
        super().__init__(socket, venue, number, changed)
        self._symbols = [type(self).symbol(product.product_id) for product in venue.products]
        self._numbers = {symbol: number for number, symbol in enumerate(self._symbols)}

    @abstractmethod
    def messages(self, trades: Trades) -> list[bytes]:
        """The messages that tell of `trades`."""

    def publish(self, batch: Batch) -> None:
        """Sends the trades of subscribed products."""
        wanted = self.traded[batch.product]
        if wanted.any():
            self.deliver([frame(message) for message in self.messages(batch.trades[wanted])])

    def flush(self) -> None:
        """Does nothing: trades are sent at once."""

    def heartbeat(self, counter: int) -> None:
        """Does nothing: the client asks."""

    def _say(self, message: object) -> None:
        self.send(frame(encode(message)))

    def _decoded(self, message: bytes) -> Mapping[str, Any]:
        try:
            request = msgspec.json.decode(message)
        except ValueError:
            request = None
        return request if isinstance(request, dict) else {}


class KrakenSession(VenueSession):
    """Kraken's WebSocket v2, channel `trade`."""

    symbol = staticmethod(kraken_symbol)

    def on_message(self, message: bytes) -> None:
        """Subscribes or unsubscribes, with an answer for each symbol; answers pings."""
        request = self._decoded(message)
        method, params = request.get("method"), request.get("params")
        if method == "ping":
            self._say({"method": "pong"})
            return
        if method not in ("subscribe", "unsubscribe") or not isinstance(params, dict):
            self._say({"error": "Malformed request", "method": method, "success": False})
            return
        if self.subscribed_at is None:
            self._say({"channel": "status", "type": "update", "data": [{"system": "online", "api_version": "v2"}]})
        for symbol in params.get("symbol", []):
            number = self._numbers.get(symbol)
            if number is None or (method == "subscribe" and self.traded[number]):
                why = "Already subscribed" if number is not None else f"Currency pair not supported {symbol}"
                self._say({"error": why, "method": method, "success": False, "symbol": symbol})
                continue
            self.traded[number] = method == "subscribe"
            result = {"channel": "trade", "snapshot": bool(params.get("snapshot")), "symbol": symbol}
            self._say({"method": method, "result": result, "success": True})
            newest = self.venue.history.newest(number, _KRAKEN_SNAPSHOT)
            if method == "subscribe" and params.get("snapshot") and len(newest):
                self.send(frame(self._message("snapshot", self._rows(newest))))
        self.subscriptions_changed()

    def heartbeat(self, counter: int) -> None:  # noqa: ARG002 - it is not counted
        """Sends the connection's heartbeat."""
        if self.subscribed_at is not None:
            self._say({"channel": "heartbeat"})

    def messages(self, trades: Trades) -> list[bytes]:
        """Up to five trades of a product in each."""
        found = []
        for number in np.unique(trades["product"]).tolist():
            rows = self._rows(trades[trades["product"] == number])
            most = _KRAKEN_TRADES_MAX
            found += [self._message("update", rows[at : at + most]) for at in range(0, len(rows), most)]
        return found

    def _rows(self, trades: Trades) -> list[str]:
        """JSON of each trade, with numbers that a program for floats could not keep."""
        times = self.venue.writer.times(trades)
        return [
            f'{{"symbol":"{self._symbols[number]}","side":"{"buy" if taker_bought else "sell"}","price":{price},'
            f'"qty":{size},"ord_type":"limit","trade_id":{trade_id},"timestamp":"{time}Z"}}'
            for (number, trade_id, price, size, taker_bought, _), time in zip(
                _values(self.venue, trades), times, strict=True
            )
        ]

    def _message(self, kind: str, rows: Sequence[str]) -> bytes:
        return f'{{"channel":"trade","type":"{kind}","data":[{",".join(rows)}]}}'.encode()


class BinanceSession(VenueSession):
    """Binance's streams `@trade`, subscribed by messages. A stream of no symbol is accepted, too, and stays silent."""

    symbol = staticmethod(binance_symbol)

    def on_message(self, message: bytes) -> None:
        """Subscribes, unsubscribes, or lists the streams."""
        request = self._decoded(message)
        streams = self._channels.setdefault("trade", {})
        match request.get("method"), request.get("params"):
            case "LIST_SUBSCRIPTIONS", _:
                self._say({"result": list(streams), "id": request.get("id")})
                return
            case "SUBSCRIBE", list(named):
                streams.update(dict.fromkeys(map(str, named)))
            case "UNSUBSCRIBE", list(named):
                for stream in named:
                    streams.pop(stream, None)
            case method, _:
                self._say({"code": 2, "msg": f"Invalid request: unknown variant `{method}`"})
                return
        for symbol, number in self._numbers.items():
            self.traded[number] = f"{symbol.lower()}@trade" in streams
        self._say({"result": None, "id": request.get("id")})
        self.subscriptions_changed()

    def messages(self, trades: Trades) -> list[bytes]:
        """A trade in each."""
        return [
            f'{{"e":"trade","E":{time_us // 1000},"s":"{self._symbols[number]}","t":{trade_id},"p":"{price}",'
            f'"q":"{size}","T":{time_us // 1000},"m":{"false" if taker_bought else "true"},"M":true}}'.encode()
            for number, trade_id, price, size, taker_bought, time_us in _values(self.venue, trades)
        ]


class OkxSession(VenueSession):
    """OKX's channel `trades-all`."""

    symbol = staticmethod(str)

    def on_message(self, message: bytes) -> None:
        """Subscribes or unsubscribes, with an answer for each product; answers pings, which are no JSON."""
        if message == b"ping":
            self.send(frame(b"pong"))
            return
        request = self._decoded(message)
        kind = request.get("op")
        if kind not in ("subscribe", "unsubscribe"):
            self._say({"event": "error", "code": "60012", "msg": "Invalid request"})
            return
        for arg in request.get("args", []):
            number = self._numbers.get(arg.get("instId"))
            if arg.get("channel") != "trades-all" or number is None:
                text = f"channel:{arg.get('channel')},instId:{arg.get('instId')} doesn't exist"
                self._say({"event": "error", "code": "60018", "msg": f"Wrong URL or {text}"})
                continue
            self.traded[number] = kind == "subscribe"
            self._say({"event": kind, "arg": arg})
        self.subscriptions_changed()

    def messages(self, trades: Trades) -> list[bytes]:
        """A trade in each."""
        found = []
        for row in okx_rows(self.venue, trades):
            arg = {"channel": "trades-all", "instId": row["instId"]}
            found.append(encode({"arg": arg, "data": [row]}))
        return found


def okx_rows(venue: SimulatedVenue, trades: Trades) -> list[dict[str, str]]:
    """Trades as on OKX's feed and pages."""
    return [
        {
            "instId": venue.products[number].product_id,
            "tradeId": str(trade_id),
            "px": price,
            "sz": size,
            "side": "buy" if taker_bought else "sell",
            "source": "0",
            "ts": str(time_us // 1000),
        }
        for number, trade_id, price, size, taker_bought, time_us in _values(venue, trades)
    ]


class NoSuchSymbol(Exception):
    """The request is about a symbol that is not traded here; its text is the venue's answer."""


def kraken_page(venue: SimulatedVenue, query: Mapping[str, str], newest: Callable[[int], int]) -> bytes:
    """`/0/public/Trades`: trades after a time (ns UTC), the oldest first. `newest`: product → its newest id shown."""
    pair, count = query.get("pair", ""), min(int(query.get("count", _KRAKEN_PAGE_MAX)), _KRAKEN_PAGE_MAX)
    number = _kraken_number(venue, pair)
    held = venue.history.between(number, 0, newest(number))
    first = max(len(held) - count, 0)
    if "since" in query:
        first = int(np.searchsorted((held["time_us"] + venue.writer.start_us) * 1000, int(query["since"]), "right"))
    product, page = venue.products[number], held[first : first + count]
    rows = [
        f'["{fixed_text(price, product.price_decimals)}","{fixed_text(size, product.size_decimals)}",'
        f'{time_us // _MICROS}.{time_us % _MICROS:06d},"{"b" if taker_bought else "s"}","l","",{trade_id}]'
        for trade_id, price, size, taker_bought, time_us in zip(
            *(page[name].tolist() for name in ("trade_id", "price", "size", "maker_sell")),
            (page["time_us"] + venue.writer.start_us).tolist(),
            strict=True,
        )
    ]
    last = (int(page["time_us"][-1]) + venue.writer.start_us) * 1000 if len(page) else query.get("since", 0)
    return f'{{"error":[],"result":{{"{pair}":[{",".join(rows)}],"last":"{last}"}}}}'.encode()


def binance_page(venue: SimulatedVenue, query: Mapping[str, str], newest: Callable[[int], int]) -> bytes:
    """`/api/v3/historicalTrades`, from an id on, and `/api/v3/trades`, the newest: the oldest first."""
    number, limit = _binance_number(venue, query), min(int(query.get("limit", 500)), _BINANCE_PAGE_MAX)
    if "fromId" in query:
        page = venue.history.between(number, int(query["fromId"]), newest(number))[:limit]
    else:
        page = venue.history.below(number, newest(number) + 1, limit)
    rows = [
        {
            "id": trade_id,
            "price": price,
            "qty": size,
            "quoteQty": "0",
            "time": time_us // 1000,
            "isBuyerMaker": not taker_bought,
            "isBestMatch": True,
        }
        for _, trade_id, price, size, taker_bought, time_us in _values(venue, page)
    ]
    return encode(rows)


def okx_page(venue: SimulatedVenue, query: Mapping[str, str], newest: Callable[[int], int]) -> bytes:
    """`/api/v5/market/history-trades`, below an id, and `/api/v5/market/trades`, the newest: the newest first."""
    number = _okx_number(venue, query)
    after = min(int(query.get("after", 2**62)), newest(number) + 1)
    page = venue.history.below(number, after, min(int(query.get("limit", _OKX_PAGE_MAX)), _OKX_PAGE_MAX))
    return encode({"code": "0", "msg": "", "data": okx_rows(venue, page)[::-1]})


def kraken_candles(venue: SimulatedVenue, query: Mapping[str, str], _newest: Callable[[int], int]) -> bytes:
    """`/0/public/OHLC`: the newest 720 minutes up to the last trade, those without trades too."""
    pair = query.get("pair", "")
    newest = venue.history.newest(_kraken_number(venue, pair), 1)["time_us"] + venue.writer.start_us
    now = int(newest.max(initial=0)) // _MICROS
    rows = [
        f'[{c.start},"{c.open}","{c.high}","{c.low}","{c.close}","0","{c.volume}",{c.trades}]'
        for c in filled(candles_between(venue, _kraken_number(venue, pair), now - 720 * 60, now))
        if c.start > int(query.get("since", 0))
    ]
    return f'{{"error":[],"result":{{"{pair}":[{",".join(rows)}],"last":0}}}}'.encode()


def binance_candles(venue: SimulatedVenue, query: Mapping[str, str], _newest: Callable[[int], int]) -> bytes:
    """`/api/v3/klines`: minutes in order, those without trades too."""
    ends = int(query["startTime"]) // 1000, int(query["endTime"]) // 1000
    found = filled(candles_between(venue, _binance_number(venue, query), *ends))[: int(query.get("limit", 500))]
    return encode(
        [
            [c.start * 1000, c.open, c.high, c.low, c.close, c.volume, c.start * 1000 + 59_999, "0", c.trades]
            for c in found
        ]
    )


def okx_candles(venue: SimulatedVenue, query: Mapping[str, str], _newest: Callable[[int], int]) -> bytes:
    """`/api/v5/market/history-candles`: minutes before a time, the newest first."""
    last, limit = int(query["after"]) // 1000 - 1, min(int(query.get("limit", 100)), 100)
    found = candles_between(venue, _okx_number(venue, query), 0, last)[-limit:]
    rows = [[str(c.start * 1000), c.open, c.high, c.low, c.close, c.volume, "0", "0", "1"] for c in reversed(found)]
    return encode({"code": "0", "msg": "", "data": rows})


def _kraken_number(venue: SimulatedVenue, pair: str) -> int:
    for number, product in enumerate(venue.products):
        name = kraken_symbol(product.product_id).replace("BTC", "XBT").replace("DOGE", "XDG")
        if name.replace("/", "") == pair:
            return number
    raise NoSuchSymbol('{"error":["EQuery:Unknown asset pair"]}')


def _binance_number(venue: SimulatedVenue, query: Mapping[str, str]) -> int:
    for number, product in enumerate(venue.products):
        if binance_symbol(product.product_id) == query.get("symbol"):
            return number
    raise NoSuchSymbol('{"code":-1121,"msg":"Invalid symbol."}')


def _okx_number(venue: SimulatedVenue, query: Mapping[str, str]) -> int:
    number = venue.numbers.get(query.get("instId", ""))
    if number is None:
        raise NoSuchSymbol('{"code":"51001","data":[],"msg":"Instrument ID doesn\'t exist"}')
    return number


PAGES: Mapping[str, Callable[[SimulatedVenue, Mapping[str, str], Callable[[int], int]], bytes]] = {
    "0/public/Trades": kraken_page,
    "api/v3/historicalTrades": binance_page,
    "api/v3/trades": binance_page,
    "api/v5/market/history-trades": okx_page,
    "api/v5/market/trades": okx_page,
    "0/public/OHLC": kraken_candles,
    "api/v3/klines": binance_candles,
    "api/v5/market/history-candles": okx_candles,
}
"""Path of a venue's REST interface → its answer."""
