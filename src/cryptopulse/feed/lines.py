"""What is said about a feed in the structured log: a bounded number of lines."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import structlog

from cryptopulse.feed.protocol import (
    Event,
    Malformed,
    MessagesSkipped,
    ServerError,
    Stale,
    Subscribed,
)

LINES_PER_REPORT_MAX = 10
"""Lines about one kind of event between two reports; a broken feed could say thousands."""

Level = Literal["info", "warning", "error"]

_log = structlog.get_logger()


class EventLines:
    """Says what happens, at most `LINES_PER_REPORT_MAX` times of each kind between two reports."""

    def __init__(self) -> None:
        self._said: Counter[str] = Counter()

    def say(self, name: str, level: Level, **values: Any) -> None:
        """One line, unless there have been many of its kind lately."""
        self._said[name] += 1
        if self._said[name] <= LINES_PER_REPORT_MAX:
            getattr(_log, level)(name, **values)

    def event(self, connection: str, event: Event) -> None:
        """The line about what a session found; most kinds have one."""
        line = _line(event)
        if line is not None:
            name, level, values = line
            self.say(name, level, connection=connection, **values)

    def hole(self, product: str, first: int, last: int, witness: str) -> None:
        """The line about ids that are missing."""
        values = {"first_missing": first, "last_missing": last, "missing": last - first + 1, "witness": witness}
        self.say("hole_found", "warning", product=product, **values)

    def new_interval(self) -> None:
        """Says how many lines were left out, and starts counting again."""
        for name, count in self._said.items():
            if count > LINES_PER_REPORT_MAX:
                _log.warning("lines_left_out", about=name, count=count - LINES_PER_REPORT_MAX)
        self._said.clear()


def _line(event: Event) -> tuple[str, Level, dict[str, Any]] | None:
    """Name, level and values of the line about `event`; holes have their own, from whomever they come."""
    match event:
        case Subscribed(products, refused):
            level: Level = "warning" if refused else "info"
            return "subscribed", level, {"products": len(products), "refused": list(refused)}
        case Stale(reason):
            return "connection_stale", "warning", {"reason": reason}
        case ServerError(text):
            return "exchange_error", "error", {"text": text}
        case Malformed(reason, size):
            return "message_malformed", "warning", {"reason": reason, "bytes": size}
        case MessagesSkipped(count):
            return "messages_skipped", "warning", {"count": count}
        case _:
            return None
