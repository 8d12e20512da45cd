"""The lake, read once for all who look: one thread follows the tables, and subscribers get what it makes of them.

While nobody looks nothing is read. A subscriber gets a snapshot of each of its topics and then the changes, in order.
Each message is made and encoded once; one that is too slow loses what waits for it and gets a snapshot again, so
nobody's slowness costs memory or delays others.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import structlog

from cryptopulse.errors import CryptoPulseError, LakeUnreachable, TransientError
from cryptopulse.lake.location import LakeLocation
from cryptopulse.retry import Backoff
from cryptopulse.serve.live.message import Message
from cryptopulse.serve.live.topics import Topics

_log = structlog.get_logger()

POLL_S: Final = 0.05
"""How often the tables are looked at: some 20 µs each time, and at most so much is added to what is shown."""
_LINGER_S = 30.0  # a page that is reloaded, or the next viewer, finds all in memory
_BACKOFF_MAX_S = 5.0
_WAITING_MAX = 64  # messages of some seconds; who is slower is better served by a snapshot


class Live:
    """Follows a lake for any number of subscribers. Start it once in a process, close it at the end."""

    def __init__(self, lake: LakeLocation, poll_s: float = POLL_S, state_dir: Path | None = None) -> None:
        """Opens nothing yet; the lake need not be there. `state_dir`: where processes of this machine report."""
        self._topics = Topics(lake, self._ready, state_dir)
        self._poll_s = self._topics.poll_s(poll_s)
        self._wake = threading.Event()
        self._stop = False
        self._asked: deque[Callable[[], None]] = deque()
        self._watchers: dict[str, set[Subscription]] = {}
        self._thread = threading.Thread(target=self._run, name="live", daemon=True)
        self._backoff = Backoff(longest_s=_BACKOFF_MAX_S)

    def start(self) -> None:
        """Begins to serve subscriptions."""
        self._thread.start()

    def close(self) -> None:
        """Ends; subscriptions end as well."""
        self._stop = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self._topics.close()

    def subscribe(self, topics: Iterable[str] = ()) -> Subscription:
        """A subscription to be used in the running event loop, as an asynchronous context manager."""
        return Subscription(self, asyncio.get_running_loop(), topics)

    def ask(self, request: Callable[[], None]) -> None:
        """Runs `request` in the thread that follows, before it looks the next time."""
        self._asked.append(request)
        self._wake.set()

    def watch(self, topic: str, subscription: Subscription) -> None:
        """Sends `subscription` a snapshot of `topic` and then its changes. Within `ask` only."""
        self._watchers.setdefault(topic, set()).add(subscription)
        if (snapshot := self._topics.snapshot(topic)) is not None:
            subscription.put([snapshot])

    def unwatch(self, topic: str, subscription: Subscription) -> None:
        """Ends that. Within `ask` only."""
        watchers = self._watchers.get(topic, set())
        watchers.discard(subscription)
        if not watchers and self._watchers.pop(topic, None) is not None:
            self._topics.drop(topic)

    def _ready(self, topic: str) -> None:
        """A topic whose history had to be read first has its snapshot now; from any thread."""
        self.ask(lambda: self._publish([snapshot] if (snapshot := self._topics.loaded(topic)) else []))

    def _run(self) -> None:
        left_at_s = time.monotonic()
        while not self._stop:
            self._wake.clear()
            while self._asked:
                self._asked.popleft()()
            if self._watchers:
                left_at_s = time.monotonic()
                self._wake.wait(self._look())
            elif time.monotonic() - left_at_s < _LINGER_S:
                self._wake.wait(_LINGER_S)
            else:
                self._topics.forget()
                self._wake.wait()
        for subscription in {one for watchers in self._watchers.values() for one in watchers}:
            subscription.end()

    def _look(self) -> float:
        """Publishes what has changed; returns for how long nothing need be done."""
        try:
            messages = self._topics.look(self._watchers)
        except CryptoPulseError as error:
            self._publish(self._topics.failed(error))
            pause_s = self._backoff.next_pause() if isinstance(error, TransientError) else _BACKOFF_MAX_S
            _log.warning("waiting_for_lake", error=str(error), retry_in_s=round(pause_s, 2))
            return pause_s
        except Exception as error:  # noqa: BLE001 - pages must not stand still for ever because of one look
            _log.exception("unexpected_error", error=str(error))
            self._publish(self._topics.failed(LakeUnreachable(f"The tables can't be followed now: {error}")))
            return _BACKOFF_MAX_S
        self._backoff.reset()
        self._publish(messages)
        return self._poll_s

    def _publish(self, messages: Iterable[Message]) -> None:
        due: dict[Subscription, list[Message]] = {}
        for message in messages:
            for subscription in self._watchers.get(message.topic, ()):
                due.setdefault(subscription, []).append(message)
        for subscription, its in due.items():
            subscription.put(its)


class Subscription:
    """One subscriber's topics: `async with`, then `async for` its messages. Topics may be changed in between."""

    def __init__(self, live: Live, loop: asyncio.AbstractEventLoop, topics: Iterable[str]) -> None:
        """Made by `Live.subscribe`."""
        self._live, self._loop = live, loop
        self._topics: set[str] = set()
        self._first = list(topics)
        self._waiting: deque[Message] = deque()
        self._news = asyncio.Event()
        self._is_over = False

    async def __aenter__(self) -> Self:
        """Subscribes."""
        self.add(*self._first)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the subscription."""
        self.remove(*self._topics)

    def set(self, topics: set[str]) -> None:
        """Subscribes to `topics` and leaves all others."""
        self.remove(*(self._topics - topics))
        self.add(*(topics - self._topics))

    def add(self, *topics: str) -> None:
        """Subscribes to more topics."""
        for topic in topics:
            self._topics.add(topic)
            self._live.ask(lambda topic=topic: self._live.watch(topic, self))  # type: ignore[misc]

    def remove(self, *topics: str) -> None:
        """Leaves topics; what was made of them before may still come."""
        for topic in list(topics):
            self._topics.discard(topic)
            self._live.ask(lambda topic=topic: self._live.unwatch(topic, self))  # type: ignore[misc]

    def put(self, messages: list[Message]) -> None:
        """Hands messages over to the event loop; from the thread that follows."""
        self._call(self._take, messages)

    def end(self) -> None:
        """Ends the iteration; from the thread that follows."""
        self._call(self._over)

    async def __aiter__(self) -> AsyncIterator[Message]:
        """The messages, until the live state is closed."""
        while True:
            while self._waiting:
                yield self._waiting.popleft()
            if self._is_over:
                return
            await self._next()

    async def batch(self) -> list[Message]:
        """All messages that wait, at least one; none when the live state is closed."""
        while not (self._waiting or self._is_over):
            await self._next()
        found = list(self._waiting)
        self._waiting.clear()
        return found

    async def _next(self) -> None:
        self._news.clear()
        await self._news.wait()

    def _call(self, what: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(what, *arguments)
        except RuntimeError:  # the loop is closed: nobody is there any more
            self._is_over = True

    def _over(self) -> None:
        self._is_over = True
        self._news.set()

    def _take(self, messages: list[Message]) -> None:
        wanted = [message for message in messages if message.topic in self._topics]
        self._waiting.extend(wanted)
        if len(self._waiting) > _WAITING_MAX:
            self._waiting.clear()
            self.add(*self._topics)
        self._news.set()
