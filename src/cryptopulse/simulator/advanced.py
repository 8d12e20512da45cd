"""Advanced Trade's side of a connection: `market_trades` and `heartbeats`, numbered in one sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from cryptopulse.simulator.messages import (
    advanced_envelope,
    advanced_heartbeat,
    advanced_market_trades,
    encode,
)
from cryptopulse.simulator.session import ClientSession
from cryptopulse.simulator.venue import Batch, SimulatedVenue
from cryptopulse.simulator.wire import ServerConnection, frame

_SNAPSHOT_TRADES = 100
_UPDATE_TRADES_MAX = 1000
"""An update covers 0.25 s, a few trades on the real feed; this keeps it under 200 kB at high rates."""


class AdvancedSession(ClientSession):
    """A connection that speaks the Advanced Trade dialect."""

    def __init__(
        self, socket: ServerConnection, venue: SimulatedVenue, number: int, changed: Callable[[ClientSession], None]
    ) -> None:
        """See ClientSession."""
        super().__init__(socket, venue, number, changed)
        self._sequence_num = 0
        self._waiting: dict[int, list[bytes]] = {}

    def on_message(self, message: bytes) -> None:
        """Subscribes or unsubscribes one channel, or answers with an error."""
        try:
            request = msgspec.json.decode(message)
        except msgspec.DecodeError:
            request = None
        refusal = self._refusal(request)
        if refusal:
            self.send(frame(encode({"type": "error", "message": refusal})))
            return
        ids = list(dict.fromkeys(request.get("product_ids") or ()))
        if request["type"] == "subscribe":
            self._subscribe(request["channel"], ids)
        else:
            self._unsubscribe(request["channel"], ids)
        self._answer()
        self.subscriptions_changed()

    def _refusal(self, request: Any) -> str | None:
        """Why a request is not accepted; None when it is."""
        if not isinstance(request, dict) or request.get("type") not in ("subscribe", "unsubscribe"):
            return "failed to parse message: neither subscribe nor unsubscribe"
        channel, ids = request.get("channel"), request.get("product_ids") or []
        if channel not in ("market_trades", "heartbeats"):
            return f"unknown channel: {channel}"
        if not isinstance(ids, list):
            return "product_ids is not a list"
        unknown = [name for name in ids if not isinstance(name, str) or name not in self.venue.numbers]
        if unknown:
            return f"unknown product: {unknown[0]}"
        if channel == "market_trades" and request["type"] == "subscribe" and not ids:
            return "no product_ids provided"
        return None

    def _subscribe(self, channel: str, ids: list[str]) -> None:
        if channel == "heartbeats":
            self._channels[channel] = {"heartbeats": None}
            return
        channels = self._channels.setdefault(channel, {})
        for product_id in ids:
            if product_id not in channels:
                channels[product_id] = None
                number = self.venue.numbers[product_id]
                self.traded[number] = True
                newest = self.venue.history.newest(number, _SNAPSHOT_TRADES)[::-1]
                if len(newest):
                    trades = self.venue.writer.advanced_trades(newest)
                    self.send(self._frame("market_trades", advanced_market_trades("snapshot", trades)))

    def _unsubscribe(self, channel: str, ids: list[str]) -> None:
        self.flush()
        if channel == "market_trades":
            for product_id in ids or list(self._channels.get(channel, ())):
                self._channels.get(channel, {}).pop(product_id, None)
                self.traded[self.venue.numbers[product_id]] = False
        if channel == "heartbeats" or not self._channels.get(channel):
            self._channels.pop(channel, None)

    def _answer(self) -> None:
        listed = {channel: list(ids) for channel, ids in sorted(self._channels.items())}
        self.send(self._frame("subscriptions", encode([{"subscriptions": listed}])))

    def _frame(self, channel: str, events: bytes) -> bytes:
        time_ns = self.venue.market_us() * 1000
        envelope = advanced_envelope(channel, time_ns, self._sequence_num, events)
        self._sequence_num += 1
        return frame(envelope)

    def publish(self, batch: Batch) -> None:
        """Keeps the trades of subscribed products for the next flush."""
        wanted = self.traded[batch.product]
        if wanted.any():
            for number, text, chosen in zip(batch.product.tolist(), batch.advanced, wanted.tolist(), strict=True):
                if chosen:
                    self._waiting.setdefault(number, []).append(text)

    def flush(self) -> None:
        """Sends the waiting trades, an update per product, newest trades first."""
        waiting, self._waiting, most = self._waiting, {}, _UPDATE_TRADES_MAX
        self.deliver(
            [
                self._frame("market_trades", advanced_market_trades("update", reversed(trades[start : start + most])))
                for trades in waiting.values()
                for start in range(0, len(trades), most)
            ]
        )

    def heartbeat(self, counter: int) -> None:
        """Sends the connection's heartbeat."""
        if "heartbeats" in self._channels:
            time_ns = self.venue.market_us() * 1000
            self.send(self._frame("heartbeats", advanced_heartbeat(time_ns, counter)))
