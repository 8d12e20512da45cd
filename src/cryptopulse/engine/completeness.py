"""Bars, intervals of ids and proofs → completeness of each product's hours. One thread at a time.

A row changes when a bar of its hour changes, and also when a hole that it counts is closed by a trade of another hour
or proved absent. The rows of the second kind are few (hours with a hole, and each product's first hour), so they are
kept in memory with their inputs and derived again whenever a hole changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.engine import StepResult
from cryptopulse.engine.coverage import Coverage
from cryptopulse.engine.gold import replace_windows, rows_of
from cryptopulse.engine.rows import in_windows, kept_windows, touched_windows, window_starts
from cryptopulse.engine.session import SqlSession
from cryptopulse.lake.retention import DAY_US
from cryptopulse.lake.tables import ABSENT, BARS, COMPLETENESS, COVERAGE, SILVER
from cryptopulse.store.table_tail import TableTail
from cryptopulse.store.table_writer import TableWriter

_MAX_DELAY_S = 5.0  # bars change every second; readers of hourly figures can wait a moment
_BAR = ("symbol", "window_start", "first_trade_id", "last_trade_id", "rest_count")
_BAR_SCHEMA = pa.schema([BARS.arrow_schema.field(name).with_nullable(True) for name in _BAR])
_ROW = tuple(name for name in COMPLETENESS.arrow_schema.names if name != "load_timestamp")
# A product's first hour is the one with its lowest id: an older trade would create a hole below that id.
_BEGINS = "SELECT min(first_trade_id) AS begin FROM t GROUP BY symbol"
_MAY_CHANGE = f"missing_ids > 0 OR absent_ids > 0 OR first_trade_id IN ({_BEGINS})"


class CompletenessStep:
    """Brings gold.dm_completeness up to date."""

    def __init__(
        self,
        tables: Mapping[str, TableWriter],
        session: SqlSession,
        bars: TableTail,
        coverage: Coverage,
        absent: Callable[[], pa.Table],
    ) -> None:
        """`session` belongs to the lane of bars; `absent` returns the intervals of ids proved absent so far."""
        self._table = tables[COMPLETENESS.qualified]
        self._session = session
        self._bars = bars
        self._coverage = coverage
        self._silver = tables[SILVER.qualified]
        self._absent = absent
        self._unsettled = self._table.read(", ".join(_ROW), _MAY_CHANGE)
        """Rows, as they are in the table, that may change without a change of their bars."""
        self._unsettled_hours = self._hours_of(
            touched_windows(self._unsettled, "window_start", COMPLETENESS.window_seconds)
        )
        """The hours of these rows, the bars of each hour added up to one."""
        self._holes_seen = -1
        self._advanced = time.monotonic()
        self.max_delay_s = _MAX_DELAY_S
        """How long changed bars may wait."""

    def advance(self) -> StepResult | None:
        """Derives the hours of changed bars, and those whose holes may have changed; None if none changed or is due."""
        seen_to, position = self._table.position("bars"), self._bars.position
        holes = self._coverage.holes_changed
        if position <= seen_to and holes == self._holes_seen:
            return None
        if time.monotonic() - self._advanced < self.max_delay_s:
            return None
        self._advanced = time.monotonic()
        news = self._bars.since(seen_to)
        touched = touched_windows(
            _BAR_SCHEMA.empty_table() if news is None else news, "window_start", COMPLETENESS.window_seconds
        )
        # Hours of days that retention let go stay: a trade that came late for one is in no bar.
        kept_from_us = max(self._silver.kept_from, 0) * DAY_US
        touched = kept_windows(touched, kept_from_us)
        others = self._unsettled_hours.filter(pc.invert(in_windows(self._unsettled_hours, touched)))
        if kept_from_us:
            others = others.filter(pc.greater_equal(pc.cast(others["window_start"], pa.int64()), kept_from_us))
        hours, coverage = pa.concat_tables([self._hours_of(touched), others]), self._coverage.table
        inputs = {BARS.qualified: hours, COVERAGE.qualified: coverage, ABSENT.qualified: self._absent()}
        derived = self._session.derive(COMPLETENESS.qualified, inputs).select(_ROW)
        changed = self._session.query(
            "SELECT * FROM derived EXCEPT SELECT * FROM known", {"derived": derived, "known": self._unsettled}
        )
        begins = coverage.group_by("symbol").aggregate([("first_trade_id", "min")])["first_trade_id_min"]
        lacks = pc.less(derived["held_ids"], derived["expected_ids"])
        self._unsettled = derived.filter(pc.or_(lacks, pc.is_in(derived["first_trade_id"], begins.combine_chunks())))
        unsettled = touched_windows(self._unsettled, "window_start", COMPLETENESS.window_seconds)
        self._unsettled_hours = hours.filter(in_windows(hours, unsettled))
        self._holes_seen = holes
        if changed.num_rows == 0:
            self._table.skip_to("bars", position)
            return None
        windows = touched_windows(changed, "window_start", COMPLETENESS.window_seconds)
        rows = replace_windows(self._table, changed, windows, {"bars": position})
        return StepResult(COMPLETENESS, rows, 0 if news is None else news.num_rows)

    def _hours_of(self, touched: pa.Table) -> pa.Table:
        """The bars of the `touched` hours (symbol, window_us), added up to one bar per hour."""
        if touched.num_rows == 0:
            return _BAR_SCHEMA.empty_table()
        bars = rows_of(self._bars, touched, COMPLETENESS.window_seconds).select(_BAR)
        starts = window_starts(bars["window_start"], COMPLETENESS.window_seconds)
        hours = bars.set_column(1, "window_start", starts.cast(pa.timestamp("us", "UTC")))
        grouped = hours.group_by(["symbol", "window_start"])
        found = grouped.aggregate([("first_trade_id", "min"), ("last_trade_id", "max"), ("rest_count", "sum")])
        found = found.rename_columns(_BAR).cast(_BAR_SCHEMA)
        return found.filter(in_windows(found, touched))
