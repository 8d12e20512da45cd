"""The Exchange feed: one message for each trade, and a heartbeat a second for each product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from cryptopulse.feed.protocol import Heartbeat, Message, Other, Refusal, Subscriptions, Trades, Unreadable

TradeId = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Fields(msgspec.Struct, gc=False):
    """The fields that the session needs; all others are passed over without being decoded."""

    type: str
    product_id: str = ""
    trade_id: TradeId | None = None
    last_trade_id: TradeId = 0


class _Channel(msgspec.Struct):
    name: str
    product_ids: list[str] = []


class _Subscriptions(msgspec.Struct):
    channels: list[_Channel]


class _Error(msgspec.Struct):
    message: str = ""
    reason: str = ""


_fields = msgspec.json.Decoder(_Fields)
_subscriptions = msgspec.json.Decoder(_Subscriptions)
_error = msgspec.json.Decoder(_Error)


class Exchange:
    """Dialect of the Exchange feed."""

    default_url = "wss://ws-feed.exchange.coinbase.com"
    trades_channel = "matches"
    heartbeat_channel = "heartbeat"

    def takes(self, product: str) -> bool:  # noqa: ARG002 - the protocol's signature
        """Every product may be asked for."""
        return True

    def check_products(self, products: Sequence[str]) -> None:
        """Every product may be asked for."""

    def subscribe_frames(self, products: Sequence[str]) -> list[bytes]:
        """One frame for both channels."""
        channels = [self.trades_channel, self.heartbeat_channel]
        request = {"type": "subscribe", "product_ids": list(products), "channels": channels}
        return [msgspec.json.encode(request)]

    def read(self, raw: bytes) -> Message:
        """What `raw` says. Never raises."""
        try:
            fields = _fields.decode(raw)
            if fields.type in {"match", "last_match"}:
                return _trade(fields)
            return _control(fields, raw)
        except (ValueError, RecursionError) as error:  # msgspec's errors and bad UTF-8 are ValueErrors
            return Unreadable(str(error))


def _trade(fields: _Fields) -> Message:
    product = fields.product_id
    if fields.trade_id is None or not product:
        return Unreadable(f"{fields.type} without trade_id or product_id", product=product)
    return Trades(((product, fields.trade_id),), product=product)


def _control(fields: _Fields, raw: bytes) -> Message:
    if fields.type == "heartbeat":
        return Heartbeat(fields.last_trade_id, product=fields.product_id)
    if fields.type == "subscriptions":
        channels = _subscriptions.decode(raw).channels
        return Subscriptions({channel.name: frozenset(channel.product_ids) for channel in channels})
    if fields.type == "error":
        error = _error.decode(raw)
        return Refusal(": ".join(filter(None, (error.message, error.reason))))
    return Other(product=fields.product_id)
