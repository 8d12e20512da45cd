"""What is said about a feed in the structured log: a bounded number of lines."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import msgspec
import structlog

from cryptopulse.feed.protocol import (
    Event,
    Malformed,
    MessagesSkipped,
    ProductRecovered,
    ProductSilent,
    ServerError,
    Stale,
    Subscribed,
)

LINES_PER_REPORT_MAX = 10
"""Lines about one kind of event between two reports; a broken feed could say thousands."""

Level = Literal["info", "warning", "error"]

_NAMES: dict[type[Event], tuple[str, Level]] = {
    Stale: ("connection_stale", "warning"),
    ProductSilent: ("product_silent", "warning"),
    ProductRecovered: ("product_recovered", "info"),
    ServerError: ("exchange_error", "error"),
    Malformed: ("message_malformed", "warning"),
    MessagesSkipped: ("messages_skipped", "warning"),
}

_log = structlog.get_logger()


class EventLines:
    """Logs what happens, at most `LINES_PER_REPORT_MAX` times of each kind between two reports."""

    def __init__(self) -> None:
        self._said: Counter[str] = Counter()

    def log(self, name: str, level: Level, **values: Any) -> None:
        """One line, unless there have been many of its kind lately."""
        self._said[name] += 1
        if self._said[name] <= LINES_PER_REPORT_MAX:
            getattr(_log, level)(name, **values)

    def event(self, connection: str, event: Event) -> None:
        """The line about what a session found; most kinds have one, holes have their own (`hole`)."""
        if isinstance(event, Subscribed):
            level: Level = "warning" if event.refused else "info"
            counts = {"products": len(event.products), "refused": list(event.refused)}
            self.log("subscribed", level, connection=connection, **counts)
        elif type(event) in _NAMES:
            self.log(*_NAMES[type(event)], connection=connection, **msgspec.structs.asdict(event))

    def hole(self, product: str, first: int, last: int, witness: str) -> None:
        """The line about ids that are missing."""
        values = {"first_missing": first, "last_missing": last, "missing": last - first + 1, "witness": witness}
        self.log("hole_found", "warning", product=product, **values)

    def new_interval(self) -> None:
        """Logs how many lines were left out, and starts counting again."""
        for name, count in self._said.items():
            if count > LINES_PER_REPORT_MAX:
                _log.warning("log_events_suppressed", about=name, count=count - LINES_PER_REPORT_MAX)
        self._said.clear()
