"""Bars, intervals of ids and proofs → completeness of each product's hours. One thread at a time.

A row changes when a bar of its hour does, and also when a hole that it counts is closed by a trade of another hour, or
proved absent. Such rows are few (hours with a hole, and the hour in which a product's record begins), so they are kept
in memory with what they are made of, and derived again whenever any hole has changed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.engine import Commit
from cryptopulse.engine.delta import LOAD, DeltaHandle
from cryptopulse.engine.gold import replace_windows
from cryptopulse.engine.held import Held, after
from cryptopulse.engine.recent import MICROS
from cryptopulse.engine.session import Session
from cryptopulse.engine.windows import Runs, between_us, in_windows, touched_windows
from cryptopulse.lake.tables import ABSENT, BARS, COMPLETENESS, COVERAGE

_HOUR_US = COMPLETENESS.window_seconds * MICROS
_FAR_US = 253_402_300_799 * MICROS  # the end of the year 9999: no time that silver takes is later
_HOLD_S = 5.0  # bars change twice a second, and who asks for hours can wait a moment
_CHANGED_MAX = 100_000  # bars that wait to be taken in: in a catch-up five seconds of them may be many
_BAR = ("symbol", "window_start", "first_trade_id", "last_trade_id", "rest_count")
_BAR_SCHEMA = pa.schema([BARS.arrow_schema.field(name).with_nullable(True) for name in _BAR])
_ROW = tuple(name for name in COMPLETENESS.arrow_schema.names if name != "load_timestamp")
# The record of a product begins in the hour with its lowest id: an older trade would put a hole below it.
_BEGINS = "SELECT min(first_trade_id) AS begin FROM t GROUP BY symbol"
_MAY_CHANGE = f"missing_ids > 0 OR absent_ids > 0 OR first_trade_id IN ({_BEGINS})"


class CompletenessStep:
    """Brings gold.dm_completeness up to date."""

    def __init__(self, handles: Mapping[str, DeltaHandle], session: Session, held: Held) -> None:
        """`session` belongs to the lane of bars."""
        self._bars, self._table = handles[BARS.qualified], handles[COMPLETENESS.qualified]
        self._session = session
        self._held = held
        self._changed = [self._read(after(self._table.position("bars")))]
        """Bars (of _BAR) that were not taken in."""
        self._kept_from_us = self._horizon()
        kept = between_us("window_start", "window_date", max(self._kept_from_us, 0), _FAR_US)
        self._kept = self._read(kept)
        """The newest bars: all from `_kept_from_us` on, some of them as they were before those in `_changed`."""
        self._unsettled = self._table.read(", ".join(_ROW), _MAY_CHANGE)
        """The rows that may change though no bar of theirs does, as they are in the table."""
        self._unsettled_hours = self._read_hours(
            touched_windows(self._unsettled, "window_start", COMPLETENESS.window_seconds)
        )
        """Their hours: what the bars of each add up to, as one bar."""
        self._holes_seen = -1
        self._advanced = time.monotonic()
        self.hold_s = _HOLD_S
        """How long changed bars may wait to be taken in."""

    def add(self, bars: pa.Table) -> None:
        """Takes note of bars that were written."""
        self._changed.append(bars.select(_BAR).cast(_BAR_SCHEMA))

    def advance(self) -> Commit | None:
        """Derives the hours that changed bars lie in, and those whose holes may have changed."""
        waiting = sum(bars.num_rows for bars in self._changed)
        holes = self._held.holes_changed
        if not waiting and holes == self._holes_seen:
            return None
        if waiting < _CHANGED_MAX and time.monotonic() - self._advanced < self.hold_s:
            return None
        news, position = pa.concat_tables(self._changed), self._bars.position(LOAD)
        touched = touched_windows(news, "window_start", COMPLETENESS.window_seconds)
        others = self._unsettled_hours.filter(pc.invert(in_windows(self._unsettled_hours, touched)))
        hours = pa.concat_tables([self._hours_of(touched, news), others])
        changed = self._derive(hours)
        self._changed = [news.slice(0, 0)]
        self._holes_seen = holes
        self._advanced = time.monotonic()
        if changed.num_rows == 0:
            self._table.skip_to("bars", position)
            return None
        windows = touched_windows(changed, "window_start", COMPLETENESS.window_seconds)
        rows = replace_windows(self._table, changed, windows, {"bars": position})
        return Commit(COMPLETENESS, rows, news.num_rows)

    def _derive(self, hours: pa.Table) -> pa.Table:
        """The rows of `hours` that are not in the table as they are; notes which may change without their bars."""
        coverage = self._held.coverage
        inputs = {BARS.qualified: hours, COVERAGE.qualified: coverage, ABSENT.qualified: self._held.absent}
        derived = self._session.derive(COMPLETENESS.qualified, inputs).select(_ROW)
        changed = self._session.query(
            "SELECT * FROM derived EXCEPT SELECT * FROM known", {"derived": derived, "known": self._unsettled}
        )
        begins = coverage.group_by("symbol").aggregate([("first_trade_id", "min")])["first_trade_id_min"]
        lacks = pc.less(derived["held_ids"], derived["expected_ids"])
        self._unsettled = derived.filter(pc.or_(lacks, pc.is_in(derived["first_trade_id"], begins.combine_chunks())))
        windows = touched_windows(self._unsettled, "window_start", COMPLETENESS.window_seconds)
        self._unsettled_hours = hours.filter(in_windows(hours, windows))
        return changed

    def _hours_of(self, touched: pa.Table, news: pa.Table) -> pa.Table:
        """The `touched` hours: the newest from the bars in memory, older ones from the table."""
        since_us = self._kept_from_us
        minutes = _minutes(pa.concat_tables([self._kept, news]))
        self._kept_from_us = max(since_us, self._horizon())
        times = pc.cast(minutes["window_start"], pa.int64())
        self._kept = minutes.filter(pc.greater_equal(times, self._kept_from_us))
        is_new = pc.greater_equal(touched["window_us"], since_us)
        newest = _hours(minutes.filter(pc.greater_equal(times, since_us)))
        newest = newest.filter(in_windows(newest, touched.filter(is_new)))
        return pa.concat_tables([newest, self._read_hours(touched.filter(pc.invert(is_new)))])

    def _read_hours(self, windows: pa.Table) -> pa.Table:
        if windows.num_rows == 0:
            return _BAR_SCHEMA.empty_table()
        condition = Runs(windows, COMPLETENESS.window_seconds).condition("window_start", "window_date")
        hours = _hours(self._read(condition))
        return hours.filter(in_windows(hours, windows))

    def _read(self, where: str) -> pa.Table:
        return self._bars.read(", ".join(_BAR), where).cast(_BAR_SCHEMA)

    def _horizon(self) -> int:
        """Start of the hour before the newest trade's, µs UTC: late trades are of that one or the open one."""
        return self._held.watermark_us // _HOUR_US * _HOUR_US - _HOUR_US


def _minutes(bars: pa.Table) -> pa.Table:
    """The newest state of each bar: silver only grows, so it has the lowest first, the highest last and the most."""
    return _together(bars, "max")


def _hours(minutes: pa.Table) -> pa.Table:
    """What `minutes` add up to, as one bar an hour."""
    length = pa.scalar(_HOUR_US, pa.int64())
    start = pc.multiply(pc.divide(pc.cast(minutes["window_start"], pa.int64()), length), length)
    column = minutes.schema.get_field_index("window_start")
    return _together(minutes.set_column(column, "window_start", start.cast(pa.timestamp("us", "UTC"))), "sum")


def _together(bars: pa.Table, counts: str) -> pa.Table:
    """One row for each (symbol, window_start); `counts`: how their rest_counts are put together."""
    grouped = bars.group_by(["symbol", "window_start"])
    found = grouped.aggregate([("first_trade_id", "min"), ("last_trade_id", "max"), ("rest_count", counts)])
    return found.rename_columns(_BAR).cast(_BAR_SCHEMA)
