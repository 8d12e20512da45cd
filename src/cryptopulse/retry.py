"""The one retry policy: pauses that double, with jitter, for whatever may pass by itself.

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
"""Short enough that a connection that was merely cut is back before anyone notices."""


class Backoff:
    """Pauses between the attempts of one thing: doubling from `first_s` to `longest_s`, each shortened at
    random by up to a half, so that many clients cut off at one moment don't come back at one moment.

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
        """Seconds to wait before the next attempt; `at_least_s` is what the other side asks for."""
        pause_s = self._next_s * (1.0 - self._rng() / 2)
        self._next_s = min(self._next_s * 2, self._longest_s)
        return max(pause_s, at_least_s)

    def reset(self) -> None:
        """Starts over with the short pause; to be called when things have been well for a while."""
        self._next_s = self._first_s


async def retrying(
    attempt: Callable[[], Awaitable[Result]],
    backoff: Backoff,
    waiting: Callable[[TransientError, float], None],
    *,
    attempts_max: int | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Result:
    """Returns what `attempt` returns, calling it again for as long as it raises TransientError.

    Before each pause `waiting(error, pause in seconds)` is called, so that the user is told. The error of the last
    attempt, when there are `attempts_max`, and every other exception pass through at once.
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
