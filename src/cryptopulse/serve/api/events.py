"""`/api/events`: alerts and prices as server-sent events, from the one reader that all pages share.

An alert's event has an id, the moment when its commit was cut; who comes back with it as `Last-Event-ID` gets all that
has changed since, over restarts as well. Prices are of now and are not told again. Who reads slowly gets fewer prices,
and no fewer alerts; who does not read at all is left.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from weakref import WeakKeyDictionary

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import structlog
from starlette.responses import StreamingResponse
from starlette.types import Message as AsgiMessage
from starlette.types import Receive, Scope, Send

from cryptopulse.lake.tables import ALERTS
from cryptopulse.serve.api.json_rows import json_texts
from cryptopulse.serve.api.parameters import EventsAsked
from cryptopulse.serve.api.service import Service
from cryptopulse.serve.live.live import Live, Subscription
from cryptopulse.serve.live.message import Message
from cryptopulse.serve.live.topics import EPISODES, LAKE, MARKET
from cryptopulse.serve.problems import Problem

MEDIA_TYPE: Final = "text/event-stream"
_log = structlog.get_logger()

STREAMS_MAX: Final = 200
QUIET_S: Final = 15.0
"""After so long without an event a comment is sent, so that both sides notice when the other is gone."""
UNREAD_S: Final = 30.0
"""Who has not read for so long is left."""

_RETRY_MS = 2000
_MISSED_MAX = 10_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIMES = tuple(field.name for field in ALERTS.arrow_schema if pa.types.is_timestamp(field.type))
_LOADED = "load_timestamp"


class Events:
    """All streams of a server."""

    def __init__(self, live: Live, service: Service) -> None:
        """Nobody listens yet."""
        self._live = live
        self._service = service
        self._prices = _Prices()
        self._ending: asyncio.Event | None = None
        self._open = 0

    @property
    def listeners(self) -> int:
        """How many listen."""
        return self._open

    async def stream(self, asked: EventsAsked, last_event_id: str | None) -> _Stream:
        """The answer to one who listens. Raises Problem."""
        # A clock that was set must not hide what comes.
        since_us = None if last_event_id is None else min(int(last_event_id), time.time_ns() // 1000)
        if self._open >= STREAMS_MAX:
            raise Problem(503, "busy", f"{STREAMS_MAX} listen already: come back later.", headers={"Retry-After": "30"})
        await self._service.alerts(asked.symbols)  # says now what is wrong, and not when the stream has begun
        return _Stream(self._told(asked, since_us))

    def end(self) -> None:
        """Tells all who listen that the server ends. From the event loop."""
        self._ends.set()

    @property
    def _ends(self) -> asyncio.Event:
        if self._ending is None:
            self._ending = asyncio.Event()
        return self._ending

    async def _told(self, asked: EventsAsked, since_us: int | None) -> AsyncIterator[bytes]:
        kinds = asked.kind or ["alerts", "prices"]
        topics = [LAKE, *([EPISODES] if "alerts" in kinds else []), *([MARKET] if "prices" in kinds else [])]
        listener = _Listener(frozenset(asked.symbols) if asked.symbols else None, self._prices)
        self._open += 1
        try:
            yield f"retry: {_RETRY_MS}\n\n".encode()
            async with self._live.subscribe(topics) as subscription:
                if "alerts" in kinds:  # by now what changes comes as well, and what was told is known
                    yield b"".join(listener.alerts.missed(await self._service.alerts(asked.symbols), since_us))
                while (batch := await self._batch(subscription)) is not None:
                    yield b"".join(part for message in batch for part in listener.told(message))
                    if not batch:
                        yield b": still here\n\n"
            yield _event("end", b'{"reason":"the server ends"}')
        except Problem as problem:  # the lake could be read a moment ago
            yield _event("end", msgspec.json.encode({"reason": problem.detail}))
        finally:
            self._open -= 1

    async def _batch(self, subscription: Subscription) -> list[Message] | None:
        """What there is to tell; empty after a quiet time, None at the end."""
        batch = asyncio.ensure_future(subscription.batch())
        ends = asyncio.ensure_future(self._ends.wait())
        try:
            await asyncio.wait({batch, ends}, timeout=QUIET_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ends.cancel()
            if not batch.done():
                batch.cancel()
        if self._ends.is_set():
            return None
        if not batch.done() or batch.cancelled():
            return []
        return batch.result() or None


class _Stream(StreamingResponse):
    """A stream that ends when nobody reads it."""

    def __init__(self, content: AsyncIterator[bytes]) -> None:
        self._content = content
        # Proxies must pass each event on at once.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(content, 200, headers, MEDIA_TYPE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: AsgiMessage) -> None:
            async with asyncio.timeout(UNREAD_S):
                await send(message)

        async with aclosing(self._content):  # type: ignore[type-var]
            try:
                await super().__call__(scope, receive, sending)
            except TimeoutError:  # the server closes the connection of an answer that was not finished
                _log.warning("listener_left", because="it did not read", after_s=UNREAD_S)


class _Listener:
    """What one listener was told."""

    def __init__(self, symbols: Collection[str] | None, prices: _Prices) -> None:
        self.alerts = _Alerts(symbols)
        self._symbols = symbols
        self._prices = prices
        self._market: Message | None = None
        self._lake: tuple[object, object] | None = None

    def told(self, message: Message) -> Iterator[bytes]:
        """The events that `message` makes."""
        if message.topic == EPISODES:
            yield from self.alerts.changed(message)
        elif message.topic == MARKET:
            if message.kind == "snapshot":
                self._market = message
            if self._market is not None:
                yield from self._prices.told(message, self._market, self._symbols)
        elif (lake := (message.data["state"], message.data["said"])) != self._lake:
            self._lake = lake
            yield _event("lake", msgspec.json.encode({"state": lake[0], "said": lake[1]}))


class _Alerts:
    """What one listener was told of alerts."""

    def __init__(self, symbols: Collection[str] | None) -> None:
        self._symbols = symbols
        self._told_us = 0

    def missed(self, table: pa.Table, since_us: int | None) -> Iterator[bytes]:
        """Of `table`, all episodes: those that changed after `since_us`; without it those that are open."""
        loaded = pc.cast(table[_LOADED], pa.int64())
        newest = pc.max(loaded).as_py() or 0
        # An id of another lake, or of one that was put back, must not hide what comes.
        since = newest if since_us is None else min(since_us, newest)
        wanted = pc.equal(table["state"], "OPEN") if since_us is None else pc.greater(loaded, since)
        rows = table.filter(wanted).sort_by(_LOADED)
        rows = rows.slice(max(0, rows.num_rows - _MISSED_MAX)).combine_chunks()
        times = pc.cast(rows[_LOADED], pa.int64()).to_pylist()
        texts = [text for batch in rows.to_batches() for text in json_texts(batch).to_pylist()]
        yield from self._events([(at, text.encode()) for at, text in zip(times, texts, strict=True)])
        self._told_us = newest

    def changed(self, message: Message) -> Iterator[bytes]:
        """What `message` brings that was not told yet."""
        rows = [
            row
            for row in message.data["rows"]
            if row[_LOADED] > self._told_us and (self._symbols is None or row["symbol"] in self._symbols)
        ]
        rows.sort(key=lambda row: row[_LOADED])
        yield from self._events([(row[_LOADED], _alert(row)) for row in rows])
        self._told_us = max(self._told_us, *(row[_LOADED] for row in message.data["rows"]), 0)
        for alert_id in message.data.get("gone", ()):
            if self._symbols is None or alert_id.split(":")[-2] in self._symbols:
                yield _event("alert_gone", msgspec.json.encode({"alert_id": alert_id}))

    @staticmethod
    def _events(rows: list[tuple[int, bytes]]) -> Iterator[bytes]:
        """Only the last of a commit has its id: who goes away in the middle is told all of it again."""
        for number, (loaded_us, text) in enumerate(rows):
            is_last = number + 1 == len(rows) or rows[number + 1][0] != loaded_us
            yield _event("alert", text, loaded_us if is_last else None)


class _Prices:
    """Market messages as events; each is made once for all listeners."""

    def __init__(self) -> None:
        self._made: WeakKeyDictionary[Message, dict[str, bytes]] = WeakKeyDictionary()

    def told(self, message: Message, snapshot: Message, symbols: Collection[str] | None) -> Iterator[bytes]:
        """The event that tells of `symbols` (None: all) what `message` says; none when it says nothing of them.

        `snapshot`: the newest one, `message` itself if it is one.
        """
        rows = self._made.get(message)
        if rows is None:
            rows = self._made[message] = self._rows(message, snapshot)
        chosen = [text for symbol, text in rows.items() if symbols is None or symbol in symbols]
        if chosen:
            moment = msgspec.json.encode(_iso(message.data["now_us"]))
            yield _event("prices", b'{"time":%b,"prices":[%b]}' % (moment, b",".join(chosen)))

    @staticmethod
    def _rows(message: Message, snapshot: Message) -> dict[str, bytes]:
        """By product its row as JSON."""
        data, rows = snapshot.data, message.data["rows"]
        places: Any = range(len(rows))
        if message is not snapshot:
            places, rows = [int(row[0]) for row in rows], [row[1:] for row in rows]
        found = {}
        for place, row in zip(places, rows, strict=True):
            if row[0] is None or math.isnan(row[0]):  # no price yet
                continue
            symbol, decimals = data["symbols"][place], data["decimals"][place]
            told = dict(zip(data["columns"], row, strict=True))
            told["price"] = f"{row[0]:.{decimals}f}"
            found[symbol] = msgspec.json.encode({"symbol": symbol, **told})
        return found


def _alert(row: dict[str, Any]) -> bytes:
    return msgspec.json.encode({**row, **{name: _iso(row[name]) for name in _TIMES}})


def _iso(us: int | None) -> str | None:
    if us is None:
        return None
    return (_EPOCH + timedelta(microseconds=us)).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _event(kind: str, data: bytes, event_id: int | None = None) -> bytes:
    number = b"" if event_id is None else b"id: %d\n" % event_id
    return b"event: %b\n%bdata: %b\n\n" % (kind.encode(), number, data)
