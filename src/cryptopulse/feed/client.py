"""Sockets, clocks and retries around the session core.

A `FeedConnection` keeps one session connected: it opens a socket, passes every message to the session and to the
buffer, replaces the socket when it breaks or the session reports it as stale, and waits between attempts by the retry
policy. It runs on the event loop and never waits for the log.

The WebSocket library is picows: it takes 267,000 messages of 280 bytes a second from a loopback socket on one core of a
two-core cloud machine, websockets 17 takes 160,000 (both under uvloop, payload copied, receive time noted).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import structlog
from picows import (
    WSCloseCode,
    WSError,
    WSFrame,
    WSListener,
    WSMsgType,
    WSProtocolError,
    WSTransport,
    ws_connect,
)
from python_socks import ProxyError  # what picows uses, and lets through

from cryptopulse.errors import ConfigurationError, Disconnected
from cryptopulse.feed.buffer import MessageBuffer
from cryptopulse.feed.protocol import Event, FeedSession, Stale, Subscribed
from cryptopulse.feed.proxy import proxy_for
from cryptopulse.feed.sequence_gaps import NEVER_NS
from cryptopulse.retry import Backoff
from cryptopulse.settings import FeedSettings
from cryptopulse.token_bucket import RateLimiter

MESSAGE_MAX_BYTES = 16 * 1024 * 1024
"""Above the largest message seen on either feed (a book snapshot of 5.1 MB)."""

HEALTHY_S = 10.0
"""After a subscription that lived this long the next attempt starts with the shortest pause again."""

CLOSE_TIMEOUT_S = 1.0

KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""Seconds until probes start, seconds between probes, and how many may fail. Heartbeats detect a dead peer sooner; this
is for routers that drop idle connections while thin products are quiet. Not every system has every option."""

_log = structlog.get_logger()

# Broken connections are logged here, once, instead of by picows.
_silent = logging.Logger("picows", level=logging.CRITICAL + 1)


@dataclass(slots=True)
class Traffic:
    """What a connection has received since the start, over all its sockets."""

    messages: int = 0
    bytes: int = 0
    lost_messages: int = 0
    last_received_ns: int = 0
    """ns UTC; 0: nothing received yet."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all connections of a feed share."""

    url: str
    settings: FeedSettings
    buffer: MessageBuffer
    connects: RateLimiter
    """Limits the attempts of all connections together."""
    on_event: Callable[[FeedConnection, Event], None]
    """Called with each event of a connection's session."""


class FeedConnection(WSListener):
    """Keeps `session` connected and its messages flowing into the buffer."""

    def __init__(self, name: str, session: FeedSession, shared: Shared) -> None:
        self.name = name
        self.session = session
        self.traffic = Traffic()
        self.sockets_opened = 0
        self.since = time.time()
        """When the present state began (seconds since 1970, UTC)."""
        self._shared = shared
        self._buffer = shared.buffer
        self._backoff = Backoff(longest_s=shared.settings.backoff_max_s)
        self._transport: WSTransport | None = None
        self._fragments = bytearray()
        self._ended_because = ""
        self._live_since_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_ns = NEVER_NS

    async def run(self) -> None:
        """Connects again and again until cancelled; then closes the socket."""
        while True:
            await self._shared.connects.acquire()
            try:
                await self._one_socket()
            except WSProtocolError as error:
                reason = str(error.args[-1])
            except (WSError, OSError, Disconnected, ValueError) as error:  # ValueError: an impossible host name
                reason = self._ended_because or str(error) or type(error).__name__
            else:
                reason = self._ended_because or "closed by the exchange"
            if self._live_since_s is not None and time.monotonic() - self._live_since_s >= HEALTHY_S:
                self._backoff.reset()
            pause_s = self._backoff.next_pause()
            _log.warning(
                "waiting_for_feed",
                url=self._shared.url,
                connection=self.name,
                error=reason,
                retry_in_s=round(pause_s, 2),
            )
            await asyncio.sleep(pause_s)

    async def _one_socket(self) -> None:
        """Opens a socket and returns when it has ended; `_ended_because` has the reason if it is known.

        Raises OSError, WSError or Disconnected.
        """
        self._ended_because = ""
        self._live_since_s = None
        transport = await self._open()
        try:
            await transport.wait_disconnected()
            received = None if transport.close_handshake is None else transport.close_handshake.recv
            if not self._ended_because and received is not None:
                text = f"closed by the exchange: {received.code} {received.reason or ''}"
                self._ended_because = text.strip()
        finally:
            await _close(transport)
            self.session.disconnected()
            self._changed()
            # The grace of open gaps ends while there is no connection.
            self._schedule()

    async def _open(self) -> WSTransport:
        timeout_s = self._shared.settings.connect_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                transport, listener = await ws_connect(
                    lambda: self,
                    self._shared.url,
                    max_frame_size=MESSAGE_MAX_BYTES,
                    websocket_handshake_timeout=timeout_s,
                    logger_name=_silent,
                    proxy=proxy_for(self._shared.url),
                )
        except TimeoutError as error:
            raise Disconnected(f"no connection within {timeout_s:g} s") from error
        except ProxyError as error:
            raise Disconnected(f"proxy refused the connection: {error}") from error
        if listener is None:
            raise Disconnected("closed by the peer before the WebSocket was open")
        return transport

    # What picows calls. All of it runs on the event loop.

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Subscribes at once: the exchange allows 5 s."""
        self._transport = transport
        self._fragments.clear()
        self.sockets_opened += 1
        sock = transport.underlying_transport.get_extra_info("socket")
        if sock is not None:  # lets the system probe a silent peer
            with contextlib.suppress(OSError):  # don't fail if the system lacks this aid
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option, value in KEEPALIVE.items():
                    if hasattr(socket, option):
                        sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self.session.connected(time.monotonic_ns())
        self._send()
        self._changed()
        self._schedule()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Takes a message; notes the receive time before anything else."""
        received_ns = time.time_ns()
        kind = frame.msg_type
        if frame.fin and kind in {WSMsgType.TEXT, WSMsgType.BINARY}:
            self._take(frame.get_payload_as_bytes(), received_ns)
        elif kind is WSMsgType.CLOSE:
            transport.send_close(WSCloseCode.OK)
            transport.disconnect()
        elif kind is not WSMsgType.PONG:
            # A message of several frames; its receive time is that of the last.
            self._fragments += frame.get_payload_as_memoryview()
            if len(self._fragments) > MESSAGE_MAX_BYTES:
                raise WSProtocolError(WSCloseCode.MESSAGE_TOO_BIG, f"message over {MESSAGE_MAX_BYTES} bytes")
            if frame.fin:
                body = bytes(self._fragments)
                self._fragments.clear()
                self._take(body, received_ns)

    def _take(self, body: bytes, received_ns: int) -> None:
        """Puts a message into the buffer if there is room; otherwise records its loss."""
        session = self.session
        traffic = self.traffic
        size = len(body)
        traffic.messages += 1
        traffic.bytes += size
        traffic.last_received_ns = received_ns
        if self._buffer.has_room(size):
            self._buffer.put(session.receive(body, time.monotonic_ns()), received_ns, body)
        else:
            session.refused(body, time.monotonic_ns())
            traffic.lost_messages += 1
        if session.events or session.has_frames:
            self._handle_events()
        if session.deadline_ns < self._timer_due_ns:
            self._schedule()

    def _send(self) -> None:
        """Sends the session's frames if there is a transport."""
        for frame in self.session.frames_to_send():
            if self._transport is not None:
                self._transport.send(WSMsgType.TEXT, frame)

    def _handle_events(self) -> None:
        for event in self.session.take_events():
            self._shared.on_event(self, event)
            if isinstance(event, Subscribed):
                self._live_since_s = time.monotonic()
                self._changed()
            elif isinstance(event, Stale) and self._transport is not None:
                self._ended_because = event.reason
                self._changed()
                # Not gracefully: a dead peer would never take the data still to send.
                self._transport.disconnect(graceful=False)
        self._send()

    def _changed(self) -> None:
        self.since = time.time()

    # The session's timer: there is one, moved when the session's deadline gets earlier.

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_due_ns = None, NEVER_NS
        due_ns = self.session.deadline_ns
        if due_ns == NEVER_NS:
            return
        # A millisecond late rather than early: the loop's clock is coarser than ours.
        delay_s = max(0, due_ns - time.monotonic_ns()) / 1e9 + 0.001
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_timer)
        self._timer_due_ns = due_ns

    def _on_timer(self) -> None:
        self.session.tick(time.monotonic_ns())
        self._handle_events()
        self._schedule()


def check_url(url: str, setting: str) -> None:
    """Raises ConfigurationError if `url`, the value of `setting`, is not a WebSocket address, or if the environment's
    proxy for it is not usable."""
    try:
        parts = urlsplit(url)
        right = parts.scheme in {"ws", "wss"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is not a number, an incomplete IPv6 address
        right = False
    if not right:
        raise ConfigurationError(f"Setting {setting}: {url!r} is not a WebSocket address (wss://… or ws://…).")
    proxy_for(url)


async def _close(transport: WSTransport) -> None:
    """Closes gracefully, after a timeout forcibly. Returns when no frame can come any more."""
    if transport.is_disconnected:
        return
    transport.send_close(WSCloseCode.OK)
    transport.disconnect()
    # The error that ended the connection is known already; here only its end matters.
    with contextlib.suppress(WSError, OSError):
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await transport.wait_disconnected()
        except TimeoutError:
            transport.disconnect(graceful=False)
            await transport.wait_disconnected()
