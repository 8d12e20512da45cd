"""Episodes: trades over a threshold that follow each other within a cool-down are one row of gold.dm_market_alerts.

The values of an episode are minima and maxima over its trades (`EpisodePart.joined`), so judging a trade twice does not
change the final result. Nor does judging it first with only a part of its look-back: the rest can only deepen a
change of the price. Of the other measures, which can also shrink, whole episodes are judged again (`judgement`).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from fractions import Fraction
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.lake.alerts import KINDS, AlertType, severity_of
from cryptopulse.lake.tables import ALERTS
from cryptopulse.settings import AlertRule
from cryptopulse.text import MICROS

Series: TypeAlias = tuple[str, str, AlertType]
"""(product, rule name, type). Episodes of different series are independent."""

SCHEMA: pa.Schema = pa.schema([field for field in ALERTS.arrow_schema if field.name != "load_timestamp"])
"""gold.dm_market_alerts without the time of its commit."""


@dataclass(frozen=True)
class EpisodePart:
    """A part of an episode, or all of it; times are µs UTC."""

    symbol: str
    alert_type: AlertType
    rule: str
    threshold_pct: Decimal
    lookback_s: int
    cool_down_s: int
    start_price: Decimal
    end_price: Decimal
    price_change_pct: float
    window_start: int
    window_end: int
    opened_at: int
    last_trigger_at: int
    start_trade_id: int
    trigger_trade_id: int
    end_trade_id: int
    last_trigger_trade_id: int
    detected_at: int | None = None
    """None: found just now, not in the table yet."""

    @classmethod
    def found(
        cls,
        symbol: str,
        alert_type: AlertType,
        rule: AlertRule,
        change: tuple[Decimal, Decimal, float],
        trades: tuple[Sequence[int], Sequence[int]],
    ) -> EpisodePart:
        """What `rule` has just found. `change`: price at the start and at the end of the deepest change, and what was
        measured there, in percent. `trades`: times (µs UTC) and ids of the trades that start and end it, and of the
        first and last one over the threshold.
        """
        start_price, end_price, price_change_pct = change
        (window_start, window_end, opened_at, last_trigger_at), (start, end, trigger, last_trigger) = trades
        return cls(
            symbol=symbol,
            alert_type=alert_type,
            rule=rule.name,
            threshold_pct=rule.threshold_pct,
            lookback_s=rule.lookback_s,
            cool_down_s=rule.cool_down_s,
            start_price=start_price,
            end_price=end_price,
            price_change_pct=price_change_pct,
            window_start=window_start,
            window_end=window_end,
            opened_at=opened_at,
            last_trigger_at=last_trigger_at,
            start_trade_id=start,
            trigger_trade_id=trigger,
            end_trade_id=end,
            last_trigger_trade_id=last_trigger,
        )

    @property
    def alert_id(self) -> str:
        """Id of the episode; the same trades and rule give the same id."""
        return f"{self.rule}:{self.alert_type}:{self.symbol}:{self.trigger_trade_id}"

    @property
    def series(self) -> Series:
        """What it is an episode of."""
        return self.symbol, self.rule, self.alert_type

    @property
    def quiet_until(self) -> int:
        """The episode is closed once the newest event time is later than this (µs UTC)."""
        return self.last_trigger_at + self.cool_down_s * MICROS

    @property
    def remaining(self) -> Fraction | float:
        """Orders episodes, the deepest change first: by the lower price as a share of the higher one; by what else was
        measured."""
        if KINDS[self.alert_type] != "price":
            return -abs(self.price_change_pct)
        low, high = sorted((self.start_price, self.end_price))
        return Fraction(low) / Fraction(high)

    def joined(self, other: EpisodePart) -> EpisodePart:
        """The episode that both are parts of."""
        both = (self, other)
        known = [part.detected_at for part in both if part.detected_at is not None]
        # The part that opened the episode gives the rule's values; of equal ones the one in the table, which stays.
        first = min(both, key=lambda part: (part.opened_at, part.trigger_trade_id, part.detected_at is None))
        last = max(both, key=lambda part: (part.last_trigger_at, part.last_trigger_trade_id))
        # Of two equal changes take the one judged just now: a late trade may be a later one at the start price.
        deepest = min(
            both, key=lambda part: (part.remaining, part.window_end, part.end_trade_id, part.detected_at is not None)
        )
        return replace(
            first,
            last_trigger_at=last.last_trigger_at,
            last_trigger_trade_id=last.last_trigger_trade_id,
            start_price=deepest.start_price,
            start_trade_id=deepest.start_trade_id,
            window_start=deepest.window_start,
            end_price=deepest.end_price,
            price_change_pct=deepest.price_change_pct,
            end_trade_id=deepest.end_trade_id,
            window_end=deepest.window_end,
            detected_at=min(known, default=None),
        )

    def row(self, watermark_us: int, now_us: int) -> dict[str, object]:
        """The row (SCHEMA) for the newest event time `watermark_us` and the current time `now_us` (both µs UTC)."""
        is_price = KINDS[self.alert_type] == "price"
        change = (
            Fraction(self.end_price) / Fraction(self.start_price) - 1 if is_price else Fraction(self.price_change_pct)
        )
        return {name: getattr(self, name) for name in _FIELDS} | {
            "alert_id": self.alert_id,
            "severity": severity_of(abs(change) * (100 if is_price else 1) / Fraction(self.threshold_pct)),
            "state": "CLOSED" if watermark_us > self.quiet_until else "OPEN",
            "detected_at": now_us if self.detected_at is None else self.detected_at,
        }


_FIELDS = tuple(field.name for field in fields(EpisodePart))


@dataclass(frozen=True)
class Judgement:
    """What judging changed: `episodes` (SCHEMA) replace those named in `replaced`."""

    episodes: pa.Table
    replaced: list[str]
    """`alert_id` of the known episodes that changed, became part of another, or are none after late trades."""


def judgement(
    found: Iterable[EpisodePart],
    known: pa.Table,
    watermark_us: int,
    judged: Mapping[Series, Sequence[tuple[int, int]]],
) -> Judgement | None:
    """How the parts `found` change the episodes `known` (rows of the table); None if nothing changes.

    `watermark_us` is the newest event time (µs UTC): episodes without a trigger for a cool-down before it are closed.
    `judged`: spans of time (µs UTC, both ends included) in which `found` replaces the known episodes of a series.
    """
    now_us = time.time_ns() // 1000
    times_as_us = [pc.cast(c, pa.int64()) if pa.types.is_timestamp(c.type) else c for c in known.select(SCHEMA.names)]
    before = {str(row["alert_id"]): row for row in pa.table(times_as_us, names=SCHEMA.names).to_pylist()}
    parts: dict[Series, list[EpisodePart]] = defaultdict(list)
    for part in found:
        parts[part.series].append(part)
    series_found = parts.keys()
    after: list[EpisodePart] = []
    for row in before.values():
        episode = EpisodePart(**{name: row[name] for name in _FIELDS})
        series, opened_us, last_us = episode.series, episode.opened_at, episode.last_trigger_at
        if any(first <= opened_us and last_us <= last for first, last in judged.get(series, ())):
            if series in series_found:  # what is found in its time was detected when it was
                parts[series] = [_seen_with(part, episode) for part in parts[series]]
        else:
            (parts[series] if series in series_found else after).append(episode)
    for of_series in parts.values():
        # The episodes of one series, the earliest first.
        episodes: list[EpisodePart] = []
        for part in sorted(of_series, key=lambda part: (part.opened_at, part.trigger_trade_id, part.last_trigger_at)):
            if episodes and part.opened_at <= episodes[-1].last_trigger_at + part.cool_down_s * MICROS:
                episodes[-1] = episodes[-1].joined(part)
            else:
                episodes.append(part)
        after += episodes
    rows = {episode.alert_id: episode.row(watermark_us, now_us) for episode in after}
    changed = [row for alert_id, row in rows.items() if before.get(alert_id) != row]
    replaced = sorted(alert_id for alert_id, row in before.items() if rows.get(alert_id) != row)
    if not changed and not replaced:
        return None
    return Judgement(pa.Table.from_pylist(changed, schema=SCHEMA), replaced)


def _seen_with(part: EpisodePart, episode: EpisodePart) -> EpisodePart:
    """`part`, detected when the known `episode` that it replaces was, if both have a time in common."""
    if part.opened_at > episode.last_trigger_at or episode.opened_at > part.last_trigger_at:
        return part
    known = [one.detected_at for one in (part, episode) if one.detected_at is not None]
    return replace(part, detected_at=min(known, default=None))
