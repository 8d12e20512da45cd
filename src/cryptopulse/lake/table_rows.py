"""Rows of one table, or bars made from them: chooses the files to open, and makes the SQL over them.

Sorting a large table by time would read all of it, even for the first thousand rows. File statistics tell which times
each file holds, and so about how many rows lie between two moments. So the table is read and sorted one slice of time
after the other, until the reader has enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import duckdb
import numpy as np
import pyarrow as pa

from cryptopulse.errors import RowsGone
from cryptopulse.lake.activity_bars import ACTIVITY_BARS, TRADE_COLUMNS, BarSize, streamed_activity_bars
from cryptopulse.lake.as_of import coverage_sql, derived_sql, is_loaded
from cryptopulse.lake.database import Database, TimeLimit, relation, streamed, translated_errors
from cryptopulse.lake.dialect import time_literal
from cryptopulse.lake.files import DAY_US, TIME_MAX_US, Files, time_of
from cryptopulse.lake.follower import Versions
from cryptopulse.lake.grains import from_minutes, from_trades
from cryptopulse.lake.nautilus import activity_step, time_step
from cryptopulse.lake.reading import quoted
from cryptopulse.lake.result import Rows, check_positive
from cryptopulse.lake.scan import Selection
from cryptopulse.lake.tables import ABSENT, BARS, SILVER
from cryptopulse.text import MICROS

_SLICE_ROWS_MAX = 2_000_000  # when all rows are wanted: sorting takes some 300 MB
_SLICE_ROWS_MIN = 50_000  # fewer cost as much: opening files takes the time
_BAR_TRADES = 250_000  # read at a time for activity bars: some 100 MB
_SLICE_GROWTH = 4  # after a slice with too few rows of the wanted product, the next is larger by this factor


@dataclass(frozen=True, eq=False, repr=False)
class TableRows(Rows):
    """Rows of a table, sorted by `order`. `limit`, `after`, `reversed` and `within` give new Rows and read nothing."""

    selection: Selection
    files: Files
    """The files to read: of the selection's table, or of the trades from which bars are made."""
    coverage: Files | None
    """silver's intervals of trade ids, if bars are made from trades."""
    versions: Versions
    database: Database
    timeout_s: float | None
    grain_s: int = 0
    """0: rows as they are stored; else the length of the bars in seconds."""
    bar_size: BarSize | None = None
    """For activity bars: when one ends."""
    as_of_us: int | None = None
    """Rows as they were at this moment, µs UTC; None: as they are. See `cryptopulse.lake.as_of`."""
    absent: Files | None = None
    """silver.absent_trade_ids, if the rows are derived again from the trades, as they were."""
    rows: pa.Table | None = None
    """The table's rows if they are not read from files."""

    @property
    def order(self) -> tuple[str, ...]:
        """The columns by which the rows are ordered; together they are unique."""
        return self.selection.order

    @property
    def schema(self) -> pa.Schema:
        """The columns and their Arrow types."""
        return self._schema(self.selection.columns)

    @property
    def bar_step(self) -> str | None:
        """See `Rows.bar_step`."""
        if self.bar_size is not None:
            return activity_step(self.bar_size)
        return time_step(self.grain_s or BARS.window_seconds) if self.selection.table is BARS else None

    def limit(self, rows_max: int) -> Self:
        """The first `rows_max` of these rows; reads little more than these. The limit applies last, also when
        `reversed` or `after` are called later.
        """
        check_positive("rows_max", rows_max)
        known = self.selection.rows_max
        return self._with(rows_max=rows_max if known is None else min(known, rows_max))

    def after(self, *key: object) -> Self:
        """Only rows after this `key` (values of the columns in `order`), for paging. Times are datetimes or ISO text.
        No row with the key need exist. Raises ConfigurationError for an invalid key.
        """
        return self._with(after=self.selection.key_of(key))

    def reversed(self) -> Self:
        """These rows from last to first: `.reversed().limit(100)` are the newest 100, newest first."""
        return self._with(is_reversed=not self.selection.is_reversed)

    def within(self, timeout_s: float | None) -> Self:
        """See `Rows`."""
        return replace(self, timeout_s=timeout_s)

    def count(self) -> int:
        """How many rows there are. The Delta log gives the number for a whole table."""
        if self.selection.rows_max is not None or self.bar_size is not None:
            return sum(batch.num_rows for batch in self._read(self.order[:1], 1 << 20))
        is_stored = self.grain_s == 0 and self.as_of_us is None
        if is_stored and self.selection.is_whole and (self.files.counts >= 0).all():
            return int(self.files.counts.sum())
        limit, (start, end) = TimeLimit(self.timeout_s), self._time_range
        files = self._in_time(start, end)
        if not files.actions.num_rows and self.rows is None:
            return 0
        with self._translated_errors(limit), self.database.cursor() as cursor, limit.watching(cursor):
            rows = self._rows_sql(cursor, files, start, end)
            found = cursor.execute(f"SELECT count(*) FROM ({rows}){_where(self.selection.after_sql())}").fetchone()  # noqa: S608
            return int(found[0]) if found else 0

    def stream(self, columns: Sequence[str] | None, rows_max: int) -> Iterator[pa.RecordBatch]:
        """See `Rows`."""
        names = self.selection.columns
        if columns is not None:
            names = tuple(name for name in names if name in columns) or names[:1]
        return self._read(names, rows_max)

    def __repr__(self) -> str:
        """Table, products and version, without reading anything."""
        chosen = self.selection
        grain = f", {self.grain_s} s" if self.grain_s else ""
        symbols = "" if chosen.symbols is None else f", {', '.join(chosen.symbols)}"
        return f"<Rows of {chosen.table.qualified}{grain}{symbols}, version {self.files.version}, not read yet>"

    def _with(self, **changes: Any) -> Self:
        return replace(self, selection=replace(self.selection, **changes))

    def _schema(self, names: Sequence[str]) -> pa.Schema:
        schema = self.selection.table.arrow_schema
        return pa.schema([schema.field(name) for name in names])

    def _read(self, names: Sequence[str], rows_max: int) -> Iterator[pa.RecordBatch]:
        chosen = self.selection
        schema, limit, left = self._schema(names), TimeLimit(self.timeout_s), chosen.rows_max
        behind = _where(chosen.after_sql())
        with self._translated_errors(limit), self.database.cursor() as cursor, self.database.cursor() as reading:
            parts = iter([(0, TIME_MAX_US)])
            if chosen.is_by_time and self.rows is None:
                of_time, step_us = self._time_range, self._step_us
                parts = slices(self._candidates, *of_time, step_us, chosen.rows_max, is_reversed=chosen.is_reversed)
            for start, end in parts:
                files = self._in_time(start, end)
                if not files.actions.num_rows and self.rows is None:
                    continue
                limited = "" if left is None else f" LIMIT {left}"
                with limit.watching(cursor, reading):
                    if self.bar_size is None:
                        found = self._rows_sql(cursor, files, start, end)
                    else:
                        trades = self._rows_sql(reading, files, start, end)
                        found = self._activity_bars(cursor, reading, trades, self.bar_size, limit)
                    rows = f"SELECT {quoted(names)} FROM ({found})"  # noqa: S608
                    sql = f"{rows}{behind} ORDER BY {chosen.order_sql()}{limited}"
                    reader = cursor.sql(sql).to_arrow_reader(rows_max)
                for batch in streamed(cursor, reader, limit):
                    yield batch.cast(schema)
                    left = None if left is None else left - batch.num_rows
                if left == 0:
                    return

    @cached_property
    def _candidates(self) -> Files:
        """The files that may hold rows of these products and ids."""
        chosen, files = self.selection, self.files
        files = files.of_symbols(chosen.symbols) if chosen.symbols is not None else files
        return files.of_ids(chosen.first_id, chosen.last_id) if chosen.has_ids else files

    def _in_time(self, start: int, end: int) -> Files:
        return self._candidates if time_of(self.files.table) is None else self._candidates.in_time(start, end)

    @property
    def _step_us(self) -> int:
        """Slices start at multiples of this."""
        if self.bar_size is not None:
            return DAY_US
        window_s = self.grain_s if self.absent is None else self.selection.table.window_seconds
        return max(window_s * MICROS, 1)

    @property
    def _time_range(self) -> tuple[int, int]:
        """The times read, from (included) and to (not included), µs UTC: whole bars, for activity bars whole days."""
        (start, end), step = self.selection.time_range, self._step_us
        first = start // step if self.bar_size is not None else -(-start // step)
        return first * step, -(-end // step) * step

    def _rows_sql(self, cursor: duckdb.DuckDBPyConnection, files: Files, start: int, end: int) -> str:
        """SQL for all rows, or bars of some time, of these products and times, in no order; for activity bars, for
        their trades.
        """
        conditions, time = self.selection.conditions_sql(), time_of(files.table)
        if self.rows is not None:
            time = time_of(self.selection.table)
        elif self.as_of_us is not None:
            conditions.append(is_loaded(files.table, self.as_of_us))
        in_time = [f"{time} >= {time_literal(start)}"] if time and start > 0 else []
        in_time += [f"{time} < {time_literal(end)}"] if time and end < TIME_MAX_US else []
        if self.rows is not None:
            cursor.register("known_rows", self.rows)
        source = relation(cursor, files) if self.rows is None else "SELECT * FROM known_rows"
        stored = source + _where([*conditions, *in_time])
        if self.bar_size is not None:
            return stored
        if self.absent is not None and self.as_of_us is not None:
            proofs = relation(cursor, self.absent) + _where([is_loaded(ABSENT, self.as_of_us)])
            everything = relation(cursor, self._candidates) + _where(conditions)
            return derived_sql(self.selection.table, self.as_of_us, stored, everything, proofs)
        if self.grain_s == 0:
            return stored
        if self.coverage is not None:
            return from_trades(self.grain_s, stored, self._coverage_sql(cursor, self.coverage))
        newest = None
        # A bar that began a day before the newest one is over, whatever the pipeline still writes.
        if int(self.files.last_us.max()) < end + DAY_US:
            later = _where([*conditions, f"window_start >= {time_literal(start)}"])
            newest = relation(cursor, self._in_time(start, TIME_MAX_US)) + later
        return from_minutes(self.grain_s, stored, newest)

    def _activity_bars(
        self,
        cursor: duckdb.DuckDBPyConnection,
        reading: duckdb.DuckDBPyConnection,
        trades: str,
        size: BarSize,
        limit: TimeLimit,
    ) -> str:
        """SQL for the bars that start in the selection's times. `trades`: SQL for `reading` that gives all trades of
        their days. They are read in parts, and the bars go where DuckDB's limit of memory holds.
        """
        assert self.coverage is not None
        coverage = reading.sql(self._coverage_sql(reading, self.coverage)).to_arrow_table()
        ordered = (
            f"SELECT {quoted(TRADE_COLUMNS)}, CAST(price * trade_size AS DECIMAL(38, 12)) AS notional "  # noqa: S608
            f"FROM ({trades}) ORDER BY symbol, epoch_us(event_time) // {DAY_US}, trade_id"
        )
        start, end = self.selection.time_range
        in_time = f"epoch_us(window_start) >= {start} AND epoch_us(window_start) < {end}"
        cursor.register("bars_read", ACTIVITY_BARS.empty)
        cursor.execute("CREATE OR REPLACE TEMP TABLE activity_bars AS FROM bars_read")
        batches = reading.sql(ordered).to_arrow_reader(_BAR_TRADES)
        for bars in streamed_activity_bars(batches, coverage, size, limit.check):
            cursor.register("bars_read", bars)
            cursor.execute(f"INSERT INTO activity_bars FROM bars_read WHERE {in_time}")
        return "FROM activity_bars"

    def _coverage_sql(self, cursor: duckdb.DuckDBPyConnection, coverage: Files) -> str:
        """SQL for the intervals of ids held of these products."""
        conditions = self.selection.conditions_sql()
        if self.as_of_us is None:
            return relation(cursor, coverage) + _where(conditions)
        loaded = is_loaded(SILVER, self.as_of_us)
        return coverage_sql(relation(cursor, self._candidates) + _where([*conditions, loaded]))

    @contextmanager
    def _translated_errors(self, limit: TimeLimit) -> Iterator[None]:
        try:
            with translated_errors(self.files.lake, self.files.table, limit, self.database.memory_max_mb):
                yield
        except RowsGone:
            self.versions.forget(self.files.table)
            raise


def _where(conditions: Sequence[str]) -> str:
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""


def slices(
    files: Files, first_us: int, end_us: int, step_us: int, rows: int | None, *, is_reversed: bool = False
) -> Iterator[tuple[int, int]]:
    """Consecutive (start, end) in [first_us, end_us), µs UTC, in order; both are multiples of `step_us`.

    The first slice is sized for `rows` rows (None: all are wanted), later ones for more and more. `is_reversed`: from
    the newest to the oldest.
    """
    if not files.actions.num_rows:
        return
    start = max(first_us, int(files.first_us.min()), 0) // step_us * step_us
    stop = -(-min(end_us, int(files.last_us.max()) + 1, TIME_MAX_US) // step_us) * step_us
    # Estimates the rows between two moments as if each file's rows were spread evenly.
    low, high = files.first_us.astype(float), files.last_us.astype(float) + 1
    density = np.maximum(files.counts, 0) / (high - low)
    target = _SLICE_ROWS_MAX if rows is None else max(2 * rows, _SLICE_ROWS_MIN)
    while start < stop:
        # The shortest slice, in whole steps, with at least `target` expected rows.
        least, most = 1, (stop - start) // step_us
        while least < most:
            middle = (least + most) // 2
            first, last = (stop - middle * step_us, stop) if is_reversed else (start, start + middle * step_us)
            overlap = np.minimum(high, last) - np.maximum(low, first)
            if (np.maximum(overlap, 0) * density).sum() >= target:
                most = middle
            else:
                least = middle + 1
        length = least * step_us
        if is_reversed:
            yield max(stop - length, start), stop
            stop -= length
        else:
            yield start, min(start + length, stop)
            start += length
        target = min(target * _SLICE_GROWTH, 2 * _SLICE_ROWS_MAX)
