"""Limits before authentication: how many connections, how long a request may take, and how large it may be.

All of it counts before a token is read. uvicorn's own protocols do the work; these add the bounds that uvicorn
has not. A request whose headers are too long is answered with 431. What is too many, too slow, too large, or
makes room for another is cut without a word: a browser's EventSource gives up for ever on an answer such as 503, and
tries again when there is none.
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

from cryptopulse.serve.http.auth import network_of, parse_ip
from cryptopulse.settings.serve import ServeSettings
from cryptopulse.token_bucket import TokenBucket

HEADERS_BYTES_MAX: Final = 32_768
"""Of a request, its line included."""
BODY_BYTES_MAX: Final = 65_536
"""Of a request: the forms of the pages have some hundred."""
REQUEST_S: Final = 15.0
"""Within so long a request must have come whole, counted from the beginning of the connection or the answer before."""
MESSAGE_BYTES_MAX: Final = 4096
"""Of a WebSocket's message to us."""

_REQUEST_BYTES_MAX = 1_048_576  # read of a request at most, whoever reads it; what comes in one piece may be 262,144
# Of what a WebSocket sends so much is parsed at once; thousands of small messages fit into more.
_PIECE_BYTES = 4096
_WEBSOCKET_BYTES, _WEBSOCKET_BYTE_EVERY_S = 65_536, 1 / 4096
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Connections:
    """All of a server. Used from its event loop."""

    def __init__(self, settings: ServeSettings) -> None:
        """There is none yet."""
        self.most = settings.connections_max
        """How many there may be."""
        self._most_an_address = settings.connections_per_address_max
        self._proxies = [ipaddress.ip_network(one) for one in settings.proxies]
        self._addresses: Counter[str] = Counter()
        self._waiting: dict[HttpConnection, None] = {}
        self.cut = 0
        """How many were cut: too many, too slow, too large, or in the way of others."""

    @property
    def count(self) -> int:
        """How many there are."""
        return self._addresses.total()

    def enter(self, address: str) -> bool:
        """Counts one more, when there is room: the one makes it that has waited for its request the longest."""
        network = network_of(address)
        if self._addresses[network] >= self._most_an_address:
            # Behind this machine's own, proxies and sockets of another kind there may be many people.
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
        """Counts one less."""
        network = network_of(address)
        self._addresses[network] -= 1
        if not self._addresses[network]:
            del self._addresses[network]

    def waits(self, connection: HttpConnection) -> None:
        """`connection` has nothing to do until its next request has come."""
        self._waiting[connection] = None

    def works(self, connection: HttpConnection) -> None:
        """`connection` has a request, or is gone."""
        self._waiting.pop(connection, None)


class HttpConnection(H11Protocol):
    """One, until it becomes a WebSocket or ends."""

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
        self._is_counted = False  # from now on the WebSocket counts, in our place
        super().handle_websocket_upgrade(event)

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state is not h11.IDLE:  # while it is answered: there is no place for another answer
            self.transport.close()
        elif len(self.conn.trailing_data[0]) > HEADERS_BYTES_MAX:
            self._all.cut += 1
            self.transport.write(_TOO_LARGE)
            self.transport.close()
        else:
            super().send_400_response(msg)

    def cut(self) -> None:
        """Ends it without a word."""
        self._all.cut += 1
        self._leave()
        self.transport.abort()

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""

    def _watch(self) -> None:
        """Sees to it that what is awaited of the other side comes in time."""
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
    """One that was an `HttpConnection`, in whose place it counts."""

    def __init__(self, connections: Connections, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self._all = connections
        self._allowance = TokenBucket(_WEBSOCKET_BYTES, _WEBSOCKET_BYTE_EVERY_S)

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        # Whoever sends more waits with it: uvicorn reads no further as long as messages are not taken.
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
