"""HTTP and WebSocket on one port: as much HTTP/1.1 as REST needs, and the server side of WebSockets.

The library `websockets` reads: it accepts the handshake, checks frames, answers pings and closes. Frames are written to
the transport here: a batch, encoded once for all clients, is sent in one system call, and faults can be sent that no
library would send.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Protocol, cast
from urllib.parse import parse_qs, unquote, urlsplit

import structlog
from websockets.frames import DATA_OPCODES, Frame, Opcode
from websockets.http11 import Request as Handshake
from websockets.server import ServerProtocol

_HEAD_MAX = 16 * 1024
_BODY_MAX = 1024 * 1024  # `Orders` contain whole answers
_MESSAGE_MAX = 1024 * 1024  # a subscription of 2,000 products has 30 kB

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One HTTP request; header names in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    peer: str
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """One HTTP answer; `truncated` sends half the body and closes, `reset` sends nothing and cuts the connection."""

    body: bytes
    status: int = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)
    """Names in lower case; they override the headers that every answer has."""
    truncated: bool = False
    reset: bool = False


Respond = Callable[[HttpRequest], Awaitable[HttpResponse]]
Accept = Callable[["ServerConnection", str], "Session | None"]


class Session(Protocol):
    """What a WebSocket connection is served by."""

    def on_message(self, message: bytes) -> None:
        """Handles a message of the client."""

    def on_writable(self, *, writable: bool) -> None:
        """Called when the reader falls behind, or has caught up."""

    def on_closed(self) -> None:
        """Called when the connection has ended."""


def frame(message: bytes, opcode: Opcode = Opcode.TEXT) -> bytes:
    """One whole unmasked WebSocket frame."""
    size = len(message)
    if size < 126:
        return bytes((0x80 | opcode, size)) + message
    if size < 65536:
        return bytes((0x80 | opcode, 126)) + size.to_bytes(2) + message
    return bytes((0x80 | opcode, 127)) + size.to_bytes(8) + message


class ServerConnection(asyncio.Protocol):
    """One TCP connection: HTTP requests one after the other, then perhaps a WebSocket."""

    def __init__(self, respond: Respond, accept: Accept, write_mark: int, connections: set[ServerConnection]) -> None:
        """`respond` answers HTTP requests; `accept` returns the session of a WebSocket on a path, or None to refuse it.

        Calls the session's `on_writable(False)` when more than `write_mark` bytes are unsent. The connection is in
        `connections` while it is open.
        """
        self._respond = respond
        self._accept = accept
        self._connections = connections
        self._write_mark = write_mark
        self._buffer = bytearray()
        self._answering: asyncio.Task[None] | None = None
        self._websocket: ServerProtocol | None = None
        self._session: Session | None = None
        self._parts = bytearray()
        self.muted = False
        """A muted WebSocket stays open and sends nothing, not even pongs."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transport is one, but does not declare it
        self._transport.set_write_buffer_limits(high=self._write_mark)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Called by asyncio."""
        self._connections.discard(self)
        if self._answering is not None:
            self._answering.cancel()
        if self._session is not None:
            self._session.on_closed()

    def pause_writing(self) -> None:
        """Called by asyncio."""
        if self._session is not None:
            self._session.on_writable(writable=False)

    def resume_writing(self) -> None:
        """Called by asyncio."""
        if self._session is not None:
            self._session.on_writable(writable=True)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if self._websocket is not None:
            self._read_frames(self._websocket, data)
            return
        self._buffer += data
        if self._answering is None:
            self._read_request()

    # HTTP

    def close_http(self) -> None:
        """Ends the connection unless it is a WebSocket."""
        if self._session is None:
            self._transport.close()

    def _read_request(self) -> None:
        end = self._buffer.find(b"\r\n\r\n") + 4
        if end < 4:
            if len(self._buffer) > _HEAD_MAX:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            return
        head = bytes(self._buffer[:end])
        try:
            first, *lines = head.decode("latin-1").strip().split("\r\n")
            method, target, version = first.split(" ")
            headers = {
                name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
            }
            length = int(headers.get("content-length", "0"))
            url = urlsplit(target)
        except ValueError:
            self._refuse(HTTPStatus.BAD_REQUEST)
            return
        if length < 0 or not version.startswith("HTTP/1."):
            self._refuse(HTTPStatus.BAD_REQUEST)
        elif length > _BODY_MAX:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        elif len(self._buffer) >= end + length:
            body = bytes(self._buffer[end : end + length])
            del self._buffer[: end + length]
            if headers.get("upgrade", "").lower() == "websocket":
                self._upgrade(head, unquote(url.path))
                return
            query = {name: values[-1] for name, values in parse_qs(url.query).items()}
            peer = self._transport.get_extra_info("peername")
            request = HttpRequest(method, unquote(url.path), query, headers, str(peer[0]) if peer else "", body)
            self._answering = asyncio.ensure_future(self._answer(request))

    async def _answer(self, request: HttpRequest) -> None:
        try:
            response = await self._respond(request)
        except Exception:  # a bug in one answer must not end the server
            log.exception("simulator_request_failed", path=request.path)
            response = HttpResponse(b'{"message":"Internal server error"}', HTTPStatus.INTERNAL_SERVER_ERROR)
        keep = request.headers.get("connection", "").lower() != "close" and not response.truncated
        self._write_response(response, keep=keep)
        self._answering = None
        if keep:
            self._read_request()

    def _write_response(self, response: HttpResponse, *, keep: bool) -> None:
        if response.reset:
            self._transport.abort()
            return
        headers = {
            "content-type": "application/json; charset=utf-8",
            "content-length": str(len(response.body)),
            "connection": "keep-alive" if keep else "close",
            **response.headers,
        }
        phrases = {int(status): status.phrase for status in HTTPStatus}
        lines = [f"HTTP/1.1 {response.status} {phrases.get(response.status, 'Unknown')}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        body = response.body[: len(response.body) // 2] if response.truncated else response.body
        self._transport.write("\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body)
        if not keep:
            self._transport.close()

    def _refuse(self, status: HTTPStatus) -> None:
        self._buffer.clear()
        self._write_response(HttpResponse(b'{"message":"%s"}' % status.phrase.encode(), status), keep=False)

    # WebSocket

    def send(self, frames: bytes) -> None:
        """Sends whole frames as they are."""
        if not self.muted and not self._transport.is_closing():
            self._transport.write(frames)

    @property
    def unsent_bytes(self) -> int:
        """Bytes that the reader has not taken yet, without those in the kernel's buffers."""
        return self._transport.get_write_buffer_size()

    def close(self, code: int, reason: str) -> None:
        """Sends a close frame with code and reason, and closes once everything is sent."""
        self.send(frame(code.to_bytes(2) + reason.encode(), Opcode.CLOSE))
        self._transport.close()

    def abort(self) -> None:
        """Cuts the connection; unsent data are lost."""
        self._transport.abort()

    def _upgrade(self, head: bytes, path: str) -> None:
        websocket = ServerProtocol(max_size=_MESSAGE_MAX)
        websocket.receive_data(head)
        handshake = next(iter(websocket.events_received()), None)
        response = websocket.accept(handshake) if isinstance(handshake, Handshake) else None
        if response is None or response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            self._refuse(HTTPStatus.BAD_REQUEST)
            return
        session = self._accept(self, path)
        if session is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        websocket.send_response(response)
        self._transport.write(b"".join(websocket.data_to_send()))
        self._websocket, self._session = websocket, session
        self._read_frames(websocket, bytes(self._buffer))
        self._buffer.clear()

    def _read_frames(self, websocket: ServerProtocol, data: bytes) -> None:
        assert self._session is not None
        websocket.receive_data(data)
        for received in websocket.events_received():
            if isinstance(received, Frame) and received.opcode in DATA_OPCODES and not self._transport.is_closing():
                self._parts += received.data
                if received.fin:
                    message = bytes(self._parts)
                    self._parts.clear()
                    self._session.on_message(message)
        self.send(b"".join(websocket.data_to_send()))  # pongs and close frames
        if websocket.close_expected():
            self._transport.close()


class Port:
    """A listening port with its connections."""

    def __init__(self, respond: Respond, accept: Accept, write_mark: int) -> None:
        """See ServerConnection."""
        self._connections: set[ServerConnection] = set()
        self._connect = partial(ServerConnection, respond, accept, write_mark, self._connections)
        self._server: asyncio.Server | None = None

    async def open(self, host: str, port: int) -> int:
        """Starts listening, on any free port for 0; returns the port. Raises OSError when it can't be used."""
        self._server = await asyncio.get_running_loop().create_server(self._connect, host, port)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    def close(self) -> None:
        """Stops listening and ends all connections but WebSockets, which their sessions close."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.close_http()
