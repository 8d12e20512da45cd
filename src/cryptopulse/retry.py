"""The one retry policy, for errors that may pass by themselves: pauses that double, with jitter.

`Backoff` says how long to wait before the next attempt; `retrying` applies it to a coroutine that raises
`TransientError`. A `TerminalError` is never retried: its type says that trying again won't help.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from cryptopulse.errors import TransientError

Result = TypeVar("Result")

FIRST_PAUSE_S = 0.25
"""So short that a connection that was merely cut is back before anyone notices."""


class Backoff:
    """Pauses between attempts: doubling from `first_s` to `longest_s`, each shortened at random by up to a half, so
    that many clients that were cut off together don't come back together.

    `rng` returns floats in [0, 1); tests pass their own.
    """

    def __init__(
        self,
        *,
        first_s: float = FIRST_PAUSE_S,
        longest_s: float = 30.0,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._first_s = min(first_s, longest_s)
        self._longest_s = longest_s
        self._rng = rng
        self._next_s = self._first_s

    def next_pause(self, at_least_s: float = 0.0) -> float:
        """Seconds to wait before the next attempt; `at_least_s`: what the peer asks for."""
        pause_s = self._next_s * (1.0 - self._rng() / 2)
        self._next_s = min(self._next_s * 2, self._longest_s)
        return max(pause_s, at_least_s)

    def reset(self) -> None:
        """Starts over with the first pause. Call it after a while without errors."""
        self._next_s = self._first_s


async def retrying(
    attempt: Callable[[], Awaitable[Result]],
    backoff: Backoff,
    waiting: Callable[[TransientError, float], None],
    *,
    attempts_max: int | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Result:
    """Returns what `attempt` returns; calls it again as long as it raises TransientError.

    Calls `waiting(error, pause in seconds)` before each pause, so that the user can be told. Raises the error of the
    last attempt after `attempts_max` attempts (None: no limit), and every other exception at once.
    """
    attempts = 0
    while True:
        attempts += 1
        try:
            return await attempt()
        except TransientError as error:
            if attempts == attempts_max:
                raise
            pause_s = backoff.next_pause(error.retry_after_s)
            waiting(error, pause_s)
            await sleep(pause_s)
