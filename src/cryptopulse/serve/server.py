"""The process that serves the dashboard and the HTTP API: listens, reports, ends when it is told to."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import structlog
import uvicorn

from cryptopulse.errors import ConfigurationError
from cryptopulse.serve.api.events import Events
from cryptopulse.serve.app import create_app, with_dashboard
from cryptopulse.settings import Settings

_log = structlog.get_logger()

_REPORT_S = 0.5  # as the other processes
_END_WITHIN_S = 1  # what is under way may take so long at the end; streams and WebSockets are cut then
_BACKLOG = 128
_UNREAD_MS = 60_000

Report = Callable[[Mapping[str, object]], None]


def serve(
    settings: Settings, ports: Sequence[int], report: Report, announce: Callable[[str], None] = lambda _url: None
) -> None:
    """Serves the lake of `settings` until SIGTERM or SIGINT, at the first of `ports` that is free (0: any).

    Calls `announce` with the address when it listens, and `report` with its figures every half second. Raises
    ConfigurationError for an address that can't be listened on.
    """
    with _listening(settings.serve.host, ports) as listener:
        url = address_of(listener)
        app = with_dashboard(create_app(settings))
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            ws_per_message_deflate=False,  # it would be done for each viewer; what is sent is small, and made once
            timeout_graceful_shutdown=_END_WITHIN_S,
        )
        asyncio.run(_serve(_Server(config, app.state.events), listener, url, report, announce))


def address_of(listener: socket.socket) -> str:
    """The URL of a listening socket; of one that listens everywhere, this machine's own."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - recognised, not listened on
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn's, but signals are ours: uvicorn raises them again after its end, which would end us with an error."""

    def __init__(self, config: uvicorn.Config, events: Events) -> None:
        """`events`: who listens to them is told of the end."""
        super().__init__(config)
        self.events = events

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(
    server: _Server, listener: socket.socket, url: str, report: Report, announce: Callable[[str], None]
) -> None:
    def end() -> None:
        server.should_exit = True
        server.events.end()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end)
    port = listener.getsockname()[1]  # uvicorn closes it before it ends
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not (server.started or serving.done()):  # noqa: ASYNC110 - uvicorn has nothing to wait for
        await asyncio.sleep(0.01)
    if server.started:
        _log.info("dashboard_started", url=url)
        announce(url)
    while not serving.done():
        report({"url": url, "port": port, "connections": len(server.server_state.connections)})
        await asyncio.wait({serving}, timeout=_REPORT_S)
    await serving


@contextmanager
def _listening(host: str, ports: Sequence[int]) -> Iterator[socket.socket]:
    for port in ports[:-1]:
        try:
            listener = _listener(host, port)
        except _Taken:
            _log.warning("port_taken", host=host, port=port)
            continue
        break
    else:
        listener = _listener(host, ports[-1])
    with listener:
        yield listener


class _Taken(ConfigurationError):
    """Another program listens there."""


def _listener(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigurationError(f"serve.host: {host} is no address of this machine ({error.strerror}).") from error
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # after a restart at once, not after a minute
    if sys.platform == "linux":
        # Taken over by each connection: one whose other side reads nothing for a minute is cut.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MS)
    try:
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            told = "another program does. Choose another --port, or --port 0."
            raise _Taken(f"Can't listen on {host}:{port}: {told}") from error
        told = f"{error.strerror}. Choose another --host or --port."
        raise ConfigurationError(f"Can't listen on {host}:{port}: {told}") from error
    return listener
