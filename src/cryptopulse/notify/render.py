"""Notifications as text for people and fields for webhooks."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from cryptopulse.lake.alerts import measured_text, threshold_text
from cryptopulse.notify.episodes import AlertEpisode, Item, Notification
from cryptopulse.settings.notify import Event
from cryptopulse.text import decimal_text, price_text

Kind = Literal["info", "success", "warning", "failure"]

LINES_MAX = 10
"""Most episodes described in a message of several: about 1,500 characters; Discord takes 2,000."""

_KINDS: dict[str, Kind] = {"WARNING": "warning", "HIGH": "warning", "CRITICAL": "failure"}
_PREFIXES: dict[Event, str] = {"opened": "", "escalated": "Escalated: ", "closed": "Closed: "}


@dataclass(frozen=True)
class AlertMessage:
    """A message to send."""

    title: str
    body: str
    kind: Kind
    """Decides apprise's colours and symbols."""
    key: str
    """Equal for repeated messages, so that a receiver can recognize them."""
    alerts: tuple[dict[str, Any], ...] = ()
    """The episodes as plain data, ready for JSON."""


def message_of(notification: Notification) -> AlertMessage:
    """The message of `notification`."""
    items = notification.items
    if len(items) > 1:
        worst = max(items, key=_severity_order).episode
        counts = Counter(item.episode.alert_type for item in items)
        kinds = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        shown = sorted(items, key=_severity_order, reverse=True)[:LINES_MAX]
        lines = [
            f"{' and '.join(item.events).capitalize()}: {_move(item.episode)}, {item.episode.severity}"
            for item in shown
        ]
        if len(items) > len(shown):
            lines.append(f"and {len(items) - len(shown)} more: cryptopulse alerts list")
        change = measured_text(worst.alert_type, worst.price_change_pct)
        return AlertMessage(
            title=f"{len(items)} more episodes: {kinds}; the worst: {worst.symbol} {change}",
            body="\n".join(lines),
            kind=_KINDS[max(items, key=lambda item: item.episode.rank).episode.severity],
            key=hashlib.sha256("\n".join(map(_key, items)).encode()).hexdigest()[:32],
            alerts=tuple(fields_of(item) for item in items),
        )
    item = items[0]
    episode, event = item.episode, item.events[-1]
    rule = f"{threshold_text(episode.alert_type, episode.threshold_pct)} within {episode.lookback_s} s"
    first = _trade_text(episode.opened_at, episode.trigger_trade_id)
    last = _trade_text(episode.last_trigger_at, episode.last_trigger_trade_id)
    late_s = (episode.detected_at - episode.opened_at).total_seconds()
    lines = [
        _evidence(episode),
        f"Over the threshold ({rule}) from {first} to {last}",
        f"Detected {late_s:,.3f} s after the first of these trades",
    ]
    if episode.continued_as:
        lines.append(f"Late trades made it a part of {episode.continued_as}")
    if episode.is_withdrawn:
        lines.append("Late trades took it back: by all trades there was no such episode")
    return AlertMessage(
        title=_PREFIXES[event] + headline(episode),
        body="\n".join([*lines, f"alert_id: {episode.alert_id}"]),
        kind="success" if event == "closed" else _KINDS[episode.severity],
        key=_key(item),
        alerts=(fields_of(item),),
    )


def test_message(name: str, lake: str) -> AlertMessage:
    """A test message; `name`: that of the target."""
    body = f"Target {name} of notify.targets accepts messages about the lake {lake}. Nothing happened: this is a test."
    return AlertMessage("CryptoPulse: a test message", body, "info", "test")


def headline(episode: AlertEpisode) -> str:
    """`FLASH_CRASH BTC-USD −3.2 % in 41 s (100,234.50 → 97,012.10), HIGH, rule price-move`."""
    return f"{_move(episode)}, {episode.severity}, rule {episode.rule}"


def _move(episode: AlertEpisode) -> str:
    took = duration_text((episode.window_end - episode.window_start).total_seconds())
    prices = f"{price_text(episode.start_price)} → {price_text(episode.end_price)}"
    measured = measured_text(episode.alert_type, episode.price_change_pct)
    return f"{episode.alert_type} {episode.symbol} {measured} in {took} ({prices})"


def _evidence(episode: AlertEpisode) -> str:
    start = _trade_text(episode.window_start, episode.start_trade_id)
    end = _trade_text(episode.window_end, episode.end_trade_id)
    before, after = price_text(episode.start_price), price_text(episode.end_price)
    if episode.alert_type == "SILENCE":
        return f"No trade after {start}, at {before}"
    if episode.alert_type == "DISLOCATION":
        return f"{after} at {end}; the median of the other venues was {before}"
    return f"{before} at {start} → {after} at {end}"


def _trade_text(moment: datetime, trade_id: int) -> str:
    return f"{time_text(moment)} (trade {trade_id})"


def _severity_order(item: Item) -> tuple[int, float]:
    return item.episode.rank, abs(item.episode.price_change_pct) / float(item.episode.threshold_pct)


def _key(item: Item) -> str:
    """The alert_id, its events and its severity."""
    return ":".join((item.episode.alert_id, *item.events, item.episode.severity))


def fields_of(item: Item) -> dict[str, Any]:
    """One episode as plain data: its events and the table's columns, times in ISO 8601 (UTC), decimals as strings."""
    episode = item.episode
    return {
        "alert_id": episode.alert_id,
        "event": item.events[-1],
        "events": list(item.events),
        "state": episode.state,
        "severity": episode.severity,
        "alert_type": episode.alert_type,
        "symbol": episode.symbol,
        "rule": episode.rule,
        "price_change_pct": round(episode.price_change_pct, 6),
        "start_price": decimal_text(episode.start_price),
        "end_price": decimal_text(episode.end_price),
        "threshold_pct": decimal_text(episode.threshold_pct),
        "lookback_s": episode.lookback_s,
        "window_start": _iso(episode.window_start),
        "window_end": _iso(episode.window_end),
        "opened_at": _iso(episode.opened_at),
        "last_trigger_at": _iso(episode.last_trigger_at),
        "detected_at": _iso(episode.detected_at),
        "start_trade_id": episode.start_trade_id,
        "trigger_trade_id": episode.trigger_trade_id,
        "end_trade_id": episode.end_trade_id,
        "last_trigger_trade_id": episode.last_trigger_trade_id,
        "continued_as": episode.continued_as,
        "is_withdrawn": episode.is_withdrawn,
    }


def duration_text(seconds: float) -> str:
    """A duration: `0.4 s`, `41 s`, `3 min 5 s`."""
    if seconds < 10:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes:,} min {rest} s" if rest else f"{minutes:,} min"


def time_text(moment: datetime) -> str:
    """A time with milliseconds, UTC."""
    return f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03} UTC"


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
