"""The Exchange feed: one message for each trade, and a heartbeat a second for each product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from cryptopulse.venues import (
    Dialect,
    FeedMessage,
    FrameKind,
    Heartbeat,
    Other,
    Refusal,
    Subscriptions,
    TradesMessage,
    Unreadable,
)

TradeId = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Fields(msgspec.Struct, gc=False):
    """The fields that the session needs; all others are skipped without decoding."""

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


class ExchangeDialect(Dialect):
    """Dialect of the Exchange feed."""

    default_url = "wss://ws-feed.exchange.coinbase.com"
    venue = ""
    trades_channel = "matches"
    heartbeat_channel = "heartbeat"
    heartbeats_name_products = True
    heartbeat_request = None
    answers_each_product = False
    resubscribed_at_once_max = 10
    """100 messages a second are allowed."""
    connects_per_second = 4.0
    """8 a second are allowed, and bursts of 20."""

    def takes(self, product: str) -> bool:
        """All products of Coinbase."""
        return "@" not in product

    def check_products(self, products: Sequence[str]) -> None:
        """Accepts all products."""

    def frame(self, kind: FrameKind, products: Sequence[str]) -> bytes:
        """One frame for both channels."""
        channels = [self.trades_channel, self.heartbeat_channel]
        return msgspec.json.encode({"type": kind, "product_ids": list(products), "channels": channels})

    def read(self, raw: bytes) -> FeedMessage:
        """See `Dialect.read`."""
        try:
            fields = _fields.decode(raw)
            product = fields.product_id
            message: FeedMessage
            if fields.type in {"match", "last_match"}:
                if fields.trade_id is None or not product:
                    message = Unreadable(f"{fields.type} without trade_id or product_id", product=product)
                else:
                    message = TradesMessage(((product, fields.trade_id),), product=product)
            elif fields.type == "heartbeat":
                message = Heartbeat(fields.last_trade_id, product=product)
            elif fields.type == "subscriptions":
                channels = _subscriptions.decode(raw).channels
                message = Subscriptions({channel.name: frozenset(channel.product_ids) for channel in channels})
            elif fields.type == "error":
                said = _error.decode(raw)
                message = Refusal(": ".join(filter(None, (said.message, said.reason))))
            else:
                message = Other(product=product)
        except (ValueError, RecursionError) as error:  # msgspec's errors and bad UTF-8 are ValueErrors
            return Unreadable(str(error))
        return message
