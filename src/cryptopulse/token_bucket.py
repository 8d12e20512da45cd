"""Rate limits: a burst at once, then a steady rate.

A `TokenBucket` only counts; its callers pass the time. A `RateLimiter` waits for one, which several processes can
share.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

_FAR_S = 60.0  # no queue is a minute long: a state further in the future is from before the last boot


class TokenBucket:
    """A burst of `at_once`, and one more every `every_s` seconds. Times are seconds of one monotonic clock."""

    def __init__(self, at_once: int, every_s: float) -> None:
        """Starts full. `at_once`: one or more."""
        self._at_once = at_once
        self._every_s = every_s
        self.full_at_s = 0.0
        """When the bucket will be full again; this number is its whole state."""

    def left(self, now_s: float) -> int:
        """How many tokens there are now."""
        used = max(self.full_at_s - now_s, 0.0) / self._every_s
        return int(self._at_once - used + 1e-6)  # in floats, 0.1 added ten times is less than one

    def take(self, now_s: float, count: int = 1) -> bool:
        """Takes `count` tokens and returns True; takes none and returns False when there are fewer."""
        if self.left(now_s) < count:
            return False
        self.full_at_s = max(self.full_at_s, now_s) + count * self._every_s
        return True

    def wait_s(self, now_s: float) -> float:
        """Seconds until there is a token."""
        return max(self.full_at_s - now_s - (self._at_once - 1) * self._every_s, 0.0)

    def reserve(self, now_s: float) -> float:
        """Takes the next token, even if it is not there yet; returns the seconds until it is."""
        wait_s = self.wait_s(now_s)
        self.full_at_s = max(self.full_at_s, now_s) + self._every_s
        return wait_s


class RateLimiter:
    """Lets `burst` callers through at once and `per_second` after that, in the order of their calls.

    `shared`: a file with which several processes of one machine share the limit. The first request creates it; where
    that fails, the limit is this process's own. `clock` returns monotonic nanoseconds, which count from the machine's
    start for all processes; tests pass their own `clock` and `sleep`.
    """

    def __init__(
        self,
        *,
        per_second: float,
        burst: int,
        shared: Path | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._bucket = TokenBucket(burst, 1 / per_second)
        self._shared = shared
        self._clock = clock
        self._sleep = sleep

    async def acquire(self) -> None:
        """Returns when the next request may be made."""
        wait_s = self._reserve(self._clock() / 1e9)
        if wait_s > 0:
            await self._sleep(wait_s)

    def _reserve(self, now_s: float) -> float:
        if self._shared is None:
            return self._bucket.reserve(now_s)
        with suppress(OSError):
            self._shared.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._shared, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                # Does not wait for the lock: the process that holds it may be stopped.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                known_s = int.from_bytes(os.pread(file, 8, 0), "little") / 1e9
                self._bucket.full_at_s = known_s if known_s <= now_s + _FAR_S else 0.0
                wait_s = self._bucket.reserve(now_s)
                os.pwrite(file, round(self._bucket.full_at_s * 1e9).to_bytes(8, "little"), 0)
                return wait_s
            finally:
                os.close(file)
        return self._bucket.reserve(now_s)
