"""Common to the connections of both feeds: deadlines, faults, and readers that are too slow."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import structlog

from cryptopulse.simulator.faults import Faults, MessageFaults
from cryptopulse.simulator.venue import Batch, SimulatedVenue
from cryptopulse.simulator.wire import ServerConnection

log = structlog.get_logger()

_POLICY_VIOLATION = 1008  # RFC 6455, 7.4.1
_NO_FAULTS = Faults()


class ClientSession(ABC):
    """One WebSocket connection of either feed."""

    def __init__(
        self, socket: ServerConnection, venue: SimulatedVenue, number: int, changed: Callable[[ClientSession], None]
    ) -> None:
        """`number`: of the connection, also seeds its faults. `changed` is called when the session has changed."""
        self.socket = socket
        self.venue = venue
        self.number = number
        self.closed = False
        self.writable = asyncio.Event()
        self.writable.set()
        self.traded: npt.NDArray[np.bool_] = np.zeros(len(venue.products), dtype=bool)
        """Whether the trades of each product are subscribed to."""
        self._channels: dict[str, dict[str, None]] = {}
        """Subscribed products by channel; dicts as ordered sets."""
        self._muted_by: Faults | None = None
        self.subscribed_at: float | None = None
        self._connected_at = time.monotonic()
        self._oversized_at = 0.0
        self._changed = changed
        self._message_faults = MessageFaults(venue.options.faults_seed + number, venue.products[0].product_id)

    @abstractmethod
    def on_message(self, message: bytes) -> None:
        """Handles a message of the client."""

    @abstractmethod
    def publish(self, batch: Batch) -> None:
        """Sends newly published trades, or keeps them for `flush`."""

    @abstractmethod
    def flush(self) -> None:
        """Sends the trades that wait."""

    @abstractmethod
    def heartbeat(self, counter: int) -> None:
        """Sends heartbeats; called every second."""

    def on_writable(self, *, writable: bool) -> None:
        """Called when the reader falls behind, or has caught up."""
        if writable:
            self.writable.set()
        else:
            self.writable.clear()

    def on_closed(self) -> None:
        """Called when the connection has ended."""
        self.closed = True
        self.traded[:] = False
        self.writable.set()
        self._changed(self)

    def subscriptions_changed(self) -> None:
        """Feeds call it after each accepted subscribe or unsubscribe."""
        if self.subscribed_at is None:
            self.subscribed_at = self._oversized_at = time.monotonic()
        self._changed(self)

    def deliver(self, frames: Sequence[bytes], joined: bytes | None = None) -> None:
        """Sends trade messages, after applying the faults; `joined`: all `frames` in one piece, if known."""
        faults = self._faults_here
        if faults.touch_messages:
            self.send(b"".join(self._message_faults.through(frames, faults)))
        else:
            self.send(b"".join(frames) if joined is None else joined)

    @property
    def _faults_here(self) -> Faults:
        """The faults that apply to this connection."""
        faults = self.venue.faults
        return faults if faults.only in (-1, self.number) else _NO_FAULTS

    def release(self) -> None:
        """Sends the message that faults held back, if any."""
        self.send(b"".join(self._message_faults.release()))

    def send(self, frames: bytes) -> None:
        """Sends frames; cuts off a reader with too many unread bytes, as the exchange does."""
        if not frames or self.closed:
            return
        self.socket.send(frames)
        options = self.venue.options
        if options.speed and self.socket.unsent_bytes > options.unsent_max_bytes:
            log.warning("simulator_reader_cut_off", reason="ErrSlowConsume", connection=self.number)
            self.cut()

    def cut(self) -> None:
        """Ends the connection without a close frame."""
        self.closed = True
        self.socket.abort()

    def tick(self, now: float) -> None:
        """Applies the deadline and the faults of the connection that are due at `now` (monotonic seconds)."""
        venue, faults = self.venue, self._faults_here
        if self.subscribed_at is None:
            if now - self._connected_at >= venue.options.subscribe_within_s:
                self.socket.close(_POLICY_VIOLATION, "no subscription in time")
            return
        silent_from = venue.faults_since + faults.silence[0]
        self.socket.muted = self._connected_at < silent_from <= now < silent_from + faults.silence[1]
        product, mute_after_s = faults.mute
        if product and self._muted_by is not faults and self._connected_at < venue.faults_since + mute_after_s <= now:
            self._muted_by = faults
            log.info("simulator_fault", fault="mute", connection=self.number, product=product)
            for subscribed in self._channels.values():
                subscribed.pop(product, None)
            self.traded[venue.numbers[product]] = False
        if faults.disconnect and now - max(self.subscribed_at, venue.faults_since) >= faults.disconnect:
            log.info("simulator_fault", fault="disconnect", connection=self.number)
            self.cut()
        elif faults.oversized and now - max(self._oversized_at, venue.faults_since) >= faults.oversized:
            self._oversized_at = now
            self.send(venue.oversized)
