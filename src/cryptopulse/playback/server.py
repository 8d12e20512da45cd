"""The playback as a server: one port for both WebSocket feeds and REST, at the paths of the simulator."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog
import uvloop

from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.dataset import Lake
from cryptopulse.playback.rest import Rest
from cryptopulse.playback.session import PlaybackSession
from cryptopulse.playback.window import Window
from cryptopulse.simulator.wire import HttpRequest, HttpResponse, Port, ServerConnection

log = structlog.get_logger()

_WRITE_MARK = 1024 * 1024
_GOODBYE_S = 1.0
_GOING_AWAY = 1001  # RFC 6455, 7.4.1


_SPEED_MAX = 1_000_000.0


@dataclass(frozen=True)
class PlaybackOptions:
    """What is played, how fast, and where. Raises ConfigurationError for an impossible speed."""

    first_us: int
    end_us: int
    """Times of receipt, from (included) and to (not included), µs UTC."""
    speed: float = 1.0
    """Seconds of the past in a second; 0: as fast as they are read."""
    products: Sequence[str] | None = None
    """None: all of the lake."""
    host: str = "127.0.0.1"
    port: int = 8766
    """0: any free port."""

    def __post_init__(self) -> None:
        """Checks the speed."""
        if not 0 <= self.speed <= _SPEED_MAX:
            raise ConfigurationError(f"Speed {self.speed}: give 0 (as fast as it is read) to {_SPEED_MAX:,.0f}.")


async def serve(
    lake: Lake, options: PlaybackOptions, on_ready: Callable[[int, Window], None], stop: asyncio.Event
) -> None:
    """Plays until `stop` is set; calls `on_ready(port, window)` when it accepts connections.

    Raises ConfigurationError when there is nothing to play, or the address can't be used.
    """
    window = Window(lake, options.first_us, options.end_us, options.speed, options.products)
    rest, sessions = Rest(lake, window), set[PlaybackSession]()

    async def respond(request: HttpRequest) -> HttpResponse:
        return await asyncio.to_thread(rest.respond, request)

    def accept(socket: ServerConnection, path: str) -> PlaybackSession | None:
        if path not in ("/", "/exchange", "/advanced"):
            return None
        session = PlaybackSession(socket, window, is_advanced=path == "/advanced", closed=sessions.discard)
        sessions.add(session)
        return session

    port = Port(respond, accept, _WRITE_MARK)
    try:
        number = await port.open(options.host, options.port)
    except (OSError, UnicodeError) as error:
        why: str | None = "no name of a host"
        if isinstance(error, OSError):  # asyncio's own text repeats the address; a resolver's numbers are negative
            why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise ConfigurationError(
            f"Can't listen on {options.host}:{options.port} ({why}): choose another --host or --port."
        ) from error
    try:
        on_ready(number, window)
        await stop.wait()
    finally:
        port.close()
        for session in list(sessions):
            session.socket.close(_GOING_AWAY, "playback stopped")
        with suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_S):
                for session in list(sessions):
                    await session.ended.wait()
        for session in list(sessions):
            session.socket.abort()


def run(lake: Lake, options: PlaybackOptions, on_ready: Callable[[int, Window], None]) -> None:
    """Plays until SIGINT or SIGTERM. Raises the errors of `serve`."""

    async def until_signalled() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, stop.set)
        await serve(lake, options, on_ready, stop)

    uvloop.run(until_signalled())
