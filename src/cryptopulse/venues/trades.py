"""How each venue beside Coinbase writes its trades, without I/O.

A venue is a function: a decoded message → its trades, [] for a message of another kind, or why it is refused. JSON
numbers come as texts, as they are written; values are checked by the caller (`engine/exact.py`).

A product of such a venue is called `SYMBOL@venue` in the tables, the symbol as the venue writes it: `BTC/USD@kraken`.
Messages have the key `@venue`, which tells the parser whose they are; Coinbase's products and messages have no `@`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple


class VenueTrade(NamedTuple):
    """The values of a trade as the venue wrote them, of any type."""

    symbol: Any
    trade_id: Any
    price: Any
    size: Any
    taker_side: str
    """buy or sell; anything else is refused."""
    time: Any
    time_power: int | None = None
    """The power of ten that makes µs since 1970 of `time`; None: `time` is ISO 8601."""


NOT_A_MESSAGE: Final = "not a message of this venue"

Trades = list[VenueTrade] | str


def _count(value: Any) -> str | None:
    """`value` if it is a whole number, as these venues write times."""
    return value if isinstance(value, str) and value.isascii() and value.isdigit() else None


def kraken(message: Mapping[str, Any]) -> Trades:
    """Kraken's WebSocket v2: the channel `trade` has one to many trades, a snapshot the last fifty."""
    channel = message.get("channel")
    if channel == "trade":
        rows = message.get("data")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            return "a trade message without its trades"
        return [
            VenueTrade(row.get("symbol"), row.get("trade_id"), row.get("price"), row.get("qty"), str(row.get("side")),
                       row.get("timestamp"))
            for row in rows
        ]  # fmt: skip
    if channel in _KRAKEN_CHANNELS or (channel is None and ("method" in message or "error" in message)):
        return []
    return NOT_A_MESSAGE if channel is None else "unknown channel"


_KRAKEN_CHANNELS = ("heartbeat", "status", "book", "level3", "ticker", "ohlc", "instrument")


def binance(message: Mapping[str, Any]) -> Trades:
    """Binance's stream `@trade`, alone or in a combined stream. Aggregates have ids of their own and are left out."""
    return _binance(message, "trade", "t")


def binance_aggregates(message: Mapping[str, Any]) -> Trades:
    """Binance's stream `@aggTrade`: a row for the fills of an order at one price, by the ids of aggregates."""
    return _binance(message, "aggTrade", "a")


def _binance(message: Mapping[str, Any], kind: str, number: str) -> Trades:
    data = message.get("data") if "stream" in message else message
    if isinstance(data, list):  # the stream of all tickers
        others = [row.get("e") for row in data if isinstance(row, dict)]
        is_known = len(others) == len(data) and all(one != kind and one in _BINANCE_EVENTS for one in others)
        return [] if is_known else "unknown message type"
    if not isinstance(data, dict):
        return NOT_A_MESSAGE
    event = data.get("e")
    if event == kind:
        time = _count(data.get("T"))
        is_micros = time is not None and len(time.lstrip("0")) >= _MICROS_DIGITS
        side = {True: "sell", False: "buy"}.get(data["m"], "") if isinstance(data.get("m"), bool) else ""
        power = 0 if is_micros else 3
        return [VenueTrade(data.get("s"), data.get(number), data.get("p"), data.get("q"), side, time, power)]
    if event is None:  # an answer, an error, or the best prices
        return [] if any(name in data for name in ("result", "code", "error", "u", "lastUpdateId")) else NOT_A_MESSAGE
    return [] if event in _BINANCE_EVENTS else "unknown message type"


_MICROS_DIGITS = 15  # as milliseconds this would be after the year 5000
_BINANCE_EVENTS = (
    "trade", "aggTrade", "blockTrade", "kline", "depthUpdate", "24hrTicker", "24hrMiniTicker", "1hTicker", "4hTicker",
    "1dTicker", "bookTicker", "avgPrice", "serverShutdown",
)  # fmt: skip


def okx(message: Mapping[str, Any]) -> Trades:
    """OKX's channels `trades-all`, one trade a message, and `trades`, if its message stands for one trade.

    One that stands for several has the last one's id and the size of all: the others' ids could never be held.
    """
    arg = message.get("arg")
    channel = arg.get("channel") if isinstance(arg, dict) else None
    if "event" in message:
        return []
    if not isinstance(channel, str):
        return NOT_A_MESSAGE
    if channel not in ("trades", "trades-all"):
        return []
    rows = message.get("data")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return "a trade message without its trades"
    if any(row.get("count", "1") != "1" for row in rows):
        return "several trades in one; the channel trades-all has each"
    return [
        VenueTrade(row.get("instId"), row.get("tradeId"), row.get("px"), row.get("sz"), str(row.get("side")),
                   _count(row.get("ts")), 3)
        for row in rows
    ]  # fmt: skip


COINBASE: Final = "coinbase"

VENUES: Final[Mapping[str, Callable[[Mapping[str, Any]], Trades]]] = {
    "kraken": kraken,
    "binance": binance,
    "binance-aggregates": binance_aggregates,
    "okx": okx,
}
"""Venue → how its messages are read."""
