"""An alert episode, what a target knows of it, and the next event to notify the target of."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Self

from cryptopulse.lake.alerts import SEVERITIES, AlertType, Severity
from cryptopulse.settings.notify import Event, NotifyTarget

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class AlertEpisode:
    """A row of `gold.dm_market_alerts`, with the columns that notifications show. Times are UTC."""

    alert_id: str
    symbol: str
    alert_type: AlertType
    rule: str
    threshold_pct: Decimal
    lookback_s: int
    severity: Severity
    state: str
    price_change_pct: float
    start_price: Decimal
    end_price: Decimal
    window_start: datetime
    window_end: datetime
    opened_at: datetime
    last_trigger_at: datetime
    start_trade_id: int
    trigger_trade_id: int
    end_trade_id: int
    last_trigger_trade_id: int
    detected_at: datetime
    continued_as: str | None = None
    """The alert_id of the episode that this one became part of because of late trades; not a column of the table."""
    is_withdrawn: bool = False
    """Whether late trades took it back: its row is gone. Not a column of the table."""

    @classmethod
    def of(cls, row: dict[str, Any]) -> Self:
        """The episode of one row with COLUMNS."""
        return cls(**row)

    @property
    def rank(self) -> int:
        """Index of its severity in SEVERITIES; the ledger records it."""
        return SEVERITIES.index(self.severity)

    @property
    def is_closed(self) -> bool:
        """Whether the episode is closed."""
        return self.state == "CLOSED"

    @property
    def last_trigger_us(self) -> int:
        """Time of its last trade over the threshold, µs UTC."""
        return (self.last_trigger_at - _EPOCH) // timedelta(microseconds=1)

    def absorbed(self, alert_id: str, known: Known) -> AlertEpisode:
        """The closed state of the episode `alert_id`, whose row is gone because this episode includes it now."""
        severity = SEVERITIES[min(known.rank, self.rank)]
        return replace(self, alert_id=alert_id, state="CLOSED", severity=severity, continued_as=self.alert_id)


COLUMNS = tuple(field.name for field in fields(AlertEpisode) if field.name not in ("continued_as", "is_withdrawn"))
"""The columns that `AlertEpisode.of` needs."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a target knows of an episode."""

    rank: int
    """The severity that it was notified of, or one that it does not subscribe to; an index of SEVERITIES."""
    is_closed: bool
    last_trigger_us: int
    """Time of the last trade over the threshold known then (µs UTC); old entries are deleted by it."""


@dataclass(frozen=True, slots=True)
class Item:
    """One episode in a notification."""

    episode: AlertEpisode
    events: tuple[Event, ...]
    """Its events, in order; more than one only in a notification of several episodes."""
    after: Known
    """What the target knows of the episode after accepting the notification."""


@dataclass(frozen=True, slots=True)
class Notification:
    """The content of one message: one event of one episode, or several episodes together."""

    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class NotificationStep:
    """The next event of an episode for a target."""

    event: Event | None
    """None: the target has not subscribed to it, so it is only recorded."""
    after: Known
    """What the target knows after this step."""


def next_step(episode: AlertEpisode, known: Known | None, target: NotifyTarget) -> NotificationStep | None:
    """The next step of `episode` for `target`, which knows `known` of it (None: nothing); None if it knows all.

    An episode opens once, escalates once for each severity that it is seen to reach, and closes once. Only if late
    trades make it escalate after its close, it closes a second time.
    """
    least = SEVERITIES.index(target.severity)
    seen_us = episode.last_trigger_us
    if known is None:
        opened: Event | None = "opened" if episode.rank >= least and "opened" in target.on else None
        return NotificationStep(opened, Known(episode.rank, is_closed=False, last_trigger_us=seen_us))
    if episode.rank > known.rank:
        event: Event | None = None
        if episode.rank >= least:  # for a target with a higher minimum severity, reaching it is the opening
            wanted: Event = "opened" if known.rank < least and "opened" in target.on else "escalated"
            event = wanted if wanted in target.on else None
        return NotificationStep(
            event, Known(episode.rank, is_closed=known.is_closed and event is None, last_trigger_us=seen_us)
        )
    if episode.is_closed and not known.is_closed:
        closed: Event | None = "closed" if known.rank >= least and "closed" in target.on else None
        return NotificationStep(closed, Known(known.rank, is_closed=True, last_trigger_us=seen_us))
    if known.is_closed and seen_us > known.last_trigger_us:
        return NotificationStep(None, replace(known, last_trigger_us=seen_us))
    return None
