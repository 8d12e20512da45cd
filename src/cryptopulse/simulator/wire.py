"""HTTP and WebSocket on one port: the server side of RFC 6455 and as much HTTP/1.1 as REST needs.

Written on bare asyncio since ready-made servers send a frame per call: here a batch of frames, formed once
for all clients, leaves in one system call, and faults can be put on the wire that no library would send.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Protocol, cast
from urllib.parse import parse_qs, unquote, urlsplit

import structlog

_ACCEPT_SALT = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 4.2.2
_HEAD_MAX = 16 * 1024
_BODY_MAX = 64 * 1024
_MESSAGE_MAX = 1024 * 1024  # a subscription of 2,000 products has 30 kB

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request; header names in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    peer: str
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP answer; `truncated` sends half the body and closes."""

    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)
    truncated: bool = False


class Listener(Protocol):
    """Who is behind a WebSocket."""

    def on_message(self, message: bytes) -> None:
        """A text or binary message arrived."""

    def on_writable(self, *, writable: bool) -> None:
        """The socket's buffer is over its mark (False) or has drained (True)."""

    def on_closed(self) -> None:
        """The connection is gone, whoever ended it."""


class Handler(Protocol):
    """What a server does with its connections."""

    async def respond(self, request: Request) -> Response:
        """Answers an HTTP request."""

    def accept(self, socket: WebSocket, path: str) -> Listener | None:
        """Takes a WebSocket on `path`; None refuses it with 404."""


def frame(message: bytes, opcode: int = TEXT) -> bytes:
    """One whole unmasked WebSocket frame."""
    size = len(message)
    if size < 126:
        return bytes((0x80 | opcode, size)) + message
    if size < 65536:
        return bytes((0x80 | opcode, 126)) + size.to_bytes(2) + message
    return bytes((0x80 | opcode, 127)) + size.to_bytes(8) + message


class WebSocket:
    """The sending side of one accepted connection."""

    def __init__(self, transport: asyncio.Transport) -> None:
        """Wraps the connection's transport."""
        self._transport = transport
        self.muted = False
        """A muted connection stays open and sends nothing, not even pongs."""

    def send(self, frames: bytes) -> None:
        """Sends whole frames as they are."""
        if not self.muted and not self._transport.is_closing():
            self._transport.write(frames)

    @property
    def unsent_bytes(self) -> int:
        """What the reader has not taken yet, beyond the kernel's buffers."""
        return self._transport.get_write_buffer_size()

    def close(self, code: int, reason: str) -> None:
        """Says why and closes once everything is sent."""
        self.send(frame(code.to_bytes(2) + reason.encode(), CLOSE))
        self._transport.close()

    def abort(self) -> None:
        """Cuts the connection; what is unsent is lost."""
        self._transport.abort()


class Connection(asyncio.Protocol):
    """One TCP connection: HTTP requests one after the other, then perhaps a WebSocket."""

    def __init__(self, handler: Handler, write_mark: int, connections: set[Connection]) -> None:
        """The listener hears `on_writable(False)` when more than `write_mark` bytes are unsent.

        While open, the connection is one of `connections`.
        """
        self._handler = handler
        self._connections = connections
        self._write_mark = write_mark
        self._buffer = bytearray()
        self._answering: asyncio.Task[None] | None = None
        self._socket: WebSocket | None = None
        self._listener: Listener | None = None
        self._parts = bytearray()
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without saying so
        self._transport.set_write_buffer_limits(high=self._write_mark)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Called by asyncio."""
        self._ended = True
        self._connections.discard(self)
        if self._answering is not None:
            self._answering.cancel()
        if self._listener is not None:
            self._listener.on_closed()

    def pause_writing(self) -> None:
        """Called by asyncio."""
        if self._listener is not None:
            self._listener.on_writable(writable=False)

    def resume_writing(self) -> None:
        """Called by asyncio."""
        if self._listener is not None:
            self._listener.on_writable(writable=True)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._buffer += data
        self._read()

    def _read(self) -> None:
        if self._listener is None and self._answering is None:
            self._read_request()
        if self._listener is not None:
            while not self._ended and self._read_frame():
                pass

    # HTTP

    def close_http(self) -> None:
        """Ends the connection unless it is a WebSocket."""
        if self._listener is None:
            self._transport.close()

    def _read_request(self) -> None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _HEAD_MAX:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            return
        try:
            request, length = _parse_head(bytes(self._buffer[:end]), self._peer())
        except ValueError:
            self._refuse(HTTPStatus.BAD_REQUEST)
            return
        if length > _BODY_MAX:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        if len(self._buffer) < end + 4 + length:
            return
        body = bytes(self._buffer[end + 4 : end + 4 + length])
        del self._buffer[: end + 4 + length]
        if request.headers.get("upgrade", "").lower() == "websocket":
            self._upgrade(request)
        else:
            whole = Request(request.method, request.path, request.query, request.headers, request.peer, body)
            self._answering = asyncio.ensure_future(self._answer(whole))

    def _peer(self) -> str:
        peer = self._transport.get_extra_info("peername")
        return str(peer[0]) if peer else ""

    async def _answer(self, request: Request) -> None:
        try:
            response = await self._handler.respond(request)
        except Exception:  # a bug in one answer must not end the server
            log.exception("simulator_request_failed", path=request.path)
            response = Response(b'{"message":"Internal server error"}', HTTPStatus.INTERNAL_SERVER_ERROR)
        keep = request.headers.get("connection", "").lower() != "close" and not response.truncated
        self._write_response(response, keep=keep)
        self._answering = None
        if keep:
            self._read()

    def _write_response(self, response: Response, *, keep: bool) -> None:
        lines = [
            f"HTTP/1.1 {response.status.value} {response.status.phrase}",
            "content-type: application/json; charset=utf-8",
            f"content-length: {len(response.body)}",
            f"connection: {'keep-alive' if keep else 'close'}",
            *(f"{name}: {value}" for name, value in response.headers.items()),
        ]
        body = response.body[: len(response.body) // 2] if response.truncated else response.body
        self._transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        if not keep:
            self._transport.close()

    def _refuse(self, status: HTTPStatus) -> None:
        self._buffer.clear()
        self._write_response(Response(b'{"message":"%s"}' % status.phrase.encode(), status), keep=False)

    # WebSocket

    def _upgrade(self, request: Request) -> None:
        key = request.headers.get("sec-websocket-key", "")
        if not key or request.headers.get("sec-websocket-version") != "13":
            self._refuse(HTTPStatus.BAD_REQUEST)
            return
        socket = WebSocket(self._transport)
        listener = self._handler.accept(socket, request.path)
        if listener is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        digest = hashlib.sha1(key.encode() + _ACCEPT_SALT, usedforsecurity=False).digest()
        self._transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
        )
        self._socket, self._listener = socket, listener

    def _read_frame(self) -> bool:
        """Takes one frame off the buffer; False when it is not complete yet."""
        buffer = self._buffer
        if len(buffer) < 2:
            return False
        size, place = buffer[1] & 0x7F, 2
        if size > 125:
            place += 2 if size == 126 else 8
            if len(buffer) < place:
                return False
            size = int.from_bytes(buffer[2:place])
        if not buffer[1] & 0x80:
            return self._fail(1002, "frames of a client are masked")
        if size + len(self._parts) > _MESSAGE_MAX:
            return self._fail(1009, "message too big")
        if len(buffer) < place + 4 + size:
            return False
        mask = bytes(buffer[place : place + 4])
        payload = _unmask(bytes(buffer[place + 4 : place + 4 + size]), mask)
        first = buffer[0]
        del buffer[: place + 4 + size]
        self._take(first & 0x0F, payload, final=bool(first & 0x80))
        return True

    def _take(self, opcode: int, payload: bytes, *, final: bool) -> None:
        assert self._socket is not None
        assert self._listener is not None
        if opcode == PING:
            self._socket.send(frame(payload, PONG))
        elif opcode == CLOSE:
            self._socket.send(frame(payload[:2], CLOSE))
            self._end()
        elif opcode != PONG:
            self._parts += payload
            if final:
                message = bytes(self._parts)
                self._parts.clear()
                self._listener.on_message(message)

    def _fail(self, code: int, reason: str) -> bool:
        assert self._socket is not None
        self._socket.send(frame(code.to_bytes(2) + reason.encode(), CLOSE))
        self._end()
        return False

    def _end(self) -> None:
        self._ended = True
        self._transport.close()


def _parse_head(head: bytes, peer: str) -> tuple[Request, int]:
    """The request without its body, and the body's length; ValueError when it is not HTTP."""
    lines = head.decode("latin-1").split("\r\n")
    method, target, version = lines[0].split(" ")
    if not version.startswith("HTTP/1."):
        raise ValueError(version)
    headers = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    url = urlsplit(target)
    query = {name: values[-1] for name, values in parse_qs(url.query).items()}
    length = int(headers.get("content-length", "0"))
    if length < 0:
        raise ValueError(length)
    return Request(method, unquote(url.path), query, headers, peer), length


def _unmask(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    pad = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload) ^ int.from_bytes(pad)).to_bytes(size)


class Port:
    """A listening port with its connections."""

    def __init__(self, handler: Handler, write_mark: int) -> None:
        """See Connection for `write_mark`."""
        self._handler = handler
        self._write_mark = write_mark
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    async def open(self, host: str, port: int) -> int:
        """Starts listening, on any free port for 0; returns the port. OSError when it can't be used."""
        self._server = await asyncio.get_running_loop().create_server(self._connection, host, port)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    def _connection(self) -> Connection:
        return Connection(self._handler, self._write_mark, self._connections)

    def close(self) -> None:
        """Stops listening and ends connections that are not WebSockets; those are the handler's."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.close_http()
