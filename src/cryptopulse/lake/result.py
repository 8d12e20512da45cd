"""Lazy rows, and the forms in which to read them: Arrow, Polars, pandas, a stream of batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast, overload

import pyarrow as pa

from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.export import write_batches

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

BATCH_ROWS = 65_536


class Rows(ABC):
    """Lazy rows, read in the calling thread. They can be read repeatedly, also by several threads at once, always over
    the same versions of the tables.

    Reading raises ConfigurationError for SQL that doesn't run or for too little memory, QueryStopped when the time
    limit is reached, RowsGone when the versions' files have been deleted (Rows held for hours: ask the Lake again),
    LakeUnreachable and LakeDamaged for trouble with the lake.
    """

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """The columns and their Arrow types."""

    @abstractmethod
    def stream(self, columns: Sequence[str] | None, rows_max: int) -> Iterator[pa.RecordBatch]:
        """The rows in batches of at most `rows_max`, with these columns only (None: all), in the order of `schema`."""

    @abstractmethod
    def count(self) -> int:
        """How many rows there are; reads as little as possible."""

    @abstractmethod
    def limit(self, rows_max: int) -> Self:
        """The first `rows_max` of these rows."""

    @abstractmethod
    def within(self, timeout_s: float | None) -> Self:
        """These rows with a time limit: each read stops after `timeout_s` seconds of work; None: no limit."""

    def batches(self, rows_max: int = BATCH_ROWS) -> pa.RecordBatchReader:
        """A stream of batches of at most `rows_max` rows. Never holds all rows in memory."""
        check_positive("rows_max", rows_max)
        return pa.RecordBatchReader.from_batches(self.schema, self.stream(None, rows_max))

    def arrow(self) -> pa.Table:
        """All rows as an Arrow table; prices and sizes are exact decimals, times µs UTC."""
        return self.batches().read_all()

    @overload
    def polars(self, *, lazy: Literal[False] = False) -> pl.DataFrame: ...
    @overload
    def polars(self, *, lazy: Literal[True]) -> pl.LazyFrame: ...
    def polars(self, *, lazy: bool = False) -> pl.DataFrame | pl.LazyFrame:
        """All rows as a Polars frame, with exact decimals.

        `lazy`: a LazyFrame instead, which reads when it is collected, batch by batch, only the columns that its query
        uses. Raises ConfigurationError when Polars is not installed.
        """
        try:
            import polars as pl  # noqa: PLC0415 - an extra
            from polars.io.plugins import register_io_source  # noqa: PLC0415
        except ImportError as error:
            raise ConfigurationError("Polars is not installed: pip install 'cryptopulse[frames]'.") from error
        if not lazy:
            return cast("pl.DataFrame", pl.from_arrow(self.arrow()))

        def read(
            columns: list[str] | None, predicate: pl.Expr | None, rows_max: int | None, batch_rows: int | None
        ) -> Iterator[pl.DataFrame]:
            found = self if rows_max is None else self.limit(rows_max)
            for batch in found.stream(columns, batch_rows or BATCH_ROWS) if rows_max != 0 else ():
                frame = cast("pl.DataFrame", pl.from_arrow(batch))
                if columns:
                    frame = frame.select(columns)
                yield frame if predicate is None else frame.filter(predicate)

        empty = cast("pl.DataFrame", pl.from_arrow(self.schema.empty_table()))
        return register_io_source(read, schema=empty.schema, is_pure=True)

    def pandas(self, *, decimals: Literal["float", "exact"] = "float") -> pd.DataFrame:
        """All rows as a pandas frame; times are datetime64[us, UTC].

        `decimals`: "float" for prices and sizes as float64, which is quick in pandas and has 15 digits, or "exact" for
        Arrow decimals (pandas.ArrowDtype). Raises ConfigurationError when pandas is not installed.
        """
        if decimals not in ("float", "exact"):
            raise ConfigurationError(f"decimals={decimals!r}: write 'float' or 'exact'.")
        try:
            import pandas as pd  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise ConfigurationError("pandas is not installed: pip install 'cryptopulse[frames]'.") from error
        table = self.arrow()
        is_decimal = pa.types.is_decimal
        if decimals == "exact":
            return table.to_pandas(types_mapper=lambda kind: pd.ArrowDtype(kind) if is_decimal(kind) else None)
        for place, field in enumerate(table.schema):
            if is_decimal(field.type):
                # A cast by way of text gives the nearest float64; Arrow's own is off by a bit for one in a hundred
                # (measured).
                nearest = table.column(place).cast(pa.string()).cast(pa.float64())
                table = table.set_column(place, field.name, nearest)
        return table.to_pandas()

    def write(self, file: str | Path, format: str | None = None, *, overwrite: bool = False) -> int:  # noqa: A002
        """Writes all rows to `file`, with exact decimals and times in UTC; returns how many.

        `format`: "csv", "parquet", "arrow", "kdb" (CSV for kdb+), "hftbacktest" (.npz with the trades of one product;
        its prices and sizes are float64) or "nautilus" (trades or bars, and instruments; `file` is a folder); None: by
        the file's name, which may end with `.csv.gz` and `.csv.zst` as well. The file appears whole or not at all.
        Raises ConfigurationError for an unknown format, a file that exists without `overwrite`, one that can't be
        written, or rows that the format can't have.
        """
        step = self.bar_step if format == "nautilus" else None
        return write_batches(self.batches(), Path(file), format, overwrite=overwrite, bar_step=step)

    @property
    def bar_step(self) -> str | None:
        """What ends a bar, in NautilusTrader's words, as in `1-MINUTE`; None for rows that are no bars.

        Raises ConfigurationError for bars that it has no word for.
        """
        return None

    def __len__(self) -> int:
        """As `count`."""
        return self.count()

    def __bool__(self) -> bool:
        """Whether there is a row; does not count them."""
        return next(self.limit(1).stream(None, 1), None) is not None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Row by row as dicts: handy for a few, slow for many."""
        for batch in self.stream(None, BATCH_ROWS):
            yield from batch.to_pylist()

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Arrow's C stream protocol, by which other libraries read these rows."""
        return self.batches().__arrow_c_stream__(requested_schema)


def check_positive(name: str, value: object) -> None:
    """Raises ConfigurationError unless `value` is a whole number above 0."""
    if not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{name}={value!r}: write a whole number above 0.")
