"""How many questions of visitors are worked on at the same time, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from cryptopulse.serve.problems import Problem

Answer = TypeVar("Answer")

_WAITING_PER_QUERY: Final = 4  # so many wait for each one that is worked on; the rest come back later
_RETRY_AFTER_S: Final = 1
_GRACE_S: Final = 2.0  # a query stops itself in time; only a storage that does not answer makes us give up on it


class Gate:
    """Runs queries in threads of its own. Used from one event loop."""

    def __init__(self, at_once: int, timeout_s: float) -> None:
        """`timeout_s`: how long each may wait and work, together."""
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="query")
        self._timeout_s = timeout_s
        self._places = at_once * (1 + _WAITING_PER_QUERY)
        self._taken = 0
        self.refused = 0
        """How many were told to come back."""

    @property
    def taken(self) -> int:
        """How many are worked on or wait."""
        return self._taken

    async def ask(self, query: Callable[[], Answer]) -> Answer:
        """What `query`, which runs in another thread, returns or raises.

        Raises Problem: 503 when too many wait already, 504 when it took too long.
        """
        if self._taken >= self._places:
            self.refused += 1
            raise Problem(
                503,
                "busy",
                "Too many questions are waiting: ask again in a moment.",
                headers={"Retry-After": str(_RETRY_AFTER_S)},
            )
        self._taken += 1
        loop = asyncio.get_running_loop()
        work = self._threads.submit(query)
        work.add_done_callback(lambda _work: self._done(loop))
        try:
            return await asyncio.wait_for(_waiting(work), self._timeout_s + _GRACE_S)
        except TimeoutError:
            raise too_slow(self._timeout_s) from None

    def close(self) -> None:
        """Ends; what is worked on runs to its end without anybody waiting."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _done(self, loop: asyncio.AbstractEventLoop) -> None:
        """A place is free when the work has ended, not when its visitor has gone."""
        try:
            loop.call_soon_threadsafe(self._leave)
        except RuntimeError:  # the loop is closed
            return

    def _leave(self) -> None:
        self._taken -= 1


def too_slow(timeout_s: float) -> Problem:
    """The problem of a query that was stopped."""
    return Problem(
        504,
        "too_slow",
        f"It took more than {timeout_s:g} s: ask for a shorter time or fewer products, or allow more with "
        "serve.query_timeout_s.",
    )


async def _waiting(work: Future[Answer]) -> Answer:
    # Cancelled when nobody waits any more: what has not begun then never does.
    return await asyncio.wrap_future(work)
