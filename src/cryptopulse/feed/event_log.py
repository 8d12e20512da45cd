"""Log events about a feed, with a bound on their number."""

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
"""Lines about one kind of event between two reports; a broken feed could cause thousands."""

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
    """Logs events, at most `LINES_PER_REPORT_MAX` of each kind between two reports."""

    def __init__(self) -> None:
        self._said: Counter[str] = Counter()

    def log(self, name: str, level: Level, **values: Any) -> None:
        """Logs one line, unless its kind has reached the limit."""
        self._said[name] += 1
        if self._said[name] <= LINES_PER_REPORT_MAX:
            getattr(_log, level)(name, **values)

    def event(self, connection: str, event: Event) -> None:
        """Logs a session's event if its kind is logged; holes are logged by `hole`."""
        if isinstance(event, Subscribed):
            level: Level = "warning" if event.refused else "info"
            counts = {"products": len(event.products), "refused": list(event.refused)}
            self.log("subscribed", level, connection=connection, **counts)
        elif type(event) in _NAMES:
            self.log(*_NAMES[type(event)], connection=connection, **msgspec.structs.asdict(event))

    def hole(self, product: str, first: int, last: int, witness: str) -> None:
        """Logs missing ids."""
        values = {"first_missing": first, "last_missing": last, "missing": last - first + 1, "witness": witness}
        self.log("hole_found", "warning", product=product, **values)

    def new_interval(self) -> None:
        """Logs how many lines were left out, and starts counting again."""
        for name, count in self._said.items():
            if count > LINES_PER_REPORT_MAX:
                _log.warning("log_events_suppressed", about=name, count=count - LINES_PER_REPORT_MAX)
        self._said.clear()
