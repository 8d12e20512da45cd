"""How often the exchange may be asked: one bucket for each of its limits, shared by all who ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable


class TokenBucket:
    """Allows `burst` requests at once and `per_second` after that.

    `clock` returns monotonic nanoseconds; tests pass their own, and their own `sleep`.
    """

    def __init__(
        self,
        *,
        per_second: float,
        burst: int,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._interval_ns = int(1e9 / per_second)
        self._burst_ns = self._interval_ns * (burst - 1)
        self._clock = clock
        self._sleep = sleep
        # The time at which the bucket will be full again; one number holds the whole state.
        self._full_at_ns = 0

    async def take(self) -> None:
        """Returns when the next request may be made. Callers get their turns in the order in which they
        ask."""
        now_ns = self._clock()
        self._full_at_ns = max(self._full_at_ns, now_ns) + self._interval_ns
        wait_ns = self._full_at_ns - self._interval_ns - now_ns - self._burst_ns
        if wait_ns > 0:
            await self._sleep(wait_ns / 1e9)
