"""Rows of one table, or bars made of them: which files are opened, and the SQL over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import duckdb
import pyarrow as pa

from cryptopulse.errors import RowsGone
from cryptopulse.lake.database import Database, TimeLimit, relation, streamed, telling
from cryptopulse.lake.files import DAY_US, TIME_MAX_US, Files, time_of
from cryptopulse.lake.grains import from_minutes, from_trades
from cryptopulse.lake.newest import Versions
from cryptopulse.lake.rows import Rows, check_positive
from cryptopulse.lake.selection import Selection, time_sql
from cryptopulse.lake.slices import slices, slices_back

_MICROS = 1_000_000


@dataclass(frozen=True, eq=False, repr=False)
class TableRows(Rows):
    """Rows of a table in its order, which `order` names. Its methods return other Rows; nothing is read by them."""

    selection: Selection
    files: Files
    """What is read: of the selection's table, or of the trades that bars are made of."""
    coverage: Files | None
    """silver's intervals of trade ids, where bars are made of trades."""
    versions: Versions
    database: Database
    timeout_s: float | None
    grain_s: int = 0
    """0: rows as they are stored; else they are grouped to bars of so many seconds."""

    @property
    def order(self) -> tuple[str, ...]:
        """The columns that the rows are ordered by; no two rows are alike in them."""
        return self.selection.order

    @property
    def schema(self) -> pa.Schema:
        """The columns and their Arrow types."""
        return self._schema(self.selection.columns)

    def limit(self, rows_max: int) -> Self:
        """The first `rows_max` of these rows. About as much is read as they need. A limit counts last: `reversed` and
        `after` that come later turn and move the rows that it takes them from.
        """
        check_positive("rows_max", rows_max)
        held = self.selection.rows_max
        return self._with(rows_max=rows_max if held is None else min(held, rows_max))

    def after(self, *key: object) -> Self:
        """Only rows behind the one with this `key`, the values of the columns that `order` names: the way from page to
        page. Times are datetimes or ISO text. The row itself need not be there.
        """
        return self._with(after=self.selection.key_of(key))

    def reversed(self) -> Self:
        """These rows from the last to the first: `.reversed().limit(100)` are the newest 100, the newest first."""
        return self._with(is_reversed=not self.selection.is_reversed)

    def within(self, timeout_s: float | None) -> Self:
        """These rows, but each reading of them is stopped after `timeout_s` seconds of work; None: never."""
        return replace(self, timeout_s=timeout_s)

    def count(self) -> int:
        """How many rows there are. Of a whole table that is known without reading it."""
        if self.selection.rows_max is not None:
            return sum(batch.num_rows for batch in self._read(self.order[:1], 1 << 20))
        if self.grain_s == 0 and self.selection.is_whole and (self.files.counts >= 0).all():
            return int(self.files.counts.sum())
        limit, (start, end) = TimeLimit(self.timeout_s), self._stretch
        files = self._in_time(start, end)
        if not files.actions.num_rows:
            return 0
        with self._telling(limit), self.database.cursor() as cursor, limit.watching(cursor):
            rows = self._rows_sql(cursor, files, start, end)
            found = cursor.execute(f"SELECT count(*) FROM ({rows}){_where(self.selection.behind())}").fetchone()  # noqa: S608
            return int(found[0]) if found else 0

    def stream(self, columns: Sequence[str] | None, rows_max: int) -> Iterator[pa.RecordBatch]:
        """See `Rows`."""
        names = self.selection.columns
        if columns is not None:
            names = tuple(name for name in names if name in columns) or names[:1]
        return self._read(names, rows_max)

    def __repr__(self) -> str:
        """What is asked, without reading anything."""
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
        schema, limit, left = self._schema(names), TimeLimit(self.timeout_s), self.selection.rows_max
        with self._telling(limit), self.database.cursor() as cursor:
            for start, end in self._slices():
                files = self._in_time(start, end)
                if not files.actions.num_rows:
                    continue
                sql = self._page_sql(self._rows_sql(cursor, files, start, end), names, left)
                with limit.watching(cursor):
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
        """What slices start at multiples of."""
        return max(self.grain_s * _MICROS, 1)

    @property
    def _stretch(self) -> tuple[int, int]:
        """From (included) and to (not included) which time rows are read; bars are made of all that lies in them."""
        start, end = (-(-edge // self._step_us) * self._step_us for edge in self.selection.stretch)
        return start, end

    def _slices(self) -> Iterator[tuple[int, int]]:
        if not self.selection.is_by_time:
            return iter([(0, TIME_MAX_US)])
        cut = slices_back if self.selection.is_reversed else slices
        return cut(self._candidates, *self._stretch, self._step_us, self.selection.rows_max)

    def _page_sql(self, rows: str, names: Sequence[str], left: int | None) -> str:
        """SQL: the rows of the SQL `rows` behind `after`, in order, `left` of them."""
        columns = ", ".join(f'"{name}"' for name in names)
        limited = "" if left is None else f" LIMIT {left}"
        behind = _where(self.selection.behind())
        return f"SELECT {columns} FROM ({rows}){behind} ORDER BY {self.selection.ordered()}{limited}"  # noqa: S608

    def _rows_sql(self, cursor: duckdb.DuckDBPyConnection, files: Files, start: int, end: int) -> str:
        """SQL: all rows of these products and times, in no order; bars, where those are wanted."""
        conditions = self.selection.conditions()
        stored = relation(cursor, files) + _where([*conditions, *_in_time_sql(files, start, end)])
        if self.grain_s == 0:
            return stored
        if self.coverage is not None:
            return from_trades(self.grain_s, stored, relation(cursor, self.coverage))
        # A bar that began a day before the newest one is over, whatever the pipeline is still about to write.
        is_old = int(self.files.last_us.max()) >= end + DAY_US
        later = self._in_time(start, TIME_MAX_US)
        newest = (
            None if is_old else relation(cursor, later) + _where([*conditions, f"window_start >= {time_sql(start)}"])
        )
        return from_minutes(self.grain_s, stored, newest)

    @contextmanager
    def _telling(self, limit: TimeLimit) -> Iterator[None]:
        try:
            with telling(self.files.lake, self.files.table, limit, self.database.memory_max_mb):
                yield
        except RowsGone:
            self.versions.forget(self.files.table)
            raise


def _in_time_sql(files: Files, start: int, end: int) -> list[str]:
    column = time_of(files.table)
    if column is None:
        return []
    parts = [f"{column} >= {time_sql(start)}"] if start > 0 else []
    return parts + ([f"{column} < {time_sql(end)}"] if end < TIME_MAX_US else [])


def _where(conditions: Sequence[str]) -> str:
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""
