"""The process that serves dashboard and HTTP API: it listens, reports its status, and ends on a signal."""

from __future__ import annotations

import asyncio
import errno
import gc
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import structlog
import uvicorn

from cryptopulse.errors import ConfigurationError
from cryptopulse.serve.app import create_app, with_dashboard
from cryptopulse.serve.http.connections import (
    HEADERS_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    Connections,
    HttpConnection,
    WebSocketConnection,
)
from cryptopulse.settings import Settings
from cryptopulse.settings.serve import ServeSettings

_log = structlog.get_logger()

_REPORT_S = 0.5  # as in the other processes
_END_WITHIN_S = 1  # open requests may take this long at the end; then streams and WebSockets are cut
_BACKLOG = 128
_UNREAD_MS = 60_000
_OTHER_FILES = 256  # open files other than connections

Report = Callable[[Mapping[str, object]], None]


def serve(
    settings: Settings, ports: Sequence[int], report: Report, announce: Callable[[str], None] = lambda _url: None
) -> None:
    """Serves the lake of `settings` until SIGTERM or SIGINT, on the first free port of `ports` (0: any).

    Calls `announce` with the URL when it listens, and `report` with its figures every half second. Raises
    ConfigurationError when it can't listen on the address.
    """
    for port in ports:
        try:
            listener = _listener(settings.serve.host, port)
        except _Taken:
            if port == ports[-1]:
                raise
            _log.warning("port_taken", host=settings.serve.host, port=port)
        else:
            break
    with listener:
        url = address_of(listener)
        app = with_dashboard(create_app(settings))
        server = _Server(configured(app, settings.serve))

        async def run() -> None:
            def end() -> None:
                server.should_exit = True
                app.state.events.end()

            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, end)
            port = listener.getsockname()[1]  # uvicorn closes it before it ends
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            while not (server.started or serving.done()):  # noqa: ASYNC110 - uvicorn has nothing to wait for
                await asyncio.sleep(0.01)
            if server.started:
                gc.collect()
                gc.freeze()  # these objects stay; scanning them at each collection stopped all requests
                _log.info("dashboard_started", url=url)
                announce(url)
            try:
                while not serving.done():
                    report({"url": url, "port": port, "connections": len(server.server_state.connections)})
                    await asyncio.wait({serving}, timeout=_REPORT_S)
                await serving
            finally:
                gc.unfreeze()  # else DuckDB complains at exit about objects that were not freed

        # Not uvloop: it reads from a busy socket until it is empty, and in a flood /healthz took 3 s instead of 0.15.
        asyncio.run(run())


def configured(app: Any, settings: ServeSettings, **more: Any) -> uvicorn.Config:
    """uvicorn's configuration for serving `app`, with all limits. `more`: further options of uvicorn."""
    connections: Connections = app.state.connections
    # Each connection is an open file, and the number of open files of a process is limited.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections.most + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < wanted:
            connections.most = max(soft - _OTHER_FILES, 16)
            _log.warning("few_open_files", open_files_max=soft, connections_max=connections.most)
    return uvicorn.Config(
        app,
        http=partial(HttpConnection, connections),  # type: ignore[arg-type]
        ws=partial(WebSocketConnection, connections),  # type: ignore[arg-type]
        h11_max_incomplete_event_size=HEADERS_BYTES_MAX,
        ws_max_size=MESSAGE_BYTES_MAX,
        ws_per_message_deflate=False,  # would run for each viewer; messages are small, and encoded once for all
        backlog=_BACKLOG,
        proxy_headers=bool(settings.proxies),
        forwarded_allow_ips=settings.proxies,
        log_config=None,
        log_level="error",  # events that any visitor can cause are counted, and must not fill the log
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_END_WITHIN_S,
        **more,
    )


def address_of(listener: socket.socket) -> str:
    """The URL of a listening socket; the loopback address if it listens on all addresses."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - recognised, not listened on
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handling: it re-raises signals at its end, and we would end with an error."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Taken(ConfigurationError):
    """Another program listens on the port."""


def _listener(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigurationError(f"serve.host: {host} is no address of this machine ({error.strerror}).") from error
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart can listen at once, not after a minute
    if sys.platform == "linux":
        # Inherited by each connection: it is cut when its peer reads nothing for a minute.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MS)
    try:
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise _Taken(f"Port {port} of {host} is in use. Choose another --port, or --port 0.") from error
        reason = f"{error.strerror}. Choose another --host or --port."
        raise ConfigurationError(f"Can't listen on {host}:{port}: {reason}") from error
    return listener
