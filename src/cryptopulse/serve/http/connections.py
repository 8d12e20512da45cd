"""Limits before authentication: how many connections, how long a request may take, and how large it may be.

They apply before a token is read, and extend uvicorn's protocols. A request with too long headers is answered with 431.
A connection that is too many, too slow, too large, or has to make room for another is cut without an answer: a
browser's EventSource gives up for ever on an answer such as 503, and tries again without one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from asyncio.transports import BaseTransport
from collections import Counter
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from cryptopulse.serve.http.auth import parse_ip, visitor_key
from cryptopulse.settings.serve import ServeSettings
from cryptopulse.token_bucket import TokenBucket

HEADERS_BYTES_MAX: Final = 32_768
"""Of a request, including the request line."""
BODY_BYTES_MAX: Final = 65_536
"""Of a request; the forms of the pages have some hundred bytes."""
REQUEST_S: Final = 15.0
"""A whole request must arrive within this time, from the start of the connection or the end of the last answer."""
MESSAGE_BYTES_MAX: Final = 4096
"""Of a WebSocket message from a client."""

_REQUEST_BYTES_MAX = 1_048_576  # read of one request, whatever reads it; a single read may bring 262,144
# A WebSocket's data is parsed in pieces of this size; more could hold thousands of small messages.
_PIECE_BYTES = 4096
_WEBSOCKET_BYTES, _WEBSOCKET_BYTE_EVERY_S = 65_536, 1 / 4096
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Connections:
    """The open connections of a server. Used from its event loop."""

    def __init__(self, settings: ServeSettings) -> None:
        """Starts without connections."""
        self.most = settings.connections_max
        """How many connections there may be."""
        self._most_an_address = settings.connections_per_address_max
        self._proxies = [ipaddress.ip_network(one) for one in settings.proxies]
        self._addresses: Counter[str] = Counter()
        self._waiting: dict[HttpConnection, None] = {}
        self.cut = 0
        """How many were cut: too many, too slow, too large, or to make room for others."""

    @property
    def count(self) -> int:
        """How many connections there are."""
        return self._addresses.total()

    def enter(self, address: str) -> bool:
        """Counts a new connection; False without room. If full, cuts the one that waited longest for a request."""
        network = visitor_key(address)
        if self._addresses[network] >= self._most_an_address:
            # No limit for loopback, proxies and sockets without an IP address: many people may be behind them.
            ip = parse_ip(address)
            if ip is not None and not (ip.is_loopback or any(ip in proxies for proxies in self._proxies)):
                return False
        if self.count >= self.most:
            oldest = next(iter(self._waiting), None)
            if oldest is None:
                return False
            oldest.cut()
        self._addresses[network] += 1
        return True

    def leave(self, address: str) -> None:
        """Counts a connection that has ended."""
        network = visitor_key(address)
        self._addresses[network] -= 1
        if not self._addresses[network]:
            del self._addresses[network]

    def waits(self, connection: HttpConnection) -> None:
        """Marks `connection` as waiting for its next request."""
        self._waiting[connection] = None

    def works(self, connection: HttpConnection) -> None:
        """Marks `connection` as no longer waiting: it has a request, or has ended."""
        self._waiting.pop(connection, None)


class HttpConnection(H11Protocol):
    """A connection until it becomes a WebSocket or ends."""

    def __init__(self, connections: Connections, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self._all = connections
        self._deadline: asyncio.TimerHandle | None = None
        self._received = 0
        self._is_counted = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._is_counted = self._all.enter(self._address)
        if self._is_counted:
            self._watch()
        else:
            self.cut()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > _REQUEST_BYTES_MAX:
            self.cut()
        else:
            super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._stop_waiting()
        self._is_counted = False  # from now on the WebSocket counts instead
        super().handle_websocket_upgrade(event)

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state is not h11.IDLE:  # an answer is under way, so another one can't be sent
            self.transport.close()
        elif len(self.conn.trailing_data[0]) > HEADERS_BYTES_MAX:
            self._all.cut += 1
            self.transport.write(_TOO_LARGE)
            self.transport.close()
        else:
            super().send_400_response(msg)

    def cut(self) -> None:
        """Cuts the connection without an answer."""
        self._all.cut += 1
        self._leave()
        self.transport.abort()

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""

    def _watch(self) -> None:
        """Starts the deadline when we wait for the client, and stops it when we don't."""
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY) or not self._is_counted:
            self._stop_waiting()
        elif self._deadline is None:
            self._received = 0
            self._deadline = self.loop.call_later(REQUEST_S, self.cut)
            self._all.waits(self)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
            self._all.works(self)

    def _leave(self) -> None:
        self._stop_waiting()
        if self._is_counted:
            self._is_counted = False
            self._all.leave(self._address)


class WebSocketConnection(WebSocketsSansIOProtocol):
    """A WebSocket. It counts instead of the `HttpConnection` that it was before."""

    def __init__(self, connections: Connections, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self._all = connections
        self._allowance = TokenBucket(_WEBSOCKET_BYTES, _WEBSOCKET_BYTE_EVERY_S)

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        # A client that sends more has to wait: uvicorn stops reading while messages are not taken.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _PIECE_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.leave(self.client[0] if self.client else "")
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.handshake_complete and not self._allowance.take(time.monotonic(), len(data)):
            self._all.cut += 1
            self.transport.abort()
        else:
            super().data_received(data)
