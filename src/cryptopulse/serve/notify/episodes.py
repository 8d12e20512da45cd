"""One episode of an alert, what a target has been told of it, and what follows from the two."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Self

from cryptopulse.settings_notify import Event, NotifyTarget

SEVERITIES = ("WARNING", "HIGH", "CRITICAL")
"""Severities, the least severe first. What was told is kept by the place in this list."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Episode:
    """A row of `gold.dm_market_alerts`, as far as it is told of. Times are UTC."""

    alert_id: str
    symbol: str
    alert_type: str
    rule: str
    threshold_pct: Decimal
    lookback_s: int
    severity: str
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
    """The alert_id of the episode that this one has become a part of, when late trades have shown that; no column."""

    @classmethod
    def of(cls, row: dict[str, Any]) -> Self:
        """The episode of one row, which has COLUMNS."""
        return cls(**row)

    @property
    def rank(self) -> int:
        """Its severity's place in SEVERITIES."""
        return SEVERITIES.index(self.severity)

    @property
    def is_closed(self) -> bool:
        """Whether it is over."""
        return self.state == "CLOSED"

    @property
    def last_trigger_us(self) -> int:
        """When it was last over the threshold, µs UTC."""
        return (self.last_trigger_at - _EPOCH) // timedelta(microseconds=1)

    def absorbed(self, alert_id: str, told: Told) -> Episode:
        """What became of the episode `alert_id`, whose row is gone because this one covers it now: it is closed."""
        severity = SEVERITIES[min(told.rank, self.rank)]
        return replace(self, alert_id=alert_id, state="CLOSED", severity=severity, continued_as=self.alert_id)


COLUMNS = tuple(field.name for field in fields(Episode) if field.name != "continued_as")
"""The columns that `Episode.of` takes."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a target knows of an episode."""

    rank: int
    """The severity that it was told of (or that was not worth telling it)."""
    is_closed: bool
    last_trigger_us: int
    """When the episode was last over the threshold, as known then; by it old entries are forgotten."""


@dataclass(frozen=True, slots=True)
class Step:
    """The next thing that a target must learn of an episode."""

    event: Event | None
    """None: it is only noted, the target does not want to hear it."""
    after: Told
    """What the target knows then."""


def family_of(alert_id: str) -> str:
    """Rule, type and product of an episode: those that agree in these don't overlap."""
    return alert_id.rpartition(":")[0]


def trigger_of(alert_id: str) -> int:
    """The trade that opened an episode; -1 when its id names none."""
    trigger = alert_id.rpartition(":")[2]
    return int(trigger) if trigger.isdecimal() else -1


def next_step(episode: Episode, told: Told | None, target: NotifyTarget) -> Step | None:
    """What `target`, which was `told` so much, must learn of `episode` next; None when it knows all.

    An episode opens once, escalates once for each severity that it is seen to reach, and closes once; only an
    escalation after its close, which late trades can bring, closes a second time.
    """
    least = SEVERITIES.index(target.severity)
    seen_us = episode.last_trigger_us
    if told is None:
        opened: Event | None = "opened" if episode.rank >= least and "opened" in target.on else None
        return Step(opened, Told(episode.rank, is_closed=False, last_trigger_us=seen_us))
    if episode.rank > told.rank:
        event = _rise(episode.rank, told.rank, least, target)
        return Step(event, Told(episode.rank, is_closed=told.is_closed and event is None, last_trigger_us=seen_us))
    if episode.is_closed and not told.is_closed:
        closed: Event | None = "closed" if told.rank >= least and "closed" in target.on else None
        return Step(closed, Told(told.rank, is_closed=True, last_trigger_us=seen_us))
    if told.is_closed and seen_us > told.last_trigger_us:
        return Step(None, replace(told, last_trigger_us=seen_us))
    return None


def _rise(rank: int, before: int, least: int, target: NotifyTarget) -> Event | None:
    """What a rise of the severity means to the target: for one that wants only severe episodes it is the opening."""
    if rank < least:
        return None
    if before < least and "opened" in target.on:
        return "opened"
    return "escalated" if "escalated" in target.on else None
