"""The files of a table: their entries in the Delta log, and how to read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from cryptopulse.audit.report import micros, moment

BATCH_BYTES = 16 << 20
_BATCH_ROWS_MAX = 100_000
_READ_AHEAD = 4 << 20  # bytes of a column per read; on S3 and Azure each read is a request
_PLAIN = {"string_view": pa.string(), "binary_view": pa.binary()}  # by name: pyarrow 15 has no such functions


@dataclass
class TableFile:
    """One live file of a table, as the Delta log describes it."""

    name: str
    """Path under the table's folder."""
    size: int
    rows: int | None
    """None if the Delta log does not have it."""
    day: date | None
    """Its partition."""
    stats: Mapping[str, tuple[object, object]]
    """Lowest and highest value of columns."""
    is_sound: bool = True

    def bounds(self) -> str:
        """The statistics of its rows as text."""
        count = "an unknown number of rows" if self.rows is None else f"{self.rows:,} row{'s' * (self.rows != 1)}"
        named = [count] + ([f"day {self.day}"] if self.day else [])
        for column, ends in self.stats.items():
            shown = [moment(value) if isinstance(value, datetime) else str(value) for value in ends]
            named.append(f"{column} {' to '.join(dict.fromkeys(shown))}")
        return ", ".join(named)

    def latest_us(self, column: str) -> int:
        """The highest value of a column of times, as µs UTC, cut or rounded up to whole milliseconds; -1 if unknown."""
        high = self.stats.get(column, (None, None))[1]
        return micros(high) if isinstance(high, datetime) else -1

    def may_hold(self, column: str, low: int, high: int) -> bool:
        """Whether a column of integers can have a value from `low` to `high` in this file."""
        first, last = self.stats.get(column, (None, None))
        return not (isinstance(first, int) and isinstance(last, int)) or (first <= high and last >= low)


def live_files(delta: DeltaTable) -> list[TableFile]:
    """The files that make up a table at its version."""
    actions = pa.table(delta.get_add_actions(flatten=True))
    days = [name for name in actions.column_names if name.startswith("partition.")]
    columns = [name.removeprefix("min.") for name in actions.column_names if name.startswith("min.")]
    found = []
    for row in actions.to_pylist():
        day = row[days[0]] if len(days) == 1 else None
        found.append(
            TableFile(
                name=unquote(row["path"]),
                size=row["size_bytes"],
                rows=row["num_records"],
                day=day if isinstance(day, date) else None,
                stats={c: (row[f"min.{c}"], row[f"max.{c}"]) for c in columns if row[f"min.{c}"] is not None},
            )
        )
    return found


def schema_of(delta: DeltaTable) -> pa.Schema:
    """A table's columns as Arrow types without views."""
    return _plain(pa.schema(delta.schema().to_arrow()))


def batches_of(source: Any, columns: list[str] | None = None, sized_by: str | None = None) -> Iterator[pa.Table]:
    """The rows of a Parquet file (a path or an open file), in batches of about BATCH_BYTES of the column `sized_by`.

    Raises Arrow's error for a file that can't be read.
    """
    with pq.ParquetFile(source, buffer_size=_READ_AHEAD, pre_buffer=False) as file:
        rows = _BATCH_ROWS_MAX
        if sized_by in file.schema_arrow.names:
            # By the largest mean size of the column in a row group.
            place = file.schema_arrow.names.index(sized_by)
            groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
            means = [group.column(place).total_uncompressed_size / max(group.num_rows, 1) for group in groups]
            rows = min(max(int(BATCH_BYTES / max([*means, 1])), 1), _BATCH_ROWS_MAX)
        for batch in file.iter_batches(batch_size=rows, columns=columns, use_threads=False):
            table = pa.table(batch)
            yield table.cast(_plain(table.schema))


def _plain(schema: pa.Schema) -> pa.Schema:
    """Replaces views of strings and bytes, which some writers use and Arrow hardly supports, by plain types."""
    return pa.schema([field.with_type(_PLAIN.get(str(field.type), field.type)) for field in schema])


def footer_rows(path: Path) -> int | None:
    """The number of rows in a Parquet file's footer; None if the file is not a complete Parquet file.

    Raises FileNotFoundError.
    """
    try:
        return int(pq.read_metadata(path).num_rows)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException):
        return None
