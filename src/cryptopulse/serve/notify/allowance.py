"""How many messages a target may be sent."""

from __future__ import annotations

import math


class Allowance:
    """At most so many messages in any minute: half of them at once, the others spread over the minute.

    So a burst is passed on at once, and after it the next message waits for seconds and not for a whole minute. Times
    are seconds of one clock that never goes back.
    """

    def __init__(self, per_minute_max: int) -> None:
        """`per_minute_max`: two or more."""
        self._at_once = per_minute_max // 2
        self._pause_s = 60 / (per_minute_max - self._at_once)
        self._left = float(self._at_once)
        self._updated_s = -math.inf

    def left(self, now_s: float) -> int:
        """How many messages may be sent now."""
        if now_s > self._updated_s:
            self._left = min(self._left + (now_s - self._updated_s) / self._pause_s, self._at_once)
            self._updated_s = now_s
        return int(self._left + 1e-9)  # 0.1 added ten times is less than one

    def take(self, now_s: float) -> None:
        """Counts one message, of those that are `left`."""
        assert self.left(now_s) >= 1
        self._left = max(self._left - 1, 0.0)

    def wait_s(self, now_s: float) -> float:
        """Seconds until one may be sent."""
        return 0.0 if self.left(now_s) else (1 - self._left) * self._pause_s
