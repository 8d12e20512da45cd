"""How many queries of visitors run at the same time, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, TypeVar

from cryptopulse.serve.http.problems import Problem

Result = TypeVar("Result")

_WAITING_PER_QUERY: Final = 4  # so many wait for each one that runs; the rest come back later
_RETRY_AFTER_S: Final = 1
_GRACE_S: Final = 2.0  # a query stops itself in time; only a storage that does not answer makes us give up on it


class QueryPool:
    """Runs queries in threads of its own. Used from one event loop."""

    def __init__(self, at_once: int, timeout_s: float) -> None:
        """`timeout_s`: how long each may wait and run, together."""
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="query")
        self._timeout_s = timeout_s
        self._places = at_once * (1 + _WAITING_PER_QUERY)
        self.open = 0
        """How many run or wait."""
        self.refused = 0
        """How many found the queue full."""

    async def run(self, query: Callable[[], Result]) -> Result:
        """What `query`, which runs in another thread, returns or raises.

        Raises Problem: 503 when too many wait already, 504 when it took too long.
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
            # A place is free when the query has ended, not when its visitor has gone.
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(leave)

        work = self._threads.submit(query)
        work.add_done_callback(done)
        try:
            # Cancelled when nobody waits any more: what has not begun then never does.
            return await asyncio.wait_for(asyncio.wrap_future(work), self._timeout_s + _GRACE_S)
        except TimeoutError:
            raise query_timeout(self._timeout_s) from None

    def close(self) -> None:
        """Ends; what runs goes to its end without anybody waiting."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def query_timeout(timeout_s: float) -> Problem:
    """The problem of a query that was stopped."""
    return Problem(
        504,
        "too_slow",
        f"Query timed out after {timeout_s:g} s; choose a shorter time or fewer products, or raise "
        "serve.query_timeout_s.",
    )
