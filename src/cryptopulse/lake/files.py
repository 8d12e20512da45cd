"""The files of a table at one version, and which of them can hold the wanted rows.

The Delta log gives each file's day, and its smallest and largest symbol, trade id and time. So most files of a large
table are skipped unopened: opening one takes a fraction of a millisecond, checking it nanoseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from pyarrow import dataset

from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.storage import file_system
from cryptopulse.lake.tables import ALERTS, BRONZE, QUARANTINE, Table

DAY_US = 86_400_000_000
TIME_MAX_US = 253_402_300_799_999_999
"""The end of the year 9999, µs UTC: later than any row."""
_MS = 1000  # Delta's protocol lets a file's largest time be truncated to milliseconds

Times = npt.NDArray[np.int64]

_TIMES = {BRONZE.qualified: "received_time", QUARANTINE.qualified: "received_time", ALERTS.qualified: "opened_at"}


def time_of(table: Table) -> str | None:
    """The time column by which readers select rows of `table`; None for none."""
    return _TIMES.get(table.qualified, table.time)


@dataclass(frozen=True)
class Files:
    """Files of one version of a table: all, or those that a filter left."""

    lake: LakeLocation
    table: Table
    version: int
    """-1 for a table that does not exist: it has no files."""
    actions: pa.Table
    """One row per file: path, num_records, and min.…, max.…, partition.… as the Delta log has them."""

    @classmethod
    def of(cls, lake: LakeLocation, table: Table, delta: DeltaTable) -> Files:
        """All files of `delta`."""
        return cls(lake, table, delta.version(), pa.table(delta.get_add_actions(flatten=True)))

    @classmethod
    def none(cls, lake: LakeLocation, table: Table) -> Files:
        """No files, for a table that does not exist."""
        return cls(lake, table, -1, pa.table({"path": pa.array([], pa.string())}))

    @property
    def paths(self) -> list[str]:
        """Paths relative to the table's folder."""
        found: list[str] = self.actions["path"].to_pylist()
        return found

    @property
    def names(self) -> list[str]:
        """Absolute paths in a local lake, else paths relative to the table's folder."""
        folder = self.lake.table_folder(self.table)
        return [str(folder / path) for path in self.paths] if folder else self.paths

    @cached_property
    def counts(self) -> Times:
        """Rows per file; -1 where unknown."""
        return self._numbers("num_records", -1)

    @cached_property
    def first_us(self) -> Times:
        """Per file: no row has an earlier time (µs UTC)."""
        found = self._numbers(f"min.{time_of(self.table)}", -1)
        return np.where(found >= 0, found, np.maximum(self._days, 0) * DAY_US)

    @cached_property
    def last_us(self) -> Times:
        """Per file: no row has a later time (µs UTC)."""
        found = self._numbers(f"max.{time_of(self.table)}", -1)
        by_day = np.where(self._days >= 0, self._days * DAY_US + DAY_US - 1, TIME_MAX_US)
        return np.where(found >= 0, found + _MS, by_day)

    @cached_property
    def _days(self) -> Times:
        name = next(iter(self.table.partition_by), None)
        return self._numbers(f"partition.{name}", -1)

    def in_time(self, first_us: int, end_us: int) -> Files:
        """The files that may hold rows with `first_us` ≤ time < `end_us`."""
        return self._where((self.first_us < end_us) & (self.last_us >= first_us))

    def of_symbols(self, symbols: Sequence[str]) -> Files:
        """The files that may hold rows of one of `symbols`, which is not empty."""
        low, high = (self._column(f"{edge}.symbol", pa.string()) for edge in ("min", "max"))
        wanted = np.array(sorted(symbols), dtype=object)
        lowest = pc.fill_null(low, "").to_numpy(zero_copy_only=False)
        # The first wanted symbol not below the file's range; the file counts if it is not above the range either.
        place = np.searchsorted(wanted, lowest)
        candidate = wanted[np.minimum(place, len(wanted) - 1)]
        fits = (place < len(wanted)) & (candidate <= pc.fill_null(high, "").to_numpy(zero_copy_only=False))
        return self._where(fits | np.asarray(pc.is_null(high)))

    def of_ids(self, first: int, last: int) -> Files:
        """The files that may hold trade ids from `first` to `last`, included."""
        low = self._numbers("min.trade_id", -(2**62))
        high = self._numbers("max.trade_id", 2**62)
        return self._where((low <= last) & (high >= first))

    def dataset(self) -> Any:
        """These files as an Arrow dataset, for a lake whose paths DuckDB can't read."""
        system = file_system(self.lake, self.lake.table_url(self.table))
        form = dataset.ParquetFileFormat()
        name = next(iter(self.table.partition_by), None)
        fragments = []
        for path, day in zip(self.paths, self._days.tolist(), strict=True):
            is_day = None
            if name is not None and day >= 0:
                is_day = dataset.field(name) == pa.scalar(day, pa.int32()).cast(pa.date32())
            fragments.append(form.make_fragment(path, system, partition_expression=is_day))
        return dataset.FileSystemDataset(fragments, self.table.arrow_schema, form, system)

    def _where(self, keep: npt.NDArray[np.bool_]) -> Files:
        if keep.all():
            return self
        return Files(self.lake, self.table, self.version, self.actions.filter(pa.array(keep)))

    def _column(self, name: str, kind: pa.DataType) -> pa.Array:
        if name not in self.actions.column_names:
            return pa.nulls(self.actions.num_rows, kind)
        return self.actions[name].combine_chunks()

    def _numbers(self, name: str, unknown: int) -> Times:
        """A column as whole numbers: dates as days, times as µs; `unknown` where it is NULL or not there."""
        column = self._column(name, pa.int64())
        if pa.types.is_date32(column.type):
            column = column.cast(pa.int32())
        found: Times = pc.fill_null(column.cast(pa.int64()), unknown).to_numpy(zero_copy_only=False)
        return found
