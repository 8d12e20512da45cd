"""The lake, read once for all viewers: one thread, the live thread, follows the tables and informs the subscribers.

Nothing is read while nobody watches. A subscriber gets a snapshot of each of its topics and then the changes, in order.
Each message is made and encoded once, snapshots once per version. A subscriber that is too slow loses its waiting
messages and gets a new snapshot. If a subscriber changes its topics quickly, only its newest request counts. So no
subscriber costs memory or delays others.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import structlog

from cryptopulse.errors import CryptoPulseError, LakeUnreachable, TransientError
from cryptopulse.lake.location import LakeLocation
from cryptopulse.retry import Backoff
from cryptopulse.serve.live.channels import LAKE, Topics
from cryptopulse.serve.live.message import LiveMessage

_log = structlog.get_logger()

POLL_S: Final = 0.05
"""Pause between two polls of the tables, of some 20 µs each; what is shown is late by at most this much."""
_LINGER_S = 30.0  # everything stays in memory this long for a reloaded page or the next viewer
_TOPIC_LINGER_S = 10.0  # the same for one topic: switching between two charts reads their past once
_TOPICS_LEFT_MAX = 32
_BACKOFF_MAX_S = 5.0
_END_WITHIN_S = 1.0
_STUCK_S, _ELSEWHERE_STUCK_S = 20.0, 300.0  # on S3 and Azure delta-rs tries for three minutes to reach the storage
_WOKEN_AT_ONCE = 16  # a subscriber's message takes some 0.1 ms to send
_WAITING_MAX = 64  # messages of some seconds; a slower subscriber is better served by a snapshot


class Live:
    """Follows a lake for any number of subscribers. Start it once in a process, close it at the end."""

    def __init__(self, lake: LakeLocation, poll_s: float = POLL_S, state_dir: Path | None = None) -> None:
        """Opens nothing yet; the lake need not exist. `state_dir`: of the processes of this machine."""
        self._topics = Topics(lake, self._ready, state_dir)
        self._poll_s = self._topics.poll_s(poll_s)
        self._stuck_s = _STUCK_S if lake.folder else _ELSEWHERE_STUCK_S
        self._wake = threading.Event()
        self._stop = False
        self._requests: deque[Subscription] = deque()
        """Subscriptions whose topics have changed, each once."""
        self._loaded: deque[str] = deque()
        self._watchers: dict[str, set[Subscription]] = {}
        self._left_at_s: dict[str, float] = {}
        """Topics that nobody watches any more, in the order in which they were left."""
        self._snapshots: dict[str, LiveMessage] = {}
        """Snapshots of the newest version, by topic."""
        self._busy_since_s: float | None = None
        self._thread = threading.Thread(target=self._run, name="live", daemon=True)
        self._backoff = Backoff(longest_s=_BACKOFF_MAX_S)

    @property
    def is_healthy(self) -> bool:
        """Whether the live thread runs and makes progress."""
        return self._thread.is_alive() and self.busy_s <= self._stuck_s

    @property
    def busy_s(self) -> float:
        """How long the live thread's current work has taken so far; new subscriptions wait for its end."""
        since_s = self._busy_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def start(self) -> None:
        """Starts to serve subscriptions."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread and all subscriptions. Waits at most a second for a read in progress."""
        self._stop = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_END_WITHIN_S)
        self._topics.close()

    def subscribe(self, topics: Iterable[str] = ()) -> Subscription:
        """A subscription for the running event loop, to be used as an asynchronous context manager."""
        return Subscription(self, asyncio.get_running_loop(), topics)

    def request(self, subscription: Subscription) -> None:
        """Makes the live thread apply the topics that `subscription` has when its turn comes."""
        if not subscription.is_queued:
            subscription.is_queued = True
            self._requests.append(subscription)
            self._wake.set()

    def _ready(self, topic: str) -> None:
        """Called from any thread when a topic whose history had to be read has its snapshot."""
        self._loaded.append(topic)
        self._wake.set()

    def _run(self) -> None:
        left_at_s = time.monotonic()
        while not self._stop:
            self._busy_since_s = time.monotonic()
            self._wake.clear()
            while self._requests and not self._stop:
                self._apply(self._requests.popleft())
            while self._loaded and not self._stop:
                topic = self._loaded.popleft()
                try:
                    loaded = self._topics.loaded(topic)
                except Exception as error:  # noqa: BLE001 - one topic must not end the thread of all others
                    _log.exception("unexpected_error", topic=topic, error=str(error))
                    continue
                if loaded is not None:
                    self._publish([loaded])
            # Topics are dropped a while after they were left, or earlier when there are many.
            oldest_s = time.monotonic() - _TOPIC_LINGER_S
            while self._left_at_s:
                topic, topic_left_at_s = next(iter(self._left_at_s.items()))
                if topic_left_at_s > oldest_s and len(self._left_at_s) <= _TOPICS_LEFT_MAX:
                    break
                del self._left_at_s[topic]
                self._snapshots.pop(topic, None)
                self._topics.drop(topic)
            pause_s: float | None = None
            if self._watchers:
                left_at_s = time.monotonic()
                pause_s = self._poll()
            elif time.monotonic() - left_at_s < _LINGER_S:
                pause_s = _LINGER_S
            else:
                self._topics.forget()
            self._busy_since_s = None
            self._wake.wait(pause_s)
        for subscription in {*self._requests, *(one for watchers in self._watchers.values() for one in watchers)}:
            _call(subscription.loop, subscription.over)

    def _apply(self, subscription: Subscription) -> None:
        """Changes what is watched for `subscription` to its current topics, and sends snapshots of the new ones."""
        subscription.is_queued = False  # before its topics are read, so that no request is missed in between
        watched, wanted = subscription.watched, dict.fromkeys(subscription.topics)
        is_behind, subscription.is_behind = subscription.is_behind, False
        for topic in watched.keys() - wanted.keys():
            self._watchers[topic].discard(subscription)
            if not self._watchers[topic]:
                del self._watchers[topic]
                self._left_at_s[topic] = time.monotonic()
        for topic in wanted:
            self._watchers.setdefault(topic, set()).add(subscription)
            self._left_at_s.pop(topic, None)
        subscription.watched = wanted
        snapshots = []
        for topic in wanted:
            if topic in watched and not is_behind:
                continue
            if (made := self._snapshots.get(topic)) is None:
                try:
                    made = self._topics.snapshot(topic)
                except Exception as error:  # noqa: BLE001 - see `_run`
                    _log.exception("unexpected_error", topic=topic, error=str(error))
                    continue
                if made is not None and topic != LAKE:  # LAKE's contains the current time
                    self._snapshots[topic] = made
            if made is not None:  # else it is not loaded yet
                snapshots.append(made)
        if snapshots:
            _call(subscription.loop, _deliver, subscription.loop, {subscription: snapshots})

    def _poll(self) -> float:
        """Publishes what has changed; returns the pause until the next poll in seconds."""
        try:
            messages = self._topics.poll(self._watchers)
        except CryptoPulseError as error:
            self._publish(self._topics.failed(error))
            pause_s = self._backoff.next_pause() if isinstance(error, TransientError) else _BACKOFF_MAX_S
            _log.warning("waiting_for_lake", error=str(error), retry_in_s=round(pause_s, 2))
            return pause_s
        except Exception as error:  # noqa: BLE001 - one failed poll must not stop all pages for ever
            _log.exception("unexpected_error", error=str(error))
            self._publish(self._topics.failed(LakeUnreachable(f"The tables can't be followed now: {error}")))
            return _BACKOFF_MAX_S
        self._backoff.reset()
        self._publish(messages)
        return self._poll_s

    def _publish(self, messages: list[LiveMessage]) -> None:
        if not messages:
            return
        self._snapshots.clear()
        due: dict[Subscription, list[LiveMessage]] = {}
        for message in messages:
            for subscription in self._watchers.get(message.topic, ()):
                due.setdefault(subscription, []).append(message)
        loops: dict[asyncio.AbstractEventLoop, dict[Subscription, list[LiveMessage]]] = {}
        for subscription, its in due.items():
            loops.setdefault(subscription.loop, {})[subscription] = its
        for loop, subscriptions in loops.items():  # one call per event loop
            _call(loop, _deliver, loop, subscriptions)


class Subscription:
    """One subscriber's topics: `async with`, then `async for` its messages. Topics may be changed in between."""

    def __init__(self, live: Live, loop: asyncio.AbstractEventLoop, topics: Iterable[str]) -> None:
        """Made by `Live.subscribe`."""
        self.loop = loop
        self.topics = tuple(topics)
        """The topics wanted: set by the subscriber, read by the live thread."""
        self.watched: dict[str, None] = {}
        """The topics that are followed for it; used only by the live thread."""
        self.is_queued = False
        self.is_behind = False
        """Whether it has lost messages, and needs snapshots of all topics."""
        self._live = live
        self._waiting: deque[LiveMessage] = deque()
        self._news = asyncio.Event()
        self._is_over = False

    async def __aenter__(self) -> Self:
        """Subscribes."""
        self._live.request(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the subscription."""
        self.set(())

    def set(self, topics: Iterable[str]) -> None:
        """Subscribes to `topics` and leaves all others, whose waiting messages may still come."""
        self.topics = tuple(topics)
        self._live.request(self)

    async def __aiter__(self) -> AsyncIterator[LiveMessage]:
        """The messages, until `Live` is closed."""
        while True:
            while self._waiting:
                yield self._waiting.popleft()
            if self._is_over:
                return
            await self._next()

    async def batch(self) -> list[LiveMessage]:
        """All waiting messages, at least one; waits for one. Empty when `Live` is closed."""
        while not (self._waiting or self._is_over):
            await self._next()
        found = list(self._waiting)
        self._waiting.clear()
        return found

    async def _next(self) -> None:
        self._news.clear()
        await self._news.wait()

    def over(self) -> None:
        """Ends the iteration after the waiting messages. Call it in the event loop."""
        self._is_over = True
        self._news.set()

    def take(self, messages: list[LiveMessage]) -> None:
        """Adds messages to the waiting ones. Call it in the event loop."""
        self._waiting.extend(message for message in messages if message.topic in self.topics)
        if len(self._waiting) > _WAITING_MAX:
            self._waiting.clear()
            self.is_behind = True
            self._live.request(self)

    def wake(self) -> None:
        """Lets the subscriber see what waits. Call it in the event loop."""
        self._news.set()


def _deliver(loop: asyncio.AbstractEventLoop, due: Mapping[Subscription, list[LiveMessage]]) -> None:
    for subscription, messages in due.items():
        subscription.take(messages)
    _wake(loop, iter(due))


def _wake(loop: asyncio.AbstractEventLoop, waiting: Iterator[Subscription]) -> None:
    """Wakes a few subscribers in each iteration of the loop: all at once would keep every other request waiting until
    each of them has been served.
    """
    woken = [*islice(waiting, _WOKEN_AT_ONCE)]
    for subscription in woken:
        subscription.wake()
    if woken:
        loop.call_soon(_wake, loop, waiting)


def _call(loop: asyncio.AbstractEventLoop, what: Callable[..., object], *arguments: object) -> None:
    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(what, *arguments)
