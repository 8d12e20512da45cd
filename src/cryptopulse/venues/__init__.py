"""The particulars of each exchange, without I/O: how to subscribe, how to read its messages, how to fetch its past.

A feed is a `Dialect`: it makes the frames that subscribe, and turns a raw message into one of the `FeedMessage` types.
A venue beside Coinbase is a `Venue`: the dialect of its only feed, and the REST requests for its trades.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias

import msgspec

from cryptopulse.errors import ConfigurationError


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
    """The exchange says that something is wrong; with `product` if it names the one."""

    text: str


class Unreadable(FeedMessage, frozen=True):
    """Not a message of this feed at all."""

    reason: str


class Other(FeedMessage, frozen=True, gc=False):
    """A message of a type that the session ignores. New types at the exchange must do no harm."""


FrameKind: TypeAlias = Literal["subscribe", "unsubscribe"]


class Dialect(Protocol):
    """What differs between the feeds. Products are as in the tables: with their venue, if it is not Coinbase."""

    venue: str
    """Its name; empty for Coinbase's feeds."""
    default_url: str
    """Public WebSocket address."""
    trades_channel: str
    """Name of the channel that carries trades, as it stands in the exchange's answer."""
    heartbeat_channel: str | None
    """Name of the channel that carries heartbeats, as it stands in the exchange's answer; None: heartbeats need no
    subscription."""
    heartbeats_name_products: bool
    """Whether each product has its own heartbeat, which carries its last trade id."""
    heartbeat_request: bytes | None
    """A text frame to send every second, whose answer is a heartbeat."""
    answers_each_product: bool
    """Whether each product of a request is confirmed or refused for itself."""
    resubscribed_at_once_max: int
    """Silent products to subscribe again per second; with two frames each they stay below the exchange's limit."""
    tells_newest: bool = True
    """Whether the newest trade of a product, or its id, comes after subscribing or with heartbeats."""
    connects_per_second: float
    """Attempts to connect, well below the exchange's limit for an IP address."""

    def takes(self, product: str) -> bool:
        """Whether this feed can subscribe to `product`."""

    def check_products(self, products: Sequence[str]) -> None:
        """Raises ConfigurationError if this feed can't subscribe to one of `products`."""

    def frame(self, kind: FrameKind, products: Sequence[str]) -> bytes:
        """The text frame that subscribes to trades and heartbeats of `products`, or ends that."""

    def subscribe_frames(self, products: Sequence[str]) -> list[bytes]:
        """Text frames that subscribe to trades and heartbeats of `products`."""
        return [self.frame("subscribe", products)]

    def resubscribe_frames(self, products: Sequence[str]) -> list[bytes]:
        """Text frames that end the subscription of `products` and begin it again."""
        return [self.frame("unsubscribe", products), self.frame("subscribe", products)]

    def read(self, raw: bytes) -> FeedMessage:
        """Decodes `raw`. Never raises: a message that can't be decoded is `Unreadable`."""


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


Trades: TypeAlias = list[VenueTrade] | str
"""The trades of a message, or why it is refused."""


class AnswerError(NamedTuple):
    """What a venue's REST interface says is wrong."""

    text: str
    kind: Literal["busy", "no product", "other"]


class Candle(msgspec.Struct, frozen=True, array_like=True):
    """One minute of trading; a minute without trades has no candle."""

    time: int
    """Start of the minute, seconds since 1970 (UTC)."""
    low: Decimal
    high: Decimal
    open: Decimal
    close: Decimal
    volume: Decimal
    trade_count: int | None = None
    """Number of trades, if the venue tells it."""


Query: TypeAlias = Mapping[str, int | str]

Page: TypeAlias = Sequence[tuple[int, int | None]]
"""A page's (id, time in ns UTC; None: can't be read), oldest first."""

NOT_A_MESSAGE: Final = "not a message of this venue"
NOT_A_PAGE: Final = "not a page of trades"


class Venue(Dialect, Protocol):
    """A venue beside Coinbase. JSON numbers come as texts, as they are written, or as numbers; the caller checks them.

    A new one must be made for each client of its REST interface: it may remember what it was told.
    """

    heartbeat_channel: str | None = None
    heartbeats_name_products: bool = False
    heartbeat_request: bytes | None = None
    answers_each_product: bool = True
    resubscribed_at_once_max: int = 1

    rest_url: str
    """Public address of its REST interface."""
    requests_per_second: float
    """Its limit for requests of trades from an IP address."""
    page_max: int
    """Most trades to ask for at once."""
    candles_max: int
    """Most candles in an answer."""
    candles_kept: int | None = None
    """How many of the newest minutes have candles; None: all."""

    def takes(self, product: str) -> bool:
        """Its own symbols."""
        return product.endswith(f"@{self.venue}")

    def check_products(self, products: Sequence[str]) -> None:
        """Accepts all: only the venue knows its symbols."""

    def trades(self, message: Mapping[str, Any]) -> Trades:
        """The trades of a decoded message of the feed, [] for a message of another kind."""

    def page(self, value: Any, symbol: str) -> Trades:
        """The trades of a decoded page of the REST interface, about `symbol` (without the venue), oldest first."""

    def error(self, value: Any) -> AnswerError | None:
        """What is wrong by an answer with status 200; None: nothing."""

    def history(self, symbol: str, after: int | None, limit: int) -> Generator[tuple[str, Query], Page, bool]:
        """The REST requests for the newest `limit` trades with ids below `after` (None: of all), as path and query.

        After each request the generator must be sent the page. The last page is the result: all trades from its first
        to its last, of which some may not have been asked for. Returns whether it is the page that was looked for, as
        far as the exchange has it now.
        """

    def candles_request(self, symbol: str, first: int, last: int) -> tuple[str, Query]:
        """Path and query for the candles of the minutes from `first` to `last` (seconds since 1970, UTC)."""

    def candles(self, value: Any) -> list[Candle]:
        """The candles in a decoded answer, without minutes that have no trades. Raises ValueError, TypeError, KeyError,
        IndexError or ArithmeticError when it is none."""


def venues_own(product: str) -> str:
    """A symbol as the venue itself writes it: BTC/USD of BTC/USD@kraken."""
    return product.partition("@")[0]


def check_capitals(products: Sequence[str]) -> None:
    """Raises ConfigurationError for a symbol with small letters."""
    for product in products:
        if (own := venues_own(product)) != own.upper():
            raise ConfigurationError(f"Product {product}: this venue's symbols have capital letters ({own.upper()}).")
