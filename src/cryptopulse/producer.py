"""The producer: feed and healing, put together.

Products come from the settings or from the exchange; their sessions are spread over connections; messages, and pages
that heal holes, go through one buffer into the log. Events go to the structured log, figures to a status report.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import structlog

from cryptopulse.errors import ConfigurationError, CryptoPulseError, TransientError
from cryptopulse.feed.buffer import LogWriter, MessageBuffer
from cryptopulse.feed.client import FeedConnection, Shared, check_url
from cryptopulse.feed.event_log import EventLines
from cryptopulse.feed.protocol import Event, FeedSession, HoleFound, LateTrade, State, Subscribed
from cryptopulse.feed.recovery import LogEnd, log_end, resume
from cryptopulse.feed.rest import RestClient, online_products
from cryptopulse.feed.sequence_gaps import IdWatch
from cryptopulse.feed.venue_rest import rest_client
from cryptopulse.healing.heal import Healer
from cryptopulse.lake.products import venue_of
from cryptopulse.log import Log
from cryptopulse.retry import Backoff, retrying
from cryptopulse.settings import Settings
from cryptopulse.token_bucket import RateLimiter
from cryptopulse.venues import Dialect
from cryptopulse.venues.coinbase_advanced import AdvancedDialect
from cryptopulse.venues.coinbase_exchange import ExchangeDialect
from cryptopulse.venues.registry import VENUES

REPORT_INTERVAL_S = 0.5
UNCHANGED_S = 4.0
"""Time between reports while nothing changes. Readers treat a process without a report for 10 s as silent."""

RATE_WINDOW_S = 2.0

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
    async with AsyncExitStack() as opened:
        venues = dict.fromkeys(map(venue_of, settings.feed.products)) or [""]
        rest = {venue: await opened.enter_async_context(rest_client(settings, venue)) for venue in venues}
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
    """A feed, its address, and the limit of the attempts to connect to its venue."""

    dialect: Dialect
    url: str
    connects: RateLimiter


class _Feed:
    """The parts of a running feed, and its state as a report."""

    def __init__(
        self, settings: Settings, log: Log, rest: dict[str, RestClient], report: Callable[[dict[str, Any]], None]
    ) -> None:
        """`rest`: by venue, "" for Coinbase."""
        self._all_settings = settings
        self._settings = settings.feed
        self._report = report
        self._rest = rest
        self._sources = [source for venue in rest for source in _sources(settings, venue)]
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
        self._healers = {
            venue: Healer(venue, settings, client, self._buffer, self._watch, self._lines)
            for venue, client in rest.items()
        }
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
        """A venue's single feed must take each of its products; of two feeds one is enough."""
        for source in self._sources:
            venue = source.dialect.venue
            if [other.dialect.venue for other in self._sources].count(venue) == 1:
                source.dialect.check_products([product for product in products if venue_of(product) == venue])

    async def record(self) -> None:
        """Connects and stays connected until cancelled; fetches missing trades."""
        products = self._settings.products or await self._fetch_products()
        self._check(products)
        self._watch.follow(products)
        resumed = resume(self._watch, self.log_end)
        for healer in self._healers.values():
            healer.resume(resumed)
        self.log_end = LogEnd([], {}, is_all=False)  # it was some megabytes
        async with asyncio.TaskGroup() as group:
            self._connect(group, products)
            self._state = "recording"
            urls = " ".join(source.url for source in self._sources)
            _log.info("feed_started", url=urls, products=len(products), connections=len(self._connections))
            if self._all_settings.healing.enabled:
                for healer in self._healers.values():
                    group.create_task(self._heal(healer))
            if not self._settings.products:
                group.create_task(self._record_new_products(group))

    async def _heal(self, healer: Healer) -> None:
        """Heals until cancelled. An error in it is logged and does not end the recording."""
        try:
            await healer.run()
        except Exception as error:  # noqa: BLE001 - trades that are not recorded now are lost for longer
            _log.exception("unexpected_error", error=str(error))
        finally:
            await healer.close()

    async def _record_new_products(self, group: asyncio.TaskGroup) -> None:
        """Fetches the list of products at intervals, and records new ones on connections of their own."""
        while True:
            await asyncio.sleep(self._settings.products_refresh_s)
            try:
                listed = online_products(await self._rest[""].products(), self._settings.quote_currency)
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
        for dialect, url, connects in self._sources * self._settings.connections:
            shared = Shared(url, self._settings, self._buffer, connects, self._on_event)
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
                self._healers[venue_of(product)].found(product, first, last)
            case LateTrade(product, trade_id):
                self._healers[venue_of(product)].arrived(product, trade_id)
            case _:
                self._lines.event(connection.name, event)
                dialect = connection.session.dialect
                if isinstance(event, Subscribed) and not dialect.tells_newest:
                    self._healers[dialect.venue].ask_newest(event.products)

    async def _fetch_products(self) -> list[str]:
        """All online products of the quote currency; retries until there is an answer.

        Raises ConfigurationError if there are none.
        """
        currency = self._settings.quote_currency

        def waiting(error: TransientError, pause_s: float) -> None:
            _log.warning("waiting_for_products", error=str(error), retry_in_s=round(pause_s, 2))

        backoff = Backoff(longest_s=self._settings.backoff_max_s)
        products = online_products(await retrying(self._rest[""].products, backoff, waiting), currency)
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
        healing = Counter[str]()
        for healer in self._healers.values():
            healing.update(healer.state())
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
            **healing,
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


def _sources(settings: Settings, venue: str) -> list[_FeedSource]:
    """The feeds of `venue` to record. Raises ConfigurationError for an address that is not a WebSocket address."""
    feed, wanted = settings.feed, list[tuple[Dialect, str | None, str]]()
    if venue:
        wanted = [(VENUES[venue](), settings.venue(venue).websocket_url, f"{venue}.websocket_url")]
    else:
        first: Dialect = AdvancedDialect() if feed.dialect == "advanced" else ExchangeDialect()
        wanted = [(first, feed.websocket_url, "feed.websocket_url")]
        if feed.dialect == "both":
            wanted.append((AdvancedDialect(), feed.advanced_url, "feed.advanced_url"))
    per_second = wanted[0][0].connects_per_second
    connects = RateLimiter(per_second=per_second, burst=max(round(2 * per_second), 2))
    made = []
    for dialect, given, setting in wanted:
        url = dialect.default_url if given is None else given
        check_url(url, setting)
        made.append(_FeedSource(dialect, url, connects))
    return made
