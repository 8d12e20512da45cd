"""The producer: feed and healing, put together.

Products come from the settings or from the exchange; their sessions are spread over connections; messages, and pages
that heal holes, go through one buffer into the log. Events go to the structured log, figures to a status report.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import structlog

from cryptopulse.errors import ConfigurationError, CryptoPulseError, TransientError
from cryptopulse.feed.buffer import LogWriter, MessageBuffer
from cryptopulse.feed.client import FeedConnection, Shared, check_url
from cryptopulse.feed.event_log import EventLines
from cryptopulse.feed.protocol import Event, FeedSession, HoleFound, LateTrade, State
from cryptopulse.feed.recovery import LogEnd, log_end, resume
from cryptopulse.feed.rest import RestClient, online_products
from cryptopulse.feed.sequence_gaps import IdWatch
from cryptopulse.healing.heal import Healer
from cryptopulse.log import Log
from cryptopulse.retry import Backoff, retrying
from cryptopulse.settings import FeedSettings, Settings
from cryptopulse.token_bucket import RateLimiter
from cryptopulse.venues import Dialect
from cryptopulse.venues.coinbase_advanced import AdvancedDialect
from cryptopulse.venues.coinbase_exchange import ExchangeDialect

REPORT_INTERVAL_S = 0.5
UNCHANGED_S = 4.0
"""Time between reports while nothing changes. Readers treat a process without a report for 10 s as silent."""

RATE_WINDOW_S = 2.0

CONNECTS_PER_SECOND = 4
"""Half of Coinbase's limit per IP address (8 a second, bursts of 20)."""

CONNECTS_BURST = 8

_AGES = frozenset({"time", "last_message_age_s", "last_logged_age_s"})
"""Values that change with time alone; a reader adds the age of the report."""

_log = structlog.get_logger()


async def produce(settings: Settings, log: Log, stop: asyncio.Event, report: Callable[[dict[str, Any]], None]) -> None:
    """Records the feed into `log` until `stop` is set; then closes the connections, writes the buffer and returns.

    `report` is called with the state, ready for JSON: when it changes, at most twice a second; every few seconds
    otherwise; and at the end. Times in it are seconds since 1970 (UTC).

    Raises ConfigurationError for settings that can't work, and the error of `log.append` when the log fails for good
    (LogFull and others): messages in memory are then lost, and the structured log has their number.
    """
    url, per_second = settings.feed.rest_url, settings.feed.rest_requests_per_second
    async with RestClient(url, per_second=per_second, allowance=settings.rest_allowance) as rest:
        feed = _Feed(settings, log, rest, report)
        feed.log_end = await asyncio.to_thread(log_end, log)
        tasks = {
            asyncio.create_task(stop.wait()),
            asyncio.create_task(feed.log_failed.wait()),
            asyncio.create_task(feed.record()),
            asyncio.create_task(feed.keep_reporting()),
        }
        feed.writer.start()
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await asyncio.to_thread(feed.writer.close)
            feed.finish()
    if feed.writer.error is not None:
        raise feed.writer.error
    for task in done:
        task.result()


class _FeedSource(NamedTuple):
    """One of the exchange's feeds and its address."""

    dialect: Dialect
    url: str


class _Feed:
    """The parts of a running feed, and its state as a report."""

    def __init__(
        self, settings: Settings, log: Log, rest: RestClient, report: Callable[[dict[str, Any]], None]
    ) -> None:
        self._all_settings = settings
        self._settings = settings.feed
        self._report = report
        self._rest = rest
        self._sources = _sources(settings.feed)
        self._check(settings.feed.products)
        self._loop = asyncio.get_running_loop()
        self.log_failed = asyncio.Event()
        self._buffer = MessageBuffer(settings.feed.buffer_max_mb * 1024 * 1024)
        self.writer = LogWriter(
            self._buffer,
            log,
            group_commit_ms=settings.log.group_commit_ms,
            failed=self._fail,
        )
        self._lines = EventLines()
        self._watch = IdWatch()
        self._healer = Healer(settings, rest, self._buffer, self._watch, self._lines)
        self._connects = RateLimiter(per_second=CONNECTS_PER_SECOND, burst=CONNECTS_BURST)
        self._connections: list[FeedConnection] = []
        self.log_end = LogEnd([], {}, is_all=True)
        """The newest messages of the previous producer."""
        self._state = "waiting for products"
        self._lost_logged = 0
        self._totals: deque[tuple[float, int]] = deque()

    def _fail(self) -> None:
        """Called by the writer's thread when the log has failed for good."""
        self._loop.call_soon_threadsafe(self.log_failed.set)

    def _check(self, products: list[str]) -> None:
        """A single feed must take every product; with two, each product needs only one of them."""
        if len(self._sources) == 1:
            self._sources[0].dialect.check_products(products)

    async def record(self) -> None:
        """Connects and stays connected until cancelled; fetches missing trades."""
        products = self._settings.products or await self._fetch_products()
        self._check(products)
        self._watch.follow(products)
        self._healer.resume(resume(self._watch, self.log_end))
        self.log_end = LogEnd([], {}, is_all=False)  # it was some megabytes
        async with asyncio.TaskGroup() as group:
            self._connect(group, products)
            self._state = "recording"
            urls = " ".join(source.url for source in self._sources)
            _log.info("feed_started", url=urls, products=len(products), connections=len(self._connections))
            if self._all_settings.healing.enabled:
                group.create_task(self._heal())
            if not self._settings.products:
                group.create_task(self._record_new_products(group))

    async def _heal(self) -> None:
        """Heals until cancelled. An error in it is logged and does not end the recording."""
        try:
            await self._healer.run()
        except Exception as error:  # noqa: BLE001 - trades that are not recorded now are lost for longer
            _log.exception("unexpected_error", error=str(error))
        finally:
            await self._healer.close()

    async def _record_new_products(self, group: asyncio.TaskGroup) -> None:
        """Fetches the list of products at intervals, and records new ones on connections of their own."""
        while True:
            await asyncio.sleep(self._settings.products_refresh_s)
            try:
                listed = online_products(await self._rest.products(), self._settings.quote_currency)
            except CryptoPulseError as error:
                _log.warning("products_not_refreshed", error=str(error))
                continue
            products = [
                product
                for product in listed
                if product not in self._watch.ids and any(source.dialect.takes(product) for source in self._sources)
            ]
            if products:
                _log.info("products_added", products=products)
                self._watch.follow(products)
                self._connect(group, products)

    def _connect(self, group: asyncio.TaskGroup, products: list[str]) -> None:
        """Makes connections, each for a part of `products`; all share one IdWatch."""
        size, missed_max = self._settings.products_per_connection_max, self._settings.heartbeats_missed_max
        for dialect, url in self._sources * self._settings.connections:
            shared = Shared(url, self._settings, self._buffer, self._connects, self._on_event)
            taken = [product for product in products if dialect.takes(product)]
            for start in range(0, len(taken), size):
                part = taken[start : start + size]
                session = FeedSession(dialect, part, heartbeats_missed_max=missed_max, watch=self._watch)
                connection = FeedConnection(str(len(self._connections) + 1), session, shared)
                self._connections.append(connection)
                group.create_task(connection.run())

    def _on_event(self, connection: FeedConnection, event: Event) -> None:
        match event:
            case HoleFound(product, first, last, witness):
                self._lines.hole(product, first, last, witness)
                self._healer.found(product, first, last)
            case LateTrade(product, trade_id):
                self._healer.arrived(product, trade_id)
            case _:
                self._lines.event(connection.name, event)

    async def _fetch_products(self) -> list[str]:
        """All online products of the quote currency; retries until there is an answer.

        Raises ConfigurationError if there are none.
        """
        currency = self._settings.quote_currency

        def waiting(error: TransientError, pause_s: float) -> None:
            _log.warning("waiting_for_products", error=str(error), retry_in_s=round(pause_s, 2))

        backoff = Backoff(longest_s=self._settings.backoff_max_s)
        products = online_products(await retrying(self._rest.products, backoff, waiting), currency)
        if not products:
            raise ConfigurationError(
                f"Setting feed.quote_currency: no product is traded against {currency!r} at "
                f"{self._settings.rest_url}; name products in feed.products."
            )
        return products

    async def keep_reporting(self) -> None:
        """Calls `report` at intervals until cancelled."""
        reported: dict[str, Any] = {}
        due_s = 0.0
        while True:
            self._log_losses()
            state = self.state()
            news = {name: value for name, value in state.items() if name not in _AGES}
            if news != reported or time.monotonic() >= due_s:
                self._report(state)
                reported, due_s = news, time.monotonic() + UNCHANGED_S
            await asyncio.sleep(REPORT_INTERVAL_S)

    def finish(self) -> None:
        """Logs losses and makes the last report; call it after everything has ended."""
        self._state = "stopped"
        self._log_losses()
        held = len(self._buffer) + self.writer.in_flight
        if held:
            _log.error("messages_lost", because="the log failed", count=held, bytes=self._buffer.bytes_held)
        self._report(self.state(held))
        _log.info("feed_stopped", messages_logged=self.writer.messages_logged)

    def _log_losses(self) -> None:
        self._lines.new_interval()
        lost = sum(connection.traffic.lost_messages for connection in self._connections)
        if lost > self._lost_logged:
            _log.error(
                "messages_lost",
                because="the log is slower than the feed and feed.buffer_max_mb is reached",
                count=lost - self._lost_logged,
                total=lost,
            )
            self._lost_logged = lost

    def state(self, lost_in_memory: int = 0) -> dict[str, Any]:
        """The producer's state, ready for JSON."""
        now_ns = time.time_ns()
        traffic = [connection.traffic for connection in self._connections]
        sessions = [connection.session for connection in self._connections]
        messages = sum(part.messages for part in traffic)
        last_ns = max((part.last_received_ns for part in traffic), default=0)
        latency = self.writer.latency.lately()
        return {
            "state": self._state,
            "time": now_ns / 1e9,
            "url": " ".join(source.url for source in self._sources),
            "connections": sum(session.state is State.LIVE for session in sessions),
            "connection_states": [
                {
                    "name": connection.name,
                    "state": "waiting" if session.state is State.DISCONNECTED else session.state.value,
                    "products": len(session.products),
                    "silent": session.silent,
                    "refused": list(session.refused_products),
                    "since": connection.since,
                }
                for connection, session in zip(self._connections, sessions, strict=True)
            ],
            "products": len(self._watch.ids),
            "products_silent": sum(len(session.silent) for session in sessions),
            "products_refused": sum(len(session.refused_products) for session in sessions),
            "messages_total": messages,
            "messages_per_s": self._rate(messages),
            "bytes_total": sum(part.bytes for part in traffic),
            "messages_logged": self.writer.messages_logged,
            "last_logged_age_s": (now_ns - self.writer.last_logged_ns) / 1e9 if self.writer.last_logged_ns else None,
            "buffer_messages": len(self._buffer),
            "buffer_bytes": self._buffer.bytes_held,
            "trades_total": sum(session.trades for session in sessions),
            "trades_repeated": self._watch.repeated,
            "holes": self._watch.holes,
            "ids_open": self._watch.ids_open,
            **self._healer.state(),
            "malformed": sum(session.malformed for session in sessions),
            "messages_skipped": sum(session.messages_skipped for session in sessions),
            "lost_messages": sum(part.lost_messages for part in traffic)
            + lost_in_memory
            + self.writer.messages_refused,
            "reconnects": sum(max(0, connection.sockets_opened - 1) for connection in self._connections),
            "last_message_age_s": (now_ns - last_ns) / 1e9 if last_ns else None,
            "logged_latency_p50_ms": latency["p50"],
            "logged_latency_p99_ms": latency["p99"],
        }

    def _rate(self, messages: int) -> float:
        """Messages per second over the last two seconds."""
        now_s = time.monotonic()
        self._totals.append((now_s, messages))
        while len(self._totals) > 2 and self._totals[0][0] < now_s - RATE_WINDOW_S:
            self._totals.popleft()
        first_s, first = self._totals[0]
        return (messages - first) / (now_s - first_s) if now_s > first_s else 0.0


def _sources(settings: FeedSettings) -> list[_FeedSource]:
    """The feeds to record. Raises ConfigurationError for an address that is not a WebSocket address."""
    exchange, advanced = ExchangeDialect(), AdvancedDialect()
    first: Dialect = advanced if settings.dialect == "advanced" else exchange
    made = [_FeedSource(first, first.default_url if settings.websocket_url is None else settings.websocket_url)]
    check_url(made[0].url, "feed.websocket_url")
    if settings.dialect == "both":
        url = advanced.default_url if settings.advanced_url is None else settings.advanced_url
        made.append(_FeedSource(advanced, url))
        check_url(made[1].url, "feed.advanced_url")
    return made
