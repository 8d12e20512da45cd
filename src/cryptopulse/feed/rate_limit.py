"""How often the exchange may be asked: one bucket for each of its limits, shared by all who ask."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FAR_NS = 60_000_000_000  # nobody waits for a minute's worth of requests: such a state is of before the last boot


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
        wait_ns = self._reserve(self._clock())
        if wait_ns > 0:
            await self._sleep(wait_ns / 1e9)

    def _reserve(self, now_ns: int) -> int:
        """Takes the next turn; how long it is until then."""
        self._full_at_ns = max(self._full_at_ns, now_ns) + self._interval_ns
        return self._full_at_ns - self._interval_ns - now_ns - self._burst_ns


class SharedTokenBucket(TokenBucket):
    """The same for several processes of one machine: the state is in a file.

    The clock counts from the machine's start, for all processes alike.
    """

    def __init__(
        self,
        path: Path,
        *,
        per_second: float,
        burst: int,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`path` is made at the first request. Where that can't be done the limit is this process's own."""
        super().__init__(per_second=per_second, burst=burst, clock=clock, sleep=sleep)
        self._path = path

    def _reserve(self, now_ns: int) -> int:
        with suppress(OSError), self._state() as file:
            known_ns = int.from_bytes(os.pread(file, 8, 0), "little")
            self._full_at_ns = known_ns if known_ns <= now_ns + _FAR_NS else 0
            wait_ns = super()._reserve(now_ns)
            os.pwrite(file, self._full_at_ns.to_bytes(8, "little"), 0)
            return wait_ns
        return super()._reserve(now_ns)

    @contextmanager
    def _state(self) -> Iterator[int]:
        """The file, for this process alone. Raises OSError rather than wait: who holds it may be stopped."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
        finally:
            os.close(file)
