"""The episodes that were known at a moment, by judging again the trades that were there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import MAXYEAR, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.engine.exact import micros
from cryptopulse.engine.judge import judge
from cryptopulse.engine.rows import shaped, stamped
from cryptopulse.engine.scopes import JudgeScope, RulesByProduct, columns_for
from cryptopulse.lake.alerts import SHARED_KINDS
from cryptopulse.lake.dataset import Lake
from cryptopulse.lake.scan import moment_of
from cryptopulse.lake.tables import ALERTS, COVERAGE, SILVER
from cryptopulse.settings import AlertRule

_CHANGED = f"""
    SELECT symbol, min(time) AS since FROM (
        SELECT symbol, event_time AS time, load_timestamp FROM {SILVER.qualified}
        UNION ALL
        SELECT symbol, opened_at, load_timestamp FROM {ALERTS.qualified}
    ) WHERE load_timestamp > $moment GROUP BY symbol
"""  # noqa: S608 - names of our own


def judging_by(rules: Sequence[AlertRule]) -> Callable[[Lake, datetime], pa.Table]:
    """`episodes_as_of` by `rules`, as `Lake` takes it."""
    return lambda lake, moment: episodes_as_of(lake, moment, rules)


def episodes_as_of(lake: Lake, moment: datetime, rules: Sequence[AlertRule]) -> pa.Table:
    """Rows of gold.dm_market_alerts as they were at `moment` (aware), judged by `rules`. `lake`: a snapshot.

    An episode that did not change since is in the table as it was. What changed lies, for each product, behind the
    first trade that came since, or the first episode that changed since: from there on is judged again.
    """
    stored = lake.table(ALERTS.qualified).arrow()
    known = stored.filter(pc.less_equal(stored["load_timestamp"], pa.scalar(moment, pa.timestamp("us", "UTC"))))
    since = {row["symbol"]: row["since"] for row in lake.sql(_CHANGED, {"moment": moment})}
    then = lake.as_of(moment)
    end = None if moment.year == MAXYEAR else moment + timedelta(microseconds=1)
    newest = then.trades(columns=["event_time"], end=end).reversed().limit(1).arrow()
    if not since or newest.num_rows == 0:
        return known
    watermark = newest["event_time"][0].as_py()
    products = [row["symbol"] for row in lake.sql(f"SELECT DISTINCT symbol FROM {COVERAGE.qualified}")]  # noqa: S608
    spans = [(symbol, micros(begin), micros(max(watermark, begin))) for symbol, begin in since.items()]
    by_product = RulesByProduct(rules, products)
    own = (
        JudgeScope(symbol, rule, first, last)
        for symbol, first, last in spans
        for kind, of_kind in by_product.of(symbol).items()
        if kind not in SHARED_KINDS
        for rule in of_kind
    )
    scopes = [*own, *by_product.shared_scopes(spans)]
    needed: dict[str, int] = {}
    for scope in scopes:
        for symbol in scope.products:
            needed[symbol] = min(scope.needs_from_us, needed.get(symbol, scope.needs_from_us))
    columns = columns_for(rules)
    trades = pa.concat_tables(
        [
            SILVER.empty.select(columns),
            *(then.trades(symbol, moment_of(begin_us), columns=columns).arrow() for symbol, begin_us in needed.items()),
        ]
    )
    found = judge(trades, scopes, known, micros(watermark))
    if found is None:
        return known
    seen = dict(zip(stored["alert_id"].to_pylist(), stored["detected_at"].to_pylist(), strict=True))
    episodes = shaped(stamped(found.episodes, micros(moment)), ALERTS)
    detected = [min(seen.get(alert_id, moment), moment) for alert_id in episodes["alert_id"].to_pylist()]
    place = episodes.schema.get_field_index("detected_at")
    field = ALERTS.arrow_schema.field("detected_at")
    episodes = episodes.set_column(place, field, pa.array(detected, field.type))
    kept = known.filter(pc.invert(pc.is_in(known["alert_id"], pa.array(found.replaced, pa.string()))))
    return pa.concat_tables([kept, episodes]).sort_by([("opened_at", "ascending"), ("alert_id", "ascending")])
