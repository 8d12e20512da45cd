"""Judging trades by alert rules: the same for live trades, for late ones and for history.

The rule itself is SQL (`lake/sql/gold.dm_market_alerts.sql`). Here it is decided which trades and which known
episodes the SQL must see, so that judging costs little while nothing happens.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.engine import Commit
from cryptopulse.engine.delta import LOAD, NOTHING_YET, DeltaHandle
from cryptopulse.engine.held import Held
from cryptopulse.engine.recent import MICROS
from cryptopulse.engine.rows import shaped, stamped
from cryptopulse.engine.windows import between_us
from cryptopulse.lake.tables import ALERTS, SILVER
from cryptopulse.settings import AlertRule

_ALERT_COLUMNS = ", ".join(ALERTS.arrow_schema.names)
_RULES_SCHEMA = pa.schema(
    [
        ("symbol", pa.string()),
        ("rule", pa.string()),
        ("alert_type", pa.string()),
        ("direction", pa.int32()),
        ("threshold_pct", pa.decimal128(8, 4)),
        ("lookback_s", pa.int32()),
        ("cool_down_s", pa.int32()),
        ("min_volume", pa.decimal128(28, 12)),
        ("min_trades", pa.int64()),
        ("judge_from", pa.timestamp("us", tz="UTC")),
        ("judge_to", pa.timestamp("us", tz="UTC")),
    ]
)
_NO_EPISODES = ALERTS.arrow_schema.empty_table()
_SPAN_COLUMNS = ("symbol", "event_time_min", "event_time_max")
# Closed episodes stay in memory so long: twice the longest cool-down. Trades later than half of it ask the table.
EPISODES_KEPT_US = 2 * 86_400 * MICROS
_HOLD_S = 2.0  # an update of an open episode costs some 60 ms (judging, commit) that new trades wait for
_MARKER_US = 30 * MICROS  # a position that moved so far without rows is committed: bounds what a restart judges again


@dataclass(frozen=True)
class Judgement:
    """What judging changed: `episodes` take the place of those named in `replaced`."""

    episodes: pa.Table
    replaced: list[str]


class Session(Protocol):
    """What runs the rule: DuckDB over Arrow tables, or Spark, which takes its own data frames as well."""

    def derive(self, name: str, inputs: Mapping[str, Any]) -> pa.Table:
        """The rows of the canonical statement `name` over `inputs` (qualified name → rows)."""


class AlertJudge:
    """Judges trades by `rules`."""

    def __init__(self, session: Session, rules: Sequence[AlertRule]) -> None:
        """`session` runs the SQL; use both from one thread."""
        self._session = session
        self._rules = rules
        self._rules_of: dict[str, list[dict[str, object]]] = {}
        self.lookback_max_s = max((rule.lookback_s for rule in rules), default=0)
        self.threshold_min_pct = float(min((rule.threshold_pct for rule in rules), default=100))

    def warm_up(self) -> None:
        """Judges nothing: planning the statement takes 0.1 s, for which the first crash must not wait."""
        self.judge(SILVER.arrow_schema.empty_table(), lambda _: SILVER.arrow_schema.empty_table(), _NO_EPISODES, 0)

    def judge(
        self,
        news: pa.Table,
        trades: Callable[[pa.Table], Any],
        known: pa.Table,
        watermark_us: int,
        suspects: Set[tuple[str, str]] | None = None,
    ) -> Judgement | None:
        """Judges the trades `news` (symbol, event_time), for all rules or only for those of `suspects` (symbol, type).

        `trades` gives silver's trades, as the session takes them, for a table of (symbol, judge_from, judge_to): from
        one look-back before to one after. `known` are the episodes so far that could be near. `watermark_us` is the
        newest event time of silver: episodes that were quiet since close. Returns None when nothing changed.
        """
        scoped = self._scoped(news, suspects)
        stretch = trades(scoped)
        clock = pa.table({"watermark_us": pa.array([watermark_us], pa.int64())})
        near = _near(known, scoped)
        inputs = {SILVER.qualified: stretch, "alert_rules": scoped, ALERTS.qualified: near, "alert_clock": clock}
        return _changes(self._session.derive(ALERTS.qualified, inputs), near)

    def rules_for(self, symbol: str, alert_type: str) -> int:
        """How many rules of `alert_type` apply to a product."""
        return sum(rule["alert_type"] == alert_type for rule in self._rules_for(symbol))

    def _rules_for(self, symbol: str) -> list[dict[str, object]]:
        if symbol not in self._rules_of:
            self._rules_of[symbol] = _rules_of(symbol, self._rules)
        return self._rules_of[symbol]

    def _scoped(self, news: pa.Table, suspects: Set[tuple[str, str]] | None) -> pa.Table:
        """The rules of each product in `news`, with the times between which its trades are to be judged."""
        spans = news.group_by("symbol").aggregate([("event_time", "min"), ("event_time", "max")])
        rows = []
        for symbol, first, last in zip(*(spans[name].to_pylist() for name in _SPAN_COLUMNS), strict=True):
            rows += [
                rule | {"judge_from": first, "judge_to": last}
                for rule in self._rules_for(symbol)
                if suspects is None or (symbol, rule["alert_type"]) in suspects
            ]
        return pa.Table.from_pylist(rows, schema=_RULES_SCHEMA)


def _near(known: pa.Table, scoped: pa.Table) -> pa.Table:
    """Of the episodes `known` those that judging by `scoped` rules could touch, and all open ones, which may close."""
    is_open = pc.equal(known["state"], "OPEN")
    if scoped.num_rows == 0:
        return known.filter(is_open)
    is_of_product = pc.is_in(known["symbol"], pc.unique(scoped["symbol"]))
    quiet_us = pc.multiply(pc.cast(known["cool_down_s"], pa.int64()), MICROS)
    until_us = pc.add(pc.cast(known["last_trigger_at"], pa.int64()), quiet_us)
    is_late_enough = pc.greater_equal(until_us, pc.cast(pc.min(scoped["judge_from"]), pa.int64()))
    return known.filter(pc.or_(is_open, pc.and_(is_of_product, is_late_enough)))


def _rules_of(symbol: str, rules: Sequence[AlertRule]) -> list[dict[str, object]]:
    """The rules that apply to `symbol`, one row for each type: of each name the first that matches."""
    chosen: dict[str, AlertRule] = {}
    for rule in rules:
        if rule.applies_to(symbol):
            chosen.setdefault(rule.name, rule)
    return [
        {
            "symbol": symbol,
            "rule": rule.name,
            "alert_type": alert_type,
            "direction": 1 if alert_type == "FLASH_CRASH" else -1,
            "threshold_pct": rule.threshold_pct,
            "lookback_s": rule.lookback_s,
            "cool_down_s": rule.cool_down_s,
            "min_volume": rule.min_volume,
            "min_trades": rule.min_trades,
        }
        for rule in chosen.values()
        for alert_type in dict.fromkeys(rule.types)
    ]


def _changes(episodes: pa.Table, near: pa.Table) -> Judgement | None:
    """Only the episodes that are new or differ from what is known."""
    columns = [name for name in ALERTS.arrow_schema.names if name != "load_timestamp"]
    before = {row["alert_id"]: row for row in near.select(columns).to_pylist()}
    after = episodes.select(columns).to_pylist()
    changed = [row for row in after if before.get(row["alert_id"]) != row]
    gone = before.keys() - {row["alert_id"] for row in after}
    if not changed and not gone:
        return None
    schema = pa.schema([ALERTS.arrow_schema.field(name) for name in columns])
    replaced = sorted(gone | {row["alert_id"] for row in changed})
    return Judgement(pa.Table.from_pylist(changed, schema=schema), replaced)


def stretch_bounds_us(scoped: pa.Table) -> tuple[int, int]:
    """Earliest and latest event time (µs UTC) that judging by `scoped` rules must see."""
    lookback = pc.multiply(pc.cast(scoped["lookback_s"], pa.int64()), MICROS)
    first = pc.subtract(pc.cast(scoped["judge_from"], pa.int64()), lookback)
    last = pc.add(pc.cast(scoped["judge_to"], pa.int64()), lookback)
    return pc.min(first).as_py(), pc.max(last).as_py()


class AlertStep:
    """Silver → alerts: judges what is new and keeps the table of episodes. One thread at a time."""

    def __init__(self, handle: DeltaHandle, judge: AlertJudge, held: Held) -> None:
        """Reads the episodes that may still change."""
        self._handle, self._judge, self._held = handle, judge, held
        self.episodes = self._near(handle.read(_ALERT_COLUMNS))
        """Episodes that are open or not long closed; replaced as a whole, never changed."""
        self.hold_s = _HOLD_S
        """How long news of episodes that are open already may wait."""
        self._looked_to = NOTHING_YET
        self._newest_us: dict[str, int] = {}
        self._suspects: set[tuple[str, str]] = set()
        self._judged_at = time.monotonic()

    def advance(self) -> Commit | None:
        """Judges silver's newest trades; see `cryptopulse.engine.Engine.advance`.

        A quick look at prices tells which products can have a trade over a threshold. When all that can change is an
        episode that is open already, its update waits a little: an open crash is over the threshold with every trade.
        """
        fresh = self._held.since(max(self._handle.position("silver"), self._looked_to))
        if fresh is not None:
            self._suspects |= self._look_at(fresh)
            self._looked_to = pc.cast(pc.max(fresh["load_timestamp"]), pa.int64()).as_py()
        elif not self._suspects:
            return None
        if not self._suspects and not self._is_any_due():
            self._move_on()
            return self._commit(_NO_EPISODES, fresh)
        if self._may_wait():
            return None if fresh is None else self._commit(_NO_EPISODES, self._unsuspected(fresh))
        return self._commit(self._judge_suspects(), fresh)

    def _judge_suspects(self) -> pa.Table:
        """Judges all news of the products suspected, writes what changed, and returns the rows written."""
        news = self._held.since(self._handle.position("silver"))
        assert news is not None  # there are suspects in it, or an episode that trades after it made due
        suspects = news.filter(pc.is_in(news["symbol"], pa.array(sorted({s for s, _ in self._suspects}), pa.string())))
        judgement = self._judge.judge(
            suspects, self._trades_for, self._known(news), self._held.watermark_us, self._suspects
        )
        self._suspects.clear()
        self._judged_at = time.monotonic()
        if judgement is None:
            self._move_on()
            return _NO_EPISODES
        load = self._handle.next_load()
        rows = shaped(stamped(judgement.episodes, load), ALERTS)
        ids = ", ".join(f"'{alert_id}'" for alert_id in judgement.replaced)
        self._handle.replace(rows, f"alert_id IN ({ids})", {"silver": self._looked_to, LOAD: load})
        is_replaced = pc.is_in(self.episodes["alert_id"], pa.array(judgement.replaced))
        self.episodes = self._near(pa.concat_tables([self.episodes.filter(pc.invert(is_replaced)), rows]))
        return rows

    def _move_on(self) -> None:
        """Counts the news looked at as judged; now and then the table says so too."""
        if self._looked_to - self._handle.recorded("silver") > _MARKER_US:
            self._handle.append(_NO_EPISODES, {"silver": self._looked_to})
        self._handle.skip_to("silver", self._looked_to)

    @staticmethod
    def _commit(rows: pa.Table, taken_in: pa.Table | None) -> Commit:
        if taken_in is None:
            return Commit(ALERTS, rows, 0)
        return Commit(ALERTS, rows, taken_in.num_rows, received=taken_in["ingestion_time"])

    def _unsuspected(self, fresh: pa.Table) -> pa.Table:
        symbols = pa.array(sorted({symbol for symbol, _ in self._suspects}), pa.string())
        return fresh.filter(pc.invert(pc.is_in(fresh["symbol"], symbols)))

    def _look_at(self, fresh: pa.Table) -> set[tuple[str, str]]:
        """Products and types of which a trade can be over a threshold: all that are, and few more."""
        spans = fresh.group_by("symbol").aggregate([(c, f) for c in ("event_time", "price") for f in ("min", "max")])
        symbols: list[str] = spans["symbol"].to_pylist()
        first, last = (pc.cast(spans[f"event_time_{f}"], pa.int64()).to_pylist() for f in ("min", "max"))
        lows, highs = (pc.cast(spans[f"price_{f}"], pa.float64()).to_pylist() for f in ("min", "max"))
        back_to_us = min(first) - self._judge.lookback_max_s * MICROS
        if back_to_us < self._held.recent.complete_from_us:
            return {(symbol, alert_type) for symbol in symbols for alert_type in ("FLASH_CRASH", "PRICE_SURGE")}
        wide = self._held.recent.price_ranges(symbols, back_to_us)
        late = self._held.recent.price_ranges(symbols, min(first))
        share = self._judge.threshold_min_pct / 100
        found = set()
        for symbol, first_us, last_us, low, high in zip(symbols, first, last, lows, highs, strict=True):
            # A trade that comes late also changes what later trades look back at: then those are looked at too.
            in_order = first_us >= self._newest_us.get(symbol, last_us + 1)
            lowest, highest = (low, high) if in_order else late[symbol]
            # Floats stand for exact prices: a hair wider, so that no trade at exactly the threshold is passed over.
            if lowest <= wide[symbol][1] * (1 - share) * (1 + 1e-9):
                found.add((symbol, "FLASH_CRASH"))
            if highest >= wide[symbol][0] * (1 + share) * (1 - 1e-9):
                found.add((symbol, "PRICE_SURGE"))
            self._newest_us[symbol] = max(last_us, self._newest_us.get(symbol, last_us))
        return found

    def _may_wait(self) -> bool:
        """Whether each suspect has its episodes open, and they were judged just now."""
        if time.monotonic() - self._judged_at >= self.hold_s or self._is_any_due():
            return False
        still_open = self.episodes.filter(pc.equal(self.episodes["state"], "OPEN"))
        opened = Counter(zip(still_open["symbol"].to_pylist(), still_open["alert_type"].to_pylist(), strict=True))
        return all(opened[suspect] >= self._judge.rules_for(*suspect) for suspect in self._suspects)

    def _is_any_due(self) -> bool:
        """Whether an open episode has been quiet for its cool-down."""
        still_open = self.episodes.filter(pc.equal(self.episodes["state"], "OPEN"))
        if still_open.num_rows == 0:
            return False
        quiet_from = pc.cast(still_open["last_trigger_at"], pa.int64())
        cool_down = pc.multiply(pc.cast(still_open["cool_down_s"], pa.int64()), MICROS)
        return bool(pc.any(pc.less(pc.add(quiet_from, cool_down), self._held.watermark_us)).as_py())

    def _trades_for(self, scoped: pa.Table) -> pa.Table:
        """The trades that judging by `scoped` rules must see: recent ones from memory, late ones from the table."""
        if scoped.num_rows == 0:
            return SILVER.arrow_schema.empty_table()
        recent = self._held.recent
        lookback_us = pc.multiply(pc.cast(scoped["lookback_s"], pa.int64()), MICROS)
        first_us = pc.subtract(pc.cast(scoped["judge_from"], pa.int64()), lookback_us)
        is_late = pc.less(first_us, pa.scalar(max(recent.complete_from_us, -(2**62))))
        # By product, not by rule: a trade that came from both would count twice.
        is_late = pc.is_in(scoped["symbol"], pc.unique(scoped.filter(is_late)["symbol"]))
        late, live = scoped.filter(is_late), scoped.filter(pc.invert(is_late))
        parts = []
        if live.num_rows:
            trades = recent.between(*stretch_bounds_us(live))
            parts.append(trades.filter(pc.is_in(trades["symbol"], pc.unique(live["symbol"]))))
        if late.num_rows:
            symbols = ", ".join(f"'{symbol}'" for symbol in pc.unique(late["symbol"]).to_pylist())
            when = between_us("event_time", "event_date", *stretch_bounds_us(late))
            parts.append(self._held.read(f"symbol IN ({symbols}) AND {when}"))
        return pa.concat_tables(parts)

    def _known(self, news: pa.Table) -> pa.Table:
        earliest = pc.cast(pc.min(news["event_time"]), pa.int64()).as_py()
        if earliest >= self._held.watermark_us - EPISODES_KEPT_US // 2:
            return self.episodes
        return self._handle.read(_ALERT_COLUMNS)

    def _near(self, episodes: pa.Table) -> pa.Table:
        kept_from = pa.scalar(self._held.watermark_us - EPISODES_KEPT_US)
        is_recent = pc.greater_equal(pc.cast(episodes["last_trigger_at"], pa.int64()), kept_from)
        return episodes.filter(pc.or_(is_recent, pc.equal(episodes["state"], "OPEN")))
