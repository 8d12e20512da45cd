"""Trying alert rules on stored history. The same judge as for live trades; nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.engine.alerts import AlertJudge, stretch_bounds_us
from cryptopulse.engine.delta import read_table
from cryptopulse.engine.recent import MICROS
from cryptopulse.engine.rows import shaped, stamped
from cryptopulse.engine.session import Session
from cryptopulse.engine.windows import between_us
from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.access import is_there
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.tables import ALERTS, SILVER
from cryptopulse.settings import AlertRule

_HOUR_US = 3600 * MICROS  # judged in one go; bounds memory to the trades of an hour and its look-backs
_FAR_US = 4_102_444_800 * MICROS  # 2100-01-01
_COLUMNS = ", ".join(SILVER.arrow_schema.names)


def backtest(
    lake: LakeLocation,
    rules: Sequence[AlertRule],
    symbols: Sequence[str] = (),
    start: datetime | None = None,
    end: datetime | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> pa.Table:
    """The episodes that `rules` would have raised on the trades of `lake`, as rows of gold.dm_market_alerts.

    `symbols`: only these products (none: all). `start` and `end` (aware; UTC days, hours, …) bound the trades judged;
    those before `start` still count as look-back. `progress` is called with hours judged and hours in all.
    Raises ConfigurationError when the lake has no trades table.
    """
    if not is_there(lake, SILVER):
        raise ConfigurationError(f"There are no trades at {lake}: name a lake with --lake.")
    only = f" AND symbol IN ({', '.join(repr(symbol) for symbol in symbols)})" if symbols else ""
    first_us = _micros(start) if start else 0
    last_us = _micros(end) - 1 if end else _FAR_US
    session = Session()
    judge = AlertJudge(session, rules)
    episodes = ALERTS.arrow_schema.empty_table()
    watermark_us = 0

    def trades_between(first: int, last: int) -> pa.Table:
        when = between_us("event_time", "event_date", max(first, 0), last)
        return read_table(lake, SILVER, _COLUMNS, when + only)

    def stretch(scoped: pa.Table) -> pa.Table:
        if scoped.num_rows == 0:
            return SILVER.arrow_schema.empty_table()
        from_us, to_us = stretch_bounds_us(scoped)
        return trades_between(from_us, min(to_us, last_us))

    hours = _hours_with_trades(lake, between_us("event_time", "event_date", first_us, last_us) + only)
    for done, hour_us in enumerate(hours):
        news = trades_between(max(hour_us, first_us), min(hour_us + _HOUR_US - 1, last_us))
        watermark_us = pc.cast(pc.max(news["event_time"]), pa.int64()).as_py()
        episodes = _judged(judge, news, stretch, episodes, watermark_us)
        progress(done + 1, len(hours))
    session.close()
    return episodes.sort_by([("opened_at", "ascending"), ("alert_id", "ascending")])


def _judged(
    judge: AlertJudge, news: pa.Table, stretch: Callable[[pa.Table], pa.Table], episodes: pa.Table, watermark_us: int
) -> pa.Table:
    judgement = judge.judge(news, stretch, episodes, watermark_us)
    if judgement is None:
        return episodes
    kept = episodes.filter(pc.invert(pc.is_in(episodes["alert_id"], pa.array(judgement.replaced))))
    return pa.concat_tables([kept, shaped(stamped(judgement.episodes, watermark_us), ALERTS)])


def _hours_with_trades(lake: LakeLocation, where: str) -> list[int]:
    column = "date_trunc('hour', event_time)"
    found = read_table(lake, SILVER, f"{column} AS hour", f"{where} GROUP BY {column}")
    return sorted(pc.cast(found["hour"], pa.int64()).to_pylist())


def _micros(moment: datetime) -> int:
    return round(moment.astimezone(UTC).timestamp() * MICROS)
