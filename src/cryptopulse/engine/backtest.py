"""Tries alert rules on stored history, with the same judge as for live trades. Nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.engine.custom_rules import check_custom_rules
from cryptopulse.engine.exact import TIME_MAX
from cryptopulse.engine.judge import judge
from cryptopulse.engine.rows import shaped, stamped
from cryptopulse.engine.scopes import ScopeWatch, columns_for, reach_max_s, scopes_of
from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.alerts import SHARED_KINDS
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.reading import between_us, read_table
from cryptopulse.lake.storage import is_there
from cryptopulse.lake.tables import ALERTS, SILVER
from cryptopulse.settings import AlertRule
from cryptopulse.text import MICROS

_HOUR_US = 3600 * MICROS  # judged in one go; bounds memory to the trades of an hour and its look-backs


def backtest(
    lake: LakeLocation,
    rules: Sequence[AlertRule],
    symbols: Sequence[str] = (),
    start: datetime | None = None,
    end: datetime | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> pa.Table:
    """The episodes that `rules` would have raised on the trades of `lake`, as rows of gold.dm_market_alerts.

    `symbols`: only these products (empty: all). `start` (included) and `end` (excluded; both aware) bound the trades
    judged; earlier trades still count as look-back. `progress` is called with hours judged and hours in all.
    Raises ConfigurationError when the lake has no trades table, and for a custom rule whose statement can't work.
    """
    check_custom_rules(rules)
    if not is_there(lake, SILVER):
        raise ConfigurationError(f"There are no trades at {lake}: name a lake with --lake.")
    is_shared = any(rule.kind in SHARED_KINDS for rule in rules)  # then the products are compared with all others
    only = f" AND symbol IN ({', '.join(repr(symbol) for symbol in symbols)})" if symbols and not is_shared else ""
    first_us = _micros(start) if start else 0
    last_us = _micros(end) - 1 if end else TIME_MAX
    columns, reach_us = columns_for(rules), reach_max_s(rules) * MICROS
    episodes = ALERTS.empty
    trades, held_to_us = SILVER.empty.select(columns), 0
    hour = "date_trunc('hour', event_time)"
    where = between_us("event_time", "event_date", first_us, last_us) + only
    found_hours = read_table(lake, SILVER, f"{hour} AS hour", f"{where} GROUP BY {hour}")["hour"]
    hours = sorted(pc.cast(found_hours, pa.int64()).to_pylist())
    watch: ScopeWatch | None = None
    for done, hour_us in enumerate(hours):
        from_us, to_us = max(hour_us, first_us), min(hour_us + _HOUR_US - 1, last_us)
        back_to_us = max(from_us - reach_us, 0)
        # Trades read for the previous hour are kept.
        unread_us = max(back_to_us, held_to_us)
        more = read_table(
            lake, SILVER, ", ".join(columns), between_us("event_time", "event_date", unread_us, to_us) + only
        )
        trades = pa.concat_tables([trades.filter(_from(trades, back_to_us)), more])
        held_to_us = to_us + 1
        news = trades.filter(_from(trades, from_us))
        watermark_us = pc.cast(pc.max(news["event_time"]), pa.int64()).as_py()
        if watch is None:
            earlier = trades.filter(pc.invert(_from(trades, from_us))).group_by("symbol")
            newest = earlier.aggregate([("event_time", "max")])
            times = pc.cast(newest["event_time_max"], pa.int64()).to_pylist()
            watch = ScopeWatch(rules, dict(zip(newest["symbol"].to_pylist(), times, strict=True)), from_us)
        scopes = [*scopes_of(news, rules), *watch.take_in(news, watermark_us)]
        if symbols:
            scopes = [scope for scope in scopes if scope.symbol in symbols]
        found = judge(trades, scopes, episodes, watermark_us)
        if found is not None:
            is_kept = pc.invert(pc.is_in(episodes["alert_id"], pa.array(found.replaced, pa.string())))
            rows = shaped(stamped(found.episodes, watermark_us), ALERTS)
            episodes = pa.concat_tables([episodes.filter(is_kept), rows])
        progress(done + 1, len(hours))
    return episodes.sort_by([("opened_at", "ascending"), ("alert_id", "ascending")])


def _from(trades: pa.Table, first_us: int) -> pa.ChunkedArray:
    return pc.greater_equal(pc.cast(trades["event_time"], pa.int64()), pa.scalar(first_us))


def _micros(moment: datetime) -> int:
    return round(moment.astimezone(UTC).timestamp() * MICROS)
