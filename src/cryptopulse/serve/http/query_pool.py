"""Limits how many queries of visitors run at the same time, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, TypeVar

from cryptopulse.serve.http.problems import Problem

Result = TypeVar("Result")

_WAITING_PER_QUERY: Final = 4  # queue places for each running query; more are refused
_RETRY_AFTER_S: Final = 1
_GRACE_S: Final = 2.0  # a query stops itself in time; only if the storage does not answer do we give up on it


class QueryPool:
    """Runs queries in threads of its own. Used from one event loop."""

    def __init__(self, at_once: int, timeout_s: float) -> None:
        """`at_once`: how many run at the same time. `timeout_s`: limit of waiting and running together."""
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="query")
        self._timeout_s = timeout_s
        self._places = at_once * (1 + _WAITING_PER_QUERY)
        self.open = 0
        """How many queries run or wait."""
        self.refused = 0
        """How many were refused because the queue was full."""

    async def run(self, query: Callable[[], Result]) -> Result:
        """Runs `query` in another thread; returns or raises what it does.

        Raises Problem: 503 when the queue is full, 504 when it took too long.
        """
        if self.open >= self._places:
            self.refused += 1
            headers = {"Retry-After": str(_RETRY_AFTER_S)}
            raise Problem(503, "busy", "Query queue is full; retry later.", headers=headers)
        self.open += 1
        loop = asyncio.get_running_loop()

        def leave() -> None:
            self.open -= 1

        def done(_work: object) -> None:
            # A place becomes free when the query has ended, not when its visitor has gone.
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(leave)

        work = self._threads.submit(query)
        work.add_done_callback(done)
        try:
            # Cancelled when the visitor has gone: a query that has not begun is never run.
            return await asyncio.wait_for(asyncio.wrap_future(work), self._timeout_s + _GRACE_S)
        except TimeoutError:
            raise query_timeout(self._timeout_s) from None

    def close(self) -> None:
        """Ends the pool; does not wait for running queries."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def query_timeout(timeout_s: float) -> Problem:
    """The problem for a query that was stopped after `timeout_s`."""
    return Problem(
        504,
        "too_slow",
        f"Query timed out after {timeout_s:g} s; choose a shorter time or fewer products, or raise "
        "serve.query_timeout_s.",
    )
