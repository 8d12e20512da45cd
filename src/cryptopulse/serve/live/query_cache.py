"""Queries that cost more than reading new rows: each runs at most every few seconds, once for all viewers.

A query runs in a separate thread while its topic is watched. A slow query runs less often, so that viewers cost a small
part of a core whatever the size of the lake.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from cryptopulse.errors import CryptoPulseError
from cryptopulse.serve.http.problems import defect
from cryptopulse.serve.live.message import LiveMessage

ANSWER: Final = "queries/"
"""`queries/<query>`: its newest result."""

_PAUSE_PER_WORK = 10  # a query that takes a second pauses for ten


@dataclass(frozen=True)
class CachedQuery:
    """A query that is run repeatedly."""

    run: Callable[[], Mapping[str, Any]]
    """Returns the result, with values that JSON can hold. May raise CryptoPulseError."""
    every_s: float
    """Least seconds between two runs."""
    is_quick: bool = False
    """Whether it takes only some milliseconds; quick queries don't wait for the others."""


class QueryCache:
    """The newest results. Used by the live thread; the threads of the queries call `ready`."""

    def __init__(self, queries: Mapping[str, CachedQuery], ready: Callable[[str], None]) -> None:
        """`queries` by name; `ready(topic)` is called when `loaded(topic)` has a new result."""
        self._queries = {f"{ANSWER}{name}": query for name, query in queries.items()}
        self._ready = ready
        self._due_s: dict[str, float] = {}
        self._running: set[str] = set()
        self._results: dict[str, LiveMessage] = {}
        self._quick = ThreadPoolExecutor(1, thread_name_prefix="queries-quick")
        self._slow = ThreadPoolExecutor(1, thread_name_prefix="queries")

    def close(self) -> None:
        """Ends the threads, after their current queries."""
        for threads in (self._quick, self._slow):
            threads.shutdown(wait=False, cancel_futures=True)

    def forget(self) -> None:
        """Drops the results; the next viewer waits for new ones."""
        self._results.clear()
        self._due_s.clear()

    def refresh(self, watched: Collection[str]) -> None:
        """Starts the queries of the topics `watched` that are due."""
        now_s = time.monotonic()
        for topic in watched:
            if topic in self._queries and topic not in self._running and now_s >= self._due_s.get(topic, 0.0):
                self._running.add(topic)
                query = self._queries[topic]
                (self._quick if query.is_quick else self._slow).submit(self._run, topic, query)

    def snapshot(self, topic: str) -> LiveMessage | None:
        """The newest result, however old; None when there is none yet."""
        return self._results.get(topic)

    loaded = snapshot

    def _run(self, topic: str, query: CachedQuery) -> None:
        began_s, began_us = time.monotonic(), time.time_ns() // 1000
        try:
            data = {"state": "answered", "detail": None, **query.run()}
        except CryptoPulseError as error:
            data = {"state": "failed", "detail": str(error)}
        except Exception as error:  # noqa: BLE001 - one query must not end the others
            data = {"state": "failed", "detail": defect(topic, error).detail}
        took_s = time.monotonic() - began_s
        self._results[topic] = LiveMessage(
            topic, "snapshot", {"asked_us": began_us, "took_ms": round(took_s * 1000), **data}
        )
        self._due_s[topic] = began_s + took_s + max(query.every_s - took_s, took_s * _PAUSE_PER_WORK)
        self._running.discard(topic)
        self._ready(topic)
