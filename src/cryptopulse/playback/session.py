"""One WebSocket connection of a client: subscriptions, and the messages of the window when they are due."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import structlog

from cryptopulse.playback.window import Frames, Key, Wanted, Window
from cryptopulse.simulator.messages import advanced_envelope, encode, exchange_error, exchange_subscriptions
from cryptopulse.simulator.wire import ServerConnection, frame

log = structlog.get_logger()

_TOGETHER_S = 0.005
"""Messages due within this time are sent together."""
_TOGETHER_MAX = 1_000
_SLOW_S = 10.0
"""A reader that takes nothing for so long is cut off, as by the exchange, unless the speed is 0."""
_INTERNAL_ERROR = 1011  # RFC 6455, 7.4.1
_TRADES, _HEARTBEATS = ("matches", "market_trades"), ("heartbeat", "heartbeats")


_Part = tuple[Key, Key | None, Wanted]
"""What is sent: behind which message, up to which one (None: to the end), and of what."""


class _Refused(Exception):
    """A request that is answered with an error message; its text is the reason."""


class PlaybackSession:
    """A connection. It begins at the window's present, and misses nothing from there on. A product to which nobody has
    subscribed before begins at its first message, so that clients with several connections miss nothing either.
    """

    def __init__(
        self, socket: ServerConnection, window: Window, *, is_advanced: bool, closed: Callable[[PlaybackSession], None]
    ) -> None:
        """`is_advanced`: which feed it speaks. `closed` is called when it has ended."""
        self.socket = socket
        self._window = window
        self._is_advanced = is_advanced
        self._closed = closed
        self._channels: dict[str, dict[str, None]] = {}
        self._writable = asyncio.Event()
        self._writable.set()
        self._playing: asyncio.Task[None] | None = None
        self._confirmed = 0
        self._at: Key | None = None
        """The last message that this connection got; None before the first subscription."""
        self.ended = asyncio.Event()

    def on_message(self, message: bytes) -> None:
        """Subscribes or unsubscribes, or answers why not."""
        try:
            request = msgspec.json.decode(message)
            changed = self._requested(request)
        except _Refused as error:
            self._refuse(str(error))
            return
        except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
            self._refuse("the message can't be understood")
            return
        for channel, products in changed.items():
            known = self._channels.setdefault(channel, {})
            if request["type"] == "subscribe":
                known.update(dict.fromkeys(products))
            else:
                for product in products or list(known):
                    known.pop(product, None)
                if not known:
                    del self._channels[channel]
        self._confirm()
        self._play_on()

    def on_writable(self, *, writable: bool) -> None:
        """Called when the reader falls behind, or has caught up."""
        if writable:
            self._writable.set()
        else:
            self._writable.clear()

    def on_closed(self) -> None:
        """Called when the connection has ended."""
        if self._playing is not None:
            self._playing.cancel()
        self.ended.set()
        self._closed(self)

    def _requested(self, request: Any) -> dict[str, list[str]]:
        """Channels and products that a request names. Raises _Refused for what is not served here, and Python's own
        errors for what is no such request.
        """
        if request.get("type") not in ("subscribe", "unsubscribe"):
            raise _Refused(f"{request.get('type')} is not a valid type")
        common = request.get("product_ids") or []
        named = [request["channel"]] if self._is_advanced else request.get("channels") or list(self._channels)
        found: dict[str, list[str]] = {}
        for item in named:
            channel: dict[str, Any] = {"name": item} if isinstance(item, str) else item
            products: list[str] = channel.get("product_ids") or common
            if channel["name"] not in (*_TRADES, *_HEARTBEATS):
                raise _Refused(f"{channel['name']} is not a valid channel")
            if unknown := [name for name in products if name not in self._window.products]:
                raise _Refused(f"{unknown[0]} is not a valid product")
            found[channel["name"]] = products
        return found

    def _confirm(self) -> None:
        """Says what is subscribed to, as each feed does."""
        if self._is_advanced:
            events = encode([{"subscriptions": {name: list(ids) or [name] for name, ids in self._channels.items()}}])
            self.socket.send(frame(advanced_envelope("subscriptions", time.time_ns(), self._confirmed, events)))
            self._confirmed += 1
        else:
            self.socket.send(frame(exchange_subscriptions(dict(self._channels))))

    def _refuse(self, reason: str) -> None:
        refusal = encode({"type": "error", "message": reason})
        self.socket.send(frame(refusal if self._is_advanced else exchange_error("Failed to subscribe", reason)))

    def _play_on(self) -> None:
        """Plays what is subscribed to now: from where this connection was; new products from their beginning."""
        if self._playing is not None:
            self._playing.cancel()
            self._playing = None
        trades, heartbeats = (
            frozenset(name for channel in self._channels if channel in kind for name in ("", *self._channels[channel]))
            for kind in (_TRADES, _HEARTBEATS)
        )
        wanted = Wanted(trades, heartbeats)
        if not self._channels:
            return
        window, products = self._window, wanted.products
        unplayed = window.unplayed(products)
        if self._at is None:
            self._at = window.start_of(products - unplayed or products)
        parts: list[_Part] = [(self._at, None, wanted)]
        if unplayed and self._at > window.before_first:
            earlier = Wanted(trades & unplayed, heartbeats & unplayed)
            parts.insert(0, (window.before_first, self._at, earlier))
        window.sent(unplayed, window.before_first)
        window.begin()
        self._playing = asyncio.ensure_future(self._play(parts))
        self._playing.add_done_callback(self._played)

    def _played(self, playing: asyncio.Task[None]) -> None:
        """Closes the connection if its messages could not be read."""
        if not playing.cancelled() and (error := playing.exception()) is not None:
            log.error("playback_failed", error=str(error))
            self.socket.close(_INTERNAL_ERROR, "the lake can't be read")

    async def _play(self, parts: Sequence[_Part]) -> None:
        count = 0
        for after, last, wanted in parts:
            pages = self._window.messages(after, last, wanted, is_advanced=self._is_advanced)
            upcoming = asyncio.ensure_future(asyncio.to_thread(next, pages, None))
            while (page := await upcoming) is not None:
                upcoming = asyncio.ensure_future(asyncio.to_thread(next, pages, None))
                if not await self._send(page, wanted, is_late=last is not None):
                    return
                count += len(page.frames)
        log.info("playback_ended", messages=count)

    async def _send(self, page: Frames, wanted: Wanted, *, is_late: bool) -> bool:
        """Sends messages when they are due, those that are late at once; returns False for a reader too slow."""
        window, at = self._window, 0
        while at < len(page.frames):
            end = min(at + _TOGETHER_MAX, len(page.frames))
            if window.speed:
                due_us = min(window.now_us + int(_TOGETHER_S / 2 * window.speed * 1e6), window.last_us)
                end = min(end, int(np.searchsorted(page.keys[:, 0], due_us, side="right")))
            if end <= at:
                wait_us = page.key(at)[0] - window.now_us
                await asyncio.sleep(max(wait_us / 1e6 / window.speed, _TOGETHER_S))
                continue
            self.socket.send(b"".join(page.frames[at:end]))
            window.sent(wanted.products, page.key(end - 1))
            if not is_late:
                self._at = page.key(end - 1)
            at = end
            try:
                async with asyncio.timeout(_SLOW_S if window.speed else None):
                    await self._writable.wait()
            except TimeoutError:
                log.warning("playback_reader_cut_off", reason="ErrSlowConsume")
                self.socket.abort()
                return False
            await asyncio.sleep(0)
        window.sent(wanted.products, page.read_to)
        if not is_late:
            self._at = page.read_to
        return True
