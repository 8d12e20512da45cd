"""The producer: everything of the feed put together.

Products are known or asked for; their sessions are spread over connections; messages flow through one
buffer into the log; what happens is said in the structured log and, twice a second, in a status report.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import structlog

from cryptopulse.errors import ConfigurationError, LogDamaged, TransientError
from cryptopulse.feed.advanced import Advanced
from cryptopulse.feed.buffer import LogWriter, MessageBuffer
from cryptopulse.feed.client import Connection, Shared, check_url
from cryptopulse.feed.exchange import Exchange
from cryptopulse.feed.protocol import (
    Dialect,
    Event,
    HoleFound,
    Malformed,
    MessagesSkipped,
    ServerError,
    Session,
    Stale,
    State,
    Subscribed,
)
from cryptopulse.feed.rate_limit import TokenBucket
from cryptopulse.feed.rest import RestClient, online_products
from cryptopulse.log import Log
from cryptopulse.retry import Backoff, retrying
from cryptopulse.settings import FeedSettings, Settings

REPORT_INTERVAL_S = 0.5
RATE_WINDOW_S = 2.0

CONNECTS_PER_SECOND = 4
"""Half of Coinbase's limit for one address (8 a second, bursts of 20)."""

CONNECTS_BURST = 8

RESUME_MESSAGES_MAX = 50_000
"""Newest messages of the log that a new producer looks at (0.2 s of work): at 20,000 a second they hold two
heartbeats of each product, and so its last trade id."""

LINES_PER_REPORT_MAX = 10
"""Lines about one kind of event between two reports; a broken feed could say thousands."""

_log = structlog.get_logger()


async def produce(settings: Settings, log: Log, stop: asyncio.Event, report: Callable[[dict[str, Any]], None]) -> None:
    """Records the feed into `log` until `stop` is set; then closes the connections, writes what is held,
    returns.

    `report` is called twice a second, and at the end, with a JSON-able picture of the state. Times in it
    are seconds since 1970 (UTC).

    Raises ConfigurationError for settings that can't work, and what `log.append` raises when the log
    refuses for good (LogFull and others): what was held in memory is lost then, and the structured log says
    how much.
    """
    feed = _Feed(settings, log, report)
    feed.kept = await asyncio.to_thread(_newest_messages, log)
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


class _Feed:
    """The parts of a running feed, and the picture of its state."""

    def __init__(self, settings: Settings, log: Log, report: Callable[[dict[str, Any]], None]) -> None:
        self._settings = settings.feed
        self._report = report
        self._dialect = _dialect(settings.feed)
        self._url = settings.feed.websocket_url or self._dialect.default_url
        check_url(self._url)
        self._dialect.check_products(settings.feed.products)
        self._loop = asyncio.get_running_loop()
        self.log_failed = asyncio.Event()
        self._buffer = MessageBuffer(settings.feed.buffer_max_mb * 1024 * 1024)
        self.writer = LogWriter(
            self._buffer,
            log,
            group_commit_ms=settings.log.group_commit_ms,
            failed=self._fail,
        )
        self._connections: list[Connection] = []
        self.kept: list[tuple[bytes, int]] = []
        """What the producer before this one recorded last, with its times on the monotonic clock (ns)."""
        self._state = "waiting for products"
        self._events = _EventLines()
        self._lost_said = 0
        self._totals: deque[tuple[float, int]] = deque()

    def _fail(self) -> None:
        """Called by the writer's thread when the log has refused for good."""
        self._loop.call_soon_threadsafe(self.log_failed.set)

    async def record(self) -> None:
        """Connects and keeps connected until cancelled."""
        products = self._settings.products or await self._ask_products()
        self._dialect.check_products(products)
        connects = TokenBucket(per_second=CONNECTS_PER_SECOND, burst=CONNECTS_BURST)
        shared = Shared(self._url, self._settings, self._buffer, connects, self._events.say)
        missed_max = self._settings.heartbeats_missed_max
        size = self._settings.products_per_connection_max
        for number, start in enumerate(range(0, len(products), size), start=1):
            part = products[start : start + size]
            session = Session(self._dialect, part, heartbeats_missed_max=missed_max)
            session.resume(self.kept)
            self._connections.append(Connection(str(number), session, shared))
        self.kept = []
        self._state = "recording"
        _log.info("feed_started", url=self._url, products=len(products), connections=len(self._connections))
        async with asyncio.TaskGroup() as group:
            for connection in self._connections:
                group.create_task(connection.run())

    async def _ask_products(self) -> list[str]:
        """All online products of the quote currency; keeps asking until there is an answer."""
        currency = self._settings.quote_currency

        def waiting(error: TransientError, pause_s: float) -> None:
            _log.warning("waiting_for_products", error=str(error), retry_in_s=round(pause_s, 2))

        async with RestClient(self._settings.rest_url) as rest:
            backoff = Backoff(longest_s=self._settings.backoff_max_s)
            products = online_products(await retrying(rest.products, backoff, waiting), currency)
        if not products:
            raise ConfigurationError(
                f"Setting feed.quote_currency: no product is traded against {currency!r} at "
                f"{self._settings.rest_url}; name products in feed.products."
            )
        return products

    async def keep_reporting(self) -> None:
        """Calls `report` until cancelled."""
        while True:
            self._say_losses()
            self._report(self.picture())
            await asyncio.sleep(REPORT_INTERVAL_S)

    def finish(self) -> None:
        """Says what became of the messages; after everything has ended."""
        self._state = "stopped"
        self._say_losses()
        held = len(self._buffer) + self.writer.in_flight
        if held:
            _log.error("messages_lost", because="the log failed", count=held, bytes=self._buffer.bytes_held)
        self._report(self.picture(held))
        _log.info("feed_stopped", messages_logged=self.writer.messages_logged)

    def _say_losses(self) -> None:
        self._events.new_interval()
        lost = sum(connection.traffic.lost_messages for connection in self._connections)
        if lost > self._lost_said:
            _log.error(
                "messages_lost",
                because="the log is slower than the feed and feed.buffer_max_mb is reached",
                count=lost - self._lost_said,
                total=lost,
            )
            self._lost_said = lost

    def picture(self, lost_in_memory: int = 0) -> dict[str, Any]:
        """The state of everything, ready for JSON."""
        now_ns = time.time_ns()
        traffic = [connection.traffic for connection in self._connections]
        sessions = [connection.session for connection in self._connections]
        messages = sum(part.messages for part in traffic)
        last_ns = max((part.last_received_ns for part in traffic), default=0)
        latency = self.writer.latencies.percentiles_ms(now_ns)
        return {
            "state": self._state,
            "time": now_ns / 1e9,
            "url": self._url,
            "connections": sum(session.state is State.LIVE for session in sessions),
            "connection_states": [_connection_picture(connection) for connection in self._connections],
            "products": sum(len(session.products) for session in sessions),
            "messages_total": messages,
            "messages_per_s": self._rate(messages),
            "bytes_total": sum(part.bytes for part in traffic),
            "messages_logged": self.writer.messages_logged,
            "buffer_messages": len(self._buffer),
            "buffer_bytes": self._buffer.bytes_held,
            "trades_total": sum(session.trades for session in sessions),
            "trades_repeated": sum(session.repeated for session in sessions),
            "holes": sum(session.holes for session in sessions),
            "ids_missing": sum(session.ids_missing for session in sessions),
            "ids_open": sum(session.ids_open for session in sessions),
            "malformed": sum(session.malformed for session in sessions),
            "messages_skipped": sum(session.messages_skipped for session in sessions),
            "lost_messages": sum(part.lost_messages for part in traffic) + lost_in_memory,
            "reconnects": sum(max(0, connection.sockets_opened - 1) for connection in self._connections),
            "last_message_age_s": (now_ns - last_ns) / 1e9 if last_ns else None,
            "logged_latency_p50_ms": latency[0] if latency else None,
            "logged_latency_p99_ms": latency[1] if latency else None,
        }

    def _rate(self, messages: int) -> float:
        """Messages a second over the last two seconds."""
        now_s = time.monotonic()
        self._totals.append((now_s, messages))
        while len(self._totals) > 2 and self._totals[0][0] < now_s - RATE_WINDOW_S:
            self._totals.popleft()
        first_s, first = self._totals[0]
        return (messages - first) / (now_s - first_s) if now_s > first_s else 0.0


def _newest_messages(log: Log) -> list[tuple[bytes, int]]:
    """The log's newest messages off a socket, oldest first, and when they came by the monotonic clock (ns)."""
    found = []
    to_monotonic_ns = time.monotonic_ns() - time.time_ns()
    try:
        for partition in log.partitions():
            first, end = log.bounds(partition)
            records = log.read(partition, max(first, end - RESUME_MESSAGES_MAX), RESUME_MESSAGES_MAX)
            live = records.filter(pc.equal(records["source"], "websocket"))
            received_us = pc.cast(live["received_time"], pa.int64()).to_pylist()
            times_ns = (at_us * 1000 + to_monotonic_ns for at_us in received_us)
            found += list(zip(live["body"].to_pylist(), times_ns, strict=True))
    except LogDamaged as error:  # recording goes on: it is what can still be saved
        _log.error("holes_before_start_unknown", error=str(error))
    return found


class _EventLines:
    """Says what sessions find, a bounded number of lines between two reports."""

    def __init__(self) -> None:
        self._said: Counter[str] = Counter()

    def say(self, connection: Connection, event: Event) -> None:
        """One line for `event`, unless there have been many of its kind lately."""
        name, level, values = _line(event)
        self._said[name] += 1
        if self._said[name] <= LINES_PER_REPORT_MAX:
            getattr(_log, level)(name, connection=connection.name, **values)

    def new_interval(self) -> None:
        """Says how many lines were left out, and starts counting again."""
        for name, count in self._said.items():
            if count > LINES_PER_REPORT_MAX:
                _log.warning("lines_left_out", about=name, count=count - LINES_PER_REPORT_MAX)
        self._said.clear()


def _line(event: Event) -> tuple[str, str, dict[str, Any]]:
    """Name, level and values of the line about `event`."""
    match event:
        case Subscribed(products, refused):
            values: dict[str, Any] = {"products": len(products)}
            return "subscribed", "warning" if refused else "info", values | {"refused": list(refused)}
        case HoleFound(product, first, last, witness):
            values = {"product": product, "first_missing": first, "last_missing": last}
            return "hole_found", "warning", values | {"missing": last - first + 1, "witness": witness}
        case Stale(reason):
            return "connection_stale", "warning", {"reason": reason}
        case ServerError(text):
            return "exchange_error", "error", {"text": text}
        case Malformed(reason, size):
            return "message_malformed", "warning", {"reason": reason, "bytes": size}
        case MessagesSkipped(count):
            return "messages_skipped", "warning", {"count": count}


def _connection_picture(connection: Connection) -> dict[str, Any]:
    state = connection.session.state
    return {
        "name": connection.name,
        "state": "waiting" if state is State.DISCONNECTED else state.value,
        "products": len(connection.session.products),
        "since": connection.since,
    }


def _dialect(settings: FeedSettings) -> Dialect:
    return Advanced() if settings.dialect == "advanced" else Exchange()
