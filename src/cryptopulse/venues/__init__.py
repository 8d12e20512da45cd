"""The particulars of each exchange feed, without I/O: how to subscribe, and how to read its messages.

A feed is a `Dialect`: it makes the frames that subscribe, and turns a raw message into one of the `FeedMessage` types.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec


class FeedMessage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A decoded raw message, reduced to what the session needs. Each subclass is a kind of message."""

    product: str = ""
    """The product that the whole message is about, "" if there is none or several."""
    sequence_num: int | None = None
    """The message's number within its connection (Advanced Trade)."""


class TradesMessage(FeedMessage, frozen=True, gc=False):
    """A message with trades: (product, trade id) of each, oldest first."""

    ids: tuple[tuple[str, int], ...]


class Heartbeat(FeedMessage, frozen=True, gc=False):
    """A sign of life. On the Exchange feed it names a product and its last trade id (0: not known)."""

    last_trade_id: int = 0


class Subscriptions(FeedMessage, frozen=True):
    """The answer to subscribing: channel → its products."""

    channels: dict[str, frozenset[str]]


class Refusal(FeedMessage, frozen=True):
    """The exchange says that something is wrong."""

    text: str


class Unreadable(FeedMessage, frozen=True):
    """Not a message of this feed at all."""

    reason: str


class Other(FeedMessage, frozen=True, gc=False):
    """A message of a type that the session ignores. New types at the exchange must do no harm."""


class Dialect(Protocol):
    """What differs between the feeds."""

    @property
    def default_url(self) -> str:
        """Public WebSocket address."""

    @property
    def trades_channel(self) -> str:
        """Name of the channel that carries trades, as it stands in the exchange's answer."""

    @property
    def heartbeat_channel(self) -> str:
        """Name of the channel that carries heartbeats, as it stands in the exchange's answer."""

    @property
    def heartbeats_name_products(self) -> bool:
        """Whether each product has its own heartbeat, which carries its last trade id."""

    def takes(self, product: str) -> bool:
        """Whether this feed can subscribe to `product`."""

    def check_products(self, products: Sequence[str]) -> None:
        """Raises ConfigurationError if this feed can't subscribe to one of `products`."""

    def subscribe_frames(self, products: Sequence[str]) -> list[bytes]:
        """Text frames that subscribe to trades and heartbeats of `products`."""

    def resubscribe_frames(self, products: Sequence[str]) -> list[bytes]:
        """Text frames that end the subscription of `products` and begin it again."""

    def read(self, raw: bytes) -> FeedMessage:
        """Decodes `raw`. Never raises: a message that can't be decoded is `Unreadable`."""
