"""Evidence of an episode: the decisive trades, their neighbours, and the prices around it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.dataset import Lake
from cryptopulse.serve.live.dashboard_queries import plain_rows
from cryptopulse.text import decimal_text

NEIGHBOURS: Final = 3
"""How many trades before and after a decisive one are shown."""
BARS_MAX: Final = 700
"""Most bars of a chart: about its width in pixels."""

_GRAINS = (1, 2, 5, 10, 15, 30, 60, 300, 900, 3600, 14_400, 86_400)  # each divides a day
_TRADE = ("trade_id", "event_time", "price", "trade_size", "side", "source")
_BAR = ("window_start", "open", "high", "low", "close", "volume")
_AROUND_LEAST = timedelta(seconds=20)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MINUTE = timedelta(minutes=1)
_US_MAX = 4_000_000_000_000_000  # in the year 2096, as in the other requests of pages
_ID_MAX = 2**62
_LATEST = datetime.max.replace(tzinfo=UTC) - _MINUTE
_DECISIVE = ("start", "trigger", "end", "last_trigger")
_TIMES = ("window_start", "window_end", "opened_at", "last_trigger_at")
"""Times of the decisive trades. The window moves as an episode deepens, and may then begin after the opening trade."""


def evidence_of(lake: Lake, episode: Mapping[str, Any]) -> dict[str, Any]:
    """The decisive trades of an episode with their neighbours (`trades`), their ids (`roles`), and `prices` around it.

    `episode`: `symbol`, and the times (µs since 1970) and ids of its trades. Raises ConfigurationError if invalid.
    """
    try:
        ids = {name: int(episode[f"{name}_trade_id"]) for name in _DECISIVE}
        times_us = [int(episode[name]) for name in _TIMES]
        if not (all(0 <= us <= _US_MAX for us in times_us) and all(0 <= one <= _ID_MAX for one in ids.values())):
            raise ConfigurationError("Invalid episode.")
        times = [_EPOCH + timedelta(microseconds=us) for us in times_us]
        around = max(_AROUND_LEAST, (max(times) - min(times)) / 2)
        start, end = min(times) - around, max(times) + around
        symbol = str(episode["symbol"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ConfigurationError("Invalid episode.") from error
    found: dict[int, dict[str, Any]] = {}
    for one in sorted(set(ids.values())):
        first_id, last_id = one - NEIGHBOURS, one + NEIGHBOURS
        rows = lake.trades(symbol, start, end, first_id=first_id, last_id=last_id, columns=_TRADE)
        for row in rows.arrow().to_pylist():
            row["event_time"] = row["event_time"].timestamp() * 1000
            row |= {name: decimal_text(row[name]) for name in ("price", "trade_size")}
            found[row["trade_id"]] = row
    trades = [found[trade_id] for trade_id in sorted(found)]
    return {"trades": trades, "roles": ids, **prices(lake, symbol, start, end)}


def prices(lake: Lake, symbol: str, start: datetime | None, end: datetime | None) -> dict[str, Any]:
    """`bars` of `grain_s` seconds of a product, as fine as a chart can show, for the part of that time with trades."""
    since = None if start is None else start - _MINUTE  # includes the minute that contains `start`
    minutes = lake.bars(symbol, since, end, columns=["window_start"])
    first, last = (one.limit(1).arrow()["window_start"].to_pylist() for one in (minutes, minutes.reversed()))
    if first:
        ends = min(last[0], _LATEST) + _MINUTE
        start, end = max(first[0], start or first[0]), min(ends, end or ends)
    else:
        end = datetime.now(UTC)
        start = end - _MINUTE
    span_s = (end - start).total_seconds()
    grain_s = next((grain for grain in _GRAINS if span_s / grain <= BARS_MAX), _GRAINS[-1])
    rows = lake.bars(symbol, start, end, grain=grain_s, columns=_BAR).limit(2 * BARS_MAX).arrow()
    return {"grain_s": grain_s, "bars": plain_rows(rows)}
