"""What the Alerts page asks of the tables when somebody wants to know more: evidence, prices, episodes of the past."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

from pydantic import BaseModel, Field

from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.dataset import Lake
from cryptopulse.lake.location import LakeLocation
from cryptopulse.serve.live.episodes import plain_episodes
from cryptopulse.serve.live.questions import plain_rows

PAGE_ROWS: Final = 200
"""So many episodes of the past are shown at a time."""
NEIGHBOURS: Final = 3
"""So many trades before and after a decisive one are shown."""
BARS_MAX: Final = 700
"""So many bars make a chart: about the pixels of its width."""

_GRAINS = (1, 2, 5, 10, 15, 30, 60, 300, 900, 3600, 14_400, 86_400)  # each divides a day
_MEMORY_MAX_MB = 256
_THREADS = 2
_TRADE = ("trade_id", "event_time", "price", "trade_size", "side", "source")
_BAR = ("window_start", "open", "high", "low", "close", "volume")
_AROUND_LEAST = timedelta(seconds=20)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MINUTE = timedelta(minutes=1)
_CHOICES = ("symbol", "rule", "alert_type", "severity", "state")
_CHOICES_MAX = 20
_DECISIVE = ("start", "trigger", "end", "last_trigger")


Ms = Annotated[float | None, Field(ge=0, le=4e12)]
"""ms since 1970."""
Choice = Annotated[list[str], Field(max_length=_CHOICES_MAX)]
"""Any of these; empty: all."""


class EpisodesAsked(BaseModel):
    """Which episodes of the past are wanted."""

    symbol: Choice = []
    rule: Choice = []
    alert_type: Choice = []
    severity: Choice = []
    state: Choice = []
    start: Ms = None
    """Of opening."""
    end: Ms = None
    opened_before: int | None = Field(default=None, ge=0, le=4_000_000_000_000_000)
    """Only those before the one that opened then (µs since 1970) with the id `id_before`."""
    id_before: str = ""


class Evidence:
    """Reads one lake for all visitors. Used from several threads."""

    def __init__(self, location: LakeLocation, timeout_s: float) -> None:
        """Opens nothing yet; the lake need not be there. `timeout_s`: how long a query may work."""
        self._lake = Lake(location, memory_max_mb=_MEMORY_MAX_MB, threads=_THREADS, timeout_s=timeout_s)

    def close(self) -> None:
        """Releases what was held."""
        self._lake.close()

    def trades_held(self) -> dict[str, int]:
        """How many trades are held, by product."""
        found = self._lake.products().arrow()
        return dict(zip(found["symbol"].to_pylist(), found["trades"].to_pylist(), strict=True))

    def of_episode(self, episode: Mapping[str, Any]) -> dict[str, Any]:
        """The trades that decided an episode, with those next to them, and the prices around it.

        `episode`: `symbol`, `window_start`, `last_trigger_at` (µs) and the ids of its trades. Raises ConfigurationError
        for one that can't be meant.
        """
        try:
            ids = {name: int(episode[f"{name}_trade_id"]) for name in _DECISIVE}
            times = [int(episode[name]) for name in ("window_start", "last_trigger_at")]
            first, last = (_EPOCH + timedelta(microseconds=us) for us in times)
            symbol = str(episode["symbol"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ConfigurationError("That is no episode.") from error
        around = max(_AROUND_LEAST, (last - first) / 2)
        found: dict[int, dict[str, Any]] = {}
        for one in sorted(set(ids.values())):
            rows = self._lake.trades(
                symbol,
                first - around,
                last + around,
                first_id=one - NEIGHBOURS,
                last_id=one + NEIGHBOURS,
                columns=_TRADE,
            )
            found |= {row["trade_id"]: _trade(row) for row in rows.arrow().to_pylist()}
        return {
            "trades": [found[trade_id] for trade_id in sorted(found)],
            "roles": ids,
            **self.prices(symbol, first - around, last + around),
        }

    def prices(self, symbol: str, start: datetime | None, end: datetime | None) -> dict[str, Any]:
        """Bars of a product, as fine as a chart can show, of the part of that time of which there are trades."""
        start, end = self._extent(symbol, start, end)
        grain_s = _grain_s((end - start).total_seconds())
        rows = self._lake.bars(symbol, start, end, grain=grain_s, columns=_BAR).limit(2 * BARS_MAX).arrow()
        return {"grain_s": grain_s, "bars": plain_rows(rows)}

    def episodes(self, asked: EpisodesAsked) -> dict[str, Any]:
        """Stored episodes, the newest first, at most PAGE_ROWS, and whether there are no more."""
        chosen = {name: values for name in _CHOICES if (values := getattr(asked, name))}
        rows = self._lake.alerts(**chosen, start=_moment(asked.start), end=_moment(asked.end)).reversed()
        if asked.opened_before is not None:
            rows = rows.after(_EPOCH + timedelta(microseconds=asked.opened_before), asked.id_before)
        found = rows.limit(PAGE_ROWS + 1).arrow()
        return {"rows": plain_episodes(found.slice(0, PAGE_ROWS)), "is_last": found.num_rows <= PAGE_ROWS}

    def _extent(self, symbol: str, start: datetime | None, end: datetime | None) -> tuple[datetime, datetime]:
        """The time from `start` to `end`, cut to the minutes that are stored."""
        since = None if start is None else start - _MINUTE  # the minute that it lies in
        minutes = self._lake.bars(symbol, since, end, columns=["window_start"])
        first, last = (one.limit(1).arrow()["window_start"].to_pylist() for one in (minutes, minutes.reversed()))
        if not first:
            now = datetime.now(UTC)
            return now - _MINUTE, now
        ends = last[0] + _MINUTE
        return max(first[0], start or first[0]), min(ends, end or ends)


def _grain_s(span_s: float) -> int:
    return next((grain for grain in _GRAINS if span_s / grain <= BARS_MAX), _GRAINS[-1])


def _moment(ms: float | None) -> datetime | None:
    return None if ms is None else _EPOCH + timedelta(milliseconds=ms)


def _trade(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **row,
        "event_time": row["event_time"].timestamp() * 1000,
        "price": f"{row['price'].normalize():f}",
        "trade_size": f"{row['trade_size'].normalize():f}",
    }
