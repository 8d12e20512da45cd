"""The session core: what Coinbase says, and what follows from it.

Everything that decides lives here, and nothing that waits: no socket, no clock, no logging. Messages go in
(`receive`), so does time (`tick`) and what happens to the connection (`connected`, `disconnected`); out
come frames to send (`frames_to_send`), events (`take_events`) and the time at which the core wants to be
asked again (`deadline_ns`). All times are integer nanoseconds of one clock that never goes back.

A session belongs to a set of products and outlives its connections: the highest id of each product is kept
(in an `IdWatch`, which sessions of the same products share), so what was traded between two connections is
known to be missing as soon as a new one brings its first trade::

    disconnected ──connected──▶ subscribing ──answer──▶ live
         ▲                          │ no answer           │ no heartbeat
         └───────disconnected───────┴──────▶ stale ◀──────┘

One product that the exchange does not know makes it refuse the whole request. So when a refusal names products of
the session, the others are asked for again without them.

What differs between the two feeds is in a `Dialect`, which turns a raw message into one of the `Message`
types.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from typing import Protocol

import msgspec

from cryptopulse.feed.gaps import NEVER_NS, IdWatch, TradeIds, Witness

SECOND_NS = 1_000_000_000

CONFIRM_NS = 5 * SECOND_NS
"""The exchange cuts connections that do not subscribe within 5 s; an answer that takes longer will not
come."""

HEARTBEAT_NS = SECOND_NS
"""Both feeds promise one heartbeat a second."""

OVERSLEPT_NS = SECOND_NS
"""A tick that comes this much after its deadline says that this process stood still (suspended, swapping),
so that the silence may be its own: heartbeats may wait in the socket."""


TEXT_MAX = 300
"""Characters of foreign text in an event; the whole message is in the log."""


_WORD = re.compile(r"[A-Z0-9]+(?:-[A-Z0-9]+)+")
"""What may be a product id in a refusal, as in "XYZ-USD is not a valid product"."""


class Message(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a raw message says; its subclasses are the kinds that there are."""

    product: str = ""
    """The product that the whole message is about, "" if there is none or several."""
    sequence_num: int | None = None
    """The message's number within its connection (Advanced Trade)."""


class Trades(Message, frozen=True, gc=False):
    """A message with trades: (product, trade id) of each, oldest first."""

    ids: tuple[tuple[str, int], ...]


class Heartbeat(Message, frozen=True, gc=False):
    """A sign of life. On the Exchange feed it names a product and its last trade id (0: not known)."""

    last_trade_id: int = 0


class Subscriptions(Message, frozen=True):
    """The answer to subscribing: channel → its products."""

    channels: dict[str, frozenset[str]]


class Refusal(Message, frozen=True):
    """The exchange says that something is wrong."""

    text: str


class Unreadable(Message, frozen=True):
    """Not a message of this feed at all."""

    reason: str


class Other(Message, frozen=True, gc=False):
    """A message of a type that says nothing to the session; new types must not hurt."""


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

    def takes(self, product: str) -> bool:
        """Whether this feed may be asked for `product`."""

    def check_products(self, products: Sequence[str]) -> None:
        """Raises ConfigurationError if this feed can't be asked for one of `products`."""

    def subscribe_frames(self, products: Sequence[str]) -> list[bytes]:
        """Text frames that subscribe to trades and heartbeats of `products`."""

    def read(self, raw: bytes) -> Message:
        """What `raw` says. Never raises."""


class Subscribed(msgspec.Struct, frozen=True):
    """The exchange confirmed the subscription; `refused` are products that it left out."""

    products: tuple[str, ...]
    refused: tuple[str, ...]


class HoleFound(msgspec.Struct, frozen=True):
    """Trades `first_missing` … `last_missing` of `product` did not come. Each missing id is reported once."""

    product: str
    first_missing: int
    last_missing: int
    witness: Witness


class CameLate(msgspec.Struct, frozen=True):
    """A trade came after all that the work list may be waiting for."""

    product: str
    trade_id: int


class Stale(msgspec.Struct, frozen=True):
    """The connection is of no use any more and must be replaced."""

    reason: str


class ServerError(msgspec.Struct, frozen=True):
    """The exchange sent an error message."""

    text: str


class Malformed(msgspec.Struct, frozen=True):
    """A message that could not be understood. It goes to the log like any other."""

    reason: str
    size: int


class MessagesSkipped(msgspec.Struct, frozen=True):
    """`count` messages of the connection did not come, by their sequence numbers (Advanced Trade). A hint
    of trouble only: whether trades are missing is decided by trade ids."""

    count: int


Event = Subscribed | HoleFound | CameLate | Stale | ServerError | Malformed | MessagesSkipped


class State(Enum):
    """Where a session stands."""

    DISCONNECTED = "disconnected"
    SUBSCRIBING = "subscribing"
    LIVE = "live"
    STALE = "stale"


class Session:
    """One subscription to `products`, over any number of connections one after the other."""

    def __init__(
        self, dialect: Dialect, products: Sequence[str], *, heartbeats_missed_max: int, watch: IdWatch | None = None
    ) -> None:
        """`watch`: what is known of the products' ids, shared with other sessions; unset: this session's own."""
        self.products = tuple(products)
        self.watch = watch or IdWatch(products)
        self.state = State.DISCONNECTED
        self.deadline_ns = NEVER_NS
        """When `tick` is due. It may come earlier after any input; too early a tick does no harm."""
        self.trades = 0
        """Trades received, repeated ones included."""
        self.malformed = 0
        self.messages_skipped = 0
        self._dialect = dialect
        self._silence_ns = heartbeats_missed_max * HEARTBEAT_NS
        self._ids = {product: self.watch.ids[product] for product in self.products}
        self._watch_due_ns = NEVER_NS
        self._next_sequence: int | None = None
        self._channels: dict[str, frozenset[str]] = {}
        self._asked: Sequence[str] = ()
        self._frames: list[bytes] = []
        self.events: list[Event] = []
        """What has happened since `take_events`; to be looked at, not changed."""

    def frames_to_send(self) -> list[bytes]:
        """Text frames to send now, in order; each is handed out once."""
        frames, self._frames = self._frames, []
        return frames

    def take_events(self) -> list[Event]:
        """What has happened since the last call, in order."""
        events, self.events = self.events, []
        return events

    def connected(self, now_ns: int) -> None:
        """A connection is open: subscribe, and expect the answer in time."""
        self.state = State.SUBSCRIBING
        self._frames = []
        self._channels = {}
        self._next_sequence = None
        self._ask(self.products, now_ns)

    def disconnected(self) -> None:
        """The connection is gone. What is known about trade ids stays."""
        self.state = State.DISCONNECTED
        self._frames = []
        self._watch(NEVER_NS)

    def receive(self, raw: bytes, now_ns: int) -> str:
        """Takes a message that will be kept; returns its product id, "" if it is about none or several.

        Only products that were subscribed to are named: a message can't make up others. Never raises.
        """
        message = self._dialect.read(raw)
        if isinstance(message, Trades):
            ids_by_product = self._ids
            for product, trade_id in message.ids:
                ids = ids_by_product.get(product)
                if ids is None:
                    continue
                self.trades += 1
                if trade_id == ids.highest + 1:
                    ids.highest = trade_id
                elif ids.unsettled < trade_id <= ids.highest:
                    ids.repeated += 1
                else:
                    self._out_of_order(product, ids, trade_id, now_ns)
        self._follow(message, raw, now_ns)
        return message.product if message.product in self._ids else ""

    def refused(self, raw: bytes, now_ns: int) -> None:
        """Takes a message that came but could not be kept: it is a sign of life, but its trades are lost.

        For the ids it is as if it had not come, so the loss is found and reported like every other hole.
        """
        message = self._dialect.read(raw)
        if isinstance(message, Trades):
            for product, trade_id in message.ids:
                ids = self._ids.get(product)
                if ids is not None and ids.believable(trade_id):
                    ids.lost(trade_id, now_ns)
                    self._ids_changed(product)
        self._follow(message, raw, now_ns)

    def tick(self, now_ns: int) -> None:
        """Time has passed: reports holes whose grace is over, and a connection that is silent too long."""
        if now_ns >= self.watch.due_ns:
            self._report_holes(now_ns)
        if now_ns >= self._watch_due_ns:
            if now_ns >= self._watch_due_ns + OVERSLEPT_NS:
                self._watch(now_ns + OVERSLEPT_NS)
            else:
                self._become_stale()
        self._set_deadline()

    def _follow(self, message: Message, raw: bytes, now_ns: int) -> None:
        """What a message means for the connection."""
        if message.sequence_num is not None:
            self._check_sequence(message.sequence_num)
        if isinstance(message, Heartbeat):
            self._heartbeat(message, now_ns)
        elif isinstance(message, Subscriptions):
            self._confirm(message, now_ns)
        elif isinstance(message, Refusal):
            self.events.append(ServerError(message.text[:TEXT_MAX]))
            self._ask_for_the_others(message.text, now_ns)
        elif isinstance(message, Unreadable):
            self._unreadable(message.reason, len(raw))
        if now_ns >= self.watch.due_ns:
            self._report_holes(now_ns)
            self._set_deadline()

    def _ask(self, products: Sequence[str], now_ns: int) -> None:
        self._asked = products
        self._frames += self._dialect.subscribe_frames(products)
        self._watch(now_ns + CONFIRM_NS)

    def _ask_for_the_others(self, refusal: str, now_ns: int) -> None:
        """Asks again without the products that a refusal names. With each there are fewer, so it comes to an end."""
        if self.state is not State.SUBSCRIBING:
            return
        named = set(_WORD.findall(refusal))
        others = [product for product in self._asked if product not in named]
        if others and len(others) < len(self._asked):
            self._ask(others, now_ns)

    def _heartbeat(self, message: Heartbeat, now_ns: int) -> None:
        if self.state is State.LIVE:
            self._watch(now_ns + self._silence_ns)
        ids = self._ids.get(message.product)
        if ids is not None and message.last_trade_id > ids.highest:
            ids.claimed(message.last_trade_id, now_ns)
            self._ids_changed(message.product)

    def _out_of_order(self, product: str, ids: TradeIds, trade_id: int, now_ns: int) -> None:
        """A trade that is not the next one: the first, one ahead, one late, one repeated."""
        if not ids.believable(trade_id):
            self._unreadable(f"trade id {trade_id} of {product} is far beyond {ids.highest}", 0)
            return
        if trade_id <= ids.wanted_to:
            self.events.append(CameLate(product, trade_id))
        ids.seen(trade_id, now_ns)
        self._ids_changed(product)

    def _ids_changed(self, product: str) -> None:
        self.watch.changed(product)
        if self.watch.due_ns < self.deadline_ns:
            self._set_deadline()

    def _report_holes(self, now_ns: int) -> None:
        """Turns what is certain now into events."""
        for product, hole in self.watch.report(now_ns):
            self.events.append(HoleFound(product, hole.first_missing, hole.last_missing, hole.witness))

    def _check_sequence(self, sequence_num: int) -> None:
        """Counts messages that the connection skipped; one that comes late was counted and stays so."""
        expected = self._next_sequence
        if expected is None or sequence_num == expected:
            self._next_sequence = sequence_num + 1
        elif sequence_num > expected:
            self.messages_skipped += sequence_num - expected
            self.events.append(MessagesSkipped(sequence_num - expected))
            self._next_sequence = sequence_num + 1

    def _confirm(self, message: Subscriptions, now_ns: int) -> None:
        """Counts when both channels have been named; Advanced Trade answers for one after the other."""
        if self.state is not State.SUBSCRIBING:
            return
        self._channels |= message.channels
        dialect = self._dialect
        if dialect.heartbeat_channel not in self._channels:
            return
        answered = self._channels.get(dialect.trades_channel, frozenset())
        products = tuple(product for product in self.products if product in answered)
        if products:
            self.state = State.LIVE
            self._watch(now_ns + self._silence_ns)
            refused = tuple(product for product in self.products if product not in answered)
            self.events.append(Subscribed(products, refused))

    def _become_stale(self) -> None:
        if self.state is State.LIVE:
            reason = f"no heartbeat for {self._silence_ns // SECOND_NS} s"
        else:
            reason = f"subscription not confirmed within {CONFIRM_NS // SECOND_NS} s"
        self.state = State.STALE
        self.events.append(Stale(reason))
        self._watch(NEVER_NS)

    def _unreadable(self, reason: str, size: int) -> None:
        self.malformed += 1
        self.events.append(Malformed(reason[:TEXT_MAX], size))

    def _watch(self, due_ns: int) -> None:
        self._watch_due_ns = due_ns
        self._set_deadline()

    def _set_deadline(self) -> None:
        self.deadline_ns = min(self.watch.due_ns, self._watch_due_ns)
