"""Reading the lake with SQL: DuckDB views over the tables, for people and for scripts. Never writes.

A local lake's files are read by DuckDB itself. Elsewhere DuckDB would need an extension that can't be downloaded
everywhere, so it asks Arrow datasets of the tables: columns and filters are passed on to them, and files whose
partition or statistics can't match are not fetched.
"""

from __future__ import annotations

import duckdb
import pyarrow as pa

from cryptopulse.lake.access import opened, present
from cryptopulse.lake.database import Limits
from cryptopulse.lake.dataset import Lake
from cryptopulse.lake.files import Files
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.sql_rows import sealed


def connect(lake: LakeLocation) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with the views `bronze.…`, `silver.…`, `gold.…` over the newest version of each table.

    Times are UTC. The views are of the moment of the call: connect again to see newer rows. Nothing else can be read
    through it, and nothing written: file access is shut once the views stand. Raises ConfigurationError when `lake`
    holds no table.
    """
    return sealed([Files.of(lake, table, opened(lake, table)) for table in present(lake)], Limits())


def read(lake: LakeLocation, sql: str, rows_max: int | None = None) -> pa.Table:
    """The rows of one SQL statement over `lake`, at most `rows_max`.

    Raises ConfigurationError, in one line, for SQL that doesn't run or doesn't only read, and when `lake` holds no
    table.
    """
    present(lake)
    with Lake(lake) as reader:
        rows = reader.sql(sql)
        return (rows if rows_max is None else rows.limit(rows_max)).arrow()
