"""Pages of past episodes, the newest first, filtered by product, type, severity, rule, state and time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

from pydantic import BaseModel, Field

from cryptopulse.lake.dataset import Lake
from cryptopulse.lake.products import PRODUCT_ID_MAX
from cryptopulse.serve.live.episodes import plain_episodes

PAGE_ROWS: Final = 200
"""Episodes on a page."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CHOICES = ("symbol", "rule", "alert_type", "severity", "state")
_CHOICES_MAX = 20

Ms = Annotated[float | None, Field(ge=0, le=4e12)]
"""ms since 1970."""
Choice = Annotated[list[str], Field(max_length=_CHOICES_MAX)]
"""Any of these values; empty: all."""


class EpisodesQuery(BaseModel):
    """Which episodes."""

    symbol: Choice = []
    rule: Choice = []
    alert_type: Choice = []
    severity: Choice = []
    state: Choice = []
    product: str = Field(default="", max_length=PRODUCT_ID_MAX)
    """A part of the product's id."""
    start: Ms = None
    """Opened from `start` to before `end`."""
    end: Ms = None
    opened_before: int | None = Field(default=None, ge=0, le=4_000_000_000_000_000)
    """Only episodes before the one that opened at this time (µs since 1970) and has the id `id_before`."""
    id_before: str = ""


def episodes_page(lake: Lake, query: EpisodesQuery) -> dict[str, Any]:
    """A page: `rows`, at most PAGE_ROWS, the newest first; `is_last`; and `total`, the number on all pages."""
    chosen = {name: values for name in _CHOICES if (values := getattr(query, name))}
    if query.product:
        known = lake.products().arrow()["symbol"].to_pylist()
        chosen["symbol"] = [one for one in chosen.get("symbol", known) if query.product.upper() in one.upper()]
        if not chosen["symbol"]:
            return {"rows": [], "is_last": True, "total": 0}
    rows = lake.alerts(**chosen, start=moment_or_none(query.start), end=moment_or_none(query.end)).reversed()
    total = rows.count()
    if query.opened_before is not None:
        rows = rows.after(_EPOCH + timedelta(microseconds=query.opened_before), query.id_before)
    found = rows.limit(PAGE_ROWS + 1).arrow()
    is_last = found.num_rows <= PAGE_ROWS
    return {"rows": plain_episodes(found.slice(0, PAGE_ROWS)), "is_last": is_last, "total": total}


def moment(ms: float) -> datetime:
    """The UTC time of `ms` since 1970."""
    return _EPOCH + timedelta(milliseconds=ms)


def moment_or_none(ms: float | None) -> datetime | None:
    """`moment`, or None for None."""
    return None if ms is None else moment(ms)
