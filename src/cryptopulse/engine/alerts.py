"""Silver → alerts: judges new trades at once and keeps the table of episodes up to date.

Nearly all steps change nothing, and the price watch detects that cheaply. When a trade can be over a threshold, the
product's trades of the look-back are fetched and judged. After a pause, and in a catch-up, all new trades are judged
in bulk, which costs less per trade.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.engine import StepResult
from cryptopulse.engine.custom_rules import check_custom_rules
from cryptopulse.engine.judge import judge
from cryptopulse.engine.price_watch import PriceWatch
from cryptopulse.engine.rows import newest_load_us, shaped, stamped
from cryptopulse.engine.scopes import JudgeScope, ScopeWatch, needed_spans, scopes_of, whole_episodes
from cryptopulse.lake.tables import ALERTS, SILVER
from cryptopulse.settings import AlertRule
from cryptopulse.store.table_writer import LOAD
from cryptopulse.text import MICROS

# Closed episodes stay in memory for twice the longest cool-down. For trades later than half of it the table is read.
EPISODES_KEPT_US = 2 * 86_400 * MICROS

_MAX_DELAY_S = 2.0  # while a crash is open every trade is over the threshold, and each update costs a commit
_MARKER_US = 30 * MICROS  # commit the position when it moved this far without rows: bounds what a restart judges again
_WATCHED_MAX = 20_000  # trades per step for the price watch (2 µs each); more are judged in bulk
_SLACK_US = 60 * MICROS  # a watched product's newest trade may be this much older than the other products'
_FAR_US = 7_258_118_400 * MICROS  # 2200-01-01
_COLUMNS = ", ".join(ALERTS.arrow_schema.names)
_NO_EPISODES = ALERTS.empty


class TradeSource(Protocol):
    """Silver's trades: a `cryptopulse.store.table_tail.TableTail`, or Spark's."""

    @property
    def watermark_us(self) -> int:
        """Newest event time that is not in the future."""

    @property
    def kept_from_us(self) -> int:
        """Start of the first day that retention keeps (µs UTC); 0 for all."""

    def since(self, position: int) -> pa.Table | None:
        """The rows loaded after `position`; None when there are none."""

    def between(self, first_us: int, last_us: int, symbols: Sequence[str] | None = None) -> pa.Table:
        """The rows with event times from `first_us` to `last_us`, both included."""


class EpisodeTable(Protocol):
    """The table of episodes: a `cryptopulse.store.table_writer.TableWriter`, or Spark's."""

    def position(self, source: str) -> int: ...

    def recorded(self, source: str) -> int: ...

    def next_load(self) -> int: ...

    def skip_to(self, source: str, position: int) -> None: ...

    def append(self, rows: pa.Table, positions: Mapping[str, int]) -> None: ...

    def replace(
        self,
        rows: pa.Table,
        positions: Mapping[str, int],
        *,
        is_replaced: Callable[[pa.Table], pa.Array],
        within: Mapping[str, tuple[Any, Any]],
    ) -> None: ...

    def read(self, columns: str, where: str = "true") -> pa.Table: ...


class AlertStep:
    """Keeps gold.dm_market_alerts up to date. One thread at a time."""

    def __init__(
        self, table: EpisodeTable, trades: TradeSource, rules: Sequence[AlertRule], products: Iterable[str]
    ) -> None:
        """Reads from `table` the episodes that may still change. `products`: all that have trades.

        Raises ConfigurationError for a custom rule whose statement can't work.
        """
        check_custom_rules(rules)
        self._table, self._trades, self._rules = table, trades, rules
        self.episodes: pa.Table
        """Open and recently closed episodes; the table is replaced as a whole, never modified."""
        self.max_delay_s = _MAX_DELAY_S
        """How long updates of open episodes may wait."""
        self._keep(table.read(_COLUMNS))
        self._watch = PriceWatch(rules)
        self._scope_watch = self._watching_scopes(products)
        self._seen_to = table.position("silver")
        self._scopes: dict[tuple[str, str], list[JudgeScope]] = {}
        """What must be judged, by product and rule."""
        self._series: set[tuple[str, str, str]] = set()
        """The (product, rule name, type) of those that a trade may just have put over the threshold."""
        self._judged_s = time.monotonic()

    def advance(self) -> StepResult | None:
        """Judges silver's newest trades; None when there are none.

        When only open episodes can change, their update waits up to `max_delay_s`.
        """
        fresh = self._trades.since(self._seen_to)
        for scope in self._scope_watch.take_in(fresh, self._trades.watermark_us):
            self._note(scope.symbol, scope.rule, scope.first_us, scope.last_us, scope.products)
        if fresh is not None:
            self._take_in(fresh)
            self._seen_to = newest_load_us(fresh)
        elif not self._scopes:
            return None
        is_due = self._trades.watermark_us > self._quiet_until_us
        may_wait = time.monotonic() - self._judged_s < self.max_delay_s
        if self._scopes and not is_due and self._series <= self._open and may_wait:
            if fresh is None:
                return None
            # Report only trades of products with nothing left to judge as consumed.
            waiting = pa.array(sorted({symbol for symbol, *_ in self._series}), pa.string())
            rows, fresh = _NO_EPISODES, fresh.filter(pc.invert(pc.is_in(fresh["symbol"], waiting)))
        else:
            rows = self._judge() if self._scopes or is_due else self._advance_position()
        if fresh is None:
            return StepResult(ALERTS, rows, 0)
        return StepResult(ALERTS, rows, fresh.num_rows, received=fresh["ingestion_time"])

    def _take_in(self, fresh: pa.Table) -> None:
        """Notes which of the new trades must be judged."""
        if fresh.num_rows > _WATCHED_MAX:
            self._watch.forget()
            self._note_all(fresh)
            return
        if unknown := self._watch.unknown(pc.unique(fresh["symbol"]).to_pylist()):
            # Judged in bulk: the watch has not seen earlier trades of these products.
            is_unknown = pc.is_in(fresh["symbol"], pa.array(unknown))
            self._note_all(fresh.filter(is_unknown))
            fresh = fresh.filter(pc.invert(is_unknown))
            from_us = self._trades.watermark_us - self._watch.reach_us - _SLACK_US
            self._watch.load(unknown, self._trades.between(from_us, _FAR_US, unknown), from_us)
        for symbol, rule, alert_type, at_us in self._watch.take_in(fresh):
            self._series.add((symbol, rule.name, alert_type))
            self._note(symbol, rule, at_us, at_us)

    def _note(
        self, symbol: str, rule: AlertRule, first_us: int, last_us: int, products: frozenset[str] = frozenset()
    ) -> None:
        scopes = self._scopes.setdefault((symbol, rule.name), [])
        if not scopes or not scopes[-1].first_us <= first_us <= scopes[-1].needs_to_us:
            scopes.append(JudgeScope(symbol, rule, first_us, last_us, products))
            return
        last = scopes[-1]
        last.last_us = max(last.last_us, last_us)
        if not products <= last.products:  # of several, when a new one has come
            last.products |= products

    def _watching_scopes(self, products: Iterable[str]) -> ScopeWatch:
        """From the newest trades of `products` on."""
        newest: dict[str, int | None] = dict.fromkeys(products)
        lengths_s = [rule.lookback_s for rule in self._rules if rule.kind == "silence"]
        if lengths_s:
            from_us = self._trades.watermark_us - max(lengths_s) * MICROS - _SLACK_US
            trades = self._trades.between(from_us, _FAR_US)
            last = trades.group_by("symbol").aggregate([("event_time", "max")])
            times = pc.cast(last["event_time_max"], pa.int64())
            newest |= dict(zip(last["symbol"].to_pylist(), times.to_pylist(), strict=True))
        return ScopeWatch(self._rules, newest, self._trades.watermark_us)

    def _note_all(self, news: pa.Table) -> None:
        for scope in scopes_of(news, self._rules):
            self._scopes.setdefault((scope.symbol, scope.rule.name), []).append(scope)
            self._series |= {(scope.symbol, scope.rule.name, alert_type) for alert_type in scope.rule.types}

    def _judge(self) -> pa.Table:
        """Judges what was noted, writes what changed, and returns the rows written."""
        noted = [scope for scopes in self._scopes.values() for scope in scopes]
        known = self._known(noted)
        while True:
            kept_from_us = self._trades.kept_from_us
            scopes = _kept(noted, known, kept_from_us)
            parts = [self._trades.between(first, last, symbols) for first, last, symbols in needed_spans(scopes)]
            if self._trades.kept_from_us == kept_from_us:  # else some trades may just have gone
                break
        trades = pa.concat_tables([SILVER.empty, *parts])
        found = judge(trades, scopes, known, self._trades.watermark_us)
        self._scopes.clear()
        self._series.clear()
        self._judged_s = time.monotonic()
        if found is None:
            return self._advance_position()
        load = self._table.next_load()
        rows, positions = shaped(stamped(found.episodes, load), ALERTS), {"silver": self._seen_to, LOAD: load}
        ids = pa.array(found.replaced, pa.string())
        if found.replaced:
            opened = pc.cast(known.filter(pc.is_in(known["alert_id"], ids))["opened_at"], pa.int64())
            self._table.replace(
                rows,
                positions,
                is_replaced=lambda there: pc.is_in(there["alert_id"], ids),
                within={"opened_at": (pc.min(opened).as_py(), pc.max(opened).as_py())},
            )
        else:
            self._table.append(rows, positions)
        self._keep(pa.concat_tables([self.episodes.filter(pc.invert(pc.is_in(self.episodes["alert_id"], ids))), rows]))
        return rows

    def _advance_position(self) -> pa.Table:
        """Counts new trades as judged; now and then commits the position."""
        if self._seen_to - self._table.recorded("silver") > _MARKER_US:
            self._table.append(_NO_EPISODES, {"silver": self._seen_to})
        self._table.skip_to("silver", self._seen_to)
        return _NO_EPISODES

    def _known(self, scopes: Iterable[JudgeScope]) -> pa.Table:
        """The episodes that judging could touch."""
        earliest = min((scope.first_us for scope in scopes), default=_FAR_US)
        if earliest >= self._trades.watermark_us - EPISODES_KEPT_US // 2:
            return self.episodes
        return self._table.read(_COLUMNS)

    def _keep(self, episodes: pa.Table) -> None:
        """Keeps the open and recently closed ones of `episodes`."""
        is_open = pc.equal(episodes["state"], "OPEN")
        kept_from = pa.scalar(self._trades.watermark_us - EPISODES_KEPT_US)
        is_recent = pc.greater_equal(pc.cast(episodes["last_trigger_at"], pa.int64()), kept_from)
        self.episodes = episodes.filter(pc.or_(is_recent, is_open))
        still = episodes.filter(is_open).select(["symbol", "rule", "alert_type", "cool_down_s", "last_trigger_at"])
        self._open = {(row["symbol"], row["rule"], row["alert_type"]) for row in still.to_pylist()}
        """The series with an open episode."""
        quiet_us = pc.multiply(pc.cast(still["cool_down_s"], pa.int64()), MICROS)
        until = pc.add(pc.cast(still["last_trigger_at"], pa.int64()), quiet_us)
        self._quiet_until_us: int = pc.min(until).as_py() or _FAR_US
        """Until when no episode can close, unless it goes on."""


def _kept(noted: Sequence[JudgeScope], known: pa.Table, kept_from_us: int) -> list[JudgeScope]:
    """What of `noted` can be judged by trades that are kept. Nothing is judged by a part of its trades: an episode that
    began too early stays as it is in `known`.
    """
    if not kept_from_us:
        return whole_episodes(noted, known)
    cut = [replace(scope, first_us=max(scope.first_us, kept_from_us + scope.rule.reach_s * MICROS)) for scope in noted]
    scopes = whole_episodes([scope for scope in cut if scope.first_us <= scope.last_us], known)
    return [scope for scope in scopes if scope.needs_from_us >= kept_from_us]
