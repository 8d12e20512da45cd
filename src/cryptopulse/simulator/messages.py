"""The exact texts of Coinbase's servers: trades as messages of both WebSocket feeds and of REST.

Field order and formats follow recordings of the real feeds. Decimals are strings: without trailing zeros on WebSockets,
with at least eight decimals on REST. Times have six decimals of a second, on Advanced Trade without trailing zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import msgspec
import numpy as np
import numpy.typing as npt

from cryptopulse.simulator.market import Trades, mix
from cryptopulse.simulator.products import SimulatedProduct

encode = msgspec.json.encode

_HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
# Positions of the 32 hex digits of an order id among its 36 characters.
_HEX_PLACES = np.array([i for i in range(36) if i not in (8, 13, 18, 23)])


def decimal_text(value: int, decimals: int) -> str:
    """`value` / 10^`decimals` without trailing zeros, as the WebSocket feeds write it: "63514.6"."""
    if not decimals:
        return str(value)
    digits = f"{value:0{decimals + 1}d}"
    return f"{digits[:-decimals]}.{digits[-decimals:]}".rstrip("0").rstrip(".")


def fixed_text(value: int, decimals: int) -> str:
    """`value` / 10^`decimals` with eight decimals or more, as REST writes it: "63514.60000000"."""
    places = max(decimals, 8)
    digits = f"{value * 10 ** (places - decimals):0{places + 1}d}"
    return f"{digits[:-places]}.{digits[-places:]}"


def iso_micros(time_us: int) -> str:
    """UTC time with six decimals from microseconds since 1970: "2026-07-07T22:58:17.164892Z"."""
    seconds, micros = divmod(time_us, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{micros:06d}Z"


def iso_nanos(time_ns: int) -> str:
    """UTC time from ns since 1970, up to nine decimals without trailing zeros, as in Advanced Trade's envelopes."""
    seconds, nanos = divmod(time_ns, 1_000_000_000)
    text = f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"
    return f"{text}.{nanos:09d}".rstrip("0").rstrip(".") + "Z"


def order_ids(keys: npt.NDArray[np.uint64], numbers: npt.NDArray[np.int64], salt: int) -> str:
    """Order ids as one string, 36 characters each: a function of product key, number and salt."""
    source = keys + numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt)
    words = np.empty((len(keys), 2), dtype=">u8")
    words[:, 0] = mix(source)
    words[:, 1] = mix(source ^ np.uint64(0x5851F42D4C957F2D))
    octets = words.view(np.uint8).reshape(len(keys), 16)
    text = np.full((len(keys), 36), ord("-"), dtype=np.uint8)
    nibbles = np.empty((len(keys), 32), dtype=np.uint8)
    nibbles[:, 0::2] = octets >> 4
    nibbles[:, 1::2] = octets & 15
    nibbles[:, 12] = 4  # the version of a random UUID
    nibbles[:, 16] = 8 | (nibbles[:, 16] & 3)
    text[:, _HEX_PLACES] = _HEX[nibbles]
    return text.tobytes().decode("ascii")


class Writer:
    """Writes trades of one market whose trading started at `start_us` (microseconds since 1970)."""

    def __init__(self, products: Sequence[SimulatedProduct], start_us: int) -> None:
        """`products` is the market's catalogue."""
        self.start_us = start_us
        self._names = [product.product_id for product in products]
        self._decimals = [(product.price_decimals, product.size_decimals) for product in products]
        self._keys = np.array([product.key for product in products], dtype=np.uint64)

    def times(self, trades: Trades) -> list[str]:
        """UTC times of trades with six decimals, without the Z."""
        stamps = (trades["time_us"] + self.start_us).astype("datetime64[us]")
        texts: list[str] = np.datetime_as_string(stamps, unit="us").tolist()
        return texts

    def matches(self, trades: Trades, kind: str = "match") -> list[bytes]:
        """Exchange messages, one per trade; `kind` is match or last_match."""
        keys = self._keys[trades["product"]]
        makers = order_ids(keys, trades["trade_id"], 1)
        takers = order_ids(keys, trades["taker"], 2)
        names, decimals = self._names, self._decimals
        columns = (trades[name].tolist() for name in ("trade_id", "product", "price", "size", "maker_sell"))
        messages = []
        at = 0
        for trade_id, product, price, size, maker_sell, sequence, time in zip(
            *columns, trades["sequence"].tolist(), self.times(trades), strict=True
        ):
            price_decimals, size_decimals = decimals[product]
            text = (
                f'{{"type":"{kind}","trade_id":{trade_id},"maker_order_id":"{makers[at : at + 36]}",'
                f'"taker_order_id":"{takers[at : at + 36]}","side":"{"sell" if maker_sell else "buy"}",'
                f'"size":"{decimal_text(size, size_decimals)}",'
                f'"price":"{decimal_text(price, price_decimals)}",'
                f'"product_id":"{names[product]}","sequence":{sequence},"time":"{time}Z"}}'
            )
            messages.append(text.encode("ascii"))
            at += 36
        return messages

    def advanced_trades(self, trades: Trades) -> list[bytes]:
        """Advanced Trade's JSON of each trade, in the order of `trades`."""
        names, decimals = self._names, self._decimals
        columns = (trades[name].tolist() for name in ("trade_id", "product", "price", "size", "maker_sell"))
        texts = []
        for trade_id, product, price, size, maker_sell, time in zip(*columns, self.times(trades), strict=True):
            price_decimals, size_decimals = decimals[product]
            text = (
                f'{{"product_id":"{names[product]}","trade_id":"{trade_id}",'
                f'"price":"{decimal_text(price, price_decimals)}",'
                f'"size":"{decimal_text(size, size_decimals)}",'
                f'"time":"{time.rstrip("0").rstrip(".")}Z","side":"{"SELL" if maker_sell else "BUY"}"}}'
            )
            texts.append(text.encode("ascii"))
        return texts

    def rest_trades(self, trades: Trades, *, fixed: bool = True) -> list[dict[str, object]]:
        """Trades as in REST answers; `fixed` False: price and size as on the WebSocket."""
        write = fixed_text if fixed else decimal_text
        columns = (trades[name].tolist() for name in ("trade_id", "product", "price", "size", "maker_sell"))
        return [
            {
                "trade_id": trade_id,
                "side": "sell" if maker_sell else "buy",
                "size": write(size, self._decimals[product][1]),
                "price": write(price, self._decimals[product][0]),
                "time": f"{time}Z",
            }
            for trade_id, product, price, size, maker_sell, time in zip(*columns, self.times(trades), strict=True)
        ]


def exchange_heartbeat(product_id: str, last_trade_id: int, sequence: int, time_us: int) -> bytes:
    """A heartbeat of one product; `last_trade_id` is 0 before the product's first trade."""
    return (
        f'{{"type":"heartbeat","last_trade_id":{last_trade_id},"product_id":"{product_id}",'
        f'"sequence":{sequence},"time":"{iso_micros(time_us)}"}}'
    ).encode()


def exchange_subscriptions(channels: Mapping[str, Iterable[str]]) -> bytes:
    """The answer to subscribing and unsubscribing: all channels of the connection with their products."""
    listed = [{"name": name, "product_ids": list(ids), "account_ids": None} for name, ids in channels.items()]
    return encode({"type": "subscriptions", "channels": listed})


def exchange_error(message: str, reason: str) -> bytes:
    """A refusal of the Exchange feed."""
    return encode({"type": "error", "message": message, "reason": reason})


def advanced_envelope(channel: str, time_ns: int, sequence_num: int, events: bytes) -> bytes:
    """A message of Advanced Trade around the JSON text of its `events` list."""
    head = f'{{"channel":"{channel}","timestamp":"{iso_nanos(time_ns)}","sequence_num":{sequence_num},"events":'
    return head.encode() + events + b"}"


def advanced_market_trades(kind: str, trades: Iterable[bytes]) -> bytes:
    """The events of market_trades: `kind` is snapshot or update, `trades` are newest first."""
    return b'[{"type":"%s","trades":[%s]}]' % (kind.encode(), b",".join(trades))


def advanced_heartbeat(time_ns: int, counter: int) -> bytes:
    """The events of heartbeats; the time is written as a Go program prints it."""
    seconds, nanos = divmod(time_ns, 1_000_000_000)
    time = f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{nanos:09d}"
    current = f"{time} +0000 UTC m=+{counter}.{nanos:09d}"
    return encode([{"current_time": current, "heartbeat_counter": counter}])
