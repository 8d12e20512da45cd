"""The Advanced Trade feed: trades in batches over 250 ms, newest first; heartbeats that name no product; a
number on every message of a connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from cryptopulse.errors import ConfigurationError
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

TRADE_ID_MAX = 2**63 - 1


class _AdvancedTrade(msgspec.Struct, gc=False):
    product_id: str
    trade_id: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,19}$")]


class _AdvancedEvent(msgspec.Struct):
    trades: list[_AdvancedTrade] = []
    subscriptions: dict[str, list[str]] = {}


class _AdvancedEnvelope(msgspec.Struct):
    """The fields that the session needs on every channel. `events` are decoded only for channels that it uses."""

    channel: str = ""
    type: str = ""
    message: str = ""
    sequence_num: Annotated[int, msgspec.Meta(ge=0)] | None = None
    events: msgspec.Raw = msgspec.Raw(b"[]")


_envelope = msgspec.json.Decoder(_AdvancedEnvelope)
_events = msgspec.json.Decoder(list[_AdvancedEvent])


class AdvancedDialect(Dialect):
    """Dialect of the Advanced Trade feed."""

    default_url = "wss://advanced-trade-ws.coinbase.com"
    venue = ""
    trades_channel = "market_trades"
    heartbeat_channel = "heartbeats"
    heartbeats_name_products = False
    heartbeat_request = None
    answers_each_product = False
    resubscribed_at_once_max = 10
    """100 messages a second are allowed."""
    connects_per_second = 4.0
    """8 a second are allowed, and bursts of 20."""

    def takes(self, product: str) -> bool:
        """All products of Coinbase but `-USDC` ones: for these the feed sends the `-USD` trades."""
        return "@" not in product and not product.endswith("-USDC")

    def check_products(self, products: Sequence[str]) -> None:
        """Raises ConfigurationError for products that this feed does not take."""
        for product in products:
            if not self.takes(product):
                right = product.removesuffix("C")
                raise ConfigurationError(
                    f"Product {product}: the Advanced Trade feed answers with the trades of {right}. "
                    f"Ask for {right}, or use the Exchange feed."
                )

    def frame(self, kind: FrameKind, products: Sequence[str]) -> bytes:
        """Trades alone: heartbeats belong to the connection."""
        return msgspec.json.encode({"type": kind, "channel": self.trades_channel, "product_ids": list(products)})

    def subscribe_frames(self, products: Sequence[str]) -> list[bytes]:
        """One frame per channel; heartbeats need no products."""
        heartbeats = msgspec.json.encode({"type": "subscribe", "channel": self.heartbeat_channel})
        return [self.frame("subscribe", products), heartbeats]

    def resubscribe_frames(self, products: Sequence[str]) -> list[bytes]:
        """Unsubscribes the trades first. Heartbeats are only subscribed again."""
        return [self.frame("unsubscribe", products), *self.subscribe_frames(products)]

    def read(self, raw: bytes) -> FeedMessage:
        """See `Dialect.read`."""
        try:
            return _message(_envelope.decode(raw))
        except (ValueError, RecursionError) as error:  # msgspec's errors and bad UTF-8 are ValueErrors
            return Unreadable(str(error))


def _message(envelope: _AdvancedEnvelope) -> FeedMessage:
    number = envelope.sequence_num
    if envelope.channel == "market_trades":
        return _trades(envelope)
    if envelope.channel == "heartbeats":
        return Heartbeat(sequence_num=number)
    if envelope.channel == "subscriptions":
        channels: dict[str, frozenset[str]] = {}
        for event in _events.decode(envelope.events):
            channels |= {name: frozenset(products) for name, products in event.subscriptions.items()}
        return Subscriptions(channels, sequence_num=number)
    if envelope.type == "error":
        return Refusal(envelope.message, sequence_num=number)
    if not envelope.channel:
        return Unreadable("no channel", sequence_num=number)
    return Other(sequence_num=number)


def _trades(envelope: _AdvancedEnvelope) -> FeedMessage:
    """Trades, oldest first: the feed sends them newest first."""
    number = envelope.sequence_num
    trades = [trade for event in _events.decode(envelope.events) for trade in event.trades]
    ids = tuple((trade.product_id, int(trade.trade_id)) for trade in reversed(trades))
    if any(trade_id > TRADE_ID_MAX for _, trade_id in ids):
        return Unreadable("trade_id is beyond 64 bits", sequence_num=number)
    products = {product for product, _ in ids}
    return TradesMessage(ids, product=products.pop() if len(products) == 1 else "", sequence_num=number)
