"""The Exchange feed's side of a connection: `matches` and `heartbeat`."""

from __future__ import annotations

from itertools import compress
from typing import Any

import msgspec
import numpy as np

from cryptopulse.simulator.messages import exchange_error, exchange_heartbeat, exchange_subscriptions
from cryptopulse.simulator.session import ClientSession
from cryptopulse.simulator.venue import Batch
from cryptopulse.simulator.wire import frame

_CHANNELS = ("matches", "heartbeat")


class _SubscriptionRefused(Exception):
    """A request that is answered with an error message; its text is the reason."""


class ExchangeSession(ClientSession):
    """A connection that speaks the Exchange dialect."""

    def on_message(self, message: bytes) -> None:
        """Subscribes, unsubscribes, or answers with an error."""
        try:
            request = msgspec.json.decode(message)
            kind = request.get("type") if isinstance(request, dict) else None
            wanted = self._wanted(kind, request)
        except msgspec.DecodeError:
            self.send(frame(exchange_error("Malformed JSON", "the message can't be parsed")))
            return
        except _SubscriptionRefused as refusal:
            self.send(frame(exchange_error("Failed to subscribe", str(refusal))))
            return
        if kind == "subscribe":
            self._subscribe(wanted)
        else:
            self._unsubscribe(wanted)

    def _wanted(self, kind: object, request: dict[str, Any]) -> dict[str, list[str]]:
        """Channels with their products; unsubscribing without products means all products of the channel."""
        if kind not in ("subscribe", "unsubscribe"):
            raise _SubscriptionRefused(f"{kind} is not a valid type")
        unsubscribing = kind == "unsubscribe"
        channels = request.get("channels") or (list(_CHANNELS) if unsubscribing else [])
        if not isinstance(channels, list):
            raise _SubscriptionRefused("channels is not a list")
        wanted: dict[str, list[str]] = {}
        common = request.get("product_ids") or []
        for item in channels:
            channel = {"name": item} if isinstance(item, str) else item
            if not isinstance(channel, dict) or channel.get("name") not in _CHANNELS:
                raise _SubscriptionRefused(f"{item} is not a valid channel")
            name = channel["name"]
            ids = channel.get("product_ids") or common or list(self._channels.get(name, ()) if unsubscribing else ())
            self._check(ids)
            wanted[name] = [*wanted.get(name, []), *ids]
        if not unsubscribing and not any(wanted.values()):
            raise _SubscriptionRefused("no channels or product_ids provided")
        return wanted

    def _check(self, ids: object) -> None:
        if not isinstance(ids, list):
            raise _SubscriptionRefused("product_ids is not a list")
        for product_id in ids:
            if not isinstance(product_id, str) or product_id not in self.venue.numbers:
                raise _SubscriptionRefused(f"{product_id} is not a valid product")

    def _subscribe(self, wanted: dict[str, list[str]]) -> None:
        new = [name for name in wanted.get("matches", []) if name not in self._channels.get("matches", {})]
        for channel, ids in wanted.items():
            self._channels.setdefault(channel, {}).update(dict.fromkeys(ids))
        self._answer()
        for product_id in dict.fromkeys(new):
            number = self.venue.numbers[product_id]
            self.traded[number] = True
            last = self.venue.history.newest(number, 1)
            self.send(b"".join(frame(match) for match in self.venue.writer.matches(last, "last_match")))
        self.subscriptions_changed()

    def _unsubscribe(self, wanted: dict[str, list[str]]) -> None:
        for channel, ids in wanted.items():
            for product_id in ids:
                self._channels.get(channel, {}).pop(product_id, None)
                if channel == "matches":
                    self.traded[self.venue.numbers[product_id]] = False
            if not self._channels.get(channel):
                self._channels.pop(channel, None)
        self._answer()
        self.subscriptions_changed()

    def _answer(self) -> None:
        self.send(frame(exchange_subscriptions(dict(self._channels))))

    def publish(self, batch: Batch) -> None:
        """Sends a match for each trade of a subscribed product."""
        wanted = self.traded[batch.product]
        if wanted.all():
            self.deliver(batch.matches, batch.matches_joined)
        elif wanted.any():
            self.deliver(list(compress(batch.matches, wanted.tolist())))

    def flush(self) -> None:
        """Does nothing: matches are sent at once."""

    def heartbeat(self, counter: int) -> None:  # noqa: ARG002  the Exchange feed does not count them
        """Sends a heartbeat for each product."""
        ids = self._channels.get("heartbeat", {})
        history, time_us = self.venue.history, self.venue.market_us()
        numbers = np.array([self.venue.numbers[product_id] for product_id in ids], dtype=np.int64)
        newest, sequences = history.published[numbers].tolist(), self.venue.sequences[numbers].tolist()
        self.send(
            b"".join(
                frame(exchange_heartbeat(name, last if last >= history.first_id(number) else 0, sequence, time_us))
                for name, number, last, sequence in zip(ids, numbers.tolist(), newest, sequences, strict=True)
            )
        )
