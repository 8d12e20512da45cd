"""The lake as an audit reads it: each table at one version, file by file, with a DuckDB of its own.

The tables are opened downstream first. A running pipeline commits upstream first, so the input of each table is in the
tables that are opened after it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from pyarrow import fs

from cryptopulse.audit.files import (
    TableFile,
    batches_of,
    footer_rows,
    live_files,
    schema_of,
)
from cryptopulse.audit.report import Finding, Findings, Repairs
from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.storage import delta_table, file_system, storage

COMPLETENESS = "gold.dm_completeness"
STATISTICS = "gold.dm_crypto_price_stats"
BARS = "gold.dm_trade_bars"
ALERTS = "gold.dm_market_alerts"
COVERAGE = "silver.trade_id_coverage"
ABSENT = "silver.absent_trade_ids"
QUARANTINE = "silver.quarantined_messages"
SILVER = "silver.fact_crypto_trades"
BRONZE = "bronze.coinbase_raw_trades"

DOWNSTREAM_FIRST = (COMPLETENESS, STATISTICS, BARS, ALERTS, COVERAGE, ABSENT, QUARANTINE, SILVER, BRONZE)

_COLUMNS = {
    COMPLETENESS: "symbol window_start window_end first_trade_id last_trade_id expected_ids held_ids healed_ids "
    "absent_ids missing_ids is_complete",
    STATISTICS: "symbol window_start window_end avg_price max_price min_price total_trade_volume trade_count vwap "
    "open_price close_price volatility load_timestamp",
    BARS: "symbol window_start open high low close volume notional vwap buy_volume sell_volume trade_count buy_count "
    "price_sum first_trade_id last_trade_id is_complete load_timestamp",
    ALERTS: "",
    COVERAGE: "symbol first_trade_id last_trade_id",
    ABSENT: "symbol first_trade_id last_trade_id partition offset",
    QUARANTINE: "partition offset reason",
    SILVER: "symbol trade_id price trade_size side source event_time ingestion_time load_timestamp",
    BRONZE: "partition offset partition_key source received_time enqueued_time bronze_ingestion_time body",
}
"""The columns that the audit needs of each table."""

_BODIES = "body"  # the column that makes rows large: a page of REST has 150 kB


@dataclass
class TableSnapshot:
    """One table at one version."""

    name: str
    delta: DeltaTable
    place: str
    """The table's folder or URL."""
    schema: pa.Schema
    files: list[TableFile]
    fragments: Mapping[str, Any] = field(default_factory=dict)
    """File name → Arrow's reader, for a lake that is not in a plain folder."""

    @property
    def version(self) -> int:
        """Its Delta version."""
        return self.delta.version()

    @property
    def rows(self) -> int:
        """The number of rows by the Delta log."""
        return sum(file.rows or 0 for file in self.files)

    @property
    def is_whole(self) -> bool:
        """Whether every file can be read."""
        return all(file.is_sound for file in self.files)

    @property
    def columns(self) -> set[str]:
        """Names of its columns."""
        return set(self.schema.names)

    def position(self, source: str) -> int | None:
        """The table's position in `source` by its commits; None if they have none."""
        return self.delta.transaction_version(f"cryptopulse:{self.name}:{source}")

    def on(self, day: date) -> list[TableFile]:
        """The files that can have rows of a day."""
        return [file for file in self.files if file.day in (day, None)]

    def days(self) -> set[date]:
        """The days of its files."""
        return {file.day for file in self.files if file.day is not None}

    def source(self, file: TableFile) -> Any:
        """A file's path, or the opened file for a lake that is not in a plain folder."""
        if file.name not in self.fragments:
            return Path(self.place, file.name)
        fragment = self.fragments[file.name]
        return fragment.filesystem.open_input_file(fragment.path)


class LakeSnapshot:
    """All tables, and the database that queries them. Use as a context manager."""

    def __init__(self, lake: LakeLocation, memory_max_mb: int, threads: int, repairs: Repairs) -> None:
        """Opens every table and checks every file; faults are in `findings`.

        Raises ConfigurationError when there is no lake, and the errors of `cryptopulse.lake.storage`.
        """
        self.lake = lake
        self.repairs = repairs
        self.findings = Findings()
        self._spill = tempfile.TemporaryDirectory(prefix="cryptopulse-audit-")
        self._db = duckdb.connect(":memory:")
        for setting in (
            f"memory_limit = '{memory_max_mb}MB'",
            f"threads = {threads}",
            f"temp_directory = {_quoted(self._spill.name)}",
            "preserve_insertion_order = false",
            "TimeZone = 'UTC'",
        ):
            self._db.execute(f"SET {setting}")
        self.tables = {name: found for name in DOWNSTREAM_FIRST if (found := self._open(name)) is not None}
        self.opened_us = time.time_ns() // 1000
        """When the last table was opened, µs UTC."""
        if not self.tables and not self.findings.counts:
            raise ConfigurationError(
                f"There is no lake at {lake}: name it with --lake, or fill one with `cryptopulse demo`."
            )
        for name in DOWNSTREAM_FIRST:
            if name not in self.tables and not any(finding.table == name for finding in self.findings.listed):
                repair = "restore it from a copy" if name == BRONZE else f"run `{repairs.rebuild}`"
                self.report("table_missing", name, f"{name} is not there", repair)
        for table in self.tables.values():
            self._check_files(table)

    def __enter__(self) -> LakeSnapshot:
        """The snapshot itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Frees its memory and deletes what it spilled to disk."""
        self._db.close()
        self._spill.cleanup()

    def report(
        self,
        kind: str,
        table: str,
        text: str,
        repair: str,
        symbol: str | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Adds a finding."""
        self.findings.add(Finding(kind, table, text, repair, symbol, details or {}))

    def files(self, name: str) -> list[TableFile]:
        """The files of a table; none if the table is missing."""
        return self.tables[name].files if name in self.tables else []

    def rows(
        self,
        sql: str,
        inputs: Mapping[str, Sequence[TableFile]] | None = None,
        beside: Mapping[str, pa.Table] | None = None,
    ) -> pa.Table:
        """The rows of `sql`, in which a table's name without its schema means the given files of the table.

        `inputs`: qualified name → files; `beside`: name in the statement → further rows. An unreadable file becomes a
        finding and is left out.
        """
        inputs, beside = inputs or {}, beside or {}
        while True:
            for name, table in beside.items():
                self._db.register(name, table)
            try:
                with storage(self.lake):
                    for name, files in inputs.items():
                        plain, table = name.partition(".")[2], self.tables[name]
                        sound = [file for file in files if file.is_sound]
                        if not sound:
                            source = f"{plain}_empty"
                            self._db.register(source, table.schema.empty_table())
                        elif self.lake.is_plain:
                            paths = ", ".join(_quoted(str(Path(table.place, file.name))) for file in sound)
                            source = f"read_parquet([{paths}], hive_partitioning = false)"
                        else:
                            source = f"{plain}_elsewhere"
                            fragments = [table.fragments[file.name] for file in sound]
                            dataset = pads.FileSystemDataset(fragments, table.schema, pads.ParquetFileFormat())
                            self._db.register(source, dataset)
                        self._db.execute(f"CREATE OR REPLACE TEMP VIEW {plain} AS SELECT * FROM {source}")
                    return self._db.sql(sql).to_arrow_table()
            except duckdb.OutOfMemoryException as error:
                raise ConfigurationError(
                    "The audit needs more memory: raise processing.memory_max_mb, or audit a shorter time by --from "
                    f"and --to ({str(error).splitlines()[0]})."
                ) from error
            except (duckdb.Error, OSError):
                # Read each file alone: unreadable ones become findings, and the statement is run again without them.
                if not [name for name in inputs if not self.read_all(name)]:
                    raise
            finally:
                for name in beside:
                    self._db.unregister(name)

    def keep(self, name: str, rows: pa.Table) -> None:
        """Adds rows to a temporary table that `rows` can query; it spills to disk if it does not fit into memory."""
        self._db.register("added", rows)
        try:
            self._db.execute(f"CREATE TEMP TABLE IF NOT EXISTS {name} AS SELECT * FROM added LIMIT 0")
            self._db.execute(f"INSERT INTO {name} SELECT * FROM added")
        finally:
            self._db.unregister("added")

    def batches(self, name: str, file: TableFile, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The rows of one file, some megabytes at a time. An unreadable file becomes a finding and ends the rows."""
        table = self.tables[name]
        try:
            with storage(self.lake):
                yield from batches_of(table.source(file), columns, _BODIES)
        except (OSError, pa.ArrowException) as error:
            current = delta_table(table.place, self.lake.storage_options)
            if file.name not in {live.name for live in live_files(current)}:
                raise ConfigurationError(
                    f"The audit took so long that files of {name} were replaced and deleted under it: raise "
                    "maintenance.vacuum_retention_hours, or audit less at once by --from, --to or --product."
                ) from error
            self._report_file(table, file, "file_unreadable", f"can't be read ({str(error).splitlines()[0][:200]})")

    def read_all(self, name: str) -> bool:
        """Reads every column of a table's sound files; returns whether all could be read."""
        sound = [file for file in self.files(name) if file.is_sound]
        for file in sound:
            for _ in self.batches(name, file):
                pass
        return all(file.is_sound for file in sound)

    def newest(self, name: str) -> TableSnapshot | None:
        """A table's present version, which may be newer than the snapshot's; None if it is missing or unreadable."""
        found = self._open(name)
        if found is not None:
            self._check_files(found)
        return found

    def _open(self, name: str) -> TableSnapshot | None:
        """Opens a table without the pipeline's checks, so that its faults are reported together with all others."""
        place, options = f"{self.lake.url}/{name.replace('.', '/')}", self.lake.storage_options
        try:
            with storage(self.lake):
                if not DeltaTable.is_deltatable(place, options):
                    return None
                delta = delta_table(place, options)
        except DeltaError as error:
            said = str(error).splitlines()[0]
            text = f"{name} can't be opened: {said}"
            repair = f"run `{self.repairs.process}`, which repairs torn commits; else {self.repairs.table(name, place)}"
            self.report("table_unreadable", name, text, repair, details={"error": said})
            return None
        schema = schema_of(delta)
        if "deletionVectors" in (delta.protocol().reader_features or ()):
            raise ConfigurationError(
                f"{name} uses deletion vectors, which the audit does not read: switch delta.enableDeletionVectors off "
                "and drop the feature."
            )
        if lacking := [column for column in _COLUMNS[name].split() if column not in schema.names]:
            raise ConfigurationError(
                f"{name} was made by another version of CryptoPulse: it lacks {', '.join(lacking)}. Audit it with "
                "that, or bring it up to date as `cryptopulse process --once` says."
            )
        fragments = {}
        if not self.lake.is_plain:
            dataset = delta.to_pyarrow_dataset(filesystem=file_system(self.lake, place))
            fragments = {fragment.path: fragment for fragment in dataset.get_fragments()}
        return TableSnapshot(name, delta, place, schema, live_files(delta), fragments)

    def _check_files(self, table: TableSnapshot) -> None:
        """Compares each file's size, and for a local file the number of rows in its footer, with the Delta log."""
        infos: Sequence[Any] = [None] * len(table.files)
        if not self.lake.folder:
            with storage(self.lake):
                root = file_system(self.lake, table.place)
                infos = root.get_file_info([file.name for file in table.files])
        for file, info in zip(table.files, infos, strict=True):
            size: int | None = None
            rows = file.rows
            try:
                if info is None:
                    path = Path(table.place, file.name)
                    size, rows = path.stat().st_size, footer_rows(path)
                elif info.type != fs.FileType.NotFound:
                    size = info.size
            except FileNotFoundError:
                size = None
            if size is None:
                self._report_file(table, file, "file_missing", "is missing")
            elif size != file.size:
                self._report_file(table, file, "file_unreadable", f"has {size:,} bytes instead of {file.size:,}")
            elif info is None and rows is None:
                self._report_file(table, file, "file_unreadable", "is no whole Parquet file")
            elif file.rows is not None and rows != file.rows:
                self._report_file(table, file, "file_unreadable", f"has {rows:,} rows instead of {file.rows:,}")

    def _report_file(self, table: TableSnapshot, file: TableFile, kind: str, what: str) -> None:
        file.is_sound = False
        text = f"{table.name}: file {file.name} {what}; gone with it: {file.bounds()}"
        stats = {column: {"min": low, "max": high} for column, (low, high) in file.stats.items()}
        details = {"file": file.name, "rows": file.rows, "day": file.day and str(file.day), "statistics": stats}
        self.report(kind, table.name, text, self.repairs.table(table.name, table.place), details=details)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
