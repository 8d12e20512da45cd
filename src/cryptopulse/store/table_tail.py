"""The newest rows of a table, from memory or else from the table.

Every step asks its source table: which rows are newer than a position, and which rows lie between two times?
`TableTail` alone decides whether memory or the table answers. It is a pure cache of committed rows: it can be dropped
and filled from the table at any time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.lake.dialect import delta_time
from cryptopulse.lake.reading import between_us, quoted
from cryptopulse.lake.retention import DAY_US
from cryptopulse.lake.tables import LOAD_TIMESTAMP
from cryptopulse.store.table_writer import LOAD, NOTHING_YET, TableWriter

_SMALL_ROWS = 10_000  # smaller commits are merged, so that a query reads few chunks
_SMALL_CHUNKS_MAX = 32  # a scan costs some 10 µs per chunk
_FAR_CHUNKS_MAX = 64
_MIDDLES = 3  # number of commits whose rows stay, however far apart: in a catch-up gold is two behind
_FAR_US = np.iinfo(np.int64).max
_LONG_AGO_US = np.iinfo(np.int64).min
_READ_TO_US = 4_102_444_800_000_000  # 2100-01-01: later rows are read from the table on request


class _Chunk(NamedTuple):
    """Rows of one or several commits."""

    rows: pa.Table
    first_position: int
    last_position: int
    earliest_us: int
    latest_us: int


class TableTail:
    """The newest rows of one table. One thread adds, any may read."""

    def __init__(self, table: TableWriter, keep_us: int) -> None:
        """Reads the rows of the last `keep_us` microseconds before the newest one that is not in the future.

        `table` has a load_timestamp and declares `time`. In a table of windows a row replaces the one with its key.
        """
        contract = table.table
        assert contract.time is not None
        self._table = table
        self._keep_us = keep_us
        self._position_column, self._time, self._day = LOAD_TIMESTAMP, contract.time, contract.partition_by[0]
        self._key = list(contract.key)
        self._is_replaced = contract.window_seconds > 0
        self._columns = quoted(contract.arrow_schema.names)
        self._empty = contract.empty
        self._chunks: list[_Chunk] = []
        self._far: list[_Chunk] = []
        """Rows whose times lie far in the future."""
        self._middles: deque[int] = deque(maxlen=_MIDDLES)
        self._lock = threading.Lock()
        self._complete_to_us = _FAR_US
        self._taken_in = NOTHING_YET
        last = _micros(table.read(f"max({self._position_column}) AS at")["at"])
        self.position = max(table.position(LOAD), NOTHING_YET if last is None else last)
        """Load time of the newest commit, µs UTC."""
        newest = _micros(table.read(f"max({self._time}) AS at", f"{self._time} <= now()")["at"])
        self.watermark_us: int = newest or 0
        """Newest time (µs UTC) of the rows that is not in the future."""
        self._known_from = self.position
        self._complete_from_us = _LONG_AGO_US
        if last is not None:
            self._complete_from_us = self.watermark_us - keep_us
            self._complete_to_us = _READ_TO_US
            kept = table.read(
                self._columns, between_us(self._time, self._day, max(self._complete_from_us, 0), _READ_TO_US)
            )
            if kept.num_rows:
                times = self._times(kept)
                self._chunks = [_Chunk(kept, NOTHING_YET, self.position, int(times.min()), int(times.max()))]

    @property
    def kept_from_us(self) -> int:
        """Start of the first day that retention keeps (µs UTC); 0 for all."""
        return max(self._table.kept_from, 0) * DAY_US

    def add(self, rows: pa.Table, position: int) -> None:
        """Adds the `rows` of the commit at `position` (µs UTC), and drops rows that are too old."""
        times = self._times(rows)
        is_near = times <= position + self._keep_us  # a wrong clock must neither keep other rows nor push them out
        with self._lock:
            if is_near.all():
                near = times
                self._chunks.append(self._chunk(rows, times, position))
            else:
                near = times[is_near]
                if len(near):
                    self._chunks.append(self._chunk(rows.filter(pa.array(is_near)), near, position))
                self._far.append(self._chunk(rows.filter(pa.array(~is_near)), times[~is_near], position))
            if len(near):
                self._middles.append(int(np.partition(near, len(near) // 2)[len(near) // 2]))
            self.watermark_us = max(self.watermark_us, min(int(times.max()), position))
            self.position = position
            self._put_small_ones_together()
            self._forget()

    def _chunk(self, rows: pa.Table, times: npt.NDArray[np.int64], position: int) -> _Chunk:
        return _Chunk(rows, self.position, position, int(times.min()), int(times.max()))

    def taken_in(self, position: int) -> None:
        """Tells that `since` will not be called with a position before `position` any more."""
        self._taken_in = position

    def since(self, position: int) -> pa.Table | None:
        """The rows that were loaded after `position` (µs UTC), in the order of their commits; None for none."""
        with self._lock:
            if position >= self.position:
                return None
            if position >= self._known_from:
                parts = []
                for chunk in (*self._chunks, *self._far):
                    if chunk.first_position >= position:
                        parts.append(chunk.rows)
                    elif chunk.last_position > position:
                        loads = _int64(chunk.rows[self._position_column])
                        parts.append(chunk.rows.filter(pa.array(loads > position)))
                found = self._newest(pa.concat_tables(parts)) if parts else self._empty
                return found if found.num_rows else None
        found = self._table.read(self._columns, f"{self._position_column} > {delta_time(position)}")
        return found if found.num_rows else None

    def between(self, first_us: int, last_us: int, symbols: Sequence[str] | None = None) -> pa.Table:
        """The rows whose time lies in [`first_us`, `last_us`] (µs UTC); only those of `symbols` unless None."""
        with self._lock:
            if first_us >= self._complete_from_us and last_us <= self._complete_to_us:
                return self._newest(self._in_memory(first_us, last_us, symbols))
        where = between_us(self._time, self._day, first_us, last_us)
        if symbols is not None:
            names = ", ".join("'" + symbol.replace("'", "''") + "'" for symbol in symbols)
            where = f"symbol IN ({names}) AND {where}" if symbols else "false"
        return self._table.read(self._columns, where)

    def matching(self, keys: pa.Table) -> pa.Table:
        """The rows with these `keys`, newest commits first; rows that are not in memory come from the table.

        Only for a table whose key is a text and a number.
        """
        name, number = self._key
        wanted = set(zip(keys[name].to_pylist(), keys[number].to_pylist(), strict=True))
        ids = np.unique(_int64(keys[number]))
        parts = []
        with self._lock:
            chunks = [*self._far, *self._chunks]
        for chunk in reversed(chunks):
            if not wanted:
                break
            chunk_ids = _int64(chunk.rows[number])
            at = np.flatnonzero(ids[np.minimum(np.searchsorted(ids, chunk_ids), len(ids) - 1)] == chunk_ids)
            near = chunk.rows.take(pa.array(at))
            pairs = list(zip(near[name].to_pylist(), near[number].to_pylist(), strict=True))
            parts.append(near.filter(pa.array([pair in wanted for pair in pairs], pa.bool_())))
            wanted.difference_update(pairs)
        if wanted:
            bounds: dict[str, tuple[int, int]] = {}
            for text, one in wanted:
                low, high = bounds.get(text, (one, one))
                bounds[text] = (min(low, one), max(high, one))
            where = " OR ".join(
                f"({name} = '{text}' AND {number} BETWEEN {low} AND {high})"
                for text, (low, high) in sorted(bounds.items())
            )
            near = self._table.read(self._columns, where)
            pairs = list(zip(near[name].to_pylist(), near[number].to_pylist(), strict=True))
            parts.append(near.filter(pa.array([pair in wanted for pair in pairs], pa.bool_())))
        return pa.concat_tables([self._empty, *parts])

    def _in_memory(self, first_us: int, last_us: int, symbols: Sequence[str] | None) -> pa.Table:
        parts = [self._empty]
        value_set = None if symbols is None else pa.array(symbols, pa.string())
        for chunk in (*self._chunks, *self._far):
            if chunk.latest_us < first_us or chunk.earliest_us > last_us:
                continue
            rows = chunk.rows
            if chunk.earliest_us < first_us or chunk.latest_us > last_us:
                times = self._times(rows)
                rows = rows.filter(pa.array((times >= first_us) & (times <= last_us)))
            if value_set is not None:
                rows = rows.filter(pc.is_in(rows["symbol"], value_set))
            parts.append(rows)
        return pa.concat_tables(parts)

    def _newest(self, rows: pa.Table) -> pa.Table:
        """The newest row per key in a table of windows, else all `rows`."""
        if not self._is_replaced or rows.num_rows == 0:
            return rows
        numbered = rows.select(self._key).append_column("row", pa.array(np.arange(rows.num_rows)))
        newest = numbered.group_by(self._key).aggregate([("row", "max")])["row_max"]
        return rows if len(newest) == rows.num_rows else rows.take(newest)

    def _put_small_ones_together(self) -> None:
        small = 0
        while small < len(self._chunks) and self._chunks[-1 - small].rows.num_rows < _SMALL_ROWS:
            small += 1
        if small <= _SMALL_CHUNKS_MAX:
            return
        chunks, self._chunks = self._chunks[-small:], self._chunks[:-small]
        rows = self._newest(pa.concat_tables([chunk.rows for chunk in chunks])).combine_chunks()
        earliest, latest = min(chunk.earliest_us for chunk in chunks), max(chunk.latest_us for chunk in chunks)
        self._chunks.append(_Chunk(rows, chunks[0].first_position, chunks[-1].last_position, earliest, latest))

    def _forget(self) -> None:
        """Drops chunks that are too old and that all readers have taken in, and the oldest far ones beyond 64."""
        horizon = min(self._middles) - self._keep_us if self._middles else _LONG_AGO_US
        for chunks in (self._chunks, self._far):
            kept = [c for c in chunks if c.latest_us >= horizon or c.last_position > self._taken_in]
            for chunk in chunks:
                if chunk.latest_us < horizon and chunk.last_position <= self._taken_in:
                    self._complete_from_us = max(self._complete_from_us, chunk.latest_us + 1)
                    self._known_from = max(self._known_from, chunk.last_position)
            chunks[:] = kept
        while len(self._far) > _FAR_CHUNKS_MAX:
            dropped = self._far.pop(0)
            self._complete_to_us = min(self._complete_to_us, dropped.earliest_us - 1)
            self._known_from = max(self._known_from, dropped.last_position)

    def _times(self, rows: pa.Table) -> npt.NDArray[np.int64]:
        return _int64(rows[self._time])


def _int64(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    return np.asarray(pc.cast(column, pa.int64()).to_numpy())


def _micros(column: pa.ChunkedArray) -> int | None:
    found: int | None = pc.cast(column, pa.int64())[0].as_py()
    return found
