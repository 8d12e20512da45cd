"""Message bodies → their trades, as text values. Messages not written as the exchange writes them go through `exact`.

A typed decoder takes the last of two members with one name and does not check the texts of members that it skips.
So it is checked here that no member occurs twice and that the body is UTF-8, if possible in one pass over many bodies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from cryptopulse.engine.exact import (
    TRADE_ID_MAX,
    TRADE_ID_MIN,
    TRADE_MEMBERS,
    ControlChannel,
    ControlType,
    Row,
    checked_row,
    is_deep,
    message_rows,
    page_rows,
)

_TradeId = Annotated[int, msgspec.Meta(ge=TRADE_ID_MIN, le=TRADE_ID_MAX)]
_Side = Literal["buy", "sell", "BUY", "SELL"]


class _Match(msgspec.Struct, tag_field="type", tag="match", gc=False):
    """The Exchange feed's message: the members that are used, and three more that only need to be present."""

    product_id: str
    trade_id: _TradeId
    price: str
    size: str
    side: _Side
    time: str
    sequence: msgspec.Raw = msgspec.Raw()
    maker_order_id: msgspec.Raw = msgspec.Raw()
    taker_order_id: msgspec.Raw = msgspec.Raw()


class _LastMatch(_Match, tag="last_match", gc=False):
    """The last trade before the subscription."""


class _Heartbeat(msgspec.Struct, tag_field="type", tag="heartbeat", gc=False):
    """The only frequent control message."""


class _RestTrade(msgspec.Struct, gc=False):
    trade_id: _TradeId
    price: str
    size: str
    side: _Side
    time: str


class _BatchTrade(msgspec.Struct, gc=False):
    product_id: str
    trade_id: str
    price: str
    size: str
    side: _Side
    time: str


class _TradesEvent(msgspec.Struct, gc=False):
    trades: list[_BatchTrade]


class _OtherMessage(msgspec.Struct, gc=False):
    """Any message but a match."""

    type: ControlType | msgspec.UnsetType = msgspec.UNSET
    channel: ControlChannel | Literal["market_trades"] | msgspec.UnsetType = msgspec.UNSET
    events: msgspec.Raw = msgspec.Raw(b"null")


_MATCHES = frozenset({_Match, _LastMatch})
_exchange = msgspec.json.Decoder(_Match | _LastMatch | _Heartbeat).decode
_envelope = msgspec.json.Decoder(_OtherMessage).decode
_events = msgspec.json.Decoder(list[_TradesEvent]).decode
_page = msgspec.json.Decoder(list[_RestTrade]).decode

_MATCH_MEMBERS = 10  # type, the six that are used, and the three that are not
_TYPE, _CHANNEL, _EVENTS, _TRADES, *_TRADE = (
    f'"{name}"'.encode() for name in ("type", "channel", "events", "trades", *TRADE_MEMBERS)
)


class DecodedMessages:
    """The contents of messages: trades written as usual, column by column, and rows made by `exact`."""

    def __init__(self) -> None:
        self.places: list[int] = []
        self.symbols: list[str] = []
        self.ids: list[int] = []
        self.prices: list[str] = []
        self.sizes: list[str] = []
        self.sides: list[str] = []
        self.times: list[str] = []
        self.exact: list[tuple[int, int, Row]] = []
        """(index of the message, number of the row within it, row)."""

    def add(self, places: Sequence[int], symbols: list[str], ids: list[int], trades: Sequence[Any]) -> None:
        self.places += places
        self.symbols += symbols
        self.ids += ids
        self.prices += [trade.price for trade in trades]
        self.sizes += [trade.size for trade in trades]
        self.sides += [trade.side for trade in trades]
        self.times += [trade.time for trade in trades]

    def checked_row(self, n: int) -> Row:
        """Trade `n` as `exact` reads it."""
        return checked_row(
            self.symbols[n], str(self.ids[n]), self.prices[n], self.sizes[n], self.sides[n], self.times[n]
        )

    def add_exact(self, place: int, rows: Sequence[Row]) -> None:
        self.exact += [(place, number, row) for number, row in enumerate(rows)]

    def add_messages(self, bodies: Sequence[bytes], places: Sequence[int]) -> None:
        """Adds messages of a WebSocket; `places`: the index of each."""
        decoded = _decoded(_exchange, bodies)
        if not _MATCHES.issuperset(map(type, decoded)):
            for body, place, message in zip(bodies, places, decoded, strict=True):
                if type(message) not in _MATCHES and not (type(message) is _Heartbeat and _has_each(body, (_TYPE,), 1)):
                    self._add_other(body, place)
            bodies, places, decoded = _kept([type(message) in _MATCHES for message in decoded], bodies, places, decoded)
        if not _are_usual(bodies, decoded):
            is_usual = [_has_each(body, (_TYPE, *_TRADE), 1) for body in bodies]
            for body, place, usual in zip(bodies, places, is_usual, strict=True):
                if not usual:
                    self.add_exact(place, message_rows(body))
            places, decoded = _kept(is_usual, places, decoded)
        self.add(places, [match.product_id for match in decoded], [match.trade_id for match in decoded], decoded)

    def _add_other(self, body: bytes, place: int) -> None:
        try:
            message = _envelope(body)
            if message.type is not msgspec.UNSET:
                is_usual = _has_each(body, (_TYPE,), 1)
            else:
                is_usual = message.channel is not msgspec.UNSET and _has_each(body, (_CHANNEL,), 1)
                if is_usual and message.channel == "market_trades":
                    is_usual = self._add_batch(body, place, _events(message.events))
        except (ValueError, RecursionError):
            is_usual = False
        if not is_usual:
            self.add_exact(place, message_rows(body))

    def _add_batch(self, body: bytes, place: int, events: list[_TradesEvent]) -> bool:
        """Adds the trades of a message of the Advanced Trade feed if they are written as usual; returns whether so."""
        trades = [trade for event in events for trade in event.trades]
        ids = [trade.trade_id for trade in trades]
        is_usual = (
            all(one.isascii() and one.isdigit() and TRADE_ID_MIN <= int(one) <= TRADE_ID_MAX for one in ids)
            and _has_each(body, (_EVENTS,), 1)
            and _has_each(body, (_TRADES,), len(events))
            and _has_each(body, _TRADE, len(trades))
        )
        if is_usual:
            self.add([place] * len(trades), [trade.product_id for trade in trades], [int(one) for one in ids], trades)
        return is_usual

    def add_page(self, body: bytes, product: str, place: int) -> None:
        """Adds a page of the REST interface."""
        try:
            trades = _page(body)
            is_usual = _has_each(body, _TRADE[1:], len(trades))
        except (ValueError, RecursionError):
            is_usual = False
        if is_usual:
            n = len(trades)
            self.add([place] * n, [product] * n, [trade.trade_id for trade in trades], trades)
        else:
            self.add_exact(place, page_rows(body, product))


def _decoded(decode: Callable[[bytes], Any], bodies: Sequence[bytes]) -> list[Any]:
    """Each body decoded; None if it can't be."""
    found: list[Any] = []
    rest = iter(bodies)
    while True:
        try:
            found.extend(map(decode, rest))
        except (ValueError, RecursionError):  # msgspec's errors and bad UTF-8 are ValueErrors
            found.append(None)
        else:
            return found


def _kept(keep: Sequence[bool], *columns: Sequence[Any]) -> list[list[Any]]:
    """The values of each column where `keep` is true."""
    return [list(compress(column, keep)) for column in columns]


def _are_usual(bodies: Sequence[bytes], matches: Sequence[_Match]) -> bool:
    """Whether no member occurs twice in any of the bodies, and all are plain ASCII; in one pass over all of them.

    Every member has a colon after its name, and a time has two inside. If there are no more colons than the decoded
    members account for, there are no more members.
    """
    has_all = [bool(m.sequence and m.maker_order_id and m.taker_order_id) for m in matches]
    if not all(has_all):
        return False
    text = b"".join(bodies)
    known = _MATCH_MEMBERS * len(matches) + "".join([match.time for match in matches]).count(":")
    colons = np.count_nonzero(np.frombuffer(text, np.uint8) == ord(":"))
    return colons == known and text.isascii() and b"\\" not in text and b"[" not in text


def _has_each(body: bytes, names: Sequence[bytes], times: int) -> bool:
    """Whether each of the quoted `names` occurs exactly `times` times: as often as it was decoded, so no member occurs
    twice. Also false for escapes, bad UTF-8 and deep nesting.
    """
    if b"\\" in body or any(body.count(name) != times for name in names):
        return False
    if not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError:
            return False
    return not is_deep(body)
