"""The session core: a state machine for one subscription, without socket, clock or logging.

Messages go in (`receive`), and so do times (`tick`) and changes of the connection (`connected`, `disconnected`). Frames
to send (`frames_to_send`), events (`take_events`) and the time of the next tick (`deadline_ns`) come out. All times are
integer nanoseconds of one clock that never goes back.

A session belongs to a set of products and outlives its connections: the highest id of each product is kept (in an
`IdWatch`, which sessions of the same products share). So the first trade of a new connection shows which trades were
missed between two connections::

    disconnected ──connected──▶ subscribing ──answer──▶ live
         ▲                          │ no answer           │ no trade or heartbeat
         └───────disconnected───────┴──────▶ stale ◀──────┘

The exchange refuses a whole request for one product that it does not know. If a refusal names products of the session,
the others are requested again without them; if it names none, the request is split in halves until the refused product
is alone.

A connection can be half alive: one product, or one of its channels, falls silent while others go on. Then that product
is subscribed again, at growing intervals; the connection stays open for the other products.

The differences between the two feeds are in a `Dialect`, which turns a raw message into one of the `FeedMessage` types.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum

import msgspec

from cryptopulse.feed.sequence_gaps import NEVER_NS, UNKNOWN, IdWatch, TradeIds, Witness
from cryptopulse.venues import Dialect, FeedMessage, Heartbeat, Refusal, Subscriptions, TradesMessage, Unreadable

SECOND_NS = 1_000_000_000

CONFIRM_NS = 5 * SECOND_NS
"""The exchange cuts connections that do not subscribe within 5 s; an answer that takes longer will not come."""

HEARTBEAT_NS = SECOND_NS
"""Both feeds promise one heartbeat a second."""

OVERSLEPT_NS = SECOND_NS
"""A tick this late shows that this process was stopped (suspended, swapping). Then the exchange may not have been
silent: heartbeats may wait in the socket."""


RESUBSCRIBE_NS = 10 * SECOND_NS
RESUBSCRIBE_MAX_NS = 300 * SECOND_NS
"""Pauses between attempts to subscribe a silent product again: they double from the first to the longest. A product
that the exchange has halted stays silent for hours."""

THIN_NS = 60 * SECOND_NS
THIN_MESSAGES = 100
THIN_GAPS = 50
"""If heartbeats name no products, silence is judged by a product's own pace: a product with at least THIN_MESSAGES
messages is silent after a minute without one, but not before THIN_GAPS of its mean gaps between messages."""

TEXT_MAX = 300
"""Most characters of the exchange's text in an event; the whole message is in the log."""


_WORD = re.compile(r"[A-Z0-9]+(?:-[A-Z0-9]+)+")
"""Possible product ids in a refusal, as in "XYZ-USD is not a valid product"."""


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


class LateTrade(msgspec.Struct, frozen=True):
    """A trade came late that the work list may be waiting for."""

    product: str
    trade_id: int


class Stale(msgspec.Struct, frozen=True):
    """The connection is dead and must be replaced."""

    reason: str


class ProductSilent(msgspec.Struct, frozen=True):
    """`product` sent no `missing` ("trades", "heartbeats", or "trades and heartbeats") for `silent_s` seconds while the
    connection was alive; it is subscribed again. `product` is "" for heartbeats that name no product."""

    product: str
    missing: str
    silent_s: int


class ProductRecovered(msgspec.Struct, frozen=True):
    """`product` sends again what was missing."""

    product: str
    silent_s: int


class ServerError(msgspec.Struct, frozen=True):
    """The exchange sent an error message."""

    text: str


class Malformed(msgspec.Struct, frozen=True):
    """A message that could not be understood. It goes to the log like any other."""

    reason: str
    bytes: int


class MessagesSkipped(msgspec.Struct, frozen=True):
    """`count` messages of the connection did not come, by their sequence numbers (Advanced Trade). Only a hint: trade
    ids decide whether trades are missing."""

    count: int


Event = (
    Subscribed
    | HoleFound
    | LateTrade
    | Stale
    | ProductSilent
    | ProductRecovered
    | ServerError
    | Malformed
    | MessagesSkipped
)


class State(Enum):
    """State of a session."""

    DISCONNECTED = "disconnected"
    SUBSCRIBING = "subscribing"
    LIVE = "live"
    STALE = "stale"


class _ProductState:
    """Liveness of one product on the present connection. Times are those of the session's clock."""

    __slots__ = ("ahead_ns", "heartbeat_ns", "ids", "messages", "pause_ns", "retry_ns", "silent_ns", "trade_ns")

    def __init__(self, ids: TradeIds) -> None:
        self.ids = ids
        self.restart(0)

    def restart(self, now_ns: int) -> None:
        """The product has just been subscribed on a new connection."""
        self.trade_ns = self.heartbeat_ns = now_ns
        """When the newest trade and the newest heartbeat came."""
        self.ahead_ns = NEVER_NS
        """Since when heartbeats have named trades that have not come."""
        self.messages = 0
        """Messages with trades."""
        self.silent_ns = NEVER_NS
        """Since when trades or heartbeats are missing; NEVER_NS: none are."""
        self.retry_ns = 0
        self.pause_ns = RESUBSCRIBE_NS


class FeedSession:
    """One subscription to `products`, over any number of connections one after the other."""

    def __init__(
        self, dialect: Dialect, products: Sequence[str], *, heartbeats_missed_max: int, watch: IdWatch | None = None
    ) -> None:
        """`watch`: the ids seen of the products, shared with other sessions; None: this session's own."""
        self.products = tuple(products)
        self.watch = watch or IdWatch(products)
        self.state = State.DISCONNECTED
        self.deadline_ns = NEVER_NS
        """When `tick` is due. Any input may make it earlier; a tick that is too early does no harm."""
        self.trades = 0
        """Trades received, repeated ones included."""
        self.malformed = 0
        self.messages_skipped = 0
        self.dialect = dialect
        self._key = f"@{dialect.venue}" if dialect.venue else ""
        self._silence_ns = heartbeats_missed_max * HEARTBEAT_NS
        self._states = {product: _ProductState(self.watch.ids[product]) for product in self.products}
        self._confirmed: tuple[str, ...] = ()
        self.refused_products: tuple[str, ...] = ()
        """Products that the exchange left out of the present subscription."""
        self._confirmed_ns = 0
        self._connection = _ProductState(TradeIds())  # for heartbeats that name no product
        self._check_due_ns = NEVER_NS
        self._silence_due_ns = NEVER_NS
        self._next_sequence: int | None = None
        self._channels: dict[str, frozenset[str]] = {}
        self._requested: Sequence[str] = ()
        self._request_size = 0
        self._groups: list[Sequence[str]] = []
        """Groups of products still to be requested after a refusal that named none; the last is requested next."""
        self._frames: list[bytes] = []
        self.events: list[Event] = []
        """Events since the last `take_events`; read only."""

    @property
    def has_frames(self) -> bool:
        """Whether `frames_to_send` has any."""
        return bool(self._frames)

    def frames_to_send(self) -> list[bytes]:
        """Text frames to send now, in order; each is returned once."""
        frames, self._frames = self._frames, []
        return frames

    def take_events(self) -> list[Event]:
        """Events since the last call, in order."""
        events, self.events = self.events, []
        return events

    def connected(self, now_ns: int) -> None:
        """A connection is open: subscribes, and expects the answer within CONFIRM_NS."""
        self.state = State.SUBSCRIBING
        self._frames = []
        self._channels = {}
        self._groups = []
        self._confirmed = self.refused_products = ()
        self._check_due_ns = NEVER_NS
        self._next_sequence = None
        self._request(self.products, now_ns)

    def disconnected(self) -> None:
        """The connection is gone. The state of trade ids is kept."""
        self.state = State.DISCONNECTED
        self._frames = []
        self._confirmed = self.refused_products = ()
        self._check_due_ns = NEVER_NS
        self._expect_by(NEVER_NS)

    @property
    def silent(self) -> list[str]:
        """Products whose trades or heartbeats are missing while the connection is alive."""
        return [product for product in self._confirmed if self._states[product].silent_ns != NEVER_NS]

    def receive(self, raw: bytes, now_ns: int) -> str:
        """Takes a message that will be kept; returns its key in the log: its product, if it is one of this session;
        for others, or if it is about none or several, `@venue`, or "" on Coinbase's feeds. Never raises.
        """
        message = self.dialect.read(raw)
        if isinstance(message, TradesMessage):
            states = self._states
            for product, trade_id in message.ids:
                state = states.get(product)
                if state is None:
                    continue
                if state.trade_ns != now_ns:
                    state.trade_ns = now_ns
                    state.messages += 1
                ids = state.ids
                self.trades += 1
                if trade_id == ids.highest + 1:
                    ids.highest = trade_id
                elif ids.unsettled < trade_id <= ids.highest:
                    ids.repeated += 1
                elif ids.believable(trade_id):  # the first, one ahead, or a late one
                    if trade_id <= ids.wanted_to:
                        self.events.append(LateTrade(product, trade_id))
                    ids.seen(trade_id, now_ns)
                    self._ids_changed(product)
                else:
                    self._unreadable(f"trade id {trade_id} of {product} is far beyond {ids.highest}", 0)
        self._follow(message, raw, now_ns)
        return message.product if message.product in self._states else self._key

    def refused(self, raw: bytes, now_ns: int) -> None:
        """Takes a message that came but could not be kept: it counts as a sign of life, but its trades are lost.

        Its ids count as missing, so the loss is reported like any other hole.
        """
        message = self.dialect.read(raw)
        if isinstance(message, TradesMessage):
            for product, trade_id in message.ids:
                state = self._states.get(product)
                if state is not None and state.ids.believable(trade_id):
                    state.trade_ns = now_ns
                    state.ids.lost(trade_id, now_ns)
                    self._ids_changed(product)
        self._follow(message, raw, now_ns)

    def tick(self, now_ns: int) -> None:
        """Time has passed: reports holes whose grace is over, a stale connection, and silent products."""
        if now_ns >= self.watch.due_ns:
            self._report_holes(now_ns)
        if now_ns >= self._silence_due_ns:
            if now_ns >= self._silence_due_ns + OVERSLEPT_NS:
                self._expect_by(now_ns + OVERSLEPT_NS)
            elif not self._goes_on(now_ns):
                reason = f"subscription not confirmed within {CONFIRM_NS // SECOND_NS} s"
                if self.state is State.LIVE:
                    reason = f"no trade or heartbeat for {self._silence_ns // SECOND_NS} s"
                self.state = State.STALE
                self.events.append(Stale(reason))
                self._check_due_ns = NEVER_NS
                self._expect_by(NEVER_NS)
        if now_ns >= self._check_due_ns:
            if now_ns < self._check_due_ns + OVERSLEPT_NS:
                self._check_products(now_ns)
            if self.dialect.heartbeat_request is not None:
                self._frames.append(self.dialect.heartbeat_request)
            self._check_due_ns = now_ns + HEARTBEAT_NS
        self._set_deadline()

    def _follow(self, message: FeedMessage, raw: bytes, now_ns: int) -> None:
        """Updates the state of the connection after a message."""
        if (number := message.sequence_num) is not None:
            # A late message was counted as skipped; the count is not corrected.
            expected = self._next_sequence
            if expected is not None and number > expected:
                self.messages_skipped += number - expected
                self.events.append(MessagesSkipped(number - expected))
            if expected is None or number >= expected:
                self._next_sequence = number + 1
        if isinstance(message, TradesMessage):  # nearly always
            if self.state is State.LIVE:
                self._silence_due_ns = now_ns + self._silence_ns  # the deadline stays early, which does no harm
        elif isinstance(message, Heartbeat):
            self._heartbeat(message, now_ns)
        elif isinstance(message, Subscriptions):
            # Complete when both channels have been named; Advanced Trade confirms them one after the other.
            for channel, named in message.channels.items():
                self._channels[channel] = self._channels.get(channel, frozenset()) | named
            self._request_next_if_answered(now_ns)
        elif isinstance(message, Refusal):
            self.events.append(ServerError(message.text[:TEXT_MAX]))
            if not self.dialect.answers_each_product:
                self._request_others(message.text, now_ns)
            elif message.product:
                self._requested = [product for product in self._requested if product != message.product]
                self._request_next_if_answered(now_ns)
        elif isinstance(message, Unreadable):
            self._unreadable(message.reason, len(raw))
        if now_ns >= self.watch.due_ns:
            self._report_holes(now_ns)
            self._set_deadline()

    def _heartbeat(self, message: Heartbeat, now_ns: int) -> None:
        if self.state is State.LIVE:
            self._silence_due_ns = now_ns + self._silence_ns
        self._connection.heartbeat_ns = now_ns
        state = self._states.get(message.product)
        if state is not None:
            state.heartbeat_ns = now_ns
            if message.last_trade_id > state.ids.highest:
                if state.ids.highest != UNKNOWN:  # else it names history
                    state.ahead_ns = min(state.ahead_ns, now_ns)
                state.ids.claimed(message.last_trade_id, now_ns)
                self._ids_changed(message.product)

    def _request(self, products: Sequence[str], now_ns: int) -> None:
        self._requested, self._request_size = products, len(products)
        self._frames += self.dialect.subscribe_frames(products)
        self._expect_by(now_ns + CONFIRM_NS)

    def _request_others(self, refusal: str, now_ns: int) -> None:
        """Requests again without the products that a refusal names. Each time there are fewer, so this ends.

        A refusal without names is about some product of the request: its halves are requested one after the other.
        """
        if self.state is not State.SUBSCRIBING:
            return
        named = set(_WORD.findall(refusal)) & set(self.products)
        others = [product for product in self._requested if product not in named]
        if named and len(others) == len(self._requested):
            return  # the refusal is about an earlier request
        if not named:
            half = len(others) // 2
            self._groups += [part for part in (others[half:], others[:half]) if 0 < len(part) < len(others)]
            others = []
        if others:
            self._request(others, now_ns)
        else:
            self._request_next(now_ns)

    def _goes_on(self, now_ns: int) -> bool:
        """Goes on although not every product was answered in time; whether there is a way."""
        if self.state is not State.SUBSCRIBING or not self.dialect.answers_each_product:
            return False
        if not self._answered().isdisjoint(self.products):
            self._request_next(now_ns)  # the others were refused without being named
        elif 0 < len(self._requested) < self._request_size:
            self._request(self._requested, now_ns)  # the whole request was refused for those named
        else:
            return False
        return True

    def _request_next_if_answered(self, now_ns: int) -> None:
        """Goes on after an answer: to all of the request, if the exchange answers for each product of it."""
        answered = self._answered()
        if self.state is State.LIVE and (late := answered.intersection(self.refused_products)):
            self._confirmed = tuple(product for product in self.products if product in {*self._confirmed, *late})
            self.refused_products = tuple(product for product in self.refused_products if product not in late)
            for product in late:
                self._states[product].restart(now_ns)
            self.events.append(Subscribed(self._confirmed, self.refused_products))
        if self.state is not State.SUBSCRIBING:
            return
        is_each = self.dialect.answers_each_product
        if answered.issuperset(self._requested) if is_each else not answered.isdisjoint(self._requested):
            self._request_next(now_ns)

    def _request_next(self, now_ns: int) -> None:
        """Requests the next group; after the last one the session is live, with the confirmed products."""
        answered = self._answered()
        while self._groups:
            group = [product for product in self._groups.pop() if product not in answered]
            if group:
                self._request(group, now_ns)
                return
        products = tuple(product for product in self.products if product in answered)
        if not products:
            return
        self.state = State.LIVE
        self._confirmed, self._confirmed_ns = products, now_ns
        self.refused_products = tuple(product for product in self.products if product not in answered)
        for state in (self._connection, *(self._states[product] for product in products)):
            state.restart(now_ns)
        self._check_due_ns = now_ns + HEARTBEAT_NS
        self._expect_by(now_ns + self._silence_ns)
        self.events.append(Subscribed(products, self.refused_products))

    def _answered(self) -> frozenset[str]:
        """The products whose trades the exchange has confirmed; none before it has confirmed heartbeats."""
        if self.dialect.heartbeat_channel not in (None, *self._channels):
            return frozenset()
        return self._channels.get(self.dialect.trades_channel, frozenset())

    def _check_products(self, now_ns: int) -> None:
        """Finds products that are silent while the connection is alive, and subscribes them again."""
        left = self.dialect.resubscribed_at_once_max
        states = [(product, self._states[product]) for product in self._confirmed]
        if self.dialect.heartbeat_channel is not None and not self.dialect.heartbeats_name_products:
            states.append(("", self._connection))
        for product, state in states:
            missing, since_ns = self._silence(product, state, now_ns)
            if not missing:
                if state.silent_ns != NEVER_NS:
                    self.events.append(ProductRecovered(product, (now_ns - state.silent_ns) // SECOND_NS))
                    state.silent_ns, state.retry_ns, state.pause_ns = NEVER_NS, 0, RESUBSCRIBE_NS
                continue
            state.silent_ns = min(state.silent_ns, since_ns)
            if now_ns >= state.retry_ns and left:
                left -= 1
                self.events.append(ProductSilent(product, missing, (now_ns - state.silent_ns) // SECOND_NS))
                if product:  # alone: a refusal of one must not keep the others out
                    self._frames += self.dialect.resubscribe_frames([product])
                else:  # trades still come and must not be interrupted
                    self._frames += self.dialect.subscribe_frames(self._confirmed)
                state.retry_ns = now_ns + state.pause_ns
                state.pause_ns = min(2 * state.pause_ns, RESUBSCRIBE_MAX_NS)

    def _silence(self, product: str, state: _ProductState, now_ns: int) -> tuple[str, int]:
        """What is missing from a product, "" for nothing, and since when."""
        silent_to_ns = now_ns - self._silence_ns
        has_heartbeats = state.heartbeat_ns > silent_to_ns
        if not product:
            return ("" if has_heartbeats else "heartbeats"), state.heartbeat_ns
        if not self.dialect.heartbeats_name_products:
            gap_ns = (state.trade_ns - self._confirmed_ns) // max(state.messages, 1)
            is_silent = now_ns - state.trade_ns >= max(THIN_NS, THIN_GAPS * gap_ns)
            return ("trades" if is_silent and state.messages >= THIN_MESSAGES else ""), state.trade_ns
        if state.trade_ns >= state.ahead_ns:
            state.ahead_ns = NEVER_NS
        if has_heartbeats:
            return ("trades" if state.ahead_ns <= silent_to_ns else ""), state.ahead_ns
        if state.trade_ns > silent_to_ns:
            return "heartbeats", state.heartbeat_ns
        return "trades and heartbeats", max(state.trade_ns, state.heartbeat_ns)

    def _ids_changed(self, product: str) -> None:
        self.watch.changed(product)
        if self.watch.due_ns < self.deadline_ns:
            self._set_deadline()

    def _report_holes(self, now_ns: int) -> None:
        """Adds an event for each hole that is certain now."""
        for product, hole in self.watch.report(now_ns):
            self.events.append(HoleFound(product, hole.first_missing, hole.last_missing, hole.witness))

    def _unreadable(self, reason: str, size: int) -> None:
        self.malformed += 1
        self.events.append(Malformed(reason[:TEXT_MAX], size))

    def _expect_by(self, due_ns: int) -> None:
        self._silence_due_ns = due_ns
        self._set_deadline()

    def _set_deadline(self) -> None:
        self.deadline_ns = min(self.watch.due_ns, self._silence_due_ns, self._check_due_ns)
