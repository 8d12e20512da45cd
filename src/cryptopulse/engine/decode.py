"""Bodies → the trades in them, as texts. What is not written as the exchange writes it goes through `exact`.

A typed decoder takes the last of two members of one name and does not look at texts that nobody reads, so it is
checked that no member stands twice and that all is UTF-8: in one pass over many bodies where that can be done.
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
    is_deep,
    judged,
    message_rows,
    page_rows,
)

_TradeId = Annotated[int, msgspec.Meta(ge=TRADE_ID_MIN, le=TRADE_ID_MAX)]
_Side = Literal["buy", "sell", "BUY", "SELL"]


class _Match(msgspec.Struct, tag_field="type", tag="match", gc=False):
    """The Exchange feed's message, and its members that are read; the others only if they are there."""

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
    """The one control message that comes all the time."""


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

_MATCH_MEMBERS = 10  # type, the six that are read, and the three that are not
_TYPE, _CHANNEL, _EVENTS, _TRADES, *_TRADE = (
    f'"{name}"'.encode() for name in ("type", "channel", "events", "trades", *TRADE_MEMBERS)
)


class Found:
    """What some messages hold: the trades that are written as usual, column by column, and the other rows."""

    def __init__(self) -> None:
        self.places: list[int] = []
        self.symbols: list[str] = []
        self.ids: list[int] = []
        self.prices: list[str] = []
        self.sizes: list[str] = []
        self.sides: list[str] = []
        self.times: list[str] = []
        self.exact: list[tuple[int, int, Row]] = []
        """Place of the message, number of the row, row."""

    def add(self, places: Sequence[int], symbols: list[str], ids: list[int], trades: Sequence[Any]) -> None:
        self.places += places
        self.symbols += symbols
        self.ids += ids
        self.prices += [trade.price for trade in trades]
        self.sizes += [trade.size for trade in trades]
        self.sides += [trade.side for trade in trades]
        self.times += [trade.time for trade in trades]

    def judged(self, n: int) -> Row:
        """Trade `n` by `exact`."""
        return judged(self.symbols[n], str(self.ids[n]), self.prices[n], self.sizes[n], self.sides[n], self.times[n])

    def add_exact(self, place: int, rows: Sequence[Row]) -> None:
        self.exact += [(place, number, row) for number, row in enumerate(rows)]

    def add_messages(self, bodies: Sequence[bytes], places: Sequence[int]) -> None:
        """Takes in messages of a WebSocket."""
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
        """Takes in the trades of a message of the Advanced Trade feed, if they are written as usual."""
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
        """Takes in a page of the REST interface."""
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
    """Each body decoded; None for one that can't be."""
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
    """The rows of `columns` to keep."""
    return [list(compress(column, keep)) for column in columns]


def _are_usual(bodies: Sequence[bytes], matches: Sequence[_Match]) -> bool:
    """Whether no member stands twice in any of the bodies, in one pass over all of them.

    Every member has a colon after its name, and a time has two inside. When there are no more colons than the members
    that were found account for, there are no more members.
    """
    has_all = [bool(m.sequence and m.maker_order_id and m.taker_order_id) for m in matches]
    if not all(has_all):
        return False
    text = b"".join(bodies)
    known = _MATCH_MEMBERS * len(matches) + "".join([match.time for match in matches]).count(":")
    colons = np.count_nonzero(np.frombuffer(text, np.uint8) == ord(":"))
    return colons == known and text.isascii() and b"\\" not in text and b"[" not in text


def _has_each(body: bytes, names: Sequence[bytes], times: int) -> bool:
    """Whether each of the quoted `names` stands in the text so often, as it must when it was read as often and no
    member stands twice.
    """
    if b"\\" in body or any(body.count(name) != times for name in names):
        return False
    if not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError:
            return False
    return not is_deep(body)
