"""The simulator as a server: one port for all WebSocket feeds, REST and the control interface.

`/exchange` (and `/`) speaks the Exchange dialect, `/advanced` Advanced Trade's, `/kraken`, `/binance` and `/okx` those
of these venues; `/products…` is Coinbase's REST, and the others have their own paths;
`/simulator/…` is the control interface.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import structlog
import uvloop

from cryptopulse.errors import ConfigurationError
from cryptopulse.simulator.advanced import AdvancedSession
from cryptopulse.simulator.control_api import ControlApi
from cryptopulse.simulator.crash_day import CrashDay
from cryptopulse.simulator.exchange import ExchangeSession
from cryptopulse.simulator.market import Flags, Trades
from cryptopulse.simulator.options import FEEDS, SimulatorOptions
from cryptopulse.simulator.other_venues import BinanceSession, KrakenSession, OkxSession
from cryptopulse.simulator.recording import RecordingSession, Timeline, load_timeline
from cryptopulse.simulator.rest import SimulatedRest
from cryptopulse.simulator.session import ClientSession
from cryptopulse.simulator.venue import SimulatedVenue
from cryptopulse.simulator.wire import HttpRequest, HttpResponse, Port, ServerConnection

log = structlog.get_logger()

_GAP_S = 0.005
"""Trades due within this time are sent together; the delay that this adds is too small to be measured."""
_PUBLISH_MAX = 2000
"""Trades published at a time (about 10 ms), before requests of other connections are handled."""
_EVENLY_S = 0.01
"""Trades of so long a time are sent together when a crash day is played."""
_BATCHING_S = 0.25
"""Advanced Trade sends updates this often (documented, and seen in recordings)."""
_TICK_S = 0.05
"""Precision of deadlines and of faults of connections."""
_WRITE_MARK = 1024 * 1024
"""Unsent bytes at which a reader counts as slow (used at speed 0 and for recordings)."""
_GOODBYE_S = 1.0
_GOING_AWAY = 1001  # RFC 6455, 7.4.1


_FEEDS: Mapping[str, type[ClientSession]] = {
    "/": ExchangeSession,
    "/exchange": ExchangeSession,
    "/advanced": AdvancedSession,
    "/kraken": KrakenSession,
    "/binance": BinanceSession,
    "/okx": OkxSession,
}
"""Path → the dialect that it speaks."""


class Simulator:
    """A simulated exchange with its connections."""

    def __init__(self, options: SimulatorOptions) -> None:
        """Reads the recording, if there is one. Raises ConfigurationError when it is broken."""
        self.venue = SimulatedVenue(options)
        self._recording: Timeline | None = load_timeline(options.recording) if options.recording else None
        self._rest = SimulatedRest(self.venue)
        self._control = ControlApi(self.venue, self._rest, self.stop_trading)
        self._sessions: dict[ClientSession, str] = {}
        """Session → its feed, one of FEEDS."""
        self._connections = 0
        self._stirred = asyncio.Event()
        self._market: asyncio.Task[None] | None = None

    async def respond(self, request: HttpRequest) -> HttpResponse:
        """Answers an HTTP request."""
        if request.path.startswith("/simulator/"):
            return self._control.respond(request)
        return await self._rest.respond(request)

    def accept(self, socket: ServerConnection, path: str) -> ClientSession | None:
        """Makes the session of a WebSocket connection; None for an unknown path."""
        feed = _FEEDS.get(path)
        if feed is None:
            return None
        number, self._connections = self._connections, self._connections + 1
        session = (
            feed(socket, self.venue, number, self._session_changed)
            if self._recording is None
            else RecordingSession(socket, self.venue, number, self._session_changed, self._recording)
        )
        self._sessions[session] = path.strip("/") or "exchange"
        log.info("simulator_connection_opened", connection=number, path=path)
        return session

    def _session_changed(self, session: ClientSession) -> None:
        if session.closed and session in self._sessions:
            del self._sessions[session]
            log.info("simulator_connection_closed", connection=session.number)
        if self.venue.options.start != "at_once" and self._has_subscribers():
            self.venue.start()
        self._stirred.set()

    def _has_subscribers(self) -> bool:
        """Whether those subscribe for whom trading starts."""
        match self.venue.options.start:
            case "all_subscribed":
                feeds: list[Sequence[str]] = [[feed] for feed in self.venue.options.start_feeds] or [FEEDS]
                return all(self._subscribed(part).all() for part in feeds)
            case "first_subscription":
                return bool(self._subscribed(FEEDS).any())
        return True

    def _subscribed(self, feeds: Sequence[str]) -> Flags:
        """Whether each product has a subscriber on one of `feeds`."""
        traded = [session.traded for session, feed in self._sessions.items() if feed in feeds and not session.closed]
        return np.any(traded, axis=0) if traded else np.zeros(len(self.venue.products), dtype=bool)

    # Running

    async def run(self) -> None:
        """Runs market, heartbeats and deadlines until cancelled."""
        if self._recording is None and self.venue.options.start == "at_once":
            self.venue.start()
        async with asyncio.TaskGroup() as tasks:
            if self._recording is None:
                self._market = tasks.create_task(self._trade())
            tasks.create_task(self._every(_BATCHING_S, lambda session: session.flush()))
            tasks.create_task(self._heartbeats())
            tasks.create_task(self._every(_TICK_S, lambda session: session.tick(time.monotonic())))

    def stop_trading(self) -> None:
        """Ends the market and sends the waiting trades; connections, heartbeats and REST go on."""
        self.venue.stopped = True
        if self._market is not None:
            self._market.cancel()
        for session in list(self._sessions):
            session.flush()
            session.release()

    async def close(self) -> None:
        """Closes all connections; cuts those that don't close within a second."""
        for session in list(self._sessions):
            session.socket.close(_GOING_AWAY, "simulator stopped")
        try:
            async with asyncio.timeout(_GOODBYE_S):
                while self._sessions:
                    self._stirred.clear()
                    await self._stirred.wait()
        except TimeoutError:
            for session in list(self._sessions):
                session.cut()

    async def _trade(self) -> None:
        """Publishes the market's trades when they are due: late on a slow machine, but without skipping one."""
        await self.venue.started.wait()
        if self.venue.day is not None:
            await self._play(self.venue.day)
            self.stop_trading()
            return
        left = self.venue.options.trades_max
        for block in self.venue.market.blocks():
            trades = block if left is None else block[:left]
            self.venue.history.add(trades)
            await (self._publish_timed(trades) if self.venue.options.speed else self._publish_at_once(trades))
            if left is not None:
                left -= len(trades)
                if left == 0:
                    break
        self.stop_trading()

    async def _play(self, day: CrashDay) -> None:
        """Publishes a crash day at an even rate, but not faster than readers take it. Cuts all connections where the
        day's recorder was cut off, and goes on when there are subscribers again.
        """
        rate, clock = self.venue.options.rate, time.monotonic
        together = max(int(rate * _EVENLY_S), 1)
        for number, (missed, received) in enumerate(day.parts()):
            if number:
                for session in list(self._sessions):
                    session.cut()
            if len(missed):
                self.venue.history.add(missed)
                self._publish(missed)
            while not self._has_subscribers():
                self._stirred.clear()
                await self._stirred.wait()
            due_s = clock()
            for first in range(0, len(received), together):
                trades = received[first : first + together]
                self.venue.history.add(trades)
                self._publish(trades)
                for session in list(self._sessions):
                    await session.writable.wait()
                due_s += len(trades) / rate
                await asyncio.sleep(max(due_s - clock(), 0))

    async def _publish_timed(self, block: Trades) -> None:
        speed, times = self.venue.options.speed, block["time_us"]
        done = 0
        while done < len(block):
            due = int(np.searchsorted(times, self.venue.offset_us(), side="right"))
            if due > done:
                end = min(due, done + _PUBLISH_MAX)
                self._publish(block[done:end])
                done = end
                await asyncio.sleep(0 if end < due else _GAP_S)
            else:
                await asyncio.sleep((int(times[done]) - self.venue.offset_us()) / 1e6 / speed)

    async def _publish_at_once(self, block: Trades) -> None:
        """Publishes as soon as there is a reader of trades; then waits until no reader is behind."""
        while not any(session.traded.any() for session in self._sessions):
            self._stirred.clear()
            await self._stirred.wait()
        self._publish(block)
        for session in list(self._sessions):
            session.flush()
            await session.writable.wait()
        await asyncio.sleep(0)

    def _publish(self, trades: Trades) -> None:
        batch = self.venue.publish(trades)
        for session in list(self._sessions):
            session.publish(batch)

    async def _every(self, pause_s: float, do: Callable[[ClientSession], None]) -> None:
        while True:
            await asyncio.sleep(pause_s)
            for session in list(self._sessions):
                do(session)

    async def _heartbeats(self) -> None:
        """Sends heartbeats once a second; at speed 1 at full seconds of market time, as the exchange does."""
        counter = 0
        while True:
            is_clock = self.venue.options.speed == 1 and self.venue.day is None
            aligned = is_clock and self.venue.started.is_set()
            await asyncio.sleep(1 - self.venue.market_us() % 1_000_000 / 1e6 if aligned else 1)
            counter += 1
            for session in list(self._sessions):
                session.heartbeat(counter)
                session.release()


async def serve(options: SimulatorOptions, on_ready: Callable[[int], None], stop: asyncio.Event) -> None:
    """Serves until `stop` is set; calls `on_ready(port)` when it accepts connections.

    Raises ConfigurationError when the address can't be used or the recording is broken.
    """
    simulator = Simulator(options)
    port = Port(simulator.respond, simulator.accept, _WRITE_MARK)
    try:
        number = await port.open(options.host, options.port)
    except OSError as error:
        raise ConfigurationError(
            f"Simulator: can't listen on {options.host}:{options.port} ({error.strerror}): choose another port."
        ) from error
    running = asyncio.create_task(simulator.run())
    stopping = asyncio.create_task(stop.wait())
    try:
        on_ready(number)
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
    finally:
        stopping.cancel()
        running.cancel()
        await asyncio.gather(running, stopping, return_exceptions=True)
        port.close()
        await simulator.close()


def run(options: SimulatorOptions, on_ready: Callable[[int], None] | None = None) -> None:
    """Serves until SIGINT or SIGTERM; logs the address when ready. Raises the errors of `serve`."""

    def ready(port: int) -> None:
        log.info("simulator_ready", url=f"http://{options.host}:{port}", market=options.recording is None)
        if on_ready is not None:
            on_ready(port)

    async def until_signalled() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, stop.set)
        await serve(options, ready, stop)
        log.info("simulator_stopped")

    uvloop.run(until_signalled())
