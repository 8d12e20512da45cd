"""`/api/events`: alerts and prices as server-sent events, from the one reader that all pages share.

The id of an alert's event is the `load_timestamp` of its commit (µs since 1970). A client that reconnects with it as
`Last-Event-ID` gets all alerts that have changed since, also after a restart of the server. Prices are not repeated. A
slow client gets fewer prices but all alerts; one that does not read at all is dropped. A browser's EventSource gives up
for ever on any answer but 200, so a client that can't be served now gets a stream that says when to reconnect.

FastAPI's own `EventSourceResponse` does less: it has no deadline for a reader, encodes each event for each reader, and
sends 200 before a request can be refused.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Final
from weakref import WeakKeyDictionary

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from starlette.responses import Response

from cryptopulse.lake.tables import ALERTS
from cryptopulse.serve.api.json_rows import json_texts
from cryptopulse.serve.api.parameters import EventsParams
from cryptopulse.serve.api.service import Service
from cryptopulse.serve.api.streaming import DeadlineStream
from cryptopulse.serve.http.problems import Problem
from cryptopulse.serve.live.channels import EPISODES, LAKE, MARKET
from cryptopulse.serve.live.hub import Live, Subscription
from cryptopulse.serve.live.message import LiveMessage

MEDIA_TYPE: Final = "text/event-stream"
STREAMS_MAX: Final = 200
FULL_S: Final = 2.0
"""A client beyond STREAMS_MAX waits this long for its answer, so that one that always reconnects at once costs less."""
QUIET_S: Final = 15.0
"""After this time without an event a comment is sent, so that each side notices when the other is gone."""

_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # proxies must not buffer events
_TRANSIENT: Final = (503, 504)
_RETRY_MS = 2000
_RETRY_WHEN_FULL_MS = 30_000
_MISSED_MAX = 10_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIMES = tuple(field.name for field in ALERTS.arrow_schema if pa.types.is_timestamp(field.type))
_LOADED = "load_timestamp"


class Events:
    """All streams of a server."""

    def __init__(self, live: Live, service: Service) -> None:
        """Starts without listeners."""
        self._live = live
        self._service = service
        self._prices = _Prices()
        self._subscriptions: set[Subscription] = set()
        self.listeners = 0
        """How many clients are connected."""

    async def stream(self, params: EventsParams, last_event_id: str | None) -> Response:
        """The response to a client. Raises Problem for errors that will not pass by themselves."""
        # An id in the future, after the clock was set back, must not hide new alerts.
        since_us = None if last_event_id is None else min(int(last_event_id), time.time_ns() // 1000)
        if self.listeners >= STREAMS_MAX:
            await asyncio.sleep(FULL_S)
            return _retry_later(f"{STREAMS_MAX} listen already", _RETRY_WHEN_FULL_MS)
        self.listeners += 1
        try:
            await self._service.alerts(params.symbols)  # errors are answered now, not within the stream
        except BaseException as error:
            self.listeners -= 1
            if isinstance(error, Problem) and error.status in _TRANSIENT:
                return _retry_later(error.detail, _RETRY_MS)
            raise

        def ended() -> None:
            self.listeners -= 1

        return DeadlineStream(self._events(params, since_us), _HEADERS, MEDIA_TYPE, ended)

    def end(self) -> None:
        """Ends all streams when the server ends. Call it in the event loop."""
        for subscription in self._subscriptions:
            subscription.over()

    async def _events(self, params: EventsParams, since_us: int | None) -> AsyncIterator[bytes]:
        kinds = params.kind or ["alerts", "prices"]
        topics = [LAKE, *([EPISODES] if "alerts" in kinds else []), *([MARKET] if "prices" in kinds else [])]
        listener = _Listener(frozenset(params.symbols) if params.symbols else None, self._prices)
        subscription = self._live.subscribe(topics)
        try:
            yield _retry(_RETRY_MS)
            async with subscription:
                self._subscriptions.add(subscription)
                if "alerts" in kinds:  # read after subscribing, so that no change is missed between the two
                    yield b"".join(listener.missed_alerts(await self._service.alerts(params.symbols), since_us))
                while True:
                    try:
                        async with asyncio.timeout(QUIET_S):
                            batch = await subscription.batch()
                    except TimeoutError:
                        yield b": still here\n\n"
                        continue
                    if not batch:
                        break
                    yield b"".join(part for message in batch for part in listener.events_of(message))
            yield _event("end", b'{"reason":"the server ends"}')
        except Problem as problem:  # the lake could be read a moment ago
            yield _event("end", msgspec.json.encode({"reason": problem.detail}))
        finally:
            self._subscriptions.discard(subscription)


def _retry_later(reason: str, retry_ms: int) -> Response:
    """The response to a client that can't be served now."""
    content = _retry(retry_ms) + _event("end", msgspec.json.encode({"reason": f"{reason}: come back later."}))
    return Response(content, 200, _HEADERS, MEDIA_TYPE)


def _retry(about_ms: int) -> bytes:
    """Tells the client when to reconnect, at a random time so that not all come at once."""
    return b"retry: %d\n\n" % random.randint(about_ms // 2, about_ms * 3 // 2)  # noqa: S311


class _Listener:
    """One client, and what it has been sent."""

    def __init__(self, symbols: Collection[str] | None, prices: _Prices) -> None:
        self._symbols = symbols
        self._prices = prices
        self._alerts_us = 0
        """load_timestamp (µs since 1970) up to which it has all alerts."""
        self._market: LiveMessage | None = None
        self._lake: tuple[object, object] | None = None

    def events_of(self, message: LiveMessage) -> Iterator[bytes]:
        """The events for `message`."""
        if message.topic == EPISODES:
            new = [row for row in message.data["rows"] if row[_LOADED] > self._alerts_us]
            new = [row for row in new if self._symbols is None or row["symbol"] in self._symbols]
            yield from _alert_events(
                (row[_LOADED], msgspec.json.encode({**row, **{name: _iso(row[name]) for name in _TIMES}}))
                for row in sorted(new, key=lambda row: row[_LOADED])
            )
            self._alerts_us = max(self._alerts_us, *(row[_LOADED] for row in message.data["rows"]), 0)
            for alert_id in message.data.get("gone", ()):
                if self._symbols is None or alert_id.split(":")[-2] in self._symbols:
                    yield _event("alert_gone", msgspec.json.encode({"alert_id": alert_id}))
        elif message.topic == MARKET:
            if message.kind == "snapshot":
                self._market = message
            if self._market is not None:
                yield self._prices.event(message, self._market, self._symbols)
        elif (lake := (message.data["state"], message.data["detail"])) != self._lake:
            self._lake = lake
            yield _event("lake", msgspec.json.encode({"state": lake[0], "detail": lake[1]}))

    def missed_alerts(self, table: pa.Table, since_us: int | None) -> Iterator[bytes]:
        """Events for the episodes of `table` that changed after `since_us` (µs since 1970); None: for the open ones."""
        loaded = pc.cast(table[_LOADED], pa.int64())
        newest = pc.max(loaded).as_py() or 0
        # An id of another lake, or from before a restore, must not hide new alerts.
        since = newest if since_us is None else min(since_us, newest)
        wanted = pc.equal(table["state"], "OPEN") if since_us is None else pc.greater(loaded, since)
        rows = table.filter(wanted).sort_by(_LOADED)
        rows = rows.slice(max(0, rows.num_rows - _MISSED_MAX)).combine_chunks()
        times = pc.cast(rows[_LOADED], pa.int64()).to_pylist()
        texts = [text.encode() for batch in rows.to_batches() for text in json_texts(batch).to_pylist()]
        yield from _alert_events(zip(times, texts, strict=True))
        self._alerts_us = newest


def _alert_events(rows: Iterable[tuple[int, bytes]]) -> Iterator[bytes]:
    """Only the last event of a commit has the id: a client that leaves in the middle gets the whole commit again."""
    for (loaded_us, text), (following_us, _) in pairwise((*rows, (0, b""))):
        yield _event("alert", text, loaded_us if following_us != loaded_us else None)


class _Prices:
    """Market messages as events; each is encoded once for all listeners."""

    def __init__(self) -> None:
        self._made: WeakKeyDictionary[LiveMessage, tuple[dict[str, bytes], bytes]] = WeakKeyDictionary()

    def event(self, message: LiveMessage, snapshot: LiveMessage, symbols: Collection[str] | None) -> bytes:
        """The event with the prices of `symbols` (None: all) in `message`; empty when it has none of them.

        `snapshot`: the newest snapshot; `message` itself if it is one.
        """
        if (made := self._made.get(message)) is None:
            data, rows = snapshot.data, message.data["rows"]
            places: Any = range(len(rows))
            if message is not snapshot:
                places, rows = [int(row[0]) for row in rows], [row[1:] for row in rows]
            texts = {}
            for place, row in zip(places, rows, strict=True):
                if row[0] is None or math.isnan(row[0]):  # no price yet
                    continue
                figures = dict(zip(data["columns"], row, strict=True))
                figures["price"] = f"{row[0]:.{data['decimals'][place]}f}"
                texts[data["symbols"][place]] = msgspec.json.encode({"symbol": data["symbols"][place], **figures})
            made = self._made[message] = texts, _prices(message, texts.values())
        texts, whole = made
        return whole if symbols is None else _prices(message, [texts[one] for one in texts if one in symbols])


def _prices(message: LiveMessage, rows: Collection[bytes]) -> bytes:
    moment = msgspec.json.encode(_iso(message.data["now_us"]))
    return _event("prices", b'{"time":%b,"prices":[%b]}' % (moment, b",".join(rows))) if rows else b""


def _iso(us: int | None) -> str | None:
    if us is None:
        return None
    return (_EPOCH + timedelta(microseconds=us)).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _event(kind: str, data: bytes, event_id: int | None = None) -> bytes:
    number = b"" if event_id is None else b"id: %d\n" % event_id
    return b"event: %b\n%bdata: %b\n\n" % (kind.encode(), number, data)
